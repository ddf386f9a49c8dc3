"""Statistics of experiments: error rates over repetitions, loops written from the papers, and bad
input.
"""

import math
import time

import numpy as np
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.simulator.experiment.effects import (
    Effect,
    Outcomes,
    always_valid,
    daily,
    effect,
    half_widths,
)
from karmafunnel.simulator.experiment.interleaving import (
    Balanced,
    Interleaved,
    TeamDraft,
    preference,
    running,
    scores,
)
from karmafunnel.simulator.experiment.power import Plan
from karmafunnel.simulator.experiment.split import SRM_LEVEL, SampleRatio, Split
from karmafunnel.simulator.measure.intervals import Ratio, resample
from scipy import stats


def binomial(n: int, p: float, mass: float = 0.999) -> tuple[float, float]:
    """Shares that n draws with probability p stay within."""
    return tuple(stats.binom.ppf([(1 - mass) / 2, (1 + mass) / 2], n, p) / n)


def money(rng: np.random.Generator, n: int, visits: bool = False) -> Outcomes:
    """Skewed money of n users, a fifth of whom buy: with `visits` by visit; and money before."""
    habit = rng.gamma(0.5, 2.0, n)
    per = 1.0 + rng.poisson(3.0, n)
    now, before = (rng.poisson(0.05 * habit * per) * rng.lognormal(2.0, 0.5, n) for _ in range(2))
    return Outcomes(now, per, before, per) if visits else Outcomes(now, before=before)


def halves(x: Outcomes, rng: np.random.Generator, share: float = 0.5) -> tuple[Outcomes, Outcomes]:
    treated = rng.random(len(x)) < share
    return x.where(~treated), x.where(treated)


# -- split -----------------------------------------------------------------------------------------


def test_a_split_is_the_same_every_time_and_as_typed() -> None:
    split = Split("a search", shares=(0.2, 0.3, 0.5))
    assert repr(split) == "Split(salt='a search', shares=(0.2, 0.3, 0.5))"
    assert split == Split("a search", np.array([0.2, 0.3, 0.5]))
    # pinned: a user never changes arms, whatever machine asks
    assert Split("pinned").arms(np.arange(12)).tolist() == PINNED
    assert Split("pinned").arms(np.arange(12).astype(str)).tolist() == PINNED
    users = np.array([5, 3, 5, 8, 3])
    arms = split.arms(users)
    assert arms[0] == arms[2] and arms[1] == arms[4]
    assert split.arms(np.array([], dtype=np.int64)).shape == (0,)
    assert Split("x").arms(np.array(["ä", "\ud800", ""], dtype=object)).shape == (3,)


PINNED = [1, 0, 1, 1, 0, 0, 0, 0, 1, 0, 1, 1]  # whether BLAKE2b of "pinned\0" + id is in the upper half


def test_shares_are_as_asked_and_splits_are_independent() -> None:
    users = np.arange(50_000)
    a, b = Split("a", (0.2, 0.3, 0.5)), Split("b", (0.1, 0.9))
    arms, others = a.arms(users), b.arms(users)
    assert not a.check(arms).mismatch and not b.check(others).mismatch
    table = np.histogram2d(arms, others, bins=(3, 2))[0]
    assert stats.chi2_contingency(table).pvalue > 0.001
    # neighbours and the order of ids do not matter either
    pairs = np.histogram2d(arms[:-1], arms[1:], bins=(3, 3))[0]
    assert stats.chi2_contingency(pairs).pvalue > 0.001
    assert np.array_equal(a.arms(users[::-1]), arms[::-1])


@pytest.mark.parametrize(
    ("users", "shares"), [(300, (0.5, 0.5)), (1_500, (0.1, 0.2, 0.7)), (30_000, (0.1, 0.2, 0.7))]
)
def test_a_mismatch_is_reported_at_its_level(users: int, shares: tuple[float, ...]) -> None:
    rng = np.random.default_rng(3)
    counts = rng.multinomial(users, shares, size=(tested := 400))
    p = np.array([SampleRatio.of(c, shares).p for c in counts])
    for level in (0.05, 0.01):
        assert (p < level).mean() <= binomial(tested, level)[1]
    if users > 10_000:
        assert (p < 0.05).mean() >= binomial(tested, 0.05)[0]
    assert (p < SRM_LEVEL).sum() <= 3


