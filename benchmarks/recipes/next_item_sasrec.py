"""Next item by SASRec alone, over the whole catalogue, items of the history kept."""

from karmafunnel.models.embedders import Embedder
from karmafunnel.models.sasrec import SASRec
from karmafunnel.stages.recall import VectorRecall

label = None
embedders: dict[str, Embedder] = {"sasrec": SASRec()}
funnel = VectorRecall("sasrec", k=200)
