"""The page of a simulation: latency, queues, and the quality of what was shown, in one HTML file.

Figures are plain dicts made from the tables of `Simulation` and `LoadQuality`; only quantiles of
latencies are computed here.
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
from ..load.quality import LoadQuality
from ..load.queueing import Simulation
from ..load.timeline import events_of_request
from ..replay.paths import FULL, NOTHING
from ..replay.provenance import commit
from . import plots
from .measure_table import column
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
from .plots import (
    add_pane,
    amount,
    colour_of,
    error_bars,
    faint,
    on,
    panes,
    percent,
    upright,
    within,
)
from .table import Cell, Table, number

WHOLE = "end to end"
QUANTILES = np.unique(np.concatenate([np.linspace(0, 1, 101), 1 - np.geomspace(0.01, 0.0005, 20)]))
SHORTEST = 1e-3  # ms, on a log axis
SPANS = 60  # of time, in the figure of waiting requests
# whether all cheaper plans were tried
PROOF = {
    True: "no cheaper allocation meets the target (if more servers never raise the latency)",
    False: "not every cheaper allocation was tried",
}


def online(simulation: Simulation) -> list[str]:
    """Stages that a request waits for, in order."""
    return [stage.name for stage in simulation.services.stages if stage.online]


def keys(simulation: Simulation) -> dict[str, str]:
    """Colours of the stages and of the whole, for a legend."""
    return colour_of(online(simulation)) | {WHOLE: plots.ALL}


# -- latency, queues, servers ----------------------------------------------------------------------


def latency_cdf(simulation: Simulation) -> Plot:
    """Share of requests that took at most so many ms (log scale), for each stage and end to end;
    the deadline as a dotted line.

    A stage's time is from arrival there to leaving it; end to end counts requests that were shown
    something. The warm-up is left out.
    """
    steady, deadline = simulation.steady, simulation.services.deadline_ms
    times = {name: steady[f"{name}.ms"].drop_nulls() for name in online(simulation)}
    times[WHOLE] = steady.filter(pl.col("outcome") == "served")["latency_ms"]
    data, ends = [], []
    for name, colour in keys(simulation).items():
        if times[name].is_empty():
            continue
        at = np.maximum(np.quantile(times[name].to_numpy(), QUANTILES), SHORTEST)
        ends += [np.quantile(at, 0.01), at[-1]]
        hover = rich("<b>{}</b><br>%{y:.2%} within %{x:,.4g} ms<extra></extra>", name)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": at.tolist(),
                "y": QUANTILES.tolist(),
                "line": {"color": colour, "width": 3 if name == WHOLE else 2},
                "hovertemplate": hover,
            }
        )
    layout = plots.blank(330, left=60, bottom=50)
    layout["xaxis"] = {"type": "log", "title": {"text": "ms", "standoff": 6}}
    if ends:  # requests served at once do not stretch the axis
        low, high = max(min(ends), max(ends) / 1e4) / 1.2, 1.2 * max(*ends, deadline or 0)
        layout["xaxis"]["range"] = [math.log10(low), math.log10(high)]
        tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**ten for ten in tens for step in (1, 2, 5)]
        layout["xaxis"] |= {"tickvals": ticks, "ticktext": [f"{tick:,g}" for tick in ticks]}
    layout["yaxis"] = {"title": {"text": "share of requests"}, "tickformat": ".0%"}
    layout["yaxis"]["range"] = [0, 1.02]
    if deadline is not None:
        layout["shapes"] = [upright(deadline)]
    return {"data": data, "layout": layout}


def waiting_over_time(simulation: Simulation) -> Plot:
    """Requests that wait over the seconds of the run, one pane a stage: the mean and the most of
    each of `SPANS` equal spans of time.
    """
    names, colours = online(simulation), colour_of(online(simulation))
    lines = simulation.over_time.with_columns(pl.col("t_ms") / 1000)
    span = max(max(lines["t_ms"].to_list(), default=0.0) / SPANS, 1e-9)
    spans = (
        lines.group_by("stage", (pl.col("t_ms") / span).floor().clip(0, SPANS - 1).alias("span"))
        .agg(pl.col("waiting").mean().alias("mean"), pl.col("waiting").max().alias("most"))
        .sort("span")
    )
    most = max(spans["most"].to_list(), default=0)
    domains, height = panes(len(names), 2, 120, gap=0.08, row_gap=70)
    layout = plots.blank(height, left=60, bottom=50)
    data: list[Plot] = []
    for i, name in enumerate(names):
        line = spans.filter(pl.col("stage") == name)
        at = [(k + 0.5) * span for k in line["span"]]
        for of, look in (
            ("most", {"color": faint(colours[name], 0.45), "width": 1.2, "shape": "hvh"}),
            ("mean", {"color": colours[name], "width": 1.8, "shape": "hvh"}),
        ):
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": at,
                    "y": line[of].to_list(),
                    "line": look,
                    "hovertemplate": rich(
                        "<b>{}</b><br>{} %{y:,.3~g} waiting, near %{x:,.4~g} s<extra></extra>",
                        name,
                        "at most" if of == "most" else "on average",
                    ),
                    **on(i),
                }
            )
        data[-1] |= {"fill": "tozeroy", "fillcolor": faint(colours[name], 0.25)}
        x = {"title": {"text": "seconds", "standoff": 6}}
        add_pane(layout, i, domains[i], name, x, {"range": [0, 1.05 * max(most, 1)]})
    return {"data": data, "layout": layout}


def busy_servers(simulation: Simulation) -> Plot:
    """Utilisation of the servers of each stage, with a tick at the offered load if all batches were
    full.
    """
    lines = simulation.stages.filter(pl.col("utilisation").is_not_null())
    colours = colour_of(online(simulation))
    used, labels, offered, marks = lines["utilisation"].to_list(), [], [], []
    for name, servers in lines.select("stage", "servers").iter_rows():
        labels.append(f"{name} ({servers:,})")
        offered.append(simulation.services[name].utilisation(simulation.rate))
        marks.append(colours[name])
    data: list[Plot] = [
        {
            "type": "bar",
            "orientation": "h",
            "y": labels,
            "x": used,
            "marker": {"color": marks},
            "text": list(map(percent, used)),
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
    layout = plots.blank(38 * len(labels), left=150) | {"bargap": 0.35}
    layout["xaxis"] = {"range": [0, max(1.08, 1.05 * max(offered))], "tickformat": ".0%"}
    layout["yaxis"] = {"autorange": "reversed", "showgrid": False, "automargin": True}
    return {"data": data, "layout": layout}


# -- quality and money -----------------------------------------------------------------------------


def load_curves(
    curve: pl.DataFrame,
    measures: Sequence[str],
    currency: str,
    load: float | None = None,
    deadline_ms: float | None = None,
) -> Plot:
    """Over offered load, one line a policy: each measure with its interval, money, goodput, p99 and
    the share shown nothing.

    Args:
        curve: as `load_curve` of `load/quality.py` makes it.
        measures: its measures.
        currency: of the money.
        load: the rate asked for, drawn as a dotted line.
        deadline_ms: end to end, drawn as a dotted line across p99 unless it is far above.

    Raises:
        KarmafunnelError: for missing columns.
    """
    titles = {name: name for name in measures}
    if "money an hour" in curve.columns:
        titles["money an hour"] = f"money an hour, {currency}"
    titles["goodput"] = "goodput, requests a second"
    titles |= {"p99_ms": "p99 latency, ms", NOTHING: "share shown nothing"}
    needed = ("policy", "rate", FULL, *titles)
    if missing := [name for name in needed if name not in curve.columns]:
        raise KarmafunnelError("load curves", needs=f"the columns {missing}", found=curve.columns)
    domains, height = panes(len(titles), 2, 220, gap=0.1, row_gap=80)
    colours = colour_of(curve["policy"].unique(maintain_order=True).to_list())
    layout = plots.blank(height, left=60, bottom=50) | {"shapes": []}
    data: list[Plot] = []
    for i, (name, title) in enumerate(titles.items()):
        for policy, colour in colours.items():
            line = curve.filter((pl.col("policy") == policy) & pl.col(name).is_not_null())
            for trace in _policy_line(line.sort("rate"), name, policy, colour):
                data.append(trace | on(i))
        if name == "goodput":  # all that is offered
            offered = sorted(set(curve["rate"].to_list()))
            dotted = {"color": plots.QUIET, "dash": "dot", "width": 1.5}
            data.append({"type": "scatter", "mode": "lines", "x": offered, "y": offered, **on(i)})
            data[-1] |= {"line": dotted, "hoverinfo": "skip"}
        x = {"rangemode": "tozero", "title": {"text": "requests offered a second", "standoff": 6}}
        y: Plot = {"rangemode": "tozero"}
        values = curve[name].drop_nulls().to_list()
        low, most = min(values, default=0.0), max(values, default=0.0)
        if name == NOTHING:
            y = {"range": [0, max(1.08 * most, 0.01)]}
            y["tickformat"] = ".1%" if most < 0.05 else ".0%"
        elif name == "p99_ms":
            log = most > 10 * low > 0
            if log:
                y["type"] = "log"
                title += " (log)"
            if deadline_ms is not None and deadline_ms < 3 * most:
                layout["shapes"].append(level(deadline_ms) | across(i))
                ends = [low / 1.3, 1.1 * max(most, deadline_ms)]
                y["range"] = list(map(math.log10, ends)) if log else [0, ends[1]]
        add_pane(layout, i, domains[i], title, x, y)
        if load is not None:
            layout["shapes"].append(upright(load) | within(i))
    return {"data": data, "layout": layout}


def level(y: float) -> Plot:
    """A dotted line across a figure."""
    dotted = {"color": plots.QUIET, "width": 1.5, "dash": "dot"}
    return {"type": "line", "y0": y, "y1": y, "x0": 0, "x1": 1, "line": dotted}


def across(i: int) -> Plot:
    """What keeps a line across inside pane i."""
    return {"xref": f"{on(i)['xaxis']} domain", "yref": on(i)["yaxis"]}


def _policy_line(line: pl.DataFrame, name: str, policy: str, colour: str) -> list[Plot]:
    """The band of a column's intervals, where all points have one, and its line."""
    rates, values = line["rate"].to_list(), line[name].to_list()
    texts = [number(value) for value in values]
    traces: list[Plot] = []
    if rates and {f"{name} low", f"{name} high"} <= set(line.columns):
        low, high = line[f"{name} low"].to_list(), line[f"{name} high"].to_list()
        if None not in [*low, *high]:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [*rates, *rates[::-1]],
                    "y": [*high, *low[::-1]],
                    "line": {"width": 0},
                    "fill": "toself",
                    "fillcolor": faint(colour, 0.15),
                    "hoverinfo": "skip",
                }
            )
            for i, ends in enumerate(zip(low, high, strict=True)):
                texts[i] += f" [{number(ends[0])}, {number(ends[1])}]"
    hover = rich("<b>{}</b>, %{x:,.4g} a second<br>%{text}<extra></extra>", policy)
    traces.append(
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": rates,
            "y": values,
            "line": {"color": colour, "width": 2.2},
            "marker": {"size": 6},
            "text": texts,
            "hovertemplate": hover,
        }
    )
    return traces


