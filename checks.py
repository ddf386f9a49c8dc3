"""Checks of a log, however broken: PASS, FAIL, or N/A where the log lacks what they are about.

`validate` answers all of them about a folder as it lies on disk and raises nothing. `require`
refuses a log, in a folder or in memory, that fails one whose failure would change a figure:
whatever computes figures of a log asks it first. Tables are read lazily and streamed, so that a log
may be larger than memory. Layout and capabilities: `docs/METRICS.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import KarmafunnelError
from .files import DIGESTS, fault, first_line, open_table, read_json
from .layout import (
    CAPABILITIES,
    FACTS,
    MISREAD,
    TABLES,
    WINDOWS,
    doubtful_at,
    expected,
    meta_faults,
    misread_at,
    same_type,
)
from .log import LABELS, Catalogue, Log, checksum_of, sha256

PASS, FAIL, NA = "PASS", "FAIL", "N/A"
EXAMPLES = 5  # how many rows at fault a check names
ROW = "#row"  # number of a row in its file, from 0
BATCH = 65_536


@dataclass(frozen=True)
class Check:
    """One answer: `count` rows (or items, files, keys) at fault, some of them as examples (file,
    row from 0, ids, values).

    A PASS with a count is a warning.
    """

    name: str
    status: str
    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    message: str = ""


@dataclass(frozen=True)
class Found:
    """What a check found: a count above 0 is a failure, unless it is only a warning."""

    count: int
    examples: list[dict[str, Any]]
    message: str
    warning: bool = False


class NotApplicableError(Exception):
    """Why a check has nothing to say about this log."""


@dataclass(frozen=True)
class Question:
    """A check: its name, how it is answered, and why a log that fails it may be replayed all the
    same (empty: it may not).
    """

    name: str
    ask: Callable[[Folder], Found]
    harmless: str = ""


def validate(folder: Path | str) -> list[Check]:
    """Every check of a log or catalogue folder, in a fixed order. Raises nothing: what cannot be
    read is a FAIL.
    """
    log = Folder(Path(folder))
    return [answer(question.name, question.ask, log) for question in CHECKS]


def require(log: Log | Catalogue, but: Collection[str] = ()) -> None:
    """Raises KarmafunnelError, with the words of `validate`, for a log that fails a check whose
    failure would change a figure.

    `but`: checks not to ask. A log on disk is read as it lies there. What has passed once is not
    asked again.
    """
    if vars(log).get("passed"):
        return
    path = log.path if isinstance(log, Log) else None
    folder = Folder(path) if path is not None else Held(log)
    asked = [question for question in CHECKS if not question.harmless and question.name not in but]
    failed = [check for q in asked if (check := answer(q.name, q.ask, folder)).status == FAIL]
    if failed:
        # they say less than what they come with
        first = min(failed, key=lambda check: check.name in ("counts", "checksums"))
        if first.name == "checksums" and path is not None:
            for table in folder.tables:
                checksum_of(path / f"{table}.parquet", log.meta)
        example = f" ({words(first.examples[0])})" if first.examples else ""
        others = [check.name for check in failed if check is not first]
        more = f"; also failed: {', '.join(others)}" if others else ""
        where = f"; karmafunnel validate {path} tells all" if path is not None else ""
        raise KarmafunnelError(
            f"log {path or log.meta['name']} fails the check {first.name!r}: "
            f"{first.message}{example}{more}{where}"
        )
    vars(log)["passed"] = not but


def answer(name: str, question: Callable[[Folder], Found], log: Folder) -> Check:
    """Ask one question, whatever happens while it is answered."""
    try:
        found = question(log)
    except NotApplicableError as reason:
        return Check(name, NA, message=str(reason))
    except (Exception, pl.exceptions.PanicException) as error:
        return Check(name, FAIL, 1, message=f"could not be checked: {first_line(error)}")
    failed = found.count > 0 and not found.warning
    examples = [{key: plain(value) for key, value in e.items()} for e in found.examples[:EXAMPLES]]
    return Check(name, FAIL if failed else PASS, found.count, examples, found.message)


def words(example: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in example.items())


def plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.isoformat() if isinstance(value, datetime) else value


# -- what can be read ------------------------------------------------------------------------------


class Folder:
    """What of a log folder can be read; asking for what cannot raises NotApplicableError that says
    why.

    `trouble` holds why a table (table, None) or one of its columns (table, column) cannot be used;
    `unreadable` and `invalid` are the examples of what is damaged and of text that is not UTF-8.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.meta: dict[str, Any] = {}  # the well-formed keys of log.json
        self.meta_faults: list[dict[str, Any]] = []
        self.frames: dict[str, pl.LazyFrame] = {}
        self.schemas: dict[str, pl.Schema] = {}
        self.trouble: dict[tuple[str, str | None], str] = {}
        self.unreadable: list[dict[str, Any]] = []
        self.invalid: list[dict[str, Any]] = []
        if path is not None:
            self._read(path)

    def _read(self, path: Path) -> None:
        self._read_meta(path / "log.json")
        named = {
            n.removesuffix(".parquet")
            for key in ("counts", "checksums")
            for n in self.meta.get(key, {})
        }
        self.is_catalogue = not any(
            n in named or self.file(n).exists() for n in ("requests", "exposures")
        )
        self.tables = ("items",) if self.is_catalogue else tuple(TABLES)
        for table in self.tables:
            self._read_table(table)

    def file(self, table: str) -> Path:
        return self.on_disk() / f"{table}.parquet"

    def on_disk(self) -> Path:
        """The folder; a log in memory has none."""
        if self.path is None:
            raise NotApplicableError("the log is in memory")
        return self.path

    def called(self, table: str) -> str:
        """What a table is called in words."""
        return table if self.path is None else self.file(table).name

    def _read_meta(self, path: Path) -> None:
        try:
            found = read_json(path)
        except KarmafunnelError as error:
            told = (
                str(error).removeprefix(f"{path}: needed JSON, ").removeprefix("found: ")
                if path.exists()
                else f"no such file: {path}"
            )
            self.meta_faults = [{"file": "log.json", "needed": "JSON", "found": told}]
            return
        self._take_meta(found, meta_faults(found))

    def _take_meta(self, found: Any, faults: list[dict[str, Any]]) -> None:
        self.meta_faults = faults
        wrong = {fault.get("key") for fault in faults}
        self.meta = (
            {key: value for key, value in found.items() if key not in wrong}
            if isinstance(found, dict)
            else {}
        )

    def _read_table(self, table: str) -> None:
        path = self.file(table)
        if not path.is_file():
            self.trouble[table, None] = f"there is no {path.name}"
            return
        try:
            frame = open_table(path, row_index_name=ROW)
            file = pq.ParquetFile(path)
        except (Exception, pl.exceptions.PanicException) as error:
            self._cannot_read(table, None, error)
            return
        for column in file.schema_arrow.names:
            self._read_column(table, file, column)
        self._take_table(table, frame)

    def _take_table(self, table: str, frame: pl.LazyFrame) -> None:
        schema = frame.collect_schema()
        self.frames[table], self.schemas[table] = frame, schema
        for column, dtype in expected(table).items():
            if column not in schema:
                if column in TABLES[table]:
                    self.trouble.setdefault(
                        (table, column), f"{self.called(table)} has no column {column}"
                    )
            elif not same_type(schema[column], dtype):
                self.trouble.setdefault(
                    (table, column),
                    f"{self.called(table)}: {column} is {schema[column]}, not {dtype}",
                )

    def _read_column(self, table: str, file: pq.ParquetFile, column: str) -> None:
        """Decode a whole column once, a batch at a time, so that broken pages and bad text are
        found whatever is asked later.
        """
        name = self.file(table).name
        start = 0
        try:
            for batch in file.iter_batches(batch_size=BATCH, columns=[column]):
                values = batch.column(0)
                try:
                    values.validate(full=True)
                except pa.ArrowInvalid as error:
                    if "UTF8" not in str(error):
                        raise
                    self.trouble[table, column] = f"{name}: {column} holds text that is not UTF-8"
                    self.invalid += not_utf8(name, column, values, start)
                start += batch.num_rows
        except Exception as error:
            self._cannot_read(table, column, error)

    def _cannot_read(self, table: str, column: str | None, error: BaseException) -> None:
        what = {"file": self.file(table).name} | ({"column": column} if column else {})
        self.unreadable.append(what | {"found": first_line(error)})
        self.trouble[table, column] = f"{' '.join(what.values())} cannot be read"

    # -- asking ------------------------------------------------------------------------------------

    def said(self, key: str) -> Any:
        """A key of log.json."""
        if key not in self.meta:
            raise NotApplicableError(f"log.json has no well-formed {key!r}")
        return self.meta[key]

    def claims(self, *capabilities: str) -> None:
        """Go on only where log.json says that the log has all of these."""
        for name in capabilities:
            if not self.said("has").get(name, False):
                raise NotApplicableError(f"log.json says the log has no {name}")

    def table(self, table: str, *columns: str) -> pl.LazyFrame:
        """Some columns of a table, with the row number."""
        if table not in self.tables:
            raise NotApplicableError(f"a catalogue has no {table}")
        for key in ((table, None), *((table, column) for column in columns)):
            if key in self.trouble:
                raise NotApplicableError(self.trouble[key])
        types = expected(table)
        return self.frames[table].select(
            ROW, *(pl.col(c).cast(types.get(c, self.schemas[table][c])) for c in columns)
        )

    def rows(self, table: str, bad: pl.Expr, *shown: str) -> tuple[int, list[dict[str, Any]]]:
        """How many rows of a table are bad, and the first of them with these columns."""
        columns = dict.fromkeys([*shown, *bad.meta.root_names()])
        return self.examples(table, self.table(table, *columns).filter(bad).select(ROW, *shown))

    def examples(self, table: str, rows: pl.LazyFrame) -> tuple[int, list[dict[str, Any]]]:
        """How many rows there are, and the first of them; they have the row number."""
        count, first = pl.collect_all(
            [rows.select(pl.len()), rows.bottom_k(EXAMPLES, by=ROW).sort(ROW)], engine="streaming"
        )
        return count.item(), [
            {"file": self.called(table), "row": row.pop(ROW)} | row
            for row in first.iter_rows(named=True)
        ]


