"""DCN-V2: crosses of features (Wang et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import KarmafunnelError
from ..training import seeded
from .batch import Batch
from .inputs import Inputs, Layers, Shape, Trunk, mean_of


class Cross(nn.Module):
    """x' = x0 * (U V x + b) + x: one cross layer (DCN-V2, Wang et al. 2021, arXiv 2008.13535, eq. 1
    and 2).

    (..., d), (..., d) -> (..., d). `low` is the rank of U V; 0 for one full (d, d) matrix.
    """

    def __init__(self, dim: int, low: int):
        super().__init__()
        self.down = nn.Linear(dim, low, bias=False) if low else nn.Identity()
        self.up = nn.Linear(low or dim, dim)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        return x0 * self.up(self.down(x)) + x


@dataclass(frozen=True)
class DCNConfig:
    """dim of an id vector; how many cross layers, of what rank (0: full); widths of the deep part;
    share of ids dropped in training.
    """

    dim: int = 16
    crosses: int = 2
    low: int = 16
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.1
    unknown: float = 0.3


class DCN(Trunk):
    """Deep & Cross Network V2, cross and deep part in parallel: over the candidate's id vector, the
    history's mean and numbers.

    category (n_items,) one number an item. Source: arXiv 2008.13535, figure 1b.
    """

    def __init__(
        self,
        shape: Shape,
        config: DCNConfig = DCNConfig(),
        category: np.ndarray | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.config, self.shape = config, shape
        if config.crosses < 1 or config.low < 0 or not config.hidden:
            raise KarmafunnelError(
                "DCN",
                needs="at least 1 cross layer, a rank of 0 (full) or more and a deep part",
                found=config,
            )
        with seeded(seed):
            self.inputs = Inputs(shape, config.dim, config.unknown, category)
            width = 2 * self.inputs.width + shape.n_dense + shape.n_request
            self.crosses = nn.ModuleList(Cross(width, config.low) for _ in range(config.crosses))
            self.deep = Layers((width, *config.hidden), config.dropout)
            self.width = width + config.hidden[-1]
            self.head = self.new_head()

    def new_head(self) -> nn.Module:
        return nn.Linear(self.width, 1)

    def represent(self, batch: Batch) -> Tensor:
        c = self.inputs.items(batch.items, self.inputs.is_candidate)  # (B, C, d)
        # (B, d)
        h = mean_of(self.inputs.items(batch.history, self.inputs.is_history), batch.history)
        request = self.inputs.numbers(batch.request, "request")
        shared = torch.cat([h, request], dim=1)[:, None].expand(-1, c.shape[1], -1)
        x = x0 = torch.cat([c, shared, self.inputs.numbers(batch.dense, "dense")], dim=-1)
        for cross in self.crosses:
            x = cross(x0, x)
        return torch.cat([x, F.relu(self.deep(x0))], dim=-1)

    def cells(self, candidates: int, history: int) -> int:
        return candidates * (6 * self.width + 256) + history * self.inputs.width
