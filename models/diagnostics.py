"""Diagnostics of embeddings: attention sinks, geometry of the vectors, decodable words, retrieved
items [O; formulas from their sources]. Arrays in, numbers out; no model is loaded here.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from ..log import Log

PAIRS = 20_000  # pairs of rows that uniformity looks at
QUERIES = 4  # a key must be seen by so many queries before a mean over them says anything


# -- attention -------------------------------------------------------------------------------------


def received(attention: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_k = mean over queries i >= k of A[i, k] (Gu et al. 2025): (layers, B, heads, L), and
    which keys count, (B, L).

    attention (layers, B, heads, L, L), rows queries; there (B, L). A key counts where at least
    QUERIES queries see it; for the last keys of a sequence the mean is over too few.
    """
    after = torch.tril(torch.ones(attention.shape[-2:], dtype=torch.bool, device=attention.device))
    # (B, L, L): query i, key k
    pair = (there[:, :, None] & there[:, None, :] & after).to(attention.dtype)
    queries = pair.sum(dim=1)  # (B, L)
    alpha = (attention * pair[None, :, None]).sum(dim=3) / queries.clamp(min=1)[None, :, None]
    return alpha, queries >= QUERIES


def sink_rate(attention: Tensor, there: Tensor, threshold: float = 0.3) -> dict[str, float]:
    """Share of (sample, layer, head) with alpha_k > threshold at the first position, and at any
    other (Gu et al. 2025).

    A sink on the first position is normal in any trained language model and is no collapse. NaN
    where no key counts.
    """
    alpha, counts = received(attention, there)
    over = (alpha > threshold) & counts[None, :, None]
    out = {}
    for name, part in (("first", slice(0, 1)), ("others", slice(1, None))):
        samples = counts[:, part].any(dim=1)
        found = over[..., part].any(dim=-1)[:, samples]
        out[name] = float(found.float().mean()) if found.numel() else float("nan")
    return out


def column_mass_entropy(attention: Tensor, there: Tensor) -> float:
    """Entropy of where attention falls, 0 (all on one key: a "barcode" of one column) to 1
    (evenly), mean over sample, layer, head.

    The mass of a key is alpha_k, so that early keys, which more queries see, do not weigh more for
    it.
    """
    alpha, counts = received(attention, there)
    mass = alpha * counts[None, :, None]
    share = mass / mass.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum(dim=-1)
    most = counts.sum(dim=1).to(entropy.dtype)
    use = most > 1
    if not use.any():
        return float("nan")
    return float((entropy[:, use] / most[use].log()[None, :, None]).mean())


def attention_figures(attention: Tensor, there: Tensor) -> dict[str, float]:
    """Sink rates and column entropy by name, see `sink_rate` and `column_mass_entropy`."""
    sinks = sink_rate(attention, there)
    return {
        "sink rate, first": sinks["first"],
        "sink rate, others": sinks["others"],
        "column entropy": column_mass_entropy(attention, there),
    }


# -- the shape of vectors --------------------------------------------------------------------------


def effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the singular values at sum 1 (Roy & Vetterli 2007), of centred rows (n,
    d): 1 to min(n, d).
    """
    s = np.linalg.svd(x.astype(np.float64) - x.mean(axis=0, dtype=np.float64), compute_uv=False)
    p = s / max(s.sum(), 1e-30)
    p = p[p > 1e-12]
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def participation_ratio(x: np.ndarray) -> float:
    """(sum l)^2 / sum l^2 of the eigenvalues l of the covariance of rows (n, d): 1 to min(n, d).

    It counts the directions that hold most of the variance, where the effective rank counts small
    ones, too.
    """
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    variance = np.linalg.svd(centred, compute_uv=False) ** 2
    return float(variance.sum() ** 2 / max((variance**2).sum(), 1e-60))


def uniformity(x: np.ndarray, seed: int = 0) -> float:
    """log of the mean of exp(-2 |x - y|^2) over pairs of unit rows (Wang & Isola 2020): 0 all
    alike, near -4 spread out.

    All pairs up to PAIRS of them, else so many drawn by the seed.
    """
    n = len(x)
    if n < 2:
        return float("nan")
    if n * (n - 1) // 2 <= PAIRS:
        i, j = np.triu_indices(n, 1)
    else:
        rng = np.random.default_rng(seed)
        i = rng.integers(0, n, PAIRS)
        j = (i + rng.integers(1, n, PAIRS)) % n
    distance = ((x[i].astype(np.float64) - x[j]) ** 2).sum(axis=1)
    return float(np.log(np.exp(-2 * distance).mean()))


def alignment(x: np.ndarray, y: np.ndarray) -> float:
    """Mean of |x - y|^2 over aligned unit rows, a user embedding and its target (Wang & Isola
    2020): 0 to 4, lower is closer.
    """
    return float(((x.astype(np.float64) - y) ** 2).sum(axis=1).mean()) if len(x) else float("nan")


def unit(x: np.ndarray) -> np.ndarray:
    """Rows at length 1, rows of zeros and a last coordinate that is the same for all left out."""
    x = x[np.any(x != 0, axis=1)].astype(np.float64)
    if len(x) > 1 and x.shape[1] > 1 and np.ptp(x[:, -1]) < 1e-6 and abs(x[0, -1]) > 1e-3:
        x = x[:, :-1]
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def isotropy(items: np.ndarray, interests: np.ndarray) -> dict[str, float]:
    """Effective rank and uniformity of item and user embeddings, by name."""
    out = {}
    for name, x in (("items", unit(items)), ("interests", unit(interests))):
        out[f"effective rank, {name}"] = effective_rank(x) if len(x) else float("nan")
        out[f"uniformity, {name}"] = uniformity(x)
    return out


# -- semantics -------------------------------------------------------------------------------------


def word_sets(log: Log) -> sparse.csr_matrix:
    """Which words occur in each item's title, brand, category and attributes: (n_items, n_words) of
    0 and 1.
    """
    frame = log.items.select("title", "brand", "category", "attributes")
    vocabulary: dict[str, int] = {}
    columns, starts = [], [0]
    for title, brand, category, attributes in frame.iter_rows():
        text = " ".join([title or "", brand or "", *(category or []), *(attributes or [])])
        told = re.findall(r"\w+", text.lower())
        found = {vocabulary.setdefault(word, len(vocabulary)) for word in told}
        columns.extend(sorted(found))
        starts.append(len(columns))
    shape = (log.n_items, max(len(vocabulary), 1))
    return sparse.csr_matrix(
        (np.ones(len(columns), dtype=np.float32), columns, starts), shape=shape
    )


def jaccard(words: sparse.csr_matrix, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Words in both over words in either of aligned items: (n,), 0 where neither has a word."""
    both = np.asarray(words[a].multiply(words[b]).sum(axis=1)).ravel()
    size = np.asarray(words.sum(axis=1)).ravel()
    either = size[a] + size[b] - both
    return np.divide(both, either, out=np.zeros(len(both)), where=either > 0)


