"""Recall of what the user chose before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ...bounds import needs
from ..context import Context
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage
from .proposals import candidates, propose_each, scores_in


@dataclass(frozen=True, repr=False)
class Repeat(Stage):
    """The user's own last `depth` items, by how often, then by how recently they were chosen."""

    k: int = 50
    depth: int = 500
    name: str = "recall"

    def __post_init__(self) -> None:
        needs(self, "depth")

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedRepeat:
        return FittedRepeat(self, context)


class FittedRepeat(Retriever):
    stage: Repeat
    channels = ("repeat",)

    def _own(self, newest_first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct items and their scores: the count, plus a fraction that falls with the age of
        the last time.
        """
        items, first, count = np.unique(newest_first, return_index=True, return_counts=True)
        return items, (count + 1.0 / (2.0 + first)).astype(np.float32)

    def propose(self, rows: Rows) -> pl.DataFrame:
        requests = rows.requests
        history = self.context.log.asof.history(requests, self.stage.depth).items[:, ::-1]

        def scored(i: int, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            items, score = self._own(history[i][history[i] >= 0])
            allowed = self.context.log.asof.is_eligible(np.full(len(items), requests[i]), items)
            return items[allowed], score[allowed]

        return propose_each(self.context, requests, self.stage.k, scored)

    def score(self, rows: Rows) -> np.ndarray:
        requests = np.unique(rows.request)
        history = self.context.log.asof.history(requests, self.stage.depth).items[:, ::-1]
        items, scores = [], []
        for own in history:
            item, score = self._own(own[own >= 0])
            items.append(item)
            scores.append(score)
        table = candidates(requests, [len(item) for item in items], items, scores)
        return scores_in(table, rows, np.float32(0))
