"""Amazon reviews 2018 of one category; see `amazon_2018.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ...files import write_parquet
from ._amazon import frames, pair, write_items
from ._source import describe

WHERE = describe("amazon_2018").home
SCHEMA: dict[str, Any] = {
    "user": pl.String,
    "item": pl.String,
    "time": pl.Int64,
    "quantity": pl.Int64,
}


def tables(root: Path | str, work: Path) -> dict[Path, Path]:
    """The reviews and the items of the category in `root`, with the columns of the map."""
    reviews, items = pair(root, "*_5.json", "meta_*.json", WHERE)
    made: dict[Path, Path] = {}
    needed = "a review with reviewerID, asin and unixReviewTime"
    for frame in frames(reviews, SCHEMA, needed, row):
        made[write_parquet(work / f"reviews-{len(made):05d}.parquet", frame)] = reviews
    names = {"item": "asin", "brand": "brand", "category": "category"}
    return made | write_items(items, work, names)


def row(review: dict[str, Any]) -> tuple[Any, ...]:
    """One row of SCHEMA."""
    texts = (review["reviewerID"], review["asin"])
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"reviewerID and asin need texts, found {texts!r}")
    return (*texts, int(review["unixReviewTime"]), 1)
