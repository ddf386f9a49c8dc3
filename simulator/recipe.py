"""A recipe: a Python file that exports `funnel`, `embedders` and `label`, each a value or a function of the log."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..log import KarmafunnelError, Log
from ..models.embedders import Embedder
from ..stages.base import Funnel, Stage

EXPORTS = ("funnel", "embedders", "label")


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says, for one log."""

    name: str
    text: str
    funnel: Funnel
    embedders: dict[str, Embedder]
    label: str


def find(recipe: str) -> Path:
    """A path as given, or the name of a recipe that ships with the package."""
    shipped = Path(__file__).parent.parent / "benchmarks" / "recipes"
    for path in (Path(recipe), shipped / recipe, shipped / f"{recipe}.py"):
        if path.is_file():
            return path
    raise KarmafunnelError(
        f"recipe: no file {recipe!r}; shipped are {sorted(p.stem for p in shipped.glob('[!_]*.py') if 'funnel' in p.read_text())}"
    )


def load_recipe(recipe: str, log: Log) -> Recipe:
    """Run a recipe file and ask it for this log's funnel, embedders and label.

    Raises KarmafunnelError naming the file for code that fails, an export that is missing or of the wrong type, or an
    embedder that the funnel names and the recipe lacks.
    """
    path = find(recipe)
    spec = importlib.util.spec_from_file_location(f"karmafunnel_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise KarmafunnelError(f"recipe {path}: needs a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    values: dict[str, Any] = {}
    try:
        spec.loader.exec_module(module)
        for export in EXPORTS:
            if not hasattr(module, export):
                raise KarmafunnelError(f"recipe {path}: needs to export {list(EXPORTS)}, {export!r} is missing")
            value = getattr(module, export)
            is_value = isinstance(value, (Stage, Funnel, str, Mapping)) or value is None
            values[export] = value if is_value or not callable(value) else value(log)
    except KarmafunnelError:
        raise
    except Exception as error:
        raise KarmafunnelError(f"recipe {path}: fails with {type(error).__name__}: {error}") from error
    funnel, embedders, label = values["funnel"], values["embedders"], values["label"] or log.meta["label"]
    if isinstance(funnel, Stage):
        funnel = Funnel((funnel,))
    if not isinstance(funnel, Funnel):
        raise KarmafunnelError(f"recipe {path}: funnel needs stages chained with >>, found {funnel!r}")
    if not isinstance(embedders, Mapping):
        raise KarmafunnelError(f"recipe {path}: embedders needs a dict of name: Embedder, found {embedders!r}")
    for name, value in embedders.items():
        if not isinstance(value, Embedder):
            raise KarmafunnelError(f"recipe {path}: embedder {name!r} needs an Embedder such as SASRec(), found {value!r}")
    for stage in funnel.stages:
        if missing := [name for name in stage.embedders() if name not in embedders]:
            raise KarmafunnelError(
                f"recipe {path}: stage {stage.name} needs embedders {missing}, the recipe has {sorted(embedders)}"
            )
    return Recipe(path.stem, path.read_text(), funnel, dict(embedders), label)
