"""What a log says of a marketplace: figures that a `Marketplace` takes, each with its 95% interval.

All read W1 and W2 alone: W3 is left to judge a simulation by. What a log is too small for, or lacks
columns of, is a KarmafunnelError that names the parameter, what it needs and what was found. Users
are drawn anew for intervals, since what one of them does is not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import polars as pl
from scipy.optimize import brentq

from ...errors import KarmafunnelError
from ...log import Log
from .click_fit import Fit, fit
from .click_lists import Lists
from .click_protocol import ClickModel
from .clicks import DCM, PBM, SDBN, UBM

FITTED = ("W1", "W2")
LISTS = 200  # fewest to fit a click model to
EVENTS = 100  # fewest of anything else
USERS = 20  # fewest of any interval
DRAWS = 200
MOST_SLOTS = 50
Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Figure:
    """An estimate with its 95% interval; n: what it was estimated from. bound: whether the search
    ended at its bound, where an interval says nothing.
    """

    value: float
    low: float
    high: float
    n: int
    bound: bool = False

    def __str__(self) -> str:
        if self.bound:
            return f"{self.value:.2g} (at the bound of its search: the log does not say how much)"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def need(name: str, what: str, least: int, found: int) -> None:
    """Raises KarmafunnelError, naming the parameter, unless `found` is at least `least`."""
    if found < least:
        raise KarmafunnelError("fit", what=name, needs=f"at least {least:,} {what}", found=found)


def need_of(log: Log, name: str, *capabilities: str) -> None:
    """Raises KarmafunnelError, naming the parameter, for what the log lacks; "clock", too."""
    for one in capabilities:
        there = log.meta["time"] == "clock" if one == "clock" else log.has(one)
        if not there:
            raise KarmafunnelError("fit", what=name, needs=f"a log with {one}", found=log.name)


def fitted_requests(log: Log) -> np.ndarray:
    """Rows of the scenario's requests that fits read, in time order."""
    return log.requests_in(*FITTED)


def ratio(name: str, user: np.ndarray, num: np.ndarray, den: np.ndarray) -> Figure:
    """Sum of num over sum of den, with the interval of the linearised ratio, clustered by user.

    Raises KarmafunnelError for fewer than 20 users.
    """
    users = np.unique(user, return_inverse=True)[1]
    n = int(users.max(initial=-1)) + 1
    need(name, "users", USERS, n)
    value = float(num.sum() / den.sum())
    left = np.bincount(users, num - value * den, minlength=n)
    half = Z * float(np.sqrt((left**2).sum() * n / (n - 1))) / float(den.sum())
    return Figure(value, value - half, value + half, int(den.sum()))


def curvature(loss: Callable[[np.ndarray], float], x: np.ndarray, step: float = 0.02) -> np.ndarray:
    """Standard errors at the minimum of a negative log-likelihood, from its curvature: (p,);
    infinite for what the log does not tell.
    """
    p = len(x)
    eye, h = np.eye(p) * step, np.empty((p, p))
    for i in range(p):
        for j in range(p):
            signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
            four = [loss(x + a * eye[i] + b * eye[j]) for a, b in signs]
            h[i, j] = (four[0] - four[1] - four[2] + four[3]) / (4 * step**2)
    values, vectors = np.linalg.eigh(h)
    inverse = np.where(values > 1e-6, 1 / np.maximum(values, 1e-12), np.inf)
    with np.errstate(invalid="ignore"):
        known = np.where(np.abs(vectors) > 1e-9, vectors**2 * inverse, 0.0)
    return np.asarray(np.sqrt(known.sum(axis=1)))


# -- clicks ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Browsing:
    """The click model that tells held-out lists best.

    fit: on all lists of W1 and W2, from which `fit.intervals(lists)` has intervals. slots: of its
    lists. held_out: mean log-likelihood of lists of W2b after learning from W1 and W2a, by model;
    refused: why others could not be fitted.
    """

    fit: Fit
    lists: Lists
    slots: int
    held_out: dict[str, float]
    refused: dict[str, str]

    @property
    def model(self) -> ClickModel:
        return self.fit.model


