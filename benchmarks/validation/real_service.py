"""True to life: a funnel served for real, one worker on one core, against what the simulation says
of it.

    python -m karmafunnel.benchmarks.validation.real_service LOG --out out/real-service

The worker fits the funnel and answers over a loopback socket, in batches as a Service does; the
open-loop generator on another core sends at planned (Poisson) times whatever the answers do, and
latency is counted from the planned time. Just before each load, and again after each repetition,
the worker profiles itself on its core; socket and serialisation are measured with an empty funnel.
`simulate` gets that profile, folded into one server, and the very times of the measurement. The
last cell adds a stage that sleeps 5 ms, at the rate of the least load. Each load is kept, so the
same command goes on; writes real_service (.md, .csv, .html, .png). Linux only (affinity).
"""

from __future__ import annotations

import csv
import io
import json
import os
import select
import shlex
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from karmafunnel.cli import OneLineErrors
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import read_json, read_text, write_json, write_text
from karmafunnel.keys import cache_root, code_of, content_key
from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, Embedder
from karmafunnel.simulator.load.arrivals import Trace
from karmafunnel.simulator.load.profile import (
    PASS,
    SCHEMA,
    Profile,
    Timing,
    measure_passes,
    threads_of,
)
from karmafunnel.simulator.load.queueing import simulate
from karmafunnel.simulator.load.services import Services
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.prepare import prepare
from karmafunnel.simulator.replay.provenance import commit, processor
from karmafunnel.simulator.replay.recipe import Recipe, load_recipe
from karmafunnel.simulator.report import plots
from karmafunnel.simulator.report.curves import write_curve
from karmafunnel.simulator.report.page import rich
from karmafunnel.simulator.report.table import Cell, Table, to_markdown
from karmafunnel.stages.context import Context
from karmafunnel.stages.features import Own, Popularity, RequestContext, Similarity, Upstream
from karmafunnel.stages.frame import ITEM, RANK, REQUEST
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import Join, Popular, VectorRecall
from karmafunnel.stages.rows import Rows
from karmafunnel.stages.stage import FittedFunnel, FittedStage, Stage
from karmafunnel.terminal import Console

LOADS = (0.3, 0.5, 0.75)  # utilisations by the profile
PAUSE_MS = 5.0
PROFILE = 0.5  # seconds of profile before each second of load
SEEDS = 10  # simulations of every repetition
Q = (50, 95, 99)
EMPTY = -1  # the request that no stage sees
SPIN = 2e-4  # s; sooner than a thread is woken

embedders: dict[str, Embedder] = {"cooccurrence": Cooccurrence()}
features = [Upstream(), Popularity(), Own(), Similarity("cooccurrence")]
funnel = (
    Join((VectorRecall("cooccurrence", k=200), Popular(k=100)), k=250)
    >> LightGBMPreRank(k=100, trees=100, features=features, sample=Sample(passed=100))
    >> LightGBMRank(
        k=20, trees=100, features=[*features, RequestContext()], sample=Sample(passed=100)
    )
)


@dataclass(frozen=True, repr=False)
class Pause(Stage):
    """Keeps the order of the stage before and sleeps so long a batch."""

    k: int
    ms: float
    name: str = "pause"

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedPause:
        return FittedPause(self, context)


class FittedPause(FittedStage):
    def score(self, rows: Rows) -> np.ndarray:
        time.sleep(self.stage.ms / 1000)  # type: ignore[attr-defined]
        return rows.frame["score"].to_numpy()


# -- the worker ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worker:
    """Settings of a worker process: what it reads, how it serves, and when it ends in any case."""

    recipe: str
    log: str
    core: int
    seed: int = 0
    pause_ms: float = 0.0
    batch: int = 1
    wait_ms: float = 0.0
    most: int = 200_000  # requests
    seconds: float = 600.0


def listed(slate: pl.DataFrame, requests: Sequence[int]) -> dict[int, list[int]]:
    """A slate's items by request, best first."""
    ranked = slate.sort(REQUEST, RANK)
    rows, items = ranked[REQUEST].to_numpy(), ranked[ITEM].to_numpy()
    found = {}
    for r in requests:
        begin, end = np.searchsorted(rows, r), np.searchsorted(rows, r, side="right")
        found[r] = items[begin:end].tolist()
    return found


