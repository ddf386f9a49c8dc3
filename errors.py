"""What the project raises, and how it says in a line what was found."""

from __future__ import annotations

from typing import Any


class KarmafunnelError(ValueError):
    """A clear refusal: who refuses, what was needed, what was found."""


def line_of(error: BaseException) -> str:
    """What went wrong, in a line."""
    try:
        text = str(error)
    except Exception:  # a class of a recipe's own
        text = "an error that cannot say what it is"
    return " ".join((text if isinstance(error, KarmafunnelError) else f"{type(error).__name__}: {text}").split())


def quoted(value: Any, most: int = 200) -> str:
    """What was found, as typed and cut where it is long; also where it cannot be typed, such as a number of 5,000 digits."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
