"""Pre-ranking: cheap models that cut what recall brought to what the ranker can afford."""

from __future__ import annotations

from dataclasses import dataclass

from .learn import Boosted


@dataclass(frozen=True, repr=False)
class LightGBMPreRank(Boosted):
    """Boosted trees on cheap features; see `Boosted`."""

    k: int = 200
    trees: int = 100
    leaves: int = 15
    name: str = "prerank"
