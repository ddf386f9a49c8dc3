"""One self-contained HTML file about one or more Runs: where relevant items are lost, how well each
stage ranks, and single requests.

Every value comes from `simulator/measure/`; opening the file fetches nothing.
"""

from __future__ import annotations

from collections import Counter
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
from .measure_table import AFTER, Row, between, column, known, measure_table, past, where
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
    Plot,
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
    """One column of the report: the Runs of one recipe, one per seed. What describes a single
    replay is taken from the first.
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

    @property
    def size(self) -> int:
        """How many items the last stage returns."""
        return self.run.k(self.stages[-1])

    def k(self, most: int) -> int:
        """The largest cutoff up to `most` that the last stage can answer."""
        return min(most, self.size)

    def ask(self, measures: Sequence[str | Measure], slice_name: str | None = None) -> list[Row]:
        return measure(self.runs, measures, slice=slice_name, label=self.name)

    def loss(self, reason: str) -> Row:
        """How many relevant items have one reason of the ledger."""
        return where(self.cascade.losses, reason=reason)[0]


def report(runs: Sequence[Folder | Sequence[Folder]], out: Folder, requests: int = 24) -> Path:
    """Write the report of one or more Runs.

    Args:
        runs: Run folders. A sequence of folders inside it is one column: the seeds of one recipe.
        out: the HTML file.
        requests: how many single requests can be looked at.

    Returns:
        The path of the file.

    Raises:
        KarmafunnelError: for a folder that is no Run, and for no folder; nothing is written then.
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
    title = f"{entries[0].run.meta['log']['name']}: {', '.join(names_of(entries))}"
    return write_page(
        out, Page(title, "karmafunnel replay report", header(entries), sections, heading=logs)
    )


def waterfall_png(run: Folder, path: Folder) -> Path:
    """Write the waterfall of a Run as a picture (PNG, SVG or PDF by the suffix).

    Raises KarmafunnelError where kaleido (the extra `images`) or a Chromium is missing.
    """
    return plots.write_picture(waterfall(open_entries([run])[0]), Path(path))


def waterfall(entry: Entry) -> Plot:
    return plots.waterfall(entry.cascade, entry.stages, entry.run.label, entry.currency)


def open_entries(runs: Sequence[Folder | Sequence[Folder]]) -> list[Entry]:
    """Open all folders and name each column: the folder's name, with as many parents as are needed
    to tell the columns apart.
    """
    if not runs:
        raise KarmafunnelError("report", needs="at least one Run folder", found="none")
    opened: list[list[Run]] = []
    for given in runs:
        folders = [given] if isinstance(given, (str, Path)) else given
        opened.append([Run.open(folder) for folder in folders])
    parts = [group[0].path.resolve().parts for group in opened]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    entries: list[Entry] = []
    for path, group in zip(parts, opened, strict=True):
        name = "/".join(path[-depth:])
        entries.append(Entry(f"{name} ({len(group)} seeds)" if len(group) > 1 else name, group))
    counts = Counter(names_of(entries))
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise KarmafunnelError("report", needs="different Runs", found=f"{twice} twice")
    return entries


# -- words and rows --------------------------------------------------------------------------------


def find(rows: Sequence[Row], **wanted: str) -> Row | None:
    """The first row whose fields have the given values."""
    return next(iter(where(rows, **wanted)), None)


def names_of(entries: Sequence[Entry]) -> list[str]:
    return [entry.name for entry in entries]


def ask_all(
    entries: Sequence[Entry], measures: Sequence[str], slice_name: str | None = None
) -> list[Row]:
    """The measure rows of all entries."""
    rows = []
    for entry in entries:
        rows += entry.ask(measures, slice_name)
    return rows


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
    """Key figures: cards for one Run, a table with one line a Run for several."""
    k, most = common(entries)
    facts = [key_figures(entry, k, most) for entry in entries]
    said = [rich("{} {}", sentence(entry), adds(entry, k)) for entry in entries]
    if len(entries) == 1:
        return Section("summary", "At a glance", "At a glance", [Text(said[0]), Cards(facts[0])])
    heads: list[Words] = [""]
    for what, _, _ in facts[0]:
        heads.append(what.replace(f"after {entries[0].stages[-1]}", "after the last stage"))
    points: list[Words] = []
    rows: list[list[Words | Cell | Bar]] = []
    for entry, cards, text in zip(entries, facts, said, strict=True):
        points.append(rich("<b>{}</b>: {}", entry.name, text))
        rows.append([entry.name, *(Cell(big, small, strong=True) for _, big, small in cards)])
    table = Table(heads, rows, look="stacked")
    return Section("summary", "At a glance", "At a glance", [Points(points), table])


