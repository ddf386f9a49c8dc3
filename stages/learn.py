"""What stage models learn from: the candidates that their upstream really passes on, exposed or
not, never exposures alone; a teacher's scores; positions. The models are in `learner.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import polars as pl
from scipy.special import expit

from ..bounds import Bound, check_bound, check_switch, needs, several
from ..errors import KarmafunnelError, quoted
from ..log import rows_of
from ..models import examination
from ..typed import Typed
from .blocks import MOST
from .calibration import (
    Calibrated,
    Calibration,
    fit_calibration,
    load_calibration,
    probabilities,
    save_calibration,
)
from .context import Context
from .features import check, compute
from .frame import (
    ITEM,
    PLACE,
    RANK,
    REQUEST,
    SCORE,
    group_rows,
    order,
    pair_key,
    position_in_group,
    spaced,
)
from .ranking import rank_rows
from .rows import Feature, Rows
from .stage import FittedFunnel, FittedStage, Stage, check_across_fits, check_windows

CHUNK = 256  # requests at a time


@dataclass(frozen=True, repr=False)
class Sample(Typed):
    """Which rows a stage model learns from: relevant items that its upstream passes on, and three
    kinds of negatives.

    All rows have the same weight. Relevant items that the upstream missed are left out: "not
    recalled" would then predict "bought".

    Args:
        exposed: whether exposed candidates that were not chosen are negatives: hard ones, and all
            that a model of the shown list itself needs.
        passed: number of random negatives of a request among its other candidates, most of which
            the stage will have to reject.
        random: number of random negatives of a request among all eligible items: easy ones, from
            which a pre-ranker learns what recall knows already.
        requests: at most this number of requests in all, evenly spaced in time.
        windows: to learn from: W2a, or W1 as well where no feature reads a vector that was fitted
            on W1. W2b is for early stopping and calibration, W3 for the test.
        blocks: to learn from W2a and from the end of W1 as well: so many parts as long as W2a, at
            most 3 with W2a. For each of them embedders and channels are fitted again on what lies
            before it (`stages/blocks.py`). Validation and calibration stay on W2b, with the fits
            that serve.
    """

    exposed: bool = True
    passed: int = 50
    random: int = 0
    requests: int = 3000
    windows: tuple[str, ...] = ("W2a",)
    blocks: int = 1

    def __post_init__(self) -> None:
        check_switch("Sample", exposed=self.exposed)
        needs(self, "passed", "random", "requests", blocks=(1, MOST))
        given = self.windows if isinstance(self.windows, tuple) else ()
        if not given or set(given) - {"W1", "W2a"} or len(set(given)) < len(given):
            wanted = "a tuple of 'W1' and 'W2a'"
            found = repr(self.windows)
            raise KarmafunnelError("Sample", what="windows", needs=wanted, found=found)
        if self.blocks > 1 and self.windows != ("W2a",):
            wanted = "windows=('W2a',), to which blocks adds the end of W1"
            found = repr(self.windows)
            raise KarmafunnelError("Sample", what="blocks", needs=wanted, found=found)
        if not (self.exposed or self.passed or self.random):
            wanted = "negatives: exposed=True, passed or random above 0"
            raise KarmafunnelError("Sample", needs=wanted, found=f"none of them in {self!r}")


def sampled(
    context: Context,
    upstream: FittedFunnel,
    requests: np.ndarray,
    sample: Sample,
    seed: int,
    missed: bool = False,
) -> Iterator[tuple[Rows, np.ndarray]]:
    """Candidates to learn from, fold by fold, each passed on by an upstream that was fitted without
    its users.

    Args:
        seed: of the random negatives.
        missed: whether logged rows count wherever they are eligible, not only where the upstream
            passes them on.

    Yields:
        Chunks of rows, whose frame has a column `truth`, and the numbers of those to learn from.
    """
    rng = np.random.default_rng([context.seed, seed])
    for funnel, part in upstream.out_of_fold(requests):
        for start in range(0, len(part), CHUNK):
            yield rows_to_learn(context, funnel, part[start : start + CHUNK], sample, rng, missed)


def rows_to_learn(
    context: Context,
    upstream: FittedFunnel,
    chunk: np.ndarray,
    sample: Sample,
    rng: np.random.Generator,
    missed: bool,
) -> tuple[Rows, np.ndarray]:
    """One chunk of `sampled`."""
    asof, n_items = context.log.asof, context.log.n_items
    tracked = context.logged(chunk, sample.exposed).with_columns(pl.lit(False).alias("drawn"))
    if sample.random:
        drawn = _random_items(context, chunk, sample.random, rng)
        tracked = pl.concat([tracked, drawn])
        tracked = tracked.unique([REQUEST, ITEM], keep="first", maintain_order=True)
    passed = upstream.pass_on(chunk, tracked)
    slate, tracked = passed.slate, passed.tracked
    assert slate is not None
    usable = pl.col("kept") | pl.col("drawn")
    if missed:
        eligible = asof.is_eligible(tracked[REQUEST].to_numpy(), tracked[ITEM].to_numpy())
        usable |= pl.Series(eligible, dtype=pl.Boolean)
    tracked = tracked.filter(usable)
    slate = slate.with_columns(pl.lit(False).alias("truth"))
    rows = Rows(context, slate, tracked, chunk, passed)
    key = pair_key(rows.request, rows.item, n_items)
    n = slate.height
    draw = rng.random(n)
    is_tracked = np.isin(key[:n], key[n:])  # they are among the tracked rows already
    draw[is_tracked] = 2.0
    place = np.lexsort((draw, rows.request[:n]))
    first = position_in_group(rows.request[place]) < sample.passed
    chosen = place[first & ~is_tracked[place]]
    chosen = np.concatenate([chosen, np.arange(n, len(rows.item))])
    # In the order of their hash within a request: logged lists have the best item first, and a
    # learner that breaks ties by the order of rows would learn from that.
    request, item = rows.request[chosen], rows.item[chosen]
    return rows, chosen[np.lexsort((context.tie(request, item), request))]


def _random_items(
    context: Context, requests: np.ndarray, n: int, rng: np.random.Generator
) -> pl.DataFrame:
    """`n` random eligible items of each request, as tracked rows that are `drawn`."""
    items, sizes = [], []
    for eligible in context.log.asof.eligible(requests):
        if len(eligible):
            eligible = eligible[rng.integers(0, len(eligible), n)]
        items.append(eligible)
        sizes.append(len(eligible))
    request = np.repeat(requests, sizes)
    drawn = pl.DataFrame({REQUEST: request, ITEM: np.concatenate(items).astype(np.int32)})
    return drawn.with_columns(pl.lit(False).alias("truth"), pl.lit(True).alias("drawn"))


@dataclass
class TrainingRows:
    """Rows to learn from, ascending by request.

    Attributes:
        x: features, float32 (n, n_columns).
        y: labels, bool (n,).
        request, item: row numbers, (n,).
        taught: the scores of a teacher, on its own scale, (n,); None without one.
        taught_rank: the ranks that the teacher gives the rows among all candidates of their
            requests, not only those to learn from: int32 (n,); None without one.
    """

    x: np.ndarray
    y: np.ndarray
    request: np.ndarray
    item: np.ndarray
    taught: np.ndarray | None = None
    taught_rank: np.ndarray | None = None

    def __getitem__(self, rows: np.ndarray) -> TrainingRows:
        taught, rank = (
            None if told is None else told[rows] for told in (self.taught, self.taught_rank)
        )
        x, y, request, item = (own[rows] for own in (self.x, self.y, self.request, self.item))
        return TrainingRows(x, y, request, item, taught, rank)

    @property
    def group_sizes(self) -> np.ndarray:
        return np.unique(self.request, return_counts=True)[1]


def training_rows(
    stage: Stage,
    features: Sequence[Feature],
    context: Context,
    upstream: FittedFunnel | None,
    windows: Sequence[str],
    sample: Sample,
    teacher: Teachers | None = None,
) -> TrainingRows:
    """The rows of some windows that a stage learns from.

    Requests without a relevant item or without a negative are left out. The rows are computed once
    for all fits of the stage; a fit without a fold of users takes those of the other folds. Rows of
    W2a are those of all of the sample's blocks.

    Raises:
        KarmafunnelError: where there are none, where a vector that the stage or its upstream reads
            was fitted on a window to learn from, and for a block that is too short.
    """
    if upstream is None:
        raise KarmafunnelError(stage.title, needs="a stage before it to learn from", found="none")
    check(features, context, stage.name)
    check_windows((*upstream.funnel.stages, stage), context, windows, "learn from")
    key = repr((features, windows, sample, teacher and teacher.teacher, context.label))
    if key not in upstream.tables:
        whole = upstream.without(None)
        upstream.tables[key] = every_row(stage, features, context, whole, windows, sample, teacher)
    table: TrainingRows = upstream.tables[key]
    if upstream.left_out is not None:
        table = table[context.fold[table.request] != upstream.left_out]
    both = with_both(table.request, table.y)
    if not both.any():
        less = "" if upstream.left_out is None else " outside one fold of users"
        requests = len(np.unique(table.request))
        raise KarmafunnelError(
            stage.title,
            needs=(
                f"requests of {list(windows)} with truth and negatives among what its upstream "
                "passes"
            ),
            found=f"none in {requests} requests with truth{less}, by {sample!r}",
        )
    return table[both]


def with_both(request: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which rows are of a request with rows of both labels: bool (n_rows,)."""
    _, group = np.unique(request, return_inverse=True)
    positives, n = np.bincount(group, y), np.bincount(group)
    return ((positives > 0) & (positives < n))[group] if len(group) else np.zeros(0, bool)


