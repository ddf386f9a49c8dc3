"""Which stage gains from which embedding where nothing is learnt about single items:

    karmafunnel table funnel_no_ids LOG --out out/funnel-no-ids

The funnel of funnel_ablation.py without co-occurrence, repeats and counts of one's own, and
embeddings without ids: a catalogue that turns over faster than anybody clicks. Everything is held
against that funnel without an embedding. Needs item texts.
"""

from dataclasses import replace
from itertools import combinations

from karmafunnel.benchmarks.studies.funnel_ablation import PLACES, STAGES, candidates, stages
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models.karma import KARMA
from karmafunnel.simulator.replay.recipe import Row

against = "no embedding"
by_stage = True
measures = ("HR@10", "HR@50", "HR@200", "GMV-HR@10", "GMV-HR@50", "gAUC:request:exposures")
# asked at every stage alone
EVERYWHERE = (
    "KARMA, words",
    "action-only, words",
    "frozen LM",
    "TF-IDF",
    "frozen sentence encoder",
)

grid = {against: ()} | {f"KARMA at {place}": at for place, at in PLACES.items()}
grid |= {f"KARMA at {' and '.join(at)}": at for at in combinations(STAGES, 2)}


def rows(log: Log) -> dict[str, Row]:
    if not log.has("text"):
        raise KarmafunnelError(f"funnel_no_ids: needs item text, log {log.name} has none")
    found, embedding = {against: Row(stages(log, (), ids=False))}, {}
    for name, value in candidates(log).items():
        embedding[name] = replace(value, ids=False) if isinstance(value, KARMA) else value
    for name in ("KARMA", "action-only"):
        for place, at in PLACES.items():
            found[f"{name} at {place}"] = Row(
                stages(log, at, ids=False), {"interest": embedding[name]}
            )
    for at in combinations(STAGES, 2):  # the rest of the grid that the attribution needs
        found[f"KARMA at {' and '.join(at)}"] = Row(
            stages(log, at, ids=False), {"interest": embedding["KARMA"]}
        )
    for name in EVERYWHERE:
        if name not in embedding:  # the encoder, where it was not fetched
            continue
        found[f"{name} at every stage"] = Row(
            stages(log, STAGES, ids=False), {"interest": embedding[name]}
        )
    return found
