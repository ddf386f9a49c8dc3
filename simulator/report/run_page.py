"""One self-contained HTML file about one or more Runs: where truth is lost, how well each stage
ranks, one request at a time.

Every figure comes from `measures`; nothing is fetched from anywhere when the file is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ..measure.arrays import SLICES, RunArrays
from ..measure.compare import Cascade, Measure, Run, added, compare, measure
from ..measure.metrics import mass_bins
from . import plots
from .measure_table import AFTER, BEFORE, Row, between, measure_table
from .page import (
    Absent,
    Beside,
    Block,
    Cards,
    Details,
    Facts,
    Figure,
    Heading,
    Page,
    Points,
    Pre,
    Requests,
    Section,
    Text,
    Warned,
    Words,
    rich,
    write_page,
)
from .plots import amount, percent
from .request_page import look_up, open_log
from .table import Bar, Cell, Table, number, places

Folder = Path | str
KS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True, eq=False)
class Entry:
    """One column of the report: the Runs of one recipe, one a seed. What is read off a single
    replay is read off the first.
    """

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


def report(runs: Sequence[Folder | Sequence[Folder]], out: Folder, requests: int = 24) -> Path:
    """Write the report of one or more Run folders to `out`; returns its path.

    A sequence of folders inside `runs` is one column: the seeds of one recipe. `requests` is how
    many single requests can be looked at. Raises KarmafunnelError for a folder that is no Run, and
    for no folder at all; nothing is written then.
    """
    entries = open_entries(runs)
    sections = [
        summary(entries),
        losses(entries),
        stage_table(entries),
        hit_curves(entries),
        ordering(entries),
        calibrated(entries),
        slices(entries),
        times(entries),
        *([comparison(entries)] if len(entries) > 1 else []),
        one_request(entries, requests),
        record(entries),
    ]
    logs = ", ".join(dict.fromkeys(str(entry.run.meta["log"]["name"]) for entry in entries))
    title = f"{entries[0].run.meta['log']['name']}: {', '.join(e.name for e in entries)}"
    return write_page(
        out, Page(title, "karmafunnel replay report", header(entries), sections, heading=logs)
    )


def waterfall_png(run: Folder, path: Folder) -> Path:
    """The waterfall of a Run as a picture (PNG, SVG or PDF by the suffix), for a README.

    Raises KarmafunnelError where kaleido (the extra `images`) or a Chromium is missing.
    """
    entry = open_entries([run])[0]
    return plots.write_picture(
        plots.waterfall(entry.cascade, entry.stages, entry.run.label, entry.currency), Path(path)
    )


def open_entries(runs: Sequence[Folder | Sequence[Folder]]) -> list[Entry]:
    """Open all folders and name each column: the folder's name, with as many parents as it takes to
    tell them apart.
    """
    if not runs:
        raise KarmafunnelError("report", needs="at least one Run folder", found="none")
    groups = [[run] if isinstance(run, (str, Path)) else list(run) for run in runs]
    opened = [[Run.open(folder) for folder in group] for group in groups]
    parts = [group[0].path.resolve().parts for group in opened]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    names = [
        "/".join(p[-depth:]) + (f" ({len(g)} seeds)" if len(g) > 1 else "")
        for p, g in zip(parts, opened, strict=True)
    ]
    if len(set(names)) < len(names):
        raise KarmafunnelError(
            "report",
            needs="different Runs",
            found=f"{sorted(n for n in set(names) if names.count(n) > 1)} twice",
        )
    return [Entry(name, group) for name, group in zip(names, opened, strict=True)]


# -- words and rows --------------------------------------------------------------------------------


def past(label: str) -> str:
    """click -> clicked, purchase -> purchased."""
    return "purchased" if label == "purchase" else "clicked"


def find(rows: Sequence[Row], **wanted: str) -> Row | None:
    return next(
        (row for row in rows if all(row[key] == value for key, value in wanted.items())), None
    )


def across(entries: Sequence[Entry]) -> str:
    return "label" if len(entries) > 1 else "measure"


def union(entries: Sequence[Entry]) -> list[str]:
    """All stage names, in order of first appearance."""
    return list(dict.fromkeys(stage for entry in entries for stage in entry.stages))


def name_of(entries: Sequence[Entry], entry: Entry) -> list[Block]:
    """A Run's name as a heading, where there are several."""
    return [Heading(entry.name)] if len(entries) > 1 else []


