"""How many servers each stage needs: the cheapest deployment that meets a target of p99 latency,
found by simulation.

The search starts from closed forms (Erlang C, Allen and Cunneen). It adds servers to the worst
stage until the target is met, then removes the most expensive server that is not needed, until none
is left. Last it tries all cheaper allocations that may meet the target, cheapest first. The plan is
then the cheapest, provided that more servers never raise the latency and the number of trials
suffices. All deployments are simulated with common random numbers and differ only by their servers.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from ...bounds import BOUNDS, SEED, check_bound, check_seed
from ...errors import KarmafunnelError
from .arrivals import Poisson
from .queueing import COUNTED, Simulation, simulate
from .services import Service, Services
from .theory import wait_quantile_ms

SEEDS = 4  # the plan meets its target with each of them
MOST = 40  # cheaper allocations that are tried at the end
MOST_SERVERS = 20_000
CLOSE = 0.01  # relative precision of the headroom

Servers = tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """The result of a deployment for one seed.

    p99_ms, low, high: p99 of the latency of requests that were shown something, and its 95%
    interval. degraded: share of requests that were degraded or shown nothing. worst: the stage that
    caused most of the waiting, or of the degrading.
    """

    p99_ms: float
    low: float | None
    high: float | None
    degraded: float
    worst: str


@dataclass(frozen=True, eq=False)
class Plan:
    """The cheapest servers for a target.

    services    the deployment with these servers
    stages      one row each: stage, servers, fewest (that would meet the target if all other stages
                were idle), utilisation, p99_ms, cost_per_hour
    what_if     one row a change: change, rate, p99_ms, low, high, degraded, cost_per_million, meets
    headroom    the highest rate, requests a second, that still meets the target
    proven      whether every cheaper allocation was tried or ruled out
    """

    services: Services
    rate: float
    target_ms: float
    lost: float
    n: int
    seed: int
    p99_ms: float
    degraded: float
    stages: pl.DataFrame
    what_if: pl.DataFrame
    headroom: float
    proven: bool
    simulations: int
    seeds: int = SEEDS

    @property
    def cost_per_million(self) -> float:
        """Cost of a million requests at the rate planned for."""
        return self.services.cost_per_hour / (self.rate * 3600) * 1e6

    def summary(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return {
            "services": self.services.name,
            "rate": self.rate,
            "target_ms": self.target_ms,
            "lost": self.lost,
            "n": self.n,
            "seed": self.seed,
            "seeds": self.seeds,
            "p99_ms": self.p99_ms,
            "degraded": self.degraded,
            "cost_per_million": self.cost_per_million,
            "headroom": self.headroom,
            "proven": self.proven,
            "simulations": self.simulations,
            "cost_per_hour": self.services.cost_per_hour,
            "stages": self.stages.to_dicts(),
            "what_if": self.what_if.to_dicts(),
        }


def _why_lost(services: Services, degraded: float) -> str:
    """What to change where servers do not help: the share that is accepted, or the deadlines."""
    stages = [stage for stage in services.stages if stage.deadline_ms is not None]
    deadlines = [f"{stage.name} {stage.deadline_ms:g} ms" for stage in stages]
    if services.deadline_ms is not None:
        deadlines.insert(0, f"end to end {services.deadline_ms:g} ms")
    longer = f", or longer deadlines ({', '.join(deadlines)})" if deadlines else ""
    share = math.ceil(degraded * 1e4) / 1e4
    return f"not servers, but `--lost {share:g}`{longer} would help: deadlines and crashes do it"


class Search:
    """Deployments that differ only by their servers, each simulated once per seed and rate."""

    def __init__(
        self,
        services: Services,
        rate: float,
        target_ms: float,
        lost: float,
        n: int,
        seed: int,
        progress: Callable[[str, int], None] | None,
    ):
        self.services, self.n, self.seed = services, n, seed
        self.rate, self.target_ms, self.lost = rate, target_ms, lost
        # in the order in which they are simulated: the last one that missed the target comes first
        self.seeds = [(seed + i) % (int(SEED.high) + 1) for i in range(SEEDS)]
        self.progress = progress
        self.stages = [stage for stage in services.stages if stage.online]
        self.known: dict[tuple[Servers, float, int], Outcome] = {}

    def with_servers(self, servers: Servers) -> list[Service]:
        """The online stages with so many servers."""
        return [replace(s, servers=n) for s, n in zip(self.stages, servers, strict=True)]

    def cost(self, servers: Servers) -> float:
        """Cost an hour of the servers of online stages."""
        return sum(stage.servers * stage.cost_per_hour for stage in self.with_servers(servers))

    def deployed(self, servers: Servers) -> Services:
        """The whole deployment with so many servers."""
        changed = {stage.name: stage for stage in self.with_servers(servers)}
        stages = [changed.get(stage.name, stage) for stage in self.services.stages]
        return replace(self.services, stages=tuple(stages))

    def simulated(self, servers: Servers, rate: float, seed: int) -> Simulation:
        if self.progress:
            counts = [f"{stage.name} {stage.servers}" for stage in self.with_servers(servers)]
            self.progress(f"{', '.join(counts)} at {rate:,.1f} a second", len(self.known))
        return simulate(self.deployed(servers), Poisson(rate), self.n, seed)

    def ask(self, servers: Servers, rate: float | None = None, seed: int | None = None) -> Outcome:
        """The result of a deployment; by default at the planned rate and with the first seed."""
        key = (servers, self.rate if rate is None else rate, self.seed if seed is None else seed)
        if key not in self.known:
            self.known[key] = self.outcome(self.simulated(*key))
        return self.known[key]

    def outcome(self, simulation: Simulation) -> Outcome:
        """p99, the degraded share, and the stage with most lost requests or the longest waits."""
        steady, latency = simulation.steady, simulation.latency()
        p99 = latency["p99_ms"] if latency else {"value": math.inf, "low": None, "high": None}
        degraded = 1 - int((steady["path"] == self.services.normal).sum()) / steady.height
        waits: dict[str, float] = {}
        lost: dict[str, int] = {}
        for line in simulation.stages.iter_rows(named=True):
            name = line["stage"]
            if line["utilisation"] is not None:
                waits[name] = steady[f"{name}.wait_ms"].quantile(0.99) or 0.0
                lost[name] = sum(line[cause] for cause in COUNTED)
        if degraded > self.lost and any(lost.values()):
            worst = max(waits, key=lambda name: (lost[name], waits[name]))
        else:
            worst = max(waits, key=lambda name: waits[name])
        value = float(p99["value"])  # type: ignore[arg-type]
        return Outcome(value, p99["low"], p99["high"], degraded, worst)

    def good(self, outcome: Outcome) -> bool:
        """Whether an outcome meets the target."""
        return outcome.p99_ms <= self.target_ms and outcome.degraded <= self.lost

    def holds(self, servers: Servers) -> bool:
        """Whether the target is met with the first seed."""
        return self.stable(servers, self.rate) and self.good(self.ask(servers))

    def refused(self, servers: Servers, rate: float | None = None) -> Outcome | None:
        """The outcome of the first seed that misses the target; None where every seed meets it."""
        for seed in list(self.seeds):
            if not self.good(found := self.ask(servers, rate, seed)):
                self.seeds.remove(seed)
                self.seeds.insert(0, seed)
                return found
        return None

    def sure(self, servers: Servers, rate: float | None = None) -> bool:
        """Whether the target is met with every seed."""
        return self.stable(servers, rate or self.rate) and self.refused(servers, rate) is None

    def stable(self, servers: Servers, rate: float) -> bool:
        """Whether the offered load of every stage is below its capacity."""
        return all(stage.utilisation(rate) < 1 for stage in self.with_servers(servers))

    def fewest_stable(self, stage: Service) -> int:
        """The fewest servers of a stage with a load below capacity."""
        return math.floor(replace(stage, servers=1).utilisation(self.rate)) + 1

    def ample(self) -> Servers:
        """So many servers that requests hardly ever wait: six standard deviations above the mean
        number of busy servers in an infinite-server queue without batches.
        """
        found = []
        for stage in self.stages:
            load = replace(stage, servers=1, batch=1).utilisation(self.rate)
            found.append(max(self.fewest_stable(stage), math.ceil(load + 6 * math.sqrt(load)) + 5))
        return tuple(found)

    # -- steps of the search

    def start(self, spare_ms: float, most: Servers) -> Servers:
        """Servers by closed form: add the one that reduces the waits most for its cost until the
        p99 waits of the stages, added as independent ones, are at most `spare_ms`.

        At most `most` of each stage.
        """
        count = list(map(self.fewest_stable, self.stages))
        waits = list(map(self.predicted_wait, self.stages, count))
        while math.hypot(*waits) > spare_ms:
            best, best_gain, best_wait = -1, 0.0, 0.0
            for i, stage in enumerate(self.stages):
                if count[i] >= most[i]:
                    continue
                wait = self.predicted_wait(stage, count[i] + 1)
                gain = (waits[i] * waits[i] - wait * wait) / max(stage.cost_per_hour, 1e-9)
                if gain > best_gain:
                    best, best_gain, best_wait = i, gain, wait
            if best < 0:
                break
            count[best] += 1
            waits[best] = best_wait
        return tuple(count)

    def predicted_wait(self, stage: Service, servers: int) -> float:
        """p99 of the wait, ms, by queueing theory: each full batch is one customer."""
        busy = replace(stage, servers=servers).utilisation(self.rate)
        if busy == 0:
            return 0.0
        rate = self.rate / stage.batch
        service_ms = busy * servers * 1000 / rate
        spread = stage.time.squared_cv
        return wait_quantile_ms(
            rate, service_ms, servers, spread, 0.99, arrivals_squared_cv=1 / stage.batch
        )

    def grow(self, servers: Servers, most: Servers) -> Servers:
        """Add servers to the worst stage until every seed meets the target.

        Raises KarmafunnelError where `most` of each stage miss it.
        """
        names = [stage.name for stage in self.stages]
        while (bad := self.refused(servers)) is not None:
            places = [i for i in range(len(names)) if servers[i] < most[i]]
            if not places:
                raise KarmafunnelError(
                    "plan",
                    needs=f"a target that ample servers meet with each of {SEEDS} seeds",
                    found=f"p99 of {bad.p99_ms:.4g} ms for one seed, the target {self.target_ms:g}",
                )
            worst = names.index(bad.worst)
            servers = changed(servers, worst if worst in places else places[0], 1)
        return servers

    def shrink(self, servers: Servers) -> Servers:
        """Remove the most expensive server that is not needed, until none is left."""
        order = sorted(range(len(servers)), key=lambda i: -self.stages[i].cost_per_hour)
        while True:
            for place in order:
                less = changed(servers, place, -1)
                if less[place] and self.sure(less):
                    servers = less
                    break
            else:
                return servers

    def lower_bounds(self, servers: Servers, ample: Servers) -> Servers:
        """The fewest servers of each stage that meet the target while all others have `ample`."""
        found = []
        for i, count in enumerate(servers):
            while count > 1 and self.holds((*ample[:i], count - 1, *ample[i + 1 :])):
                count -= 1
            found.append(count)
        return tuple(found)

    def cheapest(self, servers: Servers, fewest: Servers) -> tuple[Servers, bool]:
        """Try everything cheaper than `servers` with at least `fewest` of each stage, cheapest
        first.

        Returns:
            The first allocation that meets the target with every seed, else `servers`; and whether
            no cheaper one was left untried.
        """
        heap, seen, tried = [(self.cost(fewest), fewest)], {fewest}, 0
        failed: list[Servers] = []
        while heap:
            cost, at = heapq.heappop(heap)
            if cost >= self.cost(servers) - 1e-9:
                break
            if not any(all(a <= b for a, b in zip(at, bad, strict=True)) for bad in failed):
                if tried == MOST:
                    return servers, False
                tried += 1
                if self.sure(at):
                    return at, True
                failed.append(at)
            for i in range(len(at)):
                more = changed(at, i, 1)
                if more not in seen:
                    seen.add(more)
                    heapq.heappush(heap, (self.cost(more), more))
        return servers, True

    # -- around the plan

    def changes(self, servers: Servers) -> list[dict[str, Any]]:
        """The rows of `Plan.what_if`: other rates, and one server less or more at each stage.

        Each has the result of a seed that misses the target, else of the worst seed.
        """
        asked = [("as planned", servers, self.rate)]
        for share in (0.8, 1.2, 1.5):
            asked.append((f"rate {share - 1:+.0%}", servers, share * self.rate))
        for more, word in ((-1, "less"), (1, "more")):
            for i, stage in enumerate(self.stages):
                asked.append((f"one {stage.name} {word}", changed(servers, i, more), self.rate))
        rows = []
        for change, count, rate in asked:
            if min(count) < 1:
                continue
            row: dict[str, Any] = {"change": change, "rate": rate}
            row |= dict.fromkeys(("p99_ms", "low", "high", "degraded"))
            row["cost_per_million"] = self.deployed(count).cost_per_hour / (rate * 3600) * 1e6
            row["meets"] = False
            if self.stable(count, rate):  # else overload, without a latency
                found = self.refused(count, rate) or self.worst(count, rate)
                row |= {"p99_ms": found.p99_ms, "low": found.low, "high": found.high}
                row |= {"degraded": found.degraded, "meets": self.good(found)}
            rows.append(row)
        return rows

    def worst(self, servers: Servers, rate: float | None = None) -> Outcome:
        """The outcome of the seed with the highest p99."""
        outcomes = [self.ask(servers, rate, seed) for seed in self.seeds]
        return max(outcomes, key=lambda outcome: outcome.p99_ms)

    def headroom(self, servers: Servers) -> float:
        """The highest rate that still meets the target with every seed, by bisection."""
        busiest = max(stage.utilisation(self.rate) for stage in self.with_servers(servers))
        low = high = self.rate
        if busiest:
            high = min(self.rate / busiest, BOUNDS["rate"].high)
        while high > low * (1 + CLOSE):
            middle = (low + high) / 2
            if self.sure(servers, middle):
                low = middle
            else:
                high = middle
        return low


def changed(servers: Servers, place: int, more: int) -> Servers:
    """Servers with so many more (less, where negative) at one place."""
    return (*servers[:place], servers[place] + more, *servers[place + 1 :])


def plan(
    services: Services,
    rate: float,
    p99_ms: float,
    *,
    lost: float = 0.001,
    n: int = 20_000,
    seed: int = 0,
    progress: Callable[[str, int], None] | None = None,
) -> Plan:
    """Find the cheapest servers of each stage with which p99 of the latency is at most `p99_ms`.

    Args:
        services: the deployment; all settings but the servers stay. Stages that are not online keep
            their servers, too.
        rate: requests a second (Poisson).
        p99_ms: the target, end to end.
        lost: largest share of requests that may be degraded or shown nothing.
        n: requests of each simulation.
        seed: the plan meets the target with it and the three seeds after it.
        progress: called before each simulation with what is simulated and how many were.

    Raises:
        KarmafunnelError: for a number outside its bound, and for a target that no number of servers
            meets, with the best that can be reached.
    """
    for name, value in {"rate": rate, "p99_ms": p99_ms, "lost": lost}.items():
        check_bound("plan", name, **{name: value})
    check_bound("plan", "planned_requests", requests=n)  # a hundredth of them determine p99
    check_seed("plan", seed)
    search = Search(services, rate, p99_ms, lost, n, seed, progress)
    if not search.stages:
        raise KarmafunnelError(
            "plan", needs="a stage that is online", found=f"none in {services.name!r}"
        )
    ample = search.ample()
    if sum(ample) > MOST_SERVERS:
        raise KarmafunnelError(
            "plan",
            needs=f"a rate that {MOST_SERVERS:,} servers can serve",
            found=f"{rate:,g} requests a second, for which {sum(ample):,} are needed",
        )
    best = search.ask(ample)
    if best.p99_ms > p99_ms:
        raise KarmafunnelError(
            "plan",
            needs=f"p99_ms of at least {best.p99_ms:.4g}, the latency with ample servers",
            found=f"{p99_ms:g}",
        )
    if best.degraded > lost:
        worst = max(search.ask(ample, seed=s).degraded for s in search.seeds)
        raise KarmafunnelError(
            "plan",
            needs=f"at most {lost:.2%} of requests degraded or shown nothing",
            found=f"{best.degraded:.2%} with ample servers, most at {best.worst}",
            hint=_why_lost(services, worst),
        )
    first = tuple(map(min, search.start(p99_ms - best.p99_ms, ample), ample))
    servers = search.shrink(search.grow(first, ample))
    fewest = search.lower_bounds(servers, ample)
    servers, proven = search.cheapest(servers, fewest)
    outcomes = [search.ask(servers, seed=s) for s in search.seeds]
    found = search.simulated(servers, rate, seed).stages
    lines = []
    for stage, least in zip(search.with_servers(servers), fewest, strict=True):
        line = found.row(by_predicate=pl.col("stage") == stage.name, named=True)
        lines.append(
            {
                "stage": stage.name,
                "servers": stage.servers,
                "fewest": least,
                "utilisation": line["utilisation"],
                "p99_ms": line["p99_ms"],
                "cost_per_hour": stage.servers * stage.cost_per_hour,
            }
        )
    return Plan(
        services=search.deployed(servers),
        rate=rate,
        target_ms=p99_ms,
        lost=lost,
        n=n,
        seed=seed,
        p99_ms=max(outcome.p99_ms for outcome in outcomes),
        degraded=max(outcome.degraded for outcome in outcomes),
        stages=pl.DataFrame(lines),
        what_if=pl.DataFrame(search.changes(servers), infer_schema_length=None),
        headroom=search.headroom(servers),
        proven=proven,
        simulations=len(search.known),
    )


__all__ = ["Plan", "plan"]
