"""How many servers each stage needs: the cheapest deployment that meets a target of p99 latency,
found by simulating.

Closed forms (Erlang C, Allen and Cunneen) say where to start. Then servers are added to the worst
stage until the target is met, and the most expensive one that can go is taken away, until none can.
At last everything cheaper that could still do is tried, cheapest first, so that the plan is the
cheapest there is, as far as more servers never hurt and the tries suffice. All with common random
numbers: two deployments differ by their servers alone.
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
from .queueing import Simulation, simulate
from .services import Service, Services
from .theory import wait_quantile_ms

SEEDS = 4  # the plan meets its target with each of so many
MOST = 40  # cheaper deployments that are tried at the end
MOST_SERVERS = 20_000
CLOSE = 0.01  # share to which headroom is found

Servers = tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """What a deployment does with the requests of one seed: p99 (ms) of those that were shown
    something, its 95% interval, the share that was degraded or shown nothing, and the stage that is
    to blame for most of the waiting, or of the degrading.
    """

    p99_ms: float
    low: float | None
    high: float | None
    degraded: float
    worst: str


@dataclass(frozen=True, eq=False)
class Plan:
    """The cheapest servers for a target. `services` has them; `proven`: whether everything cheaper
    was tried or ruled out.

    stages   one row each: stage, servers, fewest (that could do were all other stages idle),
    utilisation, p99_ms, cost_per_hour what_if  one row a change: change, rate, p99_ms, low, high,
    degraded, cost_per_million, meets
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
        """As JSON can hold it."""
        names = (
            "rate",
            "target_ms",
            "lost",
            "n",
            "seed",
            "seeds",
            "p99_ms",
            "degraded",
            "cost_per_million",
            "headroom",
            "proven",
        )
        plain = {"services": self.services.name} | {name: getattr(self, name) for name in names}
        plain |= {"simulations": self.simulations, "cost_per_hour": self.services.cost_per_hour}
        return plain | {"stages": self.stages.to_dicts(), "what_if": self.what_if.to_dicts()}