def titled(entries: Sequence[Entry], entry: Entry, title: str) -> str:
    return f"{title}, {entry.name}" if len(entries) > 1 else title


# -- sections --------------------------------------------------------------------------------------


def summary(entries: Sequence[Entry]) -> Section:
    """Key figures: cards for one Run, a table with a line a Run for several, all at one depth."""
    k, most = common(entries)
    facts = [key_figures(entry, k, most) for entry in entries]
    said = [rich("{} {}", sentence(entry), adds(entry, k)) for entry in entries]
    if len(entries) == 1:
        return Section("summary", "At a glance", "At a glance", [Text(said[0]), Cards(facts[0])])
    heads = [
        "",
        *(
            what.replace(f"after {entries[0].stages[-1]}", "after the last stage")
            for what, _, _ in facts[0]
        ),
    ]
    rows: list[list[Words | Cell | Bar]] = [
        [e.name, *(Cell(big, small, strong=True) for _, big, small in told)]
        for e, told in zip(entries, facts, strict=True)
    ]
    points = Points(
        [rich("<b>{}</b>: {}", e.name, text) for e, text in zip(entries, said, strict=True)]
    )
    return Section(
        "summary", "At a glance", "At a glance", [points, Table(heads, rows, look="stacked")]
    )


def common(entries: Sequence[Entry]) -> tuple[int, int]:
    """A small and a large cut that the last stage of every Run can answer: 10 or less, and what the
    shortest puts out.
    """
    return min(e.k(10) for e in entries), min(e.k(10**9) for e in entries)


def adds(entry: Entry, k: int) -> Words:
    """What the last stage adds to the order of the one before it, in one sentence."""
    if len(entry.stages) < 2:
        return ""
    before, last = entry.stages[-2:]
    row = find(added(entry.runs, [f"HR@{k}"]), stage=last)
    if row is None or row["difference"] is None:
        return ""
    decimals = places(row["difference"])
    figure = f"{number(row['difference'], True, decimals)} HR@{k} {between(row, True, decimals)}".rstrip()
    how = f"paired on {row['n']:,} requests, users clustered"
    if row["better"]:
        verb = "adds" if row["better"] == "B" else "loses"
        return rich("<b>{} {} {}</b> over the order of {} ({}).", last, verb, figure, before, how)
    return rich(
        "Whether {} adds anything to the order of {} cannot be told: {} ({}).",
        last,
        before,
        figure,
        how,
    )


def unlike(entries: Sequence[Entry]) -> list[Block]:
    """A warning for every Run that did not replay what the first one did, and in what."""
    of = {
        "log": lambda run: f"{run.meta['log'].get('name')} ({run.meta['log'].get('checksum')})",
        "truth": lambda run: f"{past(run.label)} items",
        "window": lambda run: run.meta["window"],
        "limit": lambda run: run.meta.get("limit") or "none",
    }
    first, found = entries[0], list[Block]()
    ids = first.run.read("requests", "request_id")["request_id"]
    for other in entries[1:]:
        theirs = other.run.read("requests", "request_id")["request_id"]
        told = [
            f"{what} {say(other.run)} instead of {say(first.run)}"
            for what, say in of.items()
            if say(other.run) != say(first.run)
        ]
        if not ids.equals(theirs):
            both = theirs.is_in(ids.implode()).sum()
            told.append(
                f"{len(theirs):,} requests instead of {len(ids):,}, {both:,} of them in both"
            )
        elif [what.split()[0] for what in told] == ["limit"]:  # that cut nothing off
            continue
        if told:
            text = rich(
                "<b>{}</b> did not replay the same requests as <b>{}</b>: {}. Their figures cannot be held against each other.",
                other.name,
                first.name,
                "; ".join(told),
            )
            found.append(Warned(text))
    return found


