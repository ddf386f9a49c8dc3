"""Position bias: propensities recovered from planted ones, weights and offsets written out, and
rankers that see through a production order.
"""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models.ctr import DCN, Batch, FitOptions, Shape, click_loss, fit_ctr, predict_ctr
from karmafunnel.models.examination import pooled, propensities
from karmafunnel.models.gbdt import LabelledRows, TreeOptions, fit_gbdt, predict_gbdt
from karmafunnel.stages.context import Context
from karmafunnel.stages.features import Popularity
from karmafunnel.stages.learn import PositionBias, Sample, TrainingRows, shown_at
from karmafunnel.stages.rank import DCNRank, ESMMRank, LightGBMRank
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.stage import Funnel
from test_rankers import FEATURES, context, upstream

LENGTH = 10


def lists(n: int, power: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Lists that production sorts by a noisy look at relevance, position k being looked at
    k^-power of the time: features (n, 10, 3), relevance, propensity and clicks (n, 10).
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, LENGTH, 3)).astype(np.float32)
    production = x[..., 0] + x[..., 2] + rng.normal(size=(n, LENGTH))
    order = np.argsort(-production, axis=1)
    x = np.take_along_axis(x, order[..., None], axis=1)
    relevance = 1 / (1 + np.exp(2.5 - 1.5 * x[..., 0] - x[..., 1]))  # x[2] says nothing
    examined = np.broadcast_to(np.arange(1.0, LENGTH + 1) ** -power, relevance.shape)
    return x, relevance, examined, rng.random((n, LENGTH)) < relevance * examined


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_propensities_are_those_that_were_planted(power):
    x, _, examined, clicked = lists(4000, power)
    position = np.tile(np.arange(1, LENGTH + 1), len(x))
    found = propensities(position, x.reshape(-1, 3), clicked.ravel())
    by_clicks = clicked.mean(axis=0) / clicked.mean(axis=0)[0]
    assert found == pytest.approx(examined[0], abs=0.12)
    # what is clicked less at the end of a list is also less relevant there
    off = [np.abs(curve - examined[0]).mean() for curve in (found, by_clicks)]
    assert off[0] < off[1] / 2


def test_positions_with_few_clicks_are_one_with_the_position_above():
    position = np.repeat(np.arange(1, 6), 40)
    clicked = np.concatenate([np.arange(40) < n for n in (30, 10, 9, 20, 0)])
    assert pooled(position, clicked).tolist() == np.repeat([0, 1, 1, 1, 1], 40).tolist()
    with pytest.raises(KarmafunnelError, match=r"at least 10 clicks at position 1.* found 0 of 9"):
        pooled(position[40:], clicked[40:] & (position[40:] == 3))


def test_one_position_has_propensity_1_and_clicks_on_everything_tell_none():
    rng = np.random.default_rng(0)
    x, clicked = rng.normal(size=(60, 2)), rng.random(60) < 0.6
    assert propensities(np.ones(60, np.int64), x, clicked).tolist() == [1]
    assert propensities(np.ones(60, np.int64), x, np.ones(60, bool)).tolist() == [1]
    with pytest.raises(KarmafunnelError, match="not clicked, found clicks on all 60"):
        propensities(np.arange(60) % 3 + 1, x, np.ones(60, bool))


def relevance_found(score: np.ndarray, relevance: np.ndarray) -> float:
    return float(np.corrcoef(score.ravel(), np.log(relevance / (1 - relevance)).ravel())[0, 1])


@pytest.mark.parametrize("use", ["offset", "weight"])
def test_trees_see_through_the_production_order(use):
    x, relevance, examined, clicked = lists(3000, 1.0)
    flat, y, theta = x.reshape(-1, 3), clicked.ravel(), examined.ravel()
    told = {"offset": np.log(theta)} if use == "offset" else {"weight": np.where(y, 1 / theta, 1)}
    options = TreeOptions(trees=150, leaves=7, min_rows=100, patience=0)
    scores = []
    for own in ({}, told):
        rows = LabelledRows(flat, y, **own)
        p = predict_gbdt(fit_gbdt(rows, rows, options), flat).astype(float)
        scores.append(np.log(p / (1 - p)))
    without, with_it = (relevance_found(score, relevance) for score in scores)
    assert with_it > 0.95 and with_it > without + 0.02


def test_offsets_of_nothing_change_nothing_and_the_rate_stays():
    x, _, examined, clicked = lists(1500, 1.0)
    flat, y = x.reshape(-1, 3), clicked.ravel()
    options = TreeOptions(trees=60, leaves=7, min_rows=100, patience=0)
    plain, zeros, offsets = (
        fit_gbdt(rows, rows, options)
        for rows in (
            LabelledRows(flat, y),
            LabelledRows(flat, y, offset=np.zeros(len(y))),
            LabelledRows(flat, y, offset=np.log(examined.ravel())),
        )
    )
    assert np.allclose(predict_gbdt(plain, flat), predict_gbdt(zeros, flat), atol=1e-3)
    # as at position 1, where all are examined
    first = predict_gbdt(offsets, flat).reshape(-1, LENGTH)[:, 0]
    assert first.mean() == pytest.approx(clicked[:, 0].mean(), abs=0.05)


