"""implicit's item-item nearest neighbours (cosine, TF-IDF, BM25); the first trial is the default of
each kind, W2b chooses among eight.
"""

import numpy as np
from exchange import Data, Scorer, main
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender

KINDS = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}
TRIALS = [{"kind": kind, "K": k} for kind in KINDS for k in (20, 200)] + [
    {"kind": "bm25", "K": 50},
    {"kind": "bm25", "K": 500},
]


def fit(data: Data, seed: int, windows: list, kind: str, K: int) -> Scorer:
    model = KINDS[kind](K=K, num_threads=1)
    model.fit(data.matrix(windows), show_progress=False)

    def scorer(rows: np.ndarray) -> np.ndarray:
        # as its own `recommend` does
        scores = (data.history_matrix(rows) @ model.similarity).toarray().astype(np.float32)
        return np.where(scores > 0, scores, -np.inf)

    return scorer


if __name__ == "__main__":
    main(fit, TRIALS)
