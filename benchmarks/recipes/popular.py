"""The floor of every table: what was clicked or bought most before the request."""

from karmafunnel.models.embedders import Embedder
from karmafunnel.stages.recall import Popular

label = None
embedders: dict[str, Embedder] = {}
funnel = Popular(k=200)
