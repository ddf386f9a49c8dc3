"""What a log holds on disk: the columns of its three tables, the keys of log.json, and what may be
made into them.

One rule for every column: what is given is cast to the column's type and back again, and a value
that does not come back the same is refused. Definitions: `docs/METRICS.md`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import polars as pl

from .errors import KarmafunnelError
from .shapes import FLAG as FLAG_KIND
from .shapes import TEXT as TEXT_KIND
from .shapes import Kind, by_name, each, maybe, one_of

WINDOWS = ("W1", "W2a", "W2b", "W3")
TS = pl.Datetime("ms", "UTC")

ITEMS = {
    "item_id": pl.String,
    "title": pl.String,
    "brand": pl.String,
    "category": pl.List(pl.String),
    "price": pl.Float64,
    "attributes": pl.List(pl.String),
    "image": pl.String,
    "visual": pl.List(pl.Float32),
}
REQUESTS = {
    "request_id": pl.String,
    "user_id": pl.String,
    "ts": TS,
    "query": pl.String,
    "filters": pl.List(pl.String),
    "context": pl.List(pl.String),
    "session_id": pl.String,
    "source": pl.String,
    "window": pl.String,
}
EXPOSURES = {
    "request_id": pl.String,
    "item_id": pl.String,
    "position": pl.Int32,
    "clicked": pl.Boolean,
    "purchased": pl.Boolean,
    "price_shown": pl.Float64,
    "price_paid": pl.Float64,
    "quantity": pl.Int32,
    "propensity": pl.Float64,
    "stage": pl.String,
}
TABLES: dict[str, dict[str, Any]] = {"items": ITEMS, "requests": REQUESTS, "exposures": EXPOSURES}
# Typed where they are there: when an item became known (`available_after`: after so many requests,
# where time is an order), and, in a sample, how often it was a target in W1 of the whole log, by
# label.
OPTIONAL: dict[str, dict[str, Any]] = {
    "items": {
        "available_from": TS,
        "available_after": pl.Int64,
        "w1_click": pl.Int64,
        "w1_purchase": pl.Int64,
        "description": pl.String,
    }
}
CAPABILITIES = (
    "text",
    "query",
    "price",
    "exposures",
    "clicks",
    "purchases",
    "images",
    "visual",
    "users",
    "propensity",
    "filters",
)


def expected(table: str) -> dict[str, Any]:
    """The type of every column of a table, those that it may have included."""
    return TABLES[table] | OPTIONAL.get(table, {})


def same_type(found: Any, needed: Any) -> bool:
    """Whether a stored type is the layout's, an all-null column counting as any type."""
    return (
        found == needed
        or found == pl.Null
        or (isinstance(found, pl.List) and found.inner == pl.Null)
    )


# -- log.json --------------------------------------------------------------------------------------


NAMED = Kind("a text", lambda v: TEXT_KIND.holds(v) and v != "")
WHOLE_NUMBERS = Kind(
    "an object of whole numbers",
    lambda v: isinstance(v, dict) and all(type(n) is int for n in v.values()),
)
OBJECT = Kind("an object", lambda v: isinstance(v, dict))
# Keys of log.json. Those of FACTS change no row that is read; those of MAY_HAVE may be missing.
META: dict[str, Kind] = {
    "name": NAMED,
    "currency": maybe(TEXT_KIND),
    "licence": maybe(TEXT_KIND),
    "source": maybe(TEXT_KIND),
    "time": one_of("clock", "order"),
    "scenario": each(TEXT_KIND),
    "label": maybe(one_of("click", "purchase")),
    "catalogue": one_of("published", "seen"),
    "has": by_name(FLAG_KIND),
    "lacks": each(TEXT_KIND),
    "counts": WHOLE_NUMBERS,
    "checksums": by_name(TEXT_KIND),
}
FACTS = ("name", "currency", "licence", "source", "lacks", "counts", "checksums")
MAY_HAVE: dict[str, Kind] = dict.fromkeys(("set_aside", "notes", "sample", "world"), OBJECT)


def meta_faults(found: Any, partial: bool = False) -> list[dict[str, Any]]:
    """What of a log.json is not as it needs to be: `key` (none for the whole), what it needs, what
    was found.

    `partial`: keys may be missing.
    """
    if not isinstance(found, dict):
        return [{"file": "log.json", "needed": "an object", "found": type(found).__name__}]
    faults = []
    for key, kind in (META | MAY_HAVE).items():
        if key not in found:
            if key in META and not partial:
                faults.append({"key": key, "needed": kind.words, "found": "nothing"})
        elif not kind.holds(found[key]):
            faults.append({"key": key, "needed": kind.words, "found": shorten(found[key])})
    if isinstance(found.get("has"), dict):
        one_of = f"one of {', '.join(CAPABILITIES)}"
        unknown = sorted(str(name) for name in found["has"] if name not in CAPABILITIES)
        faults += [{"key": f"has.{name}", "needed": one_of, "found": name} for name in unknown]
    return faults


