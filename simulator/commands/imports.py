"""The commands that import logs from tables, and Runs of other funnels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...files import LOG, RUN, read_json, write_text
from ...terminal import progress_bar
from .data import print_counts, print_next
from .parameters import (
    Number,
    claimed,
    err,
    folder,
    force_flag,
    open_log,
    out,
    typed,
    window_option,
)

if TYPE_CHECKING:
    from ..importing.logged_runs import Lists
    from ..importing.looking import Found


class Column(click.ParamType):
    """A role and its column: ROLE=NAME."""

    name = "role=name"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        from ..importing.column_map import ROLES

        role, sign, column = value.partition("=")
        if not sign or role not in ROLES:
            self.fail(
                f"needs ROLE=NAME with a role among {', '.join(ROLES)}, found {value!r}", param, ctx
            )
        return role, column


class Score(click.ParamType):
    """A stage and the field of a hit with its score: STAGE=FIELD."""

    name = "stage=field"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        stage, _, path = value.partition("=")
        if not stage or not path:
            self.fail(f"needs STAGE=FIELD, found {value!r}", param, ctx)
        return stage, path


@click.command(name="import")
@click.argument("files", nargs=-1, required=True, type=folder)
@click.argument("log", type=folder)
@click.option(
    "--map",
    "map_file",
    type=folder,
    help="Use this map, such as a corrected LOG/import.toml.",
)
@click.option(
    "--guess", type=folder, help="Write the guessed map to this file, and import nothing."
)
@click.option(
    "--column",
    "columns",
    type=Column(),
    multiple=True,
    help="The column of a role: --column user=buyer; --column price= for none.",
)
@click.option(
    "--per",
    type=click.Choice(["event", "session", "basket", "request"]),
    help=(
        "What makes up a request; default: each row, or each basket or request where there is such"
        " a column."
    ),
)
@click.option(
    "--gap-minutes",
    type=Number("gap_minutes"),
    help=("Inactivity that ends a session, with --per session and no session column; default: 30."),
)
@click.option("--currency", help="Currency of the prices; with a currency column, the one to keep.")
@click.option("--rating", type=Number("rating"), help="Minimum rating that counts as a click.")
@click.option("--zone", help="Time zone of times without one, such as Europe/Paris; default: UTC.")
@click.option("--name", help="Name of the log; default: that of the folder.")
@click.option(
    "--allow-rejects", is_flag=True, help="Import even if more than 1% of the rows are rejected."
)
@force_flag
def import_command(
    files: tuple[Path, ...],
    log: Path,
    map_file: Path | None,
    guess: Path | None,
    columns: tuple[tuple[str, str], ...],
    name: str | None,
    allow_rejects: bool,
    force: bool,
    **changes: Any,
) -> None:
    """Import your own tables as a log: interactions (user, item, time) and, optionally, a table of
    items.

    FILES are CSV, TSV, JSON lines, Parquet, RecBole or Hugging Face files, plain or compressed,
    folders of them or globs. The command prints the role that it guessed for each column, with the
    reason, and writes the map to LOG/import.toml. To correct a guess, edit that file and pass it
    with --map. Queries and events of User Behavior Insights (UBI) are recognised. Rows that cannot
    be imported are written to LOG/rejected.parquet with file, row and reason.
    """
    from ..importing.assembling import import_tables
    from ..importing.column_map import ColumnMap
    from ..importing.logged_runs import ubi_files
    from ..importing.looking import look
    from ..importing.stage_lists import Reading
    from ..importing.ubi import log_of_ubi, read_ubi

    start = time.perf_counter()
    given = None if map_file is None else ColumnMap.read(map_file)
    roles = dict(columns)
    zone = changes.pop("zone")
    changed = {key: value for key, value in changes.items() if value is not None}
    if zone is not None:
        changed["zone"] = zone
    told_nothing = map_file is None and guess is None and not roles and not changed
    if told_nothing and (ubi := ubi_files(files)):
        claimed(log, LOG, *files, force=force)
        read = read_ubi(ubi)
        made, notes = log_of_ubi(read, read.lists()["item_id"], Reading(), name or log.name)
        made.write(log, force=force)
        for note in ("queries and events of User Behavior Insights", *notes):
            err.print(note, soft_wrap=True)
        print_outcome(log, None)
        return
    if guess is not None:
        found = look(files, given, roles, name or log.name, changed)
        print_reasons(found)
        write_text(guess, found.map.toml())
        err.print(f"wrote the guess to {guess}; use it with --map {guess}", soft_wrap=True)
        return
    claimed(log, LOG, *files, map_file, force=force)
    with progress_bar(err) as bar:
        task = bar.add_task("importing", total=None)
        found = import_tables(
            files,
            log,
            given=given,
            columns=roles,
            name=name,
            changes=changed,
            allow_rejects=allow_rejects,
            force=force,
            tell=print_reasons,
            progress=lambda rows: bar.update(task, completed=rows),
        )
    print_outcome(log, found)
    err.print(f"{time.perf_counter() - start:.1f} s")


@click.command(name="import-run")
@click.argument("files", nargs=-1, required=True, type=folder)
@click.argument("run", type=folder)
@click.option("--log", type=folder, help="The log with the requests.")
@click.option("--qrels", type=folder, help="TREC relevance judgements, in place of --log.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["trec", "table", "ubi", "elasticsearch", "opensearch", "vespa"]),
    help="The format of the files; default: recognised for each file.",
)
@click.option(
    "--stage",
    "stages",
    multiple=True,
    help="The stages in order, once each; default: as in the files.",
)
@click.option("--item", help="The field of a hit with its item id: _source.sku.")
@click.option(
    "--score",
    "scores",
    type=Score(),
    multiple=True,
    help="An earlier phase and the field of a hit with its score: first=matchfeatures.bm25.",
)
@click.option("--click", "clicks", multiple=True, help="A UBI action that is a click.")
@click.option("--purchase", "purchases", multiple=True, help="A UBI action that is a purchase.")
@window_option
@force_flag
def import_run_command(
    files: tuple[Path, ...],
    run: Path,
    log: Path | None,
    qrels: Path | None,
    kind: str | None,
    stages: tuple[str, ...],
    item: str | None,
    scores: tuple[tuple[str, str], ...],
    clicks: tuple[str, ...],
    purchases: tuple[str, ...],
    window: str,
    force: bool,
) -> None:
    """Make a Run of a funnel outside karmafunnel from the lists that its stages returned, without
    training.

    FILES are TREC runs, one per stage in the order of the stages; tables with request, item, rank
    or score, and a stage column or one file per stage; queries and events of User Behavior Insights
    (UBI), which need no --log; or responses of Elasticsearch, OpenSearch or Vespa, one JSON object
    with a request_id a line. All measures, reports and `gate` work on the Run. The lists are kept
    in the folder RUN.stages, a log made of judgements or of UBI in RUN.log.
    """
    from ..front import import_run
    from ..replay.options import RunOptions
    from .figures import print_stage_table

    claimed(run, RUN, *files, log, qrels, force=force)
    options = RunOptions(window=window, console=err, command=typed(), force=force)
    import_run(
        files,
        run,
        log=None if log is None else open_log(log),
        qrels=qrels,
        stages=stages,
        options=options,
        tell=print_lists,
        format=kind or "",
        item=item or "",
        scores=dict(scores),
        clicks=clicks,
        purchases=purchases,
    )
    print_stage_table(run)


def print_lists(lists: Lists, notes: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Print what the files were taken for, and how many requests each stage answered."""
    from ..importing.logged_runs import FORMATS
    from ..report.table import Table, print_table

    for name, kind in lists.formats.items():
        err.print(f"{name}: {FORMATS[kind]}", soft_wrap=True)
    for note in notes:
        err.print(note, soft_wrap=True)
    columns = ["stage", "answered", "no list", "items", "longest", "shorter", "left out"]
    cells = [
        [
            row["stage"],
            f"{row['answered']:,}",
            f"{row['nothing']:,}",
            f"{row['mean']:.1f}",
            f"{row['longest']:,}",
            f"{row['shorter']:,}",
            f"{row['left_out']:,}",
        ]
        for row in rows
    ]
    print_table(Table(columns, cells, title="lists of the stages"), out)
    if late := [row["stage"] for row in rows if row["nothing"]]:
        err.print(f"requests without a list count 0: {', '.join(late)}", soft_wrap=True)
    if any(row["left_out"] for row in rows):
        words = "left out: items that the stage before did not return, or not eligible then"
        err.print(words, soft_wrap=True)
    if others := [f"{row['others']:,} in {row['stage']}" for row in rows if row["others"]]:
        err.print(f"requests that the window lacks: {', '.join(others)}", soft_wrap=True)


