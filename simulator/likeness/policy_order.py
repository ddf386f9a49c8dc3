"""Do funnels stand in the same order on both logs? Kendall's tau over pairs of cheap funnels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import KarmafunnelError
from ...log import Log
from ...models.embedders import Cooccurrence, Embedder, TfidfSVD
from ...stages.context import Progress, silent
from ...stages.kept import Kept
from ...stages.recall import (
    BM25Recall,
    ItemKNN,
    Join,
    Popular,
    Repeat,
    Uniform,
    VectorRecall,
)
from ...stages.stage import Funnel, Stage
from ..measure.compare import ask, same_requests
from ..measure.intervals import Ratio, interval, resample
from ..measure.measures.measure import parse_all
from ..measure.run import Run
from ..replay.options import DEFAULTS, RunOptions
from ..replay.prepare import Variant, prepare
from ..replay.recipe import Recipe, as_funnel
from ..replay.replay import replay_many
from .held_out import shared_label
from .judging import LEVEL, RESAMPLES, Answer, Drawing, Kind, judge, too_blunt

FEWEST = 8  # funnels
NAME = "order of funnels"
UNIT = "Kendall's tau; 1: the same order, 0: unrelated"
KIND: Kind = "pairs swapped"
K = 50  # items that each funnel puts out


def funnels(*logs: Log) -> dict[str, Funnel]:
    """Cheap funnels that all of these logs can fit, by name: different ideas of what is relevant,
    one at a time and some together.
    """
    text = all(log.has("text") for log in logs)
    query = text and all(log.has("query") for log in logs)
    clock = all(log.meta["time"] == "clock" for log in logs)
    knn, repeat, popular = ItemKNN(k=K), Repeat(k=K), Popular(k=K)
    found: dict[str, Stage] = {
        "random": Uniform(k=K),
        "popular": popular,
        "repeat": repeat,
        "item-kNN": knn,
        "item-kNN of the last item": ItemKNN(k=K, depth=1),
        "co-occurrence": VectorRecall("cooccurrence", k=K),
        "repeat, popular": Join([repeat, popular], k=K),
        "repeat, item-kNN, popular": Join([repeat, knn, popular], k=K),
    }
    if clock:
        found["popular of 7 days"] = Popular(k=K, days=7)
    if text:
        found["tf-idf"] = VectorRecall("tfidf", k=K)
        found["tf-idf, item-kNN"] = Join([VectorRecall("tfidf", k=K), knn], k=K)
    if query:
        found["BM25"] = BM25Recall(k=K)
        found["BM25, repeat, popular"] = Join([BM25Recall(k=K), repeat, popular], k=K)
    return {name: as_funnel(stage) for name, stage in found.items()}


def replayed(
    log: Log,
    chosen: Mapping[str, Funnel],
    out: Path,
    label: str,
    options: RunOptions = DEFAULTS,
    say: Progress = silent,
) -> dict[str, Run]:
    """Runs of these funnels on a log, by name, written into folders of `out`."""
    embedders: dict[str, Embedder] = {"cooccurrence": Cooccurrence()}
    if log.has("text"):
        embedders["tfidf"] = TfidfSVD()
    options = replace(options, cache=Kept.of(options.cache))
    variants = []
    for i, (name, funnel) in enumerate(chosen.items()):
        say(f"{log.name}: funnel {i + 1} of {len(chosen)}, {name}")
        recipe = Recipe("likeness", repr(funnel), funnel, embedders, label)
        variants.append(Variant(recipe, prepare(recipe, log, options), out / f"{i:02d}"))
    for error in replay_many(variants, log, options).values():
        raise error
    return {name: Run.open(one.out) for name, one in zip(chosen, variants, strict=True)}


def on_both(
    real: Log, simulated: Log, out: Path, options: RunOptions = DEFAULTS, say: Progress = silent
) -> tuple[dict[str, Run], dict[str, Run]] | None:
    """Runs on two logs of the funnels that both can fit; None without a label in common."""
    label = shared_label(real, simulated)
    if label is None:
        return None
    chosen = funnels(real, simulated)
    of_real, of_simulated = (
        replayed(log, chosen, out / who, label, options, say)
        for who, log in (("real", real), ("simulated", simulated))
    )
    return of_real, of_simulated


def answer(
    real: Mapping[str, Run],
    simulated: Mapping[str, Run],
    rng: np.random.Generator,
    measure: str = "HR@10",
) -> Answer:
    """The line of the order of funnels: Runs of the same funnels on both logs, by name.

    A pair that stands the other way round on the simulated log is swapped; one that is level on one
    log alone is half swapped. The chance is that of two draws of the real log's users. n/a for
    fewer than 8 funnels in common.

    Raises KarmafunnelError where the Runs of a log are not of the same requests, and for a measure
    that is no mean over requests.
    """
    names = [name for name in real if name in simulated]
    if len(names) < FEWEST:
        why = f"needs {FEWEST} funnels with Runs on both logs, found {len(names)}"
        return Answer(NAME, UNIT, KIND, "n/a", why=why)
    sides = [figures([runs[name] for name in names], measure) for runs in (real, simulated)]
    a, b = (np.array([ratio.value for ratio in side]) for side in sides)
    users = [max(int(ratio.cluster.max()) for ratio in side) + 1 for side in sides]
    distance = float(swapped(a, b)[0])
    drawn = [
        np.stack(resample(side, n, RESAMPLES, int(rng.integers(2**31))), axis=1)
        for side, n in zip((sides[0], sides[1], sides[0]), (*users, users[0]), strict=True)
    ]
    # as noisy as a draw of as many users as the simulated log has
    again = a + (drawn[2] - a) * np.sqrt(users[0] / users[1])
    chance = float(np.quantile(swapped(drawn[0], again), LEVEL))
    low, high = interval(1 - 2 * swapped(drawn[0], drawn[1]))
    verdict, allowed = judge(KIND, distance, chance, None)
    tau = 1 - 2 * distance
    told = f"{len(names)} funnels by {measure}; tau {tau:.2f} [{low:.2f}, {high:.2f}]"
    order = np.argsort(-a, kind="stable")
    listed = np.array(names)[order]
    bars = {"real": (listed, a[order]), "simulated": (listed, b[order])}
    return Answer(
        NAME,
        UNIT,
        KIND,
        verdict,
        1.0,
        tau,
        distance,
        chance,
        None,
        allowed,
        too_blunt(KIND, chance) if verdict == "n/a" else told,
        Drawing(bars, "", measure, "bar"),
    )


def swapped(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The share of pairs of funnels that stand the other way round; level in one alone: half.

    Args:
        a, b: figures (n_funnels,) or of several draws (draws, n_funnels).
    """
    i, j = np.triu_indices(a.shape[-1], 1)
    signs = [np.sign(x[..., i] - x[..., j]) for x in (np.atleast_2d(a), np.atleast_2d(b))]
    return np.asarray(np.abs(signs[0] - signs[1]).mean(axis=-1) / 2)


def figures(runs: Sequence[Run], measure: str) -> list[Ratio]:
    """The measure of the last stage of each Run, request by request."""
    wanted = parse_all([measure])
    found = []
    for reading in same_requests(runs, [run.name for run in runs]):
        estimate = ask(reading, wanted, reading.run.stages[-1:], None)[0].estimate
        if not isinstance(estimate, Ratio):
            needed = "a measure that is a mean over requests, and a Run that has it"
            raise KarmafunnelError(NAME, needs=needed, found=f"{measure} of {reading.run.name}")
        found.append(estimate)
    return found
