"""Re-ranking: what is done to a ranked list before it is shown. Business rules, diversity, and what
a shop earns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from ..bounds import needs
from ..errors import KarmafunnelError
from ..typed import positional
from .context import Context
from .frame import CHANNEL, ITEM, RANK, REQUEST, SCORE, position_in_group
from .rows import Rows
from .stage import FittedFunnel, FittedStage, Stage

# P(click | looked at) and P(purchase | click), as a multi-task ranker puts them out
CLICKS, BUYS = "p_click", "p_buy"
SMALLEST = 1e-30  # what 0 counts as inside a logarithm
BLOCK = 1 << 20  # floats of gathered item vectors at a time


# -- business rules --------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Rules(Stage):
    """Business rules over the upstream's order: what breaks one is thrown out, the rest moves up.

    `max_per_category`: at most so many items of one category, best first, a category being the path
    down to `level` (0 is the coarsest name, -1 the whole path); an item without a name at that
    level counts against no cap. `min_price`, `max_price`: both ends stay in; the price is that of
    the request's time, and an item whose price is unknown then is kept, or dropped by
    `unknown_price="drop"`. `sold_out`: a column of items, true for what is sold out or the time
    since when it is, or else an attribute that marks it, such as "stock=none". Flags and attributes
    know no time: they are taken to have held all along.
    """

    k: int = 50
    max_per_category: int | None = None
    level: int = 0
    min_price: float | None = None
    max_price: float | None = None
    unknown_price: Literal["keep", "drop"] = "keep"
    sold_out: str | None = None
    name: str = "rerank"

    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        needs(self, "max_per_category", "level", "min_price", "max_price")
        if self.unknown_price not in ("keep", "drop"):
            raise KarmafunnelError(
                f"{self!r}",
                what="unknown_price",
                needs="'keep' or 'drop'",
                found=repr(self.unknown_price),
            )
        low, high = self.bounds
        if low > high:
            raise KarmafunnelError(
                f"{self!r}",
                needs="prices with 0 <= min_price <= max_price",
                found=f"{low:g} and {high:g}",
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """Floor and ceiling of the price, 0 and infinity where there is none."""
        return (
            0.0 if self.min_price is None else self.min_price,
            np.inf if self.max_price is None else self.max_price,
        )

    @property
    def priced(self) -> bool:
        return self.min_price is not None or self.max_price is not None

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedRules:
        """Raises KarmafunnelError where the log lacks the categories, the prices or the stock that
        a rule needs.
        """
        if self.priced:
            needs_prices(self, context)
        category = None if self.max_per_category is None else self._categories(context)
        return FittedRules(self, context, category, self._sold_out(context))

    def _categories(self, context: Context) -> np.ndarray:
        """Number of each item's category at the level, -1 where it has none: int64 (n_items,)."""
        path = context.log.items["category"]
        depth = path.list.len().fill_null(0).cast(pl.Int64)
        reach = pl.Series(
            np.where(depth > 0, self.level + 1 if self.level >= 0 else depth + (self.level + 1), 0)
        )
        there = (reach > 0) & (reach <= depth)
        if not there.any():
            raise KarmafunnelError(
                f"{self!r}: needs items with a category at level {self.level}, "
                f"those of log {context.log.name} have at most {depth.to_numpy().max()} levels"
            )
        names = pl.DataFrame({"path": path, "reach": reach, "there": there}).select(
            pl.when("there").then(pl.col("path").list.head("reach").list.join("\x00"))
        )
        return names.to_series().rank("dense").fill_null(0).cast(pl.Int64).to_numpy() - 1

    def _sold_out(self, context: Context) -> np.ndarray | None:
        """Of each item: sold out to requests whose time rank is greater than this, the log's
        largest for never; int64 (n_items,).
        """
        if self.sold_out is None:
            return None
        log, asof = context.log, context.log.asof
        never = len(asof.times)
        if self.sold_out in log.items.columns:
            column = log.items[self.sold_out]
            if column.dtype == pl.Boolean:
                return np.where(column.fill_null(False).to_numpy(), -1, never)
            if isinstance(column.dtype, pl.Datetime) and log.meta["time"] == "clock":
                since = (
                    np.searchsorted(
                        asof.times, column.dt.epoch("ms").fill_null(0).to_numpy(), side="right"
                    )
                    - 1
                )
                return np.where(column.is_null().to_numpy(), never, since)
        held = log.items["attributes"].list.contains(self.sold_out).fill_null(False).to_numpy()
        if not held.any():
            fit = [
                c
                for c, d in log.items.schema.items()
                if d == pl.Boolean or isinstance(d, pl.Datetime)
            ]
            raise KarmafunnelError(
                f"{self!r}: needs sold_out to name a flag or a time of items or an attribute that some item has; log {log.name} has "
                f"the columns {fit} and no item with {self.sold_out!r}"
            )
        return np.where(held, -1, never)


