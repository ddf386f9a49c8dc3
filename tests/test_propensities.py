"""Estimated propensities: against those that made the log, and refused where they are not right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.simulator.offpolicy.estimate_tables import warnings
from karmafunnel.simulator.offpolicy.evaluate import Evaluation, judge
from karmafunnel.simulator.offpolicy.propensities import with_estimates
from karmafunnel.simulator.offpolicy.reading import Choice, LoggedLists
from karmafunnel.stages.policies import Candidates, PlackettLuce
from test_offpolicy import uniform_log

ITEMS = 6
LIKED = np.array([0.8, 0.4, 0.2, 0.0, -0.4, -1.0])  # of the log, whatever the request


def made(slots: int, by: str, n: int = 6000, seed: int = 0) -> tuple[LoggedLists, Choice, np.ndarray]:
    """Lists of six items, what a funnel says of them, and P(click) of each item, (n, items).

    by: what the log chooses by, beside what it likes: "score", "a threshold" of it, or "nothing".
    """
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(n, ITEMS))
    lean = {"score": 0.7 * score, "a threshold": 3.0 * (score > 1.0), "nothing": 0.0 * score}[by]
    utility = LIKED + lean
    left = np.ones((n, ITEMS), dtype=bool)
    item, chance = np.empty((n, slots), dtype=np.int64), np.empty((n, slots))
    rows = np.arange(n)
    for slot in range(slots):
        p = np.where(left, np.exp(utility), 0.0)
        p /= p.sum(axis=1, keepdims=True)
        item[:, slot] = (rng.random((n, 1)) > np.cumsum(p, axis=1)).sum(axis=1)
        chance[:, slot] = p[rows, item[:, slot]]
        left[rows, item[:, slot]] = False
    p_click = 1 / (1 + np.exp(1.0 - 0.8 * score - 0.5 * LIKED[::-1]))
    reward = (rng.random(item.shape) < np.take_along_axis(p_click, item, axis=1)).astype(float)
    ids = pl.Series([f"r{i}" for i in range(n)])
    lists = LoggedLists(ids, rows % 500, item, chance, reward)
    order = np.argsort(-score, axis=1)
    place = np.take_along_axis(np.argsort(order, axis=1), item, axis=1)
    candidates = Candidates(np.take_along_axis(score, order, axis=1), place, lists.there)
    return lists, Choice(candidates, order, np.take_along_axis(score, item, axis=1)), p_click


def asked(lists: LoggedLists, choice: Choice, estimated: bool) -> Evaluation:
    held = np.ones(choice.item.shape, dtype=bool)
    return judge(lists, choice, PlackettLuce(1.0), held, "test", propensity="estimated" if estimated else "log")


@pytest.mark.parametrize("slots", [1, 2])
def test_they_are_those_that_made_the_log(slots: int) -> None:
    lists, choice, _ = made(slots, "score")
    found = with_estimates(lists, choice, 0, "test")
    ratio = found.propensity / lists.propensity
    assert np.quantile(np.abs(ratio - 1), 0.95) < 0.2 and np.abs(np.median(ratio) - 1) < 0.02


def test_each_is_fitted_without_the_lists_of_its_user() -> None:
    lists, choice, _ = made(1, "score")
    found = with_estimates(lists, choice, 0, "test").propensity[:, 0]
    other = replace(lists, item=lists.item.copy())
    mine = lists.cluster == 7
    other.item[mine] = (lists.item[mine] + 1) % ITEMS
    again = with_estimates(other, choice, 0, "test").propensity[:, 0]
    # the fold of the user does not read his lists
    assert (again[~mine] == found[~mine]).mean() == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("slots", [1, 2])
def test_estimates_by_them_cover_the_truth(slots: int) -> None:
    lists, choice, p_click = made(slots, "score")
    # drawing from the policy many times
    rng, rows = np.random.default_rng(9), np.arange(len(p_click))[:, None]
    score, earned = choice.candidates.score, []
    for _ in range(60):
        drawn = choice.item[rows, PlackettLuce(1.0).draw(score, rng.random((len(score), slots)))[0]]
        earned.append(p_click[rows, drawn].sum(axis=1).mean())
    truth = float(np.mean(earned))
    found = asked(with_estimates(lists, choice, 0, "test"), choice, True)
    said = {row["estimator"]: row for row in found.rows}
    for name in ("IPS", "SNIPS", "DR"):
        assert said[name]["low"] < truth < said[name]["high"], name
    assert any("ESTIMATED" in mark for mark in warnings(found))
    # frequencies alone, without the score, are far off: the log leaned to what the funnel shows
    shares = np.ones(lists.item.shape)
    for slot in range(slots):
        shares[:, slot] = np.bincount(lists.item[:, slot])[lists.item[:, slot]] / len(lists.item)
    plain = LoggedLists(lists.request_id, lists.cluster, lists.item, shares, lists.reward)
    off = {row["estimator"]: row for row in asked(plain, choice, False).rows}["IPS"]
    assert not off["low"] < truth < off["high"]
    with pytest.raises(KarmafunnelError, match="needs weights within 4 standard errors"):
        asked(plain, choice, True)


def test_a_log_that_chose_by_something_else_is_refused() -> None:
    lists, choice, _ = made(1, "a threshold")
    guessed = with_estimates(lists, choice, 0, "test")
    with pytest.raises(KarmafunnelError, match=r"the log chose by more than slot, item and"):
        judge(guessed, choice, PlackettLuce(0.4), np.ones((6000, ITEMS), dtype=bool), "test", propensity="estimated")


def test_recorded_propensities_that_are_too_small_are_told() -> None:
    lists, choice, _ = made(1, "nothing")
    assert not any("too small" in mark for mark in warnings(asked(lists, choice, False)))
    small = LoggedLists(lists.request_id, lists.cluster, lists.item, lists.propensity / 1.3, lists.reward)
    (mark,) = [mark for mark in warnings(asked(small, choice, False)) if "too small" in mark]
    assert "standard errors above the mean" in mark


def test_items_that_are_rare_and_too_few_users() -> None:
    lists, choice, _ = made(1, "nothing", n=60)
    with pytest.raises(KarmafunnelError, match=r"at least 5 times to other users.*found request 'r\d+'"):
        with_estimates(lists, choice, 0, "test")
    one = LoggedLists(lists.request_id, lists.cluster * 0, lists.item, lists.propensity, lists.reward)
    with pytest.raises(KarmafunnelError, match="at least 3 users, found 1"):
        with_estimates(one, choice, 0, "test")


def test_the_command(tmp_path: Path) -> None:
    log = uniform_log(slots=1, n=2000)
    bare = log.exposures.with_columns(propensity=pl.lit(None, pl.Float64))
    meta = log.meta | {"has": log.meta["has"] | {"propensity": False}}
    type(log).make(log.items, log.requests, bare, meta).write(tmp_path / "log")
    (tmp_path / "popular.py").write_text(
        "from karmafunnel.stages.recall import Popular\nfunnel = Popular(k=6)\n", encoding="utf-8"
    )

    def call(*words: str):
        return CliRunner().invoke(main, [str(word) for word in words])

    made = call("replay", tmp_path / "popular.py", tmp_path / "log", "--out", tmp_path / "run", "--no-cache")
    assert made.exit_code == 0, made.output
    words = "ope", tmp_path / "run", "--log", tmp_path / "log", "--exploration", "0.5"
    refused = call(*words)
    assert refused.exit_code == 1 and "--propensity estimated" in refused.output + refused.stderr
    found = call(*words, "--propensity", "estimated", "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["propensity"] == "estimated" and "ESTIMATED" in told["marks"][0]
    rows = {row["estimator"]: row for row in told["rows"]}
    assert rows["IPS"]["low"] < rows["IPS"]["value"] < rows["IPS"]["high"]
    assert "ESTIMATED" in call(*words, "--propensity", "estimated").output
