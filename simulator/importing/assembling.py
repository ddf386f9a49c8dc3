"""Build a log from tables: rows are cleaned in batches and sorted by time in buckets.

Apart from their times, 8 bytes per row, memory does not grow with the number of rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from ...checks import blank, require
from ...errors import KarmafunnelError
from ...files import (
    LOG,
    atomic_folder,
    claim,
    marked,
    open_table,
    read_table,
    remove,
    seal,
    write_json,
    write_parquet,
    write_text,
)
from ...layout import TS, complete_meta, conform
from ...log import Log, assign_windows, contents
from .column_map import EXCEL, OF_ITEMS, UNITS, ColumnMap
from .guessing import (
    FIRST,
    LAST,
    NO_MOMENTS,
    currencies,
    guess_decimals,
    no_moments,
    numbers,
    parsed,
)
from .looking import SAMPLE, Found, look, only_texts
from .opening import ROW, Layout, batches

PARTS = 16  # of rows that belong together, by a hash of what they belong to
BUCKET = 500_000  # rows put in order at a time
MOST_REJECTED = 0.01
MAP = "import.toml"
RETURNS = "returns"
FRACTIONS = "quantity is no whole number"
WITHOUT_QUANTITIES = (
    "--column quantity= leaves out quantities such as 0.5 kg; rows that only they make purchases"
    " are clicks then"
)
UNIX_IN_EXCEL = 25_569  # 1970-01-01 in days of a spreadsheet
LOWEST = int(np.datetime64(f"{FIRST}-01-01", "ms").astype(np.int64))
HIGHEST = int(np.datetime64(f"{LAST}-01-01", "ms").astype(np.int64))
# One cleaned interaction. record: whether it records a purchase, unlike a list that flags one; its
# price is the one paid.
FLAT = {
    "number": pl.Int64,
    "request_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "ts": pl.Int64,
    "session_id": pl.String,
    "query": pl.String,
    "position": pl.Int32,
    "propensity": pl.Float64,
    "clicked": pl.Boolean,
    "purchased": pl.Boolean,
    "record": pl.Boolean,
    "price": pl.Float64,
    "paid": pl.Float64,
    "quantity": pl.Int32,
    "title": pl.String,
    "brand": pl.String,
    "category": pl.String,
}


# -- cleaning --------------------------------------------------------------------------------------


def ids(values: pl.Series) -> pl.Series:
    """Ids as unchanged text; whole numbers stored as floats lose their ".0"."""
    if values.dtype.is_float():
        whole = values.drop_nulls()
        if (whole == whole.floor()).all():
            values = values.cast(pl.Int64, strict=False)
    return values.cast(pl.String, strict=False).str.strip_chars()


def to_ms(values: pl.Series, made: ColumnMap) -> pl.Series:
    """Times in ms since 1970 (UTC), null where they cannot be read: int64."""
    time = made.time
    if values.dtype.is_temporal():
        zoned = getattr(values.dtype, "time_zone", None) is not None
        if zoned:
            values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return at_zone(values.cast(pl.Datetime("ms")), "UTC" if zoned else time.zone)
    if time.unit == EXCEL:
        days = values.cast(pl.String, strict=False).str.strip_chars().cast(pl.Float64, strict=False)
        moments = ((days - UNIX_IN_EXCEL) * 86_400).round().cast(pl.Int64) * 1000
        return at_zone(moments.cast(pl.Datetime("ms")), time.zone)
    if time.unit:
        raw = values.cast(pl.String, strict=False).str.strip_chars()
        whole = raw.cast(pl.Int64, strict=False)
        factor = UNITS[time.unit]
        exact = whole * int(factor) if factor >= 1 else whole // round(1 / factor)
        rest = (raw.cast(pl.Float64, strict=False) * factor).floor().cast(pl.Int64, strict=False)
        return exact.fill_null(rest)
    moments = parsed(values.cast(pl.String, strict=False).str.strip_chars(), time.format)
    if getattr(moments.dtype, "time_zone", None) is not None:
        return moments.dt.replace_time_zone(None).cast(pl.Int64)
    return at_zone(moments, time.zone)


def at_zone(moments: pl.Series, zone: str) -> pl.Series:
    """Local times of a zone in ms since 1970 (UTC)."""
    if zone != "UTC":
        try:
            moments = moments.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
        except pl.exceptions.PolarsError as error:
            raise KarmafunnelError(
                "import map",
                what="time.zone",
                needs="a time zone such as Europe/Paris",
                found=repr(zone),
            ) from error
        moments = moments.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return moments.cast(pl.Int64)


def clean(
    frame: pl.DataFrame,
    found: Found,
    path: Path,
    kind: str,
    before: int,
    known: Texts | None,
    decimals: Mapping[str, str],
) -> pl.DataFrame:
    """The valid rows of a batch, in the columns of `FLAT`; other rows are recorded in `found` with
    the reason.

    Args:
        kind: interactions, orders, lists or queries; a row of the queries has no item, and the time
            of a table without times is null until its requests are joined.
        before: number of rows in the files before this one.
        known: the texts of queries by id, where the column of queries has ids.
        decimals: the decimal separator of each column of numbers, by role.
    """
    made, n = found.map, frame.height
    roles = made.of(kind)
    found.rows += n
    bad: list[tuple[str, pl.Series]] = []

    def column(role: str) -> pl.Series | None:
        name = roles.get(role)
        return frame[name] if name in frame.columns else None

    def absent(dtype: Any) -> pl.Series:
        return pl.repeat(None, n, dtype=dtype, eager=True)

    def text(role: str) -> pl.Series:
        values = column(role)
        return absent(pl.String) if values is None else ids(values)

    def number(role: str) -> pl.Series:
        values = column(role)
        if values is None:
            return absent(pl.Float64)
        if values.dtype.is_numeric():
            there, read = values.is_not_null(), numbers(values)
        else:
            given = values.cast(pl.String, strict=False).str.strip_chars()
            quick = decimals[role] == "." and plainly(given)
            read = given.cast(pl.Float64) if quick else numbers(given, decimals[role])
            there = given.is_not_null() & (given != "")
        bad.append((f"{role} cannot be read", there & read.is_null()))
        bad.append(
            (
                f"{role} is not finite",
                read.is_infinite().fill_null(False) | read.is_nan().fill_null(False),
            )
        )
        return read

    def negative(values: pl.Series) -> pl.Series:
        return (values < 0).fill_null(False)

    item = text("item")
    if kind != "queries":
        bad.append(("no item", item.is_null() | (item == "")))
    if (raw_time := column("time")) is None:
        ts = absent(pl.Int64)
    elif raw_time.dtype in NO_MOMENTS:
        raise no_moments(path, roles["time"], raw_time)
    else:
        ts = to_ms(raw_time, made)
        outside = ~ts.is_between(LOWEST, HIGHEST).fill_null(True)
        bad.append(("time is missing", raw_time.is_null()))
        bad.append(("time cannot be read", ts.is_null() & raw_time.is_not_null()))
        bad.append((f"time is outside {FIRST} to {LAST}", outside))
    quantity, price, rating = number("quantity"), number("price"), number("rating")
    first = made.first_position
    position = number("position") + (1 - first)
    bad.append((f"position is below {first}", (position < 1).fill_null(False)))
    propensity = number("propensity")
    bad.append(
        ("propensity is outside (0, 1]", ((propensity <= 0) | (propensity > 1)).fill_null(False))
    )
    bad.append(("quantity is 0", (quantity == 0).fill_null(False)))
    bad.append((FRACTIONS, (quantity != quantity.floor()).fill_null(False)))
    if made.per != "event" and made.per in roles:
        key = text(made.per)
        bad.append((f"no {made.per}", key.is_null() | (key == "")))
    else:
        key = absent(pl.String)
    clicked, purchased, used = outcomes(n, made, kind, rating, position, text, bad)
    returned = negative(quantity) & (purchased | ~used)
    clicked &= ~returned
    bad.append(("quantity is negative", negative(quantity) & ~returned))
    bad.append(("price is negative", negative(price) & ~returned))
    if (money := column("price")) is not None:
        coins = text("currency") if "currency" in roles else None
        price = of_currency(price, money, coins, found)
    query = text("query")
    if known is not None:
        query = known.of(query, found)
    wrong = pl.repeat(False, n, eager=True)
    for reason, rows in bad:
        rows = rows.fill_null(False) & ~wrong
        for i in rows.arg_true().to_list():
            shown = {c: v for c, v in frame.row(i, named=True).items() if c != ROW}
            found.rejects.add(str(path), int(frame[ROW][i]), reason, str(shown))
        wrong |= rows
    rated = made.rating is not None and not {"event", "clicked", "purchased"} & set(roles)
    if rated and "rating" in roles:
        unrated = ~used & ~wrong & rating.is_null()
        found.aside("rows without a rating", int(unrated.sum()))
        found.aside(f"rows rated below {made.rating:g}", int((~used & ~wrong & ~unrated).sum()))
    else:
        found.aside("rows that are neither a click nor a purchase", int((~used & ~wrong).sum()))
    if made.per == "event":  # no other row is of the same request
        found.aside(RETURNS, int((returned & used & ~wrong).sum()))
        used &= ~returned
    flags = kind != "orders" and "event" not in roles and "purchased" in roles
    record = purchased & (not flags)
    flat = pl.DataFrame(
        {
            "number": frame[ROW].cast(pl.Int64) + (before - 1),
            "request_id": key,
            "user_id": text("user"),
            "item_id": item,
            "ts": ts,
            "session_id": text("session"),
            "query": query,
            "position": position.cast(pl.Int32, strict=False),
            "propensity": propensity.cast(pl.Float64, strict=False),
            "clicked": clicked,
            "purchased": purchased,
            "record": record,
            "price": price.zip_with(~record, absent(pl.Float64)),
            "paid": price.zip_with(record, absent(pl.Float64)),
            "quantity": quantity.cast(pl.Int32, strict=False),
            **{role: text(role) for role in OF_ITEMS},
        },
        schema=FLAT,
    )
    return flat.filter(used & ~wrong)


def of_currency(
    price: pl.Series, written: pl.Series, coins: pl.Series | None, found: Found
) -> pl.Series:
    """Prices, null where they are in another currency than that of the map; those are counted.

    Args:
        written: the prices as text.
        coins: the currency of each, if there is such a column.
    """
    ours = found.map.currency
    if coins is None and not plainly(written):
        coins = currencies(ids(written))
        coins = coins.fill_null(ours) if ours else coins  # a bare number is in the map's
    if coins is None or (ours is None and "currency" in found.map.columns):
        return price
    other = price.is_not_null() & ((coins != ours).fill_null(True) if ours else coins.is_not_null())
    named = f"other currencies than {ours}" if ours else "a currency, beside bare numbers"
    found.aside(f"prices in {named}", int(other.sum()))
    return pl.select(pl.when(~other).then(price)).to_series()


def plainly(values: pl.Series) -> bool:
    """Whether all values are numbers without signs of currencies or thousands."""
    if values.dtype.is_numeric():
        return True
    return values.cast(pl.Float64, strict=False).null_count() == values.null_count()


def outcomes(
    n: int,
    made: ColumnMap,
    kind: str,
    rating: pl.Series,
    position: pl.Series,
    text: Callable[[str], pl.Series],
    bad: list[tuple[str, pl.Series]],
) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Whether each row is a click, whether it is a purchase, and whether it is imported. What
    cannot be read is added to `bad`.
    """
    every, none = pl.repeat(True, n, eager=True), pl.repeat(False, n, eager=True)
    roles = made.of(kind)
    if kind == "queries":
        return none, none, every
    if kind == "orders":
        return none, every, every
    shown = every if made.per == "request" else None  # rows without a click are kept
    if "event" in roles:
        event = text("event")
        clicked = event.is_in(list(made.clicks)).fill_null(False)
        purchased = event.is_in(list(made.purchases)).fill_null(False)
        return (
            clicked,
            purchased,
            clicked | purchased | event.is_in(list(made.shown)).fill_null(False),
        )
    if "clicked" in roles or "purchased" in roles:
        flags = {"clicked": none, "purchased": none}
        for role in flags:
            if role in roles:
                flags[role], unread = truthy(text(role))
                bad.append((f"{role} cannot be read", unread))
        return flags["clicked"] | flags["purchased"], flags["purchased"], every
    if made.rating is not None and "rating" in roles:
        liked = (rating >= made.rating).fill_null(False)
        return liked, none, liked if shown is None else shown
    if kind == "lists" and position.is_not_null().any():
        return none, none, every  # other tables say what was clicked
    if kind == "interactions" and ("basket" in roles or "quantity" in roles):
        return none, every, every
    return every, none, every


