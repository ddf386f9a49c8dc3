"""Shards of Runs, made in this process or by workers."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import KarmafunnelError, line_of
from ...log import Log
from ...stages.kept import Kept
from ...stages.rows import Rows
from ...stages.stage import embedder_folder, stage_folder
from .options import RunOptions
from .prepare import Variant, prepare, requests_of
from .recipe import Recipe, run_recipe
from .shards import shard_path, write_shard
from .tables import RunWriter
from .tree import run_tree, tree_of
from .workers import WorkerDied, Workers, spread


def make_shard(
    writers: Mapping[Path, RunWriter],
    requests: np.ndarray,
    chunk: int,
    number: int,
    failed: Collection[Path] = (),
) -> dict[Path, Exception]:
    """Write one shard of every Run that lacks it.

    Args:
        writers: by the folder of the Run's shards.
        requests: of the whole replay, `chunk` of them a shard.
        failed: folders to leave out.

    Returns:
        The errors, by folder.
    """
    mine = requests[number * chunk : (number + 1) * chunk]
    errors: dict[Path, Exception] = {}
    by_label: dict[str, dict[Path, RunWriter]] = {}
    for folder, writer in writers.items():
        if folder not in failed and not shard_path(folder, number).is_dir():
            by_label.setdefault(writer.context.label, {})[folder] = writer
    for wanted in by_label.values():
        first = next(iter(wanted.values()))
        tracked = first.rows_to_score(mine)
        tree = tree_of({folder: writer.fitted for folder, writer in wanted.items()})
        for folder, steps in run_tree(tree, Rows.start(first.context, mine, tracked)):
            if isinstance(steps, Exception):
                errors[folder] = steps
                continue
            try:
                tables = wanted[folder].of_chunk(number, mine, tracked, steps)
                write_shard(shard_path(folder, number), tables)
            except Exception as error:  # one variant must not end the others
                errors[folder] = error
    return errors


def by_workers(
    job: Job, left: Sequence[int], workers: Workers, gpus: int
) -> Generator[tuple[int, dict[Path, Exception]], None, None]:
    """Have workers make the shards of a job.

    Where workers die again and again, the variants are replayed one by one, so that only the one
    that causes it fails.

    Yields:
        The number of each shard and the errors, by folder.
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
            yield rest[0], {Path(job.rows[0].folder): error}
            return
        lost: dict[Path, Exception] = {}
        for row in job.rows:
            for _, errors in by_workers(replace(job, rows=(row,)), rest, workers, gpus):
                lost |= errors
        for number in rest:
            yield number, lost


class JobRow(NamedTuple):
    """One variant of a job: a row of the recipe (None: the recipe itself), the keys of its funnel,
    and the folder of its shards.
    """

    name: str | None
    keys: tuple[str, ...]
    folder: str


@dataclass(frozen=True)
class Job:
    """What a worker has to know: it opens the log, loads what was fitted from the cache, and writes
    shards into the folders of its parent.
    """

    path: str
    text: str
    rows: tuple[JobRow, ...]
    log: str
    checksum: str
    cache: str
    fitted: tuple[str, ...]  # folders of the cache that the parent fitted
    options: RunOptions  # without cache, workers and console


def check_workers(workers: Workers, recipe: Recipe, log: Log, cache: Path | None) -> None:
    """Raise KarmafunnelError where workers could not read something (a log or a recipe in memory,
    no cache), or where their cluster does not answer.
    """
    needed = {"a log on disk": log.path, "a cache folder": cache, "a recipe file": recipe.path}
    for what, path in needed.items():
        if path is None:
            raise KarmafunnelError("replay: workers", needs=what, found="none")
    workers.check()


def job_of(
    variants: Sequence[Variant], folders: Sequence[Path], log: Log, options: RunOptions
) -> Job:
    """The job of replaying the variants into `folders` of shards."""
    assert log.path and options.folder
    rows, fitted = [], set[str]()
    for variant, folder in zip(variants, folders, strict=True):
        recipe, funnel = variant.recipe, variant.fitted
        rows.append(JobRow(recipe.row_name, funnel.keys, str(folder.resolve())))
        for ready, key in zip(funnel.stages, funnel.keys, strict=True):
            fitted.add(stage_folder(ready.stage, key))
        for value in recipe.used_embedders.values():
            fitted.add(embedder_folder(value, funnel.context))
    first = variants[0].recipe
    return Job(
        str(first.path),
        first.text,
        tuple(rows),
        str(log.path.resolve()),
        log.checksum,
        str(options.folder.resolve()),
        tuple(sorted(fitted)),
        replace(options, cache=None, workers=None, console=None),
    )


@lru_cache(maxsize=1)
def opened(job: Job) -> tuple[np.ndarray, dict[Path, RunWriter]]:
    """The requests and the writers of a job, loaded once a process.

    Raises:
        KarmafunnelError: naming a folder that the worker cannot see, and for another log, other
            code or other libraries than those of the parent.
    """
    who = f"worker on {platform.node()}"
    folders = [job.log, job.cache, *(row.folder for row in job.rows)]
    folders += [f"{job.cache}/{name}" for name in job.fitted]
    for folder in folders:
        if not Path(folder).is_dir():
            hint = "all workers need to share the disk of their parent"
            raise KarmafunnelError(who, needs=f"the folder {folder}", found="none", hint=hint)
    log = Log.open(job.log)
    if log.checksum != job.checksum:
        needs = f"the log {job.checksum} in {job.log}"
        raise KarmafunnelError(who, needs=needs, found=log.checksum)
    recipe = run_recipe(Path(job.path), job.text, log)
    writers: dict[Path, RunWriter] = {}
    options = replace(job.options, cache=Kept(Path(job.cache)))
    for row in job.rows:
        mine = recipe if row.name is None else recipe.row(row.name)
        fitted = prepare(mine, log, options)
        if fitted.keys != row.keys:
            found = f"others: {mine.funnel!r} has another key"
            needs = "the code, libraries and recipe of its parent"
            raise KarmafunnelError(who, needs=needs, found=found)
        writers[Path(row.folder)] = RunWriter(fitted, options.window)
    return requests_of(log, options.window, options.limit), writers


def work(job: Job, number: int) -> dict[Path, Exception]:
    """Make one shard of every Run of a job, in a worker.

    Returns:
        The errors, by folder; each is one line with its traceback as a note, because not every
        exception can be sent to another process.
    """
    requests, writers = opened(job)
    errors: dict[Path, Exception] = {}
    for folder, error in make_shard(writers, requests, job.options.chunk, number).items():
        errors[folder] = KarmafunnelError(line_of(error))
        errors[folder].add_note("".join(traceback.format_exception(error)))
    return errors