@dataclass(eq=False, repr=False)
class FittedRules(FittedStage):
    stage: Rules
    category: np.ndarray | None  # number of each item's category, (n_items,)
    sold_out: np.ndarray | None  # time rank from which each item is, (n_items,)

    def score(self, rows: Rows) -> np.ndarray:
        """The upstream's."""
        return rows.frame[SCORE].to_numpy()

    def outputs(self, rows: Rows) -> dict[str, np.ndarray]:
        """The upstream's score, and what is kept. A tracked row is kept where it would be in its
        place, and takes up none.
        """
        keep = self._allowed(rows)
        if self.category is not None:
            keep &= self._under_the_cap(rows, self.category[rows.item], keep & rows.candidate)
        return {SCORE: self.score(rows), "keep": keep}

    def _allowed(self, rows: Rows) -> np.ndarray:
        """Rows that no rule forbids by themselves: bool (n_rows,)."""
        keep = np.ones(len(rows.item), dtype=bool)
        asof = self.context.log.asof
        if self.stage.priced:
            price = asof.price(rows.request, rows.item)
            low, high = self.stage.bounds
            keep &= np.where(
                np.isnan(price),
                self.stage.unknown_price == "keep",
                (price >= low) & (price <= high),
            )
        if self.sold_out is not None:
            keep &= asof.rank[rows.request] <= self.sold_out[rows.item]
        return keep

    def _under_the_cap(self, rows: Rows, category: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """Rows with fewer than `max_per_category` counted rows of their category before them: bool
        (n_rows,).
        """
        rank = rows.frame[RANK].to_numpy().astype(np.int64)
        places = int(rank.max(initial=0)) + 1
        block = (rows.group * (int(category.max(initial=0)) + 1) + category) * places
        taken = np.sort((block + rank)[counted & (category >= 0)])
        before = np.searchsorted(taken, block + rank) - np.searchsorted(taken, block)
        return (before < (self.stage.max_per_category or 0)) | (category < 0)

    def why(self, rows: Rows) -> list[str]:
        """What the rules look at."""
        sentences = [""] * len(rows.item)
        if self.stage.priced:
            sentences = [
                f"price {p:.2f}" for p in self.context.log.asof.price(rows.request, rows.item)
            ]
        if self.category is not None:
            paths = (
                self.context.log.items["category"].gather(rows.item).list.join(" > ").fill_null("")
            )
            sentences = [
                ", ".join(filter(None, pair)) for pair in zip(sentences, paths, strict=True)
            ]
        if self.sold_out is not None:
            gone = self.context.log.asof.rank[rows.request] > self.sold_out[rows.item]
            sentences = [
                ", ".join(filter(None, (s, "sold out" * bool(g))))
                for s, g in zip(sentences, gone, strict=True)
            ]
        return sentences


@dataclass(frozen=True, repr=False)
class Unseen(Stage):
    """What its user clicked or bought before the request is thrown out, the rest moves up in the
    upstream's order: masking of seen items, where a shop shows nobody the same thing twice.

    `which`: "event" throws out what was clicked or bought, "purchase" only what was bought. It
    stands best right after recall, whose k then has to be larger by what users have had, so that
    `k` unseen items are left for the later stages. A relevant item that its user had before is lost
    here, and the ledger says so.
    """

    k: int = 300
    which: Literal["event", "purchase"] = "event"
    name: str = "unseen"

    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.which not in ("event", "purchase"):
            raise KarmafunnelError(
                f"{self!r}", what="which", needs="'event' or 'purchase'", found=repr(self.which)
            )

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedUnseen:
        """Raises KarmafunnelError where the log lacks users, or the purchases that count."""
        log = context.log
        for what in ("users", *(["purchases"] if self.which == "purchase" else [])):
            if not log.has(what):
                raise KarmafunnelError(f"{self!r}: needs {what}, log {log.name} has none")
        return FittedUnseen(self, context)


class FittedUnseen(FittedStage):
    stage: Unseen

    def score(self, rows: Rows) -> np.ndarray:
        """The upstream's."""
        return rows.frame[SCORE].to_numpy()

    def outputs(self, rows: Rows) -> dict[str, np.ndarray]:
        """The upstream's score, and as what is kept all that the user had not before."""
        return {SCORE: self.score(rows), "keep": self._times(rows) == 0}

    def _times(self, rows: Rows) -> np.ndarray:
        """How often the user had each row's item before: int64 (n_rows,)."""
        return self.context.log.asof.own_count(rows.request, rows.item, self.stage.which)

    def why(self, rows: Rows) -> list[str]:
        """How often the user had it before."""
        verb = "bought" if self.stage.which == "purchase" else "clicked or bought"
        return [
            f"{verb} before {n} time{'s' * (n > 1)}" if n else ""
            for n in self._times(rows).tolist()
        ]


def needs_prices(stage: Stage, context: Context) -> None:
    """Raises KarmafunnelError where the log knows no price."""
    if not context.log.has("price"):
        raise KarmafunnelError(f"{stage!r}: needs prices, log {context.log.name} has none")


# -- diversity -------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class MMR(Stage):
    """Maximal marginal relevance (Carbonell & Goldstein 1998): the list is built from the top, each
    place going to the item with

        trade * relevance - (1 - trade) * (largest cosine to an item chosen before)

    Relevance is the upstream's score put between 0 and 1 by the smallest and largest of the
    request's candidates; cosines are of an embedder's item vectors (0 to an item without one).
    Equal values go by the upstream's rank. Only the upstream's first `depth` take part (None: all);
    they and what is not chosen within `k` places follow in the upstream's order. A tracked row has
    the rank of the first place that it would have taken. The score is minus the place.
    """

    embedder: str = positional()
    k: int = 50
    trade: float = 0.7
    depth: int | None = None
    name: str = "rerank"

    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        needs(self, "trade", depth=(1, None))

    def embedders(self) -> tuple[str, ...]:
        return (self.embedder,)

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedMMR:
        return FittedMMR(self, context, context.units(self.embedder, repr(self))[0])


@dataclass(eq=False, repr=False)
class FittedMMR(FittedStage):
    stage: MMR
    vectors: np.ndarray  # of items at length 1, (n_items, d)

    def score(self, rows: Rows) -> np.ndarray:
        rank = rows.frame[RANK].to_numpy().astype(np.int64)
        # What takes no part, or is not chosen, stands below; a tracked row goes just before what it
        # would have pushed down.
        score = np.where(rows.candidate, 0.0, 0.5) - (self.stage.k + rank)
        part = (
            np.ones(len(rank), dtype=bool) if self.stage.depth is None else rank <= self.stage.depth
        )
        relevance = self._relevance(rows, rows.frame[SCORE].to_numpy().astype(np.float64), part)
        inside = np.flatnonzero(part & rows.candidate)
        inside = inside[np.lexsort((rank[inside], rows.group[inside]))]
        tracked = np.flatnonzero(part & ~rows.candidate)
        tracked = tracked[np.argsort(rows.group[tracked], kind="stable")]
        sizes = np.bincount(rows.group[inside], minlength=len(rows.requests))
        # requests at a time
        many = max(BLOCK // max(int(sizes.max(initial=0)) * self.vectors.shape[1], 1), 1)
        for first in range(0, len(rows.requests), many):
            mine, beside = (
                some[slice(*np.searchsorted(rows.group[some], (first, first + many)))]
                for some in (inside, tracked)
            )
            group = rows.group[mine] - first
            place = position_in_group(group)
            shape = (
                len(sizes[first : first + many]),
                int(sizes[first : first + many].max(initial=0)),
            )
            # candidates in the upstream's order, -1 beyond the last
            at = np.full(shape, -1, dtype=np.int64)
            at[group, place] = mine
            chosen, place_of = self._choose(
                rows, rank, relevance, at, beside, rows.group[beside] - first
            )
            score[chosen] = -place_of
        return score.astype(np.float32)

    def _relevance(self, rows: Rows, score: np.ndarray, part: np.ndarray) -> np.ndarray:
        """The score between 0 and 1 within the request's candidates that take part: float64
        (n_rows,).
        """
        counted = part & rows.candidate
        low, high = np.full(len(rows.requests), np.inf), np.full(len(rows.requests), -np.inf)
        np.minimum.at(low, rows.group[counted], score[counted])
        np.maximum.at(high, rows.group[counted], score[counted])
        some = high > low
        low, width = np.where(some, low, 0.0), np.where(some, high - low, 1.0)
        return np.where(
            some[rows.group], np.clip((score - low[rows.group]) / width[rows.group], 0.0, 1.0), 0.0
        )

    def _choose(
        self,
        rows: Rows,
        rank: np.ndarray,
        relevance: np.ndarray,
        at: np.ndarray,
        beside: np.ndarray,
        owner: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fill the places of a block of requests, one place of all of them at a time.

        `at` (g, n) holds each request's candidates as rows, -1 for none; `beside` (f,) the tracked
        rows of the requests `owner`. Returns the rows that are chosen, or would have been, and
        their places: 1, 2, ..., a tracked row's half a place before.
        """
        trade, vectors = self.stage.trade, self.vectors[rows.item[np.maximum(at, 0)]]
        ours = self.vectors[rows.item[beside]]
        left, every = at >= 0, np.arange(len(at))
        worth, their_worth = trade * relevance[np.maximum(at, 0)], trade * relevance[beside]
        near, their_near = np.zeros(at.shape), np.zeros(len(beside))
        # that a tracked row would have taken, 0 for none
        place = np.zeros(len(beside), dtype=np.int64)
        chosen, places = [], []
        for step in range(1, min(self.stage.k, at.shape[1]) + 1):
            value = np.where(left, worth - (1 - trade) * near, -np.inf)
            best = value.argmax(axis=1)
            row, most = at[every, best], value[every, best]
            their_value = their_worth - (1 - trade) * their_near
            ahead = (their_value > most[owner]) | (
                (their_value == most[owner]) & (rank[beside] <= rank[row[owner]])
            )
            place[(place == 0) & ahead] = step
            some = np.isfinite(most)
            chosen.append(row[some])
            places.append(np.full(len(chosen[-1]), step))
            left[every, best] = False
            picked = vectors[every, best]
            cosine = np.einsum("gnd,gd->gn", vectors, picked)
            their_cosine = np.einsum("fd,fd->f", ours, picked[owner])
            near = cosine if step == 1 else np.maximum(near, cosine)
            their_near = their_cosine if step == 1 else np.maximum(their_near, their_cosine)
        would = place > 0
        return np.concatenate([*chosen, beside[would]]), np.concatenate(
            [*places, place[would] - 0.5]
        )


# -- money -----------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class GMVRank(Stage):
    """Order by p_click^click * p_buy^buy * price^price, the factors that `source` left as columns
    and the price of the request's time.

    The score is the product's logarithm, so that nothing under- or overflows. An unknown price
    counts as the median price of the request's candidates. A factor whose exponent is 0 is not
    looked at. 1, 1, 1 is the expected money of an item that is looked at; 1, 0, 0 is the click
    alone.
    """

    click: float = 1.0
    buy: float = 1.0
    price: float = 1.0
    source: str = "rank"
    k: int = 50
    name: str = "rerank"

    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        needs(self, "click", "buy", "price")
        if not (self.click or self.buy or self.price):
            raise KarmafunnelError(f"{self!r}", needs="an exponent above 0", found="none")

    @property
    def factors(self) -> dict[str, float]:
        """The columns of chances that are looked at, and their exponents."""
        both = {f"{self.source}.{CLICKS}": self.click, f"{self.source}.{BUYS}": self.buy}
        return {column: exponent for column, exponent in both.items() if exponent}

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (REQUEST, ITEM, SCORE, RANK, CHANNEL, *self.factors)

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedGMVRank:
        """Raises KarmafunnelError where no stage before it is named `source`, or where the log
        knows no price.
        """
        names = [s.name for s in upstream.funnel.stages] if upstream else [self.source]
        if self.factors and self.source not in names:
            raise KarmafunnelError(
                f"{self!r}", needs=f"a stage {self.source!r} before it", found=names
            )
        if self.price:
            needs_prices(self, context)
        return FittedGMVRank(self, context)


class FittedGMVRank(FittedStage):
    stage: GMVRank

    def score(self, rows: Rows) -> np.ndarray:
        """Raises KarmafunnelError, naming the row, for a chance that is no probability."""
        score = np.zeros(len(rows.item))
        for column, exponent in self.stage.factors.items():
            p = rows.frame[column].to_numpy().astype(np.float64)
            bad = np.flatnonzero(~((p >= 0) & (p <= 1)))
            if len(bad):
                log, row = self.context.log, bad[0]
                raise KarmafunnelError(
                    f"{self.stage.name} ({type(self.stage).__name__})",
                    needs=f"{column} between 0 and 1",
                    found=(
                        f"{p[row]} for request {log.request_ids[rows.request[row]]!r}, item "
                        f"{log.item_ids[rows.item[row]]!r} ({len(bad)} such rows)"
                    ),
                )
            score += exponent * np.log(np.maximum(p, SMALLEST))
        if self.stage.price:
            score += self.stage.price * np.log(np.maximum(self._price(rows), SMALLEST))
        return score.astype(np.float32)

    def _price(self, rows: Rows) -> np.ndarray:
        """Price as of the request; unknown: the median of the request's candidates, 1 where none of
        them has a price.
        """
        price = self.context.log.asof.price(rows.request, rows.item)
        known = pl.DataFrame({"group": rows.group, "price": price}).filter(
            pl.Series(rows.candidate & ~np.isnan(price))
        )
        middle = np.ones(len(rows.requests))
        of = known.group_by("group").agg(pl.col("price").median())
        middle[of["group"].to_numpy()] = of["price"].to_numpy()
        return np.where(np.isnan(price), middle[rows.group], price)

    def why(self, rows: Rows) -> list[str]:
        """The factors."""
        price = self.context.log.asof.price(rows.request, rows.item)
        parts = [rows.frame[column].to_numpy() for column in self.stage.factors]
        names = [column.split(".")[-1] for column in self.stage.factors]
        if self.stage.price:
            parts, names = [*parts, price], [*names, "price"]
        return [
            ", ".join(f"{n} {x:.3g}" for n, x in zip(names, row, strict=True))
            for row in zip(*parts, strict=True)
        ]