def last_slate(fitted: FittedFunnel, requests: Sequence[int]) -> pl.DataFrame:
    """What the last stage puts out; requests in any order, each once."""
    return fitted.run(np.sort(np.array(requests)))[-1].slate


def work(told: Worker, console: Console) -> None:
    """A worker's life: pinned to its core it loads the funnel, says its port and stages on standard
    output, serves one connection, ends.
    """
    os.sched_setaffinity(0, {told.core})
    log = Log.open(told.log)
    recipe = load_recipe(told.recipe, log)
    if told.pause_ms:
        recipe = replace(
            recipe, funnel=recipe.funnel >> Pause(recipe.funnel.stages[-1].k, told.pause_ms)
        )
    fitted = prepare(recipe, log, RunOptions(seed=told.seed, cache=cache_root(), console=console))
    with socket.create_server(("127.0.0.1", 0)) as server, threads_of(1):
        server.settimeout(60)  # nobody calls: it ends
        ks = {ready.stage.name: ready.stage.k for ready in fitted.stages}
        print(json.dumps({"port": server.getsockname()[1], "ks": ks}), flush=True)
        connection, _ = server.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            serve(fitted, connection, told)


def serve(fitted: FittedFunnel, connection: socket.socket, told: Worker) -> None:
    """Answers requests, first come first served, in batches that are full or whose first has waited
    `wait_ms`, as a Service does.

    A line is {"id", "t" (planned, s), "request" (row of the log, or EMPTY)}; the answer {"id",
    "items", "ms" (the batch's), "n" (its size)}. {"profile": a timing and a seed} is
    answered with the rows of its passes, once all before it are served.
    """
    window = fitted.context.log.requests_in("W3")
    first, canned = int(window[0]), last_slate(fitted, window[:1].tolist())
    lines, queue, served, end = (
        Lines(connection),
        deque[dict[str, Any]](),
        0,
        time.perf_counter() + told.seconds,
    )
    while served < told.most and (left := end - time.perf_counter()) > 0:
        if queue:
            waits = (
                0.0
                if len(queue) >= told.batch
                else queue[0]["t"] + told.wait_ms / 1000 - time.perf_counter()
            )
            left = min(left, max(waits, 0.0))
        found = lines.within(left)
        if found is None:
            return
        for line in found:
            if "profile" in line:
                timing = Timing(**line["profile"]["timing"], cutoffs={})
                passes = measure_passes(fitted, window, timing, seed=line["profile"]["seed"])
                lines.send(passes.rows())
            else:
                queue.append(line)
        if not queue or (
            len(queue) < told.batch and time.perf_counter() < queue[0]["t"] + told.wait_ms / 1000
        ):
            continue
        begin = time.perf_counter()
        batch = [queue.popleft() for _ in range(min(told.batch, len(queue)))]
        rows = [line["request"] for line in batch if line["request"] != EMPTY]
        slates = (
            listed(last_slate(fitted, rows), rows)
            if rows
            else {EMPTY: listed(canned, [first])[first]}
        )
        ms = 1000 * (time.perf_counter() - begin)
        for line in batch:
            lines.send(
                {
                    "id": line["id"],
                    "items": slates.get(line["request"], []),
                    "ms": ms,
                    "n": len(batch),
                }
            )
        served += len(batch)


class Lines:
    """JSON lines over a socket."""

    def __init__(self, connection: socket.socket):
        self.connection, self.rest = connection, b""

    def send(self, value: Any) -> None:
        self.connection.sendall(json.dumps(value).encode() + b"\n")

    def within(self, seconds: float) -> list[Any] | None:
        """What has come, waiting at most so long for something; None where the other side has
        closed.
        """
        ready, _, _ = select.select([self.connection], [], [], max(seconds, 0.0))
        if not ready:
            return []
        got = self.connection.recv(1 << 20)
        if not got:
            return None
        *whole, self.rest = (self.rest + got).split(b"\n")
        return [json.loads(line) for line in whole]

    def ask(self, value: Any, seconds: float = 120.0) -> Any:
        """Send, and wait for one line; raises KarmafunnelError after so many seconds, or where the
        other side has closed.
        """
        self.send(value)
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            found = self.within(left)
            if found is None:
                break
            if found:
                return found[0]
        raise KarmafunnelError(
            "real service", needs=f"an answer of the worker within {seconds:g} s", found="none"
        )


