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
    """Statements, docstrings apart."""
    all_of_them = sum(isinstance(node, ast.stmt) for node in ast.walk(tree))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return all_of_them - sum(
        isinstance(node, documented) and ast.get_docstring(node) is not None
        for node in ast.walk(tree)
    )


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of a function, `self` and `cls` apart. Those of a command are its options."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(
        "click" in ast.unparse(one) or "main.command" in ast.unparse(one)
        for one in function.decorator_list
    )


def figures(root: Path) -> dict[str, float]:
    """The counts of one checkout."""
    texts = [path.read_text(encoding="utf-8") for path in product(root)]
    trees = [ast.parse(text) for text in texts]
    lines = [line for text in texts for line in text.splitlines()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [one for one in functions if parameters(one) >= 10]
    return {
        "files": len(texts),
        "lines": len(lines),
        "statements": sum(map(statements, trees)),
        "lines over 100 columns, %": 100 * sum(len(line) > 100 for line in lines) / len(lines),
        "comprehensions per 100 lines": 100
        * sum(isinstance(node, COMPREHENSIONS) for node in nodes)
        / len(lines),
        "functions with 10 or more parameters": len([one for one in long if not is_command(one)]),
        "commands with 10 or more options": len([one for one in long if is_command(one)]),
    }


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


@click.command(help=__doc__.split("\n\n")[0] if __doc__ else "")
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
        figures_of = [
            f"{one[name]:,.2f}" if one[name] % 1 else f"{one[name]:,.0f}" for one in found
        ]
        rows.append([name, *figures_of])
    print_table(Table(["", "before", "after"], rows), Console())


if __name__ == "__main__":
    main()
