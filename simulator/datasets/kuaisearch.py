"""KuaiSearch: product search of a video app; see `kuaisearch.toml`."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl

from ...log import Log, assign_windows
from ._raw import find, once, read_json_lines, there, with_unlisted
from ._source import describe

WHERE = describe("kuaisearch").home
FEN = 100  # hundredths of a yuan in a yuan
IDS = pl.List(pl.Int64)
SEARCHES = {
    "session_id": pl.Int64,
    "user_id": pl.Int64,
    "time_index": pl.Int64,
    "query": pl.String,
    "split": pl.String,
    "impressed_item_ids": IDS,
    "clicked_item_ids": IDS,
    "purchased_item_ids": IDS,
}
RANKED = {
    "session_id": pl.Int64,
    "search_entrance": pl.String,
    "target_item_id": pl.Int64,
    "target_item_price": pl.Float64,
    "recently_clicked_item_ids": IDS,
    "recently_purchased_item_ids": IDS,
}
LEVELS = ("category_level1_name", "category_level2_name", "category_level3_name")
PRODUCTS = {"item_id": pl.Int64} | dict.fromkeys(
    ["item_title", "brand_name", "seller_name", *LEVELS], pl.String
)
PLACES = ("fre_country", "fre_province", "fre_city")
USERS = {"user_id": pl.Int64} | dict.fromkeys(["gender", "age_bucket", *PLACES], pl.String)
JUDGED = {
    "query": pl.String,
    "item_title": pl.String,
    "brand": pl.String,
    "seller_name": pl.String,
    "score": pl.Int64,
}
NO_BRAND = ("无品牌", "其他/other", "UNKNOWN", "")
EARLIER = {
    "earlier purchases": ("recently_purchased_item_ids", "purchased"),
    "earlier clicks": ("recently_clicked_item_ids", "clicked"),
}


def load(root: Path | str) -> Log:
    """The log of KuaiSearch's files in `root`; raises KarmafunnelError for a missing, truncated or
    wrong file.
    """
    root = Path(root)
    path = find(root, ["recall.jsonl"], WHERE)
    searches = read_json_lines(path, SEARCHES)
    once(searches, "session_id", path)
    searches = searches.sort("time_index", "session_id")
    ranked = read_json_lines(
        find(root, ["rank.jsonl"], WHERE), RANKED, {"target_item_price": (0, math.inf)}
    )
    shown, set_aside = lists(searches, ranked)
    earlier = before(searches, ranked)
    path = find(root, ["items.jsonl"], WHERE)
    products = read_json_lines(path, PRODUCTS)
    once(products, "item_id", path)
    path = find(root, ["users.jsonl"], WHERE)
    users = read_json_lines(path, USERS)
    once(users, "user_id", path)
    shown = shown.with_columns(pl.lit(None, dtype=pl.Int64).alias("relevance"))
    notes = {"searches of the publisher's test part": count(searches, pl.col("split") == "test")}
    if (path := root / "relevance.jsonl").is_file():
        shown, labels = judged(shown, searches, products, path)
        notes |= labels
    columns = ("position", "clicked", "purchased", "price_shown", "relevance")
    exposures = pl.concat([shown, earlier.explode("item_id")], how="diagonal").select(
        "request_id", "item_id", *columns
    )
    items = items_of(products, exposures)
    requests = requests_of(searches, earlier, ranked, users)
    meta = {
        "currency": "CNY",
        "source": f"KuaiSearch (SIGIR 2026), recall.jsonl; {WHERE}",
        "time": "order",
        "scenario": ["search"],
        "label": "click",
        "catalogue": "published",
        "has": there("kuaisearch", items=items, requests=requests, exposures=exposures),
        "set_aside": set_aside,
        "notes": notes,
    }
    return Log.make(items, requests, exposures, meta)


def count(frame: pl.DataFrame, condition: pl.Expr) -> int:
    return frame.filter(condition).height


def lists(searches: pl.DataFrame, ranked: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """One row a product shown, and what is left out: products twice in a list, and clicks and
    purchases that a list does not hold.
    """
    key = ["session_id", "item_id"]
    every = (
        searches.select(
            "session_id",
            pl.col("impressed_item_ids").alias("item_id"),
            pl.int_ranges(1, pl.col("impressed_item_ids").list.len() + 1).alias("position"),
        )
        .filter(pl.col("item_id").list.len() > 0)
        .explode("item_id", "position")
    )
    shown = every.unique(key, keep="first", maintain_order=True)
    place = pl.int_range(1, pl.len() + 1).over("session_id")
    shown = shown.with_columns(place.alias("position"))
    set_aside = {"products a second time in one list": every.height - shown.height}
    for name in ("clicked", "purchased"):
        acted = searches.select("session_id", pl.col(f"{name}_item_ids").alias("item_id"))
        acted = acted.filter(pl.col("item_id").list.len() > 0).explode("item_id").unique(key)
        shown = shown.join(
            acted.with_columns(pl.lit(True).alias(name)), on=key, how="left", maintain_order="left"
        ).with_columns(pl.col(name).fill_null(False))
        outside = acted.join(shown, on=key, how="anti").height
        set_aside[f"products {name} that their list does not hold"] = outside
    prices = ranked.select(
        "session_id",
        pl.col("target_item_id").alias("item_id"),
        (pl.col("target_item_price") / FEN).alias("price_shown"),
    ).unique(key, keep="first", maintain_order=True)
    shown = shown.join(prices, on=key, how="left", maintain_order="left")
    request = pl.col("session_id").cast(pl.String).alias("request_id")
    return shown.with_columns(request), set_aside


def before(searches: pl.DataFrame, ranked: pl.DataFrame) -> pl.DataFrame:
    """Requests with what a user did before the first search of the log: request_id, source, step,
    item_id (list), clicked, purchased, and the search's columns.
    """
    first = searches.unique("user_id", keep="first", maintain_order=True)
    told = ranked.unique("session_id", keep="first", maintain_order=True)
    first = first.join(told, on="session_id", maintain_order="left")
    found = []
    for step, (source, (column, label)) in enumerate(EARLIER.items()):
        rows = first.filter(pl.col(column).list.len() > 0).select(
            "session_id",
            "user_id",
            "time_index",
            pl.format("{} of {}", pl.lit(source), "session_id").alias("request_id"),
            pl.lit(source).alias("source"),
            pl.lit(step).alias("step"),
            pl.col(column).list.unique(maintain_order=True).alias("item_id"),
            pl.lit(label == "clicked").alias("clicked"),
            pl.lit(label == "purchased").alias("purchased"),
        )
        found.append(rows)
    return pl.concat(found)


def requests_of(
    searches: pl.DataFrame, earlier: pl.DataFrame, ranked: pl.DataFrame, users: pl.DataFrame
) -> pl.DataFrame:
    """The searches and what came before them, in order; context: entrance, gender, age, places."""
    entrance = ranked.select("session_id", "search_entrance").unique(
        "session_id", keep="first", maintain_order=True
    )
    about = ["search_entrance", "gender", "age_bucket", *PLACES]
    told = searches.join(entrance, on="session_id", how="left", maintain_order="left").join(
        users, on="user_id", how="left", maintain_order="left"
    )
    served = told.with_columns(
        pl.col("session_id").cast(pl.String).alias("request_id"),
        pl.lit("search").alias("source"),
        pl.lit(len(EARLIER)).alias("step"),
        pl.concat_list(pl.format(f"{name}={{}}", name) for name in about)
        .list.drop_nulls()
        .alias("context"),
        assign_windows(told["time_index"], pl.repeat(True, told.height, eager=True)),
    )
    earlier = earlier.join(served.select("session_id", "window"), on="session_id")
    rows = pl.concat([served, earlier], how="diagonal").sort("time_index", "session_id", "step")
    return rows.select(
        "request_id", "user_id", "query", "context", "source", "window", "split", "time_index"
    )


def items_of(products: pl.DataFrame, exposures: pl.DataFrame) -> pl.DataFrame:
    """The published products, then those of which the lists tell the id alone."""
    brand = pl.col("brand_name")
    published = products.select(
        "item_id",
        pl.col("item_title").alias("title"),
        pl.when(~brand.is_in(NO_BRAND)).then(brand).alias("brand"),
        pl.concat_list(pl.when(~pl.col(name).is_in(["UNKNOWN", ""])).then(name) for name in LEVELS)
        .list.drop_nulls()
        .alias("category"),
        pl.concat_list(pl.format("seller={}", "seller_name")).alias("attributes"),
    )
    return with_unlisted(published, exposures.sort("item_id"))


def judged(
    shown: pl.DataFrame, searches: pl.DataFrame, products: pl.DataFrame, path: Path
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The products shown with the relevance label of their query and text, and how many labels
    there are and are in use.
    """
    labels = read_json_lines(path, JUDGED, {"score": (0, 3)})
    key = ["query", "item_title", "brand", "seller_name"]
    pairs = labels.unique(key, keep="first", maintain_order=True)
    texts = (
        shown.select("session_id", "item_id")
        .join(searches.select("session_id", "query"), on="session_id")
        .join(products.rename({"brand_name": "brand"}), on="item_id")
        .join(pairs, on=key)
        .select("session_id", "item_id", pl.col("score").alias("relevance"))
    )
    shown = shown.drop("relevance").join(
        texts, on=["session_id", "item_id"], how="left", maintain_order="left"
    )
    notes = {"relevance labels": labels.height, "products shown with a label": texts.height}
    return shown, notes
