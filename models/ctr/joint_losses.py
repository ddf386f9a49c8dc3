"""A cascade of click models as one network: which items end in the first places of every stage,
made differentiable, and the losses that are built on it.

All stages score the same lists: C rows of a request, of which stage i passes on `cut` i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...bounds import needs
from .batch import Batch
from .losses import click_loss

EPS = 1e-6


# -- sorting ---------------------------------------------------------------------------------------


def neural_sort(score: Tensor, there: Tensor, temperature: float) -> Tensor:
    """Relaxed permutation of each list, best first: (B, C), (B, C) bool -> (B, C, C).

    Row r is a distribution over the items, of which is the r-th best: softmax over i of
    ((n + 1 - 2 r) s_i - sum_j |s_i - s_j|) / (temperature n), with n the items that are there. It
    tends to the permutation that sorts the list as the temperature goes to 0. Rows beyond n and
    columns of what is not there are 0. Source: NeuralSort, Grover et al. 2019, arXiv 1903.08850,
    eq. 5. The n below the line is ours: one temperature then fits lists of any length.
    """
    present = there.to(score.dtype)
    n = present.sum(dim=1)[:, None, None]
    place = torch.arange(1, score.shape[1] + 1, device=score.device)[None, :, None]
    apart = ((score[:, :, None] - score[:, None, :]).abs() * present[:, None, :]).sum(dim=2)
    logits = (n + 1 - 2 * place) * score[:, None, :] - apart[:, None, :]
    logits = (logits / (temperature * n.clamp(min=1))).masked_fill(~there[:, None, :], -1e30)
    return torch.softmax(logits, dim=2) * (place <= n) * present[:, None, :]


def inclusion(permutation: Tensor, cut: Tensor) -> Tensor:
    """How much of an item lies in the first `cut` places: (B, C, C), (B,) -> (B, C) in 0..1.

    sum_{r <= cut} P[r, i] / sum_r P[r, i]; of a cut with a fraction, that part of the next place.
    The rows of a relaxed permutation sum to 1, its columns do not: hence the denominator. The
    authors of LCRON hold it constant in the gradient (github.com/kwai/LCRON); here it is not.
    """
    place = torch.arange(permutation.shape[1], device=cut.device)[None]
    part = (cut[:, None].to(permutation.dtype) - place).clamp(0, 1)
    inside = torch.einsum("br,bri->bi", part, permutation)
    return inside / permutation.sum(dim=1).clamp(min=EPS)


def hard_ranks(score: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Ranks from 1 of what is there, by descending score, ties by place; others behind: int64 (N,
    C).
    """
    order = np.argsort(np.where(there, -score, np.inf), axis=1, kind="stable")
    rank = np.empty(score.shape, dtype=np.int64)
    np.put_along_axis(rank, order, np.arange(1, score.shape[1] + 1)[None], axis=1)
    return rank


