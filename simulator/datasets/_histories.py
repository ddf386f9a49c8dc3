"""Order-only logs from a publisher's (history, next item) rows: the training events are rebuilt
from the histories.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl

from ...errors import KarmafunnelError

SOURCE, EARLIER = "review", "earlier review"


def rebuild(
    valid: pl.DataFrame, test: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """Requests, exposures and notes of a log without timestamps.

    `valid` and `test`: user_id String, history List[String] (oldest first), item_id String; a
    user's rows in order. The history of a user's first row becomes training events (W1); every
    validation row is a request of W2 (users in the order of a hash, the last quarter W2b), every
    test row one of W3. An item that is also a later target of the user (a repeat purchase) may not
    stand in W1: from the first such event on, the user's events become "earlier review" requests at
    the start of W2, outside the scenario, so that no fit on W1 sees them and every history stays
    whole and in order.
    """
    quarter = valid.height // 4
    columns = ("user_id", "item_id", "history")
    early = pl.int_range(pl.len()) < valid.height - quarter
    window = pl.when(early).then(pl.lit("W2a")).otherwise(pl.lit("W2b"))
    tuned = scattered(valid.with_row_index("i")).select(
        *columns, pl.format("valid-{}", "i").alias("request_id"), window.alias("window")
    )
    tested = test.with_row_index("i").select(
        *columns, pl.format("test-{}", "i").alias("request_id"), pl.lit("W3").alias("window")
    )
    targets = pl.concat([tuned, tested])
    first = (
        targets.group_by("user_id", maintain_order=True)
        .agg(pl.col("history").first())
        .with_row_index("user")
    )
    events = (
        first.select(
            "user",
            "user_id",
            pl.col("history").alias("item_id"),
            pl.int_ranges(pl.col("history").list.len()).alias("k"),
        )
        .filter(pl.col("item_id").list.len() > 0)
        .explode("item_id", "k")
        .join(
            targets.select("user_id", "item_id", pl.lit(True).alias("target")).unique(),
            on=["user_id", "item_id"],
            how="left",
        )
        .sort("user", "k")
        .with_columns(pl.col("target").fill_null(False))
        .with_columns(pl.col("target").cum_max().over("user_id").alias("late"))
        .with_columns(pl.format("train-{}-{}", "user_id", "k").alias("request_id"))
        # round by round: every user's first event, then every user's second, ...
        .sort("late", "k", "user")
    )
    history = events.select(
        "request_id", "user_id", "item_id",
        pl.when("late").then(pl.lit(EARLIER)).otherwise(pl.lit(SOURCE)).alias("source"),
        pl.when("late").then(pl.lit("W2a")).otherwise(pl.lit("W1")).alias("window"),
    )  # fmt: skip
    served = targets.select(
        "request_id", "user_id", "item_id", pl.lit(SOURCE).alias("source"), "window"
    )
    rows = pl.concat([history, served])
    exposures = rows.select("request_id", "item_id", pl.lit(True).alias("purchased"))
    notes = {
        "training events rebuilt from histories": history.filter(pl.col("window") == "W1").height,
        "training events that are a later target of their user": int(events["target"].sum()),
        "training events moved to the start of W2 for that": int(events["late"].sum()),
        "validation and test rows": targets.height,
        "validation and test rows whose rebuilt history differs from the publisher's": differing(
            first, targets
        ),
    }
    return rows.drop("item_id"), exposures, notes


def differing(first: pl.DataFrame, targets: pl.DataFrame) -> int:
    """The number of rows whose history is not the end of the user's first history followed by the
    targets of the previous rows.
    """
    rows = targets.with_columns(pl.int_range(pl.len()).over("user_id").alias("nth"))
    all_targets = targets.group_by("user_id").agg(pl.col("item_id").alias("targets"))
    both = first.select("user_id", pl.col("history").alias("start")).join(all_targets, on="user_id")
    whole = rows.join(both, on="user_id", how="left").with_columns(
        pl.concat_list("start", "targets").alias("whole")
    )
    before = pl.col("whole").list.head(pl.col("start").list.len() + pl.col("nth"))
    return whole.filter(before.list.tail(pl.col("history").list.len()) != pl.col("history")).height


def check_items(rows: pl.DataFrame, path: Path, items: pl.DataFrame, items_path: Path) -> None:
    """Raises KarmafunnelError naming file and row where one of the publisher's rows names an item
    that the file of items does not hold.
    """
    named = rows.select(
        pl.int_range(pl.len()).alias("row"),
        pl.col("history").list.concat(pl.col("item_id")).alias("item_id"),
    )
    unknown = named.explode("item_id").join(items, on="item_id", how="anti", maintain_order="left")
    if unknown.height:
        row, item = unknown.row(0)
        raise KarmafunnelError(
            f"{path}: row {row + 1}", needs=f"items that {items_path} holds", found=repr(item)
        )


def scattered(rows: pl.DataFrame) -> pl.DataFrame:
    """Users in the order of a hash of their id, each user's rows still in order.

    Publishers list users by activity: a cut by row would give W2b the least active alone.
    """
    place = [hashlib.blake2b(user.encode(), digest_size=8).hexdigest() for user in rows["user_id"]]
    return (
        rows.with_columns(pl.Series("place", place))
        .sort("place", maintain_order=True)
        .drop("place")
    )
