"""How stage models are trained: on what their upstream really passes to them, exposed and unexposed, never on exposures alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from sklearn.isotonic import IsotonicRegression

from ..log import KarmafunnelError, rows_of, write_json
from ..models import ctr, gbdt
from .base import ITEM, REQUEST, SCORE, Fitted, FittedFunnel, Scene, Stage, Typed, check_windows, group_rows, with_forced
from .features import Feature, check, compute

CHUNK = 256  # requests at a time


@dataclass(frozen=True, repr=False)
class Sample(Typed):
    """Which of the rows that its upstream passes a stage model learns from.

    A request: the truth, and as negatives what was shown and not chosen (`exposed`), so many of the others (`passed`);
    besides, so many random eligible items (`random`). Truth that its upstream missed is left out: "not recalled" would then
    mean "bought". At most `requests` requests of a window, evenly spaced in time. `windows` to learn from: W1 as well, where
    no feature reads a vector that was fitted on W1.
    """

    exposed: bool = True
    passed: int = 50
    random: int = 0
    requests: int = 3000
    windows: tuple[str, ...] = ("W2a",)


def spaced(requests: np.ndarray, most: int) -> np.ndarray:
    """At most so many requests, evenly spaced in time."""
    return requests if len(requests) <= most else requests[np.linspace(0, len(requests) - 1, most).astype(np.int64)]


def logged(scene: Scene, requests: np.ndarray, exposed: bool = True) -> pl.DataFrame:
    """The logged rows of requests as forced rows: request, item, truth. Truth comes along whether or not it was shown."""
    truth = rows_of(scene.truth, requests).select(REQUEST, ITEM, pl.lit(True).alias("truth"))
    if not exposed:
        return truth
    rows = rows_of(scene.log.rows, requests).select(REQUEST, ITEM).unique(maintain_order=True)
    rows = rows.join(truth, on=[REQUEST, ITEM], how="left", maintain_order="left")
    return rows.with_columns(pl.col("truth").fill_null(False))


def sampled(
    scene: Scene, upstream: FittedFunnel, requests: np.ndarray, sample: Sample, seed: int, missed: bool = False
) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
    """Chunks of (frame that the stage would score, rows of it to learn from); the frame has a `truth` column.

    Logged rows count where upstream passes them; with `missed`, where they are eligible at all.
    """
    rng = np.random.default_rng([scene.seed, seed])
    asof = scene.log.asof
    for start in range(0, len(requests), CHUNK):
        chunk = requests[start : start + CHUNK]
        forced = logged(scene, chunk, sample.exposed).with_columns(pl.lit(False).alias("drawn"))
        if sample.random:
            drawn = [e[rng.integers(0, len(e), sample.random)] if len(e) else e for e in asof.eligible(chunk)]
            extra = pl.DataFrame(
                {REQUEST: np.repeat(chunk, [len(d) for d in drawn]), ITEM: np.concatenate(drawn).astype(np.int32)}
            )
            extra = extra.with_columns(pl.lit(False).alias("truth"), pl.lit(True).alias("drawn"))
            forced = pl.concat([forced, extra]).unique([REQUEST, ITEM], keep="first", maintain_order=True)
        last = upstream.run(chunk, forced)[-1]
        name = last.stage.name
        keep = [pl.col(SCORE).alias(f"{name}.score"), pl.col("rank").alias(f"{name}.rank")]
        slate, forced = last.slate.with_columns(keep), last.forced.with_columns(keep)
        usable = pl.col("kept") | pl.col("drawn")
        if missed:
            usable |= pl.Series(asof.is_eligible(forced[REQUEST].to_numpy(), forced[ITEM].to_numpy()), dtype=pl.Boolean)
        forced = forced.filter(usable)
        frame = with_forced(slate, forced)
        key = frame[REQUEST].to_numpy() * scene.log.n_items + frame[ITEM].to_numpy()
        n = slate.height
        draw = rng.random(n)
        draw[np.isin(key[:n], key[n:])] = 2.0  # their forced twins are in already
        place = np.lexsort((draw, frame[REQUEST].to_numpy()[:n]))
        group = frame[REQUEST].to_numpy()[place]
        nth = np.arange(n) - np.searchsorted(group, group)
        chosen = place[(nth < sample.passed) & (draw[place] < 2.0)]
        rows = np.concatenate([chosen, np.arange(n, frame.height)])
        truth = np.concatenate([np.zeros(n, dtype=bool), forced["truth"].to_numpy()])
        # Within a request rows stand in the order of their hash: logged lists come best first, and a learner that breaks ties by
        # row order would read it.
        request, item = frame[REQUEST].to_numpy()[rows], frame[ITEM].to_numpy()[rows]
        yield frame.with_columns(pl.Series("truth", truth)), rows[np.lexsort((scene.tie(request, item), request))]


@dataclass
class Table:
    """Rows to learn from: x float32 (n, f), y bool (n,), request int64 (n,) ascending, item int32 (n,)."""

    x: np.ndarray
    y: np.ndarray
    request: np.ndarray
    item: np.ndarray

    @property
    def group_sizes(self) -> np.ndarray:
        return np.unique(self.request, return_counts=True)[1]


def training_table(
    stage: Stage, features: Sequence[Feature], scene: Scene, upstream: FittedFunnel | None, windows: Sequence[str], sample: Sample
) -> Table:
    """The rows of some windows that a stage learns from, requests without truth or without a negative left out.

    Raises KarmafunnelError where a vector that the stage or its upstream reads was fitted on a window to learn from.
    """
    if upstream is None:
        raise KarmafunnelError(f"{stage.name} ({type(stage).__name__}): needs a stage before it to learn from, found none")
    check(features, scene, stage.name)
    check_windows((*upstream.funnel.stages, stage), scene, windows, "learn from")
    with_truth = np.unique(scene.truth[REQUEST].to_numpy())
    requests = scene.log.requests_in(*windows)
    requests = spaced(requests[np.isin(requests, with_truth)], sample.requests)
    xs, ys, rs, items = [], [], [], []
    for frame, rows in sampled(scene, upstream, requests, sample, seed=int("W2b" in windows)):
        xs.append(compute(scene, features, frame)[rows])
        picked = frame[rows]
        ys.append(picked["truth"].to_numpy())
        rs.append(picked[REQUEST].to_numpy())
        items.append(picked[ITEM].to_numpy())
    width = sum(len(f.columns) for f in features)
    table = Table(
        np.concatenate([*xs, np.empty((0, width), np.float32)]), np.concatenate([*ys, np.empty(0, bool)]),
        np.concatenate([*rs, np.empty(0, np.int64)]), np.concatenate([*items, np.empty(0, np.int32)]),
    )  # fmt: skip
    _, group = np.unique(table.request, return_inverse=True)
    positives, n = np.bincount(group, table.y), np.bincount(group)
    both = ((positives > 0) & (positives < n))[group] if len(group) else np.zeros(0, bool)
    if not both.any():
        raise KarmafunnelError(
            f"{stage.name} ({type(stage).__name__}): needs requests of {list(windows)} with truth and negatives among what its upstream passes; "
            f"found none in {len(requests)} requests with truth"
        )
    return Table(table.x[both], table.y[both], table.request[both], table.item[both])


class Calibration:
    """Isotonic score -> probability, fitted on W2b."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.x, self.y = x, y

    @classmethod
    def fit(cls, score: np.ndarray, label: np.ndarray) -> Calibration:
        iso = IsotonicRegression(y_min=1e-5, y_max=1 - 1e-5, out_of_bounds="clip").fit(score, label)
        return cls(iso.X_thresholds_, iso.y_thresholds_)

    def __call__(self, score: np.ndarray) -> np.ndarray:
        return np.interp(score, self.x, self.y)

    def save(self, folder: Path) -> None:
        write_json(folder / "calibration.json", {"x": self.x.tolist(), "y": self.y.tolist()})

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        kept = json.loads((folder / "calibration.json").read_text())
        return cls(np.array(kept["x"]), np.array(kept["y"]))


