"""consistency: whether a stage cuts as production's own stage did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ..arrays import RunArrays, SliceMask
from .measure import BY_REQUEST, RANDOM, Measure, MetricValue, mean

PLACE = "logged_stage"  # column of the scored rows


@dataclass(frozen=True, repr=False)
class Consistency(Measure):
    """How often a stage would keep what a stage of production kept, from the same candidates and as
    many of them.
    """

    name = "consistency"
    form = "consistency:STAGE (a stage of production)"
    better = "neither"
    stage: str = ""

    @classmethod
    def of(cls, ks: list[int], options: list[str]) -> Measure:
        if ks or len(options) != 1 or not options[0]:
            raise ValueError("consistency needs a stage of production, as in consistency:rank")
        return cls(None, options[0])

    def options(self) -> tuple[str, ...]:
        return (self.stage,)

    @property
    def by_request(self) -> bool:
        return True

    @property
    def definition(self) -> str:
        return (
            f"share of what production's {self.stage} kept that the stage would keep of the same"
            " logged candidates, cut to as many; mean over requests"
        )

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        denominator = f"requests of which production's {self.stage} kept some and dropped some"
        why = BY_REQUEST if part.by_truth else self._why(reading)
        if why:
            for stage in stages:
                yield self.figure(stage, part, None, "request", denominator, why)
            return
        scores = [f"{stage}.score" for stage in stages]
        group, kept, frame = self._candidates(reading, scores)
        n = np.bincount(group, minlength=reading.n)
        wanted = np.bincount(group[kept], minlength=reading.n)
        defined = (wanted > 0) & (wanted < n)
        for stage, column in zip(stages, scores, strict=True):
            inside = chance_of_top(group, frame[column].to_numpy(), wanted)
            hits = np.bincount(group[kept], inside[kept], minlength=reading.n)
            values = np.where(defined, hits / np.maximum(wanted, 1), np.nan)
            yield self.figure(stage, part, mean(reading, part, values), "request", denominator)
        values = np.where(defined, wanted / np.maximum(n, 1), np.nan)
        random = mean(reading, part, values)
        yield self.figure(RANDOM, part, random, "request", denominator, "expected value")

    def _why(self, reading: RunArrays) -> str:
        """Why there is no value, or ""."""
        told = reading.run.meta["log"].get("stages") or []
        if not told or PLACE not in reading.run.columns("scored"):
            return "n/a: the log does not tell what production's stages kept"
        if self.stage not in told[1:]:
            return f"n/a: the log tells the cuts of {', '.join(told[1:]) or 'no stage'}"
        return ""

    def _candidates(
        self, reading: RunArrays, scores: list[str]
    ) -> tuple[np.ndarray, np.ndarray, pl.DataFrame]:
        """The logged rows that reached the stage: number of the request and whether it was kept,
        (n_rows,) each, and their scores.
        """
        told = reading.run.meta["log"]["stages"]
        at = told.index(self.stage)
        frame = reading.run.read("scored", "request_id", PLACE, *scores)
        frame = frame.filter(pl.col(PLACE).is_in(told[at - 1 :])).join(
            reading.index, on="request_id", maintain_order="left"
        )
        kept = frame[PLACE].is_in(told[at:]).to_numpy()
        return frame["group"].to_numpy(), kept, frame.select(scores).fill_null(np.nan)


def chance_of_top(group: np.ndarray, scores: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The chance of each row to be among the best of its group: float64 (n_rows,).

    Equal scores share the last places; rows without a score come after all others.

    Args:
        group: number of each row's group, (n_rows,).
        scores: of each row, NaN where it has none, (n_rows,).
        k: how many rows of each group are taken, (n_groups,).
    """
    place = pl.DataFrame({"group": group, "score": np.nan_to_num(scores, nan=-np.inf)}).select(
        pl.col("score").rank("min", descending=True).over("group").alias("first"),
        pl.len().over("group", "score").alias("equal"),
    )
    above = place["first"].to_numpy().astype(np.float64) - 1
    return np.clip((k[group] - above) / place["equal"].to_numpy(), 0.0, 1.0)
