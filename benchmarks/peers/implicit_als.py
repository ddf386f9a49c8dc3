"""implicit's AlternatingLeastSquares (Hu et al. 2008); a request's user is folded in from the
history before it (`recalculate_user`).

The first trial is what implicit's own tutorial does (lastfm: bm25_weight with K1=100, B=0.8; 64
factors, regularization 0.05, alpha 2); W2b chooses among six.
"""

import numpy as np
from exchange import Data, Scorer, main
from implicit.cpu.als import AlternatingLeastSquares
from implicit.nearest_neighbours import bm25_weight
from scipy import sparse

TRIALS = [
    {"factors": 64, "regularization": 0.05, "alpha": 2.0, "weight": "bm25"},
    # the class's defaults
    {"factors": 100, "regularization": 0.01, "alpha": 1.0, "weight": "count"},
    {"factors": 256, "regularization": 5.0, "alpha": 2.0, "weight": "count"},
    {"factors": 64, "regularization": 1.0, "alpha": 5.0, "weight": "count"},
    {"factors": 128, "regularization": 0.05, "alpha": 2.0, "weight": "bm25"},
    {"factors": 128, "regularization": 5.0, "alpha": 5.0, "weight": "count"},
]


def bm25_of_history(
    history: sparse.csr_matrix, item_sums: np.ndarray, k1: float = 100, b: float = 0.8
) -> sparse.csr_matrix:
    """What `bm25_weight` makes of (items, users), for users it has not seen: item lengths are those
    of the training matrix.
    """
    found = history.tocoo()
    idf = np.log(len(item_sums)) - np.log1p(np.bincount(found.row, minlength=history.shape[0]))
    length = (1.0 - b) + b * item_sums / item_sums.mean()
    data = found.data * (k1 + 1.0) / (k1 * length[found.col] + found.data) * idf[found.row]
    return sparse.csr_matrix((data, (found.row, found.col)), shape=history.shape)


def fit(
    data: Data,
    seed: int,
    windows: list,
    factors: int,
    regularization: float,
    alpha: float,
    weight: str,
) -> Scorer:
    counts = data.matrix(windows)
    sums = np.asarray(counts.sum(axis=0)).ravel()
    train = bm25_weight(counts.T, K1=100, B=0.8).T.tocsr() if weight == "bm25" else counts
    model = AlternatingLeastSquares(
        factors=factors,
        regularization=regularization,
        alpha=alpha,
        iterations=15,
        num_threads=1,
        random_state=seed,
    )
    model.fit(train, show_progress=False)

    def scorer(rows: np.ndarray) -> np.ndarray:
        history = data.history_matrix(rows)
        history = (history @ sparse.diags((sums > 0).astype(np.float32))).tocsr()
        history.eliminate_zeros()
        some = np.flatnonzero(np.diff(history.indptr))
        scores = np.full(history.shape, -np.inf, dtype=np.float32)
        if len(some):
            had = bm25_of_history(history[some], sums) if weight == "bm25" else history[some]
            scores[some] = (
                model.recalculate_user(np.arange(len(some)), had.tocsr()) @ model.item_factors.T
            )
        scores[:, sums == 0] = -np.inf
        return scores

    return scorer


if __name__ == "__main__":
    main(fit, TRIALS)
