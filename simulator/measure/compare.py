"""Measures of a Run by stage with intervals and slices, comparisons of two Runs, and the losses of
each stage.

Measures are parsed from text (`measures/`); the arithmetic is in `metrics.py`, the intervals in
`intervals.py`. Every row has its unit, the number of units, how many of them were undefined, and
its denominator. Definitions: `docs/reference/measures.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from .arrays import LOGGED, RunArrays, SliceMask
from .differences import Difference, Samples, correct, paired, sampled
from .intervals import Estimate, Ratio, interval, over_seeds
from .measures.hits import HR, MRR, Kept, RecallOfBest
from .measures.measure import BASE, CEILING, END, RANDOM, Measure, MetricValue, parse_all
from .metrics import LOST
from .run import Run

__all__ = [
    "Cascade",
    "Measure",
    "Run",
    "added",
    "against_logged",
    "compare",
    "mean_rows",
    "measure",
    "telling",
]

ENOUGH = 30  # units below which a bootstrap says little
COUNTED = ("request", "relevant item", "row", "exposure", "user")

# -- measures and comparisons ----------------------------------------------------------------------


def measure(
    run: Run | Sequence[Run],
    measures: Sequence[Measure | str],
    by_stage: bool = True,
    slice: str | None = None,
    ci: bool = True,
    seed: int = 0,
    resamples: int = 1000,
    label: str | None = None,
) -> list[dict[str, Any]]:
    """Measure a Run: one row per measure, slice value and stage.

    Args:
        run: one Run, or Runs of one recipe with different seeds: values are then means over seeds,
            and intervals resample seeds and users.
        by_stage: whether to measure every stage, or only the last.
        slice: name of a slice, such as "target".
        ci: whether to compute 95% intervals, clustered by user.
        label: name of the rows; default: the Run folder.

    Returns:
        Rows as plain values. A value that does not exist is None, and its note says why.

    Raises:
        KarmafunnelError: unknown measure or slice, or Runs of different logs, labels, windows or
            requests.
    """
    wanted = parse_all(measures)
    runs = [run] if isinstance(run, Run) else list(run)
    readings = same_requests(runs, [label or r.name for r in runs])
    found = [
        ask(r, wanted, r.run.stages if by_stage else r.run.stages[-1:], slice) for r in readings
    ]
    if any([f.key for f in a] != [f.key for f in found[0]] for a in found):
        raise KarmafunnelError(
            "measure", needs="the same stages in all seeds", found=[r.stages for r in runs]
        )
    known = [
        f.estimate for figs in found for f in figs if f.estimate is not None and not f.constant
    ]
    samples = sampled(known, len(readings[0].users), resamples, seed) if ci else {}
    rows = []
    for same in zip(*found, strict=True):
        first = same[0]
        row: dict[str, Any] = {"label": label or runs[0].name}
        row |= {"stage": first.stage, "measure": str(first.measure), "slice": first.part}
        row |= {
            "value": None,
            "low": None,
            "high": None,
            "n": 0,
            "undefined": 0,
            "undefined_share": 0.0,
        }
        row |= {"unit": first.unit, "denominator": first.denominator, "note": first.note}
        row |= {"truth": runs[0].relevance, "drawn": runs[0].drawn, "seeds": len(runs)}
        estimates = [f.estimate for f in same if f.estimate is not None]
        if len(estimates) == len(same):
            row |= _values(estimates, first, samples, seed, resamples)
            if ci and len(readings[0].users) < 2 and not first.constant:
                row["note"] = _joined(row["note"], f"one {runs[0].drawn[:-1]}, no interval")
        rows.append(row)
    return rows


def ask(
    reading: RunArrays, wanted: Sequence[Measure], stages: Sequence[str], slice_name: str | None
) -> list[MetricValue]:
    """Values of some stages, by measure and slice value.

    Raises:
        KarmafunnelError: unknown slice.
    """
    parts, found = reading.parts(slice_name), list[MetricValue]()
    for m in wanted:
        for part in parts:
            for figure in m.figures(reading, part, stages):
                if not isinstance(figure, MetricValue):
                    title, given = f"measure {m} ({type(m).__name__})", f"a {type(figure).__name__}"
                    raise KarmafunnelError(title, needs="figures to be MetricValue", found=given)
                found.append(figure)
    return found


def _values(
    estimates: Sequence[Estimate], figure: MetricValue, samples: Samples, seed: int, resamples: int
) -> dict[str, Any]:
    first = estimates[0]
    value = float(np.mean([e.value for e in estimates]))
    out: dict[str, Any] = {
        "n": first.n,
        "undefined": first.undefined,
        "undefined_share": first.undefined / max(first.units, 1),
    }
    if np.isnan(value):
        return out | {"note": _joined(figure.note, "n/a: nothing is defined")}
    out["value"], note = value, figure.note
    if figure.stage not in (RANDOM, CEILING, BASE) and not figure.constant:
        note = _joined(note, too_few(first.n, figure.unit))
    if all(e in samples for e in estimates):
        drawn = over_seeds([samples[e] for e in estimates], seed)
        out["low"], out["high"] = interval(drawn)
        if len(drawn) < resamples:
            note = _joined(note, f"{len(drawn)} resamples")
    return out | {"note": note}


def too_few(n: int, unit: str) -> str:
    """A note on values of fewer than `ENOUGH` units, whose intervals are too narrow; else ""."""
    if n >= ENOUGH:
        return ""
    # money is a sum over requests
    return f"fewer than {ENOUGH} {unit if unit in COUNTED else 'request'}s"


def _joined(*notes: str) -> str:
    return "; ".join(dict.fromkeys(note for note in notes if note))


def log_in_words(run: Run) -> str:
    """The name and checksum of a Run's log; of one made of relevance judgements, theirs."""
    log = run.meta["log"]
    return f"{log.get('name')} ({log.get('judged') or log.get('checksum')})"


