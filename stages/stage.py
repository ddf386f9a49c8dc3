"""Stage, Funnel, and how a chunk of requests runs through them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl

from ..bounds import check_fits, check_name, needs
from ..errors import KarmafunnelError, quoted
from ..files import atomic_folder, intact, write_text
from ..keys import code_of, content_key
from ..models.embedders import Embedder, Embedding
from ..typed import Typed
from .context import Context
from .frame import CHANNEL, ITEM, PLACE, RANK, REQUEST, SCORE
from .kept import Kept, Passes
from .ranking import rank_rows
from .rows import Place, Rows


class Stage(Typed):
    """An immutable value: its fields are its config. Frame in, frame out, at most `k` rows a
    request.

    A subclass is a frozen dataclass with fields `k` and `name`, and `fit(context, upstream)` that
    returns a `FittedStage`.
    """

    k: int
    name: str
    needs: ClassVar[tuple[str, ...]] = (REQUEST, ITEM, SCORE, RANK, CHANNEL)
    # windows whose outcomes the stage itself holds counts of
    counts_in: ClassVar[tuple[str, ...]] = ()
    # from the requests of W2, behind its upstream; False where a fit looks at none of them
    learns: ClassVar[bool] = True

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedStage:
        """Learn what there is to learn; `upstream` is the fitted funnel before this stage (None for
        recall).
        """
        raise NotImplementedError

    def load(self, folder: Path, context: Context) -> FittedStage:
        """The inverse of `FittedStage.save`. A stage that learns nothing is simply fitted again."""
        return self.fit(context, None)

    def embedders(self) -> tuple[str, ...]:
        """Names of the embedders that the stage reads."""
        return ()

    def __rshift__(self, other: Stage | Funnel) -> Funnel:
        return Funnel((self,)) >> other


@dataclass(eq=False, repr=False)
class FittedStage:
    """A stage that is ready to run; what it learnt stands in further fields."""

    stage: Stage
    context: Context

    def __post_init__(self) -> None:
        """Work out, once, what every run needs."""

    def score(self, rows: Rows) -> np.ndarray:
        """Scores of (request, item) rows: float32 (n_rows,), higher is better."""
        raise NotImplementedError

    def outputs(self, rows: Rows) -> dict[str, np.ndarray]:
        """`score` of every row, and what else a later stage may read as a column `<stage>.<name>`,
        each (n_rows,).

        `keep` (bool) is no column: rows without it are thrown out before ranks are given.
        """
        return {SCORE: self.score(rows)}

    def probability(self, score: np.ndarray) -> np.ndarray | None:
        """Calibrated probabilities of the label for scores, where the stage has them."""
        return None

    def why(self, rows: Rows) -> list[str]:
        """One sentence a row: what made the score."""
        return [""] * len(rows.item)

    def save(self, folder: Path) -> None:
        """Write what was learnt into an existing folder; a stage that learnt nothing writes
        nothing.
        """


class Retriever(FittedStage):
    """The first stage: it proposes candidates for requests."""

    channels: tuple[str, ...]

    def propose(self, rows: Rows) -> pl.DataFrame:
        """Candidates of `rows.requests`: request, item, score, at most `k` a request."""
        raise NotImplementedError

    def retrieve(self, rows: Rows) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Candidates with their `channel` bits, and the tracked rows with `score`; what both hold
        is aligned by `rank_rows`.
        """
        slate = self.propose(rows).with_columns(pl.lit(1, dtype=pl.UInt32).alias(CHANNEL))
        return slate, rows.tracked.with_columns(
            pl.Series(SCORE, self.score(rows), dtype=pl.Float32)
        )

    def exact(self, rows: Rows) -> pl.DataFrame | None:
        """What an exact search proposes (request, item); None where the index is exact."""
        return None


@dataclass
class StageOutput:
    """What one stage did to a chunk: its slate, the tracked rows with score / rank / wins, sizes
    and seconds.
    """

    stage: Stage
    slate: pl.DataFrame  # request item score rank channel, rank <= k
    tracked: pl.DataFrame  # request item truth + score rank wins kept
    rows_in: np.ndarray  # (n_requests,) rows scored
    rows_out: np.ndarray  # (n_requests,)
    # as if the funnel ran alone: with those of the vectors and features that it is the first stage
    # to read
    seconds: float
    exact: pl.DataFrame | None = None
    read: Mapping[Place, float] = field(default_factory=dict)  # seconds of what it read


