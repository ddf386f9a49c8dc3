"""What is in a log or a catalogue: figures as a dict, as tables on a terminal, as plots in one HTML file.

Shares are fractions of 1. What the log lacks is None. Definitions: `docs/METRICS.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.offline import get_plotlyjs
from rich.table import Table

from ..log import CAPABILITIES, WINDOWS, Catalogue, Log
from ..terminal import Console

Stats = dict[str, Any]
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
PRINTED = ("p50", "p90", "p99")  # all of them are in the dict
SHOWN_POSITIONS = 50  # of CTR by position
ALL = "all"


# -- figures ------------------------------------------------------------------------------------------------------------


def describe(log: Log | Catalogue) -> Stats:
    """Figures of a log, or the part of them that a catalogue has. Only plain values: they can be written as JSON.

    Windows, list lengths, queries, histories, eligibility and the ceiling are those of the scenario's requests; truth is
    that of the log's own label. Raises KarmafunnelError for a log that cannot be read.
    """
    meta = log.meta
    stats: Stats = {
        "kind": "catalogue",
        **{key: meta.get(key) for key in ("name", "source", "licence", "currency")},
        "has": [name for name in CAPABILITIES if meta["has"].get(name)],
        "has_not": [name for name in CAPABILITIES if not meta["has"].get(name)],
        "lacks": list(meta["lacks"]),
        "set_aside": dict(meta["set_aside"]),
        "sizes": {"items": log.items.height},
        "items": describe_items(log.items),
        "prices": {"list": prices(log.items["price"])},
    }
    return stats if isinstance(log, Catalogue) else stats | describe_log(log, stats)


def describe_items(items: pl.DataFrame) -> Stats:
    """Texts and categories of the items: words a title and a description, depth, how many there are."""
    texts = [name for name in ("title", "description") if name in items.columns]
    return {
        "words": {name: spread(words(items[name].cast(pl.String))) for name in texts},
        "without": {
            name: share(items[name].is_null()) for name in ("title", "brand", "category", "attributes", "image", "visual")
        },
        "brands": items["brand"].n_unique() - int(items["brand"].has_nulls()),
        "categories": items["category"].drop_nulls().list.join("\x00").n_unique(),
        "category_depth": spread(items["category"].list.len().drop_nulls()),
        "attributes": spread(items["attributes"].list.len().drop_nulls()),
    }


def describe_log(log: Log, stats: Stats) -> Stats:
    served = np.flatnonzero(log.in_scenario)
    rows, shown = log.rows, log.rows.filter(pl.col("position").is_not_null())
    truth = log.truth(log.meta["label"])
    of_requests = per_request(log, served, truth)
    lists = shown.group_by("request").len().filter(pl.col("request").is_in(served))["len"]
    asked = log.requests["query"].gather(served)
    return {
        "kind": "log",
        **{key: log.meta.get(key) for key in ("time", "label", "catalogue", "scenario")},
        "sizes": stats["sizes"]
        | {
            "requests": log.requests.height,
            "scenario_requests": len(served),
            "users": log.requests["user_id"].n_unique(),
            "sessions": log.requests["session_id"].drop_nulls().n_unique(),
            "rows": rows.height,
            "shown": shown.height,
            "clicks": int(rows["clicked"].sum() or 0),
            "purchases": int(rows["purchased"].sum() or 0),
            "truth": truth.height,
        },
        "time_range": time_range(log.requests["ts"]),
        "sources": dict(log.requests.group_by("source").len().sort("len", "source", descending=[True, False]).iter_rows()),
        "windows": describe_windows(log, of_requests, truth),
        "requests_per_user": spread(log.requests["user_id"].value_counts()["count"]),
        "list_length": spread(lists),
        "ctr_by_position": ctr_by_position(log, shown),
        "prices": stats["prices"]
        | {
            "shown": prices(shown["price_shown"]) if shown.height else None,
            "paid": prices(rows.filter(pl.col("purchased"))["price_paid"]) if log.has("purchases") else None,
        },
        "popularity": popularity(np.bincount(truth["item"].to_numpy(), minlength=log.n_items)),
        "history": spread(of_requests["history"]),
        "eligible": spread(of_requests["eligible"]),
        "query": None
        if not log.has("query")
        else {
            "share": 1 - (share(asked.is_null()) or 0.0),
            "distinct": asked.drop_nulls().n_unique(),
            "words": spread(words(asked)),
        },
    }


def per_request(log: Log, served: np.ndarray, truth: pl.DataFrame) -> pl.DataFrame:
    """One row a request of the scenario: window, user, history (clicks and purchases before it), eligible items, and of its truth
    how many items, how many of them eligible, had before by the user, never a target in W1; and the money.
    """
    window = log.requests["window"]
    targets_of_w1 = truth.filter(window.gather(truth["request"]) == "W1")["item"].unique()
    mine = truth.filter(pl.col("request").is_in(served)).sort("request")
    request, item = mine["request"].to_numpy(), mine["item"].to_numpy()
    mine = mine.with_columns(
        truth=pl.lit(1),
        truth_eligible=pl.Series(log.asof.is_eligible(request, item)),
        repeat=pl.Series(log.asof.own_count(request, item) > 0),
        cold=~pl.col("item").is_in(targets_of_w1),
    )
    sums = mine.group_by("request").agg(pl.col("truth", "truth_eligible", "repeat", "cold", "money").sum())
    return (
        pl.DataFrame(
            {
                "request": served,
                "window": window.gather(served),
                "user": log.user[served],
                "history": log.asof.n_events(served),
                "eligible": log.asof.known(served),
            }
        )
        .join(sums, on="request", how="left", maintain_order="left")
        .with_columns(pl.col("truth", "truth_eligible", "repeat", "cold", "money").fill_null(0))
    )


def describe_windows(log: Log, of_requests: pl.DataFrame, truth: pl.DataFrame) -> list[Stats]:
    """One dict a window, and one for all of them: the scenario's requests, their truth, and what could be found of it."""
    in_w1 = set(of_requests.filter(pl.col("window") == "W1")["user"])
    known_money = log.has("price") and truth["money"].null_count() < truth.height
    ts = log.requests["ts"]
    found = []
    for window in (*WINDOWS, ALL):
        mine = of_requests if window == ALL else of_requests.filter(pl.col("window") == window)
        users, targets = set(mine["user"]), int(mine["truth"].sum())
        of_targets = {name: int(mine[name].sum()) / targets if targets else None for name in ("truth_eligible", "repeat", "cold")}
        found.append(
            {
                "window": window,
                "requests": mine.height,
                "from": iso(ts.gather(mine["request"]).min()),
                "to": iso(ts.gather(mine["request"]).max()),
                "users": len(users),
                "new_users": None if window in ("W1", ALL) or not users else len(users - in_w1) / len(users),
                "with_truth": share(mine["truth"] > 0),
                "truth": targets,
                "money": float(mine["money"].sum()) if known_money else None,
                "eligible": mean(mine["eligible"]),
                "ceiling": of_targets["truth_eligible"],
                "repeat": of_targets["repeat"],
                "cold": None if window in ("W1", ALL) else of_targets["cold"],
                "history": mean(mine["history"]),
                "no_history": share(mine["history"] == 0),
            }
        )
    return found


