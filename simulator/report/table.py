"""Tables, rendered for the terminal and as Markdown, LaTeX and HTML.

All tables of the project are made here. The first `text_columns` columns are texts, the others are
numbers, aligned right. Tables of measures: `measure_table.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.cells import cell_len
from rich.table import Table as RichTable
from rich.text import Text

from ...terminal import Console, visible
from .page import Block, Words, fragment

WIDEST = 34  # characters; longer leading texts are broken on a terminal
UNBROKEN = 10  # characters; longer heads may be broken on a terminal
GAP = 2  # characters between columns on a terminal


# -- numbers ---------------------------------------------------------------------------------------


def places(value: float | None) -> int:
    """Decimals of a value and its interval: three, or more for two significant digits."""
    size = abs(value or 0.0)
    return 3 if size >= 0.01 or size < 1e-9 else min(-math.floor(math.log10(size)) + 1, 9)


def number(value: float | None, signed: bool = False, decimals: int | None = None) -> str:
    """A value as text in tables."""
    if value is None:
        return "n/a"
    text = f"{value:,.{places(value) if decimals is None else decimals}f}"
    return ("+" if signed and value > 0 else "") + text.replace("-", "−")


# -- the model -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell(Block):
    """The content of a table cell.

    Args:
        text: the value.
        small: printed small after it, such as an interval.
        mark: a mark of significance.
        more: printed last.
        notes: numbers of its footnotes.
        strong: whether to emphasise the text.
        style: a style of rich, for the terminal; "dim" also applies to HTML.
    """

    text: Words = ""
    small: Words = ""
    mark: str = ""
    more: str = ""
    notes: tuple[int, ...] = ()
    strong: bool = False
    style: str = ""

    @property
    def flat(self) -> str:
        """The whole content in one line, without footnotes."""
        known = " ".join(filter(None, (self.text, self.small))) + self.mark
        return " ".join(filter(None, (known, self.more)))


@dataclass(frozen=True)
class Bar(Block):
    """A table cell that draws a share of 1 as a bar."""

    share: float
    colour: str

    @property
    def text(self) -> str:
        return f"{self.share:.0%}"


@dataclass(frozen=True)
class Table(Block):
    """A table to be rendered.

    Args:
        heads: the heads of the columns.
        rows: one cell per column; a plain text is a cell, too.
        text_columns: number of leading columns that are texts.
        title: printed above the table, but not on pages, which have headings.
        counts: the foot of each column of numbers, such as "n 677 (123 undefined, 15.4%)", or "".
        notes: footnotes, numbered from 1.
        below: definitions and references.
        brief: what the terminal prints of them unless it is asked for all.
        short: heads as the terminal prints them, by head.
        tips: explanations of heads, by head, shown as tooltips.
        quiet: numbers of the reference rows.
        look: "prose" if cells are sentences that may break; "stacked" if each row becomes a card
            on a narrow screen; "measures" for tables of measures, with "by-line" if there is room
            for an interval next to its value.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Words | Cell | Bar]]
    text_columns: int = 1
    title: str = ""
    counts: Sequence[str] = ()
    notes: Sequence[str] = ()
    below: Sequence[str] = ()
    brief: str = ""
    short: Mapping[str, str] = field(default_factory=dict)
    tips: Mapping[str, str] = field(default_factory=dict)
    quiet: Collection[int] = ()
    look: str = ""

    @property
    def footed(self) -> bool:
        return any(self.counts)

    @property
    def feet(self) -> list[str]:
        """The printed counts of all columns: "n 677", then "(123 undefined)" without the share."""
        short = [re.sub(r", [^,]*%\)$", ")", count).replace(" (", "\n(") for count in self.counts]
        return [*[""] * self.text_columns, *short]

    def texts(self, row: int) -> tuple[str, ...]:
        """The leading texts of a row."""
        return tuple(cell_of(cell).flat for cell in self.rows[row][: self.text_columns])

    def leading(self, row: int) -> list[str]:
        """The leading texts of a row, without those that repeat the row before."""
        return unsaid(self.texts(row), self.texts(row - 1) if row else ())

    def row_look(self, row: int) -> str:
        """CSS classes of a row: "reference" if it is quiet, "group" if it begins a new group."""
        quiet = ["reference"] if row in self.quiet else []
        begins = row > 0 and self.text_columns > 1 and self.texts(row - 1)[0] != self.texts(row)[0]
        return " ".join(quiet + ["group"] * begins)


