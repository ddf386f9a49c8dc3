"""ESMM: clicks and purchases over the entire space (Ma et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import KarmafunnelError
from ..training import seeded
from .batch import Batch
from .inputs import ClickModel, Trunk, final, mass, start_at
from .losses import entire_space_loss


class ESMM(ClickModel):
    """Entire Space Multi-task Model: P(click) and P(purchase | click) over one trunk, a head each.

    Logits (B, C, 2): of a click, and of a purchase if clicked. Loss: cross entropy of P(click) with
    the clicks + of P(click) * P(purchase | click) with the purchases, over every labelled cell;
    P(purchase | click) is never fitted on clicked cells alone, which are no sample of what it is
    asked about. Source: Ma et al. 2018, arXiv 1804.07931, eq. 1 and 3.
    """

    def __init__(self, trunk: Trunk, seed: int = 0):
        super().__init__()
        self.trunk, self.config, self.shape = trunk, trunk.config, trunk.shape
        with seeded(seed + 1):
            self.buy = trunk.new_head()

    def forward(self, batch: Batch) -> Tensor:
        x = self.trunk.represent(batch)
        return torch.cat([self.trunk.head(x), self.buy(x)], dim=-1)

    def observe(self, batches: Sequence[Batch]) -> None:
        self.trunk.observe(batches)
        if any(b.bought is None for b in batches):
            raise KarmafunnelError("ESMM", needs="both labels", found="clicks alone")
        start_at(
            final(self.buy),
            sum(mass(b, b.bought) for b in batches),
            sum(mass(b, b.label) for b in batches),
        )

    def loss(self, batch: Batch, kind: str) -> tuple[Tensor, Tensor]:
        if kind != "bce":
            raise KarmafunnelError("ESMM", what="loss", needs="'bce'", found=repr(kind))
        return entire_space_loss(self(batch), batch)

    def cells(self, candidates: int, history: int) -> int:
        return self.trunk.cells(candidates, history)
