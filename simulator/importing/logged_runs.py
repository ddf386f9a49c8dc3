"""Import the lists that the stages of another system returned, to make a Run of them.

Nothing is trained. The stages are replayed as `External` and `ExternalRank`, which read the lists,
so all measures, the ledger, comparisons and reports work as for any other Run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as made_of
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

from ...bounds import check_name
from ...errors import KarmafunnelError
from ...files import atomic_folder, write_parquet
from ...log import Log, sha256
from ...stages.outside import ExternalRank
from ...stages.recall.external import External
from ...stages.stage import Funnel, Stage
from .opening import expand, format_of, layout_of
from .responses import is_elasticsearch, is_vespa, response_lists
from .stage_lists import Reading, objects
from .stage_tables import table_lists
from .trec import SUFFIXES, is_trec, log_of_qrels, trec_lists
from .ubi import Ubi, is_ubi, log_of_ubi, read_ubi

FORMATS = {
    "trec": "a TREC run",
    "ubi": "UBI queries and events",
    "elasticsearch": "responses of Elasticsearch or OpenSearch",
    "vespa": "results of Vespa",
    "table": "a table",
}
ROWS = ("eligible", "random", "ceiling")  # rows of tables of measures
SAME = {"opensearch": "elasticsearch"}


@dataclass(frozen=True)
class Lists:
    """Lists that stages returned.

    Attributes:
        frame: request_id, stage, item_id, place (1 is best).
        stages: in order.
        formats: what each file was taken for, by its name.
        notes: sentences about what was found.
        ubi: UBI events, of which a log can be made.
    """

    frame: pl.DataFrame
    stages: tuple[str, ...]
    formats: dict[str, str] = made_of(default_factory=dict)
    notes: tuple[str, ...] = ()
    ubi: Ubi | None = None


def recognised(path: Path) -> str:
    """The format of a file, by its suffix and its first rows."""
    kind = format_of(path)
    if kind in ("parquet", "arrow"):
        return "ubi" if is_ubi(dict.fromkeys(layout_of(path).names)) else "table"
    if kind == "jsonl":
        _, first = next(iter(objects(path)), (0, {}))
        tests = {"ubi": is_ubi, "elasticsearch": is_elasticsearch, "vespa": is_vespa}
        return next((name for name, test in tests.items() if test(first)), "table")
    return "trec" if is_trec(path) else "table"


def ubi_files(given: Sequence[Path]) -> list[Path]:
    """The files that are named, if all of them are UBI; else none."""
    kinds = ("jsonl", "parquet", "arrow")
    if len(given) < 2 or not all(path.is_file() and format_of(path) in kinds for path in given):
        return []
    try:
        return list(given) if all(recognised(path) == "ubi" for path in given) else []
    except KarmafunnelError:  # whoever reads them as tables says it
        return []


def paths_of(given: Sequence[str | Path]) -> list[Path]:
    """The files of paths, folders and globs; of a folder with TREC runs, those alone."""
    paths: list[Path] = []
    for one in given:
        folder = Path(one).is_dir()
        runs = [path for path in Path(one).rglob("*") if set(SUFFIXES) & set(path.suffixes)]
        inside = sorted(runs) if folder and runs else expand([one])
        paths += [path for path in inside if path not in paths]
    return paths


def read_lists(
    given: Sequence[str | Path], stages: Sequence[str] = (), told: Reading | None = None
) -> Lists:
    """Read the lists that the stages of a funnel returned.

    Args:
        stages: names of the stages in order; default: the order of the files or, where a table
            holds several stages, by decreasing length of their lists.
        told: the format, and where things are in it; default: recognised for each file.

    Raises:
        KarmafunnelError: for files that cannot be read, an item that occurs twice in a list, and
            unknown stages.
    """
    told = told or Reading()
    paths = paths_of(given)
    wanted = SAME.get(told.format, told.format)
    kinds = {path: wanted or recognised(path) for path in paths}
    ubi = [path for path in paths if kinds[path] == "ubi"]
    events = read_ubi(ubi) if ubi else None
    alone = sum(kind in ("elasticsearch", "vespa") for kind in kinds.values()) == 1
    frames: list[pl.DataFrame] = []
    notes: list[str] = []
    mixed = False
    for path, kind in kinds.items():
        if kind == "ubi":
            if events is None or path != ubi[0]:
                continue
            frame = events.lists()
        elif kind == "trec":
            frame = trec_lists(path)
            tied = frame.select("request_id", "score").is_duplicated().sum()
            if tied:
                notes.append(f"{path.name}: {tied:,} equal scores: in the order of their ranks")
        elif kind == "table":
            frame, more = ranks_first(table_lists(path))
            notes += [f"{path.name}: {one}" for one in more]
            mixed |= frame["stage"].n_unique() > 1
        else:
            frame, more = response_lists(path, kind, told, alone)
            notes += more
        check_once(frame, path)
        for stage in frame["stage"].unique(maintain_order=True):
            check_name(str(path), f"the name of stage {stage}", stage, ROWS)
        frames.append(frame)
    frame = placed(pl.concat(frames))
    check_once(frame, "import-run")
    if frame.is_empty():
        raise KarmafunnelError("import-run", needs="lists with items", found="none")
    return Lists(
        frame,
        in_order(frame, stages, mixed),
        {path.name: kind for path, kind in kinds.items()},
        tuple(notes),
        events,
    )


def check_once(frame: pl.DataFrame, where: Path | str) -> None:
    """Raises KarmafunnelError for an item that occurs twice in a list."""
    twice = frame.select("request_id", "stage", "item_id").is_duplicated()
    if twice.any():
        row = frame.row(int(twice.arg_max() or 0), named=True)
        raise KarmafunnelError(
            where,
            needs="each item at most once in a list",
            found=f"item {row['item_id']!r} twice for request {row['request_id']!r} in stage"
            f" {row['stage']}",
        )


def ranks_first(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The lists without the scores of stages whose ranks say another order, and a sentence about
    each such stage.
    """
    both = frame.filter(pl.all_horizontal(pl.col("rank", "score").is_not_null()))
    ordered = both.sort("stage", "request_id", "rank", maintain_order=True)
    same_list = (pl.col("stage") == pl.col("stage").shift()) & (
        pl.col("request_id") == pl.col("request_id").shift()
    )
    deeper = pl.col("rank") > pl.col("rank").shift()
    apart = ordered.filter(same_list & deeper & (pl.col("score") > pl.col("score").shift()))
    stages = apart["stage"].unique(maintain_order=True).to_list()
    if not stages:
        return frame, []
    ranked = pl.col("stage").is_in(stages) & pl.col("rank").is_not_null()
    kept = frame.with_columns(pl.when(~ranked).then("score").alias("score"))
    return kept, [
        f"{stage}: scores do not fall with the rank, so the rank is the order" for stage in stages
    ]


