"""Figures of the report, as plain plotly dicts (data, layout) made from measure rows.

A stage has the same colour in every figure. The page sets the colours of text and grid. Only
positions are computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import KarmafunnelError
from ...files import atomic_file
from ..measure.compare import Cascade
from .measure_table import (
    AFTER,
    BEFORE,
    Row,
    between,
    column,
    in_order,
    known,
    past,
    valued,
    where,
)
from .page import Plot, Words, drawn, rich
from .table import number

COLOURS = ("#4f83b5", "#dd9a3c", "#9d6bb5", "#3a9c9c", "#c75f5f", "#8f8a3c")
KEPT, NOT_ELIGIBLE, INDEX, ALL, QUIET = "#4f9d78", "#a9adb3", "#c75f5f", "#7d8794", "#8b9199"
Domain = tuple[list[float], list[float]]  # of a pane: left and right, bottom and top, as shares
LINES = {"ceiling": "dash", "logged order": "dashdot", "random": "dot", "base rate": "dot"}


def faint(colour: str, alpha: float) -> str:
    """A hex colour with transparency."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{alpha})"


def colour_of(stages: Sequence[str]) -> dict[str, str]:
    """A colour for each name, in order; they repeat after six."""
    return {stage: COLOURS[i % len(COLOURS)] for i, stage in enumerate(stages)}


def axis(i: int, letter: str) -> str:
    """The name of an axis of pane i in a layout."""
    return f"{letter}axis{i + 1 if i else ''}"


def on(i: int) -> Plot:
    """The axes of a trace in pane i."""
    return {"xaxis": f"x{i + 1 if i else ''}", "yaxis": f"y{i + 1 if i else ''}"}


def panes(
    n: int, per_row: int, height: int, gap: float, row_gap: int = 0
) -> tuple[list[Domain], int]:
    """A grid of n panes, filled row by row from the top.

    Args:
        n: number of panes.
        per_row: most panes in a row.
        height: of one pane, pixels.
        gap: between two panes of a row, as a share of the figure's width.
        row_gap: between two rows, pixels.

    Returns:
        The domain of every pane, and the height of the grid in pixels.
    """
    per_row = min(per_row, n)
    rows = -(-n // per_row)
    total = rows * height + (rows - 1) * row_gap
    width = (1 - gap * (per_row - 1)) / per_row
    found = []
    for i in range(n):
        row, column = divmod(i, per_row)
        left, top = column * (width + gap), 1 - row * (height + row_gap) / total
        found.append(([left, left + width], [max(top - height / total, 0.0), top]))
    return found, total


def blank(inner: int, left: int, top: int = 34, bottom: int = 30) -> Plot:
    """A layout with room for `inner` pixels of panes and the given margins."""
    return {
        "height": inner + top + bottom,
        "margin": {"l": left, "r": 20, "t": top, "b": bottom},
        "showlegend": False,
        "annotations": [],
    }


def add_pane(layout: Plot, i: int, domain: Domain, title: Words, x: Plot, y: Plot) -> None:
    """Put pane i into a layout: its two axes, with the settings `x` and `y`, and its title."""
    layout[axis(i, "x")] = {"domain": domain[0], "anchor": on(i)["yaxis"], **x}
    layout[axis(i, "y")] = {"domain": domain[1], "anchor": on(i)["xaxis"], **y}
    layout["annotations"].append(heading(title, domain))


def heading(text: Words, domain: Domain) -> Plot:
    """A title above one pane, aligned left."""
    return {
        "text": rich("<b>{}</b>", text),
        "showarrow": False,
        "font": {"size": 13},
        "x": domain[0][0],
        "y": domain[1][1],
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 6,
    }


def line_axis(n: int) -> Plot:
    """A vertical axis with n lines, the first at the top."""
    return {"range": [n - 0.4, -0.6], "showgrid": False}


def error_bars(rows: Sequence[Row], value: str = "value") -> Plot:
    """The intervals of rows as plotly's error bars; a row without one has none."""
    high, low = [], []
    for row in rows:
        high.append(0.0 if row.get("high") is None else row["high"] - row[value])
        low.append(0.0 if row.get("low") is None else row[value] - row["low"])
    look = {"thickness": 1.6, "width": 0}
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low, **look}


