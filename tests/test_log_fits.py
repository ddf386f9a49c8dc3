"""Fits of a log: what was drawn with known values is fitted back, and what a log cannot tell is
refused by the name of the parameter.
"""

from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.benchmarks.validation import which_proxy
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.simulator.replay.market_recipe import load_marketplace
from karmafunnel.simulator.world.click_lists import Shown
from karmafunnel.simulator.world.clicks import DCM, PBM, SDBN
from karmafunnel.simulator.world.item_fits import relative, taken
from karmafunnel.simulator.world.likened import TAKEN, like_log, moved
from karmafunnel.simulator.world.log_fits import (
    browsing,
    events_a_request,
    exploration,
    mean_log_rank,
    popularity,
    prices,
    query_length,
    repeats,
)
from karmafunnel.simulator.world.marketplace import (
    HOURS,
    Arrivals,
    GammaRates,
    LogNormalRates,
    Marketplace,
)
from karmafunnel.simulator.world.own_goods import goods, goods_of_world
from karmafunnel.simulator.world.visit_fits import going_on, rhythm, visiting

START = datetime(2024, 1, 1, tzinfo=UTC)  # a Monday


def log_of(requests: pl.DataFrame, exposures: pl.DataFrame, items: pl.DataFrame | int, **meta) -> Log:
    """A log of these requests (request_id, user_id, ts), in one window W1 with the last tenth W2b
    and two requests of W3 after it.
    """
    if isinstance(items, int):
        items = pl.DataFrame({"item_id": [f"i{i}" for i in range(items)]})
    requests = requests.sort("ts", maintain_order=True)
    at = pl.int_range(pl.len())
    window = pl.when(at >= pl.len() - 2).then(pl.lit("W3")).when(at >= 0.9 * pl.len()).then(pl.lit("W2b")).otherwise(pl.lit("W1"))
    return Log.make(items, requests.with_columns(window=window), exposures, {"name": "drawn", "catalogue": "published"} | meta)


def asked(n: int, users: int, rng, minutes: float = 10.0) -> pl.DataFrame:
    user = rng.integers(users, size=n)
    ts = [START + timedelta(minutes=minutes * r) for r in range(n)]
    return pl.DataFrame({"request_id": [f"r{r}" for r in range(n)], "user_id": [f"u{u}" for u in user], "ts": ts})


def within(figure, value: float) -> bool:
    return figure.low <= value <= figure.high


# -- clicks ----------------------------------------------------------------------------------------


def clicked_lists(model, n: int = 6000, k: int = 5, items: int = 40, satisfied: bool = False) -> Log:
    rng = np.random.default_rng(3)
    attraction, stops = rng.uniform(0.1, 0.6, items), rng.uniform(0.2, 0.8, items)
    shown = np.argsort(rng.random((n, items)), axis=1)[:, :k]
    clicks = model.draw(Shown(attraction[shown], stops[shown] if satisfied else None), rng)
    request, slot = np.divmod(np.arange(n * k), k)
    exposures = pl.DataFrame(
        {
            "request_id": [f"r{r}" for r in request],
            "item_id": [f"i{i}" for i in shown.ravel()],
            "position": slot + 1,
            "clicked": clicks.ravel(),
        }
    )
    return log_of(asked(n, 300, rng), exposures, items)


def test_the_click_model_that_made_the_clicks_is_found_with_its_parameters():
    true = PBM((1.0, 0.7, 0.5, 0.35, 0.2))
    found = browsing(clicked_lists(true))
    assert type(found.model) is PBM and found.slots == 5 and set(found.held_out) == {"PBM", "UBM", "DCM", "SDBN"}
    ends = found.fit.intervals(found.lists)
    for name, value in list(true.named().items())[1:]:
        low, high = ends[name]
        assert low - 0.02 <= value <= high + 0.02, name
    found = browsing(clicked_lists(DCM((0.8, 0.6, 0.4, 0.2))))
    assert type(found.model) is DCM
    assert list(found.model.named().values()) == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=0.08)


def test_satisfied_users_are_found():
    assert type(browsing(clicked_lists(SDBN(), satisfied=True)).model) is SDBN


