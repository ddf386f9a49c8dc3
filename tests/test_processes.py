"""Several processes, parts of a batch, bfloat16: what a GPU is for, checked on a CPU."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fits_together
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fits_together import SMALL, TINY, TRAINED, VALUES
from karmafunnel.benchmarks.speed import gpu
from karmafunnel.cli import main as cli
from karmafunnel.errors import KarmafunnelError, LostProcessError
from karmafunnel.log import Log
from karmafunnel.models.karma import KARMA, InBatch, processes
from karmafunnel.models.karma import train as training
from karmafunnel.models.training import Snapshot
from karmafunnel.simulator.ablation.ablate import ablate
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import load_recipe
from shop import make_shop

pytestmark = pytest.mark.slow

RECIPE = """
from karmafunnel.models.karma import KARMA, Qwen
from karmafunnel.stages.recall import VectorRecall

base = Qwen(
    dim=32, layers=2, heads=2, kv_heads=1, mlp=64, vocab=400, context=32, tokens=4000, batch=4
)
tiny = KARMA(backbone=base, dim=32, epochs=1, length=8, batch=8)
embedders = {"tiny": tiny}
funnel = VectorRecall("tiny", k=50)
"""
LAUNCHERS = {
    "alone": [],
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                   "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"],
}  # fmt: skip


def start(cache: Path, out: Path, changes: list[dict[str, int]]) -> list[subprocess.Popen[str]]:
    """Two processes of `fits_together.py`, each in its place."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    near = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, fits_together.__file__, cache, out, json.dumps(changes)],
            env=os.environ | near | {"RANK": str(i), "WORLD_SIZE": "2"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]


def ends(processes: list[subprocess.Popen[str]], seconds: float = 120) -> list[tuple[int, str]]:
    """Exit codes and messages."""
    try:
        return [(p.returncode, text) for p in processes for text in [p.communicate(timeout=seconds)[1]]]
    finally:
        for p in processes:
            p.kill()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_two_processes_train_as_one(shop: Log, tmp_path: Path, cache: Path) -> None:
    changes = [{}, {"chunk": 3}]
    running = start(tmp_path / "cache", tmp_path, changes)
    assert [code for code, _ in ends(running)] == [0, 0]
    for i, (name, value) in enumerate(TRAINED.items(), start=1):
        alone = value.fit(shop, seed=1, cache=cache)
        assert "processes" not in alone.facts
        for number in range(len(changes)):
            folder = tmp_path / str(number)
            found = json.loads((folder / "facts.json").read_text("utf-8"))[name]
            assert found["processes"] == 2
            for one, two in zip(alone.facts["curve"], found["curve"], strict=True):
                assert two == pytest.approx(one, rel=1e-4), name
            assert np.abs(np.load(folder / f"{i}.npy") - alone.items()).max() < 1e-3, name


def test_parts_of_a_batch_give_its_loss(shop: Log, cache: Path) -> None:
    for name, value in VALUES.items():
        whole = value.fit(shop, seed=1, cache=cache)
        for chunk in (1, 3):
            parts = replace(value, chunk=chunk).fit(shop, seed=1, cache=cache)
            for one, two in zip(whole.facts["curve"], parts.facts["curve"], strict=True):
                assert two == pytest.approx(one, rel=1e-4), name
    assert replace(SMALL, chunk=8) != SMALL and "chunk" not in repr(SMALL)


def test_parts_of_a_batch_are_held_one_at_a_time(shop: Log, cache: Path) -> None:
    """What a forward pass leaves in memory for the backward pass."""
    base = TINY.ready(shop, cache, lambda _: None, "cpu")

    def kept(value: KARMA) -> int:
        features = value.features(shop, base, None, 0, lambda _: None, "cpu")
        trainee, _ = value.trainee(shop, base, features, 0, None)
        sizes: dict[int, int] = {}

        def count(x: torch.Tensor) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            step = trainee.train()(np.arange(32), np.random.default_rng(0))
        return sum(sizes.values()) if step else 0

    value = replace(SMALL, loss=InBatch(), decoder="lm")
    assert kept(replace(value, chunk=4)) < 0.5 * kept(value)