def test_a_mismatch_that_is_there_is_found() -> None:
    split = Split("lost users")
    arms = split.arms(np.arange(20_000))
    kept = arms[(arms == 0) | (np.random.default_rng(0).random(20_000) > 0.1)]
    assert split.check(kept).mismatch
    with pytest.raises(KarmafunnelError, match=r"experiment: split needs about .* users in its arms, found .* sample ratio mismatch"):
        split.check(kept).require("experiment")
    split.check(arms).require("experiment")
    assert SampleRatio.of([40, 5], [0.5, 0.5]).mismatch
    assert SampleRatio.of([40, 5], [0.5, 0.5]).p == pytest.approx(stats.binomtest(5, 45).pvalue)
    assert SampleRatio.of([2_000, 2_100], [0.5, 0.5]).p == pytest.approx(stats.chisquare([2_000, 2_100]).pvalue)


# -- effects ---------------------------------------------------------------------------------------


def test_a_difference_of_means_is_welchs() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 6.0]), np.array([2.0, 9.0, 4.0, 8.0, 7.0])
    found, known = effect(Outcomes(x), Outcomes(y)), stats.ttest_ind(y, x, equal_var=False)
    assert (found.control, found.treated, found.value) == (3.0, 6.0, 3.0)
    assert found.p == pytest.approx(known.pvalue, rel=1e-12)
    assert found.interval == pytest.approx(known.confidence_interval(), rel=1e-12)
    assert found.lift == pytest.approx(1.0) and found.unexplained == 1.0
    with_none = effect(Outcomes(np.zeros(5)), Outcomes(np.zeros(5)))
    assert with_none.interval == (0.0, 0.0) and with_none.p == 1.0
    assert np.isnan(with_none.lift) and with_none.lift_interval == (None, None)


def test_rounding_is_no_difference() -> None:
    for n in (7, 1_000):
        x, per = np.full(n, 0.1), np.arange(1.0, n + 1)
        for found in (effect(Outcomes(x), Outcomes(np.full(n + 3, 0.1))), effect(Outcomes(per * 0.3, per), Outcomes(per[1:] * 0.3, per[1:]))):
            assert found.p == 1.0 and found.interval == (0.0, 0.0)
    assert effect(Outcomes(x), Outcomes(x + 0.1)).p == 0.0
    assert np.isinf(running(np.full(900, 0.1), np.arange(900) % 300).half).all()


@pytest.mark.parametrize("kind", ["mean", "ratio", "mean with CUPED", "ratio with CUPED"])
def test_without_a_difference_a_twentieth_is_significant(kind: str) -> None:
    rng = np.random.default_rng(1)
    significant = fieller = 0
    for _ in range(400):
        x = money(rng, 3_000, visits=kind.startswith("ratio"))
        if "CUPED" not in kind:
            x = Outcomes(x.total, x.per)
        found = effect(*halves(x, rng, share=0.4))
        significant += found.p < 0.05
        low, high = found.lift_interval
        fieller += not low < 0 < high
    assert 0.025 <= significant / 400 <= 0.08
    assert 0.025 <= fieller / 400 <= 0.08


def test_the_delta_method_is_the_bootstrap_by_user() -> None:
    rng = np.random.default_rng(2)
    x = money(rng, 4_000, visits=True)
    control, treated = halves(Outcomes(x.total, x.per), rng)
    found = effect(control, treated)
    by_arm = []
    for seed, arm in enumerate((control, treated)):
        ratio = Ratio(arm.total, arm.per, np.arange(len(arm)))
        by_arm.append(resample([ratio], len(arm), resamples=1_500, seed=seed)[0])
    assert found.control == pytest.approx(control.total.sum() / control.per.sum(), rel=1e-12)
    assert found.error == pytest.approx((by_arm[1] - by_arm[0]).std(), rel=0.06)
    low, high = found.lift_interval
    assert (low, high) == pytest.approx(np.percentile(by_arm[1] / by_arm[0] - 1, [2.5, 97.5]), abs=0.03)


def test_errors_of_few_users_are_not_too_small() -> None:
    """Ten users an arm whose numbers of requests differ widely: 5.7% of ratios differ, 8.9% by the
    delta method without leaving each user out.
    """
    rng, hits = np.random.default_rng(14), 0
    for _ in range(3_000):
        per = 1.0 + rng.poisson(3.0 * rng.gamma(0.5, 2.0, 20))
        x = Outcomes(rng.poisson(rng.gamma(2.0, 0.5, 20) * per), per)
        hits += effect(x.where(np.arange(20) < 10), x.where(np.arange(20) >= 10)).p < 0.05
    assert 0.04 <= hits / 3_000 <= 0.07
    alone = Outcomes(np.array([3.0, 0.0, 0.0]), np.array([6.0, 0.0, 0.0]))
    assert alone.values.tolist() == [0.5] * 3


def test_fieller_covers_a_lift_over_a_control_near_0() -> None:
    rng, covered = np.random.default_rng(4), 0
    for _ in range(1_000):
        low, high = effect(
            Outcomes(rng.normal(1.0, 3.0, 60)), Outcomes(rng.normal(1.5, 3.0, 60))
        ).lift_interval
        covered += low is None or low < 0.5 < high
    assert covered / 1_000 >= binomial(1_000, 0.95)[0]


