"""What items are worth to users, as a log says it: how much more often each is clicked and bought
than others in its place, what prices do to that, and what it was shown; see `log_fits.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.optimize import minimize
from scipy.special import digamma, gammaln, polygamma

from ...errors import KarmafunnelError
from ...log import Log
from .click_lists import Lists, Shown
from .click_protocol import ClickModel
from .log_fits import (
    EVENTS,
    FITTED,
    USERS,
    Figure,
    Z,
    curvature,
    fitted_requests,
    need,
)
from .market import bisected, sigmoid

NO_SPREAD = 1e4  # shape of a gamma that is a single value, to two digits


@dataclass(frozen=True, eq=False)
class Relative:
    """Rates of items, relative to what is expected of each.

    mean, error: of the log rate of each item given its events, (n_items,), the mean over items 0;
    spread: standard deviation of log rates over items; slope: what a unit of x adds to them, None
    without x.
    """

    mean: np.ndarray
    error: np.ndarray
    spread: Figure
    slope: Figure | None


def relative(
    name: str, events: np.ndarray, expected: np.ndarray, x: np.ndarray | None = None
) -> Relative:
    """Empirical Bayes for rates (Clayton & Kaldor 1987; DuMouchel 1999): events of an item are
    Poisson(c * expected * exp(slope * x) * theta), theta is Gamma(shape, shape), so that events are
    negative binomial; c, slope and shape are the most likely ones. Given its events, theta is
    Gamma(shape + events, shape + what was expected).

    Args:
        name: of the parameter, for messages.
        events, expected, x: (n_items,).

    Raises:
        KarmafunnelError: fewer than 100 events or 20 items, and a search that does not end.
    """
    need(name, "clicks or purchases", EVENTS, int(events.sum()))
    need(name, "items that could be taken", USERS, int((expected > 0).sum()))
    scale = events.sum() / expected.sum()
    there = expected > 0
    n, m = events[there], scale * expected[there]
    y = np.zeros(len(n)) if x is None else x[there]

    def loss(at: np.ndarray) -> float:
        if np.abs(at).max() > 12:
            return 1e12
        shape, mean = np.exp(at[0]), m * np.exp(at[1] + (at[2] * y if x is not None else 0.0))
        told = gammaln(n + shape) - gammaln(shape) + shape * np.log(shape)
        return float(-(told + n * np.log(mean) - (n + shape) * np.log(mean + shape)).sum())

    start = np.zeros(2 if x is None else 3)
    found = minimize(loss, start, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-4})
    if not found.success:
        needed = "a maximum of the likelihood"
        raise KarmafunnelError("fit", what=name, needs=needed, found=found.message)
    best = np.minimum(found.x, [np.log(NO_SPREAD), 12.0, 12.0][: len(start)])
    sd = curvature(loss, best)
    shape = float(np.exp(best[0]))
    ends = np.clip(best[0] + Z * sd[0] * np.array([1.0, -1.0]), -12.0, np.log(NO_SPREAD))
    low, high = (float(np.sqrt(polygamma(1, np.exp(end)))) for end in ends)
    alike = bool(shape > 0.99 * NO_SPREAD)
    spread = Figure(float(np.sqrt(polygamma(1, shape))), low, high, int(events.sum()), alike)
    slope, bend = None, np.zeros(len(events))
    if x is not None:
        value, half = float(best[2]), float(Z * sd[2])
        slope = Figure(value, value - half, value + half, int(events.sum()))
        bend = value * x
    after = shape + events
    mean = digamma(after) - np.log(shape + scale * expected * np.exp(best[1] + bend))
    return Relative(mean - mean.mean(), np.sqrt(polygamma(1, after)), spread, slope)


@dataclass(frozen=True, eq=False)
class Taken:
    """Of each item in W1 and W2, (n_items,): events, its clicks and purchases; expected: in
    proportion to how many an item like any other would have; dearness: log price, less the mean of
    the lists that it is on, None without prices or lists; shown: how often, None without lists;
    there: share of requests that came after the item.
    """

    events: np.ndarray
    expected: np.ndarray
    dearness: np.ndarray | None
    shown: np.ndarray | None
    there: np.ndarray

    @property
    def of_items(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """What `relative` takes."""
        return self.events, self.expected, self.dearness


def taken(log: Log, leaf: np.ndarray, browsing: ClickModel | None, slots: int, label: str) -> Taken:
    """What was taken, and what would be if items were alike.

    With lists, an item is looked at as often as a click model says of its slots, and a click is a
    chance of a purchase. Without lists, each item of a kind is expected as often, while it is
    there.

    Args:
        leaf: the kind of each item, (n_items,).
        browsing: None to read no lists.
        slots: of lists that are read.
        label: "click" or "purchase": what is counted without lists.
    """
    n, there = log.n_items, share_of_time(log)
    counts = {name: events_of(log, name) for name in ("clicked", "purchased")}
    clicks, purchases = counts["clicked"], counts["purchased"]
    if browsing is None:
        events = purchases if label == "purchase" else clicks
        of_kind = np.bincount(leaf, events) / np.maximum(np.bincount(leaf, there), 1e-12)
        return Taken(events, of_kind[leaf] * there, None, None, there)
    lists = Lists.of(log, *FITTED, k=slots)
    mask = lists.mask if lists.mask is not None else np.ones(lists.items.shape, dtype=bool)
    item, one = lists.items[mask], np.ones((1, lists.items.shape[1]))
    aim = min(lists.clicks.sum() / len(mask), 0.9 * browsing.marginal(Shown(one)).sum())

    def clicks_of(bias: float) -> float:
        return float(browsing.marginal(Shown(sigmoid(bias * one))).sum())

    even = sigmoid(bisected(clicks_of, float(aim)) * np.ones(mask.shape))
    alike = Shown(even, mask=mask)
    looked = browsing.marginal(alike)[mask]
    on_lists = np.bincount(item, lists.clicks[mask], n)
    expected = np.bincount(item, looked, n) * on_lists.sum() / looked.sum()
    expected += clicks * purchases.sum() / max(clicks.sum(), 1)
    dearness = beside_others(log, slots) if log.has("price") else None
    return Taken(on_lists + purchases, expected, dearness, np.bincount(item, minlength=n), there)


def events_of(log: Log, column: str) -> np.ndarray:
    """How often each item was clicked, or bought, in W1 and W2: (n_items,)."""
    rows = log.events.filter(pl.col(column).fill_null(False))
    rows = rows.filter(pl.col("request").is_in(fitted_requests(log).tolist()))
    return np.bincount(rows["item"].to_numpy(), minlength=log.n_items).astype(float)


def beside_others(log: Log, slots: int) -> np.ndarray:
    """Log price of each item less the mean of its lists, the mean over them: (n_items,), 0 for
    unknown.
    """
    rows = log.rows.filter((pl.col("position") <= slots) & (pl.col("price_shown") > 0))
    rows = rows.filter(pl.col("request").is_in(fitted_requests(log).tolist()))
    x = pl.col("price_shown").log()
    each = rows.select("item", (x - x.mean().over("request")).alias("x")).group_by("item")
    found, dearness = each.agg(pl.col("x").mean()), np.zeros(log.n_items)
    dearness[found["item"].to_numpy()] = found["x"].to_numpy()
    return dearness


def share_of_time(log: Log) -> np.ndarray:
    """The share of requests in W1 and W2 that came after each item did: (n_items,)."""
    if "available_from" not in log.items.columns or log.meta["time"] == "order":
        return np.ones(log.n_items)
    since = log.items["available_from"].dt.epoch("ms").fill_null(0).to_numpy()
    t = log.t[fitted_requests(log)]
    return 1.0 - np.searchsorted(t, since) / max(len(t), 1)
