"""How fast the measures are, beside scikit-learn's AUC group by group and beside ranx; every ratio
from one run of this file.

    python -m karmafunnel.benchmarks.speed.bench_measures

Both sides get the same data and must agree within 1e-9, or nothing is printed. ranx compiles in a
warm-up that is not timed.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...simulator.measure import metrics
from ...simulator.measure.metrics import LOST

K = 50


def seconds(what: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """The shortest of some runs, and what came back."""
    best, value = np.inf, None
    for _ in range(repeats):
        start = time.perf_counter()
        value = what()
        best = min(best, time.perf_counter() - start)
    return best, value


def agree(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    gap = float(np.abs(ours - theirs).max())
    if not gap < 1e-9:
        raise KarmafunnelError(f"bench_measures: {what} differs by {gap}, needs less than 1e-9")


def grouped_auc(exposures: int, sample: int, seed: int = 0) -> None:
    """gAUC of 5M exposures in lists of about 10, one click in ten, beside a roc_auc_score loop."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    groups = rng.integers(0, exposures // 10, exposures)
    scores = rng.standard_normal(exposures).astype(np.float32)
    labels = rng.random(exposures) < 0.1
    ours, (auc, _, _) = seconds(lambda: metrics.auc_by_group(groups, scores, labels))
    both = np.flatnonzero(~np.isnan(auc))
    # The loop gets its groups cut out beforehand, and only those that hold both classes.
    chosen = rng.choice(both, min(sample, len(both)), replace=False)
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups, minlength=len(auc))
    ends = np.cumsum(sizes)
    cut = []
    for end, n in zip(ends[chosen], sizes[chosen], strict=True):
        rows = order[end - n : end]
        cut.append((labels[rows], scores[rows]))
    loop, theirs = seconds(lambda: np.array([roc_auc_score(y, s) for y, s in cut]), repeats=1)
    agree(auc[chosen], theirs, "gAUC")
    whole = loop * len(both) / len(chosen)
    print(f"gAUC, {exposures:,} exposures, {len(both):,} groups of both classes")
    print(f"  ours (all exposures, one sort)            {ours:10.2f} s")
    print(
        f"  scikit-learn, {len(chosen):,} groups timed: {loop:.1f} s; all {whole:10.1f} s (scaled)"
    )
    print(f"  ratio {whole / ours:,.0f}; equal within 1e-9 on the groups timed")


def ranked_lists(requests: int, depth: int, seed: int = 0) -> None:
    """HR, Recall, nDCG and MRR at 50 of random lists, one to five truth items a request, against
    ranx.
    """
    import ranx
    from ranx.metrics import hit_rate, ndcg, recall, reciprocal_rank

    rng = np.random.default_rng(seed)
    pool = 5 * depth
    items = np.concatenate([rng.choice(pool, depth, replace=False) for _ in range(requests)])
    many = rng.integers(1, 6, requests)
    truth = np.concatenate([rng.choice(pool, n, replace=False) for n in many])
    run = pl.DataFrame(
        {
            "q_id": [f"q{q:07d}" for q in np.repeat(np.arange(requests), depth)],
            "doc_id": [f"d{d}" for d in items],
            "score": np.tile(np.arange(depth, 0, -1).astype(np.float64), requests),
        }
    ).sample(fraction=1.0, shuffle=True, seed=seed)
    qrels = pl.DataFrame(
        {
            "q_id": [f"q{q:07d}" for q in np.repeat(np.arange(requests), many)],
            "doc_id": [f"d{d}" for d in truth],
        }
    )
    qrels = qrels.with_columns(pl.lit(1, dtype=pl.Int64).alias("score"))

    def convert() -> tuple[np.ndarray, np.ndarray, int]:
        """From frames of ids and scores to the ranks of the truth."""
        ranks = run.select(
            "q_id",
            "doc_id",
            pl.col("score").rank("ordinal", descending=True).over("q_id").alias("rank"),
        )
        found = qrels.join(ranks, on=["q_id", "doc_id"], how="left", maintain_order="left")
        group = found["q_id"].rle_id().to_numpy().astype(np.int64)
        return group, found["rank"].cast(pl.Int64).fill_null(LOST).to_numpy(), requests

    def ours(lists: tuple[np.ndarray, np.ndarray, int]) -> list[np.ndarray]:
        return [
            of(*lists, K)
            for of in (metrics.hit_rate, metrics.recall, metrics.ndcg, metrics.reciprocal_rank)
        ]

    group, grid = np.repeat(np.arange(requests), many), items.reshape(requests, depth)

    def find() -> tuple[np.ndarray, np.ndarray, int]:
        """From lists of item numbers in rank order to the ranks of the truth: what ranx does inside
        each of its four measures.
        """
        same = grid[group] == truth[:, None]
        return group, np.where(same.any(axis=1), same.argmax(axis=1) + 1, LOST), requests

    as_objects = {"q_id": object, "doc_id": object}
    run_pandas, qrels_pandas = (
        run.to_pandas().astype(as_objects),
        qrels.to_pandas().astype(as_objects),
    )

    def convert_theirs() -> tuple[Any, Any]:
        theirs = ranx.Qrels.from_df(qrels_pandas), ranx.Run.from_df(run_pandas)
        for made in theirs:
            made.sort()
        return theirs[0].to_typed_list(), theirs[1].to_typed_list()

    def theirs(lists: tuple[Any, Any]) -> list[np.ndarray]:
        return [of(*lists, K) for of in (hit_rate, recall, ndcg, reciprocal_rank)]

    small = ranx.Qrels({"q": {"d": 1}}), ranx.Run({"q": {"d": 1.0, "e": 0.5}})  # compiles
    ranx.evaluate(*small, [f"{name}@{K}" for name in ("hit_rate", "recall", "ndcg", "mrr")])
    theirs(convert_theirs())

    time_convert, lists = seconds(convert)
    time_find, found = seconds(find)
    if not np.array_equal(found[1], lists[1]):
        raise KarmafunnelError("bench_measures: the two ways to find the truth differ")
    time_ours, values = seconds(lambda: ours(lists))
    time_their_convert, their_lists = seconds(convert_theirs, repeats=1)
    time_theirs, their_values = seconds(lambda: theirs(their_lists))
    for name, a, b in zip(("HR", "Recall", "nDCG", "MRR"), values, their_values, strict=True):
        agree(a, b, name)  # ranx orders queries by id, and the ids are padded
    print(f"HR, Recall, nDCG, MRR @{K}, {requests:,} requests x {depth} items")
    lines = (
        ("ours from a ledger's ranks, ranx from sorted lists", time_ours, time_theirs),
        ("both from sorted lists of item numbers", time_find + time_ours, time_theirs),
        (
            "both from frames of ids and scores",
            time_convert + time_ours,
            time_their_convert + time_theirs,
        ),
    )
    for what, a, b in lines:
        print(f"  {what:<52} ours {a:8.4f} s, ranx {b:8.4f} s, ratio {b / a:,.1f}")
    print("  equal within 1e-9, request by request")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--exposures", type=int, default=5_000_000)
    parser.add_argument(
        "--groups", type=int, default=20_000, help="groups that the scikit-learn loop is timed on"
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--depth", type=int, default=200)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"NumPy {np.__version__}"
    )
    grouped_auc(options.exposures, options.groups)
    ranked_lists(options.requests, options.depth)


if __name__ == "__main__":
    main()
