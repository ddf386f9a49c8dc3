"""What a cell says beside its Run: cost, shape and meaning of the embedding that is its subject,
and JS@50 of every request with a truth.
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
from ...stages.stage import FittedFunnel
from ..measure.run import Run

TOP = 50  # of JS@50 and of the popularity of what is retrieved
PROBE = 6000  # requests of W2a that the probe of readability learns from
TIMED = 512  # requests whose embedding is timed


def subject(fitted: FittedFunnel, own: Collection[str]) -> Embedding | None:
    """The embedding that a row is about: of its `own` embedders the first that the funnel reads;
    without own ones the only one read.

    None where that is a matter of opinion: of several that all rows share, none is what a row
    differs by.
    """
    read = dict.fromkeys(name for stage in fitted.stages for name in stage.stage.embedders())
    named = [name for name in read if name in own] or (
        list(read) if len(read) == 1 and not own else []
    )
    return fitted.context.embeddings[named[0]] if named else None


def examine(
    embedding: Embedding | None,
    fitted: FittedFunnel,
    log: Log,
    run: Run,
    window: str,
    known: dict[Any, Any],
) -> tuple[dict[str, Any], pl.DataFrame, np.ndarray | None]:
    """Figures, JS@50 of each request, and the attention map where there is one; what rows of one
    seed share is worked out once (`known`).
    """
    if (fitted.keys[0], embedding) not in known:
        known[fitted.keys[0], embedding] = figures(embedding, log, run)
    if embedding is not None and ("attention", embedding) not in known:
        known["attention", embedding] = embedding.attention_map(log.requests_in(window))
    return *known[fitted.keys[0], embedding], known.get(("attention", embedding))


def figures(embedding: Embedding | None, log: Log, run: Run) -> tuple[dict[str, Any], pl.DataFrame]:
    slates = run.read("slates").filter((pl.col("stage") == run.stages[0]) & (pl.col("rank") <= TOP))
    index = {item: i for i, item in enumerate(log.item_ids.tolist())}
    row_of = {request: i for i, request in enumerate(log.request_ids.tolist())}
    ledger = run.read("ledger", "request_id", "item_id", "target").unique(
        "request_id", keep="first", maintain_order=True
    )
    requests = np.array([row_of[r] for r in ledger["request_id"]], dtype=np.int64)
    target = np.array([index[i] for i in ledger["item_id"]], dtype=np.int64)
    place = {r: i for i, r in enumerate(ledger["request_id"].to_list())}
    slate = np.full((len(requests), TOP), -1, dtype=np.int64)
    rows = slates.filter(pl.col("request_id").is_in(list(place)))
    at = np.array([place[r] for r in rows["request_id"]], dtype=np.int64)
    slate[at, rows["rank"].to_numpy() - 1] = [index[i] for i in rows["item_id"]]

    words = diagnose.word_sets(log)
    rng = np.random.default_rng(0)  # the same random items for every row: differences are paired
    pools = log.asof.eligible(requests)
    # nothing eligible: nothing to compare with
    some = np.flatnonzero([len(pool) > 0 for pool in pools])
    js = np.full(len(target), np.nan)
    if len(some):
        js[some] = diagnose.js_at_k(words, target[some], slate[some], [pools[i] for i in some], rng)
    events = log.events
    in_w1 = (log.requests["window"] == "W1").to_numpy()[events["request"].to_numpy()]
    counts = np.bincount(events["item"].to_numpy()[in_w1], minlength=log.n_items)
    rank = diagnose.popularity_rank(counts)
    facts: dict[str, Any] = {
        "popularity of top 50": float(rank[slate[slate >= 0]].mean())
        if (slate >= 0).any()
        else None
    }
    if embedding is not None:
        cold = (ledger["target"] == "cold").to_numpy()
        facts |= vectors(embedding, log, run.label, requests, target, cold, words)
    similarity = pl.DataFrame({"request_id": ledger["request_id"], "js": js})
    return facts, similarity


def vectors(
    embedding: Embedding,
    log: Log,
    label: str,
    requests: np.ndarray,
    target: np.ndarray,
    is_cold: np.ndarray,
    words: Any,
) -> dict[str, Any]:
    """Cost and diagnostics of one embedder over requests with their first truth item; `is_cold`
    (n,) as the ledger has it.
    """
    facts: dict[str, Any] = {
        "training seconds": embedding.facts.get("seconds"),
        "fit": embedding.facts,
    }
    timed = requests[:TIMED]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        embedding.interests(timed)
        seconds.append(time.perf_counter() - start)
    facts["embedding µs a request"] = 1e6 * min(seconds) / max(len(timed), 1)
    z, e = embedding.interests(requests), embedding.items()
    cold = np.flatnonzero(is_cold)
    facts["median rank of cold targets"] = median_rank(
        z[cold], e, log, requests[cold], target[cold]
    )
    # of W2a: what the embedder was fitted on would flatter one that learnt it by heart
    truth = log.truth(label)
    of_w2a = (log.requests["window"] == "W2a").to_numpy()[truth["request"].to_numpy()]
    pairs = truth.filter(pl.Series(of_w2a, dtype=pl.Boolean)).unique(
        "request", keep="first", maintain_order=True
    )
    pairs = (
        pairs.gather(np.linspace(0, pairs.height - 1, min(PROBE, pairs.height)).astype(np.int64))
        if pairs.height
        else pairs
    )
    if pairs.height and len(requests):
        z_probe = embedding.interests(pairs["request"].to_numpy())
        facts["readable, nats"] = diagnose.readable(
            words, z_probe, pairs["item"].to_numpy(), z, target
        )
    return facts | embedding.diagnose(requests)


def median_rank(
    z: np.ndarray, e: np.ndarray, log: Log, requests: np.ndarray, target: np.ndarray
) -> float | None:
    """Median rank of targets among the eligible items by inner product, ties one half."""
    ranks = []
    for vector, item, pool in zip(z, target, log.asof.eligible(requests), strict=True):
        scores = e[pool] @ vector
        # none where it is not eligible; of the same product, which rounds as the others do
        for own in scores[pool == item]:
            ranks.append(1 + float((scores > own).sum()) + 0.5 * float((scores == own).sum() - 1))
    return float(np.median(ranks)) if ranks else None
