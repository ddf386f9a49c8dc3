"""Off-policy estimates against a truth that is known: bias, error, and how often the 95% interval
holds it.

    python -m karmafunnel.benchmarks.validation.off_policy_coverage --out out/coverage

A World tells P(click) of every item of its engine's pools. From one set of requests a log is drawn
a thousand times: users with replacement (what the intervals claim to resample), lists by a logging
policy, clicks by the truth. Each log goes through the code of `karmafunnel ope`, which estimates
what another policy earns; its true value is a sum over all lists. In the setting "same users" all
logs have the same users, and the interval of a bootstrap by user is too wide by what users differ.

Each hundred logs are kept in OUT/runs under a hash of code and setting, so that the same command
goes on. Writes off_policy_coverage.md and .csv.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from karmafunnel.benchmarks.validation.made_by import made_by
from karmafunnel.cli import OneLineErrors
from karmafunnel.files import read_json, write_json, write_text
from karmafunnel.keys import code_of, content_key
from karmafunnel.simulator.offpolicy.estimators import ESTIMATORS
from karmafunnel.simulator.offpolicy.evaluate import judge
from karmafunnel.simulator.offpolicy.reading import Choice, LoggedLists
from karmafunnel.simulator.report.table import Cell, Table, print_table, to_markdown
from karmafunnel.simulator.world.market import examination
from karmafunnel.simulator.world.world import generate
from karmafunnel.stages.policies import BestOrRandom, Candidates, PlackettLuce, Policy
from karmafunnel.terminal import Console
from karmafunnel.typed import Typed
from scipy import stats

LOGS, BLOCK = 1000, 100
ITEMS, USERS, REQUESTS = 1000, 500, 2000  # of the World
NAMES = tuple(name for name in ESTIMATORS if name != "replay method")
LIST_NAMES = {"IPS": "SIPS", "SNIPS": "SNSIPS", "DR": "cascade-DR"}  # with several slots


@dataclass(frozen=True, repr=False)
class Setting(Typed):
    """Lists of `slots` out of the engine's best `candidates`. `exploration`: of the logging policy,
    which shows its best or any; `temperature`: of the evaluated one, which orders otherwise.
    """

    slots: int
    candidates: int
    exploration: float
    temperature: float
    same_users: bool = False

    def __str__(self) -> str:
        slots = "1 slot" if self.slots == 1 else f"{self.slots} slots"
        same = ", same users" if self.same_users else ""
        return f"{slots}, exploration {self.exploration:g}{same}"


SETTINGS = (
    Setting(1, 10, 0.5, 1.0),
    Setting(3, 10, 0.8, 2.0),
    Setting(3, 10, 0.8, 2.0, same_users=True),
    Setting(3, 10, 0.65, 1.75),
    Setting(3, 10, 0.5, 1.5),
)


@dataclass(frozen=True, eq=False)
class Shop:
    """Requests whose truth is known, n of them with m candidates, the engine's best first.

    user (n,): its number; engine (n, m): the engine's scores; order (n, m): candidates as the
    evaluated policy orders them, and their score; p_click (n, m): P(click | looked at).
    """

    user: np.ndarray
    engine: np.ndarray
    order: np.ndarray
    score: np.ndarray
    p_click: np.ndarray


def shop_of(candidates: int, seed: int) -> Shop:
    """The pools of a World, and a ranker that knows utility better than the engine."""
    world = generate(ITEMS, USERS, REQUESTS, seed)
    pool = world.truth["pool"].filter(pl.col("pool_rank") <= candidates)
    pool = pool.filter(pl.len().over("request_id") == candidates)
    engine, utility, p_click = (
        pool[name].to_numpy().reshape(-1, candidates) for name in ("estimate", "utility", "p_click")
    )
    ids = pool["request_id"].gather_every(candidates)
    users = world.log.requests.select("request_id", "user_id")
    users = pl.DataFrame({"request_id": ids}).join(users, on="request_id", maintain_order="left")
    _, user = np.unique(users["user_id"].to_numpy(), return_inverse=True)
    score = utility + np.random.default_rng([seed, 1]).normal(size=utility.shape)
    order = np.argsort(-score, axis=1, kind="stable")
    return Shop(user, engine, order, np.take_along_axis(score, order, axis=1), p_click)


def shares(policy: Policy, score: np.ndarray, slots: int) -> np.ndarray:
    """P(a slot shows a candidate), whatever stands above it: score (n, m) -> (n, slots, m)."""
    n, m = score.shape
    out = np.zeros((n, slots, m))
    for slot in range(slots):
        for above in permutations(range(m), slot):
            left = np.ones((n, m), dtype=bool)
            chance = np.ones(n)
            for item in above:
                chance = chance * policy.choice(score, left)[:, item]
                left[:, item] = False
            out[:, slot] += chance[:, None] * policy.choice(score, left)
    return out


@dataclass(frozen=True, eq=False)
class Truth:
    """logging, evaluated (n, slots, m): P(a slot shows an item) under both policies, items as the
    engine orders them. value (n,): what a request earns under the evaluated one.
    """

    logging: np.ndarray
    evaluated: np.ndarray
    value: np.ndarray


def truth_of(shop: Shop, setting: Setting) -> Truth:
    """Sums over all lists."""
    logging = shares(BestOrRandom(setting.exploration), shop.engine, setting.slots)
    by_order = shares(PlackettLuce(setting.temperature), shop.score, setting.slots)
    evaluated = np.empty_like(by_order)
    np.put_along_axis(evaluated, shop.order[:, None, :], by_order, axis=2)
    looks = examination(setting.slots)
    value = np.einsum("nsm,nm,s->n", evaluated, shop.p_click, looks)
    return Truth(logging, evaluated, value)


def drawn(shop: Shop, truth: Truth, setting: Setting, rng: np.random.Generator) -> dict[str, Any]:
    """What estimators say of one log, by name (value, low, high), with its effective requests."""
    n_users = int(shop.user.max()) + 1
    users = np.arange(n_users)
    if not setting.same_users:
        users = rng.integers(n_users, size=n_users)
    by = np.argsort(shop.user, kind="stable")
    starts = np.searchsorted(shop.user[by], np.arange(n_users + 1))
    rows = np.concatenate([by[starts[user] : starts[user + 1]] for user in users])
    cluster = np.repeat(np.arange(n_users), np.diff(starts)[users])
    logging = BestOrRandom(setting.exploration)
    engine = shop.engine[rows]
    item, propensity = logging.draw(engine, rng.random((len(rows), setting.slots)))
    there = np.ones(item.shape, dtype=bool)
    chance = np.take_along_axis(shop.p_click[rows], item, axis=1) * examination(setting.slots)
    reward = (rng.random(item.shape) < chance).astype(np.float64)
    order, score = shop.order[rows], shop.score[rows]
    place = np.take_along_axis(np.argsort(order, axis=1), item, axis=1)
    lists = LoggedLists(pl.Series([], dtype=pl.String), cluster, item, propensity, reward)
    own = np.take_along_axis(score, place, axis=1)
    choice = Choice(Candidates(score, place, there), order, own)
    at = np.arange(len(rows))[:, None], np.arange(setting.slots), item
    slot = truth.evaluated[rows][at] / truth.logging[rows][at]
    estimators = {name: ESTIMATORS[name] for name in NAMES}
    policy, seed = PlackettLuce(setting.temperature), int(rng.integers(2**31))
    held = np.ones(order.shape, dtype=bool)
    found = judge(lists, choice, policy, held, "coverage", estimators, slot, seed=seed)
    said = {
        row["estimator"]: [row["value"], row["low"], row["high"]]
        for row in found.rows
        if not row["refused"]
    }
    return {"said": said, "effective": found.support["prefix"].effective, "n": found.n}


def kept(
    shop: Shop, truth: Truth, setting: Setting, block: int, seed: int, folder: Path
) -> list[dict[str, Any]]:
    """The logs of one block, from their file or drawn now."""
    key = content_key(code_of(setting, by=(__name__,)), repr(setting), block, seed)
    path = folder / f"{key}.json"
    if not path.exists():
        rngs = (np.random.default_rng([seed, block, i]) for i in range(BLOCK))
        write_json(path, [drawn(shop, truth, setting, rng) for rng in rngs])
    found: list[dict[str, Any]] = read_json(path)
    return found


def lines_of(setting: Setting, truth: float, logs: Sequence[dict[str, Any]]) -> list[dict]:
    """One line an estimator: bias with its 95% interval, root mean squared error, the share of
    logs whose interval holds the truth with its binomial interval (Clopper & Pearson 1934).
    """
    lines = []
    for name in NAMES:
        said = np.array([log["said"][name] for log in logs if name in log["said"]])
        if not len(said):
            continue
        value, low, high = said.T
        error = value - truth
        half = stats.t.ppf(0.975, len(said) - 1) * error.std(ddof=1) / np.sqrt(len(said))
        holds = int(((low <= truth) & (truth <= high)).sum())
        share = stats.binomtest(holds, len(said)).proportion_ci(0.95)
        lines.append(
            {
                "setting": str(setting),
                "estimator": LIST_NAMES.get(name, name) if setting.slots > 1 else name,
                "truth": truth,
                "bias": float(error.mean()),
                "bias_low": float(error.mean() - half),
                "bias_high": float(error.mean() + half),
                "rmse": float(np.sqrt((error**2).mean())),
                "width": float((high - low).mean()),
                "coverage": holds / len(said),
                "coverage_low": float(share.low),
                "coverage_high": float(share.high),
                "below": float((high < truth).mean()),
                "above": float((low > truth).mean()),
                "logs": len(said),
                "effective": float(np.mean([log["effective"] for log in logs])),
                "requests": float(np.mean([log["n"] for log in logs])),
            }
        )
    return lines


def table_of(lines: Sequence[dict[str, Any]]) -> Table:
    """The lines as they are printed."""
    rows: list[list[str | Cell]] = []
    for x in lines:
        unbiased = x["bias_low"] <= 0 <= x["bias_high"]
        inside = x["coverage_low"] <= 0.95 <= x["coverage_high"]
        rows.append(
            [
                x["setting"],
                x["estimator"],
                f"{x['effective']:,.0f} of {x['requests']:,.0f}",
                f"{x['bias']:+.4f} [{x['bias_low']:+.4f}, {x['bias_high']:+.4f}]"
                + ("" if unbiased else " biased"),
                f"{x['rmse']:.4f}",
                f"{x['width']:.4f}",
                f"{x['coverage']:.1%} [{x['coverage_low']:.1%}, {x['coverage_high']:.1%}]"
                + ("" if inside else " off"),
                f"{x['below']:.1%} / {x['above']:.1%}",
            ]
        )
    heads = ["setting", "estimator", "effective requests", "bias", "RMSE", "width", "coverage"]
    return Table(
        [*heads, "too low / high"],
        rows,
        title="off-policy estimates where the truth is known",
        text_columns=2,
        below=[
            "bias: mean error of clicks a request, with its 95% interval.",
            "width: mean width of the 95% interval of an estimate.",
            "coverage: share of logs whose 95% interval holds the truth, with its exact interval.",
            "too low / high: shares of logs whose interval lies below or above the truth.",
        ],
    )


@click.command(cls=OneLineErrors)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/coverage"))
@click.option("--logs", type=click.IntRange(1, 100_000), default=LOGS)
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--only", multiple=True, help="Settings whose name holds this text.")
def main(out: Path, logs: int, seed: int, only: tuple[str, ...]) -> None:
    """Draw logs of a World, estimate on each, and print how far the estimates are from the
    truth.
    """
    console = Console(stderr=True)
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    began, lines, told = time.perf_counter(), [], []
    for setting in SETTINGS:
        if only and not any(text in str(setting) for text in only):
            continue
        shop = shop_of(setting.candidates, seed)
        truth = truth_of(shop, setting)
        found: list[dict[str, Any]] = []
        for block in range(logs // BLOCK):
            found += kept(shop, truth, setting, block, seed, folder)
            seconds = time.perf_counter() - began
            console.print(f"{setting}: {len(found)} of {logs} logs, {seconds:,.0f} s", style="dim")
        value = float(truth.value.mean())
        lines += lines_of(setting, value, found)
        told.append(f"`{setting!r}`: true value {value:.4f}.")
    made = made_by("validation.off_policy_coverage", f"seed {seed}, {logs:,} logs a setting")
    table = table_of(lines)
    print_table(table, Console())
    write_text(
        out / "off_policy_coverage.md",
        "\n\n".join([to_markdown(table).rstrip(), *told, made, ""]),
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(out / "off_policy_coverage.csv", text.getvalue())


if __name__ == "__main__":
    main()
