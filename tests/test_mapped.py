"""A log whose tables are too long to hold gives the same answers as one that is held."""

import json
import tempfile

import numpy as np
import polars as pl
import pytest
from karmafunnel import asof, checks, log, mapped
from karmafunnel.checks import validate
from karmafunnel.errors import KarmafunnelError, NotWrittenError
from karmafunnel.log import Log
from karmafunnel.simulator.measure.describe import describe
from karmafunnel.simulator.report.log_page import plots
from karmafunnel.stages.context import Context
from karmafunnel.stages.recall import HNSW, IVF, IVFPQ, Flat, VectorRecall
from shop import make_shop


@pytest.fixture
def short(monkeypatch):
    """Lets tables of a few rows count as long."""

    def shorten(rows: int) -> None:
        for module in (asof, checks, log, mapped):
            monkeypatch.setattr(module, "LONG", rows)

    return shorten


@pytest.fixture(scope="module", params=["in order", "scrambled"])
def folder(request, tmp_path_factory):
    made = make_shop()
    if request.param == "scrambled":
        at = np.random.default_rng(0).permutation(made.exposures.height)
        made = Log.make(made.items, made.requests, made.exposures[at], made.meta)
    path = tmp_path_factory.mktemp("mapped") / "log"
    made.write(path)
    return path


@pytest.mark.parametrize("rows", [61, 256])
def test_rows_are_the_same_in_a_file_and_in_memory(folder, short, rows):
    held = Log.open(folder).rows
    short(rows)
    opened = Log.open(folder)
    assert opened.rows.equals(held, null_equal=True) and opened.rows.schema == held.schema
    assert opened.rows.n_chunks() == 1
    assert opened.events.equals(Log.open(folder).events)


@pytest.mark.parametrize("kind", ["price", "shown", "looked at", "own shown", "query click"])
def test_timelines_lie_in_files_and_answer_the_same(folder, short, kind):
    held = Log.open(folder).asof.past.timeline(kind)
    short(61)
    long = Log.open(folder).asof.past.timeline(kind)
    for name in ("of", "rank", "starts", "values", "totals", "keys"):
        array = getattr(held, name, None)
        if array is None or len(array) <= 61:
            continue
        other = getattr(long, name)
        assert isinstance(other.base, np.memmap) and other.dtype == array.dtype
        assert np.array_equal(other, array, equal_nan=array.dtype.kind == "f")
    times = np.arange(0, held.rank.max() + 2, 7)
    of = held.of if held.keys is None else held.keys[held.of]
    of, rank = np.repeat(of[:50], len(times)), np.tile(times, len(of[:50]))
    for question in ("before", "last", "mean") if hasattr(held, "values") else ("before",):
        here, there = (getattr(one, question)(of, rank) for one in (held, long))
        assert here.tobytes() == there.tobytes() and here.dtype == there.dtype


def test_an_unknown_id_is_named_whatever_the_piece_it_is_in(tmp_path, short):
    made = make_shop()
    bad = made.exposures.with_columns(
        pl.when(pl.int_range(pl.len()) == pl.len() - 1)
        .then(pl.lit("nobody"))
        .otherwise("item_id")
        .alias("item_id")
    )
    Log.make(made.items, made.requests, bad, made.meta).write(tmp_path / "log")
    short(50)
    with pytest.raises(KarmafunnelError, match=r"items\.parquet.*'nobody'"):
        _ = Log.open(tmp_path / "log").rows


