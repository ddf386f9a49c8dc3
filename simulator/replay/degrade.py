"""Degradation paths: a fitted funnel with some stages skipped, cut, replaced by a fallback or fed
with stale vectors, and their replay.

A path is a text such as "recall=popular,rank=skip" or "prerank=100": the modes that are not full,
in stage order; "full" where all are. Nothing is fitted anew but a fallback of recall: a path runs
the stages that were fitted for the full funnel.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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

BITS = 8  # channels that the feature `Upstream` tells apart


# -- names -----------------------------------------------------------------------------------------


def folder_name(path: str) -> str:
    """A path as a folder name that no reader takes for a Hive partition:
    "recall-popular+rank-skip".
    """
    name = path.replace("=", "-").replace(",", "+")
    if re.fullmatch(r"[A-Za-z0-9_.@]+=[A-Za-z0-9_.@]+(,[A-Za-z0-9_.@]+=[A-Za-z0-9_.@]+)*", path):
        return name
    return (
        f"{re.sub(r'[^A-Za-z0-9_.@+-]', '_', name)}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    )


# -- what stands in a stage's place ----------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Skipped(Stage):
    """Stands where a stage is left out: the upstream's order and score, cut to the `k` of the
    stage, under its name.

    What the stage would put out beside (`<stage>.p_click`) is missing, so a later one that needs it
    refuses.
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
    """Another retriever in recall's place.

    Its channels get bits beyond those that later stages know (unless there is one on either side),
    so that none is taken for another; in the place of a Join it is a Join of one, so that its
    scores are on the scale that later stages learnt.
    """

    def __init__(self, fitted: Retriever, full: Retriever):
        if isinstance(full, FittedJoin) and not isinstance(fitted, FittedJoin):
            stage = Join(
                (fitted.stage,), k=fitted.stage.k, rrf=full.stage.rrf, name=full.stage.name
            )
            fitted = FittedJoin(stage, fitted.context, [fitted])
        self.fitted, self.stage, self.context = fitted, fitted.stage, fitted.context
        self.beyond = (
            0 if len(full.channels) == len(fitted.channels) == 1 else max(BITS, len(full.channels))
        )
        self.channels = (*[""] * self.beyond, *fitted.channels)

    def retrieve(self, rows: Rows) -> tuple[pl.DataFrame, pl.DataFrame]:
        slate, tracked = self.fitted.retrieve(rows)
        return slate.with_columns((pl.col(CHANNEL) * (1 << self.beyond)).cast(pl.UInt32)), tracked

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
    """The recipe's fallbacks of recall by name, fitted beside the funnel.

    A recipe that has no "popular" gets `Popular` with the k of its recall. Raises KarmafunnelError
    for one that is no recall stage.
    """
    recall = fitted.stages[0].stage
    stages = {"popular": Popular(k=recall.k)} | dict(recipe.fallbacks)
    made: dict[str, Retriever] = {}
    for name, stage in stages.items():
        try:
            ready = Funnel((replace(stage, name=recall.name),)).fit(fitted.context, cache).stages[0]  # type: ignore[type-var]
        except KarmafunnelError as error:
            raise KarmafunnelError(f"recipe {recipe.name}: fallback {name!r}: {error}") from error
        assert isinstance(ready, Retriever)
        made[name] = ready
    return made


