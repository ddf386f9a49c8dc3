"""Degradation paths as texts: what stages do instead of their work, as in
"rank=skip,recall=popular".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import KarmafunnelError

FULL, NOTHING, SKIP, STALE = "full", "nothing", "skip", "stale"


def modes_of(path: str) -> dict[str, str]:
    """The modes of a path by stage, none for "full".

    Raises:
        KarmafunnelError: for a text that is no path.
    """
    modes: dict[str, str] = {}
    for part in [] if path == FULL else path.split(","):
        name, _, mode = (text.strip() for text in part.partition("="))
        if not name or not mode or name in modes:
            needs = "each stage once as stage=mode, with commas between: 'recall=popular,rank=skip'"
            raise KarmafunnelError(f"path {path!r}", needs=needs, found=repr(part))
        modes[name] = mode
    return modes


def path_of(modes: Mapping[str, str], names: Sequence[str]) -> str:
    """The inverse of `modes_of`, with the stages in the order of `names`."""
    return ",".join(f"{name}={modes[name]}" for name in names if modes.get(name)) or FULL