def complete_meta(meta: Any, who: str = "log.json") -> dict[str, Any]:
    """`log.json` with its defaults: what is not claimed is not there; raises KarmafunnelError for
    what cannot be.
    """
    for fault in meta_faults(meta, partial=True):
        where = f"{fault['key']} must be" if "key" in fault else "needs"
        raise KarmafunnelError(f"{who}: {where} {fault['needed']}, found {fault['found']!r}")
    base: dict[str, Any] = {
        "name": "unnamed",
        "currency": None,
        "licence": None,
        "source": None,
        "time": "clock",
        "scenario": ["search"],
        "label": "click",
        "catalogue": "seen",
        "lacks": [],
        "set_aside": {},
    }
    merged = base | meta
    merged["has"] = {name: meta.get("has", {}).get(name, False) for name in CAPABILITIES}
    return merged


def shorten(value: Any) -> Any:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return value if len(text) <= 80 else text[:79] + "…"


# -- columns ---------------------------------------------------------------------------------------

TEXT, FLAG, WHOLE, REAL, DECIMAL, TIME = (
    "text",
    "true or false",
    "whole numbers",
    "numbers",
    "decimals",
    "times",
)
LIST = "lists of "
# What may be made into a column of each kind, if every value comes back the same.
TAKES: dict[str, tuple[str, ...]] = {
    TEXT: (TEXT, WHOLE, REAL),
    FLAG: (FLAG, WHOLE, REAL),
    WHOLE: (WHOLE, REAL, DECIMAL),
    REAL: (REAL, WHOLE, DECIMAL),
    TIME: (TIME,),
    LIST + TEXT: (LIST + TEXT, LIST + WHOLE),
    LIST + REAL: (LIST + REAL, LIST + WHOLE),
}
NEEDED: dict[str, str] = {
    TEXT: "texts, or whole numbers to be written as texts",
    FLAG: "true or false (or 1 and 0)",
    WHOLE: "whole numbers",
    REAL: "numbers",
    TIME: "dates with times to the millisecond, in UTC where they have no time zone",
    LIST + TEXT: "lists of texts",
    LIST + REAL: "lists of numbers",
}
EXACT = 2**53  # whole numbers up to here are held exactly by a float


def kind_of(dtype: Any) -> str:
    """What a type holds, in words; the type's own name where the layout has no use for it."""
    dtype = dtype() if isinstance(dtype, type) else dtype
    if isinstance(dtype, pl.List | pl.Array) and not isinstance(dtype.inner, pl.List | pl.Array):
        return LIST + kind_of(dtype.inner)
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return TEXT
    if isinstance(dtype, pl.Datetime | pl.Date):
        return TIME
    kinds = (
        (dtype.is_integer(), WHOLE),
        (dtype.is_float(), REAL),
        (dtype.is_decimal(), DECIMAL),
        (dtype == pl.Boolean, FLAG),
    )
    return next((kind for fits, kind in kinds if fits), str(dtype))


def conform(frame: pl.DataFrame, table: str, who: str) -> pl.DataFrame:
    """The frame with every column of the table (absent ones null), each in its type, known columns
    first.

    Nothing is lost on the way: whole floats (a pandas column of ids with missing ones) become "19",
    1.0 and 0.0 true and false, NaN is a missing value, times without a zone are UTC and others are
    moved to it. Raises KarmafunnelError that names table, row (from 0), column, what it needs and
    what was found, for every other value and type.
    """
    here = f"{who}: {table}"

    def absent(name: str, dtype: Any) -> pl.Series:
        return pl.repeat(None, frame.height, dtype=dtype, eager=True).alias(name)

    known = [
        taken(frame[n], t, here) if n in frame.columns else absent(n, t)
        for n, t in TABLES[table].items()
    ]
    typed = OPTIONAL.get(table, {})
    more = [c for c in frame.get_columns() if c.name not in TABLES[table]]
    return pl.DataFrame(
        [*known, *(taken(c, typed[c.name], here) if c.name in typed else c for c in more)]
    )


def taken(values: pl.Series, dtype: Any, who: str) -> pl.Series:
    """The values in a column's type, each the same as before; raises KarmafunnelError for one that
    cannot be.
    """
    kind, given = kind_of(dtype), kind_of(values.dtype)
    if same_type(values.dtype, dtype) and given != REAL:
        made = values.cast(dtype)
        lost = pl.repeat(False, len(made), eager=True)
    elif given not in TAKES[kind]:
        raise KarmafunnelError(
            who,
            what=f"column {values.name!r}",
            needs=f"{NEEDED[kind]}",
            found=f"{values.dtype}{first_of(values, kind)}",
        )
    elif kind.startswith(LIST):
        made, lost = taken_lists(values, dtype)
    else:
        made, lost = CAST[kind](values, dtype)
    if kind == TIME:
        lost |= misread(made)
    if lost.any():
        row = int(lost.arg_true()[0])
        hint = MISREAD if kind == TIME and misread(made)[row] else ""
        raise KarmafunnelError(
            f"{who}: row {row}",
            what=f"column {values.name!r}",
            needs=f"{NEEDED[kind]}",
            found=f"{shown(values, row)}{hint}",
        )
    return made


