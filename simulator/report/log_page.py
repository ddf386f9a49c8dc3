"""The page of a log or a catalogue: the statistics of `simulator/measure/describe.py` as cards,
figures and tables.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ...layout import WINDOWS
from ...log import Catalogue, Log
from ..measure.describe import (
    ALL,
    SAMPLES,
    Shown,
    Stats,
    count,
    number,
    percent,
    size,
    tables,
    words,
)
from .page import Beside, Block, Cards, Figure, Page, Plot, Section, Text, Words, rich, write_page
from .table import Table

COLOURS = {"W1": "#4f83b5", "W2a": "#9d6bb5", "W2b": "#3a9c9c", "W3": "#dd9a3c"}
BLUE, ORANGE, GREEN, GREY = "#4f83b5", "#dd9a3c", "#4f9d78", "#8b9199"
NOTE = (
    "Eligible: items known before the request that pass its filters (mean number). Ceiling: the"
    " share of relevant items that are eligible. Repeat: relevant items that the user clicked or"
    " bought before. Cold: relevant items that never were relevant in W1. History: clicks and"
    " purchases of the user before the request. Requests without a relevant item are left out of"
    " hit measures."
)

HISTORIES = (
    "Requests at equal distances in time, with a history and a relevant item where there are such."
    " Histories have the latest item first."
)


def write_html(log: Log | Catalogue, stats: Stats, path: Path | str) -> Path:
    """Write tables and figures as one HTML file that needs no network; returns its path."""
    (_, facts_head, facts_rows), *others = tables(stats)
    drawn = Beside([Figure(plot) for plot in plots(log, stats)], least=400, framed=True)
    sections: list[Section] = []
    for title, head, rows in others:
        name = title.split()[0]
        said = {"windows": NOTE, "requests": HISTORIES}
        note: list[Block] = [Text(said[name], "note")] if name in said else []
        table = Table(head, rows, text_columns=len(head) if name in SAMPLES else 1)
        sections.append(Section(name, name.capitalize(), title.capitalize(), [table, *note]))
    at = sum(section.name in SAMPLES for section in sections)
    sections.insert(at, Section("plots", "Plots", "Plots", [drawn]))
    facts = Table(facts_head, facts_rows, look="prose")
    sections.append(Section("facts", "Facts", "Facts", [facts]))
    page = Page(
        str(stats["name"]), f"karmafunnel describe · {stats['kind']}", [cards(stats)], sections
    )
    return write_page(path, page)


def cards(stats: Stats) -> Cards:
    """The key figures."""
    shown: list[tuple[Words, Words, Words]] = [
        (size(name), count(n), "") for name, n in stats["sizes"].items() if n
    ]
    if span := stats.get("time_range"):
        between = f"{span['from'][:10]} to {span['to'][:10]}"
        shown.append(("days", number(span["days"]), between))
    if stats["kind"] == "log":
        last = next(w for w in stats["windows"] if w["window"] == "W3")
        about = {
            "with_truth": ("answerable", "of the requests have a relevant item"),
            "ceiling": ("ceiling", "of the relevant items are eligible"),
            "repeat": ("repeat", "of the relevant items the user had before"),
            "cold": ("cold", "of the relevant items never were relevant in W1"),
        }
        for key, (name, words) in about.items():
            shown.append((f"{name} in W3", percent(last[key]), words))
    return Cards(shown)


# -- figures ---------------------------------------------------------------------------------------


def plots(log: Log | Catalogue, stats: Stats) -> list[Plot]:
    """All figures that the log has data for."""
    money = f"price, {stats['currency'] or 'currency unknown'}"
    found = []
    if isinstance(log, Log):
        served = np.flatnonzero(log.in_scenario)
        shown = Shown(log)
        truth = log.truth(log.meta["label"])
        found += [
            over_time(log, served),
            by_window(stats["windows"]),
            position_plot(stats["ctr_by_position"]),
            popularity_plot(
                np.bincount(truth["item"].to_numpy(), minlength=log.n_items), stats["popularity"]
            ),
            histogram("Items a list", "items shown", "lists", shown.lists.filter(shown.lists > 0)),
            histogram(
                "Requests a user",
                "requests",
                "users",
                log.requests["user_id"].value_counts()["count"],
            ),
            histogram(
                "History",
                "clicks and purchases before a request",
                "requests",
                pl.Series(log.asof.n_events(served)),
            ),
            histogram(
                "Eligible items",
                "items eligible for a request",
                "requests",
                pl.Series(log.asof.known(served)),
            ),
        ]
        if log.has("query"):
            found.append(
                histogram(
                    "Query length", "words", "requests", words(log.requests["query"].gather(served))
                )
            )
        found.append(histogram("Shown prices", money, "rows shown", shown.prices))
        found.append(
            histogram(
                "Paid prices",
                money,
                "rows purchased",
                log.events.filter(pl.col("purchased"))["price_paid"],
            )
        )
    found.append(histogram("List prices", money, "items", log.items["price"]))
    for name in ("title", "description"):
        if name in log.items.columns:
            found.append(
                histogram(
                    f"Words a {name}", "words", "items", words(log.items[name].cast(pl.String))
                )
            )
    found.append(category_plot(log.items["category"]))
    return [figure for figure in found if figure is not None]


def figure(title: str, x: str, y: str, *traces: Plot, **more: Any) -> Plot:
    """A figure in the style of this page.

    Args:
        more: changes to its layout, such as `xaxis={"type": "log"}`.
    """
    layout: Plot = {
        "title": {
            "text": rich("<b>{}</b>", title),
            "x": 0,
            "xref": "paper",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 14},
            "font": {"size": 15},
        },
        "height": 300,
        "bargap": 0.04,
        "margin": {"l": 60, "r": 16, "t": 64 if len(traces) > 1 else 46, "b": 48},
        "hovermode": "closest",
        "legend": {
            "orientation": "h",
            "y": 1,
            "yanchor": "bottom",
            "x": 1,
            "xanchor": "right",
            "traceorder": "normal",
        },
        "showlegend": len(traces) > 1,
        "xaxis": {"title": {"text": x, "standoff": 8}},
        "yaxis": {"title": {"text": y, "standoff": 8}, "rangemode": "tozero", "automargin": True},
    }
    for name, value in more.items():
        layout[name] = layout[name] | value if name in ("xaxis", "yaxis") else value
    return {"data": list(traces), "layout": layout}


def bar(**what: Any) -> Plot:
    return {"type": "bar", **what}


def scatter(**what: Any) -> Plot:
    return {"type": "scatter", **what}


def histogram(title: str, x: str, y: str, values: pl.Series) -> Plot | None:
    """A histogram, None for fewer than two different values.

    Few whole numbers get one bar each, other values bins of equal width; values over a wide range
    get a log axis.
    """
    array = values.drop_nulls().to_numpy().astype(float)
    if len(array) == 0 or (low := array.min()) == array.max():
        return None
    high = array.max()
    whole = bool((array == np.floor(array)).all())
    if whole and high - low <= 60:
        n = np.bincount((array - low).astype(int))
        return figure(title, x, y, bar(x=np.arange(len(n)) + low, y=n, marker={"color": BLUE}))
    wide = high > 50 * max(np.median(array), 1e-9) or (
        whole and high > 1000 and np.median(array) < high / 20
    )
    if not wide:
        step = math.ceil((high - low + 1) / 40) if whole else (high - low) / 40
        edges = low + step * np.arange(math.ceil((high - low + whole) / step) + 1)
        edges[-1] = max(edges[-1], high)
        n, _ = np.histogram(array, bins=edges)
        return figure(
            title, x, y, bars(n, edges, whole, (edges[1:] + edges[:-1]) / 2, np.diff(edges))
        )
    least = array[array > 0].min()
    edges = np.geomspace(least, high, 41)
    if whole:
        edges = np.unique(np.floor(edges))
        edges[-1] = high + 1
    n, edges = np.histogram(array[array > 0], bins=edges)
    middles, widths = np.sqrt(edges[1:] * edges[:-1]), np.diff(edges)
    zeros = int((array <= 0).sum())
    note = f"{x} (log scale; {zeros:,} at 0 left out)" if zeros else f"{x} (log scale)"
    return figure(
        title, note, y, bars(n, edges, whole, middles, widths), xaxis={"type": "log", "dtick": 1}
    )


def bars(
    n: np.ndarray, edges: np.ndarray, whole: bool, middles: np.ndarray, widths: np.ndarray
) -> Plot:
    """Bars of a histogram, with the bounds of each bin in its hover text."""
    upper = edges[1:] - 1 if whole else edges[1:]
    between = [f"{number(a)} to {number(b)}" for a, b in zip(edges[:-1], upper, strict=True)]
    hover = rich("%{customdata}: %{y:,}<extra></extra>")
    return bar(
        x=middles,
        y=n,
        width=widths * 0.96,
        customdata=between,
        hovertemplate=hover,
        marker={"color": BLUE},
    )


def over_time(log: Log, served: np.ndarray) -> Plot:
    """Requests over time, one colour per window; requests per window if the log has no clock."""
    window = log.requests["window"].gather(served)
    ts = log.requests["ts"].gather(served)
    if log.meta["time"] == "order":
        n = [int((window == w).sum()) for w in WINDOWS]
        return figure(
            "Requests by window",
            "window (an order, no clock)",
            "requests",
            bar(x=WINDOWS, y=n, marker={"color": list(COLOURS.values())}),
        )
    days = (int(log.t[-1]) - int(log.t[0])) / 86_400_000
    every, name = next(
        (e, n)
        for most, e, n in ((4, "1h", "hour"), (400, "1d", "day"), (math.inf, "1w", "week"))
        if days <= most
    )
    binned = (
        pl.DataFrame({"at": ts.dt.truncate(every), "window": window})
        .group_by("at", "window")
        .len()
        .sort("at")
    )
    traces = []
    for w in WINDOWS:
        mine = binned.filter(pl.col("window") == w)
        traces.append(
            bar(
                x=mine["at"].dt.replace_time_zone(None).to_list(),
                y=mine["len"].to_numpy(),
                name=w,
                marker={"color": COLOURS[w]},
            )
        )
    return figure(f"Requests a {name}", "time (UTC)", "requests", *traces, barmode="stack")


def by_window(windows: list[Stats]) -> Plot:
    """Ceiling, and shares of repeat and cold items among the relevant items, by window."""
    named = [("ceiling", BLUE), ("repeat", GREEN), ("cold", ORANGE)]
    mine = [w for w in windows if w["window"] != ALL]
    traces = [
        bar(
            x=[w["window"] for w in mine],
            y=[w[key] for w in mine],
            name=key,
            marker={"color": colour},
        )
        for key, colour in named
    ]
    layout = {
        "yaxis": {"range": [0, 1.02], "tickformat": ".0%"},
        "bargap": 0.25,
    }
    return figure(
        "Relevant items by window", "window", "share of relevant items", *traces, **layout
    )


def position_plot(rows: list[Stats] | None) -> Plot | None:
    if not rows:
        return None
    x, y, shown = ([row[key] for row in rows] for key in ("position", "ctr", "shown"))
    hover = rich("position %{x}: %{y:.2%} of %{customdata:,}<extra></extra>")
    trace = bar(x=x, y=y, marker={"color": BLUE}, customdata=shown, hovertemplate=hover)
    return figure(
        "Click rate by position",
        "position",
        "clicks a shown row",
        trace,
        yaxis={"tickformat": ".0%" if max(y) >= 0.05 else ".1%"},
    )


def popularity_plot(counts: np.ndarray, found: Stats | None) -> Plot | None:
    """How often items are relevant, by rank, on log axes, at most 200 points, with fitted slope."""
    if found is None:
        return None
    falling = np.sort(counts[counts > 0])[::-1]
    ranks = np.unique(np.geomspace(1, len(falling), 200).astype(int))
    trace = scatter(
        x=ranks,
        y=falling[ranks - 1],
        mode="lines+markers",
        marker={"size": 4},
        line={"color": BLUE},
        name="items",
    )
    traces = [trace]
    if (slope := found["zipf_slope"]) is not None:
        level = np.log(falling).mean() - slope * np.log(np.arange(1, len(falling) + 1)).mean()
        ends = np.array([1, len(falling)])
        line = {"color": GREY, "dash": "dot"}
        traces.append(
            scatter(
                x=ends,
                y=np.exp(level + slope * np.log(ends)),
                mode="lines",
                line=line,
                name=f"slope {slope:.2f}",
            )
        )
    return figure(
        "Popularity",
        "rank of the item (log scale)",
        "targets (log scale)",
        *traces,
        xaxis={"type": "log", "dtick": 1},
        yaxis={"type": "log", "dtick": 1, "rangemode": "normal"},
    )


def category_plot(categories: pl.Series) -> Plot | None:
    """Number of items in the largest top-level categories."""
    top = categories.list.first().drop_nulls().value_counts(sort=True).head(12)
    if top.height < 2:
        return None
    names = [name if len(name) <= 28 else name[:27] + "…" for name in top.to_series().to_list()]
    trace = bar(
        y=names[::-1], x=top["count"].to_list()[::-1], orientation="h", marker={"color": BLUE}
    )
    return figure("Coarsest categories", "items", "", trace, bargap=0.25)
