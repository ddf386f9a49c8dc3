"""Read tables of common formats in batches of rows.

CSV and TSV, JSON lines, Parquet, RecBole's atomic files, folders of Hugging Face `datasets`.
"""

from __future__ import annotations

import codecs
import csv
import glob
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq

from ...errors import KarmafunnelError
from ...files import first_line

ROW = "_row"  # column with the row number in the file; 1 is the first row after the header
BATCH = 500_000  # rows
BLOCK = 32 << 20  # bytes of a CSV file read at once, which must hold a whole row
SEPARATORS = (",", ";", "\t", "|")
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".inter": "csv",
    ".item": "csv",
    ".user": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
PACKED = (".gz", ".zst", ".zstd", ".bz2")
MISSING = ("", "\\N", "NULL", "null", "NaN", "nan", "None")


@dataclass(frozen=True)
class Layout:
    """The format of a file. `names`: its columns. `typed`: the header has types as in RecBole
    (`user_id:token`), which `names` leaves out; `sequences`: its columns of values between blanks.
    """

    kind: str
    names: tuple[str, ...]
    separator: str = ","
    encoding: str = "utf8"
    typed: bool = False
    sequences: tuple[str, ...] = ()


@dataclass
class Rejects:
    """Rejected rows: file, row, reason, and the text where available. `unsplit`: how many of them
    could not be split into columns.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    unsplit: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    most: int = 100_000  # maximum rows kept; further ones are only counted
    known_as: Mapping[str, str] = field(default_factory=dict)  # names of files, where others

    def add(self, file: str, row: int, reason: str, text: str | None) -> None:
        self.count += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if len(self.rows) < self.most:
            shown = text if text is None or len(text) <= 500 else f"{text[:500]}..."
            name = self.known_as.get(file, file)
            self.rows.append({"file": name, "row": row, "reason": reason, "text": shown})

    def frame(self) -> pl.DataFrame:
        schema = {"file": pl.String, "row": pl.Int64, "reason": pl.String, "text": pl.String}
        return pl.DataFrame(self.rows, schema=schema)


def expand(given: Sequence[str | Path], left_out: dict[str, str] | None = None) -> list[Path]:
    """The files of paths, folders and globs, in the given order; those of a folder are sorted.

    Args:
        left_out: is filled with the files of folders that cannot be tables, and why.

    Raises:
        KarmafunnelError: for a path, folder or glob without a file.
    """
    found: list[Path] = []
    skipped = {} if left_out is None else left_out
    for one in given:
        path = Path(one)
        if path.is_dir():
            whole = sorted(p for p in path.rglob("*") if p.is_file())
            whys = {p: no_table(p, path) for p in whole}
            inside = [p for p in whole if not whys[p]]
            skipped |= {str(p): why for p, why in whys.items() if why}
        elif path.is_file():
            inside = [path]
        else:
            inside = sorted(Path(p) for p in glob.glob(str(one)) if Path(p).is_file())
        if not inside:
            kinds = ", ".join(SUFFIXES)
            raise KarmafunnelError(
                "import", needs=f"files ({kinds}, also compressed)", found=f"none at {one}"
            )
        found += [p for p in inside if p not in found]
    return found


def no_table(path: Path, folder: Path) -> str:
    """Why a file of a folder is left out; "" for one that may be a table."""
    inside = path.relative_to(folder).parts
    if any(part.startswith(".") or part == "__MACOSX" for part in inside):
        return "hidden"
    if not format_of(path):
        return "no table"
    if path.stat().st_size == 0:
        return "empty"
    if re.fullmatch(r"cache-\w+", path.stem) and format_of(path) == "arrow":
        return "a cache of Hugging Face datasets"
    if re.match(r"(readme|licen[cs]e|changelog|notice)\b", path.name.lower()):
        return "no table"
    if path.suffix.lower() == ".json":  # such as dataset_info.json
        try:
            layout_of(path)
        except KarmafunnelError:
            return "no JSON lines"
    return ""


def format_of(path: Path) -> str:
    """The format of a file by its suffix; "" for an unknown suffix."""
    suffixes = [s.lower() for s in path.suffixes]
    while suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1], "") if suffixes else ""


def layout_of(path: Path) -> Layout:
    """The format of a file; raises KarmafunnelError for a file without a table."""
    kind = format_of(path)
    if kind == "parquet":
        schema = opened(path, lambda: pq.ParquetFile(path).schema_arrow)
        return Layout(kind, tuple(columns_of(schema)))
    if kind == "arrow":
        return Layout(kind, tuple(columns_of(opened(path, lambda: arrow_schema(path)))))
    start = opened(path, lambda: beginning(path))
    if kind == "jsonl":
        names: dict[str, None] = {}
        for frame in batches(path, Layout(kind, ()), Rejects()):
            names |= dict.fromkeys(name for name in frame.columns if name != ROW)
            break
        if not names:
            raise KarmafunnelError(path, needs="one JSON object a line", found="none")
        return Layout(kind, tuple(names))
    return csv_layout(path, start)


def columns_of(schema: pa.Schema) -> list[str]:
    """The columns that `flat` makes of a table with this schema."""
    return flat(from_arrow(schema.empty_table())).columns


def opened(path: Path, read: Any) -> Any:
    """Call `read`; raises KarmafunnelError naming the file if it cannot be read."""
    try:
        return read()
    except KarmafunnelError:
        raise
    except (pa.ArrowException, OSError, EOFError, ValueError, pl.exceptions.PolarsError) as error:
        raise KarmafunnelError(
            path, needs="a whole file that can be read", found=first_line(error)
        ) from error


def packed(path: Path) -> pa.NativeFile:
    """A stream of the bytes of a file, decompressed according to its suffix."""
    names = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}
    return pa.input_stream(str(path), compression=names.get(path.suffix.lower()))


def beginning(path: Path, size: int = 1 << 20) -> bytes:
    """The first bytes of a file, decompressed."""
    with packed(path) as stream:
        return bytes(stream.read(size))


def arrow_schema(path: Path) -> pa.Schema:
    with pa.OSFile(str(path)) as file:
        try:
            return pa.ipc.open_stream(file).schema
        except pa.ArrowInvalid:
            return pa.ipc.open_file(file).schema


def csv_layout(path: Path, start: bytes) -> Layout:
    """Encoding, separator and header of a delimited file."""
    if not start.strip(b"\xef\xbb\xbf \r\n\t"):
        raise KarmafunnelError(path, needs="a header and rows", found="an empty file")
    encoding = "utf8"
    try:
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            encoding = "utf-16"
            text = start.decode(encoding, errors="replace")
        else:
            text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # not just a character cut off at the end
            encoding = "cp1252"
        text = start.decode("utf-8-sig" if encoding == "utf8" else encoding, errors="replace")
    lines = text.splitlines()
    head = lines[0]
    separator = max(SEPARATORS, key=lambda one: (score(one, lines[:50]), -SEPARATORS.index(one)))
    names = next(csv.reader(io.StringIO(head), delimiter=separator))
    names = [name.strip().strip("\ufeff") for name in names]
    typed = len(names) > 1 and all(
        re.fullmatch(r"[^:]+:(token|token_seq|float|float_seq)", n) for n in names
    )
    sequences = tuple(n.rsplit(":", 1)[0] for n in names if typed and n.endswith("token_seq"))
    if typed:
        names = [name.rsplit(":", 1)[0] for name in names]
    if len(names) == 1 and re.fullmatch(r"\S+\s+\S+\s+\S+\s+-?\d+", head.strip()):
        raise KarmafunnelError(
            path,
            needs="a first line with the names of the columns",
            found=f"what may be relevance judgements of TREC: {head[:80]!r}",
            hint="karmafunnel import-run RUN... --qrels FILE reads those",
        )
    if all(re.fullmatch(r"-?[\d.,:\- ]+", name) for name in names):
        raise KarmafunnelError(
            path,
            needs="a first line with the names of the columns",
            found=f"values: {head[:80]!r}",
        )
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise KarmafunnelError(
            f"{path}: header", needs="each name once", found=f"{twice[0]!r} twice"
        )
    if "" in names:
        names = [name or f"column {i + 1}" for i, name in enumerate(names)]
    return Layout("csv", tuple(names), separator, encoding, typed, sequences)


def score(separator: str, lines: Sequence[str]) -> tuple[int, int]:
    """How well a separator fits: whether at least 90% of the lines have as many fields as the
    first, and that number.
    """
    fields = [len(row) for row in csv.reader(lines, delimiter=separator)]
    same = sum(n == fields[0] for n in fields)
    return int(fields[0] > 1 and same >= 0.9 * len(fields)), fields[0]


def batches(path: Path, layout: Layout, rejects: Rejects) -> Iterator[pl.DataFrame]:
    """The rows of a file with their number in the column `ROW`; all columns of a delimited file are
    text.

    Rows with more or fewer fields than the header are added to `rejects`.

    Raises:
        KarmafunnelError: for a file that is truncated or cannot be read.
    """
    kinds = {
        "csv": csv_batches,
        "jsonl": json_batches,
        "parquet": parquet_batches,
        "arrow": arrow_batches,
    }
    source = kinds[layout.kind](path, layout, rejects)
    while True:
        before = rejects.count
        frame = opened(path, lambda: next(source, None))
        rejects.unsplit += rejects.count - before
        if frame is None:
            return
        yield frame


def from_arrow(table: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    """A frame of an Arrow table; times at an offset such as "+05:30", which Polars does not know,
    are the same moments in UTC.
    """
    fields = []
    for one in table.schema:
        if pa.types.is_timestamp(one.type) and (one.type.tz or "").startswith(("+", "-")):
            one = one.with_type(pa.timestamp(one.type.unit, "UTC"))
        fields.append(one)
    return pl.DataFrame(pl.from_arrow(table.cast(pa.schema(fields))))


def flat(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame whose columns of structures are columns of their fields: `user` becomes `user.id`."""
    while nested := [name for name, dtype in frame.schema.items() if dtype == pl.Struct]:
        columns = []
        for name in frame.columns:
            if name not in nested:
                columns.append(frame[name])
                continue
            fields = frame[name].struct.unnest()
            columns += [fields[field].alias(f"{name}.{field}") for field in fields.columns]
        frame = pl.DataFrame(columns)
    return frame