def print_reasons(found: Found) -> None:
    """Print the guessed role of each column, with the reason."""
    from ..report.table import Table, print_table

    rows = [[reason.what, reason.taken, reason.why] for reason in found.reasons]
    heads = ["what", "taken", "why"]
    print_table(Table(heads, rows, text_columns=3, title="what was found", look="prose"), out)


def day_of(ms: int) -> str:
    """The day of a time in ms since 1970 (UTC)."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"


def print_outcome(log: Path, found: Found | None) -> None:
    """Print what was imported, what was left out, and the next commands."""
    times = []
    if found is not None:
        times = [["first time", day_of(found.first)], ["last time", day_of(found.latest)]]
    print_counts(log, read_json(log / "log.json"), times)
    if found is not None and found.latest > time.time() * 1000:
        err.print(f"the last time lies in the future: {day_of(found.latest)}")
    if found is not None and len(found.sources) > 1:
        many = found.sources["browse"]
        share = many / sum(found.sources.values())
        err.print(
            f"{many:,} ({share:.1%}) of the requests have no query: they are taken as browsing"
        )
    if found is not None and found.alone:
        err.print(f"{found.alone:,} requests have no user: each such session is a separate user")
    if found is not None and found.rejects.count:
        first = found.rejects.rows[0]
        err.print(
            f"{found.rejects.count:,} rows were rejected, see {log / 'rejected.parquet'}; first: "
            f"{first['file']}, row {first['row']}: {first['reason']}",
            soft_wrap=True,
        )
    print_next(log)
