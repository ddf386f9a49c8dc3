"""Recall of what the user chose before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ...bounds import needs
from ..context import Context
from ..frame import pair_key, rows_frame
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage
from .proposals import propose_found, scores_in


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

    def _own(self, requests: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distinct items of each request's user, and their scores: the count, plus a fraction that
        falls with the age of the last time.

        Returns:
            The position of each row's request, ascending, its item and its score.
        """
        n_items = self.context.log.n_items
        newest_first = self.context.log.asof.history(requests, self.stage.depth).items[:, ::-1]
        group, age = np.nonzero(newest_first >= 0)
        pair = pair_key(group, newest_first[group, age], n_items)
        pair, first, count = np.unique(pair, return_index=True, return_counts=True)
        score = (count + 1.0 / (2.0 + age[first])).astype(np.float32)
        return pair // n_items, (pair % n_items).astype(np.int32), score

    def propose(self, rows: Rows) -> pl.DataFrame:
        found = self._own(rows.requests)
        return propose_found(self.context, rows.requests, self.stage.k, found)

    def score(self, rows: Rows) -> np.ndarray:
        requests = np.unique(rows.request)
        group, item, score = self._own(requests)
        table = rows_frame(request=requests[group], item=item, score=score)
        return scores_in(table, rows, np.float32(0))
