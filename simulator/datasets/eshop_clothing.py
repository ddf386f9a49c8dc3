"""E-shop clothing 2008: clicks in a shop for maternity clothes; see `eshop_clothing.toml`."""

from __future__ import annotations

import math
import re
from pathlib import Path

import polars as pl

from ...log import Log, assign_windows
from ._raw import find, need, parse, read_csv, refuse
from ._source import describe

NAMES = ("e-shop_clothing_2008.csv.gz", "e-shop_clothing_2008.csv", "e-shop clothing 2008.csv")
WHERE = describe("eshop_clothing").home
COLUMNS = (
    "year", "month", "day", "order", "country", "session_id", "page_1_main_category",
    "page_2_clothing_model", "colour", "location", "model_photography", "price", "price_2", "page",
)  # fmt: skip
CATEGORY = ("trousers", "skirts", "blouses", "sale")
COLOUR = (
    "beige", "black", "blue", "brown", "burgundy", "gray", "green", "navy blue", "of many colors",
    "olive", "pink", "red", "violet", "white",
)  # fmt: skip
LOCATION = (
    "top left",
    "top in the middle",
    "top right",
    "bottom left",
    "bottom in the middle",
    "bottom right",
)
PHOTOGRAPHY = ("en face", "profile")
DEARER = ("yes", "no")
COUNTRY = (
    "Australia", "Austria", "Belgium", "British Virgin Islands", "Cayman Islands",
    "Christmas Island", "Croatia", "Cyprus", "Czech Republic", "Denmark", "Estonia", "unidentified",
    "Faroe Islands", "Finland", "France", "Germany", "Greece", "Hungary", "Iceland", "India",
    "Ireland", "Italy", "Latvia", "Lithuania", "Luxembourg", "Mexico", "Netherlands", "Norway",
    "Poland", "Portugal", "Romania", "Russia", "San Marino", "Slovakia", "Slovenia", "Spain",
    "Sweden", "Switzerland", "Ukraine", "United Arab Emirates", "United Kingdom", "USA",
    "biz (*.biz)", "com (*.com)", "int (*.int)", "net (*.net)", "org (*.org)",
)  # fmt: skip
CODES = {
    "country": COUNTRY, "page_1_main_category": CATEGORY, "colour": COLOUR, "location": LOCATION,
    "model_photography": PHOTOGRAPHY, "price_2": DEARER,
}  # fmt: skip


def load(root: Path | str) -> Log:
    """The log of the shop's file in `root`; raises KarmafunnelError for a missing, truncated or
    wrong file.
    """
    path = find(root, NAMES, WHERE)
    clicks = read(path)
    model = pl.col("page_2_clothing_model").alias("item_id")
    first = clicks.group_by(model, maintain_order=True).first()
    attributes = {
        "colour": "colour", "location": "location", "photography": "model_photography",
        "page": "page",
        "above the category's mean price": "price_2",
    }  # fmt: skip
    named = [pl.format(key + "={}", pl.col(name)) for key, name in attributes.items()]
    items = first.select(
        "item_id",
        pl.concat_list("page_1_main_category").alias("category"),
        "price",
        pl.concat_list(*named).alias("attributes"),
    )
    items = items.sort("item_id")
    clicks = clicks.sort("ts", "row")
    requests = clicks.select(
        "request_id",
        pl.col("session_id").alias("user_id"),
        "ts",
        "session_id",
        pl.lit("browse").alias("source"),
        pl.concat_list(pl.format("country={}", "country")).alias("context"),
        assign_windows(
            clicks["ts"].dt.truncate("1d"), pl.Series([True]).new_from_index(0, clicks.height)
        ),
    )
    exposures = clicks.select(
        "request_id",
        pl.col("page_2_clothing_model").alias("item_id"),
        pl.lit(True).alias("clicked"),
        pl.col("price").alias("price_shown"),
    )
    meta = {
        "currency": "USD",
        "source": "UCI e-shop clothing 2008 (M. Lapczynski, S. Bialowas, 2013), "
        f"{path.name}; {WHERE}",
        "time": "clock",
        "scenario": ["browse"],
        "label": "click",
        "catalogue": "seen",
        "has": dict.fromkeys(["price", "clicks"], True),
        "set_aside": {},
    }
    return Log.make(items, requests, exposures, meta)


def read(path: Path) -> pl.DataFrame:
    """Clicks in the file's order, codes replaced by their names (data_description.txt), with `row`,
    `ts` and `request_id`.
    """
    frame = read_csv(path, ())
    if frame.width == 1:
        frame = read_csv(path, (), ";")
    frame = frame.rename(lambda name: re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"))
    need(frame, COLUMNS, path)
    whole = dict.fromkeys(["year", "month", "day", "order", *CODES], pl.Int32)
    frame = parse(
        frame,
        whole
        | {"price": pl.Float64}
        | dict.fromkeys(["session_id", "page_2_clothing_model", "page"], pl.String),
        path,
        {column: (1, len(names)) for column, names in CODES.items()}
        | {
            "year": (1971, 2200),
            "month": (1, 12),
            "day": (1, 31),
            "order": (1, 86_399),
            "price": (0, math.inf),
        },
    )
    for column, names in CODES.items():
        name = pl.col(column).replace_strict(dict(enumerate(names, 1)), return_dtype=pl.String)
        frame = frame.with_columns(name)
    twice = ~frame.select(pl.struct("session_id", "order").is_first_distinct()).to_series()
    refuse(twice, frame, "order", "one click for each place in a session", path)
    written = pl.format("{}-{}-{}", "year", "month", "day")
    day = written.str.to_datetime("%Y-%m-%d", strict=False, time_unit="ms")
    ts = frame.select(day.dt.replace_time_zone("UTC") + pl.duration(seconds="order"))
    refuse(ts.to_series().is_null(), frame, "day", "a day of its month", path)
    return frame.with_row_index("row").with_columns(
        ts.to_series().alias("ts"), pl.format("{}-{}", "session_id", "order").alias("request_id")
    )
