"""Features of (request, item) rows, each a value that a learned stage lists. All are as of the
request's time.

Statistics within a request are taken over its candidates alone, never over rows that are only being
force-scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import polars as pl
from scipy import sparse

from ..bounds import needs
from ..errors import KarmafunnelError
from ..models.ctr import BINS
from ..models.embedders import unit_rows
from .context import Context
from .frame import CHANNEL, RANK, SCORE, TRACKED, pair_key
from .recall import Titles
from .rows import Feature, Rows

DAY = 86_400_000  # ms
BLOCK = 4096  # rows at a time where vectors are gathered: few enough to stay in the cache
SESSION = 50  # events of a session that its centroid is made of


def stack(*columns: np.ndarray) -> np.ndarray:
    """Columns side by side, each contiguous: float32 (n_rows, n_columns)."""
    return np.stack([np.asarray(c, dtype=np.float32) for c in columns]).T


@dataclass(frozen=True, repr=False)
class Upstream(Feature):
    """Score and rank that the stage before gave, and which of the first eight channels found the
    item.
    """

    columns: ClassVar[tuple[str, ...]] = (
        "upstream_score",
        "upstream_rank",
        "n_channels",
        *(f"channel{i}" for i in range(8)),
    )

    def compute(self, rows: Rows) -> np.ndarray:
        bits = rows.frame[CHANNEL].to_numpy()
        found = [(bits >> i & 1) for i in range(8)]
        score = np.maximum(rows.frame[SCORE].to_numpy(), -1e6)
        return stack(score, np.log1p(rows.frame[RANK].to_numpy()), np.sum(found, axis=0), *found)


@dataclass(frozen=True, repr=False)
class Column(Feature):
    """A column that an upstream stage left in the frame, such as `recall.score`."""

    column: str = field(metadata={"positional": True, "always": True})

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.column,)

    def compute(self, rows: Rows) -> np.ndarray:
        if self.column not in rows.frame.columns:
            passed = [name for name in rows.frame.columns if name not in (TRACKED, "truth")]
            raise KarmafunnelError(
                f"{self!r}: needs the column {self.column!r}, its upstream passes {passed}"
            )
        return stack(rows.frame[self.column].to_numpy())


@dataclass(frozen=True, repr=False)
class ItemColumn(Feature):
    """A numeric column of the items table that the source knew from the start, such as a star
    rating.
    """

    column: str = field(metadata={"positional": True, "always": True})

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"item_{self.column}",)

    def check(self, context: Context, who: str) -> None:
        items = context.log.items
        if self.column not in items.columns or not items.schema[self.column].is_numeric():
            numeric = [c for c, d in items.schema.items() if d.is_numeric()]
            raise KarmafunnelError(
                f"{who}: {self!r} needs a numeric column {self.column!r} in items, log {context.log.name} has {numeric}"
            )

    def compute(self, rows: Rows) -> np.ndarray:
        return stack(
            rows.context.log.items[self.column]
            .cast(pl.Float32)
            .fill_null(np.nan)
            .to_numpy()[rows.item]
        )


@dataclass(frozen=True, repr=False)
class Similarity(Feature):
    """How near the item is to what the request's user wants: the value, its rank and its z-score
    among the candidates.

    to: "interest", whose value is the inner product, the embedder's own score; or, each as a
    cosine, "query" (what the request asks for alone), "last" (the last item that the user clicked
    or bought) or "session" (the centroid of the unit vectors of the last `SESSION` items of the
    session so far). NaN where either side has no vector. (MUSE, arXiv 2512.07216)
    """

    embedder: str = field(metadata={"positional": True, "always": True})
    to: Literal["interest", "query", "last", "session"] = "interest"

    def __post_init__(self) -> None:
        allowed = ("interest", "query", "last", "session")
        if self.to not in allowed:
            raise KarmafunnelError(
                "Similarity", what="to", needs=f"one of {allowed}", found=repr(self.to)
            )

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        name = f"similarity_{self.embedder}" + ("" if self.to == "interest" else f"_{self.to}")
        return name, f"{name}_rank", f"{name}_z"

    def embedders(self) -> tuple[str, ...]:
        return (self.embedder,)

    def check(self, context: Context, who: str) -> None:
        embedding, log = context.embedding(self.embedder, f"{who}: {self!r}"), context.log
        if self.to == "query" and not embedding.asks:
            raise KarmafunnelError(
                who,
                what=repr(self),
                needs="an embedder that reads queries",
                found=repr(embedding.value),
            )
        if self.to == "query" and not any(log.has(what) for what in embedding.asks):
            raise KarmafunnelError(
                f"{who}: {self!r} needs {' or '.join(embedding.asks)} of requests, log {log.name} has none"
            )
        if self.to == "session" and log.requests["session_id"].null_count() == log.requests.height:
            raise KarmafunnelError(
                f"{who}: {self!r} needs sessions, log {log.name} has no session_id"
            )

    def pairs(self, rows: Rows) -> np.ndarray:
        context, who = rows.context, repr(self)
        items, there = context.units(self.embedder, who)
        if self.to == "interest":
            items, goals = context.items(self.embedder, who), rows.interests(self.embedder, who)
        else:
            goals = rows.vectors(
                self.to, self.embedder, who, lambda rows: self._goals(rows.context, rows.requests)
            )
        value = products(goals, items, rows)
        meant = np.any(goals != 0, axis=1)
        if not (meant.all() and there.all()):
            value[~(meant[rows.group] & there[rows.item])] = np.nan
        return value[:, None]

    def compute(self, rows: Rows) -> np.ndarray:
        (value,) = rows.pairs(self).T
        return stack(value, rows.share_below(value), rows.z_score(value))

    def _goals(self, context: Context, requests: np.ndarray) -> np.ndarray:
        """Unit vectors to compare items with, (n_requests, d); zeros where there is none."""
        if self.to == "query":
            asked = context.embedding(self.embedder, repr(self)).queries(requests)
            if asked is None:
                raise KarmafunnelError(
                    f"{self!r}",
                    needs="an embedder that reads queries",
                    found=f"{self.embedder!r} that reads none",
                )
            return unit_rows(asked)
        history = context.log.asof.history(
            requests, *((1, False) if self.to == "last" else (SESSION, True))
        ).items
        present = history >= 0
        ends = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
        shape = (len(requests), context.log.n_items)
        held = sparse.csr_matrix(
            (np.ones(ends[-1], np.float32), history[present], ends), shape=shape
        )
        return unit_rows(held @ context.units(self.embedder, repr(self))[0])


def products(goals: np.ndarray, items: np.ndarray, rows: Rows) -> np.ndarray:
    """Inner product of each row's goal and item, goals (n_requests, d), items (n_items, d): float32
    (n_rows,).
    """
    out = np.empty(len(rows.item), dtype=np.float32)
    for start in range(0, len(out), BLOCK):
        part = slice(start, start + BLOCK)
        out[part] = np.einsum(
            "nd,nd->n", goals.take(rows.group[part], axis=0), items.take(rows.item[part], axis=0)
        )
    return out


@dataclass(frozen=True, repr=False)
class SimTier(Feature):
    """Histogram of the cosines of the item with the user's last `depth` items, log(1 + count) in
    bins of 0.1 from -1.1 to 1.1.

    SimTier (Sheng et al. 2024; MUSE, arXiv 2512.07216), here for any model; DIN has its own with
    learnt vectors of the bins. Items without a vector are counted in no bin.
    """

    embedder: str = field(metadata={"positional": True, "always": True})
    depth: int = 50

    def __post_init__(self) -> None:
        needs(self, "depth")

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"simtier_{self.embedder}_{(i - BINS // 2) / 10:+.1f}" for i in range(BINS))

    def embedders(self) -> tuple[str, ...]:
        return (self.embedder,)

    def compute(self, rows: Rows) -> np.ndarray:
        units, there = rows.context.units(self.embedder, repr(self))
        history = rows.context.log.asof.history(rows.requests, self.depth).items
        history = np.where(there[history], history, -1)
        out = np.zeros((len(rows.item), BINS), dtype=np.float32)
        sequence = np.argsort(rows.group, kind="stable")
        sequence = sequence[there[rows.item[sequence]]]
        ends = np.searchsorted(rows.group[sequence], np.arange(len(rows.requests) + 1))
        for i, past in enumerate(history):  # one product a request
            past, mine = past[past >= 0], sequence[ends[i] : ends[i + 1]]
            if len(past) and len(mine):
                cosine = units[rows.item[mine]] @ units[past].T
                cell = tier(cosine) + np.arange(0, len(mine) * BINS, BINS)[:, None]
                out[mine] = np.bincount(cell.ravel(), minlength=len(mine) * BINS).reshape(
                    len(mine), BINS
                )
        return np.log1p(out, out=out)


def tier(cosine: np.ndarray) -> np.ndarray:
    """Bin of each cosine, int64. What rounding leaves a little below a border counts as on it: an
    item's cosine with itself is 1.
    """
    return (cosine * np.float32(10) + np.float32(BINS / 2 + 1e-3)).astype(np.int64)


@dataclass(frozen=True, repr=False)
class Vectors(Feature):
    """The interest vector and the item vector as they are, 2 * `dim` columns: the raw arm, for a
    model that sees both together.

    `dim` is that of the embedder's vectors, which only a fit knows for sure; another one is
    refused.
    """

    embedder: str = field(metadata={"positional": True, "always": True})
    dim: int

    def __post_init__(self) -> None:
        needs(self, "dim")

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(
            f"vector_{self.embedder}_{side}{i}"
            for side in ("interest", "item")
            for i in range(self.dim)
        )

    def embedders(self) -> tuple[str, ...]:
        return (self.embedder,)

    def check(self, context: Context, who: str) -> None:
        found = context.items(self.embedder, f"{who}: {self!r}").shape[1]
        if found != self.dim:
            raise KarmafunnelError(
                f"{who}: {self!r} needs vectors of {self.dim} numbers, those of {self.embedder!r} have {found}"
            )

    def compute(self, rows: Rows) -> np.ndarray:
        interests = rows.interests(self.embedder, repr(self))
        items = rows.context.items(self.embedder, repr(self))
        return np.concatenate([interests[rows.group], items[rows.item]], axis=1)


@dataclass(frozen=True, repr=False)
class BM25(Feature):
    """BM25 of the query against the item's title."""

    columns: ClassVar[tuple[str, ...]] = ("bm25",)

    def check(self, context: Context, who: str) -> None:
        Titles.of(context, f"{who}: {self!r}")

    def pairs(self, rows: Rows) -> np.ndarray:
        return stack(Titles.of(rows.context, repr(self)).pair_scores(rows.request, rows.item))


