"""A Pareto plot: many variants by two measures with intervals, and the line of those that no other
variant dominates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import KarmafunnelError
from . import plots
from .measure_table import Row, between
from .page import Plot, rich
from .table import number

# `row` is the name of the variant; the key of each measure holds its value and, if known, low and
# high
Point = Mapping[str, Any]
LABELLED = 12  # of more points only the front is labelled; the others tell their names on hover


def non_dominated(
    points: Sequence[Point], x: str, y: str, lower: Sequence[str] = ()
) -> list[Point]:
    """Points that no other point dominates, sorted by x.

    One point dominates another if it is at least as good in both measures and better in one.

    Args:
        lower: names of measures where lower is better.
    """

    def signed(point: Point) -> tuple[float, float]:
        return tuple(-point[m]["value"] if m in lower else point[m]["value"] for m in (x, y))

    def beaten(point: Point) -> bool:
        mine = signed(point)
        return any(
            o != mine and all(a >= b for a, b in zip(o, mine, strict=True))
            for o in map(signed, points)
        )

    return sorted(
        (p for p in points if not beaten(p)), key=lambda p: (p[x]["value"], p[y]["value"])
    )


def pareto_figure(
    points: Sequence[Point],
    x: str,
    y: str,
    *,
    x_title: str = "",
    y_title: str = "",
    lower: Sequence[str] = (),
    log_x: bool = False,
) -> Plot:
    """A figure with one labelled point per variant (of many, only the best are labelled), intervals
    as bars, and the points that no other dominates in colour and connected.

    Args:
        points: a point without a value in either measure is left out.
        x, y: names of measures.
        lower: names of measures where lower is better, such as time.

    Raises:
        KarmafunnelError: no point has both values, or two points have the same name.
    """
    known = [p for p in points if all((p.get(m) or {}).get("value") is not None for m in (x, y))]
    if not known:
        raise KarmafunnelError(
            "pareto_figure", needs=f"points with {x} and {y}", found=f"none among {len(points)}"
        )
    names = [str(p["row"]) for p in known]
    if len(set(names)) < len(names):
        raise KarmafunnelError("pareto_figure", needs="points of different names", found=names)
    front = non_dominated(known, x, y, lower)
    data: list[Plot] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [p[x]["value"] for p in front],
            "y": [p[y]["value"] for p in front],
            "line": {"color": plots.COLOURS[0], "width": 1.8},
            "hoverinfo": "skip",
        }
    ]
    beaten = [p for p in known if not any(p is f for f in front)]
    beaten.sort(key=lambda p: (p[x]["value"], p[y]["value"]))
    for mine, colour, side in ((beaten, plots.QUIET, "left"), (front, plots.COLOURS[0], "right")):
        # labels alternate above and below, so that neighbours do not overlap
        where = [f"{('top', 'bottom')[i % 2]} {side}" for i in range(len(mine))]
        texts = [
            rich(
                "<b>{}</b><br>{}<br>{}",
                p["row"],
                *(f"{m} {number(p[m]['value'])} {between(of(p[m]))}" for m in (x, y)),
            )
            for p in mine
        ]
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text" if len(known) <= LABELLED or mine is front else "markers",
                "x": [p[x]["value"] for p in mine],
                "y": [p[y]["value"] for p in mine],
                "error_x": bars([p[x] for p in mine], colour),
                "error_y": bars([p[y] for p in mine], colour),
                "marker": {"size": 9, "color": colour},
                "text": [str(p["row"]) for p in mine],
                "textposition": where,
                "hovertext": texts,
                "hovertemplate": rich("%{hovertext}<extra></extra>"),
            }
        )
    layout = plots.blank(420, left=75, bottom=55)
    for letter, title, m in (("x", x_title, x), ("y", y_title, y)):
        layout[f"{letter}axis"] = {
            "title": {"text": (title or m) + (" (lower is better)" if m in lower else "")}
        }
    layout["xaxis"] |= {"type": "log"} if log_x else {}
    return {"data": data, "layout": layout}


def of(row: Point) -> Row:
    """A row with value, low and high; None where it has no interval."""
    return {"value": row["value"], "low": row.get("low"), "high": row.get("high")}


def bars(rows: Sequence[Point], colour: str) -> Plot:
    """Intervals as error bars of plotly, of length 0 where a row has none."""
    low, high = (
        [0.0 if row.get(end) is None else sign * (row[end] - row["value"]) for row in rows]
        for end, sign in (("low", -1), ("high", 1))
    )
    look = {"color": plots.faint(colour, 0.55), "thickness": 1.4, "width": 0}
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low} | look
