"""Rates of the rows of karma_encoders.py, four for each loss, to be asked on W2b:

karmafunnel table karma_encoders_trials LOG --window W2b --seed 0 --out out/encoders-trials
"""

from dataclasses import replace

from karmafunnel.benchmarks.studies import karma_encoders
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "frozen"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target")
seeds = (0,)
RATES = ("3e-5", "1e-4", "3e-4", "1e-3")


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    found: dict[str, dict[str, Embedder]] = {}
    for name, value in karma_encoders.tuned(log).items():
        found["frozen"] = {"interest": value.encoder}
        for rate in RATES:
            found[f"{name}, rate {rate}"] = {"interest": replace(value, rate=float(rate))}
    return found
