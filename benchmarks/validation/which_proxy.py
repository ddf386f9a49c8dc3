"""Which offline figure orders funnels as users would?

    python -m karmafunnel.benchmarks.validation.which_proxy MARKETPLACE... --out out/proxies

In each marketplace (a recipe file, a World that was made by one, "default" for the default one) its
own engine writes a log. Each
funnel of `proxy_funnels.py` is replayed on the last window of that log, which gives the offline
figures. Then it serves all users for some days, in a shop where nothing else differs, and its lists
are worth a number of clicks and an amount of money without chance: the truth. Of all pairs of
funnels, on how many do figure and truth agree? Intervals resample funnels, not pairs.

Each funnel is kept in OUT/funnels under a hash of its code, so that the same command goes on.
Writes which_proxy.md and which_proxy.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from karmafunnel.benchmarks.studies import proxy_funnels
from karmafunnel.benchmarks.validation.made_by import made_by
from karmafunnel.cli import OneLineErrors
from karmafunnel.errors import KarmafunnelError, meant
from karmafunnel.files import read_json, write_json, write_text
from karmafunnel.keys import cache_root, code_of, content_key
from karmafunnel.log import Catalogue, Log
from karmafunnel.simulator.experiment import arms
from karmafunnel.simulator.experiment.arms import Design, Folders, run
from karmafunnel.simulator.measure.compare import measure
from karmafunnel.simulator.measure.intervals import interval
from karmafunnel.simulator.measure.run import Run
from karmafunnel.simulator.offpolicy.evaluate import Propensity, evaluate
from karmafunnel.simulator.replay.market_recipe import load_marketplace
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.report import plots
from karmafunnel.simulator.report.page import (
    Block,
    Figure,
    Page,
    Plot,
    Section,
    Text,
    rich,
    write_page,
)
from karmafunnel.simulator.report.table import Table, print_table, to_markdown
from karmafunnel.simulator.world.marketplace import Marketplace
from karmafunnel.simulator.world.open_shop import Shop, open_shop
from karmafunnel.simulator.world.own_goods import lived_on
from karmafunnel.simulator.world.simulate import simulate
from karmafunnel.stages.policies import BestOrRandom
from karmafunnel.terminal import Console

ITEMS, USERS, BEFORE, DAYS = 1500, 3000, 28, 3
SLOTS = (1, 3)  # of lists, for off-policy estimates
ESTIMATES: dict[Propensity, tuple[str, ...]] = {
    "log": ("IPS", "SNIPS", "RIPS", "DR", "DM"),
    "clicks": ("CIPS", "CDR"),
}
DRAWN = ("HR@10 at the end", "GMV-HR@10 at the end", "gAUC:request:exposures at the end")
COLOUR, CHOICE, BEST = "#3b6fb5", "#c9822b", "#4f9d78"
STAGES = {"recall": "at recall", "prerank": "at pre-ranking"}
FEWEST = 8  # funnels that a figure is judged by
CLOSE = 0.1  # a pair is close if the better funnel is worth less than this more
FUNNELS = str(Path(proxy_funnels.__file__))
TRUTHS = {"clicks": "expected_clicks", "GMV": "expected_gmv"}
REWARDS = ("clicks", "money")
RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Market:
    """A marketplace and what it sells; None for a catalogue that is invented."""

    marketplace: Marketplace
    catalogue: Catalogue | None = None

    @classmethod
    def of(cls, place: str) -> Market:
        """By the name on the command line."""
        if place == "default":
            return cls(Marketplace())
        marketplace, _ = load_marketplace(place)
        return cls(marketplace, lived_on(Log.open(place)) if Path(place).is_dir() else None)

    @property
    def n_items(self) -> int:
        return ITEMS if self.catalogue is None else min(ITEMS, self.catalogue.items.height)

    def opened(self, seed: int) -> Shop:
        return open_shop(
            self.marketplace, items=self.n_items, users=USERS, seed=seed, catalogue=self.catalogue
        )

    def logged(self, seed: int, folder: Path) -> Log:
        """What the shop's own engine logs before the funnels come, with its propensities."""
        if not (folder / "log.json").exists():
            simulate(
                self.marketplace,
                items=self.n_items,
                users=USERS,
                days=BEFORE,
                seed=seed,
                catalogue=self.catalogue,
            ).write(folder)
        return Log.open(folder)


