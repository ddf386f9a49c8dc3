"""The command that exports Runs and logs for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from .parameters import folder, open_log, out


@click.command()
@click.argument("given", type=folder, metavar="RUN|LOG")
@click.argument("to", type=folder, metavar="FOLDER")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["trec", "recbole", "csv"]),
    default="csv",
    help=(
        "trec for a Run (one numbered run file per stage, and qrels), recbole for a log, csv for"
        " either."
    ),
)
def export(given: Path, to: Path, kind: str) -> None:
    """Write a Run or a log in the format of other tools into a new folder."""
    from ..measure.exporting import export_log, export_run
    from ..measure.run import Run

    if (given / "run.json").exists():
        names = export_run(Run.open(given), to, kind)
    else:
        names = export_log(open_log(given), to, kind)
    for name in names:
        out.print(str(to / name), soft_wrap=True)
