"""What makes a shopper want an item: components whose sum is the utility, which decides clicks.

P(click | looked at) = sigmoid(sum of worths + bias), a binary logit (McFadden 1974).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...bounds import SHARE, Bound, check_bound, needs, several
from ...errors import KarmafunnelError, quoted
from ...typed import Typed, positional
from .market import DEPARTMENT, ELSEWHERE, SECTION
from .place import Asked, Place
from .shoppers import DAY

WEIGHT = Bound(-100.0, 100.0)
NAMED = 2.0  # of the item whose title the query says
WISHED = 0.9  # of each wished attribute


@dataclass(frozen=True, repr=False)
class Want(Typed, ABC):
    """A component of utility."""

    known: ClassVar[bool] = False  # whether the shop's own engine can tell it

    @abstractmethod
    def worth(self, shop: Place, visits: Asked, items: np.ndarray, price: np.ndarray) -> np.ndarray:
        """Its part of the utility of items (n, k), row numbers, at prices (n, k): (n, k)."""


@dataclass(frozen=True, repr=False)
class QueryMatch(Want):
    """weight * (-1.3 in the same section as what is looked for, -2.6 in the same department, -8
    elsewhere; +0.9 for each wished attribute; +2 for the item that was named).

    Args:
        weight: how much relevance counts.
    """

    known: ClassVar[bool] = True
    weight: float = positional(1.0)

    def __post_init__(self) -> None:
        needs(self, weight=WEIGHT)

    def worth(self, shop: Place, visits: Asked, items: np.ndarray, price: np.ndarray) -> np.ndarray:
        goods = shop.goods
        leaf, wanted = goods.leaf[items], visits.leaf
        section = goods.section[leaf] == goods.section[wanted][:, None]
        department = goods.department[leaf] == goods.department[wanted][:, None]
        match = np.where(section, SECTION, np.where(department, DEPARTMENT, ELSEWHERE))
        match[leaf == wanted[:, None]] = 0.0
        wishes = [one[:, None] for one in visits.wishes.T.astype(np.int32) if (one >= 0).any()]
        met = np.zeros((len(wishes), *items.shape), dtype=bool)
        for own in goods.codes.T if wishes else ():
            code = own[items]
            for hit, wish in zip(met, wishes, strict=True):
                hit |= code == wish
        match += WISHED * met.sum(axis=0)
        if visits.named.any():
            match += NAMED * (visits.named[:, None] & (items == visits.dream[:, None]))
        return np.asarray(self.weight * match)


@dataclass(frozen=True, repr=False)
class Taste(Want):
    """weight * (sqrt(semantic) * S + sqrt(1 - semantic) * I): S is the product of the vectors of
    shopper and item (matrix factorisation, Koren et al. 2009), I = appeal * the item's own appeal +
    0.71 * liking of the latent crowd that it belongs to; each of about unit variance.

    Args:
        weight: how much taste counts.
        semantic: how much of taste is liking of attributes, which text can tell.
        appeal: how much the item's own appeal counts, which all shoppers agree on.
    """

    known: ClassVar[bool] = True
    weight: float = positional(1.4)
    semantic: float = 0.5
    appeal: float = 0.7

    def __post_init__(self) -> None:
        needs(self, weight=WEIGHT, semantic=SHARE, appeal=WEIGHT)

    def worth(self, shop: Place, visits: Asked, items: np.ndarray, price: np.ndarray) -> np.ndarray:
        return np.asarray(self.weight * self.liking(shop, visits.user, items))

    def liking(self, shop: Place, user: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The term in brackets, for users (n,) and items (n, k): (n, k)."""
        goods, state = shop.goods, shop.state
        own = state.taste[user]
        semantic = np.matmul(goods.vector[items], own[:, :, None])[:, :, 0]
        love = np.take_along_axis(state.love[user], goods.crowd[items], axis=1)
        identity = self.appeal * goods.quality[items] + 0.71 * love
        return np.asarray(
            np.sqrt(self.semantic) * semantic + np.sqrt(1.0 - self.semantic) * identity
        )


@dataclass(frozen=True, repr=False)
class Loyalty(Want):
    """weight * [brand bought before] + again * habit * [item bought before, of goods that are used
    up] - once * [item bought before, of goods that last] (loyalty in a logit: Guadagni & Little
    1983); habit is the shopper's own, 0.2 to 1.2. The last eight purchases count.

    Args:
        weight: of a brand.
        again: of an item to be bought again.
        once: of an item that nobody needs twice.
    """

    weight: float = positional(0.5)
    again: float = 1.8
    once: float = 1.0

    def __post_init__(self) -> None:
        needs(self, weight=WEIGHT, again=WEIGHT, once=WEIGHT)

    def worth(self, shop: Place, visits: Asked, items: np.ndarray, price: np.ndarray) -> np.ndarray:
        goods, state = shop.goods, shop.state
        worth = np.zeros(items.shape)
        mine = np.where(state.bought_at[visits.user] < visits.ts[:, None], 1, 0)
        owned = np.where(mine, state.bought[visits.user], -1)
        rows = np.flatnonzero((owned >= 0).any(axis=1))
        if len(rows) == 0:
            return worth
        owned, shown = owned[rows], items[rows]
        brand = np.where(owned >= 0, goods.brand[owned], -2)
        habit = shop.people.habit[visits.user[rows]][:, None]
        loyal = np.zeros(shown.shape, dtype=bool)
        same = np.zeros(shown.shape, dtype=bool)
        for j in range(owned.shape[1]):
            loyal |= goods.brand[shown] == brand[:, j : j + 1]
            same |= shown == owned[:, j : j + 1]
        loyal &= goods.brand[shown] >= 0
        own = np.where(goods.used_up[shown], self.again * habit, -self.once)
        worth[rows] = self.weight * loyal + same * own
        return worth


