"""Tuning of the atlas, four trials for each loss and objective, to be asked on W2b:

    karmafunnel table karma_atlas_trials LOG --window W2b --out out/atlas-trials

Four rates without a language objective; two rates and two weights with one. The best mean of HR@10,
HR@50 and HR@200 is written into karma_atlas.py.
"""

from dataclasses import replace

from karmafunnel.benchmarks.studies.karma_atlas import LOSSES, OBJECTIVES, base
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import Softmax
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "catalogue softmax, action-only, rate 0.001"
measures = ("HR@10", "HR@50", "HR@200")
seeds = (0,)

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
# frozen item texts bear higher rates; a log with fewer steps a pass than Office's 100 needs them
HIGHER = (3e-4, 1e-3, 2e-3, 4e-3)
FEW_STEPS = (3e-4, 1e-3, 3e-3, 1e-2)
WEIGHTS = (0.1, 0.3)


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    found = {}
    for loss in LOSSES:
        plain = base(log, loss)
        rates = HIGHER if isinstance(plain.loss, Softmax) else RATES
        if log.whole != "amazon_office":
            rates = FEW_STEPS
        for rate in rates:
            found[f"{loss}, action-only, rate {rate:g}"] = replace(plain, rate=rate)
        for objective, (gen, rec) in OBJECTIVES.items():
            for rate in rates[1:3]:
                for weight in WEIGHTS:
                    row = f"{loss}, {objective} {weight:g}, rate {rate:g}"
                    found[row] = replace(plain, rate=rate, gen=gen * weight, rec=rec * weight)
    return {name: {"interest": value} for name, value in found.items()}
