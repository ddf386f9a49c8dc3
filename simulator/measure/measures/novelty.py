"""novelty@k: how unpopular the shown items are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from ..arrays import RunArrays, SliceMask
from .measure import BY_REQUEST, AtK, MetricValue, mean, of_part, too_short, top


@dataclass(frozen=True, repr=False)
class Novelty(AtK):
    """Mean self-information of the top k in bits: -log2 of each item's share of the relevant items
    in W1, with add-one smoothing.

    Source: Vargas & Castells 2011, "Rank and relevance in novelty and diversity metrics", RecSys
    (popularity-based, by targets).
    """

    name = "novelty"
    form = "novelty@k"
    better: ClassVar = "neither"

    @property
    def definition(self) -> str:
        return (
            f"self-information of the top {self.k} in bits: mean of -log2 of each item's share of"
            " the relevant items in W1, one added to each item"
        )

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        run, k = reading.run, self.k or 0
        denominator = f"requests with a slate{of_part(part)}"
        log, absent = reading.log
        for stage in stages:
            why = BY_REQUEST if part.by_truth else too_short(run, stage, k) or absent
            if why or log is None:
                yield self.figure(stage, part, None, "request", denominator, why)
                continue
            counts = log.targets_of_w1(run.label) + 1.0
            bits = pl.DataFrame(
                {"item_id": log.items["item_id"], "bits": -np.log2(counts / counts.sum())}
            )
            best = top(run, stage, k).join(bits, on="item_id", how="left", maintain_order="left")
            means = best.group_by("request_id").agg(pl.col("bits").mean())
            found = reading.index.join(means, on="request_id", how="left", maintain_order="left")[
                "bits"
            ]
            yield self.figure(
                stage,
                part,
                mean(reading, part, found.fill_null(np.nan).to_numpy()),
                "request",
                denominator,
            )