@dataclass(frozen=True, repr=False)
class Thrift(Want):
    """-weight * sensitivity of the shopper's segment * (log price - log of the median price of that
    kind of product): latent classes of price sensitivity (Kamakura & Russell 1989).

    Args:
        weight: how much price counts.
        segments: (share of shoppers, sensitivity) of each segment; shares sum to 1.
    """

    known: ClassVar[bool] = True
    weight: float = positional(0.8)
    segments: tuple[tuple[float, float], ...] = ((0.3, 0.35), (0.5, 0.65), (0.2, 1.3))

    def __post_init__(self) -> None:
        needs(self, weight=WEIGHT)
        needed = "pairs (share, sensitivity), such as ((0.8, 0.5), (0.2, 1.5))"
        pairs = several("Thrift", "segments", self.segments, needed)
        pairs = tuple(several("Thrift", "segments", pair, needed) for pair in pairs)
        if not pairs or any(len(pair) != 2 for pair in pairs):
            found = quoted(self.segments)
            raise KarmafunnelError("Thrift", what="segments", needs=needed, found=found)
        for share, sensitivity in pairs:
            check_bound("Thrift", SHARE, **{"share of a segment": share})
            check_bound("Thrift", WEIGHT, **{"sensitivity of a segment": sensitivity})
        whole = sum(share for share, _ in pairs)
        if abs(whole - 1) > 1e-9:
            needed, found = "shares that sum to 1", f"{whole:.6g}"
            raise KarmafunnelError("Thrift", what="segments", needs=needed, found=found)
        object.__setattr__(self, "segments", pairs)

    def segment(self, chance: np.ndarray) -> np.ndarray:
        """The segment of each shopper, by a number between 0 and 1 of their own: (n,) int64."""
        ends = np.cumsum([share for share, _ in self.segments])[:-1]
        return np.asarray(np.searchsorted(ends, chance, side="right"))

    def worth(self, shop: Place, visits: Asked, items: np.ndarray, price: np.ndarray) -> np.ndarray:
        return np.asarray(-self.weight * dearness(shop, visits, items, price))


def dearness(shop: Place, visits: Asked, items: np.ndarray, price: np.ndarray) -> np.ndarray:
    """Price sensitivity * log(price / median price of that kind of product): (n, k); 0 where the
    marketplace has no `Thrift`.
    """
    usual = shop.goods.usual_price[shop.goods.leaf[items]]
    return np.asarray(shop.people.sensitivity[visits.user][:, None] * (np.log(price) - usual))


@dataclass(frozen=True, repr=False)
class Fatigue(Want):
    """-weight * sum of exp(-age in days / days) over the times that the item stood in the first
    slots and was not clicked; a click ends it (repeated exposure: Ma et al. 2016, User Fatigue in
    Online News Recommendation). The last four lists count.

    Args:
        weight: of one time.
        days: how long it lasts.
        slots: how many slots are taken as seen.
    """

    weight: float = positional(0.4)
    days: float = 7.0
    slots: int = 8

    def __post_init__(self) -> None:
        needs(self, "days", weight=WEIGHT, slots=(1, 1000))

    @property
    def room(self) -> int:
        """How many items a shopper's memory holds."""
        return 4 * self.slots

    def worth(self, shop: Place, visits: Asked, items: np.ndarray, price: np.ndarray) -> np.ndarray:
        seen = shop.state.seen[visits.user]
        age = np.maximum(visits.ts[:, None] - shop.state.seen_at[visits.user], 0) / DAY
        weight = np.where(seen >= 0, self.weight * np.exp(-age / self.days), 0.0)
        worth = np.zeros(items.shape)
        for j in np.flatnonzero((seen >= 0).any(axis=0)):
            worth -= weight[:, j : j + 1] * (items == seen[:, j : j + 1])
        return worth


@dataclass(frozen=True, repr=False)
class Novelty(Want):
    """weight * exp(-days since the item arrived / days); 0 for what was there from the start (the
    pull of new items fades: Wu & Huberman 2007).

    Args:
        weight: of an item that arrives now.
        days: how long it lasts.
    """

    weight: float = positional(0.5)
    days: float = 7.0

    def __post_init__(self) -> None:
        needs(self, "days", weight=WEIGHT)

    def worth(self, shop: Place, visits: Asked, items: np.ndarray, price: np.ndarray) -> np.ndarray:
        arrived = shop.goods.available[items]
        age = np.maximum(visits.ts[:, None] - arrived, 0) / DAY
        return np.where(arrived > 0, self.weight * np.exp(-age / self.days), 0.0)
