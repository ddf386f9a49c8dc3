"""Tuning of KARMA and of every control that has settings, as many trials for each, to be asked on
W2b:

    karmafunnel table karma_trials LOG --window W2b --seed 0 --out out/trials

The best mean of HR@10, HR@50 and HR@200 is written into karma_controls.py. Eight trials a row:
rates and weights; then, around what is chosen, a small weight (a high rate for action-only), the
same without what a fit starts from (ids from co-occurrence, interests from the mean of the
history), and two weights of what was shown in vain (where the log shows; elsewhere there are six).
"""

from dataclasses import replace
from typing import Any

from karmafunnel.benchmarks.studies.karma_controls import base, settings
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder, TfidfSVD
from karmafunnel.models.karma import FrozenLM, Softmax
from karmafunnel.models.sasrec import SASRec
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "action-only, rate 1e-3, 6 epochs"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target")
seeds = (0,)

SLOW: dict[str, Any] = {"rate": 1e-3, "epochs": 6}
FAST: dict[str, Any] = {"rate": 2e-3, "epochs": 6}
NAMES = {"action": "action-only", "rec": "+rec", "gen": "+gen", "both": "+gen+rec"}
SMALL: dict[str, dict[str, Any]] = {
    "action": {"rate": 3e-3},
    "rec": {"rec": 0.1},
    "gen": {"gen": 0.03},
    "both": {"gen": 0.03, "rec": 0.1},
}
SASRECS = (
    (0.4, 0.15, 2e-3),
    (0.2, 0.15, 2e-3),
    (0.4, 0.1, 2e-3),
    (0.2, 0.1, 2e-3),
    (0.5, 0.15, 2e-3),
    (0.4, 0.15, 1e-3),
    (0.4, 0.07, 2e-3),
)


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
    for name, small in SMALL.items():
        chosen, what = replace(plain, **settings(log)[name]), NAMES[name]
        out[
            f"{what}, as chosen, {' '.join(f'{key} {value:g}' for key, value in small.items())}"
        ] = replace(chosen, **small)
        out[f"{what}, as chosen, nothing to start from"] = replace(
            chosen, residual=False, warm=False
        )
        if log.has("exposures"):
            for heavy in (4.0, 16.0):
                out[f"{what}, as chosen, shown in vain x{heavy:g}"] = replace(
                    chosen, loss=Softmax(hard_weight=heavy)
                )
    found: dict[str, Embedder] = dict(out)
    for dropout, temperature, rate in SASRECS:
        found[f"SASRec, dropout {dropout}, temperature {temperature}, rate {rate}"] = SASRec(
            dropout=dropout, temperature=temperature, rate=rate
        )
    found["SASRec, dim 128"] = SASRec(dim=128)
    # how far an interest by rule looks back; without queries the history is all of it, at any
    # weight
    looks: dict[str, list[float]] = (
        {"history_weight": [0.25, 0.5, 1.0, 2.0]}
        if log.has("query")
        else {"decay": [0.5, 0.8, 0.95, 1.0]}
    )
    for knob, values in looks.items():
        for x in values:
            at: dict[str, Any] = {knob: x}
            for after in ("nothing", "whitening"):
                found[f"frozen LM, {after}, {knob} {x:g}"] = replace(FrozenLM(after=after), **at)
            for dim in (64, 128):
                found[f"TF-IDF, dim {dim}, {knob} {x:g}"] = replace(TfidfSVD(dim=dim), **at)
    return {name: {"interest": value} for name, value in found.items()}
