"""Arrival processes: Poisson, a daily curve with bursts, a flash crowd, or a logged trace.

Except for a trace, arrival times are n unit-rate exponential gaps rescaled to the rate. Request i
therefore uses the same random draw at every rate, and differences between rates and policies are
paired.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ...bounds import check_bound
from ...errors import KarmafunnelError
from ...log import Log

GRID = 20_001  # points on which a changing rate is integrated


class Arrivals:
    """An arrival process. `rate`: the configured requests per second. `stationary`: whether the
    rate is constant over time.
    """

    rate: float
    stationary = False

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Arrival times of n requests in ms: float64 (n,), ascending and not negative."""
        raise NotImplementedError

    def faster(self, times: float) -> Arrivals:
        """The same arrivals with `times` the rate."""
        return replace(self, rate=self.rate * times)  # type: ignore[type-var]


def _check(**values: float) -> None:
    for name, value in values.items():
        check_bound("arrivals", "any_rate" if name == "rate" else name, **{name: value})


@dataclass(frozen=True)
class Poisson(Arrivals):
    """A Poisson process of `rate` requests per second."""

    rate: float
    stationary = True

    def __post_init__(self) -> None:
        _check(rate=self.rate)

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        _check(requests=n)
        return np.cumsum(rng.exponential(size=n)) * (1000 / self.rate)


def _stretched(gaps: np.ndarray, seconds: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Times (ms) of a Poisson process with a time-varying rate, by inversion of the integrated rate
    (Cinlar 1975). Beyond the grid the last rate applies.
    """
    step = (rate[1:] + rate[:-1]) / 2 * np.diff(seconds)
    integral = np.concatenate([[0.0], np.cumsum(step)])
    total = np.cumsum(gaps)
    inside = np.interp(total, integral, seconds)
    return 1000 * np.where(
        total > integral[-1], seconds[-1] + (total - integral[-1]) / rate[-1], inside
    )


@dataclass(frozen=True)
class Daily(Arrivals):
    """A daily curve: a cosine with the mean `rate` (requests per second, without bursts), which is
    lowest at the ends of the day and reaches `peak` times the mean at midday.

    `peak` is at most 2, where the lowest rate is 0. A day lasts `day_s` seconds; by default the n
    requests span one day. Each burst begins at a random time, multiplies the rate by `burst` and
    lasts a hundredth of the day.
    """

    rate: float
    peak: float = 1.8
    day_s: float | None = None
    bursts: int = 2
    burst: float = 2.0

    def __post_init__(self) -> None:
        _check(
            rate=self.rate,
            peak=self.peak,
            bursts=self.bursts,
            burst=self.burst,
            day_s=1.0 if self.day_s is None else self.day_s,
        )

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        _check(requests=n)
        gaps, starts = rng.exponential(size=n), rng.uniform(size=self.bursts)
        span = n / self.rate
        day = self.day_s or span
        seconds = np.linspace(0, max(span, day), GRID)
        phase = seconds / day % 1
        rate = 1 - (self.peak - 1) * np.cos(2 * math.pi * phase)
        for start in starts:
            rate = np.where((phase >= start) & (phase < start + 0.01), rate * self.burst, rate)
        return _stretched(gaps, seconds, self.rate * np.maximum(rate, 1e-3))


@dataclass(frozen=True)
class Flash(Arrivals):
    """A flash crowd: `rate` requests per second; at the fraction `at` of the run the rate jumps to
    `factor` times that, then decays exponentially with the time constant `fade_s` (seconds).
    """

    rate: float
    factor: float = 5.0
    at: float = 0.4
    fade_s: float = 10.0

    def __post_init__(self) -> None:
        _check(rate=self.rate, factor=self.factor, fade_s=self.fade_s, at=self.at)

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        _check(requests=n)
        span = n / self.rate
        since = np.linspace(0, span, GRID) - self.at * span
        rate = 1 + (self.factor - 1) * np.where(
            since >= 0, np.exp(-np.maximum(since, 0) / self.fade_s), 0
        )
        return _stretched(rng.exponential(size=n), np.linspace(0, span, GRID), self.rate * rate)


@dataclass(frozen=True, eq=False)
class Trace(Arrivals):
    """Logged arrivals: `times_ms` (n,), ascending, replayed at `speed` times the original rate.
    `ids`: the logged requests, where known.

    Raises:
        KarmafunnelError: for an empty trace, and times that are descending or not finite.
    """

    times_ms: np.ndarray
    speed: float = 1.0
    ids: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        times = np.asarray(self.times_ms, dtype=np.float64)
        object.__setattr__(self, "times_ms", times)
        _check(speed=self.speed)
        if len(times) == 0:
            raise KarmafunnelError(
                "arrivals", what="a trace", needs="at least one request", found="none"
            )
        if not np.isfinite(times).all() or times[0] < 0:
            bad = times[~(np.isfinite(times) & (times >= 0))]
            raise KarmafunnelError(
                "arrivals",
                what="a trace",
                needs="finite times of at least 0 ms",
                found=f"{bad[0]:g}",
            )
        if (back := np.flatnonzero(np.diff(times) < 0)).size:
            i = int(back[0])
            raise KarmafunnelError(
                "arrivals",
                what="a trace",
                needs="ascending times",
                found=f"{times[i + 1]:g} ms after {times[i]:g} ms (request {i + 1})",
            )
        if self.ids and len(self.ids) != len(times):
            raise KarmafunnelError(
                "arrivals",
                what="a trace",
                needs=f"an id for each of {len(times)} requests",
                found=f"{len(self.ids)}",
            )

    @classmethod
    def of(cls, log: Log, rows: np.ndarray, rate: float | None = None) -> Trace:
        """The arrivals of logged requests; requests with the same timestamp arrive together.

        Args:
            rows: row numbers of the requests, ascending, (n,).
            rate: requests per second on average, to which time is rescaled; default: the logged
                times.

        Raises:
            KarmafunnelError: for a log without timestamps, and where all requests have the same.
        """
        if log.meta["time"] != "clock":
            raise KarmafunnelError(
                f"log {log.name}",
                needs="timestamps for arrivals",
                found="only an order of requests",
                hint="give a rate instead",
            )
        times = (log.t[rows] - log.t[rows[0]]).astype(np.float64)
        if rate is not None:
            _check(rate=rate)
        span = times[-1] / 1000
        if span == 0:
            raise KarmafunnelError(
                f"log {log.name}",
                needs="requests at different times",
                found=f"all {len(times)} at once",
            )
        speed = 1.0 if rate is None else rate * span / len(times)
        return cls(times, speed, tuple(log.requests["request_id"][rows].to_list()))

    def faster(self, times: float) -> Trace:
        return replace(self, speed=self.speed * times)

    @property
    def rate(self) -> float:  # type: ignore[override]
        """Requests per second on average."""
        span = self.times_ms[-1] / self.speed / 1000
        return len(self.times_ms) / span if span else math.inf

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        _check(requests=n)
        if n > len(self.times_ms):
            raise KarmafunnelError(
                "arrivals",
                needs=f"a trace of at least {n} requests",
                found=len(self.times_ms),
            )
        return self.times_ms[:n] / self.speed
