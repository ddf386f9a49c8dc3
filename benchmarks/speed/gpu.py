"""Everything that needs a GPU, `make gpu`, or: python -m karmafunnel.benchmarks.speed.gpu [LOG...]

Writes gpu.json: the rate of a matrix product; for models of two real shapes with random weights the
tokens that a training step of KARMA reads a second, what share of that rate its products are, and
peak memory, or that memory was too small; and the table of this file on a World and on each LOG,
the rows of karma_smollm. Without a GPU it says so, and runs the same code at a tiny size, its
tables in two processes.
"""

import gc
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from karmafunnel.benchmarks.studies import karma_smollm as smollm
from karmafunnel.cli import OneLineErrors
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import write_text
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder, silent
from karmafunnel.models.karma import KARMA, FrozenLM, InBatch, Qwen
from karmafunnel.models.karma.backbone import LM, byte_pairs
from karmafunnel.models.karma.train import Trainee, Trainer, pieces_of_epoch
from karmafunnel.models.training import seeded
from karmafunnel.models.weights import is_fetched
from karmafunnel.simulator.world import generate
from karmafunnel.terminal import Console
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

GOAL = 0.35  # of the rate of a matrix product
NO_ROOM = "out of memory"
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
MODEL = smollm.MODEL.source
TINY = Qwen(
    dim=32, layers=2, heads=2, kv_heads=1, mlp=64, vocab=400, context=32, tokens=4000, batch=4
)
SHAPES: dict[str, PretrainedConfig] = {
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "Qwen3-0.6B": Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        max_position_embeddings=40960, tie_word_embeddings=True,
    ),
}  # fmt: skip

# -- the rows of the table -------------------------------------------------------------------------

funnel, measures, against = smollm.funnel, smollm.measures, smollm.against
seeds = (0,)
ON_GPU: dict[str, Any] = {"precision": "bfloat16"}
AT_TINY: dict[str, Any] = {
    "backbone": TINY, "trained": None, "batch": 8, "chunk": 4, "epochs": 1, "share": 1.0,
}  # fmt: skip


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    """The rows of karma_smollm where SmolLM2 was fetched and there is a GPU for it, else the same
    of a tiny model.
    """
    real, found = GPU and is_fetched(MODEL), {}
    for name, value in smollm.values(log).items():
        if isinstance(value, KARMA):
            value = replace(value, **(ON_GPU if real else AT_TINY))
        elif isinstance(value, FrozenLM) and not real:
            value = replace(value, backbone=TINY)
        found[name] = {"interest": value}
    return found


# -- throughput ------------------------------------------------------------------------------------


def wait() -> None:
    """Until the GPU has done what it was given."""
    if GPU:
        torch.cuda.synchronize()


def matmul_rate(size: int) -> float:
    """FLOP/s of a square product in bfloat16, the best of ten runs of ten."""
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(11):  # the first one is slower
        wait()
        start = time.perf_counter()
        for _ in range(10):
            a @ a
        wait()
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - start))
    return best


def tokens_of(trainee: Trainee, pieces: np.ndarray) -> int:
    """Cells that a step reads: histories, queries, [INT] and the items' texts, without padding."""
    trees, examples = trainee.examples.trees, trainee.examples
    branches, _ = trees.branches(pieces)
    pairs, _ = examples.pairs(branches)
    asked = sum(len(examples.queries[b]) + 1 for b in branches)
    trunk = np.concatenate(
        [np.arange(trees.start[p], trees.start[p] + trees.size[p]) for p in pieces]
    )
    hard = examples.hard[branches]
    used = np.unique(np.concatenate([trees.item[trunk], examples.target[pairs], hard[hard >= 0]]))
    used = used[used >= 0]
    texts = int((trainee.n_words[used] + 1).sum())
    return int((trees.size[pieces] + 1).sum()) + asked + texts


def throughput(
    config: PretrainedConfig, log: Log, batch: int, chunk: int, steps: int
) -> dict[str, Any]:
    """Training steps of KARMA with a model of this shape: bfloat16, `chunk` pieces at a time."""
    with seeded(0, DEVICE):
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    tokenizer = byte_pairs(log.item_text(), 4096)
    lm = LM(model.float().to(DEVICE), tokenizer, 0, 0, {})
    value = KARMA(
        loss=InBatch(), items="trained", ids=False, batch=batch, precision="bfloat16", chunk=chunk
    )
    features = value.features(log, lm, None, 0, silent, DEVICE)
    trainee, _ = value.trainee(log, lm, features, 0, None)
    trainer = Trainer(trainee.train(), 0, None, silent)
    parts = pieces_of_epoch(trainee.examples.trees, batch, np.random.default_rng(0))
    parts = [parts[i % len(parts)] for i in range(3 + steps)]
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    for trainer.place, pieces in enumerate(parts):
        if trainer.place == 3:  # what the first steps set up is done
            trainer.read()
            wait()
            start = time.perf_counter()
        trainer.one_step(pieces)
    trainer.read()
    wait()
    took = time.perf_counter() - start
    tokens = sum(tokens_of(trainee, pieces) for pieces in parts[3:])
    stack = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    memory = {"peak GB": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if GPU else {}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch": batch,
        "chunk": chunk,
        "ms a step": round(1e3 * took / steps, 1),
        "tokens/s": round(tokens / took),
        # products with weights, forward and backward; what chunks compute anew is not counted
        "FLOP/s": 6 * stack * tokens / took,
        **memory,
    }


