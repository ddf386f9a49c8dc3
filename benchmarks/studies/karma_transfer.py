"""KARMA trained on one catalogue and asked on another, whose items and users it never saw: does a
language objective keep more that is general?

    karmafunnel table karma_transfer logs/amazon_games --out out/transfer-to-games
    karmafunnel table karma_transfer logs/amazon_office --out out/transfer-to-office

The other log lies beside the one that is asked: Games beside Office, Office beside any other. One
language model has read the texts of both catalogues before any action, as a large one would have;
the frozen rows are that model; a sentence encoder stands beside it, as published and with its last
layers trained. Settings and rates are those of karma_order.py, chosen on Office's W2b; nothing was
chosen for transfer. "trained here" is the same training on the log that is asked.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from karmafunnel.benchmarks.studies import karma_encoders, karma_order
from karmafunnel.benchmarks.studies.karma_controls import sentence_encoder
from karmafunnel.benchmarks.studies.karma_order import BOTH, CHOSEN, LOSSES, RATE
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder, RandomVectors, TfidfSVD
from karmafunnel.models.karma import FrozenLM, Qwen, Transfer
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "frozen LM, whitening"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target")
seeds = (0, 1)

OTHER = {"amazon_office": "amazon_games", "amazon_games": "amazon_office"}
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "action-only": ("action-only", {}),
    "+gen+rec": ("both at once", BOTH),
    "+gen+rec, shuffled texts": ("both at once", {**BOTH, "shuffled": True}),
}


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    beside = log.path.parent if log.path else Path("logs")
    there = str(beside / OTHER.get(log.whole, "amazon_office"))
    model = Qwen(catalogues=tuple(sorted({str(log.path or there), there})))
    found: dict[str, Embedder] = {}
    for loss, value in LOSSES.items():
        for name, (order, settings) in OBJECTIVES.items():
            rate = CHOSEN.get(f"{loss}: {order}", RATE)
            karma = replace(
                karma_order.base(log), backbone=model, loss=value, rate=rate, **settings
            )
            found[f"{loss}: {name}"] = Transfer(karma, there)
            if not settings:
                found[f"{loss}: {name}, trained here"] = karma
    found |= {
        "frozen LM": FrozenLM(backbone=model),
        "frozen LM, whitening": FrozenLM(backbone=model, after="whitening"),
        "TF-IDF": TfidfSVD(dim=128),
        "random": RandomVectors(),
    }
    if encoder := sentence_encoder(log):
        tuned = karma_encoders.tuned(log)["in-batch softmax"]
        found |= encoder | {
            "tuned sentence encoder": Transfer(tuned, there),
            "tuned sentence encoder, trained here": tuned,
        }
    return {name: {"interest": value} for name, value in found.items()}
