"""Pieces of a Run, made in this process or in others."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...errors import KarmafunnelError, line_of
from ...log import Log
from ...stages.kept import Kept
from ...stages.rows import Rows
from ...stages.stage import embedder_folder
from .options import RunOptions
from .prepare import Variant, prepare, requests_of
from .recipe import Recipe, run_recipe
from .shards import write_shard
from .tables import RunWriter
from .tree import run_tree, tree_of
from .workers import WorkerDied, Workers, spread


def make_shard(
    ledgers: Mapping[Path, RunWriter],
    requests: np.ndarray,
    chunk: int,
    number: int,
    failed: Collection[Path] = (),
) -> dict[Path, Exception]:
    """Write one shard of every Run that lacks it and has not `failed`; returns what went wrong, by
    folder.
    """
    mine = requests[number * chunk : (number + 1) * chunk]
    errors: dict[Path, Exception] = {}
    by_label: dict[str, dict[Path, RunWriter]] = {}
    for folder, ledger in ledgers.items():
        if folder not in failed and not (folder / f"{number:06d}").is_dir():
            by_label.setdefault(ledger.context.label, {})[folder] = ledger
    for wanted in by_label.values():
        first = next(iter(wanted.values()))
        tracked = first.rows_to_score(mine)
        tree = tree_of({folder: ledger.fitted for folder, ledger in wanted.items()})
        for folder, steps in run_tree(tree, Rows.start(first.context, mine, tracked)):
            if isinstance(steps, Exception):
                errors[folder] = steps
                continue
            try:
                tables = wanted[folder].of_chunk(number, mine, tracked, steps)
                write_shard(folder / f"{number:06d}", tables)
            except Exception as error:  # one variant must not sink the others
                errors[folder] = error
    return errors


def by_workers(
    job: Job, left: Sequence[int], workers: Workers, gpus: int
) -> Generator[tuple[int, dict[Path, Exception]], None, None]:
    """The shards of a job; where a variant kills its processes again and again, of each variant
    alone, to find out which.
    """
    done = set[int]()
    try:
        with closing(spread(work, job, left, workers, gpus)) as pieces:
            for number, errors in pieces:
                done.add(number)
                yield number, errors
    except WorkerDied as error:
        rest = [number for number in left if number not in done]
        if len(job.rows) == 1:
            yield rest[0], {Path(job.rows[0][2]): error}
            return
        lost: dict[Path, Exception] = {}
        for row in job.rows:
            for _, errors in by_workers(replace(job, rows=(row,)), rest, workers, gpus):
                lost |= errors
        yield from ((number, lost) for number in rest)


@dataclass(frozen=True)
class Job:
    """What a worker has to know: it opens the log, loads what was fitted from the cache, and writes
    shards beside its parent's.
    """

    path: str
    text: str
    # row of the recipe, keys of its funnel, folder of its shards
    rows: tuple[tuple[str | None, tuple[str, ...], str], ...]
    log: str
    checksum: str
    cache: str
    fitted: tuple[str, ...]  # folders that the parent fitted
    options: RunOptions  # without what stays with the parent


def check_workers(workers: Workers, recipe: Recipe, log: Log, cache: Path | None) -> None:
    """Raises KarmafunnelError for what workers could not read (a log or a recipe in memory, no
    cache) and a cluster that is not there.
    """
    for found, what in (
        (log.path, "a log on disk"),
        (cache, "a cache folder"),
        (recipe.path, "a recipe file"),
    ):
        if found is None:
            raise KarmafunnelError(f"replay: workers need {what}, found none")
    workers.check()


def job_of(
    variants: Sequence[Variant], folders: Sequence[Path], log: Log, options: RunOptions
) -> Job:
    assert log.path and options.folder
    rows, fitted = [], set()
    for variant, folder in zip(variants, folders, strict=True):
        recipe, context = variant.recipe, variant.fitted.context
        rows.append((recipe.row_name, variant.fitted.keys, str(folder.resolve())))
        fitted |= {
            f"{s.stage.name}-{key}"
            for s, key in zip(variant.fitted.stages, variant.fitted.keys, strict=True)
        }
        fitted |= {embedder_folder(value, context) for value in recipe.used_embedders.values()}
    first, cache = variants[0].recipe, str(options.folder.resolve())
    mine = replace(options, cache=None, workers=None, console=None)
    return Job(
        str(first.path),
        first.text,
        tuple(rows),
        str(log.path.resolve()),
        log.checksum,
        cache,
        tuple(sorted(fitted)),
        mine,
    )


@lru_cache(maxsize=1)
def opened(job: Job) -> tuple[np.ndarray, dict[Path, RunWriter]]:
    """What every shard of a job needs, loaded once a process; raises KarmafunnelError naming the
    path that a worker cannot see.
    """
    here = f"worker on {platform.node()}: "
    for path in (
        job.log,
        job.cache,
        *(folder for _, _, folder in job.rows),
        *(f"{job.cache}/{name}" for name in job.fitted),
    ):
        if not Path(path).is_dir():
            raise KarmafunnelError(
                f"{here}needs the folder {path}, found none; all workers need to share the disk of their parent"
            )
    log = Log.open(job.log)
    if log.checksum != job.checksum:
        raise KarmafunnelError(
            f"{here}needs the log {job.checksum} in {job.log}, found {log.checksum}"
        )
    recipe = run_recipe(Path(job.path), job.text, log)
    ledgers: dict[Path, RunWriter] = {}
    options = replace(job.options, cache=Kept(Path(job.cache)))
    for name, keys, folder in job.rows:
        row = recipe if name is None else recipe.row(name)
        fitted = prepare(row, log, options)
        if fitted.keys != keys:
            raise KarmafunnelError(
                f"{here}needs the code, libraries and recipe of its parent, found others: {row.funnel!r} has another key"
            )
        ledgers[Path(folder)] = RunWriter(fitted, options.window)
    return requests_of(log, options.window, options.limit), ledgers


def work(job: Job, number: int) -> dict[Path, Exception]:
    """One shard of every Run of a job. What goes wrong comes back as one line with its traceback as
    a note: it has to travel.
    """
    requests, ledgers = opened(job)
    told: dict[Path, Exception] = {}
    for folder, error in make_shard(ledgers, requests, job.options.chunk, number).items():
        told[folder] = KarmafunnelError(line_of(error))
        told[folder].add_note("".join(traceback.format_exception(error)))
    return told
