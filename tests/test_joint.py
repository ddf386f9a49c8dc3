"""Stages that are trained together: the relaxed sort and the losses against plain loops and the
hard cascade, and funnels whose networks learn in one loop.
"""

from dataclasses import replace
from itertools import permutations

import numpy as np
import polars as pl
import pytest
import torch
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models import ctr
from karmafunnel.models.ctr import joint_losses
from karmafunnel.models.ctr.joint_fitting import (
    Cascade,
    JointOptions,
    end_to_end_ndcg,
    fit_cascade,
)
from karmafunnel.models.embedders import TfidfSVD
from karmafunnel.simulator.ablation.ablate import ablate
from karmafunnel.simulator.replay.degrade import along
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.stages.context import Context
from karmafunnel.stages.features import Column, Own, Popularity, Price, Upstream, Vectors, compute
from karmafunnel.stages.frame import ITEM, REQUEST
from karmafunnel.stages.joint import ARF, FSLTR, LCRON, RankFlow, Separate
from karmafunnel.stages.learn import PositionBias, Sample, Teacher, training_rows
from karmafunnel.stages.prerank import COLDPreRank, LightGBMPreRank, TwoTowerPreRank
from karmafunnel.stages.rank import DCNRank, DINRank, ESMMRank
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.rerank import Rules
from karmafunnel.stages.stage import Funnel, fit_embedders, prefix_keys
from shop import make_shop

pytestmark = pytest.mark.slow

LOSSES = [Separate(), FSLTR(), FSLTR(warm=0), ARF(), LCRON(), LCRON(top=3, warm=1), RankFlow()]
SAMPLE = Sample(passed=30)
RECALL = Popular(k=60)
PRERANK = TwoTowerPreRank(
    k=30, features=[Upstream(), Popularity()], sample=SAMPLE, dim=4, epochs=3
)
RANK = DINRank(
    k=10, features=[Upstream(), Own(), Price()], sample=SAMPLE, dim=4, epochs=3, loss="listwise"
)
CHAIN = RECALL >> PRERANK >> RANK


@pytest.fixture(scope="module")
def shop() -> Log:
    return make_shop(n_items=120, n_users=30, n_requests=400)


@pytest.fixture(scope="module")
def fitted(shop):
    return CHAIN.jointly(LCRON()).fit(Context(shop))


# -- the relaxed sort ------------------------------------------------------------------------------


def slow_sort(score, there, temperature):
    """NeuralSort of one list, written out."""
    at = np.flatnonzero(there)
    n, out = len(at), np.zeros((len(score), len(score)))
    for r in range(1, n + 1):
        logit = [
            (n + 1 - 2 * r) * score[i] - sum(abs(score[i] - score[j]) for j in at) for i in at
        ]
        e = np.exp((np.array(logit) - max(logit)) / (temperature * n))
        out[r - 1, at] = e / e.sum()
    return out


def slow_inclusion(p, cut):
    inside = np.zeros(p.shape[1])
    for r in range(len(p)):
        inside += min(max(cut - r, 0), 1) * p[r]
    return inside / np.maximum(p.sum(axis=0), joint_losses.EPS)


