"""How far should a pre-ranker agree with the ranker, and where: at the top or at the cut?

    karmafunnel table prerank_consistency LOG --window W2b --out OUT
    python -m karmafunnel.benchmarks.studies.prerank_consistency LOG --window W2b --out OUT

The first makes the table, the second draws it as well: consistency_quality, consistency_survival
and consistency_cost (.html, .png), one point a row.

Three pre-rankers learn from the log's labels, from the ranker, or from both: `weight` is the
ranker's part, `cut` the part of that which is about what the ranker would pass on of all
candidates (`Teacher`). The first row of each model has no teacher. The ranker has the same
settings in every row and is fitted on what its pre-ranker passes on; as a teacher it is fitted on
recall. It does not read the pre-ranker: one that does agrees with any pre-ranker, because it
repeats it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from karmafunnel.benchmarks.studies.pareto import lines_made, table_options
from karmafunnel.benchmarks.studies.stage_models import embedders as embedders
from karmafunnel.benchmarks.studies.stage_models import parts
from karmafunnel.cli import OneLineErrors
from karmafunnel.log import Log
from karmafunnel.simulator.ablation.lines import Line
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.simulator.report.curves import write_curve
from karmafunnel.simulator.report.pareto_plot import Point, pareto_figure
from karmafunnel.stages.features import RequestContext, Upstream
from karmafunnel.stages.learn import Sample, Teacher
from karmafunnel.stages.learner import Boosted, Neural
from karmafunnel.stages.prerank import COLDPreRank, LightGBMPreRank, TwoTowerPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.stage import Funnel

OVERLAP, RBO, SURVIVAL, QUALITY = "overlap@50", "RBO@50:0.98", "survival", "HR@10"
MS = "ms"
against = "LightGBM"
by_stage = True
measures = (OVERLAP, RBO, SURVIVAL, QUALITY, "HR@50")
SAMPLE = Sample(passed=100)
MODELS: dict[str, type[Boosted | Neural]] = {
    against: LightGBMPreRank,
    "COLD": COLDPreRank,
    "two towers": TwoTowerPreRank,
}
# (weight, cut); the first is without a teacher
DIAL = ((0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.5, 1.0), (1.0, 0.0), (1.0, 0.5), (1.0, 1.0))


def with_dial(log: Log, model: str, weight: float, cut: float) -> Funnel:
    """The funnel with a pre-ranker of some model that learns so much, and so, from the ranker."""
    recall, features = parts(log)
    own = [feature for feature in features if not isinstance(feature, Upstream)]
    ranker = LightGBMRank(k=50, features=[*own, RequestContext()], sample=SAMPLE)
    taught: dict[str, Any] = {}
    if weight:
        taught["teacher"] = Teacher(ranker, weight=weight, cut=cut)
    return recall >> MODELS[model](k=150, features=features, sample=SAMPLE, **taught) >> ranker


def funnel(log: Log) -> Funnel:
    return with_dial(log, against, 0.0, 0.0)


def rows(log: Log) -> dict[str, Row]:
    found = {}
    for model in MODELS:
        for weight, cut in DIAL:
            name = f"{model}, {weight:g} of it, {cut:g} cut" if weight else model
            found[name] = Row(with_dial(log, model, weight, cut))
    return found


def point_of(line: Line) -> Point:
    """A row as a point: agreement and survival at the pre-ranker, hits at the end, milliseconds a
    request of the pre-ranker alone.
    """
    values = line["values"]
    return {
        "row": line["row"],
        OVERLAP: values[f"{OVERLAP} at prerank"],
        SURVIVAL: values[f"{SURVIVAL} at prerank"],
        QUALITY: values[QUALITY],
        MS: {"value": line["cost"]["prerank"]},
    }


@click.command(cls=OneLineErrors)
@table_options(Path("out/prerank_consistency"))
def main(log: Path, out: Path, **table: Any) -> None:
    """Make the table, then draw its figures."""
    given = Log.open(log)
    lines = lines_made(__file__, given, out, **table)
    points = [point_of(line) for line in lines if line["values"]]
    agreement, end = f"{OVERLAP} of pre-ranker and ranker", f"{QUALITY} of the ranker"
    for name, x, y, titles, lower in (
        ("quality", OVERLAP, QUALITY, (agreement, end), ()),
        ("survival", OVERLAP, SURVIVAL, (agreement, "survival at the pre-ranker"), ()),
        ("cost", MS, QUALITY, ("ms a request, pre-ranker", end), (MS,)),
    ):
        if points:
            figure = pareto_figure(points, x, y, x_title=titles[0], y_title=titles[1], lower=lower)
            title = f"A ranker as teacher: {given.name}"
            print(*write_curve(figure, out / f"consistency_{name}.html", title))


if __name__ == "__main__":
    main()
