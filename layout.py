"""Layout of a log on disk: the columns of its three tables, the keys of log.json, and the types
that are accepted for them.

One rule for every column: a value is cast to the column's type and back, and one that does not come
back unchanged is refused. Definitions: `docs/reference/log.md`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import polars as pl

from .errors import KarmafunnelError, meant
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
# Columns that may be missing: when an item became known (`available_after`: after so many requests,
# if time is an order), and, in a sample, how often it was a target in W1 of the whole log, by
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


def present(column: str) -> pl.Expr:
    return pl.col(column).is_not_null().any()


def filled(column: str) -> pl.Expr:
    return (pl.col(column).list.len() > 0).fill_null(False).any()


# Where to look whether a log has what it says it has: the capabilities, by name.
HOLDS: dict[str, tuple[tuple[str, pl.Expr], ...]] = {
    "text": (("items", present("title")), ("items", present("brand"))),
    "query": (("requests", present("query")),),
    "price": (
        ("items", present("price")),
        ("exposures", present("price_shown")),
        ("exposures", present("price_paid")),
    ),
    "exposures": (("exposures", present("position")),),
    "clicks": (("exposures", pl.col("clicked").fill_null(False).any()),),
    "purchases": (("exposures", pl.col("purchased").fill_null(False).any()),),
    "images": (("items", present("image")),),
    "visual": (("items", filled("visual")),),
    "users": (("requests", present("user_id")),),
    "propensity": (("exposures", present("propensity")),),
    "filters": (("requests", filled("filters")),),
}
CAPABILITIES = tuple(HOLDS)


def held(
    items: pl.DataFrame,
    requests: pl.DataFrame,
    exposures: pl.DataFrame,
    names: Iterable[str] = CAPABILITIES,
) -> dict[str, bool]:
    """Whether three tables hold what capabilities promise (`has` of log.json); a column that is not
    there holds nothing.
    """
    tables = {"items": items, "requests": requests, "exposures": exposures}
    found = {}
    for name in names:
        places = [(tables[table], expression) for table, expression in HOLDS[name]]
        found[name] = any(
            frame.select(expression).item()
            for frame, expression in places
            if set(expression.meta.root_names()) <= set(frame.columns)
        )
    return found


def expected(table: str) -> dict[str, Any]:
    """The type of every column of a table, optional ones included."""
    return TABLES[table] | OPTIONAL.get(table, {})


def same_type(found: Any, needed: Any) -> bool:
    """Whether a stored type is the layout's; an all-null column counts as any type."""
    if found == needed or found == pl.Null:
        return True
    return isinstance(found, pl.List) and found.inner == pl.Null


# -- log.json --------------------------------------------------------------------------------------


NAMED = Kind("a text", lambda v: TEXT_KIND.holds(v) and v != "")
WHOLE_NUMBERS = Kind(
    "an object of whole numbers",
    lambda v: isinstance(v, dict) and all(type(n) is int for n in v.values()),
)
OBJECT = Kind("an object", lambda v: isinstance(v, dict))
# Keys of log.json. FACTS do not change the rows that are read; those of MAY_HAVE are optional.
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
MAY_HAVE["stages"] = each(TEXT_KIND)


def meta_faults(found: Any, partial: bool = False) -> list[dict[str, Any]]:
    """The errors of a log.json, each with `key` (absent for the whole file), `needed` and `found`.

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
        for name in sorted(str(name) for name in found["has"] if name not in CAPABILITIES):
            close = meant(name, CAPABILITIES)
            needed = one_of + (f" ({close})" if close else "")
            faults.append({"key": f"has.{name}", "needed": needed, "found": name})
    return faults


def complete_meta(meta: Any, who: str = "log.json") -> dict[str, Any]:
    """`log.json` with defaults for missing keys; a capability that is not claimed is absent. Raises
    KarmafunnelError for a wrong key.
    """
    for fault in meta_faults(meta, partial=True):
        found = repr(fault["found"])
        raise KarmafunnelError(who, what=fault.get("key", ""), needs=fault["needed"], found=found)
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
    """The value, or the first 79 characters of its JSON where that is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return value if len(text) <= 80 else text[:79] + "…"


# -- columns ---------------------------------------------------------------------------------------

TEXT, FLAG, TIME = "text", "true or false", "times"
WHOLE, REAL, DECIMAL = "whole numbers", "numbers", "decimals"
LIST = "lists of "
# What a column of each kind accepts, if every value comes back unchanged.
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
    """The kind of a type, in words; the type's own name if the layout does not use it."""
    dtype = dtype() if isinstance(dtype, type) else dtype
    if isinstance(dtype, pl.List | pl.Array) and not isinstance(dtype.inner, pl.List | pl.Array):
        return LIST + kind_of(dtype.inner)
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return TEXT
    if isinstance(dtype, pl.Datetime | pl.Date):
        return TIME
    if dtype.is_integer():
        return WHOLE
    if dtype.is_float():
        return REAL
    if dtype.is_decimal():
        return DECIMAL
    return FLAG if dtype == pl.Boolean else str(dtype)


