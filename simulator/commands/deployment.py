"""Commands of the funnel under load."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...errors import KarmafunnelError
from ...files import PAGE, PLAN, SERVICES, SIMULATION, atomic_folder, write_json
from ...terminal import progress_bar
from .figures import print_lowered
from .parameters import (
    Cutoffs,
    Number,
    Numbers,
    claimed,
    err,
    folder,
    force_flag,
    json_flag,
    log_argument,
    no_cache_flag,
    open_log,
    out,
    seed_option,
    takes_run_options,
    typed,
    window_option,
)

if TYPE_CHECKING:
    from ..load.capacity import Plan
    from ..load.quality import LoadQuality
    from ..load.queueing import Simulation
    from ..replay.options import RunOptions

ARRIVALS = ("poisson", "daily", "flash")


def arrivals_of(
    arrivals: str | None, rate: float | None, log: Path | None, n: int | None
) -> tuple[Any, int]:
    """The arrivals that the flags ask for, and the number of requests."""
    from ..load.arrivals import Daily, Flash, Poisson, Trace
    from ..replay.prepare import requests_of

    if log is not None:
        if arrivals is not None:
            raise KarmafunnelError(
                "queue",
                what="--log",
                needs="no --arrivals (requests come at the log's own times)",
                found=arrivals,
            )
        opened = open_log(log)
        trace = Trace.of(opened, requests_of(opened, "W3", None), rate)
        most = len(trace.ids)
        return trace, most if n is None else min(n, most)
    if rate is None:
        raise KarmafunnelError(
            "queue",
            needs="--rate (requests a second) or --log (the log's own times)",
            found="neither",
        )
    made = {"poisson": Poisson, "daily": Daily, "flash": Flash}[arrivals or "poisson"]
    return made(rate), 20_000 if n is None else n


@click.command()
@click.argument("services", type=folder)
@click.option(
    "--rate",
    type=Number("rate"),
    help="Requests a second; with --log, its time is scaled to this rate.",
)
@click.option("--log", type=folder, help="Requests arrive as those of this log's last window did.")
@click.option(
    "--arrivals",
    type=click.Choice(ARRIVALS),
    help="poisson: at random (default); daily: a day's curve with bursts; flash: a flash crowd.",
)
@click.option(
    "--run",
    type=folder,
    help="A Run replayed with --paths: adds the quality and money of what is shown, by load.",
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    help="Measures of what is shown, with --run; default: HR@10 and, with prices, GMV-HR@10.",
)
@click.option(
    "--beside",
    multiple=True,
    type=folder,
    help="Another SERVICES file, compared on the same requests (with --run).",
)
@click.option(
    "--requests",
    "n",
    type=Number("requests"),
    help="How many requests; default: 20,000, or all of the log's last window.",
)
@seed_option
@click.option("--events/--no-events", default=True, help="Keep the events of each request.")
@click.option(
    "--out",
    "folder_out",
    type=folder,
    required=True,
    help="The folder for tables, load.html and trace.json.",
)
@force_flag
@json_flag
def queue(
    services: Path,
    run: Path | None,
    measures: tuple[str, ...],
    beside: tuple[Path, ...],
    seed: int,
    events: bool,
    folder_out: Path,
    force: bool,
    as_json: bool,
    **coming: Any,
) -> None:
    """Send requests through a deployment: latency, utilisation, what was shown, and (with --run)
    its quality.

    SERVICES is a TOML file: `karmafunnel profile` writes one, and it can be written by hand. With
    --run: quality and money over offered load, and what an hour's outage of each stage costs.
    load.html has the plots, trace.json opens in Perfetto.
    """
    from ..load.queueing import Output, asked_of, simulate
    from ..load.services import Services
    from ..load.timeline import chrome_trace
    from ..report.load_page import load_page

    claimed(folder_out, SIMULATION, services, *beside, coming["log"], run, force=force)
    for option, given in (("--measure", measures), ("--beside", beside)):
        if given and run is None:
            raise KarmafunnelError(
                "queue", what=f"{option} {given[0]}", needs="--run", found="none"
            )
    files = (services, *beside)
    stems = [path.stem for path in files]
    policies = {}
    for path, stem in zip(files, stems, strict=True):
        policies[stem if stems.count(stem) == 1 else str(path)] = Services.read(path)
    deployed = next(iter(policies.values()))
    arrivals, count = arrivals_of(**coming)
    claimed(folder_out, SIMULATION, wants=asked_of(deployed, arrivals, count, seed), force=force)
    command = typed()
    quality = None
    with progress_bar(err) as bar:
        task = bar.add_task("simulating", total=count)
        if run is not None:  # before anything is written: a path may not have been replayed
            from ..load.quality import quality_under_load

            def step(what: str, i: int, total: int | None) -> None:
                bar.update(task, description=what, completed=i, total=total)

            quality = quality_under_load(
                policies, run, arrivals, count, seed, measures=measures, progress=step
            )
            bar.update(task, description="simulating", completed=0, total=count)

        def add(made: Simulation, folder: Path) -> None:
            if quality:
                quality.write(folder)
            if events:
                chrome_trace(made, folder / "trace.json")
            load_page(made, folder / "load.html", quality=quality, command=command)

        simulation = simulate(
            deployed,
            arrivals,
            count,
            seed,
            events=events,
            out=Output(folder_out, {"command": command}, add),
            progress=lambda i: bar.update(task, completed=i),
        )
    if as_json:
        more = {"quality": quality.rows} if quality else {}
        print(json.dumps(simulation.summary() | more, indent=1))
        return
    print_simulation(simulation, arrivals.rate)
    if quality is not None and run is not None:
        print_load_quality(quality, {name: one.deadline_ms for name, one in policies.items()})
        print_lowered_of(run, measures)
    trace = f", {folder_out / 'trace.json'} at ui.perfetto.dev" if events else ""
    err.print(f"open {folder_out / 'load.html'} in a browser{trace}")


STAGE_HEADS = {
    "servers": "servers",
    "utilisation": "busy",
    "mean_batch": "batch",
    "mean_wait_ms": "wait ms",
    "p50_ms": "p50",
    "p95_ms": "p95",
    "p99_ms": "p99",
}
CAUSES = {
    "shed": "shed",
    "abandoned": "out of patience",
    "late": "late",
    "overdue": "overdue",
    "failed": "crashed",
}


def print_simulation(simulation: Simulation, asked: float) -> None:
    """The stages, then latency, rates, outcomes and paths.

    Args:
        asked: requests a second that were asked for; random arrivals come near to it.
    """
    from ..report.table import Table, print_table

    found = simulation.summary()
    rows = []
    for line in simulation.stages.iter_rows(named=True):
        row = [line["stage"]]
        for key in STAGE_HEADS:
            row.append(_rounded(line[key]))
        lost = [f"{line[key]:,} {word}" for key, word in CAUSES.items() if line[key]]
        rows.append([*row, ", ".join(lost)])
    title = f"{found['services']}: {found['requests']:,} requests"
    print_table(Table(["stage", *STAGE_HEADS.values(), "lost"], rows, title=title), out)
    for name, one in found["latency"].items():
        interval = "" if one["low"] is None else f" [{one['low']:,.1f}, {one['high']:,.1f}]"
        deadline = simulation.services.deadline_ms
        ends = ", which is the deadline" if at_deadline(one["value"], deadline) else ""
        out.print(f"latency {name.removesuffix('_ms')} {one['value']:,.1f}{interval} ms{ends}")
    out.print(
        f"requests a second: {asked:,.1f} asked for, {found['rate']:,.1f} offered (arrivals are "
        f"random), {found['goodput']:,.1f} served (goodput)"
    )
    out.print(f"outcomes: {_shares(found['outcomes'])}")
    out.print(f"paths: {_shares(found['paths'])}")
    for name in found["rarely_crashing"]:
        few = f"{name}: fewer than 10 crashes are expected in a run this short; raise --requests"
        out.print(few, style="bold")
    for name, growth in found["growing"].items():
        load = simulation.services[name].utilisation(found["rate"])
        overload = (
            f"{name}: offered load is {load:.2f} of capacity and the queue is unbounded; it grows "
            f"by {growth:,.1f} requests a second, so the latencies above grow with --requests"
        )
        out.print(overload, style="bold red")


def at_deadline(ms: float | None, deadline_ms: float | None) -> bool:
    """Whether a latency is the deadline: it cuts off what would have taken longer."""
    return ms is not None and deadline_ms is not None and ms >= 0.995 * deadline_ms


def _rounded(x: float | None) -> str:
    if x is None:
        return ""
    if isinstance(x, int):
        return f"{x:,}"
    return f"{x:,.2f}" if x < 10 else f"{x:,.1f}"


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.2%}" for name, share in shares.items())


def print_load_quality(quality: LoadQuality, deadlines: Mapping[str, float | None]) -> None:
    """The quality of what was shown, also over offered load, and the cost of outages.

    Args:
        deadlines: end to end, by policy, in ms.
    """
    from ..report.measure_table import valued
    from ..report.table import Cell, Table, cell_of, number, print_table

    rows: list[list[str | Cell]] = []
    for row in quality.rows:
        gain: str | Cell = ""
        if (change := row["difference"]) is not None:
            ends = {"low": row["difference low"], "high": row["difference high"]}
            gain = valued({"value": change, "difference": change} | ends, signed=True)
        rows.append([row["policy"], row["measure"], valued(row), gain])
    heads = ["policy", "measure", "value", "difference"]
    out.print()
    print_table(Table(heads, rows, 2, title="quality of what was shown", look="measures"), out)
    names = list(dict.fromkeys(row["measure"] for row in quality.rows))
    rows = []
    cells: list[str | Cell]
    for line in quality.curve.iter_rows(named=True):
        p99 = f"{line['p99_ms']:,.1f}" if line["p99_ms"] is not None else "n/a"
        cut = at_deadline(line["p99_ms"], deadlines[line["policy"]])
        cells = [line["policy"], f"{line['rate']:,.1f}", f"{line['goodput']:,.1f}"]
        cells.append(Cell(p99, notes=(1,) if cut else ()))
        cells += [f"{line['full']:.1%}", f"{line['nothing']:.1%}"]
        rows.append([*cells, *(number(line[name]) for name in names)])
    heads = ["policy", "offered", "goodput", "p99 ms", "full", "nothing", *names]
    ended = any(cell_of(row[3]).notes for row in rows)
    note = "the deadline: a request that would take longer is degraded or shown nothing"
    notes = [note] if ended else []
    title = "over offered load, requests a second"
    out.print()
    print_table(Table(heads, rows, title=title, notes=notes, look="measures"), out)
    if quality.outages is None:
        return
    rows = []
    for line in quality.outages.iter_rows(named=True):
        lost = line["note"]
        if not lost:
            lost = f"{line['lost']:,.0f}"
            if line["low"] is not None:
                lost += f" [{line['low']:,.0f}, {line['high']:,.0f}]"
            lost = f"{lost} of {line['money']:,.0f}".replace("-", "−")
            if line["high"] is not None and line["high"] < 0:
                lost += ": more is earned without the stage"
        rows.append([line["stage"], line["path"], lost])
    out.print()
    heads = ["stage", "its requests take", f"lost in an hour, {quality.currency}"]
    print_table(Table(heads, rows, title="an hour's outage", look="prose"), out)


def print_lowered_of(run: Path, measures: Sequence[str]) -> None:
    """Which stages of a Run lower a measure of the one before; default: HR@10."""
    from ..measure.compare import added
    from ..measure.run import Run

    print_lowered(added(Run.open(run), measures or ["HR@10"]))


@click.command()
@click.argument("simulation", type=folder)
@click.argument("request", type=Number("request"))
@json_flag
def timeline(simulation: Path, request: int, as_json: bool) -> None:
    """The events of one REQUEST (its number in order of arrival) of a SIMULATION by `queue`."""
    from ..load.queueing import Simulation
    from ..load.timeline import timeline as events_of
    from ..report.table import Table, print_table

    opened = Simulation.open(simulation)
    rows = events_of(opened, request)
    if as_json:
        print(json.dumps(rows.to_dicts(), indent=1))
        return
    line = opened.requests.row(request, named=True)
    took = f"{line['outcome']} after {line['latency_ms']:,.2f} ms"
    title = f"request {request}: {took}, path {line['path']}"
    lines = []
    for row in rows.iter_rows(named=True):
        since, server = f"{row['since_ms']:,.2f}", "" if row["server"] is None else row["server"]
        lines.append([since, row["stage"], row["event"], str(server), str(row["waiting"])])
    heads = ["ms", "stage", "event", "server", "waiting"]
    print_table(Table(heads, lines, title=title, look="prose"), out)


@click.command(name="plan")
@click.argument("services", type=folder)
@click.option("--rate", type=Number("rate"), required=True, help="Requests a second, at random.")
@click.option(
    "--p99-ms",
    type=Number("p99_ms"),
    required=True,
    help="The target: the highest p99 of the latency end to end, ms.",
)
@click.option(
    "--lost",
    type=Number("lost"),
    default=0.001,
    help="The largest share of requests that may be degraded or shown nothing.",
)
@click.option(
    "--requests",
    "n",
    type=Number("planned_requests"),
    default=20_000,
    help="Requests of each simulation.",
)
@seed_option
@click.option(
    "--out",
    "folder_out",
    type=folder,
    help="The folder for services.toml, plan.json, what_if.csv and load.html.",
)
@force_flag
@json_flag
def plan_command(
    services: Path,
    rate: float,
    p99_ms: float,
    lost: float,
    n: int,
    seed: int,
    folder_out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Find the cheapest servers of each stage that meet a target of p99 latency.

    All settings but the number of servers are those of SERVICES: batches, deadlines, fallbacks,
    the cost of a server. Prints the servers, the cost of a million requests, a what-if table (other
    rates, one server less or more), and the highest rate that still meets the target.
    """
    from ..load.capacity import plan as make_plan
    from ..load.services import Services

    if folder_out is not None:
        claimed(folder_out, PLAN, services, force=force)
    given = Services.read(services)
    asked = {
        "deployment": given.toml(),
        "rate": rate,
        "target_ms": p99_ms,
        "lost": lost,
        "n": n,
        "seed": seed,
    }
    if folder_out is not None:
        claimed(folder_out, PLAN, wants=asked, force=force)
    with progress_bar(err) as bar:
        task = bar.add_task("simulating", total=None)
        found = make_plan(
            given,
            rate,
            p99_ms,
            lost=lost,
            n=n,
            seed=seed,
            progress=lambda what, i: bar.update(task, description=what, completed=i),
        )
        if folder_out is not None:
            bar.update(task, description="the page of the plan")
            write_plan(found, folder_out, asked)
    if as_json:
        print(json.dumps(found.summary(), indent=1))
        return
    print_plan(found)
    if folder_out is not None:
        err.print(
            f"open {folder_out / 'load.html'} in a browser; deploy {folder_out / 'services.toml'}"
        )