def numbered(frame: pl.DataFrame, before: int) -> pl.DataFrame:
    frame = flat(frame)
    return frame.with_columns(pl.int_range(before + 1, before + frame.height + 1).alias(ROW))


def csv_batches(path: Path, layout: Layout, rejects: Rejects) -> Iterator[pl.DataFrame]:
    ragged: list[int] = []

    def note(row: Any) -> str:
        reason = f"needs {row.expected_columns} fields, has {row.actual_columns}"
        number = int(row.number) - 1 if row.number is not None else -1
        ragged.append(number)
        rejects.add(str(path), number, reason, row.text)
        return "skip"

    options = {
        "read_options": pa.csv.ReadOptions(
            use_threads=False,
            block_size=BLOCK,
            column_names=list(layout.names),
            skip_rows=1,
            encoding=layout.encoding,
        ),
        "parse_options": pa.csv.ParseOptions(
            delimiter=layout.separator, newlines_in_values=True, invalid_row_handler=note
        ),
        "convert_options": pa.csv.ConvertOptions(
            column_types=dict.fromkeys(layout.names, pa.string()),
            null_values=list(MISSING),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            check_utf8=True,
        ),
    }
    with packed(path) as stream:
        try:
            reader = pa.csv.open_csv(stream, **options)
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error) or "no data" in str(error).lower():
                return
            raise
        done = 0
        for batch in reader:
            frame = from_arrow(batch)
            number = np.arange(done + 1, done + frame.height + 1)
            for one in sorted(ragged):  # rejected rows have numbers too
                number[number >= one] += 1
            done += frame.height
            yield frame.with_columns(pl.Series(ROW, number))


