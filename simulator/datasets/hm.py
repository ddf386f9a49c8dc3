"""H&M: purchases of fashion; see `hm.toml`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ...files import write_parquet
from ._raw import find, once, parse, read_csv, streamed
from ._source import describe

WHERE = describe("hm").home
LINES = {"user": "customer_id", "item": "article_id", "time": "t_dat", "price": "price"}
CATEGORY = ("index_group_name", "product_group_name", "product_type_name")


def tables(root: Path | str, work: Path) -> dict[Path, Path]:
    """The lines and the articles in `root`, with the columns of the map."""
    sold = find(root, ["transactions_train.csv", "transactions_train.csv.gz"], WHERE)
    lines = streamed(sold, LINES, work / "lines.parquet", also=[pl.lit(1).alias("quantity")])
    path = find(root, ["articles.csv", "articles.csv.gz"], WHERE)
    articles = read_csv(path, ("article_id", "prod_name", "detail_desc", *CATEGORY))
    articles = parse(
        articles, dict.fromkeys(["article_id", "prod_name", *CATEGORY], pl.String), path
    )
    once(articles, "article_id", path)
    articles = articles.select(
        pl.col("article_id").alias("item"),
        pl.col("prod_name").alias("title"),
        pl.col("detail_desc").alias("description"),
        pl.concat_list(*CATEGORY).list.drop_nulls().alias("category"),
    )
    return {lines: sold, write_parquet(work / "articles.parquet", articles): path}
