"""How long `karmafunnel import` takes over a large CSV, and its peak memory.

    python -m karmafunnel.benchmarks.speed.bench_import --rows 10000000

Writes user, item, event, time and price of random events (about 35 bytes a row) into a temporary
folder and imports them in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl


def write_events(path: Path, rows: int, seed: int = 0) -> None:
    """Write a CSV of 500,000 users and 100,000 items, one event in ten a purchase."""
    rng = np.random.default_rng(seed)
    pl.DataFrame(
        {
            "user": rng.integers(0, 500_000, rows),
            "item": rng.integers(0, 100_000, rows),
            "event": rng.choice(["view", "purchase"], rows, p=[0.9, 0.1]),
            "time": 1_600_000_000 + np.sort(rng.integers(0, 9_000_000, rows)),
            "price": np.round(1 + rng.random(rows) * 50, 2),
        }
    ).write_csv(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, Polars {pl.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events.csv"
        write_events(events, rows)
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "karmafunnel", "import", events, Path(folder) / "log"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20
        size = events.stat().st_size / 1e6
        print(f"import of {rows:,} rows, {size:,.0f} MB: {seconds:.0f} s, peak {peak:.2f} GiB")
        print(f"  {busy:.0f} s of processor time")


if __name__ == "__main__":
    main()
