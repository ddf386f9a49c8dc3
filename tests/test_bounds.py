"""Bounds of what comes from outside: every number of the command line, the API, stages, features
and embedders; every name.
"""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import subprocess
import sys
from pathlib import Path

import click
import karmafunnel.models
import karmafunnel.stages
import numpy as np
import pytest
from click.testing import CliRunner
from every_command import COMMANDS
from karmafunnel.bounds import (
    BOUNDS,
    SEED,
    Bound,
    check_bound,
    check_fits,
    check_name,
    check_title,
    needs,
)
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError, line_of, quoted
from karmafunnel.models.embedders import RandomVectors
from karmafunnel.simulator.ablation.ablate import ablate
from karmafunnel.simulator.commands.parameters import Cutoffs, Number, Numbers
from karmafunnel.simulator.load.arrivals import Daily, Flash, Poisson, Trace
from karmafunnel.simulator.load.capacity import plan
from karmafunnel.simulator.load.profile import profile
from karmafunnel.simulator.load.queueing import simulate
from karmafunnel.simulator.load.services import Service, Services, ServiceTime
from karmafunnel.simulator.measure.measures.measure import Measure
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.paths import modes_of
from karmafunnel.simulator.replay.prepare import prepare, requests_of
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.replay.workers import Workers
from karmafunnel.simulator.world import generate
from karmafunnel.stages.context import Context
from karmafunnel.stages.learn import Teacher
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.stage import Funnel, Stage

pytestmark = pytest.mark.slow

NO_NUMBERS = [
    math.nan,
    math.inf,
    -math.inf,
    10**400,
    -(10**400),
    10**5000,
    1e300,
    "x",
    [1],
    True,
    None,
    b"1",
    1j,
]
NO_SEEDS = [-1, 2**31, 4294967296, 9223372036854775807, 2**64, *NO_NUMBERS, 0.5]


def refused(make) -> str:
    """What is said, in a line, by a refusal of ours; any other error, and none, fails the test."""
    with pytest.raises(KarmafunnelError) as error:
        make()
    text = line_of(error.value)
    assert len(text) < 2000
    return text


# -- the bound itself ------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=list(BOUNDS))
def test_a_bound_holds_its_ends_and_nothing_beyond(bound):
    whole = isinstance(bound.low, int)
    assert bound.holds(bound.high) and bound.holds(bound.low) != bound.above
    assert bound.holds(np.int64(bound.high) if whole else np.float64(bound.high))
    step = 1 if whole else 1e-6 * max(abs(bound.high), 1)
    for beyond in (bound.low - step, bound.high + step, *NO_NUMBERS):
        assert not bound.holds(beyond)
        assert str(bound) in refused(lambda: check_bound("it", bound, number=beyond))  # noqa: B023


def test_what_is_too_long_to_be_typed_is_cut():
    assert quoted("x" * 5000).endswith("(5,002 characters)") and len(quoted("x" * 5000)) < 250
    assert quoted(10**5000) == "a int that is too large to be shown"
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert "too large" in quoted(nested)


def test_what_does_not_fit_the_memory_is_refused_with_the_figure():
    check_fits("it", {"a": 1.0})
    assert "vectors 8,000,000.0 GB" in refused(
        lambda: check_fits("it", {"vectors": 8e15, "more": 1e15})
    )


# -- the command line ------------------------------------------------------------------------------

OPTIONS = [
    (name, option)
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option.type, (Number, click.types.IntParamType, click.types.FloatParamType))
]
BAD_WORDS = [
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1e400",
    "x",
    "",
    "9" * 400,
    "9" * 5000,
    "-9223372036854775809",
    "99999999999999999999",
    "1e308",
]


@pytest.mark.parametrize("name,option", OPTIONS, ids=[f"{n} {o.opts[0]}" for n, o in OPTIONS])
def test_every_number_of_the_command_line_is_bounded(name, option):
    assert isinstance(option.type, Number), "a number without a bound"
    for word in BAD_WORDS:
        given = f"a={word}" if isinstance(option.type, Cutoffs) else word
        words = (
            ["--", "simulation", given]
            if isinstance(option, click.Argument)
            else [f"{option.opts[0]}={given}"]
        )
        with pytest.raises(click.UsageError) as error, COMMANDS[name].make_context(name, words):
            pass
        if (
            isinstance(error.value, click.BadParameter)
            and "Missing" not in error.value.format_message()
        ):
            assert (
                str(option.type.bound) in error.value.format_message()
                and len(error.value.format_message()) < 300
            )


