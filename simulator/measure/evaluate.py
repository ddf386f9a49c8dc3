"""Measures as values parsed from text, and what each of them is for a stage of a Run: one `Figure` a (measure, part, stage).

The arithmetic is in `metrics.py`. Definitions: `docs/METRICS.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ...bounds import BOUNDS
from ...errors import KarmafunnelError, quoted
from ..world.market import examination
from . import metrics
from .arrays import ALL, LOGGED, Part, Reading, Shown
from .intervals import Calibration, Estimate, Median, PooledAUC, Ratio
from .metrics import LOST
from .run import Run

LISTS = ("HR", "Recall", "kept", "nDCG", "MRR", "GMV-HR", "GMV-nDCG")
MONEY = ("GMV-HR", "GMV-nDCG")
CASCADE = ("survival", "swap", "margin")  # of what goes into a stage and comes out of it
NEIGHBOURS = ("overlap", "RBO")  # of a stage's slate and the next one's
LOWER_IS_BETTER = ("logloss", "ECE")
NEITHER_IS_BETTER = (*NEIGHBOURS, "margin")  # they describe a cascade, they do not judge it
WEEK = 7  # days of all-scenario truth
KNOWN = (
    "HR@k, Recall@k, kept@k, nDCG@k, MRR, MRR@k, GMV-HR@k, GMV-nDCG@k (all with :exposures, the last two with :w99), Recall@m@k, "
    "HR@k and Recall@k with :all[:DAYSd], overlap@k, RBO@k, margin, "
    "survival, swap, ceiling, AUC, logloss, ECE, gAUC:GROUP:POPULATION[:WEIGHT] with request|user, exposures|candidates, "
    "exposures|positives|none, eGMV@k"
)
RANDOM, CEILING, BASE, END = "random", "ceiling", "base rate", "end to end"  # rows that are no stage; LOGGED is another
BY_REQUEST = "n/a: slices by truth item do not apply to it; slice by user or query"


# -- names --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Measure:
    """One question to a Run, such as `HR@50`. Equal by content; prints as typed."""

    name: str
    k: int | None = None
    m: int | None = None  # of Recall@m@k
    w99: bool = False
    exposures: bool = False  # rank the shown list instead of the slate
    days: int | None = None  # all-scenario truth: what was bought elsewhere so soon counts, too
    group: str | None = None
    population: str | None = None
    weight: str | None = None

    @classmethod
    def parse(cls, text: str) -> Measure:
        """From text; raises KarmafunnelError that lists what exists."""
        head, *options = text.strip().split(":")
        name, *numbers = head.split("@")
        if not all(re.fullmatch(r"[1-9][0-9]*", number) for number in numbers):
            raise _refuse(text, "k must be a whole number from 1")
        if any(len(number) > 8 or not BOUNDS["cutoff"].holds(int(number)) for number in numbers):
            raise _refuse(text, f"k must be {BOUNDS['cutoff']}")
        ks = [int(number) for number in numbers]
        if name == "eGMV":
            if len(ks) != 1 or options:
                raise _refuse(text, "eGMV needs one k, as in eGMV@10, and takes no option")
            return cls(name, k=ks[0])
        if name == "gAUC" and not ks:
            return cls._grouped(text, options)
        if name in NEIGHBOURS or (name in ("HR", "Recall") and "all" in options):
            if len(ks) != 1:
                raise _refuse(text, f"{name} needs one k, as in {name}@50")
            return cls(name, k=ks[0], days=_days(text, options) if options else None)
        if name in LISTS:
            if name == "Recall" and len(ks) == 2 and not options:
                return cls(name, k=ks[1], m=ks[0])
            allowed = {"exposures", "w99"} if name in MONEY else {"exposures"}
            if len(ks) > 1 or (not ks and name != "MRR"):
                raise _refuse(text, f"{name} needs one k, as in {name}@50")
            if len(set(options)) < len(options) or not set(options) <= allowed:
                raise _refuse(text, f"{name} takes the options {sorted(allowed)}")
            return cls(name, k=ks[0] if ks else None, w99="w99" in options, exposures="exposures" in options)
        if name in ("survival", "swap", "margin", "ceiling", "AUC", "logloss", "ECE"):
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

    @property
    def depth(self) -> str:
        """What numbers of rows the measure depends on: "" (it names its k, or asks of lists that no stage cuts), "output" (how many
        a stage puts out), "input" (how many it scores) or "cascade" (both, and what later stages keep).
        """
        if self.name == "MRR" and self.k is None and not self.exposures:
            return "output"
        return "cascade" if self.name in CASCADE else "input" if self.population == "candidates" else ""

    def __str__(self) -> str:
        text = self.name + "".join(f"@{n}" for n in (self.m, self.k) if n is not None)
        if self.name == "gAUC":
            text += f":{self.group}:{self.population}" + (f":{self.weight}" if self.weight != "exposures" else "")
        if self.days is not None:
            text += ":all" + (f":{self.days}d" if self.days != WEEK else "")
        return text + (":w99" if self.w99 else "") + (":exposures" if self.exposures else "")

    __repr__ = __str__


def _refuse(text: str, why: str) -> KarmafunnelError:
    return KarmafunnelError(f"measure {quoted(text)}: {why}; there are {KNOWN}")


def _days(text: str, options: list[str]) -> int:
    """Days of all-scenario truth from the options [all] or [all, 14d]."""
    days = re.fullmatch(r"all(?::([1-9][0-9]{0,3})d)?", ":".join(options))
    if days is None or text.strip().startswith(NEIGHBOURS):
        raise _refuse(text, "HR and Recall take :all, alone or with days, as in HR@50:all:14d; overlap and RBO take no option")
    return int(days[1] or WEEK)


def parse_all(measures: Sequence[Measure | str]) -> list[Measure]:
    return [m if isinstance(m, Measure) else Measure.parse(m) for m in measures]


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
    constant: bool = False  # known without data, as 0.5 is: no interval

    @property
    def key(self) -> tuple[str, str, str]:
        return self.stage, str(self.measure), self.part


def figures(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """All rows of one measure in one part: its stages, then what they are to be held against."""
    if measure.days is not None:
        yield from _all_scenario(reading, measure, part, stages)
    elif measure.name in NEIGHBOURS:
        yield from _neighbours(reading, measure, part, stages)
    elif measure.name == "margin":
        yield from _margin(reading, measure, part, stages)
    elif measure.name in LISTS and measure.m is None:
        yield from (_shown_lists if measure.exposures else _slate_lists)(reading, measure, part, stages)
    elif measure.m is not None:
        yield from _kept_of_the_best(reading, measure, part, stages)
    elif measure.name == "eGMV":
        yield from _expected_money(reading, measure, part, stages)
    elif measure.name == "swap":
        yield from _swap(reading, measure, part, stages)
    elif measure.name in ("survival", "ceiling"):
        yield from _survival(reading, measure, part, stages)
    elif part.by_truth:
        for stage in stages:
            yield Figure(stage, measure, part.name, None, "", "", BY_REQUEST)
    elif measure.population == "candidates":
        yield from _candidates(reading, measure, part, stages)
    else:
        yield from _rows(reading, measure, part, stages)


Values = tuple[np.ndarray, np.ndarray]  # of every request: its numerator (NaN: undefined) and its denominator
Lists = tuple[np.ndarray, np.ndarray, np.ndarray]  # of every truth item: its list, its rank, its money


def _per_list(measure: Measure, lists: Lists, n: int) -> Values:
    """Numerator (NaN: undefined) and denominator of every list."""
    group, rank, money = lists
    k = measure.k or LOST - 1
    if measure.name in MONEY:
        known = ~np.isnan(money)
        group, rank, money = group[known], rank[known], money[known]
    if measure.name in ("GMV-HR", "kept"):
        inside, total = metrics.money_inside(group, rank, money if measure.name == "GMV-HR" else np.ones(len(group)), n, k)
        return np.where(total > 0, inside, np.nan), total
    values = {
        "HR": lambda: metrics.hit_rate(group, rank, n, k),
        "Recall": lambda: metrics.recall(group, rank, n, k),
        "MRR": lambda: metrics.reciprocal_rank(group, rank, n, k),
        "nDCG": lambda: metrics.ndcg(group, rank, n, k),
        "GMV-nDCG": lambda: metrics.ndcg(group, rank, n, k, money),
    }[measure.name]()
    return values, np.ones(n)


def _per_random_list(
    measure: Measure, group: np.ndarray, reachable: np.ndarray, money: np.ndarray, many: np.ndarray, k: int
) -> Values:
    """The same, expected under a random order of `many` (n,) items, of which `reachable` truth items are some."""
    n = len(many)
    truth, found = np.bincount(group, minlength=n), np.bincount(group[reachable], minlength=n)
    if measure.name in MONEY:
        known = ~np.isnan(money)
        group, reachable, money = group[known], reachable[known], money[known]
        total, inside = (np.bincount(group, weights=money * w, minlength=n) for w in (np.ones(len(group)), reachable))
        share = metrics.random_share if measure.name == "GMV-HR" else metrics.random_discount
        inside = inside * share(many, k)
        if measure.name == "GMV-HR":
            return np.where(total > 0, inside, np.nan), total
        ideal = metrics.ideal_dcg(group, money, n, k)
        return np.where(ideal > 0, inside / np.where(ideal > 0, ideal, 1), np.nan), np.ones(n)
    if measure.name == "kept":
        return np.where(truth > 0, found * metrics.random_share(many, k), np.nan), truth.astype(np.float64)
    expected: Callable[..., np.ndarray] = {
        "HR": metrics.random_hit_rate,
        "Recall": metrics.random_recall,
        "MRR": metrics.random_reciprocal_rank,
        "nDCG": metrics.random_ndcg,
    }[measure.name]
    return expected(many, found, truth, k), np.ones(n)


def _of_requests(reading: Reading, part: Part, num: np.ndarray, den: np.ndarray, counts: np.ndarray | None = None) -> Ratio:
    keep = part.requests
    return Ratio(num[keep], den[keep], reading.cluster[keep], None if counts is None else counts[keep])


def _list_figure(
    reading: Reading, measure: Measure, part: Part, stage: str, values: Values | None, where: str, note: str = ""
) -> Figure:
    """A row of the hit family, from the numerator and denominator of every request."""
    counts = values[1] if values and measure.name == "kept" else None
    ratio = _of_requests(reading, part, *values, counts) if values else None
    notes = [note]
    unit, priced = "request", ""
    if measure.name in MONEY:
        priced = "priced "
        missing = np.isnan(reading.truths.money[part.truth])
        notes += [f"{missing.sum()} truth items without a price ({missing.mean():.1%}) left out"] if missing.any() else []
    denominator = f"requests with a {priced}{reading.run.label}{_of(part)}{where}"
    if measure.name == "kept":
        unit, denominator = "truth item", f"truth items of {denominator}"
    if measure.name == "GMV-HR":
        unit = str(reading.run.meta["log"].get("currency") or "money")
        total = f" ({ratio.den[ratio.known].sum():.2f} {unit})" if ratio else ""
        denominator = f"money of all truth items{total} of {denominator}"
    return Figure(stage, measure, part.name, ratio, unit, denominator, "; ".join(filter(None, notes)))


def _of(part: Part) -> str:
    return "" if part.name == ALL else f" [{part.name}]"


def per_request(reading: Reading, measure: Measure, stage: str) -> Values:
    """What every request adds to the numerator (NaN: undefined) and denominator of a stage's figure: float64 (n_requests,) each.

    Of HR, Recall, nDCG, MRR, GMV-HR, GMV-nDCG, eGMV and gAUC by request. A slate shorter than k counts as it is. Raises
    KarmafunnelError for other measures, and where the Run cannot tell.
    """
    who = f"{reading.run.path}: {measure} of {stage}"
    if not ((measure.name in (*LISTS, "eGMV") and measure.m is None) or measure.group == "request"):
        raise KarmafunnelError(f"{who}: needs a measure with a value a request: {', '.join(LISTS)}, eGMV or gAUC:request:POPULATION")
    part, truths = reading.parts(None)[0], reading.truths
    if measure.name in LISTS and not measure.exposures and measure.days is None:
        money = reading.winsorised if measure.w99 else truths.money
        return _per_list(measure, (truths.group, truths.rank[stage], money), reading.n)
    found = next(figure for figure in figures(reading, measure, part, [stage]) if figure.stage == stage)
    if not isinstance(found.estimate, Ratio):
        raise KarmafunnelError(f"{who}: needs values of requests, found {found.note}")
    if found.estimate.units == reading.n:
        return found.estimate.num, found.estimate.den
    some = np.bincount(reading.shown.group, minlength=reading.n) > 0  # of shown rows: a request without one is no unit
    num, den = np.full(reading.n, np.nan), np.zeros(reading.n)
    num[some], den[some] = found.estimate.num, found.estimate.den
    return num, den


def _slate_lists(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """The hit family over what a stage puts out; random and ceiling over the eligible items."""
    run, truths = reading.run, reading.truths
    group, eligible = truths.group[part.truth], truths.eligible[part.truth]
    money = (reading.winsorised if measure.w99 else truths.money)[part.truth]
    where = " (in-scenario)"
    where += f"; {reading.eligible[part.requests].mean():.0f} eligible items on average" if part.requests.any() else ""
    for stage in stages:
        short = measure.k is not None and measure.k > run.k(stage)
        values = None if short else _per_list(measure, (group, truths.rank[stage][part.truth], money), reading.n)
        yield _list_figure(reading, measure, part, stage, values, where, f"n/a: {stage} puts out {run.k(stage)}" if short else "")
    most = measure.k or max(run.k(stage) for stage in run.stages)
    values = _per_random_list(measure, group, eligible, money, reading.eligible, most)
    note = "expected value" if measure.k else f"expected value, cut at {most}"
    yield _list_figure(reading, measure, part, RANDOM, values, where, note)
    best = np.full(len(group), LOST)
    best[eligible] = metrics.ideal_ranks(group[eligible], np.nan_to_num(money[eligible], nan=-1.0))
    values = _per_list(measure, (group, best, money), reading.n)
    yield _list_figure(reading, measure, part, CEILING, values, where, "all eligible truth ranked first")


def _all_scenario(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """HR and Recall over truth and what the same user bought elsewhere soon after; the slates say where the latter stands."""
    run, truths, days = reading.run, reading.truths, measure.days or WEEK
    bought, note = (None, BY_REQUEST) if part.by_truth else reading.soon_elsewhere(days)
    denominator = f"requests with a {run.label} or a purchase elsewhere within {days} days (all-scenario){_of(part)}"
    for stage in stages:
        short = (measure.k or 0) > run.k(stage)
        if bought is None or short:
            why = f"n/a: {stage} puts out {run.k(stage)}" if bought is not None else note
            yield Figure(stage, measure, part.name, None, "request", denominator, why)
            continue
        slate = _top(run, stage, measure.k or 0)
        found = bought.join(slate, on=["request_id", "item_id"], how="left", maintain_order="left")["rank"]
        group = np.concatenate([truths.group, bought["group"].to_numpy()])
        rank = np.concatenate([truths.rank[stage], found.cast(pl.Int64).fill_null(LOST).to_numpy()])
        values = _per_list(measure, (group, rank, np.zeros(len(rank))), reading.n)
        yield Figure(stage, measure, part.name, _of_requests(reading, part, *values), "request", denominator, note)


def _shown_lists(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """The hit family over the shown lists, ordered by a stage's score; logged order and random beside."""
    shown, where = reading.shown, ", in a shown list of 2 or more"
    rows = np.flatnonzero(shown.in_list & (shown.truth >= 0))
    rows = rows[part.truth[shown.truth[rows]]]
    group = shown.group[rows]
    money = (reading.winsorised if measure.w99 else reading.truths.money)[shown.truth[rows]]
    for stage in (*stages, LOGGED):
        if why := _no_scores(shown, stage, shown.in_list):
            yield _list_figure(reading, measure, part, stage, None, where, why)
            continue
        ranks, _ = reading.shown_ranks(stage)
        yield _list_figure(reading, measure, part, stage, _per_list(measure, (group, ranks[rows], money), reading.n), where)
    if shown.in_list.any():
        _, sizes = reading.shown_ranks(LOGGED)
        values = _per_random_list(measure, group, np.ones(len(group), dtype=bool), money, sizes, measure.k or LOST - 1)
        yield _list_figure(reading, measure, part, RANDOM, values, where, "expected value over the shown list")


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
        reasons = dict.fromkeys(cheaper, BY_REQUEST)
    elif k > run.k(last):
        reasons = dict.fromkeys(cheaper, f"n/a: {last} puts out {run.k(last)}")
    elif not cheaper:
        yield Figure(last, measure, part.name, None, unit, denominator, "n/a: it is about the stages before the last")
    best: pl.DataFrame | None = None
    for stage in cheaper:
        if stage in reasons:
            yield Figure(stage, measure, part.name, None, unit, denominator, reasons[stage])
            continue
        if best is None:
            best = _top(run, last, k)
        kept = _top(run, stage, m).with_columns(pl.lit(1.0).alias("kept"))
        found = best.join(kept, on=["request_id", "item_id"], how="left")
        share = found.group_by("request_id").agg(pl.col("kept").sum() / pl.len())
        values = reading.index.join(share, on="request_id", how="left", maintain_order="left")["kept"]
        num = values.fill_null(np.nan).to_numpy()
        yield Figure(stage, measure, part.name, _of_requests(reading, part, num, np.ones(reading.n)), unit, denominator)


