"""Pre-ranking: cheap models that cut what recall brought to what the ranker can afford.

Any of them may learn from a ranker beside the log: `teacher=Teacher(DINRank(...))`, see
`stages/learn.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..models import ctr
from .context import Context
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
    """A tower for the history, a tower for the item, their inner product and a linear term of cheap
    features; see `Neural`.
    """

    k: int = 200
    loss: Literal["bce", "listwise"] = "listwise"
    name: str = "prerank"

    def network(self, context: Context, n_dense: int) -> ctr.ClickModel:
        return ctr.TwoTower(
            ctr.Shape(context.log.n_items, n_dense),
            ctr.TwoTowerConfig(dim=self.dim),
            seed=context.seed,
        )


@dataclass(frozen=True, repr=False)
class COLDPreRank(Neural):
    """A small dense net over id vectors, their product and features, each feature weighed as a
    group; see `models.ctr.COLD`.
    """

    k: int = 200
    loss: Literal["bce", "listwise"] = "listwise"
    name: str = "prerank"

    def network(self, context: Context, n_dense: int) -> ctr.ClickModel:
        config = ctr.COLDConfig(dim=self.dim, groups=tuple(len(f.columns) for f in self.features))
        return ctr.COLD(ctr.Shape(context.log.n_items, n_dense), config, seed=context.seed)
