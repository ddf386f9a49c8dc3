"""Tables of measure rows and of comparison rows (`simulator/measure/compare.py`): terminal, CSV,
Markdown, LaTeX, HTML, JSON.

One pivot serves all formats: stages as lines and measures as columns (or, `across="label"`, Runs as
columns). A cell is value and 95% interval; n, undefined units, denominators, definitions and the
reasons of every n/a stand below the table.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from ...errors import KarmafunnelError
from ...terminal import Console
from ..measure.measures.measure import Measure
from .page import Measures, fragment

Row = dict[str, Any]
# Lines of measure rows that are no stage: what comes before the stages, and what they are to be
# held against.
BEFORE, AFTER = ("eligible",), ("end to end", "ceiling", "logged order", "random", "base rate")
INTERVALS = "Intervals: 95%, bootstrap over users."


# -- words and numbers -----------------------------------------------------------------------------


def places(value: float | None) -> int:
    """Decimals of a value and its interval: three, but two significant digits at least, so that
    0.0004 is not 0.000.
    """
    size = abs(value or 0.0)
    return 3 if size >= 0.01 or size < 1e-9 else min(-math.floor(math.log10(size)) + 1, 9)


def number(value: float | None, signed: bool = False, decimals: int | None = None) -> str:
    """A value as the tables print it."""
    if value is None:
        return "n/a"
    text = f"{value:,.{places(value) if decimals is None else decimals}f}"
    return ("+" if signed and value > 0 else "") + text.replace("-", "−")


def between(row: Row, signed: bool = False, decimals: int | None = None) -> str:
    """The interval of a row in the decimals of its value, or nothing where there is none."""
    if row["low"] is None or row["high"] is None:
        return ""
    decimals = places(row["value"] or row["high"]) if decimals is None else decimals
    return f"[{number(row['low'], signed, decimals)}, {number(row['high'], signed, decimals)}]"


def unchanged(row: Row) -> bool:
    """Whether no resample has any difference: the stages so far are the same in both rows."""
    return row.get("difference") == row["low"] == row["high"] == 0


def text_of(row: Row | None, signed: bool = False, decimals: int | None = None) -> str:
    """A value (or a difference) with its interval; ** stands after Holm's correction, * before it.
    """
    if not row or row.get("difference" if signed else "value") is None:
        return "n/a"
    if signed and unchanged(row):
        return "="
    value = row["difference"] if signed else row["value"]
    decimals = places(value) if decimals is None else decimals
    text = f"{number(value, signed, decimals)} {between(row, signed, decimals)}".rstrip()
    mark = "" if not signed or not row.get("better") else "**" if row.get("holm") else "*"
    return text + mark


def define(measure: str) -> str:
    """What a measure is, in one clause; raises KarmafunnelError for an unknown one."""
    return Measure.parse(measure).definition


def counted(rows: Iterable[Row]) -> str:
    """n and undefined of rows that were counted: "n 677 (123 undefined, 15.4%)", or the range of n
    where it differs.
    """
    found = [row for row in rows if row["n"]]
    ns = sorted({row["n"] for row in found})
    if not ns:
        return "n 0"
    text = f"n {ns[0]:,}" if len(ns) == 1 else f"n {ns[0]:,} to {ns[-1]:,}"
    lost = sorted({(row["undefined"], row["undefined_share"]) for row in found})
    if lost == [(0, 0.0)]:
        return text
    many = f"{lost[0][0]:,}" if len(lost) == 1 else f"{lost[0][0]:,} to {lost[-1][0]:,}"
    share = f"{lost[0][1]:.1%}" if len(lost) == 1 else f"{min(s for _, s in lost):.1%} to {max(s for _, s in lost):.1%}"
    return f"{text} ({many} undefined, {share})"


# -- the pivot -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """What one cell says. `marks` number its footnotes; `n` is set where it stands nowhere else;
    `strong` is a figure itself.
    """

    text: str = ""
    interval: str = ""
    n: str = ""
    marks: tuple[int, ...] = ()
    row: Row | None = None
    strong: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table ready to be rendered: leading columns `heads`, then `columns`; lines are (head texts,
    cells).
    """

    heads: list[str]
    columns: list[str]
    lines: list[tuple[tuple[str, ...], list[Cell]]]
    # what stands below each column: "n 677 (123 undefined, 15.4%)"; empty where it differs by cell
    counts: list[str]
    notes: list[str] = field(default_factory=list)  # numbered from 1
    below: list[str] = field(default_factory=list)  # definitions and references

    def is_reference(self, line: int) -> bool:
        """Whether a line is no stage but something to hold stages against."""
        return "stage" in self.heads and self.lines[line][0][self.heads.index("stage")] in (*BEFORE, *AFTER)

    def leading(self, line: int) -> list[str]:
        """A line's leading texts, without those that the line before says already."""
        before = self.lines[line - 1][0] if line else ()
        texts = self.lines[line][0]
        return ["" if said else text for said, text in zip(repeated(texts, before), texts, strict=True)]

    def look(self, line: int) -> str:
        """CSS classes of a line: "reference", and "group" where a new group of lines begins."""
        texts = self.lines[line][0]
        group = line > 0 and len(texts) > 1 and self.lines[line - 1][0][:1] != texts[:1]
        return " ".join(["reference"] * self.is_reference(line) + ["group"] * group)

    def tip(self, column: str) -> str:
        """The definition of a column that is a measure."""
        return "" if "measure" in self.heads else define(column)

    @property
    def feet(self) -> list[str]:
        return [_foot(count).removeprefix("n ") for count in self.counts]


