"""The project checks itself: every folder ships, imports point one way, every recipe loads."""

import ast
import tomllib
from collections import Counter
from pathlib import Path

import karmafunnel
import pytest
from karmafunnel.simulator.replay.recipe import load_recipe

ROOT = Path(karmafunnel.__file__).parent
# A room may import itself and those before it.
ORDER = [
    "errors",
    "typed",
    "bigrams",
    "bounds",
    "shapes",
    "terminal",
    "files",
    "layout",
    "keys",
    "mapped",
    "asof",
    "log",
    "models",
    "stages",
    "simulator.world",
    "simulator.importing",
    "simulator.datasets",
    "simulator.measure",
    "simulator.replay",
    "simulator.likeness",
    "simulator.load",
    "simulator.report",
    "simulator.offpolicy",
    "simulator.experiment",
    "simulator.ablation",
    "simulator.tuning",
    "simulator.recipes",
    "simulator.listing",
    "simulator.front",
    "simulator.commands",
    "cli",
    "__main__",
    "benchmarks",
]
CODE = [
    p
    for p in ROOT.rglob("*.py")
    if not {"tests", ".venv", "build", ".mypy_root", "out"} & set(p.relative_to(ROOT).parts)
]


MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").strip("."): p
    for p in CODE
}


def room(module: str) -> str:
    """The room of a module, by its name within the package."""
    if alone := {"": "log", "checks": "log", "simulator": "simulator.world"}.get(module):
        return alone
    return next(name for name in ORDER if f"{module}.".startswith(f"{name}."))


def test_every_folder_with_code_ships():
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    found = {".".join(["karmafunnel", *p.parent.relative_to(ROOT).parts]) for p in CODE}
    assert listed == found


def test_every_file_that_code_reads_ships():
    """Templates, styles and scripts of pages, pinned packages: what stands in a package and is
    neither code nor a record of results.
    """
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    found = {
        p
        for package, globs in said.items()
        for g in globs
        for p in (ROOT / Path(*package.split(".")[1:])).glob(g)
    }
    files = [*ROOT.glob("benchmarks/**/*"), *ROOT.glob("simulator/**/*")]
    read = {p for p in files if p.suffix in (".j2", ".css", ".js", ".txt", ".toml") and p.is_file()}
    assert read <= found and {p.name for p in found} >= {
        "base.html.j2",
        "blocks.html.j2",
        "page.css",
        "page.js",
        "py.typed",
    }


def imports(module: str) -> set[str]:
    """Modules of the package that a module imports, anywhere in its code."""
    path = MODULES[module]
    here = ["karmafunnel", *path.parent.relative_to(ROOT).parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            full = ".".join([*base, *(node.module.split(".") if node.module else [])])
            found |= {
                f"{full}.{alias.name}" if f"{full}.{alias.name}"[12:] in MODULES else full
                for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {
        name[12:] for name in found if name == "karmafunnel" or name.startswith("karmafunnel.")
    } - {module}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    for name in imports(module):
        assert ORDER.index(room(name)) <= ORDER.index(room(module)), f"{module} imports {name}"


def test_no_modules_import_each_other():
    """Neither two nor a longer circle, inside a room either. A package's `__init__` runs whenever a
    module of it is imported.
    """
    left = {module: imports(module) for module in MODULES}
    while free := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert not left, f"a circle among {sorted(left)}"


def test_one_file_formats_tables():
    """Markdown, LaTeX and the terminal in `table.py`, HTML in its template: nothing else writes the
    borders of a table.
    """
    borders = ('"| ', "| ---", "|---", "<table", "{tabular}", "rich.table")
    files = [
        p
        for p in [*CODE, *ROOT.glob("simulator/**/*.j2")]
        if any(border in p.read_text() for border in borders)
    ]
    own = {"simulator/report/table.py", "simulator/report/templates/blocks.html.j2"}
    assert {p.relative_to(ROOT).as_posix() for p in files} == own


@pytest.mark.parametrize("module", MODULES)
def test_no_comprehension_has_more_than_two_fors(module):
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    nodes = [
        node for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, kinds)
    ]
    assert [node.lineno for node in nodes if len(node.generators) > 2] == []


def test_nothing_of_the_product_imports_benchmarks():
    assert not [
        m
        for m in MODULES
        if not m.startswith("benchmarks")
        and any(name.startswith("benchmarks") for name in imports(m))
    ]


FOLDERS = [ROOT / "simulator" / "recipes", ROOT / "benchmarks" / "studies"]
RECIPES = [
    p
    for folder in FOLDERS
    for p in sorted(folder.glob("[!_]*.py"))
    if "\nfunnel" in p.read_text() or "\ndef funnel" in p.read_text()
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads(path, shop):
    assert load_recipe(str(path), shop).funnel.stages


def test_no_two_files_of_one_name_mean_different_things():
    """Both `losses.py` hold losses of networks; a recipe is called like the retriever it shows."""
    names = Counter(p.stem for p in MODULES.values() if p.stem != "__init__")
    assert {name for name, many in names.items() if many > 1} <= {"losses", "popular"}


def test_the_citation_says_the_version_and_docker_copies_files_that_are_there():
    assert f"\nversion: {karmafunnel.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    copied = [
        line.split()[1]
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
    ]
    assert copied and all((ROOT / name).exists() for name in copied)
