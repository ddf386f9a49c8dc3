"""coverage@k: how much of the catalogue is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .exposure import NO_INTERVAL, OfItems


@dataclass(frozen=True, repr=False)
class Coverage(OfItems):
    name = "coverage"
    form = "coverage@k"

    @property
    def definition(self) -> str:
        return f"share of the log's items that are in the top {self.k} of any request{NO_INTERVAL}"

    def of_counts(self, counts: np.ndarray, n_items: int) -> float:
        return float((counts > 0).sum() / n_items) if len(counts) else np.nan
