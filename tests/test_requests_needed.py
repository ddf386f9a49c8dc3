"""Requests until a winner is certain: lists whose worth is known, and the whole study, tiny."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.benchmarks.validation import requests_needed as study
from karmafunnel.benchmarks.validation.requests_needed import (
    WAYS,
    Lists,
    Pool,
    answered,
    interleaved,
    table_of,
    worth,
)

N, K = 6_000, 4


def lists_of(attraction: float, first: int) -> Lists:
    """Lists of the items from `first` on, each bought once it is clicked, for 10."""
    ones = np.ones((N, K))
    items = np.broadcast_to(np.arange(first, first + K), (N, K)).copy()
    return Lists(items, attraction * ones, ones, ones, 10.0 * ones)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    user = np.random.default_rng(0).permutation(N) % 900 * 7
    pl.DataFrame({"user": user}).write_parquet(tmp_path / "requests.parquet")
    before = {"user": np.arange(0, 3500, 7), "requests": 2.0, "clicks": 1.0, "gmv": 10.0}
    pl.DataFrame(before).write_parquet(tmp_path / "before.parquet")
    return Pool(tmp_path)


def test_the_better_lists_win_and_equal_ones_never_do(pool: Pool) -> None:
    assert pool.user.max() == 899 and pool.before["gmv"].sum() == 5_000
    worse, better = lists_of(0.2, 0), lists_of(0.35, 50)
    told = study.tell(worse, better, pool, (0, 0, 0))
    assert set(told) == {*WAYS, *study.TESTS}
    assert all(winner == 1 and 0 < after < N for after, winner in told.values())
    swapped = study.tell(better, worse, pool, (0, 0, 0))
    assert all(winner == -1 for _, winner in swapped.values())
    # looks of A/B tests end at hundredths of the requests
    assert told["A/B, clicks a request"][0] % (N // study.LOOKS) == 0
    rng, level = np.random.default_rng(1), lists_of(0.2, 50)
    ever = [after is not None for _ in range(20) for after, _ in study.tested(worse, level, pool, rng).values()]
    ever += [interleaved(worse, level, pool.user, way, rng)[0] is not None for way in WAYS.values() for _ in range(20)]
    assert np.mean(ever) < 0.15


def test_what_lists_are_worth_is_what_they_bring() -> None:
    lists = lists_of(0.3, 0)
    rng = np.random.default_rng(2)
    drawn = [answered(lists, rng) for _ in range(20)]
    clicks = np.mean([clicked.sum(axis=1).mean() for clicked, _ in drawn])
    gmv = np.mean([money.sum(axis=1).mean() for _, money in drawn])
    assert worth(lists)["clicks"] == pytest.approx(clicks, rel=0.01)
    assert worth(lists)["gmv"] == pytest.approx(gmv, rel=0.01)
    lists.items[:, 1:] = -1  # one item is left
    assert answered(lists, rng)[0][:, 1:].sum() == 0
    assert worth(lists)["clicks"] == pytest.approx(0.3 * study.MARKET.browsing.examination[0])


def test_winners_are_counted_by_hand() -> None:
    worths = {"A": {"clicks": 1.0, "gmv": 5.0}, "B": {"clicks": 2.0, "gmv": 4.0}}
    one = dict.fromkeys((*WAYS, *study.TESTS), (100, 1))
    other = dict.fromkeys((*WAYS, *study.TESTS), (900, -1))
    never = dict.fromkeys((*WAYS, *study.TESTS), (None, 0))
    row = table_of(("a", "b"), {"worth": worths, "told": [never, one, other, one]}, 1_000)[0]
    assert row[:2] == ["a / b", "team draft"] and row[2].startswith("3 of 4 [")
    assert row[3] == "900 (100, more than 1,000)"
    none = table_of(("a", "b"), {"worth": worths, "told": [never]}, 1_000)[0]
    assert none[3:] == ["more than 1,000", "n/a", "n/a"]
    assert row[4].startswith("1 of 3 [") and row[5].startswith("2 of 3 [")


def test_a_tiny_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    small = {"ITEMS": 60, "USERS": 250, "BEFORE": 5, "DAYS": 4, "SLOTS": 4, "LOOKS": 4}
    for name, value in (small | {"PAIRS": (("popular", "words"),)}).items():
        monkeypatch.setattr(study, name, value)
    words = ["--out", str(tmp_path / "out"), "--times", "10"]
    done = CliRunner().invoke(study.main, words)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "requests_needed.md").read_text()
    assert text.count("| popular / words |") == 4 and "in truth words has" in text
    monkeypatch.setattr(study, "requests_of", None)
    monkeypatch.setattr(study, "tell", None)
    again = CliRunner().invoke(study.main, words)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "out" / "requests_needed.md").read_text() == text