def money_lost(outages: pl.DataFrame, currency: str) -> Plot:
    """Money that an outage of each stage loses, with its interval.

    `outages`: as the function of that name in `load/quality.py` makes them; stages without a Run of
    their path are left out.
    """
    colours = colour_of(outages["stage"].to_list())
    labels, marks, texts = [], [], []
    rows = outages.filter(pl.col("lost").is_not_null()).to_dicts()
    for row in rows:
        labels.append(f"{row['stage']}: {row['path']}")
        marks.append(colours[row["stage"]])
        texts.append(f"{amount(row['lost'], currency)} of {amount(row['money'], currency)}")
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": labels,
            "x": column(rows, "lost"),
            "error_x": error_bars(rows, "lost") | {"color": plots.QUIET},
            "marker": {"color": marks},
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
    """What one request did: (stage, "waits" or "service", from ms, to ms, the event at the end).

    events: those of the request, in order.
    """
    found: list[tuple[str, str, float, float, str]] = []
    doing: dict[str, str] = {}
    since: dict[str, float] = {}
    for t, stage, event in events.select("t_ms", "stage", "event").iter_rows():
        if not stage or event == "vain":  # a server's work on a request that timed out before
            continue
        if stage in doing:
            found.append((stage, doing[stage], since[stage], t, event))
        # after a stage's deadline or a crash there may be another attempt, which waits
        doing[stage], since[stage] = "service" if event == "start" else "waits", t
    return [segment for segment in found if segment[3] > segment[2] or segment[1] == "service"]


