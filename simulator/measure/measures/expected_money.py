"""eGMV@k: expected revenue of a slate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ...world.market import examination
from ..arrays import RunArrays, SliceMask
from .measure import BY_REQUEST, AtK, MetricValue, mean, of_part, too_short, top


@dataclass(frozen=True, repr=False)
class ExpectedMoney(AtK):
    """Examination * p_click * p_buy * price, summed over the top k of a slate; mean over requests.
    An empty slate earns 0.

    Examination is that of the World. The probabilities are those of the last stage so far that
    predicts both, so the value is what the funnel expects to earn.
    """

    name = "eGMV"
    form = "eGMV@k"

    @property
    def by_request(self) -> bool:
        return True

    @property
    def definition(self) -> str:
        return (
            f"examination x p_click x p_buy x price, summed over the top {self.k}, mean over"
            " requests"
        )

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        run, k = reading.run, self.k or 0
        unit, denominator = (
            str(run.meta["log"].get("currency") or "money"),
            f"requests{of_part(part)}",
        )
        examined, has_value = examination(k), "value" in run.columns("slates")
        for stage in stages:
            why = BY_REQUEST if part.by_truth else too_short(run, stage, k)
            if not run.meta["log"].get("world") and not part.by_truth:
                why = "n/a: how users examine a slate is known only in a World"
            best = pl.DataFrame({"value": []})
            if has_value and not why:
                best = top(run, stage, k, "value")
            values = best["value"].cast(pl.Float64).fill_null(np.nan).to_numpy()
            unknown = np.isnan(values)
            if why or unknown.all():
                why = (
                    why
                    or f"n/a: no stage up to {stage} has p_click and p_buy of items with a price"
                )
                yield self.figure(stage, part, None, unit, denominator, why)
                continue
            best = best.join(reading.index, on="request_id", how="left", maintain_order="left")
            earned = np.where(unknown, 0.0, values) * examined[best["rank"].to_numpy() - 1]
            sums = np.bincount(best["group"].to_numpy(), weights=earned, minlength=reading.n)
            note = (
                "by the funnel's own probabilities"
                + f"; {unknown.sum()} items without a price left out" * bool(unknown.any())
            )
            yield self.figure(stage, part, mean(reading, part, sums), unit, denominator, note)