def worst(entry: Entry) -> Row | None:
    """The reason within the funnel that loses most truth items."""
    lost = [
        row
        for row in entry.cascade.losses
        if row["reason"] not in ("kept", "not eligible") and row["items"]
    ]
    return max(lost, key=lambda row: row["items"], default=None)


def sentence(entry: Entry) -> Words:
    """What happened, in two sentences."""
    total = sum(row["items"] for row in entry.cascade.losses)
    if not total:
        return f"No replayed request has a {entry.run.label}: there is nothing to find, and everything below is n/a."
    kept = next(row for row in entry.cascade.losses if row["reason"] == "kept")
    text = rich(
        "Of {} {} items, <b>{}</b> are still there after {}, which puts out {}",
        f"{total:,}",
        past(entry.run.label),
        percent(kept["share"]),
        entry.stages[-1],
        f"{entry.k(10**9):,}",
    )
    if kept["money_share"] is not None:
        text += rich(", with <b>{}</b> of their money", percent(kept["money_share"]))
    never = next(row for row in entry.cascade.losses if row["reason"] == "not eligible")
    if never["items"]:
        text += rich("; {} were not eligible, out of reach for any funnel", percent(never["share"]))
    leak = worst(entry)
    if leak is None:
        return text + ". The funnel itself loses nothing."
    name = plots.reason_name(leak["reason"], entry.stages)
    text += rich(
        ". The largest leak: <b>{}</b>, {} of all truth items", name, percent(leak["share"])
    )
    return text + (
        rich(", missed by {} in the median.", missed_by(entry, leak))
        if leak["median_margin"] is not None
        else "."
    )


def missed_by(entry: Entry, loss: Row) -> str:
    """A median margin in words; how far recall was off is only known from below."""
    ranks = round(loss["median_margin"])
    return f"{'at least ' if loss['reason'] == entry.stages[0] else ''}{ranks:,} rank{'' if ranks == 1 else 's'}"


def key_figures(entry: Entry, k: int, most: int) -> list[tuple[Words, Words, Words]]:
    """Cards (name, value, explanation); relevant items and money are counted to depth `most`."""
    last = entry.stages[-1]
    rows = entry.ask([f"HR@{k}", f"kept@{most}", f"GMV-HR@{most}"])
    kept = find(rows, measure=f"kept@{most}", stage=last)
    hit, random, ceiling = (
        find(rows, measure=f"HR@{k}", stage=s) for s in (last, "random", "ceiling")
    )
    money = find(rows, measure=f"GMV-HR@{most}", stage=last)
    counts = entry.run.read(
        "requests",
        pl.len().alias("n"),
        (pl.col("n_truth") > 0).sum().alias("truth"),
        pl.col("n_eligible").mean(),
    ).row(0, named=True)
    leak = worst(entry)
    seconds = entry.run.read("timing", pl.col("seconds").sum()).item()

    def value(row: Row | None) -> str:
        return "n/a" if row is None or row["value"] is None else percent(row["value"])

    def range_of(row: Row | None) -> str:
        return (
            ""
            if row is None or row["low"] is None
            else f"95% interval {percent(row['low'])} to {percent(row['high'])}"
        )

    asked = f"{counts['truth']:,} with a {entry.run.label}; {counts['n_eligible']:,.0f} eligible items on average"
    priced = (
        range_of(money)
        if money and money["value"] is not None
        else "no prices of truth items in this log"
    )
    beside_it = f"random {value(random)}, ceiling {value(ceiling)}"
    where = "" if leak is None else plots.reason_name(leak["reason"], entry.stages)
    device = str(entry.run.meta.get("device") or "cpu")
    return [
        ("Requests replayed", f"{counts['n']:,}", asked),
        (f"Truth kept in the first {most:,}", value(kept), range_of(kept)),
        (f"Money kept in the first {most:,}", value(money), priced),
        (
            f"HR@{k} after {last}",
            value(hit),
            rich("{}<br>{}", range_of(hit), beside_it) if range_of(hit) else beside_it,
        ),
        ("Largest leak of the funnel", "none" if leak is None else percent(leak["share"]), where),
        (
            "Replay time",
            f"{1000 * seconds / max(counts['n'], 1):,.1f} ms",
            f"a request, all stages, on {device}",
        ),
    ]


