"""Click models: against loops over all click patterns, draws against chances, EM against closed
forms and the truth of what was drawn, and bad input.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.benchmarks.peers.click_comparison import main, perplexity
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import read_json
from karmafunnel.simulator.world.click_fit import EM, Fit, Prior, fit
from karmafunnel.simulator.world.click_lists import Lists, Shown
from karmafunnel.simulator.world.click_protocol import ClickModel
from karmafunnel.simulator.world.clicks import (
    DCM,
    PBM,
    SDBN,
    UBM,
    Cascade,
    Mixture,
)

K = 4
PBM4 = PBM([1.0, 0.7, 0.4, 0.2])
UBM4 = UBM([[1.0], [0.8, 0.9], [0.5, 0.6, 0.7], [0.3, 0.2, 0.4, 0.6]])
DCM4 = DCM([0.7, 0.5, 0.8])
MODELS = {
    "PBM": PBM4,
    "UBM": UBM4,
    "Cascade": Cascade(),
    "DCM": DCM4,
    "SDBN": SDBN(),
    "Mixture": Mixture([PBM4, Cascade(), SDBN(), DCM4], [0.4, 0.3, 0.1, 0.2]),
}
PATTERNS = np.array(list(product([False, True], repeat=K)))
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
a_whole_list = [True] * K
MASKS = [a_whole_list, [True, True, True, False], [True, False, True, True], [False] * K]
masks = pytest.mark.parametrize("mask", MASKS, ids=["full", "short", "hole", "empty"])


def chance(model: ClickModel, attraction: list, satisfaction: list, mask: list, c: tuple) -> float:
    """P(clicks) of one list, as the papers tell the story: someone looks (or not), then clicks."""
    if isinstance(model, Mixture):
        parts = zip(model.weights, model.models, strict=True)
        return sum(w * chance(m, attraction, satisfaction, mask, c) for w, m in parts)

    def on(slot: int, looking: bool, last: int) -> float:
        """P(the clicks from a slot on)."""
        if slot == len(c):
            return 1.0
        if not mask[slot]:
            return 0.0 if c[slot] else on(slot + 1, looking, last)
        a = attraction[slot]
        if isinstance(model, (PBM, UBM)):
            look = (
                model.examination[slot] if isinstance(model, PBM) else model.browsing[slot][last]
            )
            if c[slot]:
                return look * a * on(slot + 1, True, slot + 1)
            return (look * (1 - a) + (1 - look)) * on(slot + 1, True, last)
        if not looking:
            return 0.0 if c[slot] else on(slot + 1, False, last)
        if not c[slot]:
            return (1 - a) * on(slot + 1, True, last)
        goes = {
            Cascade: lambda: 0.0,
            DCM: lambda: (*model.continuation, 0.0)[slot],
            SDBN: lambda: 1 - satisfaction[slot],
        }[type(model)]()
        return a * (goes * on(slot + 1, True, last) + (1 - goes) * on(slot + 1, False, last))

    return on(0, True, 0)


def one_list(mask: list, n: int, seed: int = 0) -> Shown:
    """The same list n times."""
    rng = np.random.default_rng(seed)
    attraction, satisfaction = rng.random((2, 1, K)) * 0.8 + 0.1
    return Shown(*(np.repeat(x, n, 0) for x in (attraction, satisfaction, np.array([mask]))))


def told(model: ClickModel, shown: Shown, mask: list) -> np.ndarray:
    """P of every pattern by the loop."""
    a, s = shown.attraction[0].tolist(), shown.satisfaction[0].tolist()
    return np.array([chance(model, a, s, mask, tuple(c)) for c in PATTERNS.tolist()])


@models
@masks
def test_chances_equal_a_loop_over_all_patterns(model, mask):
    shown = one_list(mask, len(PATTERNS))
    p = told(model, shown, mask)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    inside = ~(PATTERNS & ~shown.mask).any(axis=1)
    kept = Shown(shown.attraction[inside], shown.satisfaction[inside], shown.mask[inside])
    clicks = PATTERNS[inside]
    assert np.allclose(np.exp(model.log_likelihood(kept, clicks)), p[inside], atol=1e-12)
    assert p[~inside].sum() == 0
    assert np.allclose(model.marginal(kept)[0], p @ PATTERNS, atol=1e-12)
    conditional = model.conditional(kept, clicks)
    for row, pattern in enumerate(clicks):
        for slot in range(K):
            above = (PATTERNS[:, :slot] == pattern[:slot]).all(axis=1)
            if p[above].sum() > 0:
                expected = p[above & PATTERNS[:, slot]].sum() / p[above].sum()
                assert conditional[row, slot] == pytest.approx(expected, abs=1e-12)


@models
@masks
def test_draws_come_as_often_as_their_chance_says(model, mask):
    n = 40_000
    shown = one_list(mask, n)
    drawn = model.draw(shown, np.random.default_rng(1))
    often = np.bincount(drawn @ (1 << np.arange(K)[::-1]), minlength=len(PATTERNS)) / n
    p = told(model, shown, mask)
    assert (np.abs(often - p) <= 4.5 * np.sqrt(p * (1 - p) / n) + 1e-12).all()
    again = np.random.default_rng(1)
    assert (model.draw(shown, again) == drawn).all()
    other = np.random.default_rng(1)
    model.draw(Shown(np.zeros((n, K)), np.zeros((n, K))), other)
    assert again.random() == other.random()  # as many numbers whatever is clicked


@models
def test_perplexity_is_the_mean_surprise(model):
    rng = np.random.default_rng(2)
    attraction, satisfaction = rng.random((2, 300, K)) * 0.8 + 0.1
    mask = np.arange(K) < rng.integers(1, K, (300, 1))  # the last slot is never filled
    shown = Shown(attraction, satisfaction, mask)
    clicks = model.draw(shown, rng)
    for given_above in (True, False):
        p = model.conditional(shown, clicks) if given_above else model.marginal(shown)
        found = model.perplexity(shown, clicks, given_above)
        bits = [[] for _ in range(K)]
        for i, slot in np.argwhere(mask):
            bits[slot].append(np.log2(p[i, slot] if clicks[i, slot] else 1 - p[i, slot]))
        for slot in range(K - 1):
            assert found.by_slot[slot] == pytest.approx(2 ** -np.mean(bits[slot]))
        assert np.isnan(found.by_slot[-1])
        assert found.whole == pytest.approx(2 ** -np.mean(np.concatenate(bits)))
    whole = model.perplexity(shown, clicks).whole
    assert -np.log(whole) * mask.sum() == pytest.approx(model.log_likelihood(shown, clicks).sum())


def test_a_click_that_a_model_excludes_has_no_likelihood():
    shown = one_list(a_whole_list, 2)
    clicks = np.array([[True, True, False, False], [False, True, False, False]])
    assert np.isneginf(Cascade().log_likelihood(shown, clicks)).tolist() == [True, False]
    assert Cascade().perplexity(shown, clicks).whole == np.inf
    mixed = Mixture([Cascade(), PBM4], [0.5, 0.5]).log_likelihood(shown, clicks)
    assert np.allclose(mixed[0], np.log(0.5) + PBM4.log_likelihood(shown, clicks)[0])


@models
def test_repr_is_the_code_that_makes_it(model):
    assert eval(repr(model)) == model
    again = model.with_values(np.array(list(model.named().values())))
    assert np.allclose([*again.named().values()], [*model.named().values()], atol=1e-15)


# -- fits ------------------------------------------------------------------------------------------

STARTS = {
    "PBM": PBM.of(K),
    "UBM": UBM.of(K),
    "Cascade": Cascade(),
    "DCM": DCM.of(K),
    "SDBN": SDBN(),
    "Mixture": Mixture([PBM.of(K), Cascade()], [0.5, 0.5]),
}
TRUE = MODELS | {"Mixture": Mixture([PBM4, Cascade()], [0.6, 0.4])}
kinds = pytest.mark.parametrize("kind", TRUE)


def drawn_lists(model: ClickModel, n: int, items: int, seed: int, short: bool = True) -> tuple:
    """Lists of random items with clicks of a model, and the truth: (lists, attraction,
    satisfaction).
    """
    rng = np.random.default_rng(seed)
    attraction, satisfaction = rng.uniform(0.15, 0.6, items), rng.uniform(0.2, 0.8, items)
    at = rng.random((n, items)).argsort(axis=1)[:, :K]
    mask = np.arange(K) < rng.integers(2, K + 1, (n, 1)) if short else None
    shown = Shown(attraction[at], satisfaction[at], mask)
    return Lists(at, model.draw(shown, rng), mask), attraction, satisfaction


def problem(found: Fit, lists: Lists) -> tuple[EM, np.ndarray]:
    em = EM(found.model, lists, len(found.attraction), found.prior, found.satisfaction_prior)
    return em, em.packed(found.model, found.attraction, found.satisfaction)


@kinds
def test_em_never_lowers_the_likelihood_and_ends_where_it_is_highest(kind):
    lists, *_ = drawn_lists(TRUE[kind], 1000, 8, seed=3)
    found = fit(STARTS[kind], lists, prior=2.0, tolerance=1e-7, iterations=20_000)
    assert (np.diff(found.history) > -1e-7).all() and found.change <= 1e-7
    em, phi = problem(found, lists)
    best, likelihood, *_ = em.expect(phi)
    model = found.model.log_likelihood(found.shown(lists.items, lists.mask), lists.clicks)
    assert np.allclose(likelihood, model)
    rng = np.random.default_rng(4)
    phi0 = rng.uniform(0.2, 0.8, len(phi))
    phi0[phi == 1] = 1
    plain = []
    for _ in range(30):  # steps alone, without looking ahead
        value, phi0 = em.step(phi0)
        plain.append(value)
    assert (np.diff(plain) > -1e-9).all() and plain[0] < plain[-1]
    inside = (phi > 1e-4) & (phi < 1 - 1e-4)
    for size in (1e-2, 1e-3):
        for _ in range(20):
            other = phi + size * inside * rng.normal(size=len(phi))
            assert em.expect(np.clip(other, 0, 1))[0] <= best + 1e-6


def test_cascade_is_clicks_over_looks():
    lists, *_ = drawn_lists(Cascade(), 500, 6, seed=5)
    found = fit(Cascade(), lists, prior=0)
    clicks, looks = np.zeros(6), np.zeros(6)
    for items, clicked, mask in zip(lists.items, lists.clicks, lists.mask, strict=True):
        for item, c, there in zip(items, clicked, mask, strict=True):
            if there:
                clicks[item] += c
                looks[item] += 1
            if c:
                break
    assert np.allclose(found.attraction, clicks / looks, atol=1e-12)
    low, high = found.intervals(lists, items=[2])["attraction of item 2"]
    p = clicks[2] / looks[2]
    odds = np.log(p / (1 - p)) + np.array([-1.96, 1.96]) / np.sqrt(looks[2] * p * (1 - p))
    assert np.allclose([low, high], 1 / (1 + np.exp(-odds)), atol=1e-5)


@kinds
def test_intervals_equal_a_dense_hessian(kind):
    lists, *_ = drawn_lists(TRUE[kind], 3000, 6, seed=6)
    found = fit(STARTS[kind], lists, prior=1.0, tolerance=1e-8, iterations=50_000)
    em, phi = problem(found, lists)
    free = np.flatnonzero((phi > 1e-6) & (phi < 1 - 1e-6))
    odds = np.log(phi[free] / (1 - phi[free]))

    def value(x: np.ndarray) -> float:
        full = phi.copy()
        full[free] = 1 / (1 + np.exp(-x))
        return em.expect(full)[0]

    e, size = 1e-3, len(free)
    hessian = np.zeros((size, size))
    for i, j in product(range(size), repeat=2):
        one, two = np.eye(size)[i] * e, np.eye(size)[j] * e
        for a, b in product((-1, 1), repeat=2):
            hessian[i, j] -= a * b * value(odds + a * one + b * two) / (4 * e * e)
    error = np.sqrt(np.diag(np.linalg.inv(hessian)))
    got = found.intervals(lists, items=range(6))
    names = [*found.model.named(), *(f"attraction of item {i}" for i in range(6))]
    names += [f"satisfaction of item {i}" for i in range(6)]
    assert list(got) == [names[i] for i in free]
    for (low, high), x, s in zip(got.values(), odds, error, strict=True):
        ends = [np.log(end / (1 - end)) for end in (low, high)]
        assert ends == pytest.approx([x - 1.96 * s, x + 1.96 * s], abs=2e-3 * (1 + s))


COVERED = {
    "PBM": (PBM4, 1200, 50),
    "UBM": (UBM4, 3000, 25),
    "Cascade": (Cascade(), 300, 40),
    "DCM": (DCM4, 1500, 50),
    "SDBN": (SDBN(), 3000, 20),
    "Mixture": (TRUE["Mixture"], 3000, 40),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", COVERED)
def test_known_values_lie_in_the_intervals_as_often_as_they_should(kind):
    model, n, repeats = COVERED[kind]
    truths = model.named()
    inside, off = [], []
    for seed in range(repeats):
        lists, attraction, satisfaction = drawn_lists(model, n, 8, seed=100 + seed, short=False)
        found = fit(STARTS[kind], lists, prior=0.0, tolerance=1e-6, iterations=50_000)
        truth = {f"attraction of item {i}": attraction[i] for i in range(8)} | truths
        truth |= {f"satisfaction of item {i}": satisfaction[i] for i in range(8)}
        got = found.intervals(lists, items=[0, 1] if truths else range(8))
        inside += [low <= truth[name] <= high for name, (low, high) in got.items()]
        off += [(low + high) / 2 - truth[name] for name, (low, high) in got.items()]
    assert len(inside) > 150
    assert 0.91 <= np.mean(inside) <= 0.985
    assert abs(np.mean(off)) < 0.02


def test_users_intervals_do_not_believe_copies():
    lists, *_ = drawn_lists(PBM4, 700, 5, seed=7)
    copies = Lists(*(np.repeat(x, 4, axis=0) for x in (lists.items, lists.clicks, lists.mask)))
    one = fit(PBM.of(K), lists, prior=0, tolerance=1e-8)
    four = fit(PBM.of(K), copies, prior=0, tolerance=1e-8)
    user = np.arange(700)
    alone = one.intervals(replace(lists, users=user))
    by_user = four.intervals(replace(copies, users=np.repeat(user, 4)))
    for name, ends in alone.items():
        assert by_user[name] == pytest.approx(ends, abs=1e-4)
    naive, true = four.intervals(copies), one.intervals(lists)
    for name in true:
        widths = [np.diff(np.log(x) - np.log1p(-np.array(x)))[0] for x in (naive[name], true[name])]
        assert widths[0] / widths[1] == pytest.approx(0.5, abs=0.01)
        low, high = alone[name]
        assert np.allclose([low, high], true[name], atol=0.02)  # lists do not depend on each other


@kinds
def test_empty_slots_change_nothing(kind):
    lists, *_ = drawn_lists(TRUE[kind], 400, 6, seed=8, short=False)
    wide = [np.pad(x, ((0, 0), (0, 2))) for x in (lists.items, lists.clicks)]
    padded = Lists(*wide, np.pad(np.ones((400, K), bool), ((0, 0), (0, 2))))
    wider = {"PBM": PBM.of(6), "UBM": UBM.of(6), "DCM": DCM.of(6)}
    wider["Mixture"] = Mixture([PBM.of(6), Cascade()], [0.5, 0.5])
    if kind in wider:  # what no list tells is refused
        with pytest.raises(KarmafunnelError, match=r"slot (5|4).*needs at least 10 lists"):
            fit(wider[kind], padded)
        return
    one, two = fit(STARTS[kind], lists), fit(STARTS[kind], padded)
    assert np.allclose(one.attraction, two.attraction, atol=1e-9)


def test_a_mixture_finds_its_parts():
    model = Mixture([Cascade(), DCM([0.9, 0.9, 0.9])], [0.3, 0.7])
    lists, attraction, _ = drawn_lists(model, 20_000, 10, seed=9, short=False)
    start = Mixture([Cascade(), DCM.of(K)], [0.5, 0.5])
    found = fit(start, lists, prior=0, iterations=20_000)
    # clicks do not tell a Cascade's share from a lower continuation by slot, only their product
    share = found.model.weights[1] * np.array(found.model.models[1].continuation)
    assert np.allclose(share, 0.63, atol=0.05)
    assert np.allclose(found.attraction, attraction, atol=0.03)
    alone = fit(PBM.of(K), lists, prior=0)
    assert found.history[-1] > alone.history[-1]


def test_the_prior_is_told_and_holds_items_that_were_not_shown():
    lists, *_ = drawn_lists(SDBN(), 500, 6, seed=10)
    found = fit(SDBN(), lists, prior=3.0, n_items=9)
    assert found.prior.clicks + found.prior.misses == pytest.approx(3.0)
    assert np.allclose(found.attraction[6:], found.prior.mean)
    assert np.allclose(found.satisfaction[6:], found.satisfaction_prior.mean)
    shown = found.shown(np.array([[0, 7, -1, 12]]))
    assert shown.attraction[0].tolist() == [found.attraction[0], *[found.prior.mean] * 3]
    strong, none = fit(Cascade(), one_click(lists), prior=1e6), fit(Cascade(), one_click(lists), 0)
    assert np.ptp(strong.attraction) < 1e-3 < np.ptp(none.attraction)
    assert none.prior == Prior() and np.isnan(none.prior.mean)
    with pytest.raises(KarmafunnelError, match="needs a prior for unknown items, found 1"):
        none.shown(np.array([[0, -1]]))


def one_click(lists: Lists) -> Lists:
    """Only the first click of each list."""
    first = lists.clicks & (np.cumsum(lists.clicks, axis=1) == 1)
    return Lists(lists.items, first, lists.mask)


def test_lists_of_a_log(shop):
    lists = Lists.of(shop, "W1", "W2")
    rows = shop.rows.filter(pl.col("position").is_not_null())
    asked = [r for r in shop.requests_in("W1", "W2") if r in set(rows["request"])]
    assert len(lists.items) == len(asked) and lists.items.shape[1] == rows["position"].max()
    for i in range(0, len(asked), 7):
        of_list = rows.filter(pl.col("request") == asked[i]).sort("position")
        slots = of_list["position"].to_numpy() - 1
        assert np.flatnonzero(lists.mask[i]).tolist() == slots.tolist()
        assert lists.items[i, slots].tolist() == of_list["item"].to_list()
        assert lists.clicks[i, slots].tolist() == of_list["clicked"].to_list()
        assert lists.users[i] == shop.user[asked[i]]
    top = Lists.of(shop, "W1", "W2", k=2)
    assert (top.items == lists.items[:, :2]).all() and (top.clicks == lists.clicks[:, :2]).all()
    nowhere = shop.exposures.with_columns(position=pl.lit(None, pl.Int32)).lazy()
    with pytest.raises(KarmafunnelError, match=r"needs lists that were shown in W1, found none"):
        Lists.of(replace(shop, lazy=shop.lazy | {"exposures": nowhere}), "W1")


def test_the_comparison_judges_as_the_models_do(shop, tmp_path):
    shop.write(tmp_path / "log")
    run = CliRunner().invoke(main, [str(tmp_path / "log"), "--out", str(tmp_path / "out"), "--alone"])
    assert run.exit_code == 0, run.output
    facts = read_json(tmp_path / "out" / "ours.json")
    assert "Cascade" not in facts  # people click twice in the shop
    assert "Cascade, prior 1: Cascade: needs lists that it allows" in facts["refused"][0]
    both, judge = Lists.of(shop, "W1", "W2"), Lists.of(shop, "W3")
    found = fit(DCM.of(both.items.shape[1]), both, facts["DCM"]["prior"], n_items=shop.n_items)
    shown = found.shown(judge.items, judge.mask)
    told = found.model.perplexity(shown, judge.clicks)
    by_slot, whole = perplexity(found.model.conditional(shown, judge.clicks), judge)
    assert whole == pytest.approx(told.whole) and np.allclose(by_slot, told.by_slot)
    text = (tmp_path / "out" / "clicks.md").read_text()
    assert f"{whole:.4f}" in text and f"{by_slot[9]:.4f}" in text
    best = max(facts["DCM"]["tune"].items(), key=lambda pair: pair[1])[0]
    assert float(best) == facts["DCM"]["prior"]


# -- bad input -------------------------------------------------------------------------------------

GOOD, *_ = drawn_lists(DCM4, 300, 6, seed=11)
FOUND = fit(DCM.of(K), GOOD)
FIVE = Shown(np.full((2, 5), 0.5))
BAD: list[tuple[Callable, str]] = [
    (lambda: PBM([]), "PBM: examination needs numbers from 0 to 1, at least 1, found none"),
    (lambda: PBM([1.0, 1.2]), "PBM: examination needs a number from 0 to 1, found 1.2"),
    (lambda: PBM(0.5), "PBM: examination needs numbers from 0 to 1, at least 1"),
    (lambda: DCM([float("nan")]), "DCM: continuation needs a number from 0 to 1"),
    (lambda: UBM([[1.0], [0.5]]), "UBM: browsing needs one number for the first slot, two for"),
    (lambda: UBM([[2.0]]), "UBM: browsing needs a number from 0 to 1"),
    (lambda: Mixture([PBM4], [1.0]), "Mixture: models needs at least two click models"),
    (lambda: Mixture([PBM4, MODELS["Mixture"]], [0.5, 0.5]), "none a mixture"),
    (lambda: Mixture([PBM4, DCM4], [0.5, 0.6]), "Mixture: weights needs 2 numbers that sum to 1"),
    (lambda: Shown(np.full(3, 0.5)), r"Shown: attraction needs \(n, k\) numbers"),
    (lambda: Shown(np.array([[0.5, np.nan]])), "attraction needs a number from 0 to 1, found nan"),
    (lambda: Shown(np.array([[0.5, 1.5]])), "found 1.5"),
    (lambda: Shown(np.full((2, 2), 0.5), np.full((2, 3), 0.5)), "satisfaction needs"),
    (lambda: Shown(np.full((2, 2), 0.5), mask=np.ones((2, 2))), "mask needs bool"),
    (lambda: PBM4.marginal(FIVE), "PBM: needs examination of 5 slots, found of 4"),
    (lambda: UBM4.marginal(FIVE), "UBM: needs browsing of 5 slots, found of 4"),
    (lambda: DCM([0.5] * 3).marginal(FIVE), "DCM: needs continuation of 5 slots, found of 4"),
    (lambda: SDBN().marginal(FIVE), "SDBN: needs the satisfaction of each item, found none"),
    (lambda: PBM4.conditional(one_list(a_whole_list, 2), np.zeros((2, 3), bool)), "clicks needs"),
    (lambda: PBM4.log_likelihood(one_list(MASKS[1], 1), np.eye(4, dtype=bool)[3:]), "slot 4 of"),
    (lambda: Lists(np.zeros(3), np.zeros(3, bool)), r"items needs whole numbers \(n, k\)"),
    (lambda: Lists(np.full((1, 2), -1), np.zeros((1, 2), bool)), "items needs numbers from 0"),
    (lambda: Lists(np.zeros((1, 2), int), np.zeros((1, 2), int)), "clicks needs bool"),
    (
        lambda: Lists(np.zeros((1, 2), int), np.eye(2, dtype=bool)[:1], np.zeros((1, 2), bool)),
        "no filled slot",
    ),
    (
        lambda: fit(PBM.of(K), Lists(GOOD.items, GOOD.clicks & False, GOOD.mask)),
        "PBM: needs slots with a click and slots without, found no click in 300 lists",
    ),
    (lambda: fit(PBM.of(K), Lists(GOOD.items, GOOD.clicks | True)), "found nothing but clicks"),
    (lambda: fit(PBM([0.9] * K), GOOD), "PBM: needs a first slot that is always looked at"),
    (lambda: fit(Mixture([UBM([[0.5]]), SDBN()], [0.5, 0.5]), GOOD), "UBM: needs a first slot"),
    (lambda: fit(Cascade(), GOOD), r"Cascade: needs lists that it allows, found \d+ of 300"),
    (lambda: fit(PBM.of(3), GOOD), "PBM: needs examination of 4 slots, found of 3"),
    (
        lambda: fit(PBM.of(K), GOOD, iterations=4, tolerance=1e-9),
        "PBM: needs an EM that changes by at most 1e-09 within 4 iterations, found",
    ),
    (
        lambda: fit(UBM.of(K), Lists(GOOD.items[:40], GOOD.clicks[:40], GOOD.mask[:40])),
        r"UBM: browsing of slot \d after .* needs at least 10 lists that tell it, found \d",
    ),
    (
        lambda: fit(DCM.of(K), Lists(GOOD.items[:20], GOOD.clicks[:20], GOOD.mask[:20])),
        "DCM: continuation after a click in slot . needs at least 10",
    ),
    (
        lambda: fit(PBM.of(K), GOOD, prior=0, n_items=9),
        "PBM: attraction of item 6 needs a look or a prior, found none",
    ),
    (lambda: FOUND.intervals(GOOD, items=[6]), "intervals: items needs a whole number from 0 to 5"),
    (lambda: FOUND.intervals(replace(GOOD, users=np.arange(300) % 9)), "10 users, found 9"),
    (lambda: replace(GOOD, users=np.arange(299)), "users needs 300 numbers"),
    (lambda: fit(PBM.of(K), GOOD, n_items=3), "PBM: n_items needs a whole number from 6"),
    (lambda: fit(PBM.of(K), GOOD, prior=-1.0), "PBM: prior needs"),
    (lambda: fit(PBM.of(K), GOOD, iterations=0), "PBM: iterations needs"),
    (lambda: fit(PBM.of(K), GOOD, tolerance=0.0), "PBM: tolerance needs"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_bad_input_is_refused(make, message):
    with pytest.raises(KarmafunnelError, match=message):
        make()


def test_a_parameter_that_lists_do_not_determine_has_no_interval():
    lists, *_ = drawn_lists(DCM4, 2000, 6, seed=12, short=False)
    twins = Mixture([DCM4, DCM4], [0.5, 0.5])  # any weight says the same
    found = fit(twins, lists)
    with pytest.raises(KarmafunnelError, match=r"intervals: .* needs lists that determine it"):
        found.intervals(lists)
