"""Rankers and pre-rankers: each formula against one written out, planted signals, teachers,
calibration, refusals.
"""

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models.ctr import (
    COLD,
    DCN,
    DIN,
    ESMM,
    Batch,
    COLDConfig,
    Cross,
    DCNConfig,
    DINConfig,
    FitOptions,
    Shape,
    entire_space_loss,
    fit_ctr,
    load_ctr,
    predict_ctr,
    save_ctr,
)
from karmafunnel.models.embedders import Cooccurrence, RandomVectors, TfidfSVD
from karmafunnel.models.sasrec import SASRec
from karmafunnel.stages.blend import Blend
from karmafunnel.stages.calibration import (
    Isotonic,
    Temperature,
    fit_calibration,
    load_calibration,
    probabilities,
    save_calibration,
)
from karmafunnel.stages.context import Context
from karmafunnel.stages.features import (
    BM25,
    Column,
    ItemColumn,
    Own,
    Popularity,
    Price,
    Similarity,
    SimTier,
    Upstream,
    Vectors,
)
from karmafunnel.stages.frame import ITEM, RANK, REQUEST, SCORE
from karmafunnel.stages.learn import (
    PositionBias,
    Sample,
    Teacher,
    Teachers,
    TrainingRows,
    training_rows,
)
from karmafunnel.stages.prerank import COLDPreRank, LightGBMPreRank, TwoTowerPreRank
from karmafunnel.stages.rank import DCNRank, DINRank, ESMMRank, LightGBMRank, happened
from karmafunnel.stages.recall import (
    HNSW,
    IVF,
    BM25Recall,
    ItemKNN,
    Join,
    Popular,
    Repeat,
    VectorRecall,
)
from karmafunnel.stages.rows import Rows
from karmafunnel.stages.stage import FittedFunnel, Funnel, Stage, fit_embedders
from shop import make_shop

pytestmark = pytest.mark.slow

N_ITEMS = 40
FEATURES = (Upstream(), Popularity(), Own(), Similarity("tfidf"), BM25())
SAMPLE = Sample(passed=20)


