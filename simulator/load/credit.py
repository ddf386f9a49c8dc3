"""Quality under load: each simulated request earns what the Run of the path that it really took is
worth on one logged request.

Measures are those of `simulator/measure`, request by request; a request that was shown nothing
earns 0, one where a measure is undefined stays undefined. Intervals are clustered by the logged
requests' users, with the same draws for all policies.
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


class Quality:
    """What each logged request is worth along each path: the Runs' last stages, read once. `ids`:
    the logged requests, sorted.
    """

    def __init__(self, runs: Mapping[str, Run], measures: Sequence[Measure | str]):
        """`runs`: by path, as `runs_of` gives them. Raises KarmafunnelError without "full", for
        Runs of different requests, and for a measure without a value a request.
        """
        if FULL not in runs:
            raise KarmafunnelError(
                "credit", needs=f"the Run of the path {FULL!r}", found=f"those of {sorted(runs)}"
            )
        self.measures = parse_all(measures)
        readings = dict(zip(runs, same_requests(list(runs.values()), list(runs)), strict=True))
        full = readings[FULL]
        self.ids, self.cluster, self.n, self.n_users = (
            full.requests["request_id"],
            full.cluster,
            full.n,
            len(full.users),
        )
        self.currency = str(runs[FULL].meta["log"].get("currency") or "money")
        self.runs, self.paths = dict(runs), [*runs, *([NOTHING] if NOTHING not in runs else [])]
        last = {path: run.stages[-1] for path, run in runs.items()}
        if short := [
            str(m) for m in self.measures if m.k is not None and m.k > runs[FULL].k(last[FULL])
        ]:
            raise KarmafunnelError(
                f"credit: {last[FULL]} puts out {runs[FULL].k(last[FULL])}, which is too few for {', '.join(short)}"
            )
        # by measure: numerators and denominators (n_paths, n_requests)
        self.worth: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for measure in self.measures:
            values = [
                measure.per_request(reading, last[path]) for path, reading in readings.items()
            ]
            num, den = values[list(runs).index(FULL)]
            # what is not ranked has no AUC
            nothing = np.where(np.isnan(num) | (measure.name == "gAUC"), np.nan, 0.0)
            values += [(nothing, den)] if NOTHING not in runs else []
            self.worth[str(measure)] = (
                np.stack([v[0] for v in values]),
                np.stack([v[1] for v in values]),
            )

    def logged(
        self, request: np.ndarray, seed: int = 0, ids: Sequence[str] | None = None
    ) -> np.ndarray:
        """The logged request of each simulated one, as a place in `ids`: int64. `request`: their
        numbers in order of arrival.

        With `ids` number i is the logged request ids[i] (a trace); else it is drawn, and depends on
        `seed` and i alone.
        """
        most = int(request.max(initial=-1)) + 1
        if ids is None:
            return np.random.default_rng([seed, self.n]).integers(0, self.n, most)[request]
        if most > len(ids):
            raise KarmafunnelError(
                "credit",
                needs=f"the logged request of each of {most} simulated ones",
                found=f"{len(ids)} ids",
            )
        place = {name: i for i, name in enumerate(self.ids)}
        if stray := [name for name in ids if name not in place]:
            raise KarmafunnelError(
                "credit",
                needs="requests that the Run replayed",
                found=f"{len(stray)} others, e.g. {stray[0]!r}",
            )
        return np.array([place[name] for name in ids], dtype=np.int64)[request]

    def code(self, path: pl.Series) -> np.ndarray:
        """Numbers of paths; raises KarmafunnelError naming those that no Run was made of."""
        taken = path.to_list()
        number = {name: i for i, name in enumerate(self.paths)}
        if missing := sorted({name for name in taken if name not in number}):
            flags = " ".join(f"--path {name}" for name in missing)
            raise KarmafunnelError(
                f"credit: needs a Run of every path that was taken, missing {missing}; replay them with {flags}"
            )
        return np.array([number[name] for name in taken], dtype=np.int64)

    def ratio(self, measure: Measure | str, code: np.ndarray, at: np.ndarray) -> Ratio:
        """A measure over requests that took the paths `code` and are the logged requests `at`, (n,)
        each.
        """
        num, den = (table[code, at] for table in self.worth[str(measure)])
        return Ratio(num, den, self.cluster[at])

    def intervals(
        self, estimates: Sequence[Ratio], resamples: int, seed: int
    ) -> list[tuple[float | None, float | None]]:
        """95% intervals, users resampled; none with a single user."""
        samples = sampled(estimates, self.n_users, resamples, seed)
        return [interval(samples[e]) if samples else (None, None) for e in estimates]


@dataclass(frozen=True, eq=False)
class Credit:
    """`ratios`: each measure over the requests, in the order of the log. `rows`: one a measure, as
    `measure` has them: value, low, high, n, undefined. `by_path`: one a measure and path: how many
    requests took it, how many are defined, numerator and denominator; they add up to the whole.
    """

    ratios: list[Ratio]
    rows: list[dict[str, Any]]
    by_path: pl.DataFrame


def credit(
    requests: pl.DataFrame,
    runs: Mapping[str, Run] | Quality,
    measures: Sequence[Measure | str] = (),
    seed: int = 0,
    *,
    ids: Sequence[str] | None = None,
    resamples: int = 1000,
) -> Credit:
    """What simulated requests (`request` and `path` of `Simulation.requests`) earn, each from one
    logged request.

    `ids`: the request_ids of the log that the arrivals are, in order (a trace); else logged
    requests are drawn by `seed` and the number of the request alone, the same for all policies. The
    draws of users are those of `measure`, so that with every logged request once on "full" the
    figures are its figures. Raises KarmafunnelError for a path without a Run.
    """
    quality = runs if isinstance(runs, Quality) else Quality(runs, measures)
    if requests.height == 0:
        raise KarmafunnelError("credit", needs="at least one simulated request", found="none")
    at = quality.logged(requests["request"].to_numpy(), seed, ids)
    code = quality.code(requests["path"])
    order = np.argsort(at, kind="stable")  # sums in the order of the log
    at, code = at[order], code[order]
    ratios = [quality.ratio(m, code, at) for m in quality.measures]
    rows, parts = [], []
    for measure, ratio, (low, high) in zip(
        quality.measures, ratios, quality.intervals(ratios, resamples, seed), strict=True
    ):
        value = None if np.isnan(ratio.value) else ratio.value
        rows.append(
            {
                "measure": str(measure),
                "value": value,
                "low": low,
                "high": high,
                "n": ratio.n,
                "undefined": ratio.undefined,
            }
        )
        known = ratio.known
        sums = [
            np.bincount(code[known], x[known], len(quality.paths)).astype(np.float64)
            for x in (ratio.num, ratio.den)
        ]
        parts.append(
            pl.DataFrame(
                {
                    "measure": [str(measure)] * len(quality.paths),
                    "path": quality.paths,
                    "requests": np.bincount(code, minlength=len(quality.paths)),
                    "defined": np.bincount(code[known], minlength=len(quality.paths)),
                    "numerator": sums[0],
                    "denominator": sums[1],
                }
            ).filter(pl.col("requests") > 0)
        )
    return Credit(ratios, rows, pl.concat(parts))


def money_of(quality: Quality) -> str:
    """The measure whose numerator is money; raises KarmafunnelError where none was asked for."""
    found = [str(m) for m in quality.measures if m.name == "GMV-HR"]
    if not found:
        raise KarmafunnelError(
            "credit",
            what="money",
            needs="GMV-HR@k among the measures",
            found=f"{[str(m) for m in quality.measures]}",
        )
    return found[0]


def money(quality: Quality, code: np.ndarray, at: np.ndarray) -> Ratio:
    """Money a request: that of its truth items inside the top k, 0 where there is none with a
    price.
    """
    num = np.nan_to_num(quality.ratio(money_of(quality), code, at).num)
    return Ratio(num, np.ones(len(num)), quality.cluster[at])


def load_curve(
    simulated: Mapping[str, Sequence[Simulation]],
    quality: Quality,
    seed: int = 0,
    resamples: int = 1000,
    ids: Sequence[str] | None = None,
    warmup: int = 0,
) -> pl.DataFrame:
    """Quality and money against offered load: one row a policy and load.

    `simulated`: by policy its Simulations at several loads, with the same seed and number of
    requests everywhere; so request i is the same logged request at every load and under every
    policy. Columns: policy, rate (that came, a second), goodput (served, a second until the last
    one left), p99_ms (of those that were shown something), full and nothing (shares of requests),
    then of each measure its value, low and high, and of money an hour (where GMV-HR is asked for)
    the same. `warmup`: how many of the first requests shares, measures and money leave out.
    """
    lines = []
    priced = any(m.name == "GMV-HR" for m in quality.measures)
    for policy, simulations in simulated.items():
        for simulation in simulations:
            requests, summary = simulation.requests[warmup:], simulation.summary()
            line: dict[str, Any] = {
                "policy": policy,
                "rate": simulation.rate,
                "goodput": summary["goodput"],
            }
            line["p99_ms"] = summary["latency"]["p99_ms"]["value"] if summary["latency"] else None
            # near-line interests are no degradation
            shares = {FULL: simulation.services.normal, NOTHING: NOTHING}
            line |= {
                name: int((requests["path"] == path).sum()) / requests.height
                for name, path in shares.items()
            }
            for row in credit(requests, quality, seed=seed, resamples=resamples, ids=ids).rows:
                line |= {
                    f"{row['measure']}{end}": row[key]
                    for end, key in (("", "value"), (" low", "low"), (" high", "high"))
                }
            if priced:
                at = quality.logged(requests["request"].to_numpy(), seed, ids)
                earned = money(quality, quality.code(requests["path"]), at)
                low, high = quality.intervals([earned], resamples, seed)[0]
                hourly = 3600 * simulation.rate
                line["money an hour"] = earned.value * hourly
                for side, value in (("low", low), ("high", high)):
                    line[f"money an hour {side}"] = None if value is None else value * hourly
            lines.append(line)
    return pl.DataFrame(lines, infer_schema_length=None)


def outages(
    services: Services,
    quality: Quality,
    rate: float,
    hours: float = 1.0,
    seed: int = 0,
    resamples: int = 1000,
) -> pl.DataFrame:
    """What an outage of each stage costs: all of its requests take the stage's fallback, or are
    shown nothing where it fails closed.

    Over the logged requests, `rate` a second for so many hours; everything else is up and keeps up,
    and the outage is known at once. One row a stage: path, money (with everything up), lost, low
    and high (money that the outage loses, paired by request), and of each measure the full value,
    the value in the outage, and the interval of their difference. Null, with a note, where the path
    has no Run.
    """
    lines, at = [], np.arange(quality.n)
    names = [stage.name for stage in services.stages]
    usual = modes_of(services.normal)
    if services.normal not in quality.paths:
        raise KarmafunnelError(
            f"credit: needs the Run of the path {services.normal}; replay it with --path {services.normal}"
        )
    full = np.full(quality.n, quality.paths.index(services.normal))
    requests = rate * 3600 * hours
    before, plain = money(quality, full, at), [quality.ratio(m, full, at) for m in quality.measures]
    for stage in services.stages:
        if not stage.online:  # stale vectors go on being served
            continue
        path = (
            NOTHING
            if stage.fail == "closed"
            else path_of(usual | {stage.name: stage.fallen}, names)
        )
        line: dict[str, Any] = {"stage": stage.name, "path": path, "note": ""}
        known = path in quality.paths
        code = np.full(quality.n, quality.paths.index(path)) if known else full
        lost = Ratio(before.num - money(quality, code, at).num, before.den, before.cluster)
        down = [quality.ratio(m, code, at) for m in quality.measures]
        samples = sampled([lost, *plain, *down], quality.n_users, resamples, seed)
        line["money"] = before.value * requests
        line |= dict.fromkeys(("lost", "low", "high"))
        if not known:
            line["note"] = f"no Run of {path}: replay it with --path {path}"
        else:
            line["lost"] = lost.value * requests
            if samples:
                line["low"], line["high"] = (
                    None if x is None else x * requests for x in interval(samples[lost])
                )
        for measure, up, out in zip(quality.measures, plain, down, strict=True):
            name = str(measure)
            line |= {name: up.value, f"{name} in the outage": out.value if known else None}
            low, high = (
                Difference.between([out], [up], samples, seed).interval if known else (None, None)
            )
            line |= {f"{name} lost low": low, f"{name} lost high": high}
        lines.append(line)
    return pl.DataFrame(lines, infer_schema_length=None)


@dataclass(frozen=True, eq=False)
class Worth:
    """What a simulation showed is worth. `rows`: one a policy and measure at the load asked for:
    value, low, high, and against the first policy difference, difference low and high; `by_path`,
    `curve` and `outages` as `credit`, `load_curve` and `outages` make them (`outages` is None where
    the log has no prices).
    """

    rows: list[dict[str, Any]]
    by_path: pl.DataFrame
    curve: pl.DataFrame
    outages: pl.DataFrame | None
    currency: str

    def write(self, folder: Path) -> None:
        """quality.csv, quality_by_path.csv, load_curve.csv and outages.csv."""
        frames = {
            "quality": pl.DataFrame(self.rows, infer_schema_length=None),
            "quality_by_path": self.by_path,
            "load_curve": self.curve,
        }
        for name, frame in (
            frames | ({"outages": self.outages} if self.outages is not None else {})
        ).items():
            frame.write_csv(folder / f"{name}.csv")


def check_stages(services: Services, run: Run) -> None:
    """Raises KarmafunnelError where a deployment is not of the stages of a Run, in their order."""
    names = [
        s.name
        for s in services.stages
        if s.name in run.stages or s.name not in (run.meta.get("embedders") or {})
    ]
    if names != run.stages:
        raise KarmafunnelError(
            f"credit: services {services.name!r} need the stages of {run.path}, {run.stages}, found {quoted(names)}"
        )


LOADS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # times the load asked for


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
) -> Worth:
    """The same n requests through each policy, at the load of `arrivals` and at multiples of it,
    each credited with what it was shown.

    `run`: a Run with its paths (`replay --paths`). Requests of a trace are the logged ones that
    they were; others are drawn. Raises KarmafunnelError naming paths that were taken and not
    replayed.
    """
    runs = runs_of(run)
    full = runs[FULL]
    names = list(measures) or [
        "HR@10",
        *(["GMV-HR@10"] if full.meta["log"]["has"]["price"] else []),
    ]
    for services in policies.values():
        check_stages(services, full)
    quality = Quality(runs, names)
    ids = arrivals.ids[:n] if isinstance(arrivals, Trace) and arrivals.ids else None
    asked = sorted({*loads, 1.0})
    simulated: dict[str, list[Simulation]] = {name: [] for name in policies}
    for i, (name, load) in enumerate(product(policies, asked)):
        if progress:
            progress(
                f"{name} at {load * arrivals.rate:,.0f} a second", i, len(policies) * len(asked)
            )
        simulated[name].append(simulate(policies[name], arrivals.faster(load), n, seed))
    every = [simulation for simulations in simulated.values() for simulation in simulations]
    # the same requests everywhere
    warmup = max(simulation.requests.height - simulation.steady.height for simulation in every)
    rows: list[dict[str, Any]] = []
    by_path, base = [], list[Ratio]()
    for name, simulations in simulated.items():
        requests = simulations[asked.index(1.0)].requests[warmup:]
        earned = credit(requests, quality, seed=seed, resamples=resamples, ids=ids)
        ratios = earned.ratios
        by_path.append(earned.by_path.select(pl.lit(name).alias("policy"), pl.all()))
        for i, row in enumerate(earned.rows):
            line = {"policy": name, **row} | dict.fromkeys(
                ("difference", "difference low", "difference high")
            )
            if base and quality.n_users > 1 and row["value"] is not None:
                samples = sampled([base[i], ratios[i]], quality.n_users, resamples, seed)
                gain = Difference.between([base[i]], [ratios[i]], samples, seed)
                low, high = gain.interval
                line |= {"difference": gain.value, "difference low": low, "difference high": high}
            rows.append(line)
        base = base or ratios
    curve = load_curve(simulated, quality, seed, resamples, ids, warmup)
    priced, (first, found) = (
        any(m.name == "GMV-HR" for m in quality.measures),
        next(iter(simulated.items())),
    )
    lost = (
        outages(
            policies[first], quality, found[asked.index(1.0)].rate, seed=seed, resamples=resamples
        )
        if priced
        else None
    )
    return Worth(rows, pl.concat(by_path), curve, lost, quality.currency)
