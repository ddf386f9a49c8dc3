"""How stage models are trained: on what their upstream really passes to them, exposed and
unexposed, never on exposures alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import polars as pl
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from ..bounds import Bound, needs
from ..errors import KarmafunnelError, quoted
from ..files import read_json, write_json
from ..log import rows_of
from ..models import ctr, gbdt
from ..shapes import check_keys, each, number, one_of
from ..typed import Typed
from .context import Context
from .features import check, compute
from .frame import ITEM, REQUEST, group_rows, order, pair_key, position_in_group, spaced
from .rows import Feature, Rows
from .stage import FittedFunnel, FittedStage, Stage, check_windows

CHUNK = 256  # requests at a time


@dataclass(frozen=True, repr=False)
class Sample(Typed):
    """Which rows a stage model learns from: the truth that its upstream passes, and three kinds of
    negatives a request.

    exposed: what was shown, passed and not chosen; hard, and all that a model of the list itself
    needs. passed: so many of the others that its upstream passes, drawn at random; what the stage
    will mostly have to throw out. random: so many eligible items, passed or not; easy, they tell a
    pre-ranker what recall knows already. Each row counts alike, so the counts are the weights; each
    may be 0, not all three. Truth that its upstream missed is left out: "not recalled" would then
    mean "bought". At most `requests` requests of a window, evenly spaced in time. `windows` to
    learn from: W2a, or W1 as well where no feature reads a vector that was fitted on W1. W2b
    decides when to stop and calibrates, W3 is what is asked: nothing is learnt from either.
    """

    exposed: bool = True
    passed: int = 50
    random: int = 0
    requests: int = 3000
    windows: tuple[str, ...] = ("W2a",)

    def __post_init__(self) -> None:
        if not isinstance(self.exposed, bool):
            raise KarmafunnelError(
                "Sample", what="exposed", needs="True or False", found=repr(self.exposed)
            )
        needs(self, "passed", "random", "requests")
        given = self.windows if isinstance(self.windows, tuple) else ()
        if not given or set(given) - {"W1", "W2a"} or len(set(given)) < len(given):
            raise KarmafunnelError(
                "Sample",
                what="windows",
                needs="a tuple of 'W1' and 'W2a'",
                found=repr(self.windows),
            )
        if not (self.exposed or self.passed or self.random):
            raise KarmafunnelError(
                "Sample",
                needs="negatives: exposed=True, passed or random above 0",
                found=f"none of them in {self!r}",
            )


def logged(context: Context, requests: np.ndarray, exposed: bool = True) -> pl.DataFrame:
    """The logged rows of requests as tracked rows: request, item, truth. Truth comes along whether
    or not it was shown.
    """
    truth = rows_of(context.truth, requests).select(REQUEST, ITEM, pl.lit(True).alias("truth"))
    if not exposed:
        return truth
    rows = rows_of(context.log.rows, requests).select(REQUEST, ITEM).unique(maintain_order=True)
    rows = rows.join(truth, on=[REQUEST, ITEM], how="left", maintain_order="left")
    return rows.with_columns(pl.col("truth").fill_null(False))


def sampled(
    context: Context,
    upstream: FittedFunnel,
    requests: np.ndarray,
    sample: Sample,
    seed: int,
    missed: bool = False,
) -> Iterator[tuple[Rows, np.ndarray]]:
    """Chunks of (rows that the stage would score, those of them to learn from); their frame has a
    `truth` column.

    Logged rows count where upstream passes them; with `missed`, where they are eligible at all.
    Chunks come fold by fold, each through an upstream that did not learn from its users.
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
    """One of the chunks of `sampled`, behind models that did not see its users."""
    asof = context.log.asof
    tracked = logged(context, chunk, sample.exposed).with_columns(pl.lit(False).alias("drawn"))
    if sample.random:
        drawn = [
            e[rng.integers(0, len(e), sample.random)] if len(e) else e for e in asof.eligible(chunk)
        ]
        extra = pl.DataFrame(
            {
                REQUEST: np.repeat(chunk, [len(d) for d in drawn]),
                ITEM: np.concatenate(drawn).astype(np.int32),
            }
        )
        extra = extra.with_columns(pl.lit(False).alias("truth"), pl.lit(True).alias("drawn"))
        tracked = pl.concat([tracked, extra]).unique(
            [REQUEST, ITEM], keep="first", maintain_order=True
        )
    passed = upstream.pass_on(chunk, tracked)
    slate, tracked = passed.slate, passed.tracked
    assert slate is not None
    usable = pl.col("kept") | pl.col("drawn")
    if missed:
        usable |= pl.Series(
            asof.is_eligible(tracked[REQUEST].to_numpy(), tracked[ITEM].to_numpy()),
            dtype=pl.Boolean,
        )
    tracked = tracked.filter(usable)
    rows = Rows(context, slate.with_columns(pl.lit(False).alias("truth")), tracked, chunk, passed)
    key = pair_key(rows.request, rows.item, context.log.n_items)
    n = slate.height
    draw = rng.random(n)
    draw[np.isin(key[:n], key[n:])] = 2.0  # their tracked twins are in already
    place = np.lexsort((draw, rows.request[:n]))
    group = rows.request[place]
    chosen = place[(position_in_group(group) < sample.passed) & (draw[place] < 2.0)]
    chosen = np.concatenate([chosen, np.arange(n, len(rows.item))])
    # Within a request rows stand in the order of their hash: logged lists come best first, and a
    # learner that breaks ties by row order would read it.
    request, item = rows.request[chosen], rows.item[chosen]
    return rows, chosen[np.lexsort((context.tie(request, item), request))]


