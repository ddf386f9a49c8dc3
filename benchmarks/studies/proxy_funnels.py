"""Funnels from bad to good, to see which offline figure orders them as users would:

    karmafunnel table proxy_funnels LOG --out out/funnels

Single channels, all of them together, then rankers that read ever more. The last four rows are one
funnel with different vectors at every stage: KARMA, the same model without its language
objectives, frozen text, none. `which_proxy.py` compares the order on a log with the truth.
"""

from dataclasses import replace

from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder, TfidfSVD
from karmafunnel.models.karma import KARMA, FrozenLM, Qwen
from karmafunnel.simulator.replay.recipe import Row
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

against = "popular"
by_stage = True
measures = ("HR@10", "HR@50", "HR@200", "GMV-HR@10", "GMV-HR@50", "gAUC:request:exposures")
SMALL = Qwen(dim=64, layers=2, heads=2, kv_heads=1, mlp=192, vocab=1024, tokens=400_000)
KARMA_SMALL = KARMA(backbone=SMALL, dim=64, length=20, gen=0.1, rec=1.0, rate=2e-3, epochs=4)


def embedders(log: Log) -> dict[str, Embedder]:
    return {"cooccurrence": Cooccurrence(), "tfidf": TfidfSVD()}


def channels(vectors: str = "") -> list[Stage]:
    found: list[Stage] = [Popular(k=60), Repeat(k=60), ItemKNN(k=100, depth=60), BM25Recall(k=150)]
    return [*found, VectorRecall(vectors, k=150)] if vectors else found


def ranked(*features: Feature, vectors: str = "", trees: int = 60) -> Funnel:
    """All channels, then a pre-ranker and a ranker that read these features."""
    near = [Similarity(vectors)] if vectors else []
    read = [Upstream(), *features, *near]
    sample = Sample(passed=60, requests=6_000)
    return (
        Join(channels(vectors), k=300)
        >> LightGBMPreRank(k=100, trees=trees, features=read, sample=sample)
        >> LightGBMRank(k=50, trees=trees, features=[*read, RequestContext()], sample=sample)
    )


def rows(log: Log | None = None) -> dict[str, Row]:
    everything = (Popularity(), BM25(), Price(), Own(depth=100), Similarity("cooccurrence"))
    plain = replace(KARMA_SMALL, gen=0.0, rec=0.0)
    return {
        against: Row(funnel()),
        "popular these days": Row(Join([Popular(k=100, days=7)], k=100)),
        "bought before": Row(Join([Repeat(k=60), Popular(k=60)], k=100)),
        "words": Row(Join([BM25Recall(k=150), Popular(k=20)], k=150)),
        "neighbours": Row(Join([ItemKNN(k=150, depth=60), Popular(k=20)], k=150)),
        "co-occurrence": Row(Join([VectorRecall("cooccurrence", k=150)], k=150)),
        "TF-IDF": Row(Join([VectorRecall("tfidf", k=150)], k=150)),
        "all channels": Row(Join(channels("tfidf"), k=300)),
        "ranked by popularity": Row(ranked(Popularity())),
        "ranked by words": Row(ranked(Popularity(), BM25())),
        "ranked by price": Row(ranked(Popularity(), BM25(), Price())),
        "ranked by neighbours": Row(ranked(Popularity(), Similarity("cooccurrence"))),
        "all, no vectors": Row(ranked(*everything)),
        "all, TF-IDF": Row(ranked(*everything, vectors="tfidf")),
        "all, frozen text": Row(
            ranked(*everything, vectors="text"),
            {"text": FrozenLM(backbone=SMALL, after="whitening")},
        ),
        "all, action-only": Row(ranked(*everything, vectors="interest"), {"interest": plain}),
        "all, KARMA": Row(ranked(*everything, vectors="interest"), {"interest": KARMA_SMALL}),
    }


def funnel(log: Log | None = None) -> Stage:
    return Join([Popular(k=100)], k=100)
