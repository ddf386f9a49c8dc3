"""The page of off-policy estimates: each with its interval, beside what it rests on."""

from __future__ import annotations

from ...stages.policies import Policy
from ..report import plots
from ..report.measure_table import valued
from ..report.page import Block, Figure, Page, Plot, Section, Text, Warned, rich
from .estimate_tables import (
    NARROW,
    READS,
    advice,
    estimates_table,
    shown_rows,
    support_table,
    warnings,
)
from .evaluate import Evaluation

ESTIMATE, FEW, ENOUGH = "#3b6fb5", "#c75f5f", "#4f9d78"


def estimate_page(
    found: Evaluation, policy: Policy, reward: str, names: tuple[str, str], command: str
) -> Page:
    """The page of an evaluation. names: of the Run and of the log."""
    top: list[Block] = [Text(rich("{} on log {}: {} a request", *names, reward), "sub")]
    top.append(Text(advice(found), "sub"))
    top += [Warned(mark) for mark in warnings(found)]
    units = "slots" if found.model is not None else "requests"
    drawn: list[Block] = [
        Text("Left: what the funnel would have earned, by each estimator; dotted: what the log"
             f" itself earned. Right: the effective {units} that an estimator rests on, however"
             " many the log has. DM rests on a model alone, and has no interval. Without a point an"
             " estimator is refused."),
        Figure(
            estimates_figure(found, reward, units),
            {f"fewer than {NARROW:g}, intervals too narrow": FEW, "enough": ENOUGH},
        ),
    ]  # fmt: skip
    sections = [
        Section("estimates", "Estimates", "What each estimator says", drawn),
        Section("support", "Support", "What they rest on", [support_table(found)]),
        Section("table", "Table", "In figures", [estimates_table(found, policy, reward)]),
    ]
    return Page(f"Off-policy estimates of {names[0]}", command, top, sections)


def estimates_figure(found: Evaluation, reward: str, units: str) -> Plot:
    """One line an estimator: its estimate, and its effective sample size."""
    names = [row["estimator"] for row in found.rows]
    domains, height = plots.panes(2, 2, 26 * len(names) + 12, gap=0.06)
    layout = plots.blank(height, left=20, bottom=40) | {"shapes": []}
    told = [(i, row) for i, row in enumerate(shown_rows(found)) if not row["refused"]]
    rows = [row for _, row in told]
    estimates = {
        "type": "scatter",
        "mode": "markers",
        "x": [row["value"] for row in rows],
        "y": [i for i, _ in told],
        "marker": {"size": 9, "color": ESTIMATE},
        "error_x": plots.error_bars(rows) | {"color": plots.faint(ESTIMATE, 0.7)},
        "text": [f"{row['estimator']}: {valued(row).flat}" for row in rows],
        "hovertemplate": rich("%{text}<extra></extra>"),
        **plots.on(0),
    }
    kinds = [READS.get(name) for name in names]
    support = {i: found.support[of] for i, of in enumerate(kinds) if of in found.support}
    effective = [one.effective for one in support.values()]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": list(support),
        "x": effective,
        "marker": {"color": [ENOUGH if x >= NARROW else FEW for x in effective]},
        "text": [f"{one.effective:,.0f} of {one.n:,}" for one in support.values()],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": rich("%{text}<extra></extra>"),
        **plots.on(1),
    }
    ticks = {"tickvals": list(range(len(names))), "ticktext": names, "automargin": True}
    y, most = plots.line_axis(len(names)) | ticks, max(effective, default=1.0)
    plots.add_pane(layout, 0, domains[0], f"{reward} a request", {"nticks": 6}, y)
    x = {"range": [0, 1.45 * most], "nticks": 5}
    plots.add_pane(layout, 1, domains[1], f"effective {units}", x, y | {"showticklabels": False})
    layout["shapes"].append(plots.upright(found.logged["value"]) | plots.within(0))
    return {"data": [estimates, bars], "layout": layout}
