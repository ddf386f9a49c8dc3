"""A recipe: a Python file that exports `funnel` and, where needed, `embedders` and `label`, each a
value or a function of the log.

Without a `label` it is the log's own: its purchases where it has them, else its clicks. A recipe
may export `fallbacks`, recall stages by name that stand in for recall when it is down. One for a
table of rows (`karmafunnel table`) also exports `rows` and `against`, and may export `measures`,
`seeds`, `by_stage` and `grid`; where it exports no `funnel`, it is that of the row `against`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ...bounds import SEED, check_name, check_title
from ...errors import KarmafunnelError, line_of, quoted
from ...files import read_text
from ...log import Log
from ...models.embedders import Embedder
from ...stages.stage import Funnel, Stage
from .paths import FULL, NOTHING, SKIP, STALE

EXPORTS = (
    "funnel",
    "embedders",
    "label",
    "rows",
    "against",
    "measures",
    "seeds",
    "by_stage",
    "grid",
    "fallbacks",
)
SEEDS = (0, 1, 2)
LABELS = ("click", "purchase")


@dataclass(frozen=True)
class Row:
    """A row of a table: a funnel in the place of the recipe's (None: the recipe's own), and
    embedders laid over the recipe's.
    """

    funnel: Funnel | Stage | None = None
    embedders: Mapping[str, Embedder] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says, for one log.

    `rows` holds what each row of a table puts in the place of the recipe's own (a dict is a Row of
    embedders alone); all rows are paired with the row `against`, whose embedders also lend what the
    recipe's own `embedders` lack. `measures` is empty where the file says nothing; `by_stage` asks
    for them at every stage. `grid` names the row in which every subset of some stages is switched
    on, for an attribution of the whole change to these stages. `faults` says why a row cannot be:
    it is a failed line of the table. `path` is the file, `of` the row that this is (`Recipe.row`).
    """

    name: str
    text: str
    funnel: Funnel
    embedders: dict[str, Embedder]
    label: str
    rows: Mapping[str, Row | Mapping[str, Embedder]] = field(default_factory=dict)
    against: str | None = None
    measures: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS
    by_stage: bool = False
    grid: Mapping[frozenset[str], str] = field(default_factory=dict)
    fallbacks: Mapping[str, Stage] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    of: str | None = None

    @property
    def outside(self) -> str:
        """The file's text where it defines classes of its own, which the code of the package does
        not stand for.
        """
        try:
            return (
                self.text
                if any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(self.text)))
                else ""
            )
        except SyntaxError:
            return self.text

    @property
    def read(self) -> dict[str, Embedder]:
        """The embedders that the funnel reads."""
        names = {name for stage in self.funnel.stages for name in stage.embedders()}
        return {name: value for name, value in self.embedders.items() if name in names}

    def row(self, name: str) -> Recipe:
        """This recipe with what one row changes, and no rows; raises KarmafunnelError for a row
        that it lacks or that cannot be.
        """
        if name not in self.rows:
            raise KarmafunnelError(
                f"recipe {self.name}: no row {name!r}; there are {list(self.rows)}"
            )
        if name in self.faults:
            raise KarmafunnelError(self.faults[name])
        row = as_row(self.rows[name])
        funnel, embedders = (
            as_funnel(row.funnel or self.funnel),
            self.embedders | dict(row.embedders),
        )
        return replace(self, funnel=funnel, embedders=embedders, rows={}, against=None, of=name)

    def held_against(self, name: str) -> Recipe:
        """The same rows, held against another of them; raises KarmafunnelError as `row` does."""
        self.row(name)
        return replace(self, against=name)


SHIPPED = Path(__file__).parents[2]  # the package's folder


def as_funnel(value: Any) -> Any:
    """A stage alone is a funnel of one."""
    return Funnel((value,)) if isinstance(value, Stage) else value


def as_row(row: Row | Mapping[str, Embedder]) -> Row:
    return row if isinstance(row, Row) else Row(embedders=row)


def find(recipe: str) -> Path:
    """A path as given, or the name of a recipe or of a study that ships with the package."""
    places = [SHIPPED / "simulator" / "recipes", SHIPPED / "benchmarks" / "studies"]
    for path in (Path(recipe), *(place / f"{recipe.removesuffix('.py')}.py" for place in places)):
        if path.is_file():
            return path
    recipes, studies = (sorted(p.stem for p in place.glob("[!_]*.py")) for place in places)
    raise KarmafunnelError(
        f"recipe: no file {recipe!r}; shipped are {recipes} and, for tables, {studies}"
    )


def load_recipe(recipe: str, log: Log) -> Recipe:
    """Run a recipe file and ask it for this log's funnel, embedders, label and rows.

    Raises KarmafunnelError naming the file for code that fails, an export that is missing or of the
    wrong type, an embedder that the funnel names and the recipe lacks, and an `against` that is
    unknown or cannot be. What is wrong with another row, such as an embedder that the recipe lacks
    or its funnel does not name, is no fault of the table's: it stands in `faults`.
    """
    path = find(recipe)
    return run_recipe(path, read_text(path, "a Python file"), log)


