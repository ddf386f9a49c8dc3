"""Each kind of bad input that an export may hold: imported right and said, or refused by file, row
and column, with nothing half-written.
"""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.checks import FAIL, validate
from karmafunnel.cli import main
from karmafunnel.log import Log

START, N = 1_600_000_000, 300
HEADER = "user,item,time,price"


def row_of(n: int) -> list[str]:
    return [f"{n % 7:03d}", f"{n * n % 11:04d}", str(START + 600 * n), f"{n % 9}.25"]


def text_of(rows: list[list[str]], comma: str = ",", end: str = "\n") -> str:
    return end.join([HEADER.replace(",", comma), *(comma.join(row) for row in rows), ""])


def whole(change: Callable[[str], str | bytes] = lambda text: text, comma: str = ",") -> bytes:
    made = change(text_of([row_of(n) for n in range(N)], comma))
    return made if isinstance(made, bytes) else made.encode()


def cell(column: str, value: str, at: int = 150) -> bytes:
    """One cell of one row is another."""
    rows = [row_of(n) for n in range(N)]
    rows[at][HEADER.split(",").index(column)] = value
    return text_of(rows).encode()


def cells(column: str, value: Callable[[int], str]) -> bytes:
    """Each cell of a column is another."""
    rows = [row_of(n) for n in range(N)]
    for n, row in enumerate(rows):
        row[HEADER.split(",").index(column)] = value(n)
    return text_of(rows).encode()


@dataclass
class Case:
    """Files by name, and what becomes of them: the whole table, one row of it rejected (by reason),
    or a refusal with these words.
    """

    files: dict[str, bytes]
    rejected: str = ""
    refused: str = ""
    row: int = 151
    options: tuple[str, ...] = ()
    said: str = ""
    same: bool = True  # the rows are those of the plain table
    aside: dict[str, int] = field(default_factory=dict)


def csv(data: bytes, **what) -> Case:
    return Case({"rows.csv": data}, **what)


