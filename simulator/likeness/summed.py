"""What lines of a report card have in common.

Most lines are sums over users that are divided at the end: a user's values in each bin, a user's
clicks and requests. So a resample of users is one product of weights and sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import wasserstein_distance

from .held_out import Part
from .judging import Answer, Drawing, Kind, by_chance, judge, too_blunt

GRID = 400  # points at which distributions are compared
USERS = 10  # fewest users of a line in each log
ROWS = 30  # fewest values
WORDS = {
    "exposures": "lists that were shown",
    "clicks": "clicks",
    "purchases": "purchases",
    "query": "queries",
    "price": "prices",
    "users": "users",
    "clock": "clock",
    "sessions": "sessions",
    "categories": "categories",
    "label": "clicks or purchases that both logs have",
}
Draw = Callable[[np.ndarray], np.ndarray]


class Line(ABC):
    """A property of logs, and how far two logs are from each other in it."""

    name: str
    unit: str  # of the figure
    needs: tuple[str, ...] = ()
    kind: Kind = "KS"

    def absent(self, *parts: Part) -> str:
        """Why the line cannot be answered: what a log lacks; "" where it can be."""
        for need in self.needs:
            without = [part.who for part in parts if not part.has(need)]
            if without and need == "label":
                return f"there are no {WORDS[need]}"
            if without:
                which = " and the ".join(dict.fromkeys(without))
                return f"the {which} log has no {WORDS[need]}"
        return ""

    @abstractmethod
    def answer(
        self, real: Part, simulated: Part, before: Part | None, rng: np.random.Generator
    ) -> Answer:
        """The answer; raises nothing for what logs may lack."""

    def without(self, why: str) -> Answer:
        return Answer(self.name, self.unit, self.kind, "n/a", why=why)


class Summed(Line):
    """A line of sums over users."""

    @abstractmethod
    def ready(self, part: Part) -> tuple[np.ndarray, ...]:
        """Arrays (n,) of the part: the user of each row first."""

    @abstractmethod
    def scale(self, told: list[tuple[np.ndarray, ...]]) -> np.ndarray:
        """What the columns of sums stand for, the same for all parts."""

    @abstractmethod
    def sums(self, told: tuple[np.ndarray, ...], n_users: int, scale: np.ndarray) -> csr_array:
        """Sums of each user: (n_users, columns)."""

    @abstractmethod
    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        """What is compared, of each row of sums: (b, columns) -> (b, d)."""

    @abstractmethod
    def apart(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Distances of the rows of two: (b, d), (b, d) -> (b,)."""

    @abstractmethod
    def figure(self, told: tuple[np.ndarray, ...], of_sums: np.ndarray) -> float:
        """The figure that the card prints."""

    @abstractmethod
    def drawing(self, named: dict[str, np.ndarray], scale: np.ndarray) -> Drawing:
        """What the page draws, from the rows of sums (columns,) of each part."""

    def answer(
        self, real: Part, simulated: Part, before: Part | None, rng: np.random.Generator
    ) -> Answer:
        there = [real, simulated, *([before] if before is not None else [])]
        if why := self.absent(*there):
            return self.without(why)
        told = [self.ready(part) for part in there]
        for part, arrays in zip(there[:2], told[:2], strict=True):
            if why := self.too_few(part, arrays):
                return self.without(why)
        if len(told) == 3 and self.too_few(there[2], told[2]):
            there, told = there[:2], told[:2]
        scale = self.scale(told)
        sums = [
            self.sums(arrays, part.n_users, scale) for part, arrays in zip(there, told, strict=True)
        ]
        whole = [self.of_sums(s.sum(axis=0)[None, :]) for s in sums]
        distances = [float(self.apart(whole[0], other)[0]) for other in whole[1:]]

        draw = self.drawn(real, sums[0], scale, rng)

        def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return self.apart(self.of_sums(draw(a)), self.of_sums(draw(b)))

        chance = by_chance(between, (real.n_users, simulated.n_users), rng)
        drift = distances[1] if len(distances) > 1 else None
        verdict, allowed = judge(self.kind, distances[0], chance, drift)
        names = ("real", "simulated", "real, before")
        named = {name: s.sum(axis=0) for name, s in zip(names, sums, strict=False)}
        return Answer(
            self.name,
            self.unit,
            self.kind,
            verdict,
            self.figure(told[0], whole[0][0]),
            self.figure(told[1], whole[1][0]),
            distances[0],
            chance,
            drift,
            allowed,
            too_blunt(self.kind, chance) if verdict == "n/a" else "",
            self.drawing(named, scale),
            moved=self.moved(told[0], told[1]),
        )

    def moved(
        self, real: tuple[np.ndarray, ...], simulated: tuple[np.ndarray, ...]
    ) -> float | None:
        """How far values are from each other; None where the line has no distribution."""
        return None

    def drawn(
        self, part: Part, sums: csr_array, scale: np.ndarray, rng: np.random.Generator
    ) -> Draw:
        """Sums over draws of the part's users, whose weights are (b, n_users): (b, columns)."""
        return lambda weights: np.asarray(weights @ sums)

    def too_few(self, part: Part, told: tuple[np.ndarray, ...]) -> str:
        """Why a part cannot answer: too few users or rows; "" where it can."""
        users = len(np.unique(told[0]))
        if users < USERS or len(told[0]) < ROWS:
            needed = f"{ROWS} of {USERS} users"
            return f"the {part.who} log has {len(told[0])} values of {users} users, needs {needed}"
        return ""


