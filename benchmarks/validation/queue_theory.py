"""The simulation against queueing theory, over sets of parameters whose long run has a closed form
(simulator/load/theory.py):

    python -m karmafunnel.benchmarks.validation.queue_theory --out out/theory

Each set is a deployment that runs through `simulate`; mean wait, utilisation and share lost are
held against theory. Rules, all settled before anything runs:

length      so many requests that half the interval is at most 3% of the value (5% at a utilisation
            of 0.95), from the asymptotic variance of the queue: exact for birth-death chains (Whitt
            1992), by heavy traffic otherwise (Whitt 1989); what the control variates save was seen
            in a pilot with another seed. Nothing is stopped by its result.
warm-up     each run leaves out its first ten relaxation times, each of
            (1 + cv²) / 2 rho / (1 - sqrt(rho))² requests (in a bounded queue at most the square
            of its places), and at least a thousand.
interval    batch means, 100 batches or more over all runs of a set; the mean wait and the share
            lost with the inputs (gaps between arrivals, service times) as control variates, whose
            means are known whatever the simulation does with them (Law 11.4). All intervals
            together hold with 99% (Bonferroni).

Each run of a set is kept in OUT/runs under a hash of what it simulates and of what the code makes
of its first requests, so that the same command goes on, and a simulation that does something else
is run anew. Writes queue_theory.md, .csv and .html and, with kaleido, .png.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from karmafunnel.benchmarks.validation.made_by import made_by
from karmafunnel.cli import OneLineErrors
from karmafunnel.files import read_json, write_json, write_text
from karmafunnel.simulator.load import theory
from karmafunnel.simulator.load.arrivals import Poisson
from karmafunnel.simulator.load.queueing import simulate
from karmafunnel.simulator.load.services import Service, Services, ServiceTime
from karmafunnel.simulator.load.theory import Steady
from karmafunnel.simulator.report import plots
from karmafunnel.simulator.report.curves import write_curve
from karmafunnel.simulator.report.page import rich
from karmafunnel.simulator.report.table import Cell, Table, number, print_table, to_markdown
from karmafunnel.terminal import Console, progress_bar
from scipy import stats

# of all intervals together; batches of a set; most requests of one run
LEVEL, BATCHES, RUN = 0.99, 100, 400_000
# least share of the variance that the control variates leave: heavy traffic, bounded queues
CONTROLLED, BOUNDED = 0.5, 0.35
MARGIN = 0.82  # of the half-width allowed, so that the variance's own error has room
S = 10.0  # ms, mean service


@dataclass(frozen=True)
class Case:
    """One set of parameters: a deployment, requests a second, theory's values for each stage."""

    model: str
    said: str
    services: Services
    rate: float
    theory: tuple[Steady, ...]

    @property
    def busiest(self) -> float:
        return max(steady.utilisation for steady in self.theory)

    @property
    def tolerance(self) -> float:
        """Most that half an interval may be, as a share of the value."""
        return 0.05 if self.busiest >= 0.945 else 0.03

    @property
    def warmup(self) -> int:
        longest = [1000.0]
        for stage, steady in zip(self.services.stages, self.theory, strict=True):
            relaxation = (
                (1 + stage.time.squared_cv)
                / 2
                * steady.utilisation
                / (1 - math.sqrt(steady.utilisation)) ** 2
            )
            room = rooms(stage)
            longest.append(
                10 * (relaxation if room is None else min(relaxation, (stage.servers + room) ** 2))
            )
        return math.ceil(max(longest))

    def spread(self) -> float:
        """Asymptotic variance of the mean wait or of the share lost, whichever is more, as a share
        of their squares, for one request.
        """
        found = []
        for stage, steady in zip(self.services.stages, self.theory, strict=True):
            c, load = stage.servers, self.rate / 1000 * stage.time.mean_ms()
            room = rooms(stage)
            n = c + (math.ceil(math.log(1e-12) / math.log(load / c)) if room is None else room)
            p = np.cumprod(np.concatenate([[1.0], load / np.minimum(np.arange(1, n + 1), c)]))
            p /= p.sum()
            wait = chain_variance(p, np.maximum(np.arange(n + 1) - c, 0), load)
            found.append(
                wait * max((1 + stage.time.squared_cv) / 2, ((1 + stage.time.squared_cv) / 2) ** 2)
            )  # long tails need more
            if steady.lost:
                found.append(chain_variance(p, np.arange(n + 1) == n, load) + 1 / steady.lost)
        return max(found)

    def runs(self, comparisons: int) -> tuple[int, int, int]:
        """How many runs, requests in each after the warm-up, and batches of each."""
        t = stats.t.ppf(1 - (1 - LEVEL) / comparisons / 2, BATCHES - 4)
        share = (
            BOUNDED
            if any(steady.lost for steady in self.theory)
            else max(CONTROLLED, 1 - self.busiest)
        )
        n = (t / (MARGIN * self.tolerance)) ** 2 * self.spread() * share
        runs = math.ceil(n / RUN)
        batches = math.ceil(BATCHES / runs)
        return runs, max(math.ceil(n / runs / batches), 500) * batches, batches