def typical(simulation: Simulation) -> dict[str, int]:
    """Three requests to look at, with the median, the 99th percentile and the maximum of the
    latency; of those that were shown something, where there are any.
    """
    steady = simulation.steady
    shown = steady.filter(pl.col("outcome") == "served")
    order = (shown if shown.height else steady).sort("latency_ms", "request")["request"].to_list()
    places = {"median": 0.5, "p99": 0.99, "slowest": 1.0}
    return {name: order[round(q * (len(order) - 1))] for name, q in places.items()}


def timelines(simulation: Simulation, requests: Sequence[tuple[str, int]]) -> Plot:
    """Each named request as a Gantt chart: for each stage the time in its queue (faint) and in
    service, ms since the request came.

    Raises KarmafunnelError where events were not kept, and for a request that does not exist.
    """
    names, colours = online(simulation), colour_of(online(simulation))
    deadline = simulation.services.deadline_ms
    domains, height = panes(len(requests), 1, 30 * len(names) + 10, gap=0, row_gap=70)
    layout = plots.blank(height, left=130, bottom=45)
    layout |= {"barmode": "overlay", "bargap": 0.3, "shapes": []}
    data: list[Plot] = []
    for i, (title, request) in enumerate(requests):
        events = events_of_request(simulation, request)
        came, row = events["t_ms"][0], simulation.requests.row(request, named=True)
        for stage, doing, start, end, event in segments(events):
            waits = doing == "waits"
            colour = faint(colours[stage], 0.3) if waits else colours[stage]
            hover = rich(
                "<b>{}</b><br>{} {} ms, then: {}<extra></extra>",
                stage,
                "waits" if waits else "in service",
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
                    "hovertemplate": hover,
                    **on(i),
                }
            )
        took = f"{row['outcome']} after {row['latency_ms']:,.1f} ms"
        x: Plot = {"rangemode": "tozero"}
        if i == len(requests) - 1:
            x["title"] = {"text": "ms since it came", "standoff": 6}
        y = {"type": "category", "categoryarray": names, **plots.line_axis(len(names))}
        title = f"{title}: request {request:,}, {took}, path {row['path']}"
        add_pane(layout, i, domains[i], title, x, y)
        if deadline is not None and row["latency_ms"] > 0.8 * deadline:
            layout["shapes"].append(upright(deadline) | within(i))
    return {"data": data, "layout": layout}


