"""What the project raises, and how it says in a line what was found."""

from __future__ import annotations

import re
from typing import Any


class KarmafunnelError(ValueError):
    """A clear refusal: who refuses, what was needed, what was found."""


class NotWrittenError(KarmafunnelError):
    """Nothing could be written there: the disk or its rights are at fault, whatever it was."""


def line_of(error: BaseException) -> str:
    """What went wrong, in a line."""
    try:
        text = str(error)
    except Exception:  # a class of a recipe's own
        text = "an error that cannot say what it is"
    return " ".join((text if isinstance(error, KarmafunnelError) else f"{type(error).__name__}: {text}").split())


def short_of_memory(error: BaseException) -> bool:
    """Whether memory of the machine or of a GPU was short, whichever library says so: with more to
    spare the same may go well.
    """
    return re.search(r"MemoryError|an(no|')t allocate memory", line_of(error)) is not None


def quoted(value: Any, most: int = 200) -> str:
    """What was found, as typed and cut where it is long; also where it cannot be typed, such as a
    number of 5,000 digits.
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
