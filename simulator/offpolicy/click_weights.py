"""Weights of clicks, for logs whose lists were not drawn by chance, after the idea of Tanaka et al.
2026 (arXiv 2603.21485). We had its abstract alone: the estimators below are our own derivation.

Where a list is always the same, the click is what chance there is. If what a click earns does not
hang on the place of its item, an item that was shown stands for itself in another place: what it
earned counts by P(click | evaluated list) / P(click | logged list), both by a click model that is
fitted to the other windows of the log. Of a position-based model this is the ratio of examinations.
What the logged list does not hold has no weight: CIPS leaves it out, CDR takes the model's word.

The model has one attraction for each item. Where the log ranks by what an item is worth to this
request, the model takes that for the effect of places, and the weights are wrong: `unexplained`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import KarmafunnelError
from ...layout import WINDOWS
from ...log import Log
from ...stages.policies import BestOrRandom, Policy
from ..world.click_fit import Fit, fit
from ..world.click_lists import Lists
from ..world.clicks import PBM
from .reading import Choice, LoggedLists

DRAWS = 16  # lists of a policy with chance, a request
SHRUNK = 10.0  # clicks of an average item that each item's earnings a click start with
FOLDS = 3
REFITS = 10  # of the click model, for intervals


@dataclass(frozen=True, eq=False)
class ClickWeights:
    """weight, predicted (n, k): of logged slots, the weight of a click and what the model expects.
    direct (n,): what the model expects of the evaluated list. held (n,): the share of the evaluated
    list's expected clicks that fall on items of the logged list.
    """

    weight: np.ndarray
    predicted: np.ndarray
    direct: np.ndarray
    held: np.ndarray


def fitted_to(log: Log, window: str, k: int, who: str, seed: int = 0) -> list[Fit]:
    """Position-based models of the first k slots of lists in the log's other windows; see `fits`.

    Raises:
        KarmafunnelError: no such lists, or too few for the model.
    """
    others = [name for name in WINDOWS if not name.startswith(window)]
    try:
        return fits(Lists.of(log, *others, k=k), log.n_items, seed)
    except KarmafunnelError as error:
        needed = f"lists of {', '.join(others)} that a click model can be fitted to"
        raise KarmafunnelError(who, needs=needed, found=str(error)) from error


def fits(lists: Lists, n_items: int, seed: int = 0) -> list[Fit]:
    """The model that fits the lists, then those that fit REFITS draws of their users."""
    start = PBM.of(lists.items.shape[1])
    found = [fit(start, lists, n_items=n_items)]
    owner = np.arange(len(lists.items)) if lists.users is None else lists.users
    users, owner = np.unique(owner, return_inverse=True)
    for i in range(REFITS):
        rng = np.random.default_rng([seed, 6, i])
        times = np.bincount(rng.integers(len(users), size=len(users)), minlength=len(users))
        rows = np.repeat(np.arange(len(owner)), times[owner])
        mask = None if lists.mask is None else lists.mask[rows]
        drawn = Lists(lists.items[rows], lists.clicks[rows], mask)
        # where the first fit ended is where the others begin
        found.append(fit(found[0].model, drawn, n_items=n_items))
    return found


def click_weights(
    lists: LoggedLists, choice: Choice, policy: Policy, model: Fit, worth: np.ndarray, seed: int = 0
) -> ClickWeights:
    """What a click model says of the lists.

    Args:
        worth: what a click on a candidate and on a logged item earns, (n, m + k).
    """
    rng = np.random.default_rng([seed, 4])
    n, k = lists.item.shape
    rows = np.arange(n)[:, None]
    there = lists.there
    logged = model.model.marginal(model.shown(lists.item, there))
    earns, own = worth[:, : choice.item.shape[1]], worth[:, choice.item.shape[1] :]
    weight, direct, whole = np.zeros((n, k)), np.zeros(n), np.zeros(n)
    draws = 1 if policy == BestOrRandom(0.0) else DRAWS
    for _ in range(draws):
        column, _ = policy.draw(choice.candidates.score, rng.random((n, k)))
        filled = (column >= 0) & there
        item = np.where(filled, choice.item[rows, column], -1)
        clicks = np.where(filled, model.model.marginal(model.shown(item, filled)), 0.0)
        direct += (clicks * earns[rows, column]).sum(axis=1) / draws
        whole += clicks.sum(axis=1) / draws
        same = (lists.item[:, :, None] == item[:, None, :]) & there[:, :, None]
        weight += (same * clicks[:, None, :]).sum(axis=2) / draws
    carried = weight.sum(axis=1)
    held = np.divide(carried, whole, out=np.ones(n), where=whole > 0)
    known = there & (logged > 0)
    weight = np.divide(weight, logged, out=np.zeros((n, k)), where=known)
    return ClickWeights(weight, np.where(there, logged * own, 0.0), direct, held)


def unexplained(lists: LoggedLists, choice: Choice, predicted: np.ndarray) -> float:
    """By how many standard errors over users what slots earn, less what the model predicts, leans
    to the items of each list that the evaluated funnel scores high.
    """
    known = lists.there & np.isfinite(choice.own)
    number = np.maximum(known.sum(axis=1, keepdims=True), 1)
    score = np.where(known, choice.own, 0.0)
    middle = score.sum(axis=1, keepdims=True) / number
    if lists.item.shape[1] == 1:
        middle = np.full_like(middle, score.sum() / max(int(known.sum()), 1))
    off = np.where(known, (score - middle) * (lists.reward - predicted), 0.0).sum(axis=1)
    by_user = np.bincount(lists.cluster, weights=off)
    error = float(np.sqrt((by_user**2).sum()))
    return float(by_user.sum()) / error if error > 0 else 0.0


def worth_of_clicks(
    lists: LoggedLists, choice: Choice, clicked: np.ndarray, n_items: int, seed: int = 0
) -> np.ndarray:
    """What a click on each candidate and each logged item earns, (n, m + k): the mean over clicks
    of other users on the item, shrunk to that of all items.
    """
    both = np.concatenate([choice.item, lists.item], axis=1)
    if (lists.reward == clicked).all():
        return np.ones(both.shape)
    out = np.zeros(both.shape)
    users = int(lists.cluster.max(initial=-1)) + 1
    fold = np.random.default_rng([seed, 5]).permutation(users)[lists.cluster] % FOLDS
    for one in range(FOLDS):
        others = (fold != one)[:, None] & lists.there
        item = lists.item[others]
        clicks = np.bincount(item, clicked[others], minlength=n_items)
        earned = np.bincount(item, lists.reward[others], minlength=n_items)
        average = earned.sum() / max(clicks.sum(), 1.0)
        rate = (earned + SHRUNK * average) / (clicks + SHRUNK)
        out[fold == one] = rate[both[fold == one]]
    return out