@dataclass(frozen=True, repr=False)
class Popularity(Feature):
    """Clicks and purchases before the request, in all and of late, and how often a showing led to
    one.
    """

    days: float = 7
    prior: float = 20  # showings' worth of doubt

    columns: ClassVar[tuple[str, ...]] = (
        "popularity",
        "popularity_recent",
        "popularity_rank",
        "shown",
        "ctr",
        "ctr_rank",
    )

    def __post_init__(self) -> None:
        needs(self, "days", "prior")

    def pairs(self, rows: Rows) -> np.ndarray:
        asof = rows.context.log.asof
        within = (
            int(self.days * DAY)
            if rows.context.log.meta["time"] == "clock"
            else int(self.days * 1000)
        )
        counts = [
            asof.count(rows.request, rows.item, "event"),
            asof.count(rows.request, rows.item, "event", within),
        ]
        if rows.context.log.has("exposures"):
            counts += [asof.count(rows.request, rows.item, what) for what in ("shown", "click")]
        return stack(*counts)

    def compute(self, rows: Rows) -> np.ndarray:
        total, recent, *lists = rows.pairs(self).T
        shown, clicked = lists or np.full((2, len(rows.item)), np.nan, dtype=np.float32)
        ctr = (clicked + 0.05 * self.prior) / (shown + self.prior)
        ranks = rows.share_below(total), rows.share_below(ctr) if lists else ctr
        return stack(np.log1p(total), np.log1p(recent), ranks[0], np.log1p(shown), ctr, ranks[1])