def rooms(stage: Service) -> int | None:
    """How many can wait; about as many as are served in the time that one is willing to; None for
    no bound.
    """
    if stage.patience_ms is not None:
        return math.ceil(stage.servers * stage.patience_ms / stage.time.mean_ms())
    return stage.queue


def chain_variance(p: np.ndarray, f: np.ndarray, load: float) -> float:
    """Asymptotic variance of the time average of f over a birth-death chain with arrivals at the
    rate `load` (in service times) and the distribution p, as a share of the mean's square, for one
    arrival (Whitt 1992, Asymptotic formulas for Markov processes, eq. 6).
    """
    mean = float((f * p).sum())
    below = np.cumsum((f - mean) * p)[:-1]
    return float(2 * (below**2 / (load * p[:-1])).sum() / mean**2 * load)


def cases() -> list[Case]:
    """All sets. Service takes 10 ms everywhere; utilisation is what varies."""

    def one(name: str = "s", servers: int = 1, kind: str = "exponential", **more: Any) -> Service:
        time_keys = {key: more.pop(key) for key in ("cv", "ratios") if key in more}
        shape = ServiceTime(kind, base_ms=S, **time_keys)  # type: ignore[arg-type]
        return Service(
            name, replace(shape, base_ms=S / shape.mean_ratio), servers, fail="closed", **more
        )

    def case(
        model: str, said: str, rate: float, stages: Sequence[Service], found: Sequence[Steady]
    ) -> Case:
        return Case(model, said, Services(tuple(stages), name=model), rate, tuple(found))

    def rate_of(rho: float, servers: int = 1) -> float:
        return rho * servers * 1000 / S

    made = []
    for rho in (0.3, 0.5, 0.7, 0.8, 0.95):
        rate = rate_of(rho)
        made.append(case("M/M/1", f"ρ = {rho}", rate, [one()], [theory.mm1(rate, S)]))
    for c, rho in ((2, 0.6), (4, 0.8), (8, 0.75)):
        rate = rate_of(rho, c)
        made.append(
            case("M/M/c", f"c = {c}, ρ = {rho}", rate, [one(servers=c)], [theory.mmc(rate, S, c)])
        )
    for rho in (0.5, 0.8, 0.95):
        rate = rate_of(rho)
        made.append(
            case("M/D/1", f"ρ = {rho}", rate, [one(kind="constant")], [theory.md1(rate, S)])
        )
    shapes: list[tuple[str, float, dict[str, Any]]] = [
        ("lognormal, cv 0.5", 0.7, {"kind": "lognormal", "cv": 0.5}),
        ("lognormal, cv 1.2", 0.6, {"kind": "lognormal", "cv": 1.2}),
        ("uniform from 0", 0.8, {"kind": "empirical", "ratios": (0.0, 2.0)}),
        ("empirical", 0.7, {"kind": "empirical", "ratios": (0.5, 0.5, 0.8, 3.0)}),
    ]
    for said, rho, shape in shapes:
        rate, stage = rate_of(rho), one(**shape)
        made.append(
            case(
                "M/G/1",
                f"{said}, ρ = {rho}",
                rate,
                [stage],
                [theory.mg1(rate, S, stage.time.squared_cv)],
            )
        )
    for lines, rate in (((1, 1), 60.0), ((2, 3), 140.0)):
        stages = [one(name, servers=c) for name, c in zip(("first", "second"), lines, strict=True)]
        said = (
            f"c = {lines[0]}, {lines[1]}, ρ = {rate * S / 1000 / lines[0]:.2g}, "
            f"{rate * S / 1000 / lines[1]:.2g}"
        )
        made.append(
            case("tandem", said, rate, stages, theory.tandem(rate, [(S, c) for c in lines]))
        )
    for c, queue, rho in ((1, 3, 0.8), (2, 5, 0.9), (4, 4, 0.95), (3, 10, 1.2)):
        rate = rate_of(rho, c)
        said = f"c = {c}, K = {c + queue}, offered ρ = {rho}"
        made.append(
            case(
                "M/M/c/K",
                said,
                rate,
                [one(servers=c, queue=queue)],
                [theory.mmck(rate, S, c, queue)],
            )
        )
    for c, patience, rho in ((1, 20.0, 0.8), (2, 15.0, 0.9), (5, 10.0, 0.95), (3, 20.0, 1.3)):
        rate = rate_of(rho, c)
        said = f"c = {c}, D = {patience:g} ms, offered ρ = {rho}"
        made.append(
            case(
                "M/M/c+D",
                said,
                rate,
                [one(servers=c, patience_ms=patience)],
                [theory.mmc_patience(rate, S, c, patience)],
            )
        )
    return made


