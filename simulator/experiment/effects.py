"""Differences between two arms: means and ratios of sums by user, their intervals at a fixed
horizon and under daily looks.

Users are the units, as they are what was split. A ratio of sums is linearised by user (the delta
method, Deng et al. 2018, arXiv 1803.06336), by what it would be without that user (the jackknife,
Tukey 1958), which is less sure of itself where few users have much of what is divided by. A figure
of the same users from before the experiment takes out what it explains (CUPED, Deng et al. 2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from scipy import special, stats

from ...bounds import check_bound
from ...errors import KarmafunnelError

ROUNDING = 1e-12  # relative differences that are none


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What users did: one entry a user, each (n_users,); raises KarmafunnelError for NaN.

    total: clicks, purchases, money. per: what the total is divided by, such as requests; None for
    the mean over users. before, before_per: the same two from before the experiment, 0 for users
    who were not there yet; None without CUPED.
    """

    total: np.ndarray
    per: np.ndarray | None = None
    before: np.ndarray | None = None
    before_per: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.before_per is not None and (self.before is None or self.per is None):
            raise KarmafunnelError("Outcomes", what="before_per", needs="before and per")
        n = len(np.atleast_1d(self.total))
        for name, given in self.columns().items():
            column = np.asarray(given, dtype=np.float64)
            if column.shape != (n,):
                needed = f"one number for each of {n:,} users"
                raise KarmafunnelError("Outcomes", what=name, needs=needed, found=column.shape)
            wrong = ~np.isfinite(column)
            if name in ("per", "before_per"):
                wrong |= column < 0
            if wrong.any():
                at = int(np.argmax(wrong))
                finite = "finite numbers" + " of at least 0" * name.endswith("per")
                found = f"{column[at]} of user {at}"
                raise KarmafunnelError("Outcomes", what=name, needs=finite, found=found)
            object.__setattr__(self, name, column)

    def columns(self) -> dict[str, np.ndarray]:
        """The columns that are there, by name."""
        each = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: column for name, column in each.items() if column is not None}

    def where(self, keep: np.ndarray) -> Outcomes:
        """Some of the users: a mask or numbers of users."""
        return Outcomes(**{name: column[keep] for name, column in self.columns().items()})

    def __len__(self) -> int:
        return len(self.total)

    @cached_property
    def units(self) -> float:
        """What the total is divided by: users, or the sum of `per`."""
        return float(len(self) if self.per is None else self.per.sum())

    @cached_property
    def values(self) -> np.ndarray:
        """One number a user, (n_users,): their mean is the figure, their variance over n its
        squared error.
        """
        return linearised(self.total, self.per)

    @cached_property
    def past(self) -> np.ndarray | None:
        """The same of before; None where nothing from before is known."""
        if self.before is None or (self.before_per is not None and not self.before_per.any()):
            return None
        return linearised(self.before, self.before_per)


@dataclass(frozen=True)
class Effect:
    """Two arms' figures, with what CUPED takes out of them, and the treated less the control.

    seen: the figures of both arms as they are. variances, covariance: of the two figures. users: of
    each arm. units: what both totals are divided by. unexplained: the share of the variance that
    CUPED left.
    """

    control: float
    treated: float
    variances: tuple[float, float]
    covariance: float
    users: tuple[int, int]
    units: float
    confidence: float = 0.95
    unexplained: float = 1.0
    seen: tuple[float, float] = (np.nan, np.nan)

    @property
    def value(self) -> float:
        rounding = ROUNDING * max(abs(self.treated), abs(self.control))
        difference = self.treated - self.control
        return difference if abs(difference) > rounding else 0.0

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        return float(np.sqrt(max(sum(self.variances) - 2 * self.covariance, 0.0)))

    @property
    def freedom(self) -> float:
        """Degrees of freedom (Welch 1947)."""
        (v, w), (n, m) = self.variances, self.users
        return (v + w) ** 2 / (v**2 / (n - 1) + w**2 / (m - 1)) if v + w > 0 else np.inf

    @property
    def quantile(self) -> float:
        return float(stats.t.ppf((1 + self.confidence) / 2, self.freedom))

    @property
    def interval(self) -> tuple[float, float]:
        """Of the difference, if it is looked at once, at a time that was fixed before."""
        half = self.quantile * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided p of "no difference", looked at once; 1 if value and error are 0."""
        return two_sided_p(self.value, self.error, self.freedom)

    @property
    def lift(self) -> float:
        """The difference over the control's figure; NaN where that may be 0."""
        return self.value / self.control if self.lift_interval != (None, None) else np.nan

    @property
    def lift_interval(self) -> tuple[float | None, float | None]:
        """Of the lift, by Fieller's theorem (1954): it holds where the control's figure is not far
        from 0, too. (None, None) where that figure may be 0, and the lift anything.
        """
        q2, (v, w) = self.quantile**2, self.variances
        square = self.control**2 - q2 * v
        if square <= 0:
            return None, None
        middle = self.treated * self.control - q2 * self.covariance
        root = np.sqrt(max(middle**2 - square * (self.treated**2 - q2 * w), 0.0))
        return float((middle - root) / square) - 1, float((middle + root) / square) - 1