class Held(Folder):
    """A log or a catalogue in memory, asked like a folder."""

    def __init__(self, log: Log | Catalogue):
        super().__init__(None)
        self._take_meta(log.meta, meta_faults(log.meta, partial=True))
        self.is_catalogue = isinstance(log, Catalogue)
        self.tables = ("items",) if self.is_catalogue else tuple(TABLES)
        for table in self.tables:
            self._take_table(table, getattr(log, table).lazy().with_row_index(ROW))


def not_utf8(file: str, column: str, values: pa.Array, start: int) -> Iterator[dict[str, Any]]:
    """The values of a batch that are not UTF-8, as far as its type lets us look at bytes."""
    nested = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    try:
        raw = values.cast(pa.list_(pa.binary()) if nested else pa.binary()).to_pylist()
    except pa.ArrowException:
        yield {"file": file, "column": column}
        return
    for i, value in enumerate(raw):
        for part in (value if nested else [value]) or []:
            try:
                (part or b"").decode()
            except UnicodeDecodeError:
                yield {"file": file, "row": start + i, "column": column, "value": repr(part[:60])}
                break


# -- files -----------------------------------------------------------------------------------------


def is_fact(fault: dict[str, Any]) -> bool:
    return fault.get("key") in FACTS and fault["found"] == "nothing"