def common(entries: Sequence[Entry]) -> tuple[int, int]:
    """Two cutoffs that the last stage of every Run can answer: at most 10, and the largest."""
    most = min(entry.size for entry in entries)
    return min(10, most), most


def adds(entry: Entry, k: int) -> Words:
    """One sentence on whether the last stage improves the order of the stage before it."""
    if len(entry.stages) < 2:
        return ""
    before, last = entry.stages[-2:]
    row = find(added(entry.runs, [f"HR@{k}"]), stage=last)
    if row is None or row["difference"] is None:
        return ""
    decimals = places(row["difference"])
    change = number(row["difference"], True, decimals)
    figure = f"{change} HR@{k} {between(row, True, decimals)}".rstrip()
    how = f"paired on {row['n']:,} requests, users clustered"
    if row["better"]:
        verb = "adds" if row["better"] == "B" else "loses"
        return rich("<b>{} {} {}</b> over the order of {} ({}).", last, verb, figure, before, how)
    return rich(
        "{} makes no significant difference to the order of {}: {} ({}).", last, before, figure, how
    )


def unlike(entries: Sequence[Entry]) -> list[Block]:
    """A warning for every Run that did not replay the requests of the first one."""
    first = entries[0]
    mine = replayed(first.run)
    ids = first.run.read("requests", "request_id")["request_id"]
    found = list[Block]()
    for other in entries[1:]:
        differences = {}
        for what, value in replayed(other.run).items():
            if value != mine[what]:
                differences[what] = f"{what} {value} instead of {mine[what]}"
        theirs = other.run.read("requests", "request_id")["request_id"]
        if not ids.equals(theirs):
            both = theirs.is_in(ids.implode()).sum()
            differences["requests"] = (
                f"{len(theirs):,} requests instead of {len(ids):,}, {both:,} of them in both"
            )
        elif list(differences) == ["limit"]:  # neither limit left out a request
            continue
        if differences:
            text = rich(
                "<b>{}</b> did not replay the same requests as <b>{}</b>: {}. "
                "Their values cannot be compared.",
                other.name,
                first.name,
                "; ".join(differences.values()),
            )
            found.append(Warned(text))
    return found


def replayed(run: Run) -> dict[str, str]:
    """What a Run replayed, in words."""
    log = run.meta["log"]
    return {
        "log": f"{log.get('name')} ({log.get('checksum')})",
        "relevant items:": f"{past(run.label)} items",
        "window": str(run.meta["window"]),
        "limit": str(run.meta.get("limit") or "none"),
    }


def worst(entry: Entry) -> Row | None:
    """The reason within the funnel that loses most relevant items; None where nothing is lost."""
    lost = []
    for row in entry.cascade.losses:
        if row["reason"] not in ("kept", "not eligible") and row["items"]:
            lost.append(row)
    return max(lost, key=lambda row: row["items"], default=None)


def sentence(entry: Entry) -> Words:
    """What happened, in two sentences."""
    total = sum(column(entry.cascade.losses, "items"))
    label = entry.run.label
    if not total:
        return f"No replayed request has a {label}, so there is no relevant item to find."
    kept, never = entry.loss("kept"), entry.loss("not eligible")
    text = rich(
        "Of {} {} items, <b>{}</b> are among the {} that {} returns for a request",
        f"{total:,}",
        past(label),
        percent(kept["share"]),
        f"{entry.size:,}",
        entry.stages[-1],
    )
    if kept["money_share"] is not None:
        text += rich(", with <b>{}</b> of their money", percent(kept["money_share"]))
    if never["items"]:
        text += rich("; {} were not eligible, out of reach for any funnel", percent(never["share"]))
    leak = worst(entry)
    if leak is None:
        return text + ". The funnel itself loses nothing."
    name = plots.reason_name(leak["reason"], entry.stages)
    text += rich(
        ". The largest loss: <b>{}</b>, {} of all relevant items", name, percent(leak["share"])
    )
    if leak["median_margin"] is None:
        return text + "."
    return text + rich(", missed by {} in the median.", missed_by(entry, leak))


