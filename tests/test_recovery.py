"""What a marketplace is told shows in what happens: known values are found again in the log."""

from dataclasses import replace
from pathlib import Path

import karmafunnel
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.checks import validate
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import read_json
from karmafunnel.log import Log
from karmafunnel.simulator.measure.measures.expected_money import examined_by
from karmafunnel.simulator.replay.market_recipe import load_marketplace
from karmafunnel.simulator.world import simulate
from karmafunnel.simulator.world.click_fit import fit
from karmafunnel.simulator.world.click_lists import Lists
from karmafunnel.simulator.world.clicks import DCM, PBM
from karmafunnel.simulator.world.marketplace import (
    Arrivals,
    Drift,
    Engine,
    GammaRates,
    LogNormalRates,
    Marketplace,
    Promotions,
    Returning,
    Rhythm,
    Season,
    Sessions,
)
from karmafunnel.simulator.world.open_shop import Shop, open_shop
from karmafunnel.simulator.world.shoppers import DAY
from karmafunnel.simulator.world.wants import Fatigue, Novelty, QueryMatch, Taste, Thrift
from karmafunnel.simulator.world.world import START, read_truth
from test_marketplace import BUSY, at_random, best, logged, open_small, run
from test_world import small_catalogue

ROOT = Path(karmafunnel.__file__).parent
PBM6 = PBM([1.0, 0.8, 0.55, 0.4, 0.3, 0.2])
WANTS = (QueryMatch(), Taste(), Thrift())


def test_the_click_model_is_found_again():
    """Lists in random order, so that what stands on top is no better than the rest."""
    engine = Engine(slots=6, pool=12, shortlist=40, exploration=1.0)
    shop = open_small(replace(BUSY, browsing=PBM6, clicks=1.2, engine=engine), users=2500)
    rounds = run(shop, 3)
    items, clicks = (
        np.concatenate(x) for x in zip(*((s, a.clicked) for _, s, a in rounds), strict=True)
    )
    lists = Lists(items, clicks, users=np.concatenate([v.user for v, _, _ in rounds]))
    found = fit(PBM.of(6), lists, n_items=shop.goods.n)
    ends = found.intervals(lists)
    inside = [
        low <= true <= high
        for (low, high), true in zip(ends.values(), PBM6.examination[1:], strict=True)
    ]
    assert len(inside) == 5
    assert sum(inside) >= 4, (found.model, ends)
    assert np.allclose(found.model.examination, PBM6.examination, atol=0.06)


def test_dear_things_are_bought_by_those_who_do_not_mind():
    segments = ((0.5, 0.0), (0.5, 2.5))
    shop = open_small(replace(BUSY, wants=(QueryMatch(), Taste(), Thrift(1.0, segments))), 1500)
    rounds = run(shop, 2)
    segment, dear = [], []
    for visits, slates, answers in rounds:
        row, slot = np.nonzero(answers.bought)
        item = slates[row, slot]
        dear.append(
            np.log(answers.price[row, slot]) - shop.goods.usual_price[shop.goods.leaf[item]]
        )
        segment.append(shop.people.segment[visits.user[row]])
    segment, dear = np.concatenate(segment), np.concatenate(dear)
    assert np.bincount(shop.people.segment).tolist() == pytest.approx([750, 750], abs=80)
    free, thrifty = (dear[segment == s] for s in (0, 1))
    error = np.sqrt(free.var() / len(free) + thrifty.var() / len(thrifty))
    assert free.mean() - thrifty.mean() > 4 * error


def again_seen(shop: Shop) -> tuple[float, float]:
    """Mean P(click | looked at) in second requests of items that were not clicked in the first
    one's top slots, and of the others.
    """
    rounds = shop.day(0)
    first = next(rounds)
    slates = logged(shop, first)
    clicked = shop.answer(first, slates).clicked
    second = next(rounds)
    shown = logged(shop, second)
    before = np.searchsorted(first.user, second.user)
    seen = np.where(clicked, -1, slates)[before, :8]
    again = (shown[:, :, None] == seen[:, None, :]).any(axis=2)
    p = shop.truth(second, shown).p_click
    return float(p[again].mean()), float(p[~again].mean())