def check_meta(log: Folder) -> Found:
    faults = [fault for fault in log.meta_faults if not is_fact(fault)]
    label, has = log.meta.get("label"), log.meta.get("has", {})
    capability = LABELS.get(str(label))
    if not log.is_catalogue and label is None and "label" in log.meta:
        faults.append(
            {
                "key": "label",
                "needed": "'click' or 'purchase' for a log with requests",
                "found": None,
            }
        )
    if capability and not log.is_catalogue and "has" in log.meta and not has.get(capability, False):
        faults.append({"key": "label", "needed": f"has.{capability}", "found": label})
    if not log.is_catalogue and log.meta.get("scenario") == []:
        faults.append({"key": "scenario", "needed": "at least one source of requests", "found": []})
    return Found(
        len(faults),
        faults,
        "; ".join(f"{f.get('key', 'log.json')} must be {f['needed']}" for f in faults),
    )


def check_facts(log: Folder) -> Found:
    missing = [fault for fault in log.meta_faults if is_fact(fault)]
    return Found(
        len(missing),
        missing,
        f"log.json does not say: {', '.join(m['key'] for m in missing)}" if missing else "",
    )


def check_tables(log: Folder) -> Found:
    missing = [
        log.file(table).name for table in log.tables if log.path and not log.file(table).is_file()
    ]
    kind = "a catalogue" if log.is_catalogue else "a log"
    return Found(
        len(missing),
        [{"file": f} for f in missing],
        f"{kind} without {', '.join(missing)}" if missing else kind,
    )


