"""A Run or a log in the formats of other tools: TREC runs and qrels, RecBole's files, CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from ...errors import KarmafunnelError
from ...files import atomic_folder, write_text
from ...log import Log
from .run import Run


def export_run(run: Run, out: Path | str, kind: str) -> list[str]:
    """Write the output of a Run's stages.

    Args:
        kind: "trec" (one run a stage, numbered in their order, and qrels of the relevant items) or
            "csv" (slates and ledger).

    Returns:
        Names of the files.

    Raises:
        KarmafunnelError: another format, or ids with blanks, which TREC does not allow.
    """
    if kind == "trec":
        return written(out, lambda folder: trec_files(run, folder))
    if kind == "csv":
        return written(out, lambda folder: csv_files(run, folder))
    raise KarmafunnelError("export", what="format of a Run", needs="trec or csv", found=repr(kind))


def export_log(log: Log, out: Path | str, kind: str) -> list[str]:
    """Write a log.

    Args:
        kind: "recbole" (`.inter` and `.item`) or "csv" (`interactions.csv`, each shown or clicked
            item with the columns of its request, and `items.csv`; "|" between the entries of
            lists). `karmafunnel import` reads both; neither holds a request without items.

    Returns:
        Names of the files.

    Raises:
        KarmafunnelError: another format.
    """
    if kind == "recbole":
        return written(out, lambda folder: recbole_files(log, folder))
    if kind == "csv":
        return written(out, lambda folder: log_csv_files(log, folder))
    raise KarmafunnelError(
        "export", what="format of a log", needs="recbole or csv", found=repr(kind)
    )


def written(out: Path | str, write: Callable[[Path], None]) -> list[str]:
    """Write a new folder that appears complete or not at all.

    Returns:
        Names of its files.

    Raises:
        KarmafunnelError: it exists already.
    """
    out = Path(out)
    if out.exists():
        raise KarmafunnelError("export", needs=f"a new folder {out}", found="one that is there")
    with atomic_folder(out) as folder:
        write(folder)
    return sorted(path.name for path in out.iterdir())


def no_blanks(frame: pl.DataFrame, *columns: str) -> None:
    """Raises KarmafunnelError for an id with blanks, which separate the fields of a file."""
    for column in columns:
        bad = frame.filter(pl.col(column).str.contains(r"\s") | (pl.col(column) == ""))
        if bad.height:
            raise KarmafunnelError(
                "export", what="TREC", needs="ids without blanks", found=repr(bad[column][0])
            )


def trec_files(run: Run, folder: Path) -> None:
    slates, ledger = run.read("slates"), run.read("ledger")
    no_blanks(slates, "request_id", "item_id")
    no_blanks(ledger, "request_id", "item_id")
    for number, stage in enumerate(run.stages, 1):
        mine = slates.filter(pl.col("stage") == stage)
        if mine.select("request_id", "score").is_duplicated().any():
            # other tools order by score alone, and equal scores by document id
            mine = mine.with_columns(-pl.col("rank").cast(pl.Float32).alias("score"))
        lines = mine.select(
            pl.format(
                "{} Q0 {} {} {} {}", "request_id", "item_id", "rank", "score", pl.lit(stage)
            ).alias("line")
        )
        path = folder / f"{number:02}-{stage}.trec"
        write_text(path, "".join(f"{line}\n" for line in lines["line"]))
    judged = ledger.select("request_id", "item_id").unique(maintain_order=True)
    lines = judged.select(pl.format("{} 0 {} 1", "request_id", "item_id").alias("line"))
    write_text(folder / "qrels.txt", "".join(f"{line}\n" for line in lines["line"]))


def csv_files(run: Run, folder: Path) -> None:
    for name in ("slates", "ledger"):
        write_text(folder / f"{name}.csv", run.read(name).write_csv())


def flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Lists as text with "|" between the entries, times as ISO 8601."""
    columns = []
    for name, dtype in frame.schema.items():
        if isinstance(dtype, pl.List):
            columns.append(pl.col(name).cast(pl.List(pl.String)).list.join("|"))
        elif isinstance(dtype, pl.Datetime):
            columns.append(pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
        else:
            columns.append(pl.col(name))
    return frame.select(columns)


def log_csv_files(log: Log, folder: Path) -> None:
    rows = log.exposures.join(log.requests, on="request_id", how="left", maintain_order="left")
    for name, frame in (("interactions", rows.drop("window", "source")), ("items", log.items)):
        kept = frame.select([c for c in frame.columns if frame[c].null_count() < frame.height])
        write_text(folder / f"{name}.csv", flat(kept).write_csv())


def recbole_files(log: Log, folder: Path) -> None:
    """Write clicks and purchases with user, item and time, and the items.

    A request without a user is named by its session, else by its own id.
    """
    rows = log.exposures.filter(
        pl.col("clicked").fill_null(False) | pl.col("purchased").fill_null(False)
    )
    rows = rows.join(log.requests, on="request_id", how="left", maintain_order="left")
    user = pl.coalesce("user_id", "session_id", "request_id")
    seconds = (
        pl.col("ts").dt.epoch("ms") / 1000
        if log.meta["time"] == "clock"
        else pl.int_range(pl.len()).cast(pl.Float64)
    )
    inter = rows.select(
        tabless(user).alias("user_id:token"),
        tabless(pl.col("item_id")).alias("item_id:token"),
        seconds.alias("timestamp:float"),
    )
    write_text(folder / f"{log.name}.inter", inter.write_csv(separator="\t", quote_style="never"))
    items = log.items.select(
        tabless(pl.col("item_id")).alias("item_id:token"),
        tabless(pl.col("title").fill_null("")).alias("title:token_seq"),
        tabless(pl.col("category").list.join(" ").fill_null("")).alias("class:token_seq"),
    )
    write_text(folder / f"{log.name}.item", items.write_csv(separator="\t", quote_style="never"))


def tabless(column: pl.Expr) -> pl.Expr:
    """A text with blanks for tabs and line breaks, which the format does not allow."""
    return column.str.replace_all(r"[\t\r\n]", " ")
