"""What click models share: the shape of their inputs, embeddings of ids and numbers, layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batch import FIRST, PADDING, UNKNOWN, Batch
from .losses import click_loss


@dataclass(frozen=True)
class Shape:
    """Sizes that a model is built for; part of what is saved."""

    n_items: int
    n_dense: int
    n_request: int = 0
    n_categories: int = 0
    n_vector: int = 0


class Inputs(nn.Module):
    """Ids and numbers to vectors.

    An item that was never a positive in training stands for UNKNOWN as a candidate (its id would be
    a negative by construction), one never in a history for UNKNOWN there; UNKNOWN is learnt by
    dropping a share of ids at random, 1 for a model without ids. Numbers are standardised, NaN
    becomes the mean.
    """

    is_candidate: Tensor
    is_history: Tensor
    category_of: Tensor

    def __init__(self, shape: Shape, dim: int, unknown: float, category: np.ndarray | None):
        super().__init__()
        self.unknown = unknown
        self.id = nn.Embedding(shape.n_items + FIRST, dim, padding_idx=PADDING)
        self.category = (
            nn.Embedding(shape.n_categories + 1, dim, padding_idx=0) if shape.n_categories else None
        )
        # with less, few clicks do not get the product of two ids off the ground
        nn.init.normal_(self.id.weight, std=0.2)
        if self.category is not None:
            nn.init.normal_(self.category.weight, std=0.2)
        with torch.no_grad():
            for table in (self.id, self.category):
                if table is not None:
                    table.weight[0] = 0
        # 0: none; the last entry answers for padding
        of_item = np.zeros(shape.n_items + 1, dtype=np.int64)
        if category is not None:
            of_item[:-1] = np.asarray(category) + 1
        self.register_buffer("category_of", torch.from_numpy(of_item))
        self.register_buffer("is_candidate", torch.zeros(shape.n_items + 1, dtype=torch.bool))
        self.register_buffer("is_history", torch.zeros(shape.n_items + 1, dtype=torch.bool))
        for name, width in (("dense", shape.n_dense), ("request", shape.n_request)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_scale", torch.ones(width))

    @property
    def width(self) -> int:
        return self.id.embedding_dim * (1 if self.category is None else 2)

    def observe(self, batches: Sequence[Batch]) -> None:
        """Take means, deviations and the known ids from the training data."""
        candidate, history = self.is_candidate.zero_(), self.is_history.zero_()
        sums: dict[str, Any] = {"dense": 0.0, "request": 0.0}
        for batch in batches:
            used = np.asarray(batch.weight) > 0
            if self.unknown < 1:
                positive = np.asarray(batch.items)[used & (np.asarray(batch.label) > 0)]
                candidate[torch.from_numpy(positive).long()] = True
                seen = np.asarray(batch.history)
                history[torch.from_numpy(seen[seen >= 0]).long()] = True
            for name, x in (("dense", np.asarray(batch.dense)[used]), ("request", batch.request)):
                if x is not None and len(x):
                    x = np.asarray(x, dtype=np.float64)
                    there = np.isfinite(x)
                    x = np.where(there, x, 0)
                    own = [there.sum(axis=0), x.sum(axis=0), (x**2).sum(axis=0)]
                    sums[name] = sums[name] + np.stack(own)
        for name, total in sums.items():
            if isinstance(total, np.ndarray):
                n = np.maximum(total[0], 1)
                mean = total[1] / n
                deviation = np.sqrt(np.maximum(total[2] / n - mean**2, 0))
                scale = np.where(deviation > 1e-6 * (1 + np.abs(mean)), deviation, 1.0)
                getattr(self, f"{name}_mean").copy_(torch.from_numpy(mean))
                getattr(self, f"{name}_scale").copy_(torch.from_numpy(scale))

    def items(self, items: Tensor, known: Tensor) -> Tensor:  # (...) numbers -> (..., width)
        row = torch.where(known[items], items + FIRST, UNKNOWN)
        if self.training and self.unknown:
            row = torch.where(torch.rand(row.shape, device=row.device) < self.unknown, UNKNOWN, row)
        x = self.id(torch.where(items < 0, PADDING, row))
        if self.category is None:
            return x
        return torch.cat([x, self.category(self.category_of[items] * (items >= 0))], dim=-1)

    def numbers(
        self, x: Tensor, name: str
    ) -> Tensor:  # (..., F) -> (..., F), missing values at the mean, outliers at 5 deviations
        x = (x - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_scale")
        return torch.nan_to_num(x, nan=0.0, posinf=5.0, neginf=-5.0).clamp(-5, 5)


def mean_of(h: Tensor, history: Tensor) -> Tensor:
    """Mean over the history that is there: (B, L, d), (B, L) numbers -> (B, d), zeros where there
    is none (padding is zeros).
    """
    return h.sum(dim=1) / (history >= 0).sum(dim=1, keepdim=True).clamp(min=1)


class Layers(nn.Sequential):
    """Linear layers with ReLU and dropout between them."""

    def __init__(self, sizes: Sequence[int], dropout: float):
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(sizes)):
            layers.append(nn.Linear(a, b))
            if i < len(sizes) - 2:
                layers += [nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers)


def final(layers: nn.Module) -> nn.Linear:
    """The last linear layer of some."""
    return [x for x in layers.modules() if isinstance(x, nn.Linear)][-1]


def mass(batch: Batch, label: Any) -> float:
    """Sum of the weights of what is labelled so."""
    return float(np.sum(np.asarray(batch.weight, dtype=np.float64) * label))


def start_at(layer: nn.Linear, positives: float, n: float) -> None:
    """Set a bias to the log odds of a rate."""
    with torch.no_grad():
        layer.bias.fill_(float(np.log((positives + 0.5) / (n - positives + 0.5))))


class ClickModel(nn.Module):
    """Base of all: `config` and `shape` rebuild it, `inputs` holds what was observed of the
    training data.
    """

    config: Any
    shape: Shape
    inputs: Inputs

    def forward(self, batch: Batch) -> Tensor:  # tensors in, logits (B, C) out
        raise NotImplementedError

    def last(self) -> nn.Linear:
        """The layer whose bias is the logit of a candidate that nothing is known of."""
        raise NotImplementedError

    def observe(self, batches: Sequence[Batch]) -> None:
        """Take from the training data what the inputs need, and start at its rate of positives.

        Else the first epochs of cross entropy go into learning that positives are rare, and few
        requests leave few epochs.
        """
        self.inputs.observe(batches)
        start_at(
            self.last(), sum(mass(b, b.label) for b in batches), sum(mass(b, 1.0) for b in batches)
        )

    def loss(self, batch: Batch, kind: str) -> tuple[Tensor, Tensor]:
        """Sum of the losses of a batch and of the weights they count with; see `click_loss`."""
        logits = self(batch)
        return click_loss(logits if batch.offset is None else logits + batch.offset, batch, kind)

    def cells(self, candidates: int, history: int) -> int:
        """Floats that one request takes while predicting, roughly."""
        return candidates * 256


class Trunk(ClickModel):
    """A model that is a representation (B, C, d) and a head over it, so that ESMM can put two heads
    on it.
    """

    head: nn.Module

    def represent(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def new_head(self) -> nn.Module:
        """An untrained head, drawn from torch's generator."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.represent(batch)).squeeze(-1)

    def last(self) -> nn.Linear:
        return final(self.head)