def losses(entries: Sequence[Entry]) -> Section:
    """The waterfall, and the same as a table."""
    blocks: list[Block] = [
        Text(
            rich(
                "Every item that was {} falls through the stages until one loses it. <b>Not eligible</b>: not known before the request, or "
                "filtered out, so no funnel could have found it. <b>Not recalled</b>: recall did not bring it up. <b>Missed by the "
                "index</b>: an exact search would have. <b>Cut</b>: the stage saw it and ranked it too low. Shares are of all truth items, "
                "so they add up.",
                past(entries[0].run.label),
            )
        )
    ]
    for entry in entries:
        blocks += name_of(entries, entry)
        kept = next(row for row in entry.cascade.losses if row["reason"] == "kept")
        if kept["money_share"] is None:
            blocks.append(
                Absent("Money: the log holds no prices of truth items, so only items are counted.")
            )
        blocks.append(
            Figure(plots.waterfall(entry.cascade, entry.stages, entry.run.label, entry.currency))
        )
        blocks.append(loss_table(entry))
    return Section("losses", "Losses", "Where truth and money are lost", blocks)


def loss_table(entry: Entry) -> Block:
    """Reason by reason: items, money, median margin."""
    rows = []
    priced = any(row["money_share"] is not None for row in entry.cascade.losses)
    for row in entry.cascade.losses:
        if row["reason"] == "index" and not row["items"] and not has_index(entry.run):
            continue
        money = (
            [amount(row["money"], entry.currency), percent(row["money_share"])]
            if priced
            else ["n/a", "n/a"]
        )
        missed = "" if row["median_margin"] is None else f"{row['median_margin']:,.0f}"
        rows.append(
            [
                plots.reason_name(row["reason"], entry.stages),
                f"{row['items']:,}",
                percent(row["share"]),
                *money,
                missed,
            ]
        )
    table = Table(["", "items", "share", "money", "share", "missed by, ranks"], rows)
    note = "Missed by: how many ranks a lost item stood below the last one kept, in the median; at recall a lower bound."
    return Details("The numbers", [table, Text(note, "note")])


def has_index(run: Run) -> bool:
    """Whether an approximate index was compared with exact search."""
    return any(name.endswith(".index_recall") for name in run.columns("requests"))