def ctr_by_position(log: Log, shown: pl.DataFrame) -> list[Stats] | None:
    """Shown, clicked and purchased rows of the first positions, and clicks a shown row."""
    if not log.has("clicks") or shown.height == 0:
        return None
    rows = shown.group_by("position").agg(
        pl.len().alias("shown"), pl.col("clicked").fill_null(False).sum(), pl.col("purchased").fill_null(False).sum()
    )
    rows = rows.with_columns((pl.col("clicked") / pl.col("shown")).alias("ctr")).sort("position")
    return rows.head(SHOWN_POSITIONS).to_dicts()


def popularity(counts: np.ndarray) -> Stats | None:
    """How targets concentrate on items; counts (n_items,) int64 of targets an item.

    Gini over all items, those that are never a target included; share of targets that the top 1% of all items hold (rounded
    up to whole items); slope of log count on log rank by least squares over the items that are a target.
    """
    total, n = int(counts.sum()), len(counts)
    if total == 0:
        return None
    rising = np.sort(counts)
    falling = rising[::-1]
    targets = falling[falling > 0]
    slope = None
    if len(targets) > 1:
        slope = float(np.polyfit(np.log(np.arange(1, len(targets) + 1)), np.log(targets), 1)[0])
    return {
        "targets": total,
        "items": len(targets),
        "never": 1 - len(targets) / n,
        "gini": float(2 * (np.arange(1, n + 1) * rising).sum() / (n * total) - (n + 1) / n),
        "top_1_percent": int(falling[: math.ceil(n / 100)].sum()) / total,
        "zipf_slope": slope,
    }