def shopping(n: int, seed: int) -> Batch:
    """Users click what is of their history's kind (item % 5), and buy of that what is of kind item
    % 2 = 1.
    """
    rng = np.random.default_rng(seed)
    liked = rng.integers(0, 5, n)
    items = np.stack([rng.choice(N_ITEMS, 10, replace=False) for _ in range(n)])
    history = liked[:, None] + 5 * rng.integers(0, N_ITEMS // 5, (n, 6))

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    clicked = rng.random(items.shape) < sigmoid(4.0 * (items % 5 == liked[:, None]) - 2)
    bought = clicked & (rng.random(items.shape) < sigmoid(4.0 * (items % 2) - 2))
    dense = rng.normal(size=(*items.shape, 3))
    weight = (rng.random(items.shape) < 0.95).astype(np.float32)
    request = rng.normal(size=(n, 2))
    return Batch(
        items,
        dense,
        history,
        clicked.astype(np.float32),
        weight,
        request,
        bought=bought.astype(np.float32),
    )


def auc(score: np.ndarray, label: np.ndarray) -> float:
    positive, negative = score[label], score[~label]
    return float((np.sign(positive[:, None] - negative[None]) / 2 + 0.5).mean())


# -- formulas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [0, 2])
def test_cross_layer_is_its_formula(low: int) -> None:
    torch.manual_seed(0)
    layer = Cross(4, low).double()
    matrix = layer.up.weight @ layer.down.weight if low else layer.up.weight  # type: ignore[operator]
    assert (torch.linalg.matrix_rank(matrix) == (low or 4)).all()
    x0, x = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    out = layer(x0, x)
    for n in range(3):
        for i in range(4):
            inner = sum(matrix[i, j] * x[n, j] for j in range(4)) + layer.up.bias[i]
            assert torch.isclose(out[n, i], x0[n, i] * inner + x[n, i])


def test_dcn_is_cross_and_deep_side_by_side() -> None:
    """One candidate at a time, by matrices; missing numbers count as the mean."""
    model = DCN(Shape(N_ITEMS, 3, 2), DCNConfig(dim=4, crosses=2, low=3, hidden=(6, 5)), seed=1)
    batch = shopping(4, 0)
    batch.dense[0, 0, 1] = np.nan
    model.observe([batch])
    got = predict_ctr(model, batch)
    tensors = batch.to_torch()
    with torch.no_grad():
        for n, c in np.ndindex(4, 10):
            item = int(batch.items[n, c])
            row = item + 2 if model.inputs.is_candidate[item] else 1
            past = torch.stack([model.inputs.id.weight[int(i) + 2] for i in batch.history[n]]).mean(
                dim=0
            )
            numbers = (tensors.dense[n, c] - model.inputs.dense_mean) / model.inputs.dense_scale
            request = (tensors.request[n] - model.inputs.request_mean) / model.inputs.request_scale
            x = x0 = torch.cat(
                [model.inputs.id.weight[row], past, request, torch.nan_to_num(numbers)]
            )
            for layer in model.crosses:
                x = x0 * (layer.up.weight @ (layer.down.weight @ x) + layer.up.bias) + x
            first, _, _, second = model.deep
            deep = torch.relu(
                second.weight @ torch.relu(first.weight @ x0 + first.bias) + second.bias
            )
            logit = model.head.weight[0] @ torch.cat([x, deep]) + model.head.bias[0]
            assert np.isclose(logit.item(), got[n, c], atol=1e-5)


def test_cold_weighs_groups() -> None:
    """Every group times its own sigmoid, then the net; a group with weight 0 is not read."""
    # no id is dropped
    model = COLD(Shape(N_ITEMS, 3, 2), COLDConfig(dim=4, hidden=(6,), groups=(1, 2)), seed=1).eval()
    batch = shopping(4, 0)
    model.observe([batch])
    tensors = batch.to_torch()
    with torch.no_grad():
        x = model.crossed(tensors)
        assert x.shape == (4, 10, 3 * 4 + 2 + 3) and torch.allclose(
            x[..., :4] * x[..., 4:8], x[..., 8:12]
        )
        s = 1 / (1 + torch.exp(-(x @ model.squeeze.weight.T + model.squeeze.bias)))
        assert torch.allclose(s, model.weights(tensors)) and s.shape == (4, 10, 6)
        edges = [0, 4, 8, 12, 14, 15, 17]
        weighed = torch.cat(
            [s[..., g : g + 1] * x[..., edges[g] : edges[g + 1]] for g in range(6)], dim=-1
        )
        first, _, _, second = model.mlp
        expected = (
            torch.relu(weighed @ first.weight.T + first.bias) @ second.weight[0] + second.bias
        )
        assert np.allclose(predict_ctr(model, batch), expected.numpy(), atol=1e-5)
        # nor do the other groups' weights read it
        model.squeeze.bias[5], model.squeeze.weight[:, 15:] = -1e4, 0
        numbers = replace(batch, dense=batch.dense * [1, 50, 50])
        assert np.allclose(predict_ctr(model, numbers), predict_ctr(model, batch), atol=1e-5)


def test_esmm_loss_is_its_formula() -> None:
    """BCE(p, click) + BCE(p q, purchase) over all labelled cells; far out it stays a number, and so
    does its gradient.
    """
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(2, 3, 2)) * 2, dtype=torch.float64)
    click, weight = torch.tensor([[1.0, 1, 0], [0, 1, 0]]), torch.tensor([[1.0, 2, 1], [1, 1, 0]])
    bought = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    batch = Batch(None, None, None, click, weight, bought=bought)
    total = 0.0
    for n, c in np.ndindex(2, 3):
        p, q = 1 / (1 + np.exp(-logits[n, c].numpy()))
        for chance, y in ((p, click[n, c].item()), (p * q, bought[n, c].item())):
            total -= weight[n, c].item() * (y * np.log(chance) + (1 - y) * np.log(1 - chance))
    value, n = entire_space_loss(logits, batch)
    assert np.isclose(value.item(), total) and n.item() == 6
    far = torch.tensor(
        [[[80.0, 80], [-80, 80], [80, -80]], [[-80, -80], [40, 40], [0, 0]]], requires_grad=True
    )
    entire_space_loss(far, batch)[0].backward()
    assert far.grad is not None and torch.isfinite(far.grad).all()


def test_how_fixed_vectors_enter_is_decided_once() -> None:
    """SimTier alone leaves the attention as it is, SA-TA alone adds no input; raw vectors stand
    beside the ids.
    """
    vectors = np.random.default_rng(0).normal(size=(N_ITEMS, 7)).astype(np.float32)
    shape, batch = Shape(N_ITEMS, 3, 2, n_vector=7), shopping(4, 0)
    made = {
        use: DIN(shape, DINConfig(dim=4, similar=use), vectors=vectors)  # type: ignore[arg-type]
        for use in ("simtier", "sata", "both", "raw")
    }
    plain = DIN(shape, DINConfig(dim=4))
    width = 3 * 4 + 3 + 2
    assert {use: m.width - width for use, m in made.items()} == {
        "simtier": 88,
        "sata": 0,
        "both": 88,
        "raw": 3 * 16,
    }
    assert plain.width == width
    has = {
        use: (m.tier is not None, m.gate is not None, m.project is not None)
        for use, m in made.items()
    }
    assert has == {
        "simtier": (True, False, False), "sata": (False, True, False), "both": (True, True, False), "raw": (False, False, True)
    }  # fmt: skip
    with torch.no_grad():
        # the same attention, gates at 1 0 0: only the histogram stands before the rest
        for use in ("simtier", "both"):
            made[use].load_state_dict(
                {k: v for k, v in plain.state_dict().items() if "head" not in k}, strict=False
            )
            assert torch.allclose(
                made[use].represent(batch.to_torch())[..., 88:],
                plain.represent(batch.to_torch()),
                atol=1e-5,
            )
        gated, gate = made["sata"], torch.tensor([0.0, 1.0, 0.0])
        assert gated.gate is not None
        gated.gate.copy_(gate)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        # nothing observed: all unknown
        ids = gated.inputs.id.weight[torch.tensor(batch.history[0]) * 0 + 1].numpy()
        pooled = (unit[batch.items[0]] @ unit[batch.history[0]].T) @ ids
        assert np.allclose(gated.represent(batch.to_torch())[0, :, 4:8].numpy(), pooled, atol=1e-5)
    with pytest.raises(
        KarmafunnelError,
        match="similar needs '', 'simtier', 'sata', 'both' or 'raw', found 'cooked'",
    ):
        DIN(shape, DINConfig(similar="cooked"), vectors=vectors)  # type: ignore[arg-type]