def stage_table(entries: Sequence[Entry]) -> Section:
    """Stages as lines and measures as columns, with intervals; several Runs side by side."""
    small, most = common(entries)
    deep = len({entry.k(10**9) for entry in entries}) > 1
    names = [
        "survival",
        *([f"kept@{most}"] if deep else []),
        *dict.fromkeys([f"HR@{small}", f"HR@{most}"]),
    ]
    names += [f"Recall@{most}", f"nDCG@{small}", f"MRR@{small}"]
    names += [f"GMV-HR@{most}", f"GMV-HR@{most}:w99", f"GMV-nDCG@{small}"]
    rows = [row for entry in entries for row in entry.ask(names)]
    priced = any(row["value"] is not None for row in rows if row["measure"].startswith("GMV"))
    text = rich(
        "How good each stage's own output is. <b>Survival</b> multiplies down the column to the end-to-end line; the others "
        "score a stage's ranking of what it puts out. <b>Ceiling</b> is what perfect ranking of eligible items would get, "
        "<b>random</b> what chance would. Money is shown raw and cut at its 99th percentile (w99), so that one large order "
        "does not decide."
    )
    blocks: list[Block] = [Text(text)]
    if not priced:
        rows = [row for row in rows if not row["measure"].startswith("GMV")]
        blocks.append(Absent("GMV-HR and GMV-nDCG: the log holds no prices of truth items."))
    if deep:
        sizes = ", ".join(f"{entry.name} {entry.k(10**9):,}" for entry in entries)
        blocks.append(
            Warned(
                f"These Runs put out different numbers of items ({sizes}): survival grows with them, kept@{most} does not."
            )
        )
    stages: list[Block] = []
    for entry in entries:
        gains = added(
            entry.runs, [f"HR@{small}", f"nDCG@{small}", f"MRR@{small}", f"GMV-HR@{small}:w99"]
        )
        if gains := [row for row in gains if row["value_a"] is not None]:
            stages += [*name_of(entries, entry), measure_table(gains)]
    if stages:
        what = (
            "What each stage adds: its order against that of the stage before it, on the same requests and at the same depth. A later "
            "stage that adds nothing could be left out."
        )
        stages = [Heading("What each stage adds"), Text(what), *stages]
    note = "Truth is in-scenario: what came of these requests themselves. All-scenario truth: n/a."
    return Section(
        "stages",
        "Stage table",
        "Stage by stage",
        [*blocks, measure_table(rows, across(entries)), Text(note, "note"), *stages],
    )


def cuts(entry: Entry) -> list[int]:
    """The ks of the curves: round numbers up to the widest stage, and every stage's own output
    size.
    """
    sizes = {entry.run.k(stage) for stage in entry.stages}
    return sorted({k for k in KS if k <= max(sizes)} | sizes)


def hit_curves(entries: Sequence[Entry]) -> Section:
    """HR@k over k, and the same in money."""
    panels: list[tuple[str, list[Row]]] = []
    lacking = False
    for entry in entries:
        ks = cuts(entry)
        rows = entry.ask([f"HR@{k}" for k in ks] + [f"GMV-HR@{k}" for k in ks])
        money = [
            row for row in rows if row["measure"].startswith("GMV") and row["value"] is not None
        ]
        panels.append(
            (
                titled(entries, entry, "HR@k"),
                [row for row in rows if row["measure"].startswith("HR")],
            )
        )
        if money:
            panels.append((titled(entries, entry, "GMV-HR@k, money"), money))
        else:
            lacking = True
    text = (
        "How deep one has to look. Each line ends at what its stage puts out; bands are 95% intervals. Where a later stage's "
        "line runs above an earlier one, it improves the order; where it ends, the rest is gone."
    )
    lacks = [Absent("Money: the log holds no prices of truth items.")] if lacking else []
    legend = plots.colour_of(union(entries)) | {"ceiling": "dash", "random": "dot"}
    return Section(
        "curves",
        "HR@k",
        "Hit rate by depth",
        [Text(text), *lacks, Figure(plots.curves(panels, union(entries)), legend)],
    )