@dataclass
class TrainingRows:
    """Rows to learn from: x float32 (n, f), y bool (n,), request int64 (n,) ascending, item int32
    (n,).

    taught (n,): what a teacher says of the rows, on its own scale of scores, where there is one.
    """

    x: np.ndarray
    y: np.ndarray
    request: np.ndarray
    item: np.ndarray
    taught: np.ndarray | None = None

    def __getitem__(self, rows: np.ndarray) -> TrainingRows:
        taught = None if self.taught is None else self.taught[rows]
        return TrainingRows(self.x[rows], self.y[rows], self.request[rows], self.item[rows], taught)

    @property
    def group_sizes(self) -> np.ndarray:
        return np.unique(self.request, return_counts=True)[1]


def training_rows(
    stage: Stage, features: Sequence[Feature], context: Context, upstream: FittedFunnel | None, windows: Sequence[str], sample: Sample,
    teacher: Teachers | None = None,
) -> TrainingRows:  # fmt: skip
    """The rows of some windows that a stage learns from, requests without truth or without a
    negative left out.

    They are worked out once for all fits of the stage; a fit without a fold of users takes the rows
    of the other folds. Raises KarmafunnelError where a vector that the stage or its upstream reads
    was fitted on a window to learn from.
    """
    if upstream is None:
        raise KarmafunnelError(
            f"{stage.name} ({type(stage).__name__})",
            needs="a stage before it to learn from",
            found="none",
        )
    check(features, context, stage.name)
    check_windows((*upstream.funnel.stages, stage), context, windows, "learn from")
    what = repr((features, windows, sample, teacher and teacher.teacher, context.label))
    if what not in upstream.tables:
        upstream.tables[what] = every_row(
            features, context, upstream.without(None), windows, sample, teacher
        )
    table: TrainingRows = upstream.tables[what]
    if upstream.left_out is not None:
        table = table[context.fold[table.request] != upstream.left_out]
    _, group = np.unique(table.request, return_inverse=True)
    positives, n = np.bincount(group, table.y), np.bincount(group)
    both = ((positives > 0) & (positives < n))[group] if len(group) else np.zeros(0, bool)
    if not both.any():
        raise KarmafunnelError(
            f"{stage.name} ({type(stage).__name__})",
            needs=(
                f"requests of {list(windows)} with truth and negatives among what its upstream "
                "passes"
            ),
            found=(
                f"none in {len(np.unique(table.request))} requests with truth"
                f"{'' if upstream.left_out is None else ' outside one fold of users'}, by {sample!r}"
            ),
        )
    return table[both]


