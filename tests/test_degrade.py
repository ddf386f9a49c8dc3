"""Paths of a degraded funnel, near-line interests, and what simulated requests earn: against
hand-worked answers and plain replays.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, TfidfSVD
from karmafunnel.simulator.load.arrivals import Poisson, Trace
from karmafunnel.simulator.load.quality import (
    PathValues,
    attribute_quality,
    load_curve,
    outages,
    quality_under_load,
)
from karmafunnel.simulator.load.queueing import simulate
from karmafunnel.simulator.load.services import Service, Services, ServiceTime
from karmafunnel.simulator.measure.compare import Run, measure
from karmafunnel.simulator.replay import replay as replaying
from karmafunnel.simulator.replay import tree
from karmafunnel.simulator.replay.degrade import (
    along,
    fit_fallbacks,
    folder_name,
    replay_paths,
    runs_of,
)
from karmafunnel.simulator.replay.nearline import MINUTE, NearLine, at_times, refreshed
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.paths import modes_of, path_of
from karmafunnel.simulator.replay.prepare import prepare
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.replay.tables import TABLES
from karmafunnel.stages.frame import ITEM, RANK, REQUEST, SCORE
from karmafunnel.stages.rerank import GMVRank
from karmafunnel.stages.rows import Rows
from shop import Chances, scramble

pytestmark = pytest.mark.slow

RECIPE = """
from karmafunnel.models.embedders import TfidfSVD
from karmafunnel.stages.stage import *
from karmafunnel.stages.features import *
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import *

