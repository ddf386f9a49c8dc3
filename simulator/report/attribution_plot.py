"""Attribution of an end-to-end change to stages as a table and a waterfall figure, from the rows of
`simulator/measure/attribution.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import KarmafunnelError
from ..measure.measures.measure import END
from . import plots
from .measure_table import Row, between, define, significance
from .page import Plot, rich
from .table import Cell, Table, number, places

FIRST, LAST = "none on", "all on"


def of_one_slice(rows: Sequence[Row]) -> tuple[dict[tuple[str, str], Row], list[str], list[str]]:
    """Rows with a value by (measure, stage), their measures and their stages.

    Raises:
        KarmafunnelError: no row has a value, or rows of several slices.
    """
    known = [row for row in rows if row["value"] is not None]
    if not known:
        raise KarmafunnelError(
            "attribution", needs="rows with a value", found=f"none among {len(rows)}"
        )
    if len(slices := {row["slice"] for row in known}) > 1:
        raise KarmafunnelError("attribution", needs="rows of one slice", found=f"{sorted(slices)}")
    measures, stages = (
        list(dict.fromkeys(row[name] for row in known)) for name in ("measure", "stage")
    )
    return (
        {(row["measure"], row["stage"]): row for row in known},
        measures,
        [stage for stage in stages if stage != END],
    )


def attribution_table(rows: Sequence[Row]) -> Table:
    """Rows of `attribute` as a table with definitions: one column per measure, one row per stage
    between "none on" and "all on".

    Raises:
        KarmafunnelError: no row has a value, or rows of several slices.
    """
    found, measures, stages = of_one_slice(rows)
    ends = [found[measure, END] for measure in measures]
    lines: list[list[str | Cell]] = [[FIRST, *(number(end["off"]) for end in ends)]]
    for stage in (*stages, END):
        name = stage if stage != END else "all of them"
        lines.append([name, *(said(found[measure, stage]) for measure in measures)])
    lines.append([LAST, *(number(end["on"]) for end in ends)])
    seeds = max(row["seeds"] for row in found.values())
    below = [
        f"{measure}: {define(measure)}; n {found[measure, END]['n']:,}." for measure in measures
    ]
    below += [
        "Each step is a Shapley value: the mean gain over all orders of switching stages on "
        f"({2 ** len(stages)} funnels, {seeds} "
        "seeds). The steps sum to the whole change; the share of each is in brackets. "
        "Intervals: 95%, over users and seeds. "
        "* the interval excludes 0 and the sign is the same in every seed, "
        "** also after Holm's correction over all steps."
    ]
    return Table(["", *measures], lines, below=below)


def attribution_figure(rows: Sequence[Row]) -> Plot:
    """Rows of `attribute` as a waterfall per measure: the value with no stage on, what each stage
    adds with its interval, and the value with all on.

    Start and end are points, not bars, so that the axis need not include 0 and small steps are
    visible.

    Raises:
        KarmafunnelError: no row has a value, or rows of several slices.
    """
    found, measures, stages = of_one_slice(rows)
    names, colours = [FIRST, *stages, LAST], plots.colour_of(stages)
    domains, height = plots.panes(len(measures), 2, 40 * len(names), gap=0.06, row_gap=70)
    data: list[Plot] = []
    layout = plots.blank(height, left=20) | {"bargap": 0.35}
    for i, (measure, domain) in enumerate(zip(measures, domains, strict=True)):
        end = found[measure, END]
        at, reach = end["off"], [end["off"], end["on"]]
        for stage in stages:
            row = found[measure, stage]
            to = at + row["value"]
            low, high = (
                at + (row["value"] if row[side] is None else row[side]) for side in ("low", "high")
            )
            reach += [at, to, low, high]
            error = {
                "type": "data",
                "symmetric": False,
                "array": [high - to],
                "arrayminus": [to - low],
                "thickness": 1.6,
            }
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "y": [stage],
                    "x": [row["value"]],
                    "base": [at],
                    "error_x": error,
                    "marker": {"color": plots.faint(colours[stage], 0.85)},
                    "hovertemplate": rich(
                        "<b>%{y}</b><br>{}<br>alone {}, last {}<extra></extra>",
                        said(row).flat,
                        number(row["alone"], True),
                        number(row["last"], True),
                    ),
                    **plots.on(i),
                }
            )
            layout["annotations"].append(
                text(f"{number(row['value'], True)}{significance(row)}", max(high, at), stage, i)
            )
            at = to
        points = {
            "x": [end["off"], end["on"]],
            "y": [names[0], names[-1]],
            "marker": {"size": 11, "color": plots.ALL},
        }
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "hovertemplate": rich("{}<extra></extra>", said(end).flat),
            }
            | points
            | plots.on(i)
        )
        decimals = places(end["value"])
        for name, value in zip((names[0], names[-1]), points["x"], strict=True):
            layout["annotations"].append(text(number(value, decimals=decimals), value, name, i))
        least, most = min(reach), max(reach)
        room = (most - least) or abs(most) or 1.0
        layout[plots.axis(i, "x")] = {
            "domain": domain[0],
            "anchor": plots.on(i)["yaxis"],
            "nticks": 6,
        }
        layout[plots.axis(i, "x")] |= {"range": [least - 0.08 * room, most + 0.32 * room]}
        layout[plots.axis(i, "y")] = {
            "domain": domain[1],
            "anchor": plots.on(i)["xaxis"],
            "type": "category",
            "categoryarray": names,
            "range": [len(names) - 0.4, -0.6],
            "showgrid": False,
            "showticklabels": i % 2 == 0,
            "automargin": True,
        }
        layout["annotations"].append(plots.heading(measure, domain))
    return {"data": data, "layout": layout}


def text(label: str, x: float, y: str, pane: int) -> Plot:
    """A label to the right of a point."""
    where = {
        "x": x,
        "y": y,
        "xref": f"x{pane + 1 if pane else ''}",
        "yref": f"y{pane + 1 if pane else ''}",
    }
    return where | {
        "text": label,
        "showarrow": False,
        "xanchor": "left",
        "xshift": 9,
        "font": {"size": 12},
    }


def said(row: Row) -> Cell:
    """The change of a row with its interval and, if known, its share of the whole change."""
    share = "" if row["share"] is None else f"({row['share']:.0%})".replace("-", "−")
    return Cell(
        number(row["value"], True), between(row, True), significance(row), share, strong=True
    )
