"""CTR networks over groups: one request, its history, its candidates. Tensors in, logits out.

`DIN` (Zhou et al., KDD 2018) and a small `TwoTower`. Both read item ids (an item unseen in training falls into one "unknown"
bucket, which id dropout keeps trained), dense features and optional frozen item vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..log import KarmafunnelError, write_json


@dataclass
class Groups:
    """Requests with their candidates, padded: items int64 (R, C), dense float32 (R, C, F), mask bool (R, C), history int64 (R, L)
    with -1 as padding, label float32 (R, C) where known."""

    items: np.ndarray
    dense: np.ndarray
    mask: np.ndarray
    history: np.ndarray
    label: np.ndarray | None = None

    @classmethod
    def pad(
        cls, group: np.ndarray, items: np.ndarray, dense: np.ndarray, history: np.ndarray, label: np.ndarray | None = None
    ) -> Groups:
        """From rows sorted by `group` (0..R-1, int64): items (n,), dense (n, F), label (n,)."""
        sizes = np.bincount(group, minlength=len(history))
        place = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        shape = (len(history), max(int(sizes.max(initial=1)), 1))
        padded = cls(
            np.zeros(shape, np.int64),
            np.zeros((*shape, dense.shape[1]), np.float32),
            np.zeros(shape, bool),
            history.astype(np.int64),
        )
        padded.items[group, place] = items
        padded.dense[group, place] = dense
        padded.mask[group, place] = True
        if label is not None:
            padded.label = np.zeros(shape, np.float32)
            padded.label[group, place] = label
        return padded

    def __len__(self) -> int:
        return len(self.items)

    def tensors(self, rows: np.ndarray | slice, device: str) -> dict[str, Tensor]:
        """A batch on a device, histories trimmed to the longest and candidates to the most."""
        history, mask = self.history[rows], self.mask[rows]
        longest, most = int((history >= 0).sum(axis=1).max(initial=1)), int(mask.sum(axis=1).max(initial=1))
        longest, most = max(longest, 1), max(most, 1)
        parts = {
            "items": self.items[rows, :most], "dense": self.dense[rows, :most], "mask": mask[:, :most], "history": history[:, -longest:],
        }  # fmt: skip
        if self.label is not None:
            parts["label"] = self.label[rows, :most]
        return {name: torch.from_numpy(np.ascontiguousarray(a)).to(device) for name, a in parts.items()}


class ItemEncoder(nn.Module):
    """Item id embedding (row 0: unknown) plus a projection of frozen vectors, where given: ids (...) -> (..., dim)."""

    def __init__(self, known: np.ndarray, dim: int, vectors: np.ndarray | None, id_dropout: float):
        super().__init__()
        rows = np.where(known, np.cumsum(known), 0)
        self.rows: Tensor
        self.register_buffer("rows", torch.from_numpy(rows.astype(np.int64)))
        self.embedding = nn.Embedding(int(known.sum()) + 1, dim)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.id_dropout = id_dropout
        self.vectors: Tensor | None
        self.register_buffer("vectors", None if vectors is None else torch.from_numpy(vectors.astype(np.float32)))
        self.project = None if vectors is None else nn.Linear(vectors.shape[1], dim, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.rows[ids.clamp(min=0)]
        if self.training and self.id_dropout:
            rows = rows * (torch.rand(rows.shape, device=rows.device) >= self.id_dropout)
        out = self.embedding(rows)
        if self.project is not None and self.vectors is not None:
            out = out + self.project(self.vectors[ids.clamp(min=0)])
        return out


class Standardise(nn.Module):
    """Dense features to mean 0 and deviation 1 as seen in training; unknown (NaN) becomes the mean; clipped at 5."""

    def __init__(self, n: int):
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("std", torch.ones(n))

    def fit(self, dense: np.ndarray, mask: np.ndarray) -> None:
        rows = np.where(np.isfinite(dense[mask]), dense[mask], np.nan).astype(np.float64)
        count = np.maximum(np.isfinite(rows).sum(axis=0), 1)
        mean = np.nansum(rows, axis=0) / count
        std = np.sqrt(np.nansum((rows - mean) ** 2, axis=0) / count)
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(np.where(std > 1e-6, std, 1.0)))

    def forward(self, dense: Tensor) -> Tensor:
        return torch.nan_to_num((dense - self.mean) / self.std, 0.0, 0.0, 0.0).clamp(-5, 5)


class DIN(nn.Module):
    """Deep Interest Network: a candidate attends to the history. logits (B, C).

    The attention's first layer over [c, h, c - h, c * h] is factored: with W = [Wc; Wh; Wd; Wp] it equals
    c @ (Wc + Wd + h * Wp) + h @ (Wh - Wd), one batched product with a (d, L x hidden) matrix a request, and the
    (C, L, 4d) tensor is never built.
    """

    def __init__(
        self, known: np.ndarray, n_dense: int, dim: int = 32, attention: int = 32, hidden: tuple[int, int] = (64, 32),
        vectors: np.ndarray | None = None, id_dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.encoder = ItemEncoder(known, dim, vectors, id_dropout)
        self.standardise = Standardise(n_dense)
        self.first = nn.Linear(4 * dim, attention)
        self.second = nn.Linear(attention, 1)
        self.top = nn.Sequential(
            nn.Linear(4 * dim + n_dense, hidden[0]), nn.PReLU(), nn.Linear(hidden[0], hidden[1]), nn.PReLU(), nn.Linear(hidden[1], 1)
        )  # fmt: skip

    def attention_logits(self, c: Tensor, h: Tensor) -> Tensor:
        """c (B, C, d), h (B, L, d) -> un-normalised weights (B, C, L)."""
        b, n, d = c.shape
        length = h.shape[1]
        wc, wh, wd, wp = self.first.weight.T.split(d)  # each (d, H)
        by_history = h.transpose(1, 2).unsqueeze(3) * wp.unsqueeze(1) + (wc + wd).unsqueeze(1)  # (B, d, L, H)
        start = (h @ (wh - wd) + self.first.bias).reshape(b, 1, -1)  # (B, 1, L x H)
        out = torch.baddbmm(start, c, by_history.reshape(b, d, -1))  # (B, C, L x H)
        out = F.leaky_relu(out, 0.1, inplace=not self.training)
        return (out.view(b, n, length, -1) @ self.second.weight[0]) + self.second.bias

    def forward(self, items: Tensor, dense: Tensor, history: Tensor) -> Tensor:
        c, h = self.encoder(items), self.encoder(history)
        real = (history >= 0).unsqueeze(1)  # (B, 1, L)
        weight = self.attention_logits(c, h) * real
        interest = weight @ h  # (B, C, d), not normalised, as in the paper: intensity counts
        mean = (h * real.transpose(1, 2)).sum(1, keepdim=True) / real.sum(2, keepdim=True).clamp(min=1)
        x = torch.cat([c, interest, interest * c, mean.expand_as(c), self.standardise(dense)], dim=2)
        return self.top(x).squeeze(2)


class TwoTower(nn.Module):
    """A tower for the history, a tower for the item, their inner product, and a small net over dense features. logits (B, C)."""

    def __init__(
        self,
        known: np.ndarray,
        n_dense: int,
        dim: int = 32,
        hidden: int = 16,
        vectors: np.ndarray | None = None,
        id_dropout: float = 0.1,
    ):
        super().__init__()
        self.encoder = ItemEncoder(known, dim, vectors, id_dropout)
        self.standardise = Standardise(n_dense)
        self.user = nn.Sequential(nn.Linear(dim, dim), nn.PReLU(), nn.Linear(dim, dim))
        self.item = nn.Sequential(nn.Linear(dim, dim), nn.PReLU(), nn.Linear(dim, dim))
        self.cross = nn.Sequential(nn.Linear(n_dense, hidden), nn.PReLU(), nn.Linear(hidden, 1))

    def forward(self, items: Tensor, dense: Tensor, history: Tensor) -> Tensor:
        real = (history >= 0).unsqueeze(2)
        mean = (self.encoder(history) * real).sum(1) / real.sum(1).clamp(min=1)  # (B, d)
        dot = (self.item(self.encoder(items)) @ self.user(mean).unsqueeze(2)).squeeze(2)
        return dot + self.cross(self.standardise(dense)).squeeze(2)


def masked_loss(logits: Tensor, label: Tensor, mask: Tensor, listwise: bool) -> Tensor:
    """Mean binary cross entropy over real rows, or softmax cross entropy of each positive against its group."""
    if not listwise:
        return F.binary_cross_entropy_with_logits(logits[mask], label[mask])
    log_p = torch.log_softmax(logits.masked_fill(~mask, -1e9), dim=1)
    return -(log_p * label * mask).sum() / (label * mask).sum().clamp(min=1)


def fit_ctr(
    model: Any, train: Groups, valid: Groups, *, epochs: int = 6, batch: int = 32, learning_rate: float = 2e-3, weight_decay: float = 1e-5,
    listwise: bool = False, patience: int = 2, seed: int = 0, device: str = "cpu", progress: Callable[[str], None] = lambda _: None,
) -> list[float]:  # fmt: skip
    """Train in place and keep the epoch that is best on `valid`; returns the validation losses.

    Seeded: the same seed on the same machine gives the same weights. Raises KarmafunnelError at the step whose loss is NaN.
    """
    if train.label is None or valid.label is None:
        raise KarmafunnelError(f"{type(model).__name__}: needs labels to learn from, found none")
    rng = np.random.default_rng(seed)
    model.standardise.fit(train.dense, train.mask)
    model.to(device)
    tables = [p for n, p in model.named_parameters() if "embedding" in n]
    rest = [p for n, p in model.named_parameters() if "embedding" not in n]
    optimiser = torch.optim.AdamW(
        [{"params": tables, "weight_decay": weight_decay * 10}, {"params": rest, "weight_decay": weight_decay}], lr=learning_rate
    )
    best, best_loss, losses, step = None, np.inf, [], 0
    for epoch in range(epochs):
        model.train()
        order = rng.permutation(len(train))
        for start in range(0, len(order), batch):
            x = train.tensors(np.sort(order[start : start + batch]), device)
            loss = masked_loss(model(x["items"], x["dense"], x["history"]), x["label"], x["mask"], listwise)
            if not torch.isfinite(loss):
                raise KarmafunnelError(f"{type(model).__name__}: needs a finite loss, found {loss.item()} at step {step}")
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            step += 1
        model.eval()
        with torch.inference_mode():
            parts, weight = [], []
            for start in range(0, len(valid), 64):
                x = valid.tensors(slice(start, start + 64), device)
                parts.append(masked_loss(model(x["items"], x["dense"], x["history"]), x["label"], x["mask"], listwise).item())
                weight.append(float(x["label"].sum() if listwise else x["mask"].sum()))
        losses.append(float(np.average(parts, weights=np.maximum(weight, 1e-9))))
        progress(f"{type(model).__name__}: epoch {epoch + 1}, validation loss {losses[-1]:.4f}")
        if losses[-1] < best_loss:
            best, best_loss = copy.deepcopy(model.state_dict()), losses[-1]
        elif len(losses) - int(np.argmin(losses)) > patience:
            break
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return losses


@torch.inference_mode()
def predict_ctr(model: nn.Module, groups: Groups, device: str = "cpu", cells: int = 80_000) -> np.ndarray:
    """Logits float32 (R, C) (padding is 0), in pieces of at most `cells` (candidate, history) pairs so that activations stay in cache."""
    out = np.zeros(groups.items.shape, np.float32)
    lengths = np.maximum((groups.history >= 0).sum(axis=1), 1)
    rows = np.argsort(lengths, kind="stable")  # requests of like history together: little padding
    step = max(1, cells // (groups.items.shape[1] * int(lengths.max(initial=1))))
    for start in range(0, len(rows), step):
        mine = rows[start : start + step]
        x = groups.tensors(mine, device)
        logits = model(x["items"], x["dense"], x["history"]).cpu().numpy()
        out[mine, : logits.shape[1]] = logits
    return out


def save_ctr(model: nn.Module, folder: Path, config: dict[str, Any]) -> None:
    """Weights as safetensors, config and shapes as JSON, into an existing folder."""
    state = {n: t.contiguous() for n, t in model.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    write_json(folder / "model.json", {"kind": type(model).__name__, **config})


def load_ctr(model: nn.Module, folder: Path) -> None:
    """Put saved weights into a model of the same shapes; raises KarmafunnelError naming the folder where they do not fit."""
    try:
        model.load_state_dict(load_file(folder / "weights.safetensors"))
    except (RuntimeError, OSError) as error:
        raise KarmafunnelError(f"{folder}: needs weights of {type(model).__name__}, found: {error}") from error
    model.eval()
