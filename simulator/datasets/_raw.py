"""Find, read and check publishers' files; errors name what differs from the published file."""

from __future__ import annotations

import html
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from ...errors import KarmafunnelError, quoted
from ...files import first_line
from ...layout import held
from ._source import describe

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
        pa.ArrowException,
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
            found=quoted(frame[name].slice(row, 1).to_list()[0]),
        )


def once(frame: pl.DataFrame, name: str, path: Path) -> None:
    """Raises KarmafunnelError naming file, row and value where a column holds a value twice."""
    refuse(~frame[name].is_first_distinct(), frame, name, "each value once", path)


def read_csv(
    path: Path,
    columns: Sequence[str],
    separator: str = ",",
    quote: str | None = '"',
    header: bool = True,
) -> pl.DataFrame:
    """A delimited file in UTF-8, plain or gzipped, every column as text; without a `header` the
    columns are named as `columns`. Raises KarmafunnelError for a broken file, other bytes or
    missing columns.
    """
    names = None if header else list(columns)
    with reading(path):
        try:
            frame = pl.read_csv(
                path,
                infer_schema=False,
                separator=separator,
                quote_char=quote,
                has_header=header,
                new_columns=names,
            )
        except pl.exceptions.PolarsError:
            check_utf8(path, separator, quote)
            raise
    need(frame, columns, path)
    return frame


def streamed(
    path: Path,
    columns: Mapping[str, str],
    to: Path,
    *,
    separator: str = ",",
    header: Sequence[str] | None = None,
    also: Sequence[pl.Expr] = (),
) -> Path:
    """Write columns of a delimited file as text into a Parquet file, in memory that does not grow
    with its rows.

    Args:
        columns: names in the file by names in the Parquet file.
        header: the names in a file without a header.
        also: further columns, of those named in the Parquet file.

    Returns:
        The Parquet file.

    Raises:
        KarmafunnelError: for a broken file and missing columns.
    """
    with reading(path):
        rows = pl.scan_csv(
            path,
            infer_schema=False,
            separator=separator,
            has_header=header is None,
            quote_char=None if header else '"',
        )
        names = rows.collect_schema().names()
        if header is not None:
            if len(names) != len(header):
                raise KarmafunnelError(
                    path,
                    needs=f"{len(header)} columns separated by {separator!r}",
                    found=len(names),
                )
            rows, names = rows.rename(dict(zip(names, header, strict=True))), list(header)
        need(pl.DataFrame({name: [None] for name in names}), list(columns.values()), path)
        picked = rows.select(pl.col(name).alias(role) for role, name in columns.items())
        try:
            picked.with_columns(*also).sink_parquet(to)
        except pl.exceptions.PolarsError:
            check_utf8(path, separator, None if header else '"', header is None)
            raise
    return to


def check_utf8(path: Path, separator: str, quote: str | None, header: bool = True) -> None:
    """Raises KarmafunnelError naming file, row, column and value of the first cell that is not
    UTF-8.
    """
    frame = pl.read_csv(
        path,
        has_header=header,
        infer_schema=False,
        separator=separator,
        quote_char=quote,
        encoding="utf8-lossy",
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


def read_json_lines(
    path: Path, schema: Mapping[str, Any], limits: Mapping[str, tuple[float, float]] | None = None
) -> pl.DataFrame:
    """One JSON object a line, the keys of `schema` in its types and in every line.

    Raises:
        KarmafunnelError: naming file, line and column, for a line that is no such object, a missing
            value, and a number that is not finite or outside `limits`.
    """
    with reading(path):
        try:
            frame = pl.read_ndjson(path, schema=dict(schema))
        except pl.exceptions.PolarsError:
            check_json_lines(path, schema)
            raise
    need(frame, list(schema), path)
    return parse(frame, schema, path, limits)


def check_json_lines(path: Path, schema: Mapping[str, Any]) -> None:
    """Raises KarmafunnelError naming file, line and column of the first value that is not of its
    type.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            for name, dtype in schema.items():
                try:
                    pl.read_ndjson(io.BytesIO(line), schema={name: dtype})
                except pl.exceptions.PolarsError as error:
                    raise KarmafunnelError(
                        f"{path}: line {number}",
                        what=f"column {name!r}",
                        needs="a JSON object with " + described(dtype),
                        found=first_line(error),
                    ) from error


def described(dtype: Any) -> str:
    """A type in words."""
    if isinstance(dtype, pl.List):
        return "a list of " + described(dtype.inner).split(" ", 1)[1] + "s"
    if dtype == pl.String:
        return "a text"
    return "a whole number" if dtype.is_integer() else "a number"


def there(source: str, **tables: pl.DataFrame) -> dict[str, bool]:
    """Which of the capabilities that a source holds (`has` of a log) these tables do hold.

    tables: items, requests and exposures.
    """
    return held(**tables, names=describe(source).holds)


def with_unlisted(items: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The items, then those that `rows` name and no item describes, in the order of the rows."""
    others = rows.select(pl.col("item_id").unique(maintain_order=True))
    others = others.join(items, on="item_id", how="anti", maintain_order="left")
    return pl.concat([items, others], how="diagonal")


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
