"""Boosted trees: a thin layer over LightGBM with early stopping, fixed seeds and clear errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from ..errors import KarmafunnelError
from ..files import edited, marked, read_text, write_text
from .forest import Forest

MOST_ROWS = 10_000  # LightGBM's limit of rows a group in lambdarank
# what is watched on the validation rows
METRICS = {"binary": "binary_logloss", "cross_entropy": "cross_entropy", "lambdarank": "ndcg"}


@dataclass(frozen=True)
class TreeOptions:
    """How trees are fitted: at most `trees` of `leaves` leaves, as many as were best on the
    validation rows; `patience` rounds without a better one end it, 0 never does.

    min_rows of a leaf; l2 on its value; shares of columns and rows drawn for each tree; truncation:
    ranks that lambdarank looks at. apart: sets of columns (numbers) that no path of a tree mixes,
    so that the score is a sum of one function of each set; () for no such sets.
    """

    objective: str = "binary"
    trees: int = 300
    leaves: int = 31
    learning_rate: float = 0.05
    min_rows: int = 20
    l2: float = 1.0
    column_share: float = 0.8
    row_share: float = 0.8
    patience: int = 30
    truncation: int = 30
    apart: tuple[tuple[int, ...], ...] = ()

    def parameters(self) -> dict[str, Any]:
        """LightGBM's names of the options."""
        apart = {"interaction_constraints": [list(one) for one in self.apart]} if self.apart else {}
        return apart | {
            "objective": self.objective,
            "num_leaves": self.leaves,
            "learning_rate": self.learning_rate,
            "min_data_in_leaf": self.min_rows,
            "lambda_l2": self.l2,
            "feature_fraction": self.column_share,
            "bagging_fraction": self.row_share,
            "bagging_freq": int(self.row_share < 1),
            "metric": METRICS[self.objective],
            "eval_at": [10],
            "lambdarank_truncation_level": self.truncation,
            "label_gain": [2**i - 1 for i in range(31)],
        }


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """x (n, f) float, NaN = missing; y (n,) bool, numbers in 0..1 for cross_entropy, integer grades
    0..30 for lambdarank; group (g,) sizes of the runs of rows that belong together, needed by
    lambdarank; weight (n,) of each row and offset (n,) of its raw score, both of training alone.
    """

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray | None = None
    weight: np.ndarray | None = None
    offset: np.ndarray | None = None

    def labels(self, objective: str, names: list[str], what: str) -> np.ndarray:
        """Labels as float32; raises KarmafunnelError where rows, labels, names and groups do not
        fit together.
        """
        rows, columns = np.shape(self.x)
        if rows == 0 or len(self.y) != rows or columns != len(names):
            raise KarmafunnelError(
                "gbdt",
                needs=f"{what} rows with a label and a name each",
                found=f"x {np.shape(self.x)}, {len(self.y)} labels, {len(names)} names",
            )
        labels = np.asarray(self.y, dtype=np.float32)
        if not np.isfinite(labels).all():
            row = int(np.argmin(np.isfinite(labels)))
            raise KarmafunnelError(
                "gbdt", needs=f"finite {what} labels", found=f"{labels[row]} in row {row}"
            )
        if objective == "binary" and not np.isin(labels, (0, 1)).all():
            other = labels[~np.isin(labels, (0, 1))][0]
            raise KarmafunnelError("gbdt", needs=f"{what} labels 0 or 1", found=f"{other:g}")
        found = f"{labels.min():g} to {labels.max():g}"
        if objective == "cross_entropy" and (labels.min() < 0 or labels.max() > 1):
            raise KarmafunnelError("gbdt", needs=f"{what} labels in 0..1", found=found)
        if objective == "lambdarank":
            self.check_groups(what)
            if labels.min() < 0 or labels.max() > 30 or (labels != np.round(labels)).any():
                raise KarmafunnelError(
                    "gbdt",
                    what="lambdarank",
                    needs=f"{what} grades among 0, 1, ... 30",
                    found=found,
                )
        return labels

    def check_groups(self, what: str) -> None:
        """Raises KarmafunnelError for groups that lambdarank cannot learn from."""
        if self.group is None or np.sum(self.group) != len(self.x):
            found = "none" if self.group is None else f"a sum of {int(np.sum(self.group))}"
            raise KarmafunnelError(
                "gbdt",
                what="lambdarank",
                needs=f"{what} group sizes that add up to {len(self.x)} rows",
                found=found,
            )
        if np.max(self.group) > MOST_ROWS:
            raise KarmafunnelError(
                "gbdt",
                what="lambdarank",
                needs=f"at most {MOST_ROWS} rows a group",
                found=f"one of {int(np.max(self.group))} in {what}",
            )