def along(
    fitted: FittedFunnel,
    path: str,
    fallbacks: Mapping[str, Retriever] | None = None,
    stale_minutes: float | Mapping[str, float] | None = None,
) -> FittedFunnel:
    """A fitted funnel along a path; what the path leaves as it is has the keys of the full funnel,
    so that it is run once for both.

    Modes of a stage: "skip" (not of recall), a smaller cutoff as a number, a name of `fallbacks`
    (of recall). Modes of an embedder that the funnel reads: "stale" (near-line, `stale_minutes`
    apart, of all or by name; or "stale@60") and "skip" (no request has a vector: its recall channel
    finds nothing, its features are missing). Raises KarmafunnelError naming the path.
    """
    who, modes, context = f"path {path!r}", modes_of(path), fitted.context
    names = [ready.stage.name for ready in fitted.stages]
    vectors = [name for name in context.embeddings if name not in names]
    if stray := [name for name in modes if name not in [*names, *vectors]]:
        raise KarmafunnelError(
            who, needs=f"stages among {names} or embedders among {vectors}", found=stray
        )
    swapped: dict[str, tuple[str, Embedding]] = {}
    for name in vectors:
        if mode := modes.get(name):
            swapped[name] = _vectors(who, name, mode, fitted, names[0] in modes, stale_minutes)
    if swapped:
        context = replace(
            context,
            embeddings=context.embeddings | {name: view for name, (_, view) in swapped.items()},
        )
    stages: list[FittedStage] = []
    keys, changes = [], list[str]()
    for i, ready in enumerate(fitted.stages):
        mode = modes.get(ready.stage.name, "")
        made = _in_mode(who, ready, mode, fallbacks or {})
        read = [
            f"{name}={text}"
            for name, (text, _) in swapped.items()
            if name in made.stage.embedders()
        ]
        changes += [change for change in read if change not in changes]
        changes += [f"{ready.stage.name}={mode}: {made.stage!r}"] if mode else []
        stages.append(made)
        if fitted.keys:
            keys.append(
                content_key(code_digest(__name__), fitted.keys[i], changes)
                if changes
                else fitted.keys[i]
            )
    return FittedFunnel(context, tuple(stages), tuple(keys))


def _vectors(
    who: str,
    name: str,
    mode: str,
    fitted: FittedFunnel,
    fallen_back: bool,
    stale_minutes: float | Mapping[str, float] | None,
) -> tuple[str, Embedding]:
    """What an embedder's mode is in full, and the embedding in its place."""
    context, recall = fitted.context, fitted.stages[0].stage
    embedding = context.embeddings[name]
    kind, _, said = mode.partition("@")
    if mode == SKIP:
        channels = getattr(recall, "channels", (recall,))
        if not fallen_back and all(name in channel.embedders() for channel in channels):
            raise KarmafunnelError(
                who,
                what=f"skipping {name}",
                needs="a Join with a channel that does without its vectors",
                found=repr(recall),
                hint=f"name a fallback of {recall.name} instead",
            )
        # one view for all paths: what they share is made once
        return mode, context.once((embedding, mode), lambda: UnavailableEmbedding(embedding))
    if kind != STALE:
        raise KarmafunnelError(
            f"{who}: {name} is an embedder and has the modes 'stale', 'stale@MINUTES' and 'skip', found {mode!r}"
        )
    minutes = stale_minutes.get(name) if isinstance(stale_minutes, Mapping) else stale_minutes
    try:
        minutes = float(said) if said or kind != mode else minutes
    except ValueError:
        minutes = None
    if minutes is None:
        raise KarmafunnelError(
            who,
            what=name,
            needs="stale_minutes, as --stale-minutes or as 'stale@60'",
            found=repr(mode),
        )
    text = f"{STALE}@{minutes:g}"
    return text, context.once(
        (embedding, text), lambda: NearLine(embedding, minutes, f"{who}: {name}")
    )


def _in_mode(
    who: str, ready: FittedStage, mode: str, fallbacks: Mapping[str, Retriever]
) -> FittedStage:
    stage = ready.stage
    if not mode:
        return ready
    if re.fullmatch(r"[1-9][0-9]*", mode):
        if len(mode) > 8 or int(mode) > stage.k:
            raise KarmafunnelError(
                who,
                what=f"{stage.name} puts out {stage.k}; a cutoff",
                needs="to be at most that",
                found=mode,
            )
        cut = copy.copy(ready)
        try:
            cut.stage = replace(stage, k=int(mode))  # type: ignore[type-var]
        except KarmafunnelError as error:
            raise KarmafunnelError(f"{who}: {error}") from error
        return cut
    if isinstance(ready, Retriever):
        if mode in fallbacks:
            return Fallback(fallbacks[mode], ready)
        raise KarmafunnelError(
            f"{who}: {stage.name} is recall, which cannot be skipped; "
            f"it has smaller cutoffs and the fallbacks {sorted(fallbacks)}, found {mode!r}"
        )
    if mode != SKIP:
        raise KarmafunnelError(
            f"{who}: {stage.name} has the mode 'skip' and smaller cutoffs, found {mode!r}"
        )
    return FittedSkipped(Skipped(stage.k, stage.name), ready.context)