def drawn(seed=0, n=3, c=7, stages=2):
    """Random lists of different lengths, each with a relevant row."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(stages, n, c))
    there = np.arange(c) < rng.integers(4, c + 1, n)[:, None]
    label = ((rng.random((n, c)) < 0.3) & there).astype(float)
    label[:, 0] = 1
    cut = np.stack([rng.uniform(2, 4, n), rng.uniform(0.5, 2, n)], axis=1)
    grade = rng.integers(0, 3, (n, c)) * there
    return score, there, label, cut, grade


def lists_of(score, there, label, cut, grade=None, step=0, own="listwise"):
    def batch(_):
        n, c = label.shape
        return ctr.Batch(
            torch.zeros((n, c), dtype=torch.int64),
            torch.zeros((n, c, 0)),
            torch.zeros((n, 1), dtype=torch.int64),
            torch.tensor(label),
            torch.tensor(there, dtype=torch.float64),
        )

    logits = tuple(torch.tensor(s, requires_grad=True) for s in score)
    return joint_losses.Lists(
        logits,
        tuple(map(batch, score)),
        (own,) * len(score),
        torch.tensor(label),
        torch.tensor(there),
        torch.tensor(cut),
        None if grade is None else torch.tensor(grade, dtype=torch.float64),
        step,
    )


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_the_relaxed_sort_is_that_of_plain_loops(temperature):
    score, there, _, cut, _ = drawn()
    p = joint_losses.neural_sort(torch.tensor(score[0]), torch.tensor(there), temperature)
    inside = joint_losses.inclusion(p, torch.tensor(cut[:, 0])).numpy()
    for b in range(len(there)):
        expected = slow_sort(score[0, b], there[b], temperature)
        np.testing.assert_allclose(p[b].numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(inside[b], slow_inclusion(expected, cut[b, 0]), atol=1e-12)
        n = there[b].sum()
        np.testing.assert_allclose(expected.sum(axis=1), np.arange(len(there[b])) < n)
    assert ((inside >= 0) & (inside <= 1 + 1e-12)).all()


def test_without_temperature_it_is_the_sort_itself():
    """Every order of four scores, every cut, also between two places."""
    for values in permutations([0.3, 1.1, -0.4, 2.0]):
        score = np.array(values)
        p = joint_losses.neural_sort(torch.tensor(score)[None], torch.ones(1, 4, dtype=torch.bool), 1e-3)
        order = np.argsort(-score)
        np.testing.assert_allclose(p[0].numpy(), np.eye(4)[order], atol=1e-9)
        for cut in (0.0, 1.0, 1.25, 2.0, 3.5, 4.0, 9.0):
            inside = joint_losses.inclusion(p, torch.tensor([cut]))[0].numpy()
            expected = np.clip(cut - np.arange(4), 0, 1)
            np.testing.assert_allclose(inside[order], expected, atol=1e-9)


def test_survival_is_that_of_the_hard_cascade_or_below():
    """All pairs of orders of four items: in the limit the product says who is in the first places
    of both stages, who then ends in the top of the cascade as it runs; summed over all orders of
    the second stage, an item that the first passes on does so in cut 2 of 4 of them.
    """
    first = np.array([4.0, 3.0, 2.0, 1.0])
    there = np.ones((1, 4), bool)
    for cut in ([3.0, 1.0], [2.0, 2.0], [3.0, 2.0]):
        total = np.zeros(4)
        for second in permutations([1.0, 2.0, 3.0, 4.0]):
            score = [first, np.array(second)]
            lists = lists_of([s[None] for s in score], there, np.zeros((1, 4)), np.array([cut]))
            product = joint_losses.survival(lists, 1e-3)[0][0].detach().numpy()
            ranks = [np.argsort(np.argsort(-s)) + 1 for s in score]
            both = (ranks[0] <= cut[0]) & (ranks[1] <= cut[1])
            np.testing.assert_allclose(product, both, atol=1e-9)
            reached, _ = joint_losses.passed([s[None] for s in score], there, np.array([cut]))
            ends = reached[0] == 2
            assert ends.sum() == min(cut[1], cut[0])
            assert (ends >= both).all()
            total += product
        inside = np.arange(4) < cut[0]
        np.testing.assert_allclose(total / 24, inside * cut[1] / 4, atol=1e-9)


def test_the_cascade_as_it_runs():
    """The first stage drops the last of three items, which the second would put first."""
    scores = [np.array([[3.0, 2.0, 1.0, 9.0]]), np.array([[1.0, 2.0, 3.0, 9.0]])]
    there, cut = np.array([[True, True, True, False]]), np.array([[2.0, 1.0]])
    reached, rank = joint_losses.passed(scores, there, cut)
    assert reached.tolist() == [[1, 2, 0, 0]]
    assert rank[0, :3].tolist() == [2, 1, 3]
    for label, expected in (
        ([1, 0, 0, 0], 1 / np.log2(3)),
        ([0, 1, 0, 0], 1.0),
        ([0, 0, 1, 0], 0.0),
        ([0, 1, 1, 0], 1 / (1 + 1 / np.log2(3))),
    ):
        batch = ctr.Batch(
            np.zeros((1, 4), np.int64),
            np.zeros((1, 4, 0)),
            np.zeros((1, 1), np.int64),
            np.array([label], np.float32),
            there.astype(np.float32),
        )
        found = Cascade((batch, batch), cut, there, np.zeros((1, 4)))
        assert end_to_end_ndcg(found, scores) == pytest.approx(expected)


# -- losses against plain loops --------------------------------------------------------------------


def own_loss(score, label, there):
    """Listwise: positives share weight 1; mean over lists that have one."""
    found = []
    for s, y, t in zip(score, label, there, strict=True):
        s, y = s[t], y[t]
        if y.sum():
            log_p = s - np.log(np.exp(s - s.max()).sum()) - s.max()
            found.append(-(y * log_p).sum() / y.sum())
    return np.mean(found) if found else 0.0


def test_separate_is_the_sum_of_own_losses():
    score, there, label, cut, _ = drawn(1)
    expected = sum(own_loss(s, label, there) for s in score)
    assert joint_losses.separate(lists_of(score, there, label, cut)).item() == pytest.approx(expected)


def test_graded_pairs():
    score, there, label, cut, grade = drawn(2)
    expected = 0.0
    for s in score:
        for level in sorted(set(grade[there].tolist()))[1:]:
            losses = []
            for b in range(len(s)):
                at = np.flatnonzero(there[b])
                for i in at[grade[b, at] == level]:
                    for j in at[grade[b, at] < level]:
                        losses.append(np.log1p(np.exp(s[b, j] - s[b, i])))
            expected += np.mean(losses) if losses else 0.0
    found = joint_losses.graded(lists_of(score, there, label, cut, grade)).item()
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_relaxed_and_end_to_end(temperature):
    score, there, label, cut, _ = drawn(3)
    balance = torch.tensor([0.3, -0.2], dtype=torch.float64)
    weigh = [np.exp(-2 * b.item()) / 2 for b in balance]
    arf, joint, single = 0.0, [], np.zeros(2)
    for b in range(len(there)):
        t, n = there[b], there[b].sum()
        y, k = label[b] * t, int(label[b][t].sum())
        product = np.ones(len(t))

        def entropy(p, y=y, t=t):
            p = np.clip(p, joint_losses.EPS, 1 - joint_losses.EPS)
            return np.mean(-(y * np.log(p) + (1 - y) * np.log(1 - p))[t])

        for i in range(2):
            p = slow_sort(score[i, b], t, temperature)
            inside = slow_inclusion(p, cut[b, i])
            product = product * inside
            relax = -sum(np.log(inside[j]) for j in np.flatnonzero(y)) / n
            whole = 0.0
            for r in range(n):
                for j in np.flatnonzero(t):
                    if y[j] and r < k:
                        whole -= np.log(max(p[r, j], joint_losses.EPS)) / k
                    if not y[j] and r >= k:
                        whole -= np.log(max(p[r, j], joint_losses.EPS)) / (n - k)
            arf += (relax + weigh[i] * whole / n) / len(there)
            single[i] += entropy(slow_inclusion(p, k)) / len(there)
        joint.append(entropy(product))
    lists = lists_of(score, there, label, cut)
    sigma = balance.sum().item()
    assert joint_losses.relaxed(lists, temperature, balance).item() == pytest.approx(arf + sigma)
    expected = np.mean(joint) + single @ weigh + sigma
    assert joint_losses.end_to_end(lists, temperature, balance).item() == pytest.approx(expected)


@pytest.mark.parametrize("step", [0, 1])
def test_flows(step):
    score, there, label, cut, _ = drawn(4)
    label[:, 0] = 1
    expected, shares, pairs = 0.0, [], []
    survivors = np.zeros_like(there)
    for b in range(len(there)):
        at = np.flatnonzero(there[b])
        kept = at[np.argsort(-score[0, b, at])][: int(np.ceil(cut[b, 0]))]
        survivors[b, kept] = True
        best = kept[np.argsort(-score[1, b, kept])][: int(np.ceil(cut[b, 1]))]
        tutor, mine = np.exp(score[1, b, kept]), np.exp(score[0, b, kept])
        shares.append(-(tutor / tutor.sum() * np.log(mine / mine.sum())).sum())
        for i in best:
            for j in set(kept) - set(best):
                pairs.append(np.log1p(np.exp(score[0, b, j] - score[0, b, i])))
    expected = own_loss(score[1], label, survivors)
    if step:
        expected += 0.25 * np.mean(shares) + 0.75 * np.mean(pairs)
    else:
        expected += own_loss(score[0], label, there)
    lists = lists_of(score, there, label, cut, step=step)
    assert joint_losses.flows(lists, 0.25).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_what_a_stage_learns_depends_on_the_others_in_a_joint_loss_alone(loss):
    """The gradient of a stage's scores changes with the scores of the other stages."""
    score, there, label, cut, grade = drawn(5)

    def gradients(score):
        lists = lists_of(score, there, label, cut, grade, step=1)
        balance = torch.zeros(2, dtype=torch.float64)
        return [g.numpy() for g in torch.autograd.grad(loss.loss(lists, balance), lists.logits)]

    before = gradients(score)
    after = gradients(np.stack([score[0], -score[1]]))
    other = gradients(np.stack([-score[0], score[1]]))
    depends = not np.allclose(before[0], after[0]), not np.allclose(before[1], other[1])
    # the pairs of FS-LTR and the cuts of ARF flow through the grades and the places alone
    expected = {LCRON: (True, True), RankFlow: (True, True)}.get(type(loss), (False, False))
    assert depends == expected


