"""P@k: precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .hits import HitMeasure, Lists, RandomLists


@dataclass(frozen=True, repr=False)
class P(HitMeasure):
    """Relevant items among the first k, over k: trec_eval's `P`.

    A list that is shorter counts as if filled up with others.
    """

    name = "P"
    form = "P@k[:exposures]"

    @property
    def clause(self) -> str:
        return f"truth items in the top {self.k} / {self.k}, mean over requests"

    def values(self, lists: Lists, n: int, k: int) -> np.ndarray:
        truth = np.bincount(lists.group, minlength=n)
        hits = np.bincount(lists.group[lists.rank <= k], minlength=n)
        return np.where(truth > 0, hits / k, np.nan)

    def expected(self, lists: RandomLists, k: int) -> np.ndarray:
        """Each place of the first k holds a relevant item with chance found / many."""
        inside = np.minimum(k, lists.many) * lists.found / np.maximum(lists.many, 1)
        return np.where(lists.truth > 0, inside / k, np.nan)
