"""Replay: pass logged requests through a fitted funnel and write down what each stage kept and lost.

A pure function of (shard of requests, fitted funnel) -> shard of the Run; shards are merged by concatenation, so an
interrupted replay goes on where it was and ends in the same bytes (`timing.parquet` excepted).
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache as once_a_process
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ... import __version__
from ...bounds import check_bound
from ...checks import require
from ...errors import KarmafunnelError, NotWrittenError, line_of
from ...files import (
    NOTHING_LEFT,
    RUN,
    Kind,
    atomic_folder,
    claim,
    fault,
    not_written,
    remove,
    say,
    sweep,
    write_json,
    write_parquet,
)
from ...keys import code_of, content_key, ours
from ...log import Log, rows_of
from ...stages.base import (
    ITEM,
    RANK,
    REQUEST,
    SCORE,
    FittedFunnel,
    Retriever,
    Scene,
    Step,
    check_windows,
    embedder_folder,
    fit_embedders,
    silent,
    training_keys,
)
from ...stages.learn import logged, spaced
from ...terminal import Console, progress_bar
from .recipe import Recipe, run_recipe
from .workers import Died, Workers, spread

TABLES = ("slates", "requests", "ledger", "scored", "timing")
CHUNK = 256  # requests a shard


def cache_root() -> Path:
    """Where fitted things are kept: $KARMAFUNNEL_CACHE, else ~/.cache/karmafunnel."""
    return Path(os.environ.get("KARMAFUNNEL_CACHE") or Path.home() / ".cache" / "karmafunnel")


def prepare(
    recipe: Recipe, log: Log, seed: int = 0, device: str = "cpu", cache: Path | None = None, console: Console | None = None,
    beside: FittedFunnel | None = None, later: Sequence[Recipe] = (),
) -> FittedFunnel:  # fmt: skip
    """Fit the recipe's embedders (on W1) and stages (on W2), each kept by content in `cache`; steps are told to `console`.

    `beside`: another funnel for the same log, label and seed; what both have in common is fitted once. What stages made of the
    requests to learn from is kept for the recipes that come `later`, as far as those begin alike.
    """
    require(log)
    scene = Scene(log, {}, recipe.label, seed, device) if beside is None else beside.scene.beside({})
    if device != "cpu":
        check_device(device)
    scene.outside = recipe.outside
    memory = scene.memory
    memory.on, memory.wanted = True, None
    with console.status("fitting") if console else nullcontext() as status:
        if console and status:
            scene.progress = lambda message: console.print(message, style="dim", soft_wrap=True)
            scene.detail = status.update
        try:
            scene.embeddings = fit_embedders(recipe.read, scene, cache)
            return recipe.funnel.fit(scene, cache)
        finally:
            scene.progress = scene.detail = silent
            memory.forget({key for other in later for key in training_keys(other.funnel, other.embedders, scene)})
            memory.on = False


def check_device(device: str) -> None:
    """Raises KarmafunnelError for a device that torch does not know or have."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise KarmafunnelError(
            f"device: needs one that torch has here, found {device!r}: {str(error).splitlines()[0]}"
        ) from error


@dataclass(frozen=True, eq=False)
class Variant:
    """A recipe, its fitted funnel, the Run folder that it goes into, and what its run.json says beside."""

    recipe: Recipe
    fitted: FittedFunnel
    out: Path
    says: Mapping[str, Any] = field(default_factory=dict)