def every_row(
    features: Sequence[Feature],
    context: Context,
    upstream: FittedFunnel,
    windows: Sequence[str],
    sample: Sample,
    teacher: Teachers | None,
) -> TrainingRows:
    """The rows to learn from of all folds, in the order of their requests."""
    with_truth = np.unique(context.truth[REQUEST].to_numpy())
    requests = context.log.requests_in(*windows)
    requests = spaced(requests[np.isin(requests, with_truth)], sample.requests)
    xs, ys, rs, items, taught = [], [], [], [], []
    for rows, chosen in sampled(context, upstream, requests, sample, seed=int("W2b" in windows)):
        xs.append(compute(features, rows)[chosen])
        ys.append(rows.frame["truth"].to_numpy()[chosen])
        rs.append(rows.request[chosen])
        items.append(rows.item[chosen])
        if teacher is not None:
            taught.append(teacher.score(rows)[chosen])
    width = sum(len(f.columns) for f in features)
    table = TrainingRows(
        np.concatenate([*xs, np.empty((0, width), np.float32)]), np.concatenate([*ys, np.empty(0, bool)]),
        np.concatenate([*rs, np.empty(0, np.int64)]), np.concatenate([*items, np.empty(0, np.int32)]),
        None if teacher is None else np.concatenate([*taught, np.empty(0, np.float32)]),
    )  # fmt: skip
    return table[np.argsort(table.request, kind="stable")]


# -- calibration -----------------------------------------------------------------------------------


def probabilities(p: np.ndarray, who: str) -> np.ndarray:
    """p, all in 0..1; raises KarmafunnelError naming who gave something else."""
    p = np.asarray(p)
    if bad := np.count_nonzero(~((p >= 0) & (p <= 1))):
        raise KarmafunnelError(
            who,
            needs="probabilities in 0..1",
            found=f"{p[~((p >= 0) & (p <= 1))][0]} ({bad} such rows)",
        )
    return p


@dataclass(frozen=True)
class Isotonic:
    """Score -> probability by steps that never go down: no form assumed, many rows needed, equal
    probabilities in plenty.
    """

    x: list[float]
    y: list[float]

    @classmethod
    def fit(cls, score: np.ndarray, label: np.ndarray) -> Isotonic:
        iso = IsotonicRegression(y_min=1e-5, y_max=1 - 1e-5, out_of_bounds="clip").fit(score, label)
        return cls(iso.X_thresholds_.tolist(), iso.y_thresholds_.tolist())

    def __call__(self, score: np.ndarray) -> np.ndarray:
        return np.interp(score, self.x, self.y)


@dataclass(frozen=True)
class Temperature:
    """Score -> probability as sigmoid(score / temperature + shift): two numbers, few rows needed,
    the order is kept.

    Source: Platt 1999, with his smoothed labels; Guo et al. 2017 (arXiv 1706.04599) for the name.
    Equal scores become their rate.
    """

    temperature: float
    shift: float

    @classmethod
    def fit(cls, score: np.ndarray, label: np.ndarray) -> Temperature:
        x, y = np.asarray(score, dtype=np.float64), np.asarray(label, dtype=np.float64)
        mean, scale = x.mean(), x.std() if x.std() > 1e-9 * (1 + abs(x.mean())) else 1.0
        n = y.sum()
        target = np.where(y > 0, (n + 1) / (n + 2), 1 / (len(y) - n + 2))

        def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
            z = (x - mean) / scale
            a = at[0] * z + at[1]
            error = expit(a) - target
            return float((np.logaddexp(0, a) - target * a).mean()), np.array(
                [(error * z).mean(), error.mean()]
            )

        slope, shift = minimize(
            loss,
            np.array([1.0, 0.0]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(1e-3, None), (None, None)],
        ).x
        return cls(float(scale / slope), float(shift - slope * mean / scale))

    def __call__(self, score: np.ndarray) -> np.ndarray:
        return expit(np.asarray(score, dtype=np.float64) / self.temperature + self.shift)


