"""Two towers: a request's and an item's vector, and their product."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import KarmafunnelError
from ..training import seeded
from .batch import Batch
from .inputs import ClickModel, Inputs, Layers, Shape, mean_of


@dataclass(frozen=True)
class TwoTowerConfig:
    """dim of an id vector; width of the towers' outputs; hidden widths; which dense columns
    describe the item alone.

    The other dense columns enter as a linear term beside the inner product, never a tower.
    """

    dim: int = 16
    out: int = 32
    hidden: tuple[int, ...] = (64,)
    dropout: float = 0.1
    unknown: float = 0.3
    item_columns: tuple[int, ...] = ()


class TwoTower(ClickModel):
    """Request tower: mean of the history and the request's numbers. Item tower: id and the item's
    numbers. Logit: their product + linear.
    """

    def __init__(
        self,
        shape: Shape,
        config: TwoTowerConfig = TwoTowerConfig(),
        category: np.ndarray | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.config, self.shape = config, shape
        wrong = [i for i in config.item_columns if not 0 <= i < shape.n_dense]
        if wrong:
            needs = f"to be among {shape.n_dense} dense columns"
            raise KarmafunnelError("TwoTower", what="item_columns", needs=needs, found=wrong)
        self.cross_columns = [i for i in range(shape.n_dense) if i not in config.item_columns]
        with seeded(seed):
            self.inputs = Inputs(shape, config.dim, config.unknown, category)
            d = self.inputs.width
            self.request_tower = Layers(
                (d + shape.n_request, *config.hidden, config.out), config.dropout
            )
            self.item_tower = Layers(
                (d + len(config.item_columns), *config.hidden, config.out), config.dropout
            )
            self.item_bias = nn.Linear(config.out, 1)
            self.cross = (
                nn.Linear(len(self.cross_columns), 1, bias=False) if self.cross_columns else None
            )

    def last(self) -> nn.Linear:
        return self.item_bias

    def forward(self, batch: Batch) -> Tensor:
        dense = self.inputs.numbers(batch.dense, "dense")
        request = self.requests(batch.history, batch.request)  # (B, o)
        items = self.items(batch.items, dense[..., list(self.config.item_columns)])  # (B, C, o)
        logit = torch.einsum("bo,bco->bc", request, items) + self.item_bias(items).squeeze(-1)
        if self.cross is None:
            return logit
        return logit + self.cross(dense[..., self.cross_columns]).squeeze(-1)

    def requests(self, history: Tensor, request: Tensor) -> Tensor:
        """(B, L), (B, R) -> (B, out): near-line, once a request."""
        mean = mean_of(self.inputs.items(history, self.inputs.is_history), history)
        return self.request_tower(torch.cat([mean, self.inputs.numbers(request, "request")], dim=1))

    def items(self, items: Tensor, dense: Tensor) -> Tensor:
        """(B, C), standardised (B, C, n) -> (B, C, out): precomputable where the numbers do not
        change.
        """
        return self.item_tower(
            torch.cat([self.inputs.items(items, self.inputs.is_candidate), dense], dim=-1)
        )