def test_cuped_is_unbiased_and_narrower_by_what_the_past_explains() -> None:
    rng, n = np.random.default_rng(5), 2_000
    planted, values, covered = 0.3, [], 0
    for _ in range(400):
        habit = rng.normal(0, 1, n)
        x = Outcomes(5 + habit + rng.normal(0, 1, n), before=2 * habit + rng.normal(0, 1, n))
        control, treated = halves(x, rng)
        treated = Outcomes(treated.total + planted, before=treated.before)
        found = effect(control, treated)
        values.append(found.value)
        covered += found.interval[0] < planted < found.interval[1]
    raw = effect(Outcomes(control.total), Outcomes(treated.total))
    assert found.unexplained == pytest.approx((found.error / raw.error) ** 2, rel=1e-9)
    assert found.unexplained == pytest.approx(1 - 4 / (2 * 5), abs=0.05)  # rho**2 = 0.4
    assert abs(np.mean(values) - planted) < 4 * np.std(values) / 20
    assert np.std(values) == pytest.approx(found.error, rel=0.12)
    assert 0.92 <= covered / 400 <= 0.975


def test_cuped_corrects_both_arms_and_the_lift() -> None:
    rng = np.random.default_rng(6)
    control, treated = halves(money(rng, 2_000, visits=True), rng, share=0.3)
    found = effect(control, treated)
    # theta and the figures from sums over users, without matrices
    y = []
    for arm in (control, treated):
        ratio, n = arm.total.sum() / arm.per.sum(), len(arm)
        without = (arm.total.sum() - arm.total) / (arm.per.sum() - arm.per)
        y.append(ratio + (n - 1) * (without.mean() - without))
    before = np.concatenate([control.before, treated.before])
    visits = np.concatenate([control.before_per, treated.before_per])
    without = (before.sum() - before) / (visits.sum() - visits)
    x = np.split((len(before) - 1) * (without.mean() - without), [len(control)])
    theta = sum(np.cov(a, b)[0, 1] / len(a) for a, b in zip(y, x, strict=True)) / sum(b.var(ddof=1) / len(b) for b in x)
    everyone = np.concatenate(x).mean()
    figures = [a.mean() - theta * (b.mean() - everyone) for a, b in zip(y, x, strict=True)]
    assert (found.control, found.treated) == pytest.approx(figures, rel=1e-9)
    each = [(a - theta * b).var(ddof=1) / len(a) for a, b in zip(y, x, strict=True)]
    estimated = (len(before) - 2) / (len(before) - 3)  # theta, besides two means
    assert found.error == pytest.approx(math.sqrt(sum(each) * estimated), rel=1e-9)
    # at the ends of the lift's interval treated - ratio * control is just significant
    n, m = len(control), len(treated)
    for end in found.lift_interval:
        ratio = 1 + end
        k = theta * (n + ratio * m) / (n + m)
        variance = (ratio * y[0] - k * x[0]).var(ddof=1) / n + (y[1] - k * x[1]).var(ddof=1) / m
        variance *= estimated
        off = found.treated - ratio * found.control
        assert abs(off) == pytest.approx(found.quantile * math.sqrt(variance), rel=1e-9)


# -- looks by day ----------------------------------------------------------------------------------

DAYS = 14


def fortnight(rng: np.random.Generator, n: int) -> tuple[np.ndarray, list[Outcomes]]:
    """Users who arrive over 14 days and come back: the day of arrival, and money of each day."""
    arrived = rng.integers(0, DAYS, n)
    habit = rng.gamma(0.5, 2.0, n)
    days = []
    for day in range(DAYS):
        visits = rng.poisson(0.1 * habit) * (arrived <= day) + (arrived == day)
        days.append(Outcomes(rng.poisson(0.2 * visits * habit) * rng.lognormal(1.0, 0.5, n), visits))
    return arrived, days


def test_daily_looks_break_a_fixed_interval_but_not_one_that_is_always_valid() -> None:
    """Of 1,000 experiments without a difference, each looked at on 14 days."""
    rng, n = np.random.default_rng(7), 900
    fixed = valid = last = 0
    for i in range(1_000):
        arrived, days = fortnight(rng, n)
        if i % 4:  # the other quarter by visit
            days = [Outcomes(day.total) for day in days]
        looks = daily(days, rng.integers(0, 2, n), arrived)
        intervals = always_valid(looks)
        fixed += any(look.p < 0.05 for look in looks)
        last += looks[-1].p < 0.05
        valid += ((intervals[:, 0] > 0) | (intervals[:, 1] < 0)).any()
    assert 25 <= last <= 80
    assert fixed > 120
    assert valid <= 50


