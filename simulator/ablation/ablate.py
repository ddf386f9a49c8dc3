"""Ablation: the rows of a recipe, each fitted with several seeds, replayed, and held against one of
them.

A cell is one row with one seed. It is a Run with `facts.json` beside it, kept by content: what is
there is not made again, a killed one goes on, a row that fails is a line of the table and sinks no
other. The cells of a seed are replayed together: where their funnels begin alike, the beginning
runs once.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import load_file, save_file

from ...bounds import check_bound, check_seed
from ...checks import require
from ...errors import KarmafunnelError, NotWrittenError, line_of, short_of_memory
from ...files import (
    TABLE,
    atomic_folder,
    claim,
    intact,
    not_written,
    read_json,
    read_table,
    read_text,
    remove,
    write_json,
    write_parquet,
    write_text,
)
from ...keys import code_of, content_key
from ...log import Log
from ...models import diagnostics as diagnose
from ...stages.context import Progress, silent
from ...stages.kept import Kept
from ...terminal import Console
from ..measure.attribution import attribute
from ..measure.compare import compare, measure
from ..measure.differences import Difference, holm, sampled
from ..measure.intervals import Estimate, Ratio
from ..measure.measures.measure import parse_all
from ..measure.run import Run
from ..replay.jobs import check_workers
from ..replay.options import DEFAULTS, RunOptions
from ..replay.prepare import Variant, check_device, prepare
from ..replay.provenance import commit
from ..replay.recipe import Recipe, as_row
from ..replay.replay import replay_many
from ..report.attention_plot import attention_figure
from ..report.attribution_plot import attribution_figure, attribution_table
from ..report.curves import write_curve
from ..report.measure_table import define, unchanged, valued
from ..report.page import Figure, Page, Points, Section, Text, render, rich
from ..report.plots import forest
from ..report.table import Cell as TableCell
from ..report.table import Table, number, print_table, to_latex, to_markdown
from .examine import examine, subject

JS = "JS@50 (ours)"
MEASURES = ("HR@10", "HR@50", "HR@200", "nDCG@10", "HR@200 by target")
Line = dict[str, Any]
MADE_BY = (replay_many.__module__, examine.__module__)  # whose code makes what a cell holds


@dataclass(frozen=True)
class Cell:
    """One row with one seed, and where it lies."""

    row: str
    seed: int
    folder: Path
    key: str

    @property
    def done(self) -> bool:
        told = self.read("facts.json").get("key") == self.key
        return told and intact(self.folder / "run") and intact(self.folder / "similarity")

    @property
    def failed(self) -> str | None:
        """What went wrong, where the cell was tried in vain."""
        found = self.read("failed.json")
        return str(found["error"]) if found.get("key") == self.key else None

    @property
    def replayed(self) -> bool:
        return self.read("replayed.json").get("key") == self.key and intact(self.folder / "run")

    def fails(self, error: Exception) -> None:
        """Write down what went wrong; it is not tried again until `failed.json` is removed."""
        trace = "".join(traceback.format_exception(error))
        write_json(
            self.folder / "failed.json", {"key": self.key, "error": line_of(error), "trace": trace}
        )

    def read(self, name: str) -> dict[str, Any]:
        try:
            return dict(read_json(self.folder / name))
        except (KarmafunnelError, TypeError, ValueError):
            return {}


def cells(
    recipe: Recipe,
    log: Log,
    out: Path,
    options: RunOptions = DEFAULTS,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[Cell]:
    """The cells of a table, seed by seed, so that an interrupted table has every row.

    Raises KarmafunnelError for a recipe without rows, an unknown row, a negative seed.
    """
    if not recipe.rows:
        raise KarmafunnelError(
            f"recipe {recipe.name}", needs="to export `rows` for a table", found="none"
        )
    if unknown := [name for name in only if name not in recipe.rows]:
        raise KarmafunnelError(
            f"recipe {recipe.name}", needs=f"rows among {sorted(recipe.rows)}", found=unknown
        )
    for seed in seeds:
        check_seed("table", seed)
    wanted = [name for name in recipe.rows if not only or name in only or name == recipe.against]
    found = []
    for seed in dict.fromkeys(seeds or recipe.seeds):
        for name in wanted:
            if name in recipe.faults:
                code, what = "", list[Any]([recipe.faults[name]])
            else:
                row = recipe.row(name)
                code = code_of(*row.funnel.stages, row.read, by=MADE_BY)
                what = [
                    repr(row.funnel),
                    {k: repr(v) for k, v in sorted(row.read.items())},
                    row.label,
                    row.outside,
                ]
            key = content_key(
                code, *what, log.checksum, seed, options.window, options.limit, options.device
            )
            slug = re.sub(r"[^a-z0-9]+", "-", name.lower().replace("+", "plus ")).strip("-")
            found.append(Cell(name, seed, out / "cells" / f"{slug}-{seed}", key))
    if len({c.folder for c in found}) < len(found):
        raise KarmafunnelError(
            f"recipe {recipe.name}",
            needs="row names that differ in letters and digits",
            found=wanted,
        )
    return found


def ablate(
    recipe: Recipe, log: Log, out: Path, options: RunOptions = DEFAULTS, *, only: Sequence[str] = (), seeds: Sequence[int] = (),
    minutes: float | None = None,
) -> list[Cell]:  # fmt: skip
    """Make the cells that are not there yet and write `table.*` into `out`; returns the cells that
    are left for another time.

    `minutes`: no new cell is begun after so long. A cell that failed is not tried again by the same
    code: remove its `failed.json`. One that found no memory is left; a full disk ends the table,
    and the same command goes on. `workers`: other processes replay; fitting stays in this one.
    Raises KarmafunnelError, before anything is fitted, for a recipe without rows, an unknown row,
    measure or device, a limit below 1, a window without requests, an `out` that holds something
    else or (without `force`) the table of another recipe, log, window or limit, and workers that
    cannot read log and recipe.
    """
    wants = {
        "recipe": recipe.name,
        "log.name": log.name,
        "log.checksum": log.checksum,
        "window": options.window,
        "limit": options.limit,
    }
    with claim(
        out, "table", TABLE, wants=wants, inputs=[log.path, recipe.path], force=options.force
    ):
        return _ablate(
            recipe, log, out, options, cells(recipe, log, out, options, only, seeds), minutes
        )


def _ablate(
    recipe: Recipe,
    log: Log,
    out: Path,
    options: RunOptions,
    todo: Sequence[Cell],
    minutes: float | None,
) -> list[Cell]:
    console, window, limit = options.console, options.window, options.limit
    if minutes is not None:
        check_bound("table", "minutes", minutes=minutes)
    check(recipe, log, window, limit, options.device)
    if options.workers is not None:
        check_workers(options.workers, recipe, log, options.folder)
    say = (lambda text: console.print(text, soft_wrap=True)) if console else silent
    began, left = time.perf_counter(), list[Cell]()
    for seed in dict.fromkeys(cell.seed for cell in todo):
        missing = [cell for cell in todo if cell.seed == seed and not (cell.done or cell.failed)]
        ready: dict[Cell, Variant] = {}
        kept = Kept(options.folder)  # what the rows have in common
        mine = replace(options, seed=seed, cache=kept)
        for i, cell in enumerate(missing):
            if minutes is not None and time.perf_counter() - began >= 60 * minutes:
                left += missing[i:]
                break
            say(f"[{todo.index(cell) + 1}/{len(todo)}] {cell.row}, seed {seed}: fitting")
            try:
                row = recipe.row(cell.row)
                ready[cell] = Variant(row, prepare(row, log, mine), cell.folder / "run")
            except Exception as error:  # whatever it is: one row must not sink a night's work
                left += failed(cell, error, say)
        kept.passes.clear()
        if fresh := [cell for cell in ready if not cell.replayed]:
            say(f"seed {seed}: replaying {len(fresh)} rows together")
            errors = replay_many([ready[cell] for cell in fresh], log, mine)
            # a full disk ends it: first what is done
            for cell in sorted(fresh, key=lambda cell: ready[cell].out in errors):
                if (fault := errors.get(ready[cell].out)) is None:
                    write_json(cell.folder / "replayed.json", {"key": cell.key})
                else:
                    left += failed(cell, fault, say)
        known: dict[Any, Any] = {}
        with console.status("examining vectors") if console else nullcontext():
            for cell, variant in ready.items():
                try:
                    if cell.replayed:
                        finish(
                            cell,
                            variant,
                            as_row(recipe.rows[cell.row]).embedders,
                            log,
                            window,
                            known,
                        )
                except Exception as error:
                    left += failed(cell, error, say)
    if left:
        say(f"{len(left)} of {len(todo)} cells are left; the same command goes on")
    with console.status("comparing rows") if console else nullcontext():
        write_table(recipe, log, out, todo, options)
    return left


def failed(cell: Cell, error: Exception, say: Progress) -> list[Cell]:
    """Write down that a row failed; returns it if it is left for another time instead: memory was
    short, which is no row's fault.

    Raises NotWrittenError where the disk is at fault: the next row would fare no better.
    """
    if not_written(error):
        raise NotWrittenError(f"table: {cell.row}, seed {cell.seed}: {line_of(error)}") from error
    if short_of_memory(error):
        say(f"{cell.row}, seed {cell.seed} is left for another time: {line_of(error)}")
        return [cell]
    cell.fails(error)
    say(
        f"{cell.row}, seed {cell.seed} failed: {line_of(error)}\nto try it again, remove {cell.folder / 'failed.json'}"
    )
    return []


def check(recipe: Recipe, log: Log, window: str, limit: int | None, device: str) -> None:
    """Refuse what would fail in every cell, or only after the last: it is no row's fault, and
    fitting takes hours.
    """
    require(log)
    if limit is not None and limit < 1:
        raise KarmafunnelError("table", what="limit", needs="at least 1 request", found=limit)
    if not len(log.requests_in(window)):
        raise KarmafunnelError(
            "table", what=f"log {log.name}", needs=f"requests in {window}", found="none"
        )
    if device != "cpu":
        check_device(device)
    whole, sliced = split(recipe.measures)
    parse_all([*whole, *sliced])


def finish(
    cell: Cell, variant: Variant, own: Collection[str], log: Log, window: str, known: dict[Any, Any]
) -> None:
    """Diagnose a replayed cell by the embedders that are its `own`; what rows of one seed have in
    common is worked out once and `known`.
    """
    about = subject(variant.fitted, own)
    facts, similarity, maps = examine(
        about, variant.fitted, log, Run.open(variant.out), window, known
    )
    with atomic_folder(cell.folder / "similarity", sealed=True) as temporary:
        write_parquet(temporary / "similarity.parquet", similarity)
        if maps is not None:
            save_file({"maps": maps}, temporary / "attention.safetensors")
    remove(cell.folder / "failed.json")
    facts |= {"date": f"{datetime.now(UTC):%Y-%m-%d}"}
    write_json(
        cell.folder / "facts.json", {"key": cell.key, "row": cell.row, "seed": cell.seed, **facts}
    )


# -- the table -------------------------------------------------------------------------------------


DIAGNOSTICS = (
    "median rank of cold targets", "popularity of top 50", "readable, nats", "perplexity given history", "perplexity given interest",
    "perplexity given interest, unseen",
    "sink rate, first", "base sink rate, first", "sink rate, others", "base sink rate, others", "column entropy", "base column entropy",
    "effective rank, items", "effective rank, interests", "uniformity, items", "uniformity, interests", "alignment",
    "training seconds", "embedding µs a request",
)  # fmt: skip


def measures_of(recipe: Recipe, run: Run) -> tuple[str, ...]:
    """What the recipe asks for, or the usual, as far as the Run can say it."""
    shown = ("gAUC:request:exposures",) if run.meta["log"]["has"]["exposures"] else ()
    return recipe.measures or MEASURES + shown


def lines_of(recipe: Recipe, todo: Sequence[Cell]) -> list[Line]:
    """One line a row: `values` and `differences` (against `recipe.against`) by column, and mean
    diagnostics over seeds.
    """
    by_row: dict[str, list[Cell]] = {}
    for cell in todo:
        by_row.setdefault(cell.row, []).append(cell)
    done = {name: [c for c in group if c.done] for name, group in by_row.items()}
    reference = {c.seed: c for c in done.get(recipe.against or "", [])}
    stages = stages_of(recipe, [name for name in by_row if done[name]]) if recipe.by_stage else []
    lines: list[Line] = []
    for name, group in by_row.items():
        line: Line = {"row": name, "funnel": "", "embedders": {}}
        if name not in recipe.faults:
            row = recipe.row(name)
            line |= {
                "funnel": repr(row.funnel),
                "embedders": {k: repr(v) for k, v in row.read.items()},
            }
        line |= {"note": as_row(recipe.rows[name]).note, "seeds": [c.seed for c in done[name]]}
        line |= {
            "date": max((str(c.read("facts.json").get("date", "")) for c in done[name]), default="")
        }
        line |= {"values": {}, "differences": {}, "diagnostics": {}, "cost": {}, "paired": []}
        if errors := [c.failed for c in group if c.failed]:
            line["failed"] = errors[0]
        if done[name]:
            runs = [Run.open(c.folder / "run") for c in done[name]]
            line["values"] = {
                column(row): row for row in asked(runs, measures_of(recipe, runs[0]), stages)
            }
            line["cost"] = cost(runs)
            line["values"][JS] = of_requests([similarity(c) for c in done[name]], [], runs)
            line["diagnostics"] = diagnose.merge([figures_of(c) for c in done[name]])
            both = [c for c in done[name] if c.seed in reference]
            if both and name != recipe.against:
                line["paired"] = [c.seed for c in both]  # those in which both rows are there
                other = [reference[c.seed] for c in both]
                a, b = ([Run.open(c.folder / "run") for c in side] for side in (other, both))
                line["differences"] = {
                    column(row): row for row in against(a, b, measures_of(recipe, a[0]), stages)
                }
                line["differences"][JS] = of_requests(
                    [similarity(c) for c in both], [similarity(c) for c in other], b
                )
        lines.append(line)
    # One family of questions, one correction: every difference that the table prints, once. A last
    # stage may stand in two columns; what is before the first change is no question.
    family: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        for d in line["differences"].values():
            family.setdefault(
                (line["row"], d["measure"], d.get("slice"), d.get("stage")), []
            ).append(d)
    asked_once = [None if unchanged(same[0]) else same[0]["p"] for same in family.values()]
    for alike, mark in zip(family.values(), holm(asked_once), strict=True):
        for d in alike:
            d["holm"] = mark
    return lines


def figures_of(cell: Cell) -> dict[str, Any]:
    """What a cell's facts say in numbers; the seed is no figure, and what is not finite (nothing to
    measure) is none.
    """
    facts = cell.read("facts.json")
    return {
        name: v
        for name, v in facts.items()
        if name != "seed" and isinstance(v, (int, float)) and np.isfinite(v)
    }


def split(measures: Sequence[str]) -> tuple[list[str], list[str]]:
    """Measures of all requests, and those that are asked by target ("HR@200 by target")."""
    return [m for m in measures if not m.endswith(" by target")], [
        m.removesuffix(" by target") for m in measures if " by target" in m
    ]


def stages_of(recipe: Recipe, rows: Sequence[str]) -> list[str]:
    """The stages that have columns of their own: all of all rows, but a last one that is the last
    of every row.
    """
    funnels = [
        [stage.name for stage in recipe.row(name).funnel.stages]
        for name in rows
        if name not in recipe.faults
    ]
    last = {stages[-1] for stages in funnels}
    return [
        name for name in dict.fromkeys(n for stages in funnels for n in stages) if {name} != last
    ]


def asked(runs: list[Run], measures: Sequence[str], stages: Sequence[str]) -> list[Line]:
    """Rows of what the funnel puts out, and with `at` those of some of its stages."""
    whole, sliced = split(measures)
    rows = measure(runs, whole, by_stage=bool(stages)) if whole else []
    rows += measure(runs, sliced, by_stage=bool(stages), slice="target") if sliced else []
    return placed(rows, runs[0].stages[-1], stages)


def against(
    a: list[Run], b: list[Run], measures: Sequence[str], stages: Sequence[str]
) -> list[Line]:
    whole, sliced = split(measures)
    rows = compare(a, b, whole, by_stage=bool(stages)) if whole else []
    rows += compare(a, b, sliced, by_stage=bool(stages), slice="target") if sliced else []
    ends = a[0].stages[-1], b[0].stages[-1]
    return placed(rows, ends[0] if ends[0] == ends[1] else " | ".join(ends), stages)


def placed(rows: Sequence[Line], end: str, stages: Sequence[str]) -> list[Line]:
    found: list[Line] = []
    for row in rows:
        found += [row | {"at": row["stage"]}] if row["stage"] in stages else []
        found += [row] if row["stage"] == end else []
    return found


def column(row: Line) -> str:
    name, part = (
        f"{row['measure']} at {row['at']}" if "at" in row else str(row["measure"]),
        row["slice"],
    )
    return (
        name if part in (None, "", "all") else f"{name}, {str(part).split('=')[-1].split(': ')[-1]}"
    )


def cost(runs: Sequence[Run]) -> dict[str, float]:
    """Milliseconds a request of each stage as if the funnel ran alone: median over chunks, then
    mean over seeds; and `total`.

    The first chunk warms up, and a machine at work stalls now and then: a mean over chunks would
    tell of that.
    """
    each = (1000 * pl.col("seconds") / pl.col("requests")).alias("ms")
    by_seed = [
        run.read("timing", "stage", each)
        .group_by("stage", maintain_order=True)
        .agg(pl.col("ms").median())
        for run in runs
    ]
    by = dict(
        pl.concat(by_seed)
        .group_by("stage", maintain_order=True)
        .agg(pl.col("ms").mean())
        .iter_rows()
    )
    return by | {"total": sum(by.values())}


def similarity(cell: Cell) -> pl.DataFrame:
    return read_table(cell.folder / "similarity" / "similarity.parquet")


def of_requests(values: list[pl.DataFrame], others: list[pl.DataFrame], runs: list[Run]) -> Line:
    """A measure row of JS@50 over requests; with `others` the paired difference to them."""
    users = runs[0].read(
        "requests",
        "request_id",
        pl.coalesce("user_id", pl.lit("\x00") + pl.col("request_id")).alias("user_id"),
    )
    cluster = dict(
        zip(
            users["request_id"],
            users["user_id"].rank("dense").cast(pl.Int64).to_numpy() - 1,
            strict=True,
        )
    )
    place = np.array([cluster[r] for r in values[0]["request_id"]], dtype=np.int64)
    a = [frame["js"].to_numpy() for frame in values]
    if others:
        a = [x - frame["js"].to_numpy() for x, frame in zip(a, others, strict=True)]
    estimates: list[Estimate] = [Ratio(x, np.ones(len(x)), place) for x in a]
    by_seed = [e.value for e in estimates]
    value = float(np.mean(by_seed)) if len(place) else float("nan")
    known = not np.isnan(value)
    samples = sampled(estimates, len(set(cluster.values())) if known else 0, 1000, 0)
    found = Difference.over_seeds(value, by_seed, [samples[e] for e in estimates if samples], 0)
    low, high = found.interval
    row: Line = {
        "measure": JS,
        "value": value if known else None,
        "low": low,
        "high": high,
        "n": estimates[0].n,
        "p": None,
    }
    return row | found.row("higher") | {"difference": row["value"]} if others else row


MS, DETECTABLE = "ms a request", "detectable"


def effect(row: Line | None) -> str:
    """The smallest difference that would have been found with 80% power."""
    found = None if row is None else row.get("smallest_effect")
    return (
        ""
        if not row or found is None or not np.isfinite(found) or unchanged(row)
        else f"±{number(found)}"
    )


def spent(cost: dict[str, float]) -> str:
    """ "12.3 (recall 8.1, rank 4.2)"."""
    if not cost:
        return ""
    parts = [f"{stage} {ms:.2f}" for stage, ms in cost.items() if stage != "total"]
    return f"{cost['total']:.2f}" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")


def tables_of(against: str | None, lines: Sequence[Line]) -> list[Table]:
    """The tables: values, differences to the row `against`, diagnostics, and what failed."""
    columns = list(dict.fromkeys(c for line in lines for c in line["values"]))
    found = [_values(columns, lines)]
    if any(line["differences"] for line in lines):
        found.append(_differences(against, columns, lines))
    names = [d for d in DIAGNOSTICS if any(d in line["diagnostics"] for line in lines)]
    if names:
        rows = [
            [line["row"], *(_short(line["diagnostics"].get(d)) for d in names)]
            for line in lines
            if line["seeds"]
        ]
        found.append(Table(["row", *names], rows, title="diagnostics, means over seeds"))
    if failed := [[line["row"], line["failed"]] for line in lines if "failed" in line]:
        found.append(Table(["row", "why"], failed, title="failed", look="prose"))
    return found


def _values(columns: Sequence[str], lines: Sequence[Line]) -> Table:
    rows: list[list[str | TableCell]] = []
    for line in lines:
        if line["seeds"]:
            cells = [valued(line["values"].get(c)) for c in columns]
            rows.append([line["row"], str(len(line["seeds"])), *cells, spent(line["cost"])])
    if rows:
        rows.append(["n", "", *_counts(columns, [line["values"] for line in lines]), ""])
    return Table(
        ["row", "seeds", *columns, MS], rows, title="values, 95% intervals over users and seeds"
    )


def _differences(against: str | None, columns: Sequence[str], lines: Sequence[Line]) -> Table:
    rows: list[list[str | TableCell]] = []
    for line in lines:
        if found := line["differences"]:
            rows.append(
                [
                    line["row"],
                    str(len(line["paired"])),
                    *(valued(found.get(c), True) for c in columns),
                ]
            )
            rows.append([DETECTABLE, "", *(effect(found.get(c)) for c in columns)])
    rows.append(["n", "", *_counts(columns, [line["differences"] for line in lines])])
    title = f"differences to {against}, paired; * leaves out 0 with one sign in every seed, ** also after Holm"
    return Table(["row", "seeds", *columns], rows, title=title)


def _counts(columns: Sequence[str], found: Sequence[Mapping[str, Line]]) -> list[str]:
    """n of each column, or its range."""
    texts = []
    for name in columns:
        n = sorted({row[name]["n"] for row in found if name in row})
        texts.append("" if not n else f"{n[0]:,}" if len(n) == 1 else f"{n[0]:,} to {n[-1]:,}")
    return texts


def _short(v: float | None) -> str:
    return "" if v is None else (f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}").replace("-", "−")


def record(recipe: Recipe, log: Log, lines: Sequence[Line], options: RunOptions) -> list[str]:
    """Where the table comes from."""
    n = {row["n"] for line in lines for row in line["values"].values() if row.get("n")}
    seeds = sorted({seed for line in lines for seed in line["seeds"]})
    # when the last cell was: no run of the same adds a day
    made = max((line.get("date", "") for line in lines), default="")
    return [
        f"`{options.command}`" if options.command else f"recipe {recipe.name}",
        f"log {log.name} ({log.checksum}), window {options.window}, n up to {max(n, default=0):,}, seeds {seeds}"
        + (f", {options.limit} requests" if options.limit else ""),
        ", ".join(
            filter(
                None,
                [made, processor(), f"{os.cpu_count()} cores", f"commit {commit() or 'unknown'}"],
            )
        ),
        *(f"{line['row']}: {line['note']}" for line in lines if line["note"]),
        *(
            f"{line['row']}, {name}: {d['note'].removeprefix('n/a: ')}"
            for line in lines
            for name, d in line["differences"].items()
            if "not compared" in d.get("note", "")
        ),
        *definitions(lines),
    ]


DEFINITIONS = {
    JS: "mean Jaccard similarity of the words of a first truth item with those of the 50 best retrieved, less the same for 50 random eligible",
    "median rank of cold targets": "among all eligible items by inner product, of the first truth items that were never a target in W1",
    "popularity of top 50": "mean share of the catalogue that is chosen less often in W1 than what is retrieved",
    "readable, nats": "what a linear probe from the interest saves a word of the target's text, over the words' frequencies",
    "perplexity given interest": "of the targets' texts, told from the interest alone",
    "perplexity given history": "of the targets' texts, told from the history",
    "sink rate, first": "share of attention heads that a first place takes more than .3 of (base: before fine-tuning)",
    "column entropy": "of where attention falls: 0 all on one place, 1 evenly",
    "effective rank, items": "exp of the entropy of the vectors' singular values, centred: 1 to their dimension",
    "uniformity, items": "log mean exp(-2 distance^2) over pairs of unit vectors: 0 all alike, near -4 spread out",
    "alignment": "mean squared distance of an interest and its target at length 1: 0 to 4, lower is closer",
    "embedding µs a request": "making one interest, in batches",
}


def definitions(lines: Sequence[Line]) -> list[str]:
    """What the columns mean, a line each; the slices of a measure share theirs."""
    names = dict.fromkeys(row["measure"] for line in lines for row in line["values"].values())
    names |= dict.fromkeys(
        d for d in DEFINITIONS if any(d in line["diagnostics"] for line in lines)
    )
    more = {}
    if any(line["cost"] for line in lines):
        more[MS] = (
            "time of each stage as if its funnel ran alone, median over chunks of requests, mean over seeds"
        )
    if any(line["differences"] for line in lines):
        more[DETECTABLE] = (
            "the smallest difference that the comparison above it would have found with 80% power"
        )
    return [
        *(f"{name}: {DEFINITIONS.get(name) or define(name)}." for name in names),
        *(f"{k}: {v}." for k, v in more.items()),
    ]


def processor() -> str:
    try:
        found = re.search(
            r"model name\s*:\s*(.+)",
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"),
        )
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def write_table(
    recipe: Recipe, log: Log, out: Path, todo: Sequence[Cell], options: RunOptions
) -> None:
    """`table.json`, `.md`, `.csv`, `.tex` and `.html`, each whole or not at all."""
    lines = lines_of(recipe, todo)
    found, below = tables_of(recipe.against, lines), record(recipe, log, lines, options)
    parts = parts_of(recipe, todo)
    if (
        recipe.grid
        and not parts
        and (
            lost := [
                line["row"]
                for line in lines
                if line["row"] in recipe.grid.values() and "failed" in line
            ]
        )
    ):
        below.insert(
            1, f"no attribution: it needs every row of the grid, and {', '.join(lost)} failed"
        )
    if any(
        line["row"] == recipe.against and "failed" in line and not line["seeds"] for line in lines
    ):
        below.insert(1, f"no differences: they are to {recipe.against}, which failed")
    title = f"{recipe.name} on {log.name}"
    kept = {
        "recipe": recipe.name, "against": recipe.against, "log": {"name": log.name, "checksum": log.checksum}, "window": options.window,
        "limit": options.limit,
    }  # fmt: skip
    texts = {
        "table.json": json.dumps(kept | {"lines": lines, "record": below}, indent=1, default=float),
        "table.md": markdown(title, found, below), "table.csv": comma(lines),
        "table.html": render(page(title, found, below, {line["row"]: line["differences"] for line in lines})),
        "table.tex": latex(title, found, below),
    }  # fmt: skip
    if parts:
        texts["attribution.md"] = (
            f"## Attribution, {title}\n\n{to_markdown(attribution_table(parts))}"
        )
    for name, text in texts.items():
        write_text(out / name, text)
    first = {cell.row: cell for cell in reversed(todo) if cell.done}
    maps = {
        row: first[row].folder / "similarity" / "attention.safetensors"
        for row in recipe.rows
        if row in first
    }
    found_maps = {row: load_file(path)["maps"] for row, path in maps.items() if path.exists()}
    if found_maps:
        write_curve(attention_figure(found_maps), out / "attention.html", f"Attention, {title}")
    # of a table that had more rows
    for name in () if parts else ("attribution.md", "attribution.html", "attribution.png"):
        remove(out / name)
    if parts:
        write_curve(
            attribution_figure(parts), out / "attribution.html", f"What each stage adds, {title}"
        )


def parts_of(recipe: Recipe, todo: Sequence[Cell]) -> list[Line]:
    """The whole change over the recipe's grid, split over its stages; empty where it has none, or a
    subset of the grid is not there.
    """
    done = {(cell.row, cell.seed): cell.folder / "run" for cell in todo if cell.done}
    seeds = [
        s
        for s in dict.fromkeys(c.seed for c in todo)
        if all((row, s) in done for row in recipe.grid.values())
    ]
    if not recipe.grid or not seeds:
        return []
    runs = {on: [Run.open(done[row, seed]) for seed in seeds] for on, row in recipe.grid.items()}
    whole, _ = split(measures_of(recipe, runs[frozenset()][0]))
    return [row for row in attribute(runs, whole) if row["value"] is not None]


def markdown(title: str, found: Sequence[Table], below: Sequence[str]) -> str:
    return "\n".join([f"## {title}\n", *map(to_markdown, found), "\n\n".join(below)]) + "\n"


def latex(title: str, found: Sequence[Table], below: Sequence[str]) -> str:
    """A `table` environment a table; the last also says where all of them come from."""
    titled = [replace(table, title=f"{title}: {table.title}") for table in found]
    return "\n".join(map(to_latex, [*titled[:-1], replace(titled[-1], below=below)]))


def comma(lines: Sequence[Line]) -> str:
    """One line a row and column, numbers in full."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [
        "row",
        "seeds",
        "column",
        "value",
        "low",
        "high",
        "difference",
        "d_low",
        "d_high",
        "better",
        "holm",
        "detectable",
        "n",
        "d_seeds",
    ]
    writer.writerow(heads)
    for line in lines:
        for name, row in line["values"].items():
            other = line["differences"].get(name) or {}
            writer.writerow(
                [line["row"], len(line["seeds"]), name, row["value"], row["low"], row["high"], other.get("difference"),
                 other.get("low"), other.get("high"), other.get("better"), other.get("holm"),
                 other.get("smallest_effect"), row["n"], len(line["paired"]) if other else None]
            )  # fmt: skip
        figures = {
            name: line["diagnostics"][name] for name in DIAGNOSTICS if name in line["diagnostics"]
        }
        for name, value in (
            figures | {f"{MS}, {stage}": ms for stage, ms in line["cost"].items()}
        ).items():
            writer.writerow(
                [line["row"], len(line["seeds"]), name, value, *[None] * (len(heads) - 4)]
            )
    return file.getvalue()