def test_fatigue_lowers_repeated_clicks():
    always = Sessions((1.0, 0.0), (1.0, 0.0), (1.0, 0.0))
    fresh, other = again_seen(open_small(replace(BUSY, wants=WANTS, sessions=always)))
    tired = replace(BUSY, wants=(*WANTS, Fatigue(2.0)), sessions=always)
    less, same = again_seen(open_small(tired))
    assert less < 0.5 * fresh
    assert same == pytest.approx(other, rel=0.05)


def test_a_click_ends_fatigue_and_time_heals_it():
    shop = open_small(replace(BUSY, wants=(*WANTS, Fatigue(1.0, days=2.0, slots=3))))
    visits = next(shop.day(0))
    slates = logged(shop, visits)
    answers = shop.answer(visits, slates)
    later = replace(visits, ts=visits.ts + 3 * DAY)
    worth = shop.marketplace.want(Fatigue).worth(shop, later, slates, shop.state.price[slates])
    expected = np.zeros(slates.shape)
    expected[:, :3] = -np.exp(-1.5) * ~answers.clicked[:, :3]
    assert np.allclose(worth, expected)


def test_tastes_drift_as_told():
    shop = open_small(replace(BUSY, drift=Drift(0.9), activity=LogNormalRates(0.01)))
    before = shop.state.taste.copy(), shop.state.love.copy()
    run(shop, 8)
    for was, now in zip(before, (shop.state.taste, shop.state.love), strict=True):
        found = np.corrcoef(was.ravel(), now.ravel())[0, 1]
        assert found == pytest.approx(0.9**7, abs=0.04)
        assert now.std() == pytest.approx(1.0, abs=0.04)


def test_users_and_items_arrive():
    coming = Arrivals(users=0.5, items=0.4, days=4)
    shop = open_small(replace(BUSY, arrivals=coming, activity=LogNormalRates(3.0)), users=600)
    rounds = run(shop, 6)
    first_seen = {}
    for visits, slates, _ in rounds:
        for user in visits.user:
            first_seen.setdefault(int(user), visits.day)
        shown = slates[slates >= 0]
        assert (shop.goods.available[slates] < visits.ts[:, None])[slates >= 0].all()
    when = np.array([first_seen.get(u, 99) for u in range(600)])
    assert (when >= shop.people.arrival).all()
    late = shop.people.arrival > 0
    assert late.mean() == pytest.approx(0.5 * 3 / 4, abs=0.06)
    assert (when[late] < 99).mean() > 0.7
    new = shop.goods.available > 0
    assert new.mean() == pytest.approx(0.4, abs=0.06)
    assert new[shown].mean() > 0.2  # in the last lists


def test_a_shop_that_nobody_knows_yet_is_calibrated_too():
    """Where all users come later, the pilot is of them."""
    coming = replace(BUSY, arrivals=Arrivals(users=1.0, days=2))
    rounds = run(open_small(coming), 2)
    n = sum(len(v) for v, _, _ in rounds)
    assert sum(a.clicked.sum() for _, _, a in rounds) / n == pytest.approx(1.8, rel=0.15)


def test_new_items_attract():
    plain = replace(BUSY, wants=WANTS, arrivals=Arrivals(items=0.5, days=1))
    new = replace(plain, wants=(*WANTS, Novelty(2.0, days=3.0)))
    one, other = open_small(plain), open_small(new)
    run(one, 1)
    run(other, 1)
    visits = next(one.day(1))
    next(other.day(1))
    slates = at_random(one, visits)
    more = other.truth(visits, slates).utility - one.truth(visits, slates).utility
    arrived = one.goods.available[slates]
    age = (visits.ts[:, None] - arrived) / DAY
    assert (arrived > 0).sum() > 1000
    assert np.allclose(more, np.where(arrived > 0, 2.0 * np.exp(-age / 3.0), 0.0))