# -- running ---------------------------------------------------------------------------------------


def measures_of(case: Case) -> list[tuple[str, str, float]]:
    """What is compared: (stage, measure, value of theory)."""
    found = []
    for stage, steady in zip(case.services.stages, case.theory, strict=True):
        found += [
            (stage.name, "wait_ms", steady.wait_ms),
            (stage.name, "utilisation", steady.utilisation),
        ]
        found += [(stage.name, "lost", steady.lost)] if steady.lost else []
    return found


def batches_of(case: Case, requests: pl.DataFrame, batches: int) -> dict[str, list[float]]:
    """Sums over each batch of neighbouring requests after the warm-up: "requests", "ms" (of
    arrivals) and, for each stage, waits, how many of them, service, how many were served, and how
    many were lost.
    """
    part = np.arange(requests.height - case.warmup) // ((requests.height - case.warmup) // batches)
    gaps = np.diff(requests["t_ms"].to_numpy(), prepend=0.0)[case.warmup :]
    steady = requests[case.warmup :]

    def summed(x: np.ndarray) -> list[float]:
        return np.bincount(part, x, batches).tolist()

    sums = {"requests": summed(np.ones(len(part))), "ms": summed(gaps)}
    for stage in case.services.stages:
        for what in ("wait", "service"):
            values = steady[f"{stage.name}.{what}_ms"].to_numpy()
            sums[f"{stage.name}.{what}"] = summed(np.nan_to_num(values))
            sums[f"{stage.name}.{what}s"] = summed(~np.isnan(values))
        sums[f"{stage.name}.lost"] = summed((steady["outcome"] != "served").to_numpy())
    return sums


@cache
def behaviour(case: Case) -> str:
    """A hash of what becomes of the first 2,000 requests: the simulation that kept runs are of."""
    rows = simulate(case.services, Poisson(case.rate), 2000).requests.rows()
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def place(case: Case, folder: Path, seed: int, n: int, batches: int) -> Path:
    """The file of one run."""
    text = json.dumps(
        [case.services.toml(), case.rate, seed, n, batches, case.warmup, behaviour(case)]
    )
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def kept(case: Case, folder: Path, seed: int, n: int, batches: int) -> dict[str, list[float]]:
    """The batches of one run, from its file or made now."""
    path = place(case, folder, seed, n, batches)
    if not path.exists():
        simulation = simulate(case.services, Poisson(case.rate), n + case.warmup, seed)
        write_json(path, batches_of(case, simulation.requests, batches))
    found: dict[str, list[float]] = read_json(path)
    return found


def compare(case: Case, sums: dict[str, np.ndarray], comparisons: int) -> list[dict[str, Any]]:
    """Each measure of a set beside theory, with its interval of level 1 - 0.01 / `comparisons`."""
    lines, n = [], sums["requests"]
    controls = [sums["ms"] / n - 1000 / case.rate]
    # a service is drawn apart from whether its request is served: the sum's mean is 0
    for stage in case.services.stages:
        controls.append((sums[f"{stage.name}.service"] - S * sums[f"{stage.name}.services"]) / n)
    for name, measure, exact in measures_of(case):
        over, under = {
            "wait_ms": (sums[f"{name}.wait"], sums[f"{name}.waits"]),
            "utilisation": (sums[f"{name}.service"] / case.services[name].servers, sums["ms"]),
            "lost": (sums[f"{name}.lost"], n),
        }[measure]
        ratio = over.sum() / under.sum()
        error = (over - ratio * under) / under.mean()  # of the ratio, batch by batch
        # utilisation is made of the controls themselves
        used = np.column_stack([np.ones(len(n)), *(controls if measure != "utilisation" else [])])
        fitted, *_ = np.linalg.lstsq(used, error, rcond=None)
        free = len(n) - used.shape[1]
        variance = ((error - used @ fitted) ** 2).sum() / free * np.linalg.inv(used.T @ used)[0, 0]
        value = float(ratio + fitted[0])
        half = float(stats.t.ppf(1 - (1 - LEVEL) / comparisons / 2, free) * math.sqrt(variance))
        lines.append(
            {
                "model": case.model,
                "set": case.said,
                "stage": name,
                "measure": measure,
                "theory": exact,
                "simulated": value,
                "low": value - half,
                "high": value + half,
                "half_width": half / abs(exact),
                "allowed": case.tolerance,
                "inside": abs(value - exact) <= half,
                "narrow": half / abs(exact) <= case.tolerance,
                "requests": int(n.sum()),
                "left": float(((error - used @ fitted) ** 2).sum() / (error**2).sum()),
            }
        )
    return lines


