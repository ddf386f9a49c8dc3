"""Files: whole after a kill and on a full disk, places that are claimed, digests that are checked,
names taken as they stand, UTF-8.
"""

import ast
import contextvars
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import karmafunnel
import polars as pl
import pytest
from click.testing import CliRunner, Result
from every_command import COMMANDS
from karmafunnel import files
from karmafunnel.checks import validate
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError, NotWrittenError
from karmafunnel.files import (
    DIGESTS,
    EMBEDDING,
    LOG,
    PAGE,
    PLAN,
    RUN,
    SERVICES,
    atomic_file,
    atomic_folder,
    check,
    claim,
    edited,
    fault,
    intact,
    marked,
    read_json,
    read_table,
    read_text,
    seal,
    settle,
    sweep,
    write_json,
    write_parquet,
    write_text,
)
from karmafunnel.log import Log, read
from karmafunnel.models import gbdt
from karmafunnel.models.embedders import RandomVectors, TfidfSVD
from karmafunnel.models.training import Snapshot
from karmafunnel.simulator.load.arrivals import Poisson
from karmafunnel.simulator.load.queueing import Simulation, simulate
from karmafunnel.simulator.load.services import Service, Services, ServiceTime
from karmafunnel.simulator.measure.compare import Run, measure
from karmafunnel.simulator.replay import replay as replaying
from karmafunnel.simulator.replay import shards
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import Recipe, load_recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.replay.tables import TABLES
from safetensors import SafetensorError

pytestmark = pytest.mark.slow

ROOT = Path(karmafunnel.__file__).parent
CODE = [
    p
    for p in ROOT.rglob("*.py")
    if not {"tests", ".venv", "build", ".mypy_root", "out"} & set(p.relative_to(ROOT).parts)
]
RECIPE = """
import time
from dataclasses import dataclass

from karmafunnel.models.embedders import TfidfSVD
from karmafunnel.stages.stage import *
from karmafunnel.stages.features import *
from karmafunnel.stages.prerank import COLDPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import *


@dataclass(frozen=True, repr=False)
class Slow(Stage):
    "The shop's order, after a while."

    k: int = 20
    seconds: float = 0.0
    name: str = "slow"

    def fit(self, context, upstream):
        return FittedSlow(self, context)


class FittedSlow(FittedStage):
    def score(self, rows):
        time.sleep(self.stage.seconds)
        return rows.frame["score"].to_numpy()


embedders, label = {"tfidf": TfidfSVD(dim=16)}, "click"
features = [Upstream(), Similarity("tfidf")]
funnel = (
    Join([VectorRecall("tfidf", k=60, index=HNSW()), ItemKNN(k=40)], k=80)
    >> COLDPreRank(k=40, features=features, epochs=1)
    >> LightGBMRank(k=20, features=features, trees=10, calibrated="isotonic")
    >> Slow(seconds=SECONDS)
)
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory, shop) -> Log:
    folder = tmp_path_factory.mktemp("log")
    shop.write(folder / "log")
    return Log.open(folder / "log")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, log) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "mine.py"
    path.write_text(RECIPE.replace("SECONDS", "0"))
    return load_recipe(str(path), log)


@pytest.fixture(scope="module")
def run(log, recipe, tmp_path_factory) -> Path:
    """A finished Run beside the cache that it was made with."""
    folder = tmp_path_factory.mktemp("runs")
    return replay(recipe, log, folder / "run", RunOptions(cache=folder / "cache", chunk=16))


def contents(run: Path) -> list[bytes]:
    return [(run / f"{name}.parquet").read_bytes() for name in TABLES if name != "timing"]


def damage(path: Path, how: str = "zero") -> None:
    """Other bytes in a file's middle, of the same length; or the file cut short, or gone."""
    found = path.read_bytes()
    middle = len(found) // 2
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(found[:middle])
    else:
        path.write_bytes(found[:middle] + bytes([found[middle] ^ 1]) + found[middle + 1 :])


def left(folder: Path) -> list[str]:
    """What writers have left in a folder and those in it."""
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob(".*") if files.TEMPORARY.fullmatch(p.name)
    )


# -- whole or not at all ---------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from karmafunnel.files import atomic_folder, write_text
place = Path(sys.argv[1])
for version in range(10**6):
    with atomic_folder(place / "folder", sealed=True) as temporary:
        for part in range(5):
            (temporary / f"{part}.txt").write_text(str(version) * 1000)
    write_text(place / "file.txt", str(version) * 1000)
    print(version, flush=True)
