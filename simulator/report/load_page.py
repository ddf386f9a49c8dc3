"""The page of a simulation: how long, how full, what was shown and what that is worth, as plotly
figures in one HTML file.

Figures are plain dicts made from the frames of `Simulation` and `Worth`; quantiles of latencies are
read off, nothing else is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ... import __version__
from ...errors import KarmafunnelError
from ..load.capacity import Plan
from ..load.credit import Worth
from ..load.queueing import Simulation
from ..load.timeline import events_of_request
from ..replay.paths import FULL, NOTHING
from ..replay.provenance import commit
from . import plots
from .page import (
    Absent,
    Block,
    Cards,
    Details,
    Facts,
    Figure,
    Heading,
    Page,
    Plot,
    Pre,
    Section,
    Text,
    Warned,
    Words,
    rich,
    write_page,
)
from .plots import amount, axis, colour_of, faint, heading, on, panes, percent
from .table import Cell, Table, number

WHOLE = "end to end"
QUANTILES = np.unique(np.concatenate([np.linspace(0, 1, 101), 1 - np.geomspace(0.01, 0.0005, 20)]))
SHOWN = {"served": plots.KEPT, "waits": plots.NOT_ELIGIBLE}
SHORTEST = 1e-3  # ms, on a log axis


def online(simulation: Simulation) -> list[str]:
    """Stages that a request waits for, in order."""
    return [stage.name for stage in simulation.services.stages if stage.online]


def keys(simulation: Simulation) -> dict[str, str]:
    """Colours of the stages and of the whole, for a legend."""
    return colour_of(online(simulation)) | {WHOLE: plots.ALL}


# -- latency, queues, servers ----------------------------------------------------------------------


def latency_cdf(simulation: Simulation) -> Plot:
    """Share of requests that were through within so many ms (log), for each stage and end to end;
    the deadline as a dotted line.

    A stage's time is from coming to it to leaving it; end to end is told of requests that were
    shown something. Without the warm-up.
    """
    steady, data, ends = simulation.steady, [], []
    shown = steady.filter(pl.col("outcome") == "served")["latency_ms"]
    times = {name: steady[f"{name}.ms"].drop_nulls() for name in online(simulation)} | {
        WHOLE: shown
    }
    for name, colour in keys(simulation).items():
        if times[name].is_empty():
            continue
        at = np.maximum(np.quantile(times[name].to_numpy(), QUANTILES), SHORTEST)
        ends += [np.quantile(at, 0.01), at[-1]]
        line = {"color": colour, "width": 3 if name == WHOLE else 2}
        hover = rich("<b>{}</b><br>%{y:.2%} within %{x:,.4g} ms<extra></extra>", name)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": at.tolist(),
                "y": QUANTILES.tolist(),
                "line": line,
                "hovertemplate": hover,
            }
        )
    layout = plots.blank(330, left=60, bottom=50)
    layout["xaxis"] = {"type": "log", "title": {"text": "ms", "standoff": 6}, "dtick": "D2"}
    if ends:  # what was there at once is no reason for empty decades
        low = max(min(ends), max(ends) / 1e4) / 1.2
        layout["xaxis"]["range"] = [
            math.log10(low),
            math.log10(1.2 * max(*ends, simulation.services.deadline_ms or 0)),
        ]
    layout["yaxis"] = {
        "title": {"text": "share of requests"},
        "tickformat": ".0%",
        "range": [0, 1.02],
    }
    if simulation.services.deadline_ms is not None:
        layout["shapes"] = [upright(simulation.services.deadline_ms)]
    return {"data": data, "layout": layout}


def upright(x: float) -> Plot:
    """A dotted line from bottom to top."""
    dotted = {"color": plots.QUIET, "width": 1.5, "dash": "dot"}
    return {"type": "line", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": dotted}


def waiting_over_time(simulation: Simulation) -> Plot:
    """Requests that wait at each stage over the seconds of the run."""
    data = []
    for name, colour in colour_of(online(simulation)).items():
        line = simulation.over_time.filter(pl.col("stage") == name)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": (line["t_ms"] / 1000).to_list(),
                "y": line["waiting"].to_list(),
                "line": {"color": colour, "width": 1.6, "shape": "hv"},
                "hovertemplate": rich(
                    "<b>{}</b><br>%{y:,} wait at %{x:,.2f} s<extra></extra>", name
                ),
            }
        )
    layout = plots.blank(260, left=60, bottom=50)
    layout["xaxis"] = {"title": {"text": "seconds", "standoff": 6}}
    layout["yaxis"] = {"title": {"text": "requests waiting"}, "rangemode": "tozero"}
    return {"data": data, "layout": layout}


def busy_servers(simulation: Simulation) -> Plot:
    """How busy the servers of each stage were; a tick where full batches alone would have kept
    them.
    """
    lines = simulation.stages.filter(pl.col("utilisation").is_not_null())
    names, used = lines["stage"].to_list(), lines["utilisation"].to_list()
    offered = [simulation.services[name].utilisation(simulation.rate) for name in names]
    labels = [
        f"{name} ({servers:,})" for name, servers in zip(names, lines["servers"], strict=True)
    ]
    colours = colour_of(online(simulation))
    data: list[Plot] = [
        {
            "type": "bar",
            "orientation": "h",
            "y": labels,
            "x": used,
            "marker": {"color": [colours[name] for name in names]},
            "text": [percent(x) for x in used],
            "textposition": "inside",
            "insidetextanchor": "start",
            "constraintext": "none",
            "textangle": 0,
            "hovertemplate": rich("<b>%{y}</b><br>busy %{x:.1%} of the time<extra></extra>"),
        },
        {
            "type": "scatter",
            "mode": "markers",
            "y": labels,
            "x": offered,
            "marker": {
                "symbol": "line-ns-open",
                "size": 20,
                "color": plots.QUIET,
                "line": {"width": 2},
            },
            "hovertemplate": rich("<b>%{y}</b><br>offered %{x:.1%}, batches full<extra></extra>"),
        },
    ]
    layout = plots.blank(38 * len(names), left=150) | {"bargap": 0.35}
    layout["xaxis"] = {"range": [0, max(1.08, *(1.05 * x for x in offered))], "tickformat": ".0%"}
    layout["yaxis"] = {"autorange": "reversed", "showgrid": False, "automargin": True}
    return {"data": data, "layout": layout}


# -- quality and money -----------------------------------------------------------------------------


def load_curves(
    curve: pl.DataFrame, measures: Sequence[str], currency: str, load: float | None = None
) -> Plot:
    """Over offered load, one line a policy: each measure with its interval, money, goodput, p99 and
    the share shown nothing.

    `curve`: as `credit.load_curve` makes it; `load`: the rate asked for, as a dotted line. Raises
    KarmafunnelError for missing columns.
    """
    titles = {name: name for name in measures}
    if "money an hour" in curve.columns:
        titles["money an hour"] = f"money an hour, {currency}"
    titles |= {
        "goodput": "goodput, requests a second",
        "p99_ms": "p99 latency, ms (log)",
        NOTHING: "share shown nothing",
    }
    if missing := [name for name in ("policy", "rate", FULL, *titles) if name not in curve.columns]:
        raise KarmafunnelError("load curves", needs=f"the columns {missing}", found=curve.columns)
    domains, height = panes(len(titles), 2, 220, gap=0.1, row_gap=80)
    colours = colour_of(curve["policy"].unique(maintain_order=True).to_list())
    layout = plots.blank(height, left=60, bottom=50) | {"shapes": []}
    data: list[Plot] = []
    for i, (name, title) in enumerate(titles.items()):
        for policy, colour in colours.items():
            line = curve.filter((pl.col("policy") == policy) & pl.col(name).is_not_null()).sort(
                "rate"
            )
            rates, values = line["rate"].to_list(), line[name].to_list()
            common = {"type": "scatter", "x": rates, **on(i)}
            low, high = (
                line[f"{name} {end}"].to_list() if f"{name} {end}" in line.columns else [None]
                for end in ("low", "high")
            )
            texts = [number(value) for value in values]
            if None not in [*low, *high] and rates:
                band = {
                    "x": [*rates, *rates[::-1]],
                    "y": [*high, *low[::-1]],
                    "mode": "lines",
                    "line": {"width": 0},
                }
                data.append(
                    common
                    | band
                    | {"fill": "toself", "fillcolor": faint(colour, 0.15), "hoverinfo": "skip"}
                )
                texts = [
                    f"{number(v)} [{number(a)}, {number(b)}]"
                    for v, a, b in zip(values, low, high, strict=True)
                ]
            data.append(
                common
                | {
                    "y": values,
                    "mode": "lines+markers",
                    "line": {"color": colour, "width": 2.2},
                    "marker": {"size": 6},
                    "text": texts,
                    "hovertemplate": rich(
                        "<b>{}</b>, %{x:,.4g} a second<br>%{text}<extra></extra>", policy
                    ),
                }
            )
        if name == "goodput":  # all that is offered
            offered = sorted(set(curve["rate"].to_list()))
            dotted = {
                "mode": "lines",
                "line": {"color": plots.QUIET, "dash": "dot", "width": 1.5},
                "hoverinfo": "skip",
            }
            data.append({"type": "scatter", "x": offered, "y": offered, **dotted, **on(i)})
        x, y = domains[i]
        layout[axis(i, "x")] = {"domain": x, "anchor": on(i)["yaxis"], "rangemode": "tozero"}
        layout[axis(i, "x")] |= {"title": {"text": "requests offered a second", "standoff": 6}}
        layout[axis(i, "y")] = {"domain": y, "anchor": on(i)["xaxis"], "rangemode": "tozero"}
        layout[axis(i, "y")] |= (
            {"type": "log"}
            if name == "p99_ms"
            else {"tickformat": ".0%"}
            if name == NOTHING
            else {}
        )
        layout["annotations"].append(heading(title, domains[i]))
        if load is not None:
            layout["shapes"].append(
                upright(load) | {"xref": on(i)["xaxis"], "yref": f"{on(i)['yaxis']} domain"}
            )
    return {"data": data, "layout": layout}


def money_lost(outages: pl.DataFrame, currency: str) -> Plot:
    """Money that an outage of each stage loses, with its interval. `outages`: as `credit.outages`
    makes them; stages without a Run of their path are left out.
    """
    known = outages.filter(pl.col("lost").is_not_null())
    colours = colour_of(outages["stage"].to_list())
    # a stage's path says what is shown instead
    labels = [f"{stage}: {path}" for stage, path in known.select("stage", "path").iter_rows()]
    lost = known["lost"].to_list()
    ends = [
        [x if x is not None else value for x, value in zip(known[end], lost, strict=True)]
        for end in ("low", "high")
    ]
    texts = [
        f"{amount(value, currency)} of {amount(whole, currency)}"
        for value, whole in zip(lost, known["money"].to_list(), strict=True)
    ]
    bars = {"type": "data", "symmetric": False, "thickness": 1.6, "width": 0, "color": plots.QUIET}
    bars |= {"array": [h - v for h, v in zip(ends[1], lost, strict=True)]}
    bars |= {"arrayminus": [v - a for a, v in zip(ends[0], lost, strict=True)]}
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": labels,
            "x": lost,
            "error_x": bars,
            "marker": {"color": [colours[stage] for stage in known["stage"]]},
            "customdata": texts,
            "hovertemplate": rich("<b>%{y}</b><br>loses %{customdata}<extra></extra>"),
        }
    ]
    layout = plots.blank(max(40 * len(labels), 60), left=190, bottom=50) | {"bargap": 0.4}
    layout["xaxis"] = {"title": {"text": f"lost in an hour, {currency}", "standoff": 6}}
    layout["yaxis"] = {"autorange": "reversed", "showgrid": False, "automargin": True}
    return {"data": data, "layout": layout}


# -- single requests -------------------------------------------------------------------------------


def segments(events: pl.DataFrame) -> list[tuple[str, str, float, float, str]]:
    """What one request did, from its events in order: (stage, "waits" or "service", from ms, to ms,
    what ended it).
    """
    found: list[tuple[str, str, float, float, str]] = []
    doing: dict[str, str] = {}
    since: dict[str, float] = {}
    for t, stage, event in events.select("t_ms", "stage", "event").iter_rows():
        if not stage or event == "vain":  # what a server goes on with is no longer the request's
            continue
        if stage in doing:
            found.append((stage, doing[stage], since[stage], t, event))
        # after a stage's deadline or a crash it may be tried again, and then waits
        doing[stage], since[stage] = "service" if event == "start" else "waits", t
    return [segment for segment in found if segment[3] > segment[2] or segment[1] == "service"]


def typical(simulation: Simulation) -> dict[str, int]:
    """Requests to look at: that of the median latency, of p99, and the slowest; of those that were
    shown something, where any were.
    """
    steady = simulation.steady
    shown = steady.filter(pl.col("outcome") == "served")
    order = (shown if shown.height else steady).sort("latency_ms", "request")["request"].to_list()
    places = {"median": 0.5, "p99": 0.99, "slowest": 1.0}
    return {name: order[round(q * (len(order) - 1))] for name, q in places.items()}


def timelines(simulation: Simulation, requests: Sequence[tuple[str, int]]) -> Plot:
    """Each named request as a Gantt chart: for each stage the time in its queue (faint) and in
    service, ms since the request came.

    Raises KarmafunnelError where events were not kept, and for a request that is not there.
    """
    names, colours = online(simulation), colour_of(online(simulation))
    domains, height = panes(len(requests), 1, 30 * len(names) + 10, gap=0, row_gap=70)
    layout = plots.blank(height, left=130, bottom=45) | {
        "barmode": "overlay",
        "bargap": 0.3,
        "shapes": [],
    }
    data: list[Plot] = []
    for i, (title, request) in enumerate(requests):
        events = events_of_request(simulation, request)
        came, line = events["t_ms"][0], simulation.requests.row(request, named=True)
        for stage, doing, start, end, event in segments(events):
            colour = faint(colours[stage], 0.3) if doing == "waits" else colours[stage]
            state = "waits" if doing == "waits" else "in service"
            words = rich(
                "<b>{}</b><br>{} {} ms, then: {}<extra></extra>",
                stage,
                state,
                f"{end - start:,.3g}",
                event,
            )
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "y": [stage],
                    "base": [start - came],
                    "x": [end - start],
                    "marker": {"color": colour, "line": {"width": 0}},
                    "hovertemplate": words,
                    **on(i),
                }
            )
        x, y = domains[i]
        layout[axis(i, "x")] = {"domain": x, "anchor": on(i)["yaxis"], "rangemode": "tozero"}
        if i == len(requests) - 1:
            layout[axis(i, "x")]["title"] = {"text": "ms since it came", "standoff": 6}
        layout[axis(i, "y")] = {
            "domain": y,
            "anchor": on(i)["xaxis"],
            "showgrid": False,
            "type": "category",
        }
        layout[axis(i, "y")] |= {"categoryarray": names, "range": [len(names) - 0.4, -0.6]}
        told = f"{title}: request {request:,}, {line['outcome']} after {line['latency_ms']:,.1f} ms, path {line['path']}"
        layout["annotations"].append(heading(told, domains[i]))
        if (
            simulation.services.deadline_ms is not None
            and line["latency_ms"] > 0.8 * simulation.services.deadline_ms
        ):
            layout["shapes"].append(
                upright(simulation.services.deadline_ms)
                | {"xref": on(i)["xaxis"], "yref": f"{on(i)['yaxis']} domain"}
            )
    return {"data": data, "layout": layout}


# -- the page --------------------------------------------------------------------------------------


def load_page(
    simulation: Simulation,
    path: Path | str,
    *,
    worth: Worth | None = None,
    plan: Plan | None = None,
    command: str = "",
) -> Path:
    """Write one self-contained HTML file about a simulation and, with `worth`, about what it
    showed; returns its path.

    `plan`: the plan whose deployment this is; `command`: the exact command, for the record.
    """
    summary = simulation.summary()
    sections = [
        figures_of(summary),
        *([planned(plan)] if plan is not None else []),
        latency(simulation, summary),
        queues(simulation, summary),
        *([quality(simulation, worth)] if worth is not None else []),
        single(simulation),
        stage_figures(simulation),
        record(simulation, command),
    ]
    words = [
        f"{summary['requests']:,} requests, {summary['rate']:,.1f} a second",
        f"arrivals {simulation.arrivals!r}",
        f"{summary['warmup']:,} of warm-up left out of latencies"
        if summary["warmup"]
        else "no warm-up left out",
    ]
    eyebrow = f"karmafunnel {'plan' if plan is not None else 'queue'}"
    page = Page(
        f"{simulation.services.name} under load",
        eyebrow,
        [Text(" · ".join(words), "sub")],
        sections,
    )
    return write_page(path, page)


def figures_of(summary: dict[str, Any]) -> Section:
    """The whole in a few numbers."""
    cards: list[tuple[Words, Words, Words]] = []
    for name, one in summary["latency"].items():
        sure = (
            f"95% interval {one['low']:,.1f} to {one['high']:,.1f}"
            if one["low"] is not None
            else "too few requests for an interval"
        )
        cards.append((f"latency {name.removesuffix('_ms')}", f"{one['value']:,.1f} ms", sure))
    shown = summary["outcomes"].get("served", 0.0)
    lost = ", ".join(
        f"{name} {percent(share)}"
        for name, share in summary["outcomes"].items()
        if name != "served"
    )
    cards.append(
        (
            "goodput",
            f"{summary['goodput']:,.1f} a second",
            f"{summary['rate']:,.1f} a second were offered",
        )
    )
    cards.append(("shown something", percent(shown), lost or "nobody was shown nothing"))
    usual = summary["normal"]
    other = ", ".join(
        f"{name} {percent(share)}"
        for name, share in list(summary["paths"].items())[:4]
        if name != usual
    )
    full = "in full" if usual == FULL else f"path {usual}"
    cards.append((full, percent(summary["full"]), other or "no request was degraded"))
    grows = [
        Warned(
            f"Nothing bounds the queue of {name}, which gets {growth:,.1f} requests longer every second: the latencies here grow with "
            "the length of the run."
        )
        for name, growth in summary["growing"].items()
    ]
    return Section("summary", "Summary", "In short", [Cards(cards), *grows])


def planned(plan: Plan) -> Section:
    """The plan's servers, and what if."""
    cheapest = (
        "nothing cheaper does, as far as more servers never hurt"
        if plan.proven
        else "not everything cheaper was tried"
    )
    read = rich(
        "The target: p99 of at most {} ms at {} requests a second, and at most {} of them degraded or shown nothing. The plan meets it with "
        "each of {} seeds (worst p99 {} ms); {}. Headroom: up to <b>{} a second</b>. A million requests cost <b>{}</b>, an hour {}. Fewest: "
        "what a stage would do with were all others idle.",
        f"{plan.target_ms:g}",
        f"{plan.rate:,.1f}",
        f"{plan.lost:.2%}",
        plan.seeds,
        f"{plan.p99_ms:,.1f}",
        cheapest,
        f"{plan.headroom:,.1f}",
        number(plan.cost_per_million),
        number(plan.services.cost_per_hour),
    )
    asked = (
        "One thing changed at a time, the same requests every time; p99 with its 95% interval. Every change is tried with all seeds: "
        "shown is one that misses the target, else the worst. Overload: more than the servers can do."
    )
    servers, changes = plan_tables(plan)
    return Section(
        "plan", "Plan", "The plan", [Text(read), servers, Heading("What if"), Text(asked), changes]
    )


