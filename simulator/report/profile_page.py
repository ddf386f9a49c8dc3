"""The fit of a profile as a table and a page: measured service times and those that a simulation
draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from ...terminal import Console
from ..load.profile import CUTOFF, ITEMS, MS, PASS, REQUESTS, STAGE, Profile, quantile
from . import plots
from .page import Figure, Page, Plot, Section, Text, Warned, rich, write_page
from .table import Cell, Table, number, print_table

HEAD = (
    "stage",
    "ms of a batch",
    "ratio, cv",
    "error",
    "at worst",
    "mean",
    "fitted",
    "p95",
    "fitted",
)
NOTE = (
    "The time of a batch of n requests with i items in all is its mean times a random ratio."
    " Error: fitted / measured mean - 1, for each batch size and cutoff of the stage before; median"
    " and worst. The last four columns, in ms: the smallest batch with all items; the mean has its"
    " 95% interval."
)


def fit_rows(profile: Profile) -> list[list[str | Cell]]:
    """The rows of the table, as text; its columns are HEAD."""
    lines: list[list[str | Cell]] = []
    for row in profile.fits:
        parts = [(row["base_ms"], ""), (row["request_ms"], " n"), (row["item_us"] / 1000, " i")]
        mean = " + ".join(f"{value:.3g}{what}" for value, what in parts if value)
        cut = "" if row["worst_cutoff"] is None else f", {row['worst_cutoff']:,}"
        worst = f"{row['worst']:+.0%} (n {row['worst_requests']}{cut})".replace("-", "−")
        ends = row["mean_low_ms"], row["mean_high_ms"]
        small = "" if None in ends else f"[{ends[0]:.3g}, {ends[1]:.3g}]"
        mean_ms = Cell(f"{row['mean_ms']:.3g}", small)
        times = [f"{row[name]:.3g}" for name in ("fitted_ms", "p95_ms", "fitted_p95_ms")]
        lines.append(
            [
                row["stage"],
                mean,
                f"{row['kind']} {row['cv']:.2f}",
                f"{row['error']:.1%}",
                worst,
                mean_ms,
                *times,
            ]
        )
    return lines


def fit_table(profile: Profile) -> Table:
    title = f"service times of {profile.services.name}: {profile.passes[PASS].n_unique():,} passes"
    return Table(HEAD, fit_rows(profile), text_columns=1, title=title)


def print_fits(profile: Profile, console: Console) -> None:
    print_table(fit_table(profile), console)
    console.print(NOTE, style="dim")
    for doubt in profile.doubts:
        console.print(doubt, style="bold yellow")


def fit_figure(profile: Profile) -> Plot:
    """A figure with two panes per stage.

    Left: ms over batch size, measured as points (bars from p5 to p95) and fitted as lines, one
    colour per cutoff of the stage before. Right: distribution of time / fitted mean, measured and
    fitted.
    """
    stages = [stage.name for stage in profile.services.stages]
    domains, height = plots.panes(2 * len(stages), 2, 230, gap=0.09, row_gap=84)
    layout = plots.blank(height, left=60, bottom=55)
    data: list[Plot] = []
    for i, stage in enumerate(stages):
        mine = profile.passes.filter(pl.col(STAGE) == stage)
        data += _means(profile, stage, mine, 2 * i) + _ratios(profile, stage, mine, 2 * i + 1)
        for pane, title, x, y in (
            (2 * i, f"{stage}: ms of a batch", "requests at once", "ms"),
            (2 * i + 1, f"{stage}: time / mean", "time / fitted mean", "share of batches"),
        ):
            across, up = domains[pane]
            layout[plots.axis(pane, "x")] = {
                "domain": across,
                "anchor": plots.on(pane)["yaxis"],
                "title": {"text": x, "standoff": 6},
            }
            layout[plots.axis(pane, "y")] = {
                "domain": up,
                "anchor": plots.on(pane)["xaxis"],
                "title": {"text": y},
                "rangemode": "tozero",
            }
            layout["annotations"].append(plots.heading(title, domains[pane]))
        layout[plots.axis(2 * i + 1, "x")] |= {"rangemode": "tozero"}
    return {"data": data, "layout": layout}


def _means(profile: Profile, stage: str, mine: pl.DataFrame, pane: int) -> list[Plot]:
    cutoffs = mine[CUTOFF].unique().sort().to_list()
    colours = plots.colour_of([str(c) for c in cutoffs])
    made = profile.services[stage].time
    data: list[Plot] = []
    for j, cutoff in enumerate(cutoffs):
        colour, some = (
            colours[str(cutoff)],
            mine.filter(pl.col(CUTOFF).eq_missing(pl.lit(cutoff, dtype=pl.Int32))),
        )
        cells = (
            some.group_by(REQUESTS)
            .agg(
                pl.col(MS).mean().alias("mean"),
                pl.col(MS).quantile(0.05).alias("low"),
                pl.col(MS).quantile(0.95).alias("high"),
                pl.col(ITEMS).mean().alias("items"),
                pl.len().alias("passes"),
            )
            .sort(REQUESTS)
        )
        x = cells[REQUESTS].to_list()
        each = float(some[ITEMS].sum()) / float(some[REQUESTS].sum())
        name = "all requests" if cutoff is None else f"{each:,.0f} items a request"
        ends = np.array([min(x), max(x)])
        line = {
            "x": ends.tolist(),
            "y": [made.mean_ms(n, n * each) for n in ends],
            "line": {"color": colour, "width": 2},
        }
        data.append(
            {"type": "scatter", "mode": "lines", "hoverinfo": "skip"} | line | plots.on(pane)
        )
        bar = {
            "type": "data",
            "symmetric": False,
            "color": plots.faint(colour, 0.45),
            "thickness": 1.4,
            "width": 0,
        }
        offset = (j - (len(cutoffs) - 1) / 2) * 0.012 * max(x)  # bars side by side
        texts = [
            rich(
                "{}<br>{} passes, {} items<br>measured {}<br>fitted {} ms",
                name,
                r["passes"],
                f"{r['items']:,.0f}",
                f"{r['mean']:.2f} ms [{r['low']:.2f}, {r['high']:.2f}]",
                f"{made.mean_ms(r[REQUESTS], r['items']):.2f}",
            )
            for r in cells.iter_rows(named=True)
        ]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [n + offset for n in x],
                "y": cells["mean"].to_list(),
                "text": texts,
                "marker": {"size": 8, "color": colour},
                "hovertemplate": rich("%{text}<extra></extra>"),
                "error_y": (
                    bar
                    | {
                        "array": (cells["high"] - cells["mean"]).to_list(),
                        "arrayminus": (cells["mean"] - cells["low"]).to_list(),
                    }
                ),
                **plots.on(pane),
            }
        )
    return data


def _ratios(profile: Profile, stage: str, mine: pl.DataFrame, pane: int) -> list[Plot]:
    made = profile.services[stage].time
    measured = np.sort(
        [
            ms / made.mean_ms(n, items)
            for n, items, ms in mine.select(REQUESTS, ITEMS, MS).iter_rows()
        ]
    )
    u = (np.arange(200) + 0.5) / 200
    fitted = quantile(made.kind, made.cv, made.ratios, u)
    shown = np.quantile(measured, u)
    most = float(max(fitted[-2], shown[-2]) * 1.1)
    keep = shown <= most
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray, Plot]] = (
        ("measured", shown[keep], u[keep], {"color": plots.QUIET, "width": 2}),
        (
            f"fitted, {made.kind}",
            np.minimum(fitted, most),
            u,
            {"color": plots.COLOURS[4], "width": 2, "dash": "dot"},
        ),
    )
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": x.tolist(),
            "y": y.tolist(),
            "line": look,
            "hovertemplate": rich(
                "{}: %{y:.0%} take at most %{x:.2f} of the mean<extra></extra>", name
            ),
            **plots.on(pane),
        }
        for name, x, y, look in pairs
    ]


def profile_page(profile: Profile, path: Path | str) -> Path:
    """Write table and figure as one HTML file that needs no network; returns its path."""
    drawn = (
        "Left: points are measured means with bars from p5 to p95, lines are fitted, one colour per"
        f" number of items a request ({_cutoffs(profile)}). Right: grey is measured, dotted is what"
        " a simulation draws."
    )
    doubts = list(map(Warned, profile.doubts))
    sections = [
        Section("fit", "Fit", "Fit", [*doubts, Text(NOTE), fit_table(profile)]),
        Section(
            "drawn", "Measured", "Measured and fitted", [Text(drawn), Figure(fit_figure(profile))]
        ),
    ]
    services = profile.services
    return write_page(
        path, Page(services.name, "karmafunnel profile", [Text(services.note, "sub")], sections)
    )


def _cutoffs(profile: Profile) -> str:
    """The cutoffs that the colours show, as text."""
    texts = []
    for stage in profile.services.stages:
        found = (
            profile.passes.filter((pl.col(STAGE) == stage.name) & pl.col(CUTOFF).is_not_null())[
                CUTOFF
            ]
            .unique()
            .sort()
        )
        texts += (
            [f"{stage.name} after cutoffs {', '.join(number(c, decimals=0) for c in found)}"]
            if len(found)
            else []
        )
    return "; ".join(texts) or "no stage has any"