def replay(
    recipe: Recipe, log: Log, out: Path | str, *, seed: int = 0, device: str = "cpu", limit: int | None = None,
    cache: Path | None = None, window: str = "W3", chunk: int = CHUNK, console: Console | None = None, command: str | None = None,
    fitted: FittedFunnel | None = None, workers: Workers | None = None, force: bool = False,
) -> Path:  # fmt: skip
    """Fit the recipe's funnel (or take `fitted`, made by `prepare`) and replay one window of the log; returns the Run folder.

    `limit` takes so many requests, evenly spaced in time. Progress goes to `console`. Raises KarmafunnelError when `out` is
    something else than a Run or (without `force`) another Run, or when the window holds no request; see `replay_many` for `workers`.
    """
    out = Path(out)
    with claim_run(out, recipe, log, seed, limit, window, force=force):
        requests = requests_of(log, window, limit)
        if workers is not None:
            check_workers(workers, recipe, log, cache)
        start = time.perf_counter()
        fitted = fitted or prepare(recipe, log, seed, device, cache, console)
        if console:
            console.print(f"fitted in {time.perf_counter() - start:.1f} s; replaying {len(requests)} requests of {window}")
        variant = Variant(recipe, fitted, out)
        for error in replay_many(
            [variant], log, seed=seed, device=device, limit=limit, cache=cache, window=window, chunk=chunk, console=console,
            command=command, workers=workers,
        ).values():  # fmt: skip
            raise error
    return out


def claim_run(
    out: Path, recipe: Recipe, log: Log, seed: int, limit: int | None, window: str, kind: Kind = RUN, force: bool = False
) -> AbstractContextManager[Path]:
    """Claim the folder of a Run; raises KarmafunnelError where (without `force`) another Run stands there, telling what differs."""
    wants = {
        "log.name": log.name, "log.checksum": log.checksum, "funnel": repr(recipe.funnel), "label": recipe.label, "seed": seed,
        "embedders": {name: repr(value) for name, value in recipe.read.items()}, "window": window, "limit": limit,
    }  # fmt: skip
    return claim(out, "replay", kind, wants=wants, inputs=[log.path, recipe.path], force=force)


def requests_of(log: Log, window: str, limit: int | None) -> np.ndarray:
    """The requests to replay, `limit` of them evenly spaced in time.

    Raises KarmafunnelError where there are none, and for a log that fails a check whose failure would change a figure.
    """
    require(log)
    requests = log.requests_in(window)
    if len(requests) == 0:
        raise KarmafunnelError(f"replay: log {log.name} needs requests of {log.meta['scenario']} in {window}, found none")
    if limit is not None:
        check_bound("replay", "limit", limit=limit)
    return spaced(requests, limit or len(requests))


def replay_many(
    variants: Sequence[Variant], log: Log, *, seed: int = 0, device: str = "cpu", limit: int | None = None, cache: Path | None = None,
    window: str = "W3", chunk: int = CHUNK, console: Console | None = None, command: str | None = None, workers: Workers | None = None,
) -> dict[Path, Exception]:  # fmt: skip
    """Replay several fitted funnels over the same requests, chunk by chunk; returns what went wrong, by `out`.

    A stage runs once for all variants that begin alike up to it (`prepare` them `beside` each other), and the Runs are the same
    bytes as those of separate replays. A variant that fails stops there and leaves its finished shards; the others go on.

    `workers`: shards are made by other processes, which load what was fitted from `cache`; again the same bytes. Raises
    KarmafunnelError where the log, the recipe or the cache is not on a disk that they can read.
    """
    with ExitStack() as stack:
        for variant in variants:
            stack.enter_context(claim(variant.out, "replay", RUN, force=True))
        return _replay_many(variants, log, seed, device, limit, cache, window, chunk, console, command, workers, stack)