def cell_of(cell: Words | Cell | Bar) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell.text if isinstance(cell, Bar) else cell)


def unsaid(texts: Sequence[str], before: Sequence[str]) -> list[str]:
    """Leading texts, "" where they repeat those before from the start; the last is always kept."""
    same = [tuple(before[: i + 1]) == tuple(texts[: i + 1]) for i in range(len(texts) - 1)] + [
        False
    ]
    return ["" if said else text for said, text in zip(same, texts, strict=True)]


def superscript(notes: Iterable[int]) -> str:
    digits = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "⁻".join(str(note).translate(digits) for note in notes)


# -- the terminal ----------------------------------------------------------------------------------


def print_table(table: Table, console: Console, verbose: bool | None = None) -> None:
    """Print a table, in several parts if it is too wide, then its notes.

    Args:
        verbose: whether to print all that stands below the table, such as definitions; else the
            `brief` of it, which ends with the option -v. None: where there is no such option.
    """
    if table.title:
        console.print(table.title, style="bold")
    for part in to_terminal(table, console.width):
        console.print(part)
    for i, note in enumerate(table.notes, 1):
        console.print(f"{i}. {note}", style="dim")
    below = table.below
    if table.brief and not verbose:
        below = [table.brief + (" Definitions: -v." if verbose is False else "")]
    for line in below:
        console.print(line, style="dim")


def to_terminal(table: Table, width: int = 80) -> list[RichTable | Text]:
    """A table for the terminal: one line a row, no number broken within `width` characters.

    One that is too wide has its leading texts, but the last, as headings between the rows; one that
    still is becomes several. Tables of prose break their texts instead.
    """
    if table.look == "prose":
        return [_prose(table, width)]
    heads = [table.short.get(head, head) for head in table.heads]
    cells = _in_line(table)
    sizes = [_size(heads[c], cells, c, table, whole=True) for c in range(len(heads))]
    if table.text_columns == len(heads) and _total(sizes) > width:
        return [_prose(table, width)]  # without a column of numbers there is nothing to group
    grouped = table.text_columns > 1 and _total(sizes) > width
    first = table.text_columns - 1 if grouped else 0
    if _total(sizes[first:]) > width:
        sizes = [_size(heads[c], cells, c, table, whole=False) for c in range(len(heads))]
    made: list[RichTable | Text] = []
    for part in _parts(sizes, range(first, table.text_columns), width):
        if made:
            made.append(Text())
        made += _printed(table, heads, cells, part, [sizes[column] for column in part], grouped)
    return made


def _in_line(table: Table) -> list[list[Text]]:
    """The cells of all rows and of the foot as texts of one line; in a column of numbers, values,
    intervals and what else belongs to them stand below each other.
    """
    rows = [list(map(cell_of, row)) for row in table.rows]
    columns = []
    for column in range(len(table.heads)):
        cells = [row[column] for row in rows]
        if column < table.text_columns:
            columns.append([Text(in_pieces(visible(cell.flat))) for cell in cells])
        else:
            columns.append(_aligned(cells, "measures" in table.look, table.quiet))
    made = [list(row) for row in zip(*columns, strict=True)]
    return [*made, *_feet(table)]


def _feet(table: Table) -> list[list[Text]]:
    """The foot: a line with the number of units of each column, and one with those undefined."""
    if not table.footed:
        return []
    counts = [[*re.findall(r"[\d,]*\d", foot), "", ""] for foot in table.feet]
    made = []
    for i, name in enumerate(("n", "undefined")):
        line = [count[i] for count in counts]
        if any(line):
            line[table.text_columns - 1] = name
            made.append([Text(text, style="dim") for text in line])
    return made


