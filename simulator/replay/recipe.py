"""A recipe: a Python file that exports `funnel` and, where needed, `embedders` and `label`, each a
value or a function of the log.

Without a `label` it is the log's own: its purchases where it has them, else its clicks. A recipe
may export `fallbacks`, recall stages by name that stand in for recall when it is down. One for a
table of rows (`karmafunnel table`) also exports `rows` and `against`, and may export `measures`,
`seeds`, `by_stage` and `grid`; where it exports no `funnel`, it is that of the row `against`. One
to be tuned (`karmafunnel tune`) exports `choices`: the values of parameters of `funnel`, which is
then a function of the log and of these.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ...bounds import SEED, check_name, check_title
from ...errors import (
    FEW,
    RECIPE_MODULE,
    KarmafunnelError,
    closest,
    line_of,
    meant,
    quoted,
    words_of,
)
from ...files import read_text
from ...keys import PACKAGE
from ...log import Log
from ...models.embedders import Embedder
from ...stages.context import no_embedders
from ...stages.stage import Funnel, Stage
from .paths import FULL, NOTHING, SKIP, STALE

EXPORTS = (
    *("funnel", "embedders", "label", "fallbacks", "choices"),
    *("rows", "against", "measures", "seeds", "by_stage", "grid"),
)
SEEDS = (0, 1, 2)
LABELS = ("click", "purchase")
ROOMS = ("stages", "models")  # what recipes of funnels import from
MOST_CHOSEN = 10**15  # of a number that a search may choose


@dataclass(frozen=True)
class Row:
    """A row of a table: a funnel in the place of the recipe's (None: the recipe's own), and
    embedders that replace those of the recipe by name.
    """

    funnel: Funnel | Stage | None = None
    embedders: Mapping[str, Embedder] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says, for one log.

    Attributes:
        name: the file's name without its ending.
        text: the file's content.
        label: what counts as relevant: "click" or "purchase".
        rows: what each row of a table puts in the place of the recipe's own funnel and embedders.
        against: the row that is the baseline of all others; the recipe has its embedders as well.
        measures: empty where the file names none.
        by_stage: whether a table has the measures of every stage.
        grid: for an attribution, the row in which each subset of some stages is switched on.
        fallbacks: recall stages by name that stand in for recall when it is down.
        errors: why a row cannot be fitted, by row; it is a failed line of the table.
        choices: the values that each parameter of `funnel` may take in a search, cheapest first.
        defaults: the values of the parameters in `funnel` itself.
        build: the funnel of other values of the parameters.
        path: the file.
        row_name: the row that this recipe was made from by `row`.
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
    errors: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[..., Any] | None = field(default=None, repr=False)
    path: Path | None = None
    row_name: str | None = None

    @property
    def custom_code(self) -> str:
        """The file's text where it defines classes, else nothing: a part of the keys of fits, which
        otherwise cover the code of the package alone.
        """
        try:
            nodes = ast.walk(ast.parse(self.text))
        except SyntaxError:
            return self.text
        return self.text if any(isinstance(node, ast.ClassDef) for node in nodes) else ""

    @property
    def used_embedders(self) -> dict[str, Embedder]:
        """The embedders that the funnel reads, by name."""
        names = {name for stage in self.funnel.stages for name in stage.embedders()}
        return {name: value for name, value in self.embedders.items() if name in names}

    def row(self, name: str) -> Recipe:
        """The recipe of one row, without rows of its own.

        Raises:
            KarmafunnelError: for a row that the recipe lacks, and for one of its `errors`.
        """
        if name not in self.rows:
            raise self.no_row(name)
        if name in self.errors:
            raise KarmafunnelError(self.errors[name])
        row = as_row(self.rows[name])
        funnel = as_funnel(row.funnel or self.funnel)
        embedders = self.embedders | dict(row.embedders)
        return replace(
            self, funnel=funnel, embedders=embedders, rows={}, against=None, row_name=name
        )

    def no_row(self, name: str) -> KarmafunnelError:
        """The error for a row that the recipe lacks: of many rows it tells the closest alone."""
        who, rows = f"recipe {self.name}", list(self.rows)
        if not rows:
            return KarmafunnelError(who, needs="no row: it exports no `rows`", found=repr(name))
        if len(rows) <= FEW:
            needs, hint, names = f"a row of {rows}", meant(name, rows), []
        else:
            needs, hint, names = f"one of its {len(rows)} rows", meant(name, rows, most=3), rows
        return KarmafunnelError(who, needs=needs, found=repr(name), hint=hint, names=names)

    def chosen(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with the funnel of these values of the parameters in `choices`.

        Raises:
            KarmafunnelError: what the recipe's function raises, and for an embedder that it lacks.
        """
        assert self.build is not None
        who = f"recipe {self.path}: {', '.join(f'{k}={v!r}' for k, v in values.items())}"
        try:
            funnel = as_funnel(self.build(**values))
        except (Exception, SystemExit) as error:  # whatever the recipe's code raises
            raise KarmafunnelError(f"{who}: {line_of(error)}") from error
        if not isinstance(funnel, Funnel):
            raise _wrong(who, "funnel", "stages chained with >>", funnel)
        found = replace(self, funnel=funnel, choices={}, build=None)
        check_complete(found)
        return found

    def with_baseline(self, name: str) -> Recipe:
        """The same rows with another one as the baseline; raises KarmafunnelError as `row` does."""
        self.row(name)
        return replace(self, against=name)


