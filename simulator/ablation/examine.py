"""Diagnostics of a cell: cost and properties of its embedding, and JS@50 of every request with a
relevant item.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import numpy as np
import polars as pl

from ...log import Log
from ...models import diagnostics as diagnose
from ...models.embedders import Embedding
from ...stages.frame import spaced
from ...stages.stage import FittedFunnel
from ..measure.run import Run

TOP = 50  # retrieved items per request for JS@50 and their popularity
PROBE = 6000  # requests of W2a on which the probe of readability is fitted
TIMED = 512  # requests for timing the embedding, three times where it takes no longer than SLOW
SLOW = 5.0  # seconds


def subject(fitted: FittedFunnel, own: Collection[str]) -> Embedding | None:
    """The embedding that a row examines.

    It is the first of the row's `own` embedders that the funnel reads or, without own embedders,
    the only embedder that the funnel reads. None where the funnel reads no embedder, or several
    that all rows share.
    """
    read = dict.fromkeys(name for stage in fitted.stages for name in stage.stage.embedders())
    for name in read:
        if name in own or (not own and len(read) == 1):
            return fitted.context.embeddings[name]
    return None


def examine(
    embedding: Embedding | None,
    fitted: FittedFunnel,
    log: Log,
    run: Run,
    window: str,
    shared: dict[Any, Any],
) -> tuple[dict[str, Any], pl.DataFrame, np.ndarray | None]:
    """Examine the subject of a cell.

    Args:
        embedding: the subject; None for a row without one.
        run: the cell's Run.
        window: the window whose requests the attention map covers.
        shared: a cache of results that rows of one seed have in common, filled here.

    Returns:
        Diagnostics by name, JS@50 (request_id, js), and the attention map where the model has one.
    """
    key = fitted.keys[0], embedding
    if key not in shared:
        shared[key] = figures(embedding, log, run)
    if embedding is not None and ("attention", embedding) not in shared:
        shared["attention", embedding] = embedding.attention_map(log.requests_in(window))
    return *shared[key], shared.get(("attention", embedding))


def figures(embedding: Embedding | None, log: Log, run: Run) -> tuple[dict[str, Any], pl.DataFrame]:
    """Diagnostics of the retrieved items and of the embedding by name, and JS@50 per request."""
    ledger = run.read("ledger", "request_id", "item_id", "target")
    ledger = ledger.unique("request_id", keep="first", maintain_order=True)
    requests = _row_numbers(log.request_ids, ledger["request_id"])
    target = _row_numbers(log.item_ids, ledger["item_id"])
    retrieved = _retrieved(run, log, ledger["request_id"])
    words = diagnose.word_sets(log)
    rng = np.random.default_rng(0)  # the same random items for every row: differences are paired
    pools = log.asof.eligible(requests)
    some = np.flatnonzero([len(pool) > 0 for pool in pools])  # requests with eligible items
    js = np.full(len(target), np.nan)
    if len(some):
        chosen = [pools[i] for i in some]
        js[some] = diagnose.js_at_k(words, target[some], retrieved[some], chosen, rng)
    events = log.events
    in_w1 = (log.requests["window"] == "W1").to_numpy()[events["request"].to_numpy()]
    counts = np.bincount(events["item"].to_numpy()[in_w1], minlength=log.n_items)
    rank = diagnose.popularity_rank(counts)[retrieved[retrieved >= 0]]
    facts: dict[str, Any] = {"popularity of top 50": float(rank.mean()) if len(rank) else None}
    if embedding is not None:
        cold = (ledger["target"] == "cold").to_numpy()
        facts |= vectors(embedding, log, run.label, requests, target, cold, words)
    return facts, pl.DataFrame({"request_id": ledger["request_id"], "js": js})


def _row_numbers(ids: np.ndarray, wanted: pl.Series) -> np.ndarray:
    """The row number in `ids` of each wanted id: int64 (n,)."""
    number = {one: i for i, one in enumerate(ids.tolist())}
    return np.array([number[one] for one in wanted], dtype=np.int64)


def _retrieved(run: Run, log: Log, request_ids: pl.Series) -> np.ndarray:
    """The top `TOP` items of recall for each request, padded with -1: int64 (n, TOP)."""
    slates = run.read("slates").filter(
        pl.col("stage") == run.stages[0],
        pl.col("rank") <= TOP,
        pl.col("request_id").is_in(request_ids.to_list()),
    )
    found = np.full((len(request_ids), TOP), -1, dtype=np.int64)
    request = _row_numbers(request_ids.to_numpy(), slates["request_id"])
    found[request, slates["rank"].to_numpy() - 1] = _row_numbers(log.item_ids, slates["item_id"])
    return found


def vectors(
    embedding: Embedding,
    log: Log,
    label: str,
    requests: np.ndarray,
    target: np.ndarray,
    is_cold: np.ndarray,
    words: Any,
) -> dict[str, Any]:
    """Cost and diagnostics of one embedder.

    Args:
        requests: row numbers, (n,).
        target: the first relevant item of each request, (n,).
        is_cold: whether that item was never relevant in W1, (n,) bool.
        words: the words of each item's text, see `word_sets`.
    """
    timed, seconds = requests[:TIMED], list[float]()
    while len(seconds) < 3 and sum(seconds) < SLOW:
        start = time.perf_counter()
        embedding.interests(timed)
        seconds.append(time.perf_counter() - start)
    facts: dict[str, Any] = {
        "training seconds": embedding.facts.get("seconds"),
        "fit": embedding.facts,
        "embedding µs a request": 1e6 * min(seconds) / max(len(timed), 1),
    }
    users, items = embedding.interests(requests), embedding.items()
    cold = np.flatnonzero(is_cold)
    rank = median_rank(users[cold], items, log, requests[cold], target[cold])
    facts["median rank of cold targets"] = rank
    # The probe is fitted on W2a: on W1, the embedder's training data, it would overestimate.
    truth = log.truth(label)
    in_w2a = (log.requests["window"] == "W2a").to_numpy()[truth["request"].to_numpy()]
    pairs = truth.filter(pl.Series(in_w2a, dtype=pl.Boolean))
    pairs = pairs.unique("request", keep="first", maintain_order=True)
    if pairs.height and len(requests):
        pairs = pairs.gather(spaced(np.arange(pairs.height), PROBE))
        probe = embedding.interests(pairs["request"].to_numpy())
        item = pairs["item"].to_numpy()
        facts["readable, nats"] = diagnose.readable(words, probe, item, users, target)
    return facts | embedding.diagnose(requests, users)


def median_rank(
    users: np.ndarray, items: np.ndarray, log: Log, requests: np.ndarray, target: np.ndarray
) -> float | None:
    """Median rank of the targets among the eligible items by inner product, ties one half.

    Args:
        users: user embeddings, (n, d).
        items: item embeddings, (n_items, d).
        requests, target: row numbers, (n,). A target that is not eligible is left out.
    """
    ranks = []
    for vector, item, pool in zip(users, target, log.asof.eligible(requests), strict=True):
        scores = items[pool] @ vector
        for own in scores[pool == item]:  # from the same product, so that rounding is the same
            ranks.append(1 + float((scores > own).sum()) + 0.5 * float((scores == own).sum() - 1))
    return float(np.median(ranks)) if ranks else None
