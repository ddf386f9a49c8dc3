"""A deployment under load: one Service a stage, read from and written to a TOML file that a person
can write by hand.

    name = "baseline"
    deadline_ms = 100            # end to end; without it a request waits for ever
    late = "open"                # past it: "open": the stages left take their fallbacks at once;
                                 # "closed": nothing is shown

    [[stage]]
    name = "recall"              # in funnel order; an embedder that is asked online is a stage
                                 # before recall, under its own name
    servers = 4
    items = 5000                 # rows that a request brings to this stage
    k = 500                      # rows that it puts out (without it: as many as came)
    batch = 8                    # most requests that a server takes at once
    wait_ms = 1.0                # how long the first of a batch may wait for others while a server
                                 # is free
    queue = 200                  # waiting room: a request that comes to a full one is shed. Without
                                 # it: endless
    patience_ms = 20             # a request that has waited so long for a server leaves the queue
    deadline_ms = 30             # from coming to the stage to the end of service there; the server
                                 # works on in vain
    retries = 1                  # after a crash or a stage's deadline it is tried here again, so
                                 # often
    fail = "open"                # shed, impatient, late or broken here: "open" goes on with
                                 # `fallback`, "closed" shows nothing
    fallback = "popular"         # the mode then taken: "skip" (the order of the stage before, cut
                                 # to k; not of recall), "stale" (of an embedder), or a named
                                 # fallback of recall. Without it: "skip"
    cost_per_hour = 0.4          # of one server
    time = {kind = "lognormal", base_ms = 1.2, request_ms = 0.3, item_us = 0.5, cv = 0.2}
    cold = {requests = 100, factor = 3.0}           # the first so many requests of a server are
                                                    # slower; also after a repair
    slow = {probability = 0.01, factor = 10.0}      # now and then a server is slow
    crash = {every_s = 3600.0, repair_s = 60.0}     # exponential both; what is in service fails
    cache = {hit = 0.8}                             # this share of requests, drawn, is answered at
                                                    # once, by no server, as if anew
    adapt = {levels = [500, 250], waiting = [10]}   # puts out levels[i + 1] once waiting[i]
                                                    # requests wait at the next stage

An embedder has `online = false` where its vectors are near-line (no request waits for it, all take
"stale@<stale_minutes>").
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal, NoReturn

import tomli_w

from ...bounds import check_bound, check_name, check_title
from ...errors import KarmafunnelError, quoted
from ...files import SERVICES, claim, marked, read_text, write_text
from ..replay.paths import FULL, NOTHING, SKIP, STALE, path_of

KINDS = ("constant", "exponential", "lognormal", "empirical")
MOST_PATHS = 64  # each is a replay of the log
MOST_STAGES = 64
LONGEST = 100_000  # numbers in brackets


def _array(who: str, name: str, value: Any, bound: str) -> None:
    if not isinstance(value, tuple) or len(value) > LONGEST:
        raise KarmafunnelError(
            who,
            what=name,
            needs=f"at most {LONGEST:,} numbers in brackets",
            found=quoted(value),
        )
    for one in value:
        check_bound(who, bound, **{name: one})


def _made(cls: type, who: str, said: Any) -> Any:
    """A dataclass of a TOML table; raises KarmafunnelError for unknown and missing keys."""
    known = [f.name for f in fields(cls)]
    if not isinstance(said, Mapping):
        raise KarmafunnelError(who, needs=f"a table with {', '.join(known)}", found=quoted(said))
    if stray := [key for key in said if key not in known]:
        raise KarmafunnelError(who, needs=f"keys among {', '.join(known)}", found=quoted(stray))
    needed = [f.name for f in fields(cls) if f.default is MISSING]
    if any(key not in said for key in needed):
        raise KarmafunnelError(who, needs=f"{', '.join(needed)}", found=quoted(list(said)))
    return cls(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    )


def _said(value: Any) -> Any:
    """The inverse of `_made`: what differs from the defaults, as TOML can hold it."""
    said = {
        f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default
    }
    return {
        key: _said(x) if is_dataclass(x) else list(x) if isinstance(x, tuple) else x
        for key, x in said.items()
    }


def _rows(values: list[str]) -> str:
    """An array of TOML with twenty values a line."""
    lines = [" ".join(values[i : i + 20]) for i in range(0, len(values), 20)]
    return "[" + ("\n    " if len(lines) > 1 else "") + "\n    ".join(lines).rstrip(",") + "]"


@dataclass(frozen=True)
class ServiceTime:
    """Time that a server needs for a batch, ms: `base_ms` + `request_ms` * requests + `item_us` /
    1000 * items of all of them, times a ratio.

    The ratio is of mean 1 but where `ratios` say otherwise: 1 (constant), exponential, lognormal
    with the coefficient of variation `cv`, or drawn from `ratios`, the quantiles of time / mean
    from lowest to highest, evenly spaced, with straight lines between (empirical).
    """

    kind: Literal["constant", "exponential", "lognormal", "empirical"] = "constant"
    base_ms: float = 0.0
    request_ms: float = 0.0
    item_us: float = 0.0
    cv: float = 0.0
    ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        who = "time"
        if self.kind not in KINDS:
            raise KarmafunnelError(
                who, what="kind", needs=f"one of {', '.join(KINDS)}", found=quoted(self.kind)
            )
        for name in ("base_ms", "request_ms", "item_us", "cv"):
            check_bound(who, name, **{name: getattr(self, name)})
        _array(who, "ratios", self.ratios, "ratios")
        if self.cv and self.kind != "lognormal":
            raise KarmafunnelError(f"{who}: cv is of kind 'lognormal', found it with {self.kind!r}")
        if (self.kind == "empirical") != (len(self.ratios) >= 2) or list(self.ratios) != sorted(
            self.ratios
        ):
            raise KarmafunnelError(
                f"{who}: ratios are of kind 'empirical', two or more, ascending; found"
                f" {self.kind!r} and {len(self.ratios)}"
            )
        if self.ratios and self.ratios[-1] == 0:
            raise KarmafunnelError(f"{who}: ratios need one above 0, found none")
        if self.base_ms + self.request_ms + self.item_us == 0:
            raise KarmafunnelError(
                who, needs="base_ms, request_ms or item_us above 0", found="none"
            )

    def mean_ms(self, requests: float = 1, items: float = 0) -> float:
        """Mean time of a batch of so many requests, with so many items in all."""
        return (
            self.base_ms + self.request_ms * requests + self.item_us / 1000 * items
        ) * self.mean_ratio

    @property
    def mean_ratio(self) -> float:
        if self.kind != "empirical":
            return 1.0
        r = self.ratios
        return (sum(r) - (r[0] + r[-1]) / 2) / (len(r) - 1)  # the straight lines' mean

    @property
    def squared_cv(self) -> float:
        """Squared coefficient of variation of a batch's time."""
        if self.kind != "empirical":
            return {"constant": 0.0, "exponential": 1.0, "lognormal": self.cv**2}[self.kind]
        r = self.ratios
        second = sum((a * a + a * b + b * b) / 3 for a, b in pairwise(r)) / (len(r) - 1)
        return second / self.mean_ratio**2 - 1

    @property
    def least_ratio(self) -> float:
        """The smallest share of the mean that a batch can take."""
        return 1.0 if self.squared_cv == 0 else min(self.ratios, default=0.0)