def missed_by(entry: Entry, loss: Row) -> str:
    """A median margin in words; at recall it is a lower bound."""
    ranks = round(loss["median_margin"])
    words = f"{ranks:,} rank" if ranks == 1 else f"{ranks:,} ranks"
    return f"at least {words}" if loss["reason"] == entry.stages[0] else words


def key_figures(entry: Entry, k: int, most: int) -> list[tuple[Words, Words, Words]]:
    """Cards (name, value, explanation); relevant items and money are counted to depth `most`."""
    last = entry.stages[-1]
    rows = entry.ask([f"HR@{k}", f"kept@{most}", f"GMV-HR@{most}"])
    kept = find(rows, measure=f"kept@{most}", stage=last)
    money = find(rows, measure=f"GMV-HR@{most}", stage=last)
    hits = where(rows, measure=f"HR@{k}")
    hit = find(hits, stage=last)
    counts = entry.run.read(
        "requests",
        pl.len().alias("n"),
        (pl.col("n_truth") > 0).sum().alias("relevant"),
        pl.col("n_eligible").mean(),
    ).row(0, named=True)
    leak = worst(entry)
    seconds = entry.run.read("timing", pl.col("seconds").sum()).item()

    def value(row: Row | None) -> str:
        return "n/a" if row is None or row["value"] is None else percent(row["value"])

    def range_of(row: Row | None) -> str:
        if row is None or row["low"] is None:
            return ""
        return f"95% interval {percent(row['low'])} to {percent(row['high'])}"

    asked = f"{counts['relevant']:,} with a {entry.run.label}"
    asked += f"; {counts['n_eligible']:,.0f} eligible items on average"
    priced = "no prices of relevant items in this log"
    if money and money["value"] is not None:
        priced = range_of(money)
    random, ceiling = value(find(hits, stage="random")), value(find(hits, stage="ceiling"))
    about_hits: Words = f"random {random}, ceiling {ceiling}"
    if range_of(hit):
        about_hits = rich("{}<br>{}", range_of(hit), about_hits)
    lost, reason = "none", ""
    if leak is not None:
        lost, reason = percent(leak["share"]), plots.reason_name(leak["reason"], entry.stages)
    ms = 1000 * seconds / max(counts["n"], 1)
    device = str(entry.run.meta.get("device") or "cpu")
    return [
        ("Requests replayed", f"{counts['n']:,}", asked),
        (f"Relevant items in the first {most:,}", value(kept), range_of(kept)),
        (f"Their money in the first {most:,}", value(money), priced),
        (f"HR@{k} after {last}", value(hit), about_hits),
        ("Largest loss of the funnel", lost, reason),
        ("Replay time", f"{ms:,.1f} ms", f"a request, all stages, on {device}"),
    ]


def losses(entries: Sequence[Entry]) -> Section:
    """The waterfall, and the same as a table."""
    text = rich(
        "Every item that was {} passes through the stages until one loses it. "
        "<b>Not eligible</b>: not known before the request, or filtered out, so no funnel could "
        "have found it. <b>Not recalled</b>: recall did not return it. <b>Missed by the index</b>: "
        "exact search would have found it. <b>Cut</b>: the stage ranked it too low. "
        "Shares are of all relevant items and add up to 100%.",
        past(entries[0].run.label),
    )
    blocks: list[Block] = [Text(text)]
    for entry in entries:
        blocks += name_of(entries, entry)
        if entry.loss("kept")["money_share"] is None:
            none = "Money: the log holds no prices of relevant items, so only items are counted."
            blocks.append(Absent(none))
        blocks += [Figure(waterfall(entry)), loss_table(entry)]
    return Section("losses", "Losses", "Where relevant items and money are lost", blocks)


