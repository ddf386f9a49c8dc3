"""A recipe: a Python file that exports `funnel`, `embedders` and `label`, each a value or a function of the log.

One for a table of rows (`karmafunnel table`) also exports `rows` and `against`, and may export `measures` and `seeds`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..log import KarmafunnelError, Log
from ..models.embedders import Embedder
from ..stages.base import Funnel, Stage

EXPORTS = ("funnel", "embedders", "label")
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says, for one log.

    `rows` holds what each row of a table puts in the place of the recipe's own embedders, by name; all rows are paired with
    the row `against`, which also lends what the recipe's own `embedders` lack. `measures` is empty where the file says nothing.
    """

    name: str
    text: str
    funnel: Funnel
    embedders: dict[str, Embedder]
    label: str
    rows: dict[str, dict[str, Embedder]] = field(default_factory=dict)
    against: str | None = None
    measures: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS

    @property
    def outside(self) -> str:
        """The file's text where it defines classes of its own, which the code of the package does not stand for."""
        return self.text if "class " in self.text else ""

    def row(self, name: str) -> Recipe:
        """This recipe with one row's embedders, and no rows; raises KarmafunnelError for a row that it lacks."""
        if name not in self.rows:
            raise KarmafunnelError(f"recipe {self.name}: no row {name!r}; there are {list(self.rows)}")
        return replace(self, embedders=self.embedders | self.rows[name], rows={}, against=None)


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
    """Run a recipe file and ask it for this log's funnel, embedders, label and rows.

    Raises KarmafunnelError naming the file for code that fails, an export that is missing or of the wrong type, an embedder
    that the funnel names and the recipe lacks, a row of an embedder that the funnel does not name, and an unknown `against`.
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
            values[export] = _of_log(getattr(module, export), log)
        for export in ("rows", "against", "measures", "seeds"):
            values[export] = _of_log(getattr(module, export, None), log)
        if isinstance(values["rows"], Mapping):
            values["rows"] = {name: _row_of_log(row, log) for name, row in values["rows"].items()}
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
    _check_embedders(f"recipe {path}: ", embedders)
    made = Recipe(path.stem, path.read_text(), funnel, dict(embedders), label)
    if values["rows"] is not None:
        made = replace(made, **_table(path, made, values))
        made = replace(made, embedders=made.rows[str(made.against)] | made.embedders)
    for stage in funnel.stages:
        if missing := [name for name in stage.embedders() if name not in made.embedders]:
            raise KarmafunnelError(
                f"recipe {path}: stage {stage.name} needs embedders {missing}, the recipe has {sorted(made.embedders)}"
            )
    return made


def _of_log(value: Any, log: Log) -> Any:
    """An export as it is, or what it says of this log where it is a function."""
    is_value = isinstance(value, (Stage, Funnel, Embedder, str, Mapping, list, tuple)) or value is None
    return value if is_value or not callable(value) else value(log)


def _row_of_log(row: Any, log: Log) -> Any:
    row = _of_log(row, log)
    return {name: _of_log(value, log) for name, value in row.items()} if isinstance(row, Mapping) else row


def _check_embedders(who: str, embedders: Mapping[str, Any]) -> None:
    for name, value in embedders.items():
        if not isinstance(value, Embedder):
            raise KarmafunnelError(f"{who}embedder {name!r} needs an Embedder such as SASRec(), found {value!r}")


def _table(path: Path, recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Recipe that make it a table, checked."""
    rows, against, measures, seeds = (values[name] for name in ("rows", "against", "measures", "seeds"))
    if not isinstance(rows, Mapping) or not rows:
        raise KarmafunnelError(
            f"recipe {path}: rows needs a dict of row name: dict of embedders with a row at least, found {rows!r}"
        )
    known = sorted({name for stage in recipe.funnel.stages for name in stage.embedders()})
    for name, row in rows.items():
        if not isinstance(name, str) or not name.strip():
            raise KarmafunnelError(f"recipe {path}: a row needs a name, found {name!r}")
        if not isinstance(row, Mapping):
            raise KarmafunnelError(f"recipe {path}: row {name!r} needs a dict of name: Embedder, found {row!r}")
        if stray := sorted(set(row) - set(known)):
            raise KarmafunnelError(
                f"recipe {path}: row {name!r} names embedders {stray}; those that the funnel reads are {known}"
            )
        _check_embedders(f"recipe {path}: row {name!r}: ", row)
    if against not in rows:
        raise KarmafunnelError(f"recipe {path}: against needs the name of a row, one of {list(rows)}; found {against!r}")
    if measures is not None and (not isinstance(measures, (list, tuple)) or not all(isinstance(m, str) for m in measures)):
        raise KarmafunnelError(f"recipe {path}: measures needs a list of names such as 'HR@10', found {measures!r}")
    seeds = SEEDS if seeds is None else seeds
    whole = isinstance(seeds, (list, tuple)) and all(isinstance(s, int) and s >= 0 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise KarmafunnelError(f"recipe {path}: seeds needs different whole numbers from 0, such as (0, 1, 2), found {seeds!r}")
    return {
        "rows": {name: dict(row) for name, row in rows.items()}, "against": against,
        "measures": tuple(measures or ()), "seeds": tuple(seeds),
    }  # fmt: skip