def _aligned(cells: Sequence[Cell], compact: bool, quiet: Collection[int]) -> list[Text]:
    """The cells of a column of numbers. compact: without the 0 before a decimal point, and without
    an interval that is the value itself.
    """
    lines = []
    for cell in cells:
        parts = [visible(part) for part in (cell.text, cell.small, cell.mark, cell.more)]
        if compact:
            parts = list(map(short_number, parts))
            if parts[1] == f"[{parts[0]}, {parts[0]}]":
                parts[1] = ""
        value, small, mark, more = parts
        value += superscript(cell.notes) + ("" if small else mark)
        small = f" {small}{mark}" if small else ""
        lines.append([value, small, f" {more}" if more else ""])
    whole = [line for line in lines if any(line[1:])]
    sizes = [max((cell_len(line[k]) for line in whole), default=0) for k in range(3)]
    made = []
    for i, (cell, line) in enumerate(zip(cells, lines, strict=True)):
        first, *rest = line
        text = Text(style=cell.style or ("dim" if i in quiet else ""), justify="left")
        text.append(" " * (sizes[0] - cell_len(first)) + first, "bold" if cell.strong else "")
        for part, size in zip(rest, sizes[1:], strict=True):
            text.append(part + " " * (size - cell_len(part)), "not bold dim")
        made.append(text)
    return made


def in_pieces(text: str) -> str:
    """A text of more than `WIDEST` characters in several lines, broken after blanks and commas."""
    lines = [""]
    for piece in re.findall(r"[^ ,]*[ ,]*", text):
        if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > WIDEST:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


def short_number(text: str) -> str:
    """A text whose numbers below 1 have no 0 before the decimal point."""
    return re.sub(r"(?<![\d.,])0(?=\.\d+(?![\d%]))", "", text)


def _size(
    head: str, cells: Sequence[Sequence[Text]], column: int, table: Table, whole: bool
) -> int:
    """The characters that a column needs so that no number is broken.

    Args:
        whole: whether long heads must not be broken at blanks.
    """
    found = [head] if whole or len(head) <= UNBROKEN else head.split()
    if column < table.text_columns:
        lines = [line for row in cells for line in row[column].plain.split("\n")]
        return min(max(map(cell_len, [*found, *lines])), WIDEST)
    return max(map(cell_len, [*found, *(row[column].plain for row in cells)]))


def _total(sizes: Sequence[int]) -> int:
    return sum(sizes) + GAP * (len(sizes) - 1)


def _parts(sizes: Sequence[int], leading: range, width: int) -> list[list[int]]:
    """The columns of each part, so that parts fit `width`; every part has the leading columns."""
    parts = [[*leading]]
    for column in range(leading.stop, len(sizes)):
        longer = [*parts[-1], column]
        if len(parts[-1]) > len(leading) and _total([sizes[c] for c in longer]) > width:
            parts.append([*leading, column])
        else:
            parts[-1] = longer
    return parts


def _printed(
    table: Table,
    heads: Sequence[str],
    cells: Sequence[Sequence[Text]],
    part: Sequence[int],
    sizes: Sequence[int],
    grouped: bool,
) -> list[RichTable | Text]:
    """One part of a table; with headings between its rows, one table for each heading."""
    numbers = [column for column in part if column >= table.text_columns]
    made: list[RichTable | Text] = []

    def begin() -> RichTable:
        """A table with heads if it is the first."""
        now = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=not made)
        for column, size in zip(part, sizes, strict=True):
            side: Literal["left", "right"] = "right" if column in numbers else "left"
            now.add_column(heads[column], justify=side, width=size, overflow="fold")
        made.append(now)
        return now

    now = begin()
    before: tuple[str, ...] = ()
    for i, row in enumerate(cells):
        if len(part) < len(heads) and not any(row[column].plain.strip() for column in numbers):
            continue  # a row that is empty in this part
        texts = tuple(text.plain for text in row[: table.text_columns])
        if grouped and i < len(table.rows) and texts[:-1] != before[:-1]:
            made.append(Text(", ".join(filter(None, texts[:-1])), style="italic"))
            now = begin()
        said = texts[-1:] if grouped else unsaid(texts, before)
        style = "dim" if i in table.quiet or i >= len(table.rows) else ""
        shown = []
        for column, size in zip(part, sizes, strict=True):
            if column in numbers:
                shown.append(row[column].copy())
                shown[-1].pad_left(size - row[column].cell_len)
        now.add_row(*said, *shown, style=style)
        before = texts
    return made