def browsing(
    log: Log, models: Sequence[str] = ("PBM", "DCM", "UBM", "SDBN"), prior: float = 10.0
) -> Browsing:
    """The first of these models, from few parameters to many, that tells the clicks of W2b as well
    as the best one does, within two standard errors of the difference.

    Lists are read down to the median length. `prior`: looks that each item starts with.
    """
    need_of(log, "browsing", "exposures", "clicks")
    whole = Lists.of(log, *FITTED)
    need("browsing", "lists", LISTS, len(whole.items))
    assert whole.mask is not None
    slots = int(min(np.median(whole.mask.sum(axis=1)), MOST_SLOTS))
    learn, judge = Lists.of(log, "W1", "W2a", k=slots), Lists.of(log, "W2b", k=slots)
    told: dict[str, np.ndarray] = {}
    refused = {}
    starts = {type(x).__name__: x for x in (PBM.of(slots), DCM.of(slots), UBM.of(slots), SDBN())}
    for name in models:
        try:
            found = fit(starts[name], learn, prior, n_items=log.n_items)
        except KarmafunnelError as error:
            refused[name] = str(error)
            continue
        shown = found.shown(judge.items, judge.mask)
        each = found.model.log_likelihood(shown, judge.clicks)
        if np.isfinite(each).all():
            told[name] = each
        else:
            refused[name] = "it excludes some held-out lists"
    if not told:
        needed = f"lists that {', '.join(models)} can be fitted to"
        said = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise KarmafunnelError("fit", what="browsing", needs=needed, found=said)
    best = max(told, key=lambda name: told[name].mean())
    chosen = next(name for name, each in told.items() if as_good(each, told[best]))
    lists = Lists.of(log, *FITTED, k=slots)
    last = fit(starts[chosen], lists, prior, n_items=log.n_items)
    held_out = {name: float(each.mean()) for name, each in told.items()}
    return Browsing(last, lists, slots, held_out, refused)


def as_good(a: np.ndarray, best: np.ndarray) -> bool:
    """Whether paired figures are lower in the mean by two standard errors at most."""
    less = best - a
    return bool(less.mean() <= 2 * less.std(ddof=1) / np.sqrt(len(less)))


def events_a_request(log: Log, label: str) -> Figure:
    """Clicks, or bought items, a request."""
    name = {"click": "clicks", "purchase": "purchases"}[label]
    need_of(log, name, name)
    requests = fitted_requests(log)
    need(name, "requests", EVENTS, len(requests))
    column = {"click": "clicked", "purchase": "purchased"}[label]
    rows = log.events.filter(pl.col(column).fill_null(False))
    counts = np.bincount(rows["request"].to_numpy(), minlength=log.requests.height)[requests]
    return ratio(name, log.user[requests], counts.astype(float), np.ones(len(requests)))


def exploration(log: Log) -> Figure:
    """The share of shown items whose propensity is below one half: an engine that shows its best
    item unless it explores shows all others by exploring.
    """
    need_of(log, "exploration", "propensity")
    early = log.requests.select("request_id", "user_id", "window")
    early = early.filter(pl.col("window").is_in(("W1", "W2a", "W2b")))
    shown = log.exposures.filter(pl.col("position").is_not_null()).drop_nulls("propensity")
    rows = shown.join(early, on="request_id", how="inner", maintain_order="left")
    need("exploration", "shown items", EVENTS, rows.height)
    user = rows["user_id"].rank("dense").to_numpy()
    rare = (rows["propensity"] < 0.5).to_numpy().astype(float)
    return ratio("exploration", user, rare, np.ones(rows.height))


# -- items -----------------------------------------------------------------------------------------


def popularity(log: Log, seed: int = 0) -> Figure:
    """The exponent s of Zipf's law: the item of rank r is relevant in proportion to r^-s.

    Ranks are not known but guessed from the same counts, which makes a curve look steeper than it
    is. So s is the one whose drawn logs, of as many items and events, look as steep as this one: by
    the mean log rank of events. The interval is that of the mean log rank over draws of users, and
    of logs of this s, whichever is wider.
    """
    label = str(log.meta["label"])
    log.check_label(label)
    truth = log.truth(label)
    mine = truth.filter(log.requests["window"].gather(truth["request"]).is_in(("W1", "W2a", "W2b")))
    n_items, events = log.n_items, mine.height
    need("popularity", "relevant items", EVENTS, events)
    item = mine["item"].to_numpy()
    user = np.unique(log.user[mine["request"].to_numpy()], return_inverse=True)[1]
    need("popularity", "users", USERS, int(user.max()) + 1)
    rng = np.random.default_rng(seed)
    levels = rng.random((8, events))

    def steepness(s: float) -> np.ndarray:
        """Mean log rank in logs of exponent s: (8,); the same draws for every s."""
        share = np.cumsum(np.arange(1, n_items + 1) ** -s)
        share /= share[-1]
        drawn = [np.bincount(np.searchsorted(share, u), minlength=n_items) for u in levels]
        return np.array([mean_log_rank(counts) for counts in drawn])

    found = mean_log_rank(np.bincount(item, minlength=n_items))
    ends = [float(steepness(s).mean()) - found for s in (0.0, 4.0)]
    if ends[0] < 0 or ends[1] > 0:
        needed = "events that are spread less evenly than by chance, and not on a single item"
        raise KarmafunnelError("fit", what="popularity", needs=needed, found=f"{found:.3g}")
    s = float(brentq(lambda x: float(steepness(x).mean()) - found, 0.0, 4.0, xtol=1e-3))
    slope = float((steepness(s + 0.05) - steepness(s - 0.05)).mean()) / 0.1
    n = int(user.max()) + 1
    drawn_users = []
    for _ in range(DRAWS):
        weights = rng.multinomial(n, np.full(n, 1 / n))[user]
        drawn_users.append(mean_log_rank(np.bincount(item, weights, minlength=n_items)))
    noise = max(float(np.std(drawn_users)), float(np.std(steepness(s), ddof=1)))
    half = Z * noise / abs(slope)
    return Figure(s, s - half, s + half, events)