@dataclass(frozen=True, repr=False)
class Price(Feature):
    """Last price seen before the request: itself, against the candidates, against what the user
    looked at before.
    """

    depth: int = 10
    columns: ClassVar[tuple[str, ...]] = ("price", "price_z", "price_rank", "price_to_history")

    def check(self, context: Context, who: str) -> None:
        if not context.log.has("price"):
            raise KarmafunnelError(f"{who}: {self!r} needs prices, log {context.log.name} has none")

    def __post_init__(self) -> None:
        needs(self, "depth")

    def pairs(self, rows: Rows) -> np.ndarray:
        asof = rows.context.log.asof
        price = asof.price(rows.request, rows.item)
        price = np.log(np.where(price > 0, price, np.nan))
        history = asof.history(rows.requests, self.depth).items
        row, column = np.nonzero(history >= 0)
        past = asof.price(rows.requests[row], history[row, column])
        past = np.log(np.where(past > 0, past, np.nan))
        row, past = row[np.isfinite(past)], past[np.isfinite(past)]
        n = np.bincount(row, minlength=len(rows.requests))
        mean = np.bincount(row, past, minlength=len(rows.requests)) / np.where(n > 0, n, np.nan)
        return stack(price, price - mean[rows.group])

    def compute(self, rows: Rows) -> np.ndarray:
        price, to_history = rows.pairs(self).T
        return stack(price, rows.z_score(price), rows.share_below(price), to_history)