def prices(values: pl.Series) -> Stats | None:
    """Spread of the prices that are known, and the share that is missing."""
    if values.len() == 0:
        return None
    known = values.drop_nulls().drop_nans()
    return {"missing": 1 - known.len() / values.len(), "spread": spread(known)}


def time_range(ts: pl.Series) -> Stats | None:
    first, last = ts.min(), ts.max()
    if first is None or last is None:
        return None
    return {"from": iso(first), "to": iso(last), "days": (last - first).total_seconds() / 86_400}  # type: ignore[operator,union-attr]


def words(texts: pl.Series) -> pl.Series:
    """Words a text, of the texts that are there."""
    return texts.drop_nulls().str.count_matches(r"\S+")


def spread(values: pl.Series) -> Stats | None:
    """n, mean, min, quantiles (linear between neighbours) and max; None of nothing."""
    if values.len() == 0:
        return None
    array = values.to_numpy().astype(float)
    found = {"n": len(array), "mean": float(array.mean()), "min": float(array.min())}
    quantiles = dict(zip(QUANTILES, np.quantile(array, list(QUANTILES.values())).tolist(), strict=True))
    return found | quantiles | {"max": float(array.max())}


def share(flags: pl.Series) -> float | None:
    return int(flags.sum()) / flags.len() if flags.len() else None


def mean(values: pl.Series) -> float | None:
    return float(np.mean(values.to_numpy())) if values.len() else None


def iso(value: Any) -> str | None:
    return None if value is None else value.isoformat()


# -- on a terminal --------------------------------------------------------------------------------------------------------


def print_description(stats: Stats, console: Console) -> None:
    """Tables: facts, windows, spreads, click rates."""
    for title, head, rows in tables(stats):
        table = Table(*head, box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
        for column in table.columns[1:]:
            column.justify = "right" if len(head) > 2 else "left"
        table.columns[0].no_wrap = True
        for row in rows:
            table.add_row(*row)
        console.print(title, style="bold")
        console.print(table)
        console.print()


Tables = list[tuple[str, list[str], list[list[str]]]]


def tables(stats: Stats) -> Tables:
    """Title, head and rows of what is printed on a terminal and in the HTML file, every figure as text."""
    found: Tables = [(str(stats["name"]), ["what", "found"], facts(stats))]
    if "windows" in stats:
        head = ["requests of the scenario", *(w["window"] for w in stats["windows"])]
        rows = [[name, *(show(w[key]) for w in stats["windows"])] for name, key, show in OF_WINDOWS]
        found.append(("windows", head, rows))
    head = ["spread of", "n", "mean", "min", *PRINTED, "max", "missing"]
    found.append(("spreads", head, [spread_row(name, s, missing) for name, s, missing in spreads(stats) if s]))
    if stats.get("ctr_by_position"):
        rows = [
            [count(p["position"]), count(p["shown"]), count(p["clicked"]), percent(p["ctr"])]
            for p in stats["ctr_by_position"][:10]
        ]
        found.append(("clicks by position (the first 10)", ["position", "shown", "clicked", "CTR"], rows))
    return found


def count(value: int | None) -> str:
    return "n/a" if value is None else f"{value:,}"


def number(value: float | None) -> str:
    """Three figures, or a whole number."""
    if value is None:
        return "n/a"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.3g}M" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.1%}" if value == 0 or value >= 0.001 else "<0.1%"


