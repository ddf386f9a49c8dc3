"""Which offline figure orders funnels as users would?

    python -m karmafunnel.benchmarks.validation.which_proxy MARKETPLACE... --out out/proxies

In each marketplace (a recipe file; "default" for the default one) its own engine writes a log. Each
funnel of `proxy_funnels.py` is replayed on the last window of that log, which gives the offline
figures. Then it serves all users for some days, in a shop where nothing else differs, and its lists
are worth a number of clicks and an amount of money without chance: the truth. Of all pairs of
funnels, on how many do figure and truth agree? Intervals resample funnels, not pairs.

Each funnel is kept in OUT/funnels under a hash of its code, so that the same command goes on.
Writes which_proxy.md.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from karmafunnel.benchmarks.studies import proxy_funnels
from karmafunnel.cli import OneLineErrors
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import read_json, write_json, write_text
from karmafunnel.keys import cache_root, code_of, content_key
from karmafunnel.log import Log
from karmafunnel.simulator.experiment import arms
from karmafunnel.simulator.experiment.arms import Design, Folders, run
from karmafunnel.simulator.measure.compare import measure
from karmafunnel.simulator.measure.intervals import interval
from karmafunnel.simulator.measure.run import Run
from karmafunnel.simulator.offpolicy.evaluate import evaluate
from karmafunnel.simulator.replay.market_recipe import load_marketplace
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.provenance import commit, processor
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.report.table import Table, print_table, to_markdown
from karmafunnel.simulator.world.marketplace import Marketplace
from karmafunnel.simulator.world.open_shop import Shop, open_shop
from karmafunnel.simulator.world.simulate import simulate
from karmafunnel.stages.policies import BestOrRandom
from karmafunnel.terminal import Console

ITEMS, USERS, BEFORE, DAYS = 1500, 3000, 28, 3
SLOTS = 3  # of lists, for off-policy estimates
FUNNELS = str(Path(proxy_funnels.__file__))
TRUTHS = {"clicks": "expected_clicks", "GMV": "expected_gmv"}
REWARDS = ("clicks", "GMV")
RESAMPLES = 2000


def opened(marketplace: Marketplace, seed: int) -> Shop:
    return open_shop(marketplace, items=ITEMS, users=USERS, seed=seed)


def logged(marketplace: Marketplace, seed: int, folder: Path) -> Log:
    """What the shop's own engine logs before the funnels come, with its propensities."""
    if not (folder / "log.json").exists():
        simulate(marketplace, items=ITEMS, users=USERS, days=BEFORE, seed=seed).write(folder)
    return Log.open(folder)


def proxies(name: str, log: Log, folder: Path, seed: int) -> dict[str, float | None]:
    """Every offline figure of a funnel on the log's last window."""
    recipe = load_recipe(FUNNELS, log).row(name)
    place = replay(recipe, log, folder, RunOptions(seed=seed, cache=cache_root()))
    opened_run = Run.open(place)
    last = opened_run.stages[-1]
    found: dict[str, float | None] = {}
    for row in measure(opened_run, proxy_funnels.measures, ci=False):
        for stage, words in (("recall", "at recall"), (last, "at the end")):
            if row["stage"] == stage:
                found[f"{row['measure']} {words}"] = row["value"]
    for reward in REWARDS:
        try:
            asked = evaluate(opened_run, log, BestOrRandom(0.0), reward, SLOTS, resamples=1)
            told = {row["estimator"]: row.get("value") for row in asked.rows}
        except KarmafunnelError:  # no support
            told = {}
        for estimator in ("IPS", "SNIPS", "RIPS", "DR"):
            found[f"{estimator} of {reward}, {SLOTS} slots"] = told.get(estimator)
    return found


