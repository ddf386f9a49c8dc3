"""The figures of an A/B test: each arm's, their difference at the end, and day by day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ..measure.describe import gini
from .arms import Design, Outcome
from .effects import Effect, Outcomes, always_valid, daily, effect
from .power import Plan
from .split import SampleRatio

# name: what is summed, and what it is divided by; None: users
FIGURES = {
    "clicks a request": ("clicks", "requests"),
    "purchases a request": ("purchases", "requests"),
    "GMV a request": ("gmv", "requests"),
    "GMV a request, expected": ("expected_gmv", "requests"),
    "GMV a user": ("gmv", None),
    "requests a user": ("requests", None),
}
BACK = "users who came back"
FILLED = "slots filled"


@dataclass(frozen=True, eq=False)
class Line:
    """A figure: the effect at the end; looks and always-valid intervals (n_days, 2) day by day;
    the smallest true difference that so many users show with a power of 80%, as an amount that
    every treated user does more, and as a lift; what the two arms would differ by if each recipe
    served all users (None: not simulated).
    """

    name: str
    effect: Effect
    looks: list[Effect]
    always: np.ndarray
    smallest: float | None
    smallest_lift: float | None
    truth: float | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """An A/B test, read. shops: of each arm, the share of items that were shown, the Gini of
    sellers' GMV (None: fewer than two sellers, or nothing sold) and the share of slots that its
    lists filled; without interval.
    """

    lines: list[Line]
    ratio: SampleRatio
    shops: list[dict[str, float | None]]


class Sums:
    """What users did, as arrays by user who visited during the experiment.

    Args:
        outcome: of one shop.
        days: of the experiment.
    """

    def __init__(self, outcome: Outcome, days: int):
        during = outcome.users.filter(pl.col("day") >= 0)
        self.users, at = np.unique(during["user"].to_numpy(), return_inverse=True)
        self.frame, self.at, self.days = during, at, days
        self.day = during["day"].to_numpy()
        self.arm = np.zeros(len(self.users), dtype=np.int64)
        self.arm[at] = during["arm"].to_numpy()
        self.arrived = np.full(len(self.users), days)
        np.minimum.at(self.arrived, at, self.day)
        past = outcome.users.filter(pl.col("day") < 0)
        known = np.isin(past["user"].to_numpy(), self.users)
        self.past = past.filter(pl.Series(known))
        self.past_at = np.searchsorted(self.users, self.past["user"].to_numpy())

    def summed(self, name: str, day: int | None = None) -> np.ndarray:
        """A column by user, over all days or on one."""
        some = slice(None) if day is None else self.day == day
        return np.bincount(
            self.at[some], self.frame[name].to_numpy()[some], minlength=len(self.users)
        )

    def before(self, name: str) -> np.ndarray:
        return np.bincount(
            self.past_at, self.past[name].to_numpy(), minlength=len(self.users)
        ).astype(np.float64)

    def outcomes(self, total: str, per: str | None, day: int | None = None) -> Outcomes:
        if per is None:
            return Outcomes(self.summed(total, day), before=self.before(total))
        divided = self.summed(per, day), self.before(per)
        return Outcomes(self.summed(total, day), divided[0], self.before(total), divided[1])

    def back(self) -> tuple[Outcomes, np.ndarray]:
        """Whether users of the first half of the days came again in the second half, and who they
        are among the users.
        """
        half = self.days // 2
        there = self.arrived < half
        later = np.zeros(len(self.users))
        later[self.at[self.day >= half]] = 1.0
        return Outcomes(later[there]), there


def read(
    outcome: Outcome,
    design: Design,
    sellers: np.ndarray,
    alone: tuple[Outcome, Outcome] | None = None,
    confidence: float = 0.95,
) -> Result:
    """The figures of an A/B test.

    Args:
        sellers: of each item, (n_items,), numbers from 0, -1 for none.
        alone: what happened where the control, and where the treated recipe, served all users.

    Raises:
        KarmafunnelError: an arm has fewer than 2 users.
    """
    sums = Sums(outcome, design.days)
    check_arms(sums.arm)
    truths = {} if alone is None else truth(alone, design)
    lines = [
        line(name, total, per, sums, design, truths.get(name), confidence)
        for name, (total, per) in FIGURES.items()
    ]
    if design.days > 1:
        back, there = sums.back()
        arms = sums.arm[there]
        if np.bincount(arms, minlength=2).min() >= 2:
            found_back = effect(back.where(arms == 0), back.where(arms == 1), confidence)
            least = smallest(back, arms, confidence)
            lines.append(Line(BACK, found_back, [], np.empty((0, 2)), *least, truths.get(BACK)))
    room = np.bincount(sums.arm, sums.summed("requests"), minlength=2) * design.slots
    return Result(lines, design.split.check(sums.arm), shops(outcome.items, sellers, room))


def check_arms(arms: np.ndarray) -> None:
    """Raises KarmafunnelError unless each arm has two of the users (n_users,)."""
    counts = np.bincount(arms, minlength=2)
    if counts.min() < 2:
        found = " and ".join(f"{n:,}" for n in counts)
        raise KarmafunnelError("abtest", needs="at least 2 users in each arm", found=found)


def line(
    name: str,
    total: str,
    per: str | None,
    sums: Sums,
    design: Design,
    truth: float | None,
    confidence: float,
) -> Line:
    each = [sums.outcomes(total, per, day) for day in range(design.days)]
    whole = sums.outcomes(total, per)
    pair = [whole.where(sums.arm == arm) for arm in (0, 1)]
    there_at_once = np.bincount(sums.arm[sums.arrived == 0], minlength=2).min() >= 2
    looks = daily(each, sums.arm, sums.arrived, confidence=confidence) if there_at_once else []
    always = always_valid(looks) if looks else np.empty((0, 2))
    whole_effect = effect(pair[0], pair[1], confidence)
    return Line(name, whole_effect, looks, always, *smallest(whole, sums.arm, confidence), truth)


def smallest(
    whole: Outcomes, arms: np.ndarray, confidence: float
) -> tuple[float | None, float | None]:
    """The smallest differences that users of both arms show, as in `Line`; None where all users are
    the same.
    """
    if np.ptp(whole.values) == 0:
        return None, None
    share, n = float((arms == 1).mean()), len(whole)
    amount = Plan.of(whole, share, confidence).smallest_effect(n)
    if not whole.values.mean():
        return amount, None
    return amount, Plan.of(whole, share, confidence, lift=True).smallest_effect(n)


def truth(alone: tuple[Outcome, Outcome], design: Design) -> dict[str, float]:
    """By figure, what the shops of two recipes differ by where each served all users."""
    both = [Sums(outcome, design.days) for outcome in alone]
    found = {}
    for name, (total, per) in FIGURES.items():
        a, b = (
            one.summed(total).sum() / (one.summed(per).sum() if per else len(one.users))
            for one in both
        )
        found[name] = float(b - a)
    shares = [one.back()[0].total for one in both]
    if all(len(share) for share in shares):
        found[BACK] = float(shares[1].mean() - shares[0].mean())
    return found


def shops(
    items: pl.DataFrame, sellers: np.ndarray, room: np.ndarray
) -> list[dict[str, float | None]]:
    """See `Result`; room: slots that each arm's lists had, (2,)."""
    found: list[dict[str, float | None]] = []
    for (arm,), mine in items.sort("arm").group_by("arm", maintain_order=True):
        shown, gmv = mine["shown"].to_numpy(), mine["gmv"].to_numpy()
        of = sellers[mine["item"].to_numpy()]
        earned = np.bincount(of[of >= 0], gmv[of >= 0], minlength=sellers.max(initial=-1) + 1)
        told: dict[str, float | None] = {"items shown": float((shown > 0).mean())}
        told["Gini of sellers"] = gini(earned) if len(earned) > 1 and earned.any() else None
        told[FILLED] = float(shown.sum() / room[arm])
        found.append(told)
    return found
