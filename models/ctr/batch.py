"""What click models read: a batch of requests with their candidates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...errors import KarmafunnelError

PADDING, UNKNOWN, FIRST = 0, 1, 2  # rows of an id table before those of the items
AGES, ACTIONS = 48, 3  # buckets of log2(1 + age); 0 pad, 1 click, 2 purchase


@dataclass(frozen=True)
class Batch:
    """N requests of up to C candidates: arrays (NumPy outside, torch inside a model).

    items (N, C) int64, -1 padding; dense (N, C, F) float32, NaN = missing; history (N, L) int64, -1
    padding; label (N, C) float32 in 0..1; weight (N, C) float32, 0 where a cell has no label or is
    padding; request (N, R) float32, R may be 0; age (N, L) int64 and action (N, L) int8 of the
    history, both optional (all models then know the items alone); bought (N, C) float32, the second
    label of ESMM; offset (N, C) float32, added to the logits in training alone.
    """

    items: Any
    dense: Any
    history: Any
    label: Any
    weight: Any
    request: Any = None
    age: Any = None
    action: Any = None
    bought: Any = None
    offset: Any = None

    def __len__(self) -> int:
        return len(self.items)

    def rows(self, index: Any) -> Batch:
        """Some of the requests."""
        return replace(self, **{name: x[index] for name, x in vars(self).items() if x is not None})

    def to_torch(self, device: str | torch.device = "cpu") -> Batch:
        """The same as tensors; int64 for numbers, float32 for the rest."""
        out: dict[str, Any] = {}
        for name, x in vars(self).items():
            whole = name in ("items", "history", "age", "action")
            if x is None:
                x = np.zeros((len(self), 0), np.float32) if name == "request" else None
            if x is not None:
                out[name] = torch.from_numpy(
                    np.ascontiguousarray(x, dtype=np.int64 if whole else np.float32)
                ).to(device)
        return Batch(**out)

    def check(self, who: str) -> None:
        """Raises KarmafunnelError where shapes disagree or a label is not finite."""
        n, c = np.shape(self.items)
        shapes = {name: np.shape(x) for name, x in vars(self).items() if x is not None}
        cells = [
            shapes["dense"][:2],
            *(shapes[name] for name in ("label", "weight", "bought", "offset") if name in shapes),
        ]
        if any(shape != (n, c) for shape in cells) or shapes["history"][0] != n:
            raise KarmafunnelError(
                who,
                needs="items, dense, label, weight (N, C, ...) and history (N, L)",
                found=shapes,
            )
        bad = ~np.isfinite(self.label) & (np.asarray(self.weight) > 0)
        if self.bought is not None:
            bad |= ~np.isfinite(self.bought) & (np.asarray(self.weight) > 0)
        if bad.any() or not np.isfinite(self.weight).all():
            raise KarmafunnelError(
                who,
                needs="finite labels and weights",
                found=f"others, first in request {int(np.argmax(bad.any(axis=1)))}",
            )