# Name, key and look of the rows of the table of windows.
OF_WINDOWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("requests", "requests", count),
    ("users", "users", count),
    ("users not in W1", "new_users", percent),
    ("requests with truth", "with_truth", percent),
    ("truth items", "truth", count),
    ("money of truth", "money", number),
    ("eligible items, mean", "eligible", number),
    ("ceiling", "ceiling", percent),
    ("repeat", "repeat", percent),
    ("cold", "cold", percent),
    ("history, mean", "history", number),
    ("without history", "no_history", percent),
)


def facts(stats: Stats) -> list[list[str]]:
    """What is one line each."""
    sizes, items = stats["sizes"], stats["items"]
    rows = [["kind", stats["kind"]], ["sizes", ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in sizes.items())]]
    if stats["kind"] == "log":
        span, popular = stats["time_range"], stats["popularity"]
        times = f"{span['from'][:16]} to {span['to'][:16]}, {span['days']:,.1f} days" if span else "an order, no clock"
        sources = list(stats["sources"].items())
        more = f", {len(sources) - 6} more" if len(sources) > 6 else ""
        rows += [
            ["time", times.replace("T", " ")],
            ["sources", ", ".join(f"{name} {n:,}" for name, n in sources[:6]) + more],
            ["scenario, truth", f"{', '.join(stats['scenario'])}; label {stats['label']}; catalogue {stats['catalogue']}"],
        ]
        if popular:
            top, never = percent(popular["top_1_percent"]), percent(popular["never"])
            words_of_it = f"Gini {number(popular['gini'])}, Zipf slope {number(popular['zipf_slope'])}"
            rows.append(["popularity", f"{words_of_it}, top 1% of items hold {top} of targets, never a target {never} of items"])
        if stats["query"]:
            rows.append(["query", f"{percent(stats['query']['share'])} of requests, {stats['query']['distinct']:,} different"])
    without = ", ".join(f"{name} {percent(s)}" for name, s in items["without"].items() if s)
    rows += [
        ["items", f"{items['brands']:,} brands, {items['categories']:,} categories; without {without or 'nothing missing'}"],
        ["currency", str(stats["currency"] or "n/a")],
        ["licence", str(stats["licence"] or "n/a")],
        ["source", str(stats["source"] or "n/a")],
        ["has", ", ".join(stats["has"]) or "nothing"],
        ["has not", ", ".join(stats["has_not"]) or "nothing"],
    ]
    rows += [["lacks", sentence] for sentence in stats["lacks"]]
    rows += [
        ["set aside", f"{what}: {n:,}" if isinstance(n, int | float) else f"{what}: {n}"]
        for what, n in stats["set_aside"].items()
    ]
    return rows


def spreads(stats: Stats) -> Iterable[tuple[str, Stats | None, float | None]]:
    """Name, spread, and share missing where it has one."""
    for name, key in (
        ("requests a user", "requests_per_user"),
        ("list length", "list_length"),
        ("history", "history"),
        ("eligible items", "eligible"),
    ):
        yield name, stats.get(key), None
    yield "words a query", (stats.get("query") or {}).get("words"), None
    for name, found in stats["prices"].items():
        yield f"price, {name}", found and found["spread"], found and found["missing"]
    for name, found in stats["items"]["words"].items():
        yield f"words a {name}", found, None
    yield "attributes an item", stats["items"]["attributes"], None


def spread_row(name: str, s: Stats, missing: float | None) -> list[str]:
    values = [number(s[key]) for key in ("n", "mean", "min", *PRINTED, "max")]
    return [name, *values, "" if missing is None else percent(missing)]


# -- plots --------------------------------------------------------------------------------------------------------------

COLOURS = {"W1": "#4f83b5", "W2a": "#9d6bb5", "W2b": "#3a9c9c", "W3": "#dd9a3c"}
BLUE, ORANGE, GREY = "#4f83b5", "#dd9a3c", "#8b9199"


