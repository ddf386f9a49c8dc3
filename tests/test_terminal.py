"""What comes from a log, a recipe, a Run or a services file is printed as it stands: no markup, no
commands to the terminal.
"""

import ast
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import karmafunnel
import polars as pl
import pytest
from click.testing import CliRunner, Result
from karmafunnel import terminal
from karmafunnel.cli import main
from karmafunnel.files import read_table
from karmafunnel.log import Log
from karmafunnel.terminal import Console, progress_bar, visible
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text
from shop import make_shop

pytestmark = pytest.mark.slow

LITERAL = [
    "Lamp [/red]",
    "[bold]x[/bold]",
    "[link=http://x]y[/link]",
    ":smile:",
    "[blink",
    "a [on red",
]
OBEYED = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b2J",
    "\rover",
    "\x08\x08",
    "\u202edesrever",
    "\x00",
]
HOSTILE = [*LITERAL, *OBEYED]


def printed(draw, **options) -> str:
    file = io.StringIO()
    draw(Console(file=file, width=300, **options))
    return file.getvalue()


def in_a_table(console: Console, text: str) -> None:
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    table.add_row(text, style="bold")
    console.print(table)


DRAWN = {
    "a line": lambda console, text: console.print(text),
    "a styled line": lambda console, text: console.print(text, style="bold red"),
    "a Text": lambda console, text: console.print(Text(text)),
    "a table": in_a_table,
}


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize("how", DRAWN)
def test_texts_are_printed_as_they_stand(how, text):
    shown = printed(lambda console: DRAWN[how](console, text))
    # rich's own Text throws these out
    kept = text.translate(dict.fromkeys((7, 8, 11, 12, 13))) if how == "a Text" else text
    assert visible(kept) in shown and not set(shown) & set("\x00\x07\x08\r\x1b\x9b\u202e")
    assert how != "a table" or shown.count(visible(text)) >= 4


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_progress_and_status_are_printed_as_they_stand(text):
    """On a terminal, where they are drawn at all; rich's own commands to it stay."""

    def draw(console: Console) -> None:
        with console.status(text) as status:
            status.update(text + "2")
        with progress_bar(console) as bar:
            task = bar.add_task(text, total=3)
            bar.update(task, description=text + "3")

    shown = printed(draw, force_terminal=True, color_system=None)
    assert visible(text) in shown and visible(text + "2") in shown
    if text in OBEYED:
        assert text not in shown


def test_only_one_console_and_no_markup():
    """Nobody but `terminal.py` takes rich's Console, or turns its reading of texts on."""
    root = Path(karmafunnel.__file__).parent
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if (
            parts[0] in ("tests", "build", "out")
            or parts[0].startswith(".")
            or path.name == "terminal.py"
        ):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rich":
                assert node.module in ("rich.table", "rich.text", "rich.cells"), f"{path}: {node.module}"
                assert path == root / "simulator" / "report" / "table.py", (
                    f"{path} draws a table of its own"
                )
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "rich" for alias in node.names), path
            if isinstance(node, ast.keyword):
                assert node.arg not in ("markup", "highlight", "emoji"), f"{path}: {node.arg}"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(terminal.time, "monotonic", made)
    return made


def test_without_a_terminal_progress_is_a_line_every_ten_seconds(clock):
    """With share, time and time left; what goes on after an interruption counts only its own."""
    file = io.StringIO()
    with progress_bar(Console(file=file)) as bar:
        task = bar.add_task("replay", total=2000, completed=500)
        for _ in range(6):
            bar.advance(task, 125)
            clock.now += 4
    with progress_bar(Console(file=file)) as bar:
        task = bar.add_task("planning", total=None)
        clock.now += 75
        bar.update(task, description="recall 3", completed=12)
    assert file.getvalue().splitlines() == [
        "replay: 1,000 of 2,000 (50%, 12 s, 32 s left)",
        "recall 3: 12 so far (1 min 15 s)",
    ]