def ordering(entries: Sequence[Entry]) -> Section:
    """AUC and gAUC stage by stage, on exposures where the log has them, else on candidates."""
    shown = all(entry.run.meta["log"]["has"].get("exposures") for entry in entries)
    names = (
        ["AUC", "gAUC:request:exposures", "gAUC:user:exposures", "HR@1:exposures", "MRR:exposures"]
        if shown
        else []
    )
    rows = [row for entry in entries for row in entry.ask([*names, "gAUC:request:candidates"])]
    defined = [
        name
        for name in dict.fromkeys(row["measure"] for row in rows)
        if any(
            r["value"] is not None and r["stage"] not in AFTER for r in rows if r["measure"] == name
        )
    ]
    drawn = [
        name
        for name in ("AUC", "gAUC:request:exposures", "gAUC:request:candidates")
        if name in defined
    ]
    panels = [
        (name, [row for row in rows if row["measure"] == name and row["stage"] != "random"])
        for name in drawn
    ]
    text = rich(
        "Whether a stage puts what was wanted above what was not; 0.5 is chance. On <b>exposures</b> all stages order the "
        "very same shown items, so they can be compared. On <b>candidates</b> a stage orders what reached it: later stages "
        "have the harder task."
    )
    lacks = (
        []
        if shown
        else [
            Absent(
                "AUC and gAUC on exposures: the log holds no lists that were shown, only what was chosen."
            )
        ]
    )
    parts: list[Block] = [measure_table(rows, across(entries))]
    if panels:
        names_of = [entry.name for entry in entries]
        legend = plots.colour_of(names_of) if len(entries) > 1 else {}
        parts.insert(0, Figure(plots.dots(panels, names_of, "label", "stage"), legend))
    return Section(
        "auc",
        "AUC, gAUC",
        "Order within a stage",
        [Text(text), *lacks, *beside(parts, len(panels) == 1 and len(entries) == 1)],
    )


def beside(parts: Sequence[Block], together: bool) -> Sequence[Block]:
    """Two pieces in two halves of the page, or below each other."""
    return [Beside(parts)] if together else parts


def calibrated(entries: Sequence[Entry]) -> Section:
    """Probabilities against frequencies for every stage that has them."""
    text = Text(
        "A calibrated ranker's probabilities can be multiplied with prices. Points on the diagonal: what is said to happen in "
        "5% of cases happens in 5% of cases."
    )
    panels, rows = [], []
    for entry in entries:
        reading = RunArrays(entry.run)
        for stage, probability in reading.shown.probability.items():
            known = ~np.isnan(probability)
            if known.any():
                panels.append(
                    (
                        titled(entries, entry, stage),
                        bins(probability[known], reading.shown.label[known]),
                    )
                )
        rows += entry.ask(["ECE", "logloss"]) if reading.shown.probability else []
    if not panels:
        none = Absent(
            "no stage has probabilities of shown items: it takes a calibrated ranker and shown lists."
        )
        return Section("calibration", "Calibration", "Calibration", [text, none])
    told = [row for row in rows if row["value"] is not None]
    parts = [Figure(plots.calibration(panels)), measure_table(told, across(entries))]
    return Section(
        "calibration", "Calibration", "Calibration", [text, *beside(parts, len(panels) == 1)]
    )


def bins(probability: np.ndarray, label: np.ndarray) -> list[Row]:
    """The bins that ECE is taken over: mean probability, frequency and rows of each."""
    found = []
    of = mass_bins(probability)
    for one in np.unique(of):
        mine = of == one
        means = {
            "probability": float(probability[mine].mean()),
            "frequency": float(label[mine].mean()),
        }
        found.append(means | {"rows": int(mine.sum())})
    return found


