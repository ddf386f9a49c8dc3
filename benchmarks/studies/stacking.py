"""What a ranker adds to its pre-ranker, where it reads the pre-ranker's score and where it does
not.

    karmafunnel table stacking LOG --out out/stacking
    python -m karmafunnel.benchmarks.studies.stacking --worlds 100-109 --out out/stacking-worlds
    python -m karmafunnel.benchmarks.studies.stacking --recipe baseline --log LOG --seed 0 --seed 1

The first is a table of one log. The others replay a funnel, this one or that of any recipe, on a
fresh World for each seed of a World, or on logs, and put them together: what the last stage adds to
the one before it, with intervals over Worlds (or logs and seeds) and users, and with `--over` what
the end of the funnel has over that of another recipe. The ranker of this recipe has the
pre-ranker's features and the request's context.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import click
import numpy as np
from karmafunnel.cli import OneLineErrors
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import write_text
from karmafunnel.keys import cache_root
from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder, TfidfSVD
from karmafunnel.simulator.commands.parameters import Number, folder, limit_option, window_option
from karmafunnel.simulator.measure.compare import Run, ask, same_requests
from karmafunnel.simulator.measure.differences import paired, sampled
from karmafunnel.simulator.measure.intervals import interval, over_seeds
from karmafunnel.simulator.measure.measures.measure import parse_all
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.provenance import processor
from karmafunnel.simulator.replay.recipe import Row, load_recipe
from karmafunnel.simulator.replay.replay import claim_run, replay
from karmafunnel.simulator.report.measure_table import between
from karmafunnel.simulator.report.table import Cell, Table, number, to_markdown
from karmafunnel.simulator.world import generate
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
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import BM25Recall, ItemKNN, Join, Popular, Repeat, VectorRecall
from karmafunnel.stages.stage import Funnel, Stage
from karmafunnel.terminal import Console

seeds, against, by_stage = (0,), "reads the pre-ranker", True
measures = ("HR@1", "HR@10", "nDCG@10", "HR@50")
added = ("HR@1", "HR@10", "nDCG@10", "GMV-HR@10", "gAUC:request:exposures")
DRAWS = 2000


def embedders(log: Log) -> dict[str, Embedder]:
    return {"cooccurrence": Cooccurrence()} | ({"tfidf": TfidfSVD()} if log.has("text") else {})


def funnel_of(log: Log, reads: bool) -> Funnel:
    """The funnel, whose ranker `reads` what the pre-ranker says, or does not."""
    channels: list[Stage] = [
        Repeat(k=300),
        ItemKNN(k=300, depth=60),
        Popular(k=100),
        Popular(k=100, days=14),
    ]
    near: list[Feature] = [Similarity("cooccurrence")]
    if log.has("text"):
        channels.append(VectorRecall("tfidf", k=300))
        near.append(Similarity("tfidf"))
    if log.has("text") and log.has("query"):
        channels.append(BM25Recall(k=300))
        near.append(BM25())
    features = [Popularity(), Own(depth=400), *near, *([Price()] if log.has("price") else [])]
    before = [Upstream()] if reads else []
    return (
        Join(channels, k=800)
        >> LightGBMPreRank(
            k=200, trees=200, features=[Upstream(), *features], sample=Sample(passed=100)
        )
        >> LightGBMRank(
            k=50, features=[*before, *features, RequestContext()], sample=Sample(passed=200)
        )
    )


def funnel(log: Log) -> Funnel:
    return funnel_of(log, True)


def rows(log: Log) -> dict[str, Row]:
    return {against: Row(funnel_of(log, True)), "does not": Row(funnel_of(log, False))}


# -- several Worlds or logs together ---------------------------------------------------------------


@dataclass(frozen=True)
class Gain:
    """A measure of two stages on the same requests, and the resamples of the difference,
    (n_resamples,).
    """

    before: float
    after: float
    n: int
    samples: np.ndarray


def gains(run: Run, over: Run | None = None, draws: int = DRAWS, seed: int = 0) -> dict[str, Gain]:
    """What the last stage of a Run adds to the stage before it, or has over the last stage of
    another Run, by measure; without those that the log has no value of.

    Raises:
        KarmafunnelError: for a Run of one user, and without `over` for one of a single stage.
    """
    if over is None and len(run.stages) < 2:
        raise KarmafunnelError(run.name, needs="two stages or more", found=run.stages)
    runs = [over or run, run]
    stages = [over.stages[-1] if over else run.stages[-2], run.stages[-1]]
    readings = same_requests(runs, [r.name for r in runs])
    if len(readings[0].users) < 2:
        raise KarmafunnelError(run.name, needs="requests of two users or more", found="of one")
    found = {}
    for m in parse_all(added):
        known = []
        for reading, stage in zip(readings, stages, strict=True):
            of_stage = {f.stage: f.estimate for f in ask(reading, [m], [stage], None)}
            estimate = of_stage.get(stage)
            if estimate is not None and not np.isnan(estimate.value):
                known.append(estimate)
        if len(known) == 2:
            before, after = paired(known)
            drawn = sampled([before, after], len(readings[0].users), draws, seed)
            samples = drawn[after] - drawn[before]
            found[str(m)] = Gain(before.value, after.value, after.n, samples)
    return found


def together(runs: Sequence[Mapping[str, Gain]], seed: int = 0) -> dict[str, Cell]:
    """The mean of the gains by measure, and its 95% interval: Runs drawn anew, and users inside
    each.
    """
    cells = {}
    for name in runs[0]:
        of = [run[name] for run in runs if name in run]
        low, high = interval(over_seeds([gain.samples for gain in of], seed))
        value = float(np.mean([gain.after - gain.before for gain in of]))
        row = {"value": value, "low": low, "high": high}
        cells[name] = Cell(number(value, True, 3), between(row, True, 3))
    return cells


def values(gain: Gain) -> tuple[str, str, str]:
    """The measure before, after, and their difference, as text."""
    change = number(gain.after - gain.before, True, 3)
    return number(gain.before, decimals=3), number(gain.after, decimals=3), change


def named(recipe: str, row: str) -> list[str]:
    """The parts of a Run's name that tell its recipe."""
    return [Path(recipe).stem, *row.split()]


