"""Whatever `Log.make` takes it holds as it was given; the rest is refused by table, row and column:
every type into every column.
"""

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from karmafunnel.checks import require
from karmafunnel.errors import KarmafunnelError
from karmafunnel.layout import TABLES, expected, kind_of
from karmafunnel.log import Log

pytestmark = pytest.mark.slow

START = datetime(2026, 1, 1, tzinfo=UTC)
REFUSED = object()
COLUMNS = [(table, name, dtype) for table in TABLES for name, dtype in expected(table).items()]


def frames(rows: int = 3) -> dict[str, pl.DataFrame]:
    ids = [str(row) for row in range(rows)]
    ts = [START + timedelta(hours=row) for row in range(rows)]
    return {
        "items": pl.DataFrame({"item_id": ids}),
        "requests": pl.DataFrame(
            {"request_id": ids, "user_id": ids, "ts": ts, "source": ["search"] * rows}
        ),
        "exposures": pl.DataFrame({"request_id": ids, "item_id": ids}),
    }


def made_with(table: str, values: pl.Series) -> pl.Series:
    """The column as the log holds it."""
    given = frames(len(values))
    given[table] = given[table].with_columns(values)
    if table == "requests" and values.name == "source":
        given[table] = given[table].with_columns(window=pl.lit("W1"))
    log = Log.make(**given, meta={"name": "made"})
    return getattr(log, table)[values.name]


# -- what is right, told without polars ------------------------------------------------------------


