"""One self-contained HTML file about one or more Runs: where truth is lost, how well each stage ranks, one request at a time.

Every figure comes from `measures`; nothing is fetched from anywhere when the file is opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from plotly.offline import get_plotlyjs

from ..log import KarmafunnelError
from ..simulator.measures import Cascade, Measure, Run, compare, measure
from ..simulator.metrics import mass_bins
from ..simulator.reading import SLICES, Reading
from . import plots
from .plots import Plot, amount, percent
from .samples import look_up, open_log
from .table import AFTER, BEFORE, Row, to_html

Folder = Path | str
KS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True, eq=False)
class Entry:
    """One column of the report: the Runs of one recipe, one a seed. What is read off a single replay is read off the first."""

    name: str
    runs: list[Run]

    @property
    def run(self) -> Run:
        return self.runs[0]

    @property
    def stages(self) -> list[str]:
        return self.run.stages

    @property
    def currency(self) -> str | None:
        return self.run.meta["log"].get("currency")

    @cached_property
    def cascade(self) -> Cascade:
        return Cascade.of(self.run)

    def k(self, most: int) -> int:
        """A cut that the last stage can answer."""
        return min(most, self.run.k(self.stages[-1]))

    def ask(self, measures: Sequence[str | Measure], slice_name: str | None = None) -> list[Row]:
        return measure(self.runs, measures, slice=slice_name, label=self.name)


@dataclass(frozen=True)
class Section:
    """A part of the page; `name` is its anchor, `title` its heading, `short` its word in the navigation."""

    name: str
    short: str
    title: str
    body: str


def report(runs: Sequence[Folder | Sequence[Folder]], out: Folder, requests: int = 24) -> Path:
    """Write the report of one or more Run folders to `out`; returns its path.

    A sequence of folders inside `runs` is one column: the seeds of one recipe. `requests` is how many single requests can be
    looked at. Raises KarmafunnelError for a folder that is no Run, and for no folder at all; nothing is written then.
    """
    entries = open_entries(runs)
    sections = [
        summary(entries), losses(entries), stage_table(entries), hit_curves(entries), ordering(entries), calibrated(entries),
        slices(entries), times(entries), *([comparison(entries)] if len(entries) > 1 else []), one_request(entries, requests),
        record(entries),
    ]  # fmt: skip
    return write_page(out, title_of(entries), header(entries), sections)


def waterfall_png(run: Folder, path: Folder) -> Path:
    """The waterfall of a Run as a picture (PNG, SVG or PDF by the suffix), for a README.

    Raises KarmafunnelError where kaleido (the extra `images`) or a Chromium is missing.
    """
    entry = open_entries([run])[0]
    return plots.write_picture(plots.waterfall(entry.cascade, entry.stages, entry.run.label, entry.currency), Path(path))


def open_entries(runs: Sequence[Folder | Sequence[Folder]]) -> list[Entry]:
    """Open all folders and name each column: the folder's name, with as many parents as it takes to tell them apart."""
    if not runs:
        raise KarmafunnelError("report: needs at least one Run folder, found none")
    groups = [[run] if isinstance(run, (str, Path)) else list(run) for run in runs]
    opened = [[Run.open(folder) for folder in group] for group in groups]
    parts = [group[0].path.resolve().parts for group in opened]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    names = ["/".join(p[-depth:]) + (f" ({len(g)} seeds)" if len(g) > 1 else "") for p, g in zip(parts, opened, strict=True)]
    if len(set(names)) < len(names):
        raise KarmafunnelError(f"report: needs different Runs, found {sorted(n for n in set(names) if names.count(n) > 1)} twice")
    return [Entry(name, group) for name, group in zip(names, opened, strict=True)]


# -- pieces of HTML -----------------------------------------------------------------------------------------------------


def figure(plot: Plot, legend: Mapping[str, str] | None = None) -> str:
    """A place that the page's script draws a plotly figure into once it scrolls near; `legend` is colour or dash by name."""
    keys = "".join(f'<span><i style="{key(look)}"></i>{escape(name)}</span>' for name, look in (legend or {}).items())
    above = f'<div class="legend">{keys}</div>' if keys else ""
    place = f'<div class="plot" style="height:{plot["layout"]["height"]}px">'
    return f'<figure>{above}{place}<script type="application/json">{embed(plot)}</script></div></figure>'


