"""Validation of outside input: bounds of numbers, and the characters of names.

The command line, services files, recipes and the API accept a number only within its bounds: wide
enough for any real use, narrow enough that nothing overflows, fills the memory or never ends.
Names of stages, embedders and fallbacks become column and folder names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .errors import KarmafunnelError, quoted

MANY = 1_000_000_000
LARGE = 1e9


@dataclass(frozen=True)
class Bound:
    """Numbers from `low` to `high`, both included (`above`: without `low`); only whole numbers if
    `low` is an int.
    """

    low: float
    high: float
    above: bool = False

    def __str__(self) -> str:
        if isinstance(self.low, int):
            return f"a whole number from {self.low:,} to {self.high:,}"
        if self.above:
            return f"a number above {self.low:,.6g} and at most {self.high:,.6g}"
        return f"a number from {self.low:,.6g} to {self.high:,.6g}"

    def holds(self, value: Any) -> bool:
        """Whether a value is such a number; NaN, infinity, texts and booleans are not."""
        kinds = (
            (int, np.integer)
            if isinstance(self.low, int)
            else (int, float, np.integer, np.floating)
        )
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
        return bool(self.low <= value <= self.high) and not (self.above and value == self.low)


SEED = Bound(0, 2**31 - 1)  # what NumPy, torch, LightGBM, scikit-learn and faiss all take
SHARE = Bound(0.0, 1.0)
MS, SECONDS, MINUTES, DAYS = 1e9, 1e9, 1e8, 36_500.0

BOUNDS = {
    "seed": SEED,
    # replay, tables
    "limit": Bound(1, MANY),
    "workers": Bound(1, 1024),
    "minutes": Bound(0.0, MINUTES),
    "resamples": Bound(1, 1_000_000),
    "stale_minutes": Bound(0.0, MINUTES),
    "cutoff": Bound(1, 10_000_000),
    "k": Bound(1, 10_000_000),
    "chunk": Bound(1, 1_000_000),
    # samples and Worlds
    "users_share": Bound(0.0, 1.0, above=True),
    "world_items": Bound(50, 10_000_000),
    "world_users": Bound(1, 10_000_000),
    "world_requests": Bound(10, 100_000_000),
    "world_days": Bound(1, 36_500),
    "semantic": SHARE,
    "exploration": SHARE,
    # off-policy estimates
    "temperature": Bound(0.0, 1e6, above=True),
    "slots": Bound(1, 10_000),
    # load
    "rate": Bound(1e-3, 1e6),
    "any_rate": Bound(1e-6, 1e9),
    "requests": Bound(1, 20_000_000),
    "planned_requests": Bound(1_000, 20_000_000),
    "p99_ms": Bound(0.0, MS, above=True),
    "lost": Bound(0.0, 0.999),
    "request": Bound(0, 20_000_000),
    "batch_size": Bound(1, 100_000),
    "seconds": Bound(0.0, 1e6, above=True),
    "load": Bound(0.0, 1.0, above=True),
    "threads": Bound(1, 1024),
    # an import
    "gap_minutes": Bound(0.0, 1e6, above=True),
    "rating": Bound(-1e9, 1e9),
    # a search
    "budget_ms": Bound(0.0, MS, above=True),
    "trials": Bound(2, 100_000),
    # a gate
    "margin": Bound(0.0, 1e12),
    # an experiment
    "arm_share": Bound(1e-6, 1 - 1e-6),
    "arm_users": Bound(0, 100_000_000_000),
    "alpha": Bound(1e-12, 0.5),
    "confidence": Bound(0.5, 1 - 1e-12),
    "power": Bound(0.01, 1 - 1e-9),
    "first_users": Bound(2, 100_000_000),
    "planned_users": Bound(4, 100_000_000_000),
    "variance": Bound(0.0, 1e18, above=True),
    "effect": Bound(-1e12, 1e12),
    "correlation": Bound(-0.999_999, 0.999_999),
    "narrowest": Bound(1e-3, 1e9),
    "experiment_days": Bound(0, 36_500),
    "days_served": Bound(1, 3_650),
    # a services file
    "servers": Bound(1, 20_000),
    "items": Bound(0, MANY),
    "batch": Bound(1, 100_000),
    "queue": Bound(0, MANY),
    "retries": Bound(0, 100),
    "wait_ms": Bound(0.0, MS),
    "patience_ms": Bound(0.0, MS, above=True),
    "deadline_ms": Bound(0.0, MS, above=True),
    "cost_per_hour": Bound(0.0, MS),
    "base_ms": Bound(0.0, MS),
    "request_ms": Bound(0.0, MS),
    "item_us": Bound(0.0, MS),
    "cv": Bound(0.0, 100.0),
    "ratios": Bound(0.0, 1e6),
    "factor": Bound(0.0, 1e6, above=True),
    "probability": SHARE,
    "hit": SHARE,
    "every_s": Bound(1e-3, SECONDS),
    "repair_s": Bound(0.0, SECONDS, above=True),
    "levels": Bound(1, 10_000_000),
    "waiting": Bound(1, MANY),
    "cold_requests": Bound(1, MANY),
    "stale_every": Bound(0.0, MINUTES, above=True),
    # arrivals
    "peak": Bound(1.0, 2.0),
    "bursts": Bound(0, 1_000),
    "burst": Bound(0.0, 1e6, above=True),
    "day_s": Bound(0.0, SECONDS, above=True),
    "fade_s": Bound(0.0, SECONDS, above=True),
    "at": Bound(0.0, 0.999_999),
    "speed": Bound(1e-12, 1e18),
}


# Bounds of fields of stages, features and embedders; a field name means the same everywhere.
WEIGHT = Bound(0.0, LARGE)
FIELDS = {
    "k": BOUNDS["k"],
    "days": Bound(1e-6, DAYS),
    "seed": SEED,
    # histories, text
    **dict.fromkeys(("depth", "length"), Bound(1, 10_000)),
    "text_words": Bound(1, 4096),
    "query_words": Bound(0, 4096),
    "words": Bound(1, 10_000_000),
    "chars": Bound(0, 64),
    "vocab": Bound(300, 1_000_000),
    "context": Bound(1, 131_072),
    "tokens": Bound(0, 10**12),
    "window": Bound(0, 10_000),
    # networks and how they learn
    **dict.fromkeys(("dim", "attention"), Bound(1, 8192)),
    **dict.fromkeys(("layers", "heads", "kv_heads"), Bound(1, 256)),
    "mlp": Bound(1, 65_536),
    "crosses": Bound(0, 64),
    "low": Bound(0, 8192),
    "lora": Bound(0, 8192),
    "side": Bound(8, 1024),
    "batch": Bound(1, 100_000),
    "epochs": Bound(1, 10_000),
    "patience": Bound(0, 10_000),
    "negatives": Bound(1, 100_000),
    "hard": Bound(0, 1024),
    "tail": Bound(1, MANY),
    "rate": WEIGHT,
    "temperature": Bound(1e-3, 1e3),
    **dict.fromkeys(("dropout", "unknown"), Bound(0.0, 0.99)),
    "weight_decay": Bound(0.0, 100.0),
    **dict.fromkeys(
        (
            "action",
            "gen",
            "rec",
            "see",
            "query_weight",
            "history_weight",
            "shrink",
            "l2",
            "k1",
            "rrf",
        ),
        WEIGHT,
    ),
    **dict.fromkeys(("decay", "falloff", "b", "trade"), SHARE),
    "prior": Bound(1e-9, LARGE),
    # trees, samples, indexes
    "trees": Bound(1, 100_000),
    "leaves": Bound(2, 131_072),
    "learning_rate": Bound(1e-9, 100.0),
    "min_rows": Bound(0, MANY),
    "passed": Bound(0, 10_000_000),
    "random": Bound(0, 100_000),
    "requests": Bound(1, MANY),
    "neighbours": Bound(1, 1_000_000),
    **dict.fromkeys(("nlist", "nprobe", "ef"), Bound(1, 1_000_000)),
    # rules
    "max_per_category": Bound(1, MANY),
    "level": Bound(-64, 64),
    "min_price": WEIGHT,
    "max_price": WEIGHT,
    **dict.fromkeys(("click", "buy", "price"), Bound(0.0, 100.0)),
}


def check_bound(who: str, bound: Bound | str, /, **values: Any) -> None:
    """Raises KarmafunnelError naming the value outside a bound (or the bound of that name)."""
    allowed = BOUNDS[bound] if isinstance(bound, str) else bound
    for name, value in values.items():
        if not allowed.holds(value):
            raise KarmafunnelError(who, what=name, needs=allowed, found=quoted(value))


def check_switch(who: str, /, **values: Any) -> None:
    """Raises KarmafunnelError, naming `who` and the value, unless each is True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise KarmafunnelError(who, what=name, needs="True or False", found=repr(value))