def right(kind: str, value: Any) -> Any:
    """What a column of this kind is to hold for a value, or REFUSED."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    whole = (
        number and (not isinstance(value, float) or math.isfinite(value)) and value == int(value)
    )
    if kind == "text":
        if isinstance(value, str):
            return value
        fits = (
            whole
            and not isinstance(value, Decimal)
            and (isinstance(value, int) or abs(value) <= 2**53)
        )
        return str(int(value)) if fits else REFUSED
    if kind == "true or false":
        return bool(value) if (isinstance(value, bool) or number) and value in (0, 1) else REFUSED
    if kind == "whole numbers":
        return int(value) if whole else REFUSED
    if kind == "numbers":
        return (
            float(value)
            if number and (isinstance(value, float) or as_given(float(value), value))
            else REFUSED
        )
    assert kind == "times"
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime):
        return REFUSED
    value = value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)
    return REFUSED if value.microsecond % 1000 or value.year == 1970 or value.year > 2200 else value


def as_given(made: float, value: int | Decimal) -> bool:
    if isinstance(value, int):
        return made == value
    return round(Decimal(made), 2) == value


WHOLE = [pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt64]
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, -1, 127, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**62]),
    st.integers(-(2**63), 2**63 - 1),
)
FLOATS = st.one_of(
    st.sampled_from(
        [
            0.0,
            -0.0,
            1.0,
            2.0,
            0.6,
            19.0,
            math.nan,
            math.inf,
            -math.inf,
            2.0**53,
            2.0**60,
            1e300,
            3e9,
            0.1,
        ]
    ),
    st.floats(),
)
TIMES = st.datetimes(datetime(1960, 1, 1), datetime(2240, 1, 1)).map(
    lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000)
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def bounded(dtype: Any) -> st.SearchStrategy[int]:
    low, high = pl.select(dtype.min()).item(), pl.select(dtype.max()).item()
    return st.one_of(st.sampled_from([0, 1, 2, high, max(low, -1)]), st.integers(low, high))


def zoned(strategy: st.SearchStrategy[datetime], zone: Any) -> st.SearchStrategy[datetime]:
    return strategy.map(lambda t: t.replace(tzinfo=zone))


# Every type that may be given, and its values. The kind of column that takes it: those that say so
# in `layout`, and no other.
GIVEN: list[tuple[Any, st.SearchStrategy[Any], tuple[str, ...]]] = [
    (pl.String, TEXTS, ("text",)),
    (pl.Categorical, TEXTS, ("text",)),
    (pl.Enum(["a", "b", "é"]), st.sampled_from(["a", "b", "é"]), ("text",)),
    (pl.Boolean, st.booleans(), ("true or false",)),
    *[
        (dtype, bounded(dtype), ("text", "true or false", "whole numbers", "numbers"))
        for dtype in WHOLE
    ],
    (pl.Float64, FLOATS, ("text", "true or false", "whole numbers", "numbers")),
    (pl.Float32, st.floats(width=32), ("text", "true or false", "whole numbers", "numbers")),
    (pl.Decimal(12, 2), st.decimals(-(10**6), 10**6, places=2), ("whole numbers", "numbers")),
    (pl.Date, st.dates(date(1960, 1, 1), date(2240, 1, 1)), ("times",)),
    (pl.Datetime("ms"), TIMES, ("times",)),
    (pl.Datetime("us"), st.datetimes(datetime(1960, 1, 1), datetime(2240, 1, 1)), ("times",)),
    (pl.Datetime("ns"), TIMES, ("times",)),
    (pl.Datetime("us", "UTC"), zoned(TIMES, UTC), ("times",)),
    (pl.Datetime("ms", "Asia/Kolkata"), zoned(TIMES, timezone(timedelta(hours=5.5))), ("times",)),
    (pl.Duration("ms"), st.timedeltas(timedelta(0), timedelta(days=1)), ()),
    (pl.Binary, st.binary(max_size=3), ()),
    (pl.Time, st.times(), ()),
    (pl.Object, st.integers(), ()),
    (pl.List(pl.List(pl.String)), st.lists(st.lists(TEXTS, max_size=2), max_size=2), ()),
    (pl.Struct({"a": pl.Int64}), st.fixed_dictionaries({"a": st.integers(0, 9)}), ()),
]


def column(name: str, values: list[Any], dtype: Any) -> pl.Series:
    if dtype == pl.Datetime("ms", "Asia/Kolkata"):
        return pl.Series(
            name, [v and v.astimezone(UTC) for v in values], pl.Datetime("ms", "UTC")
        ).dt.convert_time_zone("Asia/Kolkata")
    return pl.Series(name, values, dtype, strict=True)


OF_KIND = {
    kind: [c for c in COLUMNS if kind_of(c[2]) == kind]
    for kind in sorted({kind_of(dtype) for _, _, dtype in COLUMNS})
}


@pytest.mark.parametrize("kind", OF_KIND)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_column_holds_what_it_was_given_or_is_refused(kind, data):
    table, name, dtype = data.draw(st.sampled_from(OF_KIND[kind]))
    given_type, strategy, takers = data.draw(st.sampled_from(GIVEN))
    null = st.nothing() if name == "ts" or (table, name) == ("requests", "window") else st.none()
    values = data.draw(st.lists(st.one_of(null, strategy), min_size=3, max_size=3))
    series = column(name, values, given_type)
    held = series.to_list() if given_type != pl.Decimal(12, 2) else values
    if kind not in takers:
        with pytest.raises(
            KarmafunnelError, match=rf"log made: {table}: column '{name}' needs .*, found "
        ):
            made_with(table, series)
        return
    wanted = [right(kind, value) for value in held]
    if kind == "whole numbers":
        most = pl.select(dtype.max()).item()
        wanted = [
            REFUSED if isinstance(w, int) and not -most - 1 <= w <= most else w for w in wanted
        ]
    if REFUSED in wanted:
        row = wanted.index(REFUSED)
        with pytest.raises(
            KarmafunnelError,
            match=rf"log made: {table}: row {row}: column '{name}' needs .*, found ",
        ):
            made_with(table, series)
        return
    if name == "window" and wanted == [None] * 3:
        return  # windows are cut where none is given
    found = made_with(table, series)
    assert found.dtype == dtype
    if name == "ts":
        wanted = sorted(wanted)
    assert found.to_list() == wanted


LISTS = {"category", "attributes", "filters", "context"}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_lists_hold_what_they_were_given(data):
    table, name, _ = data.draw(st.sampled_from([c for c in COLUMNS if c[1] in LISTS]))
    inner, part = data.draw(
        st.sampled_from(
            [(pl.String, TEXTS), (pl.Categorical, TEXTS), (pl.Int64, st.integers(-9, 10**15))]
        )
    )
    values = data.draw(
        st.lists(
            st.one_of(st.none(), st.lists(st.one_of(st.none(), part), max_size=3)),
            min_size=3,
            max_size=3,
        )
    )
    found = made_with(table, pl.Series(name, values, pl.List(inner)))
    assert found.to_list() == [v and [None if x is None else str(x) for x in v] for v in values]
    for wrong in (
        pl.Series(name, ["a", "b", "c"]),
        pl.Series(name, [[0.5]] * 3),
        pl.Series(name, [[True]] * 3),
    ):
        with pytest.raises(
            KarmafunnelError, match=rf"{table}: column '{name}' needs lists of texts, found "
        ):
            made_with(table, wrong)


def test_vectors_are_rounded_to_the_nearest_and_refused_beyond():
    held = made_with("items", pl.Series("visual", [[0.1, 2.0], None, [math.nan, math.inf]]))
    assert held.dtype == pl.List(pl.Float32)
    assert held[0].to_list() == [pytest.approx(0.1, rel=1e-7), 2.0]
    assert held[1] is None
    held = made_with("items", pl.Series("visual", [[1, 2]] * 3, pl.Array(pl.Int16, 2)))
    assert held.to_list() == [[1.0, 2.0]] * 3
    with pytest.raises(
        KarmafunnelError,
        match=r"items: row 1: column 'visual' needs lists of numbers, found \[1\.0, 1e\+300\]",
    ):
        made_with("items", pl.Series("visual", [[0.1, 2.0], [1.0, 1e300], None]))


# -- as people bring it ----------------------------------------------------------------------------


def test_clicks_of_pandas_are_not_all_clicks():
    given = frames(4)
    clicked = pl.Series([1.0, math.nan, 0.0, None])
    held = Log.make(
        given["items"],
        given["requests"],
        given["exposures"].with_columns(clicked=clicked),
        {"name": "p"},
    ).exposures
    assert held["clicked"].to_list() == [True, None, False, None]
    for wrong in (0.5, 2.0, math.inf, -1.0):
        with pytest.raises(
            KarmafunnelError,
            match=(
                r"log made: exposures: row 2: column 'clicked' needs true or false .*found "
                rf".*{wrong}"
            ),
        ):
            made_with("exposures", pl.Series("clicked", [1.0, 0.0, wrong]))


def test_ids_of_pandas_match_on_both_sides():
    """A column of whole ids with a missing one is a column of floats there."""
    given = frames(3)
    items = pl.DataFrame({"item_id": [19, 20, 21]})
    exposures = given["exposures"].with_columns(item_id=pl.Series([19.0, 21.0, 20.0]))
    requests = given["requests"].with_columns(user_id=pl.Series([7.0, 8.0, 7.0]))
    log = Log.make(items, requests, exposures, {"name": "p"})
    assert log.items["item_id"].to_list() == ["19", "20", "21"] and log.exposures[
        "item_id"
    ].to_list() == ["19", "21", "20"]
    assert log.rows["item"].to_list() == [0, 2, 1] and log.requests["user_id"].to_list() == [
        "7",
        "8",
        "7",
    ]
    with pytest.raises(
        KarmafunnelError, match=r"items: row 1: column 'item_id' needs texts.*found 20\.5"
    ):
        Log.make(pl.DataFrame({"item_id": [19.0, 20.5, 21.0]}), requests, exposures, {"name": "p"})


def test_units_are_not_cut_to_nothing():
    with pytest.raises(
        KarmafunnelError,
        match=r"log made: exposures: row 1: column 'quantity' needs whole numbers, found 0\.6",
    ):
        made_with("exposures", pl.Series("quantity", [1.0, 0.6, 2.0]))
    with pytest.raises(
        KarmafunnelError,
        match=r"exposures: row 0: column 'quantity' needs whole numbers.*found 3000000000",
    ):
        made_with("exposures", pl.Series("quantity", [3_000_000_000, 1, 1]))


@pytest.mark.parametrize(
    ("number", "unit"),
    [(1_767_225_600, "s"), (1_767_225_600_000, "ms"), (1_767_225_600_000_000, "us")],
)
def test_numbers_are_no_times_and_the_unit_is_told(number, unit):
    advice = rf'polars\.from_epoch\(column, time_unit="{unit}"\)'
    said = rf"column 'ts' needs dates with times.*found Int64, in row 0 {number}: {advice}"
    with pytest.raises(KarmafunnelError, match=said):
        made_with("requests", pl.Series("ts", [number] * 3))
    assert (
        made_with("requests", pl.from_epoch(pl.Series("ts", [number] * 3), time_unit=unit))[0]
        == START
    )
    with pytest.raises(
        KarmafunnelError,
        match=r"column 'ts' needs dates with times.*\.str\.to_datetime\(\) makes times of it",
    ):
        made_with("requests", pl.Series("ts", ["2026-01-01"] * 3))


@pytest.mark.parametrize(
    "number", [1_767_225_600, 1_767_225_600_000_000, 0, 1_767_225_600_000_000_000]
)
def test_times_in_the_wrong_unit_are_refused(number):
    ts = pl.Series("ts", [number] * 3).cast(pl.Datetime("ms", "UTC"))
    with pytest.raises(
        KarmafunnelError,
        match=r"requests: row 0: column 'ts' .*: epoch seconds read as milliseconds end up in 1970",
    ):
        made_with("requests", ts)


def test_times_finer_than_milliseconds_are_no_others():
    ts = pl.Series("ts", [START, START + timedelta(microseconds=1500), START])
    with pytest.raises(
        KarmafunnelError,
        match=r"row 1: column 'ts' needs dates with times to the millisecond.*00:00\.001500",
    ):
        made_with("requests", ts)


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"catalogue": "foo"}, "catalogue needs one of 'published', 'seen', found 'foo'"),
        ({"time": "foo"}, "time needs one of 'clock', 'order', found 'foo'"),
        ({"label": "like"}, "label needs .*found 'like'"),
        ({"scenario": "search"}, "scenario needs .*found 'search'"),
        ({"has": {"click": True}}, "has.click needs .*found 'click'"),
        ({"has": {"clicks": "yes"}}, "has needs"),
        ([], "needs an object, found 'list'"),
    ],
)
def test_what_is_said_of_a_log_is_checked_at_once(meta, said):
    with pytest.raises(KarmafunnelError, match=said):
        Log.make(**frames(), meta=meta)


def test_what_is_made_and_sound_is_computed_with():
    given = frames(8)
    exposures = given["exposures"].with_columns(clicked=True, position=1)
    has = dict.fromkeys(("clicks", "exposures", "users"), True)
    require(Log.make(given["items"], given["requests"], exposures, {"name": "sound", "has": has}))
    with pytest.raises(
        KarmafunnelError,
        match=r"^log odd fails the check 'positions': 8 lists whose positions are not 1 to n",
    ):
        require(
            Log.make(
                given["items"],
                given["requests"],
                exposures.with_columns(position=0),
                {"name": "odd", "has": has},
            )
        )
