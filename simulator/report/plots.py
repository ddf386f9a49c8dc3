"""Figures of the report, as plain plotly dicts (data, layout) made from measure rows.

A stage has one colour everywhere; those of text and grid are set where a figure is drawn. Nothing
is computed here but positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import KarmafunnelError
from ...files import atomic_file
from ..measure.compare import Cascade
from .measure_table import AFTER, BEFORE, Row, between, in_order, valued
from .page import Plot, Words, drawn, rich
from .table import number

COLOURS = ("#4f83b5", "#dd9a3c", "#9d6bb5", "#3a9c9c", "#c75f5f", "#8f8a3c")
KEPT, NOT_ELIGIBLE, INDEX, ALL, QUIET = "#4f9d78", "#a9adb3", "#c75f5f", "#7d8794", "#8b9199"
LINES = {"ceiling": "dash", "logged order": "dashdot", "random": "dot", "base rate": "dot"}


def faint(colour: str, alpha: float) -> str:
    """A hex colour with transparency."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{alpha})"


def colour_of(stages: Sequence[str]) -> dict[str, str]:
    """One colour a name, in order."""
    return {stage: COLOURS[i % len(COLOURS)] for i, stage in enumerate(stages)}


def axis(i: int, letter: str) -> str:
    """The name that pane i's axis has in a layout."""
    return f"{letter}axis{i + 1 if i else ''}"


def on(i: int) -> Plot:
    """What puts a trace on pane i."""
    return {"xaxis": f"x{i + 1 if i else ''}", "yaxis": f"y{i + 1 if i else ''}"}


