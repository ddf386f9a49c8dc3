"""Off-policy estimators: against loops written from the papers, the truth of a small bandit, and
bad input.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.simulator.measure.intervals import Ratio, Total, interval, resample
from karmafunnel.simulator.measure.run import Run
from karmafunnel.simulator.offpolicy import reading
from karmafunnel.simulator.offpolicy.estimate_page import ENOUGH, estimates_figure
from karmafunnel.simulator.offpolicy.estimate_tables import (
    NARROW,
    advice,
    estimates_table,
    shown_rows,
    warnings,
)
from karmafunnel.simulator.offpolicy.estimators import (
    DM,
    DR,
    ESTIMATORS,
    IPS,
    Logged,
    ReplayMethod,
)
from karmafunnel.simulator.offpolicy.evaluate import FEWEST, evaluate
from karmafunnel.simulator.offpolicy.support import Support
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import Recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.report.table import cell_of
from karmafunnel.stages.context import Context
from karmafunnel.stages.explore import Explore
from karmafunnel.stages.policies import (
    BestOrRandom,
    Candidates,
    PlackettLuce,
    Policy,
    policy_of,
)
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.stage import Funnel
from shop import START

SLOTS, ITEMS, USERS = 3, 5, 12


def made(n: int = 400, seed: int = 0, slots: int = SLOTS) -> Logged:
    """Random numbers in place of a log."""
    rng = np.random.default_rng(seed)
    step = rng.gamma(2.0, 0.5, (n, slots))
    prefix = np.cumprod(step, axis=1)
    weights = {
        "list": np.repeat(prefix[:, -1:], slots, axis=1),
        "slot": rng.gamma(2.0, 0.5, (n, slots)),
        "prefix": prefix,
    }
    reward, q, base = (rng.random((n, slots)) for _ in range(3))
    return Logged(reward, weights, rng.integers(USERS, size=n), q, base, rng.random(n))


def loops(kind: str, x: Logged) -> float:
    """The estimators as sums over requests and slots."""
    n, slots = x.reward.shape
    assert x.predicted is not None and x.expected is not None and x.direct is not None
    total = 0.0
    for i in range(n):
        for s in range(slots):
            whole, slot, prefix = (x.weights[k][i, s] for k in ("list", "slot", "prefix"))
            before = x.weights["prefix"][i, s - 1] if s else 1.0
            wrong = x.reward[i, s] - x.predicted[i, s]
            base = before * x.expected[i, s]
            total += {
                "IPS": whole * x.reward[i, s],
                "clipped IPS": min(whole, 10.0) * x.reward[i, s],
                "SNIPS": whole * x.reward[i, s] / x.weights["list"][:, 0].mean(),
                "IIPS": slot * x.reward[i, s],
                "SNIIPS": slot * x.reward[i, s] / x.weights["slot"][:, s].mean(),
                "RIPS": prefix * x.reward[i, s],
                "SNRIPS": prefix * x.reward[i, s] / x.weights["prefix"][:, s].mean(),
                "replay method": x.reward[i, s] * (whole > 0) / (x.weights["list"][:, 0] > 0).mean(),
                "DM": x.direct[i] / slots,
                "DR": prefix * wrong + base,
                "SNDR": prefix * wrong / x.weights["prefix"][:, s].mean()
                + base / (x.weights["prefix"][:, s - 1].mean() if s else 1.0),
                "switch-DR": prefix * wrong * (prefix <= 10.0) + base,
            }[kind] / n
    return total


@pytest.mark.parametrize("slots", [1, SLOTS])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_are_what_their_papers_say(name: str, slots: int) -> None:
    logged = made(slots=slots)
    logged.weights["list"][::7] = 0.0
    assert ESTIMATORS[name].of(logged).value == pytest.approx(loops(name, logged), rel=1e-12)


def test_with_one_slot_there_is_one_ips() -> None:
    logged = made(slots=1)
    logged = Logged(logged.reward, dict.fromkeys(("list", "slot", "prefix"), logged.weights["slot"]), logged.cluster)
    for normalised in (False, True):
        found = {IPS(kind, normalised=normalised).of(logged).value for kind in ("list", "slot", "prefix")}
        assert len(found) == 1


def plackett_luce(utility: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Of each list (m, k), the probability of each item given those above it: (m, k)."""
    e = np.exp(utility)
    out = np.empty(lists.shape)
    for row, items in enumerate(lists):
        left = e.sum()
        for s, item in enumerate(items):
            out[row, s] = e[item] / left
            left -= e[item]
    return out