def asked_for(only: Sequence[str]) -> list[str]:
    """The funnels asked for, by default all; raises KarmafunnelError for an unknown one."""
    known = list(proxy_funnels.rows())
    for name in only:
        if name not in known:
            hint = meant(name, known)
            raise KarmafunnelError("--only", needs=f"one of {known}", found=repr(name), hint=hint)
    return [name for name in known if name in only or not only]


def proxies(name: str, log: Log, folder: Path, seed: int) -> dict[str, float | None]:
    """Every offline figure of a funnel on the log's last window."""
    recipe = load_recipe(FUNNELS, log).row(name)
    place = replay(recipe, log, folder, RunOptions(seed=seed, cache=cache_root()))
    opened_run = Run.open(place)
    last = opened_run.stages[-1]
    found: dict[str, float | None] = {}
    for row in measure(opened_run, proxy_funnels.measures, ci=False):
        if row["stage"] in STAGES:
            found[f"{row['measure']} {STAGES[row['stage']]}"] = row["value"]
        if row["stage"] == last:
            found[f"{row['measure']} at the end"] = row["value"]
    for reward, slots, propensity in product(REWARDS, SLOTS, ESTIMATES):
        try:
            asked = evaluate(
                opened_run,
                log,
                BestOrRandom(0.0),
                reward,
                slots,
                resamples=1,
                propensity=propensity,
            )
            told = {row["estimator"]: row.get("value") for row in asked.rows}
        except KarmafunnelError:  # no support
            told = {}
        for estimator in ESTIMATES[propensity]:
            if estimator in told:
                words = f"{slots} slots" if slots > 1 else "first slot"
                found[f"{estimator} of {reward}, {words}"] = told[estimator]
    return found


