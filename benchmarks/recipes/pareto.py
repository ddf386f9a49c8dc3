"""Hits against money: one ranker of clicks and purchases, its list put in the order of p_click^a * p_buy^b * price^c.

    python -m karmafunnel.benchmarks.recipes.pareto LOG --out out/pareto

LOG needs shown lists with clicks and purchases, and prices: a World. Everything up to the last stage is fitted once; every row replays
it with exponents of its own. Writes pareto_hits and, on a World, pareto_expected (.html, .png) and pareto.csv. Choose an exponent on
W2b (`--window W2b`) and by GMV-HR, which counts what was bought: expected money is what the ranker believes, and orders that trust it
most exploit its errors most. Also a recipe: the funnel that orders by expected money.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import click
from karmafunnel.benchmarks.curves import write_curve
from karmafunnel.benchmarks.pareto import Point, pareto_figure
from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder, TfidfSVD
from karmafunnel.simulator.measures import compare, measure
from karmafunnel.simulator.recipe import Recipe
from karmafunnel.simulator.replay import cache_root, replay
from karmafunnel.simulator.run import Run
from karmafunnel.stages.base import Funnel, Stage
from karmafunnel.stages.features import BM25, Context, Feature, Own, Popularity, Price, Similarity, Upstream
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import ESMMRank
from karmafunnel.stages.recall import BM25Recall, Join, Popular, Repeat, VectorRecall
from karmafunnel.stages.rerank import GMVRank
from rich.console import Console

AT, DEPTH = 10, 50
X, MONEY, EXPECTED = f"HR@{AT}", f"GMV-HR@{AT}", f"eGMV@{AT}"
PRICE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # exponents, beside p_click * p_buy

label = "purchase"
embedders: dict[str, Embedder] = {"tfidf": TfidfSVD(), "cooccurrence": Cooccurrence()}


def before() -> Funnel:
    """All but the last stage."""
    cheap: list[Feature] = [Upstream(), Popularity(), Own(), BM25(), Price(), Similarity("tfidf"), Similarity("cooccurrence")]
    channels: list[Stage] = [BM25Recall(k=200), VectorRecall("tfidf", k=200), VectorRecall("cooccurrence", k=100)]
    channels += [Popular(k=100), Repeat(k=50)]
    return (
        Join(channels, k=400)
        >> LightGBMPreRank(k=100, features=cheap, sample=Sample(passed=100))
        >> ESMMRank(k=DEPTH, features=[*cheap, Context()])
    )


def exponents() -> dict[str, GMVRank]:
    """The last stage of every row."""
    found = {f"price^{c:g}": GMVRank(price=c, k=DEPTH) for c in PRICE}
    return {"click alone": GMVRank(buy=0.0, price=0.0, k=DEPTH), **found, "price alone": GMVRank(0.0, 0.0, 1.0, k=DEPTH)}


funnel = before() >> GMVRank(k=DEPTH)


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/pareto"), show_default=True)
@click.option("--window", default="W3", show_default=True)
@click.option("--limit", type=int, default=None, help="So many requests, evenly spaced in time.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(log: Path, out: Path, window: str, limit: int | None, seed: int) -> None:
    """Replay every row, write the table and the figures."""
    console, given = Console(stderr=True), Log.open(log)
    runs: dict[str, Run] = {}
    for name, last in exponents().items():
        recipe = Recipe("pareto", Path(__file__).read_text(), before() >> last, embedders, label)
        folder = out / name.replace(" ", "-").replace("^", "-")
        command = " ".join(sys.argv)
        replay(recipe, given, folder, seed=seed, limit=limit, cache=cache_root(), window=window, console=console, command=command)
        runs[name] = Run.open(folder)
    wanted = [X, MONEY, f"{MONEY}:w99", EXPECTED]
    points: list[Point] = []
    lines: list[dict[str, Any]] = []
    for name, run in runs.items():
        rows = {row["measure"]: row for row in measure(run, wanted) if row["stage"] == run.stages[-1]}
        points.append({"row": name, **rows})
        paired = {
            row["measure"]: row for row in compare(runs["price^0"], run, wanted, by_stage=False) if row["stage"] == run.stages[-1]
        }
        for m in wanted:
            line = {"row": name, "stage": repr(exponents()[name]), "measure": m, "n": rows[m]["n"], "against": "price^0"}
            line |= {k: rows[m][k] for k in ("value", "low", "high")}
            line |= {f"difference{tail}": paired[m][k] for tail, k in (("", "difference"), (" low", "low"), (" high", "high"))}
            lines.append(line | {"note": rows[m]["note"]})
    with (out / "pareto.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    for name, y, title in (("hits", MONEY, "share of the money bought"), ("expected", EXPECTED, "expected money of a slate")):
        if all(point[y]["value"] is None for point in points):
            console.print(f"{y}: {points[0][y]['note']}", highlight=False)
            continue
        figure = pareto_figure(points, X, y, x_title=f"{X}, purchases", y_title=f"{y}, {title}")
        console.print(*write_curve(figure, out / f"pareto_{name}.html", f"Hits against money: {given.name}"))


if __name__ == "__main__":
    main()
