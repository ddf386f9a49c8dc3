"""A deployment: one Service per stage, read from and written to a TOML file that can be written by
hand.

    name = "baseline"
    deadline_ms = 100            # end to end; default: none
    late = "open"                # after the deadline: "open": the remaining stages take their
                                 # fallbacks at once; "closed": nothing is shown

    [[stage]]
    name = "recall"              # in funnel order; an embedder that is computed online is a stage
                                 # before recall, under its own name
    servers = 4
    items = 5000                 # candidates of a request that enter this stage
    k = 500                      # candidates that it returns (default: all)
    batch = 8                    # maximum number of requests that a server processes together
    wait_ms = 1.0                # maximum time that an incomplete batch waits for more requests
                                 # while a server is free
    queue = 200                  # queue capacity: a request that finds the queue full is shed
                                 # (default: unbounded)
    patience_ms = 20             # a request that has waited this long leaves the queue
    deadline_ms = 30             # from arrival at the stage to the end of service there; a server
                                 # still finishes a request that is past it
    retries = 1                  # number of further attempts here after a crash or a missed stage
                                 # deadline
    fail = "open"                # when a request is shed, leaves the queue, is late or crashes
                                 # here: "open" continues with `fallback`, "closed" shows nothing
    fallback = "popular"         # the mode taken then: "skip" (the order of the previous stage, cut
                                 # to k; not for recall), "stale" (for an embedder), or a named
                                 # fallback of recall. Default: "skip"
    cost_per_hour = 0.4          # per server
    time = {kind = "lognormal", base_ms = 1.2, request_ms = 0.3, item_us = 0.5, cv = 0.2}
    cold = {requests = 100, factor = 3.0}           # the first requests of a server are slower,
                                                    # also after a repair
    slow = {probability = 0.01, factor = 10.0}      # a batch is slow with this probability
    crash = {every_s = 3600.0, repair_s = 60.0}     # means of exponential times between crashes and
                                                    # of repairs; requests in service fail
    cache = {hit = 0.8}                             # this share of requests (random) is answered at
                                                    # once without a server, with the same result
    adapt = {levels = [500, 250], waiting = [10]}   # returns levels[i + 1] candidates once
                                                    # waiting[i] requests wait at the next stage

An embedder has `online = false` where its vectors are near-line: no request waits for it, and every
request takes the mode "stale@<stale_minutes>".
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
MOST_PATHS = 64  # each path needs a replay of the log
MOST_STAGES = 64
LONGEST = 100_000  # numbers in an array


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
    """The inverse of `_made`: the fields that differ from their defaults, as TOML values."""
    said = {
        f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default
    }
    return {
        key: _said(x) if is_dataclass(x) else list(x) if isinstance(x, tuple) else x
        for key, x in said.items()
    }


def _rows(values: list[str]) -> str:
    """A TOML array with twenty values per line."""
    lines = [" ".join(values[i : i + 20]) for i in range(0, len(values), 20)]
    return "[" + ("\n    " if len(lines) > 1 else "") + "\n    ".join(lines).rstrip(",") + "]"


@dataclass(frozen=True)
class ServiceTime:
    """Service time of a batch in ms: (`base_ms` + `request_ms` * requests + `item_us` / 1000 *
    items of the batch) * a random ratio.

    The distribution of the ratio, by `kind`: constant (always 1), exponential (mean 1), lognormal
    (mean 1, coefficient of variation `cv`), or empirical: `ratios` are its quantiles at evenly
    spaced levels from 0 to 1, with linear interpolation between them.
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
            raise KarmafunnelError(
                who, what="cv", needs="kind = 'lognormal'", found=f"kind {self.kind!r}"
            )
        if (self.kind == "empirical") != (len(self.ratios) >= 2) or list(self.ratios) != sorted(
            self.ratios
        ):
            raise KarmafunnelError(
                who,
                what="ratios",
                needs="two or more ascending numbers with kind = 'empirical', none otherwise",
                found=f"{len(self.ratios)} with kind {self.kind!r}",
            )
        if self.ratios and self.ratios[-1] == 0:
            raise KarmafunnelError(who, what="ratios", needs="a number above 0", found="none")
        if self.base_ms + self.request_ms + self.item_us == 0:
            raise KarmafunnelError(
                who, needs="base_ms, request_ms or item_us above 0", found="none"
            )

    def mean_ms(self, requests: float = 1, items: float = 0) -> float:
        """Mean time (ms) of a batch of `requests` with `items` in total."""
        return (
            self.base_ms + self.request_ms * requests + self.item_us / 1000 * items
        ) * self.mean_ratio

    @property
    def mean_ratio(self) -> float:
        if self.kind != "empirical":
            return 1.0
        r = self.ratios
        return (sum(r) - (r[0] + r[-1]) / 2) / (len(r) - 1)  # mean of the piecewise linear function

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
        """The smallest possible ratio; 0 for an exponential or lognormal time."""
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
            raise KarmafunnelError(
                "adapt", what="levels", needs="descending numbers", found=self.levels
            )

    def level(self, waiting: int) -> int:
        """The index into `levels` while `waiting` requests wait at the next stage."""
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
    """One stage of a deployment. The fields are those of the TOML file, described at the top of
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
        required = {
            name: getattr(self, name)
            for name in ("servers", "items", "batch", "retries", "wait_ms", "cost_per_hour")
        }
        for name, value in {
            **required,
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
                who,
                what="adapt.levels",
                needs=f"at most k = {self.k}",
                found=self.adapt.levels[0],
            )
        if (not self.online or self.fallback == STALE) and self.stale_minutes is None:
            raise KarmafunnelError(
                who,
                needs="stale_minutes, the refresh interval of stale vectors",
                found="none",
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
        """The shortest possible service time of a single request (ms)."""
        return self.time.mean_ms(1, self.items) / self.time.mean_ratio * self.time.least_ratio

    @property
    def most(self) -> int | None:
        """Candidates that it returns without degradation; None where no number is set."""
        return self.k or (self.adapt.levels[0] if self.adapt else None)

    @property
    def stale(self) -> str:
        """The mode of near-line vectors, such as "stale@60"."""
        return f"{STALE}@{self.stale_minutes:g}"

    @property
    def fallen(self) -> str:
        """The mode taken when the stage fails open."""
        return self.stale if self.fallback == STALE else self.fallback

    def mean_ms(self, requests: int | None = None) -> float:
        """Mean service time (ms) per request in a batch of `requests` (default: a full batch),
        without the effects of `cold`, `slow` and `cache`.
        """
        batch = requests or self.batch
        return self.time.mean_ms(batch, batch * self.items) / batch

    def utilisation(self, rate: float) -> float:
        """Offered load per server at `rate` requests per second with full batches; above 1 an
        unbounded queue keeps growing.
        """
        if not self.online:
            return 0.0
        busy = rate / 1000 * self.mean_ms() * (1 - (self.cache.hit if self.cache else 0))
        busy *= 1 + self.slow.probability * (self.slow.factor - 1) if self.slow else 1
        up = self.crash.every_s / (self.crash.every_s + self.crash.repair_s) if self.crash else 1
        return busy / (self.servers * up)

    @property
    def bounded(self) -> bool:
        """Whether the queue has a limit, by its capacity or by patience."""
        return self.queue is not None or self.patience_ms is not None

    @property
    def can_fail(self) -> bool:
        return self.bounded or self.deadline_ms is not None or self.crash is not None


@dataclass(frozen=True)
class Services:
    """A deployment: its stages in funnel order, the end-to-end deadline (ms), and whether a request
    past it fails open or closed (`late`).
    """

    stages: tuple[Service, ...]
    name: str = "services"
    deadline_ms: float | None = None
    late: Literal["open", "closed"] = "open"
    note: str = field(default="", compare=False)  # its origin

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
                f"stage {names[-1]!r}",
                what="adapt",
                needs="a next stage, whose queue it observes",
                found="the last stage",
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
        """The stage called `name`; raises KarmafunnelError where there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KarmafunnelError(
            f"services {self.name!r}",
            needs=f"a stage among {[s.name for s in self.stages]}",
            found=repr(name),
        )

    def change(self, name: str, **changes: Any) -> Services:
        """A copy with fields of one stage changed."""
        self[name]
        return replace(
            self, stages=tuple(replace(s, **changes) if s.name == name else s for s in self.stages)
        )

    @property
    def cost_per_hour(self) -> float:
        return sum(stage.servers * stage.cost_per_hour for stage in self.stages)

    @property
    def normal(self) -> str:
        """The path of a request without any degradation: "full", or with the stale modes of
        near-line embedders.
        """
        return path_of(
            {s.name: s.stale for s in self.stages if not s.online}, [s.name for s in self.stages]
        )

    def paths(self) -> list[str]:
        """Every path that a request can take except "nothing"; "full" comes first.

        Raises:
            KarmafunnelError: for more than 64 paths, as each needs a replay of the log.
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
        if late:  # from any stage on, all remaining stages take their fallbacks
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
                "each path needs a replay: use fewer adapt levels or fewer stages that fail open, "
                "or replay only the paths that a simulation took, with --path"
            ),
        )

    @classmethod
    def of(cls, said: Mapping[str, Any], who: str = "services") -> Services:
        """Services from the tables of a TOML file; raises KarmafunnelError naming `who`, the stage
        and the key.
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
                who, needs="one [[stage]] table per stage", found=quoted(tables or "none")
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
        """Read a TOML file; raises KarmafunnelError naming the file, stage and key."""
        text = read_text(path, "TOML")
        try:
            said = tomllib.loads(text)
        # TOMLDecodeError, or a number of more digits than Python reads
        except (ValueError, RecursionError) as error:
            raise KarmafunnelError(path, needs="TOML", found=error) from error
        return cls.of(said, str(path))

    def toml(self) -> str:
        """TOML text that `read` accepts: the fields that differ from their defaults."""
        plain = _said(self)
        text = tomli_w.dumps(
            {key: value for key, value in plain.items() if key != "stages"}
            | {"stage": [_said(s) for s in self.stages]}
        )
        return re.sub(r"\[\n((?:    [^\n{]*,\n)+)\]", lambda found: _rows(found[1].split()), text)

    def write(self, path: Path | str, head: str = "", force: bool = False) -> Path:
        """Write the TOML file atomically, after the comments in `head`.

        Raises:
            KarmafunnelError: for an existing file written by hand or, without `force`, edited.
        """
        with claim(path, "write", SERVICES, force=force):
            return write_text(path, marked(head + self.toml()))


def with_policies(services: Services, slack: float = 4.0) -> Services:
    """A copy with initial policies: batches of up to 8, queues of 50, every stage fails open, and
    an end-to-end deadline.

    The deadline is `slack` times the mean time of all stages for full batches. An embedder (a stage
    without k) falls back to user embeddings up to one hour old, recall to popular items, and later
    stages to the order of the previous stage.
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