def slices(entries: Sequence[Entry]) -> Section:
    """HR@k and losses of every slice, as small multiples."""
    k = min(entry.k(10) for entry in entries)
    last = {entry.name: entry.stages[-1] for entry in entries}
    panels, empty = [], []
    for name in SLICES:
        rows = [
            row
            for entry in entries
            for row in entry.ask([f"HR@{k}"], name)
            if row["stage"] not in (*BEFORE, *AFTER)
        ]
        if len(entries) > 1:
            rows = [row for row in rows if row["stage"] == last[row["label"]]]
        values = {row["slice"] for row in rows if row["value"] is not None}
        if len(values) > 1:
            panels.append((SLICE_TITLES[name], [row for row in rows if row["slice"] in values]))
        else:
            empty.append(
                f"{SLICE_TITLES[name]} (only {values.pop().split('=')[1]})"
                if values
                else SLICE_TITLES[name]
            )
    text = rich(
        "HR@{} {} for kinds of truth items and requests, with 95% intervals and the number of requests scored. <b>Cold</b>: never a target "
        "before; <b>head</b>: the items that together hold half of all targets; <b>repeat</b>: the user had the item before.",
        k,
        "of each stage" if len(entries) == 1 else "after the last stage",
    )
    blocks: list[Block] = [Text(text)]
    if empty:
        blocks.append(Absent(f"one kind only, or unknown, in this log: {'; '.join(empty)}."))
    if panels:
        by, names = (
            ("stage", union(entries))
            if len(entries) == 1
            else ("label", [entry.name for entry in entries])
        )
        blocks.append(
            Figure(plots.dots(panels, names, by, "slice", zero=True), plots.colour_of(names))
        )
    blocks.append(Text("And where their truth goes; every bar is all truth items of its slice."))
    for entry in entries:
        found = [row for name in SLICES for row in Cascade.of(entry.run, name).losses]
        some = {row["slice"] for row in found if row["items"]}
        several = {name for name in SLICES if sum(s.startswith(f"{name}=") for s in some) > 1}
        found = [
            row for row in found if row["slice"] in some and row["slice"].split("=")[0] in several
        ]
        blocks += name_of(entries, entry)
        if not found:
            blocks.append(Absent("nothing to slice by."))
            continue
        colours = plots.reason_colours(entry.stages)
        legend = {
            plots.reason_name(r, entry.stages): colours[r]
            for r in plots.reasons(found, entry.stages)
        }
        blocks.append(Figure(plots.slice_losses(found, entry.stages), legend))
    return Section("slices", "Slices", "Who and what is served well", blocks)


SLICE_TITLES = {
    "target": "Item popularity",
    "repeat": "Repeat or new to the user",
    "price": "Price band",
    "user": "User",
    "query": "Query",
}


def times(entries: Sequence[Entry]) -> Section:
    """Milliseconds a request and rows in and out, stage by stage."""
    blocks: list[Block] = [
        Text(
            "Wall time of the replay itself, in chunks of requests on one machine: good for comparing stages with each other, not "
            "a serving latency."
        )
    ]
    heads = [
        "stage",
        "mean ms a request",
        "p95 over chunks",
        "rows in",
        "rows out",
        "µs a row in",
        "share of time",
    ]
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
        rows: list[list[Words | Cell | Bar]] = []
        for stage in entry.stages:
            if stage not in found:
                continue
            row = found[stage]
            n = max(row["requests"], 1)
            rows.append(
                [
                    stage,
                    f"{1000 * row['seconds'] / n:,.2f}",
                    f"{row['p95']:,.2f}",
                    f"{row['rows_in'] / n:,.0f}",
                    f"{row['rows_out'] / n:,.0f}",
                    f"{1e6 * row['seconds'] / max(row['rows_in'], 1):,.1f}",
                    Bar(row["seconds"] / total, colours[stage]),
                ]
            )
        blocks += [*name_of(entries, entry), Table(heads, rows)]
    return Section("time", "Time", "Time and rows", blocks)


def comparison(entries: Sequence[Entry]) -> Section:
    """Every Run against the first, paired on the same requests."""
    base = entries[0]
    k, most = common(entries)
    names = ["survival", f"HR@{k}", f"nDCG@{k}", f"HR@{most}", f"GMV-HR@{most}:w99"]
    if all(e.run.meta["log"]["has"].get("exposures") for e in entries):
        names += ["AUC", "gAUC:request:exposures"]
    text = rich(
        "Each Run against <b>{}</b> on the same requests. A difference counts where its 95% interval leaves out 0; (Holm) marks those that "
        "still do when the whole table is to hold at once.",
        base.name,
    )
    blocks: list[Block] = [Text(text)]
    for entry in entries[1:]:
        blocks.append(Heading(f"{entry.name} against {base.name}"))
        try:
            rows = compare(base.runs, entry.runs, names, label_a=base.name, label_b=entry.name)
            blocks.append(
                measure_table([row for row in rows if row["value_a"] is not None] or rows)
            )
        except KarmafunnelError as error:
            blocks.append(Absent(f"not compared. {error}"))
    return Section("compare", "Compare", "Compared, request by request", blocks)


