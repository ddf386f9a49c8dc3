"""Figures of the code itself, before and after: width, density, parameters, statements, circles,
time of `--help`.

    python -m karmafunnel.benchmarks.speed.bench_house COMMIT

Counts the product's code (not tests, not `benchmarks/`, whose pages and tables were product code at
older commits and are counted there by name) at COMMIT and in this checkout.
"""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from ...cli import OneLineErrors
from ...simulator.report.table import Table, print_table
from ...terminal import Console
from ..validation.golden import both

OTHERS = {"tests", ".venv", "build", ".mypy_root", "out", "docs"}
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
PAGES = {
    "ablation",
    "attention",
    "attribution",
    "curves",
    "describe",
    "examine",
    "grid",
    "load",
    "page",
    "pareto",
    "plots",
    "profile",
}
# product code that lay in benchmarks/, as these recipes did
PAGES |= {"report", "samples", "table"}
RECIPES = {
    "baseline",
    "karma",
    "neural",
    "popular",
    "own_history",
    "next_item_knn",
    "next_item_sasrec",
    "shown_lists",
}


def product(root: Path) -> Iterator[Path]:
    """Files of the product below a checkout."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        moved = path.stem in {("benchmarks",): PAGES, ("benchmarks", "recipes"): RECIPES}.get(
            parts[:-1], set()
        )
        if not OTHERS & set(parts) and (parts[0] != "benchmarks" or moved):
            yield path


def statements(tree: ast.AST) -> int:
    """Number of statements without docstrings."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    n = 0
    for node in ast.walk(tree):
        n += isinstance(node, ast.stmt)
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            n -= 1
    return n


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of a function, `self` and `cls` apart. Those of a command are its options."""
    given = function.args
    names = {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
    return len(names - {"self", "cls"})


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = " ".join(map(ast.unparse, function.decorator_list))
    return "click" in decorators or "main.command" in decorators


WIDE, DENSE = "lines over 100 columns, %", "comprehensions per 100 lines"
FUNCTIONS = "functions with 10 or more parameters"
COMMANDS = "commands with 10 or more options"
COUNTS = ("files", "lines", "statements", WIDE, DENSE, FUNCTIONS, COMMANDS)


def figures(root: Path) -> dict[str, float]:
    """The counts of one checkout."""
    found = dict.fromkeys(COUNTS, 0.0)
    for path in product(root):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines = text.splitlines()
        found["files"] += 1
        found["lines"] += len(lines)
        found["statements"] += statements(tree)
        found[WIDE] += sum(len(line) > 100 for line in lines)
        for node in ast.walk(tree):
            if isinstance(node, COMPREHENSIONS):
                found[DENSE] += 1
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if parameters(node) >= 10:
                found[COMMANDS if is_command(node) else FUNCTIONS] += 1
    for name in (WIDE, DENSE):
        found[name] *= 100 / found["lines"]
    return found


def seconds_of_help(home: Path) -> float:
    """Processor time of `karmafunnel --help`, the best of five."""
    code = "from karmafunnel.cli import main; main(['--help'])"
    found = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": str(home)},
            cwd=home,
            capture_output=True,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


@click.command(cls=OneLineErrors, help=__doc__.split("\n\n")[0] if __doc__ else "")
@click.argument("commit")
def main(commit: str) -> None:
    """Count and time both, print the table."""
    with both(commit) as (old, new):
        found = [
            figures(code.home / "karmafunnel") | {"--help, s": seconds_of_help(code.home)}
            for code in (old, new)
        ]
    rows = []
    for name in found[0]:
        rows.append([name, *(f"{one[name]:,.{2 if one[name] % 1 else 0}f}" for one in found)])
    print_table(Table(["", "before", "after"], rows), Console())


if __name__ == "__main__":
    main()