# -- the page --------------------------------------------------------------------------------------


def load_page(
    simulation: Simulation,
    path: Path | str,
    *,
    quality: LoadQuality | None = None,
    plan: Plan | None = None,
    command: str = "",
) -> Path:
    """Write one self-contained HTML file about a simulation.

    Args:
        simulation: with or without events.
        path: of the file.
        quality: of what was shown.
        plan: whose deployment this is.
        command: the exact command, for the record.

    Returns:
        The path of the file.
    """
    summary = simulation.summary()
    sections = [summarised(summary)]
    if plan is not None:
        sections.append(planned(plan))
    sections += [latency(simulation), queues(simulation)]
    if quality is not None:
        sections.append(measured(simulation, quality))
    sections += [single(simulation), stage_table(simulation), record(simulation, command)]
    warmup = "no warm-up left out"
    if summary["warmup"]:
        warmup = f"warm-up of {summary['warmup']:,} requests left out of latencies"
    words = [
        f"{summary['requests']:,} requests, {summary['rate']:,.1f} a second",
        f"arrivals {simulation.arrivals!r}",
        warmup,
    ]
    title = f"{simulation.services.name} under load"
    eyebrow = "karmafunnel queue" if plan is None else "karmafunnel plan"
    return write_page(path, Page(title, eyebrow, [Text(" · ".join(words), "sub")], sections))


