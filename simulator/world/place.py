"""What stands in a running marketplace: goods, people, what they remember; all by row number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .catalogue import Shelves

REMEMBERED = 8  # purchases of a shopper


@dataclass(frozen=True, eq=False)
class Goods:
    """The catalogue, and what no shop knows of it.

    Of items (n_items,): leaf, used_up, brand (a row of values, -1 for none), codes (n_items, A) as
    in `Shelves`, vector (n_items, D) float32 (what attributes say to taste), quality, crowd,
    misjudged, available (ms since 1970, 0 for from the start). Of leaves: section, department,
    usual_price (median of log prices), complement (a leaf that goes with it), fame (demand), peak
    (time of the year of most demand, 0 to 1).
    """

    shelves: Shelves
    vector: np.ndarray
    quality: np.ndarray
    crowd: np.ndarray
    misjudged: np.ndarray
    available: np.ndarray
    usual_price: np.ndarray
    complement: np.ndarray
    fame: np.ndarray
    peak: np.ndarray
    leaf: np.ndarray = field(init=False)
    section: np.ndarray = field(init=False)
    department: np.ndarray = field(init=False)
    used_up: np.ndarray = field(init=False)
    codes: np.ndarray = field(init=False)
    brand: np.ndarray = field(init=False)
    by_leaf: np.ndarray = field(init=False)  # items by leaf
    first: np.ndarray = field(init=False)  # (n_leaves + 1,): where each leaf begins in by_leaf

    def __post_init__(self) -> None:
        shelves = self.shelves
        of_brand = np.array([value.startswith("brand=") for value in shelves.values] + [False])
        codes = np.asfortranarray(shelves.codes, dtype=np.int32)  # read by column
        has = of_brand[codes]
        row = np.arange(len(codes))
        brand = np.where(has.any(axis=1), codes[row, has.argmax(axis=1)], -1)
        sizes = np.bincount(shelves.leaf, minlength=len(shelves.section))
        made = {
            "leaf": shelves.leaf.astype(np.int32),
            "section": shelves.section.astype(np.int32),
            "department": shelves.department.astype(np.int32),
            "used_up": shelves.used_up[shelves.leaf],
            "codes": codes,
            "brand": brand.astype(np.int32),
            "by_leaf": np.argsort(shelves.leaf, kind="stable"),
            "first": np.concatenate([[0], np.cumsum(sizes)]),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @property
    def n(self) -> int:
        return len(self.leaf)


@dataclass(frozen=True, eq=False)
class People:
    """What stays of shoppers: sensitivity to prices, habit, rate (visits a day), arrival (day of
    the first possible visit), segment (of `Thrift`): (n,); interests (n, 5) leaves, the dearest
    first; mobile (n,) bool.
    """

    sensitivity: np.ndarray
    habit: np.ndarray
    rate: np.ndarray
    arrival: np.ndarray
    segment: np.ndarray
    interests: np.ndarray
    mobile: np.ndarray

    @property
    def n(self) -> int:
        return len(self.rate)


@dataclass(eq=False)
class State:
    """What changes. Its size hangs on users and items, not on days.

    taste (n, D), love (n, crowds) float32; mood (n,); bought, bought_at (n, 8): the last items and
    when, -1 for none; seen, seen_at (n, room): items seen without a click; clicks (n_items,), which
    fade; price (n_items,): today's.
    """

    taste: np.ndarray
    love: np.ndarray
    mood: np.ndarray
    bought: np.ndarray
    bought_at: np.ndarray
    seen: np.ndarray
    seen_at: np.ndarray
    clicks: np.ndarray
    price: np.ndarray
    day: int = -1

    @classmethod
    def of(cls, taste: np.ndarray, love: np.ndarray, n_items: int, room: int) -> State:
        """Nothing has happened yet."""
        n = len(taste)
        return cls(
            taste=taste,
            love=love,
            mood=np.zeros(n),
            bought=np.full((n, REMEMBERED), -1, dtype=np.int32),
            bought_at=np.zeros((n, REMEMBERED), dtype=np.int64),
            seen=np.full((n, room), -1, dtype=np.int32),
            seen_at=np.zeros((n, room), dtype=np.int64),
            clicks=np.zeros(n_items),
            price=np.ones(n_items),
        )


@dataclass(eq=False)
class Place:
    """Goods, people and state: what utility is a function of."""

    goods: Goods
    people: People
    state: State


@dataclass(frozen=True, eq=False)
class Asked:
    """Who asks when for what, a row a request: user (n,) int64, ts (n,) int64 ms since 1970, leaf
    (n,) that is looked for, wishes (n, 3) rows of values (-1 for none), dream (n,) the item in mind
    (-1 for none), named (n,) bool: the query says words of its title.
    """

    user: np.ndarray
    ts: np.ndarray
    leaf: np.ndarray
    wishes: np.ndarray
    dream: np.ndarray
    named: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


def blocks(n: int, size: int) -> list[slice]:
    """Slices of at most `size` rows, so that what is computed of each stays small."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def rows_of(value: Any, part: Any) -> dict[str, Any]:
    """Fields of a dataclass of aligned arrays, some of their rows."""
    return {
        name: held[part] if isinstance(held, np.ndarray) else held
        for name, held in vars(value).items()
    }