def page(
    title: str,
    found: Sequence[Table],
    below: Sequence[str],
    differences: Mapping[str, Mapping[str, Line]],
) -> Page:
    """The same as a page, with `differences` (row -> column -> difference) drawn."""
    sections = []
    if any(d.get("difference") is not None for row in differences.values() for d in row.values()):
        words = (
            "Differences with their 95% intervals, a pane a column; the upright line is no difference. In colour: the interval leaves "
            "out 0 with one sign in every seed. Diamond: it still does when the whole table is to hold at once."
        )
        sections.append(
            Section(
                "drawn", "Drawn", "Differences drawn", [Text(words), Figure(forest(differences))]
            )
        )
    for i, table in enumerate(found):
        title_of = table.title[:1].upper() + table.title[1:]
        short = title_of.split(",")[0].split(" to ")[0]
        sections.append(Section(f"table{i}", short, title_of, [table]))
    notes = [
        rich("<code>{}</code>", line.strip("`")) if line[:1] == line[-1:] == "`" else line
        for line in below
    ]
    sections.append(Section("record", "Record", "Where it comes from", [Points(notes, "notes")]))
    return Page(title, "karmafunnel table", [], sections)


def print_tables(out: Path, console: Console) -> None:
    """The tables of a folder in the terminal, from `table.json`."""
    kept = read_json(out / "table.json")
    for table in tables_of(kept["against"], kept["lines"]):
        print_table(table, console)
    if (out / "attribution.md").exists():
        console.print(read_text(out / "attribution.md"), soft_wrap=True)
    for line in kept["record"]:
        console.print(line, soft_wrap=True)