CASES = {
    "a plain table": csv(whole()),
    "Windows line ends": csv(whole(lambda text: text.replace("\n", "\r\n"))),
    "no last line end": csv(whole(lambda text: text.rstrip("\n"))),
    "BOM": csv(whole(lambda text: text.encode("utf-8-sig"))),
    "UTF-16": csv(whole(lambda text: text.encode("utf-16"))),
    "Latin-1": csv(cell("user", "Zoë").decode().encode("latin-1"), same=False),
    "quoted commas": csv(cell("user", '"smith, ann"'), same=False),
    "quoted newlines": csv(cell("user", '"ann\r\nsmith"'), same=False),
    "a quote that never ends": csv(whole(lambda text: text.replace("\n003,", '\n"003,', 1)), refused="rows.csv"),
    "decimal commas": csv(whole(lambda text: text.replace(".25", ",25"), ";"), said="of the numbers"),
    "mixed time units": csv(cell("time", f"{START}000"), rejected="time is outside 1980 to 2100"),
    "a time in 1970": csv(cell("time", "3600"), rejected="time is outside 1980 to 2100"),
    "a time of 0": csv(cell("time", "0"), rejected="time is outside 1980 to 2100"),
    "a time beyond 2100": csv(cell("time", "9999999999"), rejected="time is outside 1980 to 2100"),
    "a time in the future": csv(cell("time", "4000000000", N - 1), said="lies in the future: 2096-10-02", same=False),
    "a missing time": csv(cell("time", ""), rejected="time is missing"),
    "a word for a time": csv(cell("time", "noon"), rejected="time cannot be read"),
    "years for times": csv(cells("time", lambda n: str(1990 + n % 30)), refused="years alone leave the order open"),
    "an order for times": csv(cells("time", str), refused="column 'time' needs times"),
    "days of a spreadsheet": csv(
        cells("time", lambda n: f"{(START + 600 * n) / 86_400 + 25_569:.10f}"), said="days as spreadsheets count them"
    ),
    "a negative price": csv(cell("price", "-3"), rejected="price is negative"),
    "no price": csv(cell("price", ""), same=False),
    "a word for a price": csv(cell("price", "dear"), rejected="price cannot be read"),
    "an infinite price": csv(cell("price", "inf"), rejected="price is not finite"),
    "several currencies": csv(cells("price", lambda n: f"{'€' if n % 5 else '£'}{n % 9}.25"), refused="EUR, GBP"),
    "one of several currencies": csv(
        cells("price", lambda n: f"{n % 9}.25 {'EUR' if n % 5 else 'GBP'}"), options=("--currency", "EUR"), same=False,
        aside={"prices in other currencies than EUR": 60},
    ),
    "a currency": csv(cells("price", lambda n: f"{n % 9}.25 €"), said="EUR"),
    "a currency beyond the sample": csv(
        text_of([*(row_of(n % N) for n in range(25_000)), [*row_of(7)[:3], "$3"]]).encode(), same=False,
        aside={"rows that say the same as another": 25_000 - N, "prices in a currency, beside bare numbers": 1},
    ),
    "the same event twice": csv(
        whole(lambda text: text + ",".join(row_of(3)) + "\n"), aside={"rows that say the same as another": 1}
    ),
    "007": csv(cell("item", "007"), same=False),
    "an emoji": csv(cell("item", "🫖"), same=False),
    "a cell of 10 MB": csv(cell("item", "x" * 10_000_000), same=False),
    "no item": csv(cell("item", ""), rejected="no item"),
    "a row too long": csv(whole(lambda text: text.replace("\n003,", "\nx,003,", 1)), rejected="needs 4 fields, has 5", row=4),
    "a row too short": csv(whole(lambda text: text.replace("\n003,", "\n", 1)), rejected="needs 4 fields, has 3", row=4),
    "an empty file": csv(b"", refused="found an empty file"),
    "an empty line": csv(whole(lambda text: text.replace("\n003,", "\n\n003,", 1))),
    "a header without rows": csv(HEADER.encode() + b"\n", refused="needs at least one row below the header"),
    "no header": csv(whole(lambda text: text.split("\n", 1)[1]), refused="needs a first line with the names"),
    "a name twice": csv(whole(lambda text: text.replace("price", "item", 1)), refused="'item' twice"),
    "no column of items": csv(whole(lambda text: text.replace("item", "colour", 1)), refused="needs a column of items"),
    "no column of times": csv(b"user,item\n1,2\n", refused="needs a column of times"),
    "no row that can be used": csv(HEADER.encode() + f"\nu,,{START},1\n".encode(), refused="needs rows that can be imported"),
    "blanks around an id": csv(cell("user", "  a b  "), same=False),
    "quotes in an id": csv(cell("user", '"smith, ""jr"""'), same=False),
    "half a gzip": Case({"rows.csv.gz": gzip.compress(whole())[:900]}, refused="needs a whole file that can be read"),
    "no gzip": Case({"rows.csv.gz": whole()}, refused="rows.csv.gz"),
    "no Parquet": Case({"rows.parquet": whole()}, refused="rows.parquet"),
    "half a JSON line": Case(
        {"rows.jsonl": "\n".join(
            json.dumps(dict(zip(HEADER.split(","), row_of(n), strict=True)))[: 20 if n == 150 else None] for n in range(N)
        ).encode()}, rejected="is no JSON: Invalid control character at",
    ),
    "null categories": Case(
        {"rows.csv": whole(), "items.csv": b"item,category,price\n0000,Tea|Green,3\n0001,,-1\n0003,|,x\n"},
        aside={"prices of items that are negative or no numbers": 2},
    ),
    "an item without an id": Case(
        {"rows.csv": whole(), "items.csv": b"item,title\n,Cup\n" + b"".join(b"%04d,Tea\n" % i for i in range(11))}, rejected="no item", row=1
    ),
    "a map that names a missing column": Case(
        {"rows.csv": whole(), "map.toml": b'[columns]\nitem = "product"\ntime = "time"\n[time]\nunit = "s"\n'},
        options=("--map", "map.toml"), refused="found ['product']",
    ),
    "a map that is none": Case({"rows.csv": whole(), "map.toml": b"= 1"}, options=("--map", "map.toml"), refused="TOML"),
    "returns": csv(
        cells("price", lambda n: "1").replace(b"price\n", b"price,quantity\n").replace(b",1\n", b",1,2\n")
        .replace(b",1,2\n", b",1,-2\n", 1), aside={"returns": 1}, same=False,
    ),
}  # fmt: skip