def plan_tables(plan: Plan) -> tuple[Table, Table]:
    """The plan's servers, and what if."""
    servers = []
    for line in plan.stages.iter_rows(named=True):
        counts = [f"{line['servers']:,}", f"{line['fewest']:,}", percent(line["utilisation"])]
        servers.append(
            [line["stage"], *counts, f"{line['p99_ms']:,.1f}", number(line["cost_per_hour"])]
        )
    changes, missed = [], set()
    for i, line in enumerate(plan.what_if.iter_rows(named=True)):
        degraded = "" if line["degraded"] is None else percent(line["degraded"])
        cells = [f"{line['rate']:,.1f}", p99_of(line), degraded, number(line["cost_per_million"])]
        changes.append([line["change"], *cells, "yes" if line["meets"] else "no"])
        if not line["meets"]:
            missed.add(i)
    title = f"{plan.services.name}: p99 within {plan.target_ms:g} ms at {plan.rate:,.1f} a second"
    what_if = ["change", "a second", "p99, ms", "degraded", "cost of a million", "meets the target"]
    return (
        Table(
            ["stage", "servers", "fewest", "busy", "p99, ms", "cost an hour"], servers, title=title
        ),
        Table(what_if, changes, title="what if", quiet=missed),
    )


def p99_of(line: dict[str, Any]) -> str | Cell:
    """p99 with its interval, as a row of `Plan.what_if` has them."""
    if line["p99_ms"] is None:
        return "overload"
    small = "" if line["low"] is None else f"[{line['low']:,.1f}, {line['high']:,.1f}]"
    return Cell(f"{line['p99_ms']:,.1f}", small)


