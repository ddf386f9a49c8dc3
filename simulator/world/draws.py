"""Chances that hang on what they are for, and on nothing else: common random numbers.

A number is a hash of (seed, day, round, purpose, user, slot). So two engines that serve the same
shoppers meet the same luck, and a shopper's luck is the same whoever else is there (Glasserman &
Yao 1992, Some Guidelines and Guarantees for Common Random Numbers). The hash is SplitMix64 with a
seed of its own for each user (Steele, Lea & Flood 2014).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from scipy.special import ndtri

STEP = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: uint64 to uint64, in place."""
    x ^= x >> np.uint64(30)
    x *= FIRST
    x ^= x >> np.uint64(27)
    x *= SECOND
    x ^= x >> np.uint64(31)
    return x


@dataclass(frozen=True, eq=False)
class Draws:
    """Numbers of one moment, a day and a round, for some users: `user` (n,) int64."""

    seed: int
    day: int
    round: int
    user: np.ndarray

    def rows(self, part: Any) -> Draws:
        """Those of some of the users, by an index or a mask."""
        return replace(self, user=self.user[part])

    def bits(self, purpose: str, k: int = 0) -> np.ndarray:
        """Random uint64: (n,), or (n, k)."""
        text = f"{self.seed}/{self.day}/{self.round}/{purpose}"
        key = np.frombuffer(blake2b(text.encode(), digest_size=8).digest(), dtype=np.uint64)
        own = mixed(self.user.astype(np.uint64) * STEP + key)
        if k == 0:
            return own
        return mixed(own[:, None] + np.arange(1, k + 1, dtype=np.uint64) * STEP)

    def random(self, purpose: str, k: int = 0) -> np.ndarray:
        """Uniform between 0 and 1, neither included: (n,), or (n, k)."""
        return ((self.bits(purpose, k) >> np.uint64(12)) + 0.5) * 2.0**-52

    def normal(self, purpose: str, k: int = 0) -> np.ndarray:
        """Standard normal: (n,), or (n, k)."""
        return np.asarray(ndtri(self.random(purpose, k)))

    def wait(self, purpose: str, k: int = 0) -> np.ndarray:
        """Exponential of mean 1: (n,), or (n, k)."""
        return np.asarray(-np.log(self.random(purpose, k)))

    def gumbel(self, purpose: str, k: int = 0) -> np.ndarray:
        """Standard Gumbel: (n,), or (n, k)."""
        return np.asarray(-np.log(self.wait(purpose, k)))

    def whole(self, purpose: str, below: np.ndarray | int, k: int = 0) -> np.ndarray:
        """Whole numbers from 0 to less than `below`: (n,), or (n, k)."""
        return np.asarray((self.random(purpose, k) * below).astype(np.int64))


class Stream:
    """What a click model draws from: each call is a purpose of its own."""

    def __init__(self, draws: Draws, purpose: str):
        self.draws, self.purpose, self.calls = draws, purpose, 0

    def random(self, size: Any) -> np.ndarray:
        """Uniform numbers, (n,) or (n, k) for the n users."""
        self.calls += 1
        k = size[1] if isinstance(size, tuple) else 0
        return self.draws.random(f"{self.purpose} {self.calls}", k)