def percent(share: float | None) -> str:
    """A share in percent with one decimal; "n/a" for None."""
    if share is None:
        return "n/a"
    return f"{share:.1%}" if share == 0 or share >= 0.001 else "<0.1%"


def amount(money: float, currency: str | None) -> str:
    """A sum of money with two or three significant digits: "12.3k EUR"."""
    for size, suffix in ((1e9, "bn"), (1e6, "m"), (1e4, "k")):
        if abs(money) >= size:
            short = money / (1e3 if suffix == "k" else size)
            return f"{short:,.{1 if short < 100 else 0}f}{suffix} {currency or ''}".strip()
    return f"{money:,.0f} {currency or ''}".strip()


# -- where relevant items are lost -----------------------------------------------------------------


def reason_name(reason: str, stages: Sequence[str]) -> str:
    """A reason of the ledger, in words."""
    words = {
        "not eligible": "not eligible",
        "index": "missed by the index",
        "kept": "kept",
        stages[0]: f"not recalled ({stages[0]})",
    }
    return words.get(reason, f"cut by {reason}")


def reason_colours(stages: Sequence[str]) -> dict[str, str]:
    """The colour of each reason of the ledger."""
    return {"not eligible": NOT_ELIGIBLE, "index": INDEX, "kept": KEPT} | colour_of(stages)


def reasons(losses: Sequence[Row], stages: Sequence[str]) -> list[str]:
    """The reasons to show, in the order of the funnel; "index" only where it lost an item."""
    missed = any(row["reason"] == "index" and row["items"] for row in losses)
    return ["not eligible", *(["index"] if missed else []), *stages, "kept"]


def waterfall(cascade: Cascade, stages: Sequence[str], label: str, currency: str | None) -> Plot:
    """Relevant items, and their money where it is known: from all of them, less the losses of each
    stage, to what is kept.
    """
    rows = {row["reason"]: row for row in where(cascade.losses, slice="all")}
    order = reasons(cascade.losses, stages)
    colours = reason_colours(stages)
    names = [f"all {past(label)} items", *(reason_name(reason, stages) for reason in order)]
    kinds = ["items"] if rows["kept"]["money_share"] is None else ["items", "money"]
    titles = {"items": "relevant items", "money": "their money"}
    domains, height = panes(len(kinds), 2, 34 * len(names), gap=0.04)
    data, layout = [], blank(height, left=20) | {"bargap": 0.28}
    for i, kind in enumerate(kinds):
        bars = _falling_bars(rows, order, kind, currency)
        look = {
            "type": "bar",
            "orientation": "h",
            "y": names,
            "textposition": ["inside", *["outside"] * len(order)],
            "insidetextanchor": "end",
            "cliponaxis": False,
            "constraintext": "none",
            "insidetextfont": {"color": "white"},
            "marker": {"color": [ALL, *(colours[reason] for reason in order)]},
            "hovertemplate": rich("<b>%{y}</b><br>%{customdata}<extra></extra>"),
        }
        data.append(bars | look | on(i))
        x = {"range": [0, 1.26], "tickformat": ".0%", "tickvals": [0, 0.25, 0.5, 0.75, 1]}
        y = {"autorange": "reversed", "showgrid": False, "automargin": True}
        add_pane(layout, i, domains[i], titles[kind], x, y | {"showticklabels": i == 0})
    return {"data": data, "layout": layout}


