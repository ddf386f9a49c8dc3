"""A full three-stage funnel without KARMA that fits and replays any log: what the log lacks, it
leaves out.

The pre-ranker is few trees over features that several stages share; the ranker has many, and reads
what a pre-ranker could not afford.
"""

from dataclasses import replace

from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder, TfidfSVD
from karmafunnel.stages.features import (
    BM25,
    Clicks,
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
from karmafunnel.stages.recall import BM25Recall, ItemKNN, Join, Popular, Repeat, VectorRecall
from karmafunnel.stages.stage import Funnel, Stage


def embedders(log: Log) -> dict[str, Embedder]:
    found: dict[str, Embedder] = {"cooccurrence": Cooccurrence()}
    return found | ({"tfidf": TfidfSVD()} if log.has("text") else {})


def funnel(log: Log) -> Funnel:
    channels: list[Stage] = [
        Repeat(k=300),
        ItemKNN(k=300, depth=60),
        Popular(k=100),
        Popular(k=100, days=14),
    ]
    features: list[Feature] = [Upstream(), Popularity(), Own(depth=400), Similarity("cooccurrence")]
    further: list[Feature] = [RequestContext()]
    if log.has("text"):
        channels.append(VectorRecall("tfidf", k=300))
        features.append(Similarity("tfidf"))
    if log.has("text") and log.has("query"):
        channels.append(BM25Recall(k=300))
        features.append(BM25())
        further.append(Similarity("tfidf", to="query"))
    if log.has("price"):
        features.append(Price())
    if log.has("exposures"):
        further += [Clicks(), Placement()]
    before, learnt_from = len(log.requests_in("W1")), len(log.requests_in("W2a"))
    long = log.meta["time"] == "clock" and 100 <= learnt_from <= before / 3
    blocks = 3 if long else 1  # a short log has none to learn from before W2a
    learnt = Sample(passed=100, requests=10_000, blocks=blocks)
    return (
        Join(channels, k=500)
        >> LightGBMPreRank(k=200, trees=60, learning_rate=0.1, features=features, sample=learnt)
        >> LightGBMRank(k=50, features=[*features, *further], sample=replace(learnt, passed=200))
    )
