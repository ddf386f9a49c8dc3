"""The action losses of KARMA against plain loops: values, gradients, masks and what is counted."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from karmafunnel.errors import KarmafunnelError
from karmafunnel.models.karma import InBatch, MaskedNCE, Pairwise, Softmax
from karmafunnel.models.karma.action import (
    ActionBatch,
    ActionLoss,
    Pairs,
    action_catalogue,
    log_chance,
)
from torch.nn import functional as F

LOSSES = [
    Softmax(),
    Softmax(hard_weight=3.0),
    InBatch(),
    InBatch(logq=False, hard_weight=5.0),
    Pairwise(),
    Pairwise(hard_weight=2.0),
    Pairwise(cosine=True, hard_weight=0.5),
    MaskedNCE(),
    MaskedNCE(mask=0.2, hard_weight=2.0),
    MaskedNCE(mask=1.0),
]


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=draw, dtype=torch.float64), dim=-1)


def drawn(seed: int, loss: ActionLoss) -> ActionBatch:
    """A batch of 6 rows over 9 of 12 items: rows with several targets, targets of several rows,
    some shown in vain, two pairs of items that frozen features do not part.
    """
    rng = np.random.default_rng(seed)
    row, target, shown = [], [], []
    for r in range(6):
        chosen = np.sort(rng.choice(9, rng.integers(1, 4), replace=False))
        row += [r] * len(chosen)
        target += chosen.tolist()
        vain = rng.permutation(np.setdiff1d(np.arange(9), chosen))[:3]
        shown.append(np.where(rng.random(3) < 0.3, -1, vain))
    item = np.sort(rng.choice(12, 9, replace=False))
    z, e = unit(6, 4, seed=seed), unit(9, 4, seed=seed + 100)
    if not loss.unit:
        lengths = torch.from_numpy(rng.uniform(0.2, 3, 15))[:, None]
        z, e = z * lengths[:6], e * lengths[6:]
    known = torch.eye(12, dtype=torch.float64)
    known[item[3]], known[item[5]] = known[item[0]].clone(), known[item[1]].clone()
    share = torch.from_numpy(rng.dirichlet(np.ones(12)))
    return ActionBatch(
        z.requires_grad_(),
        e.requires_grad_(),
        Pairs(
            torch.tensor(row), torch.tensor(target), torch.from_numpy(rng.uniform(0.2, 1, len(row)))
        ),
        torch.from_numpy(np.stack(shown)),
        torch.tensor(5.0, dtype=torch.float64, requires_grad=True),
        torch.from_numpy(item),
        known,
        share,
    )


def alike(loss: ActionLoss, b: ActionBatch, target: int, other: int) -> bool:
    if isinstance(loss, MaskedNCE):
        return loss.mask < 1 and (b.e[target] @ b.e[other]).item() > loss.mask
    return float(b.known[b.item[target]] @ b.known[b.item[other]]) > 0.99


def slowly(loss: ActionLoss, b: ActionBatch) -> tuple[torch.Tensor, list[int], list[int]]:
    """The same by loops over pairs and items, from what the docstrings say."""
    rows, targets = b.pairs.row.tolist(), b.pairs.target.tolist()
    total, left, masked = torch.zeros((), dtype=torch.float64), [], []
    in_batch = sorted(set(targets))
    scale = b.scale if loss.unit else 1.0
    for r, t, w in zip(rows, targets, b.pairs.weight.tolist(), strict=True):
        own = [y for q, y in zip(rows, targets, strict=True) if q == r]
        shown = [x for x in b.shown[r].tolist() if x >= 0]
        positive = scale * (b.z[r] @ b.e[t])
        negatives: list[tuple[torch.Tensor, float]] = []  # logit, how many times as heavy
        dropped = 0
        if isinstance(loss, Softmax):
            for x in range(len(b.e)):
                if x not in own:
                    heavy = loss.hard_weight if x in shown else 1.0
                    negatives.append((scale * (b.z[r] @ b.e[x]), heavy))
        else:
            others = [(x, True) for x in in_batch if x not in own] + [(x, False) for x in shown]
            for x, of_batch in others:
                if alike(loss, b, t, x):
                    dropped += 1
                    continue
                logit = scale * (b.z[r] @ b.e[x])
                if isinstance(loss, InBatch) and loss.logq and of_batch:
                    logit = logit - math.log(1 - (1 - float(b.share[b.item[x]])) ** len(targets))
                negatives.append((logit, 1.0 if of_batch else loss.hard_weight))
        left.append(len(negatives))
        masked.append(dropped)
        if isinstance(loss, Pairwise):
            for logit, heavy in negatives:
                total = total + w * heavy * -torch.log(torch.sigmoid(positive - logit))
        else:
            below = positive.exp() + sum(heavy * logit.exp() for logit, heavy in negatives)
            total = total + w * -torch.log(positive.exp() / below)
    return total, left, masked


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_losses_are_those_of_plain_loops_and_so_are_their_gradients(loss: ActionLoss) -> None:
    dropped = 0
    for seed in range(8):
        batch = drawn(seed, loss)
        told = loss.of(batch)
        slow, left, masked = slowly(loss, batch)
        assert told.total.item() == pytest.approx(slow.item(), rel=1e-9)
        assert (told.left.tolist(), told.masked.tolist()) == (left, masked)
        dropped += sum(masked)
        given = [batch.z, batch.e] + ([batch.scale] if loss.unit else [])
        for fast, loop in zip(
            torch.autograd.grad(told.total, given), torch.autograd.grad(slow, given), strict=True
        ):
            torch.testing.assert_close(fast, loop, rtol=1e-7, atol=1e-9)
            assert fast.abs().sum() > 0
    masks = not isinstance(loss, Softmax) and loss not in (MaskedNCE(), MaskedNCE(mask=1.0))
    assert (dropped > 0) == masks


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradients_are_the_slopes_of_the_loss(loss: ActionLoss) -> None:
    """By finite differences: the catalogue softmax makes its own gradient."""
    batch = drawn(3, loss)

    def total(z: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return loss.of(replace(batch, z=z, e=e)).total

    assert torch.autograd.gradcheck(total, (batch.z, batch.e), eps=1e-6, atol=1e-5)


def test_pairwise_by_hand() -> None:
    """One row, its target at 1 and 2 others at 0 and 3: inner products as they are."""
    z = torch.tensor([[1.0], [5.0]], dtype=torch.float64)
    e = torch.tensor([[1.0], [0.0], [3.0]], dtype=torch.float64)
    batch = ActionBatch(
        z,
        e,
        Pairs(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1.0, 0.0])),
        torch.tensor([[2], [-1]]),
        torch.tensor(7.0),
        torch.arange(3),
        torch.eye(3, dtype=torch.float64),
        torch.full((3,), 1 / 3, dtype=torch.float64),
    )
    expected = math.log(1 + math.exp(0 - 1)) + math.log(1 + math.exp(3 - 1))
    assert Pairwise().of(batch).total.item() == pytest.approx(expected)
    sharper = math.log(1 + math.exp(7 * (0 - 1))) + math.log(1 + math.exp(7 * (3 - 1)))
    assert Pairwise(cosine=True).of(batch).total.item() == pytest.approx(sharper)


def test_catalogue_softmax_over_many_chunks() -> None:
    row = torch.arange(200)
    z, e, weight = unit(200, 4), unit(30, 4, seed=1), torch.ones(200, dtype=torch.float64)
    target = torch.arange(200) % 30
    found = action_catalogue(z, e, Pairs(row, target, weight), torch.tensor(5.0))
    assert found.item() == pytest.approx(
        float(F.cross_entropy(5 * z @ e.T, target, reduction="sum")), rel=1e-6
    )


def test_what_a_batch_says_is_on_average_what_the_catalogue_says() -> None:
    """exp of a pair's loss is its denominator over exp of its own logit: its mean over batches is
    that of the full softmax.
    """
    rng = np.random.default_rng(0)
    share = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03], dtype=torch.float64)
    z, e = unit(1, 4), unit(5, 4, seed=1)
    own, one = 4, torch.ones(1, dtype=torch.float64)
    alone = Pairs(torch.tensor([0]), torch.tensor([own]), one)
    exact = action_catalogue(z, e, alone, torch.tensor(2.0)).exp().item()
    # the others' rows are another's, so that no target of theirs is a truth of the first
    row, weight = torch.arange(7), torch.tensor([1.0] + [0.0] * 6, dtype=torch.float64)
    found = []
    for _ in range(4000):
        # other rows' targets: six independent draws
        items = torch.from_numpy(np.r_[own, rng.choice(5, 6, p=share.numpy())])
        # log_chance counts draws, of which the pair's own is none
        batch = ActionBatch(
            z.expand(7, -1),
            e,
            Pairs(row, items, weight),
            torch.full((7, 1), -1),
            torch.tensor(2.0),
            torch.arange(5),
            torch.eye(5),
            1 - (1 - share) ** (6 / 7),
        )
        found.append(InBatch().of(batch).total.exp().item())
    assert np.mean(found) == pytest.approx(exact, abs=4 * np.std(found) / math.sqrt(len(found)))
    assert np.std(found) / math.sqrt(len(found)) < 0.02 * exact


def test_the_chance_that_draws_hold_an_item() -> None:
    found = log_chance(torch.tensor([0.5, 1.0]), 2).exp()
    assert found.tolist() == pytest.approx([0.75, 1.0])


def collapsed(loss: ActionLoss) -> tuple[ActionBatch, torch.Tensor]:
    """Six rows and six items that have drawn together, of frozen features that part them."""
    e = (unit(1, 4).expand(6, -1) + 1e-3 * unit(6, 4, seed=1)).requires_grad_()
    row, ones = torch.arange(6), torch.ones(6, dtype=torch.float64)
    batch = ActionBatch(
        unit(6, 4, seed=2),
        F.normalize(e, dim=1) if loss.unit else e,
        Pairs(row, row, ones),
        torch.full((6, 2), -1),
        torch.tensor(10.0),
        row,
        torch.eye(6),
        ones / 6,
    )
    return batch, e


@pytest.mark.parametrize("loss", [InBatch(), Pairwise(), Pairwise(cosine=True)], ids=repr)
def test_items_that_have_drawn_together_are_still_parted(loss: ActionLoss) -> None:
    """In a space that fell into one direction, negatives must not be masked as being the same item:
    their gradient is the way out.
    """
    batch, e = collapsed(loss)
    told = loss.of(batch)
    (slope,) = torch.autograd.grad(told.total, e)
    assert slope.abs().sum() > 1
    assert told.left.tolist() == [5] * 6 and not told.masked.any()


def test_a_mask_in_the_space_in_training_masks_its_way_out() -> None:
    batch, e = collapsed(MaskedNCE())
    told = MaskedNCE().of(batch)
    assert told.total == 0 and told.left.tolist() == [0] * 6 and told.masked.tolist() == [5] * 6
    (slope,) = torch.autograd.grad(told.total, e)
    assert not slope.any() and slope.isfinite().all()  # a loss of 0 that is said to have no negative


@pytest.mark.parametrize("loss", [Softmax(), InBatch(), Pairwise(), MaskedNCE()], ids=repr)
def test_a_row_of_all_there_is_has_no_negative(loss: ActionLoss) -> None:
    z, e = unit(1, 4).requires_grad_(), unit(2, 4, seed=1)
    pairs = Pairs(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.full((2,), 0.5).double())
    known, none = torch.eye(2).double(), torch.full((1, 1), -1)
    batch = ActionBatch(
        z, e, pairs, none, torch.tensor(5.0), torch.arange(2), known, torch.full((2,), 0.5)
    )
    told = loss.of(batch)
    assert told.left.tolist() == [0, 0] and told.total.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(told.total, z)[0].isfinite().all()


def test_wrong_values_are_refused_by_name() -> None:
    for kind in (Softmax, InBatch, Pairwise, MaskedNCE):
        for name, value in (
            ("temperature", 0.0),
            ("temperature", math.nan),
            ("hard_weight", 0.0),
            ("hard", -1),
            ("hard", 2.5),
        ):
            with pytest.raises(
                KarmafunnelError, match=rf"{kind.__name__}: {name} needs a .*found"
            ):
                kind(**{name: value})
    for value in (-0.1, 1.1, math.nan, "0.99"):
        with pytest.raises(KarmafunnelError, match="MaskedNCE: mask needs a number from 0 to 1"):
            MaskedNCE(mask=value)  # type: ignore[arg-type]
    for kind, name in ((InBatch, "logq"), (Pairwise, "cosine")):
        with pytest.raises(KarmafunnelError, match=rf"{kind.__name__}: {name} needs True or False"):
            kind(**{name: 1})  # type: ignore[arg-type]
    with pytest.raises(KarmafunnelError, match=r"temperature=0.1 needs cosine=True"):
        Pairwise(temperature=0.1)


def test_a_loss_is_printed_as_it_is_typed() -> None:
    for loss in LOSSES:
        assert eval(repr(loss)) == loss