def fit_gbdt(
    train: LabelledRows,
    validation: LabelledRows,
    options: TreeOptions = TreeOptions(),
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    num_threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> lgb.Booster:
    """Fit trees, keeping as many as were best on the validation rows (logloss, or nDCG@10).

    names: of the columns. The same inputs and seed give the same trees. Raises KarmafunnelError for
    labels of one class, labels that are not finite, sizes that do not add up, an unknown objective.
    """
    if options.objective not in METRICS:
        raise KarmafunnelError(
            "gbdt", what="objective", needs=f"one of {list(METRICS)}", found=repr(options.objective)
        )
    names = list(names) if names is not None else [f"f{i}" for i in range(np.shape(train.x)[1])]
    y = train.labels(options.objective, names, "training")
    y_val = validation.labels(options.objective, names, "validation")
    if np.ptp(y) == 0:
        raise KarmafunnelError(
            "gbdt",
            needs="training labels of more than one class",
            found=f"{len(y)} rows all labelled {y[0]:g}",
        )
    params = options.parameters() | {
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": num_threads,
        "verbosity": -1,
    }
    start = 0.0
    if train.offset is not None and options.objective != "lambdarank":
        start = intercept(train.offset, y, train.weight)
    data = lgb.Dataset(
        train.x,
        y,
        group=train.group,
        weight=train.weight,
        init_score=None if train.offset is None else train.offset + start,
        feature_name=names,
        params=params,
    )
    held = data.create_valid(
        validation.x,
        y_val,
        group=validation.group,
        weight=validation.weight,
        init_score=None if validation.offset is None else validation.offset + start,
    )
    callbacks: list[Callable[..., Any]] = []
    if options.patience:
        callbacks.append(lgb.early_stopping(options.patience, verbose=False))
    if progress is not None:
        callbacks.append(reporter(progress, options.trees))
    try:
        booster = lgb.train(
            params, data, num_boost_round=options.trees, valid_sets=[held], callbacks=callbacks
        )
    except lgb.basic.LightGBMError as error:
        raise KarmafunnelError(
            f"gbdt: LightGBM refused {len(y)} rows of {len(names)} features: {error}"
        ) from error
    if start:  # the offsets are gone when it serves, the rate of the label is not
        for leaf in range(booster.dump_model(num_iteration=1)["tree_info"][0]["num_leaves"]):
            booster.set_leaf_output(0, leaf, booster.get_leaf_output(0, leaf) + start)
    return booster


def intercept(offset: np.ndarray, y: np.ndarray, weight: np.ndarray | None) -> float:
    """The number c for which the mean of sigmoid(offset + c) is the mean of y."""
    w = np.ones(len(y)) if weight is None else weight
    rate = np.average(y, weights=w)

    def error(c: float) -> float:
        return float(np.average(expit(offset + c), weights=w) - rate)

    widest = float(np.abs(offset).max(initial=0)) + 40
    return float(brentq(error, -widest, widest))


def reporter(
    progress: Callable[[str], None], trees: int
) -> Callable[[lgb.callback.CallbackEnv], None]:
    """A LightGBM callback that reports every fiftieth tree."""

    def report(env: lgb.callback.CallbackEnv) -> None:
        if (env.iteration + 1) % 50 == 0 and env.evaluation_result_list:
            value = env.evaluation_result_list[0][2]
            progress(f"trees: {env.iteration + 1} of at most {trees}, validation {value:.4f}")

    return report


def predict_gbdt(
    booster: lgb.Booster, x: np.ndarray, num_threads: int = 1, forest: Forest | None = None
) -> np.ndarray:
    """Score of every row, float32 (n,): a probability for `binary` and `cross_entropy`, an
    unbounded score for `lambdarank`.

    Args:
        x: features, (n, n_features).
        num_threads: of LightGBM; 0: all.
        forest: `Forest.of` the booster: the same scores, three to ten times as fast on one
            thread; None: LightGBM's own prediction.
    """
    if np.shape(x)[1] != booster.num_feature():
        raise KarmafunnelError(
            "gbdt",
            needs=f"{booster.num_feature()} features {booster.feature_name()}",
            found=f"{np.shape(x)[1]}",
        )
    if len(x) == 0:
        return np.zeros(0, dtype=np.float32)
    if forest is not None:
        return forest.scores(x).astype(np.float32)
    return np.asarray(booster.predict(x, num_threads=num_threads), dtype=np.float32)


def save_gbdt(booster: lgb.Booster, path: Path | str) -> None:
    """Write LightGBM's text format after a line with its digest, whole or not at all; only the
    trees that were best on the validation rows.
    """
    write_text(path, marked(booster.model_to_string(num_iteration=booster.best_iteration or None)))


def load_gbdt(path: Path | str) -> lgb.Booster:
    """The inverse of `save_gbdt`. Raises KarmafunnelError for a file that is not as it was written:
    LightGBM would end the process.
    """
    if edited(Path(path)):
        raise KarmafunnelError(
            path, needs="a LightGBM text file as it was written", found="other bytes, or none"
        )
    try:
        return lgb.Booster(model_str=read_text(path).partition("\n")[2])
    except lgb.basic.LightGBMError as error:
        raise KarmafunnelError(path, needs="a LightGBM text file", found=error) from error
