"""The frame that is passed between stages: its column names, ranks and order of ties.

A frame has one row a (request, item), both as row numbers of the log. Rank 1 is best. The order is
by score descending, then by a seeded hash of (request_id, item_id). It is never the order of rows:
in many logs popular items have low ids, so a constant score would look skilled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

from ..errors import KarmafunnelError

REQUEST, ITEM, SCORE, RANK, CHANNEL = "request", "item", "score", "rank", "channel"
PLACE = "_place"  # position of a row among those that a stage was given; only inside the stage
# marks rows that are scored but not passed on; statistics of the candidates must not count them
TRACKED = "tracked"


def mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: uint64 -> uint64, every input bit moves every output bit (Steele et
    al. 2014).
    """
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def ascending(score: np.ndarray) -> np.ndarray:
    """uint32 keys that sort as float32 scores do (-0.0 counts as 0.0)."""
    bits = (score.astype(np.float32) + np.float32(0)).view(np.uint32)
    sign = (bits.view(np.int32) >> 31).view(np.uint32)  # all ones below 0
    return bits ^ (sign | np.uint32(1 << 31))


def descending(score: np.ndarray) -> np.ndarray:
    """uint32 keys that sort ascending as float32 scores sort descending."""
    return ~ascending(score)


def order_key(group: np.ndarray, score: np.ndarray) -> np.ndarray:
    """uint64 keys that sort ascending by group, then score descending; `group` below 2**32."""
    return (group.astype(np.uint64) << np.uint64(32)) | descending(score)


def order(group: np.ndarray, score: np.ndarray, tie: np.ndarray) -> np.ndarray:
    """Row order by group, then score descending, then tie ascending.

    One sort of a 64-bit key that ends in the first bits of the hash; only rows whose keys are equal
    are sorted again by all of it.
    """
    spare = np.uint64(32 - int(group.max(initial=0)).bit_length())
    key = (order_key(group, score) << spare) | (tie >> (np.uint64(64) - spare))
    rows = np.arange(len(key)) if (key[1:] >= key[:-1]).all() else np.argsort(key)
    ordered = key[rows]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        tied = np.flatnonzero(np.concatenate([same, [False]]) | np.concatenate([[False], same]))
        inside = rows[tied]
        rows[tied] = inside[np.lexsort((tie[inside], key[inside]))]
    return rows


def ranks(group: np.ndarray, sequence: np.ndarray) -> np.ndarray:
    """The rank of each row in its group, from 1: int32 (n_rows,); `sequence` is the `order`."""
    rank = np.empty(len(sequence), dtype=np.int32)
    rank[sequence] = position_in_group(group[sequence]) + 1
    return rank


def group_rows(request: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct requests, ascending, and each row's position among them; `np.unique` without a
    sort.
    """
    if len(request) == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    low, high = int(request.min()), int(request.max())
    if high - low > 8 * len(request) + 100_000:
        return np.unique(request, return_inverse=True)
    present = np.zeros(high - low + 1, dtype=bool)
    present[request - low] = True
    return np.flatnonzero(present) + low, (np.cumsum(present) - 1)[request - low]


def best(score: np.ndarray, tie: Callable[[np.ndarray], np.ndarray], k: int) -> np.ndarray:
    """Positions of the k best scores, in no order; `tie(positions)` gives the hashes by which equal
    scores compete for the last places.
    """
    if len(score) <= k:
        return np.arange(len(score))
    threshold = np.partition(score, len(score) - k)[len(score) - k]
    (chosen,) = (score >= threshold).nonzero()
    if len(chosen) > k:
        level = score[chosen] == threshold
        above, tied = chosen[~level], chosen[level]
        tied = tied[np.argsort(tie(tied), kind="stable")[: k - len(above)]]
        chosen = np.concatenate([above, tied])
    return chosen


def select_top(score: np.ndarray, tie: Callable[[np.ndarray], np.ndarray], k: int) -> np.ndarray:
    """Positions of the k best scores, best first; `tie(positions)` gives the hashes by which equal
    scores are ordered.
    """
    chosen = best(score, tie, k)
    return chosen[np.lexsort((tie(chosen), -score[chosen]))]


def position_in_group(group: np.ndarray) -> np.ndarray:
    """Each row's position among the rows of its group, from 0: int64 (n_rows,); `group` ascends."""
    return np.arange(len(group)) - np.searchsorted(group, group)


def pair_key(request: np.ndarray, item: np.ndarray, n_items: int) -> np.ndarray:
    """One number for each (request, item) row, ascending by request, then item: int64 (n_rows,)."""
    return request.astype(np.int64) * n_items + item


def spaced(values: np.ndarray, n: int) -> np.ndarray:
    """At most `n` of the values, evenly spaced."""
    if len(values) <= n:
        return values
    return values[np.linspace(0, len(values) - 1, n).astype(np.int64)]


TYPES = {
    REQUEST: pl.Int64,
    ITEM: pl.Int32,
    "truth": pl.Boolean,
    SCORE: pl.Float32,
    RANK: pl.Int32,
    CHANNEL: pl.UInt32,
    "wins": pl.Float64,
}


def check_array(
    who: str, value: Any, sizes: Mapping[str, int | None], what: str = ""
) -> np.ndarray:
    """What code outside the package returned, as an array of numbers of the shape that is needed.

    Args:
        who: the class that returned it.
        sizes: the name of each axis and its size; None: any.
        what: what the numbers are of, for the error.

    Raises:
        KarmafunnelError: for another shape, and for what are no numbers.
    """
    try:
        found = np.asarray(value)
    except ValueError:  # lists of different lengths
        found = np.asarray(None)
    shape = f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"
    fits = found.ndim == len(sizes) and found.dtype.kind in "biuf"
    for size, wanted in zip(found.shape, sizes.values(), strict=False):
        fits = fits and wanted in (size, None)
    if fits:
        return found
    known = {size: name for name, size in sizes.items() if size is not None}
    axes = [f"{known.get(size, size)}" for size in found.shape]
    told = f"({', '.join(axes)}{',' * (len(axes) == 1)})"
    if found.dtype.kind not in "biuf":
        told = f"a {type(value).__name__}" if found.ndim == 0 else f"{told} of {found.dtype}"
    elif len(found) if found.ndim else 0:
        first, size = next(iter(sizes.items()))
        told += f" where {first} is {size:,}" if size not in (None, len(found)) else ""
    raise KarmafunnelError(who, needs=f"an array {shape} {what}".rstrip(), found=told)


def rows_frame(**columns: Any) -> pl.DataFrame:
    """A frame of columns in their fixed types, also where there is no row."""
    return pl.DataFrame([pl.Series(name, values, TYPES[name]) for name, values in columns.items()])


def no_rows() -> pl.DataFrame:
    """No tracked rows: request, item, truth, score, channel."""
    return rows_frame(request=[], item=[], truth=[], score=[], channel=[])


def with_tracked(slate: pl.DataFrame, tracked: pl.DataFrame) -> pl.DataFrame:
    """The candidates, then the tracked rows, with the column `tracked` to tell them apart."""
    columns = [c for c in slate.columns if c in tracked.columns]
    parts = []
    for frame, is_tracked in ((slate, False), (tracked, True)):
        parts.append(frame.select(*columns, pl.lit(is_tracked).alias(TRACKED)))
    return pl.concat(parts)
