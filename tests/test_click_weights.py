"""Weights of clicks: by hand, and estimates on logs without chance whose truth is known."""

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.simulator.measure.intervals import interval, resample
from karmafunnel.simulator.offpolicy.click_weights import (
    click_weights,
    fits,
    fitted_to,
    worth_of_clicks,
)
from karmafunnel.simulator.offpolicy.estimate_tables import warnings
from karmafunnel.simulator.offpolicy.estimators import CDR, CIPS, DM, Logged
from karmafunnel.simulator.offpolicy.evaluate import judge_clicks
from karmafunnel.simulator.offpolicy.reading import Choice, LoggedLists
from karmafunnel.simulator.world.click_fit import Fit, Prior
from karmafunnel.simulator.world.click_lists import Lists
from karmafunnel.simulator.world.clicks import PBM, Cascade
from karmafunnel.simulator.world.market import examination
from karmafunnel.simulator.world.world import generate
from karmafunnel.stages.policies import BestOrRandom, Candidates, PlackettLuce
from shop import START

LOOKS = (1.0, 0.5, 0.25)
BEST = BestOrRandom(0.0)


def known(model, attraction: np.ndarray) -> Fit:
    return Fit(model, attraction, None, Prior(), Prior(), 1, 0.0, (0.0,))


def lists_and_choice(shown: np.ndarray, wanted: np.ndarray, reward: np.ndarray) -> tuple[LoggedLists, Choice]:
    """Logged lists (n, k), and what the evaluated funnel orders, best first (n, m)."""
    n, m = wanted.shape
    ids = pl.Series([f"r{i}" for i in range(n)])
    lists = LoggedLists(ids, np.arange(n) % 400, shown, np.ones(shown.shape), reward)
    score = np.tile(np.arange(m, 0.0, -1.0), (n, 1))
    same = shown[:, :, None] == wanted[:, None, :]
    place = np.where(same.any(axis=2), same.argmax(axis=2), -1)
    own = np.where(place >= 0, np.take_along_axis(score, place.clip(0), axis=1), np.nan)
    return lists, Choice(Candidates(score, place, lists.there), wanted, own)


def test_weights_by_hand() -> None:
    shown, wanted = np.array([[0, 1, 2]]), np.array([[2, 0, 3, 1]])
    lists, choice = lists_and_choice(shown, wanted, np.array([[1.0, 0.0, 1.0]]))
    attraction = np.array([0.8, 0.4, 0.2, 0.6])
    found = click_weights(lists, choice, BEST, known(PBM(LOOKS), attraction), np.ones((1, 7)))
    # item 0 goes from slot 1 to 2, item 1 out of the list, item 2 from slot 3 to 1
    assert found.weight[0] == pytest.approx([0.5 / 1.0, 0.0, 1.0 / 0.25])
    assert found.predicted[0] == pytest.approx([0.8, 0.4 / 2, 0.2 / 4])
    assert found.direct == pytest.approx([0.2 + 0.8 / 2 + 0.6 / 4])
    assert found.held == pytest.approx([(0.2 + 0.4) / (0.2 + 0.4 + 0.15)])
    # under a cascade those above decide
    found = click_weights(lists, choice, BEST, known(Cascade(), attraction), np.ones((1, 7)))
    assert found.weight[0] == pytest.approx([0.8 * 0.8 / 0.8, 0.0, 0.2 / (0.2 * 0.6 * 0.2)])
    # a policy with chance: the mean over its lists
    one = lists_and_choice(np.array([[0]]), np.array([[0, 1]]), np.array([[1.0]]))
    many = [np.repeat(x, 3000, axis=0) for x in (np.array([[0]]), np.array([[0, 1]]), np.array([[1.0]]))]
    lists, choice = lists_and_choice(*many)
    found = click_weights(lists, choice, PlackettLuce(1.0), known(PBM((1.0,)), attraction), np.ones((3000, 3)))
    assert found.weight.mean() == pytest.approx(np.e / (1 + np.e), abs=0.01)
    reward, weight = np.array([[1.0, 0.0, 2.0]]), np.array([[0.5, 9.0, 4.0]])
    logged = Logged(reward, {"click": weight}, np.zeros(1, int), np.array([[0.5, 0.1, 0.0]]), direct=np.array([3.0]))
    assert CIPS().of(logged).value == pytest.approx(0.5 + 8.0)
    assert CIPS(clip=2.0).of(logged).value == pytest.approx(0.5 + 4.0)
    assert CDR().of(logged).value == pytest.approx(3.0 + 0.5 * 0.5 - 9 * 0.1 + 8.0)
    assert one[0].there.all()