# -- the generator ---------------------------------------------------------------------------------


@contextmanager
def service(told: Worker, console: Console | None = None) -> Iterator[tuple[Lines, dict[str, int]]]:
    """A worker process and a connection to it, with k by stage; this process keeps off its core.
    Both end with the block.
    """
    cores = os.sched_getaffinity(0)
    if not cores - {told.core}:
        raise KarmafunnelError(
            "real service",
            needs=f"a core beside the worker's ({told.core})",
            found=f"{sorted(cores)}",
        )
    environment = os.environ | dict.fromkeys(
        ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "OPENBLAS_NUM_THREADS"), "1"
    )
    line = [
        sys.executable,
        "-m",
        "karmafunnel.benchmarks.validation.real_service",
        told.log,
        "--worker",
        json.dumps(vars(told)),
    ]
    worker = subprocess.Popen(
        line,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=None if console else subprocess.DEVNULL,
        encoding="utf-8",
    )
    os.sched_setaffinity(0, cores - {told.core})
    try:
        assert worker.stdout
        hello = worker.stdout.readline()
        if not hello:
            raise KarmafunnelError(
                "real service", needs="a worker that starts", found=f"exit code {worker.wait()}"
            )
        said = json.loads(hello)
        with socket.create_connection(("127.0.0.1", said["port"]), timeout=60) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield Lines(connection), said["ks"]
    finally:
        os.sched_setaffinity(0, cores)
        try:
            worker.wait(10)  # the connection is closed: it ends
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        if worker.stdout:
            worker.stdout.close()


def open_loop(
    lines: Lines, times_ms: np.ndarray, requests: np.ndarray, seconds: float = 120.0
) -> pl.DataFrame:
    """Sends each request at its planned time, whatever the answers do: no coordinated omission.

    One row a request: planned_ms, sent_ms, done_ms (from the start), latency_ms (done - planned),
    service_ms and n (of its batch), items. Raises KarmafunnelError where answers are missing after
    so many seconds.
    """
    n = len(times_ms)
    sent, done, ms, size = (np.full(n, np.nan) for _ in range(4))
    items: list[list[int]] = [[] for _ in range(n)]
    start = time.perf_counter() + 0.02
    planned, next_one, answered = start + times_ms / 1000, 0, 0
    while answered < n:
        now = time.perf_counter()
        while next_one < n and planned[next_one] <= now:
            lines.send({"id": next_one, "t": planned[next_one], "request": int(requests[next_one])})
            now = sent[next_one] = time.perf_counter()
            next_one += 1
        if now > start + seconds:
            raise KarmafunnelError(
                "real service", needs=f"{n} answers within {seconds:g} s", found=answered
            )
        found = lines.within(min(planned[next_one] - now - SPIN, 1.0) if next_one < n else 1.0)
        now = time.perf_counter()
        if found is None:
            raise KarmafunnelError(
                "real service", needs=f"{n} answers", found=f"a closed connection after {answered}"
            )
        for line in found:
            i = line["id"]
            done[i], ms[i], size[i], items[i] = now, line["ms"], line["n"], line["items"]
        answered += len(found)
    columns = {
        "planned_ms": times_ms,
        "sent_ms": 1000 * (sent - start),
        "done_ms": 1000 * (done - start),
        "service_ms": ms,
        "n": size,
    }
    frame = pl.DataFrame(columns | {"items": items}, schema_overrides={"items": pl.List(pl.Int64)})
    return frame.with_columns((pl.col("done_ms") - pl.col("planned_ms")).alias("latency_ms"))


