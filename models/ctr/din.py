"""DIN: the history as the target looks at it (Zhou et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import KarmafunnelError
from ..simtier import BINS
from ..training import seeded
from .batch import ACTIONS, AGES, Batch
from .inputs import Inputs, Layers, Shape, Trunk


class TargetAttention(nn.Module):
    """Score of every (candidate, history item) by an MLP over [c, h, c - h, c * h]: (B, C, d), (B,
    L, d) -> (B, C, L).

    Its first layer is factored: [c, h, c - h, c * h] W = c (Wc + Wd + h Wp) + h (Wh - Wd), one
    batched product of c with a (d, L x hidden) matrix a request. The (B, C, L, 4 d) tensor is never
    there. `naive` is the same, written out.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.first, self.second = nn.Linear(4 * dim, hidden), nn.Linear(hidden, 1)

    def forward(self, c: Tensor, h: Tensor) -> Tensor:
        (b, n, d), length = c.shape, h.shape[1]
        wc, wh, wd, wp = self.first.weight.split(d, dim=1)  # each (hidden, d)
        # (B, d, L, hidden)
        by_history = (h[..., None] * wp.T).transpose(1, 2) + (wc + wd).T[:, None]
        start = F.linear(h, wh - wd, self.first.bias).reshape(b, 1, -1)  # (B, 1, L x hidden)
        x = torch.baddbmm(start, c, by_history.reshape(b, d, -1))  # (B, C, L x hidden)
        x = F.relu(x, inplace=True).view(b, n, length, -1)
        return x @ self.second.weight[0] + self.second.bias

    def naive(self, c: Tensor, h: Tensor) -> Tensor:
        shape = (c.shape[0], c.shape[1], h.shape[1], c.shape[2])
        c, h = c[:, :, None].expand(shape), h[:, None].expand(shape)
        return self.second(F.relu(self.first(torch.cat([c, h, c - h, c * h], dim=-1)))).squeeze(-1)


@dataclass(frozen=True)
class DINConfig:
    """dim of an id vector; hidden width of the attention; MLP widths; share of ids dropped in
    training.

    similar: how fixed vectors enter, if at all: as SimTier, as SA-TA (Sheng et al. 2024; MUSE,
    arXiv 2512.07216), as both, or "raw", `raw` numbers beside each id vector.
    """

    dim: int = 16
    attention: int = 32
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.1
    unknown: float = 0.3
    similar: Literal["", "simtier", "sata", "both", "raw"] = ""
    raw: int = 16


class DIN(Trunk):
    """Deep Interest Network: history items weighed by their fit to the candidate, weights not
    normalised (as in the paper).

    category (n_items,) one number an item. vectors (n_items, d) fixed, needed by `similar`: the
    cosine r of candidate and history item enters as SimTier (its histogram, 22 bins, log(1 + count)
    times a learnt 4-d vector) and as SA-TA (weight = g1 a + g2 r + g3 a r); an item whose vector is
    zeros is counted in no bin. Raw: candidate and history items stand for their id vector and,
    beside it, their fixed vector through one projection and LayerNorm.
    """

    vectors: Tensor
    tier: nn.Parameter | None
    gate: nn.Parameter | None
    project: nn.Module | None

    def __init__(
        self,
        shape: Shape,
        config: DINConfig = DINConfig(),
        category: np.ndarray | None = None,
        vectors: np.ndarray | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.config, self.shape = config, shape
        if config.similar not in ("", "simtier", "sata", "both", "raw"):
            raise KarmafunnelError(
                "DIN",
                what="similar",
                needs="'', 'simtier', 'sata', 'both' or 'raw'",
                found=repr(config.similar),
            )
        needed = (shape.n_items, shape.n_vector)
        found = None if vectors is None else np.shape(vectors)
        if config.similar and found != needed:
            raise KarmafunnelError(
                "DIN",
                what=f"similar={config.similar!r}",
                needs=f"vectors {needed}",
                found=found,
            )
        with seeded(seed):
            self.inputs = Inputs(shape, config.dim, config.unknown, category)
            raw = config.similar == "raw"
            d = self.inputs.width + config.raw * raw
            self.age, self.action = nn.Embedding(AGES, d), nn.Embedding(ACTIONS, d)
            nn.init.zeros_(self.age.weight)
            nn.init.zeros_(self.action.weight)
            self.attention = TargetAttention(d, config.attention)
            tier, gate = config.similar in ("simtier", "both"), config.similar in ("sata", "both")
            self.tier = nn.Parameter(0.1 * torch.randn(BINS, 4)) if tier else None
            self.gate = nn.Parameter(torch.tensor([1.0, 0.0, 0.0])) if gate else None
            size = shape.n_vector, config.raw
            self.project = (
                nn.Sequential(nn.Linear(*size, bias=False), nn.LayerNorm(size[1])) if raw else None
            )
            self.width = 3 * d + shape.n_dense + shape.n_request + 4 * BINS * tier
            self.head = self.new_head()
        if config.similar:
            fixed = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
            # last row: padding
            self.register_buffer(
                "vectors", F.pad(F.normalize(fixed, dim=1), (0, 0, 0, 1)), persistent=False
            )

    def new_head(self) -> nn.Module:
        return Layers((self.width, *self.config.hidden, 1), self.config.dropout)

    def represent(self, batch: Batch) -> Tensor:
        present = (batch.history >= 0).float()[:, None]  # (B, 1, L)
        c = self.inputs.items(batch.items, self.inputs.is_candidate)  # (B, C, d)
        h = self.inputs.items(batch.history, self.inputs.is_history)  # (B, L, d)
        if self.project is not None:
            c = torch.cat([c, self.project(self.vectors[batch.items])], -1)
            h = torch.cat([h, self.project(self.vectors[batch.history])], -1)
        if batch.age is not None:
            h = h + self.age(torch.log2(1.0 + batch.age.clamp(min=0)).long().clamp(max=AGES - 1))
        if batch.action is not None:
            h = h + self.action(batch.action)
        weight = self.attention(c, h)  # (B, C, L)
        parts = []
        if self.tier is not None or self.gate is not None:
            r = torch.bmm(self.vectors[batch.items], self.vectors[batch.history].transpose(1, 2))
            if self.tier is not None:
                parts.append(self.sim_tier(r, batch, self.tier))
            if self.gate is not None:
                weight = self.gate[0] * weight + self.gate[1] * r + self.gate[2] * weight * r
        pooled = torch.bmm(weight * present, h)  # (B, C, d)
        parts += [c, pooled, c * pooled, self.inputs.numbers(batch.dense, "dense")]
        request = self.inputs.numbers(batch.request, "request")
        parts.append(request[:, None].expand(-1, c.shape[1], -1))
        return torch.cat(parts, dim=-1)

    # (B, C, L) cosines -> (B, C, 4 * BINS)
    def sim_tier(self, r: Tensor, batch: Batch, tier: Tensor) -> Tensor:
        has = self.vectors.abs().sum(dim=1) > 0
        counted = (has[batch.items][:, :, None] & has[batch.history][:, None]).float()
        # rounding must not part an item from itself
        which = ((r + 1.1) * 10 + 1e-3).long().clamp(0, BINS - 1)
        histogram = torch.zeros(*r.shape[:2], BINS, device=r.device).scatter_add_(2, which, counted)
        return (torch.log1p(histogram)[..., None] * tier).flatten(2)

    def cells(self, candidates: int, history: int) -> int:
        return candidates * (history * self.config.attention + 8 * self.inputs.width + 512)
