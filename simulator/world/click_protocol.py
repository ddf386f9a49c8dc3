"""What every click model can do; the models are in `clicks.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from ...typed import Typed
from .click_lists import Perplexity, Shown, check_clicks, log_chance


@dataclass(frozen=True, eq=False)
class Hidden:
    """What a model expects of the hidden steps of lists whose clicks are known.

    log_likelihood (n,); looked (n, k): P(slot is looked at | all clicks). trial, success (n, k):
    expected trials and successes of the parameter number `cell` (n, k) (None: the slot's own
    number), or of the satisfaction of the slot's item. share (n,): P(a list is of this model |
    clicks) in a mixture.
    """

    log_likelihood: np.ndarray
    looked: np.ndarray
    trial: np.ndarray
    success: np.ndarray
    cell: np.ndarray | None = None
    share: np.ndarray | None = None

    def totals(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums of trials and successes of each of n parameters: two (n,)."""
        if self.cell is None:
            share = np.ones(len(self.looked)) if self.share is None else self.share
            return share @ self.trial[:, :n], share @ self.success[:, :n]
        return self.of_items(self.cell.ravel("F"), n)

    def of_items(self, at: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums of trials and successes by number `at` (n_lists * k,), column after column: two
        (n,).
        """
        share = 1.0 if self.share is None else self.share[:, None]
        both = ((share * x).ravel("F") for x in (self.trial, self.success))
        trials, successes = (np.bincount(at, weights=x, minlength=n) for x in both)
        return trials, successes


class Chances(Protocol):
    """What draws numbers between 0 and 1, such as NumPy's Generator."""

    def random(self, size: Any) -> Any:
        """Uniform numbers of that shape."""


Answer = Callable[[int, np.ndarray], np.ndarray]  # slot, P(click) (n,) -> clicked (n,)


@dataclass(frozen=True, repr=False)
class ClickModel(Typed, ABC):
    """A click model."""

    @abstractmethod
    def marginal(self, shown: Shown) -> np.ndarray:
        """P(click) of every slot, whatever else is clicked: (n, k) float64."""

    @abstractmethod
    def conditional(self, shown: Shown, clicks: np.ndarray) -> np.ndarray:
        """P(click | clicks above) of every slot: (n, k) float64; clicks (n, k) bool."""

    @abstractmethod
    def draw(self, shown: Shown, rng: Chances) -> np.ndarray:
        """Clicks of every list, (n, k) bool: always as many numbers of `rng` for n lists."""

    @abstractmethod
    def hidden(self, shown: Shown, clicks: np.ndarray) -> list[Hidden]:
        """What an EM step counts: one for a model, one for each model of a mixture."""

    @abstractmethod
    def named(self) -> dict[str, float]:
        """Parameters by the name that errors and intervals say."""

    @abstractmethod
    def with_values(self, values: np.ndarray) -> Self:
        """The same model with other parameters, in the order of `named`."""

    def check_scale(self) -> None:
        """Raises KarmafunnelError where lookers and attraction could trade a factor in a fit."""

    def log_likelihood(self, shown: Shown, clicks: np.ndarray) -> np.ndarray:
        """log P(all clicks of a list), natural: (n,); -inf for what the model excludes."""
        return log_chance(self.conditional(shown, clicks), clicks).sum(axis=1)

    def perplexity(self, shown: Shown, clicks: np.ndarray, given_above: bool = True) -> Perplexity:
        """2 ** -mean(log2 P(click or none)) of the filled slots (Dupret & Piwowarski 2008).

        With `given_above` P is that given the clicks above, so that `whole` is the log-likelihood a
        slot; else P is the marginal.
        """
        check_clicks(shown, clicks)
        p = self.conditional(shown, clicks) if given_above else self.marginal(shown)
        lost = -np.where(shown.filled, log_chance(p, clicks), 0.0)
        slots = shown.filled.sum(axis=0)
        with np.errstate(invalid="ignore"):
            by_slot = np.exp(lost.sum(axis=0) / slots)
        return Perplexity(by_slot, float(np.exp(lost.sum() / max(slots.sum(), 1))))


@dataclass(frozen=True, repr=False)
class Single(ClickModel):
    """A click model that is no mixture: a walk through the slots, with a state (n,) of what was
    clicked above.
    """

    @abstractmethod
    def before(self, shown: Shown) -> np.ndarray:
        """The state above the first slot."""

    @abstractmethod
    def looks(self, slot: int, state: np.ndarray) -> np.ndarray | float:
        """P(slot is looked at | clicks above): (n,), or one number for all."""

    @abstractmethod
    def after(self, slot: int, state: np.ndarray, shown: Shown, clicked: np.ndarray) -> np.ndarray:
        """The state below a slot."""

    @abstractmethod
    def check_slots(self, shown: Shown) -> None:
        """Raises KarmafunnelError unless the model can read the lists."""

    def walk(self, shown: Shown, answer: Answer) -> tuple[np.ndarray, np.ndarray]:
        """P(slot is looked at | clicks above) (n, k), and the state below the last slot."""
        self.check_slots(shown)
        looks = np.empty((shown.n, shown.k), order="F")
        state = self.before(shown)
        for i in range(shown.k):
            looks[:, i] = self.looks(i, state)
            clicked = answer(i, looks[:, i] * shown.attraction[:, i])
            state = self.after(i, state, shown, clicked)
        return looks, state

    def conditional(self, shown: Shown, clicks: np.ndarray) -> np.ndarray:
        check_clicks(shown, clicks)
        return self.walk(shown, lambda i, _: clicks[:, i])[0] * shown.attraction

    def draw(self, shown: Shown, rng: Chances) -> np.ndarray:
        chance = rng.random((shown.n, shown.k))
        clicks = np.zeros((shown.n, shown.k), dtype=bool)

        def answer(i: int, p: np.ndarray) -> np.ndarray:
            clicks[:, i] = chance[:, i] < p
            return clicks[:, i]

        self.walk(shown, answer)
        return clicks

    def hidden(self, shown: Shown, clicks: np.ndarray) -> list[Hidden]:
        """For parameters that are P(slot is looked at | clicks above)."""
        looks, _ = self.walk(shown, lambda i, _: clicks[:, i])
        p = looks * shown.attraction
        with np.errstate(invalid="ignore", divide="ignore"):
            missed = (looks - p) / (1.0 - p)
        looked = np.where(clicks | (p >= 1.0), 1.0, missed)
        trial = shown.filled.astype(np.float64)
        likelihood = log_chance(p, clicks).sum(axis=1)
        return [Hidden(likelihood, looked, trial, trial * looked, self.cells(clicks))]

    def cells(self, clicks: np.ndarray) -> np.ndarray | None:
        """Numbers of the parameters that act in slots, (n, k); None for the slot's own number."""
        return None
