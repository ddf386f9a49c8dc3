"""Measures of scored rows: AUC, gAUC, log loss and ECE."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .. import metrics
from ..arrays import LOGGED, RunArrays, SliceMask
from ..intervals import Calibration, Estimate, PooledAUC, Ratio
from .hits import no_scores
from .measure import BASE, BY_REQUEST, RANDOM, Measure, MetricValue, of_requests


@dataclass(frozen=True)
class ScoredRows:
    """Exposures with a stage's scores or probabilities: request, user, value and label, each
    (n_rows,).
    """

    group: np.ndarray
    cluster: np.ndarray
    values: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, repr=False)
class RowMeasure(Measure):
    """A measure of a stage's scores, or of its probabilities, over the exposures of a Run."""

    probabilities = False

    @abstractmethod
    def estimate(self, reading: RunArrays, rows: ScoredRows) -> Estimate:
        """The value over some rows."""

    def unit(self, label: str, positives: int) -> tuple[str, str]:
        """Unit and denominator."""
        return "exposure", f"exposures, {positives} with a {label}"

    def references(
        self, reading: RunArrays, part: SliceMask, rows: ScoredRows, unit: str, denominator: str
    ) -> Iterator[MetricValue]:
        """Reference values for the stages; the values of `rows` are the logged order."""
        yield self.figure(LOGGED, part, self.estimate(reading, rows), unit, denominator)
        yield half(self, part, unit)

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        if part.by_truth:
            for stage in stages:
                yield self.figure(stage, part, None, "", "", BY_REQUEST)
            return
        shown, label = reading.shown, reading.run.relevance
        inside = part.requests[shown.group]
        group, labels = shown.group[inside], shown.label[inside]
        cluster = reading.cluster[group]
        unit, denominator = self.unit(label, int(labels.sum()))
        for stage in stages:
            found = shown.probability.get(stage) if self.probabilities else shown.score[stage]
            if found is None:
                why = f"n/a: {stage} has no calibrated probability"
            elif not (why := no_scores(shown, stage, inside)) and np.isnan(found[inside]).any():
                why = (
                    f"n/a: {int(np.isnan(found[inside]).sum())} exposures have no probability of"
                    f" {stage}"
                )
            if why or found is None:
                yield self.figure(stage, part, None, unit, denominator, why)
                continue
            estimate = self.estimate(reading, ScoredRows(group, cluster, found[inside], labels))
            yield self.figure(stage, part, estimate, unit, denominator, self.note(reading))
        if inside.any():
            rows = ScoredRows(group, cluster, shown.score[LOGGED][inside], labels)
            yield from self.references(reading, part, rows, unit, denominator)

    def note(self, reading: RunArrays) -> str:
        """The note of every value."""
        in_sample = self.probabilities and reading.run.meta["window"] == "W2b"
        return "in sample: calibration is fitted on W2b" if in_sample else ""


def half(measure: Measure, part: SliceMask, unit: str) -> MetricValue:
    """AUC of a random order."""
    ratio = Ratio(np.full(1, 0.5), np.ones(1), np.zeros(1, dtype=np.int64), np.zeros(1))
    return MetricValue(RANDOM, measure, part.name, ratio, unit, "", "expected value", constant=True)


@dataclass(frozen=True, repr=False)
class AUC(RowMeasure):
    name = "AUC"
    form = "AUC"

    @property
    def definition(self) -> str:
        return (
            "probability that a positive row scores above a negative one, exact, ties one half, all"
            " rows pooled"
        )

    def estimate(self, reading: RunArrays, rows: ScoredRows) -> Estimate:
        return PooledAUC(rows.values, rows.labels, rows.cluster)


