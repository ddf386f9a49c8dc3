"""Pre-ranking: cheap models that cut what recall brought to what the ranker can afford."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..models.ctr import TwoTower
from .learn import Boosted, Neural


@dataclass(frozen=True, repr=False)
class LightGBMPreRank(Boosted):
    """Boosted trees on cheap features; see `Boosted`."""

    k: int = 200
    trees: int = 100
    leaves: int = 15
    name: str = "prerank"


@dataclass(frozen=True, repr=False)
class TwoTowerPreRank(Neural):
    """Two towers and a small net over cheap features; see `Neural`."""

    k: int = 200
    loss: str = "listwise"
    name: str = "prerank"

    def network(self, known: np.ndarray, n_dense: int, vectors: np.ndarray | None) -> Any:
        return TwoTower(known, n_dense, self.dim, vectors=vectors)
