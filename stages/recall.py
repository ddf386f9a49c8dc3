"""Recall: channels that propose candidates among the eligible items, and their join."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import bm25s
import faiss
import numpy as np
import polars as pl
from scipy import sparse

from ..bounds import MANY, Bound, check_bound, needs
from ..errors import KarmafunnelError
from ..files import read_table
from ..log import Log, rows_of, sha256
from .base import (
    ITEM,
    RANK,
    REQUEST,
    SCORE,
    FittedFunnel,
    Retriever,
    Scene,
    Stage,
    Typed,
    group_rows,
    no_rows,
    positional,
    rank_rows,
    rows_frame,
    select_top,
)

NOT_FOUND = np.float32(-1e9)  # the score of a row that a channel could never propose


def candidates(requests: np.ndarray, counts: list[int], items: list[np.ndarray], scores: list[np.ndarray]) -> pl.DataFrame:
    """Per-request arrays as one frame: request, item, score."""
    return rows_frame(
        request=np.repeat(requests, counts).astype(np.int64),
        item=np.concatenate([*items, np.empty(0)]).astype(np.int32),
        score=np.concatenate([*scores, np.empty(0)]).astype(np.float32),
    )


def tie_of(scene: Scene, request: int, items: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Tie hashes of some positions of a request's items."""
    return scene.tie(np.full(len(at), request), items[at])