def conform(frame: pl.DataFrame, table: str, who: str) -> pl.DataFrame:
    """The frame with every column of the table, each in its type: known columns first, absent ones
    null.

    No value is changed silently: whole floats (ids of a pandas column with missing values) become
    "19", 1.0 and 0.0 become true and false, NaN is a missing value, times without a zone are UTC
    and others are converted to it.

    Raises:
        KarmafunnelError: naming table, row (from 0) and column, for any other value or type.
    """
    here = f"{who}: {table}"
    if not isinstance(frame, pl.DataFrame):
        kind = f"a {type(frame).__name__} of {type(frame).__module__.partition('.')[0]}"
        hint = "karmafunnel.Log.from_frames takes pandas and Arrow, too"
        raise KarmafunnelError(here, needs="a Polars frame", found=kind, hint=hint)
    known = expected(table)
    for name in frame.columns:
        absent = [column for column in known if column not in frame.columns]
        if name not in known and (hint := meant(name, absent, cutoff=0.8)):
            raise KarmafunnelError(
                here,
                needs="columns of the layout",
                found=repr(name),
                hint=hint,
            )
    columns = []
    for name, dtype in TABLES[table].items():
        if name in frame.columns:
            columns.append(taken(frame[name], dtype, here))
        else:
            columns.append(pl.repeat(None, frame.height, dtype=dtype, eager=True).alias(name))
    typed = OPTIONAL.get(table, {})
    for column in frame.get_columns():
        if column.name in typed:
            columns.append(taken(column, typed[column.name], here))
        elif column.name not in TABLES[table]:
            columns.append(column)
    return pl.DataFrame(columns)


def taken(values: pl.Series, dtype: Any, who: str) -> pl.Series:
    """The values in a column's type, none changed; raises KarmafunnelError if it is impossible."""
    kind, given = kind_of(dtype), kind_of(values.dtype)
    if same_type(values.dtype, dtype) and given != REAL:
        made = values.cast(dtype)
        lost = pl.repeat(False, len(made), eager=True)
    elif given not in TAKES[kind]:
        raise KarmafunnelError(
            who,
            what=f"column {values.name!r}",
            needs=NEEDED[kind],
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
            needs=NEEDED[kind],
            found=f"{shown(values, row)}{hint}",
        )
    return made


def unlike(values: pl.Series, back: pl.Series) -> pl.Series:
    """Whether each value that is not null has changed after a cast there and back."""
    return values.is_not_null() & (back != values).fill_null(True)


def there_and_back(values: pl.Series, dtype: Any) -> tuple[pl.Series, pl.Series]:
    values = values.fill_nan(None) if values.dtype.is_float() else values
    made = values.cast(dtype, strict=False)
    return made, unlike(values, made.cast(values.dtype, strict=False))


def as_text(values: pl.Series, dtype: Any) -> tuple[pl.Series, pl.Series]:
    """Texts; floats are cast through whole numbers, so that 19.0 is "19"."""
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
    """Lists; numbers are rounded to the nearest 32-bit float, and only too large ones are lost."""
    values = values.arr.to_list() if isinstance(values.dtype, pl.Array) else values
    made = values.cast(dtype, strict=False)
    if kind_of(dtype) == LIST + TEXT:
        return made, pl.repeat(False, len(made), eager=True)
    rows = pl.int_range(len(values), eager=True)
    flat = pl.DataFrame({"row": rows, "given": values, "made": made}).explode("given", "made")
    was_infinite = pl.col("given").cast(pl.Float64).is_infinite()
    lost = flat.filter(pl.col("made").is_infinite() & ~was_infinite)["row"]
    return made, rows.is_in(lost.implode())


def shown(values: pl.Series, row: int) -> str:
    """A value for a message; a time beyond the calendar as its number."""
    value = values.slice(row, 1)
    if not isinstance(values.dtype, pl.Datetime):
        return repr(shorten(value.to_list()[0]))
    ms = value.dt.epoch("ms").item()
    if abs(ms) >= 1900 * YEAR:
        return f"{ms} ms since 1970"
    return f"{value.item():%Y-%m-%d %H:%M:%S.%f}"


def first_of(values: pl.Series, kind: str) -> str:
    """The first value for a message, and for numbers or texts that should be times how to convert
    them.
    """
    there = values.is_not_null()
    if not there.any() or isinstance(values.dtype, pl.Object):
        return ""
    row = int(there.arg_true()[0])
    text = f", in row {row} {shown(values, row)}"
    if kind == TIME and kind_of(values.dtype) in (WHOLE, REAL):
        unit = likely_unit(abs(float(values[row])))
        text += f': polars.from_epoch(column, time_unit="{unit}") makes times of it'
    elif kind == TIME and kind_of(values.dtype) == TEXT:
        text += ": .str.to_datetime() makes times of it"
    return text


def likely_unit(number: float) -> str:
    """The unit in which a number since 1970 is most likely a time."""
    for unit, most in (("s", 1e11), ("ms", 1e14), ("us", 1e17)):
        if number < most:
            return unit
    return "ns"


# -- times that cannot be --------------------------------------------------------------------------

YEAR = 365 * 86_400_000  # ms
MISREAD = ": epoch seconds read as milliseconds end up in 1970, and microseconds beyond 2200"


def misread(ts: pl.Series) -> pl.Series:
    """Whether each time lies in 1970 or beyond 2200, as zeros and numbers in a wrong unit do."""
    return pl.DataFrame({"ts": ts}).select(misread_at(pl.col("ts"))).to_series()


def misread_at(ts: pl.Expr) -> pl.Expr:
    ms = ts.dt.epoch("ms")
    return (ms.is_between(0, YEAR) | (ms > 231 * YEAR)).fill_null(False)


def doubtful_at(ts: pl.Expr) -> pl.Expr:
    """Before 1990, or more than a year from now."""
    ms = ts.dt.epoch("ms")
    return ((ms < 20 * YEAR) | (ms > int(time.time() * 1000) + YEAR)).fill_null(False)
