"""Re-ranking of a list before it is shown: business rules, diversity and expected revenue."""

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

# P(click | examined) and P(purchase | click), the outputs of a multi-task ranker
CLICKS, BUYS = "p_click", "p_buy"
SMALLEST = 1e-30  # in the place of 0 inside a logarithm
BLOCK = 1 << 20  # floats of gathered item vectors at a time


# -- business rules --------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Rules(Stage):
    """Business rules over the upstream's order: items that break one are removed, others move up.

    Args:
        max_per_category: at most this number of items of one category. A category is the path down
            to `level` (0 is the coarsest name, -1 the whole path); items without a name at that
            level have no limit.
        min_price, max_price: inclusive, for the price at the time of the request.
        unknown_price: whether items with an unknown price are kept or dropped.
        sold_out: a column of items that is true, or holds the time since when the item is sold out;
            or an attribute that marks it, such as "stock=none". Flags and attributes have no time
            and are taken to have been so all along.
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
            found = repr(self.unknown_price)
            needed = "'keep' or 'drop'"
            raise KarmafunnelError(self, what="unknown_price", needs=needed, found=found)
        low, high = self.bounds
        if low > high:
            needed = "prices with 0 <= min_price <= max_price"
            raise KarmafunnelError(self, needs=needed, found=f"{low:g} and {high:g}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest price, 0 and infinity where there is no limit."""
        low = 0.0 if self.min_price is None else self.min_price
        return low, np.inf if self.max_price is None else self.max_price

    @property
    def priced(self) -> bool:
        return self.min_price is not None or self.max_price is not None

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedRules:
        """Fit the rules; raises KarmafunnelError where the log lacks the categories, the prices or
        the stock that they need.
        """
        if self.priced:
            check_log(self, context, "price", "prices")
        category = None if self.max_per_category is None else self._categories(context)
        return FittedRules(self, context, category, self._sold_out(context))

    def _categories(self, context: Context) -> np.ndarray:
        """Number of each item's category at the level, -1 where it has none: int64 (n_items,)."""
        path = context.log.items["category"]
        depth = path.list.len().fill_null(0).cast(pl.Int64)
        wanted = self.level + 1 if self.level >= 0 else depth + (self.level + 1)
        reach = pl.Series(np.where(depth > 0, wanted, 0))
        known = (reach > 0) & (reach <= depth)
        if not known.any():
            needed = f"items with a category at level {self.level}"
            found = f"at most {depth.to_numpy().max()} levels in log {context.log.name}"
            raise KarmafunnelError(self, needs=needed, found=found)
        name = pl.when("known").then(pl.col("path").list.head("reach").list.join("\x00"))
        names = pl.DataFrame({"path": path, "reach": reach, "known": known}).select(name)
        return names.to_series().rank("dense").fill_null(0).cast(pl.Int64).to_numpy() - 1

    def _sold_out(self, context: Context) -> np.ndarray | None:
        """The time rank after which each item is sold out; -1 for always, the number of times for
        never: int64 (n_items,).
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
                time = column.dt.epoch("ms").fill_null(0).to_numpy()
                since = np.searchsorted(asof.times, time, side="right") - 1
                return np.where(column.is_null().to_numpy(), never, since)
        marked = log.items["attributes"].list.contains(self.sold_out).fill_null(False).to_numpy()
        if not marked.any():
            columns = []
            for name, dtype in log.items.schema.items():
                if dtype == pl.Boolean or isinstance(dtype, pl.Datetime):
                    columns.append(name)
            raise KarmafunnelError(
                self,
                what="sold_out",
                needs="a flag or a time of items, or an attribute that some item has",
                found=f"no item with {self.sold_out!r} and the columns {columns} in log {log.name}",
            )
        return np.where(marked, -1, never)


@dataclass(eq=False, repr=False)
class FittedRules(FittedStage):
    stage: Rules
    category: np.ndarray | None  # number of each item's category, (n_items,)
    sold_out: np.ndarray | None  # last time rank at which each item is not, (n_items,)

    def score(self, rows: Rows) -> np.ndarray:
        """The upstream's."""
        return rows.frame[SCORE].to_numpy()

    def outputs(self, rows: Rows) -> dict[str, np.ndarray]:
        """The upstream's score and which rows are kept; a tracked row is kept where it would be in
        its place, but counts against no limit.
        """
        keep = self._allowed(rows)
        if self.category is not None:
            keep &= self._under_the_cap(rows, self.category[rows.item], keep & rows.candidate)
        return {SCORE: self.score(rows), "keep": keep}

    def _allowed(self, rows: Rows) -> np.ndarray:
        """Rows that break no rule by themselves: bool (n_rows,)."""
        keep = np.ones(len(rows.item), dtype=bool)
        asof = self.context.log.asof
        if self.stage.priced:
            price = asof.price(rows.request, rows.item)
            low, high = self.stage.bounds
            inside = (price >= low) & (price <= high)
            keep &= np.where(np.isnan(price), self.stage.unknown_price == "keep", inside)
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
        """Price, category and stock, as far as there are rules for them."""
        log = self.context.log
        columns: list[list[str]] = []
        if self.stage.priced:
            columns.append([f"price {p:.2f}" for p in log.asof.price(rows.request, rows.item)])
        if self.category is not None:
            paths = log.items["category"].gather(rows.item).list.join(" > ").fill_null("")
            columns.append(paths.to_list())
        if self.sold_out is not None:
            gone = log.asof.rank[rows.request] > self.sold_out[rows.item]
            columns.append(np.where(gone, "sold out", "").tolist())
        if not columns:
            return [""] * len(rows.item)
        return [", ".join(filter(None, texts)) for texts in zip(*columns, strict=True)]


