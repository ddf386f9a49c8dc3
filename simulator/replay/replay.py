"""Replay: logged requests through a fitted funnel, chunk by chunk, into a Run."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

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
from .shards import drop_torn, merge, partial_folder, tidy, what_stays
from .tables import TABLES, RunWriter


def replay(
    recipe: Recipe,
    log: Log,
    out: Path | str,
    options: RunOptions = DEFAULTS,
    fitted: FittedFunnel | None = None,
) -> Path:
    """Fit the recipe's funnel (or take `fitted`, made by `prepare`) and replay one window of the
    log; returns the Run folder.

    Raises KarmafunnelError when `out` is something else than a Run or (without `force`) another
    Run, or when the window holds no request; see `replay_many` for `workers`.
    """
    out = Path(out)
    with claim_run(out, recipe, log, options):
        requests = requests_of(log, options.window, options.limit)
        if options.workers is not None:
            check_workers(options.workers, recipe, log, options.folder)
        start = time.perf_counter()
        fitted = fitted or prepare(recipe, log, options)
        if options.console:
            told = f"fitted in {time.perf_counter() - start:.1f} s; replaying {len(requests)} requests of {options.window}"
            options.console.print(told)
        for error in replay_many([Variant(recipe, fitted, out)], log, options).values():
            raise error
    return out


def code_of_run(fitted: FittedFunnel) -> str:
    """Digest of the code that makes a Run of what was fitted: the replay's, and that of all that
    runs in it.
    """
    embeddings = fitted.context.embeddings
    values = (getattr(embedding, "value", None) for embedding in embeddings.values())
    running = {type(ready).__module__ for ready in (*fitted.stages, *embeddings.values())}
    return code_of(*fitted.funnel.stages, *values, by=(__name__, *filter(ours, running)))


def claim_run(
    out: Path, recipe: Recipe, log: Log, options: RunOptions, kind: Kind = RUN
) -> AbstractContextManager[Path]:
    """Claim the folder of a Run; raises KarmafunnelError where (without `force`) another Run stands
    there, telling what differs.
    """
    wants = {
        "log.name": log.name, "log.checksum": log.checksum, "funnel": repr(recipe.funnel), "label": recipe.label, "seed": options.seed,
        "embedders": {name: repr(value) for name, value in recipe.used_embedders.items()}, "window": options.window, "limit": options.limit,
    }  # fmt: skip
    return claim(
        out, "replay", kind, wants=wants, inputs=[log.path, recipe.path], force=options.force
    )


def replay_many(
    variants: Sequence[Variant], log: Log, options: RunOptions = DEFAULTS
) -> dict[Path, Exception]:
    """Replay several fitted funnels over the same requests, chunk by chunk; returns what went
    wrong, by `out`.

    A stage runs once for all variants that begin alike up to it, and the Runs are the same bytes as
    those of separate replays. A variant that fails stops there and leaves its finished shards; the
    others go on.

    `workers`: shards are made by other processes, which load what was fitted from the cache; again
    the same bytes. Raises KarmafunnelError where the log, the recipe or the cache is not on a disk
    that they can read.
    """
    with ExitStack() as stack:
        for variant in variants:
            stack.enter_context(claim(variant.out, "replay", RUN, force=True))
        return _replay_many(variants, log, options, stack)


def _replay_many(
    variants: Sequence[Variant], log: Log, options: RunOptions, stack: ExitStack
) -> dict[Path, Exception]:
    workers, chunk, console = options.workers, options.chunk, options.console
    requests = requests_of(log, options.window, options.limit)
    numbers = range(-(-len(requests) // chunk))
    described = {
        v.out: describe_run(v.recipe, v.fitted, log, options) | dict(v.says) for v in variants
    }
    # as workers name them
    partials = {
        v.out: partial_folder(v.out, described[v.out], code_of_run(v.fitted), chunk).resolve()
        for v in variants
    }
    names = [f"{i:06d}" for i in numbers]
    for folder in partials.values():
        stack.callback(tidy, folder)
        drop_torn(folder)
    left = [
        i for i in numbers if not all((folder / names[i]).is_dir() for folder in partials.values())
    ]
    failed: dict[Path, Exception] = {}
    ledgers: dict[Path, RunWriter] = {}
    for variant in variants:
        if workers is not None:
            check_workers(workers, variant.recipe, log, options.folder)
        try:
            ledgers[partials[variant.out]] = RunWriter(variant.fitted, options.window)
        # such as an embedder that knows the window: no fault of the others
        except Exception as error:
            failed[partials[variant.out]] = error
            remove(partials[variant.out])
    able = [v for v in variants if partials[v.out] in ledgers]
    if workers is None:
        made: Generator[tuple[int, dict[Path, Exception]], None, None] = (
            (i, make_shard(ledgers, requests, chunk, i, failed)) for i in left
        )
    else:
        job = job_of(able, list(ledgers), log, options) if able else None
        made = (
            by_workers(job, left, workers, int(options.device.startswith("cuda")))
            if job
            else (piece for piece in list[Any]())
        )
    bar = progress_bar(console) if console else None
    with bar or nullcontext(), closing(made):
        task = (
            bar.add_task(
                "replay", total=len(numbers) * chunk, completed=(len(numbers) - len(left)) * chunk
            )
            if bar
            else None
        )
        for _, errors in made:
            failed |= errors
            if bar and task is not None:
                bar.advance(task, chunk)
    for variant in variants:
        partial = partials[variant.out]
        if partial in failed:
            failed[partial] = what_stays(failed[partial], partial, len(names))
            continue
        try:
            with atomic_folder(variant.out, sealed=True) as temporary:
                for name in TABLES:
                    merge(
                        [partial / number / f"{name}.parquet" for number in names],
                        temporary / f"{name}.parquet",
                    )
                write_json(temporary / "run.json", described[variant.out])
        except KarmafunnelError as error:
            raise what_stays(error, partial, len(names)) from error.__cause__
        remove(partial)
    return {
        variant.out: failed[partials[variant.out]]
        for variant in variants
        if partials[variant.out] in failed
    }
