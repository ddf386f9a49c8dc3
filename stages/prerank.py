"""Pre-ranking: cheap models that reduce the candidates of recall to a number that the ranker can
afford.

Each of them can learn from a ranker as well as from the log: `teacher=Teacher(DINRank(...))`, see
`stages/learn.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..models import ctr
from .context import Context
from .learner import Boosted, Neural


@dataclass(frozen=True, repr=False)
class LightGBMPreRank(Boosted):
    """Boosted trees on cheap features; see `Boosted`."""

    k: int = 200
    trees: int = 100
    leaves: int = 15
    name: str = "prerank"


@dataclass(frozen=True, repr=False)
class TwoTowerPreRank(Neural):
    """Inner product of a tower for the history and one for the item, plus a linear term of cheap
    features; see `Neural`.
    """

    k: int = 200
    loss: Literal["bce", "listwise"] = "listwise"
    name: str = "prerank"

    def network(self, context: Context, n_dense: int) -> ctr.ClickModel:
        shape = ctr.Shape(context.log.n_items, n_dense)
        config = ctr.TwoTowerConfig(dim=self.dim, unknown=self.unknown)
        return ctr.TwoTower(shape, config, seed=context.seed)


@dataclass(frozen=True, repr=False)
class COLDPreRank(Neural):
    """A small dense network over id vectors, their product and features, with a weight for each
    feature; see `models.ctr.COLD`.
    """

    k: int = 200
    loss: Literal["bce", "listwise"] = "listwise"
    name: str = "prerank"

    def network(self, context: Context, n_dense: int) -> ctr.ClickModel:
        groups = tuple(len(f.columns) for f in self.features)
        config = ctr.COLDConfig(dim=self.dim, unknown=self.unknown, groups=groups)
        return ctr.COLD(ctr.Shape(context.log.n_items, n_dense), config, seed=context.seed)
