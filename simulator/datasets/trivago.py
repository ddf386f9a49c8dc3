"""trivago: sessions of a hotel search site; see `trivago.toml`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ...errors import KarmafunnelError
from ...files import read_table
from ...log import Log
from ._raw import find, need, once, parse, read_csv, reading
from ._source import describe

NAMES = ("trivago_val_100k.parquet", "train.csv", "train.csv.gz")
WHERE = describe("trivago").home
COLUMNS = (
    "user_id", "session_id", "timestamp", "step", "action_type", "reference", "platform", "city",
    "device",
    "current_filters", "impressions", "prices",
)  # fmt: skip
CLICK_OUT = "clickout item"
YEAR = 365 * 86_400  # seconds
ITEM_EVENTS = (
    CLICK_OUT, "interaction item image", "interaction item info", "interaction item deals",
    "interaction item rating", "search for item",
)  # fmt: skip


def load(root: Path | str) -> Log:
    """The log of trivago's files in `root`; raises KarmafunnelError for a missing, truncated or
    wrong file.
    """
    path = find(root, NAMES, WHERE)
    events = read(path)
    click_out = pl.col("action_type") == CLICK_OUT
    withheld = click_out & pl.col("reference").is_null()
    set_aside = {"click-outs whose hotel is withheld": events.filter(withheld).height}
    events = events.filter(~withheld)
    every_place = lists(events, path)
    shown = every_place.unique(["request_id", "item_id"], keep="first", maintain_order=True)
    doubled = every_place.height - shown.height
    served = shown.filter("clicked").select("request_id", pl.lit(True).alias("served"))
    events = events.join(served, on="request_id", how="left", maintain_order="left")
    events = events.with_columns(pl.col("served").fill_null(False))
    shown = shown.join(served, on="request_id", how="semi", maintain_order="left")
    of_items = events.filter(~pl.col("served"), pl.col("action_type").is_in(ITEM_EVENTS))
    named = of_items.filter(pl.col("reference").str.contains(r"^\d+$"))
    outside = of_items.filter(click_out)
    unlisted = outside.filter(pl.col("impressions").is_null()).height
    set_aside |= {
        "places of a hotel that stands twice in one list": doubled,
        "click-outs without a list (kept as history)": unlisted,
        "click-outs whose hotel is not in the list shown (kept as history)": outside.height
        - unlisted,
        "item events that name no hotel (kept without exposure)": of_items.height - named.height,
    }
    viewed = named.select(
        "request_id", pl.col("reference").alias("item_id"), pl.lit(True).alias("clicked")
    )
    exposures = pl.concat([shown, viewed], how="diagonal")
    places = exposures.join(
        events.select("request_id", "city", "ts"), on="request_id", maintain_order="left"
    )
    items = (
        places.select("item_id", "city")
        .unique()
        .sort("item_id", "city")
        .group_by("item_id", maintain_order=True)
        .agg(pl.format("city={}", "city").alias("attributes"))
    )
    items, has_properties = with_properties(items, Path(root))
    meta = {
        "currency": "EUR",
        "source": f"RecSys Challenge 2019 (trivago), {path.name}; {WHERE}",
        "time": "clock",
        "scenario": ["search"],
        "label": "click",
        "catalogue": "seen",
        "has": dict.fromkeys(["query", "price", "exposures", "clicks", "users", "filters"], True),
        "lacks": [
            "hotel names, brands, categories, images" + ("" if has_properties else ", properties")
        ],
        "set_aside": set_aside,
        "notes": {
            "hotels clicked that were known before, in this city only from now on": newly_placed(
                places
            )
        },
    }
    return Log.make(items, requests_of(events), exposures, meta)


def read(path: Path) -> pl.DataFrame:
    """Events in the file's order: the published columns, `ts` and a unique `request_id`.

    The id is session and step, and "/2" where a session starts its steps again.
    """
    if path.suffix == ".parquet":
        with reading(path):
            frame = read_table(path)
        need(frame, COLUMNS, path)
    else:
        frame = read_csv(path, COLUMNS)
    text = dict.fromkeys(
        ["user_id", "session_id", "action_type", "platform", "city", "device"], pl.String
    )
    seconds = (YEAR, 230 * YEAR)  # 1971 to 2200; milliseconds lie beyond
    frame = parse(
        frame,
        text | {"timestamp": pl.Int64, "step": pl.Int64},
        path,
        {"timestamp": seconds, "step": (0, 2**31 - 1)},
    )
    frame = frame.with_row_index("row", offset=1).with_columns(
        pl.col("reference", "current_filters", "impressions", "prices").cast(pl.String)
    )
    nth = pl.int_range(pl.len()).over("session_id", "step")
    again = pl.when(nth > 0).then(pl.format("/{}", nth + 1)).otherwise(pl.lit(""))
    return frame.with_columns(
        pl.from_epoch(pl.col("timestamp"), time_unit="s").dt.replace_time_zone("UTC").alias("ts"),
        pl.concat_str(pl.format("{}-{}", "session_id", "step"), again).alias("request_id"),
    )


def lists(events: pl.DataFrame, path: Path) -> pl.DataFrame:
    """One row a hotel shown: request_id, item_id, position, price_shown, clicked; raises
    KarmafunnelError where prices do not fit the list.
    """
    outs = events.filter((pl.col("action_type") == CLICK_OUT) & pl.col("impressions").is_not_null())
    outs = outs.select(
        "row",
        "request_id",
        "reference",
        pl.col("impressions").str.split("|"),
        pl.col("prices").str.split("|"),
    )
    wrong = outs.filter(
        pl.col("prices").is_null()
        | (pl.col("prices").list.len() != pl.col("impressions").list.len())
    )
    if wrong.height:
        row, request, _, items, prices = wrong.row(0)
        needed = f"column 'prices' needs one price for each of its {len(items)} impressions"
        raise KarmafunnelError(
            f"{path}: row {row}: click-out {request}: {needed}, found {len(prices or [])}"
        )
    outs = outs.with_columns(
        pl.int_ranges(1, pl.col("impressions").list.len() + 1).alias("position")
    )
    rows = outs.explode("impressions", "prices", "position")
    price = pl.col("prices").cast(pl.Float64, strict=False)
    rows = rows.with_columns(price.alias("price_shown"))
    fine = pl.col("price_shown").is_finite() & (pl.col("price_shown") >= 0)
    wrong = rows.filter(~fine.fill_null(False))
    if wrong.height:
        row, request, found = wrong.select("row", "request_id", "prices").row(0)
        raise KarmafunnelError(
            f"{path}: row {row}: click-out {request}",
            what="column 'prices'",
            needs="finite numbers of 0 or more",
            found=repr(found),
        )
    return rows.select(
        "request_id",
        pl.col("impressions").alias("item_id"),
        "position",
        "price_shown",
        (pl.col("impressions") == pl.col("reference")).alias("clicked"),
    )


def newly_placed(places: pl.DataFrame) -> int:
    """How many clicked places of lists show a hotel seen earlier, but never earlier in this city.

    These are eligible only because a hotel has its cities from the start; `places`: item_id, city,
    ts, position, clicked.
    """
    first = places.with_columns(
        pl.col("ts").min().over("item_id").alias("first"),
        pl.col("ts").min().over("item_id", "city").alias("here"),
    )
    clicked = first.filter(pl.col("position").is_not_null(), pl.col("clicked"))
    return clicked.filter(pl.col("first") < pl.col("ts"), pl.col("here") == pl.col("ts")).height


def requests_of(events: pl.DataFrame) -> pl.DataFrame:
    """One request an event; a click-out with its list has source "search" and its city as a hard
    filter.
    """
    filters = pl.col("current_filters").str.split("|").fill_null([])
    about = pl.concat_list(
        *[pl.format(name + "={}", pl.col(name)) for name in ("city", "platform", "device")]
    )
    reference = pl.when(~pl.col("action_type").is_in(ITEM_EVENTS)).then(pl.col("reference"))
    return events.select(
        "request_id",
        "user_id",
        "ts",
        "session_id",
        pl.when("served")
        .then(pl.concat_list("city", filters).list.join(", "))
        .otherwise(reference)
        .alias("query"),
        pl.when("served").then(pl.concat_list(pl.format("city={}", "city"))).alias("filters"),
        about.list.concat(filters.list.eval(pl.format("filter={}", pl.element()))).alias("context"),
        pl.when("served").then(pl.lit("search")).otherwise(pl.col("action_type")).alias("source"),
        pl.col("step").cast(pl.Int32),
    )


def with_properties(items: pl.DataFrame, root: Path) -> tuple[pl.DataFrame, bool]:
    """The items with the properties of the challenge's `item_metadata.csv` among their attributes,
    where that file lies in `root`.
    """
    path = root / "item_metadata.csv"
    if not path.is_file():
        return items, False
    about = parse(read_csv(path, ("item_id", "properties")), {"item_id": pl.String}, path)
    once(about, "item_id", path)
    properties = (
        pl.col("properties")
        .str.split("|")
        .fill_null([])
        .list.eval(pl.format("property={}", pl.element()))
    )
    items = items.join(
        about.select("item_id", properties), on="item_id", how="left", maintain_order="left"
    )
    both = pl.col("attributes").list.concat(pl.col("properties").fill_null([]))
    return items.select("item_id", both.alias("attributes")), True
