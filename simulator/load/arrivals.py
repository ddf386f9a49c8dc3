"""When requests arrive: at random, over a day with bursts, in a flash crowd, or as they were
logged.

All but a trace take n unit-rate exponential gaps and stretch them, so that request i is the same
draw at every rate: differences between rates and policies are paired.
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
    """How requests arrive: `times(n, rng)` in ms. `rate`: a second, as asked for. `stationary`:
    whether it is the same all along.
    """

    rate: float
    stationary = False

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Arrival times of n requests, ms, float64 (n,), ascending from above 0."""
        raise NotImplementedError

    def faster(self, times: float) -> Arrivals:
        """The same arrivals, so many times as fast."""
        return replace(self, rate=self.rate * times)  # type: ignore[type-var]


def _check(**values: float) -> None:
    for name, value in values.items():
        check_bound("arrivals", "any_rate" if name == "rate" else name, **{name: value})


@dataclass(frozen=True)
class Poisson(Arrivals):
    """`rate` requests a second, at random."""

    rate: float
    stationary = True

    def __post_init__(self) -> None:
        _check(rate=self.rate)

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        _check(requests=n)
        return np.cumsum(rng.exponential(size=n)) * (1000 / self.rate)


def _stretched(gaps: np.ndarray, seconds: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Times (ms) of a Poisson process whose rate changes, by the inverse of its integral (Cinlar
    1975); after the grid the last rate holds.
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
    """A day's curve: `rate` requests a second over a day without its bursts, from night to a `peak`
    times as many at half time.

    `peak` is at most 2 (the night is then empty). A day lasts `day_s` seconds; without it, it is
    squeezed into the n requests. Each burst begins at a random time, multiplies the rate by `burst`
    and lasts a hundredth of the day.
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
    """A flash crowd: `rate` requests a second, and from the share `at` of the run on `factor` times
    as many, fading with `fade_s` seconds.
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
    """Arrivals as they were logged: `times_ms` (n,), ascending; played `speed` times as fast.
    `ids`: the logged requests, where known.

    Raises KarmafunnelError for an empty trace, times that go backwards or are not finite.
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
            raise KarmafunnelError("arrivals: a trace needs finite times from 0 on, in ms")
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
        """Requests of a log (`rows`, ascending) at their own times; with `rate` time is scaled so
        that so many come a second on average.

        Requests of the same timestamp (a log in minutes) arrive together. Raises KarmafunnelError
        for a log that knows an order alone.
        """
        if log.meta["time"] != "clock":
            raise KarmafunnelError(
                f"log {log.name}: arrivals need timestamps, found that its time is an order alone;"
                " give a rate instead"
            )
        times = (log.t[rows] - log.t[rows[0]]).astype(np.float64)
        if rate is not None:
            _check(rate=rate)
        span = times[-1] / 1000
        if span == 0:
            raise KarmafunnelError(
                f"log {log.name}: arrivals need requests at different times, found all {len(times)}"
                " at once"
            )
        speed = 1.0 if rate is None else rate * span / len(times)
        return cls(times, speed, tuple(log.requests["request_id"][rows].to_list()))

    def faster(self, times: float) -> Trace:
        return replace(self, speed=self.speed * times)

    @property
    def rate(self) -> float:  # type: ignore[override]
        """Requests a second, on average."""
        span = self.times_ms[-1] / self.speed / 1000
        return len(self.times_ms) / span if span else math.inf

    def times(self, n: int, rng: np.random.Generator) -> np.ndarray:
        _check(requests=n)
        if n > len(self.times_ms):
            raise KarmafunnelError(
                f"arrivals: the trace has {len(self.times_ms)} requests, {n} were asked for"
            )
        return self.times_ms[:n] / self.speed
