"""The page of a simulation: how long, how full, what was shown and what that is worth, as plotly figures in one HTML file.

Figures are plain dicts made from the frames of `Simulation` and `Worth`; quantiles of latencies are read off, nothing else is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from .. import __version__
from ..log import KarmafunnelError
from ..simulator.capacity import Plan
from ..simulator.credit import Worth
from ..simulator.queueing import Simulation
from ..simulator.replay import commit
from ..simulator.services import FULL, NOTHING
from ..simulator.timeline import events_of_request
from . import plots
from .plots import Plot, amount, axis, colour_of, faint, heading, on, panes, percent
from .report import Section, absent, figure, lead, plain_table, write_page
from .table import number

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


# -- latency, queues, servers -------------------------------------------------------------------------------------------


def latency_cdf(simulation: Simulation) -> Plot:
    """Share of requests that were through within so many ms (log), for each stage and end to end; the deadline as a dotted line.

    A stage's time is from coming to it to leaving it; end to end is told of requests that were shown something. Without the warm-up.
    """
    steady, data, ends = simulation.steady, [], []
    shown = steady.filter(pl.col("outcome") == "served")["latency_ms"]
    times = {name: steady[f"{name}.ms"].drop_nulls() for name in online(simulation)} | {WHOLE: shown}
    for name, colour in keys(simulation).items():
        if times[name].is_empty():
            continue
        at = np.maximum(np.quantile(times[name].to_numpy(), QUANTILES), SHORTEST)
        ends += [np.quantile(at, 0.01), at[-1]]
        line = {"color": colour, "width": 3 if name == WHOLE else 2}
        hover = f"<b>{escape(name)}</b><br>%{{y:.2%}} within %{{x:,.4g}} ms<extra></extra>"
        data.append(
            {"type": "scatter", "mode": "lines", "x": at.tolist(), "y": QUANTILES.tolist(), "line": line, "hovertemplate": hover}
        )
    layout = plots.blank(330, left=60, bottom=50)
    layout["xaxis"] = {"type": "log", "title": {"text": "ms", "standoff": 6}, "dtick": "D2"}
    if ends:  # what was there at once is no reason for empty decades
        low = max(min(ends), max(ends) / 1e4) / 1.2
        layout["xaxis"]["range"] = [math.log10(low), math.log10(1.2 * max(*ends, simulation.services.deadline_ms or 0))]
    layout["yaxis"] = {"title": {"text": "share of requests"}, "tickformat": ".0%", "range": [0, 1.02]}
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
                "type": "scatter", "mode": "lines", "x": (line["t_ms"] / 1000).to_list(), "y": line["waiting"].to_list(),
                "line": {"color": colour, "width": 1.6, "shape": "hv"},
                "hovertemplate": f"<b>{escape(name)}</b><br>%{{y:,}} wait at %{{x:,.2f}} s<extra></extra>",
            }
        )  # fmt: skip
    layout = plots.blank(260, left=60, bottom=50)
    layout["xaxis"] = {"title": {"text": "seconds", "standoff": 6}}
    layout["yaxis"] = {"title": {"text": "requests waiting"}, "rangemode": "tozero"}
    return {"data": data, "layout": layout}


def busy_servers(simulation: Simulation) -> Plot:
    """How busy the servers of each stage were; a tick where full batches alone would have kept them."""
    lines = simulation.stages.filter(pl.col("utilisation").is_not_null())
    names, used = lines["stage"].to_list(), lines["utilisation"].to_list()
    offered = [simulation.services[name].utilisation(simulation.rate) for name in names]
    labels = [f"{name} ({servers:,})" for name, servers in zip(names, lines["servers"], strict=True)]
    colours = colour_of(online(simulation))
    data: list[Plot] = [
        {
            "type": "bar", "orientation": "h", "y": labels, "x": used, "marker": {"color": [colours[name] for name in names]},
            "text": [percent(x) for x in used], "textposition": "inside", "insidetextanchor": "start", "constraintext": "none",
            "hovertemplate": "<b>%{y}</b><br>busy %{x:.1%} of the time<extra></extra>",
        },
        {
            "type": "scatter", "mode": "markers", "y": labels, "x": offered,
            "marker": {"symbol": "line-ns-open", "size": 20, "color": plots.QUIET, "line": {"width": 2}},
            "hovertemplate": "<b>%{y}</b><br>offered %{x:.1%}, batches full<extra></extra>",
        },
    ]  # fmt: skip
    layout = plots.blank(38 * len(names), left=150) | {"bargap": 0.35}
    layout["xaxis"] = {"range": [0, max(1.08, *(1.05 * x for x in offered))], "tickformat": ".0%"}
    layout["yaxis"] = {"autorange": "reversed", "showgrid": False, "automargin": True}
    return {"data": data, "layout": layout}


# -- quality and money --------------------------------------------------------------------------------------------------


def load_curves(curve: pl.DataFrame, measures: Sequence[str], currency: str, load: float | None = None) -> Plot:
    """Over offered load, one line a policy: each measure with its interval, money, goodput, p99 and the share shown nothing.

    `curve`: as `credit.load_curve` makes it; `load`: the rate asked for, as a dotted line. Raises KarmafunnelError for missing columns.
    """
    titles = {name: name for name in measures}
    if "money an hour" in curve.columns:
        titles["money an hour"] = f"money an hour, {currency}"
    titles |= {"goodput": "goodput, requests a second", "p99_ms": "p99 latency, ms (log)", NOTHING: "share shown nothing"}
    if missing := [name for name in ("policy", "rate", FULL, *titles) if name not in curve.columns]:
        raise KarmafunnelError(f"load curves: needed the columns {missing}, found {curve.columns}")
    domains, height = panes(len(titles), 2, 220, gap=0.1, row_gap=80)
    colours = colour_of(curve["policy"].unique(maintain_order=True).to_list())
    layout = plots.blank(height, left=60, bottom=50) | {"shapes": []}
    data: list[Plot] = []
    for i, (name, title) in enumerate(titles.items()):
        for policy, colour in colours.items():
            line = curve.filter((pl.col("policy") == policy) & pl.col(name).is_not_null()).sort("rate")
            rates, values = line["rate"].to_list(), line[name].to_list()
            common = {"type": "scatter", "x": rates, **on(i)}
            low, high = (
                line[f"{name} {end}"].to_list() if f"{name} {end}" in line.columns else [None] for end in ("low", "high")
            )
            texts = [number(value) for value in values]
            if None not in [*low, *high] and rates:
                band = {"x": [*rates, *rates[::-1]], "y": [*high, *low[::-1]], "mode": "lines", "line": {"width": 0}}
                data.append(common | band | {"fill": "toself", "fillcolor": faint(colour, 0.15), "hoverinfo": "skip"})
                texts = [f"{number(v)} [{number(a)}, {number(b)}]" for v, a, b in zip(values, low, high, strict=True)]
            data.append(
                common
                | {
                    "y": values, "mode": "lines+markers", "line": {"color": colour, "width": 2.2}, "marker": {"size": 6}, "text": texts,
                    "hovertemplate": f"<b>{escape(policy)}</b>, %{{x:,.4g}} a second<br>%{{text}}<extra></extra>",
                }
            )  # fmt: skip
        if name == "goodput":  # all that is offered
            offered = sorted(set(curve["rate"].to_list()))
            dotted = {"mode": "lines", "line": {"color": plots.QUIET, "dash": "dot", "width": 1.5}, "hoverinfo": "skip"}
            data.append({"type": "scatter", "x": offered, "y": offered, **dotted, **on(i)})
        x, y = domains[i]
        layout[axis(i, "x")] = {"domain": x, "anchor": on(i)["yaxis"], "rangemode": "tozero"}
        layout[axis(i, "x")] |= {"title": {"text": "requests offered a second", "standoff": 6}}
        layout[axis(i, "y")] = {"domain": y, "anchor": on(i)["xaxis"], "rangemode": "tozero"}
        layout[axis(i, "y")] |= {"type": "log"} if name == "p99_ms" else {"tickformat": ".0%"} if name == NOTHING else {}
        layout["annotations"].append(heading(escape(title), domains[i]))
        if load is not None:
            layout["shapes"].append(upright(load) | {"xref": on(i)["xaxis"], "yref": f"{on(i)['yaxis']} domain"})
    return {"data": data, "layout": layout}


def money_lost(outages: pl.DataFrame, currency: str) -> Plot:
    """Money that an outage of each stage loses, with its interval. `outages`: as `credit.outages` makes them; stages without a Run of
    their path are left out."""
    known = outages.filter(pl.col("lost").is_not_null())
    colours = colour_of(outages["stage"].to_list())
    # a stage's path says what is shown instead
    labels = [f"{stage}: {path}" for stage, path in known.select("stage", "path").iter_rows()]
    lost = known["lost"].to_list()
    ends = [[x if x is not None else value for x, value in zip(known[end], lost, strict=True)] for end in ("low", "high")]
    texts = [
        f"{amount(value, currency)} of {amount(whole, currency)}"
        for value, whole in zip(lost, known["money"].to_list(), strict=True)
    ]
    bars = {"type": "data", "symmetric": False, "thickness": 1.6, "width": 0, "color": plots.QUIET}
    bars |= {"array": [h - v for h, v in zip(ends[1], lost, strict=True)]}
    bars |= {"arrayminus": [v - a for a, v in zip(ends[0], lost, strict=True)]}
    data = [
        {
            "type": "bar", "orientation": "h", "y": labels, "x": lost, "error_x": bars,
            "marker": {"color": [colours[stage] for stage in known["stage"]]}, "customdata": texts,
            "hovertemplate": "<b>%{y}</b><br>loses %{customdata}<extra></extra>",
        }
    ]  # fmt: skip
    layout = plots.blank(max(40 * len(labels), 60), left=190, bottom=50) | {"bargap": 0.4}
    layout["xaxis"] = {"title": {"text": f"lost in an hour, {currency}", "standoff": 6}}
    layout["yaxis"] = {"autorange": "reversed", "showgrid": False, "automargin": True}
    return {"data": data, "layout": layout}


# -- single requests ----------------------------------------------------------------------------------------------------


def segments(events: pl.DataFrame) -> list[tuple[str, str, float, float, str]]:
    """What one request did, from its events in order: (stage, "waits" or "service", from ms, to ms, what ended it)."""
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
    """Requests to look at: that of the median latency, of p99, and the slowest; of those that were shown something, where any were."""
    steady = simulation.steady
    shown = steady.filter(pl.col("outcome") == "served")
    order = (shown if shown.height else steady).sort("latency_ms", "request")["request"].to_list()
    places = {"median": 0.5, "p99": 0.99, "slowest": 1.0}
    return {name: order[round(q * (len(order) - 1))] for name, q in places.items()}


def timelines(simulation: Simulation, requests: Sequence[tuple[str, int]]) -> Plot:
    """Each named request as a Gantt chart: for each stage the time in its queue (faint) and in service, ms since the request came.

    Raises KarmafunnelError where events were not kept, and for a request that is not there.
    """
    names, colours = online(simulation), colour_of(online(simulation))
    domains, height = panes(len(requests), 1, 30 * len(names) + 10, gap=0, row_gap=70)
    layout = plots.blank(height, left=130, bottom=45) | {"barmode": "overlay", "bargap": 0.3, "shapes": []}
    data: list[Plot] = []
    for i, (title, request) in enumerate(requests):
        events = events_of_request(simulation, request)
        came, line = events["t_ms"][0], simulation.requests.row(request, named=True)
        for stage, doing, start, end, event in segments(events):
            colour = faint(colours[stage], 0.3) if doing == "waits" else colours[stage]
            words = (
                f"<b>{escape(stage)}</b><br>{'waits' if doing == 'waits' else 'in service'} {end - start:,.3g} ms, then: {event}"
            )
            data.append(
                {
                    "type": "bar", "orientation": "h", "y": [stage], "base": [start - came], "x": [end - start],
                    "marker": {"color": colour, "line": {"width": 0}}, "hovertemplate": f"{words}<extra></extra>", **on(i),
                }
            )  # fmt: skip
        x, y = domains[i]
        layout[axis(i, "x")] = {"domain": x, "anchor": on(i)["yaxis"], "rangemode": "tozero"}
        if i == len(requests) - 1:
            layout[axis(i, "x")]["title"] = {"text": "ms since it came", "standoff": 6}
        layout[axis(i, "y")] = {"domain": y, "anchor": on(i)["xaxis"], "showgrid": False, "type": "category"}
        layout[axis(i, "y")] |= {"categoryarray": names, "range": [len(names) - 0.4, -0.6]}
        told = f"{title}: request {request:,}, {line['outcome']} after {line['latency_ms']:,.1f} ms, path {line['path']}"
        layout["annotations"].append(heading(escape(told), domains[i]))
        if simulation.services.deadline_ms is not None and line["latency_ms"] > 0.8 * simulation.services.deadline_ms:
            layout["shapes"].append(
                upright(simulation.services.deadline_ms) | {"xref": on(i)["xaxis"], "yref": f"{on(i)['yaxis']} domain"}
            )
    return {"data": data, "layout": layout}


# -- the page -----------------------------------------------------------------------------------------------------------


def load_page(
    simulation: Simulation, path: Path | str, *, worth: Worth | None = None, plan: Plan | None = None, command: str = ""
) -> Path:
    """Write one self-contained HTML file about a simulation and, with `worth`, about what it showed; returns its path.

    `plan`: the plan whose deployment this is; `command`: the exact command, for the record.
    """
    summary = simulation.summary()
    sections = [
        figures_of(summary), *([planned(plan)] if plan is not None else []), latency(simulation, summary), queues(simulation, summary),
        *([quality(simulation, worth)] if worth is not None else []), single(simulation), stage_figures(simulation),
        record(simulation, command),
    ]  # fmt: skip
    words = [
        f"{summary['requests']:,} requests, {summary['rate']:,.1f} a second",
        f"arrivals {escape(repr(simulation.arrivals))}",
        f"{summary['warmup']:,} of warm-up left out of latencies" if summary["warmup"] else "no warm-up left out",
    ]
    title = f"{simulation.services.name} under load"
    eyebrow = f'<div class="eyebrow">karmafunnel {"plan" if plan is not None else "queue"}</div>'
    top = f'<header>{eyebrow}<h1>{escape(title)}</h1><p class="sub">{" · ".join(words)}</p></header>'
    return write_page(path, escape(title), top, sections)


def card(what: str, big: str, small: str) -> str:
    return f'<div class="card"><div class="what">{what}</div><div class="big">{big}</div><div class="small">{small}</div></div>'


def figures_of(summary: dict[str, Any]) -> Section:
    """The whole in a few numbers."""
    cards = []
    for name, one in summary["latency"].items():
        sure = (
            f"95% interval {one['low']:,.1f} to {one['high']:,.1f}"
            if one["low"] is not None
            else "too few requests for an interval"
        )
        cards.append(card(f"latency {name.removesuffix('_ms')}", f"{one['value']:,.1f} ms", sure))
    shown = summary["outcomes"].get("served", 0.0)
    lost = ", ".join(f"{name} {percent(share)}" for name, share in summary["outcomes"].items() if name != "served")
    cards.append(card("goodput", f"{summary['goodput']:,.1f} a second", f"{summary['rate']:,.1f} a second were offered"))
    cards.append(card("shown something", percent(shown), lost or "nobody was shown nothing"))
    usual = summary["normal"]
    other = ", ".join(f"{escape(name)} {percent(share)}" for name, share in list(summary["paths"].items())[:4] if name != usual)
    cards.append(
        card(
            "in full" if usual == FULL else f"path {escape(usual)}", percent(summary["full"]), other or "no request was degraded"
        )
    )
    grows = "".join(
        f'<p class="absent"><b>grows</b> nothing bounds the queue of {escape(name)}, which gets {growth:,.1f} requests longer every second: '
        "the latencies here grow with the length of the run.</p>"
        for name, growth in summary["growing"].items()
    )
    return Section("summary", "Summary", "In short", f'<div class="cards">{"".join(cards)}</div>{grows}')


def planned(plan: Plan) -> Section:
    """The plan's servers, and what if."""
    cheapest = "nothing cheaper does, as far as more servers never hurt" if plan.proven else "not everything cheaper was tried"
    read = (
        f"The target: p99 of at most {plan.target_ms:g} ms at {plan.rate:,.1f} requests a second, and at most {plan.lost:.2%} of them degraded "
        f"or shown nothing. The plan meets it with each of {plan.seeds} seeds (worst p99 {plan.p99_ms:,.1f} ms); {cheapest}. Headroom: up to "
        f"<b>{plan.headroom:,.1f} a second</b>. A million requests cost <b>{number(plan.cost_per_million)}</b>, an hour "
        f"{number(plan.services.cost_per_hour)}. Fewest: what a stage would do with were all others idle."
    )
    stages = [
        [
            escape(line["stage"]), f"{line['servers']:,}", f"{line['fewest']:,}", percent(line["utilisation"]), f"{line['p99_ms']:,.1f}",
            number(line["cost_per_hour"]),
        ]
        for line in plan.stages.iter_rows(named=True)
    ]  # fmt: skip
    changes = [
        [
            escape(line["change"]), f"{line['rate']:,.1f}", p99_of(line), "" if line["degraded"] is None else percent(line["degraded"]),
            number(line["cost_per_million"]), "yes" if line["meets"] else "no",
        ]
        for line in plan.what_if.iter_rows(named=True)
    ]  # fmt: skip
    asked = lead(
        "One thing changed at a time, the same requests every time; p99 with its 95% interval. Every change is tried with all seeds: "
        "shown is one that misses the target, else the worst. Overload: more than the servers can do."
    )
    parts = [
        lead(read), plain_table(["stage", "servers", "fewest", "busy", "p99, ms", "cost an hour"], stages), "<h3>What if</h3>", asked,
        plain_table(["change", "a second", "p99, ms", "degraded", "cost of a million", "meets the target"], changes),
    ]  # fmt: skip
    return Section("plan", "Plan", "The plan", "".join(parts))


