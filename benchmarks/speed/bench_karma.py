"""Speed of KARMA's default model, all sides in one run on one machine:

    python -m karmafunnel.benchmarks.speed.bench_karma [--threads 2]

Prints the GEMM rate of the machine, a training step as a share of it (FLOPs of the products as
torch's FlopCounterMode counts them), each objective's cost beside its share of FLOPs, and what an
interest costs with and without decoders.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import click
import numpy as np
import torch
from karmafunnel.cli import OneLineErrors
from karmafunnel.models.karma import KARMA, Qwen
from karmafunnel.models.karma.train import Trainee, pieces_of_epoch
from karmafunnel.simulator.report.table import Table, print_table
from karmafunnel.simulator.world import generate
from karmafunnel.terminal import Console
from torch.utils.flop_counter import FlopCounterMode

TARGETS = {"step": 0.35, "ratio": 1.3, "serving": 1.02}


def seconds(run: Callable[[], object], least: float = 2.0) -> float:
    """Median seconds of a call, over at least `least` seconds and five calls."""
    run()
    times: list[float] = []
    while sum(times) < least or len(times) < 5:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def gemm() -> float:
    """FLOP/s of a square fp32 product."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / seconds(lambda: a @ a)


class Counter:
    """FLOPs of one training step: forward and backward of every product in the stack, of the logits
    over items and of those over words.
    """

    def __init__(self, trainee: Trainee, pieces: np.ndarray):
        with FlopCounterMode(display=False) as mode:
            losses = trainee(pieces, np.random.default_rng(0)).losses
            trainee.total(losses, 0.0).backward()
        self.counted = mode.get_total_flops()
        examples = trainee.examples
        branches, _ = examples.trees.branches(pieces)
        # the catalogue softmax is one function of ours with three products inside, which the
        # counter does not see
        self.total = (
            self.counted + 6 * len(branches) * len(examples.candidates) * trainee.network.dim
        )


@click.command(cls=OneLineErrors)
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
def main(threads: int) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    console = Console()
    log = generate(items=3000, users=600, requests=3000, seed=0).log
    base = KARMA(backbone=Qwen(tokens=20_000))
    lm = base.backbone.ready(log, None, lambda _: None, "cpu")
    features = base.features(log, lm, None, 0, lambda _: None, "cpu")
    rate = gemm()
    console.print(f"fp32 GEMM: {rate / 1e9:.0f} GFLOP/s, {threads} threads")
    rows = {
        "action-only": base,
        "+gen": replace(base, gen=0.1),
        "+rec, bag of words": replace(base, rec=0.1),
        "+rec, masked": replace(base, rec=0.1, decoder="masked"),
        "+rec, the LM": replace(base, rec=0.1, decoder="lm"),
    }
    first: tuple[float, float] | None = None
    lines = []
    for name, value in rows.items():
        trainee, _ = value.trainee(log, lm, features, 0, None)
        trainee.train()
        optimiser = torch.optim.AdamW(trainee.parameters(), lr=1e-4, fused=True)
        batches = pieces_of_epoch(trainee.examples.trees, value.batch, np.random.default_rng(0))
        pieces = max(batches, key=lambda p: int(trainee.examples.trees.size[p].sum()))
        flops = Counter(trainee, pieces).total

        def step(
            trainee: Trainee = trainee,
            optimiser: torch.optim.AdamW = optimiser,
            pieces: np.ndarray = pieces,
        ) -> None:
            optimiser.zero_grad(set_to_none=True)
            losses = trainee(pieces, np.random.default_rng(0)).losses
            trainee.total(losses, 0.0).backward()
            optimiser.step()

        took = seconds(step)
        first = first or (took, flops)
        cost, work = took / first[0], flops / first[1]
        ratios = (flops / took / rate, cost, work, cost / work)
        lines.append(
            [name, f"{flops / 1e9:.2f}", f"{1e3 * took:.0f}", *(f"{x:.2f}" for x in ratios)]
        )
    heads = [
        "objective",
        "GFLOP a step",
        "ms a step",
        "share of GEMM",
        "cost / action-only",
        "FLOPs / action-only",
        "cost over FLOPs",
    ]
    print_table(Table(heads, lines), console)
    requests = log.requests_in("W3")[:512]
    plain, told = (replace(base, epochs=1, rec=weight).fit(log) for weight in (0.0, 0.1))
    turns = []  # alternating: the machine drifts by more than the difference that is measured
    for _ in range(10):
        turns.append([seconds(partial(e.interests, requests), 0.5) for e in (plain, told)])
    without, with_decoders = 1e6 * np.median(turns, axis=0) / len(requests)
    console.print(
        f"serving: {without:.0f} µs per user embedding without decoders, {with_decoders:.0f} "
        f"with, ratio {with_decoders / without:.3f}"
    )
    console.print(f"targets: {TARGETS}")


if __name__ == "__main__":
    main()
