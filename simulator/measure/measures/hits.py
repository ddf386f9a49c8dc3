"""Measures of ranked lists: hits, recall, nDCG, reciprocal rank, and the same in money."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from ....stages.frame import check_array
from .. import metrics
from ..arrays import LOGGED, RunArrays, Shown, SliceMask
from ..intervals import Ratio
from ..metrics import LOST
from .measure import (
    BY_REQUEST,
    CEILING,
    RANDOM,
    Measure,
    MetricValue,
    Values,
    mean,
    of_part,
    of_requests,
    too_short,
    top,
)

WEEK = 7  # default days for all-scenario relevant items
ALL_TAKES = (
    "HR and Recall take :all, alone or with 1 to 9,999 whole days, as in HR@50:all:14d; overlap and"
    " RBO take no option"
)


@dataclass(frozen=True)
class Lists:
    """Relevant items in ranked lists: number of the list, rank in it, money; each (n_relevant,)."""

    group: np.ndarray
    rank: np.ndarray
    money: np.ndarray


@dataclass(frozen=True)
class RandomLists:
    """Relevant items of lists in a random order.

    group, reachable, money: number of the list, whether the item is in it, money: (n_relevant,).
    many: length of each list: (n_lists,).
    """

    group: np.ndarray
    reachable: np.ndarray
    money: np.ndarray
    many: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Number of relevant items in each list: (n_lists,)."""
        return np.bincount(self.group[self.reachable], minlength=len(self.many))

    @property
    def truth(self) -> np.ndarray:
        """Number of relevant items of each list, in it or not: (n_lists,)."""
        return np.bincount(self.group, minlength=len(self.many))


