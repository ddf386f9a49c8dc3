"""The lines of a table: for each row its measures, its differences to the baseline, its costs and
the diagnostics of its embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from ...files import read_table
from ...models import diagnostics
from ..measure.attribution import attribute
from ..measure.compare import compare, measure
from ..measure.differences import Difference, holm, sampled
from ..measure.intervals import Estimate, Ratio
from ..measure.run import Run
from ..replay.recipe import Recipe, as_row
from ..report.measure_table import unchanged
from .cells import Cell

JS = "JS@50"
MEASURES = ("HR@10", "HR@50", "HR@200", "nDCG@10", "HR@200 by target")
BY_TARGET = " by target"  # suffix of a measure that is computed for each popularity band
Line = dict[str, Any]


def lines_of(recipe: Recipe, todo: Sequence[Cell], diagnose: bool = True) -> list[Line]:
    """One line per row, from the finished cells.

    Args:
        diagnose: whether lines have JS@50, which is then one of the tests that Holm's correction
            goes over, and `diagnostics`.

    Returns:
        Dicts with `row`, `funnel`, `embedders`, `note`, `seeds` (the finished ones), `warnings` (of
        its fits), `date`, `values` and `differences` to the baseline `recipe.against` (both by
        column), `paired` (seeds that the baseline has finished too), `diagnostics` (means over
        seeds), `cost` (see `cost`), and `failed` (the first error) where a cell failed.
    """
    by_row: dict[str, list[Cell]] = {}
    done: dict[str, list[Cell]] = {}
    for cell in todo:
        by_row.setdefault(cell.row, []).append(cell)
        if cell.done:
            done.setdefault(cell.row, []).append(cell)
    baseline = {cell.seed: cell for cell in done.get(recipe.against or "", [])}
    stages = stages_of(recipe, [name for name in by_row if name in done]) if recipe.by_stage else []
    lines = []
    for name, group in by_row.items():
        line = _described(recipe, name, done.get(name, []))
        if errors := [cell.failed for cell in group if cell.failed]:
            line["failed"] = errors[0]
        if name in done:
            _add_values(line, recipe, done[name], stages, diagnose)
            if name != recipe.against:
                _add_differences(line, recipe, done[name], baseline, stages, diagnose)
        lines.append(line)
    _correct(lines)
    return lines


def _described(recipe: Recipe, name: str, done: Sequence[Cell]) -> Line:
    """A line without measures: the row's funnel, embedders and note, and its finished seeds."""
    line: Line = {"row": name, "funnel": "", "embedders": {}}
    if name not in recipe.errors:
        row = recipe.row(name)
        line["funnel"] = repr(row.funnel)
        line["embedders"] = {key: repr(value) for key, value in row.used_embedders.items()}
    line["note"] = as_row(recipe.rows[name]).note
    line["seeds"] = [cell.seed for cell in done]
    fits = [cell.read("facts.json").get("fit") or {} for cell in done]
    line["warnings"] = [text for fit in fits for text in fit.get("warnings", ())]
    line["date"] = max((str(cell.read("facts.json").get("date", "")) for cell in done), default="")
    return line | {"values": {}, "differences": {}, "diagnostics": {}, "cost": {}, "paired": []}


def _add_values(
    line: Line, recipe: Recipe, done: Sequence[Cell], stages: Sequence[str], diagnose: bool
) -> None:
    runs = _runs(done)
    rows = values_at(runs, measures_of(recipe, runs[0]), stages)
    line["values"] = {column(row): row for row in rows}
    line["cost"] = cost(runs)
    if diagnose:
        line["values"][JS] = of_requests(_similarities(done), [], runs)
        line["diagnostics"] = diagnostics.merge([figures_of(cell) for cell in done])