def calibrate(fitted: Fitted, features: Sequence[Feature], upstream: FittedFunnel, most: int) -> Calibration:
    """Fit score -> probability on what was shown in W2b (on what upstream passes, where nothing is known of lists)."""
    scene = fitted.scene
    requests = spaced(scene.log.requests_in("W2b"), most)
    shown = scene.log.has("exposures")
    scores, labels = [], []
    for frame, rows in sampled(scene, upstream, requests, Sample(passed=0 if shown else 10**6), seed=2, missed=True):
        scores.append(np.asarray(fitted.score(frame))[rows])
        labels.append(frame["truth"].to_numpy()[rows])
    return Calibration.fit(np.concatenate(scores), np.concatenate(labels))


class Learned(Fitted):
    """A fitted model whose scores may be calibrated: what boosted trees and networks share."""

    calibration: Calibration | None = None

    def probability(self, score: np.ndarray) -> np.ndarray | None:
        return None if self.calibration is None else self.calibration(score)

    def save(self, folder: Path) -> None:
        if self.calibration is not None:
            self.calibration.save(folder)


@dataclass(frozen=True, repr=False)
class Boosted(Stage):
    """LightGBM over features: `lambdarank` orders within a request, `binary` fits a probability of the label."""

    k: int = 200
    objective: str = "lambdarank"
    features: Sequence[Feature] = ()
    sample: Sample = Sample()
    trees: int = 300
    leaves: int = 31
    learning_rate: float = 0.05
    min_rows: int = 20
    l2: float = 1.0
    calibrated: bool = field(default=False)
    name: str = "rank"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        if self.objective not in ("lambdarank", "binary"):
            raise KarmafunnelError(f"{self.name}: objective needs 'lambdarank' or 'binary', found {self.objective!r}")

    def embedders(self) -> tuple[str, ...]:
        return tuple(name for f in self.features for name in f.embedders())

    @property
    def feature_names(self) -> list[str]:
        return [c for f in self.features for c in f.columns]

    def fit(self, scene: Scene, upstream: FittedFunnel | None) -> FittedBoosted:
        train = training_table(self, self.features, scene, upstream, self.sample.windows, self.sample)
        valid = training_table(self, self.features, scene, upstream, ["W2b"], self.sample)
        booster = gbdt.fit_gbdt(
            train.x, train.y, valid.x, valid.y,
            group=train.group_sizes if self.objective == "lambdarank" else None,
            group_val=valid.group_sizes if self.objective == "lambdarank" else None,
            objective=self.objective, trees=self.trees, leaves=self.leaves, learning_rate=self.learning_rate,
            min_rows=self.min_rows, l2=self.l2, seed=scene.seed, num_threads=0, feature_names=self.feature_names, progress=scene.detail,
        )  # fmt: skip
        fitted = FittedBoosted(self, scene, booster)
        if self.calibrated and upstream is not None:
            fitted.calibration = calibrate(fitted, self.features, upstream, self.sample.requests)
        return fitted

    def load(self, folder: Path, scene: Scene) -> FittedBoosted:
        fitted = FittedBoosted(self, scene, gbdt.load_gbdt(folder / "trees.txt"))
        if self.calibrated:
            fitted.calibration = Calibration.load(folder)
        return fitted


