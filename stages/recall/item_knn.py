"""Recall by item-kNN: items that other users chose together with the user's last ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
from scipy import sparse

from ...bounds import needs
from ..context import Context
from ..frame import ITEM, position_in_group
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage
from .proposals import propose_found


@dataclass(frozen=True, repr=False)
class ItemKNN(Stage):
    """Neighbours of the user's last `depth` items by the cosine of co-occurrence within users (W1);
    the newest item has the largest weight.

    Sarwar et al. 2001, with `shrink` against pairs by chance; each item has at most `neighbours`.
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

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedItemKNN:
        log = context.log
        events = log.events.filter(pl.col("t") < log.end_of("W1"))
        pairs = events.select("user", ITEM).unique(maintain_order=True)
        ones = np.ones(pairs.height, dtype=np.float32)
        shape = (int(log.user.max()) + 1, log.n_items)
        matrix = sparse.csr_matrix(
            (ones, (pairs["user"].to_numpy(), pairs[ITEM].to_numpy())), shape=shape
        )
        return FittedItemKNN(self, context, cosine_neighbours(matrix, self.neighbours, self.shrink))

    def load(self, folder: Path, context: Context) -> FittedItemKNN:
        return FittedItemKNN(self, context, sparse.load_npz(folder / "neighbours.npz"))


def cosine_neighbours(
    matrix: sparse.csr_matrix, neighbours: int, shrink: float
) -> sparse.csr_matrix:
    """Item-item cosine of a (users, items) matrix with the `neighbours` nearest of each item, in
    blocks so that memory stays small.
    """
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
        near = position_in_group(row) < neighbours
        entries = value[near].astype(np.float32), (row[near], column[near])
        blocks.append(sparse.csr_matrix(entries, shape=(block.shape[0], matrix.shape[1])))
    return sparse.vstack(blocks).tocsr()


@dataclass(eq=False, repr=False)
class FittedItemKNN(Retriever):
    stage: ItemKNN
    near: sparse.csr_matrix
    channels = ("itemknn",)

    def save(self, folder: Path) -> None:
        sparse.save_npz(folder / "neighbours.npz", self.near)

    def _scores(self, requests: np.ndarray) -> sparse.csr_matrix:
        """Scores by the neighbours of the history, weighted by its age: (n_requests, n_items)."""
        history = self.context.log.asof.history(requests, self.stage.depth).items
        row, column = np.nonzero(history >= 0)
        weight = self.stage.decay ** (history.shape[1] - 1 - column)
        shape = (len(requests), self.context.log.n_items)
        had = sparse.csr_matrix(
            (weight.astype(np.float32), (row, history[row, column])), shape=shape
        )
        return (had @ self.near).tocsr()

    def propose(self, rows: Rows) -> pl.DataFrame:
        scores = self._scores(rows.requests)
        group = np.repeat(np.arange(len(rows.requests)), np.diff(scores.indptr))
        found = group, scores.indices, scores.data
        return propose_found(self.context, rows.requests, self.stage.k, found)

    def score(self, rows: Rows) -> np.ndarray:
        if len(rows.item) == 0:
            return np.zeros(0, dtype=np.float32)
        scores = np.asarray(self._scores(rows.requests)[rows.group, rows.item])
        return scores.ravel().astype(np.float32)
