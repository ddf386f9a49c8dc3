"""KARMA where the paper's broken control probably lived:

    karmafunnel table karma_industrial LOG --out out/industrial

Item vectors are made by the model that is being trained, negatives are what was shown in vain and a
few targets of the batch, there are no ids, nothing is added to the interest, and the data is passed
over once or twice. Rates and weights are the best of ten trials an objective on W2b
(karma_industrial_trials.py), of Amazon Office where a log has no trials of its own; the rows at
rate 1e-3 show what one rate does to each.
"""

from dataclasses import replace
from typing import Any

from karmafunnel.benchmarks.studies.karma_controls import sentence_encoder
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import KARMA, FrozenLM, InBatch
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "action-only, one pass"


# the best trial of each objective on W2b, equally many: mean of HR@10, HR@50 and HR@200
CHOSEN: dict[str, dict[str, dict[str, Any]]] = {
    "world-amazon_catalog": {
        "action": {"rate": 2e-3, "loss": InBatch(hard_weight=4.0)},
        "gen": {"gen": 0.09, "rate": 1e-3},
        "rec": {"rec": 0.3, "rate": 1e-3},
        "both": {"gen": 0.03, "rec": 0.1, "rate": 1e-3},
    },
    "default": {  # of Amazon Office
        "action": {"rate": 2e-4},
        "gen": {"gen": 0.3, "rate": 3e-4},
        "rec": {"rec": 0.3, "rate": 1e-4},
        "both": {"gen": 0.1, "rec": 0.3, "rate": 3e-4},
    },
}


def base(log: Log) -> KARMA:
    length = 10 if log.meta["time"] == "order" else 20
    return KARMA(
        length=length,
        residual=False,
        items="trained",
        loss=InBatch(),
        ids=False,
        batch=8,
        epochs=1,
        text_words=16,
    )


def settings(log: Log) -> dict[str, dict[str, Any]]:
    return CHOSEN.get(log.whole, CHOSEN["default"])


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    chosen = settings(log)
    plain = base(log)
    action, rec = replace(plain, **chosen["action"]), replace(plain, **chosen["rec"])
    gen, both = replace(plain, **chosen["gen"]), replace(plain, **chosen["both"])
    found: dict[str, Embedder] = {
        "action-only, one pass": action,
        "+gen": gen,
        "+rec": rec,
        "+gen+rec": both,
        "+gen, shuffled texts": replace(gen, shuffled=True),
        "+rec, shuffled texts": replace(rec, shuffled=True),
        "action-only, two passes": replace(action, epochs=2),
        "+gen, two passes": replace(gen, epochs=2),
        "+gen, shuffled texts, two passes": replace(gen, shuffled=True, epochs=2),
        "+rec, two passes": replace(rec, epochs=2),
        "action-only, rate 1e-3": replace(action, rate=1e-3),
        "+gen, rate 1e-3": replace(gen, rate=1e-3),
        "+gen+rec, rate 1e-3": replace(both, rate=1e-3),
        "frozen LM": FrozenLM(),
    }
    found |= sentence_encoder(log)
    if action.loss.hard_weight != 1.0:  # what of it is the weight of what was shown in vain?
        even = replace(action, loss=InBatch())
        found |= {
            "action-only, shown in vain x1": even,
            "action-only, shown in vain x1, two passes": replace(even, epochs=2),
        }
    return {name: {"interest": value} for name, value in found.items()}
