"""Measures of a Run: values parsed from text, asked stage by stage, with intervals, slices, comparisons and the cascade.

The arithmetic is in `metrics.py`, the intervals in `intervals.py`; here are the names and what they read of a Run. Every row says
its unit, how many units were scored, how many were undefined, and its denominator. Definitions: `docs/METRICS.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from ..log import KarmafunnelError
from ..stages.base import hash_ids, mix, order
from . import metrics
from .intervals import Calibration, Difference, Estimate, PooledAUC, Ratio, holm, interval, over_seeds, resample
from .metrics import LOST
from .run import Run

LISTS = ("HR", "Recall", "nDCG", "MRR", "GMV-HR", "GMV-nDCG")
MONEY = ("GMV-HR", "GMV-nDCG")
LOWER_IS_BETTER = ("logloss", "ECE")
KNOWN = (
    "HR@k, Recall@k, nDCG@k, MRR, MRR@k, GMV-HR@k, GMV-nDCG@k (these also with :exposures, the last two with :w99), survival, ceiling, "
    "AUC, gAUC:GROUP:POPULATION[:WEIGHT] (request|user, exposures|candidates, exposures|positives|none), logloss, ECE, Recall@m@k"
)
# Slices by truth item restrict a request's truth; slices by request keep or leave out whole requests.
SLICES: dict[str, tuple[str, ...]] = {
    "target": ("head", "tail", "cold"), "repeat": ("new", "repeat"), "price": ("low", "mid", "high", "unknown"),
    "user": ("new", "returning"), "query": ("with", "without"),
}  # fmt: skip
SLICES_OF_TRUTH = ("target", "repeat", "price")
ALL, RANDOM, CEILING, LOGGED, END = "all", "random", "ceiling", "logged order", "end to end"


# -- names --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Measure:
    """One question to a Run, such as `HR@50`. Equal by content; prints as typed."""

    name: str
    k: int | None = None
    m: int | None = None  # of Recall@m@k
    w99: bool = False
    exposures: bool = False  # rank the shown list instead of the slate
    group: str | None = None
    population: str | None = None
    weight: str | None = None

    @classmethod
    def parse(cls, text: str) -> Measure:
        """From text; raises KarmafunnelError that lists what exists."""
        head, *options = text.strip().split(":")
        name, *numbers = head.split("@")
        if not all(re.fullmatch(r"[1-9]\d*", number) for number in numbers):
            raise _refuse(text, "k must be a whole number from 1")
        ks = [int(number) for number in numbers]
        if name == "gAUC" and not ks:
            return cls._grouped(text, options)
        if name in LISTS:
            if name == "Recall" and len(ks) == 2 and not options:
                return cls(name, k=ks[1], m=ks[0])
            allowed = {"exposures", "w99"} if name in MONEY else {"exposures"}
            if len(ks) > 1 or (not ks and name != "MRR"):
                raise _refuse(text, f"{name} needs one k, as in {name}@50")
            if len(set(options)) < len(options) or not set(options) <= allowed:
                raise _refuse(text, f"{name} takes the options {sorted(allowed)}")
            return cls(name, k=ks[0] if ks else None, w99="w99" in options, exposures="exposures" in options)
        if name in ("survival", "ceiling", "AUC", "logloss", "ECE"):
            if ks or options:
                raise _refuse(text, f"{name} takes no k and no option")
            return cls(name)
        raise _refuse(text, "no such measure")

    @classmethod
    def _grouped(cls, text: str, options: list[str]) -> Measure:
        choices = (("request", "user"), ("exposures", "candidates"), ("exposures", "positives", "none"))
        if not 2 <= len(options) <= 3 or any(o not in c for o, c in zip(options, choices, strict=False)):
            raise _refuse(text, "gAUC names its group and population, as in gAUC:request:exposures")
        return cls("gAUC", group=options[0], population=options[1], weight=options[2] if len(options) == 3 else "exposures")

    def __str__(self) -> str:
        text = self.name + "".join(f"@{n}" for n in (self.m, self.k) if n is not None)
        if self.name == "gAUC":
            text += f":{self.group}:{self.population}" + (f":{self.weight}" if self.weight != "exposures" else "")
        return text + (":w99" if self.w99 else "") + (":exposures" if self.exposures else "")

    __repr__ = __str__


def _refuse(text: str, why: str) -> KarmafunnelError:
    return KarmafunnelError(f"measure {text!r}: {why}; there are {KNOWN}")


def parse_all(measures: Sequence[Measure | str]) -> list[Measure]:
    return [m if isinstance(m, Measure) else Measure.parse(m) for m in measures]


# -- what a Run says, as arrays -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Truths:
    """One row a truth item, by request. `group` is the request's row; ranks are int64, LOST once lost."""

    frame: pl.DataFrame
    group: np.ndarray
    eligible: np.ndarray
    money: np.ndarray
    rank: dict[str, np.ndarray]
    wins: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Shown:
    """One row a logged exposure with a position, by request; `truth` is the row of the ledger, -1 for an item that is none."""

    group: np.ndarray
    label: np.ndarray
    truth: np.ndarray
    in_list: np.ndarray  # the first row of its item in a list of 2 or more
    tie: np.ndarray
    score: dict[str, np.ndarray]  # NaN where the Run has none
    probability: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Part:
    """A slice's value: the requests that belong to it, and of their truth the items that do (all, for slices by request)."""

    name: str
    requests: np.ndarray
    truth: np.ndarray
    by_truth: bool = False


