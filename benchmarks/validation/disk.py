"""Full disks: every command that writes, on a small disk of its own (or, where none can be mounted, with files that may not grow).

It ends in one line, leaves nothing, and an older result is what it was.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from .kills import COMMANDS, calm, words
from .material import Case, Shop, copy, files, raw, said

FINE, TOLD, TRACEBACK, LITTER, LOST, WRONG = "it was enough", "told in a line, nothing left", "TRACEBACK", "LITTER", "RESULT LOST", "OTHER BYTES"
OUTCOMES = (FINE, TOLD, TRACEBACK, LITTER, LOST, WRONG)
BAD = OUTCOMES[2:]
WHERE = ("result", "cache")


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A disk of so many bytes at `folder`; False where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True).returncode == 0
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
    shop.fresh([n for n in (*command.needs, *command.extra) if not (n == "cache" and where == "cache")])
    disk = shop.work / ("disk" if where == "result" else "cache")
    argv = [word.replace("new", "disk/new") if word in ("new", "new.html", "new/s.toml") else word for word in words(command.argv)]
    older = {}
    if where == "cache":
        argv, over, total = words(command.argv), False, 1_000_000
    place = shop.work / ("disk" if where == "result" else ".") / command.out
    held = total if not over else total + sum(path.stat().st_size for path in files(made.store / "older").values())
    pages = 4096 * (len(made.said) + 8)
    with small_disk(disk, max(int(held * (1 if over else 0) + share * (total + pages)), 8192)) as mounted:
        if over:
            try:
                copy(made.store / "older", place)
            except OSError:
                return FINE, "the older result does not fit"
            older = raw(place)
        before = {str(path.relative_to(disk)) for path in disk.rglob("*")}
        answer = shop.run(*argv, file_size=None if mounted else max(int(share * largest), 512))
        told = f"{where}, {share:.2f} of what it takes{' over an older result' if over else ''}{'' if mounted else ', file size'}: {answer.line}"
        if answer.fault:
            return TRACEBACK, f"{told} [{answer.fault}]"
        left = {str(path.relative_to(disk)) for path in disk.rglob("*")}
        if answer.code:
            stray = [one for one in left - before if where == "result" or ".karmafunnel" in one or one.endswith((".tmp", ".partial", ".lock"))]
            if where == "result" and not command.single:
                stray = [one for one in stray if Path(one).name.startswith(".") or "/." in one]
            if stray:
                return LITTER, f"{told}: {sorted(stray)[:5]}"
            if over and command.single and raw(place) != older:
                return LOST, f"{told}: {sorted(set(older) - set(raw(place)))[:5]}"
            return TOLD, told
        result = said(place)
        wrong = [key for key, value in made.said.items() if command.steady and where == "cache" and result.get(key) != value]
        if wrong or made.said.keys() - result.keys():
            return WRONG, f"{told}: {wrong[:5]}"
        return FINE, told


def cases(shop: Shop, seed: int, count: int) -> list[Case]:
    names = list(COMMANDS)
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, 5, number])
        name = names[number % len(names)]
        where = "cache" if "cache" in COMMANDS[name].needs and rng.random() < 0.4 else "result"
        over, share = bool(rng.random() < 0.5), float(rng.random() ** 1.5)

        def do(shop: Shop, args: tuple[str, bool, float, str] = (name, over, share, where)) -> tuple[str, str]:
            return attempt(shop, *args)

        found.append(Case(name, f"{where} on a full disk", do))
    return found


def may_mount() -> bool:
    return os.geteuid() == 0
