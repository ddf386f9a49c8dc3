"""What `import karmafunnel` offers: a log of one's own frames, a replay, and answers as tables that
a notebook shows as the report does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

from ..errors import KarmafunnelError
from ..files import write_parquet
from ..log import Log as AnyLog
from ..models.embedders import Embedder
from ..stages.stage import Funnel, Stage
from .importing.assembling import import_tables
from .importing.column_map import ROLES
from .importing.logged_runs import funnel_of, log_of_qrels, read_lists, stages_beside
from .measure import compare as comparing
from .measure.run import Run
from .replay.options import DEFAULTS, RunOptions
from .replay.prepare import prepare
from .replay.recipe import Recipe, as_funnel
from .replay.replay import replay as run_replay
from .report.measure_table import measure_table
from .report.page import notebook
from .report.run_page import report as write_report


class Answer(pl.DataFrame):
    """Rows of measures or of a comparison as a Polars frame; a notebook shows them as the report
    does.
    """

    _answered: list[dict[str, Any]] = []  # noqa: RUF012 as they are asked for

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> Answer:
        made = cls(rows, infer_schema_length=None)
        made._answered = rows
        return made

    def _repr_html_(self, *, _from_series: bool = False) -> str:
        if not self._answered:
            return str(super()._repr_html_(_from_series=_from_series))
        return notebook(measure_table(self._answered))


class Log(AnyLog):
    """A log, and the ways to make one of frames (pandas, Polars or Arrow)."""

    @classmethod
    def from_frames(cls, items: Any, requests: Any, exposures: Any, **meta: Any) -> AnyLog:
        """A log of its three tables; `meta` are the keys of log.json, such as name and label.

        What the tables hold is found out where `has` is not given. Raises KarmafunnelError as
        `Log.make` does.
        """
        items, requests, exposures = as_polars(items), as_polars(requests), as_polars(exposures)
        meta = {"name": "log", "scenario": scenario_of(requests)} | meta
        if "has" not in meta:
            meta["has"] = held(items, requests, exposures)
        if "label" not in meta:
            meta["label"] = "click" if meta["has"]["clicks"] else "purchase"
        return AnyLog.make(items, requests, exposures, meta)

    @classmethod
    def from_interactions(
        cls,
        frame: Any,
        *,
        items: Any = None,
        name: str = "log",
        allow_rejects: bool = False,
        **told: Any,
    ) -> AnyLog:
        """A log of interactions, and of a table of items where there is one.

        `told`: columns by role (user="buyer", item="sku", time="at"), and other fields of an import
        map (per="session", rating=4.0, zone="Europe/Paris"); the rest is guessed as `karmafunnel
        import` does. Raises KarmafunnelError as `import_tables` does.
        """
        columns = {
            role: told.pop(role)
            for role in ROLES
            if isinstance(told.get(role), str) and role != "currency"
        }
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / "interactions.parquet"]
            write_parquet(files[0], as_polars(frame))
            if items is not None:
                files.append(Path(folder) / "items.parquet")
                write_parquet(files[1], as_polars(items))
            out = Path(folder) / "log"
            import_tables(
                files, out, columns=columns, name=name, changes=told, allow_rejects=allow_rejects
            )
            log = AnyLog.open(out)
            return AnyLog.make(log.items, log.requests, log.exposures, log.meta)


def as_polars(frame: Any) -> pl.DataFrame:
    """A frame of pandas, Arrow or Polars as a Polars frame; raises KarmafunnelError for others."""
    try:
        return nw.from_native(frame, eager_only=True).to_polars()
    except TypeError as error:
        kind = type(frame).__name__
        raise KarmafunnelError(
            "log", needs="frames of pandas, Polars or Arrow", found=f"a {kind}"
        ) from error


def held(items: pl.DataFrame, requests: pl.DataFrame, exposures: pl.DataFrame) -> dict[str, bool]:
    """Which capabilities of log.json three tables have."""

    def there(frame: pl.DataFrame, *columns: str) -> bool:
        return any(c in frame.columns and frame[c].null_count() < frame.height for c in columns)

    def any_true(column: str) -> bool:
        return there(exposures, column) and bool(
            exposures[column].fill_null(False).cast(pl.Boolean).any()
        )

    return {
        "text": there(items, "title"),
        "query": there(requests, "query"),
        "users": there(requests, "user_id"),
        "price": there(items, "price") or there(exposures, "price_shown", "price_paid"),
        "exposures": there(exposures, "position"),
        "clicks": any_true("clicked"),
        "purchases": any_true("purchased"),
        "propensity": there(exposures, "propensity"),
    }


def scenario_of(requests: pl.DataFrame) -> list[str]:
    """The sources that requests name; "search" where they name none."""
    if "source" not in requests.columns:
        return ["search"]
    return sorted(map(str, requests["source"].drop_nulls().unique().to_list()))


def recipe_of(
    funnel: Funnel | Stage, log: AnyLog, embedders: Mapping[str, Embedder] | None, label: str | None
) -> Recipe:
    named = dict(embedders or {})
    text = f"funnel = {funnel!r}\nembedders = {named!r}\n"
    return Recipe("funnel", text, as_funnel(funnel), named, label or str(log.meta["label"]))


def replay(
    funnel: Funnel | Stage,
    log: AnyLog,
    embedders: Mapping[str, Embedder] | None = None,
    *,
    label: str | None = None,
    out: Path | str | None = None,
    options: RunOptions = DEFAULTS,
) -> Run:
    """Fit a funnel on a log, replay the last window through it, and open the Run.

    `embedders`: those that the funnel reads, by name. `label`: "click" or "purchase", the log's own
    without it. `out`: the Run folder; a temporary one without it.
    """
    if out is None:
        kinds = "-".join(type(stage).__name__ for stage in as_funnel(funnel).stages)
        out = Path(tempfile.mkdtemp(prefix="karmafunnel-")) / kinds
    return Run.open(run_replay(recipe_of(funnel, log, embedders, label), log, out, options))


def import_run(
    files: Sequence[Path | str],
    out: Path | str,
    *,
    log: AnyLog | None = None,
    qrels: Path | str | None = None,
    stages: Sequence[str] = (),
    options: RunOptions = DEFAULTS,
) -> Run:
    """A Run of a funnel that runs elsewhere, of the lists that its stages put out; nothing is
    trained.

    Args:
        files: TREC runs, one a stage, in the order of the stages; or tables of request, item, rank
            or score, with a column of stages or one file a stage.
        log: the log whose requests were answered; or `qrels`, TREC's relevance judgements.
        stages: the stages in their order, where the files do not say it.

    Raises:
        KarmafunnelError: for files that cannot be read, requests or items that the log lacks, and
            as `replay` does.
    """
    lists, out = read_lists(files, stages), Path(out)
    if (log is None) == (qrels is None):
        raise KarmafunnelError(
            "import-run", needs="a log or qrels", found="neither" if log is None else "both"
        )
    known = log if log is not None else log_of_qrels(Path(str(qrels)), lists, out.name)
    return replay(funnel_of(lists, stages_beside(out), known), known, out=out, options=options)


def explain(
    funnel: Funnel | Stage,
    log: AnyLog,
    request: str,
    embedders: Mapping[str, Embedder] | None = None,
    *,
    item: str | None = None,
    options: RunOptions = DEFAULTS,
) -> pl.DataFrame:
    """Stage by stage, why items are where they are in one request: one row a (stage, item)."""
    fitted = prepare(recipe_of(funnel, log, embedders, None), log, options)
    return fitted.explain(request, item)


def measure(runs: Run | Sequence[Run], *measures: str, **asked: Any) -> Answer:
    """Measures of a Run (or of seeds of one funnel), stage by stage, with 95% intervals.

    `asked`: by_stage, slice, ci, seed, resamples; see `simulator.measure.compare.measure`.
    """
    return Answer.of(comparing.measure(runs, measures or ("HR@10",), **asked))


def compare(a: Run | Sequence[Run], b: Run | Sequence[Run], *measures: str, **asked: Any) -> Answer:
    """Run B against Run A, paired on the same requests."""
    return Answer.of(comparing.compare(a, b, measures or ("HR@10",), **asked))


def report(*runs: Run | Path | str, out: Path | str) -> Path:
    """Write one HTML file about one or more Runs; returns its path."""
    folders = [run.path if isinstance(run, Run) else Path(run) for run in runs]
    return write_report(folders, Path(out))
