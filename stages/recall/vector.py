"""Recall by vectors: the nearest items to a user embedding, by exact or approximate search."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl

from ...bounds import check_fits, needs
from ...errors import KarmafunnelError
from ...typed import Typed
from ..context import Context
from ..frame import ITEM, REQUEST, rows_frame, select_top
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage
from .proposals import tie_of


@dataclass(frozen=True, repr=False)
class Flat(Typed):
    """Exact search."""

    def size(self, d: int, n: int) -> float:
        """Bytes of the index of n vectors."""
        return 0.0


@dataclass(frozen=True, repr=False)
class IVF(Typed):
    """Inverted lists: `nlist` cells, `nprobe` of them visited."""

    nlist: int = 256
    nprobe: int = 16

    def __post_init__(self) -> None:
        needs(self, "nlist", "nprobe")

    def description(self, d: int, n: int) -> str:
        return f"IVF{min(self.nlist, max(1, n // 39))},Flat"

    def size(self, d: int, n: int) -> float:
        """Bytes of the index of n vectors."""
        return n * (4.0 * d + 8)


@dataclass(frozen=True, repr=False)
class IVFPQ(Typed):
    """Inverted lists over product-quantised vectors of `m` bytes (Jegou et al. 2011).

    `refine` times as many items as are wanted are found by their codes and ordered by their
    vectors; 1 goes by the codes alone.
    """

    nlist: int = 256
    nprobe: int = 16
    m: int = 16
    refine: int = 1

    def __post_init__(self) -> None:
        needs(self, "nlist", "nprobe", m=(1, 8192), refine=(1, 1000))

    def description(self, d: int, n: int) -> str:
        if n < 256:
            raise KarmafunnelError("IVFPQ", needs="at least 256 items to train its codes", found=n)
        m = next(m for m in range(min(self.m, d), 0, -1) if d % m == 0)
        # "np": codes are not put into the order that a search by Hamming distance needs, which is
        # most of the training and changes no result here
        return f"IVF{min(self.nlist, max(1, n // 39))},PQ{m}x8np"

    def size(self, d: int, n: int) -> float:
        """Bytes of the index of n vectors."""
        return n * (min(self.m, d) + 8.0)


@dataclass(frozen=True, repr=False)
class HNSW(Typed):
    """A navigable small-world graph: `m` links a node, `ef` nodes kept while searching (at least
    k).
    """

    m: int = 32
    ef: int = 128

    def __post_init__(self) -> None:
        needs(self, "ef", m=(2, 512))

    def description(self, d: int, n: int) -> str:
        return f"HNSW{self.m},Flat"

    def size(self, d: int, n: int) -> float:
        """Bytes of the index of n vectors, without the few links above the lowest level."""
        return n * (4.0 * d + 8.0 * self.m)


Index = Flat | IVF | IVFPQ | HNSW


@dataclass(frozen=True, repr=False)
class VectorRecall(Stage):
    """The eligible items that are nearest to the user embedding, by inner product."""

    embedder: str = field(metadata={"positional": True, "always": True})
    k: int = 300
    index: Index = Flat()
    name: str = "recall"

    def embedders(self) -> tuple[str, ...]:
        return (self.embedder,)

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedVectorRecall:
        vectors = context.items(self.embedder, repr(self))
        n, d = vectors.shape
        parts = {f"{n:,} vectors": 4.0 * n * d, "their index": self.index.size(d, n)}
        check_fits(self.title, parts, "IVFPQ() takes the fewest bytes an item")
        pool, _ = context.log.asof.pool(0)
        index = None
        if not isinstance(self.index, Flat):
            # cells and codes are learnt from items known by the end of W1; later ones are added
            asof = context.log.asof
            end = asof.time_rank(np.array([context.log.end_of("W1")]))[0]
            known = pool[asof.known_rank[pool] < end]
            description = self.index.description(vectors.shape[1], len(known))
            index = faiss.index_factory(vectors.shape[1], description, faiss.METRIC_INNER_PRODUCT)
            index.train(np.ascontiguousarray(vectors[known]))
            index.add(np.ascontiguousarray(vectors[pool]))
        return FittedVectorRecall(self, context, index)

    def load(self, folder: Path, context: Context) -> FittedVectorRecall:
        if isinstance(self.index, Flat):
            return FittedVectorRecall(self, context, None)
        path = folder / "index.faiss"
        try:
            return FittedVectorRecall(self, context, faiss.read_index(str(path)))
        except RuntimeError as error:
            raise KarmafunnelError(path, needs=f"the index of {self!r}", found=error) from error


@dataclass(eq=False, repr=False)
class FittedVectorRecall(Retriever):
    """Exact search where the index is Flat or a filter is set, else approximate search."""

    stage: VectorRecall
    index: Any  # of faiss; None searches exactly

    def __post_init__(self) -> None:
        self.embedder, self.channels = self.stage.embedder, (self.stage.embedder,)
        items = self.context.items(self.embedder, repr(self.stage))
        pool, _ = self.context.log.asof.pool(0)
        self._ordered = np.ascontiguousarray(items[pool])

    def save(self, folder: Path) -> None:
        if self.index is not None:
            faiss.write_index(self.index, str(folder / "index.faiss"))

    def score(self, rows: Rows) -> np.ndarray:
        who = repr(self.stage)
        interests = rows.interests(self.embedder, who)
        items = rows.context.items(self.embedder, who)
        return np.einsum("nd,nd->n", interests[rows.group], items[rows.item])

    def propose(self, rows: Rows) -> pl.DataFrame:
        return self._search(rows, self.index)

    def exact(self, rows: Rows) -> pl.DataFrame | None:
        return None if self.index is None else self._search(rows, None).select(REQUEST, ITEM)

    def _search(self, rows: Rows, index: Any) -> pl.DataFrame:
        """Search together the requests that have the same filters; one without a user embedding
        gets nothing.
        """
        asof, requests, who = self.context.log.asof, rows.requests, repr(self.stage)
        interests = rows.interests(self.embedder, who)
        keys = np.where(np.any(interests != 0, axis=1), asof.filter_key[requests], -1)
        k = min(self.stage.k, self.context.log.n_items)
        found = [tuple(np.zeros(0, dtype=kind) for kind in (np.int64, np.int64, np.float32))]
        for key in np.unique(keys[keys >= 0]):
            mine = np.flatnonzero(keys == key)
            pool, ranks = asof.pool(int(key))
            known = np.searchsorted(ranks, asof.rank[requests[mine]])
            if key == 0:
                score, at = self._search_all(interests[mine], known, requests[mine], index)
            else:
                vectors = self.context.items(self.embedder, who)[pool[: known.max(initial=0)]]
                score, at = self._exact(interests[mine], vectors, pool, known, requests[mine])
            hit = (at >= 0) & (at < known[:, None])
            hit &= np.cumsum(hit, axis=1, dtype=np.int32) <= k
            request = np.repeat(requests[mine], hit.sum(axis=1))
            found.append((request, pool[at[hit]], score[hit]))
        request, item, best = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return rows_frame(request=request, item=item, score=best)

    def _exact(
        self,
        interests: np.ndarray,
        vectors: np.ndarray,
        pool: np.ndarray,
        known: np.ndarray,
        requests: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact search; where equal scores compete for the last places, the seeded hash decides."""
        k = self.stage.k
        score, at = exact_search(interests, vectors, known, k)
        if at.shape[1] == 0 or known.max(initial=0) <= k:
            return score, at
        # of each column among the known ones
        rank = np.cumsum((at >= 0) & (at < known[:, None]), axis=1)
        more = np.flatnonzero(rank[:, -1] > k)
        cut, next_one = (score[more, np.argmax(rank[more] == nth, axis=1)] for nth in (k, k + 1))
        for i in more[cut - next_one <= 1e-6 * np.abs(cut)]:
            full = np.round(np.ascontiguousarray(vectors[: known[i]]) @ interests[i], 6)
            best = select_top(full, partial(tie_of, self.context, int(requests[i]), pool), k)
            score[i], at[i] = 0, -1
            score[i, : len(best)], at[i, : len(best)] = full[best], best
        return score, at

    def _search_all(
        self, interests: np.ndarray, known: np.ndarray, requests: np.ndarray, index: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search the whole catalogue: items are in the order in which they became known, so the
        eligible ones are a prefix.

        The prefix is that of the chunk's last request; earlier requests fetch as many more items as
        became known since.
        """
        last = int(known.max(initial=0))
        if index is None:
            pool, _ = self.context.log.asof.pool(0)
            return self._exact(interests, self._ordered[:last], pool, known, requests)
        fetch = min(self.stage.k + last - int(known.min(initial=last)), last)
        library: Any = faiss  # its type stubs lag behind its search parameters
        selector = library.IDSelectorRange(0, last)
        kind = self.stage.index
        if isinstance(kind, HNSW):
            parameters = library.SearchParametersHNSW(sel=selector, efSearch=max(kind.ef, fetch))
        elif isinstance(kind, IVF | IVFPQ):
            parameters = library.SearchParametersIVF(sel=selector, nprobe=kind.nprobe)
        else:
            raise KarmafunnelError(self.stage, what="Flat", needs="no index", found="one")
        fetch, refine = max(fetch, 1), getattr(kind, "refine", 1)
        if refine == 1:
            return index.search(interests, fetch, params=parameters)
        _, at = index.search(interests, max(min(fetch * refine, last), 1), params=parameters)
        return refined(interests, self._ordered, at, fetch)


def refined(
    interests: np.ndarray, vectors: np.ndarray, at: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of some items of each request by exact inner products.

    Args:
        interests: user embeddings, (n_requests, d).
        vectors: of items, (n, d).
        at: items of each request, -1 for none, (n_requests, fetched).

    Returns:
        Scores, descending, and items, (n_requests, at most k) each; -1 for none.
    """
    score = np.full(at.shape, -np.inf, dtype=np.float32)
    for row, items in enumerate(at):
        found = items >= 0
        score[row, found] = vectors[items[found]] @ interests[row]
    best = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(score, best, axis=1), np.take_along_axis(at, best, axis=1)


def exact_search(
    interests: np.ndarray, vectors: np.ndarray, known: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Exact inner-product search for at least k + 1 known items of each request.

    Args:
        interests: user embeddings, (n_requests, d).
        vectors: of items in the order in which they became known, (n, d).
        known: the number of items known at each request, (n_requests,).

    Returns:
        Scores and positions, (n_requests, fetched) each.
    """
    n = len(vectors)
    if n == 0:
        return np.empty((len(interests), 0), np.float32), np.empty((len(interests), 0), np.int64)
    fetch = min(k + 1 + n - int(known.min()), n)
    left, right = np.ascontiguousarray(interests), np.ascontiguousarray(vectors)
    return faiss.knn(left, right, fetch, metric=faiss.METRIC_INNER_PRODUCT)
