"""Tables of measure rows and of comparison rows (`simulator/measure/compare.py`), and CSV of them.

One pivot serves all formats: stages as lines and measures as columns (or, `across="label"`, Runs as
columns). A cell is value and 95% interval; n, undefined units, denominators, definitions and the
reasons of every n/a stand below the table.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import KarmafunnelError
from ..measure.measures.measure import Measure
from .table import Cell, Table, number, places

Row = dict[str, Any]
# Lines of measure rows that are no stage: what comes before the stages, and what they are to be
# held against.
BEFORE, AFTER = ("eligible",), ("end to end", "ceiling", "logged order", "random", "base rate")
INTERVALS = "Intervals: 95%, bootstrap over users."


# -- words and numbers -----------------------------------------------------------------------------


def between(row: Row, signed: bool = False, decimals: int | None = None) -> str:
    """The interval of a row in the decimals of its value, or nothing where there is none."""
    if row["low"] is None or row["high"] is None:
        return ""
    decimals = places(row["value"] or row["high"]) if decimals is None else decimals
    return f"[{number(row['low'], signed, decimals)}, {number(row['high'], signed, decimals)}]"


def unchanged(row: Row) -> bool:
    """Whether no resample has any difference: the stages so far are the same in both rows."""
    return row.get("difference") == row["low"] == row["high"] == 0


def valued(row: Row | None, signed: bool = False, decimals: int | None = None) -> Cell:
    """A value (or, `signed`, a difference) with its interval; ** stands after Holm's correction, *
    before it.
    """
    value = (row or {}).get("difference" if signed else "value")
    if not row or value is None:
        return Cell("n/a", style="dim")
    if signed and unchanged(row):
        return Cell("=")
    decimals = places(value) if decimals is None else decimals
    text, small = number(value, signed, decimals), between(row, signed, decimals)
    return Cell(text, small, significance(row) if signed else "", strong=True)


def significance(row: Row) -> str:
    """The mark of a difference that leaves out 0: ** where it also does after Holm's correction."""
    return "" if not row.get("better") else "**" if row.get("holm") else "*"


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
    share = (
        f"{lost[0][1]:.1%}"
        if len(lost) == 1
        else f"{min(s for _, s in lost):.1%} to {max(s for _, s in lost):.1%}"
    )
    return f"{text} ({many} undefined, {share})"


# -- the pivot -------------------------------------------------------------------------------------


def measure_table(rows: Sequence[Row], across: str = "measure") -> Table:
    """The table of measure or comparison rows; `across` ("measure" or "label") is the field whose
    values are columns.

    Raises KarmafunnelError for no rows, and for two rows that fall into one cell.
    """
    if rows and "difference" in rows[0]:
        return _comparison(rows)
    pivot = Pivot.of(rows, across)
    # n stands once where it is one: below a column of a measure, at the end of a line that several
    # Runs share; else in the cells.
    by_line = across == "label"
    counts = []
    for column in pivot.columns:
        counts.append("" if by_line else _one_count([row for row in rows if row[across] == column]))
    notes: dict[str, int] = {}
    lines: list[list[str | Cell]] = []
    for texts, found in pivot.lines:
        end = _one_count([row for row in found if row]) if by_line else ""
        line: list[str | Cell] = [*texts]
        for row, count in zip(found, counts, strict=True):
            line.append(_cell(row, not (end or count), notes))
        lines.append([*line, end.removeprefix("n ")] if by_line else line)
    heads = [*pivot.heads, *pivot.columns, *(["n"] if by_line else [])]
    return Table(
        heads,
        lines,
        len(pivot.heads),
        counts=[*counts, *([""] if by_line else [])],
        notes=list(notes),
        below=_below(rows),
        tips={} if by_line else {name: define(name) for name in pivot.columns},
        quiet=_quiet(pivot.heads, lines),
        look=_look(by_line and len(pivot.columns) < 4),
    )


def _look(roomy: bool) -> str:
    return "measures by-line" if roomy else "measures"


def _quiet(heads: Sequence[str], lines: Sequence[Sequence[str | Cell]]) -> set[int]:
    """The lines that are no stage but something to hold stages against."""
    if "stage" not in heads:
        return set()
    at = heads.index("stage")
    return {i for i, line in enumerate(lines) if line[at] in (*BEFORE, *AFTER)}


def in_order(rows: Sequence[Row], name: str) -> list[Any]:
    """The distinct values of a field: stages as the funnel has them with references after, anything
    else as it comes.
    """
    found = list(dict.fromkeys(row[name] for row in rows))
    if name != "stage":
        return found
    stages = [s for s in found if s not in (*BEFORE, *AFTER)]
    return [*(s for s in BEFORE if s in found), *stages, *(s for s in AFTER if s in found)]


