"""The command that imports somebody's own tables."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...files import LOG, RUN, read_json, write_text
from ...terminal import progress_bar
from .options import Number, claimed, err, folder, force_flag, open_log, out, typed, window_option

if TYPE_CHECKING:
    from ..importing.assembling import Found


class Column(click.ParamType):
    """A role and the column that has it: ROLE=NAME."""

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


@click.command(name="import")
@click.argument("files", nargs=-1, required=True, type=folder)
@click.argument("log", type=folder)
@click.option(
    "--map",
    "map_file",
    type=folder,
    help="Follow this map, such as LOG/import.toml once you have corrected it.",
)
@click.option(
    "--guess", type=folder, help="Write the guessed map to this file, and import nothing."
)
@click.option(
    "--column",
    "columns",
    type=Column(),
    multiple=True,
    help="Which column has a role: --column user=buyer; --column price= for none.",
)
@click.option(
    "--per",
    type=click.Choice(["event", "session", "basket", "request"]),
    help=(
        "What a request is; without it each row, or each basket or request where there is such a"
        " column."
    ),
)
@click.option(
    "--gap-minutes",
    type=Number("gap_minutes"),
    help=(
        "Silence that ends a session, with --per session and no column of sessions; 30 without it."
    ),
)
@click.option(
    "--currency", help="Currency of the prices; with a column of currencies, those to keep."
)
@click.option(
    "--rating", type=Number("rating"), help="A rating of at least so much counts as a click."
)
@click.option(
    "--zone", help="Time zone of times that name none, such as Europe/Paris; UTC without it."
)
@click.option("--name", help="Name of the log; the folder's, without it.")
@click.option(
    "--allow-rejects", is_flag=True, help="Import although more than 1% of the rows cannot be."
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
    """Import your own tables as a log: interactions (user, item, time) and, if you have it, a table
    of items.

    FILES are CSV, TSV, JSON lines, Parquet, RecBole or Hugging Face files, plain or packed, folders
    of them or globs. It prints what it took each column for and why, and writes that to
    LOG/import.toml: correct it and give it back with --map. Rows that cannot be imported go to
    LOG/rejected.parquet with file, row and reason.
    """
    from ..importing.assembling import import_tables, look
    from ..importing.column_map import ColumnMap

    start = time.perf_counter()
    given = None if map_file is None else ColumnMap.read(map_file)
    told = dict(columns)
    zone = changes.pop("zone")
    changed = {key: value for key, value in changes.items() if value is not None}
    if zone is not None:
        changed["zone"] = zone
    if guess is not None:
        found, _, _ = look(files, given, told, name or log.name, changed)
        print_reasons(found)
        write_text(guess, found.map.toml())
        err.print(f"the guess is in {guess}; give it back with --map {guess}", soft_wrap=True)
        return
    claimed(log, LOG, *files, map_file, force=force)
    with progress_bar(err) as bar:
        task = bar.add_task("importing", total=None)
        found = import_tables(
            files,
            log,
            given=given,
            columns=told,
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
@click.option("--log", type=folder, help="The log whose requests were answered.")
@click.option("--qrels", type=folder, help="In its place, relevance judgements as TREC has them.")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    help="The stages in their order, once each; without it as the files say.",
)
@window_option
@force_flag
def import_run_command(
    files: tuple[Path, ...],
    run: Path,
    log: Path | None,
    qrels: Path | None,
    stages: tuple[str, ...],
    window: str,
    force: bool,
) -> None:
    """Make a Run of a funnel that runs elsewhere, of the lists that its stages put out. Nothing is
    trained.

    FILES are TREC runs, one a stage in the order of the stages, or tables of request, item, rank or
    score, with a column of stages or one file a stage. All measures, reports and `gate` work on the
    Run; the lists are kept in RUN.stages beside it.
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
    )
    print_stage_table(run)


def print_reasons(found: Found) -> None:
    """What each column was taken for, and why."""
    from ..report.table import Table, print_table

    rows = [[reason.what, reason.taken, reason.why] for reason in found.reasons]
    print_table(Table(["what", "taken", "why"], rows, text_columns=3, title="what was found"), out)


def print_outcome(log: Path, found: Found) -> None:
    """How much was imported, what was left out, and how to go on."""
    from ..report.table import Table, print_table

    meta = read_json(log / "log.json")
    rows = [[name, f"{count:,}"] for name, count in meta["counts"].items()]
    rows += [[f"set aside: {what}", f"{many:,}"] for what, many in meta["set_aside"].items()]
    print_table(Table(["what", "count"], rows, title=f"{meta['name']}: {log}"), out)
    for sentence in meta["lacks"]:
        err.print(f"lacks {sentence}")
    if found.alone:
        err.print(f"{found.alone:,} requests name no user: each such session is a user of its own")
    if found.rejects.count:
        first = found.rejects.rows[0]
        err.print(
            f"{found.rejects.count:,} rows were rejected, see {log / 'rejected.parquet'}; first: "
            f"{first['file']}, row {first['row']}: {first['reason']}",
            soft_wrap=True,
        )
    err.print(
        f"go on with: karmafunnel describe {log}; karmafunnel replay baseline {log} --out RUN",
        soft_wrap=True,
    )
