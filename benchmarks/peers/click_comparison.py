"""Click models side by side: ours by EM and clax's by gradient descent, on the lists of one log.

    python -m karmafunnel.benchmarks.peers.click_comparison LOG --out out/clicks
        [--minutes 60] [--seed 0]

Both learn from the lists of W1 and W2 and are judged on those of W3; the prior of ours, and rate,
decay and epochs of theirs, are what is best on W2b after learning from what is before it. What a
peer says of W3 is judged by the code that judges ours.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from karmafunnel.cli import OneLineErrors
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import read_table, write_json, write_text
from karmafunnel.keys import cache_root
from karmafunnel.log import Log
from karmafunnel.simulator.measure.intervals import Ratio, interval, resample
from karmafunnel.simulator.report.table import Cell, Table, number, to_markdown
from karmafunnel.simulator.world.click_fit import Fit, fit
from karmafunnel.simulator.world.click_lists import Lists, log_chance
from karmafunnel.simulator.world.click_protocol import ClickModel
from karmafunnel.simulator.world.clicks import DCM, PBM, SDBN, UBM, Cascade, Mixture
from karmafunnel.terminal import Console

from .peers import FOLDER, environment, stream

PRIORS = (1.0, 3.0, 10.0, 30.0, 100.0)
PARTS = {"learn": ("W1", "W2a"), "tune": ("W2b",), "judge": ("W3",)}
SLOTS = (1, 2, 3, 5, 10, 20)  # of the table
NOTES = """clax 0.1.1 gives the marginal of Cascade as its probability given the clicks above, and \
learns from it: the likelihood of another model. For a mixture it weighs the models by the clicks \
of the whole list, those below included: its perplexity given the clicks above is none."""


def starts(k: int) -> dict[str, ClickModel]:
    """Where the fits begin, by the name that tables print."""
    return {
        "PBM": PBM.of(k),
        "UBM": UBM.of(k),
        "Cascade": Cascade(),
        "DCM": DCM.of(k),
        "SDBN": SDBN(),
        "Mixture": Mixture((PBM.of(k), Cascade()), (0.5, 0.5)),
    }


@dataclass(frozen=True, eq=False)
class Said:
    """What a model says of lists: log-likelihood of each (n,), and P(click) of their slots (n, k)
    given the clicks above and whatever is clicked.
    """

    log_likelihood: np.ndarray
    given_above: np.ndarray
    marginal: np.ndarray


def ours(log: Log, parts: dict[str, Lists], facts: dict[str, Any]) -> dict[str, Said]:
    """Our models, with the prior that is best on W2b; `facts` says why one is missing."""
    both = Lists.of(log, "W1", "W2")
    said = {}
    for name, start in starts(both.items.shape[1]).items():
        began, rates = time.perf_counter(), {}
        for prior in PRIORS:
            try:
                found = fit(start, parts["learn"], prior=prior, n_items=log.n_items)
                rates[prior] = float(judged(found, parts["tune"]).log_likelihood.mean())
            except KarmafunnelError as error:
                facts.setdefault("refused", []).append(f"{name}, prior {prior:g}: {error}")
        if not rates:
            continue
        prior = max(rates, key=lambda one: rates[one])
        began_last = time.perf_counter()
        found = fit(start, both, prior=prior, n_items=log.n_items)
        seconds = {"fit": time.perf_counter() - began_last, "all": time.perf_counter() - began}
        of_model = {"tune": rates, "prior": prior, "iterations": found.iterations}
        facts[name] = of_model | {"seconds": seconds, "model": repr(found.model)}
        said[name] = judged(found, parts["judge"])
    return said


def judged(found: Fit, lists: Lists) -> Said:
    """What a fit says of lists."""
    shown, model = found.shown(lists.items, lists.mask), found.model
    return Said(
        model.log_likelihood(shown, lists.clicks),
        model.conditional(shown, lists.clicks),
        model.marginal(shown),
    )


def theirs(
    parts: dict[str, Lists], out: Path, seed: int, minutes: float, console: Console
) -> dict[str, Said]:
    """clax's models: lists out as Parquet, probabilities in."""
    frames, base = [], 0
    for name, lists in parts.items():
        row, slot = np.nonzero(filled(lists))
        columns = {"list": row + base, "slot": slot, "item": lists.items[row, slot]}
        columns["clicked"] = lists.clicks[row, slot]
        frames.append(pl.DataFrame(columns).with_columns(pl.lit(name).alias("part")))
        base += len(lists.items)
    pl.concat(frames).write_parquet(out / "lists.parquet")
    folder = out / "clax"
    folder.mkdir(exist_ok=True)

    def say(text: str) -> None:
        console.print(f"  {text}", style="dim", soft_wrap=True)

    python = environment(FOLDER / "click_models.txt", cache_root(), say, minutes)
    script, data = FOLDER / "click_models.py", (out / "lists.parquet").resolve()
    command: list[str | Path] = [python, script, data, folder.resolve(), "--seed", str(seed)]
    stream(command, folder / "log.txt", say, folder, minutes, "clax")
    slots, whole = (read_table(folder / f"{name}.parquet") for name in ("slots", "lists"))
    shape = parts["judge"].items.shape
    first = base - shape[0]
    said = {}
    for name in whole["model"].unique(maintain_order=True):
        of_slots, of_lists = slots.filter(model=name), whole.filter(model=name)
        both = []
        for column in ("given_above", "marginal"):
            p = np.zeros(shape)
            p[of_slots["list"].to_numpy() - first, of_slots["slot"].to_numpy()] = of_slots[column]
            both.append(p)
        log_likelihood = np.zeros(shape[0])
        log_likelihood[of_lists["list"].to_numpy() - first] = of_lists["log_likelihood"]
        said[name] = Said(log_likelihood, *both)
    return said


