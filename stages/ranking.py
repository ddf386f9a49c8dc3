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

    Returns the rows in rank order, the tracked rows (in the order given) with `rank` and `wins`
    (non-truth rows below, ties one half; null where the item was not among the rows), and how many
    rows each request has.
    """
    request = np.concatenate([rows[REQUEST].to_numpy(), tracked[REQUEST].to_numpy()])
    item = np.concatenate([rows[ITEM].to_numpy(), tracked[ITEM].to_numpy()])
    score = np.concatenate([rows[SCORE].to_numpy(), tracked[SCORE].to_numpy()]).astype(np.float32)
    there, group = group_rows(request)
    group = np.searchsorted(requests, there)[group]
    n = rows.height
    # A tracked row that is a candidate, too, has the candidate's very score: kernels round
    # differently in other batches.
    pair = pair_key(request, item, context.log.n_items)
    by_pair = np.argsort(pair[:n]) if tracked.height else np.empty(0, np.int64)
    twin = (
        by_pair[np.minimum(np.searchsorted(pair[:n][by_pair], pair[n:]), n - 1)]
        if n and tracked.height
        else np.zeros(tracked.height, int)
    )
    present = pair[twin] == pair[n:] if n else np.zeros(tracked.height, bool)
    score[n:] = np.where(present, score[twin], score[n:])
    tracked = tracked.with_columns(pl.Series(SCORE, score[n:]))
    if CHANNEL in rows.columns:  # what found it; nothing, where nothing did
        found = rows[CHANNEL].to_numpy()[twin] if n else np.zeros(tracked.height, np.uint32)
        tracked = tracked.with_columns(
            pl.Series(CHANNEL, np.where(present, found, 0).astype(np.uint32))
        )
    # A tracked row goes just before its twin among the rows: "how many rows stand before me" is
    # then its rank less one.
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
        return (
            ranked,
            tracked.with_columns(pl.Series(RANK, [], pl.Int32), pl.Series("wins", [], pl.Float64)),
            sizes,
        )

    key = (group.astype(np.uint64) << np.uint64(32)) | descending(score)
    mine, wins = key[n:], np.zeros(tracked.height)
    truth = tracked["truth"].to_numpy() & present
    for among, sign in ((np.sort(key[:n]), 1.0), (np.sort(mine[truth]), -1.0)):
        end = np.searchsorted(among, (group[n:].astype(np.uint64) + np.uint64(1)) << np.uint64(32))
        left, right = np.searchsorted(among, mine), np.searchsorted(among, mine, side="right")
        wins += sign * ((end - right) + 0.5 * (right - left))
    # A truth item ties with itself in both counts, and is gone; a non-truth row that is present
    # ties with itself in the first.
    wins -= np.where(present & ~truth, 0.5, 0.0)
    tracked = tracked.with_columns(
        pl.Series(RANK, rank[n:]),
        pl.when(pl.Series(present)).then(pl.Series(wins)).otherwise(None).alias("wins"),
    )
    return ranked, tracked, sizes
