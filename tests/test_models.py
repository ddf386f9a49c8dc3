"""SASRec's parts, DIN, the two towers, boosted trees: arithmetic by hand or against a plain second
version, and learning.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models import gbdt
from karmafunnel.models.ctr import (
    DIN,
    Batch,
    ClickModel,
    DINConfig,
    FitOptions,
    Shape,
    TargetAttention,
    TwoTower,
    TwoTowerConfig,
    click_loss,
    fit_ctr,
    load_ctr,
    predict_ctr,
    save_ctr,
)
from karmafunnel.models.gbdt import LabelledRows, TreeOptions
from karmafunnel.models.sasrec import FullSoftmax, Network, SASRec, Windows, sampled_softmax, train
from karmafunnel.models.simtier import BINS
from karmafunnel.models.training import seeded
from torch.nn import functional as F

# -- SASRec: network and loss ----------------------------------------------------------------------


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network(SASRec(dim=16, length=12), 20).eval()


def test_a_later_item_changes_no_earlier_output(network: Network) -> None:
    items = torch.randint(0, 20, (3, 10))
    changed = items.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 20
    with torch.no_grad():
        one, other = network(items), network(changed)
    assert torch.equal(one[:, :6], other[:, :6])
    assert not torch.allclose(one[:, 6:], other[:, 6:])


def test_padding_changes_nothing(network: Network) -> None:
    """What stands after a sequence, and how much of it, does not reach its outputs."""
    items = torch.randint(0, 20, (3, 7))
    padded = F.pad(items, (0, 6), value=21)
    with torch.no_grad():
        assert torch.allclose(network(items), network(padded)[:, :7], atol=1e-6)


def test_the_order_of_a_history_matters(network: Network) -> None:
    with torch.no_grad():
        one, other = network(torch.tensor([[21, 3, 5, 8]])), network(torch.tensor([[21, 5, 3, 8]]))
    assert not torch.allclose(one[:, -1], other[:, -1], atol=1e-4)


def some_pairs(rows: int = 150, items: int = 30, pairs: int = 400) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    row = torch.sort(torch.randint(0, rows, (pairs,), generator=g)).values
    z = torch.randn(rows, 8, generator=g, dtype=torch.float64)
    e = torch.randn(items, 8, generator=g, dtype=torch.float64)
    return (
        z,
        e,
        row,
        torch.randint(0, items, (pairs,), generator=g),
        torch.rand(pairs, generator=g, dtype=torch.float64),
    )


def test_full_softmax_is_cross_entropy() -> None:
    """Value and both gradients, over several chunks, rows without a pair included."""
    z, e, row, target, weight = some_pairs()
    grads = []
    for custom in (True, False):
        a, b = z.clone().requires_grad_(), e.clone().requires_grad_()
        if custom:
            loss = FullSoftmax.apply(a, b, row, target, weight, 3.0)
        else:
            loss = (weight * F.cross_entropy(3.0 * a[row] @ b.T, target, reduction="none")).sum()
        (2 * loss).backward()
        grads.append((loss.detach(), a.grad, b.grad))
    for x, y in zip(*grads, strict=True):
        assert x is not None
        assert y is not None
        assert torch.allclose(x, y, rtol=1e-9)


def test_sampled_softmax_tends_to_the_full_one() -> None:
    """Many draws: the estimate of the normaliser, and so the loss, comes close; a drawn target
    counts once.
    """
    z, e, row, _, weight = some_pairs()
    target = (z[row] @ e.T).argmax(dim=1)  # likely targets, so that one counted twice would show
    q = torch.softmax(torch.linspace(0, 2, 30, dtype=torch.float64), 0)
    drawn = torch.multinomial(
        q, 50_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    full = FullSoftmax.apply(z, e, row[:40], target[:40], weight[:40], 1.0)
    sampled = sampled_softmax(z, e, row[:40], target[:40], weight[:40], 1.0, drawn, q.log())
    assert torch.allclose(full, sampled, rtol=5e-3)


# -- SASRec: training windows ----------------------------------------------------------------------


def purchases(baskets: list[tuple[str, list[int]]]) -> Log:
    """One request an hour, all in W1; item k is row k."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    requests = pl.DataFrame(
        {
            "request_id": [f"r{k}" for k in range(len(baskets))],
            "user_id": [user for user, _ in baskets],
            "ts": [start + timedelta(hours=k) for k in range(len(baskets))],
            "source": ["search"] * len(baskets),
            "window": ["W1"] * len(baskets),
        }
    )
    rows = [(f"r{k}", f"i{i:03d}", True) for k, (_, items) in enumerate(baskets) for i in items]
    exposures = pl.DataFrame(rows, schema=["request_id", "item_id", "purchased"], orient="row")
    items = pl.DataFrame(
        {"item_id": [f"i{i:03d}" for i in range(max(max(b) for _, b in baskets) + 1)]}
    )
    return Log.make(
        items, requests, exposures, {"name": "baskets", "has": {"purchases": True, "users": True}}
    )