class FittedBoosted(Learned):
    stage: Boosted
    EXPLAINED: ClassVar[int] = 4

    def __init__(self, stage: Boosted, scene: Scene, booster: Any):
        self.stage, self.scene, self.booster = stage, scene, booster
        self.features = stage.features

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        return gbdt.predict_gbdt(self.booster, compute(self.scene, self.features, frame), num_threads=0)

    def why(self, frame: pl.DataFrame) -> list[str]:
        """The features that moved the score most, with their value and SHAP contribution (Lundberg & Lee 2017)."""
        x = compute(self.scene, self.features, frame)
        names = [c for f in self.features for c in f.columns]
        parts = self.booster.predict(x, pred_contrib=True)[:, :-1]
        sentences = []
        for value, part in zip(x, parts, strict=True):
            top = np.argsort(-np.abs(part))[: self.EXPLAINED]
            sentences.append(", ".join(f"{names[i]}={value[i]:.3g} ({part[i]:+.2f})" for i in top if part[i]))
        return sentences

    def save(self, folder: Path) -> None:
        super().save(folder)
        gbdt.save_gbdt(self.booster, folder / "trees.txt")


@dataclass(frozen=True, repr=False)
class Neural(Stage):
    """A network over groups (one request, its history, its candidates) on ids and features; see `models/ctr.py`.

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
    calibrated: bool = False
    name: str = "rank"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        if self.loss not in ("bce", "listwise"):
            raise KarmafunnelError(f"{self.name}: loss needs 'bce' or 'listwise', found {self.loss!r}")

    def embedders(self) -> tuple[str, ...]:
        return tuple(name for f in self.features for name in f.embedders())

    def network(self, scene: Scene, n_dense: int) -> ctr.ClickModel:
        """The untrained model."""
        raise NotImplementedError

    def vectors(self, scene: Scene) -> np.ndarray | None:
        """Fixed item vectors that the model reads; they are not stored with its weights."""
        return None

    def fit(self, scene: Scene, upstream: FittedFunnel | None) -> FittedNeural:
        train = training_table(self, self.features, scene, upstream, self.sample.windows, self.sample)
        valid = training_table(self, self.features, scene, upstream, ["W2b"], self.sample)
        model = self.network(scene, train.x.shape[1])
        ctr.fit_ctr(
            model, self._of_table(scene, train), self._of_table(scene, valid), epochs=self.epochs, rate=self.rate, loss=self.loss,
            seed=scene.seed, device=scene.device, progress=scene.detail,
        )  # fmt: skip
        fitted = FittedNeural(self, scene, model)
        if self.calibrated and upstream is not None:
            fitted.calibration = calibrate(fitted, self.features, upstream, self.sample.requests)
        return fitted

    def _of_table(self, scene: Scene, table: Table) -> ctr.Batch:
        requests, group = group_rows(table.request)
        return self.batch(scene, requests, group, table.item, table.x, table.y)[0]

    def batch(
        self, scene: Scene, requests: np.ndarray, group: np.ndarray, item: np.ndarray, x: np.ndarray, y: np.ndarray | None = None
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
        history = scene.log.asof.history(requests, self.depth)
        longest = slice(-max(int((history.items >= 0).sum(axis=1).max(initial=1)), 1), None)
        parts = history.items[:, longest], history.ages[:, longest], history.actions[:, longest]
        return ctr.Batch(items, dense, parts[0], label, weight, age=parts[1], action=parts[2]), (group, place)

    def load(self, folder: Path, scene: Scene) -> FittedNeural:
        model = ctr.load_ctr(folder / "model", vectors=self.vectors(scene))
        fitted = FittedNeural(self, scene, model.to(scene.device))
        if self.calibrated:
            fitted.calibration = Calibration.load(folder)
        return fitted


class FittedNeural(Learned):
    stage: Neural

    def __init__(self, stage: Neural, scene: Scene, model: ctr.ClickModel):
        self.stage, self.scene, self.model = stage, scene, model

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        x = compute(self.scene, self.stage.features, frame)
        requests, group = group_rows(frame[REQUEST].to_numpy())
        batch, where = self.stage.batch(self.scene, requests, group, frame[ITEM].to_numpy(), x)
        return ctr.predict_ctr(self.model, batch)[where]

    def save(self, folder: Path) -> None:
        super().save(folder)
        ctr.save_ctr(self.model, folder / "model")
