"""Propensities that a log lacks, estimated from the lists that it shows.

Slot by slot a conditional logit (McFadden 1974) says which of the log's items, less those above, is
shown: log P(item) = a(slot, item) + b(slot) * score + const, the score by the evaluated funnel's
last stage. So the shown items have the mean score that the model expects, slot by slot (covariate
balance, Imai & Ratkovic 2014). It is fitted to the lists of other users only.

It assumes that each of these items could have been shown at each request, and that what else made
the log choose, other than slot, item and this score, has nothing to do with rewards.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from ...errors import KarmafunnelError
from .reading import Choice, LoggedLists
from .support import INSTEAD

FOLDS = 3
FEWEST = 5  # times that an item is shown in a slot to other users
CELLS = 100_000_000  # requests x items
RIDGE = 1.0  # looks of each item, so to speak: a log that is not sparse outweighs it
OFF = 4.0  # standard errors by which weights may miss their mean


def with_estimates(lists: LoggedLists, choice: Choice, seed: int, who: str) -> LoggedLists:
    """The lists with estimated propensities.

    Raises:
        KarmafunnelError: too many items, too few users, or an item that is too rare in a slot: the
            first request that shows it is named.
    """
    shown = np.unique(lists.item[lists.there])
    n, k = lists.item.shape
    if n * len(shown) > CELLS:
        needs = f"at most {CELLS:,} requests x items to estimate propensities"
        found = f"{n:,} x {len(shown):,}"
        raise KarmafunnelError(who, needs=needs, found=found, hint=INSTEAD)
    users = int(lists.cluster.max(initial=-1)) + 1
    if users < FOLDS:
        raise KarmafunnelError(who, needs=f"at least {FOLDS} users", found=f"{users}")
    at = np.where(lists.there, np.searchsorted(shown, lists.item), -1)
    score, none = scores(choice, shown)
    fold = np.random.default_rng([seed, 3]).permutation(users)[lists.cluster] % FOLDS
    out = np.ones((n, k))
    for slot in range(k):
        left = np.ones((n, len(shown)), dtype=bool)
        above = at[:, :slot]
        row, item = np.nonzero(above >= 0)
        left[row, above[row, item]] = False
        there = lists.there[:, slot]
        for one in range(FOLDS):
            others, mine = there & (fold != one), np.flatnonzero(there & (fold == one))
            if not len(mine):
                continue
            times = np.bincount(at[others, slot], minlength=len(shown))
            rare = mine[times[at[mine, slot]] < FEWEST]
            if len(rare):
                raise KarmafunnelError(
                    who,
                    what="propensity",
                    needs=f"lists that show each item in a slot at least {FEWEST} times to other "
                    "users, to estimate it",
                    found=f"request {lists.request_id[int(rare[0])]!r} with an item that slot "
                    f"{slot + 1} shows {times[at[rare[0], slot]]} times",
                    hint=INSTEAD,
                )
            model = fitted(score[others], none[others], left[others], at[others, slot])
            log_p = said(model, score[mine], none[mine], left[mine])
            out[mine, slot] = np.exp(log_p[np.arange(len(mine)), at[mine, slot]])
    return replace(lists, propensity=out)


def scores(choice: Choice, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The funnel's score of every item that the log shows, less the mean of the request's
    candidates, in standard deviations, 0 where it is no candidate; and whether it is none: two
    (n, items).
    """
    score = choice.candidates.score
    known = np.isfinite(score)
    number = np.maximum(known.sum(axis=1, keepdims=True), 1)
    whole = np.where(known, score, 0.0)
    off = np.where(known, whole - whole.sum(axis=1, keepdims=True) / number, 0.0)
    scaled = (off / (np.sqrt((off[known] ** 2).mean()) or 1.0)).clip(-5, 5)
    column = np.searchsorted(shown, choice.item).clip(max=max(len(shown) - 1, 0))
    row, place = np.nonzero(known & (shown[column] == choice.item))
    out = np.zeros((len(score), len(shown)))
    none = np.ones(out.shape)
    out[row, column[row, place]] = scaled[row, place]
    none[row, column[row, place]] = 0.0
    return out, none


def said(model: np.ndarray, score: np.ndarray, none: np.ndarray, left: np.ndarray) -> np.ndarray:
    """log P(item is shown) among those left: (n, items). model: a of each item, then b, then what
    no candidate has in place of a score.
    """
    utility = model[:-2] + model[-2] * score + model[-1] * none
    utility = np.where(left, utility, -np.inf)
    return np.asarray(utility - logsumexp(utility, axis=1, keepdims=True))


def fitted(score: np.ndarray, none: np.ndarray, left: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The model that makes the chosen items (n,) most likely, with a ridge."""
    n, items = score.shape
    rows = np.arange(n)
    times = np.bincount(chosen, minlength=items)
    target = [(score[rows, chosen]).sum(), (none[rows, chosen]).sum()]

    def lost(model: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = said(model, score, none, left)
        p = np.exp(log_p)
        slope = np.r_[p.sum(axis=0) - times, (p * score).sum() - target[0], 0.0]
        slope[-1] = (p * none).sum() - target[1]
        value = -log_p[rows, chosen].sum() + RIDGE / 2 * (model @ model)
        return value / n, (slope + RIDGE * model) / n

    start = np.r_[np.log(times + 0.5), 0.0, 0.0]
    start[:items] -= start[:items].mean()
    return np.asarray(minimize(lost, start, jac=True, method="L-BFGS-B").x)


def balance(prefix: np.ndarray, held: np.ndarray, lists: LoggedLists) -> np.ndarray:
    """How far the weights of each slot are from their mean under right propensities, in standard
    errors over users: (k,).

    A weight is, on average, that of the slots above times what the policy shows there of the items
    that the log can show. prefix (n, k): weights; held (n, k): that share.
    """
    before = np.concatenate([np.ones((len(prefix), 1)), prefix[:, :-1]], axis=1)
    off = np.where(lists.there, prefix - before * held, 0.0)
    by_user = np.stack([np.bincount(lists.cluster, weights=column) for column in off.T], axis=1)
    error = np.sqrt((by_user**2).sum(axis=0))
    return np.asarray(by_user.sum(axis=0) / np.where(error > 0, error, 1.0))
