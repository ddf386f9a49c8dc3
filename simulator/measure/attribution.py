"""Attribution: split an end-to-end change over the stages that caused it, from Runs of all on/off
combinations.

The value of a set of stages is the measure at the end of the funnel in which exactly these are
switched on. The part of a stage is its Shapley value: what the measure gains when the stage is
switched on, averaged over all orders of switching stages on. The parts sum to the whole change,
however the stages interact (Shapley 1953).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from math import factorial
from typing import Any, TypeVar

import numpy as np

from ...errors import KarmafunnelError
from ...stages.stage import Funnel, Stage
from .arrays import RunArrays
from .compare import ask, at_one_depth, same_requests
from .differences import Difference, Samples, correct, paired, sampled
from .intervals import Estimate
from .measures.measure import END, Measure, MetricValue, parse_all
from .run import Run

Subset = frozenset[str]
Value = TypeVar("Value", float, np.ndarray)
MOST = 4  # stages; the grid has 2^n funnels


def grid(off: Funnel, on: Mapping[str, Stage | None]) -> dict[Subset, Funnel]:
    """The funnel of every subset of the stages in `on`.

    Args:
        off: the funnel with all of these stages switched off.
        on: by name of a stage, the stage that replaces it when switched on; None removes it.

    Returns:
        Funnels by subset of names, from small to large subsets, in the order of the funnel.

    Raises:
        KarmafunnelError: no stage or more than 4, one that `off` does not have, or one that is the
            same on and off.
    """
    _check_number(on)
    places = {stage.name: stage for stage in off.stages}
    if same := [name for name, stage in on.items() if name in places and places[name] == stage]:
        raise KarmafunnelError(
            "grid",
            what=same,
            needs="to differ when switched on",
            found=f"{on[same[0]]!r} both times",
        )
    return {
        subset: off.replace(**{name: on[name] for name in subset})
        for subset in subsets(_in_order(on, list(places)))
    }


def subsets(stages: Sequence[str]) -> list[Subset]:
    """All subsets, from small to large."""
    return [
        frozenset(some) for size in range(len(stages) + 1) for some in combinations(stages, size)
    ]


def shapley(values: Mapping[Subset, Value]) -> dict[str, Value]:
    """The Shapley value of each member.

    With n members, that of member i is the sum over all subsets S without i of
    |S|! (n - |S| - 1)! / n! * (v(S with i) - v(S)).

    Args:
        values: v of every subset, a number or an array of resamples.
    """
    whole = max(values, key=len)
    n = len(whole)
    weight = [factorial(size) * factorial(n - size - 1) / factorial(n) for size in range(n)]
    parts: dict[str, Value] = {}
    for one in sorted(whole):
        gains = [
            weight[len(some)] * (values[some | {one}] - values[some])
            for some in values
            if one not in some
        ]
        parts[one] = sum(gains[1:], start=gains[0])
    return parts


def attribute(
    runs: Mapping[Subset, Run | Sequence[Run]],
    measures: Sequence[Measure | str],
    slice: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """What each stage adds to a measure at the end of the funnel when it is switched on.

    Args:
        runs: the Run of every subset of the stages, the empty one included, or one Run per seed,
            with seeds in the same order everywhere.
        slice: name of a slice, such as "target".

    Returns:
        One row per measure, slice value and stage, then one end to end. `value`: the Shapley value,
        mean over seeds, with a 95% interval over users and seeds; end to end it is the sum of the
        parts, `on` (all stages on) - `off` (none on). `alone`: what the stage adds to none. `last`:
        what it adds to all others. `share`: of the whole change, if the interval of that excludes
        0. `better`: "on" or "off" if the interval excludes 0 and the sign is the same in every
        seed. `holm`: whether it is significant after Holm's correction over all rows.

    Raises:
        KarmafunnelError: a missing subset, different numbers of seeds, more than 4 stages, or Runs
            of different logs, labels, windows or requests.
    """
    wanted = parse_all(measures)
    table = {
        frozenset(on): [found] if isinstance(found, Run) else list(found)
        for on, found in runs.items()
    }
    stages = _stages_of(table)
    every, seeds = subsets(stages), len(table[frozenset()])
    flat = [run for subset in every for run in table[subset]]
    readings = same_requests(flat, [run.path.as_posix() for run in flat])
    users, parts = len(readings[0].users), [part.name for part in readings[0].parts(slice)]
    comparable: dict[Measure, Measure] = {}  # the measure that is computed for each
    notes = {}
    for m in wanted:
        places = [(run, END if m.name == "survival" else run.stages[-1]) for run in flat]
        one, notes[m] = at_one_depth(m, places)
        if one is not None:
            comparable[m] = one
    # The arrays of a Run are freed once it is measured, since a grid has many Runs.
    ends = [_ends(readings.pop(0), comparable, slice) for _ in flat]
    rows: list[dict[str, Any]] = []
    games: list[tuple[list[dict[str, Any]], list[list[Estimate]]]] = []
    estimates: list[Estimate] = []
    for m, part in product(wanted, parts):
        found = [end.get((str(m), part)) for end in ends]
        figures = [figure for figure in found if figure is not None]
        known = [figure.estimate for figure in figures if figure.estimate is not None]
        note = notes[m]
        if len(known) < len(found):
            why = [figure.note for figure in figures if figure.estimate is None]
            note = note or (why or ["n/a: no value at the end of a funnel"])[0]
        mine = [_blank(str(m), part, stage, found[0], seeds, note) for stage in (*stages, END)]
        rows += mine
        if len(known) == len(found):
            by_seed = [paired(known[s::seeds]) for s in range(seeds)]
            games.append((mine, by_seed))
            estimates += [estimate for values in by_seed for estimate in values]
    samples = sampled(estimates, users, resamples, seed)
    for mine, by_seed in games:
        _play(mine, every, by_seed, samples, seed)
    correct(rows)
    return rows


def _check_number(stages: Mapping[str, Any] | Sequence[str]) -> None:
    if not 1 <= len(stages) <= MOST:
        raise KarmafunnelError(
            "attribution",
            needs=f"1 to {MOST} stages to switch on",
            found=f"{len(stages)}: {sorted(stages)}",
        )


def _in_order(names: Mapping[str, Any] | Sequence[str], places: list[str]) -> list[str]:
    """Names in the order of the funnel; those that it does not have come last."""
    return sorted(
        names, key=lambda name: (places.index(name) if name in places else len(places), name)
    )


def _stages_of(table: Mapping[Subset, Sequence[Run]]) -> list[str]:
    """The stages that are switched, in the order of the funnel.

    Raises:
        KarmafunnelError: a missing subset, or different numbers of seeds.
    """
    named = sorted(frozenset().union(*table))
    _check_number(named)
    if missing := [subset for subset in subsets(named) if not table.get(subset)]:
        absent = ", ".join(_subset_name(subset) for subset in missing)
        raise KarmafunnelError(
            "attribute", needs=f"Runs for every subset of {named}", found=f"none for {absent}"
        )
    counts = {subset: len(found) for subset, found in table.items()}
    if other := next((s for s, n in counts.items() if n != counts[frozenset()]), None):
        found = (
            f"{counts[frozenset()]} for {_subset_name(frozenset())} and {counts[other]} for"
            f" {_subset_name(other)}"
        )
        raise KarmafunnelError("attribute", needs="as many seeds for every subset", found=found)
    return _in_order(named, table[frozenset(named)][0].stages)


def _subset_name(subset: Subset) -> str:
    return " + ".join(sorted(subset)) if subset else "nothing on"


def _ends(
    reading: RunArrays, comparable: Mapping[Measure, Measure], slice_name: str | None
) -> dict[tuple[str, str], MetricValue]:
    """The value at the end of a Run by measure and slice value: end to end if the measure has such
    a row, else that of the last stage.

    Args:
        comparable: the measure to compute for each measure.
    """
    last = reading.run.stages[-1]
    ends: dict[tuple[str, str], MetricValue] = {}
    for measure, one in comparable.items():
        found = {figure.key: figure for figure in ask(reading, [one], [last], slice_name)}
        for end in (last, END):
            ends |= {
                (str(measure), part): figure
                for (stage, _, part), figure in found.items()
                if stage == end
            }
    return ends


def _blank(
    measure: str, part: str, stage: str, figure: MetricValue | None, seeds: int, note: str
) -> dict[str, Any]:
    row: dict[str, Any] = {"measure": measure, "slice": part, "stage": stage}
    numbers = (
        "value",
        "low",
        "high",
        "share",
        "alone",
        "last",
        "off",
        "on",
        "p",
        "smallest_effect",
    )
    row |= dict.fromkeys(numbers)
    row |= {"better": "", "holm": False, "n": 0, "undefined": 0, "seeds": seeds}
    row |= {
        "unit": figure.unit if figure else "",
        "denominator": figure.denominator if figure else "",
    }
    return row | {"note": note}


def _play(
    rows: list[dict[str, Any]],
    every: Sequence[Subset],
    by_seed: Sequence[Sequence[Estimate]],
    samples: Samples,
    seed: int,
) -> None:
    """Fill the rows of one measure and slice value: its stages, then end to end."""
    none_on, all_on = every[0], every[-1]
    first = by_seed[0][-1]
    for row in rows:
        row |= {"n": first.n, "undefined": first.undefined}
    values = [dict(zip(every, [e.value for e in estimates], strict=True)) for estimates in by_seed]
    if any(np.isnan(list(game.values())).any() for game in values):
        for row in rows:
            row["note"] = "n/a: nothing is defined in some subset"
        return
    drawn = []
    if samples:
        for estimates in by_seed:
            drawn.append(_split(dict(zip(every, [samples[e] for e in estimates], strict=True))))
    mean = {subset: float(np.mean([game[subset] for game in values])) for subset in every}
    change, split = mean[all_on] - mean[none_on], [_split(game) for game in values]
    found = {}
    for stage in split[0]:
        parts = [one[stage] for one in split]
        value = change if stage == END else float(np.mean(parts))
        found[stage] = Difference.over_seeds(value, parts, [one[stage] for one in drawn], seed)
    whole_change_known = found[END].excludes_zero()
    for row in rows:
        stage, difference = row["stage"], found[row["stage"]]
        own = all_on if stage == END else frozenset({stage})
        row |= {"value": difference.value, "off": mean[none_on], "on": mean[all_on]}
        row |= {"alone": mean[own] - mean[none_on], "last": mean[all_on] - mean[all_on - own]}
        row |= difference.row(Measure.parse(row["measure"]).better, ("off", "on"))
        row["share"] = difference.value / change if whole_change_known else None


def _split(game: Mapping[Subset, Value]) -> dict[str, Value]:
    """The part of each stage, and the whole change."""
    every = sorted(game, key=len)
    return shapley(game) | {END: game[every[-1]] - game[every[0]]}