def json_batches(path: Path, layout: Layout, rejects: Rejects) -> Iterator[pl.DataFrame]:
    import json

    rows: list[dict[str, Any]] = []
    done = 0
    with packed(path) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8-sig"), 1):
            if not line.strip():
                continue
            if number == 1 and line.lstrip().startswith("["):
                raise KarmafunnelError(
                    path,
                    needs="one JSON object a line",
                    found="an array",
                    hint="jq -c '.[]' FILE > FILE.jsonl makes lines of it",
                )
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                rejects.add(str(path), number, f"is no JSON: {error.msg}", line.rstrip("\n"))
                continue
            if not isinstance(row, dict):
                rejects.add(str(path), number, "is no JSON object", line.rstrip("\n"))
                continue
            rows.append(row | {ROW: number})
            if len(rows) >= BATCH:
                yield flat(pl.DataFrame(rows, infer_schema_length=None, strict=False))
                done += len(rows)
                rows = []
    if rows:
        yield flat(pl.DataFrame(rows, infer_schema_length=None, strict=False))


def parquet_batches(path: Path, layout: Layout, rejects: Rejects) -> Iterator[pl.DataFrame]:
    done = 0
    for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH):
        frame = numbered(from_arrow(batch), done)
        done += frame.height
        yield frame


def arrow_batches(path: Path, layout: Layout, rejects: Rejects) -> Iterator[pl.DataFrame]:
    done = 0
    with pa.OSFile(str(path)) as file:
        try:
            source: Any = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(file)
            source = (reader.get_batch(i) for i in range(reader.num_record_batches))
        for batch in source:
            frame = numbered(from_arrow(batch), done)
            done += frame.height
            yield frame
