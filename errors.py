"""What the project raises, and how it says in a line what was found."""

from __future__ import annotations

import re
from typing import Any


class KarmafunnelError(ValueError):
    """A clear refusal, in a line: "who: what needs something, found something else; hint".

    who: refuses (a command, a stage, a file). what: of it is meant, such as a field. needs, found:
    what was needed, and what was there in its place. hint: what to do. Where a refusal has another
    form, `who` is all of it.
    """

    def __init__(
        self,
        who: object,
        *,
        what: object = "",
        needs: object = "",
        found: object = "",
        hint: str = "",
    ):
        self.who, self.what, self.needs = str(who), str(what), str(needs)
        self.found, self.hint = str(found), hint
        line = self.who
        if self.needs:
            line += f": {self.what} needs {needs}" if self.what else f": needs {needs}"
        if self.found:
            line += f", found {found}"
        super().__init__(f"{line}; {hint}" if hint else line)


class NotWrittenError(KarmafunnelError):
    """Nothing could be written there: the disk or its rights are at fault, whatever it was."""


def line_of(error: BaseException) -> str:
    """What went wrong, in a line."""
    try:
        text = str(error)
    except Exception:  # a class of a recipe's own
        text = "an error that cannot say what it is"
    return " ".join(
        (text if isinstance(error, KarmafunnelError) else f"{type(error).__name__}: {text}").split()
    )


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


def user_message(error: BaseException) -> str | None:
    """The line shown for an error that a user can cause; None for a fault of the program."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SystemExit):  # commands never raise it: it comes from a recipe
        return f"error: code of the recipe ends the program with sys.exit({error.code!r})"
    panic = type(error).__name__ == "PanicException"  # of Polars
    if panic or isinstance(error, (MemoryError, RecursionError, UnicodeError)):
        return f"error: {line_of(error)}"
    polars = type(error).__module__.startswith("polars.")
    if polars or isinstance(error, (KarmafunnelError, OSError)):
        return f"error: {error}"
    return None
