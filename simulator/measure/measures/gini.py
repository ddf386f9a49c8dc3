"""Gini@k: how unevenly the catalogue is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .exposure import OfItems


@dataclass(frozen=True, repr=False)
class Gini(OfItems):
    """The Gini index of how often each item of the log is shown, items never shown included (Gini
    1912).
    """

    name = "Gini"
    form = "Gini@k"

    @property
    def definition(self) -> str:
        return (
            f"Gini index of how often each item of the log is in a top {self.k}: 0 all alike, near"
            " 1 a few items take all"
        )

    def of_counts(self, counts: np.ndarray, n_items: int) -> float:
        total = counts.sum()
        if total == 0:
            return np.nan
        shown = np.sort(counts)
        # of each item by its count, those never shown before
        place = n_items - len(shown) + np.arange(1, len(shown) + 1)
        return float(((2 * place - n_items - 1) * shown).sum() / (n_items * total))
