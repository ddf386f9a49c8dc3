"""A model of what a slot earns, for the direct method and doubly robust estimates.

log E[reward] = a(slot) + b * score + c * score^2, the score by the evaluated funnel's last stage: a
position-based model whose attraction follows the funnel's own order. It is fitted to the rewards of
other users only (Chernozhukov et al. 2018, cross-fitting).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import PoissonRegressor

from ...errors import KarmafunnelError
from ...stages.policies import Policy
from .reading import Choice, LoggedLists

FOLDS = 3
DRAWS = 16  # lists of the evaluated policy a request, where a list has more than one slot


@dataclass(frozen=True, eq=False)
class Guess:
    """What the model says: see `estimators.Logged`."""

    predicted: np.ndarray
    expected: np.ndarray
    direct: np.ndarray


def guess(
    lists: LoggedLists, choice: Choice, policy: Policy, seed: int = 0, who: str = "reward model"
) -> Guess:
    """Fit the model in folds of users and ask it about what was shown and what the policy would
    show.

    Raises KarmafunnelError, naming `who`, for users of whom no others earned anything.
    """
    rng = np.random.default_rng([seed, 2])
    n, k = lists.item.shape
    score = choice.candidates.score
    known = np.isfinite(score)
    middle, spread = float(score[known].mean()), float(score[known].std()) or 1.0
    own = (choice.own - middle) / spread
    other = np.where(known, (np.where(known, score, middle) - middle) / spread, 0.0)
    slot = np.broadcast_to(np.arange(k), (n, k))
    fold = rng.integers(FOLDS, size=int(lists.cluster.max(initial=0)) + 1)[lists.cluster]
    predicted, factor = np.zeros((n, k)), np.zeros((n, k))
    worth = np.zeros_like(other)
    for one in range(FOLDS):
        here = fold == one
        there = lists.there & ~here[:, None]
        earned = lists.reward[there]
        if not here.any():
            continue
        if not earned.any():
            needed = "rewards of several users, to fit a model of them"
            had = len(np.unique(lists.cluster[lists.reward.any(axis=1)]))
            raise KarmafunnelError(who, needs=needed, found=f"those of {had}")
        model = PoissonRegressor(alpha=1e-4, max_iter=300)
        model.fit(design(slot[there], own[there], k), earned / earned.mean())
        of_slot, of_score = model.coef_[:k] + model.intercept_, model.coef_[k:]
        factor[here] = np.exp(of_slot) * earned.mean()
        predicted[here] = factor[here] * attraction(own[here], of_score)
        worth[here] = attraction(other[here], of_score)
    predicted = np.where(lists.there, predicted, 0.0)
    expected = factor * policy.expected(choice.candidates, worth)
    if k == 1:
        return Guess(predicted, expected, expected[:, 0])
    direct = np.zeros(n)
    rows = np.arange(n)[:, None]
    for _ in range(DRAWS):
        drawn, _ = policy.draw(score, rng.random((n, k)))
        earns = factor * worth[rows, drawn] * ((drawn >= 0) & lists.there)
        direct += earns.sum(axis=1) / DRAWS
    return Guess(predicted, expected, direct)


def attraction(score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """exp of the weighted `powers` of scores (n, m): (n, m)."""
    return np.exp(powers(score.ravel()) @ weights).reshape(score.shape)


def powers(score: np.ndarray) -> np.ndarray:
    """The score, its square, and whether there is none: (n, 3)."""
    known = np.isfinite(score)
    x = np.where(known, score, 0.0).clip(-5, 5)
    return np.column_stack([x, x**2, ~known])


def design(slot: np.ndarray, score: np.ndarray, k: int) -> np.ndarray:
    """One column a slot, then `powers`: (n, k + 3)."""
    return np.column_stack([slot[:, None] == np.arange(k), powers(score)])