def panes(
    n: int, per_row: int, height: int, gap: float, row_gap: int = 0
) -> tuple[list[tuple[list[float], list[float]]], int]:
    """Domains (x, y) of n panes of `height` pixels, row by row from the top, and the height of all
    of them; `gap` is a share.
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
    """A layout around panes of `inner` pixels in all."""
    margin = {"l": left, "r": 20, "t": top, "b": bottom}
    return {
        "height": inner + top + bottom,
        "margin": margin,
        "showlegend": False,
        "annotations": [],
    }


def heading(text: Words, domain: tuple[list[float], list[float]]) -> Plot:
    """A title above one pane, flush left."""
    x, y = domain
    place = {
        "x": x[0],
        "y": y[1],
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 6,
    }
    return {"text": rich("<b>{}</b>", text), "showarrow": False, "font": {"size": 13}, **place}


def percent(share: float | None) -> str:
    if share is None:
        return "n/a"
    return f"{share:.1%}" if share == 0 or share >= 0.001 else "<0.1%"


def amount(money: float, currency: str | None) -> str:
    """Money in as few characters as tell it apart."""
    for size, suffix in ((1e9, "bn"), (1e6, "m"), (1e4, "k")):
        if abs(money) >= size:
            short = money / (1e3 if suffix == "k" else size)
            return f"{short:,.{1 if short < 100 else 0}f}{suffix} {currency or ''}".strip()
    return f"{money:,.0f} {currency or ''}".strip()


# -- where truth goes ------------------------------------------------------------------------------


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
    return {"not eligible": NOT_ELIGIBLE, "index": INDEX, "kept": KEPT} | colour_of(stages)


def reasons(losses: Sequence[Row], stages: Sequence[str]) -> list[str]:
    """The reasons to show, in the order things happen: the index only where it lost anything."""
    missed = any(row["reason"] == "index" and row["items"] for row in losses)
    return ["not eligible", *(["index"] if missed else []), *stages, "kept"]


def waterfall(cascade: Cascade, stages: Sequence[str], label: str, currency: str | None) -> Plot:
    """Truth items, and their money where it is known, falling stage by stage from all of them to
    what is kept.
    """
    rows = {row["reason"]: row for row in cascade.losses if row["slice"] == "all"}
    order = reasons(cascade.losses, stages)
    colours = reason_colours(stages)
    names = [
        f"all {label}ed items".replace("purchaseed", "purchased"),
        *(reason_name(r, stages) for r in order),
    ]
    kinds = [("items", "share", "truth items")]
    if rows["kept"]["money_share"] is not None:
        kinds.append(("money", "money_share", "their money"))
    domains, height = panes(len(kinds), 2, 34 * len(names), gap=0.04)
    ticks = {"tickvals": [0, 0.25, 0.5, 0.75, 1]}
    data, layout = [], blank(height, left=20) | {"bargap": 0.28}
    for i, (kind, share, title) in enumerate(kinds):
        left, bases, widths, texts, hovers = 1.0, [0.0], [1.0], [], []
        total = sum(row[kind] for row in rows.values())
        say = (
            (lambda value: f"{value:,.0f}")
            if kind == "items"
            else (lambda value: amount(value, currency))
        )
        texts.append(say(total))
        hovers.append(f"{say(total)}")
        for reason in order:
            row = rows[reason]
            size = row[share] or 0.0
            left -= size if reason != "kept" else 0.0
            bases.append(0.0 if reason == "kept" else left)
            widths.append(size)
            texts.append(f"{'' if reason == 'kept' or size == 0 else '−'}{percent(size)}")
            missed = (
                ""
                if row["median_margin"] is None
                else f"missed by {row['median_margin']:,.0f} ranks (median)"
            )
            hovers.append(rich("{} = {}<br>{}", say(row[kind]), percent(size), missed))
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "y": names,
                "x": widths,
                "base": bases,
                "text": texts,
                "textposition": ["inside", *["outside"] * len(order)],
                "insidetextanchor": "end",
                "cliponaxis": False,
                "constraintext": "none",
                "insidetextfont": {"color": "white"},
                "marker": {"color": [ALL, *(colours[r] for r in order)]},
                "customdata": hovers,
                "hovertemplate": rich("<b>%{y}</b><br>%{customdata}<extra></extra>"),
                **on(i),
            }
        )
        x, y = domains[i]
        layout[axis(i, "x")] = {
            "domain": x,
            "anchor": on(i)["yaxis"],
            "range": [0, 1.26],
            "tickformat": ".0%",
        } | ticks
        layout[axis(i, "y")] = {
            "domain": y,
            "anchor": on(i)["xaxis"],
            "autorange": "reversed",
            "showgrid": False,
        }
        layout[axis(i, "y")] |= {"showticklabels": i == 0, "automargin": True}
        layout["annotations"].append(heading(title, domains[i]))
    return {"data": data, "layout": layout}


def slice_losses(losses: Sequence[Row], stages: Sequence[str]) -> Plot:
    """Where truth of every slice goes: one bar a slice value, split by reason; one pane a slice."""
    by_slice: dict[str, list[str]] = {}
    for row in losses:
        name = row["slice"].split("=")[0]
        if row["slice"] not in by_slice.setdefault(name, []):
            by_slice[name].append(row["slice"])
    found = {(row["slice"], row["reason"]): row for row in losses}
    order = reasons(losses, stages)
    counts = {
        s: sum(found[s, r]["items"] for r in {row["reason"] for row in losses})
        for values in by_slice.values()
        for s in values
    }
    groups = [[s for s in values if counts[s]] for values in by_slice.values()]
    labels = [s for group in groups for s in group]
    named = {s: f"{s.replace('=', ': ')} ({counts[s]:,})" for s in labels}
    # A blank line between slices: a category without a bar.
    lines = [
        line
        for i, group in enumerate(groups)
        for line in [*([" " * i] if i else []), *(named[s] for s in group)]
    ]
    colours = reason_colours(stages)
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": reason_name(reason, stages),
            "y": list(named.values()),
            "x": [found[s, reason]["share"] for s in labels],
            "marker": {"color": colours[reason]},
            "hovertemplate": rich(
                "<b>%{y}</b><br>{} %{x:.1%}<extra></extra>", reason_name(reason, stages)
            ),
        }
        for reason in order
    ]
    layout = blank(22 * len(lines), left=20, top=10) | {"barmode": "stack", "bargap": 0.2}
    layout["xaxis"] = {"range": [0, 1], "tickformat": ".0%"}
    layout["yaxis"] = {
        "type": "category",
        "categoryarray": lines,
        "range": [len(lines) - 0.4, -0.6],
        "showgrid": False,
    }
    layout["yaxis"]["automargin"] = True
    return {"data": data, "layout": layout}


# -- measures --------------------------------------------------------------------------------------


def curves(
    panels: Sequence[tuple[str, Sequence[Row]]], stages: Sequence[str], per_row: int = 2
) -> Plot:
    """A measure over k (log scale), one line a stage with its interval as a band, ceiling and
    random beside; one pane a panel.
    """
    domains, height = panes(len(panels), per_row, 250, gap=0.08, row_gap=80)
    colours = colour_of(stages)
    data: list[Plot] = []
    layout = blank(height, left=50, bottom=45)
    for i, (title, rows) in enumerate(panels):
        for stage in in_order(rows, "stage"):
            points = sorted(
                (row for row in rows if row["stage"] == stage and row["value"] is not None), key=cut
            )
            if not points or stage in BEFORE:
                continue
            ks = [cut(row) for row in points]
            colour = colours.get(stage, QUIET)
            common = {"type": "scatter", "x": ks, **on(i)}
            if stage not in AFTER and all(row["low"] is not None for row in points):
                band = {
                    "x": [*ks, *ks[::-1]],
                    "y": [*(r["high"] for r in points), *(r["low"] for r in points[::-1])],
                }
                area = {
                    "mode": "lines",
                    "fill": "toself",
                    "fillcolor": faint(colour, 0.15),
                    "line": {"width": 0},
                }
                data.append(common | band | area | {"hoverinfo": "skip"})
            texts = [f"{number(r['value'])} {between(r)}" for r in points]
            look = {
                "color": colour,
                "width": 1.5 if stage in AFTER else 2.2,
                "dash": LINES.get(stage, "solid"),
            }
            data.append(
                common
                | {
                    "y": [row["value"] for row in points],
                    "name": stage,
                    "mode": "lines" if stage in AFTER else "lines+markers",
                    "line": look,
                    "marker": {"size": 5},
                    "text": texts,
                    "hovertemplate": rich("{}, k = %{x}<br>%{text}<extra></extra>", stage),
                },
            )
        x, y = domains[i]
        ticks = [
            k
            for k in sorted({cut(row) for row in rows})
            if str(k)[0] in "125" and not str(k)[1:].strip("0")
        ]
        layout[axis(i, "x")] = {
            "domain": x,
            "anchor": on(i)["yaxis"],
            "type": "log",
            "title": {"text": "k", "standoff": 6},
        }
        layout[axis(i, "x")] |= {"tickvals": ticks, "ticktext": [f"{k:,}" for k in ticks]}
        layout[axis(i, "y")] = {"domain": y, "anchor": on(i)["xaxis"], "range": [0, 1.03]}
        layout["annotations"].append(heading(title, domains[i]))
    return {"data": data, "layout": layout}


def cut(row: Row) -> int:
    """The k of a row's measure."""
    return int(row["measure"].split("@")[1].split(":")[0])


