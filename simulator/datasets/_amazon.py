"""Amazon's files of one category: which there is, and its items."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from ...errors import KarmafunnelError
from ...files import write_parquet
from ._raw import find, plain, reading
from .amazon_catalog import price

BATCH = 200_000  # rows
SCHEMA: dict[str, Any] = {
    "item": pl.String,
    "title": pl.String,
    "brand": pl.String,
    "category": pl.List(pl.String),
    "price": pl.Float64,
    "description": pl.String,
}


def pair(root: Path | str, reviews: str, items: str, where: str) -> tuple[Path, Path]:
    """The reviews and the items of the one category in the folder `root`.

    `reviews` and `items`: their names with "*" for the category, without ".gz".

    Raises:
        KarmafunnelError: a file is missing, or there are several categories.
    """
    root = Path(root)
    found = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    categories: dict[str, None] = {}
    for form in (items, reviews):
        start, end = form.split("*")
        for name in (name.removesuffix(".gz") for name in found):
            if name.startswith(start) and name.endswith(end):
                categories[name[len(start) : len(name) - len(end)]] = None
    if len(categories) > 1:
        raise KarmafunnelError(root, needs="one category", found=", ".join(categories))
    names = [form.replace("*", next(iter(categories), "*")) for form in (reviews, items)]
    one, two = (find(root, [name, f"{name}.gz"], where) for name in names)
    return one, two


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file with their line; raises KarmafunnelError naming what is none."""
    with reading(path), gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        number = 0
        for number, line in enumerate(file, 1):
            try:
                found = json.loads(line)
            except ValueError as error:
                raise KarmafunnelError(f"{path}: line {number}: is no JSON: {error}") from error
            if not isinstance(found, dict):
                raise KarmafunnelError(
                    f"{path}: line {number}", needs="an object", found=type(found).__name__
                )
            yield number, found
        if number == 0:
            raise KarmafunnelError(path, needs="at least one line", found="an empty file")


def write_items(path: Path, work: Path, names: dict[str, str]) -> dict[Path, Path]:
    """The items of a file of metadata as Parquet files, each with that file.

    `names`: the keys in the file of item, brand and category.
    """
    made: dict[Path, Path] = {}
    needed = f"an item with {', '.join(names.values())}, title, price, description"
    for frame in frames(path, SCHEMA, needed, lambda about: item(about, names)):
        made[write_parquet(work / f"items-{len(made):05d}.parquet", frame)] = path
    return made


def frames(
    path: Path,
    schema: dict[str, Any],
    needed: str,
    row: Callable[[dict[str, Any]], tuple[Any, ...]],
) -> Iterator[pl.DataFrame]:
    """Frames of rows made of the objects in a file; raises KarmafunnelError naming the line of one
    that is not what is `needed`.
    """
    rows: list[tuple[Any, ...]] = []
    for number, about in objects(path):
        try:
            rows.append(row(about))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise KarmafunnelError(
                f"{path}: line {number}", needs=needed, found=f"{type(error).__name__}: {error}"
            ) from error
        if len(rows) >= BATCH:
            yield pl.DataFrame(rows, schema=schema, orient="row")
            rows = []
    if rows:
        yield pl.DataFrame(rows, schema=schema, orient="row")


def item(about: dict[str, Any], names: dict[str, str]) -> tuple[Any, ...]:
    """One row of SCHEMA."""
    category = [text for text in map(plain, about.get(names["category"]) or []) if text]
    if not category and (main := plain(about.get("main_category") or about.get("main_cat"))):
        category = [main]
    paragraphs = about.get("description") or []
    if isinstance(paragraphs, str):
        paragraphs = [paragraphs]
    if not isinstance(asin := about[names["item"]], str) or not asin.strip():
        raise ValueError(f"{names['item']} needs a text, found {asin!r}")
    return (
        asin,
        plain(about.get("title")),
        plain(about.get(names["brand"])),
        category or None,
        None if about.get("price") is None else price(about["price"]),
        "\n".join(text for text in map(plain, paragraphs) if text) or None,
    )
