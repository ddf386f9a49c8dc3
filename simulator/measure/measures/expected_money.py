"""eGMV@k: expected revenue of a slate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
        world, has_value = run.meta["log"].get("world"), "value" in run.columns("slates")
        examined = examined_by(world or {}, k)
        for stage in stages:
            why = BY_REQUEST if part.by_truth else too_short(run, stage, k)
            if not world and not part.by_truth:
                why = "n/a: how users examine a slate is known only in a World"
            elif examined is None and not part.by_truth:
                why = "n/a: whether a slot is looked at hangs on clicks above it in this World"
            best = pl.DataFrame({"value": []})
            if has_value and examined is not None and not why:
                best = top(run, stage, k, "value")
            values = best["value"].cast(pl.Float64).fill_null(np.nan).to_numpy()
            unknown = np.isnan(values)
            if why or examined is None or unknown.all():
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


def examined_by(world: dict[str, Any], k: int) -> np.ndarray | None:
    """P(looked at) of the first k slots in a World, as its log.json tells: (k,); None where it
    depends on clicks.
    """
    if "marketplace" not in world:
        return examination(k)
    if "examination" not in world:
        return None
    told = np.array(world["examination"][:k])
    return np.pad(told, (0, k - len(told)))  # nobody looks below the list