def summarised(summary: dict[str, Any]) -> Section:
    """The main figures as cards."""
    cards: list[tuple[Words, Words, Words]] = []
    for name, one in summary["latency"].items():
        interval = "too few requests for an interval"
        if one["low"] is not None:
            interval = f"95% interval {one['low']:,.1f} to {one['high']:,.1f}"
        cards.append((f"latency {name.removesuffix('_ms')}", f"{one['value']:,.1f} ms", interval))
    lost = [f"{k} {percent(share)}" for k, share in summary["outcomes"].items() if k != "served"]
    shown = percent(summary["outcomes"].get("served", 0.0))
    offered = f"{summary['rate']:,.1f} a second were offered"
    cards.append(("goodput, requests a second", f"{summary['goodput']:,.1f}", offered))
    cards.append(("shown something", shown, ", ".join(lost) or "no request was shown nothing"))
    usual = summary["normal"]
    first = list(summary["paths"].items())[:4]
    degraded = [f"{path} {percent(share)}" for path, share in first if path != usual]
    full = "in full" if usual == FULL else f"path {usual}"
    other = ", ".join(degraded) or "no request was degraded"
    cards.append((full, percent(summary["full"]), other))
    blocks: list[Block] = [Cards(cards)]
    for name, growth in summary["growing"].items():
        warning = (
            f"The queue of {name} is unbounded and grows by {growth:,.1f} requests a second: the "
            "latencies here grow with the length of the run."
        )
        blocks.append(Warned(warning))
    return Section("summary", "Summary", "In short", blocks)


def planned(plan: Plan) -> Section:
    """The plan's servers, and what if."""
    read = rich(
        "The target: p99 of at most {} ms at {} requests a second, and at most {} of them degraded "
        "or shown nothing. The plan meets it with each of {} seeds (worst p99 {} ms); {}. "
        "Headroom: up to <b>{} a second</b>. A million requests cost <b>{}</b>, an hour {}. "
        "Fewest: what a stage would need if all others were idle.",
        f"{plan.target_ms:g}",
        f"{plan.rate:,.1f}",
        f"{plan.lost:.2%}",
        plan.seeds,
        f"{plan.p99_ms:,.1f}",
        PROOF[plan.proven],
        f"{plan.headroom:,.1f}",
        number(plan.cost_per_million),
        number(plan.services.cost_per_hour),
    )
    asked = (
        "One change at a time, with the same requests; p99 with its 95% interval. Each change is "
        "simulated with all seeds; shown is a seed that misses the target, else the worst. "
        "Overload: more than the servers can serve."
    )
    servers, changes = plan_tables(plan)
    blocks = [Text(read), servers, Heading("What if"), Text(asked), changes]
    return Section("plan", "Plan", "The plan", blocks)


def plan_tables(plan: Plan) -> tuple[Table, Table]:
    """The plan's servers, and what if."""
    servers = []
    for line in plan.stages.iter_rows(named=True):
        counts = [f"{line['servers']:,}", f"{line['fewest']:,}", percent(line["utilisation"])]
        cost = number(line["cost_per_hour"])
        servers.append([line["stage"], *counts, f"{line['p99_ms']:,.1f}", cost])
    changes, missed = [], set()
    for i, line in enumerate(plan.what_if.iter_rows(named=True)):
        degraded = "" if line["degraded"] is None else percent(line["degraded"])
        cells = [f"{line['rate']:,.1f}", p99_of(line), degraded, number(line["cost_per_million"])]
        changes.append([line["change"], *cells, "yes" if line["meets"] else "no"])
        if not line["meets"]:
            missed.add(i)
    target = f"p99 within {plan.target_ms:g} ms at {plan.rate:,.1f} a second"
    heads = ["stage", "servers", "fewest", "busy", "p99, ms", "cost an hour"]
    what_if = ["change", "a second", "p99, ms", "degraded", "cost of a million", "meets the target"]
    return (
        Table(heads, servers, title=f"{plan.services.name}: {target}"),
        Table(what_if, changes, title="what if", quiet=missed),
    )


def p99_of(line: dict[str, Any]) -> str | Cell:
    """p99 with its interval, of a row of `Plan.what_if`."""
    if line["p99_ms"] is None:
        return "overload"
    small = "" if line["low"] is None else f"[{line['low']:,.1f}, {line['high']:,.1f}]"
    return Cell(f"{line['p99_ms']:,.1f}", small)