def check_readable(log: Folder) -> Found:
    return Found(
        len(log.unreadable),
        log.unreadable,
        "truncated, damaged or no Parquet" if log.unreadable else "",
    )


def check_utf8(log: Folder) -> Found:
    places = dict.fromkeys(f"{e['file']}: {e['column']}" for e in log.invalid)
    return Found(
        len(log.invalid),
        log.invalid,
        f"text that is not UTF-8 in {', '.join(places)}" if places else "",
    )


def check_columns(log: Folder) -> Found:
    missing = [
        {"file": log.called(table), "column": column}
        for table in log.schemas
        for column in TABLES[table]
        if column not in log.schemas[table]
    ]
    return Found(
        len(missing),
        missing,
        "missing: " + ", ".join(m["column"] for m in missing) if missing else "",
    )


def check_types(log: Folder) -> Found:
    wrong = [
        {
            "file": log.called(table),
            "column": column,
            "needed": str(dtype),
            "found": str(schema[column]),
        }
        for table, schema in log.schemas.items()
        for column, dtype in expected(table).items()
        if column in schema and not same_type(schema[column], dtype)
    ]
    return Found(
        len(wrong),
        wrong,
        "; ".join(f"{w['column']} is {w['found']}, not {w['needed']}" for w in wrong),
    )


def heights(log: Folder) -> dict[str, int]:
    return {
        name: frame.select(pl.len()).collect(engine="streaming").item()
        for name, frame in log.frames.items()
    }


def check_counts(log: Folder) -> Found:
    log.on_disk()
    said, found = log.said("counts"), heights(log)
    wrong = [
        {"file": f"{table}.parquet", "needed": said.get(table), "found": height}
        for table, height in found.items()
        if said.get(table) != height
    ]
    return Found(
        len(wrong), wrong, "rows of a table are not as many as log.json counts" if wrong else ""
    )


def check_checksums(log: Folder) -> Found:
    log.on_disk()
    said = log.said("checksums")
    paths = {
        log.file(table).name: log.file(table) for table in log.tables if log.file(table).is_file()
    }
    wrong = [
        {"file": name, "needed": said.get(name), "found": found}
        for name, path in paths.items()
        if (found := sha256(path)) != said.get(name)
    ]
    if (log.on_disk() / DIGESTS).exists() and (
        other := fault(log.on_disk(), "log.json")
    ) is not None:
        wrong.append({"file": "log.json", "found": other})
    words = (
        "a table is not the one that log.json was written with, or log.json another (where that "
        "was meant: validate --seal)"
    )
    return Found(len(wrong), wrong, words if wrong else "")


def check_empty(log: Folder) -> Found:
    empty = [{"file": log.called(table)} for table, height in heights(log).items() if height == 0]
    return Found(len(empty), empty, "a table without rows" if empty else "")


# -- keys ------------------------------------------------------------------------------------------


def blank(text: str | pl.Expr) -> pl.Expr:
    return (pl.col(text) if isinstance(text, str) else text).fill_null("").str.strip_chars() == ""


def check_ids(log: Folder) -> Found:
    count, examples = 0, []
    places = [
        ("items", "item_id"),
        ("requests", "request_id"),
        ("exposures", "request_id"),
        ("exposures", "item_id"),
    ]
    for table, column in places:
        if table in log.tables:
            found, rows = log.rows(table, blank(column), column)
            count += found
            examples += rows
    return Found(count, examples, f"{count:,} rows without an id" if count else "")


