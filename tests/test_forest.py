"""Scores of trees by our own kernel: LightGBM's bits, whatever the trees and the rows are."""

from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest
from karmafunnel.models import forest, gbdt
from karmafunnel.models.forest import Forest
from karmafunnel.models.gbdt import LabelledRows, TreeOptions

F = 6


def rows(n: int, seed: int, missing: float = 0.2) -> np.ndarray:
    """Columns of few values, of many, around 0, and with NaN in all but the first."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, F)).astype(np.float32)
    x[:, 1] = np.round(x[:, 1])
    x[:, 2] *= np.float32(1e-35)
    x[:, 3] = np.exp(15 * x[:, 3])
    x[:, 1:][rng.random((n, F - 1)) < missing] = np.nan
    return x


def fitted(objective: str, leaves: int, trees: int, seed: int = 0, **options: float) -> lgb.Booster:
    n, group = 4000, 20
    x = rows(n, seed)
    rng = np.random.default_rng(seed)
    known = np.nan_to_num(x)
    p = 1 / (1 + np.exp(-known[:, 0] - known[:, 1] - (known[:, 2] > 0) - np.isnan(x[:, 4])))
    y = p if objective == "cross_entropy" else rng.random(n) < p
    sizes = np.full(n // group, group) if objective == "lambdarank" else None
    train = LabelledRows(x, y, sizes)
    how = TreeOptions(objective, trees=trees, leaves=leaves, min_rows=1, patience=0, **options)
    return gbdt.fit_gbdt(train, train, how, seed=seed)


def at_borders(booster: lgb.Booster, n: int) -> np.ndarray:
    """Rows whose values are thresholds of the trees, and the numbers next to them."""
    found, rng = Forest.of(booster), np.random.default_rng(1)
    assert found is not None
    x = rows(n, 7)
    for column in range(F):
        border = found.threshold[found.feature == column]
        if len(border):
            mine = rng.random(n) < 0.7
            x[mine, column] = rng.choice(border, n)[mine]
            for side in (-np.inf, np.inf):
                mine = rng.random(n) < 0.3
                with np.errstate(over="ignore"):  # beyond the largest is infinity
                    x[mine, column] = np.nextafter(x[mine, column], np.float32(side))
    return x


@pytest.mark.parametrize("objective", ["lambdarank", "binary", "cross_entropy"])
@pytest.mark.parametrize(("leaves", "trees"), [(2, 5), (31, 40), (32, 3), (33, 3), (64, 20)])
def test_the_bits_are_those_of_lightgbm(
    objective: str, leaves: int, trees: int, tmp_path: Path
) -> None:
    booster = fitted(objective, leaves, trees)
    gbdt.save_gbdt(booster, tmp_path / "trees.txt")
    loaded = gbdt.load_gbdt(tmp_path / "trees.txt")
    found = Forest.of(loaded)
    assert found is not None
    assert len(found.value) > trees and found.probability == (objective != "lambdarank")
    x = np.concatenate([rows(700, 3), rows(300, 4, missing=0.9), at_borders(booster, 3000)])
    special = [0.0, -0.0, 1e-35, -1e-35, 1.1e-35, 1e-45, np.inf, -np.inf, np.nan, 3e38]
    x = np.concatenate([x, np.repeat(np.float32(special), F).reshape(-1, F)])
    want = gbdt.predict_gbdt(loaded, x)
    got = gbdt.predict_gbdt(loaded, x, forest=found)
    if objective == "lambdarank":
        assert got.tobytes() == want.tobytes()
    else:  # the exponential function of NumPy
        assert np.allclose(got, want, rtol=1e-7, atol=0)
    by_column = gbdt.predict_gbdt(loaded, np.asfortranarray(x), forest=found)
    assert by_column.tobytes() == got.tobytes()
    for n in (0, 1, 255, 256, 257):
        part = gbdt.predict_gbdt(loaded, x[:n], forest=found)
        assert part.tobytes() == got[:n].tobytes()


def test_the_machine_code_does_what_the_python_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    booster = fitted("lambdarank", 12, 4)
    found, x = Forest.of(booster), rows(300, 5)
    assert found is not None
    compiled = found.scores(x)
    monkeypatch.setattr(forest, "kernel", lambda: forest.add_leaves)
    assert found.scores(x).tobytes() == compiled.tobytes()


def test_only_the_best_trees_count() -> None:
    booster, x = fitted("lambdarank", 8, 20), rows(500, 1)
    booster.best_iteration = 7
    found = Forest.of(booster)
    assert found is not None and len(found.nodes) == 8
    want = gbdt.predict_gbdt(booster, x)
    assert np.array_equal(gbdt.predict_gbdt(booster, x, forest=found), want)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"num_leaves": 65}, "num_leaves=65"),
        ({"linear_tree": True}, "is_linear=1"),
        ({"zero_as_missing": True}, "[zero_as_missing: 1]"),
        ({"sigmoid": 0.5}, "sigmoid:0.5"),
        ({"objective": "regression"}, "objective=regression"),
        ({"min_data_per_group": 1}, "num_cat=1"),
        ({"boosting": "rf", "bagging_fraction": 0.5, "bagging_freq": 1}, "average_output"),
    ],
)
def test_trees_that_only_lightgbm_follows_are_left_to_it(parameters: dict, told: str) -> None:
    x = np.random.default_rng(0).integers(0, 9, (4000, 3)).astype(float)
    y = (x[:, 0] % 2 + x.sum(axis=1) % 3 > 1).astype(float)
    asked = {"objective": "binary", "verbosity": -1, "min_data_in_leaf": 1} | parameters
    categories = [0] if told == "num_cat=1" else "auto"
    data = lgb.Dataset(x, y, categorical_feature=categories)
    booster = lgb.train(asked, data, num_boost_round=3)
    assert told in booster.model_to_string()
    assert Forest.of(booster) is None


def test_constant_trees() -> None:
    x = np.zeros((50, F), np.float32)
    train = LabelledRows(x, np.arange(50) % 2 == 0)
    booster = gbdt.fit_gbdt(train, train, TreeOptions(trees=2, patience=0))
    found = Forest.of(booster)
    assert found is not None and len(found.feature) == 0
    want = gbdt.predict_gbdt(booster, x)
    assert np.array_equal(gbdt.predict_gbdt(booster, x, forest=found), want)


@pytest.mark.filterwarnings("error")
def test_infinite_thresholds_and_sums_beyond_the_exponential_function_warn_of_nothing() -> None:
    rng = np.random.default_rng(0)
    x = rng.choice(np.float32([-np.inf, -3e38, 0, 3e38, np.inf]), (2000, 2))
    y = np.isposinf(x[:, 0])
    steep = {"objective": "binary", "learning_rate": 1e4, "min_data_in_bin": 1, "verbosity": -1}
    booster = lgb.train(steep, lgb.Dataset(x, y), num_boost_round=3)
    found = Forest.of(booster)
    assert found is not None and not np.isfinite(found.threshold).all()
    want = gbdt.predict_gbdt(booster, x)
    assert set(want) == {0, 1}
    assert np.array_equal(gbdt.predict_gbdt(booster, x, forest=found), want)