def write_plan(found: Plan, folder_out: Path, asked: dict[str, Any]) -> None:
    """Write the plan with what was `asked`, its deployment, and the page of one simulation of it;
    the folder appears whole or not at all.
    """
    from ..load.arrivals import Poisson
    from ..load.queueing import simulate
    from ..report.load_page import load_page

    simulation = simulate(found.services, Poisson(found.rate), found.n, found.seed, events=True)
    with atomic_folder(folder_out, sealed=True) as temporary:
        found.services.write(temporary / "services.toml")
        found.what_if.write_csv(temporary / "what_if.csv")
        write_json(temporary / "plan.json", found.summary() | asked)
        load_page(simulation, temporary / "load.html", plan=found, command=typed())


def print_plan(found: Plan) -> None:
    """The servers and their cost, the what-if table, the headroom."""
    from ..report.load_page import PROOF, plan_tables
    from ..report.table import number, print_table

    for table in plan_tables(found):
        print_table(table, out)
        out.print()
    million, hour = number(found.cost_per_million), number(found.services.cost_per_hour)
    spare = found.headroom / found.rate - 1
    lines = [
        f"worst p99 of {found.seeds} seeds {found.p99_ms:,.1f} ms, degraded or shown nothing "
        f"{found.degraded:.2%}; {PROOF[found.proven]}",
        f"cost of a million requests {million}, an hour {hour}, in the unit of the services' "
        "cost_per_hour (1 a server unless they say otherwise)",
        f"headroom: meets the target up to {found.headroom:,.1f} a second ({spare:+.0%})",
    ]
    for line in lines:
        out.print(line)


