"""Three stages with an ANN index, two towers and DIN: the neural counterpart of `baseline`."""

from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder
from karmafunnel.models.sasrec import SASRec
from karmafunnel.stages.features import (
    Feature,
    Own,
    Popularity,
    Price,
    RequestContext,
    Similarity,
    Upstream,
)
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import TwoTowerPreRank
from karmafunnel.stages.rank import DINRank
from karmafunnel.stages.recall import HNSW, Join, Popular, Repeat, VectorRecall
from karmafunnel.stages.stage import Funnel

embedders: dict[str, Embedder] = {
    "sasrec": SASRec(epochs=15, patience=2),
    "cooccurrence": Cooccurrence(),
}


def funnel(log: Log) -> Funnel:
    channels = [
        VectorRecall("sasrec", k=300, index=HNSW()),
        VectorRecall("cooccurrence", k=300),
        Repeat(k=100),
        Popular(k=100),
    ]
    features: list[Feature] = [
        Upstream(),
        Popularity(),
        Own(),
        Similarity("sasrec"),
        Similarity("cooccurrence"),
    ]
    if log.has("price"):
        features.append(Price())
    return (
        Join(channels, k=500)
        >> TwoTowerPreRank(k=150, features=features)
        >> DINRank(k=50, features=[*features, RequestContext()], sample=Sample(passed=100))
    )