def test_they_start_at_the_rate_of_positives() -> None:
    batch = shopping(50, 0)
    model = ESMM(DIN(Shape(N_ITEMS, 3, 2), DINConfig(dim=4)))
    model.observe([batch])
    clicks, buys = ((batch.weight * x).sum() for x in (batch.label, batch.bought))
    p, q = (1 / (1 + np.exp(-layer[-1].bias.item())) for layer in (model.trunk.head, model.buy))  # type: ignore[index]
    assert np.isclose(p, clicks / batch.weight.sum(), atol=0.01) and np.isclose(
        q, buys / clicks, atol=0.01
    )


# -- ESMM learns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trunk",
    [
        DIN(Shape(N_ITEMS, 3, 2), DINConfig(dim=8, unknown=0.02)),
        DCN(Shape(N_ITEMS, 3, 2), DCNConfig(dim=8, unknown=0.02)),
    ],
    ids=["DIN", "DCN"],
)
def test_esmm_learns_both_and_is_saved(trunk: DIN | DCN, tmp_path: Path) -> None:
    model = ESMM(trunk)
    fit_ctr(model, shopping(800, 0), shopping(200, 1), FitOptions(rate=1e-2, epochs=8))
    test = shopping(300, 2)
    logits = predict_ctr(model, test)
    assert logits.shape == (300, 10, 2)
    clicked, bought = test.label > 0, test.bought > 0
    assert auc(logits[..., 0].ravel(), clicked.ravel()) > 0.75
    assert auc(logits[..., 1][clicked], bought[clicked]) > 0.75
    # what makes a click does not make a purchase here
    assert auc(logits[..., 0][clicked], bought[clicked]) < 0.6
    save_ctr(model, tmp_path / "kept")
    assert predict_ctr(load_ctr(tmp_path / "kept"), test).tobytes() == logits.tobytes()
    with pytest.raises(KarmafunnelError, match="ESMM: needs both labels"):
        fit_ctr(model, replace(test, bought=None), test)
    with pytest.raises(KarmafunnelError, match="ESMM: loss needs 'bce', found 'listwise'"):
        fit_ctr(model, test, test, FitOptions(loss="listwise"))


# -- calibration -----------------------------------------------------------------------------------


def logloss(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.where(y, np.log(p), np.log(1 - p)).mean())


@pytest.mark.parametrize("kind", ["isotonic", "temperature"])
def test_calibration_helps_on_rows_held_back(kind, tmp_path: Path) -> None:
    """True log odds, told three times too loud and one too high."""
    rng = np.random.default_rng(0)
    odds = rng.normal(-1, 2, 8000)
    label = rng.random(8000) < 1 / (1 + np.exp(-odds))
    score = 3 * odds + 1
    fit, held = slice(4000), slice(4000, None)
    fitted = fit_calibration(kind, score[fit], label[fit], "rank")
    raw, best = (logloss(1 / (1 + np.exp(-x[held])), label[held]) for x in (score, odds))
    assert (
        best - 0.002
        < logloss(np.clip(fitted(score[held]), 1e-5, 1 - 1e-5), label[held])
        < best + 0.02
        < raw - 0.2
    )
    if isinstance(fitted, Temperature):
        assert np.isclose(fitted.temperature, 3, rtol=0.1) and np.isclose(
            fitted.shift, -1 / 3, atol=0.1
        )
        assert (np.diff(fitted(np.sort(score))) > 0).all()
    save_calibration(fitted, tmp_path / "calibration.json")
    again = load_calibration(tmp_path / "calibration.json")
    assert again == fitted and np.array_equal(again(score), fitted(score))