def one_request(entries: Sequence[Entry], n: int) -> Section:
    """A picker over a sample of requests; the page's script draws the rest."""
    data = look_up([entry.run for entry in entries], [entry.name for entry in entries], n)
    blocks: list[Block] = [Absent("no replayed request has any truth.")]
    if data["requests"]:
        blocks = [
            Text(
                f"{len(data['requests'])} requests of {entries[0].name}, drawn at random within each outcome so that every kind of success "
                "and failure is here. Follow what was wanted through the stages, and see what came through instead."
            ),
            *(
                [Absent(f"titles, queries and histories: {data['missing']}; ids are shown.")]
                if data["missing"]
                else []
            ),
            Requests(data),
        ]
    return Section("request", "One request", "One request at a time", blocks)


def record(entries: Sequence[Entry]) -> Section:
    """What it takes to make these Runs again."""
    blocks: list[Block] = [
        Text(
            "What it takes to make this again: recipe, command, commit, seed, versions and the checksum of the log."
        )
    ]
    for entry in entries:
        meta = entry.run.meta
        packages = ", ".join(f"{name} {v}" for name, v in (meta.get("versions") or {}).items())
        facts = {
            "command": meta.get("command"),
            "commit": meta.get("commit"),
            "device": meta.get("device"),
            "seed": ", ".join(str(run.meta["seed"]) for run in entry.runs),
            "limit": meta.get("limit") or "none",
            "log checksum": meta["log"].get("checksum"),
            "stages": "; ".join(
                f"{s['name']}: {s.get('kind', '')}, k = {s['k']:,}" for s in meta["stages"]
            ),
            **{f"embedder {name}": value for name, value in (meta.get("embedders") or {}).items()},
            "versions": packages,
        }
        recipe = Details(
            f"Recipe {meta.get('recipe_name') or ''}", [Pre(str(meta.get("recipe") or "n/a"))]
        )
        blocks += [*name_of(entries, entry), Facts(facts), recipe]
    return Section("record", "Record", "The record", blocks)


# -- what stands above them ------------------------------------------------------------------------


def header(entries: Sequence[Entry]) -> list[Block]:
    """What was replayed on what, and how."""
    meta = entries[0].run.meta
    log, _ = open_log(entries[0].run)
    words = [
        f"Run{'s' if len(entries) > 1 else ''} {', '.join(e.name for e in entries)}",
        f"window {meta['window']}",
        f"truth: {past(entries[0].run.label)} items",
        f"{meta['log'].get('items', 0):,} items" if meta["log"].get("items") else "",
    ]
    lacks = [
        name for name in ("query", "text", "price", "exposures") if not meta["log"]["has"].get(name)
    ]
    words.append(f"the log has no {', '.join(lacks)}" if lacks else "")
    words.append(
        f"licence of the log: {log.meta['licence']}" if log and log.meta.get("licence") else ""
    )
    funnels = [  # one stage a line
        Pre(
            str(e.run.meta.get("funnel") or "n/a").replace(" >> ", "\n>> "),
            e.name if len(entries) > 1 else "",
        )
        for e in entries
    ]
    seeds = ", ".join(dict.fromkeys(str(run.meta["seed"]) for e in entries for run in e.runs))
    commits = ", ".join(
        dict.fromkeys(str(run.meta.get("commit") or "n/a") for e in entries for run in e.runs)
    )
    version = (meta.get("versions") or {}).get("karmafunnel", "n/a")
    made = rich(
        'commit {} · seed {} · karmafunnel {} · <a href="#record">recipe, command and versions</a>',
        commits,
        seeds,
        version,
    )
    return [
        Text(" · ".join(filter(None, words)), "sub"),
        *funnels,
        Text(made, "sub"),
        *unlike(entries),
    ]