def propose_each(
    scene: Scene, requests: np.ndarray, k: int, scored: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> pl.DataFrame:
    """The k best of what `scored(row in chunk, eligible items)` returns as (items, scores), request by request."""
    items, scores, counts = [], [], []
    for i, eligible in enumerate(scene.log.asof.eligible(requests)):
        found, score = scored(i, eligible)
        best = select_top(score, partial(tie_of, scene, int(requests[i]), found), k)
        items.append(found[best])
        scores.append(score[best])
        counts.append(len(best))
    return candidates(requests, counts, items, scores)


# -- vectors ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Flat(Typed):
    """Exact search."""


@dataclass(frozen=True, repr=False)
class IVF(Typed):
    """Inverted lists: `nlist` cells, `nprobe` of them visited."""

    nlist: int = 256
    nprobe: int = 16

    def __post_init__(self) -> None:
        needs(self, "nlist", "nprobe")

    def description(self, d: int, n: int) -> str:
        return f"IVF{min(self.nlist, max(1, n // 39))},Flat"


@dataclass(frozen=True, repr=False)
class IVFPQ(Typed):
    """Inverted lists over product-quantised vectors of `m` bytes."""

    nlist: int = 256
    nprobe: int = 16
    m: int = 16

    def __post_init__(self) -> None:
        needs(self, "nlist", "nprobe", m=(1, 8192))

    def description(self, d: int, n: int) -> str:
        if n < 256:
            raise KarmafunnelError(f"IVFPQ: needs at least 256 items to train its codes, found {n}")
        m = next(m for m in range(min(self.m, d), 0, -1) if d % m == 0)
        return f"IVF{min(self.nlist, max(1, n // 39))},PQ{m}x8"


@dataclass(frozen=True, repr=False)
class HNSW(Typed):
    """A navigable small-world graph: `m` links a node, `ef` nodes kept while searching (at least k)."""

    m: int = 32
    ef: int = 128

    def __post_init__(self) -> None:
        needs(self, "ef", m=(2, 512))

    def description(self, d: int, n: int) -> str:
        return f"HNSW{self.m},Flat"


Index = Flat | IVF | IVFPQ | HNSW


@dataclass(frozen=True, repr=False)
class VectorRecall(Stage):
    """Nearest items to the interest vector of an embedder, by inner product, over the eligible items."""

    embedder: str = field(metadata={"positional": True, "always": True})
    k: int = 300
    index: Index = Flat()
    name: str = "recall"

    def embedders(self) -> tuple[str, ...]:
        return (self.embedder,)

    def fit(self, scene: Scene, upstream: FittedFunnel | None) -> FittedVectorRecall:
        vectors = scene.items(self.embedder, repr(self))
        pool, _ = scene.log.asof.pool(0)
        index = None
        if not isinstance(self.index, Flat):
            # The cells and codes are learnt on what was known by the end of W1; later items are only added.
            known = pool[scene.log.asof.known_rank[pool] < scene.log.asof.time_rank(np.array([scene.log.end_of("W1")]))[0]]
            description = self.index.description(vectors.shape[1], len(known))
            index = faiss.index_factory(vectors.shape[1], description, faiss.METRIC_INNER_PRODUCT)
            index.train(np.ascontiguousarray(vectors[known]))
            index.add(np.ascontiguousarray(vectors[pool]))
        return FittedVectorRecall(self, scene, index)

    def load(self, folder: Path, scene: Scene) -> FittedVectorRecall:
        if isinstance(self.index, Flat):
            return FittedVectorRecall(self, scene, None)
        path = folder / "index.faiss"
        try:
            return FittedVectorRecall(self, scene, faiss.read_index(str(path)))
        except RuntimeError as error:
            raise KarmafunnelError(f"{path}: needed the index of {self!r}, found: {error}") from error


class FittedVectorRecall(Retriever):
    """Exact where the index is Flat or the filtered pool is small; an ANN index otherwise."""

    stage: VectorRecall

    def __init__(self, stage: VectorRecall, scene: Scene, index: Any):
        self.stage, self.scene, self.index = stage, scene, index
        self.embedder, self.channels = stage.embedder, (stage.embedder,)
        self._ordered = np.ascontiguousarray(scene.items(self.embedder, repr(stage))[scene.log.asof.pool(0)[0]])

    def save(self, folder: Path) -> None:
        if self.index is not None:
            faiss.write_index(self.index, str(folder / "index.faiss"))

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        requests, inverse = group_rows(frame[REQUEST].to_numpy())
        interests = self.scene.interests(self.embedder, requests, repr(self.stage))
        items = self.scene.items(self.embedder, repr(self.stage))[frame[ITEM].to_numpy()]
        return np.einsum("nd,nd->n", interests[inverse], items)

    def propose(self, requests: np.ndarray) -> pl.DataFrame:
        return self._search(requests, self.index)

    def exact(self, requests: np.ndarray) -> pl.DataFrame | None:
        return None if self.index is None else self._search(requests, None).select(REQUEST, ITEM)

    def _search(self, requests: np.ndarray, index: Any) -> pl.DataFrame:
        """Requests that share a set of filters are searched together; one without an interest vector gets nothing."""
        asof = self.scene.log.asof
        interests = self.scene.interests(self.embedder, requests, repr(self.stage))
        keys = np.where(np.any(interests != 0, axis=1), asof.filter_key[requests], -1)
        k = min(self.stage.k, self.scene.log.n_items)
        found = np.full((len(requests), k), -1, dtype=np.int32)  # items, best first, in the first `sizes` places
        scores = np.zeros((len(requests), k), dtype=np.float32)
        sizes = np.zeros(len(requests), dtype=np.int64)
        for key in np.unique(keys[keys >= 0]):
            mine = np.flatnonzero(keys == key)
            pool, ranks = asof.pool(int(key))
            known = np.searchsorted(ranks, asof.rank[requests[mine]])
            if key == 0:
                score, at = self._search_all(interests[mine], known, requests[mine], index)
            else:
                vectors = self.scene.items(self.embedder, repr(self.stage))[pool[: known.max(initial=0)]]
                score, at = self._exact(interests[mine], vectors, pool, known, requests[mine])
            hit = (at >= 0) & (at < known[:, None])
            place = np.cumsum(hit, axis=1) - 1
            row, column = np.nonzero(hit & (place < k))
            found[mine[row], place[row, column]] = pool[at[row, column]]
            scores[mine[row], place[row, column]] = score[row, column]
            sizes[mine] = np.minimum(hit.sum(axis=1), k)
        there = np.arange(k) < sizes[:, None]
        return rows_frame(request=np.repeat(requests, sizes), item=found[there], score=scores[there])

    def _exact(
        self, interests: np.ndarray, vectors: np.ndarray, pool: np.ndarray, known: np.ndarray, requests: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact search; where the cut falls among equal scores, the seeded hash chooses between them, as everywhere."""
        k = self.stage.k
        score, at = exact_search(interests, vectors, known, k)
        if at.shape[1] == 0 or known.max(initial=0) <= k:
            return score, at
        rank = np.cumsum((at >= 0) & (at < known[:, None]), axis=1)  # of each column among the known ones
        more = np.flatnonzero(rank[:, -1] > k)
        cut, next_one = (score[more, np.argmax(rank[more] == nth, axis=1)] for nth in (k, k + 1))
        for i in more[cut - next_one <= 1e-6 * np.abs(cut)]:
            full = np.round(np.ascontiguousarray(vectors[: known[i]]) @ interests[i], 6)
            best = select_top(full, partial(tie_of, self.scene, int(requests[i]), pool), k)
            score[i], at[i] = 0, -1
            score[i, : len(best)], at[i, : len(best)] = full[best], best
        return score, at

    def _search_all(
        self, interests: np.ndarray, known: np.ndarray, requests: np.ndarray, index: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search the whole catalogue: items stand in the order they became known, so eligibility is a prefix.

        The prefix is that of the chunk's last request; earlier requests fetch as many more as became known meanwhile.
        """
        last = int(known.max(initial=0))
        if index is None:
            return self._exact(interests, self._ordered[:last], self.scene.log.asof.pool(0)[0], known, requests)
        fetch = min(self.stage.k + last - int(known.min(initial=last)), last)
        library: Any = faiss  # its type stubs lag behind its search parameters
        selector = library.IDSelectorRange(0, last)
        kind = self.stage.index
        if isinstance(kind, HNSW):
            parameters = library.SearchParametersHNSW(sel=selector, efSearch=max(kind.ef, fetch))
        elif isinstance(kind, IVF | IVFPQ):
            parameters = library.SearchParametersIVF(sel=selector, nprobe=kind.nprobe)
        else:
            raise KarmafunnelError(f"{self.stage!r}: Flat needs no index, found one")
        return index.search(interests, max(fetch, 1), params=parameters)


def exact_search(interests: np.ndarray, vectors: np.ndarray, known: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact inner-product search over a prefix: (scores, positions), enough rows that each request has k known ones and one more."""
    n = len(vectors)
    if n == 0:
        return np.empty((len(interests), 0), np.float32), np.empty((len(interests), 0), np.int64)
    fetch = min(k + 1 + n - int(known.min()), n)
    return faiss.knn(np.ascontiguousarray(interests), np.ascontiguousarray(vectors), fetch, metric=faiss.METRIC_INNER_PRODUCT)


# -- words --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class BM25Recall(Stage):
    """BM25 of the query against item titles (bm25s, Lucene's variant). Without a query, or a title with a word, it proposes nothing."""

    k: int = 300
    k1: float = 1.2
    b: float = 0.75
    name: str = "recall"

    def __post_init__(self) -> None:
        needs(self, "k1", "b")

    def fit(self, scene: Scene, upstream: FittedFunnel | None) -> FittedBM25:
        return FittedBM25(self, scene, Titles.of(scene, repr(self), self.k1, self.b))


class Titles:
    """BM25 over the titles of the catalogue; one index a log and setting, shared by recall and features.

    Word statistics are those of the whole catalogue, items that become known later included: titles are no outcome, but a shop that
    replays its own past exactly would have slightly other weights.
    """

    def __init__(self, scene: Scene, who: str, k1: float, b: float):
        log = scene.log
        if not (log.has("text") and log.has("query")):
            raise KarmafunnelError(
                f"{who}: needs item text and queries, log {log.name} has text={log.has('text')}, query={log.has('query')}"
            )
        words = bm25s.tokenize(
            [title or "" for title in log.items["title"].to_list()], stopwords=None, return_ids=False, show_progress=False
        )
        self.n_items = log.n_items
        self.index = None  # titles without a word are like no query
        if any(words):
            self.index = bm25s.BM25(k1=k1, b=b, method="lucene")
            self.index.index(words, show_progress=False)
        self.queries = log.requests["query"]
        self._words: dict[str, list[str]] = {}  # of the queries that were asked so far: bm25s is slow with few words at a time
        self._last: tuple[int, np.ndarray] | None = None

    @classmethod
    def of(cls, scene: Scene, who: str, k1: float = 1.2, b: float = 0.75) -> Titles:
        shared = scene._titles
        if (k1, b) not in shared:
            shared[k1, b] = cls(scene, who, k1, b)
        return shared[k1, b]

    def scores(self, request: int) -> np.ndarray:
        """BM25 of every item for a request's query: float32 (n_items,), 0 without a query or a shared word."""
        if self._last is None or self._last[0] != request:
            query = self.queries[int(request)] or ""
            if query not in self._words:
                words = bm25s.tokenize([query], stopwords=None, return_ids=False, show_progress=False)[0]
                self._words[query] = [w for w in words if self.index and w in self.index.vocab_dict]
            words = self._words[query]
            scores = self.index.get_scores(words) if self.index and words else np.zeros(self.n_items, dtype=np.float32)
            self._last = request, scores
        return self._last[1]

    def pair_scores(self, requests: np.ndarray, items: np.ndarray) -> np.ndarray:
        """BM25 of aligned (request, item) rows: float32."""
        out = np.zeros(len(items), dtype=np.float32)
        rows = np.argsort(requests, kind="stable")
        cuts = np.flatnonzero(np.diff(requests[rows])) + 1
        for mine in np.split(rows, cuts) if len(rows) else []:
            out[mine] = self.scores(int(requests[mine[0]]))[items[mine]]
        return out


class FittedBM25(Retriever):
    stage: BM25Recall
    channels = ("bm25",)

    def __init__(self, stage: BM25Recall, scene: Scene, titles: Titles):
        self.stage, self.scene, self.titles = stage, scene, titles

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        return self.titles.pair_scores(frame[REQUEST].to_numpy(), frame[ITEM].to_numpy())

    def propose(self, requests: np.ndarray) -> pl.DataFrame:
        def scored(i: int, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            score = self.titles.scores(int(requests[i]))[eligible]
            hit = score > 0
            return eligible[hit], score[hit]

        return propose_each(self.scene, requests, self.stage.k, scored)


# -- behaviour ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Popular(Stage):
    """What was clicked or bought most before the request, at most `days` before where given."""

    k: int = 100
    days: float | None = None
    name: str = "recall"

    def __post_init__(self) -> None:
        needs(self, "days")

    def fit(self, scene: Scene, upstream: FittedFunnel | None) -> FittedPopular:
        return FittedPopular(self, scene)


class FittedPopular(Retriever):
    stage: Popular
    channels = ("popular",)

    def __init__(self, stage: Popular, scene: Scene):
        self.stage, self.scene = stage, scene
        log = scene.log
        self.within = None if stage.days is None else int(stage.days * 86_400_000)
        self._ranks = log.asof.rank[log.events[REQUEST].to_numpy()]  # time rank of every event, ascending
        self._items = log.events[ITEM].to_numpy()

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        return self.scene.log.asof.count(frame[REQUEST].to_numpy(), frame[ITEM].to_numpy(), "event", self.within).astype(
            np.float32
        )

    def propose(self, requests: np.ndarray) -> pl.DataFrame:
        log = self.scene.log
        end = np.searchsorted(self._ranks, log.asof.rank[requests])
        first = np.zeros_like(end)
        if self.within is not None:
            first = np.searchsorted(self._ranks, log.asof.rank_before(self.within)[requests])
        reached = [int(first[0]), int(end[0])] if len(requests) else [0, 0]
        counts = np.bincount(self._items[slice(*reached)], minlength=log.n_items).astype(np.float32)

        def scored(i: int, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            # Requests come in time order: the counts move along with them.
            np.add.at(counts, self._items[reached[1] : end[i]], 1)
            np.subtract.at(counts, self._items[reached[0] : first[i]], 1)
            reached[:] = first[i], end[i]
            score = counts[eligible]
            hit = np.flatnonzero(score > 0)
            return (eligible[hit], score[hit]) if len(hit) >= self.stage.k else (eligible, score)

        return propose_each(self.scene, requests, self.stage.k, scored)


@dataclass(frozen=True, repr=False)
class Repeat(Stage):
    """The user's own earlier items, by how often, then how lately."""

    k: int = 50
    depth: int = 500
    name: str = "recall"

    def __post_init__(self) -> None:
        needs(self, "depth")

    def fit(self, scene: Scene, upstream: FittedFunnel | None) -> FittedRepeat:
        return FittedRepeat(self, scene)


class FittedRepeat(Retriever):
    stage: Repeat
    channels = ("repeat",)

    def __init__(self, stage: Repeat, scene: Scene):
        self.stage, self.scene = stage, scene

    def _own(self, request: int, newest_first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items and scores: the count, plus a fraction that falls with the place of the last time in the history."""
        items, first, count = np.unique(newest_first, return_index=True, return_counts=True)
        return items, (count + 1.0 / (2.0 + first)).astype(np.float32)

    def propose(self, requests: np.ndarray) -> pl.DataFrame:
        history = self.scene.log.asof.history(requests, self.stage.depth).items[:, ::-1]

        def scored(i: int, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            items, score = self._own(int(requests[i]), history[i][history[i] >= 0])
            allowed = self.scene.log.asof.is_eligible(np.full(len(items), requests[i]), items)
            return items[allowed], score[allowed]

        return propose_each(self.scene, requests, self.stage.k, scored)

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        requests = np.unique(frame[REQUEST].to_numpy())
        history = self.scene.log.asof.history(requests, self.stage.depth).items[:, ::-1]
        own = [(r, *self._own(r, h[h >= 0])) for r, h in zip(requests, history, strict=True)]
        table = candidates(requests, [len(o[1]) for o in own], [o[1] for o in own], [o[2] for o in own])
        found = frame.select(REQUEST, ITEM).join(table, on=[REQUEST, ITEM], how="left", maintain_order="left")
        return found[SCORE].fill_null(0.0).to_numpy()


@dataclass(frozen=True, repr=False)
class ItemKNN(Stage):
    """Neighbours of what the user had before: cosine of co-occurrence within users (W1), newest history weighs most.

    Sarwar et al. 2001, with `shrink` against chance pairs; `neighbours` kept an item.
    """

    k: int = 200
    depth: int = 20
    neighbours: int = 200
    shrink: float = 10.0
    decay: float = 0.9
    name: str = "recall"
    counts_in: ClassVar[tuple[str, ...]] = ("W1",)

    def __post_init__(self) -> None:
        needs(self, "depth", "neighbours", "shrink", "decay")

    def fit(self, scene: Scene, upstream: FittedFunnel | None) -> FittedItemKNN:
        log = scene.log
        events = log.events.filter(pl.col("t") < log.end_of("W1"))
        pairs = events.select("user", ITEM).unique(maintain_order=True)
        ones = np.ones(pairs.height, dtype=np.float32)
        shape = (int(log.user.max()) + 1, log.n_items)
        matrix = sparse.csr_matrix((ones, (pairs["user"].to_numpy(), pairs[ITEM].to_numpy())), shape=shape)
        return FittedItemKNN(self, scene, cosine_neighbours(matrix, self.neighbours, self.shrink))

    def load(self, folder: Path, scene: Scene) -> FittedItemKNN:
        return FittedItemKNN(self, scene, sparse.load_npz(folder / "neighbours.npz"))


def cosine_neighbours(matrix: sparse.csr_matrix, neighbours: int, shrink: float) -> sparse.csr_matrix:
    """Item-item cosine of a (users, items) matrix, the `neighbours` nearest kept a row, in blocks so that memory stays small."""
    together = matrix.T.tocsr()
    norm = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel())
    blocks = []
    for start in range(0, together.shape[0], 2000):
        block = (together[start : start + 2000] @ matrix).tocoo()
        row, column = block.row, block.col
        value = block.data / (norm[row + start] * norm[column] + shrink)
        keep = column != row + start
        row, column, value = row[keep], column[keep], value[keep]
        sequence = np.lexsort((-value, row))
        row, column, value = row[sequence], column[sequence], value[sequence]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        near = place < neighbours
        shape = (block.shape[0], matrix.shape[1])
        blocks.append(sparse.csr_matrix((value[near].astype(np.float32), (row[near], column[near])), shape=shape))
    return sparse.vstack(blocks).tocsr()


class FittedItemKNN(Retriever):
    stage: ItemKNN
    channels = ("itemknn",)

    def __init__(self, stage: ItemKNN, scene: Scene, near: sparse.csr_matrix):
        self.stage, self.scene, self.near = stage, scene, near

    def save(self, folder: Path) -> None:
        sparse.save_npz(folder / "neighbours.npz", self.near)

    def _scores(self, requests: np.ndarray) -> sparse.csr_matrix:
        """(n_requests, n_items): neighbours of the history, weighted by its age in steps."""
        history = self.scene.log.asof.history(requests, self.stage.depth).items
        row, column = np.nonzero(history >= 0)
        weight = self.stage.decay ** (history.shape[1] - 1 - column)
        shape = (len(requests), self.scene.log.n_items)
        had = sparse.csr_matrix((weight.astype(np.float32), (row, history[row, column])), shape=shape)
        return (had @ self.near).tocsr()

    def propose(self, requests: np.ndarray) -> pl.DataFrame:
        scores = self._scores(requests)

        def scored(i: int, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            start, end = scores.indptr[i], scores.indptr[i + 1]
            items, score = scores.indices[start:end], scores.data[start:end]
            allowed = self.scene.log.asof.is_eligible(np.full(len(items), requests[i]), items)
            return items[allowed], score[allowed]

        return propose_each(self.scene, requests, self.stage.k, scored)

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        requests, inverse = group_rows(frame[REQUEST].to_numpy())
        if len(requests) == 0:
            return np.zeros(0, dtype=np.float32)
        return np.asarray(self._scores(requests)[inverse, frame[ITEM].to_numpy()]).ravel().astype(np.float32)


@dataclass(frozen=True, repr=False)
class Uniform(Stage):
    """Eligible items at random: the floor of every table, and negatives nobody chose."""

    k: int = 100
    seed: int = 0
    name: str = "recall"

    def __post_init__(self) -> None:
        needs(self, "seed")

    def fit(self, scene: Scene, upstream: FittedFunnel | None) -> FittedUniform:
        return FittedUniform(self, scene)


class FittedUniform(Retriever):
    stage: Uniform
    channels = ("random",)

    def __init__(self, stage: Uniform, scene: Scene):
        self.stage, self.scene = stage, scene

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        return np.zeros(frame.height, dtype=np.float32)

    def propose(self, requests: np.ndarray) -> pl.DataFrame:
        return propose_each(
            self.scene, requests, self.stage.k, lambda i, eligible: (eligible, np.zeros(len(eligible), dtype=np.float32))
        )


@dataclass(frozen=True, repr=False)
class Shown(Stage):
    """The list that was really shown, as candidates: to re-rank what production's own recall brought.

    With `logged_order` its score is the logged position ("the rank of the production stage before"), an arm of its own;
    without it every score is equal.
    """

    k: int = 100
    logged_order: bool = False
    name: str = "recall"

    def fit(self, scene: Scene, upstream: FittedFunnel | None) -> FittedShown:
        if not scene.log.has("exposures"):
            raise KarmafunnelError(f"{self!r}: needs shown lists, log {scene.log.name} has no exposures")
        return FittedShown(self, scene)


class FittedShown(Retriever):
    stage: Shown
    channels = ("shown",)

    def __init__(self, stage: Shown, scene: Scene):
        self.stage, self.scene = stage, scene
        rows = scene.log.rows.filter(pl.col("position").is_not_null()).sort(REQUEST, maintain_order=True)
        score = -rows["position"].cast(pl.Float32) if stage.logged_order else pl.zeros(rows.height, pl.Float32, eager=True)
        self._lists = (
            rows.select(REQUEST, ITEM).with_columns(score.alias(SCORE)).unique([REQUEST, ITEM], keep="first", maintain_order=True)
        )

    def propose(self, requests: np.ndarray) -> pl.DataFrame:
        return rows_frame(request=requests).join(self._lists, on=REQUEST, how="inner", maintain_order="left")

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        found = frame.select(REQUEST, ITEM).join(self._lists, on=[REQUEST, ITEM], how="left", maintain_order="left")
        return found[SCORE].fill_null(NOT_FOUND if self.stage.logged_order else 0.0).to_numpy()


@dataclass(frozen=True, repr=False)
class External(Stage):
    """What a system outside has scored: the k best eligible items of each request in a Parquet file of request_id, item_id, score.

    Requests that the file lacks get nothing; an item that it does not score for a request is never proposed. `checksum` (of the file,
    as `log.sha256` has it, or a beginning of it) makes the file's content a part of the value. Raises KarmafunnelError naming the file
    for one that is missing or other than `checksum` says, for absent columns, unknown ids, scores that are not finite, an item twice.
    """

    path: str = positional()
    k: int = 50
    checksum: str = ""
    name: str = "recall"

    def fit(self, scene: Scene, upstream: FittedFunnel | None) -> FittedExternal:
        return FittedExternal(self, scene, self._read(scene.log))

    def _read(self, log: Log) -> pl.DataFrame:
        """The file by row numbers: request, item, score; sorted by request."""
        path, columns = Path(self.path), ["request_id", "item_id", SCORE]
        if not path.is_file():
            raise KarmafunnelError(f"{self!r}: needs a Parquet file of {columns}, found no such file")
        if self.checksum and not sha256(path).startswith(self.checksum):
            raise KarmafunnelError(f"{self!r}: needs the file of that checksum, found {sha256(path)[: len(self.checksum)]}")
        try:
            frame = read_table(path, *columns)
        except KarmafunnelError as error:
            raise KarmafunnelError(f"{self!r}: needs a Parquet file of {columns}, found: {error}") from error
        for key, table, number in (("request_id", log.requests, REQUEST), ("item_id", log.items, ITEM)):
            numbered = table.select(pl.col(key), pl.int_range(pl.len()).alias(number))
            frame = frame.with_columns(pl.col(key).cast(pl.String)).join(numbered, on=key, how="left", maintain_order="left")
            if missing := frame[number].null_count():
                example = frame.filter(pl.col(number).is_null())[key][0]
                raise KarmafunnelError(
                    f"{self!r}: needs ids of log {log.name}, found {missing} rows of others, e.g. {key} {example!r}"
                )
        rows = frame.select(pl.col(REQUEST).cast(pl.Int64), pl.col(ITEM).cast(pl.Int32), pl.col(SCORE).cast(pl.Float32))
        finite = rows[SCORE].is_finite().fill_null(False)
        for what, bad in (
            ("finite scores", ~finite),
            ("an item at most once a request", rows.select(REQUEST, ITEM).is_duplicated()),
        ):
            if bad.any():
                row = frame.row(int(bad.arg_max() or 0), named=True)
                raise KarmafunnelError(
                    f"{self!r}: needs {what}, found {bad.sum()} other rows, e.g. request {row['request_id']!r}, item {row['item_id']!r}, "
                    f"score {row[SCORE]}"
                )
        return rows.sort(REQUEST, maintain_order=True)


class FittedExternal(Retriever):
    stage: External
    channels = ("external",)

    def __init__(self, stage: External, scene: Scene, rows: pl.DataFrame):
        self.stage, self.scene, self.rows = stage, scene, rows

    def propose(self, requests: np.ndarray) -> pl.DataFrame:
        rows = rows_of(self.rows, requests)
        eligible = self.scene.log.asof.is_eligible(rows[REQUEST].to_numpy(), rows[ITEM].to_numpy())
        ranked, _, _ = rank_rows(rows.filter(pl.Series(eligible, dtype=pl.Boolean)), no_rows(), requests, self.scene)
        return ranked.filter(pl.col(RANK) <= self.stage.k).drop(RANK)

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        mine = rows_of(self.rows, np.unique(frame[REQUEST].to_numpy()))
        found = frame.select(REQUEST, ITEM).join(mine, on=[REQUEST, ITEM], how="left", maintain_order="left")
        return found[SCORE].fill_null(NOT_FOUND).to_numpy()


# -- joining ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Join(Stage):
    """Channels joined, each candidate remembering which found it.

    Reciprocal-rank fusion (Cormack et al. 2009): score = sum over the channels of 1 / (rrf + rank). With `quotas`, the first
    so many of each channel come before everything else, whatever their fused score. A row that no channel found scores 0.
    """

    channels: Sequence[Stage] = field(default=(), metadata={"positional": True, "always": True})
    k: int = 1000
    quotas: Sequence[int] = ()
    rrf: float = 60.0
    name: str = "recall"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        needs(self, "rrf")
        for quota in self.quotas:
            check_bound("Join", Bound(0, MANY), quotas=quota)
        if self.quotas and (len(self.quotas) != len(self.channels) or sum(self.quotas) > self.k):
            raise KarmafunnelError(
                f"Join: needs one quota a channel, at most k={self.k} in all; found {self.quotas} for {len(self.channels)} channels"
            )

    def __repr__(self) -> str:
        inside = "[" + ", ".join(map(repr, self.channels)) + "]"
        rest = [
            f"{f}={getattr(self, f)!r}"
            for f, d in (("k", 1000), ("quotas", ()), ("rrf", 60.0), ("name", "recall"))
            if getattr(self, f) != d
        ]
        return f"Join({', '.join([inside, *rest])})"

    def embedders(self) -> tuple[str, ...]:
        return tuple(name for channel in self.channels for name in channel.embedders())

    def fit(self, scene: Scene, upstream: FittedFunnel | None) -> FittedJoin:
        return FittedJoin(self, scene, [self._retriever(c.fit(scene, None)) for c in self.channels])

    def load(self, folder: Path, scene: Scene) -> FittedJoin:
        return FittedJoin(self, scene, [self._retriever(c.load(folder / str(i), scene)) for i, c in enumerate(self.channels)])

    def _retriever(self, fitted: Any) -> Retriever:
        if not isinstance(fitted, Retriever):
            raise KarmafunnelError(f"{self!r}: joins recall channels, found {fitted.stage!r}")
        return fitted


class FittedJoin(Retriever):
    stage: Join

    def __init__(self, stage: Join, scene: Scene, parts: list[Retriever]):
        self.stage, self.scene, self.parts = stage, scene, parts
        names = [name for part in parts for name in part.channels]
        self.channels = tuple(n if names.count(n) == 1 else f"{n}{i}" for i, n in enumerate(names))

    def save(self, folder: Path) -> None:
        for i, part in enumerate(self.parts):
            (folder / str(i)).mkdir()
            part.save(folder / str(i))

    def retrieve(self, requests: np.ndarray, forced: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        stage, n_items = self.stage, self.scene.log.n_items
        pairs, gains, bits = [], [], []
        for channel, part in enumerate(self.parts):
            rows, _, _ = rank_rows(part.propose(requests), no_rows(), requests, self.scene)
            rank = rows[RANK].to_numpy()
            pairs.append(rows[REQUEST].to_numpy() * n_items + rows[ITEM].to_numpy())
            gain = 1.0 / (stage.rrf + rank)
            if stage.quotas:
                gain = gain + (rank <= stage.quotas[channel])
            gains.append(gain)
            bits.append(np.full(len(rank), 1 << channel))
        pair, inverse = np.unique(np.concatenate(pairs), return_inverse=True)
        score = np.bincount(inverse, np.concatenate(gains), minlength=len(pair)).astype(np.float32)
        channel_bits = np.bincount(inverse, np.concatenate(bits), minlength=len(pair)).astype(np.uint32)
        item = (pair % n_items).astype(np.int32)
        slate = rows_frame(request=pair // n_items, item=item, score=score, channel=channel_bits)
        forced = forced.with_columns(pl.lit(0, pl.Float32).alias(SCORE))
        return slate, forced

    def exact(self, requests: np.ndarray) -> pl.DataFrame | None:
        exact = [frame for part in self.parts if (frame := part.exact(requests)) is not None]
        return pl.concat(exact).unique(maintain_order=True) if exact else None

    def propose(self, requests: np.ndarray) -> pl.DataFrame:
        return self.retrieve(requests, no_rows())[0]