"""


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_and_the_next_writer_cleans_up(tmp_path):
    last = -1
    for i in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, encoding="utf-8"
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.013 * i)
        process.kill()
        process.wait()
        assert fault(tmp_path / "folder") is None
        versions = {(tmp_path / "folder" / f"{part}.txt").read_text() for part in range(5)}
        assert len(versions) == 1
        assert len(set((tmp_path / "file.txt").read_text())) <= 3
        last = i
    assert last == 5
    write_text(tmp_path / "other.txt", "")
    files._swept.clear()
    write_text(tmp_path / "other.txt", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt", "folder", "other.txt"]


def test_what_is_alive_is_not_swept(tmp_path):
    with (
        atomic_folder(tmp_path / "a") as alive,
        atomic_file(tmp_path / "b.txt") as also,
        claim(tmp_path / "c", "test", RUN),
    ):
        (alive / "x").touch()
        dead = tmp_path / ".karmafunnel-0123456789abcdef.tmp"
        dead.mkdir()
        (tmp_path / ".karmafunnel-mine.tmp").touch()  # not of that form
        sweep(tmp_path)
        assert alive.is_dir()
        assert also.is_file()
        assert not dead.exists()
        assert (tmp_path / ".karmafunnel-mine.tmp").exists()
        assert len(left(tmp_path)) == 3
    assert left(tmp_path) == []


def test_without_locks_only_what_is_a_day_old_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    young, old = (tmp_path / f".karmafunnel-{i * 16}.tmp" for i in "ab")
    for path in (young, old):
        path.mkdir()
    os.utime(old, (time.time() - 2 * files.DAY,) * 2)
    sweep(tmp_path)
    assert young.exists() and not old.exists()
    with atomic_folder(tmp_path / "x") as temporary, claim(tmp_path / "y", "test", RUN):
        (temporary / "file").touch()
    assert (tmp_path / "x" / "file").exists()


def test_where_folders_cannot_be_swapped_a_crash_between_the_renames_is_put_right(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    place = tmp_path / "run"
    for text in ("old", "new"):
        with atomic_folder(place) as temporary:
            (temporary / "run.json").write_text(text)
    assert (place / "run.json").read_text() == "new" and os.listdir(tmp_path) == ["run"]
    place.rename(files._old(place))  # the crash
    with pytest.raises(KarmafunnelError, match="needs JSON"):
        Run.open(place)
    assert (place / "run.json").read_text() == "new" and os.listdir(tmp_path) == ["run"]
    shutil.copytree(place, files._old(place))  # the crash came later
    settle(place)
    assert os.listdir(tmp_path) == ["run"]


def test_the_first_of_two_who_make_the_same_stays(tmp_path):
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "a", sealed=True, first=True) as temporary:
            (temporary / "x").write_text(text)
    assert (tmp_path / "a" / "x").read_text() == "first"
    (tmp_path / "a" / "x").write_text("damaged")
    with atomic_folder(tmp_path / "a", sealed=True, first=True) as temporary:
        (temporary / "x").write_text("third")
    assert (tmp_path / "a" / "x").read_text() == "third" and os.listdir(tmp_path) == ["a"]


# -- a full disk -----------------------------------------------------------------------------------


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    pl.exceptions.ComputeError("No space left on device (os error 28)"),
    RuntimeError("Error: write: 3 != 8 (No space left on device)"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("writer", [atomic_folder, atomic_file])
def test_a_full_disk_is_one_line_that_names_the_place(tmp_path, writer, error):
    says = r"place: could not be written: No space left on device; nothing of it was left"
    with pytest.raises(KarmafunnelError, match=says) as raised, writer(tmp_path / "place"):
        raise error
    assert "\n" not in str(raised.value) and os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "place"):
        raise ZeroDivisionError


def test_a_table_on_a_full_disk_says_so(tmp_path):
    """Polars itself, writing to a file, would say no more than "transport error"."""
    before, old = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        with (
            pytest.raises(NotWrittenError, match=r"place: could not be written: File too large"),
            atomic_folder(tmp_path / "place") as made,
        ):
            write_parquet(
                made / "x.parquet",
                pl.DataFrame({"a": range(100_000)}).sample(fraction=1, shuffle=True, seed=0),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert os.listdir(tmp_path) == []
    write_parquet(tmp_path / "x.parquet", pl.DataFrame({"a": [1]}), compression="lz4")
    assert read_table(tmp_path / "x.parquet")["a"].to_list() == [1]


def test_a_full_disk_is_found_beneath_other_errors():
    full = OSError(errno.ENOSPC, "No space left on device")
    try:
        try:
            raise full
        except OSError as error:
            raise RuntimeError("the row is broken") from error
    except RuntimeError as error:
        assert files.not_written(error)
    assert not files.not_written(RuntimeError("the row is broken")) and files.not_written(
        NotWrittenError("Permission denied")
    )


@pytest.mark.parametrize(("at", "stays"), [(0, 0), (2, 2), (None, 7)])
def test_a_replay_on_a_full_disk_says_what_stays_of_it(
    at, stays, log, recipe, run, tmp_path, monkeypatch
):
    """The disk is full while a shard is written, or (None) while all are merged."""
    real, disk = write_parquet, OSError(errno.ENOSPC, "No space left on device")

    def full(path, *frame, **options):
        if at is None or (
            path.parent.parent.name.endswith(".partial")
            and sum(s.is_dir() for s in path.parent.parent.glob("0*")) == at
        ):
            raise disk
        return real(path, *frame, **options)

    monkeypatch.setattr(*((replaying, "merge") if at is None else (shards, "write_parquet")), full)
    with pytest.raises(
        NotWrittenError, match="could not be written: No space left on device"
    ) as raised:
        replay(recipe, log, tmp_path / "run", RunOptions(cache=run.parent / "cache", chunk=16))
    names = os.listdir(tmp_path)
    if stays:
        (partial,) = names
        says = (
            f"; {stays} of 7 pieces of the replay stay in {tmp_path / partial}, the same "
            "command goes on with them"
        )
        assert str(raised.value).endswith(says)
        assert "nothing of it was left" not in str(raised.value) and sorted(
            os.listdir(tmp_path / partial)
        ) == [f"{i:06d}" for i in range(stays)]
    else:
        assert names == [] and str(raised.value).endswith("nothing of it was left")
    monkeypatch.undo()
    replay(recipe, log, tmp_path / "run", RunOptions(cache=run.parent / "cache", chunk=16))
    assert contents(tmp_path / "run") == contents(run) and os.listdir(tmp_path) == ["run"]


def test_a_replay_that_fails_at_once_leaves_no_empty_folder(
    log, recipe, run, tmp_path, monkeypatch
):
    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(replaying.RunWriter, "of_chunk", stops)
    with pytest.raises(KeyboardInterrupt):
        replay(recipe, log, tmp_path / "run", RunOptions(cache=run.parent / "cache", chunk=16))
    assert os.listdir(tmp_path) == []


def small_files() -> None:
    """In a process: no file grows above 5,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))