SEEDED = [
    name
    for name, command in COMMANDS.items()
    if any("--seed" in option.opts for option in command.params)
]


@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.parametrize(
    "seed", ["-1", "4294967296", "9223372036854775807", "2147483648", "x", "1.5", "nan"]
)
def test_every_seed_of_the_command_line_has_one_range(name, seed):
    answer = CliRunner().invoke(main, [name, f"--seed={seed}", *["x"] * 9])
    words = " ".join(answer.output.split())
    assert answer.exit_code == 2 and "Traceback" not in words
    with pytest.raises(click.BadParameter, match="0 to 2,147,483,647"):
        next(o for o in COMMANDS[name].params if "--seed" in o.opts).type.convert(seed, None, None)


def test_seeded_commands_are_all_there():
    assert {
        "demo",
        "sample",
        "world",
        "replay",
        "explain",
        "queue",
        "plan",
        "table",
        "tune",
        "fit-embedder",
        "profile",
    } <= set(SEEDED)


def test_lists_of_numbers():
    assert Numbers("batch_size").convert("1,2", None, None) == [1, 2]
    assert Cutoffs("k").convert("recall=10,20", None, None) == ("recall", [10, 20])
    for words in ("", ",", "1,", "1,x", "1,0", "1,99999999999"):
        with pytest.raises(click.BadParameter):
            Numbers("batch_size").convert(words, None, None)
    with pytest.raises(click.BadParameter):
        Cutoffs("k").convert("recall", None, None)


# -- the API ---------------------------------------------------------------------------------------

