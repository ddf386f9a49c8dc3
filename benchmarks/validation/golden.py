"""Whether a change of the code changes what a replay writes: the tables of Runs, byte by byte.

    python -m karmafunnel.benchmarks.validation.golden COMMIT
    python -m karmafunnel.benchmarks.validation.golden COMMIT --recipes popular,baseline

Replays each recipe on two logs (the shop of the tests, a small World) with the code of COMMIT and
with the code of this checkout, on this machine, both from empty caches, and compares the logs, the
embeddings and all tables of the Runs. `timing` is left out; entries of `run.json` that differ are
named, and are no failure. Takes about five minutes with all recipes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ...cli import OneLineErrors
from ...errors import KarmafunnelError
from ...files import read_json
from ...terminal import Console

ROOT = Path(__file__).parents[2]
RECIPES = ("popular", "baseline", "neural", "karma")
WORLD = ("--items", "1000", "--users", "400", "--requests", "1500", "--semantic", "0.5")
SHOP = (
    "import sys; sys.path.insert(0, sys.argv[1]); from shop import make_shop; "
    "make_shop().write(sys.argv[2])"
)
# entries of run.json that may differ
CLOCKS = {"timing", "seconds", "created", "command", "versions", "commit"}


@dataclass(frozen=True)
class Code:
    """One state of the code: `home` holds a folder `karmafunnel`; what it writes goes to `out`."""

    home: Path
    out: Path

    def python(self, *arguments: str) -> None:
        """Run Python with this code; raises KarmafunnelError with the last lines it printed."""
        environment = os.environ | {
            "PYTHONPATH": str(self.home),
            "PYTHONHASHSEED": "0",
            "KARMAFUNNEL_CACHE": str(self.out / "cache"),
        }
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=self.home,
            capture_output=True,
            encoding="utf-8",
        )
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
            raise KarmafunnelError(
                f"golden: {' '.join(arguments)} ended with {done.returncode}:\n{said}"
            )

    def command(self, *arguments: str) -> None:
        """Run a command of karmafunnel with this code."""
        self.python("-c", "from karmafunnel.cli import main; main()", *arguments)


@contextmanager
def both(commit: str) -> Iterator[tuple[Code, Code]]:
    """The code of a commit and the code of this checkout, in a folder that is there as long as this
    lasts.
    """
    with tempfile.TemporaryDirectory() as folder:
        old = Code(Path(folder) / "old", Path(folder) / "old" / "out")
        new = Code(Path(folder) / "new", Path(folder) / "new" / "out")
        for code in (old, new):
            code.out.mkdir(parents=True)
        checkout = str(old.home / "karmafunnel")
        made = git("worktree", "add", "--detach", "--quiet", checkout, commit)
        if made.returncode:
            raise KarmafunnelError(
                "golden",
                needs="a commit of this repository",
                found=f"{commit!r}: {made.stderr.strip()}",
            )
        (new.home / "karmafunnel").symlink_to(ROOT, target_is_directory=True)
        try:
            yield old, new
        finally:
            git("worktree", "remove", "--force", checkout).check_returncode()


def git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, encoding="utf-8")


def make_logs(code: Code) -> dict[str, Path]:
    """The two logs, by name."""
    shop, world = code.out / "shop", code.out / "world"
    code.python("-c", SHOP, str(code.home / "karmafunnel" / "tests"), str(shop))
    code.command("world", str(world), *WORLD)
    return {"shop": shop, "world": world}


def tables_that_differ(old: Path, new: Path) -> list[str]:
    """Names of the Parquet files below two folders whose bytes differ, or that one lacks."""

    def tables(folder: Path) -> dict[str, bytes]:
        found = (p for p in folder.rglob("*.parquet") if p.stem != "timing")
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}

    a, b = tables(old), tables(new)
    if not a:
        return [f"no table in {old}"]
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def vectors_that_differ(old: Code, new: Code) -> list[str]:
    """Whether the same embeddings were fitted: their tensors, in whatever order their folders are
    named.
    """

    def vectors(code: Code) -> list[bytes]:
        files = (code.out / "cache").glob("embedder-*/tensors.safetensors")
        return sorted(map(Path.read_bytes, files))

    return [] if vectors(old) == vectors(new) else ["tensors of embedders"]


def entries_that_differ(old: Any, new: Any, at: str = "") -> list[str]:
    """Paths of the entries of two JSON values that differ, clocks apart."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            if key not in CLOCKS:
                found += entries_that_differ(
                    old.get(key), new.get(key), f"{at}.{key}" if at else key
                )
        return found
    return [] if old == new else [at]


def compare(recipe: str, logs: dict[str, Path], old: Code, new: Code, console: Console) -> int:
    """Replay a recipe on each log with both; returns how many comparisons failed."""
    failed = 0
    for name, log in logs.items():
        runs = [code.out / f"{recipe}-{name}" for code in (old, new)]
        for code, run in zip((old, new), runs, strict=True):
            shutil.rmtree(code.out / "cache", ignore_errors=True)
            code.command("replay", recipe, str(log), "--out", str(run), "--seed", "0")
        found = tables_that_differ(*runs) + vectors_that_differ(old, new)
        told = entries_that_differ(*(read_json(run / "run.json") for run in runs))
        failed += bool(found)
        verdict = f"other bytes in {', '.join(found)}" if found else "the same bytes"
        console.print(
            f"{recipe} on {name}: {verdict}" + (f"; run.json: {', '.join(told)}" if told else "")
        )
    return failed


@click.command(cls=OneLineErrors, help=__doc__.split("\n\n")[0] if __doc__ else "")
@click.argument("commit")
@click.option(
    "--recipes", default=",".join(RECIPES), show_default=True, help="Names, with commas between."
)
def main(commit: str, recipes: str) -> None:
    """Replay with both, compare; exit status 1 where bytes differ."""
    console, failed = Console(), 0
    with both(commit) as (old, new):
        logs = make_logs(old)
        for name, log in make_logs(new).items():
            if found := tables_that_differ(logs[name], log):
                console.print(f"log {name}: other bytes in {', '.join(found)}")
                failed += 1
        for recipe in recipes.split(","):
            failed += compare(recipe, logs, old, new, console)
    click.get_current_context().exit(1 if failed else 0)


if __name__ == "__main__":
    main()