def cascade(noise: Callable[[], float], attract: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Rewards of a list under a cascade: nothing is earned below the first click."""
    out = np.zeros(len(items))
    for s, item in enumerate(items):
        if noise() < attract[item]:
            out[s] = 1.0
            break
    return out


def test_estimates_of_a_small_cascade_cover_its_truth() -> None:
    """Every list of two of four items is known, so that the truth is: weights of lists and of
    prefixes and cascade-DR with a wrong model find it, weights of slots need not.
    """
    rng = np.random.default_rng(1)
    items, slots, n = 4, 2, 6000
    attract = np.array([0.7, 0.1, 0.4, 0.2])
    shown, wanted = np.array([0.0, 0.8, -0.5, 0.3]), np.array([1.0, -1.0, 0.5, 0.0])
    lists = np.array(list(permutations(range(items), slots)))
    step_b, step_e = plackett_luce(shown, lists), plackett_luce(wanted, lists)
    prob_b, prob_e = np.cumprod(step_b, axis=1), np.cumprod(step_e, axis=1)
    truth = float((prob_e[:, -1] * (1 - np.prod(1 - attract[lists], axis=1))).sum())
    picked = rng.choice(len(lists), size=n, p=prob_b[:, -1] / prob_b[:, -1].sum())
    reward = np.array([cascade(rng.random, attract, lists[i]) for i in picked])
    prefix = (prob_e / prob_b)[picked]
    # a wrong model: of a slot and those below it, for any item of the policy's choice
    guess = rng.random((items, slots))
    e = np.exp(wanted)
    expected = np.empty((n, slots))
    for s in range(slots):
        free = np.ones((n, items), dtype=bool)
        if s:
            free[np.arange(n), lists[picked, 0]] = False
        chance = np.where(free, e, 0.0)
        expected[:, s] = (chance / chance.sum(axis=1, keepdims=True)) @ guess[:, s]
    predicted = np.stack([guess[lists[picked, s], s] for s in range(slots)], axis=1)
    weights = {"list": np.repeat(prefix[:, -1:], slots, axis=1), "prefix": prefix}
    logged = Logged(reward, weights, np.arange(n) % 500, predicted, expected)
    names = ("IPS", "SNIPS", "RIPS", "SNRIPS", "DR", "SNDR")
    estimates = [ESTIMATORS[name].of(logged) for name in names]
    for name, samples in zip(names, resample(estimates, 500), strict=True):
        low, high = interval(samples)
        assert low is not None and high is not None
        assert low < truth < high, name
        assert high - low < 0.1
    # without the correction the wrong model is far off
    assert abs(expected.sum(axis=1).mean() - truth) > 0.05


def test_the_bootstrap_draws_numerators_and_denominators_together() -> None:
    logged = made()
    estimate = ESTIMATORS["SNIIPS"].of(logged)
    (samples,) = resample([estimate], USERS, resamples=50, seed=3)
    rng = np.random.default_rng([3, USERS])
    for sample in samples[:5]:
        count = np.bincount(rng.integers(0, USERS, USERS), minlength=USERS)
        rows = np.repeat(np.arange(len(logged.cluster)), count[logged.cluster])
        part = Logged(
            logged.reward[rows], {"slot": logged.weights["slot"][rows]}, logged.cluster[rows]
        )
        assert sample == pytest.approx(ESTIMATORS["SNIIPS"].of(part).value, rel=1e-10)
    one = Ratio(np.ones(4), np.full(4, 2.0), np.zeros(4, dtype=int))
    assert Total((one, one)).value == 1.0 and Total((one, one)).n == 4


def test_support_tells_how_many_requests_an_estimate_rests_on() -> None:
    assert Support.of(np.ones(100), np.zeros(100)).effective == pytest.approx(100)
    one = Support.of(np.r_[np.zeros(99), 50.0], np.full(100, 0.5))
    assert one.effective == pytest.approx(1) and one.largest == 1.0 and one.mean == 0.5
    with pytest.raises(KarmafunnelError, match=r"needs an effective sample size of 10.*50% of what"):
        one.check("ope")
    nothing = Support.of(np.zeros(5), np.ones(5))
    assert nothing.effective == 0.0 and nothing.largest == 0.0
    with pytest.raises(KarmafunnelError, match="found 0 of 5 requests"):
        nothing.check("ope")


def test_bad_input() -> None:
    logged = made()
    bare = Logged(logged.reward, {"slot": logged.weights["slot"]}, logged.cluster)
    for estimator in (DM(), DR()):
        with pytest.raises(KarmafunnelError, match="needs a model of the reward, found none"):
            estimator.of(bare)
    for estimator in (IPS(), ReplayMethod()):
        with pytest.raises(KarmafunnelError, match="needs weights of each list, found slot"):
            estimator.of(bare)
    for wrong, message in (
        (lambda: IPS("page"), "weight needs one of"),
        (lambda: IPS(clip=0.0), "clip needs a number above 0"),
        (lambda: IPS(clip=float("nan")), "clip needs"),
        (lambda: IPS(normalised=1), "normalised needs True or False"),
        (lambda: DR(switch=-1.0), "switch needs"),
        (lambda: DR(clip="10"), "clip needs"),
    ):
        with pytest.raises(KarmafunnelError, match=message):
            wrong()
    for value in ESTIMATORS.values():
        assert eval(repr(value)) == value


POLICIES = [PlackettLuce(), PlackettLuce(0.1), BestOrRandom(), BestOrRandom(0.3), BestOrRandom(1.0)]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_lists_of_a_policy_have_all_probability(policy: Policy) -> None:
    """Every list of three of five candidates, and of all three where there are no more."""
    for items in (5, 3):
        lists = np.array(list(permutations(range(items), 3)))
        score = np.sort(np.random.default_rng(0).normal(size=items))[::-1]
        score = np.r_[score, np.full(5 - items, -np.inf)]
        given = Candidates(np.tile(score, (len(lists), 1)), lists, np.ones(lists.shape, dtype=bool))
        steps = policy.steps(given)
        assert steps.prod(axis=1).sum() == pytest.approx(1.0)
        if isinstance(policy, PlackettLuce):
            slow = plackett_luce(score / policy.temperature, lists)
            assert steps == pytest.approx(slow, rel=1e-9)
        else:
            best = int(lists.tolist().index([0, 1, 2]))
            left = np.arange(items, items - 3, -1)
            explored = policy.exploration
            assert steps[best] == pytest.approx(explored / left + 1 - explored)
        worth = np.random.default_rng(1).random((len(lists), 5))
        mean = policy.expected(given, worth)
        # by the lists that share a prefix
        for row, one in enumerate(lists):
            for slot in range(3):
                same = [i for i, x in enumerate(lists) if (x[:slot] == one[:slot]).all()]
                choice = {int(lists[i, slot]): steps[i, slot] for i in same}
                wanted = sum(p * worth[row, item] for item, p in choice.items())
                assert mean[row, slot] == pytest.approx(wanted)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_lists_are_drawn_as_often_as_their_probability(policy: Policy) -> None:
    rng, n = np.random.default_rng(4), 20_000
    score = np.array([1.0, 0.6, 0.5, -np.inf])
    drawn, steps = policy.draw(np.tile(score, (n, 1)), rng.random((n, 2)))
    told = Candidates(np.tile(score, (n, 1)), drawn, np.ones(drawn.shape, dtype=bool))
    assert steps == pytest.approx(policy.steps(told), rel=1e-12)
    lists = np.array(list(permutations(range(3), 2)))
    given = Candidates(np.tile(score, (6, 1)), lists, np.ones(lists.shape, dtype=bool))
    for one, chance in zip(lists, policy.steps(given).prod(axis=1), strict=True):
        share = (drawn == one).all(axis=1).mean()
        assert share == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / n) + 1e-12)
    long, steps = policy.draw(score[None], rng.random((1, 4)))
    assert sorted(long[0].tolist()) == [-1, 0, 1, 2] and long[0, 3] == -1 and steps[0, 3] == 1.0


def test_items_that_are_no_candidates_and_short_lists() -> None:
    score = np.array([[2.0, 1.0, 0.0], [1.0, -np.inf, -np.inf]])
    place, there = np.array([[-1, 0], [0, -1]]), np.array([[True, True], [True, False]])
    for policy in POLICIES:
        steps = policy.steps(Candidates(score, place, there))
        assert steps[0, 0] == 0.0 and steps[0, 1] > 0.2 and steps[1].tolist() == [1.0, 1.0]
        assert policy.expected(Candidates(score, place, there), np.ones((2, 3)))[1, 1] == 0.0
        drawn, chance = policy.draw(np.zeros((2, 0)), np.full((2, 3), 0.5))
        assert (drawn == -1).all() and (chance == 1.0).all()
    for wrong in (lambda: PlackettLuce(0.0), lambda: BestOrRandom(1.5), lambda: BestOrRandom(-0.1)):
        with pytest.raises(KarmafunnelError, match=r"temperature|exploration"):
            wrong()


# -- a Run on a log --------------------------------------------------------------------------------

WORTH = np.array([0.5, 0.4, 0.3, 0.2, 0.1, 0.05])  # P(click) of each item, wherever it stands


def uniform_log(slots: int = 2, n: int = 4000) -> Log:
    """Lists of items drawn at random, each list as often as the others."""
    rng = np.random.default_rng(3)
    shown = np.argsort(rng.random((n, len(WORTH))), axis=1)[:, :slots]
    clicked = rng.random(shown.shape) < WORTH[shown]
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
            "request_id": np.repeat(ids, slots),
            "item_id": [f"i{item}" for item in shown.ravel()],
            "position": np.tile(np.arange(slots) + 1, n),
            "clicked": clicked.ravel(),
            "price_shown": 1.0 + shown.ravel(),
            "propensity": np.tile(1 / (len(WORTH) - np.arange(slots)), n),
        }
    )
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(len(WORTH))]})
    has = dict.fromkeys(("clicks", "exposures", "propensity", "users", "price"), True)
    meta = {"name": "uniform", "label": "click", "catalogue": "published", "has": has}
    return Log.make(items, requests, exposures, meta)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Log, Run]:
    log = uniform_log()
    recipe = Recipe("popular", "popular", Funnel((Popular(k=6),)), {}, "click")
    folder = tmp_path_factory.mktemp("runs") / "popular"
    return log, Run.open(replay(recipe, log, folder, RunOptions()))


def true_value(log: Log, run: Run, policy: Policy, slots: int) -> float:
    """What a request earns on average, over all lists that the policy may draw."""
    lists = reading.lists_of(run, log, "clicks")
    score = reading.choice_of(run, log, lists).candidates.score
    item = reading.choice_of(run, log, lists).item
    columns = np.array(list(permutations(range(len(WORTH)), slots)))
    value = 0.0
    for row, own in zip(score, item, strict=True):
        given = Candidates(
            np.tile(row, (len(columns), 1)), columns, np.ones(columns.shape, dtype=bool)
        )
        value += float(policy.steps(given).prod(axis=1) @ WORTH[own[columns]].sum(axis=1))
    return value / len(score)


@pytest.mark.parametrize("slots", [1, 2])
def test_estimates_of_a_run_cover_the_truth(logged: tuple[Log, Run], slots: int) -> None:
    log, run = logged
    policy = PlackettLuce(300.0)  # counts of clicks are large
    truth = true_value(log, run, policy, slots)
    found = evaluate(run, log, policy, slots=slots)
    assert found.n == 800 and found.support["list"].mean == pytest.approx(1, abs=0.2)
    assert truth > found.logged["value"] + 0.05  # another policy than the log's
    rows = {row["estimator"]: row for row in found.rows}
    said = {"IPS", "clipped IPS", "SNIPS", "DR", "SNDR", "switch-DR"}  # DM is what a model says
    assert said | {"DM", "replay method"} <= rows.keys()
    assert ("RIPS" in rows) == (slots == 2)  # of one slot it says what IPS says
    for name in said:
        row = rows[name]
        assert row["low"] < truth < row["high"], name
        assert row["difference"] == pytest.approx(row["value"] - found.logged["value"])
        assert row["d_low"] < row["difference"] < row["d_high"]
    if slots == 2:
        assert "the probability of each slot alone" in rows["IIPS"]["refused"]
    # what the log did, and so its own value
    same = evaluate(run, log, BestOrRandom(1.0), slots=slots)
    for row in same.rows:
        if not row["refused"] and row["estimator"] not in ("DM", "DR", "SNDR", "switch-DR"):
            assert row["value"] == pytest.approx(same.logged["value"])


def test_estimates_that_nothing_carries_are_refused(logged: tuple[Log, Run]) -> None:
    log, run = logged
    weighed = {name: x for name, x in ESTIMATORS.items() if name != "DM"}
    other = Log.make(
        log.items, log.requests, log.exposures.with_columns(propensity=pl.lit(0.5)), log.meta
    )
    with pytest.raises(KarmafunnelError, match=r"needs the log that the Run replayed \(uniform, "):
        evaluate(run, other, BestOrRandom(0.5))
    few = Run.only(run, log.requests["request_id"].tail(12))
    with pytest.raises(KarmafunnelError, match="needs an effective sample size of 10"):
        evaluate(few, log, BestOrRandom(), estimators=weighed)
    for change, message in (
        ({"propensity": False}, "needs the probability with which each item was shown, found none in this log"),
        ({"exposures": False}, "needs lists that were shown"),
    ):
        silent = Log.make(
            log.items, log.requests, log.exposures, log.meta | {"has": log.meta["has"] | change}
        )
        with pytest.raises(KarmafunnelError, match=message):
            reading.lists_of(run, silent, "clicks")
    holes = Log.make(
        log.items,
        log.requests,
        log.exposures.with_columns(propensity=pl.lit(None, pl.Float64)),
        log.meta,
    )
    with pytest.raises(KarmafunnelError, match="propensity needs a number above 0, at most 1, in every row"):
        reading.lists_of(run, holes, "clicks")
    with pytest.raises(KarmafunnelError, match="purchases"):
        reading.lists_of(run, log, "purchases")
    money = reading.lists_of(run, log, "money")
    clicks = reading.lists_of(run, log, "clicks")
    assert money.reward == pytest.approx(clicks.reward * (1.0 + clicks.item))


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({"slots": -1}, "slots needs a whole number from 1"),
        ({"slots": 1.5}, "slots needs a whole number from 1"),
        ({"resamples": 0}, "resamples needs a whole number from 1"),
        ({"seed": -1}, "seed"),
        ({"reward": "sales"}, "reward needs one of"),
        ({"propensity": "guessed"}, "propensity needs log or estimated or clicks, found 'guessed'"),
        ({"policy": 0.5}, "policy needs a policy such as"),
    ],
)
def test_bad_arguments(given: dict[str, object], needed: str, logged: tuple[Log, Run]) -> None:
    log, run = logged
    with pytest.raises(KarmafunnelError, match=needed):
        evaluate(run, log, **{"policy": BestOrRandom(0.5), **given})


@pytest.mark.parametrize("propensity", ["log", "clicks"])
def test_logs_that_cannot_judge_are_refused(propensity: str, tmp_path: Path) -> None:
    log = uniform_log(slots=2, n=600)
    one = pl.lit("u")
    last = pl.col("request_id") == "r599"
    rare = log.exposures.with_columns(clicked=pl.col("clicked") & ~late(log) | last)
    none = log.exposures.with_columns(clicked=pl.col("clicked") & ~late(log))
    recipe = Recipe("popular", "popular", Funnel((Popular(k=6),)), {}, "click")
    for name, requests, exposures, needed in (
        ("one", log.requests.with_columns(user_id=one), log.exposures, "at least 10 users.* found 1"),
        ("none", log.requests, none, "lists that earned clicks, found none among 120"),
        ("rare", log.requests, rare, "rewards of several users, .* found those of 1"),
    ):
        if name == "rare" and propensity == "clicks":  # by a model of the other windows
            continue
        made = Log.make(log.items, requests, exposures, log.meta)
        run = Run.open(replay(recipe, made, tmp_path / name, RunOptions()))
        with pytest.raises(KarmafunnelError, match=needed):
            evaluate(run, made, BestOrRandom(1.0), propensity=propensity)


def late(log: Log) -> pl.Expr:
    """Exposures of W3."""
    return pl.col("request_id").is_in(log.request_ids[log.requests_in("W3")].tolist())


def test_slots_without_a_candidate_are_told(tmp_path: Path) -> None:
    log = uniform_log(slots=2, n=2000)
    recipe = Recipe("one", "one", Funnel((Popular(k=1),)), {}, "click")
    run = Run.open(replay(recipe, log, tmp_path / "run", RunOptions()))
    found = evaluate(run, log, BestOrRandom())
    assert found.unfilled == 0.5
    assert "no candidate for 50.0% of the slots" in " ".join(warnings(found))
    empty = Run(run.path, run.meta, run.lazy | {"slates": run.lazy["slates"].head(0)})
    with pytest.raises(KarmafunnelError, match="needs candidates to draw from, found none in 400"):
        evaluate(empty, log, BestOrRandom())
    told = evaluate(run, log, BestOrRandom(), slots=1)
    assert told.unfilled == 0 and "no candidate for" not in " ".join(warnings(told))


def test_the_command(tmp_path: Path) -> None:
    uniform_log(slots=1, n=1000).write(tmp_path / "log")
    (tmp_path / "popular.py").write_text(
        "from karmafunnel.stages.recall import Popular\nfunnel = Popular(k=6)\n", encoding="utf-8"
    )
    def call(*words: str) -> Result:
        return CliRunner().invoke(main, [str(word) for word in words])

    log, run = str(tmp_path / "log"), str(tmp_path / "run")
    assert call("replay", str(tmp_path / "popular.py"), log, "--out", run, "--no-cache").exit_code == 0
    told = call("ope", run, "--log", log, "--exploration", "0.5")
    assert told.exit_code == 0 and "effective" in told.output and "SNIPS" in told.output
    as_json = json.loads(call("ope", run, "--log", log, "--temperature", "50", "--json").stdout)
    assert as_json["policy"] == "PlackettLuce(50.0)" and as_json["requests"] == 200
    page = tmp_path / "ope.html"
    drawn = call("ope", run, "--log", log, "--exploration", "0.5", "--out", str(page))
    assert drawn.exit_code == 0 and "What each estimator says" in page.read_text()
    refused = call("ope", run, "--log", log, "--out", log)
    assert refused.exit_code != 0 and (tmp_path / "log" / "log.json").exists()
    both = call("ope", run, "--log", log, "--temperature", "1", "--exploration", "1")
    assert both.exit_code != 0 and "both of them" in both.output + both.stderr


def test_estimates_are_drawn_beside_what_they_rest_on(logged: tuple[Log, Run]) -> None:
    log, run = logged
    found = evaluate(run, log, PlackettLuce(300.0), slots=2)
    plot = estimates_figure(found, "clicks", "requests")
    points, bars = plot["data"]
    names = plot["layout"]["yaxis"]["ticktext"]
    rows = {row["estimator"]: row for row in found.rows}
    shown = [names[i] for i in points["y"]]
    assert names == list(rows) and shown == [name for name in names if not rows[name]["refused"]]
    assert points["x"] == [rows[name]["value"] for name in shown]
    at = shown.index("DR")
    ends = points["x"][at] - points["error_x"]["arrayminus"][at], points["x"][at] + points["error_x"]["array"][at]
    assert ends == pytest.approx((rows["DR"]["low"], rows["DR"]["high"]))
    effective = dict(zip((names[i] for i in bars["y"]), bars["x"], strict=True))
    assert effective["IPS"] == found.support["list"].effective
    assert effective["DR"] == found.support["prefix"].effective and "DM" not in effective
    colours = dict(zip(bars["x"], bars["marker"]["color"], strict=True))
    assert all((colour == ENOUGH) == (x >= NARROW) for x, colour in colours.items())
    assert plot["layout"]["shapes"][0]["x0"] == found.logged["value"]


@pytest.mark.parametrize(
    ("effective", "mean", "begins"),
    [(400.0, 1.0, "Read DR: "), (60.0, 0.9, "Read DR, as a hint: it rests on 60 effective requests"),
     (400.0, 0.2, "Trust no row: the mean weight is 0.2"), (2.0, 0.01, "This log cannot tell: ")],
)  # fmt: skip
def test_the_first_line_says_what_to_read(
    logged: tuple[Log, Run], effective: float, mean: float, begins: str
) -> None:
    found = evaluate(logged[1], logged[0], PlackettLuce(300.0), slots=2)
    support = {kind: replace(one, effective=effective, mean=mean) for kind, one in found.support.items()}
    rows = [
        row | {"refused": "few"} if effective < FEWEST and row["estimator"] != "DM" else row
        for row in found.rows
    ]
    told = replace(found, support=support, rows=rows)
    assert advice(told).startswith(begins)
    assert any("mean weight is far" in one for one in warnings(told)) == (mean < 0.7)
    table = estimates_table(told, PlackettLuce(300.0), "clicks")
    shown = {cell_of(row[0]).flat: row for row in table.rows}
    assert shown.keys() == {"the log itself"} | {row["estimator"] for row in rows if not row["refused"]}
    assert cell_of(shown["DM"][1]).small == "" != cell_of(shown["the log itself"][1]).small
    assert all(row["low"] is None for row in shown_rows(told) if row["estimator"] == "DM")


# -- a funnel that draws its lists -----------------------------------------------------------------


def test_what_prints_as_a_policy_is_one() -> None:
    for policy in POLICIES:
        assert policy_of(repr(policy)) == policy
    for wrong in ("PlackettLuce", "PlackettLuce(-1.0)", "open('x')", "Popular(k=3)", "BestOrRandom(0.3", ""):
        with pytest.raises(KarmafunnelError, match=r"policy|temperature"):
            policy_of(wrong)


def test_lists_are_drawn_by_seed_and_request_alone() -> None:
    log = uniform_log(n=1500)
    funnel = Funnel((Popular(k=6),)) >> Explore(PlackettLuce(300.0), k=3)
    fitted = funnel.fit(Context(log, {}, "click"))
    requests = log.requests_in("W3")
    popular, drawn = (step.slate for step in fitted.run(requests))
    column = "explore.propensity"
    assert drawn.height == 3 * len(requests)
    # other chunks, and one request alone, the same bytes
    parts = [fitted.run(requests[a:b])[-1].slate for a, b in ((0, 1), (1, 100), (100, len(requests)))]
    assert pl.concat(parts).equals(drawn)
    other = replace_seed(funnel, log, 1).run(requests)[-1].slate
    assert 0.05 < (other["item"] == drawn["item"]).mean() < 0.9
    # as often as the policy says, and with its propensity
    score = popular.sort("request", "rank")["score"].to_numpy().reshape(-1, 6)
    order = popular.sort("request", "rank")["item"].to_numpy().reshape(-1, 6)
    shown = drawn.sort("request", "rank")["item"].to_numpy().reshape(-1, 3)
    place = (shown[:, :, None] == order[:, None, :]).argmax(axis=2)
    steps = PlackettLuce(300.0).steps(Candidates(score.astype(float), place, np.ones(place.shape, bool)))
    told = drawn.sort("request", "rank")[column].to_numpy().reshape(-1, 3)
    assert told == pytest.approx(steps, rel=1e-6)
    chance = PlackettLuce(300.0).choice(score.astype(float), np.ones(score.shape, bool))
    first = np.bincount(place[:, 0], minlength=6) / len(place)
    assert first == pytest.approx(chance.mean(axis=0), abs=4 * np.sqrt(0.2 * 0.8 / len(place)))


def replace_seed(funnel: Funnel, log: Log, seed: int):
    return funnel.fit(Context(log, {}, "click", seed=seed))


def test_the_policy_of_a_run_is_that_of_its_funnel(tmp_path: Path) -> None:
    log = uniform_log(n=2000)
    log.write(tmp_path / "log")
    text = (
        "from karmafunnel.stages.explore import Explore\n"
        "from karmafunnel.stages.policies import PlackettLuce\n"
        "from karmafunnel.stages.recall import Popular\n"
    )
    (tmp_path / "explore.py").write_text(
        f"{text}funnel = Popular(k=6) >> Explore(PlackettLuce(300.0), k=2)\n", encoding="utf-8"
    )
    (tmp_path / "popular.py").write_text(f"{text}funnel = Popular(k=6)\n", encoding="utf-8")

    def call(*words: object) -> Result:
        return CliRunner().invoke(main, [str(word) for word in words])

    for name in ("explore", "popular"):
        out = tmp_path / f"run-{name}"
        made = call("replay", tmp_path / f"{name}.py", tmp_path / "log", "--out", out, "--no-cache")
        assert made.exit_code == 0, made.output
    run = tmp_path / "run-explore"
    slates = Run.open(run).slates
    drawn = slates.filter(pl.col("stage").cast(str) == "explore")
    assert drawn["propensity"].is_between(0, 1, closed="right").all()
    assert slates.filter(pl.col("stage").cast(str) == "recall")["propensity"].is_null().all()
    assert "propensity" not in Run.open(tmp_path / "run-popular").slates.columns
    words = "ope", run, "--log", tmp_path / "log", "--json"
    own = json.loads(call(*words).stdout)
    assert own["policy"] == "PlackettLuce(300.0)"
    # what the same candidates and policy give by flags
    flags = call("ope", tmp_path / "run-popular", *words[2:], "--temperature", "300")
    assert json.loads(flags.stdout)["rows"] == own["rows"]
    assert json.loads(call(*words, "--temperature", "300").stdout)["rows"] == own["rows"]
    refused = call(*words, "--exploration", "0.5")
    assert refused.exit_code == 1 and "that of the Run's last stage, PlackettLuce(300.0)" in refused.stderr
    # drawing before the end
    meta = json.loads((run / "run.json").read_text())
    meta["stages"] = [meta["stages"][1], meta["stages"][0]]
    turned = Run(run, meta, Run.open(run).lazy)
    with pytest.raises(KarmafunnelError, match="whose last stage alone draws"):
        reading.own_policy(turned)