def loss_table(entry: Entry) -> Block:
    """Reason by reason: items, money, median margin."""
    rows = []
    priced = any(share is not None for share in column(entry.cascade.losses, "money_share"))
    for row in entry.cascade.losses:
        if row["reason"] == "index" and not row["items"] and not has_index(entry.run):
            continue
        line = [plots.reason_name(row["reason"], entry.stages)]
        line += [f"{row['items']:,}", percent(row["share"])]
        if priced:
            line += [amount(row["money"], entry.currency), percent(row["money_share"])]
        else:
            line += ["n/a", "n/a"]
        line.append("" if row["median_margin"] is None else f"{row['median_margin']:,.0f}")
        rows.append(line)
    table = Table(["", "items", "share", "money", "share", "missed by, ranks"], rows)
    note = (
        "Missed by: how many ranks below the last kept item a lost one stood, in the median; "
        "at recall a lower bound."
    )
    return Details("The numbers", [table, Text(note, "note")])


def has_index(run: Run) -> bool:
    """Whether an approximate index was compared with exact search."""
    return any(name.endswith(".index_recall") for name in run.columns("requests"))


def stage_table(entries: Sequence[Entry]) -> Section:
    """Stages as lines and measures as columns, with intervals; several Runs side by side."""
    small, most = common(entries)
    sizes = {entry.name: entry.size for entry in entries}
    deep = len(set(sizes.values())) > 1
    names = ["survival", *([f"kept@{most}"] if deep else []), f"HR@{small}"]
    names += [f"HR@{most}"] if most > small else []
    names += [f"Recall@{most}", f"nDCG@{small}", f"MRR@{small}"]
    names += [f"GMV-HR@{most}", f"GMV-HR@{most}:w99", f"GMV-nDCG@{small}"]
    rows = ask_all(entries, names)
    money = [row for row in rows if row["measure"].startswith("GMV")]
    text = rich(
        "How good each stage's own output is. <b>Survival</b> multiplies down the column to the "
        "end-to-end line; the other measures score the order of a stage's output. "
        "<b>Ceiling</b>: a perfect ranking of the eligible items. <b>Random</b>: a random one. "
        "Money is shown as it is and cut at its 99th percentile (w99), which limits the influence "
        "of single large orders."
    )
    blocks: list[Block] = [Text(text)]
    if not known(money):
        rows = [row for row in rows if not row["measure"].startswith("GMV")]
        blocks.append(Absent("GMV-HR and GMV-nDCG: the log holds no prices of relevant items."))
    if deep:
        told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        warning = (
            f"These Runs return different numbers of items ({told}): survival grows with them, "
            f"kept@{most} does not."
        )
        blocks.append(Warned(warning))
    gains: list[Block] = []
    for entry in entries:
        found = added(
            entry.runs, [f"HR@{small}", f"nDCG@{small}", f"MRR@{small}", f"GMV-HR@{small}:w99"]
        )
        if compared := [row for row in found if row["value_a"] is not None]:
            gains += [*name_of(entries, entry), measure_table(compared)]
    if gains:
        what = (
            "Each stage's order against that of the stage before it, on the same requests and at "
            "the same depth. A later stage that adds nothing could be left out."
        )
        gains = [Heading("What each stage adds"), Text(what), *gains]
    note = "Relevant items are those of the requests themselves (in-scenario). All-scenario: n/a."
    blocks += [measure_table(rows, across(entries)), Text(note, "note"), *gains]
    return Section("stages", "Stage table", "Stage by stage", blocks)


def cuts(entry: Entry) -> list[int]:
    """The cutoffs of the curves: round numbers up to the widest stage, and the size of every
    stage's output.
    """
    sizes = {entry.run.k(stage) for stage in entry.stages}
    return sorted({k for k in KS if k <= max(sizes)} | sizes)