def passes_of(
    lines: Lines, stages: int, batch: int, load: float, seconds: float, seed: int
) -> pl.DataFrame:
    """The worker's own passes, as at this load: of one batch size where it serves one at a time,
    else swept up to its own.
    """
    sizes = [b for b in (1, 2, 4, 8, 16, 32) if b < batch] + [batch]
    say = {"timing": {"batches": sizes, "seconds": seconds / stages, "load": load}, "seed": seed}
    return pl.DataFrame(lines.ask({"profile": say}), schema=SCHEMA, orient="row")


def overhead_of(lines: Lines, n: int = 200) -> float:
    """What socket and serialisation add to a request, ms: the mean round trip of an empty funnel
    that answers a slate of the usual size.
    """
    trips = []
    for i in range(n + 20):
        begin = time.perf_counter()
        lines.ask({"id": i, "t": begin, "request": EMPTY})
        trips.append(1000 * (time.perf_counter() - begin))
    return float(np.mean(trips[20:]))


def server_of(
    told: Worker, passes: Sequence[pl.DataFrame], overheads: Sequence[float], ks: dict[str, int]
) -> Services:
    """One server that runs the whole funnel with the measured times, overhead included."""
    pooled = pl.concat(
        [frame.with_columns(pl.col(PASS) + i * 1_000_000) for i, frame in enumerate(passes)]
    )
    one = Profile.of(pooled, ks, "real service", seed=told.seed).folded()
    t = one["funnel"].time
    t = replace(t, request_ms=t.request_ms + float(np.mean(overheads)))
    return one.change("funnel", time=t, batch=told.batch, wait_ms=told.wait_ms)


# -- cells -----------------------------------------------------------------------------------------


def measured(
    told: Worker,
    log: Log,
    load: float,
    rate: float | None,
    repetitions: int,
    seconds: float,
    console: Console,
) -> dict[str, Any]:
    """One cell: the worker profiles itself, as at this load, before and after every repetition, and
    these two profiles are its prediction's: a machine that drifts does so in both. The rate is that
    of a utilisation of `load` by the profile before, unless it is given (requests a second).
    """
    with service(told, console) as (lines, ks):
        passes, overheads, found = list[pl.DataFrame](), list[float](), list[dict[str, Any]]()
        began = os.getloadavg()[0]
        rng = np.random.default_rng([told.seed, round(1000 * load), round(told.pause_ms)])
        for i in range(repetitions + 1):
            passes.append(
                passes_of(lines, len(ks), told.batch, load, seconds * PROFILE, told.seed + i)
            )
            overheads.append(overhead_of(lines))
            if i == repetitions:
                break
            now = (
                rate
                or 1000 * load / server_of(told, passes[-1:], overheads, ks)["funnel"].mean_ms()
            )
            n = max(round(now * seconds), 50)
            times = np.cumsum(rng.exponential(1000 / now, n))
            requests = np.resize(rng.permutation(log.requests_in("W3")), n)
            frame = open_loop(lines, times, requests, 3 * seconds + 60)
            late = (frame["sent_ms"] - frame["planned_ms"]).quantile(0.99)
            told_of = {"rate": now, "late": late, "service_ms": frame["service_ms"].mean()}
            found.append(told_of | {"times": times, "measured": frame["latency_ms"].to_list()})
            console.print(
                f"load {load:g}, repetition {i + 1}: p50 {np.median(found[-1]['measured']):.1f} ms",
                style="dim",
            )
        ended = os.getloadavg()[0]
    for i, repetition in enumerate(found):
        one = server_of(told, passes[i : i + 2], overheads, ks)
        trace = Trace(repetition.pop("times"))
        repetition["profile_ms"] = one["funnel"].mean_ms()
        repetition["utilisation"] = one["funnel"].utilisation(repetition["rate"])
        repetition["services"] = one.toml()
        repetition["predicted"] = []
        for seed in range(SEEDS):
            run = simulate(one, trace, len(trace.times_ms), seed=seed)
            repetition["predicted"].append(run.requests["latency_ms"].to_list())
    means = {}
    for name in ("rate", "profile_ms", "utilisation"):
        means[name] = float(np.mean([r[name] for r in found]))
    return means | {
        "load": load,
        "pause_ms": told.pause_ms,
        "overhead_ms": float(np.mean(overheads)),
        "n": sum(len(r["measured"]) for r in found),
        "passes": sum(frame[PASS].n_unique() for frame in passes),
        "repetitions": found,
        "load_average": [began, ended],
    }