@dataclass(frozen=True)
class Pivot:
    """Measure rows in lines and columns: a line is its leading texts, one a head, and a row a
    column, None where there is none.
    """

    heads: list[str]
    columns: list[str]
    lines: list[tuple[list[str], list[Row | None]]]

    @classmethod
    def of(cls, rows: Sequence[Row], across: str) -> Pivot:
        """Raises KarmafunnelError for no rows, and for two rows that fall into one cell."""
        if not rows:
            raise KarmafunnelError("table", needs="at least one measure row", found="none")
        fields = [f for f in ("label", "measure", "slice", "stage") if f != across]
        orders = {f: {v: i for i, v in enumerate(in_order(rows, f))} for f in (*fields, across)}
        heads = [f for f in fields if f in ("stage", "measure") or len(orders[f]) > 1]
        found: dict[tuple[Any, ...], dict[str, Row]] = {}
        for row in rows:
            line = found.setdefault(tuple(row[f] for f in fields), {})
            if row[across] in line:
                where = {f: row[f] for f in fields}
                raise KarmafunnelError(f"table: two rows for {across} {row[across]!r} of {where}")
            line[row[across]] = row
        columns, lines = list(orders[across]), []
        for key in sorted(
            found, key=lambda key: [orders[f][v] for f, v in zip(fields, key, strict=True)]
        ):
            texts = [str(value) for name, value in zip(fields, key, strict=True) if name in heads]
            lines.append((texts, [found[key].get(column) for column in columns]))
        return cls(heads, columns, lines)


def _one_count(rows: Sequence[Row]) -> str:
    """n and undefined of rows that agree in both, else nothing."""
    some = [row for row in rows if row["n"]]
    return counted(some) if len({(row["n"], row["undefined"]) for row in some}) == 1 else ""


def _cell(row: Row | None, with_n: bool, notes: dict[str, int]) -> Cell:
    if row is None:
        return Cell()
    # What is said of a reference line (random: expected value) stands below once, not at every
    # cell.
    marks = (
        ()
        if row["value"] is not None and row["stage"] in (*BEFORE, *AFTER)
        else _marks(row["note"], notes)
    )
    if row["value"] is None:
        return Cell("n/a", notes=marks, style="dim")
    n = f"n {row['n']:,}" if with_n and row["n"] else ""
    return Cell(number(row["value"]), between(row), "", n, marks, True)


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
    more = (
        f" Values are means over {seeds} seeds; intervals resample seeds and users."
        if seeds > 1
        else ""
    )
    return [
        *lines,
        f"Truth: {' | '.join(truth)}ed items. {INTERVALS}{more}".replace("purchaseed", "purchased"),
    ]


def _of_the_stage(row: Row) -> str:
    """A denominator that names its stage or slice, so that it reads the same for all of them."""
    text = re.sub(rf"\b{re.escape(row['stage'])} scored", "the stage scored", row["denominator"])
    return text.replace(f" [{row['slice']}]", " in the slice")


def _comparison(rows: Sequence[Row]) -> Table:
    """Lines are (measure, slice, stage); columns A, B, B - A, which is better, the smallest
    detectable effect, n.
    """
    a, b = rows[0]["label_a"], rows[0]["label_b"]
    heads = ["measure", *(["slice"] if len({row["slice"] for row in rows}) > 1 else []), "stage"]
    notes: dict[str, int] = {}
    lines: list[list[str | Cell]] = []
    for row in rows:
        marks = (
            _marks(row["note"], notes)
            if row["difference"] is None or row["stage"] not in AFTER
            else ()
        )
        effect = "" if row["smallest_effect"] is None else number(row["smallest_effect"])
        known = row["difference"] is not None
        change = Cell(
            number(row["difference"], True, 4),
            between(row, True, 4),
            notes=marks,
            strong=known,
            style="" if known else "dim",
        )
        values = [number(row["value_a"]), number(row["value_b"])]
        verdict = _verdict(row, {"A": a, "B": b})
        lines.append(
            [*(str(row[h]) for h in heads), *values, change, verdict, effect, f"{row['n']:,}"]
        )
    seeds = max(row["seeds"] for row in rows)
    units = " or ".join(dict.fromkeys(row["unit"] for row in rows))
    below = [f"{m}: {define(m)}." for m in dict.fromkeys(row["measure"] for row in rows)]
    below += [
        f"A is {a}, B is {b}, paired on the same {units}s. {INTERVALS}",
        "Better: the interval of B − A leaves out 0"
        + (f" and its sign is the same in all {seeds} seeds" if seeds > 1 else "")
        + "; "
        "(Holm): it still does when the whole table is to hold at once. "
        "Detectable: the smallest effect found with 80% power.",
    ]
    columns = [f"A: {a}", f"B: {b}", "B − A", "better", "detectable", "n"]
    return Table(
        [*heads, *columns],
        lines,
        len(heads),
        notes=list(notes),
        below=below,
        quiet=_quiet(heads, lines),
        look=_look(True),
    )


def _verdict(row: Row, sides: dict[str, str]) -> str | Cell:
    """The side that is better, and whether that stands after Holm's correction."""
    if row["better"]:
        return sides[row["better"]] + (" (Holm)" if row["holm"] else "")
    if row["difference"] is None or Measure.parse(row["measure"]).better == "neither":
        return ""
    return Cell("not told apart", style="dim")


# -- CSV -------------------------------------------------------------------------------------------

FIELDS = ("value", "low", "high", "n", "undefined", "note")


def to_csv(rows: Sequence[Row], across: str = "measure") -> str:
    """The table with unrounded numbers: value, low, high, n, undefined and note of every cell in
    columns of their own.

    Comparison rows come as they are, one a line.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if rows and "difference" in rows[0]:
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
        return out.getvalue()
    pivot = Pivot.of(rows, across)
    names = ["", *(f" {name}" for name in FIELDS[1:])]
    writer.writerow(
        [*pivot.heads, *(f"{column}{name}" for column in pivot.columns for name in names)]
    )
    for texts, found in pivot.lines:
        values: list[Any] = []
        for row in found:
            values += [(row or {}).get(name) for name in FIELDS]
        writer.writerow([*texts, *("" if value is None else value for value in values)])
    return out.getvalue()
