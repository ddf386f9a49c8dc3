"""Our off-policy estimates and those of Open Bandit Pipeline (obp) on the same inputs:

    karmafunnel convert open_bandit RAW logs/open_bandit
    python -m karmafunnel.benchmarks.peers.off_policy logs/open_bandit ... --out out/off_policy

obp runs in a virtual environment of its own, from a fork that installs today (sb-obp). The log's
slots are one action each; three in a row make a list. The evaluated policy shows the most popular
items, or any; the model of the reward is drawn at random, for the figures of both must be equal
whatever it says.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from karmafunnel.benchmarks.peers.peers import environment, stream
from karmafunnel.benchmarks.validation.made_by import made_by
from karmafunnel.cli import OneLineErrors
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import write_text
from karmafunnel.keys import cache_root
from karmafunnel.log import Log
from karmafunnel.simulator.offpolicy.estimators import ESTIMATORS, Logged
from karmafunnel.simulator.report.table import Table, print_table, to_markdown
from karmafunnel.stages.policies import BestOrRandom
from karmafunnel.terminal import Console

FOLDER = Path(__file__).parent
SLOTS = 3
CLOSE = 1e-9
ACTIONS = ("IPS", "clipped IPS", "SNIPS", "replay method", "DM", "DR", "SNDR", "switch-DR")
LISTS = ("IPS", "SNIPS", "IIPS", "SNIIPS", "RIPS", "SNRIPS", "DR")
Arrays = dict[str, np.ndarray]


def actions_of(log: Log) -> Arrays:
    """One slot a request: what was shown and earned, and both policies; (n,) and (n, items)."""
    rows = log.exposures.drop_nulls(["propensity", "position"]).sort("request_id")
    number = {item: i for i, item in enumerate(log.item_ids.tolist())}
    action = np.array([number[item] for item in rows["item_id"]], dtype=np.int64)
    clicks = np.bincount(action, rows["clicked"].to_numpy(), minlength=log.n_items)
    order = np.argsort(-clicks, kind="stable")
    everything = np.ones((1, log.n_items), dtype=bool)
    chance = np.empty(log.n_items)
    chance[order] = BestOrRandom(0.5).choice(-np.sort(-clicks)[None], everything)[0]
    rng = np.random.default_rng(0)
    return {
        "reward": rows["clicked"].to_numpy().astype(np.float64),
        "action": action,
        "logging": rows["propensity"].to_numpy(),
        "evaluated": np.tile(chance, (len(action), 1)),
        "model": 0.01 * rng.random((len(action), log.n_items)),
    }


def slates_of(x: Arrays) -> Arrays:
    """Three actions in a row as one list."""
    n = len(x["action"]) // SLOTS
    cut = {
        name: value[: n * SLOTS].reshape(n, SLOTS, *value.shape[1:]) for name, value in x.items()
    }
    step = np.take_along_axis(cut["evaluated"], cut["action"][:, :, None], axis=2)[:, :, 0]
    return {
        "reward": cut["reward"],
        "action": cut["action"],
        "logging_slot": cut["logging"],
        "evaluated_slot": step,
        "logging_prefix": np.cumprod(cut["logging"], axis=1),
        "evaluated_prefix": np.cumprod(step, axis=1),
        "chance": cut["evaluated"],
        "model": cut["model"],
    }


def ours(actions: Arrays, slates: Arrays) -> dict[str, dict[str, float]]:
    """Our estimates of the same."""
    rows = np.arange(len(actions["action"]))
    weight = actions["evaluated"][rows, actions["action"]] / actions["logging"]
    expected = (actions["evaluated"] * actions["model"]).sum(axis=1)
    best = (actions["action"] == actions["evaluated"].argmax(axis=1)).astype(np.float64)
    one = Logged(
        actions["reward"][:, None],
        dict.fromkeys(("list", "slot", "prefix"), weight[:, None]),
        rows,
        actions["model"][rows, actions["action"]][:, None],
        expected[:, None],
        expected,
    )
    same = Logged(one.reward, {"list": best[:, None]}, rows)
    prefix = slates["evaluated_prefix"] / slates["logging_prefix"]
    lists = Logged(
        slates["reward"],
        {
            "list": np.repeat(prefix[:, -1:], SLOTS, axis=1),
            "slot": slates["evaluated_slot"] / slates["logging_slot"],
            "prefix": prefix,
        },
        np.arange(len(prefix)),
        np.take_along_axis(slates["model"], slates["action"][:, :, None], axis=2)[:, :, 0],
        (slates["chance"] * slates["model"]).sum(axis=2),
    )
    return {
        "one slot": {
            name: ESTIMATORS[name].of(same if name == "replay method" else one).value
            for name in ACTIONS
        },
        "lists": {name: ESTIMATORS[name].of(lists).value for name in LISTS},
    }


@click.command(cls=OneLineErrors)
@click.argument("logs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/off_policy"))
def main(logs: tuple[Path, ...], out: Path) -> None:
    """Estimate on LOGS by both and print them side by side; fails where they differ."""
    console, lines, far = Console(stderr=True), [], []
    for place in logs:
        opened = Log.open(place)
        if not opened.has("propensity"):
            needed = "a log with propensities, such as open_bandit"
            raise KarmafunnelError("off_policy", needs=needed, found=opened.name)
        for kind, name, mine, theirs in compared(opened, out / place.name, console):
            gap = abs(mine - theirs)
            if gap > CLOSE * max(1.0, abs(mine)):
                far.append(f"{name} on {place.name}")
            figures = [f"{mine:.9f}", f"{theirs:.9f}", f"{gap:.1e}"]
            lines.append([place.name, kind, name, *figures])
    heads = ["log", "of", "estimator", "ours", "obp", "difference"]
    table = Table(heads, lines, text_columns=3, title="off-policy estimates beside obp")
    print_table(table, Console())
    made = made_by("peers.off_policy", "sb-obp 0.5.10 in an environment of its own")
    write_text(out / "off_policy.md", f"{to_markdown(table).rstrip()}\n\n{made}\n")
    if far:
        raise KarmafunnelError("off_policy", needs=f"figures within {CLOSE:g} of obp", found=far)


def compared(log: Log, folder: Path, console: Console) -> Iterator[tuple[str, str, float, float]]:
    """Of a log: weights of, estimator, our figure and that of obp."""
    folder.mkdir(parents=True, exist_ok=True)
    actions = actions_of(log)
    slates = slates_of(actions)
    named = {f"actions.{name}": x for name, x in actions.items()}
    named |= {f"slates.{name}": x for name, x in slates.items()}
    np.savez(folder / "arrays.npz", allow_pickle=False, **named)
    python = environment(FOLDER / "sb_obp.txt", cache_root(), console.print, 30)
    script = [python, FOLDER / "obp_estimates.py", folder / "arrays.npz", folder / "obp.json"]
    stream(script, folder / "obp.log", console.print, folder, 10, "obp")
    theirs = json.loads((folder / "obp.json").read_text(encoding="utf-8"))
    for kind, values in ours(actions, slates).items():
        for name, value in values.items():
            yield kind, name, value, theirs[kind][name]


if __name__ == "__main__":
    main()