def latency(simulation: Simulation, summary: dict[str, Any]) -> Section:
    read = (
        "Read a line at the height of a share: that share of requests was through within so many ms. A stage's time is from coming to it "
        "to leaving it, waiting included; end to end counts requests that were shown something."
    )
    if simulation.services.deadline_ms is not None:
        read += f" Dotted: the deadline, {simulation.services.deadline_ms:g} ms."
    return Section(
        "latency",
        "Latency",
        "How long it takes",
        [Text(read), Figure(latency_cdf(simulation), keys(simulation))],
    )


def queues(simulation: Simulation, summary: dict[str, Any]) -> Section:
    over = "Requests that wait, sampled over the run. A line that keeps rising is a stage that cannot keep up; one that returns to 0 has room."
    busy = (
        "Share of the time that a stage's servers were busy (their number in brackets). The upright tick is the load that would be offered were "
        "all batches full: the distance to it is what half-empty batches cost, a bar below it is work that was shed or degraded away."
    )
    blocks = [
        Text(over),
        Figure(waiting_over_time(simulation), colour_of(online(simulation))),
        Heading("Servers"),
        Text(busy),
        Figure(busy_servers(simulation)),
    ]
    return Section("queues", "Queues", "How full it is", blocks)


def quality(simulation: Simulation, worth: Worth) -> Section:
    """What was shown is worth, over load and in an outage."""
    measures = list(dict.fromkeys(row["measure"] for row in worth.rows))
    policies = colour_of(worth.curve["policy"].unique(maintain_order=True).to_list())
    read = (
        "Every simulated request is credited with what a logged one was worth along the path that it really took; one that was shown "
        "nothing earns 0. The same requests at every load and under every policy. Bands: 95% intervals over users. Dotted: the load asked "
        "for; in goodput, all that is offered."
    )
    blocks: list[Block] = [
        Text(read),
        Figure(load_curves(worth.curve, measures, worth.currency, simulation.rate), policies),
    ]
    if worth.outages is not None:
        lost = "Money that is lost in an hour while one stage is down and its fallback is shown, all else up; lines: 95% intervals."
        blocks += [Heading("An hour's outage"), Text(lost)]
        if worth.outages["lost"].is_not_null().any():
            blocks.append(Figure(money_lost(worth.outages, worth.currency)))
        blocks += [
            Absent(f"{stage}: {note}")
            for stage, note in worth.outages.select("stage", "note").iter_rows()
            if note
        ]
    return Section("quality", "Quality", "What it is worth", blocks)


