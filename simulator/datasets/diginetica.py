"""Diginetica: searches and category pages of a shop; see `diginetica.toml`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ...log import Log, assign_windows
from ._raw import find, once, parse, read_csv, refuse, there, with_unlisted
from ._source import describe

WHERE = describe("diginetica").home
EVENT = ("sessionId", "userId", "timeframe", "eventdate")
QUERIES = (*EVENT, "queryId", "searchstring.tokens", "categoryId", "items", "is.test")
VIEWS = (*EVENT, "itemId")
PURCHASES = (*EVENT, "ordernumber", "itemId")
CLICKS = ("queryId", "timeframe", "itemId")
PRODUCTS = ("itemId", "pricelog2", "product.name.tokens")
DAY = 86_400_000  # ms
MISSING = ("NA", "")
SERVED = ["search", "category"]


def load(root: Path | str) -> Log:
    """The log of Diginetica's files in `root`; raises KarmafunnelError for a missing, truncated or
    wrong file.
    """
    root = Path(root)
    items = read_items(root)
    queries, withheld = read_queries(root)
    views = read_events(root, "train-item-views.csv", VIEWS)
    purchases = read_events(root, "train-purchases.csv", PURCHASES)
    shown, set_aside = lists(queries, read_clicks(root))
    shown, orders = bought(shown, queries, purchases.unique(maintain_order=True))
    views = views.with_row_index("row").with_columns(
        pl.format("view-{}", "row").alias("request_id"), pl.lit("view").alias("source")
    )
    events = pl.concat([queries.drop("items"), views, orders], how="diagonal")
    events, unfit = timed(events)
    requests = events.unique("request_id", keep="first", maintain_order=True)
    served = requests["source"].is_in(SERVED)
    requests = requests.with_columns(assign_windows(requests["ts"].dt.truncate("1d"), served))
    acted = [
        views.select("request_id", "item_id", pl.lit(True).alias("clicked")),
        orders.select("request_id", "item_id", pl.lit(True).alias("purchased")).unique(
            maintain_order=True
        ),
    ]
    prices = items.select("item_id", pl.col("price").alias("price_shown"))
    exposures = pl.concat([shown, *acted], how="diagonal")
    exposures = exposures.join(prices, on="item_id", how="left", maintain_order="left")
    described, items = items.height, with_unlisted(items, exposures)
    meta = {
        "source": f"CIKM Cup 2016 Track 2 (DIGINETICA), train-queries.csv; {WHERE}",
        "time": "clock",
        "scenario": SERVED if set(SERVED) <= set(requests["source"]) else ["search"],
        "label": "click",
        "catalogue": "published",
        "has": there("diginetica", items=items, requests=requests, exposures=exposures),
        "set_aside": {"test lists, whose clicks are withheld": withheld} | set_aside,
        "notes": {
            "purchases outside every list of their session": orders.height,
            "sessions whose dates and gaps do not fit": unfit,
            "items without metadata": items.height - described,
        },
    }
    columns = ("request_id", "user_id", "ts", "query", "context", "session_id", "source", "window")
    return Log.make(items, requests.select(columns), exposures, meta)


def read_items(root: Path) -> pl.DataFrame:
    """The products with their price and category."""
    path = find(root, ["products.csv"], WHERE)
    frame = read_csv(path, PRODUCTS, ";")
    frame = parse(
        frame, {"itemId": pl.String, "pricelog2": pl.Float64}, path, {"pricelog2": (0, 64)}
    )
    once(frame, "itemId", path)
    path = find(root, ["product-categories.csv", "product-categories.csv.gz"], WHERE)
    category = read_categories(path)
    return frame.join(category, on="itemId", how="left", maintain_order="left").select(
        pl.col("itemId").alias("item_id"),
        words("product.name.tokens").alias("title"),
        "category",
        (2 ** pl.col("pricelog2") - 1).alias("price"),
    )


def read_categories(path: Path) -> pl.DataFrame:
    """Categories of each product: itemId, category (list)."""
    names = ("itemId", "categoryId")
    frame = parse(read_csv(path, names, ";"), dict.fromkeys(names, pl.String), path)
    return frame.group_by("itemId", maintain_order=True).agg(pl.col("categoryId").alias("category"))


def words(name: str) -> pl.Expr:
    """Words of a text as the publisher numbers them, with blanks between; null for none."""
    text = pl.col(name)
    return pl.when(~text.is_in(MISSING)).then(text.str.replace_all(",", " ", literal=True))


def read_events(root: Path, name: str, columns: tuple[str, ...]) -> pl.DataFrame:
    """The rows of a file of events: session_id, user_id, timeframe (ms), day, item_id if it names
    one, and the published columns.
    """
    path = find(root, [name], WHERE)
    ids = [c for c in columns if c in ("sessionId", "itemId", "queryId", "ordernumber", "userId")]
    types = dict.fromkeys([*ids, "eventdate"], pl.String) | {"timeframe": pl.Int64}
    frame = parse(read_csv(path, columns, ";"), types, path, {"timeframe": (0, 2**53)})
    day = frame["eventdate"].str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("ms"))
    refuse(day.is_null(), frame, "eventdate", "a date such as 2016-05-09", path)
    known = ~pl.col("userId").is_in(MISSING)
    made = frame.with_columns(
        pl.col("sessionId").alias("session_id"),
        pl.when(known)
        .then("userId")
        .otherwise(pl.format("session {}", "sessionId"))
        .alias("user_id"),
        day.dt.epoch("ms").alias("day"),
    )
    return made.rename({"itemId": "item_id"}) if "itemId" in columns else made


def read_queries(root: Path) -> tuple[pl.DataFrame, int]:
    """The lists whose clicks are known (request_id, query, context, source, `items` as a list, and
    what `read_events` gives), and the number of the others.
    """
    path = find(root, ["train-queries.csv"], WHERE)
    frame = read_events(root, path.name, QUERIES)
    once(frame, "queryId", path)
    frame = parse(frame, {"items": pl.String}, path)
    hidden = frame["is.test"].str.to_uppercase()
    refuse(
        ~hidden.is_in(["TRUE", "FALSE"]).fill_null(False), frame, "is.test", "TRUE or FALSE", path
    )
    asked = words("searchstring.tokens")
    page = ~pl.col("categoryId").is_in([*MISSING, "0"]).fill_null(True)
    known = frame.filter(hidden == "FALSE").with_columns(
        pl.format("list-{}", "queryId").alias("request_id"),
        asked.alias("query"),
        pl.when(page).then(pl.concat_list(pl.format("category={}", "categoryId"))).alias("context"),
        pl.when(asked.is_not_null())
        .then(pl.lit("search"))
        .otherwise(pl.lit("category"))
        .alias("source"),
        pl.col("items").str.split(","),
    )
    return known, frame.height - known.height


def read_clicks(root: Path) -> pl.DataFrame:
    path = find(root, ["train-clicks.csv"], WHERE)
    types = {"queryId": pl.String, "timeframe": pl.Int64, "itemId": pl.String}
    return parse(read_csv(path, CLICKS, ";"), types, path).rename({"itemId": "item_id"})


def lists(queries: pl.DataFrame, clicks: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """One row a product shown, and what is left out."""
    every = queries.select("request_id", pl.col("items").alias("item_id")).explode("item_id")
    shown = every.unique(maintain_order=True)
    acted = clicks.select(pl.format("list-{}", "queryId").alias("request_id"), "item_id").unique()
    known = acted.join(queries, on="request_id", how="semi")
    outside = known.join(shown, on=["request_id", "item_id"], how="anti").height
    shown = shown.join(
        known.with_columns(pl.lit(True).alias("clicked")),
        on=["request_id", "item_id"],
        how="left",
        maintain_order="left",
    ).with_columns(
        pl.col("clicked").fill_null(False),
        pl.int_range(1, pl.len() + 1).over("request_id").alias("position"),
    )
    return shown, {
        "products a second time in one list": every.height - shown.height,
        "products clicked that their list does not hold": outside,
        "clicks of lists that are not there": acted.height - known.height,
    }


def bought(
    shown: pl.DataFrame, queries: pl.DataFrame, purchases: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The products shown with `purchased`; the purchases that no list of their session shows."""
    purchases = purchases.with_row_index("purchase").with_columns(
        pl.format("order-{}-{}", "session_id", "ordernumber").alias("request_id"),
        pl.lit("order").alias("source"),
    )
    at = queries.select("request_id", "session_id", pl.col("timeframe").alias("shown_at"))
    places = shown.select("request_id", "item_id").join(at, on="request_id")
    wanted = purchases.select("purchase", "session_id", "item_id", "timeframe")
    found = (
        wanted.join(places, on=["session_id", "item_id"])
        .filter(pl.col("shown_at") <= pl.col("timeframe"))
        .sort("purchase", "shown_at", "request_id")
        .unique("purchase", keep="last", maintain_order=True)
    )
    marks = found.select("request_id", "item_id", pl.lit(True).alias("purchased")).unique()
    shown = shown.join(marks, on=["request_id", "item_id"], how="left", maintain_order="left")
    orders = purchases.join(found, on="purchase", how="anti", maintain_order="left")
    return shown.with_columns(pl.col("purchased").fill_null(False)), orders


def timed(events: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The events in order of `ts`, and the number of sessions whose dates and gaps do not fit.

    A session starts at the earliest time at which each of its events falls on its date; where there
    is none, its first event is at the start of its date.
    """
    earliest = pl.col("day") - pl.col("timeframe")
    sessions = events.group_by("session_id").agg(
        earliest.max().alias("from"),
        (earliest.min() + DAY).alias("to"),
        earliest.sort_by("timeframe", "day").first().alias("first"),
    )
    fits = pl.col("from") < pl.col("to")
    start = sessions.select(
        "session_id", pl.when(fits).then("from").otherwise("first").alias("start")
    )
    ts = pl.from_epoch(pl.col("start") + pl.col("timeframe"), time_unit="ms")
    events = events.join(start, on="session_id", maintain_order="left").with_columns(
        ts.dt.replace_time_zone("UTC").alias("ts")
    )
    return events.sort("ts", "session_id", maintain_order=True), sessions.filter(~fits).height