def advance(fitted: FittedStage, given: Rows, exact: bool = False) -> tuple[StageOutput, Rows]:
    """One stage: what it did, and what the next one is given. With `exact`, an approximate recall
    also says what an exact search finds.
    """
    start, stage, requests = time.perf_counter(), fitted.stage, given.requests
    rows = given.seen_in(given.context)
    at, keep = None, None
    if isinstance(fitted, Retriever):
        scored, tracked = fitted.retrieve(rows)
    else:
        scored, tracked, keep = _scored(fitted, rows)
    n = scored.height
    handed = None  # rows handed to the stage, where it threw some out
    if keep is not None:
        handed = _count(scored, requests)
        scored = scored.filter(pl.Series(keep[:n], dtype=pl.Boolean))
    check_scores(stage, scored, given.context)
    check_scores(stage, tracked, given.context)
    ranked, tracked, rows_in = rank_rows(scored, tracked, requests, given.context)
    slate = ranked.filter(pl.col(RANK) <= stage.k)
    if keep is not None:  # what would be thrown out has no place among what is put out
        beyond = (
            pl.when(pl.Series(keep[n:], dtype=pl.Boolean))
            .then(RANK)
            .otherwise(pl.max_horizontal(RANK, stage.k + 1))
        )
        tracked = tracked.with_columns(beyond.cast(pl.Int32).alias(RANK))
    tracked = tracked.with_columns(
        (pl.col(RANK) <= stage.k).alias("kept") & pl.col("wins").is_not_null()
    )
    rows_out = _count(slate, requests)
    if given.slate is not None:
        at = np.concatenate([slate.drop_in_place(PLACE).to_numpy(), np.arange(n, len(given.item))])
    seconds = time.perf_counter() - start - rows.spent
    seconds += sum(took for place, took in rows.read.items() if place not in given.read_before)
    oracle = fitted.exact(rows) if exact and isinstance(fitted, Retriever) else None
    step = StageOutput(
        stage,
        slate,
        tracked,
        rows_in if handed is None else handed,
        rows_out,
        seconds,
        oracle,
        rows.read,
    )
    named = [pl.col(SCORE).alias(f"{stage.name}.score"), pl.col(RANK).alias(f"{stage.name}.rank")]
    return step, rows.after(slate.with_columns(named), tracked.with_columns(named), at)


def _scored(
    fitted: FittedStage, rows: Rows
) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray | None]:
    """The candidates with their scores and where they stood, the tracked rows with theirs, and
    which of both are kept, where the stage throws some out.
    """
    stage, slate = fitted.stage, rows.slate
    if slate is None:
        raise KarmafunnelError(
            f"{stage.name} ({type(stage).__name__})",
            needs="candidates to score",
            found="no recall stage before it",
        )
    check_columns(stage, slate)
    made = fitted.outputs(rows)
    keep = made.pop("keep", None)
    columns = []
    for name, values in made.items():
        column = name if name == SCORE else f"{stage.name}.{name}"
        columns.append(pl.Series(column, np.asarray(values, dtype=np.float32)))
    n = slate.height
    scored = slate.with_columns([*(x[:n] for x in columns), pl.Series(PLACE, np.arange(n))])
    return scored, rows.tracked.with_columns(x[n:] for x in columns), keep


def _count(frame: pl.DataFrame, requests: np.ndarray) -> np.ndarray:
    """Rows of each request."""
    return np.bincount(
        np.searchsorted(requests, frame[REQUEST].to_numpy()), minlength=len(requests)
    )


def check_columns(stage: Stage, frame: pl.DataFrame) -> None:
    if missing := [c for c in stage.needs if c not in frame.columns]:
        raise KarmafunnelError(
            f"{stage.name} ({type(stage).__name__}): needs columns {missing}, its upstream passes {frame.columns}"
        )


