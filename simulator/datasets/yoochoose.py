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
        also = [pl.col("session").alias("user"), pl.lit(name.removesuffix("s")).alias("event")]
        for column in ("price", "quantity"):
            value = pl.col(column) if column in header else pl.lit(None, pl.String)
            known = pl.when(value != "0").then(value) if column in header else value
            also.append(known.alias(column))
        to = work / f"{name}.parquet"
        made[streamed(path, columns, to, header=header, also=also)] = path
    return made
