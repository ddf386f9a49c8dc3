"""Measures of what goes into a stage and what comes out of it: survival, ceiling, swap, margin."""

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
    """Truth items out / truth items in, as ratios of sums: eligible, stage by stage, end to end;
    they multiply exactly.
    """

    name = "survival"
    form = "survival"

    @property
    def depth(self) -> str:
        return "cascade"

    @property
    def definition(self) -> str:
        return (
            "truth items in a stage's output / in its input; end to end over all truth items,"
            " exactly the product"
        )

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        truths, of = reading.truths, of_part(part)
        every, label = np.ones(len(truths.group), dtype=bool), reading.run.label
        all_of_them = f"all truth items ({label}){of}"
        if len(stages) == len(reading.run.stages):
            yield share(
                self, reading, part, "eligible", truths.eligible, every, all_of_them, "the ceiling"
            )
        into = truths.eligible
        for stage in reading.run.stages:
            out = truths.rank[stage] < LOST
            if stage in stages:
                yield share(
                    self, reading, part, stage, out, into, f"truth items ({label}){of} in its input"
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
    """Truth items in `out` / those in `into`, masks over the Run's truth items."""
    group = reading.truths.group
    num, den = (
        np.bincount(group[x & part.truth], minlength=reading.n).astype(np.float64)
        for x in (out, into)
    )
    ratio = of_requests(reading, part, np.where(den > 0, num, np.nan), den, den)
    return measure.figure(stage, part, ratio, "truth item", denominator, note)


@dataclass(frozen=True, repr=False)
class Ceiling(Measure):
    name = "ceiling"
    form = "ceiling"

    @property
    def definition(self) -> str:
        return "share of truth items that are eligible at all"

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        truths = reading.truths
        every = np.ones(len(truths.group), dtype=bool)
        denominator = f"all truth items ({reading.run.label}){of_part(part)}"
        note = "share of truth that is eligible at all"
        yield share(self, reading, part, CEILING, truths.eligible, every, denominator, note)


@dataclass(frozen=True, repr=False)
class Swap(Measure):
    """End-to-end change with an oracle in a stage's place: it passes all truth of its input on,
    later stages stay as they are.

    What it rescues is kept where its tracked rank in every later stage is inside the cut; that
    rescued items may crowd each other out of a slate is left aside, so this is an upper bound.
    """

    name = "swap"
    form = "swap"

    @property
    def depth(self) -> str:
        return "cascade"

    @property
    def definition(self) -> str:
        gained = "end-to-end recall of truth items gained by an oracle in the stage's place"
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
                of = f"all truth items ({reading.run.label}){of_part(part)}"
                yield self.figure(
                    stage, part, ratio, "truth item", of, "end-to-end recall gained; an upper bound"
                )


@dataclass(frozen=True, repr=False)
class Margin(Measure):
    """Median number of ranks by which the truth that a stage lost missed its cut."""

    name = "margin"
    form = "margin"
    better = "neither"

    @property
    def depth(self) -> str:
        return "cascade"

    @property
    def definition(self) -> str:
        return "ranks by which truth that a stage lost missed its cut, median"

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        truths = reading.truths
        margin = truths.frame["margin"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        lost = truths.frame["lost"].fill_null("").to_numpy()
        for stage in stages:
            mine = part.truth & (lost == stage)
            known = mine & ~np.isnan(margin)
            denominator = f"truth items ({reading.run.label}){of_part(part)} lost by {stage}"
            estimate = Median(
                margin[known], reading.cluster[truths.group[known]], int((mine & ~known).sum())
            )
            nothing = (
                "n/a: no margin is known" if mine.any() else f"n/a: {stage} lost no truth item"
            )
            why = "" if known.any() else nothing
            yield self.figure(
                stage, part, None if why else estimate, "truth item", denominator, why
            )
