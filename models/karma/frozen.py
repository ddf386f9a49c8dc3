"""Item vectors of a model's text as it was pre-trained, without fine-tuning: what any trained
embedding must be held against.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch

from ...bounds import needs
from ...errors import KarmafunnelError
from ...log import Log
from ..embedders import (
    Embedder,
    Embedding,
    Progress,
    decayed_mean,
    known_in_w1,
    read_saved,
    silent,
    unit_rows,
)
from ..training import part, put_weights
from .backbone import LM, Qwen, TextModel
from .checkpoint import Checkpoint
from .language import LanguageFirst
from .sequences import distinct, request_texts

After = Literal["nothing", "standardise", "whitening", "half-whitening", "autoencoder"]
AFTER = ("nothing", "standardise", "whitening", "half-whitening", "autoencoder")


class FrozenText(Embedder):
    """Vectors of text from a model that is not trained.

    The user embedding is query_weight * (unit vector of query and filters) + history_weight * (unit
    decayed mean of the history's items).
    """

    after: After
    dim: int
    text_words: int
    query_words: int
    query_weight: float
    history_weight: float
    length: int
    decay: float

    def __post_init__(self) -> None:
        who = type(self).__name__
        if self.after not in AFTER:
            raise KarmafunnelError(
                who, what="after", needs=f"one of {AFTER}", found=repr(self.after)
            )
        needs(
            self,
            "dim",
            "text_words",
            "query_words",
            "length",
            "decay",
            "query_weight",
            "history_weight",
        )

    @abstractmethod
    def ready(self, log: Log, cache: Path | None, progress: Progress, device: str) -> TextModel:
        """The model, pre-trained or opened."""

    @abstractmethod
    def rebuild(self, description: Any, who: str) -> TextModel:
        """A model of that description, its weights still to be loaded."""

    def fit(
        self,
        log: Log,
        seed: int = 0,
        progress: Progress = silent,
        device: str = "cpu",
        cache: Path | None = None,
    ) -> TextEmbedding:
        """Raises KarmafunnelError where no item has text."""
        model = self.ready(log, cache, progress, device)
        model.must_hold(max(self.text_words, self.query_words) + model.marks, repr(self))
        texts = log.item_text()
        if not any(text.strip() for text in texts):
            raise KarmafunnelError(f"{self!r}", needs="item text", found=f"none in log {log.name}")
        progress(f"{type(self).__name__}: reading the texts of {len(texts)} items")
        raw = model.vectors(texts, self.text_words)
        there = np.any(raw != 0, axis=1)
        known = raw[there & known_in_w1(log)].astype(np.float64)
        shift, turn = directions(known, self.after, self.dim)
        if not turn.shape[1]:
            raise KarmafunnelError(
                f"{self!r}",
                needs=f"item texts that differ in W1, for {self.after}",
                found=f"the same in all of log {log.name}",
            )
        facts = {"backbone": model.facts}
        items = turned(raw, shift, turn)
        return TextEmbedding(self, self, log, model, items, shift, turn, facts)

    def load(self, folder: Path | str, log: Log) -> TextEmbedding:
        tensors, description = read_saved(self, folder, log, "items", "shift", "turn")
        model = self.model_of(tensors, description, folder)
        items, shift, turn = (tensors[name] for name in ("items", "shift", "turn"))
        return TextEmbedding(self, self, log, model, items, shift, turn, description["facts"])

    def model_of(
        self, tensors: dict[str, np.ndarray], description: dict[str, Any], folder: Path | str
    ) -> TextModel:
        """The model of a saved embedding."""
        model = self.rebuild(description["extras"].get("lm"), f"{folder}/embedding.json: lm")
        weights = {name: torch.from_numpy(x) for name, x in part(tensors, "model").items()}
        put_weights(model.model, weights, str(folder))
        return model


def directions(x: np.ndarray, after: After, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """What is taken from a vector (d,) and the map (d, at most dim) that is then applied, learnt
    from the rows of x.
    """
    if after == "nothing" or len(x) < 2:
        return np.zeros(x.shape[1]), np.eye(x.shape[1])
    mean = x.mean(axis=0)
    if after == "standardise":
        return mean, np.diag(1 / np.maximum(x.std(axis=0), 1e-6))
    _, s, vt = np.linalg.svd(x - mean, full_matrices=False)
    keep = min(dim, int((s > 1e-6 * s[0]).sum()))
    power = {"autoencoder": 0.0, "half-whitening": 0.5, "whitening": 1.0}[after]
    return mean, vt[:keep].T / (s[:keep] / math.sqrt(len(x))) ** power


def turned(raw: np.ndarray, shift: np.ndarray, turn: np.ndarray, unit: bool = True) -> np.ndarray:
    """Text vectors (n, d) less `shift`, through `turn`, at length 1 where `unit`: float32, zeros
    stay zeros.

    The product is of float64, so that its last bits, in which a row alone and among others may
    differ, are rounded away.
    """
    there = np.any(raw != 0, axis=1)[:, None]
    found = (raw.astype(np.float64) - shift) @ turn
    return ((unit_rows(found) if unit else found) * there).astype(np.float32)


class TextEmbedding(Embedding):
    """A fitted `FrozenText`, or what was tuned from one: a model of text, a map, and weights by
    which a request's query and history are put together. `config`: how texts are read, and those
    weights; `unit`: whether vectors have length 1.
    """

    asks = ("query", "filters")
    online = True

    def __init__(
        self,
        value: Embedder,
        config: FrozenText,
        log: Log,
        model: TextModel,
        items: np.ndarray,
        shift: np.ndarray,
        turn: np.ndarray,
        facts: dict[str, Any],
        unit: bool = True,
    ):
        super().__init__(value, log, facts)
        self.config, self.model, self._items = config, model, items
        self.shift, self.turn, self.unit = shift, turn, unit

    def items(self) -> np.ndarray:
        return self._items

    def interests(self, requests: np.ndarray) -> np.ndarray:
        config = self.config
        past = decayed_mean(self.log, requests, self._items, config.length, config.decay)
        if self.unit:
            past = unit_rows(past)
        found = config.query_weight * self.queries(requests) + config.history_weight * past
        return unit_rows(found) if self.unit else found.astype(np.float32)

    def queries(self, requests: np.ndarray) -> np.ndarray:
        asked, inverse = distinct(request_texts(self.log, requests))
        return self.embed(asked)[inverse].reshape(len(requests), self._items.shape[1])

    def embed(self, texts: list[str]) -> np.ndarray:
        """Vectors of queries, float32 (n, d); zeros for an empty text."""
        raw = self.model.vectors(texts, self.config.query_words)
        return turned(raw, self.shift, self.turn, self.unit)

    def of(self, log: Log) -> Self:
        """The items and requests of another log through the same model and map."""
        raw = self.model.vectors(log.item_text(), self.config.text_words)
        found = copy(self)
        found.log, found._items = log, turned(raw, self.shift, self.turn, self.unit)
        return found

    def tensors(self) -> dict[str, np.ndarray]:
        state = self.model.model.state_dict()
        weights = {f"model.{k}": v.float().cpu().numpy() for k, v in state.items()}
        return {"items": self._items, "shift": self.shift, "turn": self.turn} | weights

    def extras(self) -> dict[str, Any]:
        return {"lm": self.model.describe()}


@dataclass(frozen=True, repr=False)
class FrozenLM(FrozenText):
    """A control [O]: the backbone as it was pre-trained, with mean hidden states as text vectors.

    The user embedding is query_weight * (unit vector of query and filters) + history_weight * (unit
    decayed mean of the history's items).

    Args:
        after: what is done to the vectors, fitted on the items known in W1. "standardise": mean 0
            and deviation 1 in each dimension; "whitening": PCA whitening, "half-whitening": divided
            by the root of that; "autoencoder": the linear autoencoder with `dim` hidden units,
            whose optimum is PCA (Baldi & Hornik 1989).
        dim: directions that whitening and "autoencoder" keep, at most the model's width.
    """

    backbone: Qwen | Checkpoint | LanguageFirst = Qwen()  # noqa: RUF009
    after: After = "nothing"
    dim: int = 64
    text_words: int = 24
    query_words: int = 16
    query_weight: float = 1.0
    history_weight: float = 1.0
    length: int = 20
    decay: float = 0.8

    def ready(self, log: Log, cache: Path | None, progress: Progress, device: str) -> LM:
        return self.backbone.ready(log, cache, progress, device)

    def rebuild(self, description: Any, who: str) -> LM:
        return LM.rebuild(description, who)
