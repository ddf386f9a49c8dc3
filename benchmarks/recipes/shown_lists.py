"""Rank the list that was really shown, as of its time: nothing of the list itself but which items it held."""

from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.stages.base import Funnel
from karmafunnel.stages.features import Context, Feature, Own, Placement, Popularity, Price, Upstream
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import Shown

label = "click"
embedders: dict[str, Embedder] = {}
LOGGED_ORDER = False


def funnel(log: Log) -> Funnel:
    features: list[Feature] = [Popularity(), Own(), Price(), Placement(), Context()]
    if LOGGED_ORDER:
        features.append(Upstream())
    return Shown(k=100, logged_order=LOGGED_ORDER) >> LightGBMRank(
        k=100,
        features=features,
        sample=Sample(passed=0, random=0, requests=20_000, windows=("W1", "W2a")),
        leaves=15,
        learning_rate=0.03,
        trees=600,
    )