@dataclass(frozen=True, repr=False)
class HitMeasure(Measure):
    """A measure with a value for every ranked list of a stage; with `exposures`, for the list that
    was shown, ordered by the stage's score.
    """

    ranks: ClassVar[bool] = True
    needs_k: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = ("exposures",)
    exposures: bool = False

    @classmethod
    def of(cls, ks: list[int], options: list[str]) -> Measure:
        if len(ks) > 1 or (not ks and cls.needs_k):
            raise ValueError(f"{cls.name} needs one k, as in {cls.name}@50")
        if len(set(options)) < len(options) or not set(options) <= set(cls.takes):
            raise ValueError(f"{cls.name} takes the options {sorted(cls.takes)}")
        return cls(k=ks[0] if ks else None, **dict.fromkeys(options, True))

    def options(self) -> tuple[str, ...]:
        return tuple(name for name in reversed(self.takes) if getattr(self, name))

    @property
    def definition(self) -> str:
        return self.clause + (", over the shown list" if self.exposures else "")

    @property
    @abstractmethod
    def clause(self) -> str:
        """The definition without its options."""

    @abstractmethod
    def values(self, lists: Lists, n: int, k: int) -> np.ndarray | Values:
        """The value of each of `n` lists: float64 (n,), NaN where undefined. For a ratio of sums,
        numerators and denominators.
        """

    @abstractmethod
    def expected(self, lists: RandomLists, k: int) -> np.ndarray | Values:
        """Expected `values` under a random order."""

    # The same for all hit measures.

    def money(self, reading: RunArrays) -> np.ndarray:
        """Money of the relevant items of the Run: (n_relevant,)."""
        return reading.truths.money

    @property
    def by_request(self) -> bool:
        return True

    def per_list(self, lists: Lists, n: int) -> Values:
        """Numerator (NaN: undefined) and denominator of each list."""
        return self._pair(self.values(lists, n, self.k or LOST - 1), n)

    def _pair(self, values: np.ndarray | Values, n: int) -> Values:
        """Values as numerator and denominator, of the shape that is needed."""
        pair = values if isinstance(values, tuple) else (values, np.ones(n))
        title = f"measure {self} ({type(self).__name__})"
        num, den = (check_array(title, part, {"n_lists": n}, "of lists") for part in pair)
        return num, den

    def per_request(self, reading: RunArrays, stage: str) -> Values:
        if self.exposures:
            return super().per_request(reading, stage)
        return self.per_list(
            Lists(reading.truths.group, reading.truths.rank[stage], self.money(reading)), reading.n
        )

    @property
    def depth(self) -> str:
        return "output" if self.k is None and not self.exposures else ""

    def row(
        self,
        reading: RunArrays,
        part: SliceMask,
        stage: str,
        values: Values | None,
        where: str,
        note: str = "",
    ) -> MetricValue:
        """A metric value from the numerator and denominator of each request."""
        ratio = of_requests(reading, part, *values) if values else None
        return self.figure(
            stage,
            part,
            ratio,
            "request",
            f"requests with a {reading.run.relevance}{of_part(part)}{where}",
            note,
        )

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        yield from (
            self._of_shown(reading, part, stages)
            if self.exposures
            else self._of_slates(reading, part, stages)
        )

    def _of_slates(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        """Values over the output of each stage; random and ceiling over the eligible items."""
        run, truths = reading.run, reading.truths
        group, eligible, money = (
            truths.group[part.truth],
            truths.eligible[part.truth],
            self.money(reading)[part.truth],
        )
        where = " (in-scenario)"
        where += (
            f"; {reading.eligible[part.requests].mean():.0f} eligible items on average"
            if part.requests.any()
            else ""
        )
        for stage in stages:
            why = too_short(run, stage, self.k)
            lists = Lists(group, truths.rank[stage][part.truth], money)
            yield self.row(
                reading, part, stage, None if why else self.per_list(lists, reading.n), where, why
            )
        most = self.k or max(run.k(stage) for stage in run.stages)
        at_random = self._pair(
            self.expected(RandomLists(group, eligible, money, reading.eligible), most), reading.n
        )
        yield self.row(
            reading,
            part,
            RANDOM,
            at_random,
            where,
            "expected value" if self.k else f"expected value, cut at {most}",
        )
        best = np.full(len(group), LOST)
        best[eligible] = metrics.ideal_ranks(
            group[eligible], np.nan_to_num(money[eligible], nan=-1.0)
        )
        values = self.per_list(Lists(group, best, money), reading.n)
        note = "all eligible relevant items ranked first"
        yield self.row(reading, part, CEILING, values, where, note)

    def _of_shown(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        """Values over the shown lists, ordered by a stage's score, as logged, and at random."""
        shown, where = reading.shown, ", in a shown list of 2 or more"
        rows = np.flatnonzero(shown.in_list & (shown.truth >= 0))
        rows = rows[part.truth[shown.truth[rows]]]
        group, money = shown.group[rows], self.money(reading)[shown.truth[rows]]
        for stage in (*stages, LOGGED):
            if why := no_scores(shown, stage, shown.in_list):
                yield self.row(reading, part, stage, None, where, why)
                continue
            ranks, _ = reading.shown_ranks(stage)
            yield self.row(
                reading,
                part,
                stage,
                self.per_list(Lists(group, ranks[rows], money), reading.n),
                where,
            )
        if shown.in_list.any():
            _, sizes = reading.shown_ranks(LOGGED)
            lists = RandomLists(group, np.ones(len(group), dtype=bool), money, sizes)
            values = self._pair(self.expected(lists, self.k or LOST - 1), reading.n)
            yield self.row(
                reading, part, RANDOM, values, where, "expected value over the shown list"
            )


def no_scores(shown: Shown, stage: str, rows: np.ndarray) -> str:
    """Why a stage has no scores of these exposures, or ""."""
    if not rows.any():
        return "n/a: the log holds no shown lists"
    missing = int(np.isnan(shown.score[stage][rows]).sum())
    return f"n/a: {missing} exposures have no score of {stage}" if missing else ""


@dataclass(frozen=True, repr=False)
class _AllScenario(HitMeasure):
    """With `days`, what the same user bought elsewhere within that time is relevant, too."""

    days: int | None = None

    @classmethod
    def of(cls, ks: list[int], options: list[str]) -> Measure:
        if "all" not in options:
            return super().of(ks, options)
        if len(ks) != 1:
            raise ValueError(f"{cls.name} needs one k, as in {cls.name}@50")
        if (days := re.fullmatch(r"all(?::([1-9][0-9]{0,3})d)?", ":".join(options))) is None:
            raise ValueError(ALL_TAKES)
        return cls(k=ks[0], days=int(days[1] or WEEK))

    def options(self) -> tuple[str, ...]:
        if self.days is None:
            return super().options()
        return ("all",) if self.days == WEEK else ("all", f"{self.days}d")

    @property
    def definition(self) -> str:
        if self.days is None:
            return super().definition
        more = (
            f"items that the same user bought elsewhere within {self.days} days of the request are"
            " relevant, too (all-scenario)"
        )
        return f"{self.clause}; {more}"

    def per_request(self, reading: RunArrays, stage: str) -> Values:
        return (
            super().per_request(reading, stage)
            if self.days is None
            else Measure.per_request(self, reading, stage)
        )

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        yield from (
            super().figures(reading, part, stages)
            if self.days is None
            else self._everywhere(reading, part, stages)
        )

    def _everywhere(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        """Values over relevant items and purchases elsewhere, whose ranks come from the slates."""
        run, truths, days = reading.run, reading.truths, self.days or WEEK
        bought, note = (None, BY_REQUEST) if part.by_truth else reading.soon_elsewhere(days)
        where = (
            f"requests with a {run.relevance} or a purchase elsewhere within {days} days"
            f" (all-scenario){of_part(part)}"
        )
        for stage in stages:
            short = too_short(run, stage, self.k)
            if bought is None or short:
                yield self.figure(
                    stage, part, None, "request", where, note if bought is None else short
                )
                continue
            slate = top(run, stage, self.k or 0)
            found = bought.join(
                slate, on=["request_id", "item_id"], how="left", maintain_order="left"
            )["rank"]
            group = np.concatenate([truths.group, bought["group"].to_numpy()])
            rank = np.concatenate(
                [truths.rank[stage], found.cast(pl.Int64).fill_null(LOST).to_numpy()]
            )
            values = self.per_list(Lists(group, rank, np.zeros(len(rank))), reading.n)
            yield self.figure(
                stage, part, of_requests(reading, part, *values), "request", where, note
            )


@dataclass(frozen=True, repr=False)
class HR(_AllScenario):
    name = "HR"
    form = "HR@k[:exposures|:all[:DAYSd]]"

    @property
    def clause(self) -> str:
        return f"share of requests with a relevant item in the top {self.k}"

    def values(self, lists: Lists, n: int, k: int) -> np.ndarray:
        return metrics.hit_rate(lists.group, lists.rank, n, k)

    def expected(self, lists: RandomLists, k: int) -> np.ndarray:
        return metrics.random_hit_rate(lists.many, lists.found, lists.truth, k)


@dataclass(frozen=True, repr=False)
class Recall(_AllScenario):
    name = "Recall"
    form = "Recall@k[:exposures|:all[:DAYSd]]"

    @classmethod
    def of(cls, ks: list[int], options: list[str]) -> Measure:
        return (
            RecallOfBest(m=ks[0], k=ks[1])
            if len(ks) == 2 and not options
            else super().of(ks, options)
        )

    @property
    def clause(self) -> str:
        return f"relevant items in the top {self.k} / relevant items, mean over requests"

    def values(self, lists: Lists, n: int, k: int) -> np.ndarray:
        return metrics.recall(lists.group, lists.rank, n, k)

    def expected(self, lists: RandomLists, k: int) -> np.ndarray:
        return metrics.random_recall(lists.many, lists.found, lists.truth, k)


@dataclass(frozen=True, repr=False)
class RecallOfBest(Measure):
    """Recall@m@k: share of the last stage's top k that an earlier stage has in its top m; mean over
    requests.
    """

    name = "Recall@m@k"
    form = "Recall@m@k"
    m: int = 0

    @property
    def definition(self) -> str:
        return (
            f"share of the last stage's top {self.k} that a stage has in its top {self.m}, mean"
            " over requests"
        )

    def __str__(self) -> str:
        return f"Recall@{self.m}@{self.k}"

    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        run, last = reading.run, reading.run.stages[-1]
        unit, denominator = "request", f"requests with an output of {last}"
        cheaper = [stage for stage in stages if stage != last]
        if part.by_truth:
            reasons = dict.fromkeys(cheaper, BY_REQUEST)
        elif why := too_short(run, last, self.k):
            reasons = dict.fromkeys(cheaper, why)
        else:
            reasons = {stage: why for stage in cheaper if (why := too_short(run, stage, self.m))}
            if not cheaper:
                yield self.figure(
                    last,
                    part,
                    None,
                    unit,
                    denominator,
                    "n/a: defined only for stages before the last",
                )
        best = top(run, last, self.k or 0) if set(cheaper) - set(reasons) else None
        for stage in cheaper:
            if stage in reasons or best is None:
                yield self.figure(stage, part, None, unit, denominator, reasons[stage])
                continue
            kept = top(run, stage, self.m).with_columns(pl.lit(1.0).alias("kept"))
            found = best.join(kept, on=["request_id", "item_id"], how="left")
            share = found.group_by("request_id").agg(pl.col("kept").sum() / pl.len())
            values = reading.index.join(share, on="request_id", how="left", maintain_order="left")[
                "kept"
            ]
            yield self.figure(
                stage,
                part,
                mean(reading, part, values.fill_null(np.nan).to_numpy()),
                unit,
                denominator,
            )


@dataclass(frozen=True, repr=False)
class Kept(HitMeasure):
    """Recall over all requests together: a ratio of sums, as survival is."""

    name = "kept"
    form = "kept@k[:exposures]"

    @property
    def clause(self) -> str:
        return f"relevant items in the top {self.k} / relevant items, over all requests together"

    def values(self, lists: Lists, n: int, k: int) -> Values:
        inside, total = metrics.money_inside(
            lists.group, lists.rank, np.ones(len(lists.group)), n, k
        )
        return np.where(total > 0, inside, np.nan), total

    def expected(self, lists: RandomLists, k: int) -> Values:
        truth = lists.truth
        inside = lists.found * metrics.random_share(lists.many, k)
        return np.where(truth > 0, inside, np.nan), truth.astype(np.float64)

    def row(
        self,
        reading: RunArrays,
        part: SliceMask,
        stage: str,
        values: Values | None,
        where: str,
        note: str = "",
    ) -> MetricValue:
        ratio = of_requests(reading, part, *values, values[1]) if values else None
        denominator = (
            f"relevant items of requests with a {reading.run.relevance}{of_part(part)}{where}"
        )
        return self.figure(stage, part, ratio, "relevant item", denominator, note)


@dataclass(frozen=True, repr=False)
class NDCG(HitMeasure):
    name = "nDCG"
    form = "nDCG@k[:exposures]"

    @property
    def clause(self) -> str:
        return (
            f"hits in the top {self.k} discounted by log2(1 + rank), divided by the same sum for"
            " the ideal order"
        )

    def values(self, lists: Lists, n: int, k: int) -> np.ndarray:
        return metrics.ndcg(lists.group, lists.rank, n, k)

    def expected(self, lists: RandomLists, k: int) -> np.ndarray:
        return metrics.random_ndcg(lists.many, lists.found, lists.truth, k)


@dataclass(frozen=True, repr=False)
class MRR(HitMeasure):
    name = "MRR"
    form = "MRR[@k][:exposures]"
    needs_k = False

    @property
    def clause(self) -> str:
        return f"1 / rank of the first relevant item{f', 0 beyond rank {self.k}' if self.k else ''}"

    def values(self, lists: Lists, n: int, k: int) -> np.ndarray:
        return metrics.reciprocal_rank(lists.group, lists.rank, n, k)

    def expected(self, lists: RandomLists, k: int) -> np.ndarray:
        return metrics.random_reciprocal_rank(lists.many, lists.found, lists.truth, k)


@dataclass(frozen=True, repr=False)
class _Money(HitMeasure):
    """A measure in money, over the relevant items with a known price; with `w99`, money is
    winsorised at its 99th percentile.
    """

    takes = ("exposures", "w99")
    w99: bool = False

    @property
    def definition(self) -> str:
        return (
            self.clause
            + ", money winsorised at its 99th percentile" * self.w99
            + ", over the shown list" * self.exposures
        )

    def money(self, reading: RunArrays) -> np.ndarray:
        return reading.winsorised if self.w99 else reading.truths.money

    def per_list(self, lists: Lists, n: int) -> Values:
        known = ~np.isnan(lists.money)
        return super().per_list(Lists(lists.group[known], lists.rank[known], lists.money[known]), n)

    def missing(self, reading: RunArrays, part: SliceMask) -> str:
        """A note on relevant items without a price, or ""."""
        missing = np.isnan(reading.truths.money[part.truth])
        if not missing.any():
            return ""
        share = f"{missing.mean():.1%}"
        return f"{missing.sum()} relevant items without a price shown or paid ({share}) left out"

    def row(
        self,
        reading: RunArrays,
        part: SliceMask,
        stage: str,
        values: Values | None,
        where: str,
        note: str = "",
    ) -> MetricValue:
        ratio = of_requests(reading, part, *values) if values else None
        denominator = f"requests with a priced {reading.run.relevance}{of_part(part)}{where}"
        unit, denominator = self.unit(reading, ratio, denominator)
        notes = "; ".join(filter(None, [note, self.missing(reading, part)]))
        return self.figure(stage, part, ratio, unit, denominator, notes)

    def unit(self, reading: RunArrays, ratio: Ratio | None, denominator: str) -> tuple[str, str]:
        """Unit and denominator of a value."""
        return "request", denominator


def _priced(lists: RandomLists) -> RandomLists:
    known = ~np.isnan(lists.money)
    return RandomLists(lists.group[known], lists.reachable[known], lists.money[known], lists.many)


@dataclass(frozen=True, repr=False)
class GMVHR(_Money):
    name = "GMV-HR"
    form = "GMV-HR@k[:w99][:exposures]"

    @property
    def clause(self) -> str:
        return f"money of relevant items in the top {self.k} / money of all of them"

    def values(self, lists: Lists, n: int, k: int) -> Values:
        inside, total = metrics.money_inside(lists.group, lists.rank, lists.money, n, k)
        return np.where(total > 0, inside, np.nan), total

    def expected(self, lists: RandomLists, k: int) -> Values:
        some, n = _priced(lists), len(lists.many)
        total = np.bincount(some.group, weights=some.money, minlength=n)
        inside = np.bincount(some.group, weights=some.money * some.reachable, minlength=n)
        return np.where(total > 0, inside * metrics.random_share(lists.many, k), np.nan), total

    def unit(self, reading: RunArrays, ratio: Ratio | None, denominator: str) -> tuple[str, str]:
        unit = str(reading.run.meta["log"].get("currency") or "money")
        total = f" ({ratio.den[ratio.known].sum():.2f} {unit})" if ratio else ""
        return unit, f"money of all relevant items{total} of {denominator}"


@dataclass(frozen=True, repr=False)
class GMVNDCG(_Money):
    name = "GMV-nDCG"
    form = "GMV-nDCG@k[:w99][:exposures]"

    @property
    def clause(self) -> str:
        return f"nDCG@{self.k} with money as the gain"

    def values(self, lists: Lists, n: int, k: int) -> np.ndarray:
        return metrics.ndcg(lists.group, lists.rank, n, k, lists.money)

    def expected(self, lists: RandomLists, k: int) -> np.ndarray:
        some, n = _priced(lists), len(lists.many)
        inside = np.bincount(
            some.group, weights=some.money * some.reachable, minlength=n
        ) * metrics.random_discount(lists.many, k)
        ideal = metrics.ideal_dcg(some.group, some.money, n, k)
        return np.where(ideal > 0, inside / np.where(ideal > 0, ideal, 1), np.nan)
