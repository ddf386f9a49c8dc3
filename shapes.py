"""What JSON that the project reads back needs to hold, key by key: what each is in words, and the
test of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .bounds import LETTERS, Bound
from .errors import KarmafunnelError, quoted


@dataclass(frozen=True)
class Kind:
    """What a value needs to be."""

    words: str
    holds: Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Whether a value is a text that UTF-8 can encode: JSON may hold lone surrogates."""
    return isinstance(value, str) and (
        value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
    )


TEXT = Kind("a text", is_text)
NAME = Kind(
    "a name of letters, digits, '_', '-' and '.'",
    lambda v: isinstance(v, str) and bool(LETTERS.fullmatch(v)) and ".." not in v,
)
PATH = Kind(
    "a path",
    lambda v: (
        is_text(v)
        and "\0" not in v
        and len(v) <= 4096
        and all(len(p.encode()) <= 255 for p in v.split("/"))
    ),
)
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
    """The object as it is; raises KarmafunnelError naming a key that it lacks, or whose value is of
    another kind. Others may be there.
    """
    if not isinstance(found, dict):
        raise KarmafunnelError(
            who, needs=f"an object with {', '.join(needed)}", found=quoted(found)
        )
    for key, kind in {**needed, **(optional or {})}.items():
        if key not in found:
            if key in needed:
                raise KarmafunnelError(
                    f"{who}: needs {key}, {kind.words}, missing among {quoted(list(found))}"
                )
        elif not kind.holds(found[key]):
            raise KarmafunnelError(who, what=key, needs=kind.words, found=quoted(found[key]))
    return found
