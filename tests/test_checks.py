"""Checks on a hand-made log: the good one passes; then it is broken in one way at a time, and
exactly that check says so.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from karmafunnel import files
from karmafunnel.checks import CHECKS, Check, require, validate
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.layout import CAPABILITIES, MAY_HAVE, META
from karmafunnel.log import Catalogue, Log, read, sha256
from karmafunnel.simulator.commands.data import print_checks
from karmafunnel.simulator.replay.recipe import Recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.stage import Funnel
from rich.console import Console

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOWS = ["W1"] * 6 + ["W2a", "W2b", "W3", "W3"]
OF_THE_LOG = 37  # how many checks there are


def good_log(**meta: Any) -> Log:
    """Ten requests, a day apart, each showing i0, i1, i2 of which i0 is clicked and bought; r9 is
    an invoice without a list.
    """
    items = pl.DataFrame(
        {
            "item_id": ["i0", "i1", "i2", "i3"],
            "title": ["red lamp", "blue lamp", "red chair", None],
            "brand": [None, None, None, "Oak & Son"],
            "category": [["home", "lamps"], ["home", "lamps"], ["home"], ["home"]],
            "price": [9.0, 8.0, None, 30.0],
            "attributes": [["colour=red"], ["colour=blue"], ["colour=red"], []],
            "image": ["images/i0.png", "images/i1.png", None, None],
            "visual": [[0.5, 1.0], [0.0, 1.0], None, [1.0, 0.0]],
            "available_from": pl.Series([None, None, START, None], dtype=pl.Datetime("ms", "UTC")),
        }
    )
    requests = pl.DataFrame(
        {
            "request_id": [f"r{r}" for r in range(10)],
            "user_id": [f"u{r % 3}" for r in range(10)],
            "ts": [START + timedelta(days=r + 1) for r in range(10)],
            "query": ["lamp"] * 8 + [None, None],
            "filters": [["colour=red"]] + [[]] * 9,
            "source": ["search"] * 8 + ["browse", "invoice"],
            "window": WINDOWS,
        }
    )
    shown = [
        {
            "request_id": f"r{r}",
            "item_id": f"i{p}",
            "position": p + 1,
            "clicked": p == 0,
            "purchased": p == 0,
            "price_shown": 9.5,
            "price_paid": 9.0 if p == 0 else None,
            "quantity": 1 if p == 0 else None,
            "propensity": 0.5,
            "stage": "rank",
        }
        for r in range(9)
        for p in range(3)
    ]
    invoice = {
        "request_id": "r9",
        "item_id": "i3",
        "purchased": True,
        "price_paid": 30.0,
        "quantity": 2,
    }
    has = dict.fromkeys(CAPABILITIES, True)
    return Log.make(
        items,
        requests,
        pl.DataFrame([*shown, invoice]),
        {"name": "good", "scenario": ["search", "browse"], "label": "purchase", "has": has}
        | {"stages": ["recall", "rank"]}
        | meta,
    )


def write(log: Log | Catalogue, folder: Path) -> Path:
    log.write(folder)
    (folder / "images").mkdir()
    for name in ("i0", "i1"):
        (folder / "images" / f"{name}.png").write_bytes(b"png")
    return folder


def answers(checks: list[Check], status: str) -> list[str]:
    return [check.name for check in checks if check.status == status]


# -- ways to break a log ---------------------------------------------------------------------------


Breaker = Callable[[Path], None]


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of log.json; None takes one away."""
    path = folder / "log.json"
    meta = json.loads(path.read_text()) | changes
    path.write_text(
        json.dumps({k: v for k, v in meta.items() if k not in changes or v is not None})
    )
    files.seal(folder, "log.json")


def seal(folder: Path, table: str, height: int) -> None:
    """Make log.json agree with a changed table, so that only the change itself is at fault."""
    meta = json.loads((folder / "log.json").read_text())
    path = folder / f"{table}.parquet"
    edit(
        folder,
        counts=meta["counts"] | {table: height},
        checksums=meta["checksums"] | {path.name: sha256(path)},
    )


