"""Recall of what the user chose before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ...bounds import needs
from ..context import Context
from ..frame import ITEM, REQUEST, SCORE
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage
from .proposals import candidates, propose_each


@dataclass(frozen=True, repr=False)
class Repeat(Stage):
    """The user's own earlier items, by how often, then how lately."""

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

    def _own(self, request: int, newest_first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items and scores: the count, plus a fraction that falls with the place of the last time
        in the history.
        """
        items, first, count = np.unique(newest_first, return_index=True, return_counts=True)
        return items, (count + 1.0 / (2.0 + first)).astype(np.float32)

    def propose(self, rows: Rows) -> pl.DataFrame:
        requests = rows.requests
        history = self.context.log.asof.history(requests, self.stage.depth).items[:, ::-1]

        def scored(i: int, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            items, score = self._own(int(requests[i]), history[i][history[i] >= 0])
            allowed = self.context.log.asof.is_eligible(np.full(len(items), requests[i]), items)
            return items[allowed], score[allowed]

        return propose_each(self.context, requests, self.stage.k, scored)

    def score(self, rows: Rows) -> np.ndarray:
        requests = np.unique(rows.request)
        history = self.context.log.asof.history(requests, self.stage.depth).items[:, ::-1]
        own = [(r, *self._own(r, h[h >= 0])) for r, h in zip(requests, history, strict=True)]
        table = candidates(
            requests, [len(o[1]) for o in own], [o[1] for o in own], [o[2] for o in own]
        )
        found = rows.frame.select(REQUEST, ITEM).join(
            table, on=[REQUEST, ITEM], how="left", maintain_order="left"
        )
        return found[SCORE].fill_null(0.0).to_numpy()