def hit_curves(entries: Sequence[Entry]) -> Section:
    """HR@k over k, and the same in money."""
    panels: list[tuple[str, list[Row]]] = []
    lacks: list[Block] = []
    for entry in entries:
        ks = cuts(entry)
        hits = entry.ask([f"HR@{k}" for k in ks])
        money = known(entry.ask([f"GMV-HR@{k}" for k in ks]))
        panels.append((titled(entries, entry, "HR@k"), hits))
        if money:
            panels.append((titled(entries, entry, "GMV-HR@k, money"), money))
        else:
            lacks = [Absent("Money: the log holds no prices of relevant items.")]
    text = (
        "Hit rate by cutoff. Each line ends at the size of its stage's output; bands are 95% "
        "intervals. Where a later stage's line runs above an earlier one, it improves the order."
    )
    legend = plots.colour_of(union(entries)) | {"ceiling": "dash", "random": "dot"}
    figure = Figure(plots.curves(panels, union(entries)), legend)
    return Section("curves", "HR@k", "Hit rate by depth", [Text(text), *lacks, figure])


def ordering(entries: Sequence[Entry]) -> Section:
    """AUC and gAUC stage by stage, on exposures where the log has them, else on candidates."""
    names = ["gAUC:request:candidates"]
    lacks: list[Block] = []
    if all(entry.run.meta["log"]["has"].get("exposures") for entry in entries):
        exposed = ["gAUC:request:exposures", "gAUC:user:exposures"]
        names = ["AUC", *exposed, "HR@1:exposures", "MRR:exposures", *names]
    else:
        lacks = [Absent("AUC and gAUC on exposures: the log holds no exposed lists, only choices.")]
    rows = ask_all(entries, names)
    panels = []
    for name in ("AUC", "gAUC:request:exposures", "gAUC:request:candidates"):
        mine = where(rows, measure=name)
        if any(row["stage"] not in AFTER for row in known(mine)):
            panels.append((name, [row for row in mine if row["stage"] != "random"]))
    text = rich(
        "Whether a stage ranks relevant items above others; 0.5 is chance. On <b>exposures</b> all "
        "stages order the same shown items, so they can be compared. On <b>candidates</b> a stage "
        "orders its own input: later stages have the harder task."
    )
    parts: list[Block] = [measure_table(rows, across(entries))]
    if panels:
        runs = names_of(entries)
        legend = plots.colour_of(runs) if len(runs) > 1 else {}
        parts.insert(0, Figure(plots.dots(panels, runs, "label", "stage"), legend))
    if len(panels) == 1 and len(entries) == 1:
        parts = [Beside(parts)]
    return Section("auc", "AUC, gAUC", "Order within a stage", [Text(text), *lacks, *parts])


def calibrated(entries: Sequence[Entry]) -> Section:
    """Probabilities against frequencies for every stage that has them."""
    text = Text(
        "A calibrated ranker's probabilities can be multiplied with prices. A point on the "
        "diagonal: what is predicted to happen in 5% of cases happens in 5% of cases."
    )
    panels, rows = [], []
    for entry in entries:
        shown = RunArrays(entry.run).shown
        for stage, probability in shown.probability.items():
            scored = ~np.isnan(probability)
            if scored.any():
                points = bins(probability[scored], shown.label[scored])
                panels.append((titled(entries, entry, stage), points))
        if shown.probability:
            rows += known(entry.ask(["ECE", "logloss"]))
    parts: list[Block] = [
        Absent("no stage has probabilities of shown items: it takes a calibrated ranker and lists.")
    ]
    if panels:
        parts = [Figure(plots.calibration(panels)), measure_table(rows, across(entries))]
    if len(panels) == 1:
        parts = [Beside(parts)]
    return Section("calibration", "Calibration", "Calibration", [text, *parts])