def _falling_bars(
    rows: Mapping[str, Row], order: Sequence[str], kind: str, currency: str | None
) -> Plot:
    """Widths, starts and texts of the waterfall's bars: all of `kind`, then one a reason."""

    def say(value: float) -> str:
        return f"{value:,.0f}" if kind == "items" else amount(value, currency)

    total = say(sum(row[kind] for row in rows.values()))
    left, bases, widths = 1.0, [0.0], [1.0]
    texts: list[str] = [total]
    hovers: list[Words] = [total]
    for reason in order:
        row = rows[reason]
        size = row["share" if kind == "items" else "money_share"] or 0.0
        left -= size if reason != "kept" else 0.0
        bases.append(0.0 if reason == "kept" else left)
        widths.append(size)
        texts.append(f"{'' if reason == 'kept' or size == 0 else '−'}{percent(size)}")
        margin = row["median_margin"]
        missed = "" if margin is None else f"missed by {margin:,.0f} ranks (median)"
        hovers.append(rich("{} = {}<br>{}", say(row[kind]), percent(size), missed))
    return {"x": widths, "base": bases, "text": texts, "customdata": hovers}


def run_losses(losses: Mapping[str, Sequence[Row]], stages: Sequence[str]) -> Plot:
    """Where the relevant items of several Runs are lost: one bar a Run, split by reason.

    Args:
        losses: rows of `Cascade`, by name of the Run.
        stages: of all Runs, in the order that gives them their colours.
    """
    labels, shares = {}, {}
    for name, rows in losses.items():
        total = sum(column(where(rows, slice="all"), "items"))
        labels[name] = f"{shortened(name)} ({total:,})"
        for row in where(rows, slice="all"):
            shares[name, row["reason"]] = row["share"]
    every = [row for rows in losses.values() for row in rows]
    return split_bars(labels, list(labels.values()), shares, reasons(every, stages), stages)


def shortened(name: str) -> str:
    """A name as the label of an axis."""
    return name if len(name) <= 30 else f"{name[:29]}…"


def slice_losses(losses: Sequence[Row], stages: Sequence[str]) -> Plot:
    """Where the relevant items of every slice are lost: one bar a slice value, split by reason."""
    items: dict[str, dict[str, int]] = {}  # by slice and value
    for row in losses:
        counts = items.setdefault(row["slice"].split("=")[0], {})
        counts[row["slice"]] = counts.get(row["slice"], 0) + row["items"]
    labels: dict[str, str] = {}
    lines: list[str] = []
    for i, counts in enumerate(items.values()):
        if i:  # a blank line between two slices: a category without a bar
            lines.append(" " * i)
        for value, count in counts.items():
            if count:
                labels[value] = f"{value.replace('=', ': ')} ({count:,})"
                lines.append(labels[value])
    shares = {(row["slice"], row["reason"]): row["share"] for row in losses}
    return split_bars(labels, lines, shares, reasons(losses, stages), stages)


def split_bars(
    labels: Mapping[str, str],
    lines: Sequence[str],
    shares: Mapping[tuple[str, str], float | None],
    order: Sequence[str],
    stages: Sequence[str],
) -> Plot:
    """Bars that are split by reason.

    Args:
        labels: the label of each bar, by its key.
        lines: the lines from the top: labels, and blanks for gaps.
        shares: by key and reason.
        order: of the reasons.
        stages: that give the reasons their colours.
    """
    colours = reason_colours(stages)
    data = []
    for reason in order:
        name = reason_name(reason, stages)
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "y": list(labels.values()),
                "x": [shares.get((key, reason)) for key in labels],
                "marker": {"color": colours[reason]},
                "hovertemplate": rich("<b>%{y}</b><br>{} %{x:.1%}<extra></extra>", name),
            }
        )
    layout = blank(22 * len(lines), left=20, top=10) | {"barmode": "stack", "bargap": 0.2}
    layout["xaxis"] = {"range": [0, 1], "tickformat": ".0%"}
    layout["yaxis"] = {"type": "category", "categoryarray": lines, "automargin": True}
    layout["yaxis"] |= line_axis(len(lines))
    return {"data": data, "layout": layout}