@dataclass(frozen=True, repr=False)
class Own(Feature):
    """What the user did with this very item before: how often, how lately, in this session, shown
    in vain.
    """

    depth: int = 50
    columns: ClassVar[tuple[str, ...]] = (
        "own_count",
        "own_lastness",
        "own_age",
        "own_session",
        "own_session_lastness",
        "own_shown",
    )

    def __post_init__(self) -> None:
        needs(self, "depth")

    def pairs(self, rows: Rows) -> np.ndarray:
        asof = rows.context.log.asof
        count = asof.own_count(rows.request, rows.item)
        lastness, age, _ = self._place(rows, count > 0, own_session=False)
        session_lastness, _, session = self._place(
            rows, np.ones(len(count), dtype=bool), own_session=True
        )
        shown = (
            asof.own_count(rows.request, rows.item, "shown")
            if rows.context.log.has("exposures")
            else np.zeros(len(rows.item))
        )
        return stack(
            np.log1p(count),
            lastness,
            np.log1p(age / 3_600_000),
            session,
            session_lastness,
            shown - count,
        )

    def _place(
        self, rows: Rows, among: np.ndarray, own_session: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """1 / (events since the last time), the age of that time, and the number of times, within
        the last `depth`.

        `among` (n_rows,) bool: rows outside it are known to have none.
        """
        history = rows.context.log.asof.history(rows.requests, self.depth, own_session)
        n_items = rows.context.log.n_items
        row, column = np.nonzero(history.items >= 0)
        item = history.items[row, column]
        held = np.zeros(n_items, dtype=bool)
        held[item] = True
        mine = np.flatnonzero(among & held[rows.item])  # few: only they are looked up
        wanted = pair_key(rows.group[mine], rows.item[mine], n_items)
        # Columns ascend in time inside a row, so the last of equal pairs is the latest.
        pair = pair_key(row, item, n_items)
        sequence = np.argsort(pair, kind="stable")
        ordered = pair[sequence]
        end = np.searchsorted(ordered, wanted, side="right")
        times = end - np.searchsorted(ordered, wanted)
        mine, at, times = mine[times > 0], sequence[end[times > 0] - 1], times[times > 0]
        lastness, age, count = (
            np.zeros(len(rows.item)),
            np.full(len(rows.item), np.nan),
            np.zeros(len(rows.item)),
        )
        lastness[mine], age[mine], count[mine] = (
            1.0 / (self.depth - column[at]),
            history.ages[row[at], column[at]],
            times,
        )
        return lastness, age, count


@dataclass(frozen=True, repr=False)
class Placement(Feature):
    """Where earlier lists showed the item: its mean position, its position in this user's last
    list, and how far below the last click of the user that was. Earlier lists only: the request's
    own list is never read.
    """

    columns: ClassVar[tuple[str, ...]] = (
        "mean_position",
        "own_position",
        "own_position_below_click",
    )

    def check(self, context: Context, who: str) -> None:
        if not context.log.has("exposures"):
            raise KarmafunnelError(
                f"{who}: {self!r} needs shown lists, log {context.log.name} has no exposures"
            )

    def pairs(self, rows: Rows) -> np.ndarray:
        asof = rows.context.log.asof
        own = asof.own_position(rows.request, rows.item)
        last = asof.history(rows.requests, 1).items[:, 0]
        clicked = np.where(last >= 0, asof.own_position(rows.requests, np.maximum(last, 0)), np.nan)
        return stack(asof.mean_position(rows.request, rows.item), own, own - clicked[rows.group])


@dataclass(frozen=True, repr=False)
class RequestContext(Feature):
    """The request itself: how much the user did before and how long ago, the query's words, the
    hour, how many items are eligible.
    """

    columns: ClassVar[tuple[str, ...]] = (
        "n_events",
        "last_age",
        "query_words",
        "hour",
        "n_eligible",
    )

    def compute(self, rows: Rows) -> np.ndarray:
        log = rows.context.log
        words = (
            log.requests["query"][rows.requests].fill_null("").str.count_matches(r"\S+").to_numpy()
        )
        hour = (
            (log.t[rows.requests] // 3_600_000) % 24
            if log.meta["time"] == "clock"
            else np.zeros(len(rows.requests))
        )
        last = log.asof.history(rows.requests, 1)
        age = np.where(last.items[:, 0] >= 0, np.log1p(last.ages[:, 0]), np.nan)
        known = log.asof.known(rows.requests)
        return stack(np.log1p(log.asof.n_events(rows.requests)), age, words, hour, np.log1p(known))[
            rows.group
        ]


@dataclass(frozen=True, repr=False)
class Neighbourhood(Feature):
    """Where the upstream order puts the item beside the last thing the user clicked: ranks below
    it, if it is a candidate.
    """

    columns: ClassVar[tuple[str, ...]] = ("rank_of_last", "ranks_below_last")

    def compute(self, rows: Rows) -> np.ndarray:
        last = rows.context.log.asof.history(rows.requests, 1).items[:, 0]
        rank = rows.frame[RANK].to_numpy().astype(np.float64)
        is_last = (rows.item == last[rows.group]) & rows.candidate
        of_last = np.full(len(rows.requests), np.nan)
        of_last[rows.group[is_last]] = rank[is_last]
        return stack(of_last[rows.group], rank - of_last[rows.group])


def check(features: Sequence[Feature], context: Context, who: str) -> None:
    """Raise KarmafunnelError where the log or an embedder lacks what a feature needs, or where two
    columns share a name.
    """
    for feature in features:
        feature.check(context, who)
    named = Counter(column for feature in features for column in feature.columns)
    if twice := [column for column, n in named.items() if n > 1]:
        raise KarmafunnelError(
            who, needs="features of different columns", found=f"{twice[:5]} more than once"
        )


def compute(features: Sequence[Feature], rows: Rows) -> np.ndarray:
    """All features side by side: float32 (n_rows, n_columns)."""
    parts = [rows.columns(f) for f in features]
    ends = np.cumsum([0, *(p.shape[1] for p in parts)])
    out = np.empty((len(rows.item), ends[-1]), dtype=np.float32)
    # columns become rows, a piece at a time that stays in the cache
    for start in range(0, len(rows.item), BLOCK):
        for part, end in zip(parts, ends[1:], strict=True):
            out[start : start + BLOCK, end - part.shape[1] : end] = part[start : start + BLOCK]
    return out