class Reading:
    """The tables of a Run as arrays, requests in the order of their ids, so that two Runs of the same requests line up."""

    def __init__(self, run: Run):
        self.run = run
        frame = run.read("requests").sort("request_id")
        if frame["request_id"].is_duplicated().any():
            twice = frame["request_id"].filter(frame["request_id"].is_duplicated())[0]
            raise KarmafunnelError(f"{run.path}/requests.parquet: needed one row a request, found {twice!r} twice")
        if frame.height == 0:
            raise KarmafunnelError(f"{run.path}/requests.parquet: needed at least one request, found none")
        self.requests = frame
        self.n = frame.height
        self.index = frame.select("request_id", pl.int_range(pl.len(), dtype=pl.Int64).alias("group"))
        users = frame.select(pl.coalesce("user_id", pl.lit("\x00") + pl.col("request_id"))).to_series()
        self.users, cluster = np.unique(users.to_numpy().astype(str), return_inverse=True)
        self.cluster = cluster.astype(np.int64)
        self.eligible = frame["n_eligible"].to_numpy().astype(np.int64)

    def _grouped(self, table: str, *columns: str | pl.Expr) -> pl.DataFrame:
        frame = self.run.read(table, "request_id", *columns)
        found = frame.join(self.index, on="request_id", how="left", maintain_order="left")
        if found["group"].null_count():
            stray = found.filter(pl.col("group").is_null())["request_id"][0]
            raise KarmafunnelError(f"{self.run.path}/{table}.parquet: request {stray!r} is not in requests.parquet")
        return found.sort("group", maintain_order=True)

    @cached_property
    def truths(self) -> Truths:
        stages = self.run.stages
        columns = ["item_id", "money", "eligible", "target", "repeat", "price_band", "lost", "margin"]
        frame = self._grouped("ledger", *columns, *[f"{s}.{c}" for s in stages for c in ("rank", "wins")])
        money = frame["money"].fill_null(np.nan).to_numpy()
        if (money < 0).any():
            row = frame.row(int(np.flatnonzero(money < 0)[0]), named=True)
            raise KarmafunnelError(
                f"{self.run.path}/ledger.parquet: money must not be negative, found {row['money']} for request {row['request_id']!r}"
            )
        return Truths(
            frame, frame["group"].to_numpy(), frame["eligible"].to_numpy(), money,
            {s: frame[f"{s}.rank"].cast(pl.Int64).fill_null(LOST).to_numpy() for s in stages},
            {s: frame[f"{s}.wins"].fill_null(np.nan).to_numpy() for s in stages},
        )  # fmt: skip

    @cached_property
    def winsorised(self) -> np.ndarray:
        """Truth money cut at the 99th percentile of all the Run's truth money."""
        return metrics.winsorised(self.truths.money)

    @cached_property
    def shown(self) -> Shown:
        label = "purchased" if self.run.label == "purchase" else "clicked"
        has = set(self.run.columns("scored"))
        calibrated = [s for s in self.run.stages if f"{s}.p" in has]
        columns = ["item_id", "position", label, *[f"{s}.score" for s in self.run.stages], *[f"{s}.p" for s in calibrated]]
        frame = self._grouped("scored", *columns).filter(pl.col("position").is_not_null()).sort("group", "position", maintain_order=True)
        rows = self.truths.frame.select("request_id", "item_id", pl.int_range(pl.len(), dtype=pl.Int64).alias("truth"))
        frame = frame.join(rows, on=["request_id", "item_id"], how="left", maintain_order="left")
        group = frame["group"].to_numpy()
        first = frame.select(pl.struct("group", "item_id").is_first_distinct()).to_series().to_numpy()
        sizes = np.bincount(group[first], minlength=self.n)
        seed = int(self.run.meta["seed"] or 0)
        keys = {}
        for column, shift in (("request_id", 0), ("item_id", 1)):
            ids = frame[column].unique(maintain_order=True)
            hashes = pl.DataFrame({column: ids, "hash": pl.Series(hash_ids(ids.to_numpy(), seed + shift), dtype=pl.UInt64)})
            keys[column] = frame.select(column).join(hashes, on=column, how="left", maintain_order="left")["hash"].to_numpy()
        scores = {s: frame[f"{s}.score"].fill_null(np.nan).to_numpy() for s in self.run.stages}
        return Shown(
            group, frame[label].fill_null(False).to_numpy(), frame["truth"].fill_null(-1).to_numpy(), first & (sizes[group] > 1),
            mix(keys["request_id"] + keys["item_id"]), scores | {LOGGED: -frame["position"].to_numpy().astype(np.float32)},
            {s: frame[f"{s}.p"].fill_null(np.nan).to_numpy().astype(np.float64) for s in calibrated},
        )  # fmt: skip

    def shown_ranks(self, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """Rank of every row in its shown list under a stage's score (0 for rows in no list), and each request's list length."""
        shown = self.shown
        rows = np.flatnonzero(shown.in_list)
        group = shown.group[rows]
        sizes = np.bincount(group, minlength=self.n)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        ranks = np.zeros(len(shown.group), dtype=np.int64)
        placed = order(group, shown.score[stage][rows], shown.tie[rows])
        ranks[rows[placed]] = np.arange(len(rows)) - starts[group[placed]] + 1
        return ranks, sizes

    def parts(self, slice_name: str | None) -> list[Part]:
        """Everything, or one part a value of the slice."""
        every = np.ones(self.n, dtype=bool)
        if slice_name is None:
            return [Part(ALL, every, np.ones(self.truths.frame.height, dtype=bool))]
        if slice_name not in SLICES:
            raise KarmafunnelError(f"slice {slice_name!r}: there are {', '.join(SLICES)}")
        frame = self.truths.frame
        columns = {
            "target": pl.col("target"), "price": pl.col("price_band").fill_null("unknown"),
            "repeat": pl.when("repeat").then(pl.lit("repeat")).when(~pl.col("repeat")).then(pl.lit("new")),
            "user": pl.when("new_user").then(pl.lit("new")).otherwise(pl.lit("returning")),
            "query": pl.when("has_query").then(pl.lit("with")).otherwise(pl.lit("without")),
        }  # fmt: skip
        by_truth = slice_name in SLICES_OF_TRUTH
        values = (frame if by_truth else self.requests).select(columns[slice_name].alias("value")).to_series()
        parts = []
        for value in SLICES[slice_name]:
            mask = (values == value).fill_null(False).to_numpy()
            requests = every if by_truth else mask
            parts.append(Part(f"{slice_name}={value}", requests, mask if by_truth else mask[self.truths.group], by_truth))
        return parts


# -- figures ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Figure:
    """One value of one stage, or why there is none."""

    stage: str
    measure: Measure
    part: str
    estimate: Estimate | None
    unit: str
    denominator: str
    note: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.stage, str(self.measure), self.part


def figures(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """All rows of one measure in one part: its stages, then what they are to be held against."""
    if measure.name in LISTS and measure.m is None:
        yield from (_shown_lists if measure.exposures else _slate_lists)(reading, measure, part, stages)
    elif measure.m is not None:
        yield from _kept_of_the_best(reading, measure, part, stages)
    elif measure.name in ("survival", "ceiling"):
        yield from _survival(reading, measure, part, stages)
    elif part.by_truth:
        for stage in stages:
            yield Figure(stage, measure, part.name, None, "", "", "n/a: slices by truth item do not apply to it; slice by user or query")
    elif measure.population == "candidates":
        yield from _candidates(reading, measure, part, stages)
    else:
        yield from _rows(reading, measure, part, stages)


Lists = tuple[np.ndarray, np.ndarray, np.ndarray]  # of every truth item: its list, its rank, its money


def _per_list(measure: Measure, lists: Lists, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Numerator (NaN: undefined) and denominator of every list."""
    group, rank, money = lists
    k = measure.k or LOST - 1
    if measure.name in MONEY:
        known = ~np.isnan(money)
        group, rank, money = group[known], rank[known], money[known]
    if measure.name == "GMV-HR":
        inside, total = metrics.money_inside(group, rank, money, n, k)
        return np.where(total > 0, inside, np.nan), total
    values = {
        "HR": lambda: metrics.hit_rate(group, rank, n, k),
        "Recall": lambda: metrics.recall(group, rank, n, k),
        "MRR": lambda: metrics.reciprocal_rank(group, rank, n, k),
        "nDCG": lambda: metrics.ndcg(group, rank, n, k),
        "GMV-nDCG": lambda: metrics.ndcg(group, rank, n, k, money),
    }[measure.name]()
    return values, np.ones(n)


def _per_random_list(measure: Measure, group: np.ndarray, reachable: np.ndarray, money: np.ndarray, many: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same, expected under a random order of `many` (n,) items, of which `reachable` truth items are some."""
    n = len(many)
    truth, found = np.bincount(group, minlength=n), np.bincount(group[reachable], minlength=n)
    if measure.name in MONEY:
        known = ~np.isnan(money)
        group, reachable, money = group[known], reachable[known], money[known]
        total, inside = (np.bincount(group, weights=money * w, minlength=n) for w in (np.ones(len(group)), reachable))
        if measure.name == "GMV-HR":
            return np.where(total > 0, inside * metrics.random_share(many, k), np.nan), total
        ideal = metrics.ideal_dcg(group, money, n, k)
        return np.where(ideal > 0, inside * metrics.random_discount(many, k) / np.where(ideal > 0, ideal, 1), np.nan), np.ones(n)
    expected: Callable[..., np.ndarray] = {
        "HR": metrics.random_hit_rate, "Recall": metrics.random_recall, "MRR": metrics.random_reciprocal_rank, "nDCG": metrics.random_ndcg,
    }[measure.name]  # fmt: skip
    return expected(many, found, truth, k), np.ones(n)


def _of_requests(reading: Reading, part: Part, num: np.ndarray, den: np.ndarray, counts: np.ndarray | None = None) -> Ratio:
    keep = part.requests
    return Ratio(num[keep], den[keep], reading.cluster[keep], None if counts is None else counts[keep])


def _list_words(reading: Reading, measure: Measure, part: Part, where: str) -> tuple[str, str, str]:
    """Unit, denominator and note of the hit family."""
    label = reading.run.label
    of = "" if part.name == ALL else f" [{part.name}]"
    if measure.name not in MONEY:
        return "request", f"requests with a {label}{of}{where}", ""
    unit = str((reading.run.meta["log"].get("currency") or "money") if measure.name == "GMV-HR" else "request")
    missing = int(np.isnan(reading.truths.money[part.truth]).sum())
    words = "money of all truth items of" if measure.name == "GMV-HR" else ""
    return unit, f"{words} requests with a priced {label}{of}{where}".strip(), f"{missing} truth items without a price left out" if missing else ""


def _slate_lists(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """The hit family over what a stage puts out; random and ceiling over the eligible items."""
    run, truths = reading.run, reading.truths
    group, eligible = truths.group[part.truth], truths.eligible[part.truth]
    money = (reading.winsorised if measure.w99 else truths.money)[part.truth]
    where = f"; {reading.eligible[part.requests].mean():.0f} eligible items on average" if part.requests.any() else ""
    unit, denominator, note = _list_words(reading, measure, part, where)

    def figure(stage: str, values: tuple[np.ndarray, np.ndarray], more: str = "") -> Figure:
        notes = "; ".join(filter(None, (note, more)))
        return Figure(stage, measure, part.name, _of_requests(reading, part, *values), unit, denominator, notes)

    for stage in stages:
        if measure.k is not None and measure.k > run.k(stage):
            yield Figure(stage, measure, part.name, None, unit, denominator, f"n/a: {stage} puts out {run.k(stage)}")
        else:
            yield figure(stage, _per_list(measure, (group, truths.rank[stage][part.truth], money), reading.n))
    most = measure.k or max(run.k(stage) for stage in run.stages)
    expected = _per_random_list(measure, group, eligible, money, reading.eligible, most)
    yield figure(RANDOM, expected, "expected value" if measure.k else f"expected value, cut at {most}")
    best = np.full(len(group), LOST)
    best[eligible] = metrics.ideal_ranks(group[eligible], np.nan_to_num(money[eligible], nan=-1.0))
    yield figure(CEILING, _per_list(measure, (group, best, money), reading.n), "all eligible truth ranked first")


def _shown_lists(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """The hit family over the shown lists, ordered by a stage's score; logged order and random beside."""
    shown = reading.shown
    unit, denominator, note = _list_words(reading, measure, part, ", in a shown list of 2 or more")
    rows = np.flatnonzero(shown.in_list & (shown.truth >= 0))
    rows = rows[part.truth[shown.truth[rows]]]
    group = shown.group[rows]
    money = (reading.winsorised if measure.w99 else reading.truths.money)[shown.truth[rows]]
    for stage in (*stages, LOGGED):
        why = _no_scores(shown, stage, shown.in_list)
        if why:
            yield Figure(stage, measure, part.name, None, unit, denominator, why)
            continue
        ranks, sizes = reading.shown_ranks(stage)
        num, den = _per_list(measure, (group, ranks[rows], money), reading.n)
        yield Figure(stage, measure, part.name, _of_requests(reading, part, num, den), unit, denominator, note)
    if shown.in_list.any():
        num, den = _per_random_list(measure, group, np.ones(len(group), dtype=bool), money, sizes, measure.k or LOST - 1)
        yield Figure(RANDOM, measure, part.name, _of_requests(reading, part, num, den), unit, denominator, "expected value over the shown list")


def _no_scores(shown: Shown, stage: str, rows: np.ndarray) -> str:
    """Why a stage's scores of these exposures cannot be asked, or ""."""
    if not rows.any():
        return "n/a: the log holds no shown lists"
    missing = int(np.isnan(shown.score[stage][rows]).sum())
    return f"n/a: {missing} exposures have no score of {stage}" if missing else ""


def _kept_of_the_best(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """Recall@m@k: of the k best by the last stage, the share that a cheaper stage has in its m best; mean over requests."""
    run, last = reading.run, reading.run.stages[-1]
    m, k = measure.m or 0, measure.k or 0
    unit, denominator = "request", f"requests with an output of {last}"
    cheaper = [stage for stage in stages if stage != last]
    reasons = {stage: f"n/a: {stage} puts out {run.k(stage)}" for stage in cheaper if m > run.k(stage)}
    if part.by_truth:
        reasons = dict.fromkeys(cheaper, "n/a: slices by truth item do not apply to it; slice by user or query")
    elif k > run.k(last):
        reasons = dict.fromkeys(cheaper, f"n/a: {last} puts out {run.k(last)}")
    elif not cheaper:
        yield Figure(last, measure, part.name, None, unit, denominator, "n/a: it is about the stages before the last")
    best: pl.LazyFrame | None = None
    for stage in cheaper:
        if stage in reasons:
            yield Figure(stage, measure, part.name, None, unit, denominator, reasons[stage])
            continue
        slates = run.lazy["slates"].with_columns(pl.col("stage").cast(pl.String))
        if best is None:
            best = slates.filter((pl.col("stage") == last) & (pl.col("rank") <= k)).select("request_id", "item_id").collect().lazy()
        kept = slates.filter((pl.col("stage") == stage) & (pl.col("rank") <= m)).select("request_id", "item_id", pl.lit(1.0).alias("kept"))
        share = best.join(kept, on=["request_id", "item_id"], how="left").group_by("request_id").agg(pl.col("kept").sum() / pl.len())
        values = reading.index.join(share.collect(), on="request_id", how="left", maintain_order="left")["kept"]
        num = values.fill_null(np.nan).to_numpy()
        yield Figure(stage, measure, part.name, _of_requests(reading, part, num, np.ones(reading.n)), unit, denominator)


def _survival(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """Truth items out / truth items in, as ratios of sums: eligible, then stage by stage, then end to end; they multiply exactly."""
    truths, label = reading.truths, reading.run.label
    of = "" if part.name == ALL else f" [{part.name}]"

    def figure(stage: str, out: np.ndarray, into: np.ndarray, denominator: str, note: str = "") -> Figure:
        num, den = (np.bincount(truths.group[x & part.truth], minlength=reading.n).astype(np.float64) for x in (out, into))
        ratio = _of_requests(reading, part, np.where(den > 0, num, np.nan), den, den)
        return Figure(stage, measure, part.name, ratio, "truth item", denominator, note)

    every = np.ones(len(truths.group), dtype=bool)
    all_of_them = f"all truth items ({label}){of}"
    if measure.name == "ceiling":
        yield figure(CEILING, truths.eligible, every, all_of_them, "share of truth that is eligible at all")
        return
    if len(stages) == len(reading.run.stages):
        yield figure("eligible", truths.eligible, every, all_of_them, "the ceiling")
    into = truths.eligible
    for stage in reading.run.stages:
        out = truths.rank[stage] < LOST
        if stage in stages:
            yield figure(stage, out, into, f"truth items ({label}){of} in its input")
        into = out
    yield figure(END, into, every, all_of_them, "product of the rows above")


def _candidates(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """gAUC over what a stage scored: of P truth items and N = n - P others, AUC = sum of wins / (P N), one a request."""
    unit = "request"
    for stage in stages:
        denominator = f"requests with truth and other items among what {stage} scored, weighted by {_weight_words(measure)}"
        if measure.group == "user":
            yield Figure(stage, measure, part.name, None, unit, denominator, "n/a: a stage's scores compare within a request only")
            continue
        wins = reading.truths.wins[stage]
        there = ~np.isnan(wins)
        group = reading.truths.group[there]
        positives = np.bincount(group, minlength=reading.n)
        rows = reading.requests[f"{stage}.n"].fill_null(0).to_numpy().astype(np.int64)
        pairs = positives * (rows - positives)
        total = np.bincount(group, weights=wins[there], minlength=reading.n)
        values = np.where(pairs > 0, total / np.maximum(pairs, 1), np.nan)
        weights = metrics.group_weights(rows, positives, measure.weight or "exposures").astype(np.float64)
        yield Figure(stage, measure, part.name, _of_requests(reading, part, values * weights, weights), unit, denominator)
    if measure.group == "request":
        yield _constant(RANDOM, measure, part, 0.5, unit, "")


def _weight_words(measure: Measure) -> str:
    return {"exposures": "rows", "positives": "positives", "none": "nothing"}[measure.weight or "exposures"]


def _constant(stage: str, measure: Measure, part: Part, value: float, unit: str, denominator: str) -> Figure:
    one = np.ones(1)
    return Figure(stage, measure, part.name, Ratio(value * one, one, np.zeros(1, dtype=np.int64), 0 * one), unit, denominator, "expected value")


def _rows(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """AUC, gAUC, log loss and ECE over the shown rows."""
    shown, label = reading.shown, reading.run.label
    inside = part.requests[shown.group]
    group, labels = shown.group[inside], shown.label[inside]
    cluster = reading.cluster[group]
    grouped = measure.name == "gAUC"
    unit = (measure.group or "") if grouped else "exposure"
    denominator = f"exposures, {int(labels.sum())} with a {label}"
    if grouped:
        denominator = f"{unit}s with shown items of both classes ({label}), weighted by {_weight_words(measure)}"
    for stage in stages:
        found = shown.probability.get(stage) if measure.name in LOWER_IS_BETTER else shown.score[stage]
        why = _no_scores(shown, stage, inside) if found is not None else f"n/a: {stage} has no calibrated probability"
        if not why and found is not None and np.isnan(found[inside]).any():
            why = f"n/a: {int(np.isnan(found[inside]).sum())} exposures have no probability of {stage}"
        if why or found is None:
            yield Figure(stage, measure, part.name, None, unit, denominator, why)
            continue
        yield Figure(stage, measure, part.name, _of_rows(reading, measure, group, cluster, found[inside], labels), unit, denominator)
    if not inside.any():
        return
    if measure.name == "logloss":
        base = _of_rows(reading, measure, group, cluster, np.full(len(labels), labels.mean()), labels)
        yield Figure("base rate", measure, part.name, base, unit, denominator, "everybody gets the mean")
    elif measure.name != "ECE":
        logged = _of_rows(reading, measure, group, cluster, shown.score[LOGGED][inside], labels)
        yield Figure(LOGGED, measure, part.name, logged, unit, denominator)
        yield _constant(RANDOM, measure, part, 0.5, unit, denominator)


def _of_rows(reading: Reading, measure: Measure, group: np.ndarray, cluster: np.ndarray, values: np.ndarray, labels: np.ndarray) -> Estimate:
    if measure.name == "AUC":
        return PooledAUC(values, labels, cluster)
    if measure.name == "ECE":
        return Calibration(values, labels.astype(np.float64), cluster)
    if measure.name == "logloss":
        rows = np.bincount(group, minlength=reading.n)
        total = np.bincount(group, weights=metrics.log_losses(values, labels), minlength=reading.n)
        some = rows > 0
        return Ratio(total[some], rows[some].astype(np.float64), reading.cluster[some], rows[some])
    by_user = measure.group == "user"
    n = len(reading.users) if by_user else reading.n
    auc, rows, positives = metrics.auc_by_group(cluster if by_user else group, values, labels, n)
    weights = metrics.group_weights(rows, positives, measure.weight or "exposures").astype(np.float64)
    some = rows > 0
    owner = np.arange(n) if by_user else reading.cluster
    return Ratio((auc * weights)[some], weights[some], owner[some])


# -- asking a Run -------------------------------------------------------------------------------------------------------


def measure(
    run: Run | Sequence[Run], measures: Sequence[Measure | str], by_stage: bool = True, slice: str | None = None, ci: bool = True,
    seed: int = 0, resamples: int = 1000, label: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of the table: one a measure, part of the slice and stage, with a 95% interval clustered by user.

    Several Runs are seeds of one recipe: values are means over seeds, intervals resample seeds and users. `label` names the
    rows (default: the Run folder). A value that does not exist is None and its note says why. Raises KarmafunnelError for unknown
    measures and slices, and for Runs of different logs, labels, windows or requests.
    """
    wanted = parse_all(measures)
    runs = [run] if isinstance(run, Run) else list(run)
    readings = _same_requests(runs, [label or r.name for r in runs])
    asked = [_ask(r, wanted, r.run.stages if by_stage else r.run.stages[-1:], slice) for r in readings]
    if any([f.key for f in a] != [f.key for f in asked[0]] for a in asked):
        raise KarmafunnelError(f"measure: Runs of several seeds need the same stages, found {[r.stages for r in runs]}")
    samples = _samples(asked, readings[0], resamples, seed) if ci else {}
    rows = []
    for same in zip(*asked, strict=True):
        first = same[0]
        row: dict[str, Any] = {"label": label or runs[0].name, "stage": first.stage, "measure": str(first.measure), "slice": first.part}
        row |= {"value": None, "low": None, "high": None, "n": 0, "undefined": 0, "undefined_share": 0.0}
        row |= {"unit": first.unit, "denominator": first.denominator, "note": first.note, "truth": runs[0].label, "seeds": len(runs)}
        if all(f.estimate is not None for f in same):
            row |= _values([f.estimate for f in same if f.estimate is not None], first, samples, len(readings[0].users), seed, resamples)
        rows.append(row)
    return rows


def _ask(reading: Reading, wanted: Sequence[Measure], stages: Sequence[str], slice_name: str | None) -> list[Figure]:
    parts = reading.parts(slice_name)
    return [f for m in wanted for part in parts for f in figures(reading, m, part, stages)]


def _samples(asked: Sequence[Sequence[Figure]], reading: Reading, resamples: int, seed: int) -> dict[int, np.ndarray]:
    estimates = [f.estimate for figs in asked for f in figs if f.estimate is not None and f.note != "expected value"]
    found = resample(estimates, len(reading.users), resamples, seed) if len(reading.users) > 1 else []
    return {id(e): s for e, s in zip(estimates, found, strict=False)}


def _values(
    estimates: Sequence[Estimate], figure: Figure, samples: dict[int, np.ndarray], users: int, seed: int, resamples: int
) -> dict[str, Any]:
    n, undefined = estimates[0].n, estimates[0].undefined
    value = float(np.mean([e.value for e in estimates]))
    share = undefined / max(n + undefined, 1) if not isinstance(estimates[0], Ratio) else undefined / max(len(estimates[0].num), 1)
    out: dict[str, Any] = {"n": n, "undefined": undefined, "undefined_share": share}
    notes = [figure.note]
    if np.isnan(value):
        return out | {"note": "; ".join(filter(None, [*notes, "n/a: nothing is defined"]))}
    out["value"] = value
    if all(id(e) in samples for e in estimates):
        drawn = over_seeds([samples[id(e)] for e in estimates], seed)
        out["low"], out["high"] = interval(drawn)
        notes += [f"{len(drawn)} resamples"] if len(drawn) < resamples else []
    elif users < 2 and figure.note != "expected value":
        notes.append("one user, no interval")
    return out | {"note": "; ".join(filter(None, notes))}


def _same_requests(runs: Sequence[Run], names: Sequence[str]) -> list[Reading]:
    """Readings that line up; raises KarmafunnelError naming the Runs that differ and in what."""
    if not runs:
        raise KarmafunnelError("needed at least one Run, found none")
    first, name = runs[0], names[0]
    checks: list[tuple[str, Callable[[Run], Any]]] = [
        ("log", lambda r: (r.meta["log"].get("name"), r.meta["log"].get("checksum"))), ("label", lambda r: r.label), ("window", lambda r: r.meta["window"]),
    ]  # fmt: skip
    for other, other_name in zip(runs[1:], names[1:], strict=True):
        for what, of in checks:
            if of(first) != of(other):
                raise KarmafunnelError(f"compare: needs Runs of one {what}, found {of(first)} in {name} and {of(other)} in {other_name}")
    readings = [Reading(r) for r in runs]
    ids = readings[0].requests["request_id"]
    for other_reading, other_name in zip(readings[1:], names[1:], strict=True):
        others = other_reading.requests["request_id"]
        if not ids.equals(others):
            both = ids.is_in(others.implode()).sum()
            raise KarmafunnelError(
                f"compare: needs the same requests, found {len(ids)} in {name} and {len(others)} in {other_name}, {both} of them in both"
            )
    return readings


def compare(
    run_a: Run | Sequence[Run], run_b: Run | Sequence[Run], measures: Sequence[Measure | str], by_stage: bool = True,
    slice: str | None = None, seed: int = 0, resamples: int = 1000, label_a: str | None = None, label_b: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """B against A, paired on the same requests: one row a measure, part and stage that both have (and last against last).

    `difference` is B - A over the requests (users) where both are defined; `better` is "A" or "B" where its 95% interval leaves
    out 0 and, with several seeds (sequences of Runs, paired in order), its sign is the same in every seed; `holm` says whether that
    holds for the whole table; `smallest_effect` could have been detected with 80% power. Raises KarmafunnelError for Runs of
    different logs, labels, windows or requests.
    """
    wanted = parse_all(measures)
    a_runs, b_runs = ([r] if isinstance(r, Run) else list(r) for r in (run_a, run_b))
    if len(a_runs) != len(b_runs) or not a_runs:
        raise KarmafunnelError(f"compare: needs as many seeds of A as of B, found {len(a_runs)} and {len(b_runs)}")
    runs = [*a_runs, *b_runs]
    readings = _same_requests(runs, [r.path.as_posix() for r in runs])
    seeds = len(a_runs)
    a_last, b_last = a_runs[0].stages[-1], b_runs[0].stages[-1]
    common = [s for s in a_runs[0].stages if s in b_runs[0].stages] if by_stage else []
    pairs = [(s, s) for s in common] + ([(a_last, b_last)] if a_last != b_last or not by_stage else [])
    asked = [{f.key: f for f in _ask(r, wanted, r.run.stages, slice)} for r in readings]
    names = [(str(m), p.name) for m in wanted for p in readings[0].parts(slice)]
    table: list[tuple[dict[str, Any], list[Estimate], list[Estimate]]] = []
    for name, part in names:
        ends = [(END, END)] if name == "survival" else []
        for a_stage, b_stage in [*pairs, *ends]:
            a = [found.get((a_stage, name, part)) for found in asked[:seeds]]
            b = [found.get((b_stage, name, part)) for found in asked[seeds:]]
            present = [f for f in (*a, *b) if f is not None]
            if len(present) < 2 * seeds:
                continue
            stage = a_stage if a_stage == b_stage else f"{a_stage} | {b_stage}"
            row: dict[str, Any] = {"measure": name, "stage": stage, "slice": part, "label_a": label_a or a_runs[0].name, "label_b": label_b or b_runs[0].name}
            row |= dict.fromkeys(("value_a", "value_b", "difference", "low", "high"))
            row |= {"better": "", "p": None, "holm": False, "smallest_effect": None, "n": 0, "undefined": 0, "unit": present[0].unit}
            row |= {"denominator": present[0].denominator, "note": "; ".join(dict.fromkeys(f.note for f in present if f.note)), "seeds": seeds}
            estimates = [f.estimate for f in present if f.estimate is not None]
            paired = _paired(estimates[:seeds], estimates[seeds:]) if len(estimates) == len(present) else ([], [])
            table.append((row, *paired))
    flat = [e for _, a_side, b_side in table for e in (*a_side, *b_side)]
    users = len(readings[0].users)
    drawn = {id(e): s for e, s in zip(flat, resample(flat, users, resamples, seed) if users > 1 else [], strict=False)}
    for row, a_side, b_side in table:
        if a_side:
            row |= _difference(row, a_side, b_side, drawn, seed)
    kept = holm([np.nan if row["p"] is None else row["p"] for row, _, _ in table])
    return [row | {"holm": mark} for (row, _, _), mark in zip(table, kept, strict=True)]


def _paired(a: Sequence[Estimate], b: Sequence[Estimate]) -> tuple[list[Estimate], list[Estimate]]:
    """The two sides over the units where both are defined."""
    left, right = [], []
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Ratio) and isinstance(y, Ratio) and x.num.shape == y.num.shape:
            both = x.known & y.known
            left.append(x.where(both))
            right.append(y.where(both))
        else:
            left.append(replace(x))  # type: ignore[type-var]
            right.append(replace(y))  # type: ignore[type-var]
    return left, right


def _difference(row: dict[str, Any], a: Sequence[Estimate], b: Sequence[Estimate], drawn: dict[int, np.ndarray], seed: int) -> dict[str, Any]:
    values = [(x.value, y.value) for x, y in zip(a, b, strict=True)]
    value_a, value_b = (float(np.mean(side)) for side in zip(*values, strict=True))
    out: dict[str, Any] = {"n": b[0].n, "undefined": b[0].undefined}
    if np.isnan(value_a) or np.isnan(value_b):
        return out | {"note": "; ".join(filter(None, [row["note"], "n/a: nothing is defined in both"]))}
    out |= {"value_a": value_a, "value_b": value_b, "difference": value_b - value_a}
    if id(a[0]) not in drawn:
        return out
    difference = Difference(value_b - value_a, over_seeds([drawn[id(y)] - drawn[id(x)] for x, y in zip(a, b, strict=True)], seed))
    out["low"], out["high"] = interval(difference.samples)
    out["p"] = None if np.isnan(difference.p) else difference.p
    out["smallest_effect"] = None if np.isnan(difference.error) else difference.smallest_effect
    signs = {np.sign(y - x) for x, y in values}
    if difference.excludes_zero() and len(signs) == 1:
        higher = "B" if difference.value > 0 else "A"
        swap = row["measure"] in LOWER_IS_BETTER
        out["better"] = ("A" if higher == "B" else "B") if swap else higher
    return out


# -- the cascade --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cascade:
    """Where truth goes, in items and money: `steps` (in, out, survival, which multiply to the last row) and `losses` by reason."""

    steps: list[dict[str, Any]]
    losses: list[dict[str, Any]]

    @classmethod
    def of(cls, run: Run, slice: str | None = None) -> Cascade:
        """Read it off the ledger. Raises KarmafunnelError when ranks and reasons do not add up."""
        reading = Reading(run)
        steps: list[dict[str, Any]] = []
        losses: list[dict[str, Any]] = []
        for part in reading.parts(slice):
            steps += _steps(reading, part)
            losses += _losses(reading, part)
        return cls(steps, losses)


def _ratio(out: float, into: float) -> float | None:
    return out / into if into else None


def _steps(reading: Reading, part: Part) -> list[dict[str, Any]]:
    truths = reading.truths
    money = np.nan_to_num(truths.money)
    alive = [part.truth, part.truth & truths.eligible]
    alive += [part.truth & (truths.rank[stage] < LOST) for stage in reading.run.stages]
    names = ["eligible", *reading.run.stages]
    pairs = [*zip(names, alive, alive[1:], strict=False), (END, alive[0], alive[-1])]
    rows = []
    for name, into, out in pairs:
        if (out & ~into).any():
            lost = truths.frame.row(int(np.flatnonzero(out & ~into)[0]), named=True)
            raise KarmafunnelError(f"{reading.run.path}/ledger.parquet: {name} keeps item {lost['item_id']!r} of request {lost['request_id']!r}, which did not reach it")
        items, money_in, money_out = (int(into.sum()), int(out.sum())), float(money[into].sum()), float(money[out].sum())
        rows.append(
            {
                "slice": part.name, "stage": name, "items_in": items[0], "items_out": items[1], "survival": _ratio(items[1], items[0]),
                "money_in": money_in, "money_out": money_out, "money_survival": _ratio(money_out, money_in),
            }
        )  # fmt: skip
    return rows


def _losses(reading: Reading, part: Part) -> list[dict[str, Any]]:
    """Truth items and money by the reason they were lost, in the funnel's order, what is kept last; shares are of all truth."""
    truths = reading.truths
    money = np.nan_to_num(truths.money)
    reason = truths.frame["lost"].fill_null("kept").to_numpy().astype(str)
    margin = truths.frame["margin"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    names = ["not eligible", "index", *reading.run.stages, "kept"]
    if stray := sorted(set(reason) - set(names)):
        raise KarmafunnelError(f"{reading.run.path}/ledger.parquet: `lost` needs to be one of {names[:-1]} or null, found {stray}")
    kept = truths.rank[reading.run.stages[-1]] < LOST
    if (kept != (reason == "kept")).any():
        row = truths.frame.row(int(np.flatnonzero(kept != (reason == "kept"))[0]), named=True)
        raise KarmafunnelError(
            f"{reading.run.path}/ledger.parquet: `lost` and the last rank disagree for request {row['request_id']!r}, item {row['item_id']!r}"
        )
    rows = []
    for name in names:
        mask = part.truth & (reason == name)
        missed = margin[mask & ~np.isnan(margin)]
        rows.append(
            {
                "slice": part.name, "reason": name, "items": int(mask.sum()), "share": _ratio(int(mask.sum()), int(part.truth.sum())),
                "money": float(money[mask].sum()), "money_share": _ratio(float(money[mask].sum()), float(money[part.truth].sum())),
                "median_margin": float(np.median(missed)) if len(missed) else None,
            }
        )  # fmt: skip
    return rows