# -- measures --------------------------------------------------------------------------------------


def curves(
    panels: Sequence[tuple[str, Sequence[Row]]], stages: Sequence[str], per_row: int = 2
) -> Plot:
    """A measure over k (log scale): one line a stage with its interval as a band, with ceiling and
    random for reference; one pane a panel.

    Args:
        panels: title and measure rows of each pane.
        stages: in the order that gives them their colours.
        per_row: panes in a row.
    """
    domains, height = panes(len(panels), per_row, 250, gap=0.08, row_gap=80)
    colours = colour_of(stages)
    data: list[Plot] = []
    layout = blank(height, left=50, bottom=45)
    for i, (title, rows) in enumerate(panels):
        for stage in in_order(rows, "stage"):
            points = sorted(known(where(rows, stage=stage)), key=cutoff)
            if points and stage not in BEFORE:
                for trace in _curve(stage, points, colours.get(stage, QUIET)):
                    data.append(trace | on(i))
        ticks = []
        for k in sorted(set(map(cutoff, rows))):
            if str(k)[0] in "125" and not str(k)[1:].strip("0"):
                ticks.append(k)
        x: Plot = {"type": "log", "title": {"text": "k", "standoff": 6}}
        x |= {"tickvals": ticks, "ticktext": [f"{k:,}" for k in ticks]}
        add_pane(layout, i, domains[i], title, x, {"range": [0, _top(rows)]})
    return {"data": data, "layout": layout}


def _top(rows: Sequence[Row]) -> float:
    """The end of the axis: above all intervals of stages; the ceiling may lie beyond it."""
    stages = [row for row in known(rows) if row["stage"] not in (*BEFORE, "ceiling")]
    most = max((row["high"] or row["value"] for row in stages), default=1.0)
    return 1.03 if most > 0.7 else max(1.15 * most, 0.01)


def _curve(stage: str, points: Sequence[Row], colour: str) -> list[Plot]:
    """The band of one stage's intervals, where all points have one, and its line."""
    ks = [cutoff(row) for row in points]
    reference = stage in AFTER
    traces: list[Plot] = []
    low, high = column(points, "low"), column(points, "high")
    if not reference and None not in low:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [*ks, *ks[::-1]],
                "y": [*high, *low[::-1]],
                "fill": "toself",
                "fillcolor": faint(colour, 0.15),
                "line": {"width": 0},
                "hoverinfo": "skip",
            }
        )
    width, dash = 1.5 if reference else 2.2, LINES.get(stage, "solid")
    traces.append(
        {
            "type": "scatter",
            "mode": "lines" if reference else "lines+markers",
            "name": stage,
            "x": ks,
            "y": column(points, "value"),
            "line": {"color": colour, "width": width, "dash": dash},
            "marker": {"size": 5},
            "text": [f"{number(row['value'])} {between(row)}" for row in points],
            "hovertemplate": rich("{}, k = %{x}<br>%{text}<extra></extra>", stage),
        }
    )
    return traces


def cutoff(row: Row) -> int:
    """The k of a row's measure."""
    return int(row["measure"].split("@")[1].split(":")[0])


