"""Quality under load: a simulated request stands for one logged request, and takes its measures
from the Run of the path that it followed.

The measures are those of `simulator/measure`, request by request. A request that was shown nothing
counts as 0; a measure that is undefined for a logged request stays undefined. Intervals are
clustered by the users of the logged requests, with the same resamples for all policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ...errors import KarmafunnelError, quoted
from ..measure.arrays import RunArrays
from ..measure.compare import same_requests
from ..measure.differences import Difference, sampled
from ..measure.intervals import Ratio, interval
from ..measure.measures.measure import Measure, parse_all
from ..measure.run import Run
from ..replay.degrade import runs_of
from ..replay.paths import FULL, NOTHING, modes_of, path_of
from .arrivals import Arrivals, Trace
from .queueing import Simulation, simulate
from .services import Services

WHO = "quality under load"
LOADS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # multiples of the configured load
Interval = tuple[float | None, float | None]


class PathValues:
    """The measures of each logged request along each path, after the last stage.

    ids: the logged requests, sorted. paths: including "nothing". values: by measure the numerators
    and denominators, each (n_paths, n_requests).
    """

    def __init__(self, runs: Mapping[str, Run], measures: Sequence[Measure | str]):
        """Read the values once.

        Args:
            runs: the Run of each path, as `runs_of` gives them.
            measures: measures with a value for each request.

        Raises:
            KarmafunnelError: without the path "full", for Runs of different requests, for a measure
                without a value for each request, and for a cutoff that "full" cannot answer.
        """
        if FULL not in runs:
            found = f"those of {sorted(runs)}"
            raise KarmafunnelError(WHO, needs=f"the Run of the path {FULL!r}", found=found)
        self.measures = parse_all(measures)
        readings = dict(zip(runs, same_requests(list(runs.values()), list(runs)), strict=True))
        full = readings[FULL]
        self.ids, self.n, self.n_users = full.requests["request_id"], full.n, len(full.users)
        self.cluster = full.cluster
        self.currency = str(runs[FULL].meta["log"].get("currency") or "money")
        self.runs, self.paths = dict(runs), [*runs]
        if NOTHING not in runs:
            self.paths.append(NOTHING)
        self._check_cutoffs(runs[FULL])
        self.values: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for measure in self.measures:
            self.values[str(measure)] = self._values_of(measure, readings)

    def _check_cutoffs(self, run: Run) -> None:
        last = run.stages[-1]
        too_deep = [str(m) for m in self.measures if m.k is not None and m.k > run.k(last)]
        if too_deep:
            needs = f"cutoffs up to {run.k(last)}, what {last} returns"
            raise KarmafunnelError(WHO, needs=needs, found=", ".join(too_deep))

    def _values_of(
        self, measure: Measure, readings: Mapping[str, RunArrays]
    ) -> tuple[np.ndarray, np.ndarray]:
        found = {}
        for path, reading in readings.items():
            found[path] = measure.per_request(reading, reading.run.stages[-1])
        if NOTHING not in found:
            num, den = found[FULL]
            # without a ranking there is no AUC
            undefined = np.isnan(num) | (measure.name == "gAUC")
            found[NOTHING] = (np.where(undefined, np.nan, 0.0), den)
        numerators, denominators = zip(*found.values(), strict=True)
        return np.stack(numerators), np.stack(denominators)

    def logged(
        self, request: np.ndarray, seed: int = 0, ids: Sequence[str] | None = None
    ) -> np.ndarray:
        """The logged request of each simulated request.

        Args:
            request: numbers of simulated requests in order of arrival, (n,).
            seed: of the random draw, which depends only on the seed and the request's number.
            ids: used in place of the draw (for a trace): request i is the logged request ids[i].

        Returns:
            Indices into `self.ids`, int64 (n,).
        """
        most = int(request.max(initial=-1)) + 1
        if ids is None:
            return np.random.default_rng([seed, self.n]).integers(0, self.n, most)[request]
        if most > len(ids):
            needs = f"a logged request for each of {most} simulated requests"
            raise KarmafunnelError(WHO, needs=needs, found=f"{len(ids)} ids")
        place = {name: i for i, name in enumerate(self.ids)}
        if stray := [name for name in ids if name not in place]:
            found = f"{len(stray)} others, e.g. {stray[0]!r}"
            raise KarmafunnelError(WHO, needs="requests that the Run replayed", found=found)
        return np.array([place[name] for name in ids], dtype=np.int64)[request]

    def code(self, path: pl.Series) -> np.ndarray:
        """Indices of paths into `self.paths`; raises KarmafunnelError for a path without a Run."""
        number = {name: i for i, name in enumerate(self.paths)}
        if missing := sorted(set(path) - number.keys()):
            raise KarmafunnelError(
                WHO,
                needs="a Run of every path taken",
                found=f"none of {missing}",
                hint=hint(missing),
            )
        return np.array([number[name] for name in path], dtype=np.int64)

    def ratio(self, measure: Measure | str, code: np.ndarray, at: np.ndarray) -> Ratio:
        """A measure over simulated requests.

        Args:
            code: the path of each, as an index into `self.paths`, (n,).
            at: the logged request of each, as an index into `self.ids`, (n,).
        """
        num, den = self.values[str(measure)]
        return Ratio(num[code, at], den[code, at], self.cluster[at])

    def intervals(self, estimates: Sequence[Ratio], resamples: int, seed: int) -> list[Interval]:
        """95% intervals over users; (None, None) with a single user."""
        samples = sampled(estimates, self.n_users, resamples, seed)
        return [interval(samples[e]) if samples else (None, None) for e in estimates]

    @property
    def priced(self) -> Measure | None:
        """The first measure whose numerator is money, GMV-HR@k."""
        return next((m for m in self.measures if m.name == "GMV-HR"), None)

    def money(self, code: np.ndarray, at: np.ndarray) -> Ratio:
        """Money per request: that of its relevant items in the top k, 0 where none has a price.

        Arguments are those of `ratio`. Raises KarmafunnelError where GMV-HR@k is not among the
        measures.
        """
        if self.priced is None:
            names = [str(m) for m in self.measures]
            raise KarmafunnelError(
                WHO, what="money", needs="GMV-HR@k among the measures", found=names
            )
        num = np.nan_to_num(self.ratio(self.priced, code, at).num)
        return Ratio(num, np.ones(len(num)), self.cluster[at])


def hint(paths: Sequence[str]) -> str:
    """The hint for paths without a Run."""
    return f"replay with {' '.join(f'--path {path}' for path in paths)}"


@dataclass(frozen=True, eq=False)
class RequestQuality:
    """The quality of simulated requests.

    ratios: each measure over the requests, in the order of the log. rows: one per measure, as
    `measure` returns them: value, low, high, n, undefined. by_path: one row per measure and path:
    the numbers of requests and of those where the measure is defined, and the sums of numerators
    and denominators.
    """

    ratios: list[Ratio]
    rows: list[dict[str, Any]]
    by_path: pl.DataFrame


def attribute_quality(
    requests: pl.DataFrame,
    runs: Mapping[str, Run] | PathValues,
    measures: Sequence[Measure | str] = (),
    seed: int = 0,
    *,
    ids: Sequence[str] | None = None,
    resamples: int = 1000,
) -> RequestQuality:
    """The quality of simulated requests: each takes the measures of one logged request along its
    path.

    If every logged request occurs once, on the path "full", the values are those of `measure`.

    Args:
        requests: `request` and `path` of `Simulation.requests`.
        runs: the Run of each path, or their values.
        measures: needed where `runs` are Runs.
        seed: of the drawn logged requests (the same for all policies), and of the resamples.
        ids: the logged requests in order of arrival (for a trace); default: drawn at random.
        resamples: number of bootstrap resamples for the intervals.

    Raises:
        KarmafunnelError: for an empty table, and for a path without a Run.
    """
    values = runs if isinstance(runs, PathValues) else PathValues(runs, measures)
    if requests.height == 0:
        raise KarmafunnelError(WHO, needs="at least one simulated request", found="none")
    at = values.logged(requests["request"].to_numpy(), seed, ids)
    code = values.code(requests["path"])
    order = np.argsort(at, kind="stable")  # so that sums are taken in the order of the log
    at, code = at[order], code[order]
    ratios = [values.ratio(measure, code, at) for measure in values.measures]
    ends = values.intervals(ratios, resamples, seed)
    rows, parts = [], []
    for measure, ratio, (low, high) in zip(values.measures, ratios, ends, strict=True):
        row = {"measure": str(measure), "value": None if np.isnan(ratio.value) else ratio.value}
        row |= {"low": low, "high": high, "n": ratio.n, "undefined": ratio.undefined}
        rows.append(row)
        parts.append(_by_path(str(measure), ratio, code, values.paths))
    return RequestQuality(ratios, rows, pl.concat(parts))


def _by_path(measure: str, ratio: Ratio, code: np.ndarray, paths: Sequence[str]) -> pl.DataFrame:
    """The sums of a measure over the requests of each path."""
    known, n = ratio.known, len(paths)
    frame = pl.DataFrame(
        {
            "measure": [measure] * n,
            "path": paths,
            "requests": np.bincount(code, minlength=n),
            "defined": np.bincount(code[known], minlength=n),
            "numerator": np.bincount(code[known], ratio.num[known], n).astype(np.float64),
            "denominator": np.bincount(code[known], ratio.den[known], n).astype(np.float64),
        }
    )
    return frame.filter(pl.col("requests") > 0)


def load_curve(
    simulated: Mapping[str, Sequence[Simulation]],
    values: PathValues,
    seed: int = 0,
    resamples: int = 1000,
    ids: Sequence[str] | None = None,
    warmup: int = 0,
) -> pl.DataFrame:
    """Quality and money against offered load: one row per policy and load.

    Args:
        simulated: by policy its Simulations at several loads, all with the same seed and number of
            requests, so that request i is the same logged request at every load.
        values: those of every path taken.
        seed, resamples, ids: as in `attribute_quality`.
        warmup: number of first requests excluded from shares, measures and money.

    Returns:
        Columns policy, rate (arrivals per second), goodput (served per second), p99_ms (of served
        requests), full and nothing (shares of requests); value, low and high of each measure; and
        the same for money an hour where GMV-HR is among the measures.
    """
    lines = []
    for policy, simulations in simulated.items():
        for simulation in simulations:
            requests, latency = simulation.requests[warmup:], simulation.latency()
            line: dict[str, Any] = {"policy": policy, "rate": simulation.rate}
            line["goodput"] = simulation.goodput
            line["p99_ms"] = latency["p99_ms"]["value"] if latency else None
            # with near-line embedders the normal path is not "full", but it is no degradation
            for name, path in ((FULL, simulation.services.normal), (NOTHING, NOTHING)):
                line[name] = int((requests["path"] == path).sum()) / requests.height
            found = attribute_quality(requests, values, seed=seed, resamples=resamples, ids=ids)
            for row in found.rows:
                line[row["measure"]] = row["value"]
                line |= {f"{row['measure']} {end}": row[end] for end in ("low", "high")}
            if values.priced is not None:
                at = values.logged(requests["request"].to_numpy(), seed, ids)
                earned = values.money(values.code(requests["path"]), at)
                ends = values.intervals([earned], resamples, seed)[0]
                hourly = 3600 * simulation.rate
                line["money an hour"] = earned.value * hourly
                for side, value in zip(("low", "high"), ends, strict=True):
                    line[f"money an hour {side}"] = None if value is None else value * hourly
            lines.append(line)
    return pl.DataFrame(lines, infer_schema_length=None)


def outages(
    services: Services,
    values: PathValues,
    rate: float,
    hours: float = 1.0,
    seed: int = 0,
    resamples: int = 1000,
) -> pl.DataFrame:
    """The cost of an outage of each stage: all requests take its fallback, or are shown nothing
    where it fails closed.

    Computed over the logged requests, under the assumptions that all other stages work without
    delay and that the outage is detected at once.

    Args:
        services: the deployment.
        values: with GMV-HR@k among the measures, and the normal path of `services`.
        rate: requests per second.
        hours: length of the outage.
        seed, resamples: of the intervals.

    Returns:
        One row per stage: path, money (without an outage), lost, low and high (money lost in the
        outage, paired by request), and for each measure its normal value, its value in the outage,
        and the interval of their difference. Null, with a note, where the path has no Run.
    """
    if services.normal not in values.paths:
        raise KarmafunnelError(
            WHO,
            needs=f"the Run of the path {services.normal}",
            found=f"those of {values.paths}",
            hint=hint([services.normal]),
        )
    at = np.arange(values.n)
    full = np.full(values.n, values.paths.index(services.normal))
    requests = rate * 3600 * hours
    money = values.money(full, at)
    before = [values.ratio(m, full, at) for m in values.measures]
    lines = []
    for stage, path in _fallbacks(services).items():
        known = path in values.paths
        code = np.full(values.n, values.paths.index(path)) if known else full
        lost = Ratio(money.num - values.money(code, at).num, money.den, money.cluster)
        after = [values.ratio(m, code, at) for m in values.measures]
        samples = sampled([lost, *before, *after], values.n_users, resamples, seed)
        line: dict[str, Any] = {"stage": stage, "path": path, "note": ""}
        line |= {"money": money.value * requests} | dict.fromkeys(("lost", "low", "high"))
        if not known:
            line["note"] = f"no Run of {path}: {hint([path])}"
        else:
            line["lost"] = lost.value * requests
            if samples:
                low, high = interval(samples[lost])
                line["low"] = None if low is None else low * requests
                line["high"] = None if high is None else high * requests
        for measure, up, down in zip(values.measures, before, after, strict=True):
            name = str(measure)
            low, high = None, None
            if known:
                low, high = Difference.between([down], [up], samples, seed).interval
            line |= {name: up.value, f"{name} in the outage": down.value if known else None}
            line |= {f"{name} lost low": low, f"{name} lost high": high}
        lines.append(line)
    return pl.DataFrame(lines, infer_schema_length=None)


def _fallbacks(services: Services) -> dict[str, str]:
    """By online stage the path of all requests during its outage; near-line vectors are still
    used.
    """
    names = [stage.name for stage in services.stages]
    usual = modes_of(services.normal)
    paths = {}
    for stage in services.stages:
        if stage.online:
            fallback = path_of(usual | {stage.name: stage.fallen}, names)
            paths[stage.name] = NOTHING if stage.fail == "closed" else fallback
    return paths


@dataclass(frozen=True, eq=False)
class LoadQuality:
    """Quality under load of several policies.

    rows: one per policy and measure at the configured load: value, low, high, and the difference
    to the first policy with its interval (difference, difference low, difference high). by_path,
    curve, outages: as `attribute_quality`, `load_curve` and `outages` return them; outages is None
    for a log without prices.
    """

    rows: list[dict[str, Any]]
    by_path: pl.DataFrame
    curve: pl.DataFrame
    outages: pl.DataFrame | None
    currency: str

    def write(self, folder: Path) -> None:
        """Write quality.csv, quality_by_path.csv, load_curve.csv and outages.csv."""
        rows = pl.DataFrame(self.rows, infer_schema_length=None)
        rows.write_csv(folder / "quality.csv")
        self.by_path.write_csv(folder / "quality_by_path.csv")
        self.curve.write_csv(folder / "load_curve.csv")
        if self.outages is not None:
            self.outages.write_csv(folder / "outages.csv")


def check_stages(services: Services, run: Run) -> None:
    """Raise KarmafunnelError where a deployment does not have the stages of a Run in its order."""
    embedders = run.meta.get("embedders") or {}
    names = [s.name for s in services.stages if s.name in run.stages or s.name not in embedders]
    if names != run.stages:
        raise KarmafunnelError(
            f"{WHO}: services {services.name!r}",
            needs=f"the stages of {run.path}, {run.stages}",
            found=quoted(names),
        )


def quality_under_load(
    policies: Mapping[str, Services],
    run: Path | str,
    arrivals: Arrivals,
    n: int,
    seed: int = 0,
    *,
    measures: Sequence[str] = (),
    loads: Sequence[float] = LOADS,
    resamples: int = 1000,
    progress: Callable[[str, int, int], None] | None = None,
) -> LoadQuality:
    """Simulate the same requests through each policy at several loads, and measure the lists shown.

    Args:
        policies: deployments by name; the first is the baseline.
        run: a Run with its paths (`replay --paths`).
        arrivals: at the configured load. The requests of a trace are its logged requests; for
            other arrivals logged requests are drawn.
        n: number of requests.
        seed: of the simulations, the drawn requests and the resamples.
        measures: default: HR@10 and, where the log has prices, GMV-HR@10.
        loads: multiples of the rate of `arrivals`.
        resamples: number of bootstrap resamples for the intervals.
        progress: called before each simulation with its name, its number and the total number.

    Raises:
        KarmafunnelError: for paths that were taken but not replayed, and for a deployment with
            other stages than the Run.
    """
    runs = runs_of(run)
    full = runs[FULL]
    for services in policies.values():
        check_stages(services, full)
    priced = full.meta["log"]["has"]["price"]
    values = PathValues(runs, measures or ["HR@10", *(["GMV-HR@10"] if priced else [])])
    ids = arrivals.ids[:n] if isinstance(arrivals, Trace) and arrivals.ids else None
    multiples = sorted({*loads, 1.0})
    simulated: dict[str, list[Simulation]] = {name: [] for name in policies}
    warmup = 0  # the longest one: the same requests are left out everywhere
    for i, (name, load) in enumerate(product(policies, multiples)):
        if progress:
            what = f"{name} at {load * arrivals.rate:,.0f} per second"
            progress(what, i, len(policies) * len(multiples))
        simulation = simulate(policies[name], arrivals.faster(load), n, seed)
        simulated[name].append(simulation)
        warmup = max(warmup, n - simulation.steady.height)
    rows: list[dict[str, Any]] = []
    by_path, baseline = [], list[Ratio]()
    for name, simulations in simulated.items():
        requests = simulations[multiples.index(1.0)].requests[warmup:]
        found = attribute_quality(requests, values, seed=seed, resamples=resamples, ids=ids)
        by_path.append(found.by_path.select(pl.lit(name).alias("policy"), pl.all()))
        for i, row in enumerate(found.rows):
            line = {"policy": name, **row}
            line |= dict.fromkeys(("difference", "difference low", "difference high"))
            if baseline and values.n_users > 1 and row["value"] is not None:
                pair = [baseline[i], found.ratios[i]]
                samples = sampled(pair, values.n_users, resamples, seed)
                gain = Difference.between(pair[:1], pair[1:], samples, seed)
                low, high = gain.interval
                line |= {"difference": gain.value, "difference low": low, "difference high": high}
            rows.append(line)
        baseline = baseline or found.ratios
    curve = load_curve(simulated, values, seed, resamples, ids, warmup)
    lost = None
    if values.priced is not None:
        first, simulations = next(iter(simulated.items()))
        rate = simulations[multiples.index(1.0)].rate
        lost = outages(policies[first], values, rate, seed=seed, resamples=resamples)
    return LoadQuality(rows, pl.concat(by_path), curve, lost, values.currency)
