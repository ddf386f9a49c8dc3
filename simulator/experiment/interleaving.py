"""Interleaving: one list out of two rankers' lists, credit for what shoppers did with it, and
which ranker they prefer.

Arrays of many requests at once: items (n, k) are whole numbers, below 0 at the end of a list that
is shorter. Each request is one comparison, so that a preference needs far fewer of them than an
experiment with arms (Chapelle et al. 2012).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from ...bounds import check_bound, check_switch
from ...errors import KarmafunnelError
from ...typed import Typed
from .effects import ROUNDING, half_widths, two_sided_p

BLOCK = 8_192  # requests whose lists are compared at once
SIDES = ("A", "B")


@dataclass(frozen=True, eq=False)
class Interleaved:
    """Lists that are shown, (n, k), below 0 where one is shorter.

    team (n, k): 0 or 1, whose turn brought the item; -1 for none. ranks (2, n, k): where each
    ranker had the item, from 0; k where it did not.
    """

    items: np.ndarray
    team: np.ndarray
    ranks: np.ndarray


@dataclass(frozen=True, repr=False)
class Interleaving(Typed, ABC):
    """A way to interleave."""

    def mix(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> Interleaved:
        """One list a request of two rankers' lists, both (n, k).

        Raises KarmafunnelError for lists of different shapes, an item that is twice in a list, or a
        gap within one.
        """
        lists = checked_lists(type(self).__name__, a, b)
        order, team, ranks = self.order(lists, places(lists), rng)
        rows = np.arange(lists.shape[1])[:, None]
        items = np.where(team >= 0, lists[np.maximum(team, 0), rows, order], -1)
        return Interleaved(items, team, ranks)

    @abstractmethod
    def order(
        self, lists: np.ndarray, other: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rank of each shown item in the list that brought it, `team` and `ranks`."""

    @abstractmethod
    def credited(self, shown: Interleaved, earned: np.ndarray) -> np.ndarray:
        """What each ranker is credited with, (2, n)."""

    def credit(self, shown: Interleaved, earned: np.ndarray) -> np.ndarray:
        """What A and B are credited with in each request, (n, 2).

        Args:
            shown: the lists.
            earned: by each slot, (n, k): clicks, purchases or money.

        Raises:
            KarmafunnelError: `earned` is negative, not finite, or of an empty slot.
        """
        who = type(self).__name__
        earned = np.asarray(earned, dtype=np.float64)
        if earned.shape != shown.items.shape:
            found = earned.shape
            raise KarmafunnelError(who, what="earned", needs=shown.items.shape, found=found)
        wrong = ~np.isfinite(earned) | (earned < 0) | ((earned != 0) & (shown.items < 0))
        if wrong.any():
            row, slot = np.argwhere(wrong)[0]
            raise KarmafunnelError(
                who,
                what="earned",
                needs="clicks or money of at least 0, of slots that hold an item",
                found=f"{earned[row, slot]} in request {row}, slot {slot}",
            )
        return self.credited(shown, earned).T