def check_folders(who: str, /, **values: Any) -> None:
    """Raises KarmafunnelError, naming `who` and the value, unless each is a tuple of paths."""
    for name, value in values.items():
        if not isinstance(value, tuple) or not all(isinstance(path, str) for path in value):
            wanted = "paths of folders in a tuple, such as ('logs/there',)"
            raise KarmafunnelError(who, what=name, needs=wanted, found=repr(value))


def several(who: str, what: str, values: Any, needs: str) -> tuple[Any, ...]:
    """Several values as a tuple, numbers of NumPy as plain ones; raises KarmafunnelError for one
    value alone.
    """
    given = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(given, Iterable):
        raise KarmafunnelError(who, what=what, needs=needs, found=quoted(values))
    return tuple(x.item() if isinstance(x, np.generic) else x for x in given)


def check_seed(who: str, seed: Any) -> int:
    """The seed as an int; raises KarmafunnelError unless every library takes it."""
    check_bound(who, SEED, seed=seed)
    return int(seed)


def needs(value: Any, *names: str, **others: Bound | tuple[float, float | None]) -> None:
    """Check fields of a dataclass against their bounds; a number of NumPy becomes a plain one,
    which prints as typed and is kept as JSON.

    A field whose default is None may be None.

    Args:
        value: the dataclass.
        names: fields with the bound of their name in `FIELDS`.
        others: fields with another bound: a `Bound`, or (low, high), both included, whole numbers
            if low is an int; high None is a billion.

    Raises:
        KarmafunnelError: naming the field.
    """
    optional = {field.name for field in fields(value) if field.default is None}
    bounds: dict[str, Bound] = {name: FIELDS[name] for name in names}
    for name, found in others.items():
        if not isinstance(found, Bound):
            low, high = found
            found = Bound(low, MANY if high is None else high)
        bounds[name] = found
    for name, bound in bounds.items():
        if getattr(value, name) is not None or name not in optional:
            found = getattr(value, name)
            check_bound(type(value).__name__, bound, **{name: found})
            if isinstance(found, np.generic):
                object.__setattr__(value, name, found.item())


