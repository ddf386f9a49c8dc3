"""Ranking: the models that order what is shown."""

from __future__ import annotations

from dataclasses import dataclass

from .learn import Boosted


@dataclass(frozen=True, repr=False)
class LightGBMRank(Boosted):
    """Boosted trees; LambdaMART by default; see `Boosted`."""

    k: int = 50
    calibrated: bool = True
    name: str = "rank"
