"""Arithmetic of the measures on NumPy arrays, independent of Runs and stages.

Ranked lists are given by their relevant items: `group` (n,) is the list of each item, from 0 to
n_groups - 1 in any order, and `rank` (n,) its rank in that list, from 1, or `LOST` if it is not in
it. Functions return one value per list: float64 (n_groups,), NaN for a list without relevant items.

Definitions: `docs/reference/measures.md`. They equal `success`, `recall`, `ndcg_cut` and
`recip_rank` with a cutoff of trec_eval, also for more relevant items than k: recall divides by all
of them, and the ideal list of nDCG has the best min(relevant items, k).
"""

from __future__ import annotations

import numpy as np

from ...errors import KarmafunnelError

LOST = np.iinfo(np.int64).max  # rank of a relevant item that is not in the list
PERSISTENCE = 0.9  # of rank-biased overlap: probability of looking one place deeper


# -- ranked lists ----------------------------------------------------------------------------------


def _defined(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.where(truth > 0, values, np.nan)


def _discounts(k: int) -> np.ndarray:
    """Sums of the first 0, 1, .. k discounts 1 / log2(1 + rank): float64 (k + 1,)."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])


def hits(
    group: np.ndarray, rank: np.ndarray, n_groups: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Relevant items of each list: those in the top k, and all; int64 (n_groups,) each."""
    return np.bincount(group[rank <= k], minlength=n_groups), np.bincount(group, minlength=n_groups)


def hit_rate(group: np.ndarray, rank: np.ndarray, n_groups: int, k: int) -> np.ndarray:
    """HR@k of each list: 1 if a relevant item is in the top k, else 0."""
    found, truth = hits(group, rank, n_groups, k)
    return _defined((found > 0).astype(np.float64), truth)


def recall(group: np.ndarray, rank: np.ndarray, n_groups: int, k: int) -> np.ndarray:
    """Recall@k of each list: relevant items in the top k / relevant items."""
    found, truth = hits(group, rank, n_groups, k)
    return _defined(found / np.maximum(truth, 1), truth)


def reciprocal_rank(
    group: np.ndarray, rank: np.ndarray, n_groups: int, k: int = LOST - 1
) -> np.ndarray:
    """MRR@k of each list: 1 / rank of the first relevant item, 0 if it is not in the top k."""
    best = np.full(n_groups, LOST, dtype=np.int64)
    np.minimum.at(best, group, rank)
    truth = np.bincount(group, minlength=n_groups)
    return _defined(np.where(best <= k, 1.0 / best, 0.0), truth)


def ndcg(
    group: np.ndarray, rank: np.ndarray, n_groups: int, k: int, gain: np.ndarray | None = None
) -> np.ndarray:
    """nDCG@k: gains (1, or `gain` (n,) >= 0) discounted by log2(1 + rank), over the same sum of the
    ideal order.

    The ideal order is by gain, descending. A list whose gains sum to 0 is undefined.
    """
    inside = rank <= k
    discount = 1.0 / np.log2(1.0 + np.where(inside, rank, 1))
    if gain is None:
        truth = np.bincount(group, minlength=n_groups)
        dcg = np.bincount(group[inside], weights=discount[inside], minlength=n_groups)
        ideal = _discounts(int(min(truth.max(initial=0), k)))[np.minimum(truth, k)]
    else:
        dcg = np.bincount(group, weights=gain * discount * inside, minlength=n_groups)
        ideal = ideal_dcg(group, gain, n_groups, k)
    return _defined(dcg / np.where(ideal > 0, ideal, 1.0), ideal)


def ideal_ranks(group: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Rank of every item in its list's order by gain, descending: int64 (n,), the row order
    breaking ties.
    """
    order = np.lexsort((-gain, group))
    sizes = np.bincount(group) if len(group) else np.zeros(0, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    ranks = np.empty(len(group), dtype=np.int64)
    ranks[order] = np.arange(len(group)) - starts[group[order]] + 1
    return ranks


def ideal_dcg(group: np.ndarray, gain: np.ndarray, n_groups: int, k: int) -> np.ndarray:
    """DCG@k of every list's ideal order, that is by gain: float64 (n_groups,)."""
    rank = ideal_ranks(group, gain)
    return np.bincount(
        group, weights=np.where(rank <= k, gain / np.log2(1.0 + rank), 0.0), minlength=n_groups
    )


def money_inside(
    group: np.ndarray, rank: np.ndarray, money: np.ndarray, n_groups: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The two sums of GMV-HR@k of each list: money of relevant items in the top k, and of all."""
    inside = np.bincount(group, weights=money * (rank <= k), minlength=n_groups)
    return inside, np.bincount(group, weights=money, minlength=n_groups)


def winsorised(money: np.ndarray, cap: float | None = None) -> np.ndarray:
    """Money limited to `cap`, by default its 99th percentile (linear); NaN stays NaN."""
    known = money[~np.isnan(money)]
    if len(known) == 0:
        return money
    return np.minimum(money, np.percentile(known, 99) if cap is None else cap)


# -- two lists of the same request -----------------------------------------------------------------
# For two lists of k items each: `group` (n,) is the request of each item in both, `depth` (n,) the
# larger of its two ranks.


def overlap(group: np.ndarray, depth: np.ndarray, n_groups: int, k: int) -> np.ndarray:
    """overlap@k: share of the top k of one list that is in the top k of the other."""
    return np.bincount(group[depth <= k], minlength=n_groups) / k


def rank_biased_overlap(
    group: np.ndarray, depth: np.ndarray, n_groups: int, k: int, p: float = PERSISTENCE
) -> np.ndarray:
    """RBO@k, extrapolated: beyond k the lists are assumed to agree as they do at k, so that equal
    lists have 1 (Webber et al. 2010, eq. 32).

    X_d items are common to both at depth d: (1 - p) sum_{d <= k} p^(d-1) X_d / d + p^k X_k / k.
    """
    at = np.arange(1, k + 1)
    # An item that both lists have from depth d on adds 1 to each X from d to k.
    adds = np.cumsum(((1 - p) * p ** (at - 1.0) / at)[::-1])[::-1] + p**k / k
    inside = depth <= k
    return np.bincount(group[inside], weights=adds[depth[inside] - 1], minlength=n_groups)


# -- expected values under a random order ----------------------------------------------------------
# `eligible` (n_groups,): items that are ordered; `reachable`: relevant items among them; `truth`:
# all relevant items.


def random_hit_rate(
    eligible: np.ndarray, reachable: np.ndarray, truth: np.ndarray, k: int
) -> np.ndarray:
    """Expected HR@k: 1 - C(E - T, k) / C(E, k), as a product over the T relevant items."""
    miss = np.ones(len(eligible))
    for i in range(int(reachable.max(initial=0))):
        some = np.flatnonzero(reachable > i)
        left = eligible[some] - i
        miss[some] *= np.maximum(left - k, 0) / left
    return _defined(1.0 - miss, truth)


def random_recall(
    eligible: np.ndarray, reachable: np.ndarray, truth: np.ndarray, k: int
) -> np.ndarray:
    """Expected Recall@k: a reachable item is in the top k with probability min(k, E) / E."""
    return _defined(reachable / np.maximum(truth, 1) * random_share(eligible, k), truth)


def random_share(eligible: np.ndarray, k: int) -> np.ndarray:
    """Chance that an eligible item is in a random top k: min(k, E) / E; 0 if none is eligible."""
    return np.minimum(k, eligible) / np.maximum(eligible, 1)


def random_discount(eligible: np.ndarray, k: int) -> np.ndarray:
    """Expected discount of an eligible item, 0 beyond k: mean of 1 / log2(1 + rank) over the E
    ranks.
    """
    longest = int(min(k, eligible.max(initial=0)))
    return _discounts(longest)[np.minimum(k, eligible)] / np.maximum(eligible, 1)


def random_ndcg(
    eligible: np.ndarray, reachable: np.ndarray, truth: np.ndarray, k: int
) -> np.ndarray:
    """Expected nDCG@k with gains of 1."""
    ideal = _discounts(int(min(truth.max(initial=0), k)))[np.minimum(truth, k)]
    return _defined(
        reachable * random_discount(eligible, k) / np.where(ideal > 0, ideal, 1.0), truth
    )


def random_reciprocal_rank(
    eligible: np.ndarray, reachable: np.ndarray, truth: np.ndarray, k: int
) -> np.ndarray:
    """Expected MRR@k: sum over r of P(first relevant item has rank r) / r.

    P(first relevant item has a rank above r) = C(E - T, r) / C(E, r).
    """
    width = int(reachable.max(initial=0)) + 1
    pairs, back = np.unique(eligible.astype(np.int64) * width + reachable, return_inverse=True)
    many, few = np.divmod(pairs, width)
    alive, expected = np.ones(len(pairs)), np.zeros(len(pairs))
    for r in range(1, int(min(k, many.max(initial=0))) + 1):
        left = many - r + 1
        after = np.where(left > 0, alive * np.maximum(left - few, 0) / np.maximum(left, 1), 0.0)
        expected += np.where(few > 0, alive - after, 0.0) / r
        alive = after
    return _defined(expected[back], truth)


# -- scores and labels -----------------------------------------------------------------------------


def _checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores), np.asarray(labels).astype(bool)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise KarmafunnelError(
            "AUC",
            needs="scores and labels of one length",
            found=f"shapes {scores.shape} and {labels.shape}",
        )
    if len(scores) and not np.isfinite(scores).all():
        raise KarmafunnelError(
            "AUC", needs="finite scores", found=f"{int((~np.isfinite(scores)).sum())} that are not"
        )
    return scores, labels


def placements(
    scores: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The places of positive rows among the negative rows.

    Returns:
        Positive rows, negative rows sorted by score, and for each positive row the number of
        negative rows with a lower score and with a lower or equal score.
    """
    scores, labels = _checked(scores, labels)
    positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
    negative = negative[np.argsort(scores[negative], kind="stable")]
    among = scores[negative]
    below = np.searchsorted(among, scores[positive], side="left")
    return positive, negative, below, np.searchsorted(among, scores[positive], side="right")


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Probability that a positive row scores above a negative one, ties one half; exact. NaN if a
    class is missing.

    Args:
        weights: of rows, 0 or more: (n,); the weight of a pair is the product of its two.
    """
    positive, negative, below, through = placements(scores, labels)
    pairs = len(positive) * len(negative)
    if weights is None:
        return float((below.sum() + through.sum()) / (2 * pairs)) if pairs else np.nan
    weights = np.asarray(weights)
    return weighted_auc(weights[positive], weights[negative], below, through)


def weighted_auc(
    positive: np.ndarray, negative: np.ndarray, below: np.ndarray, through: np.ndarray
) -> float:
    """AUC from `placements` and the weights of its positive and its sorted negative rows."""
    before = np.zeros(len(negative) + 1)
    np.cumsum(negative, out=before[1:])
    pairs = float(positive.sum(dtype=np.float64)) * before[-1]
    return (
        float(positive @ (before[below] + before[through])) / (2.0 * pairs) if pairs > 0 else np.nan
    )


def _dense(values: np.ndarray) -> np.ndarray:
    """Order-preserving uint32 keys: float32 by its bits (-0.0 as 0.0), anything else by its rank
    among distinct values.
    """
    if values.dtype in (np.float16, np.float32):
        bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
        return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))
    return np.unique(values, return_inverse=True)[1].astype(np.uint32)


def auc_by_group(
    groups: np.ndarray, scores: np.ndarray, labels: np.ndarray, n_groups: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact AUC of every group: (auc float64, NaN where one class is missing; rows int64; positives
    int64), each (n_groups,).

    `groups` (n,) are numbers from 0, in any order. Group, score and label are packed into one
    64-bit key and sorted once; counts are integers until the last division. Raises KarmafunnelError
    for NaN scores or more than 2^31 groups.
    """
    scores, labels = _checked(scores, labels)
    groups = np.asarray(groups)
    if len(groups) != len(scores):
        raise KarmafunnelError(
            "gAUC",
            needs="one group a score",
            found=f"{len(groups)} groups and {len(scores)} scores",
        )
    n_groups = int(groups.max(initial=-1)) + 1 if n_groups is None else n_groups
    if len(groups) and (groups.min() < 0 or n_groups >= 1 << 31):
        raise KarmafunnelError(
            "gAUC", needs="groups numbered 0 .. 2^31", found=f"{groups.min()} .. {groups.max()}"
        )
    rows = np.bincount(groups, minlength=n_groups)
    positives = np.bincount(groups[labels], minlength=n_groups)
    key = groups.astype(np.uint64)
    key <<= np.uint64(32)
    key |= _dense(scores)
    key <<= np.uint64(1)
    key |= labels
    key.sort()
    positive = np.flatnonzero(key & np.uint64(1))
    starts = np.concatenate([[0], np.cumsum(rows - positives)])  # negatives before each group
    owner = (key[positive] >> np.uint64(33)).astype(np.int64)
    # Negatives sort before positives of the same score: those before a positive row are below it or
    # tied with it.
    through = positive - np.arange(len(positive)) - starts[owner]
    # Of a tied block [first, last], the negatives strictly below are those before its first row.
    first = np.concatenate([[True], key[1:] >> np.uint64(1) != key[:-1] >> np.uint64(1)])[
        : len(key)
    ]
    head = (
        np.maximum.accumulate(np.where(first, np.arange(len(key)), 0))[positive]
        if len(key)
        else positive
    )
    seen = np.searchsorted(positive, head)  # positive rows before the block
    twice = through + (head - seen - starts[owner])
    wins = np.concatenate([[0], np.cumsum(twice)])[np.concatenate([[0], np.cumsum(positives)])]
    pairs = positives * (rows - positives)
    return np.where(pairs > 0, np.diff(wins) / np.maximum(2 * pairs, 1), np.nan), rows, positives


def group_weights(rows: np.ndarray, positives: np.ndarray, weight: str) -> np.ndarray:
    """Weight of each group: its rows (`exposures`), its `positives`, or 1 (`none`)."""
    if weight not in ("exposures", "positives", "none"):
        raise KarmafunnelError(
            f"gAUC: weight must be exposures, positives or none, found {weight!r}"
        )
    return (
        rows
        if weight == "exposures"
        else positives
        if weight == "positives"
        else np.ones_like(rows)
    )


def grouped_auc(
    groups: np.ndarray, scores: np.ndarray, labels: np.ndarray, weight: str = "exposures"
) -> float:
    """gAUC: weighted mean of the groups' exact AUC; single-class groups are left out. NaN where
    none is left.
    """
    values, rows, positives = auc_by_group(groups, scores, labels)
    weights = group_weights(rows, positives, weight)
    known = ~np.isnan(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else np.nan


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Natural-log loss of every row: float64 (n,); probabilities are cut at 1e-15 from 0 and 1."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-15, 1 - 1e-15)
    return -np.where(np.asarray(labels).astype(bool), np.log(p), np.log1p(-p))


def logloss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean natural-log loss."""
    return float(log_losses(probabilities, labels).mean()) if len(labels) else np.nan


def mass_bins(probabilities: np.ndarray, bins: int = 15) -> np.ndarray:
    """Bins of equal mass: int64 (n,) in 0 .. bins-1; edges are quantiles, equal probabilities share
    a bin.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if len(p) == 0:
        return np.zeros(0, dtype=np.int64)
    edges = np.quantile(p, np.arange(1, bins) / bins)
    return np.searchsorted(np.unique(edges), p, side="right")


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: mean over rows of |mean label - mean probability| of the row's
    bin; 15 bins of equal mass.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if len(p) == 0:
        return np.nan
    gap = np.bincount(
        mass_bins(p, bins), weights=p - np.asarray(labels).astype(np.float64), minlength=bins
    )
    return float(np.abs(gap).sum() / len(p))
