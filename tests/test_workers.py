"""More than one process: the same bytes whatever their number, killed workers, paths that a worker
cannot see, a cluster of two nodes.
"""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pieces
import polars as pl
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.simulator.ablation.ablate import ablate
from karmafunnel.simulator.replay import jobs
from karmafunnel.simulator.replay import workers as working
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.prepare import Variant, prepare
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.replay import replay, replay_many
from karmafunnel.simulator.replay.tables import TABLES
from karmafunnel.simulator.replay.workers import Workers, spread
from karmafunnel.stages.kept import Kept

pytestmark = pytest.mark.slow

RECIPE = """
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from karmafunnel.models.embedders import TfidfSVD
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.stages.stage import *
from karmafunnel.stages.features import *
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.recall import *


@dataclass(frozen=True, repr=False)
class Deadly(Stage):
    "The shop's order; kills its process, or raises, when it sees a request for the first time."

    k: int = 20
    request: int = 0
    raises: bool = False
    folder: str = ""
    always: bool = False
    name: str = "deadly"

    def fit(self, context, upstream):
        return FittedDeadly(self, context)


class FittedDeadly(FittedStage):
    def score(self, rows):
        if (rows.request == self.stage.request).any():
            if self.stage.raises:
                raise ZeroDivisionError("a hole")
            if self.stage.always or not Path(self.stage.folder, "died").exists():
                Path(self.stage.folder, "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return rows.frame["score"].to_numpy()


embedders, label, against, measures = {"tfidf": TfidfSVD(dim=16)}, "click", "plain", ["HR@10"]
funnel = VectorRecall("tfidf", k=60) >> LightGBMPreRank(k=40, features=[Upstream(), Similarity("tfidf")], trees=10)
rows = {
    "plain": {},
    "holed": Row(funnel >> Deadly(request=REQUEST, raises=True)),
    "killed": Row(funnel >> Deadly(request=REQUEST, folder="FOLDER")),
    "killing": Row(funnel >> Deadly(request=REQUEST, folder="FOLDER", always=True)),
}
"""


@pytest.fixture(scope="module")
def there(tmp_path_factory, shop) -> tuple[Path, Log]:
    """A folder with a recipe, a log and a cache of everything fitted; some request in the middle is
    deadly.
    """
    folder = tmp_path_factory.mktemp("workers")
    shop.write(folder / "log")
    log = Log.open(folder / "log")
    deadly = int(log.requests_in("W3")[40])
    (folder / "mine.py").write_text(
        RECIPE.replace("REQUEST)", f"{deadly})")
        .replace("REQUEST,", f"{deadly},")
        .replace("FOLDER", str(folder))
    )
    return folder, log


def variants(folder: Path, log: Log, out: Path, *rows: str) -> list[Variant]:
    recipe, kept = load_recipe(str(folder / "mine.py"), log), Kept(folder / "cache")
    return [
        Variant(recipe.row(row), prepare(recipe.row(row), log, RunOptions(cache=kept)), out / row)
        for row in rows
    ]


def contents(run: Path) -> list[bytes]:
    return [(run / f"{name}.parquet").read_bytes() for name in TABLES if name != "timing"]


# -- pieces of work --------------------------------------------------------------------------------


def test_pieces_are_spread_over_processes_of_one_thread():
    before = dict(os.environ)
    found = dict(spread(pieces.square, "job", range(5), Workers(2)))
    assert found == {n: (n**2, "1") for n in range(5)} and dict(os.environ) == before


def test_a_killed_piece_is_run_again(tmp_path):
    assert sorted(dict(spread(pieces.dies_once, str(tmp_path), range(6), Workers(2)))) == list(
        range(6)
    )
    assert (tmp_path / "2.txt").read_text().count("tried") == 2


def test_pieces_that_always_kill_are_given_up():
    with pytest.raises(KarmafunnelError, match=r"3 deaths without a piece done.*left are \[7\]"):
        list(spread(pieces.dies, "job", [7], Workers(1)))


def test_what_a_piece_raises_comes_through():
    with pytest.raises(ZeroDivisionError, match="piece 3"):
        list(spread(pieces.fails, "job", [3], Workers(1)))
    with pytest.raises(KarmafunnelError, match="whole number from 1 to"):
        Workers(0)


# -- replays ---------------------------------------------------------------------------------------


def test_same_bytes_whatever_the_number_of_workers_though_one_is_killed_and_a_variant_fails(
    there, tmp_path
):
    folder, log = there
    (alone,) = variants(folder, log, tmp_path / "alone", "plain")
    assert replay_many([alone], log, RunOptions(chunk=16)) == {}
    for n, rows in ((1, ("plain", "holed")), (2, ("plain", "holed", "killed"))):
        some = variants(folder, log, tmp_path / str(n), *rows)
        errors = replay_many(
            some, log, RunOptions(chunk=16, cache=folder / "cache", workers=Workers(n))
        )
        assert list(errors) == [tmp_path / str(n) / "holed"]
        (error,) = errors.values()
        place, _, words = str(error).partition(": ")
        assert place.startswith("mine.py, line ") and place.endswith(".score")
        assert words == "ZeroDivisionError: a hole" and "in score" in error.__notes__[0]
        assert contents(tmp_path / str(n) / "plain") == contents(alone.out)
        (waiting,) = (tmp_path / str(n)).glob(".holed.*.partial")
        assert len(list(waiting.iterdir())) == 6  # 100 requests in 7 shards, the third has the hole
    assert (folder / "died").exists()  # a worker was killed in the second round
    assert (
        len(set(pl.read_parquet(tmp_path / "2" / "killed" / "requests.parquet")["request_id"]))
        == 100
    )


