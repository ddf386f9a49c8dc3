"""Profiles: planted coefficients come back, a planted sleep is seen where it was planted, an
embedder with a network stands apart.
"""

import json
import time
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.models.embedders import Cooccurrence, CooccurrenceEmbedding
from karmafunnel.simulator.load import profile as profiling
from karmafunnel.simulator.load.profile import (
    ITEMS,
    MS,
    PASS,
    REQUESTS,
    SCHEMA,
    STAGE,
    Profile,
    Timing,
    cutoffs_of,
    fit_ratio,
    fit_time,
    measure_passes,
    networks,
    one_pass,
    quantile,
)
from karmafunnel.simulator.load.services import Services
from karmafunnel.simulator.replay.prepare import prepare
from karmafunnel.simulator.replay.recipe import Recipe, as_funnel
from karmafunnel.simulator.report.profile_page import fit_figure, fit_rows
from karmafunnel.stages import rows as rows_module
from karmafunnel.stages import stage as stage_module
from karmafunnel.stages.features import Popularity, Similarity, Upstream
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.recall import Join, Popular, VectorRecall
from karmafunnel.stages.stage import FittedStage, Stage
from scipy.stats import norm, t

pytestmark = pytest.mark.slow

# -- the fit ---------------------------------------------------------------------------------------