def test_what_a_click_earns_is_that_of_other_users() -> None:
    lists, choice = lists_and_choice(np.zeros((600, 1), int), np.zeros((600, 1), int), np.ones((600, 1)))
    assert (worth_of_clicks(lists, choice, lists.reward, 2) == 1.0).all()  # a click earns a click
    earned = LoggedLists(lists.request_id, lists.cluster, lists.item, lists.propensity, 5.0 * (lists.cluster[:, None] == 3))
    found = worth_of_clicks(earned, choice, np.ones((600, 1)), 2)
    mine = lists.cluster == 3
    assert (found[mine] == 0.0).all() and found.max() > 0.0  # nobody else earned


def drawn(m: int, seed: int, n: int = 12_000, slots: int = 3, items: int = 30):
    """Lists of a shop that always shows its best, by a score that changes with the request."""
    rng = np.random.default_rng(seed)
    attraction = rng.uniform(0.1, 0.7, items)
    candidates = np.argsort(rng.random((n, items)), axis=1)[:, :m]
    logging = rng.normal(size=(n, m))
    better = attraction[candidates] + 0.3 * rng.normal(size=(n, m))
    shown = np.take_along_axis(candidates, np.argsort(-logging, axis=1), axis=1)[:, :slots]
    wanted = np.take_along_axis(candidates, np.argsort(-better, axis=1), axis=1)
    looks = np.array(LOOKS)
    clicks = rng.random((n, slots)) < attraction[shown] * looks
    truth = (attraction[wanted[:, :slots]] * looks).sum(axis=1)
    buys = 0.1 + 0.6 * attraction  # P(purchase | click)
    bought = clicks & (rng.random(clicks.shape) < buys[shown])
    value = ((attraction * buys)[wanted[:, :slots]] * looks).sum(axis=1)
    return shown, wanted, clicks, bought, truth, value


@pytest.mark.parametrize("m", [3, 6])
def test_estimates_of_logs_without_chance(m: int) -> None:
    half, covered = 6000, []
    for seed in range(5, 9):
        shown, wanted, clicks, bought, truth, value = drawn(m, seed)
        models = fits(Lists(shown[:half], clicks[:half], users=np.arange(half) % 400), 30)
        assert np.array(models[0].model.examination) == pytest.approx(LOOKS, abs=0.05)
        for earned, worth_of in ((clicks, truth), (bought, value)):
            wanted_value = worth_of[half:].mean()
            reward = earned[half:].astype(float)
            lists, choice = lists_and_choice(shown[half:], wanted[half:], reward)
            worth = worth_of_clicks(lists, choice, clicks[half:].astype(float), 30)
            found = judge_clicks(lists, choice, BEST, models, worth, "test")
            rows = {row["estimator"]: row for row in found.rows}
            covered.append(rows["CDR"]["low"] < wanted_value < rows["CDR"]["high"])
            assert rows["CDR"]["value"] == pytest.approx(wanted_value, rel=0.08)
            assert rows["CDR"]["value"] > found.logged["high"]  # and not what the log earned
            unseen = found.support["click"].unseen
            if m == 3:
                assert rows["CIPS"]["value"] == pytest.approx(wanted_value, rel=0.08)
                assert unseen == pytest.approx(0.0)
            else:  # half of the list is new
                assert rows["CIPS"]["high"] < wanted_value
                assert 0.2 < unseen < 0.6
            assert any("CLICKS" in mark for mark in warnings(found))
    assert sum(covered) >= 6  # of eight