def test_the_past_is_the_same(folder, short):
    def asked() -> list[np.ndarray]:
        opened = Log.open(folder)
        past, rng = opened.asof, np.random.default_rng(1)
        requests = np.sort(rng.integers(0, len(opened.t), 500))
        items = rng.integers(0, opened.n_items, 500)
        found = [past.count(requests, items, what) for what in ("event", "shown", "click")]
        found += [past.own_count(requests, items, what) for what in ("event", "shown")]
        found += [past.price(requests, items), past.mean_position(requests, items)]
        return [*found, past.own_position(requests, items)]

    held = asked()
    short(40)
    for one, other in zip(held, asked(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_describe_and_its_page_are_the_same(folder, short):
    held = Log.open(folder)
    stats, figures = describe(held), plots(held, describe(held))
    short(37)
    opened = Log.open(folder)
    found = describe(opened)
    # the quantiles of a long array are found by another way
    assert json.dumps(found, default=str) == json.dumps(stats, default=str)
    assert json.dumps(plots(opened, found), default=str) == json.dumps(figures, default=str)


@pytest.mark.parametrize("rows", [61, 1000])
def test_checks_find_the_same_rows(tmp_path, short, rows):
    made = make_shop()
    shown, n = made.exposures, made.exposures.height
    at = [0, 5, n // 2, n - 1]
    position = pl.col("position") + pl.int_range(pl.len()).is_in([3, n // 3, n - 2]).cast(pl.Int32)
    item = pl.when(pl.int_range(pl.len()) % 31 == 7).then(pl.lit("?")).otherwise("item_id")
    request = pl.when(pl.int_range(pl.len()) % 47 == 9).then(pl.lit("!")).otherwise("request_id")
    acted = pl.int_range(pl.len()).is_in([11, n // 4])
    spoilt = pl.concat([shown, shown[at]]).with_columns(
        item.alias("item_id"),
        request.alias("request_id"),
        pl.when(acted).then(None).otherwise(position).alias("position"),
        (pl.col("clicked") | acted).alias("clicked"),
    )
    Log.make(made.items, made.requests, spoilt, made.meta).write(tmp_path / "log")
    held = validate(tmp_path / "log")
    failed = {check.name for check in held if check.status == "FAIL"}
    names = {"duplicate pairs", "unknown items", "unknown requests", "positions", "unlisted truth"}
    assert names <= failed
    short(rows)
    assert validate(tmp_path / "log") == held


def test_quantiles_of_a_long_array_are_those_of_numpy(short):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 1e3, 1001), np.round(rng.random(640), 1), np.array([-0.5, 2.0, 2.0])]
    shares = [0.0, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0]
    wanted = [np.quantile(array, shares).tolist() for array in arrays]
    short(2)
    assert [mapped.quantiles(array, shares) for array in arrays] == wanted


def test_mapped_frames_hold_every_type_and_missing_values():
    frame = pl.DataFrame(
        {
            "whole": pl.Series([1, None, 3] * 7, dtype=pl.Int32),
            "real": [None, 0.5, float("nan")] * 7,
            "flag": [True, False, None] * 7,
            "text": ["a", None, "a longer text than twelve letters"] * 7,
        }
    )
    parts = [frame[:5], frame[5:5], frame[5:16], frame[16:]]
    assert mapped.mapped(parts).equals(frame, null_equal=True)
    empty = mapped.mapped([frame[:0]])
    assert empty.height == 0 and empty.schema == frame.schema


def test_a_folder_that_takes_no_file_is_named(tmp_path, short, monkeypatch):
    """Gone before it is written to, or full in the middle of a column."""
    short(10)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    frame = pl.DataFrame({"whole": np.arange(100)})
    for write in (lambda: mapped.mapped([frame]), lambda: mapped.mapped_array(np.arange(100))):
        with pytest.raises(NotWrittenError, match=r"temporary files in .*gone: needs room .*TMPDIR"):
            write()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    for write in (lambda: mapped.mapped([frame]), lambda: mapped.mapped_array(np.arange(100))):
        with pytest.raises(NotWrittenError, match="found No space left on device"):
            write()


# -- what must be held and does not fit ------------------------------------------------------------


@pytest.mark.parametrize("table", ["items", "requests", "exposures"])
def test_a_table_that_does_not_fit_is_refused_with_what_it_needs(folder, monkeypatch, table):
    opened = Log.open(folder)
    monkeypatch.setattr("karmafunnel.bounds.memory", lambda: 1000)
    with pytest.raises(KarmafunnelError) as caught:
        getattr(opened, table)
    assert f"the table {table}" in str(caught.value) and "karmafunnel sample" in str(caught.value)


@pytest.mark.parametrize("index", [Flat(), IVF(nlist=1), IVFPQ(nlist=1, m=2), HNSW()])
def test_an_index_that_does_not_fit_is_refused(monkeypatch, index):
    class Vectors:
        def items(self) -> np.ndarray:
            return np.ones((made.n_items, 4), dtype=np.float32)

    made = make_shop()
    context = Context(made, {"v": Vectors()}, made.meta["label"])  # type: ignore[dict-item]
    monkeypatch.setattr("karmafunnel.bounds.memory", lambda: 1000)
    with pytest.raises(KarmafunnelError, match=r"recall \(VectorRecall\).*vectors .* index "):
        VectorRecall("v", index=index).fit(context, None)
