"""Policies as values: with which probability a list shows an item in a slot, given those above it.

A policy draws from the candidates of a request, which a stage of a funnel has scored, best first.
The probability of a prefix of a list is the product over its slots.
"""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..bounds import Bound, check_bound
from ..errors import KarmafunnelError, quoted
from ..typed import Typed, positional

ROWS = 256  # requests at a time


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a policy chooses from, and what the log showed, for n requests.

    score (n, m): of the candidates, best first, -inf where a request has fewer. place (n, k): the
    column of each logged item among them, -1 where it is none of them. there (n, k): whether the
    logged list has that slot.
    """

    score: np.ndarray
    place: np.ndarray
    there: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def rows(self, part: slice) -> Candidates:
        """Those of some requests."""
        return Candidates(self.score[part], self.place[part], self.there[part])

    def left(self, slot: int) -> np.ndarray:
        """Which candidates the logged list does not show above a slot: (n, m)."""
        left = np.isfinite(self.score)
        above = self.place[:, :slot]
        request, at = np.nonzero(above >= 0)
        left[request, above[request, at]] = False
        return left


@dataclass(frozen=True, repr=False)
class Policy(Typed, ABC):
    """How a list is drawn from scored candidates, slot by slot, without replacement."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What a funnel shows by it, in words."""

    @abstractmethod
    def choice(self, score: np.ndarray, left: np.ndarray) -> np.ndarray:
        """The probability of each candidate in the next slot, (n, m), of which those `left` (n, m)
        can be chosen; zeros where none is left.
        """

    def slots(self, given: Candidates) -> Iterator[tuple[slice, int, np.ndarray]]:
        """Some of the requests, a slot, and the probability of each candidate in it after the
        logged items above it: (requests, m).
        """
        for start in range(0, len(given), ROWS):
            part = slice(start, start + ROWS)
            some = given.rows(part)
            for slot in range(given.place.shape[1]):
                yield part, slot, self.choice(some.score, some.left(slot))

    def steps(self, given: Candidates) -> np.ndarray:
        """The probability of each logged item given those above it, (n, k): 0 where it is no
        candidate, 1 in an empty slot.
        """
        out = np.empty_like(given.place, dtype=np.float64)
        for part, slot, chance in self.slots(given):
            at = given.place[part, slot]
            out[part, slot] = np.where(at >= 0, chance[np.arange(len(at)), at], 0.0)
        return np.where(given.there, out, 1.0)

    def expected(self, given: Candidates, worth: np.ndarray) -> np.ndarray:
        """The mean worth of what the policy shows in each slot after the logged items above it:
        worth (n, m) of each candidate -> (n, k), 0 in an empty slot or where none is left.
        """
        out = np.empty_like(given.place, dtype=np.float64)
        for part, slot, chance in self.slots(given):
            out[part, slot] = (chance * worth[part]).sum(axis=1)
        return np.where(given.there, out, 0.0)

    def draw(self, score: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lists of k candidates each, as columns of score (n, m), -1 where no candidate is left,
        and the probability of each given those above it, 1 where none is left: two (n, k).

        Args:
            chance: numbers above 0 and below 1 that decide slot by slot, (n, k).
        """
        k = chance.shape[1]
        out, steps = np.full((len(score), k), -1, dtype=np.int64), np.ones((len(score), k))
        left = np.isfinite(score)
        rows = np.arange(len(score))
        for slot in range(k):
            given = self.choice(score, left)
            through = np.cumsum(given, axis=1)
            at = (through < chance[:, slot : slot + 1] * through[:, -1:]).sum(axis=1)
            some = left.any(axis=1)
            out[some, slot] = at[some]
            steps[some, slot] = given[rows[some], at[some]]
            left[rows[some], at[some]] = False
        return out, steps


@dataclass(frozen=True, repr=False)
class PlackettLuce(Policy):
    """Each slot shows a candidate with probability softmax(score / temperature) among those left
    (Plackett 1975).
    """

    temperature: float = positional(1.0)

    def __post_init__(self) -> None:
        check_bound("PlackettLuce", Bound(0.0, 1e6, above=True), temperature=self.temperature)

    @property
    def words(self) -> str:
        return f"items drawn by softmax(score / {self.temperature:g})"

    def choice(self, score: np.ndarray, left: np.ndarray) -> np.ndarray:
        utility = np.where(left, score / self.temperature, -np.inf)
        best = utility.max(axis=1, initial=-np.inf, keepdims=True)
        e = np.exp(utility - np.where(np.isfinite(best), best, 0.0))
        # one after another, so that candidates that others have in a chunk round nothing
        total = np.cumsum(e, axis=1)[:, -1:]
        return np.asarray(e / np.where(total > 0, total, 1.0))


@dataclass(frozen=True, repr=False)
class BestOrRandom(Policy):
    """Each slot shows, with probability `exploration`, any of the candidates left, else the best of
    them: a policy without chance where it is 0.
    """

    exploration: float = positional(0.0)

    def __post_init__(self) -> None:
        check_bound("BestOrRandom", Bound(0.0, 1.0), exploration=self.exploration)

    @property
    def words(self) -> str:
        any_item = f", but any candidate in {self.exploration:.0%} of the slots"
        return "its best items" + any_item * (self.exploration > 0)

    def choice(self, score: np.ndarray, left: np.ndarray) -> np.ndarray:
        number = left.sum(axis=1, keepdims=True)
        found = np.where(left, self.exploration / np.maximum(number, 1), 0.0)
        rows = np.flatnonzero(number[:, 0])
        best = left[rows].argmax(axis=1) if len(rows) else rows  # candidates are best first
        found[rows, best] += 1.0 - self.exploration
        return found


def policy_of(text: str) -> Policy:
    """The policy that prints as this text; raises KarmafunnelError where none does."""
    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        kind = {one.__name__: one for one in (PlackettLuce, BestOrRandom)}[call.func.id]
        policy: Policy = kind(*map(ast.literal_eval, call.args))
        assert repr(policy) == text
    except (AssertionError, KeyError, SyntaxError, TypeError, ValueError) as error:
        needed = "a policy such as PlackettLuce(0.5)"
        raise KarmafunnelError("policy", needs=needed, found=quoted(text)) from error
    return policy
