"""Ablation: the rows of a recipe, each fitted and replayed with several seeds, as one table.

A cell is one row with one seed: a Run and `facts.json`, kept by content. What is complete is not
made again, an interrupted table goes on, and a row that fails is a line of the table that says why.
The cells of a seed are replayed together: where their funnels begin alike, that part runs once.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ...bounds import check_bound
from ...checks import require
from ...errors import (
    KarmafunnelError,
    LostProcessError,
    NotWrittenError,
    line_of,
    short_of_memory,
)
from ...files import TABLE, atomic_folder, claim, not_written, remove, write_json, write_parquet
from ...log import Log
from ...stages.context import Progress, silent
from ...stages.kept import Kept
from ..measure.measures.measure import parse_all
from ..measure.run import Run
from ..replay.jobs import check_workers
from ..replay.options import DEFAULTS, RunOptions
from ..replay.prepare import Variant, check_device, prepare
from ..replay.recipe import Recipe, as_row
from ..replay.replay import replay_many
from .cells import Cell, cells
from .examine import examine, subject
from .formats import write_table
from .lines import split


def ablate(
    recipe: Recipe,
    log: Log,
    out: Path,
    options: RunOptions = DEFAULTS,
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    minutes: float | None = None,
    diagnose: bool = False,
) -> list[Cell]:
    """Make the cells that are missing and write `table.*` into `out`.

    Cells that failed in an earlier call are tried again after all others. One that runs out of
    memory is left for another call. A full disk ends the table; the same command goes on.

    Args:
        options: with `workers`, other processes replay; fitting stays in this one.
        only: names of the rows to make beside the baseline; empty for all.
        seeds: empty for those of the recipe.
        minutes: after this time no further cell is begun.
        diagnose: whether the table also has JS@50 and the diagnostics of the embeddings, which no
            recipe asks for.

    Returns:
        The cells that are left for another call, but for those that failed in an earlier one.

    Raises:
        KarmafunnelError: before anything is fitted, for a recipe without rows, an unknown row,
            measure or device, a limit below 1, a window without requests, an `out` that holds
            something else or (without `force`) the table of another recipe, log, window or limit,
            and workers that cannot read the log or the recipe.
    """
    wants = {
        "recipe": recipe.name,
        "log.name": log.name,
        "log.checksum": log.checksum,
        "window": options.window,
        "limit": options.limit,
    }
    inputs = [log.path, recipe.path]
    with claim(out, "table", TABLE, wants=wants, inputs=inputs, force=options.force):
        todo = cells(recipe, log, out, options, only, seeds)
        if minutes is not None:
            check_bound("table", "minutes", minutes=minutes)
        check(recipe, log, options)
        console = options.console
        say: Progress = partial(console.print, soft_wrap=True) if console else silent
        end = None if minutes is None else time.perf_counter() + 60 * minutes
        missing = [cell for cell in todo if not cell.done]
        seeds = list(dict.fromkeys(cell.seed for cell in todo))
        if missing:
            sizes = f"{len(todo) // len(seeds)} rows x {len(seeds)} seed{'s' * (len(seeds) > 1)}"
            say(f"{sizes}: {len(missing)} of {len(todo)} cells to make")
        old = [cell for cell in missing if cell.failed]
        left: list[Cell] = []
        for group in ([cell for cell in missing if cell not in old], old):
            for seed in seeds:
                if of_seed := [cell for cell in group if cell.seed == seed]:
                    left += _make(recipe, log, replace(options, seed=seed), of_seed, todo, end, say)
        left = [cell for cell in left if not cell.failed]
        if left:
            say(f"{len(left)} of {len(todo)} cells are left; the same command goes on")
        if failures := sum(cell.failed is not None for cell in missing):
            say(f"{failures} of {len(todo)} cells failed; the same command tries them again, last")
        with console.status("comparing rows") if console else nullcontext():
            write_table(recipe, log, out, todo, options, diagnose)
        return left


def _make(
    recipe: Recipe,
    log: Log,
    options: RunOptions,
    missing: Sequence[Cell],
    todo: Sequence[Cell],
    end: float | None,
    say: Progress,
) -> list[Cell]:
    """Make those cells of `todo` that are missing, all of the seed of `options`; returns those left
    for another call.
    """
    seed = options.seed
    left: list[Cell] = []
    ready: dict[Cell, Variant] = {}
    kept = Kept(options.folder)  # what the rows have in common
    options = replace(options, cache=kept)
    for i, cell in enumerate(missing):
        if end is not None and time.perf_counter() >= end:
            left += missing[i:]
            break
        say(f"[{todo.index(cell) + 1}/{len(todo)}] {cell.row}, seed {seed}: fitting")
        try:
            row = recipe.row(cell.row)
            ready[cell] = Variant(row, prepare(row, log, options), cell.folder / "run")
        except Exception as error:  # one row must not end the others, whatever went wrong
            left += failed(cell, error, say)
    kept.forget()
    if fresh := [cell for cell in ready if not cell.replayed]:
        say(f"seed {seed}: replaying {len(fresh)} rows together")
        errors = replay_many([ready[cell] for cell in fresh], log, options)
        # complete cells first: a full disk ends the loop
        for cell in sorted(fresh, key=lambda cell: ready[cell].out in errors):
            if ready[cell].out in errors:
                left += failed(cell, errors[ready[cell].out], say)
            else:
                write_json(cell.folder / "replayed.json", {"key": cell.key})
    shared: dict[Any, Any] = {}
    replayed = {cell: variant for cell, variant in ready.items() if cell.replayed}
    with options.console.status("examining vectors") if options.console else nullcontext():
        for i, (cell, variant) in enumerate(replayed.items()):
            own = as_row(recipe.rows[cell.row]).embedders
            if own:  # every request's user embedding is made again: minutes, of a large model
                of = f"row {i + 1} of {len(replayed)}, {cell.row}"
                say(f"seed {seed}: examining the vectors of {of}")
            try:
                finish(cell, variant, own, log, options.window, shared)
            except Exception as error:
                left += failed(cell, error, say)
    return left


def failed(cell: Cell, error: Exception, say: Progress) -> list[Cell]:
    """Record that a cell failed, unless memory was short, which is not the row's fault.

    Returns:
        The cell itself where it is left for another call, else nothing.

    Raises:
        NotWrittenError, LostProcessError: where the disk or another process is at fault, because
            the next row would fail as well.
    """
    who = f"{cell.row}, seed {cell.seed}"
    if not_written(error):
        raise NotWrittenError(f"table: {who}: {line_of(error)}") from error
    if short_of_memory(error):
        say(f"{who} is left for another time: {line_of(error)}")
        return [cell]
    if isinstance(error, LostProcessError):  # not the row's fault, either
        raise error
    cell.fails(error)
    say(f"{who} failed: {line_of(error)}")
    return []


def check(recipe: Recipe, log: Log, options: RunOptions) -> None:
    """Check before hours of fitting what would fail in every cell, or only after the last.

    Raises:
        KarmafunnelError: for a log, label, limit, window, device, measure or workers that will not
            do.
    """
    require(log)
    log.check_label(recipe.label)
    limit, window = options.limit, options.window
    if limit is not None and limit < 1:
        raise KarmafunnelError("table", what="limit", needs="at least 1 request", found=limit)
    if not len(log.requests_in(window)):
        who = f"log {log.name}"
        raise KarmafunnelError("table", what=who, needs=f"requests in {window}", found="none")
    if options.device != "cpu":
        check_device(options.device)
    whole, by_target = split(recipe.measures)
    parse_all([*whole, *by_target])
    if options.workers is not None:
        check_workers(options.workers, recipe, log, options.folder)


def finish(
    cell: Cell,
    variant: Variant,
    own: Collection[str],
    log: Log,
    window: str,
    shared: dict[Any, Any],
) -> None:
    """Examine the embedding of a replayed cell and write its similarities and facts.

    Args:
        own: names of the embedders that the row itself sets.
        shared: results that rows of one seed have in common, filled here.
    """
    embedding = subject(variant.fitted, own)
    run = Run.open(variant.out)
    facts, similarity, maps = examine(embedding, variant.fitted, log, run, window, shared)
    with atomic_folder(cell.folder / "similarity", sealed=True) as temporary:
        write_parquet(temporary / "similarity.parquet", similarity)
        if maps is not None:
            whole = np.ascontiguousarray(maps)  # of a slice safetensors writes other numbers
            save_file({"maps": whole}, temporary / "attention.safetensors")
    remove(cell.folder / "failed.json")
    identity = {"key": cell.key, "row": cell.row, "seed": cell.seed}
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    write_json(cell.folder / "facts.json", {**identity, **facts, "date": date})
