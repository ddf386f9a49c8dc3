"""Does training the stages together beat each stage alone, and by how much at each cut?

    karmafunnel table joint_training LOG --out out/joint_training

Two towers before DIN on the candidates of one recall. All rows but the last two learn from the same
lists in at most the same number of steps and read recall alone, so that they differ in their loss:

- "each alone": every stage by its own loss, with its own best epoch.
- "graded, each alone": the pairs of FS-LTR with what the log shows as the only grade beside
  relevance; no stage hears of another but by the common stop, so what FS-LTR adds to it is of the
  cascade.
- FS-LTR, ARF, LCRON, RankFlow: `stages/joint.py`.
- "as usual": the same networks behind one another, each on what the one before passes on, the
  ranker reading the pre-ranker out of fold.
- "trees, as usual": LightGBM at both stages, for the absolute level.

The settings of each loss were chosen on W2b of generated Worlds (LOG.md).
"""

from __future__ import annotations

from typing import Any, Literal

from karmafunnel.benchmarks.studies.stage_models import embedders as embedders
from karmafunnel.benchmarks.studies.stage_models import parts
from karmafunnel.log import Log
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.stages.features import RequestContext
from karmafunnel.stages.joint import ARF, FSLTR, LCRON, CascadeLoss, RankFlow, Separate
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank, TwoTowerPreRank
from karmafunnel.stages.rank import DINRank, LightGBMRank
from karmafunnel.stages.stage import Funnel

against = "each alone"
by_stage = True
measures = ("survival", "HR@10", "HR@50", "Recall@50", "GMV-HR@10")
SAMPLE = Sample(passed=100)
EPOCHS = 20
Own = Literal["bce", "listwise"]  # what a network learns by alone
# by row: rate and own loss of both networks, and the loss over both
JOINT: dict[str, tuple[float, Own, CascadeLoss]] = {
    against: (2e-3, "bce", Separate()),
    "graded, each alone": (2e-3, "listwise", FSLTR(labels="shown")),
    "FS-LTR": (2e-3, "listwise", FSLTR()),
    "ARF": (5e-3, "listwise", ARF()),
    "LCRON": (5e-3, "listwise", LCRON()),
    "RankFlow": (2e-3, "listwise", RankFlow(share=0.0)),
}


def networks(log: Log, rate: float, own: Own) -> Funnel:
    """Recall, two towers and DIN."""
    recall, features = parts(log)
    learns: dict[str, Any] = {"sample": SAMPLE, "rate": rate, "epochs": EPOCHS, "loss": own}
    first = TwoTowerPreRank(k=150, features=features, **learns)
    return recall >> first >> DINRank(k=50, features=[*features, RequestContext()], **learns)


def trees(log: Log) -> Funnel:
    """The same funnel with LightGBM at both stages."""
    recall, features = parts(log)
    first = LightGBMPreRank(k=150, features=features, sample=SAMPLE)
    last = LightGBMRank(k=50, features=[*features, RequestContext()], sample=SAMPLE)
    return recall >> first >> last


def funnel(log: Log) -> Funnel:
    rate, own, loss = JOINT[against]
    return networks(log, rate, own).jointly(loss)


def rows(log: Log) -> dict[str, Row]:
    found = {}
    for name, (rate, own, loss) in JOINT.items():
        found[name] = Row(networks(log, rate, own).jointly(loss))
    rate, own, _ = JOINT[against]
    return found | {
        "as usual": Row(networks(log, rate, own)),
        "trees, as usual": Row(trees(log)),
    }