def test_always_valid_intervals_of_a_random_walk_keep_their_level() -> None:
    rng, steps = np.random.default_rng(8), 2_000
    walk = np.cumsum(rng.normal(size=(2_000, steps)), axis=1)
    count = np.arange(1.0, steps + 1)
    half = half_widths(1 / np.sqrt(count), count, narrowest=50.0)
    crossed = (np.abs(walk / count) > half).any(axis=1).mean()
    assert 0.02 < crossed <= binomial(2_000, 0.05)[1]
    # narrowest where asked, and as wide as the closed form says
    times = half * np.sqrt(count)
    assert count[times.argmin()] == pytest.approx(50, abs=1)
    t, r = 200.0, count[0] * 50.0
    rho2 = (times.min() ** 2 - 1) / r  # at its narrowest, quantile**2 = 1 + rho**2 * t
    known = math.sqrt(2 * (t * rho2 + 1) / (t**2 * rho2) * math.log(math.sqrt(t * rho2 + 1) / 0.05))
    assert half[199] == pytest.approx(known, rel=1e-3)


def test_days_add_up() -> None:
    rng = np.random.default_rng(9)
    arrived, days = fortnight(rng, 600)
    days[0] = Outcomes(days[0].total, days[0].per, rng.random(600), np.ones(600))
    days[1:] = [Outcomes(d.total, d.per, d.total, d.per) for d in days[1:]]
    arms = rng.integers(0, 3, 600)
    looks = daily(days, arms, arrived, treated=2, skip=3)
    assert len(looks) == 11
    there = arrived <= 8
    so_far = Outcomes(
        sum(d.total for d in days[3:9]),
        sum(d.per for d in days[3:9]),
        days[0].before,
        days[0].before_per,
    )
    assert looks[5] == effect(so_far.where(there & (arms == 0)), so_far.where(there & (arms == 2)))
    assert np.isinf(always_valid([Effect(0, 0, (0, 0), 0, (5, 5), 10)])).all()


# -- power -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuped", [False, True])
def test_a_planted_effect_is_found_as_often_as_planned(cuped: bool) -> None:
    rng = np.random.default_rng(10)
    past = money(rng, 200_000)
    plan = Plan.of(past if cuped else Outcomes(past.total), share=0.4)
    n, planted = 4_000, plan.smallest_effect(4_000, power=0.7)
    found = 0
    for _ in range(600):
        x = money(rng, n)
        control, treated = halves(x if cuped else Outcomes(x.total), rng, share=0.4)
        treated = Outcomes(treated.total + planted, before=treated.before)
        found += effect(control, treated).p < 0.05
    low, high = binomial(600, plan.power(planted, n), 0.99)
    assert low <= found / 600 <= high


@pytest.mark.parametrize("kind", ["mean", "ratio with CUPED"])
def test_a_planted_lift_is_found_as_often_as_planned(kind: str) -> None:
    """A lift multiplies what the treated do: a plan for an amount promises more than is found."""
    rng, n, visits = np.random.default_rng(15), 4_000, kind != "mean"
    past = money(rng, 200_000, visits=visits)
    past = past if visits else Outcomes(past.total)
    plan = Plan.of(past, share=0.4, lift=True)
    planted = plan.smallest_effect(n, power=0.7)
    assert plan.power(planted, n) == pytest.approx(0.7)
    promised = Plan.of(past, share=0.4).power(planted * plan.mean, n)
    found = 0
    for _ in range(600):
        x = money(rng, n, visits=visits)
        control, treated = halves(x if visits else Outcomes(x.total), rng, share=0.4)
        columns = treated.columns()
        columns["total"] = columns["total"] * (1 + planted)
        found += effect(control, Outcomes(**columns)).p < 0.05
    low, high = binomial(600, 0.7, 0.99)
    assert low <= found / 600 <= high < promised


def test_lifts_by_hand() -> None:
    # users of 1 or 3 with a mean of 2: twice as much varies four times as much
    plan = Plan.of(Outcomes(np.array([1.0, 3.0] * 50)), lift=True)
    assert plan == Plan(plan.variance, mean=2.0) and plan.variance == pytest.approx(100 / 99)
    assert plan.error(1_000, 1.0) ** 2 == pytest.approx(plan.variance * (2 + 2 * 4) / 1_000)
    for users, power in ((50, 0.8), (3_000, 0.4)):
        lift = plan.smallest_effect(users, power)
        assert plan.users(lift, power) in (users, users + 1)
    half = Plan(plan.variance, mean=2.0, correlation=0.8)
    # CUPED with one theta for both arms, which are 1 and 3 times as large
    left = min(np.mean([(1 - t * 0.8) ** 2 + t**2 * 0.36, (3 - t * 0.8) ** 2 + t**2 * 0.36]) for t in np.linspace(0, 3, 3001))
    assert half.per_user(2.0) == pytest.approx(plan.variance * 4 * left, rel=1e-6)
    # a lift never shows where even the treated's own figure may be 0
    assert Plan(4.0, mean=1.0).smallest_effect(60) == math.inf
    assert Plan(4.0, mean=1.0).power(1e9, 60) < 0.8 < Plan(4.0, mean=1.0).power(1e9, 70)
    assert plan.power(-0.1, 500) > plan.power(0.1, 500)


