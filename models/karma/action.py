"""The action loss of KARMA as a value: what a target is told from, and how.

The paper has exposed-not-clicked negatives [K] and, a public reading says, a pairwise logistic loss
on inner products [R]. A softmax, its corrections and all masks are [I]; a mask in the space that is
being trained is a control of how a loss breaks [O].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...bounds import check_switch, needs
from ...errors import KarmafunnelError
from ...typed import Typed

CHUNK = 64  # rows of logits held at a time: small enough to stay in the cache of a CPU
LOGITS = 1 << 26  # and at least so many logits on a GPU
ALIKE = 0.99  # frozen features with a higher cosine are those of the same item


# -- what a loss reads and returns -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pairs:
    """What rows must tell from the rest: row (P,) ascending, target (P,) distinct within a row,
    weight (P,).
    """

    row: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class ActionBatch:
    """What an action loss reads.

    z (R, d): user embeddings. e (m, d): item vectors; both of length 1 where the loss is `unit`.
    Targets and `shown` (R, h), what was shown in vain (-1 for none), are rows of e. scale (): 1 /
    temperature. Of the n candidates, the items that are a target in W1, of which `item` (m,) are
    those of e: known (n, f), frozen unit features, and share (n,) of W1's pairs.
    """

    z: Tensor
    e: Tensor
    pairs: Pairs
    shown: Tensor
    scale: Tensor
    item: Tensor
    known: Tensor
    share: Tensor


@dataclass(frozen=True, eq=False)
class ActionResult:
    """The sum of weight * loss over the pairs; and for each pair, (P,), how many negatives it was
    told from and how many were masked as being its target.
    """

    total: Tensor
    left: Tensor
    masked: Tensor


@dataclass(frozen=True, repr=False)
class ActionLoss(Typed, ABC):
    """An action loss; `whole`: it reads the vectors of all items that are a target in W1.

    Args:
        hard, hard_weight: shown items without a click that are added as negatives, and how many
            times as much each weighs as another negative.
        temperature: of the cosines; where training starts, for it is learnt.
    """

    whole: ClassVar[bool] = False

    hard: int = 8
    hard_weight: float = 1.0
    temperature: float = 0.07

    def __post_init__(self) -> None:
        needs(self, "hard", temperature=(1e-3, 10.0), hard_weight=(1e-3, None))

    @property
    def unit(self) -> bool:
        """Whether vectors have length 1, in training and in serving."""
        return True

    @abstractmethod
    def of(self, batch: ActionBatch) -> ActionResult:
        """The loss of a batch."""


# -- softmax over the catalogue --------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Softmax(ActionLoss):
    """Softmax over cosine / temperature among all items that are a target in W1 [I].

    Args: see `ActionLoss`. What was shown without a click is among the negatives already;
    `hard_weight` makes it heavier.
    """

    whole: ClassVar[bool] = True

    def of(self, batch: ActionBatch) -> ActionResult:
        z, e, pairs = batch.z, batch.e, batch.pairs
        total = action_catalogue(z, e, pairs, batch.scale, batch.shown, self.hard_weight)
        left = len(e) - torch.bincount(pairs.row, minlength=len(z))[pairs.row]
        return ActionResult(total, left, torch.zeros_like(left))


class CatalogueSoftmax(torch.autograd.Function):
    """Sum over pairs of weight * -log softmax(scale * z e^T)[row, target], its gradient made in the
    same pass.

    The other targets of a row are no negatives of this one, so a pair's denominator is the row's
    sum less its other targets.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        e: Tensor,
        pairs: Pairs,
        scale: Tensor,
        hard_row: Tensor,
        hard_item: Tensor,
        hard_weight: float,
    ) -> Tensor:
        row, target, weight = pairs.row, pairs.target, pairs.weight
        s = float(scale.detach())
        grad_z, grad_e = torch.empty_like(z), torch.zeros_like(e)
        total = torch.zeros((), dtype=torch.float64, device=z.device)
        grad_s = torch.zeros_like(total)
        chunk = CHUNK if z.device.type == "cpu" else max(CHUNK, LOGITS // len(e))
        edges = torch.arange(0, len(z) + chunk, chunk, device=row.device)
        bounds = torch.searchsorted(row, edges).tolist()
        hard_bounds = torch.searchsorted(hard_row, edges).tolist()
        for i, start in enumerate(range(0, len(z), chunk)):
            part = slice(start, start + chunk)
            here_pairs = slice(bounds[i], bounds[i + 1])
            hards = slice(hard_bounds[i], hard_bounds[i + 1])
            cosine = torch.mm(z[part], e.T)
            here, goal, w = row[here_pairs] - start, target[here_pairs], weight[here_pairs]
            p = cosine * s
            # so many times as heavy: a weight on exp is a constant on the logit
            if hard_weight != 1.0:
                p.index_put_(
                    (hard_row[hards] - start, hard_item[hards]),
                    p.new_tensor(math.log(hard_weight)),
                    accumulate=True,
                )
            logit = p[here, goal]
            top = p.amax(dim=1, keepdim=True)
            p.sub_(top).exp_()
            own = p[here, goal]  # (P',)
            truths = torch.zeros(len(p), dtype=p.dtype, device=p.device).index_add_(0, here, own)
            # the row's sum over all that is no truth of it
            others = (p.sum(dim=1) - truths).clamp_min_(0)[here]
            mine = others + own
            total += (w * (top[here, 0] + mine.clamp_min(1e-30).log() - logit)).sum()
            # d loss / d logit: non-truths share sum over pairs of w * p / mine; a truth has w *
            # (own / mine - 1) of its own pair
            share = torch.zeros(len(p), dtype=p.dtype, device=p.device).index_add_(
                0, here, w / mine.clamp_min(1e-30)
            )
            p.mul_(share[:, None])
            p[here, goal] = 0
            p.index_put_((here, goal), w * (own / mine.clamp_min(1e-30) - 1), accumulate=True)
            grad_s += (p * cosine).sum()
            grad_z[part] = torch.mm(p, e) * s
            grad_e.addmm_(p.T, z[part], alpha=s)
        ctx.save_for_backward(grad_z, grad_e, grad_s.to(scale.dtype))
        return total.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_z, grad_e, grad_s = ctx.saved_tensors
        return grad * grad_z, grad * grad_e, None, grad * grad_s, None, None, None


def action_catalogue(
    z: Tensor,
    e: Tensor,
    pairs: Pairs,
    scale: Tensor,
    hard: Tensor | None = None,
    hard_weight: float = 1.0,
) -> Tensor:
    """Sum over pairs of weight * -log softmax over the whole catalogue [I].

    z (R, d), e (m, d) unit rows; scale (): 1 / temperature. hard (R, h): items shown to the row in
    vain, -1 for none; they weigh `hard_weight` times as much as another negative.
    """
    hard_row = hard_item = torch.zeros(0, dtype=torch.int64, device=z.device)
    if hard is not None and hard_weight != 1.0:
        there = hard >= 0
        row = torch.arange(len(hard), device=z.device)[:, None].expand_as(hard)
        keys = torch.unique(row[there] * len(e) + hard[there])
        hard_row, hard_item = keys // len(e), keys % len(e)
    loss: Tensor = CatalogueSoftmax.apply(z, e, pairs, scale, hard_row, hard_item, hard_weight)
    return loss


# -- negatives of the batch ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Terms:
    """Scaled inner products of pairs with their targets, (P,), with the items of the batch, each
    once, (P, U), and with what their rows were shown without a click, (P, h); which of those are
    negatives.
    """

    positive: Tensor
    other: Tensor
    is_other: Tensor
    vain: Tensor
    is_vain: Tensor
    column: Tensor  # (U,) the pair whose target stands in a column
    masked: Tensor  # (P,) how many are masked as being the pair's target

    @classmethod
    def of(cls, batch: ActionBatch, scale: Tensor | float, known: Tensor, alike: float) -> Terms:
        """No negatives are a row's own truths, and what has a cosine over `alike` with the target
        in `known` (m, f).
        """
        z, row, target = batch.z, batch.pairs.row, batch.pairs.target
        goal, same = batch.e[target], known[target]
        positive = scale * (z[row] * goal).sum(dim=1)
        # an item stands in a column once
        first = torch.ones(len(target), dtype=torch.bool, device=z.device)
        order = torch.argsort(target, stable=True)
        first[order[1:]] = target[order[1:]] != target[order[:-1]]
        column = torch.nonzero(first)[:, 0]
        items = target[column]
        by = torch.argsort(items)
        other = (scale * z @ goal[column].T)[row]  # (P, U)
        truth = torch.zeros(len(z), len(column), dtype=torch.bool, device=z.device)
        truth[row, torch.searchsorted(items[by], target)] = True
        by_item = torch.argsort(by)  # place of each column among sorted items
        own, alike_other = truth[:, by_item][row], same @ same[column].T > alike
        shown = batch.shown
        rows = shown.clamp(min=0)
        vain = scale * torch.einsum("rd,rhd->rh", z, batch.e[rows])
        there = (shown >= 0)[row]
        alike_vain = torch.einsum("pf,phf->ph", same, known[rows][row]) > alike
        masked = (alike_other & ~own).sum(dim=1) + (alike_vain & there).sum(dim=1)
        return cls(
            positive,
            other,
            ~(own | alike_other),
            vain[row],
            there & ~alike_vain,
            column,
            masked,
        )

    def result(self, each: Tensor, weight: Tensor) -> ActionResult:
        """The loss of each pair, (P,), with what it was told from."""
        left = self.is_other.sum(dim=1) + self.is_vain.sum(dim=1)
        return ActionResult((weight * each).sum(), left, self.masked)

    def softmax(self, log_p: Tensor | float, hard_weight: float) -> Tensor:
        """-log softmax of each pair's target, (P,); log_p (U,) is taken from the batch's items."""
        vain = self.vain + math.log(hard_weight)
        parts = [
            self.positive[:, None],
            (self.other - log_p).masked_fill(~self.is_other, -torch.inf),
            vain.masked_fill(~self.is_vain, -torch.inf),
        ]
        return torch.logsumexp(torch.cat(parts, dim=1), dim=1) - self.positive


@dataclass(frozen=True, repr=False)
class InBatch(ActionLoss):
    """Softmax over cosine / temperature among the targets of the batch and what the row was shown
    without a click [K: those; I: the rest], for item vectors that are made in training and for
    large catalogues.

    False negatives are masked: relevant items of the same row, and what has a cosine over .99 with
    the target in frozen features.

    Args:
        logq: a target of the batch enters with logit - log P(the batch holds it) (after Yi et al.
            2019): the sum over the batch is then on average the sum over the catalogue. The pair's
            own target needs no correction, and what was shown without a click has none.
    """

    logq: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_switch("InBatch", logq=self.logq)

    def of(self, batch: ActionBatch) -> ActionResult:
        known = batch.known[batch.item]
        terms = Terms.of(batch, batch.scale, known, ALIKE)
        log_p: Tensor | float = 0.0
        if self.logq:
            item = batch.item[batch.pairs.target[terms.column]]
            chance = log_chance(batch.share[item], len(batch.pairs.target))
            log_p = chance.to(batch.z.dtype)
        return terms.result(terms.softmax(log_p, self.hard_weight), batch.pairs.weight)


@dataclass(frozen=True, repr=False)
class Pairwise(ActionLoss):
    """Pairwise logistic loss: the sum of -log sigmoid(h . e_target - h . e_j) over the targets j of
    the batch and what the row was shown without a click.

    On plain inner products this is the paper's loss as a public reading prints it [R]: the last
    hidden state's projection and the item vectors then keep their lengths, in serving, too. It is a
    sum over the negatives, not their mean: `action` weighs it against the decoders. What is masked
    is that of `InBatch` [I].

    Args:
        cosine: on cosine / temperature instead [I]. Without it there is no temperature.
    """

    cosine: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_switch("Pairwise", cosine=self.cosine)
        if not self.cosine and self.temperature != Pairwise.temperature:
            raise KarmafunnelError(
                "Pairwise",
                what=f"temperature={self.temperature:g}",
                needs="cosine=True: plain inner products have no temperature",
                found="cosine=False",
            )

    @property
    def unit(self) -> bool:
        return self.cosine

    def of(self, batch: ActionBatch) -> ActionResult:
        scale = batch.scale if self.cosine else 1.0
        terms = Terms.of(batch, scale, batch.known[batch.item], ALIKE)
        behind = terms.positive[:, None]
        each = (F.softplus(terms.other - behind) * terms.is_other).sum(dim=1)
        vain = (F.softplus(terms.vain - behind) * terms.is_vain).sum(dim=1)
        return terms.result(each + self.hard_weight * vain, batch.pairs.weight)


@dataclass(frozen=True, repr=False)
class MaskedNCE(ActionLoss):
    """A control of how a loss breaks [O]: softmax among the batch as HLLM has it (Chen et al. 2024,
    arXiv 2409.12740; `nce_thres` in its code), without logQ; what is masked follows from the
    vectors in training.

    A space that draws together masks what could part it: pairs are left without negatives, their
    loss is 0. Their number is in the progress and in the facts of the fit. HLLM draws its
    negatives from the catalogue; here they are those of `InBatch`.

    Args:
        mask: a negative whose cosine with the target is higher is left out; 1 leaves out none.
    """

    mask: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        needs(self, mask=(0.0, 1.0))

    def of(self, batch: ActionBatch) -> ActionResult:
        alike = self.mask if self.mask < 1 else math.inf  # rounding may say 1.0000001
        terms = Terms.of(batch, batch.scale, batch.e.detach(), alike)
        return terms.result(terms.softmax(0.0, self.hard_weight), batch.pairs.weight)


def log_chance(share: Tensor, draws: int) -> Tensor:
    """Log chance that so many draws hold an item at least once, from its share of one draw (0, 1]:
    (n,) -> (n,).
    """
    return torch.log(-torch.expm1(draws * torch.log1p(-share)))