def plots(log: Log | Catalogue, stats: Stats) -> list[go.Figure]:
    """Figures of what the log has; what it lacks has none."""
    money = f"price, {stats['currency'] or 'currency unknown'}"
    found = []
    if isinstance(log, Log):
        served = np.flatnonzero(log.in_scenario)
        shown = log.rows.filter(pl.col("position").is_not_null())
        truth = log.truth(log.meta["label"])
        found += [
            over_time(log, served),
            by_window(stats["windows"]),
            position_plot(stats["ctr_by_position"]),
            popularity_plot(np.bincount(truth["item"].to_numpy(), minlength=log.n_items), stats["popularity"]),
            histogram("Items a list", "items shown", "lists", shown.group_by("request").len()["len"]),
            histogram("Requests a user", "requests", "users", log.requests["user_id"].value_counts()["count"]),
            histogram("History", "clicks and purchases before a request", "requests", pl.Series(log.asof.n_events(served))),
            histogram("Eligible items", "items eligible for a request", "requests", pl.Series(log.asof.known(served))),
        ]
        if log.has("query"):
            found.append(histogram("Query length", "words", "requests", words(log.requests["query"].gather(served))))
        found.append(histogram("Shown prices", money, "rows shown", shown["price_shown"]))
        found.append(histogram("Paid prices", money, "rows purchased", log.rows.filter(pl.col("purchased"))["price_paid"]))
    found.append(histogram("List prices", money, "items", log.items["price"]))
    for name in ("title", "description"):
        if name in log.items.columns:
            found.append(histogram(f"Words a {name}", "words", "items", words(log.items[name].cast(pl.String))))
    found.append(category_plot(log.items["category"]))
    return [figure for figure in found if figure is not None]


def figure(title: str, x: str, y: str, *traces: go.Bar | go.Scatter, **layout: Any) -> go.Figure:
    """A figure in the one look of this page."""
    made = go.Figure(list(traces))
    made.update_layout(
        template=None, title={"text": f"<b>{escape(title)}</b>", "x": 0, "xref": "paper", "font": {"size": 15}}, height=300,
        bargap=0.04, margin={"l": 60, "r": 16, "t": 46, "b": 48}, paper_bgcolor="white", plot_bgcolor="white",
        hovermode="closest", font={"family": "system-ui, Helvetica, Arial, sans-serif", "size": 12, "color": "#3b4147"},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 1, "xanchor": "right", "traceorder": "normal"},
        showlegend=len(traces) > 1,
    )  # fmt: skip
    made.update_xaxes(title={"text": escape(x), "standoff": 8}, gridcolor="#ececea", zeroline=False)
    made.update_yaxes(title={"text": escape(y), "standoff": 8}, gridcolor="#ececea", rangemode="tozero", automargin=True)
    return made.update_layout(**layout)


def histogram(title: str, x: str, y: str, values: pl.Series) -> go.Figure | None:
    """One bar a value where there are few whole ones, else bins of equal width, on a log axis where the values spread widely."""
    array = values.drop_nulls().to_numpy().astype(float)
    if len(array) == 0 or (low := array.min()) == array.max():
        return None
    high = array.max()
    whole = bool((array == np.floor(array)).all())
    if whole and high - low <= 60:
        n = np.bincount((array - low).astype(int))
        return figure(title, x, y, go.Bar(x=np.arange(len(n)) + low, y=n, marker={"color": BLUE}))
    wide = high > 50 * max(np.median(array), 1e-9) or (whole and high > 1000 and np.median(array) < high / 20)
    if not wide:
        step = math.ceil((high - low + 1) / 40) if whole else (high - low) / 40
        edges = low + step * np.arange(math.ceil((high - low + whole) / step) + 1)
        edges[-1] = max(edges[-1], high)
        n, _ = np.histogram(array, bins=edges)
        return figure(title, x, y, bars(n, edges, whole, (edges[1:] + edges[:-1]) / 2, np.diff(edges)))
    least = array[array > 0].min()
    edges = np.geomspace(least, high, 41)
    if whole:
        edges = np.unique(np.floor(edges))
        edges[-1] = high + 1
    n, edges = np.histogram(array[array > 0], bins=edges)
    middles, widths = np.sqrt(edges[1:] * edges[:-1]), np.diff(edges)
    zeros = int((array <= 0).sum())
    note = f"{x} (log scale; {zeros:,} at 0 left out)" if zeros else f"{x} (log scale)"
    return figure(title, note, y, bars(n, edges, whole, middles, widths), xaxis_type="log", xaxis_dtick=1)