def _add_differences(
    line: Line,
    recipe: Recipe,
    done: Sequence[Cell],
    baseline: dict[int, Cell],
    stages: Sequence[str],
    diagnose: bool,
) -> None:
    """Add the differences to the baseline over the seeds that both rows have finished."""
    both = [cell for cell in done if cell.seed in baseline]
    if not both:
        return
    other = [baseline[cell.seed] for cell in both]
    line["paired"] = [cell.seed for cell in both]
    a, b = _runs(other), _runs(both)
    rows = differences_at(a, b, measures_of(recipe, a[0]), stages)
    line["differences"] = {column(row): row for row in rows}
    if diagnose:
        line["differences"][JS] = of_requests(_similarities(both), _similarities(other), b)


def _correct(lines: Sequence[Line]) -> None:
    """Set `holm` of every difference, correcting over the whole table as one family of tests.

    A last stage that appears in two columns counts as one test. A stage at which both rows still
    return the same is no test.
    """
    tests: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        for row in line["differences"].values():
            test = line["row"], row["measure"], row.get("slice"), row.get("stage")
            tests.setdefault(test, []).append(row)
    p = [None if unchanged(rows[0]) else rows[0]["p"] for rows in tests.values()]
    for rows, rejected in zip(tests.values(), holm(p), strict=True):
        for row in rows:
            row["holm"] = rejected


def _runs(done: Sequence[Cell]) -> list[Run]:
    return [Run.open(cell.folder / "run") for cell in done]


def _similarities(done: Sequence[Cell]) -> list[pl.DataFrame]:
    return [read_table(cell.folder / "similarity" / "similarity.parquet") for cell in done]


def figures_of(cell: Cell) -> dict[str, Any]:
    """The finite numbers among a cell's facts by name, except the seed."""
    figures = {}
    for name, value in cell.read("facts.json").items():
        if name != "seed" and isinstance(value, (int, float)) and np.isfinite(value):
            figures[name] = value
    return figures


# -- measures --------------------------------------------------------------------------------------


def measures_of(recipe: Recipe, run: Run) -> tuple[str, ...]:
    """The recipe's measures; default: `MEASURES`, and gAUC where the log has exposures."""
    shown = ("gAUC:request:exposures",) if run.meta["log"]["has"]["exposures"] else ()
    return recipe.measures or MEASURES + shown


def split(measures: Sequence[str]) -> tuple[list[str], list[str]]:
    """Measures over all requests, and those by target ("HR@200 by target") without the suffix."""
    whole, sliced = [], []
    for name in measures:
        if name.endswith(BY_TARGET):
            sliced.append(name.removesuffix(BY_TARGET))
        else:
            whole.append(name)
    return whole, sliced


def stages_of(recipe: Recipe, rows: Sequence[str]) -> list[str]:
    """The stages with columns of their own: all stages of the rows, except one that is the last
    stage of every row.
    """
    names: dict[str, None] = {}
    last = set()
    for row in rows:
        if row not in recipe.errors:
            stages = [stage.name for stage in recipe.row(row).funnel.stages]
            names |= dict.fromkeys(stages)
            last.add(stages[-1])
    return [name for name in names if {name} != last]


def values_at(runs: list[Run], measures: Sequence[str], stages: Sequence[str]) -> list[Line]:
    """Measure rows of the funnel's output and of `stages`; the latter have the key `at`."""
    rows = _both_kinds(
        measures, lambda names, part: measure(runs, names, by_stage=bool(stages), slice=part)
    )
    return placed(rows, runs[0].stages[-1], stages)


def differences_at(
    a: list[Run], b: list[Run], measures: Sequence[str], stages: Sequence[str]
) -> list[Line]:
    """Comparison rows (B minus A) of the funnels' output and of `stages`, the latter with the key
    `at`.
    """
    rows = _both_kinds(
        measures, lambda names, part: compare(a, b, names, by_stage=bool(stages), slice=part)
    )
    ends = dict.fromkeys((a[0].stages[-1], b[0].stages[-1]))
    return placed(rows, " | ".join(ends), stages)


def _both_kinds(
    measures: Sequence[str], ask: Callable[[list[str], str | None], list[Line]]
) -> list[Line]:
    """The rows of measures over all requests, then of those by target."""
    whole, sliced = split(measures)
    rows = ask(whole, None) if whole else []
    return rows + (ask(sliced, "target") if sliced else [])


