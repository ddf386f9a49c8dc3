"""The page of an A/B test: the table, and each figure's difference day by day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..report import plots
from ..report.page import Block, Facts, Figure, Page, Plot, Pre, Section, Text, Warned, rich
from ..report.table import number
from .arms import Design
from .figures_by_arm import Line, Result
from .result_tables import lines_table, shops_table, warnings

FIXED, ALWAYS = "#3b6fb5", "#b58b3b"


def result_page(
    result: Result, design: Design, names: tuple[str, str], command: str, record: Mapping[str, str]
) -> Page:
    """The page of an A/B test.

    Args:
        names: of the two recipes, the control first.
        record: titles and texts of what was run.
    """
    top: list[Block] = [Text(rich("{} (control) against {} (treated)", *names), "sub")]
    top += map(Warned, warnings(result, names))
    table = [lines_table(result, design), shops_table(result)]
    known = [line for line in result.lines if line.looks]
    sections = [Section("figures", "Figures", "What users did", table)]
    if known:
        drawn: list[Block] = [
            Text("Treated less control from all days so far. A difference whose outer interval "
                 "leaves 0 out is one, whenever one looks; the inner interval holds on the last "
                 "day alone."),
            Figure(days_figure(known), {"fixed horizon": FIXED, "always valid": ALWAYS}),
        ]  # fmt: skip
        sections.append(Section("days", "Days", "Day by day", drawn))
    says = [Pre(text, title) for title, text in record.items()]
    facts = Facts({"design": repr(design)})
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


def band(days: np.ndarray, interval: np.ndarray, colour: str, pane: int) -> Plot:
    """An interval by day as an area; days on which it is infinite are left out."""
    finite = np.isfinite(interval).all(axis=1)
    x, low, high = days[finite], interval[finite, 0], interval[finite, 1]
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