def test_calibrations_by_hand() -> None:
    label = np.array([False, True, False, True])
    assert np.allclose(
        Isotonic.fit(np.arange(4.0), label)(np.array([-9.0, 1, 1.5, 2, 3, 9])),
        [1e-5, 0.5, 0.5, 0.5, 1, 1],
        atol=1e-4,
    )
    for fitted in (Isotonic.fit(np.full(4, 7.0), label), Temperature.fit(np.full(4, 7.0), label)):
        assert np.allclose(fitted(np.full(2, 7.0)), 0.5, atol=1e-3)  # all-equal scores: their rate
    # never turns an order round
    assert Temperature.fit(-np.arange(100.0), np.arange(100) > 50).temperature > 0


def test_calibration_refuses(tmp_path: Path) -> None:
    with pytest.raises(KarmafunnelError, match="rank: needs finite scores to calibrate, found nan"):
        fit_calibration("isotonic", np.array([0.0, np.nan]), np.array([True, False]), "rank")
    with pytest.raises(
        KarmafunnelError,
        match=r"rank: calibrated='temperature' needs rows .* found 0 with it among 2",
    ):
        fit_calibration("temperature", np.zeros(2), np.zeros(2, bool), "rank")
    for bad in (1.5, -0.1, np.nan):
        with pytest.raises(
            KarmafunnelError, match=r"rank: needs probabilities in 0..1, found .* \(1 such rows\)"
        ):
            probabilities(np.array([0.5, bad]), "rank")
    with pytest.raises(
        KarmafunnelError, match="calibrated needs 'isotonic', 'temperature' or '', found True"
    ):
        DINRank(calibrated=True)  # type: ignore[arg-type]
    (tmp_path / "c.json").write_text('{"kind": "magic"}')
    with pytest.raises(KarmafunnelError, match=r"c\.json: .*kind"):
        load_calibration(tmp_path / "c.json")


# -- stages on a small shop ------------------------------------------------------------------------


@cache
def context(label: str = "click", seed: int = 0) -> Context:
    made = Context(make_shop(n_items=60, n_requests=1200), {}, label, seed)
    made.embeddings = fit_embedders({"tfidf": TfidfSVD(dim=16)}, made, None)
    return made


@cache
def upstream(label: str = "click", seed: int = 0) -> FittedFunnel:
    return Funnel((Join([VectorRecall("tfidf", k=30), Popular(k=30)], k=50),)).fit(
        context(label, seed)
    )


@cache
def fitted(stage: Stage, label: str = "click", seed: int = 0) -> FittedFunnel:
    before = upstream(label, seed)
    return FittedFunnel(before.context, (*before.stages, stage.fit(before.context, before)))


def shown_auc(funnel: FittedFunnel) -> float:
    """gAUC over the lists of W3."""
    requests = funnel.context.log.requests_in("W3")
    rows = funnel.run(requests, funnel.context.logged(requests))[-1].tracked
    groups = [g for _, g in rows.group_by(REQUEST) if 0 < g["truth"].sum() < g.height]
    return float(np.mean([auc(g[SCORE].to_numpy(), g["truth"].to_numpy()) for g in groups]))


@pytest.mark.parametrize(
    "kind",
    [LightGBMRank, DINRank, DCNRank, ESMMRank, LightGBMPreRank, TwoTowerPreRank, COLDPreRank],
)
def test_each_learns_what_shoppers_like(kind) -> None:
    """Two requests in three name what the shopper likes, and history does always: .5 is chance,
    popularity is no help.
    """
    by_recall = shown_auc(upstream())
    assert shown_auc(fitted(kind(k=20, features=FEATURES, sample=SAMPLE))) > max(0.75, by_recall)


@pytest.mark.parametrize("kind", [DCNRank, ESMMRank, COLDPreRank])
def test_same_seed_same_bytes(kind) -> None:
    stage = kind(k=20, features=FEATURES, sample=Sample(passed=10, requests=80), epochs=2)
    requests = context().log.requests_in("W3")
    first, again, other = (
        FittedFunnel(before.context, (*before.stages, stage.fit(before.context, before)))
        .run(requests)[-1]
        .slate
        for before in (upstream(), upstream(), upstream(seed=1))
    )
    assert first.equals(again) and not first.equals(other)


@pytest.mark.parametrize("unknown", [0.3, 1.0])
def test_a_network_without_ids_knows_features_alone(unknown: float) -> None:
    batch = shopping(60, 0)
    others = replace(batch, items=(batch.items + 7) % N_ITEMS)
    for model in (
        DCN(Shape(N_ITEMS, 3, 2), DCNConfig(unknown=unknown)),
        DIN(Shape(N_ITEMS, 3, 2), DINConfig(unknown=unknown)),
        COLD(Shape(N_ITEMS, 3, 2), COLDConfig(unknown=unknown)),
    ):
        fit_ctr(model, batch, batch, FitOptions(epochs=1))
        same = np.array_equal(predict_ctr(model, batch), predict_ctr(model, others))
        assert same == (unknown == 1)


