"""What theory says of one stage under load, in closed form: utilisation, mean wait, share lost.

Rates are requests a second, times ms. Arrivals are Poisson unless said otherwise; first come, first
served. Sources: Kleinrock, Queueing Systems I (1975); Allen, Probability, Statistics and Queueing
Theory (1990); Baccelli and Hebuterne, On queues with impatient customers (1981); Whitt,
Approximations for the GI/G/m queue (1993).
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
    """The long run of a stage: how busy each server is, the mean wait (ms) of those that were not
    turned away at the door (until service, or until they left the queue), and the share that is
    never served.
    """

    utilisation: float
    wait_ms: float
    lost: float = 0.0


def _asked(who: str, servers: int = 1, **numbers: float) -> None:
    """Raises KarmafunnelError unless `servers` is a whole number above 0 and the numbers are finite
    and above 0 (a squared cv: or 0).
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
    """Utilisation; raises KarmafunnelError from 1 on, where the queue grows without end."""
    busy = rate / 1000 * service_ms / servers
    if busy >= 1:
        raise KarmafunnelError(
            who,
            needs="a utilisation below 1",
            found=(
                f"{busy:.3g} ({rate:g} a second, {service_ms:g} ms, {servers} servers): the queue "
                "grows without end"
            ),
        )
    return busy


def erlang_b(load: float, servers: int) -> float:
    """Share blocked in M/G/c/c at an offered load of so many Erlang (Kleinrock 3.48), by its
    recursion, which does not overflow.
    """
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked


def erlang_c(load: float, servers: int) -> float:
    """Share that has to wait in M/M/c (Kleinrock 3.40), by Erlang B; `load` below `servers`."""
    blocked = erlang_b(load, servers)
    return blocked / (1 - load / servers * (1 - blocked))


def mm1(rate: float, service_ms: float) -> Steady:
    """M/M/1: W = rho / (1 - rho) * S (Kleinrock 3.2)."""
    _asked("M/M/1", rate=rate, service_ms=service_ms)
    busy = _stable("M/M/1", rate, service_ms, 1)
    return Steady(busy, busy / (1 - busy) * service_ms)


def mmc(rate: float, service_ms: float, servers: int) -> Steady:
    """M/M/c: W = C(c, a) S / (c - a), C of Erlang (Kleinrock 3.5)."""
    _asked("M/M/c", servers, rate=rate, service_ms=service_ms)
    busy, load = _stable("M/M/c", rate, service_ms, servers), rate / 1000 * service_ms
    return Steady(busy, erlang_c(load, servers) * service_ms / (servers - load))


def mg1(rate: float, service_ms: float, squared_cv: float) -> Steady:
    """M/G/1: W = rho / (1 - rho) * S * (1 + cv²) / 2 (Pollaczek and Khinchine; Kleinrock 5.71).
    `squared_cv`: that of service time.
    """
    _asked("M/G/1", rate=rate, service_ms=service_ms, squared_cv=squared_cv)
    busy = _stable("M/G/1", rate, service_ms, 1)
    return Steady(busy, busy / (1 - busy) * service_ms * (1 + squared_cv) / 2)


def md1(rate: float, service_ms: float) -> Steady:
    """M/D/1: half the wait of M/M/1 (Kleinrock 5.74)."""
    return mg1(rate, service_ms, 0.0)


def tandem(rate: float, stages: Sequence[tuple[float, int]]) -> list[Steady]:
    """A line of M/M/c stages, (service_ms, servers) each: every one is an M/M/c of the same rate
    (Burke 1956, Jackson 1957).
    """
    if not stages:
        raise KarmafunnelError("tandem", needs="one or more stages", found="none")
    return [mmc(rate, service_ms, servers) for service_ms, servers in stages]


def mmck(rate: float, service_ms: float, servers: int, queue: int) -> Steady:
    """M/M/c with room for `queue` waiting requests, others are lost: the birth-death chain of K = c
    + queue states (Kleinrock 3.6).

    Any utilisation will do. Blocking by the recursion of Erlang B, in which at most c serve; then
    no power overflows.
    """
    _asked("M/M/c/K", servers, rate=rate, service_ms=service_ms)
    if not isinstance(queue, int) or isinstance(queue, bool) or queue < 0:
        raise KarmafunnelError(
            "M/M/c/K", what="queue", needs="a whole number of at least 0", found=repr(queue)
        )
    load = rate / 1000 * service_ms
    ratio, full = load / servers, erlang_b(load, servers)
    lost = full
    for _ in range(queue):
        lost = ratio * lost / (1 + ratio * lost)
    # P(c + j) for j = 0 .. queue, as powers of what is at most 1, in units of the first or of the
    # last of them
    j = np.arange(queue + 1)
    weight = ratio ** (j if ratio <= 1 else j - queue)
    unit = lost if ratio > 1 else full / (1 + full * (weight.sum() - 1))
    waiting = float((j * weight).sum() * unit)
    return Steady(ratio * (1 - lost), 1000 * waiting / (rate * (1 - lost)), lost)


def mmc_patience(rate: float, service_ms: float, servers: int, patience_ms: float) -> Steady:
    """M/M/c whose requests leave the queue after waiting `patience_ms`: M/M/c+D (Baccelli and
    Hebuterne 1981, section 5).

    The wait V that a request is offered has, above 0, the density rate P(c-1) exp(rate min(x, D) -
    c mu x); those with V > D are lost, and wait D. Any utilisation will do.
    """
    _asked("M/M/c+D", servers, rate=rate, service_ms=service_ms, patience_ms=patience_ms)
    arrive, leave, d = rate / 1000, servers / service_ms, patience_ms
    slope = leave - arrive
    # weights relative to that of V = D, or of V = 0 where that is larger, so that nothing overflows
    z = abs(slope) * d
    if z == 0:
        inside, first = d, d * d / 2
    else:
        inside, first = -math.expm1(-z) / abs(slope), float(special.gammainc(2, z)) / slope**2
    if slope < 0:
        first = d * inside - first  # seen from D backwards
    at_zero, at_d = (1.0, math.exp(-z)) if slope >= 0 else (math.exp(-z), 1.0)
    last = erlang_b(arrive * service_ms, servers - 1)
    # fewer than c in the system, in units of P(c-1)
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
    """G/G/c, approximately: the wait of M/M/c times (ca² + cs²) / 2 (Allen 1990, 5.4). Exact for
    M/M/c and M/G/1.
    """
    _asked("G/G/c", servers, rate=rate, service_ms=service_ms, squared_cv=squared_cv)
    _asked("G/G/c arrivals", squared_cv=arrivals_squared_cv)
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
    """The wait that a share q of requests stays below in G/G/c, approximately: exponential above 0,
    with the mean of Allen and Cunneen and the share of Erlang C that waits (Whitt 1993). Exact for
    M/M/c.
    """
    if not 0 < q < 1:
        raise KarmafunnelError("G/G/c", what="q", needs="a share between 0 and 1", found=repr(q))
    mean = allen_cunneen(rate, service_ms, servers, squared_cv, arrivals_squared_cv).wait_ms
    waits = erlang_c(rate / 1000 * service_ms, servers)
    return mean / waits * math.log(waits / (1 - q)) if waits > 1 - q else 0.0
