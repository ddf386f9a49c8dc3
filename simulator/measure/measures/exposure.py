"""Base of the measures of how a stage's top k is spread over the catalogue."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from ..arrays import RunArrays, SliceMask
from .measure import BY_REQUEST, AtK, MetricValue, of_part, too_short, top

NO_INTERVAL = "; no interval, as a resample of users shows fewer different items than all users do"


@dataclass(frozen=True, eq=False)
class Counted:
    """An estimate from how often each item is shown, which cannot be resampled: a resample leaves
    out users, and with them items, so that its values lie on one side of the estimate.

    item: (n_rows,) number of the shown item, from 0.
    """

    measure: OfItems
    item: np.ndarray
    n_items: int
    undefined: int = 0

    @cached_property
    def value(self) -> float:
        return self.measure.of_counts(np.bincount(self.item).astype(np.float64), self.n_items)

    @property
    def n(self) -> int:
        return len(self.item)

    @property
    def units(self) -> int:
        return self.n


@dataclass(frozen=True, repr=False)
class OfItems(AtK):
    """A measure of how the top k of a stage are spread over the catalogue."""

    better: ClassVar = "neither"

    @abstractmethod
    def of_counts(self, counts: np.ndarray, n_items: int) -> float:
        """The value; NaN if nothing is shown.

        Args:
            counts: how often each shown item is shown: float64 (n_shown_items,).
            n_items: number of items in the log.
        """

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        run, k = reading.run, self.k or 0
        n_items = run.meta["log"].get("items")
        denominator = (
            f"rows shown to requests{of_part(part)}, over the {n_items or 0:,} items of the log"
        )
        for stage in stages:
            why = BY_REQUEST if part.by_truth else too_short(run, stage, k)
            why = why or ("" if n_items else "n/a: the Run does not say how many items the log has")
            if why:
                yield self.figure(stage, part, None, "row", denominator, why)
                continue
            best = top(run, stage, k).join(
                reading.index, on="request_id", how="left", maintain_order="left"
            )
            group = best["group"].to_numpy()
            mine = part.requests[group]
            item = np.unique(best["item_id"].to_numpy()[mine], return_inverse=True)[1]
            estimate = Counted(self, item, int(n_items))
            yield self.figure(stage, part, estimate, "row", denominator)
