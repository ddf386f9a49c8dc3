"""Examination by position: how likely a user looks at a place of a list."""

from __future__ import annotations

import numpy as np

from ..errors import KarmafunnelError
from .gbdt import LabelledRows, TreeOptions, fit_gbdt, predict_gbdt

CLICKS = 10  # that a position has at least; deeper ones with fewer are one with the one above


def propensities(
    position: np.ndarray,
    x: np.ndarray,
    clicked: np.ndarray,
    seed: int = 0,
    who: str = "propensities of positions",
) -> np.ndarray:
    """How often a row is clicked at each position, relative to the same row at position 1: float64
    (n_positions,), the first entry being of position 1.

    Boosted trees fit logit P(click) = f(x) + b[position], which is the additive two-tower model
    (Yan et al. 2022, "Revisiting two-tower models for unbiased learning to rank", SIGIR) with trees
    for towers: no path of a tree mixes the position with x. The propensity of position k is the
    number of its clicks over the sum of P(click at position 1) of its rows, as in the
    position-based model. The rows of a position have to overlap in x with those of others: where x
    tells the position, f and b cannot be told apart (Hager et al. 2025, arXiv 2506.20501).

    Args:
        position: of each row, 1 or more, (n,).
        x: features, (n, d).
        clicked: (n,) bool.
        who: whom an error names.

    Raises:
        KarmafunnelError: for too few clicks, by which a propensity could be 0, and for rows that
            were all clicked.
    """
    place = pooled(position, clicked, who)
    if not place.any():  # one position has nothing to compare with
        return np.ones(int(position.max()))
    if clicked.all():
        raise KarmafunnelError(
            who,
            needs="rows that were shown and not clicked",
            found=f"clicks on all {len(clicked):,}",
        )
    d = x.shape[1]
    options = TreeOptions(
        "binary", trees=200, leaves=15, min_rows=50, patience=0, apart=(tuple(range(d)), (d,))
    )
    rows = LabelledRows(np.column_stack([x, place]), clicked)
    trees = fit_gbdt(rows, rows, options, seed=seed)
    at_first = predict_gbdt(trees, np.column_stack([x, np.zeros(len(x))])).astype(np.float64)
    found = np.bincount(place, clicked) / np.bincount(place, at_first)
    found = found / found[0]
    return found[np.minimum(np.arange(int(position.max())), len(found) - 1)]


def pooled(
    position: np.ndarray, clicked: np.ndarray, who: str = "propensities of positions"
) -> np.ndarray:
    """The number from 0 of each row's position, where positions from the first one with fewer than
    CLICKS clicks on are one with the position above: int64 (n,).

    Raises:
        KarmafunnelError: naming `who`, where the first position has fewer.
    """
    clicks = np.bincount(position - 1, clicked)
    few = np.flatnonzero(clicks < CLICKS)
    last = int(few[0]) - 1 if len(few) else len(clicks) - 1
    if last < 0:
        raise KarmafunnelError(
            who,
            needs=f"at least {CLICKS} clicks at position 1, for none to be 0",
            found=f"{int(clicks[0]) if len(clicks) else 0} of {int(clicks.sum())} clicks",
        )
    return np.minimum(position - 1, last)