def dots(
    panels: Sequence[tuple[str, Sequence[Row]]],
    names: Sequence[str],
    by: str,
    lines_by: str,
    zero: bool = False,
) -> Plot:
    """Values with their intervals as points; one pane a panel.

    Args:
        panels: title and measure rows of each pane.
        names: the values of `by`, one colour each.
        by: the field of a row that gives a point its colour.
        lines_by: the field of a row that gives a point its line.
        zero: whether all panes have one scale, which starts at 0.
    """
    colours = colour_of(names)
    lines_of = []
    for _, rows in panels:
        shown = set(column(known(rows), lines_by))
        lines_of.append([line for line in in_order(rows, lines_by) if line in shown])
    tall = max(map(len, lines_of)) * (26 + 10 * len(names))
    domains, height = panes(len(panels), 3, tall, gap=0.12, row_gap=74)
    data: list[Plot] = []
    layout = blank(height, left=110)
    x: Plot = {"nticks": 6}
    if zero:
        ends = [row["high"] or row["value"] for _, rows in panels for row in known(rows)]
        x["range"] = [0, max(ends) * 1.04]
    for i, ((title, rows), lines) in enumerate(zip(panels, lines_of, strict=True)):
        for j, name in enumerate(names):
            points = known(where(rows, **{by: name}))
            if not points:
                continue
            offset = (j - (len(names) - 1) / 2) * min(0.24, 0.72 / len(names))
            marks = [colours[name]] * len(points)
            if len(names) == 1:
                marks = [QUIET if row[lines_by] in AFTER else colours[name] for row in points]
            texts = []
            for row in points:
                value = f"{number(row['value'])} {between(row)}"
                texts.append(f"{row[lines_by]}: {value}, n {row['n']:,}")
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": column(points, "value"),
                    "y": [lines.index(row[lines_by]) + offset for row in points],
                    "marker": {"size": 8, "color": marks},
                    "error_x": error_bars(points) | {"color": faint(colours[name], 0.75)},
                    "text": texts,
                    "hovertemplate": rich("<b>{}</b><br>%{text}<extra></extra>", name),
                    **on(i),
                }
            )
        ticks = [line_name(line, where(rows, **{lines_by: line})) for line in lines]
        y = line_axis(len(lines)) | {"tickvals": list(range(len(lines))), "ticktext": ticks}
        add_pane(layout, i, domains[i], title, x, y)
    return {"data": data, "layout": layout}


def forest(differences: Mapping[str, Mapping[str, Row]], per_row: int = 3) -> Plot:
    """Differences with their intervals, one pane a column, a dotted line at no difference.

    Significant ones are in colour, the others grey; a diamond stays significant after Holm's
    correction.

    Args:
        differences: comparison rows by name of the line and by column.
        per_row: panes in a row.
    """
    found: dict[str, dict[str, Row]] = {}
    for name, row in differences.items():
        if mine := {c: d for c, d in row.items() if d.get("difference") is not None}:
            found[name] = mine
    names = list(found)
    columns = list(dict.fromkeys(column for row in found.values() for column in row))
    domains, height = panes(len(columns), per_row, 26 * len(names) + 12, gap=0.04, row_gap=70)
    layout = blank(height, left=20) | {"shapes": []}
    data: list[Plot] = []
    short = list(map(shortened, names))
    for i, name in enumerate(columns):
        at = [j for j, line in enumerate(names) if name in found[line]]
        rows = [found[names[j]][name] for j in at]
        looks = [_difference_mark(row) for row in rows]
        texts = []
        for j, row in zip(at, rows, strict=True):
            texts.append(f"{names[j]}: {valued(row, True).flat}")
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": column(rows, "difference"),
                "y": at,
                "marker": {
                    "size": 9,
                    "color": [colour for colour, _ in looks],
                    "symbol": [symbol for _, symbol in looks],
                },
                "error_x": error_bars(rows, "difference") | {"color": faint(QUIET, 0.7)},
                "text": texts,
                "hovertemplate": rich("%{text}<extra></extra>"),
                **on(i),
            }
        )
        y = line_axis(len(names)) | {"tickvals": list(range(len(names))), "ticktext": short}
        y |= {"automargin": True, "showticklabels": i % min(per_row, len(columns)) == 0}
        add_pane(layout, i, domains[i], name, {"nticks": 5}, y)
        layout["shapes"].append(upright(0) | within(i))
    return {"data": data, "layout": layout}