def placed(frame: pl.DataFrame) -> pl.DataFrame:
    """The lists with the place of each item: by descending score where a stage has scores of all
    its items, else by rank; stages in the order of the files.
    """
    scored = pl.col("score").is_not_null().all().over("stage")
    score = pl.col("score").neg().fill_null(float("inf"))
    rank = pl.col("rank").fill_null(float("inf"))
    first = pl.when(scored).then(score).otherwise(rank)
    then = pl.when(scored).then(rank).otherwise(score)
    numbered = frame.with_row_index("line")
    stage = pl.col("line").min().over("stage")
    ordered = numbered.sort(stage, "request_id", first, then, "line")
    place = pl.int_range(1, pl.len() + 1).over("stage", "request_id")
    return ordered.select("request_id", "stage", "item_id", place.alias("place"))


def in_order(frame: pl.DataFrame, stages: Sequence[str], mixed: bool) -> tuple[str, ...]:
    """The stages in their order: as told, else as in the files, or by decreasing length of their
    lists if a table is `mixed`.

    Raises:
        KarmafunnelError: for unknown stages, and where lists of a later stage are longer.
    """
    there = frame["stage"].unique(maintain_order=True).to_list()
    if stray := [stage for stage in stages if stage not in there]:
        raise KarmafunnelError("import-run", needs=f"stages among {there}", found=stray)
    if twice := [stage for stage in there if list(stages).count(stage) > 1]:
        raise KarmafunnelError(
            "import-run", what="stages", needs="each stage once", found=f"{twice[0]} twice"
        )
    if stages:
        return tuple(stages)
    lengths = (
        frame.group_by("stage", "request_id").len().group_by("stage").agg(pl.col("len").mean())
    )
    longest = dict(lengths.iter_rows())
    by_length = sorted(there, key=lambda stage: -longest[stage])
    order = by_length if mixed else there
    for first, then in pairwise(order):
        if longest[then] > longest[first]:
            raise KarmafunnelError(
                "import-run",
                needs="stages in their order, each of no longer lists than the one before",
                found=f"{longest[first]:.1f} items on average in {first}, then"
                f" {longest[then]:.1f} in {then}",
                hint="say the order: " + " ".join(f"--stage {stage}" for stage in by_length),
            )
    return tuple(order)


