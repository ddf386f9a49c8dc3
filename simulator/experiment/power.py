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

    Args:
        variance: of the figure between users, in its unit squared.
        share: of the users who are treated; all others are the control.
        confidence: of the interval that must exclude 0.
        correlation: of the figure with that from before, for CUPED; 0 without.
    """

    variance: float
    share: float = 0.5
    confidence: float = 0.95
    correlation: float = 0.0

    def __post_init__(self) -> None:
        names = ("variance", "arm_share", "confidence", "correlation")
        for field, name in zip(("variance", "share", *names[2:]), names, strict=True):
            needs(self, **{field: BOUNDS[name]})

    @classmethod
    def of(cls, past: Outcomes, share: float = 0.5, confidence: float = 0.95) -> Plan:
        """From outcomes of a past as long as the experiment; with CUPED if they have `before`.

        Raises KarmafunnelError for fewer than 2 users or outcomes that do not vary.
        """
        if len(past) < 2 or past.units == 0 or not np.ptp(past.values):
            found = f"{len(past):,} users" + " with the same outcome" * (len(past) > 1)
            raise KarmafunnelError("Plan", needs="users whose outcomes vary", found=found)
        correlation = 0.0
        if (x := past.past) is not None and np.ptp(x):
            correlation = float(np.corrcoef(past.values, x)[0, 1])
        return cls(float(past.values.var(ddof=1)), share, confidence, correlation)

    @property
    def per_user(self) -> float:
        """Variance of the difference, times the number of users."""
        left = self.variance * (1 - self.correlation**2)
        return left * (1 / self.share + 1 / (1 - self.share))

    def error(self, users: int) -> float:
        """Standard error of the difference with so many users in both arms together."""
        check_bound("Plan", "planned_users", users=users)
        return math.sqrt(self.per_user / users)

    def power(self, effect: float, users: int) -> float:
        """The probability that a true effect, in the figure's unit, is found."""
        check_bound("Plan", "effect", effect=effect)
        return chance(abs(effect) / self.error(users), self.confidence)

    def smallest_effect(self, users: int, power: float = 0.8) -> float:
        """The effect that so many users show with this power (minimum detectable effect)."""
        return self.error(users) * distance(power, self.confidence)

    def users(self, effect: float, power: float = 0.8) -> int:
        """Users of both arms together that an effect needs to be found with this power."""
        check_bound("Plan", "effect", effect=effect)
        if effect == 0:
            raise KarmafunnelError("Plan", what="effect", needs="a number other than 0", found="0")
        return math.ceil(self.per_user * (distance(power, self.confidence) / effect) ** 2)


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