def triples(log: Log) -> list[tuple]:
    frame = log.requests.join(log.exposures, on="request_id", maintain_order="left")
    seconds = frame["ts"].dt.epoch("s").to_list()
    return list(zip(frame["user_id"], frame["item_id"], seconds, frame["price_shown"], strict=True))


def plain_rows(without: int | None = None) -> list[tuple]:
    rows = []
    for n in range(N):
        user, item, time, price = row_of(n)
        if n != without:
            rows.append((user, item, int(time), float(price)))
    return rows


@pytest.mark.parametrize("name", CASES)
def test_it_is_imported_right_and_said_or_refused(name, tmp_path, monkeypatch):
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    for file, data in case.files.items():
        Path(file).write_bytes(data)
    tables = [file for file in case.files if file != "map.toml"]
    answer = CliRunner().invoke(main, ["import", *tables, "log", *case.options], env={"COLUMNS": "400"})
    told = " ".join(answer.output.replace("│", " ").split())
    if case.refused:
        assert answer.exit_code == 1 and isinstance(answer.exception, (SystemExit, ValueError)), answer.output
        assert case.refused in f"{told} {answer.exception}"
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(case.files)
        return
    assert answer.exit_code == 0, (answer.output, answer.exception)
    assert case.said in told
    log = Log.open("log")
    assert [check for check in validate("log") if check.status == FAIL] == []
    aside = dict(case.aside)
    if case.rejected:
        (row,) = pl.read_parquet("log/rejected.parquet").to_dicts()
        assert (row["file"], row["row"], row["reason"]) == (tables[-1], case.row, case.rejected)
        aside[f"rejected: {case.rejected}"] = 1
    assert log.meta["set_aside"] == aside
    gone = case.row - 1 if case.rejected and len(tables) == 1 else None
    if case.same:
        assert triples(log) == plain_rows(gone)
    else:
        fewer = (gone is not None) + aside.get("returns", 0)
        assert len(triples(log)) == N - fewer + (name == "a currency beyond the sample")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Latin-1", "Zoë"), ("quoted commas", "smith, ann"), ("quoted newlines", "ann\r\nsmith"),
        ("blanks around an id", "a b"), ("quotes in an id", 'smith, "jr"'), ("007", "007"), ("an emoji", "🫖"), ("a cell of 10 MB", "x" * 10_000_000),
    ],
)  # fmt: skip
def test_the_cell_is_what_it_was(name, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_bytes(CASES[name].files["rows.csv"])
    assert CliRunner().invoke(main, ["import", "rows.csv", "log"]).exit_code == 0
    assert meant in triples(Log.open("log"))[150]


def test_null_categories_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, data in CASES["null categories"].files.items():
        Path(file).write_bytes(data)
    assert CliRunner().invoke(main, ["import", "rows.csv", "items.csv", "log"]).exit_code == 0
    found = dict(Log.open("log").items.select("item_id", "category").rows())
    assert found["0000"] == ["Tea", "Green"] and found["0001"] is None and found["0003"] is None


def test_the_same_files_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_bytes(CASES["a missing time"].files["rows.csv"])
    seen = []
    for _ in range(2):
        assert CliRunner().invoke(main, ["import", "rows.csv", "log", "--force"]).exit_code == 0
        seen.append({path.name: path.read_bytes() for path in sorted(Path("log").iterdir())})
    assert seen[0] == seen[1] and "rejected.parquet" in seen[0]


def test_a_kill_in_the_middle_leaves_nothing_that_looks_like_a_log(tmp_path):
    (tmp_path / "rows.csv").write_bytes(CASES["a plain table"].files["rows.csv"])
    code = (
        "import os, signal\n"
        "from karmafunnel.simulator.importing.assembling import import_tables\n"
        "import_tables(['rows.csv'], 'log', progress=lambda rows: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert killed.returncode == -9 and not (tmp_path / "log").exists()
    whole = code.replace("os.kill(os.getpid(), signal.SIGKILL)", "None")
    assert subprocess.run([sys.executable, "-c", whole], cwd=tmp_path).returncode == 0
    assert triples(Log.open(tmp_path / "log")) == plain_rows()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "rows.csv"]
