"""Degradation paths: a fitted funnel with some stages skipped, cut, replaced by a fallback or given
stale user embeddings, and the replay of such funnels.

A path is a text such as "recall=popular,rank=skip" or "prerank=100": the modes that are not full,
in stage order; "full" where all are. Only fallbacks of recall are fitted; all other stages are
those that were fitted for the full funnel.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...files import RUN_AND_PATHS, remove
from ...keys import code_digest, content_key
from ...log import Log
from ...models.embedders import Embedding
from ...stages.context import Context
from ...stages.frame import CHANNEL, SCORE
from ...stages.kept import Kept
from ...stages.recall import FittedJoin, Join, Popular
from ...stages.rows import Rows
from ...stages.stage import FittedFunnel, FittedStage, Funnel, Retriever, Stage
from ..measure.run import Run
from .nearline import NearLine, UnavailableEmbedding
from .options import DEFAULTS, RunOptions
from .paths import FULL, NOTHING, SKIP, STALE, modes_of, path_of
from .prepare import Variant, prepare, requests_of
from .recipe import Recipe
from .replay import claim_run, replay_many

BITS = 8  # channels that the feature `Upstream` distinguishes


def folder_name(path: str) -> str:
    """A path as the name of a folder, "recall-popular+rank-skip", without the "=" by which readers
    of Parquet recognise Hive partitions.
    """
    name = path.replace("=", "-").replace(",", "+")
    word = r"[A-Za-z0-9_.@]+"
    if re.fullmatch(rf"{word}={word}(,{word}={word})*", path):
        return name
    digest = hashlib.sha256(path.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_.@+-]', '_', name)}-{digest}"


# -- replacements of stages ------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Skipped(Stage):
    """Replaces a skipped stage, under its name: the upstream's order and score, cut to its `k`.

    Further columns of the stage (`<stage>.p_click`) are missing; a later stage that needs one
    raises KarmafunnelError.
    """

    k: int
    name: str

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedSkipped:
        return FittedSkipped(self, context)


class FittedSkipped(FittedStage):
    stage: Skipped

    def score(self, rows: Rows) -> np.ndarray:
        return rows.frame[SCORE].to_numpy()

    def why(self, rows: Rows) -> list[str]:
        return ["skipped: the order of the stage before"] * len(rows.item)


class Fallback(Retriever):
    """Another retriever in the place of recall.

    Its channels get bits beyond those that later stages have learnt (unless either side has a
    single one), so that none is confused with another. In the place of a Join it is a Join of one,
    which keeps its scores on the scale that later stages have learnt.
    """

    def __init__(self, fitted: Retriever, full: Retriever):
        if isinstance(full, FittedJoin) and not isinstance(fitted, FittedJoin):
            stage = Join(
                (fitted.stage,), k=fitted.stage.k, rrf=full.stage.rrf, name=full.stage.name
            )
            fitted = FittedJoin(stage, fitted.context, [fitted])
        self.fitted, self.stage, self.context = fitted, fitted.stage, fitted.context
        single = len(full.channels) == len(fitted.channels) == 1
        self.beyond = 0 if single else max(BITS, len(full.channels))
        self.channels = (*[""] * self.beyond, *fitted.channels)

    def retrieve(self, rows: Rows) -> tuple[pl.DataFrame, pl.DataFrame]:
        slate, tracked = self.fitted.retrieve(rows)
        bits = (pl.col(CHANNEL) * (1 << self.beyond)).cast(pl.UInt32)
        return slate.with_columns(bits), tracked

    def propose(self, rows: Rows) -> pl.DataFrame:
        return self.fitted.propose(rows)

    def score(self, rows: Rows) -> np.ndarray:
        return self.fitted.score(rows)

    def exact(self, rows: Rows) -> pl.DataFrame | None:
        return self.fitted.exact(rows)


# -- a funnel along a path -------------------------------------------------------------------------


def fit_fallbacks(
    recipe: Recipe, fitted: FittedFunnel, cache: Kept | Path | None = None
) -> dict[str, Retriever]:
    """Fit the recipe's fallbacks of recall, by name.

    A recipe without one named "popular" gets `Popular` with the k of its recall.

    Raises:
        KarmafunnelError: for a fallback that is no recall stage.
    """
    recall = fitted.stages[0].stage
    stages = {"popular": Popular(k=recall.k)} | dict(recipe.fallbacks)
    found: dict[str, Retriever] = {}
    for name, stage in stages.items():
        try:
            funnel = Funnel((replace(stage, name=recall.name),))  # type: ignore[type-var]
            ready = funnel.fit(fitted.context, cache).stages[0]
        except KarmafunnelError as error:
            raise KarmafunnelError(f"recipe {recipe.name}: fallback {name!r}: {error}") from error
        assert isinstance(ready, Retriever)
        found[name] = ready
    return found


def along(
    fitted: FittedFunnel,
    path: str,
    fallbacks: Mapping[str, Retriever] | None = None,
    stale_minutes: float | Mapping[str, float] | None = None,
) -> FittedFunnel:
    """A fitted funnel along a path.

    Stages before the first change keep their keys, so that a replay of several paths runs them
    once.

    Args:
        path: modes by stage or embedder. Of a stage: "skip" (not for recall), a smaller cutoff such
            as "100", or a name of `fallbacks` (for recall). Of an embedder that the funnel reads:
            "stale" or "stale@60" (user embeddings of the last refresh), or "skip" (no request has a
            user embedding: its recall channel proposes nothing, its features are missing).
        stale_minutes: minutes between refreshes where the path does not say; for all embedders, or
            by name.

    Raises:
        KarmafunnelError: naming the path, for a stage, embedder or mode that there is not.
    """
    who, modes, context = f"path {path!r}", modes_of(path), fitted.context
    names = [ready.stage.name for ready in fitted.stages]
    embedders = [name for name in context.embeddings if name not in names]
    if stray := [name for name in modes if name not in [*names, *embedders]]:
        needs = f"stages among {names} or embedders among {embedders}"
        raise KarmafunnelError(who, needs=needs, found=stray)
    replaced: dict[str, tuple[str, Embedding]] = {}  # mode and embedding, by embedder
    for name in embedders:
        if mode := modes.get(name):
            minutes = stale_minutes
            if isinstance(minutes, Mapping):
                minutes = minutes.get(name)
            has_fallback = names[0] in modes
            replaced[name] = _embedding_in_mode(who, name, mode, fitted, has_fallback, minutes)
    if replaced:
        views = {name: view for name, (_, view) in replaced.items()}
        context = replace(context, embeddings=context.embeddings | views)
    stages: list[FittedStage] = []
    keys: list[str] = []
    changes: list[str] = []  # up to each stage
    for i, ready in enumerate(fitted.stages):
        mode = modes.get(ready.stage.name, "")
        stage = _stage_in_mode(who, ready, mode, fallbacks or {})
        for name, (text, _) in replaced.items():
            change = f"{name}={text}"
            if name in stage.stage.embedders() and change not in changes:
                changes.append(change)
        if mode:
            changes.append(f"{ready.stage.name}={mode}: {stage.stage!r}")
        stages.append(stage)
        if fitted.keys:
            key = fitted.keys[i]
            keys.append(content_key(code_digest(__name__), key, changes) if changes else key)
    return FittedFunnel(context, tuple(stages), tuple(keys), train=fitted.train)


def _embedding_in_mode(
    who: str,
    name: str,
    mode: str,
    fitted: FittedFunnel,
    has_fallback: bool,
    minutes: float | None,
) -> tuple[str, Embedding]:
    """An embedder's mode with its minutes, and the embedding in that mode.

    Paths with the same mode get the same object, so that they share what is computed from it.
    """
    context, recall = fitted.context, fitted.stages[0].stage
    embedding = context.embeddings[name]
    kind, _, given = mode.partition("@")
    if mode == SKIP:
        channels = getattr(recall, "channels", (recall,))
        if not has_fallback and all(name in channel.embedders() for channel in channels):
            raise KarmafunnelError(
                who,
                what=f"skipping {name}",
                needs="a Join with a channel that does without its vectors",
                found=repr(recall),
                hint=f"name a fallback of {recall.name} instead",
            )
        return mode, context.once((embedding, mode), lambda: UnavailableEmbedding(embedding))
    if kind != STALE:
        needs = "one of the modes of an embedder: 'stale', 'stale@MINUTES' or 'skip'"
        raise KarmafunnelError(who, what=name, needs=needs, found=repr(mode))
    if given or kind != mode:
        try:
            minutes = float(given)
        except ValueError:
            minutes = None
    if minutes is None:
        needs = "stale_minutes, as --stale-minutes or as 'stale@60'"
        raise KarmafunnelError(who, what=name, needs=needs, found=repr(mode))
    text = f"{STALE}@{minutes:g}"
    make = partial(NearLine, embedding, minutes, f"{who}: {name}")
    return text, context.once((embedding, text), make)


def _stage_in_mode(
    who: str, ready: FittedStage, mode: str, fallbacks: Mapping[str, Retriever]
) -> FittedStage:
    """A fitted stage in a mode; itself where the mode is empty."""
    stage = ready.stage
    if not mode:
        return ready
    if re.fullmatch(r"[1-9][0-9]*", mode):
        if len(mode) > 8 or int(mode) > stage.k:
            what = f"the cutoff of {stage.name}"
            raise KarmafunnelError(who, what=what, needs=f"at most its k, {stage.k}", found=mode)
        cut = copy.copy(ready)
        try:
            cut.stage = replace(stage, k=int(mode))  # type: ignore[type-var]
        except KarmafunnelError as error:
            raise KarmafunnelError(f"{who}: {error}") from error
        return cut
    if isinstance(ready, Retriever):
        if mode in fallbacks:
            return Fallback(fallbacks[mode], ready)
        needs = f"a smaller cutoff or one of the fallbacks {sorted(fallbacks)}"
        what = f"{stage.name}, which is recall and cannot be skipped,"
        raise KarmafunnelError(who, what=what, needs=needs, found=repr(mode))
    if mode != SKIP:
        needs = "the mode 'skip' or a smaller cutoff"
        raise KarmafunnelError(who, what=stage.name, needs=needs, found=repr(mode))
    return FittedSkipped(Skipped(stage.k, stage.name), ready.context)


# -- replay ----------------------------------------------------------------------------------------


def replay_paths(
    recipe: Recipe,
    log: Log,
    out: Path | str,
    paths: Sequence[str],
    options: RunOptions = DEFAULTS,
    *,
    stale_minutes: float | Mapping[str, float] | None = None,
    fitted: FittedFunnel | None = None,
) -> dict[str, Path]:
    """Replay the full funnel into `out` and every path into `out`/paths over the same requests.

    Each path is a Run of its own whose run.json has `path` (and `stale_minutes`). An interrupted
    replay goes on when it is started again, as with `replay`.

    Returns:
        The folders of the Runs, by path.

    Raises:
        KarmafunnelError: naming a path that the funnel cannot take, before anything is replayed,
            and as `replay` does for what is in `out`.
    """
    out = Path(out)
    with claim_run(out, recipe, log, options, RUN_AND_PATHS):
        requests = requests_of(log, options.window, options.limit)
        start = time.perf_counter()
        fitted = fitted or prepare(recipe, log, options)
        at = Path(os.path.realpath(out))
        waiting = at.with_name(f".{at.name}.paths")  # `out` itself is replaced as a whole
        variants = _variants(recipe, fitted, paths, stale_minutes, requests, waiting, options)
        if options.console:
            what = f"{len(requests)} requests of {options.window} along {len(variants) + 1} paths"
            seconds = time.perf_counter() - start
            options.console.print(f"ready in {seconds:.1f} s; replaying {what}")
        full = Variant(recipe, fitted, out)
        errors = replay_many([full, *variants.values()], log, options)
        if out in errors:
            raise errors[out]
        for path, variant in variants.items():
            if error := errors.get(variant.out):
                raise KarmafunnelError(f"path {path!r}: {error}") from error
        _keep_only(waiting, {variant.out.name for variant in variants.values()})
        if variants:
            waiting.rename(out / "paths")
        found = {FULL: out}
        for path, variant in variants.items():
            found[path] = out / "paths" / variant.out.name
        return found


def _variants(
    recipe: Recipe,
    fitted: FittedFunnel,
    paths: Sequence[str],
    stale_minutes: float | Mapping[str, float] | None,
    requests: np.ndarray,
    folder: Path,
    options: RunOptions,
) -> dict[str, Variant]:
    """The variants of all paths but the full one, by path, each tried on one request."""
    wanted = _in_order(fitted, paths)
    recall = fitted.stages[0].stage.name
    fallbacks: dict[str, Retriever] = {}
    if any(not modes_of(path).get(recall, "1").isdecimal() for path in wanted):
        fallbacks = fit_fallbacks(recipe, fitted, options.cache)
    variants = {}
    for path in wanted:
        other = along(fitted, path, fallbacks, stale_minutes)
        try:
            other.run(requests[:1])
        except KarmafunnelError as error:
            raise KarmafunnelError(f"path {path!r}: {error}") from error
        entries: dict[str, Any] = {"path": path}
        stale = {}
        for name, embedding in other.context.embeddings.items():
            if isinstance(embedding, NearLine):
                stale[name] = embedding.minutes
        if stale:
            entries["stale_minutes"] = stale
        mine = replace(recipe, funnel=other.funnel)
        variants[path] = Variant(mine, other, folder / folder_name(path), entries)
    return variants


def _in_order(fitted: FittedFunnel, paths: Sequence[str]) -> list[str]:
    """Paths other than the full one, each once with its modes in the order of the funnel.

    A path with an unknown stage stays as it is, for `along` to complain about.
    """
    stages = [ready.stage.name for ready in fitted.stages]
    order = [*(name for name in fitted.context.embeddings if name not in stages), *stages]
    found: dict[str, None] = {}
    for path in paths:
        if path not in (FULL, NOTHING):
            modes = modes_of(path)
            found[path if set(modes) - set(order) else path_of(modes, order)] = None
    return list(found)


def _keep_only(folder: Path, names: Collection[str]) -> None:
    """Remove what an earlier, unfinished call left in a folder."""
    for found in folder.iterdir() if folder.is_dir() else ():
        if found.name not in names:
            remove(found)


def runs_of(run: Path | str) -> dict[str, Run]:
    """The Runs that `replay_paths` wrote, by path: "full" is the folder itself."""
    full = Run.open(run)
    found = {FULL: full}
    for folder in (
        sorted((full.path / "paths").glob("*/")) if (full.path / "paths").is_dir() else ()
    ):
        one = Run.open(folder)
        if "path" not in one.meta:
            needs = "the path that was replayed"
            raise KarmafunnelError(f"{folder}/run.json", needs=needs, found="none")
        found[str(one.meta["path"])] = one
    return found
