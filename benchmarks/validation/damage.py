"""Damaged bytes: a file of the cache, of a finished result or of a log is changed, and the command
that reads it is run.

It may refuse and name the file, or make it again; what it may not do is to go on with other
figures, or to crash.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .material import Case, Shop, copy, files, raw, said

REFUSED, AGAIN, UNREAD = (
    "refused, file named",
    "made again, same figures",
    "never read, same figures",
)
SAME, UNNAMED, WRONG, CRASH = "READ, NOT NOTICED", "REFUSED, NO FILE NAMED", "SILENT WRONG", "CRASH"
OUTCOMES = (REFUSED, AGAIN, UNREAD, SAME, UNNAMED, WRONG, CRASH)
BAD = (SAME, UNNAMED, WRONG, CRASH)
KINDS = ("flip a bit", "zero 512 bytes", "cut", "delete", "append")

LOAD = """
import hashlib
import numpy as np
from karmafunnel.stages.recall import Popular

space = {}
exec(open("every.py").read(), space)


def funnel(log):
    made = space["embedders"]["karma"].load("embedder", log)
    said = made.items().tobytes() + made.interests(np.arange(40)).tobytes()
    print(hashlib.sha256(said).hexdigest())
    return Popular(k=10)
"""

MEASURE = (
    "measure",
    "run",
    "survival",
    "HR@10",
    "nDCG@10",
    "GMV-HR@10",
    "gAUC:request:exposures",
    "AUC",
    "--json",
)
# What is damaged: what lies beside it, and the commands that read it, each with where its figures
# are ("": standard output).
READERS: dict[str, tuple[tuple[str, ...], tuple[tuple[tuple[str, ...], str], ...]]] = {
    "cache": (("log", "every.py"), ((("replay", "every.py", "log", "--out", "new"), "new"),)),
    "shards": (
        ("log", "every.py", "cache"),
        ((("replay", "every.py", "log", "--out", "new"), "new"),),
    ),
    "run": (
        ("log", "run2"),
        (
            (MEASURE, ""),
            ((*MEASURE[:-1], "--slice", "target", "--json"), ""),
            (("compare", "run2", *MEASURE[1:]), ""),
            (("report", "run", "--out", "report.html"), "report.html"),
        ),
    ),
    "plain": (
        ("services.toml",),
        (
            (
                (
                    "queue",
                    "services.toml",
                    "--rate",
                    "200",
                    "--requests",
                    "500",
                    "--run",
                    "plain",
                    "--out",
                    "load",
                ),
                "load",
            ),
            (("report", "plain", "--out", "report.html"), "report.html"),
        ),
    ),
    "small": (
        ("plain.py", "services.toml"),
        (
            (("replay", "plain.py", "small", "--out", "new"), "new"),
            (("describe", "small", "--json"), ""),
            (("sample", "small", "smaller", "--users", "0.5"), "smaller"),
            (("describe", "small", "--html", "d.html"), "d.html"),
            (
                ("queue", "services.toml", "--log", "small", "--rate", "100", "--out", "load"),
                "load",
            ),
            (("table", "rows.py", "small", "--out", "table"), "table/table.csv"),
        ),
    ),
    "embedder": (
        ("log", "every.py", "load.py"),
        ((("replay", "load.py", "log", "--out", "new"), ""),),
    ),
    "simulation": ((), ((("timeline", "simulation", "5", "--json"), ""),)),
    "table": (
        ("small", "rows.py", "cache"),
        ((("table", "rows.py", "small", "--out", "table"), "table/table.csv"),),
    ),
}
WEIGHTS = {
    "cache": 90,
    "shards": 40,
    "run": 50,
    "plain": 20,
    "small": 50,
    "embedder": 15,
    "simulation": 15,
    "table": 20,
}


def prepare(shop: Shop) -> None:
    """What only these tries need: a replay that was killed, a second Run, a recipe that loads an
    embedding."""
    if (shop.made / "shards").exists():
        return
    (shop.made / "load.py").write_text(LOAD, encoding="utf-8")
    copy(shop.made / "run", shop.made / "run2")
    for _ in range(20):
        shop.fresh(("log", "every.py", "cache"))
        pid = shop.commands.start(
            ["replay", "every.py", "log", "--out", "new"], shop.work, shop.told, shop.env()
        )
        while (
            shop.commands.running
            and len(shards(shop.work)) < 2
            and shop.commands.wait(0.001) is None
        ):
            pass
        if shop.commands.running is None:
            continue
        os.killpg(pid, signal.SIGKILL)
        shop.commands.wait(10)
        found = [path for path in shop.work.iterdir() if path.name.startswith(".")]
        if shards(shop.work) and not (shop.work / "new").exists():
            for path in found:
                copy(path, shop.made / "shards" / path.name)
            return
        time.sleep(0.01)
    raise RuntimeError(
        "damage: needs a replay that was killed between two shards, found none in 20 tries"
    )


def shards(work: Path) -> list[Path]:
    """The pieces of the replay into `new` that are whole; what goes away meanwhile is not there."""
    found: list[Path] = []
    for partial in (path for path in work.iterdir() if path.name.startswith(".new")):
        with suppress(FileNotFoundError):
            pieces = [partial / name for name in os.listdir(partial) if name.isdecimal()]
            files = [path / "timing.parquet" for path in pieces]
            found += filter(Path.exists, files)
    return found


def place(shop: Shop, what: str) -> None:
    """The work folder with an undamaged `what` and what lies beside it."""
    beside, _ = READERS[what]
    extra = ("rows.py",) if what == "small" else ()
    if what == "shards":
        shop.fresh(beside)
        for path in (shop.made / "shards").iterdir():
            copy(path, shop.work / path.name)
    else:
        shop.fresh((*beside, *extra, what))


@cache
def calm(shop: Shop, what: str, reader: int) -> Any:
    """The figures that the reader gives where nothing is damaged."""
    place(shop, what)
    argv, where = READERS[what][1][reader]
    answer = shop.must(*argv)
    return figures(shop, answer.stdout, where)


def figures(shop: Shop, stdout: str, where: str) -> Any:
    if where == "":
        return stdout
    found = said(shop.work / where)
    return {
        name: value for name, value in found.items() if not name.endswith(".html") or name == ""
    }


def spoil(path: Path, kind: str, rng: np.random.Generator) -> str:
    """Damage a file; says how."""
    data = bytearray(path.read_bytes())
    if kind == "delete" or not data:
        path.unlink()
        return "delete"
    at = int(rng.integers(len(data)))
    if kind == "zero 512 bytes":
        at = min(at, max(len(data) - 512, 0))
        if any(data[at : at + 512]):
            data[at : at + 512] = bytes(len(data[at : at + 512]))
        else:
            kind = "flip a bit"
    if kind == "flip a bit":
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[at:]
    elif kind == "append":
        data += rng.bytes(at % 100 + 1)
    path.write_bytes(data)
    return f"{kind} at {at}"


def attempt(
    shop: Shop, what: str, reader: int, draw: float, kind: str, seed: list[int]
) -> tuple[str, str]:
    expected = calm(shop, what, reader)
    place(shop, what)
    root = shop.work if what == "shards" else shop.work / what
    within = {n: p for n, p in files(root).items() if what != "shards" or n.startswith(".")}
    name = list(within)[int(draw * len(within))]
    path = within[name]
    how = spoil(path, kind, np.random.default_rng(seed))
    damaged = raw(path)
    argv, where = READERS[what][1][reader]
    answer = shop.run(*argv)
    told = f"{what}/{name}: {how}; {argv[0]}: {answer.line}"
    if answer.fault:
        return CRASH, f"{told} [{answer.fault}]"
    if answer.code:
        named = path.name in answer.stderr or str(path.parent.name) in answer.stderr
        return (REFUSED if named else UNNAMED), told
    if figures(shop, answer.stdout, where) != expected:
        return WRONG, told
    if raw(path) != damaged or path.name in answer.stderr:
        return AGAIN, told
    if how != "delete":  # would the command miss the file?
        place(shop, what)
        path.unlink()
        answer = shop.run(*argv)
        if (
            answer.code
            or figures(shop, answer.stdout, where) != expected
            or path.exists()
            or path.name in answer.stderr
        ):
            return SAME, told
    return UNREAD, told


def cases(shop: Shop, seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng([seed, 2])
    names = list(WEIGHTS)
    chance = np.array([WEIGHTS[name] for name in names], float)
    found = []
    for number in range(count):
        what = names[int(rng.choice(len(names), p=chance / chance.sum()))]
        reader, draw = int(rng.integers(len(READERS[what][1]))), float(rng.random())
        kind = KINDS[int(rng.integers(len(KINDS)))]

        def do(
            shop: Shop, args: tuple[Any, ...] = (what, reader, draw, kind, [seed, 2, number])
        ) -> tuple[str, str]:
            prepare(shop)
            return attempt(shop, *args)

        found.append(Case(what, f"{kind} in {what}", do))
    return found
