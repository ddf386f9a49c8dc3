"""When and how often people visit, and when they leave, as a log says it; see `log_fits.py`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.optimize import minimize

from ...errors import KarmafunnelError
from ...log import Log
from .log_fits import EVENTS, USERS, Figure, Z, curvature, fitted_requests, need, need_of, ratio
from .marketplace import Activity, GammaRates, LogNormalRates, Rhythm
from .shoppers import DAY

GAP = 30 * 60_000  # ms without a request after which a session has ended, where none is named
DAYS = 7  # fewest of a log for visiting rates
NODES = 64  # of the integral over visiting rates
HOURS_OF = 3_600_000
SURE = 7.0  # log odds of having arrived, beyond which the likelihood is flat


def sessions(log: Log, requests: np.ndarray) -> np.ndarray:
    """The session of each of some requests, (n,): the log's own, else requests of a user without
    half an hour between them.
    """
    if log.requests["session_id"].gather(requests).null_count() == 0:
        return np.unique(log.session[requests], return_inverse=True)[1]
    need_of(log, "sessions", "users", "clock")
    return by_gaps(log.user[requests], log.t[requests])


def by_gaps(user: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The session of each request, (n,) from 0: requests of a user without half an hour between
    them.
    """
    order = np.lexsort((t, user))
    begins = np.r_[True, (np.diff(user[order]) > 0) | (np.diff(t[order]) > GAP)]
    found = np.empty(len(t), dtype=np.int64)
    found[order] = np.cumsum(begins) - 1
    return found


@dataclass(frozen=True)
class GoingOn:
    """Sessions: goes_on: the chance that a request is followed by another one, so that lengths are
    geometric; after: (searched, browsed) chances by what came before: "purchase", "click" (without
    a purchase), "nothing". A case that a log has too few of is left out; every: the chances after
    any request. longest: requests of the longest one.
    """

    goes_on: Figure
    longest: int
    every: tuple[Figure, Figure]
    after: dict[str, tuple[Figure, Figure]]


def going_on(log: Log) -> GoingOn:
    """Whether users go on after a request, and how."""
    requests = fitted_requests(log)
    need("sessions", "requests", EVENTS, len(requests))
    session, user = sessions(log, requests), log.user[requests]
    order = np.lexsort((np.arange(len(requests)), session))
    follows = np.zeros(len(requests), dtype=bool)
    follows[order[:-1]] = np.diff(session[order]) == 0
    next_one = np.zeros(len(requests), dtype=np.int64)
    next_one[order[:-1]] = order[1:]
    queries = log.requests["query"].gather(requests).is_not_null().to_numpy()
    searched = follows & queries[next_one]
    browsed, ones = follows & ~searched, np.ones(len(requests))
    whole = ratio("sessions", user, follows.astype(float), ones)

    def chances(mine: np.ndarray) -> tuple[Figure, Figure]:
        """Of some of the requests: that a search follows, or browsing."""
        whose, one = user[mine], ones[mine]
        found = (ratio("sessions", whose, x[mine].astype(float), one) for x in (searched, browsed))
        return next(found), next(found)

    after = {
        name: chances(mine)
        for name, mine in outcomes(log, requests).items()
        if mine.sum() >= EVENTS and len(np.unique(user[mine])) >= USERS
    }
    every = chances(np.ones(len(requests), dtype=bool))
    return GoingOn(whole, int(np.bincount(session).max()), every, after)


def outcomes(log: Log, requests: np.ndarray) -> dict[str, np.ndarray]:
    """By what a request led to: which of some requests did, (n,) bool each."""
    flags = []
    for column in ("purchased", "clicked"):
        rows = log.events.filter(log.events[column].fill_null(False))["request"].to_numpy()
        flags.append((np.bincount(rows, minlength=log.requests.height) > 0)[requests])
    bought, clicked = flags
    return {"purchase": bought, "click": clicked & ~bought, "nothing": ~clicked & ~bought}


