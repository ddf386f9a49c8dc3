"""Intervals: a bootstrap clustered by user, one set of draws for everything that is asked
at once.

A resample draws as many users as there are, with replacement, and every figure is computed again
from the users' weights. The draws depend on the seed and the number of users alone, so that figures
of the same requests are paired. Source: Davison & Hinkley 1997, ch. 2.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from .metrics import mass_bins, placements, weighted_auc

VISITS = 500_000_000  # rows that pooled AUC may pass over in all its resamples
FEWEST = 100


class Estimate(Protocol):
    """A figure that can be computed again under other user weights."""

    @property
    def value(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def undefined(self) -> int: ...
    @property
    def units(self) -> int: ...


@runtime_checkable
class Summed(Estimate, Protocol):
    """One that follows from sums over the rows of each user."""

    def by_cluster(self, n_clusters: int) -> np.ndarray:
        """Users' sums: (n_clusters, columns)."""
        ...

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        """The figure of each row of sums: (n, columns) -> (n,)."""
        ...


@runtime_checkable
class Weighted(Estimate, Protocol):
    """One that is computed anew from the rows in every resample."""

    def weighted(self, weights: np.ndarray) -> float: ...
    def resamples(self, wanted: int) -> int: ...


@dataclass(frozen=True, eq=False)
class Ratio:
    """Sum of `num` / sum of `den` over units (requests, users); a unit whose num is NaN is
    undefined and left out.

    A mean has den 1. Arrays are (n_units,); `cluster` is the user number. A ratio of sums (as
    survival is) has `counts`: what a unit adds to n; an undefined unit then adds nothing to either
    sum.
    """

    num: np.ndarray
    den: np.ndarray
    cluster: np.ndarray
    counts: np.ndarray | None = None

    @cached_property
    def known(self) -> np.ndarray:
        return ~np.isnan(self.num)

    @property
    def value(self) -> float:
        den = float(self.den[self.known].sum())
        return float(self.num[self.known].sum() / den) if den else np.nan

    @property
    def n(self) -> int:
        return int(self.known.sum() if self.counts is None else self.counts[self.known].sum())

    @property
    def undefined(self) -> int:
        return int((~self.known).sum())

    @property
    def units(self) -> int:
        return len(self.num)

    def where(self, keep: np.ndarray) -> Ratio:
        """The same figure with more units undefined: `keep` (n_units,) bool."""
        return Ratio(np.where(keep, self.num, np.nan), self.den, self.cluster, self.counts)

    def by_cluster(self, n_clusters: int) -> np.ndarray:
        """Users' sums of num and den: (n_clusters, 2)."""
        at = self.cluster[self.known]
        sums = [
            np.bincount(at, weights=x[self.known], minlength=n_clusters)
            for x in (self.num, self.den)
        ]
        return np.stack(sums, axis=1)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)


@dataclass(frozen=True, eq=False)
class Total:
    """The sum of several ratios over the same units."""

    parts: tuple[Ratio, ...]

    @property
    def value(self) -> float:
        return sum(part.value for part in self.parts)

    @property
    def n(self) -> int:
        return self.parts[0].n

    @property
    def undefined(self) -> int:
        return self.parts[0].undefined

    @property
    def units(self) -> int:
        return self.parts[0].units

    def by_cluster(self, n_clusters: int) -> np.ndarray:
        """Users' sums of num and den of each part: (n_clusters, 2 * parts)."""
        return np.concatenate([part.by_cluster(n_clusters) for part in self.parts], axis=1)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        return sum(
            (part.of_sums(sums[:, 2 * i : 2 * i + 2]) for i, part in enumerate(self.parts)),
            np.zeros(len(sums)),
        )