# -- what is written -------------------------------------------------------------------------------


def figure(lines: Sequence[dict[str, Any]]) -> plots.Plot:
    """Simulated against predicted, log both; below, how far each is off, with its interval."""
    models = dict(
        zip(
            dict.fromkeys(line["model"] for line in lines),
            (*plots.COLOURS, plots.ALL),
            strict=False,
        )
    )
    kinds = {"wait_ms": "mean wait, ms", "utilisation": "utilisation", "lost": "share lost"}
    domains, height = plots.panes(3, 3, 250, gap=0.08)
    layout = plots.blank(height + 420, left=70, bottom=60) | {
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.08},
    }
    data: list[plots.Plot] = []

    def upper(y: Sequence[float]) -> list[float]:
        return [0.62 + 0.38 * v for v in y]

    for i, (kind, title) in enumerate(kinds.items()):
        mine = [line for line in lines if line["measure"] == kind]
        exact = [line["theory"] for line in mine] or [1.0]
        ends = [min(exact) * 0.8, max(exact) * 1.25]
        diagonal = {
            "mode": "lines",
            "line": {"color": plots.QUIET, "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        }
        data.append(
            {
                "type": "scatter",
                "x": ends,
                "y": ends,
                "showlegend": False,
                **diagonal,
                **plots.on(i),
            }
        )
        for model, colour in models.items():
            points = [line for line in mine if line["model"] == model]
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": model,
                    "legendgroup": model,
                    "showlegend": i == 0,
                    "x": [p["theory"] for p in points],
                    "y": [p["simulated"] for p in points],
                    "marker": {"color": colour, "size": 8},
                    "text": [f"{p['model']}, {p['set']}" for p in points],
                    "hovertemplate": rich(
                        "%{text}<br>theory %{x:.4g}, simulated %{y:.4g}<extra></extra>"
                    ),
                    **plots.on(i),
                }
            )
        x, y = domains[i]
        layout[plots.axis(i, "x")] = {
            "domain": x,
            "anchor": plots.on(i)["yaxis"],
            "type": "log",
            "title": {"text": "theory"},
        }
        layout[plots.axis(i, "y")] = {
            "domain": upper(y),
            "anchor": plots.on(i)["xaxis"],
            "type": "log",
        }
        layout["annotations"].append(plots.heading(title, (x, upper(y))))
    names = [f"{line['model']}, {line['set']}, {line['stage']} {line['measure']}" for line in lines]
    for model, colour in models.items():
        at = [i for i, line in enumerate(lines) if line["model"] == model]
        bars = {
            "type": "data",
            "array": [lines[i]["half_width"] for i in at],
            "width": 0,
            "thickness": 1.4,
            "color": colour,
        }
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "legendgroup": model,
                "showlegend": False,
                "x": at,
                "error_y": bars,
                "y": [lines[i]["simulated"] / lines[i]["theory"] - 1 for i in at],
                "marker": {"color": colour, "size": 6},
                "text": [names[i] for i in at],
                "hovertemplate": rich("%{text}<br>off by %{y:.2%}<extra></extra>"),
                **plots.on(3),
            }
        )
    layout[plots.axis(3, "x")] = {
        "domain": [0, 1],
        "anchor": "y4",
        "showticklabels": False,
        "showgrid": False,
        "title": {"text": "sets and measures, in the order of the table"},
    }
    layout[plots.axis(3, "y")] = {"domain": [0, 0.44], "anchor": "x4", "tickformat": ".1%"}
    layout["annotations"].append(
        plots.heading("off by, with the interval (99% for all together)", ([0, 1], [0, 0.44]))
    )
    return {"data": data, "layout": layout}


HEADS = (
    "model",
    "set",
    "measure",
    "theory",
    "simulated",
    "interval",
    "half-width",
    "allowed",
    "requests",
    "inside",
    "narrow enough",
)


