"""Rows: what a stage is given. A chunk of requests, their candidates, and the rows beside them that
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

from ..typed import Typed
from .context import Context
from .frame import ITEM, REQUEST, TRACKED, ascending, group_rows, no_rows, with_tracked

Place = tuple[Any, ...]  # what a value is of: by it the value is found again, and paid for once


@dataclass(frozen=True)
class Made:
    """A value that several stages read, and the seconds that it took by place: its own, and those
    of what it was made from.
    """

    value: np.ndarray
    seconds: Mapping[Place, float]


class Rows:
    """A chunk of requests (ascending), their candidates, then the rows that are only scored.

    Vectors of the requests and features of the rows are made once, whoever asks first: for the
    stages that are given the very same rows, and for the stages after them. `read` says what was
    asked for here and what it cost, so that each funnel is charged as if it ran alone.

    frame: the candidates, then the tracked rows, which the column `tracked` tells; statistics of
    "the candidates" must not count those. request, item (n_rows,): its columns. group (n_rows,):
    the place of each row's request among `requests`. candidate (n_rows,) bool. sizes (n_requests,):
    candidates of each request.
    """

    def __init__(
        self, context: Context, slate: pl.DataFrame | None, tracked: pl.DataFrame | None = None, requests: np.ndarray | None = None,
        chunk: Rows | None = None,
    ):  # fmt: skip
        """`slate` is None before recall. `requests`: those of the rows, where it is left out.
        `chunk`: rows of the same requests, whose vectors are shared.
        """
        self.context, self.slate = context, slate
        if tracked is None:
            tracked = no_rows() if slate is None else slate.clear()
        self.tracked = tracked
        self.frame = (
            self.tracked.with_columns(pl.lit(True).alias(TRACKED))
            if slate is None
            else with_tracked(slate, self.tracked)
        )
        self.request, self.item = self.frame[REQUEST].to_numpy(), self.frame[ITEM].to_numpy()
        there, group = group_rows(self.request)
        self.requests = there if requests is None else requests
        self.group = (
            group
            if len(there) == len(self.requests)
            else np.searchsorted(self.requests, there)[group]
        )
        n = 0 if slate is None else slate.height
        self.candidate = np.arange(len(self.item)) < n
        self._candidates = slice(0, n)  # a slice copies nothing
        self.sizes = np.bincount(self.group[:n], minlength=len(self.requests))
        self._vectors: dict[Place, Made] = {} if chunk is None else chunk._vectors
        self._values: dict[Place, Made] = {}
        # The rows of the stage before, and where these stood among them.
        self._before: Rows | None = None
        self._at: np.ndarray | None = None
        self.depth = 0  # stages that made them
        self.read_before: dict[Place, float] = {}  # by the stages that made them
        self.read: dict[Place, float] = {}
        self.spent = 0.0  # seconds that passed here while what is read was made

    @classmethod
    def start(
        cls, context: Context, requests: np.ndarray, tracked: pl.DataFrame | None = None
    ) -> Rows:
        """What recall is given: requests (row numbers, ascending) and rows to score beside."""
        requests = np.asarray(requests, dtype=np.int64)
        return cls(
            context,
            None,
            None if tracked is None else tracked.sort(REQUEST, maintain_order=True),
            requests,
        )

    def after(
        self, slate: pl.DataFrame, tracked: pl.DataFrame, at: np.ndarray | None = None
    ) -> Rows:
        """What the next stage is given; `at` (n_rows,): where its rows stand among these."""
        rows = Rows(self.context, slate, tracked, self.requests, self)
        rows.depth, rows._at = self.depth + 1, at
        rows._before = None if at is None else self
        rows.read_before = self.read_before | self.read
        return rows

    def seen_in(self, context: Context) -> Rows:
        """The same rows and what was made of them, for one who reads in a context of its own."""
        other = copy.copy(self)
        other.context, other.read, other.spent = context, {}, 0.0
        return other

    def only(self, wanted: np.ndarray) -> Rows:
        """Some of the rows, (n_rows,) bool, of whole requests."""
        if self.slate is None or wanted.all():
            return self
        n = self.slate.height
        return Rows(
            self.context,
            self.slate.filter(wanted[:n]),
            self.tracked.filter(wanted[n:]),
            self.requests,
            self,
        )

    @property
    def digest(self) -> str:
        """Hash of the requests and the tracked rows."""
        found = hashlib.blake2b(self.requests.tobytes(), digest_size=16)
        for column in self.tracked:
            found.update(column.name.encode() + column.to_numpy().tobytes())
        return found.hexdigest()

    # -- what is made once -------------------------------------------------------------------------

    def interests(self, embedder: str, who: str) -> np.ndarray:
        """User embeddings of the requests: float32 (n_requests, d), read-only."""
        return self.vectors(
            "interest",
            embedder,
            who,
            lambda rows: rows.context.embedding(embedder, who).interests(rows.requests),
        )

    def vectors(
        self, kind: str, embedder: str, who: str, make: Callable[[Rows], np.ndarray]
    ) -> np.ndarray:
        """What `make` gives of the requests with the help of an embedder: float32 (n_requests, d),
        read-only.
        """
        place = kind, self.context.embedding(embedder, who)
        return self._once(
            self._vectors, place, lambda rows: np.ascontiguousarray(make(rows), dtype=np.float32)
        )

    def columns(self, feature: Feature) -> np.ndarray:
        """`feature.compute`: float32 (n_rows, n_columns), read-only."""
        return self._once(
            self._values, (self.depth, "columns", *self._content(feature)), feature.compute, feature
        )

    def pairs(self, feature: Feature) -> np.ndarray:
        """`feature.pairs`, from an earlier stage of the funnel where that has asked for it: float32
        (n_rows, n), read-only.
        """
        content = "pairs", *self._content(feature)
        found = self._earlier(content)
        if found is not None:
            return found
        return self._once(self._values, (self.depth, *content), feature.pairs, feature)

    def _once(
        self,
        kept: dict[Place, Made],
        place: Place,
        make: Callable[[Rows], np.ndarray],
        feature: Feature | None = None,
    ) -> np.ndarray:
        """The value of a place, made where it is not there yet; its seconds are put down as read.

        A `feature` reads the vectors that it says it reads, and no others.
        """
        if place not in kept:
            context = (
                self.context
                if feature is None
                else self.context.reading(repr(feature), feature.embedders())
            )
            inside = self.seen_in(context)
            start = time.perf_counter()
            value = np.asarray(make(inside)).view()
            value.flags.writeable = False  # others read it, too
            seconds = time.perf_counter() - start - inside.spent
            kept[place] = Made(value, inside.read | {place: seconds})
            self.spent += seconds + inside.spent
        self.read |= kept[place].seconds
        return kept[place].value

    def _earlier(self, content: Place) -> np.ndarray | None:
        """A value of these rows from an earlier stage of this funnel, (n_rows, ...), where one has
        read it.

        Not from what another funnel asked for: each is charged, and gives the same bytes, as if it
        ran alone.
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
        # features lie column by column
        return None if found is None else found.T.take(self._at, axis=-1).T

    def _content(self, feature: Feature) -> Place:
        """What a feature's values depend on beside the rows: the vectors that it says it reads, and
        its settings.
        """
        read = tuple((name, self.context.embeddings.get(name)) for name in feature.embedders())
        return read, type(feature), repr(feature)

    # -- statistics among the candidates of a request ----------------------------------------------

    def _known(self, value: np.ndarray) -> tuple[np.ndarray | slice, np.ndarray]:
        """The candidates whose value is a number, usually all of them, and how many each request
        has.
        """
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
        # One sort of (request, value) keys; in it, count the candidates before each run of equal
        # keys.
        known, n = self._known(value)
        key = (self.group.astype(np.uint64) << np.uint64(32)) | ascending(value)
        place = len(key).bit_length()
        # with the row's number in its last bits, a plain sort does: far faster
        if len(self.requests).bit_length() + place <= 32:
            key = np.sort((key << np.uint64(place)) | np.arange(len(key), dtype=np.uint64))
            sequence, ordered = (
                (key & np.uint64((1 << place) - 1)).astype(np.int64),
                key >> np.uint64(place),
            )
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

    What it says of a (request, item) pair whatever stands beside it is in `pairs`: worked out at
    the first stage that asks, and taken along by the stages after it, which have fewer of the same
    pairs. What depends on the other candidates is in `compute`.
    """

    columns: ClassVar[tuple[str, ...]] = ()

    def embedders(self) -> tuple[str, ...]:
        """Names of all embedders whose vectors it reads: its values are shared, and its fits kept,
        by them.
        """
        return ()

    def check(self, context: Context, who: str) -> None:
        """Raise KarmafunnelError where the log lacks what the feature needs."""

    def pairs(self, rows: Rows) -> np.ndarray:
        """float32 (n_rows, n): of each pair alone, the same bits whatever the other rows are."""
        raise NotImplementedError

    def compute(self, rows: Rows) -> np.ndarray:
        return rows.pairs(self)
