"""The paper's grid from finished tables: the gain of an embedding at each stage, and its cost.

    python -m karmafunnel.simulator.ablation.grid "with ids=out/funnel/table.csv" \\
        "without=out/no-ids/table.csv" --name KARMA --name SASRec

Reads the `table.csv` of `funnel_ablation`, `funnel_no_ids` or any recipe with rows named "NAME at
PLACE", and prints Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import polars as pl

from ...errors import KarmafunnelError
from ..report.measure_table import Row, valued
from ..report.table import Cell, Table, number, to_markdown

PLACES = ("recall", "pre-ranking", "ranking", "every stage")
COLUMNS = ("HR@200 at recall", "HR@50 at prerank", "HR@10", "GMV-HR@10", "gAUC:request:exposures")
COST = "ms a request, total"
FIGURES = ("value", "low", "high", "difference", "d_low", "d_high")


def cells(path: Path) -> tuple[str, dict[tuple[str, str], Row]]:
    """The baseline of a table.csv (its first row), and its lines by row and column.

    Raises:
        KarmafunnelError: for a missing file, or one with other columns.
    """
    types = dict.fromkeys(FIGURES, pl.Float64) | {"better": pl.String, "holm": pl.String}
    try:
        table = pl.read_csv(path, schema_overrides=types)
        lines = table.select("row", "column", "seeds", *FIGURES, "better", "holm").to_dicts()
        return table["row"][0], {(line["row"], line["column"]): line for line in lines}
    except (OSError, IndexError, pl.exceptions.PolarsError) as error:
        raise KarmafunnelError(
            "grid",
            needs="the table.csv of `karmafunnel table`",
            found=f"{path}: {str(error).splitlines()[0]}",
        ) from error


def points(line: Row | None, signed: bool) -> str | Cell:
    """A share in percentage points: the value or, if `signed`, the difference with its interval and
    mark; "=" at a stage before the embedding.
    """
    if line is None:
        return "n/a"
    names = {"value": "value", "difference": "difference", "low": "d_low", "high": "d_high"}
    row: Row = {"better": line["better"], "holm": line["holm"] == "True"}
    for name, column in names.items():
        row[name] = None if line[column] is None else 100 * line[column]
    return valued(row, signed, decimals=1)


def grid(
    tables: Sequence[tuple[str, Path]], names: Sequence[str], columns: Sequence[str] = COLUMNS
) -> str:
    """The grid in Markdown: for each table its baseline, then one line per name and place.

    Shares are in percentage points; the last column is milliseconds per request.

    Args:
        tables: titles and paths of table.csv files.
        names: embeddings, as in row names before " at ".

    Raises:
        KarmafunnelError: where no table has a row for a name.
    """
    lines: list[list[str | Cell]] = []
    missing = list(names)
    for title, path in tables:
        baseline, found = cells(path)
        lines += _line(baseline, title, found, columns, signed=False)
        for name in names:
            for place in PLACES:
                line = _line(f"{name} at {place}", "", found, columns, signed=True)
                lines += line
                if line and name in missing:
                    missing.remove(name)
    if missing:
        files = ", ".join(str(path) for _, path in tables)
        needs = f"a row {missing[0]!r} at {' or '.join(PLACES)}"
        raise KarmafunnelError("grid", needs=needs, found=f"none in {files}")
    return to_markdown(Table(["", "", "seeds", *columns, "ms"], lines, text_columns=2))


def _line(
    row: str,
    title: str,
    found: Mapping[tuple[str, str], Row],
    columns: Sequence[str],
    signed: bool,
) -> list[list[str | Cell]]:
    """A list with the line of a row; empty where the table lacks the row."""
    cost = found.get((row, COST))
    known = cost or found.get((row, columns[0]))
    if known is None:
        return []
    ms = "n/a" if cost is None else number(cost["value"], decimals=1)
    values = [points(found.get((row, column)), signed) for column in columns]
    return [[title, row, str(known["seeds"]), *values, ms]]


@click.command()
@click.argument("tables", nargs=-1, required=True, metavar="TITLE=TABLE.csv...")
@click.option(
    "--name",
    "names",
    multiple=True,
    default=("KARMA",),
    show_default=True,
    help="Embeddings, as in the row names.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    default=COLUMNS,
    show_default=True,
    help="Columns of the tables; all must be shares.",
)
def main(tables: tuple[str, ...], names: tuple[str, ...], columns: tuple[str, ...]) -> None:
    """Print the gain of embeddings at each stage from finished tables, in percentage points over
    the baseline of each table.
    """
    given = []
    for text in tables:
        title, _, path = text.rpartition("=")
        given.append((title, Path(path)))
    try:
        print(grid(given, names, columns), end="")
    except KarmafunnelError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