def rows_of(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """A cell as rows of the table, one per percentile."""
    rows = []
    for q in Q:
        each = [float(np.percentile(r["measured"], q)) for r in cell["repetitions"]]
        told = [float(np.percentile(p, q)) for r in cell["repetitions"] for p in r["predicted"]]
        value, predicted = float(np.mean(each)), float(np.mean(told))
        rows.append(
            {
                "load": cell["load"],
                "pause_ms": cell["pause_ms"],
                "rate": cell["rate"],
                "utilisation": cell["utilisation"],
                "profile_ms": cell["profile_ms"],
                "service_ms": float(np.mean([r["service_ms"] for r in cell["repetitions"]])),
                "percentile": q,
                "measured_ms": value,
                "least_ms": min(each),
                "most_ms": max(each),
                "predicted_ms": predicted,
                "predicted_low_ms": float(np.percentile(told, 2.5)),
                "predicted_high_ms": float(np.percentile(told, 97.5)),
                "error": predicted / value - 1,
                "inside": min(each) <= predicted <= max(each),
            }
        )
    return rows


def name_of(cell: dict[str, Any]) -> str:
    return f"{cell['load']:g}" + (f", {cell['pause_ms']:g} ms asleep" if cell["pause_ms"] else "")


def markdown(cells: Sequence[dict[str, Any]], below: Sequence[str]) -> str:
    head = [
        "load",
        "requests a second",
        "service, ms: profile",
        "under load",
        "",
        "measured, ms [spread]",
        "predicted, ms [95%]",
        "error",
        "inside",
    ]
    lines: list[list[str | Cell]] = []
    for cell in cells:
        for i, row in enumerate(rows_of(cell)):
            first = [""] * 4
            if i == 0:
                times = f"{row['profile_ms']:.2f}", f"{row['service_ms']:.2f}"
                first = [name_of(cell), f"{row['rate']:.1f}", *times]
            spread = f"[{row['least_ms']:.1f}, {row['most_ms']:.1f}]"
            told = f"[{row['predicted_low_ms']:.1f}, {row['predicted_high_ms']:.1f}]"
            error = f"{row['error']:+.0%}".replace("-", "−")
            real = Cell(f"{row['measured_ms']:.1f}", spread)
            simulated = Cell(f"{row['predicted_ms']:.1f}", told)
            inside = "yes" if row["inside"] else "no"
            lines.append([*first, f"p{row['percentile']}", real, simulated, error, inside])
    table = to_markdown(Table(head, lines))
    notes = "".join(f"- {line}\n" for line in below)
    return f"## A funnel served for real, and its simulation\n\n{table}\n{notes}"


def footnotes(
    cells: Sequence[dict[str, Any]], log: Log, recipe: Recipe, command: str, seed: int, note: str
) -> list[str]:
    late, loads = 0.0, list[float]()
    for cell in cells:
        loads += cell["load_average"]
        late = max(late, *(r["late"] for r in cell["repetitions"]))
    overheads = [f"{cell['overhead_ms']:.2f}" for cell in cells]
    repetitions = ", ".join(str(len(c["repetitions"])) for c in cells)
    n = ", ".join(f"{c['n']:,}" for c in cells)
    told = [
        "Load: utilisation by the profile made just before, on the same core; the prediction "
        "has that and the one just after. Measured: "
        "the percentile's mean over repetitions, [least, most]. Predicted: `simulate` with the "
        "very arrival times, mean and 95% of "
        f"{SEEDS} seeds a repetition. Inside: the prediction lies in the spread of the "
        "measurements.",
        f"Repetitions: {repetitions}; requests in all: {n}. Socket and "
        f"serialisation (an empty funnel): {', '.join(overheads)} ms, in the profile. Requests "
        "were sent "
        f"at most {late:.2f} ms late (p99). Under load: mean time in the funnel, as the "
        "worker's clock tells it.",
    ]
    plain = {c["rate"]: c for c in cells if not c["pause_ms"]}
    for cell in cells:
        if cell["pause_ms"] and (other := plain.get(cell["rate"])):
            moved = []
            for q, a, b in zip(Q, rows_of(cell), rows_of(other), strict=True):
                real = a["measured_ms"] - b["measured_ms"]
                simulated = a["predicted_ms"] - b["predicted_ms"]
                moved.append(f"p{q} by {real:.1f} ms measured, {simulated:.1f} predicted")
            told.append(
                f"A stage that sleeps {cell['pause_ms']:g} ms, at the rate of load "
                f"{other['load']:g}, moves {', '.join(moved)}."
            )
    told += [
        f"`{command}`; log {log.name} ({log.checksum}), recipe {recipe.name}, seed {seed}",
        f"{date.today()}, {processor()}, {os.cpu_count()} cores, commit {commit()}, load "
        f"average {min(loads):.1f} to {max(loads):.1f} "
        f"(the worker itself included). {note}".strip(),
    ]
    return told


def figure(cells: Sequence[dict[str, Any]]) -> plots.Plot:
    """Latency's distribution, one pane a cell: each repetition measured (grey), all of them
    predicted (red).
    """
    domains, height = plots.panes(len(cells), 2, 260, gap=0.09, row_gap=84)
    layout = plots.blank(height, left=60, bottom=55) | {
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.04, "yanchor": "bottom"},
    }
    data: list[plots.Plot] = []
    u = np.linspace(0.002, 0.998, 250)
    for i, cell in enumerate(cells):
        lines = []
        every: list[float] = []
        grey = {"color": plots.faint(plots.ALL, 0.75), "width": 1.3}
        for repetition in cell["repetitions"]:
            lines.append(("measured", repetition["measured"], grey))
            every += chain.from_iterable(repetition["predicted"])
        lines.append(("predicted", every, {"color": plots.COLOURS[4], "width": 2.4, "dash": "dot"}))
        for j, (name, values, look) in enumerate(lines):
            first = i == 0 and j in (0, len(lines) - 1)
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name,
                    "x": np.quantile(values, u).tolist(),
                    "y": u.tolist(),
                    "line": look,
                    "showlegend": first,
                    "legendgroup": name,
                    "hovertemplate": rich("{}: %{y:.1%} within %{x:.1f} ms<extra></extra>", name),
                    **plots.on(i),
                }
            )
        x, y = domains[i]
        layout[plots.axis(i, "x")] = {
            "domain": x,
            "anchor": plots.on(i)["yaxis"],
            "title": {"text": "latency, ms", "standoff": 6},
        }
        ticks = [k * 10**e for e in range(5) for k in (1, 2, 5)]
        layout[plots.axis(i, "x")] |= {
            "type": "log",
            "tickvals": ticks,
            "ticktext": [f"{t:,}" for t in ticks],
        }
        layout[plots.axis(i, "y")] = {
            "domain": y,
            "anchor": plots.on(i)["xaxis"],
            "range": [0, 1.02],
            "tickformat": ".0%",
        }
        layout["annotations"].append(
            plots.heading(f"load {name_of(cell)}: {cell['rate']:.0f} requests a second", domains[i])
        )
    return {"data": data, "layout": layout}