def duplicates(log: Folder, table: str, *keys: str) -> Found:
    """Keys that several rows have; each is reported once, at its last row. Hashes are counted
    first: they need less memory.
    """
    rows = log.table(table, *keys).filter(
        pl.all_horizontal(pl.col(key).is_not_null() for key in keys)
    )
    rows = rows.with_columns(pl.struct(keys).hash().alias("hash"))
    suspect = rows.group_by("hash").agg(pl.len().alias("n")).filter(pl.col("n") > 1).select("hash")
    groups = (
        rows.join(suspect, on="hash", how="semi")
        .group_by(keys)
        .agg(pl.len().alias("times"), pl.col(ROW).max())
    )
    count, examples = log.examples(table, groups.filter(pl.col("times") > 1))
    return Found(
        count, examples, f"{count:,} keys ({', '.join(keys)}) more than once" if count else ""
    )


def check_duplicate_items(log: Folder) -> Found:
    return duplicates(log, "items", "item_id")


def check_duplicate_requests(log: Folder) -> Found:
    return duplicates(log, "requests", "request_id")


def check_duplicate_pairs(log: Folder) -> Found:
    return duplicates(log, "exposures", "request_id", "item_id")


def unknown(log: Folder, table: str, key: str) -> Found:
    """Rows of exposures whose id the other table lacks."""
    known = log.table(table, key).select(key).unique()
    rows = log.table("exposures", "request_id", "item_id").filter(pl.col(key).is_not_null())
    count, examples = log.examples("exposures", rows.join(known, on=key, how="anti"))
    return Found(
        count,
        examples,
        f"{count:,} rows of exposures name a {key} that {table}.parquet lacks" if count else "",
    )


def check_unknown_items(log: Folder) -> Found:
    return unknown(log, "items", "item_id")


def check_unknown_requests(log: Folder) -> Found:
    return unknown(log, "requests", "request_id")


# -- lists shown -----------------------------------------------------------------------------------


def check_positions(log: Folder) -> Found:
    rows = log.table("exposures", "request_id", "position").filter(pl.col("position").is_not_null())
    if not log.said("has").get("exposures", False) and rows.head(1).collect().is_empty():
        log.claims("exposures")
    position = pl.col("position")
    lists = rows.group_by("request_id").agg(
        pl.col(ROW).min(),
        pl.len().alias("rows"),
        position.min().alias("first"),
        position.max().alias("last"),
        position.n_unique().alias("different"),
    )
    whole = (
        (pl.col("first") == 1)
        & (pl.col("last") == pl.col("rows"))
        & (pl.col("different") == pl.col("rows"))
    )
    count, examples = log.examples("exposures", lists.filter(~whole))
    return Found(
        count, examples, f"{count:,} lists whose positions are not 1 to n" if count else ""
    )


def check_unlisted(log: Folder) -> Found:
    rows = log.table("exposures", "request_id", "item_id", "position", "clicked", "purchased")
    listed = rows.filter(pl.col("position").is_not_null()).select("request_id").unique()
    if listed.head(1).collect().is_empty():
        raise NotApplicableError("no request has a list shown")
    acted = pl.col("clicked").fill_null(False) | pl.col("purchased").fill_null(False)
    loose = (
        rows.filter(pl.col("position").is_null() & acted)
        .join(listed, on="request_id", how="semi")
        .drop("position")
    )
    count, examples = log.examples("exposures", loose)
    return Found(
        count,
        examples,
        f"{count:,} clicked or purchased items that their request's list lacks" if count else "",
    )


def check_clicks(log: Folder) -> Found:
    log.claims("clicks", "exposures")
    bad = pl.col("position").is_not_null() & pl.col("clicked").is_null()
    count, examples = log.rows("exposures", bad, "request_id", "item_id")
    return Found(
        count,
        examples,
        f"{count:,} shown rows do not say whether they were clicked" if count else "",
    )


def check_propensity(log: Folder) -> Found:
    log.claims("propensity")
    fine = pl.col("propensity").is_between(0, 1, closed="right").fill_null(False)
    count, examples = log.rows(
        "exposures", pl.col("position").is_not_null() & ~fine, "request_id", "item_id", "propensity"
    )
    return Found(
        count,
        examples,
        f"{count:,} shown rows whose propensity is missing or outside (0, 1]" if count else "",
    )


# -- money -----------------------------------------------------------------------------------------


