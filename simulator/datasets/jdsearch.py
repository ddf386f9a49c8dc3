"""JDsearch: product search with words as numbers; see `jdsearch.toml`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...log import Log, hash_ids
from ._raw import find, once, parse, read_csv, reading, refuse, there, with_unlisted
from ._source import describe

WHERE = describe("jdsearch").home
BEHAVIOUR = ("release_data.txt", "user_behavior_data_sample.txt", "user_behavior_data.txt")
PRODUCTS = ("product_data.txt", "product_meta_data_sample.txt", "product_meta_data.txt")
WORD = "\x18"  # between the words of a text
LISTS = (
    "candidate_wid_list", "candidate_label_list", "history_qry_list", "history_wid_list",
    "history_type_list", "history_time_list",
)  # fmt: skip
COLUMNS = ("query", *LISTS)
NAMES = [f"cate_name_{level}" for level in range(1, 5)]
ABOUT = ("wid", "name", "brand_id", "brand_name", *(f"cate_{what}_{level}" for level in range(1, 5)
    for what in ("id", "name")), "shop_id")  # fmt: skip
CLICK, PURCHASE = 1.0, 3.0  # least label of each
ACTIONS = ("CLICK", "CART", "FLW", "ORD")
EIGHTHS = ("W2a", "W2a", "W2a", "W2b", "W3", "W3", "W3", "W3")


def load(root: Path | str) -> Log:
    """The log of JDsearch's files in `root`; raises KarmafunnelError for a missing, truncated or
    wrong file.
    """
    path = find(Path(root), BEHAVIOUR, WHERE)
    rows = read(path)
    about = find(Path(root), PRODUCTS, WHERE)
    products = parse(table(about, ABOUT), dict.fromkeys(["wid", "shop_id"], pl.String), about)
    once(products, "wid", about)
    shown, doubled = candidates(rows, path)
    earlier = history(rows, path)
    requests = pl.concat([last_searches(rows), requests_of(earlier)], how="diagonal").sort(
        "before", "row", "step", descending=[True, False, False]
    )
    acted = earlier.select("request_id", "item_id", "clicked", "purchased")
    acted = acted.group_by("request_id", "item_id", maintain_order=True).agg(pl.all().any())
    exposures = pl.concat([shown, acted], how="diagonal")
    items = items_of(products, exposures)
    meta = {
        "source": f"JDsearch (SIGIR 2023), {path.name}; {WHERE}",
        "time": "order",
        "scenario": ["search"],
        "label": "click",
        "catalogue": "published",
        "has": there("jdsearch", items=items, requests=requests, exposures=exposures),
        "set_aside": {"candidates a second time in one list": doubled},
        "notes": {
            "last searches without a click": rows.height
            - shown.filter("clicked")["request_id"].n_unique(),
            "products without metadata": items["title"].null_count(),
        },
    }
    return Log.make(items, requests.drop("before", "row", "step"), exposures, meta)


def table(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    """A file separated by tabs, with the names of columns in its first line or without them."""
    with reading(path), open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        first = file.readline().rstrip("\n").split("\t")
    if len(first) != len(columns):
        raise KarmafunnelError(
            f"{path}: line 1",
            needs=f"{len(columns)} columns separated by tabs: {', '.join(columns)}",
            found=f"{len(first)}",
        )
    if columns[0] in first or any(name in columns for name in first):
        return read_csv(path, columns, "\t", None)
    return read_csv(path, columns, "\t", None, header=False)


def read(path: Path) -> pl.DataFrame:
    """The published columns, lists as lists, and `row`: the row number from 1."""
    frame = parse(table(path, COLUMNS), dict.fromkeys(["query", *LISTS[:2]], pl.String), path)
    return frame.with_row_index("row", offset=1).with_columns(
        pl.col(name).str.split("_").fill_null([]) for name in LISTS
    )


def same_length(rows: pl.DataFrame, name: str, other: str, more: int, path: Path) -> None:
    """Raises KarmafunnelError where a list is not as long as another and `more` values."""
    lengths = rows[other].list.len().cast(pl.Int64) + more
    needs = f"as many values as {other}" + (f" and {more} more" if more else "")
    refuse(rows[name].list.len().cast(pl.Int64) != lengths, rows, name, needs, path)


def numbers(rows: pl.DataFrame, name: str, path: Path) -> pl.DataFrame:
    """The rows with a list of texts as a list of numbers of 0 or more."""
    made = rows[name].list.eval(pl.element().cast(pl.Float64, strict=False))
    odd = made.list.eval(~(pl.element().is_finite() & (pl.element() >= 0)).fill_null(False))
    refuse(odd.list.any().fill_null(False), rows, name, "numbers of 0 or more", path)
    return rows.with_columns(made.alias(name))


def candidates(rows: pl.DataFrame, path: Path) -> tuple[pl.DataFrame, int]:
    """One row a candidate shown, and how many stand in a list a second time."""
    same_length(rows, "candidate_label_list", "candidate_wid_list", 0, path)
    rows = numbers(rows, "candidate_label_list", path)
    every = rows.select(
        pl.format("last-{}", "row").alias("request_id"),
        pl.col("candidate_wid_list").alias("item_id"),
        pl.col("candidate_label_list").alias("label"),
    ).explode("item_id", "label")
    empty = every["item_id"] == ""
    if empty.any():
        raise KarmafunnelError(path, what="candidate_wid_list", needs="ids", found="an empty one")
    once_each = every.group_by("request_id", "item_id", maintain_order=True).agg(
        pl.col("label").max()
    )
    # the published lists have the clicked first: a hash of the ids puts them in another order
    ids = once_each.select(pl.concat_str("request_id", pl.lit(" "), "item_id")).to_series()
    once_each = once_each.with_columns(pl.Series("hash", hash_ids(ids.to_numpy(), 0))).sort(
        pl.col("request_id").rle_id(), "hash"
    )
    place = pl.int_range(1, pl.len() + 1).over("request_id").alias("position")
    shown = once_each.select(
        "request_id",
        "item_id",
        place,
        (pl.col("label") >= CLICK).alias("clicked"),
        (pl.col("label") >= PURCHASE).alias("purchased"),
    )
    return shown, every.height - shown.height


def history(rows: pl.DataFrame, path: Path) -> pl.DataFrame:
    """One row an earlier interaction: row, step (the number of its request), before (seconds before
    the last search), request_id, query, item_id, clicked, purchased.

    Interactions that follow each other under one query are one request, at the time of the first.
    """
    rows = rows.filter(pl.col("history_wid_list").list.len() > 0)
    for name, more in (("history_qry_list", 0), ("history_type_list", 0), ("history_time_list", 1)):
        same_length(rows, name, "history_wid_list", more, path)
    known = rows["history_type_list"].list.eval(~pl.element().is_in(ACTIONS)).list.any()
    needs = f"actions among {', '.join(ACTIONS)}"
    refuse(known.fill_null(False), rows, "history_type_list", needs, path)
    rows = numbers(rows, "history_time_list", path)
    since = pl.col("history_time_list").list
    events = (
        rows.with_columns(since.slice(1).list.eval(pl.element().reverse().cum_sum().reverse()))
        .select(
            "row",
            pl.col("history_qry_list").alias("query"),
            pl.col("history_wid_list").alias("item_id"),
            pl.col("history_type_list").alias("action"),
            pl.col("history_time_list").alias("before"),
        )
        .explode("query", "item_id", "action", "before")
    )
    asked = pl.col("query") != "-1"
    goes_on = asked & (pl.col("query") == pl.col("query").shift(1)).fill_null(False)
    step = (~goes_on).cast(pl.Int64).cum_sum().over("row")
    events = events.with_columns(step.alias("step"))
    return events.select(
        "row",
        "step",
        pl.col("before").first().over("row", "step"),
        pl.format("row-{}-{}", "row", "step").alias("request_id"),
        pl.when(asked).then(words("query")).alias("query"),
        "item_id",
        pl.lit(True).alias("clicked"),
        (pl.col("action") == "ORD").alias("purchased"),
    )


def words(name: str) -> pl.Expr:
    return pl.col(name).str.replace_all(WORD, " ", literal=True)


def requests_of(earlier: pl.DataFrame) -> pl.DataFrame:
    return earlier.unique("request_id", keep="first", maintain_order=True).select(
        "request_id",
        pl.format("user-{}", "row").alias("user_id"),
        "query",
        pl.when(pl.col("query").is_null())
        .then(pl.lit("browse"))
        .otherwise(pl.lit("search"))
        .alias("source"),
        pl.lit("W1").alias("window"),
        "before",
        "row",
        "step",
    )


def last_searches(rows: pl.DataFrame) -> pl.DataFrame:
    """The searches with lists; their order is that of W2a, W2b and W3."""
    place = (hash_ids(rows["row"].to_numpy(), 0) % np.uint64(8)).astype(np.int64)
    return rows.select(
        pl.format("last-{}", "row").alias("request_id"),
        pl.format("user-{}", "row").alias("user_id"),
        words("query"),
        pl.lit("search").alias("source"),
        pl.Series("window", np.array(EIGHTHS, dtype=object)[place].tolist(), pl.String),
        pl.Series("before", -1.0 - place),
        "row",
        pl.lit(0, dtype=pl.Int64).alias("step"),
    )


def items_of(products: pl.DataFrame, exposures: pl.DataFrame) -> pl.DataFrame:
    """The products, then those without metadata that somebody was shown or acted on."""
    named = products.select(
        pl.col("wid").alias("item_id"),
        words("name").alias("title"),
        words("brand_name").alias("brand"),
        pl.concat_list(f"cate_id_{level}" for level in range(1, 5))
        .list.drop_nulls()
        .alias("category"),
        pl.concat_list(pl.format("shop={}", "shop_id")).list.drop_nulls().alias("attributes"),
        pl.concat_str([words(name) for name in NAMES], separator=" ", ignore_nulls=True).alias(
            "description"
        ),
    )
    return with_unlisted(named, exposures)
