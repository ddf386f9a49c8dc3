"""RecFlow: a video feed with the cuts of every stage of production; see `recflow.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
from pyarrow import feather

from ...errors import KarmafunnelError
from ...layout import YEAR
from ...log import Log, assign_windows
from ._raw import need, parse, reading, refuse, there
from ._source import describe

WHERE = describe("recflow").home
STAGES = ("retrieval", "prerank", "coarse", "rank", "rerank", "shown")
# the last stage that passed a candidate on, by the publisher's flags
PASSED = {
    "prerank_neg": "retrieval",
    "coarse_neg": "prerank",
    "rank_neg": "coarse",
    "rank_pos": "rank",
    "rerank_neg": "rank",
    "rerank_pos": "rerank",
    "realshow": "shown",
}
IDS = ("request_id", "user_id", "video_id", "author_id")
ABOUT = ("category_level_one", "category_level_two", "upload_type")
CONTEXT = ("age", "gender", "province", "device_id")
TIMES = ("request_timestamp", "upload_timestamp")
NEEDED = (*IDS, *ABOUT, *TIMES, *PASSED, "rerank_index", "effective_view")


def load(root: Path | str) -> Log:
    """The log of the days in `root`; raises KarmafunnelError for a missing, truncated or wrong
    file.
    """
    days = sorted(Path(root).glob("*.feather")) or sorted(Path(root).glob("all_stage/*.feather"))
    if not days:
        path, there_is = Path(root), "no such folder"
        if path.is_dir():
            there_is = ", ".join(sorted(one.name for one in path.iterdir())) or "an empty folder"
        raise KarmafunnelError(
            path / "2024-01-13.feather",
            needs=f"days of the folder all_stage, such as 2024-01-13.feather (download: {WHERE})",
            found=there_is,
        )
    rows = pl.concat([read(day) for day in days])
    every = rows.height
    rows = furthest(rows)
    requests = requests_of(rows)
    place = pl.when(pl.col("stage") == "shown").then(pl.int_range(1, pl.len() + 1))
    exposures = rows.select(
        "request_id",
        "item_id",
        place.over("request_id", "stage").alias("position"),
        pl.when(pl.col("stage") == "shown").then("viewed").alias("clicked"),
        "stage",
    )
    items = items_of(rows)
    meta = {
        "source": f"RecFlow (ICLR 2025), {', '.join(day.name for day in days)}; {WHERE}",
        "time": "clock",
        "scenario": ["feed"],
        "label": "click",
        "catalogue": "seen",
        "has": there("recflow", items=items, requests=requests, exposures=exposures),
        "set_aside": {"a candidate's rows of earlier stages": every - rows.height},
        "stages": list(STAGES),
    }
    return Log.make(items, requests, exposures, meta)


def read(path: Path) -> pl.DataFrame:
    """The rows of one day: request_id, user_id, item_id, ts, stage, viewed, and what is known of
    request and video.
    """
    with reading(path):
        frame = pl.DataFrame(pl.from_arrow(feather.read_table(path, memory_map=False)))
    need(frame, NEEDED, path)
    types: dict[str, Any] = dict.fromkeys([*IDS, *ABOUT], pl.String)
    types |= dict.fromkeys([*TIMES, *PASSED], pl.Int64)
    limits = dict.fromkeys(PASSED, (0.0, 1.0)) | {"request_timestamp": (YEAR, 230 * YEAR)}
    frame = parse(frame, types, path, limits)
    stage: Any = pl.lit(None, dtype=pl.Int32)
    for flag, name in PASSED.items():
        at = pl.when(pl.col(flag) == 1).then(pl.lit(STAGES.index(name), dtype=pl.Int32))
        stage = pl.max_horizontal(stage, at)
    frame = frame.with_columns(stage.alias("at"))
    refuse(frame["at"].is_null(), frame, "prerank_neg", f"one of {', '.join(PASSED)} to be 1", path)
    viewed = frame["effective_view"].cast(pl.Float64, strict=False)
    bad = (frame["realshow"] == 1) & ~viewed.is_in([0.0, 1.0]).fill_null(False)
    refuse(bad, frame, "effective_view", "0 or 1 where the video was shown", path)
    context = [
        pl.when(pl.col(name).is_not_null()).then(pl.format(f"{name}={{}}", pl.col(name)))
        for name in CONTEXT
        if name in frame.columns
    ]
    about = pl.concat_list(context).list.drop_nulls() if context else pl.lit(None)
    return frame.select(
        "request_id",
        "user_id",
        pl.col("video_id").alias("item_id"),
        pl.from_epoch("request_timestamp", time_unit="ms").dt.replace_time_zone("UTC").alias("ts"),
        "at",
        pl.Series("viewed", viewed == 1),
        pl.col("rerank_index").cast(pl.Float64, strict=False),
        about.cast(pl.List(pl.String)).alias("context"),
        "author_id",
        *ABOUT,
        (pl.col("upload_timestamp") * 1000).alias("uploaded"),
    )


def furthest(rows: pl.DataFrame) -> pl.DataFrame:
    """One row a request and video, that of the furthest stage, with the stage's name; in order of
    time, what was shown in the order of re-ranking.
    """
    rows = rows.with_row_index("row").sort(
        "ts", "request_id", pl.col("at").neg(), "rerank_index", "row", nulls_last=True
    )
    rows = rows.unique(["request_id", "item_id"], keep="first", maintain_order=True)
    names = dict(enumerate(STAGES))
    return rows.with_columns(
        pl.col("at").replace_strict(names, return_dtype=pl.String).alias("stage")
    )


def requests_of(rows: pl.DataFrame) -> pl.DataFrame:
    first = rows.unique("request_id", keep="first", maintain_order=True)
    every = pl.repeat(True, first.height, eager=True)
    return first.select(
        "request_id",
        "user_id",
        "ts",
        "context",
        pl.lit("feed").alias("source"),
        assign_windows(first["ts"], every),
    )


def items_of(rows: pl.DataFrame) -> pl.DataFrame:
    """The videos; each is known from its upload on, at the latest from its first row."""
    first = rows.unique("item_id", keep="first", maintain_order=True)
    known = pl.col("ts").dt.epoch("ms")
    uploaded = pl.when(pl.col("uploaded") >= YEAR).then("uploaded")
    since = pl.from_epoch(pl.min_horizontal(known, uploaded), time_unit="ms")
    return first.select(
        "item_id",
        pl.concat_list("category_level_one", "category_level_two").alias("category"),
        pl.concat_list(
            pl.format("author={}", "author_id"), pl.format("upload_type={}", "upload_type")
        ).alias("attributes"),
        since.dt.replace_time_zone("UTC").alias("available_from"),
    )