def test_a_log_that_ranks_by_worth_to_the_request_is_refused() -> None:
    """What the log puts on top is what this request wants: the model takes it for the place."""
    rng, n = np.random.default_rng(3), 8000
    worth = rng.beta(1.0, 2.0, size=(n, 6))  # P(click | looked at), request by request
    items = np.argsort(rng.random((n, 30)), axis=1)[:, :6]
    order = np.argsort(-worth - rng.normal(0, 0.2, (n, 6)), axis=1)
    shown, p = (np.take_along_axis(x, order, axis=1)[:, :3] for x in (items, worth))
    clicks = rng.random((n, 3)) < p * LOOKS
    models = fits(Lists(shown[:4000], clicks[:4000]), 30)
    assert models[0].model.examination[1] < 0.45  # falls faster than the true 0.5
    lists, choice = lists_and_choice(shown[4000:], items[4000:], clicks[4000:].astype(float))
    ones = np.ones((4000, 9))
    own = p[4000:] + rng.normal(0, 0.2, (4000, 3))
    funnel = Choice(choice.candidates, choice.item, own)
    with pytest.raises(KarmafunnelError, match="place and worth to the request cannot be told apart"):
        judge_clicks(lists, funnel, BEST, models, ones, "test")
    blind = Choice(choice.candidates, choice.item, rng.normal(size=own.shape))
    assert judge_clicks(lists, blind, BEST, models, ones, "test").rows  # a funnel that cannot see it


def test_wrong_attraction_is_corrected_and_wrong_looks_are_not() -> None:
    shown, wanted, clicks, _, truth, _ = drawn(3, seed=8)
    truth = truth.mean()
    lists, choice = lists_and_choice(shown, wanted, clicks.astype(float))
    worth = np.ones((len(shown), 6))
    flat = np.full(30, 0.2)
    said = []
    for looks in (LOOKS, (1.0, 0.9, 0.8)):
        told = click_weights(lists, choice, BEST, known(PBM(looks), flat), worth)
        weights = {"click": told.weight}
        logged = Logged(lists.reward, weights, lists.cluster, told.predicted, direct=told.direct)
        estimates = [one.of(logged) for one in (CIPS(), CDR(), DM())]
        said.append([interval(x) for x in resample(estimates, 400, 500)])
    for low, high in said[0][:2]:
        assert low < truth < high
    assert said[0][2][1] < truth - 0.2  # the model alone is far off
    assert said[1][0][0] > truth or said[1][0][1] < truth


def test_clicks_of_a_personalised_engine_mislead() -> None:
    """A World whose engine shows its best by what fits the request: CDR of a random order is far
    above the truth, and nothing in the log says so.
    """
    world = generate(1000, 500, 6000, 0, exploration=0.0)
    pool = world.truth["pool"].filter(pl.col("pool_rank") <= 8)
    pool = pool.filter(pl.len().over("request_id") == 8)
    number = {item: i for i, item in enumerate(world.log.item_ids.tolist())}
    item = np.array([number[i] for i in pool["item_id"]]).reshape(-1, 8)
    utility, p_click = (pool[name].to_numpy().reshape(-1, 8) for name in ("utility", "p_click"))
    rng, looks, half = np.random.default_rng(0), examination(5), len(item) // 2
    clicks = rng.random((len(item), 5)) < p_click[:, :5] * looks
    models = fits(Lists(item[:half, :5], clicks[:half]), world.log.n_items)
    fitted = np.array(models[0].model.examination)
    assert (fitted[1:] < looks[1:] - 0.05).all()  # place is taken for worth
    for name, score in (("random", rng.normal(size=utility.shape)), ("better", utility)):
        order = np.argsort(-score, axis=1)
        wanted = np.take_along_axis(item, order, axis=1)[half:]
        lists, choice = lists_and_choice(item[half:, :5], wanted, clicks[half:].astype(float))
        choice = Choice(choice.candidates, wanted, score[half:, :5])
        ones = np.ones((len(wanted), 13))
        if name == "better":  # this one sees it
            with pytest.raises(KarmafunnelError, match="cannot be told apart"):
                judge_clicks(lists, choice, BEST, models, ones, "test")
            continue
        found = judge_clicks(lists, choice, BEST, models, ones, "test")
        truth = (np.take_along_axis(p_click, order, axis=1)[half:, :5] * looks).sum(axis=1).mean()
        (row,) = [row for row in found.rows if row["estimator"] == "CDR"]
        assert row["low"] > truth + 0.1


