"""consistency: a stage against production's own cut, by hand, by brute force and from raw files."""

import itertools

import numpy as np
import polars as pl
import pytest
import raw_files
from karmafunnel import replay
from karmafunnel.simulator.datasets import load
from karmafunnel.simulator.measure.compare import Run, measure
from karmafunnel.simulator.measure.measures.consistency import chance_of_top
from karmafunnel.simulator.measure.measures.measure import RANDOM
from karmafunnel.stages.recall import Popular, Uniform
from small_run import make_run


def test_the_chance_of_a_row_to_be_among_the_best():
    group = np.array([0, 0, 0, 0, 1, 1, 2])
    scores = np.array([3.0, 2.0, 2.0, np.nan, np.nan, 1.0, 5.0])
    chance = chance_of_top(group, scores, np.array([2, 2, 0]))
    assert chance.tolist() == [1, 0.5, 0.5, 0, 1, 1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_the_chance_is_the_share_of_orders_of_equal_rows(seed):
    """Over all orders of five rows that agree with their scores."""
    rng = np.random.default_rng(seed)
    scores, k = rng.integers(0, 3, 5).astype(float), int(rng.integers(0, 6))
    hits, orders = np.zeros(5), 0
    for order in itertools.permutations(range(5)):
        if (np.diff(scores[list(order)]) <= 0).all():
            hits[list(order[:k])] += 1
            orders += 1
    found = chance_of_top(np.zeros(5, dtype=int), scores, np.array([k]))
    assert found == pytest.approx(hits / orders)


def values(run: Run, stage: str) -> dict[str, float]:
    return {row["stage"]: row["value"] for row in measure(run, [f"consistency:{stage}"])}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """200 requests of a feed; pre-ranking drops the odd videos, ranking all but the ten lowest."""
    rng = np.random.default_rng(3)
    rows = []
    for request in range(200):
        videos = rng.choice(60, 30, replace=False)
        even = sorted(v for v in videos if v % 2 == 0)
        for video in videos:
            if video % 2:
                flags = ["prerank_neg"]
            elif video not in even[:10]:
                flags = ["rank_neg"]
            else:
                flags = ["realshow"] if video in even[:4] else ["rank_pos"]
            seen = int("realshow" in flags and rng.random() < 0.6)
            rows.append(raw_files.candidate(request, int(video), *flags, effective_view=seen))
    raw = tmp_path_factory.mktemp("feed")
    return load("recflow", raw_files.lay(raw, {"2024-01-13.feather": pl.DataFrame(rows)}))


def test_a_replay_of_a_log_with_stages(log):
    """Popular videos are those that production shows; a random order keeps what chance keeps."""
    run = replay(Popular(k=20), log)
    found = values(run, "rank")
    told = log.exposures.join(log.requests, on="request_id").filter(window="W3")
    of_rank = told.filter(pl.col("stage").is_in(["coarse", "rank", "shown"])).group_by("request_id")
    share = of_rank.agg((pl.col("stage") != "coarse").mean().alias("kept"))
    share = share.filter(pl.col("kept") < 1)["kept"].mean()
    assert found[RANDOM] == pytest.approx(share)
    assert found["recall"] > found[RANDOM] + 0.1
    by_chance = values(replay(Uniform(k=20), log), "rank")
    assert by_chance["recall"] == pytest.approx(share, abs=0.12)


def test_production_agrees_with_itself_and_not_with_its_opposite(log):
    run = replay(Popular(k=20), log)
    scored = pl.read_parquet(run.path / "scored.parquet")
    even = pl.col("item_id").cast(pl.Int64) % 2 == 0
    for sign, wanted in ((1.0, 1.0), (-1.0, None)):
        score = pl.when(even).then(1000 - pl.col("item_id").cast(pl.Int64)).otherwise(0) * sign
        changed = scored.with_columns(score.cast(pl.Float32).alias("recall.score"))
        own = Run(run.path, run.meta, run.lazy | {"scored": changed.lazy()})
        for stage in ("prerank", "rank"):
            found = values(own, stage)
            assert found["recall"] == wanted if wanted else found["recall"] < found[RANDOM]


def test_what_cannot_be_known_is_said(tmp_path, log):
    plain = Run.open(make_run(tmp_path / "run"))
    notes = {row["note"] for row in measure(plain, ["consistency:rank"])}
    assert notes == {"n/a: the log does not tell what production's stages kept"}
    run = replay(Popular(k=20), log)
    notes = {row["note"] for row in measure(run, ["consistency:filter"])}
    assert notes == {"n/a: the log tells the cuts of prerank, coarse, rank, rerank, shown"}