Calibration = Isotonic | Temperature
CALIBRATIONS: dict[str, type[Isotonic] | type[Temperature]] = {
    "isotonic": Isotonic,
    "temperature": Temperature,
}
NUMBER = number(Bound(-1e300, 1e300))
Calibrated = Literal["isotonic", "temperature", ""]


def fit_calibration(
    kind: Calibrated, score: np.ndarray, label: np.ndarray, who: str
) -> Calibration:
    """Score -> probability of the label; raises KarmafunnelError for scores that are not finite and
    for labels of one class.
    """
    if not np.isfinite(score).all():
        raise KarmafunnelError(
            who, needs="finite scores to calibrate", found=f"{score[~np.isfinite(score)][0]}"
        )
    n, positives = len(label), int(np.sum(label))
    if not 0 < positives < n:
        raise KarmafunnelError(
            who,
            what=f"calibrated={kind!r}",
            needs="rows of W2b with and without the label",
            found=f"{positives} with it among {n}",
            hint='calibrated="" does without',
        )
    return CALIBRATIONS[kind].fit(score, label)


def save_calibration(calibration: Calibration, path: Path) -> None:
    write_json(path, {"kind": type(calibration).__name__.lower(), **vars(calibration)})


def load_calibration(path: Path) -> Calibration:
    """The inverse of `save_calibration`; raises KarmafunnelError naming the file and the key that
    is of another kind.
    """
    kept = check_keys(str(path), read_json(path), {"kind": one_of(*CALIBRATIONS)})
    if kept.pop("kind") == "temperature":
        check_keys(str(path), kept, dict.fromkeys(("temperature", "shift"), NUMBER))
        return Temperature(float(kept["temperature"]), float(kept["shift"]))
    check_keys(str(path), kept, dict.fromkeys(("x", "y"), each(NUMBER)))
    if len(kept["x"]) != len(kept["y"]) or not kept["x"]:
        raise KarmafunnelError(
            path,
            needs="as many x as y, at least one",
            found=f"{len(kept['x'])} and {len(kept['y'])}",
        )
    return Isotonic(list(map(float, kept["x"])), list(map(float, kept["y"])))


def check_calibrated(stage: Boosted | Neural) -> None:
    if stage.calibrated not in ("", *CALIBRATIONS):
        raise KarmafunnelError(
            stage.name,
            what="calibrated",
            needs="'isotonic', 'temperature' or ''",
            found=repr(stage.calibrated),
        )


def shown_in_w2b(
    context: Context, upstream: FittedFunnel, most: int
) -> Iterator[tuple[Rows, np.ndarray]]:
    """What was shown in W2b (what upstream passes, where nothing is known of lists), as `sampled`
    gives it.
    """
    requests = spaced(context.log.requests_in("W2b"), most)
    yield from sampled(
        context,
        upstream,
        requests,
        Sample(passed=0 if context.log.has("exposures") else 10**6),
        seed=2,
        missed=True,
    )


