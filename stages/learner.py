"""Stages with a model of their own: boosted trees and networks over features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.special import logit

from ..bounds import needs, several
from ..errors import KarmafunnelError, quoted
from ..models import ctr, gbdt
from .calibration import Calibrated, check_calibrated, probabilities
from .context import Context
from .features import compute
from .frame import group_rows, position_in_group
from .learn import Learned, PositionBias, Sample, Teacher, Teachers, TrainingRows, training_rows
from .rows import Feature, Rows
from .stage import FittedFunnel, Stage


def train_and_valid(
    stage: Learner,
    context: Context,
    upstream: FittedFunnel | None,
    teacher: Teachers | None,
) -> tuple[TrainingRows, TrainingRows]:
    """The rows that a stage learns from, and those of W2b that decide when it stops."""
    sample = stage.sample
    train, valid = (
        training_rows(stage, stage.features, context, upstream, windows, sample, teacher)
        for windows in (sample.windows, ["W2b"])
    )
    return train, valid


class Learner(Stage):
    """The base of stages with a model of their own over features: `Boosted` and `Neural`."""

    features: Sequence[Feature]
    sample: Sample
    calibrated: Calibrated
    teacher: Teacher | None
    position_bias: PositionBias | None

    teaches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        wanted = "a list of values such as Popularity()"
        object.__setattr__(self, "features", several(self.name, "features", self.features, wanted))
        for what, kind, default in (
            ("sample", Sample, "Sample()"),
            ("teacher", Teacher, "Teacher(LightGBMRank()) or None"),
            ("position_bias", PositionBias, "PositionBias() or None"),
        ):
            value = getattr(self, what)
            if not isinstance(value, kind) and (value is not None or kind is Sample):
                found = quoted(value)
                raise KarmafunnelError(self.name, what=what, needs=default, found=found)
        check_calibrated(self.name, self.calibrated)

    def embedders(self) -> tuple[str, ...]:
        """The embedders of its features, and of its teacher, which is fitted with it.

        Raises:
            KarmafunnelError: for a feature that is none.
        """
        names: list[str] = []
        for feature in self.features:
            if not isinstance(feature, Feature):
                wanted, found = "values such as Popularity()", repr(feature)
                raise KarmafunnelError(self.name, what="features", needs=wanted, found=found)
            names += feature.embedders()
        if self.teacher is not None:
            names += self.teacher.stage.embedders()
        return tuple(names)

    def inside(self) -> tuple[Stage, ...]:
        return () if self.teacher is None else (self.teacher.stage,)

    @property
    def blocks(self) -> int:
        return max(self.sample.blocks, super().blocks)

    def one_fit(self) -> str:
        return next(filter(None, (feature.one_fit() for feature in self.features)), "")


@dataclass(frozen=True, repr=False)
class Boosted(Learner):
    """LightGBM over features: `lambdarank` orders the rows of a request, `binary` fits a
    probability of the label.

    It has at most `trees` trees and stops after `patience` of them without a better nDCG@10
    (log-loss) on W2b.
    """

    k: int = 200
    objective: str = "lambdarank"
    features: Sequence[Feature] = ()
    sample: Sample = field(default=Sample())
    trees: int = 300
    leaves: int = 31
    learning_rate: float = 0.05
    min_rows: int = 20
    l2: float = 1.0
    patience: int = 30
    calibrated: Calibrated = ""
    teacher: Teacher | None = None
    position_bias: PositionBias | None = None
    name: str = "rank"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in ("lambdarank", "binary"):
            wanted, found = "'lambdarank' or 'binary'", repr(self.objective)
            raise KarmafunnelError(self.name, what="objective", needs=wanted, found=found)
        needs(self, "trees", "leaves", "learning_rate", "min_rows", "l2", "patience")

    @property
    def feature_names(self) -> list[str]:
        """The names of the columns of all features."""
        return [column for feature in self.features for column in feature.columns]

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedBoosted:
        teacher = Teachers.of(self.teacher, context, upstream)
        train, valid = train_and_valid(self, context, upstream, teacher)
        y, y_valid = self._labels(train, teacher), self._labels(valid, teacher)
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
        bias, own, own_valid = self.position_bias, {}, {}
        if bias is not None:
            curve = bias.curve(self.title, context, train)
            own, own_valid = (bias.counted(curve, context, table) for table in (train, valid))
        booster = gbdt.fit_gbdt(
            gbdt.LabelledRows(train.x, y, train.group_sizes if ranks else None, **own),
            gbdt.LabelledRows(valid.x, y_valid, valid.group_sizes if ranks else None, **own_valid),
            options,
            names=self.feature_names,
            seed=context.seed,
            num_threads=0,
            progress=context.detail,
        )
        fitted = FittedBoosted(self, context, booster)
        fitted.calibrate(self.calibrated, upstream, self.sample.requests)
        return fitted

    def _labels(self, table: TrainingRows, teacher: Teachers | None) -> np.ndarray:
        if self.teacher is None or teacher is None:
            return table.y
        if self.objective == "lambdarank":
            return self.teacher.grades(table)
        return self.teacher.chances(table, teacher)

    def load(self, folder: Path, context: Context) -> FittedBoosted:
        fitted = FittedBoosted(self, context, gbdt.load_gbdt(folder / "trees.txt"))
        fitted.read_calibration(self.calibrated, folder)
        return fitted


@dataclass(eq=False, repr=False)
class FittedBoosted(Learned):
    stage: Boosted
    booster: Any
    EXPLAINED: ClassVar[int] = 4

    def __post_init__(self) -> None:
        self.forest = gbdt.Forest.of(self.booster)

    def log_odds(self, score: np.ndarray) -> np.ndarray:
        if self.stage.objective != "binary":
            return score
        p = probabilities(score, self.stage.title).astype(np.float64)
        return logit(np.clip(p, 1e-7, 1 - 1e-7))

    def score(self, rows: Rows) -> np.ndarray:
        x = compute(self.stage.features, rows, by_column=True)
        return gbdt.predict_gbdt(self.booster, x, num_threads=0, forest=self.forest)

    def why(self, rows: Rows) -> list[str]:
        """The features with the largest SHAP contributions (Lundberg & Lee 2017), with their values
        and contributions.
        """
        x = compute(self.stage.features, rows)
        names = self.stage.feature_names
        contributions = self.booster.predict(x, pred_contrib=True)[:, :-1]
        texts = []
        for value, part in zip(x, contributions, strict=True):
            largest = [i for i in np.argsort(-np.abs(part))[: self.EXPLAINED] if part[i]]
            texts.append(", ".join(f"{names[i]}={value[i]:.3g} ({part[i]:+.2f})" for i in largest))
        return texts

    def save(self, folder: Path) -> None:
        super().save(folder)
        gbdt.save_gbdt(self.booster, folder / "trees.txt")


@dataclass(frozen=True, repr=False)
class Neural(Learner):
    """A network over the history and the candidates of a request, on ids and features; see
    `models/ctr`.

    `loss`: "bce" fits a probability of the label, "listwise" is a softmax over the rows of the
    request. `unknown` is the share of ids that training hides; with 1 the network knows no ids,
    only features, which is better where a few hundred requests are all there is to learn from.
    """

    k: int = 50
    features: Sequence[Feature] = ()
    sample: Sample = field(default=Sample())
    dim: int = 16
    depth: int = 50
    loss: Literal["bce", "listwise"] = "bce"
    epochs: int = 12
    rate: float = 2e-3
    unknown: float = 0.3
    calibrated: Calibrated = ""
    teacher: Teacher | None = None
    position_bias: PositionBias | None = None
    name: str = "rank"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in ("bce", "listwise"):
            wanted = "'bce' or 'listwise'"
            raise KarmafunnelError(self.name, what="loss", needs=wanted, found=repr(self.loss))
        needs(self, "dim", "depth", "epochs", rate=(1e-9, 100.0), unknown=(0.0, 1.0))

    def network(self, context: Context, n_dense: int) -> ctr.ClickModel:
        """The untrained model."""
        raise NotImplementedError

    def vectors(self, context: Context) -> np.ndarray | None:
        """Fixed item vectors that the model reads, which are not saved with its weights; None for a
        model without.
        """
        return None

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedNeural:
        teacher = Teachers.of(self.teacher, context, upstream)
        train, valid = train_and_valid(self, context, upstream, teacher)
        model = self.network(context, train.x.shape[1])
        bias = self.position_bias
        curve = None if bias is None else bias.curve(self.title, context, train)
        ctr.fit_ctr(
            model,
            self._of_table(context, train, teacher, curve),
            self._of_table(context, valid, teacher, curve),
            ctr.FitOptions(epochs=self.epochs, rate=self.rate, loss=self.loss),
            seed=context.seed,
            device=context.device,
            progress=context.detail,
        )
        fitted = self.ready(context, model)
        fitted.calibrate(self.calibrated, upstream, self.sample.requests)
        return fitted

    def ready(self, context: Context, model: ctr.ClickModel) -> FittedNeural:
        """The stage around its trained model."""
        return FittedNeural(self, context, model)

    def _of_table(
        self,
        context: Context,
        table: TrainingRows,
        teacher: Teachers | None,
        curve: np.ndarray | None = None,
    ) -> ctr.Batch:
        requests, group = group_rows(table.request)
        y = table.y
        if self.teacher is not None and teacher is not None:
            target = self.teacher.shares if self.loss == "listwise" else self.teacher.chances
            y = target(table, teacher)
        batch, where = self.batch(context, requests, group, table.item, table.x, y)
        if self.position_bias is None or curve is None:
            return batch
        counted = {}
        for name, values in self.position_bias.counted(curve, context, table).items():
            counted[name] = np.zeros_like(batch.label)
            counted[name][where] = values
        return replace(batch, **counted)

    def batch(
        self,
        context: Context,
        requests: np.ndarray,
        group: np.ndarray,
        item: np.ndarray,
        x: np.ndarray,
        y: np.ndarray | None = None,
    ) -> tuple[ctr.Batch, tuple[np.ndarray, np.ndarray]]:
        """Rows in any order as padded groups, and the group and place of each row.

        Args:
            requests: row numbers, (n_requests,).
            group: the position of each row's request among these, (n_rows,).
            x: features, (n_rows, n_columns).
            y: labels, (n_rows,).
        """
        sizes = np.bincount(group, minlength=len(requests))
        rows = np.argsort(group, kind="stable")
        place = np.empty(len(group), dtype=np.int64)
        place[rows] = position_in_group(group[rows])
        shape = (len(requests), max(int(sizes.max(initial=1)), 1))
        items, dense = np.full(shape, -1, np.int64), np.zeros((*shape, x.shape[1]), np.float32)
        label, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        items[group, place], dense[group, place], weight[group, place] = item, x, 1.0
        if y is not None:
            label[group, place] = y
        history = context.log.asof.history(requests, self.depth)
        longest = max(int((history.items >= 0).sum(axis=1).max(initial=1)), 1)
        batch = ctr.Batch(
            items,
            dense,
            history.items[:, -longest:],
            label,
            weight,
            age=history.ages[:, -longest:],
            action=history.actions[:, -longest:],
        )
        return batch, (group, place)

    def load(self, folder: Path, context: Context) -> FittedNeural:
        model = ctr.load_ctr(folder / "model", vectors=self.vectors(context))
        fitted = self.ready(context, model.to(context.device))
        fitted.read_calibration(self.calibrated, folder)
        return fitted


@dataclass(eq=False, repr=False)
class FittedNeural(Learned):
    stage: Neural
    model: ctr.ClickModel

    def logits(self, rows: Rows) -> np.ndarray:
        """Logits of every row: (n_rows,), or (n_rows, 2) of a model with two labels."""
        requests, group = group_rows(rows.request)
        x = self.dense(rows)
        batch, where = self.stage.batch(self.context, requests, group, rows.item, x)
        return ctr.predict_ctr(self.model, batch)[where]

    def dense(self, rows: Rows) -> np.ndarray:
        """Features of every row: float32 (n_rows, n_columns)."""
        return compute(self.stage.features, rows)

    def score(self, rows: Rows) -> np.ndarray:
        return self.logits(rows)

    def save(self, folder: Path) -> None:
        super().save(folder)
        ctr.save_ctr(self.model, folder / "model")