# -- replay ----------------------------------------------------------------------------------------


def replay_paths(
    recipe: Recipe, log: Log, out: Path | str, paths: Sequence[str], options: RunOptions = DEFAULTS, *,
    stale_minutes: float | Mapping[str, float] | None = None, fitted: FittedFunnel | None = None,
) -> dict[str, Path]:  # fmt: skip
    """Replay the full funnel into `out` and every path into `out`/paths over the same requests;
    returns the Run folders by path.

    Each path is a Run of its own whose run.json says `path` (and `stale_minutes`). Interrupted and
    started again it goes on, as `replay` does. Raises KarmafunnelError naming a path that the
    funnel cannot take, before anything is replayed, and as `replay` does for what stands in `out`.
    """
    out = Path(out)
    console = options.console
    with claim_run(out, recipe, log, options, RUN_AND_PATHS):
        requests = requests_of(log, options.window, options.limit)
        start = time.perf_counter()
        fitted = fitted or prepare(recipe, log, options)
        stages = [ready.stage.name for ready in fitted.stages]
        order = [*(name for name in fitted.context.embeddings if name not in stages), *stages]
        asked = {path: modes_of(path) for path in paths if path not in (FULL, NOTHING)}
        # a path with a stray stage stays as it is typed: `along` says what is wrong with it
        told = {
            path if set(modes) - set(order) else path_of(modes, order): modes
            for path, modes in asked.items()
        }
        falls_back = any(not modes.get(stages[0], "1").isdecimal() for modes in told.values())
        fallbacks = fit_fallbacks(recipe, fitted, options.cache) if falls_back else {}
        at = Path(os.path.realpath(out))
        waiting = at.with_name(f".{at.name}.paths")  # `out` itself is replaced as a whole
        variants, folders = [Variant(recipe, fitted, out)], {FULL: out}
        for path in told:
            other = along(fitted, path, fallbacks, stale_minutes)
            try:
                other.run(requests[:1])
            except KarmafunnelError as error:
                raise KarmafunnelError(f"path {path!r}: {error}") from error
            stale = {
                name: view.minutes
                for name, view in other.context.embeddings.items()
                if isinstance(view, NearLine)
            }
            says = {"path": path} | ({"stale_minutes": stale} if stale else {})
            variants.append(
                Variant(
                    replace(recipe, funnel=other.funnel), other, waiting / folder_name(path), says
                )
            )
            folders[path] = out / "paths" / folder_name(path)
        if console:
            what = f"{len(requests)} requests of {options.window} along {len(variants)} paths"
            console.print(f"fitted in {time.perf_counter() - start:.1f} s; replaying {what}")
        errors = replay_many(variants, log, options)
        if out in errors:
            raise errors[out]
        for variant in variants[1:]:
            if variant.out in errors:
                raise KarmafunnelError(
                    f"path {variant.says['path']!r}: {errors[variant.out]}"
                ) from errors[variant.out]
        kept = {variant.out.name for variant in variants[1:]}
        for stray in waiting.iterdir() if waiting.is_dir() else ():
            if stray.name not in kept:  # of an older call that was never finished
                remove(stray)
        if kept:
            waiting.rename(out / "paths")
        return folders


def runs_of(run: Path | str) -> dict[str, Run]:
    """The Runs that `replay_paths` wrote, by path: "full" is the folder itself."""
    full = Run.open(run)
    found = {FULL: full}
    for folder in (
        sorted((full.path / "paths").glob("*/")) if (full.path / "paths").is_dir() else ()
    ):
        one = Run.open(folder)
        if "path" not in one.meta:
            raise KarmafunnelError(
                f"{folder}/run.json", needs="the path that was replayed", found="none"
            )
        found[str(one.meta["path"])] = one
    return found
