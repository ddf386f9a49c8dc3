"""The command that checks a funnel change in CI."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import click

from ...errors import KarmafunnelError, user_message
from ...files import write_text
from .parameters import Number, claimed, err, folder, json_flag, out, seed_option, verbose_flag

ERROR = 2  # exit code: 1 means worse


@click.command()
@click.argument("new", type=folder)
@click.argument("old", type=folder)
@click.option("--measure", "primary", help="The decisive measure, such as HR@50.")
@click.option(
    "--margin",
    type=Number("margin"),
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
@verbose_flag
def gate(
    new: Path,
    old: Path,
    primary: str | None,
    margin: float | None,
    also: tuple[str, ...],
    junit: Path | None,
    seed: int,
    as_json: bool,
    verbose: bool,
) -> None:
    """Test in CI that the candidate Run NEW is not worse than the baseline Run OLD by more than a
    margin.

    Exit code 0: not worse (the 95% interval of the paired difference lies above minus the margin).
    1: worse, or a check before the verdict failed. 2: an error, so no verdict. 3: undecided; the
    number of requests needed for a verdict is printed.
    """
    context = click.get_current_context()
    try:
        if primary is None or margin is None:
            given = [f"--measure {primary}"] if primary else []
            given += [] if margin is None else [f"--margin {margin:g}"]
            raise KarmafunnelError(
                "gate",
                needs="--measure and --margin, declared before the Runs are compared",
                found=", ".join(given) or "neither",
                hint=f"for example: karmafunnel gate {new} {old} --measure HR@10 --margin .005",
            )
        code = judge(new, old, primary, margin, also, junit, seed, as_json, verbose)
    except Exception as error:  # nothing but a verdict ends with 0, 1 or 3
        leave_output()
        if (message := user_message(error)) is None:
            message = traceback.format_exc().rstrip()
        if not isinstance(error, BrokenPipeError):
            err.print(message, soft_wrap=True)
        context.exit(ERROR)
    context.exit(code)


def judge(
    new: Path,
    old: Path,
    primary: str,
    margin: float,
    also: tuple[str, ...],
    junit: Path | None,
    seed: int,
    as_json: bool,
    verbose: bool,
) -> int:
    """Print the outcome, write it to `junit`, and return its exit code."""
    from ..measure.gate import OUTCOME, decide
    from ..measure.run import Run

    if junit is not None:
        claimed(junit, OUTCOME, new, old)
    found = decide(Run.open(new), Run.open(old), primary, margin, also, seed)
    if junit is not None:
        write_text(junit, found.junit())
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        from ..report.measure_table import measure_table
        from ..report.table import Table, print_table

        rows = [
            [check.name, "yes" if check.passed else "NO", check.found] for check in found.checks
        ]
        print_table(Table(["check", "passed", "found"], rows, look="prose"), out)
        print_table(measure_table([found.deciding, *found.beside]), out, verbose)
        out.print(found.sentence)
    sys.stdout.flush()
    return found.code


def leave_output() -> None:
    """Drop what standard output still holds where it cannot be written: Python would end with
    another exit code.
    """
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
