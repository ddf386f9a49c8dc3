"""A three-stage funnel driven by KARMA: its user embedding retrieves, and its similarity is a
feature of both rankers.

The model is small enough for the demo; `benchmarks/studies/karma_controls.py` has the settings that
the tables were made with.
"""

from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder
from karmafunnel.models.karma import KARMA, Qwen
from karmafunnel.stages.features import (
    BM25,
    Clicks,
    Column,
    Feature,
    Own,
    Placement,
    Popularity,
    Price,
    RequestContext,
    Similarity,
    Upstream,
)
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import BM25Recall, Join, Popular, Repeat, VectorRecall
from karmafunnel.stages.stage import Funnel, Stage


def embedders(log: Log) -> dict[str, Embedder]:
    small = Qwen(dim=64, layers=2, heads=2, kv_heads=1, mlp=192, vocab=1024, tokens=400_000)
    return {
        "karma": KARMA(backbone=small, dim=64, length=20, rec=1.0, rate=2e-3, epochs=8),
        "cooccurrence": Cooccurrence(),
    }


def funnel(log: Log) -> Funnel:
    channels: list[Stage] = [
        VectorRecall("karma", k=300),
        Repeat(k=300),
        Popular(k=100),
        Popular(k=100, days=14),
    ]
    features: list[Feature] = [
        Upstream(),
        Popularity(),
        Own(depth=400),
        Similarity("karma"),
        Similarity("cooccurrence"),
    ]
    further: list[Feature] = [RequestContext()]
    if log.has("query"):
        channels.append(BM25Recall(k=300))
        features.append(BM25())
    if log.has("price"):
        features.append(Price())
    if log.has("exposures"):
        further += [Clicks(), Placement()]
    # what is passed over is often taken in the next request: a probability beats an order
    single = log.one_at_a_time()
    if single:
        further.append(Column("recall.score"))
    pre, deep = Sample(passed=100, requests=10_000), Sample(passed=200, requests=10_000)
    return (
        Join(channels, k=600)
        >> LightGBMPreRank(k=200, trees=60, learning_rate=0.1, features=features, sample=pre)
        >> LightGBMRank(
            k=50,
            objective="binary" if single else "lambdarank",
            features=[*features, *further],
            sample=deep,
        )
    )
