"""Features of (request, item) rows, as of the request's time; a learned stage lists them as values.

Statistics within a request are over its candidates, never over tracked rows.
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
from ..models.embedders import unit_rows
from ..models.simtier import BINS
from .context import Context
from .frame import CHANNEL, RANK, SCORE, TRACKED, check_array, pair_key
from .recall import Titles
from .rows import Feature, Rows

DAY = 86_400_000  # ms
BLOCK = 4096  # rows at a time where vectors are gathered: few enough for the processor's cache
SESSION = 50  # last events of a session that its centroid is of


def stack(*columns: np.ndarray) -> np.ndarray:
    """Columns side by side, each contiguous: float32 (n_rows, n_columns)."""
    return np.stack([np.asarray(c, dtype=np.float32) for c in columns]).T


@dataclass(frozen=True, repr=False)
class Upstream(Feature):
    """Score and rank by the stage before, and which of the first eight channels found the item."""

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
            needs = f"the column {self.column!r}"
            raise KarmafunnelError(self, needs=needs, found=f"{passed} from its upstream")
        return stack(rows.frame[self.column].to_numpy())


@dataclass(frozen=True, repr=False)
class ItemColumn(Feature):
    """A numeric column of items that is taken as known from the start, such as a star rating."""

    column: str = field(metadata={"positional": True, "always": True})

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"item_{self.column}",)

    def check(self, context: Context, who: str) -> None:
        items = context.log.items
        numeric = [name for name, dtype in items.schema.items() if dtype.is_numeric()]
        if self.column not in numeric:
            needs = f"a numeric column {self.column!r} in items of log {context.log.name}"
            raise KarmafunnelError(f"{who}: {self!r}", needs=needs, found=numeric)

    def compute(self, rows: Rows) -> np.ndarray:
        return stack(
            rows.context.log.items[self.column]
            .cast(pl.Float32)
            .fill_null(np.nan)
            .to_numpy()[rows.item]
        )


@dataclass(frozen=True, repr=False)
class Similarity(Feature):
    """Similarity of the item to the request: the value, and its rank and z-score among the
    candidates (MUSE, arXiv 2512.07216). NaN where either side has no vector.

    Args:
        to: `interest` is the inner product with the user embedding, which is the embedder's own
            score. The others are cosines: `query` with the query alone, `last` with the item that
            the user clicked or bought last, `session` with the centroid of the unit vectors of the
            last `SESSION` items of the session.
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
        title = f"{who}: {self!r}"
        if self.to == "query" and not embedding.asks:
            needs = "an embedder that reads queries"
            raise KarmafunnelError(title, needs=needs, found=repr(embedding.value))
        if self.to == "query" and not any(log.has(what) for what in embedding.asks):
            needs = f"{' or '.join(embedding.asks)} of requests"
            raise KarmafunnelError(title, needs=needs, found=f"none in log {log.name}")
        sessions = log.requests["session_id"]
        if self.to == "session" and sessions.null_count() == len(sessions):
            raise KarmafunnelError(title, needs="sessions", found=f"none in log {log.name}")

    def pairs(self, rows: Rows) -> np.ndarray:
        context, who = rows.context, repr(self)
        items, has_vector = context.units(self.embedder, who)
        if self.to == "interest":
            items = context.items(self.embedder, who)
            targets = rows.interests(self.embedder, who)
        else:
            targets = rows.vectors(self.to, self.embedder, who, self._targets)
        value = products(targets, items, rows)
        has_target = np.any(targets != 0, axis=1)
        if not (has_target.all() and has_vector.all()):
            value[~(has_target[rows.group] & has_vector[rows.item])] = np.nan
        return value[:, None]

    def compute(self, rows: Rows) -> np.ndarray:
        (value,) = rows.pairs(self).T
        return stack(value, rows.share_below(value), rows.z_score(value))

    def _targets(self, rows: Rows) -> np.ndarray:
        """Unit vectors to compare items with, (n_requests, d); zeros where there is none."""
        context, requests, who = rows.context, rows.requests, repr(self)
        if self.to == "query":
            queries = context.embedding(self.embedder, who).queries(requests)
            if queries is None:
                needs = "an embedder that reads queries"
                raise KarmafunnelError(who, needs=needs, found=repr(self.embedder))
            sizes = {"n_requests": len(requests), "d": None}
            title = context.title_of(self.embedder, who)
            return unit_rows(check_array(title, queries, sizes, "of queries"))
        depth, own_session = (1, False) if self.to == "last" else (SESSION, True)
        history = context.log.asof.history(requests, depth, own_session).items
        present = history >= 0
        ends = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
        shape = (len(requests), context.log.n_items)
        ones = np.ones(ends[-1], np.float32)
        items_of = sparse.csr_matrix((ones, history[present], ends), shape=shape)
        return unit_rows(items_of @ context.units(self.embedder, who)[0])