def pairs_of(windows: Windows) -> set[tuple[tuple[int, ...], int, float]]:
    """(what the output has seen, what it must predict, weight) of every pair."""
    out = set()
    for w in range(len(windows.start)):
        for p in range(windows.first_pair[w], windows.first_pair[w + 1]):
            start = windows.start[w]
            seen = tuple(
                windows.catalogue[windows.events.item[start : start + windows.position[p]]].tolist()
            )
            assert windows.position[p] <= windows.size[w]
            out.add(
                (
                    seen,
                    int(windows.catalogue[windows.target[p]]),
                    round(float(windows.weight[p]), 4),
                )
            )
    return out


def test_windows_by_hand() -> None:
    """A basket is predicted from what came before it, never from its own other items."""
    log = purchases([("u", [4]), ("v", [7]), ("u", [1, 2]), ("u", [5])])
    assert pairs_of(Windows.of(log, 10, 0, 0, "test")) == {
        ((), 4, 1.0),
        ((4,), 1, 0.5),
        ((4,), 2, 0.5),
        ((4, 1, 2), 5, 1.0),
        ((), 7, 1.0),
    }


def test_long_sequences_are_cut_with_context() -> None:
    """Every event is a target once; beyond the first piece it is predicted from at least half a
    piece.
    """
    log = purchases([("u", [i]) for i in range(23)])
    windows = Windows.of(log, 6, 0, 0, "test")
    pairs = {target: seen for seen, target, _ in pairs_of(windows)}
    assert windows.n_pairs == len(pairs) == 23
    for target, seen in pairs.items():
        assert seen == tuple(range(target - len(seen), target))
        assert len(seen) == target if target <= 6 else 4 <= len(seen) <= 6


def test_batches_hold_every_pair_once() -> None:
    rng = np.random.default_rng(0)
    log = purchases(
        [
            (f"u{rng.integers(9)}", rng.choice(40, rng.integers(1, 4), replace=False).tolist())
            for _ in range(150)
        ]
    )
    windows = Windows.of(log, 5, 4, 0, "test")
    use = ~windows.tail
    assert 0 < windows.tail.sum() < windows.n_pairs
    found = []
    for items, cell, target, weight in windows.batches(4, rng, use):
        assert items[:, 0].eq(len(windows.catalogue) + 1).all(), "START first"
        row, position = np.divmod(cell.numpy(), items.shape[1])
        assert (np.diff(cell.numpy()) >= 0).all()
        found += list(
            zip(
                [tuple(items[r, 1 : p + 1].tolist()) for r, p in zip(row, position, strict=True)],
                target.tolist(),
                weight.tolist(),
                strict=True,
            )
        )
    expected = [
        (
            tuple(
                windows.events.item[
                    windows.start[w] : windows.start[w] + windows.position[p]
                ].tolist()
            ),
            windows.target[p],
            windows.weight[p],
        )
        for w in range(len(windows.start))
        for p in range(windows.first_pair[w], windows.first_pair[w + 1])
        if use[p]
    ]
    assert sorted(found) == sorted(expected)


def test_the_tail_is_last_requests_of_users_with_several() -> None:
    log = purchases([("u", [1]), ("v", [2]), ("w", [3]), ("u", [4, 5]), ("v", [6])])
    windows = Windows.of(log, 10, 99, 0, "test")
    assert sorted(windows.catalogue[windows.target[windows.tail]].tolist()) == [4, 5, 6]
    assert Windows.of(log, 10, 1, 0, "test").held.sum() in (1, 2)