def test_power_users_and_effects_agree() -> None:
    plan = Plan(4.0)
    # Cohen: 2 * (1.96 + 0.8416)**2 * variance / effect**2 in each arm
    assert plan.users(0.5, 0.8) == math.ceil(4 * 4.0 * 7.8489 / 0.25)
    assert plan.smallest_effect(plan.users(0.5), 0.8) == pytest.approx(0.5, rel=1e-3)
    for users in (100, 3_000):
        for power in (0.06, 0.5, 0.95):
            assert plan.power(plan.smallest_effect(users, power), users) == pytest.approx(power)
    assert plan.power(0.0, 500) == pytest.approx(0.05)
    assert plan.power(-0.2, 500) == plan.power(0.2, 500)
    assert Plan(4.0, correlation=0.6).users(0.5) == math.ceil(plan.per_user() * 0.64 * 7.8488797 / 0.25)
    assert Plan(4.0, share=0.1).users(0.5) > 2.7 * plan.users(0.5)
    assert repr(Plan(np.float64(4.0), correlation=0.6)) == "Plan(variance=4.0, correlation=0.6)"


# -- interleaving ----------------------------------------------------------------------------------


def rankings(rng: np.random.Generator, n: int, k: int, pool: int) -> np.ndarray:
    """n random lists of k of `pool` items."""
    return rng.random((n, pool)).argsort(axis=1)[:, :k]


def team_draft_loop(a: list[int], b: list[int], coins: list[int]) -> tuple[list[int], list[int]]:
    """Radlinski et al. 2008, algorithm 2."""
    shown, teams = [], ([], [])
    coins = list(coins)
    while set(a) - set(shown) and set(b) - set(shown):
        if len(teams[0]) == len(teams[1]):
            side = coins.pop(0)
        else:
            side = int(len(teams[0]) > len(teams[1]))
        item = next(x for x in (a, b)[side] if x not in shown)
        shown.append(item)
        teams[side].append(item)
    return shown, [int(item in teams[1]) for item in shown]


def balanced_loop(a: list[int], b: list[int], first: int) -> list[int]:
    """Radlinski et al. 2008, algorithm 1: `first` is 0 if A begins."""
    shown, ka, kb = [], 0, 0
    while ka < len(a) and kb < len(b):
        if ka < kb or (ka == kb and first == 0):
            if a[ka] not in shown:
                shown.append(a[ka])
            ka += 1
        else:
            if b[kb] not in shown:
                shown.append(b[kb])
            kb += 1
    return shown


def balanced_credit_loop(a: list[int], b: list[int], shown: list[int], earned: list[float]) -> list[float]:
    clicked = [item for item, e in zip(shown, earned, strict=True) if e > 0]
    if not clicked:
        return [0.0, 0.0]
    reach = min(x.index(clicked[-1]) for x in (a, b) if clicked[-1] in x) + 1
    gain = dict(zip(shown, earned, strict=True))
    return [sum(gain.get(item, 0.0) for item in x[:reach]) for x in (a, b)]


