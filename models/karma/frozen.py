"""The frozen control: KARMA's backbone as it was pre-trained, an Embedder without fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from .backbone import LM, Checkpoint, Qwen, pooled
from .language import LanguageFirst
from .train import distinct, request_texts


@dataclass(frozen=True, repr=False)
class FrozenLM(Embedder):
    """A control [O]: the backbone as it was pre-trained, with mean hidden states as text vectors.

    The user embedding is query_weight * (unit vector of query and filters) + history_weight * (unit
    decayed mean of the history's items).

    Args:
        after: what is done to the vectors, fitted on the items known in W1. "standardise": mean 0
            and deviation 1 in each dimension; "whitening": PCA whitening; "autoencoder": the linear
            autoencoder with `dim` hidden units, whose optimum is PCA (Baldi & Hornik 1989).
        dim: directions that "whitening" and "autoencoder" keep, at most the model's width.
    """

    backbone: Qwen | Checkpoint | LanguageFirst = Qwen()  # noqa: RUF009
    after: Literal["nothing", "standardise", "whitening", "autoencoder"] = "nothing"
    dim: int = 64
    text_words: int = 24
    query_words: int = 16
    query_weight: float = 1.0
    history_weight: float = 1.0
    length: int = 20
    decay: float = 0.8

    def __post_init__(self) -> None:
        allowed = ("nothing", "standardise", "whitening", "autoencoder")
        if self.after not in allowed:
            raise KarmafunnelError(
                "FrozenLM", what="after", needs=f"one of {allowed}", found=repr(self.after)
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

    def fit(
        self,
        log: Log,
        seed: int = 0,
        progress: Progress = silent,
        device: str = "cpu",
        cache: Path | None = None,
    ) -> FrozenLMEmbedding:
        """Raises KarmafunnelError where no item has text."""
        lm = self.backbone.ready(log, cache, progress, device)
        lm.must_hold(max(self.text_words, self.query_words) + 1, repr(self))
        texts = log.item_text()
        if not any(text.strip() for text in texts):
            raise KarmafunnelError(f"{self!r}", needs="item text", found=f"none in log {log.name}")
        progress(f"FrozenLM: reading the texts of {len(texts)} items")
        raw = pooled(lm, texts, self.text_words, 256)
        there = np.any(raw != 0, axis=1)
        shift, turn = self.directions(raw[there & known_in_w1(log)].astype(np.float64))
        items = unit_rows((raw - shift) @ turn) * there[:, None]
        return FrozenLMEmbedding(
            self, log, lm, items.astype(np.float32), shift, turn, {"backbone": lm.facts}
        )

    def directions(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is taken from a vector (d,) and the map that is then applied (d, dim), learnt from
        the rows of x.
        """
        if self.after == "nothing" or len(x) < 2:
            return np.zeros(x.shape[1]), np.eye(x.shape[1])
        mean = x.mean(axis=0)
        if self.after == "standardise":
            return mean, np.diag(1 / np.maximum(x.std(axis=0), 1e-6))
        _, s, vt = np.linalg.svd(x - mean, full_matrices=False)
        keep = min(self.dim, int((s > 1e-6 * s[0]).sum()))
        turn = vt[:keep].T
        return mean, turn / (s[:keep] / math.sqrt(len(x))) if self.after == "whitening" else turn

    def load(self, folder: Path | str, log: Log) -> FrozenLMEmbedding:
        tensors, description = read_saved(self, folder, log, "items", "shift", "turn")
        lm = LM.rebuild(description["extras"].get("lm"), f"{folder}/embedding.json: lm")
        weights = {name: torch.from_numpy(x) for name, x in part(tensors, "model").items()}
        put_weights(lm.model, weights, str(folder))
        return FrozenLMEmbedding(
            self, log, lm, tensors["items"], tensors["shift"], tensors["turn"], description["facts"]
        )


class FrozenLMEmbedding(Embedding):
    asks = ("query", "filters")
    online = True

    def __init__(
        self,
        value: FrozenLM,
        log: Log,
        lm: LM,
        items: np.ndarray,
        shift: np.ndarray,
        turn: np.ndarray,
        facts: dict[str, Any],
    ):
        super().__init__(value, log, facts)
        self.config, self.lm, self._items, self.shift, self.turn = value, lm, items, shift, turn

    def items(self) -> np.ndarray:
        return self._items

    def interests(self, requests: np.ndarray) -> np.ndarray:
        config = self.config
        past = unit_rows(decayed_mean(self.log, requests, self._items, config.length, config.decay))
        return unit_rows(
            config.query_weight * self.queries(requests) + config.history_weight * past
        )

    def queries(self, requests: np.ndarray) -> np.ndarray:
        asked, inverse = distinct(request_texts(self.log, requests))
        raw = pooled(self.lm, asked, self.config.query_words, 256)
        there = np.any(raw != 0, axis=1)
        text = unit_rows((raw - self.shift) @ self.turn) * there[:, None]
        return text[inverse].reshape(len(requests), self._items.shape[1])

    def tensors(self) -> dict[str, np.ndarray]:
        state = {
            f"model.{k}": v.float().cpu().numpy() for k, v in self.lm.model.state_dict().items()
        }
        return {"items": self._items, "shift": self.shift, "turn": self.turn} | state

    def extras(self) -> dict[str, Any]:
        return {"lm": self.lm.describe()}