@dataclass(frozen=True, repr=False)
class Unseen(Stage):
    """Removes items that the user clicked or bought before the request; the others move up.

    It is best placed right after recall, whose k then has to be larger by the number of items that
    users have had. A relevant item that its user had before is lost here, as the ledger shows.

    Args:
        which: "event" removes what was clicked or bought, "purchase" only what was bought.
    """

    k: int = 300
    which: Literal["event", "purchase"] = "event"
    name: str = "unseen"

    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.which not in ("event", "purchase"):
            needed = "'event' or 'purchase'"
            raise KarmafunnelError(self, what="which", needs=needed, found=repr(self.which))

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedUnseen:
        """Fit it; raises KarmafunnelError where the log lacks users, or purchases that count."""
        check_log(self, context, "users", "users")
        if self.which == "purchase":
            check_log(self, context, "purchases", "purchases")
        return FittedUnseen(self, context)


class FittedUnseen(FittedStage):
    stage: Unseen

    def score(self, rows: Rows) -> np.ndarray:
        """The upstream's."""
        return rows.frame[SCORE].to_numpy()

    def outputs(self, rows: Rows) -> dict[str, np.ndarray]:
        """The upstream's score; kept are the items that the user has not had before."""
        return {SCORE: self.score(rows), "keep": self._times(rows) == 0}

    def _times(self, rows: Rows) -> np.ndarray:
        """How often the user had each row's item before: int64 (n_rows,)."""
        return self.context.log.asof.own_count(rows.request, rows.item, self.stage.which)

    def why(self, rows: Rows) -> list[str]:
        """How often the user had it before."""
        verb = "bought" if self.stage.which == "purchase" else "clicked or bought"
        texts = []
        for n in self._times(rows).tolist():
            times = "times" if n > 1 else "time"
            texts.append(f"{verb} before {n} {times}" if n else "")
        return texts


def check_log(stage: Stage, context: Context, capability: str, needs: str) -> None:
    """Raise KarmafunnelError where the log lacks a capability."""
    if not context.log.has(capability):
        raise KarmafunnelError(stage, needs=needs, found=f"none in log {context.log.name}")


