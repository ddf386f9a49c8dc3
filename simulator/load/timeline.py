"""Events of single simulated requests: a table for one, a Chrome trace for many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from ...errors import KarmafunnelError
from ...files import write_text
from .queueing import Simulation


def events_of(simulation: Simulation, which: pl.Expr) -> pl.DataFrame:
    """The events that `which` selects; raises KarmafunnelError where events were not kept."""
    if simulation.kept is None:
        raise KarmafunnelError(
            "timeline",
            needs="the events of the simulation",
            found="none, they were not kept (--no-events)",
        )
    return simulation.kept.filter(which).collect(engine="streaming")


def events_of_request(simulation: Simulation, request: int) -> pl.DataFrame:
    """The events of one request in order; raises KarmafunnelError where events were not kept, or
    for an unknown request.
    """
    if simulation.kept is not None and not 0 <= request < simulation.requests.height:
        raise KarmafunnelError(
            "timeline",
            needs=f"a request from 0 to {simulation.requests.height - 1}",
            found=request,
        )
    return events_of(simulation, pl.col("request") == request)


def timeline(simulation: Simulation, request: int) -> pl.DataFrame:
    """The events of one request in order, with times relative to its arrival.

    Returns:
        Columns since_ms, stage ("" for the whole request), event, server (null where no server is
        involved), waiting.

    Raises:
        KarmafunnelError: where events were not kept, and for an unknown request.
    """
    rows = events_of_request(simulation, request)
    return rows.select(
        (pl.col("t_ms") - rows["t_ms"][0]).alias("since_ms"),
        "stage",
        "event",
        pl.when(pl.col("server") >= 0).then("server").alias("server"),
        "waiting",
    )


def chrome_trace(simulation: Simulation, path: Path, most: int = 1000) -> Path:
    """Write the first `most` requests as Trace Event JSON, for Perfetto and chrome://tracing.

    A process is a stage, a thread a server; waiting is shown as asynchronous slices. Times are in
    microseconds. Format: "Trace Event Format" of Chromium.
    """
    number = {service.name: i + 1 for i, service in enumerate(simulation.services.stages)}
    made: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
        for name, pid in {"requests": 0, **number}.items()
    ]
    made += [
        {
            "ph": "M",
            "name": "thread_name",
            "pid": number[s.name],
            "tid": i,
            "args": {"name": f"server {i}"},
        }
        for s in simulation.services.stages
        for i in range(s.servers if s.online else 0)
    ]
    # keyed by server too: a retry may begin while a server still works on the timed-out attempt
    began: dict[tuple[int, str, int], float] = {}
    working: set[tuple[str, int, float]] = set()
    waits: set[tuple[int, str]] = set()
    for t, request, stage, event, server, _ in events_of(
        simulation, pl.col("request").is_between(0, most - 1)
    ).iter_rows():
        us, pid = round(t * 1000, 3), number.get(stage, 0)
        slice_ = {"cat": "request", "id": request, "pid": pid, "tid": 0, "ts": us}
        key = (request, stage)
        if not stage:
            made.append(
                slice_
                | {
                    "ph": "b" if event == "arrive" else "e",
                    "name": f"request {request}",
                    "args": {"event": event},
                }
            )
            continue
        if event in ("come", "again"):
            waits.add(key)
            made.append(slice_ | {"ph": "b", "name": "waits"})
        elif key in waits:
            waits.discard(key)
            made.append(slice_ | {"ph": "e", "name": "waits"})
        if event == "start":
            began[request, stage, server] = us
        elif event in ("end", "broken", "vain"):
            at = began.pop((request, stage, server))
            if (stage, server, at) not in working:  # a batch is one slice
                working.add((stage, server, at))
                work = {
                    "ph": "X",
                    "name": stage,
                    "cat": event,
                    "pid": pid,
                    "tid": server,
                    "ts": at,
                    "dur": round(us - at, 3),
                }
                made.append(work | {"args": {"first": request}})
        elif event not in ("come", "again"):
            made.append(
                {
                    "ph": "i",
                    "s": "p",
                    "name": event,
                    "pid": pid,
                    "tid": 0,
                    "ts": us,
                    "args": {"request": request},
                }
            )
    return write_text(path, json.dumps({"traceEvents": made, "displayTimeUnit": "ms"}) + "\n")
