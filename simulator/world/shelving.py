"""The shop's own engine: every night a short list of items for each kind of product; for a request
the best of them by its estimate, some slots at random, with the chance of each slot as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .market import DEPARTMENT, ELSEWHERE, SECTION
from .marketplace import Marketplace
from .place import Goods, Place, blocks
from .visits import Visits
from .wants import Taste

ROWS = 512  # requests at a time: what is computed of them stays in the cache


class Slates(NamedTuple):
    """Lists that are shown: items (n, k) int64 row numbers, -1 for an empty slot; propensity (n,
    k): P(this item here | the items above it, the engine's ranking).
    """

    items: np.ndarray
    propensity: np.ndarray


@dataclass(frozen=True, eq=False)
class Shortlists:
    """Items for each leaf, by a filter: tables (4, n_leaves, m) int32, -1 for none, without
    filters, by express, within the section, both; sizes (4, n_leaves); score (n_items,), which they
    were sorted by.
    """

    tables: np.ndarray
    sizes: np.ndarray
    score: np.ndarray


def top_of(group: np.ndarray, n_groups: int, items: np.ndarray, m: int) -> np.ndarray:
    """The first m of sorted items of each group: (n_groups, m), -1 for none.

    Args:
        group: of every item.
        items: item numbers, the best first.
    """
    order = items[np.argsort(group[items], kind="stable")]
    own = group[order]
    sizes = np.bincount(own, minlength=n_groups)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    table = np.full((n_groups, m), -1, dtype=np.int32)
    kept = place < m
    table[own[kept], place[kept]] = order[kept]
    return table


def shortlists(goods: Goods, score: np.ndarray, there: np.ndarray, m: int) -> Shortlists:
    """Short lists of at most m items `there` (n_items,) bool, by nearness and score (n_items,)."""
    n_leaves = len(goods.section)
    tables = np.empty((4, n_leaves, m), dtype=np.int32)
    section, department = goods.section[goods.leaf], goods.department[goods.leaf]
    everything = np.zeros(goods.n, dtype=np.int64)
    for express in (False, True):
        items = np.flatnonzero(there & goods.shelves.express if express else there)
        items = items[np.argsort(-score[items], kind="stable")]
        leaves = np.arange(n_leaves)
        levels = [
            (goods.leaf, leaves, 0.0),
            (section, goods.section, SECTION),
            (department, goods.department, DEPARTMENT),
            (everything, np.zeros(n_leaves, dtype=np.int64), ELSEWHERE),
        ]
        near, worth = [], []
        for j, (group, of_leaf, nearness) in enumerate(levels):
            table = top_of(group, int(of_leaf.max()) + 1, items, m)[of_leaf]
            new = table >= 0
            if j:  # what is nearer stands in the list before
                nearer, of_nearer, _ = levels[j - 1]
                new &= nearer[table] != of_nearer[:, None]
            near.append(np.where(new, table, -1))
            worth.append(np.where(new, score[table] + nearness, -np.inf))
        for narrow in (False, True):
            both = 2 if narrow else 4
            table, value = np.concatenate(near[:both], 1), np.concatenate(worth[:both], 1)
            best = np.argsort(-value, axis=1, kind="stable")[:, :m]
            tables[2 * narrow + express] = np.take_along_axis(table, best, axis=1)
    return Shortlists(tables, (tables >= 0).sum(axis=2), score)


class LoggingEngine:
    """The engine of a marketplace at work."""

    def __init__(self, place: Place, marketplace: Marketplace, start: int):
        self.place, self.values = place, marketplace.engine
        self.known = [want for want in marketplace.wants if want.known]
        self.lists = self.counted(start)

    def counted(self, midnight: int) -> Shortlists:
        """Short lists by the clicks so far, of items there at a time; kept for the requests to
        come.
        """
        goods, clicks = self.place.goods, self.place.state.clicks
        fame = np.log1p(3.0 * clicks / (clicks.mean() + 1.0))
        score = self.values.popularity * fame + goods.misjudged
        self.lists = shortlists(goods, score, goods.available < midnight, self.values.shortlist)
        return self.lists

    def show(self, visits: Visits) -> Slates:
        """The engine's lists for requests."""
        n, slots = len(visits), self.values.slots
        items, propensity = np.empty((n, slots), np.int64), np.empty((n, slots))
        for part in blocks(n, ROWS):
            some = visits.rows(part)
            pool, size = self.pool(some)
            items[part], propensity[part] = self.explored(some, pool, size)
        return Slates(items, propensity)

    def pool(self, visits: Visits) -> tuple[np.ndarray, np.ndarray]:
        """Items that the engine would show, the best first (n, pool), and how many there are."""
        kind = 2 * visits.narrow + visits.express
        short = self.lists.tables[kind, visits.leaf]
        there = short >= 0
        items = np.where(there, short, 0)
        price = self.place.state.price[items]
        estimate = self.lists.score[items]
        for want in self.known:
            worth = want.worth(self.place, visits, items, price)
            estimate = estimate + (self.values.knows if isinstance(want, Taste) else 1.0) * worth
        estimate += self.values.noise * visits.draws.normal("noise", items.shape[1])
        estimate = np.where(there, estimate, -np.inf).astype(np.float32)
        best = np.argsort(-estimate, axis=1)[:, : self.values.pool]
        size = np.minimum(there.sum(axis=1), best.shape[1])
        return np.take_along_axis(items, best, axis=1), size

    def explored(
        self, visits: Visits, pool: np.ndarray, size: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lists out of pools (n, m) of which the first `size` (n,) are there, and propensities."""
        n, slots, chance = len(pool), self.values.slots, self.values.exploration
        die = visits.draws.random("explore", slots) < chance
        which = visits.draws.random("explored", slots)
        items, propensity = np.full((n, slots), -1, np.int64), np.ones((n, slots))
        left = np.arange(pool.shape[1]) < size[:, None]
        best, row = np.zeros(n, dtype=np.int64), np.arange(n)
        last = pool.shape[1] - 1
        for slot in range(slots):
            there = slot < size
            while (behind := there & ~left[row, best]).any():
                best = np.minimum(best + behind, last)
            n_left = np.maximum(size - slot, 1)
            at = best.copy()
            lost = np.flatnonzero(die[:, slot] & there)
            if len(lost):
                order = np.cumsum(left[lost], axis=1)
                rank = (which[lost, slot] * n_left[lost]).astype(np.int64)
                at[lost] = (order <= rank[:, None]).sum(axis=1)
            p = chance / n_left + (1.0 - chance) * (at == best)
            items[:, slot] = np.where(there, pool[row, at], -1)
            propensity[:, slot] = np.where(there, p, 1.0)
            left[row, at] = False
        return items, propensity