def _top(run: Run, stage: str, k: int) -> pl.DataFrame:
    slates = run.lazy["slates"].filter((pl.col("stage").cast(pl.String) == stage) & (pl.col("rank") <= k))
    return slates.select("request_id", "item_id", "rank").collect()


def _neighbours(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """overlap@k and RBO@k of a stage's slate and the next one's; mean over the requests where both put out k."""
    run, k = reading.run, measure.k or 0
    pairs = [(a, b) for a, b in zip(run.stages, run.stages[1:], strict=False) if a in stages]
    if not pairs:
        yield Figure(stages[-1], measure, part.name, None, "request", "", "n/a: it is about a stage and the next one")
    of = metrics.overlap if measure.name == "overlap" else metrics.rank_biased_overlap
    for stage, after in pairs:
        denominator = f"requests where {stage} and {after} both put out {k}{_of(part)}"
        why = next((f"n/a: {s} puts out {run.k(s)}" for s in (stage, after) if k > run.k(s)), "")
        if why or part.by_truth:
            yield Figure(stage, measure, part.name, None, "request", denominator, BY_REQUEST if part.by_truth else why)
            continue
        mine, other = (_top(run, s, k).join(reading.index, on="request_id") for s in (stage, after))
        both = mine.join(other, on=["group", "item_id"]).select("group", pl.max_horizontal("rank", "rank_right").alias("depth"))
        full = np.logical_and(*(np.bincount(top["group"].to_numpy(), minlength=reading.n) == k for top in (mine, other)))
        values = of(both["group"].to_numpy(), both["depth"].cast(pl.Int64).to_numpy(), reading.n, k)
        ratio = _of_requests(reading, part, np.where(full, values, np.nan), np.ones(reading.n))
        yield Figure(stage, measure, part.name, ratio, "request", denominator)


def _margin(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """Median number of ranks by which the truth that a stage lost missed its cut."""
    truths = reading.truths
    margin = truths.frame["margin"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    lost = truths.frame["lost"].fill_null("").to_numpy()
    for stage in stages:
        mine = part.truth & (lost == stage)
        known = mine & ~np.isnan(margin)
        denominator = f"truth items ({reading.run.label}){_of(part)} lost by {stage}"
        estimate = Median(margin[known], reading.cluster[truths.group[known]], int((mine & ~known).sum()))
        why = "" if known.any() else f"n/a: {stage} lost no truth item" if not mine.any() else "n/a: no margin is known"
        yield Figure(stage, measure, part.name, None if why else estimate, "truth item", denominator, why)


def _expected_money(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """eGMV@k: examination * p_click * p_buy * price, summed over the k best of a slate; mean over requests, an empty slate earns 0.

    Examination is the World's law; the chances are those of the last stage so far that tells both, so it is what the funnel
    believes it earns.
    """
    run, k = reading.run, measure.k or 0
    unit, denominator = str(run.meta["log"].get("currency") or "money"), f"requests{_of(part)}"
    looked, worth = examination(k), "value" in run.columns("slates")
    for stage in stages:
        why, values = "", np.zeros(0)
        if part.by_truth:
            why = BY_REQUEST
        elif not run.meta["log"].get("world"):
            why = "n/a: how shoppers examine a slate is known in a World alone"
        elif k > run.k(stage):
            why = f"n/a: {stage} puts out {run.k(stage)}"
        elif worth:
            of_stage = (pl.col("stage").cast(pl.String) == stage) & (pl.col("rank") <= k)
            top = run.lazy["slates"].filter(of_stage).select("request_id", "rank", "value").collect()
            top = top.join(reading.index, on="request_id", how="left", maintain_order="left")
            values = top["value"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        unknown = np.isnan(values)
        if why or unknown.all():
            why = why or f"n/a: no stage up to {stage} tells p_click and p_buy (of items with a price)"
            yield Figure(stage, measure, part.name, None, unit, denominator, why)
            continue
        earned = np.where(unknown, 0.0, values) * looked[top["rank"].to_numpy() - 1]
        num = np.bincount(top["group"].to_numpy(), weights=earned, minlength=reading.n)
        note = "by the funnel's own chances" + f"; {unknown.sum()} items without a price left out" * bool(unknown.any())
        yield Figure(stage, measure, part.name, _of_requests(reading, part, num, np.ones(reading.n)), unit, denominator, note)


def _survival(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """Truth items out / truth items in, as ratios of sums: eligible, stage by stage, end to end; they multiply exactly."""
    truths, label, of = reading.truths, reading.run.label, _of(part)

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


def _swap(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """End-to-end change with an oracle in a stage's place: it passes all truth of its input on, later stages stay as they are.

    What it rescues is kept where its forced rank in every later stage is inside the cut; that rescued items may crowd each
    other out of a slate is left aside, so this is an upper bound.
    """
    truths, cut = reading.truths, {s["name"]: s["k"] for s in reading.run.meta["stages"]}
    names = list(reading.run.stages)
    kept = truths.rank[names[-1]] < LOST
    into = truths.eligible
    for i, stage in enumerate(names):
        later = [reading.would_rank[s] <= cut[s] for s in names[i + 1 :]]
        rescued = into & np.logical_and.reduce([np.ones(len(into), dtype=bool), *later])
        into = truths.rank[stage] < LOST
        if stage in stages:
            change = (rescued.astype(np.float64) - kept)[part.truth]
            den = np.bincount(truths.group[part.truth], minlength=reading.n).astype(np.float64)
            num = np.where(den > 0, np.bincount(truths.group[part.truth], change, minlength=reading.n), np.nan)
            ratio = _of_requests(reading, part, num, den, den)
            of = f"all truth items ({reading.run.label}){_of(part)}"
            yield Figure(stage, measure, part.name, ratio, "truth item", of, "end-to-end recall gained; an upper bound")


def _candidates(reading: Reading, measure: Measure, part: Part, stages: Sequence[str]) -> Iterator[Figure]:
    """gAUC over what a stage scored: of P truth items and N = n - P others, AUC = sum of wins / (P N), one a request."""
    unit = "request"
    for stage in stages:
        denominator = f"requests with truth and other items among what {stage} scored, weighted by {_weight_words(measure)}"
        if measure.group == "user":
            why = "n/a: a stage's scores of candidates compare within a request only"
            yield Figure(stage, measure, part.name, None, unit, denominator, why)
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
        yield _half(measure, part, unit)


def _weight_words(measure: Measure) -> str:
    return {"exposures": "rows", "positives": "positives", "none": "nothing"}[measure.weight or "exposures"]


def _half(measure: Measure, part: Part, unit: str) -> Figure:
    """What any random order gets in AUC."""
    ratio = Ratio(np.full(1, 0.5), np.ones(1), np.zeros(1, dtype=np.int64), np.zeros(1))
    return Figure(RANDOM, measure, part.name, ratio, unit, "", "expected value", constant=True)


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
        estimate = _of_rows(reading, measure, group, cluster, found[inside], labels)
        notes = ["absolute gaps grow under resampling: the interval leans upward"] if measure.name == "ECE" else []
        if measure.name in LOWER_IS_BETTER and reading.run.meta["window"] == "W2b":
            notes.append("in sample: W2b is what calibration is fitted on")
        yield Figure(stage, measure, part.name, estimate, unit, denominator, "; ".join(notes))
    if not inside.any():
        return
    if measure.name == "logloss":
        base = _of_rows(reading, measure, group, cluster, np.full(len(labels), labels.mean()), labels)
        yield Figure(BASE, measure, part.name, base, unit, denominator, "everybody gets the mean")
    elif measure.name != "ECE":
        logged = _of_rows(reading, measure, group, cluster, shown.score[LOGGED][inside], labels)
        yield Figure(LOGGED, measure, part.name, logged, unit, denominator)
        yield _half(measure, part, unit)


def _of_rows(
    reading: Reading, measure: Measure, group: np.ndarray, cluster: np.ndarray, values: np.ndarray, labels: np.ndarray
) -> Estimate:
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