def test_what_is_held_out_is_neither_target_nor_negative() -> None:
    """An item that stands only in the tail keeps the vector it was drawn with; every other one
    moves.
    """
    rng = np.random.default_rng(0)
    log = purchases([(f"u{k % 8}", [int(rng.integers(12))]) for k in range(80)] + [("u0", [20])])
    windows = Windows.of(log, 10, 99, 0, "test")
    for loss in ("full", "sampled"):
        config = SASRec(
            dim=8, loss=loss, negatives=32, warm=False, weight_decay=0.0, unknown=0.0, batch=4
        )  # type: ignore[arg-type]
        torch.manual_seed(7)
        drawn = Network(config, len(windows.catalogue)).item.weight.detach()
        after = train(
            config, windows, ~windows.tail, 2, 7, "cpu", lambda network, loss: False
        ).item.weight.detach()
        only_held = ~np.isin(np.arange(len(windows.catalogue)), windows.events.item[~windows.held])
        assert windows.catalogue[only_held].tolist() == [20]
        moved = (drawn != after)[:-2].any(dim=1).numpy()
        assert (moved == ~only_held).all()


# -- DIN and the two towers ------------------------------------------------------------------------


def test_factored_attention_is_the_naive_one() -> None:
    torch.manual_seed(0)
    attention = TargetAttention(8, 12).double()
    grads = []
    inputs = torch.randn(3, 7, 8, dtype=torch.float64), torch.randn(3, 5, 8, dtype=torch.float64)
    for f in (attention.forward, attention.naive):
        attention.zero_grad()
        c, h = (x.clone().requires_grad_() for x in inputs)
        out = f(c, h)
        assert out.shape == (3, 7, 5)
        (out**2).sum().backward()
        grads.append(
            [
                out.detach(),
                c.grad,
                h.grad,
                attention.first.weight.grad.clone(),
                attention.second.bias.grad.clone(),
            ]
        )
    for x, y in zip(*grads, strict=True):
        assert torch.allclose(x, y, rtol=1e-9, atol=1e-12)


N_ITEMS, N_GROUPS = 40, 5


