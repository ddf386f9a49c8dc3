"""Ranking: the models that order what is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..models import ctr
from .base import Scene
from .learn import Boosted, Neural


@dataclass(frozen=True, repr=False)
class LightGBMRank(Boosted):
    """Boosted trees; LambdaMART by default; see `Boosted`."""

    k: int = 50
    calibrated: bool = True
    name: str = "rank"


@dataclass(frozen=True, repr=False)
class DINRank(Neural):
    """Deep Interest Network: each candidate attends to the history; see `Neural`.

    `similar` names an embedder whose item vectors enter as SimTier and SA-TA (MUSE, arXiv 2512.07216).
    """

    attention: int = 32
    similar: str | None = None
    calibrated: bool = True

    def embedders(self) -> tuple[str, ...]:
        return (*super().embedders(), *([self.similar] if self.similar else []))

    def vectors(self, scene: Scene) -> np.ndarray | None:
        return scene.items(self.similar, repr(self)) if self.similar else None

    def network(self, scene: Scene, n_dense: int) -> ctr.ClickModel:
        vectors = self.vectors(scene)
        shape = ctr.Shape(scene.log.n_items, n_dense, n_vector=0 if vectors is None else vectors.shape[1])
        config = ctr.DINConfig(dim=self.dim, attention=self.attention, similarity=vectors is not None)
        return ctr.DIN(shape, config, vectors=vectors, seed=scene.seed)