@pytest.mark.parametrize("command", ["world", "replay", "queue", "fit-embedder"])
def test_commands_that_find_the_disk_full_end_in_one_line_and_leave_nothing(
    command, log, recipe, tmp_path
):
    Services((Service("s", ServiceTime(base_ms=1)),)).write(tmp_path / "services.toml")
    assert recipe.path is not None and log.path is not None
    words = {
        "world": ["world", tmp_path / "out"],
        "replay": ["replay", recipe.path, log.path, "--out", tmp_path / "out"],
        "queue": ["queue", tmp_path / "services.toml", "--rate", "20", "--out", tmp_path / "out"],
        "fit-embedder": ["fit-embedder", recipe.path, log.path, "--out", tmp_path / "out"],
    }[command]
    cache = tmp_path / "cache"
    process = subprocess.run(
        [sys.executable, "-m", "karmafunnel", *map(str, words)],
        capture_output=True,
        encoding="utf-8",
        preexec_fn=small_files,
        env=os.environ | {"KARMAFUNNEL_CACHE": str(cache)},
    )
    last = process.stderr.strip().splitlines()[-1]
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert last.startswith("error: ") and "could not be written: File too large" in last
    assert not (tmp_path / "out").exists() and left(tmp_path) == []
    assert all(intact(folder) for folder in cache.iterdir()) if cache.exists() else True


# -- claims ----------------------------------------------------------------------------------------

# Every command that writes, its other arguments nowhere to be found: the place is looked at first.
# And its place among the words.
WRITES: dict[str, tuple[str, list[str]]] = {
    "world": ("", ["world", "PLACE"]),
    "convert": ("", ["convert", "trivago", "nowhere", "PLACE"]),
    "sample": ("", ["sample", "nowhere", "PLACE"]),
    "replay": ("", ["replay", "baseline", "nowhere", "--out", "PLACE"]),
    "replay --path": (
        "",
        ["replay", "baseline", "nowhere", "--path", "rank=skip", "--out", "PLACE"],
    ),
    "table": ("", ["table", "baseline", "nowhere", "--out", "PLACE"]),
    "tune": ("", ["tune", "nowhere", "--budget-ms", "5", "--out", "PLACE"]),
    "queue": ("", ["queue", "nowhere.toml", "--rate", "5", "--out", "PLACE"]),
    "plan": ("", ["plan", "nowhere.toml", "--rate", "5", "--p99-ms", "5", "--out", "PLACE"]),
    "fit-embedder": ("", ["fit-embedder", "baseline", "nowhere", "--out", "PLACE"]),
    "profile": (".toml", ["profile", "baseline", "nowhere", "--out", "PLACE"]),
    "report": (".html", ["report", "nowhere", "--out", "PLACE"]),
    "describe": (".html", ["describe", "nowhere", "--html", "PLACE"]),
    "demo log": ("log", ["demo", "--out", "PARENT"]),
    "demo run": ("run", ["demo", "--out", "PARENT"]),
    "demo page": ("report.html", ["demo", "--out", "PARENT"]),
}


def command(name: str, folder: Path) -> tuple[Path, list[str]]:
    """The place that a command writes to, and the command."""
    suffix, words = WRITES[name]
    place = folder / suffix if name.startswith("demo") else folder / f"place{suffix}"
    return place, [{"PLACE": str(place), "PARENT": str(folder)}.get(word, word) for word in words]


def ran(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def refusal(words: list[str]) -> str:
    answer = ran(*words)
    assert answer.exit_code == 1
    assert "Traceback" not in answer.output
    assert isinstance(answer.exception, SystemExit)
    (line,) = answer.stderr.strip().splitlines()
    return str(line)


@pytest.mark.parametrize("name", WRITES)
def test_every_command_that_writes_refuses_what_is_not_its_own(name, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    place, words = command(name, work)
    place.write_text("mine")
    for more in ([], ["--force"] if "report" not in name and "describe" not in name else []):
        assert str(place) in refusal([*words, *more])
    assert place.read_text() == "mine"
    place.unlink()
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    assert str(place) in refusal(words) and (place / "notes.txt").read_text() == "mine"
    shutil.rmtree(place)
    place.symlink_to(tmp_path / "nowhere")
    assert "found a link to" in refusal(words) and place.is_symlink()
    place.unlink()
    with claim(place, "another", RUN):  # in this process, but not by the same chain of calls
        assert (
            f"{place} is being written by another (process {os.getpid()} on "
            in contextvars.Context().run(refusal, words)
        )
    assert os.listdir(work) == []
    (tmp_path / "file").write_text("mine")
    _, words = command(name, tmp_path / "file")
    assert (
        "needs a folder to lie in" in refusal(words) and (tmp_path / "file").read_text() == "mine"
    )


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EROFS])
def test_a_lock_that_cannot_be_made_is_nobodys(number, tmp_path, monkeypatch):
    def refuses(path, *more):
        if str(path).endswith(".lock"):
            raise OSError(number, os.strerror(number), str(path))
        return opens(path, *more)

    opens = os.open
    monkeypatch.setattr(os, "open", refuses)
    needs = f"needs a folder that can be written, found {os.strerror(number)}"
    with pytest.raises(KarmafunnelError, match=needs), claim(tmp_path / "run", "replay", RUN):
        pass


