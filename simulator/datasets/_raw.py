"""Find, read and check publishers' files; errors name what differs from the published file."""

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

from ...errors import KarmafunnelError
from ...files import first_line

MARKUP = re.compile(
    r"<!--.*?(?:-->|$)|<(style|script)\b.*?(?:</\1\s*>|$)|<[a-z/!][^<>]*>|<[a-z]{1,6}$",
    re.IGNORECASE | re.DOTALL,
)


def find(root: Path | str, names: Sequence[str], where: str) -> Path:
    """The first of `names` that exists in the folder `root`; the KarmafunnelError for none says
    where to download it.
    """
    root = Path(root)
    for name in names:
        if (root / name).is_file():
            return root / name
    found = sorted(path.name for path in root.iterdir()) if root.is_dir() else "no such folder"
    raise KarmafunnelError(
        root / names[0], needs=f"{' or '.join(names)} (download: {where})", found=found
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert any error from a truncated or wrong file into a KarmafunnelError naming the file."""
    try:
        yield
    except KarmafunnelError as error:
        raise error if str(path) in str(error) else KarmafunnelError(f"{path}: {error}") from error
    except (
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
        OSError,
        EOFError,
        RecursionError,
        zlib.error,
        json.JSONDecodeError,
        UnicodeDecodeError,
    ) as error:
        found = f"{type(error).__name__}: {first_line(error)}"
        raise KarmafunnelError(path, needs="a whole, readable file", found=found) from error


def need(frame: pl.DataFrame, columns: Sequence[str], path: Path) -> None:
    """Raises KarmafunnelError for missing columns and for an empty table."""
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise KarmafunnelError(
            path, needs=f"columns {list(columns)}, missing {missing}", found=frame.columns
        )
    if frame.height == 0:
        raise KarmafunnelError(path, needs="at least one row", found="an empty table")


def parse(
    frame: pl.DataFrame,
    types: Mapping[str, Any],
    path: Path,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> pl.DataFrame:
    """The frame with these columns cast; raises KarmafunnelError naming file, row (1 = first after
    the header), column and value.

    The columns must hold a value in every row: a null is what a truncated line leaves. Numbers must
    be finite, and lie within `limits`, both ends included.
    """
    cast = frame.with_columns(
        pl.col(name).cast(dtype, strict=False) for name, dtype in types.items()
    )
    for name, dtype in types.items():
        kind = "whole number" if cast[name].dtype.is_integer() else "finite number"
        if dtype == pl.String:
            kind = "text"
        bad = cast[name].is_null()
        if cast[name].dtype.is_float():
            bad |= ~cast[name].is_finite().fill_null(False)
        if limits and name in limits:
            low, high = limits[name]
            kind += f" from {low:,.15g} to {high:,.15g}"
            bad |= ~cast[name].is_between(low, high).fill_null(False)
        refuse(bad, frame, name, f"a {kind}", path)
    return cast


def refuse(bad: pl.Series, frame: pl.DataFrame, name: str, needed: str, path: Path) -> None:
    """Raises KarmafunnelError naming file, row (1 = first after the header), column and value of
    the first row that is bad.
    """
    if bad.any():
        row = int(bad.arg_true()[0])
        raise KarmafunnelError(
            f"{path}: row {row + 1}",
            what=f"column {name!r}",
            needs=needed,
            found=repr(frame[name][row]),
        )


def once(frame: pl.DataFrame, name: str, path: Path) -> None:
    """Raises KarmafunnelError naming file, row and value where a column holds a value twice."""
    refuse(~frame[name].is_first_distinct(), frame, name, "each value once", path)


def read_csv(
    path: Path, columns: Sequence[str], separator: str = ",", quote: str | None = '"'
) -> pl.DataFrame:
    """A delimited file in UTF-8, plain or gzipped, every column as text; raises KarmafunnelError
    for a broken file, other bytes or missing columns.
    """
    with reading(path):
        try:
            frame = pl.read_csv(path, infer_schema=False, separator=separator, quote_char=quote)
        except pl.exceptions.PolarsError:
            check_utf8(path, separator, quote)
            raise
    need(frame, columns, path)
    return frame


def check_utf8(path: Path, separator: str, quote: str | None) -> None:
    """Raises KarmafunnelError naming file, row, column and value of the first cell that is not
    UTF-8.
    """
    frame = pl.read_csv(
        path, infer_schema=False, separator=separator, quote_char=quote, encoding="utf8-lossy"
    )
    needed = "text in UTF-8 (iconv -f latin1 -t utf-8 makes it of Latin-1)"
    odd = []
    for name in frame.columns:
        row = frame[name].str.contains("\ufffd", literal=True).fill_null(False).arg_max()
        if row is not None and "\ufffd" in (frame[name][row] or ""):
            odd.append((row, name))
    if odd:
        row, name = min(odd)
        raise KarmafunnelError(
            f"{path}: row {row + 1}",
            what=f"column {name!r}",
            needs=needed,
            found=repr(frame[name][row]),
        )
    if any("\ufffd" in name for name in frame.columns):
        raise KarmafunnelError(f"{path}: header", needs=needed, found=frame.columns)


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object (`object_pairs_hook`); raises KarmafunnelError for a duplicate key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise KarmafunnelError("JSON", needs="each key once", found=f"{twice!r} twice")
    return found


def plain(text: str | None) -> str | None:
    """Text without HTML entities, tags, comments, style sheets and repeated blanks; null if nothing
    remains.
    """
    if not text:
        return None
    text = html.unescape(text)
    if "<" in text:
        text = MARKUP.sub(" ", text)
    return " ".join(text.split()) or None