def worlds_of(text: str, out: Path) -> list[Path]:
    """A fresh World for each seed of a range such as 100-109, made where it is not there."""
    try:
        first, last = (int(part) for part in text.split("-"))
    except ValueError:
        raise click.BadParameter(
            f"--worlds needs two seeds such as 100-109, found {text!r}"
        ) from None
    if not 0 <= first <= last:
        raise click.BadParameter(f"--worlds needs two seeds, the lower one first, found {text!r}")
    places = [out / f"world-{seed}" for seed in range(first, last + 1)]
    for seed, place in enumerate(places, first):
        if not (place / "log.json").exists():
            world = generate(
                items=2000, users=1200, requests=4000, seed=seed, semantic=0.5, images=False
            )
            world.write(place)
    return places


def replayed(place: Path, recipe: str, row: str, out: Path, options: RunOptions) -> Run:
    """The Run of a recipe, or of a row of it, on a log; replayed where it is not there."""
    name = "-".join(["run", place.name, str(options.seed), *named(recipe, row), options.window])
    log = Log.open(place)
    loaded = load_recipe(recipe, log)
    chosen = loaded.row(row) if row else loaded
    with claim_run(out / name, chosen, log, options):
        if not (out / name / "run.json").exists():
            replay(chosen, log, out / name, options)
    return Run.open(out / name)


@click.command(cls=OneLineErrors)
@click.option(
    "--worlds", default="100-109", show_default=True, help="Seeds of the Worlds, first and last."
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=folder,
    help="A log in place of Worlds; may be given several times.",
)
@click.option("--recipe", default=__file__, help="The recipe; without it, that of this study.")
@click.option(
    "--row", "row_name", default="", help=f"A row of the recipe; without one, {against!r} here."
)
@click.option("--over", help="A recipe to hold the end of the funnel against.")
@click.option("--seed", "of", multiple=True, type=Number("seed"), default=(0,), show_default=True)
@window_option
@limit_option
@click.option("--out", type=folder, default=Path("out/stacking-worlds"), show_default=True)
def main(
    worlds: str,
    logs: tuple[Path, ...],
    recipe: str,
    row_name: str,
    over: str | None,
    of: tuple[int, ...],
    window: str,
    limit: int | None,
    out: Path,
) -> None:
    """Replay a funnel on Worlds or logs; print what its last stage adds.

    Worlds and Runs that are there are not made again, whatever code made them: the note names its
    commits. A Run of another funnel, log or limit is refused.
    """
    console = Console(stderr=True)
    row_name = row_name or (against if recipe == __file__ else "")
    command = shlex.join(["python", "-m", "karmafunnel.benchmarks.studies.stacking", *sys.argv[1:]])
    heads = ["log", "seed", "measure", "n", "stage before", "last stage", "adds"]
    asked = [(recipe, row_name)]
    if over:
        asked.append((over, ""))
        heads += [f"end of {Path(over).stem}", "over it"]
    what = "-".join([*named(*asked[0]), window])
    lines: list[list[str | Cell]] = []
    adds, beyond = [], []
    commits = set[str]()
    for place in logs or worlds_of(worlds, out):
        for seed in of:
            options = RunOptions(
                window=window,
                seed=seed,
                limit=limit,
                cache=cache_root(),
                console=console,
                command=command,
            )
            runs = [replayed(place, *each, out, options) for each in asked]
            commits |= {str(run.meta["commit"]) for run in runs}
            adds.append(gains(runs[0]))
            beyond.append(gains(runs[0], runs[1]) if over else {})
            for name, gain in adds[-1].items():
                line: list[str | Cell] = [place.name, str(seed), name, f"{gain.n:,}"]
                line += values(gain)
                if over:
                    line += values(beyond[-1][name])[::2] if name in beyond[-1] else ("", "")
                lines.append(line)
    ends = together(beyond) if over else {}
    for name, cell in together(adds).items():
        lines.append(["all", "", name, "", "", "", cell])
        if over:
            lines[-1] += ["", ends.get(name, "")]
    note = f"`{command}`, window {window}, {date.today()}, {processor()}, commit " + ", ".join(
        sorted(commits)
    )
    text = "\n".join(
        [
            to_markdown(Table(heads, lines)),
            f"{note}. Interval: 95%, {DRAWS:,} draws of Runs and of users inside each.",
            "",
        ]
    )
    write_text(out / f"{what}.md", text)
    print(text)


if __name__ == "__main__":
    main()
