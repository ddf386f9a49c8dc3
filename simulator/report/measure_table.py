"""Tables of measure rows and of comparison rows (`simulator/measure/compare.py`), and CSV of them.

One pivot serves all formats: stages are lines, measures (or with `across="label"` Runs) are
columns. A cell is a value with its 95% interval; n, undefined units, denominators, definitions and
the reason of every n/a stand below the table.
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
# Lines of measure rows that are no stage: before the stages, and after them for reference.
BEFORE, AFTER = ("eligible",), ("end to end", "ceiling", "logged order", "random", "base rate")
REFERENCE = (*BEFORE, *AFTER)
LEFT_OUT = " Undefined: requests without a value, left out."


# -- rows ------------------------------------------------------------------------------------------


def column(rows: Iterable[Row], name: str) -> list[Any]:
    """The values of one field."""
    return [row[name] for row in rows]


def where(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows whose fields have the given values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def known(rows: Iterable[Row]) -> list[Row]:
    """The rows that have a value."""
    return [row for row in rows if row["value"] is not None]


# -- words and numbers -----------------------------------------------------------------------------


def between(row: Row, signed: bool = False, decimals: int | None = None) -> str:
    """The interval of a row as text, "[low, high]"; "" where there is none.

    Args:
        row: with value, low and high.
        signed: whether numbers above 0 have a plus sign.
        decimals: without it, as many as `places` gives the row's value.
    """
    if row["low"] is None or row["high"] is None:
        return ""
    decimals = places(row["value"] or row["high"]) if decimals is None else decimals
    return f"[{number(row['low'], signed, decimals)}, {number(row['high'], signed, decimals)}]"


def unchanged(row: Row) -> bool:
    """Whether the difference is 0 in every resample: both Runs have the same stages so far."""
    return row.get("difference") == row["low"] == row["high"] == 0


def valued(row: Row | None, signed: bool = False, decimals: int | None = None) -> Cell:
    """The cell of a value, or of a difference (`signed`), with its interval and significance."""
    value = (row or {}).get("difference" if signed else "value")
    if not row or value is None:
        return Cell("n/a", style="dim")
    if signed and unchanged(row):
        return Cell("=")
    decimals = places(value) if decimals is None else decimals
    text, small = number(value, signed, decimals), between(row, signed, decimals)
    return Cell(text, small, significance(row) if signed else "", strong=True)


def significance(row: Row) -> str:
    """The mark of a difference: "*" significant, "**" also after Holm's correction, else ""."""
    if not row.get("better"):
        return ""
    return "**" if row.get("holm") else "*"


def define(measure: str) -> str:
    """The definition of a measure, in one clause; raises KarmafunnelError for an unknown one."""
    return Measure.parse(measure).definition


def counted(rows: Iterable[Row]) -> str:
    """The number of units of rows: "n 677 (123 undefined, 15.4%)"; where it differs, in words: "n
    from 90 to 114, by row; undefined, so left out: from 34 to 44 requests (34.8% to 44.7%)".

    Rows with no unit are left out.
    """
    scored = [row for row in rows if row["n"]]
    if not scored:
        return "n 0"
    n, undefined = _range(scored, "n", ","), _range(scored, "undefined", ",")
    some, share = any(column(scored, "undefined")), _range(scored, "undefined_share", ".1%")
    if len(set(column(scored, "n"))) == len(set(column(scored, "undefined"))) == 1:
        return f"n {n} ({undefined} undefined, {share})" if some else f"n {n}"
    text = f"n {n}, by row" if n.startswith("from") else f"n {n}"
    return f"{text}; undefined, so left out: {undefined} requests ({share})" if some else text


def _range(rows: Sequence[Row], name: str, form: str) -> str:
    """The values of a field: "3", or "from 2 to 5"."""
    values = column(rows, name)
    low, high = min(values), max(values)
    return f"{low:{form}}" if low == high else f"from {low:{form}} to {high:{form}}"


# -- the pivot -------------------------------------------------------------------------------------


