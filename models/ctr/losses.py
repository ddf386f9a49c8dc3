"""Losses of click models."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .batch import Batch


def click_loss(logits: Tensor, batch: Batch, loss: str) -> tuple[Tensor, Tensor]:
    """Sum of the losses and of the weights they count with.

    bce: every labelled cell by its weight. listwise: softmax over the labelled cells of a request,
    its positives sharing weight 1, or the mean of their weights; a request without a positive
    counts nothing. Labels between 0 and 1, as a teacher gives them, are no other case.
    """
    if loss == "bce":
        return (
            F.binary_cross_entropy_with_logits(logits, batch.label, reduction="none") * batch.weight
        ).sum(), batch.weight.sum()
    labelled = batch.weight > 0
    log_p = torch.log_softmax(logits.masked_fill(~labelled, -1e9), dim=1)
    positive = batch.label * batch.weight * labelled
    label = (batch.label * labelled).sum(dim=1).clamp(min=1e-9)
    value = -((positive * log_p).sum(dim=1) / label).sum()
    return value, (positive.sum(dim=1) / label).sum()


def entire_space_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """ESMM's loss of logits (B, C, 2), in logarithms throughout: sum over the labelled cells and of
    their weights.
    """
    click, buy = logits.unbind(dim=-1)
    both = F.logsigmoid(click) + F.logsigmoid(buy)
    # 1 - 1 / ((1 + x)(1 + y)) = (x + y + xy) / ((1 + x)(1 + y)) with x = exp(-click), y = exp(-buy)
    neither = both + torch.logsumexp(torch.stack([-click, -buy, -click - buy]), dim=0)
    bought = -(batch.bought * both + (1 - batch.bought) * neither)
    value = F.binary_cross_entropy_with_logits(click, batch.label, reduction="none") + bought
    return (value * batch.weight).sum(), batch.weight.sum()
