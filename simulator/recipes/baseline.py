"""A full three-stage funnel without KARMA that fits and replays any log: what the log lacks, it
leaves out.
"""

from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder, TfidfSVD
from karmafunnel.models.sasrec import SASRec
from karmafunnel.stages.features import (
    BM25,
    Feature,
    Own,
    Popularity,
    Price,
    RequestContext,
    Similarity,
    Upstream,
)
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import BM25Recall, ItemKNN, Join, Popular, Repeat, VectorRecall
from karmafunnel.stages.stage import Funnel, Stage


def embedders(log: Log) -> dict[str, Embedder]:
    found: dict[str, Embedder] = {
        "sasrec": SASRec(epochs=15, patience=2),
        "cooccurrence": Cooccurrence(),
    }
    return found | ({"tfidf": TfidfSVD()} if log.has("text") else {})


def funnel(log: Log) -> Funnel:
    channels: list[Stage] = [
        Repeat(k=300),
        VectorRecall("sasrec", k=300),
        ItemKNN(k=300, depth=60),
        Popular(k=100),
        Popular(k=100, days=14),
    ]
    similarities: list[Feature] = [Similarity("sasrec"), Similarity("cooccurrence")]
    if log.has("text"):
        channels.append(VectorRecall("tfidf", k=300))
        similarities.append(Similarity("tfidf"))
    if log.has("text") and log.has("query"):
        channels.append(BM25Recall(k=300))
        similarities.append(BM25())
    features: list[Feature] = [Upstream(), Popularity(), Own(depth=400), *similarities]
    if log.has("price"):
        features.append(Price())
    return (
        Join(channels, k=800)
        >> LightGBMPreRank(k=200, trees=200, features=features, sample=Sample(passed=100))
        >> LightGBMRank(k=50, features=[*features, RequestContext()], sample=Sample(passed=200))
    )