@dataclass(frozen=True)
class Part:
    """What is learnt from at one time: W2a (or another window), or a block of W1.

    Attributes:
        name: of a block, for errors; empty for a window.
        context: as of the part.
        upstream: fitted as of the part.
        requests: row numbers, ascending.
    """

    name: str
    context: Context
    upstream: FittedFunnel
    requests: np.ndarray


def parts_to_learn(
    stage: Stage,
    context: Context,
    upstream: FittedFunnel,
    windows: Sequence[str],
    sample: Sample,
) -> list[Part]:
    """The blocks of a sample, the earliest first, and the windows themselves, with all requests
    that have a relevant item.

    Raises:
        KarmafunnelError: for several blocks with a stage or feature that has one fit only, and for
            a block without requests to learn from in each fold of users.
    """
    with_truth = np.unique(context.truth[REQUEST].to_numpy())
    requests = context.log.requests_in(*windows)
    last = Part("", context, upstream, requests[np.isin(requests, with_truth)])
    if sample.blocks == 1 or "W2a" not in windows:
        return [last]
    stages = *upstream.funnel.stages, stage
    check_across_fits(stages, sample.blocks)
    parts = []
    for back in range(sample.blocks - 1, 0, -1):
        name, funnel = upstream.in_block(back, stage)
        there = replace(
            context,
            log=funnel.context.log,
            embeddings=funnel.context.embeddings,
            indexes=funnel.context.indexes,
        )
        check_windows(stages, there, windows, "learn from")
        served = there.log.requests_in(*windows)
        requests = served[np.isin(served, with_truth)]
        folds = len(np.unique(context.fold[requests]))
        if folds < context.folds:
            found = f"{len(requests):,}, of {folds}, in {len(served):,} requests"
            raise KarmafunnelError(
                f"{stage.title}: {name}",
                needs=f"requests with truth of users of all {context.folds} folds",
                found=found,
                hint="use fewer blocks",
            )
        parts.append(Part(name, there, funnel, requests))
    return [*parts, last]