def truth(name: str, market: Market, seed: int, folder: Path) -> dict[str, float]:
    """What the lists of a funnel are worth a request where it serves all users."""
    slots = market.marketplace.engine.slots
    design = Design(days=DAYS, before=BEFORE, retrain=0, keep=BEFORE, slots=slots, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    shop, everybody = market.opened(seed), np.zeros(USERS, dtype=np.int64)
    outcome = run((f"{FUNNELS}::{name}",), shop, design, Folders(folder, cache_root()), everybody)
    during = outcome.users.filter(pl.col("day") >= 0)
    requests = float(during["requests"].sum())
    return {what: float(during[column].sum()) / requests for what, column in TRUTHS.items()}


def agreement(
    proxy: np.ndarray, true: np.ndarray, world: np.ndarray, times: np.ndarray
) -> tuple[float, float, float]:
    """Kendall's tau-a, the share of pairs with the same sign, and that of close pairs, over pairs
    of one world.

    Args:
        proxy, true: of each funnel, (n,).
        world: its number, (n,).
        times: how often each funnel counts, (n,); pairs count their product, a funnel no pair with
            itself.
    """
    weight = np.outer(times, times) * (world[:, None] == world[None, :])
    np.fill_diagonal(weight, 0.0)
    signs = np.sign(proxy[:, None] - proxy[None, :]) * np.sign(true[:, None] - true[None, :])
    close = weight * (np.maximum.outer(true, true) < (1.0 + CLOSE) * np.minimum.outer(true, true))

    def share(weight: np.ndarray, of: np.ndarray) -> float:
        whole = weight.sum()
        return float((weight * of).sum() / whole) if whole else np.nan

    return share(weight, signs), share(weight, signs > 0), share(close, signs > 0)


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
    told: dict[str, Any] = {"figure": proxy, "truth": what, "funnels": n}
    whole = agreement(value, true, world, np.ones(n))
    for name, figure, others in zip(("tau", "same", "close"), whole, drawn.T, strict=True):
        told[name] = figure
        told[f"{name} interval"] = interval(others[~np.isnan(others)])
    return told


def table_of(found: Sequence[dict[str, Any]], seed: int, where: str) -> Table:
    """One row a figure, those that agree best with money first."""
    names = list(dict.fromkeys(name for one in found for name in one["proxies"]))
    each, few = [], []
    for name in names:
        if sum(one["proxies"].get(name) is not None for one in found) >= FEWEST:
            each.append([judged(found, name, what, seed) for what in TRUTHS])
        else:
            few.append(name)
    each.sort(key=lambda pair: -pair[1]["tau"])

    def cell(value: float, ends: tuple[float, float]) -> str:
        return "n/a" if np.isnan(value) else f"{value:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"

    rows = []
    for clicks, money in each:
        row = [clicks["figure"], f"{clicks['funnels']}"]
        for one in (clicks, money):
            row += [cell(one[name], one[f"{name} interval"]) for name in ("tau", "same", "close")]
        rows.append(row)
    told = ("tau", "same sign", "same sign, close pairs")
    heads = ["offline figure", "funnels"]
    heads += [f"{what}: {name}" for what in TRUTHS for name in told]
    below = [
        "tau: Kendall's, between the figure and the truth, over pairs of funnels in one shop.",
        "same sign: share of pairs of which the figure says the better one. Intervals: 95%, "
        "bootstrap over funnels.",
        f"close pairs: the better funnel is worth less than {CLOSE:.0%} more.",
        "funnels: of which there is the figure. IPS, SNIPS, RIPS and DR are refused where the log "
        "shows too few of a funnel's lists; HR@K where a stage passes fewer than K items.",
    ]
    if few:
        below.append(f"left out, of fewer than {FEWEST} funnels: {', '.join(few)}.")
    return Table(heads, rows, title=f"offline figures against the truth, {where}", below=below)


def truths_table(found: Sequence[dict[str, Any]]) -> Table:
    """The truth of each funnel."""
    rows = [
        [one["world"], one["funnel"], f"{one['truth']['clicks']:.3f}", f"{one['truth']['GMV']:.2f}"]
        for one in found
    ]
    heads = ["shop", "funnel", "clicks a request", "GMV a request"]
    return Table(heads, rows, text_columns=2, title="what the funnels are worth")


def scatter(found: Sequence[dict[str, Any]]) -> Plot:
    """Money a request over some figures, a point a funnel, one row a shop."""
    worlds = list(dict.fromkeys(one["world"] for one in found))
    domains, height = plots.panes(len(worlds) * len(DRAWN), len(DRAWN), 240, gap=0.1, row_gap=80)
    layout, data = plots.blank(height, left=60, bottom=48), []
    for i, ((world, figure), domain) in enumerate(
        zip(product(worlds, DRAWN), domains, strict=True)
    ):
        some = [
            one for one in found if one["world"] == world and one["proxies"].get(figure) is not None
        ]
        chosen = max(some, key=lambda one: one["proxies"][figure], default=None)
        best = max(some, key=lambda one: one["truth"]["GMV"], default=None)
        colours = {id(chosen): CHOICE} | {id(best): BEST}
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [one["proxies"][figure] for one in some],
                "y": [one["truth"]["GMV"] for one in some],
                "customdata": [rich("{}", one["funnel"]) for one in some],
                "text": [rich("{}", one["funnel"]) if id(one) in colours else "" for one in some],
                "textposition": ["top left" if one is best else "bottom left" for one in some],
                "textfont": {"size": 10},
                "hovertemplate": rich("%{customdata}: %{x:.3f}, %{y:.2f}<extra></extra>"),
                "marker": {"color": [colours.get(id(one), COLOUR) for one in some], "size": 8},
                **plots.on(i),
            }
        )
        x, y = {"title": {"text": figure}, "nticks": 5}, {"title": {"text": "GMV a request"}}
        plots.add_pane(layout, i, domain, world, x, y)
    return {"data": data, "layout": layout}


