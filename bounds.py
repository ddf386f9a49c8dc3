"""What may come from outside: bounds of numbers, and the letters of names.

The command line, services files, recipes and the API take a number only within its bounds: wide enough for any real use, narrow enough
that nothing overflows, fills the memory or runs for ever. Names of stages, embedders and fallbacks become columns and folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import KarmafunnelError, quoted

MANY = 1_000_000_000
LARGE = 1e12


@dataclass(frozen=True)
class Bound:
    """Numbers from `low` to `high`, both included (`low` is not where `above` says so); whole ones where `low` is an int."""

    low: float
    high: float
    above: bool = False

    def __str__(self) -> str:
        if isinstance(self.low, int):
            return f"a whole number from {self.low:,} to {self.high:,}"
        return f"a number {'above' if self.above else 'from'} {self.low:,.6g} {'and at most' if self.above else 'to'} {self.high:,.6g}"

    def holds(self, value: Any) -> bool:
        """Whether a value is such a number; NaN, infinity, texts and truth values are none."""
        kinds = (int, np.integer) if isinstance(self.low, int) else (int, float, np.integer, np.floating)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
        return bool(self.low <= value <= self.high) and not (self.above and value == self.low)


SEED = Bound(0, 2**31 - 1)  # what NumPy, torch, LightGBM, scikit-learn and faiss all take
SHARE = Bound(0.0, 1.0)
MS, SECONDS, MINUTES, DAYS = 1e9, 1e9, 1e8, 36_500.0
DIM = Bound(1, 8192)
DEPTH = Bound(1, 10_000)  # of a history

BOUNDS = {
    "seed": SEED,
    # replay, tables
    "limit": Bound(1, MANY), "workers": Bound(1, 1024), "minutes": Bound(0.0, MINUTES), "resamples": Bound(1, 1_000_000),
    "stale_minutes": Bound(0.0, MINUTES), "cutoff": Bound(1, 10_000_000), "k": Bound(1, 10_000_000), "chunk": Bound(1, 1_000_000),
    # samples and Worlds
    "users_share": Bound(0.0, 1.0, above=True), "world_items": Bound(50, 10_000_000), "world_users": Bound(1, 10_000_000),
    "world_requests": Bound(10, 100_000_000), "semantic": SHARE, "exploration": SHARE,
    # load
    "rate": Bound(1e-3, 1e6), "any_rate": Bound(1e-6, 1e9), "requests": Bound(1, 20_000_000), "planned_requests": Bound(1_000, 20_000_000),
    "p99_ms": Bound(0.0, MS, above=True), "lost": Bound(0.0, 0.999), "request": Bound(0, 20_000_000),
    "batch_size": Bound(1, 100_000), "seconds": Bound(0.0, 1e6, above=True), "load": Bound(0.0, 1.0, above=True),
    "threads": Bound(1, 1024),
    # a services file
    "servers": Bound(1, 20_000), "items": Bound(0, MANY), "batch": Bound(1, 100_000), "queue": Bound(0, MANY), "retries": Bound(0, 100),
    "wait_ms": Bound(0.0, MS), "patience_ms": Bound(0.0, MS, above=True), "deadline_ms": Bound(0.0, MS, above=True),
    "cost_per_hour": Bound(0.0, MS), "base_ms": Bound(0.0, MS), "request_ms": Bound(0.0, MS), "item_us": Bound(0.0, MS),
    "cv": Bound(0.0, 100.0), "ratios": Bound(0.0, 1e6), "factor": Bound(0.0, 1e6, above=True), "probability": SHARE, "hit": SHARE,
    "every_s": Bound(1e-3, SECONDS), "repair_s": Bound(0.0, SECONDS, above=True), "levels": Bound(1, 10_000_000),
    "waiting": Bound(1, MANY), "cold_requests": Bound(1, MANY), "stale_every": Bound(0.0, MINUTES, above=True),
    # arrivals
    "peak": Bound(1.0, 2.0), "bursts": Bound(0, 1_000), "burst": Bound(0.0, 1e6, above=True), "day_s": Bound(0.0, SECONDS, above=True),
    "fade_s": Bound(0.0, SECONDS, above=True), "at": Bound(0.0, 0.999_999), "speed": Bound(1e-12, 1e18),
}  # fmt: skip


def check_bound(who: str, bound: Bound | str, /, **values: Any) -> None:
    """Raises KarmafunnelError naming the value that is not within a bound, or the bound of that name."""
    allowed = BOUNDS[bound] if isinstance(bound, str) else bound
    for name, value in values.items():
        if not allowed.holds(value):
            raise KarmafunnelError(f"{who}: {name} needs {allowed}, found {quoted(value)}")


def check_seed(who: str, seed: Any) -> int:
    """A seed that every library takes; raises KarmafunnelError for another one."""
    check_bound(who, SEED, seed=seed)
    return int(seed)


def needs(value: Any, **ranges: Bound | tuple[float, float | None]) -> None:
    """Raises KarmafunnelError where a field of a value is not within its bound, or from low to high; whole where low is an int.

    Without a high it is a billion of whole numbers, and a thousand times as much of others.
    """
    for name, found in ranges.items():
        if not isinstance(found, Bound):
            low, high = found
            found = Bound(low, high if high is not None else MANY if isinstance(low, int) else LARGE)
        check_bound(type(value).__name__, found, **{name: getattr(value, name)})


# -- names --------------------------------------------------------------------------------------------------------------

LETTERS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
LONGEST_TITLE = 255


def check_name(who: str, what: str, value: Any, taken: Sequence[str] = ()) -> None:
    """Raises KarmafunnelError for what cannot be the name of a stage, an embedder or a fallback: a part of columns, paths and folders."""
    if not isinstance(value, str) or not LETTERS.fullmatch(value) or ".." in value or value in taken:
        but = f", and not {', '.join(map(repr, taken))}" if taken else ""
        raise KarmafunnelError(f"{who}: {what} needs 1 to 64 letters (a to z), digits, '_', '-' and '.', not '..'{but}, found {quoted(value)}")


def check_title(who: str, what: str, value: Any) -> None:
    """Raises KarmafunnelError for what cannot stand in a line of a table: a text of at most 255 characters that can all be printed."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > LONGEST_TITLE:
        raise KarmafunnelError(f"{who}: {what} needs a text of 1 to {LONGEST_TITLE} characters without line breaks, found {quoted(value)}")


# -- sizes --------------------------------------------------------------------------------------------------------------


def memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(who: str, parts: Mapping[str, float]) -> None:
    """Raises KarmafunnelError where bytes, told by what they are for, are more than this machine has in all."""
    size, there = sum(parts.values()), memory()
    if size > there:
        told = ", ".join(f"{what} {n / 1e9:,.1f} GB" for what, n in parts.items())
        raise KarmafunnelError(f"{who}: needs about {size / 1e9:,.1f} GB of memory ({told}), found {there / 1e9:,.1f} GB on this machine")