def perplexity(p: np.ndarray, lists: Lists) -> tuple[np.ndarray, float]:
    """By slot (k,), and over all slots, from P(click) (n, k)."""
    lost = np.where(filled(lists), -log_chance(p, lists.clicks), 0.0)
    slots = filled(lists).sum(axis=0)
    return np.exp(lost.sum(axis=0) / slots), float(np.exp(lost.sum() / slots.sum()))


def tables_of(mine: dict[str, Said], peer: dict[str, Said], lists: Lists) -> list[Table]:
    """Log-likelihood with the paired difference, perplexity, and perplexity by slot."""
    assert lists.users is not None
    user = np.unique(lists.users, return_inverse=True)[1]
    one = np.ones(len(user))
    slots = [slot for slot in SLOTS if slot <= lists.items.shape[1]]
    rows: list[list[str | Cell]] = []
    by_slot: list[list[str | Cell]] = []
    for name, said in mine.items():
        row: list[str | Cell] = [name, number(said.log_likelihood.mean(), decimals=4)]
        if name in peer:
            gap = said.log_likelihood - peer[name].log_likelihood
            (samples,) = resample([Ratio(gap, one, user)], int(user.max()) + 1)
            low, high = interval(samples)
            row.append(number(peer[name].log_likelihood.mean(), decimals=4))
            row.append(f"{gap.mean():+.4f} [{low:+.4f}, {high:+.4f}]")
        for whose, all_said in (("ours", mine), ("clax", peer)):
            for kind in ("given_above", "marginal"):
                if name not in all_said:
                    continue
                each, whole = perplexity(getattr(all_said[name], kind), lists)
                row.append(number(whole, decimals=4))
                label = f"{name}, {whose}, {kind.replace('_', ' ')}"
                by_slot.append([label, *(number(each[i - 1], decimals=4) for i in slots)])
        rows.append(row)
    heads = ["model", "log-likelihood, ours", "clax", "ours less clax"]
    heads += ["perplexity given above, ours", "marginal, ours", "given above, clax"]
    heads += ["marginal, clax"]
    if not peer:
        heads = [heads[0], heads[1], *heads[4:6]]
    title = f"W3: {len(user):,} lists, natural log-likelihood a list, 95% intervals over users"
    heads_of_slots = ["perplexity of slot", *map(str, slots)]
    return [
        Table(heads, rows, title=title),
        Table(heads_of_slots, by_slot, title="Perplexity by slot"),
    ]


@click.command(cls=OneLineErrors)
@click.argument("log_folder", metavar="LOG", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--minutes", default=60.0, help="After which the peer is ended.")
@click.option("--seed", default=0)
@click.option("--alone", is_flag=True, help="Without the peer.")
def main(log_folder: Path, out: Path, minutes: float, seed: int, alone: bool) -> None:
    """Compare click models on a log."""
    console, log = Console(), Log.open(log_folder)
    out.mkdir(parents=True, exist_ok=True)
    parts = {name: Lists.of(log, *windows) for name, windows in PARTS.items()}
    k = max(lists.items.shape[1] for lists in parts.values())
    parts = {name: widened(lists, k) for name, lists in parts.items()}
    facts: dict[str, Any] = {}
    mine = ours(log, parts, facts)
    peer = {} if alone else theirs(parts, out, seed, minutes, console)
    write_json(out / "ours.json", facts)
    for line in facts.get("refused", []):
        console.print(f"refused: {line}", style="dim", soft_wrap=True)
    text = "\n\n".join(to_markdown(table) for table in tables_of(mine, peer, parts["judge"]))
    text += f"\n\n{NOTES}\n" if peer else "\n"
    write_text(out / "clicks.md", text)
    console.print(text, soft_wrap=True)


def filled(lists: Lists) -> np.ndarray:
    """Slots that hold an item, (n, k) bool."""
    return np.ones(lists.items.shape, dtype=bool) if lists.mask is None else lists.mask


def widened(lists: Lists, k: int) -> Lists:
    """The same lists with k slots."""
    more = ((0, 0), (0, k - lists.items.shape[1]))
    items, clicks, mask = (np.pad(x, more) for x in (lists.items, lists.clicks, filled(lists)))
    return replace(lists, items=items, clicks=clicks, mask=mask)


if __name__ == "__main__":
    main()