def page_of(found: Sequence[dict[str, Any]], tables: Sequence[Table], command: str) -> Page:
    """Points, and the tables."""
    told = (
        "A point is a funnel: its offline figure, and what its lists are worth to users. Orange: "
        "the one that the figure would choose; green: the one that earns most; where they are one, "
        "green. The others are named when pointed at."
    )
    drawn: list[Block] = [
        Text(told),
        Figure(scatter(found), {"the figure's choice": CHOICE, "earns most": BEST}),
    ]
    shops = list(dict.fromkeys(one["world"] for one in found))
    what = f"{len(found) // len(shops)} funnels in {len(shops)} simulated shops: {', '.join(shops)}"
    top: list[Block] = [
        Text(what, "sub"),
        Text(
            "Which offline figure names the better of two funnels, as users and money do? The "
            "first table that follows has what each funnel is worth in truth, the second how often "
            "each figure is right, over all shops, those that are right about money first.",
        ),
    ]
    sections = [
        Section("points", "Points", "Offline figure and truth", drawn),
        Section("tables", "Tables", "How often they agree", list(tables)),
    ]
    return Page("Which offline figure to believe", command, top, sections)


@click.command(cls=OneLineErrors, epilog=f"Funnels: {'; '.join(proxy_funnels.rows())}.")
@click.argument("marketplaces", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--seed", type=click.IntRange(0, 1000), default=0, help="Of shops and funnels.")
@click.option("--only", multiple=True, metavar="ROW", help="These funnels alone.")
def main(marketplaces: tuple[str, ...], out: Path, seed: int, only: tuple[str, ...]) -> None:
    """Compare what offline figures say of funnels with what they are worth to users.

    MARKETPLACES are recipes, logs that `world --recipe` or `world --like` wrote, or `default`. A
    funnel takes half a minute or more in each; all that is done is kept in the folder.
    """
    console, found = Console(stderr=True), []
    names = asked_for(only)
    if len(names) * len(marketplaces) < FEWEST:
        console.print(
            f"A figure is judged by {FEWEST} funnels at least, and {len(names)} are asked for in "
            f"{len(marketplaces)} shops: the tables of agreement will be empty.",
        )
    for number, place in enumerate(marketplaces):
        market, world = Market.of(place), Path(place).stem
        code = code_of(market.marketplace, by=(__name__, arms.__name__))
        stock = None if market.catalogue is None else market.catalogue.items.hash_rows(seed=0).sum()
        asked = (repr(market.marketplace), stock, Path(FUNNELS).read_text(encoding="utf-8"))
        key = content_key(code, *asked, ITEMS, USERS, BEFORE, DAYS, SLOTS, seed)
        folder = out / "funnels" / key
        log = market.logged(seed, folder / "log")
        for name in names:
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
    worlds = list(dict.fromkeys(one["world"] for one in found))
    tables = [truths_table(found), table_of(found, seed, "all shops")]
    if len(worlds) > 1:
        each = ((world, [one for one in found if one["world"] == world]) for world in worlds)
        tables += [table_of(some, seed, world) for world, some in each]
    for one in tables:
        print_table(one, Console())
    sizes = f"{USERS:,} users, {ITEMS:,} items, {BEFORE} days of log, {DAYS} days of truth"
    made = made_by("validation.which_proxy", f"seed {seed}, {sizes}")
    texts = [to_markdown(one).rstrip() for one in tables]
    write_text(out / "which_proxy.md", "\n\n".join([*texts, made, ""]))
    write_page(out / "which_proxy.html", page_of(found, tables, made))


if __name__ == "__main__":
    main()