def every_row(
    stage: Stage,
    features: Sequence[Feature],
    context: Context,
    upstream: FittedFunnel,
    windows: Sequence[str],
    sample: Sample,
    teacher: Teachers | None,
) -> TrainingRows:
    """The rows to learn from of all folds, ascending by request."""
    parts = parts_to_learn(stage, context, upstream, windows, sample)
    drawn = spaced(np.concatenate([part.requests for part in parts]), sample.requests)
    width = sum(len(feature.columns) for feature in features)
    # empty arrays first: there may be no chunk
    x, y = [np.empty((0, width), np.float32)], [np.empty(0, bool)]
    request, item = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    taught, taught_rank = [np.empty(0, np.float32)], [np.empty(0, np.int32)]
    seed = int("W2b" in windows)
    for part in parts:
        mine, n = drawn[np.isin(drawn, part.requests)], len(y)
        for rows, chosen in sampled(part.context, part.upstream, mine, sample, seed):
            x.append(compute(features, rows)[chosen])
            y.append(rows.frame["truth"].to_numpy()[chosen])
            request.append(rows.request[chosen])
            item.append(rows.item[chosen])
            if teacher is not None:
                score = teacher.score(rows)
                taught.append(score[chosen])
                taught_rank.append(ranks_of(rows, score)[chosen])
        if part.name and not with_both(np.concatenate(request[n:]), np.concatenate(y[n:])).any():
            needs = "requests with truth and negatives among what its upstream passes"
            found = f"none in {len(mine):,} requests with truth, by {sample!r}"
            raise KarmafunnelError(f"{stage.title}: {part.name}", needs=needs, found=found)
    order = np.argsort(np.concatenate(request), kind="stable")
    return TrainingRows(
        in_order(x, order),
        in_order(y, order),
        in_order(request, order),
        in_order(item, order),
        None if teacher is None else in_order(taught, order),
        None if teacher is None else in_order(taught_rank, order),
    )


