"""YooChoose: clicks and buys in sessions; see `yoochoose.toml`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ._raw import find, streamed
from ._source import describe

WHERE = describe("yoochoose").home
CLICKS = ("session", "time", "item", "category")
BUYS = ("session", "time", "item", "price", "quantity")


def tables(root: Path | str, work: Path) -> dict[Path, Path]:
    """Clicks and buys in `root`, with the columns of the map."""
    made = {}
    for name, header in (("clicks", CLICKS), ("buys", BUYS)):
        path = find(root, [f"yoochoose-{name}.dat", f"yoochoose-{name}.dat.gz"], WHERE)
        columns = {column: column for column in header if column != "category"}
        unknown = [column for column in ("price", "quantity") if column in header]
        also = [pl.when(pl.col(c) != "0").then(pl.col(c)).alias(c) for c in unknown]
        also.append(pl.col("session").alias("user"))
        to = work / f"{name}.parquet"
        made[streamed(path, columns, to, header=header, also=also)] = path
    return made
