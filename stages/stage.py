"""Stage, Funnel, and how a chunk of requests runs through them."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl

from ..bounds import check_fits, check_name, needs
from ..errors import KarmafunnelError, meant, quoted
from ..files import atomic_folder, intact, write_text
from ..keys import code_of, content_key
from ..models.embedders import Embedder, Embedding, Lasting
from ..typed import Typed
from .blocks import as_of_block
from .context import Context
from .frame import CHANNEL, ITEM, PLACE, RANK, REQUEST, SCORE, check_array, group_rows
from .kept import Kept, Passes
from .ranking import rank_rows
from .rows import Place, Rows


class Stage(Typed):
    """A stage of a funnel as an immutable value: its fields are its settings.

    A stage takes the rows of its upstream and passes on at most `k` rows a request. A subclass is a
    frozen dataclass with fields `k` and `name`, and a method `fit` that returns a `FittedStage`.
    """

    k: int
    name: str
    needs: ClassVar[tuple[str, ...]] = (REQUEST, ITEM, SCORE, RANK, CHANNEL)
    # windows whose outcomes the stage counts
    counts_in: ClassVar[tuple[str, ...]] = ()
    # whether a fit reads the outcomes of W2
    learns: ClassVar[bool] = True
    # whether another stage can learn from its scores: its fit is `Learned`
    teaches: ClassVar[bool] = False
    # what a fit is called where its progress is told
    doing: ClassVar[str] = "fitting"

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedStage:
        """Fit the stage; `upstream` is the fitted funnel before it (None for recall)."""
        raise NotImplementedError

    def load(self, folder: Path, context: Context) -> FittedStage:
        """The inverse of `FittedStage.save`; by default the stage is fitted again."""
        return self.fit(context, None)

    def embedders(self) -> tuple[str, ...]:
        """Names of the embedders that the stage reads."""
        return ()

    def inside(self) -> tuple[Stage, ...]:
        """The stages that it is made of: channels, parts, a teacher."""
        return ()

    def every_part(self) -> Iterator[Stage]:
        """The stage itself, and what is inside it at any depth."""
        yield self
        for stage in self.inside():
            yield from stage.every_part()

    @property
    def blocks(self) -> int:
        """From how many blocks of time its models learn (`Sample`); 1: from W2a alone."""
        return max((stage.blocks for stage in self.inside()), default=1)

    def one_fit(self) -> str:
        """Why the stage makes sense with one fit of its embedders only; empty where it reads
        similarities, ranks and counts. What is `inside` speaks for itself.
        """
        return ""

    @property
    def title(self) -> str:
        """Its name and class, for errors: "rank (DINRank)"."""
        return f"{self.name} ({type(self).__name__})"

    def __rshift__(self, other: Stage | Funnel) -> Funnel:
        return Funnel((self,)) >> other


@dataclass(eq=False, repr=False)
class FittedStage:
    """A stage that is ready to run; subclasses have what was learnt in further fields."""

    stage: Stage
    context: Context

    def __post_init__(self) -> None:
        """Compute once what every run needs."""

    def seen_in(self, context: Context) -> FittedStage:
        """What was learnt, to run in another context of the log."""
        other = copy.copy(self)
        other.context = context
        other.__post_init__()
        return other

    def score(self, rows: Rows) -> np.ndarray:
        """Scores of (request, item) rows: float32 (n_rows,), higher is better."""
        raise NotImplementedError

    def outputs(self, rows: Rows) -> dict[str, np.ndarray]:
        """The score of every row and further outputs by name, each (n_rows,).

        A later stage can read them as columns `<stage>.<name>`. `keep` (bool) becomes no column:
        rows where it is False are removed before ranks are given.
        """
        return {SCORE: self.score(rows)}

    def probability(self, score: np.ndarray) -> np.ndarray | None:
        """Calibrated probabilities of the label for scores; None without a calibration."""
        return None

    def why(self, rows: Rows) -> list[str]:
        """An explanation of each row's score, one text a row."""
        return [""] * len(rows.item)

    def save(self, folder: Path) -> None:
        """Write what was learnt into an existing folder."""