def ragged(rng: np.random.Generator, n: int, k: int, pool: int) -> np.ndarray:
    lists = rankings(rng, n, k, pool)
    lists[np.arange(k) >= rng.integers(1, k + 1, n)[:, None]] = -1
    return lists


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_interleaving_is_what_the_paper_says(k: int, short: bool) -> None:
    rng, n = np.random.default_rng(k), 300
    draw = ragged if short else rankings
    a, b = draw(rng, n, k, k + 3), draw(rng, n, k, k + 3)
    drafted = TeamDraft().mix(a, b, np.random.default_rng(5))
    mixed = Balanced().mix(a, b, np.random.default_rng(5))
    coins = np.random.default_rng(5).integers(0, 2, (n, (k + 1) // 2), dtype=np.int8)
    first = np.random.default_rng(5).integers(0, 2, n)
    earned = np.where(mixed.items >= 0, rng.integers(0, 2, (n, k)) * rng.random((n, k)), 0.0)
    credit = Balanced().credit(mixed, earned)
    by_team = TeamDraft().credit(drafted, np.where(drafted.items >= 0, 1.0, 0.0))
    for i in range(n):
        x, y = ([int(item) for item in one[i] if item >= 0] for one in (a, b))
        shown, team = team_draft_loop(x, y, [*coins[i], *[0] * k])
        here = drafted.items[i] >= 0
        assert drafted.items[i][here].tolist() == shown[:k] and here[: len(shown)].all()
        assert drafted.team[i][here].tolist() == team[:k]
        assert by_team[i].tolist() == [team[:k].count(0), team[:k].count(1)]
        shown = balanced_loop(x, y, first[i])[:k]
        here = mixed.items[i] >= 0
        assert mixed.items[i][here].tolist() == shown
        assert credit[i] == pytest.approx(balanced_credit_loop(x, y, shown, earned[i][here].tolist()))
        for out in (drafted, mixed):
            for item, ranks in zip(out.items[i], out.ranks[:, i].T, strict=True):
                known = [one.index(item) if item in one and item >= 0 else k for one in (x, y)]
                assert ranks.tolist() == known


def cascade(shown: Interleaved, attract: np.ndarray, rng: np.random.Generator, go_on: float = 0.6) -> np.ndarray:
    """Clicks of shoppers who read from the top and go on after a click with `go_on`."""
    clicks = np.zeros(shown.items.shape)
    reads = np.ones(len(clicks), dtype=bool)
    for slot, items in enumerate(shown.items.T):
        clicks[:, slot] = reads & (rng.random(len(clicks)) < attract[items])
        reads &= (clicks[:, slot] == 0) | (rng.random(len(clicks)) < go_on)
    return clicks


@pytest.mark.parametrize("way", [TeamDraft(), Balanced()])
def test_the_better_ranker_wins_and_identical_ones_tie(way: TeamDraft | Balanced) -> None:
    rng, n, k = np.random.default_rng(11), 4_000, 10
    attract = rng.beta(1, 6, 30)
    good = np.argsort(-(np.log(attract) + rng.normal(0, 0.5, (n, 30))), axis=1)[:, :k]
    poor = np.argsort(-(np.log(attract) + rng.normal(0, 2.0, (n, 30))), axis=1)[:, :k]
    user = rng.integers(0, 800, n)

    def played(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        shown = way.mix(a, b, rng)
        return scores(way.credit(shown, cascade(shown, attract, rng)))

    for a, b, winner, sign in ((poor, good, "B", 1), (good, poor, "A", -1)):
        score = played(a, b)
        found = preference(score, user)
        assert sign * found.value > 0 and found.p < 1e-6
        so_far = running(score, user)
        assert so_far.winner == winner and 100 < so_far.certain_after < 2_000
    same = played(good, good)
    if way == Balanced():
        assert not same.any()
    else:
        assert (same != 0).mean() > 0.3
        assert abs(same.mean()) < 4 * same.std() / math.sqrt(n)


def test_money_and_wins() -> None:
    credit = np.array([[3.0, 1.0], [0.0, 5.0], [2.0, 2.0], [0.0, 0.5]])
    assert scores(credit).tolist() == [-1.0, 1.0, 0.0, 1.0]
    assert scores(credit, wins=False).tolist() == [-2.0, 5.0, 0.0, 0.5]
    found = preference(scores(credit), np.array([7, 7, 2, 9]))
    assert (found.value, found.requests, found.users, found.decided) == (0.25, 4, 3, 0.75)


def test_a_preference_has_its_error_by_user() -> None:
    rng = np.random.default_rng(12)
    user = rng.integers(0, 300, 3_000)
    score = np.sign(rng.normal(0, 1, 300)[user] + rng.normal(0, 1, 3_000)).round()
    found = preference(score, user)
    (samples,) = resample([Ratio(score, np.ones(3_000), user)], 300, 2_000)
    assert found.error == pytest.approx(samples.std(), rel=0.06)
    assert found.error > 1.5 * score.std() / math.sqrt(3_000)


def test_the_running_preference_is_that_of_each_prefix() -> None:
    rng = np.random.default_rng(13)
    user, score = rng.integers(0, 40, 500), rng.integers(-1, 2, 500) * rng.random(500)
    found = running(score, user, first=10, narrowest=5.0)
    prefixes = [preference(score[:n], user[:n]) for n in range(2, 501)]
    assert found.value[1:] == pytest.approx([p.value for p in prefixes])
    start = next(n for n in range(500) if len(np.unique(user[:n][score[:n] != 0])) == 10)
    assert np.isinf(found.half[: start - 1]).all() and np.isfinite(found.half[start - 1 :]).all()
    error = np.array([p.error for p in prefixes])[start - 2 :]
    assert found.half[start - 1 :] == pytest.approx(half_widths(error, np.arange(start, 501.0), narrowest=5.0))


@pytest.mark.parametrize("wins", [True, False])
def test_without_a_preference_hardly_any_winner_is_ever_certain(wins: bool) -> None:
    """Users differ in whom they prefer, come back, and pay very different amounts; one looks after
    every request.
    """
    rng, certain, tested = np.random.default_rng(14), 0, 400
    for _ in range(tested):
        user = rng.integers(0, 1_000, 3_000)
        taste = rng.normal(0, 0.5, 1_000)[user]
        credit = (rng.random((3_000, 2)) < 0.3 / (1 + np.exp(np.stack([taste, -taste], axis=1))))
        score = scores(credit * rng.lognormal(0, 1, (3_000, 2)), wins)
        certain += running(score, user).certain_after is not None
    assert certain / tested <= 0.05


def test_100_000_lists_of_24_take_seconds() -> None:
    rng = np.random.default_rng(15)
    a, b = (rankings(rng, 100_000, 24, 40) for _ in range(2))
    for way in (TeamDraft(), Balanced()):
        start = time.process_time()
        shown = way.mix(a, b, rng)
        way.credit(shown, np.zeros(shown.items.shape))
        assert time.process_time() - start < 10


# -- bad input -------------------------------------------------------------------------------------

ONE, TWO = np.array([[1, 2, 3]]), np.array([[3, 4, 5]])


def shown() -> Interleaved:
    return TeamDraft().mix(ONE, TWO, np.random.default_rng(0))


BAD = {
    "shares that do not add up": (lambda: Split("x", (0.5, 0.4)), r"Split: shares needs shares of two arms or more that add to 1, found \(0.5, 0.4\)"),
    "one arm": (lambda: Split("x", (1 - 1e-9,)), "Split: shares needs a number from"),
    "an arm of nobody": (lambda: Split("x", (1.0, 0.0)), "Split: shares needs a number from"),
    "NaN as a share": (lambda: Split("x", (0.5, math.nan)), "Split: shares needs a number from"),
    "shares as a number": (lambda: Split("x", 0.5), "Split: shares needs shares of two"),
    "no salt": (lambda: Split(""), "Split: salt needs a text"),
    "users as floats": (lambda: Split("x").arms(np.array([1.5])), "Split: users needs whole numbers or text, found float64"),
    "users that are none": (lambda: Split("x").arms(np.array([None, "a"])), "Split: users needs"),
    "counts of other arms": (lambda: SampleRatio.of([5, 5, 5], (0.5, 0.5)), "sample ratio: counts needs users in 2 arms"),
    "nobody at all": (lambda: SampleRatio.of([0, 0], (0.5, 0.5)), "sample ratio: counts needs users in 2 arms"),
    "negative counts": (lambda: SampleRatio.of([-1, 5], (0.5, 0.5)), "sample ratio: counts needs a whole number"),
    "an arm without users": (lambda: effect(Outcomes(np.array([])), Outcomes(np.ones(5))), "effect: control needs at least 2 users, found 0"),
    "an arm of one user": (lambda: effect(Outcomes(np.ones(5)), Outcomes(np.ones(1))), "effect: treated needs at least 2 users, found 1"),
    "an arm without requests": (lambda: effect(Outcomes(np.ones(5), np.ones(5)), Outcomes(np.ones(5), np.zeros(5))), "effect: treated needs a sum of per above 0"),
    "NaN as an outcome": (lambda: Outcomes(np.array([1.0, math.nan])), "Outcomes: total needs finite numbers, found nan of user 1"),
    "requests below 0": (lambda: Outcomes(np.ones(2), np.array([1.0, -1.0])), "Outcomes: per needs finite numbers of at least 0, found -1.0 of user 1"),
    "other users before": (lambda: Outcomes(np.ones(3), before=np.ones(2)), "Outcomes: before needs one number for each of 3 users"),
    "requests before alone": (lambda: Outcomes(np.ones(3), before=np.ones(3), before_per=np.ones(3)), "Outcomes: before_per needs before and per"),
    "a past of one arm": (lambda: effect(Outcomes(np.ones(3), before=np.ones(3)), Outcomes(np.ones(3))), r"effect: needs the same columns of both arms, found total\+before and total"),
    "too sure": (lambda: effect(Outcomes(np.ones(3)), Outcomes(np.ones(3)), 1.0), "effect: confidence needs a number from 0.5"),
    "fewer days than needed": (lambda: daily([Outcomes(np.ones(4))] * 3, np.array([0, 0, 1, 1]), np.zeros(4), skip=3), "daily: needs more than 3 days, found 3 days"),
    "no days": (lambda: daily([], np.array([]), np.array([])), "daily: needs more than 0 days, found 0 days"),
    "a day without users": (lambda: daily([Outcomes(np.ones(4))], np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])), "effect: treated needs at least 2 users"),
    "days of others": (lambda: daily([Outcomes(np.ones(4)), Outcomes(np.ones(3))], np.array([0, 0, 1, 1]), np.zeros(4)), "daily: days needs the same users and columns on all days, found others on day 1"),
    "arms of others": (lambda: daily([Outcomes(np.ones(4))], np.zeros(3), np.zeros(4)), "daily: arms needs one number for each of 4 users"),
    "no looks": (lambda: always_valid([]), "always_valid: needs at least one look, found none"),
    "never narrow": (lambda: always_valid([Effect(0, 0, (1, 1), 0, (5, 5), 10)], 0.0), "always valid: narrowest needs a number"),
    "no variance": (lambda: Plan(0.0), "Plan: variance needs a number above 0"),
    "a share of all": (lambda: Plan(1.0, share=1.0), "Plan: share needs a number from"),
    "a past that says all": (lambda: Plan(1.0, correlation=1.0), "Plan: correlation needs a number from"),
    "no effect": (lambda: Plan(1.0).users(0.0), "Plan: effect needs a number other than 0"),
    "NaN as an effect": (lambda: Plan(1.0).power(math.nan, 10), "Plan: effect needs a number from"),
    "a lift of nothing": (lambda: Plan(1.0, mean=0.0), "Plan: mean needs a number other than 0"),
    "less than nothing": (lambda: Plan(1.0, mean=2.0).power(-1.5, 10), "Plan: effect needs a lift of at least -1"),
    "no users": (lambda: Plan(1.0).power(1.0, 0), "Plan: users needs a whole number"),
    "power below chance": (lambda: Plan(1.0).users(1.0, 0.04), "Plan: power needs more than 0.05"),
    "a past that does not vary": (lambda: Plan.of(Outcomes(np.ones(9))), "Plan: needs users whose outcomes vary, found 9 users with the same outcome"),
    "lists of two sizes": (lambda: TeamDraft().mix(ONE, TWO[:, :2], np.random.default_rng(0)), r"TeamDraft: needs two lists of \(requests, k\) items, found \(1, 3\) and \(1, 2\)"),
    "no lists": (lambda: Balanced().mix(ONE[:0], TWO[:0], np.random.default_rng(0)), "Balanced: needs two lists"),
    "an item twice": (lambda: Balanced().mix(ONE, np.array([[2, 1, 2]]), np.random.default_rng(0)), "Balanced: list B needs each item once, from the first slot on, found an item twice in request 0"),
    "a gap": (lambda: TeamDraft().mix(np.array([[1, -1, 2]]), TWO, np.random.default_rng(0)), "TeamDraft: list A needs each item once, from the first slot on, found an empty slot above an item"),
    "items as floats": (lambda: TeamDraft().mix(ONE * 1.0, TWO, np.random.default_rng(0)), "TeamDraft: items needs whole numbers"),
    "negative money": (lambda: TeamDraft().credit(shown(), np.array([[0.0, -3.0, 0.0]])), "TeamDraft: earned needs clicks or money of at least 0, .* found -3.0 in request 0, slot 1"),
    "NaN as money": (lambda: Balanced().credit(shown(), np.array([[0.0, math.nan, 0.0]])), "Balanced: earned needs"),
    "money of other lists": (lambda: Balanced().credit(shown(), np.zeros((1, 2))), r"Balanced: earned needs \(1, 3\), found \(1, 2\)"),
    "clicks on nothing": (lambda: TeamDraft().credit(TeamDraft().mix(np.array([[1, -1]]), np.array([[1, -1]]), np.random.default_rng(0)), np.array([[0.0, 1.0]])), "TeamDraft: earned needs"),
    "a preference of one": (lambda: preference(np.ones(5), np.zeros(5, int)), "preference: needs at least 2 users, found 1"),
    "NaN as a score": (lambda: running(np.array([1.0, math.nan]), np.array([0, 1])), "scores: needs finite numbers, found nan of request 1"),
    "users below 0": (lambda: running(np.ones(2), np.array([0, -1])), "scores: user needs numbers from 0"),
    "no requests": (lambda: running(np.array([]), np.array([])), "scores: needs a score and a user a request"),
    "a first of one": (lambda: running(np.ones(2), np.array([0, 1]), first=1), "running: first needs a whole number"),
    "wins that are no switch": (lambda: scores(np.ones((2, 2)), wins=1), "scores: wins needs True or False"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(name: str) -> None:
    make, said = BAD[name]
    with pytest.raises(KarmafunnelError, match=said):
        make()
