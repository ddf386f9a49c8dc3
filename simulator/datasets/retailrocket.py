"""RetailRocket: views, carts and transactions of a shop; see `retailrocket.toml`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ...log import Log
from ._raw import find, parse, read_csv, refuse
from ._source import describe

WHERE = describe("retailrocket").home
EVENTS = ("timestamp", "visitorid", "event", "itemid", "transactionid")
KINDS = ("view", "addtocart", "transaction")
PROPERTIES = ("item_properties_part1.csv", "item_properties_part2.csv")
YEAR = 365 * 86_400_000  # ms
GAP = 30 * 60_000  # ms of inactivity that end a session


def load(root: Path | str) -> Log:
    """The log of the shop's files in `root`; raises KarmafunnelError for a missing, truncated or
    wrong file.
    """
    root = Path(root)
    path = find(root, ["events.csv"], WHERE)
    events = read(path)
    bought = pl.col("event") == "transaction"
    request = (
        pl.when(bought & pl.col("transactionid").is_not_null())
        .then(pl.format("t{}", "transactionid"))
        .otherwise(pl.format("e{}", "row"))
    )
    rows = events.with_columns(request.alias("request_id")).sort("timestamp", "row")
    pause = pl.col("timestamp").diff().over("visitorid") > GAP
    number = pause.fill_null(False).cast(pl.Int64).cum_sum().over("visitorid")
    rows = rows.with_columns(pl.format("{}-{}", "visitorid", number).alias("session_id"))
    requests = rows.unique("request_id", keep="first", maintain_order=True).select(
        "request_id",
        pl.col("visitorid").alias("user_id"),
        pl.from_epoch("timestamp", time_unit="ms").dt.replace_time_zone("UTC").alias("ts"),
        "session_id",
        pl.col("event").alias("source"),
    )
    exposures = rows.unique(["request_id", "itemid"], keep="first", maintain_order=True)
    doubled = rows.height - exposures.height
    exposures = exposures.select(
        "request_id",
        pl.col("itemid").alias("item_id"),
        (~bought).alias("clicked"),
        bought.alias("purchased"),
    )
    items = exposures.select("item_id").unique().sort("item_id")
    items, lacks = with_categories(items, root)
    meta = {
        "currency": None,
        "source": f"RetailRocket, {path.name}; {WHERE}",
        "time": "clock",
        "scenario": list(KINDS),
        "label": "click",
        "catalogue": "seen",
        "has": dict.fromkeys(["clicks", "purchases", "users"], True),
        "lacks": lacks,
        "set_aside": {"lines of an item that stands twice in a transaction": doubled},
    }
    return Log.make(items, requests, exposures, meta)


def read(path: Path) -> pl.DataFrame:
    """Events in the file's order with their `row`."""
    frame = parse(
        read_csv(path, EVENTS),
        {"timestamp": pl.Int64} | dict.fromkeys(["visitorid", "event", "itemid"], pl.String),
        path,
        {"timestamp": (YEAR, 230 * YEAR)},
    )
    refuse(~frame["event"].is_in(KINDS), frame, "event", f"one of {', '.join(KINDS)}", path)
    return frame.with_row_index("row")


def with_categories(items: pl.DataFrame, root: Path) -> tuple[pl.DataFrame, list[str]]:
    """The items with their path of categories from coarse to fine, where the files are in `root`;
    and what is lacking where they are not.
    """
    parts = [root / name for name in PROPERTIES if (root / name).is_file()]
    tree_path = root / "category_tree.csv"
    if len(parts) < len(PROPERTIES) or not tree_path.is_file():
        return items, ["categories: files of properties or the tree are missing"]
    columns = ("timestamp", "itemid", "property", "value")
    given = []
    for path in parts:
        frame = read_csv(path, columns).filter(pl.col("property") == "categoryid")
        given.append(parse(frame, {"timestamp": pl.Int64}, path))
    tree = read_csv(tree_path, ("categoryid", "parentid"))
    above = dict(tree.select("categoryid", "parentid").iter_rows())
    first = (
        pl.concat(given)
        .sort("timestamp", maintain_order=True)
        .group_by(pl.col("itemid").alias("item_id"), maintain_order=True)
        .agg(pl.col("value").first())
    )
    paths = {category: path_to(category, above) for category in first["value"].unique()}
    named = pl.DataFrame(
        {"value": list(paths), "category": list(paths.values())},
        schema={"value": pl.String, "category": pl.List(pl.String)},
    )
    first = first.join(named, on="value", how="left")
    return items.join(
        first.select("item_id", "category"), on="item_id", how="left", maintain_order="left"
    ), []


def path_to(category: str, above: dict[str, str | None]) -> list[str]:
    """A category's path from the root of the tree, which may hold no circle."""
    path = [category]
    while (parent := above.get(path[-1])) and parent not in path:
        path.append(parent)
    return path[::-1]