def test_without_a_terminal_epochs_are_told_every_ten_seconds(clock):
    file = io.StringIO()
    with Console(file=file).status("fitting") as status:
        for epoch in range(1, 5):
            for step in (1, 2):
                status.update(f"KARMA: epoch {epoch} of 4, step {step} of 2, loss 0.5")
                clock.now += 3
    with Console(file=file).status("fitting") as status:
        for epoch in (1, 5):
            clock.now += 10
            status.update(f"SASRec: epoch {epoch} of at most 15")
    assert file.getvalue().splitlines() == [
        "KARMA: epoch 3 of 4, step 1 of 2, loss 0.5 (62%, 12 s, 9 s left)",
        "SASRec: epoch 1 of at most 15 (7%, 0 s)",
        "SASRec: epoch 5 of at most 15 (33%, 10 s, at most 25 s left)",
    ]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("SASRec: epoch 3 of at most 15, loss 0.4", 3 / 15),
        ("KARMA: epoch 2 of 4, step 1,000 of 4,000", 1 / 4 + 1 / 16),
        ("tokenizer: 512 byte pairs", None),
        ("step 0 of 0", None),
    ],
)
def test_the_share_that_a_text_tells(text, share):
    assert terminal.share_of(text) == (None if share is None else pytest.approx(share))


def test_without_a_terminal_a_line_has_80_columns_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    console = Console(file=io.StringIO())
    assert console.width == 80 and Console(file=io.StringIO(), width=33).width == 33
    monkeypatch.setenv("COLUMNS", "120")
    assert console.width == 120


def test_queue_says_which_rates_and_where_the_deadline_ends_a_latency(tmp_path):
    """One server offered 9 tenths: at the deadline of 30 ms what stands is shown."""
    (tmp_path / "s.toml").write_text(
        'name = "one"\ndeadline_ms = 30\n[[stage]]\nname = "only"\nk = 10\n'
        'time = {base_ms = 10.0}\n[[stage]]\nname = "rank"\nk = 5\ntime = {base_ms = 8.0}\n'
    )
    words = ("queue", tmp_path / "s.toml", "--requests", 2000)
    said = " ".join(run(*words, "--rate", 90, "--out", tmp_path / "full").stdout.split())
    found = re.search(r"second: 90\.0 asked for, ([\d.]+) offered .*, ([\d.]+) served", said)
    offered, served = map(float, found.groups())
    assert offered == pytest.approx(90, rel=0.1) and served == pytest.approx(offered, rel=0.02)
    assert re.search(r"latency p99 30\.0.* ms, which is the deadline", said)
    idle = run(*words, "--rate", 1, "--out", tmp_path / "idle").stdout
    assert "latency p50 18.0" in idle and "which is the deadline" not in idle


# -- every command ---------------------------------------------------------------------------------