def two_sided_p(value: float, error: float, freedom: float) -> float:
    """p of "the true value is 0" by Student's t; 1 if value and error are 0."""
    if error == 0:
        return float(value == 0)
    return float(2 * stats.t.sf(abs(value) / error, freedom))


def linearised(total: np.ndarray, per: np.ndarray | None) -> np.ndarray:
    """The ratio of sums plus (n - 1) times what each user adds to it, against the ratio without
    that user, centred: (n_users,). The totals without `per`.
    """
    if per is None:
        return total
    n, ratio, others = len(per), total.sum() / per.sum(), per.sum() - per
    left = np.where(others > 0, others, np.inf)  # without anybody else there is no ratio
    influence = (n - 1) * (total - ratio * per) / left
    return np.asarray(ratio + influence - influence.mean())


def effect(control: Outcomes, treated: Outcomes, confidence: float = 0.95) -> Effect:
    """The treated arm's figure less the control's, with CUPED where both have `before`.

    CUPED takes theta * (difference of the figures before) from the difference, with the theta that
    leaves the least variance, and corrects both arms towards their common figure before.

    Raises:
        KarmafunnelError: an arm has fewer than 2 users, or nothing to divide by; the arms differ in
            the columns that they have.
    """
    check_bound("effect", "confidence", confidence=confidence)
    for name, arm in (("control", control), ("treated", treated)):
        if len(arm) < 2:
            found = f"{len(arm)}"
            raise KarmafunnelError("effect", what=name, needs="at least 2 users", found=found)
        if arm.units == 0:
            raise KarmafunnelError("effect", what=name, needs="a sum of per above 0", found="0")
    if control.columns().keys() != treated.columns().keys():
        each = " and ".join("+".join(arm.columns()) for arm in (control, treated))
        raise KarmafunnelError("effect", needs="the same columns of both arms", found=each)
    n, m = len(control), len(treated)
    y = control.values, treated.values
    x = before(control, treated)
    # of (control's y, x, treated's y, x)
    means = np.array([y[0].mean(), x[0].mean(), y[1].mean(), x[1].mean()])
    spread = np.zeros((4, 4))
    for i, size in enumerate((n, m)):
        spread[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = covariance(y[i], x[i]) / size
    raw = spread[0, 0] + spread[2, 2]
    explains = spread[1, 1] + spread[3, 3]
    theta = (spread[0, 1] + spread[2, 3]) / explains if explains > 0 else 0.0
    to_control, to_treated = theta * m / (n + m), theta * n / (n + m)
    weights = np.array([[1, -to_control, 0, to_control], [0, to_treated, 1, -to_treated]])
    figures, errors = weights @ means, weights @ spread @ weights.T
    if theta:  # was estimated, as both arms' means were
        errors *= (n + m - 2) / (n + m - 3)
    left = errors[0, 0] + errors[1, 1] - 2 * errors[0, 1]
    return Effect(
        control=float(figures[0]),
        treated=float(figures[1]),
        variances=(float(errors[0, 0]), float(errors[1, 1])),
        covariance=float(errors[0, 1]),
        users=(n, m),
        units=control.units + treated.units,
        confidence=confidence,
        unexplained=float(left / raw) if raw > 0 else 1.0,
        seen=(float(means[0]), float(means[2])),
    )


def covariance(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Sample covariance (2, 2) of two figures (n,)."""
    both = np.stack([y - y.mean(), x - x.mean()])
    largest = np.array([np.abs(y).max(), np.abs(x).max()])
    both[np.abs(both).max(axis=1) <= ROUNDING * largest] = 0.0  # a constant
    return both @ both.T / (len(y) - 1)


def before(control: Outcomes, treated: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    """Figures of both arms' users from before, linearised around those of all; zeros without."""
    if control.before is None:
        return np.zeros(len(control)), np.zeros(len(treated))
    both = {
        name: np.concatenate([column, treated.columns()[name]])
        for name, column in control.columns().items()
    }
    x = Outcomes(**both).past
    if x is None:
        x = np.zeros(len(control) + len(treated))
    return x[: len(control)], x[len(control) :]


# -- day by day ------------------------------------------------------------------------------------


def daily(
    days: Sequence[Outcomes],
    arms: np.ndarray,
    arrived: np.ndarray,
    treated: int = 1,
    skip: int = 0,
    confidence: float = 0.95,
) -> list[Effect]:
    """The effect at the end of each day, from all days so far and the users who have arrived.

    Args:
        days: outcomes of each day alone, of all users; `before` and `before_per` of the first.
        arms: of each user, (n_users,); 0 is the control.
        arrived: the day on which each user was first there, from 0, (n_users,).
        treated: the other arm.
        skip: first days that do not count, such as those before the first retraining.
        confidence: of the intervals.

    Raises:
        KarmafunnelError: there are no more than `skip` days, or an arm lacks users on a day.
    """
    check_bound("daily", "experiment_days", skip=skip)
    if len(days) <= skip:
        found = f"{len(days)} days"
        raise KarmafunnelError("daily", needs=f"more than {skip} days", found=found)
    for name, column in (("arms", arms), ("arrived", arrived)):
        if np.shape(column) != (len(days[0]),):
            needed = f"one number for each of {len(days[0]):,} users"
            raise KarmafunnelError("daily", what=name, needs=needed, found=np.shape(column))
    for day, outcomes in enumerate(days):
        if len(outcomes) != len(days[0]) or totals(outcomes).keys() != totals(days[0]).keys():
            needed = "the same users and columns on all days"
            raise KarmafunnelError("daily", what="days", needs=needed, found=f"others on day {day}")
    arms, arrived = np.asarray(arms), np.asarray(arrived)
    sums: dict[str, Any] = days[0].columns() | totals(days[skip])
    looks = []
    for day, outcomes in enumerate(days[skip:], start=skip):
        if day > skip:
            sums |= {name: sums[name] + column for name, column in totals(outcomes).items()}
        there = arrived <= day
        so_far = Outcomes(**sums)
        pair = [so_far.where(there & (arms == arm)) for arm in (0, treated)]
        looks.append(effect(pair[0], pair[1], confidence))
    return looks


def totals(day: Outcomes) -> dict[str, np.ndarray]:
    """The columns that add up over days."""
    return {name: x for name, x in day.columns().items() if name in ("total", "per")}


def always_valid(looks: Sequence[Effect], narrowest: float = 10.0) -> np.ndarray:
    """Intervals (n_looks, 2) of which, if there is no difference, at most 1 - confidence ever
    exclude 0, however often one looks and whenever one stops. Infinite before any outcome varies.

    Args:
        looks: effects from ever more data of one experiment, in their order.
        narrowest: how many times the first look's variance has come in when the intervals are
            narrowest against those of a fixed horizon; no result may decide it.
    """
    if not looks:
        raise KarmafunnelError("always_valid", needs="at least one look", found="none")
    error = np.array([look.error for look in looks])
    units = np.array([look.units for look in looks])
    value = np.array([look.value for look in looks])
    half = half_widths(error, units, looks[0].confidence, narrowest)
    return np.stack([value - half, value + half], axis=1)


def half_widths(
    error: np.ndarray, units: np.ndarray, confidence: float = 0.95, narrowest: float = 10.0
) -> np.ndarray:
    """Half the width of always-valid intervals of means at several looks, (n_looks,): an asymptotic
    confidence sequence (Waudby-Smith et al. 2021, arXiv 2103.06476).

    It needs no variance and no effect that is known before, as mSPRT does, and holds for outcomes
    of any distribution once the first look has users enough. Its clock is the variance of the sums,
    (units * error)**2. Where sums are independent between looks, as they are of new users, the
    sums are a random walk under this clock. Users who come back bind looks closer together than a
    random walk does, as long as those who did more so far do not do less later. Then 0 is excluded
    less often still (Slepian 1962).

    Args:
        error: standard error of the mean at each look, (n_looks,).
        units: what the sum is divided by at each look, (n_looks,).
        confidence: of the intervals together.
        narrowest: see `always_valid`.
    """
    check_bound("always valid", "confidence", confidence=confidence)
    check_bound("always valid", "narrowest", narrowest=narrowest)
    clock = np.maximum.accumulate((units * error) ** 2)
    begun = clock > 0
    half = np.full(len(clock), np.inf)
    if begun.any():
        alpha2 = (1 - confidence) ** 2
        best = -special.lambertw(-alpha2 / np.e, k=-1).real - 1
        t = clock[begun] / clock[begun][0] * best / narrowest
        half[begun] = error[begun] * np.sqrt((1 + 1 / t) * np.log((t + 1) / alpha2))
    return half
