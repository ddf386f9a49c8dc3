"""How a stage's scores become ranks, the same for every stage."""

from __future__ import annotations

import numpy as np
import polars as pl

from .context import Context
from .frame import CHANNEL, ITEM, RANK, REQUEST, SCORE, order, order_key, pair_key


def rank_rows(
    rows: pl.DataFrame,
    tracked: pl.DataFrame,
    requests: np.ndarray,
    context: Context,
    k: int | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray]:
    """Rank scored rows within each request, and place the tracked rows among them.

    Args:
        k: the last rank whose rows are returned; None: all.

    Returns:
        The rows in rank order; the tracked rows in the order given with `rank` and `wins` (the
        number of non-relevant rows with a lower score, ties one half; null where the item was not
        among the rows); and the number of rows of each request, (n_requests,).
    """
    n, n_items = rows.height, context.log.n_items
    request, item = rows[REQUEST].to_numpy(), rows[ITEM].to_numpy()
    score = rows[SCORE].to_numpy().astype(np.float32, copy=False)
    own_request, own_item = tracked[REQUEST].to_numpy(), tracked[ITEM].to_numpy()
    own_score = tracked[SCORE].to_numpy().astype(np.float32)
    # A tracked row that is a candidate as well gets the candidate's score: kernels round
    # differently in other batches.
    pair, own_pair = (pair_key(*x, n_items) for x in ((request, item), (own_request, own_item)))
    twin, has_twin = _twins(pair, own_pair)
    twin = twin[has_twin]
    own_score[has_twin] = score[twin]
    tracked = tracked.with_columns(pl.Series(SCORE, own_score))
    if CHANNEL in rows.columns:  # the channels that found the candidate
        found = np.zeros(tracked.height, np.uint32)
        found[has_twin] = rows[CHANNEL].to_numpy()[twin]
        tracked = tracked.with_columns(pl.Series(CHANNEL, found))
    # It has the candidate's rank, too; that of another one is one more than the number of
    # candidates before it.
    lone = np.flatnonzero(~has_twin)
    request = np.concatenate([request, own_request[lone]])
    item, score = np.concatenate([item, own_item[lone]]), np.concatenate([score, own_score[lone]])
    group = np.searchsorted(requests, request)
    sequence = order(group, score, context.tie(request, item))
    is_row = sequence < n
    before: np.ndarray = np.cumsum(is_row) - is_row
    sizes = np.bincount(group[:n], minlength=len(requests))
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(sequence), dtype=np.int32)
    rank[sequence] = before - starts[group[sequence]] + 1
    kept = sequence[is_row]
    best = kept if k is None else kept[rank[kept] <= k]
    ranked = rows[best].with_columns(pl.Series(RANK, rank[best]))
    if tracked.height == 0:
        empty = [pl.Series(RANK, [], pl.Int32), pl.Series("wins", [], pl.Float64)]
        return ranked, tracked.with_columns(empty), sizes
    own_rank = np.empty(tracked.height, dtype=np.int32)
    own_rank[lone], own_rank[has_twin] = rank[n:], rank[twin]
    own_group = np.searchsorted(requests, own_request)
    mine, wins = order_key(own_group, own_score), np.zeros(tracked.height)
    truth = tracked["truth"].to_numpy() & has_twin
    candidates = order_key(group[kept], score[kept])
    for among, sign in ((candidates, 1.0), (np.sort(mine[truth]), -1.0)):
        end = np.searchsorted(among, (own_group.astype(np.uint64) + np.uint64(1)) << np.uint64(32))
        left, right = np.searchsorted(among, mine), np.searchsorted(among, mine, side="right")
        wins += sign * ((end - right) + 0.5 * (right - left))
    # A relevant candidate ties with itself in both counts, another candidate in the first only.
    wins -= np.where(has_twin & ~truth, 0.5, 0.0)
    wins[~has_twin] = np.nan
    placed = [pl.Series(RANK, own_rank), pl.Series("wins", wins).fill_nan(None)]
    return ranked, tracked.with_columns(placed), sizes


def _twins(rows: np.ndarray, tracked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The candidate with the same pair as each tracked row, and whether there is one.

    Args:
        rows, tracked: keys of the pairs.
    """
    if len(rows) == 0 or len(tracked) == 0:
        return np.zeros(len(tracked), int), np.zeros(len(tracked), bool)
    by_pair = np.argsort(rows)
    twin = by_pair[np.minimum(np.searchsorted(rows[by_pair], tracked), len(rows) - 1)]
    return twin, rows[twin] == tracked