# -- the loop --------------------------------------------------------------------------------------


def small_cascade(seed, n=40, c=8):
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(20)[:c] for _ in range(n)])
    label = np.zeros((n, c), np.float32)
    label[np.arange(n), rng.integers(0, c, n)] = 1
    dense = (label + rng.normal(size=(n, c)).astype(np.float32))[..., None]
    batch = ctr.Batch(items, dense, items[:, :3], label, np.ones((n, c), np.float32))
    cut = np.tile(np.array([4.0, 2.0], np.float32), (n, 1))
    return Cascade((batch, batch), cut, np.ones((n, c), bool), np.zeros((n, c), np.float32))


def quiet(kind, config, seed):
    """A model without random draws while it learns."""
    return kind(ctr.Shape(20, 1), config(dim=4, dropout=0.0, unknown=0.0), seed=seed)


def test_the_control_trains_each_stage_as_if_it_were_alone():
    """The first stage of two cascades that differ in their last stage has the same bytes."""
    weights = []
    for last in (quiet(ctr.DIN, ctr.DINConfig, 1), quiet(ctr.DCN, ctr.DCNConfig, 2)):
        models = [quiet(ctr.TwoTower, ctr.TwoTowerConfig, 0), last]
        options = JointOptions((1e-2, 1e-2), ("listwise",) * 2, epochs=4, patience=9, apart=True)
        train, val = small_cascade(0), small_cascade(1)
        fit_cascade(models, train, val, lambda lists, _: joint_losses.separate(lists), options)
        weights.append(models[0].state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_every_loss_learns_what_there_is_to_learn(loss):
    """One number tells the relevant row; a cascade that was not trained finds it by chance."""
    models = [
        quiet(ctr.TwoTower, ctr.TwoTowerConfig, 0),
        quiet(ctr.DIN, ctr.DINConfig, 1),
    ]
    train, val = small_cascade(0, n=200), small_cascade(1, n=100)
    options = JointOptions(
        (1e-2, 1e-2), ("listwise",) * 2, epochs=15, warm=loss.warm, apart=loss.apart
    )
    grades = loss.grades if loss.needs_grades else None
    history = fit_cascade(models, train, val, loss.loss, options, grades=grades)
    assert history[-1]["train"] < history[loss.warm]["train"]
    predicted = [ctr.predict_ctr(m, b) for m, b in zip(models, val.batches, strict=True)]
    chance = np.random.default_rng(0).random((2, 100, 8))
    assert end_to_end_ndcg(val, predicted) > end_to_end_ndcg(val, chance) + 0.15


def test_a_loss_that_is_no_number_names_the_step():
    models = [quiet(ctr.TwoTower, ctr.TwoTowerConfig, 0), quiet(ctr.DIN, ctr.DINConfig, 1)]
    options = JointOptions((1e-2, 1e-2), ("listwise",) * 2)
    with pytest.raises(KarmafunnelError, match="finite loss, found nan in epoch 1, step 1"):
        fit_cascade(
            models,
            small_cascade(0),
            small_cascade(1),
            lambda lists, _: joint_losses.separate(lists) * torch.nan,
            options,
        )


# -- funnels ---------------------------------------------------------------------------------------


def test_a_funnel_is_printed_as_typed_and_keeps_how_it_is_trained():
    joint = CHAIN.jointly(LCRON(top=5))
    assert repr(joint) == f"({CHAIN!r}).jointly(LCRON(top=5))"
    assert joint != CHAIN and joint == (RECALL >> (PRERANK >> RANK).jointly(LCRON(top=5)))
    assert (joint >> Rules(k=5, min_price=1.0)).train == LCRON(top=5)
    assert joint.replace(rank=DCNRank()).train == joint.without("rank").train == LCRON(top=5)
    assert list(joint.together) == [1, 2] and list(CHAIN.together) == []
    with pytest.raises(KarmafunnelError, match=r"a loss such as LCRON\(\), found 'joint'"):
        CHAIN.jointly("joint")
    assert CHAIN.jointly(ARF()).jointly(LCRON(top=5)) == joint
    halves = (RECALL >> PRERANK).jointly(ARF()), Funnel((RANK,), LCRON())
    with pytest.raises(KarmafunnelError, match=r"one loss for all .*ARF\(\) and LCRON\(\)"):
        halves[0] >> halves[1]


BAD = {
    "at least two learned stages, found prerank": RECALL >> PRERANK,
    "at least two learned stages, found none": Funnel((RECALL,)),
    r"networks with one logit .*, found prerank \(LightGBMPreRank\)": RECALL
    >> LightGBMPreRank(features=[Upstream()])
    >> RANK,
    r"networks with one logit .*, found rank \(ESMMRank\)": RECALL >> PRERANK >> ESMMRank(),
    "found between_them .Rules. between them": RECALL
    >> PRERANK
    >> Rules(k=30, min_price=0.0, name="between_them")
    >> RANK,
    "share their training rows.*passed=10": RECALL
    >> PRERANK
    >> replace(RANK, sample=Sample(passed=10)),
    "stages without a teacher.*found a teacher of prerank": RECALL
    >> replace(PRERANK, teacher=Teacher(RANK))
    >> RANK,
    r"stages without a position_bias.*found position_bias=PositionBias\(\) of rank": RECALL
    >> PRERANK
    >> replace(RANK, position_bias=PositionBias()),
}


def test_epochs_that_are_all_warm_are_refused(shop):
    """They would be those of the control, under the name of the loss."""
    with pytest.raises(KarmafunnelError, match=r"more epochs .* than warm ones.*warm=3, epochs=3"):
        CHAIN.jointly(LCRON(warm=3)).fit(Context(shop))


@pytest.mark.parametrize("message", BAD)
def test_stages_that_cannot_be_trained_together(message, shop):
    with pytest.raises(KarmafunnelError, match=message):
        BAD[message].jointly(LCRON()).fit(Context(shop))


def test_joint_stages_learn_from_blocks_of_w1_too(shop):
    """From the rows of W2a and of the block before it, with recall as of each; and they serve."""
    blocks = Sample(passed=30, blocks=2)
    chain = (RECALL >> replace(PRERANK, sample=blocks) >> replace(RANK, sample=blocks)).jointly(
        LCRON()
    )
    fitted = chain.fit(Context(shop))
    first = fitted.stages[1].stage
    upstream = fitted.fits.upto(1)
    table = training_rows(first, first.features, fitted.context, upstream, ["W2a"], blocks)
    w1, w2a = (
        np.isin(table.request, shop.requests_in(window)).sum() for window in ("W1", "W2a")
    )
    assert w1 > 0 and w2a > 0 and w1 + w2a == len(table.y)
    slate, other = (f.run(shop.requests_in("W3"))[-1].slate for f in (fitted, CHAIN.jointly(LCRON()).fit(Context(shop))))  # fmt: skip
    assert slate.height and np.isfinite(slate["score"].to_numpy()).all()
    assert not slate["score"].equals(other["score"]), "the block changes what is learnt"
    narrow = RECALL >> replace(PRERANK, features=[Vectors("tfidf", dim=4)], sample=blocks) >> replace(RANK, sample=blocks)  # fmt: skip
    context = Context(shop)
    context.embeddings = fit_embedders({"tfidf": TfidfSVD(dim=4)}, context)
    with pytest.raises(KarmafunnelError, match="Vectors"):
        narrow.jointly(LCRON()).fit(context)


def test_a_row_that_cannot_be_trained_does_not_end_the_table(shop, tmp_path):
    path = tmp_path / "rows.py"
    path.write_text(
        """
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.stages.features import Popularity
from karmafunnel.stages.joint import LCRON, FSLTR
from karmafunnel.stages.prerank import TwoTowerPreRank
from karmafunnel.stages.rank import DINRank
from karmafunnel.stages.recall import Popular

label = "click"
embedders = {}
seeds = (0,)
against = "joint"
measures = ("HR@10",)
parts = dict(features=[Popularity()], dim=4, epochs=3)
funnel = Popular(k=60) >> TwoTowerPreRank(k=30, **parts) >> DINRank(k=10, **parts)
rows = {
    "joint": Row(funnel.jointly(LCRON())),
    "one stage": Row(funnel.without("rank").jointly(LCRON())),
    "labels": Row(funnel.jointly(FSLTR(labels="log"))),
}
"""
    )
    recipe = load_recipe(str(path), shop)
    ablate(recipe, shop, tmp_path / "out", RunOptions(chunk=40))
    told = (tmp_path / "out" / "table.md").read_text()
    assert "at least two learned stages, found prerank" in told
    assert "a log whose exposures tell the last stage" in told
    assert "joint" in told


def test_the_key_of_a_fit_has_the_loss_and_all_stages_that_are_trained_together(shop):
    context = Context(shop)
    found = {}
    for name, funnel in {
        "alone": CHAIN,
        "LCRON": CHAIN.jointly(LCRON()),
        "top": CHAIN.jointly(LCRON(top=5)),
        "ranker": CHAIN.replace(rank=replace(RANK, dim=8)).jointly(LCRON()),
        "more": (CHAIN >> Rules(k=5, min_price=1.0)).jointly(LCRON()),
    }.items():
        found[name] = prefix_keys(funnel, {}, context)
    assert len({keys[0] for keys in found.values()}) == 1  # recall is shared
    for place in (1, 2):
        keys = {name: keys[place] for name, keys in found.items()}
        assert keys.pop("more") == keys["LCRON"]
        assert len(set(keys.values())) == 4
    assert len({key for keys in found.values() for key in keys}) == 1 + 2 * 4 + 1


# -- no leak ---------------------------------------------------------------------------------------


def test_a_jointly_trained_stage_reads_recall_where_it_learns_and_where_it_serves(fitted, shop):
    """`Upstream()` of the ranker is recall's score and rank: in its training rows, which no stage
    that is trained with it has touched, and behind the pre-ranker.
    """
    context = fitted.context
    lists = LCRON()._cascade([PRERANK, RANK], context, fitted.fits.upto(1), ["W2a"])
    width = len(Upstream.columns)
    first, last = (batch.dense[..., :width] for batch in lists.batches)
    assert np.array_equal(first, last)
    requests = shop.requests_in("W3")[:40]
    tracked = context.logged(requests)
    recall = fitted.fits.upto(1).pass_on(requests, tracked)
    expected = compute(RANK.features, recall)
    rows = [rows for rows, _ in fitted._through(type(recall).start(context, requests, tracked))][2]
    assert rows.frame["prerank.score"].null_count() == 0
    found = fitted.stages[2].dense(rows)
    key = recall.request * shop.n_items + recall.item
    at = {(k, c): i for i, (k, c) in enumerate(zip(key, recall.candidate, strict=True))}
    mine = rows.request * shop.n_items + rows.item
    place = [at[k, c] for k, c in zip(mine, rows.candidate, strict=True)]
    assert np.array_equal(found, expected[place], equal_nan=True)
    assert not np.array_equal(compute(RANK.features, rows), found, equal_nan=True)


def test_the_ranker_never_hears_what_the_pre_ranker_says(fitted, shop):
    """Whatever the pre-ranker says of users that it was fitted on, the ranker's scores of the same
    items are the same bytes.
    """
    requests = shop.requests_in("W2a")[:30]
    before = fitted.run(requests)[2].slate
    prerank = fitted.stages[1]
    told = type(prerank).score

    class Other(type(prerank)):
        def score(self, rows):
            return told(self, rows) * -3 + 7

    other = Other(prerank.stage, prerank.context, prerank.model, prerank.first)
    changed = replace(fitted, stages=(fitted.stages[0], other, fitted.stages[2]), keys=())
    after = changed.run(requests)[2].slate
    both = before.join(after, on=[REQUEST, ITEM], suffix="_after")
    assert 0 < both.height < before.height
    assert both["score"].equals(both["score_after"].rename("score"))


def test_no_fit_without_a_fold_is_made(shop):
    said = []
    context = Context(shop, progress=said.append)
    fitted = CHAIN.jointly(Separate()).fit(context)
    assert fitted.fits.out_of_fold == [] and not [x for x in said if "fold" in x]
    assert [x for x in said if "together" in x] == [
        "prerank, rank: fitting together, Separate()"
    ]


def test_a_column_of_the_stage_before_is_refused(shop):
    leaky = CHAIN.replace(rank=replace(RANK, features=[Column("prerank.score")]))
    with pytest.raises(KarmafunnelError, match=r"the column 'prerank.score'"):
        leaky.jointly(LCRON()).fit(Context(shop))


# -- fits that are kept ----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_fit_is_the_same_twice_and_goes_on_from_the_cache(loss, shop, tmp_path):
    parts = {"sample": SAMPLE, "dim": 4, "epochs": 3, "loss": "listwise"}
    funnel = (
        RECALL
        >> COLDPreRank(k=30, features=PRERANK.features, **parts)
        >> DCNRank(k=10, features=RANK.features, **parts)
    ).jointly(loss)
    requests = shop.requests_in("W3")[:30]
    slates = []
    for cache in (tmp_path / "a", tmp_path / "b", tmp_path / "a"):
        fitted = funnel.fit(Context(shop), cache)
        slates.append([step.slate for step in fitted.run(requests)])
    for a, b, c in zip(*slates, strict=True):
        assert a.equals(b) and a.equals(c)
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "a").iterdir())
    assert names.count("prerank") == names.count("rank") == 1
    # a process that ended between the two stages
    kept = next((tmp_path / "a").glob("rank-*"))
    weights = ctr.load_ctr(kept / "model").state_dict()
    for file in sorted(kept.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    kept.rmdir()
    again = funnel.fit(Context(shop), tmp_path / "a")
    assert again.run(requests)[2].slate.equals(slates[0][2])
    found = ctr.load_ctr(kept / "model").state_dict()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_calibrated_probabilities_come_back_from_the_cache(shop, tmp_path):
    funnel = CHAIN.replace(rank=replace(RANK, calibrated="temperature")).jointly(LCRON())
    first = funnel.fit(Context(shop), tmp_path).stages[2]
    again = funnel.fit(Context(shop), tmp_path).stages[2]
    score = np.linspace(-3, 3, 7)
    assert np.array_equal(first.probability(score), again.probability(score))
    assert (np.diff(first.probability(score)) > 0).all()


def test_without_its_pre_ranker_a_funnel_still_runs(fitted, shop):
    """A path that skips the pre-ranker, or cuts it: the ranker scores the same items alike."""
    requests = shop.requests_in("W3")[:20]
    whole = fitted.run(requests)[2].slate
    for path in ("prerank=skip", "prerank=5"):
        other = along(fitted, path).run(requests)[2].slate
        both = whole.join(other, on=[REQUEST, ITEM], suffix="_other")
        assert both.height and both["score"].equals(both["score_other"].rename("score"))


# -- stage labels ----------------------------------------------------------------------------------


def labelled(shop: Log, stage: pl.Expr) -> Log:
    rows = shop.exposures.with_columns(stage.alias("stage"))
    return Log.make(
        shop.items, shop.requests, rows, shop.meta | {"stages": ["prerank", "rank", "shown"]}
    )


def test_stage_labels_of_the_log(shop):
    place = pl.col("position")
    stage = pl.when(place > 10).then(pl.lit("prerank"))
    stage = stage.when(place > 5).then(pl.lit("rank")).otherwise(pl.lit("shown"))
    log = labelled(shop, stage)
    loss = FSLTR(labels="log", warm=0)
    fitted = CHAIN.jointly(loss).fit(Context(log))
    assert fitted.run(log.requests_in("W3")[:5])[2].slate.height
    lists = loss._cascade([PRERANK, RANK], Context(log), fitted.fits.upto(1), ["W2a"])
    grade = loss.grades(lists, [])
    assert set(np.unique(grade)) == {0, 1, 2, 3, 4}
    assert (grade[lists.label > 0] == 4).all() and (grade[lists.label == 0] < 4).all()
    assert (grade[~lists.shown] == 0).all() and (grade[lists.shown] > 0).all()


def test_grades_by_the_funnel_itself():
    """Rows: passed by nobody, by the first stage, by both, shown, relevant."""
    lists = small_cascade(0, n=1, c=5)
    batch = replace(
        lists.batches[0], label=np.array([[0, 0, 0, 0, 1.0]]), weight=np.ones((1, 5))
    )
    lists = replace(
        lists,
        batches=(batch, batch),
        cut=np.array([[2.0, 1.0]]),
        shown=np.array([[False, False, False, True, False]]),
    )
    scores = [np.array([[0.0, 3.0, 4.0, -1.0, -2.0]]), np.array([[9.0, 1.0, 2.0, 9.0, 9.0]])]
    assert FSLTR().grades(lists, scores).tolist() == [[0, 1, 2, 3, 4]]
    assert FSLTR(labels="shown").grades(lists, scores).tolist() == [[0, 0, 0, 1, 2]]


def test_a_stage_label_that_no_row_has(shop):
    with pytest.raises(KarmafunnelError, match=r"no stages in log\.json of log shop"):
        CHAIN.jointly(FSLTR(labels="log")).fit(Context(shop))
    log = labelled(shop, pl.lit("shown"))
    with pytest.raises(
        KarmafunnelError, match=r"rows of W2a with the stage 'prerank', found 0 of prerank, 0 of rank"
    ):
        CHAIN.jointly(FSLTR(labels="log")).fit(Context(log))
    with pytest.raises(KarmafunnelError, match="'ledger', 'shown' or 'log'"):
        FSLTR(labels="rank")
