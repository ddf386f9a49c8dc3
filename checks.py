"""Checks of a log, however broken: PASS, FAIL, or N/A where the log lacks what the check needs.

`validate` answers every check for a folder on disk and raises nothing. `require` refuses a log, on
disk or in memory, that fails a check whose failure would change a result; whatever computes results
from a log calls it first. Tables are read lazily and streamed, so a log may be larger than memory.
Layout and capabilities: `docs/reference/log.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
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
    HOLDS,
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
from .mapped import LONG

PASS, FAIL, NA = "PASS", "FAIL", "N/A"
EXAMPLES = 5  # how many rows at fault a check names
ROW = "#row"  # number of a row in its file, from 0
BATCH = 65_536


@dataclass(frozen=True)
class Check:
    """Answer of one check; a PASS with a count is a warning.

    count: rows (or items, files, keys) at fault. examples: the first of them, each with its file,
    row (from 0), ids and values.
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
    """A check: its name, the function that answers it, and why a log that fails it may be replayed
    nevertheless (empty: it may not).
    """

    name: str
    ask: Callable[[Folder], Found]
    harmless: str = ""


def validate(folder: Path | str) -> list[Check]:
    """Answer every check of a log or catalogue folder, in a fixed order.

    Raises nothing: what cannot be read is a FAIL.
    """
    log = Folder(Path(folder))
    return [answer(question.name, question.ask, log) for question in CHECKS]


def require(log: Log | Catalogue, but: Collection[str] = ()) -> None:
    """Refuse a log that fails a check whose failure would change a result.

    A log on disk is checked as it is stored. A log that passed once is not checked again.

    Args:
        log: the log or catalogue to check.
        but: names of checks to leave out.

    Raises:
        KarmafunnelError: with the message of the failed check.
    """
    if vars(log).get("passed"):
        return
    path = log.path if isinstance(log, Log) else None
    folder = Folder(path) if path is not None else Held(log)
    asked = [question for question in CHECKS if not question.harmless and question.name not in but]
    answers = [answer(question.name, question.ask, folder) for question in asked]
    failed = [check for check in answers if check.status == FAIL]
    if failed:
        # counts and checksums say less than the failures that come with them
        first = min(failed, key=lambda check: check.name in ("counts", "checksums"))
        if first.name == "checksums" and path is not None:
            for table in folder.tables:
                checksum_of(path / f"{table}.parquet", log.meta)
        example = f" ({words(first.examples[0])})" if first.examples else ""
        others = [check.name for check in failed if check is not first]
        more = f"; also failed: {', '.join(others)}" if others else ""
        where = f"; see karmafunnel validate {path}" if path is not None else ""
        raise KarmafunnelError(
            f"log {path or log.meta['name']} fails the check {first.name!r}: "
            f"{first.message}{example}{more}{where}"
        )
    vars(log)["passed"] = not but