def clicks(n: int, seed: int, interest: float = 4.0, length: int = 6) -> Batch:
    """Items belong to item % 5; users click what belongs to the group that fills most of their
    history. Numbers say nothing.
    """
    rng = np.random.default_rng(seed)
    liked = rng.integers(0, N_GROUPS, n)
    items = np.stack([rng.choice(N_ITEMS, 10, replace=False) for _ in range(n)])
    items[::5, -2:] = -1
    own = liked[:, None] + N_GROUPS * rng.integers(0, N_ITEMS // N_GROUPS, (n, length))
    history = np.where(rng.random((n, length)) < 0.8, own, rng.integers(0, N_ITEMS, (n, length)))
    history[rng.random((n, length)) < 0.2] = -1
    logit = interest * (items % N_GROUPS == liked[:, None]) - 2 + 0.3 * (items % 3)
    label = (rng.random(items.shape) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    dense = rng.normal(size=(*items.shape, 2)).astype(np.float32)
    weight = ((items >= 0) & (rng.random(items.shape) < 0.95)).astype(np.float32)
    age, action = (
        rng.integers(1, 10**9, history.shape),
        rng.integers(1, 3, history.shape).astype(np.int8),
    )
    return Batch(items, dense, history, label, weight, age=age, action=action)


def gauc(score: np.ndarray, batch: Batch) -> float:
    """Mean AUC of the requests that have both classes."""
    out = []
    for s, y, w in zip(score, batch.label, batch.weight, strict=True):
        pos, neg = s[(w > 0) & (y > 0)], s[(w > 0) & (y == 0)]
        if len(pos) and len(neg):
            out.append((np.sign(pos[:, None] - neg[None, :]) / 2 + 0.5).mean())
    return float(np.mean(out))


def models() -> list[ClickModel]:
    similar = np.eye(N_GROUPS, dtype=np.float32)[np.arange(N_ITEMS) % N_GROUPS]
    return [
        DIN(Shape(N_ITEMS, 2), DINConfig(dim=8, unknown=0.02)),
        DIN(
            Shape(N_ITEMS, 2, n_vector=N_GROUPS), DINConfig(dim=8, similar="both"), vectors=similar
        ),
        TwoTower(Shape(N_ITEMS, 2), TwoTowerConfig(dim=8, unknown=0.02, item_columns=(0,))),
    ]


NAMES = ["DIN", "DIN-similarity", "TwoTower"]


@pytest.fixture(scope="module")
def trained() -> dict[str, ClickModel]:
    fitted = dict(zip(NAMES, models(), strict=True))
    for model in fitted.values():
        fit_ctr(model, clicks(800, 0), clicks(200, 1), FitOptions(rate=1e-2, epochs=10))
    return fitted


@pytest.mark.parametrize("name", NAMES)
class TestClickModels:
    def test_interest_beats_popularity(self, name: str, trained: dict[str, ClickModel]) -> None:
        test = clicks(500, 2)
        train = clicks(800, 0)
        popularity = np.bincount(
            train.items[train.items >= 0], train.label[train.items >= 0], minlength=N_ITEMS
        )
        assert (
            gauc(predict_ctr(trained[name], test), test) > gauc(popularity[test.items], test) + 0.15
        )

    def test_save_and_load(self, name: str, trained: dict[str, ClickModel], tmp_path: Path) -> None:
        model, test = trained[name], clicks(50, 3)
        save_ctr(model, tmp_path / "kept")
        vectors = (
            model.vectors[:-1].numpy() if isinstance(model, DIN) and model.config.similar else None
        )
        assert (
            predict_ctr(load_ctr(tmp_path / "kept", vectors), test).tobytes()
            == predict_ctr(model, test).tobytes()
        )
        assert [p.name for p in tmp_path.iterdir()] == ["kept"]

    def test_padding_changes_nothing(self, name: str, trained: dict[str, ClickModel]) -> None:
        """More padding of candidates and history, other requests in the batch: same logits."""
        test = clicks(40, 4)
        wider = replace(
            test,
            items=np.pad(test.items, ((0, 0), (0, 4)), constant_values=-1),
            dense=np.pad(test.dense, ((0, 0), (0, 4), (0, 0)), constant_values=np.nan),
            history=np.pad(test.history, ((0, 0), (3, 0)), constant_values=-1),
            age=np.pad(test.age, ((0, 0), (3, 0)), constant_values=5000),
            action=np.pad(test.action, ((0, 0), (3, 0)), constant_values=1),
        )
        whole = predict_ctr(trained[name], test)
        assert np.allclose(predict_ctr(trained[name], wider)[:, :10], whole, atol=1e-4)
        assert np.allclose(
            predict_ctr(trained[name], test.rows(slice(7, 8))), whole[7:8], atol=1e-4
        )

    def test_candidates_do_not_see_each_other(
        self, name: str, trained: dict[str, ClickModel]
    ) -> None:
        test = clicks(20, 5)
        order = np.random.default_rng(0).permutation(10)
        moved = replace(test, items=test.items[:, order], dense=test.dense[:, order])
        assert np.allclose(
            predict_ctr(trained[name], moved), predict_ctr(trained[name], test)[:, order], atol=1e-4
        )

    def test_without_history_and_without_numbers(
        self, name: str, trained: dict[str, ClickModel]
    ) -> None:
        test = clicks(20, 6)
        bare = replace(
            test, history=np.full_like(test.history, -1), dense=np.full_like(test.dense, np.nan)
        )
        assert np.isfinite(predict_ctr(trained[name], bare)).all()

    def test_same_seed_same_bytes(self, name: str) -> None:
        outputs = []
        for _ in range(2):
            model = models()[NAMES.index(name)]
            fit_ctr(model, clicks(200, 0), clicks(100, 1), FitOptions(epochs=2), seed=5)
            outputs.append(predict_ctr(model, clicks(50, 2)).tobytes())
        assert outputs[0] == outputs[1]

    def test_a_broken_loss_names_the_step(self, name: str) -> None:
        train = clicks(100, 0)
        broken = models()[NAMES.index(name)]
        with torch.no_grad():
            broken.inputs.id.weight[5] = torch.nan
        train.label[:] = train.items % 2 == 0
        with pytest.raises(
            KarmafunnelError,
            match=rf"{type(broken).__name__}: needs a finite loss, found nan in epoch 1, step \d",
        ):
            fit_ctr(broken, train, clicks(20, 1))

    def test_early_stopping_keeps_the_best(self, name: str) -> None:
        """Labels are noise: the best epoch is early, and its weights are what is left."""
        rng = np.random.default_rng(0)
        train, val = clicks(100, 0), clicks(100, 1)
        for batch in (train, val):
            batch.label[:] = rng.random(batch.label.shape) < 0.3
        model = models()[NAMES.index(name)]
        history = fit_ctr(model, train, val, FitOptions(epochs=50, rate=1e-2, patience=2))
        best = int(np.argmin([h["validation"] for h in history]))
        assert len(history) == best + 3 < 50
        logits = torch.from_numpy(predict_ctr(model, val))
        value, n = click_loss(logits, val.to_torch(), "bce")
        assert np.isclose(value.item() / n.item(), history[best]["validation"], atol=1e-5)


def test_two_towers_meet_in_a_product(trained: dict[str, ClickModel]) -> None:
    """The towers alone, and the linear term, give the logits: what would be served."""
    model, test = trained["TwoTower"], clicks(10, 7).to_torch()
    assert isinstance(model, TwoTower) and model.cross is not None
    with torch.no_grad():
        numbers = model.inputs.numbers(test.dense, "dense")
        items = model.items(test.items, numbers[..., [0]])
        z = model.requests(test.history, test.request)
        logit = (
            (z[:, None] * items).sum(dim=-1)
            + model.item_bias(items)[..., 0]
            + model.cross(numbers[..., [1]])[..., 0]
        )
    assert np.allclose(logit.numpy(), predict_ctr(model, clicks(10, 7)), atol=1e-5)


def test_listwise_learns_too() -> None:
    model = models()[0]
    fit_ctr(model, clicks(800, 0), clicks(200, 1), FitOptions(rate=1e-2, epochs=6, loss="listwise"))
    test = clicks(500, 2)
    assert gauc(predict_ctr(model, test), test) > 0.75


def test_losses_by_hand() -> None:
    """Two requests; the second has no positive, the last cell of the first no label."""
    half = float(np.log(2))
    logits = torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.0, 0.0]])
    batch = Batch(
        None,
        None,
        None,
        torch.tensor([[1.0, 0.0, 1.0], [0.0] * 3]),
        torch.tensor([[1.0, 2.0, 0.0], [1.0] * 3]),
    )
    bce, n = click_loss(logits, batch, "bce")
    assert np.isclose(bce.item(), 6 * half) and n.item() == 6
    listwise, n = click_loss(logits, batch, "listwise")
    assert np.isclose(listwise.item(), half) and n.item() == 1


