"""Rows: what a stage is given, that is a chunk of requests, their candidates, and tracked rows that
are only scored.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl

from ..errors import KarmafunnelError
from ..typed import Typed
from .context import Context
from .frame import (
    ITEM,
    REQUEST,
    SCORE,
    TRACKED,
    ascending,
    check_array,
    group_rows,
    no_rows,
    with_tracked,
)

Place = tuple[Any, ...]  # the key of a value that is computed once


@dataclass(frozen=True)
class Made:
    """A value that several stages read, and the seconds that it took by place: of the value itself
    and of those that it was computed from.
    """

    value: np.ndarray
    seconds: Mapping[Place, float]


class Rows:
    """A chunk of requests (ascending), their candidates, then the tracked rows.

    Vectors of the requests and features of the rows are computed once, when they are first asked
    for: for all stages that are given the same rows, and for the stages after them. `read` has the
    seconds of what was asked for here, so that each funnel gets its time as if it ran alone.

    Attributes:
        frame: the candidates, then the tracked rows; the column `tracked` tells them apart, because
            statistics of the candidates must not count tracked rows.
        request, item: its columns, (n_rows,).
        requests: row numbers, ascending (n_requests,).
        group: the position of each row's request among `requests`, (n_rows,).
        candidate: whether a row is a candidate, (n_rows,) bool.
        sizes: the number of candidates of each request, (n_requests,).
        depth: the number of stages before.
        read: seconds of what was read here, by place.
        read_before: the same of the stages before.
        spent: seconds that passed here while what was read was computed.
    """

    def __init__(
        self,
        context: Context,
        slate: pl.DataFrame | None,
        tracked: pl.DataFrame | None = None,
        requests: np.ndarray | None = None,
        chunk: Rows | None = None,
    ):
        """Make rows.

        Args:
            slate: the candidates; None before recall.
            tracked: rows that are only scored.
            requests: row numbers, ascending; by default those of the rows.
            chunk: rows of the same requests, whose vectors are shared.
        """
        self.context, self.slate = context, slate
        if tracked is None:
            tracked = no_rows() if slate is None else slate.clear()
        self.tracked = tracked
        if slate is None:
            self.frame = tracked.with_columns(pl.lit(True).alias(TRACKED))
        else:
            self.frame = with_tracked(slate, tracked)
        self.request, self.item = self.frame[REQUEST].to_numpy(), self.frame[ITEM].to_numpy()
        present, group = group_rows(self.request)
        self.requests = present if requests is None else requests
        if len(present) < len(self.requests):
            group = np.searchsorted(self.requests, present)[group]
        self.group = group
        n = 0 if slate is None else slate.height
        self.candidate = np.arange(len(self.item)) < n
        self._candidates = slice(0, n)  # a slice copies nothing
        self.sizes = np.bincount(self.group[:n], minlength=len(self.requests))
        self._vectors: dict[Place, Made] = {} if chunk is None else chunk._vectors
        self._values: dict[Place, Made] = {}
        # the rows of the stage before, and where these rows stood among them
        self._before: Rows | None = None
        self._at: np.ndarray | None = None
        self.depth = 0
        self.read_before: dict[Place, float] = {}
        self.read: dict[Place, float] = {}
        self.spent = 0.0

    @classmethod
    def start(
        cls, context: Context, requests: np.ndarray, tracked: pl.DataFrame | None = None
    ) -> Rows:
        """The rows for recall: requests (row numbers, ascending) and tracked rows."""
        requests = np.asarray(requests, dtype=np.int64)
        if tracked is not None:
            tracked = tracked.sort(REQUEST, maintain_order=True)
        return cls(context, None, tracked, requests)

    def after(
        self, slate: pl.DataFrame, tracked: pl.DataFrame, at: np.ndarray | None = None
    ) -> Rows:
        """The rows for the next stage.

        Args:
            slate: its candidates.
            tracked: its tracked rows.
            at: where all of its rows stand among these, (n_rows,).
        """
        rows = Rows(self.context, slate, tracked, self.requests, self)
        rows.depth, rows._at = self.depth + 1, at
        rows._before = None if at is None else self
        rows.read_before = self.read_before | self.read
        return rows

    def seen_in(self, context: Context) -> Rows:
        """The same rows with the values computed so far, for a reader with its own context."""
        other = copy.copy(self)
        other.context, other.read, other.spent = context, {}, 0.0
        return other

    def given_to(self, stage: str) -> tuple[Rows, np.ndarray | slice]:
        """The rows that an earlier stage was given, and where these rows stand among them,
        (n_rows,); the rows themselves where that stage has not run.

        Raises:
            KarmafunnelError: where it has run and its rows are gone.
        """
        rows: Rows = self
        at: np.ndarray | slice = slice(None)
        while f"{stage}.{SCORE}" in rows.frame.columns:
            if rows._before is None or rows._at is None:
                needs = f"the rows that {stage} was given"
                raise KarmafunnelError("rows", needs=needs, found="those that it passed on, alone")
            at = rows._at[at]
            rows = rows._before
        return rows, at

    def only(self, wanted: np.ndarray) -> Rows:
        """The `wanted` rows, (n_rows,) bool; whole requests stay or go."""
        if self.slate is None or wanted.all():
            return self
        n = self.slate.height
        slate, tracked = self.slate.filter(wanted[:n]), self.tracked.filter(wanted[n:])
        return Rows(self.context, slate, tracked, self.requests, self)

    @property
    def digest(self) -> str:
        """Hash of the requests and the tracked rows."""
        found = hashlib.blake2b(self.requests.tobytes(), digest_size=16)
        for column in self.tracked:
            found.update(column.name.encode() + column.to_numpy().tobytes())
        return found.hexdigest()

    # -- values that are computed once -------------------------------------------------------------

    def interests(self, embedder: str, who: str) -> np.ndarray:
        """User embeddings of the requests: float32 (n_requests, d), read-only."""

        def make(rows: Rows) -> np.ndarray:
            return rows.context.embedding(embedder, who).interests(rows.requests)

        return self.vectors("interest", embedder, who, make)

    def vectors(
        self, kind: str, embedder: str, who: str, make: Callable[[Rows], np.ndarray]
    ) -> np.ndarray:
        """Vectors of the requests of some `kind`, computed by `make` with the help of an embedder:
        float32 (n_requests, d), read-only.
        """

        def contiguous(rows: Rows) -> np.ndarray:
            dim = rows.context.items(embedder, who).shape[1]
            sizes = {"n_requests": len(rows.requests), str(dim): dim}
            title = rows.context.title_of(embedder, who)
            made = check_array(title, make(rows), sizes, f"of each request's {kind}")
            return np.ascontiguousarray(made, dtype=np.float32)

        place = kind, self.context.embedding(embedder, who)
        return self._once(self._vectors, place, contiguous)

    def columns(self, feature: Feature) -> np.ndarray:
        """`feature.compute`: float32 (n_rows, n_columns), read-only."""

        def make(rows: Rows) -> np.ndarray:
            return self._checked(feature, feature.compute(rows), whole=True)

        place = self.depth, "columns", *self._content(feature)
        return self._once(self._values, place, make, feature)

    def pairs(self, feature: Feature) -> np.ndarray:
        """`feature.pairs`, taken from an earlier stage of the funnel that has read it: float32
        (n_rows, n), read-only.
        """
        content = "pairs", *self._content(feature)
        found = self._earlier(content)
        if found is not None:
            return found

        def make(rows: Rows) -> np.ndarray:
            whole = type(feature).compute is Feature.compute  # it has no columns but these
            return self._checked(feature, feature.pairs(rows), whole)

        return self._once(self._values, (self.depth, *content), make, feature)

    def _checked(self, feature: Feature, made: Any, whole: bool) -> np.ndarray:
        """What a feature returned, checked; `whole`: a column for each of `feature.columns`."""
        columns = list(feature.columns)
        sizes: dict[str, int | None] = {"n_rows": len(self.item)}
        sizes |= {str(len(columns)): len(columns)} if whole else {"n": None}
        what = f"of its columns {columns}" if whole else "of its pairs"
        return check_array(f"feature {type(feature).__name__}", made, sizes, what)

    def _once(
        self,
        kept: dict[Place, Made],
        place: Place,
        make: Callable[[Rows], np.ndarray],
        feature: Feature | None = None,
    ) -> np.ndarray:
        """The value of a place, computed where it is missing; its seconds are added to `read`.

        A `feature` may only read the embedders that its `embedders()` names.
        """
        if place not in kept:
            context = self.context
            if feature is not None:
                context = context.reading(repr(feature), feature.embedders())
            inside = self.seen_in(context)
            start = time.perf_counter()
            value = np.asarray(make(inside)).view()
            value.flags.writeable = False  # it is shared
            seconds = time.perf_counter() - start - inside.spent
            kept[place] = Made(value, inside.read | {place: seconds})
            self.spent += seconds + inside.spent
        self.read |= kept[place].seconds
        return kept[place].value

    def _earlier(self, content: Place) -> np.ndarray | None:
        """The value of these rows that an earlier stage of this funnel has read, (n_rows, ...), or
        None.

        What only other funnels have read does not count: each funnel is timed, and gives the same
        bytes, as if it ran alone.
        """
        before = self._before
        if before is None or self._at is None:
            return None
        place = before.depth, *content
        if place in before._values and place in self.read_before:
            found: np.ndarray | None = before._values[place].value
            self.read |= before._values[place].seconds
        else:
            reader = before.seen_in(self.context)
            found = reader._earlier(content)
            self.read |= reader.read
        # columns are contiguous
        return None if found is None else found.T.take(self._at, axis=-1).T

    def _content(self, feature: Feature) -> Place:
        """What a feature's values depend on beside the rows: its embeddings and its settings."""
        read = tuple((name, self.context.embeddings.get(name)) for name in feature.embedders())
        return read, type(feature), repr(feature)

    # -- statistics among the candidates of a request ----------------------------------------------

    def _known(self, value: np.ndarray) -> tuple[np.ndarray | slice, np.ndarray]:
        """The candidates whose value is finite (usually all), and their number by request."""
        known = np.isfinite(value)
        if known.all():
            return self._candidates, self.sizes
        known &= self.candidate
        return known, np.bincount(self.group[known], minlength=len(self.requests))

    def z_score(self, value: np.ndarray) -> np.ndarray:
        """Distance from the candidates' mean in standard deviations, by request; NaN stays NaN."""
        known, n = self._known(value)
        group, n = self.group[known], np.maximum(n, 1)
        mean = np.bincount(group, value[known], minlength=len(self.requests)) / n
        off = value - mean[self.group]
        square = np.bincount(group, off[known] ** 2, minlength=len(self.requests)) / n
        return off / np.sqrt(np.maximum(square, 1e-12))[self.group]

    def share_below(self, value: np.ndarray) -> np.ndarray:
        """Share of the request's candidates with a smaller value; NaN stays NaN."""
        # Sort (request, value) keys and count the candidates before each run of equal keys.
        known, n = self._known(value)
        key = (self.group.astype(np.uint64) << np.uint64(32)) | ascending(value)
        bits = np.uint64(len(key).bit_length())
        if len(self.requests).bit_length() + len(key).bit_length() <= 32:
            # with the row number in the last bits a plain sort will do, which is far faster
            key = np.sort((key << bits) | np.arange(len(key), dtype=np.uint64))
            sequence = (key & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
            ordered = key >> bits
        else:
            sequence = np.argsort(key)
            ordered = key[sequence]
        before = np.arange(len(key))
        if not isinstance(known, slice) or known.stop < len(key):
            counted = sequence < known.stop if isinstance(known, slice) else known[sequence]
            before = np.cumsum(counted) - counted
        before[1:] *= ordered[1:] != ordered[:-1]
        below = np.empty(len(value))
        below[sequence] = np.maximum.accumulate(before)
        below -= (np.cumsum(n) - n)[self.group]
        below /= np.maximum(n, 1)[self.group]
        below[~np.isfinite(value)] = np.nan
        return below


class Feature(Typed):
    """A value with named `columns`; `compute` gives float32 (n_rows, n_columns), NaN where unknown.

    What depends on the (request, item) pair alone belongs into `pairs`: it is computed at the first
    stage that needs it and reused by later stages, which have some of the same pairs. What depends
    on the other candidates, such as ranks, belongs into `compute`.
    """

    columns: ClassVar[tuple[str, ...]] = ()

    def embedders(self) -> tuple[str, ...]:
        """Names of all embedders whose vectors it reads; they are a part of its key."""
        return ()

    def one_fit(self) -> str:
        """Why its columns make sense with one fit of its embedder only, as the numbers of a vector
        do; empty for similarities, ranks and counts, which mean the same with every fit.
        """
        return ""

    def check(self, context: Context, who: str) -> None:
        """Raise KarmafunnelError where the log lacks what the feature needs."""

    def pairs(self, rows: Rows) -> np.ndarray:
        """float32 (n_rows, n): of each pair alone, the same bits whatever the other rows are."""
        raise NotImplementedError

    def compute(self, rows: Rows) -> np.ndarray:
        return rows.pairs(self)
