"""TAOBAO-MM: advertisements with vectors of products; see `taobao_mm.toml`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...files import open_table, read_table
from ...log import Log, hash_ids
from ._raw import need, parse, reading, refuse, there, with_unlisted
from ._source import describe

WHERE = describe("taobao_mm").home
# the publisher's numbers of columns
LABEL, USER, ITEM, CATEGORY, CITY, PROVINCE = "label_0", "129_1", "205", "206", "213", "214"
HISTORY, VECTOR = "150_2_180", "205_c"
ABOUT = {"130_1": "user_1", "130_2": "user_2", "130_3": "user_3", "130_4": "user_4",
    "130_5": "user_5"}  # fmt: skip
COLUMNS = (LABEL, USER, *ABOUT, HISTORY, ITEM, CATEGORY, CITY, PROVINCE)
SCALE = 127  # of the vectors, which are whole numbers from -127 to 127
RECENT = 100  # products of the history
SIXTEENTHS = np.array(["W1"] * 12 + ["W2a"] * 3 + ["W2b"], dtype=object)
VECTORS = "scl_embedding_int8_p90.parquet"


def load(root: Path | str) -> Log:
    """The log of the shards in `root`; raises KarmafunnelError for a missing, truncated or wrong
    file.
    """
    root = Path(root)
    parts = {part: shards(root, part) for part in ("train", "test")}
    found = []
    for part, paths in parts.items():
        rows = pl.concat([read(path) for path in paths])
        found.append(rows.with_columns(pl.lit(part).alias("part")))
    rows = pl.concat(found).with_columns(pl.format("{}-{}", "part", "user_id").alias("request_id"))
    every = rows.height
    shown = rows.group_by("request_id", "item_id", maintain_order=True).agg(
        pl.col("clicked").any(), pl.exclude("clicked").first()
    )
    requests = requests_of(shown)
    exposures = pl.concat(
        [
            shown.select(
                "request_id",
                "item_id",
                pl.int_range(1, pl.len() + 1).over("request_id").alias("position"),
                "clicked",
            ),
            requests.filter(source="earlier clicks")
            .select("request_id", pl.col("history").alias("item_id"), pl.lit(True).alias("clicked"))
            .explode("item_id"),
        ],
        how="diagonal",
    )
    requests = requests.drop("history")
    items = items_of(shown, exposures, root)
    meta = {
        "source": f"TAOBAO-MM, {sum(map(len, parts.values()))} shards; {WHERE}",
        "time": "order",
        "scenario": ["advertisements"],
        "label": "click",
        "catalogue": "published",
        "has": there("taobao_mm", items=items, requests=requests, exposures=exposures),
        "set_aside": {"products a second time in one list": every - shown.height},
    }
    return Log.make(items, requests, exposures, meta)


def shards(root: Path, part: str) -> list[Path]:
    """The files of a part; raises KarmafunnelError where there is none."""
    found = sorted((root / part).glob("*.parquet"))
    if not found:
        there_is = (
            sorted(path.name for path in root.iterdir()) if root.is_dir() else "no such folder"
        )
        raise KarmafunnelError(
            root / part / f"{part}-shard-000000.parquet",
            needs=f"shards of the folder {part} (download: {WHERE})",
            found=there_is,
        )
    return found


def read(path: Path) -> pl.DataFrame:
    """The rows of a shard: user_id, item_id, clicked, history (the latest RECENT, oldest first),
    context and attributes (lists).
    """
    with reading(path):
        frame = read_table(path)
    need(frame, COLUMNS, path)
    for name in (USER, ITEM, CATEGORY, CITY, PROVINCE, *ABOUT):
        if isinstance(frame[name].dtype, pl.List | pl.Array):  # one value a list
            frame = frame.with_columns(pl.col(name).list.first())
    frame = parse(frame, dict.fromkeys([USER, ITEM], pl.String), path)
    label = frame[LABEL].cast(pl.List(pl.Int64), strict=False)
    fine = (label.list.len() == 2) & (label.list.sum() == 1) & (label.list.min() == 0)
    refuse(~fine.fill_null(False), frame, LABEL, "[1, 0] or [0, 1] (clicked)", path)
    history = pl.col(HISTORY).cast(pl.List(pl.String)).fill_null([])
    latest = history.list.eval(pl.element().filter(pl.element() != "0")).list.reverse()
    return frame.select(
        pl.col(USER).alias("user_id"),
        pl.col(ITEM).alias("item_id"),
        pl.Series("clicked", label.list.get(1) == 1),
        latest.list.unique(maintain_order=True).list.head(RECENT).list.reverse().alias("history"),
        pl.concat_list(pl.format(f"{word}={{}}", pl.col(name)) for name, word in ABOUT.items())
        .list.drop_nulls()
        .alias("context"),
        pl.concat_list(pl.col(CATEGORY).cast(pl.String)).list.drop_nulls().alias("category"),
        pl.concat_list(
            pl.format("city={}", pl.col(CITY)), pl.format("province={}", pl.col(PROVINCE))
        )
        .list.drop_nulls()
        .alias("attributes"),
    )


def requests_of(shown: pl.DataFrame) -> pl.DataFrame:
    """What was shown to each user and, before it, the user's history, in the order of windows."""
    first = shown.unique("request_id", keep="first", maintain_order=True)
    drawn = hash_ids(first["user_id"].to_numpy(), 0) % np.uint64(len(SIXTEENTHS))
    window = np.where(first["part"] == "test", "W3", SIXTEENTHS[drawn.astype(np.int64)])
    served = first.select(
        "request_id",
        "user_id",
        "context",
        pl.lit("advertisements").alias("source"),
        pl.Series("window", window.tolist(), pl.String),
        pl.lit(1).alias("step"),
        "history",
    ).with_row_index("row")
    earlier = served.filter(pl.col("history").list.len() > 0).with_columns(
        pl.format("before {}", "request_id").alias("request_id"),
        pl.lit("earlier clicks").alias("source"),
        pl.lit(None, dtype=pl.List(pl.String)).alias("context"),
        pl.lit(0).alias("step"),
    )
    return pl.concat([served, earlier]).sort("window", "row", "step").drop("row", "step")


def items_of(shown: pl.DataFrame, exposures: pl.DataFrame, root: Path) -> pl.DataFrame:
    """What was shown, then what only histories name; with vectors where their file lies beside."""
    named = shown.unique("item_id", keep="first", maintain_order=True)
    items = with_unlisted(named.select("item_id", "category", "attributes"), exposures)
    path = root / VECTORS
    if not path.is_file():
        return items
    with reading(path):
        table = open_table(path)
        need(table.head(1).collect(), (ITEM, VECTOR), path)
        vectors = (
            table.select(
                pl.col(ITEM).cast(pl.String).alias("item_id"),
                pl.col(VECTOR).cast(pl.List(pl.Float32)).alias("visual"),
            )
            .join(items.lazy().select("item_id"), on="item_id", how="semi")
            .unique("item_id", keep="first", maintain_order=True)
            .with_columns(pl.col("visual").list.eval(pl.element() / SCALE))
            .collect()
        )
    return items.join(vectors, on="item_id", how="left", maintain_order="left")
