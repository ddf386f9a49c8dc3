"""Candidates and scores that another program wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
from .proposals import NOT_FOUND


@dataclass(frozen=True, repr=False)
class External(Stage):
    """What a system outside has scored: the k best eligible items of each request in a Parquet file
    of request_id, item_id, score.

    Requests that the file lacks get nothing; an item that it does not score for a request is never
    proposed. `checksum` (of the file, as `log.sha256` has it, or a beginning of it) makes the
    file's content a part of the value. Raises KarmafunnelError naming the file for one that is
    missing or other than `checksum` says, for absent columns, unknown ids, scores that are not
    finite, an item twice.
    """

    path: str = positional()
    k: int = 50
    checksum: str = ""
    name: str = "recall"

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedExternal:
        rows = read_scores(self, Path(self.path), self.checksum, context.log)
        return FittedExternal(self, context, rows)


def read_scores(stage: Stage, path: Path, checksum: str, log: Log) -> pl.DataFrame:
    """The scores of a file by row numbers of the log: request, item, score; sorted by request."""
    columns = ["request_id", "item_id", SCORE]
    if not path.is_file():
        raise KarmafunnelError(
            f"{stage!r}", needs=f"a Parquet file of {columns}", found="no such file"
        )
    if checksum and not sha256(path).startswith(checksum):
        raise KarmafunnelError(
            f"{stage!r}",
            needs="the file of that checksum",
            found=f"{sha256(path)[: len(checksum)]}",
        )
    try:
        frame = read_table(path, *columns)
    except KarmafunnelError as error:
        raise KarmafunnelError(
            f"{stage!r}", needs=f"a Parquet file of {columns}", found=error
        ) from error
    for key, table, number in (
        ("request_id", log.requests, REQUEST),
        ("item_id", log.items, ITEM),
    ):
        numbered = table.select(pl.col(key), pl.int_range(pl.len()).alias(number))
        frame = frame.with_columns(pl.col(key).cast(pl.String)).join(
            numbered, on=key, how="left", maintain_order="left"
        )
        if missing := frame[number].null_count():
            example = frame.filter(pl.col(number).is_null())[key][0]
            raise KarmafunnelError(
                f"{stage!r}",
                needs=f"ids of log {log.name}",
                found=f"{missing} rows of others, e.g. {key} {example!r}",
            )
    rows = frame.select(
        pl.col(REQUEST).cast(pl.Int64),
        pl.col(ITEM).cast(pl.Int32),
        pl.col(SCORE).cast(pl.Float32),
    )
    finite = rows[SCORE].is_finite().fill_null(False)
    for what, bad in (
        ("finite scores", ~finite),
        ("an item at most once a request", rows.select(REQUEST, ITEM).is_duplicated()),
    ):
        if bad.any():
            row = frame.row(int(bad.arg_max() or 0), named=True)
            raise KarmafunnelError(
                f"{stage!r}",
                needs=what,
                found=(
                    f"{bad.sum()} other rows, e.g. request {row['request_id']!r}, item "
                    f"{row['item_id']!r}, score {row[SCORE]}"
                ),
            )
    return rows.sort(REQUEST, maintain_order=True)


@dataclass(eq=False, repr=False)
class FittedExternal(Retriever):
    stage: External
    rows: pl.DataFrame
    channels = ("external",)

    def propose(self, rows: Rows) -> pl.DataFrame:
        scored = rows_of(self.rows, rows.requests)
        eligible = self.context.log.asof.is_eligible(
            scored[REQUEST].to_numpy(), scored[ITEM].to_numpy()
        )
        scored = scored.filter(pl.Series(eligible, dtype=pl.Boolean))
        ranked, _, _ = rank_rows(scored, no_rows(), rows.requests, self.context)
        return ranked.filter(pl.col(RANK) <= self.stage.k).drop(RANK)

    def score(self, rows: Rows) -> np.ndarray:
        mine = rows_of(self.rows, np.unique(rows.request))
        found = rows.frame.select(REQUEST, ITEM).join(
            mine, on=[REQUEST, ITEM], how="left", maintain_order="left"
        )
        return found[SCORE].fill_null(NOT_FOUND).to_numpy()