def test_bfloat16_multiplies_short_and_learns_long(shop: Log, cache: Path) -> None:
    value = replace(SMALL, loss=InBatch(), items="trained", decoder="lm")
    exact = value.fit(shop, seed=1, cache=cache)
    short = replace(value, precision="bfloat16", chunk=3).fit(shop, seed=1, cache=cache)
    assert short.items().tobytes() != exact.items().tobytes()
    for one, two in zip(exact.facts["curve"], short.facts["curve"], strict=True):
        assert two == pytest.approx(one, rel=5e-3)
    assert {x.dtype for x in short.network.parameters()} == {torch.float32}


def test_losses_that_are_read_later_are_the_same(
    shop: Log, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the losses of several steps are read together."""
    value = replace(SMALL, watch=5)
    one = value.fit(shop, seed=1)
    first = training.Trainer.__init__

    def later(self: training.Trainer, *args: object) -> None:
        first(self, *args)  # type: ignore[arg-type]
        self.at_once = 16

    monkeypatch.setattr(training.Trainer, "__init__", later)
    two = value.fit(shop, seed=1)
    assert two.items().tobytes() == one.items().tobytes()
    for name in ("curve", "watched"):
        assert two.facts[name] == one.facts[name]
    real, steps = training.Trainee.forward, []

    def breaks(self: training.Trainee, *args: object) -> training.Step:
        steps.append(1)
        step = real(self, *args)  # type: ignore[arg-type]
        if len(steps) == 5:
            step.losses["act"] = step.losses["act"] * math.nan
        return step

    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(training.Trainee, "forward", breaks)
    with pytest.raises(KarmafunnelError, match=r"epoch 1, step 5"):
        SMALL.fit(shop, seed=1, cache=cache / "broken")
    kept = [Snapshot.read(f) for f in (cache / "broken").glob("karma-*/state.safetensors")]
    assert all(torch.isfinite(x).all() for state in kept for x in state.tensors.values())


# -- processes that end ----------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other(killed: int, tmp_path: Path) -> None:
    running = start(tmp_path / "cache", tmp_path, [{"epochs": 200}])
    assert running[0].stderr is not None
    for line in running[0].stderr:
        if "epoch 2 of" in line:
            break
    running[killed].send_signal(signal.SIGKILL)
    code, message = ends(running, 60)[1 - killed]
    assert code == 1
    wanted = "process 2 of 2 ends" if killed == 0 else "processes: needs all 2 to the end"
    assert wanted in message, message
    (folder,) = (tmp_path / "cache").glob("karma-*")
    if killed == 1:  # the same command goes on, with one process, too
        last = sorted(folder.glob("epoch-*.safetensors"))[-1]
        assert Snapshot.read(last).facts["epochs"] >= 1


def test_more_processes_than_pieces(tmp_path: Path) -> None:
    running = start(tmp_path / "cache", tmp_path, [{"batch": 1}])
    (code, message), (other, _) = ends(running)
    assert code == 1 and other == 0
    assert "needs a batch of 2 pieces or more" in message


def test_the_command_line_starts_once(tmp_path: Path) -> None:
    """`torchrun` and `accelerate launch`: the first process alone writes and prints."""
    karmafunnel = "karmafunnel"
    make_shop(150, 60, 600).write(tmp_path / "log")
    recipe = tmp_path / "mine.py"
    recipe.write_text(RECIPE, "utf-8")
    curves = []
    for name, launcher in LAUNCHERS.items():
        command = [*launcher, "-m", karmafunnel, "fit-embedder", recipe, tmp_path / "log"]
        command += ["--out", tmp_path / name, "--no-cache"]
        ran = subprocess.run(
            [sys.executable, *command],
            env=os.environ | {"KARMAFUNNEL_CACHE": str(tmp_path / f"cache {name}")},
            text=True, capture_output=True, timeout=200,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        about = json.loads((tmp_path / name / "embedding.json").read_text("utf-8"))
        assert about["facts"].get("processes", 1) == (1 if name == "alone" else 2)
        assert ran.stdout.count("load(folder, log)") == 1
        curves.append(about["facts"]["curve"])
    for curve in curves[1:]:
        for one, two in zip(curves[0], curve, strict=True):
            assert two == pytest.approx(one, rel=1e-4)
    told = CliRunner().invoke(cli, ["recipes"], env={"WORLD_SIZE": "2"})
    assert told.exit_code == 1 and "as torchrun sets them" in told.stderr


def test_a_lost_process_is_no_fault_of_the_row(shop: Log, tmp_path: Path) -> None:
    """The table ends, and its cell is tried again by the next call."""
    file = tmp_path / "mine.py"
    file.write_text(RECIPE + "rows = {'one': {'tiny': tiny}, 'two': {'tiny': tiny}}\nagainst = 'one'\n", "utf-8")
    recipe = load_recipe(str(file), shop)
    processes.here.count, processes.here.lost = 2, True
    try:
        with pytest.raises(LostProcessError, match="ended with the fit before"):
            ablate(recipe, shop, tmp_path / "table", RunOptions(cache=None))
    finally:
        processes.here.count, processes.here.lost = 1, False
    assert not list((tmp_path / "table").rglob("failed.json"))


def test_make_gpu_without_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "karmafunnel.benchmarks.speed.gpu", "--out", tmp_path]
    ran = subprocess.run(
        command, text=True, capture_output=True, timeout=300,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert ran.returncode == 0 and "No GPU here" in ran.stdout, ran.stderr
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert len(found["training"]) == 4
    assert all(x["tokens/s"] > 0 and x["share of matmul"] > 0 for x in found["training"].values())
    rows = {line["row"] for line in found["tables"]["world"]["lines"]}
    assert len(rows) >= 8 and {"pairwise, +gen+rec", "catalogue softmax, action-only"} <= rows


def test_figures_of_a_gpu_outlast_a_table_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*command: object, **_: object) -> None:
        raise KarmafunnelError(f"{command[0]} fails")

    monkeypatch.setattr(gpu, "run", breaks)
    monkeypatch.setattr(gpu, "throughput", lambda *_: {"tokens/s": 9, "FLOP/s": 1e9})
    ran = CliRunner().invoke(gpu.main, ["--out", str(tmp_path / "out")])
    assert ran.exit_code == 1 and "world fails" in ran.output
    found = json.loads((tmp_path / "out" / "gpu.json").read_text("utf-8"))
    assert len(found["training"]) == 4 and found["seconds"] >= 0 and found["goal"] == gpu.GOAL


def test_a_gpu_that_is_too_small_has_figures_of_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(_: object, __: object, batch: int, chunk: int, ___: int) -> dict[str, float]:
        if not chunk:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"batch": batch, "chunk": chunk, "tokens/s": 9, "FLOP/s": 1e9}

    ran_tables: list[object] = []

    def table(*command: object, **_: object) -> None:
        ran_tables.append(command[0])
        if command[0] == "table":
            raise KarmafunnelError("the tables come after it")

    monkeypatch.setattr(gpu, "run", table)
    monkeypatch.setattr(gpu, "throughput", small)
    ran = CliRunner().invoke(gpu.main, ["--out", str(tmp_path)])
    assert ran_tables == ["world", "table"], ran.output
    assert ran.output.count("chunk 0: out of memory") == 2 and "chunk 4: 9 tokens/s" in ran.output
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))["training"]
    assert [x["tokens/s"] for x in found.values()] == ["out of memory", 9] * 2

