"""Which stage gains from which embedding:

    karmafunnel table funnel_ablation LOG --out out/funnel

One funnel without any embedding, then the same with an embedding at recall, at pre-ranking, at
ranking, or everywhere: KARMA and every control that a gain could be owed to instead. The last rows
ask the same without what is learnt about item ids: no co-occurrence, no repeats, no counts of one's
own, and embeddings without ids. A log without item texts (trivago) has no such rows, and
co-occurrence instead of the embeddings of text; of a hotel KARMA reads the city, which is all there
is. `grid` splits KARMA's whole gain over the three stages (attribution.md, attribution.html).
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

from karmafunnel.benchmarks.studies.karma_best import with_texts
from karmafunnel.benchmarks.studies.karma_controls import (
    WORDS,
    base,
    sentence_encoder,
    settings,
)
from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder, RandomVectors, TfidfSVD
from karmafunnel.models.karma import KARMA, FrozenLM
from karmafunnel.models.sasrec import SASRec
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.stages.features import (
    BM25,
    Feature,
    Own,
    Popularity,
    Price,
    RequestContext,
    Similarity,
    SimTier,
    Upstream,
)
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import BM25Recall, ItemKNN, Join, Popular, Repeat, VectorRecall
from karmafunnel.stages.stage import Funnel, Stage

against = "no embedding"
by_stage = True
measures = ("HR@10", "HR@50", "HR@200", "GMV-HR@10", "GMV-HR@50", "gAUC:request:exposures")
STAGES = ("recall", "prerank", "rank")
PLACES = {
    "recall": ("recall",),
    "pre-ranking": ("prerank",),
    "ranking": ("rank",),
    "every stage": STAGES,
}


# row: the stages that have KARMA in it
grid = {against: ()} | {f"KARMA at {place}": at for place, at in PLACES.items()}
grid |= {f"KARMA at {' and '.join(at)}": at for at in combinations(STAGES, 2)}


def stages(log: Log, at: tuple[str, ...], ids: bool = True) -> Funnel:
    """The funnel with the embedding `interest` at some of its stages; without `ids`, nothing is
    learnt about single items.
    """
    channels: list[Stage] = [Popular(k=100), Popular(k=100, days=14)]
    features: list[Feature] = [Upstream(), Popularity()]
    if ids:
        channels += [Repeat(k=300), ItemKNN(k=300, depth=60)]
        features += [Own(depth=400), Similarity("cooccurrence")]
    if log.has("text") and log.has("query"):
        channels.append(BM25Recall(k=300))
        features.append(BM25())
    if log.has("price"):
        features.append(Price())
    near: list[Feature] = [Similarity("interest"), SimTier("interest")]
    recall = Join(
        [*channels, VectorRecall("interest", k=300)] if "recall" in at else channels, k=800
    )
    cheap = [*features, *(near[:1] if "prerank" in at else [])]
    full = [*features, RequestContext(), *(near if "rank" in at else [])]
    return (
        recall
        >> LightGBMPreRank(k=200, trees=200, features=cheap, sample=Sample(passed=100))
        >> LightGBMRank(k=50, features=full, sample=Sample(passed=200))
    )


def candidates(log: Log) -> Mapping[str, Embedder]:
    """KARMA, and what its gain could be owed to."""
    chosen, plain = settings(log), base(log)
    found: dict[str, Embedder] = {
        "KARMA": replace(plain, **chosen["both"]),
        "action-only": replace(plain, **chosen["action"]),
    }
    if log.has("text"):
        for name, value in list(found.items()):
            if isinstance(value, KARMA):
                found[f"{name}, words"] = replace(value, beside=(WORDS,))
        found |= {"frozen LM": FrozenLM(after="whitening"), "TF-IDF": TfidfSVD()}
        if encoder := sentence_encoder(log):
            found["action-only, words and sentences"] = with_texts(log, "action")
            found |= encoder
    else:
        found["co-occurrence"] = Cooccurrence()
    return found | {"SASRec": SASRec(), "random": RandomVectors()}


def embedders(log: Log) -> dict[str, Embedder]:
    return {"cooccurrence": Cooccurrence()}


def funnel(log: Log) -> Funnel:
    return stages(log, ())


def rows(log: Log) -> dict[str, Row]:
    found, embedding = {against: Row(stages(log, ()))}, candidates(log)
    for name, embedder in embedding.items():
        for place, at in PLACES.items():
            found[f"{name} at {place}"] = Row(stages(log, at), {"interest": embedder})
    for at in combinations(STAGES, 2):  # the rest of the grid that the attribution needs
        found[f"KARMA at {' and '.join(at)}"] = Row(
            stages(log, at), {"interest": embedding["KARMA"]}
        )
    if not log.has("text"):
        return found
    found["no ids, no embedding"] = Row(stages(log, (), ids=False))
    for name in (
        "KARMA",
        "action-only",
        "KARMA, words",
        "action-only, words",
        "frozen LM",
        "TF-IDF",
    ):
        embedder = embedding[name]
        embedder = replace(embedder, ids=False) if isinstance(embedder, KARMA) else embedder
        found[f"no ids, {name} at every stage"] = Row(
            stages(log, STAGES, ids=False), {"interest": embedder}
        )
    return found
