"""MAP: mean average precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .hits import HitMeasure, Lists, RandomLists


@dataclass(frozen=True, repr=False)
class MAP(HitMeasure):
    """Sum of the precision at the rank of each relevant item in the top k, divided by the number of
    relevant items: `map_cut` of trec_eval. Without k, over all that a stage put out: `map`.
    """

    name = "MAP"
    form = "MAP[@k][:exposures]"
    needs_k = False

    @property
    def clause(self) -> str:
        where = f"top {self.k}" if self.k else "list"
        return (
            f"precision at each relevant item in the {where}, summed, over all relevant items;"
            " mean over requests"
        )

    def values(self, lists: Lists, n: int, k: int) -> np.ndarray:
        truth = np.bincount(lists.group, minlength=n)
        inside = lists.rank <= k
        group, rank = lists.group[inside], lists.rank[inside]
        order = np.lexsort((rank, group))
        group, rank = group[order], rank[order]
        starts = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=n))[:-1]])
        found = np.arange(len(group)) - starts[group] + 1  # relevant items up to here in the list
        total = np.bincount(group, weights=found / rank, minlength=n)
        return np.where(truth > 0, total / np.maximum(truth, 1), np.nan)

    def expected(self, lists: RandomLists, k: int) -> np.ndarray:
        """Expected value under a random order of N items, M of them relevant.

        A relevant item has rank i with probability 1 / N. Of the i - 1 items before it, a share of
        (M - 1) / (N - 1) is relevant on average.
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
        others = (found - 1) / np.maximum(many - 1, 1)
        total = (
            found / np.maximum(many, 1) * (harmonic + (depth - harmonic) * np.maximum(others, 0))
        )
        return np.where(truth > 0, total / np.maximum(truth, 1), np.nan)
