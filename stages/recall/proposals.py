"""Helpers of the channels: the best eligible items of each request, as rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import polars as pl

from ..context import Context
from ..frame import ITEM, REQUEST, SCORE, best, rows_frame
from ..rows import Rows

NOT_FOUND = np.float32(-1e9)  # the score of a row that a channel could never propose


def candidates(
    requests: np.ndarray, counts: list[int], items: list[np.ndarray], scores: list[np.ndarray]
) -> pl.DataFrame:
    """Arrays of each request as one frame: request, item, score."""
    return rows_frame(
        request=np.repeat(requests, counts).astype(np.int64),
        item=np.concatenate([*items, np.empty(0)]).astype(np.int32),
        score=np.concatenate([*scores, np.empty(0)]).astype(np.float32),
    )


def tie_of(context: Context, request: int, items: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Tie hashes of some positions `at` of a request's items."""
    return context.tie(np.asarray(request), items[at])


def propose_each(
    context: Context,
    requests: np.ndarray,
    k: int,
    scored: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> pl.DataFrame:
    """The k best items of each request in no order, as candidates.

    Args:
        requests: row numbers, ascending.
        scored: called with the position of a request and its eligible items; returns items and
            their scores.
    """
    items, scores, counts = [], [], []
    for i, eligible in enumerate(context.log.asof.eligible(requests)):
        found, score = scored(i, eligible)
        kept = best(score, partial(tie_of, context, int(requests[i]), found), k)
        items.append(found[kept])
        scores.append(score[kept])
        counts.append(len(kept))
    return candidates(requests, counts, items, scores)


def propose_found(
    context: Context,
    requests: np.ndarray,
    k: int,
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> pl.DataFrame:
    """The k best eligible items of each request among those that were found for it, in no order.

    Args:
        requests: row numbers, ascending.
        found: the position of each row's request among these, ascending, its item and its score,
            (n_rows,) each.
    """
    group, item, score = found
    allowed = context.log.asof.is_eligible(requests[group], item)
    group, item, score = group[allowed], item[allowed], score[allowed]
    ends = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=len(requests)))])
    kept = np.ones(len(group), dtype=bool)
    for i in np.flatnonzero(np.diff(ends) > k):
        mine = slice(ends[i], ends[i + 1])
        tie = partial(tie_of, context, int(requests[i]), item[mine])
        kept[mine] = False
        kept[ends[i] + best(score[mine], tie, k)] = True
    return rows_frame(request=requests[group[kept]], item=item[kept], score=score[kept])


def scores_in(table: pl.DataFrame, rows: Rows, missing: np.float32) -> np.ndarray:
    """Each row's score in a table of request, item, score, and `missing` without one: float32
    (n_rows,).
    """
    keys = [REQUEST, ITEM]
    found = rows.frame.select(keys).join(table, on=keys, how="left", maintain_order="left")
    return found[SCORE].fill_null(missing).to_numpy()
