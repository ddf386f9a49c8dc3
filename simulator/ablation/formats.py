"""The tables of an ablation in every format: `table.json`, `.md`, `.csv`, `.tex`, `.html`."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ...files import read_json, remove, write_text
from ...log import Log
from ...models.embedders import watched_csv
from ...terminal import Console
from ..measure.measures.measure import Measure
from ..replay.options import RunOptions
from ..replay.provenance import commit, processor
from ..replay.recipe import Recipe
from ..report.attention_plot import attention_figure
from ..report.attribution_plot import attribution_figure, attribution_table
from ..report.curves import write_curve
from ..report.measure_table import between, define, unchanged, valued
from ..report.page import (
    Block,
    Cards,
    Details,
    Figure,
    Page,
    Points,
    Section,
    Text,
    render,
    rich,
)
from ..report.plots import forest
from ..report.table import Cell as TableCell
from ..report.table import Table, number, print_table, to_latex, to_markdown
from .cells import Cell
from .lines import JS, Line, lines_of, parts_of

MS, DETECTABLE = "ms a request", "detectable"
MARKS = (
    "* the 95% interval excludes 0, with the same sign in every seed; ** also after Holm's "
    "correction over the whole table."
)
DIAGNOSTICS = (
    "median rank of cold targets",
    "popularity of top 50",
    "readable, nats",
    "perplexity given history",
    "perplexity given interest",
    "perplexity given interest, unseen",
    "sink rate, first",
    "base sink rate, first",
    "sink rate, others",
    "base sink rate, others",
    "column entropy",
    "base column entropy",
    "effective rank, items",
    "effective rank, interests",
    "uniformity, items",
    "uniformity, interests",
    "alignment",
    "training seconds",
    "embedding µs a request",
)
DEFINITIONS = {
    JS: (
        "mean Jaccard similarity of the words of a request's first relevant item with those of the "
        "top 50 retrieved items, minus the same for 50 random eligible items"
    ),
    "median rank of cold targets": (
        "among all eligible items by inner product, over first relevant items that were never "
        "relevant in W1"
    ),
    "popularity of top 50": (
        "mean share of the catalogue that is chosen less often in W1 than a retrieved item"
    ),
    "readable, nats": (
        "nats per word of the relevant item's text that a linear probe on the user embedding saves "
        "over word frequencies alone"
    ),
    "perplexity given interest": (
        "of the relevant items' texts, predicted from the user embedding alone"
    ),
    "perplexity given history": "of the relevant items' texts, predicted from the history",
    "sink rate, first": (
        "share of attention heads that put more than .3 of their attention on the first position "
        "(base: before fine-tuning)"
    ),
    "column entropy": (
        "of attention over positions: 0 if all of it is on one position, 1 if uniform"
    ),
    "effective rank, items": (
        "exp of the entropy of the centred vectors' singular values: from 1 to their dimension"
    ),
    "uniformity, items": (
        "log mean exp(-2 distance^2) over pairs of unit vectors: 0 if all are equal, near -4 if "
        "spread out"
    ),
    "alignment": (
        "mean squared distance of the user embedding and its relevant item's, both of unit "
        "length: 0 to 4, lower is closer"
    ),
    "embedding µs a request": "time to compute one user embedding, in batches",
}


# -- what the tables hold --------------------------------------------------------------------------


def tables_of(baseline: str | None, lines: Sequence[Line]) -> list[Table]:
    """The tables: values, differences to the row `baseline`, diagnostics, and what failed."""
    columns = list(dict.fromkeys(column for line in lines for column in line["values"]))
    tables = [_values(columns, lines)] if any(line["seeds"] for line in lines) else []
    if any(line["differences"] for line in lines):
        tables.append(_differences(baseline, columns, lines))
    found = _diagnostics_in(lines, DIAGNOSTICS)
    if found:
        rows = []
        for line in lines:
            if line["seeds"]:
                rows.append([line["row"], *(_short(line["diagnostics"].get(d)) for d in found)])
        tables.append(Table(["row", *found], rows, title="diagnostics, means over seeds"))
    if failed := [[line["row"], line["failed"]] for line in lines if "failed" in line]:
        tables.append(Table(["row", "why"], failed, title="failed", look="prose"))
    return tables


def _values(columns: Sequence[str], lines: Sequence[Line]) -> Table:
    rows: list[list[str | TableCell]] = []
    for line in lines:
        if line["seeds"]:
            cells = [valued(line["values"].get(column)) for column in columns]
            rows.append([line["row"], str(len(line["seeds"])), *cells, _cost(line["cost"])])
    rows.append(["n", "", *_counts(columns, [line["values"] for line in lines]), ""])
    title = "values, 95% intervals over users and seeds"
    heads, last = ["row", "seeds", *columns, MS], {len(rows) - 1}
    return Table(heads, rows, title=title, quiet=last, look="measures")


def _differences(baseline: str | None, columns: Sequence[str], lines: Sequence[Line]) -> Table:
    rows: list[list[str | TableCell]] = []
    for line in lines:
        if found := line["differences"]:
            cells = [valued(found.get(column), True) for column in columns]
            rows.append([line["row"], str(len(line["paired"])), *cells])
            name = f"{line['row']}: {DETECTABLE}"
            rows.append([name, "", *(_effect(found.get(column)) for column in columns)])
    quiet = {*range(1, len(rows), 2), len(rows)}  # also where the rows are sorted
    rows.append(["n", "", *_counts(columns, [line["differences"] for line in lines])])
    title = f"differences to {baseline}, paired by request"
    heads = ["row", "seeds", *columns]
    return Table(heads, rows, title=title, below=[MARKS], quiet=quiet, look="measures")


def _effect(row: Line | None) -> str:
    """The minimum detectable effect as a text: "±.012"."""
    effect = None if row is None else row.get("smallest_effect")
    if not row or effect is None or not np.isfinite(effect) or unchanged(row):
        return ""
    return f"±{number(effect)}"


def _cost(cost: Mapping[str, float]) -> str:
    """Milliseconds a request: "12.30 (recall 8.10, rank 4.20)"."""
    if not cost:
        return ""
    stages = [f"{stage} {ms:.2f}" for stage, ms in cost.items() if stage != "total"]
    total = f"{cost['total']:.2f}"
    return f"{total} ({', '.join(stages)})" if len(stages) > 1 else total


def _counts(columns: Sequence[str], found: Sequence[Mapping[str, Line]]) -> list[str]:
    """n of each column, or its range."""
    texts = []
    for name in columns:
        n = sorted({row[name]["n"] for row in found if name in row})
        text = f"{n[0]:,}" if n else ""
        texts.append(f"{text} to {n[-1]:,}" if len(n) > 1 else text)
    return texts


def _short(value: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


def _diagnostics_in(lines: Sequence[Line], names: Sequence[str]) -> list[str]:
    """Those of `names` that occur among the diagnostics of a line, in the same order."""
    return [name for name in names if any(name in line["diagnostics"] for line in lines)]


# -- the notes below them --------------------------------------------------------------------------


def record(
    recipe: Recipe, log: Log, lines: Sequence[Line], lacks: Sequence[str], options: RunOptions
) -> list[str]:
    """The notes below a table: its origin, and notes of its rows."""
    command = f"`{options.command}`" if options.command else f"recipe {recipe.name}"
    n = {row["n"] for line in lines for row in line["values"].values() if row.get("n")}
    seeds = sorted({seed for line in lines for seed in line["seeds"]})
    source = (
        f"log {log.name} ({log.checksum}), window {options.window}, n up to {max(n, default=0):,}, "
        f"seeds {seeds}"
    )
    if options.limit:
        source += f", {options.limit} requests"
    # the date of the latest cell, which stays the same when the table is written again
    date = max((line.get("date", "") for line in lines), default="")
    machine = [processor(), f"{os.cpu_count()} cores", f"commit {commit() or 'unknown'}"]
    made = ", ".join([date, *machine] if date else machine)
    notes = [f"{line['row']}: {line['note']}" for line in lines if line["note"]]
    for line in lines:
        for name, row in line["differences"].items():
            if "not compared" in row.get("note", ""):
                notes.append(f"{line['row']}, {name}: {row['note'].removeprefix('n/a: ')}")
    return [command, *lacks, source, made, *_warnings(lines), *notes]


def _warnings(lines: Sequence[Line]) -> list[str]:
    """What the fits of the rows warned of; rows with the same warning share a note."""
    rows: dict[str, list[str]] = {}
    for line in lines:
        for text in dict.fromkeys(line["warnings"]):
            rows.setdefault(text, []).append(line["row"])
    return [f"warning, {'; '.join(names)}: {text}" for text, names in rows.items()]


def missing(recipe: Recipe, lines: Sequence[Line], parts: Sequence[Line]) -> list[str]:
    """Notes on what the table lacks because rows failed; `parts` is the attribution over the
    recipe's grid.
    """
    failed = {line["row"]: line for line in lines if "failed" in line}
    found = []
    if recipe.against in failed and not failed[recipe.against]["seeds"]:
        found.append(f"no differences: the baseline {recipe.against} failed")
    lost = [row for row in failed if row in recipe.grid.values()]
    if lost and not parts:
        rows = ", ".join(lost)
        found.append(f"no attribution: it needs every row of the grid, but {rows} failed")
    return found


def definitions(lines: Sequence[Line]) -> list[str]:
    """Definitions of the columns, one line each; slices of a measure share a definition."""
    names = dict.fromkeys(row["measure"] for line in lines for row in line["values"].values())
    names |= dict.fromkeys(_diagnostics_in(lines, list(DEFINITIONS)))
    texts = [f"{name}: {DEFINITIONS.get(name) or define(name)}." for name in names]
    if any(line["cost"] for line in lines):
        texts.append(
            f"{MS}: time of each stage as if its funnel ran alone; median over chunks of requests, "
            "mean over seeds."
        )
    if any(line["differences"] for line in lines):
        texts.append(
            f"{DETECTABLE}: minimum detectable effect of the row's comparison, at 80% power."
        )
    return texts


# -- writing ---------------------------------------------------------------------------------------


def write_table(
    recipe: Recipe,
    log: Log,
    out: Path,
    todo: Sequence[Cell],
    options: RunOptions,
    diagnose: bool = False,
) -> None:
    """Write `table.json`, `.md`, `.csv`, `.tex` and `.html`, each atomically; also the attribution
    of a grid, the steps of watched fits and, to `diagnose`, the attention maps, where there are
    any.
    """
    lines = lines_of(recipe, todo, diagnose)
    parts = parts_of(recipe, todo)
    lacks = missing(recipe, lines, parts)
    tables, noted = tables_of(recipe.against, lines), record(recipe, log, lines, lacks, options)
    defined = definitions(lines)
    below = [*noted, *defined]
    title = f"{recipe.name} on {log.name}"
    kept = {
        "recipe": recipe.name,
        "against": recipe.against,
        "log": {"name": log.name, "checksum": log.checksum},
        "window": options.window,
        "limit": options.limit,
        "lines": lines,
        "parts": parts,
        "lacks": lacks,
        "record": below,
    }
    differences = {line["row"]: line["differences"] for line in lines}
    texts = {
        "table.json": json.dumps(kept, indent=1, default=float),
        "table.md": markdown(title, tables, below),
        "table.csv": comma(lines),
        "table.html": render(
            page(title, tables, noted, differences, defined, cards_of(recipe, log, lines, options))
        ),
        "table.tex": latex(title, tables, below),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    _write_watched(out, todo)
    if diagnose:
        _write_attention(recipe, out, todo, title)
    _write_attribution(out, parts, title)


def _write_watched(out: Path, todo: Sequence[Cell]) -> None:
    """Write the diagnostics of watched fits, step by step; without any, remove those of an earlier
    table.
    """
    steps = []
    for cell in todo:
        for step in cell.read("facts.json").get("fit", {}).get("watched", []) if cell.done else []:
            steps.append({"row": cell.row, "seed": cell.seed, **step})
    if steps:
        write_text(out / "watched.csv", watched_csv(steps))
    else:
        remove(out / "watched.csv")


def _write_attention(recipe: Recipe, out: Path, todo: Sequence[Cell], title: str) -> None:
    """Write the attention maps of rows that have one, from the first finished seed of each."""
    maps = {}
    for row in recipe.rows:
        first = next((cell for cell in todo if cell.row == row and cell.done), None)
        if first is not None:
            path = first.folder / "similarity" / "attention.safetensors"
            if path.exists():
                maps[row] = load_file(path)["maps"]
    if maps:
        write_curve(attention_figure(maps), out / "attention.html", f"Attention, {title}")


def _write_attribution(out: Path, parts: Sequence[Line], title: str) -> None:
    """Write the contribution of each stage; without `parts`, remove files of an earlier table."""
    if not parts:
        for name in ("attribution.md", "attribution.html", "attribution.png"):
            remove(out / name)
        return
    text = to_markdown(attribution_table(parts))
    write_text(out / "attribution.md", f"## Attribution, {title}\n\n{text}")
    heading = f"What each stage adds, {title}"
    write_curve(attribution_figure(parts), out / "attribution.html", heading)


def markdown(title: str, tables: Sequence[Table], below: Sequence[str]) -> str:
    """The tables as Markdown, followed by the notes `below`."""
    return "\n".join([f"## {title}\n", *map(to_markdown, tables), "\n\n".join(below)]) + "\n"


def latex(title: str, tables: Sequence[Table], below: Sequence[str]) -> str:
    """One LaTeX `table` environment per table; the last one also holds the notes `below`."""
    titled = [replace(table, title=f"{title}: {table.title}") for table in tables]
    if titled:
        titled[-1] = replace(titled[-1], below=below)
    return "\n".join(map(to_latex, titled))


def comma(lines: Sequence[Line]) -> str:
    """CSV with one line per row and column, numbers unrounded."""
    file = io.StringIO()
    heads = ["row", "seeds", "column", "value", "low", "high", "difference", "d_low", "d_high"]
    heads += ["better", "holm", "detectable", "n", "d_seeds"]
    writer = csv.DictWriter(file, heads, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        begin = {"row": line["row"], "seeds": len(line["seeds"])}
        for name, row in line["values"].items():
            found = begin | {"column": name, "value": row["value"], "n": row["n"]}
            found |= {"low": row["low"], "high": row["high"]}
            if other := line["differences"].get(name):
                found |= {
                    "difference": other.get("difference"),
                    "d_low": other.get("low"),
                    "d_high": other.get("high"),
                    "better": other.get("better"),
                    "holm": other.get("holm"),
                    "detectable": other.get("smallest_effect"),
                    "d_seeds": len(line["paired"]),
                }
            writer.writerow(found)
        for name in DIAGNOSTICS:
            if name in line["diagnostics"]:
                writer.writerow(begin | {"column": name, "value": line["diagnostics"][name]})
        for stage, ms in line["cost"].items():
            writer.writerow(begin | {"column": f"{MS}, {stage}", "value": ms})
    return file.getvalue()


def cards_of(
    recipe: Recipe, log: Log, lines: Sequence[Line], options: RunOptions
) -> list[tuple[str, str, str]]:
    """The key figures of a table: its baseline, its best row, its size."""
    done = [line for line in lines if line["seeds"]]
    failed = sum("failed" in line for line in lines)
    seeds = sorted({seed for line in lines for seed in line["seeds"]})
    rows = [row for line in done for row in line["values"].values()]
    n = max((row["n"] for row in rows if row.get("unit") == "request"), default=0)
    cards = [("baseline", str(recipe.against or "none"), "every row is compared with it")]
    whole = [m for m in (done[0]["values"] if done else []) if " at " not in m and m != JS]
    if whole:
        measure = whole[0]
        lower = Measure.parse(done[0]["values"][measure]["measure"]).better == "lower"
        known = [line for line in done if line["values"].get(measure, {}).get("value") is not None]
        known.sort(key=lambda line: line["values"][measure]["value"], reverse=not lower)
        for best in known[:1]:
            value = best["values"][measure]
            small = f"{number(value['value'])} {between(value)}"
            cards.append((f"best in {measure}", best["row"], small))
    cards.append(("rows", f"{len(lines):,}", f"{len(done)} finished, {failed} failed"))
    cards.append(("seeds", f"{len(seeds)}", ", ".join(map(str, seeds))))
    if n:
        cards.append(("requests", f"{n:,}", f"of {options.window}, log {log.name}"))
    return cards


def page(
    title: str,
    tables: Sequence[Table],
    below: Sequence[str],
    differences: Mapping[str, Mapping[str, Line]],
    defined: Sequence[str] = (),
    cards: Sequence[tuple[str, str, str]] = (),
) -> Page:
    """The tables as a page, with `differences` (row -> column -> difference) drawn.

    Args:
        below: where the table comes from.
        defined: definitions of its columns.
        cards: its key figures.
    """
    sections = []
    found = [row for by_column in differences.values() for row in by_column.values()]
    if any(row.get("difference") is not None for row in found):
        words = (
            "Differences to the baseline with their 95% intervals, in units of the measure, one "
            "panel per column; the vertical line is zero. In colour: the interval excludes 0, with "
            "the same sign in every seed. Diamond: also after Holm's correction over the whole "
            "table."
        )
        drawn: list[Block] = [Text(words), Figure(forest(differences))]
        sections.append(Section("drawn", "Drawn", "Differences drawn", drawn))
    for i, table in enumerate(tables):
        heading = table.title[:1].upper() + table.title[1:]
        short = heading.split(",")[0].split(" to ")[0]
        said: list[Block] = [*map(Text, table.below), replace(table, below=())]
        sections.append(Section(f"table{i}", short, heading, said))
    notes = []
    for line in below:
        is_command = line[:1] == line[-1:] == "`"
        notes.append(rich("<code>{}</code>", line.strip("`")) if is_command else line)
    origin: list[Block] = [Points(notes, "notes")]
    if defined:
        origin.insert(0, Details("Definitions of the columns", [Points(defined, "notes")]))
    sections.append(Section("record", "Record", "Where it comes from", origin))
    return Page(title, "karmafunnel table", [Cards(cards)] if cards else [], sections)


def print_tables(out: Path, console: Console, verbose: bool = True) -> bool:
    """Print the tables of a folder, read from its `table.json`.

    Args:
        verbose: whether to print the definitions and where the table comes from, too.

    Returns:
        Whether a row has a result.
    """
    kept = read_json(out / "table.json")
    for i, table in enumerate(tables_of(kept["against"], kept["lines"])):
        if i:
            console.print()
        print_table(table, console)
    if kept["parts"]:
        console.print()
        print_table(attribution_table(kept["parts"]), console)
    if not any(line["seeds"] for line in kept["lines"]):
        return False
    short = [*kept["lacks"], *_warnings(kept["lines"])]
    for line in kept["record"] if verbose else short:
        console.print(line, style="dim")
    if not verbose:
        console.print("More in table.html; definitions: -v.", style="dim")
    return True