def test_sim_tier_by_hand() -> None:
    """Cosines 1, 0 and -1 with a candidate fall into bins 21, 11 and 1; padding and an item without
    a vector into none.
    """
    vectors = np.array([[1, 0], [2, 0], [0, 3], [-1, 0], [0, 0]], dtype=np.float32)
    model = DIN(Shape(5, 0, n_vector=2), DINConfig(dim=4, similar="both"), vectors=vectors)
    batch = Batch(
        np.array([[0, 4]]),
        np.zeros((1, 2, 0)),
        np.array([[1, 1, 2, 3, 4, -1]]),
        np.zeros((1, 2)),
        np.ones((1, 2)),
    ).to_torch()
    r = torch.bmm(model.vectors[batch.items], model.vectors[batch.history].transpose(1, 2))
    model.tier.data[:] = 1
    tiers = model.sim_tier(r, batch, model.tier).view(2, BINS, 4)[..., 0].detach().numpy()
    expected = np.zeros((2, BINS))
    expected[0, [21, 11, 1]] = np.log([3, 2, 2])
    assert np.allclose(tiers, expected, atol=1e-6)


def test_cold_items_stand_for_unknown() -> None:
    """Items that training never saw, or only as negatives, share one vector: ids that say nothing
    are not told apart.
    """
    train = clicks(300, 0)
    train.items[np.isin(train.items, (38, 39))] = 0
    train.history[np.isin(train.history, (38, 39))] = 0
    train.label[train.items == 37] = 0
    model = DIN(Shape(N_ITEMS, 2), DINConfig(dim=8))
    fit_ctr(model, train, clicks(100, 1), FitOptions(epochs=2))
    test = replace(clicks(4, 2), dense=np.zeros((4, 10, 2), np.float32))
    logits = [
        predict_ctr(model, replace(test, items=np.full_like(test.items, i)))
        for i in (37, 38, 39, 36)
    ]
    assert np.array_equal(logits[0], logits[1]) and np.array_equal(logits[1], logits[2])
    assert not np.allclose(logits[0], logits[3])