@dataclass(frozen=True, repr=False)
class TeamDraft(Interleaving):
    """Team draft (Radlinski et al. 2008): the rankers take turns, who begins each round is drawn,
    and each brings its best item that is not there yet. A ranker is credited with what its team
    earned. It ends when one has no more to bring.
    """

    def order(
        self, lists: np.ndarray, other: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        _, n, k = lists.shape
        first = rng.integers(0, 2, (n, (k + 1) // 2), dtype=np.int8)
        rows = np.arange(n)
        gone = np.ones((2, n, k + 1), dtype=bool)  # the last column stands for no item
        gone[:, :, :k] = lists < 0
        order, team = np.zeros((n, k), np.int64), np.full((n, k), -1, np.int8)
        ranks = np.full((2, n, k), k)
        for slot in range(k):
            turn = first[:, slot // 2] ^ (slot % 2)
            pick = gone[turn, rows].argmin(axis=1)
            left = ~gone.all(axis=2).any(axis=0)
            at, side, rank = rows[left], turn[left], pick[left]
            there = other[side, at, rank]
            gone[side, at, rank] = True
            gone[1 - side, at, there] = True
            gone[:, :, k] = True
            order[at, slot], team[at, slot] = rank, side
            ranks[side, at, slot], ranks[1 - side, at, slot] = rank, there
        return order, team, ranks

    def credited(self, shown: Interleaved, earned: np.ndarray) -> np.ndarray:
        return np.stack([(earned * (shown.team == side)).sum(axis=1) for side in (0, 1)])


@dataclass(frozen=True, repr=False)
class Balanced(Interleaving):
    """Balanced interleaving (Joachims 2002; Radlinski et al. 2008): the rankers bring their items
    in turn, one that is there already counts as brought, and who begins is drawn once. A ranker is
    credited with what its first items earned, as many as reach the lowest click in either ranking.
    Of lists that are alike but for a shift it may prefer one without a reason.
    """

    def order(
        self, lists: np.ndarray, other: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        _, n, k = lists.shape
        first = rng.integers(0, 2, n)
        # turns are numbered: A's j-th item has turn 2j or 2j + 1, B's the other
        begins = np.stack([first, 1 - first])[:, :, None]
        turn = 2 * np.arange(k) + begins
        over = 2 * (k + 1)
        late = np.where(other < k, 2 * other + 1 - begins, over) < turn
        ends = np.where(lists >= 0, turn, -1).max(axis=2).min(axis=0)  # of the shorter list
        turn = np.where((lists < 0) | late | (turn > ends[:, None]), over, turn)
        turns = np.concatenate(list(turn), axis=1)
        best = np.argsort(turns, axis=1, kind="stable")[:, :k]
        there = np.take_along_axis(turns, best, axis=1) < over
        team = np.where(there, best // k, -1).astype(np.int8)
        order = best % k
        rows = np.arange(n)[:, None]
        side = np.maximum(team, 0)
        here, beyond = order, other[side, rows, order]
        ranks = np.stack([np.where(side == 0, here, beyond), np.where(side == 1, here, beyond)])
        return order, team, np.where(there, ranks, k)

    def credited(self, shown: Interleaved, earned: np.ndarray) -> np.ndarray:
        k = earned.shape[1]
        lowest = k - 1 - (earned[:, ::-1] > 0).argmax(axis=1)
        reach = np.take_along_axis(shown.ranks.min(axis=0), lowest[:, None], axis=1)
        return (earned * (shown.ranks <= reach)).sum(axis=2)


def checked_lists(who: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two rankers' lists as one array (2, n, k); raises KarmafunnelError for what are none."""
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 2 or a.shape != b.shape or 0 in a.shape:
        found = f"{a.shape} and {b.shape}"
        raise KarmafunnelError(who, needs="two lists of (requests, k) items", found=found)
    if a.dtype.kind not in "iu" or b.dtype.kind not in "iu":
        found = f"{a.dtype} and {b.dtype}"
        raise KarmafunnelError(who, what="items", needs="whole numbers", found=found)
    lists = np.stack([a, b]).astype(np.int64)
    for name, items in zip(SIDES, lists, strict=True):
        gap = (items[:, 1:] >= 0) & (items[:, :-1] < 0)
        ordered = np.sort(items, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        for wrong, what in ((gap, "an empty slot above an item"), (twice, "an item twice")):
            if wrong.any():
                found = f"{what} in request {np.argwhere(wrong)[0][0]}"
                needed = "each item once, from the first slot on"
                raise KarmafunnelError(who, what=f"list {name}", needs=needed, found=found)
    return lists


def places(lists: np.ndarray) -> np.ndarray:
    """Where the other ranker has each item, (2, n, k); k where it does not."""
    _, n, k = lists.shape
    out = np.full(lists.shape, k)
    for start in range(0, n, BLOCK):
        rows = slice(start, start + BLOCK)
        same = lists[0, rows, :, None] == lists[1, rows, None, :]
        same &= lists[0, rows, :, None] >= 0
        for side, axis in ((0, 2), (1, 1)):
            out[side, rows] = np.where(same.any(axis=axis), same.argmax(axis=axis), k)
    return out


# -- preference ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preference:
    """How far shoppers prefer ranker B, the mean score of a request: from -1 to 1 if scores are
    wins.

    decided: share of requests whose score is not 0. error: standard error, by user.
    """

    value: float
    error: float
    requests: int
    users: int
    decided: float
    confidence: float = 0.95

    @property
    def interval(self) -> tuple[float, float]:
        """If it is looked at once, after a number of requests that was fixed before."""
        quantile = stats.t.ppf((1 + self.confidence) / 2, self.users - 1)
        half = float(quantile * self.error)
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided p of "no preference", looked at once; 1 if value and error are 0."""
        return two_sided_p(self.value, self.error, self.users - 1)


@dataclass(frozen=True, eq=False)
class Running:
    """The preference after each request, with half the width of its always-valid interval: (n,),
    infinite at first and while all scores are the same.
    """

    value: np.ndarray
    half: np.ndarray

    @property
    def certain_after(self) -> int | None:
        """The number of requests after which the interval first excluded 0; None if it never
        did.
        """
        certain = np.abs(self.value) > self.half
        return int(certain.argmax()) + 1 if certain.any() else None

    @property
    def winner(self) -> Literal["A", "B", ""]:
        """Who won when the interval first excluded 0."""
        after = self.certain_after
        if after is None:
            return ""
        return "B" if self.value[after - 1] > 0 else "A"


def scores(credit: np.ndarray, wins: bool = True) -> np.ndarray:
    """Of credit (n, 2), each request's score: 1 if B won, -1 if A, 0 for a tie; without `wins`
    B's credit less A's.
    """
    check_switch("scores", wins=wins)
    difference = credit[:, 1] - credit[:, 0]
    return np.sign(difference) if wins else difference


def preference(score: np.ndarray, user: np.ndarray, confidence: float = 0.95) -> Preference:
    """The mean score (n,) of requests and its error by user (n,), numbers from 0.

    Raises KarmafunnelError for NaN or fewer than 2 users.
    """
    check_bound("preference", "confidence", confidence=confidence)
    score, user = checked_scores(score, user)
    _, user = np.unique(user, return_inverse=True)
    requests = np.bincount(user)
    if len(requests) < 2:
        found = f"{len(requests)}"
        raise KarmafunnelError("preference", needs="at least 2 users", found=found)
    gaps = np.bincount(user, weights=score - score.mean())
    squares = float((gaps**2).sum()) if np.ptp(score) else 0.0
    return Preference(
        value=float(score.mean()),
        error=math.sqrt(squares * len(requests) / (len(requests) - 1)) / len(score),
        requests=len(score),
        users=len(requests),
        decided=float((score != 0).mean()),
        confidence=confidence,
    )


def running(
    score: np.ndarray,
    user: np.ndarray,
    confidence: float = 0.95,
    first: int = 100,
    narrowest: float = 10.0,
) -> Running:
    """The preference after every request, in their order in time.

    If there is none, the interval ever excludes 0 with a probability of at most 1 - confidence, so
    that one may stop at the request after which it does.

    Args:
        score: of each request, (n,).
        user: of each request, (n,), numbers from 0.
        confidence: of all intervals together.
        first: users with a score other than 0 before the first interval.
        narrowest: see `effects.always_valid`.
    """
    check_bound("running", "first_users", first=first)
    score, user = checked_scores(score, user)
    n = len(score)
    count = np.arange(1.0, n + 1)
    value = np.cumsum(score) / count
    seen, so_far = earlier(user, np.ones(n)), earlier(user, score)
    squares = np.cumsum(score * (2 * so_far + score))  # of users' sums
    products = np.cumsum(so_far + score * (seen + 1))  # of sums and requests
    lengths = np.cumsum(2 * seen + 1)
    users = np.cumsum(seen == 0)
    decided = score != 0
    new = decided & (earlier(user, decided.astype(np.float64)) == 0)
    begun = np.cumsum(new) >= first
    variance = np.maximum(squares - value * (2 * products - value * lengths), 0.0)
    variance[variance <= ROUNDING * squares] = 0.0
    variance *= users / np.maximum(users - 1, 1)
    half = np.full(n, np.inf)
    if begun.any():
        error = np.sqrt(variance[begun]) / count[begun]
        half[begun] = half_widths(error, count[begun], confidence, narrowest)
    return Running(value, half)


def earlier(user: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The sum of x over the user's earlier requests, (n,)."""
    by_user = np.argsort(user, kind="stable")
    through = np.cumsum(x[by_user]) - x[by_user]
    starts = np.flatnonzero(np.diff(user[by_user], prepend=-1))
    before = np.repeat(through[starts], np.diff(starts, append=len(user)))
    out = np.empty(len(x))
    out[by_user] = through - before
    return out


def checked_scores(score: np.ndarray, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and users (n,) of at least one request; raises KarmafunnelError for others."""
    score, user = np.asarray(score, dtype=np.float64), np.asarray(user)
    if score.ndim != 1 or score.shape != user.shape or not len(score):
        found = f"{score.shape} and {user.shape}"
        raise KarmafunnelError("scores", needs="a score and a user a request", found=found)
    if user.dtype.kind not in "iu" or user.min() < 0:
        raise KarmafunnelError("scores", what="user", needs="numbers from 0", found=user.dtype)
    if not np.isfinite(score).all():
        at = int(np.argmin(np.isfinite(score)))
        found = f"{score[at]} of request {at}"
        raise KarmafunnelError("scores", needs="finite numbers", found=found)
    return score, user
