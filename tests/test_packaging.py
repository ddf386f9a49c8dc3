"""The project checks itself: every folder ships, imports point one way, every recipe loads."""

import ast
import tomllib
from pathlib import Path

import karmafunnel
import pytest
from karmafunnel.simulator.recipe import load_recipe

ROOT = Path(karmafunnel.__file__).parent
ORDER = ["errors", "bounds", "shapes", "terminal", "files", "layout", "keys", "log", "models", "stages", "simulator", "benchmarks", "cli"]
# a room may import itself and those before it
CODE = [p for p in ROOT.rglob("*.py") if not {"tests", ".venv", "build", ".mypy_root", "out"} & set(p.relative_to(ROOT).parts)]


def room(path: Path) -> str:
    name = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return {"checks": "log", "__init__": "log"}.get(name, name)


def test_every_folder_with_code_ships():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(["karmafunnel", *p.parent.relative_to(ROOT).parts]) for p in CODE}
    assert listed == found


def test_every_file_that_code_reads_ships():
    """Templates, styles and scripts of pages, pinned packages: what stands in a package and is neither code nor a record of results."""
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = {p for package, globs in said.items() for g in globs for p in (ROOT / Path(*package.split(".")[1:])).glob(g)}
    read = {p for p in ROOT.glob("benchmarks/**/*") if p.suffix in (".j2", ".css", ".js", ".txt") and p.is_file()}
    assert read <= found and {p.name for p in found} >= {"base.html.j2", "blocks.html.j2", "page.css", "page.js", "py.typed"}


def imports(path: Path) -> set[str]:
    """Rooms that a file imports, absolute or relative."""
    package = ["karmafunnel", *path.parent.relative_to(ROOT).parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = [*base, *(node.module.split(".") if node.module else [])]
            found |= {".".join([*full, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("karmafunnel.")}


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    here = ORDER.index(room(path))
    for name in imports(path):
        if name in ORDER or name == "checks":
            there = ORDER.index("log" if name == "checks" else name)
            lazy = here == ORDER.index("stages") and path.name == "base.py" and there == here
            assert there <= here or lazy, f"{path.name} ({ORDER[here]}) imports {name}"


FOLDER = ROOT / "benchmarks" / "recipes"
RECIPES = [p for p in sorted(FOLDER.glob("[!_]*.py")) if "\nfunnel" in p.read_text() or "\ndef funnel" in p.read_text()]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads(path, shop):
    assert load_recipe(str(path), shop).funnel.stages
