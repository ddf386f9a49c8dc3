"""How fast the simulation is, and whether its memory is flat:

    python -m karmafunnel.benchmarks.speed.bench_queueing [--requests 100000]

Four stages with batches and deadlines at 1,000 requests a second, on one core, written to disk with
all events; each run is a process of its own, so that its peak memory is its own. Beside it the
floor: SimPy alone, one server a stage, no batches, nothing kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import simpy
from karmafunnel.cli import OneLineErrors
from karmafunnel.simulator.load.arrivals import Poisson
from karmafunnel.simulator.load.queueing import simulate
from karmafunnel.simulator.load.services import Service, Services, ServiceTime


def four_stages() -> Services:
    """A funnel that is busy to about 70% at 1,000 requests a second."""

    def time_(base: float, item: float) -> ServiceTime:
        return ServiceTime("lognormal", base_ms=base, request_ms=0.3, item_us=item, cv=0.4)

    return Services(
        (
            Service(
                "karma",
                time_(2.0, 0.0),
                servers=2,
                batch=8,
                wait_ms=1,
                deadline_ms=30,
                fallback="stale",
                stale_minutes=60,
            ),
            Service(
                "recall",
                time_(3.0, 0.0),
                servers=3,
                batch=4,
                wait_ms=1,
                k=500,
                queue=200,
                deadline_ms=40,
                fallback="popular",
            ),
            Service(
                "prerank",
                time_(1.0, 1.0),
                servers=2,
                batch=4,
                items=500,
                k=100,
                queue=200,
                deadline_ms=40,
            ),
            Service(
                "rank", time_(1.0, 10.0), servers=3, batch=4, items=100, queue=200, deadline_ms=40
            ),
        ),
        deadline_ms=100,
        name="four stages",
    )


def floor(n: int) -> float:
    """Seconds of SimPy alone for as many requests: four resources one after the other."""
    env, rng = simpy.Environment(), np.random.default_rng(0)
    stages = [simpy.Resource(env, 3) for _ in range(4)]

    def life():  # type: ignore[no-untyped-def]
        for stage in stages:
            with stage.request() as asked:
                yield asked
                yield env.timeout(2.0)

    def source():  # type: ignore[no-untyped-def]
        for gap in rng.exponential(1.0, n).tolist():
            yield env.timeout(gap)
            env.process(life())

    start = time.process_time()
    env.process(source())
    env.run()
    return time.process_time() - start


def one(n: int, folder: Path) -> dict[str, float | str]:
    """One simulation in this process: seconds of the processor, peak MB, digest of what was
    written.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = simulate(four_stages(), Poisson(1000.0), n, 0, out=folder / "queue", events=True)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    digest = hashlib.sha256()
    for name in ("requests", "events"):
        digest.update((folder / "queue" / f"{name}.parquet").read_bytes())
    p99 = found.summary()["latency"]["p99_ms"]["value"]
    return {
        "seconds": seconds,
        "before": before / 1024,
        "peak": peak / 1024,
        "digest": digest.hexdigest(),
        "p99": p99,
    }


@click.command(cls=OneLineErrors)
@click.option("--requests", "n", default=100_000, show_default=True)
@click.option("--child", type=int, hidden=True)
def main(n: int, child: int | None) -> None:
    """Print requests a minute, memory by length of the run, and whether two runs are the same
    bytes.
    """
    if child:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(one(child, Path(folder))))
        return
    runs = []
    for size in (n // 4, n, n, 4 * n):
        command = [
            sys.executable,
            "-m",
            "karmafunnel.benchmarks.speed.bench_queueing",
            "--child",
            str(size),
        ]
        told = subprocess.run(
            command,
            check=True,
            capture_output=True,
            encoding="utf-8",
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ).stdout
        runs.append((size, json.loads(told)))
        found = runs[-1][1]
        print(
            f"{size:>9,} requests: {found['seconds']:6.1f} s of processor time, "
            f"{60 * size / found['seconds']:>9,.0f} requests a minute, "
            f"memory {found['before']:.0f} MB before, {found['peak']:.0f} MB at most, p99 "
            f"{found['p99']:.1f} ms"
        )
    bare = floor(n)
    ratio = runs[1][1]["seconds"] / bare
    print(
        f"SimPy alone, nothing batched, nothing kept: {60 * n / bare:,.0f} requests a minute; "
        f"ours takes {ratio:.1f} times as long"
    )
    print("two runs, same bytes:", "yes" if runs[1][1]["digest"] == runs[2][1]["digest"] else "NO")


if __name__ == "__main__":
    main()
