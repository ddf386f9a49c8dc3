"""What a million simulated requests cost: seconds and memory of a marketplace under its own engine.

    python -m karmafunnel.benchmarks.speed.bench_marketplace --out marketplace_speed.md

Each row is a process of its own: the default marketplace; the same with the frames of its requests,
queries among them, which a funnel reads; and one where everything changes: tastes, seasons, fatigue
and novelty. Seconds of the processor are told beside those of the clock, which a busy machine
stretches; opening the shop is counted.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click

from ...cli import OneLineErrors
from ...files import write_text
from ...simulator.report.table import Table, number, to_markdown
from ...simulator.world.marketplace import Drift, LogNormalRates, Marketplace, Season
from ...simulator.world.open_shop import open_shop
from ...simulator.world.wants import Fatigue, Novelty

DEFAULT = Marketplace(activity=LogNormalRates(0.3))
CHANGING = replace(
    DEFAULT, wants=(*DEFAULT.wants, Fatigue(), Novelty()), season=Season(), drift=Drift()
)
ROWS = {
    "default": (DEFAULT, False),
    "default, with frames of requests": (DEFAULT, True),
    "everything changes, with frames": (CHANGING, True),
}


def simulated(row: str, requests: int, items: int, users: int, seed: int) -> dict[str, float]:
    """Seconds, of the clock and of the processor, days, requests and peak GiB of one row."""
    marketplace, frames = ROWS[row]
    clock, processor = time.perf_counter(), time.process_time()
    shop = open_shop(marketplace, items=items, users=users, seed=seed)
    done, day = 0, 0
    while done < requests:
        for visits in shop.day(day):
            if frames:
                assert visits.requests.height == len(visits)
            shop.answer(visits, shop.logging(visits).items)
            done += len(visits)
        day += 1
    return {
        "days": day,
        "requests": done,
        "seconds": time.perf_counter() - clock,
        "processor": time.process_time() - processor,
        "GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


@click.command(cls=OneLineErrors)
@click.option("--requests", type=int, default=1_000_000)
@click.option("--items", type=int, default=2000)
@click.option("--users", type=int, default=100_000)
@click.option("--seed", type=int, default=0)
@click.option("--row", type=click.Choice(list(ROWS)), help="This row alone, as JSON.")
@click.option("--out", type=Path, help="Also write the table into this file.")
def main(
    requests: int, items: int, users: int, seed: int, row: str | None, out: Path | None
) -> None:
    """Print what a million simulated requests cost."""
    if row is not None:
        print(json.dumps(simulated(row, requests, items, users, seed)))
        return
    sizes = {"requests": requests, "items": items, "users": users, "seed": seed}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    lines = []
    for name in ROWS:
        command = [sys.executable, "-m", __spec__.name, *options, "--row", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        lines.append(
            [
                name,
                f"{found['requests']:,}",
                str(found["days"]),
                number(found["seconds"], decimals=1),
                number(found["processor"], decimals=1),
                f"{found['requests'] / found['processor']:,.0f}",
                number(found["GiB"], decimals=2),
            ]
        )
    heads = ["marketplace", "requests", "days", "s", "s of one core", "a second of one core", "GiB"]
    load = os.getloadavg()[0]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the end"
    note = f"{users:,} users, {items:,} items, seed {seed}; {machine}; {time.strftime('%Y-%m-%d')}"
    table = Table(heads, lines, title="A million simulated requests", below=[note])
    text = to_markdown(table)
    print(text)
    if out is not None:
        write_text(out, text)


if __name__ == "__main__":
    main()