def measure_table(rows: Sequence[Row], across: str = "measure") -> Table:
    """The table of measure rows, or of comparison rows.

    Args:
        rows: of `measure`, `compare` or `added`.
        across: the field of measure rows whose values are the columns, "measure" or "label".

    Raises:
        KarmafunnelError: for no rows, and for two rows that fall into one cell.
    """
    if rows and "difference" in rows[0]:
        return _comparison(rows)
    pivot = Pivot.of(rows, across)
    # n is shown once where it is the same: below the column of a measure, or, with several Runs, at
    # the end of all lines. Elsewhere each cell shows its own.
    by_line = across == "label"
    counts = []
    for name in pivot.columns:
        counts.append("" if by_line else _one_count(where(rows, **{across: name})))
    ends = [_one_count(list(filter(None, found))) if by_line else "" for _, found in pivot.lines]
    notes: dict[str, int] = {}
    lines: list[list[str | Cell]] = []
    for (texts, found), end in zip(pivot.lines, ends, strict=True):
        line: list[str | Cell] = [*texts]
        for row, count in zip(found, counts, strict=True):
            line.append(_cell(row, not (all(ends) or count), notes))
        if all(ends):
            line.append(end.removeprefix("n "))
        lines.append(line)
    heads = [*pivot.heads, *pivot.columns]
    if all(ends):
        heads.append("n")
        counts.append("")
    return Table(
        heads,
        lines,
        len(pivot.heads),
        counts=counts,
        notes=list(notes),
        below=_below(rows),
        brief=_origin(rows) + (LEFT_OUT if any("undefined" in count for count in counts) else ""),
        tips={} if by_line else {name: define(name) for name in pivot.columns},
        quiet=_quiet(pivot.heads, lines),
        look=_look(by_line and len(pivot.columns) < 4),
    )


def _look(roomy: bool) -> str:
    return "measures by-line" if roomy else "measures"


def _quiet(heads: Sequence[str], lines: Sequence[Sequence[str | Cell]]) -> set[int]:
    """The numbers of the lines that are no stage."""
    if "stage" not in heads:
        return set()
    at = heads.index("stage")
    return {i for i, line in enumerate(lines) if line[at] in REFERENCE}


def in_order(rows: Sequence[Row], name: str) -> list[Any]:
    """The distinct values of a field in order of appearance; of "stage", those of `BEFORE` first
    and those of `AFTER` last.
    """
    found = list(dict.fromkeys(column(rows, name)))
    if name == "stage":
        found.sort(key=_place_of_stage)
    return found


def _place_of_stage(stage: str) -> int:
    if stage in BEFORE:
        return BEFORE.index(stage) - len(BEFORE)
    return AFTER.index(stage) + 1 if stage in AFTER else 0