def cells(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Requests at once and items of all of them: 5 batch sizes with 3 numbers of items a request, n
    times.
    """
    requests, each = (x.ravel() for x in np.meshgrid([1, 2, 4, 8, 16], [100, 200, 400]))
    return np.tile(requests, n), np.tile(requests * each, n)


def test_planted_coefficients_come_back_exactly():
    requests, items = cells(2)
    made = fit_time(requests, items, 3.0 + 0.5 * requests + 2.0 / 1000 * items)
    assert (made.base_ms, made.request_ms, made.item_us) == pytest.approx((3.0, 0.5, 2.0), rel=1e-9)
    assert (made.kind, made.squared_cv) == ("constant", 0.0)


@pytest.mark.parametrize("planted", [(3.0, 0.5, 2.0), (0.0, 1.0, 3.0), (4.0, 0.0, 0.0)])
def test_noisy_coefficients_come_back_within_bounds(planted):
    """Lognormal with cv 0.3, 600 passes: the standard error of a cell's mean is 0.3 / sqrt(40), 5%
    of it.
    """
    requests, items = cells()
    fixed, request, item = planted
    sigma = np.sqrt(np.log(1.09))
    noise = np.random.default_rng(3).lognormal(-(sigma**2) / 2, sigma, len(requests))
    made = fit_time(requests, items, (fixed + request * requests + item / 1000 * items) * noise)
    told = made.base_ms + made.request_ms * requests + made.item_us / 1000 * items
    assert told == pytest.approx(fixed + request * requests + item / 1000 * items, rel=0.06)
    assert made.kind == "lognormal" and made.cv == pytest.approx(0.3, abs=0.03)
    if min(planted):
        assert (made.base_ms, made.request_ms, made.item_us) == pytest.approx(planted, rel=0.3)


def test_what_cannot_be_told_apart_is_charged_to_requests():
    """One batch size says nothing of how a batch's cost is shared; as many items with every request
    nothing of what an item costs.
    """
    one = fit_time(np.full(9, 4), np.full(9, 400), np.full(9, 10.0))
    assert (one.base_ms, one.request_ms, one.item_us) == pytest.approx((0.0, 2.5, 0.0))
    requests = np.tile([1, 2, 4], 5)
    same = fit_time(requests, 100 * requests, 1.0 + 2.0 * requests)
    assert (same.base_ms, same.request_ms, same.item_us) == pytest.approx((1.0, 2.0, 0.0))


def test_the_mean_is_the_mean_and_not_a_middle():
    """9 passes of 1 ms and one of 11: a server is busy for 2 ms on average, whatever the median
    says.
    """
    made = fit_time(np.ones(200), np.zeros(200), np.tile([1.0] * 9 + [11.0], 20))
    assert made.mean_ms() == pytest.approx(2.0, rel=1e-6)


def test_the_kind_is_the_simplest_that_fits():
    rng = np.random.default_rng(0)
    assert fit_ratio(np.ones(50) + rng.normal(0, 0.002, 50))[0] == "constant"
    sigma = np.sqrt(np.log(1 + 0.4**2))
    kind, cv, _ = fit_ratio(rng.lognormal(-(sigma**2) / 2, sigma, 4000))
    assert kind == "lognormal" and cv == pytest.approx(0.4, abs=0.03)
    # two humps, no lognormal
    two = np.where(rng.random(4000) < 0.5, 0.5, 1.5) + rng.normal(0, 0.01, 4000)
    kind, _, ratios = fit_ratio(two / two.mean())
    assert kind == "empirical" and len(ratios) == 101
    assert quantile(kind, 0.0, ratios, np.array([0.2, 0.8])) == pytest.approx([0.5, 1.5], abs=0.05)


def test_an_empirical_ratio_keeps_its_mean_and_its_spread():
    """One pass in 200 takes 50 times as long: straight lines between quantiles would spread it over
    the highest hundredth.
    """
    x = np.concatenate([np.linspace(0.5, 1.0, 3980), np.full(20, 50.0)])
    made = fit_time(np.ones(len(x)), np.zeros(len(x)), x)
    assert made.kind == "empirical" and made.mean_ratio == pytest.approx(1.0)
    assert made.mean_ms() == pytest.approx(x.mean(), rel=1e-6)
    assert made.request_ms * np.interp(0.5, np.linspace(0, 1, 101), made.ratios) == pytest.approx(np.median(x), rel=0.01)


def test_a_stage_that_is_not_linear_does_not_pass_for_one_that_varies():
    requests, items = cells(10)
    assert fit_time(requests, items, np.sqrt(requests) * 5).kind == "constant"


def test_lognormal_quantiles_are_those_of_scipy():
    sigma = np.sqrt(np.log(1 + 0.25))
    u = np.array([0.01, 0.5, 0.95])
    assert quantile("lognormal", 0.5, (), u) == pytest.approx(np.exp(sigma * norm.ppf(u) - sigma**2 / 2))


def passes(stages: dict[str, tuple[float, float, float]], rounds: int = 6) -> pl.DataFrame:
    """Noise-free passes: 3 batch sizes with 2 cutoffs of the first stage."""
    rows, n = [], 0
    for _ in range(rounds):
        for batch in (1, 2, 8):
            for cutoff in (50, 100):
                for i, (stage, (fixed, request, item)) in enumerate(stages.items()):
                    items = cutoff * batch if i else 0
                    rows.append((n, stage, batch, cutoff if i else None, items, fixed + request * batch + item / 1000 * items))
                n += 1
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def test_services_read_back_and_say_what_was_measured(tmp_path):
    made = Profile.of(
        passes({"recall": (2.0, 1.0, 0.0), "rank": (1.0, 0.0, 10.0)}), {"recall": 100, "rank": 20}, "shop", "by hand"
    )
    path = made.write(tmp_path / "deep" / "services.toml")
    read = Services.read(path)
    assert read == made.services and read.note == "by hand" and "Edit this file" in path.read_text()
    assert [(s.name, s.servers, s.items, s.k, s.deadline_ms) for s in read.stages] == [
        ("recall", 1, 0, 100, None),
        ("rank", 1, 100, 20, None),
    ]
    assert read["rank"].time.mean_ms(2, 200) == pytest.approx(1.0 + 10 * 0.2)
    assert [row["worst"] for row in made.fits] == pytest.approx([0.0, 0.0], abs=1e-6)
    row = made.cells.row(by_predicate=(pl.col(STAGE) == "rank") & (pl.col(REQUESTS) == 8) & (pl.col("cutoff") == 50), named=True)
    assert (row["items"], row["passes"], row["mean_ms"]) == (400.0, 6, pytest.approx(5.0)) and row[
        "fitted_p95_ms"
    ] == pytest.approx(5.0)
    assert len(fit_rows(made)) == 2 and len(fit_figure(made)["data"]) == 2 + 4 + 2 * 2


def slowed(found: pl.DataFrame) -> pl.DataFrame:
    """The second half of the passes takes twice as long, as where another process came."""
    late = pl.col(PASS) >= found[PASS].n_unique() // 2
    return found.with_columns(pl.when(late).then(2 * pl.col(MS)).otherwise(MS).alias(MS))


def test_a_mean_has_an_interval_that_holds_slow_spells_and_a_busy_machine():
    """Blocks of consecutive passes: constant times have no width, slow spells a wide one; a load of
    3 times the cores divides the lower end by 3 and is said.
    """
    steady = passes({"recall": (2.0, 1.0, 0.0)}, rounds=20)
    quiet = Profile.of(steady, {"recall": 100})
    assert quiet.interval("recall") == pytest.approx((1.0, 1.0), abs=1e-6) and not quiet.doubts
    (row,) = quiet.fits
    assert row["mean_low_ms"] == pytest.approx(row["mean_ms"], rel=1e-6)
    low, high = Profile.of(slowed(steady), {"recall": 100}).interval("recall")
    # block means of 2/3 five times and 4/3 five times, around 1
    half = t.ppf(0.975, 9) * np.std([2 / 3] * 5 + [4 / 3] * 5, ddof=1) / np.sqrt(10)
    assert (low, high) == pytest.approx((1 - half, 1 + half), rel=0.02)
    busy = Profile.of(slowed(steady), {"recall": 100}, busy=3.0)
    assert busy.interval("recall") == pytest.approx((low / 3, high))
    assert busy.doubts[0].startswith("The machine was busy: its load was 3.0 times its cores")
    assert Profile.of(passes({"recall": (2.0, 1.0, 0.0)}, rounds=3), {}).interval("recall") is None


def test_a_fit_whose_p95_is_off_is_doubted():
    made = Profile.of(passes({"recall": (2.0, 1.0, 0.0)}, rounds=20), {"recall": 100})
    stage = made.services["recall"]
    wide = replace(stage, time=replace(stage.time, kind="lognormal", cv=0.8))
    wrong = replace(made, services=replace(made.services, stages=(wide,)))
    (doubt,) = wrong.doubts
    assert doubt.startswith("recall: the fitted p95 is ") and "above the measured one" in doubt


def test_one_server_for_the_whole_funnel_takes_the_sum_of_uncut_passes():
    """recall 2 + n, rank 1 + 10 / 1000 * 100 n: together 3 + 2 n, of passes cut to 100."""
    made = Profile.of(passes({"recall": (2.0, 1.0, 0.0), "rank": (1.0, 0.0, 10.0)}), {"recall": 100, "rank": 20})
    (one,) = made.folded().stages
    assert (one.name, one.k, one.items) == ("funnel", 20, 0)
    assert (one.time.base_ms, one.time.request_ms) == pytest.approx((3.0, 2.0))


# -- the measurement -------------------------------------------------------------------------------


class Clock:
    """Stands for the replay's clock: 0.1 ms pass whenever it is looked at, and what is slept."""

    now = 0.0

    def perf_counter(self) -> float:
        Clock.now += 1e-4
        return Clock.now

    def sleep(self, seconds: float) -> None:
        Clock.now += seconds


clock = Clock()


@pytest.fixture
def by_clock(monkeypatch):
    for module in (rows_module, stage_module):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(profiling, "time", clock)


@dataclass(frozen=True, repr=False)
class Sleepy(Stage):
    """Keeps the order and sleeps: so long a batch, and so long a request."""

    k: int
    batch_ms: float = 0.0
    request_ms: float = 0.0
    name: str = "sleepy"

    def fit(self, context, upstream):
        return FittedSleepy(self, context)


class FittedSleepy(FittedStage):
    def score(self, rows):
        clock.sleep((self.stage.batch_ms + self.stage.request_ms * len(np.unique(rows.request))) / 1000)
        return rows.frame["score"].to_numpy()


@dataclass(frozen=True, repr=False)
class Network(Cooccurrence):
    """Stands for an embedder with a network: it takes 4 ms a batch and 1 ms a request."""

    def fit(self, log, seed=0, progress=None, device="cpu", cache=None):
        plain = Cooccurrence().fit(log, seed)
        return SlowEmbedding(self, log, plain.target, plain.source)


class SlowEmbedding(CooccurrenceEmbedding):
    online = True

    def interests(self, requests):
        clock.sleep((4 + len(requests)) / 1000)
        return super().interests(requests)


def fitted_of(shop, funnel, embedders=None):
    return prepare(Recipe("test", "", as_funnel(funnel), embedders or {}, "click"), shop)


def test_a_planted_sleep_shows_where_it_was_planted(shop, by_clock):
    fitted = fitted_of(shop, Popular(k=40) >> Sleepy(k=20, batch_ms=5.0) >> Sleepy(k=10, request_ms=2.0, name="slower"))
    found = measure_passes(fitted, shop.requests_in("W3"), Timing(batches=(1, 2, 8), most=60))
    made = Profile.of(found, {"recall": 40, "sleepy": 20, "slower": 10}).services
    # a stage looks at the clock twice, which is 0.1 ms, and has a third of what passes between
    # stages, before and after: 4 times 0.1 ms
    told = [
        x - 0.7 / 3 * (i % 3 == 0)
        for i, x in enumerate(x for s in made.stages for x in (s.time.base_ms, s.time.request_ms, s.time.item_us))
    ]
    assert told == pytest.approx([0, 0, 0, 5.0, 0, 0, 0, 2.0, 0], abs=1e-4)
    assert [(s.name, s.items, s.k) for s in made.stages] == [("recall", 0, 40), ("sleepy", 40, 20), ("slower", 20, 10)]


def test_a_real_sleep_takes_its_time(shop):
    """By the real clock, on whatever machine: no pass through the stage is shorter than the sleep.
    """
    fitted = fitted_of(shop, Popular(k=40) >> Sleepy(k=20, batch_ms=0.0))
    fitted.stages[1].score = lambda rows: (time.sleep(0.005), rows.frame["score"].to_numpy())[1]
    found = measure_passes(fitted, shop.requests_in("W3"), Timing(batches=(1, 2), most=20))
    made = Profile.of(found, {"recall": 40, "sleepy": 20}).services["sleepy"].time
    assert found.filter(pl.col(STAGE) == "sleepy")[MS].min() >= 5.0 <= made.base_ms + 1.5 * made.request_ms


def test_passes_cut_every_slate_and_take_every_batch_size_as_often(shop):
    fitted = fitted_of(shop, Popular(k=40) >> Sleepy(k=20) >> Sleepy(k=10, name="last"))
    timing = Timing((1, 4), {"recall": [10, 40], "sleepy": [5, 20]}, seconds=30.0, most=40)
    found = measure_passes(fitted, shop.requests_in("W3"), timing)
    assert found[PASS].n_unique() == 40 and found.filter(pl.col(STAGE) == "last").group_by(REQUESTS).len()["len"].to_list() == [
        20,
        20,
    ]
    rows = found.filter(pl.col(STAGE) == "sleepy")
    assert (rows[ITEMS] == rows["cutoff"] * rows[REQUESTS]).all() and set(rows["cutoff"]) == {10, 40}
    last = found.filter(pl.col(STAGE) == "last").join(rows.select(PASS, pl.col("cutoff").alias("before")), on=PASS)
    assert (last[ITEMS] == pl.Series(np.minimum(last["cutoff"], last["before"])) * last[REQUESTS]).all()
    assert (found.filter(pl.col(STAGE) == "recall")[ITEMS] == 0).all() and (found[MS] > 0).all()
    again = measure_passes(fitted, shop.requests_in("W3"), timing)
    assert again.drop(MS).equals(found.drop(MS))  # same seed: the same passes in the same order
    assert not measure_passes(fitted, shop.requests_in("W3"), timing, seed=1).drop(MS).equals(found.drop(MS))


def test_an_embedder_with_a_network_stands_apart_and_is_not_counted_twice(shop, by_clock):
    # prerank reads the vectors, too: they are there by then
    features = [Upstream(), Popularity(), Similarity("net")]
    funnel = Join((VectorRecall("net", k=40), Popular(k=40)), k=60) >> LightGBMPreRank(k=20, features=features, trees=5)
    fitted = fitted_of(shop, funnel, {"net": Network()})
    assert networks(fitted) == ["net"]
    found = measure_passes(fitted, shop.requests_in("W3"), Timing(batches=(1, 2, 8), most=60))
    made = Profile.of(found, {"recall": 60, "prerank": 20}).services
    assert [(s.name, s.k) for s in made.stages] == [("net", None), ("recall", 60), ("prerank", 20)]
    # some requests filter
    assert [s.items for s in made.stages[:2]] == [0, 0] and 50 < made["prerank"].items <= 60
    assert (made["net"].time.base_ms, made["net"].time.request_ms) == pytest.approx((4.1, 1.0), abs=1e-5)
    # looks at the clock, 0.1 ms each: a stage's, and two for every feature and what it says of
    # pairs
    assert all(s.time.base_ms < 1.5 and s.time.request_ms < 1e-5 for s in made.stages[1:])
    requests = shop.requests_in("W3")
    together = one_pass(fitted, requests[:1], [])  # without a stage of its own it is recall's
    assert [row[0] for row in together] == ["recall", "prerank"] and together[0][2] > 5 > 1.5 > together[1][2]


def test_a_server_that_is_not_busy_idles_between_passes(shop, monkeypatch):
    """A third of the passes come at once; the idle times of the others are three passes long on
    average.
    """
    slept = []
    monkeypatch.setattr(profiling, "time", clock)
    for module in (rows_module, stage_module):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(Clock, "sleep", lambda self, seconds: slept.append(seconds))
    fitted = fitted_of(shop, Popular(k=40) >> Sleepy(k=20))
    slept.clear()
    measure_passes(fitted, shop.requests_in("W3"), Timing(batches=(1,), cutoffs={}, seconds=1e6, most=600, load=1 / 3))
    idle = [s for s in slept if s]  # the stage sleeps 0
    assert len(idle) == pytest.approx(400, abs=40)
    one = 0.7e-3 + 0  # a pass: 7 looks at the clock
    assert np.mean(idle) == pytest.approx(3 * one, rel=0.2)
    slept.clear()
    measure_passes(fitted, shop.requests_in("W3"), Timing(batches=(1,), cutoffs={}, seconds=1e6, most=50))
    assert not any(slept)


def test_an_embedder_without_a_network_is_no_stage(shop):
    fitted = fitted_of(shop, VectorRecall("near", k=20), {"near": Cooccurrence()})
    assert networks(fitted) == []
    assert [row[0] for row in one_pass(fitted, shop.requests_in("W3")[:2], [])] == ["recall"]


# -- errors and the command ------------------------------------------------------------------------


def test_refusals_say_what_is_needed(shop):
    fitted = fitted_of(shop, Popular(k=40) >> Sleepy(k=20))
    requests = shop.requests_in("W3")[:100]
    for say, match in (
        ({"batches": (0, 2)}, "batches needs a whole number from 1 to 100,000, found \\[0, 2\\]"),
        ({"batches": (64,)}, "needs 128 requests in the window for batches of 64, found 100"),
        ({"cutoffs": {"recall": [20, 41]}}, "cutoffs of recall needs numbers from 1 to its k, 40, found \\[20, 41\\]"),
        ({"cutoffs": {"recall": [0]}}, "from 1 to its k"),
        ({"cutoffs": {"sleepy": [5]}}, "stages before the last, \\['recall'\\], found 'sleepy'"),
        ({"seconds": 0.0}, "seconds needs a number above 0"),
        ({"load": 0.0}, "load needs a number above 0 and at most 1, found 0.0"),
        ({"seconds": 0.001}, "needs 5 passes of every batch size, found .* more seconds"),
    ):
        with pytest.raises(KarmafunnelError, match=match):
            measure_passes(fitted, requests, replace(Timing(batches=(1, 2)), **say))
    with pytest.raises(KarmafunnelError, match="2 or more times above 0 ms"):
        fit_time(np.ones(3), np.ones(3), np.array([1.0, 0.0, 2.0]))


def test_cutoffs_are_shares_of_k_unless_said(shop):
    fitted = fitted_of(shop, Popular(k=40) >> Sleepy(k=2) >> Sleepy(k=1, name="last"))
    assert cutoffs_of(fitted) == {"recall": [10, 20, 40], "sleepy": [1, 2]}
    assert cutoffs_of(fitted, {"recall": [30, 10, 30]}) == {"recall": [10, 30], "sleepy": [2]}


RECIPE = """
from karmafunnel.stages.features import Popularity, Upstream
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.recall import Popular
embedders, label = {}, "click"
funnel = Popular(k=40) >> LightGBMPreRank(k=20, features=[Upstream(), Popularity()], trees=5)
"""


def test_the_command_writes_services_and_a_page(shop, tmp_path, monkeypatch):
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    shop.write(tmp_path / "log")
    (tmp_path / "small.py").write_text(RECIPE)
    line = [
        "profile",
        str(tmp_path / "small.py"),
        str(tmp_path / "log"),
        "--out",
        str(tmp_path / "services.toml"),
        "--seconds",
        "0.5",
    ]
    answer = CliRunner().invoke(main, [*line, "--batches", "1,2", "--cutoffs", "recall=10,40", "--seconds", "1", "--json"])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    read = Services.read(tmp_path / "services.toml")
    assert (
        Services.of(told["services"]) == read
        and [s.name for s in read.stages] == ["recall", "prerank"]
        and "threads 1" in read.note
    )
    assert {row["stage"] for row in told["fits"]} == {"recall", "prerank"} and len(told["cells"]) == 2 + 4
    page = (tmp_path / "services.html").read_text()
    assert "karmafunnel profile" in page and page.count('src="http') == 0
    assert "at worst" in CliRunner().invoke(main, [*line, "--batches", "1"]).stdout

    for more, match in (
        (["--batches", "1,x"], "'--batches': needs a whole number from 1 to"),
        (["--cutoffs", "recall"], "'--cutoffs': needs a whole number from 1 to"),
        (["--cutoffs", "recall=50"], "cutoffs of recall needs numbers from 1 to its k, 40"),
        (["--threads", "0"], "'--threads': needs a whole number from 1"),
    ):
        answer = CliRunner().invoke(main, [*line, *more])
        assert answer.exit_code in (1, 2) and match in answer.stderr.replace("\n", " "), answer.stderr
    answer = CliRunner().invoke(main, ["profile", "nowhere", str(tmp_path / "log"), "--out", "x.toml"])
    assert answer.exit_code == 1
    assert "found 'nowhere'" in answer.stderr
    answer = CliRunner().invoke(main, ["profile", "baseline", str(tmp_path / "none"), "--out", "x.toml"])
    assert answer.exit_code == 1 and "none" in answer.stderr


def test_a_profile_changes_nothing_else(shop):
    """Threads and garbage collection are as before."""
    import gc

    import torch
    from karmafunnel.simulator.load.profile import threads_of

    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads_of(1):
        assert torch.get_num_threads() == 1 and not gc.isenabled()
        raise ZeroDivisionError
    assert torch.get_num_threads() == before and gc.isenabled()


def test_services_take_the_name_of_a_stage_once(shop):
    """An embedder of a stage's name is no stage of its own: its time stays where it is read."""
    fitted = fitted_of(shop, VectorRecall("recall", k=20), {"recall": Network()})
    assert networks(fitted) == [] and replace(fitted.stages[0].stage).name == "recall"
