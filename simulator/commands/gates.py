"""The command that checks a funnel change in CI."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ...files import write_text
from .parameters import Number, folder, json_flag, out, seed_option


@click.command()
@click.argument("new", type=folder)
@click.argument("old", type=folder)
@click.option("--measure", "primary", required=True, help="The decisive measure, such as HR@50.")
@click.option(
    "--margin",
    type=Number("margin"),
    required=True,
    help="Largest acceptable loss, in units of the measure, such as .005.",
)
@click.option(
    "--also",
    multiple=True,
    metavar="MEASURE",
    help="Further measures to report, which do not affect the verdict.",
)
@click.option("--junit", type=folder, help="Write the outcome to this file as JUnit XML.")
@seed_option
@json_flag
def gate(
    new: Path,
    old: Path,
    primary: str,
    margin: float,
    also: tuple[str, ...],
    junit: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Test in CI that the candidate Run NEW is not worse than the baseline Run OLD by more than a
    margin.

    Exit code 0: not worse (the 95% interval of the paired difference lies above minus the margin).
    1: worse, or a check before the verdict failed. 3: undecided; the number of requests needed for
    a verdict is printed.
    """
    from ..measure.gate import decide
    from ..measure.run import Run

    found = decide(Run.open(new), Run.open(old), primary, margin, also, seed)
    if junit is not None:
        write_text(junit, found.junit())
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        from ..report.measure_table import measure_table
        from ..report.table import Table, print_table

        rows = [
            ["yes" if check.passed else "NO", check.name, check.found] for check in found.checks
        ]
        print_table(Table(["passed", "check", "found"], rows, text_columns=3), out)
        print_table(measure_table([found.deciding, *found.beside]), out)
        out.print(found.sentence, soft_wrap=True)
    click.get_current_context().exit(found.code)
