"""Fitting click models, and predicting with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ...errors import KarmafunnelError
from ..training import seeded
from .batch import Batch
from .inputs import ClickModel

# steps that an epoch has at least: a small log would end before its numbers have outgrown the draw
# they start from
STEPS = 16
CELLS = 1 << 21  # floats that a chunk may take while predicting: 8 MiB, about what the caches hold


@dataclass(frozen=True)
class FitOptions:
    """AdamW's rate and decay, and when it stops: after `patience` epochs without a smaller
    validation loss, or `epochs` in all.

    batch_size: requests a step or, of few requests, so many that an epoch has STEPS steps.
    """

    epochs: int = 20
    batch_size: int = 64
    rate: float = 1e-3
    weight_decay: float = 1e-4
    patience: int = 2
    loss: Literal["bce", "listwise"] = "bce"


def fit_ctr(
    model: ClickModel,
    train: Batch | Sequence[Batch],
    val: Batch | Sequence[Batch],
    options: FitOptions = FitOptions(),
    *,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    device: str = "cpu",
) -> list[dict[str, float]]:
    """Fit in place, stop on the validation loss, keep the best epoch; returns the losses after each
    epoch.

    Requests are shuffled by `seed` every epoch. Raises KarmafunnelError for shapes that disagree,
    for labels without a positive or without a negative, and, naming epoch and step, for a loss that
    is no longer a number.
    """
    who = type(model).__name__
    train = [train] if isinstance(train, Batch) else list(train)
    val = [val] if isinstance(val, Batch) else list(val)
    if options.loss not in ("bce", "listwise"):
        raise KarmafunnelError(
            who, what="loss", needs="'bce' or 'listwise'", found=repr(options.loss)
        )
    for part in (*train, *val):
        part.check(who)
    check_labels(train, f"{who}: needs positives and negatives among the training labels")
    check_labels(val, f"{who}: needs positives and negatives among the validation labels")
    model.to("cpu").observe(train)
    model.to(device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=options.rate, weight_decay=options.weight_decay
    )
    rng = np.random.default_rng([seed, 3])
    size = max(1, min(options.batch_size, sum(map(len, train)) // STEPS))
    history: list[dict[str, float]] = []
    best, best_loss, best_epoch = copy.deepcopy(model.state_dict()), np.inf, 0
    with seeded(seed, device):
        for epoch in range(1, options.epochs + 1):
            model.train()
            total = mass = 0.0
            for step, part in enumerate(shuffled(train, size, rng), start=1):
                batch = part.to_torch(device)
                value, n = model.loss(batch, options.loss)
                if not torch.isfinite(value):
                    found = f"{value.item()} in epoch {epoch}, step {step}"
                    raise KarmafunnelError(who, needs="a finite loss", found=found)
                if n.item() == 0:
                    continue
                optimiser.zero_grad(set_to_none=True)
                (value / n).backward()
                optimiser.step()
                total, mass = total + value.item(), mass + n.item()
            mean, held = total / max(mass, 1e-9), mean_loss(model, val, options.loss, device)
            history.append({"train": mean, "validation": held})
            if progress is not None:
                losses = f"loss {mean:.4f}, validation {held:.4f}"
                progress(f"{who}: epoch {epoch} of at most {options.epochs}, {losses}")
            if not np.isfinite(held):
                found = f"{held} after epoch {epoch}"
                raise KarmafunnelError(who, needs="a finite validation loss", found=found)
            if held < best_loss:
                best, best_loss, best_epoch = copy.deepcopy(model.state_dict()), held, epoch
            elif epoch - best_epoch >= options.patience:
                break
    model.load_state_dict(best)
    model.eval()
    return history


def check_labels(parts: Sequence[Batch], needed: str) -> None:
    """Raises KarmafunnelError for labels without a positive or without a negative."""
    found = [np.asarray(part.label)[np.asarray(part.weight) > 0] for part in parts]
    labels = np.concatenate(found) if found else np.zeros(0)
    if len(labels) == 0 or labels.max() <= 0 or labels.min() >= 1:
        raise KarmafunnelError(f"{needed}, found {len(labels)} labels of sum {labels.sum():g}")


def shuffled(parts: Sequence[Batch], size: int, rng: np.random.Generator) -> Iterator[Batch]:
    for i in rng.permutation(len(parts)):
        order = rng.permutation(len(parts[i]))
        for start in range(0, len(order), size):
            yield parts[i].rows(np.sort(order[start : start + size]))


@torch.inference_mode()
def mean_loss(model: ClickModel, parts: Sequence[Batch], loss: str, device: str) -> float:
    model.eval()
    total = mass = 0.0
    for part in parts:
        for chunk in chunks(model, part):
            batch = chunk.to_torch(device)
            value, n = model.loss(batch, loss)
            total, mass = total + value.item(), mass + n.item()
    return total / max(mass, 1e-9)


def chunks(model: ClickModel, batch: Batch) -> Iterator[Batch]:
    """As many requests at a time as fit into CELLS."""
    size = max(1, CELLS // max(1, model.cells(batch.items.shape[1], batch.history.shape[1])))
    for start in range(0, len(batch), size):
        yield batch.rows(slice(start, start + size))


@torch.inference_mode()
def predict_ctr(model: ClickModel, batch: Batch) -> np.ndarray:
    """Logits of every cell, float32 (N, C), padding included; memory does not grow with N."""
    model.eval()
    device = next(model.parameters()).device
    out = [model(part.to_torch(device)).float().cpu().numpy() for part in chunks(model, batch)]
    return np.concatenate(out) if out else np.zeros(np.shape(batch.items), dtype=np.float32)