@pytest.mark.parametrize(
    ("make", "found"),
    [(os.mkfifo, "a device or pipe"), (os.mkdir, "a folder")],
    ids=["pipe", "folder"],
)
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "a"),
        lambda path: write_json(path, {"a": 1}),
        lambda path: write_parquet(path, pl.DataFrame({"a": [1]})),
    ],
    ids=["text", "json", "parquet"],
)
def test_a_pipe_or_a_folder_in_the_place_of_a_file_stays(write, make, found, tmp_path):
    place = tmp_path / "place"
    make(place)
    before = place.stat()
    with pytest.raises(NotWrittenError, match=f"the name of a file, found {found}$"):
        write(place)
    assert (place.stat().st_mode, place.stat().st_ino) == (before.st_mode, before.st_ino)
    assert os.listdir(tmp_path) == ["place"]


def test_where_nothing_can_be_written_is_said_first(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root can write everywhere")
    tmp_path.chmod(0o500)
    assert "needs a folder that can be written" in refusal(
        ["replay", "baseline", "nowhere", "--out", str(tmp_path / "run")]
    )
    tmp_path.chmod(0o700)


def test_something_else_of_ours_needs_force(log, recipe, run, tmp_path):
    cache = run.parent / "cache"
    shutil.copytree(run, tmp_path / "run")
    before = contents(tmp_path / "run")
    for change, says in (
        ({"seed": 1}, ("seed 0", "seed 1")),
        ({"limit": 10}, ("limit None", "limit 10")),
        ({"window": "W2b"}, ("window W3", "window W2b")),
    ):
        with pytest.raises(
            KarmafunnelError,
            match=f"holds a Run with {says[0]}; to replace it by one with {says[1]}, use --force",
        ):
            options = RunOptions(cache=cache, **change)  # type: ignore[arg-type]
            replay(recipe, log, tmp_path / "run", options)
    other = replace(recipe, funnel=recipe.funnel.without("slow"))
    with pytest.raises(
        KarmafunnelError,
        match=(
            r"holds a Run with funnel \.\.\..* >> Slow\(\)\.\.\.; to replace it by one with "
            r"funnel \.\.\."
        ),
    ):
        replay(other, log, tmp_path / "run", RunOptions(cache=cache))
    replay(
        recipe, log, tmp_path / "run", RunOptions(cache=cache, chunk=16)
    )  # the same: no more is asked
    assert contents(tmp_path / "run") == before
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(
        KarmafunnelError, match=r"found notes\.txt in it as well, which karmafunnel did not write"
    ):
        replay(recipe, log, tmp_path / "run", RunOptions(cache=cache, chunk=16, force=True))
    (tmp_path / "run" / "notes.txt").unlink()
    replay(other, log, tmp_path / "run", RunOptions(cache=cache, force=True))
    assert Run.open(tmp_path / "run").meta["funnel"] == repr(other.funnel)
    for place, kind in ((run, LOG), (run, EMBEDDING), (log.path, RUN)):
        assert place is not None
        with (
            pytest.raises(KarmafunnelError, match=r"found a (Run|log); --force replaces it"),
            claim(place, "test", kind),
        ):
            pass
        with claim(place, "test", kind, force=True):
            pass
    changed = Log.make(log.items, log.requests, log.exposures, log.meta | {"name": "other"})
    shutil.copytree(log.path, tmp_path / "log")  # type: ignore[arg-type]
    with pytest.raises(
        KarmafunnelError,
        match="holds a log with name shop; to replace it by one with name other, use --force",
    ):
        changed.write(tmp_path / "log")
    changed.write(tmp_path / "log", force=True)
    RandomVectors().fit(log).save(tmp_path / "saved")
    with pytest.raises(KarmafunnelError, match="holds an embedding with embedder "):
        TfidfSVD(dim=8).fit(log).save(tmp_path / "saved")


@pytest.mark.parametrize("kind", ["run", "log", "catalogue", "embedding", "simulation", "plan"])
@pytest.mark.parametrize("by", [RUN, LOG, PLAN])
def test_what_a_person_put_into_a_folder_of_ours_stays_and_is_named(kind, by, log, run, tmp_path):
    place, _ = finished(kind, log, run, tmp_path)
    (place / "notes.txt").write_text("mine")
    said = r"found notes\.txt in it as well, which karmafunnel did not write"
    for force in (False, True):
        with pytest.raises(KarmafunnelError, match=said), claim(place, "test", by, force=force):
            pass
    (place / "notes.txt").unlink()
    with claim(place, "test", by, force=True):
        pass


RATE_5 = ["one.toml", "--out", "out", "--rate", "5", "--requests", "2000"]
WORLD = ["world", "out", "--users", "20", "--requests", "60", "--items"]
AGAIN = {  # what is asked, what is asked next, and the two as a person is told
    "rate": (["plan", *RATE_5, "--p99-ms", "99"], {"5": "6"}, "rate 5.0", "rate 6.0"),
    "target": (
        ["plan", *RATE_5, "--p99-ms", "99"],
        {"99": "98"},
        "target_ms 99.0",
        "target_ms 98.0",
    ),
    "planned": (
        ["plan", *RATE_5, "--p99-ms", "99"],
        {"one.toml": "two.toml"},
        "base_ms = 8",
        "base_ms = 9",
    ),
    "arrivals": (["queue", *RATE_5], {"5": "6"}, "Poisson(rate=5.0)", "Poisson(rate=6.0)"),
    "requests": (["queue", *RATE_5], {"2000": "200"}, "requests 2000", "requests 200"),
    "services": (["queue", *RATE_5], {"one.toml": "two.toml"}, "base_ms = 8", "base_ms = 9"),
    "items": ([*WORLD, "100"], {"100": "110"}, "generate(items=100", "generate(items=110"),
}


@pytest.mark.parametrize("name", AGAIN)
def test_asked_something_else_a_command_does_not_replace_what_it_wrote(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ms, file in ((8, "one.toml"), (9, "two.toml")):
        services = Services((Service("s", ServiceTime(base_ms=ms)),), note="a long one " * 9)
        services.write(file)
    words, change, old, new = AGAIN[name]
    other = [change.get(word, word) for word in words]

    def written():
        return {part: (tmp_path / "out" / part).read_bytes() for part in parts_of(tmp_path / "out")}

    assert ran(*words).exit_code == 0 and ran(*words).exit_code == 0
    before, said = written(), refusal(other)
    assert re.search(
        rf"{re.escape(old)}.*; to replace it by one with .*{re.escape(new)}.*, use --force", said
    )
    assert written() == before
    assert ran(*other, "--force").exit_code == 0 and written() != before


def test_what_a_command_reads_is_not_overwritten(log, tmp_path, monkeypatch):
    text = Services((Service("s", ServiceTime(base_ms=1)),)).toml()
    (tmp_path / "services.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert "needs to be another place than its own input" in refusal(
        ["plan", "services.toml", "--rate", "5", "--p99-ms", "50", "--out", "."]
    )
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "services.toml").write_text(text)  # a hand-written one
    assert "found something else" in refusal(
        ["plan", "services.toml", "--rate", "5", "--p99-ms", "50", "--out", "plan"]
    )
    assert (
        (tmp_path / "plan" / "services.toml").read_text()
        == (tmp_path / "services.toml").read_text()
        == text
    )
    words = [
        "plan",
        "services.toml",
        "--rate",
        "5",
        "--p99-ms",
        "50",
        "--requests",
        "2000",
        "--out",
        "planned",
    ]
    assert ran(*words).exit_code == 0 and ran(*words).exit_code == 0
    file = tmp_path / "planned" / "services.toml"
    file.write_text(file.read_text() + "\n# edited\n")
    assert "was edited by hand since it was written; --force" in refusal(
        words
    ) and file.read_text().endswith("# edited\n")
    assert ran(*words, "--force").exit_code == 0 and not file.read_text().endswith("# edited\n")
    with (
        pytest.raises(KarmafunnelError, match="another place than its own input"),
        claim(log.path, "replay", RUN, inputs=[log.path]),
    ):  # type: ignore[arg-type]
        pass
    assert "another place" in refusal(["sample", str(log.path), str(log.path)])


def test_a_page_and_a_services_file_are_known_by_their_mark(tmp_path):
    for kind, ours in ((PAGE, f"<!doctype html>{files.PAGE_MARK}"), (SERVICES, marked("a = 1\n"))):
        path = tmp_path / "file"
        path.write_text(ours)
        with claim(path, "test", kind):
            pass
        path.write_text("by hand")
        with (
            pytest.raises(KarmafunnelError, match="another kind of file"),
            claim(path, "test", kind, force=True),
        ):
            pass
    (tmp_path / "a.toml").write_text(marked("a = 1\n"))
    assert not edited(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text(marked("a = 1\n").replace("1", "2"))
    assert edited(tmp_path / "a.toml")


def test_a_claim_leaves_no_folder_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), claim(tmp_path / "a" / "b" / "c", "test", RUN):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_two_replays_into_one_place_and_a_neighbour_of_almost_its_name(log, recipe, run, tmp_path):
    """The second is refused and the first goes on; a live replay into x.y keeps its shards while
    one into x begins and ends.
    """
    slow = tmp_path / "slow.py"
    slow.write_text(RECIPE.replace("SECONDS", "0.3"))
    cache = run.parent / "cache"
    words = ["replay", str(slow), str(log.path), "--out", str(tmp_path / "x.y")]
    code = main_with_shards_of(16, words)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"KARMAFUNNEL_CACHE": str(cache)},
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: list(tmp_path.glob(".x.y.*.partial/000000")))
    with pytest.raises(
        KarmafunnelError,
        match=(
            r"x\.y is being written by replay \(process \d+ on .*\); wait for it, or name "
            r"another place"
        ),
    ):
        replay(recipe, log, tmp_path / "x.y", RunOptions(cache=cache))
    replay(recipe, log, tmp_path / "x", RunOptions(cache=cache))
    assert list(tmp_path.glob(".x.y.*.partial/000000"))
    process.communicate(timeout=60)
    assert process.returncode == 0 and Run.open(tmp_path / "x.y").read("requests").height == 100
    assert sorted(os.listdir(tmp_path)) == ["slow.py", "x", "x.y"]


