"""Replay: pass logged requests through a fitted funnel and write down what each stage kept and lost.

A pure function of (shard of requests, fitted funnel) -> shard of the Run; shards are merged by concatenation, so an
interrupted replay goes on where it was and ends in the same bytes (`timing.parquet` excepted).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import __version__
from ..log import KarmafunnelError, Log, atomic_folder, rows_of, write_json
from ..stages.base import ITEM, RANK, REQUEST, SCORE, FittedFunnel, Retriever, Scene, Step, check_windows, code_key, fit_embedders
from ..stages.learn import logged, spaced
from .recipe import Recipe

TABLES = ("slates", "requests", "ledger", "scored", "timing")
CHUNK = 256  # requests a shard


def cache_root() -> Path:
    """Where fitted things are kept: $KARMAFUNNEL_CACHE, else ~/.cache/karmafunnel."""
    return Path(os.environ.get("KARMAFUNNEL_CACHE") or Path.home() / ".cache" / "karmafunnel")


def prepare(
    recipe: Recipe, log: Log, seed: int = 0, device: str = "cpu", cache: Path | None = None, console: Console | None = None
) -> FittedFunnel:
    """Fit the recipe's embedders (on W1) and stages (on W2), each kept by content in `cache`; steps are told to `console`."""
    if console is not None:
        with console.status("fitting") as status:
            say = lambda message: console.print(message, style="dim", markup=False, highlight=False, soft_wrap=True)
            scene = Scene(log, {}, recipe.label, seed, device, say, lambda message: status.update(message))
            return _prepare(recipe, scene, cache)
    return _prepare(recipe, Scene(log, {}, recipe.label, seed, device), cache)


def _prepare(recipe: Recipe, scene: Scene, cache: Path | None) -> FittedFunnel:
    if scene.device != "cpu":
        check_device(scene.device)
    if "class " in recipe.text:
        scene.outside = recipe.text
    needed = {name for stage in recipe.funnel.stages for name in stage.embedders()}
    scene.embeddings = fit_embedders(recipe.embedders, scene, cache, sorted(needed))
    return recipe.funnel.fit(scene, cache)


def check_device(device: str) -> None:
    """Raises KarmafunnelError for a device that torch does not know or have."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise KarmafunnelError(
            f"device: needs one that torch has here, found {device!r}: {str(error).splitlines()[0]}"
        ) from error


def replay(
    recipe: Recipe, log: Log, out: Path | str, *, seed: int = 0, device: str = "cpu", limit: int | None = None,
    cache: Path | None = None, window: str = "W3", chunk: int = CHUNK, console: Console | None = None, command: str | None = None,
    fitted: FittedFunnel | None = None,
) -> Path:  # fmt: skip
    """Fit the recipe's funnel (or take `fitted`, made by `prepare`) and replay one window of the log; returns the Run folder.

    `limit` takes so many requests, evenly spaced in time. Progress goes to `console`. Raises KarmafunnelError when `out` is
    something else than a Run, or when the window holds no request.
    """
    out = Path(out)
    if out.exists() and not (out / "run.json").exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise KarmafunnelError(
            f"replay: {out} needs to be a new folder or an older Run, found something else; nothing was written"
        )
    requests = log.requests_in(window)
    if len(requests) == 0:
        raise KarmafunnelError(f"replay: log {log.name} needs requests of {log.meta['scenario']} in {window}, found none")
    if limit is not None and limit < 1:
        raise KarmafunnelError(f"replay: limit needs at least 1 request, found {limit}")
    requests = spaced(requests, limit or len(requests))

    start = time.perf_counter()
    fitted = fitted or prepare(recipe, log, seed, device, cache, console)
    if console:
        console.print(
            f"fitted in {time.perf_counter() - start:.1f} s; replaying {len(requests)} requests of {window}", highlight=False
        )

    description = describe_run(recipe, fitted, log, seed, device, limit, window, command)
    what = {name: value for name, value in description.items() if name not in ("command", "commit")}
    key = hashlib.sha256(json.dumps([what, chunk, code_key()], sort_keys=True, default=str).encode()).hexdigest()[:16]
    partial = out.with_name(f".{out.name}.{key}.partial")
    for stale in out.parent.glob(f".{out.name}.*.partial"):
        if stale != partial:
            shutil.rmtree(stale)
    partial.mkdir(parents=True, exist_ok=True)
    ledgers = Ledgers(fitted, window)
    starts = range(0, len(requests), chunk)
    bar = progress_bar(console) if console else None
    with bar or nullcontext():
        task = bar.add_task("replay", total=len(requests)) if bar else None
        for i, first in enumerate(starts):
            shard = partial / f"{i:06d}"
            if not shard.is_dir():
                tables = ledgers.shard(requests[first : first + chunk], i)
                with atomic_folder(shard) as temporary:
                    for name, frame in tables.items():
                        frame.write_parquet(temporary / f"{name}.parquet", compression="lz4", statistics=False)
            if bar and task is not None:
                bar.update(task, completed=min(first + chunk, len(requests)))
    with atomic_folder(out) as temporary:
        for name in TABLES:
            merge([partial / f"{i:06d}" / f"{name}.parquet" for i in range(len(starts))], temporary / f"{name}.parquet")
        write_json(temporary / "run.json", description)
    shutil.rmtree(partial)
    return out


def progress_bar(console: Console) -> Progress:
    """The one look of a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def merge(shards: list[Path], out: Path) -> None:
    """Concatenate Parquet shards, one row group each: memory does not grow with their number."""
    writer: pq.ParquetWriter | None = None
    try:
        for shard in shards:
            table = pq.read_table(shard)
            writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd", compression_level=1)
            writer.write_table(table.cast(writer.schema))
    finally:
        if writer:
            writer.close()


def commit() -> str | None:
    """The commit of the code, where it is a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    answer = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return answer.stdout.strip() or None


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
    packages = ("numpy", "polars", "torch", "lightgbm", "faiss-cpu", "scikit-learn", "bm25s")
    return {
        "recipe": recipe.text, "recipe_name": recipe.name, "funnel": repr(recipe.funnel),
        "embedders": {name: repr(value) for name, value in recipe.embedders.items()}, "label": recipe.label, "seed": seed,
        "commit": commit(), "versions": {"karmafunnel": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}},
        "log": {
            "name": log.name, "path": str(log.path.resolve()) if log.path else None, "checksum": log.checksum, "currency": log.meta["currency"],
            "has": log.meta["has"], "catalogue": log.meta["catalogue"], "items": log.n_items,
        },
        "window": window, "stages": stages, "device": device, "limit": limit, "command": command or " ".join(sys.argv),
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
        of_w1 = truth.filter(pl.Series(position == "W1", dtype=pl.Boolean))
        counts = np.bincount(of_w1[ITEM].to_numpy(), minlength=log.n_items)
        self.popularity = popularity_band(counts)
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
                [[number, s.stage.name, len(requests), int(s.rows_in.sum()), int(s.rows_out.sum()), s.seconds] for s in steps],
                schema={
                    "chunk": pl.Int32,
                    "stage": pl.String,
                    "requests": pl.Int32,
                    "rows_in": pl.Int64,
                    "rows_out": pl.Int64,
                    "seconds": pl.Float64,
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
                        slate[RANK], slate[SCORE], self.channels.gather(slate["channel"]).alias("channel"),
                    ]
                )
            )  # fmt: skip
        return pl.concat(parts)

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
        for name, embedding in self.scene.embeddings.items():
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