def p99_of(line: dict[str, Any]) -> str:
    """p99 with its interval, as a row of `Plan.what_if` has them."""
    if line["p99_ms"] is None:
        return "overload"
    return f"{line['p99_ms']:,.1f}" + (f" [{line['low']:,.1f}, {line['high']:,.1f}]" if line["low"] is not None else "")


def latency(simulation: Simulation, summary: dict[str, Any]) -> Section:
    read = (
        "Read a line at the height of a share: that share of requests was through within so many ms. A stage's time is from coming to it "
        "to leaving it, waiting included; end to end counts requests that were shown something."
    )
    if simulation.services.deadline_ms is not None:
        read += f" Dotted: the deadline, {simulation.services.deadline_ms:g} ms."
    return Section("latency", "Latency", "How long it takes", lead(read) + figure(latency_cdf(simulation), keys(simulation)))


def queues(simulation: Simulation, summary: dict[str, Any]) -> Section:
    over = lead(
        "Requests that wait, sampled over the run. A line that keeps rising is a stage that cannot keep up; one that returns to 0 has room."
    ) + figure(waiting_over_time(simulation), colour_of(online(simulation)))
    busy = "<h3>Servers</h3>" + lead(
        "Share of the time that a stage's servers were busy (their number in brackets). The upright tick is the load that would be offered were "
        "all batches full: the distance to it is what half-empty batches cost, a bar below it is work that was shed or degraded away."
    )
    return Section("queues", "Queues", "How full it is", over + busy + figure(busy_servers(simulation)))


