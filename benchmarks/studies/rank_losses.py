"""What the vectors of each action loss are worth to a ranker:

    karmafunnel table rank_losses LOG --out out/rank-losses

The funnel of funnel_ablation.py with an embedding at its ranker alone: KARMA under each loss of the
atlas, with its settings, alone, with both objectives, and with the texts of other items; then what
a user would take instead. Recall and pre-ranking are the same in every row. gAUC needs shown lists.
"""

from karmafunnel.benchmarks.studies import karma_atlas
from karmafunnel.benchmarks.studies.funnel_ablation import embedders, stages  # noqa: F401
from karmafunnel.log import Log
from karmafunnel.models.karma import KARMA
from karmafunnel.simulator.replay.recipe import Row

against = "no embedding"
measures = ("HR@10", "HR@50", "GMV-HR@10", "gAUC:request:exposures")
ASKED = ("action-only", "+gen+rec", "+gen+rec, shuffled texts")


def rows(log: Log) -> dict[str, Row]:
    found = {against: Row(stages(log, ()))}
    for name, value in karma_atlas.values(log).items():
        if not isinstance(value, KARMA) or name.partition(", ")[2] in ASKED:
            found[name] = Row(stages(log, ("rank",)), {"interest": value})
    return found
