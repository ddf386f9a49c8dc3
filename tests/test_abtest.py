"""A/B tests and interleaving in a simulated shop: what must be equal, what must differ, and what is
refused.
"""

import gc
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.benchmarks.studies import proxy_funnels
from karmafunnel.benchmarks.validation import claim_tested
from karmafunnel.benchmarks.validation.claim_tested import CONTROLS, READ, TREATED
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.simulator.experiment import arms as arms_module
from karmafunnel.simulator.experiment.arms import Design, Folders, Outcome, run
from karmafunnel.simulator.experiment.duel import Duel, duel
from karmafunnel.simulator.experiment.experiment import Experiment
from karmafunnel.simulator.experiment.figures_by_arm import BACK, Sums, read
from karmafunnel.simulator.experiment.interleaving import TeamDraft
from karmafunnel.simulator.experiment.past import Past
from karmafunnel.simulator.experiment.result_page import POINTS, requests_figure, result_page
from karmafunnel.simulator.experiment.result_tables import (
    as_told,
    duel_table,
    lines_table,
    mismatch,
    shops_table,
    smallest_lift,
    verdict,
    warnings,
)
from karmafunnel.simulator.experiment.serving import Server, best
from karmafunnel.simulator.experiment.split import SampleRatio
from karmafunnel.simulator.measure.describe import gini
from karmafunnel.simulator.measure.run import Run
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.report.table import number
from karmafunnel.simulator.world.clicks import PBM
from karmafunnel.simulator.world.marketplace import Engine, GammaRates, Marketplace, Rhythm
from karmafunnel.simulator.world.open_shop import Shop, open_shop

WORDS = """
from karmafunnel.stages.recall import BM25Recall, Join, Popular
funnel = Join([BM25Recall(k=60), Popular(k=40)], k=80)
"""
BLIND = """
from karmafunnel.models.embedders import RandomVectors
from karmafunnel.stages.recall import Join, VectorRecall
embedders = {"random": RandomVectors()}
funnel = Join([VectorRecall("random", k=60)], k=60)
"""
LEARNED = """
from karmafunnel.models.embedders import Cooccurrence
from karmafunnel.stages.features import BM25, Popularity, Similarity, Upstream
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import BM25Recall, ItemKNN, Join, Popular, VectorRecall
embedders = {"together": Cooccurrence(dim=8)}
funnel = Join(
    [BM25Recall(k=40), ItemKNN(k=30), Popular(k=30, days=14), VectorRecall("together", k=20)], k=60
) >> LightGBMRank(
    k=30, trees=12, features=[Upstream(), Popularity(), BM25(), Similarity("together")]
)
"""
DESIGN = Design(days=4, before=8, retrain=2, slots=8)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("recipes")
    texts = {"words": WORDS, "blind": BLIND, "learned": LEARNED}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return {name: str(folder / f"{name}.py") for name in texts}


def opened(users: int = 150, seed: int = 3) -> Shop:
    return open_shop(Marketplace(), items=150, users=users, seed=seed)


def kept(folder: Path) -> Folders:
    (folder / "lists").mkdir(parents=True, exist_ok=True)
    return Folders(folder / "lists", folder / "cache")


def past_of(shop: Shop, days: int) -> Past:
    past = Past(shop.items, arms_module.META, 30)
    for day in range(days):
        for visits in shop.day(day):
            shown = shop.logging(visits)
            answers = shop.answer(visits, shown.items)
            past.add(visits.requests, shop.exposures(visits, shown.items, answers))
    return past