def sheet(rows: Sequence[Row], across: str = "measure") -> Sheet:
    """The table of measure or comparison rows; `across` ("measure" or "label") is the field whose
    values are columns.

    Raises KarmafunnelError for no rows, and for two rows that fall into one cell.
    """
    if not rows:
        raise KarmafunnelError("table: needed at least one measure row, found none")
    return _comparison(rows) if "difference" in rows[0] else _pivot(rows, across)


def in_order(rows: Sequence[Row], name: str) -> list[Any]:
    """The distinct values of a field: stages as the funnel has them with references after, anything
    else as it comes.
    """
    found = list(dict.fromkeys(row[name] for row in rows))
    if name != "stage":
        return found
    stages = [s for s in found if s not in (*BEFORE, *AFTER)]
    return [*(s for s in BEFORE if s in found), *stages, *(s for s in AFTER if s in found)]


def _pivot(rows: Sequence[Row], across: str) -> Sheet:
    fields = [f for f in ("label", "measure", "slice", "stage") if f != across]
    orders = {f: {v: i for i, v in enumerate(in_order(rows, f))} for f in (*fields, across)}
    heads = [f for f in fields if f in ("stage", "measure") or len(orders[f]) > 1]
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        line = found.setdefault(tuple(row[f] for f in fields), {})
        if row[across] in line:
            raise KarmafunnelError(
                f"table: two rows for {across} {row[across]!r} of {dict(zip(fields, [row[f] for f in fields], strict=True))}"
            )
        line[row[across]] = row
    keys = sorted(found, key=lambda key: [orders[f][v] for f, v in zip(fields, key, strict=True)])
    columns = list(orders[across])
    # n stands once where it is one: below a column of a measure, at the end of a line that several
    # Runs share; else in the cells.
    by_line = across == "label"
    counts = ["" if by_line else _one_count([row for row in rows if row[across] == column]) for column in columns]
    notes: dict[str, int] = {}
    lines = []
    for key in keys:
        end = _one_count(list(found[key].values())) if by_line else ""
        cells = [_cell(found[key].get(c), not (end or count), notes) for c, count in zip(columns, counts, strict=True)]
        texts = tuple(str(v) for f, v in zip(fields, key, strict=True) if f in heads)
        lines.append((texts, [*cells, *([Cell(end.removeprefix("n "))] if by_line else [])]))
    if by_line:
        columns, counts = [*columns, "n"], [*counts, ""]
    return Sheet(heads, columns, lines, counts, list(notes), _below(rows))


def _one_count(rows: Sequence[Row]) -> str:
    """n and undefined of rows that agree in both, else nothing."""
    some = [row for row in rows if row["n"]]
    return counted(some) if len({(row["n"], row["undefined"]) for row in some}) == 1 else ""


