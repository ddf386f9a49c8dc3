"""Agreement between the slates of two consecutive stages; neither direction is better."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from .. import metrics
from ..arrays import RunArrays, SliceMask
from .measure import BY_REQUEST, Measure, MetricValue, mean, of_part, too_short, top


@dataclass(frozen=True, repr=False)
class Neighbours(Measure):
    """Mean over the requests where both stages return k items."""

    better: ClassVar = "neither"

    @classmethod
    def of(cls, ks: list[int], options: list[str]) -> Measure:
        if len(ks) != 1:
            raise ValueError(f"{cls.name} needs one k, as in {cls.name}@50")
        if options:
            raise ValueError(f"{cls.name} takes no option")
        return cls(k=ks[0])

    @abstractmethod
    def values(self, group: np.ndarray, depth: np.ndarray, n: int, k: int) -> np.ndarray:
        """The value of each request: float64 (n,).

        Args:
            group: number of the request of each item that is in both slates: (n_common,).
            depth: the larger of the item's two ranks: (n_common,).
            n: number of requests.
        """

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        run, k = reading.run, self.k or 0
        pairs = [(a, b) for a, b in zip(run.stages, run.stages[1:], strict=False) if a in stages]
        if not pairs:
            yield self.figure(
                stages[-1], part, None, "request", "", "n/a: it compares a stage and the next one"
            )
        for stage, after in pairs:
            denominator = f"requests where {stage} and {after} both put out {k}{of_part(part)}"
            why = too_short(run, stage, k) or too_short(run, after, k)
            if why or part.by_truth:
                yield self.figure(
                    stage, part, None, "request", denominator, BY_REQUEST if part.by_truth else why
                )
                continue
            mine, other = (
                top(run, s, k).join(reading.index, on="request_id") for s in (stage, after)
            )
            deeper = pl.max_horizontal("rank", "rank_right").alias("depth")
            both = mine.join(other, on=["group", "item_id"]).select("group", deeper)
            sizes = (
                np.bincount(slate["group"].to_numpy(), minlength=reading.n)
                for slate in (mine, other)
            )
            full = np.logical_and(*(size == k for size in sizes))
            values = self.values(
                both["group"].to_numpy(), both["depth"].cast(pl.Int64).to_numpy(), reading.n, k
            )
            yield self.figure(
                stage,
                part,
                mean(reading, part, np.where(full, values, np.nan)),
                "request",
                denominator,
            )


@dataclass(frozen=True, repr=False)
class Overlap(Neighbours):
    name = "overlap"
    form = "overlap@k"

    @property
    def definition(self) -> str:
        return (
            f"share of a stage's top {self.k} that is in the next stage's top {self.k}, mean over"
            " requests"
        )

    def values(self, group: np.ndarray, depth: np.ndarray, n: int, k: int) -> np.ndarray:
        return metrics.overlap(group, depth, n, k)


@dataclass(frozen=True, repr=False)
class RBO(Neighbours):
    """Rank-biased overlap (Webber, Moffat & Zobel 2010). `p` is the chance that a reader who looks
    at a place looks at the next one, too: 1 / (1 - p) places on average.
    """

    name = "RBO"
    form = "RBO@k[:p] (p: persistence, by default 0.9)"
    p: float = metrics.PERSISTENCE

    @classmethod
    def of(cls, ks: list[int], options: list[str]) -> Measure:
        told = re.fullmatch(r"0?\.[0-9]{1,6}", options[0]) if len(options) == 1 else None
        p = float(told[0]) if told else metrics.PERSISTENCE
        if len(ks) != 1 or (options and not told) or p == 0:
            raise ValueError(
                "RBO needs one k and takes a persistence between 0 and 1, as in RBO@50:0.98"
            )
        return cls(ks[0], p)

    def options(self) -> tuple[str, ...]:
        return () if self.p == metrics.PERSISTENCE else (f"{self.p:g}",)

    @property
    def definition(self) -> str:
        return (
            f"rank-biased overlap of a stage's top {self.k} and the next one's, persistence"
            f" {self.p:g}, extrapolated beyond {self.k}"
        )

    def values(self, group: np.ndarray, depth: np.ndarray, n: int, k: int) -> np.ndarray:
        return metrics.rank_biased_overlap(group, depth, n, k, self.p)