def test_what_fails_in_a_worker_is_told_of_a_relative_folder(there, tmp_path, monkeypatch):
    folder, log = there
    monkeypatch.chdir(tmp_path)
    some = variants(folder, log, Path("runs"), "plain", "holed")
    errors = replay_many(
        some, log, RunOptions(chunk=64, cache=folder / "cache", workers=Workers(1))
    )
    assert list(errors) == [Path("runs/holed")] and contents(Path("runs/plain"))


def test_a_row_that_always_kills_its_workers_is_a_failed_line(there, tmp_path, monkeypatch):
    monkeypatch.setattr(working, "DEATHS", 1)
    folder, log = there
    recipe = load_recipe(str(folder / "mine.py"), log)
    rows = {name: recipe.rows[name] for name in ("plain", "killing")}
    ablate(
        replace(recipe, rows=rows, seeds=(0,)),
        log,
        tmp_path / "out",
        RunOptions(cache=folder / "cache", workers=Workers(1)),
    )
    plain, killing = json.loads((tmp_path / "out" / "table.json").read_text())["lines"]
    assert plain["values"]["HR@10"]["n"] == 100 and "failed" not in plain
    assert "needs processes that live" in killing["failed"] and not killing["values"]


def test_paths_that_a_worker_cannot_see_are_named(there, tmp_path):
    folder, log = there
    some = variants(folder, log, tmp_path / "run", "plain")
    (tmp_path / "partial").mkdir()
    job = jobs.job_of(
        some, [tmp_path / "partial"], log, RunOptions(cache=folder / "cache", chunk=16)
    )
    assert len(jobs.opened(job)[0]) == 100
    for change in (
        {"log": "/nowhere/log"},
        {"cache": "/nowhere/cache"},
        {"rows": (jobs.JobRow("plain", some[0].fitted.keys, "/nowhere/run"),)},
    ):
        with pytest.raises(KarmafunnelError, match=r"worker on .*needs the folder /nowhere/"):
            jobs.opened(replace(job, **change))
    with pytest.raises(
        KarmafunnelError, match="needs the code, libraries and recipe of its parent"
    ):
        jobs.opened(replace(job, text=job.text.replace("trees=10", "trees=11")))
    with pytest.raises(KarmafunnelError, match="needs the log other"):
        jobs.opened(replace(job, checksum="other"))


def test_workers_need_what_they_can_read(there, shop, tmp_path):
    folder, log = there
    recipe = load_recipe(str(folder / "mine.py"), log)
    for of, given, cache, says in (
        (shop, recipe, tmp_path, "a log on disk"),
        (log, recipe, None, "a cache folder"),
        (log, replace(recipe, path=None), tmp_path, "a recipe file"),
    ):
        with pytest.raises(KarmafunnelError, match=f"workers: needs {says}"):
            replay(given, of, tmp_path / "run", RunOptions(cache=cache, workers=Workers(2)))
    assert not (tmp_path / "run").exists()


# -- Ray -------------------------------------------------------------------------------------------


def test_an_address_that_does_not_answer_is_a_clear_error(monkeypatch):
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr(working, "WAIT", 2.0)
    with socket.socket() as taken:  # nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(KarmafunnelError, match=f"answers at '{address}' within 2 s, found"):
            Workers(ray=address).check()
    with pytest.raises(KarmafunnelError, match="an address such as"):
        Workers(ray="somewhere").check()


def test_something_that_is_no_ray_is_a_clear_error(monkeypatch):
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr(working, "WAIT", 3.0)
    with socket.socket() as deaf:  # takes calls and says nothing
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(KarmafunnelError, match="something that is no Ray"):
            Workers(ray=f"127.0.0.1:{deaf.getsockname()[1]}").check()


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(working, "find_spec", lambda name: None)
    with pytest.raises(KarmafunnelError, match=r"karmafunnel\[ray\]"):
        Workers(ray="auto").check()


def test_two_nodes_give_the_same_bytes_though_a_worker_is_killed(there, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    # where workers find `pieces`
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    folder, log = there
    alone = variants(folder, log, tmp_path / "alone", "plain", "killed")
    (folder / "died").touch()
    assert replay_many(alone, log, RunOptions(chunk=16)) == {}
    (folder / "died").unlink()
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        cluster.add_node(num_cpus=1)
        some = variants(folder, log, tmp_path / "spread", "plain", "killed")
        workers = Workers(ray=cluster.address)
        workers.check()
        assert (
            replay_many(some, log, RunOptions(chunk=16, cache=folder / "cache", workers=workers))
            == {}
        )
        for n in (1, 2):  # never more at a time, though each worker has a second piece at hand
            spans = [span for _, span in spread(pieces.times, "", range(6), replace(workers, n=n))]
            assert max(sum(a <= began < b for a, b in spans) for began, _ in spans) <= n
    finally:
        cluster.shutdown()
    assert (folder / "died").exists()
    for row in ("plain", "killed"):
        assert contents(tmp_path / "spread" / row) == contents(tmp_path / "alone" / row)