RECIPE = """
from karmafunnel.models.embedders import TfidfSVD
from karmafunnel.stages.features import BM25, Own, Popularity, Upstream
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.recall import BM25Recall, Join, Popular

label, embedders = None, {}
features = [Upstream(), Own(), BM25()]
recall = Join([Popular(k=30), BM25Recall(k=30)], k=40)
funnel = recall >> LightGBMPreRank(k=10, features=features, trees=5)
rows, against = {"[bold]x[/bold]": {}, "Lamp [/red]": {}}, "Lamp [/red]"
seeds, measures = (0,), ["HR@5"]
"""
SERVICES = """
name = "Lamp [/red]"
[[stage]]
name = "recall"
items = 10
k = 40
time = {base_ms = 2.0}
[[stage]]
name = "prerank"
k = 10
time = {base_ms = 1.0}
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def hostile_log(folder: Path) -> Path:
    """The shop with markup and control characters in every text that a log has."""
    shop = make_shop(n_items=60, n_users=12, n_requests=160)

    def mixed(name: str, n: int) -> pl.Series:
        return pl.Series(name, [f"{HOSTILE[i % len(HOSTILE)]} {i}" for i in range(n)])

    n_items, n = shop.n_items, shop.requests.height
    item_ids, request_ids = mixed("item_id", n_items), mixed("request_id", n)
    items = dict(zip(shop.items["item_id"], item_ids, strict=True))
    requests = dict(zip(shop.requests["request_id"], request_ids, strict=True))
    category = pl.Series("category", [[HOSTILE[i % len(HOSTILE)]] for i in range(n_items)])
    made = shop.items.with_columns(
        item_ids, mixed("title", n_items), mixed("brand", n_items), category
    )
    asked = shop.requests.with_columns(
        request_ids, mixed("query", n), pl.format("{} [/red]\x1b[31m", "user_id").alias("user_id")
    )
    shown = shop.exposures.with_columns(
        pl.col("item_id").replace_strict(items), pl.col("request_id").replace_strict(requests)
    )
    said = {"name": "[bold]x[/bold]", "currency": "[/red]", "licence": "[bold]", "source": "[/red]"}
    aside = {"rows [/red]": 3, "[bold]y[/bold]": 4}
    Log.make(
        made,
        asked,
        shown,
        shop.meta | said | {"lacks": ["a [/red]", "[bold]z[/bold]"], "set_aside": aside},
    ).write(folder)
    return folder


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """A folder whose name is markup, with a log, a recipe, a Run, services and a simulation."""
    folder = tmp_path_factory.mktemp("terminal") / "[bold]x [red]"
    folder.mkdir()
    hostile_log(folder / "log")
    (folder / "[red].py").write_text(RECIPE)
    (folder / "services.toml").write_text(SERVICES)
    for name in ("run", "again"):
        done = run(
            "replay",
            folder / "[red].py",
            folder / "log",
            "--out",
            folder / name,
            "--no-cache",
            "--seed",
            int(name == "again"),
        )
        assert done.exit_code == 0, done.output
    done = run(
        "queue", folder / "services.toml", "--rate", 50, "--requests", 300, "--out", folder / "load"
    )
    assert done.exit_code == 0, done.output
    return folder


def commands(there: Path, tmp: Path) -> dict[str, list[object]]:
    log, recipe, services = there / "log", there / "[red].py", there / "services.toml"
    request = read_table(there / "run" / "ledger.parquet")["request_id"][0]
    return {
        "validate": ["validate", log],
        "describe": ["describe", log],
        "sample": ["sample", log, tmp / "small", "--users", 0.5],
        "explain": ["explain", recipe, log, "--request", request, "--no-cache"],
        "measure": ["measure", there / "run", "HR@5", "GMV-HR@5"],
        "markdown": ["measure", there / "run", "HR@5", "--format", "markdown"],
        "csv": ["measure", there / "run", "HR@5", "--format", "csv"],
        "latex": ["measure", there / "run", "HR@5", "--format", "latex"],
        "slice": ["measure", there / "run", "HR@5", "--slice", "target"],
        "verbose": ["measure", there / "run", "HR@5", "gAUC:request:exposures", "survival", "-v"],
        "compare": ["compare", there / "run", there / "again", "HR@5", "survival"],
        "gate": ["gate", there / "run", there / "again", "--measure", "HR@5", "--margin", 0.3],
        "stages": ["stages"],
        "sources": ["sources"],
        "measures": ["measures"],
        "report": ["report", there / "run", "--out", tmp / "[bold].html"],
        "replay": ["replay", recipe, log, "--out", tmp / "[red]run", "--no-cache", "--limit", 20],
        "paths": [
            "replay",
            recipe,
            log,
            "--out",
            tmp / "paths",
            "--no-cache",
            "--limit",
            20,
            "--path",
            "prerank=skip",
        ],
        "table": ["table", recipe, log, "--out", tmp / "[red]out", "--no-cache", "--limit", 20],
        "queue": ["queue", services, "--rate", 50, "--requests", 200, "--out", tmp / "[red]load"],
        "queue --run": [
            "queue",
            services,
            "--rate",
            50,
            "--requests",
            200,
            "--out",
            tmp / "worth",
            "--run",
            there / "run",
        ],
        "timeline": ["timeline", there / "load", 3],
        "plan": ["plan", services, "--rate", 20, "--p99-ms", 50, "--requests", 1000],
        "profile": [
            "profile",
            recipe,
            log,
            "--out",
            tmp / "[red].toml",
            "--seconds",
            1,
            "--batches",
            "1,2",
            "--no-cache",
        ],
        "doctor": ["doctor"],
    }


NAMES = [
    "validate",
    "describe",
    "sample",
    "explain",
    "measure",
    "markdown",
    "csv",
    "latex",
    "slice",
    "verbose",
    "compare",
    "gate",
    "stages",
    "sources",
    "measures",
    "report",
    "replay",
    "paths",
    "table",
    "queue",
    "queue --run",
    "timeline",
    "plan",
    "profile",
    "doctor",
]


# What is to be read by machines, or names a path, is as wide as it is.
EVERY_TABLE = ("explain", "measure", "compare", "gate", "replay", "table", "queue", "plan")
WIDE = ("markdown", "csv", "latex", "report")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_prints_as_it_stands_within_80_columns(name, there, tmp_path, monkeypatch):
    """No line is longer, and no word of a cell is broken."""
    monkeypatch.setenv("COLUMNS", "80")
    drawn: list[Table] = []

    def noting(self: Console, *objects: object, real=Console.print, **options: object) -> None:
        drawn.extend(one for one in objects if isinstance(one, Table))
        real(self, *objects, **options)

    monkeypatch.setattr(Console, "print", noting)
    answer = run(*commands(there, tmp_path)[name])
    if name not in WIDE:
        assert max(map(cell_len, answer.stdout.splitlines()), default=0) <= 80
    words = {
        word
        for table in drawn
        for column in table.columns
        for cell in (column.header, *column.cells)
        for word in visible(str(cell)).split()
    }
    if name == "describe":  # six columns of long hostile words are wider than any terminal
        words = {word for word in words if not set(word) & set("[\\:")}
    assert words <= set(answer.stdout.split()) and (drawn or name not in EVERY_TABLE)
    said = answer.stdout + answer.stderr
    assert answer.exit_code == 0, said
    assert not set(said) & set("\x00\x07\x08\r\x1b\x9b\u202e"), ascii(said)
    expected = {
        "validate": "",
        "describe": "[bold]x[/bold]",
        "sample": "a [/red]",
        "explain": "Lamp [/red]",
        "report": "[bold].html",
        "table": "[bold]x[/bold]",
        "queue": "Lamp [/red]",
        "plan": "Lamp [/red]",
        "profile": "[red]",
    }
    assert expected.get(name, "") in " ".join(said.split())


REFUSALS = [
    "validate LOG",
    "describe LOG",
    "replay TEXT LOG --out x",
    "replay baseline LOG --out x",
    "measure LOG TEXT",
    "measure RUN TEXT",
    "measure RUN HR@5 --slice TEXT",
    "compare LOG LOG TEXT",
    "report LOG",
    "plan LOG --rate 5 --p99-ms 5",
    "queue LOG --rate 5 --out x",
    "timeline LOG 3",
    "convert TEXT LOG x",
    "explain baseline THERE --request TEXT --no-cache",
    "sample LOG x",
    "table TEXT LOG --out x",
    "fit-embedder TEXT LOG --out x",
    "profile TEXT LOG --out x",
    "replay RECIPE THERE --out x --no-cache --path TEXT",
    "replay RECIPE THERE --out x --device TEXT",
]


@pytest.mark.parametrize("words", REFUSALS)
def test_refusals_quote_as_it_stands(words, there, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("Lamp [/red]", "[bold]x[/bold]", "\x1b[31m"):
        known = {
            "LOG": f"no {text}",
            "TEXT": text,
            "THERE": there / "log",
            "RUN": there / "run",
            "RECIPE": there / "[red].py",
        }
        answer = run(*(known.get(word, word) for word in words.split()))
        said = answer.stdout + answer.stderr
        assert answer.exit_code in (1, 2)
        assert "\x1b" not in said
        assert "Traceback" not in said
        assert answer.exception is None or isinstance(answer.exception, SystemExit)
        quoted = (visible(text), ascii(text)[1:-1], json.dumps(text)[1:-1])
        assert any(q in said.replace("\n", "") or q in " ".join(said.split()) for q in quoted), said


def test_a_reader_that_has_enough_ends_a_command_without_a_word(tmp_path):
    """As in `karmafunnel validate LOG | head`."""
    make_shop(n_requests=120).write(tmp_path / "log")
    read, write = os.pipe()
    os.close(read)
    command = [
        sys.executable,
        "-c",
        "from karmafunnel.cli import main; main()",
        "validate",
        str(tmp_path / "log"),
    ]
    try:
        answer = subprocess.run(
            command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120
        )
    finally:
        os.close(write)
    assert answer.stderr == ""


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_table_of_texts_alone_keeps_every_row_at_every_width(width):
    from karmafunnel.simulator.report import table as tables

    rows = [[f"role{i}", "a column with a long name", "why it was taken, at some length"] for i in range(5)]
    console = Console(file=io.StringIO(), width=width)
    tables.print_table(tables.Table(["what", "taken", "why"], rows, text_columns=3), console)
    assert all(f"role{i}" in console.file.getvalue() for i in range(5))


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "-.19"), ("utf-8", "\u2212.19")])
def test_the_minus_sign_is_one_that_the_stream_has(encoding, shown):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
    Console(file=stream).print("\u2212.19")
    stream.flush()
    assert raw.getvalue().decode(encoding).strip() == shown