@click.command(cls=OneLineErrors)
@click.argument("logs", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/gpu"))
def main(logs: tuple[Path, ...], out: Path) -> None:
    """Measure, make the tables, write gpu.json."""
    console = Console()
    shapes, batch, steps = SHAPES, 256, 20
    if GPU and not is_fetched(MODEL):
        console.print(
            f"{MODEL} was not fetched: the tables are of a tiny model. "
            f"karmafunnel fetch-model {MODEL} brings it."
        )
    if not GPU:
        console.print(
            "No GPU here: the same code at a tiny size, its tables in two processes on the CPU. "
            "Its figures say nothing of a GPU."
        )
        small = {
            "vocab_size": 4096, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        }  # fmt: skip
        shapes, batch, steps = {}, 16, 3
        for name, config in SHAPES.items():
            kind: Any = type(config)
            tiny = kind(tie_word_embeddings=True, **small)
            shapes[f"{name}, tiny"] = tiny
    began = time.perf_counter()
    rate = matmul_rate(8192 if GPU else 256)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if GPU else "cpu",
        "torch": torch.__version__,
        "matmul FLOP/s": rate,
        "goal": GOAL,
        "training": {},
        "tables": {},
    }
    console.print(f"{found['device']}: {rate / 1e12:.3g} TFLOP/s in bfloat16")
    sizes = (3000, 600, 6000) if GPU else (150, 40, 300)
    log = generate(items=sizes[0], users=sizes[1], requests=sizes[2], seed=0).log
    for name, config in shapes.items():
        for chunk in (0, batch // 4):
            try:
                figures = throughput(config, log, batch, chunk, steps)
            except torch.OutOfMemoryError:  # a smaller GPU has figures of the parts that fit
                figures = {"batch": batch, "chunk": chunk, "tokens/s": NO_ROOM}
                told = NO_ROOM
            else:
                share = figures["share of matmul"] = round(figures.pop("FLOP/s") / rate, 3)
                against_goal = f" (goal {GOAL:.0%})" if GPU else ""
                told = (
                    f"{figures['tokens/s']:,} tokens/s, {share:.0%} of the matmul rate"
                    f"{against_goal}, {figures.get('peak GB', '-')} GB"
                )
            gc.collect()  # what it held, for the next one
            if GPU:
                torch.cuda.empty_cache()
            found["training"][f"{name}, chunk={chunk}"] = figures
            keep(found, out, began)
            console.print(f"{name}, chunk {chunk}: {told}")
    world = out / "world"
    size = ["--items", sizes[0], "--users", sizes[1], "--requests", sizes[2], "--force"]
    run("world", world, *size)
    together = () if GPU else ("torch.distributed.run", "--nproc-per-node", "2", "-m")
    for path in (world, *(logs if GPU else ())):
        folder = out / f"table-{path.name}"
        options = ["--device", DEVICE, "--minutes", "2", "--limit", 2000, "--out", folder]
        run("table", Path(__file__), path, *options, before=together)
        table = found["tables"][path.name] = json.loads(
            (folder / "table.json").read_text(encoding="utf-8")
        )
        keep(found, out, began)
        if failed := [line["row"] for line in table["lines"] if not line["seeds"]]:
            hint = "the same command goes on"
            raise KarmafunnelError(
                f"table of {path}", needs="all rows", found=f"no {failed}", hint=hint
            )
    console.print(f"wrote {out / 'gpu.json'}, {found['seconds']:.0f} s")


def keep(found: dict[str, Any], out: Path, began: float) -> None:
    """Write the figures so far, with the seconds that they took: a table may fail after them."""
    found["seconds"] = round(time.perf_counter() - began, 1)
    write_text(out / "gpu.json", json.dumps(found, indent=1))


def run(*command: object, before: tuple[str, ...] = ()) -> None:
    """A command of karmafunnel in a process of its own, or in several; its failure is ours."""
    whole = [sys.executable, "-m", *before, "karmafunnel", *map(str, command)]
    if (code := subprocess.run(whole).returncode) != 0:
        click.get_current_context().exit(code)


if __name__ == "__main__":
    main()
