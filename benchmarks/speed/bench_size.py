"""What a log of 1M items, 500,000 users and 20M exposures costs: seconds and memory of each step.

    python -m karmafunnel.benchmarks.speed.bench_size --scale 1.0 --out bench-size

Makes a log of that size, then checks, describes, fits and replays it, each step in a process of its
own, and simulates a million requests under load. Steps that are done are kept in `--out`, so the
same command goes on after an interruption. `--growth A B C` prints, from the results of several
scales, the exponent of each step: time and memory as a power of the size.

The log is no `World`: it is made for its size alone, a block of requests at a time. Users have
tastes among groups of items, items are popular by a power law within their group, and what is
clicked depends on position, popularity and taste, so that a funnel has something to learn.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
import pyarrow.parquet as pq

from ...cli import OneLineErrors
from ...files import (
    LOG,
    atomic_folder,
    claim,
    read_json,
    read_table,
    seal,
    write_json,
    write_parquet,
)
from ...layout import EXPOSURES, REQUESTS, complete_meta, conform
from ...log import contents
from ...simulator.report.table import Table, to_markdown
from .bench_queueing import four_stages

ITEMS_AT_1, USERS_AT_1 = 1_000_000, 500_000
REQUESTS_AT_1, SHOWN = 2_000_000, 10  # items of a list
GROUPS = 200  # of items, such as "running shoes"
STYLES = 8  # of items and users within a group
BLOCK = 50_000  # requests that are made at a time
START, DAYS = 1_704_067_200_000, 60  # ms since 1970, the first of 2024
FUNNEL = Path(__file__).with_name("size_funnel.py")
LIMIT = 5000  # requests that are replayed


# -- the log ---------------------------------------------------------------------------------------


def words(many: int, syllables: int, seed: int) -> np.ndarray:
    """Invented words, each once: (many,) of str."""
    rng = np.random.default_rng(seed)
    consonants, vowels = list("bdfgklmnprstvz"), list("aeiou")
    found: dict[str, None] = {}
    while len(found) < many:
        parts = []
        for _ in range(syllables):
            parts.append(str(rng.choice(consonants)) + str(rng.choice(vowels)))
        found["".join(parts)] = None
    return np.array(list(found))


class Shop:
    """The items and users of a log: groups, styles and prices by row number."""

    def __init__(self, items: int, users: int, seed: int = 0, shown: int = SHOWN):
        rng = np.random.default_rng([seed, 0])
        self.items, self.users, self.seed, self.shown = items, users, seed, shown
        self.size = items // GROUPS  # items of a group, the most popular first
        self.style = rng.integers(0, STYLES, items).astype(np.int8)
        self.price = np.round(np.exp(rng.normal(3, 0.8, items)), 2)
        self.tastes = rng.integers(0, GROUPS, (users, 3)).astype(np.int16)
        self.likes = rng.integers(0, STYLES, users).astype(np.int8)
        self.nouns, self.kinds = words(GROUPS * 3, 3, seed), words(STYLES * 4, 2, seed + 1)
        self.brands = words(500, 4, seed + 2)

    def table(self) -> pl.DataFrame:
        """The table of items; rows stand in a scrambled order."""
        rng = np.random.default_rng([self.seed, 1])
        item = np.arange(self.items)
        group = self.group(item)
        noun = self.nouns[group * 3 + rng.integers(0, 3, self.items)]
        kind = self.kinds[self.style * 4 + rng.integers(0, 4, self.items)]
        brand = self.brands[(group * 7 + rng.integers(0, 20, self.items)) % len(self.brands)]
        frame = pl.DataFrame(
            {
                "item_id": item_ids(item),
                "title": pl.Series(brand) + " " + kind + " " + noun,
                "brand": brand,
                "category": pl.Series(self.nouns[group * 3]).reshape((-1, 1)).arr.to_list(),
                "price": self.price,
            }
        )
        return conform(frame[rng.permutation(self.items)], "items", "bench_size")

    def group(self, item: np.ndarray) -> np.ndarray:
        return np.minimum(item // self.size, GROUPS - 1)

    def blocks(self, requests: int) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Requests and exposures in order of time, a block at a time."""
        for number, start in enumerate(range(0, requests, BLOCK)):
            rng = np.random.default_rng([self.seed, 2, number])
            yield self._block(np.arange(start, min(start + BLOCK, requests)), requests, rng)

    def _block(
        self, request: np.ndarray, requests: int, rng: np.random.Generator
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        n = len(request)
        # half of the requests are of a tenth of the users
        user = np.minimum((self.users * rng.random(n) ** 3.3).astype(np.int64), self.users - 1)
        group = self.tastes[user, rng.integers(0, 3, n)].astype(np.int64)
        step = DAYS * 86_400_000 // requests
        ms = START + request * step + rng.integers(0, step, n)
        share = request / requests
        window = np.select([share < 0.6, share < 0.75, share < 0.8], ["W1", "W2a", "W2b"], "W3")
        noun = self.nouns[group * 3 + rng.integers(0, 3, n)]
        kind = self.kinds[self.likes[user] * 4 + rng.integers(0, 4, n)]
        says = rng.random(n)
        query = np.where(says < 0.5, noun, np.char.add(np.char.add(kind, " "), noun))
        ids = pl.select(pl.format("q{}", pl.lit(pl.Series(request)))).to_series()
        day = (ms - START) // 86_400_000
        frame = pl.DataFrame(
            {
                "request_id": ids,
                "user_id": pl.select(pl.format("u{}", pl.lit(pl.Series(user)))).to_series(),
                "ts": pl.Series(ms).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"),
                "query": query,
                "session_id": pl.select(
                    pl.format("u{} of day {}", pl.lit(pl.Series(user)), pl.lit(pl.Series(day)))
                ).to_series(),
                "source": pl.repeat("search", n, eager=True),
                "window": window,
            }
        )
        shown, clicked, purchased = self._lists(user, group, rng)
        item = shown.ravel()
        exposures = pl.DataFrame(
            {
                "request_id": ids.gather(np.repeat(np.arange(n), self.shown)),
                "item_id": item_ids(item),
                "position": np.tile(np.arange(1, self.shown + 1, dtype=np.int32), n),
                "clicked": clicked.ravel(),
                "purchased": purchased.ravel(),
                "price_shown": self.price[item],
                "price_paid": pl.Series(
                    np.where(purchased.ravel(), self.price[item], np.nan)
                ).fill_nan(None),
                "quantity": pl.Series(purchased.ravel().astype(np.int32)),
            }
        )
        who = "bench_size"
        return conform(frame, "requests", who), conform(exposures, "exposures", who)

    def _lists(
        self, user: np.ndarray, group: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items shown, whether clicked, whether purchased: (n_requests, n_shown) each."""
        n, many = len(user), self.shown
        # rank^-0.75 within the group, no item twice
        rank = np.sort((rng.random((n, many)) ** 4 * (self.size - many)).astype(np.int64))
        rank = rng.permuted(rank + np.arange(many), axis=1)
        shown = group[:, None] * self.size + rank
        liked = self.style[shown] == self.likes[user][:, None]
        seen = 0.9 ** np.arange(many)
        chance = seen * np.where(liked, 0.35, 0.04) * (1 + 1 / (1 + rank / 5)) / 2
        clicked = rng.random((n, many)) < chance
        return shown, clicked, clicked & (rng.random((n, many)) < 0.15)


def item_ids(item: np.ndarray) -> pl.Series:
    return pl.select(pl.format("i{}", pl.lit(pl.Series(item)))).to_series()


def write_log(folder: Path, scale: float, shown: int = SHOWN) -> None:
    """Write the log of a scale, a block of requests at a time: memory depends on the catalogue
    alone.
    """
    items, users = round(ITEMS_AT_1 * scale), round(USERS_AT_1 * scale)
    requests = round(REQUESTS_AT_1 * scale)
    shop = Shop(items, users, shown=shown)
    meta = complete_meta(
        {
            "name": f"size-{scale:g}",
            "currency": "EUR",
            "licence": "generated, free to use",
            "source": f"bench_size, scale {scale:g}, lists of {shown}",
            "catalogue": "published",
            "has": {
                name: True
                for name in ("text", "query", "price", "exposures", "clicks", "purchases", "users")
            },
        }
    )
    with claim(folder, "write", LOG, force=True), atomic_folder(folder) as temporary:
        write_parquet(temporary / "items.parquet", shop.table(), compression="zstd")
        schemas: dict[str, Any] = {"requests": REQUESTS, "exposures": EXPOSURES}
        writers = {}
        for name, schema in schemas.items():
            arrow = pl.DataFrame(schema=schema).to_arrow(compat_level=pl.CompatLevel.oldest())
            path = temporary / f"{name}.parquet"
            writers[name] = pq.ParquetWriter(path, arrow.schema, compression="zstd")
        for frames in shop.blocks(requests):
            for writer, frame in zip(writers.values(), frames, strict=True):
                table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
                writer.write_table(table.cast(writer.schema))
        for writer in writers.values():
            writer.close()
        write_json(
            temporary / "log.json",
            meta | contents(temporary, ("items", "requests", "exposures")),
        )
        seal(temporary, "log.json")


# -- steps -----------------------------------------------------------------------------------------


def measured(command: list[str], log: Path) -> dict[str, Any]:
    """Run a command in a process of its own.

    Returns:
        Wall seconds, processor seconds and peak GiB (resident; and the anonymous part of it, which
        leaves out pages of files that the system may drop at any time).

    Raises:
        ClickException: with what it printed, where it fails.
    """
    start = time.perf_counter()
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        own = [0]
        watcher = threading.Thread(target=watch, args=(process.pid, own), daemon=True)
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if process.returncode:
        printed = log.read_text(encoding="utf-8", errors="replace")[-4000:]
        raise click.ClickException(f"{' '.join(command)}\n{printed}")
    return {
        "seconds": time.perf_counter() - start,
        "processor": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss / 2**20,
        "own": own[0] / 2**20,
    }


def watch(pid: int, peak: list[int]) -> None:
    """Keep the largest anonymous memory (KiB) of a process until it ends."""
    while True:
        try:
            text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        except OSError:
            return
        lines = dict(line.split(":", 1) for line in text.splitlines())
        if "RssAnon" not in lines:
            return
        peak[0] = max(peak[0], int(lines["RssAnon"].split()[0]))
        time.sleep(0.1)


def steps(folder: Path, scale: float, shown: int) -> dict[str, list[str]]:
    """The command of every step, by name."""
    own = [sys.executable, "-m", "karmafunnel"]
    log, run = str(folder / "log"), str(folder / "run")
    me = [sys.executable, "-m", "karmafunnel.benchmarks.speed.bench_size"]
    replay = [*own, "replay", str(FUNNEL), log]
    queue = [*own, "queue", str(folder / "services.toml"), "--force", "--rate", "1000"]
    return {
        "write the log": [*me, "--scale", str(scale), "--shown", str(shown), "--write", log],
        "validate": [*own, "validate", log],
        "describe": [*own, "describe", log],
        "fit, replay 256": [*replay, "--limit", "256", "--out", f"{run}-256", "--force"],
        f"replay {LIMIT:,}": [*replay, "--limit", str(LIMIT), "--out", run, "--force"],
        "queue of 1,000,000": [*queue, "--requests", "1000000", "--out", str(folder / "queue")],
    }


def index_loss(run: Path) -> str:
    """A sentence on what approximate search lost, beside exact search for the same requests."""
    column = read_table(run / "requests.parquet", "recall.index_recall").to_series()
    found = float(column.drop_nulls().to_numpy().mean())
    lost = read_table(run / "ledger.parquet", "lost").to_series()
    share = (lost == "index").sum() / len(lost)
    return (
        f"The indexes find {found:.1%} of what exact search finds; {share:.1%} of the relevant "
        "items are lost for that."
    )


def growth(results: list[dict[str, Any]]) -> Table:
    """The exponents of each step over several scales."""
    rows = []
    x = np.log([found["scale"] for found in results])
    for name in results[0]["steps"]:
        steps = [found["steps"][name] for found in results if name in found["steps"]]
        if len(steps) < len(results):
            continue
        row = [name]
        for key in ("processor", "peak"):
            values = [step[key] for step in steps]
            slope = float(np.polyfit(x, np.log(np.maximum(values, 1e-3)), 1)[0])
            row += [" / ".join(f"{v:,.2f}" for v in values), f"{slope:.2f}"]
        rows.append(row)
    return Table(["step", "processor s", "exponent", "peak GiB", "exponent"], rows)


@click.command(cls=OneLineErrors)
@click.option(
    "--scale",
    type=click.FloatRange(0.01, 10.0),
    default=0.05,
    show_default=True,
    help="1.0: a million items.",
)
@click.option("--out", default="bench-size", type=Path, show_default=True)
@click.option(
    "--shown",
    type=click.IntRange(1, 40),
    default=SHOWN,
    show_default=True,
    help="Exposures of a request.",
)
@click.option("--write", type=Path, help="Only write the log into this folder.")
@click.option("--only", multiple=True, help="Names of steps, by their beginnings.")
@click.option("--growth", "compared", multiple=True, type=Path, help="Result folders to compare.")
def main(
    scale: float,
    out: Path,
    shown: int,
    write: Path | None,
    only: tuple[str, ...],
    compared: tuple[Path, ...],
) -> None:
    """Print a table of the steps."""
    if write is not None:
        write_log(write, scale, shown)
        return
    if compared:
        print(to_markdown(growth([read_json(folder / "size.json") for folder in compared])))
        return
    out.mkdir(parents=True, exist_ok=True)
    four_stages().write(out / "services.toml")
    path = out / "size.json"
    found: dict[str, Any] = read_json(path) if path.exists() else {"scale": scale, "steps": {}}
    if not math.isclose(found["scale"], scale):
        raise click.ClickException(f"{out} holds results of scale {found['scale']}")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, Polars {pl.__version__}"
    )
    rows = []
    for name, command in steps(out, scale, shown).items():
        if only and not any(name.startswith(one) for one in only):
            continue
        if name not in found["steps"]:
            found["steps"][name] = measured(command, out / f"{name.split(',')[0]}.txt")
            write_json(path, found)
        row = found["steps"][name]
        figures = [f"{row['seconds']:.0f}", f"{row['processor']:.0f}"]
        rows.append([name, *figures, f"{row['peak']:.2f}", f"{row['own']:.2f}"])
        print(f"{name}: {row['seconds']:.0f} s, {row['peak']:.2f} GiB", file=sys.stderr, flush=True)
    heads = ["step", "seconds", "processor s", "peak GiB", "of it anonymous"]
    print(to_markdown(Table(heads, rows)))
    if (out / "run" / "ledger.parquet").exists():
        print(index_loss(out / "run"))


if __name__ == "__main__":
    main()
