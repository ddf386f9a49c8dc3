"""A full three-stage funnel without KARMA that fits and replays any log: what the log lacks, it
leaves out.

The pre-ranker is few trees over features that several stages share; the ranker has many, and reads
what a pre-ranker could not afford. Where items have no text, a sequence model is fitted in its
place, which takes longer.
"""

from dataclasses import replace

from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder, TfidfSVD
from karmafunnel.models.sasrec import SASRec
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
from karmafunnel.stages.recall import BM25Recall, ItemKNN, Join, Popular, Repeat, VectorRecall
from karmafunnel.stages.stage import Funnel, Stage


def embedders(log: Log) -> dict[str, Embedder]:
    if log.has("text"):
        return {"cooccurrence": Cooccurrence(), "tfidf": TfidfSVD()}
    return {"cooccurrence": Cooccurrence(), "sasrec": SASRec(epochs=15, patience=2)}


def funnel(log: Log) -> Funnel:
    beside = "tfidf" if log.has("text") else "sasrec"
    channels: list[Stage] = [
        Repeat(k=300),
        ItemKNN(k=300, depth=60),
        Popular(k=100),
        Popular(k=100, days=14),
        VectorRecall(beside, k=300),
    ]
    features: list[Feature] = [
        Upstream(),
        Popularity(),
        Own(depth=400),
        Similarity("cooccurrence"),
        Similarity(beside),
    ]
    further: list[Feature] = [RequestContext()]
    if log.has("text") and log.has("query"):
        channels.append(BM25Recall(k=300))
        features.append(BM25())
        further.append(Similarity("tfidf", to="query"))
    if log.has("price"):
        features.append(Price())
    if log.has("exposures"):
        further += [Clicks(), Placement()]
    # what is passed over is often taken in the next request: a probability beats an order
    single = log.one_at_a_time()
    if single:
        further.append(Column("recall.score"))
    before, learnt_from = len(log.requests_in("W1")), len(log.requests_in("W2a"))
    long = log.meta["time"] == "clock" and 100 <= learnt_from <= before / 3
    blocks = 3 if long else 1  # a short log has none to learn from before W2a
    learnt = Sample(passed=100, requests=10_000, blocks=blocks)
    return (
        Join(channels, k=500)
        >> LightGBMPreRank(k=200, trees=60, learning_rate=0.1, features=features, sample=learnt)
        >> LightGBMRank(
            k=50,
            objective="binary" if single else "lambdarank",
            features=[*features, *further],
            sample=replace(learnt, passed=200),
        )
    )