def same_requests(runs: Sequence[Run], names: Sequence[str]) -> list[RunArrays]:
    """The arrays of Runs of the same requests, which align.

    Raises:
        KarmafunnelError: no Run, or Runs of different logs, labels, windows or requests.
    """
    if not runs:
        raise KarmafunnelError("measure", needs="at least one Run", found="none")
    first, name = runs[0], names[0]
    checks: list[tuple[str, Callable[[Run], Any]]] = [
        ("log", log_in_words),
        ("label", lambda r: r.label),
        ("window", lambda r: r.meta["window"]),
    ]
    for other, other_name in zip(runs[1:], names[1:], strict=True):
        for what, of in checks:
            if of(first) != of(other):
                raise KarmafunnelError(
                    "compare",
                    needs=f"Runs of one {what}",
                    found=f"{of(first)} in {name} and {of(other)} in {other_name}",
                )
    readings = [RunArrays(r) for r in runs]
    ids = readings[0].requests["request_id"]
    for other_reading, other_name in zip(readings[1:], names[1:], strict=True):
        others = other_reading.requests["request_id"]
        if not ids.equals(others):
            both = ids.is_in(others.implode()).sum()
            counts = (
                f"{len(ids)} in {name} and {len(others)} in {other_name}, {both} of them in both"
            )
            hint = "`compare --common` takes those" if both else ""
            raise KarmafunnelError(
                "compare", needs="Runs of the same requests", found=counts, hint=hint
            )
    return readings