def _replay_many(
    variants: Sequence[Variant], log: Log, seed: int, device: str, limit: int | None, cache: Path | None, window: str, chunk: int,
    console: Console | None, command: str | None, workers: Workers | None, stack: ExitStack,
) -> dict[Path, Exception]:  # fmt: skip
    requests = requests_of(log, window, limit)
    numbers = range(-(-len(requests) // chunk))
    described = {v.out: describe_run(v.recipe, v.fitted, log, seed, device, limit, window, command) | dict(v.says) for v in variants}
    partials = {v.out: partial_folder(v.out, described[v.out], code_of_run(v.fitted), chunk).resolve() for v in variants}  # as workers name them
    names = [f"{i:06d}" for i in numbers]
    for folder in partials.values():
        stack.callback(tidy, folder)
        drop_torn(folder)
    left = [i for i in numbers if not all((folder / names[i]).is_dir() for folder in partials.values())]
    failed: dict[Path, Exception] = {}
    ledgers: dict[Path, Ledgers] = {}
    for variant in variants:
        if workers is not None:
            check_workers(workers, variant.recipe, log, cache)
        try:
            ledgers[partials[variant.out]] = Ledgers(variant.fitted, window)
        except Exception as error:  # such as an embedder that knows the window: no fault of the others
            failed[partials[variant.out]] = error
            remove(partials[variant.out])
    able = [v for v in variants if partials[v.out] in ledgers]
    if workers is None:
        made: Generator[tuple[int, dict[Path, Exception]], None, None] = ((i, make_shard(ledgers, requests, chunk, i, failed)) for i in left)
    else:
        job = job_of(able, list(ledgers), log, seed, device, limit, cache, window, chunk) if able else None
        made = by_workers(job, left, workers, int(device.startswith("cuda"))) if job else (piece for piece in list[Any]())
    bar = progress_bar(console) if console else None
    with bar or nullcontext(), closing(made):
        task = bar.add_task("replay", total=len(numbers) * chunk, completed=(len(numbers) - len(left)) * chunk) if bar else None
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
                    merge([partial / number / f"{name}.parquet" for number in names], temporary / f"{name}.parquet")
                write_json(temporary / "run.json", described[variant.out])
        except KarmafunnelError as error:
            raise what_stays(error, partial, len(names)) from error.__cause__
        remove(partial)
    return {variant.out: failed[partials[variant.out]] for variant in variants if partials[variant.out] in failed}


def code_of_run(fitted: FittedFunnel) -> str:
    """Digest of the code that makes a Run of what was fitted: the replay's, and that of all that runs in it."""
    embeddings = fitted.scene.embeddings
    values = (getattr(embedding, "value", None) for embedding in embeddings.values())
    running = {type(ready).__module__ for ready in (*fitted.stages, *embeddings.values())}
    return code_of(*fitted.funnel.stages, *values, by=(__name__, *filter(ours, running)))


def partial_folder(out: Path, description: Mapping[str, Any], code: str, chunk: int) -> Path:
    """Where the shards of a Run wait for each other; those of another Run that was begun in its place go."""
    what = {name: value for name, value in description.items() if name not in ("command", "commit")}
    key = content_key(code, sorted(what.items()), chunk)
    out = Path(os.path.realpath(out))
    partial = out.with_name(f".{out.name}.{key}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    waits = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{16}}\.partial")
    for name in os.listdir(partial.parent):
        if waits.fullmatch(name) and name != partial.name:
            remove(partial.parent / name)
    return partial


def tidy(partial: Path) -> None:
    """What is left of a replay at its end: whole shards or nothing."""
    sweep(partial)  # of workers that were killed while they wrote
    with suppress(OSError):  # shards are in it, or it is gone
        partial.rmdir()


def what_stays(error: Exception, partial: Path, shards: int) -> Exception:
    """An error of a full disk with what stays of the replay; another one as it is."""
    whole = sum(name.isdecimal() for name in os.listdir(partial)) if partial.is_dir() else 0
    if not whole or not not_written(error):
        return error
    line = line_of(error).replace(NOTHING_LEFT, "")
    return NotWrittenError(f"{line}; {whole} of {shards} pieces of the replay stay in {partial}, the same command goes on with them")


def drop_torn(partial: Path) -> None:
    """Remove the shards that are not as they were written, such as after a crash of the machine: they are made again."""
    sweep(partial)
    for name in sorted(os.listdir(partial)):
        if (wrong := fault(partial / name)) is not None:
            say(f"{wrong}; this piece of the replay is made again")
            remove(partial / name)


def make_shard(
    ledgers: Mapping[Path, Ledgers], requests: np.ndarray, chunk: int, number: int, failed: Collection[Path] = ()
) -> dict[Path, Exception]:
    """Write one shard of every Run that lacks it and has not `failed`; returns what went wrong, by folder."""
    begun = Counter(key for ledger in ledgers.values() for key in ledger.fitted.keys)
    place = {key: i for i, key in enumerate(begun)}
    alike = sorted(ledgers.items(), key=lambda kept: [place[key] for key in kept[1].fitted.keys])  # after each other
    errors: dict[Path, Exception] = {}
    memories = {id(ledger.scene.memory): ledger.scene.memory for ledger in ledgers.values()}.values()
    for memory in memories:
        memory.on, memory.wanted = True, {key for key, n in begun.items() if n > 1}
    for folder, ledger in alike:
        shard = folder / f"{number:06d}"
        begun.subtract(ledger.fitted.keys)
        if folder in failed or shard.is_dir():
            continue
        try:
            tables = ledger.shard(requests[number * chunk : (number + 1) * chunk], number)
            with atomic_folder(shard, durable=False, sealed=True) as temporary:
                for name, frame in tables.items():
                    write_parquet(temporary / f"{name}.parquet", frame, compression="lz4", statistics=False)
        except Exception as error:  # one variant must not sink the others
            errors[folder] = error
        ledger.scene.memory.forget({key for key, n in begun.items() if n})  # what no other funnel begins with
    for memory in memories:
        memory.forget()
        memory.on = False
    return errors


def by_workers(job: Job, left: Sequence[int], workers: Workers, gpus: int) -> Generator[tuple[int, dict[Path, Exception]], None, None]:
    """The shards of a job; where a variant kills its processes again and again, of each variant alone, to find out which."""
    done = set[int]()
    try:
        with closing(spread(work, job, left, workers, gpus)) as pieces:
            for number, errors in pieces:
                done.add(number)
                yield number, errors
    except Died as error:
        rest = [number for number in left if number not in done]
        if len(job.rows) == 1:
            yield rest[0], {Path(job.rows[0][2]): error}
            return
        lost: dict[Path, Exception] = {}
        for row in job.rows:
            for _, errors in by_workers(replace(job, rows=(row,)), rest, workers, gpus):
                lost |= errors
        yield from ((number, lost) for number in rest)


# -- by other processes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a worker has to know: it opens the log, loads what was fitted from the cache, and writes shards beside its parent's."""

    path: str
    text: str
    rows: tuple[tuple[str | None, tuple[str, ...], str], ...]  # row of the recipe, keys of its funnel, folder of its shards
    log: str
    checksum: str
    cache: str
    fitted: tuple[str, ...]  # folders that the parent fitted
    seed: int
    device: str
    limit: int | None
    window: str
    chunk: int


def check_workers(workers: Workers, recipe: Recipe, log: Log, cache: Path | None) -> None:
    """Raises KarmafunnelError for what workers could not read (a log or a recipe in memory, no cache) and a cluster that is not there."""
    for found, what in ((log.path, "a log on disk"), (cache, "a cache folder"), (recipe.path, "a recipe file")):
        if found is None:
            raise KarmafunnelError(f"replay: workers need {what}, found none")
    workers.check()


def job_of(
    variants: Sequence[Variant], folders: Sequence[Path], log: Log, seed: int, device: str, limit: int | None, cache: Path | None,
    window: str, chunk: int,
) -> Job:  # fmt: skip
    assert log.path and cache
    rows, fitted = [], set()
    for variant, folder in zip(variants, folders, strict=True):
        recipe, scene = variant.recipe, variant.fitted.scene
        rows.append((recipe.of, variant.fitted.keys, str(folder.resolve())))
        fitted |= {f"{s.stage.name}-{key}" for s, key in zip(variant.fitted.stages, variant.fitted.keys, strict=True)}
        fitted |= {embedder_folder(value, scene) for value in recipe.read.values()}
    first = variants[0].recipe
    return Job(
        str(first.path), first.text, tuple(rows), str(log.path.resolve()), log.checksum, str(cache.resolve()), tuple(sorted(fitted)), seed,
        device, limit, window, chunk,
    )  # fmt: skip


@lru_cache(maxsize=1)
def opened(job: Job) -> tuple[np.ndarray, dict[Path, Ledgers]]:
    """What every shard of a job needs, loaded once a process; raises KarmafunnelError naming the path that a worker cannot see."""
    here = f"worker on {platform.node()}: "
    for path in (job.log, job.cache, *(folder for _, _, folder in job.rows), *(f"{job.cache}/{name}" for name in job.fitted)):
        if not Path(path).is_dir():
            raise KarmafunnelError(f"{here}needs the folder {path}, found none; all workers need to share the disk of their parent")
    log = Log.open(job.log)
    if log.checksum != job.checksum:
        raise KarmafunnelError(f"{here}needs the log {job.checksum} in {job.log}, found {log.checksum}")
    recipe = run_recipe(Path(job.path), job.text, log)
    ledgers: dict[Path, Ledgers] = {}
    beside: FittedFunnel | None = None
    for name, keys, folder in job.rows:
        row = recipe if name is None else recipe.row(name)
        beside = prepare(row, log, job.seed, job.device, Path(job.cache), beside=beside)
        if beside.keys != keys:
            raise KarmafunnelError(f"{here}needs the code, libraries and recipe of its parent, found others: {row.funnel!r} has another key")
        ledgers[Path(folder)] = Ledgers(beside, job.window)
    return requests_of(log, job.window, job.limit), ledgers


def work(job: Job, number: int) -> dict[Path, Exception]:
    """One shard of every Run of a job. What goes wrong comes back as one line with its traceback as a note: it has to travel."""
    requests, ledgers = opened(job)
    told: dict[Path, Exception] = {}
    for folder, error in make_shard(ledgers, requests, job.chunk, number).items():
        told[folder] = KarmafunnelError(line_of(error))
        told[folder].add_note("".join(traceback.format_exception(error)))
    return told


# -- the folder of a Run ------------------------------------------------------------------------------------------------


def merge(shards: list[Path], out: Path) -> None:
    """Concatenate Parquet shards, one row group each: memory does not grow with their number."""
    writer: pq.ParquetWriter | None = None
    try:
        for shard in shards:
            try:
                table = pq.ParquetFile(shard).read()  # without the datasets of read_table, which take longer than a shard
            except (pa.ArrowException, OSError) as error:
                raise KarmafunnelError(f"{shard}: needed a piece of the replay, found: {error}; the same command makes it again") from error
            if writer is None:
                # Dictionaries for what repeats, none for scores; no statistics, which nobody asks of ids and ranks that lie in no order.
                words = [column.name for column in table.schema if not pa.types.is_primitive(column.type)]
                writer = pq.ParquetWriter(
                    out, table.schema, compression="zstd", compression_level=1, use_dictionary=words, write_statistics=False
                )
            writer.write_table(table.cast(writer.schema))
    finally:
        if writer:
            writer.close()


@once_a_process
def commit() -> str | None:
    """The commit of the code, where it is a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    answer = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, encoding="utf-8")
    return answer.stdout.strip() or None


@once_a_process
def versions() -> dict[str, str]:
    packages = ("numpy", "polars", "torch", "lightgbm", "faiss-cpu", "scikit-learn", "bm25s")
    return {"karmafunnel": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}


def describe_run(
    recipe: Recipe, fitted: FittedFunnel, log: Log, seed: int, device: str, limit: int | None, window: str, command: str | None
) -> dict[str, Any]:
    """`run.json`: everything needed to make the same Run again."""
    stages = []
    for ready in fitted.stages:
        stages.append(
            {"name": ready.stage.name, "kind": type(ready.stage).__name__, "k": ready.stage.k, "text": repr(ready.stage)}
        )
        if isinstance(ready, Retriever):
            stages[-1]["channels"] = list(ready.channels)
    return {
        "recipe": recipe.text, "recipe_name": recipe.name, "row": recipe.of, "funnel": repr(recipe.funnel),
        "embedders": {name: repr(value) for name, value in recipe.read.items()}, "label": recipe.label, "seed": seed,
        "commit": commit(), "versions": versions(),
        "log": {
            "name": log.name, "path": str(log.path.resolve()) if log.path else None, "checksum": log.checksum, "currency": log.meta["currency"],
            "has": log.meta["has"], "catalogue": log.meta["catalogue"], "items": log.n_items, "world": log.meta.get("world"),
        },
        "window": window, "stages": stages, "device": device, "limit": limit, "command": command or shlex.join(sys.argv),
    }  # fmt: skip


class Ledgers:
    """Turns what a funnel did to a chunk into the rows of the Run's tables."""

    def __init__(self, fitted: FittedFunnel, window: str):
        check_windows(fitted.funnel.stages, fitted.scene, [window], "score")
        self.fitted = fitted
        self.scene, self.log = fitted.scene, fitted.scene.log
        log, truth = self.log, self.scene.truth
        names = fitted.stages[0].channels  # type: ignore[attr-defined]
        self.channels = pl.Series(
            "channel", ["+".join(n for b, n in enumerate(names) if i >> b & 1) for i in range(1 << len(names))]
        )
        self.stage_names = pl.Enum([s.stage.name for s in fitted.stages])
        position = log.requests["window"].to_numpy()[truth[REQUEST].to_numpy()] if truth.height else np.empty(0, object)
        self.popularity = popularity_band(log.targets_of_w1(self.scene.label))
        earlier = truth.filter(pl.Series(position != window, dtype=pl.Boolean)).select(
            (pl.col("money") / pl.col("quantity")).alias("unit")
        )
        unit = earlier["unit"].drop_nulls().drop_nans().to_numpy()
        self.bands = np.quantile(unit, [1 / 3, 2 / 3]) if len(unit) else None

    def shard(self, requests: np.ndarray, number: int) -> dict[str, pl.DataFrame]:
        """Replay one chunk of requests."""
        forced = logged(self.scene, requests)
        steps = self.fitted.run(requests, forced, exact=True)
        first = steps[0].forced
        # What recall was handed is eligible in fact, such as an item of a list that was shown for the first time.
        eligible = (
            self.log.asof.is_eligible(first[REQUEST].to_numpy(), first[ITEM].to_numpy()) | first["wins"].is_not_null().to_numpy()
        )
        return {
            "slates": self._slates(steps),
            "requests": self._requests(requests, steps, forced, eligible),
            "ledger": self._ledger(steps, eligible),
            "scored": self._scored(steps, eligible),
            "timing": pl.DataFrame(
                [
                    [number, s.stage.name, len(requests), int(s.rows_in.sum()), int(s.rows_out.sum()), s.seconds, s.shared, s.spent]
                    for s in steps
                ],
                schema={
                    "chunk": pl.Int32,
                    "stage": pl.String,
                    "requests": pl.Int32,
                    "rows_in": pl.Int64,
                    "rows_out": pl.Int64,
                    "seconds": pl.Float64,
                    "shared": pl.Boolean,  # run for another funnel that begins alike; the seconds are those of that one run
                    "spent": pl.Float64,  # seconds that really passed here; `seconds`: as if the funnel ran alone
                },
                orient="row",
            ),
        }

    def _ids(self, frame: pl.DataFrame) -> list[pl.Series]:
        return [
            self.log.requests["request_id"].gather(frame[REQUEST]).alias("request_id"),
            self.log.items["item_id"].gather(frame[ITEM]).alias("item_id"),
        ]

    def _slates(self, steps: list[Step]) -> pl.DataFrame:
        parts = []
        for step in steps:
            slate = step.slate
            request_id, item_id = self._ids(slate)
            parts.append(
                pl.DataFrame(
                    [
                        request_id, pl.repeat(step.stage.name, slate.height, dtype=self.stage_names, eager=True).alias("stage"), item_id,
                        slate[RANK], slate[SCORE], self.channels.gather(slate["channel"]).alias("channel"), self._value(slate),
                    ]
                )
            )  # fmt: skip
        return pl.concat(parts)

    def _value(self, slate: pl.DataFrame) -> pl.Series:
        """p_click * p_buy * price as of the request, by the last stage so far that tells both; null without one, or without a price."""
        told = [c.removesuffix(".p_click") for c in slate.columns if c.endswith(".p_click")]
        told = [name for name in told if f"{name}.p_buy" in slate.columns]
        if not told:
            return pl.repeat(None, slate.height, dtype=pl.Float32, eager=True).alias("value")
        price = pl.Series(self.log.asof.price(slate[REQUEST].to_numpy(), slate[ITEM].to_numpy()))
        value = slate[f"{told[-1]}.p_click"] * slate[f"{told[-1]}.p_buy"] * price
        return value.fill_nan(None).cast(pl.Float32).alias("value")

    def _requests(self, requests: np.ndarray, steps: list[Step], forced: pl.DataFrame, eligible: np.ndarray) -> pl.DataFrame:
        log = self.log
        group = np.searchsorted(requests, forced[REQUEST].to_numpy())
        truth = forced["truth"].to_numpy()
        shown = rows_of(log.rows, requests).filter(pl.col("position").is_not_null())
        base = log.requests[requests].select(
            "request_id", "user_id", "ts", "window", (pl.col("query").fill_null("") != "").alias("has_query")
        )
        size = len(requests)
        columns = [
            pl.Series("n_truth", np.bincount(group[truth], minlength=size), pl.Int32),
            pl.Series("n_eligible", np.maximum(log.asof.known(requests), steps[0].rows_in), pl.Int32),
            pl.Series("n_truth_eligible", np.bincount(group[truth & eligible], minlength=size), pl.Int32),
            pl.Series("n_shown", np.bincount(np.searchsorted(requests, shown[REQUEST].to_numpy()), minlength=size), pl.Int32),
            pl.Series("new_user", log.asof.n_events(requests) == 0, pl.Boolean),
        ]
        for name, embedding in self.scene.embeddings.items():  # those that the funnel reads
            told = embedding.read(requests, quick=True)
            if told is not None:
                columns.append(pl.Series(f"{name}.reads", told, pl.String))
        for step in steps:
            columns.append(pl.Series(f"{step.stage.name}.n", step.rows_in, pl.Int32))
            columns.append(pl.Series(f"{step.stage.name}.out", step.rows_out, pl.Int32))
            if step.exact is not None:
                found = step.exact.join(
                    step.slate.select(REQUEST, ITEM, pl.lit(1.0).alias("hit")), on=[REQUEST, ITEM], how="left"
                )
                share = found.group_by(REQUEST).agg(pl.col("hit").fill_null(0).mean())
                joined = pl.DataFrame({REQUEST: requests}).join(share, on=REQUEST, how="left", maintain_order="left")
                columns.append(joined["hit"].cast(pl.Float32).alias(f"{step.stage.name}.index_recall"))
        return base.with_columns(columns)

    def _ledger(self, steps: list[Step], eligible: np.ndarray) -> pl.DataFrame:
        truth = steps[0].forced["truth"].to_numpy()
        rows = steps[0].forced.filter(pl.col("truth")).select(REQUEST, ITEM)
        request, item = rows[REQUEST].to_numpy(), rows[ITEM].to_numpy()
        money = rows.join(rows_of(self.scene.truth, np.unique(request)), on=[REQUEST, ITEM], how="left", maintain_order="left")
        unit = (money["money"] / money["quantity"]).to_numpy()
        band = None
        if self.bands is not None:
            band = np.array(["low", "mid", "high"], dtype=object)[np.searchsorted(self.bands, np.nan_to_num(unit))]
            band[np.isnan(unit)] = None
        columns = [
            *self._ids(rows), money["money"].cast(pl.Float64), money["quantity"].cast(pl.Int64), pl.Series("eligible", eligible[truth]),
            pl.Series("target", self.popularity[item].tolist(), pl.String), pl.Series("repeat", self.log.asof.own_count(request, item) > 0),
            pl.Series("price_band", band.tolist() if band is not None else [None] * len(item), pl.String),
        ]  # fmt: skip
        lost = np.full(len(item), "not eligible", dtype=object)
        lost[eligible[truth]] = None
        margin = np.full(len(item), np.nan)
        margin_score = np.full(len(item), np.nan, dtype=np.float32)
        for step in steps:
            forced, name = step.forced.filter(pl.col("truth")), step.stage.name
            kept = forced["kept"].to_numpy()
            alive = np.array([reason is None for reason in lost], dtype=bool)
            falls = alive & ~kept
            margin[falls] = np.maximum(forced[RANK].to_numpy()[falls] - step.stage.k, 1)
            last = step.slate.filter(pl.col(RANK) == step.stage.k).select(REQUEST, pl.col(SCORE).alias("needed"))
            needed = forced.select(REQUEST).join(last, on=REQUEST, how="left", maintain_order="left")["needed"].to_numpy()
            margin_score[falls] = (needed - forced[SCORE].to_numpy())[falls]
            reason = np.full(len(item), name, dtype=object)
            if step.exact is not None:
                there = forced.select(REQUEST, ITEM).join(
                    step.exact.with_columns(pl.lit(True).alias("there")), on=[REQUEST, ITEM], how="left", maintain_order="left"
                )
                reason[there["there"].fill_null(False).to_numpy()] = "index"
            lost[falls] = reason[falls]
            columns += [
                pl.Series(f"{name}.rank", forced[RANK].to_numpy()).set(pl.Series(~(kept & alive)), None), forced[SCORE].alias(f"{name}.score"),
                forced["wins"].alias(f"{name}.wins"),
            ]  # fmt: skip
        columns += [pl.Series("lost", lost.tolist(), pl.String), pl.Series("margin", margin).fill_nan(None).cast(pl.Int32)]
        columns += [pl.Series("margin_score", margin_score).fill_nan(None)]
        return pl.DataFrame(columns)

    def _scored(self, steps: list[Step], eligible: np.ndarray) -> pl.DataFrame:
        first = steps[0].forced.select(REQUEST, ITEM)
        rows = rows_of(self.log.rows, np.unique(first[REQUEST].to_numpy())).group_by(REQUEST, ITEM, maintain_order=True)
        price = pl.coalesce("price_paid", "price_shown")
        by = rows.agg(
            pl.col("position").min(), pl.col("clicked").max(), pl.col("purchased").max(),
            pl.when(price.is_not_null().any()).then((price * pl.col("quantity").fill_null(1)).sum()).alias("money"),
        )  # fmt: skip
        logged_rows = first.join(by, on=[REQUEST, ITEM], how="left", maintain_order="left").drop(REQUEST, ITEM)
        columns = [*self._ids(first), *logged_rows.get_columns(), pl.Series("eligible", eligible, pl.Boolean)]
        for fitted, step in zip(self.fitted.stages, steps, strict=True):
            columns += [step.forced[SCORE].alias(f"{step.stage.name}.score"), step.forced[RANK].alias(f"{step.stage.name}.rank")]
            if (p := fitted.probability(step.forced[SCORE].to_numpy())) is not None:
                columns.append(pl.Series(f"{step.stage.name}.p", p, pl.Float64))
        return pl.DataFrame(columns)


def popularity_band(counts: np.ndarray) -> np.ndarray:
    """ "cold" (never a target), "head" (the most popular that hold half of all targets) or "tail", an item."""
    band = np.full(len(counts), "tail", dtype=object)
    order = np.argsort(-counts, kind="stable")
    running = np.cumsum(counts[order])
    if running.size and running[-1] > 0:
        band[order[: int(np.searchsorted(running, running[-1] / 2)) + 1]] = "head"
    band[counts == 0] = "cold"
    return band
