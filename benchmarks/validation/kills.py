"""Kills at random moments: a command is killed, and the same command is started again.

At the moment after the kill an older result is there, old or new; after the second start the
result is that of a run that nobody disturbed, and nothing of the first is left: no temporary file
or folder, no lock, no process.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from .commands import end_session, members, options_of
from .material import Case, Shop, copy, files, raw, said

FINE, LOST, LITTER, WRONG, ORPHANS, REFUSED = (
    "as if undisturbed",
    "RESULT LOST",
    "LITTER",
    "OTHER BYTES",
    "ORPHANS",
    "SECOND START FAILS",
)
OUTCOMES = (FINE, LOST, LITTER, WRONG, ORPHANS, REFUSED)
BAD = OUTCOMES[1:]
PATIENCE = 15.0  # seconds in which a worker without its parent has to end


@dataclass(frozen=True)
class Command:
    """A command, what it needs, what makes an older result in its place; `single`: whether its
    result appears in one step."""

    argv: str
    needs: Sequence[str]
    older: str
    out: str
    weight: float = 1.0
    single: bool = True
    cold: bool = False  # also with an empty cache
    steady: bool = True  # equal runs give equal results
    extra: Sequence[str] = field(default=())


EVERY = ("log", "every.py", "cache")
PLAN = "plan services.toml --rate 200 --p99-ms 60 --lost 0.2 --requests {} --out new"
COMMANDS = {
    "world": Command(
        "world new --items 200 --users 40 --requests 400 --images",
        (),
        "world new --items 100 --users 40 --requests 300",
        "new",
    ),
    "convert": Command(
        "convert online_retail raw new", ("raw", "raw2"), "convert online_retail raw2 new", "new"
    ),
    "sample": Command(
        "sample small new --users 0.7", ("small",), "sample small new --users 0.3", "new"
    ),
    "replay": Command(
        "replay every.py log --out new",
        EVERY,
        "replay every.py log --out new --seed 1",
        "new",
        2,
        cold=True,
    ),
    "replay --workers 2": Command(
        "replay every.py log --out new --workers 2",
        EVERY,
        "replay every.py log --out new --seed 1",
        "new",
    ),
    "table": Command(
        "table rows.py small --out new",
        ("small", "rows.py", "cache"),
        "table rows.py small --out new --seed 1",
        "new",
        single=False,
        cold=True,
    ),
    "queue": Command(
        "queue services.toml --rate 200 --requests 1500 --out new",
        ("services.toml",),
        "queue services.toml --rate 100 --requests 700 --out new",
        "new",
    ),
    "fit-embedder": Command(
        "fit-embedder every.py log --name karma --out new",
        EVERY,
        "fit-embedder every.py log --name tfidf --out new",
        "new",
        cold=True,
    ),
    "plan": Command(PLAN.format(1000), ("services.toml",), PLAN.format(1200), "new", 0.5),
    "profile": Command(
        "profile plain.py small --out new/s.toml --seconds 0.5 --batches 1,2",
        ("plain.py", "small", "cache"),
        "profile plain.py small --out new/s.toml --seconds 0.5 --batches 1",
        "new",
        0.5,
        single=False,
        steady=False,
    ),
    "report": Command(
        "report plain --out new.html",
        ("plain", "small"),
        "report other --out new.html",
        "new.html",
        0.5,
        extra=("other",),
    ),
    "describe --html": Command(
        "describe small --html new.html",
        ("small", "log"),
        "describe log --html new.html",
        "new.html",
        0.5,
    ),
}
ENDS = ("group", "parent")


def words(text: str) -> list[str]:
    """The command; with --force where it has that, so that something older may be replaced."""
    argv = text.split()
    return [*argv, "--force"] if any("--force" in one.opts for one in options_of(argv[0])) else argv


@dataclass(frozen=True)
class Calm:
    """What a command makes when nobody disturbs it: its digests, everything that then lies around,
    how long it takes, an older result."""

    said: dict[str, str]
    around: frozenset[str]
    seconds: float
    older: dict[str, str]
    store: Path


def around(shop: Shop) -> frozenset[str]:
    """Every file and folder of the work folder and the cache, and what temporary folders still
    hold."""
    return frozenset(str(path.relative_to(shop.work)) for path in shop.work.rglob("*"))


@cache
def calm(shop: Shop, name: str) -> Calm:
    """Both results, made undisturbed, each for itself."""
    command = COMMANDS[name]
    store = shop.made / "kills" / name.replace(" ", "")
    shutil.rmtree(store, ignore_errors=True)
    found = []
    for which, text in (("older", command.older), ("new", command.argv), ("again", command.argv)):
        shop.fresh((*command.needs, *command.extra))
        answer = shop.must(*words(text))
        copy(shop.work / command.out, store / which)
        found.append((said(shop.work / command.out), around(shop), answer.seconds))
    _, (first, names, _), (second, _, seconds) = found
    if command.steady and first != second:
        odd = [key for key in first if first[key] != second.get(key)]
        raise RuntimeError(f"kills: {name} needs the same result twice, found other {odd}")
    return Calm(first, names, seconds, raw(store / "older"), store)


def whole(shop: Shop, command: Command, made: Calm, old: bool) -> str:
    """What lies in the place of the result: old, new, none, or (what must not be) something
    else."""
    there = files(shop.work / command.out)
    if not there and not old:
        return "none"
    found = raw(shop.work / command.out)
    now = said(shop.work / command.out)
    if old and found == made.older:
        return "old"
    if now.keys() == made.said.keys() and (not command.steady or now == made.said):
        return "new"
    if not command.single:  # each file for itself
        for key, value in made.older.items():
            kept = found.get(key) == value or now.get(key) == made.said.get(key)
            if old and command.steady and not kept:
                return f"lost {[key for key in made.older if key not in found][:3]}"
        return "old"
    return f"neither: {sorted(there)[:4]}"


def was_older(command: Command, made: Calm, path: Path) -> bool:
    """Whether a file is a part of the older result."""
    if not path.is_relative_to(command.out):
        return False
    return (made.store / "older" / path.relative_to(command.out)).exists()


def attempt(
    shop: Shop, name: str, over: bool, end: str, moment: float, cold: bool
) -> tuple[str, str]:
    command, made = COMMANDS[name], calm(shop, name)
    shop.fresh([n for n in (*command.needs, *command.extra) if not (cold and n == "cache")])
    if over:
        copy(made.store / "older", shop.work / command.out)
    argv = words(command.argv)
    pid = shop.commands.start(argv, shop.work, shop.told, shop.env())
    done = shop.commands.wait(moment * made.seconds * (3 if cold else 1))
    if done is None:
        with suppress(ProcessLookupError):  # it ended meanwhile, or has no group of its own yet
            (os.killpg if end == "group" else os.kill)(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        shop.commands.wait(10)
    waited = time.monotonic()
    while (left := members(pid)) and time.monotonic() - waited < PATIENCE:
        time.sleep(0.02)
    lines = [Path(f"/proc/{one}/cmdline") for one in left]
    names = [line.read_bytes()[:60] for line in lines if line.exists()]
    end_session(pid)
    told = f"{end} at {moment:.2f}{' over an older result' if over else ''}"
    told += f"{', cold cache' if cold else ''}{' (had ended)' if done is not None else ''}"
    if left:
        return ORPHANS, f"{told}: {len(left)} processes after {PATIENCE:g} s: {names}"
    state = whole(shop, command, made, over)
    if state not in ("old", "new", "none"):
        return LOST, f"{told}: after the kill {state}"
    again = shop.run(*argv, seconds=120)
    if again.code != 0 or again.fault:
        return REFUSED, f"{told}: {again.code} {again.fault} {again.line}"
    stray = around(shop) - made.around
    if over and not command.single:
        stray = frozenset(one for one in stray if not was_older(command, made, Path(one)))
    hidden = []
    for one in around(shop):
        if Path(one).name.startswith(".") or one.endswith((".tmp", ".partial", ".old", ".lock")):
            hidden.append(one)
    if stray or hidden:
        return LITTER, f"{told}: {sorted({*stray, *hidden})[:5]}"
    result = said(shop.work / command.out)
    wrong = []
    for key, value in made.said.items():
        if key not in result or (command.steady and result[key] != value):
            wrong.append(key)
    return (WRONG, f"{told}: {wrong[:5]}") if wrong else (FINE, told)


def cases(shop: Shop, seed: int, count: int) -> list[Case]:
    names = list(COMMANDS)
    chance = np.array([COMMANDS[name].weight for name in names])
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, 1, number])
        name = names[int(rng.choice(len(names), p=chance / chance.sum()))]
        over, end, moment = (
            bool(rng.random() < 0.5),
            ENDS[int(rng.integers(2))],
            float(rng.random()),
        )
        cold = COMMANDS[name].cold and bool(rng.random() < 0.3)

        def do(
            shop: Shop, args: tuple[str, bool, str, float, bool] = (name, over, end, moment, cold)
        ) -> tuple[str, str]:
            return attempt(shop, *args)

        found.append(Case(name, f"{end} killed{' over an older result' if over else ''}", do))
    return found
