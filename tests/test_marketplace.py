"""The marketplace as a value, and the shop that runs it: common random numbers, truth against what
happens, what known values show in the log, and bad input.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.layout import EXPOSURES, REQUESTS
from karmafunnel.simulator.world.answering import Answers
from karmafunnel.simulator.world.clicks import DCM, PBM, SDBN, UBM, Cascade, Mixture
from karmafunnel.simulator.world.draws import Draws
from karmafunnel.simulator.world.marketplace import (
    Arrivals,
    Drift,
    Engine,
    GammaRates,
    LogNormalRates,
    Marketplace,
    Promotions,
    Purchase,
    Returning,
    Rhythm,
    Season,
    Sessions,
)
from karmafunnel.simulator.world.open_shop import Shop, open_shop
from karmafunnel.simulator.world.visits import Visits
from karmafunnel.simulator.world.wants import (
    Fatigue,
    Loyalty,
    Novelty,
    QueryMatch,
    Taste,
    Thrift,
)

BUSY = Marketplace(activity=LogNormalRates(0.7))
Serve = Callable[[Shop, Visits], np.ndarray]


def logged(shop: Shop, visits: Visits) -> np.ndarray:
    return shop.logging(visits).items


def best(shop: Shop, visits: Visits) -> np.ndarray:
    """The slate of highest utility among all items."""
    every = np.tile(np.arange(shop.goods.n), (len(visits), 1))
    utility = shop._utility(visits, every, shop.state.price[every])
    utility[~shop.candidates(visits)] = -np.inf
    slates = np.argsort(-utility, axis=1)[:, : shop.marketplace.engine.slots]
    return np.where(np.isfinite(np.take_along_axis(utility, slates, axis=1)), slates, -1)


def at_random(shop: Shop, visits: Visits) -> np.ndarray:
    score = np.where(shop.candidates(visits), visits.draws.random("test", shop.goods.n), -1.0)
    slates = np.argsort(-score, axis=1)[:, : shop.marketplace.engine.slots]
    return np.where(np.take_along_axis(score, slates, axis=1) >= 0, slates, -1)


def run(shop: Shop, days: int, serve: Serve = logged) -> list[tuple[Visits, np.ndarray, Answers]]:
    rounds = []
    for day in range(days):
        for visits in shop.day(day):
            slates = serve(shop, visits)
            rounds.append((visits, slates, shop.answer(visits, slates)))
    return rounds


def total(rounds: list, of: Callable[[Answers], np.ndarray]) -> float:
    return float(sum(of(answers).sum() for _, _, answers in rounds))


def open_small(marketplace: Marketplace = BUSY, users: int = 400, seed: int = 3) -> Shop:
    return open_shop(marketplace, items=600, users=users, seed=seed)


# -- values ----------------------------------------------------------------------------------------

VALUES = [
    Marketplace(),
    Marketplace(
        wants=(QueryMatch(0.8), Taste(1.0, semantic=0.2), Fatigue(), Novelty(0.3, days=2.0)),
        browsing=Mixture([Cascade(), DCM([0.4] * 23)], [0.5, 0.5]),
        clicks=1.1,
        activity=GammaRates(0.2, shape=0.5),
        returning=None,
        season=Season(0.7),
        promotions=Promotions(0.2, reductions=(0.5,)),
        drift=Drift(),
        arrivals=None,
        engine=Engine(slots=10, exploration=0.0),
    ),
    Marketplace(wants=(Thrift(segments=((0.5, 0.1), (0.5, 2.0))), Loyalty(once=0.0))),
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_marketplace_prints_as_typed(value):
    assert eval(repr(value)) == value


BAD = [
    (lambda: Thrift(segments=((0.5, 1.0), (0.4, 1.0))), "Thrift: segments needs shares that sum"),
    (lambda: Thrift(segments=(0.5, 0.5)), "Thrift: segments needs pairs"),
    (lambda: Taste(semantic=1.5), "Taste: semantic needs a number from 0 to 1, found 1.5"),
    (lambda: Taste(float("nan")), "Taste: weight needs .* found nan"),
    (lambda: Fatigue(days=0.0), "Fatigue: days needs"),
    (lambda: Novelty(0.5, days=-1.0), "Novelty: days needs"),
    (lambda: Sessions(after_click=(0.8, 0.5)), "Sessions: after_click needs chances that sum to 1"),
    (lambda: Sessions(after_click=0.8), "Sessions: after_click needs 2 numbers"),
    (lambda: Sessions(most=0), "Sessions: most needs"),
    (lambda: Purchase(returned=2.0), "Purchase: returned needs"),
    (lambda: Purchase(several=(0.1,)), "Purchase: several needs 2 numbers"),
    (lambda: GammaRates(0.0), "GammaRates: mean needs a number above 0"),
    (lambda: LogNormalRates(0.1, spread=float("inf")), "LogNormalRates: spread needs"),
    (lambda: Returning(keep=1.0), "Returning: keep needs"),
    (lambda: Rhythm(hours=(1.0,) * 23), "Rhythm: hours needs 24 numbers"),
    (lambda: Rhythm(week=(0.0,) * 7), "Rhythm: week needs a sum above 0"),
    (lambda: Drift(float("nan")), "Drift: keep needs"),
    (lambda: Arrivals(items=0.95), "Arrivals: items needs"),
    (lambda: Promotions(0.1, reductions=()), "Promotions: reductions needs numbers"),
    (lambda: Engine(slots=80), "Engine: needs slots <= pool <= shortlist, found 80, 72, 144"),
    (lambda: Marketplace(wants=()), "Marketplace: wants needs"),
    (lambda: Marketplace(wants=(Taste(), Taste(1.0))), "each kind once"),
    (lambda: Marketplace(wants=Taste()), "Marketplace: wants needs"),
    (lambda: Marketplace(rhythm=None), "Marketplace: rhythm needs a Rhythm, found None"),
    (lambda: Marketplace(drift=0.9), "Marketplace: drift needs a Drift or None, found 0.9"),
    (
        lambda: Marketplace(browsing=PBM([1.0] * 9)),
        "PBM: needs examination of 24 slots, found of 9",
    ),
    (lambda: Marketplace(browsing=Cascade()), "clicks needs less than 1, what its lists of 24"),
    (lambda: Marketplace(purchases=2.0), "purchases needs less than clicks, 1.8, found 2"),
    (lambda: Marketplace(clicks=float("nan")), "clicks needs a number above 0 .* found nan"),
    (lambda: open_shop(Marketplace(), users=0), "open_shop: users needs .* found 0"),
    (lambda: open_shop(Marketplace(), items=10), "open_shop: items needs .* found 10"),
    (lambda: open_shop(Taste()), "open_shop: marketplace needs a Marketplace"),
    (lambda: open_shop(Marketplace(), catalogue=3), "open_shop: catalogue needs a Catalogue"),
    (lambda: open_shop(Marketplace(), start=5), "open_shop: start needs a midnight, UTC"),
    (lambda: open_shop(Marketplace(), seed=-1), "open_shop: seed needs"),
    (
        lambda: open_shop(
            Marketplace(browsing=DCM([0.5] * 59), engine=Engine(slots=60, pool=72)), items=50
        ),
        "open_shop: needs a catalogue of at least 60 items, a list, found 50",
    ),
    (
        lambda: open_shop(
            Marketplace(wants=(QueryMatch(60.0), Taste()), clicks=7.0), items=300, users=100
        ),
        r"Marketplace: clicks needs at most \d.*, what its wants and its lists allow, found 7",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_values_are_refused(make, message):
    with pytest.raises(KarmafunnelError, match=message):
        make()


def test_rounds_are_answered_in_turn():
    shop = open_small()
    with pytest.raises(KarmafunnelError, match="Shop: needs day 0, found day 1"):
        next(shop.day(1))
    rounds = shop.day(0)
    visits = next(rounds)
    items = shop.logging(visits).items
    with pytest.raises(KarmafunnelError, match="answers to round 0 of day 0 before the next"):
        next(rounds)
    shop = open_small()
    rounds = shop.day(0)
    visits = next(rounds)
    with pytest.raises(KarmafunnelError, match="gave last, once, found other visits"):
        shop.answer(visits.rows(slice(0, 2)), items[:2])
    for wrong, message in [
        (items[:-1], r"items needs lists \(\d+, k\), found an array"),
        (items.astype(float), "items needs whole numbers, found float64"),
        (items + 600, "items needs row numbers up to 599, or -1, found"),
        (np.repeat(items[:, :1], 3, axis=1), "each item once in a list, found item"),
    ]:
        with pytest.raises(KarmafunnelError, match=message):
            shop.answer(visits, wrong)
    late = int(np.argmax(shop.goods.available))
    with pytest.raises(KarmafunnelError, match=f"items that have arrived, found item {late} in"):
        shop.answer(visits, np.full((len(visits), 1), late))
    shop.answer(visits, items)
    with pytest.raises(KarmafunnelError, match="once, found a second answer"):
        shop.answer(visits, items)


# -- chances ---------------------------------------------------------------------------------------


def test_draws_are_uniform_and_of_their_own():
    draws = Draws(7, 3, 1, np.arange(20_000))
    u = draws.random("click", 4)
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert np.abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.03
    assert np.abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03
    some = Draws(7, 3, 1, np.array([5, 17]))
    assert (some.random("click", 4) == u[[5, 17]]).all()
    for other in (
        Draws(8, 3, 1, draws.user),
        Draws(7, 4, 1, draws.user),
        Draws(7, 3, 2, draws.user),
    ):
        assert abs(np.corrcoef(other.random("click"), draws.random("click"))[0, 1]) < 0.03
    assert abs(np.corrcoef(draws.random("buy"), draws.random("click"))[0, 1]) < 0.03
    assert abs(draws.normal("z").std() - 1) < 0.03
    assert abs(draws.wait("w").mean() - 1) < 0.03


def test_same_arguments_same_bytes():
    frames = []
    for _ in range(2):
        shop = open_small()
        rounds = run(shop, 3)
        frames.append(
            [
                pl.concat([v.requests for v, _, _ in rounds]),
                pl.concat([shop.exposures(*one) for one in rounds]),
            ]
        )
    for one, other in zip(*frames, strict=True):
        assert one.equals(other)
    assert not open_small(seed=4).items.equals(open_small().items)


def test_two_engines_meet_the_same_luck():
    """Two shops opened alike, served differently: the same people come at the same times for the
    same things, and whoever sees the same item in the same slot does the same.
    """
    one, other = open_small(), open_small()
    first, second = one.day(0), other.day(0)
    a, b = next(first), next(second)
    assert a.requests.equals(b.requests)
    slates = logged(one, a)
    mixed = slates.copy()
    mixed[:, 10:] = mixed[:, 10:][:, ::-1]
    did, did_too = one.answer(a, slates), other.answer(b, mixed)
    for name in ("clicked", "bought", "paid", "quantity", "hours", "returned"):
        assert (getattr(did, name)[:, :10] == getattr(did_too, name)[:, :10]).all(), name
    assert (did.clicked[:, 10:] != did_too.clicked[:, 10:]).any()
    for shop, rounds in ((one, first), (other, second)):
        for visits in rounds:
            shop.answer(visits, logged(shop, visits))
    # what happened differs by now, so moods do; nearly all who come tomorrow come in both
    come = [shop.crowd.comers(1) for shop in (one, other)]
    assert len(np.intersect1d(*come)) > 0.9 * max(map(len, come))
    both = next(one.day(1)), next(other.day(1))
    shared, i, j = np.intersect1d(both[0].user, both[1].user, return_indices=True)
    assert len(shared) > 50
    assert (both[0].ts[i] == both[1].ts[j]).all()
    assert (both[0].draws.random("buy", 24)[i] == both[1].draws.random("buy", 24)[j]).all()


def test_a_shopper_is_the_same_among_others():
    few, many = open_small(users=100), open_small(users=400)
    for name in ("habit", "rate", "arrival", "segment", "interests", "mobile"):
        assert (getattr(few.people, name) == getattr(many.people, name)[:100]).all(), name
    assert (few.state.taste == many.state.taste[:100]).all()
    a, b = next(few.day(0)), next(many.day(0))
    n = len(a)
    assert (a.user == b.user[:n]).all()
    assert (a.ts == b.ts[:n]).all()
    assert (a.draws.random("click 1", 24) == b.draws.random("click 1", 24)[:n]).all()


# -- what happens ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop() -> Shop:
    return open_small(users=1200)


@pytest.fixture(scope="module")
def rounds(shop: Shop) -> list:
    return run(shop, 4)


def test_frames_are_those_of_a_log(shop, rounds):
    visits, slates, answers = rounds[0]
    requests = visits.requests
    assert list(requests.columns) == [name for name in REQUESTS if name != "window"]
    assert all(requests.schema[name] == REQUESTS[name] for name in requests.columns)
    exposures = shop.exposures(visits, slates, answers, shop.logging(visits).propensity)
    assert {name: exposures.schema[name] for name in exposures.columns} == {
        name: kind for name, kind in EXPOSURES.items() if name != "stage"
    }
    assert exposures.height == (slates >= 0).sum()
    assert exposures["clicked"].sum() == answers.clicked.sum()
    assert exposures["price_paid"].is_not_null().sum() == answers.bought.sum()
    ids = pl.concat([v.requests["request_id"] for v, _, _ in rounds])
    assert ids.is_unique().all()
    assert (requests["query"].is_not_null() == (requests["source"] == "search")).all()
    assert shop.items["available_from"].is_not_null().mean() == pytest.approx(0.12, abs=0.05)


def test_clicks_and_purchases_follow_the_truth(rounds):
    for of, told in (
        (lambda a: a.clicked, lambda a: a.truth.examination * a.truth.p_click),
        (
            lambda a: a.bought,
            lambda a: a.truth.examination * a.truth.p_click * a.truth.p_buy,
        ),
    ):
        p = np.concatenate([told(a).ravel() for _, _, a in rounds])
        happened = total(rounds, of)
        assert abs(happened - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    money = total(rounds, lambda a: a.paid * a.quantity)
    assert money == pytest.approx(total(rounds, lambda a: a.expected_gmv), rel=0.15)
    # the money of what was bought, given that it was: coupons and units alone are left to chance
    told = total(rounds, lambda a: a.bought * a.truth.units * a.truth.cost)
    assert money == pytest.approx(told, rel=0.03)
    n = sum(len(v) for v, _, _ in rounds)
    assert total(rounds, lambda a: a.clicked) / n == pytest.approx(1.8, rel=0.15)
    assert total(rounds, lambda a: a.bought) / n == pytest.approx(0.28, rel=0.25)
    returned, bought = (total(rounds, lambda a, w=w: getattr(a, w)) for w in ("returned", "bought"))
    assert returned / bought == pytest.approx(0.05, abs=0.03)
    hours = total(rounds, lambda a: a.hours) / bought
    assert hours == pytest.approx(2.0, rel=0.2)


def test_what_is_shown_may_be_shown(shop, rounds):
    for visits, slates, _ in rounds:
        row, slot = np.nonzero(slates >= 0)
        assert shop.candidates(visits)[row, slates[row, slot]].all()
        assert (slates >= 0).all()


@pytest.mark.parametrize("exploration", [0.0, 0.1, 1.0])
def test_propensities_are_exact(exploration):
    engine = Engine(slots=6, pool=10, shortlist=20, exploration=exploration)
    shop = open_small(replace(BUSY, engine=engine))
    visits = next(shop.day(0))
    slates = shop.logging(visits)
    pool, size = shop.engine.pool(visits)
    for row in range(len(visits)):
        left = pool[row, : size[row]].tolist()
        for item, p in zip(slates.items[row], slates.propensity[row], strict=True):
            assert p == pytest.approx(
                exploration / len(left) + (1 - exploration) * (item == left[0])
            )
            left.remove(item)
    if exploration == 0.1:
        assert (slates.propensity < 0.5).mean() == pytest.approx(0.09, abs=0.02)


def test_a_better_slate_earns_more():
    earned = {}
    for serve in (at_random, logged, best):
        rounds = run(open_small(), 2, serve)
        n = sum(len(v) for v, _, _ in rounds)
        earned[serve.__name__] = [
            total(rounds, of) / n
            for of in (lambda a: a.clicked, lambda a: a.bought, lambda a: a.expected_gmv)
        ]
    for worse, better in (("at_random", "logged"), ("logged", "best")):
        assert all(y > 1.2 * x for x, y in zip(earned[worse], earned[better], strict=True)), earned


@pytest.mark.parametrize(
    "browsing",
    [UBM.of(6), Cascade(), DCM([0.5] * 5), SDBN(), Mixture([Cascade(), UBM.of(6)], [0.5, 0.5])],
    ids=lambda model: type(model).__name__,
)
def test_each_click_model_answers_as_its_truth_says(browsing):
    engine = Engine(slots=6)
    shop = open_small(replace(BUSY, browsing=browsing, clicks=0.7, purchases=0.2, engine=engine))
    rounds = run(shop, 2)
    n = sum(len(v) for v, _, _ in rounds)
    clicks = total(rounds, lambda a: a.clicked)
    assert clicks / n == pytest.approx(0.7, rel=0.2)
    assert abs(clicks - total(rounds, lambda a: a.expected_clicks)) < 4.5 * np.sqrt(clicks)
