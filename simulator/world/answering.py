"""What lists mean to shoppers, what they did with them, and what they remember of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import KarmafunnelError
from .marketplace import Marketplace
from .place import Place
from .visits import Visits
from .wants import Fatigue


@dataclass(frozen=True, eq=False)
class Truth:
    """What showing lists means, without chance: arrays (n, k), 0 in empty slots.

    utility; examination: P(looked at), whatever else is clicked; p_click: P(click | looked at);
    p_buy: P(purchase | click); price; units: expected units of a purchase; cost: expected price
    paid for a unit.
    """

    utility: np.ndarray
    examination: np.ndarray
    p_click: np.ndarray
    p_buy: np.ndarray
    price: np.ndarray
    units: np.ndarray
    cost: np.ndarray

    @property
    def clicks(self) -> np.ndarray:
        """Expected clicks of a list: (n,)."""
        return np.asarray((self.examination * self.p_click).sum(axis=1))

    @property
    def purchases(self) -> np.ndarray:
        """Expected purchases of a list: (n,)."""
        return np.asarray((self.examination * self.p_click * self.p_buy).sum(axis=1))

    @property
    def gmv(self) -> np.ndarray:
        """Expected money of a list, returns not subtracted: (n,)."""
        sold = self.examination * self.p_click * self.p_buy
        return np.asarray((sold * self.units * self.cost).sum(axis=1))


@dataclass(frozen=True, eq=False)
class Answers:
    """What shoppers did with lists: arrays (n, k), 0 or false in empty slots.

    clicked, bought, returned (sent back later) bool; price shown; paid for a unit, quantity and
    hours until the purchase, 0 where nothing was bought. Without chance, (n,): expected_clicks,
    expected_purchases, expected_gmv (returns not subtracted). truth: what they follow from.
    """

    clicked: np.ndarray
    bought: np.ndarray
    returned: np.ndarray
    price: np.ndarray
    paid: np.ndarray
    quantity: np.ndarray
    hours: np.ndarray
    expected_clicks: np.ndarray
    expected_purchases: np.ndarray
    expected_gmv: np.ndarray
    truth: Truth


def checked(place: Place, visits: Visits, slates: np.ndarray) -> np.ndarray:
    """Lists as whole numbers (n, k); raises KarmafunnelError for what cannot be shown."""
    who, slates = "Shop", np.asarray(slates)
    if slates.ndim != 2 or len(slates) != len(visits) or slates.shape[1] == 0:
        needed, found = f"lists ({len(visits)}, k)", f"an array {slates.shape}"
        raise KarmafunnelError(who, what="items", needs=needed, found=found)
    if not np.issubdtype(slates.dtype, np.integer):
        raise KarmafunnelError(who, what="items", needs="whole numbers", found=slates.dtype)
    slates = slates.astype(np.int64)
    if slates.size and (slates.min() < -1 or slates.max() >= place.goods.n):
        needed = f"row numbers up to {place.goods.n - 1:,}, or -1"
        found = f"{slates.min():,} to {slates.max():,}"
        raise KarmafunnelError(who, what="items", needs=needed, found=found)
    order = np.sort(slates, axis=1)
    twice = (order[:, 1:] == order[:, :-1]) & (order[:, 1:] >= 0)
    early = (slates >= 0) & (place.goods.available[slates] >= visits.ts[:, None])
    for items, wrong, needed in (
        (order[:, 1:], twice, "each item once in a list"),
        (slates, early, "items that have arrived"),
    ):
        if wrong.any():
            row, slot = np.argwhere(wrong)[0]
            found = f"item {items[row, slot]} in list {row}"
            raise KarmafunnelError(who, needs=needed, found=found)
    return slates


def remember(
    place: Place, marketplace: Marketplace, visits: Visits, slates: np.ndarray, answers: Answers
) -> None:
    """Clicks make items popular; purchases make them owned; satisfaction brings people back."""
    state, returning = place.state, marketplace.returning
    np.add.at(state.clicks, slates[answers.clicked], 1.0)
    row, slot = np.nonzero(answers.bought)
    for at in np.unique(slot):  # users are distinct within a slot
        mine = row[slot == at]
        user = visits.user[mine]
        for held in (state.bought, state.bought_at):
            held[user, 1:] = held[user, :-1]
        state.bought[user, 0] = slates[mine, at]
        hours = (answers.hours[mine, at] * 3_600_000.0).astype(np.int64)
        state.bought_at[user, 0] = visits.ts[mine] + hours
    if returning is not None:
        kept = (answers.bought & ~answers.returned).any(axis=1)
        effect = np.where(answers.clicked.any(axis=1), returning.click, returning.nothing)
        state.mood[visits.user] += np.where(kept, returning.purchase, effect)
    fatigue = marketplace.want(Fatigue)
    if fatigue is not None:
        tire(place, visits, slates, answers.clicked, fatigue.slots)


def tire(place: Place, visits: Visits, slates: np.ndarray, clicked: np.ndarray, slots: int) -> None:
    """What stood in the first slots without a click is seen; what was clicked is not."""
    state, user = place.state, visits.user
    first = np.where(clicked, -1, slates)[:, :slots]
    first = np.pad(first, ((0, 0), (0, slots - first.shape[1])), constant_values=-1)
    seen = state.seen[user]
    for slot in np.flatnonzero(clicked.any(axis=0)):
        item = np.where(clicked[:, slot], slates[:, slot], -2)
        seen[seen == item[:, None]] = -1
    state.seen[user] = np.concatenate([first, seen[:, :-slots]], axis=1)
    now = np.repeat(visits.ts[:, None], slots, axis=1)
    state.seen_at[user] = np.concatenate([now, state.seen_at[user][:, :-slots]], axis=1)
