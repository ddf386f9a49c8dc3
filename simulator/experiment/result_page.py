"""The pages of an A/B test and of an interleaving: the table, and what was known day by day, or
after each request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..report import plots
from ..report.page import Block, Facts, Figure, Page, Plot, Pre, Section, Text, Warned, rich
from ..report.table import number
from .arms import Design
from .duel import Duel
from .figures_by_arm import Line, Result
from .result_tables import (
    duel_table,
    duel_verdict,
    lines_table,
    shops_table,
    short_lists,
    verdict,
    warnings,
)

ARMS = "control", "treated"
FIXED, ALWAYS = "#3b6fb5", "#b58b3b"
POINTS = 600  # of a line, at most


def result_page(
    result: Result,
    design: Design,
    names: tuple[str, str],
    command: str,
    record: Mapping[str, str],
    currency: str = "EUR",
) -> Page:
    """The page of an A/B test.

    Args:
        names: of the two recipes, the control first.
        record: titles and texts of what was run.
        currency: of GMV.
    """
    top: list[Block] = [Text(rich("{} (control) against {} (treated)", *names), "sub")]
    top += map(Warned, warnings(result, names))
    top += map(Text, verdict(result))
    table = [lines_table(result, design, currency), shops_table(result)]
    known = [line for line in result.lines if line.looks]
    sections = [Section("figures", "Figures", "What users did", table)]
    if known:
        drawn: list[Block] = [
            Text("Treated less control from all days so far. A difference whose always-valid "
                 "interval leaves 0 out is one, whenever one looks; the interval of one look holds "
                 "on the last day alone."),
            Figure(days_figure(known), {"one look": FIXED, "always valid": ALWAYS}),
        ]  # fmt: skip
        sections.append(Section("days", "Days", "Day by day", drawn))
    says = [Pre(text, title) for title, text in record.items()]
    users, planned = result.ratio.counts, result.ratio.shares
    facts = Facts(
        {
            **{f"users, {name}": f"{n:,}" for name, n in zip(ARMS, users, strict=True)},
            "planned": " and ".join(f"{share:.0%}" for share in planned),
            "p of such a split": number(result.ratio.p),
            "days": f"{design.days}, after {design.before} by the shop's own engine",
            "fits": f"every {design.retrain} days" if design.retrain else "once",
            "learnt from": f"the last {design.keep} days",
            "design": repr(design),
        }
    )
    sections.append(Section("record", "Record", "What was run", [facts, *says]))
    return Page(f"A/B test: {names[0]} against {names[1]}", command, top, sections)


def days_figure(lines: Sequence[Line]) -> Plot:
    """The difference of each figure by day, with both intervals."""
    domains, height = plots.panes(len(lines), 2, 220, gap=0.1, row_gap=76)
    layout, data = plots.blank(height, left=60, bottom=44), []
    for i, (line, domain) in enumerate(zip(lines, domains, strict=True)):
        days = np.arange(1, len(line.looks) + 1)
        fixed = np.array([look.interval for look in line.looks])
        value = [look.value for look in line.looks]
        data += [band(days, line.always, ALWAYS, i), band(days, fixed, FIXED, i)]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": days,
                "y": value,
                "line": {"color": FIXED},
                "text": [number(one) for one in value],
                "hovertemplate": rich("day %{x}: %{text}<extra></extra>"),
                **plots.on(i),
            }
        )
        x = {"title": {"text": "day"}, "nticks": 8}
        plots.add_pane(layout, i, domain, line.name, x, {"zeroline": True})
    return {"data": data, "layout": layout}


def duel_page(
    duel: Duel, names: tuple[str, str], way: str, command: str, record: Mapping[str, str]
) -> Page:
    """The page of an interleaving.

    Args:
        names: of the two recipes, A and B.
        way: how lists were mixed.
        record: titles and texts of what was run.
    """
    drawn: list[Block] = [
        Text("Share of the requests so far that B won, less those that A won. As soon as the"
             " interval leaves 0 out the winner is certain, whenever one looks; dotted: that"
             " request. The interval begins when a hundred users have preferred one."),
        Figure(requests_figure(duel), {"always valid": ALWAYS}),
    ]  # fmt: skip
    sections = [
        Section("figures", "Figures", "Who won", [duel_table(duel, names, way)]),
        Section("requests", "Requests", "Request by request", drawn),
        Section("record", "Record", "What was run", [Pre(one, at) for at, one in record.items()]),
    ]
    top: list[Block] = [Text(rich("{} (A) against {} (B)", *names), "sub")]
    top.append(Text(duel_verdict(duel, names)))
    if warning := short_lists(duel.filled, names):
        top.append(Warned(warning))
    return Page(f"Interleaving: {names[0]} and {names[1]}", command, top, sections)


def requests_figure(duel: Duel) -> Plot:
    """The preference after each request with its always-valid interval."""
    running = duel.running()
    n, after = len(running.value), running.certain_after
    some = np.unique(np.linspace(0, n - 1, POINTS).astype(np.int64))
    value, half = running.value[some], running.half[some]
    interval = np.stack([value - half, value + half], axis=1)
    domains, height = plots.panes(1, 1, 320, gap=0.1)
    layout = plots.blank(height, left=60, bottom=44) | {"shapes": []}
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": some + 1,
        "y": value,
        "line": {"color": ALWAYS},
        "text": [number(float(one)) for one in value],
        "hovertemplate": rich("%{x} requests: %{text}<extra></extra>"),
        **plots.on(0),
    }
    seen = interval[np.isfinite(half)]
    least, most = (seen.min(initial=0), seen.max(initial=0)) if len(seen) else (-1.0, 1.0)
    room = 0.05 * (most - least) or 1.0
    y = {"zeroline": True, "range": [max(least - room, -1.05), min(most + room, 1.05)]}
    x = {"title": {"text": "requests"}, "nticks": 8}
    plots.add_pane(layout, 0, domains[0], "preference for B", x, y)
    if after is not None:
        layout["shapes"].append(plots.upright(after) | plots.within(0))
    return {"data": [band(some + 1, interval, ALWAYS, 0), line], "layout": layout}


def band(at: np.ndarray, interval: np.ndarray, colour: str, pane: int) -> Plot:
    """An interval by day or request as an area; where it is infinite it is left out."""
    finite = np.isfinite(interval).all(axis=1)
    x, low, high = at[finite], interval[finite, 0], interval[finite, 1]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, *x[::-1]],
        "y": [*low, *high[::-1]],
        "fill": "toself",
        "fillcolor": plots.faint(colour, 0.18),
        "line": {"width": 0},
        "hoverinfo": "skip",
        **plots.on(pane),
    }
