"""The API of `import karmafunnel`: logs from data frames, replays, and measures as tables that a
notebook displays as in a report.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

from ..errors import KarmafunnelError, line_of
from ..files import LOG, claim, write_parquet
from ..log import Log as AnyLog
from ..models.embedders import Embedder
from ..stages.stage import Funnel, Stage
from ..terminal import Console
from .importing.assembling import import_tables
from .importing.column_map import ROLES
from .importing.logged_runs import (
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
from .replay.options import DEFAULTS, RunOptions, cache_root
from .replay.prepare import prepare
from .replay.recipe import Recipe, as_funnel, check_complete, load_recipe
from .replay.replay import replay as run_replay
from .report.measure_table import measure_table
from .report.page import notebook
from .report.run_page import report as write_report
from .report.table import print_table


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
    log: AnyLog,
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
    recipe = recipe_of(funnel, log, embedders, label)
    if out is None:
        name = recipe.name
        if not isinstance(funnel, Recipe | Path | str):
            name = "-".join(type(stage).__name__ for stage in recipe.funnel.stages)
        out = Path(tempfile.mkdtemp(prefix="karmafunnel-")) / name
    return Run.open(run_replay(recipe, log, out, options or RunOptions(cache=cache_root())))


def import_run(
    files: Sequence[Path | str],
    out: Path | str,
    *,
    log: AnyLog | None = None,
    qrels: Path | str | None = None,
    stages: Sequence[str] = (),
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
    log: AnyLog,
    request: str,
    embedders: Mapping[str, Embedder] | None = None,
    *,
    item: str | None = None,
    options: RunOptions | None = None,
) -> pl.DataFrame:
    """Explain the ranking of one request: one row per stage and item; arguments as of `replay`."""
    recipe = recipe_of(funnel, log, embedders, None)
    fitted = prepare(recipe, log, options or RunOptions(cache=cache_root()))
    return fitted.explain(request, item)


def measure(runs: Run | Sequence[Run], *measures: str, **settings: Any) -> Answer:
    """Measures of a Run (or of several seeds of one funnel) by stage, with 95% intervals.

    Args:
        settings: by_stage, slice, ci, seed, resamples; see `simulator.measure.compare.measure`.
    """
    return Answer.of(comparing.measure(runs, measures or ("HR@10",), **settings))


def compare(
    a: Run | Sequence[Run], b: Run | Sequence[Run], *measures: str, **settings: Any
) -> Answer:
    """Compare the candidate Run B with the baseline Run A, paired by request.

    Args:
        settings: see `simulator.measure.compare.compare`.
    """
    return Answer.of(comparing.compare(a, b, measures or ("HR@10",), **settings))


def report(*runs: Run | Path | str, out: Path | str) -> Path:
    """Write one HTML file about one or more Runs; returns its path."""
    folders = [run.path if isinstance(run, Run) else Path(run) for run in runs]
    return write_report(folders, Path(out))
