"""How a stage's scores become ranks, the same for every stage."""

from __future__ import annotations

import numpy as np
import polars as pl

from .context import Context
from .frame import CHANNEL, ITEM, RANK, REQUEST, SCORE, descending, group_rows, order, pair_key


def rank_rows(
    rows: pl.DataFrame, tracked: pl.DataFrame, requests: np.ndarray, context: Context
) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray]:
    """Rank scored rows within each request, and place the tracked rows among them.

    Returns:
        The rows in rank order; the tracked rows in the order given with `rank` and `wins` (the
        number of non-relevant rows with a lower score, ties one half; null where the item was not
        among the rows); and the number of rows of each request, (n_requests,).
    """
    request = np.concatenate([rows[REQUEST].to_numpy(), tracked[REQUEST].to_numpy()])
    item = np.concatenate([rows[ITEM].to_numpy(), tracked[ITEM].to_numpy()])
    score = np.concatenate([rows[SCORE].to_numpy(), tracked[SCORE].to_numpy()]).astype(np.float32)
    present, group = group_rows(request)
    group = np.searchsorted(requests, present)[group]
    n = rows.height
    # A tracked row that is a candidate as well gets the candidate's score: kernels round
    # differently in other batches.
    twin, has_twin = _twins(pair_key(request, item, context.log.n_items), n)
    if n:
        score[n:] = np.where(has_twin, score[twin], score[n:])
    tracked = tracked.with_columns(pl.Series(SCORE, score[n:]))
    if CHANNEL in rows.columns:  # the channels that found the candidate
        found = np.zeros(tracked.height, np.uint32)
        if n:
            found = np.where(has_twin, rows[CHANNEL].to_numpy()[twin], found).astype(np.uint32)
        tracked = tracked.with_columns(pl.Series(CHANNEL, found))
    # A tracked row is ordered just before its candidate, so that its rank is one more than the
    # number of candidates before it.
    tie = context.tie(request, item) & ~np.uint64(1)
    tie[:n] |= np.uint64(1)
    sequence = order(group, score, tie)
    is_row = sequence < n
    before: np.ndarray = np.cumsum(is_row) - is_row
    sizes = np.bincount(group[:n], minlength=len(requests))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rank = np.empty(len(sequence), dtype=np.int32)
    rank[sequence] = before - starts[group[sequence]] + 1
    kept = sequence[is_row]
    ranked = rows[kept].with_columns(pl.Series(RANK, rank[kept]))
    if tracked.height == 0:
        empty = [pl.Series(RANK, [], pl.Int32), pl.Series("wins", [], pl.Float64)]
        return ranked, tracked.with_columns(empty), sizes
    key = (group.astype(np.uint64) << np.uint64(32)) | descending(score)
    mine, wins = key[n:], np.zeros(tracked.height)
    truth = tracked["truth"].to_numpy() & has_twin
    for among, sign in ((np.sort(key[:n]), 1.0), (np.sort(mine[truth]), -1.0)):
        end = np.searchsorted(among, (group[n:].astype(np.uint64) + np.uint64(1)) << np.uint64(32))
        left, right = np.searchsorted(among, mine), np.searchsorted(among, mine, side="right")
        wins += sign * ((end - right) + 0.5 * (right - left))
    # A relevant candidate ties with itself in both counts, another candidate in the first only.
    wins -= np.where(has_twin & ~truth, 0.5, 0.0)
    known = pl.when(pl.Series(has_twin)).then(pl.Series(wins)).otherwise(None)
    return ranked, tracked.with_columns(pl.Series(RANK, rank[n:]), known.alias("wins")), sizes


def _twins(pair: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The candidate with the same pair as each tracked row, and whether there is one.

    Args:
        pair: keys of the candidates, then of the tracked rows.
        n: the number of candidates.
    """
    rows, tracked = pair[:n], pair[n:]
    if n == 0 or len(tracked) == 0:
        return np.zeros(len(tracked), int), np.zeros(len(tracked), bool)
    by_pair = np.argsort(rows)
    twin = by_pair[np.minimum(np.searchsorted(rows[by_pair], tracked), n - 1)]
    return twin, rows[twin] == tracked