class Spread(Summed):
    """A distribution of values; the distance is that of Kolmogorov and Smirnov: the largest share
    that lies below some value in one log and above it in the other.
    """

    @abstractmethod
    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """The user of each value, and the values: (n,), (n,)."""

    def scale(self, told: list[tuple[np.ndarray, ...]]) -> np.ndarray:
        values = np.unique(np.concatenate([v for _, v in told]))
        if len(values) > GRID:
            shares = np.linspace(0, 1, GRID // 2)
            values = np.unique(np.concatenate([np.quantile(v, shares) for _, v in told[:2]]))
        return values

    def sums(self, told: tuple[np.ndarray, ...], n_users: int, scale: np.ndarray) -> csr_array:
        user, values = told
        at = np.minimum(np.searchsorted(scale, values), len(scale) - 1)
        shape = (n_users, len(scale))
        return csr_array((np.ones(len(user)), (user, at)), shape=shape)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        below = sums.cumsum(axis=1)
        return below / np.maximum(below[:, -1:], 1e-12)

    def apart(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.abs(a - b).max(axis=1)

    def figure(self, told: tuple[np.ndarray, ...], of_sums: np.ndarray) -> float:
        return float(told[1].mean())

    def moved(self, real: tuple[np.ndarray, ...], simulated: tuple[np.ndarray, ...]) -> float:
        return float(wasserstein_distance(real[1], simulated[1]))

    def drawing(self, named: dict[str, np.ndarray], scale: np.ndarray) -> Drawing:
        curves = {name: (scale, self.of_sums(s[None, :])[0]) for name, s in named.items()}
        if set(scale.tolist()) <= {0.0, 1.0}:
            shares = {name: (np.array([name]), self.shares(s)) for name, s in named.items()}
            return Drawing(shares, self.unit, "share", "bar")
        wide = ("x",) if scale[0] > 0 and scale[-1] > 50 * np.median(scale) else ()
        return Drawing(curves, self.unit, "share up to x", "step", wide)

    def shares(self, sums: np.ndarray) -> np.ndarray:
        """The share of ones among zeros and ones."""
        return np.array([sums[-1] / max(sums.sum(), 1.0)])


class Rate(Summed):
    """Events a unit; the distance is the absolute log ratio, with half an event added to each."""

    kind: Kind = "log ratio"

    @abstractmethod
    def ready(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """The user of each unit, and its events: (n,), (n,)."""

    def scale(self, told: list[tuple[np.ndarray, ...]]) -> np.ndarray:
        return np.arange(2)

    def sums(self, told: tuple[np.ndarray, ...], n_users: int, scale: np.ndarray) -> csr_array:
        user, events = told
        both = (np.bincount(user, w, minlength=n_users) for w in (events, np.ones(len(user))))
        return csr_array(np.stack(list(both), axis=1))

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        return (sums[:, :1] + 0.5) / (sums[:, 1:] + 0.5)

    def apart(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.abs(np.log(a / b))[:, 0]

    def figure(self, told: tuple[np.ndarray, ...], of_sums: np.ndarray) -> float:
        return float(told[1].mean())

    def drawing(self, named: dict[str, np.ndarray], scale: np.ndarray) -> Drawing:
        bars = {name: (np.array([name]), s[:1] / s[1:]) for name, s in named.items()}
        return Drawing(bars, self.unit, "rate", "bar")
