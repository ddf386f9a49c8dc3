"""Complete Journey: grocery baskets; see `complete_journey.toml`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ...errors import KarmafunnelError
from ...files import read_table
from ...log import Log
from ._raw import find, need, once, parse, reading
from ._source import describe

WHERE = describe("complete_journey").home
LINES = {
    "household_id": pl.String,
    "store_id": pl.String,
    "basket_id": pl.String,
    "product_id": pl.String,
    "quantity": pl.Int64,
    "sales_value": pl.Float64,
    "retail_disc": pl.Float64,
    "coupon_match_disc": pl.Float64,
}
PRODUCTS = ("product_id", "department", "brand", "product_category", "product_type", "package_size")
NO_PRODUCTS = ("FUEL", "COUPON", "COUPON/MISC ITEMS")  # as department or category
MOST = 2**31 - 1  # units, and dollars


def load(root: Path | str) -> Log:
    """The log of the package's tables in `root`; raises KarmafunnelError for a missing, truncated
    or wrong file.
    """
    path = find(root, ["transactions.parquet"], WHERE)
    lines = table(path, (*LINES, "transaction_timestamp"))
    money = dict.fromkeys(["sales_value", "retail_disc", "coupon_match_disc"], (0.0, float(MOST)))
    lines = parse(lines, LINES, path, money | {"quantity": (0, MOST)})
    if not isinstance(lines["transaction_timestamp"].dtype, pl.Datetime):
        raise KarmafunnelError(
            path,
            what="column 'transaction_timestamp'",
            needs="times",
            found=lines["transaction_timestamp"].dtype,
        )
    products_path = find(root, ["products.parquet"], WHERE)
    products = parse(
        table(products_path, PRODUCTS), {"product_id": pl.String}, products_path
    ).with_columns(pl.col(PRODUCTS[1:]).cast(pl.String))
    once(products, "product_id", products_path)
    excluded = pl.any_horizontal(
        pl.col("department", "product_category").is_in(NO_PRODUCTS).fill_null(False)
    )
    no_product = products.filter(excluded).select("product_id")
    kept = lines.filter(pl.col("quantity") > 0)
    empty = lines.height - kept.height
    goods = kept.join(no_product, on="product_id", how="anti", maintain_order="left")
    fuel = kept.height - goods.height
    goods = goods.join(products, on="product_id", how="semi", maintain_order="left")
    units = pl.col("quantity")
    received = pl.col("sales_value")
    shelf = received + pl.col("retail_disc") + pl.col("coupon_match_disc")
    ts = pl.col("transaction_timestamp").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
    bought = (
        goods.with_row_index("row")
        .group_by("basket_id", "product_id", maintain_order=True)
        .agg(
            pl.col("row", "household_id", "store_id").first(),
            ts.first().alias("ts"),
            (received.sum() / units.sum()).alias("price_paid"),
            (shelf.sum() / units.sum()).alias("price_shown"),
            units.sum().cast(pl.Int32),
        )
    )
    baskets = bought.group_by("basket_id", maintain_order=True).agg(
        pl.col("row", "household_id", "store_id", "ts").first()
    )
    requests = baskets.sort("ts", "row").select(
        pl.col("basket_id").alias("request_id"),
        pl.col("household_id").alias("user_id"),
        "ts",
        pl.lit("basket").alias("source"),
        pl.concat_list(pl.format("store={}", "store_id")).alias("context"),
    )
    exposures = bought.select(
        pl.col("basket_id").alias("request_id"),
        pl.col("product_id").alias("item_id"),
        pl.lit(True).alias("purchased"),
        "price_shown",
        "price_paid",
        "quantity",
    )
    meta = {
        "currency": "USD",
        "source": f"Complete Journey, {path.name}; {WHERE}",
        "time": "clock",
        "scenario": ["basket"],
        "label": "purchase",
        "catalogue": "seen",
        "has": dict.fromkeys(["text", "price", "purchases", "users"], True),
        "set_aside": {
            "lines without units": empty,
            "lines of fuel and coupons": fuel,
            "lines of products that are not described": kept.height - fuel - goods.height,
        },
        "notes": {
            "lines added to another of the same product and basket": goods.height - bought.height,
            "money received": round(float(goods["sales_value"].sum()), 2),
        },
    }
    return Log.make(items_of(products, bought), requests, exposures, meta)


def table(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    with reading(path):
        frame = read_table(path)
    need(frame, columns, path)
    return frame


def items_of(products: pl.DataFrame, bought: pl.DataFrame) -> pl.DataFrame:
    """The products that were bought, with title, brand, and category from coarse to fine."""
    seen = bought.select("product_id").unique(maintain_order=True)
    known = seen.join(products, on="product_id", how="left", maintain_order="left")
    title = pl.concat_str("product_type", "package_size", separator=", ", ignore_nulls=True)
    category = pl.concat_list("department", "product_category", "product_type").list.drop_nulls()
    return known.select(
        pl.col("product_id").alias("item_id"),
        pl.when(pl.col("product_type").is_not_null()).then(title).alias("title"),
        "brand",
        pl.when(category.list.len() > 0).then(category).alias("category"),
    ).sort("item_id")
