"""The lines of a report card, one class a line."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.sparse import csr_array

from ..measure.describe import words
from .held_out import DAY, Part
from .judging import Drawing
from .popular_items import Gini, Zipf
from .summed import ROWS, Draw, Line, Rate, Spread, Summed

POSITIONS = 50  # of a list, from its top


class ClickRate(Rate):
    name, unit = "click rate", "clicks a shown item"
    needs = ("exposures", "clicks")

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        shown = part.shown
        return part.user[shown["at"].to_numpy()], shown["clicked"].to_numpy().astype(float)


class ClicksByPosition(Summed):
    """Click rates of the positions that both logs show, divided by their sum, so that the level
    plays no part; the distance is the largest gap of their sums from the top.
    """

    name, unit = "clicks by position", "mean position of a click, all shown as often"
    needs = ("exposures", "clicks")

    def ready(self, part: Part) -> tuple[np.ndarray, ...]:
        shown = part.shown.filter(pl.col("position") <= POSITIONS)
        user = part.user[shown["at"].to_numpy()]
        return user, shown["position"].to_numpy(), shown["clicked"].to_numpy()

    def scale(self, told: list[tuple[np.ndarray, ...]]) -> np.ndarray:
        often = [np.bincount(position, minlength=POSITIONS + 1) >= ROWS for _, position, _ in told]
        return np.flatnonzero(np.logical_and.reduce(often))

    def sums(self, told: tuple[np.ndarray, ...], n_users: int, scale: np.ndarray) -> csr_array:
        user, position, clicked = told
        place = np.full(POSITIONS + 1, -1)
        place[scale] = np.arange(len(scale))
        known = place[position] >= 0
        rows, at = user[known], place[position[known]]
        columns, entries = np.r_[at, at + len(scale)], np.r_[clicked[known], np.ones(len(at))]
        shape = (n_users, 2 * len(scale))
        return csr_array((entries, (np.r_[rows, rows], columns)), shape=shape)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        clicks, shown = np.split(sums, 2, axis=1)
        rates = clicks / np.maximum(shown, 1e-12)
        return np.cumsum(rates, axis=1) / np.maximum(rates.sum(axis=1, keepdims=True), 1e-12)

    def apart(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.abs(a - b).max(axis=1, initial=0.0)

    def figure(self, told: tuple[np.ndarray, ...], of_sums: np.ndarray) -> float:
        return float((1 - of_sums).sum() + 1)  # positions from 1, without gaps

    def drawing(self, named: dict[str, np.ndarray], scale: np.ndarray) -> Drawing:
        curves = {}
        for name, sums in named.items():
            clicks, shown = np.split(sums, 2)
            curves[name] = (scale, clicks / np.maximum(shown, 1e-12))
        return Drawing(curves, "position", "clicks a shown item")

    def too_few(self, part: Part, told: tuple[np.ndarray, ...]) -> str:
        found = super().too_few(part, told)
        clicks, top = int(told[2].sum()), int(told[1].max(initial=0))
        if not found and (clicks < ROWS or top < 2):
            found = f"the {part.who} log has {clicks} clicks on {top} positions, needs {ROWS} on 2"
        return found


class Clicks(Rate):
    name, unit = "clicks a request", "clicks a request"
    needs = ("clicks",)
    column = "clicked"

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        mine = part.taken.filter(pl.col(self.column))
        return part.user, np.bincount(mine["at"].to_numpy(), minlength=part.n).astype(float)


class Purchases(Clicks):
    name, unit = "purchases a request", "items bought a request"
    needs = ("purchases",)
    column = "purchased"


class ListLength(Spread):
    name, unit = "list length", "items a list"
    needs = ("exposures",)

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        at, n = np.unique(part.shown["at"].to_numpy(), return_counts=True)
        return part.user[at], n.astype(float)


class Categories(Spread):
    """Over lists of at least two items with a category: different finest categories less 1, over
    items less 1.
    """

    name, unit = "categories a list", "0: all of one category, 1: all of different ones"
    needs = ("exposures", "categories")

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        finest = part.log.items["category"].list.join("\x00").rank("dense")
        rows = part.shown.select("at", finest.gather(part.shown["item"]).alias("category"))
        lists = rows.drop_nulls().group_by("at", maintain_order=True)
        found = lists.agg(pl.len().alias("n"), pl.col("category").n_unique().alias("different"))
        found = found.filter(pl.col("n") > 1)
        value = (found["different"] - 1) / (found["n"] - 1)
        return part.user[found["at"].to_numpy()], value.to_numpy()


class Prices(Spread):
    """Over lists of at least two items with a shown price above 0."""

    name, unit = "prices a list", "standard deviation of log prices in a list"
    needs = ("exposures", "price")

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        priced = part.shown.filter(pl.col("price_shown") > 0)
        lists = priced.group_by("at", maintain_order=True)
        found = lists.agg(pl.len().alias("n"), pl.col("price_shown").log().std().alias("spread"))
        found = found.filter(pl.col("n") > 1)
        return part.user[found["at"].to_numpy()], found["spread"].to_numpy()


class PopularShown(Spread):
    """Popular: the tenth of all items that was relevant most often in W1, at least once.

    Which items these are is chance as well: another draw of a shop's users makes others popular. So
    draws of users count them anew, with the users of W1 who did not come later drawn, too.
    """

    name, unit = "popular items a list", "share of a list that was popular in W1"
    needs = ("exposures", "label")

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        assert part.terms.label is not None
        at, share = self.shares_of(part, part.log.targets_of_w1(part.terms.label))
        return part.user[at], share

    def shares_of(self, part: Part, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The request of each list, and the share of it that these counts make popular."""
        popular = counts >= max(np.quantile(counts, 0.9), 1)
        at, item = (part.shown[name].to_numpy() for name in ("at", "item"))
        length = np.bincount(at, minlength=part.n)
        hits = np.bincount(at, popular[item], part.n)
        lists = np.flatnonzero(length)
        return lists, hits[lists] / length[lists]

    def drawn(
        self, part: Part, sums: csr_array, scale: np.ndarray, rng: np.random.Generator
    ) -> Draw:
        label, log = part.terms.label, part.log
        assert label is not None
        if f"w1_{label}" in log.items.columns:  # a sample: popular is what the whole log says
            return super().drawn(part, sums, scale, rng)
        truth = log.truth(label)
        truth = truth.filter(log.requests["window"].gather(truth["request"]) == "W1")
        user, item = log.user[truth["request"].to_numpy()], truth["item"].to_numpy()
        mine = np.full(int(log.user.max()) + 1, -1)
        mine[log.user[part.requests]] = part.user

        def draw(weights: np.ndarray) -> np.ndarray:
            found = np.empty((len(weights), len(scale)))
            for row, own in enumerate(weights):
                often = np.where(mine >= 0, own[mine], rng.poisson(own.mean(), len(mine)))
                counts = np.bincount(item, often[user], log.n_items)
                at, share = self.shares_of(part, counts)
                place = np.minimum(np.searchsorted(scale, share), len(scale) - 1)
                found[row] = np.bincount(place, own[part.user[at]], len(scale))
            return found

        return draw


