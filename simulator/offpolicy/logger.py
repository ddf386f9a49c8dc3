"""Weights in two stages, where the funnel that drew the log's lists is known (Ma et al. 2020,
Off-policy learning in two-stage recommender systems).

A list is drawn out of the candidates that earlier stages chose. Its weight is the ratio of the
candidate stages, 1 where all of its items are candidates of the evaluated funnel, too, and 0 where
one is not, times the ratio of what ranking makes of either set. A Run of the logging funnel on the
same log tells its candidates and, by the policy of its last stage, the propensities.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...errors import KarmafunnelError
from ...log import Log
from ...stages.policies import BestOrRandom, Policy
from ..measure.run import Run
from .reading import Choice, LoggedLists, choice_of, own_policy
from .support import Support

CANDIDATES, RANKING = "candidate stage", "ranking among them"
APART = 0.01  # by which share a recorded propensity may differ


def logged_choice(logger: Run, log: Log, lists: LoggedLists) -> tuple[Choice, Policy]:
    """What the logging funnel drew the lists from, and its policy.

    Raises KarmafunnelError for a Run whose last stage does not draw, or not by chance.
    """
    policy = own_policy(logger)
    if policy is None or policy == BestOrRandom(0.0):
        needed = "a last stage that draws by chance (Explore)"
        found = logger.stages[-1] if policy is None else repr(policy)
        raise KarmafunnelError(f"logger {logger.name}", needs=needed, found=found)
    return choice_of(logger, log, lists), policy


def with_propensities(lists: LoggedLists, choice: Choice, policy: Policy, name: str) -> LoggedLists:
    """The lists with the propensities of the logging funnel, in place of recorded ones or of NaN.

    Raises:
        KarmafunnelError: naming the first request with a list that this funnel cannot have drawn,
            or with a recorded propensity that is another one.
    """
    steps = policy.steps(choice.candidates)
    never = np.flatnonzero((steps <= 0).any(axis=1))
    if len(never):
        raise KarmafunnelError(
            f"logger {name}",
            needs="a Run of the funnel that drew the log's lists",
            found=f"{len(never):,} of {len(steps):,} lists that it cannot draw, such as that of "
            f"request {lists.request_id[int(never[0])]!r}",
        )
    off = np.abs(steps / lists.propensity - 1)  # NaN is none
    apart = np.flatnonzero((off > APART).any(axis=1))
    if len(apart):
        row = int(apart[0])
        slot = int(np.nanargmax(off[row]))
        raise KarmafunnelError(
            f"logger {name}",
            needs="the propensities that the log holds",
            found=f"{steps[row, slot]:.4g} in place of {lists.propensity[row, slot]:.4g}, at "
            f"request {lists.request_id[row]!r} ({len(apart):,} such requests)",
        )
    return replace(lists, propensity=steps)


def among(choice: Choice, other: Choice) -> np.ndarray:
    """Whether each candidate of one funnel is one of the other's at the same request: (n, m)."""
    size = max(int(choice.item.max(initial=0)), int(other.item.max(initial=0))) + 1
    rows = np.arange(len(choice.item))[:, None] * size
    known = other.item >= 0
    there = np.isin(rows + choice.item, (rows + other.item)[known])
    return there & (choice.item >= 0)


def never_shown(choice: Choice, policy: Policy, held: np.ndarray) -> np.ndarray:
    """Of each request, the probability that the first slot shows what the log cannot: (n,)."""
    score = choice.candidates.score
    return (policy.choice(score, np.isfinite(score)) * ~held).sum(axis=1)


def by_stage(
    lists: LoggedLists, choice: Choice, policy: Policy, held: np.ndarray
) -> dict[str, Support]:
    """Support of the two ratios of a list's weight: that of the candidate stages, and that of the
    rankings over the lists where the first is not 0.
    """
    passed = ((choice.candidates.place >= 0) | ~lists.there).all(axis=1)
    ratio = (policy.steps(choice.candidates) / lists.propensity).prod(axis=1)
    return {
        CANDIDATES: Support.of(passed.astype(np.float64), never_shown(choice, policy, held)),
        RANKING: Support.of(ratio[passed], np.zeros(int(passed.sum()))),
    }