def test_numbers_are_standardised_by_what_is_labelled() -> None:
    train = clicks(50, 0)
    train.dense[..., 0] = np.where(train.weight > 0, train.dense[..., 0] * 3 + 7, 1e9)
    train.dense[0, 0, 1] = np.nan
    model = models()[0]
    model.inputs.observe([train])
    used = train.weight > 0
    assert np.isclose(model.inputs.dense_mean[0], train.dense[..., 0][used].mean(), rtol=1e-4)
    assert np.isclose(model.inputs.dense_scale[0], train.dense[..., 0][used].std(), rtol=1e-4)
    out = model.inputs.numbers(torch.tensor([[np.nan, np.inf]]), "dense")
    assert out.tolist() == [[0.0, 5.0]]


def test_refusals(tmp_path: Path) -> None:
    train, val = clicks(30, 0), clicks(30, 1)
    model = models()[0]
    with pytest.raises(
        KarmafunnelError, match="DIN: needs positives and negatives among the training labels"
    ):
        fit_ctr(model, replace(train, label=np.zeros_like(train.label)), val)
    with pytest.raises(KarmafunnelError, match=r"needs items, dense, label, weight .* found"):
        fit_ctr(model, replace(train, dense=train.dense[:, :4]), val)
    with pytest.raises(KarmafunnelError, match="needs finite labels"):
        fit_ctr(model, replace(train, label=np.full_like(train.label, np.nan)), val)
    with pytest.raises(KarmafunnelError, match="loss needs 'bce' or 'listwise', found 'hinge'"):
        fit_ctr(model, train, val, FitOptions(loss="hinge"))  # type: ignore[arg-type]
    with pytest.raises(
        KarmafunnelError, match=r"similar=.both. needs vectors \(40, 3\), found None"
    ):
        DIN(Shape(N_ITEMS, 2, n_vector=3), DINConfig(similar="both"))
    with pytest.raises(
        KarmafunnelError, match=r"item_columns needs to be among 2 dense columns, found \[2\]"
    ):
        TwoTower(Shape(N_ITEMS, 2), TwoTowerConfig(item_columns=(2,)))
    with pytest.raises(KarmafunnelError, match="needs a saved click model"):
        load_ctr(tmp_path)


# -- boosted trees ---------------------------------------------------------------------------------