RECIPE = """
from karmafunnel.stages.learn import Teacher
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import Popular
funnel, embedders, label = Popular(k=5), {}, None
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory, shop):
    path = tmp_path_factory.mktemp("small") / "small.py"
    path.write_text(RECIPE)
    return load_recipe(str(path), shop)


def one() -> Services:
    return Services((Service("s", ServiceTime(base_ms=1.0)),))


@pytest.mark.parametrize("seed", NO_SEEDS, ids=lambda s: quoted(s, 20))
def test_every_seed_of_the_api_has_one_range(seed, shop, small, tmp_path):
    rows = tmp_path / "rows.py"
    rows.write_text(RECIPE + "rows, against = {'a': {}}, 'a'\n")
    table = load_recipe(str(rows), shop)
    for make in (
        lambda: prepare(small, shop, RunOptions(seed=seed)),
        lambda: replay(small, shop, tmp_path / "run", RunOptions(seed=seed)),
        lambda: Context(shop, seed=seed),
        lambda: simulate(one(), Poisson(1.0), 10, seed),
        lambda: plan(one(), 1.0, 100.0, n=1000, seed=seed),
        lambda: profile(small, shop, options=RunOptions(seed=seed)),
        lambda: generate(seed=seed),
        lambda: shop.sample(0.5, seed),
        lambda: ablate(table, shop, tmp_path / "out", seeds=[seed]),
    ):
        assert "seed" in refused(make) and "0 to 2,147,483,647" in refused(make)
    assert not list(tmp_path.glob("run*")) and not (tmp_path / "out").exists()
    if isinstance(seed, int | float) and abs(seed) < 1e300:
        rows.write_text(
            RECIPE
            + f"rows, against, seeds = {{'a': {{}}}}, 'a', (0, {seed!r})\n".replace(
                "nan", "float('nan')"
            )
        )
        assert "0 to 2,147,483,647" in refused(lambda: load_recipe(str(rows), shop))


def test_the_largest_seed_is_taken(shop, small, tmp_path):
    replay(small, shop, tmp_path / "run", RunOptions(seed=int(SEED.high), limit=3))
    simulate(one(), Poisson(1.0), 10, int(SEED.high))
    assert plan(one(), 1.0, 100.0, n=1000, seed=int(SEED.high)).seeds == 4


@pytest.mark.parametrize("bad", [*NO_NUMBERS, 0, -1, 10**12], ids=lambda s: quoted(s, 20))
def test_every_other_number_of_the_api(bad, shop):
    made = [
        lambda: Poisson(bad),
        lambda: Poisson(1.0).times(bad, np.random.default_rng(0)),
        lambda: Daily(bad),
        lambda: Flash(bad),
    ]
    made += [
        lambda: Daily(1.0, peak=bad),
        lambda: Flash(1.0, factor=bad),
        lambda: Flash(1.0, fade_s=bad),
        lambda: Daily(1.0, burst=bad),
    ]
    made += [
        lambda: plan(one(), bad, 100.0),
        lambda: plan(one(), 1.0, bad),
        lambda: plan(one(), 1.0, 1.0, n=bad),
    ]
    made += [
        lambda: simulate(one(), Poisson(1.0), bad),
        lambda: generate(items=bad),
        lambda: generate(users=bad),
    ]
    made += [lambda: generate(requests=bad), lambda: shop.sample(bad)]
    if bad is not None:  # none is said
        made += [
            lambda: requests_of(shop, "W3", bad),
            lambda: Workers(bad) if bad != 1 else check_bound("it", "workers", n=0),
        ]
    if bad != 0:
        made += [
            lambda: generate(semantic=bad),
            lambda: generate(exploration=bad),
            lambda: Daily(1.0, bursts=bad),
        ]
        made += [lambda: Flash(1.0, at=bad), lambda: plan(one(), 1.0, 1.0, lost=bad)]
    if bad != 10**12:
        made += [lambda: Trace(np.array([1.0]), speed=bad)]
    for make in made:
        refused(make)


@pytest.mark.parametrize(
    "text",
    [
        "HR@0",
        "HR@-1",
        "HR@1e3",
        "HR@99999999999999999999",
        "HR@" + "9" * 5000,
        "Recall@5@99999999999",
        "HR@10:all:99999d",
        "HR@nan",
        "HR@٣",
        "HR@",
        "@",
        "",
        ":",
        "HR@1@1@1",
        "x" * 100_000,
        "HR@5\x00",
        "\ud800",
        "gAUC:request:exposures:" + "x" * 9,
        "eGMV@10000001",
        "MRR@9999999999",
    ],
)
def test_measures_that_cannot_be(text):
    assert refused(lambda: Measure.parse(text)).startswith("measure ")


# -- fields of stages, features, embedders ---------------------------------------------------------


def values() -> list[type]:
    """Every frozen dataclass that a recipe may write down."""
    kept = []
    for package in (karmafunnel.models, karmafunnel.stages):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            found = vars(importlib.import_module(module.name)).values()
            kept += [
                c
                for c in found
                if isinstance(c, type)
                and dataclasses.is_dataclass(c)
                and c.__module__ == module.name
            ]
    inside = {
        "Config",
        "Options",
        "Shape",
        "Made",
        "Isotonic",
        "Temperature",
        "Sequences",
        "FittedFunnel",
        "Funnel",
    }
    kept = [
        c
        for c in kept
        if c.__dataclass_params__.frozen
        and not inspect.isabstract(c)
        and not any(c.__name__.endswith(name) for name in inside)
    ]
    return sorted(set(kept), key=lambda c: c.__name__)


def numeric(kind: type) -> list[dataclasses.Field]:
    plain = {"int", "float", "int | None", "float | None"}
    return [f for f in dataclasses.fields(kind) if f.init and str(f.type) in plain]


FIELDS = [(kind, field) for kind in values() for field in numeric(kind)]


@pytest.mark.parametrize("kind,field", FIELDS, ids=[f"{k.__name__}.{f.name}" for k, f in FIELDS])
def test_every_number_of_a_stage_or_model_is_bounded(kind, field):
    missing = [
        f
        for f in dataclasses.fields(kind)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    given = {
        f.name: 8 if str(f.type) == "int" else LightGBMRank() if kind is Teacher else "tfidf"
        for f in missing
    }
    bad = [value for value in NO_NUMBERS if not (value is None and "None" in str(field.type))]
    for value in [*bad, *([10**13] if "int" in str(field.type) else [1e13])]:

        def make(value=value):
            made = kind(**(given | {field.name: value}))
            return Funnel((made,)) if isinstance(made, Stage) else made

        assert field.name in refused(make)


EMBEDDERS = sorted(
    {k for k, _ in FIELDS if "models" in k.__module__ and not issubclass(k, Stage)},
    key=lambda k: k.__name__,
)


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_numbers_of_numpy_are_plain_ones(kind):
    """They print as typed and are kept as JSON."""
    if any(
        f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        for f in dataclasses.fields(kind)
    ):
        pytest.skip("it has no default")
    numbers = {f.name: f.default for k, f in FIELDS if k is kind and f.default is not None}
    made = kind(**{name: np.asarray(x)[()] for name, x in numbers.items()})
    assert made == kind()
    assert [x for x in numbers if isinstance(getattr(made, x), np.generic)] == []


def test_fields_are_many():
    assert len(FIELDS) > 100 and {
        "Popular",
        "KARMA",
        "SASRec",
        "LightGBMRank",
        "Own",
        "MMR",
        "HNSW",
    } <= {k.__name__ for k, _ in FIELDS}


def test_a_bound_of_its_own():
    @dataclasses.dataclass(frozen=True)
    class Value:
        dim: int = 3
        days: float | None = None

    needs(Value(), "dim", "days", days=Bound(1.0, 2.0))
    assert "Value: dim needs a whole number from 4 to 1,000,000,000, found 3" in refused(
        lambda: needs(Value(), dim=(4, None))
    )


def test_vectors_that_would_not_fit_the_memory(shop, monkeypatch):
    monkeypatch.setattr("karmafunnel.bounds.memory", lambda: 1000)
    from karmafunnel.stages.stage import fit_embedders

    assert "GB on this machine" in refused(
        lambda: fit_embedders({"random": RandomVectors()}, Context(shop), None)
    )
    assert "2,000 items" in refused(lambda: generate())


# -- names -----------------------------------------------------------------------------------------

NO_NAMES = [
    "",
    " ",
    ".",
    "..",
    "a..b",
    "../../x",
    "a/b",
    "a\\b",
    "a\x00b",
    "a b",
    "a=b",
    "a,b",
    "-a",
    ".a",
    "x" * 65,
    "é",
]
NO_NAMES += ["a\n", "\x1b[31m", "[/red]", None, 5, b"a", ["a"], "\ud800"]


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_names_that_become_folders_and_columns(name, shop, tmp_path):
    def service(**changes):
        return Service(**({"name": "s", "time": ServiceTime(base_ms=1.0)} | changes))

    made = [
        lambda: check_name("it", "name", name),
        lambda: Funnel((Popular(name=name),)),
        lambda: service(name=name),
    ]
    made += [lambda: service(fallback=name)]

    def recipe(more: str):
        path = tmp_path / "named.py"
        path.write_text("from karmafunnel.models.embedders import RandomVectors\n" + RECIPE + more)
        return lambda: load_recipe(str(path), shop)

    for make in made:
        assert "1 to 64 letters" in refused(make)
    said = ascii(name) if isinstance(name, str) else repr(name)
    if not isinstance(name, list):
        assert "1 to 64 letters" in refused(recipe(f"embedders = {{{said}: RandomVectors()}}"))
        refused(recipe(f"fallbacks = {{{said}: Popular()}}"))
    assert "1 to 64 letters" in refused(recipe(f"funnel = Popular(name={said})"))


@pytest.mark.parametrize(
    "name", ["", "  ", "a\nb", "\x1b[31m", "x" * 256, "\x00", None, 5, "\u202e"], ids=ascii
)
def test_names_of_rows_stand_in_a_line(name, shop, tmp_path):
    path = tmp_path / "rows.py"
    path.write_text(RECIPE + f"rows, against = {{{name!r}: {{}}}}, {name!r}\n")
    assert "text of 1 to 255" in refused(lambda: load_recipe(str(path), shop))
    assert "text of 1 to 255" in refused(lambda: check_title("it", "name", name))


@pytest.mark.parametrize("name", ["a", "A_1", "x.y-z", "_", "7", "x" * 64])
def test_names_that_can_be(name):
    check_name("it", "name", name)
    assert Funnel((Popular(name=name),)).stages[0].name == name


@pytest.mark.parametrize("path", ["a", "=", "a=", "=b", "a=b,a=c", ",", "a=b,", "a==b"])
def test_paths_that_are_none(path):
    if path == "a==b":
        assert modes_of(path) == {"a": "=b"}
    else:
        refused(lambda: modes_of(path))


# -- recipes ---------------------------------------------------------------------------------------

JOINS = RECIPE + "from karmafunnel.stages.recall import Join\n"
BROKEN = {
    "exits": "import sys; sys.exit(0)",
    "exits with words": "raise SystemExit('so long')",
    "no Python": "def (",
    "endless": "def f(): f()\nf()",
    "nested": "x = " + "(" * 1000 + ")" * 1000,
    "a null byte": "x = '\x00'",
    "empty": "",
    "no memory": "x = [0] * 10**18",
    "exits of the log": "import sys\nfunnel = lambda log: sys.exit(3)",
    "raises something odd": "class E(Exception):\n  def __str__(self): return 5\nraise E",
    "five": "funnel = 5",
    "label of five": RECIPE + "label = 5",
    "text of five": RECIPE + "embedders = 'x'",
    "a huge number": RECIPE + "embedders = 10**5000",
    "raises the base of all": "raise BaseException('x')",
    "a grid of numbers": RECIPE + "rows, against, grid = {'a': {}}, 'a', {'a': 3}",
    "joins a number": JOINS + "funnel = Join([3], k=10)",
    "joins a funnel": JOINS + "funnel = Join([funnel >> LightGBMRank(k=3)], k=10)",
    "goes on with a number": RECIPE + "funnel = funnel >> 3",
    "panics": "import polars as pl\nraise pl.exceptions.PanicException('x')",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=list(BROKEN))
def test_recipes_that_cannot_be_read_say_so_in_a_line(text, shop, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert str(path) in refused(lambda: load_recipe(str(path), shop))


def test_recipes_that_are_no_text(shop, tmp_path):
    (tmp_path / "latin.py").write_bytes("x = 'é'".encode("latin-1"))
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    (tmp_path / "folder.py").mkdir()
    for name in ("latin.py", "binary.py", "folder.py", "none.py", "a\x00b"):
        said = refused(lambda: load_recipe(str(tmp_path / name), shop))  # noqa: B023
        assert "recipe" in said or "UTF-8" in said


def test_a_recipe_can_be_interrupted(shop, tmp_path):
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_recipe(str(tmp_path / "mine.py"), shop)


def test_a_row_that_exits_is_a_failed_line(shop, tmp_path):
    path = tmp_path / "rows.py"
    path.write_text(
        "import sys\n" + RECIPE + "rows, against = {'a': {}, 'b': lambda log: sys.exit(0)}, 'a'\n"
    )
    assert "SystemExit" in load_recipe(str(path), shop).errors["b"]


# -- how a command ends ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error,code,said",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "MemoryError"),
        (RecursionError("deep"), 1, "deep"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), 1, "UnicodeDecodeError"),
        (OSError(28, "No space left"), 1, "No space left"),
        (SystemExit(0), 1, "sys.exit(0)"),
        (KarmafunnelError("no [bold]x[/bold]\x1b[31m"), 1, "no [bold]x[/bold]\\x1b[31m"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_how_a_command_ends(error, code, said, monkeypatch):
    def fail(*words, **more):
        raise error

    monkeypatch.setattr(COMMANDS["doctor"], "callback", fail)
    answer = CliRunner().invoke(main, ["doctor"])
    assert answer.exit_code == code
    assert said in answer.stderr
    assert "Traceback" not in answer.output
    assert len(answer.stderr.splitlines()) == 1


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(COMMANDS["doctor"], "callback", lambda **_: [][1])
    assert isinstance(CliRunner().invoke(main, ["doctor"]).exception, IndexError)


STAGE_THAT_EXITS = """
import sys
from dataclasses import dataclass
from karmafunnel.stages.stage import Stage