def rewrite(table: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Breaker:
    def broken(folder: Path) -> None:
        frame = change(pl.read_parquet(folder / f"{table}.parquet"))
        frame.write_parquet(folder / f"{table}.parquet")
        seal(folder, table, frame.height)

    return broken


def put(table: str, column: str, row: int, value: Any) -> Breaker:
    """Another value in one place."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        values = frame[column].to_list()
        values[row] = value
        return frame.with_columns(
            pl.Series(column, values, dtype=frame.schema[column], strict=False)
        )

    return rewrite(table, change)


def drop(*names: str) -> Breaker:
    def broken(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return broken


def cut(table: str) -> Breaker:
    """Half of a file, as an interrupted copy leaves it."""

    def broken(folder: Path) -> None:
        path = folder / f"{table}.parquet"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        seal(folder, table, 0)

    return broken


def written_anew(table: str) -> Breaker:
    """The same rows in other bytes, log.json as it was."""

    def broken(folder: Path) -> None:
        pl.read_parquet(folder / f"{table}.parquet").write_parquet(
            folder / f"{table}.parquet", compression="snappy"
        )

    return broken


def damage(table: str, column: str) -> Breaker:
    """One page of a column overwritten, the footer whole."""

    def broken(folder: Path) -> None:
        path = folder / f"{table}.parquet"
        file = pq.ParquetFile(path)
        chunk = file.metadata.row_group(0).column(file.schema_arrow.names.index(column))
        raw = bytearray(path.read_bytes())
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        raw[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
        path.write_bytes(raw)
        seal(folder, table, file.metadata.num_rows)

    return broken


def bad_bytes(table: str, column: str, row: int, nested: bool = False) -> Breaker:
    """Latin-1 bytes in a column that says it holds text, as a careless writer leaves them."""

    def broken(folder: Path) -> None:
        path = folder / f"{table}.parquet"
        found = pq.read_table(path)
        values = found[column].to_pylist()
        raw = [
            [b"caf\xe9"] if nested and i == row else b"caf\xe9" if i == row else None
            for i in range(len(values))
        ]
        flat = pa.array([v[0] if isinstance(v, list) else v for v in raw], pa.binary()).cast(
            pa.large_binary()
        )
        # no cast: it would look at the bytes
        text = pa.Array.from_buffers(pa.large_string(), len(flat), flat.buffers())
        if nested:
            offsets = pa.array(range(len(flat) + 1), pa.int64())
            text = pa.LargeListArray.from_arrays(offsets, text)
        position = found.schema.names.index(column)
        pq.write_table(found.set_column(position, column, text), path)
        seal(folder, table, len(values))

    return broken


def text_instead(name: str, text: str) -> Breaker:
    def broken(folder: Path) -> None:
        (folder / name).write_text(text)
        if name != "log.json":
            seal(folder, name.removesuffix(".parquet"), 0)
        files.seal(folder, "log.json")

    return broken


def respaced(folder: Path) -> None:
    """The same values in other bytes."""
    (folder / "log.json").write_text((folder / "log.json").read_text() + " ")


def keys(**changes: Any) -> Breaker:
    return lambda folder: edit(folder, **changes)


def has(**capabilities: Any) -> Breaker:
    def broken(folder: Path) -> None:
        edit(folder, has=json.loads((folder / "log.json").read_text())["has"] | capabilities)

    return broken


def cast(table: str, column: str, dtype: Any) -> Breaker:
    return rewrite(table, lambda frame: frame.with_columns(pl.col(column).cast(dtype)))


def another_row(table: str, row: int, **changes: Any) -> Breaker:
    """One row once more, a little changed."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        copy = frame[row].with_columns(
            **{k: pl.lit(v, dtype=frame.schema[k]) for k, v in changes.items()}
        )
        return pl.concat([frame, copy])

    return rewrite(table, change)