def products(targets: np.ndarray, items: np.ndarray, rows: Rows) -> np.ndarray:
    """Inner product of each row's request vector and item vector: float32 (n_rows,).

    Args:
        targets: a vector for each request, (n_requests, d).
        items: a vector for each item, (n_items, d).
    """
    out = np.empty(len(rows.item), dtype=np.float32)
    for start in range(0, len(out), BLOCK):
        part = slice(start, start + BLOCK)
        left = targets.take(rows.group[part], axis=0)
        right = items.take(rows.item[part], axis=0)
        out[part] = np.einsum("nd,nd->n", left, right)
    return out


@dataclass(frozen=True, repr=False)
class SimTier(Feature):
    """Histogram of the item's cosines with the user's last `depth` items: log(1 + count) in bins of
    0.1 from -1.1 to 1.1.

    SimTier (Sheng et al. 2024; MUSE, arXiv 2512.07216) for any model; DIN has its own with learnt
    vectors for the bins. Items without a vector are in no bin.
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
        units, has_vector = rows.context.units(self.embedder, repr(self))
        history = rows.context.log.asof.history(rows.requests, self.depth).items
        history = np.where(has_vector[history], history, -1)
        out = np.zeros((len(rows.item), BINS), dtype=np.float32)
        sequence = np.argsort(rows.group, kind="stable")
        sequence = sequence[has_vector[rows.item[sequence]]]
        ends = np.searchsorted(rows.group[sequence], np.arange(len(rows.requests) + 1))
        for i, past in enumerate(history):  # one product a request
            past, mine = past[past >= 0], sequence[ends[i] : ends[i + 1]]
            if len(past) and len(mine):
                cosine = units[rows.item[mine]] @ units[past].T
                cell = tier(cosine) + np.arange(0, len(mine) * BINS, BINS)[:, None]
                counts = np.bincount(cell.ravel(), minlength=len(mine) * BINS)
                out[mine] = counts.reshape(len(mine), BINS)
        return np.log1p(out, out=out)


def tier(cosine: np.ndarray) -> np.ndarray:
    """The bin of each cosine: int64.

    A cosine that rounding leaves a little below a border is on it: an item's with itself is 1.
    """
    return (cosine * np.float32(10) + np.float32(BINS / 2 + 1e-3)).astype(np.int64)


@dataclass(frozen=True, repr=False)
class Vectors(Feature):
    """The user embedding and the item vector as they are: 2 * `dim` columns.

    `dim` has to be the size of the embedder's vectors, which only its fit knows.
    """

    embedder: str = field(metadata={"positional": True, "always": True})
    dim: int

    def __post_init__(self) -> None:
        needs(self, "dim")

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        name = f"vector_{self.embedder}"
        numbers = range(self.dim)
        return *(f"{name}_interest{i}" for i in numbers), *(f"{name}_item{i}" for i in numbers)

    def embedders(self) -> tuple[str, ...]:
        return (self.embedder,)

    def one_fit(self) -> str:
        return f"{self!r}: the numbers of its vectors, which differ from fit to fit"

    def check(self, context: Context, who: str) -> None:
        found = context.items(self.embedder, f"{who}: {self!r}").shape[1]
        if found != self.dim:
            needs = f"vectors of {self.dim} numbers, as its `dim` says"
            title = f"{who}: {self!r}"
            raise KarmafunnelError(title, needs=needs, found=f"{found} in {self.embedder!r}")

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
    """Clicks and purchases before the request, in all and in the last `days`, and the click-through
    rate with a prior of `prior` exposures.
    """

    days: float = 7
    prior: float = 20

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
        unit = DAY if rows.context.log.meta["time"] == "clock" else 1000
        pair = rows.request, rows.item
        counts = [asof.count(*pair, "event"), asof.count(*pair, "event", int(self.days * unit))]
        if rows.context.log.has("exposures"):
            counts += [asof.count(*pair, "shown"), asof.count(*pair, "click")]
        return stack(*counts)

    def compute(self, rows: Rows) -> np.ndarray:
        total, recent, *lists = rows.pairs(self).T
        shown, clicked = lists or np.full((2, len(rows.item)), np.nan, dtype=np.float32)
        ctr = (clicked + 0.05 * self.prior) / (shown + self.prior)
        ranks = rows.share_below(total), rows.share_below(ctr) if lists else ctr
        return stack(np.log1p(total), np.log1p(recent), ranks[0], np.log1p(shown), ctr, ranks[1])


@dataclass(frozen=True, repr=False)
class Price(Feature):
    """Last price seen before the request: its logarithm, its rank and z-score among the candidates,
    and its difference to the mean of the user's last `depth` items.
    """

    depth: int = 10
    columns: ClassVar[tuple[str, ...]] = ("price", "price_z", "price_rank", "price_to_history")

    def check(self, context: Context, who: str) -> None:
        if not context.log.has("price"):
            found = f"none in log {context.log.name}"
            raise KarmafunnelError(f"{who}: {self!r}", needs="prices", found=found)

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
    """The user's own events with the item before: how many, how long ago, how many in the session,
    and how often it was shown.
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
        everywhere = np.ones(len(count), dtype=bool)
        session_lastness, _, session = self._place(rows, everywhere, own_session=True)
        shown = np.zeros(len(rows.item))
        if rows.context.log.has("exposures"):
            shown = asof.own_count(rows.request, rows.item, "shown")
        hours = np.log1p(age / 3_600_000)
        return stack(np.log1p(count), lastness, hours, session, session_lastness, shown - count)

    def _place(
        self, rows: Rows, among: np.ndarray, own_session: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the item is among the user's last `depth` events.

        Args:
            among: rows that may have an event at all, (n_rows,) bool.
            own_session: whether only events of the session count.

        Returns:
            1 / (events since its last one), the age of that in ms, and the number of its events,
            (n_rows,) each; 0, NaN and 0 without an event.
        """
        history = rows.context.log.asof.history(rows.requests, self.depth, own_session)
        n_items = rows.context.log.n_items
        row, column = np.nonzero(history.items >= 0)
        item = history.items[row, column]
        in_histories = np.zeros(n_items, dtype=bool)
        in_histories[item] = True
        mine = np.flatnonzero(among & in_histories[rows.item])  # few: only these are looked up
        wanted = pair_key(rows.group[mine], rows.item[mine], n_items)
        # columns ascend in time, so the last of equal pairs is the latest
        pair = pair_key(row, item, n_items)
        sequence = np.argsort(pair, kind="stable")
        ordered = pair[sequence]
        end = np.searchsorted(ordered, wanted, side="right")
        times = end - np.searchsorted(ordered, wanted)
        found = times > 0
        mine, at = mine[found], sequence[end[found] - 1]
        lastness, count = np.zeros(len(rows.item)), np.zeros(len(rows.item))
        age = np.full(len(rows.item), np.nan)
        lastness[mine] = 1.0 / (self.depth - column[at])
        age[mine] = history.ages[row[at], column[at]]
        count[mine] = times[found]
        return lastness, age, count


@dataclass(frozen=True, repr=False)
class Placement(Feature):
    """Positions of the item in earlier lists: the mean, that in the user's last list, and how far
    that was below the user's last click. The request's own list is never read.
    """

    columns: ClassVar[tuple[str, ...]] = (
        "mean_position",
        "own_position",
        "own_position_below_click",
    )

    def check(self, context: Context, who: str) -> None:
        if not context.log.has("exposures"):
            found = f"no exposures in log {context.log.name}"
            raise KarmafunnelError(f"{who}: {self!r}", needs="shown lists", found=found)

    def pairs(self, rows: Rows) -> np.ndarray:
        asof = rows.context.log.asof
        own = asof.own_position(rows.request, rows.item)
        last = asof.history(rows.requests, 1).items[:, 0]
        clicked = np.where(last >= 0, asof.own_position(rows.requests, np.maximum(last, 0)), np.nan)
        return stack(asof.mean_position(rows.request, rows.item), own, own - clicked[rows.group])


@dataclass(frozen=True, repr=False)
class Clicks(Feature):
    """Clicks over expected clicks in the lists shown before, as their positions let one expect them
    (COEC; Zhang & Jones 2007, "Comparing click logs and editorial labels"): of all lists, of the
    user's own and of those for the same query. How often the item was shown for the query, and how
    often and at which position in the session. The request's own list is never read.

    A click is expected where one looks, at position p with the probability 1 / log2(1 + p), and
    `prior` looks are added to each of them.
    """

    prior: float = 5
    columns: ClassVar[tuple[str, ...]] = (
        "coec",
        "coec_rank",
        "own_coec",
        "query_coec",
        "query_clicks",
        "query_shown",
        "session_shown",
        "session_position",
    )

    def __post_init__(self) -> None:
        needs(self, "prior")

    def check(self, context: Context, who: str) -> None:
        if not context.log.has("exposures"):
            found = f"no exposures in log {context.log.name}"
            raise KarmafunnelError(f"{who}: {self!r}", needs="shown lists", found=found)

    def pairs(self, rows: Rows) -> np.ndarray:
        asof, pair = rows.context.log.asof, (rows.request, rows.item)
        columns = []
        for of in ("", "own", "query"):
            shown, looked_at, chosen = asof.in_lists(*pair, of)
            columns.append((chosen + 0.2 * self.prior) / (looked_at + self.prior))
        in_session, _, _ = asof.in_lists(*pair, "session")
        return stack(*columns, chosen, shown, in_session, asof.session_position(*pair))

    def compute(self, rows: Rows) -> np.ndarray:
        coec, *others = rows.pairs(self).T
        return stack(coec, rows.share_below(coec), *others)


@dataclass(frozen=True, repr=False)
class RequestContext(Feature):
    """The request itself: how many events the user has and how old the last is, words of the query,
    hour of the day, and number of eligible items.
    """

    columns: ClassVar[tuple[str, ...]] = (
        "n_events",
        "last_age",
        "query_words",
        "hour",
        "n_eligible",
    )

    def compute(self, rows: Rows) -> np.ndarray:
        log, requests = rows.context.log, rows.requests
        query = log.requests["query"][requests].fill_null("")
        words = query.str.count_matches(r"\S+").to_numpy()
        hour = np.zeros(len(requests))
        if log.meta["time"] == "clock":
            hour = (log.t[requests] // 3_600_000) % 24
        last = log.asof.history(requests, 1)
        age = np.where(last.items[:, 0] >= 0, np.log1p(last.ages[:, 0]), np.nan)
        n_events, known = log.asof.n_events(requests), log.asof.known(requests)
        return stack(np.log1p(n_events), age, words, hour, np.log1p(known))[rows.group]


@dataclass(frozen=True, repr=False)
class Neighbourhood(Feature):
    """The upstream rank of the item that the user clicked last, and how many ranks below it this
    item is; NaN where that is no candidate.
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
        if isinstance(feature.columns, str):
            title, found = f"feature {type(feature).__name__}", repr(feature.columns)
            raise KarmafunnelError(title, what="columns", needs="a tuple of names", found=found)
        feature.check(context, who)
    named = Counter(column for feature in features for column in feature.columns)
    if twice := [column for column, n in named.items() if n > 1]:
        found = f"{twice[:5]} more than once"
        raise KarmafunnelError(who, needs="features of different columns", found=found)


def compute(features: Sequence[Feature], rows: Rows, by_column: bool = False) -> np.ndarray:
    """All features side by side: float32 (n_rows, n_columns).

    Args:
        by_column: whether the columns, not the rows, are contiguous in memory.
    """
    parts = [rows.columns(f) for f in features]
    if by_column and parts:
        return np.concatenate([part.T for part in parts], dtype=np.float32).T
    ends = np.cumsum([0, *(p.shape[1] for p in parts)])
    out = np.empty((len(rows.item), ends[-1]), dtype=np.float32)
    # parts lie column by column: copy a block at a time, which the processor's cache holds
    for start in range(0, len(rows.item), BLOCK):
        for part, end in zip(parts, ends[1:], strict=True):
            out[start : start + BLOCK, end - part.shape[1] : end] = part[start : start + BLOCK]
    return out