def shop_without_chance(n: int = 3000) -> Log:
    """A log of the lists of `drawn`, three slots, without propensities."""
    shown, _, clicks, bought, _, _ = drawn(6, seed=2, n=n, items=12)
    ids = [f"r{i}" for i in range(n)]
    requests = pl.DataFrame(
        {
            "request_id": ids,
            "user_id": [f"u{i % 300}" for i in range(n)],
            "ts": [START + timedelta(minutes=i) for i in range(n)],
            "source": ["search"] * n,
        }
    )
    exposures = pl.DataFrame(
        {
            "request_id": np.repeat(ids, 3),
            "item_id": [f"i{item}" for item in shown.ravel()],
            "position": np.tile([1, 2, 3], n),
            "clicked": clicks.ravel(),
            "purchased": bought.ravel(),
            "price_shown": 1.0 + shown.ravel(),
        }
    )
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(12)]})
    has = dict.fromkeys(("clicks", "purchases", "exposures", "users", "price"), True)
    meta = {"name": "fixed", "label": "click", "catalogue": "published", "has": has}
    return Log.make(items, requests, exposures, meta)


def test_the_command(tmp_path: Path) -> None:
    shop_without_chance().write(tmp_path / "log")
    (tmp_path / "popular.py").write_text(
        "from karmafunnel.stages.recall import Popular\nfunnel = Popular(k=12)\n", encoding="utf-8"
    )

    def call(*words: object):
        return CliRunner().invoke(main, [str(word) for word in words])

    made = call("replay", tmp_path / "popular.py", tmp_path / "log", "--out", tmp_path / "run", "--no-cache")
    assert made.exit_code == 0, made.output
    words = "ope", tmp_path / "run", "--log", tmp_path / "log", "--propensity", "clicks"
    for reward in ("clicks", "purchases", "money"):
        told = json.loads(call(*words, "--reward", reward, "--json").stdout)
        rows = {row["estimator"]: row for row in told["rows"]}
        assert rows.keys() == {"CIPS", "clipped CIPS", "DM", "CDR"}
        assert rows["CIPS"]["value"] < rows["CDR"]["value"]  # what is not in the logged list
        assert 0.3 < told["support"]["click"]["unseen"] < 0.9
        assert "Click model: PBM([1.0, 0." in told["marks"][1]
    shown = call(*words, "--slots", "1")
    assert shown.exit_code == 0 and "not in the list" in shown.output
    with pytest.raises(KarmafunnelError, match="weights of each click"):
        CIPS().of(Logged(np.ones((2, 1)), {}, np.zeros(2, int)))


def test_no_lists_to_fit_a_model_to() -> None:
    log = shop_without_chance(n=600)
    early = log.exposures.with_columns(
        clicked=pl.col("clicked") & pl.col("request_id").is_in(log.request_ids[-100:].tolist())
    )
    log = Log.make(log.items, log.requests, early.with_columns(purchased=pl.lit(None, pl.Boolean)), log.meta | {
        "has": log.meta["has"] | {"purchases": False}
    })
    with pytest.raises(KarmafunnelError, match=r"lists of W1, W2a, W2b that a click model can be fitted to"):
        fitted_to(log, "W3", 3, "ope")
