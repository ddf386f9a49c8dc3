"""After how many requests it is certain which of two funnels is better, by interleaving and by A/B
tests:

    python -m karmafunnel.benchmarks.validation.requests_needed --out out/requests

One shop, served by its own engine. Funnels that were fitted on its first week list items for every
request of the two weeks after it. A repetition splits the users and draws all clicks and purchases
anew, from what the shop knows of both lists: in an A/B test each user sees the lists of one funnel,
in an interleaving one list out of both. Interleavings are looked at after each request, A/B tests
(with CUPED) a hundred times, all by always-valid intervals; whoever looks stops when one excludes
0. Which funnel is better is known: expected clicks and GMV of both lists. What a list does to later
requests plays no part, as all lists meet the same requests.

Lists, and each ten repetitions of a pair, are kept in OUT/runs under a hash of the code, so that
the same command goes on. Writes requests_needed.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from karmafunnel.benchmarks.studies import proxy_funnels
from karmafunnel.benchmarks.validation.made_by import made_by
from karmafunnel.cli import OneLineErrors
from karmafunnel.files import read_json, read_table, write_json, write_parquet, write_text
from karmafunnel.keys import cache_root, code_of, content_key
from karmafunnel.log import Log
from karmafunnel.simulator.experiment.arms import META
from karmafunnel.simulator.experiment.effects import Outcomes, always_valid, daily
from karmafunnel.simulator.experiment.experiment import MADE_OF
from karmafunnel.simulator.experiment.interleaving import (
    Balanced,
    Interleaving,
    TeamDraft,
    running,
    scores,
)
from karmafunnel.simulator.experiment.past import Past
from karmafunnel.simulator.experiment.serving import Server, best
from karmafunnel.simulator.report.table import Table, print_table, to_markdown
from karmafunnel.simulator.world.click_lists import Shown
from karmafunnel.simulator.world.marketplace import Marketplace
from karmafunnel.simulator.world.open_shop import Shop, open_shop
from karmafunnel.terminal import Console
from scipy import stats

MARKET = Marketplace()
ITEMS, USERS, BEFORE, DAYS, SLOTS = 1_500, 16_000, 7, 14, 10
LOOKS, BLOCK = 100, 10
FUNNELS = str(Path(proxy_funnels.__file__))
# the last pair is a control: no winner is right
PAIRS = (
    ("popular", "words"),
    ("words", "TF-IDF"),
    ("words", "bought before"),
    ("words", "words"),
)
KNOWN = ("p_click", "p_buy", "units", "cost")
WAYS: dict[str, Interleaving] = {"team draft": TeamDraft(), "balanced": Balanced()}
TESTS = {"A/B, clicks a request": "clicks", "A/B, GMV a request": "gmv"}


# -- one shop, and what funnels would show in it ---------------------------------------------------


def opened(seed: int) -> Shop:
    return open_shop(MARKET, items=ITEMS, users=USERS, seed=seed)


@dataclass(frozen=True, eq=False)
class Lists:
    """A funnel's lists and what they mean: items (n, k), -1 at the end of a list that is shorter;
    p_click, p_buy, units and cost of a unit as in `Truth`.
    """

    items: np.ndarray
    p_click: np.ndarray
    p_buy: np.ndarray
    units: np.ndarray
    cost: np.ndarray

    def at(self, rows: np.ndarray, ranks: np.ndarray) -> Lists:
        """Those of other ranks, (n, k)."""
        return Lists(*(getattr(self, name)[rows, ranks] for name in ("items", *KNOWN)))


def told_by_engine(seed: int) -> tuple[Log, pl.DataFrame]:
    """What the shop logs under its own engine, the first week to learn from (W1 and W2); and what
    users did in that week: user, requests, clicks, gmv.
    """
    shop, before = opened(seed), []
    past = Past(shop.items, META, BEFORE)
    for day in range(BEFORE + DAYS):
        if day == BEFORE:
            past.begin_fit()
        for visits in shop.day(day):
            slates = shop.logging(visits).items
            answers = shop.answer(visits, slates)
            past.add(visits.requests, shop.exposures(visits, slates, answers))
            if day < BEFORE:
                clicks, gmv = answers.clicked.sum(axis=1), (answers.paid * answers.quantity).sum(1)
                columns = {"user": visits.user, "requests": 1.0, "clicks": clicks, "gmv": gmv}
                before.append(pl.DataFrame(columns).cast(dict.fromkeys(list(columns)[1:], float)))
    log = Log.make(past.items, pl.concat(past.requests), pl.concat(past.exposures), past.meta)
    return log, pl.concat(before).group_by("user").sum().sort("user")


def requests_of(folder: Path, names: Sequence[str], seed: int) -> None:
    """Write the requests, what users did before, and each funnel's lists with their meaning."""
    log, before = told_by_engine(seed)
    asked = log.requests_in("W3")
    offered = {}
    for name in names:
        server = Server.of(f"{FUNNELS}::{name}", log, cache_root(), seed)
        offered[name] = best(server.fitted, asked, SLOTS)
    numbers = pl.DataFrame({"request_id": log.request_ids[asked]}).with_row_index("at")
    shop, found, users = opened(seed), dict[str, list[np.ndarray]](), []
    for day in range(BEFORE + DAYS):
        for visits in shop.day(day):
            if day >= BEFORE:
                ids = visits.requests.select("request_id", "ts")
                at = ids.join(numbers, on="request_id", maintain_order="left")["at"].to_numpy()
                users.append(ids.select("ts", user=pl.Series(visits.user)))
                for name, lists in offered.items():
                    truth = shop.truth(visits, lists[at])
                    parts = (lists[at], *(getattr(truth, one) for one in KNOWN))
                    found.setdefault(name, []).append(np.stack(parts, axis=-1))
            shop.answer(visits, shop.logging(visits).items)
    requests = pl.concat(users).with_row_index("row").sort("ts", "row")
    order = requests["row"].to_numpy()
    for name, rounds in found.items():
        means = np.concatenate(rounds)[order]
        columns = zip(("items", *KNOWN), np.moveaxis(means, -1, 0), strict=True)
        arrays = pl.Array(pl.Float64, SLOTS)
        frame = pl.DataFrame([pl.Series(one, values, dtype=arrays) for one, values in columns])
        write_parquet(folder / f"{slug(name)}.parquet", frame)
    write_parquet(folder / "before.parquet", before)
    write_parquet(folder / "requests.parquet", requests.select("user"))


