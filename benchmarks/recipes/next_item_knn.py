"""Next item by item-kNN alone: cosine of co-occurrence within users, the newest of the history weighing most."""

from karmafunnel.models.embedders import Embedder
from karmafunnel.stages.recall import ItemKNN

label = None
embedders: dict[str, Embedder] = {}
funnel = ItemKNN(k=200)
