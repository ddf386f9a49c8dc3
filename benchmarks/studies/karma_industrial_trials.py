"""Tuning of the industrial regime, as many trials for each objective, to be asked on W2b:

    karmafunnel table karma_industrial_trials LOG --window W2b --seed 0 --out out/industrial-trials

Four rates and three weights for each objective of KARMA, seven rates and a sharper temperature for
the control; then, around what is chosen, two weights of what was shown in vain (where the log
shows). The best mean of HR@10, HR@50 and HR@200 is to be written into karma_industrial.py.
"""

from dataclasses import replace

from karmafunnel.benchmarks.studies.karma_industrial import base, settings
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import InBatch
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "action-only, rate 1e-3"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target")
seeds = (0,)

RATES = ("3e-5", "1e-4", "2e-4", "3e-4", "1e-3", "2e-3", "4e-3")
RATES_OF_WEIGHT = {
    0.3: ("1e-4", "3e-4", "1e-3", "2e-3"),
    1.0: ("1e-4", "3e-4", "1e-3"),
    0.1: ("1e-3",),
}
NAMES = {"action": "action-only", "gen": "+gen", "rec": "+rec", "both": "+gen+rec"}


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    plain = base(log)
    found = {f"action-only, rate {name}": replace(plain, rate=float(name)) for name in RATES}
    found["action-only, rate 2e-3, temperature 0.05"] = replace(
        plain, rate=2e-3, loss=InBatch(temperature=0.05)
    )
    for weight, names in RATES_OF_WEIGHT.items():
        for name in names:
            at = replace(plain, rate=float(name))
            found[f"+gen {0.3 * weight:g}, rate {name}"] = replace(at, gen=0.3 * weight)
            found[f"+rec {weight:g}, rate {name}"] = replace(at, rec=weight)
            found[f"+gen+rec {weight:g}, rate {name}"] = replace(
                at, gen=0.1 if weight > 0.1 else 0.03, rec=weight
            )
    if log.has("exposures"):
        for heavy in (4.0, 16.0):
            for name, setting in settings(log).items():
                found[f"{NAMES[name]}, as chosen, shown in vain x{heavy:g}"] = replace(
                    plain, **setting | {"loss": InBatch(hard_weight=heavy)}
                )
    return {name: {"interest": value} for name, value in found.items()}
