"""Tuning of the industrial regime, six trials an objective, to be asked on W2b:

    karmafunnel table karma_industrial_trials LOG --window W2b --seed 0 --out out/industrial-trials

Three rates and two weights for each objective of KARMA, six rates for the control. The best mean of HR@10, HR@50 and HR@200 is to be written
into karma_industrial.py. Is the collapse of the control a rate that is too high? This is where it would show.
"""

from dataclasses import replace

from karmafunnel.benchmarks.recipes.karma_industrial import base
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
embedders: dict[str, Embedder] = {}
label = None
against = "action-only, rate 1e-3"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target")
seeds = (0,)


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    plain = base(log)
    found = {f"action-only, rate {name}": replace(plain, rate=float(name)) for name in ("3e-5", "1e-4", "2e-4", "3e-4", "1e-3", "2e-3")}
    for weight in (0.3, 1.0):
        for name in ("1e-4", "3e-4", "1e-3"):
            at = replace(plain, rate=float(name))
            found[f"+gen {0.3 * weight:g}, rate {name}"] = replace(at, gen=0.3 * weight)
            found[f"+rec {weight:g}, rate {name}"] = replace(at, rec=weight)
            found[f"+gen+rec {weight:g}, rate {name}"] = replace(at, gen=0.1, rec=weight)
    return {name: {"interest": value} for name, value in found.items()}