@dataclass(frozen=True, eq=False)
class PooledAUC:
    """AUC of all rows pooled; under user weights a pair counts by the product of its weights."""

    scores: np.ndarray
    labels: np.ndarray
    cluster: np.ndarray
    undefined: int = 0

    @cached_property
    def _placed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        positive, negative, below, through = placements(self.scores, self.labels)
        return self.cluster[positive], self.cluster[negative], below, through

    def weighted(self, weights: np.ndarray) -> float:
        """AUC under user weights (n_clusters,)."""
        positive, negative, below, through = self._placed
        return weighted_auc(weights[positive], weights[negative], below, through)

    @cached_property
    def value(self) -> float:
        return self.weighted(np.ones(int(self.cluster.max(initial=-1)) + 1))

    @property
    def n(self) -> int:
        return len(self.scores)

    @property
    def units(self) -> int:
        return self.n

    def resamples(self, wanted: int) -> int:
        return min(wanted, max(FEWEST, VISITS // max(len(self.scores), 1)))


@dataclass(frozen=True, eq=False)
class Median:
    """Median of rows; a user's weight counts each of his rows so often."""

    values: np.ndarray
    cluster: np.ndarray
    undefined: int = 0

    @cached_property
    def _placed(self) -> tuple[np.ndarray, np.ndarray]:
        by_value = np.argsort(self.values, kind="stable")
        return self.values[by_value], self.cluster[by_value]

    def weighted(self, weights: np.ndarray) -> float:
        """Median under whole user weights (n_clusters,): NumPy's, the mean of the middle two; NaN
        where no row is left.
        """
        values, cluster = self._placed
        through = np.cumsum(weights[cluster])
        if len(through) == 0 or through[-1] == 0:
            return np.nan
        middle = (
            np.searchsorted(through, through[-1] / 2, side="left"),
            np.searchsorted(through, through[-1] / 2, side="right"),
        )
        return float(values[middle[0]] + values[middle[1]]) / 2

    @cached_property
    def value(self) -> float:
        return self.weighted(np.ones(int(self.cluster.max(initial=-1)) + 1))

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def units(self) -> int:
        return self.n + self.undefined

    def resamples(self, wanted: int) -> int:
        return wanted  # two Runs lose different numbers of rows and still need to pair


@dataclass(frozen=True, eq=False)
class Calibration:
    """ECE over 15 bins of equal mass; the bins stay where the whole data put them."""

    probabilities: np.ndarray
    labels: np.ndarray
    cluster: np.ndarray
    undefined: int = 0
    bins: int = 15

    def by_cluster(self, n_clusters: int) -> np.ndarray:
        """Users' sums of (probability - label) a bin, and their rows: (n_clusters, bins + 1)."""
        cell = self.cluster * self.bins + mass_bins(self.probabilities, self.bins)
        gap = np.bincount(
            cell, weights=self.probabilities - self.labels, minlength=n_clusters * self.bins
        )
        rows = np.bincount(self.cluster, minlength=n_clusters)
        return np.column_stack([gap.reshape(n_clusters, self.bins), rows])

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.abs(sums[:, :-1]).sum(axis=1) / sums[:, -1]

    @cached_property
    def value(self) -> float:
        sums = self.by_cluster(int(self.cluster.max(initial=-1)) + 1).sum(axis=0, keepdims=True)
        return float(self.of_sums(sums)[0])

    @property
    def n(self) -> int:
        return len(self.probabilities)

    @property
    def units(self) -> int:
        return self.n


def draws(n_clusters: int, resamples: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """User weights in blocks: (number of the first resample, float64 (block, n_clusters)); each row
    is multinomial.
    """
    rng = np.random.default_rng([seed, n_clusters])
    block = max(1, min(resamples, 8_000_000 // max(n_clusters, 1)))
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        rows = [
            np.bincount(rng.integers(0, n_clusters, n_clusters), minlength=n_clusters)
            for _ in range(size)
        ]
        yield first, np.stack(rows).astype(np.float64)


def resample(
    estimates: Sequence[Estimate], n_clusters: int, resamples: int = 1000, seed: int = 0
) -> list[np.ndarray]:
    """Every estimate under the same draws of users: one float64 array each, NaN where a resample
    leaves nothing to divide by.

    Pooled AUC of many rows gets fewer resamples (`PooledAUC.resamples`), the first ones.
    """
    linear = [e for e in estimates if isinstance(e, Summed)]
    pooled = [e for e in estimates if isinstance(e, Weighted)]
    sums = [e.by_cluster(n_clusters) for e in linear]
    ends = np.cumsum([0, *(s.shape[1] for s in sums)])
    stacked = np.concatenate(sums, axis=1) if sums else np.zeros((n_clusters, 0))
    out = {id(e): np.full(resamples, np.nan) for e in linear} | {
        id(e): np.full(e.resamples(resamples), np.nan) for e in pooled
    }
    most = resamples if linear else max((e.resamples(resamples) for e in pooled), default=0)
    for first, weights in draws(n_clusters, most, seed):
        totals = weights @ stacked
        for e, start, end in zip(linear, ends, ends[1:], strict=False):
            out[id(e)][first : first + len(weights)] = e.of_sums(totals[:, start:end])
        for one in pooled:
            target = out[id(one)]
            for i in range(first, min(first + len(weights), len(target))):
                target[i] = one.weighted(weights[i - first])
    return [out[id(e)] for e in estimates]


def over_seeds(samples: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Mean over seeds, the seeds themselves drawn anew in every resample: arrays (resamples,), one
    a seed -> (resamples,).
    """
    stacked = np.stack(samples)  # (seeds, resamples)
    if len(stacked) == 1:
        return stacked[0]
    chosen = np.random.default_rng([seed, 1]).integers(0, len(stacked), stacked.shape)
    return np.take_along_axis(stacked, chosen, axis=0).mean(axis=0)


def interval(samples: np.ndarray) -> tuple[float | None, float | None]:
    """95% percentile interval; (None, None) where no resample has a value."""
    samples = samples[~np.isnan(samples)]
    if len(samples) == 0:
        return None, None
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)