def answer(name: str, question: Callable[[Folder], Found], log: Folder) -> Check:
    """Answer one question; an error while answering it is a FAIL."""
    try:
        found = question(log)
    except NotApplicableError as reason:
        return Check(name, NA, message=str(reason))
    except (Exception, pl.exceptions.PanicException) as error:
        return Check(name, FAIL, 1, message=f"could not be checked: {first_line(error)}")
    failed = found.count > 0 and not found.warning
    examples = []
    for example in found.examples[:EXAMPLES]:
        examples.append({key: plain(value) for key, value in example.items()})
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
    """The readable parts of a log folder; asking for another part raises NotApplicableError.

    `trouble` says why a table (table, None) or a column (table, column) cannot be used.
    `unreadable` and `invalid` are examples of damaged data and of text that is not UTF-8.
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
        named = {*self.meta.get("counts", {}), *self.meta.get("checksums", {})}
        self.is_catalogue = True
        for table in ("requests", "exposures"):
            if table in named or f"{table}.parquet" in named or self.file(table).exists():
                self.is_catalogue = False
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
        """Name of a table in messages: its file name, where it has one."""
        return table if self.path is None else self.file(table).name

    def _read_meta(self, path: Path) -> None:
        try:
            found = read_json(path)
        except KarmafunnelError as error:
            told = error.found if path.exists() else f"no such file: {path}"
            self.meta_faults = [{"file": "log.json", "needed": "JSON", "found": told}]
            return
        self._take_meta(found, meta_faults(found))

    def _take_meta(self, found: Any, faults: list[dict[str, Any]]) -> None:
        self.meta_faults = faults
        wrong = {fault.get("key") for fault in faults}
        if isinstance(found, dict):
            self.meta = {key: value for key, value in found.items() if key not in wrong}

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
        name = self.called(table)
        for column, dtype in expected(table).items():
            if column not in schema and column in TABLES[table]:
                trouble = f"{name} has no column {column}"
            elif column in schema and not same_type(schema[column], dtype):
                trouble = f"{name}: {column} is {schema[column]}, not {dtype}"
            else:
                continue
            self.trouble.setdefault((table, column), trouble)

    def _read_column(self, table: str, file: pq.ParquetFile, column: str) -> None:
        """Decode a whole column once, batch by batch, to find damaged pages and invalid text."""
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
        """Raise NotApplicableError unless log.json says that the log has all of these."""
        for name in capabilities:
            if not self.said("has").get(name, False):
                raise NotApplicableError(f"log.json says the log has no {name}")

    def table(self, table: str, *columns: str) -> pl.LazyFrame:
        """Some columns of a table, with the row number."""
        if table not in self.tables:
            raise NotApplicableError(f"a catalogue has no {table}")
        for column in (None, *columns):
            if (table, column) in self.trouble:
                raise NotApplicableError(self.trouble[table, column])
        types = self.schemas[table] | expected(table)
        return self.frames[table].select(ROW, *(pl.col(c).cast(types[c]) for c in columns))

    def rows(self, table: str, bad: pl.Expr, *shown: str) -> tuple[int, list[dict[str, Any]]]:
        """Number of bad rows of a table, and the first of them with these columns."""
        columns = dict.fromkeys([*shown, *bad.meta.root_names()])
        return self.examples(table, self.table(table, *columns).filter(bad).select(ROW, *shown))

    def examples(self, table: str, rows: pl.LazyFrame) -> tuple[int, list[dict[str, Any]]]:
        """Number of rows, and the first of them as examples; `rows` has the row number."""
        queries = [rows.select(pl.len()), rows.bottom_k(EXAMPLES, by=ROW).sort(ROW)]
        count, first = pl.collect_all(queries, engine="streaming")
        found = []
        for row in first.iter_rows(named=True):
            found.append({"file": self.called(table), "row": row.pop(ROW)} | row)
        return count.item(), found


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

Example = dict[str, Any]


def faults_of(faults: list[Example], message: str) -> Found:
    """What a check found when it lists every fault; a message only where there are faults."""
    return Found(len(faults), faults, message if faults else "")


def counted(found: tuple[int, list[Example]], words: str, warning: bool = False) -> Found:
    """What a check found when it counts rows: "3 requests ...", nothing where there are none."""
    count, examples = found
    prefix = "warning: " if warning else ""
    return Found(count, examples, f"{prefix}{count:,} {words}" if count else "", warning)


def is_fact(fault: Example) -> bool:
    return fault.get("key") in FACTS and fault["found"] == "nothing"


def check_meta(log: Folder) -> Found:
    faults = [fault for fault in log.meta_faults if not is_fact(fault)]
    if not log.is_catalogue:
        faults += label_faults(log.meta)
        if log.meta.get("scenario") == []:
            needed = "at least one source of requests"
            faults.append({"key": "scenario", "needed": needed, "found": []})
    return Found(
        len(faults),
        faults,
        "; ".join(f"{f.get('key', 'log.json')} must be {f['needed']}" for f in faults),
    )


def label_faults(meta: dict[str, Any]) -> list[Example]:
    """What is wrong with the label of a log with requests: none, or one that the log lacks."""
    if "label" not in meta:
        return []
    label = meta["label"]
    if label is None:
        needed = "'click' or 'purchase' for a log with requests"
    elif "has" in meta and label in LABELS and not meta["has"].get(LABELS[label], False):
        needed = f"has.{LABELS[label]}"
    else:
        return []
    return [{"key": "label", "needed": needed, "found": label}]


def check_facts(log: Folder) -> Found:
    missing = [fault for fault in log.meta_faults if is_fact(fault)]
    keys = ", ".join(fault["key"] for fault in missing)
    return faults_of(missing, f"log.json does not say: {keys}")


def check_tables(log: Folder) -> Found:
    kind = "a catalogue" if log.is_catalogue else "a log"
    missing = [table for table in log.tables if log.path and not log.file(table).is_file()]
    if not missing:
        return Found(0, [], kind)
    names = [log.file(table).name for table in missing]
    return faults_of([{"file": name} for name in names], f"{kind} without {', '.join(names)}")


def check_readable(log: Folder) -> Found:
    return faults_of(log.unreadable, "truncated, damaged or no Parquet")


def check_utf8(log: Folder) -> Found:
    places = dict.fromkeys(f"{e['file']}: {e['column']}" for e in log.invalid)
    return faults_of(log.invalid, f"text that is not UTF-8 in {', '.join(places)}")


def check_columns(log: Folder) -> Found:
    missing = []
    for table, schema in log.schemas.items():
        for column in TABLES[table]:
            if column not in schema:
                missing.append({"file": log.called(table), "column": column})
    return faults_of(missing, f"missing: {', '.join(fault['column'] for fault in missing)}")


def check_types(log: Folder) -> Found:
    wrong, words = [], []
    for table, schema in log.schemas.items():
        for column, dtype in expected(table).items():
            if column not in schema or same_type(schema[column], dtype):
                continue
            needed, found = str(dtype), str(schema[column])
            where = {"file": log.called(table), "column": column}
            wrong.append(where | {"needed": needed, "found": found})
            words.append(f"{column} is {found}, not {needed}")
    return faults_of(wrong, "; ".join(words))


def heights(log: Folder) -> dict[str, int]:
    """Number of rows of each table."""
    found = {}
    for name, frame in log.frames.items():
        found[name] = frame.select(pl.len()).collect(engine="streaming").item()
    return found


def check_counts(log: Folder) -> Found:
    log.on_disk()
    told, wrong = log.said("counts"), []
    for table, height in heights(log).items():
        needed = told.get(table)
        if needed != height:
            wrong.append({"file": f"{table}.parquet", "needed": needed, "found": height})
    return faults_of(wrong, "rows of a table are not as many as log.json counts")


def check_checksums(log: Folder) -> Found:
    folder = log.on_disk()
    told, wrong = log.said("checksums"), []
    for path in map(log.file, log.tables):
        if path.is_file() and (found := sha256(path)) != told.get(path.name):
            wrong.append({"file": path.name, "needed": told.get(path.name), "found": found})
    other = fault(folder, "log.json") if (folder / DIGESTS).exists() else None
    if other is not None:
        wrong.append({"file": "log.json", "found": other})
    return faults_of(
        wrong,
        "a table or log.json was changed since log.json was written "
        "(where that was meant: validate --seal)",
    )


def check_empty(log: Folder) -> Found:
    empty = [{"file": log.called(table)} for table, height in heights(log).items() if height == 0]
    return faults_of(empty, "a table without rows")


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
    return counted((count, examples), "rows without an id")


def parts(log: Folder, key: str, *tables: str) -> Iterator[pl.Expr]:
    """Conditions that cut tables into parts that fit into memory: rows with equal keys are in one
    part. A table that is not long is one part.
    """
    rows = max(log.frames[table].select(pl.len()).collect().item() for table in tables)
    many = -(-rows // LONG) or 1
    for part in range(many):
        yield pl.lit(True) if many == 1 else pl.col(key).hash() % many == part


def together(found: Iterable[tuple[int, list[Example]]]) -> tuple[int, list[Example]]:
    """The rows found in several parts of a table: their number, and the first of them."""
    count, examples = 0, list[Example]()
    for more, first in found:
        count += more
        examples += first
    return count, sorted(examples, key=lambda example: example["row"])[:EXAMPLES]


def duplicates(log: Folder, table: str, *keys: str) -> Found:
    """Keys that several rows share; each is reported once, at its last row. Hashes are counted
    first, because they need less memory.
    """
    present = [pl.col(key).is_not_null() for key in keys]
    rows = log.table(table, *keys).filter(pl.all_horizontal(present))

    def repeated(part: pl.Expr) -> pl.LazyFrame:
        mine = rows.filter(part).with_columns(pl.struct(keys).hash().alias("hash"))
        suspect = mine.group_by("hash").agg(pl.len().alias("n")).filter(pl.col("n") > 1)
        groups = (
            mine.join(suspect.select("hash"), on="hash", how="semi")
            .group_by(keys)
            .agg(pl.len().alias("times"), pl.col(ROW).max())
        )
        return groups.filter(pl.col("times") > 1)

    found = together(log.examples(table, repeated(part)) for part in parts(log, keys[0], table))
    return counted(found, f"keys ({', '.join(keys)}) more than once")


def check_duplicate_items(log: Folder) -> Found:
    return duplicates(log, "items", "item_id")


def check_duplicate_requests(log: Folder) -> Found:
    return duplicates(log, "requests", "request_id")


def check_duplicate_pairs(log: Folder) -> Found:
    return duplicates(log, "exposures", "request_id", "item_id")


def unknown(log: Folder, table: str, key: str) -> Found:
    """Rows of exposures whose id the other table lacks."""
    known = log.table(table, key).select(key)
    rows = log.table("exposures", "request_id", "item_id").filter(pl.col(key).is_not_null())

    def lost(part: pl.Expr) -> pl.LazyFrame:
        return rows.filter(part).join(known.filter(part).unique(), on=key, how="anti")

    asked = parts(log, key, "exposures")
    words = f"rows of exposures name a {key} that {table}.parquet lacks"
    return counted(together(log.examples("exposures", lost(part)) for part in asked), words)


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
    n = pl.col("rows")
    whole = (pl.col("first") == 1) & (pl.col("last") == n) & (pl.col("different") == n)

    def broken(part: pl.Expr) -> pl.LazyFrame:
        lists = (
            rows.filter(part)
            .group_by("request_id")
            .agg(
                pl.col(ROW).min(),
                pl.len().alias("rows"),
                position.min().alias("first"),
                position.max().alias("last"),
                position.n_unique().alias("different"),
            )
        )
        return lists.filter(~whole)

    asked = parts(log, "request_id", "exposures")
    found = together(log.examples("exposures", broken(part)) for part in asked)
    return counted(found, "lists whose positions are not 1 to n")


def check_unlisted(log: Folder) -> Found:
    rows = log.table("exposures", "request_id", "item_id", "position", "clicked", "purchased")
    listed = rows.filter(pl.col("position").is_not_null()).select("request_id")
    if listed.head(1).collect().is_empty():
        raise NotApplicableError("no request has a list shown")
    acted = pl.col("clicked").fill_null(False) | pl.col("purchased").fill_null(False)
    unlisted = rows.filter(pl.col("position").is_null() & acted).drop("position")

    def loose(part: pl.Expr) -> pl.LazyFrame:
        mine = listed.filter(part).unique()
        return unlisted.filter(part).join(mine, on="request_id", how="semi")

    asked = parts(log, "request_id", "exposures")
    found = together(log.examples("exposures", loose(part)) for part in asked)
    return counted(found, "clicked or purchased items that their request's list lacks")


def check_clicks(log: Folder) -> Found:
    log.claims("clicks", "exposures")
    bad = pl.col("position").is_not_null() & pl.col("clicked").is_null()
    found = log.rows("exposures", bad, "request_id", "item_id")
    return counted(found, "shown rows do not say whether they were clicked")


def check_propensity(log: Folder) -> Found:
    log.claims("propensity")
    fine = pl.col("propensity").is_between(0, 1, closed="right").fill_null(False)
    bad = pl.col("position").is_not_null() & ~fine
    found = log.rows("exposures", bad, "request_id", "item_id", "propensity")
    return counted(found, "shown rows whose propensity is missing or outside (0, 1]")


def check_stages(log: Folder) -> Found:
    log.said("has")  # there is a log.json
    stages = log.meta.get("stages")
    given = pl.col("stage").is_not_null()
    if stages is None:
        if log.table("exposures", "stage").filter(given).head(1).collect().is_empty():
            raise NotApplicableError("no row tells a stage of production")
        return faults_of([{"key": "stages"}], "rows tell stages of production, log.json does not")
    found = log.rows("exposures", given & ~pl.col("stage").is_in(stages), "request_id", "stage")
    return counted(found, f"rows whose stage is none of {', '.join(stages)}")


# -- money -----------------------------------------------------------------------------------------


def check_prices(log: Folder) -> Found:
    count, examples, where = 0, [], []
    places = [
        ("items", "price", ("item_id",)),
        ("exposures", "price_shown", ("request_id", "item_id")),
        ("exposures", "price_paid", ("request_id", "item_id")),
    ]
    for table, column, keys in places:
        if table not in log.tables:
            continue
        price = pl.col(column)
        bad = price.is_not_null() & ~(price.is_finite() & (price >= 0))
        found, rows = log.rows(table, bad, *keys, column)
        count += found
        examples += rows
        if found:
            where.append(f"{found:,} of {table}.{column}")
    return Found(count, examples, f"negative, NaN or infinite: {', '.join(where)}" if where else "")


def check_quantities(log: Folder) -> Found:
    bad = (pl.col("quantity") < 0) | ((pl.col("quantity") == 0) & pl.col("purchased"))
    found = log.rows("exposures", bad, "request_id", "item_id", "quantity")
    return counted(found, "negative quantities, or purchases of none")


# -- time ------------------------------------------------------------------------------------------


def clock(log: Folder) -> None:
    if log.said("time") == "order":
        raise NotApplicableError("the log knows only an order")


def check_timestamps(log: Folder) -> Found:
    if log.said("time") == "clock":
        bad, kind = pl.col("ts").is_null(), "without a ts, though time is 'clock'"
    else:
        bad, kind = pl.col("ts").is_not_null(), "with a ts, though time is 'order'"
    return counted(log.rows("requests", bad, "request_id", "ts"), f"requests {kind}")


def check_time_order(log: Folder) -> Found:
    clock(log)
    found = log.rows("requests", pl.col("ts") < pl.col("ts").shift(1), "request_id", "ts")
    return counted(found, "requests stand after a later one")


def check_years(log: Folder) -> Found:
    """Times that come of a wrong unit or of zeros for missing times fail; unlikely times are only a
    warning.
    """
    clock(log)
    ts = pl.col("ts")
    # a time beyond the calendar has no other name
    number = ts.dt.epoch("ms").alias("ms since 1970")
    rows = log.table("requests", "request_id", "ts").filter(misread_at(ts))
    found = log.examples("requests", rows.select(ROW, "request_id", number))
    if found[0]:
        return counted(found, f"requests in 1970 or beyond 2200{MISREAD}")
    unlikely = log.rows("requests", doubtful_at(ts), "request_id", "ts")
    words = "requests before 1990 or more than a year from now"
    return counted(unlikely, words, warning=True)


def check_window_names(log: Folder) -> Found:
    bad = ~pl.col("window").is_in(WINDOWS).fill_null(False)
    found = log.rows("requests", bad, "request_id", "window")
    return counted(found, f"requests whose window is none of {', '.join(WINDOWS)}")


def check_window_order(log: Folder) -> Found:
    ts, window = pl.col("ts"), pl.col("window")
    order = range(len(WINDOWS))
    number = window.replace_strict(WINDOWS, order, default=None, return_dtype=pl.Int8)
    bad = number < number.cum_max()
    if log.said("time") == "clock":  # cut at whole timestamps
        bad |= (ts == ts.shift(1)) & (window != window.shift(1))
    found = log.rows("requests", bad, "request_id", "ts", "window")
    return counted(found, "requests whose window is before that of an earlier request")


def check_availability(log: Folder) -> Found:
    clock(log)
    if "available_from" not in log.schemas.get("items", {}):
        raise NotApplicableError("items have no available_from")
    items = log.table("items", "item_id", "available_from").drop(ROW)
    items = items.filter(pl.col("available_from").is_not_null())
    requests = log.table("requests", "request_id", "ts").drop(ROW)
    rows = log.table("exposures", "request_id", "item_id")
    rows = rows.join(items, on="item_id").join(requests, on="request_id")
    early = rows.filter(pl.col("ts") < pl.col("available_from"))
    return counted(log.examples("exposures", early), "rows of items that were not available yet")


# -- what log.json says the log has ----------------------------------------------------------------


def check_claims(log: Folder) -> Found:
    """Capabilities that log.json claims and no table holds fail; those that a table holds and
    log.json denies are a warning.
    """
    has = log.said("has")
    absent, denied = [], []
    for name in CAPABILITIES:
        held = holds(log, name)
        if held is False and has.get(name, False):
            absent.append(name)
        if held and not has.get(name, False) and name != "users":  # user_id also holds sessions
            denied.append(name)
    if absent:
        keys = [{"key": f"has.{name}"} for name in absent]
        return faults_of(keys, f"log.json claims {', '.join(absent)}; found none")
    words = f"warning: the tables hold {', '.join(denied)}, which log.json denies" if denied else ""
    return Found(len(denied), [{"key": f"has.{name}"} for name in denied], words, warning=True)


def holds(log: Folder, capability: str) -> bool | None:
    """Whether the tables hold what a capability promises; None where a column cannot be read."""
    places = [(table, e) for table, e in HOLDS[capability] if table in log.tables]
    for table, expression in places:
        if troubled(log, table, expression):
            return None
    for table, expression in places:
        found = log.table(table, *expression.meta.root_names()).select(expression)
        if found.collect(engine="streaming").item():
            return True
    return False


def troubled(log: Folder, table: str, expression: pl.Expr) -> bool:
    return any((table, column) in log.trouble for column in [None, *expression.meta.root_names()])


def check_scenario(log: Folder) -> Found:
    sources = log.said("scenario")
    number = log.table("requests", "source").group_by("source").len().collect(engine="streaming")
    counts = dict(number.iter_rows())
    empty = [{"file": log.called("requests"), "source": s} for s in sources if not counts.get(s)]
    if empty:
        return faults_of(empty, "the scenario names sources that no request has")
    served = sum(counts[s] for s in set(sources))
    return Found(0, [], f"{served:,} of {sum(counts.values()):,} requests are the scenario's")


def check_text(log: Folder) -> Found:
    log.claims("text")
    texts = ["title", "brand"]
    if "description" in log.schemas.get("items", {}):
        texts.append("description")
    joined = [pl.col(c).list.join(" ", ignore_nulls=True) for c in ("category", "attributes")]
    bad = pl.all_horizontal(*map(blank, texts), *map(blank, joined))
    found = shared(log, "items", log.rows("items", bad, "item_id"), "of the items have no text")
    return replace(found, warning=found.count < heights(log)["items"])


def shared(log: Folder, table: str, found: tuple[int, list[Example]], words: str) -> Found:
    """What a check found, with the share of a table's rows in its message."""
    count, examples = found
    if not count:
        return Found(0, examples, "")
    return Found(count, examples, f"{count:,} ({count / heights(log)[table]:.1%}) {words}")


