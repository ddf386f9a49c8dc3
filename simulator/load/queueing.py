"""The funnel under load: requests arrive, wait, are served in batches or give up, stage by stage.
SimPy is the engine; no model is loaded.

A request's life is the generator `life`, read from top to bottom; a server's is `serve`. Arrival i
and the draws of request i at stage s depend on (seed, i, s) alone, never on the order of events, so
that two deployments with one seed differ by what they do.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
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

MOST = 500_000  # requests in the system at once; each costs about 2 kB
MOST_CRASHES = 1_000_000  # of a stage in a run
SAMPLES = 500  # points of `over_time`
BLOCK = 4096  # requests whose random numbers are drawn together
ROWS = 16_384  # rows that are written together
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
    """The columns of `requests` that tell the times at each online stage."""
    return [
        f"{s.name}.{what}"
        for s in services.stages
        if s.online
        for what in ("wait_ms", "service_ms", "ms")
    ]


WHOLE, FIGURE = number(Bound(0, 2**62)), maybe(number(Bound(0.0, 1e300)))
# of simulation.json
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


class Draws:
    """The random numbers of one stage: for each request and attempt the ratio of service time to
    its mean, and two uniform numbers.
    """

    def __init__(self, service: Service, seed: int, place: int):
        self.time, self.seed, self.place = service.time, seed, place
        self.blocks: OrderedDict[tuple[int, int], list[tuple[float, float, float]]] = OrderedDict()

    def __call__(self, request: int, attempt: int) -> tuple[float, float, float]:
        """Ratio, and uniform numbers for "slow" and "cached"."""
        key = (request // BLOCK, attempt)
        block = self.blocks.get(key)
        if block is None:
            block = self.blocks[key] = self._draw(*key)
            # memory stays flat; a block that is asked for again is drawn again
            if len(self.blocks) > 16:
                self.blocks.popitem(last=False)
        return block[request % BLOCK]

    def _draw(self, block: int, attempt: int) -> list[tuple[float, float, float]]:
        rng, time = np.random.default_rng([self.seed, self.place, attempt, block]), self.time
        if time.kind == "exponential":
            ratio = rng.exponential(size=BLOCK)
        elif time.kind == "lognormal":
            sigma = math.sqrt(math.log1p(time.cv**2))
            ratio = np.exp(sigma * rng.standard_normal(BLOCK) - sigma**2 / 2)
        elif time.kind == "empirical":
            ratio = np.interp(
                rng.uniform(size=BLOCK), np.linspace(0, 1, len(time.ratios)), time.ratios
            )
        else:
            ratio = np.ones(BLOCK)
        return list(
            zip(
                ratio.tolist(),
                rng.uniform(size=BLOCK).tolist(),
                rng.uniform(size=BLOCK).tolist(),
                strict=True,
            )
        )


# -- one stage -------------------------------------------------------------------------------------


class Ticket:
    """One request's try at one stage."""

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
        self.draws = Draws(service, seed, place)
        self.queue: deque[Ticket] = deque()
        self.waiting, self.alarm = 0, -1.0
        self.area, self.since = 0.0, 0.0  # of `waiting` over time
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
        """A request at this stage, with as many tries as it has; returns the verdict, its waits and
        its last service (ms; None without).

        `until`: when the request's time is over, wherever it is.
        """
        env, service = self.env, self.service
        self.tell(request, service.name, "come", -1, self.waiting)
        waited = 0.0
        for attempt in range(service.retries + 1):
            if attempt:
                self.tell(request, service.name, "again", -1, self.waiting)
            ticket = Ticket(env, request, attempt, items)
            if service.cache and self.draws(request, attempt)[2] < service.cache.hit:
                self.tell(request, service.name, "cached", -1, self.waiting)
                verdict = DONE
                break
            left = max(until - env.now, 0.0)
            self.join(ticket)
            if service.deadline_ms is not None and service.deadline_ms < left:
                self.later(service.deadline_ms, partial(self.settle, ticket, LATE))
            elif left < math.inf:
                self.later(left, partial(self.settle, ticket, OVERDUE))
            if service.patience_ms is not None and ticket.waits:
                self.later(service.patience_ms, partial(self.give_up, ticket))
            verdict = yield ticket.verdict
            waited += (env.now if ticket.started is None else ticket.started) - ticket.came
            if verdict != DONE:
                self.tell(request, service.name, verdict, -1, self.waiting)
            if verdict not in (LATE, FAILED):
                break
        self.count[verdict] += 1
        return (
            verdict,
            None if verdict == SHED else waited,
            None
            if ticket.started is None or ticket.ended is None
            else ticket.ended - ticket.started,
        )

    def settle(self, ticket: Ticket, verdict: str) -> None:
        """The first verdict on a ticket stands."""
        if ticket.verdict.triggered:
            return
        ticket.verdict.succeed(verdict)
        if ticket.waits:  # it leaves the queue by itself; `dispatch` skips it
            ticket.waits = False
            self.wait(-1)

    def wait(self, more: int) -> None:
        """So many more wait from now on."""
        self.area += self.waiting * (self.env.now - self.since)
        self.since = self.env.now
        self.waiting += more

    def give_up(self, ticket: Ticket) -> None:
        """Out of patience, unless a server has taken it."""
        if ticket.waits:
            self.settle(ticket, ABANDONED)

    def later(self, ms: float, what: Callable[[], Any]) -> None:
        self.env.timeout(ms).callbacks.append(lambda _: what())

    def join(self, ticket: Ticket) -> None:
        """A ticket comes to the queue, or is shed where the waiting room is full."""
        service = self.service
        room = math.inf if service.queue is None else service.queue
        if self.waiting >= room and not (self.free and self.waiting < service.batch):
            self.settle(ticket, SHED)
            return
        ticket.waits = True
        self.queue.append(ticket)
        self.wait(1)
        self.dispatch()

    def dispatch(self) -> None:
        """Gives batches to free servers, first come first served, once they are full or their first
        has waited long enough.
        """
        env, service, queue = self.env, self.service, self.queue
        while self.free and self.waiting:
            while not queue[0].waits:
                queue.popleft()
            left = queue[0].came + service.wait_ms - env.now
            # late in a run a short wait may be no time at all
            if self.waiting < service.batch and env.now + left > env.now:
                if self.alarm <= env.now:
                    self.alarm = env.now + left
                    self.later(left, self.dispatch)
                return
            batch: list[Ticket] = []
            while queue and len(batch) < service.batch:
                ticket = queue.popleft()
                if ticket.waits:
                    ticket.waits, ticket.started = False, env.now
                    batch.append(ticket)
            self.wait(-len(batch))
            server = self.free.popleft()
            server.work = env.process(self.serve(server, batch))

    def serve(self, server: Server, batch: list[Ticket]) -> Generator[simpy.Event, None, None]:
        """A server's work on one batch. Requests whose time is over meanwhile are worked on in
        vain.
        """
        env, service = self.env, self.service
        first = batch[0]
        ratio, slow, _ = self.draws(first.request, first.attempt)
        mean = (
            service.time.mean_ms(len(batch), sum(ticket.items for ticket in batch))
            / service.time.mean_ratio
        )
        ms = mean * ratio
        if service.slow and slow < service.slow.probability:
            ms *= service.slow.factor
        if service.cold and server.served < service.cold.requests:
            ms *= service.cold.factor
        for ticket in batch:
            self.tell(ticket.request, service.name, "start", server.number, self.waiting)
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
        for ticket in batch:
            ticket.ended = env.now
            told = "vain" if ticket.verdict.triggered else "end" if verdict == DONE else "broken"
            self.tell(ticket.request, service.name, told, server.number, self.waiting)
            self.settle(ticket, verdict)
        if server.up:
            self.free.append(server)
            self.dispatch()

    def breakdowns(self, server: Server, seed: int) -> Generator[simpy.Event, None, None]:
        """A server's crashes and repairs, without end."""
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
                    found=(
                        f"more after {env.now / 1000:,.0f} s: fewer servers or requests, or a "
                        f"larger crash.every_s than {crash.every_s:g}"
                    ),
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