@pytest.mark.parametrize("label", ["click", "purchase"])
def test_esmm_puts_out_two_probabilities(label: str, tmp_path: Path) -> None:
    stage = ESMMRank(k=20, features=FEATURES, sample=SAMPLE, name="rank")
    funnel = fitted(stage, label)
    here, ready = funnel.context, funnel.stages[-1]
    requests = here.log.requests_in("W2b")
    rows = funnel.run(requests, here.logged(requests))[-1].tracked
    click, buy = rows["rank.p_click"].to_numpy(), rows["rank.p_buy"].to_numpy()
    score = rows[SCORE].to_numpy()
    assert np.allclose(score, click if label == "click" else click * buy, rtol=1e-5)
    assert np.allclose(ready.probability(score), score)
    clicked, bought = happened(here, rows[REQUEST].to_numpy(), rows[ITEM].to_numpy())
    assert click.mean() == pytest.approx(clicked.mean(), abs=0.005)  # calibrated on these very rows
    assert buy[clicked].mean() == pytest.approx(bought[clicked].mean(), abs=0.01)
    assert bought.sum()
    assert not (bought & ~clicked).any()
    assert bought.sum() < clicked.sum()
    ready.save(tmp_path)
    again = FittedFunnel(here, (*funnel.stages[:-1], stage.load(tmp_path, here)))
    assert again.run(requests)[-1].slate.equals(funnel.run(requests)[-1].slate)
    assert Column("rank.p_buy").columns[0] in funnel.run(requests)[-1].slate.columns


def test_esmm_refuses() -> None:
    log = context().log
    for what in ("purchases", "clicks", "exposures"):
        lacking = Log.make(
            log.items,
            log.requests,
            log.exposures,
            log.meta | {"has": log.meta["has"] | {what: False}},
        )
        with pytest.raises(
            KarmafunnelError, match=rf"rank \(ESMMRank\): needs shown lists .* found no {what}"
        ):
            ESMMRank(features=FEATURES).fit(replace(context(), log=lacking), upstream())
    unsold = Log.make(
        log.items, log.requests, log.exposures.with_columns(purchased=pl.lit(False)), log.meta
    )
    with pytest.raises(
        KarmafunnelError, match=r"needs clicks with and without a purchase .* with 0 purchases"
    ):
        ESMMRank(features=(), sample=SAMPLE).fit(replace(context(), log=unsold), upstream())
    for wrong in ({"trunk": "MLP"}, {"trunk": "DCN", "similar": "tfidf"}):
        with pytest.raises(KarmafunnelError, match="trunk needs 'DIN', or 'DCN' without similar"):
            ESMMRank(**wrong)
    with pytest.raises(KarmafunnelError, match="no teacher and no position_bias"):
        ESMMRank(loss="listwise")
    with pytest.raises(KarmafunnelError, match="use needs 'simtier'"):
        DINRank(similar="tfidf", use="cooked")  # type: ignore[arg-type]


# -- teachers --------------------------------------------------------------------------------------

TEACHER = LightGBMRank(
    leaves=31, l2=1.0, patience=30, features=FEATURES, sample=SAMPLE, objective="binary"
)


def agreement(a: FittedFunnel, b: FittedFunnel) -> float:
    """Mean Spearman correlation of the order that two give a request's candidates in W3."""
    requests = a.context.log.requests_in("W3")
    both = [f.run(requests)[-1].slate.select(REQUEST, ITEM, RANK) for f in (a, b)]
    joined = both[0].join(both[1], on=[REQUEST, ITEM])
    assert joined.height == both[0].height
    return float(joined.group_by(REQUEST).agg(pl.corr(RANK, f"{RANK}_right"))[RANK].mean())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "student",
    [
        LightGBMPreRank(k=50, features=FEATURES, sample=SAMPLE),
        pytest.param(
            LightGBMPreRank(k=50, features=FEATURES, sample=SAMPLE, objective="binary"),
            # .887 taught, .893 untaught: it is its teacher's twin already, and a teacher's chances
            # of the rows it was fitted on are little more than their labels
            marks=pytest.mark.xfail(
                reason="a student of the teacher's own kind gains nothing", strict=True
            ),
        ),
        COLDPreRank(k=50, features=FEATURES, sample=SAMPLE),
        TwoTowerPreRank(k=50, features=FEATURES, sample=SAMPLE, loss="bce"),
    ],
    ids=repr,
)
def test_a_student_is_nearer_its_teacher(student, tmp_path: Path) -> None:
    teacher = fitted(replace(TEACHER, k=50))
    taught = replace(student, teacher=Teacher(TEACHER, weight=0.9))
    assert agreement(fitted(taught), teacher) > agreement(fitted(student), teacher) + 0.03
    fitted(taught).stages[-1].save(tmp_path)
    again = taught.load(tmp_path, context())  # the teacher is not needed again
    requests = context().log.requests_in("W3")
    ran = FittedFunnel(context(), (*upstream().stages, again)).run(requests)[-1].slate
    assert ran.equals(fitted(taught).run(requests)[-1].slate)