def log_for(
    lists: Lists, log: Log | None, qrels: Path | str | None, told: Reading | None = None
) -> tuple[Log, list[str]]:
    """The log with the requests of the lists: the one that was given, with unknown items added; or
    one made of relevance judgements, or of UBI events.

    Returns:
        The log, and sentences about how it was made.

    Raises:
        KarmafunnelError: unless there is exactly one source of requests.
    """
    if log is not None and qrels is not None:
        raise KarmafunnelError("import-run", needs="--log or --qrels, not both", found="both")
    listed = lists.frame["item_id"]
    if qrels is not None:
        return log_of_qrels(Path(qrels), listed)
    if log is not None:
        return with_items(log, listed.unique().sort())
    if lists.ubi is not None:
        return log_of_ubi(lists.ubi, listed, told or Reading())
    raise KarmafunnelError(
        "import-run",
        needs="to know which items are relevant",
        found="neither a log nor judgements",
        hint="add --log LOG (a log with these requests) or --qrels FILE (TREC judgements)",
    )


def with_items(log: Log, listed: pl.Series) -> tuple[Log, list[str]]:
    """The log, and the listed items that it does not know in its catalogue; comparable with Runs of
    the log itself (`judged`). Where only items seen before are eligible, they are left out.
    """
    fresh = listed.filter(~listed.is_in(log.items["item_id"].implode()))
    if fresh.is_empty():
        return log, []
    said = f"{len(fresh):,} listed items, such as {fresh[0]!r}, are not in log {log.name}: "
    if log.meta["catalogue"] == "seen":
        return log, [f"{said}left out, as only items seen before are eligible"]
    items = pl.concat([log.items, pl.DataFrame({"item_id": fresh})], how="diagonal")
    meta = log.meta | {"judged": log.meta.get("judged") or log.checksum}
    made = Log.make(items, log.requests, log.exposures, meta)
    return made, [f"{said}added to its catalogue, relevant for no request"]


