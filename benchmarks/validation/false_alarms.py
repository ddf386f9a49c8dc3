"""How often an A/B test finds what is not there, and how often what is:

    python -m karmafunnel.benchmarks.validation.false_alarms --out out/false-alarms

Four hundred small shops, each with users of its own, whose two arms are both served by the shop's
engine. A test of size 5% should find a difference in 5% of them when it looks once, at the end, and
in at most 5% when it looks every day with always-valid intervals. As no arm does anything, users
can be split as often as one likes: many more splits of each shop tell luck from errors that are too
small. Then the treated users pay more, by as much as the power calculator says is found with a
power of 80%: all of them by one amount, so that their figures vary as before; or each by a lift, a
share of what they pay, which also makes their figures vary more. The share that is found stands
beside what it predicts.

Each twenty shops are kept in OUT/runs under a hash of the code, so that the same command goes on.
Writes false_alarms.md.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from karmafunnel.benchmarks.validation.made_by import made_by
from karmafunnel.cli import OneLineErrors
from karmafunnel.files import read_json, write_json, write_text
from karmafunnel.keys import code_of, content_key
from karmafunnel.simulator.experiment import figures_by_arm as figures
from karmafunnel.simulator.experiment.arms import Books, Design, Outcome
from karmafunnel.simulator.experiment.effects import effect
from karmafunnel.simulator.experiment.figures_by_arm import FIGURES, Line, Sums, read
from karmafunnel.simulator.report.table import Table, print_table, to_markdown
from karmafunnel.simulator.world.marketplace import Marketplace
from karmafunnel.simulator.world.open_shop import open_shop
from karmafunnel.terminal import Console
from scipy import stats

SHOPS, BLOCK = 400, 20
ITEMS, USERS = 300, 500
DESIGN = Design(days=7, before=7, retrain=0)
PLANTED = "GMV a user"
WAYS = ("by an amount", "by a lift")
SPLITS = 25  # more of them of each shop


def outcome_of(seed: int, users: int) -> Outcome:
    """A shop of its own, served by its engine in both arms."""
    shop = open_shop(Marketplace(), items=ITEMS, users=users, seed=seed)
    arms = replace(DESIGN, seed=seed).split.arms(np.arange(users))
    books = Books(arms, shop.items.height)
    for day in range(DESIGN.before + DESIGN.days):
        for visits in shop.day(day):
            shown = shop.logging(visits).items
            books.add(day - DESIGN.before, visits, shown, shop.answer(visits, shown))
    return books.close()


def planted(outcome: Outcome, more: float, share: bool) -> Outcome:
    """The same with treated users who pay more: on the first day that they come, by an amount, or
    (`share`) always by a share of what they pay.
    """
    during = (pl.col("arm") == 1) & (pl.col("day") >= 0)
    if share:
        gmv = pl.col("gmv") * pl.when(during).then(1.0 + more).otherwise(1.0)
    else:
        first = pl.col("day") == pl.col("day").filter(pl.col("day") >= 0).min().over("user")
        gmv = pl.col("gmv") + pl.when(during & first).then(more).otherwise(0.0)
    return Outcome(outcome.users.with_columns(gmv.alias("gmv")), outcome.items)


def found(line: Line) -> dict[str, bool]:
    """Whether a difference was found: at the end, and on any day by always-valid intervals."""
    low, high = line.effect.interval
    days = line.always
    once = bool(low > 0 or high < 0)
    ever = bool(((days[:, 0] > 0) | (days[:, 1] < 0)).any())
    peeked = any(look.interval[0] > 0 or look.interval[1] < 0 for look in line.looks)
    return {"once": once, "always valid": ever, "peeking": peeked}


def tell(seed: int, users: int = USERS) -> dict[str, Any]:
    """What one shop tells: of each figure without a difference, and of one with."""
    outcome, sellers = outcome_of(seed, users), np.arange(ITEMS)
    level = read(outcome, DESIGN, sellers)
    told, lifts = {}, {}
    line = next(line for line in level.lines if line.name == PLANTED)
    assert line.smallest is not None and line.smallest_lift is not None
    sums = Sums(outcome, DESIGN.days)
    mean = float(sums.summed("gmv").mean())
    for way, more in zip(WAYS, (line.smallest, line.smallest_lift), strict=True):
        if np.isfinite(more):
            lines = read(planted(outcome, more, way == WAYS[1]), DESIGN, sellers).lines
            told[way] = found(next(line for line in lines if line.name == PLANTED))
            lifts[way] = more if way == WAYS[1] else more / mean
    return {
        "alarms": {line.name: found(line) for line in level.lines if line.name in FIGURES},
        "splits": alarms_of_splits(sums, seed),
        "planted": told,
        "lift": lifts,
        "users": len(sums.users),
        "mismatch": level.ratio.mismatch,
    }


def alarms_of_splits(sums: Sums, seed: int) -> dict[str, float]:
    """Of each figure, the share of further splits of a shop's users that find a difference."""
    rng = np.random.default_rng([seed, 1])
    arms = [rng.permutation(sums.arm) for _ in range(SPLITS)]
    shares = {}
    for name, (total, per) in FIGURES.items():
        whole = sums.outcomes(total, per)
        pairs = [(whole.where(arm == 0), whole.where(arm == 1)) for arm in arms]
        shares[name] = float(np.mean([effect(a, b).p < 0.05 for a, b in pairs]))
    return shares