YES, NO = ("true", "yes", "y", "t", "oui", "ja"), ("false", "no", "n", "f", "non", "nein", "")


def truthy(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Text as booleans, and where it is none: numbers above 0 and words such as yes are true."""
    word = values.str.to_lowercase()
    number = word.cast(pl.Float64, strict=False)
    true = word.is_in(YES).fill_null(False) | (number > 0).fill_null(False)
    unread = word.is_not_null() & ~word.is_in((*YES, *NO)) & number.is_null()
    return true, unread


class Texts:
    """The texts of queries by their ids."""

    def __init__(self, found: Found):
        roles = found.map.queries
        frames = []
        for path, layout, _ in found.tables("queries"):
            for frame in batches(path, layout, found.rejects):
                picked = {"id": ids(frame[roles["request"]]), "text": ids(frame[roles["query"]])}
                frames.append(pl.DataFrame(picked).drop_nulls())
        whole = pl.concat(frames)
        self.frame = whole.unique("id", keep="first")
        found.aside("queries that stand twice", whole.height - self.frame.height)

    def of(self, keys: pl.Series, found: Found) -> pl.Series:
        """The text of each id, null where there is none."""
        asked = pl.DataFrame({"id": keys})
        told = asked.join(self.frame, on="id", how="left", maintain_order="left")["text"]
        found.aside(
            "rows whose query has no text", int((told.is_null() & keys.is_not_null()).sum())
        )
        return told


# -- putting together ------------------------------------------------------------------------------


def import_tables(
    paths: Sequence[str | Path],
    out: Path | str,
    *,
    given: ColumnMap | None = None,
    columns: dict[str, str] | None = None,
    name: str | None = None,
    changes: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
    known_as: Mapping[Path, Path] | None = None,
    allow_rejects: bool = False,
    force: bool = False,
    tell: Callable[[Found], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Found:
    """Import tables of interactions (and of items) as a log folder, written atomically.

    The folder also holds the map (`import.toml`) and, where rows were rejected, `rejected.parquet`.

    Args:
        given: the map to use; by default the roles of columns are guessed.
        columns: columns by role, which override the map.
        changes: other fields that override the map.
        meta: keys of `log.json`, such as the licence, that override what is found.
        known_as: the names of files in errors and rejected rows, where they have others.
        tell: called with the map before anything is written.
        progress: called with the number of rows read so far.

    Raises:
        KarmafunnelError: as `look` does; where more than 1% of the rows are rejected (unless
            `allow_rejects`); and for a log that fails the checks of a log.
    """
    out = Path(out)
    as_known = {str(path): str(name) for path, name in (known_as or {}).items()}
    with named(as_known):
        found = look(paths, given, columns, name or out.name, changes)
    found.rejects.known_as = as_known
    if tell is not None:
        tell(found)
    meta = meta or {}
    files = [path for group in found.groups for path, _ in group.files]
    source = meta.get("source", ", ".join(path.name for path in files[:5]))
    wants = {"name": found.map.name, "source": source, "sample": None}
    with (
        named(as_known),
        claim(out, "import", LOG, wants=wants, inputs=files, force=force),
        atomic_folder(out) as folder,
        tempfile.TemporaryDirectory(dir=folder) as work,
    ):
        if not force:
            check_same_map(out, found.map)
        flat, starts = read_flat(found, Path(work), progress)
        check_rejects(found, allow_rejects)
        if found.map.per != "event":
            flat = joined(found, flat, Path(work), starts)
            check_rejects(found, allow_rejects)
        known = write_interactions(found, flat, folder)
        items = [(path, layout) for path, layout, _ in found.tables("items")]
        catalogue = items_of(found, items, known)
        check_rejects(found, allow_rejects)
        write_parquet(folder / "items.parquet", catalogue, compression="zstd", statistics=True)
        finish(found, folder, catalogue, wants, meta)
    return found


@contextmanager
def named(known_as: Mapping[str, str]) -> Iterator[None]:
    """Errors raised inside name files as they are known."""
    try:
        yield
    except KarmafunnelError as error:
        told = str(error)
        for path, name in known_as.items():
            told = told.replace(path, name)
        if told == str(error):
            raise
        raise type(error)(told) from error


def check_same_map(out: Path, made: ColumnMap) -> None:
    """Raises KarmafunnelError if a log is already there that was imported with another map."""
    if not (out / MAP).is_file():
        return
    there = ColumnMap.read(out / MAP)
    for key in (field.name for field in fields(ColumnMap)):
        old, new = getattr(there, key), getattr(made, key)
        if old != new:
            raise KarmafunnelError(
                f"import: {out} holds a log with {key} {old or 'not set'}",
                hint=f"to replace it by one with {key} {new or 'not set'}, use --force",
            )


def read_flat(
    found: Found, work: Path, progress: Callable[[int], None] | None
) -> tuple[list[Path], dict[Path, int]]:
    """Cleaned rows of all files as Parquet files, and the number of rows before each file."""
    parts: list[Path] = []
    starts: dict[Path, int] = {}
    known = Texts(found) if only_texts(found.map) else None
    kinds = ["interactions", "orders", "lists"]
    for path, layout, kind in found.tables(*([] if known else ["queries"]), *kinds):
        before = starts[path] = found.last
        decimals: dict[str, str] = {}
        for frame in batches(path, layout, found.rejects):
            decimals = decimals or decimals_of(frame, found.map, kind)
            flat = clean(frame, found, path, kind, before, known, decimals)
            found.last = max(found.last, before + int(frame[ROW].max() or 0))  # type: ignore[arg-type]
            if progress is not None:
                progress(found.rows)
            if flat.height:
                parts.append(work / f"flat-{len(parts):05d}.parquet")
                write_parquet(parts[-1], flat, compression="lz4", statistics=False)
    if not parts:
        reasons = found.rejects.reasons | found.set_aside
        why = max(reasons, key=lambda reason: reasons[reason], default="none there")
        raise KarmafunnelError(
            "import",
            needs="rows that can be imported",
            found=f"none of {found.read:,} ({why})",
            hint=WITHOUT_QUANTITIES if why == FRACTIONS else "",
        )
    return parts, starts


def decimals_of(frame: pl.DataFrame, made: ColumnMap, kind: str) -> dict[str, str]:
    """The decimal separators of a file by its first rows, or that of the map."""
    return guess_decimals(frame.head(SAMPLE), made.of(kind), made.decimal)


def check_rejects(found: Found, allowed: bool) -> None:
    """Raises KarmafunnelError where too many rows are rejected."""
    n, many = found.read, found.rejects.count
    if many > MOST_REJECTED * max(n, 1) and not allowed:
        first = found.rejects.rows[0]
        counts = ", ".join(f"{reason}: {k:,}" for reason, k in found.rejects.reasons.items())
        raise KarmafunnelError(
            "import",
            needs=f"at most {MOST_REJECTED:.0%} of rows rejected",
            found=(
                f"{many:,} of {n:,} ({counts}), first {first['file']}, row {first['row']}:"
                f" {first['text']}"
            ),
            hint=(
                WITHOUT_QUANTITIES
                if FRACTIONS in found.rejects.reasons
                else "correct the map or the file, or use --allow-rejects"
            ),
        )


def joined(
    found: Found, parts: Sequence[Path], work: Path, starts: Mapping[Path, int]
) -> list[Path]:
    """Group rows into requests; a request has the time of its first row, and the user, session and
    query of the first row that has one. Rows without an item say this alone.

    Args:
        starts: number of rows before each file.
    """
    made = found.map
    files: dict[int, list[Path]] = {}
    own = made.per == "session" and not made.has("session")  # sessions are made here
    for i, path in enumerate(parts):
        frame = read_table(path)
        owner = "user_id" if own else "request_id"
        frame = frame.with_columns((pl.col(owner).hash(seed=0) % PARTS).alias("part"))
        for (part,), mine in frame.group_by("part", maintain_order=True):
            to = work / f"part-{int(part):02d}-{i:05d}.parquet"
            write_parquet(to, mine.drop("part"), compression="lz4", statistics=False)
            files.setdefault(int(part), []).append(to)
        remove(path)
    made_parts = []
    for part, some in sorted(files.items()):
        frame = pl.concat([read_table(p) for p in some])
        if own:
            frame = sessions(frame, made.gap_minutes)
        frame = frame.sort("ts", "number", nulls_last=True)
        alike = [
            pl.col(c).drop_nulls().first().over("request_id").alias(c)
            for c in ("ts", "user_id", "query", "session_id")
        ]
        frame = frame.with_columns(alike)
        timeless = frame.filter(pl.col("ts").is_null() & pl.col("item_id").is_not_null())
        reject(found, timeless, "its request has no time", starts)
        frame = frame.filter(pl.col("ts").is_not_null())
        asked = frame["request_id"].n_unique()
        frame = frame.filter(pl.col("item_id").is_not_null())
        found.aside("requests without an item", asked - frame["request_id"].n_unique())
        frame = net_of_returns(once_an_item(frame, found))
        listed = pl.col("position").is_not_null().any().over("request_id")
        acted = pl.col("clicked") | pl.col("purchased")
        loose = frame.select(pl.col("position").is_null() & acted & listed).to_series()
        reject(found, frame.filter(loose), "the list of its request lacks the item", starts)
        frame = without_gaps(frame.filter(~loose), found)
        if frame.height:
            made_parts.append(work / f"joined-{part:02d}.parquet")
            write_parquet(made_parts[-1], frame, compression="lz4", statistics=False)
        for path in some:
            remove(path)
    if not made_parts:
        raise KarmafunnelError(
            "import",
            needs="requests with a time and an item",
            found=(
                "returns alone"
                if RETURNS in found.set_aside
                else "none: the tables have no requests in common"
            ),
        )
    return made_parts


def reject(found: Found, frame: pl.DataFrame, reason: str, starts: Mapping[Path, int]) -> None:
    """Record cleaned rows as rejected, by their file and row.

    Args:
        starts: number of rows before each file.
    """
    for number, request, item in frame.select("number", "request_id", "item_id").iter_rows():
        path = max((p for p, start in starts.items() if start <= number), key=starts.__getitem__)
        row = number - starts[path] + 1
        found.rejects.add(str(path), row, reason, f"request {request}, item {item}")


def without_gaps(frame: pl.DataFrame, found: Found) -> pl.DataFrame:
    """Positions 1 to n within each request, as where rows between were rejected or set aside."""
    place = pl.col("position").rank("ordinal").over("request_id").cast(pl.Int32)
    moved = frame.filter(pl.col("position") != place)["request_id"].n_unique()
    found.aside("lists with gaps in their positions, which were closed", moved)
    return frame.with_columns(place.alias("position")) if moved else frame


def sessions(frame: pl.DataFrame, gap_minutes: float) -> pl.DataFrame:
    """Split the rows of each user into sessions after inactivity of some minutes."""
    frame = frame.sort("user_id", "ts", "number")
    pause = (pl.col("ts").diff().over("user_id") > gap_minutes * 60_000).fill_null(False)
    number = pause.cast(pl.Int64).cum_sum().over("user_id")
    name = pl.coalesce(
        pl.format("{}-{}", pl.col("user_id"), number), pl.format("r{}", pl.col("number"))
    )
    return frame.with_columns(name.alias("session_id")).with_columns(
        pl.col("session_id").alias("request_id")
    )


def once_an_item(frame: pl.DataFrame, found: Found) -> pl.DataFrame:
    """One row per request and item: clicked or purchased if any of its rows is, with the first
    price shown. Units, less those returned, and the mean price paid per unit are those of its
    purchases alone. Returns and added rows are counted.
    """
    units = pl.col("quantity").fill_null(1)
    returned = pl.col("purchased") & (units < 0)
    bought = pl.col("purchased") & (units > 0)
    key = ["request_id", "item_id"]
    back = frame.select(returned.alias("returned"), bought.any().over(key).alias("bought"))
    found.aside(RETURNS, back.filter(pl.col("returned") & ~pl.col("bought")).height)
    taken = back.filter(pl.col("returned") & pl.col("bought")).height
    found.aside("returns taken off a purchase in the same request", taken)
    alike = alone(frame.filter(~returned), found.map)
    many = alike.height - alike.select(key).n_unique()
    found.aside("rows added to another of the same item and request", many)
    sale = pl.col("purchased") & (pl.col("record") | ~pl.col("record").any())
    priced = sale & ~returned & pl.col("paid").is_not_null()
    paid, weight = pl.col("paid").filter(priced), units.filter(priced)
    known = pl.col("quantity").filter(sale).is_not_null().any()
    merged = (
        "clicked",
        "purchased",
        "record",
        "price",
        "paid",
        "quantity",
        "position",
        "propensity",
    )
    keep = [c for c in frame.columns if c not in (*key, *merged)]
    return (
        frame.group_by(key, maintain_order=True)
        .agg(
            *(pl.col(c).first() for c in keep),
            pl.col("position").min(),
            pl.col("propensity").drop_nulls().first(),
            pl.col("clicked", "purchased", "record").any(),
            pl.col("price").filter(~returned).drop_nulls().first(),
            pl.when(paid.len() > 0).then((paid * weight).sum() / weight.sum()).alias("paid"),
            pl.when(known).then(units.filter(sale).sum()).cast(pl.Int32).alias("quantity"),
        )
        .select(list(FLAT))
    )


def alone(frame: pl.DataFrame, made: ColumnMap) -> pl.DataFrame:
    """The rows that should be the only one of their item and request; those that say what became
    of an item that was shown are joined to it.
    """
    if made.per != "request":
        return frame
    if "event" in made.columns:
        return frame.filter(~pl.col("clicked") & ~pl.col("purchased"))
    if made.has("position"):
        return frame.filter(pl.col("position").is_not_null())
    return frame.clear() if made.orders else frame


def net_of_returns(frame: pl.DataFrame) -> pl.DataFrame:
    """Without purchases that were wholly returned in their request."""
    bought = pl.col("purchased") & (pl.col("quantity").fill_null(1) > 0)
    known = bought | ~pl.col("purchased") | pl.col("clicked") | pl.col("position").is_not_null()
    return frame.filter(known).with_columns(
        bought.alias("purchased"),
        pl.when(bought).then("quantity").alias("quantity"),
        pl.when(bought).then("paid").alias("paid"),
    )


def buckets(parts: Sequence[Path]) -> Iterator[pl.DataFrame]:
    """All rows in time order, in batches; a request is never split between batches."""
    times = np.concatenate([read_table(p, "ts")["ts"].to_numpy() for p in parts])
    many = max(-(-len(times) // BUCKET), 1)
    cuts = (
        np.unique(np.quantile(times, np.linspace(0, 1, many + 1)[1:-1], method="lower"))
        if many > 1
        else np.empty(0, np.int64)
    )
    edges = [LOWEST - 1, *cuts.tolist(), HIGHEST + 1]
    lazy = pl.concat([open_table(path) for path in parts])
    for low, high in pairwise(edges):
        mine = lazy.filter((pl.col("ts") > low) & (pl.col("ts") <= high)).collect(
            engine="streaming"
        )
        if mine.height:
            yield mine.sort("ts", "number")


def write_interactions(found: Found, parts: Sequence[Path], folder: Path) -> pl.DataFrame:
    """Write `requests.parquet` and `exposures.parquet`; returns the items that occur, with the
    first price, title, brand and category of each.
    """
    made = found.map
    source = pl.when(blank("query")).then(pl.lit("browse")).otherwise(pl.lit("search"))
    writers: dict[str, pq.ParquetWriter] = {}
    seen: list[pl.DataFrame] = []
    window = windows_of(parts, made.per)
    price = pl.coalesce("price", "paid").alias("price")
    first = pl.col("price", *OF_ITEMS).drop_nulls().first()
    same = [c for c in FLAT if c not in ("number", "request_id", *OF_ITEMS)]
    try:
        for bucket in buckets(parts):
            if made.per == "event":
                whole = bucket.height
                bucket = bucket.unique(same, keep="first", maintain_order=True)
                found.aside("rows that say the same as another", whole - bucket.height)
                bucket = bucket.with_columns(pl.format("r{}", pl.col("number")).alias("request_id"))
            requests = bucket.unique("request_id", keep="first", maintain_order=True)
            if made.has("user"):
                found.alone += requests["user_id"].null_count()
            visitor = pl.format("visitor of {}", pl.coalesce("session_id", "request_id"))
            requests = requests.with_columns(pl.coalesce("user_id", visitor).alias("user_id"))
            requests = requests.select(
                "request_id",
                "user_id",
                pl.col("ts").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC").cast(TS),
                "query",
                "session_id",
                source.alias("source"),
                window,
            )
            for name, many in requests["source"].value_counts().iter_rows():
                found.sources[name] = found.sources.get(name, 0) + many
            exposures = bucket.select(
                "request_id",
                "item_id",
                "position",
                "propensity",
                "clicked",
                "purchased",
                pl.col("price").alias("price_shown"),
                pl.col("paid").alias("price_paid"),
                "quantity",
            )
            for name, frame in (("requests", requests), ("exposures", exposures)):
                table = conform(frame, name, f"import {made.name}").to_arrow()
                if name not in writers:
                    writers[name] = pq.ParquetWriter(
                        folder / f"{name}.parquet", table.schema, compression="zstd"
                    )
                writers[name].write_table(table.cast(writers[name].schema))
            found.first = min(found.first or HIGHEST, int(bucket["ts"].min()))  # type: ignore[arg-type]
            found.latest = int(bucket["ts"].max())  # type: ignore[arg-type]
            seen.append(bucket.with_columns(price).group_by("item_id").agg(first))
            if len(seen) > 8:
                seen = [pl.concat(seen).group_by("item_id").agg(first)]
    finally:
        for writer in writers.values():
            writer.close()
    items = pl.concat(seen).group_by("item_id").agg(first).sort("item_id")
    return items.with_columns(levels(items["category"], made.category_separator))


def windows_of(parts: Sequence[Path], per: str) -> pl.Expr:
    """The window of each request, by its time."""
    times = []
    for path in parts:
        if per == "event":
            times.append(read_table(path, "ts")["ts"])
        else:
            times.append(read_table(path, "ts", "request_id").unique()["ts"])
    ts = pl.concat(times).sort()
    moments = ts.cast(pl.Datetime("ms"))
    window = assign_windows(moments, pl.repeat(True, ts.len(), eager=True))
    firsts = (
        pl.DataFrame({"window": window, "ts": ts}).group_by("window", maintain_order=True).first()
    )
    starts = dict(firsts.iter_rows())
    expression = pl.lit(next(iter(starts)))
    for name, start in starts.items():
        expression = pl.when(pl.col("ts") >= start).then(pl.lit(name)).otherwise(expression)
    return expression.alias("window")


def items_of(
    found: Found, items: Sequence[tuple[Path, Layout]], known: pl.DataFrame
) -> pl.DataFrame:
    """The catalogue: items of the item table, and items that occur only in interactions."""
    made = found.map
    frames = []
    for path, layout in items:
        decimals: dict[str, str] = {}
        for frame in batches(path, layout, found.rejects):
            found.rows += frame.height
            decimals = decimals or decimals_of(frame, made, "items")
            frames.append(clean_items(frame, found, path, decimals.get("price", made.decimal)))
    if not frames:
        return conform(known, "items", f"import {made.name}")
    table = pl.concat(frames, how="diagonal_relaxed")
    found.aside("items that stand twice", table.height - table["item_id"].n_unique())
    table = table.unique("item_id", keep="first", maintain_order=True)
    table = table.join(known, on="item_id", how="full", coalesce=True, suffix=" seen")
    for name in ("price", *OF_ITEMS):
        if f"{name} seen" in table.columns:
            both = pl.coalesce(name, f"{name} seen")
            table = table.with_columns(both.alias(name)).drop(f"{name} seen")
    return conform(table.sort("item_id"), "items", f"import {made.name}")


def clean_items(frame: pl.DataFrame, found: Found, path: Path, decimal: str) -> pl.DataFrame:
    """The items of a batch; rows without an id are rejected, and prices that are none counted.

    Args:
        decimal: the decimal separator of the prices, where they are text.
    """
    made = found.map
    columns = {role: name for role, name in made.items.items() if name in frame.columns}
    if "item" not in columns:
        raise KarmafunnelError(
            path, needs=f"the column {made.items['item']!r}", found=frame.columns
        )
    item = ids(frame[columns["item"]])
    picked = {"item_id": item}
    for role in ("title", "brand", "description"):
        if role in columns:
            values = frame[columns[role]].cast(pl.String, strict=False).str.strip_chars()
            picked[role] = pl.select(pl.when(values != "").then(values)).to_series()
    if "price" in columns:
        given = frame[columns["price"]].cast(pl.String, strict=False).str.strip_chars()
        prices = frame[columns["price"]]
        read = numbers(prices) if prices.dtype.is_numeric() else numbers(given, decimal)
        there = given.is_not_null() & (given != "")
        fine = ((read >= 0) & read.is_finite()).fill_null(False)
        found.aside("prices of items that are negative or no numbers", int((there & ~fine).sum()))
        price = pl.select(pl.when(fine).then(read)).to_series()
        picked["price"] = of_currency(price, given, None, found)
    if "category" in columns:
        picked["category"] = levels(frame[columns["category"]], made.category_separator)
    missing = item.is_null() | (item == "")
    for i in missing.fill_null(True).arg_true().to_list():
        shown = {c: v for c, v in frame.row(i, named=True).items() if c != ROW}
        found.rejects.add(str(path), int(frame[ROW][i]), "no item", str(shown))
    return pl.DataFrame(picked).filter(~missing)


def levels(values: pl.Series, separator: str) -> pl.Series:
    """The levels of categories as lists, null where there are none."""
    if not isinstance(values.dtype, pl.List):
        values = values.cast(pl.String, strict=False).str.split(separator)
    names = values.cast(pl.List(pl.String)).list.eval(pl.element().str.strip_chars())
    names = names.list.eval(pl.element().filter(pl.element() != ""))
    return pl.select(pl.when(names.list.len() > 0).then(names).alias(values.name)).to_series()


def finish(
    found: Found,
    folder: Path,
    catalogue: pl.DataFrame,
    wants: dict[str, Any],
    given: Mapping[str, Any],
) -> None:
    """Write `log.json`, the map and the rejected rows, and check the log."""
    made = found.map
    lazy = open_table(folder / "exposures.parquet")
    likely = pl.col("propensity").is_not_null()
    facts = (
        lazy.select(
            pl.col("clicked").fill_null(False).any().alias("clicks"),
            pl.col("purchased").fill_null(False).any().alias("purchases"),
            (pl.col("position").is_not_null()).any().alias("positions"),
            likely.any().alias("propensity"),
            (likely | pl.col("position").is_null()).all().alias("each propensity"),
            pl.coalesce("price_paid", "price_shown").is_not_null().any().alias("price"),
        )
        .collect()
        .row(0, named=True)
    )
    asked = (
        open_table(folder / "requests.parquet")
        .select(
            pl.col("query").is_not_null().any().alias("query"),
            (~pl.col("user_id").str.starts_with("visitor of ")).any().alias("users"),
        )
        .collect()
        .row(0, named=True)
    )
    has = {
        "clicks": facts["clicks"],
        "purchases": facts["purchases"],
        "exposures": facts["positions"],
        "propensity": all(facts[x] for x in ("positions", "propensity", "each propensity")),
        "price": facts["price"] or catalogue["price"].is_not_null().any(),
        "text": catalogue["title"].is_not_null().any(),
        "query": asked["query"],
        "users": made.has("user") and asked["users"],
    }
    label = "purchase" if facts["purchases"] and not facts["clicks"] else "click"
    lacks = [LACKS[name] for name, there in has.items() if not there and name in LACKS]
    if facts["propensity"] and not has["propensity"]:
        lacks.insert(0, "a propensity of each item shown, so there are no off-policy estimates")
    if not has["users"] and made.has("session"):
        lacks[-1] = "users: each session is a user of its own"
    aside = dict(found.set_aside)
    for reason, many in found.rejects.reasons.items():
        aside[f"rejected: {reason}"] = many
    meta = complete_meta(
        {
            "name": wants["name"],
            "source": wants["source"],
            "currency": made.currency,
            "label": label,
            "scenario": sorted(found.sources, reverse=True),
            "catalogue": "seen",
            "has": has,
            "lacks": lacks,
            "set_aside": aside,
        }
        | dict(given)
    )
    write_json(folder / "log.json", meta | contents(folder, ("items", "requests", "exposures")))
    seal(folder, "log.json")
    write_text(folder / MAP, marked(made.toml()))
    if found.rejects.rows:
        write_parquet(folder / "rejected.parquet", found.rejects.frame(), compression="zstd")
    try:
        require(Log.open(folder))
    except KarmafunnelError as error:  # the folder is gone by the time that this is read
        told = str(error).partition("; see karmafunnel validate")[0]
        told = told.replace(str(folder), repr(wants["name"]))
        hint = (
            f"requests are one for each {made.per}: --per session, basket or request may be meant"
        )
        raise KarmafunnelError(told, hint=hint) from error


LACKS = {
    "clicks": "clicks",
    "purchases": "purchases",
    "exposures": "lists of what was shown, so there is no AUC on exposures",
    "price": "prices, so there are no figures of money",
    "text": "titles of items",
    "query": "queries",
    "users": "users: every request stands alone",
}
