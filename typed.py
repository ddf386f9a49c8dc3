"""Values whose repr is the code that makes them."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any


def as_typed(value: Any) -> str:
    """A dataclass value as source code; fields at their default are left out."""
    parts = []
    for f in fields(value):
        current = getattr(value, f.name)
        if f.init and (current != f.default or f.metadata.get("always")):
            if not f.metadata.get("positional"):
                parts.append(f"{f.name}={current!r}")
            else:  # several are typed as a list
                parts.append(repr(list(current) if isinstance(current, tuple) else current))
    return f"{type(value).__name__}({', '.join(parts)})"


class Typed:
    """A base class of values whose repr is the code that makes them."""

    def __repr__(self) -> str:
        return as_typed(self)


def positional(default: Any = None) -> Any:
    """A field that is printed without its name."""
    if default is None:
        return field(metadata={"positional": True, "always": True})
    return field(default=default, metadata={"positional": True})