class Learned(FittedStage):
    """A fitted model whose scores may be calibrated: what boosted trees and networks share."""

    calibration: Calibration | None = None

    def log_odds(self, score: np.ndarray) -> np.ndarray:
        """Scores on a scale without bounds, where differences mean something: what calibration and
        students read.
        """
        return score

    def calibrate(self, kind: Calibrated, upstream: FittedFunnel, most: int) -> None:
        """Fit score -> probability on W2b."""
        scores, labels = [], []
        for rows, chosen in shown_in_w2b(self.context, upstream, most):
            scores.append(np.asarray(self.score(rows))[chosen])
            labels.append(rows.frame["truth"].to_numpy()[chosen])
        who = f"{self.stage.name} ({type(self.stage).__name__})"
        self.calibration = fit_calibration(
            kind, self.log_odds(np.concatenate(scores)), np.concatenate(labels), who
        )

    def probability(self, score: np.ndarray) -> np.ndarray | None:
        return None if self.calibration is None else self.calibration(self.log_odds(score))

    def save(self, folder: Path) -> None:
        if self.calibration is not None:
            save_calibration(self.calibration, folder / "calibration.json")

    def read_calibration(self, folder: Path) -> None:
        self.calibration = load_calibration(folder / "calibration.json")


# -- distillation ----------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Teacher(Typed):
    """A stage whose scores another one learns beside the log's labels (Hinton et al. 2015, arXiv
    1503.02531).

    The teacher is fitted on the student's own upstream and scores every row that the student learns
    from, shown or not. It has one fit for each fold of users, without that fold, and scores the
    rows of that fold: of rows that it was fitted on it would be too sure. It is not needs for
    serving. `weight`: the teacher's share of the target, 1 for no labels at all. The target of a
    student with the loss "listwise" is a distribution over the request's rows, the teacher's part
    softmax(score / temperature); with "bce" or "binary" the teacher's probability (trees then learn
    by cross entropy); with "lambdarank" grades 0..GRADES of the teacher's rank, as 1 / log2(1 +
    rank).
    """

    stage: Boosted | Neural = field(metadata={"positional": True, "always": True})
    weight: float = 0.5
    temperature: float = 1.0

    GRADES: ClassVar[int] = 5

    def __post_init__(self) -> None:
        if not isinstance(self.stage, Boosted | Neural):
            raise KarmafunnelError(
                "Teacher",
                needs="a learnt stage, boosted trees or a network",
                found=quoted(self.stage),
            )
        needs(self, "temperature", weight=(0.0, 1.0))

    def mixed(self, label: np.ndarray, taught: np.ndarray) -> np.ndarray:
        return ((1 - self.weight) * label + self.weight * taught).astype(np.float32)

    def shares(self, table: TrainingRows, fitted: Teachers) -> np.ndarray:
        """A distribution over the rows of each request: its positives' equal shares, and the
        teacher's softmax.
        """
        assert table.taught is not None
        starts = np.cumsum(table.group_sizes) - table.group_sizes
        z = fitted.log_odds(table) / self.temperature
        e = np.exp(z - np.repeat(np.maximum.reduceat(z, starts), table.group_sizes))
        y = table.y.astype(np.float64)
        e, y = (x / np.repeat(np.add.reduceat(x, starts), table.group_sizes) for x in (e, y))
        return self.mixed(y, e)

    def chances(self, table: TrainingRows, fitted: Teachers) -> np.ndarray:
        """The probability of the label; raises KarmafunnelError where the teacher knows of none."""
        p = fitted.probability(table)
        if p is None and getattr(self.stage, "loss", getattr(self.stage, "objective", "")) in (
            "bce",
            "binary",
        ):
            p = expit(fitted.log_odds(table))
        if p is None:
            raise KarmafunnelError(
                f"Teacher: {self.stage!r} has no probabilities to teach; needs calibrated= or another loss"
            )
        return self.mixed(table.y, probabilities(p, f"Teacher: {self.stage!r}"))

    def grades(self, table: TrainingRows) -> np.ndarray:
        """Whole grades of the rows, best first by the teacher, ties sharing the better rank."""
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
        return np.round(self.GRADES * self.mixed(table.y, 1 / np.log2(1 + best[tied.ravel()])))


