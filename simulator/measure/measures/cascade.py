"""Measures of the input and output of a stage: survival, ceiling, swap, margin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ..arrays import RunArrays, SliceMask
from ..intervals import Median
from ..metrics import LOST
from .measure import CEILING, END, Measure, MetricValue, of_part, of_requests


@dataclass(frozen=True, repr=False)
class Survival(Measure):
    """Relevant items in a stage's output / in its input, as ratios of sums.

    The rows are: eligible, every stage, end to end. The last is exactly the product of the others.
    """

    name = "survival"
    form = "survival"

    @property
    def depth(self) -> str:
        return "cascade"

    @property
    def definition(self) -> str:
        return (
            "relevant items in a stage's output / in its input; end to end over all relevant items,"
            " exactly the product"
        )

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        truths, of = reading.truths, of_part(part)
        every, label = np.ones(len(truths.group), dtype=bool), reading.run.relevance
        all_of_them = f"all relevant items ({label}){of}"
        if len(stages) == len(reading.run.stages):
            yield share(
                self, reading, part, "eligible", truths.eligible, every, all_of_them, "the ceiling"
            )
        into = truths.eligible
        for stage in reading.run.stages:
            out = truths.rank[stage] < LOST
            if stage in stages:
                yield share(
                    self,
                    reading,
                    part,
                    stage,
                    out,
                    into,
                    f"relevant items ({label}){of} in its input",
                )
            into = out
        yield share(self, reading, part, END, into, every, all_of_them, "product of the rows above")


def share(
    measure: Measure,
    reading: RunArrays,
    part: SliceMask,
    stage: str,
    out: np.ndarray,
    into: np.ndarray,
    denominator: str,
    note: str = "",
) -> MetricValue:
    """Relevant items in `out` / relevant items in `into`.

    Args:
        out, into: masks over the relevant items of the Run: bool (n_relevant,).
    """
    group = reading.truths.group
    num, den = (
        np.bincount(group[x & part.truth], minlength=reading.n).astype(np.float64)
        for x in (out, into)
    )
    ratio = of_requests(reading, part, np.where(den > 0, num, np.nan), den, den)
    return measure.figure(stage, part, ratio, "relevant item", denominator, note)


@dataclass(frozen=True, repr=False)
class Ceiling(Measure):
    name = "ceiling"
    form = "ceiling"

    @property
    def definition(self) -> str:
        return "share of relevant items that are eligible"

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        truths = reading.truths
        every = np.ones(len(truths.group), dtype=bool)
        denominator = f"all relevant items ({reading.run.relevance}){of_part(part)}"
        note = "share of relevant items that are eligible"
        yield share(self, reading, part, CEILING, truths.eligible, every, denominator, note)


@dataclass(frozen=True, repr=False)
class Swap(Measure):
    """End-to-end change when an oracle replaces a stage and passes on all relevant items of its
    input, while later stages stay as they are.

    A rescued item counts as kept if its tracked rank in every later stage is within the cutoff.
    Rescued items may push each other out of a slate; this is ignored, so the value is an upper
    bound.
    """

    name = "swap"
    form = "swap"

    @property
    def depth(self) -> str:
        return "cascade"

    @property
    def definition(self) -> str:
        gained = "end-to-end recall of relevant items gained by an oracle in the stage's place"
        return f"{gained}, later stages as they are; an upper bound"

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        truths, cut = reading.truths, {s["name"]: s["k"] for s in reading.run.meta["stages"]}
        names = list(reading.run.stages)
        kept = truths.rank[names[-1]] < LOST
        into = truths.eligible
        for i, stage in enumerate(names):
            later = [reading.would_rank[s] <= cut[s] for s in names[i + 1 :]]
            rescued = into & np.logical_and.reduce([np.ones(len(into), dtype=bool), *later])
            into = truths.rank[stage] < LOST
            if stage in stages:
                group = truths.group[part.truth]
                change = (rescued.astype(np.float64) - kept)[part.truth]
                den = np.bincount(group, minlength=reading.n).astype(np.float64)
                num = np.where(den > 0, np.bincount(group, change, minlength=reading.n), np.nan)
                ratio = of_requests(reading, part, num, den, den)
                of = f"all relevant items ({reading.run.relevance}){of_part(part)}"
                note = "end-to-end recall gained; an upper bound"
                yield self.figure(stage, part, ratio, "relevant item", of, note)


@dataclass(frozen=True, repr=False)
class Margin(Measure):
    """Median number of ranks by which the relevant items that a stage lost missed its cutoff."""

    name = "margin"
    form = "margin"
    better = "neither"

    @property
    def depth(self) -> str:
        return "cascade"

    @property
    def definition(self) -> str:
        return "median ranks by which the relevant items that a stage lost missed its cutoff"

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        truths = reading.truths
        margin = truths.frame["margin"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        lost = truths.frame["lost"].fill_null("").to_numpy()
        for stage in stages:
            mine = part.truth & (lost == stage)
            known = mine & ~np.isnan(margin)
            denominator = f"relevant items ({reading.run.relevance}){of_part(part)} lost by {stage}"
            estimate = Median(
                margin[known], reading.cluster[truths.group[known]], int((mine & ~known).sum())
            )
            nothing = (
                "n/a: no margin is known" if mine.any() else f"n/a: {stage} lost no relevant item"
            )
            why = "" if known.any() else nothing
            yield self.figure(
                stage, part, None if why else estimate, "relevant item", denominator, why
            )
