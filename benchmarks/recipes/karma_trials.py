"""Tuning of KARMA and its action-only control, five trials an objective, to be asked on W2b:

    karmafunnel table karma_trials LOG --window W2b --seed 0 --out out/trials

The best mean of HR@10, HR@50 and HR@200 is written into karma_controls.py. The fifth trial of each objective is the setting chosen
there without what a fit starts from: ids from co-occurrence, interests from the mean of the history.
"""

from dataclasses import replace
from typing import Any

from karmafunnel.benchmarks.recipes.karma_controls import base, settings
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import KARMA
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
embedders: dict[str, Embedder] = {"interest": KARMA()}
label = None
against = "action-only, rate 1e-3, 6 epochs"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target")
seeds = (0,)

SLOW: dict[str, Any] = {"rate": 1e-3, "epochs": 6}
FAST: dict[str, Any] = {"rate": 2e-3, "epochs": 6}


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    plain = base(log)
    out = {
        "action-only, rate 1e-3, 6 epochs": replace(plain, **SLOW),
        "action-only, rate 2e-3, 6 epochs": replace(plain, **FAST),
        "action-only, rate 2e-3, 4 epochs": replace(plain, **FAST | {"epochs": 4}),
        "action-only, rate 1e-3, 6 epochs, dropout 0.3": replace(plain, **SLOW, dropout=0.3),
    }
    for weight in (0.3, 1.0):
        for name, setting in (("1e-3", SLOW), ("2e-3", FAST)):
            tail = f"{weight:g}, rate {name}"
            out[f"+rec {tail}"] = replace(plain, **setting, rec=weight)
            out[f"+gen {0.3 * weight:g}, rate {name}"] = replace(plain, **setting, gen=0.3 * weight)
            out[f"+gen+rec {tail}"] = replace(plain, **setting, gen=0.1, rec=weight)
    for name, objective in (("action-only", "action"), ("+rec", "rec"), ("+gen", "gen"), ("+gen+rec", "both")):
        out[f"{name}, as chosen, nothing to start from"] = replace(plain, **settings(log)[objective], residual=False, warm=False)
    return {name: {"interest": value} for name, value in out.items()}
