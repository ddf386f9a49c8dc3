"""What share of replay time the features take, by feature, in one run.

    python -m karmafunnel.benchmarks.speed.bench_features --recipe baseline logs/world

Without a log it makes a World of 5,000 items and keeps it under the cache folder. Replay is what a
Run costs: recall, features, models, ranks, ledgers and Parquet, chunk by chunk; the first chunk is
not counted (timelines and thread pools are made there). Vectors of requests, which recall searches
with and features compare with, have a line of their own.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
from karmafunnel.cli import OneLineErrors
from karmafunnel.keys import cache_root
from karmafunnel.log import Log
from karmafunnel.simulator.replay.options import CHUNK, RunOptions
from karmafunnel.simulator.replay.prepare import prepare
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.shards import write_shard
from karmafunnel.simulator.replay.tables import RunWriter
from karmafunnel.simulator.world import generate
from karmafunnel.stages.rows import Place


def world() -> Log:
    folder = cache_root() / "bench-features-world"
    if not folder.exists():
        generate(items=5000, requests=8000, seed=0, images=False).write(folder)
    return Log.open(folder)


@click.command(cls=OneLineErrors)
@click.argument("log", type=click.Path(path_type=Path), required=False)
@click.option("--recipe", default="baseline", show_default=True)
@click.option(
    "--chunks", default=6, show_default=True, help=f"Chunks of {CHUNK} requests that are timed."
)
def main(log: Path | None, recipe: str, chunks: int) -> None:
    """Print seconds and share of replay time, by feature."""
    opened = world() if log is None else Log.open(log)
    fitted = prepare(load_recipe(recipe, opened), opened, RunOptions(cache=cache_root()))
    ledgers, requests = RunWriter(fitted, "W3"), opened.requests_in("W3")
    fitted.run(requests[:CHUNK], ledgers.rows_to_score(requests[:CHUNK]), exact=True)
    seconds: dict[str, float] = {}
    wall, n, rows = 0.0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for i in range(1, chunks + 1):
            chunk = requests[i * CHUNK : (i + 1) * CHUNK]
            if not len(chunk):
                break
            start = time.perf_counter()
            tracked = ledgers.rows_to_score(chunk)
            steps = fitted.run(chunk, tracked, exact=True)
            write_shard(Path(folder) / f"{i}", ledgers.of_chunk(i, chunk, tracked, steps))
            wall, n = wall + time.perf_counter() - start, n + len(chunk)
            rows += sum(int(step.rows_in.sum()) + step.tracked.height for step in steps[1:])
            read: dict[Place, float] = {}
            for step in steps:
                read |= step.read
            for place, took in read.items():
                name = next(
                    (str(place[-1]) for kind in ("pairs", "columns") if kind in place),
                    "vectors of requests",
                )
                seconds[name] = seconds.get(name, 0.0) + took
    whole = sum(seconds.values())
    print(
        f"{n} requests of {opened.name}, recipe {recipe}: replay {1000 * wall / n:.2f} ms a "
        f"request, {rows / n:.0f} rows"
    )
    for name, took in sorted(seconds.items(), key=lambda kept: -kept[1]):
        print(f"  {1000 * took / n:6.3f} ms  {took / wall:6.1%}  {name}")
    print(
        f"features {1000 * whole / n:.2f} ms a request, {whole / wall:.1%} of replay time (to "
        "reach: at most 12%)"
    )


if __name__ == "__main__":
    main()