@dataclass(frozen=True)
class Cold:
    requests: int
    factor: float


@dataclass(frozen=True)
class Slow:
    probability: float
    factor: float


@dataclass(frozen=True)
class Crash:
    every_s: float
    repair_s: float


@dataclass(frozen=True)
class Cache:
    hit: float


@dataclass(frozen=True)
class Adapt:
    levels: tuple[int, ...]
    waiting: tuple[int, ...]

    def __post_init__(self) -> None:
        _array("adapt", "levels", self.levels, "levels")
        _array("adapt", "waiting", self.waiting, "waiting")
        if len(self.levels) != len(self.waiting) + 1 or list(self.waiting) != sorted(
            set(self.waiting)
        ):
            raise KarmafunnelError(
                "adapt",
                needs="ascending waiting, and one level more than it",
                found=f"{self.levels} and {self.waiting}",
            )
        if list(self.levels) != sorted(set(self.levels), reverse=True):
            raise KarmafunnelError(f"adapt: levels need to fall, found {self.levels}")

    def level(self, waiting: int) -> int:
        """The place in `levels` while so many wait at the next stage."""
        return sum(waiting >= bound for bound in self.waiting)


PARTS = {
    "time": ServiceTime,
    "cold": Cold,
    "slow": Slow,
    "crash": Crash,
    "cache": Cache,
    "adapt": Adapt,
}


