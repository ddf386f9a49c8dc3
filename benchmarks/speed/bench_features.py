"""What share of replay time the features take, by feature, in one run.

    python -m karmafunnel.benchmarks.speed.bench_features --recipe baseline logs/world

Without a log it makes a World of 5,000 items and keeps it under the cache folder. Replay is what a
Run costs: recall, features, models, ranks, ledgers and Parquet, chunk by chunk; the first chunk is
not counted (timelines and thread pools are made there). A vector that several features and stages
read is counted where it is first asked for: an interest that recall searched with is none.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from karmafunnel.log import Log
from karmafunnel.simulator.replay.prepare import cache_root, prepare
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.replay import CHUNK
from karmafunnel.simulator.replay.tables import Ledgers
from karmafunnel.simulator.world import generate
from karmafunnel.stages import features
from karmafunnel.stages.features import Feature


class Clock:
    """Times every feature wherever a stage computes it, and all of them together: seconds by name.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.seconds: dict[str, float] = {}
        self.rows = 0
        kinds: list[type[Any]] = [Feature, *subclasses(Feature)]
        for kind in kinds:
            kind.compute = self._timed(kind.compute, repr)
        whole = features.compute
        for module in [m for m in sys.modules.values() if getattr(m, "compute", None) is whole]:
            module.compute = self._timed(self._counted(whole), lambda _: "all")  # type: ignore[attr-defined]

    def _timed(self, compute: Any, name: Any) -> Any:
        def call(self_: Any, *args: Any) -> Any:
            start = self.now()
            out = compute(self_, *args)
            self.seconds[name(self_)] = self.seconds.get(name(self_), 0.0) + self.now() - start
            return out

        return call

    def _counted(self, compute: Any) -> Any:
        def call(*args: Any) -> Any:
            out = compute(*args)
            self.rows += len(out)
            return out

        return call


def subclasses(kind: type[Any]) -> list[type[Any]]:
    """Every class below `kind` that has a `compute` of its own."""
    below: list[type[Any]] = [c for s in kind.__subclasses__() for c in (s, *subclasses(s))]
    return [c for c in dict.fromkeys(below) if "compute" in vars(c)]


def world() -> Log:
    folder = cache_root() / "bench-features-world"
    if not folder.exists():
        generate(items=5000, requests=8000, seed=0, images=False).write(folder)
    return Log.open(folder)


@click.command()
@click.argument("log", type=click.Path(path_type=Path), required=False)
@click.option("--recipe", default="baseline", show_default=True)
@click.option("--chunks", default=6, show_default=True, help=f"Chunks of {CHUNK} requests that are timed.")
@click.option("--cpu", is_flag=True, help="Processor time, not wall time: for one thread on a machine that others use.")
def main(log: Path | None, recipe: str, chunks: int, cpu: bool) -> None:
    """Print seconds and share of replay time, by feature."""
    opened = world() if log is None else Log.open(log)
    fitted = prepare(load_recipe(recipe, opened), opened, cache=cache_root())
    ledgers, requests = Ledgers(fitted, "W3"), opened.requests_in("W3")
    ledgers.shard(requests[:CHUNK], 0)
    now = time.process_time if cpu else time.perf_counter
    clock, wall, n = Clock(now), 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        for i in range(1, chunks + 1):
            chunk = requests[i * CHUNK : (i + 1) * CHUNK]
            start = now()
            for name, frame in (ledgers.shard(chunk, i) if len(chunk) else {}).items():
                frame.write_parquet(Path(folder) / f"{name}.parquet", compression="lz4", statistics=False)
            wall, n = wall + now() - start, n + len(chunk)
    whole = clock.seconds.pop("all")
    print(f"{n} requests of {opened.name}, recipe {recipe}: replay {1000 * wall / n:.2f} ms a request, {clock.rows / n:.0f} rows")
    for name, seconds in sorted(clock.seconds.items(), key=lambda kept: -kept[1]):
        print(f"  {1000 * seconds / n:6.3f} ms  {seconds / wall:6.1%}  {name}")
    print(f"features {1000 * whole / n:.2f} ms a request, {whole / wall:.1%} of replay time (to reach: at most 15%)")


if __name__ == "__main__":
    main()
