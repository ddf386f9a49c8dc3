"""Boosted trees: a thin layer over LightGBM with early stopping, fixed draws and errors that say
what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from ..errors import KarmafunnelError
from ..files import edited, marked, read_text, write_text

MOST_ROWS = 10_000  # LightGBM's limit of rows a group in lambdarank


def fit_gbdt(
    x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray, *,
    group: np.ndarray | None = None, group_val: np.ndarray | None = None, weight: np.ndarray | None = None,
    objective: str = "binary", trees: int = 300, leaves: int = 31, learning_rate: float = 0.05, min_rows: int = 20,
    l2: float = 1.0, column_share: float = 0.8, row_share: float = 0.8, patience: int = 30, truncation: int = 30,
    seed: int = 0, num_threads: int = 1, feature_names: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> lgb.Booster:  # fmt: skip
    """Fit at most `trees` trees, keeping as many as were best on the validation rows (logloss, or
    nDCG@10).

    x (n, f) float, NaN = missing; y (n,) bool, numbers in 0..1 for cross_entropy, integer grades
    0..30 for lambdarank; group (g,) sizes of the runs of rows that belong together, needed by
    lambdarank; weight (n,). The same inputs and seed give the same trees. Raises KarmafunnelError
    for labels of one class, labels that are not finite, sizes that do not add up, an unknown
    objective.
    """
    metrics = {"binary": "binary_logloss", "cross_entropy": "cross_entropy", "lambdarank": "ndcg"}
    if objective not in metrics:
        raise KarmafunnelError(f"gbdt: objective needs one of {list(metrics)}, found {objective!r}")
    names = list(feature_names) if feature_names is not None else [f"f{i}" for i in range(np.shape(x)[1])]
    y = checked(x, y, group, objective, names, "training")
    y_val = checked(x_val, y_val, group_val, objective, names, "validation")
    if np.ptp(y) == 0:
        raise KarmafunnelError(f"gbdt: needed training labels of more than one class, found {len(y)} rows all labelled {y[0]:g}")
    params = {
        "objective": objective, "num_leaves": leaves, "learning_rate": learning_rate, "min_data_in_leaf": min_rows,
        "lambda_l2": l2, "feature_fraction": column_share, "bagging_fraction": row_share, "bagging_freq": int(row_share < 1),
        "metric": metrics[objective], "eval_at": [10],
        "lambdarank_truncation_level": truncation, "label_gain": [2**i - 1 for i in range(31)],
        "seed": seed, "deterministic": True, "force_row_wise": True, "num_threads": num_threads, "verbosity": -1,
    }  # fmt: skip
    data = lgb.Dataset(x, y, group=group, weight=weight, feature_name=names, params=params)
    held = data.create_valid(x_val, y_val, group=group_val)
    callbacks: list[Callable[..., Any]] = [lgb.early_stopping(patience, verbose=False)] if patience else []
    if progress is not None:
        callbacks.append(reporter(progress, trees))
    try:
        return lgb.train(params, data, num_boost_round=trees, valid_sets=[held], callbacks=callbacks)
    except lgb.basic.LightGBMError as error:
        raise KarmafunnelError(f"gbdt: LightGBM refused {len(y)} rows of {len(names)} features: {error}") from error


def checked(x: np.ndarray, y: np.ndarray, group: np.ndarray | None, objective: str, names: list[str], what: str) -> np.ndarray:
    """Labels as float32; raises KarmafunnelError where rows, labels, names and groups do not fit
    together.
    """
    rows, columns = np.shape(x)
    if rows == 0 or len(y) != rows or columns != len(names):
        raise KarmafunnelError(
            f"gbdt: needed {what} rows with a label and a name each, found x {np.shape(x)}, {len(y)} labels, {len(names)} names"
        )
    labels = np.asarray(y, dtype=np.float32)
    if not np.isfinite(labels).all():
        row = int(np.argmin(np.isfinite(labels)))
        raise KarmafunnelError(f"gbdt: needed finite {what} labels, found {labels[row]} in row {row}")
    if objective == "binary" and not np.isin(labels, (0, 1)).all():
        raise KarmafunnelError(f"gbdt: needed {what} labels 0 or 1, found {labels[~np.isin(labels, (0, 1))][0]:g}")
    if objective == "cross_entropy" and (labels.min() < 0 or labels.max() > 1):
        raise KarmafunnelError(f"gbdt: needed {what} labels in 0..1, found {labels.min():g} to {labels.max():g}")
    if objective == "lambdarank":
        if group is None or np.sum(group) != rows:
            found = "none" if group is None else f"a sum of {int(np.sum(group))}"
            raise KarmafunnelError(f"gbdt: lambdarank needs {what} group sizes that add up to {rows} rows, found {found}")
        if np.max(group) > MOST_ROWS:
            raise KarmafunnelError(
                f"gbdt: lambdarank takes at most {MOST_ROWS} rows a group, found one of {int(np.max(group))} in {what}"
            )
        if labels.min() < 0 or labels.max() > 30 or (labels != np.round(labels)).any():
            raise KarmafunnelError(
                f"gbdt: lambdarank needs {what} grades among 0, 1, ... 30, found {labels.min():g} to {labels.max():g}"
            )
    return labels


def reporter(progress: Callable[[str], None], trees: int) -> Callable[[lgb.callback.CallbackEnv], None]:
    """A LightGBM callback that tells every fiftieth tree."""

    def report(env: lgb.callback.CallbackEnv) -> None:
        if (env.iteration + 1) % 50 == 0 and env.evaluation_result_list:
            progress(f"trees: {env.iteration + 1} of at most {trees}, validation {env.evaluation_result_list[0][2]:.4f}")

    return report


def predict_gbdt(booster: lgb.Booster, x: np.ndarray, num_threads: int = 1) -> np.ndarray:
    """Score of every row, float32 (n,): a probability for `binary` and `cross_entropy`, an
    unbounded score for `lambdarank`.
    """
    if np.shape(x)[1] != booster.num_feature():
        raise KarmafunnelError(f"gbdt: needed {booster.num_feature()} features {booster.feature_name()}, found {np.shape(x)[1]}")
    if len(x) == 0:
        return np.zeros(0, dtype=np.float32)
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
        raise KarmafunnelError(f"{path}: needed a LightGBM text file as it was written, found: other bytes, or none")
    try:
        return lgb.Booster(model_str=read_text(path).partition("\n")[2])
    except lgb.basic.LightGBMError as error:
        raise KarmafunnelError(f"{path}: needed a LightGBM text file, found: {error}") from error
