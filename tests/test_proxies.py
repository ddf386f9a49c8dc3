"""The arithmetic of which_proxy.py and of false_alarms.py on what can be counted by hand."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from karmafunnel.benchmarks.validation import false_alarms, which_proxy
from karmafunnel.benchmarks.validation.which_proxy import agreement, judged, table_of
from karmafunnel.simulator.experiment.arms import Outcome
from karmafunnel.simulator.world.clicks import PBM
from karmafunnel.simulator.world.marketplace import Engine, Marketplace

ONE = np.zeros(4, dtype=int)


def test_agreement_by_hand() -> None:
    true = np.array([1.0, 2, 3, 4])
    assert agreement(true, true, ONE, np.ones(4))[:2] == (1.0, 1.0)
    assert agreement(-true, true, ONE, np.ones(4))[:2] == (-1.0, 0.0)
    # one of six pairs the wrong way round
    swapped = np.array([1.0, 3, 2, 4])
    assert agreement(swapped, true, ONE, np.ones(4))[:2] == pytest.approx((4 / 6, 5 / 6))
    # a tie decides nothing
    tied = np.array([1.0, 2, 2, 4])
    assert agreement(tied, true, ONE, np.ones(4))[:2] == pytest.approx((5 / 6, 5 / 6))


def test_close_pairs_are_those_worth_about_the_same() -> None:
    true = np.array([1.0, 1.05, 1.2, 3.0])  # one close pair
    assert agreement(true, true, ONE, np.ones(4))[2] == 1.0
    assert agreement(np.array([2.0, 1, 3, 4]), true, ONE, np.ones(4))[2] == 0.0
    assert np.isnan(agreement(true, np.array([1.0, 2, 4, 8]), ONE, np.ones(4))[2])


def test_pairs_are_of_one_world_and_of_two_funnels() -> None:
    true = np.array([1.0, 2, 1, 2])
    worlds = np.array([0, 0, 1, 1])
    assert agreement(np.array([1.0, 2, 20, 10]), true, worlds, np.ones(4))[:2] == (0.0, 0.5)
    # drawn twice, a funnel counts twice and is no pair with itself
    times = np.array([2, 1, 1, 0])
    proxy, of_one = np.array([1.0, 2, 0, 9]), np.array([1.0, 2, 3, 4])
    # pairs: (0, 1) twice right, (0, 2) twice wrong, (1, 2) once wrong
    assert agreement(proxy, of_one, ONE, times)[:2] == pytest.approx((-1 / 5, 2 / 5))
    assert np.isnan(agreement(proxy, of_one, ONE, np.array([4, 0, 0, 0]))[0])


def test_figures_that_few_funnels_have_are_left_out() -> None:
    rng = np.random.default_rng(0)
    found = []
    for i in range(8):
        value = float(rng.random())
        known = {"good": value, "bad": -value, "rare": value if i < 2 else None}
        found.append({"proxies": known, "truth": {"clicks": value, "GMV": 3 * value}, "number": 0})
    table = table_of(found, 0, "here")
    assert [row[0] for row in table.rows] == ["good", "bad"]
    assert any("left out, of fewer than 8 funnels: rare" in line for line in table.below)
    one = judged(found, "good", "clicks", 0)
    assert one["tau"] == 1.0 and one["same interval"] == (1.0, 1.0)


def test_a_planted_effect_raises_the_money_of_the_treated_alone() -> None:
    users = pl.DataFrame(
        {
            "day": [-1, 1, 2, 0],
            "user": [7, 7, 7, 8],
            "arm": [1, 1, 1, 0],
            "gmv": [1.0, 2.0, 3.0, 4.0],
        }
    )
    more = false_alarms.planted(Outcome(users, pl.DataFrame()), 0.5, share=True)
    assert more.users["gmv"].to_list() == [1.0, 3.0, 4.5, 4.0]
    more = false_alarms.planted(Outcome(users, pl.DataFrame()), 0.5, share=False)
    assert more.users["gmv"].to_list() == [1.0, 2.5, 3.0, 4.0]


def test_a_shop_tells_of_every_figure() -> None:
    told = false_alarms.tell(5, users=200)
    assert set(told["alarms"]) == set(false_alarms.FIGURES)
    assert told["lift"]["by a lift"] > told["lift"]["by an amount"] > 0 and not told["mismatch"]
    assert set(told["splits"]) == set(false_alarms.FIGURES) and told["users"] < 200
    assert 0 < sum(told["splits"].values()) < 6 * 0.3
    rows = false_alarms.table_of([told, told]).rows
    assert len(rows) == 8 and all(len(row) == 5 for row in rows)
    assert false_alarms.mean_share([0.0, 0.1]) == "5.0% [-58.5%, 68.5%]"
    assert false_alarms.share([True, False, False, False]).startswith("25.0% [0.6%, 80.6%]")


def test_the_truth_of_a_shop_with_short_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"USERS": 150, "ITEMS": 200, "BEFORE": 14, "DAYS": 2}.items():
        monkeypatch.setattr(which_proxy, name, value)
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    short = Marketplace(engine=Engine(slots=6), browsing=PBM((1.0, 0.8, 0.6, 0.5, 0.4, 0.3)))
    told = which_proxy.truth("popular", which_proxy.Market(short), 0, tmp_path / "lists")
    assert 0 < told["clicks"] < 6