def _difference_mark(row: Row) -> tuple[str, str]:
    """Colour and symbol of a difference."""
    if not row.get("better"):
        return faint(QUIET, 0.8), "circle"
    colour = COLOURS[4] if row["difference"] < 0 else COLOURS[0] if row["difference"] else QUIET
    return colour, "diamond" if row.get("holm") else "circle"


def upright(x: float) -> Plot:
    """A dotted line from the bottom of the figure to its top."""
    dotted = {"color": QUIET, "width": 1.5, "dash": "dot"}
    return {"type": "line", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": dotted}


def within(i: int) -> Plot:
    """What keeps an upright line inside pane i."""
    return {"xref": on(i)["xaxis"], "yref": f"{on(i)['yaxis']} domain"}


def line_name(line: str, rows: Sequence[Row]) -> Words:
    """The name of a stage; or the value of a slice and, below it, how many units were scored."""
    if "=" not in line:
        return line
    counts = sorted(set(column(rows, "n")))
    many = f"{counts[0]:,}{f' to {counts[-1]:,}' if len(counts) > 1 else ''}"
    return rich("{}<br>{}", line.split("=")[1], many)


def calibration(panels: Sequence[tuple[str, Sequence[Row]]], per_row: int = 3) -> Plot:
    """Frequency against mean probability, one point a bin (`probability`, `frequency`, `rows`); one
    pane a panel.
    """
    domains, height = panes(len(panels), per_row, 250, gap=0.1, row_gap=90)
    data: list[Plot] = []
    layout = blank(height, left=60, bottom=50)
    for i, (title, bins) in enumerate(panels):
        said, happened = column(bins, "probability"), column(bins, "frequency")
        most = max([*said, *happened], default=1.0) * 1.08 or 1.0
        diagonal = {
            "x": [0, most],
            "y": [0, most],
            "line": {"color": QUIET, "dash": "dot", "width": 1.5},
            "hoverinfo": "skip",
        }
        data.append({"type": "scatter", "mode": "lines", **diagonal, **on(i)})
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": said,
                "y": happened,
                "line": {"color": COLOURS[0], "width": 1.5},
                "marker": {"size": 8, "color": COLOURS[0]},
                "customdata": column(bins, "rows"),
                "hovertemplate": rich(
                    "predicted %{x:.2%}, observed %{y:.2%}<br>"
                    "%{customdata:,} exposures<extra></extra>"
                ),
                **on(i),
            }
        )
        scale = {"range": [0, most], "tickformat": ".0%" if most > 0.05 else ".1%", "nticks": 6}
        x = scale | {"title": {"text": "mean probability", "standoff": 6}}
        y = scale | {"title": {"text": "frequency", "standoff": 6}}
        add_pane(layout, i, domains[i], title, x, y)
    return {"data": data, "layout": layout}


# -- pictures --------------------------------------------------------------------------------------


def write_picture(plot: Plot, path: Path, width: int = 1000) -> Path:
    """Write a figure as PNG, SVG or PDF (by the suffix), on white.

    Raises KarmafunnelError where kaleido (`pip install karmafunnel[images]`) or the Chromium it
    drives is missing.
    """
    import plotly.graph_objects as go

    figure = go.Figure(drawn(plot))
    font = {"family": "system-ui, Helvetica, Arial, sans-serif", "size": 13, "color": "#24292f"}
    figure.update_layout(width=width, paper_bgcolor="white", plot_bgcolor="white", font=font)
    figure.update_xaxes(gridcolor="#e6e6e3", zeroline=False)
    figure.update_yaxes(gridcolor="#e6e6e3", zeroline=False)
    kind = path.suffix.removeprefix(".")
    try:
        with atomic_file(path) as temporary:
            figure.write_image(temporary, format=kind, scale=2 if kind == "png" else 1)
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise KarmafunnelError(
            f"picture {path}",
            needs="kaleido (pip install 'karmafunnel[images]') and a Chromium",
            found=reason,
        ) from error
    return path