@dataclass(frozen=True, repr=False)
class GroupedAUC(RowMeasure):
    """gAUC: AUC within each request or user, over exposures or over all scored candidates."""

    name = "gAUC"
    form = "gAUC:request|user:exposures|candidates[:exposures|positives|none]"
    group: str = "request"
    population: str = "exposures"
    weight: str = "exposures"

    @classmethod
    def of(cls, ks: list[int], options: list[str]) -> Measure:
        if ks:
            raise ValueError("gAUC takes no k")
        choices = (
            ("request", "user"),
            ("exposures", "candidates"),
            ("exposures", "positives", "none"),
        )
        if not 2 <= len(options) <= 3 or any(
            o not in c for o, c in zip(options, choices, strict=False)
        ):
            raise ValueError("gAUC needs its group and population, as in gAUC:request:exposures")
        return cls(None, *options)

    def options(self) -> tuple[str, ...]:
        weight = () if self.weight == "exposures" else (self.weight,)
        return self.group, self.population, *weight

    @property
    def depth(self) -> str:
        return "input" if self.population == "candidates" else ""

    @property
    def definition(self) -> str:
        weight = {"exposures": "its rows", "positives": "its positives", "none": "nothing"}[
            self.weight
        ]
        over = "shown items" if self.population == "exposures" else "all that the stage scored"
        return (
            f"AUC within each {self.group} over {over}, weighted by {weight}; {self.group}s of one"
            " class left out"
        )

    def unit(self, label: str, positives: int) -> tuple[str, str]:
        return (
            self.group,
            (
                f"{self.group}s with shown items of both classes ({label}), weighted by"
                f" {self._weighted_by}"
            ),
        )

    @property
    def _weighted_by(self) -> str:
        return {"exposures": "rows", "positives": "positives", "none": "nothing"}[self.weight]

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        candidates = self.population == "candidates" and not part.by_truth
        yield from (
            self._of_candidates(reading, part, stages)
            if candidates
            else super().figures(reading, part, stages)
        )

    @property
    def by_request(self) -> bool:
        return self.group == "request"

    def estimate(self, reading: RunArrays, rows: ScoredRows) -> Estimate:
        by_user = self.group == "user"
        n = len(reading.users) if by_user else reading.n
        auc, sizes, positives = metrics.auc_by_group(
            rows.cluster if by_user else rows.group, rows.values, rows.labels, n
        )
        weights = metrics.group_weights(sizes, positives, self.weight).astype(np.float64)
        some = sizes > 0
        owner = np.arange(n) if by_user else reading.cluster
        return Ratio((auc * weights)[some], weights[some], owner[some])

    def _of_candidates(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        """AUC of each request over what a stage scored: sum of wins / (P N), with P relevant items
        and N = n - P others.
        """
        for stage in stages:
            denominator = (
                f"requests with relevant and other items among what {stage} scored, weighted by"
                f" {self._weighted_by}"
            )
            if self.group == "user":
                why = "n/a: scores of candidates are comparable only within a request"
                yield self.figure(stage, part, None, "request", denominator, why)
                continue
            wins = reading.truths.wins[stage]
            there = ~np.isnan(wins)
            group = reading.truths.group[there]
            positives = np.bincount(group, minlength=reading.n)
            rows = reading.requests[f"{stage}.n"].fill_null(0).to_numpy().astype(np.int64)
            pairs = positives * (rows - positives)
            total = np.bincount(group, weights=wins[there], minlength=reading.n)
            values = np.where(pairs > 0, total / np.maximum(pairs, 1), np.nan)
            weights = metrics.group_weights(rows, positives, self.weight).astype(np.float64)
            yield self.figure(
                stage,
                part,
                of_requests(reading, part, values * weights, weights),
                "request",
                denominator,
            )
        if self.group == "request":
            yield half(self, part, "request")


@dataclass(frozen=True, repr=False)
class LogLoss(RowMeasure):
    name = "logloss"
    form = "logloss"
    better = "lower"
    probabilities = True

    @property
    def definition(self) -> str:
        return "mean natural-log loss of the calibrated probability (lower is better)"

    def estimate(self, reading: RunArrays, rows: ScoredRows) -> Estimate:
        sizes = np.bincount(rows.group, minlength=reading.n)
        total = np.bincount(
            rows.group, weights=metrics.log_losses(rows.values, rows.labels), minlength=reading.n
        )
        some = sizes > 0
        return Ratio(
            total[some], sizes[some].astype(np.float64), reading.cluster[some], sizes[some]
        )

    def references(
        self, reading: RunArrays, part: SliceMask, rows: ScoredRows, unit: str, denominator: str
    ) -> Iterator[MetricValue]:
        constant = np.full(len(rows.labels), rows.labels.mean())
        base = self.estimate(reading, ScoredRows(rows.group, rows.cluster, constant, rows.labels))
        yield self.figure(BASE, part, base, unit, denominator, "the mean for every row")


@dataclass(frozen=True, repr=False)
class ECE(RowMeasure):
    name = "ECE"
    form = "ECE"
    better = "lower"
    probabilities = True

    @property
    def definition(self) -> str:
        return (
            "mean gap between probability and frequency over 15 bins of equal mass (lower is"
            " better)"
        )

    def estimate(self, reading: RunArrays, rows: ScoredRows) -> Estimate:
        return Calibration(rows.values, rows.labels.astype(np.float64), rows.cluster)

    def note(self, reading: RunArrays) -> str:
        leans = "absolute gaps grow under resampling, so the interval is biased upwards"
        return "; ".join(filter(None, [leans, super().note(reading)]))

    def references(
        self, reading: RunArrays, part: SliceMask, rows: ScoredRows, unit: str, denominator: str
    ) -> Iterator[MetricValue]:
        return iter(())