def test_the_loss_with_offsets_and_weights_is_its_formula():
    rng = np.random.default_rng(0)
    logit, offset = rng.normal(size=(2, 3, 4))
    label = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], float)
    weight = np.array([[2, 1, 3, 0], [1, 1, 1, 4], [1, 1, 1, 1]], float)
    batch = Batch(*(torch.tensor(a) for a in (np.zeros((3, 4), int), np.zeros((3, 4, 0)))),
                  None, torch.tensor(label), torch.tensor(weight))  # fmt: skip
    value, n = click_loss(torch.tensor(logit + offset), batch, "listwise")
    wanted, counted = 0.0, 0.0
    for r in (0, 1):
        here = [c for c in range(4) if weight[r, c]]
        z = [logit[r, c] + offset[r, c] for c in here]
        chosen = [c for c in here if label[r, c]]
        for c in chosen:
            log_p = logit[r, c] + offset[r, c] - np.log(sum(np.exp(z)))
            wanted -= weight[r, c] * log_p / len(chosen)
            counted += weight[r, c] / len(chosen)
    assert float(value) == pytest.approx(wanted) and float(n) == pytest.approx(counted) == 6.5


@pytest.mark.parametrize("loss", ["bce", "listwise"])
def test_a_network_sees_through_the_production_order(loss):
    x, relevance, examined, clicked = lists(1200, 1.0)
    shape = clicked.shape
    nothing = np.full((len(x), 1), -1)
    scores = []
    for offset in (None, np.log(examined).astype(np.float32)):
        batch = Batch(np.zeros(shape, int), x, nothing, clicked.astype(np.float32),
                      np.ones(shape, np.float32), offset=offset)  # fmt: skip
        model = DCN(Shape(1, 3), seed=0)
        fit_ctr(model, batch, batch, FitOptions(epochs=8, rate=5e-3, loss=loss))
        scores.append(predict_ctr(model, batch))  # which knows no position
    if loss == "listwise":  # equal up to a number of each list
        scores = [score - score.mean(axis=1, keepdims=True) for score in scores]
        logit = np.log(relevance / (1 - relevance))
        logit -= logit.mean(axis=1, keepdims=True)
        without, with_it = (np.corrcoef(s.ravel(), logit.ravel())[0, 1] for s in scores)
    else:
        without, with_it = (relevance_found(score, relevance) for score in scores)
    assert with_it > 0.9 and with_it > without + 0.005


def test_rows_know_where_they_were_shown():
    here = context()
    rows = here.log.rows.filter(pl.col("position").is_not_null()).sample(50, seed=1)
    request, item = rows["request"].to_numpy(), rows["item"].to_numpy()
    assert shown_at(here, request, item).tolist() == rows["position"].to_list()
    shown = set(zip(*(here.log.rows[name].to_list() for name in ("request", "item")), strict=True))
    others = [(r, i) for r in request[:5] for i in range(here.log.n_items) if (r, i) not in shown]
    assert not shown_at(here, *np.array(others).T).any()


def test_weights_and_offsets_of_a_table():
    here = context()
    shown = here.log.rows.filter(pl.col("position") <= 3).head(60)
    request, item = shown["request"].to_numpy(), shown["item"].to_numpy()
    position = shown["position"].to_numpy()
    y = np.arange(len(request)) % 2 == 0
    table = TrainingRows(np.zeros((len(y), 1), np.float32), y, request, item)
    bias = PositionBias("weight", propensities=(1.0, 0.5, 0.05), most=8)
    curve = bias.curve("rank", here, table)
    wanted = [[1, 2, 8][p - 1] if chosen else 1 for p, chosen in zip(position, y, strict=True)]
    assert bias.counted(curve, here, table)["weight"].tolist() == wanted
    offset = PositionBias("offset", propensities=(1.0, 0.5)).counted(curve[:2], here, table)
    assert np.allclose(offset["offset"], np.log([1, 0.5, 0.5])[position - 1])
    absent = TrainingRows(table.x, y, request, np.full(len(y), here.log.n_items - 1, np.int32))
    away = shown_at(here, request, absent.item) == 0
    assert (bias.counted(curve, here, absent)["weight"][away] == 1).all()


def test_what_it_refuses():
    for wrong, message in (
        ({"use": "guess"}, "use needs 'offset' or 'weight'"),
        ({"propensities": (1.0, 0.0)}, "propensities needs a number above 0 and at most 1, found 0"),
        ({"propensities": (1.5,)}, "propensities needs a number above 0"),
        ({"propensities": 0.5}, "propensities needs numbers above 0.*found 0.5"),
        ({"propensities": None}, "propensities needs numbers above 0.*found None"),
        ({"most": 0.5}, "most needs a number from 1"),
    ):
        with pytest.raises(KarmafunnelError, match=message):
            PositionBias(**wrong)
    assert repr(PositionBias(propensities=np.array([1, 0.5]))) == "PositionBias(propensities=(1.0, 0.5))"
    with pytest.raises(KarmafunnelError, match="no teacher and no position_bias"):
        ESMMRank(position_bias=PositionBias())
    for kind in (LightGBMRank, DCNRank):
        few = kind(
            features=FEATURES,
            sample=Sample(passed=10, requests=5),
            position_bias=PositionBias(),
        )
        few_clicks = rf"rank \({kind.__name__}\): PositionBias\(\): .*10 clicks at position 1"
        with pytest.raises(KarmafunnelError, match=few_clicks):
            few.fit(context(), upstream())
        log = context().log
        nowhere = log.exposures.with_columns(position=pl.lit(None, pl.Int32))
        lacking = Context(Log.make(log.items, log.requests, nowhere, log.meta), {}, "click")
        popular = Funnel((Popular(k=40),)).fit(lacking)
        stage = replace(few, features=(Popularity(),), sample=Sample(passed=10))
        wanted = rf"rank \({kind.__name__}\).*shown at a known position.* found none of"
        with pytest.raises(KarmafunnelError, match=wanted):
            stage.fit(lacking, popular)