@dataclass(frozen=True, repr=False)
class Leaves(Stage):
    k: int = 5
    name: str = 'recall'

    def fit(self, context, upstream):
        sys.exit(0)


funnel, embedders, label = Leaves(), {}, None
"""


def test_a_recipe_whose_stage_exits_while_it_is_fitted(shop, tmp_path):
    (tmp_path / "leaves.py").write_text(STAGE_THAT_EXITS)
    shop.write(tmp_path / "log")
    words = [
        "replay",
        tmp_path / "leaves.py",
        tmp_path / "log",
        "--out",
        tmp_path / "run",
        "--no-cache",
    ]
    answer = CliRunner().invoke(main, list(map(str, words)))
    assert answer.exit_code == 1
    assert "sys.exit(0)" in answer.stderr
    assert not (tmp_path / "run").exists()


def test_a_terminal_without_unicode(tmp_path):
    """What the encoding lacks is spelt out."""
    path = Path(tmp_path / "réçïpe.py")
    code = (
        f"import sys; sys.argv = ['karmafunnel', 'replay', {str(path)!a}, 'nowhere', '--out', "
        "'x']; from karmafunnel.cli import main; main()"
    )
    there = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": ":".join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code], env=there, capture_output=True
    )
    assert found.returncode == 1
    assert b"Traceback" not in found.stderr
    assert b"error:" in found.stderr