class Search:
    """Deployments that differ by their servers, each simulated once a seed and rate."""

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
        self.services, self.rate, self.target_ms, self.lost, self.n, self.seed = (
            services,
            rate,
            target_ms,
            lost,
            n,
            seed,
        )
        # in the order in which they are asked: one that said no is asked first
        self.seeds = [(seed + i) % (int(SEED.high) + 1) for i in range(SEEDS)]
        self.progress = progress
        self.stages = [stage for stage in services.stages if stage.online]
        self.known: dict[tuple[Servers, float, int], Outcome] = {}

    def cost(self, servers: Servers) -> float:
        return sum(c * stage.cost_per_hour for c, stage in zip(servers, self.stages, strict=True))

    def deployed(self, servers: Servers) -> Services:
        count = dict(zip([stage.name for stage in self.stages], servers, strict=True))
        return replace(
            self.services,
            stages=tuple(
                replace(s, servers=count.get(s.name, s.servers)) for s in self.services.stages
            ),
        )

    def simulated(self, servers: Servers, rate: float, seed: int) -> Simulation:
        if self.progress:
            told = ", ".join(
                f"{stage.name} {c}" for stage, c in zip(self.stages, servers, strict=True)
            )
            self.progress(f"{told} at {rate:,.1f} a second", len(self.known))
        return simulate(self.deployed(servers), Poisson(rate), self.n, seed)

    def ask(self, servers: Servers, rate: float | None = None, seed: int | None = None) -> Outcome:
        """What comes of a deployment, at the planned rate and with the first seed without others
        said.
        """
        key = (servers, self.rate if rate is None else rate, self.seed if seed is None else seed)
        if key not in self.known:
            self.known[key] = self.outcome(self.simulated(*key))
        return self.known[key]

    def outcome(self, simulation: Simulation) -> Outcome:
        steady = simulation.steady
        p99 = simulation.summary()["latency"].get(
            "p99_ms", {"value": math.inf, "low": None, "high": None}
        )
        degraded = 1 - int((steady["path"] == self.services.normal).sum()) / steady.height
        lines = simulation.stages.filter(pl.col("utilisation").is_not_null())
        waits = [steady[f"{name}.wait_ms"].quantile(0.99) or 0.0 for name in lines["stage"]]
        lost = (
            lines.select(pl.sum_horizontal("shed", "abandoned", "late", "overdue", "failed"))
            .to_series()
            .to_list()
        )
        order = zip(
            lost if degraded > self.lost and any(lost) else waits,
            waits,
            lines["stage"],
            strict=True,
        )
        return Outcome(
            p99["value"],
            p99["low"],
            p99["high"],
            degraded,
            max(order, key=lambda line: line[:2])[2],
        )

    def good(self, outcome: Outcome) -> bool:
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
        return all(
            replace(stage, servers=c).utilisation(rate) < 1
            for c, stage in zip(servers, self.stages, strict=True)
        )

    def fewest_stable(self, stage: Service) -> int:
        return math.floor(replace(stage, servers=1).utilisation(self.rate)) + 1

    def plenty(self) -> Servers:
        """More servers than requests ever wait for: as many are busy as in an infinite-server
        queue, six deviations above, none batched.
        """
        found = []
        for stage in self.stages:
            load = replace(stage, servers=1, batch=1).utilisation(self.rate)
            found.append(max(self.fewest_stable(stage), math.ceil(load + 6 * math.sqrt(load)) + 5))
        return tuple(found)

    # -- steps of the search

    def start(self, spare_ms: float, most: Servers) -> Servers:
        """By closed form: the cheapest next server until the p99 waits, as independent ones add up,
        leave no more than `spare_ms`.

        At most `most` of each stage.
        """
        count = [self.fewest_stable(stage) for stage in self.stages]
        waits = [self.predicted_wait(stage, c) for stage, c in zip(self.stages, count, strict=True)]
        while math.hypot(*waits) > spare_ms:
            after = [
                self.predicted_wait(stage, c + 1)
                for stage, c in zip(self.stages, count, strict=True)
            ]
            gain = [
                (a * a - b * b) / max(s.cost_per_hour, 1e-9)
                for a, b, s in zip(waits, after, self.stages, strict=True)
            ]
            gain = [0.0 if c >= limit else g for g, c, limit in zip(gain, count, most, strict=True)]
            best = max(range(len(gain)), key=gain.__getitem__)
            if gain[best] <= 0:
                break
            count[best] += 1
            waits[best] = after[best]
        return tuple(count)

    def predicted_wait(self, stage: Service, servers: int) -> float:
        """p99 of the wait, ms, by queueing theory: each full batch is one customer."""
        deployed = replace(stage, servers=servers)
        busy = deployed.utilisation(self.rate)
        if busy == 0:
            return 0.0
        rate, service_ms = (
            self.rate / stage.batch,
            busy * servers * 1000 / (self.rate / stage.batch),
        )
        return wait_quantile_ms(
            rate,
            service_ms,
            servers,
            stage.time.squared_cv,
            0.99,
            arrivals_squared_cv=1 / stage.batch,
        )

    def grown(self, servers: Servers, most: Servers) -> Servers:
        """Servers added to the worst stage until every seed meets the target; at most `most` each,
        which do.
        """
        names = [stage.name for stage in self.stages]
        while (bad := self.refused(servers)) is not None:
            places = [i for i in range(len(names)) if servers[i] < most[i]]
            if not places:
                raise KarmafunnelError(
                    "plan",
                    needs=f"a target that servers to spare meet with each of {SEEDS} seeds",
                    found=(
                        f"{bad.p99_ms:.4g} ms with one of them, which is no more than chance away "
                        f"from {self.target_ms:g} ms"
                    ),
                )
            worst = names.index(bad.worst)
            place = worst if worst in places else places[0]
            servers = tuple(c + (i == place) for i, c in enumerate(servers))
        return servers

    def shrunk(self, servers: Servers) -> Servers:
        """Without the most expensive server that can go, until none can."""
        order = sorted(range(len(servers)), key=lambda i: -self.stages[i].cost_per_hour)
        going = True
        while going:
            going = False
            for place in order:
                less = tuple(c - (i == place) for i, c in enumerate(servers))
                if less[place] and self.sure(less):
                    servers, going = less, True
                    break
        return servers

    def fewest(self, servers: Servers, plenty: Servers) -> Servers:
        """The fewest of each stage that could do, all other stages having plenty."""
        found = []
        for i, c in enumerate(servers):
            while c > 1 and self.holds(
                tuple(c - 1 if i == j else more for j, more in enumerate(plenty))
            ):
                c -= 1
            found.append(c)
        return tuple(found)

    def cheapest(self, servers: Servers, fewest: Servers) -> tuple[Servers, bool]:
        """The first that is sure among everything cheaper, cheapest first, and whether nothing was
        left untried.
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
                more = tuple(c + (i == j) for j, c in enumerate(at))
                if more not in seen:
                    seen.add(more)
                    heapq.heappush(heap, (self.cost(more), more))
        return servers, True

    # -- around the plan

    def changes(self, servers: Servers) -> list[dict[str, Any]]:
        """Other rates, and one server less or more at each stage: the figures of a seed that misses
        the target, else of the worst seed.
        """
        asked = [("as planned", servers, self.rate)]
        asked += [
            (f"rate {share - 1:+.0%}", servers, share * self.rate) for share in (0.8, 1.2, 1.5)
        ]
        for sign, word in ((-1, "less"), (1, "more")):
            for i, stage in enumerate(self.stages):
                asked.append(
                    (
                        f"one {stage.name} {word}",
                        tuple(c + sign * (i == j) for j, c in enumerate(servers)),
                        self.rate,
                    )
                )
        rows = []
        for change, count, rate in asked:
            if min(count) < 1:
                continue
            cost = self.deployed(count).cost_per_hour / (rate * 3600) * 1e6
            row: dict[str, Any] = {
                "change": change,
                "rate": rate,
                **dict.fromkeys(("p99_ms", "low", "high", "degraded")),
            }
            if self.stable(count, rate):
                found = self.refused(count, rate) or max(
                    (self.ask(count, rate, seed) for seed in self.seeds), key=lambda o: o.p99_ms
                )
                row |= {
                    "p99_ms": found.p99_ms,
                    "low": found.low,
                    "high": found.high,
                    "degraded": found.degraded,
                }
                row |= {"cost_per_million": cost, "meets": self.good(found)}
            else:  # overload: no figure
                row |= {"cost_per_million": cost, "meets": False}
            rows.append(row)
        return rows

    def headroom(self, servers: Servers) -> float:
        """The highest rate that still meets the target with every seed, by bisection."""
        low, busiest = (
            self.rate,
            max(
                replace(s, servers=c).utilisation(self.rate)
                for c, s in zip(servers, self.stages, strict=True)
            ),
        )
        high = min(self.rate / busiest, BOUNDS["rate"].high) if busiest else self.rate
        while high > low * (1 + CLOSE):
            middle = (low + high) / 2
            low, high = (middle, high) if self.sure(servers, middle) else (low, middle)
        return low


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
    """The cheapest servers for each stage so that p99 of the latency end to end is at most `p99_ms`
    at `rate` requests a second (Poisson).

    At most the share `lost` of requests may be degraded or shown nothing. `n`: requests of each
    simulation; the plan meets the target with `seed` and the three after it. All but the servers is
    as in `services`: batches, deadlines, fallbacks, costs. Stages that are not online keep their
    servers. Raises KarmafunnelError for a rate that is none and for a target that no number of
    servers reaches, with the least that can be reached.
    """
    for name, value in {"rate": rate, "p99_ms": p99_ms, "lost": lost}.items():
        check_bound("plan", name, **{name: value})
    check_bound("plan", "planned_requests", requests=n)  # a hundredth of them tells p99
    check_seed("plan", seed)
    search = Search(services, rate, p99_ms, lost, n, seed, progress)
    if not search.stages:
        raise KarmafunnelError(
            "plan", needs="a stage that is online", found=f"none in {services.name!r}"
        )
    plenty = search.plenty()
    if sum(plenty) > MOST_SERVERS:
        raise KarmafunnelError(
            "plan",
            needs=f"a rate that {MOST_SERVERS:,} servers can stand",
            found=f"that {rate:,g} a second takes {sum(plenty):,}",
        )
    best = search.ask(plenty)
    if best.p99_ms > p99_ms:
        raise KarmafunnelError(
            "plan",
            needs=(
                f"p99_ms of at least {best.p99_ms:.4g}, which takes servers to spare and nobody "
                "waiting for one"
            ),
            found=f"{p99_ms:g}",
        )
    if best.degraded > lost:
        raise KarmafunnelError(
            "plan",
            needs=f"at most {lost:.2%} of requests degraded or shown nothing",
            found=(
                f"{best.degraded:.2%} with servers to spare, most at {best.worst}: deadlines and "
                "crashes ask for it, whatever the servers"
            ),
        )
    first = tuple(map(min, search.start(p99_ms - best.p99_ms, plenty), plenty))
    servers = search.shrunk(search.grown(first, plenty))
    fewest = search.fewest(servers, plenty)
    servers, proven = search.cheapest(servers, fewest)
    outcomes = [search.ask(servers, seed=s) for s in search.seeds]
    found = search.simulated(servers, rate, seed).stages
    lines = []
    for stage, c, least in zip(search.stages, servers, fewest, strict=True):
        line = found.row(by_predicate=pl.col("stage") == stage.name, named=True)
        lines.append(
            {
                "stage": stage.name,
                "servers": c,
                "fewest": least,
                "utilisation": line["utilisation"],
                "p99_ms": line["p99_ms"],
                "cost_per_hour": c * stage.cost_per_hour,
            }
        )
    changes = pl.DataFrame(search.changes(servers), infer_schema_length=None)
    headroom = search.headroom(servers)
    return Plan(
        search.deployed(servers),
        rate,
        p99_ms,
        lost,
        n,
        seed,
        max(o.p99_ms for o in outcomes),
        max(o.degraded for o in outcomes),
        pl.DataFrame(lines),
        changes,
        headroom,
        proven,
        len(search.known),
    )


__all__ = ["Plan", "plan"]