def unlike(values: pl.Series, back: pl.Series) -> pl.Series:
    """Whether each value, where there is one, is another after the way there and back."""
    return values.is_not_null() & (back != values).fill_null(True)


def there_and_back(values: pl.Series, dtype: Any) -> tuple[pl.Series, pl.Series]:
    values = values.fill_nan(None) if values.dtype.is_float() else values
    made = values.cast(dtype, strict=False)
    return made, unlike(values, made.cast(values.dtype, strict=False))


def as_text(values: pl.Series, dtype: Any) -> tuple[pl.Series, pl.Series]:
    """Floats by way of whole numbers: 19.0 is "19"."""
    if not values.dtype.is_float():
        made = values.cast(dtype)
        return made, values.is_not_null() & made.is_null()
    whole, lost = there_and_back(values, pl.Int64)
    return whole.cast(dtype), lost | (whole.abs() > EXACT).fill_null(False)


def as_time(values: pl.Series, dtype: Any) -> tuple[pl.Series, pl.Series]:
    if values.dtype == pl.Date:
        values = values.cast(pl.Datetime("ms"))
    zone = values.dtype.time_zone  # type: ignore[attr-defined]
    values = values.dt.convert_time_zone("UTC") if zone else values.dt.replace_time_zone("UTC")
    return there_and_back(values, dtype)


CAST: dict[str, Callable[[pl.Series, Any], tuple[pl.Series, pl.Series]]] = {
    TEXT: as_text,
    FLAG: there_and_back,
    WHOLE: there_and_back,
    REAL: there_and_back,
    TIME: as_time,
}


def taken_lists(values: pl.Series, dtype: Any) -> tuple[pl.Series, pl.Series]:
    """Numbers of a vector are rounded to the nearest 32-bit float: only one that is too large for
    it is lost.
    """
    values = values.arr.to_list() if isinstance(values.dtype, pl.Array) else values
    made = values.cast(dtype, strict=False)
    if kind_of(dtype) == LIST + TEXT:
        return made, pl.repeat(False, len(made), eager=True)
    flat = pl.DataFrame(
        {"row": pl.int_range(len(values), eager=True), "given": values, "made": made}
    ).explode("given", "made")
    lost = flat.filter(
        pl.col("made").is_infinite() & ~pl.col("given").cast(pl.Float64).is_infinite()
    )["row"]
    return made, pl.int_range(len(values), eager=True).is_in(lost.implode())


def shown(values: pl.Series, row: int) -> str:
    """A value for a message; a time beyond the calendar as its number."""
    value = values.slice(row, 1)
    if isinstance(values.dtype, pl.Datetime):
        ms = value.dt.epoch("ms").item()
        return (
            f"{value.item():%Y-%m-%d %H:%M:%S.%f}"
            if abs(ms) < 1900 * YEAR
            else f"{ms} ms since 1970"
        )
    return repr(shorten(value.to_list()[0]))


def first_of(values: pl.Series, kind: str) -> str:
    """An example, and for numbers that should be times what makes times of them."""
    there = values.is_not_null()
    if not there.any() or isinstance(values.dtype, pl.Object):
        return ""
    row = int(there.arg_true()[0])
    text = f", in row {row} {shown(values, row)}"
    if kind == TIME and kind_of(values.dtype) in (WHOLE, REAL):
        size = abs(float(values[row]))
        unit = next(
            (unit for unit, most in (("s", 1e11), ("ms", 1e14), ("us", 1e17)) if size < most), "ns"
        )
        text += f': polars.from_epoch(column, time_unit="{unit}") makes times of it'
    elif kind == TIME and kind_of(values.dtype) == TEXT:
        text += ": .str.to_datetime() makes times of it"
    return text


# -- times that cannot be --------------------------------------------------------------------------

YEAR = 365 * 86_400_000  # ms
MISREAD = ": epoch seconds read as milliseconds end up in 1970, and microseconds beyond 2200"


def misread(ts: pl.Series) -> pl.Series:
    """Whether each time lies in 1970 or beyond 2200, where numbers read in the wrong unit (and
    zeros) end up.
    """
    return pl.DataFrame({"ts": ts}).select(misread_at(pl.col("ts"))).to_series()


def misread_at(ts: pl.Expr) -> pl.Expr:
    ms = ts.dt.epoch("ms")
    return (ms.is_between(0, YEAR) | (ms > 231 * YEAR)).fill_null(False)


def doubtful_at(ts: pl.Expr) -> pl.Expr:
    """Before 1990, or more than a year from now."""
    ms = ts.dt.epoch("ms")
    return ((ms < 20 * YEAR) | (ms > int(time.time() * 1000) + YEAR)).fill_null(False)
