"""Lexical recall: BM25 of the query over item titles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ...bigrams import spaced
from ...bounds import needs
from ...errors import KarmafunnelError
from ..context import Context
from ..frame import group_rows
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage
from .proposals import propose_each


@dataclass(frozen=True, repr=False)
class BM25Recall(Stage):
    """BM25 of the query over item titles (bm25s, Lucene's variant); it proposes items that share a
    word with the query.
    """

    k: int = 300
    k1: float = 1.2
    b: float = 0.75
    name: str = "recall"

    def __post_init__(self) -> None:
        needs(self, "k1", "b")

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedBM25:
        return FittedBM25(self, context, Titles.of(context, repr(self), self.k1, self.b))


def tokenize(texts: list[str]) -> list[list[str]]:
    """The words of each text; pairs of characters where they are written without blanks."""
    import bm25s  # with numba, half a second

    found: list[list[str]] = bm25s.tokenize(
        [*map(spaced, texts)], stopwords=None, return_ids=False, show_progress=False
    )
    return found


class Titles:
    """BM25 over the titles of the catalogue; recall and features share one index for each setting.

    Word statistics are over the whole catalogue, with items that become known only later. Titles
    are no outcomes, but the weights differ slightly from those of the time of a request.
    """

    def __init__(self, context: Context, who: str, k1: float, b: float):
        log = context.log
        if not (log.has("text") and log.has("query")):
            found = f"text={log.has('text')}, query={log.has('query')} in log {log.name}"
            raise KarmafunnelError(who, needs="item text and queries", found=found)
        titles = [title or "" for title in log.items["title"].to_list()]
        words = tokenize(titles)
        self.n_items = log.n_items
        self.index: Any = None  # where no title has a word
        if any(words):
            import bm25s

            self.index = bm25s.BM25(k1=k1, b=b, method="lucene")
            self.index.index(words, show_progress=False)
        self.queries = log.requests["query"]
        # of the queries so far: bm25s is slow with few words at a time
        self._words: dict[str, list[str]] = {}
        self._last: tuple[int, np.ndarray] | None = None

    @classmethod
    def of(cls, context: Context, who: str, k1: float = 1.2, b: float = 0.75) -> Titles:
        """The index of the context's log; raises KarmafunnelError without texts or queries."""
        key = "titles", k1, b
        found: Titles = context.of_log.once(key, lambda: cls(context, who, k1, b))
        return found

    def read(self, requests: np.ndarray) -> None:
        """Find the words of the queries of a chunk together: one by one takes most of the time."""
        texts = self.queries.gather(requests).fill_null("").unique(maintain_order=True)
        new = [text for text in texts.to_list() if text not in self._words]
        vocabulary = self.index.vocab_dict if self.index else {}
        for text, words in zip(new, tokenize(new) if new else [], strict=True):
            self._words[text] = [word for word in words if word in vocabulary]

    def scores(self, request: int) -> np.ndarray:
        """BM25 of every item for a request's query: float32 (n_items,); 0 without a common word."""
        if self._last is None or self._last[0] != request:
            query = self.queries[int(request)] or ""
            if query not in self._words:
                self.read(np.array([request]))
            words = self._words[query]
            scores = np.zeros(self.n_items, dtype=np.float32)
            if self.index and words:
                scores = self.index.get_scores(words)
            self._last = request, scores
        return self._last[1]

    def pair_scores(self, requests: np.ndarray, items: np.ndarray) -> np.ndarray:
        """BM25 of (request, item) rows: float32 (n_rows,)."""
        out = np.zeros(len(items), dtype=np.float32)
        self.read(group_rows(requests)[0])
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
        self.titles.read(rows.requests)

        def scored(i: int, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            score = self.titles.scores(int(rows.requests[i]))[eligible]
            hit = score > 0
            return eligible[hit], score[hit]

        return propose_each(self.context, rows.requests, self.stage.k, scored)