def placed(rows: Sequence[Line], end: str, stages: Sequence[str]) -> list[Line]:
    """The rows of `stages` with the key `at`, and the rows of the last stage `end` without it."""
    found: list[Line] = []
    for row in rows:
        if row["stage"] in stages:
            found.append(row | {"at": row["stage"]})
        if row["stage"] == end:
            found.append(row)
    return found


def column(row: Line) -> str:
    """The column heading of a measure row: "HR@10 at recall, cold"."""
    name = f"{row['measure']} at {row['at']}" if "at" in row else str(row["measure"])
    if row["slice"] in (None, "", "all"):
        return name
    return f"{name}, {str(row['slice']).split('=')[-1].split(': ')[-1]}"


def cost(runs: Sequence[Run]) -> dict[str, float]:
    """Milliseconds per request by stage, and their `total`: median over chunks, mean over seeds.

    Work that several rows share counts in full for each of them. The median excludes the slow first
    chunk and occasional pauses of the machine.
    """
    each = (1000 * pl.col("seconds") / pl.col("requests")).alias("ms")
    by_seed = []
    for run in runs:
        timing = run.read("timing", "stage", each)
        by_seed.append(timing.group_by("stage", maintain_order=True).agg(pl.col("ms").median()))
    means = pl.concat(by_seed).group_by("stage", maintain_order=True).agg(pl.col("ms").mean())
    by_stage = dict(means.iter_rows())
    return by_stage | {"total": sum(by_stage.values())}


def of_requests(values: list[pl.DataFrame], others: list[pl.DataFrame], runs: list[Run]) -> Line:
    """A measure row of JS@50, the mean over requests.

    Args:
        values: request_id and js, one frame per seed.
        others: the same for the baseline; where given, the row holds the paired difference to it.
        runs: the interval is clustered by the users of the first one.
    """
    user = pl.coalesce("user_id", pl.lit("\x00") + pl.col("request_id")).alias("user_id")
    users = runs[0].read("requests", "request_id", user)
    number = users["user_id"].rank("dense").cast(pl.Int64).to_numpy() - 1
    cluster = dict(zip(users["request_id"], number, strict=True))
    place = np.array([cluster[request] for request in values[0]["request_id"]], dtype=np.int64)
    a = [frame["js"].to_numpy() for frame in values]
    if others:
        a = [x - frame["js"].to_numpy() for x, frame in zip(a, others, strict=True)]
    estimates: list[Estimate] = [Ratio(x, np.ones(len(x)), place) for x in a]
    by_seed = [estimate.value for estimate in estimates]
    value = float(np.mean(by_seed)) if len(place) else float("nan")
    known = not np.isnan(value)
    samples = sampled(estimates, len(set(cluster.values())) if known else 0, 1000, 0)
    drawn = [samples[estimate] for estimate in estimates] if samples else []
    found = Difference.over_seeds(value, by_seed, drawn, 0)
    low, high = found.interval
    row: Line = {"measure": JS, "value": value if known else None, "low": low, "high": high}
    row |= {"n": estimates[0].n, "p": None}
    return row | found.row("higher") | {"difference": row["value"]} if others else row


def parts_of(recipe: Recipe, todo: Sequence[Cell]) -> list[Line]:
    """The contribution of each stage to the change over the recipe's grid.

    Uses the seeds that every row of the grid has finished; empty without a grid or such a seed.
    """
    done = {(cell.row, cell.seed): cell.folder / "run" for cell in todo if cell.done}
    seeds = []
    for seed in dict.fromkeys(cell.seed for cell in todo):
        if all((row, seed) in done for row in recipe.grid.values()):
            seeds.append(seed)
    if not recipe.grid or not seeds:
        return []
    runs = {}
    for switched_on, row in recipe.grid.items():
        runs[switched_on] = [Run.open(done[row, seed]) for seed in seeds]
    whole, _ = split(measures_of(recipe, runs[frozenset()][0]))
    return [row for row in attribute(runs, whole) if row["value"] is not None]
