"""What a user embedding costs when the language model is a real one:

    karmafunnel fetch-model smollm2-135m
    python -m karmafunnel.benchmarks.speed.bench_serving [--layers 6]

Prints the GEMM rate of the machine and the processor time of an interest, on one thread: for
requests that come one, 64 and 512 at a time, and with decoders trained over without, in turns.
"""

import time
from functools import partial

import click
import numpy as np
import torch
from karmafunnel.benchmarks.speed.bench_karma import TARGETS
from karmafunnel.cli import OneLineErrors
from karmafunnel.models.karma import KARMA, Checkpoint
from karmafunnel.models.karma.embedder import KarmaEmbedding
from karmafunnel.simulator.world import generate
from karmafunnel.terminal import Console

TARGET = 15  # ms an interest, 64 at a time


def gemm() -> float:
    """FLOP of a square fp32 product in a second of processor time."""
    a = torch.randn(1024, 1024)
    start = time.process_time()
    for _ in range(20):
        a @ a
    return 20 * 2 * 1024**3 / (time.process_time() - start)


def cost(embedding: KarmaEmbedding, requests: np.ndarray, batch: int) -> float:
    """Processor milliseconds of an interest, of requests that come `batch` at a time."""
    start = time.process_time()
    for at in range(0, len(requests), batch):
        embedding.interests(requests[at : at + batch])
    return 1e3 * (time.process_time() - start) / len(requests)


@click.command(cls=OneLineErrors)
@click.option("--source", default="smollm2-135m", show_default=True, help="Of a Checkpoint.")
@click.option("--layers", default=6, show_default=True, help="Its first layers, 0 all.")
@click.option("--turns", default=3, show_default=True)
def main(source: str, layers: int, turns: int) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    console = Console()
    log = generate(items=500, users=200, requests=2000, seed=0).log
    requests = log.requests_in("W3")[:256]
    # one epoch over few users: time does not depend on the weights
    given = partial(KARMA, backbone=Checkpoint(source, layers=layers), epochs=1, share=0.05)
    plain, told = given().fit(log), given(rec=0.1, decoder="masked").fit(log)
    console.print(f"fp32 GEMM: {gemm() / 1e9:.0f} GFLOP in a second of one processor")
    for batch in (1, 64, len(requests)):
        few = requests[: 16 if batch == 1 else None]
        found = np.median([cost(plain, few, batch) for _ in range(turns)])
        console.print(f"{batch:4d} at a time: {found:.1f} ms an interest")
    pairs = [[cost(e, requests, 64) for e in (plain, told)] for _ in range(turns)]
    without, with_decoders = np.median(pairs, axis=0)
    console.print(f"with decoders trained over without: {with_decoders / without:.3f}")
    console.print(f"targets: {TARGET} ms 64 at a time, ratio {TARGETS['serving']}")


if __name__ == "__main__":
    main()