@dataclass(frozen=True)
class Service:
    """One stage under load; times in ms. The fields are those of the TOML file, told at the top of
    this module.
    """

    name: str
    time: ServiceTime
    servers: int = 1
    items: int = 0
    k: int | None = None
    batch: int = 1
    wait_ms: float = 0.0
    queue: int | None = None
    patience_ms: float | None = None
    deadline_ms: float | None = None
    retries: int = 0
    fail: Literal["open", "closed"] = "open"
    fallback: str = SKIP
    cost_per_hour: float = 1.0
    online: bool = True
    stale_minutes: float | None = None
    cold: Cold | None = None
    slow: Slow | None = None
    crash: Crash | None = None
    cache: Cache | None = None
    adapt: Adapt | None = None

    def __post_init__(self) -> None:
        check_name("stage", "name", self.name)
        who = f"stage {self.name!r}"
        optional = {
            name: getattr(self, name) for name in ("k", "queue", "patience_ms", "deadline_ms")
        }
        told = {
            name: getattr(self, name)
            for name in ("servers", "items", "batch", "retries", "wait_ms", "cost_per_hour")
        }
        for name, value in {
            **told,
            **{name: value for name, value in optional.items() if value is not None},
        }.items():
            check_bound(who, name, **{name: value})
        if self.stale_minutes is not None:
            check_bound(who, "stale_every", stale_minutes=self.stale_minutes)
        check_name(who, "fallback", self.fallback, (FULL, NOTHING))
        if not isinstance(self.online, bool):
            raise KarmafunnelError(
                who, what="online", needs="true or false", found=quoted(self.online)
            )
        if self.fail not in ("open", "closed"):
            raise KarmafunnelError(
                who, what="fail", needs="'open' or 'closed'", found=quoted(self.fail)
            )
        for part in ("time", "cold", "slow", "crash", "cache", "adapt"):
            found, kind = getattr(self, part), PARTS[part]
            if not isinstance(found, kind) and (found is not None or part == "time"):
                raise KarmafunnelError(
                    who,
                    what=part,
                    needs=f"a table with {', '.join(f.name for f in fields(kind))}",
                    found=quoted(found),
                )
        bounds = {
            "cold.requests": "cold_requests",
            "cold.factor": "factor",
            "slow.probability": "probability",
            "slow.factor": "factor",
        }
        bounds |= {"crash.every_s": "every_s", "crash.repair_s": "repair_s", "cache.hit": "hit"}
        for name, bound in bounds.items():
            part, _, key = name.partition(".")
            if (found := getattr(self, part)) is not None:
                check_bound(who, bound, **{name: getattr(found, key)})
        if self.adapt and self.k is not None and self.adapt.levels[0] > self.k:
            raise KarmafunnelError(
                f"{who}: adapt.levels need at most k = {self.k}, found {self.adapt.levels[0]}"
            )
        if (not self.online or self.fallback == STALE) and self.stale_minutes is None:
            raise KarmafunnelError(
                f"{who}: stale vectors need stale_minutes (how often they are refreshed), found"
                " none"
            )
        if self.deadline_ms is not None and self.deadline_ms <= self.fastest_ms:
            raise KarmafunnelError(
                who,
                what="deadline_ms",
                needs=f"more than the fastest service, {self.fastest_ms:g} ms",
                found=f"{self.deadline_ms:g}",
            )

    @property
    def fastest_ms(self) -> float:
        """The shortest time in which a server can answer."""
        return self.time.mean_ms(1, self.items) / self.time.mean_ratio * self.time.least_ratio

    @property
    def most(self) -> int | None:
        """Rows that it puts out when nothing is cut, where they are said."""
        return self.k or (self.adapt.levels[0] if self.adapt else None)

    @property
    def stale(self) -> str:
        """The mode of near-line vectors, such as "stale@60"."""
        return f"{STALE}@{self.stale_minutes:g}"

    @property
    def fallen(self) -> str:
        """The mode taken where the stage failed open."""
        return self.stale if self.fallback == STALE else self.fallback

    def mean_ms(self, requests: int | None = None) -> float:
        """Mean time of a server for a request of a batch of so many (a full one without it), what
        cold, slow and cached ones cost aside.
        """
        batch = requests or self.batch
        return self.time.mean_ms(batch, batch * self.items) / batch

    def utilisation(self, rate: float) -> float:
        """Offered load of each server at `rate` requests a second, batches full: above 1 the queue
        grows without end.
        """
        if not self.online:
            return 0.0
        busy = rate / 1000 * self.mean_ms() * (1 - (self.cache.hit if self.cache else 0))
        busy *= 1 + self.slow.probability * (self.slow.factor - 1) if self.slow else 1
        up = self.crash.every_s / (self.crash.every_s + self.crash.repair_s) if self.crash else 1
        return busy / (self.servers * up)

    @property
    def bounded(self) -> bool:
        """Whether the queue cannot grow without end."""
        return self.queue is not None or self.patience_ms is not None

    @property
    def can_fail(self) -> bool:
        return self.bounded or self.deadline_ms is not None or self.crash is not None


