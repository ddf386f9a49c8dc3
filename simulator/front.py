"""The API of `import karmafunnel`: logs from data frames, replays, and measures as tables that a
notebook displays as in a report.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

from ..bounds import check_bound
from ..errors import KarmafunnelError, line_of, meant, quoted
from ..files import LOG, claim, write_parquet
from ..keys import cache_root
from ..log import Log as AnyLog
from ..models.embedders import Embedder
from ..stages.stage import Funnel, Stage
from ..terminal import Console
from .importing.assembling import import_tables
from .importing.column_map import ROLES, ColumnMap
from .importing.logged_runs import (
    FORMATS,
    SAME,
    Lists,
    answered,
    check_same_log,
    funnel_of,
    log_beside,
    log_for,
    read_lists,
    stages_beside,
)
from .importing.stage_lists import Reading
from .measure import compare as comparing
from .measure.run import Run
from .replay.options import DEFAULTS, RunOptions
from .replay.prepare import prepare
from .replay.recipe import Recipe, as_funnel, check_complete, load_recipe
from .replay.replay import replay as run_replay
from .report.measure_table import measure_table
from .report.page import notebook
from .report.run_page import report as write_report
from .report.table import print_table

# -- arguments -------------------------------------------------------------------------------------

FRAMES = "Log.from_interactions"


def refused(
    function: str, argument: str, needs: str, found: Any, hint: str = ""
) -> KarmafunnelError:
    """The error that names a function, its argument and what was given."""
    plain = found is None or isinstance(found, str | int | float | Path)
    told = quoted(found) if plain else f"a {type(found).__name__}"
    return KarmafunnelError(function, what=argument, needs=needs, found=told, hint=hint)


def run_of(function: str, argument: str, given: Any) -> Run:
    """The Run, opened where a path is given."""
    if isinstance(given, Run):
        return given
    if not isinstance(given, Path | str):
        raise refused(function, argument, "a Run or the path of one", given)
    return Run.open(given)


def runs_of(function: str, argument: str, given: Any) -> list[Run]:
    """A Run, or the seeds of one funnel, as Runs or paths of Runs.

    Raises:
        KarmafunnelError: also for Runs that differ in more than their seed.
    """
    if not isinstance(given, list | tuple):
        return [run_of(function, argument, given)]
    if not given:
        raise refused(function, argument, "at least one Run", given)
    runs = [run_of(function, argument, one) for one in given]
    for other in runs[1:]:
        for what, of in ALIKE.items():
            if of(other) != of(runs[0]):
                raise KarmafunnelError(
                    function,
                    what=argument,
                    needs=f"Runs of one {what}, which differ in their seed alone",
                    found=f"{runs[0].path} and {other.path}",
                    hint="compare(a, b) holds two Runs against each other",
                )
    return runs


def seedless(text: Any) -> str:
    """A text of a Run without its seeds."""
    return re.sub(r"\bseed=\d+", "seed", str(text))


# What the seeds of one row have in common.
ALIKE: dict[str, Callable[[Run], Any]] = {
    "log": comparing.log_in_words,
    "label": lambda run: run.label,
    "window": lambda run: run.meta["window"],
    "funnel": lambda run: seedless(run.meta.get("funnel") or run.meta["stages"]),
    "row": lambda run: run.meta.get("row"),
    "set of embedders": lambda run: seedless(run.meta.get("embedders")),
}


def log_of(function: str, given: Any) -> AnyLog:
    """The log, opened where a path is given."""
    if isinstance(given, AnyLog):
        return given
    if not isinstance(given, Path | str):
        raise refused(function, "log", "a log or the path of one", given)
    return AnyLog.open(given)


def texts_of(function: str, argument: str, given: Any, kinds: Any = str) -> list[Any]:
    """Several texts (or paths); a lone one is one of them."""
    listed = [given] if isinstance(given, kinds) else given
    if not isinstance(listed, Sequence) or not all(isinstance(one, kinds) for one in listed):
        raise refused(function, argument, "a list of texts", given)
    return list(listed)


def check_known(function: str, settings: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises KarmafunnelError for the name of an argument that is not known."""
    allowed = sorted(known)
    for name in settings:
        if name not in allowed:
            hint = meant(name, allowed)
            raise KarmafunnelError(
                function, needs=f"arguments among {', '.join(allowed)}", found=name, hint=hint
            )


