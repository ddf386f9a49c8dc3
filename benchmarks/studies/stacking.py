"""What a ranker adds to its pre-ranker, where it reads the pre-ranker's score and where it does
not.

    karmafunnel table stacking LOG --out out/stacking
    python -m karmafunnel.benchmarks.studies.stacking --worlds 100-109 --out out/stacking-worlds

The first is a table of one log. The second replays the funnel on a fresh World for every seed and
puts the Worlds together: what the ranker adds in HR@10, its interval over Worlds and users. The
ranker has the pre-ranker's features and the request's context.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import click
import numpy as np
import polars as pl
from karmafunnel.files import write_text
from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder, TfidfSVD
from karmafunnel.simulator.measure.compare import Run
from karmafunnel.simulator.measure.intervals import Ratio, interval, over_seeds, resample
from karmafunnel.simulator.replay.options import RunOptions, cache_root
from karmafunnel.simulator.replay.provenance import processor
from karmafunnel.simulator.replay.recipe import Row, load_recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.report.table import Cell, Table, to_markdown
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
K, DRAWS = 10, 4000


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


# -- several Worlds together -----------------------------------------------------------------------


def gains(run: Run, k: int = K) -> pl.DataFrame:
    """Requests with a relevant item: user_id, whether the first k of `prerank` and of `rank` hold
    one, and the `gain` (-1, 0, 1).
    """
    hit = [
        (pl.col(f"{stage}.rank") <= k).fill_null(False).any().alias(stage)
        for stage in ("prerank", "rank")
    ]
    found = run.read("ledger").group_by("request_id", maintain_order=True).agg(hit)
    gain = (pl.col("rank").cast(pl.Int8) - pl.col("prerank").cast(pl.Int8)).alias("gain")
    users = run.read("requests", "request_id", "user_id")
    return found.join(users, on="request_id", maintain_order="left").select(
        "user_id", "prerank", "rank", gain
    )


def together(
    worlds: Sequence[pl.DataFrame], draws: int = DRAWS, seed: int = 0
) -> tuple[float, float | None, float | None]:
    """Mean over Worlds of the mean gain of a request, and its 95% interval: Worlds drawn anew, and
    users inside each.
    """
    samples = []
    for i, world in enumerate(worlds):
        user = world["user_id"].rank("dense").to_numpy().astype(np.int64) - 1
        gain = Ratio(world["gain"].to_numpy().astype(float), np.ones(world.height), user)
        samples += resample([gain], int(user.max()) + 1, draws, seed + i)
    return float(np.mean([world["gain"].to_numpy().mean() for world in worlds])), *interval(
        over_seeds(samples, seed)
    )


@click.command()
@click.option(
    "--worlds", default="100-109", show_default=True, help="Seeds of the Worlds, first and last."
)
@click.option("--row", "row_name", default=against, show_default=True, help="A row of this recipe.")
@click.option("--window", type=click.Choice(["W3", "W2b"]), default="W3", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out/stacking-worlds"), show_default=True
)
def main(worlds: str, row_name: str, window: str, out: Path) -> None:
    """Replay the funnel on a World for each seed; print what the ranker adds.

    Worlds and Runs that are there are not made again, whatever code made them: the note names its
    commits.
    """
    console = Console(stderr=True)
    try:
        first, last = (int(part) for part in worlds.split("-"))
    except ValueError:
        raise click.BadParameter(
            f"--worlds needs two seeds such as 100-109, found {worlds!r}"
        ) from None
    command = shlex.join(["python", "-m", "karmafunnel.benchmarks.studies.stacking", *sys.argv[1:]])
    lines: list[list[str | Cell]] = []
    found = []
    commits = set[str]()
    for seed in range(first, last + 1):
        place, run = (
            out / f"world-{seed}",
            out / f"run-{seed}-{row_name.replace(' ', '-')}-{window}",
        )
        if not (place / "log.json").exists():
            generate(
                items=2000, users=1200, requests=4000, seed=seed, semantic=0.5, images=False
            ).write(place)
        log = Log.open(place)
        if not (run / "run.json").exists():
            options = RunOptions(
                window=window, cache=cache_root(), console=console, command=command
            )
            replay(load_recipe(__file__, log).row(row_name), log, run, options)
        opened = Run.open(run)
        commits.add(str(opened.meta["commit"]))
        found.append(gains(opened))
        before = float(found[-1]["prerank"].to_numpy().mean())
        after = float(found[-1]["rank"].to_numpy().mean())
        gain = float(found[-1]["gain"].to_numpy().mean())
        lines.append(
            [str(seed), f"{found[-1].height:,}", f"{before:.3f}", f"{after:.3f}", f"{gain:+.3f}"]
        )
    value, low, high = together(found)
    whole = Cell(f"{value:+.3f}", f"[{low:+.3f}, {high:+.3f}]")
    lines.append(["all", f"{sum(f.height for f in found):,}", "", "", whole])
    note = (
        f"`{command}`, window {window}, row '{row_name}', {date.today()}, {processor()}, commit "
        f"{', '.join(sorted(commits))}"
    )
    heads = ["World", "requests", f"HR@{K}, pre-ranker", f"HR@{K}, ranker", "ranker adds"]
    text = "\n".join(
        [
            to_markdown(Table(heads, lines)),
            f"{note}. Interval: 95%, {DRAWS:,} draws of Worlds and of users inside each.",
            "",
        ]
    )
    write_text(out / f"stacking-{row_name.replace(' ', '-')}-{window}.md", text)
    print(text)


if __name__ == "__main__":
    main()