def latency(simulation: Simulation) -> Section:
    read = (
        "A point of a line: that share of requests took at most that time. A stage's time is from "
        "arrival there to leaving it, waiting included; end to end counts requests that were shown "
        "something."
    )
    if simulation.services.deadline_ms is not None:
        read += f" Dotted: the deadline, {simulation.services.deadline_ms:g} ms."
    figure = Figure(latency_cdf(simulation), keys(simulation))
    return Section("latency", "Latency", "How long it takes", [Text(read), figure])


def queues(simulation: Simulation) -> Section:
    over = (
        "Waiting requests over the run: the mean of a short span of time (filled) and its most. "
        "What keeps rising belongs to a stage that cannot keep up."
    )
    busy = (
        "Share of the time that a stage's servers were busy (their number in brackets). The tick "
        "is the offered load if all batches were full: a bar above it shows the cost of partly "
        "filled batches, a bar below it work that was shed or degraded."
    )
    blocks = [
        Text(over),
        Figure(waiting_over_time(simulation)),
        Heading("Servers"),
        Text(busy),
        Figure(busy_servers(simulation)),
    ]
    return Section("queues", "Queues", "How full it is", blocks)


def measured(simulation: Simulation, quality: LoadQuality) -> Section:
    """The quality of what was shown, over load and in an outage."""
    measures = list(dict.fromkeys(column(quality.rows, "measure")))
    policies = colour_of(quality.curve["policy"].unique(maintain_order=True).to_list())
    read = (
        "Each simulated request has the measures of one logged request along the path that it "
        "took; one that was shown nothing counts as 0. The same requests at every load and under "
        "every policy. Bands: 95% intervals over users. Dotted: the load asked for; in goodput, "
        "the offered load; across p99, the deadline."
    )
    deadline = simulation.services.deadline_ms
    figure = load_curves(quality.curve, measures, quality.currency, simulation.rate, deadline)
    blocks: list[Block] = [Text(read), Figure(figure, policies)]
    if (outages := quality.outages) is not None:
        lost = (
            "Money lost in an hour in which one stage is down and its fallback is shown, all else "
            "up; lines: 95% intervals."
        )
        blocks += [Heading("An hour's outage"), Text(lost)]
        if outages["lost"].is_not_null().any():
            blocks.append(Figure(money_lost(outages, quality.currency)))
        unknown = []
        for stage, note in outages.select("stage", "note").iter_rows():
            if note:
                unknown.append(f"{stage} ({note})")
        if unknown:
            blocks.append(Text(f"Not known: {'; '.join(unknown)}.", "note"))
    return Section("quality", "Quality", "Quality of what was shown", blocks)


def single(simulation: Simulation) -> Section:
    """Gantt charts of three requests."""
    blocks: list[Block] = [
        Absent("events were not kept (--no-events), so no request can be drawn.")
    ]
    if simulation.kept is not None:
        read = rich(
            "Faint: in the queue; full: in service (of the whole batch). A wide faint bar is a "
            "busy stage; a stage without a bar was not reached or took no time. "
            "<code>karmafunnel timeline</code> prints any other request."
        )
        plot = timelines(simulation, list(typical(simulation).items()))
        blocks = [Text(read), Figure(plot, colour_of(online(simulation)))]
    return Section("requests", "Requests", "Single requests", blocks)


STAGE_HEADS = {
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


def stage_table(simulation: Simulation) -> Section:
    rows = []
    for line in simulation.stages.iter_rows(named=True):
        row = [line["stage"]]
        for key in STAGE_HEADS:
            value = line[key]
            if value is None:
                row.append("")
            else:
                row.append(f"{value:,}" if isinstance(value, int) else number(value))
        rows.append(row)
    read = (
        "Batch: mean size of a batch. Waiting: mean number of waiting requests. Percentiles: ms "
        "from arrival at a stage to leaving it, over the whole run. Shed: met a full queue; left: "
        "out of patience; late: past the stage's deadline; overdue: past the deadline end to end."
    )
    table = Table(["stage", *STAGE_HEADS.values()], rows)
    return Section("stages", "Stages", "Stage by stage", [Text(read), table])


def record(simulation: Simulation, command: str) -> Section:
    """What is needed to make this simulation again."""
    facts = {"command": command, "seed": simulation.seed, "commit": commit()}
    facts["karmafunnel"] = __version__
    services = Details("Services", [Pre(simulation.services.toml())], unfolded=True)
    return Section("record", "Record", "The record", [Facts(facts), services])
