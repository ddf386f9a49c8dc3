"""Values that print as one would type them."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any


def as_typed(value: Any) -> str:
    """A dataclass value as source code; fields at their default are left out."""
    parts = []
    for f in fields(value):
        current = getattr(value, f.name)
        if not f.init or (current == f.default and not f.metadata.get("always")):
            continue
        parts.append(f"{f.name}={current!r}" if not f.metadata.get("positional") else repr(current))
    return f"{type(value).__name__}({', '.join(parts)})"


class Typed:
    """A class whose repr is its source code."""

    def __repr__(self) -> str:
        return as_typed(self)


def positional(default: Any = None) -> Any:
    """A field that is printed without its name."""
    return (
        field(metadata={"positional": True, "always": True})
        if default is None
        else field(default=default, metadata={"positional": True})
    )