def bars(n: np.ndarray, edges: np.ndarray, whole: bool, middles: np.ndarray, widths: np.ndarray) -> go.Bar:
    """Bars between edges, with the bounds in the hover text."""
    upper = edges[1:] - 1 if whole else edges[1:]
    between = [f"{number(a)} to {number(b)}" for a, b in zip(edges[:-1], upper, strict=True)]
    hover = "%{customdata}: %{y:,}<extra></extra>"
    return go.Bar(x=middles, y=n, width=widths * 0.96, customdata=between, hovertemplate=hover, marker={"color": BLUE})


def over_time(log: Log, served: np.ndarray) -> go.Figure:
    """Requests along time, a colour a window; a log that knows only an order shows their number a window."""
    window = log.requests["window"].gather(served)
    ts = log.requests["ts"].gather(served)
    if log.meta["time"] == "order":
        n = [int((window == w).sum()) for w in WINDOWS]
        return figure(
            "Requests by window",
            "window (an order, no clock)",
            "requests",
            go.Bar(x=WINDOWS, y=n, marker={"color": list(COLOURS.values())}),
        )
    days = (int(log.t[-1]) - int(log.t[0])) / 86_400_000
    every, name = next((e, n) for most, e, n in ((4, "1h", "hour"), (400, "1d", "day"), (math.inf, "1w", "week")) if days <= most)
    binned = pl.DataFrame({"at": ts.dt.truncate(every), "window": window}).group_by("at", "window").len().sort("at")
    traces = []
    for w in WINDOWS:
        mine = binned.filter(pl.col("window") == w)
        traces.append(
            go.Bar(
                x=mine["at"].dt.replace_time_zone(None).to_list(), y=mine["len"].to_numpy(), name=w, marker={"color": COLOURS[w]}
            )
        )
    return figure(f"Requests a {name}", "time (UTC)", "requests", *traces, barmode="stack")


def by_window(windows: list[Stats]) -> go.Figure:
    """Ceiling, repeat and cold share of truth."""
    named = [("ceiling", BLUE), ("repeat", "#4f9d78"), ("cold", ORANGE)]
    mine = [w for w in windows if w["window"] != ALL]
    traces = [
        go.Bar(x=[w["window"] for w in mine], y=[w[key] for w in mine], name=key, marker={"color": colour})
        for key, colour in named
    ]
    layout = {
        "yaxis": {"range": [0, 1.02], "tickformat": ".0%", "title": {"text": "share of truth"}, "gridcolor": "#ececea"},
        "bargap": 0.25,
    }
    return figure("Truth by window", "window", "share of truth", *traces, **layout)


def position_plot(rows: list[Stats] | None) -> go.Figure | None:
    if not rows:
        return None
    x, y, shown = ([row[key] for row in rows] for key in ("position", "ctr", "shown"))
    hover = "position %{x}: %{y:.2%} of %{customdata:,}<extra></extra>"
    trace = go.Bar(x=x, y=y, marker={"color": BLUE}, customdata=shown, hovertemplate=hover)
    return figure(
        "Click rate by position",
        "position",
        "clicks a shown row",
        trace,
        yaxis_tickformat=".0%" if max(y) >= 0.05 else ".1%",
    )


def popularity_plot(counts: np.ndarray, found: Stats | None) -> go.Figure | None:
    """Targets an item by rank, both on a log scale, at most 200 points; the fitted slope beside it."""
    if found is None:
        return None
    falling = np.sort(counts[counts > 0])[::-1]
    ranks = np.unique(np.geomspace(1, len(falling), 200).astype(int))
    trace = go.Scatter(
        x=ranks, y=falling[ranks - 1], mode="lines+markers", marker={"size": 4}, line={"color": BLUE}, name="items"
    )
    traces = [trace]
    if (slope := found["zipf_slope"]) is not None:
        level = np.log(falling).mean() - slope * np.log(np.arange(1, len(falling) + 1)).mean()
        ends = np.array([1, len(falling)])
        line = {"color": GREY, "dash": "dot"}
        traces.append(
            go.Scatter(x=ends, y=np.exp(level + slope * np.log(ends)), mode="lines", line=line, name=f"slope {slope:.2f}")
        )
    return figure(
        "Popularity",
        "rank of the item (log scale)",
        "targets (log scale)",
        *traces,
        xaxis_type="log",
        yaxis_type="log",
        yaxis_rangemode="normal",
    )