def quality(simulation: Simulation, worth: Worth) -> Section:
    """What was shown is worth, over load and in an outage."""
    measures = list(dict.fromkeys(row["measure"] for row in worth.rows))
    policies = colour_of(worth.curve["policy"].unique(maintain_order=True).to_list())
    parts = [
        lead(
            "Every simulated request is credited with what a logged one was worth along the path that it really took; one that was shown "
            "nothing earns 0. The same requests at every load and under every policy. Bands: 95% intervals over users. Dotted: the load asked "
            "for; in goodput, all that is offered."
        ),
        figure(load_curves(worth.curve, measures, worth.currency, simulation.rate), policies),
    ]
    if worth.outages is not None:
        parts += ["<h3>An hour's outage</h3>"]
        parts += [
            lead(
                "Money that is lost in an hour while one stage is down and its fallback is shown, all else up; lines: 95% intervals."
            )
        ]
        if worth.outages["lost"].is_not_null().any():
            parts += [figure(money_lost(worth.outages, worth.currency))]
        parts += [absent(f"{stage}: {note}") for stage, note in worth.outages.select("stage", "note").iter_rows() if note]
    return Section("quality", "Quality", "What it is worth", "".join(parts))


def single(simulation: Simulation) -> Section:
    """Three requests, drawn."""
    if simulation.kept is None:
        return Section(
            "requests", "Requests", "Single requests", absent("events were not kept (--no-events), so no request can be drawn.")
        )
    read = lead(
        "Faint: in the queue; full: in service (of the whole batch). A wide faint bar is a busy stage; a stage without a bar was not reached or "
        "took no time. <code>karmafunnel timeline</code> prints any other request."
    )
    plot = timelines(simulation, list(typical(simulation).items()))
    return Section("requests", "Requests", "Single requests", read + figure(plot, colour_of(online(simulation))))


