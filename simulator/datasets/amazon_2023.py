"""Amazon Reviews 2023 of one category; see `amazon_2023.toml`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ._amazon import pair, write_items
from ._raw import streamed
from ._source import describe

WHERE = describe("amazon_2023").home
RATINGS = {"user": "user_id", "item": "parent_asin", "time": "timestamp"}


def tables(root: Path | str, work: Path) -> dict[Path, Path]:
    """The ratings and the items of the category in `root`, with the columns of the map."""
    ratings, items = pair(root, "*.csv", "meta_*.jsonl", WHERE)
    made = streamed(ratings, RATINGS, work / "ratings.parquet", also=[pl.lit(1).alias("quantity")])
    names = {"item": "parent_asin", "brand": "store", "category": "categories"}
    return {made: ratings} | write_items(items, work, names)
