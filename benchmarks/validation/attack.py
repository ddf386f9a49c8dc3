"""Attacks on the whole: kills, damaged bytes, bad values, hostile text in pages, full disks;
counted by how each try ends.

    python -m karmafunnel.benchmarks.validation.attack --out out/attack --minutes 8
    python -m karmafunnel.benchmarks.validation.attack damage --count 300 --out out/attack
    python -m karmafunnel.benchmarks.validation.attack damage --only 17 --out out/attack

Every try is drawn from the seed and its number alone. A finished try is a line of `tries.jsonl`,
so that the same command goes on; what the code of the package has changed since is tried again.
`attack.md` is the count table.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click

from ...cli import OneLineErrors
from ...simulator.replay.provenance import processor
from ...simulator.report.table import Table, print_table, to_markdown
from ...terminal import Console
from . import damage, disk, kills, pages, values
from .commands import Commands
from .material import Case, Shop, make

ROOT = Path(__file__).parents[2]
NOT_TRIED = "NOT TRIED"


@dataclass(frozen=True)
class Family:
    """A kind of attack: how many tries it takes, what they may end in (what must not happen,
    `bad`), and how they are drawn."""

    title: str
    count: int
    outcomes: Sequence[str]
    bad: Sequence[str]
    cases: Callable[[Shop, int, int], list[Case]]


FAMILIES = {
    "kills": Family("Kills at random moments", 300, kills.OUTCOMES, kills.BAD, kills.cases),
    "damage": Family("Damaged bytes", 300, damage.OUTCOMES, damage.BAD, damage.cases),
    "values": Family("Bad values", 1500, values.OUTCOMES, values.BAD, values.cases),
    "pages": Family(
        "Hostile text in pages",
        len(pages.PAGES) * len(pages.PAYLOADS),
        pages.OUTCOMES,
        pages.BAD,
        pages.cases,
    ),
    "disk": Family("Full disks", 96, disk.OUTCOMES, disk.BAD, disk.cases),
}


def code() -> str:
    """A hash of the package's code without the attacks."""
    outside = {"tests", "validation", ".venv", "build", ".mypy_root", "out"}
    found = hashlib.blake2b(digest_size=6)
    for path in sorted(ROOT.rglob("*.py")):
        if not outside & set(path.relative_to(ROOT).parts):
            found.update(path.read_bytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Journal:
    """The finished tries of one seed, a line each."""

    path: Path
    seed: int
    code: str

    def lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        found = []
        for text in self.path.read_text(encoding="utf-8").split("\n"):
            if text.endswith("}"):
                line = json.loads(text)
                if (line["seed"], line["code"]) == (self.seed, self.code):
                    found.append(line)
        return found

    def add(self, **line: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({"seed": self.seed, "code": self.code, **line}, ensure_ascii=True) + "\n"
            )


def attack(
    names: Sequence[str], out: Path, *, seed: int = 0, count: int | None = None,
    minutes: float | None = None,
    only: Sequence[int] = (), say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:  # fmt: skip
    """Make the tries that are not there yet (or `only` these again); returns the lines of all that
    are finished."""
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / "tries.jsonl", seed, code())
    done = {(line["family"], line["number"]) for line in journal.lines()}
    began = time.perf_counter()
    with Commands() as commands:
        shop = Shop(
            out.resolve() / f"made-{journal.code}", out.resolve() / "work" / "in" / "here", commands
        )
        make(shop)
        for name in names:
            family = FAMILIES[name]
            for number, case in enumerate(family.cases(shop, seed, count or family.count)):
                if (number not in only) if only else ((name, number) in done):
                    continue
                if minutes is not None and time.perf_counter() - began > 60 * minutes:
                    say("time is up; the same command goes on")
                    return journal.lines()
                start = time.perf_counter()
                try:
                    outcome, detail = case.do(shop)
                except (
                    RuntimeError
                ) as error:  # what has to go well before there is something to attack
                    outcome, detail = NOT_TRIED, str(error)[-500:]
                line = {
                    "family": name,
                    "number": number,
                    "group": case.group,
                    "what": case.what,
                    "outcome": outcome,
                    "detail": detail,
                }
                if only or outcome in (*family.bad, NOT_TRIED):
                    say(f"{name} {number}: {outcome}: {case.what}: {detail}")
                if not only:
                    journal.add(**line, seconds=round(time.perf_counter() - start, 2))
    return journal.lines()


def counts(name: str, lines: Sequence[dict[str, Any]]) -> Table:
    """A family's count table: a row a group, and all."""
    family = FAMILIES[name]
    mine = [line for line in lines if line["family"] == name]
    extra = sorted({line["outcome"] for line in mine} - set(family.outcomes))
    outcomes = [*family.outcomes, *extra]
    groups = list(dict.fromkeys(sorted(line["group"] for line in mine)))
    rows = []
    for group in [*groups, "all"]:
        found = Counter(line["outcome"] for line in mine if group in ("all", line["group"]))
        rows.append([group, f"{found.total():,}", *(f"{found[outcome]:,}" for outcome in outcomes)])
    return Table([family.title, "tries", *outcomes], rows)


def counted(lines: Sequence[dict[str, Any]]) -> list[Table]:
    """The count tables of the families that were tried."""
    tried = {line["family"] for line in lines}
    return [counts(name, lines) for name in FAMILIES if name in tried]


def markdown(lines: Sequence[dict[str, Any]], note: str) -> str:
    """The count tables, with what was run below them."""
    tables = map(to_markdown, counted(lines))
    return "\n".join(["## Attacks, counted by how each try ends\n", *tables, note, ""])


@click.command(cls=OneLineErrors, help=__doc__)
@click.argument("families", nargs=-1, type=click.Choice(list(FAMILIES)))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/attack"),
    show_default=True,
    help="Where tries and the table go.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option(
    "--count",
    type=click.IntRange(1),
    help="So many tries of each family, instead of its own count.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0),
    help="Begin no new try after so long; the same command goes on.",
)
@click.option(
    "--only",
    type=int,
    multiple=True,
    metavar="NUMBER",
    help="Only this try, again; its work folder stays as it was left.",
)
def main(
    families: Sequence[str],
    out: Path,
    seed: int,
    count: int | None,
    minutes: float | None,
    only: Sequence[int],
) -> None:
    names = families or list(FAMILIES)
    lines = attack(names, out, seed=seed, count=count, minutes=minutes, only=only)
    if only:
        return
    console = Console()
    for table in counted(lines):
        print_table(table, console)
    command = f"`python -m karmafunnel.benchmarks.validation.attack --seed {seed}`"
    note = f"- {command}; {date.today()}, {processor()}, {os.cpu_count()} cores"
    (out / "attack.md").write_text(markdown(lines, note), encoding="utf-8")


if __name__ == "__main__":
    main()