def check_prices(log: Folder) -> Found:
    count, examples, where = 0, [], []
    places = [("items", "price", "item_id")] + [
        ("exposures", p, "request_id") for p in ("price_shown", "price_paid")
    ]
    for table, column, key in places:
        if table in log.tables:
            bad = pl.col(column).is_not_null() & ~(
                pl.col(column).is_finite() & (pl.col(column) >= 0)
            )
            found, rows = log.rows(table, bad, *dict.fromkeys([key, "item_id"]), column)
            count += found
            examples += rows
            where += [f"{found:,} of {table}.{column}"] if found else []
    return Found(count, examples, f"negative, NaN or infinite: {', '.join(where)}" if where else "")


def check_quantities(log: Folder) -> Found:
    bad = (pl.col("quantity") < 0) | ((pl.col("quantity") == 0) & pl.col("purchased"))
    count, examples = log.rows("exposures", bad, "request_id", "item_id", "quantity")
    return Found(
        count, examples, f"{count:,} negative quantities, or purchases of none" if count else ""
    )


# -- time ------------------------------------------------------------------------------------------


def clock(log: Folder) -> None:
    if log.said("time") == "order":
        raise NotApplicableError("the log knows only an order")


def check_timestamps(log: Folder) -> Found:
    missing = log.said("time") == "clock"
    bad = pl.col("ts").is_null() if missing else pl.col("ts").is_not_null()
    count, examples = log.rows("requests", bad, "request_id", "ts")
    kind = (
        "without a ts, though time is 'clock'" if missing else "with a ts, though time is 'order'"
    )
    return Found(count, examples, f"{count:,} requests {kind}" if count else "")


def check_time_order(log: Folder) -> Found:
    clock(log)
    count, examples = log.rows("requests", pl.col("ts") < pl.col("ts").shift(1), "request_id", "ts")
    return Found(count, examples, f"{count:,} requests stand after a later one" if count else "")


def check_years(log: Folder) -> Found:
    """Numbers read in the wrong unit, and zeros for missing times, are no times; what is only
    unlikely is a warning.
    """
    clock(log)
    ts = pl.col("ts")
    # a time beyond the calendar has no other name
    number = ts.dt.epoch("ms").alias("ms since 1970")
    rows = log.table("requests", "request_id", "ts")
    count, examples = log.examples(
        "requests", rows.filter(misread_at(ts)).select(ROW, "request_id", number)
    )
    if count:
        return Found(count, examples, f"{count:,} requests in 1970 or beyond 2200{MISREAD}")
    count, examples = log.rows("requests", doubtful_at(ts), "request_id", "ts")
    words = f"warning: {count:,} requests before 1990 or more than a year from now" if count else ""
    return Found(count, examples, words, warning=True)


def check_window_names(log: Folder) -> Found:
    bad = ~pl.col("window").is_in(WINDOWS).fill_null(False)
    count, examples = log.rows("requests", bad, "request_id", "window")
    return Found(
        count,
        examples,
        f"{count:,} requests whose window is none of {', '.join(WINDOWS)}" if count else "",
    )


def check_window_order(log: Folder) -> Found:
    number = pl.col("window").replace_strict(
        WINDOWS, range(len(WINDOWS)), default=None, return_dtype=pl.Int8
    )
    bad = number < number.cum_max()
    if log.said("time") == "clock":  # cut at whole timestamps
        bad |= (pl.col("ts") == pl.col("ts").shift(1)) & (
            pl.col("window") != pl.col("window").shift(1)
        )
    count, examples = log.rows("requests", bad, "request_id", "ts", "window")
    return Found(
        count,
        examples,
        f"{count:,} requests whose window is before that of an earlier request" if count else "",
    )


def check_availability(log: Folder) -> Found:
    clock(log)
    if "available_from" not in log.schemas.get("items", {}):
        raise NotApplicableError("items have no available_from")
    items = (
        log.table("items", "item_id", "available_from")
        .drop(ROW)
        .filter(pl.col("available_from").is_not_null())
    )
    requests = log.table("requests", "request_id", "ts").drop(ROW)
    rows = log.table("exposures", "request_id", "item_id")
    early = (
        rows.join(items, on="item_id")
        .join(requests, on="request_id")
        .filter(pl.col("ts") < pl.col("available_from"))
    )
    count, examples = log.examples("exposures", early)
    return Found(
        count, examples, f"{count:,} rows of items that were not available yet" if count else ""
    )