# -- names -----------------------------------------------------------------------------------------

LETTERS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
LONGEST_TITLE = 255


def check_name(who: str, what: str, value: Any, taken: Sequence[str] = ()) -> None:
    """Raises KarmafunnelError unless a value can be the name of a stage, an embedder or a fallback,
    which becomes part of column and folder names. `taken`: names that are not free.
    """
    fits = isinstance(value, str) and LETTERS.fullmatch(value) and ".." not in value
    if fits and value not in taken:
        return
    but = f", and not {', '.join(map(repr, taken))}" if taken else ""
    needed = f"1 to 64 letters (a to z), digits, '_', '-' and '.', not '..'{but}"
    raise KarmafunnelError(who, what=what, needs=needed, found=quoted(value))


def check_title(who: str, what: str, value: Any) -> None:
    """Raises KarmafunnelError unless a value can be a line of a table: a text of at most 255
    printable characters.
    """
    fits = isinstance(value, str) and value.strip() and value.isprintable()
    if fits and len(value) <= LONGEST_TITLE:
        return
    needed = f"a text of 1 to {LONGEST_TITLE} characters without line breaks"
    raise KarmafunnelError(who, what=what, needs=needed, found=quoted(value))


# -- sizes -----------------------------------------------------------------------------------------


def memory() -> int:
    """Memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(who: str, parts: Mapping[str, float], hint: str = "") -> None:
    """Raises KarmafunnelError if a task needs more memory than this machine has.

    `parts`: bytes needed, by what they are for. `hint`: what else can be done.
    """
    size, there = sum(parts.values()), memory()
    if size > there:
        each = ", ".join(f"{what} {n / 1e9:,.1f} GB" for what, n in parts.items())
        raise KarmafunnelError(
            who,
            needs=f"about {size / 1e9:,.1f} GB of memory ({each})",
            found=f"{there / 1e9:,.1f} GB on this machine",
            hint=hint,
        )
