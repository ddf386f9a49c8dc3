"""KARMA where the paper's broken control probably lived:

    karmafunnel table karma_industrial LOG --out out/industrial

Item vectors are made by the model that is being trained, negatives are what was shown in vain and a few targets of the batch, there are
no ids, nothing is added to the interest, and the data is passed over once or twice. Untuned: one setting for all rows.
"""

from dataclasses import replace

from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import KARMA
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
label = None
against = "action-only, one pass"
embedders: dict[str, Embedder] = {}


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    length = 10 if log.meta["time"] == "order" else 20
    plain = KARMA(length=length, residual=False, items="trained", negatives="batch", ids=False, batch=8, epochs=1, text_words=16)
    found = {
        "action-only, one pass": plain,
        "+gen": replace(plain, gen=0.1),
        "+rec": replace(plain, rec=1.0),
        "+gen+rec": replace(plain, gen=0.1, rec=1.0),
        "+rec, shuffled texts": replace(plain, rec=1.0, shuffled=True),
        "action-only, two passes": replace(plain, epochs=2),
        "+rec, two passes": replace(plain, rec=1.0, epochs=2),
    }
    return {name: {"interest": value} for name, value in found.items()}