def main_with_shards_of(chunk: int, words: list[str]) -> str:
    """Code that runs a command line with shards of so many requests, for which there is no flag."""
    return (
        "from dataclasses import fields; from karmafunnel.cli import main; from "
        "karmafunnel.simulator.replay.options import RunOptions; "
        f"RunOptions.__init__.__defaults__ = tuple({chunk} if f.name == 'chunk' else f.default "
        f"for f in fields(RunOptions)); main({words!r})"
    )


def wait_for(happens: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# -- digests ---------------------------------------------------------------------------------------


def parts_of(folder: Path) -> list[str]:
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != DIGESTS
    )


def test_everything_that_was_fitted_is_made_again_where_it_is_damaged(
    log, recipe, run, tmp_path, capsys
):
    """Every file in the cache, one after the other, flipped, cut or gone: it is made again and a
    line names it; the same Run comes out.
    """
    replaying.prepare(recipe, log, RunOptions(cache=tmp_path / "cache"))
    # those of folds are read to fit later stages
    names = [name for name in parts_of(tmp_path / "cache") if "." not in name.split("/")[0]]
    kinds = {Path(name).name for name in names}
    assert {
        "trees.txt",
        "index.faiss",
        "neighbours.npz",
        "model.safetensors",
        "tensors.safetensors",
        "embedding.json",
    } <= kinds
    for i, name in enumerate(names):
        damage(tmp_path / "cache" / name, ("zero", "cut", "gone")[i % 3])
        files.say.cache_clear()
        capsys.readouterr()
        replaying.prepare(recipe, log, RunOptions(cache=tmp_path / "cache"))
        said = capsys.readouterr().err
        assert str(tmp_path / "cache" / name) in said and "it is made again" in said
        assert fault(tmp_path / "cache" / name.split("/")[0]) is None
    for how in ("zero", "gone"):
        (index,) = (tmp_path / "cache").rglob("index.faiss")
        damage(index, how)
        damage(next((tmp_path / "cache").rglob("trees.txt")), how)
        replay(recipe, log, tmp_path / how, RunOptions(cache=tmp_path / "cache", chunk=16))
        assert contents(tmp_path / how) == contents(run)
    sealed = next((tmp_path / "cache").glob("recall-*")) / DIGESTS
    sealed.unlink()  # what can be made again is not trusted without
    replaying.prepare(recipe, log, RunOptions(cache=tmp_path / "cache"))
    assert sealed.exists()


