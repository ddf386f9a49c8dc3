"""What karmafunnel tune chooses from: a funnel with a parameter for each choice, and the values
that each may take. Replayed as it is, it has the defaults.
"""

from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder, TfidfSVD
from karmafunnel.models.sasrec import SASRec
from karmafunnel.stages.blend import Blend
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
from karmafunnel.stages.prerank import COLDPreRank, LightGBMPreRank, TwoTowerPreRank
from karmafunnel.stages.rank import DCNRank, DINRank, LightGBMRank
from karmafunnel.stages.recall import BM25Recall, ItemKNN, Join, Popular, Repeat, VectorRecall
from karmafunnel.stages.stage import Funnel, Stage


def choices(log: Log) -> dict[str, tuple[object, ...]]:
    """The values of each parameter of `funnel`, the cheapest first."""
    found: dict[str, tuple[object, ...]] = {
        "recalled": (100, 200, 400, 800),
        "item_knn": (False, True),
        "sasrec": (False, True),
        "prerank": ("none", "trees", "COLD", "two towers"),
        "prerank_trees": (50, 100, 200),
        "passed": (100, 200),
        "rank": ("none", "trees", "DCN", "DIN", "blend"),
        "rank_trees": (50, 100, 300),
    }
    if log.has("text"):
        found["tfidf"] = (False, True)
    if log.has("text") and log.has("query"):
        found["bm25"] = (False, True)
    return found


def embedders(log: Log) -> dict[str, Embedder]:
    found: dict[str, Embedder] = {
        "sasrec": SASRec(epochs=15, patience=2),
        "cooccurrence": Cooccurrence(),
    }
    return found | ({"tfidf": TfidfSVD()} if log.has("text") else {})


def funnel(
    log: Log,
    recalled: int = 400,
    item_knn: bool = True,
    sasrec: bool = False,
    tfidf: bool = False,
    bm25: bool = False,
    prerank: str = "trees",
    prerank_trees: int = 100,
    passed: int = 200,
    rank: str = "trees",
    rank_trees: int = 100,
) -> Funnel:
    channels: list[Stage] = [Repeat(k=100), Popular(k=100), Popular(k=100, days=14)]
    features: list[Feature] = [Upstream(), Popularity(), Own(depth=400), Similarity("cooccurrence")]
    if item_knn:
        channels.append(ItemKNN(k=300, depth=60))
    for name, wanted in (("sasrec", sasrec), ("tfidf", tfidf)):
        if wanted:
            channels.append(VectorRecall(name, k=300))
            features.append(Similarity(name))
    if bm25:
        channels.append(BM25Recall(k=300))
        features.append(BM25())
    if log.has("price"):
        features.append(Price())

    to_rank = passed if rank != "none" else 50  # the last stage shows 50
    deep, sample = Sample(passed=200), Sample(passed=100)
    more: list[Feature] = [*features, RequestContext()]
    if tfidf and log.has("query"):
        more.append(Similarity("tfidf", to="query"))
    if log.has("exposures"):
        more += [Clicks(), Placement()]
    trees = LightGBMRank(k=50, trees=rank_trees, features=more, sample=deep)
    dcn = DCNRank(k=50, features=more, sample=sample)
    prerankers: dict[str, Stage] = {
        "trees": LightGBMPreRank(k=to_rank, trees=prerank_trees, features=features, sample=sample),
        "COLD": COLDPreRank(k=to_rank, features=features, sample=sample),
        "two towers": TwoTowerPreRank(k=to_rank, features=features, sample=sample),
    }
    rankers: dict[str, Stage] = {
        "trees": trees,
        "DCN": dcn,
        "DIN": DINRank(k=50, features=more, sample=sample),
        "blend": Blend([trees, dcn], k=50),
    }
    after = [
        stages[name] for stages, name in ((prerankers, prerank), (rankers, rank)) if name in stages
    ]
    return Funnel((Join(channels, k=recalled if after else 50), *after))
