"""Click models as values: who looks at which slots of a list, from the top down, and clicks.

A list has k slots. Whoever looks at a slot clicks with the attraction of its item (the examination
hypothesis, Richardson et al. 2007); the models differ in which slots are looked at. Whether a slot
is looked at hangs on what was clicked above it alone, so that every model says the chance of a
click slot by slot. Notation as in Chuklin, Markov & de Rijke 2015, Click Models for Web Search.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np

from ...bounds import SHARE, check_bound, several
from ...errors import KarmafunnelError, quoted
from ...typed import positional
from .click_lists import Shown, log_chance
from .click_protocol import Chances, ClickModel, Hidden, Single


@dataclass(frozen=True, repr=False)
class PBM(Single):
    """Position-based model: P(click) = examination[slot] * attraction (Richardson et al. 2007;
    Craswell et al. 2008).

    Args:
        examination: P(looked at) of each slot; a fit needs 1 for the first, or attraction has no
            scale.
    """

    examination: tuple[float, ...] = positional()

    def __post_init__(self) -> None:
        hold_shares(self, "examination", fewest=1)

    @classmethod
    def of(cls, k: int) -> Self:
        """Where a fit of k slots can start."""
        return cls(tuple(1.0 / (1 + i) ** 0.5 for i in range(k)))

    def check_slots(self, shown: Shown) -> None:
        check_slots(self, "examination", len(self.examination), shown.k)

    def check_scale(self) -> None:
        check_first(self, self.examination[0])

    def before(self, shown: Shown) -> np.ndarray:
        return np.empty(0)

    def looks(self, slot: int, state: np.ndarray) -> float:
        return self.examination[slot]

    def after(self, slot: int, state: np.ndarray, shown: Shown, clicked: np.ndarray) -> np.ndarray:
        return state

    def marginal(self, shown: Shown) -> np.ndarray:
        self.check_slots(shown)
        return shown.attraction * np.array(self.examination[: shown.k])

    def named(self) -> dict[str, float]:
        return {f"examination of slot {i + 1}": x for i, x in enumerate(self.examination)}

    def with_values(self, values: np.ndarray) -> Self:
        return replace(self, examination=tuple(values.tolist()))


@dataclass(frozen=True, repr=False)
class UBM(Single):
    """User-browsing model: P(looked at) hangs on the slot and on that of the last click above it
    (Dupret & Piwowarski 2008).

    Args:
        browsing: for each slot P(looked at) after no click, and after a last click in slot 1, 2,
            ...: one number for the first slot, two for the second. A fit needs 1 for the first.
    """

    browsing: tuple[tuple[float, ...], ...] = positional()

    def __post_init__(self) -> None:
        needed = "one number for the first slot, two for the second, and so on"
        rows = several("UBM", "browsing", self.browsing, needed)
        rows = tuple(several("UBM", "browsing", row, needed) for row in rows)
        if not rows or [len(row) for row in rows] != list(range(1, len(rows) + 1)):
            found = quoted(self.browsing)
            raise KarmafunnelError("UBM", what="browsing", needs=needed, found=found)
        for row in rows:
            for x in row:
                check_bound("UBM", SHARE, browsing=x)
        object.__setattr__(self, "browsing", tuple(tuple(map(float, row)) for row in rows))

    @classmethod
    def of(cls, k: int) -> Self:
        """Where a fit of k slots can start."""
        near = [[1.0 / (2 + i - last) ** 0.5 for last in range(1, i + 1)] for i in range(k)]
        return cls(tuple((1.0 / (1 + i) ** 0.5, *row) for i, row in enumerate(near)))

    @cached_property
    def table(self) -> np.ndarray:
        """(k, k): `browsing` by slot and slot of the last click (0: none)."""
        table = np.zeros((len(self.browsing), len(self.browsing)))
        for i, row in enumerate(self.browsing):
            table[i, : i + 1] = row
        return table

    def check_slots(self, shown: Shown) -> None:
        check_slots(self, "browsing", len(self.browsing), shown.k)

    def check_scale(self) -> None:
        check_first(self, self.browsing[0][0])

    def before(self, shown: Shown) -> np.ndarray:
        return np.zeros(shown.n, dtype=np.int64)

    def looks(self, slot: int, state: np.ndarray) -> np.ndarray:
        return np.asarray(self.table[slot][state])

    def after(self, slot: int, state: np.ndarray, shown: Shown, clicked: np.ndarray) -> np.ndarray:
        return np.where(clicked, slot + 1, state)

    def marginal(self, shown: Shown) -> np.ndarray:
        self.check_slots(shown)
        p = np.empty((shown.n, shown.k))
        last = np.zeros((shown.n, shown.k + 1))  # P(last click above is in a slot, 0: none)
        last[:, 0] = 1.0
        for i in range(shown.k):
            clicked = self.table[i, : i + 1] * shown.attraction[:, i : i + 1] * last[:, : i + 1]
            p[:, i] = clicked.sum(axis=1)
            last[:, : i + 1] -= clicked
            last[:, i + 1] = p[:, i]
        return p

    def cells(self, clicks: np.ndarray) -> np.ndarray:
        cell = np.empty(clicks.shape, dtype=np.int64, order="F")
        last = np.zeros(len(clicks), dtype=np.int64)
        for i in range(clicks.shape[1]):
            cell[:, i] = i * (i + 1) // 2 + last
            last = np.where(clicks[:, i], i + 1, last)
        return cell

    def named(self) -> dict[str, float]:
        names = {}
        for i, row in enumerate(self.browsing):
            for last, x in enumerate(row):
                after = f"a click in slot {last}" if last else "no click"
                names[f"browsing of slot {i + 1} after {after}"] = x
        return names

    def with_values(self, values: np.ndarray) -> Self:
        ends = np.cumsum(np.arange(len(self.browsing) + 1))
        rows = [tuple(values[a:b].tolist()) for a, b in pairwise(ends)]
        return replace(self, browsing=tuple(rows))


@dataclass(frozen=True, repr=False)
class Chain(Single):
    """Slots are looked at one after another until a click ends it; after a click in a slot one goes
    on with the chance `carry`. The state is P(next slot is looked at | clicks above).
    """

    @abstractmethod
    def carry(self, slot: int, shown: Shown) -> np.ndarray | float:
        """P(going on | clicked in a slot): (n,), or one number for all."""

    def before(self, shown: Shown) -> np.ndarray:
        return np.ones(shown.n)

    def looks(self, slot: int, state: np.ndarray) -> np.ndarray:
        return state

    def after(self, slot: int, state: np.ndarray, shown: Shown, clicked: np.ndarray) -> np.ndarray:
        attraction = shown.attraction[:, slot]
        missed = 1.0 - state * attraction
        still = state * (1.0 - attraction) / np.where(missed > 0, missed, 1.0)
        return np.where(clicked, self.carry(slot, shown), still)

    def marginal(self, shown: Shown) -> np.ndarray:
        self.check_slots(shown)
        p = np.empty((shown.n, shown.k))
        looked = np.ones(shown.n)
        for i in range(shown.k):
            p[:, i] = looked * shown.attraction[:, i]
            looked = looked - p[:, i] * (1.0 - self.carry(i, shown))
        return p

    def hidden(self, shown: Shown, clicks: np.ndarray) -> list[Hidden]:
        looks, on = self.walk(shown, lambda i, _: clicks[:, i])
        likelihood = log_chance(looks * shown.attraction, clicks).sum(axis=1)
        # whoever clicks below has looked at all above; below the last click nobody knows
        more = np.zeros((shown.n, shown.k), dtype=bool, order="F")
        for i in range(shown.k - 2, -1, -1):
            more[:, i] = more[:, i + 1] | clicks[:, i + 1]
        sure = more | clicks
        looked = np.where(sure, 1.0, on[:, None])
        trial = (clicks & shown.goes_on) * 1.0
        return [Hidden(likelihood, looked, trial, trial * np.where(more, 1.0, on[:, None]))]


@dataclass(frozen=True, repr=False)
class Cascade(Chain):
    """Cascade model: slots are looked at from the top until the first click, which ends the list
    (Craswell et al. 2008). It excludes lists with two clicks.
    """

    def check_slots(self, shown: Shown) -> None:
        pass

    def carry(self, slot: int, shown: Shown) -> float:
        return 0.0

    def named(self) -> dict[str, float]:
        return {}

    def with_values(self, values: np.ndarray) -> Self:
        return self


@dataclass(frozen=True, repr=False)
class DCM(Chain):
    """Dependent-click model: a cascade that goes on after a click in a slot with a chance of the
    slot's own (Guo et al. 2009).

    Args:
        continuation: P(going on | clicked) of each slot but the last.
    """

    continuation: tuple[float, ...] = positional()

    def __post_init__(self) -> None:
        hold_shares(self, "continuation")

    @classmethod
    def of(cls, k: int) -> Self:
        """Where a fit of k slots can start."""
        return cls((0.5,) * (k - 1))

    def check_slots(self, shown: Shown) -> None:
        check_slots(self, "continuation", len(self.continuation) + 1, shown.k)

    def carry(self, slot: int, shown: Shown) -> float:
        # below the last slot there is nothing
        return self.continuation[slot] if slot < len(self.continuation) else 0.0

    def named(self) -> dict[str, float]:
        return {
            f"continuation after a click in slot {i + 1}": x
            for i, x in enumerate(self.continuation)
        }

    def with_values(self, values: np.ndarray) -> Self:
        return replace(self, continuation=tuple(values.tolist()))


@dataclass(frozen=True, repr=False)
class SDBN(Chain):
    """Simplified dynamic Bayesian network: a cascade that goes on after a click unless the item
    satisfies, with a chance of the item's own (Chapelle & Zhang 2009, with gamma = 1).

    Lists need `satisfaction`.
    """

    def check_slots(self, shown: Shown) -> None:
        if shown.satisfaction is None:
            raise KarmafunnelError("SDBN", needs="the satisfaction of each item", found="none")

    def carry(self, slot: int, shown: Shown) -> np.ndarray:
        assert shown.satisfaction is not None
        return np.asarray(1.0 - shown.satisfaction[:, slot])

    def named(self) -> dict[str, float]:
        return {}

    def with_values(self, values: np.ndarray) -> Self:
        return self


@dataclass(frozen=True, repr=False)
class Mixture(ClickModel):
    """Each list is browsed by one of several models, drawn by their weights; items attract (and
    satisfy) the same under all.

    Args:
        models: the models, none a mixture.
        weights: their shares, which sum to 1.
    """

    models: tuple[Single, ...] = positional()
    weights: tuple[float, ...] = positional()

    def __post_init__(self) -> None:
        models = several("Mixture", "models", self.models, "at least two click models")
        if len(models) < 2 or not all(isinstance(model, Single) for model in models):
            needed, found = "at least two click models, none a mixture", quoted(self.models)
            raise KarmafunnelError("Mixture", what="models", needs=needed, found=found)
        object.__setattr__(self, "models", models)
        hold_shares(self, "weights")
        if len(self.weights) != len(models) or abs(sum(self.weights) - 1) > 1e-9:
            needed, found = f"{len(models)} numbers that sum to 1", quoted(self.weights)
            raise KarmafunnelError("Mixture", what="weights", needs=needed, found=found)

    def check_scale(self) -> None:
        for model in self.models:
            model.check_scale()

    def marginal(self, shown: Shown) -> np.ndarray:
        parts = zip(self.weights, self.models, strict=True)
        return np.asarray(sum(weight * model.marginal(shown) for weight, model in parts))

    def conditional(self, shown: Shown, clicks: np.ndarray) -> np.ndarray:
        p = np.stack([model.conditional(shown, clicks) for model in self.models])  # (models, n, k)
        past = np.cumsum([log_chance(one, clicks) for one in p], axis=2)
        past = np.concatenate([np.zeros((*past.shape[:2], 1)), past[:, :, :-1]], axis=2)
        return (self.shares(past) * p).sum(axis=0)

    def shares(self, log_likelihood: np.ndarray) -> np.ndarray:
        """P(a list is of each model | its clicks) from log P(clicks): both (models, ...).

        The weights alone where every model excludes the clicks.
        """
        weights = np.reshape(self.weights, (-1, *(1,) * (log_likelihood.ndim - 1)))
        best = log_likelihood.max(axis=0)
        best = np.where(np.isfinite(best), best, 0.0)
        part = weights * np.exp(log_likelihood - best)
        whole = part.sum(axis=0)
        return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), weights)

    def log_likelihood(self, shown: Shown, clicks: np.ndarray) -> np.ndarray:
        return self.joined(np.stack([m.log_likelihood(shown, clicks) for m in self.models]))

    def joined(self, log_likelihood: np.ndarray) -> np.ndarray:
        """log of the weighted sum of likelihoods: (models, n) -> (n,)."""
        with np.errstate(divide="ignore"):
            return np.asarray(
                np.logaddexp.reduce(log_likelihood + np.log(self.weights)[:, None], axis=0)
            )

    def draw(self, shown: Shown, rng: Chances) -> np.ndarray:
        ends = np.cumsum(self.weights)
        kind = np.searchsorted(ends[:-1], rng.random(shown.n), side="right")
        drawn = np.stack([model.draw(shown, rng) for model in self.models])
        return np.asarray(drawn[kind, np.arange(shown.n)])

    def hidden(self, shown: Shown, clicks: np.ndarray) -> list[Hidden]:
        parts = [model.hidden(shown, clicks)[0] for model in self.models]
        each = np.stack([part.log_likelihood for part in parts])
        shares, whole = self.shares(each), self.joined(each)
        return [
            replace(part, log_likelihood=whole, share=share)
            for part, share in zip(parts, shares, strict=True)
        ]

    def named(self) -> dict[str, float]:
        """The weight of a model is said as its share among itself and the models after it."""
        names: dict[str, float] = {}
        left = 1.0
        for i, (model, weight) in enumerate(zip(self.models, self.weights, strict=True), 1):
            names |= {f"model {i}, {name}": x for name, x in model.named().items()}
            if i < len(self.models):
                later = "" if i == 1 else f" among models {i} to {len(self.models)}"
                names[f"share of model {i}{later}"] = weight / left if left > 0 else 0.0
                left -= weight
        return names

    def with_values(self, values: np.ndarray) -> Self:
        models, weights, left = [], [], 1.0
        for i, model in enumerate(self.models, 1):
            n = len(model.named())
            models.append(model.with_values(values[:n]))
            share = float(values[n]) if i < len(self.models) else 1.0
            weights.append(left * share)
            left -= weights[-1]
            values = values[n + 1 :]
        return replace(self, models=tuple(models), weights=tuple(weights))


def hold_shares(value: Any, name: str, fewest: int = 0) -> None:
    """A field of numbers from 0 to 1 as a tuple of floats; raises KarmafunnelError for others."""
    who = type(value).__name__
    needed = f"numbers from 0 to 1, at least {fewest}" if fewest else "numbers from 0 to 1"
    numbers = several(who, name, getattr(value, name), needed)
    if len(numbers) < fewest:
        raise KarmafunnelError(who, what=name, needs=needed, found="none")
    for x in numbers:
        check_bound(who, SHARE, **{name: x})
    object.__setattr__(value, name, tuple(map(float, numbers)))


def check_slots(value: Any, name: str, most: int, k: int) -> None:
    """Raises KarmafunnelError for lists of more slots than a model has parameters for."""
    if k > most:
        needed = f"{name} of {k} slots"
        raise KarmafunnelError(type(value).__name__, needs=needed, found=f"of {most}")


def check_first(value: Any, first: float) -> None:
    """Raises KarmafunnelError unless the first slot is always looked at."""
    if first != 1:
        needed, found = "a first slot that is always looked at, to be fitted", quoted(first)
        raise KarmafunnelError(type(value).__name__, needs=needed, found=found)
