"""The lines of how unevenly events are spread over items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..measure.describe import popularity
from .held_out import Part
from .judging import Answer, Drawing, Kind, by_chance, judge, too_blunt
from .summed import ROWS, USERS, Line


class Gini(Line):
    """Over the items that were relevant at all, with as many events of each log: those of the
    larger are thinned at random.
    """

    name, unit = "popularity, Gini", "0: all items alike, 1: all events on one"
    needs = ("label",)
    kind: Kind = "difference"
    key = "gini"

    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        return part.user[part.truth["at"].to_numpy()], part.truth["item"].to_numpy()

    def shape(self, counts: np.ndarray, n: int, rng: np.random.Generator) -> float:
        """The figure of n events out of these counts: (n_items,) int64."""
        if counts.sum() > n:
            counts = rng.multivariate_hypergeometric(counts, n, method="marginals")
        return float((popularity(counts[counts > 0]) or {})[self.key] or 0.0)

    def apart(self, a: float, b: float) -> float:
        return abs(a - b)

    def answer(
        self, real: Part, simulated: Part, before: Part | None, rng: np.random.Generator
    ) -> Answer:
        there = [real, simulated, *([before] if before is not None else [])]
        if why := self.absent(*there):
            return self.without(why)
        told = [self.ready(part) for part in there]
        for part, (user, _) in zip(there[:2], told[:2], strict=True):
            if len(user) < ROWS or len(np.unique(user)) < USERS:
                found = f"{len(user)} relevant items of {len(np.unique(user))} users"
                return self.without(f"the {part.who} log has {found}, needs {ROWS} of {USERS}")
        least = min(len(user) for user, _ in told[:2])
        counts = [np.unique(item, return_counts=True)[1] for _, item in told]
        shapes = [self.shape(c, least, rng) for c in counts]
        user, item = told[0]
        item = np.unique(item, return_inverse=True)[1]

        def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            drawn = [
                [np.bincount(item, weights[user]).astype(np.int64) for weights in side]
                for side in (a, b)
            ]
            pairs = zip(*drawn, strict=True)
            return np.array(
                [
                    self.apart(*(self.shape(c, min(x.sum(), y.sum()), rng) for c in (x, y)))
                    for x, y in pairs
                ]
            )

        chance = by_chance(between, (real.n_users, simulated.n_users), rng)
        drift = None
        if len(told) == 3 and (n := min(len(told[0][0]), len(told[2][0]))) >= ROWS:
            drift = self.apart(self.shape(counts[0], n, rng), self.shape(counts[2], n, rng))
        distance = self.apart(shapes[0], shapes[1])
        verdict, allowed = judge(self.kind, distance, chance, drift)
        made = self.without(too_blunt(self.kind, chance) if verdict == "n/a" else "")
        return replace(
            made,
            verdict=verdict,
            real=shapes[0],
            simulated=shapes[1],
            distance=distance,
            chance=chance,
            drift=drift,
            allowed=allowed,
            drawing=self.drawing(counts),
        )

    def drawing(self, counts: list[np.ndarray]) -> Drawing:
        curves = {}
        names = ("real", "simulated", "real, before")
        for name, c in zip(names, counts, strict=False):
            falling = np.sort(c)[::-1]
            ranks = np.unique(np.geomspace(1, len(falling), 100).astype(int))
            curves[name] = (ranks, falling[ranks - 1] / falling.sum())
        return Drawing(curves, "rank of the item", "share of events", log_scale=("x", "y"))


class Zipf(Gini):
    """The least squares slope of log count on log rank, as `describe` has it."""

    name, unit = "popularity, Zipf", "slope of log count on log rank"
    kind: Kind = "log ratio"
    key = "zipf_slope"

    def apart(self, a: float, b: float) -> float:
        return float(abs(np.log(max(-a, 1e-3) / max(-b, 1e-3))))