@dataclass(frozen=True, eq=False)
class Teachers:
    """The fits of one teacher, a fold of users each: the one without the fold scores the fold's
    rows.
    """

    teacher: Teacher
    context: Context
    without: tuple[Learned, ...]  # by fold

    @classmethod
    def of(
        cls, teacher: Teacher | None, context: Context, upstream: FittedFunnel | None
    ) -> Teachers | None:
        """Fit the teacher behind what the student learns behind; None where there is no teacher."""
        if teacher is None or upstream is None:
            return None
        stage: Boosted | Neural = replace(teacher.stage, name="teacher")
        return cls(
            teacher,
            context,
            tuple(cast(Learned, upstream.taught_by(stage, fold)) for fold in range(context.folds)),
        )

    def by_fold(
        self, request: np.ndarray, ask: Callable[[Learned, np.ndarray], np.ndarray | None]
    ) -> np.ndarray | None:
        """What the fit without the fold of each row says of it, (n_rows,); `ask` is given the fit
        and which rows are meant.
        """
        fold, said = self.context.fold[request], np.zeros(len(request))
        for k, teacher in enumerate(self.without):
            mine = fold == k
            if mine.any():
                answer = ask(teacher, mine)
                if answer is None:
                    return None
                said[mine] = answer
        return said

    def score(self, rows: Rows) -> np.ndarray:
        """Scores of the rows of whole requests: float32 (n_rows,)."""
        said = self.by_fold(rows.request, lambda teacher, mine: teacher.score(rows.only(mine)))
        return np.asarray(said, dtype=np.float32)

    def log_odds(self, table: TrainingRows) -> np.ndarray:
        """What a table's rows were taught, on a scale without bounds: float64 (n_rows,)."""
        taught = self._taught(table)
        return np.asarray(
            self.by_fold(table.request, lambda teacher, mine: teacher.log_odds(taught[mine]))
        )

    def probability(self, table: TrainingRows) -> np.ndarray | None:
        """The same as calibrated probabilities of the label; None where the teacher has none."""
        taught = self._taught(table)
        return self.by_fold(table.request, lambda teacher, mine: teacher.probability(taught[mine]))

    def _taught(self, table: TrainingRows) -> np.ndarray:
        assert table.taught is not None
        return table.taught.astype(np.float64)


def embedders_of(stage: Boosted | Neural) -> tuple[str, ...]:
    """Of its features, and of its teacher's, which is fitted along with it; raises KarmafunnelError
    for what is no feature.
    """
    if wrong := [f for f in stage.features if not isinstance(f, Feature)]:
        raise KarmafunnelError(
            stage.name, what="features", needs="values such as Popularity()", found=repr(wrong[0])
        )
    own = tuple(name for f in stage.features for name in f.embedders())
    return own + (stage.teacher.stage.embedders() if stage.teacher is not None else ())