def key(look: str) -> str:
    """CSS of a legend's key: a filled square for a colour, a line for a dash."""
    if look.startswith("#"):
        return f"background:{look}"
    return f"height:0;border-top:2px {'dotted' if look == 'dot' else 'dashed'} {plots.QUIET}"


def embed(value: Any) -> str:
    """JSON that can stand inside a <script>."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def lead(text: str) -> str:
    return f'<p class="lead">{text}</p>'


def absent(text: str) -> str:
    """Said in place of what the log cannot tell."""
    return f'<p class="absent"><b>n/a</b> {escape(text)}</p>'


def plain_table(heads: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table of ready HTML cells; the first `text_columns` are text, the rest numbers."""
    top = "".join(f"<th{'' if i < text_columns else ' class=num'}>{h}</th>" for i, h in enumerate(heads))
    lines = "".join(
        "<tr>" + "".join(f"<th>{c}</th>" if i < text_columns else f"<td>{c}</td>" for i, c in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def beside(parts: Sequence[str], together: bool) -> str:
    """Two pieces in two halves of the page, or below each other."""
    return f'<div class="half">{"".join(parts)}</div>' if together else "".join(parts)


def past(label: str) -> str:
    """click -> clicked, purchase -> purchased."""
    return "purchased" if label == "purchase" else "clicked"


def find(rows: Sequence[Row], **wanted: str) -> Row | None:
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)


def across(entries: Sequence[Entry]) -> str:
    return "label" if len(entries) > 1 else "measure"


def union(entries: Sequence[Entry]) -> list[str]:
    """All stage names, in order of first appearance."""
    return list(dict.fromkeys(stage for entry in entries for stage in entry.stages))


def name_of(entries: Sequence[Entry], entry: Entry, tag: str = "h3") -> str:
    """A Run's name as a heading, where there are several."""
    return f"<{tag}>{escape(entry.name)}</{tag}>" if len(entries) > 1 else ""


def titled(entries: Sequence[Entry], entry: Entry, title: str) -> str:
    return f"{title}, {entry.name}" if len(entries) > 1 else title


# -- sections -----------------------------------------------------------------------------------------------------------


def summary(entries: Sequence[Entry]) -> Section:
    """Key figures: cards for one Run, a table for several."""
    facts = [key_figures(entry) for entry in entries]
    if len(entries) == 1:
        cards = "".join(
            f'<div class="card"><div class="what">{what}</div><div class="big">{big}</div><div class="small">{small}</div></div>'
            for what, big, small in facts[0]
        )
        return Section("summary", "At a glance", "At a glance", lead(sentence(entries[0])) + f'<div class="cards">{cards}</div>')
    names = [what.replace(f"after {escape(entries[0].stages[-1])}", "after the last stage") for what, _, _ in facts[0]]
    rows = [
        [what, *(f'<span class="v">{f[i][1]}</span> <span class="ci">{f[i][2]}</span>' for f in facts)]
        for i, what in enumerate(names)
    ]
    said = "".join(f"<li><b>{escape(e.name)}</b>: {sentence(e)}</li>" for e in entries)
    table = plain_table(["", *(escape(e.name) for e in entries)], rows)
    return Section("summary", "At a glance", "At a glance", f'<ul class="lead">{said}</ul>{table}')


def worst(entry: Entry) -> Row | None:
    """The reason within the funnel that loses most truth items."""
    lost = [row for row in entry.cascade.losses if row["reason"] not in ("kept", "not eligible") and row["items"]]
    return max(lost, key=lambda row: row["items"], default=None)


def sentence(entry: Entry) -> str:
    """What happened, in two sentences."""
    total = sum(row["items"] for row in entry.cascade.losses)
    if not total:
        return f"No replayed request has a {entry.run.label}: there is nothing to find, and everything below is n/a."
    kept = next(row for row in entry.cascade.losses if row["reason"] == "kept")
    text = f"Of {total:,} {past(entry.run.label)} items, <b>{percent(kept['share'])}</b> are still there after "
    text += escape(entry.stages[-1])
    if kept["money_share"] is not None:
        text += f", with <b>{percent(kept['money_share'])}</b> of their money"
    never = next(row for row in entry.cascade.losses if row["reason"] == "not eligible")
    if never["items"]:
        text += f"; {percent(never['share'])} were not eligible, out of reach for any funnel"
    leak = worst(entry)
    if leak is None:
        return text + ". The funnel itself loses nothing."
    name = escape(plots.reason_name(leak["reason"], entry.stages))
    text += f". The largest leak: <b>{name}</b>, {percent(leak['share'])} of all truth items"
    return text + (f", missed by {missed_by(entry, leak)} in the median." if leak["median_margin"] is not None else ".")


def missed_by(entry: Entry, loss: Row) -> str:
    """A median margin in words; how far recall was off is only known from below."""
    ranks = round(loss["median_margin"])
    return f"{'at least ' if loss['reason'] == entry.stages[0] else ''}{ranks:,} rank{'' if ranks == 1 else 's'}"


def key_figures(entry: Entry) -> list[tuple[str, str, str]]:
    """(what, figure, what it says) in HTML."""
    last, k, most = entry.stages[-1], entry.k(10), entry.run.k(entry.stages[-1])
    rows = entry.ask([f"HR@{k}", "survival", f"GMV-HR@{most}"])
    kept = find(rows, measure="survival", stage="end to end")
    hit, random, ceiling = (find(rows, measure=f"HR@{k}", stage=s) for s in (last, "random", "ceiling"))
    money = find(rows, measure=f"GMV-HR@{most}", stage=last)
    counts = entry.run.read(
        "requests", pl.len().alias("n"), (pl.col("n_truth") > 0).sum().alias("truth"), pl.col("n_eligible").mean()
    ).row(0, named=True)
    leak = worst(entry)
    seconds = entry.run.read("timing", pl.col("seconds").sum()).item()

    def value(row: Row | None) -> str:
        return "n/a" if row is None or row["value"] is None else percent(row["value"])

    def range_of(row: Row | None) -> str:
        return "" if row is None or row["low"] is None else f"95% interval {percent(row['low'])} to {percent(row['high'])}"

    asked = f"{counts['truth']:,} with a {entry.run.label}; {counts['n_eligible']:,.0f} eligible items on average"
    priced = range_of(money) if money and money["value"] is not None else "no prices of truth items in this log"
    beside_it = f"random {value(random)}, ceiling {value(ceiling)}"
    where = "" if leak is None else escape(plots.reason_name(leak["reason"], entry.stages))
    device = escape(str(entry.run.meta.get("device") or "cpu"))
    return [
        ("Requests replayed", f"{counts['n']:,}", asked),
        ("Truth kept end to end", value(kept), range_of(kept)),
        ("Money kept", value(money), priced),
        (f"HR@{k} after {escape(last)}", value(hit), f"{range_of(hit)}<br>{beside_it}".removeprefix("<br>")),
        ("Largest leak of the funnel", "none" if leak is None else percent(leak["share"]), where),
        ("Replay time", f"{1000 * seconds / max(counts['n'], 1):,.1f} ms", f"a request, all stages, on {device}"),
    ]


def losses(entries: Sequence[Entry]) -> Section:
    """The waterfall, and the same as a table."""
    parts = [
        lead(
            f"Every item that was {past(entries[0].run.label)} falls through the stages until one loses it. <b>Not "
            "eligible</b>: not known before the request, or filtered out, so no funnel could have found it. <b>Not "
            "recalled</b>: recall did not bring it up. <b>Missed by the index</b>: an exact search would have. <b>Cut</b>: "
            "the stage saw it and ranked it too low. Shares are of all truth items, so they add up."
        )
    ]
    for entry in entries:
        title = name_of(entries, entry)
        kept = next(row for row in entry.cascade.losses if row["reason"] == "kept")
        if kept["money_share"] is None:
            title += absent("Money: the log holds no prices of truth items, so only items are counted.")
        parts.append(
            title + figure(plots.waterfall(entry.cascade, entry.stages, entry.run.label, entry.currency)) + loss_table(entry)
        )
    return Section("losses", "Losses", "Where truth and money are lost", "".join(parts))


def loss_table(entry: Entry) -> str:
    """Reason by reason: items, money, median margin."""
    rows = []
    priced = any(row["money_share"] is not None for row in entry.cascade.losses)
    for row in entry.cascade.losses:
        if row["reason"] == "index" and not row["items"] and not has_index(entry.run):
            continue
        money = [amount(row["money"], entry.currency), percent(row["money_share"])] if priced else ["n/a", "n/a"]
        missed = "" if row["median_margin"] is None else f"{row['median_margin']:,.0f}"
        rows.append(
            [escape(plots.reason_name(row["reason"], entry.stages)), f"{row['items']:,}", percent(row["share"]), *money, missed]
        )
    table = plain_table(["", "items", "share", "money", "share", "missed by, ranks"], rows)
    note = "Missed by: how many ranks a lost item stood below the last one kept, in the median; at recall a lower bound."
    return f'<details><summary>The numbers</summary>{table}<p class="note">{note}</p></details>'


def has_index(run: Run) -> bool:
    """Whether an approximate index was compared with exact search."""
    return any(name.endswith(".index_recall") for name in run.columns("requests"))


def stage_table(entries: Sequence[Entry]) -> Section:
    """Stages as lines and measures as columns, with intervals; several Runs side by side."""
    small, most = (min(e.k(n) for e in entries) for n in (10, 10**9))
    names = ["survival", *dict.fromkeys([f"HR@{small}", f"HR@{most}"]), f"Recall@{most}", f"nDCG@{small}", f"MRR@{small}"]
    names += [f"GMV-HR@{most}", f"GMV-HR@{most}:w99", f"GMV-nDCG@{small}"]
    rows = [row for entry in entries for row in entry.ask(names)]
    priced = any(row["value"] is not None for row in rows if row["measure"].startswith("GMV"))
    text = lead(
        "How good each stage's own output is. <b>Survival</b> multiplies down the column to the end-to-end line; the others "
        "score a stage's ranking of what it puts out. <b>Ceiling</b> is what perfect ranking of eligible items would get, "
        "<b>random</b> what chance would. Money is shown raw and cut at its 99th percentile (w99), so that one large order "
        "does not decide."
    )
    if not priced:
        rows = [row for row in rows if not row["measure"].startswith("GMV")]
        text += absent("GMV-HR and GMV-nDCG: the log holds no prices of truth items.")
    note = '<p class="note">Truth is in-scenario: what came of these requests themselves. All-scenario truth: n/a.</p>'
    return Section("stages", "Stage table", "Stage by stage", text + to_html(rows, across(entries)) + note)


def cuts(entry: Entry) -> list[int]:
    """The ks of the curves: round numbers up to the widest stage, and every stage's own output size."""
    sizes = {entry.run.k(stage) for stage in entry.stages}
    return sorted({k for k in KS if k <= max(sizes)} | sizes)


def hit_curves(entries: Sequence[Entry]) -> Section:
    """HR@k over k, and the same in money."""
    panels: list[tuple[str, list[Row]]] = []
    lacking = False
    for entry in entries:
        ks = cuts(entry)
        rows = entry.ask([f"HR@{k}" for k in ks] + [f"GMV-HR@{k}" for k in ks])
        money = [row for row in rows if row["measure"].startswith("GMV") and row["value"] is not None]
        panels.append((titled(entries, entry, "HR@k"), [row for row in rows if row["measure"].startswith("HR")]))
        if money:
            panels.append((titled(entries, entry, "GMV-HR@k, money"), money))
        else:
            lacking = True
    text = lead(
        "How deep one has to look. Each line ends at what its stage puts out; bands are 95% intervals. Where a later stage's "
        "line runs above an earlier one, it improves the order; where it ends, the rest is gone."
    )
    text += absent("Money: the log holds no prices of truth items.") if lacking else ""
    return Section(
        "curves",
        "HR@k",
        "Hit rate by depth",
        text
        + figure(plots.curves(panels, union(entries)), plots.colour_of(union(entries)) | {"ceiling": "dash", "random": "dot"}),
    )


def ordering(entries: Sequence[Entry]) -> Section:
    """AUC and gAUC stage by stage, on exposures where the log has them, else on candidates."""
    shown = all(entry.run.meta["log"]["has"].get("exposures") for entry in entries)
    names = ["AUC", "gAUC:request:exposures", "gAUC:user:exposures", "HR@1:exposures", "MRR:exposures"] if shown else []
    rows = [row for entry in entries for row in entry.ask([*names, "gAUC:request:candidates"])]
    defined = [
        name
        for name in dict.fromkeys(row["measure"] for row in rows)
        if any(r["value"] is not None and r["stage"] not in AFTER for r in rows if r["measure"] == name)
    ]
    drawn = [name for name in ("AUC", "gAUC:request:exposures", "gAUC:request:candidates") if name in defined]
    panels = [(name, [row for row in rows if row["measure"] == name and row["stage"] != "random"]) for name in drawn]
    text = lead(
        "Whether a stage puts what was wanted above what was not; 0.5 is chance. On <b>exposures</b> all stages order the "
        "very same shown items, so they can be compared. On <b>candidates</b> a stage orders what reached it: later stages "
        "have the harder task."
    )
    if not shown:
        text += absent("AUC and gAUC on exposures: the log holds no lists that were shown, only what was chosen.")
    parts = [f"<div>{to_html(rows, across(entries))}</div>"]
    if panels:
        names_of = [entry.name for entry in entries]
        parts.insert(
            0, figure(plots.dots(panels, names_of, "label", "stage"), plots.colour_of(names_of) if len(entries) > 1 else None)
        )
    return Section("auc", "AUC, gAUC", "Order within a stage", text + beside(parts, len(panels) == 1 and len(entries) == 1))


def calibrated(entries: Sequence[Entry]) -> Section:
    """Probabilities against frequencies for every stage that has them."""
    text = lead(
        "A calibrated ranker's probabilities can be multiplied with prices. Points on the diagonal: what is said to happen in "
        "5% of cases happens in 5% of cases."
    )
    panels, rows = [], []
    for entry in entries:
        reading = Reading(entry.run)
        for stage, probability in reading.shown.probability.items():
            known = ~np.isnan(probability)
            if known.any():
                panels.append((titled(entries, entry, stage), bins(probability[known], reading.shown.label[known])))
        rows += entry.ask(["ECE", "logloss"]) if reading.shown.probability else []
    if not panels:
        return Section(
            "calibration",
            "Calibration",
            "Calibration",
            text + absent("no stage has probabilities of shown items: it takes a calibrated ranker and shown lists."),
        )
    told = [row for row in rows if row["value"] is not None]
    parts = [figure(plots.calibration(panels)), f"<div>{to_html(told, across(entries))}</div>"]
    return Section("calibration", "Calibration", "Calibration", text + beside(parts, len(panels) == 1))


def bins(probability: np.ndarray, label: np.ndarray) -> list[Row]:
    """The bins that ECE is taken over: mean probability, frequency and rows of each."""
    frame = pl.DataFrame({"bin": mass_bins(probability), "probability": probability, "frequency": label.astype(np.float64)})
    return (
        frame.group_by("bin")
        .agg(pl.col("probability", "frequency").mean(), pl.len().alias("rows"))
        .sort("bin")
        .drop("bin")
        .to_dicts()
    )


def slices(entries: Sequence[Entry]) -> Section:
    """HR@k and losses of every slice, as small multiples."""
    k = min(entry.k(10) for entry in entries)
    last = {entry.name: entry.stages[-1] for entry in entries}
    panels, empty = [], []
    for name in SLICES:
        rows = [row for entry in entries for row in entry.ask([f"HR@{k}"], name) if row["stage"] not in (*BEFORE, *AFTER)]
        if len(entries) > 1:
            rows = [row for row in rows if row["stage"] == last[row["label"]]]
        values = {row["slice"] for row in rows if row["value"] is not None}
        if len(values) > 1:
            panels.append((SLICE_TITLES[name], [row for row in rows if row["slice"] in values]))
        else:
            empty.append(f"{SLICE_TITLES[name]} (only {values.pop().split('=')[1]})" if values else SLICE_TITLES[name])
    text = lead(
        f"HR@{k} {'of each stage' if len(entries) == 1 else 'after the last stage'} for kinds of truth items and requests, "
        "with 95% intervals and the number of requests scored. <b>Cold</b>: never a target before; <b>head</b>: the items "
        "that together hold half of all targets; <b>repeat</b>: the user had the item before."
    )
    if empty:
        text += absent(f"one kind only, or unknown, in this log: {'; '.join(empty)}.")
    if panels:
        by, names = ("stage", union(entries)) if len(entries) == 1 else ("label", [entry.name for entry in entries])
        text += figure(plots.dots(panels, names, by, "slice", zero=True), plots.colour_of(names))
    text += lead("And where their truth goes; every bar is all truth items of its slice.")
    for entry in entries:
        found = [row for name in SLICES for row in Cascade.of(entry.run, name).losses]
        some = {row["slice"] for row in found if row["items"]}
        several = {name for name in SLICES if sum(s.startswith(f"{name}=") for s in some) > 1}
        found = [row for row in found if row["slice"] in some and row["slice"].split("=")[0] in several]
        text += name_of(entries, entry)
        if not found:
            text += absent("nothing to slice by.")
            continue
        colours = plots.reason_colours(entry.stages)
        legend = {plots.reason_name(r, entry.stages): colours[r] for r in plots.reasons(found, entry.stages)}
        text += figure(plots.slice_losses(found, entry.stages), legend)
    return Section("slices", "Slices", "Who and what is served well", text)


SLICE_TITLES = {
    "target": "Item popularity",
    "repeat": "Repeat or new to the user",
    "price": "Price band",
    "user": "User",
    "query": "Query",
}


def times(entries: Sequence[Entry]) -> Section:
    """Milliseconds a request and rows in and out, stage by stage."""
    text = lead(
        "Wall time of the replay itself, in chunks of requests on one machine: good for comparing stages with each other, not "
        "a serving latency."
    )
    for entry in entries:
        frame = entry.run.read("timing")
        per = frame.group_by("stage", maintain_order=True).agg(
            pl.col("requests", "rows_in", "rows_out", "seconds").sum(),
            (1000 * pl.col("seconds") / pl.col("requests")).quantile(0.95).alias("p95"),
            pl.len().alias("chunks"),
        )
        found = {row["stage"]: row for row in per.iter_rows(named=True)}
        total = sum(row["seconds"] for row in found.values()) or 1.0
        colours = plots.colour_of(union(entries))
        rows = []
        for stage in entry.stages:
            if stage not in found:
                continue
            row = found[stage]
            n = max(row["requests"], 1)
            share = row["seconds"] / total
            bar = f'<span class="bar" style="width:{100 * share:.1f}%;background:{colours[stage]}"></span>'
            rows.append(
                [
                    escape(stage), f"{1000 * row['seconds'] / n:,.2f}", f"{row['p95']:,.2f}", f"{row['rows_in'] / n:,.0f}",
                    f"{row['rows_out'] / n:,.0f}", f"{1e6 * row['seconds'] / max(row['rows_in'], 1):,.1f}",
                    f'<div class="track">{bar}</div>',
                ]
            )  # fmt: skip
        text += name_of(entries, entry)
        text += plain_table(
            ["stage", "mean ms a request", "p95 over chunks", "rows in", "rows out", "µs a row in", "share of time"], rows
        )
    return Section("time", "Time", "Time and rows", text)


def comparison(entries: Sequence[Entry]) -> Section:
    """Every Run against the first, paired on the same requests."""
    base = entries[0]
    k, most = (min(e.k(n) for e in entries) for n in (10, 10**9))
    names = ["survival", f"HR@{k}", f"nDCG@{k}", f"HR@{most}", f"GMV-HR@{most}:w99"]
    if all(e.run.meta["log"]["has"].get("exposures") for e in entries):
        names += ["AUC", "gAUC:request:exposures"]
    text = lead(
        f"Each Run against <b>{escape(base.name)}</b> on the same requests. A difference counts where its 95% interval leaves "
        "out 0; (Holm) marks those that still do when the whole table is to hold at once."
    )
    for entry in entries[1:]:
        text += f"<h3>{escape(entry.name)} against {escape(base.name)}</h3>"
        try:
            rows = compare(base.runs, entry.runs, names, label_a=base.name, label_b=entry.name)
            text += to_html([row for row in rows if row["value_a"] is not None] or rows)
        except KarmafunnelError as error:
            text += absent(f"not compared. {error}")
    return Section("compare", "Compare", "Compared, request by request", text)


def one_request(entries: Sequence[Entry], n: int) -> Section:
    """A picker over a sample of requests; the page's script draws the rest."""
    data = look_up([entry.run for entry in entries], [entry.name for entry in entries], n)
    if not data["requests"]:
        return Section("request", "One request", "One request at a time", absent("no replayed request has any truth."))
    text = lead(
        f"{len(data['requests'])} requests of {escape(entries[0].name)}, drawn at random within each outcome so that every "
        "kind of success and failure is here. Follow what was wanted through the stages, and see what came through instead."
    )
    if data["missing"]:
        text += absent(f"titles, queries and histories: {data['missing']}; ids are shown.")
    return Section(
        "request",
        "One request",
        "One request at a time",
        f'{text}<div id="one"></div><script type="application/json" id="one-data">{embed(data)}</script>',
    )


def record(entries: Sequence[Entry]) -> Section:
    """What it takes to make these Runs again."""
    parts = [lead("What it takes to make this again: recipe, command, commit, seed, versions and the checksum of the log.")]
    for entry in entries:
        meta = entry.run.meta
        packages = ", ".join(f"{name} {v}" for name, v in (meta.get("versions") or {}).items())
        facts = {
            "command": meta.get("command"), "commit": meta.get("commit"), "device": meta.get("device"),
            "seed": ", ".join(str(run.meta["seed"]) for run in entry.runs), "limit": meta.get("limit") or "none",
            "log checksum": meta["log"].get("checksum"),
            "stages": "; ".join(f"{s['name']}: {s.get('kind', '')}, k = {s['k']:,}" for s in meta["stages"]),
            **{f"embedder {name}": value for name, value in (meta.get("embedders") or {}).items()}, "versions": packages,
        }  # fmt: skip
        listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value or 'n/a'))}</dd>" for name, value in facts.items())
        summary_text = escape(f"Recipe {meta.get('recipe_name') or ''}")
        recipe = f"<details><summary>{summary_text}</summary><pre>{escape(str(meta.get('recipe') or 'n/a'))}</pre></details>"
        parts.append(f"{name_of(entries, entry)}<dl>{listed}</dl>{recipe}")
    return Section("record", "Record", "The record", "".join(parts))


