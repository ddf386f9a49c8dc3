"""Interleaving in a simulated shop: each request is shown one list out of two recipes' lists, and
tells which of them it prefers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import KarmafunnelError
from ...log import Log
from ..world.open_shop import Shop
from ..world.visits import Visits
from .arms import Design, Folders, Progress, Servers, served, silent
from .interleaving import (
    Interleaved,
    Interleaving,
    Preference,
    Running,
    preference,
    running,
    scores,
)


@dataclass(frozen=True, eq=False)
class Duel:
    """Which of two recipes users prefer.

    user, day, score (n,): of each request in the order of time; score is 1 where B won, -1 where A
    did, 0 for a tie. filled: the shares of slots that the lists of A and of B filled.
    """

    user: np.ndarray
    day: np.ndarray
    score: np.ndarray
    filled: tuple[float, float] = (1.0, 1.0)

    def preference(self, confidence: float = 0.95) -> Preference:
        """After all requests."""
        return preference(self.score, self.user, confidence)

    def running(self, confidence: float = 0.95) -> Running:
        """After each request, with always-valid intervals."""
        return running(self.score, self.user, confidence)


def duel(
    recipes: Sequence[str],
    shop: Shop,
    design: Design,
    kept: Folders,
    way: Interleaving,
    say: Progress = silent,
) -> Duel:
    """Interleave two recipes in a shop that was just opened; clicks are the credit.

    Args:
        recipes: A and B.
        design: its `share` plays no part: every request sees both.
        way: how lists are mixed and credited.
    """
    servers = Servers(recipes, kept.fits, design.seed, say)
    mixed: list[Interleaved] = []
    filled = np.zeros(2)  # slots

    def offer(log: Log, visits: Visits) -> np.ndarray:
        n = len(visits.user)
        both = [servers.lists(log, visits, np.full(n, arm), design.slots) for arm in (0, 1)]
        return np.concatenate(both, axis=1)

    def show(offered: np.ndarray, day: int, number: int) -> np.ndarray:
        rng = np.random.default_rng([design.seed, day, number])
        a, b = offered[:, : design.slots], offered[:, design.slots :]
        filled[:] += (a >= 0).sum(), (b >= 0).sum()
        mixed[:] = [way.mix(a, b, rng)]
        return mixed[0].items

    found = []
    for day, visits, _, answers in served(shop, design, kept.lists, servers, offer, show, say):
        if day >= 0:
            score = scores(way.credit(mixed[0], answers.clicked.astype(np.float64)))
            order = np.argsort(visits.requests["ts"].to_numpy(), kind="stable")
            found.append((visits.user[order], np.full(len(order), day), score[order]))
    if not found:
        hint = "more users, or more days"
        raise KarmafunnelError("interleave", needs="requests", found="none", hint=hint)
    user, at, score = (np.concatenate(column) for column in zip(*found, strict=True))
    a, b = (filled / (len(user) * design.slots)).tolist()
    return Duel(user, at, score, (a, b))
