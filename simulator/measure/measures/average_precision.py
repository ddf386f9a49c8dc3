"""MAP@k: mean average precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .hits import HitMeasure, Lists, RandomLists


@dataclass(frozen=True, repr=False)
class MAP(HitMeasure):
    """Precision at the rank of every truth item in the top k, summed, over all truth items:
    trec_eval's `map_cut`.
    """

    name = "MAP"
    form = "MAP@k[:exposures]"

    @property
    def clause(self) -> str:
        return (
            f"precision at each truth item in the top {self.k}, summed, over all truth items; mean"
            " over requests"
        )

    def values(self, lists: Lists, n: int, k: int) -> np.ndarray:
        truth = np.bincount(lists.group, minlength=n)
        inside = lists.rank <= k
        group, rank = lists.group[inside], lists.rank[inside]
        order = np.lexsort((rank, group))
        group, rank = group[order], rank[order]
        starts = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=n))[:-1]])
        found = np.arange(len(group)) - starts[group] + 1  # truth items so far in its list
        total = np.bincount(group, weights=found / rank, minlength=n)
        return np.where(truth > 0, total / np.maximum(truth, 1), np.nan)

    def expected(self, lists: RandomLists, k: int) -> np.ndarray:
        """A truth item has rank i with chance 1 / N; of the i - 1 before it (M - 1) / (N - 1) are
        truth, too.
        """
        many, found, truth = (
            lists.many.astype(np.float64),
            lists.found.astype(np.float64),
            lists.truth,
        )
        depth = np.minimum(k, lists.many)
        harmonic = np.concatenate(
            [[0.0], np.cumsum(1 / np.arange(1, int(depth.max(initial=0)) + 1))]
        )[depth]
        beside = (found - 1) / np.maximum(many - 1, 1)
        total = (
            found / np.maximum(many, 1) * (harmonic + (depth - harmonic) * np.maximum(beside, 0))
        )
        return np.where(truth > 0, total / np.maximum(truth, 1), np.nan)