def write(out: Path, cells: Sequence[dict[str, Any]], below: Sequence[str]) -> None:
    rows: list[dict[str, Any]] = []
    for cell in cells:
        rows += rows_of(cell)
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    )
    write_text(out / "real_service.csv", text.getvalue())
    write_text(out / "real_service.md", markdown(cells, below))
    write_curve(figure(cells), out / "real_service.html")


@dataclass(frozen=True)
class Plan:
    """How a funnel is served and loaded.

    seconds: of every repetition, and of the profile before it. batch: most requests that the
    worker takes at once. wait_ms: how long the first of a batch may wait. core: the worker's
    (None: the last one). minutes: no new cell begins later.
    """

    repetitions: int
    seconds: float
    batch: int
    wait_ms: float
    core: int | None
    seed: int
    minutes: float

    def cells(
        self,
        log: Log,
        recipe: Recipe,
        loads: Sequence[float],
        places: tuple[str, str, Path],
        console: Console,
    ) -> list[dict[str, Any]]:
        """Measure every load, then the lowest one with a pause in the funnel; finished cells are
        read from their files. `places`: paths of recipe, log and output folder.
        """
        recipe_path, log_path, out = places
        core = max(os.sched_getaffinity(0)) if self.core is None else self.core
        worker = Worker(recipe_path, log_path, core, self.seed, 0.0, self.batch, self.wait_ms)
        used = recipe.used_embedders
        here = "karmafunnel.benchmarks.validation.real_service"
        code = code_of(*recipe.funnel.stages, *used.values(), by=(here,))
        text = repr(recipe.funnel), {name: repr(value) for name, value in used.items()}
        start, cells = time.perf_counter(), list[dict[str, Any]]()
        rates: dict[float, float] = {}
        for load, pause in [*((load, 0.0) for load in sorted(loads)), (min(loads), PAUSE_MS)]:
            rate = rates.get(load) if pause else None
            how = (load, pause, rate, self.repetitions, self.seconds, self.batch, self.wait_ms)
            key = content_key(code, text, log.checksum, *how, self.seed)
            file = out / "cells" / f"{load:g}-{pause:g}-{key}.json"
            if not file.exists():
                if cells and time.perf_counter() - start > 60 * self.minutes:
                    console.print(
                        f"{self.minutes:g} minutes are over; "
                        f"the same command goes on with load {load:g}"
                    )
                    break
                told = replace(worker, pause_ms=pause)
                cell = measured(told, log, load, rate, self.repetitions, self.seconds, console)
                write_json(file, cell)
            cells.append(read_json(file))
            if not pause:
                rates[load] = cells[-1]["rate"]
        return cells