def table_of(lines: Sequence[dict[str, Any]]) -> Table:
    """The comparisons; those that failed are red on a terminal."""
    rows: list[list[str | Cell]] = []
    for line in lines:
        style = "" if line["inside"] and line["narrow"] else "red"
        texts = cells(line)
        rows.append([*texts[:3], *(Cell(text, style=style) for text in texts[3:])])
    return Table(HEADS, rows, text_columns=3, title="simulation against queueing theory")


def cells(line: dict[str, Any]) -> list[str]:
    several = line["stage"] != "s"
    said = (
        f"{line['stage']} " * several
        + {"wait_ms": "mean wait, ms", "utilisation": "utilisation", "lost": "share lost"}[
            line["measure"]
        ]
    )
    plain = [line["model"], line["set"], said]
    plain += [number(line["theory"], decimals=4), number(line["simulated"], decimals=4)]
    plain += [
        f"[{number(line['low'], decimals=4)}, {number(line['high'], decimals=4)}]",
        f"{line['half_width']:.2%}",
    ]
    return [
        *plain,
        f"{line['allowed']:.0%}",
        f"{line['requests']:,}",
        *("yes" if line[key] else "NO" for key in ("inside", "narrow")),
    ]


def write(lines: Sequence[dict[str, Any]], out: Path, below: Sequence[str]) -> list[Path]:
    """queue_theory.md, .csv, .html and, where kaleido is installed, .png."""
    text = "## Simulation against queueing theory\n\n" + to_markdown(
        replace(table_of(lines), title="")
    )
    file = io.StringIO()
    writer = csv.DictWriter(
        file, [key for key in lines[0] if key != "left"], extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(lines)
    for name, content in {
        "queue_theory.md": "\n".join([text, "\n\n".join(below), ""]),
        "queue_theory.csv": file.getvalue(),
    }.items():
        write_text(out / name, content)
    return [
        out / "queue_theory.md",
        out / "queue_theory.csv",
        *write_curve(figure(lines), out / "queue_theory.html"),
    ]


@click.command(cls=OneLineErrors)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Where runs are kept and the table goes.",
)
@click.option("--seed", default=0, show_default=True)
def main(out: Path, seed: int) -> None:
    """Run what is missing, compare, print and write."""
    console, found = Console(), cases()
    comparisons = sum(len(measures_of(case)) for case in found)
    plans = [case.runs(comparisons) for case in found]
    total = total_runs = n_requests = 0
    for case, (runs, n, _) in zip(found, plans, strict=True):
        total += runs * n * len(case.services.stages)
        total_runs += runs
        n_requests += runs * n
    lines: list[dict[str, Any]] = []
    before, start = 0, time.process_time()
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("simulating", total=total // 1000)
        for i, (case, (runs, n, batches)) in enumerate(zip(found, plans, strict=True)):
            made: list[dict[str, list[float]]] = []
            for run in range(runs):
                bar.update(task, description=f"{case.model}, {case.said}: run {run + 1} of {runs}")
                asked = (case, out / "runs", 10_000 * seed + 100 * i + run, n, batches)
                before += place(*asked).exists()
                made.append(kept(*asked))
                bar.advance(task, n * len(case.services.stages) // 1000)
            sums = {}
            for key in made[0]:
                sums[key] = np.concatenate([np.array(one[key]) for one in made])
            lines += compare(case, sums, comparisons)
    print_table(table_of(lines), console)
    inside = sum(line["inside"] for line in lines)
    narrow = sum(line["narrow"] for line in lines)
    worst = max(
        lines,
        key=lambda line: abs(line["simulated"] - line["theory"]) / (line["high"] - line["low"]),
    )
    verdict = (
        f"{inside} of {len(lines)} values of {len(found)} sets inside their interval "
        f"({LEVEL:.0%} for all together), {narrow} of {len(lines)} "
        f"narrow enough; nearest to the edge: {worst['model']}, {worst['set']}, {worst['measure']}."
    )
    how = made_by(
        "queue_theory",
        f"seed {seed}, {n_requests:,} requests in {total_runs} runs, {total_runs - before} of them "
        f"made in this call ({(time.process_time() - start) / 60:.0f} minutes), the others kept",
    )
    rules = (
        f"Intervals: batch means, {BATCHES} or more batches a set, {LEVEL:.0%} for all "
        f"{comparisons} values together (Bonferroni); of waits "
        "and of shares lost with gaps and service times as control variates. Lengths and "
        "warm-up are settled before anything runs, from the "
        "asymptotic variance and the relaxation time of each queue; nothing is stopped or "
        "repeated for its result."
    )
    for path in write(lines, out, [verdict, rules, how]):
        console.print(str(path), soft_wrap=True)
    console.print(verdict, soft_wrap=True)


if __name__ == "__main__":
    main()
