"""Recall by popularity before the request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ...bounds import needs
from ..context import Context
from ..frame import ITEM, REQUEST
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage
from .proposals import propose_each


@dataclass(frozen=True, repr=False)
class Popular(Stage):
    """Items with the most clicks and purchases before the request, or in the `days` before it."""

    k: int = 100
    days: float | None = None
    name: str = "recall"

    def __post_init__(self) -> None:
        needs(self, "days")

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedPopular:
        return FittedPopular(self, context)


class FittedPopular(Retriever):
    stage: Popular
    channels = ("popular",)

    def __post_init__(self) -> None:
        log, days = self.context.log, self.stage.days
        self.within = None if days is None else int(days * 86_400_000)
        # time rank of every event, ascending
        self._ranks = log.asof.rank[log.events[REQUEST].to_numpy()]
        self._items = log.events[ITEM].to_numpy()

    def score(self, rows: Rows) -> np.ndarray:
        return self.context.log.asof.count(rows.request, rows.item, "event", self.within).astype(
            np.float32
        )

    def propose(self, rows: Rows) -> pl.DataFrame:
        log, requests = self.context.log, rows.requests
        end = np.searchsorted(self._ranks, log.asof.rank[requests])
        first = np.zeros_like(end)
        if self.within is not None:
            first = np.searchsorted(self._ranks, log.asof.rank_before(self.within)[requests])
        reached = [int(first[0]), int(end[0])] if len(requests) else [0, 0]
        counts = np.bincount(self._items[slice(*reached)], minlength=log.n_items).astype(np.float32)
        few = self._possible(requests, counts, first, end)
        unfiltered = log.asof.filter_key[requests] == 0

        def scored(i: int, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            # requests are in order of time, so the counts are updated from one to the next
            np.add.at(counts, self._items[reached[1] : end[i]], 1)
            np.subtract.at(counts, self._items[reached[0] : first[i]], 1)
            reached[:] = first[i], end[i]
            if few is not None and unfiltered[i]:
                found = few[log.asof.known_rank[few] < log.asof.rank[requests[i]]]
                return found, counts[found]
            score = counts[eligible]
            hit = np.flatnonzero(score > 0)
            return (eligible[hit], score[hit]) if len(hit) >= self.stage.k else (eligible, score)

        return propose_each(self.context, requests, self.stage.k, scored)

    def _possible(
        self, requests: np.ndarray, counts: np.ndarray, first: np.ndarray, end: np.ndarray
    ) -> np.ndarray | None:
        """The items that can be among the k most popular of any request without filters, whatever
        happens from the first to the last of them; None where that cannot be told.

        Args:
            counts: of each item at the first request, (n_items,).
            first, end: of the events that count for each request, (n_requests,).
        """
        log, k = self.context.log, self.stage.k
        if not len(requests):
            return None
        pool, known = log.asof.pool(0)
        pool = pool[: np.searchsorted(known, log.asof.rank[requests[0]])]
        gone, come = self._items[first[0] : first[-1]], self._items[end[0] : end[-1]]
        least = (counts - np.bincount(gone, minlength=log.n_items))[pool]
        if len(least) < k:
            return None
        border = np.partition(least, len(least) - k)[len(least) - k]
        if border <= 0:  # items that nobody chose count as well
            return None
        return np.flatnonzero(counts + np.bincount(come, minlength=log.n_items) >= border)