def test_departments_have_seasons():
    asked = {}
    for strength in (0.0, 1.5):
        value = replace(BUSY, season=Season(strength))
        shop = open_shop(value, items=2500, users=4000, seed=3)
        visits = shop.crowd.first(0, np.arange(4000), shop.engine.lists.sizes)
        wave = np.cos(2 * np.pi * ((START / DAY % 365.25) / 365.25 - shop.goods.peak))
        asked[strength] = wave[visits.leaf].mean()
    assert asked[1.5] > asked[0.0] + 0.1


def test_who_is_pleased_comes_back():
    visits = {}
    for returning in (None, Returning(purchase=0.5, nothing=-0.5)):
        value = replace(BUSY, returning=returning, activity=LogNormalRates(0.3))
        for serve in (best, at_random):
            rounds = run(open_small(value, users=250), 5, serve)
            visits[returning is None, serve] = sum(len(v) for v, _, _ in rounds if v.round == 0)
    assert visits[False, best] > 1.3 * visits[False, at_random]
    assert visits[True, best] == visits[True, at_random]  # the same chances, and no mood


def test_visits_follow_rates_hours_and_weekdays():
    hours = (0.0,) * 20 + (1.0, 3.0, 0.0, 0.0)
    week = (1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    value = Marketplace(
        activity=GammaRates(0.3, shape=0.5),
        rhythm=Rhythm(hours, week),
        returning=None,
        arrivals=None,
    )
    shop = open_small(value, users=5000)
    assert shop.people.rate.mean() == pytest.approx(0.3, rel=0.06)
    assert shop.people.rate.var() == pytest.approx(0.3**2 / 0.5, rel=0.2)
    monday = next(shop.day(0))
    expected = -np.expm1(-shop.people.rate)
    assert abs(len(monday) - expected.sum()) < 4 * np.sqrt((expected * (1 - expected)).sum())
    hour = (monday.ts - START) / 3_600_000
    assert hour.min() >= 20
    assert hour.max() < 22
    assert (hour >= 21).mean() == pytest.approx(0.75, abs=0.05)
    assert len(shop.crowd.comers(1)) == 0  # a Tuesday


def test_sessions_go_on_as_told():
    def lengths(sessions: Sessions) -> np.ndarray:
        rounds = run(open_small(replace(BUSY, sessions=sessions)), 1)
        return np.unique(np.concatenate([v.user for v, _, _ in rounds]), return_counts=True)[1]

    assert (lengths(Sessions((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))) == 1).all()
    assert (lengths(Sessions((1.0, 0.0), (0.5, 0.5), (0.0, 1.0), most=4)) == 4).all()
    for visits, _, _ in run(open_small(), 1):
        assert (np.diff(visits.user) > 0).all()
    shop = open_small(replace(BUSY, sessions=Sessions((1.0, 0.0), (1.0, 0.0), (1.0, 0.0), most=3)))
    a, b, c = (v for v, _, _ in run(shop, 1))
    assert (a.leaf == c.leaf).all()
    assert (np.minimum(b.ts - a.ts, c.ts - b.ts) > 0).all()
    assert b.searched.all()
    bought = run(open_small(replace(BUSY, sessions=Sessions((0.0, 0.0), (0.7, 0), (0.7, 0)))), 1)
    assert not np.isin(bought[1][0].user, bought[0][0].user[bought[0][2].bought.any(axis=1)]).any()


def test_promotions_come_and_go():
    shop = open_small(replace(BUSY, promotions=Promotions(0.3, days=2, reductions=(0.5,))))
    price = []
    for day in range(4):
        run_day = [shop.answer(v, logged(shop, v)) for v in shop.day(day)]
        assert run_day
        price.append(shop.state.price / shop.goods.shelves.price)
    assert (price[0] == price[1]).all()
    assert (price[1] != price[2]).mean() > 0.2
    assert (price[0] < 0.6).mean() == pytest.approx(0.3, abs=0.06)
    assert set(np.round(price[0], 1)) == {0.5, 1.0}


def test_what_was_bought_is_wanted_again_or_not():
    shop = open_small(users=1500)
    run(shop, 2)
    owner = np.flatnonzero(shop.state.bought[:, 0] >= 0)
    visits = replace(next(shop.day(2)), user=owner)
    visits = visits.rows(np.zeros(len(owner), dtype=int))
    visits = replace(visits, user=owner, ts=visits.ts + 40 * DAY)
    item = shop.state.bought[owner, :1]
    worth = shop.marketplace.wants[2].worth(shop, visits, item, shop.state.price[item])[:, 0]
    used_up = shop.goods.used_up[item[:, 0]]
    brand = 0.5 * (shop.goods.brand[item[:, 0]] >= 0)
    own = np.where(used_up, 1.8 * shop.people.habit[owner], -1.0)
    assert used_up.any()
    assert not used_up.all()
    assert np.allclose(worth, brand + own)


def test_memory_is_flat_in_days():
    shop = open_small(replace(BUSY, wants=(*WANTS, Fatigue())), users=50)

    def size() -> int:
        return sum(x.nbytes for x in vars(shop.state).values() if isinstance(x, np.ndarray))

    before = size()
    run(shop, 12)
    assert size() == before


# -- a log -----------------------------------------------------------------------------------------

RECIPE = """
from karmafunnel.simulator.world.marketplace import LogNormalRates, Marketplace
from karmafunnel.simulator.world.wants import Fatigue, QueryMatch, Taste

marketplace = Marketplace(wants=(QueryMatch(), Taste(), Fatigue()), activity=LogNormalRates(0.3))
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "shop.py"
    path.write_text(RECIPE)
    return path


def test_a_simulated_log_checks_clean(tmp_path, recipe):
    marketplace, text = load_marketplace(recipe)
    for name in ("a", "b"):
        made = simulate(marketplace, items=200, users=60, requests=300, seed=2, recipe=text)
        made.write(tmp_path / name)
    for path in sorted((tmp_path / "a").rglob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    answers = validate(tmp_path / "a")
    assert [check for check in answers if check.status == "FAIL"] == []
    log, truth = Log.open(tmp_path / "a"), read_truth(tmp_path / "a")
    assert log.requests.height == 300
    assert (np.diff(log.t) >= 0).all()
    assert log.meta["world"]["recipe"] == RECIPE
    assert eval(log.meta["world"]["marketplace"], vars(__import__("test_recovery"))) == marketplace
    assert set(truth) == {"exposures", "requests", "shoppers", "items"}
    for name in ("request_id", "item_id", "propensity"):
        assert truth["exposures"][name].equals(log.exposures[name])
    assert truth["requests"]["request_id"].equals(log.requests["request_id"])
    assert log.asof.is_eligible(log.rows["request"].to_numpy(), log.rows["item"].to_numpy()).all()
    clicks = truth["exposures"].select((pl.col("examination") * pl.col("p_click")).sum()).item()
    assert log.exposures["clicked"].sum() == pytest.approx(clicks, rel=0.15)
    returned = truth["exposures"].filter("returned")["request_id"]
    assert returned.is_in(log.exposures.filter("purchased")["request_id"].implode()).all()
    expected = 1 / np.log2(np.arange(2, 5))
    assert examined_by(log.meta["world"], 3) == pytest.approx(expected)
    assert examined_by(log.meta["world"], 30)[24:].tolist() == [0.0] * 6


def test_examination_that_hangs_on_clicks_is_not_told():
    value = Marketplace(browsing=DCM([0.6] * 23), activity=LogNormalRates(0.5))
    log = simulate(value, items=100, users=30, days=2).log
    assert examined_by(log.meta["world"], 3) is None
    assert examined_by({"items": 3}, 2) == pytest.approx([1.0, 1 / np.log2(3)])


def test_the_command_simulates_a_recipe(tmp_path, recipe):
    place = tmp_path / "log"
    few = ["--items", "100", "--users", "40"]

    def ran(*words: object) -> str:
        answer = CliRunner().invoke(main, ["world", *map(str, words), *few])
        return " ".join(answer.output.split()) if answer.exit_code else ""

    assert ran(place, "--recipe", recipe, "--days", 3) == ""
    found = read_json(place / "log.json")
    assert found["world"]["days"] == 3
    assert found["world"]["recipe"] == RECIPE
    assert (place / "truth" / "exposures.parquet").exists()
    for words, message in [
        (["--days", 3], "--days needs --recipe"),
        (["--recipe", recipe, "--semantic", 0.2], "--semantic needs a World without --recipe"),
        (["--recipe", recipe, "--images"], "--images needs a World without --recipe"),
        (["--recipe", recipe, "--days", 3, "--requests", 50], "needs days or requests, not both"),
        (["--recipe", tmp_path / "none.py"], "none.py"),
    ]:
        assert message in ran(tmp_path / "other", *words)
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "marketplace needs a Marketplace such as Marketplace.., found None"),
        ("marketplace = 3", "found 3"),
        ("x = 1 / 0", "line 1: fails with ZeroDivisionError"),
        ("import sys; sys.exit(3)", "exit with 3"),
        (
            "from karmafunnel.simulator.world.marketplace import Marketplac",
            "did you mean Marketplace. from karmafunnel.simulator.world.marketplace",
        ),
    ],
)
def test_a_bad_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "shop.py"
    path.write_text(text)
    with pytest.raises(KarmafunnelError, match=f"recipe .*shop.py.*{message}"):
        load_marketplace(path)


def test_a_want_of_ones_own(tmp_path):
    """The class of the guide: shoppers who like what is reduced click it more."""
    guide = (ROOT / "docs/guides/marketplace.md").read_text()
    bargain = next(code for code in guide.split("```python")[1:] if "class Bargain" in code)
    path = tmp_path / "shop.py"
    path.write_text(
        f"{bargain.split('```')[0]}\n"
        "from karmafunnel.simulator.world.marketplace import Marketplace, Promotions\n"
        "marketplace = Marketplace(wants=(Bargain(),), promotions=Promotions(0.5))\n"
    )
    marketplace, _ = load_marketplace(path)
    assert repr(marketplace) == "Marketplace(wants=(Bargain(),), promotions=Promotions(0.5))"
    shop = open_small(marketplace)
    _, slates, answers = run(shop, 1)[0]
    saved = 1 - answers.price / shop.goods.shelves.price[slates]
    assert np.allclose(answers.truth.utility, 3.0 * saved)
    assert len(np.unique(np.round(saved, 2))) >= 4


def test_a_simulation_needs_visits():
    with pytest.raises(KarmafunnelError, match="simulate: needs 1 requests within 1 days, found 0"):
        simulate(Marketplace(activity=LogNormalRates(1e-9)), items=60, users=2, days=1)
    with pytest.raises(KarmafunnelError, match=r"simulate: needs about .* \(36,500 days of"):
        simulate(Marketplace(), items=60, users=20_000, days=36_500)
    with pytest.raises(KarmafunnelError, match="simulate: days needs a whole number"):
        simulate(Marketplace(), items=60, users=2, days=0)


def test_shoppers_live_on_a_real_catalogue():
    catalogue = small_catalogue()
    shop = open_shop(replace(BUSY, clicks=1.0), items=100, users=300, catalogue=catalogue)
    assert set(shop.items["item_id"]) <= set(catalogue.items["item_id"])
    asked = pl.concat([v.requests for v, _, _ in run(shop, 1)])["query"].drop_nulls()
    titles = " ".join(catalogue.items["title"].to_list()).lower().split()
    known = {*titles, *(f"brand {i}" for i in range(7)), "brand", "hoses", "lighting", "watering"}
    assert {word for query in asked for word in query.split()} <= {*known, "other", *"0123456"}
    assert asked.str.contains("acme").mean() > 0.2  # words of titles, not of categories
    small = Marketplace(browsing=DCM([0.5] * 69), engine=Engine(slots=70, pool=72), clicks=1.0)
    with pytest.raises(KarmafunnelError, match="a catalogue of at least 70 items, a list, found 60"):
        open_shop(small, items=200, catalogue=small_catalogue(60))