def in_thousandths(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(ts=(pl.col("ts").to_physical() // 1000).cast(frame.schema["ts"]))


def both(*breakers: Breaker) -> Breaker:
    def broken(folder: Path) -> None:
        for breaker in breakers:
            breaker(folder)

    return broken


def swap_times(frame: pl.DataFrame) -> pl.DataFrame:
    ts = frame["ts"].to_list()
    ts[2], ts[3] = ts[3], ts[2]
    return frame.with_columns(pl.Series("ts", ts, dtype=frame.schema["ts"]))


def without_text(but: str = "") -> Breaker:
    """Blank titles and nothing else, but for one item."""
    kept = pl.col("item_id") == but
    others = [pl.when(kept).then(name) for name in ("brand", "category", "attributes")]
    title = pl.when(kept).then("title").otherwise(pl.lit(" ")).alias("title")
    return rewrite("items", lambda frame: frame.with_columns(title, *others))


BROKEN: list[tuple[str, str, Breaker, dict[str, Any]]] = [
    # name of the case, the check that must fail, how the log is broken, what the first example must
    # say
    ("no log.json", "log.json", drop("log.json"), {"file": "log.json"}),
    ("log.json is no JSON", "log.json", text_instead("log.json", "{'name': 1"), {"needed": "JSON"}),
    ("log.json is a list", "log.json", text_instead("log.json", "[]"), {"found": "list"}),
    (
        "a key is missing",
        "log.json",
        keys(catalogue=None),
        {"key": "catalogue", "found": "nothing"},
    ),
    ("a fact is missing", "facts", keys(licence=None), {"key": "licence", "found": "nothing"}),
    ("no such time", "log.json", keys(time="clocks"), {"key": "time", "found": "clocks"}),
    ("unknown capability", "log.json", has(smell=True), {"key": "has.smell"}),
    ("capability neither true nor false", "log.json", has(text="yes"), {"key": "has"}),
    (
        "label without its capability",
        "log.json",
        has(purchases=False),
        {"key": "label", "needed": "has.purchases"},
    ),
    ("no scenario", "log.json", keys(scenario=[]), {"key": "scenario"}),
    ("no exposures file", "tables", drop("exposures.parquet"), {"file": "exposures.parquet"}),
    (
        "no tables but items",
        "tables",
        drop("exposures.parquet", "requests.parquet"),
        {"file": "requests.parquet"},
    ),
    ("truncated", "readable", cut("requests"), {"file": "requests.parquet"}),
    (
        "no Parquet",
        "readable",
        text_instead("items.parquet", "item_id\ni0\n"),
        {"file": "items.parquet"},
    ),
    ("empty file", "readable", text_instead("items.parquet", ""), {"file": "items.parquet"}),
    (
        "damaged page",
        "readable",
        damage("exposures", "price_shown"),
        {"file": "exposures.parquet", "column": "price_shown"},
    ),
    (
        "text not UTF-8",
        "utf-8",
        bad_bytes("items", "title", 2),
        {"file": "items.parquet", "column": "title", "row": 2, "value": r"b'caf\xe9'"},
    ),
    (
        "list not UTF-8",
        "utf-8",
        bad_bytes("requests", "filters", 4, nested=True),
        {"column": "filters", "row": 4},
    ),
    ("id not UTF-8", "utf-8", bad_bytes("items", "item_id", 1), {"column": "item_id", "row": 1}),
    (
        "missing column",
        "columns",
        rewrite("exposures", lambda x: x.drop("quantity")),
        {"file": "exposures.parquet", "column": "quantity"},
    ),
    (
        "wrong type",
        "types",
        cast("exposures", "price_paid", pl.String),
        {"column": "price_paid", "found": "String"},
    ),
    (
        "bytes for text",
        "types",
        cast("items", "title", pl.Binary),
        {"column": "title", "found": "Binary"},
    ),
    ("naive times", "types", cast("requests", "ts", pl.Datetime("ms")), {"column": "ts"}),
    (
        "miscounted",
        "counts",
        keys(counts={"items": 4, "requests": 11, "exposures": 28}),
        {"file": "requests.parquet", "needed": 11, "found": 10},
    ),
    ("another file", "checksums", written_anew("items"), {"file": "items.parquet"}),
    ("another log.json", "checksums", respaced, {"file": "log.json"}),
    ("no rows", "rows", rewrite("items", lambda x: x.clear()), {"file": "items.parquet"}),
    (
        "item without id",
        "ids",
        another_row("items", 3, item_id=None),
        {"file": "items.parquet", "row": 4},
    ),
    (
        "blank id",
        "ids",
        another_row("requests", 9, request_id=" "),
        {"file": "requests.parquet", "row": 10},
    ),
    (
        "item twice",
        "duplicate items",
        another_row("items", 1),
        {"row": 4, "item_id": "i1", "times": 2},
    ),
    (
        "request twice",
        "duplicate requests",
        another_row("requests", 9),
        {"row": 10, "request_id": "r9"},
    ),
    (
        "item twice in a list",
        "duplicate pairs",
        another_row("exposures", 4, position=4),
        {"row": 28, "request_id": "r1", "item_id": "i1"},
    ),
    (
        "unknown item",
        "unknown items",
        put("exposures", "item_id", 5, "i9"),
        {"file": "exposures.parquet", "row": 5, "request_id": "r1", "item_id": "i9"},
    ),
    (
        "unknown request",
        "unknown requests",
        put("exposures", "request_id", 27, "r99"),
        {"row": 27, "request_id": "r99", "item_id": "i3"},
    ),
    (
        "positions with a gap",
        "positions",
        put("exposures", "position", 8, 4),
        {"request_id": "r2", "rows": 3, "last": 4},
    ),
    (
        "positions from 0",
        "positions",
        put("exposures", "position", 0, 0),
        {"request_id": "r0", "first": 0},
    ),
    (
        "one place twice",
        "positions",
        put("exposures", "position", 7, 1),
        {"request_id": "r2", "different": 2},
    ),
    (
        "bought though not shown",
        "unlisted truth",
        another_row("exposures", 27, request_id="r3"),
        {"row": 28, "request_id": "r3", "item_id": "i3"},
    ),
    (
        "shown, click unknown",
        "clicks",
        put("exposures", "clicked", 1, None),
        {"row": 1, "request_id": "r0", "item_id": "i1"},
    ),
    (
        "certain and more",
        "propensity",
        put("exposures", "propensity", 3, 1.5),
        {"row": 3, "item_id": "i0", "propensity": 1.5},
    ),
    ("impossible but shown", "propensity", put("exposures", "propensity", 3, 0.0), {"row": 3}),
    ("propensity unknown", "propensity", put("exposures", "propensity", 3, None), {"row": 3}),
    (
        "negative list price",
        "prices",
        put("items", "price", 1, -8.0),
        {"file": "items.parquet", "row": 1, "item_id": "i1", "price": -8.0},
    ),
    (
        "NaN paid",
        "prices",
        put("exposures", "price_paid", 3, float("nan")),
        {"row": 3, "request_id": "r1", "item_id": "i0", "price_paid": "nan"},
    ),
    (
        "infinite price",
        "prices",
        put("exposures", "price_shown", 4, float("inf")),
        {"row": 4, "price_shown": "inf"},
    ),
    (
        "negative quantity",
        "quantities",
        put("exposures", "quantity", 27, -2),
        {"row": 27, "request_id": "r9", "item_id": "i3", "quantity": -2},
    ),
    ("bought none", "quantities", put("exposures", "quantity", 0, 0), {"row": 0}),
    ("no time", "timestamps", put("requests", "ts", 4, None), {"row": 4, "request_id": "r4"}),
    (
        "time runs backwards",
        "time order",
        rewrite("requests", swap_times),
        {"row": 3, "request_id": "r3"},
    ),
    (
        "unknown window",
        "window names",
        put("requests", "window", 4, "W2"),
        {"row": 4, "window": "W2"},
    ),
    (
        "windows out of order",
        "window order",
        put("requests", "window", 9, "W1"),
        {"row": 9, "request_id": "r9", "window": "W1"},
    ),
    (
        "window cut inside a timestamp",
        "window order",
        put("requests", "ts", 8, START + timedelta(days=8)),
        {"row": 8, "window": "W3"},
    ),
    (
        "epoch seconds",
        "years",
        both(
            rewrite("requests", in_thousandths),
            rewrite("items", lambda x: x.drop("available_from")),
        ),
        {"row": 0, "request_id": "r0", "ms since 1970": 1_767_312_000},
    ),
    (
        "microseconds",
        "years",
        rewrite(
            "requests",
            lambda x: x.with_columns(ts=(pl.col("ts").to_physical() * 1000).cast(x.schema["ts"])),
        ),
        {"row": 0, "request_id": "r0"},
    ),
    (
        "sold before it was there",
        "availability",
        put("items", "available_from", 1, START + timedelta(days=1, hours=1)),
        {"request_id": "r0", "item_id": "i1"},
    ),
    ("no filters at all", "claims", put("requests", "filters", 0, []), {"key": "has.filters"}),
    (
        "scenario nobody asks for",
        "scenario",
        keys(scenario=["search", "browse", "feed"]),
        {"source": "feed"},
    ),
    (
        "a stage that production does not have",
        "stages",
        put("exposures", "stage", 1, "rerank"),
        {"row": 1, "stage": "rerank"},
    ),
    (
        "stages without their order",
        "stages",
        keys(stages=None),
        {"key": "stages"},
    ),
    ("no item with a text", "text", without_text(), {"row": 0, "item_id": "i0"}),
    (
        "search without a query",
        "query",
        put("requests", "query", 3, " "),
        {"row": 3, "request_id": "r3"},
    ),
    (
        "request without a user",
        "users",
        put("requests", "user_id", 6, None),
        {"row": 6, "request_id": "r6"},
    ),
    (
        "image not there",
        "images",
        drop("images/i1.png"),
        {"row": 1, "item_id": "i1", "image": "images/i1.png"},
    ),
    (
        "image out of the folder",
        "images",
        put("items", "image", 0, "/etc/passwd"),
        {"item_id": "i0"},
    ),
    (
        "vector too short",
        "visual",
        put("items", "visual", 3, [1.0]),
        {"row": 3, "item_id": "i3", "numbers": 1},
    ),
    (
        "vector with NaN",
        "visual",
        put("items", "visual", 1, [float("nan"), 1.0]),
        {"row": 1, "item_id": "i1"},
    ),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write(good_log(), tmp_path_factory.mktemp("good") / "log")


def test_a_good_log_passes(good):
    checks = validate(good)
    assert len(checks) == OF_THE_LOG and len({c.name for c in checks}) == OF_THE_LOG
    assert answers(checks, "PASS") == [c.name for c in checks]
    assert all(c.count == 0 and c.examples == [] for c in checks)


@pytest.mark.parametrize(
    ("case", "name", "broken", "example"), BROKEN, ids=[case for case, *_ in BROKEN]
)
def test_one_fault_is_one_failure(case, name, broken, example, tmp_path):
    folder = write(good_log(), tmp_path / "log")
    broken(folder)
    checks = validate(folder)
    assert len(checks) == OF_THE_LOG
    if name == "rows":  # without items, everything that names one fails too
        assert answers(checks, "FAIL") == ["rows", "unknown items", "claims"]
    else:
        assert answers(checks, "FAIL") == [name]
    failed = next(c for c in checks if c.name == name)
    assert failed.count >= 1 and failed.message
    assert example.items() <= failed.examples[0].items(), failed.examples
    json.dumps([vars(c) for c in checks], allow_nan=False)


def test_every_check_has_been_seen_to_fail():
    assert {name for _, name, *_ in BROKEN} | {"filters"} == {c.name for c in validate("nowhere")}


class Untouched(Popular):
    """Says so when it is fitted."""

    def fit(self, context, upstream):
        raise AssertionError("fitted")


@pytest.mark.parametrize(
    ("case", "name", "broken", "example"), BROKEN, ids=[case for case, *_ in BROKEN]
)
def test_what_fails_is_refused_before_fitting_unless_it_is_said_why_not(
    case, name, broken, example, tmp_path
):
    folder = write(good_log(), tmp_path / "log")
    broken(folder)
    harmless = {question.name: question.harmless for question in CHECKS}[name]
    recipe = Recipe("none", "", Funnel((Untouched(k=2),)), {}, "purchase")
    with pytest.raises(AssertionError if harmless else KarmafunnelError) as refused:
        replay(recipe, Log.open(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    if harmless:
        assert str(refused.value) == "fitted"
        return
    failed = next(check for check in validate(folder) if check.name == name)
    said = str(refused.value)
    assert str(folder) in said and "\n" not in said
    if f"the check {name!r}" in said:  # else opening it was refused already
        assert failed.message in said and all(
            f"{key} {value}" in said for key, value in failed.examples[0].items()
        )
    else:
        assert name in ("log.json", "tables", "readable", "utf-8", "columns", "types", "checksums")


@pytest.mark.parametrize(
    ("case", "name", "broken", "example"), BROKEN, ids=[case for case, *_ in BROKEN]
)
def test_a_log_in_memory_is_asked_like_a_folder(case, name, broken, example, tmp_path):
    folder = write(good_log(), tmp_path / "log")
    broken(folder)
    try:
        log = read(folder)
        held = replace(log, path=None) if isinstance(log, Log) else log
        assert held.items.height >= 0 and (
            not isinstance(held, Log) or held.requests.height + held.exposures.height
        )
    except KarmafunnelError:
        return  # cannot be in memory
    if name == "tables":
        return  # what is left is a catalogue
    if {question.name: question.harmless for question in CHECKS}[name] or name in (
        "counts",
        "checksums",
    ):
        require(held)
    elif case == "a key is missing":
        require(held)  # it has the default
    else:
        with pytest.raises(KarmafunnelError, match=f"^log good fails the check '{name}'"):
            require(held)


@pytest.mark.parametrize(
    ("case", "name", "broken", "example"), BROKEN, ids=[case for case, *_ in BROKEN]
)
def test_describe_looks_at_what_can_be_read_and_says_what_cannot(
    case, name, broken, example, tmp_path
):
    folder = write(good_log(), tmp_path / "log")
    broken(folder)
    done = CliRunner().invoke(
        main, ["describe", str(folder), "--html", str(tmp_path / "page.html")]
    )
    if done.exit_code:
        assert isinstance(done.exception, SystemExit)
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "page.html").exists()
    elif {question.name: question.harmless for question in CHECKS}[name] or name == "checksums":
        assert (tmp_path / "page.html").exists()
    if case in ("another file", "another log.json"):
        assert done.exit_code == 0 and "; read all the same" in done.stderr


COMMANDS = {
    "replay": ["replay", "popular", "LOG", "--out", "OUT"],
    "table": ["table", "popular", "LOG", "--out", "OUT"],
    "tune": ["tune", "LOG", "--budget-ms", "5", "--out", "OUT"],
    "explain": ["explain", "popular", "LOG", "--request", "r8"],
    "profile": ["profile", "popular", "LOG", "--out", "OUT"],
    "fit-embedder": ["fit-embedder", "baseline", "LOG", "--out", "OUT"],
    "queue": ["queue", "SERVICES", "--log", "LOG", "--out", "OUT"],
    "sample": ["sample", "LOG", "OUT"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_computes_refuses_a_log_whose_windows_run_backwards(command, tmp_path):
    folder = write(good_log(), tmp_path / "log")
    rewrite("requests", lambda frame: frame.with_columns(window=frame["window"].reverse()))(folder)
    (tmp_path / "services.toml").write_text(
        '[[stage]]\nname = "recall"\ntime = {base_ms = 1.0}\n', encoding="utf-8"
    )
    words = {
        "LOG": str(folder),
        "OUT": str(tmp_path / "out"),
        "SERVICES": str(tmp_path / "services.toml"),
    }
    done = CliRunner().invoke(main, [words.get(word, word) for word in COMMANDS[command]])
    assert done.exit_code == 1
    assert "'window order'" in done.stderr
    assert "8 requests whose window is before" in done.stderr
    assert not (tmp_path / "out").exists()
    # a look at it is no figure of a Run
    assert CliRunner().invoke(main, ["describe", str(folder)]).exit_code == 0


@pytest.mark.parametrize("key", [*META, *MAY_HAVE])
@pytest.mark.parametrize("value", [7, 2.5, "foo", ["x", 1], {"x": ["y"]}, True, None])
def test_log_json_is_held_against_one_table_by_validate_and_by_opening(key, value, tmp_path):
    folder = write(good_log(), tmp_path / "log")
    meta = json.loads((folder / "log.json").read_text(encoding="utf-8"))
    (folder / "log.json").write_text(json.dumps(meta | {key: value}), encoding="utf-8")
    right = (META | MAY_HAVE)[key].holds(value)
    if not right:
        assert "log.json" in answers(validate(folder), "FAIL")
        with pytest.raises(KarmafunnelError, match=rf"log\.json: {key}[ .].*needs"):
            Log.open(folder)
    elif key not in ("counts", "checksums"):
        files.seal(folder, "log.json")
        Log.open(folder)


def test_what_depends_on_a_broken_column_says_so_instead_of_failing(tmp_path):
    folder = write(good_log(), tmp_path / "log")
    bad_bytes("exposures", "item_id", 3)(folder)
    told = {c.name: c.message for c in validate(folder) if c.status == "N/A"}
    assert set(told) == {
        "ids",
        "duplicate pairs",
        "unknown items",
        "unknown requests",
        "unlisted truth",
        "clicks",
        "propensity",
        "prices",
        "quantities",
        "availability",
    }
    assert set(told.values()) == {"exposures.parquet: item_id holds text that is not UTF-8"}


def test_examples_are_few_and_the_count_is_of_all(tmp_path):
    folder = write(good_log(), tmp_path / "log")
    rewrite("exposures", lambda x: x.with_columns(price_shown=pl.lit(-1.0)))(folder)
    failed = next(c for c in validate(folder) if c.name == "prices")
    assert failed.count == 28 and [e["row"] for e in failed.examples] == [0, 1, 2, 3, 4]


def test_a_filter_that_no_item_holds_is_a_warning(tmp_path):
    folder = write(good_log(), tmp_path / "log")
    put("requests", "filters", 2, ["colour=pink", "colour=red"])(folder)
    check = next(c for c in validate(folder) if c.name == "filters")
    assert (check.status, check.count) == ("PASS", 1) and check.message.startswith("warning")
    assert check.examples == [
        {
            "file": "requests.parquet",
            "row": 2,
            "filters": "colour=pink",
            "request_id": "r2",
            "requests": 1,
        }
    ]


def test_items_without_text_are_a_warning_where_another_has_one(tmp_path):
    folder = write(good_log(), tmp_path / "log")
    without_text(but="i1")(folder)
    check = next(c for c in validate(folder) if c.name == "text")
    assert check.status == "PASS" and check.count == good_log().n_items - 1
    assert check.examples[0]["item_id"] == "i0" and "have no text" in check.message


def test_what_the_tables_hold_though_it_is_denied_is_a_warning(tmp_path):
    folder = write(good_log(), tmp_path / "log")
    has(clicks=False)(folder)
    checks = {c.name: c for c in validate(folder)}
    assert checks["claims"].status == "PASS" and checks["claims"].examples == [
        {"key": "has.clicks"}
    ]
    assert checks["clicks"].status == "N/A" and "no clicks" in checks["clicks"].message


def test_a_bare_log_is_judged_by_what_it_claims(tmp_path):
    log = good_log()
    events = log.exposures.filter(purchased=True).select("request_id", "item_id", "purchased")
    bare = Log.make(
        log.items.select("item_id"),
        log.requests.select("request_id", "user_id", "source", "window"),
        events,
        {
            "name": "bare",
            "time": "order",
            "scenario": ["search"],
            "label": "purchase",
            "has": {"purchases": True},
        },
    )
    bare.write(tmp_path / "log")
    checks = validate(tmp_path / "log")
    assert answers(checks, "FAIL") == []
    assert answers(checks, "N/A") == [
        "positions",
        "unlisted truth",
        "clicks",
        "propensity",
        "stages",
        "years",
        "time order",
        "availability",
        "text",
        "query",
        "filters",
        "users",
        "images",
        "visual",
    ]
    put("requests", "ts", 3, START)(tmp_path / "log")
    assert answers(validate(tmp_path / "log"), "FAIL") == ["timestamps"]


def test_a_catalogue_validates_too(tmp_path):
    meta = {
        "name": "alone",
        "scenario": [],
        "label": None,
        "has": dict.fromkeys(["text", "price", "images", "visual"], True),
    }
    folder = write(Catalogue.make(good_log().items, meta), tmp_path / "catalogue")
    checks = validate(folder)
    assert answers(checks, "FAIL") == []
    assert {"text", "prices", "images", "duplicate items"} <= set(answers(checks, "PASS"))
    assert (
        next(c for c in checks if c.name == "positions").message == "a catalogue has no exposures"
    )
    another_row("items", 0)(folder)
    assert answers(validate(folder), "FAIL") == ["duplicate items"]


@pytest.mark.parametrize("where", ["nowhere", "file"])
def test_no_folder_is_answered_too(where, tmp_path):
    (tmp_path / "file").write_text("I am a file")
    assert answers(validate(tmp_path / where), "FAIL") == ["log.json", "tables"]


def test_what_passes_can_be_read(good):
    log = read(good)
    assert isinstance(log, Log) and log.rows.height == 28
    # i3 is first seen on the invoice, a day later
    assert log.asof.known(log.requests_in("W3")).tolist() == [3]


def test_printed_ids_are_no_markup(tmp_path):
    folder = write(good_log(), tmp_path / "log")
    put("exposures", "item_id", 5, "[red]i9[/red]")(folder)
    screen = Console(file=StringIO(), width=200)
    print_checks(validate(folder), screen)
    text = screen.file.getvalue()
    assert "row 5, request_id r1, item_id [red]i9[/red]" in text
    assert text.rstrip().endswith("37 checks: 36 PASS, 1 FAIL, 0 N/A")
