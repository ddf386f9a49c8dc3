"""Public data sets: one module per source, with `load(raw folder) -> Log | Catalogue`. A new file
in this folder is a new source.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from ...checks import require
from ...errors import KarmafunnelError
from ...log import Catalogue, Log

SOURCES = tuple(
    sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )
)


def load(source: str, raw: Path | str) -> Log | Catalogue:
    """Read a source from its publisher's files in the folder `raw`.

    Raises:
        KarmafunnelError: for an unknown source, wrong files, and a log that fails the checks.
    """
    if source not in SOURCES:
        raise KarmafunnelError("source", needs=f"one of {', '.join(SOURCES)}", found=repr(source))
    loaded: Log | Catalogue = importlib.import_module(f"{__name__}.{source}").load(Path(raw))
    try:
        require(loaded)
    except KarmafunnelError as error:
        raise KarmafunnelError(f"{raw}: {error}") from error
    return loaded


def convert(source: str, raw: Path | str, log_folder: Path | str) -> Log | Catalogue:
    """Read a source and write it as a log folder, atomically; raises KarmafunnelError as `load`
    does.
    """
    loaded = load(source, raw)
    loaded.write(log_folder)
    return loaded