class Retriever(FittedStage):
    """The first stage: it proposes candidates for requests."""

    channels: tuple[str, ...]

    def propose(self, rows: Rows) -> pl.DataFrame:
        """Candidates of `rows.requests`: request, item, score, at most `k` a request."""
        raise NotImplementedError

    def retrieve(self, rows: Rows) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Candidates with their `channel` bits, and the tracked rows with `score`.

        `rank_rows` gives an item that is in both the same score.
        """
        slate = proposed(self, rows).with_columns(pl.lit(1, dtype=pl.UInt32).alias(CHANNEL))
        score = check_array(self.stage.title, self.score(rows), {"n_rows": len(rows.item)}, SCORES)
        return slate, rows.tracked.with_columns(pl.Series(SCORE, score.astype(np.float32)))

    def exact(self, rows: Rows) -> pl.DataFrame | None:
        """What an exact search proposes (request, item); None where the index is exact."""
        return None


SCORES = "of scores"


def proposed(fitted: Retriever, rows: Rows) -> pl.DataFrame:
    """What a recall stage proposes.

    Raises:
        KarmafunnelError: naming the stage, for a frame without a column and for row numbers of
            requests or items that it was not given.
    """
    frame, title = fitted.propose(rows), fitted.stage.title
    columns = [REQUEST, ITEM, SCORE]
    if not isinstance(frame, pl.DataFrame) or not set(columns) <= set(frame.columns):
        found = getattr(frame, "columns", f"a {type(frame).__name__}")
        raise KarmafunnelError(title, needs=f"to propose a Polars frame of {columns}", found=found)
    for column in columns:
        check_array(title, frame[column].to_numpy(), {"n": None}, f"of numbers in column {column}")
    items, n_items = frame[ITEM].to_numpy(), fitted.context.log.n_items
    if len(items) and not (items.min() >= 0 and items.max() < n_items):
        needs = f"to propose row numbers of items, 0 to {n_items - 1:,}"
        raise KarmafunnelError(title, needs=needs, found=f"{items.min()} to {items.max()}")
    if len(stray := np.setdiff1d(group_rows(frame[REQUEST].to_numpy())[0], rows.requests)):
        needs = "to propose for the requests that it is given (row numbers in `rows.requests`)"
        raise KarmafunnelError(title, needs=needs, found=f"request {stray[0]}")
    return frame


@dataclass
class StageOutput:
    """What one stage did to a chunk of requests.

    Attributes:
        slate: request, item, score, rank (at most k) and channel.
        tracked: request, item, truth, score, rank, wins and kept.
        rows_in: rows scored, by request (n_requests,).
        rows_out: rows passed on, by request (n_requests,).
        seconds: as if the funnel ran alone, with the time of the vectors and features that this
            stage is the first of its funnel to read.
        exact: what an exact search would have proposed, where recall is approximate.
        read: the seconds of each vector and feature that the stage read.
    """

    stage: Stage
    slate: pl.DataFrame
    tracked: pl.DataFrame
    rows_in: np.ndarray
    rows_out: np.ndarray
    seconds: float
    exact: pl.DataFrame | None = None
    read: Mapping[Place, float] = field(default_factory=dict)


def advance(fitted: FittedStage, given: Rows, exact: bool = False) -> tuple[StageOutput, Rows]:
    """Run one stage.

    Args:
        given: the rows of its upstream.
        exact: whether an approximate recall also makes an exact search, which is not timed.

    Returns:
        The output of the stage and the rows for the next one.
    """
    start, stage, requests = time.perf_counter(), fitted.stage, given.requests
    rows = given.seen_in(given.context)
    keep = None
    if isinstance(fitted, Retriever):
        scored, tracked = fitted.retrieve(rows)
    else:
        scored, tracked, keep = _scored(fitted, rows)
    n = scored.height
    rows_scored = None  # by request, where the stage removes some of them
    if keep is not None:
        rows_scored = _count(scored, requests)
        scored = scored.filter(pl.Series(keep[:n], dtype=pl.Boolean))
    check_scores(stage, scored, given.context)
    check_scores(stage, tracked, given.context)
    slate, tracked, rows_in = rank_rows(scored, tracked, requests, given.context, stage.k)
    if keep is not None:  # a tracked row that would be removed has no place within k
        beyond = pl.max_horizontal(RANK, stage.k + 1)
        rank = pl.when(pl.Series(keep[n:], dtype=pl.Boolean)).then(RANK).otherwise(beyond)
        tracked = tracked.with_columns(rank.cast(pl.Int32).alias(RANK))
    kept = (pl.col(RANK) <= stage.k).alias("kept") & pl.col("wins").is_not_null()
    tracked = tracked.with_columns(kept)
    rows_out = np.minimum(rows_in, stage.k)
    at = None
    if given.slate is not None:
        at = np.concatenate([slate.drop_in_place(PLACE).to_numpy(), np.arange(n, len(given.item))])
    seconds = time.perf_counter() - start - rows.spent
    seconds += sum(took for place, took in rows.read.items() if place not in given.read_before)
    found = fitted.exact(rows) if exact and isinstance(fitted, Retriever) else None
    if rows_scored is not None:
        rows_in = rows_scored
    step = StageOutput(stage, slate, tracked, rows_in, rows_out, seconds, found, rows.read)
    named = [pl.col(SCORE).alias(f"{stage.name}.score"), pl.col(RANK).alias(f"{stage.name}.rank")]
    return step, rows.after(slate.with_columns(named), tracked.with_columns(named), at)


def _scored(
    fitted: FittedStage, rows: Rows
) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray | None]:
    """Run a stage on its candidates and tracked rows.

    Returns:
        The candidates with their scores and positions, the tracked rows with their scores, and
        which of both are kept (None: all).
    """
    stage, slate = fitted.stage, rows.slate
    if slate is None:
        found = "no recall stage before it"
        raise KarmafunnelError(stage.title, needs="candidates to score", found=found)
    check_columns(stage, slate)
    given = fitted.outputs(rows)
    if not isinstance(given, Mapping) or SCORE not in given:
        told = f"{list(given)}" if isinstance(given, Mapping) else f"a {type(given).__name__}"
        raise KarmafunnelError(stage.title, needs=f"outputs with {SCORE!r}", found=told)
    made, sizes = {}, {"n_rows": len(rows.item)}
    for name, values in given.items():
        what = SCORES if name == SCORE else f"of its output {name!r}"
        made[name] = check_array(stage.title, values, sizes, what)
    keep = made.pop("keep", None)
    columns = []
    for name, values in made.items():
        column = name if name == SCORE else f"{stage.name}.{name}"
        columns.append(pl.Series(column, values.astype(np.float32)))
    n = slate.height
    scored = slate.with_columns([*(x[:n] for x in columns), pl.Series(PLACE, np.arange(n))])
    return scored, rows.tracked.with_columns(x[n:] for x in columns), keep


def _count(frame: pl.DataFrame, requests: np.ndarray) -> np.ndarray:
    """The number of rows of each request: int64 (n_requests,)."""
    place = np.searchsorted(requests, frame[REQUEST].to_numpy())
    return np.bincount(place, minlength=len(requests))


def check_columns(stage: Stage, frame: pl.DataFrame) -> None:
    """Raise KarmafunnelError where a column is missing that the stage needs."""
    if missing := [c for c in stage.needs if c not in frame.columns]:
        raise KarmafunnelError(
            stage.title,
            needs=f"columns {missing}",
            found=f"{frame.columns} from its upstream",
        )


def check_scores(stage: Stage, frame: pl.DataFrame, context: Context) -> None:
    """Raise KarmafunnelError naming the first row whose score is not finite."""
    bad = np.flatnonzero(~np.isfinite(frame[SCORE].to_numpy()))
    if len(bad):
        row = frame.row(int(bad[0]), named=True)
        request, item = context.log.request_ids[row[REQUEST]], context.log.item_ids[row[ITEM]]
        found = f"{row[SCORE]} for request {request!r}, item {item!r} ({len(bad)} such rows)"
        raise KarmafunnelError(stage.title, needs="finite scores", found=found)


class Together(Typed):
    """How learned stages of a funnel are trained together, as a value; see `stages/joint.py`."""

    def members(self, stages: Sequence[Stage]) -> range:
        """Places of the stages that are trained together; KarmafunnelError where they cannot be."""
        raise NotImplementedError

    def fit(
        self, context: Context, stages: Sequence[Stage], upstream: FittedFunnel
    ) -> list[FittedStage]:
        """Fit these stages behind `upstream`."""
        raise NotImplementedError

    def load(self, stage: Stage, first: Stage, folder: Path, context: Context) -> FittedStage:
        """One of them from the folder where it was saved; `first` is the first of them."""
        raise NotImplementedError


@dataclass(frozen=True)
class Funnel:
    """Stages chained with `>>`, recall first; several recall channels are one stage, `Join`.

    Attributes:
        train: how its learned stages are trained together; None: each alone, behind those before.
    """

    stages: tuple[Stage, ...]
    train: Together | None = None

    def __post_init__(self) -> None:
        for stage in self.stages:
            for part in (stage, *getattr(stage, "channels", ())):
                if not isinstance(part, Stage):
                    wanted = "stages such as Popular(k=800)"
                    raise KarmafunnelError("funnel", needs=wanted, found=quoted(part))
                needs(part, "k")
                check_name(type(part).__name__, "name", part.name)
        if len(set(self.names)) < len(self.names):
            wanted = "stages of different names"
            hint = "give one a name="
            raise KarmafunnelError("funnel", needs=wanted, found=self.names, hint=hint)

    @property
    def names(self) -> list[str]:
        """The names of the stages."""
        return [stage.name for stage in self.stages]

    def __rshift__(self, other: Stage | Funnel) -> Funnel:
        if not isinstance(other, Funnel):
            return replace(self, stages=(*self.stages, other))
        if self.train and other.train and self.train != other.train:
            found = f"{self.train!r} and {other.train!r}"
            raise KarmafunnelError("funnel", needs="one loss for all stages", found=found)
        return Funnel(self.stages + other.stages, self.train or other.train)

    def __repr__(self) -> str:
        chain = " >> ".join(map(repr, self.stages))
        return chain if self.train is None else f"({chain}).jointly({self.train!r})"

    def jointly(self, train: Together) -> Funnel:
        """The funnel with its learned stages trained together, by a loss of `stages/joint.py` such
        as LCRON().
        """
        if not isinstance(train, Together):
            found = quoted(train)
            raise KarmafunnelError("jointly", needs="a loss such as LCRON()", found=found)
        return replace(self, train=train)

    @property
    def together(self) -> range:
        """Places of the stages that are trained together."""
        return range(0) if self.train is None else self.train.members(self.stages)

    def without(self, *names: str) -> Funnel:
        """The funnel with stages left out by name."""
        return self.replace(**{name: None for name in names})

    def replace(self, **stages: Stage | None) -> Funnel:
        """The funnel with stages replaced (or, by None, left out) by name.

        Raises:
            KarmafunnelError: for a name that no stage has.
        """
        if unknown := sorted(set(stages) - set(self.names)):
            wanted = f"names of its stages, {self.names}"
            hint = meant(unknown[0], self.names)
            raise KarmafunnelError("funnel", needs=wanted, found=unknown, hint=hint)
        kept = [stages.get(stage.name, stage) for stage in self.stages]
        return replace(self, stages=tuple(stage for stage in kept if stage is not None))

    def load(self, i: int, folder: Path, context: Context) -> FittedStage:
        """Stage `i` as a fit has saved it in a folder."""
        stage, together = self.stages[i], self.together
        if self.train is not None and i in together:
            return self.train.load(stage, self.stages[together[0]], folder, context)
        return stage.load(folder, context)

    def fit(self, context: Context, cache: Kept | Path | None = None) -> FittedFunnel:
        """Fit every stage on what its upstream really passes on; fits are kept by content."""
        if not self.stages:
            raise KarmafunnelError("funnel", needs="a recall stage", found="no stage")
        fits = Fits(self, context, Kept.of(cache))
        start = time.perf_counter()
        fitted = fits.upto(len(self.stages))
        total = time.perf_counter() - start
        for what, seconds, why in (
            (
                "blocks",
                fits.in_blocks,
                "stages learn from the end of W1 as well, with fits that did not see it",
            ),
            (
                "out of fold",
                fits.out_of_fold,
                "later stages learn from scores of users whom a model did not see",
            ),
        ):
            if seconds:
                context.progress(
                    f"{what}: {len(seconds)} more fits, {sum(seconds):.1f} s of {total:.1f} s in"
                    f" all, so that {why}"
                )
        fits.blocks.clear()
        return fitted


class Fits:
    """The fits of one funnel: every stage on all users and, where a later stage learns from its
    scores, without each fold of users.

    A model's scores of rows that it was fitted on are better than those of other rows, and a later
    stage that learnt from them would trust them too much (Wolpert 1992, "Stacked generalization",
    Neural Networks 5). So the training rows of a fold pass through models that were fitted without
    that fold. The folds are the same for all stages, so a stage has folds + 1 fits.

    `block` has the same funnel for a block of W1. There, embedders and channels have fits of their
    own; a stage that learns is one model for all blocks, that of the `whole`.
    """

    def __init__(
        self,
        funnel: Funnel,
        context: Context,
        kept: Kept,
        whole: Fits | None = None,
        name: str = "",
    ):
        self.funnel, self.context, self.kept = funnel, context, kept
        self.whole, self.name, self.together = whole, name, funnel.together
        read = (whole.context if whole else context).embeddings
        values = {name: getattr(found, "value", None) for name, found in read.items()}
        self.keys = prefix_keys(funnel, values, context)
        self.ready: dict[str, FittedStage] = {}
        # seconds of the fits without a fold, and of those for blocks before W2a
        self.out_of_fold: list[float] = []
        self.in_blocks: list[float] = [] if whole is None else whole.in_blocks
        self.blocks: dict[int, Fits] = {}

    def block(self, back: int, reads: Sequence[str]) -> Fits:
        """The funnel for a block of W1.

        Args:
            back: as for `as_of_block`, which raises for a log that is too short.
            reads: the embedders that are needed there, which are fitted if they have not been yet.
        """
        if back not in self.blocks:
            most = max(back + 1, *(stage.blocks for stage in self.funnel.stages))
            kept = self.kept.of_block(self.context.log.checksum, back)
            log = kept.indexes.get("log") or as_of_block(self.context.log, back)
            name = f"block {most - back} of {most}"
            context = self.context.in_block(log, kept.indexes, name)
            self.blocks[back] = Fits(self.funnel, context, kept, self, name)
        found = self.blocks[back]
        missing = {}
        for name in sorted(set(reads) - set(found.context.embeddings)):
            missing[name] = self.context.embedding(name, found.name).value
        found.context.embeddings.update(
            fit_embedders(missing, found.context, found.kept, self.in_blocks)
        )
        return found

    def learnt(self, n: int) -> bool:
        """Whether one of the first `n` stages learns from requests that later stages learn from as
        well; recall never does.
        """
        return any(stage.learns for stage in self.funnel.stages[1:n])

    def key(self, i: int, fold: int | None) -> str:
        """The key of the funnel up to stage `i`, fitted without a fold (None: on all users)."""
        if fold is None or not self.learnt(i + 1):
            return self.keys[i]
        return without_fold(self.keys[i], fold)

    def upto(self, n: int, fold: int | None = None) -> FittedFunnel:
        """The first `n` stages, fitted without a fold of users (None: on all)."""
        stages, keys = [], []
        for i in range(n):
            stages.append(self.stage(i, fold))
            keys.append(self.key(i, fold))
        fits = self if fold is None else None
        train = self.funnel.train if n >= self.together.stop else None
        return FittedFunnel(
            self.context, tuple(stages), tuple(keys), fits, passes=self.kept.passes, train=train
        )

    def stage(
        self, i: int, fold: int | None = None, upstream: FittedFunnel | None = None
    ) -> FittedStage:
        """Stage `i`, fitted without a fold of users (None: on all).

        A stage that does not learn is the same for all folds. `upstream` is the fitted funnel
        before it, where the caller has it.
        """
        stage = self.funnel.stages[i]
        fold = fold if self.learns(i) else None
        key = self.key(i, fold)
        if key not in self.ready and self.whole is not None and self.learns(i):
            self.ready[key] = self.whole.stage(i, fold).seen_in(self.context)
        if key not in self.ready:
            self.ready[key] = self._kept(i, key) or self._fit(i, fold, upstream)
            if isinstance(self.ready[key], Retriever) != (i == 0):
                wanted = "one recall stage, the first (`Join` puts channels together)"
                found = f"{stage!r} at place {i + 1}"
                raise KarmafunnelError("funnel", needs=wanted, found=found)
            self.kept.fitted[key] = self.ready[key]
        return self.ready[key]

    def _folder(self, stage: Stage, key: str) -> Path | None:
        return self.kept.folder / stage_folder(stage, key) if self.kept.folder else None

    def _kept(self, i: int, key: str) -> FittedStage | None:
        """A stage that was fitted before, by this process or in the cache; else None."""
        stage = self.funnel.stages[i]
        if key in self.kept.fitted:
            found: FittedStage = self.kept.fitted[key]
            return found
        folder = self._folder(stage, key)
        if folder is None or not intact(folder):
            return None
        self.context.progress(f"{stage.name}: fitted before, from the cache")
        return self.funnel.load(i, folder, self.context)

    def _fit(self, i: int, fold: int | None, upstream: FittedFunnel | None) -> FittedStage:
        """Fit a stage. With the fit on all users come those without a fold that a later stage will
        need, because they learn from the same rows.
        """
        if i in self.together:
            return self._fit_together(i)
        upstream = upstream or (self.upto(i) if i else None)
        fitted = self._fit_one(i, fold, upstream)
        later = self.funnel.stages[i + 1 :]
        if fold is None and self.learns(i) and any(stage.learns for stage in later):
            for one in range(self.context.folds):
                self.stage(i, one, upstream)
        return fitted

    def learns(self, i: int) -> bool:
        """Whether stage `i` itself learns from requests that later stages learn from as well."""
        return i > 0 and self.funnel.stages[i].learns

    def _fit_one(self, i: int, fold: int | None, upstream: FittedFunnel | None) -> FittedStage:
        stage, context = self.funnel.stages[i], self.context
        start = time.perf_counter()
        less = "" if fold is None else f" without fold {fold + 1} of {context.folds}"
        context.progress(f"{stage.name}: {stage.doing} {type(stage).__name__}{less}")
        if upstream is not None and fold is not None:
            upstream = upstream.without(fold)
        fitted = stage.fit(context, upstream)
        if not isinstance(fitted, FittedStage):
            found = f"a {type(fitted).__name__}"
            raise KarmafunnelError(stage.title, needs="fit to return a FittedStage", found=found)
        self._save(fitted, self.key(i, fold), f"{upto(self.funnel, i, self.together)!r}{less}\n")
        seconds = time.perf_counter() - start
        if self.whole is not None:
            self.in_blocks.append(seconds)
        elif fold is not None:
            self.out_of_fold.append(seconds)
        return fitted

    def _fit_together(self, i: int) -> FittedStage:
        """Fit the stages that are trained together; returns stage `i`."""
        train, first = self.funnel.train, self.together.start
        assert train is not None
        stages = self.funnel.stages[first : self.together.stop]
        names = ", ".join(stage.name for stage in stages)
        upstream = self.upto(first)
        self.context.progress(f"{names}: fitting together, {train!r}")
        for place, fitted in enumerate(train.fit(self.context, stages, upstream), start=first):
            key = self.key(place, None)
            self._save(fitted, key, f"{upto(self.funnel, place, self.together)!r}\n")
            self.kept.fitted[key] = self.ready[key] = fitted
        return self.ready[self.key(i, None)]

    def _save(self, fitted: FittedStage, key: str, text: str) -> None:
        """Write a fitted stage into the cache; `text` says what it is."""
        if folder := self._folder(fitted.stage, key):
            with atomic_folder(folder, sealed=True, first=True) as temporary:
                fitted.save(temporary)
                write_text(temporary / "stage.txt", text)


def check_windows(
    stages: Sequence[Stage], context: Context, windows: Sequence[str], doing: str
) -> None:
    """Raise KarmafunnelError where a stage, or an embedder that it reads, was fitted on one of the
    windows.

    Args:
        windows: those to learn from or to score.
        doing: what is to be done, for the error: "learn from" or "score".
    """
    wanted = set(windows)
    if "W2" in wanted:
        wanted = wanted - {"W2"} | {"W2a", "W2b"}
    for stage in stages:
        fitted_on = {}
        for name in stage.embedders():
            embedding = context.embeddings.get(name)
            fitted_on[f"embedder {name!r}"] = getattr(embedding, "fitted_on", ())
        for part in stage.every_part():
            fitted_on[type(part).__name__] = part.counts_in
        for what, known in fitted_on.items():
            if seen := sorted(wanted & set(known)):
                who = f"{stage.title}: cannot {doing} {', '.join(seen)}, on which {what} was fitted"
                outside = f"windows outside {list(known)}"
                raise KarmafunnelError(who, needs=outside, found=f"{list(windows)}")


def check_across_fits(stages: Sequence[Stage], blocks: int) -> None:
    """Raise KarmafunnelError naming the first stage, channel or feature that can be used with one
    fit of an embedder only.
    """
    for stage in stages:
        for part in stage.every_part():
            if why := part.one_fit():
                raise KarmafunnelError(
                    stage.title,
                    what=f"blocks={blocks}",
                    needs="similarities, ranks and counts alone, which several fits have in common",
                    found=why,
                )


def prefix_keys(funnel: Funnel, values: Mapping[str, Any], context: Context) -> list[str]:
    """The keys of a funnel up to each stage: of the code and settings of its stages and of the
    embedders that they read, of the log and of the label.

    Args:
        values: embedders by name.
    """
    keys, together = [], funnel.together
    for i in range(len(funnel.stages)):
        prefix = upto(funnel, i, together)
        names = sorted({name for stage in prefix.stages for name in stage.embedders()})
        embedders = [values.get(name) for name in names]
        read = [f"{name}={value!r}" for name, value in zip(names, embedders, strict=True)]
        code = code_of(*prefix.stages, prefix.train, *embedders, by=(__name__,))
        log = context.log.checksum, context.label
        member = [i] if i in together else []
        key = content_key(code, repr(prefix), read, *log, *context.circumstances, *member)
        keys.append(key)
    return keys


def upto(funnel: Funnel, i: int, together: range) -> Funnel:
    """What the fit of stage `i` depends on: the stages up to it, and all of those that it is
    trained together with.
    """
    if not together or i < together.start:
        return Funnel(funnel.stages[: i + 1])
    return replace(funnel, stages=funnel.stages[: max(i + 1, together.stop)])


def without_fold(key: str, fold: int) -> str:
    """The key of a funnel that was fitted without a fold of users."""
    return f"{key}.{fold}"


def stage_folder(stage: Stage, key: str) -> str:
    """The name of the cache folder of a fitted stage."""
    return f"{stage.name}-{key}"


def embedder_folder(value: Embedder, context: Context) -> str:
    """The name of the cache folder of a fitted embedder."""
    code, log = code_of(value), context.log.checksum
    return f"embedder-{content_key(code, repr(value), log, *context.circumstances)}"


def fit_embedders(
    embedders: Mapping[str, Embedder],
    context: Context,
    cache: Kept | Path | None = None,
    seconds: list[float] | None = None,
) -> dict[str, Embedding]:
    """Fit the embedders on W1; fits are kept by content.

    Args:
        seconds: receives the seconds of each fit that was not kept.
    """
    kept, fitted = Kept.of(cache), {}
    for name, value in embedders.items():
        key = embedder_folder(value, context)
        if key not in kept.fitted:
            start = time.perf_counter()
            kept.fitted[key], was_kept = _fit_embedder(name, value, key, context, kept)
            if seconds is not None and not was_kept:
                seconds.append(time.perf_counter() - start)
        fitted[name] = kept.fitted[key]
    return fitted


def _fit_embedder(
    name: str, value: Embedder, key: str, context: Context, kept: Kept
) -> tuple[Embedding, bool]:
    """Load an embedder from the cache, or fit it and write it there; whether it was loaded."""
    folder = kept.folder / key if kept.folder else None
    log = context.log
    if folder and intact(folder):
        context.progress(f"embedder {name}: fitted before, from the cache")
        return value.load(folder, log), True
    context.progress(f"embedder {name}: fitting {value!r}")
    size = 12.0 * log.n_items * getattr(value, "dim", 1)
    check_fits(f"embedder {name}", {f"vectors of {log.n_items:,} items": size})

    def progress(text: str) -> None:
        (context.progress if isinstance(text, Lasting) else context.detail)(text)

    start = time.perf_counter()
    fitted = value.fit(
        log,
        seed=context.seed,
        progress=progress,
        device=context.device,
        cache=kept.folder,
    )
    if not isinstance(fitted, Embedding):
        title, found = f"embedder {name} ({type(value).__name__})", f"a {type(fitted).__name__}"
        raise KarmafunnelError(title, needs="fit to return an Embedding", found=found)
    fitted.facts.setdefault("seconds", round(time.perf_counter() - start, 1))
    if folder:
        with atomic_folder(folder, sealed=True, first=True) as temporary:
            fitted.write_into(temporary)
    return fitted, False


@dataclass(frozen=True)
class FittedFunnel:
    """A funnel that is ready to run.

    Attributes:
        keys: of the funnel up to each stage; without them nothing is shared with other funnels.
        fits: the fits that it belongs to; without them no stage can learn from it.
        left_out: the fold of users whose requests are not learnt from.
        tables: training rows, shared by all fits of a stage.
        passes: what its stages pass on of chunks to learn from, shared with other funnels.
        train: how learned stages of it were trained together.
    """

    context: Context
    stages: tuple[FittedStage, ...]
    keys: tuple[str, ...] = ()
    fits: Fits | None = field(default=None, repr=False, compare=False)
    left_out: int | None = None
    tables: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    passes: Passes = field(default_factory=Passes, repr=False, compare=False)
    train: Together | None = None

    @property
    def funnel(self) -> Funnel:
        """The funnel that was fitted."""
        return Funnel(tuple(ready.stage for ready in self.stages), self.train)

    def without(self, fold: int | None) -> FittedFunnel:
        """The same funnel, to learn from without a fold of users (None: from all)."""
        return replace(self, left_out=fold)

    def out_of_fold(self, requests: np.ndarray) -> list[tuple[FittedFunnel, np.ndarray]]:
        """The requests to learn from, fold by fold, each with a funnel that was fitted without its
        users.

        Raises:
            KarmafunnelError: where a stage has learnt and its fits without a fold are unknown.
        """
        fold = self.context.fold[requests]
        learnt = any(ready.stage.learns for ready in self.stages[1:])
        if learnt and self.fits is None:
            raise KarmafunnelError(
                "funnel",
                what=f"to learn behind {self.stages[-1].stage.name} it",
                needs="to be fitted by Funnel.fit",
                found="one put together by hand",
            )
        found = []
        for k in range(self.context.folds):
            mine = requests[fold == k]
            if k != self.left_out and len(mine):
                funnel = self.fits.upto(len(self.stages), k) if learnt and self.fits else self
                found.append((funnel, mine))
        return found

    def in_block(self, back: int, stage: Stage) -> tuple[str, FittedFunnel]:
        """The name of a block of W1 and this funnel as of it, for a stage to learn from; `back` and
        what is raised as for `Fits.block`.
        """
        if self.fits is None:
            needs, found = (
                "to be fitted by Funnel.fit to learn from blocks",
                "one put together by hand",
            )
            raise KarmafunnelError("funnel", needs=needs, found=found)
        reads = [name for each in (*self.funnel.stages, stage) for name in each.embedders()]
        fits = self.fits.block(back, reads)
        return fits.name, replace(fits.upto(len(self.stages)), left_out=self.left_out)

    def taught_by(self, stage: Stage, fold: int) -> FittedStage:
        """A teacher for a stage that learns behind this funnel, fitted here without a fold of
        users.
        """
        if self.fits is None:
            return stage.fit(self.context, self.without(fold))
        fits = Fits(self.funnel >> stage, self.context, self.fits.kept)
        fits.ready, fits.out_of_fold = self.fits.ready, self.fits.out_of_fold
        fits.in_blocks = self.fits.in_blocks
        return fits.stage(len(self.stages), fold, upstream=replace(self, left_out=None))

    def run(
        self, requests: np.ndarray, tracked: pl.DataFrame | None = None, exact: bool = False
    ) -> list[StageOutput]:
        """Pass a chunk of requests through every stage.

        Args:
            requests: row numbers, ascending.
            tracked: rows (request, item, truth) that every stage scores and gives the rank that
                they have or would have; they are never passed on.
            exact: whether an approximate recall also makes an exact search.
        """
        rows = Rows.start(self.context, requests, tracked)
        return [step for _, step in self._through(rows, exact)]

    def _through(self, rows: Rows, exact: bool = False) -> Iterator[tuple[Rows, StageOutput]]:
        """The rows that each stage is given, and its output."""
        for fitted in self.stages:
            given = rows
            step, rows = advance(fitted, given, exact)
            yield given, step

    def pass_on(self, requests: np.ndarray, tracked: pl.DataFrame) -> Rows:
        """The rows for the stage after this funnel, of a chunk to learn from.

        What each stage passes on is kept for other funnels that begin with the same stages.
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
        """Why items are where they are, one row a (stage, item).

        Args:
            item_id: the item; by default the relevant items and the `top` of the last stage.

        Returns:
            Columns stage, item_id, title, rank, of (rows scored), kept, score, needed (the score of
            the last item that was kept), channel and why.

        Raises:
            KarmafunnelError: for an unknown id.
        """
        log = self.context.log
        request = _row_number(log.request_ids, request_id, "request")
        requests = np.array([request])
        if item_id:
            wanted = np.array([_row_number(log.item_ids, item_id, "item")])
        else:
            best = self.run(requests)[-1].slate.sort(RANK).head(top)[ITEM].to_numpy()
            truth = self.context.truth.filter(pl.col(REQUEST) == request)[ITEM].to_numpy()
            wanted = np.unique(np.concatenate([truth, best]))
        tracked = pl.DataFrame(
            {REQUEST: np.full(len(wanted), request), ITEM: wanted.astype(np.int32), "truth": False}
        )
        table = []
        channels = self.stages[0].channels  # type: ignore[attr-defined]
        title_of = {f"channel{bit}": f"found by {name}" for bit, name in enumerate(channels)}
        through = self._through(Rows.start(self.context, requests, tracked))
        for fitted, (rows, step) in zip(self.stages, through, strict=True):
            needed = step.slate[SCORE].min() if step.slate.height >= step.stage.k else None
            if rows.slate is None:  # recall has no candidates before it
                rows = Rows(self.context, None, step.tracked, requests, rows)
            # ranks and z-scores are among the candidates, so these are explained as well
            whys = fitted.why(rows)[len(rows.item) - step.tracked.height :]
            for row, why in zip(step.tracked.iter_rows(named=True), whys, strict=True):
                bits = row[CHANNEL]
                names = [name for bit, name in enumerate(channels) if bits >> bit & 1]
                why = re.sub(r"\bchannel\d(?==)", lambda m: title_of.get(m[0], m[0]), why)
                table.append(
                    {
                        "stage": step.stage.name,
                        "item_id": log.item_ids[row[ITEM]],
                        "title": log.items["title"][row[ITEM]],
                        "rank": row[RANK],
                        "of": int(step.rows_in[0]),
                        "kept": row["kept"],
                        "score": row[SCORE],
                        "needed": needed,
                        "channel": "+".join(names),
                        "why": why,
                    }
                )
        return pl.DataFrame(table, infer_schema_length=None)


def _row_number(ids: np.ndarray, wanted: str | None, what: str) -> int:
    at = np.flatnonzero(ids == wanted)
    if len(at) == 0:
        known = f"{what} ids of the log, such as {ids[0]!r}"
        raise KarmafunnelError("explain", needs=known, found=repr(wanted))
    return int(at[0])