@dataclass(frozen=True)
class Pivot:
    """Measure rows in lines and columns.

    heads: of the leading texts of a line. columns: of its cells. lines: the leading texts, and the
    row of every column (None where there is none).
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

        def place(key: tuple[Any, ...]) -> list[int]:
            return [orders[f][value] for f, value in zip(fields, key, strict=True)]

        columns, lines = list(orders[across]), []
        for key in sorted(found, key=place):
            texts = [str(value) for name, value in zip(fields, key, strict=True) if name in heads]
            lines.append((texts, [found[key].get(name) for name in columns]))
        return cls(heads, columns, lines)


def _one_count(rows: Sequence[Row]) -> str:
    """The number of units of rows that agree in it; "" where they do not."""
    some = [row for row in rows if row["n"]]
    return counted(some) if len({(row["n"], row["undefined"]) for row in some}) == 1 else ""


def _cell(row: Row | None, with_n: bool, notes: dict[str, int]) -> Cell:
    if row is None:
        return Cell()
    if row["value"] is None:
        return Cell("n/a", notes=_marks(row["note"], notes), style="dim")
    # the note of a reference line stands once, below the table
    marks = () if row["stage"] in REFERENCE else _marks(row["note"], notes)
    n = f"n {row['n']:,}" if with_n and row["n"] else ""
    return Cell(number(row["value"]), between(row), "", n, marks, True)


def _marks(note: str, notes: dict[str, int]) -> tuple[int, ...]:
    return (notes.setdefault(note, len(notes) + 1),) if note else ()


def _below(rows: Sequence[Row]) -> list[str]:
    """The lines below a table: definition, unit, n and denominator of every measure, then the notes
    of the reference lines, then which items are relevant.
    """
    lines = []
    for measure in in_order(rows, "measure"):
        mine = where(rows, measure=measure)
        denominators = dict.fromkeys(filter(None, map(_of_the_stage, mine)))
        unit = next(filter(None, column(mine, "unit")), "")
        parts = [
            define(measure),
            f"unit: {unit}" if unit else "",
            counted(mine),
            f"denominator: {' | '.join(denominators)}" if denominators else "",
        ]
        lines.append(f"{measure}: " + "; ".join(filter(None, parts)) + ".")
    for stage in REFERENCE:
        notes = list(filter(None, column(known(where(rows, stage=stage)), "note")))
        if notes:
            lines.append(f"{stage}: {'; '.join(dict.fromkeys('; '.join(notes).split('; ')))}.")
    return [*lines, _origin(rows)]


def _origin(rows: Sequence[Row]) -> str:
    """Which items are relevant, and where intervals come from."""
    relevant = " | ".join(map(past, dict.fromkeys(column(rows, "truth"))))
    text = f"Relevant: {relevant} items. {_intervals(rows)}"
    if (seeds := max(column(rows, "seeds"))) > 1:
        text += f" Values are means over {seeds} seeds; intervals resample seeds and "
        text += f"{rows[0]['drawn']}."
    return text


def _intervals(rows: Sequence[Row]) -> str:
    return f"Intervals: 95%, bootstrap over {rows[0]['drawn']}."


def past(relevance: str) -> str:
    """What items are for which there is a "click", a "purchase" or a "relevant judgement"."""
    words = {"purchase": "purchased", "relevant judgement": "judged relevant"}
    return words.get(relevance, f"{relevance}ed")


def _of_the_stage(row: Row) -> str:
    """The denominator of a row without the names of its stage and slice."""
    text = re.sub(rf"\b{re.escape(row['stage'])} scored", "the stage scored", row["denominator"])
    return text.replace(f" [{row['slice']}]", " in the slice")


def _comparison(rows: Sequence[Row]) -> Table:
    """A line for each measure, slice and stage; columns A, B, B - A, which is better, the minimum
    detectable effect, n.
    """
    a, b = rows[0]["label_a"], rows[0]["label_b"]
    several = len(set(column(rows, "slice"))) > 1
    heads = ["measure", "slice", "stage"] if several else ["measure", "stage"]
    notes: dict[str, int] = {}
    lines: list[list[str | Cell]] = []
    for row in rows:
        there = row["difference"] is not None
        effect = "n/a" if there else ""
        if row["smallest_effect"] is not None:
            effect = number(row["smallest_effect"])
        change = Cell(
            number(row["difference"], True, 4),
            between(row, True, 4),
            significance(row),
            notes=_marks(row["note"], notes),
            strong=there,
            style="" if there else "dim",
        )
        line: list[str | Cell] = [str(row[head]) for head in heads]
        line += [number(row["value_a"]), number(row["value_b"]), change]
        line += [_verdict(row), effect, f"{row['n']:,}"]
        lines.append(line)
    columns = [f"A: {a}", f"B: {b}", "B − A", "better", "MDE", "n"]
    return Table(
        [*heads, *columns],
        lines,
        len(heads),
        notes=list(notes),
        below=[f"{m}: {define(m)}." for m in in_order(rows, "measure")] + _key(rows),
        brief=" ".join(_key(rows)),
        short={columns[0]: "A", columns[1]: "B"},
        quiet=_quiet(heads, lines),
        look=_look(True),
    )


def _key(rows: Sequence[Row]) -> list[str]:
    """What the sides, columns and marks of a comparison mean."""
    seeds = max(column(rows, "seeds"))
    same_sign = f" and it has the same sign in all {seeds} seeds" if seeds > 1 else ""
    lines = [
        f"A is {rows[0]['label_a']}, B is {rows[0]['label_b']}, paired by request. "
        + _intervals(rows),
        f"* the interval of B − A excludes 0{same_sign}; ** also after Holm's correction over the "
        "whole table. MDE: minimum detectable effect, at 80% power.",
    ]
    if last := [stage for stage in in_order(rows, "stage") if " | " in stage]:
        lines.append(f"{last[0]}: the last stage of A against the last stage of B.")
    return lines


def _verdict(row: Row) -> str | Cell:
    """The side that is better: "A", "B" or "neither"; "" where there is no better direction."""
    if row["better"]:
        return str(row["better"])
    if row["difference"] is None or Measure.parse(row["measure"]).better == "neither":
        return ""
    return Cell("neither", style="dim")


def lowered(rows: Iterable[Row]) -> list[str]:
    """One sentence for each measure that a stage lowers: "rank lowers HR@10 of prerank by 0.023
    [0.015, 0.030]"; nothing where the interval includes 0.

    Args:
        rows: of `added`.
    """
    found = []
    for row in rows:
        if row["better"] == "A" and row["low"] is not None:
            loss, ends = -row["difference"], {"low": -row["high"], "high": -row["low"]}
            size = f"{number(loss)} {between({'value': loss} | ends)}"
            of = "" if row["slice"] in ("", "all") else f" ({row['slice']})"
            found.append(f"{row['stage']} lowers {row['measure']} of {row['before']} by {size}{of}")
    return found


# -- CSV -------------------------------------------------------------------------------------------

FIELDS = ("value", "low", "high", "n", "undefined", "note")


def to_csv(rows: Sequence[Row], across: str = "measure") -> str:
    """The table as CSV with unrounded numbers.

    Every column of measure rows becomes six: value, low, high, n, undefined and note. Comparison
    rows are written as they are, one a line.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if rows and "difference" in rows[0]:
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
        return out.getvalue()
    pivot = Pivot.of(rows, across)
    heads = [*pivot.heads]
    for name in pivot.columns:
        heads += [name, *(f"{name} {field}" for field in FIELDS[1:])]
    writer.writerow(heads)
    for texts, found in pivot.lines:
        values: list[Any] = [*texts]
        for row in found:
            values += [(row or {}).get(field) for field in FIELDS]
        writer.writerow(values)  # None is written as an empty field
    return out.getvalue()