# -- stages that learn -----------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Boosted(Stage):
    """LightGBM over features: `lambdarank` orders within a request, `binary` fits a probability of
    the label.

    At most `trees` trees; it stops after `patience` of them without a better nDCG@10 (log-loss) on
    W2b.
    """

    k: int = 200
    objective: str = "lambdarank"
    features: Sequence[Feature] = ()
    sample: Sample = Sample()
    trees: int = 300
    leaves: int = 31
    learning_rate: float = 0.05
    min_rows: int = 20
    l2: float = 1.0
    patience: int = 30
    calibrated: Calibrated = ""
    teacher: Teacher | None = None
    name: str = "rank"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        if self.objective not in ("lambdarank", "binary"):
            raise KarmafunnelError(
                self.name,
                what="objective",
                needs="'lambdarank' or 'binary'",
                found=repr(self.objective),
            )
        needs(self, "trees", "leaves", "learning_rate", "min_rows", "l2", "patience")
        check_calibrated(self)

    def embedders(self) -> tuple[str, ...]:
        return embedders_of(self)

    @property
    def feature_names(self) -> list[str]:
        return [c for f in self.features for c in f.columns]

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedBoosted:
        teacher = Teachers.of(self.teacher, context, upstream)
        tables = [
            training_rows(self, self.features, context, upstream, windows, self.sample, teacher)
            for windows in (self.sample.windows, ["W2b"])
        ]
        (train, y), (valid, y_valid) = ((table, self._labels(table, teacher)) for table in tables)
        ranks = self.objective == "lambdarank"
        options = gbdt.TreeOptions(
            objective="cross_entropy" if teacher is not None and not ranks else self.objective,
            trees=self.trees,
            leaves=self.leaves,
            learning_rate=self.learning_rate,
            min_rows=self.min_rows,
            l2=self.l2,
            patience=self.patience,
        )
        booster = gbdt.fit_gbdt(
            gbdt.LabelledRows(train.x, y, train.group_sizes if ranks else None),
            gbdt.LabelledRows(valid.x, y_valid, valid.group_sizes if ranks else None),
            options,
            names=self.feature_names,
            seed=context.seed,
            num_threads=0,
            progress=context.detail,
        )
        fitted = FittedBoosted(self, context, booster)
        if self.calibrated and upstream is not None:
            fitted.calibrate(self.calibrated, upstream, self.sample.requests)
        return fitted

    def _labels(self, table: TrainingRows, teacher: Teachers | None) -> np.ndarray:
        if self.teacher is None or teacher is None:
            return table.y
        return (
            self.teacher.grades(table)
            if self.objective == "lambdarank"
            else self.teacher.chances(table, teacher)
        )

    def load(self, folder: Path, context: Context) -> FittedBoosted:
        fitted = FittedBoosted(self, context, gbdt.load_gbdt(folder / "trees.txt"))
        if self.calibrated:
            fitted.read_calibration(folder)
        return fitted


@dataclass(eq=False, repr=False)
class FittedBoosted(Learned):
    stage: Boosted
    booster: Any
    EXPLAINED: ClassVar[int] = 4

    def log_odds(self, score: np.ndarray) -> np.ndarray:
        if self.stage.objective != "binary":
            return score
        who = f"{self.stage.name} ({type(self.stage).__name__})"
        return logit(np.clip(probabilities(score, who).astype(np.float64), 1e-7, 1 - 1e-7))

    def score(self, rows: Rows) -> np.ndarray:
        return gbdt.predict_gbdt(self.booster, compute(self.stage.features, rows), num_threads=0)

    def why(self, rows: Rows) -> list[str]:
        """The features that moved the score most, with their value and SHAP contribution (Lundberg
        & Lee 2017).
        """
        x = compute(self.stage.features, rows)
        names = [c for f in self.stage.features for c in f.columns]
        parts = self.booster.predict(x, pred_contrib=True)[:, :-1]
        sentences = []
        for value, part in zip(x, parts, strict=True):
            top = np.argsort(-np.abs(part))[: self.EXPLAINED]
            sentences.append(
                ", ".join(f"{names[i]}={value[i]:.3g} ({part[i]:+.2f})" for i in top if part[i])
            )
        return sentences

    def save(self, folder: Path) -> None:
        super().save(folder)
        gbdt.save_gbdt(self.booster, folder / "trees.txt")


