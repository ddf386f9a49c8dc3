"""Reading publishers' files: find them, check them, and refuse by name what is not as the publisher ships it."""

from __future__ import annotations

import html
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from ...log import KarmafunnelError

MARKUP = re.compile(
    r"<!--.*?(?:-->|$)|<(style|script)\b.*?(?:</\1\s*>|$)|<[a-z/!][^<>]*>|<[a-z]{1,6}$",
    re.IGNORECASE | re.DOTALL,
)


def find(root: Path | str, names: Sequence[str], where: str) -> Path:
    """The first of `names` that lies in the folder `root`; raises KarmafunnelError that says where to
    download it.
    """
    root = Path(root)
    for name in names:
        if (root / name).is_file():
            return root / name
    found = sorted(path.name for path in root.iterdir()) if root.is_dir() else "no such folder"
    raise KarmafunnelError(f"{root / names[0]}: needed {' or '.join(names)} (download: {where}), found {found}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a truncated or foreign file raises into a KarmafunnelError that names the file."""
    try:
        yield
    except KarmafunnelError:
        raise
    except (
        pl.exceptions.PolarsError,
        OSError,
        EOFError,
        zlib.error,
        json.JSONDecodeError,
        UnicodeDecodeError,
    ) as error:
        raise KarmafunnelError(f"{path}: needed a whole, readable file, found: {type(error).__name__}: {error}") from error


def need(frame: pl.DataFrame, columns: Sequence[str], path: Path) -> None:
    """Raises KarmafunnelError naming the file, the missing columns and what was found; an empty table is
    refused too.
    """
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise KarmafunnelError(f"{path}: needed columns {list(columns)}, missing {missing}, found {frame.columns}")
    if frame.height == 0:
        raise KarmafunnelError(f"{path}: needed at least one row, found an empty table")


def parse(frame: pl.DataFrame, types: Mapping[str, Any], path: Path) -> pl.DataFrame:
    """The frame with these columns cast; raises KarmafunnelError naming file, row (1 = first after the
    header), column and value.

    The columns must hold a value in every row: a null is what a truncated line leaves.
    """
    cast = frame.with_columns(pl.col(name).cast(dtype, strict=False) for name, dtype in types.items())
    for name, dtype in types.items():
        bad = cast[name].is_null()
        if bad.any():
            row = int(bad.arg_true()[0])
            kind = str(dtype() if isinstance(dtype, type) else dtype)
            found = frame[name][row]
            raise KarmafunnelError(f"{path}: row {row + 1}: column {name!r} needs a {kind}, found {found!r}")
    return cast


def read_csv(path: Path, columns: Sequence[str], separator: str = ",", quote: str | None = '"') -> pl.DataFrame:
    """A delimited file, plain or gzipped, every column as text; raises KarmafunnelError for a broken file or
    missing columns.
    """
    with reading(path):
        frame = pl.read_csv(path, infer_schema=False, separator=separator, quote_char=quote, encoding="utf8-lossy")
    need(frame, columns, path)
    return frame


def plain(text: str | None) -> str | None:
    """Text without HTML entities, tags, comments, style sheets, repeated blanks; null if nothing is left."""
    if not text:
        return None
    text = html.unescape(text)
    if "<" in text:
        text = MARKUP.sub(" ", text)
    return " ".join(text.split()) or None