def run_recipe(path: Path, text: str, log: Log) -> Recipe:
    """`load_recipe` of a text that was read from a file, here or on another machine."""
    module = ModuleType(f"karmafunnel_recipe_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    values: dict[str, Any] = {}
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
        for export in EXPORTS:
            values[export] = _of_log(getattr(module, export, None), log)
        if isinstance(values["rows"], Mapping):
            values["rows"] = {name: _row_of_log(row, log) for name, row in values["rows"].items()}
            if values["funnel"] is None:
                values["funnel"] = getattr(values["rows"].get(values["against"]), "funnel", None)
        values["funnel"] = as_funnel(values["funnel"])
    except KarmafunnelError as error:
        raise (
            error
            if str(error).startswith("recipe ")
            else KarmafunnelError(f"recipe {path}: {error}")
        ) from error
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        raise KarmafunnelError(
            f"recipe {path}: exits with {error.code!r}; needs to define things and end"
        ) from error
    except BaseException as error:  # whatever it is, it is the recipe's
        raise KarmafunnelError(f"recipe {path}: fails with {line_of(error)}") from error
    if values["funnel"] is None:
        raise KarmafunnelError(
            f"recipe {path}",
            needs="to export `funnel` (a table: or a row `against` with a funnel of its own)",
            found="none",
        )
    funnel, label = values["funnel"], values["label"] or log.meta["label"]
    embedders = {} if values["embedders"] is None else values["embedders"]
    if not isinstance(funnel, Funnel):
        raise KarmafunnelError(
            f"recipe {path}", what="funnel", needs="stages chained with >>", found=quoted(funnel)
        )
    if label not in LABELS:
        raise KarmafunnelError(
            f"recipe {path}", what="label", needs=f"one of {LABELS} or None", found=quoted(label)
        )
    if not isinstance(embedders, Mapping):
        raise KarmafunnelError(
            f"recipe {path}",
            what="embedders",
            needs="a dict of name: Embedder",
            found=quoted(embedders),
        )
    _check_embedders(f"recipe {path}: ", embedders)
    fallbacks = {} if values["fallbacks"] is None else values["fallbacks"]
    if not isinstance(fallbacks, Mapping) or not all(
        isinstance(n, str) and isinstance(s, Stage) for n, s in fallbacks.items()
    ):
        raise KarmafunnelError(
            f"recipe {path}",
            what="fallbacks",
            needs="a dict of name: recall stage, such as Popular(k=800)",
            found=quoted(fallbacks),
        )
    for name in fallbacks:
        check_name(f"recipe {path}", "the name of a fallback", name, (FULL, NOTHING, SKIP, STALE))
    made = Recipe(
        path.stem, text, funnel, dict(embedders), label, fallbacks=dict(fallbacks), path=path
    )
    if values["rows"] is not None:
        made = replace(made, **_table(path, made, values))
        made.row(str(made.against))  # the others are held against it
        made = replace(
            made, embedders=dict(as_row(made.rows[str(made.against)]).embedders) | made.embedders
        )
        more = {
            name: _fault(f"recipe {path}: row {name!r}", partial(_lacking, made, name))
            for name in made.rows
            if name not in made.faults
        }
        made = replace(
            made, faults={**made.faults, **{name: fault for name, fault in more.items() if fault}}
        )
        made.row(str(made.against))
    if fault := _fault(f"recipe {path}", partial(_lacking, made)):
        raise KarmafunnelError(fault)
    return made


def _lacking(recipe: Recipe, row: str | None = None) -> None:
    """Raise where a stage names an embedder that the recipe, or its row, lacks."""
    found = recipe if row is None else recipe.row(row)
    for stage in found.funnel.stages:
        if missing := [name for name in stage.embedders() if name not in found.embedders]:
            raise KarmafunnelError(
                f"stage {stage.name} needs embedders {missing}, the recipe has {sorted(found.embedders)}"
            )


def _fault(who: str, check: Callable[[], None]) -> str:
    """What a check says is wrong, in one line; empty where nothing is. Whatever goes wrong in one
    row must not sink a table.
    """
    try:
        check()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"{who}: {line_of(error)}"
    return ""


def _of_log(value: Any, log: Log) -> Any:
    """An export as it is, or what it says of this log where it is a function."""
    is_value = (
        isinstance(value, (Stage, Funnel, Embedder, Row, str, Mapping, list, tuple))
        or value is None
    )
    return value if is_value or not callable(value) else value(log)


def _row_of_log(row: Any, log: Log) -> Any:
    """A row as it is for this log, or what went wrong when it was asked."""
    try:
        row = _of_log(row, log)
        if isinstance(row, Row) and isinstance(row.embedders, Mapping):
            return replace(
                row, embedders={name: _of_log(value, log) for name, value in row.embedders.items()}
            )
        return (
            {name: _of_log(value, log) for name, value in row.items()}
            if isinstance(row, Mapping)
            else row
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # one row must not sink a table
        return error


def _check_embedders(who: str, embedders: Mapping[str, Any]) -> None:
    for name, value in embedders.items():
        check_name(who.removesuffix(": ") or "row", "the name of an embedder", name)
        if not isinstance(value, Embedder):
            raise KarmafunnelError(
                f"{who}embedder {name!r} needs an Embedder such as SASRec(), found {quoted(value)}"
            )


def _table(path: Path, recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Recipe that make it a table, checked."""
    rows, against, measures, seeds, by_stage = (
        values[name] for name in ("rows", "against", "measures", "seeds", "by_stage")
    )
    if not isinstance(rows, Mapping) or not rows:
        raise KarmafunnelError(
            f"recipe {path}",
            what="rows",
            needs="a dict of row name: dict of embedders, or Row, with a row at least",
            found=quoted(rows),
        )
    for name in rows:
        check_title(f"recipe {path}", "the name of a row", name)
    found = {
        name: _fault(f"recipe {path}: row {name!r}", partial(_check_row, recipe, given))
        for name, given in rows.items()
    }
    faults = {name: fault for name, fault in found.items() if fault}
    if against not in rows:
        raise KarmafunnelError(
            f"recipe {path}",
            what="against",
            needs=f"the name of a row, one of {list(rows)}",
            found=quoted(against),
        )
    if measures is not None and (
        not isinstance(measures, (list, tuple)) or not all(isinstance(m, str) for m in measures)
    ):
        raise KarmafunnelError(
            f"recipe {path}",
            what="measures",
            needs="a list of names such as 'HR@10'",
            found=quoted(measures),
        )
    seeds = SEEDS if seeds is None else seeds
    whole = isinstance(seeds, (list, tuple)) and all(SEED.holds(s) for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise KarmafunnelError(
            f"recipe {path}",
            what="seeds",
            needs=f"different ones, each {SEED}, such as (0, 1, 2)",
            found=quoted(seeds),
        )
    if by_stage not in (None, True, False):
        raise KarmafunnelError(
            f"recipe {path}", what="by_stage", needs="True or False", found=quoted(by_stage)
        )
    return {
        "rows": {name: Row() if name in faults else as_row(row) for name, row in rows.items()}, "faults": faults, "against": against,
        "measures": tuple(measures or ()), "seeds": tuple(seeds), "by_stage": bool(by_stage), "grid": _grid(path, recipe, rows, values["grid"]),
    }  # fmt: skip


def _check_row(recipe: Recipe, given: Any) -> None:
    if isinstance(given, BaseException):
        raise given
    row = as_row(given)
    if not isinstance(row.embedders, Mapping):
        raise KarmafunnelError(
            f"needs a dict of name: Embedder, or a Row, found {quoted(row.embedders)}"
        )
    if row.funnel is not None and not isinstance(row.funnel, (Funnel, Stage)):
        raise KarmafunnelError(f"funnel needs stages chained with >>, found {quoted(row.funnel)}")
    known = sorted(
        {n for stage in as_funnel(row.funnel or recipe.funnel).stages for n in stage.embedders()}
    )
    if stray := sorted(set(row.embedders) - set(known)):
        raise KarmafunnelError(f"names embedders {stray}; those that its funnel reads are {known}")
    _check_embedders("", row.embedders)


def _grid(
    path: Path, recipe: Recipe, rows: Mapping[str, Any], given: Any
) -> dict[frozenset[str], str]:
    """The row of every subset, from a dict of row: the stages that are on in it."""
    who = f"recipe {path}: grid needs a dict of row: names of the stages switched on in it"
    if not isinstance(given, (Mapping, type(None))):
        raise KarmafunnelError(f"{who}, found {given!r}")
    found: dict[frozenset[str], str] = {}
    for row, on in (given or {}).items():
        if (
            row not in rows
            or not isinstance(on, (list, tuple, set, frozenset))
            or not all(isinstance(name, str) for name in on)
        ):
            raise KarmafunnelError(
                f"{who}, each subset once, found {quoted(row)}: {quoted(on)}; the rows are {list(rows)}"
            )
        if frozenset(on) in found:
            raise KarmafunnelError(
                f"{who}, each subset once, found {row!r}: {on!r}; the rows are {list(rows)}"
            )
        found[frozenset(on)] = row
    every, stages = frozenset().union(*found), [stage.name for stage in recipe.funnel.stages]
    if stray := sorted(every - set(stages)):
        raise KarmafunnelError(f"{who}, among {stages}, found {stray}")
    if found and len(found) < 2 ** len(every):
        raise KarmafunnelError(
            f"{who}, a row for each of the {2 ** len(every)} subsets of {sorted(every)}, found {len(found)}: {given}"
        )
    return found