def _cell(row: Row | None, with_n: bool, notes: dict[str, int]) -> Cell:
    if row is None:
        return Cell()
    # What is said of a reference line (random: expected value) stands below once, not at every
    # cell.
    marks = () if row["value"] is not None and row["stage"] in (*BEFORE, *AFTER) else _marks(row["note"], notes)
    if row["value"] is None:
        return Cell("n/a", marks=marks, row=row)
    n = f"n {row['n']:,}" if with_n and row["n"] else ""
    return Cell(number(row["value"]), between(row), n, marks, row, True)


def _marks(note: str, notes: dict[str, int]) -> tuple[int, ...]:
    return (notes.setdefault(note, len(notes) + 1),) if note else ()


def _below(rows: Sequence[Row]) -> list[str]:
    """Definition, unit, n, denominator of every measure; then what reference lines are, and what
    counts as truth.
    """
    lines = []
    for measure in in_order(rows, "measure"):
        mine = [row for row in rows if row["measure"] == measure]
        denominators = dict.fromkeys(_of_the_stage(row) for row in mine if row["denominator"])
        unit = next((row["unit"] for row in mine if row["unit"]), "")
        parts = [
            define(measure),
            f"unit: {unit}" if unit else "",
            counted(mine),
            f"denominator: {' | '.join(denominators)}" if denominators else "",
        ]
        lines.append(f"{measure}: " + "; ".join(filter(None, parts)) + ".")
    said: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["stage"] in (*BEFORE, *AFTER) and row["value"] is not None and row["note"]:
            said.setdefault(row["stage"], {}).update(dict.fromkeys(row["note"].split("; ")))
    lines += [f"{stage}: {'; '.join(said[stage])}." for stage in (*BEFORE, *AFTER) if stage in said]
    truth = dict.fromkeys(row["truth"] for row in rows)
    seeds = max(row["seeds"] for row in rows)
    more = f" Values are means over {seeds} seeds; intervals resample seeds and users." if seeds > 1 else ""
    return [*lines, f"Truth: {' | '.join(truth)}ed items. {INTERVALS}{more}".replace("purchaseed", "purchased")]


def _of_the_stage(row: Row) -> str:
    """A denominator that names its stage or slice, so that it reads the same for every one of them.
    """
    text = re.sub(rf"\b{re.escape(row['stage'])} scored", "the stage scored", row["denominator"])
    return text.replace(f" [{row['slice']}]", " in the slice")


def _comparison(rows: Sequence[Row]) -> Sheet:
    """Lines are (measure, slice, stage); columns A, B, B - A, which is better, the smallest
    detectable effect, n.
    """
    a, b = rows[0]["label_a"], rows[0]["label_b"]
    heads = ["measure", *(["slice"] if len({row["slice"] for row in rows}) > 1 else []), "stage"]
    notes: dict[str, int] = {}
    lines = []
    for row in rows:
        marks = _marks(row["note"], notes) if row["difference"] is None or row["stage"] not in AFTER else ()
        better = {"A": a, "B": b}.get(row["better"], "")
        verdict = better + (" (Holm)" if better and row["holm"] else "") or (
            "" if row["difference"] is None or Measure.parse(row["measure"]).better == "neither" else "not told apart"
        )
        effect = "" if row["smallest_effect"] is None else number(row["smallest_effect"])
        change = Cell(
            number(row["difference"], True, 4), between(row, True, 4), "", marks, row, strong=row["difference"] is not None
        )
        texts = [number(row["value_a"]), number(row["value_b"]), change, verdict, effect, f"{row['n']:,}"]
        lines.append((tuple(str(row[h]) for h in heads), [t if isinstance(t, Cell) else Cell(t, row=row) for t in texts]))
    seeds = max(row["seeds"] for row in rows)
    below = [f"{m}: {define(m)}." for m in dict.fromkeys(row["measure"] for row in rows)]
    below += [
        f"A is {a}, B is {b}, paired on the same {' or '.join(dict.fromkeys(row['unit'] for row in rows))}s. {INTERVALS}",
        "Better: the interval of B − A leaves out 0"
        + (f" and its sign is the same in all {seeds} seeds" if seeds > 1 else "")
        + "; "
        "(Holm): it still does when the whole table is to hold at once. Detectable: the smallest effect found with 80% power.",
    ]
    return Sheet(heads, [f"A: {a}", f"B: {b}", "B − A", "better", "detectable", "n"], lines, [""] * 6, list(notes), below)