def test_what_a_teacher_says_by_hand() -> None:
    """Two requests: a positive among three rows, taught 0 ln 2 0, and one of two, taught alike."""
    table = TrainingRows(
        np.zeros((5, 0)), np.array([True, False, False, False, True]), np.array([3, 3, 3, 8, 8]), np.arange(5, dtype=np.int32),
        np.array([0, np.log(2), 0, 1, 1], dtype=np.float32), np.array([50, 9, 51, 51, 60], dtype=np.int32),
    )  # fmt: skip
    one = DINRank().ready(context(), None)  # type: ignore[arg-type]
    ready = Teachers(Teacher(DINRank()), context(), (one,) * context().folds)
    shares = Teacher(DINRank(), weight=0.5).shares(table, ready)
    assert np.allclose(shares, [0.5 + 1 / 8, 1 / 4, 1 / 8, 1 / 4, 1 / 2 + 1 / 4])
    sharper = Teacher(DINRank(), weight=1, temperature=0.5).shares(table, ready)
    assert np.allclose(sharper, [1 / 6, 4 / 6, 1 / 6, 1 / 2, 1 / 2])
    chances = Teacher(DINRank(), weight=0.5).chances(table, ready)
    assert np.allclose(
        chances, [0.75, 1 / 3, 0.25, 0.5 / (1 + np.exp(-1)), 0.5 + 0.5 / (1 + np.exp(-1))]
    )
    # ranks 2 1 2 of the first, ties at the better one; 1 1 of the second: 1 / log2(1 + rank) = .63
    # 1 .63 1 1
    assert Teacher(DINRank(), weight=1).grades(table).tolist() == [3, 5, 3, 5, 5]
    assert Teacher(DINRank(), weight=0).grades(table).tolist() == [5, 0, 0, 0, 5]
    assert Teacher(DINRank(), weight=0.5).grades(table).tolist() == [4, 2, 2, 2, 5]
    # the cut of 50 is of all candidates: two rows of the first request pass, none of the second
    at_cut = Teacher(DINRank(), weight=1, cut=1)
    assert np.allclose(at_cut.shares(table, ready), [1 / 2, 1 / 2, 0, 1 / 2, 1 / 2])
    assert at_cut.chances(table, ready).tolist() == [1, 1, 0, 0, 0]
    assert at_cut.grades(table).tolist() == [5, 5, 0, 0, 0]
    half = Teacher(DINRank(), weight=0.5, cut=0.5)
    assert np.allclose(half.shares(table, ready)[:3], [1 / 2 + 3 / 16, 1 / 4, 1 / 16])
    assert np.allclose(half.chances(table, ready)[:3], [7 / 8, 5 / 12, 1 / 8])
    # 5 (1/2 + (.63 + 1) / 4), 5 (1 + 1) / 4 to even, 5 (.63 / 4), 5 / 4, 5 (1/2 + 1/4)
    assert half.grades(table).tolist() == [5, 2, 1, 1, 4]


def slow_target(teacher: Teacher, loss: str, table: TrainingRows, ranks: dict, log_odds: np.ndarray, p: np.ndarray):  # fmt: skip
    """The target of every row, one request and one row at a time.

    ranks: of each (request, item) among all candidates of the request.
    """
    target = np.zeros(len(table.y))
    for request in set(table.request.tolist()):
        rows = [i for i in range(len(table.y)) if table.request[i] == request]
        soft = [math.exp(log_odds[i] / teacher.temperature) for i in rows]
        passed = [ranks[request, table.item[i]] <= teacher.stage.k for i in rows]
        for i, e, inside in zip(rows, soft, passed, strict=True):
            label = float(table.y[i])
            if loss == "listwise":
                label /= sum(table.y[j] for j in rows)
                top = e / sum(soft)
                cut = inside / sum(passed) if sum(passed) else top
            else:
                higher = sum(table.taught[j] > table.taught[i] for j in rows)
                top = p[i] if loss == "binary" else 1 / math.log2(2 + higher)
                cut = float(inside)
            taught = (1 - teacher.cut) * top + teacher.cut * cut
            target[i] = (1 - teacher.weight) * label + teacher.weight * taught
    return np.round(5 * target.astype(np.float32)) if loss == "lambdarank" else target


