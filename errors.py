"""What the project raises, and how it says that an argument cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np


class KarmafunnelError(ValueError):
    """A clear refusal: who refuses, what was needed, what was found."""


def line_of(error: BaseException) -> str:
    """What went wrong, in a line."""
    return " ".join((str(error) if isinstance(error, KarmafunnelError) else f"{type(error).__name__}: {error}").split())


def needs(value: Any, **ranges: tuple[float, float | None]) -> None:
    """Raises KarmafunnelError where a field of a value is no number from low to high, both included; whole where low is an int."""
    for name, (low, high) in ranges.items():
        found, whole = getattr(value, name), isinstance(low, int)
        number = isinstance(found, (int, np.integer) if whole else (int, float, np.number)) and not isinstance(found, bool)
        if not (number and low <= found <= (np.finfo(np.float64).max if high is None else high)):
            wanted = f"of {low:g} or more" if high is None else f"from {low:g} to {high:g}"
            kind = "whole number" if whole else "number"
            raise KarmafunnelError(f"{type(value).__name__}: {name} needs a {kind} {wanted}, found {found!r}")
