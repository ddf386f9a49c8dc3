"""Steady-state statistics of a simulation: the end of the warm-up, and intervals of quantiles."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit


def warmup(values: np.ndarray, batch: int = 5) -> int:
    """The number of first values to discard by MSER-5 (White, Cobb and Spratt 2000).

    Values are averaged in batches of `batch` neighbours. The cut, within the first half, minimises
    the standard error of the mean of the remaining batches.
    """
    means = values[: len(values) // batch * batch].reshape(-1, batch).mean(axis=1)
    n = len(means)
    if n < 4:
        return 0
    means = means - means.mean()
    if np.abs(means).max() <= 1e-9 * np.abs(values).max():  # constant up to rounding
        return 0
    backwards = means[::-1]
    left = np.arange(1, n + 1)
    total, squares = np.cumsum(backwards), np.cumsum(backwards**2)
    error = ((squares - total**2 / left) / left**2)[::-1]  # by the number of discarded means
    return int(np.argmin(error[: n // 2])) * batch


def batch_quantiles(
    values: np.ndarray, q: float, level: float = 0.95, batches: int = 10
) -> tuple[float, float | None, float | None]:
    """The q-quantile and its interval at `level`, by batch quantiles.

    Returns:
        The value, low and high. The interval is a t interval over the quantiles of `batches`
        batches of consecutive values; None where there are too few values.
    """
    value, usable = float(np.quantile(values, q)), len(values) // batches * batches
    if usable < batches * max(2 / (1 - q), 10):
        return value, None, None
    each = np.quantile(values[len(values) - usable :].reshape(batches, -1), q, axis=1)
    half = float(stdtrit(batches - 1, (1 + level) / 2) * each.std(ddof=1) / math.sqrt(batches))
    return value, value - half, value + half
