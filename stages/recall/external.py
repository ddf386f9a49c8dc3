"""Candidates and scores from a file that another system wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...files import read_table
from ...log import Log, rows_of, sha256
from ...typed import positional
from ..context import Context
from ..frame import ITEM, RANK, REQUEST, SCORE, no_rows
from ..ranking import rank_rows
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage
from .proposals import NOT_FOUND, scores_in


@dataclass(frozen=True, repr=False)
class External(Stage):
    """The k best eligible items of each request in a Parquet file of request_id, item_id, score.

    Requests that the file lacks get nothing; an item without a score is not proposed. `checksum`
    (by `log.sha256`, or the beginning of it) makes the content of the file a part of the value. A
    fit raises KarmafunnelError as `read_scores` does.
    """

    path: str = positional()
    k: int = 50
    checksum: str = ""
    name: str = "recall"

    doing: ClassVar[str] = "reading"

    def one_fit(self) -> str:
        return "scores in a file, of a system that may know what came after a block"

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedExternal:
        rows = read_scores(self, Path(self.path), self.checksum, context.log)
        return FittedExternal(self, context, rows)


def read_scores(stage: Stage, path: Path, checksum: str, log: Log) -> pl.DataFrame:
    """The scores of a file by row numbers of the log: request, item, score; ascending by request.

    Raises:
        KarmafunnelError: naming the stage, for a file that is missing or has another checksum, for
            missing columns, unknown ids, scores that are not finite, and an item that is twice in a
            request.
    """
    columns = ["request_id", "item_id", SCORE]
    needs = f"a Parquet file of {columns}"
    if not path.is_file():
        raise KarmafunnelError(stage, needs=needs, found="no such file")
    if checksum and not (found := sha256(path)).startswith(checksum):
        what = found[: len(checksum)]
        raise KarmafunnelError(stage, needs="the file of that checksum", found=what)
    try:
        frame = read_table(path, *columns)
    except KarmafunnelError as error:
        raise KarmafunnelError(stage, needs=needs, found=error) from error
    frame = _numbered(stage, frame, "request_id", log.requests, REQUEST, log)
    frame = _numbered(stage, frame, "item_id", log.items, ITEM, log)
    rows = frame.select(
        pl.col(REQUEST).cast(pl.Int64),
        pl.col(ITEM).cast(pl.Int32),
        pl.col(SCORE).cast(pl.Float32),
    )
    infinite = ~rows[SCORE].is_finite().fill_null(False)
    _check_none(stage, frame, infinite, "finite scores")
    twice = rows.select(REQUEST, ITEM).is_duplicated()
    _check_none(stage, frame, twice, "an item at most once a request")
    return rows.sort(REQUEST, maintain_order=True)


def _numbered(
    stage: Stage, frame: pl.DataFrame, key: str, table: pl.DataFrame, number: str, log: Log
) -> pl.DataFrame:
    """The frame with the row numbers of its ids in a table of the log."""
    numbers = table.select(pl.col(key), pl.int_range(pl.len()).alias(number))
    frame = frame.with_columns(pl.col(key).cast(pl.String))
    frame = frame.join(numbers, on=key, how="left", maintain_order="left")
    if missing := frame[number].null_count():
        example = frame.filter(pl.col(number).is_null())[key][0]
        found = f"{missing} rows of others, e.g. {key} {example!r}"
        raise KarmafunnelError(stage, needs=f"ids of log {log.name}", found=found)
    return frame


def _check_none(stage: Stage, frame: pl.DataFrame, bad: pl.Series, needs: str) -> None:
    """Raise KarmafunnelError naming the first row that is `bad`."""
    if bad.any():
        row = frame.row(int(bad.arg_max() or 0), named=True)
        found = (
            f"{bad.sum()} other rows, e.g. request {row['request_id']!r}, item "
            f"{row['item_id']!r}, score {row[SCORE]}"
        )
        raise KarmafunnelError(stage, needs=needs, found=found)


@dataclass(eq=False, repr=False)
class FittedExternal(Retriever):
    stage: External
    rows: pl.DataFrame
    channels = ("external",)

    def propose(self, rows: Rows) -> pl.DataFrame:
        scored = rows_of(self.rows, rows.requests)
        request, item = scored[REQUEST].to_numpy(), scored[ITEM].to_numpy()
        eligible = self.context.log.asof.is_eligible(request, item)
        scored = scored.filter(pl.Series(eligible, dtype=pl.Boolean))
        k = self.stage.k
        return rank_rows(scored, no_rows(), rows.requests, self.context, k)[0].drop(RANK)

    def score(self, rows: Rows) -> np.ndarray:
        return scores_in(rows_of(self.rows, np.unique(rows.request)), rows, NOT_FOUND)
