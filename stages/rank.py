"""Ranking: the models that order what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..models.ctr import DIN
from .learn import Boosted, Neural


@dataclass(frozen=True, repr=False)
class LightGBMRank(Boosted):
    """Boosted trees; LambdaMART by default; see `Boosted`."""

    k: int = 50
    calibrated: bool = True
    name: str = "rank"


@dataclass(frozen=True, repr=False)
class DINRank(Neural):
    """Deep Interest Network: each candidate attends to the history; see `Neural`."""

    attention: int = 32
    calibrated: bool = True

    def network(self, known: np.ndarray, n_dense: int, vectors: np.ndarray | None) -> Any:
        return DIN(known, n_dense, self.dim, self.attention, vectors=vectors)
