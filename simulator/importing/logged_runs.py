"""Import the lists that the stages of another system returned, to make a Run of them.

Nothing is trained. The stages are replayed as `External` and `ExternalRank`, which read the lists,
so all measures, the ledger, comparisons and reports work as for any other Run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import polars as pl

from ...errors import KarmafunnelError
from ...files import atomic_folder, remove, write_parquet
from ...log import Log, sha256
from ...stages.outside import ExternalRank
from ...stages.recall.external import External
from ...stages.stage import Funnel, Stage
from .guessing import by_name, numbers
from .opening import ROW, Rejects, batches, expand, layout_of

ROLES: dict[str, tuple[str, ...]] = {
    "request": (
        "request",
        "requestid",
        "queryid",
        "qid",
        "query",
        "searchid",
        "topic",
        "impressionid",
    ),
    "stage": ("stage", "phase", "step", "layer"),
    "item": ("item", "itemid", "docid", "doc", "documentid", "product", "productid", "id"),
    "rank": ("rank", "position", "place"),
    "score": ("score", "relevance", "value"),
}
LISTS = {
    "request_id": pl.String,
    "stage": pl.String,
    "item_id": pl.String,
    "rank": pl.Float64,
    "score": pl.Float64,
}


@dataclass(frozen=True)
class Lists:
    """Lists that stages returned: request_id, stage, item_id, place (1 is best); and the stages in
    order.
    """

    frame: pl.DataFrame
    stages: tuple[str, ...]


def is_trec(path: Path) -> bool:
    """Whether a file holds a TREC run: six fields per line, of which the second is Q0."""
    try:
        with path.open("rb") as file:
            fields = file.readline(4096).split()
    except OSError:
        return False
    return len(fields) == 6 and fields[1].upper() == b"Q0"


def read_trec(path: Path, what: str, names: Sequence[str]) -> pl.DataFrame:
    """Read a file with fields separated by whitespace, all as text; raises KarmafunnelError naming
    a line with a wrong number of fields.
    """
    rows: list[list[str]] = []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise KarmafunnelError(path, needs=f"{what} in UTF-8", found=error) from error
    for number, line in enumerate(text.splitlines(), 1):
        if fields := line.split():
            if len(fields) != len(names):
                raise KarmafunnelError(
                    f"{path}: line {number}",
                    needs=f"{len(names)} fields of {what}",
                    found=len(fields),
                )
            rows.append(fields)
    if not rows:
        raise KarmafunnelError(path, needs=f"lines of {what}", found="none")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def trec_lists(paths: Sequence[Path]) -> pl.DataFrame:
    """Read TREC runs, one per stage; a stage has the name of its file."""
    frames = []
    for path in paths:
        frame = read_trec(
            path, "a TREC run", ("request_id", "q0", "item_id", "rank", "score", "tag")
        )
        frame = frame.with_columns(
            pl.col("rank", "score").cast(pl.Float64, strict=False), pl.lit(path.stem).alias("stage")
        )
        if frame["score"].null_count():
            bad = frame.filter(pl.col("score").is_null()).row(0, named=True)
            raise KarmafunnelError(path, needs="scores that are numbers", found=bad)
        frames.append(frame.select(list(LISTS)))
    return pl.concat(frames)


def table_lists(paths: Sequence[Path]) -> pl.DataFrame:
    """Read tables with request, item, rank or score, and stage; without a stage column each file is
    a stage.
    """
    frames = []
    for path in paths:
        layout = layout_of(path)
        roles = by_name(list(layout.names), ROLES)
        if missing := [role for role in ("request", "item") if role not in roles]:
            raise KarmafunnelError(
                path, needs=f"a column of {missing[0]}s", found=list(layout.names)
            )
        if "rank" not in roles and "score" not in roles:
            raise KarmafunnelError(
                path, needs="a column of ranks or of scores", found=list(layout.names)
            )
        for frame in batches(path, layout, Rejects()):
            picked = {
                "request_id": frame[roles["request"]].cast(pl.String),
                "item_id": frame[roles["item"]].cast(pl.String),
            }
            for role in ("rank", "score"):
                if role in roles:
                    picked[role] = numbers(
                        frame[roles[role]].cast(pl.String, strict=False).str.strip_chars()
                    )
            made = pl.DataFrame(picked)
            if "stage" in roles:
                made = made.with_columns(frame[roles["stage"]].cast(pl.String).alias("stage"))
            else:
                made = made.with_columns(pl.lit(path.stem).alias("stage"))
            for name, dtype in LISTS.items():
                if name not in made.columns:
                    made = made.with_columns(pl.lit(None, dtype).alias(name))
            check_rows(made, frame, path)
            frames.append(made.select(list(LISTS)))
    return pl.concat(frames)


def check_rows(made: pl.DataFrame, frame: pl.DataFrame, path: Path) -> None:
    """Raises KarmafunnelError naming the first row without a request, an item, a stage, or both
    rank and score.
    """
    nowhere = pl.col("rank").is_null() & pl.col("score").is_null()
    bad = made.select(
        pl.any_horizontal(pl.col("request_id", "item_id", "stage").is_null()) | nowhere
    ).to_series()
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise KarmafunnelError(
            f"{path}: row {frame[ROW][row]}",
            needs="a request, an item, a stage and a rank or score",
            found=made.row(row, named=True),
        )


def read_lists(given: Sequence[str | Path], stages: Sequence[str] = ()) -> Lists:
    """Read the lists that the stages of a funnel returned, from TREC runs or tables.

    Args:
        stages: names of the stages in order; default: the order of the files or, where a file
            holds several stages, by decreasing length of their lists.

    Raises:
        KarmafunnelError: for files that cannot be read, an item that occurs twice in a list, and
            unknown stages.
    """
    paths = expand(given) if not all(is_trec(Path(p)) for p in given) else [Path(p) for p in given]
    trec = [path for path in paths if is_trec(path)]
    frame = trec_lists(paths) if len(trec) == len(paths) else table_lists(paths)
    twice = frame.select("request_id", "stage", "item_id").is_duplicated()
    if twice.any():
        raise KarmafunnelError(
            "import-run",
            needs="each item at most once in a list",
            found=f"twice: {frame.row(int(twice.arg_max() or 0), named=True)}",
        )
    there = frame["stage"].unique(maintain_order=True).to_list()
    if not stages:
        lengths = (
            frame.group_by("stage", "request_id").len().group_by("stage").agg(pl.col("len").mean())
        )
        longest = dict(lengths.iter_rows())
        stages = there if len(paths) == len(there) else sorted(there, key=lambda s: -longest[s])
        for first, then in pairwise(stages):
            if longest[then] > longest[first]:
                raise KarmafunnelError(
                    "import-run",
                    needs="stages in their order, each of no longer lists than the one before",
                    found=f"{longest[first]:.1f} items on average in {first}, then"
                    f" {longest[then]:.1f} in {then}",
                    hint="say the order: "
                    + " ".join(f"--stage {s}" for s in sorted(stages, key=lambda s: -longest[s])),
                )
    if stray := [stage for stage in stages if stage not in there]:
        raise KarmafunnelError("import-run", needs=f"stages among {there}", found=stray)
    best = [pl.col("score").neg().fill_null(float("inf")), pl.col("rank").fill_null(float("inf"))]
    by = best if frame["score"].null_count() == 0 else best[::-1]
    ordered = frame.with_row_index("line").sort("stage", "request_id", *by, "line")
    place = pl.int_range(1, pl.len() + 1).over("stage", "request_id")
    return Lists(
        ordered.select("request_id", "stage", "item_id", place.alias("place")), tuple(stages)
    )


def log_of_qrels(qrels: Path, lists: Lists) -> Log:
    """A log of a TREC collection: topics are requests of W3, relevant documents are clicks.

    The catalogue holds every document that is judged or listed; all of them are eligible. Runs of
    the same judgements can be compared although their catalogues differ (`judged` in `log.json`).
    """
    judged = read_trec(
        qrels, "relevance judgements", ("request_id", "iteration", "item_id", "relevance")
    )
    level = judged["relevance"].cast(pl.Float64, strict=False)
    if level.null_count():
        raise KarmafunnelError(
            qrels,
            needs="levels of relevance that are numbers",
            found=judged.row(int(level.is_null().arg_max() or 0)),
        )
    relevant = judged.filter(level > 0).unique(["request_id", "item_id"], maintain_order=True)
    items = pl.concat([judged["item_id"], lists.frame["item_id"]]).unique().sort()
    topics = judged["request_id"].unique().sort()
    requests = pl.DataFrame({"request_id": topics}).with_columns(
        user_id=pl.col("request_id"), source=pl.lit("search"), window=pl.lit("W3")
    )
    exposures = relevant.select("request_id", "item_id", pl.lit(True).alias("clicked"))
    meta = {
        "name": qrels.name.partition(".")[0] or qrels.name,
        "source": qrels.name,
        "judged": sha256(qrels),
        "time": "order",
        "scenario": ["search"],
        "label": "click",
        "catalogue": "published",
        "has": {"clicks": True, "users": True},
        "lacks": [
            "clicks: what is relevant stands in for them",
            "users: every topic is one of its own",
            "prices",
            "lists shown",
        ],
    }
    return Log.make(pl.DataFrame({"item_id": items}), requests, exposures, meta)


def stages_beside(run: Path) -> Path:
    """The folder next to a Run that holds the lists of its stages."""
    return run.with_name(f"{run.name}.stages")


def funnel_of(lists: Lists, folder: Path, log: Log) -> Funnel:
    """A funnel that returns the lists, which are written into `folder`, one Parquet file per stage.

    Raises:
        KarmafunnelError: where the log has none of the requests.
    """
    known = set(log.request_ids.tolist())
    mine = lists.frame.filter(pl.col("request_id").is_in(list(known)))
    for stage in lists.stages:
        if mine.filter(pl.col("stage") == stage).is_empty():
            there = lists.frame.filter(pl.col("stage") == stage)["request_id"]
            raise KarmafunnelError(
                "import-run",
                what=f"stage {stage}",
                needs=f"requests of log {log.name}, such as {log.request_ids[0]!r}",
                found=f"others only, such as {there[0]!r}",
            )
    remove(folder)
    stages: list[Stage] = []
    with atomic_folder(folder) as temporary:
        for stage in lists.stages:
            rows = mine.filter(pl.col("stage") == stage)
            score = -pl.col("place").cast(pl.Float32)
            frame = rows.select("request_id", "item_id", score.alias("score"))
            path = temporary / f"{stage}.parquet"
            write_parquet(path, frame, compression="zstd")
            k = int(rows["place"].max() or 1)  # type: ignore[arg-type]
            kind = ExternalRank if stages else External
            stages.append(
                kind(str(folder / path.name), k=k, checksum=sha256(path)[:16], name=stage)
            )
    return Funnel(tuple(stages))