class Sheet:
    """Rows of one table: kept, or written to a Parquet file as they come, so that memory stays
    flat.
    """

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


class Simulator:
    """One simulation while it runs."""

    def __init__(
        self,
        services: Services,
        times: np.ndarray,
        seed: int,
        out: Path | None,
        events: bool,
        progress: Callable[[int], None] | None,
    ):
        self.env, self.services, self.times, self.progress = (
            simpy.Environment(),
            services,
            times,
            progress,
        )
        self.inside = self.left = 0
        self.requests = Sheet(
            REQUESTS | dict.fromkeys(times_of(services), pl.Float64),
            out and out / "requests.parquet",
        )
        self.events = Sheet(EVENTS, out and out / "events.parquet") if events else None
        self.over_time = Sheet(OVER_TIME, out and out / "over_time.parquet")
        self.stations = {
            s.name: Station(self.env, s, i, seed, self.tell) for i, s in enumerate(services.stages)
        }
        self.names = [s.name for s in services.stages]
        self.finished: dict[int, tuple[Any, ...]] = {}
        self.all_left = self.env.event()

    def tell(self, request: int, stage: str, event: str, server: int, waiting: int) -> None:
        if self.events is not None:
            self.events.add((self.env.now, request, stage, event, server, waiting))

    def source(self) -> Generator[simpy.Event, None, None]:
        """Requests arrive."""
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
                    hint=f"{self.growth()}",
                )
            env.process(self.life(request))
            if self.progress and request % 1024 == 0:
                self.progress(request)

    def growth(self) -> str:
        worst = max(self.stations.values(), key=lambda station: station.waiting)
        rate = 1000 * len(self.times) / (float(self.times[-1]) or math.inf)
        return (
            f"{worst.waiting:,} wait at {worst.service.name}, whose offered utilisation is {worst.service.utilisation(rate):.2f}: "
            "give it more servers, a queue, a patience_ms or a deadline_ms"
        )

    def life(self, request: int) -> Generator[simpy.Event, Any, None]:
        """One request, from its arrival until it is shown something or nothing."""
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
            # once its time is over, all stages that are left take their fallbacks at once
            verdict = OVERDUE
            entered = env.now
            if not overdue:
                station = self.stations[stage.name]
                verdict, wait, service = yield from station.visit(
                    request, int(min(stage.items, cut)), until
                )
                times += [wait, service, env.now - entered]
            else:
                times += [None, None, None]
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
        path = path_of(modes, self.names) if outcome == "served" else NOTHING
        self.inside -= 1
        self.tell(
            request, "", "served" if outcome == "served" else f"lost: {outcome}", -1, self.inside
        )
        n = len(self.requests.schema) - len(REQUESTS)
        self.leave(
            request,
            (request, came, env.now - came, outcome, path, *times, *[None] * (n - len(times))),
        )

    def next_waiting(self, place: int) -> int:
        following = next((s for s in self.services.stages[place + 1 :] if s.online), None)
        return self.stations[following.name].waiting if following else 0

    def leave(self, request: int, row: tuple[Any, ...]) -> None:
        """Rows are written in order of arrival."""
        self.finished[request] = row
        while self.left in self.finished:
            self.requests.add(self.finished.pop(self.left))
            self.left += 1
        if self.left == len(self.times):
            self.all_left.succeed()

    def sampler(self) -> Generator[simpy.Event, None, None]:
        step = max(float(self.times[-1]) / SAMPLES, 1e-3)
        while True:
            for name, station in self.stations.items():
                self.over_time.add((self.env.now, name, station.waiting, station.busy))
            yield self.env.timeout(step)
            # a long drain is told in ever wider steps
            if self.env.now > 20 * float(self.times[-1]):
                step *= 1.1

    def go(self) -> None:
        self.env.process(self.source())
        self.env.process(self.sampler())
        self.env.run(self.all_left)

    def stages(self) -> pl.DataFrame:
        """What was counted, one row a stage; sojourns are added by `Simulation`."""
        rows = []
        for name, station in self.stations.items():
            service, end = station.service, self.env.now
            rows.append(
                {
                    "stage": name,
                    "servers": service.servers,
                    "online": service.online,
                    "requests": sum(station.count.values()),
                    "utilisation": station.busy_ms / (service.servers * end)
                    if service.online and end
                    else None,
                    "mean_waiting": station.area / end if service.online and end else None,
                    "batches": station.batches,
                    "mean_batch": station.taken / station.batches if station.batches else None,
                    **{what: station.count[what] for what in COUNTED},
                    "crashes": station.crashes,
                }
            )
        return pl.DataFrame(rows, infer_schema_length=None)


