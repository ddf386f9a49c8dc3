"""Commands that read Runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...errors import KarmafunnelError
from ...files import PAGE
from ...terminal import visible
from .parameters import claimed, folder, json_flag, out, verbose_flag

if TYPE_CHECKING:
    from ..measure.run import Run


def default_measures(run: Run) -> list[str]:
    """What a first look wants, as far as the Run can say it."""
    from ..measure.compare import telling

    meta, headline = run.meta, telling([run])
    most, longest = min(map(run.most, run.stages)), max(map(run.most, run.stages))
    names = ["survival", str(headline)]
    if headline.name == "HR" and headline.k == min(10, most):
        names = ["survival", *[f"HR@{k}" for k in sorted({10, 50, most}) if k <= longest]]
    names.append(f"nDCG@{min(10, longest)}")
    if meta["log"]["has"]["price"]:
        names.append("GMV-HR@50")
    if meta["log"]["has"]["exposures"]:
        names.append("gAUC:request:exposures")
    return names


def print_stage_table(run: Path, verbose: bool | None = None) -> None:
    """The measures of a first look, stage by stage, and which stage lowers HR."""
    from ..measure.compare import Run, added, measure, telling
    from ..report.measure_table import measure_table
    from ..report.table import print_table

    opened = Run.open(run)
    print_table(measure_table(measure(opened, default_measures(opened))), out, verbose)
    print_lowered(added(opened, [telling([opened])]))


def print_lowered(rows: list[dict[str, Any]]) -> None:
    """One sentence for each stage that lowers a measure of the one before; rows of `added`."""
    from ..report.measure_table import lowered
    from ..report.table import short_number

    for sentence in lowered(rows):
        out.print(f"{short_number(sentence)}.", style="bold yellow")


@click.command()
@click.argument("run", type=folder)
@click.argument("measures", nargs=-1, required=True, metavar="MEASURE...")
@click.option("--slice", "slice_name", help="target, repeat, user, price or query.")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["table", "csv", "markdown", "latex"]),
    default="table",
    help="How the rows are printed.",
)
@json_flag
@verbose_flag
def measure(
    run: Path,
    measures: tuple[str, ...],
    slice_name: str | None,
    fmt: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Ask a Run for measures, stage by stage, with 95% intervals: HR@50, GMV-HR@50,
    gAUC:request:exposures, ...
    """
    from ..measure.arrays import RunArrays
    from ..measure.compare import Run, added
    from ..measure.compare import measure as run_measure
    from ..measure.measures.measure import parse_all

    opened = Run.open(run)
    if slice_name and (why := RunArrays(opened).unsliced(slice_name)):
        raise KarmafunnelError(f"--slice {slice_name}: {why}")
    print_rows(run_measure(opened, list(measures), slice=slice_name), fmt, as_json, verbose)
    if fmt == "table" and not as_json:
        ranked = [m for m in parse_all(measures) if m.ranks]
        gains = [
            row for row in added(opened, ranked, slice=slice_name) if row["difference"] is not None
        ]
        if gains:
            out.print("\nWhat each stage adds to the order of the stage before it, at one depth:")
            print_rows(gains)
            print_lowered(gains)


def print_rows(
    rows: list[dict[str, Any]],
    fmt: str = "table",
    as_json: bool = False,
    verbose: bool | None = None,
) -> None:
    """Measure or comparison rows in one of the formats."""
    from ..report.measure_table import measure_table, to_csv
    from ..report.table import print_table, to_latex, to_markdown

    if as_json:
        print(json.dumps(rows, indent=1))
    elif fmt == "table":
        print_table(measure_table(rows), out, verbose)
    elif fmt == "csv":
        print(visible(to_csv(rows)), end="")
    else:
        render = to_markdown if fmt == "markdown" else to_latex
        print(visible(render(measure_table(rows))), end="")


@click.command()
@click.argument("run_a", type=folder)
@click.argument("run_b", type=folder)
@click.argument("measures", nargs=-1, required=True, metavar="MEASURE...")
@click.option("--common", "shared", is_flag=True, help="Over the requests that both Runs have.")
@json_flag
@verbose_flag
def compare(
    run_a: Path,
    run_b: Path,
    measures: tuple[str, ...],
    shared: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Compare two Runs of one log, paired on the same requests: B - A with its interval,
    Holm-corrected.
    """
    from ..measure.compare import compare as run_compare
    from ..measure.run import Run, common

    a, b = Run.open(run_a), Run.open(run_b)
    if shared:
        a, b = common(a, b)
    print_rows(run_compare(a, b, list(measures)), as_json=as_json, verbose=verbose)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=folder, metavar="RUN...")
@click.option(
    "--out", "html", type=folder, default=Path("report.html"), help="The HTML file to write."
)
def report(runs: tuple[Path, ...], html: Path) -> None:
    """Write one self-contained HTML file about one or more Runs."""
    from ..report.run_page import report as write_report

    claimed(html, PAGE, *runs)
    write_report(list(runs), html)
    out.print(str(html), soft_wrap=True)