embedders = {"tfidf": TfidfSVD(dim=16)}
label = "click"
funnel = (
    Join([VectorRecall("tfidf", k=60), Popular(k=40), BM25Recall(k=40)])
    >> LightGBMPreRank(k=40, features=[Upstream(), Popularity(), Similarity("tfidf")], trees=20)
    >> LightGBMRank(k=20, features=[Upstream(), Own(), Price(), Column("recall.score"), Column("prerank.rank")], trees=20)
)
fallbacks = {"fresh": Popular(k=50, days=2), "words": BM25Recall(k=50)}
"""
PATHS = [
    "recall=popular",
    "prerank=skip",
    "rank=skip",
    "recall=fresh,rank=skip",
    "prerank=15",
    "rank=5",
    "tfidf=stale",
    "tfidf=skip",
]
MEASURES = ["HR@10", "nDCG@10", "Recall@10", "GMV-HR@10", "gAUC:request:exposures"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, shop):
    path = tmp_path_factory.mktemp("recipe") / "small.py"
    path.write_text(RECIPE)
    return load_recipe(str(path), shop)


@pytest.fixture(scope="module")
def fitted(recipe, shop):
    return prepare(recipe, shop)


@pytest.fixture(scope="module")
def fallbacks(recipe, fitted):
    return fit_fallbacks(recipe, fitted)


@pytest.fixture(scope="module")
def run(tmp_path_factory, recipe, shop, fitted):
    out = tmp_path_factory.mktemp("runs") / "run"
    replay_paths(
        recipe,
        shop,
        out,
        PATHS,
        RunOptions(chunk=40, command="test"),
        stale_minutes=600,
        fitted=fitted,
    )
    return out


def same_tables(a, b) -> bool:
    return all(
        (a / f"{name}.parquet").read_bytes() == (b / f"{name}.parquet").read_bytes()
        for name in TABLES
        if name != "timing"
    )


# -- paths -----------------------------------------------------------------------------------------


def test_a_path_is_a_text_and_back():
    assert modes_of("full") == {}
    assert modes_of("recall=popular, rank=skip") == {"recall": "popular", "rank": "skip"}
    assert (
        path_of({"rank": "skip", "recall": "popular"}, ["recall", "prerank", "rank"])
        == "recall=popular,rank=skip"
    )
    assert path_of({}, ["recall"]) == "full"
    for wrong in ("", "rank", "rank=", "=skip", "rank=skip,rank=5"):
        with pytest.raises(KarmafunnelError, match="each stage once as stage=mode"):
            modes_of(wrong)
    assert folder_name("recall=popular,rank=skip") == "recall-popular+rank-skip"
    assert folder_name("a=b/c") != folder_name("a=b_c") and "/" not in folder_name("a=b/c")


def test_skipped_stage_passes_its_upstream_on_cut_to_its_own_k(fitted, shop):
    requests = shop.requests_in("W3")[:30]
    full, skipped = fitted.run(requests), along(fitted, "rank=skip").run(requests)
    order = [REQUEST, RANK]
    before, after = full[1].slate.sort(order), skipped[2].slate.sort(order)
    assert after.select(REQUEST, ITEM, RANK, SCORE).equals(
        before.filter(pl.col(RANK) <= 20).select(REQUEST, ITEM, RANK, SCORE)
    )
    assert not full[2].slate.sort(order).select(ITEM).equals(after.select(ITEM))
    # the ranker reads `prerank.rank`: a skipped pre-ranker leaves recall's
    steps = along(fitted, "prerank=skip").run(requests)
    assert (
        steps[1].slate["recall.rank"] == steps[1].slate[RANK]
    ).all() and "prerank.rank" in steps[2].slate.columns
    assert steps[1].slate.height == full[0].slate.filter(pl.col(RANK) <= 40).height


def test_cutoff_is_the_same_stage_with_a_smaller_k(fitted, shop):
    requests = shop.requests_in("W3")[:30]
    full, cut = fitted.run(requests), along(fitted, "prerank=15").run(requests)
    assert cut[1].slate.equals(full[1].slate.filter(pl.col(RANK) <= 15))
    assert fitted.stages[1].stage.k == 40
    assert along(fitted, "prerank=40").run(requests)[2].slate.equals(full[2].slate)
    with pytest.raises(
        KarmafunnelError, match=r"path 'prerank=41': the cutoff of prerank needs at most its k, 40"
    ):
        along(fitted, "prerank=41")


def test_fallback_stands_in_recalls_place_and_shares_no_channel(fitted, fallbacks, shop):
    requests = shop.requests_in("W3")[:30]
    other = along(fitted, "recall=popular", fallbacks)
    slate = other.run(requests)[0].slate
    alone = fallbacks["popular"]
    best = {
        r: set(rows)
        for r, rows in alone.propose(Rows.start(fitted.context, requests))
        .group_by(REQUEST)
        .agg(ITEM)
        .iter_rows()
    }
    assert {r: set(rows) for r, rows in slate.group_by(REQUEST).agg(ITEM).iter_rows()} == best
    # on the scale of the Join that it stands for
    assert np.allclose(slate[SCORE], 1 / (60 + slate[RANK]))
    assert (
        slate["channel"].unique().to_list() == [1 << 8] and other.stages[0].channels[8] == "popular"
    )
    assert set(fallbacks) == {"popular", "fresh", "words"} and fallbacks["popular"].stage.k == 1000


def test_paths_share_their_beginnings_and_nothing_else(fitted, fallbacks):
    key = {
        path: along(fitted, path, fallbacks, 60).keys
        for path in (*PATHS, "full", "prerank=15,rank=skip", "tfidf=stale@60", "tfidf=stale@5")
    }
    assert key["full"] == fitted.keys
    assert key["rank=skip"][:2] == fitted.keys[:2] and key["rank=skip"][2] != fitted.keys[2]
    assert (
        key["prerank=15"][:2] == key["prerank=15,rank=skip"][:2]
        and key["prerank=15"][1] not in fitted.keys
    )
    assert key["tfidf=stale"] == key["tfidf=stale@60"] and not set(key["tfidf=stale"]) & set(
        key["tfidf=stale@5"]
    )
    assert not set(key["recall=popular"]) & set(key["recall=fresh,rank=skip"])
    assert not set(key["tfidf=skip"]) & {
        k for path, keys in key.items() if path != "tfidf=skip" for k in keys
    }


def test_paths_with_an_embedder_in_the_same_mode_have_one_of_it(fitted):
    """What they share reads the vectors that the others read: computed and charged once."""
    for mode in ("stale@60", "skip"):
        one, other = (
            along(fitted, f"tfidf={mode}{more}").context.embeddings["tfidf"]
            for more in ("", ",rank=10")
        )
        assert one is other is not fitted.context.embeddings["tfidf"]
    assert (
        along(fitted, "tfidf=stale@60").context.embeddings["tfidf"]
        is not along(fitted, "tfidf=stale@5").context.embeddings["tfidf"]
    )


def test_what_a_skipped_stage_would_have_put_out_is_missing(recipe, shop):
    money = replace(recipe, funnel=recipe.funnel.replace(rank=Chances(k=20)) >> GMVRank(k=10))
    fitted = prepare(money, shop)
    requests = shop.requests_in("W3")[:5]
    assert fitted.run(requests)[3].slate.height
    with pytest.raises(KarmafunnelError, match=r"needs columns \['rank.p_click', 'rank.p_buy'\]"):
        along(fitted, "rank=skip").run(requests)
    assert along(fitted, "rank=skip,rerank=skip").run(requests)[3].slate.height


def test_refusals_name_the_path(fitted, fallbacks, recipe, shop, tmp_path):
    for path, told in (
        (
            "recal=popular",
            r"needs stages among \['recall', 'prerank', 'rank'\] or embedders among \['tfidf'\], found \['recal'\]",
        ),
        ("recall=skip", r"recall and cannot be skipped, needs .*\['fresh', 'popular', 'words'\]"),
        ("rank=popular", "rank needs the mode 'skip' or a smaller cutoff"),
        ("tfidf=popular", "needs one of the modes of an embedder"),
        ("tfidf=stale", "needs stale_minutes"),
        ("tfidf=stale@often", "needs stale_minutes"),
        ("tfidf=stale@-1", "stale_minutes needs a number from 0"),
    ):
        with pytest.raises(KarmafunnelError, match=told) as error:
            along(fitted, path, fallbacks)
        assert path in str(error.value)
    alone = replace(
        recipe, funnel=recipe.funnel.replace(recall=recipe.funnel.stages[0].channels[0])
    )
    with pytest.raises(KarmafunnelError, match=r"path 'tfidf=skip': skipping tfidf needs a Join"):
        along(prepare(alone, shop), "tfidf=skip")
    with pytest.raises(KarmafunnelError, match="fallback 'x'"):
        fit_fallbacks(replace(recipe, fallbacks={"x": recipe.funnel.stages[1]}), fitted)
    file = tmp_path / "wrong.py"
    file.write_text(RECIPE + "\nfallbacks = {'x': 3}\n")
    with pytest.raises(KarmafunnelError, match="fallbacks needs a dict of name: recall stage"):
        load_recipe(str(file), shop)


def test_skipped_embedder_leaves_its_channel_empty(fitted, shop):
    requests = shop.requests_in("W3")[:30]
    steps = along(fitted, "tfidf=skip").run(requests)
    assert (steps[0].slate["channel"] & 1 == 0).all() and steps[0].slate.height
    assert (fitted.run(requests)[0].slate["channel"] & 1 == 1).any()


# -- their replay ----------------------------------------------------------------------------------


def test_replayed_paths_are_runs_of_their_own(run, recipe, shop, fitted, tmp_path):
    runs = runs_of(run)
    assert set(runs) == {"full", *PATHS}
    assert not list(run.parent.glob(".*"))
    replay(recipe, shop, tmp_path / "full", RunOptions(chunk=40), fitted=fitted)
    assert same_tables(run, tmp_path / "full")
    assert json.loads((run / "run.json").read_text()).get("path") is None
    meta = runs["tfidf=stale"].meta
    assert meta["path"] == "tfidf=stale" and meta["stale_minutes"] == {"tfidf": 600}
    assert "Skipped(k=20, name='rank')" in runs["rank=skip"].meta["funnel"]
    channels = runs["recall=popular"].read("slates", "channel")["channel"].unique().to_list()
    assert channels == ["popular"]
    for path, one in runs.items():
        assert one.read("requests").height == len(shop.requests_in("W3")), path
        measure(one, ["HR@5", "survival"])


def test_what_paths_begin_with_alike_runs_once(recipe, shop, fitted, tmp_path, monkeypatch):
    ran = []

    def counted(ready, rows, exact=False, real=tree.advance):
        ran.append(ready.stage.name)
        return real(ready, rows, exact)

    monkeypatch.setattr(tree, "advance", counted)
    replay_paths(
        recipe, shop, tmp_path / "run", ["rank=skip"], RunOptions(limit=40, chunk=20), fitted=fitted
    )
    assert {name: ran.count(name) for name in ("recall", "prerank", "rank")} == {
        "recall": 2,
        "prerank": 2,
        "rank": 4,
    }


def test_a_killed_replay_of_paths_goes_on_to_the_same_bytes(
    run, recipe, shop, fitted, tmp_path, monkeypatch
):
    made = []

    def stops(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return make(*arguments)

    make = replaying.make_shard
    monkeypatch.setattr(replaying, "make_shard", stops)
    common = {
        "stale_minutes": 600,
        "fitted": fitted,
        "options": RunOptions(chunk=40, command="test"),
    }
    with pytest.raises(KeyboardInterrupt):
        replay_paths(recipe, shop, tmp_path / "run", PATHS[:3], **common)
    assert not (tmp_path / "run").exists()
    made.clear()
    monkeypatch.setattr(replaying, "make_shard", lambda *a: made.append(1) or make(*a))
    folders = replay_paths(recipe, shop, tmp_path / "run", PATHS[:3], **common)
    assert len(made) == 1 and list(folders) == ["full", *PATHS[:3]]
    for path, folder in folders.items():
        assert same_tables(folder, runs_of(run)[path].path)
        assert (folder / "run.json").read_bytes() == (
            runs_of(run)[path].path / "run.json"
        ).read_bytes()


def test_stages_stand_in_their_order_whatever_was_typed(recipe, shop, fitted, tmp_path):
    folders = replay_paths(
        recipe, shop, tmp_path / "run", ["rank=skip,prerank=15"], RunOptions(limit=5), fitted=fitted
    )
    assert list(folders) == ["full", "prerank=15,rank=skip"]
    with pytest.raises(KarmafunnelError, match=r"path 'rank=99'"):
        replay_paths(
            recipe, shop, tmp_path / "other", ["rank=99"], RunOptions(limit=5), fitted=fitted
        )
    assert not (tmp_path / "other").exists()


# -- near-line -------------------------------------------------------------------------------------


def test_refreshes_lie_on_a_grid_at_or_before_the_request(shop):
    t = refreshed(shop, 60, "x")
    assert (t <= shop.t).all()
    assert (shop.t - t < 60 * MINUTE).all()
    assert (t % (60 * MINUTE) == 0).all()
    assert (refreshed(shop, 0, "x") == shop.t).all()
    order = Log.make(
        shop.items, shop.requests, shop.exposures, shop.meta | {"time": "order", "name": "turns"}
    )
    with pytest.raises(
        KarmafunnelError,
        match="near-line: needs a log with clock times to count minutes, found log turns, whose time is an order",
    ):
        NearLine(Cooccurrence().fit(order), 60)


@pytest.mark.parametrize("embedder", [Cooccurrence(dim=8), TfidfSVD(dim=8)], ids=repr)
def test_interests_are_those_of_the_last_refresh_without_the_query(shop, embedder):
    fitted = embedder.fit(shop)
    requests = shop.requests_in("W3")
    silent = Log.make(
        shop.items,
        shop.requests.with_columns(query=pl.lit(None, pl.String)),
        shop.exposures,
        shop.meta,
    )
    quiet = embedder.fit(shop)
    quiet.log = silent
    assert np.array_equal(NearLine(fitted, 0).interests(requests), quiet.interests(requests))
    # with refreshes: what the first request of the user at or after each would have found, had it
    # asked for nothing
    stale, t = NearLine(fitted, 3000), refreshed(shop, 3000, "x")
    then = [np.flatnonzero((shop.user == shop.user[r]) & (shop.t >= t[r]))[0] for r in requests]
    assert np.array_equal(stale.interests(requests), quiet.interests(np.array(then)))
    assert (np.array(then) != requests).sum() > 20
    assert np.array_equal(stale.items(), fitted.items())


def test_histories_at_a_refresh_have_the_ages_of_then(shop):
    requests, t = shop.requests_in("W3"), refreshed(shop, 3000, "x")
    got = at_times(shop, t).asof.history(requests, 6)
    events = shop.events
    for row, r in enumerate(requests):
        mine = events.filter(
            (pl.col("user") == int(shop.user[r])) & (pl.col("t") < int(t[r]))
        ).tail(6)
        there = got.items[row] >= 0
        assert got.items[row][there].tolist() == mine["item"].to_list()
        assert got.ages[row][there].tolist() == (t[r] - mine["t"].to_numpy()).tolist()
    assert shop.requests["query"].null_count() < shop.requests.height  # the log itself is as it was


def test_nothing_after_the_refresh_is_read(shop):
    step = 3000 * MINUTE
    cut = int(shop.t[shop.requests_in("W3")[60]]) // step * step
    requests = np.flatnonzero((shop.t >= cut) & (shop.t < cut + step))
    assert len(requests) > 20
    fitted, other = Cooccurrence(dim=8).fit(shop), Cooccurrence(dim=8).fit(shop)
    other.log = scramble(shop, cut)
    assert np.array_equal(
        NearLine(fitted, 3000).interests(requests), NearLine(other, 3000).interests(requests)
    )
    assert not np.array_equal(fitted.interests(requests), other.interests(requests))


# -- quality ---------------------------------------------------------------------------------------


def simulated(paths: list[str], rate: float = 1.0) -> pl.DataFrame:
    n = len(paths)
    outcome = ["shed" if path == "nothing" else "served" for path in paths]
    return pl.DataFrame(
        {
            "request": np.arange(n),
            "t_ms": 1000 / rate * np.arange(n),
            "latency_ms": 5.0,
            "path": paths,
            "outcome": outcome,
        }
    )


def test_all_full_is_the_measure_itself(run):
    quality = PathValues(runs_of(run), MEASURES)
    ids = Run.open(run).read("requests", "request_id")["request_id"].to_list()
    found = attribute_quality(simulated(["full"] * len(ids)), quality, ids=ids, resamples=200)
    asked = measure(Run.open(run), MEASURES, resamples=200)
    for row in found.rows:
        same = next(r for r in asked if r["stage"] == "rank" and r["measure"] == row["measure"])
        assert [row[k] for k in ("value", "low", "high", "n")] == [
            same[k] for k in ("value", "low", "high", "n")
        ], row["measure"]
    some = attribute_quality(simulated(["rank=skip"] * len(ids)), quality, ids=ids, resamples=200)
    asked = measure(runs_of(run)["rank=skip"], MEASURES, resamples=200)
    assert [r["value"] for r in some.rows] == [r["value"] for r in asked if r["stage"] == "rank"]


def test_nothing_is_counted_twice(run):
    quality = PathValues(runs_of(run), MEASURES)
    rng = np.random.default_rng(3)
    paths = [str(p) for p in rng.choice(["full", "nothing", *PATHS], 700)]
    found = attribute_quality(simulated(paths), quality, seed=5, resamples=100)
    for row in found.rows:
        mine = found.by_path.filter(pl.col("measure") == row["measure"])
        assert mine["requests"].sum() == 700 and set(mine["path"]) == set(paths)
        assert mine["defined"].sum() == row["n"] == 700 - row["undefined"]
        assert mine["numerator"].sum() / mine["denominator"].sum() == pytest.approx(
            row["value"], rel=1e-12
        )
    # by hand, from the ledgers: one hit a request with a click in the top 10 of the path that it
    # took
    at = quality.logged(np.arange(700), 5)
    hits, clicked = 0, 0
    ledger = {
        path: one.read("ledger", "request_id", "rank.rank") for path, one in runs_of(run).items()
    }
    best = {
        p: dict(f.group_by("request_id").agg(pl.col("rank.rank").min()).iter_rows())
        for p, f in ledger.items()
    }
    for path, place in zip(paths, at, strict=True):
        name = quality.ids[int(place)]
        if name in best["full"]:
            clicked += 1
            hits += path != "nothing" and (best[path][name] or 99) <= 10
    assert found.rows[0]["value"] == pytest.approx(hits / clicked) and found.rows[0]["n"] == clicked


def test_nothing_earns_nothing_and_a_short_slate_what_it_holds(run):
    quality = PathValues(runs_of(run), MEASURES)
    none = attribute_quality(simulated(["nothing"] * 50), quality, resamples=50)
    # an order that was never made has no AUC
    assert [r["value"] for r in none.rows] == [0, 0, 0, 0, None]
    ids = Run.open(run).read("requests", "request_id")["request_id"].to_list()
    short = attribute_quality(
        simulated(["rank=5"] * len(ids)), quality, ids=ids, resamples=50
    ).rows[0]["value"]
    assert short == measure(runs_of(run)["rank=5"], ["HR@5"], by_stage=False, ci=False)[0]["value"]


def test_draws_depend_on_seed_and_number_alone(run):
    quality = PathValues(runs_of(run), MEASURES)
    assert (quality.logged(np.arange(300), 1)[:100] == quality.logged(np.arange(100), 1)).all()
    assert (quality.logged(np.arange(50, 100), 1) == quality.logged(np.arange(100), 1)[50:]).all()
    assert (quality.logged(np.arange(100), 1) != quality.logged(np.arange(100), 2)).any()


def test_quality_refuses_by_name(run):
    runs = runs_of(run)
    with pytest.raises(
        KarmafunnelError, match=r"found none of \['recall=gone'\]; replay with --path recall=gone"
    ):
        attribute_quality(simulated(["full", "recall=gone"]), runs, ["HR@10"])
    with pytest.raises(KarmafunnelError, match="needs the Run of the path 'full'"):
        attribute_quality(simulated(["full"]), {"rank=skip": runs["rank=skip"]}, ["HR@10"])
    for wrong in ("AUC", "gAUC:user:exposures", "survival", "Recall@5@5"):
        with pytest.raises(KarmafunnelError, match="needs a measure with a value a request"):
            PathValues(runs, [wrong])
    with pytest.raises(
        KarmafunnelError, match="needs cutoffs up to 20, what rank returns, found HR@50"
    ):
        PathValues(runs, ["HR@50"])
    with pytest.raises(KarmafunnelError, match="needs at least one simulated request"):
        attribute_quality(simulated(["full"])[:0], runs, ["HR@10"])
    with pytest.raises(KarmafunnelError, match=r"e\.g\. 'nobody'"):
        attribute_quality(simulated(["full"]), runs, ["HR@10"], ids=["nobody"])


def stage(name: str, fail: str, fallback: str) -> Service:
    return Service(name, ServiceTime(base_ms=5), fail=fail, fallback=fallback)


def test_an_outage_loses_what_its_fallback_does_not_find(run):
    runs = runs_of(run)
    quality = PathValues(runs, ["HR@10", "GMV-HR@10"])
    services = Services(
        (
            stage("recall", "closed", "popular"),
            stage("rank", "open", "skip"),
            stage("prerank", "open", "gone"),
        )
    )
    table = outages(services, quality, rate=2.0, resamples=200)
    assert table["path"].to_list() == ["nothing", "rank=skip", "prerank=gone"]
    inside = {}
    for path in ("full", "rank=skip"):
        ledger = runs[path].read("ledger", "money", "rank.rank")
        inside[path] = ledger.filter(pl.col("rank.rank") <= 10)["money"].sum() / quality.n * 7200
    assert table["money"][0] == pytest.approx(inside["full"]) == pytest.approx(table["lost"][0])
    assert table["lost"][1] == pytest.approx(inside["full"] - inside["rank=skip"])
    assert table["low"][1] <= table["lost"][1] <= table["high"][1]
    assert table["HR@10 in the outage"][0] == 0
    assert table["lost"][2] is None
    assert "--path prerank=gone" in table["note"][2]


def test_load_curve_pairs_rates_and_policies(run):
    quality = PathValues(runs_of(run), ["HR@10", "GMV-HR@10"])

    def simulation(fallen, rate):
        # from 2 a second on, ever fewer are full
        taken = ["full" if i % 10 < 20 / rate else fallen for i in range(400)]
        told = {
            "services": SimpleNamespace(normal="full"),
            "rate": rate,
            "goodput": rate,
            "latency": dict,
        }
        return SimpleNamespace(requests=simulated(taken, rate), **told)

    policies = {"fall back": "rank=skip", "refuse": "nothing"}
    found = {
        name: [simulation(fallen, rate) for rate in (1.0, 4.0, 8.0)]
        for name, fallen in policies.items()
    }
    table = load_curve(found, quality, resamples=100)
    assert table["policy"].to_list() == ["fall back"] * 3 + ["refuse"] * 3
    back, refuse = table[:3], table[3:]
    assert back["HR@10"][0] == refuse["HR@10"][0] and back["full"].to_list() == [
        1.0,
        0.5,
        pytest.approx(0.3),
    ]
    assert refuse["HR@10"].is_sorted(descending=True) and (refuse["HR@10"] <= back["HR@10"]).all()
    assert refuse["goodput"].to_list() == [1.0, 4.0, 8.0] and refuse["nothing"][1] == 0.5
    hourly = table["money an hour"]
    assert (table["money an hour low"] <= hourly).all() and (
        hourly <= table["money an hour high"]
    ).all()
    assert hourly[1] > hourly[0]  # four times the requests, half of them degraded


def pressed(late: str = "open") -> Services:
    """Three stages that 300 requests a second press."""
    return Services(
        (
            Service("recall", ServiceTime("exponential", base_ms=6), servers=2, k=60, fallback="popular", patience_ms=15),
            Service("prerank", ServiceTime("exponential", item_us=60), items=60, servers=2, queue=4),
            Service("rank", ServiceTime("exponential", item_us=80), items=40, servers=1, queue=3),
        ),
        deadline_ms=60, late=late,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pressed_run(shop, tmp_path_factory):
    (folder := tmp_path_factory.mktemp("pressed")).joinpath("r.py").write_text(RECIPE)
    (folder / "services.toml").write_text(pressed().toml())
    replay_paths(load_recipe(str(folder / "r.py"), shop), shop, folder / "run", pressed().paths())
    return folder / "run"


def test_a_request_is_worth_what_the_path_showed_that_it_took(shop, pressed_run):
    arrivals = Trace.of(shop, shop.requests_in("W3"), rate=300.0)
    n = len(arrivals.ids)
    policies = {"open": pressed(), "closed": pressed("closed")}
    found = quality_under_load(
        policies, pressed_run, arrivals, n, measures=["HR@10", "GMV-HR@10"], loads=(0.5, 1.0)
    )
    hits = {
        path: one.read("ledger", "request_id", "rank.rank")
        for path, one in runs_of(pressed_run).items()
    }
    good = {
        path: set(ledger.filter(pl.col("rank.rank") <= 10)["request_id"].to_list())
        for path, ledger in hits.items()
    }
    known = set(hits["full"]["request_id"].to_list())
    for policy, services in policies.items():
        requests = simulate(services, arrivals, n, 0).requests
        assert requests["path"].n_unique() > 2
        paths = [
            (i, path) for i, path in zip(arrivals.ids, requests["path"], strict=True) if i in known
        ]
        (row,) = (r for r in found.rows if r["policy"] == policy and r["measure"] == "HR@10")
        assert row["n"] == n and row["value"] == pytest.approx(
            sum(i in good.get(path, ()) for i, path in paths) / len(paths)
        )
        parts = found.by_path.filter((pl.col("policy") == policy) & (pl.col("measure") == "HR@10"))
        assert parts["requests"].sum() == n and parts["numerator"].sum() / parts[
            "denominator"
        ].sum() == pytest.approx(row["value"])
    first, second = (
        next(r for r in found.rows if r["policy"] == p and r["measure"] == "HR@10")
        for p in ("open", "closed")
    )
    assert first["difference"] is None and second["difference"] == pytest.approx(
        second["value"] - first["value"]
    )
    assert second["difference low"] <= second["difference"] <= second["difference high"]
    whole = found.curve.filter((pl.col("policy") == "open") & ((pl.col("rate") - 300).abs() < 1e-6))
    assert whole["HR@10"][0] == pytest.approx(first["value"]) and found.curve.height == 4
    assert (
        found.outages["path"].to_list() == ["recall=popular", "prerank=skip", "rank=skip"]
        and (found.outages["note"] == "").all()
    )


def test_a_lighter_load_shows_more(pressed_run):
    found = quality_under_load(
        {"a": pressed()},
        pressed_run,
        Poisson(300.0),
        3000,
        measures=["HR@10"],
        loads=(0.1, 1.0, 4.0),
    )
    assert (
        found.curve["full"].is_sorted(descending=True)
        and found.curve["full"][0] > 0.95 > 0.5 > found.curve["full"][2]
    )
    assert found.curve["HR@10"][0] > found.curve["HR@10"][2] and found.outages is None
    with pytest.raises(KarmafunnelError, match="needs a Run of every path taken, found none of"):
        quality_under_load(
            {"a": pressed().change("recall", fallback="words")},
            pressed_run,
            Poisson(900.0),
            500,
            measures=["HR@10"],
        )


def test_an_outage_beside_near_line_interests_is_held_against_them(run):
    near = Service("tfidf", ServiceTime(base_ms=1), online=False, stale_minutes=60)
    services = Services((near, stage("recall", "closed", "popular"), stage("rank", "open", "skip")))
    runs = runs_of(run)
    # stand-ins
    paths = {
        "full": runs["full"],
        "tfidf=stale@60": runs["rank=skip"],
        "tfidf=stale@60,rank=skip": runs["prerank=skip"],
    }
    table = outages(services, PathValues(paths, ["HR@10", "GMV-HR@10"]), rate=2.0, resamples=50)
    assert (
        table["path"].to_list() == ["nothing", "tfidf=stale@60,rank=skip"]
        and (table["note"] == "").all()
    )
    same = PathValues(
        {"full": runs["rank=skip"], "rank=skip": runs["prerank=skip"]}, ["HR@10", "GMV-HR@10"]
    )
    plain = outages(Services(services.stages[1:]), same, rate=2.0)
    assert table["lost"].to_list() == pytest.approx(plain["lost"].to_list())


def test_queue_tells_what_two_deployments_show(pressed_run, tmp_path):
    for name, services in {"a": pressed(), "b": pressed().change("rank", servers=3)}.items():
        services.write(tmp_path / name / "services.toml")  # of one name
    files = [str(tmp_path / name / "services.toml") for name in "ab"]
    asked = [
        "queue",
        files[0],
        "--rate",
        "300",
        "--requests",
        "400",
        "--out",
        str(tmp_path / "out"),
        "--beside",
        files[1],
    ]
    done = CliRunner().invoke(main, [*asked, "--run", str(pressed_run)])
    assert done.exit_code == 0, done.output
    assert "over offered load" in done.output and "an hour's outage" in done.output
    quality = pl.read_csv(tmp_path / "out" / "quality.csv")
    assert quality["policy"].to_list() == [files[0], files[0], files[1], files[1]]
    curve = pl.read_csv(tmp_path / "out" / "load_curve.csv")
    one, three = (curve.filter(pl.col("policy") == file) for file in files)
    # three rankers shed less than one
    assert (
        one["rate"].to_list() == three["rate"].to_list() and (three["full"] > one["full"])[2:].all()
    )
    assert "Quality of what was shown" in (tmp_path / "out" / "load.html").read_text()
    alone = CliRunner().invoke(main, asked)
    assert alone.exit_code == 1 and "needs --run" in alone.output


def test_the_command_prints_a_line_a_path(shop, tmp_path, monkeypatch):
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    shop.write(tmp_path / "log")
    (tmp_path / "small.py").write_text(RECIPE)
    asked = [
        "replay",
        str(tmp_path / "small.py"),
        str(tmp_path / "log"),
        "--path",
        "rank=skip",
        "--out",
        str(tmp_path / "run"),
    ]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0
    assert "rank=skip" in done.output
    assert "full" in done.output
    assert set(runs_of(tmp_path / "run")) == {"full", "rank=skip"}
    refused = CliRunner().invoke(main, [*asked, "--workers", "2"])
    assert refused.exit_code == 1
    alone = [*asked[:3], "--stale-minutes", "60", "--out", str(tmp_path / "other")]
    assert CliRunner().invoke(main, alone).exit_code == 1 and not (tmp_path / "other").exists()