def answered(lists: Lists, log: Log, window: str) -> list[dict[str, Any]]:
    """What each stage returned for the requests of a window: one row per stage.

    `answered`, `nothing`: requests with and without a list. `shorter`: lists with fewer items than
    the longest. `left_out`: items that were not eligible, or that the stage before did not return.
    `others`: requests in the files that the window does not have.
    """
    inside = log.requests.filter(pl.col("window") == window)
    if log.meta["scenario"]:
        inside = inside.filter(pl.col("source").is_in(log.meta["scenario"]))
    ids = inside["request_id"]
    rows: list[dict[str, Any]] = []
    kept = eligible(lists.frame, log)
    key = ["request_id", "item_id"]
    for stage in lists.stages:
        whole = lists.frame.filter(pl.col("stage") == stage)
        mine = whole.filter(pl.col("request_id").is_in(ids.implode()))
        kept = mine.join(kept.select(key).unique(), on=key, how="semi")
        length = mine.group_by("request_id").len()["len"]
        longest = int(length.max() or 0)  # type: ignore[arg-type]
        rows.append(
            {
                "stage": stage,
                "answered": len(length),
                "nothing": len(ids) - len(length),
                "longest": longest,
                "mean": float(length.mean() or 0),  # type: ignore[arg-type]
                "shorter": int((length < longest).sum()),
                "left_out": mine.height - kept.height,
                "others": whole["request_id"].n_unique() - len(length),
            }
        )
    return rows


def eligible(frame: pl.DataFrame, log: Log) -> pl.DataFrame:
    """The rows with a request of the log and an item that was eligible then."""
    numbered = frame
    for key, table in (("request_id", log.requests), ("item_id", log.items)):
        numbers_of = table.select(key, pl.int_range(pl.len()).alias(f"{key} number"))
        numbered = numbered.join(numbers_of, on=key, maintain_order="left")
    was = log.asof.is_eligible(
        numbered["request_id number"].to_numpy(), numbered["item_id number"].to_numpy()
    )
    return numbered.filter(pl.Series(was, dtype=pl.Boolean)).select(frame.columns)


def log_beside(run: Path) -> Path:
    """The folder next to a Run that holds the log which was made for it."""
    return run.with_name(f"{run.name}.log")


def stages_beside(run: Path) -> Path:
    """The folder next to a Run that holds the lists of its stages."""
    return run.with_name(f"{run.name}.stages")


def check_same_log(log: Log, folder: Path) -> None:
    """Raises KarmafunnelError where a folder holds another log, of a Run that stays."""
    if folder.exists():
        there = Log.open(folder, anyway=True).tables
        if not all(there[name].equals(table) for name, table in log.tables.items()):
            raise other_run(folder)


def other_run(folder: Path) -> KarmafunnelError:
    return KarmafunnelError(
        "import-run",
        what=folder.with_suffix(""),
        needs="to be free, or a Run of the same files",
        found=f"a Run of others ({folder.name})",
        hint="to replace it, use --force",
    )


def funnel_of(lists: Lists, folder: Path, log: Log, keep: bool = False) -> Funnel:
    """A funnel that returns the lists, which are written into `folder`, one Parquet file per stage.

    Args:
        keep: the lists that are there belong to a Run that is not to be replaced.

    Raises:
        KarmafunnelError: where the log has none of the requests, or the folder holds other files or
            other lists to keep.
    """
    mine = lists.frame.filter(
        pl.col("request_id").is_in(log.requests["request_id"].implode())
        & pl.col("item_id").is_in(log.items["item_id"].implode())
    )
    for stage in lists.stages:
        if mine.filter(pl.col("stage") == stage).is_empty():
            there = lists.frame.filter(pl.col("stage") == stage)["request_id"]
            raise KarmafunnelError(
                "import-run",
                what=f"stage {stage}",
                needs=f"requests of log {log.name}, such as {log.request_ids[0]!r}",
                found=f"others only, such as {there[0]!r}",
            )
    strange = [path.name for path in folder.glob("*") if path.suffix != ".parquet"]
    if strange or (folder.exists() and not folder.is_dir()):
        raise KarmafunnelError(
            "import-run",
            what=folder,
            needs="to be free for the lists of the stages",
            found=", ".join(strange[:3]) or "a file",
            hint="nothing was written",
        )
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
        if keep and folder.exists():
            sums = [{p.name: sha256(p) for p in at.glob("*.parquet")} for at in (folder, temporary)]
            if sums[0] != sums[1]:
                raise other_run(folder)
    return Funnel(tuple(stages))
