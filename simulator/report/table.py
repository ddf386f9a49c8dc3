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

from rich.table import Table as RichTable
from rich.text import Text

from ...terminal import Console, visible
from .page import Block, Words, fragment

WIDEST = 34  # characters; longer leading texts are broken on a terminal
UNBROKEN = 10  # characters; longer heads may be broken on a terminal


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
        tips: explanations of heads, by head, shown as tooltips.
        quiet: numbers of the reference rows.
        look: "prose" if cells are sentences that may break; "stacked" if each row becomes a card
            on a narrow screen; "measures" for tables of measures, with "by-line" if there is room
            for an interval next to its value.
        boxed: whether to draw lines around the table on a terminal.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Words | Cell | Bar]]
    text_columns: int = 1
    title: str = ""
    counts: Sequence[str] = ()
    notes: Sequence[str] = ()
    below: Sequence[str] = ()
    tips: Mapping[str, str] = field(default_factory=dict)
    quiet: Collection[int] = ()
    look: str = ""
    boxed: bool = True

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


def print_table(table: Table, console: Console) -> None:
    """Print a table, in several parts if it is too wide, then its notes and definitions."""
    for part in to_terminal(table, console.width):
        console.print(part)
    for i, note in enumerate(table.notes, 1):
        console.print(f"{i}. {note}", style="dim")
    for line in table.below:
        console.print(line, style="dim")


def to_terminal(table: Table, width: int = 100) -> list[RichTable]:
    """A table for the terminal, split into as many as are needed so that no number is broken within
    `width` characters. Tables of prose break their texts instead.
    """
    columns = list(range(len(table.heads)))
    if table.look == "prose":
        return [_printed(table, columns, [None] * len(columns))]
    gap = 3 if table.boxed else 1  # characters between columns
    sizes = [_size(table, column, whole=True) for column in columns]
    if 1 + sum(size + gap for size in sizes) > width:
        sizes = [_size(table, column, whole=False) for column in columns]
    parts = _parts(sizes, table.text_columns, width, gap)
    return [_printed(table, part, [sizes[column] for column in part]) for part in parts]


def _lines(cell: Words | Cell | Bar) -> list[str]:
    """The lines of a cell: its text, then small and more."""
    cell = cell_of(cell)
    parts = [cell.text + superscript(cell.notes), cell.small, cell.more]
    last = 1 if cell.small else 0
    parts[last] += cell.mark
    return [visible(part) for part in parts if part]


def _size(table: Table, column: int, whole: bool) -> int:
    """The characters that a column needs so that no number is broken.

    Args:
        whole: whether long heads must not be broken at blanks.
    """
    head = table.heads[column]
    found = [head] if whole or len(head) <= UNBROKEN else head.split()
    for row in table.rows:
        for line in _lines(row[column]):
            found += line.split("\n")
    if table.footed:
        found += table.feet[column].split("\n")
    size = max(map(len, found), default=0)
    return min(size, WIDEST) if column < table.text_columns else size


def _parts(sizes: Sequence[int], leading: int, width: int, gap: int) -> list[list[int]]:
    """The columns of each part, so that parts fit `width`; every part has the leading columns."""
    lead = list(range(leading))
    space = width - 1 - sum(sizes[column] + gap for column in lead)
    parts, room = [lead.copy()], space
    for column in range(leading, len(sizes)):
        if sizes[column] + gap > room and len(parts[-1]) > leading:
            parts.append(lead.copy())
            room = space
        parts[-1].append(column)
        room -= sizes[column] + gap
    return parts


def _printed(table: Table, part: Sequence[int], sizes: Sequence[int | None]) -> RichTable:
    title = table.title if table.text_columns in part else ""  # once, above the first part
    made = RichTable(
        title=title or None, title_justify="left", show_footer=table.footed, border_style="dim"
    )
    if not table.boxed:
        made.box, made.pad_edge, made.padding = None, False, (0, 1, 0, 0)
    side: Literal["left", "right"] = "left" if table.look == "prose" else "right"
    for column, size in zip(part, sizes, strict=True):
        foot = Text(table.feet[column] if table.footed else "", style="dim")
        if column < table.text_columns:
            made.add_column(table.heads[column], foot, max_width=size, overflow="fold")
        else:
            made.add_column(table.heads[column], foot, justify=side, width=size, overflow="fold")
    numbers = [column for column in part if column >= table.text_columns]
    before: tuple[str, ...] = ()
    for i, row in enumerate(table.rows):
        if len(part) < len(table.heads) and not any(_lines(row[column]) for column in numbers):
            continue
        texts = table.texts(i)
        if before and texts[:-1] != before[:-1]:
            made.add_section()
        style = "dim" if i in table.quiet else ""
        shown = [_drawn(row[column], quiet=bool(style)) for column in numbers]
        made.add_row(*unsaid(texts, before), *shown, style=style)
        before = texts
    return made


def _drawn(cell: Words | Cell | Bar, quiet: bool) -> Text:
    cell = cell_of(cell)
    first, *rest = _lines(cell) or [""]
    text = Text(first, style=cell.style or ("bold" if cell.strong and not quiet else ""))
    for line in rest:
        text.append("\n" + line, style="not bold dim")
    return text


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