def mean_log_rank(counts: np.ndarray) -> float:
    """Of events, by the ranks of their items' counts."""
    falling = np.sort(counts)[::-1]
    falling = falling[falling > 0]
    return float(np.log(np.arange(1, len(falling) + 1)) @ falling / falling.sum())


@dataclass(frozen=True)
class Prices:
    """Log-normal prices: mean and standard deviation of log prices; by_category: those of each
    coarsest category with enough items, as plain numbers (mean, standard deviation, items).
    """

    mean: Figure
    spread: Figure
    by_category: dict[str, tuple[float, float, int]]


def prices(log: Log) -> Prices:
    """Of items, by list price, else by the last price seen in W1 and W2."""
    need_of(log, "prices", "price")
    price = known_prices(log)
    there = price > 0
    need("prices", "items with a price above 0", EVENTS, int(there.sum()))
    x = np.log(price[there])
    n, mean, sd = len(x), float(x.mean()), float(x.std(ddof=1))
    of_mean, of_sd = Z * sd / np.sqrt(n), Z * sd * np.sqrt((kurtosis(x) - 1) / (4 * n))
    top = log.items["category"].list.first().filter(pl.Series(there))
    grouped = pl.DataFrame({"category": top, "x": x}).drop_nulls().group_by("category")
    each = grouped.agg(pl.col("x").mean().alias("m"), pl.col("x").std().alias("s"), pl.len())
    wide = each.filter(pl.col("len") >= USERS).sort("category")
    return Prices(
        Figure(mean, mean - float(of_mean), mean + float(of_mean), n),
        Figure(sd, sd - float(of_sd), sd + float(of_sd), n),
        {category: (m, s, count) for category, m, s, count in wide.iter_rows()},
    )


def known_prices(log: Log) -> np.ndarray:
    """List prices, else the last price seen in W1 and W2: (n_items,), NaN for unknown."""
    listed = log.items["price"].cast(pl.Float64)
    seen = log.rows.select(
        "request", "item", pl.coalesce("price_shown", "price_paid").alias("last")
    )
    early = log.requests["window"].gather(seen["request"]).is_in(("W1", "W2a", "W2b"))
    last = seen.filter(early).drop_nulls("last").group_by("item", maintain_order=True).last()
    known = np.full(log.n_items, np.nan)
    known[last["item"].to_numpy()] = last["last"].to_numpy()
    return np.where(listed.is_null().to_numpy(), known, listed.fill_null(0.0).to_numpy())


def kurtosis(x: np.ndarray) -> float:
    """Fourth moment over the squared variance: 3 for a normal."""
    centred = x - x.mean()
    return float((centred**4).mean() / max((centred**2).mean() ** 2, 1e-300))


@dataclass(frozen=True)
class Repeats:
    """share: of relevant items, those that the user had before; days: between the two, the mean.
    Both as far as the log looks back.
    """

    share: Figure
    days: Figure | None


def repeats(log: Log) -> Repeats:
    """How often users come back to what they had."""
    need_of(log, "repeats", "users", "clock")
    label = str(log.meta["label"])
    truth = log.truth(label)
    rows = truth["request"].to_numpy()
    frame = pl.DataFrame({"item": truth["item"], "user": log.user[rows], "t": log.t[rows]})
    early = log.requests["window"].gather(truth["request"]).is_in(("W1", "W2a", "W2b"))
    frame = frame.filter(early).sort("t", maintain_order=True)
    gap = pl.col("t") - pl.col("t").shift(1).over("user", "item")
    gaps = frame.select("user", (gap / 86_400_000).alias("days"))
    need("repeats", "relevant items", EVENTS, gaps.height)
    again = gaps["days"].is_not_null().to_numpy()
    user = gaps["user"].to_numpy()
    share = ratio("repeats", user, again.astype(float), np.ones(len(user)))
    days = None
    if len(np.unique(user[again])) >= USERS:
        spent = gaps["days"].fill_null(0.0).to_numpy()
        days = ratio("repeats", user[again], spent[again], np.ones(int(again.sum())))
    return Repeats(share, days)


def query_length(log: Log) -> Figure:
    """Words a query, the mean."""
    need_of(log, "query length", "query")
    requests = fitted_requests(log)
    queries = log.requests["query"].gather(requests)
    asked = queries.is_not_null().to_numpy()
    need("query length", "queries", EVENTS, int(asked.sum()))
    n = queries.drop_nulls().str.count_matches(r"\S+").to_numpy().astype(float)
    return ratio("query length", log.user[requests][asked], n, np.ones(len(n)))
