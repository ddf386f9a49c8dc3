"""TREC runs and relevance judgements."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ...errors import KarmafunnelError
from ...log import Log, sha256
from .opening import PACKED, beginning, opened, packed
from .stage_lists import LISTS

SUFFIXES = (".trec", ".run", ".res")


def is_trec(path: Path) -> bool:
    """Whether a file holds a TREC run: by its suffix, or six fields per line, of which the second
    is Q0.
    """
    if any(suffix.lower() in SUFFIXES for suffix in path.suffixes):
        return True
    fields = beginning(path, 4096).partition(b"\n")[0].split()
    return len(fields) == 6 and fields[1].upper() == b"Q0"


def read_trec(path: Path, what: str, names: Sequence[str]) -> pl.DataFrame:
    """Read a file with fields separated by whitespace, all as text, and the number of each line as
    `line`; raises KarmafunnelError naming a line with a wrong number of fields.
    """
    rows: list[list[str | int]] = []

    def content() -> str:
        with packed(path) as stream:
            return bytes(stream.read()).decode("utf-8-sig")

    for number, line in enumerate(opened(path, content).splitlines(), 1):
        if fields := line.split():
            if len(fields) != len(names):
                raise KarmafunnelError(
                    f"{path}: line {number}",
                    needs=f"{len(names)} fields of {what}",
                    found=len(fields),
                )
            rows.append([*fields, number])
    if not rows:
        raise KarmafunnelError(path, needs=f"lines of {what}", found="none")
    schema = dict.fromkeys(names, pl.String) | {"line": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def stage_of(path: Path) -> str:
    """The stage that a file is named for: without suffix, and without the number that `export` puts
    first.
    """
    name = path.name
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    return re.sub(r"^\d\d-(?=.)", "", Path(name).stem or name)


def trec_lists(path: Path) -> pl.DataFrame:
    """Read a TREC run; the stage has the name of the file."""
    frame = read_trec(path, "a TREC run", ("request_id", "q0", "item_id", "rank", "score", "tag"))
    made = frame.with_columns(
        pl.col("rank", "score").cast(pl.Float64, strict=False),
        pl.lit(stage_of(path)).alias("stage"),
    )
    bad = ~made["score"].is_finite().fill_null(False)
    if bad.any():
        row = frame.row(int(bad.arg_max() or 0), named=True)
        raise KarmafunnelError(
            f"{path}: line {row['line']}",
            needs="scores that are numbers",
            found=repr(row["score"]),
        )
    return made.select(list(LISTS))


def log_of_qrels(qrels: Path, listed: pl.Series) -> tuple[Log, list[str]]:
    """A log of a TREC collection: topics are requests of W3, relevant documents are clicks.

    The catalogue holds every document that is judged or listed; all of them are eligible. Runs of
    the same judgements can be compared although their catalogues differ (`judged` in `log.json`).

    Args:
        listed: ids of the documents in the runs.

    Returns:
        The log, and sentences about what was made of the judgements.
    """
    judged = read_trec(
        qrels, "relevance judgements", ("request_id", "iteration", "item_id", "relevance")
    )
    level = judged["relevance"].cast(pl.Float64, strict=False)
    if level.null_count():
        row = judged.row(int(level.is_null().arg_max() or 0), named=True)
        raise KarmafunnelError(
            f"{qrels}: line {row['line']}",
            needs="levels of relevance that are numbers",
            found=repr(row["relevance"]),
        )
    levels = judged.with_columns(level.alias("level"))
    first = pl.col("level").first().over("request_id", "item_id")
    if not (apart := levels.filter(pl.col("level") != first)).is_empty():
        row = apart.row(0, named=True)
        earlier = pl.col("request_id") == row["request_id"], pl.col("item_id") == row["item_id"]
        before = levels.filter(*earlier).row(0, named=True)
        raise KarmafunnelError(
            f"{qrels}: line {row['line']}",
            needs="one level of relevance for each topic and document",
            found=f"{row['relevance']} for {row['item_id']} of topic {row['request_id']}, after"
            f" {before['relevance']} in line {before['line']}",
        )
    relevant = judged.filter(level > 0).unique(["request_id", "item_id"], maintain_order=True)
    if relevant.is_empty():
        raise KarmafunnelError(qrels, needs="a level of relevance above 0", found="none")
    items = pl.concat([judged["item_id"], listed]).unique().sort()
    topics = judged["request_id"].unique().sort()
    requests = pl.DataFrame({"request_id": topics}).with_columns(
        user_id=pl.col("request_id"), source=pl.lit("search"), window=pl.lit("W3")
    )
    exposures = relevant.select("request_id", "item_id", pl.lit(True).alias("clicked"))
    grades = sorted(level.filter(level > 0).unique())
    said = ["clicks: what is relevant stands in for them"]
    graded = ""
    if len(grades) > 1:
        words = ", ".join(f"{one:g}" for one in grades)
        graded = f"the levels of relevance {words} all count alike"
        said.append(f"gains: {graded}")
    meta = {
        "name": qrels.name.partition(".")[0] or qrels.name,
        "source": qrels.name,
        "judged": sha256(qrels),
        "time": "order",
        "scenario": ["search"],
        "label": "click",
        "catalogue": "published",
        "has": {"clicks": True, "users": True},
        "lacks": [*said, "users: every topic is one of its own", "prices", "lists shown"],
    }
    log = Log.make(pl.DataFrame({"item_id": items}), requests, exposures, meta)
    none = len(topics) - relevant["request_id"].n_unique()
    notes = [f"{len(relevant):,} relevant documents of {len(topics):,} topics"]
    if graded:
        notes.append(f"{graded}, so nDCG has no graded gains")
    if none:
        notes.append(f"{none:,} topics have no relevant document: measures leave them out")
    return log, notes