def kept(block: int, users: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """What the shops of a block tell, from the folder if it has them."""
    code = code_of(Marketplace(), DESIGN, by=(__name__, figures.__name__))
    path = folder / f"{content_key(code, ITEMS, users, repr(DESIGN), seed, block)}.json"
    if not path.exists():
        first = (seed * 1_000_003 + block * BLOCK) % 2**31
        write_json(path, [tell(first + i, users) for i in range(BLOCK)])
    told: list[dict[str, Any]] = read_json(path)
    return told


def share(hits: list[bool]) -> str:
    """A share with its exact 95% interval (Clopper & Pearson 1934)."""
    n, k = len(hits), sum(hits)
    low, high = stats.binomtest(k, n).proportion_ci()
    return f"{k / n:.1%} [{low:.1%}, {high:.1%}]"


def mean_share(shares: list[float]) -> str:
    """The mean of shops' shares with its 95% interval, shops drawn at random."""
    mean = float(np.mean(shares))
    half = stats.t.ppf(0.975, len(shares) - 1) * np.std(shares, ddof=1) / len(shares) ** 0.5
    return f"{mean:.1%} [{mean - half:.1%}, {mean + half:.1%}]"


def table_of(told: list[dict[str, Any]], users: int = USERS) -> Table:
    """One row a figure."""
    heads = ["figure", "once, at the end", f"{SPLITS} splits a shop", "every day, always valid"]
    heads.append("every day, fixed horizon")
    ways = ("once", "always valid", "peeking")
    rows = []
    for name in FIGURES:
        once, *looks = (share([one["alarms"][name][way] for one in told]) for way in ways)
        rows.append([name, once, mean_share([one["splits"][name] for one in told]), *looks])
    came = np.mean([one["users"] for one in told])
    below = [
        f"{len(told)} shops of {users:,} users, of whom {came:,.0f} come in {DESIGN.days} days "
        f"after {DESIGN.before}; the last column is what happens to those who peek without such "
        "intervals.",
        f"{SPLITS} splits a shop: looked at once, at the end; the interval is over shops.",
    ]
    for name in WAYS:
        some = [one for one in told if name in one["planted"]]
        once, *looks = (share([one["planted"][name][way] for one in some]) for way in ways)
        rows.append([f"{PLANTED}, more {name}: predicted 80.0%", once, "n/a", *looks])
        more = float(np.median([one["lift"][name] for one in some]))
        below.append(f"{name}: {more:.0%} of what users pay in the median of {len(some)} shops.")
    below += [
        f"sample ratio mismatches: {sum(one['mismatch'] for one in told)}.",
    ]
    return Table(heads, rows, title="share of tests that find a difference", below=below)


@click.command(cls=OneLineErrors)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--shops", type=click.IntRange(BLOCK, 100_000), default=SHOPS, help="How many.")
@click.option("--users", type=click.IntRange(100, 1_000_000), default=USERS, help="Of a shop.")
@click.option("--seed", type=click.IntRange(0, 1000), default=0, help="Of all shops.")
def main(out: Path, shops: int, users: int, seed: int) -> None:
    """Run A/A tests in simulated shops, and tests of an effect that was planted."""
    console, began = Console(stderr=True), time.perf_counter()
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    told: list[dict[str, Any]] = []
    for block in range(shops // BLOCK):
        told += kept(block, users, seed, folder)
        seconds = time.perf_counter() - began
        console.print(f"{len(told)} of {shops} shops, {seconds:,.0f} s", style="dim")
    table = table_of(told, users)
    print_table(table, Console())
    made = made_by("validation.false_alarms", f"seed {seed}")
    write_text(out / "false_alarms.md", f"{to_markdown(table).rstrip()}\n\n{made}\n")


if __name__ == "__main__":
    main()
