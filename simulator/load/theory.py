"""Closed-form queueing theory of one stage: utilisation, mean wait and share lost.

Rates are in requests per second, times in ms. Arrivals are Poisson unless stated otherwise; service
is first come, first served. Sources: Kleinrock, Queueing Systems I (1975); Allen, Probability,
Statistics and Queueing Theory (1990); Baccelli and Hebuterne, On queues with impatient customers
(1981); Whitt, Approximations for the GI/G/m queue (1993).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from ...errors import KarmafunnelError


@dataclass(frozen=True)
class Steady:
    """The steady state of a stage.

    utilisation: share of time that a server is busy. wait_ms: mean wait of the requests that
    entered the queue, until service or until they left it. lost: share of requests that are never
    served.
    """

    utilisation: float
    wait_ms: float
    lost: float = 0.0


def _check(who: str, servers: int = 1, **numbers: float) -> None:
    """Raises KarmafunnelError unless `servers` is a whole number above 0 and `numbers` are finite
    and above 0 (`squared_cv` may be 0).
    """
    if not isinstance(servers, int) or isinstance(servers, bool) or servers < 1:
        raise KarmafunnelError(
            who, what="servers", needs="a whole number of at least 1", found=repr(servers)
        )
    for name, value in numbers.items():
        known = (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
        if not known or value < 0 or (value == 0 and name != "squared_cv"):
            span = "of at least" if name == "squared_cv" else "above"
            raise KarmafunnelError(
                who, what=name, needs=f"a finite number {span} 0", found=repr(value)
            )


def _stable(who: str, rate: float, service_ms: float, servers: int) -> float:
    """The utilisation; raises KarmafunnelError for 1 or more, where the queue keeps growing."""
    busy = rate / 1000 * service_ms / servers
    if busy >= 1:
        raise KarmafunnelError(
            who,
            needs="a utilisation below 1",
            found=(
                f"{busy:.3g} ({rate:g} per second, {service_ms:g} ms, {servers} servers): the "
                "queue keeps growing"
            ),
        )
    return busy


def erlang_b(load: float, servers: int) -> float:
    """Share of requests blocked in M/G/c/c at an offered load in Erlang (Kleinrock 3.48), by the
    recursion in c, which does not overflow.
    """
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked


def erlang_c(load: float, servers: int) -> float:
    """Share of requests that wait in M/M/c (Kleinrock 3.40), from Erlang B; needs `load` below
    `servers`.
    """
    blocked = erlang_b(load, servers)
    return blocked / (1 - load / servers * (1 - blocked))


def mm1(rate: float, service_ms: float) -> Steady:
    """M/M/1: W = rho / (1 - rho) * S (Kleinrock 3.2)."""
    _check("M/M/1", rate=rate, service_ms=service_ms)
    busy = _stable("M/M/1", rate, service_ms, 1)
    return Steady(busy, busy / (1 - busy) * service_ms)


def mmc(rate: float, service_ms: float, servers: int) -> Steady:
    """M/M/c: W = C(c, a) S / (c - a) with Erlang's C (Kleinrock 3.5)."""
    _check("M/M/c", servers, rate=rate, service_ms=service_ms)
    busy, load = _stable("M/M/c", rate, service_ms, servers), rate / 1000 * service_ms
    return Steady(busy, erlang_c(load, servers) * service_ms / (servers - load))


def mg1(rate: float, service_ms: float, squared_cv: float) -> Steady:
    """M/G/1: W = rho / (1 - rho) * S * (1 + cv²) / 2 (Pollaczek and Khinchine; Kleinrock 5.71).
    `squared_cv`: squared coefficient of variation of the service time.
    """
    _check("M/G/1", rate=rate, service_ms=service_ms, squared_cv=squared_cv)
    busy = _stable("M/G/1", rate, service_ms, 1)
    return Steady(busy, busy / (1 - busy) * service_ms * (1 + squared_cv) / 2)


def md1(rate: float, service_ms: float) -> Steady:
    """M/D/1: half of the wait of M/M/1 (Kleinrock 5.74)."""
    return mg1(rate, service_ms, 0.0)


def tandem(rate: float, stages: Sequence[tuple[float, int]]) -> list[Steady]:
    """M/M/c stages in series, each given as (service_ms, servers): each behaves as an M/M/c with
    the same arrival rate (Burke 1956, Jackson 1957).
    """
    if not stages:
        raise KarmafunnelError("tandem", needs="one or more stages", found="none")
    return [mmc(rate, service_ms, servers) for service_ms, servers in stages]


