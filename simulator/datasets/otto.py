"""OTTO: sessions of clicks, carts and orders; see `otto.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ._raw import find, reading
from ._source import describe

WHERE = describe("otto").home
EVENT = pl.Struct({"aid": pl.Int64, "ts": pl.Int64, "type": pl.String})
SCHEMA: dict[str, Any] = {"session": pl.Int64, "events": pl.List(EVENT)}


def tables(root: Path | str, work: Path) -> dict[Path, Path]:
    """The events of the sessions in `root`, one a row, with the columns of the map."""
    names = ["otto-recsys-train.jsonl", "otto-recsys-train.jsonl.gz"]
    path = find(root, names, WHERE)
    to = work / "events.parquet"
    with reading(path):
        sessions = pl.scan_ndjson(path, schema=SCHEMA, low_memory=True)
        events = sessions.explode("events").unnest("events")
        events.select(
            pl.col("session").cast(pl.String).alias("user"),
            pl.col("session").cast(pl.String),
            pl.col("aid").cast(pl.String).alias("item"),
            pl.col("ts").alias("time"),
            pl.col("type").alias("event"),
        ).sink_parquet(to)
    return {to: path}
