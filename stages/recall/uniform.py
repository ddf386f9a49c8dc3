"""Recall at random, the lowest baseline of every table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ...bounds import needs
from ..context import Context
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage
from .proposals import propose_each


@dataclass(frozen=True, repr=False)
class Uniform(Stage):
    """Eligible items at random: the lowest baseline of every table."""

    k: int = 100
    seed: int = 0
    name: str = "recall"

    def __post_init__(self) -> None:
        needs(self, "seed")

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedUniform:
        return FittedUniform(self, context)


class FittedUniform(Retriever):
    stage: Uniform
    channels = ("random",)

    def score(self, rows: Rows) -> np.ndarray:
        return np.zeros(len(rows.item), dtype=np.float32)

    def propose(self, rows: Rows) -> pl.DataFrame:
        def scored(i: int, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return eligible, np.zeros(len(eligible), dtype=np.float32)

        return propose_each(self.context, rows.requests, self.stage.k, scored)