# -- what log.json says the log has ----------------------------------------------------------------


def present(column: str) -> pl.Expr:
    return pl.col(column).is_not_null().any()


def filled(column: str) -> pl.Expr:
    return (pl.col(column).list.len() > 0).fill_null(False).any()


# Where to look whether a log has what it says it has.
HOLDS: dict[str, tuple[tuple[str, pl.Expr], ...]] = {
    "text": (("items", present("title")), ("items", present("brand"))),
    "query": (("requests", present("query")),),
    "price": (
        ("items", present("price")),
        ("exposures", present("price_shown")),
        ("exposures", present("price_paid")),
    ),
    "exposures": (("exposures", present("position")),),
    "clicks": (("exposures", pl.col("clicked").fill_null(False).any()),),
    "purchases": (("exposures", pl.col("purchased").fill_null(False).any()),),
    "images": (("items", present("image")),),
    "visual": (("items", filled("visual")),),
    "users": (("requests", present("user_id")),),
    "propensity": (("exposures", present("propensity")),),
    "filters": (("requests", filled("filters")),),
}


def check_claims(log: Folder) -> Found:
    """What log.json claims is somewhere in the tables; what they hold though it is denied is a
    warning.
    """
    has = log.said("has")
    absent, denied = [], []
    for name in CAPABILITIES:
        places = [(t, e) for t, e in HOLDS[name] if t in log.tables and not troubled(log, t, e)]
        if len(places) < len([t for t, _ in HOLDS[name] if t in log.tables]):
            continue  # a column at fault elsewhere
        held = any(
            log.table(t, *e.meta.root_names()).select(e).collect(engine="streaming").item()
            for t, e in places
        )
        if has.get(name, False) and not held:
            absent.append(name)
        if held and not has.get(name, False) and name != "users":  # user_id also holds sessions
            denied.append(name)
    if absent:
        return Found(
            len(absent),
            [{"key": f"has.{n}"} for n in absent],
            f"log.json claims {', '.join(absent)}; found none",
        )
    words = f"warning: the tables hold {', '.join(denied)}, which log.json denies" if denied else ""
    return Found(len(denied), [{"key": f"has.{n}"} for n in denied], words, warning=True)


def troubled(log: Folder, table: str, expression: pl.Expr) -> bool:
    return any((table, column) in log.trouble for column in [None, *expression.meta.root_names()])


def check_scenario(log: Folder) -> Found:
    sources = log.said("scenario")
    counted = log.table("requests", "source").group_by("source").len().collect(engine="streaming")
    counts = dict(counted.iter_rows())
    empty = [{"file": log.called("requests"), "source": s} for s in sources if not counts.get(s)]
    if empty:
        return Found(len(empty), empty, "the scenario names sources that no request has")
    served = sum(counts[s] for s in set(sources))
    return Found(0, [], f"{served:,} of {sum(counts.values()):,} requests are the scenario's")


def check_text(log: Folder) -> Found:
    log.claims("text")
    texts = [
        "title",
        "brand",
        *(["description"] if "description" in log.schemas.get("items", {}) else []),
    ]
    joined = [pl.col(c).list.join(" ", ignore_nulls=True) for c in ("category", "attributes")]
    bad = pl.all_horizontal(*map(blank, texts), *map(blank, joined))
    count, examples = log.rows("items", bad, "item_id")
    return Found(
        count, examples, f"{share(log, 'items', count)} of the items have no text" if count else ""
    )


def share(log: Folder, table: str, count: int) -> str:
    height = heights(log)[table]
    return f"{count:,} ({count / max(height, 1):.1%})"


def check_query(log: Folder) -> Found:
    log.claims("query")
    bad = (
        (pl.col("source") == "search")
        & pl.col("source").is_in(log.said("scenario"))
        & blank("query")
    )
    count, examples = log.rows("requests", bad, "request_id")
    words = (
        f"{share(log, 'requests', count)} of the requests are searches without a query"
        if count
        else ""
    )
    return Found(count, examples, words)