def table(groups: int, seed: int, grades: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (n, 4), y by the product of two columns, group sizes; some values missing."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 15, groups)
    x = rng.normal(size=(sizes.sum(), 4)).astype(np.float32)
    level = x[:, 0] * x[:, 1] + 0.3 * rng.normal(size=len(x))
    y = np.clip(np.floor(level + 0.5), 0, grades - 1)
    x[rng.random(x.shape) < 0.05] = np.nan
    return x, y, sizes


@pytest.mark.parametrize(
    ("objective", "grades"), [("binary", 2), ("lambdarank", 2), ("lambdarank", 4)]
)
def test_trees_learn_save_and_load(objective: str, grades: int, tmp_path: Path) -> None:
    (x, y, g), (xv, yv, gv), (xt, yt, _) = (table(300, s, grades) for s in range(3))
    said: list[str] = []
    boosters = [
        gbdt.fit_gbdt(
            LabelledRows(x, y, g),
            LabelledRows(xv, yv, gv),
            TreeOptions(objective),
            seed=1,
            names=list("abcd"),
            progress=said.append,
        )
        for _ in range(2)
    ]
    score = gbdt.predict_gbdt(boosters[0], xt)
    assert (
        score.dtype == np.float32
        and score.tobytes() == gbdt.predict_gbdt(boosters[1], xt).tobytes()
    )
    assert (np.sign(score[yt > 0][:, None] - score[yt == 0][None]) / 2 + 0.5).mean() > 0.85
    assert said and "validation" in said[0]
    gbdt.save_gbdt(boosters[0], tmp_path / "trees.txt")
    loaded = gbdt.load_gbdt(tmp_path / "trees.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["trees.txt"]
    assert gbdt.predict_gbdt(loaded, xt).tobytes() == score.tobytes()
    assert loaded.feature_name() == list("abcd")
    assert np.array_equal(gbdt.predict_gbdt(loaded, xt[::-1])[::-1], score), (
        "rows do not see each other"
    )
    assert gbdt.predict_gbdt(loaded, xt[:0]).shape == (0,)


def test_trees_stop_early_and_do_not_depend_on_threads() -> None:
    x, _, _ = table(100, 0)
    noise = np.random.default_rng(0).integers(0, 2, (2, len(x)))
    train, held = (LabelledRows(x, y) for y in noise)
    one, two = (gbdt.fit_gbdt(train, held, TreeOptions(patience=5), num_threads=n) for n in (1, 2))
    assert one.best_iteration < 100
    assert gbdt.predict_gbdt(one, x).tobytes() == gbdt.predict_gbdt(two, x).tobytes()


def test_trees_refuse(tmp_path: Path) -> None:
    x, y, g = table(50, 0)

    good, ranks = LabelledRows(x, y, g), TreeOptions("lambdarank")
    for rows, held, options, message in [
        (good, good, TreeOptions("rank"), "objective needs one of .*'lambdarank'.*, found 'rank'"),
        (LabelledRows(x, np.zeros(len(x)), g), good, ranks, "more than one class"),
        (
            LabelledRows(x, np.where(np.arange(len(x)) == 3, np.nan, y), g),
            good,
            ranks,
            "found nan in row 3",
        ),
        (LabelledRows(x, y + 0.5, g), good, ranks, "needs training grades among 0, 1"),
        (LabelledRows(x, y * 2), good, TreeOptions(), "needs training labels 0 or 1, found 2"),
        (LabelledRows(x, y, g[:-1]), good, ranks, "group sizes that add up to"),
        (good, LabelledRows(x, y), ranks, "validation group sizes .* found none"),
        (LabelledRows(x[:-1], y, g), good, ranks, "rows with a label"),
        (good, LabelledRows(x[:0], y[:0], g), ranks, "needs validation rows"),
    ]:
        with pytest.raises(KarmafunnelError, match=message):
            gbdt.fit_gbdt(rows, held, options)
    with pytest.raises(KarmafunnelError, match="1 names"):
        gbdt.fit_gbdt(good, good, ranks, names=["a"])
    booster = gbdt.fit_gbdt(LabelledRows(x, y), LabelledRows(x, y), TreeOptions(trees=3))
    with pytest.raises(KarmafunnelError, match="needs 4 features"):
        gbdt.predict_gbdt(booster, x[:, :3])
    (tmp_path / "trees.txt").write_text("not trees")
    for path in (tmp_path / "trees.txt", tmp_path / "none.txt"):
        with pytest.raises(KarmafunnelError, match="needs a LightGBM text file"):
            gbdt.load_gbdt(path)


# long enough for a gradient of `x[rows]` to be added by several threads
LARGE = torch.arange(4096) % 7


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_threads")
def test_seeded_repeats_what_several_threads_add_up() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = set()
    for _ in range(8):
        x.grad = None
        with seeded(3):
            (x[LARGE] * torch.randn(len(LARGE), 256)).sum().backward()
        assert x.grad is not None
        found.add(x.grad.numpy().tobytes())
    assert len(found) == 1
    assert not torch.are_deterministic_algorithms_enabled()
