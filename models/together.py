"""Several embedders side by side, as one: a control of whatever is trained on the same vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bounds import Bound, check_bound, several
from ..errors import KarmafunnelError
from ..log import Log
from ..typed import positional
from .embedders import Embedder, Embedding, Progress, read_saved, silent, unit_rows


@dataclass(frozen=True, repr=False)
class Together(Embedder):
    """Embedders side by side: items are ordered by the weighted sum of their scores in each.

    Args:
        parts: the embedders, at least two.
        weights: of each one's score, above 0; empty for 1 each.
    """

    parts: tuple[Embedder, ...] = positional()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", several("Together", "parts", self.parts, "embedders"))
        object.__setattr__(self, "weights", several("Together", "weights", self.weights, "numbers"))
        if len(self.parts) < 2 or not all(isinstance(x, Embedder) for x in self.parts):
            raise KarmafunnelError(
                "Together", what="parts", needs="two embedders or more", found=repr(self.parts)
            )
        for weight in self.weights:
            check_bound("Together", Bound(1e-6, 1e6), weight=weight)
        if len(self.weights) not in (0, len(self.parts)):
            raise KarmafunnelError(
                "Together",
                what="weights",
                needs=f"one for each of {len(self.parts)} embedders, or none",
                found=repr(self.weights),
            )

    def fit(
        self,
        log: Log,
        seed: int = 0,
        progress: Progress = silent,
        device: str = "cpu",
        cache: Path | None = None,
    ) -> TogetherEmbedding:
        """Fits each part; raises what they raise."""
        parts = [part.fit(log, seed, progress, device, cache) for part in self.parts]
        return TogetherEmbedding(self, log, parts)

    def load(self, folder: Path | str, log: Log) -> TogetherEmbedding:
        read_saved(self, folder, log)
        parts = [part.load(inside(folder, i), log) for i, part in enumerate(self.parts)]
        return TogetherEmbedding(self, log, parts)


def inside(folder: Path | str, i: int) -> Path:
    """Where the i-th part is kept."""
    return Path(folder) / f"part-{i}"


class TogetherEmbedding(Embedding):
    """A fitted `Together`; its parts, in their order, in `parts`."""

    def __init__(self, value: Together, log: Log, parts: list[Embedding]):
        super().__init__(value, log, {"parts": [part.facts for part in parts]})
        self.parts = parts
        self.weights = value.weights or (1.0,) * len(parts)
        self.fitted_on = tuple(sorted({window for part in parts for window in part.fitted_on}))
        self.asks = tuple(sorted({what for part in parts for what in part.asks}))
        self.online = any(part.online for part in parts)
        self._items = np.concatenate([part.items() for part in parts], axis=1)

    def items(self) -> np.ndarray:
        return self._items

    def interests(self, requests: np.ndarray) -> np.ndarray:
        return self.weighted([part.interests(requests) for part in self.parts])

    def queries(self, requests: np.ndarray) -> np.ndarray | None:
        """A part that reads no query leaves zeros."""
        if not self.asks:
            return None
        found = []
        for part in self.parts:
            told, width = part.queries(requests), part.items().shape[1]
            found.append(np.zeros((len(requests), width), np.float32) if told is None else told)
        return self.weighted(found)

    def weighted(self, vectors: list[np.ndarray]) -> np.ndarray:
        """Vectors of each part, (n, d), times its weight, side by side at length 1."""
        pairs = zip(vectors, self.weights, strict=True)
        whole = np.concatenate([np.float32(weight) * x for x, weight in pairs], axis=1)
        return unit_rows(whole).astype(np.float32)

    def tensors(self) -> dict[str, np.ndarray]:
        return {"weights": np.array(self.weights)}

    def save_more(self, folder: Path) -> None:
        for i, part in enumerate(self.parts):
            part.save(inside(folder, i))
