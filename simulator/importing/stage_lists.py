"""Lists that the stages of another system returned, as each format's reader hands them on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ...errors import KarmafunnelError
from .opening import ROW, Rejects, batches, format_of, layout_of, opened, packed

ROLES: dict[str, tuple[str, ...]] = {
    "request": (
        "request",
        "requestid",
        "queryid",
        "qid",
        "query",
        "searchid",
        "topic",
        "impressionid",
    ),
    "stage": ("stage", "phase", "step", "layer"),
    "item": ("item", "itemid", "docid", "doc", "documentid", "product", "productid", "id"),
    "rank": ("rank", "position", "place"),
    "score": ("score", "relevance", "value"),
}
MANY = 100_000  # rows that are kept as Python objects at a time
LISTS: dict[str, Any] = {
    "request_id": pl.String,
    "stage": pl.String,
    "item_id": pl.String,
    "rank": pl.Float64,
    "score": pl.Float64,
}


@dataclass(frozen=True)
class Reading:
    """What a user says about files of stage outputs.

    Attributes:
        format: "trec", "table", "ubi", "elasticsearch", "opensearch" or "vespa"; "" to recognise
            each file.
        item: the field of a hit that holds its item id, with dots; "" for the usual one.
        scores: fields of a hit with the scores of earlier phases by stage, in order.
        clicks, purchases: names of UBI actions that count as such; default: the usual names.
    """

    format: str = ""
    item: str = ""
    scores: Mapping[str, str] | None = None
    clicks: tuple[str, ...] = ()
    purchases: tuple[str, ...] = ()


class Collected:
    """Rows that become a frame, some at a time, so that they take little memory."""

    def __init__(self, schema: Mapping[str, Any]):
        self.schema, self.rows = dict(schema), list[dict[str, Any]]()
        self.frames = [pl.DataFrame(schema=self.schema)]

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) >= MANY:
            self._pack()

    def _pack(self) -> None:
        self.frames.append(pl.DataFrame(self.rows, schema=self.schema))
        self.rows = []

    def frame(self) -> pl.DataFrame:
        self._pack()
        return pl.concat(self.frames)


def field(row: Any, path: str) -> Any:
    """The value at a path of keys joined by dots, or None; a key may itself contain dots."""
    if not isinstance(row, dict):
        return None
    if path in row:
        return row[path]
    head, dot, rest = path.partition(".")
    if dot and head in row and (found := field(row[head], rest)) is not None:
        return found
    for key, value in row.items():  # a key with dots
        inside = path[len(key) + 1 :] if "." in key and path.startswith(f"{key}.") else ""
        if inside and (found := field(value, inside)) is not None:
            return found
    return None


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with their number: JSON objects (one a line, one array, or a single
    object), or the rows of a Parquet or Arrow file with dotted names. What an index holds under
    `_source` is the row.

    Raises:
        KarmafunnelError: naming file and line of what is no JSON object.
    """
    if format_of(path) in ("parquet", "arrow"):
        for frame in batches(path, layout_of(path), Rejects()):
            for number, row in enumerate(frame.drop(ROW, strict=False).iter_rows(named=True), 1):
                yield number, row
        return
    source = enumerate(json_values(path), 1)
    while (one := opened(path, lambda: next(source, None))) is not None:
        number, value = one
        if not isinstance(value, dict):
            raise KarmafunnelError(
                f"{path}: line {number}", needs="a JSON object", found=type(value).__name__
            )
        inner = value.get("_source")
        yield number, inner if isinstance(inner, dict) and "hits" not in value else value


def json_values(path: Path) -> Iterator[Any]:
    """The values of a JSON file: one a line, or the elements of one array or object."""
    with packed(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
        first = ""
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                if first:
                    raise KarmafunnelError(
                        f"{path}: line {number}", needs="a JSON object", found=error
                    ) from error
                yield from whole(path, line + text.read())
                return
            first = first or line
            yield from value if isinstance(value, list) else [value]


def whole(path: Path, text: str) -> list[Any]:
    """The elements of a file that is one JSON array or object over several lines."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise KarmafunnelError(path, needs="a JSON object a line", found=error) from error
    return value if isinstance(value, list) else [value]


def text(value: Any) -> str | None:
    """An id as text; None for none."""
    return None if value is None or value == "" else str(value)