def check_query(log: Folder) -> Found:
    log.claims("query")
    source = pl.col("source")
    searched = (source == "search") & source.is_in(log.said("scenario"))
    found = log.rows("requests", searched & blank("query"), "request_id")
    return shared(log, "requests", found, "of the requests are searches without a query")


def check_filters(log: Folder) -> Found:
    log.claims("filters")
    held = log.table("items", "attributes").select(pl.col("attributes").alias("filters"))
    held = held.explode("filters").unique()
    asked = log.table("requests", "request_id", "filters").explode("filters")
    asked = asked.filter(pl.col("filters").is_not_null())
    unheld = (
        asked.join(held, on="filters", how="anti")
        .group_by("filters")
        .agg(
            pl.col("request_id").sort_by(ROW).first(),
            pl.len().alias("requests"),
            pl.col(ROW).min(),
        )
    )
    words = "filters that no item holds, so that nothing is eligible"
    return counted(log.examples("requests", unheld), words, warning=True)


def check_users(log: Folder) -> Found:
    found = log.rows("requests", blank("user_id"), "request_id")
    if not found[0]:
        log.claims("users")
    return shared(log, "requests", found, "of the requests name no user (nor session)")


def check_images(log: Folder) -> Found:
    log.claims("images")
    folder = log.on_disk()
    items = log.table("items", "item_id", "image").collect(engine="streaming")
    named = items.filter(pl.col("image").is_not_null())
    missing = []
    for row, item, image in named.select(ROW, "item_id", "image").iter_rows():
        if Path(image).is_absolute() or not (folder / image).is_file():
            missing.append({"file": "items.parquet", "row": row, "item_id": item, "image": image})
    words = f"{items.height - named.height:,} items have no image"
    if missing:
        words = f"{len(missing):,} of {named.height:,} images are not in the folder; {words}"
    return Found(len(missing), missing, words)


def check_visual(log: Folder) -> Found:
    log.claims("visual")
    visual = pl.col("visual")
    vectors = log.table("items", "item_id", "visual").filter(visual.is_not_null())
    width = vectors.select(visual.list.len().mode().min()).collect(engine="streaming").item()
    if width is None:
        raise NotApplicableError("no item has a visual vector")
    finite = visual.list.eval(pl.element().is_finite()).list.all()
    fine = (visual.list.len() == width) & finite
    odd = vectors.filter(~fine.fill_null(False))
    odd = odd.select(ROW, "item_id", visual.list.len().alias("numbers"))
    words = f"visual vectors hold NaN or are not {width} numbers long"
    return counted(log.examples("items", odd), words)


CHECKS: tuple[Question, ...] = (
    Question("log.json", check_meta),
    Question("facts", check_facts, "no figure is computed from where a log is from"),
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
    Question("stages", check_stages),
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
    Question("text", check_text, "a missing text is a property of the log, not an error"),
    Question("query", check_query, "a search without a query is a property of the log"),
    Question("filters", check_filters, "only ever a warning: no item is eligible for the request"),
    Question("users", check_users),
    Question("images", check_images, "whatever reads an image refuses a missing file itself"),
    Question("visual", check_visual),
)