def bins(probability: np.ndarray, label: np.ndarray) -> list[Row]:
    """The bins of ECE: mean probability, frequency and number of rows of each.

    Args:
        probability: of each row, (n,).
        label: of each row, 0 or 1, (n,).
    """
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
    k = common(entries)[0]
    panels, empty = [], []
    for name, title in SLICE_TITLES.items():
        rows = _slice_rows(entries, k, name)
        values = set(column(known(rows), "slice"))
        if len(values) > 1:
            panels.append((title, [row for row in rows if row["slice"] in values]))
        elif values:
            empty.append(f"{title} (only {values.pop().split('=')[1]})")
        else:
            empty.append(title)
    text = rich(
        "HR@{} {} for kinds of relevant items and requests, with 95% intervals and the number of "
        "requests scored. <b>Cold</b>: never a target before; <b>head</b>: the items that together "
        "hold half of all targets; <b>repeat</b>: the user had the item before.",
        k,
        "of each stage" if len(entries) == 1 else "after the last stage",
    )
    blocks: list[Block] = [Text(text)]
    if empty:
        blocks.append(Absent(f"one kind only, or unknown, in this log: {'; '.join(empty)}."))
    if panels:
        by, names = ("label", names_of(entries)) if len(entries) > 1 else ("stage", union(entries))
        figure = plots.dots(panels, names, by, "slice", zero=True)
        blocks.append(Figure(figure, plots.colour_of(names)))
    blocks.append(Text("Where their items are lost; a bar is all relevant items of its slice."))
    for entry in entries:
        blocks += [*name_of(entries, entry), _slice_losses(entry)]
    return Section("slices", "Slices", "Who and what is served well", blocks)


SLICE_TITLES = {
    "target": "Item popularity",
    "repeat": "Repeat or new to the user",
    "price": "Price band",
    "user": "User",
    "query": "Query",
}


def _slice_rows(entries: Sequence[Entry], k: int, name: str) -> list[Row]:
    """HR@k by the values of a slice: of every stage of one Run, of the last stage of several."""
    rows = []
    for entry in entries:
        shown = entry.stages if len(entries) == 1 else entry.stages[-1:]
        rows += [row for row in entry.ask([f"HR@{k}"], name) if row["stage"] in shown]
    return rows


def _slice_losses(entry: Entry) -> Block:
    """The losses of every slice that has relevant items of more than one kind."""
    found: list[Row] = []
    for name in SLICES:
        lost = Cascade.of(entry.run, name).losses
        some = {row["slice"] for row in lost if row["items"]}
        if len(some) > 1:
            found += [row for row in lost if row["slice"] in some]
    if not found:
        return Absent("nothing to slice by.")
    colours = plots.reason_colours(entry.stages)
    legend = {}
    for reason in plots.reasons(found, entry.stages):
        legend[plots.reason_name(reason, entry.stages)] = colours[reason]
    return Figure(plots.slice_losses(found, entry.stages), legend)


def times(entries: Sequence[Entry]) -> Section:
    """Milliseconds a request and rows in and out, stage by stage."""
    text = (
        "Wall time of the replay itself, in chunks of requests on one machine: it compares stages "
        "with each other and is no serving latency."
    )
    blocks: list[Block] = [Text(text)]
    heads = ["stage", "mean ms a request", "p95 over chunks", "rows in", "rows out"]
    heads += ["µs a row in", "share of time"]
    colours = plots.colour_of(union(entries))
    for entry in entries:
        frame = entry.run.read("timing")
        per = frame.group_by("stage", maintain_order=True).agg(
            pl.col("requests", "rows_in", "rows_out", "seconds").sum(),
            (1000 * pl.col("seconds") / pl.col("requests")).quantile(0.95).alias("p95"),
        )
        found = {row["stage"]: row for row in per.iter_rows(named=True)}
        total = sum(column(found.values(), "seconds")) or 1.0
        rows: list[list[Words | Cell | Bar]] = []
        for stage in filter(found.__contains__, entry.stages):
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
    if all(entry.run.meta["log"]["has"].get("exposures") for entry in entries):
        names += ["AUC", "gAUC:request:exposures"]
    text = rich(
        "Each Run against the baseline <b>{}</b> on the same requests. A difference is significant "
        "where its 95% interval excludes 0 (*), or also after Holm's correction (**).",
        base.name,
    )
    blocks: list[Block] = [Text(text)]
    for entry in entries[1:]:
        blocks.append(Heading(f"{entry.name} against {base.name}"))
        try:
            rows = compare(base.runs, entry.runs, names, label_a=base.name, label_b=entry.name)
            compared = [row for row in rows if row["value_a"] is not None]
            blocks.append(measure_table(compared or rows))
        except KarmafunnelError as error:
            blocks.append(Absent(f"not compared. {error}"))
    return Section("compare", "Compare", "Compared, request by request", blocks)