def js_at_k(
    words: sparse.csr_matrix,
    target: np.ndarray,
    slate: np.ndarray,
    pools: list[np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """JS@k (ours): mean Jaccard similarity of the target with the slate's items, less the same for
    as many random eligible ones.

    target (n,), slate (n, k) with -1 for no item, pools: eligible items of each row -> (n,). The
    paper's JS@50 is not defined in public.
    """
    there = slate >= 0
    row, place = np.nonzero(there)
    total = np.bincount(row, jaccard(words, target[row], slate[row, place]), len(target))
    near = total / np.maximum(there.sum(axis=1), 1)
    drawn = slate
    if pools:
        drawn = np.stack([pool[rng.integers(0, len(pool), slate.shape[1])] for pool in pools])
    chance = jaccard(words, np.repeat(target, slate.shape[1]), drawn.ravel())
    chance = chance.reshape(slate.shape).mean(axis=1)
    return np.where(there.any(axis=1), near - chance, np.nan)


def readable(
    words: sparse.csr_matrix,
    z: np.ndarray,
    target: np.ndarray,
    z_test: np.ndarray,
    target_test: np.ndarray,
    most: int = 2000,
    epochs: int = 20,
    seed: int = 0,
) -> float:
    """Semantic decodability by a probe (ours): nats a word that interests save over the words' mean
    frequencies.

    A linear softmax from z (n, d) to the words of the target's title, brand, category and
    attributes (the `most` frequent ones) is fitted on requests that the embedder was not fitted on,
    and asked about later ones. The same probe for every embedder: it needs no decoder of its own.
    Higher is more readable.
    """
    frequent = np.argsort(-np.asarray(words[target].sum(axis=0)).ravel(), kind="stable")[:most]
    bags = words[:, frequent]
    sizes = np.asarray(bags.sum(axis=1)).ravel()
    keep, keep_test = sizes[target] > 0, sizes[target_test] > 0
    if keep.sum() < 10 or not keep_test.any():
        return float("nan")
    x, y = torch.from_numpy(z[keep]).float(), target[keep]
    generator = torch.Generator().manual_seed(seed)
    share = np.asarray(bags[y].multiply(1 / sizes[y][:, None]).sum(axis=0)).ravel() + 1e-3
    prior = torch.from_numpy(np.log(share / share.sum())).float()
    weight = torch.zeros(x.shape[1], len(frequent), requires_grad=True)
    optimiser = torch.optim.Adam([weight], lr=0.05)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator).numpy()
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - epoch / epochs)
        for start in range(0, len(order), 1024):
            part = order[start : start + 1024]
            bag = torch.from_numpy(bags[y[part]].toarray() / sizes[y[part]][:, None]).float()
            loss = -(bag * F.log_softmax(x[part] @ weight + prior, dim=1)).sum(
                dim=1
            ).mean() + 1e-4 * (weight**2).sum() / len(prior)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.inference_mode():
        saved = 0.0
        rows = np.flatnonzero(keep_test)
        for start in range(0, len(rows), 1024):
            part = rows[start : start + 1024]
            bag = torch.from_numpy(
                bags[target_test[part]].toarray() / sizes[target_test[part]][:, None]
            ).float()
            log_p = F.log_softmax(torch.from_numpy(z_test[part]).float() @ weight + prior, dim=1)
            saved += float((bag * (log_p - prior)).sum())
    return saved / len(rows)


# -- what is retrieved -----------------------------------------------------------------------------


def popularity_rank(counts: np.ndarray) -> np.ndarray:
    """Share of the items that are chosen less often, ties one half, from counts (n_items,): 0
    (unpopular) to 1 (most popular).
    """
    ordered = np.sort(counts)
    below, upto = np.searchsorted(ordered, counts), np.searchsorted(ordered, counts, side="right")
    return (below + upto) / (2 * len(counts))


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds of values with the same name; values that are not numbers are dropped."""
    names = dict.fromkeys(name for part in parts for name in part)
    out = {}
    for name in names:
        values = [part[name] for part in parts if isinstance(part.get(name), (int, float))]
        if values:
            out[name] = float(np.mean(values))
    return out