def in_order(parts: list[np.ndarray], order: np.ndarray) -> np.ndarray:
    """All parts as one array in an order: (n_rows, ...).

    The list is emptied meanwhile, so that large parts are not held twice.
    """
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    out, start = np.empty((len(order), *parts[0].shape[1:]), parts[0].dtype), 0
    while parts:
        part = parts.pop(0)
        out[place[start : start + len(part)]] = part
        start += len(part)
    return out


# -- fitted models ---------------------------------------------------------------------------------


def shown_in_w2b(
    context: Context, upstream: FittedFunnel, most: int
) -> Iterator[tuple[Rows, np.ndarray]]:
    """What was shown in W2b, as chunks of `sampled`; all candidates, where the log has no lists."""
    requests = spaced(context.log.requests_in("W2b"), most)
    sample = Sample(passed=0 if context.log.has("exposures") else 10**6)
    yield from sampled(context, upstream, requests, sample, seed=2, missed=True)


class Learned(FittedStage):
    """A fitted model whose scores may be calibrated; the base of boosted trees and networks."""

    calibration: Calibration | None = None

    def log_odds(self, score: np.ndarray) -> np.ndarray:
        """Scores on an unbounded scale, which calibration and students read: (n_rows,)."""
        return score

    def calibrate(self, kind: Calibrated, upstream: FittedFunnel | None, most: int) -> None:
        """Fit score -> probability on at most `most` requests of W2b; nothing for the kind "" and
        without an upstream.
        """
        if kind and upstream is not None:
            self._calibrate(kind, upstream, most)

    def _calibrate(self, kind: Calibrated, upstream: FittedFunnel, most: int) -> None:
        scores, labels = [], []
        for rows, chosen in shown_in_w2b(self.context, upstream, most):
            scores.append(np.asarray(self.score(rows))[chosen])
            labels.append(rows.frame["truth"].to_numpy()[chosen])
        score = self.log_odds(np.concatenate(scores))
        label = np.concatenate(labels)
        self.calibration = fit_calibration(kind, score, label, self.stage.title)

    def probability(self, score: np.ndarray) -> np.ndarray | None:
        return None if self.calibration is None else self.calibration(self.log_odds(score))

    def save(self, folder: Path) -> None:
        if self.calibration is not None:
            save_calibration(self.calibration, folder / "calibration.json")

    def read_calibration(self, kind: Calibrated, folder: Path) -> None:
        """Read what `calibrate` fitted and `save` wrote; nothing for the kind ""."""
        if kind:
            self._read_calibration(folder)

    def _read_calibration(self, folder: Path) -> None:
        self.calibration = load_calibration(folder / "calibration.json")


