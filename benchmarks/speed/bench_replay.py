"""What replay costs beside its kernels, and how it grows: 50,000 items, recall 1,000 -> pre-rank
200 -> DIN 50.

    python -m karmafunnel.benchmarks.speed.bench_replay

Prints (1) processor time of replay over that of the very same kernel calls (FAISS search, scores of
trees, DIN forward) made alone on the same inputs, chunk by chunk in one run; (2) time and peak
memory of 20,000 requests over 2,000, each in a process of its own. The World is made once and kept
under the cache folder.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
import polars as pl
from karmafunnel.cli import OneLineErrors
from karmafunnel.keys import cache_root
from karmafunnel.log import Log
from karmafunnel.models import ctr, gbdt
from karmafunnel.models.embedders import Cooccurrence, Embedder, TfidfSVD
from karmafunnel.simulator.replay.jobs import make_shard
from karmafunnel.simulator.replay.options import CHUNK, RunOptions
from karmafunnel.simulator.replay.prepare import prepare
from karmafunnel.simulator.replay.recipe import Recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.replay.tables import RunWriter
from karmafunnel.simulator.world import generate
from karmafunnel.stages.features import Own, Popularity, Price, RequestContext, Similarity, Upstream
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import DINRank
from karmafunnel.stages.recall import VectorRecall

EMBEDDERS: dict[str, Embedder] = {"tfidf": TfidfSVD(dim=64), "cooccurrence": Cooccurrence(dim=64)}
CHEAP = [Upstream(), Popularity(), Price(), Similarity("cooccurrence")]
FUNNEL = (
    VectorRecall("tfidf", k=1000)
    >> LightGBMPreRank(
        k=200,
        features=CHEAP,
        sample=Sample(requests=2000),
        trees=200,
        leaves=31,
        learning_rate=0.03,
    )
    >> DINRank(
        k=50, features=[*CHEAP, Own(), RequestContext()], sample=Sample(requests=1000), epochs=2
    )
)


def world(items: int, requests: int) -> Log:
    """A World whose last `requests` requests are W3: enough before them to fit a funnel."""
    folder = cache_root() / f"bench-world-{items}-{requests + 6000}"
    if not folder.exists():
        log = generate(items=items, users=4000, requests=requests + 6000, seed=0).log
        n = log.requests.height
        window = np.select(
            [np.arange(n) < 2400, np.arange(n) < 4800, np.arange(n) < 6000],
            ["W1", "W2a", "W2b"],
            "W3",
        )
        Log.make(
            log.items,
            log.requests.with_columns(pl.Series("window", window)),
            log.exposures,
            log.meta,
        ).write(folder)
    return Log.open(folder)


class Kernels:
    """Records every kernel call of a chunk, so that the same calls can be made again, alone."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, tuple, dict]] = []
        for module, name in ((faiss, "knn"), (gbdt, "predict_gbdt"), (ctr, "predict_ctr")):
            setattr(module, name, self._recorded(name, getattr(module, name)))

    def _recorded(self, name: str, kernel: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, kernel, args, kwargs))
            return kernel(*args, **kwargs)

        return call

    def again(self) -> dict[str, float]:
        seconds: dict[str, float] = {}
        for name, kernel, args, kwargs in self.calls:
            start = time.process_time()
            kernel(*args, **kwargs)
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - start
        self.calls.clear()
        return seconds


def overhead(log: Log, chunks: int) -> None:
    """Processor time of replay (scoring, ranking, ledgers, Parquet) over that of its kernels, side
    by side.
    """
    fitted = prepare(
        Recipe("bench", "", FUNNEL, EMBEDDERS, "click"), log, RunOptions(cache=cache_root())
    )
    ledgers = RunWriter(fitted, "W3")
    requests = log.requests_in("W3")
    kernels = Kernels()
    whole, alone = 0.0, {"knn": 0.0, "predict_gbdt": 0.0, "predict_ctr": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(chunks + 1):
            start = time.process_time()
            for error in make_shard({Path(folder): ledgers}, requests, CHUNK, i).values():
                raise error
            took = time.process_time() - start
            if i == 0:  # timelines and thread pools are made once, here
                kernels.calls.clear()
                continue
            whole += took
            for name, seconds in kernels.again().items():
                alone[name] += seconds
    n = chunks * CHUNK
    print(
        f"requests {n}, replay {1000 * whole / n:.2f} ms a request, kernels alone "
        f"{1000 * sum(alone.values()) / n:.2f} ms"
    )
    print("  " + ", ".join(f"{name} {1000 * s / n:.2f} ms" for name, s in alone.items()))
    print(f"replay / kernels = {whole / sum(alone.values()):.3f} (to reach: at most 1.5)")


def growth(items: int, requests: int) -> None:
    """Time and peak memory of ten times the requests, each size in a process of its own."""
    facts = []
    for n in (requests // 10, requests):
        command = [
            sys.executable,
            "-m",
            "karmafunnel.benchmarks.speed.bench_replay",
            "--items",
            str(items),
            "--requests",
            str(requests),
            "--only",
            str(n),
        ]
        facts.append(
            json.loads(
                subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
            )
        )
        print(f"{n} requests: {facts[-1]['seconds']:.1f} s, peak {facts[-1]['mib']:.0f} MiB")
    print(
        f"time x {facts[1]['seconds'] / facts[0]['seconds']:.2f} (at most 10.5), memory x "
        f"{facts[1]['mib'] / facts[0]['mib']:.2f} (at most 1.2)"
    )


@click.command(cls=OneLineErrors)
@click.option("--items", default=50_000, show_default=True)
@click.option("--requests", default=20_000, show_default=True)
@click.option(
    "--chunks", default=8, show_default=True, help="Chunks of requests for the overhead figure."
)
@click.option(
    "--only", type=int, help="Replay so many requests and print seconds and peak memory as JSON."
)
def main(items: int, requests: int, chunks: int, only: int | None) -> None:
    """Print the overhead and growth figures."""
    log = world(items, requests)
    if only is None:
        overhead(log, chunks)
        growth(items, requests)
        return
    recipe = Recipe("bench", "", FUNNEL, EMBEDDERS, "click")
    prepare(recipe, log, RunOptions(cache=cache_root()))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        replay(recipe, log, Path(folder) / "run", RunOptions(limit=only, cache=cache_root()))
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