def dots(
    panels: Sequence[tuple[str, Sequence[Row]]],
    names: Sequence[str],
    by: str,
    lines_by: str,
    zero: bool = False,
) -> Plot:
    """Values with intervals: one line a value of `lines_by`, one colour a value of `by`; `zero`:
    one scale from 0.
    """
    colours, one = colour_of(names), len(names) == 1
    lines_of = [
        [
            v
            for v in in_order(rows, lines_by)
            if any(r["value"] is not None for r in rows if r[lines_by] == v)
        ]
        for _, rows in panels
    ]
    domains, height = panes(
        len(panels), 3, max(map(len, lines_of)) * (26 + 10 * len(names)), gap=0.12, row_gap=74
    )
    data: list[Plot] = []
    layout = blank(height, left=110)
    far = max(
        row["high"] or row["value"]
        for _, rows in panels
        for row in rows
        if row["value"] is not None
    )
    for i, ((title, rows), lines) in enumerate(zip(panels, lines_of, strict=True)):
        for j, name in enumerate(names):
            mine = [row for row in rows if row[by] == name and row["value"] is not None]
            if not mine:
                continue
            offset = (j - (len(names) - 1) / 2) * min(0.24, 0.72 / len(names))
            high = [0 if row["high"] is None else row["high"] - row["value"] for row in mine]
            low = [0 if row["low"] is None else row["value"] - row["low"] for row in mine]
            bar = {
                "type": "data",
                "symmetric": False,
                "array": high,
                "arrayminus": low,
                "thickness": 1.6,
                "width": 0,
            }
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [row["value"] for row in mine],
                    "y": [lines.index(row[lines_by]) + offset for row in mine],
                    "marker": {
                        "size": 8,
                        "color": [
                            QUIET if one and row[lines_by] in AFTER else colours[name]
                            for row in mine
                        ],
                    },
                    "error_x": bar | {"color": faint(colours[name], 0.75)},
                    "text": [
                        f"{row[lines_by]}: {number(row['value'])} {between(row)}, n {row['n']:,}"
                        for row in mine
                    ],
                    "hovertemplate": rich("<b>{}</b><br>%{text}<extra></extra>", name),
                    **on(i),
                }
            )
        x, y = domains[i]
        scale = {"range": [0, far * 1.04]} if zero else {}
        layout[axis(i, "x")] = {"domain": x, "anchor": on(i)["yaxis"], "nticks": 6} | scale
        layout[axis(i, "y")] = {
            "domain": y,
            "anchor": on(i)["xaxis"],
            "tickvals": list(range(len(lines))),
            "range": [len(lines) - 0.4, -0.6],
            "showgrid": False,
            "ticktext": [
                line_name(line, [row for row in rows if row[lines_by] == line]) for line in lines
            ],
        }
        layout["annotations"].append(heading(title, domains[i]))
    return {"data": data, "layout": layout}