def finished(kind: str, log: Log, run: Path, folder: Path) -> tuple[Path, Callable[[], object]]:
    """Something that cannot be made again, and how it is opened."""
    place = folder / kind
    if kind == "run":
        shutil.copytree(run, place)
        return place, lambda: measure(Run.open(place), ["HR@10"])
    if kind == "log":
        shutil.copytree(log.path, place)  # type: ignore[arg-type]
        return place, lambda: Log.open(place).checksum
    if kind == "catalogue":
        place.mkdir()
        shutil.copy(log.path / "items.parquet", place)  # type: ignore[operator]
        for name in ("log.json", DIGESTS):
            shutil.copy(log.path / name, place)  # type: ignore[operator]
        return place, lambda: read(place)
    if kind == "embedding":
        TfidfSVD(dim=8).fit(log).save(place)
        return place, lambda: TfidfSVD(dim=8).load(place, log)
    services = Services((Service("s", ServiceTime(base_ms=1)),))
    if kind == "plan":
        services.write(folder / "services.toml")
        assert (
            ran(
                "plan",
                folder / "services.toml",
                "--rate",
                5,
                "--p99-ms",
                50,
                "--requests",
                2000,
                "--out",
                place,
            ).exit_code
            == 0
        )
        return place, lambda: None
    simulate(services, Poisson(10), 50, 0, out=place, events=True)
    return place, lambda: Simulation.open(place)


@pytest.mark.parametrize("kind", ["run", "log", "catalogue", "embedding", "simulation"])
def test_what_cannot_be_made_again_is_refused_by_name_where_it_is_damaged(kind, log, run, tmp_path):
    place, opens = finished(kind, log, run, tmp_path)
    opens()
    for name in parts_of(place):
        kept = (place / name).read_bytes()
        for how in ("zero", "cut", "gone"):
            damage(place / name, how)
            with pytest.raises(KarmafunnelError) as raised:
                opens()
            assert name.split("/")[-1] in str(raised.value) and "\n" not in str(raised.value)
            (place / name).write_bytes(kept)
    opens()


def test_what_is_older_than_digests_opens_with_a_line(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / DIGESTS).unlink()
    for _ in range(2):
        assert Run.open(tmp_path / "run").read("requests").height == 100
    assert capsys.readouterr().err.count("made before files had digests") == 1


def test_a_log_changed_on_purpose_is_sealed_anew(log, recipe, tmp_path):
    shutil.copytree(log.path, tmp_path / "log")  # type: ignore[arg-type]
    path = tmp_path / "log" / "items.parquet"
    pl.read_parquet(path).with_columns(pl.col("price") * 2).write_parquet(path)
    words = ["replay", str(recipe.path), str(tmp_path / "log"), "--out", str(tmp_path / "run")]
    said = refusal(words)
    assert (
        f"{path}: needs the bytes whose checksum stands in log.json" in said
        and "validate --seal" in said
    )
    with pytest.raises(
        KarmafunnelError,
        match=r"items\.parquet: needs the bytes whose checksum stands in log\.json",
    ):
        _ = Log.open(tmp_path / "log").items
    answer = ran("validate", "--seal", "-v", tmp_path / "log")
    assert "checksums: items.parquet: " in answer.stderr and re.search(
        "checksums +PASS", answer.stdout
    )
    assert Log.open(tmp_path / "log").checksum != log.checksum
    assert "nothing has changed" in ran("validate", "--seal", tmp_path / "log").stderr
    path = tmp_path / "log" / "log.json"
    path.write_text(path.read_text() + " ")  # nothing that another check asks about
    assert (
        f"{path}: other bytes than were written; where that was meant, run karmafunnel validate "
        "--seal" in refusal(words)
    )
    (asked,) = [check for check in validate(tmp_path / "log") if check.name == "checksums"]
    assert asked.status == "FAIL" and asked.examples[0]["file"] == "log.json"
    # it replaces nothing, so what else lies there is no matter
    (tmp_path / "log" / "notes.txt").write_text("mine")
    assert (
        f"{path}: other bytes than were written"
        in ran("validate", "--seal", tmp_path / "log").stderr
    )
    assert ran(*words).exit_code == 0
    (tmp_path / "log" / DIGESTS).unlink()
    files.say.cache_clear()
    assert "made before files had digests" in ran("describe", tmp_path / "log").stderr
    assert (
        f"{tmp_path / 'log' / DIGESTS}: missing"
        in ran("validate", "--seal", tmp_path / "log").stderr
    )