@pytest.fixture(scope="module")
def split(recipes: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("split")
    return run((recipes["words"], recipes["blind"]), opened(), DESIGN, kept(folder))


# -- serving ---------------------------------------------------------------------------------------


def test_a_server_lists_what_a_replay_of_the_same_log_lists(
    recipes: dict[str, str], tmp_path: Path
) -> None:
    """Fitted on a log, then asked on one that has grown: the lists are those of a Run whose log had
    all of it from the beginning.
    """
    shop = opened()
    past = past_of(shop, 9)
    first = next(iter(shop.day(9)))
    past.begin_fit()
    server = Server.of(recipes["learned"], past.log(first.requests), tmp_path / "cache")
    answers = shop.answer(first, shop.logging(first).items)
    past.add(first.requests, shop.exposures(first, shop.logging(first).items, answers))
    more = first.requests.with_columns(
        (pl.col("request_id") + "x").alias("request_id"), pl.col("ts") + pl.duration(hours=30)
    )
    grown = past.log(more)
    wanted = grown.requests_in("W3")[-len(first) :]
    lists = best(server.on(grown), wanted, 8)

    place = replay(load_recipe(recipes["learned"], grown), grown, tmp_path / "run")
    slates = Run.open(place).slates.filter(pl.col("stage") == "rank", pl.col("rank") <= 8)
    items = {item: row for row, item in enumerate(grown.item_ids)}
    expected = np.full(lists.shape, -1)
    at = {request: row for row, request in enumerate(grown.request_ids[wanted])}
    for request, item, rank in slates.select("request_id", "item_id", "rank").iter_rows():
        if request in at:
            expected[at[request], rank - 1] = items[item]
    assert (expected >= 0).mean() > 0.9
    assert np.array_equal(lists, expected)


def test_windows_are_pinned_between_fits_and_old_days_are_dropped() -> None:
    shop = opened()
    past = past_of(shop, 9)
    before = pl.concat(past.requests)
    past.days = 5
    past.begin_fit()
    kept_requests = past.requests[0]
    window = kept_requests["window"]
    share = {name: (window == name).mean() for name in ("W1", "W2a", "W2b")}
    assert share["W1"] == pytest.approx(0.75, abs=0.02)
    assert share["W2b"] == pytest.approx(0.0625, abs=0.02)
    span = kept_requests["ts"].max() - kept_requests["ts"].min()
    assert span.days < 5 and kept_requests.height < before.height
    ids = set(kept_requests["request_id"])
    assert set(past.exposures[0]["request_id"]) <= ids
    now = next(iter(shop.day(9))).requests
    log = past.log(now)
    assert log.requests.filter(pl.col("request_id").is_in(now["request_id"].implode()))[
        "window"
    ].unique().to_list() == ["W3"]
    old = log.requests.filter(pl.col("window") != "W3")
    assert old["window"].to_list() == window.to_list()


# -- arms ------------------------------------------------------------------------------------------


def test_users_stay_in_their_arm_and_everything_is_counted_once(split: Outcome) -> None:
    users = split.users
    assert users.group_by("user").agg(pl.col("arm").n_unique())["arm"].max() == 1
    assert users["day"].min() == -DESIGN.before and users["day"].max() == DESIGN.days - 1
    assert users.select("day", "user").is_unique().all()
    during = users.filter(pl.col("day") >= 0)
    by_arm = split.items.group_by("arm").sum().sort("arm")
    for name in ("clicks", "purchases", "gmv"):
        mine = during.group_by("arm").agg(pl.col(name).sum()).sort("arm")[name]
        assert by_arm[name].to_list() == pytest.approx(mine.to_list())
    shown = by_arm["shown"].to_numpy()
    requests = during.group_by("arm").agg(pl.col("requests").sum()).sort("arm")["requests"]
    assert (shown == 8 * requests.to_numpy()).all()


def test_words_beat_random_vectors_in_the_test_and_in_truth(
    recipes: dict[str, str], split: Outcome, tmp_path: Path
) -> None:
    both = (recipes["words"], recipes["blind"])
    alone = tuple(
        run(both, opened(), DESIGN, kept(tmp_path / str(arm)), np.full(150, arm)) for arm in (0, 1)
    )
    shop = opened()
    result = read(split, DESIGN, np.arange(shop.items.height), alone)
    by_name = {line.name: line for line in result.lines}
    clicks = by_name["clicks a request"]
    assert clicks.effect.interval[1] < 0 and clicks.truth < 0
    assert by_name["GMV a request, expected"].truth < 0
    assert not result.ratio.mismatch
    assert [round(look.units) for look in clicks.looks] == sorted(
        round(look.units) for look in clicks.looks
    )
    assert len(clicks.looks) == DESIGN.days == len(clicks.always)
    low, high = clicks.always[-1]
    assert low < clicks.effect.interval[0] and high > clicks.effect.interval[1]
    assert all(len(row) == 9 for row in lines_table(result, DESIGN).rows)
    told = as_told(result, DESIGN)
    assert json.loads(json.dumps(told))["figures"][0]["truth"] == clicks.truth


def test_the_same_recipe_twice_makes_no_difference_in_truth(
    recipes: dict[str, str], tmp_path: Path
) -> None:
    both = (recipes["words"], recipes["words"])
    alone = tuple(
        run(both, opened(), DESIGN, kept(tmp_path / str(arm)), np.full(150, arm)) for arm in (0, 1)
    )
    sums = [outcome.users.drop("arm") for outcome in alone]
    assert sums[0].equals(sums[1])
    outcome = run(both, opened(), DESIGN, kept(tmp_path / "split"))
    result = read(outcome, DESIGN, np.arange(150), alone)
    assert all(line.truth == 0 for line in result.lines)


def test_a_killed_experiment_goes_on_with_the_same_bytes(
    recipes: dict[str, str], split: Outcome, tmp_path: Path
) -> None:
    both, folders = (recipes["words"], recipes["blind"]), kept(tmp_path)
    whole = run(both, opened(), DESIGN, folders)
    assert whole.users.equals(split.users) and whole.items.equals(split.items)
    lists = sorted(folders.lists.iterdir())
    days = {path.name[:9] for path in lists}
    assert len(days) == DESIGN.days
    for path in lists[-3:]:
        path.unlink()
    lists[0].write_bytes(lists[0].read_bytes()[:-9])
    pl.DataFrame({"items": [1]}).write_parquet(lists[1])
    again = run(both, opened(), DESIGN, folders)
    assert again.users.equals(split.users) and again.items.equals(split.items)


def test_funnels_are_fitted_as_often_as_designed(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = []

    def of(recipe: str, log: Log, cache: Path, seed: int = 0) -> Server:
        logs.append((recipe, log.requests.filter(pl.col("window") != "W3").height))
        return made(recipe, log, cache, seed)

    made = Server.of
    monkeypatch.setattr(arms_module.Server, "of", of)
    both = (recipes["words"], recipes["blind"])
    run(both, opened(), DESIGN, kept(tmp_path))
    assert [recipe for recipe, _ in logs] == [*both, *both]
    assert logs[2][1] > logs[0][1] == logs[1][1]
    logs.clear()
    once = Design(days=4, before=8, retrain=0, slots=8)
    run(both, opened(), once, kept(tmp_path / "once"))
    assert [recipe for recipe, _ in logs] == [*both]


# -- figures ---------------------------------------------------------------------------------------


def test_logs_of_past_days_are_let_go(recipes: dict[str, str], tmp_path: Path) -> None:
    alive = []

    def count(said: str) -> None:
        if said.startswith("day"):
            alive.append(sum(type(one) is Log for one in gc.get_objects()))

    design = Design(days=6, before=6, retrain=0, seed=1)
    gc.collect()
    before = sum(type(one) is Log for one in gc.get_objects())
    gc.disable()
    try:
        run((recipes["words"], recipes["blind"]), opened(60), design, kept(tmp_path), say=count)
    finally:
        gc.enable()
    assert max(alive) - before <= 2  # that of the fit, and the last one


def outcome_of(rows: list[tuple[int, int, int, int, float]]) -> Outcome:
    """Rows of day, user, arm, clicks, gmv, each of one request."""
    columns = ["day", "user", "arm", "clicks", "gmv"]
    users = pl.DataFrame(rows, schema=columns, orient="row").with_columns(
        pl.lit(1.0).alias("requests"), pl.lit(0.0).alias("purchases"),
        pl.lit(0.0).alias("expected_gmv"),
    )  # fmt: skip
    items = pl.DataFrame(
        {"arm": [0, 0, 1, 1], "item": [0, 1, 0, 1], "shown": [1.0, 0, 2, 3], "gmv": [4.0, 0, 1, 1]}
    )
    return Outcome(users, items)


def test_figures_by_hand() -> None:
    outcome = outcome_of(
        [(-1, 0, 0, 3, 6.0), (-1, 9, 0, 9, 9.0), (0, 0, 0, 1, 2.0), (0, 1, 0, 0, 0.0),
         (0, 2, 1, 2, 5.0), (0, 3, 1, 1, 1.0), (1, 0, 0, 0, 0.0), (1, 2, 1, 2, 3.0)]
    )  # fmt: skip
    sums = Sums(outcome, 2)
    assert sums.users.tolist() == [0, 1, 2, 3] and sums.arm.tolist() == [0, 0, 1, 1]
    assert sums.arrived.tolist() == [0, 0, 0, 0]
    assert sums.summed("clicks").tolist() == [1, 0, 4, 1]
    assert sums.summed("clicks", 1).tolist() == [0, 0, 2, 0]
    assert sums.before("gmv").tolist() == [6, 0, 0, 0]  # user 9 never came during it
    back, there = sums.back()
    assert there.all() and back.total.tolist() == [1, 0, 1, 0]
    assert read(outcome, Design(days=2, retrain=0), np.array([0, 0])).shops[0]["Gini of sellers"] is None
    result = read(outcome, Design(days=2, retrain=0), np.array([0, 1]))
    by_name = {line.name: line for line in result.lines}
    assert by_name[BACK].effect.value == 0
    requests = by_name["requests a user"].effect
    # 1.5 in both arms; the control's users had half a request more before, which CUPED takes out
    assert requests.value == pytest.approx(0.5) and requests.control == pytest.approx(1.25)
    assert requests.seen == (1.5, 1.5)  # which is what the table prints of the arms
    filled = result.shops[0].pop("slots filled")
    assert filled == 1 / (3 * 24)  # an item in three lists
    assert result.shops[0] == {"items shown": 0.5, "Gini of sellers": 0.5}
    assert result.shops[1]["items shown"] == 1.0


def test_gini_by_hand() -> None:
    assert gini(np.array([1.0, 1, 1, 1])) == 0
    assert gini(np.array([0.0, 0, 0, 8])) == 0.75
    assert np.isnan(gini(np.zeros(3)))


def test_lifts_and_what_has_no_interval_are_told(split: Outcome) -> None:
    result = read(split, DESIGN, np.arange(150))
    clicks = next(line for line in result.lines if line.name == "clicks a request")
    assert clicks.smallest_lift > clicks.smallest / max(clicks.effect.control, clicks.effect.treated)
    assert smallest_lift(clicks) == f"{clicks.smallest_lift:+.1%}"
    assert smallest_lift(replace(clicks, smallest_lift=math.inf)) == "none"
    assert as_told(result, DESIGN)["figures"][0]["smallest_lift"] == clicks.smallest_lift
    assert any("No interval" in one for one in shops_table(result).below)
    assert any("users who came back: " in one for one in lines_table(result, DESIGN).below)


def test_the_table_of_the_claim(split: Outcome) -> None:
    result = read(split, DESIGN, np.arange(150))
    table = claim_tested.table_of([("all, TF-IDF", result)], "default", DESIGN)
    (row,) = table.rows
    lines = {line.name: line for line in result.lines}
    assert [row[0], row[2]] == ["all, TF-IDF", number(lines["GMV a request"].effect.seen[0])]
    for name, cell in zip(READ, row[3:6], strict=True):
        effect = lines[name].effect
        known = effect.lift_interval != (None, None)
        assert cell.text == (number(effect.lift, True) if known else "n/a")
        assert (cell.mark == "*") == (known and effect.p < 0.05)
    assert TREATED in proxy_funnels.rows() and {*CONTROLS} < proxy_funnels.rows().keys()


def test_a_mismatch_is_told_loudly(split: Outcome) -> None:
    result = read(split, DESIGN, np.arange(150))
    assert mismatch(result) == ""
    broken = SampleRatio.of((900, 400), (0.5, 0.5))
    assert "No figure" in mismatch(type(result)(result.lines, broken, result.shops))


# -- interleaving ----------------------------------------------------------------------------------


def test_interleaving_prefers_words_and_is_undecided_between_twins(
    recipes: dict[str, str], tmp_path: Path
) -> None:
    design = Design(days=4, before=8, retrain=0, slots=8)
    both = (recipes["blind"], recipes["words"])
    found = duel(both, opened(), design, kept(tmp_path / "a"), TeamDraft())
    assert found.preference().interval[0] > 0
    again = duel(both, opened(), design, kept(tmp_path / "a"), TeamDraft())
    assert np.array_equal(found.score, again.score)
    twins = (recipes["words"], recipes["words"])
    level = duel(twins, opened(), design, kept(tmp_path / "b"), TeamDraft()).preference()
    low, high = level.interval
    assert low < 0 < high


def test_the_course_of_an_interleaving_is_drawn() -> None:
    rng, n = np.random.default_rng(0), 3_000
    score = rng.choice([-1, 0, 1], n, p=[0.3, 0.3, 0.4])
    found = Duel(rng.integers(0, 900, n), np.zeros(n, int), score)
    plot = requests_figure(found)
    band, line = plot["data"]
    assert len(line["x"]) == POINTS and line["x"][-1] == n
    assert line["y"][-1] == pytest.approx(score.mean())
    running = found.running()
    certain, drawn = running.certain_after, len(band["x"]) // 2
    assert drawn < POINTS and np.isfinite(band["y"]).all()  # no interval at first
    high, low = band["y"][drawn], band["y"][drawn - 1]
    assert (low, high) == pytest.approx(score.mean() + running.half[-1] * np.array([-1, 1]))
    assert [shape["x0"] for shape in plot["layout"]["shapes"]] == [certain]
    few = Duel(*(column[:50] for column in (found.user, found.day, found.score)))
    assert requests_figure(few)["layout"]["shapes"] == []


# -- bad input -------------------------------------------------------------------------------------


def test_what_cannot_be_tested_is_refused(recipes: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(KarmafunnelError, match="needs more days than the 7"):
        Design(days=7)
    with pytest.raises(KarmafunnelError, match="retrain"):
        Design(retrain=-1)
    labelled = tmp_path / "bought.py"
    labelled.write_text(WORDS + 'label = "purchase"\n')
    both = (recipes["words"], str(labelled))
    said: list[str] = []
    with pytest.raises(KarmafunnelError, match=r"one label, found click in .*purchase in .*bought"):
        run(both, opened(), DESIGN, kept(tmp_path), say=said.append)
    with pytest.raises(KarmafunnelError, match=r"recipe words: needs no row.*'other'"):
        run((both[0], f"{both[0]}::other"), opened(), DESIGN, kept(tmp_path), say=said.append)
    assert said == []  # before anything is served or fitted
    empty = outcome_of([(0, 0, 0, 1, 2.0), (0, 2, 1, 1, 2.0)])
    with pytest.raises(KarmafunnelError, match=r"at least 2 users in each arm.*1 and 1"):
        read(empty, Design(days=1, retrain=0), np.array([0, 0]))


def test_a_fit_waits_for_the_first_day_with_visits(
    recipes: dict[str, str], tmp_path: Path
) -> None:
    """The experiment begins on a Monday, on which nobody comes."""
    market = Marketplace(rhythm=Rhythm(week=(0, 1, 1, 1, 1, 1, 1)))
    shop = open_shop(market, items=100, users=150, seed=3)
    design = Design(days=3, before=7, retrain=0, slots=8)
    outcome = run((recipes["blind"], recipes["blind"]), shop, design, kept(tmp_path))
    during = outcome.users.filter(pl.col("day") >= 0)
    assert during["day"].min() == 1
    assert outcome.items["shown"].sum() == 8 * during["requests"].sum()


@pytest.mark.parametrize(
    "market, needed",
    [
        (Marketplace(activity=GammaRates(1e-9)), "experiment: needs requests, found none"),
        (Marketplace(clicks=1e-9, purchases=1e-10), "clicks to fit funnels on, found none in"),
        (
            Marketplace(
                clicks=0.5, purchases=0.1, browsing=PBM((1.0, 0.5)), engine=Engine(slots=2)
            ),
            "examination of 8 slots, found of 2",
        ),
    ],
)
def test_a_shop_that_funnels_cannot_serve_is_refused(
    market: Marketplace, needed: str, recipes: dict[str, str], tmp_path: Path
) -> None:
    shop = open_shop(market, items=100, users=100, seed=3)
    both = (recipes["words"], recipes["blind"])
    design = Design(days=2, before=3, retrain=0, slots=8)
    with pytest.raises(KarmafunnelError, match=needed):
        run(both, shop, design, kept(tmp_path))
    again = open_shop(market, items=100, users=100, seed=3)
    with pytest.raises(KarmafunnelError, match=needed.replace("experiment", "interleave")):
        duel(both, again, design, kept(tmp_path), TeamDraft())


def test_an_arm_without_users_is_refused_before_any_day(
    recipes: dict[str, str], tmp_path: Path
) -> None:
    design = Design(days=2, before=3, retrain=0, share=1e-4)
    both = (recipes["words"], recipes["blind"])
    asked = Experiment(both, Marketplace(), design, 100, 100, tmp_path)
    with pytest.raises(KarmafunnelError, match="at least 2 users in each arm, found 100 and 0"):
        asked.test()
    assert not list(tmp_path.iterdir())


def test_short_lists_and_shops_without_sales_are_told(
    recipes: dict[str, str], tmp_path: Path
) -> None:
    own = tmp_path / "own.py"
    own.write_text("from karmafunnel.stages.recall import Repeat\nfunnel = Repeat(k=9)\n")
    both, design = (recipes["blind"], str(own)), Design(days=2, before=4, retrain=0, slots=8)
    outcome = run(both, opened(), design, kept(tmp_path / "a"))
    nothing = outcome.items.with_columns(gmv=pl.lit(0.0))
    result = read(Outcome(outcome.users, nothing), design, np.arange(150))
    assert [shop["Gini of sellers"] for shop in result.shops] == [None, None]
    assert result.shops[0]["slots filled"] == 1 and result.shops[1]["slots filled"] < 0.2
    few, short = warnings(result, ("blind", "own"))
    assert few.startswith("Only 10 and 19 users") and short.startswith("Lists are short.")
    assert verdict(result) == ["Nothing is decided: too few users."]
    assert shops_table(result).rows[1][1:] == ["n/a", "n/a"]
    assert json.loads(json.dumps(as_told(result, design), allow_nan=False))
    found = duel(both, opened(), design, kept(tmp_path / "b"), TeamDraft())
    assert found.filled[0] == 1 and found.filled[1] < 0.2
    assert "own" in duel_table(found, ("blind", "own"), "TeamDraft()").below[-1]


def test_a_first_day_without_an_arm_leaves_the_days_out() -> None:
    outcome = outcome_of([(0, 0, 0, 1, 2.0)] + [(1, user, user % 2, 1, 2.0) for user in range(6)])
    design = Design(days=2, retrain=0)
    result = read(outcome, design, np.array([0, 0]))
    assert not result.lines[0].looks
    page = result_page(result, design, ("a", "b"), "karmafunnel abtest", {})
    assert "days" not in [section.name for section in page.sections]
    assert "No interval by day" in lines_table(result, design).below[-1]


def test_commands(recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    shop = tmp_path / "shop.py"
    shop.write_text(
        "from karmafunnel.simulator.world.marketplace import Marketplace\n"
        "marketplace = Marketplace()\n"
    )
    both = [recipes["words"], recipes["blind"], str(shop)]
    sizes = ["--days", "3", "--before", "6", "--retrain", "0", "--users", "120", "--items", "150"]
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["abtest", *both, *sizes, "--truth", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "clicks a request" in done.output and "truth" in done.output
    names = {path.name for path in out.iterdir()}
    assert {"experiment.json", "experiment.html", "users.parquet", "items.parquet"} <= names
    told = json.loads((out / "experiment.json").read_text())
    assert told["record"]["words"] == WORDS and told["record"]["marketplace"] == "Marketplace()"
    assert not list((tmp_path / "cache").glob("experiment-*"))
    done_before = (out / "experiment.html").stat().st_mtime_ns, done.stdout
    done = CliRunner().invoke(main, ["abtest", *both, *sizes, "--truth", "--out", str(out)])
    assert done.exit_code == 0 and "already" in done.stderr  # nothing is played again
    assert ((out / "experiment.html").stat().st_mtime_ns, done.stdout) == done_before
    again = ["abtest", *both, "--out", str(out), *sizes[:2], "--before", "7", *sizes[4:]]
    done = CliRunner().invoke(main, again)  # of another design: not without --force
    assert done.exit_code == 1 and "design" in done.stderr and "--force" in done.stderr
    assert json.loads((out / "experiment.json").read_text()) == told
    page = tmp_path / "duel.html"
    done = CliRunner().invoke(main, ["interleave", *both, *sizes, "--json", "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["preference"] < 0
    assert "words (A) against blind (B)" in page.read_text() and WORDS.strip()[:30] in page.read_text()
    done = CliRunner().invoke(main, ["interleave", *both, *sizes, "--out", str(shop)])
    assert done.exit_code == 1 and shop.read_text().startswith("from karmafunnel")


def test_a_world_brings_its_recipe_its_users_and_its_goods(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    shop, made = tmp_path / "shop.py", tmp_path / "made"
    text = "from karmafunnel.simulator.world.marketplace import *\nmarketplace = "
    made_so = "Marketplace(clicks=1.1, engine=Engine(slots=10, pool=30))"
    shop.write_text(f"{text}{made_so}\n")
    sizes = ["--items", "120", "--users", "110", "--days", "5"]
    done = CliRunner().invoke(main, ["world", str(made), "--recipe", str(shop), *sizes])
    assert done.exit_code == 0, done.output
    few = ["--days", "2", "--before", "6", "--retrain", "0", "--out", str(tmp_path / "out")]
    both = [recipes["words"], recipes["blind"]]
    done = CliRunner().invoke(main, ["abtest", *both, str(made), *few, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["record"]["marketplace"] == made_so
    assert "slots=10" in told["design"]  # lists as long as the shop's own
    assert (told["users"], told["items"]) == (110, 120)
    meta = json.loads((made / "log.json").read_text())
    del meta["world"]["users"]
    (made / "log.json").write_text(json.dumps(meta))
    (made / "digests.json").unlink()
    done = CliRunner().invoke(main, ["abtest", *both, str(made), *few, "--force"])
    assert done.exit_code == 1 and "world.users needs a whole number" in done.output, done.output
    plain = tmp_path / "plain"
    world = ["world", str(plain), "--items", "100", "--users", "30", "--requests", "100"]
    assert CliRunner().invoke(main, world).exit_code == 0
    done = CliRunner().invoke(main, ["abtest", *both, str(plain), *few, "--force"])
    assert done.exit_code == 1 and "a World that was made by a recipe" in done.output
