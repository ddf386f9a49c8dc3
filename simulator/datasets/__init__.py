"""Public data sets. A source is a description `NAME.toml` with one of two readers beside it:

- a Python module `NAME.py` with `load(raw folder) -> Log | Catalogue`;
- an import map `NAME.map.toml`, where a map is enough. The description's files are imported with
  it, or the tables that `tables(raw folder, work folder)` of `NAME.py` makes of them: a dictionary
  from each table to the publisher's file that it was made of.

New files in this folder are a new source.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...checks import require
from ...errors import KarmafunnelError
from ...log import Catalogue, Log, read
from ..importing.assembling import import_tables
from ..importing.column_map import ColumnMap
from ._download import download
from ._source import SOURCES, Source, describe, holdings, story

__all__ = ["SOURCES", "convert", "describe", "download", "holdings", "load", "story"]


def load(source: str, raw: Path | str) -> Log | Catalogue:
    """Read a source from its publisher's files in the folder `raw`.

    Raises:
        KarmafunnelError: for an unknown source, wrong files, and a log that fails the checks.
    """
    about = describe(source)
    if about.map_file is None:
        return loaded(about, Path(raw))
    with tempfile.TemporaryDirectory() as work:
        log = convert(source, raw, Path(work) / "log")
        assert isinstance(log, Log)
        return Log({name: frame.lazy() for name, frame in log.tables.items()}, log.meta)


def convert(
    source: str,
    raw: Path | str,
    log_folder: Path | str,
    *,
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Log | Catalogue:
    """Read a source and write it as a log folder, atomically.

    Args:
        source: its name, one of `SOURCES`.
        raw: the folder with the publisher's files.
        force: also replace a log of another name or source.
        progress: called with the number of rows read so far, where the source has an import map.

    Raises:
        KarmafunnelError: as `load` does.
    """
    about, raw = describe(source), Path(raw)
    if about.map_file is None:
        log = loaded(about, raw)
        log.write(log_folder, force=force)
        return log
    made = ColumnMap.read(about.map_file)
    module = reader(source)
    with tempfile.TemporaryDirectory(prefix="karmafunnel-") as work:
        tables = (
            module.tables(raw, Path(work))
            if module
            else {path: path for path in published(about, raw)}
        )
        names = about.found_in(raw) or [path.name for path in tables.values()]
        meta = {
            "licence": about.licence,
            "lacks": list(about.lacks),
            "has": dict.fromkeys(about.holds, True),
            "source": f"{about.title}, {', '.join(names)}; {about.home}",
        }
        import_tables(
            list(tables),
            log_folder,
            given=made,
            meta=meta,
            known_as=tables,
            force=force,
            progress=progress,
        )
    return read(log_folder)


def reader(source: str) -> Any:
    """The Python module of a source; None for a source with a map alone."""
    name = f"{__name__}.{source}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def loaded(about: Source, raw: Path) -> Log | Catalogue:
    """The log of a source with a module, with the licence and the lacks of its description."""
    found: Log | Catalogue = reader(about.name).load(raw)
    lacks = [*about.lacks, *found.meta["lacks"]]
    meta = found.meta | {"name": about.name, "licence": about.licence, "lacks": lacks}
    found = replace(found, meta=meta)
    try:
        require(found)
    except KarmafunnelError as error:
        raise KarmafunnelError(f"{raw}: {error}") from error
    return found


def published(about: Source, raw: Path) -> list[Path]:
    """The files of a source in a folder; raises KarmafunnelError for one that is missing."""
    found = []
    for file in about.files_of():
        for name in file.result:
            if (raw / name).is_file():
                found.append(raw / name)
            elif not file.optional:
                there = sorted(p.name for p in raw.iterdir()) if raw.is_dir() else "no such folder"
                needs = f"{name} (download: {about.home})"
                raise KarmafunnelError(raw / name, needs=needs, found=there)
    return found