def test_clicks_a_request():
    log = clicked_lists(PBM((1.0, 0.5, 0.5, 0.5, 0.5)))
    found = events_a_request(log, "click")
    truth = log.exposures.filter(pl.col("request_id").is_in(log.requests["request_id"][:-2].implode()))["clicked"].sum() / (6000 - 2)
    assert found.value == pytest.approx(truth) and found.high - found.low < 0.06
    with pytest.raises(KarmafunnelError, match="fit: purchases needs a log with purchases, found drawn"):
        events_a_request(log, "purchase")


# -- items -----------------------------------------------------------------------------------------


@cache
def popular(s: float, n: int = 4000, items: int = 500) -> Log:
    rng = np.random.default_rng(int(10 * s))
    share = np.arange(1, items + 1) ** -s
    item = rng.choice(items, n, p=share / share.sum())
    exposures = pl.DataFrame({"request_id": [f"r{r}" for r in range(n)], "item_id": [f"i{i}" for i in item], "clicked": [True] * n})
    return log_of(asked(n, 200, rng), exposures, items)


def rated(n: int = 400, spread: float = 0.5, slope: float = -0.6, each: float = 15.0, seed: int = 0):
    """Events of items whose log rates are normal and fall with x."""
    rng = np.random.default_rng(seed)
    rate, x, expected = rng.normal(0, spread, n), rng.normal(0, 0.5, n), each * rng.lognormal(0, 0.5, n)
    return rate, x, rng.poisson(expected * np.exp(rate + slope * x)), expected


@pytest.mark.parametrize("seed", range(4))
def test_the_appeal_of_items_and_what_prices_do_to_it_are_found(seed):
    rate, x, events, expected = rated(seed=seed)
    found = relative("appeal", events, 3 * expected, x)  # expected up to a factor
    assert found.spread.low - 0.03 <= 0.5 <= found.spread.high + 0.03 and found.spread.high - found.spread.low < 0.15
    assert found.slope.low - 0.05 <= -0.6 <= found.slope.high + 0.05 and found.slope.high - found.slope.low < 0.4
    assert np.corrcoef(found.mean, rate)[0, 1] > 0.8
    # shrunk: nearer to the truth than the ratio, and as uncertain as said
    ratio = np.log((events + 0.5) / (expected * np.exp(-0.6 * x)))
    error = found.mean - (rate - rate.mean())
    assert (error**2).mean() < 0.9 * ((ratio - rate) ** 2).mean()
    assert np.std(error / found.error) == pytest.approx(1, abs=0.15)


def test_items_without_events_are_like_any_other():
    _, _, events, expected = rated()
    found = relative("appeal", np.r_[events, 0], np.r_[expected, 0.0])
    assert found.slope is None and abs(found.mean[-1]) < 0.2
    assert found.error[-1] == pytest.approx(found.spread.value, rel=0.01)


def test_items_that_are_all_alike_have_no_spread():
    rng = np.random.default_rng(1)
    found = relative("appeal", rng.poisson(20, 500), np.full(500, 20.0))
    assert found.spread.value < 0.1 and np.abs(found.mean).max() < 0.3


def test_clicks_are_expected_by_slot():
    """Each item stands in one slot alone: what the slot does is not taken for appeal."""
    model, n = PBM((1.0, 0.5, 0.25)), 9000
    rng = np.random.default_rng(2)
    appeal = np.array([0.2, 0.4])[np.arange(30) % 2]
    shown = np.stack([rng.integers(10, size=n) + 10 * slot for slot in range(3)], axis=1)
    clicks = model.draw(Shown(appeal[shown]), rng)
    request = np.repeat(np.arange(n), 3)
    rows = {"request_id": [f"r{r}" for r in request], "item_id": [f"i{i}" for i in shown.ravel()], "position": np.tile([1, 2, 3], n)}
    prices = pl.Series("price_shown", np.where(np.arange(30) < 15, 1.0, np.e)[shown.ravel()])
    log = log_of(asked(n, 300, rng), pl.DataFrame(rows | {"clicked": clicks.ravel()}).with_columns(prices), 30)
    seen = taken(log, np.zeros(30, dtype=int), model, 3, "click")
    assert seen.shown.sum() == pytest.approx(3 * n, abs=10) and (seen.there == 1).all()
    found = relative("appeal", seen.events, seen.expected)
    assert (found.mean - found.mean.mean())[appeal > 0.3].mean() == pytest.approx(np.log(2) / 2, abs=0.04)
    assert found.spread.low <= np.log(2) / 2 <= found.spread.high
    # beside others of a list: 20 to 29 are dear, half of 10 to 19 are
    assert seen.dearness[:10].max() < 0 < seen.dearness[20:].min()
    lists = dict(zip(range(30), seen.dearness, strict=True))
    assert lists[0] == pytest.approx(-(1 + 0.5) / 3, abs=0.03) and lists[25] == pytest.approx(1 - 1.5 / 3, abs=0.03)