def one_request(entries: Sequence[Entry], n: int) -> Section:
    """A picker over a sample of requests; the page's script draws the rest."""
    data = look_up([entry.run for entry in entries], names_of(entries), n)
    blocks: list[Block] = [Absent("no replayed request has a relevant item.")]
    if data["requests"]:
        text = (
            f"{len(data['requests'])} requests of {entries[0].name}, drawn at random within each "
            "outcome, so that every kind of success and failure is here: what happens to the "
            "relevant items stage by stage, and which items are ranked above them."
        )
        blocks = [Text(text), Requests(data)]
        if data["missing"]:
            missing = f"titles, queries and histories: {data['missing']}; ids are shown."
            blocks.insert(1, Absent(missing))
    return Section("request", "One request", "One request at a time", blocks)


def record(entries: Sequence[Entry]) -> Section:
    """What is needed to make these Runs again."""
    text = (
        "What is needed to make these Runs again: recipe, command, commit, seed, versions and the "
        "checksum of the log."
    )
    blocks: list[Block] = [Text(text)]
    for entry in entries:
        meta = entry.run.meta
        stages = []
        for stage in meta["stages"]:
            stages.append(f"{stage['name']}: {stage.get('kind', '')}, k = {stage['k']:,}")
        facts = {
            "command": meta.get("command"),
            "commit": meta.get("commit"),
            "device": meta.get("device"),
            "seed": ", ".join(str(run.meta["seed"]) for run in entry.runs),
            "limit": meta.get("limit") or "none",
            "log checksum": meta["log"].get("checksum"),
            "stages": "; ".join(stages),
        }
        for name, value in (meta.get("embedders") or {}).items():
            facts[f"embedder {name}"] = value
        versions = (meta.get("versions") or {}).items()
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions)
        title = f"Recipe {meta.get('recipe_name') or ''}"
        recipe = Details(title, [Pre(str(meta.get("recipe") or "n/a"))])
        blocks += [*name_of(entries, entry), Facts(facts), recipe]
    return Section("record", "Record", "The record", blocks)


# -- the top of the page ---------------------------------------------------------------------------


def header(entries: Sequence[Entry]) -> list[Block]:
    """What was replayed on what, and how."""
    meta = entries[0].run.meta
    log, _ = open_log(entries[0].run)
    words = [
        f"Run{'s' if len(entries) > 1 else ''} {', '.join(names_of(entries))}",
        f"window {meta['window']}",
        f"relevant: {past(entries[0].run.label)} items",
    ]
    if meta["log"].get("items"):
        words.append(f"{meta['log']['items']:,} items")
    fields = ("query", "text", "price", "exposures")
    if lacks := [name for name in fields if not meta["log"]["has"].get(name)]:
        words.append(f"the log has no {', '.join(lacks)}")
    if log and log.meta.get("licence"):
        words.append(f"licence of the log: {log.meta['licence']}")
    blocks: list[Block] = [Text(" · ".join(words), "sub")]
    seeds: dict[str, None] = {}
    commits: dict[str, None] = {}
    for entry in entries:
        funnel = str(entry.run.meta.get("funnel") or "n/a").replace(" >> ", "\n>> ")
        blocks.append(Pre(funnel, entry.name if len(entries) > 1 else ""))
        for run in entry.runs:
            seeds[str(run.meta["seed"])] = None
            commits[str(run.meta.get("commit") or "n/a")] = None
    made = rich(
        'commit {} · seed {} · karmafunnel {} · <a href="#record">recipe, command and versions</a>',
        ", ".join(commits),
        ", ".join(seeds),
        (meta.get("versions") or {}).get("karmafunnel", "n/a"),
    )
    return [*blocks, Text(made, "sub"), *unlike(entries)]