def mmck(rate: float, service_ms: float, servers: int, queue: int) -> Steady:
    """M/M/c/K: M/M/c with a queue of capacity `queue`; requests that find it full are lost. A
    birth-death chain with K = c + queue (Kleinrock 3.6).

    Any offered load is allowed. The blocking probability comes from the recursion of Erlang B,
    continued with c servers, so that no power overflows.
    """
    _check("M/M/c/K", servers, rate=rate, service_ms=service_ms)
    if not isinstance(queue, int) or isinstance(queue, bool) or queue < 0:
        raise KarmafunnelError(
            "M/M/c/K", what="queue", needs="a whole number of at least 0", found=repr(queue)
        )
    load = rate / 1000 * service_ms
    ratio, full = load / servers, erlang_b(load, servers)
    lost = full
    for _ in range(queue):
        lost = ratio * lost / (1 + ratio * lost)
    # P(c + j) for j = 0 .. queue, relative to the largest of them, so that no power exceeds 1
    j = np.arange(queue + 1)
    weight = ratio ** (j if ratio <= 1 else j - queue)
    unit = lost if ratio > 1 else full / (1 + full * (weight.sum() - 1))
    waiting = float((j * weight).sum() * unit)
    return Steady(ratio * (1 - lost), 1000 * waiting / (rate * (1 - lost)), lost)


def mmc_patience(rate: float, service_ms: float, servers: int, patience_ms: float) -> Steady:
    """M/M/c+D: M/M/c whose requests leave the queue after waiting D = `patience_ms` (Baccelli and
    Hebuterne 1981, section 5).

    The offered wait V has, above 0, the density rate P(c-1) exp(rate min(x, D) - c mu x); requests
    with V > D are lost after waiting D. Any offered load is allowed.
    """
    _check("M/M/c+D", servers, rate=rate, service_ms=service_ms, patience_ms=patience_ms)
    arrive, leave, d = rate / 1000, servers / service_ms, patience_ms
    slope = leave - arrive
    # densities relative to the larger of those at V = 0 and V = D, so that nothing overflows
    z = abs(slope) * d
    if z == 0:
        inside, first = d, d * d / 2
    else:
        inside, first = -math.expm1(-z) / abs(slope), float(special.gammainc(2, z)) / slope**2
    if slope < 0:
        first = d * inside - first  # the first moment measured from D
    at_zero, at_d = (1.0, math.exp(-z)) if slope >= 0 else (math.exp(-z), 1.0)
    last = erlang_b(arrive * service_ms, servers - 1)
    # probability of fewer than c in the system, relative to P(c-1)
    idle = at_zero / last if last > 0 else math.inf
    beyond = at_d / leave
    total = idle + arrive * (inside + beyond)
    lost = arrive * beyond / total
    return Steady(
        arrive * service_ms / servers * (1 - lost), arrive * first / total + d * lost, lost
    )


def allen_cunneen(
    rate: float,
    service_ms: float,
    servers: int,
    squared_cv: float,
    arrivals_squared_cv: float = 1.0,
) -> Steady:
    """G/G/c, an approximation: the wait of M/M/c times (ca² + cs²) / 2 (Allen 1990, 5.4). Exact for
    M/M/c and M/G/1.
    """
    _check("G/G/c", servers, rate=rate, service_ms=service_ms, squared_cv=squared_cv)
    _check("G/G/c arrivals", squared_cv=arrivals_squared_cv)
    exact = mmc(rate, service_ms, servers)
    return Steady(exact.utilisation, exact.wait_ms * (arrivals_squared_cv + squared_cv) / 2)


def wait_quantile_ms(
    rate: float,
    service_ms: float,
    servers: int,
    squared_cv: float,
    q: float,
    arrivals_squared_cv: float = 1.0,
) -> float:
    """The q-quantile of the wait (ms) in G/G/c, an approximation: exponential above 0, with the
    mean of `allen_cunneen`, and Erlang C as the probability of waiting (Whitt 1993). Exact for
    M/M/c.
    """
    if not 0 < q < 1:
        raise KarmafunnelError("G/G/c", what="q", needs="a share between 0 and 1", found=repr(q))
    mean = allen_cunneen(rate, service_ms, servers, squared_cv, arrivals_squared_cv).wait_ms
    waits = erlang_c(rate / 1000 * service_ms, servers)
    return mean / waits * math.log(waits / (1 - q)) if waits > 1 - q else 0.0