def _prose(table: Table, width: int) -> RichTable:
    """A table whose texts break between words. The widest columns give way to the others, down to
    their longest word.
    """
    rows = [[cell_of(cell) for cell in row] for row in table.rows]
    sizes, least = [], []
    for column, head in enumerate(table.heads):
        texts = [head, *(visible(row[column].flat) for row in rows)]
        sizes.append(max(cell_len(line) for text in texts for line in text.split("\n")))
        least.append(max((cell_len(word) for text in texts for word in text.split()), default=0))
    while _total(sizes) > width:
        able = [column for column in range(len(sizes)) if sizes[column] > least[column]]
        widest = max(able or range(len(sizes)), key=sizes.__getitem__)
        if sizes[widest] <= 1:
            break
        sizes[widest] -= 1
    made = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for head, size in zip(table.heads, sizes, strict=True):
        made.add_column(head, width=size, overflow="fold")
    for i, row in enumerate(rows):
        shown = [Text(visible(cell.flat), style=cell.style) for cell in row]
        made.add_row(*shown, style="dim" if i in table.quiet else "")
    return made


# -- Markdown --------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """A GitHub table under its title, with its notes and definitions as a list."""
    side = "---" if table.look == "prose" else "---:"
    rule = ["---"] * table.text_columns + [side] * (len(table.heads) - table.text_columns)
    lines = [[markdown_escape(head) for head in table.heads], rule]
    for row in table.rows:
        lines.append([_marked(cell) for cell in row])
    if table.footed:
        lines.append(
            ["*n*", *[""] * (table.text_columns - 1), *(c.removeprefix("n ") for c in table.counts)]
        )
    out = [f"**{table.title}**\n"] if table.title else []
    out += [f"| {' | '.join(line)} |" for line in lines]
    below = [f"{superscript([i])} {markdown_escape(note)}" for i, note in enumerate(table.notes, 1)]
    below += map(markdown_escape, table.below)
    return "\n".join([*out, *([""] if below else []), *(f"- {line}" for line in below)]) + "\n"


def _marked(cell: Words | Cell | Bar) -> str:
    cell = cell_of(cell)
    text = markdown_escape(cell.text) + superscript(cell.notes)
    small = markdown_escape(cell.small)
    known = " ".join(filter(None, (text, small))) + markdown_escape(cell.mark)
    return " ".join(filter(None, (known, markdown_escape(cell.more))))


def markdown_escape(text: str) -> str:
    """Text escaped for Markdown, in one line."""
    return re.sub(r"([\\*_`<>|\[\]])", r"\\\1", text).replace("\n", " ")


# -- LaTeX -----------------------------------------------------------------------------------------

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "−": "$-$",
    "–": "--",
    "€": r"\texteuro{}",
}


def latex_escape(text: str) -> str:
    """Text escaped for LaTeX."""
    return "".join(LATEX.get(c, c) for c in text)


def to_latex(table: Table) -> str:
    """A `table` environment with the title as caption and footnotes below; needs booktabs."""
    wide = [r"p{0.7\textwidth}" if table.look == "prose" else "r"] * (
        len(table.heads) - table.text_columns
    )
    out = ["% needs \\usepackage{booktabs}", r"\begin{table}"]
    out += [rf"\caption{{{latex_escape(table.title)}}}"] if table.title else []
    out += [r"\centering\small", rf"\begin{{tabular}}{{{'l' * table.text_columns}{''.join(wide)}}}"]
    out += [r"\toprule", _latex_row(map(latex_escape, table.heads)), r"\midrule"]
    out += [_latex_row(map(_set, row)) for row in table.rows]
    if table.footed:
        feet = [rf"{{\scriptsize {latex_escape(c.removeprefix('n '))}}}" for c in table.counts]
        out += [r"\midrule", _latex_row(["$n$", *[""] * (table.text_columns - 1), *feet])]
    out += [r"\bottomrule", r"\end{tabular}", r"\par\medskip\raggedright\footnotesize"]
    out += [rf"$^{{{i}}}$ {latex_escape(note)}\par" for i, note in enumerate(table.notes, 1)]
    out += [rf"{latex_escape(line)}\par" for line in table.below]
    return "\n".join([*out, r"\end{table}"]) + "\n"


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _set(cell: Words | Cell | Bar) -> str:
    cell = cell_of(cell)
    text = latex_escape(cell.text)
    if cell.notes:
        text += f"$^{{{','.join(map(str, cell.notes))}}}$"
    more = latex_escape(" ".join(filter(None, (cell.small, cell.more))))
    parts = [text, rf"{{\scriptsize {more}}}" if more else ""]
    return " ".join(filter(None, parts)) + latex_escape(cell.mark)


# -- HTML ------------------------------------------------------------------------------------------


def to_html(table: Table) -> str:
    """A `<table>`, numbered notes, and the definitions in a `<details>`."""
    return fragment(table)
