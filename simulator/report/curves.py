"""Curves: a measure over a setting that was varied, such as `--semantic` of a World or the size of
the training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import KarmafunnelError
from . import plots
from .measure_table import between
from .page import Figure, Page, Plot, Section, rich, write_page
from .table import number

Point = dict[str, Any]


def curve_figure(
    points: Sequence[Point],
    x: str,
    y: str = "value",
    by: str = "row",
    *,
    x_title: str = "",
    y_title: str = "",
    log_x: bool = False,
    reference: float | None = None,
) -> Plot:
    """A figure with one line per value of `by`, and a band from `low` to `high` where all points of
    a line have both.

    Args:
        points: mappings such as the rows of `table.json`, with the setting added. A point whose
            `y` is None is left out.
        x, y, by: names of the fields for the axes and for the line.
        reference: y of a horizontal reference line, such as 0 for a gain.

    Raises:
        KarmafunnelError: no point, a point that lacks a field, or two points of a line with the
            same x.
    """
    known = [p for p in points if p.get(y) is not None]
    if not known:
        raise KarmafunnelError(
            "curve_figure", needs=f"points with a {y}", found=f"none among {len(points)}"
        )
    for point in known:
        if missing := [name for name in (x, by) if name not in point]:
            raise KarmafunnelError(
                f"curve_figure: needs points with {[x, y, by]}, missing {missing} in {point}"
            )
    names = list(dict.fromkeys(str(p[by]) for p in known))
    colours = plots.colour_of(names)
    data: list[Plot] = []
    for name in names:
        line = sorted((p for p in known if str(p[by]) == name), key=lambda p: float(p[x]))
        at = [p[x] for p in line]
        if len(set(at)) < len(at):
            raise KarmafunnelError(
                "curve_figure", needs=f"one point of {name!r} at every {x}", found=at
            )
        common = {"type": "scatter", "legendgroup": name}
        if all(p.get("low") is not None and p.get("high") is not None for p in line):
            band = {
                "x": [*at, *at[::-1]],
                "y": [*(p["high"] for p in line), *(p["low"] for p in line[::-1])],
            }
            look = {
                "mode": "lines",
                "fill": "toself",
                "fillcolor": plots.faint(colours[name], 0.15),
                "line": {"width": 0},
            }
            data.append(common | band | look | {"hoverinfo": "skip", "showlegend": False})
        texts = [
            f"{number(p[y])} {between({'value': p[y], 'low': p.get('low'), 'high': p.get('high')})}"
            for p in line
        ]
        data.append(
            common
            | {
                "x": at,
                "y": [p[y] for p in line],
                "name": name,
                "mode": "lines+markers",
                "text": texts,
                "marker": {"size": 6},
                "line": {"color": colours[name], "width": 2.2},
                "hovertemplate": rich("{}, {} %{x}<br>%{text}<extra></extra>", name, x),
            },
        )
    layout = plots.blank(340, left=70, bottom=55) | {
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    }
    ticks = sorted({float(p[x]) for p in known})
    layout["xaxis"] = {
        "title": {"text": x_title or x},
        "tickvals": ticks,
        "ticktext": [f"{t:,g}" for t in ticks],
    }
    layout["xaxis"] |= {"type": "log"} if log_x else {}
    layout["yaxis"] = {"title": {"text": y_title or y}}
    if reference is not None:
        level = {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": reference,
            "y1": reference,
        }
        layout["shapes"] = [level | {"line": {"color": plots.QUIET, "width": 1, "dash": "dot"}}]
    return {"data": data, "layout": layout}


def write_curve(plot: Plot, path: Path | str, title: str = "") -> list[Path]:
    """Write a figure as an HTML file that needs no network and, if kaleido and Chromium are
    installed, as a PNG file of the same name.

    Args:
        path: of the HTML file.

    Returns:
        The files that were written.
    """
    path = Path(path).with_suffix(".html")
    section = Section("figure", "Figure", "", [Figure(plot)])
    write_page(path, Page(title or path.stem, "karmafunnel", [], [section]))
    titled = {"data": plot["data"], "layout": dict(plot["layout"])}
    if title:
        margin = titled["layout"].get("margin", {})
        titled["layout"] |= {
            "title": {"text": title},
            "margin": margin | {"t": max(80, margin.get("t", 0) + 40)},
        }
    try:
        return [path, plots.write_picture(titled, path.with_suffix(".png"))]
    except KarmafunnelError:  # no kaleido or no Chromium: the HTML file is enough
        return [path]