# -- diversity -------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class MMR(Stage):
    """Maximal marginal relevance (Carbonell & Goldstein 1998): each place from the top goes to the
    item with the largest

        trade * relevance - (1 - trade) * (largest cosine to an item chosen before)

    Relevance is the upstream's score, scaled to 0..1 among the request's candidates; cosines are of
    an embedder's item vectors, 0 to an item without one. Equal values are in the upstream's order.
    Only the upstream's first `depth` take part (None: all); the others, and what is not chosen
    within `k` places, follow in the upstream's order. A tracked row has the rank of the first place
    that it would have taken. The score is minus the place.
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
        # below all places: what takes no part or is not chosen; a tracked row goes just before the
        # candidate that it would have pushed down
        score = np.where(rows.candidate, 0.0, 0.5) - (self.stage.k + rank)
        part = np.ones(len(rank), dtype=bool)
        if self.stage.depth is not None:
            part = rank <= self.stage.depth
        relevance = self._relevance(rows, rows.frame[SCORE].to_numpy().astype(np.float64), part)
        inside = np.flatnonzero(part & rows.candidate)
        inside = inside[np.lexsort((rank[inside], rows.group[inside]))]
        tracked = np.flatnonzero(part & ~rows.candidate)
        tracked = tracked[np.argsort(rows.group[tracked], kind="stable")]
        sizes = np.bincount(rows.group[inside], minlength=len(rows.requests))
        # a block of requests at a time, so that their vectors stay small
        n = max(BLOCK // max(int(sizes.max(initial=0)) * self.vectors.shape[1], 1), 1)
        for first in range(0, len(rows.requests), n):
            ends = first, first + n
            mine = inside[slice(*np.searchsorted(rows.group[inside], ends))]
            beside = tracked[slice(*np.searchsorted(rows.group[tracked], ends))]
            group = rows.group[mine] - first
            block = sizes[first : first + n]
            # candidates in the upstream's order, -1 beyond the last
            at = np.full((len(block), int(block.max(initial=0))), -1, dtype=np.int64)
            at[group, position_in_group(group)] = mine
            owner = rows.group[beside] - first
            chosen, place = self._choose(rows, rank, relevance, at, beside, owner)
            score[chosen] = -place
        return score.astype(np.float32)

    def _relevance(self, rows: Rows, score: np.ndarray, part: np.ndarray) -> np.ndarray:
        """The score scaled to 0..1 among the request's candidates that take part: float64
        (n_rows,).
        """
        counted = part & rows.candidate
        low, high = np.full(len(rows.requests), np.inf), np.full(len(rows.requests), -np.inf)
        np.minimum.at(low, rows.group[counted], score[counted])
        np.maximum.at(high, rows.group[counted], score[counted])
        some = high > low
        low, width = np.where(some, low, 0.0), np.where(some, high - low, 1.0)
        scaled = np.clip((score - low[rows.group]) / width[rows.group], 0.0, 1.0)
        return np.where(some[rows.group], scaled, 0.0)

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

        Args:
            rank: by the upstream, (n_rows,).
            relevance: 0..1, (n_rows,).
            at: the candidates of each request as rows, -1 for none, (g, n).
            beside: tracked rows, (f,).
            owner: the request of each of these in the block, (f,).

        Returns:
            The rows that are chosen or would have been, and their places: 1, 2, ...; half a place
            less for a tracked row.
        """
        trade, vectors = self.stage.trade, self.vectors[rows.item[np.maximum(at, 0)]]
        tracked_vectors = self.vectors[rows.item[beside]]
        left, every = at >= 0, np.arange(len(at))
        value = trade * relevance[np.maximum(at, 0)]
        tracked_value = trade * relevance[beside]
        nearest, tracked_nearest = np.zeros(at.shape), np.zeros(len(beside))
        tracked_place = np.zeros(len(beside), dtype=np.int64)  # 0 for none
        chosen, places = [], []
        for place in range(1, min(self.stage.k, at.shape[1]) + 1):
            now = np.where(left, value - (1 - trade) * nearest, -np.inf)
            best = now.argmax(axis=1)
            row, most = at[every, best], now[every, best]
            tracked_now = tracked_value - (1 - trade) * tracked_nearest
            level = (tracked_now == most[owner]) & (rank[beside] <= rank[row[owner]])
            ahead = (tracked_now > most[owner]) | level
            tracked_place[(tracked_place == 0) & ahead] = place
            some = np.isfinite(most)
            chosen.append(row[some])
            places.append(np.full(len(chosen[-1]), place))
            left[every, best] = False
            picked = vectors[every, best]
            cosine = np.einsum("gnd,gd->gn", vectors, picked)
            tracked_cosine = np.einsum("fd,fd->f", tracked_vectors, picked[owner])
            if place == 1:
                nearest, tracked_nearest = cosine, tracked_cosine
            else:
                nearest = np.maximum(nearest, cosine)
                tracked_nearest = np.maximum(tracked_nearest, tracked_cosine)
        would = tracked_place > 0
        chosen.append(beside[would])
        places.append(tracked_place[would] - 0.5)
        return np.concatenate(chosen), np.concatenate(places)