def check_scores(stage: Stage, frame: pl.DataFrame, context: Context) -> None:
    bad = np.flatnonzero(~np.isfinite(frame[SCORE].to_numpy()))
    if len(bad):
        row = frame.row(int(bad[0]), named=True)
        raise KarmafunnelError(
            f"{stage.name} ({type(stage).__name__})",
            needs="finite scores",
            found=(
                f"{row[SCORE]} for request {context.log.request_ids[row[REQUEST]]!r}, item "
                f"{context.log.item_ids[row[ITEM]]!r} ({len(bad)} such rows)"
            ),
        )


@dataclass(frozen=True)
class Funnel:
    """Stages chained with `>>`; several channels of recall are one stage, `Join`. Prints as you
    would type it.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for stage in (
            part for whole in self.stages for part in (whole, *getattr(whole, "channels", ()))
        ):
            if not isinstance(stage, Stage):
                raise KarmafunnelError(
                    "funnel", needs="stages such as Popular(k=800)", found=quoted(stage)
                )
            needs(stage, "k")
            check_name(type(stage).__name__, "name", stage.name)
        names = [s.name for s in self.stages]
        if len(set(names)) < len(names):
            raise KarmafunnelError(
                "funnel",
                needs="stages of different names",
                found=names,
                hint="give one a name=",
            )

    def __rshift__(self, other: Stage | Funnel) -> Funnel:
        return Funnel(self.stages + (other.stages if isinstance(other, Funnel) else (other,)))

    def __repr__(self) -> str:
        return " >> ".join(map(repr, self.stages))

    def without(self, *names: str) -> Funnel:
        """The funnel with stages left out by name."""
        return self.replace(**{name: None for name in names})

    def replace(self, **stages: Stage | None) -> Funnel:
        """The funnel with stages replaced (or, by None, left out) by name; raises KarmafunnelError
        for an unknown one.
        """
        if unknown := set(stages) - {s.name for s in self.stages}:
            raise KarmafunnelError(
                f"funnel: no stage {sorted(unknown)}; it has {[s.name for s in self.stages]}"
            )
        kept = [stages.get(s.name, s) if s.name in stages else s for s in self.stages]
        return Funnel(tuple(s for s in kept if s is not None))

    def fit(self, context: Context, cache: Kept | Path | None = None) -> FittedFunnel:
        """Fit every stage on what its upstream really passes to it; fitted stages are kept in
        `cache` by content.
        """
        if not self.stages:
            raise KarmafunnelError("funnel", needs="a recall stage", found="no stage")
        fits = Fits(self, context, Kept.of(cache))
        start = time.perf_counter()
        fitted = fits.upto(len(self.stages))
        if fits.out_of_fold:
            context.progress(
                f"out of fold: {len(fits.out_of_fold)} fits more, {sum(fits.out_of_fold):.1f} s of the "
                f"{time.perf_counter() - start:.1f} s that the stages took"
            )
        return fitted


class Fits:
    """The fits of one funnel: every stage on all users and, where a later stage learns from what it
    says, without each fold of users.

    What a model says of rows that it was fitted on is better than what it says of others. A stage
    that learned from it would trust it too much (Wolpert 1992, "Stacked generalization", Neural
    Networks 5). So the rows of a fold pass through models that were fitted, and stopped, without
    that fold. The folds are the same for all stages: folds + 1 fits a stage. Fits are kept by
    content.
    """

    def __init__(self, funnel: Funnel, context: Context, kept: Kept):
        self.funnel, self.context, self.kept = funnel, context, kept
        values = {name: getattr(found, "value", None) for name, found in context.embeddings.items()}
        self.keys = prefix_keys(funnel, values, context)
        self.ready: dict[str, FittedStage] = {}
        self.out_of_fold: list[float] = []  # seconds of the fits without a fold

    def learnt(self, n: int) -> bool:
        """Whether one of the first `n` stages learns from requests that a later stage learns from;
        recall never does.
        """
        return any(stage.learns for stage in self.funnel.stages[1:n])

    def key(self, i: int, fold: int | None) -> str:
        """The key of what the first stages up to `i` pass on, fitted without a fold: the whole's
        where none of them learns.
        """
        return (
            self.keys[i]
            if fold is None or not self.learnt(i + 1)
            else without_fold(self.keys[i], fold)
        )

    def upto(self, n: int, fold: int | None = None) -> FittedFunnel:
        """The first `n` stages, fitted without a fold of users (None: on all)."""
        stages = tuple(self.stage(i, fold) for i in range(n))
        keys = tuple(self.key(i, fold) for i in range(n))
        return FittedFunnel(
            self.context, stages, keys, self if fold is None else None, passes=self.kept.passes
        )

    def stage(
        self, i: int, fold: int | None = None, upstream: FittedFunnel | None = None
    ) -> FittedStage:
        """Stage `i`, fitted without a fold of users (None: on all), behind `upstream` where that is
        at hand.

        One that does not learn is the same whichever fold is left out.
        """
        stage = self.funnel.stages[i]
        fold = fold if i and stage.learns else None
        key = self.key(i, fold)
        if key not in self.ready:
            self.ready[key] = self._kept(stage, key) or self._fit(i, fold, upstream)
            if isinstance(self.ready[key], Retriever) != (i == 0):
                raise KarmafunnelError(
                    "funnel",
                    needs="one recall stage, the first (`Join` puts channels together)",
                    found=f"{stage!r} at place {i + 1}",
                )
            self.kept.fitted[key] = self.ready[key]
        return self.ready[key]

    def _folder(self, stage: Stage, key: str) -> Path | None:
        return self.kept.folder / f"{stage.name}-{key}" if self.kept.folder else None

    def _kept(self, stage: Stage, key: str) -> FittedStage | None:
        """A stage that was fitted before: for another funnel of this process, or in the cache."""
        if key in self.kept.fitted:
            found: FittedStage = self.kept.fitted[key]
            return found
        folder = self._folder(stage, key)
        if folder is None or not intact(folder):
            return None
        self.context.progress(f"{stage.name}: fitted before, from {folder.name}")
        return stage.load(folder, self.context)

    def _fit(self, i: int, fold: int | None, upstream: FittedFunnel | None) -> FittedStage:
        """Fit a stage; with the fit on all users those without a fold that a later stage will need:
        they learn from the same rows.
        """
        upstream = upstream or (self.upto(i) if i else None)
        made = self._fit_one(i, fold, upstream)
        if (
            fold is None
            and i
            and self.funnel.stages[i].learns
            and any(later.learns for later in self.funnel.stages[i + 1 :])
        ):
            for one in range(self.context.folds):
                self.stage(i, one, upstream)
        return made

    def _fit_one(self, i: int, fold: int | None, upstream: FittedFunnel | None) -> FittedStage:
        stage, context = self.funnel.stages[i], self.context
        start = time.perf_counter()
        less = "" if fold is None else f" without fold {fold + 1} of {context.folds}"
        context.progress(f"{stage.name}: fitting {type(stage).__name__}{less}")
        made = stage.fit(
            context, upstream if upstream is None or fold is None else upstream.without(fold)
        )
        if folder := self._folder(stage, self.key(i, fold)):
            with atomic_folder(folder, sealed=True, first=True) as temporary:
                made.save(temporary)
                write_text(
                    temporary / "stage.txt", f"{Funnel(self.funnel.stages[: i + 1])!r}{less}\n"
                )
        if fold is not None:
            self.out_of_fold.append(time.perf_counter() - start)
        return made


def check_windows(
    stages: Sequence[Stage], context: Context, windows: Sequence[str], doing: str
) -> None:
    """Raises KarmafunnelError where a stage would learn from rows (or score rows) of a window that
    what it reads was fitted on.
    """
    wanted = {w for name in windows for w in (("W2a", "W2b") if name == "W2" else (name,))}
    for stage in stages:
        read = {
            f"embedder {n!r}": getattr(context.embeddings.get(n), "fitted_on", ())
            for n in stage.embedders()
        }
        read |= {
            type(part).__name__: part.counts_in for part in (stage, *getattr(stage, "channels", ()))
        }
        for what, fitted_on in read.items():
            if seen := sorted(wanted & set(fitted_on)):
                raise KarmafunnelError(
                    (
                        f"{stage.name} ({type(stage).__name__}): cannot {doing} {', '.join(seen)}, "
                        f"on which {what} was fitted"
                    ),
                    needs=f"windows outside {list(fitted_on)}",
                    found=f"{list(windows)}",
                )


def prefix_keys(funnel: Funnel, values: Mapping[str, Any], context: Context) -> list[str]:
    """A key for every beginning of a funnel, by the content of its stages and of the embedders (by
    name) that they read.
    """
    keys = []
    for i in range(len(funnel.stages)):
        prefix = Funnel(funnel.stages[: i + 1])
        names = sorted({name for stage in prefix.stages for name in stage.embedders()})
        read = [f"{name}={values.get(name)!r}" for name in names]
        code = code_of(*prefix.stages, *(values.get(name) for name in names), by=(__name__,))
        keys.append(
            content_key(
                code,
                repr(prefix),
                read,
                context.log.checksum,
                context.label,
                *context.circumstances,
            )
        )
    return keys


def without_fold(key: str, fold: int) -> str:
    """The key of a beginning of a funnel that was fitted without a fold of users."""
    return f"{key}.{fold}"


def embedder_folder(value: Embedder, context: Context) -> str:
    """The name of the cache folder of a fitted embedder."""
    return f"embedder-{content_key(code_of(value), repr(value), context.log.checksum, *context.circumstances)}"


def fit_embedders(
    embedders: Mapping[str, Embedder], context: Context, cache: Kept | Path | None = None
) -> dict[str, Embedding]:
    """Fit the embedders on W1, each kept by content."""
    kept, fitted = Kept.of(cache), {}
    for name, value in embedders.items():
        key = embedder_folder(value, context)
        folder = kept.folder / key if kept.folder else None
        if key in kept.fitted:
            fitted[name] = kept.fitted[key]
        elif folder and intact(folder):
            context.progress(f"embedder {name}: fitted before, from {folder.name}")
            fitted[name] = value.load(folder, context.log)
        else:
            context.progress(f"embedder {name}: fitting {value!r}")
            check_fits(
                f"embedder {name}",
                {
                    f"vectors of {context.log.n_items:,} items": 12.0
                    * context.log.n_items
                    * getattr(value, "dim", 1)
                },
            )
            start = time.perf_counter()
            fitted[name] = value.fit(
                context.log,
                seed=context.seed,
                progress=context.detail,
                device=context.device,
                cache=kept.folder,
            )
            fitted[name].facts.setdefault("seconds", round(time.perf_counter() - start, 1))
            if folder:
                with atomic_folder(folder, sealed=True, first=True) as temporary:
                    fitted[name].write_into(temporary)
        kept.fitted[key] = fitted[name]
    return fitted


@dataclass(frozen=True)
class FittedFunnel:
    """A funnel that is ready to run."""

    context: Context
    stages: tuple[FittedStage, ...]
    keys: tuple[str, ...] = ()  # of its beginnings, by content; without them nothing is shared
    # those that it is of; without them nothing can learn from it
    fits: Fits | None = field(default=None, repr=False, compare=False)
    left_out: int | None = None  # fold of users from which nothing is to be learnt
    # rows to learn from, for all fits of a stage
    tables: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    # of chunks to learn from
    passes: Passes = field(default_factory=Passes, repr=False, compare=False)

    @property
    def funnel(self) -> Funnel:
        return Funnel(tuple(s.stage for s in self.stages))

    def without(self, fold: int | None) -> FittedFunnel:
        """The same, to learn from without a fold of users (None: from all)."""
        return replace(self, left_out=fold)

    def out_of_fold(self, requests: np.ndarray) -> list[tuple[FittedFunnel, np.ndarray]]:
        """Requests to learn from, fold by fold, each fold with a funnel whose models did not see
        its users.

        Raises KarmafunnelError where a stage learned and its fits without a fold are not known.
        """
        n, fold = len(self.stages), self.context.fold[requests]
        learnt = any(ready.stage.learns for ready in self.stages[1:])
        if learnt and self.fits is None:
            raise KarmafunnelError(
                "funnel",
                what=f"to learn behind {self.stages[-1].stage.name} it",
                needs="to be fitted by Funnel.fit",
                found="one put together by hand",
            )
        parts = [(k, requests[fold == k]) for k in range(self.context.folds) if k != self.left_out]
        return [
            (self.fits.upto(n, k) if learnt and self.fits else self, part)
            for k, part in parts
            if len(part)
        ]

    def taught_by(self, stage: Stage, fold: int) -> FittedStage:
        """A teacher of the stage that learns behind this funnel: fitted behind it, too, without a
        fold of users.
        """
        if self.fits is None:
            return stage.fit(self.context, self.without(fold))
        fits = Fits(self.funnel >> stage, self.context, self.fits.kept)
        fits.ready, fits.out_of_fold = self.fits.ready, self.fits.out_of_fold
        return fits.stage(len(self.stages), fold, upstream=replace(self, left_out=None))

    def run(
        self, requests: np.ndarray, tracked: pl.DataFrame | None = None, exact: bool = False
    ) -> list[StageOutput]:
        """Pass a chunk of requests (row numbers, ascending) through every stage.

        `tracked` rows (request, item, truth) are scored by every stage and given the rank they have
        or would have, but are never passed on. With `exact`, an approximate recall also says what
        an exact search would have found.
        """
        return [
            step for _, step in self._through(Rows.start(self.context, requests, tracked), exact)
        ]

    def _through(self, rows: Rows, exact: bool = False) -> Iterator[tuple[Rows, StageOutput]]:
        """What every stage is given, and what it makes of it."""
        for fitted in self.stages:
            given = rows
            step, rows = advance(fitted, given, exact)
            yield given, step

    def pass_on(self, requests: np.ndarray, tracked: pl.DataFrame) -> Rows:
        """What the stage after this funnel is given of a chunk to learn from.

        What a beginning of the funnel passes on is kept for other funnels that begin alike.
        """
        rows = Rows.start(self.context, requests, tracked)
        digest = rows.digest
        for fitted, key in zip(self.stages, self.keys or [""] * len(self.stages), strict=True):
            if key and (passed := self.passes.get(key, digest)):
                rows = rows.after(*passed)
                continue
            _, rows = advance(fitted, rows)
            if key and rows.slate is not None:
                self.passes.put(key, digest, (rows.slate, rows.tracked))
        return rows

    def explain(self, request_id: str, item_id: str | None = None, top: int = 10) -> pl.DataFrame:
        """Stage by stage, why items are where they are: one row a (stage, item).

        Columns: stage, item_id, title, rank, of (rows scored), kept, score, needed (the score of
        the last kept), channel, why. Items: `item_id`, else the truth and the `top` of the last
        stage. Raises KarmafunnelError on unknown ids.
        """
        log = self.context.log
        request = _row_of(log.request_ids, request_id, "request")
        wanted = np.array([_row_of(log.item_ids, item_id, "item")]) if item_id else None
        requests = np.array([request])
        if wanted is None:
            best = self.run(requests)[-1].slate.sort(RANK).head(top)[ITEM].to_numpy()
            truth = self.context.truth.filter(pl.col(REQUEST) == request)[ITEM].to_numpy()
            wanted = np.unique(np.concatenate([truth, best]))
        tracked = pl.DataFrame(
            {REQUEST: np.full(len(wanted), request), ITEM: wanted.astype(np.int32), "truth": False}
        )
        table = []
        names = self.stages[0].channels  # type: ignore[attr-defined]
        for fitted, (rows, step) in zip(
            self.stages, self._through(Rows.start(self.context, requests, tracked)), strict=True
        ):
            needed = step.slate[SCORE].min() if step.slate.height >= step.stage.k else None
            if rows.slate is None:  # recall explains what it says of the items
                rows = Rows(self.context, None, step.tracked, requests, rows)
            # with the candidates, which ranks and z-scores are of
            whys = fitted.why(rows)[len(rows.item) - step.tracked.height :]
            for row, why in zip(step.tracked.iter_rows(named=True), whys, strict=True):
                found = [name for bit, name in enumerate(names) if row[CHANNEL] >> bit & 1]
                table.append(
                    {
                        "stage": step.stage.name, "item_id": log.item_ids[row[ITEM]], "title": log.items["title"][row[ITEM]],
                        "rank": row[RANK], "of": int(step.rows_in[0]), "kept": row["kept"], "score": row[SCORE],
                        "needed": needed, "channel": "+".join(found), "why": why,
                    }
                )  # fmt: skip
        return pl.DataFrame(table, infer_schema_length=None)


def _row_of(ids: np.ndarray, wanted: str | None, what: str) -> int:
    at = np.flatnonzero(ids == wanted)
    if len(at) == 0:
        raise KarmafunnelError(
            f"explain: no {what} {wanted!r} in the log; there are {len(ids)}, e.g. {ids[0]!r}"
        )
    return int(at[0])
