"""The command that exports Runs and logs for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from .parameters import folder, open_log, out


@click.command()
@click.argument("given", type=folder, metavar="RUN|LOG|TABLE")
@click.argument("to", metavar="FOLDER|URI")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["trec", "recbole", "csv", "mlflow"]),
    default="csv",
    help=(
        "trec for a Run (one numbered run file per stage, and qrels), recbole for a log, csv for"
        " either; mlflow for the folder of a table, to the URI of an MLflow server or store."
    ),
)
def export(given: Path, to: str, kind: str) -> None:
    """Write a Run or a log in the format of other tools into a new folder, or log a table to
    MLflow.
    """
    from ..measure.exporting import export_log, export_run
    from ..measure.run import Run

    if kind == "mlflow":
        from ..ablation.tracking import log_table

        rows = log_table(given, to)
        for row in rows or ["every row was logged before"]:
            out.print(row, soft_wrap=True)
        return
    target: Path = folder.convert(to, None, click.get_current_context())
    if (given / "run.json").exists():
        names = export_run(Run.open(given), target, kind)
    else:
        names = export_log(open_log(given), target, kind)
    for name in names:
        out.print(str(target / name), soft_wrap=True)