@dataclass(frozen=True, eq=False)
class Simulation:
    """What was simulated. Times are ms; a request that was shown nothing has the time at which that
    was clear.

    requests    one row each, in order of arrival: request, t_ms, latency_ms, outcome, path, and for
                each online stage S.wait_ms, S.service_ms, S.ms (waits of all tries, service of the
                last, and all the time there; null where it was not reached, service also where no
                server took it). Outcomes: "served" (shown something), or what left it with nothing:
                "shed", "abandoned" (out of patience), "late", "failed" (a crash).
    stages      one row each: servers, requests, utilisation, mean_waiting, mean_wait_ms, p50_ms,
                p95_ms, p99_ms, counts
    over_time   t_ms, stage, waiting, busy, on about 500 points
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
                wait, ms = (
                    self.requests[f"{line['stage']}.{what}"].drop_nulls()
                    for what in ("wait_ms", "ms")
                )
                found["mean_wait_ms"] = wait.mean()
                found |= {f"p{q}_ms": ms.quantile(q / 100, "linear") for q in (50, 95, 99)}
            rows.append(line | found)
        columns = [
            "stage",
            "servers",
            "requests",
            "utilisation",
            "mean_waiting",
            *SOJOURN,
            "batches",
            "mean_batch",
            *COUNTED,
            "crashes",
        ]
        return pl.DataFrame(rows, infer_schema_length=None).select(columns)

    @property
    def rate(self) -> float:
        """Requests offered a second, on average."""
        return (
            1000
            * self.requests.height
            / (float(self.requests["t_ms"][-1]) or self.end_ms or math.inf)
        )

    @cached_property
    def end_ms(self) -> float:
        """When the last request left."""
        return float((self.requests["t_ms"] + self.requests["latency_ms"]).max())  # type: ignore[arg-type]

    def growing(self) -> dict[str, float]:
        """Stages that nothing bounds and that are offered more than they can serve: their queue's
        growth in requests a second.
        """
        found = {}
        for service, came in zip(self.services.stages, self.counted["requests"], strict=True):
            reached = self.rate * came / self.requests.height
            if (
                service.utilisation(reached) < 1
                or service.bounded
                or service.deadline_ms
                or self.services.deadline_ms
            ):
                continue
            line = self.over_time.filter(
                (pl.col("stage") == service.name) & (pl.col("t_ms") <= self.requests["t_ms"][-1])
            )
            if line.height > 2:
                found[service.name] = float(
                    np.polyfit(line["t_ms"].to_numpy() / 1000, line["waiting"].to_numpy(), 1)[0]
                )
        return found

    def rarely_crashing(self) -> list[str]:
        """Stages whose crashes are too rare for this run: fewer than ten are to be expected in its
        time.
        """
        seconds = float(self.requests["t_ms"][-1]) / 1000
        return [
            s.name
            for s in self.services.stages
            if s.online and s.crash and seconds * s.servers < 10 * s.crash.every_s
        ]

    @cached_property
    def steady(self) -> pl.DataFrame:
        """Requests after the warm-up (MSER-5 on their latency), where arrivals are stationary and
        no queue grows; else all.
        """
        stationary = self.arrivals.stationary and not self.growing()
        return self.requests[warmup(self.requests["latency_ms"].to_numpy()) if stationary else 0 :]

    def summary(self) -> dict[str, Any]:
        """Figures of the whole, as JSON can hold them.

        Percentiles of latency are those of requests that were shown something, with 95% intervals
        by batch means; where arrivals are stationary, requests of the warm-up are left out of them
        (MSER-5). Goodput: requests served a second, until the last one left.
        """
        requests, steady, growing = self.requests, self.steady, self.growing()
        shown = steady.filter(pl.col("outcome") == "served")["latency_ms"].to_numpy()
        left = (
            requests["outcome"].value_counts().sort(["count", "outcome"], descending=[True, False])
        )
        share = {k: n / requests.height for k, n in left.iter_rows()}
        taken = requests["path"].value_counts().sort(["count", "path"], descending=[True, False])
        paths = {k: n / requests.height for k, n in taken.iter_rows()}
        latency = (
            {
                f"p{q}_ms": dict(
                    zip(("value", "low", "high"), batch_quantiles(shown, q / 100), strict=True)
                )
                for q in (50, 95, 99)
            }
            if len(shown)
            else {}
        )
        return {
            "services": self.services.name,
            "seed": self.seed,
            "requests": requests.height,
            "rate": self.rate,
            "warmup": requests.height - steady.height,
            "latency": latency,
            "goodput": 1000
            * int((requests["outcome"] == "served").sum())
            / (self.end_ms or math.inf),
            "outcomes": share,
            "paths": paths,
            "normal": self.services.normal,
            "full": paths.get(self.services.normal, 0.0),
            "rarely_crashing": self.rarely_crashing(),
            "cost_per_hour": self.services.cost_per_hour,
            "growing": growing,
        }

    @classmethod
    def open(cls, folder: Path | str, arrivals: Arrivals | None = None) -> Simulation:
        """Read what `simulate` wrote; raises KarmafunnelError where there is none, and naming a
        file that is not as it was written.
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
        frames = {
            name: read_table(folder / f"{name}.parquet") for name in ("requests", "over_time")
        }
        events = (
            open_table(folder / "events.parquet") if (folder / "events.parquet").exists() else None
        )
        services = Services.read(folder / "services.toml")
        check_keys(who := f"{folder}/simulation.json", meta, META)
        for i, line in enumerate(meta["counted"]):
            check_keys(f"{who}: counted {i + 1}", line, LINE)
        if (names := [line["stage"] for line in meta["counted"]]) != [
            stage.name for stage in services.stages
        ]:
            raise KarmafunnelError(
                who, what="counted", needs="the stages of services.toml", found=quoted(names)
            )
        counted = pl.DataFrame(
            [{key: line[key] for key in LINE} for line in meta["counted"]], infer_schema_length=None
        )
        for name, needed in (
            ("requests", [*REQUESTS, *times_of(services)]),
            ("over_time", list(OVER_TIME)),
        ):
            if frames[name].is_empty() or (
                missing := [column for column in needed if column not in frames[name].columns]
            ):
                found = "no row" if frames[name].is_empty() else f"none of {missing}"
                raise KarmafunnelError(
                    f"{folder}/{name}.parquet", needs=f"{', '.join(needed)}", found=found
                )
        told = arrivals or SavedArrivals(meta["arrivals"], meta["stationary"])
        return cls(
            services, told, meta["seed"], frames["requests"], counted, frames["over_time"], events
        )


