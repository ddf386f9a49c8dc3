"""Power of an experiment: how many users an effect needs, and which effect so many users show.

The normal approximation of a two-sided test of the difference of two means (Cohen 1988, ch. 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from ...bounds import BOUNDS, check_bound, needs
from ...errors import KarmafunnelError
from ...typed import Typed
from .effects import Outcomes


@dataclass(frozen=True, repr=False)
class Plan(Typed):
    """An experiment before it starts.

    Effects are amounts, which every treated user's figure has more, so that both arms vary alike;
    or, with `mean`, lifts, by which the treated's figures are multiplied, so that they vary (1 +
    lift)^2 times as much. A ratio of sums is multiplied so if the lift leaves what it is divided by
    (requests) as it is.

    Args:
        variance: of the figure between users, in its unit squared; of a ratio of sums, that of its
            linearised figure (`Outcomes.values`).
        share: of the users who are treated; all others are the control.
        confidence: of the interval that must exclude 0.
        correlation: of the figure with that from before, for CUPED; 0 without.
        mean: of the figure, where effects are lifts, shares of it; None where they are amounts.
    """

    variance: float
    share: float = 0.5
    confidence: float = 0.95
    correlation: float = 0.0
    mean: float | None = None

    def __post_init__(self) -> None:
        names = ("variance", "arm_share", "confidence", "correlation")
        for field, name in zip(("variance", "share", *names[2:]), names, strict=True):
            needs(self, **{field: BOUNDS[name]})
        if self.mean is not None:
            needs(self, mean=BOUNDS["effect"])
            if self.mean == 0:
                needed = "a number other than 0, which has no lift"
                raise KarmafunnelError("Plan", what="mean", needs=needed, found="0")

    @classmethod
    def of(
        cls, past: Outcomes, share: float = 0.5, confidence: float = 0.95, lift: bool = False
    ) -> Plan:
        """From outcomes of a past as long as the experiment; with CUPED if they have `before`.

        lift: whether effects are lifts. Raises KarmafunnelError for fewer than 2 users, outcomes
        that do not vary, or, of lifts, whose mean is 0.
        """
        if len(past) < 2 or past.units == 0 or not np.ptp(past.values):
            found = f"{len(past):,} users" + " with the same outcome" * (len(past) > 1)
            raise KarmafunnelError("Plan", needs="users whose outcomes vary", found=found)
        correlation = 0.0
        if (x := past.past) is not None and np.ptp(x):
            correlation = float(np.corrcoef(past.values, x)[0, 1])
        mean = float(past.values.mean()) if lift else None
        return cls(float(past.values.var(ddof=1)), share, confidence, correlation, mean)

    def per_user(self, effect: float = 0.0) -> float:
        """Variance of the difference, times the number of users, where there is this effect."""
        return float(np.polyval(self._variance_by_times, 1.0 + effect * (self.mean is not None)))

    @property
    def _variance_by_times(self) -> np.ndarray:
        """`per_user` as a polynomial in what the treated's figures are multiplied by: (3,)."""
        arms = np.array([1 / self.share, 1 / (1 - self.share)])  # treated, control
        explained = np.outer(arms, arms) * self.correlation**2 / arms.sum()
        (treated, both), (_, control) = np.diag(arms) - explained
        return self.variance * np.array([treated, 2 * both, control])

    def error(self, users: int, effect: float = 0.0) -> float:
        """Standard error of the difference with so many users in both arms together."""
        check_bound("Plan", "planned_users", users=users)
        return math.sqrt(self.per_user(effect) / users)

    def power(self, effect: float, users: int) -> float:
        """The probability that a true effect is found."""
        amount = self._amount(effect)
        return chance(amount / self.error(users, effect), self.confidence)

    def smallest_effect(self, users: int, power: float = 0.8) -> float:
        """The effect above 0 that so many users show with this power (minimum detectable effect);
        infinite where no lift is that large, as the treated vary with it.
        """
        needed = distance(power, self.confidence)
        if self.mean is None:
            return self.error(users) * needed
        check_bound("Plan", "planned_users", users=users)
        # (mean * lift)**2 is needed**2 times the squared error, at the larger root in 1 + lift
        squares = self.mean**2 * np.array([1.0, -2.0, 1.0])
        a, b, c = squares - self._variance_by_times * needed**2 / users
        return float((math.sqrt(b * b - 4 * a * c) - b) / (2 * a) - 1) if a > 0 else math.inf

    def users(self, effect: float, power: float = 0.8) -> int:
        """Users of both arms together that an effect needs to be found with this power."""
        amount = self._amount(effect)
        if effect == 0:
            raise KarmafunnelError("Plan", what="effect", needs="a number other than 0", found="0")
        return math.ceil(self.per_user(effect) * (distance(power, self.confidence) / amount) ** 2)

    def _amount(self, effect: float) -> float:
        """The size of an effect in the figure's unit."""
        check_bound("Plan", "effect", effect=effect)
        if self.mean is None:
            return abs(effect)
        if effect < -1:
            needed = "a lift of at least -1, which leaves nothing"
            raise KarmafunnelError("Plan", what="effect", needs=needed, found=repr(effect))
        return abs(effect * self.mean)


def chance(distance: float, confidence: float) -> float:
    """Power for an effect of so many standard errors."""
    quantile = special.ndtri((1 + confidence) / 2)
    return float(special.ndtr(distance - quantile) + special.ndtr(-distance - quantile))


def distance(power: float, confidence: float) -> float:
    """Standard errors from 0 at which an effect is found with this power; it must be above 1 -
    confidence, what an effect of 0 has.
    """
    check_bound("Plan", "power", power=power)
    if power <= 1 - confidence:
        needed = f"more than {1 - confidence:.3g}, the power to find nothing"
        raise KarmafunnelError("Plan", what="power", needs=needed, found=repr(power))
    return float(optimize.brentq(lambda d: chance(d, confidence) - power, 0.0, 50.0))
