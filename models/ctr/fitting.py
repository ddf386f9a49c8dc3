"""Fitting click models, and predicting with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
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


def fit_ctr(
    model: ClickModel, train: Batch | Sequence[Batch], val: Batch | Sequence[Batch], *, epochs: int = 20, batch_size: int = 64,
    rate: float = 1e-3, weight_decay: float = 1e-4, patience: int = 2, loss: Literal["bce", "listwise"] = "bce", seed: int = 0,
    progress: Callable[[str], None] | None = None, device: str = "cpu",
) -> list[dict[str, float]]:  # fmt: skip
    """Fit in place with Adam, stop on the validation loss, keep the best epoch; returns the losses
    after each epoch.

    Requests are shuffled by `seed` every epoch, in batches of `batch_size` or, of few requests, so
    many that an epoch has STEPS steps. Raises KarmafunnelError for shapes that disagree, for labels
    without a positive or without a negative, and, naming epoch and step, for a loss that is no
    longer a number.
    """
    who = type(model).__name__
    train, val = (
        [train] if isinstance(train, Batch) else list(train),
        [val] if isinstance(val, Batch) else list(val),
    )
    if loss not in ("bce", "listwise"):
        raise KarmafunnelError(f"{who}: loss needs 'bce' or 'listwise', found {loss!r}")
    for part in (*train, *val):
        part.check(who)
    for name, parts in (("training", train), ("validation", val)):
        labels = (
            np.concatenate([np.asarray(p.label)[np.asarray(p.weight) > 0] for p in parts])
            if parts
            else np.zeros(0)
        )
        if len(labels) == 0 or labels.max() <= 0 or labels.min() >= 1:
            raise KarmafunnelError(
                f"{who}: needed positives and negatives among the {name} labels, found {len(labels)} labels of sum {labels.sum():g}"
            )
    model.to("cpu").observe(train)
    model.to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
    rng = np.random.default_rng([seed, 3])
    size = max(1, min(batch_size, sum(map(len, train)) // STEPS))
    history: list[dict[str, float]] = []
    best, best_loss, best_epoch = copy.deepcopy(model.state_dict()), np.inf, 0
    with seeded(seed, device):
        for epoch in range(1, epochs + 1):
            model.train()
            total = mass = 0.0
            for step, part in enumerate(shuffled(train, size, rng), start=1):
                batch = part.to_torch(device)
                value, n = model.loss(batch, loss)
                if not torch.isfinite(value):
                    raise KarmafunnelError(
                        f"{who}: needed a finite loss, found {value.item()} in epoch {epoch}, step {step}"
                    )
                if n.item() == 0:
                    continue
                optimiser.zero_grad(set_to_none=True)
                (value / n).backward()
                optimiser.step()
                total, mass = total + value.item(), mass + n.item()
            history.append(
                {
                    "train": total / max(mass, 1e-9),
                    "validation": mean_loss(model, val, loss, device),
                }
            )
            if progress is not None:
                losses = (
                    f"loss {history[-1]['train']:.4f}, validation {history[-1]['validation']:.4f}"
                )
                progress(f"{who}: epoch {epoch} of at most {epochs}, {losses}")
            if not np.isfinite(history[-1]["validation"]):
                raise KarmafunnelError(
                    f"{who}: needed a finite validation loss, found {history[-1]['validation']} after epoch {epoch}"
                )
            if history[-1]["validation"] < best_loss:
                best, best_loss, best_epoch = (
                    copy.deepcopy(model.state_dict()),
                    history[-1]["validation"],
                    epoch,
                )
            elif epoch - best_epoch >= patience:
                break
    model.load_state_dict(best)
    model.eval()
    return history


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
