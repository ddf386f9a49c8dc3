"""The report card: each line on logs whose figures can be worked out by hand, what it says of a log
and itself, of two seeds of a World, of Worlds that differ on purpose, and what it refuses.
"""

import json
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Catalogue, Log
from karmafunnel.simulator.likeness import likeness
from karmafunnel.simulator.likeness.card import ENOUGH, Card
from karmafunnel.simulator.likeness.card_lines import PopularShown
from karmafunnel.simulator.likeness.held_out import parts
from karmafunnel.simulator.likeness.judging import TOLERANCE, Answer, by_chance, judge
from karmafunnel.simulator.likeness.policy_order import FEWEST, answer, swapped
from karmafunnel.simulator.likeness.two_samples import features, tell_apart
from karmafunnel.simulator.report.likeness_page import card_table, given_away, told, write_html
from karmafunnel.simulator.world import generate
from small_run import make_run

START = datetime(2026, 1, 5, tzinfo=UTC)
DAYS = {"W1": 0, "W2a": 10, "W3": 20}


def shop(
    clicked=lambda r: r % 4 + 1,
    bought=lambda r: r % 2 == 0,
    price=lambda r: 10.0,
    words=lambda r: 2,
    length=4,
    category=lambda i: i,
    per_session=2,
    gap_days=1.0,
    users=16,
    has=(),
    lacks=(),
    name="shop",
) -> Log:
    """In each of three windows every user makes four requests, two a day, and sees items 0, 1, 2,
    ... in this order; in request r of a window position clicked(r) is clicked, and bought at
    price(r) if bought(r).
    """
    requests, rows = [], []
    for window, day in DAYS.items():
        for r in range(4):
            for u in range(users):
                ts = START + timedelta(days=day + gap_days * (r // per_session), minutes=10 * (r % per_session), seconds=u)
                key = f"{window}-{r}-{u}"
                session = f"{window}-{r // per_session}-{u}"
                requests.append((key, f"u{u}", ts, " ".join(["word"] * words(r)), session, window))
                for i in range(length):
                    hit = i + 1 == clicked(r)
                    buys = hit and bought(r)
                    rows.append((key, f"i{i}", i + 1, hit, buys, price(r), price(r) if buys else None))
    columns = ["request_id", "item_id", "position", "clicked", "purchased", "price_shown", "price_paid"]
    frame = pl.DataFrame(requests, schema=["request_id", "user_id", "ts", "query", "session_id", "window"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(length)], "category": [[str(category(i))] for i in range(length)]})
    known = {"query", "price", "exposures", "clicks", "purchases", "users"} | set(has)
    meta = {"name": name, "label": "click", "catalogue": "published", "has": {what: True for what in known - set(lacks)}}
    return Log.make(items, frame.sort("ts"), pl.DataFrame(rows, schema=columns, orient="row"), meta)


def line(name: str, real: Log, simulated: Log) -> Answer:
    return likeness(real, simulated).of(name)


# -- lines by hand ---------------------------------------------------------------------------------


def test_a_log_against_itself_has_no_distance():
    card = likeness(shop(), shop())
    answered = [a for a in card.answers if a.distance is not None]
    assert len(answered) >= ENOUGH and all(a.distance == 0 for a in answered)
    assert card.verdict == "PASS" and told(card) == []


def test_click_rate():
    # one of 4 items a list, and none in every second list
    found = line("click rate", shop(), shop(clicked=lambda r: r % 2, bought=lambda r: r == 1))
    assert (found.real, found.simulated) == (1 / 4, 1 / 8)
    assert found.distance == pytest.approx(np.log(64.5 / 32.5))
    assert found.verdict == "FAIL" and found.allowed == pytest.approx(np.log(1.1))


def test_clicks_by_position():
    # .25 of the clicks each; 1/2 on the first, 1/2 on the second: the sums are .5 apart after two
    found = line("clicks by position", shop(), shop(clicked=lambda r: r % 2 + 1))
    assert (found.real, found.simulated) == (2.5, 1.5)
    assert found.distance == 0.5 and found.verdict == "FAIL"


def test_clicks_and_purchases_a_request():
    twice = shop(bought=lambda r: True)
    assert line("clicks a request", shop(), twice).verdict == "PASS"
    found = line("purchases a request", shop(), twice)
    assert (found.real, found.simulated) == (0.5, 1.0)
    assert found.distance == pytest.approx(np.log(64.5 / 32.5)) and found.verdict == "FAIL"


def test_list_length_and_its_categories():
    found = line("list length", shop(), shop(length=5))
    assert (found.real, found.simulated, found.distance) == (4, 5, 1)
    # four of four categories; two of four: (2 - 1) / (4 - 1)
    found = line("categories a list", shop(), shop(category=lambda i: i % 2))
    assert (found.real, found.simulated, found.distance) == (1, pytest.approx(1 / 3), 1)


def test_price_paid():
    # half of the requests at 10, half at 30, against all at 10; clicks are the label
    found = line("price paid", shop(price=lambda r: [10.0, 30.0][r % 2]), shop())
    assert (found.real, found.simulated, found.distance) == (20, 10, 0.5)
    assert line("prices a list", shop(), shop()).real == 0  # all alike


def test_query_and_session_length():
    found = line("query length", shop(), shop(words=lambda r: 2 + r % 2))
    assert (found.real, found.simulated, found.distance) == (2, 2.5, 0.5)
    found = line("session length", shop(users=32), shop(per_session=4, users=32))
    assert (found.real, found.simulated, found.distance) == (2, 4, 1)


def test_sessions_end_after_half_an_hour_where_a_log_names_none():
    log = shop(per_session=4, users=32)
    unnamed = Log.make(log.items, log.requests.drop("session_id"), log.exposures, log.meta)
    found = line("session length", shop(users=32), unnamed)
    assert (found.real, found.simulated) == (2, 4)


def test_activity_is_that_of_as_long_a_time():
    # the real window covers two days with two requests each, the simulated one half an hour
    found = line("activity", shop(users=32), shop(per_session=4, users=32))
    assert (found.real, found.simulated) == (2, 4)


def test_repeats_and_their_interval():
    # each position was clicked 10 days before by the same user, and nothing in between
    found = line("repeats", shop(), shop())
    assert found.real == 1
    found = line("repeat interval", shop(), shop(gap_days=2.0))
    assert found.real == found.simulated == pytest.approx(10, abs=0.1)
    # the same item in each request: 10 minutes after the last, or about 9 days
    again = line("repeat interval", shop(clicked=lambda r: 1), shop(clicked=lambda r: 1)).drawing.curves["real"]
    steps = np.diff(again[1], prepend=0.0)
    short, days, long = (steps[(again[0] > a) & (again[0] < b)].sum() for a, b in ((0, 0.5), (0.5, 2), (8, 10)))
    assert (short, days, long) == pytest.approx((1 / 2, 1 / 4, 1 / 4))


def test_new_items():
    # position 4 is never clicked in W1 and W2 of the simulated log
    log = shop(clicked=lambda r: r % 3 + 1)
    w3 = log.requests.filter(window="W3")["request_id"].implode()
    moved = log.exposures.with_columns(
        pl.when(pl.col("request_id").is_in(w3)).then(pl.col("position") == 4).otherwise("clicked").alias("clicked"),
        purchased=pl.lit(False), price_paid=pl.lit(None, pl.Float64),
    )
    other = Log.make(log.items, log.requests, moved, log.meta | {"has": log.meta["has"] | {"purchases": False}})
    found = line("new items", shop(), other)
    assert (found.real, found.simulated, found.distance) == (0, 1, 1)


def test_popularity():
    # 64 clicks on 4 items, 16 each; 32, 16, 16 of 3 items: Gini 2 (16 + 32 + 96) / (3 * 64) - 4/3
    uneven = shop(clicked=lambda r: [1, 1, 2, 3][r])
    found = line("popularity, Gini", shop(), uneven)
    assert found.real == pytest.approx(0) and found.simulated == pytest.approx(1 / 6)
    slope = np.polyfit(np.log([1, 2, 3]), np.log([32, 16, 16]), 1)[0]
    assert line("popularity, Zipf", uneven, shop()).real == pytest.approx(slope)


def test_hour_of_day_needs_a_day():
    found = line("hour of day", shop(), shop(per_session=4))
    assert found.verdict == "n/a" and found.why == "a window covers 0.5 hours, needs a day"
    assert line("hour of day", shop(), shop()).real == 0
    log = shop()
    dated = Log.make(log.items, log.requests.with_columns(pl.col("ts").dt.truncate("1d")), log.exposures, log.meta)
    assert line("hour of day", shop(), dated).why == "the simulated log knows days alone"


# -- what is missing -------------------------------------------------------------------------------

MISSING = {
    "exposures": ("the simulated log has no lists that were shown", ["click rate", "list length"]),
    "clicks": ("the simulated log has no clicks", ["click rate", "clicks a request"]),
    "purchases": ("the simulated log has no purchases", ["purchases a request"]),
    "query": ("the simulated log has no queries", ["query length"]),
    "price": ("the simulated log has no prices", ["price paid", "prices a list"]),
}


def without(what: str) -> Log:
    """The shop without lists, clicks, purchases, queries or prices."""
    log = shop()
    columns = {"exposures": ["position"], "clicks": ["clicked"], "purchases": ["purchased", "price_paid"]}
    columns["price"] = ["price_shown", "price_paid"]
    exposures = log.exposures.drop(columns.get(what, []))
    if what == "exposures":
        exposures = exposures.filter("clicked")
    requests = log.requests.drop("query") if what == "query" else log.requests
    has = log.meta["has"] | {what: False}
    meta = log.meta | {"has": has, "label": "purchase" if what == "clicks" else "click"}
    return Log.make(log.items, requests, exposures, meta)


@pytest.mark.parametrize("what", MISSING)
def test_what_a_log_lacks_is_na_with_the_reason(what):
    why, names = MISSING[what]
    card = likeness(shop(), without(what))
    for name in names:
        assert (card.of(name).verdict, card.of(name).why) == ("n/a", why)
        assert card.of(name).distance is None
    assert any(line.startswith("n/a: ") and why in line and names[0] in line for line in card_table(card).below)
    both = likeness(without(what), without(what))
    assert both.of(names[0]).why == why.replace("the simulated", "the real and the simulated")


def test_logs_of_different_labels():
    card = likeness(without("purchases"), without("clicks"))
    assert card.of("repeats").why == "there are no clicks or purchases that both logs have"
    assert card.of("clicks a request").verdict == "n/a"


def test_too_few_answered_is_no_pass():
    answers = [Answer(str(i), "", "KS", "PASS") for i in range(ENOUGH - 1)]
    na = [Answer("x", "", "KS", "n/a")]
    assert Card("a", "b", (), (*answers, *na)).verdict == "too few answered"
    assert Card("a", "b", (), (*answers, Answer("y", "", "KS", "PASS"))).verdict == "PASS"
    assert Card("a", "b", (), (*answers, Answer("y", "", "KS", "look here"))).verdict == "look here"
    assert Card("a", "b", (), (Answer("y", "", "KS", "FAIL"), *na)).verdict == "FAIL"


def test_few_users_answer_nothing():
    found = line("price paid", shop(users=9), shop())
    assert found.why == "the real log has 36 values of 9 users, needs 30 of 10 users"


@pytest.mark.parametrize("who", ["real", "simulated"])
def test_a_last_window_without_requests(who):
    log = shop(name="tiny")
    few = log.requests.with_columns(window=pl.lit("W1"))
    empty = Log.make(log.items, few, log.exposures, log.meta)
    pair = (empty, shop()) if who == "real" else (shop(), empty)
    said = rf"the {who} log \(tiny\): needs at least 30 requests of the scenario in W3, its last window, found none"
    with pytest.raises(KarmafunnelError, match=said):
        likeness(*pair)
    with pytest.raises(KarmafunnelError, match=r"the real log \(tiny\): needs at least 30 .*, found 28"):
        likeness(shop(users=7, name="tiny"), shop())


def test_without_a_window_before_there_is_no_drift():
    log = shop()
    early = log.requests.with_columns(pl.col("window").replace("W2a", "W1"))
    card = likeness(Log.make(log.items, early, log.exposures, log.meta), shop())
    assert card.sizes[2] is None and all(a.drift is None for a in card.answers)
    assert card.verdict == "PASS"


# -- thresholds ------------------------------------------------------------------------------------


def test_verdicts():
    assert judge("KS", 0.05, 0.01, None) == ("PASS", 0.05)
    assert judge("KS", 0.06, 0.01, 0.02) == ("look here", 0.05)
    assert judge("KS", 0.11, 0.01, 0.02) == ("FAIL", 0.05)
    assert judge("KS", 0.11, 0.12, 0.02) == ("PASS", 0.12)
    assert judge("KS", 0.11, 0.02, 0.10) == ("look here", 0.10)
    # chance alone goes beyond .2: a small distance says nothing, a large one does
    assert judge("KS", 0.15, 0.21, None) == ("n/a", 0.21)
    assert judge("KS", 0.50, 0.21, None) == ("FAIL", 0.21)


def test_chance_is_the_distance_of_two_draws_of_users():
    # the difference of two means of n and m users of standard deviation 1: 2.58 sqrt(1/n + 1/m)
    values = np.random.default_rng(0).normal(size=400)

    def apart(a, b):
        return np.abs(a @ values / a.sum(axis=1) - b @ values / b.sum(axis=1))

    found = by_chance(apart, (400, 100), np.random.default_rng(1), 2000)
    assert found == pytest.approx(2.576 * values.std() * np.sqrt(1 / 400 + 1 / 100), rel=0.08)


# -- the classifier --------------------------------------------------------------------------------


def test_features_by_hand():
    real, _, _ = parts(shop(), shop())
    found = features(real)
    assert found["items a list"].tolist() == [4.0] * 64
    assert found["clicks"].tolist() == [1.0] * 64 and found["purchases"].sum() == 32
    assert found["position of the first click"][:16].tolist() == [1.0] * 16
    assert found["words a query"].tolist() == [2.0] * 64
    assert sorted(set(found["place in the session"].tolist())) == [0.0, 1.0]
    since = found["time since the last request"]
    assert np.isnan(since[:16]).all()
    assert since[16:32] == pytest.approx(np.log1p(600))
    assert len(set(found["price level"].tolist())) == 1


def test_a_feature_that_no_request_has():
    # every request is a user of its own: nobody has a request before
    log = shop(users=40)
    alone = Log.make(log.items, log.requests.with_columns(user_id=pl.col("request_id")), log.exposures, log.meta)
    mine, theirs, _ = parts(alone, alone)
    assert np.isnan(features(mine)["time since the last request"]).all()
    assert tell_apart(mine, theirs, np.random.default_rng(0)).auc.value <= 0.55


@cache
def world(seed: int = 0, **changed) -> Log:
    """A World on one catalogue."""
    items = generate(items=500, users=20, requests=20, seed=99).log
    meta = items.meta | {"has": {name: name in ("text", "price") for name in items.meta["has"]}}
    goods = Catalogue(items.items, meta)
    return generate(items=500, users=400, requests=2500, seed=seed, catalogue=goods, **changed).log


def half(log: Log, which: int) -> Log:
    """The log of every second user."""
    mine = log.requests.filter(pl.Series(log.user % 2 == which))
    exposures = log.exposures.join(mine.select("request_id"), on="request_id", how="semi", maintain_order="left")
    return Log.make(log.items, mine, exposures, log.meta)


@pytest.mark.slow
def test_requests_of_one_world_are_not_told_apart_and_others_are():
    mine, theirs, _ = parts(half(world(), 0), half(world(), 1))
    found = tell_apart(mine, theirs, np.random.default_rng(0))
    assert abs(found.auc.value - 0.5) < 1.5 * found.chance(np.random.default_rng(0))
    dear = world().exposures.with_columns(
        pl.when(pl.col("position") % 2 == 0).then(pl.col("price_shown") * 3).otherwise("price_shown").alias("price_shown")
    )
    mine, theirs, _ = parts(world(), Log.make(world().items, world().requests, dear, world().meta))
    found = tell_apart(mine, theirs, np.random.default_rng(0))
    assert found.auc.value > 0.8 and next(iter(found.importances)) in ("spread of prices", "price level")


# -- whole cards -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_halves_of_the_users_pass():
    card = likeness(half(world(), 0), half(world(), 1))
    assert card.verdict in ("PASS", "look here"), told(card)
    assert sum(a.verdict == "PASS" for a in card.answers) >= 14


@pytest.mark.slow
def test_another_seed_does_not_fail():
    card = likeness(world(0), world(1))
    assert card.verdict in ("PASS", "look here"), told(card)


def changed(**columns: pl.Expr) -> Log:
    log = world(1)
    return Log.make(log.items, log.requests, log.exposures.with_columns(**columns), log.meta)


TREATED = {
    # half of the clicks and purchases are lost; prices doubled; the order of each list turned round
    "rates": ({"clicked": pl.col("clicked") & (pl.col("position") % 2 == 0)}, {"click rate", "clicks a request"}),
    "prices": ({"price_shown": pl.col("price_shown") * 3}, {"price paid"}),
    "positions": ({"position": 25 - pl.col("position")}, {"clicks by position"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", TREATED)
def test_a_world_that_differs_fails_and_the_card_says_where(what):
    columns, fail = TREATED[what]
    if what == "rates":
        columns = columns | {"purchased": pl.col("purchased") & (pl.col("position") % 2 == 0)}
        columns |= {"price_paid": pl.when(pl.col("position") % 2 == 0).then("price_paid")}
    card = likeness(world(0), changed(**columns))
    assert card.verdict == "FAIL"
    assert fail <= {a.name for a in card.worst() if a.verdict == "FAIL"}
    assert any(sentence.startswith(f"{next(iter(fail))} (FAIL)") for sentence in told(card))


@pytest.mark.slow
def test_the_same_call_gives_the_same_card():
    assert likeness(world(0), world(1)).as_dict() == likeness(world(0), world(1)).as_dict()


# -- the order of funnels --------------------------------------------------------------------------


def test_swapped_pairs():
    a = np.array([0.1, 0.2, 0.3, 0.4])
    assert swapped(a, a)[0] == 0 and swapped(a, -a)[0] == 1
    assert swapped(a, np.array([0.2, 0.1, 0.3, 0.4]))[0] == 1 / 6  # one of six
    assert swapped(a, np.array([0.1, 0.1, 0.3, 0.4]))[0] == 0.5 / 6  # level in one alone


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of eight funnels of rising skill."""
    folder = tmp_path_factory.mktemp("runs")
    from karmafunnel.simulator.measure.run import Run

    return {f"skill {i}": Run.open(make_run(folder / str(i), skill=i / 2)) for i in range(FEWEST)}


def test_the_order_of_funnels(runs):
    same = answer(runs, runs, np.random.default_rng(0), "HR@5")
    assert (same.distance, same.simulated) == (0, 1)
    turned = dict(zip(runs, reversed(runs.values()), strict=True))
    other = answer(runs, turned, np.random.default_rng(0), "HR@5")
    assert other.verdict == "FAIL" and other.simulated < -0.7
    assert "8 funnels by HR@5; tau" in other.why
    few = dict(list(runs.items())[:7])
    assert answer(few, runs, np.random.default_rng(0)).why == "needs 8 funnels with Runs on both logs, found 7"
    with pytest.raises(KarmafunnelError, match="a mean over requests"):
        answer(runs, runs, np.random.default_rng(0), "AUC")


# -- the command -----------------------------------------------------------------------------------


def test_command_and_page(tmp_path):
    shop().write(tmp_path / "a")
    shop(clicked=lambda r: 1, name="<b>other</b>").write(tmp_path / "b")
    words = ["likeness", str(tmp_path / "a"), str(tmp_path / "b")]
    said = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "card.html")])
    assert said.exit_code == 0, said.output
    assert "FAIL: " in said.stdout and "clicks by position (FAIL)" in " ".join(said.stdout.split())
    assert "do not carry over, the order of funnels may. For the order" in " ".join(said.stdout.split())
    page = (tmp_path / "card.html").read_text()
    assert "&lt;b&gt;other" in page and "<b>other" not in page
    for heading in ("Line by line", "Where it differs", "Real and simulated"):
        assert heading in page
    told_as_json = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert told_as_json["verdict"] == "FAIL"
    assert told_as_json["sizes"]["real"] == {"requests": 64, "users": 16}
    assert {one["name"] for one in told_as_json["lines"]} >= {"click rate", "order of funnels"}
    said = CliRunner().invoke(main, ["likeness", str(tmp_path / "a"), str(tmp_path / "none")])
    assert said.exit_code == 1 and "needs a log folder" in said.output
    said = CliRunner().invoke(main, [*words, "--limit", "5"])
    assert said.exit_code == 1 and "--limit needs --funnels" in said.output


@pytest.mark.slow
def test_command_with_funnels(tmp_path):
    world(0).write(tmp_path / "a")
    world(1).write(tmp_path / "b")
    words = ["likeness", str(tmp_path / "a"), str(tmp_path / "b"), "--funnels", "--limit", "200", "--json"]
    found = json.loads(CliRunner().invoke(main, [*words, "--no-cache"]).stdout)
    order = next(one for one in found["lines"] if one["name"] == "order of funnels")
    assert order["verdict"] in ("PASS", "look here", "n/a") and "13 funnels by HR@10" in order["why"]


@pytest.mark.slow
def test_tolerances_cover_every_kind(tmp_path):
    card = likeness(world(0), world(1))
    assert {a.kind for a in card.answers} == set(TOLERANCE)
    assert all(fall >= 0.001 for _, fall in given_away(card))
    assert write_html(card, tmp_path / "card.html").read_text().count('class="plot"') >= 16


def test_what_is_popular_is_chance_too():
    """Draws of users count anew which items are popular: without some users it is another one."""
    users = 40
    rows, requests = [], []
    for u in range(users):
        for window, day, item in (("W1", 0, int(u > 20)), ("W3", 60, int(u % 3 > 0))):
            requests.append((f"{window}-{u}", f"u{u}", START + timedelta(days=day, seconds=u), window))
            rows.append((f"{window}-{u}", f"i{item}", 1, window == "W1"))
    frame = pl.DataFrame(requests, schema=["request_id", "user_id", "ts", "window"], orient="row").sort("ts")
    shown = pl.DataFrame(rows, schema=["request_id", "item_id", "position", "clicked"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(4)]})
    log = Log.make(items, frame, shown, {"name": "two", "label": "click", "catalogue": "published"})
    mine, line = parts(log, log)[0], PopularShown()
    told = line.ready(mine)  # item 0 is popular: 21 users wanted it in W1, 19 item 1
    scale = line.scale([told, told])
    draw = line.drawn(mine, line.sums(told, users, scale), scale, np.random.default_rng(0))
    weights = np.ones((2, users), dtype=int)
    weights[1, :5] = 0  # item 1 is popular
    assert draw(weights).tolist() == [[26, 14], [sum(u % 3 == 0 for u in range(5, 40)), sum(u % 3 > 0 for u in range(5, 40))]]
