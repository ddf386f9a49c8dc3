"""Tables too long to hold: their columns lie in a file that is mapped into memory.

Pages of such a file are read when they are looked at, and the system may drop them at any time, so
that the memory of a process does not grow with the table.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import polars as pl
import pyarrow as pa

from .errors import NotWrittenError

LONG = 2_000_000  # rows from which a table is too long to hold, and that are worked on at a time


@contextmanager
def _in_tmpdir() -> Iterator[None]:
    """Turn an error of the disk inside into a NotWrittenError that names the folder."""
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or os.environ.get("TMPDIR", "/tmp")
        needs = "room for a long table"
        found, hint = f"{error.strerror}", "TMPDIR=FOLDER names another folder"
        raise NotWrittenError(
            f"temporary files in {folder}", needs=needs, found=found, hint=hint
        ) from error


def pieces(frame: pl.DataFrame, rows: int | None = None) -> Iterator[pl.DataFrame]:
    """The frame cut into pieces of `rows` rows (default: LONG), one at least; nothing is copied."""
    rows = rows or LONG
    for start in range(0, max(frame.height, 1), rows):
        yield frame[start : start + rows]


def mapped(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The parts one below the other as a frame that is mapped into memory.

    The file has no name and is gone with the frame. It lies in the folder for temporary files
    (TMPDIR). Texts, and a bit a row for flags and missing values, stay in memory.

    Args:
        parts: frames with the same columns; one at least.

    Raises:
        NotWrittenError: naming the folder, where the file cannot be written.
    """
    columns: dict[str, Column] = {}
    rest: pl.DataFrame | None = None
    for part in parts:
        whole = part if rest is None else pl.concat([rest, part])
        if not columns:
            columns = {name: Column(dtype) for name, dtype in whole.schema.items()}
        even = whole.height // 8 * 8  # bits are packed by the byte
        for name, column in columns.items():
            column.add(whole[name][:even])
        rest = whole[even:]
    assert rest is not None
    for name, column in columns.items():
        column.add(rest[name])
    return pl.DataFrame({name: column.series() for name, column in columns.items()})


class Column:
    """A column that grows at its end: numbers go into a file, all else stays in memory."""

    def __init__(self, dtype: pl.DataType):
        self.dtype, self.rows, self.missing = dtype, 0, 0
        self.valid, self.flags, self.texts = bytearray(), bytearray(), [pl.Series(dtype=dtype)]
        with _in_tmpdir():
            self.file = tempfile.TemporaryFile() if dtype.is_numeric() else None  # noqa: SIM115

    def add(self, values: pl.Series) -> None:
        """Add values; all but the last time a multiple of eight."""
        self.rows += len(values)
        self.missing += values.null_count()
        if self.file is None and self.dtype != pl.Boolean:
            self.texts.append(values)
            return
        self.valid += np.packbits(values.is_not_null().to_numpy(), bitorder="little").tobytes()
        if self.file is not None:
            with _in_tmpdir():
                self.file.write(values.fill_null(0).to_numpy().tobytes())
        else:
            there = values.fill_null(False).to_numpy()
            self.flags += np.packbits(there, bitorder="little").tobytes()

    def series(self) -> pl.Series:
        """The column, zero-copy; nothing can be added any more."""
        if self.file is None and self.dtype != pl.Boolean:
            return pl.concat(self.texts)
        if self.rows == 0:
            return self.texts[0]
        data: pa.Buffer
        if self.file is None:
            data = pa.py_buffer(bytes(self.flags))
        else:
            with _in_tmpdir():
                self.file.flush()
            data = pa.py_buffer(np.memmap(self.file, np.uint8, "r"))
            self.file.close()  # the map stays
        valid = pa.py_buffer(bytes(self.valid)) if self.missing else None
        kind = self.texts[0].to_arrow().type
        found = pl.from_arrow(pa.Array.from_buffers(kind, self.rows, [valid, data]))
        assert isinstance(found, pl.Series)
        return found


def mapped_array(values: np.ndarray) -> np.ndarray:
    """The same array; where it is long, mapped into memory and not to be written to."""
    if len(values) <= LONG:
        return values
    with _in_tmpdir(), tempfile.TemporaryFile() as file:
        for start in range(0, len(values), LONG):
            file.write(values[start : start + LONG].tobytes())
        file.flush()
        # the map stays
        return np.asarray(np.memmap(file, values.dtype, "r", shape=values.shape))


def kept(frame: pl.DataFrame, condition: pl.Expr) -> pl.DataFrame:
    """The rows that meet a condition, mapped into memory where the frame is long."""
    if frame.height <= LONG:
        return frame.filter(condition)
    return mapped(piece.filter(condition) for piece in pieces(frame))


def quantiles(values: np.ndarray, shares: list[float]) -> list[float]:
    """What `numpy.quantile` gives for finite numbers, without a copy of a long array.

    The values at the places in question are found sixteen bits at a time, each time by counting.
    """
    if len(values) <= LONG:
        return np.quantile(values, shares).tolist()
    found = []
    for share in shares:
        place = share * (len(values) - 1)
        low = int(place)
        a, b = (value_at(values, min(n, len(values) - 1)) for n in (low, low + 1))
        t = place - low
        found.append(a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t))
    return found


def value_at(values: np.ndarray, place: int) -> float:
    """The number at a place of the sorted values, from 0."""
    prefix, sign = 0, np.uint64(1 << 63)
    for shift in (48, 32, 16, 0):
        counts = np.zeros(1 << 16, dtype=np.int64)
        for start in range(0, len(values), LONG):
            part = values[start : start + LONG].astype(np.float64).view(np.uint64)
            # the order of these whole numbers is that of the floats
            part = np.where(part & sign, ~part, part | sign)
            if shift < 48:
                part = part[part >> np.uint64(shift + 16) == np.uint64(prefix)]
            part = (part >> np.uint64(shift)) & np.uint64(0xFFFF)
            counts += np.bincount(part.astype(np.int64), minlength=len(counts))
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, place, side="right"))
        place -= int(ends[digit] - counts[digit])
        prefix = (prefix << 16) | digit
    bits = np.uint64(prefix)
    bits = bits ^ sign if bits & sign else ~bits
    return float(bits.view(np.float64))
