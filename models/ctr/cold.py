"""COLD: a pre-ranker of gated feature groups (Wang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import KarmafunnelError
from ..training import seeded
from .batch import Batch
from .inputs import ClickModel, Inputs, Layers, Shape, final, mean_of


@dataclass(frozen=True)
class COLDConfig:
    """dim of an id vector; MLP widths; share of ids dropped in training; how many dense columns
    each group of them has.

    Groups cover the dense columns from left to right; () makes all of them one group.
    """

    dim: int = 16
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.1
    unknown: float = 0.3
    groups: tuple[int, ...] = ()


class COLD(ClickModel):
    """A small dense net over crossed features whose groups are weighed by squeeze and excitation.

    Groups e_1..e_M: the candidate's id vector, the history's mean, their product, the request's
    numbers, groups of dense columns. s = sigmoid(W [e_1..e_M] + b), one weight a group, and the net
    reads [s_1 e_1 .. s_M e_M]. Source: COLD, Wang et al. 2020, arXiv 2007.16122, section 3.2; the
    paper picks groups by the mean of s, see `weights`.
    """

    def __init__(
        self,
        shape: Shape,
        config: COLDConfig = COLDConfig(),
        category: np.ndarray | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.config, self.shape = config, shape
        groups = config.groups or (shape.n_dense,)
        if sum(groups) != shape.n_dense or min(groups) < 0:
            needs = f"to add up to {shape.n_dense} dense columns"
            raise KarmafunnelError("COLD", what="groups", needs=needs, found=config.groups)
        with seeded(seed):
            self.inputs = Inputs(shape, config.dim, config.unknown, category)
            self.sizes = [*[self.inputs.width] * 3, shape.n_request, *groups]
            width = sum(self.sizes)
            self.squeeze = nn.Linear(width, len(self.sizes))
            self.mlp = Layers((width, *config.hidden, 1), config.dropout)
        self.register_buffer(
            "group_of", torch.repeat_interleave(torch.tensor(self.sizes)), persistent=False
        )

    group_of: Tensor

    def last(self) -> nn.Linear:
        return final(self.mlp)

    def crossed(self, batch: Batch) -> Tensor:  # (B, C, width): the groups side by side
        c = self.inputs.items(batch.items, self.inputs.is_candidate)
        history = self.inputs.items(batch.history, self.inputs.is_history)
        h = mean_of(history, batch.history)[:, None].expand_as(c)
        request = self.inputs.numbers(batch.request, "request")[:, None].expand(-1, c.shape[1], -1)
        return torch.cat([c, h, c * h, request, self.inputs.numbers(batch.dense, "dense")], dim=-1)

    def weights(self, batch: Batch) -> Tensor:
        """(B, C, M): the weight of each group: id, history, their product, request, the groups of
        dense columns.
        """
        return torch.sigmoid(self.squeeze(self.crossed(batch)))

    def forward(self, batch: Batch) -> Tensor:
        x = self.crossed(batch)
        weight = torch.sigmoid(self.squeeze(x))
        return self.mlp(x * weight[..., self.group_of]).squeeze(-1)

    def cells(self, candidates: int, history: int) -> int:
        return candidates * (4 * sum(self.sizes) + 256) + history * self.inputs.width
