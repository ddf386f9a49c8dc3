"""Rates of the rows of karma_order.py, three for each, to be asked on W2b:

    karmafunnel table karma_order_trials LOG --window W2b --seed 0 --out out/order-trials

Low-rank updates are tried at rates five times as high, as they are used.
"""

from dataclasses import replace

from karmafunnel.benchmarks.studies import karma_order
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "in-batch: action-only, rate 0.0002"
measures = ("HR@10", "HR@50", "HR@200")
seeds = (0,)
RATES = (1e-4, 2e-4, 6e-4)


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    found: dict[str, dict[str, Embedder]] = {}
    for name, value in karma_order.trained(log).items():
        for rate in RATES:
            own = 5 * rate if name.endswith("LoRA") else rate
            found[f"{name}, rate {own:g}"] = {"interest": replace(value, rate=own)}
    return found