@click.command()
@click.argument("recipe")
@log_argument
@click.option(
    "--out",
    "services",
    type=folder,
    required=True,
    help="The TOML file to write; the fit is plotted in an HTML file next to it.",
)
@seed_option
@click.option(
    "--batches",
    type=Numbers("batch_size"),
    default="1,2,4,8,16",
    help="Batch sizes: requests at once.",
)
@click.option(
    "--cutoffs",
    type=Cutoffs("k"),
    multiple=True,
    metavar="STAGE=K,K",
    help="Cutoffs of a stage's output, such as recall=100,400; default: 1/4, 1/2 and all of its k.",
)
@click.option("--seconds", type=Number("seconds"), default=15.0, help="Time for each stage, s.")
@click.option(
    "--load",
    type=Number("load"),
    default=1.0,
    help="Utilisation at which stages are timed; at 1 one pass follows another.",
)
@click.option(
    "--threads",
    type=Number("threads"),
    default=1,
    help="Threads of torch, LightGBM and faiss while stages are timed.",
)
@window_option
@click.option(
    "--policies",
    is_flag=True,
    help="Also write a deadline, batches, queue limits and fallbacks to start from.",
)
@no_cache_flag
@force_flag
@json_flag
@takes_run_options
def profile(
    recipe: str,
    log: Path,
    services: Path,
    options: RunOptions,
    policies: bool,
    as_json: bool,
    cutoffs: tuple[tuple[str, list[int]], ...],
    **timing: Any,
) -> None:
    """Time each stage of RECIPE's funnel on LOG over batch sizes and cutoffs, and fit its service
    time for `queue` and `plan`.

    The services file has one server a stage and, without --policies, no policies; edit it by hand.
    """
    from ..load.profile import Timing
    from ..load.profile import profile as run_profile
    from ..load.services import with_policies
    from ..replay.provenance import processor
    from ..replay.recipe import load_recipe
    from ..report.profile_page import print_fits, profile_page

    html = services.parent / f"{services.stem}.html"
    if html == services:
        raise KarmafunnelError(
            "profile",
            what="--out",
            needs="a TOML file",
            found=services,
            hint="the page goes into an .html file next to it",
        )
    claimed(services, SERVICES, log, recipe, force=options.force)
    claimed(html, PAGE, log, recipe, force=options.force)
    opened = open_log(log)
    note = f"{options.command}; {date.today()}, {processor()}, {os.cpu_count()} cores"
    asked = Timing(**timing, cutoffs=dict(cutoffs) or None)
    found = run_profile(load_recipe(recipe, opened), opened, asked, options, note=note)
    if policies:
        found = replace(found, services=with_policies(found.services))
    found.write(services)
    profile_page(found, html)
    if as_json:
        fitted = {"services": tomllib.loads(found.services.toml()), "fits": found.fits}
        fitted["doubts"] = found.doubts
        print(json.dumps(fitted | {"cells": found.cells.to_dicts()}, indent=1))
    else:
        print_fits(found, out)
    err.print(f"{services}; the fit is plotted in {html}", soft_wrap=True)
