"""Measures: a Run small enough to work out by hand, other libraries, brute force, and properties
that must hold.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import combinations
from math import log2
from pathlib import Path

import ir_measures
import numba
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from karmafunnel.errors import KarmafunnelError
from karmafunnel.layout import TS
from karmafunnel.log import Log
from karmafunnel.simulator.measure import metrics
from karmafunnel.simulator.measure.compare import Cascade, Measure, Run, compare, measure
from karmafunnel.simulator.measure.differences import Difference, holm
from karmafunnel.simulator.measure.intervals import (
    Calibration,
    Median,
    PooledAUC,
    Ratio,
    draws,
    interval,
    resample,
)
from karmafunnel.simulator.measure.measures.average_precision import MAP
from karmafunnel.simulator.measure.measures.coverage import Coverage
from karmafunnel.simulator.measure.measures.gini import Gini
from karmafunnel.simulator.measure.measures.hits import Lists, RandomLists
from karmafunnel.simulator.measure.measures.measure import AtK, kinds, mean
from karmafunnel.simulator.measure.metrics import LOST
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import Recipe, load_recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.report.measure_table import define, measure_table
from karmafunnel.simulator.report.table import to_markdown
from karmafunnel.simulator.world import generate
from karmafunnel.simulator.world.world import read_truth
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.stage import Funnel
from sklearn.metrics import log_loss, roc_auc_score

SECOND = 1 / log2(3)  # the discount of rank 2


# -- a Run by hand ---------------------------------------------------------------------------------
# Four requests of two users; recall keeps 4, rank keeps 2. r4 has no truth. Truth: r1 ann: a 10 EUR
# (head), recall 1, rank 2; b 30 EUR (tail, repeat), recall 3, lost at rank; c 60 EUR (cold), not
# eligible r2 ann: a 20 EUR (head), lost by the index            r3 bob: d without a price (tail),
# recall 2, rank 1

REQUESTS = {
    "request_id": ["r3", "r1", "r4", "r2"], "user_id": ["bob", "ann", "bob", "ann"], "ts": [None] * 4, "window": ["W3"] * 4,
    "n_truth": [1, 3, 0, 1], "n_eligible": [8, 10, 8, 10], "n_truth_eligible": [1, 2, 0, 1], "n_shown": [2, 4, 2, 1],
    "has_query": [False, True, False, True], "new_user": [False, True, False, False],
    "recall.n": [4, 6, 4, 4], "recall.out": [4, 4, 4, 4], "rank.n": [3, 4, 4, 4], "rank.out": [2, 2, 2, 2],
}  # fmt: skip
LEDGER = {
    "request_id": ["r3", "r1", "r1", "r1", "r2"], "item_id": ["d", "a", "b", "c", "a"], "money": [None, 10.0, 30.0, 60.0, 20.0],
    "quantity": [1, 1, 2, 1, 1], "eligible": [True, True, True, False, True], "target": ["tail", "head", "tail", "cold", "head"],
    "repeat": [False, False, True, False, True], "price_band": [None, "low", "mid", "high", "mid"],
    "recall.rank": [2, 1, 3, None, None], "recall.score": [0.3, 0.9, 0.1, 0.0, 0.2], "recall.wins": [2.0, 4.0, 2.5, None, None],
    "rank.rank": [1, 2, None, None, None], "rank.score": [0.9, 0.5, 0.7, 0.0, 0.2], "rank.wins": [2.0, 1.0, 0.5, None, None],
    "lost": [None, None, "rank", "not eligible", "index"], "margin": [None, None, 1, None, 5], "margin_score": [None] * 5,
}  # fmt: skip
SCORED = {  # request, item, position, bought, score of recall, score of rank
    "r1": [("a", 1, True, 0.9, 0.5), ("x", 2, False, 0.8, 0.5), ("b", 3, True, 0.1, 0.7), ("y", 4, False, 0.1, 0.1)],
    "r2": [("z", 1, False, 0.4, 0.4), ("a", None, True, 0.2, 0.2)],
    "r3": [("w", 1, False, 0.6, 0.2), ("d", 2, True, 0.3, 0.9)],
    "r4": [("v", 1, False, 0.5, 0.3), ("u", 2, False, 0.7, 0.3)],
}
SLATES = {  # of recall, of rank
    "r1": ("axby", "xa"), "r2": ("pqrs", "sp"), "r3": ("wduv", "dw"), "r4": ("vuxy", "yx"),
}  # fmt: skip
META = {
    "label": "purchase",
    "seed": 0,
    "window": "W3",
    "stages": [{"name": "recall", "kind": "Join", "k": 4}, {"name": "rank", "kind": "Rank", "k": 2}],
    "log": {"name": "corner shop", "checksum": "c0ffee", "currency": "EUR", "has": {}, "catalogue": "seen"},
}


def write(
    folder: Path, requests: pl.DataFrame, ledger: pl.DataFrame, scored: pl.DataFrame, slates: pl.DataFrame, meta: dict
) -> Run:
    folder.mkdir(parents=True)
    timing = pl.DataFrame({"chunk": [0], "stage": ["recall"], "requests": [4], "rows_in": [4], "rows_out": [4], "seconds": [0.1]})
    tables = {"requests": requests, "ledger": ledger, "scored": scored, "slates": slates, "timing": timing}
    for name, frame in tables.items():
        frame.write_parquet(folder / f"{name}.parquet")
    (folder / "run.json").write_text(json.dumps(meta))
    return Run.open(folder)


def by_hand(folder: Path, meta: dict | None = None, **changes: dict) -> Run:
    scored = [
        {
            "request_id": r,
            "item_id": i,
            "position": p,
            "clicked": y,
            "purchased": y,
            "money": None,
            "eligible": True,
            "recall.score": s,
            "rank.score": t,
            "rank.p": t,
        }
        for r, rows in SCORED.items()
        for i, p, y, s, t in rows
    ]
    slates = [
        {"request_id": r, "stage": stage, "item_id": item, "rank": rank, "score": -float(rank), "channel": "bm25"}
        for r, both in SLATES.items()
        for stage, items in zip(("recall", "rank"), both, strict=True)
        for rank, item in enumerate(items, 1)
    ]
    frames = [pl.DataFrame(t | changes.get(name, {}), strict=False) for name, t in (("requests", REQUESTS), ("ledger", LEDGER))]
    return write(
        folder,
        *frames,
        pl.DataFrame(scored),
        pl.DataFrame(slates).with_columns(pl.col("stage").cast(pl.Categorical)),
        META | (meta or {}),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return by_hand(tmp_path_factory.mktemp("runs") / "hand")


def ask(run: Run, name: str, **options) -> dict[str, dict]:
    """Rows of one measure by stage (and slice, where there is one)."""
    rows = measure(run, [name], **options)
    return {row["stage"] if row["slice"] == "all" else (row["stage"], row["slice"]): row for row in rows}


def values(run: Run, name: str, **options) -> dict:
    return {key: row["value"] for key, row in ask(run, name, ci=False, **options).items()}


BY_HAND = {
    "HR@1": {"recall": 1 / 3, "rank": 1 / 3, "random": (2 / 10 + 1 / 10 + 1 / 8) / 3, "ceiling": 1},
    # 1 - C(8,2)/C(10,2) = 17/45
    "HR@2": {"recall": 2 / 3, "rank": 2 / 3, "random": (17 / 45 + 1 / 5 + 1 / 4) / 3},
    "HR@3": {"recall": 2 / 3, "rank": None},
    "Recall@2": {"recall": (1 / 3 + 0 + 1) / 3, "random": (2 / 15 + 1 / 5 + 1 / 4) / 3},
    "Recall@4": {"recall": (2 / 3 + 0 + 1) / 3, "ceiling": (2 / 3 + 1 + 1) / 3},
    "Recall@1": {"ceiling": (1 / 3 + 1 + 1) / 3},
    "nDCG@2": {
        "recall": (1 / (1 + SECOND) + 0 + SECOND) / 3,
        "rank": (SECOND / (1 + SECOND) + 0 + 1) / 3,
        "random": (2 / 10 + (1 + SECOND) / 10 + (1 + SECOND) / 8) / 3,
        "ceiling": 1,
    },
    "MRR": {"recall": (1 + 0 + 1 / 2) / 3, "rank": (1 / 2 + 0 + 1) / 3},
    "MRR@1": {"recall": 1 / 3, "rank": 1 / 3},
    "GMV-HR@2": {"recall": 10 / 120, "rank": 10 / 120, "random": (40 * 0.2 + 20 * 0.2) / 120, "ceiling": (40 + 20) / 120},
    "GMV-HR@1": {"recall": 10 / 120, "rank": 0, "ceiling": (30 + 20) / 120},
    "GMV-HR@4": {"recall": 40 / 120},
    "GMV-nDCG@2": {
        "recall": 10 / (60 + 30 * SECOND) / 2,
        "random": (40 * (1 + SECOND) / 10 / (60 + 30 * SECOND) + (1 + SECOND) / 10) / 2,
        "ceiling": ((30 + 10 * SECOND) / (60 + 30 * SECOND) + 1) / 2,
    },
    "survival": {"eligible": 4 / 5, "recall": 3 / 4, "rank": 2 / 3, "end to end": 2 / 5},
    "ceiling": {"ceiling": 4 / 5},
    # r1: wins 4 + 2.5 of P N = 2 x 4; r3: 2 of 1 x 3. The truth of r2 was never scored.
    "gAUC:request:candidates": {"recall": (6 * 6.5 / 8 + 4 * 2 / 3) / 10, "rank": (4 * 1.5 / 4 + 3 * 2 / 2) / 7, "random": 0.5},
    "gAUC:request:candidates:positives": {"recall": (2 * 6.5 / 8 + 1 * 2 / 3) / 3},
    "gAUC:request:candidates:none": {"recall": (6.5 / 8 + 2 / 3) / 2},
    "gAUC:user:candidates": {"recall": None, "rank": None},
    # Rows with a position, 3 of truth and 6 others. By score a wins 6, b one half (a tie with y), d
    # one (y); by position a wins 3 and ties with 3 other firsts, b wins one, d wins one and ties
    # with 2.
    "AUC": {"recall": (6 + 0.5 + 1) / 18, "random": 0.5, "logged order": (4.5 + 1 + 2) / 18},
    "gAUC:request:exposures": {
        "recall": (4 * 2.5 / 4 + 2 * 0) / 6,
        "rank": (4 * 3.5 / 4 + 2 * 1) / 6,
        "logged order": (4 * 3 / 4 + 2 * 0) / 6,
    },
    "gAUC:request:exposures:positives": {"recall": (2 * 2.5 / 4 + 1 * 0) / 3},
    "gAUC:request:exposures:none": {"recall": (2.5 / 4 + 0) / 2},
    "gAUC:user:exposures": {"recall": (5 * 3.5 / 6 + 4 * 0) / 9},
    "HR@1:exposures": {"recall": 1 / 2, "rank": 1, "logged order": 1 / 2, "random": 1 / 2},
    # Random: of r1's 4 places 2 are truth, so the first is at 1, 2, 3 with chance 1/2, 1/3, 1/6.
    "MRR:exposures": {"recall": 3 / 4, "rank": 1, "random": ((1 / 2 + 1 / 6 + 1 / 18) + 3 / 4) / 2},
    "GMV-HR@1:exposures": {"recall": 10 / 40, "rank": 30 / 40, "logged order": 10 / 40, "random": 1 / 4},
    "Recall@2@2": {"recall": (1 + 1 / 2 + 1 + 0) / 4},
    # Of recall and rank: ax/xa, pq/sp, wd/dw, vu/yx.
    "overlap@1": {"recall": 0},
    "overlap@2": {"recall": (1 + 1 / 2 + 1 + 0) / 4},
    "overlap@3": {"recall": None},
    # An item that both hold from depth 2 on adds .1 x .9 / 2 + .9 ^ 2 / 2 = .45: two in r1, one in
    # r2, two in r3.
    "RBO@2": {"recall": (0.9 + 0.45 + 0.9 + 0) / 4},
    "RBO@3": {"recall": None},
    "margin": {"recall": None, "rank": 1},
    "HR@1:all": {"recall": None, "rank": None},
    "Recall@2:all:14d": {"recall": None, "rank": None},
    "Recall@5@2": {"recall": None},
    "Recall@2@3": {"recall": None},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_every_figure_by_hand(run, name):
    found = values(run, name)
    for stage, expected in BY_HAND[name].items():
        assert found[stage] is None if expected is None else found[stage] == pytest.approx(expected, abs=1e-12), stage


def test_rows_say_what_they_count(run):
    row = ask(run, "HR@2")["recall"]
    assert (row["n"], row["undefined"], row["undefined_share"], row["unit"]) == (3, 1, 1 / 4, "request")
    assert row["denominator"] == "requests with a purchase (in-scenario); 9 eligible items on average"
    assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert ask(run, "HR@3")["rank"]["note"] == "n/a: rank puts out 2"
    money = ask(run, "GMV-HR@2")["recall"]
    assert (money["n"], money["undefined"], money["unit"]) == (2, 2, "EUR")
    assert "120.00 EUR" in money["denominator"] and "1 relevant items without a price shown or paid (20.0%) left out" in money["note"]
    single = ask(run, "gAUC:request:exposures")["recall"]
    assert (single["n"], single["undefined"]) == (2, 2)
    assert (ask(run, "AUC")["rank"]["n"], ask(run, "survival")["recall"]["n"]) == (9, 4)
    json.dumps(measure(run, list(BY_HAND)), allow_nan=False)


def test_winsorised_money_cuts_the_one_big_order(run):
    cap = np.percentile([10, 30, 60, 20], 99)  # 59.1
    assert values(run, "GMV-HR@2:w99")["recall"] == pytest.approx(10 / (60 + cap))
    assert values(run, "GMV-nDCG@2:w99")["recall"] == pytest.approx(10 / (cap + 30 * SECOND) / 2)


def test_probabilities(run):
    p, y = [0.5, 0.5, 0.7, 0.1, 0.4, 0.2, 0.9, 0.3, 0.3], [1, 0, 1, 0, 0, 0, 1, 0, 0]
    assert values(run, "logloss") == {
        "recall": None,
        "rank": pytest.approx(log_loss(y, p)),
        "base rate": pytest.approx(log_loss(y, [1 / 3] * 9)),
    }
    # Nine rows in bins by quantile: equal probabilities share a bin, every other row has its own.
    gaps = [abs(0.5 + 0.5 - 1), 0.3, 0.1, 0.4, 0.2, 0.1, abs(0.3 + 0.3)]
    assert values(run, "ECE")["rank"] == pytest.approx(sum(gaps) / 9)


def test_slices_restrict_truth_or_requests(run):
    found = ask(run, "HR@1", slice="target")
    assert {k: (r["value"], r["n"], r["undefined"]) for k, r in found.items() if k[0] == "recall"} == {
        ("recall", "target=head"): (1 / 2, 2, 2), ("recall", "target=tail"): (0, 2, 2), ("recall", "target=cold"): (0, 1, 3),
    }  # fmt: skip
    assert found["ceiling", "target=cold"]["value"] == 0  # c was not eligible
    assert found["random", "target=head"]["value"] == pytest.approx(1 / 10)
    by_user = values(run, "HR@1", slice="user")
    assert by_user["recall", "user=new"] == 1 and by_user["recall", "user=returning"] == 0
    # r4; r1 is not of this part at all
    assert ask(run, "HR@1", slice="user")["recall", "user=returning"]["undefined"] == 1
    assert values(run, "survival", slice="repeat")["end to end", "repeat=new"] == 2 / 3
    assert values(run, "HR@2", slice="price")["recall", "price=unknown"] == 1
    assert values(run, "gAUC:request:exposures", slice="query")["recall", "query=with"] == 2.5 / 4
    assert "by relevant item" in ask(run, "AUC", slice="target")["recall", "target=head"]["note"]
    assert values(run, "HR@1:exposures", slice="target")["rank", "target=tail"] == 1
    with pytest.raises(KarmafunnelError, match="there are target, repeat, price, user, query"):
        measure(run, ["HR@1"], slice="colour")


def test_the_cascade_adds_up(run):
    cascade = Cascade.of(run)
    survivals = [row["survival"] for row in cascade.steps]
    assert survivals == [4 / 5, 3 / 4, 2 / 3, 2 / 5]
    assert [row["money_out"] for row in cascade.steps] == [60, 40, 10, 10]
    assert {row["reason"]: (row["items"], row["money"]) for row in cascade.losses} == {
        "not eligible": (1, 60), "index": (1, 20), "recall": (0, 0), "rank": (1, 30), "kept": (2, 10),
    }  # fmt: skip
    assert sum(row["share"] for row in cascade.losses) == pytest.approx(1)
    heads = [row for row in Cascade.of(run, slice="target").steps if row["slice"] == "target=head"]
    assert [(row["items_in"], row["items_out"]) for row in heads] == [(2, 2), (2, 1), (1, 1), (2, 1)]


def test_one_stage_is_the_last(run):
    assert set(values(run, "HR@1", by_stage=False)) == {"rank", "random", "ceiling"}
    assert ask(run, "overlap@1", by_stage=False)["rank"]["note"] == "n/a: it compares a stage and the next one"


def replaced(run: Run, name: str, frame: pl.DataFrame) -> Run:
    frame.write_parquet(run.path / f"{name}.parquet")
    return Run.open(run.path)


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_equal_brute_force(tmp_path, seed):
    """Overlap by sets, RBO by its infinite sum with the agreement of depth k ever after; a short
    slate is undefined.
    """
    rng, k = np.random.default_rng(seed), 6
    slates = {r: [rng.permutation(12)[:8], rng.permutation(12)[:6]] for r in REQUESTS["request_id"]}
    slates["r2"] = [rng.permutation(12)[:8], rng.permutation(12)[:5]]
    rows = [
        (r, stage, f"i{item}", rank, 0.0, "")
        for r, both in slates.items()
        for stage, items in zip(("recall", "rank"), both, strict=True)
        for rank, item in enumerate(items, 1)
    ]
    columns = ["request_id", "stage", "item_id", "rank", "score", "channel"]
    keeps = [{"name": "recall", "kind": "Join", "k": 8}, {"name": "rank", "kind": "Rank", "k": 6}]
    run = by_hand(tmp_path / "run", meta={"stages": keeps})
    run = replaced(run, "slates", pl.DataFrame(rows, schema=columns, orient="row").sample(fraction=1.0, shuffle=True, seed=seed))
    overlaps, rbos, deep = [], [], []
    for r in ("r1", "r3", "r4"):
        a, b = (list(items[:k]) for items in slates[r])
        agreement = [len(set(a[:d]) & set(b[:d])) / d for d in range(1, k + 1)]
        overlaps.append(agreement[-1])
        for found, p in ((rbos, 0.9), (deep, 0.98)):
            found.append((1 - p) * sum(p ** (d - 1) * agreement[min(d, k) - 1] for d in range(1, 4000)))
    for name, expected in (("overlap@6", overlaps), ("RBO@6", rbos), ("RBO@6:0.98", deep)):
        row = ask(run, name)["recall"]
        assert row["value"] == pytest.approx(np.mean(expected)) and (row["n"], row["undefined"]) == (3, 1)
        assert row["denominator"] == "requests where recall and rank both put out 6"
        by_query = ask(run, name, slice="query")
        # r1; r2 is undefined
        assert by_query["recall", "query=with"]["value"] == pytest.approx(expected[0])
        assert "by relevant item" in ask(run, name, slice="target")["recall", "target=head"]["note"]
    same = pl.DataFrame([(r, s, i, n, 0.0, "") for r in ("r1", "r3") for s in ("recall", "rank") for n, i in enumerate("abcdef", 1)],
                        schema=columns, orient="row")  # fmt: skip
    assert values(replaced(run, "slates", same), "RBO@6")["recall"] == pytest.approx(1)


def test_margins_are_those_of_the_cascade(tmp_path):
    ledger = {
        "lost": ["rank", "rank", "rank", "not eligible", "rank"], "margin": [2, 9, 4, None, None],
        "rank.rank": [None] * 5, "recall.rank": [2, 1, 3, None, 4],
    }  # fmt: skip
    run = by_hand(tmp_path / "run", ledger=ledger)
    row = ask(run, "margin")["rank"]
    assert (row["value"], row["n"], row["undefined"], row["unit"]) == (4, 3, 1, "relevant item")
    assert row["low"] == 2 and row["high"] == 6.5  # bob alone; ann alone
    assert row["value"] == next(r for r in Cascade.of(run).losses if r["reason"] == "rank")["median_margin"]
    assert row["denominator"] == "relevant items (purchase) lost by rank"
    assert ask(run, "margin")["recall"]["note"] == "n/a: recall lost no relevant item"
    assert values(run, "margin", slice="target")["rank", "target=tail"] == 3
    unknown = by_hand(tmp_path / "unknown", ledger=ledger | {"margin": [None] * 5})
    assert ask(unknown, "margin")["rank"]["note"] == "n/a: no margin is known"


# -- all-scenario truth ----------------------------------------------------------------------------

START = datetime(2026, 1, 1, tzinfo=UTC)


def days(*many: float) -> pl.Series:
    return pl.Series([START + timedelta(days=d) for d in many], dtype=TS)


def with_elsewhere(folder: Path) -> Run:
    """The Run by hand on a log that holds purchases elsewhere: asked at r1 day 0, r3 1, r4 2, r2 3.
    """
    asked = pl.DataFrame(
        {"request_id": ["r1", "r3", "r4", "r2"], "user_id": ["ann", "bob", "bob", "ann"], "ts": days(0, 1, 2, 3)}
    )
    rows = [(r, i, p, y, y, 1.0) for r, listed in SCORED.items() for i, p, y, _, _ in listed]
    columns = ["request_id", "item_id", "position", "clicked", "purchased", "price_shown"]
    exposures = pl.DataFrame(rows, schema=columns, orient="row")
    items = pl.DataFrame({"item_id": sorted("abcdpqrsuvwxyz"), "title": ["thing"] * 14})
    has = dict.fromkeys(("text", "price", "exposures", "clicks", "purchases", "users"), True)
    log = Log.make(
        items, asked.with_columns(query=pl.lit("thing"), source=pl.lit("search")), exposures, {"name": "corner shop", "has": has}
    )
    log.write(folder / "log")
    (folder / "log" / "truth").mkdir()
    bought = [
        ("ann", "a", 2), ("ann", "s", 3), ("ann", "p", 4), ("ann", "p", 4.5), ("bob", "d", 1.5), ("bob", "v", 8.5), ("bob", "v", 8.6),
        ("eve", "x", 2.0),
    ]  # fmt: skip
    user, item, day = zip(*bought, strict=True)
    pl.DataFrame({"user_id": user, "item_id": item, "ts": days(*day)}).write_parquet(
        folder / "log" / "truth" / "elsewhere.parquet"
    )
    log = Log.open(folder / "log")
    meta = META | {"log": META["log"] | {"path": str(log.path), "checksum": log.checksum}}
    return by_hand(folder / "run", meta=meta, requests={"ts": days(1, 0, 2, 3)})


def test_all_scenario_truth_by_hand(tmp_path):
    """In 7 days ann's p counts for r1 and r2, once, s for r1, as it is of the moment of r2, bob's v
    for r4 alone; a and d are truth.
    """
    run = with_elsewhere(tmp_path)
    found = ask(run, "HR@1:all")
    assert set(found) == {"recall", "rank"}
    assert found["recall"]["value"] == (1 + 1 + 0 + 1) / 4  # a, p, -, v
    assert found["rank"]["value"] == (0 + 0 + 1 + 0) / 4
    assert (found["recall"]["n"], found["recall"]["undefined"]) == (4, 0)
    assert found["recall"]["denominator"] == "requests with a purchase or a purchase elsewhere within 7 days (all-scenario)"
    # r4, r2
    assert found["recall"]["note"] == "the window of 2 requests runs past the last purchase known elsewhere; fewer than 30 requests"
    assert values(run, "Recall@2:all")["recall"] == (1 / 5 + 1 / 2 + 1 + 1) / 4
    one_day = ask(run, "HR@1:all:1d")["recall"]
    # v is too late: nothing was bought after r4
    assert (one_day["value"], one_day["n"]) == (pytest.approx((1 + 1 + 0) / 3), 3)
    assert values(run, "HR@1:all", slice="user")["recall", "user=returning"] == pytest.approx(2 / 3)
    assert ask(run, "HR@3:all")["rank"]["note"] == "n/a: rank puts out 2"
    assert "by relevant item" in ask(run, "HR@1:all", slice="target")["recall", "target=head"]["note"]
    # in-scenario truth is as before
    assert values(run, "HR@1") == values(by_hand(tmp_path / "plain"), "HR@1")


def test_all_scenario_truth_that_is_not_there(tmp_path, run):
    assert ask(run, "HR@1:all")["recall"]["note"] == "n/a: the log holds no purchases made elsewhere"
    found = with_elsewhere(tmp_path)
    log = Path(found.meta["log"]["path"])
    elsewhere = log / "truth" / "elsewhere.parquet"
    pl.read_parquet(elsewhere).drop("ts").write_parquet(elsewhere)
    with pytest.raises(KarmafunnelError, match=r"elsewhere\.parquet: needs user_id, item_id and ts"):
        measure(found, ["HR@1:all"])
    items = pl.read_parquet(log / "items.parquet")
    items.with_columns(title=pl.lit("other")).write_parquet(log / "items.parquet")
    assert "is no longer the log that was replayed" in ask(found, "HR@1:all")["recall"]["note"]


def test_all_scenario_truth_of_a_world(tmp_path):
    """A replayed World against loops over its tables."""
    world = generate(items=60, users=30, requests=300, seed=3)
    world.write(tmp_path / "world")
    log = Log.open(tmp_path / "world")
    recipe = Recipe("popular", "popular", Funnel((Popular(k=20),)), {}, "click")
    run = Run.open(replay(recipe, log, tmp_path / "run", RunOptions(window="W2")))
    slates = {(r, i): rank for r, i, rank in run.read("slates", "request_id", "item_id", "rank").rows()}
    ledger, elsewhere = run.read("ledger", "request_id", "item_id").rows(), read_truth(tmp_path / "world")["elsewhere"]
    hits, added = [], 0
    for request, user, ts in run.read("requests", "request_id", "user_id", "ts").rows():
        truth = {item for r, item in ledger if r == request}
        more = {
            row["item_id"]
            for row in elsewhere.rows(named=True)
            if row["user_id"] == user and ts < row["ts"] <= ts + timedelta(days=7)
        }
        added += len(more - truth)
        if truth | more:
            hits.append(any(slates.get((request, item), 99) <= 10 for item in truth | more))
    row = ask(run, "HR@10:all")["recall"]
    assert added > 10 and (row["value"], row["n"]) == (pytest.approx(np.mean(hits)), len(hits))


# -- data that does not say much -------------------------------------------------------------------


def test_lists_of_one_class_are_dropped_and_said_to_be(tmp_path, run):
    row = ask(run, "gAUC:request:exposures")["recall"]
    assert row["undefined_share"] == 2 / 4  # r2 shows no truth, r4 has none
    scored = run.read("scored").with_columns(clicked=pl.lit(True), purchased=pl.lit(True))
    one_class = replaced(by_hand(tmp_path / "one"), "scored", scored)
    for name in ("gAUC:request:exposures", "gAUC:user:exposures", "AUC"):
        row = ask(one_class, name)["recall"]
        assert row["value"] is None and row["note"] == "n/a: nothing is defined", name
    assert ask(one_class, "gAUC:request:exposures")["recall"]["undefined_share"] == 1


def test_equal_scores_say_nothing(tmp_path, run):
    level = run.read("scored").with_columns(pl.lit(0.5).alias(c) for c in ("recall.score", "rank.score", "rank.p"))
    found = replaced(by_hand(tmp_path / "level"), "scored", level)
    for name in ("AUC", "gAUC:request:exposures", "gAUC:user:exposures:none"):
        assert values(found, name)["rank"] == 0.5, name
    assert values(found, "ECE")["rank"] == pytest.approx(0.5 - 3 / 9)  # one bin
    assert values(found, "logloss")["rank"] == pytest.approx(-np.log(0.5))


def test_truth_without_prices(tmp_path):
    some = ask(by_hand(tmp_path / "some", ledger={"money": [None, 10.0, None, 60.0, None]}), "GMV-HR@2")["recall"]
    assert (some["value"], some["n"], some["undefined_share"]) == (pytest.approx(10 / 70), 1, 3 / 4)
    assert "3 relevant items without a price shown or paid (60.0%) left out" in some["note"]
    none = ask(by_hand(tmp_path / "none", ledger={"money": [None] * 5}), "GMV-HR@2")["recall"]
    assert none["value"] is None and none["undefined_share"] == 1
    assert none["note"] == "5 relevant items without a price shown or paid (100.0%) left out; n/a: nothing is defined"
    assert values(by_hand(tmp_path / "hits", ledger={"money": [None] * 5}), "HR@2")["recall"] == 2 / 3


# -- what is shown of the catalogue ----------------------------------------------------------------


def test_coverage_and_gini_by_hand():
    assert Coverage(k=1).of_counts(np.array([3.0, 0.0, 1.0]), 8) == 2 / 8
    assert np.isnan(Coverage(k=1).of_counts(np.zeros(0), 8))
    gini = Gini(k=1)
    assert gini.of_counts(np.full(4, 5.0), 4) == pytest.approx(0)
    assert gini.of_counts(np.array([7.0]), 4) == pytest.approx(3 / 4)  # one of four takes all
    counts = np.array([1.0, 4.0, 2.0, 0.0, 0.0])
    # half the relative mean difference
    pairs = np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean())
    assert gini.of_counts(counts[:3], 5) == pytest.approx(pairs)


def test_coverage_of_a_run_counts_its_slates(run, shop, tmp_path):
    assert "does not say how many items" in ask(run, "coverage@2")["rank"]["note"]
    run = Run.open(replay(load_recipe("own_history", shop), shop, tmp_path / "run"))
    k, items = 2, run.meta["log"]["items"]
    top = run.read("slates").filter(pl.col("rank") <= k)
    for stage, rows in top.group_by("stage"):
        found = ask(run, f"coverage@{k}")[str(stage[0])]
        assert (found["value"], found["n"]) == (pytest.approx(rows["item_id"].n_unique() / items), rows.height)
        # a resample shows no item that the whole does not: its values lie on one side
        for name in ("coverage", "Gini"):
            counted = ask(run, f"{name}@{k}")[str(stage[0])]
            assert counted["low"] is counted["high"] is None and "resample" in define(counted["measure"])
            (same,) = [r for r in compare(run, run, [f"{name}@{k}"]) if r["stage"] == str(stage[0])]
            assert same["difference"] == 0 and same["low"] is same["smallest_effect"] is None


def test_novelty_is_the_surprise_of_what_is_shown(shop, tmp_path):
    shop.write(tmp_path / "log")
    log = Log.open(tmp_path / "log")
    replay(load_recipe("popular", log), log, tmp_path / "run")
    found = ask(Run.open(tmp_path / "run"), "novelty@3")["recall"]
    counts = log.targets_of_w1("click") + 1
    bits = dict(zip(log.items["item_id"], -np.log2(counts / counts.sum()), strict=True))
    top = Run.open(tmp_path / "run").read("slates").filter(pl.col("rank") <= 3)
    means = top.group_by("request_id").agg(pl.col("item_id").replace_strict(bits).mean())["item_id"]
    assert found["value"] == pytest.approx(means.mean())
    (tmp_path / "log").rename(tmp_path / "elsewhere")
    assert ask(Run.open(tmp_path / "run"), "novelty@3")["recall"]["note"].startswith("n/a: the log that was replayed is not at")


def test_a_new_measure_is_one_class(run):
    @dataclass(frozen=True, repr=False)
    class Nothing(AtK):
        name = "nothing"
        form = "nothing@k"
        definition = "nothing at all"

        def figures(self, reading, part, stages):
            for stage in stages:
                yield self.figure(stage, part, mean(reading, part, np.zeros(reading.n)), "request", "requests")

    kinds.cache_clear()
    try:
        found = ask(run, "nothing@4")["rank"]
        assert (found["measure"], found["value"], found["n"]) == ("nothing@4", 0.0, run.read("requests").height)
        assert define("nothing@4") == "nothing at all"
    finally:
        kinds.cache_clear()


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [*BY_HAND, "GMV-HR@50:w99:exposures", "logloss", "ECE", "gAUC:user:exposures:none", "nDCG@5:exposures"]
)
def test_a_measure_prints_as_typed(text):
    assert str(Measure.parse(text)) == repr(Measure.parse(text)) == text
    assert Measure.parse(text) == Measure.parse(f" {text} ") and hash(Measure.parse(text)) == hash(Measure.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "HR",
        "HR@0",
        "HR@x",
        "HR@5@6",
        "HR@5:w99",
        "gAUC",
        "gAUC:request",
        "gAUC:session:exposures",
        "AUC@5",
        "Recall@5@6@7",
        "overlap",
        "RBO@5:all",
        "RBO@5:1",
        "RBO@5:0.0",
        "RBO@5:.9:.9",
        "overlap@5@6",
        "margin@5",
        "HR:all",
        "HR@5:all:exposures",
        "HR@5:14d",
        "HR@5:all:0d",
        "HR@5:all:-1d",
        "nDCG@5:all",
        "",
    ],
)
def test_an_unknown_measure_lists_what_exists(text):
    with pytest.raises(KarmafunnelError, match=r"there are .*gAUC:.*HR@k.*, Recall@k") as error:
        Measure.parse(text)
    assert ("with 1 to 9,999 whole days" in str(error.value)) == text.startswith("HR@5:all:")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("hrr@5", "RR"), ("recal@5", "Recall"), ("ndgc@5", "nDCG"), ("succes@5", "Success")],
)
def test_a_name_close_to_a_measure_is_asked_for(typed, meant):
    with pytest.raises(KarmafunnelError, match=f"no such measure, did you mean {meant}\\?"):
        Measure.parse(typed)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("hr@5", "HR@5"),
        ("NDCG@5", "nDCG@5"),
        ("gmv-hr@5:w99", "GMV-HR@5:w99"),
        ("GAUC:request:exposures", "gAUC:request:exposures"),
        ("success@5", "HR@5"),
        ("ece", "ECE"),
    ],
)
def test_a_name_is_understood_in_any_case(typed, meant):
    assert str(Measure.parse(typed)) == meant


# -- folders that are no Runs ----------------------------------------------------------------------


def test_what_is_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(KarmafunnelError, match="no such folder"):
        Run.open(tmp_path / "nowhere")
    (tmp_path / "log.json").write_text("{}")
    with pytest.raises(KarmafunnelError, match=r"needs a Run folder with run.json, found \['log.json'\]"):
        Run.open(tmp_path)
    cut = by_hand(tmp_path / "cut").path / "ledger.parquet"
    cut.write_bytes(cut.read_bytes()[:-40])
    with pytest.raises(KarmafunnelError, match=r"ledger\.parquet: needs a readable"):
        Run.open(cut.parent)
    cut.unlink()
    with pytest.raises(KarmafunnelError, match=r"ledger\.parquet: .*no such file"):
        Run.open(cut.parent)
    pl.DataFrame(LEDGER).drop("rank.wins").write_parquet(cut)
    with pytest.raises(KarmafunnelError, match=r"missing \['rank.wins'\]"):
        Run.open(cut.parent)
    (cut.parent / "run.json").write_text("{")
    with pytest.raises(KarmafunnelError, match=r"run\.json: needs JSON"):
        Run.open(cut.parent)


def test_tables_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(KarmafunnelError, match=r"needs money of 0 or more, found -5.0 for request 'r1', item 'b'"):
        measure(by_hand(tmp_path / "debt", ledger={"money": [None, 10.0, -5.0, 60.0, 20.0]}), ["HR@1"])
    with pytest.raises(KarmafunnelError, match="request 'r9' is not in requests"):
        measure(by_hand(tmp_path / "stray", ledger={"request_id": ["r3", "r9", "r1", "r1", "r2"]}), ["HR@1"])
    with pytest.raises(KarmafunnelError, match="'r1' twice"):
        measure(by_hand(tmp_path / "twice", requests={"request_id": ["r3", "r1", "r1", "r2"]}), ["HR@1"])
    with pytest.raises(KarmafunnelError, match="rank keeps item 'a' of request 'r2'"):
        Cascade.of(by_hand(tmp_path / "ghost", ledger={"rank.rank": [1, 2, None, None, 1]}))
    with pytest.raises(KarmafunnelError, match="`lost` and the last rank disagree"):
        Cascade.of(by_hand(tmp_path / "reason", ledger={"lost": [None, None, None, "not eligible", "index"]}))


# -- comparisons -----------------------------------------------------------------------------------


def grown(
    folder: Path,
    seed: int,
    users: int = 60,
    each: int = 5,
    better: float = 0.0,
    checksum: str = "c0ffee",
    stage: str = "rank",
    limit: int = 0,
) -> Run:
    """One stage, one relevant item a request, at rank 1 with a probability that depends on the user
    and on `better`.
    """
    rng = np.random.default_rng(7)  # the log is the same for every seed
    n = users * each
    chance = np.repeat(rng.beta(1, 1, users) * 0.6, each)
    luck = rng.random(n) + 0.02 * np.random.default_rng(seed).standard_normal(n)
    hit = luck < chance + better
    ids = [f"r{i}" for i in range(n)]
    requests = {
        "request_id": ids,
        "user_id": [f"u{i // each}" for i in range(n)],
        "n_truth": [1] * n,
        "n_eligible": [50] * n,
        "n_truth_eligible": [1] * n,
        "has_query": [True] * n,
        "new_user": [False] * n,
        f"{stage}.n": [50] * n,
        f"{stage}.out": [5] * n,
    }
    ledger = {
        "request_id": ids,
        "item_id": ["t"] * n,
        "money": [1.0] * n,
        "quantity": [1] * n,
        "eligible": [True] * n,
        "target": ["head"] * n,
        "repeat": [False] * n,
        "price_band": ["low"] * n,
        f"{stage}.rank": [1 if h else None for h in hit],
        f"{stage}.wins": [49.0 * h for h in hit],
        "lost": [None if h else stage for h in hit],
        "margin": [None] * n,
    }
    scored = {
        "request_id": ids * 2,
        "item_id": ["t"] * n + ["o"] * n,
        "position": [1] * n + [2] * n,
        "clicked": [True] * n + [False] * n,
        "purchased": [True] * n + [False] * n,
        "eligible": [True] * 2 * n,
        f"{stage}.score": [*hit.astype(float), *[0.5] * n],
    }
    slates = {
        "request_id": ids,
        "stage": [stage] * n,
        "item_id": ["t"] * n,
        "rank": [1] * n,
        "score": [0.0] * n,
        "channel": [""] * n,
    }
    meta = META | {"log": META["log"] | {"checksum": checksum}, "stages": [{"name": stage, "kind": "X", "k": 5}], "seed": seed}
    tables = [pl.DataFrame(t) for t in (requests, ledger, scored, slates)]
    if limit:
        tables = [t.filter(pl.col("request_id").is_in(ids[:limit])) for t in tables]
    return write(folder, *tables, meta)


NAMES = ["HR@1", "MRR", "GMV-HR@1", "survival", "AUC", "gAUC:request:exposures", "gAUC:request:candidates"]


def test_compare_says_which_side_is_better(tmp_path):
    a, b = grown(tmp_path / "a", 0), grown(tmp_path / "b", 0, better=0.2)
    rows = {(r["measure"], r["stage"]): r for r in compare(a, b, NAMES)}
    assert len(rows) == 8  # survival has its end to end
    for key, row in rows.items():
        assert row["better"] == "B" and row["holm"] and row["low"] > 0, key
        assert (
            row["difference"] == pytest.approx(row["value_b"] - row["value_a"]) and 0 < row["smallest_effect"] < row["difference"]
        )
    assert all(r["better"] == "A" and r["high"] < 0 for r in compare(b, a, NAMES))
    assert rows["HR@1", "rank"]["value_a"] == values(a, "HR@1")["rank"]
    assert all((r["difference"], r["better"], r["holm"], r["p"]) == (0, "", False, 1) for r in compare(a, a, NAMES))


def test_compare_pairs(tmp_path):
    """Two seeds that differ in little: the paired interval is far narrower than either value's own.
    """
    a, b = grown(tmp_path / "a", 0), grown(tmp_path / "b", 1)
    row, own = compare(a, b, ["HR@1"])[0], ask(a, "HR@1")["rank"]
    assert row["high"] - row["low"] < (own["high"] - own["low"]) / 2
    assert row["better"] == ""


def test_seeds_must_agree(tmp_path):
    a = [grown(tmp_path / f"a{s}", s) for s in range(3)]
    b = [grown(tmp_path / f"b{s}", s, better=0.2) for s in range(3)]
    row = compare(a, b, ["HR@1"])[0]
    assert (row["better"], row["seeds"]) == ("B", 3)
    assert row["value_b"] == pytest.approx(np.mean([values(r, "HR@1")["rank"] for r in b]))
    mixed = compare(a, [*b[:2], grown(tmp_path / "worse", 2, better=-0.02)], ["HR@1"])[0]
    assert mixed["difference"] > 0 and mixed["better"] == ""
    table = ask(a, "HR@1")["rank"]
    assert table["seeds"] == 3 and table["low"] < table["value"] < table["high"]
    with pytest.raises(KarmafunnelError, match="as many seeds of A as of B, found 3 and 1"):
        compare(a, b[0], ["HR@1"])


def test_compare_refuses_what_is_not_the_same_question(tmp_path, run):
    a = grown(tmp_path / "a", 0)
    with pytest.raises(KarmafunnelError, match=r"one log, found corner shop \(c0ffee\) in .*a and corner shop \(beef\) in .*b"):
        compare(a, grown(tmp_path / "b", 0, checksum="beef"), ["HR@1"])
    with pytest.raises(KarmafunnelError, match=r"one label, found purchase in .* and click in"):
        compare(run, by_hand(tmp_path / "click", meta={"label": "click"}), ["HR@1"])
    with pytest.raises(KarmafunnelError, match=r"one window, found W3 in .* and W2b in"):
        compare(run, by_hand(tmp_path / "early", meta={"window": "W2b"}), ["HR@1"])
    with pytest.raises(KarmafunnelError, match=r"same requests, found 300 in .*a and 100 in .*c, 100 of them in both"):
        compare(a, grown(tmp_path / "c", 0, limit=100), ["HR@1"])


def test_funnels_of_other_stages_compare_at_their_ends(tmp_path):
    a, b = grown(tmp_path / "a", 0), grown(tmp_path / "b", 0, better=0.2, stage="rerank")
    assert [(r["stage"], r["better"]) for r in compare(a, b, ["HR@1"])] == [("rank | rerank", "B")]


def test_what_describes_a_cascade_has_no_better_side(tmp_path):
    """Overlap falls from 1 to 0 for every user, which is a difference and no merit."""
    a, b = by_hand(tmp_path / "a"), by_hand(tmp_path / "b")
    slates = a.read("slates").filter(pl.col("stage").cast(pl.String) == "recall")
    for run, prefix in ((a, ""), (b, "not ")):
        later = slates.with_columns(stage=pl.lit("rank"), item_id=prefix + pl.col("item_id"))
        pl.concat([slates.with_columns(pl.col("stage").cast(pl.String)), later]).write_parquet(run.path / "slates.parquet")
    row = compare(Run.open(a.path), Run.open(b.path), ["overlap@2"])[0]
    assert (row["difference"], row["low"], row["high"], row["better"]) == (-1, -1, -1, "")
    assert "not told apart" not in to_markdown(measure_table([row]))


def test_a_measure_that_one_side_lacks_is_not_compared(tmp_path):
    a = grown(tmp_path / "a", 0)
    row = compare(a, a, ["HR@6"])[0]
    assert row["value_a"] is None and row["better"] == "" and row["note"] == "n/a: rank puts out 5"


# -- other libraries -------------------------------------------------------------------------------


def random_lists(seed: int, n: int = 60, depth: int = 30, pool: int = 50):
    """Random qrels and a run without ties; some truth is never retrieved, some requests have more
    truth than k.
    """
    rng = np.random.default_rng(seed)
    qrels, run, group, rank, money = {}, {}, [], [], []
    for q in range(n):
        truth = rng.choice(pool, rng.integers(1, 16), replace=False)
        listed = rng.permutation(pool)[:depth]
        gains = rng.integers(1, 100, len(truth))
        qrels[f"q{q}"] = {f"d{d}": int(g) for d, g in zip(truth, gains, strict=True)}
        run[f"q{q}"] = {f"d{d}": float(depth - i) for i, d in enumerate(listed)}
        place = {d: i + 1 for i, d in enumerate(listed)}
        group += [q] * len(truth)
        rank += [place.get(d, LOST) for d in truth]
        money += gains.tolist()
    return qrels, run, (np.array(group), np.array(rank, dtype=np.int64), n), np.array(money, dtype=float)


def ours(lists, money, k: int) -> dict[str, np.ndarray]:
    return {
        "HR": metrics.hit_rate(*lists, k), "Recall": metrics.recall(*lists, k), "MRR": metrics.reciprocal_rank(*lists, k),
        "nDCG": metrics.ndcg(*lists, k), "GMV-nDCG": metrics.ndcg(*lists, k, money),
        "MAP": MAP(k=k).values(Lists(*lists[:2], money), lists[2], k),
    }  # fmt: skip


@pytest.mark.parametrize("k", [1, 5, 10, 30])
def test_equal_to_ranx(k, monkeypatch):
    # the same code, without a minute of compiling
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    import ranx

    qrels, run, lists, money = random_lists(k)
    binary = ranx.Qrels({q: dict.fromkeys(d, 1) for q, d in qrels.items()})
    graded, ranked = ranx.Qrels(qrels), ranx.Run(run)
    found = ours(lists, money, k)
    names = {
        "HR": (binary, "hit_rate"),
        "Recall": (binary, "recall"),
        "MRR": (binary, "mrr"),
        "nDCG": (binary, "ndcg"),
        "GMV-nDCG": (graded, "ndcg"),
    }
    for name, (truth, theirs) in names.items():
        ranx.evaluate(truth, ranked, f"{theirs}@{k}", threads=1)
        scores = ranked.scores[theirs + f"@{k}"]
        assert np.abs(found[name] - [scores[f"q{q}"] for q in range(lists[2])]).max() < 1e-9, name


@pytest.mark.parametrize("k", [1, 5, 10, 30])
def test_equal_to_ir_measures(k):
    qrels, run, lists, money = random_lists(100 + k)
    found = ours(lists, money, k)
    names = {"HR": f"Success@{k}", "Recall": f"R@{k}", "MRR": f"RR@{k}", "nDCG": f"nDCG@{k}", "MAP": f"AP@{k}"}
    for name, theirs in names.items():
        binary = {q: dict.fromkeys(d, 1) for q, d in qrels.items()}
        scores = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.parse_measure(theirs)], binary, run)}
        assert np.abs(found[name] - [scores[f"q{q}"] for q in range(lists[2])]).max() < 1e-9, name
    whole = MAP().values(Lists(*lists[:2], money), lists[2], LOST - 1)  # without a cutoff
    scores = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.AP], binary, run)}
    assert np.abs(whole - [scores[f"q{q}"] for q in range(lists[2])]).max() < 1e-9
    scores = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.parse_measure(f"nDCG@{k}")], qrels, run)}
    assert np.abs(found["GMV-nDCG"] - [scores[f"q{q}"] for q in range(lists[2])]).max() < 1e-9


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("ties", [True, False])
def test_grouped_auc_equals_scikit_learn_group_by_group(dtype, ties):
    rng = np.random.default_rng(3)
    n = 3000
    groups, labels = rng.integers(0, 400, n), rng.random(n) < 0.2
    scores = (rng.integers(-3, 3, n) if ties else rng.permutation(n) - n // 2).astype(dtype)
    by_group = {g: (labels[groups == g], scores[groups == g]) for g in range(400)}
    kept = {g: (y, s) for g, (y, s) in by_group.items() if 0 < y.sum() < len(y)}
    theirs = {g: roc_auc_score(y, s) for g, (y, s) in kept.items()}
    found, rows, positives = metrics.auc_by_group(groups, scores, labels, 400)
    assert {g for g in range(400) if not np.isnan(found[g])} == set(kept)
    assert max(abs(found[g] - a) for g, a in theirs.items()) < 1e-9
    weights = {"exposures": lambda y: len(y), "positives": lambda y: y.sum(), "none": lambda y: 1}
    for weight, of in weights.items():
        expected = np.average(list(theirs.values()), weights=[of(y) for y, _ in kept.values()])
        assert metrics.grouped_auc(groups, scores, labels, weight) == pytest.approx(expected, abs=1e-9)
    assert metrics.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    w = rng.integers(0, 4, n)
    assert metrics.auc(scores, labels, w) == pytest.approx(roc_auc_score(labels, scores, sample_weight=w), abs=1e-9)
    assert (rows.sum(), positives.sum()) == (n, labels.sum())


def test_arithmetic_refuses_what_it_cannot_rank():
    with pytest.raises(KarmafunnelError, match="finite scores, found 1"):
        metrics.auc(np.array([1.0, np.nan]), np.array([True, False]))
    with pytest.raises(KarmafunnelError, match="one length"):
        metrics.auc(np.zeros(3), np.zeros(2, dtype=bool))
    with pytest.raises(KarmafunnelError, match="weight must be"):
        metrics.grouped_auc(np.zeros(2, dtype=int), np.zeros(2), np.array([True, False]), "rows")
    assert np.isnan(metrics.grouped_auc(np.zeros(0, dtype=int), np.zeros(0), np.zeros(0)))
    assert np.isnan(metrics.auc(np.zeros(2), np.ones(2)))


# -- brute force and properties --------------------------------------------------------------------

rows = st.integers(1, 25).flatmap(
    lambda n: st.tuples(
        *(st.lists(element, min_size=n, max_size=n) for element in (st.integers(0, 4), st.integers(-3, 3), st.booleans()))
    )
)
ranked = st.lists(
    st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(1, 30)), st.integers(0, 50)), min_size=1, max_size=20
)


@given(rows)
def test_auc_counts_pairs_ties_one_half(data):
    groups, scores, labels = (np.array(column) for column in data)
    found, _, _ = metrics.auc_by_group(groups, scores.astype(np.float32), labels, 5)
    for g in range(5):
        s, y = scores[groups == g], labels[groups == g]
        pairs = [(a > b) + (a == b) / 2 for a in s[y] for b in s[~y]]
        assert found[g] == pytest.approx(np.mean(pairs)) if pairs else np.isnan(found[g])
    everything = metrics.auc(scores, labels)
    if not np.isnan(everything):
        assert 0 <= everything <= 1
        assert everything + metrics.auc(-scores, labels) == pytest.approx(1)
        assert metrics.auc(scores, ~labels) == pytest.approx(1 - everything)
        # the order alone counts
        assert metrics.auc(np.exp(scores), labels) == pytest.approx(everything)
        assert metrics.auc(np.zeros(len(scores)), labels) == 0.5


@given(ranked, st.integers(1, 40))
def test_hits_are_bounded_grow_with_k_and_agree_with_a_loop(data, k):
    # One item a rank: of items that claim the same rank in a list, the first keeps it.
    taken: dict = {}
    lists = [(g, r if r is not None and taken.setdefault((g, r), i) == i else LOST, float(m)) for i, (g, r, m) in enumerate(data)]
    group, rank, money = (np.array(c) for c in zip(*lists, strict=True))
    arrays = (group, rank.astype(np.int64), 6)
    found, more = ours(arrays, money, k), ours(arrays, money, k + 1)
    for name in found:
        known = ~np.isnan(found[name])
        assert (found[name][known] >= 0).all() and (found[name][known] <= 1 + 1e-12).all(), name
        if name in ("HR", "Recall", "MRR"):
            assert (more[name][known] >= found[name][known]).all(), name
    inside, total = metrics.money_inside(*arrays[:2], money, 6, k)
    assert (inside <= total).all()
    for g in range(6):
        mine = [(r, m) for h, r, m in lists if h == g]
        if not mine:
            assert all(np.isnan(found[name][g]) for name in found)
            continue
        top = [r for r, _ in mine if r <= k]
        assert found["HR"][g] == (len(top) > 0) and found["Recall"][g] == len(top) / len(mine)
        assert found["MRR"][g] == (1 / min(top) if top else 0)
        gains = sorted((m for _, m in mine), reverse=True)
        ideal = sum(m / log2(i + 2) for i, m in enumerate(gains[:k]))
        dcg = sum(m / log2(r + 1) for r, m in mine if r <= k)
        assert found["GMV-nDCG"][g] == pytest.approx(dcg / ideal) if ideal else np.isnan(found["GMV-nDCG"][g])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
@settings(max_examples=15, deadline=None)
def test_survivals_multiply_to_the_end(tmp_path_factory, depths):
    """How far each relevant item gets: 0 not eligible, 1 index, 2 lost at recall, 3 lost at rank,
    4 kept.
    """
    n = len(depths)
    depth = np.array(depths)
    reasons = np.array(["not eligible", "index", "recall", "rank", None], dtype=object)
    ledger = {
        "request_id": [f"r{i % 4 + 1}" for i in range(n)],
        "item_id": [f"i{i}" for i in range(n)],
        "money": np.arange(1.0, n + 1).tolist(),
        "quantity": [1] * n,
        "eligible": (depth > 0).tolist(),
        "target": ["head"] * n,
        "repeat": [False] * n,
        "price_band": ["low"] * n,
        "recall.rank": [1 if d > 2 else None for d in depths],
        "recall.wins": [None] * n,
        "rank.rank": [1 if d > 3 else None for d in depths],
        "rank.wins": [None] * n,
        "lost": reasons[depth].tolist(),
        "margin": [None] * n,
        "recall.score": [0.0] * n,
        "rank.score": [0.0] * n,
        "margin_score": [None] * n,
    }
    run = by_hand(tmp_path_factory.mktemp("cascade") / "run", ledger=ledger)
    cascade, found = Cascade.of(run), values(run, "survival")
    assert cascade.steps[-1]["survival"] == found["end to end"] == (depth == 4).mean()
    product = np.prod([row["survival"] for row in cascade.steps[:-1] if row["survival"] is not None])
    if all(row["survival"] is not None for row in cascade.steps):
        assert product == pytest.approx(cascade.steps[-1]["survival"], abs=1e-15)
    assert sum(row["items"] for row in cascade.losses) == n and sum(row["money"] for row in cascade.losses) == n * (n + 1) / 2


@given(st.integers(1, 7), st.integers(0, 3), st.integers(0, 2), st.integers(1, 9))
def test_the_random_row_is_the_mean_over_all_orders(eligible, reachable, missing, k):
    reachable = min(reachable, eligible)
    truth = reachable + missing
    if truth == 0:
        return
    e, t, n = (np.array([x]) for x in (eligible, reachable, truth))
    group = np.zeros(truth, dtype=np.int64)
    sums = {"HR": 0.0, "Recall": 0.0, "MRR": 0.0, "nDCG": 0.0, "MAP": 0.0}

    def of_map(group, rank, n, k):
        return MAP(k=k).values(Lists(group, rank, np.ones(len(rank))), n, k)

    places = list(combinations(range(1, eligible + 1), reachable))
    for place in places:
        rank = np.array([*place, *[LOST] * missing], dtype=np.int64)
        for name in sums:
            of = {"HR": metrics.hit_rate, "Recall": metrics.recall, "MRR": metrics.reciprocal_rank, "nDCG": metrics.ndcg, "MAP": of_map}[name]
            sums[name] += of(group, rank, 1, k)[0] / len(places)
    expected = {
        "HR": metrics.random_hit_rate,
        "Recall": metrics.random_recall,
        "MRR": metrics.random_reciprocal_rank,
        "nDCG": metrics.random_ndcg,
    }
    for name, of in expected.items():
        assert of(e, t, n, k)[0] == pytest.approx(sums[name], abs=1e-12), name
    lists = RandomLists(group, np.arange(truth) < reachable, np.ones(truth), e)
    assert MAP(k=k).expected(lists, k)[0] == pytest.approx(sums["MAP"], abs=1e-12)


def test_the_random_row_equals_a_monte_carlo_mean(run):
    """Shuffle the eligible items of the Run made by hand many times, money included."""
    rng = np.random.default_rng(0)
    # Of r1: a 10, b 30 eligible of 10, c 60 not; of r2: a 20 of 10; of r3: d without a price, of 8.
    lists = [(10, [10, 30], [60]), (10, [20], [])]
    drawn = []
    for _ in range(20000):
        inside = ndcg = 0.0
        for n, found, lost in lists:
            places = rng.permutation(n)[: len(found)] + 1
            gains = sorted(found + lost, reverse=True)
            ndcg += sum(m / log2(p + 1) for p, m in zip(places, found, strict=True) if p <= 2) / sum(
                m / log2(i + 2) for i, m in enumerate(gains[:2])
            )
            inside += sum(m for p, m in zip(places, found, strict=True) if p <= 2)
        drawn.append((inside / 120, ndcg / 2))
    means, errors = np.mean(drawn, axis=0), np.std(drawn, axis=0) / np.sqrt(len(drawn))
    exact = [values(run, name)["random"] for name in ("GMV-HR@2", "GMV-nDCG@2")]
    assert (np.abs(means - exact) < 4 * errors).all()


def test_a_constant_scorer_gets_what_random_gets(tmp_path):
    """Lists of 10 with the truth always shown first: a constant score must not profit from row
    order or from ids.
    """
    n = 1500
    ids = np.repeat([f"r{i:05d}" for i in range(n)], 10)
    run = by_hand(tmp_path / "constant")
    requests = pl.DataFrame(
        {k: [v[0]] * n for k, v in REQUESTS.items()} | {"request_id": [f"r{i:05d}" for i in range(n)]}, strict=False
    )
    ledger = pl.DataFrame(
        {k: [v[0]] * n for k, v in LEDGER.items()} | {"request_id": [f"r{i:05d}" for i in range(n)], "item_id": ["i0"] * n},
        strict=False,
    )
    scored = pl.DataFrame(
        {
            "request_id": ids,
            "item_id": [f"i{i}" for i in range(10)] * n,
            "position": list(range(1, 11)) * n,
            "clicked": ([True] + [False] * 9) * n,
            "purchased": ([True] + [False] * 9) * n,
            "eligible": [True] * 10 * n,
            "recall.score": [0.25] * 10 * n,
            "rank.score": [0.25] * 10 * n,
        }
    )
    for name, frame in (("requests", requests), ("ledger", ledger), ("scored", scored)):
        frame.write_parquet(run.path / f"{name}.parquet")
    run = Run.open(run.path)
    found = values(run, "HR@1:exposures")
    assert found["random"] == pytest.approx(0.1) and found["logged order"] == 1
    assert abs(found["rank"] - 0.1) < 4 * np.sqrt(0.09 / n)
    assert values(run, "AUC")["rank"] == values(run, "gAUC:request:exposures")["rank"] == 0.5
    assert ask(run, "HR@1:exposures")["rank"]["note"] == "one user, no interval"


# -- intervals -------------------------------------------------------------------------------------


def test_a_user_who_repeats_himself_widens_the_interval():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(50), 20)
    # every request of a user ends the same way
    outcome = np.repeat((rng.random(50) < 0.4).astype(float), 20)
    clustered = resample([Ratio(outcome, np.ones(1000), user)], 50)[0]
    naive = resample([Ratio(outcome, np.ones(1000), np.arange(1000))], 1000)[0]
    assert clustered.std() == pytest.approx(naive.std() * np.sqrt(20), rel=0.2)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        chance = np.repeat(rng.beta(2, 3, 60), 5)
        outcome = (rng.random(300) < chance).astype(float)
        low, high = interval(resample([Ratio(outcome, np.ones(300), np.repeat(np.arange(60), 5))], 60, resamples=300)[0])
        inside += low <= 2 / 5 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_resamples_are_what_they_should_be():
    """Every estimate under the same draws equals the figure of a data set in which users stand as
    often as they were drawn.
    """

    rng = np.random.default_rng(2)
    user, score, label = rng.integers(0, 9, 120), rng.integers(0, 8, 120) / 8, rng.random(120) < 0.4
    num, den = rng.random(120), rng.random(120)
    num[::7] = np.nan
    estimates = [
        Ratio(num, den, user), PooledAUC(score, label, user), Calibration(score, label.astype(float), user), Median(score, user),
    ]  # fmt: skip
    found = resample(estimates, 9, resamples=5, seed=4)
    bins = metrics.mass_bins(score)
    for first, weights in draws(9, 5, 4):
        assert (weights.sum(axis=1) == 9).all()
        for i, w in enumerate(weights):
            rows = np.repeat(np.arange(120), w[user].astype(int))
            kept = rows[~np.isnan(num[rows])]
            assert found[0][first + i] == pytest.approx(num[kept].sum() / den[kept].sum())
            assert found[1][first + i] == pytest.approx(roc_auc_score(label[rows], score[rows]))
            gaps = [(score[rows] - label[rows])[bins[rows] == b].sum() for b in range(15)]
            assert found[2][first + i] == pytest.approx(np.abs(gaps).sum() / len(rows))
            assert found[3][first + i] == np.median(score[rows])
    # whatever else is asked
    assert np.array_equal(resample(estimates[:1], 9, resamples=5, seed=4)[0], found[0])


def test_holm_steps_down():
    # 0.005 <= .05/4, 0.01 <= .05/3, 0.03 > .05/2
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.04, np.nan, None]) == [True, False, False]
    assert holm([]) == []


def test_the_smallest_effect_has_80_percent_power():
    rng = np.random.default_rng(5)
    effect = Difference(0.0, rng.standard_normal(100_000)).smallest_effect
    found = np.abs(effect + rng.standard_normal(100_000)) > 1.96
    assert found.mean() == pytest.approx(0.8, abs=0.01)