# -- formats ---------------------------------------------------------------------------------------


def footnotes(table: Sheet) -> list[str]:
    """What stands below a table: numbered notes first, then definitions."""
    return [*(f"{i}. {note}" for i, note in enumerate(table.notes, 1)), *table.below]


def superscript(marks: Sequence[int]) -> str:
    return "⁻".join(str(m).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) for m in marks)


def to_terminal(rows: Sequence[Row], width: int = 100, across: str = "measure") -> list[Table]:
    """Rich tables, as many as it takes for the columns to fit into `width` characters."""
    full = sheet(rows, across)
    lead = sum(max(len(h), *(len(texts[i]) for texts, _ in full.lines)) + 3 for i, h in enumerate(full.heads)) + 1
    chunks: list[list[int]] = [[]]
    room = 0
    for c, name in enumerate(full.columns):
        texts = [
            t for _, cells in full.lines for t in (cells[c].text + superscript(cells[c].marks), cells[c].interval, cells[c].n)
        ]
        size = max(len(t) for t in (name, *_foot(full.counts[c]).split("\n"), *texts)) + 3
        if chunks[-1] and size > room:
            chunks.append([])
        room = (room if chunks[-1] else width - lead) - size
        chunks[-1].append(c)
    return [_rich(full, chunk) for chunk in chunks]


def _foot(count: str) -> str:
    """ "n 677", and below it "(123 undefined)"; the share stands in the definition."""
    return count.split(", ")[0].replace(" (", "\n(") + (")" if ", " in count else "") if "(" in count else count


def _rich(full: Sheet, chunk: list[int]) -> Table:
    table = Table(show_footer=any(full.counts[c] for c in chunk), header_style="bold", footer_style="dim", border_style="dim")
    for head in full.heads:
        table.add_column(head, no_wrap=True)
    for c in chunk:
        table.add_column(full.columns[c], footer=_foot(full.counts[c]), justify="right", no_wrap=True)
    before: tuple[str, ...] = ()
    for i, (texts, all_cells) in enumerate(full.lines):
        cells = [all_cells[c] for c in chunk]
        if not any(cell.text for cell in cells):
            continue
        if before and len(texts) > 1 and texts[:-1] != before[:-1]:
            table.add_section()
        style = "dim" if full.is_reference(i) else ""
        shown = []
        for cell in cells:
            text = Text(cell.text + superscript(cell.marks), style="bold" if cell.strong and not style else "")
            for more in (cell.interval, cell.n):
                if more:
                    text.append("\n" + more, style="not bold dim")
            shown.append(text)
        table.add_row(*("" if s else t for s, t in zip(repeated(texts, before), texts, strict=True)), *shown, style=style)
        before = texts
    return table


def repeated(texts: tuple[str, ...], before: tuple[str, ...]) -> list[bool]:
    """Which leading texts say what the line before said already."""
    return [j < len(texts) - 1 and before[: j + 1] == texts[: j + 1] for j in range(len(texts))]


def print_table(rows: Sequence[Row], console: Console, across: str = "measure") -> None:
    """Print measure rows (or comparison rows) with their footnotes."""
    for table in to_terminal(rows, console.width, across):
        console.print(table)
    for line in footnotes(sheet(rows, across)):
        console.print(line, style="dim")


def print_comparison(rows: Sequence[Row], console: Console) -> None:
    """Print what `compare` said, with its footnotes."""
    print_table(rows, console)


def to_json(rows: Sequence[Row]) -> str:
    """The rows themselves, unrounded."""
    return json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n"


FIELDS = ("", " low", " high", " n", " undefined", " note")


def to_csv(rows: Sequence[Row], across: str = "measure") -> str:
    """The table with unrounded numbers: value, low, high, n, undefined and note of every cell in
    columns of their own.

    Comparison rows come as they are, one a line.
    """
    table = sheet(rows, across)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if "difference" in rows[0]:
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
        return out.getvalue()
    columns = table.columns[:-1] if across == "label" else table.columns
    writer.writerow([*table.heads, *(f"{c}{f}" for c in columns for f in FIELDS)])
    for texts, cells in table.lines:
        values: list[Any] = []
        for cell in cells[: len(columns)]:
            row = cell.row or {}
            values += [row.get(f) for f in ("value", "low", "high", "n", "undefined", "note")]
        writer.writerow([*texts, *("" if v is None else v for v in values)])
    return out.getvalue()


