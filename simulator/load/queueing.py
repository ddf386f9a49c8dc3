"""Discrete-event simulation of a deployment with SimPy: requests arrive, wait, are served in
batches, or leave the queue, stage by stage. No model is loaded.

The generator `life` is one request, `serve` one batch at a server. The arrival of request i and its
random numbers at stage s depend only on (seed, i, s), not on the order of events: two deployments
simulated with the same seed differ only by their settings.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import simpy

from ...bounds import SEED, Bound, check_bound, check_seed
from ...errors import KarmafunnelError, quoted
from ...files import (
    SIMULATION,
    atomic_folder,
    check,
    claim,
    open_table,
    read_json,
    read_table,
    settle,
    write_json,
)
from ...shapes import ANY, FLAG, NAME, TEXT, by_name, check_keys, each, maybe, number
from ..replay.paths import NOTHING, path_of
from .arrivals import Arrivals
from .services import Service, Services
from .steady import batch_quantiles, warmup

MOST = 500_000  # maximum requests in the system; each takes about 2 kB
MOST_CRASHES = 1_000_000  # maximum per stage in a run
SAMPLES = 500  # points in time in `over_time`
BLOCK = 4096  # requests per block of random numbers
BLOCKS = 16  # blocks kept in memory; older ones are drawn again when needed
ROWS = 16_384  # rows written at once
DONE, SHED, ABANDONED, LATE, OVERDUE, FAILED = (
    "done",
    "shed",
    "abandoned",
    "late",
    "overdue",
    "failed",
)
COUNTED = (SHED, ABANDONED, LATE, OVERDUE, FAILED)
SOJOURN = ("mean_wait_ms", "p50_ms", "p95_ms", "p99_ms")
REQUESTS = {
    "request": pl.Int64,
    "t_ms": pl.Float64,
    "latency_ms": pl.Float64,
    "outcome": pl.String,
    "path": pl.String,
}
EVENTS = {
    "t_ms": pl.Float64,
    "request": pl.Int64,
    "stage": pl.String,
    "event": pl.String,
    "server": pl.Int32,
    "waiting": pl.Int32,
}
OVER_TIME = {"t_ms": pl.Float64, "stage": pl.String, "waiting": pl.Int32, "busy": pl.Int32}


def times_of(services: Services) -> list[str]:
    """The columns of `requests` for the times at each online stage."""
    columns = []
    for stage in services.stages:
        if stage.online:
            columns += [f"{stage.name}.{what}" for what in ("wait_ms", "service_ms", "ms")]
    return columns


WHOLE, FIGURE = number(Bound(0, 2**62)), maybe(number(Bound(0.0, 1e300)))
# keys of simulation.json
META = {"seed": number(SEED), "arrivals": TEXT, "stationary": FLAG, "counted": each(by_name(ANY))}
LINE = {
    "stage": NAME,
    "servers": WHOLE,
    "online": FLAG,
    "requests": WHOLE,
    "utilisation": FIGURE,
    "mean_waiting": FIGURE,
    "batches": WHOLE,
    "mean_batch": FIGURE,
    **dict.fromkeys(COUNTED, WHOLE),
    "crashes": WHOLE,
}


# -- random numbers --------------------------------------------------------------------------------


Draw = tuple[float, float, float]


class RandomStreams:
    """The random numbers of one stage: for each request and attempt the ratio of service time to
    its mean, and two uniform numbers that decide whether it is slow and whether it is cached.
    """

    def __init__(self, service: Service, seed: int, place: int):
        self.time, self.seed, self.place = service.time, seed, place
        self.blocks: OrderedDict[tuple[int, int], list[Draw]] = OrderedDict()

    def __call__(self, request: int, attempt: int) -> Draw:
        key = (request // BLOCK, attempt)
        block = self.blocks.get(key)
        if block is None:
            block = self.blocks[key] = self._draw(*key)
            if len(self.blocks) > BLOCKS:
                self.blocks.popitem(last=False)
        return block[request % BLOCK]

    def _draw(self, block: int, attempt: int) -> list[Draw]:
        rng, time = np.random.default_rng([self.seed, self.place, attempt, block]), self.time
        if time.kind == "exponential":
            ratio = rng.exponential(size=BLOCK)
        elif time.kind == "lognormal":
            sigma = math.sqrt(math.log1p(time.cv**2))
            ratio = np.exp(sigma * rng.standard_normal(BLOCK) - sigma**2 / 2)
        elif time.kind == "empirical":
            levels = np.linspace(0, 1, len(time.ratios))
            ratio = np.interp(rng.uniform(size=BLOCK), levels, time.ratios)
        else:
            ratio = np.ones(BLOCK)
        slow, cached = rng.uniform(size=BLOCK), rng.uniform(size=BLOCK)
        return list(zip(ratio.tolist(), slow.tolist(), cached.tolist(), strict=True))


# -- one stage -------------------------------------------------------------------------------------


class Attempt:
    """One attempt of a request at one stage."""

    __slots__ = ("attempt", "came", "ended", "items", "request", "started", "verdict", "waits")

    def __init__(self, env: simpy.Environment, request: int, attempt: int, items: int):
        self.request, self.attempt, self.items, self.came = request, attempt, items, env.now
        self.started: float | None = None
        self.ended: float | None = None
        self.waits = False
        self.verdict = env.event()  # becomes one of "done", "shed", ...


class Server:
    def __init__(self, number: int):
        self.number, self.up, self.served = number, True, 0
        self.work: simpy.Process | None = None


class Station:
    """A stage while it is simulated: its queue, its servers and what has been counted."""

    def __init__(
        self,
        env: simpy.Environment,
        service: Service,
        place: int,
        seed: int,
        tell: Callable[..., None],
    ):
        self.env, self.service, self.tell, self.place = env, service, tell, place
        self.draws = RandomStreams(service, seed, place)
        self.queue: deque[Attempt] = deque()
        self.waiting, self.alarm = 0, -1.0
        self.area, self.since = 0.0, 0.0  # the integral of `waiting` over time
        self.servers = [Server(i) for i in range(service.servers)]
        self.free = deque(self.servers)
        self.count = dict.fromkeys((DONE, *COUNTED), 0)
        self.batches = self.taken = self.crashes = self.busy = 0
        self.busy_ms = 0.0
        if service.crash and service.online:
            for server in self.servers:
                env.process(self.breakdowns(server, seed))

    def visit(
        self, request: int, items: int, until: float
    ) -> Generator[simpy.Event, str, tuple[str, float | None, float | None]]:
        """Process one request at this stage, with all its attempts.

        Args:
            request: its number in order of arrival.
            items: the number of its candidates.
            until: the time of its end-to-end deadline, ms.

        Returns:
            The verdict; the wait in all attempts (None where it was shed), and the service time of
            the last attempt (None where it was not served), both in ms.
        """
        env, service = self.env, self.service
        self.tell(request, service.name, "come", -1, self.waiting)
        waited = 0.0
        for attempt in range(service.retries + 1):
            if attempt:
                self.tell(request, service.name, "again", -1, self.waiting)
            one = Attempt(env, request, attempt, items)
            if service.cache and self.draws(request, attempt)[2] < service.cache.hit:
                self.tell(request, service.name, "cached", -1, self.waiting)
                verdict = DONE
                break
            left = max(until - env.now, 0.0)
            self.join(one)
            if service.deadline_ms is not None and service.deadline_ms < left:
                self.later(service.deadline_ms, partial(self.settle, one, LATE))
            elif left < math.inf:
                self.later(left, partial(self.settle, one, OVERDUE))
            if service.patience_ms is not None and one.waits:
                self.later(service.patience_ms, partial(self.give_up, one))
            verdict = yield one.verdict
            waited += (env.now if one.started is None else one.started) - one.came
            if verdict != DONE:
                self.tell(request, service.name, verdict, -1, self.waiting)
            if verdict not in (LATE, FAILED):
                break
        self.count[verdict] += 1
        served = None
        if one.started is not None and one.ended is not None:
            served = one.ended - one.started
        return verdict, None if verdict == SHED else waited, served

    def settle(self, attempt: Attempt, verdict: str) -> None:
        """Set the verdict of an attempt that has none yet."""
        if attempt.verdict.triggered:
            return
        attempt.verdict.succeed(verdict)
        if attempt.waits:  # it stays in `queue`, where `dispatch` skips it
            attempt.waits = False
            self.wait(-1)

    def wait(self, more: int) -> None:
        """Change the number of waiting attempts by `more`, which may be negative."""
        self.area += self.waiting * (self.env.now - self.since)
        self.since = self.env.now
        self.waiting += more

    def give_up(self, attempt: Attempt) -> None:
        """Abandon an attempt that is still waiting."""
        if attempt.waits:
            self.settle(attempt, ABANDONED)

    def later(self, ms: float, what: Callable[[], Any]) -> None:
        """Call `what` after `ms`."""
        self.env.timeout(ms).callbacks.append(lambda _: what())

    def join(self, attempt: Attempt) -> None:
        """Put an attempt into the queue, or shed it if the queue is full."""
        service = self.service
        room = math.inf if service.queue is None else service.queue
        if self.waiting >= room and not (self.free and self.waiting < service.batch):
            self.settle(attempt, SHED)
            return
        attempt.waits = True
        self.queue.append(attempt)
        self.wait(1)
        self.dispatch()

    def dispatch(self) -> None:
        """Assign batches to free servers, first come first served: full batches, and those whose
        first attempt has waited for `wait_ms`.
        """
        env, service, queue = self.env, self.service, self.queue
        while self.free and self.waiting:
            while not queue[0].waits:
                queue.popleft()
            left = queue[0].came + service.wait_ms - env.now
            # late in a run, adding a very short wait may not change the floating-point time
            if self.waiting < service.batch and env.now + left > env.now:
                if self.alarm <= env.now:
                    self.alarm = env.now + left
                    self.later(left, self.dispatch)
                return
            batch: list[Attempt] = []
            while queue and len(batch) < service.batch:
                attempt = queue.popleft()
                if attempt.waits:
                    attempt.waits, attempt.started = False, env.now
                    batch.append(attempt)
            self.wait(-len(batch))
            server = self.free.popleft()
            server.work = env.process(self.serve(server, batch))

    def serve(self, server: Server, batch: list[Attempt]) -> Generator[simpy.Event, None, None]:
        """Serve one batch. Requests that time out during service still occupy the server."""
        env, service = self.env, self.service
        first = batch[0]
        ratio, slow, _ = self.draws(first.request, first.attempt)
        items = sum(attempt.items for attempt in batch)
        ms = service.time.mean_ms(len(batch), items) / service.time.mean_ratio * ratio
        if service.slow and slow < service.slow.probability:
            ms *= service.slow.factor
        if service.cold and server.served < service.cold.requests:
            ms *= service.cold.factor
        for attempt in batch:
            self.tell(attempt.request, service.name, "start", server.number, self.waiting)
        self.busy += 1
        began = env.now
        try:
            yield env.timeout(ms)
            verdict = DONE
        except simpy.Interrupt:
            verdict = FAILED
        self.busy -= 1
        self.busy_ms += env.now - began
        self.batches += 1
        self.taken += len(batch)
        server.work, server.served = None, server.served + len(batch)
        for attempt in batch:
            attempt.ended = env.now
            event = "end" if verdict == DONE else "broken"
            if attempt.verdict.triggered:  # it timed out before
                event = "vain"
            self.tell(attempt.request, service.name, event, server.number, self.waiting)
            self.settle(attempt, verdict)
        if server.up:
            self.free.append(server)
            self.dispatch()

    def breakdowns(self, server: Server, seed: int) -> Generator[simpy.Event, None, None]:
        """Crash and repair one server until the simulation ends."""
        env, crash = self.env, self.service.crash
        assert crash is not None
        rng = np.random.default_rng([seed, self.place, 2**32 + server.number])
        while True:
            yield env.timeout(rng.exponential(crash.every_s * 1000))
            server.up = False
            self.crashes += 1
            if self.crashes > MOST_CRASHES:
                raise KarmafunnelError(
                    f"queue: stage {self.service.name!r}",
                    needs=f"at most {MOST_CRASHES:,} crashes in a run",
                    found=f"more after {env.now / 1000:,.0f} s",
                    hint=f"fewer servers or requests, or crash.every_s above {crash.every_s:g}",
                )
            self.tell(-1, self.service.name, "crash", server.number, self.waiting)
            if server.work is not None:
                server.work.interrupt()
            else:
                self.free.remove(server)
            yield env.timeout(rng.exponential(crash.repair_s * 1000))
            server.up, server.served = True, 0
            self.tell(-1, self.service.name, "repair", server.number, self.waiting)
            if server.work is None:
                self.free.append(server)
                self.dispatch()


# -- the run ---------------------------------------------------------------------------------------


class RowWriter:
    """Rows of one table, kept in memory, or written to the Parquet `file` as they are added."""

    def __init__(self, schema: dict[str, Any], file: Path | None):
        self.schema, self.file = schema, file
        self.rows: list[tuple[Any, ...]] = []
        self.frames: list[pl.DataFrame] = []
        self.writer: pq.ParquetWriter | None = None

    def add(self, row: tuple[Any, ...]) -> None:
        self.rows.append(row)
        if len(self.rows) >= ROWS:
            self.flush()

    def flush(self) -> None:
        frame = pl.DataFrame(self.rows, schema=self.schema, orient="row")
        self.rows = []
        if self.file is None:
            self.frames.append(frame)
            return
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.file, table.schema, compression="zstd")
        self.writer.write_table(table)

    def close(self) -> None:
        if self.rows or (self.writer is None and not self.frames):
            self.flush()
        if self.writer is not None:
            self.writer.close()

    def frame(self) -> pl.DataFrame:
        """The rows that were kept in memory; after `close`."""
        return pl.concat(self.frames)


class Simulator:
    """The state of one running simulation."""

    def __init__(
        self,
        services: Services,
        times: np.ndarray,
        seed: int,
        out: Path | None,
        events: bool,
        progress: Callable[[int], None] | None,
    ):
        self.env = simpy.Environment()
        self.services, self.times, self.progress = services, times, progress
        self.inside = self.left = 0
        columns = REQUESTS | dict.fromkeys(times_of(services), pl.Float64)
        self.requests = RowWriter(columns, out and out / "requests.parquet")
        self.events = RowWriter(EVENTS, out and out / "events.parquet") if events else None
        self.over_time = RowWriter(OVER_TIME, out and out / "over_time.parquet")
        self.stations: dict[str, Station] = {}
        for i, service in enumerate(services.stages):
            self.stations[service.name] = Station(self.env, service, i, seed, self.tell)
        self.names = list(self.stations)
        self.finished: dict[int, tuple[Any, ...]] = {}
        self.all_left = self.env.event()

    def tell(self, request: int, stage: str, event: str, server: int, waiting: int) -> None:
        if self.events is not None:
            self.events.add((self.env.now, request, stage, event, server, waiting))

    def source(self) -> Generator[simpy.Event, None, None]:
        """Start the life of each request when it arrives."""
        env = self.env
        for request, t in enumerate(self.times.tolist()):
            if t > env.now:
                yield env.timeout(t - env.now)
            self.inside += 1
            if self.inside > MOST:
                raise KarmafunnelError(
                    "queue",
                    needs=f"at most {MOST:,} requests in the system",
                    found=f"more at request {request:,}",
                    hint=self.growth(),
                )
            env.process(self.life(request))
            if self.progress and request % 1024 == 0:
                self.progress(request)

    def growth(self) -> str:
        """The stage where most requests wait, and how to limit its queue."""
        worst = max(self.stations.values(), key=lambda station: station.waiting)
        rate = 1000 * len(self.times) / (float(self.times[-1]) or math.inf)
        offered = worst.service.utilisation(rate)
        return (
            f"{worst.waiting:,} wait at {worst.service.name}, whose offered utilisation is "
            f"{offered:.2f}: give it more servers, a queue, a patience_ms or a deadline_ms"
        )

    def life(self, request: int) -> Generator[simpy.Event, Any, None]:
        """One request, from its arrival until it is served or lost."""
        env, services = self.env, self.services
        came, cut = env.now, math.inf
        until = came + (services.deadline_ms or math.inf)
        modes: dict[str, str] = {}
        outcome, overdue = "served", False
        times: list[float | None] = []
        self.tell(request, "", "arrive", -1, self.inside)
        for i, stage in enumerate(services.stages):
            if not stage.online:
                modes[stage.name] = stage.stale
                continue
            if overdue:  # the remaining stages take their fallbacks at once
                verdict = OVERDUE
                times += [None, None, None]
            else:
                entered, items = env.now, int(min(stage.items, cut))
                station = self.stations[stage.name]
                verdict, wait, service = yield from station.visit(request, items, until)
                times += [wait, service, env.now - entered]
            if verdict == DONE:
                if stage.adapt:
                    level = stage.adapt.levels[stage.adapt.level(self.next_waiting(i))]
                    cut = min(cut, level)
                    modes[stage.name] = str(level) if level != stage.most else ""
                continue
            overdue = verdict == OVERDUE
            if stage.fail == "closed" or (overdue and services.late == "closed"):
                outcome = LATE if overdue else verdict
                break
            modes[stage.name] = stage.fallen
        path, event = NOTHING, f"lost: {outcome}"
        if outcome == "served":
            path, event = path_of(modes, self.names), outcome
        self.inside -= 1
        self.tell(request, "", event, -1, self.inside)
        times += [None] * (len(self.requests.schema) - len(REQUESTS) - len(times))
        self.leave(request, (request, came, env.now - came, outcome, path, *times))

    def next_waiting(self, place: int) -> int:
        """The number of requests waiting at the next online stage."""
        for stage in self.services.stages[place + 1 :]:
            if stage.online:
                return self.stations[stage.name].waiting
        return 0

    def leave(self, request: int, row: tuple[Any, ...]) -> None:
        """Add the row of a request that has left; rows are written in order of arrival."""
        self.finished[request] = row
        while self.left in self.finished:
            self.requests.add(self.finished.pop(self.left))
            self.left += 1
        if self.left == len(self.times):
            self.all_left.succeed()

    def sampler(self) -> Generator[simpy.Event, None, None]:
        """Record queue lengths and busy servers at regular intervals."""
        step = max(float(self.times[-1]) / SAMPLES, 1e-3)
        while True:
            for name, station in self.stations.items():
                self.over_time.add((self.env.now, name, station.waiting, station.busy))
            yield self.env.timeout(step)
            # long after the last arrival, steps grow
            if self.env.now > 20 * float(self.times[-1]):
                step *= 1.1

    def go(self) -> None:
        """Simulate until all requests have left."""
        self.env.process(self.source())
        self.env.process(self.sampler())
        self.env.run(self.all_left)
        for table in (self.requests, self.over_time, self.events):
            if table is not None:
                table.close()

    def stages(self) -> pl.DataFrame:
        """The counts, one row per stage; `Simulation` adds quantiles of the time spent there."""
        rows = []
        for name, station in self.stations.items():
            service, end = station.service, self.env.now
            measured = bool(service.online and end)
            rows.append(
                {
                    "stage": name,
                    "servers": service.servers,
                    "online": service.online,
                    "requests": sum(station.count.values()),
                    "utilisation": station.busy_ms / (service.servers * end) if measured else None,
                    "mean_waiting": station.area / end if measured else None,
                    "batches": station.batches,
                    "mean_batch": station.taken / station.batches if station.batches else None,
                    **{what: station.count[what] for what in COUNTED},
                    "crashes": station.crashes,
                }
            )
        return pl.DataFrame(rows, infer_schema_length=None)


@dataclass(frozen=True, eq=False)
class Simulation:
    """The result of a simulation; all times are in ms.

    requests    one row per request, in order of arrival: request, t_ms, latency_ms (until it was
                served or lost), outcome, path, and for each online stage S: S.wait_ms (in all
                attempts), S.service_ms (of the last attempt) and S.ms (total time there). Null
                where the stage was not reached; service_ms also where no server took the request.
                Outcomes: "served" (a list was shown), or why nothing was shown: "shed",
                "abandoned" (left the queue), "late" (missed a deadline), "failed" (a crash).
    stages      one row per stage: servers, requests, utilisation, mean_waiting, mean_wait_ms,
                p50_ms, p95_ms, p99_ms, counts
    over_time   t_ms, stage, waiting, busy, at about 500 points in time
    events      t_ms, request, stage, event, server, waiting; None where they were not kept
    """

    services: Services
    arrivals: Arrivals
    seed: int
    requests: pl.DataFrame
    counted: pl.DataFrame
    over_time: pl.DataFrame
    kept: pl.LazyFrame | None = None

    @cached_property
    def events(self) -> pl.DataFrame | None:
        return None if self.kept is None else self.kept.collect()

    @cached_property
    def stages(self) -> pl.DataFrame:
        rows = []
        for line in self.counted.iter_rows(named=True):
            found: dict[str, Any] = dict.fromkeys(SOJOURN)
            if line["online"]:
                found["mean_wait_ms"] = self.requests[f"{line['stage']}.wait_ms"].mean()
                ms = self.requests[f"{line['stage']}.ms"]
                for q in (50, 95, 99):
                    found[f"p{q}_ms"] = ms.quantile(q / 100, "linear")
            rows.append(line | found)
        columns = ["stage", "servers", "requests", "utilisation", "mean_waiting", *SOJOURN]
        columns += ["batches", "mean_batch", *COUNTED, "crashes"]
        return pl.DataFrame(rows, infer_schema_length=None).select(columns)

    @property
    def rate(self) -> float:
        """Arrivals per second, on average."""
        last_ms = float(self.requests["t_ms"][-1])
        return 1000 * self.requests.height / (last_ms or self.end_ms or math.inf)

    @cached_property
    def end_ms(self) -> float:
        """The time when the last request left."""
        leaving = self.requests["t_ms"] + self.requests["latency_ms"]
        return float(leaving.max())  # type: ignore[arg-type]

    @property
    def goodput(self) -> float:
        """Requests served per second, until the last request left."""
        served = int((self.requests["outcome"] == "served").sum())
        return 1000 * served / (self.end_ms or math.inf)

    def growing(self) -> dict[str, float]:
        """Growth of the queue, in requests per second, of stages whose queue is unbounded and whose
        offered load reaches their capacity.
        """
        found: dict[str, float] = {}
        if self.services.deadline_ms:
            return found
        arriving = self.over_time.filter(pl.col("t_ms") <= self.requests["t_ms"][-1])
        for service, came in zip(self.services.stages, self.counted["requests"], strict=True):
            reached = self.rate * came / self.requests.height
            if service.utilisation(reached) < 1 or service.bounded or service.deadline_ms:
                continue
            line = arriving.filter(pl.col("stage") == service.name)
            if line.height > 2:
                seconds, waiting = line["t_ms"].to_numpy() / 1000, line["waiting"].to_numpy()
                found[service.name] = float(np.polyfit(seconds, waiting, 1)[0])
        return found

    def rarely_crashing(self) -> list[str]:
        """Stages with fewer than ten expected crashes in this run."""
        seconds = float(self.requests["t_ms"][-1]) / 1000
        found = []
        for stage in self.services.stages:
            crash = stage.crash
            if stage.online and crash and seconds * stage.servers < 10 * crash.every_s:
                found.append(stage.name)
        return found

    @cached_property
    def steady(self) -> pl.DataFrame:
        """The requests after the warm-up (MSER-5 on their latency); all requests where arrivals are
        not stationary or a queue keeps growing.
        """
        if not self.arrivals.stationary or self.growing():
            return self.requests
        return self.requests[warmup(self.requests["latency_ms"].to_numpy()) :]

    def shares(self, name: str) -> dict[str, float]:
        """The share of requests with each value of a column, largest first."""
        counts = self.requests[name].value_counts().sort(["count", name], descending=[True, False])
        return {value: n / self.requests.height for value, n in counts.iter_rows()}

    def latency(self) -> dict[str, dict[str, float | None]]:
        """Percentiles of the latency (ms) of served requests after the warm-up, with 95% intervals
        by batch quantiles; empty where no request was served.
        """
        shown = self.steady.filter(pl.col("outcome") == "served")["latency_ms"].to_numpy()
        found: dict[str, dict[str, float | None]] = {}
        for q in (50, 95, 99) if len(shown) else ():
            value, low, high = batch_quantiles(shown, q / 100)
            found[f"p{q}_ms"] = {"value": value, "low": low, "high": high}
        return found

    def summary(self) -> dict[str, Any]:
        """The main results, ready for JSON.

        A key with the name of a property or method holds its value; `full` is the share of requests
        on the normal path.
        """
        requests, paths = self.requests, self.shares("path")
        return {
            "services": self.services.name,
            "seed": self.seed,
            "requests": requests.height,
            "rate": self.rate,
            "warmup": requests.height - self.steady.height,
            "latency": self.latency(),
            "goodput": self.goodput,
            "outcomes": self.shares("outcome"),
            "paths": paths,
            "normal": self.services.normal,
            "full": paths.get(self.services.normal, 0.0),
            "rarely_crashing": self.rarely_crashing(),
            "cost_per_hour": self.services.cost_per_hour,
            "growing": self.growing(),
        }

    @classmethod
    def open(cls, folder: Path | str, arrivals: Arrivals | None = None) -> Simulation:
        """Read a folder that `simulate` wrote.

        Raises:
            KarmafunnelError: for a folder without a simulation, and for a changed file.
        """
        folder = Path(folder)
        settle(folder)
        if not (folder / "simulation.json").exists():
            raise KarmafunnelError(
                folder,
                needs="a simulation (simulation.json)",
                found="none",
                hint="make one with `karmafunnel queue`",
            )
        check(folder)
        meta = read_json(folder / "simulation.json")
        requests = read_table(folder / "requests.parquet")
        over_time = read_table(folder / "over_time.parquet")
        kept = folder / "events.parquet"
        events = open_table(kept) if kept.exists() else None
        services = Services.read(folder / "services.toml")
        counted = _counted(f"{folder}/simulation.json", meta, services)
        _check_columns(f"{folder}/requests.parquet", requests, [*REQUESTS, *times_of(services)])
        _check_columns(f"{folder}/over_time.parquet", over_time, list(OVER_TIME))
        came = arrivals or SavedArrivals(meta["arrivals"], meta["stationary"])
        return cls(services, came, meta["seed"], requests, counted, over_time, events)


def _counted(who: str, meta: dict[str, Any], services: Services) -> pl.DataFrame:
    """The counts of simulation.json, checked."""
    check_keys(who, meta, META)
    rows = []
    for i, line in enumerate(meta["counted"]):
        check_keys(f"{who}: counted {i + 1}", line, LINE)
        rows.append({key: line[key] for key in LINE})
    names = [row["stage"] for row in rows]
    if names != [stage.name for stage in services.stages]:
        raise KarmafunnelError(
            who, what="counted", needs="the stages of services.toml", found=quoted(names)
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def _check_columns(who: str, frame: pl.DataFrame, needed: Sequence[str]) -> None:
    """Raises KarmafunnelError for a table without rows or without a column."""
    missing = [column for column in needed if column not in frame.columns]
    if frame.is_empty() or missing:
        found = "no row" if frame.is_empty() else f"none of {missing}"
        raise KarmafunnelError(who, needs=", ".join(needed), found=found)


@dataclass(frozen=True)
class SavedArrivals(Arrivals):
    """The arrivals of a simulation read from disk, where only their text is known."""

    text: str
    stationary: bool = False

    def __repr__(self) -> str:
        return self.text


def asked_of(services: Services, arrivals: Arrivals, n: int, seed: int) -> dict[str, Any]:
    """The inputs that determine a simulation, ready for JSON."""
    return {"services": services.toml(), "arrivals": repr(arrivals), "requests": n, "seed": seed}


@dataclass(frozen=True)
class Output:
    """Where a simulation is written.

    folder: written atomically; it replaces an older simulation with the same inputs. facts: more
    entries of simulation.json, such as the command. add: called with the simulation and the
    temporary folder, to write more files into it. force: also replace an older result of another
    kind that karmafunnel wrote.
    """

    folder: Path | str
    facts: Mapping[str, Any] = field(default_factory=dict)
    add: Callable[[Simulation, Path], Any] | None = None
    force: bool = False


def simulate(
    services: Services,
    arrivals: Arrivals,
    n: int,
    seed: int = 0,
    *,
    events: bool = False,
    out: Output | Path | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Simulation:
    """Send n requests through a deployment.

    The same services, arrivals, n and seed give the same events, and the same bytes in `out`.

    Args:
        services: the deployment.
        arrivals: when requests arrive.
        n: number of requests.
        seed: of all random numbers.
        events: whether to keep the events of each request.
        out: a folder for requests, over_time, events (where kept), services.toml and
            simulation.json. Tables are written as rows arrive, so memory does not grow with events.
        progress: called after every 1,024 arrivals with the number of requests that have arrived.

    Returns:
        The simulation.

    Raises:
        KarmafunnelError: for an `out` that holds something else, for more than 20,000,000 requests,
            and where more than 500,000 are in the system at once.
    """
    check_bound("queue", "requests", requests=n)
    check_seed("queue", seed)
    times = arrivals.times(n, np.random.default_rng([seed, 2**40]))
    if out is None:
        run = Simulator(services, times, seed, None, events, progress)
        run.go()
        requests, over_time = run.requests.frame(), run.over_time.frame()
        kept = run.events.frame().lazy() if run.events else None
        return Simulation(services, arrivals, seed, requests, run.stages(), over_time, kept)
    out = out if isinstance(out, Output) else Output(out)
    asked = asked_of(services, arrivals, n, seed)
    with (
        claim(out.folder, "queue", SIMULATION, wants=asked, force=out.force),
        atomic_folder(out.folder, sealed=True) as folder,
    ):
        run = Simulator(services, times, seed, folder, events, progress)
        run.go()
        services.write(folder / "services.toml")
        meta = asked | {"stationary": arrivals.stationary, "counted": run.stages().to_dicts()}
        write_json(folder / "simulation.json", {**meta, **out.facts})
        if out.add:
            out.add(Simulation.open(folder, arrivals), folder)
    return Simulation.open(out.folder, arrivals)