@dataclass(frozen=True)
class Services:
    """A whole deployment: the stages in funnel order, the deadline end to end (ms) and what happens
    past it.
    """

    stages: tuple[Service, ...]
    name: str = "services"
    deadline_ms: float | None = None
    late: Literal["open", "closed"] = "open"
    note: str = field(default="", compare=False)  # how it was made

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        check_title("services", "name", self.name)
        if not names or len(set(names)) < len(names) or len(names) > MOST_STAGES:
            raise KarmafunnelError(
                f"services {self.name!r}",
                needs=f"1 to {MOST_STAGES} stages of different names",
                found=quoted(names),
            )
        if not any(stage.online for stage in self.stages):
            raise KarmafunnelError(
                f"services {self.name!r}", needs="a stage that is online", found="none"
            )
        if self.late not in ("open", "closed"):
            raise KarmafunnelError(
                f"services {self.name!r}",
                what="late",
                needs="'open' or 'closed'",
                found=quoted(self.late),
            )
        if not isinstance(self.note, str):
            raise KarmafunnelError(
                f"services {self.name!r}", what="note", needs="a text", found=quoted(self.note)
            )
        if self.stages[-1].adapt:
            raise KarmafunnelError(
                f"stage {names[-1]!r}: adapt watches the next stage's queue, found it at the last"
                " stage"
            )
        if self.deadline_ms is not None:
            check_bound(f"services {self.name!r}", "deadline_ms", deadline_ms=self.deadline_ms)
            fastest = sum(s.fastest_ms for s in self.stages if s.online and not s.cache)
            if self.deadline_ms <= fastest:
                raise KarmafunnelError(
                    f"services {self.name!r}",
                    what="deadline_ms",
                    needs=f"more than the fastest service, {fastest:g} ms",
                    found=f"{self.deadline_ms:g}",
                )

    def __getitem__(self, name: str) -> Service:
        """The stage of a name; raises KarmafunnelError where there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KarmafunnelError(
            f"services {self.name!r}",
            needs=f"a stage among {[s.name for s in self.stages]}",
            found=repr(name),
        )

    def change(self, name: str, **changes: Any) -> Services:
        """The same with one stage changed."""
        self[name]
        return replace(
            self, stages=tuple(replace(s, **changes) if s.name == name else s for s in self.stages)
        )

    @property
    def cost_per_hour(self) -> float:
        return sum(stage.servers * stage.cost_per_hour for stage in self.stages)

    @property
    def normal(self) -> str:
        """The path of a request to which nothing happens: "full", but for stages that are
        near-line.
        """
        return path_of(
            {s.name: s.stale for s in self.stages if not s.online}, [s.name for s in self.stages]
        )

    def paths(self) -> list[str]:
        """Every path that a request can take, "nothing" aside, "full" first.

        Raises KarmafunnelError above 64: each is one more replay of the log.
        """
        names = [stage.name for stage in self.stages]
        late = self.deadline_ms is not None and self.late == "open"
        choices: list[list[str]] = []
        for stage in self.stages:
            modes = ["" if stage.online else stage.stale]
            modes += (
                [str(level) for level in stage.adapt.levels if level != stage.most]
                if stage.adapt and stage.online
                else []
            )
            modes += (
                [stage.fallen] if stage.online and stage.can_fail and stage.fail == "open" else []
            )
            choices.append(list(dict.fromkeys(modes)))
        if (n := math.prod(map(len, choices))) > MOST_PATHS:
            self._too_many(n)
        found = [list(modes) for modes in product(*choices)]
        if late:  # from any stage on, all that are left take their fallbacks
            for i in range(len(names)):
                if all(stage.fail == "open" or not stage.online for stage in self.stages[i:]):
                    rest = [
                        stage.fallen if stage.online else stage.stale for stage in self.stages[i:]
                    ]
                    found += [[*modes, *rest] for modes in product(*choices[:i])]
        paths = {path_of(dict(zip(names, modes, strict=True)), names) for modes in found} | {FULL}
        if len(paths) > MOST_PATHS:
            self._too_many(len(paths))
        return sorted(paths, key=lambda path: (path != FULL, path.count(","), path))

    def _too_many(self, paths: int) -> NoReturn:
        raise KarmafunnelError(
            f"services {self.name!r}",
            needs=f"at most {MOST_PATHS} paths",
            found=quoted(paths),
            hint=(
                "each is a replay: fewer levels of adapt, fewer stages that fail open, or replay "
                "with --path those that a simulation really took"
            ),
        )

    @classmethod
    def of(cls, said: Mapping[str, Any], who: str = "services") -> Services:
        """From the tables of a TOML file; raises KarmafunnelError naming `who`, the stage and the
        key.
        """
        known = {"name", "deadline_ms", "late", "note", "stage"}
        if not isinstance(said, Mapping):
            raise KarmafunnelError(who, needs="tables of TOML", found=quoted(said))
        if stray := [key for key in said if key not in known]:
            raise KarmafunnelError(
                who, needs=f"keys among {', '.join(sorted(known))}", found=quoted(stray)
            )
        tables = said.get("stage", [])
        if (
            not isinstance(tables, list)
            or not tables
            or not all(isinstance(t, Mapping) for t in tables)
        ):
            raise KarmafunnelError(
                who, needs="one [[stage]] table a stage", found=quoted(tables or "none")
            )
        stages = []
        for i, table in enumerate(tables):
            at = f"stage {quoted(table.get('name', i))}: "
            try:
                made = {
                    key: _made(PARTS[key], key, value) if key in PARTS else value
                    for key, value in table.items()
                }
                stages.append(_made(Service, "stage", made))
            except KarmafunnelError as error:
                raise KarmafunnelError(
                    f"{who}: {at}{str(error).removeprefix(at).removeprefix('stage: ')}"
                ) from error
        try:
            return cls(
                tuple(stages), **{key: value for key, value in said.items() if key != "stage"}
            )
        except KarmafunnelError as error:
            raise KarmafunnelError(f"{who}: {error}") from error

    @classmethod
    def read(cls, path: Path | str) -> Services:
        """From a TOML file; raises KarmafunnelError naming file, stage and key."""
        text = read_text(path, "TOML")
        try:
            said = tomllib.loads(text)
        # TOMLDecodeError, or a number of more digits than Python reads
        except (ValueError, RecursionError) as error:
            raise KarmafunnelError(path, needs="TOML", found=error) from error
        return cls.of(said, str(path))

    def toml(self) -> str:
        """The text that `read` reads: what differs from the defaults."""
        plain = _said(self)
        text = tomli_w.dumps(
            {key: value for key, value in plain.items() if key != "stages"}
            | {"stage": [_said(s) for s in self.stages]}
        )
        return re.sub(r"\[\n((?:    [^\n{]*,\n)+)\]", lambda found: _rows(found[1].split()), text)

    def write(self, path: Path | str, head: str = "", force: bool = False) -> Path:
        """Write the TOML file, whole or not at all; `head`: comments to put before it.

        Raises KarmafunnelError for a file that a person wrote or (without `force`) edited.
        """
        with claim(path, "write", SERVICES, force=force):
            return write_text(path, marked(head + self.toml()))


def with_policies(services: Services, slack: float = 4.0) -> Services:
    """The same with policies to start from: batches of up to 8, waiting rooms of 50, everything
    fails open, a deadline end to end.

    The deadline is `slack` times the mean time of all stages for full batches. An embedder (it puts
    out no rows) falls back to interests of the last hour, recall to popular items, later stages to
    the order of the stage before.
    """
    stages, recalled = [], False
    for stage in services.stages:
        start = replace(stage, batch=8, wait_ms=1.0, queue=50)
        if stage.k is None:
            start = replace(start, fallback=STALE, stale_minutes=60.0)
        elif not recalled:
            start, recalled = replace(start, fallback="popular"), True
        stages.append(start)
    full = sum(stage.mean_ms() * stage.batch for stage in stages)
    return replace(services, stages=tuple(stages), deadline_ms=float(round(slack * full)))