@click.command(cls=OneLineErrors)
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where cells, table and picture go.")
@click.option("--recipe", default=__file__, help="Serve another funnel than this file's.")
@click.option(
    "--load", "loads", type=float, multiple=True, help="Utilisations; without it 0.3, 0.5 and 0.75."
)
@click.option("--repetitions", default=4, show_default=True)
@click.option(
    "--seconds",
    default=15.0,
    show_default=True,
    help="Of every repetition, and of the profile before each load.",
)
@click.option(
    "--batch", default=1, show_default=True, help="Most requests that the worker takes at once."
)
@click.option(
    "--wait-ms", default=0.0, show_default=True, help="How long the first of a batch may wait."
)
@click.option("--core", type=int, help="The worker's; without it the last one.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--minutes",
    default=9.0,
    show_default=True,
    help="Begin no new cell after so long; the same command goes on later.",
)
@click.option("--note", default="", help="What else ran on the machine, for the table.")
@click.option("--worker", hidden=True)
def main(
    log: Path,
    out: Path | None,
    recipe: str,
    loads: tuple[float, ...],
    note: str,
    worker: str | None,
    **plan: Any,
) -> None:
    """Serve a funnel on one core, load it from another, and compare the latencies with simulated
    ones.
    """
    console = Console(stderr=True)
    if worker is not None:
        work(Worker(**json.loads(worker)), console)
        return
    if out is None:
        raise click.UsageError("needs --out")
    loads = loads or LOADS
    if not all(0 < load < 1 for load in loads):
        raise KarmafunnelError(
            "real service", what="loads", needs="to be above 0 and below 1", found=list(loads)
        )
    opened = Log.open(log)
    found = load_recipe(recipe, opened)
    planned = Plan(**plan)
    cells = planned.cells(opened, found, loads, (recipe, str(log), out), console)
    words = shlex.join(word for word in sys.argv[1:] if word not in ("--note", note))
    command = f"python -m karmafunnel.benchmarks.validation.real_service {words}"
    write(out, cells, footnotes(cells, opened, found, command, planned.seed, note))
    print(read_text(out / "real_service.md"), end="")


if __name__ == "__main__":
    main()