# -- money -----------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class GMVRank(Stage):
    """Order by p_click^click * p_buy^buy * price^price: the columns of the stage `source`, and the
    price at the time of the request.

    The score is the logarithm of the product, which neither under- nor overflows. An unknown price
    counts as the median price of the request's candidates. A factor with the exponent 0 is not
    read. 1, 1, 1 gives the expected revenue of an item that is examined; 1, 0, 0 the click alone.
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
        """The columns of probabilities that are read, and their exponents."""
        both = {f"{self.source}.{CLICKS}": self.click, f"{self.source}.{BUYS}": self.buy}
        return {column: exponent for column, exponent in both.items() if exponent}

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (REQUEST, ITEM, SCORE, RANK, CHANNEL, *self.factors)

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedGMVRank:
        """Fit it; raises KarmafunnelError where no stage before it is named `source`, or where the
        log has no prices.
        """
        names = upstream.funnel.names if upstream else [self.source]
        if self.factors and self.source not in names:
            needed = f"a stage {self.source!r} before it"
            raise KarmafunnelError(self, needs=needed, found=names)
        if self.price:
            check_log(self, context, "price", "prices")
        return FittedGMVRank(self, context)


class FittedGMVRank(FittedStage):
    stage: GMVRank

    def score(self, rows: Rows) -> np.ndarray:
        """The logarithm of the product; raises KarmafunnelError naming a row without a
        probability.
        """
        score = np.zeros(len(rows.item))
        for column, exponent in self.stage.factors.items():
            p = rows.frame[column].to_numpy().astype(np.float64)
            bad = np.flatnonzero(~((p >= 0) & (p <= 1)))
            if len(bad):
                log, row = self.context.log, bad[0]
                request, item = log.request_ids[rows.request[row]], log.item_ids[rows.item[row]]
                found = f"{p[row]} for request {request!r}, item {item!r} ({len(bad)} such rows)"
                needed = f"{column} between 0 and 1"
                raise KarmafunnelError(self.stage.title, needs=needed, found=found)
            score += exponent * np.log(np.maximum(p, SMALLEST))
        if self.stage.price:
            score += self.stage.price * np.log(np.maximum(self._price(rows), SMALLEST))
        return score.astype(np.float32)

    def _price(self, rows: Rows) -> np.ndarray:
        """The price as of the request; where it is unknown, the median of the request's candidates,
        or 1 where none of them has a price.
        """
        price = self.context.log.asof.price(rows.request, rows.item)
        known = pl.Series(rows.candidate & ~np.isnan(price))
        prices = pl.DataFrame({"group": rows.group, "price": price}).filter(known)
        medians = prices.group_by("group").agg(pl.col("price").median())
        median = np.ones(len(rows.requests))
        median[medians["group"].to_numpy()] = medians["price"].to_numpy()
        return np.where(np.isnan(price), median[rows.group], price)

    def why(self, rows: Rows) -> list[str]:
        """The factors of each row."""
        factors = {c.split(".")[-1]: rows.frame[c].to_numpy() for c in self.stage.factors}
        if self.stage.price:
            factors["price"] = self.context.log.asof.price(rows.request, rows.item)
        texts = []
        for values in zip(*factors.values(), strict=True):
            named = zip(factors, values, strict=True)
            texts.append(", ".join(f"{name} {value:.3g}" for name, value in named))
        return texts
