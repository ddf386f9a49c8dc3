"""Paired differences: pairing of estimates, interval and p of a difference, and Holm's correction.

One side is better if the 95% interval of the difference over users and seeds excludes 0 and its
sign is the same in every seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from .intervals import (
    Calibration,
    Estimate,
    Ratio,
    Weighted,
    interval,
    over_seeds,
    resample,
)

POWER_80 = float(special.ndtri(0.975) + special.ndtri(0.8))  # 2.80 standard errors
Samples = dict[Estimate, np.ndarray]


def paired(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Estimates of one seed, restricted to the units where all of them are defined.

    If any of them is a ratio of sums or a pooled value, all are returned unchanged.
    """
    means = [e for e in estimates if isinstance(e, Ratio) and e.counts is None]
    if len(means) < len(estimates):
        return list(estimates)
    known = np.logical_and.reduce([e.known for e in means])
    return [e.where(known) for e in means]


def sampled(estimates: Sequence[Estimate], users: int, resamples: int, seed: int) -> Samples:
    """The resamples of each estimate, from the same draws of users; empty with a single user.

    An estimate that cannot be resampled (`Weighted`) has none.
    """
    if users < 2:
        return {}
    able = [e for e in estimates if isinstance(e, (Ratio, Calibration, Weighted))]
    return dict(zip(able, resample(able, users, resamples, seed), strict=True))


@dataclass(frozen=True)
class Difference:
    """A paired difference. p and power use the normal approximation, the interval percentiles.

    samples: resamples over users and seeds: (n_resamples,), may be empty. by_seed: the value in
    each seed.
    """

    value: float
    samples: np.ndarray = field(repr=False)
    by_seed: Sequence[float] = ()

    @classmethod
    def over_seeds(
        cls, value: float, by_seed: Sequence[float], samples: Sequence[np.ndarray], seed: int
    ) -> Difference:
        """A difference from the resamples of each seed."""
        return cls(value, over_seeds(samples, seed) if samples else np.empty(0), by_seed)

    @classmethod
    def between(
        cls, a: Sequence[Estimate], b: Sequence[Estimate], samples: Samples, seed: int
    ) -> Difference:
        """B - A, with one estimate per seed on each side and the resamples of all, or none."""
        value = float(np.mean([y.value for y in b])) - float(np.mean([x.value for x in a]))
        by_seed, drawn = [], []
        for x, y in zip(a, b, strict=True):
            by_seed.append(y.value - x.value)
            if x in samples and y in samples:
                drawn.append(samples[y] - samples[x])
        return cls.over_seeds(value, by_seed, drawn, seed)

    @property
    def interval(self) -> tuple[float | None, float | None]:
        return interval(self.samples)

    @property
    def error(self) -> float:
        known = self.samples[~np.isnan(self.samples)]
        return float(known.std(ddof=1)) if len(known) > 1 else np.nan

    @property
    def p(self) -> float:
        """Two-sided p of "no difference"; 1 if value and standard error are 0."""
        if self.error > 0:
            return float(2 * special.ndtr(-abs(self.value) / self.error))
        return float(self.value == 0) if self.error == 0 else np.nan

    @property
    def smallest_effect(self) -> float:
        """The true difference that a two-sided 5% test would have detected with 80% power."""
        return POWER_80 * self.error

    def excludes_zero(self) -> bool:
        low, high = self.interval
        return low is not None and high is not None and (low > 0 or high < 0)

    def better(self, direction: str, sides: tuple[str, str] = ("A", "B")) -> str:
        """The better side, or "" if the difference is not significant or has no better direction.

        Args:
            direction: "higher", "lower" or "neither".
            sides: names of the sides; the difference is the second less the first.
        """
        one_sign = len({np.sign(value) for value in self.by_seed}) == 1
        if direction == "neither" or not one_sign or not self.excludes_zero():
            return ""
        return sides[(self.value > 0) == (direction == "higher")]

    def row(self, direction: str, sides: tuple[str, str] = ("A", "B")) -> dict[str, Any]:
        """low, high, p, better and smallest_effect; None for numbers that do not exist."""
        low, high = self.interval
        p, effect = (None if np.isnan(x) else x for x in (self.p, self.smallest_effect))
        better = self.better(direction, sides)
        return {"low": low, "high": high, "p": p, "better": better, "smallest_effect": effect}


def correct(rows: Sequence[dict[str, Any]]) -> None:
    """Set `holm` of each row: whether its `p` is significant after Holm's correction over all."""
    for row, mark in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["holm"] = mark


def holm(p: Sequence[float | None], level: float = 0.05) -> list[bool]:
    """Holm's step-down procedure at family-wise error rate `level` (Holm 1979).

    Returns:
        Whether each hypothesis is rejected; one whose p is None or NaN never is.
    """
    known = {i: one for i, one in enumerate(p) if one is not None and not np.isnan(one)}
    rejected = [False] * len(p)
    for passed, i in enumerate(sorted(known, key=known.__getitem__)):
        if known[i] > level / (len(known) - passed):
            break
        rejected[i] = True
    return rejected
