"""Profile: times of the fitted stages of a funnel over batch sizes and cutoffs, and the service
times fitted to them for a simulation of load.

A pass takes a chunk of requests through the whole funnel, each slate cut to one of the cutoffs of
its stage. Stages are timed as in a replay: an embedder with a network is a stage of its own before
recall, the time of other vectors belongs to the first stage that reads them, and nothing is counted
twice. Each pass uses different requests, so the fit includes the variation between requests.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import nnls
from scipy.special import ndtri, stdtrit
from threadpoolctl import threadpool_limits

from ...bounds import BOUNDS, check_bound, check_seed
from ...errors import KarmafunnelError, quoted
from ...log import Log
from ...stages.rows import Place
from ...stages.stage import FittedFunnel
from ...terminal import Console, progress_bar
from ..replay.degrade import along
from ..replay.options import DEFAULTS, RunOptions
from ..replay.paths import path_of
from ..replay.prepare import prepare, requests_of
from ..replay.recipe import Recipe
from .services import Service, Services, ServiceTime

BATCHES = (1, 2, 4, 8, 16)
SHARES = (0.25, 0.5, 1.0)  # default cutoffs of a stage, as fractions of its k
LEAST = 5  # minimum passes of every batch size for a fit
MOST = 20_000  # maximum passes
POINTS = 100  # maximum number of intervals between the quantiles of an empirical ratio
BETTER = 0.01  # by which the fit of a more complex kind must be better, as a fraction of the mean
BLOCKS = 10  # of consecutive passes, for the interval of a mean
OFF = 0.5  # of a fitted p95 to the measured one, from which on it is doubted
PASS, STAGE, REQUESTS, CUTOFF, ITEMS, MS = "pass", "stage", "requests", "cutoff", "items", "ms"
SCHEMA = {
    PASS: pl.Int32,
    STAGE: pl.String,
    REQUESTS: pl.Int32,
    CUTOFF: pl.Int32,
    ITEMS: pl.Int64,
    MS: pl.Float64,
}


# -- the fit ---------------------------------------------------------------------------------------


def fit_time(requests: np.ndarray, items: np.ndarray, ms: np.ndarray, seed: int = 0) -> ServiceTime:
    """Fit the service time of a stage to measured passes.

    The mean is fitted by non-negative least squares of the relative error (weights 1 / mean, in
    three iterations), the distribution of the ratio time / mean by `fit_ratio`. If all passes have
    the same batch size, the cost per batch is part of the cost per request; if all requests bring
    the same number of items, so is the cost per item: the data cannot separate them.

    Args:
        requests: the batch size of each pass, (n,).
        items: the items of all requests of each pass, (n,).
        ms: the time of each pass, (n,).
        seed: for `fit_ratio`.

    Raises:
        KarmafunnelError: for fewer than 2 passes, and times that are not finite or not above 0.
    """
    requests, items, ms = (np.asarray(x, dtype=np.float64) for x in (requests, items, ms))
    if len(ms) < 2 or not (np.isfinite(ms).all() and (ms > 0).all()):
        raise KarmafunnelError(
            "profile",
            needs="2 or more times above 0 ms",
            found=f"{len(ms)}, the smallest {ms.min(initial=np.nan):g}",
        )
    x = np.stack([np.ones(len(ms)), requests, items / 1000], axis=1)
    each = items / requests
    varies = np.array([np.ptp(requests) > 0, True, np.ptp(each) > 0.05 * each.max(initial=0)])
    mean = ms
    for _ in range(3):
        found = np.zeros(3)
        found[varies] = nnls(x[:, varies] / mean[:, None], ms / mean)[0]
        mean = x @ found
    base, request, item = map(float, found)
    made = ServiceTime(base_ms=base, request_ms=request, item_us=item)
    kind, cv, ratios = fit_ratio(ms / mean / _misfit(requests, each, ms, mean), seed)
    return replace(made, kind=kind, cv=cv, ratios=ratios)


def _misfit(requests: np.ndarray, each: np.ndarray, ms: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Measured over fitted mean time, by batch size and items per request: (n,). Dividing by it
    keeps an imperfect fit of the mean from inflating the variance of the ratio.
    """
    bands = np.searchsorted(np.quantile(each, [1 / 3, 2 / 3]), each)
    _, group = np.unique(np.stack([requests, bands]), axis=1, return_inverse=True)
    group = group.ravel()
    return (np.bincount(group, ms) / np.bincount(group, mean))[group]