def truth(name: str, marketplace: Marketplace, seed: int, folder: Path) -> dict[str, float]:
    """What the lists of a funnel are worth a request where it serves all users."""
    design = Design(days=DAYS, before=BEFORE, retrain=0, keep=BEFORE, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    shop, everybody = opened(marketplace, seed), np.zeros(USERS, dtype=np.int64)
    outcome = run((f"{FUNNELS}::{name}",), shop, design, Folders(folder, cache_root()), everybody)
    during = outcome.users.filter(pl.col("day") >= 0)
    requests = float(during["requests"].sum())
    return {what: float(during[column].sum()) / requests for what, column in TRUTHS.items()}


def agreement(
    proxy: np.ndarray, true: np.ndarray, world: np.ndarray, times: np.ndarray
) -> tuple[float, float]:
    """Kendall's tau-a and the share of pairs with the same sign, over pairs of one world.

    Args:
        proxy, true: of each funnel, (n,).
        world: its number, (n,).
        times: how often each funnel counts, (n,); pairs count their product, a funnel no pair with
            itself.
    """
    weight = np.outer(times, times) * (world[:, None] == world[None, :])
    np.fill_diagonal(weight, 0.0)
    signs = np.sign(proxy[:, None] - proxy[None, :]) * np.sign(true[:, None] - true[None, :])
    whole = weight.sum()
    if whole == 0:
        return np.nan, np.nan
    return float((weight * signs).sum() / whole), float((weight * (signs > 0)).sum() / whole)


def judged(found: Sequence[dict[str, Any]], proxy: str, what: str, seed: int) -> dict[str, Any]:
    """How far a figure agrees with a truth, with intervals over funnels."""
    some = [one for one in found if one["proxies"].get(proxy) is not None]
    value = np.array([one["proxies"][proxy] for one in some], dtype=float)
    true = np.array([one["truth"][what] for one in some])
    world = np.array([one["number"] for one in some])
    rng, n = np.random.default_rng(seed), len(some)
    drawn = np.array(
        [
            agreement(value, true, world, np.bincount(rng.integers(n, size=n), minlength=n))
            for _ in range(RESAMPLES)
        ]
    )
    tau, same = agreement(value, true, world, np.ones(n))
    drawn = drawn[~np.isnan(drawn[:, 0])]
    return {
        "figure": proxy,
        "truth": what,
        "funnels": n,
        "tau": tau,
        "tau interval": interval(drawn[:, 0]),
        "same": same,
        "same interval": interval(drawn[:, 1]),
    }


def table_of(found: Sequence[dict[str, Any]], seed: int) -> Table:
    """One row a figure, those that agree best with money first."""
    names = list(dict.fromkeys(name for one in found for name in one["proxies"]))
    each = []
    for name in names:
        if sum(one["proxies"].get(name) is not None for one in found) >= 4:
            each.append([judged(found, name, what, seed) for what in TRUTHS])
    each.sort(key=lambda pair: -pair[1]["tau"])

    def cell(value: float, ends: tuple[float, float]) -> str:
        return f"{value:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"

    rows = []
    for clicks, money in each:
        row = [clicks["figure"], f"{clicks['funnels']}"]
        for one in (clicks, money):
            row += [cell(one["tau"], one["tau interval"]), cell(one["same"], one["same interval"])]
        rows.append(row)
    heads = [
        "offline figure",
        "funnels",
        "clicks: tau",
        "same sign",
        "GMV: tau",
        "same sign of GMV",
    ]
    below = [
        "tau: Kendall's, between the figure and the truth, over pairs of funnels in one shop.",
        "same sign: share of pairs of which the figure says the better one. Intervals: 95%, "
        "bootstrap over funnels.",
    ]
    return Table(heads, rows, title="offline figures against the truth", below=below)


def truths_table(found: Sequence[dict[str, Any]]) -> Table:
    """The truth of each funnel."""
    rows = [
        [one["world"], one["funnel"], f"{one['truth']['clicks']:.3f}", f"{one['truth']['GMV']:.2f}"]
        for one in found
    ]
    heads = ["shop", "funnel", "clicks a request", "GMV a request"]
    return Table(heads, rows, text_columns=2, title="what the funnels are worth")


def asked(place: str) -> Marketplace:
    return Marketplace() if place == "default" else load_marketplace(place)[0]


@click.command(cls=OneLineErrors)
@click.argument("marketplaces", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--seed", type=click.IntRange(0, 1000), default=0, help="Of shops and funnels.")
@click.option("--only", multiple=True, help="These rows of proxy_funnels.py alone.")
def main(marketplaces: tuple[str, ...], out: Path, seed: int, only: tuple[str, ...]) -> None:
    """Compare what offline figures say of funnels with what they are worth to users."""
    console, found = Console(stderr=True), []
    for number, place in enumerate(marketplaces):
        market, world = asked(place), Path(place).stem
        code = code_of(market, by=(__name__, arms.__name__))
        sizes = (ITEMS, USERS, BEFORE, DAYS, SLOTS, seed)
        key = content_key(code, repr(market), Path(FUNNELS).read_text(encoding="utf-8"), *sizes)
        folder = out / "funnels" / key
        log = logged(market, seed, folder / "log")
        for name in only or list(proxy_funnels.rows(log)):
            path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.json"
            if not path.exists():
                console.print(f"{world}: {name}", style="dim")
                told = {
                    "funnel": name,
                    "proxies": proxies(name, log, folder / "runs" / path.stem, seed),
                    "truth": truth(name, market, seed, folder / "lists" / path.stem),
                }
                write_json(path, told)
            found.append(read_json(path) | {"world": world, "number": number})
    table, worth = table_of(found, seed), truths_table(found)
    for one in (worth, table):
        print_table(one, Console())
    words = shlex.join(sys.argv[1:])
    made_by = (
        f"`python -m karmafunnel.benchmarks.validation.which_proxy {words}`, seed {seed}; "
        f"{USERS:,} users, {ITEMS:,} items, {BEFORE} days of log, {DAYS} days of truth; "
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit() or 'n/a'}, one core of {processor()}."
    )
    texts = [to_markdown(one).rstrip() for one in (table, worth)]
    write_text(out / "which_proxy.md", "\n\n".join([*texts, made_by, ""]))


if __name__ == "__main__":
    main()
