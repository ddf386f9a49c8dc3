"""One self-contained HTML file about one or more Runs: where relevant items are lost, how well each
stage ranks, and single requests.

Every value comes from `simulator/measure/`; opening the file fetches nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ..measure.arrays import SLICES, RunArrays
from ..measure.compare import (
    Cascade,
    Measure,
    Run,
    added,
    against_logged,
    compare,
    mean_rows,
    measure,
    telling,
)
from ..measure.metrics import mass_bins
from . import plots
from .measure_table import (
    AFTER,
    Row,
    between,
    column,
    known,
    lowered,
    measure_table,
    past,
    where,
)
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
    comparable: bool = True  # whether it replayed the requests of the first entry

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
        """The most items that the last stage returned for a request."""
        return self.run.most(self.stages[-1])

    def ask(self, measures: Sequence[str | Measure], slice_name: str | None = None) -> list[Row]:
        return measure(self.runs, measures, slice=slice_name, label=self.name)

    def loss(self, reason: str) -> Row:
        """How many relevant items have one reason of the ledger."""
        return where(self.cascade.losses, reason=reason)[0]


def report(runs: Sequence[Folder | Sequence[Folder]], out: Folder, requests: int = 100) -> Path:
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
    entries, warnings = told_apart(open_entries(runs))
    made = [
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
    sections = [summary(entries, warnings), *(section for section in made if section is not None)]
    logs = ", ".join(dict.fromkeys(str(entry.run.meta["log"]["name"]) for entry in entries))
    title = f"{entries[0].run.meta['log']['name']}: {', '.join(names_of(entries))}"
    return write_page(
        out, Page(title, "karmafunnel replay report", [header(entries)], sections, heading=logs)
    )


def waterfall_png(run: Folder, path: Folder) -> Path:
    """Write the waterfall of a Run as a picture (PNG, SVG or PDF by the suffix).

    Raises KarmafunnelError where kaleido (the extra `images`) or a Chromium is missing.
    """
    return plots.write_picture(waterfall(open_entries([run])[0]), Path(path))


def waterfall(entry: Entry) -> Plot:
    return plots.waterfall(entry.cascade, entry.stages, entry.run.relevance, entry.currency)


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


def summary(entries: Sequence[Entry], warnings: Sequence[Block]) -> Section:
    """The verdict in words; key figures, as cards for one Run and as a table for several; what the
    log has no data for; and, folded, how the Runs were made.
    """
    alike = [entry for entry in entries if entry.comparable]
    others = [entry for entry in entries if not entry.comparable]
    blocks: list[Block] = []
    if len(entries) == 1:
        entry = entries[0]
        blocks = [
            Text(outcome(entry), "verdict"),
            Cards(key_figures(entry, headline_of(entries), entry.size)),
        ]
    else:
        if len(alike) > 1:
            blocks.append(Text(verdict(alike), "verdict"))
        blocks += [*glance(alike), *warnings, *(glance(others) if others else [])]
        points: list[Words] = []
        for entry in entries:
            points.append(rich("<b>{}</b>: {}", entry.name, outcome(entry)))
        blocks.append(Points(points))
    if lacks := left_out(entries):
        blocks.append(Text(f"Not in this report: {'; '.join(lacks)}.", "note"))
    return Section("summary", "At a glance", "At a glance", [*blocks, made_by(entries)])


def glance(entries: Sequence[Entry]) -> list[Block]:
    """The key figures of several Runs, one line a Run."""
    headline, most = headline_of(entries), min(entry.size for entry in entries)
    lines: list[dict[str, Cell]] = []
    for entry in entries:
        last, line = f"after {entry.stages[-1]}", {}
        for name, big, small in key_figures(entry, headline, most):
            head = name.replace(last, "after the last stage")
            line[head] = Cell(big, small, strong=True)
        lines.append(line)
    heads = list(dict.fromkeys(head for line in lines for head in line))
    same: list[Block] = []
    asked = {line["Requests replayed"] for line in lines}
    if len(asked) == 1 and len(entries) > 1:
        heads.remove("Requests replayed")
        cell = asked.pop()
        same.append(Text(f"{cell.text} requests, the same for all: {cell.small}.", "note"))
    rows: list[list[Words | Cell | Bar]] = []
    for entry, line in zip(entries, lines, strict=True):
        rows.append([entry.name, *(line.get(head, Cell("n/a", style="dim")) for head in heads)])
    return [Table(["Run", *heads], rows, look="stacked"), *same]


def verdict(entries: Sequence[Entry]) -> Words:
    """Which of several Runs over the same requests is best, and by how much."""
    headline = headline_of(entries)
    found: list[tuple[float, Entry]] = []
    for entry in entries:
        row = find(entry.ask([headline]), stage=entry.stages[-1])
        if row is not None and row["value"] is not None:
            found.append((row["value"], entry))
    if len(found) < 2:
        return "No two Runs have a value to compare."
    found.sort(key=lambda pair: -pair[0])
    (value, best), (_, second) = found[:2]
    leads = rich(
        "<b>{}</b> has the highest {} after its last stage: <b>{}</b>",
        best.name,
        headline,
        share_of(headline, value),
    )
    try:
        row = compare(second.runs, best.runs, [headline], by_stage=False)[0]
    except KarmafunnelError as error:
        return leads + rich(". It was not compared with the next, {}: {}", second.name, error)
    decimals = places(row["difference"])
    change = f"{number(row['difference'], True, decimals)} {between(row, True, decimals)}"
    return leads + rich(
        ", {} {} against the next, <b>{}</b> (paired on {} requests, {} clustered).",
        change.rstrip(),
        "" if row["better"] else "and so not significantly more,",
        second.name,
        f"{row['n']:,}",
        row["drawn"],
    )


def timed(entry: Entry) -> bool:
    """Whether stages took time here; the outputs of a funnel elsewhere were only read."""
    kinds = [str(stage.get("kind", "")) for stage in entry.run.meta["stages"]]
    read = all(kind.startswith("External") for kind in kinds)
    return not read and bool(entry.run.read("timing", pl.col("seconds").sum()).item())


def left_out(entries: Sequence[Entry]) -> list[str]:
    """What the report does not show, each with what the log lacks for it."""
    lacks = []
    if not any(map(priced, entries)):
        lacks.append("money (the log holds no prices of relevant items)")
    if not exposed(entries):
        lacks.append("AUC and gAUC on exposures (the log holds no exposed lists, only choices)")
    if not any(RunArrays(entry.run).shown.probability for entry in entries):
        lacks.append("calibration (it takes a calibrated ranker and exposed lists)")
    return lacks


def priced(entry: Entry) -> bool:
    """Whether the money of relevant items is known."""
    return entry.loss("kept")["money_share"] is not None


def exposed(entries: Sequence[Entry]) -> bool:
    """Whether every log holds the lists that were shown."""
    return all(entry.run.meta["log"]["has"].get("exposures") for entry in entries)


def made_by(entries: Sequence[Entry]) -> Block:
    """The funnels, commit and seeds."""
    blocks: list[Block] = []
    seeds: dict[str, None] = {}
    commits: dict[str, None] = {}
    for entry in entries:
        funnel = str(entry.run.meta.get("funnel") or "n/a").replace(" >> ", "\n>> ")
        blocks.append(Pre(funnel, entry.name if len(entries) > 1 else ""))
        for run in entry.runs:
            seeds[str(run.meta["seed"])] = None
            commits[str(run.meta.get("commit") or "n/a")] = None
    version = (entries[0].run.meta.get("versions") or {}).get("karmafunnel", "n/a")
    made = rich(
        'commit {} · seed {} · karmafunnel {} · <a href="#record">recipe, command and versions</a>',
        ", ".join(commits),
        ", ".join(seeds),
        version,
    )
    summary = "Funnel, commit and seed" if len(entries) == 1 else "Funnels, commit and seeds"
    return Details(summary, [*blocks, Text(made, "sub")])


def headline_of(entries: Sequence[Entry]) -> Measure:
    """The measure of the headline (`telling`)."""
    return telling([run for entry in entries for run in entry.runs])


def common(entries: Sequence[Entry]) -> tuple[int, int]:
    """Two cutoffs that the last stage of every Run can answer: that of the headline, and the
    largest.
    """
    return headline_of(entries).k or 1, min(entry.size for entry in entries)


def share_of(of: Measure, value: float) -> str:
    """A value on a card: a share in percent, MRR as a number."""
    return number(value) if of.name == "MRR" else percent(value)


def outcome(entry: Entry) -> Words:
    """What happened to the relevant items, and to their order."""
    return rich("{} {} {}", sentence(entry), adds(entry), worse_than_logged(entry))


def worse_than_logged(entry: Entry) -> Words:
    """Where the lists stood in a better order as they were shown than the last stage puts them in;
    "" elsewhere.
    """
    if not exposed([entry]):
        return ""
    for row in against_logged(entry.runs, ["gAUC:request:exposures"]):
        if row["better"] == "A":
            loss, ends = -row["difference"], {"low": -row["high"], "high": -row["low"]}
            return rich(
                "<b>The logged order is better than that of {}</b> in gAUC over the shown lists: "
                "{} against {}, by {} {} ({} requests).",
                row["stage"],
                number(row["value_a"]),
                number(row["value_b"]),
                number(loss),
                between({"value": loss} | ends),
                f"{row['n']:,}",
            )
    return ""


def adds(entry: Entry) -> Words:
    """Which stages lower the order of the stage before, and whether the last one improves it."""
    headline = headline_of([entry])
    rows, said = added(entry.runs, [headline]), rich("")
    if headline.name != "HR":
        said += "Every order of the first stage has a hit at rank 1. "
    for text in lowered(rows):
        said += rich("<b>{}</b>. ", text)
    row = find(rows, stage=entry.stages[-1])
    if row is None or row["difference"] is None or row["better"] == "A":
        return said
    decimals = places(row["difference"])
    change = (
        f"{number(row['difference'], True, decimals)} {headline} {between(row, True, decimals)}"
    )
    named = (row["stage"], row["before"], change.rstrip(), f"{row['n']:,}", row["drawn"])
    if row["better"]:
        return said + rich(
            "{} improves the order of {}: <b>{}</b> (paired on {} requests, {} clustered).",
            *named,
        )
    return said + rich(
        "{} makes no significant difference to the order of {}: {} (paired on {} requests, {} "
        "clustered).",
        *named,
    )


def told_apart(entries: Sequence[Entry]) -> tuple[list[Entry], list[Block]]:
    """The entries, with a dagger after the name of every Run that did not replay the requests of
    the first one, and a warning about each of these.
    """
    first = entries[0]
    mine = replayed(first.run)
    ids = first.run.read("requests", "request_id")["request_id"]
    named, found = [first], list[Block]()
    for other in entries[1:]:
        differences = {}
        for what, value in replayed(other.run).items():
            if value != mine[what]:
                differences[what] = f"{what} {value} instead of {mine[what]}"
        theirs = other.run.read("requests", "request_id")["request_id"]
        both = 0
        if not ids.equals(theirs):
            both = theirs.filter(theirs.is_in(ids.implode())).len()
            differences["requests"] = (
                f"{len(theirs):,} requests instead of {len(ids):,}, {both:,} of them in both"
            )
        elif list(differences) == ["limit"]:  # neither limit left out a request
            differences = {}
        if not differences:
            named.append(other)
            continue
        named.append(replace(other, name=f"{other.name} †", comparable=False))
        text = rich(
            "<b>{}</b> did not replay the same requests as <b>{}</b>: {}. "
            "Its values cannot be compared with those of the others.",
            named[-1].name,
            first.name,
            "; ".join(differences.values()),
        )
        if both and list(differences) in (["requests"], ["limit", "requests"]):
            text += rich(" <code>karmafunnel compare --common</code> takes the requests of both.")
        found.append(Warned(text))
    return named, found


def replayed(run: Run) -> dict[str, str]:
    """What a Run replayed, in words."""
    log = run.meta["log"]
    return {
        "log": f"{log.get('name')} ({log.get('checksum')})",
        "relevant items:": f"{past(run.relevance)} items",
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
    label = entry.run.relevance
    if not total:
        return f"No replayed request has a {label}, so there is no relevant item to find."
    kept, never = entry.loss("kept"), entry.loss("not eligible")
    text = rich(
        "Of {} {} items, <b>{}</b> are among the {} that {} returns for a request{}",
        f"{total:,}",
        past(label),
        percent(kept["share"]),
        mean_rows(entry.run, entry.stages[-1]),
        entry.stages[-1],
        "" if (entry.run.rows_out(entry.stages[-1]) == entry.size).all() else " on average",
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
    margin = leak["median_margin"]
    # a lower bound at recall, and 1 where all that is known is that a stage left the item out
    if margin is None or margin < 1.5 or leak["reason"] == entry.stages[0]:
        return text + "."
    return text + rich(", half of them by {} ranks or more.", f"{margin:,.0f}")


def key_figures(entry: Entry, headline: Measure, most: int) -> list[tuple[Words, Words, Words]]:
    """Cards (name, value, explanation); relevant items and money are counted to depth `most`."""
    last = entry.stages[-1]
    rows = entry.ask([headline, f"kept@{most}", f"GMV-HR@{most}"])
    kept = find(rows, measure=f"kept@{most}", stage=last)
    money = find(rows, measure=f"GMV-HR@{most}", stage=last)
    hits = where(rows, measure=str(headline))
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
        if row is None or row["value"] is None:
            return "n/a"
        return share_of(Measure.parse(row["measure"]), row["value"])

    def range_of(row: Row | None) -> str:
        if row is None or row["low"] is None:
            return ""
        of = Measure.parse(row["measure"])
        return f"95%: {share_of(of, row['low'])} to {share_of(of, row['high'])}"

    asked = f"{counts['relevant']:,} with a {entry.run.relevance}"
    asked += f"; {counts['n_eligible']:,.0f} eligible items on average"
    random, ceiling = value(find(hits, stage="random")), value(find(hits, stage="ceiling"))
    about_hits = rich("{}<br>random {}, ceiling {}", range_of(hit), random, ceiling)
    lost, reason = "none", ""
    if leak is not None:
        lost, reason = percent(leak["share"]), plots.reason_name(leak["reason"], entry.stages)
    cards: list[tuple[Words, Words, Words]] = [
        ("Requests replayed", f"{counts['n']:,}", asked),
        (f"{headline} after {last}", value(hit), about_hits),
        (f"Relevant items in the first {most:,}", value(kept), range_of(kept)),
    ]
    if priced(entry):
        cards.append((f"Their money in the first {most:,}", value(money), range_of(money)))
    cards.append(("Largest loss of the funnel", lost, reason))
    if timed(entry):
        ms = 1000 * seconds / max(counts["n"], 1)
        device = str(entry.run.meta.get("device") or "cpu")
        cards.append(("Replay time a request", f"{ms:,.1f} ms", f"all stages, on {device}"))
    return cards


def losses(entries: Sequence[Entry]) -> Section:
    """The waterfall, and the same as a table."""
    text = rich(
        "Every item that was {} passes through the stages until one loses it. "
        "<b>Not eligible</b>: not known before the request, or filtered out, so no funnel could "
        "have found it. <b>Not recalled</b>: recall did not return it. <b>Missed by the index</b>: "
        "exact search would have found it. <b>Cut</b>: the stage ranked it too low. "
        "Shares are of all relevant items and add up to 100%.",
        past(entries[0].run.relevance),
    )
    blocks: list[Block] = [Text(text)]
    if len(entries) == 1:
        blocks += [Figure(waterfall(entries[0])), Details("The numbers", loss_table(entries[0]))]
    else:
        found = {entry.name: entry.cascade.losses for entry in entries}
        stages = union(entries)
        blocks.append(Figure(plots.run_losses(found, stages), reason_legend(found, stages)))
        for entry in entries:
            details = [Figure(waterfall(entry)), *loss_table(entry)]
            blocks.append(Details(f"{entry.name}: stage by stage", details))
    return Section("losses", "Losses", "Where relevant items and money are lost", blocks)


def reason_legend(losses: Mapping[str, Sequence[Row]], stages: Sequence[str]) -> dict[str, str]:
    """Colours of the reasons in the losses of some Runs."""
    colours = plots.reason_colours(stages)
    rows = [row for found in losses.values() for row in found]
    return {plots.reason_name(r, stages): colours[r] for r in plots.reasons(rows, stages)}


def loss_table(entry: Entry) -> list[Block]:
    """Reason by reason: items, money, median margin."""
    rows = []
    for row in entry.cascade.losses:
        if row["reason"] == "index" and not row["items"] and not has_index(entry.run):
            continue
        line = [plots.reason_name(row["reason"], entry.stages)]
        line += [f"{row['items']:,}", percent(row["share"])]
        if priced(entry):
            line += [amount(row["money"], entry.currency), percent(row["money_share"])]
        least = "≥ " if row["reason"] == entry.stages[0] else ""
        margin = row["median_margin"]
        line.append("" if margin is None else f"{least}{margin:,.0f}")
        rows.append(line)
    money = ["money", "share of money"] if priced(entry) else []
    heads = ["lost where", "items", "share", *money, "missed by, ranks"]
    note = (
        "Missed by: how many ranks below the last kept item a lost one stood, in the median; "
        "at recall a lower bound."
    )
    return [Table(heads, rows), Text(note, "note")]


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
    if deep:
        told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        warning = (
            f"These Runs return different numbers of items ({told}): survival grows with them, "
            f"kept@{most} does not."
        )
        blocks.append(Warned(warning))
    note = "Relevant items are those of the requests themselves (in-scenario). All-scenario: n/a."
    if len(entries) == 1:
        blocks.append(measure_table(rows))
    else:  # a line for each measure and stage: the first measures, and the others folded
        main = {f"HR@{small}", f"HR@{most}", f"nDCG@{small}", f"GMV-HR@{most}"}
        more = [row for row in rows if row["measure"] not in main]
        blocks.append(measure_table([row for row in rows if row["measure"] in main], "label"))
        blocks.append(Details("More measures", [measure_table(more, "label")]))
    return Section(
        "stages",
        "Stage table",
        "Stage by stage",
        [*blocks, Text(note, "note"), *gains(entries, small)],
    )


def gains(entries: Sequence[Entry], k: int) -> list[Block]:
    """Each stage against the stage before it."""
    what = (
        "Each stage's order against that of the stage before it, on the same requests and at "
        "the same depth. A later stage that adds nothing could be left out."
    )
    blocks: list[Block] = []
    for entry in entries:
        found = added(entry.runs, [f"HR@{k}", f"nDCG@{k}", f"MRR@{k}", f"GMV-HR@{k}:w99"])
        if compared := [row for row in found if row["value_a"] is not None]:
            table = measure_table(compared)
            blocks.append(table if len(entries) == 1 else Details(entry.name, [table]))
    return [Heading("What each stage adds"), Text(what), *blocks] if blocks else []


def cuts(entry: Entry) -> list[int]:
    """The cutoffs of the curves: round numbers up to the widest stage, and the size of every
    stage's output.
    """
    sizes = {entry.run.most(stage) for stage in entry.stages}
    return sorted({k for k in KS if k <= max(sizes)} | sizes)


def hit_curves(entries: Sequence[Entry]) -> Section:
    """HR@k over k, and the same in money: of the stages of one Run, or of the last stages of
    several, with the stages of each folded.
    """
    if len(entries) == 1:
        text = (
            "Hit rate by cutoff. Each line ends at the size of its stage's output; bands are 95% "
            "intervals. Where a later stage's line runs above an earlier one, it improves the "
            "order. The axis ends above the stages; the ceiling may lie beyond it."
        )
        return Section(
            "curves", "HR@k", "Hit rate by depth", [Text(text), stage_curves(entries[0])]
        )
    text = (
        "Hit rate by cutoff after the last stage of each Run, up to the size of its output; bands "
        "are 95% intervals. The axis ends above the Runs; the ceiling may lie beyond it."
    )
    panels: dict[str, list[Row]] = {}
    for entry in entries:
        for title, rows in by_depth(entry):
            for row in rows:
                if row["stage"] == entry.stages[-1]:
                    panels.setdefault(title, []).append(row | {"stage": entry.name})
                elif row["stage"] in AFTER and entry is entries[0]:
                    panels.setdefault(title, []).append(row)
    names = names_of(entries)
    legend = plots.colour_of(names) | {"ceiling": "dash", "random": "dot"}
    blocks: list[Block] = [Text(text), Figure(plots.curves(list(panels.items()), names), legend)]
    for entry in entries:
        if len(entry.stages) > 1:
            blocks.append(Details(f"{entry.name}: every stage", [stage_curves(entry)]))
    return Section("curves", "HR@k", "Hit rate by depth", blocks)


def by_depth(entry: Entry) -> list[tuple[str, list[Row]]]:
    """HR@k at every cutoff, and GMV-HR@k where money is known."""
    panels = [("HR@k", entry.ask([f"HR@{k}" for k in cuts(entry)]))]
    if money := known(entry.ask([f"GMV-HR@{k}" for k in cuts(entry)])):
        panels.append(("GMV-HR@k, money", money))
    return panels


def stage_curves(entry: Entry) -> Block:
    legend = plots.colour_of(entry.stages) | {"ceiling": "dash", "random": "dot"}
    return Figure(plots.curves(by_depth(entry), entry.stages), legend)


def ordering(entries: Sequence[Entry]) -> Section:
    """AUC and gAUC stage by stage, on exposures where the log has them, else on candidates."""
    names = ["gAUC:request:candidates"]
    if exposed(entries):
        grouped = ["gAUC:request:exposures", "gAUC:user:exposures"]
        names = ["AUC", *grouped, "HR@1:exposures", "MRR:exposures", *names]
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
    return Section("auc", "AUC, gAUC", "Order within a stage", [Text(text), *parts])


def calibrated(entries: Sequence[Entry]) -> Section | None:
    """Probabilities against frequencies for every stage that has them; None where none has."""
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
    if not panels:
        return None
    parts: list[Block] = [Figure(plots.calibration(panels))]
    parts.append(measure_table(rows, across(entries)))
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
    if panels:
        by, names = ("label", names_of(entries)) if len(entries) > 1 else ("stage", union(entries))
        figure = plots.dots(panels, names, by, "slice", zero=True)
        blocks.append(Figure(figure, plots.colour_of(names)))
    if empty:
        note = f"One kind only, or unknown, in this log: {'; '.join(empty)}."
        blocks.append(Text(note, "note"))
    blocks.append(Text("Where their items are lost; a bar is all relevant items of its slice."))
    for entry in entries:
        drawn = _slice_losses(entry)
        blocks.append(drawn if len(entries) == 1 else Details(entry.name, [drawn]))
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


def times(entries: Sequence[Entry]) -> Section | None:
    """Milliseconds a request and rows in and out, stage by stage; None for a Run that was not
    timed.
    """
    text = (
        "Wall time of the replay itself, in chunks of requests on one machine: it compares stages "
        "with each other and is no serving latency."
    )
    rows: list[list[Words | Cell | Bar]] = []
    colours = plots.colour_of(union(entries))
    for entry in entries:
        frame = entry.run.read("timing")
        per = frame.group_by("stage", maintain_order=True).agg(
            pl.col("requests", "rows_in", "rows_out", "seconds").sum(),
            (1000 * pl.col("seconds") / pl.col("requests")).quantile(0.95).alias("p95"),
        )
        found = {row["stage"]: row for row in per.iter_rows(named=True)}
        total = sum(column(found.values(), "seconds")) or 1.0
        for stage in filter(found.__contains__, entry.stages if timed(entry) else []):
            row = found[stage]
            n = max(row["requests"], 1)
            rows.append(
                [
                    *([entry.name] if len(entries) > 1 else []),
                    stage,
                    f"{1000 * row['seconds'] / n:,.2f}",
                    f"{row['p95']:,.2f}",
                    f"{row['rows_in'] / n:,.0f}",
                    f"{row['rows_out'] / n:,.0f}",
                    f"{1e6 * row['seconds'] / max(row['rows_in'], 1):,.1f}",
                    Bar(row["seconds"] / total, colours[stage]),
                ]
            )
    if not rows:
        return None
    texts = ["Run", "stage"] if len(entries) > 1 else ["stage"]
    heads = ["mean ms a request", "p95 over chunks", "rows in", "rows out", "µs a row in"]
    table = Table([*texts, *heads, "share of time"], rows, len(texts))
    return Section("time", "Time", "Time and rows", [Text(text), table])


def comparison(entries: Sequence[Entry]) -> Section:
    """Every Run against the first, paired on the same requests."""
    base = entries[0]
    k, most = common(entries)
    names = ["survival", f"HR@{k}", f"nDCG@{k}", f"HR@{most}", f"GMV-HR@{most}:w99"]
    if exposed(entries):
        names += ["AUC", "gAUC:request:exposures"]
    text = rich(
        "Each Run against the baseline <b>{}</b> on the same requests. A difference is significant "
        "where its 95% interval excludes 0 (*), or also after Holm's correction (**).",
        base.name,
    )
    tables: list[Block] = []
    differences: dict[str, dict[str, Row]] = {}
    for entry in entries[1:]:
        try:
            rows = compare(base.runs, entry.runs, names, label_a=base.name, label_b=entry.name)
        except KarmafunnelError as error:
            tables.append(Text(rich("<b>{}</b> is not compared. {}", entry.name, error)))
            continue
        compared = [row for row in rows if row["value_a"] is not None] or rows
        title = f"{entry.name} against {base.name}"
        if len(entries) > 2:
            tables.append(Details(title, [measure_table(compared)]))
        else:
            tables += [Heading(title), measure_table(compared)]
        last = f"{base.stages[-1]} | {entry.stages[-1]}"
        if base.stages[-1] == entry.stages[-1]:
            last = entry.stages[-1]
        differences[entry.name] = {row["measure"]: row for row in where(compared, stage=last)}
    blocks: list[Block] = [Text(text)]
    if any(map(known_difference, differences.values())):
        drawn = (
            "After the last stages. In colour: significant; diamond: also after Holm's correction."
        )
        blocks += [Text(drawn, "note"), Figure(plots.forest(differences))]
    return Section("compare", "Compare", "Compared, request by request", [*blocks, *tables])


def known_difference(row: Mapping[str, Row]) -> bool:
    """Whether any measure of a comparison has a difference."""
    return any(one["difference"] is not None for one in row.values())


def one_request(entries: Sequence[Entry], n: int) -> Section:
    """A picker over a sample of requests; the page's script draws the rest."""
    data = look_up([entry.run for entry in entries], names_of(entries), n)
    blocks: list[Block] = [Absent("no replayed request has a relevant item.")]
    if data["requests"]:
        text = (
            f"{len(data['requests'])} requests of {entries[0].name}, drawn at random within each "
            "outcome, so that every kind of success and failure is here. What happens to the "
            "relevant items stage by stage, and which items are ranked above them, in one Run or "
            "in two side by side."
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


def header(entries: Sequence[Entry]) -> Block:
    """What was replayed."""
    meta = entries[0].run.meta
    log, _ = open_log(entries[0].run)
    words = [
        f"Run{'s' if len(entries) > 1 else ''} {', '.join(names_of(entries))}",
        f"window {meta['window']}",
        f"relevant: {past(entries[0].run.relevance)} items",
    ]
    if meta["log"].get("items"):
        words.append(f"{meta['log']['items']:,} items")
    fields = ("query", "text", "price", "exposures")
    if lacks := [name for name in fields if not meta["log"]["has"].get(name)]:
        words.append(f"the log has no {', '.join(lacks)}")
    if log and log.meta.get("licence"):
        words.append(f"licence of the log: {log.meta['licence']}")
    return Text(" · ".join(words), "sub")