def check_settings(function: str, settings: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises KarmafunnelError unless these are settings of a measurement."""
    check_known(function, settings, known)
    for name, value in settings.items():
        if name in ("seed", "resamples"):
            check_bound(function, name, **{name: value})
        elif name in ("ci", "by_stage"):
            if not isinstance(value, bool):
                raise refused(function, name, "True or False", value)
        elif value is not None and not isinstance(value, str):
            raise refused(function, name, "a text", value)


def check_roles(settings: Mapping[str, Any]) -> None:
    """Raises KarmafunnelError unless these are columns by role, or fields of an import map."""
    of_the_map = {one.name for one in fields(ColumnMap)} | {"zone"}
    check_known(FRAMES, settings, {*ROLES, *of_the_map} - {"name", "columns", "files"})
    for name, value in settings.items():
        if name in ROLES and name not in of_the_map and not isinstance(value, str):
            raise refused(FRAMES, name, "the name of a column", value)
        if name == "zone" and not isinstance(value, str):
            raise refused(FRAMES, name, "a time zone such as 'Europe/Paris'", value)


@contextmanager
def told_of_frames(folder: str) -> Iterator[None]:
    """Name frames and arguments in errors, in place of files in `folder` and options."""

    def told(text: str) -> str:
        text = re.sub(rf"{re.escape(folder)}/(\w+)\.parquet", r"frame of \1", text)
        text = re.sub(r"--column (\w+)=(\w+)", r'\1="\2"', text)
        text = text.replace("--column", 'an argument such as time="at"')
        text = text.replace("--map", "an import map")
        named = re.compile(r"--([a-z]+(?:-[a-z]+)*)")
        return named.sub(lambda option: f"argument {option[1].replace('-', '_')}", text)

    try:
        yield
    except KarmafunnelError as error:
        parts = {name: told(getattr(error, name)) for name in ("what", "needs", "found", "hint")}
        raise KarmafunnelError(told(error.who), **parts) from error


# -- what is offered -------------------------------------------------------------------------------


class Answer(pl.DataFrame):
    """Rows of measures or of a comparison as a Polars frame; it is printed as by the commands, and
    a notebook displays it as in a report.

    Frames that are selected from it are printed and displayed as Polars does.
    """

    _answered: list[dict[str, Any]] = []  # noqa: RUF012 the rows as `measure` returns them

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> Answer:
        made = cls(rows, infer_schema_length=None)
        made._answered = rows
        return made

    def __str__(self) -> str:
        if not self._answered:
            return super().__str__()
        console = Console(file=io.StringIO(), width=Console().width, color_system=None)
        with console.capture() as captured:
            print_table(measure_table(self._answered), console)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    __repr__ = __str__

    def _repr_html_(self, *, _from_series: bool = False) -> str:
        if not self._answered:
            return str(super()._repr_html_(_from_series=_from_series))
        return notebook(measure_table(self._answered))


class Log(AnyLog):
    """A log, with constructors from data frames (pandas, Polars or Arrow)."""

    @classmethod
    def from_frames(cls, items: Any, requests: Any, exposures: Any, **meta: Any) -> AnyLog:
        """A log from its three tables.

        Args:
            meta: keys of log.json, such as name and label; `has`, `label` and `scenario` are
                inferred from the tables by default.

        Raises:
            KarmafunnelError: as `Log.make` does.
        """
        items, requests, exposures = as_polars(items), as_polars(requests), as_polars(exposures)
        meta = {"name": "log", "scenario": scenario_of(requests)} | meta
        return AnyLog.make(items, requests, exposures, meta)

    @classmethod
    def from_interactions(
        cls,
        frame: Any,
        *,
        items: Any = None,
        orders: Any = None,
        lists: Any = None,
        queries: Any = None,
        name: str = "log",
        allow_rejects: bool = False,
        **settings: Any,
    ) -> AnyLog:
        """A log from a table of interactions and, optionally, other tables.

        Args:
            items: one row per item: item, title, brand, category, price.
            orders: purchases, where the interactions hold clicks.
            lists: what was shown: request, item, position, clicked.
            queries: one row per request or per text: request, query, user, time.
            settings: columns by role (user="buyer", item="sku", time="at"), and other fields of an
                import map (per="session", rating=4.0, zone="Europe/Paris"); all others are guessed
                as by `karmafunnel import`.

        Raises:
            KarmafunnelError: as `import_tables` does.
        """
        check_roles(settings)
        columns = {
            role: settings.pop(role)
            for role in ROLES
            if isinstance(settings.get(role), str) and role != "currency"
        }
        with tempfile.TemporaryDirectory() as folder:
            tables = {
                "interactions": frame,
                "orders": orders,
                "lists": lists,
                "queries": queries,
                "items": items,
            }
            if frame is None:
                raise refused("Log.from_interactions", "frame", "a data frame", frame)
            tables = {kind: table for kind, table in tables.items() if table is not None}
            files = [Path(folder) / f"{kind}.parquet" for kind in tables]
            for file, table in zip(files, tables.values(), strict=True):
                write_parquet(file, as_polars(table))
            if len(files) > 1:
                settings["files"] = {
                    file.name: kind for file, kind in zip(files, tables, strict=True)
                }
            out = Path(folder) / "log"
            frames = f"data frames: {', '.join(tables)}" if len(tables) > 1 else "a data frame"
            with told_of_frames(folder):
                import_tables(
                    files,
                    out,
                    columns=columns,
                    name=name,
                    changes=settings,
                    meta={"source": frames},
                    known_as={file: Path(f"frame of {file.stem}") for file in files},
                    allow_rejects=allow_rejects,
                )
            log = AnyLog.open(out)
            return AnyLog.make(log.items, log.requests, log.exposures, log.meta)


def as_polars(frame: Any) -> pl.DataFrame:
    """Convert a pandas, Arrow or Polars frame to Polars; raises KarmafunnelError for others."""
    try:
        known = nw.from_native(frame, eager_only=True)
    except TypeError as error:
        kind = type(frame).__name__
        raise KarmafunnelError(
            "log", needs="frames of pandas, Polars or Arrow", found=f"a {kind}"
        ) from error
    except nw.exceptions.NarwhalsError as error:
        raise KarmafunnelError("log", needs="each column once", found=line_of(error)) from error
    try:
        return known.with_columns(
            nw.col(name).dt.convert_time_zone("UTC")  # Polars knows no zone such as "+05:30"
            for name, dtype in known.schema.items()
            if isinstance(dtype, nw.Datetime) and re.search(r"[+-]\d", dtype.time_zone or "")
        ).to_polars()
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:  # such as 1 beside "one"
        needs = "columns of values of one type"
        raise KarmafunnelError("log", needs=needs, found=line_of(error)) from error


def scenario_of(requests: pl.DataFrame) -> list[str]:
    """The sources of the requests; "search" where there is no such column."""
    if "source" not in requests.columns:
        return ["search"]
    return sorted(map(str, requests["source"].drop_nulls().unique().to_list()))


def recipe_of(
    what: Recipe | Funnel | Stage | Path | str,
    log: AnyLog,
    embedders: Mapping[str, Embedder] | None,
    label: str | None,
) -> Recipe:
    """The recipe that somebody means by a recipe, its file or name, a funnel or a lone stage.

    Args:
        embedders: of a funnel; of a recipe, those that replace its own, by name.
        label: default: that of the recipe, or of the log.

    Raises:
        KarmafunnelError: for something else, and as `load_recipe` does.
    """
    named = dict(embedders or {})
    if isinstance(what, Recipe | Path | str):
        known = what if isinstance(what, Recipe) else load_recipe(str(what), log)
        given = replace(known, embedders=known.embedders | named, label=label or known.label)
        check_complete(given)
        return given
    funnel = as_funnel(what)
    if not isinstance(funnel, Funnel):
        needs = "a funnel, a stage, a recipe, or the name or file of one"
        raise KarmafunnelError("replay", needs=needs, found=f"a {type(what).__name__}")
    text = f"funnel = {funnel!r}\nembedders = {named!r}\n"
    given = Recipe("funnel", text, funnel, named, label or str(log.meta["label"]))
    check_complete(given)
    return given


def replay(
    funnel: Recipe | Funnel | Stage | Path | str,
    log: AnyLog | Path | str,
    embedders: Mapping[str, Embedder] | None = None,
    *,
    label: str | None = None,
    out: Path | str | None = None,
    options: RunOptions | None = None,
) -> Run:
    """Fit a funnel on a log, replay the last window through it, and open the Run.

    Args:
        funnel: a funnel, a lone stage, a recipe, its file, or the name of one that ships.
        embedders: those that the funnel reads, by name.
        label: "click" or "purchase"; default: that of the recipe, or of the log.
        out: the Run folder; default: a temporary folder.
        options: default: those of the command `replay`, with its cache of what was fitted before.

    Raises:
        KarmafunnelError: as `load_recipe` and `simulator.replay.replay.replay` do.
    """
    log = log_of("replay", log)
    recipe = recipe_of(funnel, log, embedders, label)
    if out is None:
        name = recipe.name
        if not isinstance(funnel, Recipe | Path | str):
            name = "-".join(type(stage).__name__ for stage in recipe.funnel.stages)
        out = Path(tempfile.mkdtemp(prefix="karmafunnel-")) / name
    return Run.open(run_replay(recipe, log, out, options or RunOptions(cache=cache_root())))


def import_run(
    files: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    log: AnyLog | Path | str | None = None,
    qrels: Path | str | None = None,
    stages: str | Sequence[str] = (),
    options: RunOptions = DEFAULTS,
    tell: Callable[[Lists, Sequence[str], Sequence[dict[str, Any]]], None] | None = None,
    **told: Any,
) -> Run:
    """Make a Run of a funnel outside karmafunnel from its stages' lists, without training.

    Args:
        files: TREC runs, one per stage, in the order of the stages; tables with request, item, rank
            or score, and a stage column or one file per stage; UBI queries and events; responses of
            Elasticsearch, OpenSearch or Vespa, one JSON object a line.
        log: the log with the requests. Give either this or `qrels`; with UBI events, neither.
        qrels: a file of TREC relevance judgements.
        stages: the stages in order, where the files do not give it.
        tell: called before the replay with the lists, sentences about what was found, and how many
            requests each stage answered.
        told: fields of `Reading`, which say what is not recognised: format="vespa", item="sku",
            scores={"first": "matchfeatures.bm25"}, clicks=("tap",), purchases=("order",).

    Returns:
        The Run. A log that was made for it, of judgements or UBI events, is in `OUT.log`.

    Raises:
        KarmafunnelError: for files that cannot be read, requests that the log lacks, and as
            `replay` does.
    """
    who = "import_run"
    files = texts_of(who, "files", files, Path | str)
    if not files:
        raise refused(who, "files", "at least one file", files)
    stages = texts_of(who, "stages", stages)
    log = None if log is None else log_of(who, log)
    check_known(who, told, {one.name for one in fields(Reading)})
    formats = ("", *FORMATS, *SAME)
    if (kind := told.get("format", "")) not in formats:
        hint = meant(str(kind), formats[1:])
        raise refused(who, "format", f"one of {', '.join(formats[1:])}", kind, hint)
    for argument, place in (("out", out), ("qrels", qrels)):
        if not isinstance(place, Path | str) and not (place is None and argument == "qrels"):
            raise refused(who, argument, "a path", place)
    reading, out = Reading(**told), Path(out)
    lists = read_lists(files, stages, reading)
    known, notes = log_for(lists, log, qrels, reading)
    beside = log_beside(out)
    mine = claim(beside, "import-run", LOG, force=options.force)
    with mine if known is not log else nullcontext():
        keep = (out / "run.json").exists() and not options.force
        if keep and known is not log:
            check_same_log(known, beside)
        funnel = funnel_of(lists, stages_beside(out), known, keep)
        if tell is not None:
            tell(lists, [*lists.notes, *notes], answered(lists, known, options.window))
        if known is not log:
            known.write(beside, force=options.force)
            known = AnyLog.open(beside)
        return replay(funnel, known, out=out, options=options)


def explain(
    funnel: Recipe | Funnel | Stage | Path | str,
    log: AnyLog | Path | str,
    request: str,
    embedders: Mapping[str, Embedder] | None = None,
    *,
    item: str | None = None,
    options: RunOptions | None = None,
) -> pl.DataFrame:
    """Explain the ranking of one request: one row per stage and item; arguments as of `replay`."""
    log = log_of("explain", log)
    recipe = recipe_of(funnel, log, embedders, None)
    fitted = prepare(recipe, log, options or RunOptions(cache=cache_root()))
    return fitted.explain(request, item)


Given = Run | Path | str  # a Run, or the path of one


def measure(runs: Given | Sequence[Given], *measures: str, **settings: Any) -> Answer:
    """Measures of a Run (or of several seeds of one funnel) by stage, with 95% intervals.

    Args:
        runs: a Run or its path; or several, which differ in their seed alone.
        settings: by_stage, slice, ci, seed, resamples; see `simulator.measure.compare.measure`.
    """
    known = ("by_stage", "slice", "ci", "seed", "resamples", "label")
    check_settings("measure", settings, known)
    opened = runs_of("measure", "runs", runs)
    return Answer.of(comparing.measure(opened, measures or ("HR@10",), **settings))


def compare(
    a: Given | Sequence[Given], b: Given | Sequence[Given], *measures: str, **settings: Any
) -> Answer:
    """Compare the candidate Run B with the baseline Run A, paired by request.

    Args:
        a, b: a Run each, its path, or as many seeds of each.
        settings: see `simulator.measure.compare.compare`.
    """
    known = ("by_stage", "slice", "seed", "resamples", "label_a", "label_b")
    check_settings("compare", settings, known)
    sides = runs_of("compare", "a", a), runs_of("compare", "b", b)
    return Answer.of(comparing.compare(*sides, measures or ("HR@10",), **settings))


def report(*runs: Given, out: Path | str) -> Path:
    """Write one HTML file about one or more Runs; returns its path."""
    for run in runs:
        if not isinstance(run, Run | Path | str):
            hint = "report(*runs, out=FILE)" if isinstance(run, list | tuple) else ""
            raise refused("report", "runs", "Runs or their paths, one by one", run, hint)
    if not isinstance(out, Path | str):
        raise refused("report", "out", "a path", out)
    folders = [run.path if isinstance(run, Run) else Path(run) for run in runs]
    return write_report(folders, Path(out))