def passed(
    scores: Sequence[np.ndarray], there: np.ndarray, cut: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The cascade as it runs: stage after stage ranks what is left and passes on its first `cut`
    (rounded up).

    Args:
        scores: of each stage, (N, C).
        there: (N, C) bool.
        cut: (N, n_stages).

    Returns:
        How many stages passed a row on, int64 (N, C), and its rank by the last stage that it
        reached, int64 (N, C).
    """
    reached, left = np.zeros(there.shape, dtype=np.int64), there
    final = np.full(there.shape, there.shape[1], dtype=np.int64)
    for i, score in enumerate(scores):
        rank = hard_ranks(score, left)
        final = np.where(left, rank, final)
        left = left & (rank <= np.ceil(cut[:, i : i + 1] - EPS))
        reached += left
    return reached, final


# -- losses ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lists:
    """B lists of C rows: tensors, as the losses see them.

    Attributes:
        logits: of each stage, cheapest first, (B, C) each.
        batches: what each stage read.
        own: what each stage learns by alone, "bce" or "listwise".
        label: 1 for relevant, else 0, (B, C).
        there: which rows are no padding, (B, C) bool.
        cut: how many rows of the list each stage passes on, with fractions, (B, n_stages).
        grade: how far a row came, for `graded`, (B, C); None for losses that read none.
        step: number of the step, from 0.
    """

    logits: tuple[Tensor, ...]
    batches: tuple[Batch, ...]
    own: tuple[str, ...]
    label: Tensor
    there: Tensor
    cut: Tensor
    grade: Tensor | None = None
    step: int = 0

    def __post_init__(self) -> None:
        needs(self, step=(0, None))

    def alone(self, i: int, among: Tensor | None = None) -> Tensor:
        """The loss of stage i by itself, of the rows `among`, (B, C) bool; by default all."""
        batch = self.batches[i]
        if among is not None:
            batch = replace(batch, weight=batch.weight * among)
        value, mass = click_loss(self.logits[i], batch, self.own[i])
        return value / mass.clamp(min=EPS)


def mean_over(value: Tensor, there: Tensor) -> Tensor:
    """Mean over the rows of each list, then over the lists."""
    return ((value * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)).mean()


def cross_entropy(p: Tensor, label: Tensor, there: Tensor) -> Tensor:
    """-(y log p + (1 - y) log(1 - p)), mean over rows and lists."""
    p = p.clamp(EPS, 1 - EPS)
    return mean_over(-(label * p.log() + (1 - label) * (1 - p).log()), there)


def weighed(value: Tensor, balance: Tensor) -> Tensor:
    """value / (2 sigma^2) + log sigma with balance = log sigma: a learnt weight (Kendall et al.
    2018, arXiv 1705.07115).
    """
    return value * torch.exp(-2 * balance) / 2 + balance


def separate(lists: Lists) -> Tensor:
    """Each stage by itself: the sum of their own losses; nothing flows from one to another."""
    return torch.stack([lists.alone(i) for i in range(len(lists.logits))]).sum()


def graded(lists: Lists) -> Tensor:
    """FS-LTR: pairs of rows that came differently far, in every stage.

    sum over levels l, mean over pairs (i of grade l, j of a lower grade) of
    log(1 + exp(s_j - s_i)). Source: Full Stage Learning to Rank, Zheng et al. 2024, arXiv
    2405.04844, with the pairwise loss and the mean by level of "FS-RankNet" in
    github.com/kwai/LCRON.
    """
    assert lists.grade is not None
    total = lists.logits[0].new_zeros(())
    for score in lists.logits:
        loss = F.softplus(score[:, None, :] - score[:, :, None])  # (B, i, j)
        for level in torch.unique(lists.grade[lists.there]).tolist()[1:]:
            higher = ((lists.grade == level) & lists.there)[:, :, None]
            pair = higher & ((lists.grade < level) & lists.there)[:, None, :]
            total = total + (loss * pair).sum() / pair.sum().clamp(min=1)
    return total


def relaxed(lists: Lists, temperature: float, balance: Tensor) -> Tensor:
    """ARF, of every stage: L_relax + L_global / (2 sigma^2) + log sigma.

    L_relax = -sum_i y_i log P(i in the first m), m the cut of the stage: of Recall@m@k with the
    relevant rows as the k. L_global = -sum_{r, i} Y[r, i] log P[r, i] over the relaxed permutation
    P and that of the labels Y. Labels of two classes have no order inside them: relevant rows share
    their places equally, and so do the others. Both are means over rows. Source: Wang et al. 2024,
    arXiv 2310.10462, who learn from the full order of a later stage, and "ARF" in
    github.com/kwai/LCRON, where P(i in the first m) is the mean of P[r, i] over r <= m, which the
    sum of the column does not divide (`inclusion`).
    """
    y, there = lists.label * lists.there, lists.there
    n, k = there.sum(dim=1, keepdim=True), y.sum(dim=1, keepdim=True)
    place = torch.arange(1, y.shape[1] + 1, device=y.device)[None]
    top = (place <= k).to(y.dtype)  # places of the relevant rows
    rest = ((place > k) & (place <= n)).to(y.dtype)
    total = y.new_zeros(())
    for i, score in enumerate(lists.logits):
        p = neural_sort(score, there, temperature)
        inside = inclusion(p, lists.cut[:, i]).clamp(min=EPS)
        relax = mean_over(-y * inside.log(), there)
        log_p = p.clamp(min=EPS).log()
        first = torch.einsum("br,bri,bi->b", top, log_p, y) / k[:, 0].clamp(min=1)
        other = torch.einsum("br,bri,bi->b", rest, log_p, there.to(y.dtype) - y)
        whole = -(first + other / (n - k)[:, 0].clamp(min=1)) / n[:, 0].clamp(min=1)
        total = total + relax + weighed(whole.mean(), balance[i])
    return total


def survival(lists: Lists, temperature: float) -> tuple[Tensor, list[Tensor]]:
    """How likely a row ends within the cuts of all stages: the product of its inclusions, (B, C);
    and the relaxed permutations.

    A row in the first places of every stage over the whole list also survives when each stage ranks
    only what is left, so that this is a lower bound.
    """
    sorts = [neural_sort(score, lists.there, temperature) for score in lists.logits]
    product = torch.ones_like(lists.label)
    for i, p in enumerate(sorts):
        product = product * inclusion(p, lists.cut[:, i])
    return product, sorts


def end_to_end(lists: Lists, temperature: float, balance: Tensor) -> Tensor:
    """LCRON: L_e2e + sum over stages of (L_single / (2 sigma^2) + log sigma).

    L_e2e is the cross entropy of the labels and of the probability to survive all stages
    (`survival`), L_single that of one stage with as many places as there are relevant rows. Source:
    Learning Cascade Ranking as One Network, Wang et al. 2025, arXiv 2503.09492, and
    github.com/kwai/LCRON, whose cut of every stage is the number of relevant rows in L_e2e as well.
    """
    y = lists.label * lists.there
    product, sorts = survival(lists, temperature)
    total = cross_entropy(product, y, lists.there)
    for i, p in enumerate(sorts):
        single = cross_entropy(inclusion(p, y.sum(dim=1)), y, lists.there)
        total = total + weighed(single, balance[i])
    return total


def flows(lists: Lists, share: float) -> Tensor:
    """RankFlow: each stage learns from what the stage before passes on, and from the stage after.

    The first stage learns from all rows, every other from those that the current models before it
    pass on: "self learning". In every second step, all but the last learn from the order of the
    stage after them instead, over the rows that they pass on: "tutor learning", `share` of it by
    the cross entropy of softmax(s_i) and softmax(s_i+1), the rest by log(1 + exp(s_b - s_a)) of
    pairs that the stage after would pass on (a) and drop (b). Source: Qin et al. 2022, SIGIR, doi
    10.1145/3477495.3532050; there the first part is a squared error, which needs scores on one
    scale and a listwise loss has none. "RankFlow" in github.com/kwai/LCRON takes that of the
    scores, the mean scores of both sets for the pairs, and all parts in every step.
    """
    left = lists.there
    total = lists.label.new_zeros(())
    tutored = lists.step % 2 == 1
    last = len(lists.logits) - 1
    for i, score in enumerate(lists.logits):
        after = within(score.detach(), left, lists.cut[:, i])
        if i == last or not tutored:
            total = total + lists.alone(i, left)
        else:
            tutor = lists.logits[i + 1].detach()
            best = within(tutor, after, lists.cut[:, i + 1])
            total = total + share * by_shares(score, tutor, after)
            pair = best[:, :, None] & (after & ~best)[:, None, :]
            loss = F.softplus(score[:, None, :] - score[:, :, None])
            total = total + (1 - share) * (loss * pair).sum() / pair.sum().clamp(min=1)
        left = after
    return total


def within(score: Tensor, there: Tensor, cut: Tensor) -> Tensor:
    """Which rows that are there are among the first `cut` (rounded up): (B, C) bool."""
    order = score.masked_fill(~there, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1) + 1
    return there & (rank <= torch.ceil(cut - EPS)[:, None])


def by_shares(score: Tensor, tutor: Tensor, among: Tensor) -> Tensor:
    """-sum_i softmax(tutor)_i log softmax(score)_i over the rows `among`, mean over the lists."""
    target = torch.softmax(tutor.masked_fill(~among, -1e9), dim=1)
    log_p = torch.log_softmax(score.masked_fill(~among, -1e9), dim=1)
    return -(target * log_p * among).sum(dim=1).mean()