def test_trees_that_are_damaged_never_reach_the_library(log, recipe, run, tmp_path, monkeypatch):
    kept = next((run.parent / "cache").rglob("trees.txt"))
    gbdt.load_gbdt(kept)
    monkeypatch.setattr(
        gbdt.lgb, "Booster", lambda **_: pytest.fail("LightGBM was given damaged trees")
    )
    for how in ("zero", "cut"):
        shutil.copy(kept, tmp_path / "trees.txt")
        damage(tmp_path / "trees.txt", how)
        with pytest.raises(
            KarmafunnelError, match=r"trees\.txt: needs a LightGBM text file as it was written"
        ):
            gbdt.load_gbdt(tmp_path / "trees.txt")


def test_checkpoints_carry_a_digest(tmp_path, capsys):
    import torch

    file = tmp_path / "state.safetensors"
    tensors = {
        "x": torch.arange(1000, dtype=torch.float32),
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    Snapshot(tensors, {"step": 3}).write(file)
    written = file.read_bytes()
    for _ in range(20):  # more than one key of metadata would stand in any order
        Snapshot(tensors, {"step": 3}).write(file)
        assert file.read_bytes() == written
    found = Snapshot.read(file)
    assert found.facts == {"step": 3} and found.tensors["x"][7] == 7
    assert Snapshot.resume(file) is not None
    damage(file)
    with pytest.raises(KarmafunnelError, match=r"state\.safetensors: needs a checkpoint"):
        Snapshot.read(file)
    assert Snapshot.resume(file) is None and not file.exists()
    assert "it is made again" in capsys.readouterr().err
    assert Snapshot.resume(file) is None and Snapshot.resume(None) is None


def test_a_fit_goes_on_from_a_checkpoint_of_all_its_weights(tmp_path):
    import torch

    def fit():
        net = torch.nn.Linear(3, 2)
        return net, dict(net.named_parameters()), torch.optim.Adam(net.parameters())

    torch.manual_seed(0)
    net, named, optimiser = fit()
    net(torch.ones(3)).sum().backward()
    optimiser.step()
    file = tmp_path / "state.safetensors"
    Snapshot.of(named, optimiser, {"step": 1}).write(file)
    again, others, another = fit()
    Snapshot.read(file).restore(others, another)
    for one in (optimiser, another):
        one.zero_grad()
        (net if one is optimiser else again)(torch.ones(3)).sum().backward()
        one.step()
    assert torch.equal(net.weight, again.weight) and torch.equal(net.bias, again.bias)
    with pytest.raises(
        KarmafunnelError,
        match=r"state\.safetensors: needs all weights, found none of scale \(1 missing\)",
    ):
        Snapshot.read(file).restore({"scale": torch.nn.Parameter(torch.ones(1)), **others}, another)


def test_a_torn_shard_is_made_again(log, recipe, run, tmp_path, monkeypatch, capsys):
    real, made = replaying.RunWriter.of_chunk, list[int]()

    def stops(self, number, *chunk):
        if number == 4:
            raise KeyboardInterrupt
        made.append(number)
        return real(self, number, *chunk)

    monkeypatch.setattr(replaying.RunWriter, "of_chunk", stops)
    with pytest.raises(KeyboardInterrupt):
        replay(recipe, log, tmp_path / "run", RunOptions(cache=run.parent / "cache", chunk=16))
    monkeypatch.setattr(
        replaying.RunWriter,
        "of_chunk",
        lambda self, number, *chunk: (made.append(number), real(self, number, *chunk))[1],
    )
    (partial,) = tmp_path.glob(".run.*.partial")
    damage(partial / "000001" / "slates.parquet", "cut")
    damage(partial / "000002" / "ledger.parquet", "gone")
    (partial / "000003" / DIGESTS).write_text("")
    made.clear()
    replay(recipe, log, tmp_path / "run", RunOptions(cache=run.parent / "cache", chunk=16))
    assert made == [1, 2, 3, 4, 5, 6]
    assert contents(tmp_path / "run") == contents(run)
    assert os.listdir(tmp_path) == ["run"]
    assert f"{partial / '000001' / 'slates.parquet'}: other bytes" in capsys.readouterr().err


# -- workers ---------------------------------------------------------------------------------------


def test_workers_end_with_their_parent(tmp_path):
    code = "import pieces; from karmafunnel.simulator.replay.workers import *; "
    code += f"list(spread(pieces.sleeps, {str(tmp_path)!r}, range(2), Workers(2)))"
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths})
    wait_for(lambda: len(list(tmp_path.glob("*.began"))) == 2)
    process.kill()
    process.wait()
    for path in tmp_path.glob("*.began"):
        wait_for(lambda pid=int(path.stem): not alive(pid), 10)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_interrupted_a_replay_by_workers_ends_in_one_line_and_goes_on(log, run, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(RECIPE.replace("SECONDS", "0.5"))
    words = ["replay", str(slow), str(log.path), "--out", str(tmp_path / "run"), "--workers", "2"]
    code = main_with_shards_of(8, words)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        env=os.environ | {"KARMAFUNNEL_CACHE": str(run.parent / "cache")},
    )
    wait_for(lambda: list(tmp_path.glob(".run.*.partial/0*")))
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - began < 10
    assert "Traceback" not in told and told.strip().splitlines()[-1] == "interrupted"
    assert (
        not (tmp_path / "run").exists()
        and [name for name in os.listdir(tmp_path) if name.endswith(".lock")] == []
    )


# -- names and texts -------------------------------------------------------------------------------