@pytest.mark.parametrize("s", [0.5, 0.8, 1.2])
def test_zipf(s):
    found = popularity(popular(s))
    assert within(found, s) and found.high - found.low < 0.15


def test_ranks_guessed_from_few_counts_do_not_mislead():
    # one event for each item on average: ranks by count look far steeper than the truth
    found = popularity(popular(0.5, n=1000, items=1000))
    assert within(found, 0.5)
    counts = np.bincount(popular(0.5, n=1000, items=1000).rows["item"].to_numpy(), minlength=1000)
    naive = np.polyfit(np.log(np.arange(1, 1001)), np.log(np.arange(1, 1001) ** -0.5), 1)[0]
    assert mean_log_rank(counts) < float(np.log(np.arange(1, 1001)) @ (np.arange(1, 1001) ** naive) / (np.arange(1, 1001) ** naive).sum()) - 0.2


def test_prices():
    rng = np.random.default_rng(1)
    x = np.r_[rng.normal(2, 0.5, 3000), rng.normal(4, 1.0, 3000)]
    items = pl.DataFrame(
        {"item_id": [f"i{i}" for i in range(6000)], "price": np.exp(x), "category": [["pens"]] * 3000 + [["desks", "oak"]] * 3000}
    )
    log = log_of(asked(40, 30, rng), pl.DataFrame({"request_id": ["r0"], "item_id": ["i0"], "clicked": [True]}), items)
    found = prices(log)
    assert within(found.mean, 3.0) and found.by_category.keys() == {"pens", "desks"}
    assert within(found.spread, np.sqrt(1 + (0.25 + 1) / 2))
    mean, sd, n = found.by_category["desks"]
    assert (mean, sd, n) == (pytest.approx(4, abs=0.06), pytest.approx(1, abs=0.05), 3000)


