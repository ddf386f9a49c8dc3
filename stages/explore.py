"""Exploration: the last stage of a funnel draws the list that is shown, with known probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import KarmafunnelError, quoted
from ..log import hash_ids
from ..typed import positional
from .context import Context
from .frame import RANK, SCORE, mix
from .policies import Policy
from .rows import Rows
from .stage import FittedFunnel, FittedStage, Stage

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, repr=False)
class Explore(Stage):
    """Draws a list of k items out of the upstream's, slot by slot, and keeps the probability of
    each item given those above it as `propensity` of the slates.

    Put it last: what a later stage does to the list has no known probability. Off-policy estimates
    (`karmafunnel ope`) read the policy from it. The draws depend on seed, request and the stage's
    name alone. The score is minus the place; what is not drawn follows in the upstream's order.

    Args:
        policy: `PlackettLuce(temperature)`, which draws by softmax(score / temperature) of the
            upstream's scores, or `BestOrRandom(exploration)`, which shows any item with that
            probability, else the best one.
    """

    policy: Policy = positional()  # noqa: RUF009  (a frozen value)
    k: int = 10
    name: str = "explore"

    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy):
            needed, found = "PlackettLuce(...) or BestOrRandom(...)", quoted(self.policy)
            raise KarmafunnelError("Explore", what="policy", needs=needed, found=found)

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedExplore:
        return FittedExplore(self, context)


class FittedExplore(FittedStage):
    stage: Explore

    def score(self, rows: Rows) -> np.ndarray:
        return self.outputs(rows)[SCORE]

    def outputs(self, rows: Rows) -> dict[str, np.ndarray]:
        """The score, and the propensity, NaN of what is not drawn."""
        rank = rows.frame[RANK].to_numpy().astype(np.int64)
        score = np.where(rows.candidate, 0.0, 0.5) - (self.stage.k + rank)
        propensity = np.full(len(rank), np.nan)
        inside = np.flatnonzero(rows.candidate)
        shape = (len(rows.requests), int(rank[inside].max(initial=0)))
        at, given = np.full(shape, -1, dtype=np.int64), np.full(shape, -np.inf)
        where = rows.group[inside], rank[inside] - 1
        at[where], given[where] = inside, rows.frame[SCORE].to_numpy()[inside]
        column, steps = self.stage.policy.draw(given, self._chance(rows.requests))
        request, slot = np.nonzero(column >= 0)
        drawn = at[request, column[request, slot]]
        score[drawn], propensity[drawn] = -(slot + 1.0), steps[request, slot]
        return {SCORE: score.astype(np.float32), "propensity": propensity}

    def _chance(self, requests: np.ndarray) -> np.ndarray:
        """Numbers above 0 and below 1 that decide the slots of each request: (n_requests, k)."""
        seed, stage = self.context.seed, self.stage
        of_request = hash_ids(self.context.log.request_ids[requests], seed)
        of_stage = hash_ids(np.array([f"draws of {stage.name}"]), seed)
        slot = (np.arange(stage.k, dtype=np.uint64) + np.uint64(1)) * GOLDEN
        drawn = mix(mix(of_request ^ of_stage)[:, None] + slot)
        return ((drawn >> np.uint64(11)) + 0.5) * 2.0**-53