@pytest.mark.parametrize("cut", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("k", [1, 8])
def test_a_target_is_that_of_plain_loops(k: int, cut: float) -> None:
    """With the teacher's rank counted among all candidates, of which a few are learnt from."""
    teacher = Teacher(replace(TEACHER, k=k), weight=0.6, cut=cut, temperature=2.0)
    teachers = Teachers.of(teacher, context(), upstream())
    few = Sample(passed=6, random=3)
    table = training_rows(TEACHER, FEATURES, context(), upstream(), ["W2a"], few, teachers)
    ranks = {}
    for request in np.unique(table.request):
        slate = upstream().run(np.array([request]))[-1].slate
        item = slate[ITEM].to_numpy()
        wanted = np.union1d(item, table.item[table.request == request])
        tracked = pl.DataFrame(
            {REQUEST: np.full(len(wanted), request), ITEM: wanted.astype(np.int32)}
        ).with_columns(truth=pl.lit(False))
        rows = upstream().pass_on(np.array([request]), tracked)
        scored = Rows(context(), rows.slate, rows.tracked, np.array([request]), rows)
        score = dict(zip(scored.item.tolist(), teachers.score(scored).tolist(), strict=True))
        tie = dict(zip(wanted, context().tie(np.full(len(wanted), request), wanted), strict=True))
        for one in wanted:
            before = [i for i in item if (-score[i], tie[i]) < (-score[one], tie[one])]
            ranks[int(request), one] = len(before) + 1
    assert all(ranks[r, i] == n for r, i, n in zip(table.request.tolist(), table.item, table.taught_rank, strict=True))  # fmt: skip
    assert table.taught_rank.max() > table.group_sizes.max()
    inside = table.taught_rank <= k
    assert 0 < inside.sum() < len(inside)
    log_odds, p = teachers.log_odds(table), teachers.probability(table)
    for loss, found in (
        ("listwise", teacher.shares(table, teachers)),
        ("binary", teacher.chances(table, teachers)),
        ("lambdarank", teacher.grades(table)),
    ):
        expected = slow_target(teacher, loss, table, ranks, log_odds, p)
        assert np.allclose(found, expected, atol=1e-6), loss


@pytest.mark.parametrize("student", [LightGBMPreRank(), COLDPreRank(), TwoTowerPreRank(loss="bce")], ids=repr)  # fmt: skip
def test_a_student_of_the_cut_finds_more_of_what_the_teacher_passes_on(student) -> None:
    """More than one that is taught nothing; the teacher is a blend."""
    blend = Blend([replace(TEACHER, calibrated=""), replace(TEACHER, leaves=7)], k=12)
    student = replace(student, k=12, features=FEATURES, sample=SAMPLE)
    requests = context().log.requests_in("W3")
    chosen = fitted(blend).run(requests)[-1].slate.select(REQUEST, ITEM)

    def shared(stage: Stage) -> float:
        slate = fitted(stage).run(requests)[-1].slate.select(REQUEST, ITEM)
        return slate.join(chosen, on=[REQUEST, ITEM]).height / chosen.height

    taught = replace(student, teacher=Teacher(blend, weight=1, cut=1))
    assert shared(taught) > shared(student) + 0.02


@pytest.mark.parametrize(
    "kept", [[], {"kind": "other"}, {"kind": "isotonic", "x": [[0]], "y": [0.1]}, {"kind": "isotonic", "x": [], "y": []},
             {"kind": "isotonic", "x": [0, 1], "y": [0.1]}, {"kind": "temperature", "temperature": "1", "shift": 0}, {"kind": "temperature", "temperature": 0, "shift": 0}],
    ids=repr,
)  # fmt: skip
def test_a_calibration_of_another_kind_is_refused_by_name(kept, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(KarmafunnelError, match=r"calibration\.json"):
        load_calibration(tmp_path / "calibration.json")


def test_teachers_refuse() -> None:
    with pytest.raises(KarmafunnelError, match=r"Teacher: needs a learnt stage: .* found ItemKNN"):
        Teacher(ItemKNN())  # type: ignore[arg-type]
    for name in ("weight", "cut"):
        with pytest.raises(KarmafunnelError, match=rf"{name} needs a number from 0 to 1, found 1.5"):
            Teacher(DINRank(), **{name: 1.5})
    unsure = LightGBMRank(features=FEATURES, sample=SAMPLE, calibrated="")
    with pytest.raises(
        KarmafunnelError,
        match=r"needs probabilities, found none of LightGBMRank.*; set calibrated= of it",
    ):
        LightGBMPreRank(
            features=FEATURES, sample=SAMPLE, objective="binary", teacher=Teacher(unsure)
        ).fit(context(), upstream())
    assert LightGBMPreRank(teacher=Teacher(DINRank(similar="tfidf"))).embedders() == ("tfidf",)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (LightGBMRank, {"trees": 0, "leaves": 1, "learning_rate": 0.0, "l2": -1.0}),
        (DINRank, {"dim": 0, "depth": 0, "epochs": 0, "rate": 0.0, "unknown": 1.1, "attention": 0}),
        (SimTier, {"depth": 0}), (Popularity, {"prior": 0.0, "days": -1.0}), (Price, {"depth": 0}), (Own, {"depth": 2.5}), (Vectors, {"dim": 0}),
        (ItemKNN, {"neighbours": 0, "decay": 1.5}), (BM25Recall, {"b": 2.0}), (Repeat, {"depth": 0}), (IVF, {"nprobe": 0}), (HNSW, {"m": 1}),
        (TfidfSVD, {"dim": 0, "decay": -0.5}), (Cooccurrence, {"dim": 0, "window": -1}), (RandomVectors, {"dim": True}), (SASRec, {"batch": 0}),
    ],
)  # fmt: skip
def test_fields_out_of_range_are_refused(kind: type, fields: dict[str, object]) -> None:
    needed = {SimTier: {"embedder": "tfidf"}, Vectors: {"embedder": "tfidf"}}.get(kind, {})
    kind(**needed, **({"dim": 8} if kind is Vectors else {}))
    for name, value in fields.items():
        with pytest.raises(
            KarmafunnelError, match=rf"{kind.__name__}: {name} needs a .*number .*, found {value!r}"
        ):
            kind(**needed | {name: value})


