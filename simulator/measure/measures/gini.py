"""Gini@k: how unevenly the catalogue is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .exposure import NO_INTERVAL, OfItems


@dataclass(frozen=True, repr=False)
class Gini(OfItems):
    """Gini index of how often each item of the log is shown, including items never shown (Gini
    1912).
    """

    name = "Gini"
    form = "Gini@k"

    @property
    def definition(self) -> str:
        return (
            f"Gini index of how often each item of the log is in a top {self.k}: 0 if all are shown"
            f" equally often, near 1 if a few items take all exposures{NO_INTERVAL}"
        )

    def of_counts(self, counts: np.ndarray, n_items: int) -> float:
        total = counts.sum()
        if total == 0:
            return np.nan
        shown = np.sort(counts)
        # place of each shown item in ascending order of counts, after the items never shown
        place = n_items - len(shown) + np.arange(1, len(shown) + 1)
        return float(((2 * place - n_items - 1) * shown).sum() / (n_items * total))
