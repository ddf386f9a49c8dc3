"""Hits against money: one ranker of clicks and purchases, its list put in the order of p_click^a *
p_buy^b * price^c.

    python -m karmafunnel.benchmarks.studies.pareto LOG --out out/pareto

LOG needs shown lists with clicks and purchases, and prices: a World. Makes the table of this recipe
(as `karmafunnel table pareto LOG` does; everything up to the last stage is fitted and run once for
all rows) and draws pareto_hits and, on a World, pareto_expected (.html, .png). Choose an exponent
on W2b (`--window W2b`) and by GMV-HR, which counts what was bought: expected money is what the
ranker believes, and an order that trusts its beliefs more exploits their errors more.
"""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from karmafunnel.cli import OneLineErrors
from karmafunnel.keys import cache_root
from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder, TfidfSVD
from karmafunnel.simulator.ablation.ablate import ablate
from karmafunnel.simulator.ablation.cells import cells
from karmafunnel.simulator.ablation.lines import Line, lines_of
from karmafunnel.simulator.commands.parameters import (
    Number,
    folder,
    limit_option,
    log_argument,
    window_option,
)
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import Row, load_recipe
from karmafunnel.simulator.report.curves import write_curve
from karmafunnel.simulator.report.pareto_plot import pareto_figure
from karmafunnel.stages.features import (
    BM25,
    Feature,
    Own,
    Popularity,
    Price,
    RequestContext,
    Similarity,
    Upstream,
)
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import ESMMRank
from karmafunnel.stages.recall import BM25Recall, Join, Popular, Repeat, VectorRecall
from karmafunnel.stages.rerank import GMVRank
from karmafunnel.stages.stage import Funnel, Stage
from karmafunnel.terminal import Console

AT, DEPTH = 10, 50
X, MONEY, EXPECTED = f"HR@{AT}", f"GMV-HR@{AT}", f"eGMV@{AT}"
measures = (X, MONEY, f"{MONEY}:w99", EXPECTED)
PRICE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # exponents, beside p_click * p_buy

label = "purchase"
against = "price^0"
embedders: dict[str, Embedder] = {"tfidf": TfidfSVD(), "cooccurrence": Cooccurrence()}


def before() -> Funnel:
    """All but the last stage."""
    cheap: list[Feature] = [
        Upstream(),
        Popularity(),
        Own(),
        BM25(),
        Price(),
        Similarity("tfidf"),
        Similarity("cooccurrence"),
    ]
    channels: list[Stage] = [
        BM25Recall(k=200),
        VectorRecall("tfidf", k=200),
        VectorRecall("cooccurrence", k=100),
    ]
    channels += [Popular(k=100), Repeat(k=50)]
    return (
        Join(channels, k=400)
        >> LightGBMPreRank(k=100, features=cheap, sample=Sample(passed=100))
        >> ESMMRank(k=DEPTH, features=[*cheap, RequestContext()])
    )


def rows(log: Log) -> dict[str, Row]:
    last = {"click alone": GMVRank(buy=0.0, price=0.0, k=DEPTH)}
    last |= {f"price^{c:g}": GMVRank(price=c, k=DEPTH) for c in PRICE}
    last |= {"price alone": GMVRank(click=0.0, buy=0.0, k=DEPTH)}
    return {name: Row(before() >> stage) for name, stage in last.items()}


funnel = before() >> GMVRank(k=DEPTH)


def table_options(out: Path) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the argument LOG, the option --out and those that `lines_made` takes."""
    options = (
        click.option(
            "--minutes",
            type=Number("minutes"),
            default=600.0,
            help="Begin no new row after so long; the same command goes on.",
        ),
        click.option(
            "--seed",
            "chosen",
            type=Number("seed"),
            multiple=True,
            help="Instead of the recipe's seeds; may be given several times.",
        ),
        limit_option,
        window_option,
        click.option(
            "--out", type=folder, default=out, show_default=True, help="Of table and figures."
        ),
        log_argument,
    )

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in options:
            command = option(command)
        return command

    return add


def lines_made(
    file: str,
    log: Log,
    out: Path,
    window: str,
    limit: int | None,
    chosen: tuple[int, ...],
    minutes: float,
) -> list[Line]:
    """Make the table of a recipe; its lines, none where the time did not suffice for all cells."""
    recipe = load_recipe(file, log)
    options = RunOptions(
        window=window,
        limit=limit,
        cache=cache_root(),
        console=Console(stderr=True),
        command=shlex.join(
            ["python", "-m", f"karmafunnel.benchmarks.studies.{Path(file).stem}", *sys.argv[1:]]
        ),
    )
    left = ablate(recipe, log, out, options, seeds=chosen, minutes=minutes)
    return [] if left else lines_of(recipe, cells(recipe, log, out, options, seeds=chosen))


@click.command(cls=OneLineErrors)
@table_options(Path("out/pareto"))
def main(log: Path, out: Path, **table: Any) -> None:
    """Make the table, then draw its figures."""
    given = Log.open(log)
    lines = lines_made(__file__, given, out, **table)
    points = [{"row": line["row"], **line["values"]} for line in lines if line["values"]]
    for name, y, title in (
        ("hits", MONEY, "share of the money bought"),
        ("expected", EXPECTED, "what the ranker expects to earn"),
    ):
        if any(point[y]["value"] is not None for point in points):
            figure = pareto_figure(points, X, y, x_title=f"{X}, purchases", y_title=f"{y}, {title}")
            print(
                *write_curve(
                    figure, out / f"pareto_{name}.html", f"Hits against money: {given.name}"
                )
            )


if __name__ == "__main__":
    main()
