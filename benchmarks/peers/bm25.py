"""BM25 alone (bm25s): the request's query against item texts; in a log without queries, the titles
of what the user had last.

W2b chooses among k1, b and, without queries, how many titles of the history make the query.
"""

from functools import lru_cache
from itertools import chain

import bm25s
import numpy as np
from exchange import Data, Scorer, main

TRIALS = [
    {"k1": 1.5, "b": 0.75, "last": 5},  # bm25s's defaults
    {"k1": 1.5, "b": 0.75, "last": 1},
    {"k1": 1.5, "b": 0.75, "last": 20},
    {"k1": 1.5, "b": 0.75, "last": 60},
    {"k1": 1.2, "b": 0.3, "last": 60},
    {"k1": 1.5, "b": 0.75, "last": 500},
]


def words(texts: list) -> list:
    return bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)


def fit(data: Data, seed: int, windows: list, k1: float, b: float, last: int) -> Scorer:
    texts = [text or "" for text in data.items["text"].to_list()]
    if not any(texts):
        raise SystemExit("bm25: needs item text, this log has none")
    tokens = words(texts)
    index = bm25s.BM25(k1=k1, b=b)
    index.index(tokens, show_progress=False)
    queries = data.requests["query"].to_list()
    asked = any(queries)

    @lru_cache(maxsize=4096)
    def of_word(word: str) -> np.ndarray:
        return index.get_scores([word])

    def scorer(rows: np.ndarray) -> np.ndarray:
        scores = np.zeros((len(rows), data.n_items), dtype=np.float32)
        if asked:
            wanted = words([queries[row] or "" for row in rows])
        else:
            at, history = data.history(rows)
            items, ends = (
                history["item"].to_numpy(),
                np.searchsorted(at, np.arange(len(rows)), side="right"),
            )
            begins = np.maximum(np.searchsorted(at, np.arange(len(rows))), ends - last)
            wanted = []
            for i, j in zip(begins, ends, strict=True):
                wanted.append(list(chain.from_iterable(tokens[item] for item in items[i:j])))
        for i, query in enumerate(wanted):
            for word in query:
                if word in index.vocab_dict:
                    scores[i] += of_word(word)
        return np.where(scores > 0, scores, -np.inf)

    return scorer


if __name__ == "__main__":
    main(fit, TRIALS)
