"""Attribution: an end-to-end change split over the stages that made it, from Runs of the whole
on/off grid.

The value of a set of stages is the measure at the end of the funnel in which just these are
switched on. A stage's part is its Shapley value, the mean over all orders of switching the stages
on of what the measure gains at its turn: the parts of all stages sum to the whole change, whatever
the stages do to each other (Shapley 1953).
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
MOST = 4  # stages: the grid has 2^n funnels


def grid(off: Funnel, on: Mapping[str, Stage | None]) -> dict[Subset, Funnel]:
    """The funnels in which every subset of the stages named in `on` is switched on: its alternative
    in its place, all else as `off` has it.

    None leaves a stage out. Subsets come small to large, in the order of the funnel. Raises
    KarmafunnelError for no stage, more than 4, one that `off` does not have, and an alternative
    that changes nothing.
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
    """All subsets, small to large."""
    return [
        frozenset(some) for size in range(len(stages) + 1) for some in combinations(stages, size)
    ]


def shapley(values: Mapping[Subset, Value]) -> dict[str, Value]:
    """The Shapley value of every member, from the value (a number, or an array of resamples) of
    every subset.

    Of n members, i gets the sum over the sets S without it of |S|! (n - |S| - 1)! / n! times v(S
    with i) - v(S).
    """
    everybody = max(values, key=len)
    n = len(everybody)
    weight = [factorial(size) * factorial(n - size - 1) / factorial(n) for size in range(n)]
    parts: dict[str, Value] = {}
    for one in sorted(everybody):
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
    """What each switched-on stage adds to a measure at the end of the funnel: a row a measure, part
    and stage, then one end to end.

    `runs` holds, for every subset of the stages that may be on (the empty one, too), its Run or one
    Run a seed, seeds in one order everywhere. `value` is the Shapley value, mean over seeds, with a
    95% interval over users and seeds; end to end it is the sum of the parts: `on`, all stages on,
    less `off`, none. `alone` is what the stage adds to none, `last` what it adds to all others.
    `share` is of the whole change, where that leaves out 0. `better` is "on" or "off" where the
    interval leaves out 0 and the sign is the same in every seed; `holm` says whether that stands
    after Holm's correction over all these rows. Raises KarmafunnelError for a missing subset,
    unequal numbers of seeds, more than 4 stages, and Runs of different logs, labels, windows or
    requests.
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
    asked: dict[Measure, Measure] = {}  # what is asked in a measure's place
    notes = {}
    for m in wanted:
        places = [(run, END if m.name == "survival" else run.stages[-1]) for run in flat]
        one, notes[m] = at_one_depth(m, places)
        if one is not None:
            asked[m] = one
    # A RunArrays goes once its figures are there: the grid has many.
    ends = [_ends(readings.pop(0), asked, slice) for _ in flat]
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
    """In the order of the funnel; what it does not have comes last."""
    return sorted(
        names, key=lambda name: (places.index(name) if name in places else len(places), name)
    )


def _stages_of(table: Mapping[Subset, Sequence[Run]]) -> list[str]:
    """The stages that are switched, in the order of the funnel; raises KarmafunnelError where the
    grid has a hole.
    """
    named = sorted(frozenset().union(*table))
    _check_number(named)
    if missing := [subset for subset in subsets(named) if not table.get(subset)]:
        holes = ", ".join(_words(subset) for subset in missing)
        raise KarmafunnelError(
            f"attribute: needs Runs for every subset of {named}, missing {holes}"
        )
    counts = {subset: len(found) for subset, found in table.items()}
    if other := next((s for s, n in counts.items() if n != counts[frozenset()]), None):
        found = (
            f"{counts[frozenset()]} for {_words(frozenset())} and {counts[other]} for"
            f" {_words(other)}"
        )
        raise KarmafunnelError("attribute", needs="as many seeds for every subset", found=found)
    return _in_order(named, table[frozenset(named)][0].stages)


def _words(subset: Subset) -> str:
    return " + ".join(sorted(subset)) if subset else "nothing on"


def _ends(
    reading: RunArrays, asked: Mapping[Measure, Measure], slice_name: str | None
) -> dict[tuple[str, str], MetricValue]:
    """The figure at the end of a Run by measure and part, of what is asked in the measure's place:
    end to end where that has such a row, else its last stage's.
    """
    last = reading.run.stages[-1]
    ends: dict[tuple[str, str], MetricValue] = {}
    for measure, one in asked.items():
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
    """Fill the rows of one measure: its stages, then end to end."""
    nobody, everybody = every[0], every[-1]
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
    change, split = mean[everybody] - mean[nobody], [_split(game) for game in values]
    found = {}
    for stage in split[0]:
        parts = [one[stage] for one in split]
        value = change if stage == END else float(np.mean(parts))
        found[stage] = Difference.over_seeds(value, parts, [one[stage] for one in drawn], seed)
    told_apart = found[END].excludes_zero()
    for row in rows:
        stage, difference = row["stage"], found[row["stage"]]
        own = everybody if stage == END else frozenset({stage})
        row |= {"value": difference.value, "off": mean[nobody], "on": mean[everybody]}
        row |= {"alone": mean[own] - mean[nobody], "last": mean[everybody] - mean[everybody - own]}
        row |= difference.row(Measure.parse(row["measure"]).better, ("off", "on"))
        row["share"] = difference.value / change if told_apart else None


def _split(game: Mapping[Subset, Value]) -> dict[str, Value]:
    """Each stage's part of the whole change, and the change itself."""
    every = sorted(game, key=len)
    return shapley(game) | {END: game[every[-1]] - game[every[0]]}