def category_plot(categories: pl.Series) -> go.Figure | None:
    """Items of the most frequent coarsest categories."""
    top = categories.list.first().drop_nulls().value_counts(sort=True).head(12)
    if top.height < 2:
        return None
    names = [name if len(name) <= 28 else name[:27] + "…" for name in top.to_series().to_list()]
    trace = go.Bar(y=names[::-1], x=top["count"].to_list()[::-1], orientation="h", marker={"color": BLUE})
    return figure("Coarsest categories", "items", "", trace, bargap=0.25)


# -- one HTML file --------------------------------------------------------------------------------------------------------

STYLE = """
body { margin: 0; background: #fbfbfa; color: #1d2125; font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 24px 60px; }
h1 { margin: 0; font-size: 30px; letter-spacing: -0.02em; }
h2 { margin: 36px 0 8px; font-size: 19px; }
.eyebrow, .note { color: #666c73; font-size: 13px; }
.cards { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0 0; }
.card { background: #fff; border: 1px solid #e3e3df; border-radius: 8px; padding: 8px 14px; min-width: 96px; }
.card b { display: block; font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; }
.card span { color: #666c73; font-size: 13px; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(460px, 1fr)); gap: 14px; }
.plots > div { background: #fff; border: 1px solid #e3e3df; border-radius: 8px; padding: 10px 12px 2px; min-width: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px 4px 0; border-bottom: 1px solid #e3e3df; text-align: left; vertical-align: top; }
th { color: #666c73; font-weight: 500; white-space: nowrap; }
.figures th:nth-child(n + 2), .figures td:nth-child(n + 2) { text-align: right; }
.facts td:first-child { white-space: nowrap; color: #666c73; }
@media (max-width: 560px) { .plots { grid-template-columns: 1fr; } }
"""

NOTE = (
    "Eligible: known before the request and passing its filters (mean number). Ceiling: the share of truth that is eligible at "
    "all. Repeat: the user clicked or bought the item before. Cold: the item was never a target in W1. History: clicks and "
    "purchases of the user before the request. With truth: requests that have any; the others are left out of hit measures."
)


def write_html(log: Log | Catalogue, stats: Stats, path: Path | str) -> Path:
    """Write tables and plots as one HTML file that fetches nothing; returns its path."""
    path = Path(path)
    settings = {"displaylogo": False, "displayModeBar": False, "responsive": True}
    figures = [
        f"<div>{made.to_html(full_html=False, include_plotlyjs=False, config=settings, div_id=f'plot-{i}')}</div>"
        for i, made in enumerate(plots(log, stats))
    ]
    (_, facts_head, facts_rows), *others = tables(stats)
    parts = [cards(stats), '<h2>Plots</h2><div class="plots">', *figures, "</div>"]
    for title, head, rows in others:
        note = f'<p class="note">{escape(NOTE)}</p>' if title.startswith("windows") else ""
        parts.append(f"<h2>{escape(title.capitalize())}</h2>{html_table(head, rows, 'figures')}{note}")
    parts.append(f"<h2>Facts</h2>{html_table(facts_head, facts_rows, 'facts')}")
    name = escape(str(stats["name"]))
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    top = f'<div class="eyebrow">karmafunnel describe · {stats["kind"]}</div><h1>{name}</h1>'
    page = (
        f'<!doctype html><html lang="en"><head>{meta}<title>{name}</title><link rel="icon" href="data:,"><style>{STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body><main>{top}{''.join(parts)}</main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def cards(stats: Stats) -> str:
    """The figures to see first."""
    shown = {name.replace("_", " "): count(n) for name, n in stats["sizes"].items() if n}
    if stats["kind"] == "log":
        last = next(w for w in stats["windows"] if w["window"] == "W3")
        shown |= {
            "ceiling in W3": percent(last["ceiling"]),
            "repeat in W3": percent(last["repeat"]),
            "cold in W3": percent(last["cold"]),
        }
    body = "".join(f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in shown.items())
    return f'<div class="cards">{body}</div>'


def html_table(head: list[str], rows: list[list[str]], kind: str) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
