"""Lists that were shown, as click models read them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import polars as pl

from ...bounds import SHARE, check_bound
from ...errors import KarmafunnelError, quoted
from ...log import Log


@dataclass(frozen=True, eq=False)
class Shown:
    """Lists as click models see them.

    attraction (n, k): P(click | looked at). satisfaction (n, k): P(nothing below is looked at |
    clicked), which SDBN alone reads. mask (n, k) bool: slots that hold an item, for lists shorter
    than k; None for all. Raises KarmafunnelError for other shapes and for numbers outside 0 to 1.
    """

    attraction: np.ndarray
    satisfaction: np.ndarray | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.attraction)
        if len(shape) != 2 or 0 in shape:
            found = f"an array {shape}"
            raise KarmafunnelError("Shown", what="attraction", needs="(n, k) numbers", found=found)
        if self.mask is not None:
            check_bool("Shown", "mask", self.mask, shape)
        for name in ("attraction", "satisfaction"):
            found = getattr(self, name)
            if found is None:
                continue
            if np.shape(found) != shape:
                needed, wrong = f"(n, k) = {shape} numbers", f"an array {np.shape(found)}"
                raise KarmafunnelError("Shown", what=name, needs=needed, found=wrong)
            inside = (found >= 0) & (found <= 1)  # false for NaN, too
            if self.mask is not None:
                inside |= ~self.mask
                object.__setattr__(self, name, np.where(self.mask, found, 0.0))
            if not inside.all():
                wrong = quoted(float(found[~inside][0]))
                raise KarmafunnelError("Shown", what=name, needs=SHARE, found=wrong)

    @property
    def n(self) -> int:
        return len(self.attraction)

    @property
    def k(self) -> int:
        return int(self.attraction.shape[1])

    @cached_property
    def filled(self) -> np.ndarray:
        """Slots that hold an item: (n, k) bool."""
        return np.ones(self.attraction.shape, dtype=bool) if self.mask is None else self.mask

    @cached_property
    def goes_on(self) -> np.ndarray:
        """Slots with an item somewhere below: (n, k) bool."""
        below = np.zeros((self.n, self.k), dtype=bool, order="F")
        for i in range(self.k - 2, -1, -1):
            below[:, i] = below[:, i + 1] | self.filled[:, i + 1]
        return below


@dataclass(frozen=True, eq=False)
class Perplexity:
    """Perplexity of clicks: 1 for a model that knows them, 2 for a coin.

    by_slot (k,): of each slot over the lists that fill it, NaN where none does; whole: over all
    filled slots.
    """

    by_slot: np.ndarray
    whole: float


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists that were shown, from the top down.

    items (n, k): item numbers from 0; clicks (n, k) bool; mask (n, k) bool: slots that hold an
    item, None for all; users (n,): the user number of each list, None where lists do not depend on
    each other. Raises KarmafunnelError for other shapes, other numbers and clicks on empty slots.
    """

    items: np.ndarray
    clicks: np.ndarray
    mask: np.ndarray | None = None
    users: np.ndarray | None = None

    def __post_init__(self) -> None:
        items = np.asarray(self.items)
        if items.ndim != 2 or 0 in items.shape or not np.issubdtype(items.dtype, np.integer):
            found = f"{items.dtype} {items.shape}"
            raise KarmafunnelError("lists", what="items", needs="whole numbers (n, k)", found=found)
        if self.mask is not None:
            check_bool("lists", "mask", self.mask, items.shape)
        filled = items if self.mask is None else items[self.mask]
        if filled.size == 0 or filled.min() < 0:
            found = filled.min() if filled.size else "no filled slot"
            raise KarmafunnelError("lists", what="items", needs="numbers from 0", found=found)
        if self.users is not None and np.shape(self.users) != items.shape[:1]:
            needed, found = f"{len(items)} numbers", f"an array {np.shape(self.users)}"
            raise KarmafunnelError("lists", what="users", needs=needed, found=found)
        check_clicks(Shown(np.zeros(items.shape), mask=self.mask), self.clicks)

    @classmethod
    def of(cls, log: Log, *windows: str, k: int | None = None) -> Lists:
        """The lists that the scenario's requests of these windows were shown, with their clicks:
        the first k slots, by default all.

        Raises KarmafunnelError for a log without such lists.
        """
        requests = log.requests_in(*windows)
        rows = log.rows.filter(pl.col("position").is_not_null())
        rows = rows.filter(pl.col("request").is_in(requests.tolist()))
        if k is not None:
            check_bound("lists", "k", k=k)
            rows = rows.filter(pl.col("position") <= k)
        if rows.is_empty():
            needed = f"lists that were shown in {', '.join(windows)}"
            raise KarmafunnelError(log.name, needs=needed, found="none")
        request, at = np.unique(rows["request"].to_numpy(), return_inverse=True)
        slot = rows["position"].to_numpy() - 1
        shape = (len(request), int(slot.max()) + 1)
        items = np.zeros(shape, dtype=np.int64)
        clicks, mask = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        items[at, slot] = rows["item"].to_numpy()
        clicks[at, slot] = rows["clicked"].fill_null(False).to_numpy()
        mask[at, slot] = True
        return cls(items, clicks, mask, log.user[request])

    @property
    def n_items(self) -> int:
        filled = self.items if self.mask is None else self.items[self.mask]
        return int(filled.max()) + 1


def log_chance(p: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    """log P(click or none) from P(click), natural; -inf for what cannot be."""
    with np.errstate(divide="ignore"):
        return np.log(np.where(clicks, p, 1.0 - p))


def check_bool(who: str, what: Literal["mask", "clicks"], found: Any, shape: Any) -> None:
    """Raises KarmafunnelError unless an array is bool and of this shape."""
    array = np.asarray(found)
    if array.dtype != bool or array.shape != tuple(shape):
        wrong = f"{array.dtype} {array.shape}"
        raise KarmafunnelError(who, what=what, needs=f"bool {tuple(shape)}", found=wrong)


def check_clicks(shown: Shown, clicks: np.ndarray) -> None:
    """Raises KarmafunnelError unless clicks are (n, k) bool and in filled slots alone."""
    check_bool("lists", "clicks", clicks, (shown.n, shown.k))
    outside = np.argwhere(clicks & ~shown.filled)
    if len(outside):
        row, slot = outside[0]
        found = f"a click in slot {slot + 1} of list {row}"
        raise KarmafunnelError("lists", what="clicks", needs="filled slots alone", found=found)