@pytest.mark.parametrize("kind", [LightGBMRank, DINRank])
def test_fields_of_another_kind_are_refused_by_name(kind: type) -> None:
    for wrong in (
        {"features": Popularity()},
        {"features": None},
        {"sample": 5},
        {"sample": None},
        {"teacher": LightGBMRank()},
        {"position_bias": "offset"},
        {"position_bias": PositionBias},
    ):
        (name,) = wrong
        with pytest.raises(KarmafunnelError, match=f"rank: {name} needs "):
            kind(**wrong)


def test_prices_are_needed_where_they_are_read() -> None:
    log = context().log
    bare = Log.make(
        log.items,
        log.requests,
        log.exposures,
        log.meta | {"has": log.meta["has"] | {"price": False}},
    )
    with pytest.raises(KarmafunnelError, match=r"Price\(\): needs prices, found none in log"):
        (Popular(k=30) >> LightGBMRank(features=[Price()])).fit(replace(context(), log=bare))


# -- what there is to learn from -------------------------------------------------------------------


def test_a_sample_needs_negatives() -> None:
    with pytest.raises(
        KarmafunnelError, match=r"Sample: needs negatives: .* Sample\(exposed=False, passed=0\)"
    ):
        Sample(exposed=False, passed=0)
    for wrong in ({"passed": -1}, {"random": 0.5}, {"exposed": 3}, {"requests": 0}):
        with pytest.raises(KarmafunnelError, match=f"Sample: {next(iter(wrong))} needs .*found"):
            Sample(**wrong)  # type: ignore[arg-type]
    for leak in (("W2b",), ("W1", "W3"), ("W2",), (), "W2a", ("W2a", "W2a"), ("W4",)):
        with pytest.raises(
            KarmafunnelError, match="Sample: windows needs a tuple of 'W1' and 'W2a', found"
        ):
            Sample(windows=leak)  # type: ignore[arg-type]
    for alone in (
        Sample(exposed=False, passed=5),
        Sample(passed=0),
        Sample(exposed=False, passed=0, random=5),
    ):
        assert shown_auc(fitted(LightGBMPreRank(features=FEATURES, sample=alone))) > 0.6


@pytest.mark.parametrize("objective", ["lambdarank", "binary"])
def test_nothing_to_tell_rows_apart(objective: str) -> None:
    """A column that is the same everywhere: equal scores, and the seeded hash decides; lists all
    clicked: an error that says so.
    """
    log = context().log
    flat = replace(
        context(),
        log=Log.make(
            log.items.with_columns(rating=pl.lit(3.0)), log.requests, log.exposures, log.meta
        ),
    )
    before = Funnel((Popular(k=30),)).fit(flat)
    stage = LightGBMPreRank(features=[ItemColumn("rating")], objective=objective, sample=SAMPLE)
    ready = stage.fit(flat, before)
    slate = FittedFunnel(flat, (*before.stages, ready)).run(log.requests_in("W3")[:5])[-1].slate
    assert slate[SCORE].n_unique() == 1
    tie = flat.tie(slate[REQUEST].to_numpy(), slate[ITEM].to_numpy())
    assert (
        slate.with_columns(tie=tie)
        .sort(REQUEST, "tie")[RANK]
        .equals(slate.sort(REQUEST, RANK)[RANK])
    )
    loved = Log.make(
        log.items, log.requests, log.exposures.with_columns(clicked=pl.lit(True)), log.meta
    )
    with pytest.raises(
        KarmafunnelError,
        match=r"needs requests of \['W2a'\] with truth and negatives .* Sample\(passed=0\)",
    ):
        replace(stage, sample=Sample(passed=0)).fit(
            replace(context(), log=loved),
            Funnel((Popular(k=30),)).fit(replace(context(), log=loved)),
        )