# -- the page -----------------------------------------------------------------------------------------------------------


def typed(funnel: str) -> str:
    """A funnel as typed, one stage a line."""
    return escape(funnel).replace(" &gt;&gt; ", "\n&gt;&gt; ")


def header(entries: Sequence[Entry]) -> str:
    """What was replayed on what, and how."""
    meta = entries[0].run.meta
    logs = list(dict.fromkeys(entry.run.meta["log"]["name"] for entry in entries))
    log, _ = open_log(entries[0].run)
    licence = f"; licence of the log: {escape(str(log.meta['licence']))}" if log and log.meta.get("licence") else ""
    words = [
        f"Run{'s' if len(entries) > 1 else ''} {escape(', '.join(e.name for e in entries))}",
        f"window {escape(str(meta['window']))}",
        f"truth: {past(entries[0].run.label)} items",
        f"{meta['log'].get('items', 0):,} items" if meta["log"].get("items") else "",
    ]
    lacks = [name for name in ("query", "text", "price", "exposures") if not meta["log"]["has"].get(name)]
    words.append(f"the log has no {', '.join(lacks)}" if lacks else "")
    funnels = "".join(
        f'<div class="funnel">{name_of(entries, e, "span")}<pre>{typed(str(e.run.meta.get("funnel") or "n/a"))}</pre></div>'
        for e in entries
    )
    seeds = ", ".join(dict.fromkeys(str(run.meta["seed"]) for e in entries for run in e.runs))
    commits = ", ".join(dict.fromkeys(str(run.meta.get("commit") or "n/a") for e in entries for run in e.runs))
    version = escape(str((meta.get("versions") or {}).get("karmafunnel", "n/a")))
    made = f"commit {escape(commits)} · seed {escape(seeds)} · karmafunnel {version}"
    return (
        f'<header><div class="eyebrow">karmafunnel replay report</div><h1>{escape(", ".join(logs))}</h1>'
        f'<p class="sub">{" · ".join(filter(None, words))}{licence}</p>'
        f'{funnels}<p class="sub">{made} · <a href="#record">recipe, command and versions</a></p></header>'
    )


def title_of(entries: Sequence[Entry]) -> str:
    return escape(f"{entries[0].run.meta['log']['name']}: {', '.join(e.name for e in entries)}")


def page(title: str, top: str, sections: Sequence[Section]) -> str:
    """The whole HTML file; `title` and `top` are ready HTML."""
    read: Callable[[str], str] = lambda name: Path(__file__).with_name(name).read_text(encoding="utf-8")
    links = "".join(f'<a href="#{s.name}">{s.short}</a>' for s in sections)
    body = "".join(f'<section id="{s.name}"><h2>{s.title}</h2>{s.body}</section>' for s in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{read("report.css")}</style></head>'
        f"<body><nav><b>karmafunnel</b>{links}</nav><main>{top}{body}</main>"
        f"<script>{get_plotlyjs()}</script><script>{read('report.js')}</script></body></html>"
    )


def write_page(path: Path | str, title: str, top: str, sections: Sequence[Section]) -> Path:
    """Write `page` to a file that appears whole or not at all; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page(title, top, sections), encoding="utf-8")
    temporary.replace(path)
    return path