def test_names_are_taken_as_they_stand(log, run, tmp_path):
    shutil.copytree(run, tmp_path / "run1")
    assert "no such folder" in refusal(["measure", str(tmp_path / "run[12]"), "HR@10"])
    for name in ("run[12]", "a=b", "what?", "st*r", "~", "ü {x}"):
        shutil.copytree(run, tmp_path / name)
        assert Run.open(tmp_path / name).read("requests").height == 100 and "a" not in Run.open(
            tmp_path / name
        ).columns("requests")
    for name in ("loga", "logb", "log[ab]"):
        shutil.copytree(log.path, tmp_path / name)  # type: ignore[arg-type]
    assert Log.open(tmp_path / "log[ab]").requests.height == log.requests.height
    shutil.rmtree(tmp_path / "log[ab]")
    with pytest.raises(KarmafunnelError, match="no folder"):
        Log.open(tmp_path / "log[ab]")


PLACES = [
    (name, param.name)
    for name, one in COMMANDS.items()
    for param in one.params
    if isinstance(param.type, click.Path)
]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_an_empty_path_is_refused(name, place):
    words = [name]
    for param in COMMANDS[name].params:
        if isinstance(param, click.Argument) or param.name == place:
            words += param.opts[:1] * isinstance(param, click.Option) + [
                "" if param.name == place else "1"
            ]
    answer = ran(*words)
    assert answer.exit_code == 2
    assert "needs a path, found an empty text" in answer.stderr
    assert "Traceback" not in answer.output


def test_places_without_a_name_are_places(log, recipe, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("", ".", "/"):
        for what in (Run, Simulation, Log):
            with pytest.raises(KarmafunnelError, match="need"):
                what.open(place)
    assert len(PLACES) > 20
    monkeypatch.chdir(run)
    assert Run.open(".").read("requests").height == 100


def test_texts_are_utf_8_whatever_the_locale(tmp_path):
    path = tmp_path / "t.json"
    code = (
        "from karmafunnel.files import *; import sys; title = 'K\\xe4se \\u5b66 \\udcff'\n"
        "write_json(sys.argv[1], {'title': title}); assert read_json(sys.argv[1])['title'] == title"
    )
    environment = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, path], check=True, env=environment)
    assert json.loads(path.read_bytes())["title"] == "Käse 学 \udcff"
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read_text(tmp_path / "bom.toml") == "a = 1\r\n"
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(
        KarmafunnelError, match=r"latin\.txt: needs a text file in UTF-8, found byte 1 to be 0xe4"
    ):
        read_text(tmp_path / "latin.txt")
    for text in ("{", "[" * 100_000, "1" * 10_000):
        write_text(tmp_path / "bad.json", text)
        with pytest.raises(KarmafunnelError, match=r"bad\.json: needs JSON"):
            read_json(tmp_path / "bad.json")


def calls(path: Path) -> list[tuple[int, str, ast.Call]]:
    """Calls in a file: line, what is called, the call."""
    return [
        (node.lineno, ast.unparse(node.func), node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def test_every_text_says_its_encoding_and_every_table_is_opened_in_one_place():
    """Walks the package: text in the locale's encoding, Parquet by polars, patterns made of names,
    writing around the writers.
    """
    wrong = []
    for path in CODE:
        here = str(path.relative_to(ROOT))
        # they run where this package is not
        apart = path.name in ("exchange.py", "browser.py", "click_models.py", "obp_estimates.py")
        for line, name, call in calls(path):
            last, given = name.rsplit(".", 1)[-1], {word.arg for word in call.keywords}
            at = f"{here}:{line}: {name}"
            modes = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "mode")]
            if name.endswith(".open") and name != "gzip.open":
                modes = call.args[:1]
            mode = next(
                (str(given.value) for given in modes if isinstance(given, ast.Constant)),
                "rb" if name == "gzip.open" else "r",
            )
            is_open = name in ("open", "gzip.open") or (
                last == "open" and name.split(".")[0].islower() and name.split(".")[0] != "os"
            )
            text_io = (is_open and "b" not in mode) or (
                last in ("read_text", "write_text") and "." in name and "trainee" not in name
            )
            if text_io and "encoding" not in given and not name.startswith(("self.", "opened")):
                wrong.append(f"{at}: text without an encoding")
            if "text" in given and name.startswith("subprocess"):
                wrong.append(f"{at}: text=True is the locale's encoding")
            if (
                last in ("scan_parquet", "read_parquet")
                and here != "files.py"
                and not (apart and (name.startswith("pd.") or {"glob", "hive_partitioning"} <= given))
            ):
                wrong.append(f"{at}: use open_table or read_table")
            # it breaks files on purpose, which the writers would not do
            attacks = here.startswith("benchmarks/validation/")
            measured = attacks or "/bench_" in here or "/peers" in here
            if (
                last == "write_parquet"
                and "." in name
                and here != "files.py"
                and not apart
                and not measured
            ):
                wrong.append(f"{at}: use write_parquet of files.py")
            typed = here == "simulator/importing/opening.py"  # patterns are what the user typed
            fixed = all(isinstance(a, ast.Constant) for a in call.args)
            if last in ("glob", "rglob") and not attacks and not typed and not fixed:
                wrong.append(f"{at}: a pattern made of a name")
            writes = name == "os.replace" or (
                last in ("write_text", "write_bytes", "rmtree", "unlink") and "." in name
            )
            if (
                writes
                and here != "files.py"
                and not apart
                and "/bench_" not in here
                and not attacks
            ):
                wrong.append(f"{at}: use what files.py has")
    assert wrong == []
    assert len(CODE) > 100


def test_equal_content_is_equal_bytes(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": "ü"})
    write_json(tmp_path / "b", {"a": "ü", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").touch()
    seal(tmp_path / "folder")
    check(tmp_path / "folder")