def forest(differences: Mapping[str, Mapping[str, Row]], per_row: int = 3) -> Plot:
    """Differences of rows (name -> column -> comparison row) with their intervals, a pane a column,
    no difference as an upright line.

    In colour what counts as better, faint what cannot be told apart; where the whole table is to
    hold at once, a diamond.
    """
    found = {
        name: {c: d for c, d in row.items() if d.get("difference") is not None}
        for name, row in differences.items()
    }
    names = [name for name, row in found.items() if row]
    columns = list(dict.fromkeys(column for row in found.values() for column in row))
    domains, height = panes(len(columns), per_row, 26 * len(names) + 12, gap=0.04, row_gap=70)
    layout = blank(height, left=20) | {"shapes": []}
    data: list[Plot] = []
    short = [name if len(name) <= 30 else f"{name[:29]}…" for name in names]
    for i, column in enumerate(columns):
        at = [(j, found[name][column]) for j, name in enumerate(names) if column in found[name]]
        sure = [
            "A" if row["difference"] < 0 else "B" if row["difference"] > 0 else "" for _, row in at
        ]
        told = [bool(row.get("better")) for _, row in at]
        ends = [
            [0.0 if row.get(end) is None else abs(row[end] - row["difference"]) for _, row in at]
            for end in ("high", "low")
        ]
        bar = {
            "type": "data",
            "symmetric": False,
            "array": ends[0],
            "arrayminus": ends[1],
            "thickness": 1.6,
            "width": 0,
        }
        colours = [
            {"A": COLOURS[4], "B": COLOURS[0], "": QUIET}[s] if t else faint(QUIET, 0.8)
            for s, t in zip(sure, told, strict=True)
        ]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [row["difference"] for _, row in at],
                "y": [j for j, _ in at],
                "marker": {
                    "size": 9,
                    "color": colours,
                    "symbol": [
                        "diamond" if row.get("holm") and t else "circle"
                        for (_, row), t in zip(at, told, strict=True)
                    ],
                },
                "error_x": bar | {"color": faint(QUIET, 0.7)},
                "text": [f"{names[j]}: {valued(row, True).flat}" for j, row in at],
                "hovertemplate": rich("%{text}<extra></extra>"),
                **on(i),
            }
        )
        x, y = domains[i]
        layout[axis(i, "x")] = {"domain": x, "anchor": on(i)["yaxis"], "nticks": 5}
        layout[axis(i, "y")] = {
            "domain": y,
            "anchor": on(i)["xaxis"],
            "tickvals": list(range(len(names))),
            "ticktext": short,
            "automargin": True,
            "range": [len(names) - 0.4, -0.6],
            "showgrid": False,
            "showticklabels": i % min(per_row, len(columns)) == 0,
        }
        none = {"color": QUIET, "width": 1.5, "dash": "dot"}
        place = {
            "xref": on(i)["xaxis"],
            "yref": f"{on(i)['yaxis']} domain",
            "x0": 0,
            "x1": 0,
            "y0": 0,
            "y1": 1,
        }
        layout["shapes"].append({"type": "line", "line": none} | place)
        layout["annotations"].append(heading(column, domains[i]))
    return {"data": data, "layout": layout}


def line_name(line: str, rows: Sequence[Row]) -> Words:
    """A stage by its name, a slice by its value and, below it, how many units were scored."""
    if "=" not in line:
        return line
    counts = sorted({row["n"] for row in rows})
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
        most = (
            max([row[c] for row in bins for c in ("probability", "frequency")], default=1.0) * 1.08
            or 1.0
        )
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
                "x": [row["probability"] for row in bins],
                "y": [row["frequency"] for row in bins],
                "line": {"color": COLOURS[0], "width": 1.5},
                "marker": {"size": 8, "color": COLOURS[0]},
                "customdata": [row["rows"] for row in bins],
                "hovertemplate": rich(
                    "said %{x:.2%}, happened %{y:.2%}<br>%{customdata:,} exposures<extra></extra>"
                ),
                **on(i),
            }
        )
        x, y = domains[i]
        scale = {"range": [0, most], "tickformat": ".0%" if most > 0.05 else ".1%", "nticks": 6}
        layout[axis(i, "x")] = scale | {
            "domain": x,
            "anchor": on(i)["yaxis"],
            "title": {"text": "mean probability", "standoff": 6},
        }
        layout[axis(i, "y")] = scale | {
            "domain": y,
            "anchor": on(i)["xaxis"],
            "title": {"text": "frequency", "standoff": 6},
        }
        layout["annotations"].append(heading(title, domains[i]))
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