def fit_ratio(ratios: np.ndarray, seed: int = 0) -> tuple[Any, float, tuple[float, ...]]:
    """Kind, cv and quantiles of the ratio of times to their mean.

    The kinds are fitted to a random half of the passes and compared on the other half by the mean
    distance of quantiles (the first Wasserstein distance, as a fraction of the mean). The simplest
    kind that is at most 0.01 worse than the best is chosen: constant, then lognormal (by its first
    two moments), then empirical.
    """
    at = np.random.default_rng([seed, len(ratios)]).permutation(len(ratios))
    train, held = ratios[at[::2]], np.sort(ratios[at[1::2]])
    u = (np.arange(len(held)) + 0.5) / len(held)
    kinds = ("constant", "lognormal", "empirical")
    distance = {
        kind: float(np.abs(quantile(*_ratio(kind, train), u) - held).mean()) for kind in kinds
    }
    kind = next(kind for kind in kinds if distance[kind] <= min(distance.values()) + BETTER)
    return _ratio(kind, ratios)


def _ratio(kind: str, ratios: np.ndarray) -> tuple[str, float, tuple[float, ...]]:
    if kind == "constant":
        return kind, 0.0, ()
    if kind == "lognormal":
        return kind, float(ratios.std() / ratios.mean()), ()
    n = int(np.clip(len(ratios) // 5, 2, POINTS))
    q = np.quantile(ratios, np.linspace(0, 1, n + 1))
    # The last quantile is set so that the mean of the top interval is kept. With the maximum, one
    # pause of the machine would stretch the whole interval.
    q[-1] = max(2 * ratios[ratios >= q[-2]].mean() - q[-2], q[-2])
    q /= (q.sum() - (q[0] + q[-1]) / 2) / n
    return kind, 0.0, tuple(float(x) for x in q)


def quantile(kind: str, cv: float, ratios: Sequence[float], u: np.ndarray) -> np.ndarray:
    """Quantiles of a ratio at the levels `u`: (n,)."""
    if kind == "empirical":
        return np.interp(u, np.linspace(0, 1, len(ratios)), ratios)
    if kind == "lognormal":
        sigma = math.sqrt(math.log1p(cv * cv))
        return np.exp(sigma * ndtri(u) - sigma * sigma / 2)
    return np.ones(len(u))


def rounded(made: ServiceTime) -> ServiceTime:
    """A service time rounded for a file: 6 significant digits, 4 decimals of cv and ratios."""
    base, request, item = (float(f"{x:.6g}") for x in (made.base_ms, made.request_ms, made.item_us))
    ratios = tuple(round(r, 4) for r in made.ratios)
    return replace(
        made, base_ms=base, request_ms=request, item_us=item, cv=round(made.cv, 4), ratios=ratios
    )


# -- the measurement -------------------------------------------------------------------------------


@contextmanager
def threads_of(n: int) -> Iterator[None]:
    """Run with n threads in OpenMP, BLAS and torch, and without garbage collection."""
    torch: Any = sys.modules.get("torch")  # not imported: no stage uses it
    before, collects = torch and torch.get_num_threads(), gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with threadpool_limits(n):
            if torch:
                torch.set_num_threads(n)
            yield
    finally:
        if torch:
            torch.set_num_threads(before)
        if collects:
            gc.enable()


def cutoffs_of(
    fitted: FittedFunnel, cutoffs: Mapping[str, Sequence[int]] | None = None
) -> dict[str, list[int]]:
    """Cutoffs of every stage but the last, ascending; default: k / 4, k / 2 and k.

    Raises:
        KarmafunnelError: for an unknown stage, the last stage, and cutoffs outside 1 to k.
    """
    ks = {ready.stage.name: ready.stage.k for ready in fitted.stages[:-1]}
    if cutoffs is None:
        return {
            name: sorted({max(1, round(share * k)) for share in SHARES}) for name, k in ks.items()
        }
    for name, given in cutoffs.items():
        if name not in ks:
            raise KarmafunnelError(
                "profile",
                what="cutoffs",
                needs=f"stages before the last, {list(ks)}",
                found=repr(name),
            )
        if not given or min(given) < 1 or max(given) > ks[name]:
            raise KarmafunnelError(
                "profile",
                what=f"cutoffs of {name}",
                needs=f"numbers from 1 to its k, {ks[name]}",
                found=list(given),
            )
    return {name: sorted(set(cutoffs.get(name, [k]))) for name, k in ks.items()}


def networks(fitted: FittedFunnel) -> list[str]:
    """Names of the online embedders, which are stages of their own: those with a network."""
    stages = {ready.stage.name for ready in fitted.stages}
    return [
        name
        for name, found in fitted.context.embeddings.items()
        if name not in stages and found.online
    ]


def one_pass(
    fitted: FittedFunnel, requests: np.ndarray, apart: Sequence[str]
) -> list[tuple[str, int, float]]:
    """Time one pass: (stage, incoming items, ms) for the embedders `apart` that a stage reads, then
    for each stage.

    Time that the funnel spends outside its stages is divided equally among them.
    """
    names = {fitted.context.embeddings[name]: name for name in apart}
    start = time.perf_counter()
    steps = fitted.run(requests)
    beside = max(time.perf_counter() - start - sum(step.seconds for step in steps), 0.0) / len(
        steps
    )
    own: dict[str, float] = {}
    rows = []
    read = set[Place]()
    for i, step in enumerate(steps):
        seconds = step.seconds + beside
        for place in step.read.keys() - read:
            if name := names.get(place[-1]):
                own[name] = own.get(name, 0.0) + step.read[place]
                seconds -= step.read[place]
        read |= step.read.keys()
        rows.append((step.stage.name, int(step.rows_in.sum()) if i else 0, 1000 * seconds))
    return [*((name, 0, 1000 * own[name]) for name in apart if name in own), *rows]


@dataclass(frozen=True)
class Timing:
    """How stages are timed.

    batches: batch sizes, in requests. cutoffs: by stage, see `cutoffs_of`. seconds: maximum time
    per stage. load: utilisation to imitate: a share 1 - load of the passes follows an exponential
    idle time (as in M/G/1), after which CPU caches are cold. threads: of torch, LightGBM and faiss.
    most: maximum number of passes.
    """

    batches: Sequence[int] = BATCHES
    cutoffs: Mapping[str, Sequence[int]] | None = None
    seconds: float = 15.0
    load: float = 1.0
    threads: int = 1
    most: int = MOST


TIMING = Timing()


def measure_passes(
    fitted: FittedFunnel,
    requests: np.ndarray,
    timing: Timing = TIMING,
    *,
    seed: int = 0,
    apart: Sequence[str] | None = None,
    console: Console | None = None,
) -> pl.DataFrame:
    """Time passes through the funnel until `timing.seconds` per stage or `timing.most` passes.

    Every round runs each batch size once with full cutoffs and once for every other level of
    cutoffs, in random order, so that a slowdown of the machine affects all of them alike.

    Args:
        fitted: the funnel.
        requests: row numbers of the requests to draw from, (n,).
        timing: batch sizes, cutoffs and limits.
        apart: embedders that are timed as stages of their own; default: all `networks`.

    Returns:
        One row per pass and stage: pass, stage, requests (the batch size), cutoff (of the previous
        stage), items (of all requests), ms.

    Raises:
        KarmafunnelError: for batch sizes below 1, fewer requests than two of the largest batches, a
            load outside (0, 1], and too little time for 5 passes of each batch size.
    """
    batches, load, most = sorted(set(timing.batches)), timing.load, timing.most
    if not batches or not all(BOUNDS["batch_size"].holds(batch) for batch in batches):
        raise KarmafunnelError(
            "profile", what="batches", needs=BOUNDS["batch_size"], found=quoted(batches)
        )
    if len(requests) < 2 * batches[-1]:
        raise KarmafunnelError(
            "profile",
            needs=f"{2 * batches[-1]} requests in the window for batches of {batches[-1]}",
            found=len(requests),
        )
    check_bound("profile", "seconds", seconds=timing.seconds)
    check_bound("profile", "load", load=load)
    levels = cutoffs_of(fitted, timing.cutoffs)
    apart = networks(fitted) if apart is None else apart
    rng = np.random.default_rng([seed, len(requests)])
    shuffled, at = rng.permutation(requests), 0
    names = [ready.stage.name for ready in fitted.stages]
    full = {name: ready.stage.k for name, ready in zip(names, fitted.stages, strict=True)}
    cut: dict[str, FittedFunnel] = {}

    def next_pass(batch: int, now: Mapping[str, int]) -> list[tuple[str, int, float]]:
        nonlocal at
        at = at if at + batch <= len(shuffled) else 0
        chunk = np.sort(shuffled[at : at + batch])
        at += batch
        path = path_of({name: str(k) for name, k in now.items() if k < full[name]}, names)
        if path not in cut:
            cut[path] = along(fitted, path)
        return one_pass(cut[path], chunk, apart)

    for batch in reversed(batches):
        # a first pass, not timed, creates user timelines and thread pools
        next_pass(batch, {name: ks[-1] for name, ks in levels.items()})
    limit, n, rows = timing.seconds * (len(names) + len(apart)), 0, []
    order = [
        (batch, level)
        for batch in batches
        for level in range(max(map(len, levels.values()), default=1))
    ]
    count, took = dict.fromkeys(batches, 0), dict.fromkeys(batches, 0.0)
    bar = progress_bar(console) if console else None
    start = time.perf_counter()
    with bar or nullcontext():
        task = bar.add_task("profile", total=math.ceil(limit)) if bar else None
        while n < most and time.perf_counter() - start < limit:
            turn = {name: int(rng.integers(len(ks))) for name, ks in levels.items()}
            for i in rng.permutation(len(order)):
                batch, level = order[i]
                now = {
                    name: ks[(level + turn[name]) % len(ks)] if level else ks[-1]
                    for name, ks in levels.items()
                }
                gap = rng.exponential(took[batch] / max(count[batch], 1) / load)
                if rng.uniform() > load:
                    time.sleep(min(gap, max(start + limit - time.perf_counter(), 0.0)))
                begun = time.perf_counter()
                found = next_pass(batch, now)
                took[batch] += time.perf_counter() - begun
                for stage, items, ms in found:
                    before = names[names.index(stage) - 1] if stage in names[1:] else None
                    rows.append((n, stage, batch, now.get(before) if before else None, items, ms))
                n, count[batch] = n + 1, count[batch] + 1
                if bar and task is not None:
                    bar.update(task, completed=min(time.perf_counter() - start, limit))
                if time.perf_counter() - start >= limit or n >= most:
                    break
    if min(count.values()) < LEAST:
        raise KarmafunnelError(
            "profile",
            needs=f"{LEAST} passes of every batch size",
            found=f"{count} after {limit:g} s",
            hint="use more seconds or fewer batch sizes",
        )
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def uncut(passes: pl.DataFrame) -> pl.DataFrame:
    """The passes with the largest cutoff at every stage."""
    full = pl.col(CUTOFF).is_null() | (pl.col(CUTOFF) == pl.col(CUTOFF).max().over(STAGE))
    return (
        passes.with_columns(full.alias("full")).filter(pl.col("full").all().over(PASS)).drop("full")
    )


# -- both ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """Measured passes and the services fitted to them: one server per stage, items and k of the
    full funnel, no policies. `busy`: the load of the machine divided by its cores, at least 1.
    """

    services: Services
    passes: pl.DataFrame
    seed: int = 0
    busy: float = 1.0

    @classmethod
    def of(
        cls,
        passes: pl.DataFrame,
        ks: Mapping[str, int],
        name: str = "services",
        note: str = "",
        seed: int = 0,
        busy: float = 1.0,
    ) -> Profile:
        """Fit a service to every stage of the passes; `ks`: k by stage, for stages with one."""
        stages = []
        for stage in passes[STAGE].unique(maintain_order=True):
            mine = passes.filter(pl.col(STAGE) == stage)
            made = rounded(
                fit_time(
                    mine[REQUESTS].to_numpy(), mine[ITEMS].to_numpy(), mine[MS].to_numpy(), seed
                )
            )
            most = uncut(passes).filter(pl.col(STAGE) == stage)
            stages.append(
                Service(
                    stage,
                    made,
                    items=round(int(most[ITEMS].sum()) / int(most[REQUESTS].sum())),
                    k=ks.get(stage),
                )
            )
        return cls(Services(tuple(stages), name=name, note=note), passes, seed, busy)

    @cached_property
    def cells(self) -> pl.DataFrame:
        """Measured and fitted times: one row per stage, batch size and cutoff, with the mean items,
        the number of passes, and mean and p95 (ms) of both.
        """
        rows = []
        for (stage, requests, cutoff), cell in self.passes.group_by(
            STAGE, REQUESTS, CUTOFF, maintain_order=True
        ):
            made = self.services[str(stage)].time
            mean = np.array([made.mean_ms(float(requests), float(items)) for items in cell[ITEMS]])
            u = (np.arange(200) + 0.5) / 200
            spread = np.outer(mean, quantile(made.kind, made.cv, made.ratios, u))
            ms = cell[MS].to_numpy()
            rows.append(
                {
                    STAGE: stage,
                    REQUESTS: requests,
                    CUTOFF: cutoff,
                    ITEMS: float(cell[ITEMS].mean()),  # type: ignore[arg-type]
                    "passes": cell.height,
                    "mean_ms": float(ms.mean()),
                    "fitted_ms": float(mean.mean()),
                    "p95_ms": float(np.quantile(ms, 0.95)),
                    "fitted_p95_ms": float(np.quantile(spread, 0.95)),
                }
            )
        order = {stage.name: i for i, stage in enumerate(self.services.stages)}
        frame = pl.DataFrame(rows, infer_schema_length=None)
        return frame.sort(pl.col(STAGE).replace_strict(order), REQUESTS, CUTOFF)

    @property
    def fits(self) -> list[dict[str, Any]]:
        """One row per stage: the fit, its relative error over `cells` (median and worst), and mean
        (with its interval) and p95 of the smallest batch with full cutoffs.
        """
        rows = []
        for stage in self.services.stages:
            cells = self.cells.filter(pl.col(STAGE) == stage.name).with_columns(
                (pl.col("fitted_ms") / pl.col("mean_ms") - 1).alias("error")
            )
            worst = cells.row(int(cells["error"].abs().arg_max() or 0), named=True)
            plain = cells.filter(pl.col(REQUESTS) == pl.col(REQUESTS).min()).row(-1, named=True)
            made = stage.time
            low, high = self.interval(stage.name) or (None, None)
            rows.append(
                {
                    "stage": stage.name,
                    "passes": int(cells["passes"].sum()),
                    "base_ms": made.base_ms,
                    "request_ms": made.request_ms,
                    "item_us": made.item_us,
                    "kind": made.kind,
                    "cv": math.sqrt(max(made.squared_cv, 0.0)),
                    "error": float(cells["error"].abs().median()),  # type: ignore[arg-type]
                    "worst": worst["error"],
                    "worst_requests": worst[REQUESTS],
                    "worst_cutoff": worst[CUTOFF],
                    "mean_ms": plain["mean_ms"],
                    "mean_low_ms": None if low is None else low * plain["mean_ms"],
                    "mean_high_ms": None if high is None else high * plain["mean_ms"],
                    "fitted_ms": plain["fitted_ms"],
                    "p95_ms": plain["p95_ms"],
                    "fitted_p95_ms": plain["fitted_p95_ms"],
                }
            )
        return rows

    def interval(self, stage: str) -> tuple[float, float] | None:
        """The 95% interval of a stage's mean time, divided by the mean; None for too few passes.

        From the means of `BLOCKS` blocks of consecutive passes, so that it holds slow spells of the
        machine. On a busy machine the lower end is divided by `busy`: alone, a stage may be that
        much faster.
        """
        mine = self.passes.filter(pl.col(STAGE) == stage).sort(PASS)
        made = self.services[stage].time
        if mine.height < 2 * BLOCKS:
            return None
        fitted = [made.mean_ms(n, i) for n, i in mine.select(REQUESTS, ITEMS).iter_rows()]
        blocks = np.array_split(mine[MS].to_numpy() / np.array(fitted), BLOCKS)
        means = np.array([block.mean() for block in blocks])
        half = float(stdtrit(BLOCKS - 1, 0.975)) * means.std(ddof=1) / math.sqrt(BLOCKS)
        half = float(half / means.mean())
        return max(1 - half, 0.0) / self.busy, 1 + half

    @property
    def doubts(self) -> list[str]:
        """Why the times may be wrong: one sentence for a busy machine, and one for each stage whose
        fitted p95 is far from the measured one.
        """
        found = []
        if self.busy > 1:
            found.append(
                f"The machine was busy: its load was {self.busy:.1f} times its cores, so all times "
                "may be too long by as much, and the intervals are wider. Profile again when "
                "nothing else runs."
            )
        for row in self.fits:
            off = row["fitted_p95_ms"] / row["p95_ms"] - 1
            if abs(off) > OFF:
                found.append(
                    f"{row['stage']}: the fitted p95 is {abs(off):.0%} "
                    f"{'above' if off > 0 else 'below'} the measured one; more --seconds, or fewer "
                    "batch sizes, may help."
                )
        return found

    def folded(self, name: str = "funnel") -> Services:
        """One server that runs the whole funnel: a stage whose time is that of whole passes, none
        of them cut.

        Its spread is that of the sums, so what makes a request slow at every stage at once is kept.
        `k` is that of the last stage.
        """
        total = (
            uncut(self.passes)
            .group_by(PASS, maintain_order=True)
            .agg(pl.col(REQUESTS).first(), pl.col(MS).sum())
        )
        made = rounded(
            fit_time(
                total[REQUESTS].to_numpy(), np.zeros(total.height), total[MS].to_numpy(), self.seed
            )
        )
        return Services(
            (Service(name, made, k=self.services.stages[-1].k),),
            name=self.services.name,
            note=self.services.note,
        )

    def write(self, path: Path | str, force: bool = False) -> Path:
        """The services as a TOML file that `Services.read` reads, with comments on how to go on."""
        return self.services.write(path, GO_ON, force)


GO_ON = """\
# Service times of a funnel, measured by `karmafunnel profile`. Edit this file by hand:
# give each stage `servers`, and `batch` with `wait_ms` where batches save time:
# a batch of n requests takes base_ms + request_ms * n + item_us / 1000 * the items of all of them.
# `--policies` writes initial policies. At the top of the file: deadline_ms = 100.
# In a stage: deadline_ms, queue, retries, fail = "open" with fallback = "skip" (or "popular" at
# recall), adapt = {levels = [400, 200], waiting = [8]}.
# Near-line embedder: online = false, stale_minutes = 60.
# All keys: karmafunnel/simulator/load/services.py.

"""


def profile(
    recipe: Recipe,
    log: Log,
    timing: Timing = TIMING,
    options: RunOptions = DEFAULTS,
    *,
    note: str = "",
    fitted: FittedFunnel | None = None,
) -> Profile:
    """Fit the recipe's funnel (or use `fitted`), time its stages and fit their services.

    The note of the services is `note`, followed by the conditions of the measurement.

    Raises:
        KarmafunnelError: as `measure_passes` and `prepare` do.
    """
    requests, seed, threads = requests_of(log, options.window), options.seed, timing.threads
    check_bound("profile", "threads", threads=threads)
    check_seed("profile", seed)
    fitted = fitted or prepare(recipe, log, options)
    if options.console and pl.thread_pool_size() > threads:
        options.console.print(
            f"polars keeps the {pl.thread_pool_size()} threads that it started with; set"
            f" POLARS_MAX_THREADS={threads} in the environment of the command",
            style="dim",
            soft_wrap=True,
        )
    loads = [os.getloadavg()[0]]
    with threads_of(threads):
        passes = measure_passes(fitted, requests, timing, seed=seed, console=options.console)
    loads.append(os.getloadavg()[0])
    conditions = (
        f"seed {seed}, {passes[PASS].n_unique()} passes, threads {threads}, load {loads[0]:.1f}"
        f" before and {loads[1]:.1f} after"
    )
    ks = {ready.stage.name: ready.stage.k for ready in fitted.stages}
    note = f"{note}; {conditions}" if note else conditions
    busy = max(max(loads) / (os.cpu_count() or 1), 1.0)
    return Profile.of(passes, ks, recipe.name, note, seed, busy)
