"""Fitting several click models together: one loop over the lists that all of them score."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import KarmafunnelError
from ..training import seeded
from .batch import Batch
from .fitting import STEPS, FitOptions, check_labels, mean_loss, predict_ctr
from .inputs import ClickModel
from .joint_losses import Lists, passed, separate

CascadeLoss = Callable[[Lists, Tensor], Tensor]
Grades = Callable[["Cascade", Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Cascade:
    """N lists of C rows, as every stage reads them: NumPy.

    Attributes:
        batches: one a stage, cheapest first, of the same items and labels.
        cut: how many rows of a list each stage passes on, float32 (N, n_stages).
        shown: which rows were shown to the user, (N, C) bool.
        logged: how far a row came in the log, (N, C); zeros where the log does not say.
    """

    batches: tuple[Batch, ...]
    cut: np.ndarray
    shown: np.ndarray
    logged: np.ndarray

    def __len__(self) -> int:
        return len(self.cut)

    @property
    def there(self) -> np.ndarray:
        found: np.ndarray = np.asarray(self.batches[0].weight) > 0
        return found

    @property
    def label(self) -> np.ndarray:
        return np.asarray(self.batches[0].label)


@dataclass(frozen=True)
class JointOptions:
    """How a cascade is fitted.

    epochs, batch_size, weight_decay and patience as of `FitOptions`.

    Attributes:
        rates: of the stages.
        own: what each stage learns by alone, "bce" or "listwise".
        warm: epochs at the start in which every stage learns alone.
        apart: whether each stage stops by its own validation loss; else all of them by nDCG end to
            end.
    """

    rates: tuple[float, ...]
    own: tuple[str, ...]
    epochs: int = 12
    batch_size: int = FitOptions.batch_size
    weight_decay: float = FitOptions.weight_decay
    patience: int = 3
    warm: int = 0
    apart: bool = False


def end_to_end_ndcg(cascade: Cascade, scores: Sequence[np.ndarray]) -> float:
    """nDCG of the lists as the last stage orders what the stages before it pass on: relevant rows
    that they drop gain nothing; mean over lists with a relevant row.
    """
    reached, final = passed(scores, cascade.there, cascade.cut)
    relevant = (cascade.label > 0) & cascade.there
    ordered = relevant & (reached >= len(scores) - 1)
    gain = np.where(ordered, 1 / np.log2(1 + final), 0).sum(axis=1)
    n = relevant.sum(axis=1)
    most = np.cumsum(1 / np.log2(2 + np.arange(relevant.shape[1])))
    has = n > 0
    return float((gain[has] / most[n[has] - 1]).mean()) if has.any() else 0.0


def fit_cascade(
    models: Sequence[ClickModel],
    train: Cascade,
    val: Cascade,
    loss: CascadeLoss,
    options: JointOptions,
    *,
    grades: Grades | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, float]]:
    """Fit the models of all stages in place, in the same steps over the same lists; keep the best
    epoch.

    Args:
        loss: of lists and of one learnt number a stage (`weighed`), after the warm epochs.
        grades: of the rows of all lists, given the models' scores, before every epoch; None for a
            loss that reads none.

    Returns:
        After each epoch the training loss, nDCG end to end on `val` and the stages' own losses.

    Raises:
        KarmafunnelError: for labels without a positive or a negative, and, naming epoch and step,
            for a loss that is no longer a number.
    """
    who = "cascade of " + ", ".join(type(model).__name__ for model in models)
    for cascade, what in ((train, "training"), (val, "validation")):
        for batch in cascade.batches:
            batch.check(who)
        needed = f"{who}: needs positives and negatives among the {what} labels"
        check_labels(cascade.batches[:1], needed)
    for model, batch in zip(models, train.batches, strict=True):
        model.to("cpu").observe([batch])
        model.to(device)
    balance = nn.Parameter(torch.zeros(len(models), device=device))
    groups: list[dict[str, Any]] = [
        {"params": list(model.parameters()), "lr": rate}
        for model, rate in zip(models, options.rates, strict=True)
    ]
    groups.append({"params": [balance], "lr": max(options.rates), "weight_decay": 0.0})
    optimiser = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
    rng = np.random.default_rng([seed, 3])
    size = max(1, min(options.batch_size, len(train) // STEPS))
    best = [copy.deepcopy(model.state_dict()) for model in models]
    best_value, best_epoch = [np.inf] * len(models), [0] * len(models)
    history: list[dict[str, float]] = []
    step = 0
    with seeded(seed, device):
        for epoch in range(1, options.epochs + 1):
            warm = epoch <= options.warm
            grade = None
            if grades is not None and not warm:
                grade = grades(train, _predicted(models, train))
            total = 0.0
            order = rng.permutation(len(train))
            starts = range(0, len(order), size)
            for model in models:
                model.train()
            for start in starts:
                rows = np.sort(order[start : start + size])
                lists = _lists(models, train, rows, grade, options.own, step, device)
                value = separate(lists) if warm else loss(lists, balance)
                step += 1
                if not torch.isfinite(value):
                    found = f"{value.item()} in epoch {epoch}, step {step}"
                    raise KarmafunnelError(who, needs="a finite loss", found=found)
                optimiser.zero_grad(set_to_none=True)
                value.backward()
                optimiser.step()
                total += value.item()
            ndcg = end_to_end_ndcg(val, _predicted(models, val))
            own = [
                mean_loss(m, [b], kind, device)
                for m, b, kind in zip(models, val.batches, options.own, strict=True)
            ]
            told = {f"loss {i + 1}": x for i, x in enumerate(own)}
            history.append({"train": total / len(starts), "nDCG": ndcg} | told)
            if progress is not None:
                alone = ", ".join(f"{x:.4f}" for x in own)
                progress(
                    f"{who}: epoch {epoch} of at most {options.epochs}, loss"
                    f" {history[-1]['train']:.4f}, end to end nDCG {ndcg:.4f},"
                    f" loss of each network alone {alone}"
                )
            held = own if options.apart else [-ndcg] * len(models)
            if not np.isfinite(held).all():
                found = f"{held} after epoch {epoch}"
                raise KarmafunnelError(who, needs="finite validation losses", found=found)
            for i, model in enumerate(models):
                if held[i] < best_value[i]:
                    best_value[i], best_epoch[i] = held[i], epoch
                    best[i] = copy.deepcopy(model.state_dict())
            if epoch - max(*best_epoch, options.warm) >= options.patience:
                break
    for model, state in zip(models, best, strict=True):
        model.load_state_dict(state)
        model.eval()
    return history


def _predicted(models: Sequence[ClickModel], cascade: Cascade) -> list[np.ndarray]:
    """The models' scores of the lists, (N, C) each."""
    return [predict_ctr(m, batch) for m, batch in zip(models, cascade.batches, strict=True)]


def _lists(
    models: Sequence[ClickModel],
    cascade: Cascade,
    rows: np.ndarray,
    grade: np.ndarray | None,
    own: tuple[str, ...],
    step: int,
    device: str,
) -> Lists:
    """Some of the lists, with the models' logits."""
    batches = tuple(batch.rows(rows).to_torch(device) for batch in cascade.batches)
    logits = tuple(model(batch) for model, batch in zip(models, batches, strict=True))
    first = batches[0]
    cut = torch.from_numpy(cascade.cut[rows]).to(device)
    lists = Lists(logits, batches, own, first.label, first.weight > 0, cut, step=step)
    if grade is None:
        return lists
    return replace(lists, grade=torch.from_numpy(grade[rows]).to(device))
