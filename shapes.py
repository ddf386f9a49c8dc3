"""Checks of JSON that the project reads back, key by key: each kind of value in words, and its
test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .bounds import LETTERS, Bound
from .errors import KarmafunnelError, quoted


@dataclass(frozen=True)
class Kind:
    """A kind of value: its description for messages, and the test of a value."""

    words: str
    holds: Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Whether a value is a text that UTF-8 can encode: JSON may hold lone surrogates."""
    return isinstance(value, str) and (
        value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
    )


def is_path(text: str) -> bool:
    """Whether a text can be a path: no null byte, no part longer than file systems allow."""
    if "\0" in text or len(text) > 4096:
        return False
    return all(len(part.encode()) <= 255 for part in text.split("/"))


TEXT = Kind("a text", is_text)
NAME = Kind(
    "a name of letters, digits, '_', '-' and '.'",
    lambda v: isinstance(v, str) and bool(LETTERS.fullmatch(v)) and ".." not in v,
)
PATH = Kind("a path", lambda v: is_text(v) and is_path(v))
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
ANY = Kind("anything", lambda v: True)


def number(bound: Bound) -> Kind:
    return Kind(str(bound), bound.holds)


def one_of(*values: Any) -> Kind:
    return Kind(
        f"one of {', '.join(map(repr, values))}",
        lambda v: any(type(v) is type(x) and v == x for x in values),
    )


def maybe(kind: Kind) -> Kind:
    return Kind(f"{kind.words} or null", lambda v: v is None or kind.holds(v))


def each(kind: Kind) -> Kind:
    return Kind(
        f"a list, each {kind.words}", lambda v: isinstance(v, list) and all(map(kind.holds, v))
    )


def by_name(kind: Kind) -> Kind:
    def holds(v: Any) -> bool:
        return isinstance(v, dict) and all(map(is_text, v)) and all(map(kind.holds, v.values()))

    return Kind(f"an object, each value {kind.words}", holds)


def check_keys(
    who: str, found: Any, needed: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None
) -> dict[str, Any]:
    """The object unchanged; keys that are not listed are allowed.

    Raises:
        KarmafunnelError: naming a needed key that is missing, or whose value is of another kind.
    """
    if not isinstance(found, dict):
        raise KarmafunnelError(
            who, needs=f"an object with {', '.join(needed)}", found=quoted(found)
        )
    for key, kind in {**needed, **(optional or {})}.items():
        if key not in found:
            if key in needed:
                needs = f"{key}, {kind.words}"
                raise KarmafunnelError(who, needs=needs, found=f"only {quoted(list(found))}")
        elif not kind.holds(found[key]):
            raise KarmafunnelError(who, what=key, needs=kind.words, found=quoted(found[key]))
    return found
