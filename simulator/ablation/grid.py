"""The paper's grid from tables that are there: what an embedding gains at each stage, a line a
place, and what it costs.

    python -m karmafunnel.simulator.ablation.grid "with ids=out/funnel/table.csv" \\
        "without=out/no-ids/table.csv" --name KARMA --name SASRec

Reads the `table.csv` of `funnel_ablation`, `funnel_no_ids` or any recipe whose rows are called
"NAME at PLACE", and prints Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """The row that others are held against (the first), and every (row, column) of a table.csv;
    raises KarmafunnelError for another file.
    """
    try:
        table = pl.read_csv(
            path,
            schema_overrides=dict.fromkeys(FIGURES, pl.Float64)
            | {"better": pl.String, "holm": pl.String},
        )
        found = {
            (line["row"], line["column"]): line
            for line in table.select(
                "row", "column", "seeds", *FIGURES, "better", "holm"
            ).to_dicts()
        }
        return table["row"][0], found
    except (OSError, IndexError, pl.exceptions.PolarsError) as error:
        raise KarmafunnelError(
            "grid",
            needs="the table.csv of `karmafunnel table`",
            found=f"{path}: {str(error).splitlines()[0]}",
        ) from error


def points(line: Row | None, signed: bool) -> str | Cell:
    """A share in points: the value, or the difference with its interval and mark; = at a stage
    before the embedding.
    """
    if line is None:
        return "n/a"
    value, _, _, difference, low, high = (
        None if line[x] is None else 100 * line[x] for x in FIGURES
    )
    row = {
        "value": value,
        "difference": difference,
        "low": low,
        "high": high,
        "better": line["better"],
        "holm": line["holm"] == "True",
    }
    return valued(row, signed, decimals=1)


def grid(
    tables: Sequence[tuple[str, Path]], names: Sequence[str], columns: Sequence[str] = COLUMNS
) -> str:
    """Markdown: of each table the line that others are held against, then a line a name and place;
    points, and ms a request.

    Raises KarmafunnelError where no table has a row of a name.
    """
    lines: list[list[str | Cell]] = []
    used = set()
    for title, path in tables:
        against, found = cells(path)
        places = [(against, against, False)]
        places += [
            (f"{name} at {place}", f"{name} at {place}", True) for name in names for place in PLACES
        ]
        for row, label, signed in places:
            if (row, columns[0]) not in found and (row, COST) not in found:
                continue
            used |= {name for name in names if row.startswith(f"{name} at ")}
            some = [found.get((row, column)) for column in columns]
            cost, seeds = (
                found.get((row, COST)),
                next(line["seeds"] for (name, _), line in found.items() if name == row),
            )
            ms = "n/a" if cost is None else number(cost["value"], decimals=1)
            lines.append(
                [
                    title if row == against else "",
                    label,
                    str(seeds),
                    *(points(line, signed) for line in some),
                    ms,
                ]
            )
    if missing := [name for name in names if name not in used]:
        raise KarmafunnelError(
            f"grid: no row {missing[0]!r} at {' or '.join(PLACES)} in {', '.join(str(path) for _, path in tables)}"
        )
    return to_markdown(Table(["", "", "seeds", *columns, "ms"], lines, text_columns=2))


@click.command()
@click.argument("tables", nargs=-1, required=True, metavar="TITLE=TABLE.csv...")
@click.option(
    "--name",
    "names",
    multiple=True,
    default=("KARMA",),
    show_default=True,
    help="Embeddings, as rows call them.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    default=COLUMNS,
    show_default=True,
    help="Columns of the tables, shares all.",
)
def main(tables: tuple[str, ...], names: tuple[str, ...], columns: tuple[str, ...]) -> None:
    """Print what embeddings gain at each stage, from finished tables: points over the row that each
    table is held against.
    """
    given = [(title, Path(path)) for title, _, path in (text.rpartition("=") for text in tables)]
    try:
        print(grid(given, names, columns), end="")
    except KarmafunnelError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