@dataclass(frozen=True, repr=False)
class Neural(Stage):
    """A network over groups (one request, its history, its candidates) on ids and features; see
    `models/ctr`.

    `loss`: "bce" fits a probability of the label, "listwise" is a softmax over the request's rows.
    """

    k: int = 50
    features: Sequence[Feature] = ()
    sample: Sample = Sample()
    dim: int = 16
    depth: int = 50
    loss: Literal["bce", "listwise"] = "bce"
    epochs: int = 12
    rate: float = 2e-3
    calibrated: Calibrated = ""
    teacher: Teacher | None = None
    name: str = "rank"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        if self.loss not in ("bce", "listwise"):
            raise KarmafunnelError(
                self.name, what="loss", needs="'bce' or 'listwise'", found=repr(self.loss)
            )
        needs(self, "dim", "depth", "epochs", rate=(1e-9, 100.0))
        check_calibrated(self)

    def embedders(self) -> tuple[str, ...]:
        return embedders_of(self)

    def network(self, context: Context, n_dense: int) -> ctr.ClickModel:
        """The untrained model."""
        raise NotImplementedError

    def vectors(self, context: Context) -> np.ndarray | None:
        """Fixed item vectors that the model reads; they are not stored with its weights."""
        return None

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedNeural:
        teacher = Teachers.of(self.teacher, context, upstream)
        train, valid = (
            training_rows(self, self.features, context, upstream, windows, self.sample, teacher)
            for windows in (self.sample.windows, ["W2b"])
        )
        model = self.network(context, train.x.shape[1])
        ctr.fit_ctr(
            model,
            self._of_table(context, train, teacher),
            self._of_table(context, valid, teacher),
            ctr.FitOptions(epochs=self.epochs, rate=self.rate, loss=self.loss),
            seed=context.seed,
            device=context.device,
            progress=context.detail,
        )
        fitted = self.ready(context, model)
        if self.calibrated and upstream is not None:
            fitted.calibrate(self.calibrated, upstream, self.sample.requests)
        return fitted

    def ready(self, context: Context, model: ctr.ClickModel) -> FittedNeural:
        """The stage around its trained model."""
        return FittedNeural(self, context, model)

    def _of_table(
        self, context: Context, table: TrainingRows, teacher: Teachers | None
    ) -> ctr.Batch:
        requests, group = group_rows(table.request)
        y = table.y
        if self.teacher is not None and teacher is not None:
            y = (self.teacher.shares if self.loss == "listwise" else self.teacher.chances)(
                table, teacher
            )
        return self.batch(context, requests, group, table.item, table.x, y)[0]

    def batch(
        self,
        context: Context,
        requests: np.ndarray,
        group: np.ndarray,
        item: np.ndarray,
        x: np.ndarray,
        y: np.ndarray | None = None,
    ) -> tuple[ctr.Batch, tuple[np.ndarray, np.ndarray]]:
        """Rows of any order as padded groups, and where each row went: (its request, its place)."""
        sizes = np.bincount(group, minlength=len(requests))
        rows = np.argsort(group, kind="stable")
        place = np.empty(len(group), dtype=np.int64)
        place[rows] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        shape = (len(requests), max(int(sizes.max(initial=1)), 1))
        items, dense = np.full(shape, -1, np.int64), np.zeros((*shape, x.shape[1]), np.float32)
        label, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        items[group, place], dense[group, place], weight[group, place] = item, x, 1.0
        if y is not None:
            label[group, place] = y
        history = context.log.asof.history(requests, self.depth)
        longest = slice(-max(int((history.items >= 0).sum(axis=1).max(initial=1)), 1), None)
        parts = history.items[:, longest], history.ages[:, longest], history.actions[:, longest]
        return ctr.Batch(items, dense, parts[0], label, weight, age=parts[1], action=parts[2]), (
            group,
            place,
        )

    def load(self, folder: Path, context: Context) -> FittedNeural:
        model = ctr.load_ctr(folder / "model", vectors=self.vectors(context))
        fitted = self.ready(context, model.to(context.device))
        if self.calibrated:
            fitted.read_calibration(folder)
        return fitted


@dataclass(eq=False, repr=False)
class FittedNeural(Learned):
    stage: Neural
    model: ctr.ClickModel

    def logits(self, rows: Rows) -> np.ndarray:
        """Logits of every row: (n_rows,), or (n_rows, 2) of a model with two labels."""
        x = compute(self.stage.features, rows)
        requests, group = group_rows(rows.request)
        batch, where = self.stage.batch(self.context, requests, group, rows.item, x)
        return ctr.predict_ctr(self.model, batch)[where]

    def score(self, rows: Rows) -> np.ndarray:
        return self.logits(rows)

    def save(self, folder: Path) -> None:
        super().save(folder)
        ctr.save_ctr(self.model, folder / "model")
