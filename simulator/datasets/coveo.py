"""Coveo, SIGIR eCom 2021: sessions of a shop with searches; see `coveo.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ...layout import YEAR
from ...log import Log, assign_windows
from ._raw import find, once, parse, read_csv, refuse, there, with_unlisted
from ._source import describe

WHERE = describe("coveo").home
TS = "server_timestamp_epoch_ms"
SEARCHES = ("session_id_hash", "query_vector", "clicked_skus_hash", "product_skus_hash", TS)
EVENTS = ("session_id_hash", "event_type", "product_action", "product_sku_hash", TS, "hashed_url")
CONTENT = (
    "product_sku_hash", "description_vector", "category_hash", "image_vector", "price_bucket",
)  # fmt: skip
TIMES = (YEAR, 230 * YEAR)  # 1971 to 2200, in ms
ACTIONS = ("detail", "add", "purchase", "remove", "click")
DONE = ("detail", "add", "click", "purchase")


def load(root: Path | str) -> Log:
    """The log of Coveo's files in `root`; raises KarmafunnelError for a missing, truncated or wrong
    file.
    """
    root = Path(root)
    items = read_items(root)
    searches = read_searches(root)
    events, unread = read_events(root)
    shown, set_aside = lists(searches)
    served = searches.join(shown, on="request_id", how="semi", maintain_order="left")
    requests = pl.concat([served, events], how="diagonal").sort(
        "ts", "session_id", maintain_order=True
    )
    requests = requests.select(
        "request_id",
        pl.col("session_id").alias("user_id"),
        "ts",
        "session_id",
        "source",
        assign_windows(requests["ts"], requests["source"] == "search"),
        "query_vector",
    )
    acted = events.select(
        "request_id",
        "item_id",
        (pl.col("source") != "purchase").alias("clicked"),
        (pl.col("source") == "purchase").alias("purchased"),
    )
    exposures = pl.concat([shown, acted], how="diagonal")
    items = with_unlisted(items, exposures)
    meta = {
        "source": f"SIGIR eCom 2021 Data Challenge (Coveo), search_train.csv; {WHERE}",
        "time": "clock",
        "scenario": ["search"],
        "label": "click",
        "catalogue": "seen",
        "has": there("coveo", items=items, requests=requests, exposures=exposures),
        "set_aside": {"searches without a result": searches.height - served.height}
        | set_aside
        | unread,
        "notes": {
            "products without a vector of their description": items["text_vector"].null_count()
        },
    }
    return Log.make(items, requests, exposures, meta)


def vectors(frame: pl.DataFrame, name: str, path: Path) -> pl.DataFrame:
    """A column of texts such as "[0.1, -2]" as lists of numbers, null where it is empty."""
    text = frame[name].str.strip_chars()
    text = text.set(text == "", None)
    made = (
        text.str.strip_chars("[]")
        .str.split(",")
        .list.eval(pl.element().str.strip_chars().cast(pl.Float32, strict=False))
    )
    fine = text.str.starts_with("[") & text.str.ends_with("]")
    fine &= made.list.eval(pl.element().is_finite().fill_null(False)).list.all()
    refuse(~fine.fill_null(True), frame, name, "numbers such as [0.1, -2.5]", path)
    lengths = made.list.len()
    width = lengths.drop_nulls().mode().sort().head(1)
    odd = (lengths != width).fill_null(False) if len(width) else made.is_not_null()
    refuse(odd, frame, name, f"{sum(width.to_list())} numbers, as most rows have", path)
    return frame.with_columns(made.alias(name))


def ids(frame: pl.DataFrame, name: str, path: Path) -> pl.DataFrame:
    """A column of texts such as "['a', 'b']" as lists of ids, empty where it is empty."""
    text = frame[name].fill_null("").str.strip_chars()
    fine = (text == "") | text.str.contains(r"^\[('[^',]+'(, *'[^',]+')*)?\]$")
    refuse(~fine, frame, name, "ids such as ['a', 'b']", path)
    inner = text.str.extract_all(r"'([^',]+)'").list.eval(pl.element().str.strip_chars("'"))
    return frame.with_columns(inner.alias(name))


def read_items(root: Path) -> pl.DataFrame:
    path = find(root, ["sku_to_content.csv"], WHERE)
    frame = parse(read_csv(path, CONTENT), {"product_sku_hash": pl.String}, path)
    once(frame, "product_sku_hash", path)
    for name in ("description_vector", "image_vector"):
        frame = vectors(frame, name, path)
    tenth = frame["price_bucket"].cast(pl.Float64, strict=False)
    odd = frame["price_bucket"].is_not_null() & ~tenth.is_between(0, 10).fill_null(False)
    refuse(odd, frame, "price_bucket", "a whole number from 0 to 10", path)
    return frame.select(
        pl.col("product_sku_hash").alias("item_id"),
        pl.col("category_hash").str.split("/").alias("category"),
        pl.when(tenth.is_not_null())
        .then(pl.concat_list(pl.format("price bucket={}", tenth.cast(pl.Int32))))
        .alias("attributes"),
        pl.col("image_vector").alias("visual"),
        pl.col("description_vector").alias("text_vector"),
    )


def timed(frame: pl.DataFrame, text: list[str], path: Path) -> pl.DataFrame:
    """The rows with `row`, `session_id` and `ts`; the columns of `text` hold a value each."""
    types: dict[str, Any] = dict.fromkeys(["session_id_hash", *text], pl.String) | {TS: pl.Int64}
    return (
        parse(frame, types, path, {TS: TIMES})
        .with_row_index("row", offset=1)
        .with_columns(
            pl.col("session_id_hash").alias("session_id"),
            pl.from_epoch(TS, time_unit="ms").dt.replace_time_zone("UTC").alias("ts"),
        )
    )


def read_searches(root: Path) -> pl.DataFrame:
    path = find(root, ["search_train.csv"], WHERE)
    frame = timed(read_csv(path, SEARCHES), [], path)
    frame = vectors(frame, "query_vector", path)
    for name in ("clicked_skus_hash", "product_skus_hash"):
        frame = ids(frame, name, path)
    return frame.with_columns(
        pl.format("search-{}", "row").alias("request_id"), pl.lit("search").alias("source")
    )


def read_events(root: Path) -> tuple[pl.DataFrame, dict[str, int]]:
    """What was done with a product, one request each, and what is left out."""
    path = find(root, ["browsing_train.csv"], WHERE)
    frame = timed(read_csv(path, EVENTS), ["event_type"], path)
    action = frame["product_action"].set(frame["product_action"] == "", None)
    refuse(
        ~action.is_in(ACTIONS).fill_null(True),
        frame,
        "product_action",
        f"one of {', '.join(ACTIONS)}, or nothing",
        path,
    )
    item = pl.col("product_sku_hash")
    kept = frame.filter(pl.col("product_action").is_in(DONE) & (item.fill_null("") != ""))
    removed = frame.filter(pl.col("product_action") == "remove").height
    left_out = {
        "page views and actions without a product": frame.height - kept.height - removed,
        "removals from the cart": removed,
    }
    return kept.select(
        pl.format("event-{}", "row").alias("request_id"),
        "session_id",
        "ts",
        pl.col("product_action").alias("source"),
        item.alias("item_id"),
    ), left_out


def lists(searches: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """One row a product shown, and what is left out."""
    key = ["request_id", "item_id"]
    columns = {}
    for name in ("product", "clicked"):
        rows = searches.select("request_id", pl.col(f"{name}_skus_hash").alias("item_id"))
        columns[name] = rows.filter(pl.col("item_id").list.len() > 0).explode("item_id")
    every, clicked = columns["product"], columns["clicked"].unique(key)
    shown = every.unique(key, keep="first", maintain_order=True)
    found = shown.join(
        clicked.with_columns(pl.lit(True).alias("clicked")),
        on=key,
        how="left",
        maintain_order="left",
    )
    found = found.with_columns(
        pl.col("clicked").fill_null(False),
        pl.int_range(1, pl.len() + 1).over("request_id").alias("position"),
    )
    return found, {
        "products a second time in one list": every.height - shown.height,
        "products clicked that their list does not hold": clicked.join(
            shown, on=key, how="anti"
        ).height,
    }
