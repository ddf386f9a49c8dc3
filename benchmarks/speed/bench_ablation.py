"""What sharing beginnings saves in an ablation, and what more than one process costs and brings.

    python -m karmafunnel.benchmarks.speed.bench_ablation

One run prints (1) the time of 12 variants of a three-stage funnel (embedders of the pre-ranker x
features of the ranker), fitted and replayed together, over that of each on its own; (2) one funnel
replayed by one and by two local processes, and by two on a Ray cluster that is started for it: in
all, and a request in the second half, when all of them are at work and starting stands apart. The
World is made once and kept under the cache folder; fits go to a temporary one.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import click
from karmafunnel.cli import OneLineErrors
from karmafunnel.keys import cache_root
from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, RandomVectors, TfidfSVD
from karmafunnel.simulator.replay import jobs
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.prepare import Variant, prepare
from karmafunnel.simulator.replay.recipe import Recipe, Row, load_recipe
from karmafunnel.simulator.replay.replay import replay_many
from karmafunnel.simulator.replay.tables import TABLES
from karmafunnel.simulator.replay.workers import Workers, spread
from karmafunnel.simulator.world import generate
from karmafunnel.stages.features import Feature, Own, Popularity, Price, Similarity, Upstream
from karmafunnel.stages.kept import Kept
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import BM25Recall, Join, Popular, VectorRecall
from karmafunnel.stages.stage import Funnel

label = "click"
embedders = {
    "tfidf": TfidfSVD(dim=64),
    "cooccurrence": Cooccurrence(dim=64),
    "random": RandomVectors(dim=64),
}
SAMPLE = Sample(requests=1000)
RECALL = Join(
    [
        VectorRecall("tfidf", k=400),
        VectorRecall("cooccurrence", k=400),
        BM25Recall(k=400),
        Popular(k=200),
    ],
    k=1000,
)
PRERANK: dict[str, list[Feature]] = {
    "nothing": [],
    "random": [Similarity("random")],
    "tfidf": [Similarity("tfidf")],
    "cooccurrence": [Similarity("cooccurrence")],
}
RANK: dict[str, list[Feature]] = {
    name: PRERANK[name] for name in ("nothing", "tfidf", "cooccurrence")
}


def one(prerank: str, rank: str) -> Funnel:
    return (
        RECALL
        >> LightGBMPreRank(
            k=200, features=[Upstream(), Popularity(), *PRERANK[prerank]], sample=SAMPLE, trees=100
        )
        >> LightGBMRank(
            k=50, features=[Upstream(), Own(), Price(), *RANK[rank]], sample=SAMPLE, trees=200
        )
    )


funnel = one("nothing", "nothing")
rows = {f"{prerank} | {rank}": Row(one(prerank, rank)) for prerank in PRERANK for rank in RANK}
against, measures, seeds = "nothing | nothing", ("HR@10", "HR@50"), (0,)


def world(items: int, requests: int) -> Log:
    folder = cache_root() / f"bench-ablation-{items}-{requests}"
    if not folder.exists():
        generate(items=items, users=1500, requests=5 * requests, seed=0).log.write(folder)
    return Log.open(folder)


def shared(
    recipe: Recipe, names: Sequence[str], log: Log, limit: int, cache: Path, out: Path
) -> tuple[float, float]:
    """Seconds of fitting and of replaying some rows together."""
    start, variants, kept = time.process_time(), list[Variant](), Kept(cache)
    for name in names:
        variants.append(
            Variant(
                recipe.row(name), prepare(recipe.row(name), log, RunOptions(cache=kept)), out / name
            )
        )
    kept.forget()
    fitted_in = time.process_time() - start
    for error in replay_many(variants, log, RunOptions(limit=limit)).values():
        raise error
    return fitted_in, time.process_time() - start - fitted_in


def spread_out(
    recipe: Recipe, log: Log, limit: int, cache: Path, out: Path, workers: Workers, chunk: int
) -> tuple[float, float]:
    """Seconds of a replay by workers in all, and seconds a shard in its second half."""
    variant = Variant(recipe, prepare(recipe, log, RunOptions(cache=cache)), out)
    done: list[float] = []

    def clocked(*args: Any, **fields: Any) -> Iterator[Any]:
        for answer in spread(*args, **fields):
            done.append(time.perf_counter())
            yield answer

    begun = time.perf_counter()
    with mock.patch.object(jobs, "spread", clocked):
        for error in replay_many(
            [variant], log, RunOptions(limit=limit, cache=cache, workers=workers, chunk=chunk)
        ).values():
            raise error
    half = len(done) // 2  # before it, some worker may still be starting
    return time.perf_counter() - begun, (done[-1] - done[half]) / (len(done) - 1 - half)


def same(a: Path, b: Path) -> bool:
    for name in TABLES:
        file = f"{name}.parquet"
        if name != "timing" and (a / file).read_bytes() != (b / file).read_bytes():
            return False
    return True


def print_sharing(recipe: Recipe, log: Log, requests: int, at: Path) -> None:
    names = list(recipe.rows)
    together = shared(recipe, names, log, requests, at / "cache", at / "together")
    alone = [
        shared(recipe, [name], log, requests, at / "cache" / f"{i}", at / "alone")
        for i, name in enumerate(names)
    ]
    fit, replayed = (sum(seconds) for seconds in zip(*alone, strict=True))
    equal = all(same(at / "together" / name, at / "alone" / name) for name in names)
    print(f"{len(names)} variants of {requests} requests, the same bytes: {equal}")
    print(
        f"fitted  {together[0]:.1f} s together, {fit:.1f} s each alone: {together[0] / fit:.2f} "
        "times"
    )
    share = together[1] / replayed
    print(
        f"replayed {together[1]:.1f} s together, {replayed:.1f} s each alone: {share:.2f} times "
        "(to reach: at most 0.4)"
    )
    print(f"fits and replays {sum(together) / (fit + replayed):.2f} times")


@click.command(cls=OneLineErrors)
@click.option("--items", default=20_000, show_default=True)
@click.option(
    "--requests",
    default=2048,
    show_default=True,
    help="Requests replayed; the World has five times as many.",
)
@click.option(
    "--sharing/--no-sharing",
    default=True,
    show_default=True,
    help="What the rows of an ablation share.",
)
@click.option("--ray/--no-ray", "with_ray", default=True, show_default=True)
@click.option(
    "--chunk",
    default=64,
    show_default=True,
    help="Requests a shard; a table makes shards of 256, which needs more --requests.",
)
@click.option(
    "--repeats", default=3, show_default=True, help="Replays of each way; the fastest counts."
)
def main(
    items: int, requests: int, sharing: bool, with_ray: bool, chunk: int, repeats: int
) -> None:
    """Print what sharing saves, and what processes cost and bring."""
    log = world(items, requests)
    recipe = load_recipe(__file__, log)
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        if sharing:
            print_sharing(recipe, log, requests, at)
        ways = {"one process": Workers(1), "two processes": Workers(2)}
        if with_ray:
            ways["two on Ray"] = Workers(2, "local")
        took: dict[str, float] = {}
        for _ in range(repeats):  # in turns: what else the machine does falls on all of them
            for way, workers in ways.items():
                shutil.rmtree(at / way, ignore_errors=True)
                whole, shard = spread_out(
                    recipe, log, requests, at / "cache", at / way, workers, chunk
                )
                took[way] = min(shard, took.get(way, shard))
                equal = same(at / way, at / "one process")
                each = 1000 * shard / chunk
                print(
                    f"{way}: {whole:.1f} s in all, {each:.2f} ms a request when started, the "
                    f"same bytes: {equal}"
                )
        print(
            f"two processes {took['one process'] / took['two processes']:.2f} times as fast as one"
        )
        if with_ray:
            over = took["two on Ray"] / took["two processes"]
            print(f"Ray {over:.2f} times the time of local processes (to reach: at most 1.15)")


if __name__ == "__main__":
    main()