def test_repeats():
    # each user takes i0 on every third request and else something new
    rng = np.random.default_rng(2)
    n, users = 1200, 60
    requests = pl.DataFrame(
        {
            "request_id": [f"r{r}" for r in range(n)],
            "user_id": [f"u{r % users}" for r in range(n)],
            "ts": [START + timedelta(days=r // users, seconds=r % users) for r in range(n)],
        }
    )
    item = ["i0" if (r // users) % 3 == 0 else f"i{r + 1}" for r in range(n)]
    exposures = pl.DataFrame({"request_id": requests["request_id"], "item_id": item, "clicked": [True] * n})
    found = repeats(log_of(requests, exposures, n + 1))
    # 20 days: i0 on 7 of them, 6 of which are repeats, 3 days after the last
    assert found.share.value == pytest.approx(6 / 20, abs=0.002) and found.days.value == pytest.approx(3)
    assert rng is not None


def test_query_length():
    rng = np.random.default_rng(4)
    requests = asked(2000, 100, rng).with_columns(query=pl.Series([" ".join(["w"] * n) for n in 1 + rng.poisson(1.5, 2000)]))
    exposures = pl.DataFrame({"request_id": ["r0"], "item_id": ["i0"], "clicked": [True]})
    assert within(query_length(log_of(requests, exposures, 1)), 2.5)


# -- visits ----------------------------------------------------------------------------------------


def visited(rates, arrived: float, users: int = 3000, days: int = 40, seed: int = 0) -> Log:
    """Users with rates of this kind; a share of them comes on a random day."""
    rng = np.random.default_rng(seed)
    rate = rates.rate(rng.random(users))
    since = np.where(rng.random(users) < arrived, rng.integers(days, size=users), 0)
    there = (rng.random((users, days)) < -np.expm1(-rate)[:, None]) & (np.arange(days) >= since[:, None])
    user, day = np.nonzero(there)
    # the first and the last moment of the log are those of a user of their own
    ts = [START, START + timedelta(days=days, milliseconds=-1), *(START + timedelta(days=int(d), hours=12, milliseconds=i) for i, d in enumerate(day)), START + timedelta(days=days + 1), START + timedelta(days=days + 1, hours=1)]
    ids = ["first", "first", *(f"u{u}" for u in user), "last", "last"]
    requests = pl.DataFrame({"request_id": [f"r{i}" for i in range(len(ts))], "user_id": ids, "ts": ts})
    return log_of(requests, pl.DataFrame({"request_id": ["r0"], "item_id": ["i0"], "clicked": [True]}), 1)


@pytest.mark.parametrize(
    ("rates", "arrived"),
    [(GammaRates(0.15, shape=0.8), 0.0), (GammaRates(0.1, shape=1.5), 0.4), (LogNormalRates(0.12, spread=1.1), 0.3)],
)
def test_visiting_rates_and_arrivals(rates, arrived):
    found = visiting(visited(rates, arrived))
    assert type(found.activity) is type(rates) and found.days == 40
    spread = rates.shape if isinstance(rates, GammaRates) else rates.spread
    assert within(found.mean, rates.mean) and within(found.spread, spread)
    assert found.arrived.low - 0.02 <= arrived <= found.arrived.high + 0.02
    assert found.users == pytest.approx(3000, rel=0.05)
    assert not found.mean.bound and not found.spread.bound
    # that nobody came later is where the likelihood is flat, and no figure
    assert ("at the bound" in str(found.arrived)) == found.arrived.bound == (found.arrived.value < 1e-3)


def test_sessions():
    # a purchase ends the visit; half search on after a click; a fifth browses on after nothing
    rng = np.random.default_rng(5)
    rows, flags = [], []
    for session in range(1500):
        while True:
            kind = rng.choice(["purchase", "click", "nothing"], p=[0.2, 0.4, 0.4])
            on = {"purchase": 0.0, "click": 0.5, "nothing": 0.2}[kind]
            before = rows[-1][5] if rows and rows[-1][3] == f"s{session}" else "click"
            at = START + timedelta(minutes=len(rows) * 2)
            rows.append((f"r{len(rows)}", f"u{session % 150}", at, f"s{session}", "a query" if before == "click" else None, kind))
            flags.append(kind)
            if rng.random() >= on:
                break
    requests = pl.DataFrame(rows, schema=["request_id", "user_id", "ts", "session_id", "query", "kind"], orient="row").drop("kind")
    taken = [(row[0], "i0", True, kind == "purchase") for row, kind in zip(rows, flags, strict=True) if kind != "nothing"]
    exposures = pl.DataFrame(taken, schema=["request_id", "item_id", "clicked", "purchased"], orient="row")
    found = going_on(log_of(requests, exposures, 1))
    assert within(found.goes_on, 0.4 * 0.5 + 0.4 * 0.2)
    lengths = np.unique(requests["session_id"][:-2].to_numpy(), return_counts=True)[1]
    assert found.longest == lengths.max() > 2
    assert found.every[0].value + found.every[1].value == pytest.approx(found.goes_on.value)
    searched, browsed = found.after["click"]
    assert within(searched, 0.5) and browsed.value == 0
    assert found.after["purchase"][0].value == 0 and within(found.after["nothing"][1], 0.2)
    # sessions that no one names end after half an hour: all requests here are two minutes apart
    unnamed = going_on(log_of(requests.drop("session_id"), exposures, 1))
    assert unnamed.goes_on.value >= found.goes_on.value


def test_rhythm():
    # 100 requests at 9 and 200 at 20 o'clock every day, none on Sundays
    ts = [START + timedelta(days=d, hours=h, seconds=i) for d in range(28) if d % 7 != 6 for h, n in ((9, 10), (20, 20)) for i in range(n)]
    requests = pl.DataFrame({"request_id": [f"r{i}" for i in range(len(ts))], "user_id": ["u"] * len(ts), "ts": ts})
    found = rhythm(log_of(requests, pl.DataFrame({"request_id": ["r0"], "item_id": ["i0"], "clicked": [True]}), 1))
    assert found.hours[9] == pytest.approx(8, rel=0.01) and found.hours[20] == pytest.approx(16, rel=0.01)
    assert found.week == pytest.approx([7 / 6] * 6 + [0], rel=0.01)
    dated = requests.with_columns(pl.col("ts").dt.truncate("1d"))
    found = rhythm(log_of(dated, pl.DataFrame({"request_id": ["r0"], "item_id": ["i0"], "clicked": [True]}), 1))
    assert found.hours == pytest.approx([x * 24 / sum(HOURS) for x in HOURS])


# -- a marketplace like a log ----------------------------------------------------------------------


def test_like_a_log_with_lists():
    log = clicked_lists(PBM((1.0, 0.7, 0.5, 0.35, 0.2)))
    found = like_log(log)
    market = found.marketplace
    assert type(market.browsing) is PBM and market.engine.slots == 5
    assert market.clicks == pytest.approx(events_a_request(log, "click").value, rel=0.3)
    assert found.users == pytest.approx(300, rel=0.1) and found.days == 42
    assert market.arrivals.items == 0 and isinstance(market.arrivals, Arrivals)
    # no purchases were logged: fewer than the clicks
    assert found.told["purchases"] == f"{TAKEN}fit: purchases needs a log with purchases, found drawn"
    assert market.purchases < market.clicks
    assert {"browsing", "clicks", "sessions", "rhythm", "activity", "arrivals", "appeal"} == set(found.fitted)
    assert found.told["prices"] == f"{TAKEN}the log has no prices" and found.told["goods"].startswith("invented")
    assert found.goods is None


def test_like_visits():
    found = like_log(visited(GammaRates(0.15, shape=0.8), 0.3)).marketplace
    assert isinstance(found.activity, GammaRates) and found.activity.mean == pytest.approx(0.15, rel=0.1)
    assert found.arrivals.users == pytest.approx(0.3, abs=0.05) and found.arrivals.days == 40
    assert found.browsing == Marketplace().browsing


def test_items_that_came_later():
    log = clicked_lists(PBM((1.0, 0.7, 0.5, 0.35, 0.2)))
    more = pl.concat([log.items.select("item_id"), pl.DataFrame({"item_id": ["new 1", "new 2"]})])
    later = pl.Series([START] * 40 + [START + timedelta(days=10)] * 2).cast(pl.Datetime("ms", "UTC"))
    items = more.with_columns(available_from=later)
    assert like_log(Log.make(items, log.requests, log.exposures, log.meta)).marketplace.arrivals.items == 2 / 42


def test_a_log_that_decides_nothing():
    requests = asked(60, 30, np.random.default_rng(0))
    exposures = pl.DataFrame({"request_id": ["r0", "r1"], "item_id": ["i0", "i1"], "clicked": [True, False], "position": [1, 1]})
    with pytest.raises(KarmafunnelError, match="like: needs a log that decides a field of a Marketplace, found browsing: fit: browsing needs"):
        like_log(log_of(requests, exposures, 2))


def test_the_recipe_of_a_likened_marketplace_is_that_marketplace(tmp_path):
    found = like_log(visited(GammaRates(0.15, shape=0.8), 0.3))
    (tmp_path / "shop.py").write_text(found.recipe)
    assert load_marketplace(tmp_path / "shop.py")[0] == found.marketplace


def test_goods_of_a_log():
    log = clicked_lists(PBM((1.0, 0.5, 0.5, 0.5, 0.5)))
    assert goods(log) is None
    log = clicked_lists(PBM((1.0, 0.5, 0.5, 0.5, 0.5)), items=60)
    items = log.items.with_columns(title=pl.lit("a lamp"), price=pl.lit(5.0))
    meta = log.meta | {"has": log.meta["has"] | {"text": True, "price": True}}
    found = goods(Log.make(items, log.requests, log.exposures, meta))
    assert found.items.height == 60 and [name for name, there in found.meta["has"].items() if there] == ["text", "price"]
    # what users filter by is added by the simulated shop itself
    items = items.with_columns(attributes=pl.lit(["colour=red", "size=L"]))
    requests = log.requests.with_columns(filters=pl.lit(["size=L"]))
    found = goods(Log.make(items, requests, log.exposures, meta | {"has": meta["has"] | {"filters": True}}))
    assert found.items["attributes"].to_list() == [["colour=red"]] * 60
    # without categories the last word of the title tells the kind
    assert found.items["category"].to_list() == [["colour=red"]] * 60
    items = log.items.with_columns(title=pl.lit("a red Lamp."), price=pl.lit(5.0))
    assert goods(Log.make(items, log.requests, log.exposures, meta)).items["category"].to_list() == [["lamp"]] * 60
    # without titles and categories attributes stand in, and prices that were seen for a list price
    items = log.items.with_columns(attributes=pl.lit(["city=Rome", "stars=4"]))
    seen = log.exposures.with_columns(price_shown=pl.lit(7.0))
    found = goods(Log.make(items, log.requests, seen, log.meta | {"has": log.meta["has"] | {"price": True}}))
    assert found.items.select("title", "category", "price").row(0) == ("Rome 4", ["city=Rome"], 7.0)


def test_exploration():
    # one in ten of 6,000 slots was drawn at random from 20 items
    rng = np.random.default_rng(8)
    drawn = rng.random(6000) < 0.1
    exposures = pl.DataFrame(
        {
            "request_id": [f"r{r}" for r in range(6000)],
            "item_id": ["i0"] * 6000,
            "position": [1] * 6000,
            "clicked": [True] * 6000,
            "propensity": np.where(drawn, 0.1 / 20, 0.9 + 0.1 / 20),
        }
    )
    found = exploration(log_of(asked(6000, 100, rng), exposures, 1))
    assert found.value == pytest.approx(drawn[:-2].mean()) and found.high - found.low < 0.02


def test_parameters_move_by_what_the_pilot_says_too_much():
    # the log says .5, a pilot of .5 says .4: 5/4 of it; never above 1, never more than double
    assert moved(PBM((1.0, 0.5, 0.9, 0.1)), PBM((1.0, 0.5, 0.9, 0.4)), PBM((1.0, 0.4, 0.6, 0.1))) == PBM((1.0, 0.625, 1.0, 0.2))


@pytest.mark.slow
def test_world_like_a_log(tmp_path):
    """A shop is simulated, another one is fitted to its log, and what was fitted is what it was."""
    (tmp_path / "shop.py").write_text(
        "from karmafunnel.simulator.world.marketplace import *\n"
        "marketplace = Marketplace(clicks=1.2, purchases=0.25, activity=GammaRates(0.3), arrivals=None, returning=None)\n"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    made = CliRunner().invoke(main, ["world", a, "--recipe", str(tmp_path / "shop.py"), "--items", "300", "--users", "300", "--days", "20"])
    assert made.exit_code == 0, made.output
    made = CliRunner().invoke(main, ["world", b, "--like", a, "--seed", "5"])
    assert made.exit_code == 0, made.output
    for name in ("browsing: ", "clicks: ", "purchases: ", "sessions: ", "rhythm: ", "activity: ", "arrivals: "):
        assert name in made.stderr
    found = like_log(Log.open(a))
    assert found.marketplace.clicks == pytest.approx(1.2, rel=0.15) and found.days == 20
    assert found.users == pytest.approx(300, rel=0.1)
    assert Log.open(b).requests.height == pytest.approx(Log.open(a).requests.height, rel=0.2)
    assert Log.open(b).items.height == 300
    # best-sellers are the same, and the engine likes what it liked: correlations with the truth
    true, made = (pl.read_parquet(tmp_path / x / "truth" / "items.parquet") for x in ("a", "b"))
    both = true.join(made, on="item_id", suffix=" made")
    assert both.height == 300 and made["quality"].std() == pytest.approx(1, abs=0.01)
    for name, least in (("quality", 0.4), ("misjudged", 0.5)):
        assert np.corrcoef(both[name], both[f"{name} made"])[0, 1] > least, name
    sold = [Log.open(x).truth("purchase")["item"].to_numpy() for x in (a, b)]
    sold = [np.bincount(x, minlength=300) for x in sold]
    assert np.corrcoef(np.sqrt(sold))[0, 1] > 0.6
    # an experiment in the fitted World has the same goods
    again = goods_of_world(Log.open(b)).items
    assert again["item_id"].to_list() == made["item_id"].to_list()
    assert again.select("quality", "misjudged", "demand").equals(made.select("quality", "misjudged", "demand"))
    assert "quality" not in goods_of_world(Log.open(a)).items.columns
    assert which_proxy.Market.of(b).catalogue.items.equals(again)
    for words, said in [
        (["--like", a, "--recipe", str(tmp_path / "shop.py")], "needs --recipe or --like, found both of them"),
        (["--like", a, "--semantic", "0.1"], "--semantic needs a World without --like"),
        (["--like", str(tmp_path)], "needs a log folder"),
    ]:
        refused = CliRunner().invoke(main, ["world", str(tmp_path / "c"), *words])
        assert refused.exit_code == 1 and said in " ".join(refused.output.split())


# -- refusals --------------------------------------------------------------------------------------


def test_small_logs_are_refused_by_parameter():
    rng = np.random.default_rng(0)
    exposures = pl.DataFrame({"request_id": ["r0", "r1"], "item_id": ["i0", "i1"], "clicked": [True, False], "position": [1, 1]})
    log = log_of(asked(60, 30, rng), exposures, 2)
    for fitted, said in [
        (browsing, "browsing needs at least 200 lists, found 2"),
        (lambda x: events_a_request(x, "click"), "clicks needs at least 100 requests, found 58"),
        (popularity, "popularity needs at least 100 relevant items, found 1"),
        (prices, "prices needs a log with price, found drawn"),
        (repeats, "repeats needs at least 100 relevant items, found 1"),
        (query_length, "query length needs a log with query, found drawn"),
        (going_on, "sessions needs at least 100 requests, found 58"),
        (rhythm, "rhythm needs at least 480 requests, found 58"),
        (visiting, "visiting rate needs at least 7 whole days, found 0"),
    ]:
        with pytest.raises(KarmafunnelError, match=f"^fit: {said}$"):
            fitted(log)
    for events, expected, said in [
        (np.full(50, 1), np.ones(50), "appeal needs at least 100 clicks or purchases, found 50"),
        (np.full(15, 9), np.ones(15), "appeal needs at least 20 items that could be taken, found 15"),
    ]:
        with pytest.raises(KarmafunnelError, match=f"^fit: {said}$"):
            relative("appeal", events, expected)
    last = asked(60, 30, rng).with_columns(window=pl.lit("W3"))
    with pytest.raises(KarmafunnelError, match=r"^like: needs a log that decides a field"):
        like_log(log_of(last, exposures, 2))
    few = log_of(asked(200, 15, rng), pl.DataFrame({"request_id": [f"r{i}" for i in range(200)], "item_id": ["i0"] * 200, "clicked": [True] * 200}), 1)
    with pytest.raises(KarmafunnelError, match="clicks needs at least 20 users, found 15"):
        events_a_request(few, "click")


def test_lists_that_no_model_fits_say_why():
    log = clicked_lists(PBM((1.0, 0.7, 0.5, 0.35, 0.2)))
    none = Log.make(log.items, log.requests, log.exposures.with_columns(clicked=pl.lit(False)), log.meta)
    with pytest.raises(KarmafunnelError, match="fit: browsing needs lists that PBM, DCM, UBM, SDBN can be fitted to, found PBM: "):
        browsing(none)


def test_equal_popularity_is_no_zipf():
    rng = np.random.default_rng(0)
    n = 500
    exposures = pl.DataFrame({"request_id": [f"r{r}" for r in range(n)], "item_id": [f"i{r % 100}" for r in range(n)], "clicked": [True] * n})
    with pytest.raises(KarmafunnelError, match="spread less evenly than by chance"):
        popularity(log_of(asked(n, 50, rng), exposures, 100))


def test_baskets_that_no_list_can_hold():
    """Without lists, what is taken more often than others of its kind has appeal."""
    rng = np.random.default_rng(4)
    n, items = 300, 60
    share = np.exp(rng.normal(0, 1, items))
    bought = [(f"r{r}", f"i{i}", True, 5.0, 1) for r in range(n) for i in rng.choice(items, 30, replace=False, p=share / share.sum())]
    exposures = pl.DataFrame(bought, schema=["request_id", "item_id", "purchased", "price_paid", "quantity"], orient="row")
    goods_of = pl.DataFrame({"item_id": [f"i{i}" for i in range(items)], "title": [f"thing {i % 5}" for i in range(items)]})
    found = like_log(log_of(asked(n, 100, rng), exposures, goods_of, label="purchase"))
    assert "of which its lists hold" in found.told["purchases"] and "no lists" in found.told["appeal"]
    assert found.told["prices"] == f"{TAKEN}the log has no lists"
    # nothing but purchases was logged: sessions go on after any request as they do after these
    sessions = found.marketplace.sessions
    assert sessions.after_purchase == sessions.after_click == sessions.after_nothing
    assert found.marketplace.purchases > 3 and found.goods.items["category"].to_list()[:2] == [["0"], ["1"]]
    assert np.corrcoef(found.goods.items["quality"], np.log(share))[0, 1] > 0.3
