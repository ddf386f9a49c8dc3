"""KARMA where the paper's broken control probably lived:

    karmafunnel table karma_industrial LOG --out out/industrial

Item vectors are made by the model that is being trained, negatives are what was shown in vain and a few targets of the batch, there are
no ids, nothing is added to the interest, and the data is passed over once or twice.
Untuned so far: one setting for all rows; karma_industrial_trials.py asks for better ones.
"""

from dataclasses import replace
from typing import Any

from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import KARMA, FrozenLM
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
label = None
against = "action-only, one pass"
embedders: dict[str, Embedder] = {}


CHOSEN: dict[str, dict[str, Any]] = {
    "action": {}, "gen": {"gen": 0.1}, "rec": {"rec": 1.0}, "both": {"gen": 0.1, "rec": 1.0},
}  # fmt: skip


def base(log: Log) -> KARMA:
    length = 10 if log.meta["time"] == "order" else 20
    return KARMA(length=length, residual=False, items="trained", negatives="batch", ids=False, batch=8, epochs=1, text_words=16)


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    action, gen, rec, both = (replace(base(log), **CHOSEN[name]) for name in ("action", "gen", "rec", "both"))
    found: dict[str, Embedder] = {
        "action-only, one pass": action,
        "+gen": gen,
        "+rec": rec,
        "+gen+rec": both,
        "+rec, shuffled texts": replace(rec, shuffled=True),
        "action-only, two passes": replace(action, epochs=2),
        "+gen, two passes": replace(gen, epochs=2),
        "+rec, two passes": replace(rec, epochs=2),
        "frozen LM": FrozenLM(),
    }
    return {name: {"interest": value} for name, value in found.items()}
