"""P@k: precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .hits import HitMeasure, Lists, RandomLists


@dataclass(frozen=True, repr=False)
class P(HitMeasure):
    """Relevant items in the top k, divided by k: `P` of trec_eval.

    A shorter list counts as if it were filled with items that are not relevant.
    """

    name = "P"
    form = "P@k[:exposures]"

    @property
    def clause(self) -> str:
        return f"relevant items in the top {self.k} / {self.k}, mean over requests"

    def values(self, lists: Lists, n: int, k: int) -> np.ndarray:
        truth = np.bincount(lists.group, minlength=n)
        hits = np.bincount(lists.group[lists.rank <= k], minlength=n)
        return np.where(truth > 0, hits / k, np.nan)

    def expected(self, lists: RandomLists, k: int) -> np.ndarray:
        """Each of the top k holds a relevant item with probability found / many."""
        inside = np.minimum(k, lists.many) * lists.found / np.maximum(lists.many, 1)
        return np.where(lists.truth > 0, inside / k, np.nan)
