"""Commands of the funnel under load."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...errors import KarmafunnelError
from ...files import PAGE, PLAN, SERVICES, SIMULATION, atomic_folder, write_json
from ...terminal import progress_bar
from .options import (
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
    from ..replay.options import RunOptions


ARRIVALS = ("poisson", "daily", "flash")


def arrivals_of(
    arrivals: str | None, rate: float | None, log: Path | None, n: int | None
) -> tuple[Any, int]:
    """Arrivals as the flags say, and how many."""
    from ..load.arrivals import Daily, Flash, Poisson, Trace

    if log is not None:
        if arrivals is not None:
            raise KarmafunnelError(
                "queue",
                what="--log plays the log's own times;",
                needs="no --arrivals",
                found=arrivals,
            )
        opened = open_log(log)
        from ..replay.prepare import requests_of

        trace = Trace.of(opened, requests_of(opened, "W3", None), rate)
        return trace, len(trace.ids) if n is None or n > len(trace.ids) else n
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
    help="At random (poisson, the default), a day's curve with bursts, a flash crowd.",
)
@click.option(
    "--run",
    type=folder,
    help="A Run whose paths were replayed: tells what was shown is worth, also at other loads.",
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    help="Measures of what was shown, with --run; HR@10 and GMV-HR@10 without.",
)
@click.option(
    "--beside",
    multiple=True,
    type=folder,
    help="Another SERVICES: the same requests through it, differences paired.",
)
@click.option(
    "--requests",
    "n",
    type=Number("requests"),
    help="How many; 20,000 without it, or all of the log's.",
)
@seed_option
@click.option("--events/--no-events", default=True, help="Keep what happened to each request.")
@click.option(
    "--out",
    "folder_out",
    type=folder,
    required=True,
    help="Where tables, load.html and trace.json go.",
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
    """Send requests through a deployment: latency, utilisation, who was shown what, and (with
    --run) what that is worth.

    SERVICES is a TOML file: `karmafunnel profile` writes one, and a person can (README, "Under
    load"). With --run, quality and money over offered load and what an hour's outage of each stage
    costs. load.html has the plots, trace.json opens in Perfetto.
    """
    from ..load.queueing import Simulation, asked_of, simulate
    from ..load.services import Services
    from ..load.timeline import chrome_trace
    from ..report.load_page import load_page

    claimed(folder_out, SIMULATION, services, *beside, coming["log"], run, force=force)
    if measures and run is None:
        raise KarmafunnelError(
            "queue",
            what=f"--measure {measures[0]} asks what was shown, and",
            needs="--run",
            found="none",
        )
    if beside and run is None:
        raise KarmafunnelError(
            "queue",
            what=f"--beside {beside[0]} compares what was shown, and",
            needs="--run",
            found="none",
        )
    stems = [path.stem for path in (services, *beside)]

    def name(path: Path) -> str:
        return path.stem if stems.count(path.stem) == 1 else str(path)

    policies = {name(path): Services.read(path) for path in (services, *beside)}
    deployed = policies[name(services)]
    arrivals, count = arrivals_of(**coming)
    claimed(folder_out, SIMULATION, wants=asked_of(deployed, arrivals, count, seed), force=force)
    command = typed()
    worth = None
    with progress_bar(err) as bar:
        task = bar.add_task("simulating", total=count)
        if run is not None:  # before anything is written: a path may not have been replayed
            from ..load.credit import quality_under_load

            def step(what: str, i: int, total: int | None) -> None:
                bar.update(task, description=what, completed=i, total=total)

            worth = quality_under_load(
                policies, run, arrivals, count, seed, measures=measures, progress=step
            )
            bar.update(task, description="simulating", completed=0, total=count)

        def write_more(made: Simulation, folder: Path) -> None:
            if worth:
                worth.write(folder)
            if events:
                chrome_trace(made, folder / "trace.json")
            load_page(made, folder / "load.html", worth=worth, command=command)

        simulation = simulate(
            deployed,
            arrivals,
            count,
            seed,
            out=folder_out,
            events=events,
            progress=lambda i: bar.update(task, completed=i),
            says={"command": command},
            also=write_more,
        )
    if as_json:
        print(
            json.dumps(simulation.summary() | ({"quality": worth.rows} if worth else {}), indent=1)
        )
        return
    print_simulation(simulation)
    if worth:
        print_worth(worth)
    err.print(
        f"open {folder_out / 'load.html'} in a browser"
        + f", {folder_out / 'trace.json'} at ui.perfetto.dev" * events
    )


def print_simulation(simulation: Any) -> None:
    """Stages, then the whole."""
    from ..report.table import Table, print_table

    found = simulation.summary()
    heads = {
        "servers": "servers",
        "utilisation": "busy",
        "mean_batch": "batch",
        "mean_wait_ms": "wait ms",
        "p50_ms": "p50",
        "p95_ms": "p95",
        "p99_ms": "p99",
    }
    causes = {
        "shed": "shed",
        "abandoned": "out of patience",
        "late": "late",
        "overdue": "overdue",
        "failed": "crashed",
    }

    def told(x: float | None) -> str:
        return (
            ""
            if x is None
            else f"{x:,}"
            if isinstance(x, int)
            else f"{x:,.2f}"
            if x < 10
            else f"{x:,.1f}"
        )

    rows = []
    for line in simulation.stages.iter_rows(named=True):
        lost = ", ".join(f"{line[key]:,} {word}" for key, word in causes.items() if line[key])
        rows.append([line["stage"], *(told(line[key]) for key in heads), lost])
    title = f"{found['services']}: {found['requests']:,} requests, {found['rate']:,.1f} a second"
    print_table(Table(["stage", *heads.values(), "lost"], rows, title=title), out)
    for name, one in found["latency"].items():
        sure = "" if one["low"] is None else f" [{one['low']:,.1f}, {one['high']:,.1f}]"
        out.print(f"latency {name.removesuffix('_ms')} {one['value']:,.1f}{sure} ms")

    def shares(said: dict[str, float]) -> str:
        return ", ".join(f"{name} {share:.2%}" for name, share in said.items())

    out.print(
        f"goodput {found['goodput']:,.1f} a second; outcomes: {shares(found['outcomes'])}",
        soft_wrap=True,
    )
    out.print(f"paths: {shares(found['paths'])}", soft_wrap=True)
    for name in found["rarely_crashing"]:
        out.print(
            f"{name}: fewer than ten crashes are to be expected in so short a run; ask for more --requests",
            style="bold",
        )
    for name, growth in found["growing"].items():
        load = simulation.services[name].utilisation(found["rate"])
        more = f"{name} is offered {load:.2f} times what its servers can do, and nothing bounds its queue: it grows by {growth:,.1f}"
        more += " requests a second, and the latencies above with --requests"
        out.print(more, style="bold red", soft_wrap=True)


def print_worth(worth: Any) -> None:
    """Quality of what was shown, over offered load, and the price of outages."""
    from ..report.measure_table import valued
    from ..report.table import Cell, Table, number, print_table

    rows: list[list[str | Cell]] = []
    for row in worth.rows:
        change = row["difference"]
        ends = {"low": row["difference low"], "high": row["difference high"]}
        beside = (
            ""
            if change is None
            else valued({"value": change, "difference": change} | ends, signed=True)
        )
        rows.append([row["policy"], row["measure"], valued(row), beside])
    heads = ["policy", "measure", "value", "difference"]
    print_table(Table(heads, rows, 2, title="what was shown is worth"), out)
    names = list(dict.fromkeys(row["measure"] for row in worth.rows))
    rows = []
    for line in worth.curve.iter_rows(named=True):
        rates = [f"{line['rate']:,.1f}", f"{line['goodput']:,.1f}"]
        p99 = f"{line['p99_ms']:,.1f}" if line["p99_ms"] is not None else "n/a"
        shares = [f"{line['full']:.1%}", f"{line['nothing']:.1%}"]
        rows.append([line["policy"], *rates, p99, *shares, *(number(line[name]) for name in names)])
    heads = ["policy", "a second", "goodput", "p99 ms", "full", "nothing", *names]
    print_table(Table(heads, rows, title="over offered load"), out)
    if worth.outages is None:
        return
    rows = []
    for line in worth.outages.iter_rows(named=True):
        lost = f"{line['lost']:,.0f}" if not line["note"] else ""
        lost += f" [{line['low']:,.0f}, {line['high']:,.0f}]" if line["low"] is not None else ""
        rows.append(
            [line["stage"], line["path"], line["note"] or f"{lost} of {line['money']:,.0f}"]
        )
    heads = ["stage", "its requests take", f"lost in an hour, {worth.currency}"]
    print_table(Table(heads, rows, title="an hour's outage", look="prose"), out)


@click.command()
@click.argument("simulation", type=folder)
@click.argument("request", type=Number("request"))
@json_flag
def timeline(simulation: Path, request: int, as_json: bool) -> None:
    """What happened to one REQUEST (its number, in order of arrival) of a SIMULATION that `queue`
    wrote.
    """
    from ..load.queueing import Simulation
    from ..load.timeline import timeline as events_of
    from ..report.table import Table, print_table

    opened = Simulation.open(simulation)
    rows = events_of(opened, request)
    if as_json:
        print(json.dumps(rows.to_dicts(), indent=1))
        return
    line = opened.requests.row(request, named=True)
    title = f"request {request}: {line['outcome']} after {line['latency_ms']:,.2f} ms, path {line['path']}"
    lines = []
    for row in rows.iter_rows(named=True):
        server = "" if row["server"] is None else str(row["server"])
        lines.append(
            [f"{row['since_ms']:,.2f}", row["stage"], row["event"], server, str(row["waiting"])]
        )
    heads = ["ms", "stage", "event", "server", "waiting"]
    print_table(Table(heads, lines, title=title, look="prose"), out)


@click.command(name="plan")
@click.argument("services", type=folder)
@click.option("--rate", type=Number("rate"), required=True, help="Requests a second, at random.")
@click.option(
    "--p99-ms",
    type=Number("p99_ms"),
    required=True,
    help="The target: most that p99 of the latency end to end may be.",
)
@click.option(
    "--lost",
    type=Number("lost"),
    default=0.001,
    help="Share of requests that may be degraded or shown nothing.",
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
    help="Where services.toml, plan.json, what_if.csv and load.html go.",
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

    Everything but the servers is taken from SERVICES: batches, deadlines, fallbacks, what a server
    costs. Prints the servers, the cost of a million requests, what if (other rates, one server less
    or more), and the highest rate that still meets the target.
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


def write_plan(found: Any, folder_out: Path, asked: dict[str, Any]) -> None:
    """The plan with what was `asked`, its deployment, and the page of one simulation of it: all of
    it or nothing.
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


def print_plan(found: Any) -> None:
    """Servers, what they cost, what if, headroom."""
    from ..report.load_page import plan_tables
    from ..report.table import number, print_table

    for table in plan_tables(found):
        print_table(table, out)
    sure = (
        "nothing cheaper does, as far as more servers never hurt"
        if found.proven
        else "not everything cheaper was tried"
    )

    def tell(text: str) -> None:
        out.print(text, soft_wrap=True)

    tell(
        f"worst p99 of {found.seeds} seeds {found.p99_ms:,.1f} ms, degraded or shown nothing {found.degraded:.2%}; {sure}"
    )
    tell(
        f"cost of a million requests {number(found.cost_per_million)}, an hour {number(found.services.cost_per_hour)}"
    )
    tell(
        f"headroom: meets the target up to {found.headroom:,.1f} a second ({found.headroom / found.rate - 1:+.0%})"
    )


@click.command()
@click.argument("recipe")
@log_argument
@click.option(
    "--out",
    "services",
    type=folder,
    required=True,
    help="The TOML file to write; the fit is drawn into an HTML file beside it.",
)
@seed_option
@click.option(
    "--batches", type=Numbers("batch_size"), default="1,2,4,8,16", help="Requests at once."
)
@click.option(
    "--cutoffs",
    type=Cutoffs("k"),
    multiple=True,
    metavar="STAGE=K,K",
    help="What a stage passes on, such as recall=100,400; without it 1/4, 1/2 and all of its k.",
)
@click.option("--seconds", type=Number("seconds"), default=15.0, help="Most time a stage.")
@click.option(
    "--load",
    type=Number("load"),
    default=1.0,
    help="Time the stages as they are at this utilisation: 1 is one pass after another.",
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
    help="Add a deadline, batches, waiting rooms and fallbacks to start from.",
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
            f"profile: --out {services} needs to be a TOML file; the page goes into an .html file beside it"
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
        print(
            json.dumps(
                {
                    "services": tomllib.loads(found.services.toml()),
                    "fits": found.fits,
                    "cells": found.cells.to_dicts(),
                },
                indent=1,
            )
        )
    else:
        print_fits(found, out)
    err.print(f"{services}; the fit is drawn in {html}", soft_wrap=True)