class PricePaid(Spread):
    """Of one piece; the price shown, where clicks are what both logs have."""

    name, unit = "price paid", "price of a relevant item"
    needs = ("label", "price")

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        found = part.truth.drop_nulls("price")
        return part.user[found["at"].to_numpy()], found["price"].to_numpy()


class QueryLength(Spread):
    name, unit = "query length", "words a query"
    needs = ("query",)

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        queries = part.log.requests["query"].gather(part.requests)
        asked = queries.is_not_null().to_numpy()
        return part.user[asked], words(queries).to_numpy().astype(float)


class SessionLength(Spread):
    name, unit = "session length", "requests a session"
    needs = ("sessions",)

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        _, first, n = np.unique(part.session, return_index=True, return_counts=True)
        return part.user[first], n.astype(float)


class HourOfDay(Spread):
    """Of requests; windows must cover a day."""

    name, unit = "hour of day", "hour of a request (UTC)"
    needs = ("clock",)

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        return part.user, (part.t % DAY // 3_600_000).astype(float)

    def absent(self, *parts: Part) -> str:
        span = parts[0].terms.span
        if span is not None and span < DAY:
            return f"a window covers {span / 3_600_000:.1f} hours, needs a day"
        if why := super().absent(*parts):
            return why
        dated = [part.who for part in parts if (part.t % DAY == part.t[0] % DAY).all()]
        return f"the {dated[0]} log knows days alone" if dated else ""


class Activity(Spread):
    """Over the users of the last part of each window, as long in both logs."""

    name, unit = "activity", "requests a user"
    needs = ("users", "clock")

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        user, n = np.unique(part.user[part.late], return_counts=True)
        return user, n.astype(float)


class Repeats(Spread):
    name, unit = "repeats", "share of relevant items that the user had before"
    needs = ("label", "users")

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        repeat = part.truth["since"].is_not_null().to_numpy().astype(float)
        return part.user[part.truth["at"].to_numpy()], repeat


class RepeatInterval(Spread):
    """Within the past that both logs hold."""

    name, unit = "repeat interval", "days since the user had the item"
    needs = ("label", "users", "clock")

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        found = part.truth.drop_nulls("since")
        return part.user[found["at"].to_numpy()], found["since"].to_numpy() / DAY


class NewItems(Spread):
    name, unit = "new items", "share of relevant items that never were relevant in W1"
    needs = ("label",)

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        new = part.truth["new"].to_numpy().astype(float)
        return part.user[part.truth["at"].to_numpy()], new


LINES: tuple[Line, ...] = (
    ClickRate(),
    ClicksByPosition(),
    Clicks(),
    Purchases(),
    ListLength(),
    Categories(),
    Prices(),
    PopularShown(),
    PricePaid(),
    QueryLength(),
    SessionLength(),
    HourOfDay(),
    Activity(),
    Repeats(),
    RepeatInterval(),
    NewItems(),
    Gini(),
    Zipf(),
)
