"""Replay: run logged requests through a fitted funnel, chunk by chunk, and write a Run."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import KarmafunnelError
from ...files import RUN, Kind, atomic_folder, claim, remove, write_json
from ...keys import code_of, ours
from ...log import Log
from ...stages.stage import FittedFunnel
from ...terminal import progress_bar
from .jobs import by_workers, check_workers, job_of, make_shard
from .options import DEFAULTS, RunOptions
from .prepare import Variant, prepare, requests_of
from .provenance import describe_run
from .recipe import Recipe
from .shards import drop_torn, merge, partial_folder, shard_path, tidy, what_stays
from .tables import TABLES, RunWriter


def replay(
    recipe: Recipe,
    log: Log,
    out: Path | str,
    options: RunOptions = DEFAULTS,
    fitted: FittedFunnel | None = None,
) -> Path:
    """Fit the recipe's funnel (or take `fitted`, made by `prepare`) and replay a window of the log.

    Returns:
        The folder of the Run, which is `out`.

    Raises:
        KarmafunnelError: when `out` is something else than a Run or (without `force`) another Run,
            and when the window holds no request; see `replay_many` for `workers`.
    """
    out = Path(out)
    with claim_run(out, recipe, log, options):
        requests = requests_of(log, options.window, options.limit)
        if options.workers is not None:
            check_workers(options.workers, recipe, log, options.folder)
        start = time.perf_counter()
        fitted = fitted or prepare(recipe, log, options)
        if options.console:
            what = f"{len(requests)} requests of {options.window}"
            seconds = time.perf_counter() - start
            options.console.print(f"ready in {seconds:.1f} s; replaying {what}")
        for error in replay_many([Variant(recipe, fitted, out)], log, options).values():
            raise error
    return out


def code_of_run(fitted: FittedFunnel) -> str:
    """Digest of the code that makes a Run: that of the replay and of all stages and embeddings."""
    embeddings = fitted.context.embeddings
    values = (getattr(embedding, "value", None) for embedding in embeddings.values())
    running = {type(ready).__module__ for ready in (*fitted.stages, *embeddings.values())}
    return code_of(fitted.funnel, *values, by=(__name__, *filter(ours, running)))


def claim_run(
    out: Path, recipe: Recipe, log: Log, options: RunOptions, kind: Kind = RUN
) -> AbstractContextManager[Path]:
    """Claim the folder of a Run.

    Raises:
        KarmafunnelError: where (without `force`) another Run is there, with what differs.
    """
    wants = {
        "log.name": log.name,
        "log.checksum": log.checksum,
        "funnel": repr(recipe.funnel),
        "label": recipe.label,
        "seed": options.seed,
        "embedders": {name: repr(value) for name, value in recipe.used_embedders.items()},
        "window": options.window,
        "limit": options.limit,
    }
    inputs = [log.path, recipe.path]
    return claim(out, "replay", kind, wants=wants, inputs=inputs, force=options.force)


def replay_many(
    variants: Sequence[Variant], log: Log, options: RunOptions = DEFAULTS
) -> dict[Path, Exception]:
    """Replay several fitted funnels over the same requests, chunk by chunk.

    Stages that funnels have in common at the beginning run once; each Run has the same bytes as a
    replay of its own. A variant that fails stops there and keeps its finished shards; the others go
    on. With `workers`, other processes make the shards from what is in the cache, again with the
    same bytes.

    Returns:
        The errors, by `out` of the variant.

    Raises:
        KarmafunnelError: where workers cannot read the log, the recipe or the cache from a disk.
    """
    with ExitStack() as stack:
        for variant in variants:
            stack.enter_context(claim(variant.out, "replay", RUN, force=True))
        return _replay_many(variants, log, options, stack)


def _replay_many(
    variants: Sequence[Variant], log: Log, options: RunOptions, stack: ExitStack
) -> dict[Path, Exception]:
    requests = requests_of(log, options.window, options.limit)
    numbers = range(-(-len(requests) // options.chunk))
    described: dict[Path, dict[str, Any]] = {}
    partials: dict[Path, Path] = {}  # folders of shards, as workers name them
    for variant in variants:
        out = variant.out
        described[out] = describe_run(variant.recipe, variant.fitted, log, options)
        described[out] |= variant.says
        code = code_of_run(variant.fitted)
        partials[out] = partial_folder(out, described[out], code, options.chunk).resolve()
    for folder in partials.values():
        stack.callback(tidy, folder)
        drop_torn(folder)
    left = []
    for number in numbers:
        if not all(shard_path(folder, number).is_dir() for folder in partials.values()):
            left.append(number)
    failed: dict[Path, Exception] = {}  # by folder of shards, as `writers`
    writers: dict[Path, RunWriter] = {}
    able = []
    for variant in variants:
        partial = partials[variant.out]
        if options.workers is not None:
            check_workers(options.workers, variant.recipe, log, options.folder)
        try:
            writers[partial] = RunWriter(variant.fitted, options.window)
            able.append(variant)
        except Exception as error:  # such as an embedder that was fitted on the window
            failed[partial] = error
            remove(partial)
    made = _make_shards(able, writers, requests, left, failed, log, options)
    _wait(made, failed, len(numbers), len(left), options)
    errors = {}
    for variant in variants:
        partial = partials[variant.out]
        if partial in failed:
            errors[variant.out] = what_stays(failed[partial], partial, len(numbers))
            continue
        try:
            _join(partial, numbers, described[variant.out], variant.out)
        except KarmafunnelError as error:
            raise what_stays(error, partial, len(numbers)) from error.__cause__
        remove(partial)
    return errors


def _make_shards(
    variants: Sequence[Variant],
    writers: dict[Path, RunWriter],
    requests: np.ndarray,
    left: Sequence[int],
    failed: Collection[Path],
    log: Log,
    options: RunOptions,
) -> Generator[tuple[int, dict[Path, Exception]], None, None]:
    """Make the shards that are `left`, here or by workers.

    Yields:
        The number of each shard and the errors, by folder of shards.
    """
    if options.workers is None:
        for number in left:
            yield number, make_shard(writers, requests, options.chunk, number, failed)
    elif writers:
        job = job_of(variants, list(writers), log, options)
        gpus = int(options.device.startswith("cuda"))
        yield from by_workers(job, left, options.workers, gpus)


def _wait(
    made: Generator[tuple[int, dict[Path, Exception]], None, None],
    failed: dict[Path, Exception],
    total: int,
    left: int,
    options: RunOptions,
) -> None:
    """Take all shards as they are made, with a progress bar, and add their errors to `failed`."""
    chunk = options.chunk
    bar = progress_bar(options.console) if options.console else None
    with bar or nullcontext(), closing(made):
        if bar:
            done = (total - left) * chunk
            task = bar.add_task("replay", total=total * chunk, completed=done)
        for _, errors in made:
            failed |= errors
            if bar:
                bar.advance(task, chunk)


def _join(partial: Path, numbers: Iterable[int], description: dict[str, Any], out: Path) -> None:
    """Join the shards of a Run into its tables."""
    with atomic_folder(out, sealed=True) as temporary:
        for name in TABLES:
            shards = [shard_path(partial, number) / f"{name}.parquet" for number in numbers]
            merge(shards, temporary / f"{name}.parquet")
        write_json(temporary / "run.json", description)