def compare(
    run_a: Run | Sequence[Run],
    run_b: Run | Sequence[Run],
    measures: Sequence[Measure | str],
    by_stage: bool = True,
    slice: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
    label_a: str | None = None,
    label_b: str | None = None,
) -> list[dict[str, Any]]:
    """Compare Run B with baseline Run A, paired on the same requests.

    A measure that grows with the length of a list is compared at one depth, or not at all
    (`at_one_depth`); the note says so.

    Args:
        run_a, run_b: a Run each, or as many seeds of each, paired in order.
        by_stage: whether to compare every stage that both have, or only the last stages.
        slice: name of a slice, such as "target".

    Returns:
        One row per measure, slice value and stage. `difference`: B - A over the requests (users)
        where both are defined. `better`: "A" or "B" if the 95% interval excludes 0 and the sign is
        the same in every seed. `holm`: whether the difference is significant after Holm's
        correction over this table. `smallest_effect`: difference that would have been detected with
        80% power.

    Raises:
        KarmafunnelError: Runs of different logs, labels, windows or requests, or different numbers
            of seeds.
    """
    wanted = parse_all(measures)
    a_runs, b_runs = ([r] if isinstance(r, Run) else list(r) for r in (run_a, run_b))
    if len(a_runs) != len(b_runs) or not a_runs:
        raise KarmafunnelError(
            "compare", needs="as many seeds of A as of B", found=f"{len(a_runs)} and {len(b_runs)}"
        )
    runs = [*a_runs, *b_runs]
    values = _Values(same_requests(runs, [r.path.as_posix() for r in runs]), slice)
    a_last, b_last = a_runs[0].stages[-1], b_runs[0].stages[-1]
    common = [s for s in a_runs[0].stages if s in b_runs[0].stages] if by_stage else []
    pairs = [(s, s) for s in common] + (
        [(a_last, b_last)] if a_last != b_last or not by_stage else []
    )
    table = []
    for m in wanted:
        for part in values.parts:
            for a_stage, b_stage in [*pairs, (END, END)]:
                a = [(i, a_stage) for i in range(len(a_runs))]
                b = [(len(a_runs) + i, b_stage) for i in range(len(b_runs))]
                stage = a_stage if a_stage == b_stage else f"{a_stage} | {b_stage}"
                table += values.pair(m, part, a, b, stage)
    labels = {"label_a": label_a or a_runs[0].name, "label_b": label_b or b_runs[0].name}
    return _tested(table, labels, len(values.readings[0].users), resamples, seed)


TELLS = 0.995  # an HR of the first stage above which there is nothing left to tell apart
CUTOFFS = (10, 5, 3, 1)


def telling(runs: Sequence[Run]) -> Measure:
    """The measure of a headline over some Runs: HR@k at the largest cutoff that can tell orders
    apart.

    That is the largest of 10, 5, 3 and 1 (or of what the last stages put out, if less than 10) at
    which HR@k of the first stage is below 0.995 in every Run; MRR where there is none, for every
    order then has a hit on top.
    """
    most = min(10, *(run.most(run.stages[-1]) for run in runs))
    cutoffs = [most, *(k for k in CUTOFFS if k < most)]
    readings = [RunArrays(run) for run in runs]
    for measure in map(HR, cutoffs):
        found = [
            Ratio(*measure.per_request(reading, reading.run.stages[0]), reading.cluster).value
            for reading in readings
        ]
        if not any(value >= TELLS for value in found):  # NaN: nothing is relevant
            return measure
    return MRR(most)


