"""Lists of the available recipes, stages, features, embedders, measures and sources."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from .. import models, stages
from ..errors import KarmafunnelError, no_such
from ..files import read_text
from ..keys import PACKAGE, file_of
from ..models.embedders import Embedder
from ..stages.rows import Feature
from ..stages.stage import Stage
from ..typed import Typed
from . import datasets, recipes
from .measure.measures.measure import Measure, kinds
from .replay.recipe import STUDIES

# base classes, which are not listed
BASES = ("Learner", "Boosted", "Neural", "ActionLoss")


@dataclass(frozen=True)
class Entry:
    """One entry of a list: its name, how to write it, a one-line description, its module."""

    name: str
    typed: str
    line: str
    module: str


def first_line(text: str | None) -> str:
    """The first sentence of a docstring on one line."""
    whole = re.sub(r"\s+", " ", inspect.cleandoc(text or "")).replace("`", "")
    return re.split(r"(?<=[.])(?<! al[.]) ", whole)[0]


def subclasses(base: type, package: Any) -> Iterator[type]:
    """All subclasses of `base`, after importing every module of a package."""
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
    waiting: list[type] = [base]
    seen: set[type] = set()
    while waiting:
        below: list[type] = waiting.pop().__subclasses__()
        for kind in below:
            if kind not in seen:
                seen.add(kind)
                waiting.append(kind)
                yield kind


def typed(kind: type) -> str:
    """A class as written in a recipe, with its fields and their short defaults."""
    words = []
    for field in fields(kind):
        if not field.init:
            continue
        plain = field.default is not MISSING and len(repr(field.default)) <= 40
        words.append(f"{field.name}={field.default!r}" if plain else field.name)
    return f"{kind.__name__}({', '.join(words)})"


def of_classes(base: type, package: Any, apart: tuple[type, ...] = ()) -> list[Entry]:
    """The classes below `base` that a recipe may write, but for those below `apart`."""
    found = []
    for kind in subclasses(base, package):
        ours = kind.__module__.startswith(package.__name__)
        if (
            ours
            and is_dataclass(kind)
            and not issubclass(kind, apart)
            and not kind.__name__.startswith("_")
            and kind.__name__ not in BASES
            and not inspect.isabstract(kind)
        ):
            found.append(
                Entry(kind.__name__, typed(kind), first_line(kind.__doc__), kind.__module__)
            )
    return sorted(found, key=lambda entry: (entry.module, entry.name))


def of_files(folder: Path, module: str) -> list[Entry]:
    """Python files of a folder with the first sentence of their docstrings, without importing
    them.
    """
    found = []
    for path in sorted(folder.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        line = first_line(text.partition("\n\n")[0]).rstrip(":")
        found.append(Entry(path.stem, path.stem, line, f"{module}.{path.stem}"))
    return found


def of_measures() -> list[Entry]:
    found = []
    for name, kind in kinds().items():
        line = definition(kind.form)
        found.append(Entry(name, kind.form, line, kind.__module__))
    return sorted(found, key=lambda entry: entry.name.lower())


def definition(form: str) -> str:
    """The definition of a measure, for an example of its form."""
    example = re.sub(r"\[.*", "", form)
    for letter, number in (
        ("@m@k", "@50@10"),
        ("@k", "@10"),
        ("request|user:exposures|candidates", "request:exposures"),
    ):
        example = example.replace(letter, number)
    try:
        return Measure.parse(example).definition
    except KarmafunnelError:
        return ""


def of_sources() -> list[Entry]:
    about = [datasets.describe(name) for name in datasets.SOURCES]
    return [Entry(one.name, one.name, one.title, datasets.__name__) for one in about]


def listed(what: str) -> list[Entry]:
    """The entries of a list: recipes, stages, features, embedders, measures or sources."""
    return {
        "recipes": lambda: of_files(Path(recipes.__path__[0]), recipes.__name__),
        "stages": lambda: of_classes(Stage, stages),
        "features": lambda: of_classes(Feature, stages),
        "embedders": lambda: of_classes(Embedder, models),
        "measures": of_measures,
        "sources": of_sources,
    }[what]()


def taken(what: str) -> list[Entry]:
    """What the entries of a list take as arguments: such as Sample, PositionBias, LCRON of stages;
    Pairwise, Checkpoint of embedders. Of recipes, the tables that ship.
    """
    if what == "recipes":
        return of_files(STUDIES, f"{PACKAGE}.benchmarks.studies")
    package = {"stages": stages, "embedders": models}.get(what)
    return of_classes(Typed, package, (Stage, Feature, Embedder)) if package else []


def find(what: str, name: str) -> Entry:
    """One entry of a list, or a setting that a stage or an embedder takes; raises KarmafunnelError
    for a name that is not there.
    """
    name = name.removesuffix(".py") if what == "recipes" else name
    entries = {entry.name: entry for entry in listed(what)}
    if name not in entries:
        entries |= {entry.name: entry for entry in taken(what)}
    if name not in entries:
        raise no_such(what, name, list(entries), f"karmafunnel {what}")
    return entries[name]


def whole(what: str, entry: Entry) -> tuple[str, str]:
    """All about an entry, and the file that defines it: of a recipe its text, else how it is
    written, its whole docstring, how it is imported and its arguments.
    """
    path = file_of(entry.module)
    if what == "recipes":
        return read_text(path).rstrip("\n"), str(path)
    lines = [entry.typed, ""]
    if what == "measures":
        kind = kinds()[entry.name]
        lines += [entry.line, ""]
    else:
        kind = getattr(importlib.import_module(entry.module), entry.name)
        lines += [f"from {entry.module} import {entry.name}", ""]
    lines.append("\n\n".join(docs(kind)))
    if what != "measures":
        lines += ["", "Arguments:"]
        for field in (field for field in fields(kind) if field.init):
            default = "" if field.default is MISSING else f" = {field.default!r}"
            lines.append(f"- {field.name}: {field.type}{default}")
    return "\n".join(lines).rstrip("\n"), str(path)


def docs(kind: type) -> list[str]:
    """The docstring of a class, and those of its base classes that are not listed; of a measure
    that has none, that of the class that it is made from.
    """
    found: list[str] = []
    for one in kind.__mro__:
        text = inspect.cleandoc(vars(one).get("__doc__") or "")
        written = text and not text.startswith(f"{one.__name__}(")  # else made by dataclass
        if written and (not found or one.__name__ in BASES):
            found.append(text)
    return found
