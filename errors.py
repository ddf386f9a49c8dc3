"""The errors that the project raises, and helpers that print values in one line."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

RECIPE_MODULE = "karmafunnel_recipe_"  # the code of a recipe runs as a module of this prefix
FEW = 12  # so many names are told in the line of an error


class KarmafunnelError(ValueError):
    """An error that a user can cause, in one line: "who: what needs X, found Y; hint".

    Args:
        who: the command, stage or file that refuses; the whole message where it has another form.
        what: the part of it that is wrong, such as a field.
        needs: what was needed.
        found: what was there instead.
        hint: what the user can do.
        names: all that would do, too many for one line; the command prints them first.
    """

    def __init__(
        self,
        who: object,
        *,
        what: object = "",
        needs: object = "",
        found: object = "",
        hint: str = "",
        names: Iterable[str] = (),
    ):
        self.names = tuple(names)
        self.who, self.what, self.needs = str(who), str(what), str(needs)
        self.found, self.hint = str(found), hint
        line = self.who
        if self.needs:
            line += f": {self.what} needs {needs}" if self.what else f": needs {needs}"
        if self.found:
            line += f", found {found}"
        super().__init__(f"{line}; {hint}" if hint else line)


class NotWrittenError(KarmafunnelError):
    """The disk or its permissions did not allow writing."""


class LostProcessError(KarmafunnelError):
    """Of several processes that train together, one has ended: whatever follows fails, too."""


def closest(name: str, known: Iterable[str], cutoff: float = 0.6, most: int = 1) -> list[str]:
    """The known names that are closest to one that is not there, in any case, the closest first."""
    by_case: dict[str, list[str]] = {}
    for one in known:
        by_case.setdefault(one.lower(), []).append(one)
    close = get_close_matches(name.lower(), by_case, n=most, cutoff=cutoff)
    return [get_close_matches(name, by_case[one], n=1, cutoff=0.0)[0] for one in close]


def meant(name: str, known: Iterable[str], cutoff: float = 0.6, most: int = 1) -> str:
    """The known names that are closest to one that is not there, as a question; "" for none."""
    close = closest(name, known, cutoff, most)
    return f"did you mean {' or '.join(close)}?" if close else ""


def no_such(who: str, name: str, known: Sequence[str], lists: str) -> KarmafunnelError:
    """The error for a name that is not there: of many known ones it tells the closest alone.

    Args:
        lists: the command that lists them all.
    """
    if len(known) <= FEW:
        needs, hint = f"one of {', '.join(known)}", meant(name, known)
    else:
        needs, hint = f"one of the {len(known)} that `{lists}` lists", meant(name, known, most=3)
    return KarmafunnelError(who, needs=needs, found=repr(name), hint=hint)


def place_in_recipe(error: BaseException) -> str:
    """The last line of a recipe's own code that an error passed, as "mine.py, line 7, in
    PriceGap.pairs"; "" where it passed none.
    """
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__", "")).startswith(RECIPE_MODULE):
            code = frame.f_code
            place = f"{Path(code.co_filename).name}, line {line}, in {code.co_qualname}"
    return place


def line_of(error: BaseException) -> str:
    """The message of an error in one line, with its class unless it is ours, and with the place in
    the recipe whose own code raised it.
    """
    place = "" if isinstance(error, KarmafunnelError) else place_in_recipe(error)
    return f"{place}: {words_of(error)}" if place else words_of(error)


def words_of(error: BaseException) -> str:
    """The message of an error in one line, with its class unless it is ours."""
    try:
        text = str(error)
    except Exception:  # a class of a recipe's own
        text = "an error that cannot say what it is"
    return " ".join(
        (text if isinstance(error, KarmafunnelError) else f"{type(error).__name__}: {text}").split()
    )


def short_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory (machine or GPU), whichever library reports it."""
    return re.search(r"MemoryError|an(no|')t allocate memory", line_of(error)) is not None


def quoted(value: Any, most: int = 200) -> str:
    """The repr of a value, cut after `most` characters; works for values without a printable repr,
    such as a number of 5,000 digits.
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
    if not isinstance(error, KarmafunnelError) and place_in_recipe(error):
        return f"error: {line_of(error)}"
    panic = type(error).__name__ == "PanicException"  # of Polars
    if panic or isinstance(error, (MemoryError, RecursionError, UnicodeError)):
        return f"error: {line_of(error)}"
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package and package != __package__:
            return f"error: needs the Python package {package}, which is not installed here"
    polars = type(error).__module__.startswith("polars.")
    if polars or isinstance(error, (KarmafunnelError, OSError)):
        return f"error: {error}"
    return None