def against_logged(
    run: Run | Sequence[Run],
    measures: Sequence[Measure | str],
    seed: int = 0,
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Compare the last stage with the order in which the lists were shown.

    Args:
        run: one Run, or Runs of one recipe with different seeds.
        measures: over exposures; others have no value for the logged order and are left out.

    Returns:
        Rows as those of `compare`; A is the logged order.
    """
    runs = [run] if isinstance(run, Run) else list(run)
    values = _Values(same_requests(runs, [r.path.as_posix() for r in runs]), None)
    last, table = runs[0].stages[-1], list[Compared]()
    for m in parse_all(measures):
        a, b = ([(i, name) for i in range(len(runs))] for name in (LOGGED, last))
        table += values.pair(m, values.parts[0], a, b, last)
    labels = {"label_a": LOGGED, "label_b": last}
    return _tested(table, labels, len(values.readings[0].users), resamples, seed)


def added(
    run: Run | Sequence[Run],
    measures: Sequence[Measure | str],
    slice: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Compare each stage after the first with the order of the stage before it.

    Both are measured at the measure's k, which both must return. Measures of the input or of the
    candidates of a stage are left out, as are those without a better direction.

    Args:
        run: one Run, or Runs of one recipe with different seeds.

    Returns:
        Rows as those of `compare`; A is the stage before, named by `before`.
    """
    wanted = []
    for m in parse_all(measures):
        if m.depth in ("", "output") and m.better != "neither" and not isinstance(m, RecallOfBest):
            wanted.append(m)
    runs = [run] if isinstance(run, Run) else list(run)
    values = _Values(same_requests(runs, [r.path.as_posix() for r in runs]), slice)
    table: list[Compared] = []
    stages = runs[0].stages
    for m in wanted:
        for part in values.parts:
            for before, stage in pairwise(stages):
                a, b = ([(i, name) for i in range(len(runs))] for name in (before, stage))
                for row, of_a, of_b in values.pair(m, part, a, b, stage):
                    table.append((row | {"before": before}, of_a, of_b))
    labels = {"label_a": "the stage before", "label_b": "the stage"}
    return _tested(table, labels, len(values.readings[0].users), resamples, seed)


Place = tuple[int, str]  # number of a Run, and one of its stages
# a row, and the estimates of its two sides, one per seed
Compared = tuple[dict[str, Any], list[Estimate], list[Estimate]]


class _Values:
    """Values of several Runs of the same requests, each computed once."""

    def __init__(self, readings: Sequence[RunArrays], slice_name: str | None):
        self.readings = readings
        self._parts = [{part.name: part for part in r.parts(slice_name)} for r in readings]
        self.parts = list(self._parts[0])
        self._found: dict[tuple[int, str, str], dict[str, MetricValue]] = {}

    def figure(self, i: int, m: Measure, part: str, stage: str) -> MetricValue | None:
        place = i, str(m), part
        if place not in self._found:
            reading = self.readings[i]
            self._found[place] = {
                f.stage: f for f in m.figures(reading, self._parts[i][part], reading.run.stages)
            }
        return self._found[place].get(stage)

    def figures(self, m: Measure, part: str, places: Sequence[Place]) -> list[MetricValue]:
        """The values that exist."""
        found = [self.figure(i, m, part, stage) for i, stage in places]
        return [figure for figure in found if figure is not None]

    def pair(
        self, m: Measure, part: str, a: Sequence[Place], b: Sequence[Place], stage: str
    ) -> list[Compared]:
        """A row that compares two sides at one depth; no row if a side has no such value.

        Args:
            a, b: where the values of each side are, one per seed.
        """
        sides, seeds = [*a, *b], len(a)
        present = self.figures(m, part, sides)
        if len(present) < len(sides):
            return []
        row: dict[str, Any] = {
            "measure": str(m),
            "stage": stage,
            "slice": part,
            "label_a": "",
            "label_b": "",
        }
        row |= dict.fromkeys(("value_a", "value_b", "difference", "low", "high"))
        row |= {
            "better": "",
            "p": None,
            "holm": False,
            "smallest_effect": None,
            "n": 0,
            "undefined": 0,
        }
        row |= {"unit": present[0].unit, "denominator": present[0].denominator, "seeds": seeds}
        row["drawn"] = self.readings[0].run.drawn
        measured, why = at_one_depth(m, [(self.readings[i].run, at) for i, at in sides])
        # another measure of the same stage; end to end is the output of the last stage
        if measured is not None and measured != m:
            last = [(i, self.readings[i].run.stages[-1] if at == END else at) for i, at in sides]
            present = self.figures(measured, part, last)
        row["note"] = _joined(*(f.note for f in present), why)
        estimates = [f.estimate for f in present if f.estimate is not None]
        if len(estimates) < len(sides):
            return [(row, [], [])]
        if measured is None:
            for name, side in (("value_a", estimates[:seeds]), ("value_b", estimates[seeds:])):
                value = float(np.mean([e.value for e in side]))
                row[name] = None if np.isnan(value) else value
            return [(row, [], [])]
        by_seed = [paired(both) for both in zip(estimates[:seeds], estimates[seeds:], strict=True)]
        return [(row, [x for x, _ in by_seed], [y for _, y in by_seed])]


def at_one_depth(m: Measure, ends: Sequence[tuple[Run, str]]) -> tuple[Measure | None, str]:
    """The measure that can be compared between stages of Runs, None if there is none, and a note.

    A longer list finds more, whatever its order. A measure without its own k is therefore cut at
    the length of the shortest list. One that depends on the rows that go into a stage is compared
    only if their numbers are equal.
    """
    depths = [_Depth.of(m, run, stage) for run, stage in ends]
    if all(depth.equals(depths[0]) for depth in depths[1:]):
        return m, ""
    shortest = min(depth.most for depth in depths)
    if m.depth == "output":
        return replace(m, k=shortest), f"both cut at {shortest}, where the shorter list ends"
    if all(stage == END for _, stage in ends):
        return (
            Kept(k=shortest),
            f"both within the first {shortest}, where the shorter list ends (kept@{shortest})",
        )
    return (
        None,
        (
            "n/a: not compared, it depends on how many rows go in and come out, here"
            f" {' against '.join(dict.fromkeys(depth.text for depth in depths))}"
        ),
    )


@dataclass(frozen=True)
class _Depth:
    """The stages whose numbers of rows a value depends on, the stage itself last; "" is the
    catalogue.
    """

    run: Run
    stages: tuple[str, ...]

    @classmethod
    def of(cls, m: Measure, run: Run, stage: str) -> _Depth:
        if not m.depth:
            return cls(run, ())
        if stage == END:
            return cls(run, (run.stages[-1],))
        place = run.stages.index(stage)
        into = run.stages[place - 1] if place else ""
        if m.depth == "output":
            return cls(run, (stage,))
        if m.depth == "input":
            return cls(run, (into or stage,))
        return cls(run, (*(run.stages[place + 1 :] if m.name == "swap" else ()), into, stage))

    def equals(self, other: _Depth) -> bool:
        """Whether all these stages have the same k, or put out as many rows for each request."""
        return len(self.stages) == len(other.stages) and all(
            bool(one) == bool(two)
            and (
                not one
                or self.run.k(one) == other.run.k(two)
                or self.run.rows_out(one).equals(other.run.rows_out(two))
            )
            for one, two in zip(self.stages, other.stages, strict=True)
        )

    @property
    def most(self) -> int:
        return self.run.most(self.stages[-1])

    @property
    def text(self) -> str:
        """Their mean numbers of rows."""
        return ", ".join(mean_rows(self.run, stage) for stage in self.stages if stage)


def mean_rows(run: Run, stage: str) -> str:
    """How many rows a stage put out for a request on average, as text: "300", or "7.6"."""
    return f"{run.rows_out(stage).to_numpy().mean():,.1f}".removesuffix(".0")


def _tested(
    table: Sequence[Compared], labels: dict[str, str], users: int, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Rows with differences and intervals from the same draws of users, with Holm's correction over
    all of them.
    """
    samples = sampled([e for _, a, b in table for e in (*a, *b)], users, resamples, seed)
    for row, a, b in table:
        row |= labels
        if a:
            row |= _difference(row, a, b, samples, seed)
    rows = [row for row, _, _ in table]
    correct(rows)
    return rows


def _difference(
    row: dict[str, Any], a: Sequence[Estimate], b: Sequence[Estimate], samples: Samples, seed: int
) -> dict[str, Any]:
    value_a, value_b = (float(np.mean([e.value for e in side])) for side in (a, b))
    out: dict[str, Any] = {"n": b[0].n, "undefined": b[0].undefined}
    if np.isnan(value_a) or np.isnan(value_b):
        return out | {"note": _joined(row["note"], "n/a: nothing is defined in both")}
    found = Difference.between(a, b, samples, seed)
    out |= {"value_a": value_a, "value_b": value_b, "difference": found.value}
    out |= found.row(Measure.parse(row["measure"]).better)
    if few := too_few(b[0].n, row["unit"]):
        out |= {"smallest_effect": None, "note": _joined(row["note"], few)}
    return out


# -- losses by stage -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cascade:
    """Where relevant items are lost, in items and money.

    steps: in, out and survival of each stage; the last row, end to end, is their product.
    losses: items and money by reason.
    """

    steps: list[dict[str, Any]]
    losses: list[dict[str, Any]]

    @classmethod
    def of(cls, run: Run, slice: str | None = None) -> Cascade:
        """Compute it from the ledger of a Run.

        Raises:
            KarmafunnelError: ranks and reasons in the ledger contradict each other.
        """
        reading = RunArrays(run)
        steps: list[dict[str, Any]] = []
        losses: list[dict[str, Any]] = []
        for part in reading.parts(slice):
            steps += _steps(reading, part)
            losses += _losses(reading, part)
        return cls(steps, losses)


def _ratio(out: float, into: float) -> float | None:
    return out / into if into else None


def _steps(reading: RunArrays, part: SliceMask) -> list[dict[str, Any]]:
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
            what = f"item {lost['item_id']!r} of request {lost['request_id']!r}"
            raise KarmafunnelError(
                f"{reading.run.path}/ledger.parquet: {name} keeps {what}, which did not reach it"
            )
        row: dict[str, Any] = {"slice": part.name, "stage": name}
        for what, of in (("items", np.ones(len(money), dtype=np.int64)), ("money", money)):
            row |= {f"{what}_in": of[into].sum().item(), f"{what}_out": of[out].sum().item()}
        row["survival"] = _ratio(row["items_out"], row["items_in"])
        row["money_survival"] = _ratio(row["money_out"], row["money_in"])
        rows.append(row)
    return rows


def _losses(reading: RunArrays, part: SliceMask) -> list[dict[str, Any]]:
    """Relevant items and money by reason of loss, in the order of the funnel, kept items last;
    shares are of all relevant items.
    """
    truths = reading.truths
    money = np.nan_to_num(truths.money)
    reason = truths.frame["lost"].fill_null("kept").to_numpy().astype(str)
    margin = truths.frame["margin"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    names = ["not eligible", "index", *reading.run.stages, "kept"]
    if stray := sorted(set(reason) - set(names)):
        raise KarmafunnelError(
            f"{reading.run.path}/ledger.parquet: `lost` must be null or of {names[:-1]}, found"
            f" {stray}"
        )
    kept = truths.rank[reading.run.stages[-1]] < LOST
    if (kept != (reason == "kept")).any():
        row = truths.frame.row(int(np.flatnonzero(kept != (reason == "kept"))[0]), named=True)
        what = f"request {row['request_id']!r}, item {row['item_id']!r}"
        raise KarmafunnelError(
            f"{reading.run.path}/ledger.parquet: `lost` and the last rank disagree for {what}"
        )
    rows = []
    for name in names:
        mask = part.truth & (reason == name)
        missed = margin[mask & ~np.isnan(margin)]
        items, sum_of = int(mask.sum()), float(money[mask].sum())
        rows.append(
            {
                "slice": part.name,
                "reason": name,
                "items": items,
                "share": _ratio(items, int(part.truth.sum())),
                "money": sum_of,
                "money_share": _ratio(sum_of, float(money[part.truth].sum())),
                "median_margin": float(np.median(missed)) if len(missed) else None,
            }
        )
    return rows