def rhythm(log: Log) -> Rhythm:
    """Shares of the hours of a day (UTC), which sum to 24, and factors of the days of a week.

    A log of less than two weeks has no week of its own: its factors are 1. One of dates without
    times of day has the hours of a `Rhythm()`.
    """
    need_of(log, "rhythm", "clock")
    requests = fitted_requests(log)
    t = log.t[requests]
    need("rhythm", "requests", 24 * USERS, len(t))
    days = (int(t[-1]) - int(t[0])) / DAY
    need("rhythm", "days", 1, int(days))
    hours = np.bincount(t % DAY // HOURS_OF, minlength=24).astype(float)
    if (t % DAY == t[0] % DAY).all():
        hours = np.array(Rhythm().hours)
    week = np.ones(7)
    if days >= 14:
        whole = t < t[0] + int(days // 7) * 7 * DAY  # each weekday as often
        week = np.bincount((t[whole] // DAY + 3) % 7, minlength=7).astype(float)  # 1970: Thursday
    return Rhythm(
        tuple((hours * 24 / hours.sum()).tolist()), tuple((week * 7 / week.sum()).tolist())
    )


@dataclass(frozen=True)
class Visiting:
    """How often users visit, by maximum likelihood.

    activity: the better of gamma and log-normal rates; mean, spread: its parameters (`shape` of
    gamma rates). arrived: share of users who were not there from the start but came on one of the
    days, each as likely. users: all of them, with those who have not visited yet. days: of the log.
    log_likelihood: by kind of rates.
    """

    activity: Activity
    mean: Figure
    spread: Figure
    arrived: Figure
    users: float
    days: int
    log_likelihood: dict[str, float]


def visiting(log: Log) -> Visiting:
    """Visiting rates and arrivals of users, from the days on which each of them was there: the
    first one, and how many.

    On each day that users know the shop, they visit with the chance 1 - exp(-rate). Users without
    a visit are not in the log, so the likelihood is of those with one.
    """
    need_of(log, "visiting rate", "users", "clock")
    requests = fitted_requests(log)
    t, user = log.t[requests], log.user[requests]
    whole = int((t[-1] - t[0] + 1) // DAY) if len(t) else 0  # there from start to end
    need("visiting rate", "whole days", DAYS, whole)
    day = (t - t[0]) // DAY
    visits = np.unique(user[day < whole].astype(np.int64) * 100_000 + day[day < whole])
    who, when = visits // 100_000, visits % 100_000
    _, first, count = np.unique(who, return_index=True, return_counts=True)
    need("visiting rate", "users", EVENTS, len(first))
    need("visiting rate", "users who came twice", USERS, int((count > 1).sum()))
    seen = Seen(when[first], count, whole)
    fits = {kind: seen.best(kind) for kind in (GammaRates, LogNormalRates)}
    best = max(fits, key=lambda kind: -fits[kind].fun)
    x, sd = fits[best].x, curvature(lambda at: seen.loss(at, best), fits[best].x)
    ends = [(float(a), float(b)) for a, b in zip(x - Z * sd, x + Z * sd, strict=True)]
    n = len(first)
    taken, held = rates(best, x), (np.exp(x[0]), np.exp(x[1]))
    cut = [not np.isclose(a, b, rtol=1e-6) for a, b in zip(kept(taken), held, strict=True)]
    mean, spread = (
        Figure(float(np.exp(value)), float(np.exp(low)), float(np.exp(high)), n, bound)
        for value, (low, high), bound in zip(x[:2], ends[:2], cut, strict=True)
    )
    share = Figure(
        logistic(x[2]), logistic(ends[2][0]), logistic(ends[2][1]), n, bool(abs(x[2]) > SURE)
    )
    never = seen.unseen(best, x)
    return Visiting(
        taken,
        mean,
        spread,
        share,
        n / (1 - never),
        whole,
        {kind.__name__: -float(found.fun) for kind, found in fits.items()},
    )


def logistic(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def rates(kind: type[Activity], x: np.ndarray) -> Activity:
    """The rates of log mean and log spread."""
    mean, spread = np.exp(x[:2]).tolist()
    return kind(min(mean, 24.0), min(max(spread, 0.01), 5.0 if kind is LogNormalRates else 1000.0))  # type: ignore[call-arg]


def kept(activity: Activity) -> tuple[float, float]:
    """Mean and spread of rates, as they are held within their bounds."""
    mean, spread = (getattr(activity, one.name) for one in fields(activity)[:2])
    return mean, spread


class Seen:
    """First day and number of days of users, and how likely rates and arrivals make them; x: log
    mean, log spread, log odds of having arrived.
    """

    def __init__(self, first: np.ndarray, count: np.ndarray, days: int):
        pairs, self.often = np.unique(np.stack([first, count], axis=1), axis=0, return_counts=True)
        self.first, self.count, self.days = pairs[:, 0], pairs[:, 1], days
        self.start = np.log([max(count.mean() / days, 1e-4), 1.0, 0.3])
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        self.chance, self.weight = (nodes + 1) / 2, weights / 2

    def parts(self, kind: type[Activity], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probability of each pair (pairs,), and of no visit at all, as an array (1,)."""
        rate = np.maximum(rates(kind, x).rate(self.chance), 1e-12)[None, :]
        share, days = logistic(x[2]), self.days
        first, count = self.first[:, None], self.count[:, None]
        log_visit, log_stay = np.log(-np.expm1(-rate)), -rate  # stays away: exp(-rate)
        there = np.exp(count * log_visit + (days - count) * log_stay)
        # arrived on day s <= first: days - s days, so (days - s - count) without a visit
        sums = np.exp(log_stay * (days - first - count)) * geometric(rate, first + 1)
        late = np.exp(count * log_visit) * sums / days
        never_late = np.exp(log_stay) * geometric(rate, np.array([[days]])) / days
        never = (1 - share) * np.exp(days * log_stay) + share * never_late
        seen = (1 - share) * there + share * late
        return seen @ self.weight, never @ self.weight

    def loss(self, x: np.ndarray, kind: type[Activity]) -> float:
        """Negative log-likelihood."""
        if np.abs(x).max() > 12:
            return 1e12
        seen, never = self.parts(kind, x)
        with np.errstate(divide="ignore"):
            told = self.often @ (np.log(seen) - np.log1p(-never))
        return float(-told) if np.isfinite(told) else 1e12

    def best(self, kind: type[Activity]) -> Any:
        """The optimum; raises KarmafunnelError where the search does not end."""
        found = minimize(
            self.loss, self.start, (kind,), method="Nelder-Mead",
            options={"maxiter": 2000, "xatol": 1e-4, "fatol": 1e-4},
        )  # fmt: skip
        if not found.success:
            needed = f"a maximum of the likelihood of {kind.__name__}"
            raise KarmafunnelError("fit", what="visiting rate", needs=needed, found=found.message)
        return found

    def unseen(self, kind: type[Activity], x: np.ndarray) -> float:
        """Share of users who never visited."""
        return float(self.parts(kind, x)[1][0])


def geometric(rate: np.ndarray, n: np.ndarray) -> np.ndarray:
    """1 + e^-rate + ... of n terms, stable for small rates."""
    return np.asarray(np.expm1(-rate * n) / np.expm1(-rate))
