"""Open Bandit Dataset: single slots with the probability of what they show; see
`open_bandit.toml`.
"""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from ...log import Log, assign_windows
from ._raw import find, need, once, parse, read_csv, refuse, there
from ._source import describe

WHERE = describe("open_bandit").home
CAMPAIGNS = ("all.csv", "men.csv", "women.csv")
COLUMNS = ("timestamp", "item_id", "position", "click", "propensity_score")
SLOTS = 3
USER = re.compile(r"user_feature_\d+")
ITEM = re.compile(r"item_feature_\d+")
AFFINITY = "user-item_affinity_"  # and the number of the item


def load(root: Path | str) -> Log:
    """The log of one policy and campaign in `root`; raises KarmafunnelError for a missing,
    truncated or wrong file.
    """
    path = find(Path(root), CAMPAIGNS, WHERE)
    slots = read(path)
    items = read_items(find(Path(root), ["item_context.csv"], WHERE))
    unknown = ~slots["item_id"].is_in(items["item_id"].implode())
    refuse(unknown, slots, "item_id", "an item of item_context.csv", path)
    about = [name for name in slots.columns if USER.fullmatch(name)]
    context = [pl.format("slot={}", "position")]
    context += [pl.format(f"{name}={{}}", name) for name in about]
    served = slots.select(
        "request_id",
        pl.col("request_id").alias("user_id"),
        "ts",
        pl.concat_list(*context).list.drop_nulls().alias("context"),
        pl.lit("slot").alias("source"),
        pl.lit(1).alias("step"),
        "item_id",
        pl.lit(1).alias("place"),
        "clicked",
        "propensity",
    )
    before = earlier(slots)
    rows = pl.concat([served, before], how="diagonal").sort("ts", "step", maintain_order=True)
    requests = rows.unique("request_id", keep="first", maintain_order=True)
    requests = requests.with_columns(assign_windows(requests["ts"], requests["source"] == "slot"))
    exposures = rows.select(
        "request_id", "item_id", pl.col("place").alias("position"), "clicked", "propensity"
    )
    requests = requests.select("request_id", "user_id", "ts", "context", "source", "window")
    meta = {
        "source": f"Open Bandit Dataset (ZOZOTOWN), {path.name}; {WHERE}",
        "time": "clock",
        "scenario": ["slot"],
        "label": "click",
        "catalogue": "published",
        "has": there("open_bandit", items=items, requests=requests, exposures=exposures),
        "notes": {
            "least propensity": slots["propensity"].min(),
            "greatest propensity": slots["propensity"].max(),
            "requests with earlier clicks": before["request_id"].n_unique(),
        },
    }
    return Log.make(items, requests, exposures, meta)


def read(path: Path) -> pl.DataFrame:
    """The published rows with request_id, ts, clicked and propensity, and affinities as numbers."""
    frame = read_csv(path, COLUMNS)
    near = [name for name in frame.columns if name.startswith(AFFINITY)]
    need(frame, [f"{AFFINITY}0", "user_feature_0"], path)
    text = dict.fromkeys(["timestamp", "item_id"], pl.String)
    whole = dict.fromkeys(["position", "click"], pl.Int32)
    real = dict.fromkeys(["propensity_score", *near], pl.Float64)
    limits = {"position": (1, SLOTS), "click": (0, 1), "propensity_score": (0, 1)}
    frame = parse(frame, text | whole | real, path, limits)
    refuse(frame["propensity_score"] <= 0, frame, "propensity_score", "a number above 0", path)
    ts = frame["timestamp"].str.to_datetime("%Y-%m-%d %H:%M:%S%.f%z", time_unit="us", strict=False)
    refuse(
        ts.is_null(), frame, "timestamp", "a time such as 2019-11-24 00:03:13.442536+00:00", path
    )
    return frame.with_row_index("row", offset=1).with_columns(
        ts.dt.cast_time_unit("ms").alias("ts"),
        pl.col("row").cast(pl.String).alias("request_id"),
        (pl.col("click") == 1).alias("clicked"),
        pl.col("propensity_score").alias("propensity"),
    )


def read_items(path: Path) -> pl.DataFrame:
    """The pieces with their features as attributes."""
    frame = parse(read_csv(path, ["item_id", "item_feature_0"]), {"item_id": pl.String}, path)
    once(frame, "item_id", path)
    names = [name for name in frame.columns if ITEM.fullmatch(name)]
    refuse(frame[names[-1]].is_null(), frame, names[-1], "a value", path)
    features = pl.concat_list(pl.format(f"{name}={{}}", name) for name in names)
    return frame.select("item_id", features.list.drop_nulls().alias("attributes"))


def earlier(slots: pl.DataFrame) -> pl.DataFrame:
    """What the user of each slot had clicked before: requests a millisecond before it."""
    near = [name for name in slots.columns if name.startswith(AFFINITY)]
    counts = slots.select("request_id", "ts", *near).unpivot(near, index=["request_id", "ts"])
    clicked = counts.filter(pl.col("value") > 0)
    return clicked.select(
        pl.format("before {}", "request_id").alias("request_id"),
        pl.col("request_id").alias("user_id"),
        (pl.col("ts") - pl.duration(milliseconds=1)).alias("ts"),
        pl.lit("earlier clicks").alias("source"),
        pl.lit(0).alias("step"),
        pl.col("variable").str.strip_prefix(AFFINITY).alias("item_id"),
        pl.lit(True).alias("clicked"),
    )