SHIPPED = Path(__file__).parents[2]  # the package's folder
RECIPES, STUDIES = SHIPPED / "simulator" / "recipes", SHIPPED / "benchmarks" / "studies"


def as_funnel(value: Any) -> Any:
    """A stage alone as a funnel of one; anything else as it is."""
    return Funnel((value,)) if isinstance(value, Stage) else value


def as_row(row: Row | Mapping[str, Embedder]) -> Row:
    """A dict of embedders as a Row."""
    return row if isinstance(row, Row) else Row(embedders=row)


def find(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of a recipe or study that ships with the package.

    Raises:
        KarmafunnelError: where there is no such file, with the closest names that ship.
    """
    places = (RECIPES, STUDIES)
    for path in (Path(recipe), *(place / f"{recipe.removesuffix('.py')}.py" for place in places)):
        if path.is_file():
            return path
    raise KarmafunnelError(
        "recipe",
        needs="a file, or a shipped recipe or table that `karmafunnel recipes` lists",
        found=repr(recipe),
        hint=meant(
            Path(recipe).stem, [p.stem for place in places for p in place.glob("[!_]*.py")], most=3
        ),
    )


def load_recipe(recipe: str, log: Log) -> Recipe:
    """Run a recipe file and take its funnel, embedders, label and rows for this log.

    What is wrong with a row other than the baseline, such as an embedder that the recipe lacks, is
    written to `errors` of the recipe and does not prevent the other rows.

    Raises:
        KarmafunnelError: naming the file, for code that fails, an export that is missing or of the
            wrong type, an embedder that the funnel names and the recipe lacks, and an `against`
            that is unknown or has an error.
    """
    path = find(recipe)
    return run_recipe(path, read_text(path, "a Python file"), log)


def run_recipe(path: Path, text: str, log: Log) -> Recipe:
    """`load_recipe` of a text that was read from `path`, here or on another machine."""
    who = f"recipe {path}"
    values = _exports(path, text, log)
    funnel, label = values["funnel"], values["label"] or log.meta["label"]
    if funnel is None:
        needs = "to export `funnel`, or for a table a row `against` with a funnel of its own"
        raise KarmafunnelError(who, needs=needs, found="none")
    if not isinstance(funnel, Funnel):
        raise _wrong(who, "funnel", "stages chained with >>", funnel)
    if label not in LABELS:
        raise _wrong(who, "label", f"one of {LABELS} or None", label)
    embedders = {} if values["embedders"] is None else values["embedders"]
    if not isinstance(embedders, Mapping):
        raise _wrong(who, "embedders", "a dict of name: Embedder", embedders)
    _check_embedders(who, embedders)
    fallbacks = {} if values["fallbacks"] is None else values["fallbacks"]
    _check_fallbacks(who, fallbacks)
    found = Recipe(
        path.stem, text, funnel, dict(embedders), label, fallbacks=dict(fallbacks), path=path
    )
    if values["choices"] is not None:
        found = _with_choices(who, found, values, log)
    if values["rows"] is not None:
        found = _with_rows(who, found, values)
    if error := _error(who, partial(check_complete, found)):
        raise KarmafunnelError(error)
    return found


def _exports(path: Path, text: str, log: Log) -> dict[str, Any]:
    """Run the text and take its exports for this log, unchecked; None for what it lacks.

    Raises:
        KarmafunnelError: naming the file, whatever the code raises.
    """
    values: dict[str, Any] = {}
    with running(path, text) as module:
        for export in EXPORTS:
            values[export] = _of_log(getattr(module, export, None), log)
        if isinstance(values["rows"], Mapping):
            values["rows"] = {name: _row_of_log(row, log) for name, row in values["rows"].items()}
            if values["funnel"] is None:
                values["funnel"] = getattr(values["rows"].get(values["against"]), "funnel", None)
        values["funnel"] = as_funnel(values["funnel"])
        values["function"] = getattr(module, "funnel", None)
    return values


@contextmanager
def running(path: Path, text: str, rooms: Sequence[str] = ROOMS) -> Iterator[ModuleType]:
    """The module of a recipe's text, which is run; inside, its functions may be called.

    Args:
        rooms: folders of the package whose names a wrong name may have meant.

    Raises:
        KarmafunnelError: naming the file, whatever the code raises.
    """
    who = f"recipe {path}"
    module = ModuleType(f"{RECIPE_MODULE}{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
        yield module
    except KarmafunnelError as error:
        if str(error).startswith("recipe "):
            raise
        raise KarmafunnelError(f"{who}{line_in(path, error)}: {error}") from error
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        needs = "to define its exports and end"
        raise KarmafunnelError(who, needs=needs, found=f"exit with {error.code!r}") from error
    except BaseException as error:  # whatever the recipe's code raises
        where, hint = line_in(path, error), meant_name(error, module, rooms)
        raise KarmafunnelError(f"{who}{where}: fails with {words_of(error)}", hint=hint) from error


def _with_choices(who: str, recipe: Recipe, values: Mapping[str, Any], log: Log) -> Recipe:
    """The recipe with its choices, each checked to be a parameter of `funnel`."""
    given, function = values["choices"], values["function"]
    needs = "a dict of parameter of funnel: its values, two or more, cheapest first"
    if not isinstance(given, Mapping) or not given:
        raise _wrong(who, "choices", needs, given)
    if not inspect.isfunction(function):
        needs = "funnel to be a function of the log and of these parameters"
        raise _wrong(who, "choices", needs, function)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    defaults = {one.name: one.default for one in parameters}
    for name, those in given.items():
        if not isinstance(those, (tuple, list)) or not all(map(_can_be_chosen, those)):
            needs = f"a tuple of texts and numbers, printable and at most {MOST_CHOSEN:,}"
            raise _wrong(who, f"choices of {name}", needs, those)
        if len(set(those)) < max(len(those), 2):
            raise _wrong(who, f"choices of {name}", "two or more different values", those)
        if defaults.get(name, inspect.Parameter.empty) not in those:
            needs = f"a parameter of funnel with a default among {quoted(list(those))}"
            raise KarmafunnelError(
                who, what=f"choices of {name}", needs=needs, found=list(defaults)
            )
    return replace(
        recipe,
        choices={name: tuple(those) for name, those in given.items()},
        defaults=defaults,
        build=partial(function, log),
    )


def _can_be_chosen(value: Any) -> bool:
    """Whether a value can be told in a line of a table and written as JSON."""
    if isinstance(value, str):
        return value.isprintable()
    return isinstance(value, (int, float)) and abs(value) <= MOST_CHOSEN  # NaN is not


def line_in(path: Path, error: BaseException) -> str:
    """Where a recipe file raised an error, as ", line 7"; nothing where it did not. Where line 7
    calls a function of the file, which fails in line 3, it is ", line 7 (through line 3)".
    """
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    through = f" (through line {lines[-1]})" if lines[-1:] != lines[:1] else ""
    return f", line {lines[0]}{through}" if lines else ""


def meant_name(error: BaseException, module: ModuleType, rooms: Sequence[str] = ROOMS) -> str:
    """What may have been meant by a name that is not there, and where it is defined."""
    if isinstance(error, TypeError):
        return meant_argument(str(error), module, rooms)
    name = getattr(error, "name", None)
    if isinstance(error, AttributeError) and isinstance(name, str):
        if isinstance(error.obj, Stage) and hasattr(Funnel, name):
            return f"a funnel has it: (... >> {type(error.obj).__name__}(...)).{name}(...)"
        return meant(name, [one for one in dir(error.obj) if not one.startswith("_")])
    if not isinstance(error, (NameError, ImportError)) or not isinstance(name, str):
        return ""
    if isinstance(error, ModuleNotFoundError) and name.partition(".")[0] != PACKAGE:
        return ""  # a package that is not installed
    if isinstance(error, ImportError):
        asked = re.search(r"cannot import name '(\w+)'", str(error))
        name = asked.group(1) if asked else name.rpartition(".")[2]
    known = offered(rooms)
    if not (found := closest(name, {*known, *vars(module)})):
        return ""
    close, where = found[0], known.get(found[0])
    if close == name and where:
        return f"from {where} import {close}"
    return f"did you mean {close}?" + (f" from {where} import {close}" if where else "")


def meant_argument(message: str, module: ModuleType, rooms: Sequence[str] = ROOMS) -> str:
    """What may have been meant by an argument that a class or function does not take, or has
    already.
    """
    told = re.search(
        r"(\w+)(?:\.__init__)?\(\) got (?:an unexpected keyword|multiple values for) argument"
        r" '(\w+)'",
        message,
    )
    if not told or "Did you mean" in message:  # Python 3.13 may say so itself
        return ""
    called, name = told.groups()
    home = sys.modules.get(offered(rooms).get(called, ""), module)
    try:
        takes = list(inspect.signature(getattr(home, called)).parameters)
    except (AttributeError, TypeError, ValueError):
        return ""
    close = "" if name in takes else meant(name, takes, cutoff=0.7)
    return close or f"{called} takes {', '.join(takes)}"


def offered(rooms: Sequence[str] = ROOMS) -> dict[str, str]:
    """Names that a recipe may import, and the modules that define them; none is imported."""
    found = {"Row": f"{PACKAGE}.simulator.replay.recipe"}
    for room in rooms:
        for path in sorted((SHIPPED / room).rglob("*.py")):
            module = ".".join([PACKAGE, *path.relative_to(SHIPPED).with_suffix("").parts])
            found |= dict.fromkeys(_public_classes(path), module)
    return found


@cache  # the package does not change while it runs, and to parse all of it takes most of a second
def _public_classes(path: Path) -> tuple[str, ...]:
    """Names of the classes that a file of the package offers to recipes."""
    nodes = ast.parse(read_text(path)).body
    names = (node.name for node in nodes if isinstance(node, ast.ClassDef))
    return tuple(name for name in names if not name.startswith(("_", "Fitted")))


def _of_log(value: Any, log: Log) -> Any:
    """An export as it is, or what it returns for this log where it is a function."""
    values = (Stage, Funnel, Embedder, Row, str, Mapping, list, tuple, type(None))
    return value if isinstance(value, values) or not callable(value) else value(log)


def _each_of_log(values: Mapping[str, Any], log: Log) -> dict[str, Any]:
    return {name: _of_log(value, log) for name, value in values.items()}


def _row_of_log(row: Any, log: Log) -> Any:
    """A row for this log, or the error that its functions raised."""
    try:
        row = _of_log(row, log)
        if isinstance(row, Row) and isinstance(row.embedders, Mapping):
            return replace(row, embedders=_each_of_log(row.embedders, log))
        return _each_of_log(row, log) if isinstance(row, Mapping) else row
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # one row must not prevent the others
        return error


def _wrong(who: str, what: str, needs: str, found: Any) -> KarmafunnelError:
    """The error for an export of another type or value than is needed."""
    return KarmafunnelError(who, what=what, needs=needs, found=quoted(found))


def _error(who: str, check: Callable[[], None]) -> str:
    """The error that a check raises, in one line that begins with `who`; empty for none."""
    try:
        check()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        line = line_of(error)
        return line if line.startswith(f"{who}: ") else f"{who}: {line}"
    return ""


def check_complete(recipe: Recipe) -> None:
    """Raise KarmafunnelError where a stage names an embedder that the recipe lacks."""
    for stage in recipe.funnel.stages:
        if missing := [name for name in stage.embedders() if name not in recipe.embedders]:
            raise no_embedders(f"stage {stage.name}", missing, recipe.embedders)


def _check_embedders(who: str, embedders: Mapping[str, Any]) -> None:
    for name, value in embedders.items():
        check_name(who, "the name of an embedder", name)
        if not isinstance(value, Embedder):
            raise _wrong(who, f"embedder {name!r}", "an Embedder such as SASRec()", value)


def _check_fallbacks(who: str, fallbacks: Any) -> None:
    needs = "a dict of name: recall stage, such as Popular(k=800)"
    if not isinstance(fallbacks, Mapping):
        raise _wrong(who, "fallbacks", needs, fallbacks)
    for name, stage in fallbacks.items():
        if not isinstance(name, str) or not isinstance(stage, Stage):
            raise _wrong(who, "fallbacks", needs, fallbacks)
    for name in fallbacks:
        check_name(who, "the name of a fallback", name, (FULL, NOTHING, SKIP, STALE))


# -- rows ------------------------------------------------------------------------------------------


def _with_rows(who: str, recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with the checked exports that make it a table."""
    rows, against, by_stage = values["rows"], values["against"], values["by_stage"]
    if not isinstance(rows, Mapping) or not rows:
        needs = "a dict of row name: dict of embedders, or Row, with a row at least"
        raise _wrong(who, "rows", needs, rows)
    for name in rows:
        check_title(who, "the name of a row", name)
    errors, checked = {}, {}
    for name, row in rows.items():
        title = f"{who}: row {name!r}"
        if error := _error(title, partial(_check_row, title, recipe, row)):
            errors[name] = error
        checked[name] = Row() if error else as_row(row)
    if against not in rows:
        raise _wrong(who, "against", f"the name of a row, one of {list(rows)}", against)
    measures, seeds = _measures(who, values["measures"]), _seeds(who, values["seeds"])
    if by_stage not in (None, True, False):
        raise _wrong(who, "by_stage", "True or False", by_stage)
    recipe = replace(
        recipe,
        rows=checked,
        errors=errors,
        against=against,
        measures=measures,
        seeds=seeds,
        by_stage=bool(by_stage),
        grid=_grid(who, recipe, rows, values["grid"]),
    )
    recipe.row(against)  # a table without its baseline has nothing to compare
    recipe = replace(recipe, embedders=dict(checked[against].embedders) | recipe.embedders)
    for name in checked:
        if name not in errors:
            check = partial(check_complete, recipe.row(name))
            if error := _error(f"{who}: row {name!r}", check):
                errors[name] = error
    recipe.row(against)
    return recipe


def _check_row(who: str, recipe: Recipe, given: Any) -> None:
    """Raise the error that a row is, or KarmafunnelError for one of another type, a funnel that is
    none, and embedders that its funnel does not read.
    """
    if isinstance(given, BaseException):
        raise given
    row = as_row(given)
    if not isinstance(row.embedders, Mapping):
        needs = "a dict of name: Embedder, or a Row"
        raise KarmafunnelError(who, needs=needs, found=quoted(row.embedders))
    if row.funnel is not None and not isinstance(row.funnel, (Funnel, Stage)):
        raise _wrong(who, "funnel", "stages chained with >>", row.funnel)
    funnel = as_funnel(row.funnel or recipe.funnel)
    known = sorted({name for stage in funnel.stages for name in stage.embedders()})
    if stray := sorted(set(row.embedders) - set(known)):
        needs = f"embedders that its funnel reads, of {known}"
        raise KarmafunnelError(who, needs=needs, found=stray)
    _check_embedders(who, row.embedders)


def _measures(who: str, given: Any) -> tuple[str, ...]:
    """The names of the recipe's measures; which of them exist is known only to who measures."""
    if given is None:
        return ()
    if not isinstance(given, (list, tuple)) or not all(isinstance(m, str) for m in given):
        raise _wrong(who, "measures", "a list of names such as 'HR@10'", given)
    return tuple(given)


def _seeds(who: str, given: Any) -> tuple[int, ...]:
    seeds = SEEDS if given is None else given
    known = isinstance(seeds, (list, tuple)) and all(SEED.holds(seed) for seed in seeds)
    if not known or not seeds or len(set(seeds)) < len(seeds):
        raise _wrong(who, "seeds", f"different ones, each {SEED}, such as (0, 1, 2)", given)
    return tuple(seeds)


def _grid(
    who: str, recipe: Recipe, rows: Mapping[str, Any], given: Any
) -> dict[frozenset[str], str]:
    """The row of every subset of the stages that are switched on, from row: stages."""
    needs = "a dict of row: names of the stages switched on in it"
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise _wrong(who, "grid", needs, given)
    found: dict[frozenset[str], str] = {}
    for row, names in given.items():
        known = row in rows and isinstance(names, (list, tuple, set, frozenset))
        known = known and all(isinstance(name, str) for name in names)
        if not known or frozenset(names) in found:
            text = f"{quoted(row)}: {quoted(names)}; the rows are {list(rows)}"
            needs += ", each subset once"
            raise KarmafunnelError(who, what="grid", needs=needs, found=text)
        found[frozenset(names)] = row
    every, stages = frozenset().union(*found), [stage.name for stage in recipe.funnel.stages]
    if stray := sorted(every - set(stages)):
        needs += f", among {stages}"
        raise KarmafunnelError(who, what="grid", needs=needs, found=stray)
    subsets = 2 ** len(every)
    if found and len(found) < subsets:
        needs += f", a row for each of the {subsets} subsets of {sorted(every)}"
        raise KarmafunnelError(who, what="grid", needs=needs, found=f"{len(found)}: {given}")
    return found
