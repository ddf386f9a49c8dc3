"""Next item by SASRec alone, over the whole catalogue, items of the history kept. Settings chosen
on W2.
"""

from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.sasrec import SASRec
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("sasrec", k=200)


def embedders(log: Log) -> dict[str, Embedder]:
    large = log.n_items > 10_000
    return {
        "sasrec": SASRec(dropout=0.2, temperature=0.1, batch=256, epochs=5, patience=0)
        if large
        else SASRec()
    }
