"""Recall by words: BM25 of the query over item titles."""

from __future__ import annotations

from dataclasses import dataclass

import bm25s
import numpy as np
import polars as pl

from ...bounds import needs
from ...errors import KarmafunnelError
from ..context import Context
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage
from .proposals import propose_each


@dataclass(frozen=True, repr=False)
class BM25Recall(Stage):
    """BM25 of the query against item titles (bm25s, Lucene's variant). Without a query, or a title
    with a word, it proposes nothing.
    """

    k: int = 300
    k1: float = 1.2
    b: float = 0.75
    name: str = "recall"

    def __post_init__(self) -> None:
        needs(self, "k1", "b")

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedBM25:
        return FittedBM25(self, context, Titles.of(context, repr(self), self.k1, self.b))


class Titles:
    """BM25 over the titles of the catalogue; one index a log and setting, shared by recall and
    features.

    Word statistics are those of the whole catalogue, items that become known later included: titles
    are no outcome, but a shop that replays its own past exactly would have slightly other weights.
    """

    def __init__(self, context: Context, who: str, k1: float, b: float):
        log = context.log
        if not (log.has("text") and log.has("query")):
            raise KarmafunnelError(
                f"{who}: needs item text and queries, log {log.name} has text={log.has('text')}, query={log.has('query')}"
            )
        words = bm25s.tokenize(
            [title or "" for title in log.items["title"].to_list()],
            stopwords=None,
            return_ids=False,
            show_progress=False,
        )
        self.n_items = log.n_items
        self.index = None  # titles without a word are like no query
        if any(words):
            self.index = bm25s.BM25(k1=k1, b=b, method="lucene")
            self.index.index(words, show_progress=False)
        self.queries = log.requests["query"]
        # of the queries that were asked so far: bm25s is slow with few words at a time
        self._words: dict[str, list[str]] = {}
        self._last: tuple[int, np.ndarray] | None = None

    @classmethod
    def of(cls, context: Context, who: str, k1: float = 1.2, b: float = 0.75) -> Titles:
        found: Titles = context.once(("titles", k1, b), lambda: cls(context, who, k1, b))
        return found

    def scores(self, request: int) -> np.ndarray:
        """BM25 of every item for a request's query: float32 (n_items,), 0 without a query or a
        shared word.
        """
        if self._last is None or self._last[0] != request:
            query = self.queries[int(request)] or ""
            if query not in self._words:
                words = bm25s.tokenize(
                    [query], stopwords=None, return_ids=False, show_progress=False
                )[0]
                self._words[query] = [w for w in words if self.index and w in self.index.vocab_dict]
            words = self._words[query]
            scores = (
                self.index.get_scores(words)
                if self.index and words
                else np.zeros(self.n_items, dtype=np.float32)
            )
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


@dataclass(eq=False, repr=False)
class FittedBM25(Retriever):
    stage: BM25Recall
    titles: Titles
    channels = ("bm25",)

    def score(self, rows: Rows) -> np.ndarray:
        return self.titles.pair_scores(rows.request, rows.item)

    def propose(self, rows: Rows) -> pl.DataFrame:
        def scored(i: int, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            score = self.titles.scores(int(rows.requests[i]))[eligible]
            hit = score > 0
            return eligible[hit], score[hit]

        return propose_each(self.context, rows.requests, self.stage.k, scored)