# -- distillation ----------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Teacher(Typed):
    """A stage from whose scores another one learns, as well as from the labels of the log (Hinton
    et al. 2015, arXiv 1503.02531).

    The teacher is fitted on the student's own upstream and scores every row that the student learns
    from, shown or not. It has one fit for each fold of users, without that fold, which scores the
    rows of the fold: on rows that it was fitted on it would be too confident. It is not needed for
    serving.

    The target of a student with the loss "listwise" is a distribution over the rows of the request,
    with softmax(score / temperature) as the teacher's part; with "bce" or "binary" it is the
    teacher's probability (trees then learn by cross entropy); with "lambdarank" grades 0..GRADES by
    the teacher's rank among these rows, as 1 / log2(1 + rank).

    That is what the teacher puts at the top. `cut` mixes in what it would pass on: whether a row's
    rank among all candidates of the request is at most `stage.k`. The target of a row is

        (1 - weight) * label + weight * ((1 - cut) * top + cut * (rank <= stage.k))

    where "listwise" divides the rows within the cut by their number; without any among the rows to
    learn from, such a request has `top` alone as its target. A pre-ranker is to find the set that
    the ranker wants, more than its order (Zhang et al. 2023, arXiv 2305.13647), and to agree with
    it where the two would otherwise swap rows: pairs with the weight of their difference in nDCG,
    as "lambdarank" has them (COPR, Zhao et al. 2023, arXiv 2306.03516, whose pairs are of different
    chunks of the teacher's order; here they are of the rows of `Sample`).

    Args:
        weight: the teacher's part of the target; 1 for no labels at all.
        cut: the part of that which is about the teacher's cut; 1 for nothing else. A teacher needs
            no probabilities then.
    """

    stage: Stage = field(metadata={"positional": True, "always": True})
    weight: float = 0.5
    temperature: float = 1.0
    cut: float = 0.0

    GRADES: ClassVar[int] = 5

    def __post_init__(self) -> None:
        if not isinstance(self.stage, Stage) or not self.stage.teaches:
            wanted = "a learnt stage: boosted trees, a network, or a blend of them"
            raise KarmafunnelError("Teacher", needs=wanted, found=quoted(self.stage))
        needs(self, "temperature", weight=(0.0, 1.0), cut=(0.0, 1.0))

    def mixed(self, label: np.ndarray, top: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """The target of each row: float32 (n_rows,).

        Args:
            top: by what the teacher puts at the top, (n_rows,).
            inside: by what it would pass on, (n_rows,).
        """
        taught = (1 - self.cut) * top + self.cut * inside
        return ((1 - self.weight) * label + self.weight * taught).astype(np.float32)

    def inside(self, table: TrainingRows) -> np.ndarray:
        """1 for the rows that the teacher would pass on, 0 for others: float64 (n_rows,)."""
        assert table.taught_rank is not None
        return (table.taught_rank <= self.stage.k).astype(np.float64)

    def shares(self, table: TrainingRows, fitted: Teachers) -> np.ndarray:
        """A distribution over the rows of each request: equal shares of its positives, mixed with
        the teacher's softmax.
        """
        assert table.taught is not None
        sizes = table.group_sizes
        starts = np.cumsum(sizes) - sizes
        z = fitted.log_odds(table) / self.temperature
        e = np.exp(z - np.repeat(np.maximum.reduceat(z, starts), sizes))
        y = table.y.astype(np.float64)
        e = e / np.repeat(np.add.reduceat(e, starts), sizes)
        y = y / np.repeat(np.add.reduceat(y, starts), sizes)
        inside = self.inside(table)
        n_inside = np.repeat(np.add.reduceat(inside, starts), sizes)
        inside = np.where(n_inside > 0, inside / np.maximum(n_inside, 1), e)
        return self.mixed(y, e, inside)

    def chances(self, table: TrainingRows, fitted: Teachers) -> np.ndarray:
        """The probability of the label; raises KarmafunnelError where the teacher has none and
        needs one.
        """
        inside = self.inside(table)
        if self.cut == 1:
            return self.mixed(table.y, inside, inside)
        p = fitted.probability(table)
        loss = getattr(self.stage, "loss", getattr(self.stage, "objective", ""))
        if p is None and loss in ("bce", "binary"):
            p = expit(fitted.log_odds(table))
        if p is None:
            found, hint = f"none of {self.stage!r}", "set calibrated= of it, or use another loss"
            raise KarmafunnelError("Teacher", needs="probabilities", found=found, hint=hint)
        return self.mixed(table.y, probabilities(p, f"Teacher: {self.stage!r}"), inside)

    def grades(self, table: TrainingRows) -> np.ndarray:
        """Grades of the rows, 0..GRADES, by the teacher's rank; ties share the better rank."""
        assert table.taught is not None
        _, group = group_rows(table.request)
        sequence = order(group, table.taught, np.zeros(len(group), np.uint64))
        starts = (np.cumsum(table.group_sizes) - table.group_sizes)[group]
        rank = np.empty(len(group))
        rank[sequence] = np.arange(len(group)) - starts[sequence] + 1
        pair = np.stack([group.astype(np.float64), table.taught.astype(np.float64)], axis=1)
        _, tied = np.unique(pair, axis=0, return_inverse=True)
        best = np.full(len(group), np.inf)
        np.minimum.at(best, tied.ravel(), rank)
        top = 1 / np.log2(1 + best[tied.ravel()])
        return np.round(self.GRADES * self.mixed(table.y, top, self.inside(table)))


@dataclass(frozen=True, eq=False)
class Teachers:
    """The fits of one teacher, one for each fold of users: rows of a fold are scored by the fit
    without it.
    """

    teacher: Teacher
    context: Context
    without: tuple[Learned, ...]  # by fold

    @classmethod
    def of(
        cls, teacher: Teacher | None, context: Context, upstream: FittedFunnel | None
    ) -> Teachers | None:
        """Fit the teacher on the student's upstream; None where there is no teacher."""
        if teacher is None or upstream is None:
            return None
        stage = cast(Stage, replace(cast(Any, teacher.stage), name="teacher"))
        fits = []
        for fold in range(context.folds):
            fits.append(cast(Learned, upstream.taught_by(stage, fold)))
        return cls(teacher, context, tuple(fits))

    def by_fold(
        self, request: np.ndarray, ask: Callable[[Learned, np.ndarray], np.ndarray | None]
    ) -> np.ndarray | None:
        """The answers of `ask` for all rows, (n_rows,); None where one of them is.

        Args:
            request: of each row, (n_rows,).
            ask: called with the fit without a fold and the rows of that fold, (n_rows,) bool.
        """
        fold, answers = self.context.fold[request], np.zeros(len(request))
        for k, fitted in enumerate(self.without):
            mine = fold == k
            if mine.any():
                answer = ask(fitted, mine)
                if answer is None:
                    return None
                answers[mine] = answer
        return answers

    def score(self, rows: Rows) -> np.ndarray:
        """Scores of the rows of whole requests: float32 (n_rows,)."""

        def ask(fitted: Learned, mine: np.ndarray) -> np.ndarray:
            return fitted.score(rows.only(mine))

        return np.asarray(self.by_fold(rows.request, ask), dtype=np.float32)

    def log_odds(self, table: TrainingRows) -> np.ndarray:
        """The scores of a table's rows on an unbounded scale: float64 (n_rows,)."""
        taught = self._taught(table)

        def ask(fitted: Learned, mine: np.ndarray) -> np.ndarray:
            return fitted.log_odds(taught[mine])

        return np.asarray(self.by_fold(table.request, ask))

    def probability(self, table: TrainingRows) -> np.ndarray | None:
        """The scores of a table's rows as probabilities of the label, if they are calibrated."""
        taught = self._taught(table)

        def ask(fitted: Learned, mine: np.ndarray) -> np.ndarray | None:
            return fitted.probability(taught[mine])

        return self.by_fold(table.request, ask)

    def _taught(self, table: TrainingRows) -> np.ndarray:
        assert table.taught is not None
        return table.taught.astype(np.float64)


def ranks_of(rows: Rows, score: np.ndarray) -> np.ndarray:
    """The rank of each row among the candidates of its request, which it has or would have: int32
    (n_rows,).
    """
    assert rows.slate is not None
    n = rows.slate.height
    slate = rows.slate.select(REQUEST, ITEM, pl.Series(SCORE, score[:n]))
    tracked = rows.tracked.select(REQUEST, ITEM, "truth", pl.Series(SCORE, score[n:]))
    slate = slate.with_row_index(PLACE)
    ranked, tracked, _ = rank_rows(slate, tracked, rows.requests, rows.context)
    rank = np.empty(len(score), dtype=np.int32)
    rank[ranked[PLACE].to_numpy()] = ranked[RANK].to_numpy()
    rank[n:] = tracked[RANK].to_numpy()
    return rank


# -- positions -------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class PositionBias(Typed):
    """How a stage that learns from shown lists allows for where their items stood: a low place was
    looked at less often, so that its click says more and its missing click less.

    A position enters training as a weight or as an offset, and is never known when the stage
    serves. A candidate that was not shown counts as one at position 1.

    Args:
        use: "offset" adds the logarithm of the propensity to the score while it is fitted (the
            position-based model where clicks are rare, else an approximation of it; additive two
            towers, Yan et al. 2022, SIGIR); "weight" counts a relevant row 1 / propensity times
            (inverse propensity weighting, Joachims et al. 2017, arXiv 1608.04468).
        propensities: of positions 1, 2, ..., deeper ones being as the last; () to estimate them
            from the rows to learn from, see `models.examination.propensities`.
        most: a weight at most.
    """

    use: Literal["offset", "weight"] = "offset"
    propensities: Sequence[float] = ()
    most: float = 10.0

    def __post_init__(self) -> None:
        if self.use not in ("offset", "weight"):
            wanted = "'offset' or 'weight'"
            raise KarmafunnelError("PositionBias", what="use", needs=wanted, found=repr(self.use))
        wanted = "numbers above 0 and at most 1, of positions 1, 2, ..."
        given = several("PositionBias", "propensities", self.propensities, wanted)
        object.__setattr__(self, "propensities", given)
        for value in self.propensities:
            check_bound("PositionBias", Bound(0.0, 1.0, above=True), propensities=value)
        check_bound("PositionBias", Bound(1.0, 1e6), most=self.most)

    def curve(self, who: str, context: Context, table: TrainingRows) -> np.ndarray:
        """The propensities of positions 1, 2, ...: float64 (n_positions,).

        Raises:
            KarmafunnelError: naming `who`, where no row to learn from was shown at a known
                position, and where there are too few clicks to estimate from, or nothing else.
        """
        position = shown_at(context, table.request, table.item)
        shown = position > 0
        if not shown.any():
            wanted = "rows to learn from that were shown at a known position"
            found = f"none of {len(position):,} in log {context.log.name}"
            raise KarmafunnelError(f"{who}: {self!r}", needs=wanted, found=found)
        if self.propensities:
            return np.array(self.propensities, dtype=np.float64)
        x, y = table.x[shown], table.y[shown]
        return examination.propensities(position[shown], x, y, context.seed, f"{who}: {self!r}")

    def counted(
        self, curve: np.ndarray, context: Context, table: TrainingRows
    ) -> dict[str, np.ndarray]:
        """The weight or the offset of each row by that name: float64 (n_rows,)."""
        position = shown_at(context, table.request, table.item)
        place = np.clip(position - 1, 0, len(curve) - 1)
        propensity = np.where(position > 0, curve[place], 1.0)
        if self.use == "offset":
            return {"offset": np.log(propensity)}
        return {"weight": np.where(table.y, np.minimum(1 / propensity, self.most), 1.0)}


def shown_at(context: Context, request: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The position at which each request showed each item, 0 where it did not: int64 (n,)."""
    rows = rows_of(context.log.rows, np.unique(request)).filter(pl.col("position").is_not_null())
    n_items = context.log.n_items
    pair = pair_key(rows[REQUEST].to_numpy(), rows[ITEM].to_numpy(), n_items)
    sequence = np.argsort(pair, kind="stable")
    pair, position = pair[sequence], rows["position"].to_numpy()[sequence].astype(np.int64)
    wanted = pair_key(request, item, n_items)
    at = np.searchsorted(pair, wanted)
    found = at < len(pair)
    found[found] = pair[at[found]] == wanted[found]
    answer = np.zeros(len(wanted), dtype=np.int64)
    answer[found] = position[at[found]]
    return answer