def single(simulation: Simulation) -> Section:
    """Three requests, drawn."""
    blocks: list[Block] = [
        Absent("events were not kept (--no-events), so no request can be drawn.")
    ]
    if simulation.kept is not None:
        read = rich(
            "Faint: in the queue; full: in service (of the whole batch). A wide faint bar is a busy stage; a stage without a bar was not "
            "reached or took no time. <code>karmafunnel timeline</code> prints any other request."
        )
        plot = timelines(simulation, list(typical(simulation).items()))
        blocks = [Text(read), Figure(plot, colour_of(online(simulation)))]
    return Section("requests", "Requests", "Single requests", blocks)


def stage_figures(simulation: Simulation) -> Section:
    """The stages' table."""
    heads = {
        "servers": "servers",
        "requests": "requests",
        "utilisation": "busy",
        "mean_batch": "batch",
        "mean_waiting": "waiting",
        "mean_wait_ms": "wait, ms",
        "p50_ms": "p50",
        "p95_ms": "p95",
        "p99_ms": "p99",
        "shed": "shed",
        "abandoned": "left",
        "late": "late",
        "overdue": "overdue",
        "failed": "crashed",
    }

    def tell(x: float | None) -> str:
        return "" if x is None else f"{x:,}" if isinstance(x, int) else number(x)

    rows = [
        [line["stage"], *(tell(line[key]) for key in heads)]
        for line in simulation.stages.iter_rows(named=True)
    ]
    read = (
        "Batch: its mean size. Waiting: how many, on average. Percentiles: ms from coming to a stage to leaving it, over the whole run. Shed: "
        "met a full queue; left: out of patience; late: past the stage's deadline; overdue: past that of the whole."
    )
    return Section(
        "stages", "Stages", "Stage by stage", [Text(read), Table(["stage", *heads.values()], rows)]
    )


def record(simulation: Simulation, command: str) -> Section:
    """What it takes to make this again."""
    facts = {
        "command": command,
        "seed": simulation.seed,
        "commit": commit(),
        "karmafunnel": __version__,
    }
    services = Details("Services", [Pre(simulation.services.toml())], unfolded=True)
    return Section("record", "Record", "The record", [Facts(facts), services])
