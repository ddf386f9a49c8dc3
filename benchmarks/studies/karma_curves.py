"""When KARMA pays: its gain over the action-only control, over how semantic taste is and over how
much was logged.

    python -m karmafunnel.benchmarks.studies.karma_curves CATALOGUE --out out/curves [--minutes 10]

CATALOGUE is a converted amazon_catalog. All rows read words as well (`beside`), which is the
strongest control. Worlds differ in `semantic` alone; training sets are shares of one World's users,
passed over more often the smaller they are, so that every model takes as many steps and the control
is not merely undertrained. Each cell is kept, so the same command goes on. Writes gain_semantic and
gain_size (.html, .png, .csv). Also a recipe for `karmafunnel table`.
"""

import csv
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from karmafunnel.benchmarks.studies.karma_controls import WORDS, sentence_encoder
from karmafunnel.cli import OneLineErrors
from karmafunnel.keys import cache_root
from karmafunnel.log import Catalogue, Log, read
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import KARMA
from karmafunnel.simulator.ablation.ablate import ablate
from karmafunnel.simulator.ablation.cells import cells as cells_of
from karmafunnel.simulator.ablation.lines import lines_of
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.report.curves import curve_figure, write_curve
from karmafunnel.simulator.world import generate
from karmafunnel.stages.recall import VectorRecall
from karmafunnel.terminal import Console

SHARES, COLUMNS = (0.25, 0.5, 1.0), ("HR@50", "HR@200")
ITEMS, USERS, REQUESTS = 3000, 1000, 6000

funnel = VectorRecall("interest", k=200)
label = "click"
against = "action-only, all users"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target")
seeds = (0, 1)


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    name = {1.0: "all users", 0.5: "half of the users", 0.25: "a quarter of the users"}
    found: dict[str, Embedder] = {}
    for share in reversed(SHARES):
        plain = KARMA(rate=2e-3, beside=(WORDS,), share=share, epochs=round(6 / share))
        found[f"action-only, {name[share]}"] = plain
        found[f"KARMA, {name[share]}"] = replace(plain, rec=1.0)
        # any second task
        found[f"shuffled texts, {name[share]}"] = replace(plain, rec=1.0, shuffled=True)
    found |= sentence_encoder(log)
    return {row: {"interest": value} for row, value in found.items()}


def gains(
    log: Log, out: Path, share: float, minutes: float, console: Console
) -> list[dict[str, Any]]:
    """KARMA and its shuffled control, less action-only, at one share of the users; empty while its
    cells are not all there.
    """
    recipe = load_recipe(__file__, log)
    tail = {1.0: "all users", 0.5: "half of the users", 0.25: "a quarter of the users"}[share]
    recipe = replace(
        recipe,
        rows={k: v for k, v in recipe.rows.items() if k.endswith(tail)},
        against=f"action-only, {tail}",
    )
    command = shlex.join(
        ["python", "-m", "karmafunnel.benchmarks.studies.karma_curves", *sys.argv[1:]]
    )
    left = ablate(
        recipe,
        log,
        out,
        RunOptions(cache=cache_root(), console=console, command=command),
        minutes=minutes,
    )
    if left:
        return []
    lines = {line["row"]: line for line in lines_of(recipe, cells_of(recipe, log, out))}
    points = []
    for kind in ("KARMA", "shuffled texts"):
        for column in COLUMNS:
            row = lines[f"{kind}, {tail}"]["differences"][column]
            points.append(
                {
                    "row": f"{kind}, {column}",
                    "value": row["difference"],
                    "low": row["low"],
                    "high": row["high"],
                }
            )
    return points


@click.command(cls=OneLineErrors)
@click.argument("catalogue", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out/curves"), show_default=True
)
@click.option(
    "--minutes", type=float, default=600.0, help="Begin no new cell of a point after so long."
)
def main(catalogue: Path, out: Path, minutes: float) -> None:
    """Make the Worlds, fit the rows, write the two curves."""
    console = Console(stderr=True)
    given = read(catalogue)
    by_knob: list[dict[str, Any]] = []
    by_size: list[dict[str, Any]] = []
    for semantic in (0.5, 0.0, 1.0):
        folder = out / f"world-{semantic:g}"
        if not (folder / "log.json").exists():
            catalogue_alone = Catalogue(given.items, given.meta)
            generate(
                items=ITEMS,
                users=USERS,
                requests=REQUESTS,
                seed=0,
                semantic=semantic,
                catalogue=catalogue_alone,
            ).write(folder)
        log = Log.open(folder)
        for share in SHARES[::-1] if semantic == 0.5 else (1.0,):
            points = gains(log, out / f"cells-{semantic:g}", share, minutes, console)
            if share == 1.0:
                by_knob += [point | {"semantic": semantic} for point in points]
            if semantic == 0.5:
                by_size += [point | {"share": share} for point in points]
    for name, points, x, title in (
        ("gain_semantic", by_knob, "semantic", "How much of taste is semantic"),
        ("gain_size", by_size, "share", "Share of the users trained on"),
    ):
        if not points:
            continue
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [x, "row", "value", "low", "high"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(points)
        figure = curve_figure(
            points, x, x_title=title, y_title="gain over action-only", reference=0
        )
        print(
            *write_curve(figure, out / f"{name}.html", "KARMA's gain over its action-only control")
        )


if __name__ == "__main__":
    main()
