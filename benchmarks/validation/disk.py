"""Full disks: every command that writes, on a small disk of its own.

Where none can be mounted, files may not grow beyond a size. The command ends in one line that names
a path; an older result is what it was; no temporary file is left. What stays of a replay are shards
that are whole: with room, the same command goes on and ends as if nothing had been.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from .kills import COMMANDS, Calm, Command, calm, words
from .material import Case, Shop, copy, files, raw, said

FINE, TOLD, GOES_ON = (
    "it was enough",
    "told in a line, nothing left",
    "told, whole shards left, goes on",
)
TRACEBACK, UNNAMED, LITTER, LOST, WRONG = (
    "TRACEBACK",
    "TOLD WITHOUT A PATH",
    "LITTER",
    "RESULT LOST",
    "OTHER BYTES",
)
FAILS = "FAILS WITH ROOM"
OUTCOMES = (FINE, TOLD, GOES_ON, TRACEBACK, UNNAMED, LITTER, LOST, WRONG, FAILS)
BAD = OUTCOMES[3:]
TEMPORARY = re.compile(r"\.karmafunnel-|\.(tmp|lock|old)(/|$)")


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A disk of so many bytes at `folder`; False where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            capture_output=True,
        ).returncode
        == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@cache
def sizes(shop: Shop, name: str) -> tuple[int, int]:
    """Bytes of a command's result, and of its largest file."""
    calm(shop, name)
    found = [path.stat().st_size for path in files(calm(shop, name).store / "new").values()]
    return sum(found), max(found)


def attempt(shop: Shop, name: str, over: bool, share: float, where: str) -> tuple[str, str]:
    command, made = COMMANDS[name], calm(shop, name)
    total, largest = sizes(shop, name)
    shop.fresh(
        [n for n in (*command.needs, *command.extra) if not (n == "cache" and where == "cache")]
    )
    disk = shop.work / ("disk" if where == "result" else "cache")
    argv = []
    for word in words(command.argv):
        if word in ("new", "new.html", "new/s.toml"):
            word = word.replace("new", "disk/new")
        argv.append(word)
    older = {}
    if where == "cache":
        argv, over, total = words(command.argv), False, 1_000_000
    place = shop.work / ("disk" if where == "result" else ".") / command.out
    held = (
        total
        if not over
        else total + sum(path.stat().st_size for path in files(made.store / "older").values())
    )
    pages = 4096 * (len(made.said) + 8)
    with small_disk(
        disk, max(int(held * (1 if over else 0) + share * (total + pages)), 8192)
    ) as mounted:
        if over:
            try:
                copy(made.store / "older", place)
            except OSError:
                return FINE, "the older result does not fit"
            older = raw(place)
        before = {str(path.relative_to(disk)) for path in disk.rglob("*")}
        answer = shop.run(*argv, file_size=None if mounted else max(int(share * largest), 512))
        told = f"{where}, {share:.2f} of what it takes{' over an older result' if over else ''}"
        told += f"{'' if mounted else ', file size'}: {answer.line}"
        if answer.fault:
            return TRACEBACK, f"{told} [{answer.fault}]"
        if answer.code == 0:
            return judged(command, made, place, FINE, told)
        if "/" not in answer.line and command.out not in answer.line:
            return UNNAMED, told
        new = {str(path.relative_to(disk)) for path in disk.rglob("*")} - before
        if stray := [name for name in new if TEMPORARY.search(name)]:
            return LITTER, f"{told}: {sorted(stray)[:5]}"
        shards = {name for name in new if ".partial" in name}
        if where == "result" and command.single and new - shards:
            return LITTER, f"{told}: {sorted(new - shards)[:5]}"
        if over and command.single and raw(place) != older:
            return LOST, f"{told}: {sorted(set(older) - set(raw(place)))[:5]}"
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=64M", str(disk)], check=True)
        again = shop.run(*argv)
        if again.code or again.fault:
            return FAILS, f"{told}; with room: {again.fault} {again.line}"
        if stray := [name for name in raw(disk) if TEMPORARY.search(name) or ".partial" in name]:
            return LITTER, f"{told}; with room: {sorted(stray)[:5]}"
        return judged(command, made, place, GOES_ON if shards else TOLD, told)


def judged(command: Command, made: Calm, place: Path, fine: str, told: str) -> tuple[str, str]:
    """Whether a result that is there is that of a run that nobody disturbed."""
    result = said(place)
    wrong = []
    for name, value in made.said.items():
        alike = command.steady and not place.name.endswith(".html") and not name.endswith(".html")
        if result.get(name) != value if alike else name not in result:  # a page tells its command
            wrong.append(name)
    return (WRONG, f"{told}: {wrong[:5]}") if wrong else (fine, told)


def cases(shop: Shop, seed: int, count: int) -> list[Case]:
    names = list(COMMANDS)
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, 5, number])
        name = names[number % len(names)]
        where = "cache" if "cache" in COMMANDS[name].needs and rng.random() < 0.4 else "result"
        over, share = bool(rng.random() < 0.5), float(rng.random() ** 1.5)

        def do(
            shop: Shop, args: tuple[str, bool, float, str] = (name, over, share, where)
        ) -> tuple[str, str]:
            return attempt(shop, *args)

        found.append(Case(name, f"{where} on a full disk", do))
    return found