def stage_figures(simulation: Simulation) -> Section:
    """The stages' table."""
    heads = {
        "servers": "servers", "requests": "requests", "utilisation": "busy", "mean_batch": "batch", "mean_waiting": "waiting",
        "mean_wait_ms": "wait, ms", "p50_ms": "p50", "p95_ms": "p95", "p99_ms": "p99", "shed": "shed", "abandoned": "left", "late": "late",
        "overdue": "overdue", "failed": "crashed",
    }  # fmt: skip
    tell = lambda x: "" if x is None else f"{x:,}" if isinstance(x, int) else number(x)
    rows = [[escape(line["stage"]), *(tell(line[key]) for key in heads)] for line in simulation.stages.iter_rows(named=True)]
    read = lead(
        "Batch: its mean size. Waiting: how many, on average. Percentiles: ms from coming to a stage to leaving it, over the whole run. Shed: "
        "met a full queue; left: out of patience; late: past the stage's deadline; overdue: past that of the whole."
    )
    return Section("stages", "Stages", "Stage by stage", read + plain_table(["stage", *heads.values()], rows))


def record(simulation: Simulation, command: str) -> Section:
    """What it takes to make this again."""
    facts = {"command": command or "n/a", "seed": simulation.seed, "commit": commit() or "n/a", "karmafunnel": __version__}
    listed = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    toml = f"<details open><summary>Services</summary><pre>{escape(simulation.services.toml())}</pre></details>"
    return Section("record", "Record", "The record", f"<dl>{listed}</dl>{toml}")