def to_markdown(rows: Sequence[Row], across: str = "measure") -> str:
    """A GitHub table and its footnotes as a list."""
    table = sheet(rows, across)
    lines = [[*table.heads, *table.columns], ["---"] * len(table.heads) + ["---:"] * len(table.columns)]
    lines[0] = [markdown_escape(t) for t in lines[0]]
    for texts, cells in table.lines:
        shown = [" ".join(filter(None, (c.text + superscript(c.marks), markdown_escape(c.interval), c.n))) for c in cells]
        lines.append([*map(markdown_escape, texts), *shown])
    if any(table.counts):
        lines.append([*("*n*" if i == 0 else "" for i in range(len(table.heads))), *(c.removeprefix("n ") for c in table.counts)])
    notes = [f"{superscript([i])} {markdown_escape(note)}" for i, note in enumerate(table.notes, 1)]
    return piped(lines) + "\n\n" + "".join(f"- {text}\n" for text in [*notes, *map(markdown_escape, table.below)])


def piped(rows: Iterable[Sequence[str]]) -> str:
    """Rows of Markdown cells, the heads and the rule among them."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def markdown_escape(text: str) -> str:
    """Text that Markdown prints as it stands."""
    return re.sub(r"([\\*_`<>|\[\]])", r"\\\1", text)


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': "''", "−": "$-$", "–": "--", "€": r"\texteuro{}",
}  # fmt: skip


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(LATEX.get(c, c) for c in text)


def to_latex(rows: Sequence[Row], across: str = "measure") -> str:
    """A `table` environment (needs the package booktabs) with the footnotes below it."""
    table = sheet(rows, across)

    def shown(cell: Cell) -> str:
        text = latex_escape(cell.text) + (f"$^{{{','.join(map(str, cell.marks))}}}$" if cell.marks else "")
        more = latex_escape(" ".join(filter(None, (cell.interval, cell.n))))
        return text + (rf" {{\scriptsize {more}}}" if more else "")

    lines = [[*map(latex_escape, texts), *map(shown, cells)] for texts, cells in table.lines]
    foot = None
    if any(table.counts):
        blank = [""] * (len(table.heads) - 1)
        foot = ["$n$", *blank, *(rf"{{\scriptsize {latex_escape(c.removeprefix('n '))}}}" for c in table.counts)]
    notes = [f"$^{{{i}}}$ {latex_escape(note)}" for i, note in enumerate(table.notes, 1)]
    heads = [latex_escape(t) for t in [*table.heads, *table.columns]]
    align = "l" * len(table.heads) + "r" * len(table.columns)
    return booktabs(align, heads, lines, [*notes, *map(latex_escape, table.below)], foot=foot)


def booktabs(
    align: str, heads: Sequence[str], lines: Iterable[Sequence[str]], notes: Iterable[str], caption: str = "", foot: Sequence[str] | None = None
) -> str:
    """A `table` environment of cells that are LaTeX already, with notes below it."""

    def row(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\"

    out = ["% needs \\usepackage{booktabs}", r"\begin{table}", *([rf"\caption{{{caption}}}"] if caption else []), r"\centering\small"]
    out += [rf"\begin{{tabular}}{{{align}}}", r"\toprule", row(heads), r"\midrule", *map(row, lines)]
    out += [r"\midrule", row(foot)] if foot else []
    out += [r"\bottomrule", r"\end{tabular}", r"\par\medskip\raggedright\footnotesize"]
    return "\n".join([*out, *(f"{note}\\par" for note in notes), r"\end{table}"]) + "\n"


def measures(rows: Sequence[Row], across: str = "measure", fold: bool = True) -> Measures:
    """The table as a block of a page: numbered notes below it, and the definitions, open unless
    `fold`.
    """
    made = sheet(rows, across)
    # there is room for an interval beside its value
    few = "difference" in rows[0] or (across == "label" and len(made.columns) <= 4)
    return Measures(made, "measures by-line" if few else "measures", fold)


def to_html(rows: Sequence[Row], across: str = "measure", fold: bool = True) -> str:
    """A `<table>`, numbered notes, and the definitions in a `<details>` (open unless `fold`)."""
    return fragment(measures(rows, across, fold))