def slug(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


class Pool:
    """Requests in the order of time, and the lists of funnels: user (n,) from 0; what each user
    had done before, by "requests", "clicks" and "gmv".
    """

    def __init__(self, folder: Path):
        self.folder = folder
        ids, self.user = np.unique(
            read_table(folder / "requests.parquet")["user"].to_numpy(), return_inverse=True
        )
        before = read_table(folder / "before.parquet")
        every = pl.DataFrame({"user": ids}).join(before, on="user", how="left").fill_null(0.0)
        self.before = {name: every[name].to_numpy() for name in ("requests", "clicks", "gmv")}

    def lists(self, name: str) -> Lists:
        frame = read_table(self.folder / f"{slug(name)}.parquet")
        items, *known = (frame[one].to_numpy() for one in ("items", *KNOWN))
        return Lists(items.astype(np.int64), *known)


# -- one repetition --------------------------------------------------------------------------------


def worth(lists: Lists) -> dict[str, float]:
    """Expected clicks and GMV a request."""
    looked = MARKET.browsing.marginal(Shown(lists.p_click, lists.p_buy, lists.items >= 0))
    money = looked * lists.p_buy * lists.units * lists.cost
    return {"clicks": float(looked.sum(1).mean()), "gmv": float(money.sum(1).mean())}


def answered(lists: Lists, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Clicks and money of each slot, (n, k), as `Shop.answer` draws them but for coupons."""
    shown = Shown(lists.p_click, lists.p_buy, lists.items >= 0)
    clicked = MARKET.browsing.draw(shown, rng)
    bought = clicked & (rng.random(clicked.shape) < lists.p_buy)
    several = rng.random(clicked.shape) < (lists.units - 1) / 2
    units = np.where(several, rng.integers(2, 5, clicked.shape), 1)
    return clicked, np.where(bought, units * lists.cost, 0.0)


def interleaved(
    a: Lists, b: Lists, user: np.ndarray, way: Interleaving, rng: np.random.Generator
) -> tuple[int | None, int]:
    """After how many requests it was certain who wins, and whether B (1) or A (-1) does."""
    mixed = way.mix(a.items, b.items, rng)
    rows, ends = np.arange(len(user))[:, None], a.items.shape[1] - 1
    one, two = (x.at(rows, np.minimum(r, ends)) for x, r in zip((a, b), mixed.ranks, strict=True))
    known = (np.where(mixed.team == 0, getattr(one, x), getattr(two, x)) for x in KNOWN)
    clicked, _ = answered(Lists(mixed.items, *known), rng)
    found = running(scores(way.credit(mixed, clicked.astype(np.float64))), user)
    return found.certain_after, {"A": -1, "B": 1, "": 0}[found.winner]


def tested(
    a: Lists, b: Lists, pool: Pool, rng: np.random.Generator
) -> dict[str, tuple[int | None, int]]:
    """The same of A/B tests, looked at LOOKS times."""
    user, n, n_users = pool.user, len(pool.user), len(pool.before["requests"])
    arms = rng.integers(0, 2, n_users)
    of_b = (arms[user] == 1)[:, None]
    mine = (np.where(of_b, getattr(b, x), getattr(a, x)) for x in ("items", *KNOWN))
    clicked, money = answered(Lists(*mine), rng)
    sums = {"clicks": clicked.sum(axis=1), "gmv": money.sum(axis=1)}
    look = np.arange(n) * LOOKS // n
    arrived = np.full(n_users, LOOKS)
    np.minimum.at(arrived, user, look)
    cell = look * n_users + user
    requests = np.bincount(cell, minlength=LOOKS * n_users).reshape(LOOKS, n_users)
    told = {}
    for name, column in TESTS.items():
        totals = np.bincount(cell, sums[column], LOOKS * n_users).reshape(LOOKS, n_users)
        before = pool.before[column], pool.before["requests"]
        days = [Outcomes(t, r, *before) for t, r in zip(totals, requests, strict=True)]
        looks = daily(days, arms, arrived)
        low, high = always_valid(looks).T
        certain = (low > 0) | (high < 0)
        first = int(certain.argmax())
        after = -(-(first + 1) * n // LOOKS) if certain.any() else None
        told[name] = after, int(np.sign(looks[first].value)) if certain.any() else 0
    return told


def tell(a: Lists, b: Lists, pool: Pool, number: Sequence[int]) -> dict[str, Any]:
    """What a repetition tells, by way: requests until the winner is certain, and who that is."""
    rng = np.random.default_rng(number)
    told = {name: interleaved(a, b, pool.user, way, rng) for name, way in WAYS.items()}
    return told | tested(a, b, pool, rng)


# -- all of them -----------------------------------------------------------------------------------


def table_of(pair: Sequence[str], found: dict[str, Any], n: int) -> list[list[str]]:
    """The rows of a pair of funnels: one a way to compare them."""
    a, b = (found["worth"][side] for side in "AB")
    rows = []
    for way in (*WAYS, *TESTS):
        told = [one[way] for one in found["told"]]
        after = np.sort([np.inf if x is None else x for x, _ in told])
        # the middle one, or the later of two
        low, middle, high = (after[int(share * len(after))] for share in (0.25, 0.5, 0.75))
        certain = [winner for x, winner in told if x is not None]
        wrong = [share_of([w != np.sign(b[x] - a[x]) for w in certain]) for x in ("clicks", "gmv")]
        rows.append(
            [
                f"{pair[0]} / {pair[1]}",
                way,
                share_of([x is not None for x, _ in told]),
                quartiles(low, middle, high, n),
                *wrong,
            ]
        )
    return rows


def quartiles(low: float, middle: float, high: float, n: int) -> str:
    """The median of requests with the other quartiles, as far as n requests tell them."""
    ends = [f"{x:,.0f}" if np.isfinite(x) else f"more than {n:,}" for x in (middle, low, high)]
    return f"{ends[0]} ({ends[1]}, {ends[2]})" if np.isfinite(low) else ends[0]


def share_of(hits: Sequence[bool]) -> str:
    """Hits of all, with the exact 95% interval of their share (Clopper & Pearson 1934)."""
    if not hits:
        return "n/a"
    low, high = stats.binomtest(int(sum(hits)), len(hits)).proportion_ci()
    return f"{sum(hits)} of {len(hits)} [{low:.0%}, {high:.0%}]"


def truth_of(pair: Sequence[str], found: dict[str, Any]) -> str:
    a, b = (found["worth"][side] for side in "AB")
    lifts = ", ".join(
        f"{name} {b[x] / a[x] - 1:+.1%}" for x, name in (("clicks", "clicks"), ("gmv", "GMV"))
    )
    return f"in truth {pair[1]} has, against {pair[0]}, {lifts} a request."


@click.command(cls=OneLineErrors)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--times", type=click.IntRange(BLOCK, 10_000), default=40, help="Repetitions.")
@click.option("--seed", type=click.IntRange(0, 1000), default=0, help="Of the shop and all draws.")
def main(out: Path, times: int, seed: int) -> None:
    """Count the requests that interleaving and A/B tests need to name the better of two funnels."""
    console = Console(stderr=True)
    code = code_of(MARKET, by=(__name__, *MADE_OF))
    text = Path(FUNNELS).read_text(encoding="utf-8")
    sizes = (ITEMS, USERS, BEFORE, DAYS, SLOTS, LOOKS, PAIRS, seed)
    folder = out / "runs" / content_key(code, repr(MARKET), text, repr(sizes))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "requests.parquet").exists():
        console.print("requests, and lists of all funnels", style="dim")
        requests_of(folder, list(dict.fromkeys(name for pair in PAIRS for name in pair)), seed)
    pool, rows, below = Pool(folder), [], []
    n = len(pool.user)
    for which, pair in enumerate(PAIRS):
        a, b = map(pool.lists, pair)
        found: dict[str, Any] = {"worth": {"A": worth(a), "B": worth(b)}, "told": []}
        for block in range(times // BLOCK):
            path = folder / f"{slug(pair[0])}-{slug(pair[1])}-{block}.json"
            if not path.exists():
                console.print(f"{' / '.join(pair)}: repetition {block * BLOCK}", style="dim")
                first = block * BLOCK
                numbers = [(seed, which, first + i) for i in range(BLOCK)]
                write_json(path, [tell(a, b, pool, number) for number in numbers])
            found["told"] += read_json(path)
        rows += table_of(pair, found, n)
        below.append(f"{' / '.join(pair)}: {truth_of(pair, found)}")
    heads = ["funnels", "way", "certain", "requests until certain", "wrong by clicks"]
    table = Table(
        [*heads, "wrong by GMV"],
        rows,
        text_columns=2,
        title="requests until the always-valid interval excludes 0",
        below=[
            f"One shop, {n:,} requests of {len(pool.before['gmv']):,} users; the median of "
            f"{len(found['told'])} repetitions, with the quartiles.",
            "wrong: of the winners that were certain, those with less of the shop's own expected "
            "clicks, or GMV. Of two funnels that are the same each winner is wrong.",
            *below,
        ],
    )
    print_table(table, Console())
    shop = f"{ITEMS:,} items, {USERS:,} users, {BEFORE} and {DAYS} days, lists of {SLOTS}"
    made = made_by("validation.requests_needed", f"seed {seed}, {shop}")
    write_text(out / "requests_needed.md", f"{to_markdown(table).rstrip()}\n\n{made}\n")


if __name__ == "__main__":
    main()
