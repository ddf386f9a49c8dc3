"""Which model at which stage, one funnel around them:

    karmafunnel table stage_models LOG --out out/stage_models

The pre-ranker changes in the first rows, the ranker in the others; recall, features, and what each
learns from stay the same. The ranker's trees have the best of nine trials of rate and leaves, and
each kind of network the best of four rates, on the last window of three other Worlds (LOG.md). A
ranker that needs shown lists with clicks and purchases (ESMM) has a row where the log has them.
"""

from collections.abc import Sequence
from typing import Any

from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder, TfidfSVD
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.stages.blend import Blend
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
from karmafunnel.stages.learn import PositionBias, Sample, Teacher
from karmafunnel.stages.prerank import COLDPreRank, LightGBMPreRank, TwoTowerPreRank
from karmafunnel.stages.rank import DCNRank, DINRank, ESMMRank, LightGBMRank
from karmafunnel.stages.recall import BM25Recall, ItemKNN, Join, Popular, Repeat, VectorRecall
from karmafunnel.stages.stage import Funnel, Stage

against = "LightGBM (LambdaMART) >> LightGBM (LambdaMART)"
by_stage = True
measures = ("HR@10", "HR@50", "GMV-HR@10", "gAUC:request:exposures")
Model = tuple[type[Stage], dict[str, Any]]
TREES: Model = (LightGBMRank, {"leaves": 7})
SLOW = {"rate": 1e-3}


def embedders(log: Log) -> dict[str, Embedder]:
    found: dict[str, Embedder] = {"cooccurrence": Cooccurrence()}
    return found | ({"tfidf": TfidfSVD()} if log.has("text") else {})


def parts(log: Log) -> tuple[Stage, list[Feature]]:
    """Recall, and the features of both rankers."""
    channels: list[Stage] = [
        ItemKNN(k=200, depth=60),
        Repeat(k=200),
        Popular(k=100),
        Popular(k=100, days=14),
    ]
    features: list[Feature] = [Upstream(), Popularity(), Own(), Similarity("cooccurrence")]
    if log.has("text"):
        channels.append(VectorRecall("tfidf", k=200))
        features.append(Similarity("tfidf"))
    if log.has("text") and log.has("query"):
        channels.append(BM25Recall(k=200))
        features.append(BM25())
    return Join(channels, k=500), [*features, *([Price()] if log.has("price") else [])]


def with_models(
    log: Log, first: Model = (LightGBMPreRank, {}), last: Sequence[Model] = (TREES,)
) -> Funnel:
    """The funnel around a pre-ranker and a ranker, each a class and its changed fields; several
    rankers are a blend.
    """
    recall, features = parts(log)
    cheap = {"k": 150, "features": features, "sample": Sample(passed=100)}
    full = {"k": 50, "features": [*features, RequestContext()], "sample": Sample(passed=100)}
    rankers: list[Any] = [kind(**(full | changed)) for kind, changed in last]
    rank = rankers[0] if len(rankers) == 1 else Blend(rankers, k=50)
    return recall >> first[0](**cheap, **first[1]) >> rank


def stacked(log: Log) -> Funnel:
    """A network that scores all that the pre-ranker passes on, and trees that read its score, which
    is out of fold like that of every stage before.
    """
    *before, trees = with_models(log).stages
    own: dict[str, Any] = {"loss": "listwise", "k": before[-1].k, "name": "network"}
    network = with_models(log, last=[(DCNRank, own)]).stages[-1]
    return Funnel((*before, network, trees))


def rows(log: Log) -> dict[str, Row]:
    _, features = parts(log)
    teacher = Teacher(
        LightGBMRank(features=[*features, RequestContext()], sample=Sample(passed=100))
    )
    lambdamart = "LightGBM (LambdaMART)"
    first: dict[str, Model] = {
        lambdamart: (LightGBMPreRank, {}),
        "LightGBM (binary)": (LightGBMPreRank, {"objective": "binary"}),
        "two towers": (TwoTowerPreRank, {}),
        "two towers, taught by the ranker": (TwoTowerPreRank, {"teacher": teacher}),
        "COLD": (COLDPreRank, {}),
        "COLD, taught by the ranker": (COLDPreRank, {"teacher": teacher}),
    }
    listwise: dict[str, Any] = {"loss": "listwise"}
    din: Model = (DINRank, listwise | SLOW)
    no_ids = listwise | {"unknown": 1.0}
    last: dict[str, list[Model]] = {
        "LightGBM (binary)": [(LightGBMRank, TREES[1] | {"objective": "binary"})],
        "DIN": [(DINRank, SLOW)],
        "DCN-V2": [(DCNRank, {})],
        "DIN, listwise": [din],
        "DCN-V2, listwise": [(DCNRank, listwise)],
        "DCN-V2, listwise, no ids": [(DCNRank, no_ids)],
        "LightGBM + DCN-V2, listwise, no ids": [TREES, (DCNRank, no_ids)],
        "LightGBM + DIN, listwise": [TREES, din],
        "LightGBM + DCN-V2, listwise": [TREES, (DCNRank, listwise)],
    }
    if log.has("exposures"):
        for use in ("offset", "weight"):
            own = {"position_bias": PositionBias(use)}
            last[f"LightGBM (LambdaMART), positions as {use}"] = [(LightGBMRank, TREES[1] | own)]
            last[f"DCN-V2, listwise, positions as {use}"] = [(DCNRank, listwise | own)]
    if all(log.has(what) for what in ("exposures", "clicks", "purchases")):
        last["ESMM over DIN"] = [(ESMMRank, {})]
    found = {
        f"{name} >> {lambdamart}": Row(with_models(log, model)) for name, model in first.items()
    }
    for name, models in last.items():
        found[f"{lambdamart} >> {name}"] = Row(with_models(log, last=models))
    return found | {f"{lambdamart} >> DCN-V2, listwise >> LightGBM": Row(stacked(log))}