@dataclass(frozen=True)
class SavedArrivals(Arrivals):
    """Arrivals of a simulation that was read from disk: their text alone."""

    text: str
    stationary: bool = False

    def __repr__(self) -> str:
        return self.text


def asked_of(services: Services, arrivals: Arrivals, n: int, seed: int) -> dict[str, Any]:
    """What a simulation is told by, as JSON can hold it."""
    return {"services": services.toml(), "arrivals": repr(arrivals), "requests": n, "seed": seed}


def simulate(
    services: Services,
    arrivals: Arrivals,
    n: int,
    seed: int = 0,
    *,
    out: Path | str | None = None,
    events: bool = False,
    progress: Callable[[int], None] | None = None,
    says: dict[str, Any] | None = None,
    also: Callable[[Simulation, Path], Any] | None = None,
    force: bool = False,
) -> Simulation:
    """n requests through a deployment. Same services, arrivals, n and seed: the same events, and
    the same bytes in `out`.

    With `out` tables are written there as they come (requests, over_time, events where asked for;
    services.toml; simulation.json with `says`; what `also` adds to the folder), so that memory does
    not grow with events; the folder appears whole or not at all, in the place of an older
    simulation of the same (with `force`, of something else of ours). `progress` is told how many
    have arrived. Raises KarmafunnelError for an `out` that holds something else, for more than
    20,000,000 requests, and where more than 500,000 are in the system at once, naming the stage
    that cannot keep up.
    """
    check_bound("queue", "requests", requests=n)
    check_seed("queue", seed)
    asked = asked_of(services, arrivals, n, seed)
    times = arrivals.times(n, np.random.default_rng([seed, 2**40]))
    with ExitStack() as stack:
        folder = None
        if out is not None:
            stack.enter_context(claim(out, "queue", SIMULATION, wants=asked, force=force))
            folder = stack.enter_context(atomic_folder(out, sealed=True))
        run = Simulator(services, times, seed, folder, events, progress)
        run.go()
        sheets = {"requests": run.requests, "over_time": run.over_time} | (
            {"events": run.events} if run.events else {}
        )
        for sheet in sheets.values():
            sheet.close()
        counted = run.stages()
        if folder is None:
            frames = {name: pl.concat(sheet.frames) for name, sheet in sheets.items()}
            kept = frames["events"].lazy() if "events" in frames else None
            return Simulation(
                services, arrivals, seed, frames["requests"], counted, frames["over_time"], kept
            )
        services.write(folder / "services.toml")
        meta = asked | {"stationary": arrivals.stationary, "counted": counted.to_dicts()}
        write_json(folder / "simulation.json", meta | (says or {}))
        if also:
            also(Simulation.open(folder, arrivals), folder)
    assert out is not None
    return Simulation.open(out, arrivals)
