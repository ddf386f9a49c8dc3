"""Shards: pieces of a Run on disk, until they are joined into its tables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import KarmafunnelError, NotWrittenError, line_of
from ...files import (
    NOTHING_LEFT,
    atomic_folder,
    fault,
    not_written,
    remove,
    say,
    sweep,
    write_parquet,
)
from ...keys import content_key


def partial_folder(out: Path, description: Mapping[str, Any], code: str, chunk: int) -> Path:
    """The folder for the shards of a Run until it is complete; folders of other unfinished Runs in
    the same place are removed.
    """
    content = dict(description)
    for name in ("command", "commit"):
        content.pop(name, None)
    key = content_key(code, sorted(content.items()), chunk)
    out = Path(os.path.realpath(out))
    partial = out.with_name(f".{out.name}.{key}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    other = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{16}}\.partial")
    for name in os.listdir(partial.parent):
        if other.fullmatch(name) and name != partial.name:
            remove(partial.parent / name)
    return partial


def shard_path(partial: Path, number: int) -> Path:
    """The folder of one shard."""
    return partial / f"{number:06d}"


def tidy(partial: Path) -> None:
    """Remove what a replay leaves beside complete shards."""
    sweep(partial)  # of workers that were killed while they wrote
    with suppress(OSError):  # shards are in it, or it is gone
        partial.rmdir()


def what_stays(error: Exception, partial: Path, shards: int) -> Exception:
    """The error of a full disk with the number of shards that are kept; another error unchanged."""
    whole = sum(name.isdecimal() for name in os.listdir(partial)) if partial.is_dir() else 0
    if not whole or not not_written(error):
        return error
    line = line_of(error).replace(NOTHING_LEFT, "")
    return NotWrittenError(
        f"{line}; {whole} of {shards} pieces of the replay stay in {partial}, the same command "
        "goes on with them"
    )


def drop_torn(partial: Path) -> None:
    """Remove shards that are damaged, such as after a crash of the machine; they are made again."""
    sweep(partial)
    for name in sorted(os.listdir(partial)):
        if (wrong := fault(partial / name)) is not None:
            say(f"{wrong}; this piece of the replay is made again")
            remove(partial / name)


def write_shard(folder: Path, tables: Mapping[str, pl.DataFrame]) -> None:
    """Write one shard of a Run, whole or not at all."""
    with atomic_folder(folder, durable=False, sealed=True) as temporary:
        for name, frame in tables.items():
            write_parquet(temporary / f"{name}.parquet", frame, compression="lz4", statistics=False)


def merge(shards: list[Path], out: Path) -> None:
    """Concatenate Parquet shards, one row group each: memory does not grow with their number."""
    writer: pq.ParquetWriter | None = None
    try:
        for shard in shards:
            table = _read(shard)
            if writer is None:
                writer = _writer(out, table.schema)
            writer.write_table(table.cast(writer.schema))
    finally:
        if writer:
            writer.close()


def _read(shard: Path) -> pa.Table:
    try:
        return pq.ParquetFile(shard).read()  # `read_table` takes longer than a shard
    except (pa.ArrowException, OSError) as error:
        hint = "the same command makes it again"
        raise KarmafunnelError(
            shard, needs="a piece of the replay", found=error, hint=hint
        ) from error


def _writer(out: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Dictionaries for texts, none for scores; no statistics, which are of no use for ids and ranks
    in no order.
    """
    texts = [column.name for column in schema if not pa.types.is_primitive(column.type)]
    return pq.ParquetWriter(
        out,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=texts,
        write_statistics=False,
    )
