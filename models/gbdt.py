"""Gradient-boosted trees (LightGBM): arrays in, scores out, saved as LightGBM's own text."""

from __future__ import annotations

import os
from pathlib import Path

import lightgbm as lgb
import numpy as np

from ..log import KarmafunnelError


def fit_gbdt(
    x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray, *, group: np.ndarray | None = None,
    group_val: np.ndarray | None = None, objective: str = "binary", trees: int = 300, leaves: int = 31, learning_rate: float = 0.05,
    min_rows: int = 20, l2: float = 1.0, seed: int = 0, patience: int = 30, feature_names: list[str] | None = None,
) -> lgb.Booster:  # fmt: skip
    """Fit trees with early stopping on the validation rows.

    x float32 (n, f), NaN where unknown; y (n,) 0/1 or graded; `group` sizes of the requests in row order, needed by
    "lambdarank" (Burges 2010). Deterministic for a seed and any number of threads. Raises KarmafunnelError for one-class
    labels or groups that do not add up.
    """
    for name, rows, labels, sizes in (("training", x, y, group), ("validation", x_val, y_val, group_val)):
        if len(rows) == 0 or len(np.unique(labels)) < 2:
            raise KarmafunnelError(f"LightGBM: {name} needs rows of two classes, found {len(rows)} rows of {np.unique(labels)}")
        if objective == "lambdarank" and (sizes is None or int(np.sum(sizes)) != len(rows)):
            raise KarmafunnelError(f"LightGBM: {name} needs group sizes adding up to {len(rows)} rows, found {sizes}")
    parameters = {
        "objective": objective, "num_leaves": leaves, "learning_rate": learning_rate, "min_data_in_leaf": min_rows, "lambda_l2": l2,
        "seed": seed, "deterministic": True, "force_row_wise": True, "verbosity": -1, "feature_fraction": 0.8, "bagging_fraction": 0.8,
        "bagging_freq": 1, "num_threads": int(os.environ.get("OMP_NUM_THREADS") or 0),
        "metric": "ndcg" if objective == "lambdarank" else "binary_logloss", "eval_at": [10], "lambdarank_truncation_level": 30,
    }  # fmt: skip
    names = feature_names or "auto"
    train = lgb.Dataset(x, y.astype(np.float32), group=group, feature_name=names)
    valid = lgb.Dataset(x_val, y_val.astype(np.float32), group=group_val, feature_name=names, reference=train)
    stop = lgb.early_stopping(patience, verbose=False)
    return lgb.train(parameters, train, num_boost_round=trees, valid_sets=[valid], callbacks=[stop])


def predict_gbdt(booster: lgb.Booster, x: np.ndarray) -> np.ndarray:
    """Raw scores (before any sigmoid), float32 (n,)."""
    if len(x) == 0:
        return np.zeros(0, dtype=np.float32)
    return booster.predict(np.ascontiguousarray(x), raw_score=True).astype(np.float32)


def save_gbdt(booster: lgb.Booster, path: Path) -> None:
    """Write LightGBM's text format, the trees up to the best iteration."""
    booster.save_model(str(path), num_iteration=booster.best_iteration)


def load_gbdt(path: Path) -> lgb.Booster:
    """The inverse of `save_gbdt`."""
    return lgb.Booster(model_file=str(path))