def check_filters(log: Folder) -> Found:
    log.claims("filters")
    held = (
        log.table("items", "attributes")
        .select(pl.col("attributes").alias("filters"))
        .explode("filters")
        .unique()
    )
    asked = (
        log.table("requests", "request_id", "filters")
        .explode("filters")
        .filter(pl.col("filters").is_not_null())
    )
    first = [
        pl.col("request_id").sort_by(ROW).first(),
        pl.len().alias("requests"),
        pl.col(ROW).min(),
    ]
    unheld = asked.join(held, on="filters", how="anti").group_by("filters").agg(first)
    count, examples = log.examples("requests", unheld)
    words = (
        f"warning: {count:,} filters that no item holds, so that nothing is eligible"
        if count
        else ""
    )
    return Found(count, examples, words, warning=True)


def check_users(log: Folder) -> Found:
    count, examples = log.rows("requests", blank("user_id"), "request_id")
    if not count:
        log.claims("users")
    return Found(
        count,
        examples,
        f"{share(log, 'requests', count)} of the requests name no user (nor session)"
        if count
        else "",
    )


def check_images(log: Folder) -> Found:
    log.claims("images")
    folder = log.on_disk()
    items = log.table("items", "item_id", "image").collect(engine="streaming")
    named = items.filter(pl.col("image").is_not_null())
    missing = [
        {"file": "items.parquet", "row": row, "item_id": item, "image": image}
        for row, item, image in named.select(ROW, "item_id", "image").iter_rows()
        if Path(image).is_absolute() or not (folder / image).is_file()
    ]
    words = (
        f"{len(missing):,} of {named.height:,} images are not in the folder; " if missing else ""
    )
    return Found(
        len(missing), missing, f"{words}{items.height - named.height:,} items have no image"
    )


def check_visual(log: Folder) -> Found:
    log.claims("visual")
    vectors = log.table("items", "item_id", "visual").filter(pl.col("visual").is_not_null())
    width = (
        vectors.select(pl.col("visual").list.len().mode().min()).collect(engine="streaming").item()
    )
    if width is None:
        raise NotApplicableError("no item has a visual vector")
    fine = (pl.col("visual").list.len() == width) & pl.col("visual").list.eval(
        pl.element().is_finite()
    ).list.all()
    odd = vectors.filter(~fine.fill_null(False)).select(
        ROW, "item_id", pl.col("visual").list.len().alias("numbers")
    )
    count, examples = log.examples("items", odd)
    return Found(
        count,
        examples,
        f"{count:,} visual vectors hold NaN or are not {width} numbers long" if count else "",
    )


CHECKS: tuple[Question, ...] = (
    Question("log.json", check_meta),
    Question(
        "facts",
        check_facts,
        "where a log is from, and what it lacks, is said and not computed with",
    ),
    Question("tables", check_tables),
    Question("readable", check_readable),
    Question("utf-8", check_utf8),
    Question("columns", check_columns),
    Question("types", check_types),
    Question("counts", check_counts),
    Question("checksums", check_checksums),
    Question("rows", check_empty),
    Question("ids", check_ids),
    Question("duplicate items", check_duplicate_items),
    Question("duplicate requests", check_duplicate_requests),
    Question("duplicate pairs", check_duplicate_pairs),
    Question("unknown items", check_unknown_items),
    Question("unknown requests", check_unknown_requests),
    Question("positions", check_positions),
    Question("unlisted truth", check_unlisted),
    Question("clicks", check_clicks),
    Question("propensity", check_propensity),
    Question("prices", check_prices),
    Question("quantities", check_quantities),
    Question("timestamps", check_timestamps),
    Question("years", check_years),
    Question("time order", check_time_order),
    Question("window names", check_window_names),
    Question("window order", check_window_order),
    Question("availability", check_availability),
    Question("claims", check_claims),
    Question("scenario", check_scenario, "a source that no request has adds no request"),
    Question(
        "text",
        check_text,
        "an item without a text is found by no word: that is true of the log, not misread",
    ),
    Question(
        "query",
        check_query,
        "a search without a query asks for nothing: that is true of the log, not misread",
    ),
    Question(
        "filters",
        check_filters,
        "nothing is eligible for such a request: a warning, never a failure",
    ),
    Question("users", check_users),
    Question("images", check_images, "what reads pictures refuses a file that is not there"),
    Question("visual", check_visual),
)
