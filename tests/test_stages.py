"""One contract for every stage: a new one inherits these tests by existing."""

import importlib
import os
import pkgutil
import tempfile
from functools import cache
from pathlib import Path

import karmafunnel.stages
import numpy as np
import polars as pl
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models.embedders import Cooccurrence, RandomVectors, TfidfSVD
from karmafunnel.stages.blend import Blend
from karmafunnel.stages.context import Context
from karmafunnel.stages.explore import Explore
from karmafunnel.stages.features import (
    BM25,
    Clicks,
    Column,
    Feature,
    ItemColumn,
    Neighbourhood,
    Own,
    Placement,
    Popularity,
    Price,
    RequestContext,
    Rows,
    Similarity,
    SimTier,
    Upstream,
    Vectors,
)
from karmafunnel.stages.frame import ITEM, RANK, REQUEST, SCORE, descending, order, select_top
from karmafunnel.stages.learn import PositionBias, Sample, Teacher, sampled
from karmafunnel.stages.outside import ExternalRank
from karmafunnel.stages.policies import BestOrRandom, PlackettLuce
from karmafunnel.stages.prerank import COLDPreRank, LightGBMPreRank
from karmafunnel.stages.rank import DCNRank, DINRank, ESMMRank, LightGBMRank
from karmafunnel.stages.ranking import rank_rows
from karmafunnel.stages.recall import (
    HNSW,
    IVF,
    IVFPQ,
    BM25Recall,
    External,
    Flat,
    ItemKNN,
    Join,
    Popular,
    Repeat,
    Shown,
    Uniform,
    VectorRecall,
)
from karmafunnel.stages.recall.vector import refined
from karmafunnel.stages.rerank import MMR, GMVRank, Rules, Unseen
from karmafunnel.stages.stage import (
    FittedFunnel,
    FittedStage,
    Funnel,
    Retriever,
    Stage,
    fit_embedders,
)
from shop import Chances, make_shop, scramble

EMBEDDERS = {
    "tfidf": TfidfSVD(dim=16),
    "cooccurrence": Cooccurrence(dim=16),
    "random": RandomVectors(),
}
FEATURES = (
    Upstream(),
    Popularity(),
    Own(),
    Similarity("tfidf"),
    Similarity("cooccurrence"),
    BM25(),
    Price(),
    RequestContext(),
    ItemColumn("rating"),
    Placement(),
    Clicks(),
    Neighbourhood(),
    Similarity("tfidf", to="query"),
    Similarity("random", to="last"),
    SimTier("cooccurrence", depth=20),
    Vectors("random", dim=16),
)


def walk(kind: type) -> list[type]:
    """Every concrete subclass defined under karmafunnel.stages."""
    for module in pkgutil.iter_modules(karmafunnel.stages.__path__):
        importlib.import_module(f"karmafunnel.stages.{module.name}")
    found = [c for s in kind.__subclasses__() for c in [s, *walk(s)]]
    return sorted(
        {c for c in found if c.__module__.startswith("karmafunnel.stages")},
        key=lambda c: c.__name__,
    )


@cache
def outside_scores() -> str:
    """A Parquet file in which something outside scored 25 items a request, eligible or not, ties
    among them.
    """
    log, rng = make_shop(), np.random.default_rng(7)
    items = np.concatenate([rng.choice(log.n_items, 25, replace=False) for _ in log.request_ids])
    score = rng.integers(0, 9, len(items))
    frame = pl.DataFrame(
        {
            "request_id": np.repeat(log.request_ids, 25),
            "item_id": log.item_ids[items],
            "score": score,
        }
    )
    # one name: it stands in the names of tests
    path = Path(tempfile.gettempdir()) / "karmafunnel-outside-scores.parquet"
    written = path.with_name(f".{path.name}.{os.getpid()}")
    frame.write_parquet(written)
    written.replace(path)
    return str(path)


def example(kind: type) -> Stage:
    """A small value of a stage: its defaults, or what its first field needs."""
    if kind in (VectorRecall, MMR):
        return kind("tfidf", k=30)
    if kind is Explore:
        return Explore(PlackettLuce(0.1), k=9)
    if kind in (External, ExternalRank):
        return kind(outside_scores(), k=20)
    if kind is Blend:
        same = {"features": FEATURES, "sample": Sample(passed=20, requests=60)}
        return Blend([LightGBMRank(**same), DCNRank(**same, epochs=2)], k=20, weights="fitted")
    if kind is Join:
        return Join([VectorRecall("tfidf", k=30), Popular(k=20), Repeat(k=10)], k=45)
    fields = kind.__dataclass_fields__
    small = (
        {"k": 20}
        | ({"features": FEATURES} if "features" in fields else {})
        | ({"sample": Sample(passed=20, requests=60)} if "sample" in fields else {})
    )
    return kind(**small)


STAGES = [example(kind) for kind in walk(Stage) if kind.__name__ not in ("Learner", "Boosted", "Neural")]
SMALL = Sample(passed=20, requests=60)
STAGES += [
    DINRank(k=20, features=FEATURES, sample=SMALL, similar="cooccurrence", use=use, epochs=2)
    for use in ("both", "raw")
]
STAGES += [ESMMRank(k=20, features=FEATURES, sample=SMALL, trunk="DCN", epochs=2)]
STAGES += [
    kind(
        k=20,
        features=FEATURES,
        sample=SMALL,
        teacher=Teacher(DINRank(features=FEATURES, sample=SMALL, epochs=1), weight=0.7),
    )
    for kind in (COLDPreRank, LightGBMPreRank)
]
STAGES += [
    kind(
        k=20,
        features=FEATURES,
        sample=SMALL,
        position_bias=PositionBias(use, propensities=(1.0, 0.6, 0.4)),
        **few,
    )
    for kind, use, few in (
        (LightGBMRank, "offset", {"trees": 20}),
        (DCNRank, "weight", {"epochs": 1}),
    )
]
STAGES += [VectorRecall("random", k=20, index=index) for index in (IVF(4, 2), HNSW(16, 64))]
STAGES += [Unseen(k=20, which="purchase")]
STAGES += [
    Rules(k=20, min_price=9.0, unknown_price="drop", sold_out="colour=1"),
    MMR("random", k=9, trade=0.3, depth=30),
    Explore(BestOrRandom(0.3), k=7),
]
INDICES = [VectorRecall("tfidf", k=20, index=IVFPQ(4, 2, m=4))]


@cache
def context() -> Context:
    made = Context(make_shop(), {}, "click")
    made.embeddings = fit_embedders(EMBEDDERS, made, None)
    return made


def context_of(log: Log) -> Context:
    made = Context(log, {}, "click")
    made.embeddings = fit_embedders(EMBEDDERS, made, None)
    return made


def is_recall(stage: Stage) -> bool:
    return stage.name == "recall"


def as_funnel(stage: Stage) -> Funnel:
    if is_recall(stage):
        return Funnel((stage,))
    upstream = Join([VectorRecall("tfidf", k=30), Popular(k=30)], k=50)
    return upstream >> Chances() >> stage if isinstance(stage, GMVRank) else upstream >> stage


@cache
def fitted(stage: Stage) -> FittedFunnel:
    return as_funnel(stage).fit(context())


def slate(funnel: FittedFunnel, requests: np.ndarray) -> pl.DataFrame:
    return funnel.run(requests)[-1].slate.select(REQUEST, ITEM, SCORE, RANK)


@pytest.mark.parametrize("stage", STAGES, ids=repr)
class TestContract:
    def test_prints_as_typed(self, stage):
        names = {
            c.__name__: c
            for c in [
                *walk(Stage),
                *walk(Feature),
                PositionBias,
                Sample,
                Teacher,
                Flat,
                IVF,
                IVFPQ,
                HNSW,
                Chances,
                PlackettLuce,
                BestOrRandom,
            ]
        }
        typed = eval(repr(as_funnel(stage)), names)
        assert repr(typed) == repr(as_funnel(stage)) and isinstance(typed, Funnel | Stage)

    def test_slate_is_eligible_unique_and_at_most_k(self, stage):
        requests = context().log.requests_in("W3")
        rows = slate(fitted(stage), requests)
        asof = context().log.asof
        assert (
            rows.height and asof.is_eligible(rows[REQUEST].to_numpy(), rows[ITEM].to_numpy()).all()
        )
        assert rows.select(REQUEST, ITEM).is_duplicated().sum() == 0
        ranks = rows.group_by(REQUEST).agg(pl.col(RANK).sort(), pl.col(SCORE).sort_by(RANK))
        assert all(
            r.to_list() == list(range(1, len(r) + 1)) and len(r) <= stage.k for r in ranks[RANK]
        )
        assert all((np.diff(s.to_numpy()) <= 0).all() for s in ranks[SCORE])

    def test_chunks_do_not_matter(self, stage):
        requests = context().log.requests_in("W3")
        whole = slate(fitted(stage), requests)
        parts = pl.concat([slate(fitted(stage), requests[:7]), slate(fitted(stage), requests[7:])])
        assert whole.drop(SCORE).equals(parts.drop(SCORE)) and np.allclose(
            whole[SCORE], parts[SCORE], atol=1e-5
        )

    def test_forced_rows_have_the_rank_they_have(self, stage):
        requests = context().log.requests_in("W3")
        step = fitted(stage).run(requests, context().logged(requests))[-1]
        both = step.tracked.join(step.slate, on=[REQUEST, ITEM], suffix="_slate")
        assert both.height
        assert both["kept"].all()
        assert both[RANK].equals(both["rank_slate"].alias(RANK))
        assert both[SCORE].equals(both["score_slate"].alias(SCORE))
        assert step.slate.select(REQUEST, ITEM).equals(
            fitted(stage).run(requests)[-1].slate.select(REQUEST, ITEM)
        )  # forcing changes nothing

    def test_saved_and_loaded_it_is_the_same(self, stage, tmp_path):
        ready = fitted(stage).stages[-1]
        ready.save(tmp_path)
        again = FittedFunnel(
            context(), (*fitted(stage).stages[:-1], stage.load(tmp_path, context()))
        )
        requests = context().log.requests_in("W3")
        assert slate(again, requests).equals(slate(fitted(stage), requests))

    def test_it_sees_no_future(self, stage):
        log = context().log
        requests = log.requests_in("W3")[:40]
        funnel = as_funnel(stage).fit(context_of(scramble(log, int(log.t[requests[-1]]))))
        if isinstance(stage, Shown) and stage.logged_order:
            pytest.skip("reads the logged order by its very name")
        assert slate(funnel, requests).equals(slate(fitted(stage), requests))


def test_every_stage_scores_every_feature_the_same_whatever_comes():
    log = context().log
    requests = log.requests_in("W3")[:40]
    later = context_of(scramble(log, int(log.t[requests[-1]])))
    frame = slate(fitted(Uniform(k=20)), requests).with_columns(
        pl.lit(1, pl.UInt32).alias("channel")
    )
    for feature in FEATURES:
        here, there = (
            f.compute(Rows(s, frame)) for f, s in ((feature, context()), (feature, later))
        )
        assert np.array_equal(here, there, equal_nan=True), feature
        assert here.shape == (frame.height, len(feature.columns)) and here.dtype == np.float32


def test_constant_scores_are_ordered_by_chance():
    """A constant score has the hit rate of a random one, wherever the popular items are."""
    big = context_of(make_shop(n_requests=2000, seed=3))
    requests = np.arange(1200, 2000)
    step = as_funnel(Uniform(k=24)).fit(big).run(requests, big.logged(requests))[0]
    truth = step.tracked.filter("truth")
    expected = (24 / big.log.asof.known(truth[REQUEST].to_numpy())).mean()
    assert truth["kept"].mean() == pytest.approx(expected, abs=0.03)


def test_a_constant_embedder_recalls_by_chance():
    """Equal inner products: neither the items known longest nor those in the first rows may win."""

    class Constant:
        value = None

        def __init__(self, log):
            self.shape = log.n_items, log.requests.height

        def items(self):
            return np.ones((self.shape[0], 4), np.float32)

        def interests(self, requests):
            return np.ones((len(requests), 4), np.float32)

    log = make_shop(n_requests=1500, seed=5)
    log = Log.make(log.items, log.requests, log.exposures, log.meta | {"catalogue": "seen"})
    here = Context(log, {"constant": Constant(log)}, "click")
    requests = np.arange(30, 1500)
    expected = slate(Funnel((Uniform(k=20),)).fit(here), requests)
    got = slate(Funnel((VectorRecall("constant", k=20),)).fit(here), requests)
    assert got.drop(SCORE).equals(expected.drop(SCORE))  # the very same hash chooses


def test_order_and_top_agree_with_a_full_sort():
    rng = np.random.default_rng(0)
    group, score, tie = (
        rng.integers(0, 9, 500),
        rng.integers(-3, 3, 500).astype(np.float32),
        rng.integers(0, 2**63, 500).astype(np.uint64),
    )
    assert np.array_equal(order(group, score, tie), np.lexsort((tie, -score, group)))
    alike = rng.permutation(500).astype(np.uint64)  # hashes that differ in their last bits alone
    assert np.array_equal(order(group, score, alike), np.lexsort((alike, -score, group)))
    assert np.array_equal(select_top(score, lambda at: tie[at], 37), np.lexsort((tie, -score))[:37])
    special = np.array([-np.inf, -1.5, -0.0, 0.0, 1e-30, 7], np.float32)
    keys = descending(special).astype(np.int64)
    assert (np.diff(keys) <= 0).all() and keys[2] == keys[3]


def test_wins_against_counting():
    """wins = non-truth candidates below, ties one half; on scores 3 2 2 1 with truth at a 2 and at
    the 1.
    """
    log = context().log
    requests = np.array([400])
    rows = pl.DataFrame(
        {REQUEST: [400] * 4, ITEM: [5, 6, 7, 8], SCORE: [3.0, 2.0, 2.0, 1.0]},
        schema={REQUEST: pl.Int64, ITEM: pl.Int32, SCORE: pl.Float32},
    )
    tracked = pl.DataFrame(
        {
            REQUEST: [400] * 4,
            ITEM: [7, 8, 5, 9],
            "truth": [True, True, False, True],
            SCORE: [2.0, 1.0, 3.0, 2.5],
        }
    ).cast({ITEM: pl.Int32, SCORE: pl.Float32})
    _, placed, sizes = rank_rows(rows, tracked, requests, Context(log))
    assert placed["wins"].to_list() == [0.5, 0.0, 1.0, None] and sizes.tolist() == [4]
    assert placed[RANK].to_list()[1:] == [4, 1, 2] and placed[RANK][0] in (2, 3)


def test_approximate_search_says_what_exact_search_finds():
    requests = context().log.requests_in("W3")
    step = fitted(VectorRecall("random", k=20, index=IVF(4, 1))).run(requests, exact=True)[0]
    exact = slate(fitted(VectorRecall("random", k=20)), requests)
    assert step.exact.sort(REQUEST, ITEM).equals(exact.select(REQUEST, ITEM).sort(REQUEST, ITEM))
    with pytest.raises(KarmafunnelError, match="at least 256 items"):
        fitted(INDICES[0])


def test_candidates_by_codes_are_ordered_by_their_vectors():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    interests = rng.normal(size=(3, 8)).astype(np.float32)
    exact = np.argsort(-(interests @ vectors.T), axis=1)
    # found by their codes: the best ten and ten others, in no order, and a place with none
    at = np.array([[*rng.permutation([*row[:10], *row[30:40]]), -1] for row in exact])
    score, best = refined(interests, vectors, at, 5)
    assert best.tolist() == exact[:, :5].tolist()
    assert np.allclose(score, np.take_along_axis(interests @ vectors.T, exact[:, :5], axis=1))
    score, best = refined(interests, vectors, at, 30)
    assert (best[:, 20:] == -1).all() and np.isneginf(score[:, 20:]).all()


def test_an_index_by_codes_that_refines_enough_finds_what_exact_search_finds():
    log = make_shop(n_items=600)
    within = Context(log, {}, "click")
    within.embeddings = fit_embedders({"tfidf": TfidfSVD(dim=16)}, within, None)
    requests = log.requests_in("W3")[:40]
    pairs = {}
    for name, index in {
        "exact": Flat(),
        "codes": IVFPQ(nlist=1, m=2),
        "refined": IVFPQ(nlist=1, m=2, refine=50),
    }.items():
        funnel = Funnel((VectorRecall("tfidf", k=100, index=index),)).fit(within)
        pairs[name] = slate(funnel, requests).sort(REQUEST, RANK)
    scores = {name: frame[SCORE].to_numpy() for name, frame in pairs.items()}
    assert not np.allclose(scores["codes"], scores["exact"], atol=1e-3)
    assert np.allclose(scores["refined"], scores["exact"], atol=1e-5)


def test_join_is_reciprocal_rank_fusion_and_keeps_quotas():
    requests = context().log.requests_in("W3")[:5]
    a, b = VectorRecall("tfidf", k=30), Popular(k=30)
    fused = slate(fitted(Join([a, b])), requests)
    expected: dict[tuple[int, int], float] = {}
    for channel in (a, b):
        for request, item, _, rank in slate(fitted(channel), requests).rows():
            expected[request, item] = expected.get((request, item), 0.0) + 1 / (60 + rank)
    assert {(r, i): pytest.approx(s, abs=1e-6) for r, i, s, _ in fused.rows()} == expected
    kept = slate(fitted(Join([a, b], k=12, quotas=(2, 10))), requests)
    popular = slate(fitted(b), requests).filter(pl.col(RANK) <= 10)
    assert popular.join(kept, on=[REQUEST, ITEM], how="anti").height == 0
    with pytest.raises(KarmafunnelError, match="one quota a channel"):
        Join([a, b], k=10, quotas=(8, 8))


def test_rows_to_learn_from_are_what_the_sample_says():
    upstream = fitted(Join([VectorRecall("tfidf", k=30), Popular(k=30)], k=50))
    requests = context().log.requests_in("W2a")[:9]
    passed = upstream.run(requests)[-1].slate.select(REQUEST, ITEM)
    shown = context().logged(requests).join(passed, on=[REQUEST, ITEM], how="semi")
    n_truth = shown["truth"].sum()
    assert (
        0 < n_truth < context().truth.filter(pl.col(REQUEST).is_in(requests.tolist())).height
    )  # recall finds some and misses some
    expected = {
        Sample(exposed=True, passed=0): shown.height - n_truth,
        Sample(exposed=False, passed=7): 9 * 7,
        Sample(exposed=False, passed=0, random=3): pytest.approx(27, abs=4),
    }
    for sample, negatives in expected.items():
        chosen = pl.concat(
            rows.frame[mine]
            for rows, mine in sampled(context(), upstream, requests, sample, seed=0)
        )
        # truth that recall missed would say "not recalled means bought"
        assert chosen["truth"].sum() == n_truth
        assert chosen.filter(~pl.col("truth")).height == negatives
        assert chosen.select(REQUEST, ITEM).is_duplicated().sum() == 0
    every = [
        len(rows)
        for _, rows in sampled(context(), upstream, requests, Sample(passed=0), seed=0, missed=True)
    ]
    assert len(every) == context().folds and sum(every) == context().logged(requests).height


class TestErrors:
    def test_embedder_unknown(self):
        with pytest.raises(
            KarmafunnelError, match=r"'karma'.*\['cooccurrence', 'random', 'tfidf'\]"
        ):
            as_funnel(VectorRecall("karma")).fit(context())

    def test_column_missing(self):
        from karmafunnel.stages.rank import LightGBMRank

        with pytest.raises(KarmafunnelError, match=r"prerank\.score"):
            (Shown() >> LightGBMRank(features=[Column("prerank.score")])).fit(context())
        with pytest.raises(KarmafunnelError, match=r"'stars'.*rating"):
            (Shown() >> LightGBMRank(features=[ItemColumn("stars")])).fit(context())

    def test_no_text(self, shop):
        log = Log.make(
            shop.items,
            shop.requests,
            shop.exposures,
            shop.meta | {"has": shop.meta["has"] | {"text": False}},
        )
        with pytest.raises(KarmafunnelError, match="text=False"):
            BM25Recall().fit(Context(log), None)
        silent = Log.make(
            shop.items,
            shop.requests,
            shop.exposures,
            shop.meta | {"has": shop.meta["has"] | {"exposures": False}},
        )
        with pytest.raises(KarmafunnelError, match="no exposures"):
            Shown().fit(Context(silent), None)

    def test_nan_scores(self):
        class Broken(FittedStage):
            def __init__(self, stage):
                self.stage, self.context = stage, context()

            def score(self, rows):
                return np.full(len(rows.item), np.nan)

        stage = ItemKNN(name="rank")
        funnel = FittedFunnel(context(), (*fitted(Uniform()).stages, Broken(stage)))
        with pytest.raises(
            KarmafunnelError,
            match=r"rank \(ItemKNN\): needs finite scores, found nan for request 'r400', item",
        ):
            funnel.run(np.array([400]))

    @pytest.mark.parametrize("k", [0, 2.5, True])
    @pytest.mark.parametrize("inside", [False, True])
    def test_a_cutoff_that_is_no_whole_number(self, k: float, inside: bool) -> None:
        stage = Popular(k=k)  # type: ignore[arg-type]
        with pytest.raises(
            KarmafunnelError, match=f"Popular: k needs a whole number from 1 to .*, found {k}"
        ):
            Funnel((Join([Popular(), stage]) if inside else stage,))

    def test_names_and_replacements(self):
        with pytest.raises(KarmafunnelError, match="different names"):
            Uniform() >> Popular()
        funnel = as_funnel(ItemKNN(name="rank"))
        assert funnel.without("rank") == Funnel(funnel.stages[:1])
        with pytest.raises(KarmafunnelError, match=r"found \['rerank'\]"):
            funnel.without("rerank")

    def test_nothing_before_or_nothing_eligible(self, shop):
        first = np.array([0])
        assert slate(fitted(ItemKNN()), first).height == 0  # no history: nothing, and no error
        assert slate(fitted(Repeat()), first).height == 0
        unseen = Log.make(
            shop.items, shop.requests, shop.exposures, shop.meta | {"catalogue": "seen"}
        )
        empty = (
            Funnel((Popular(),))
            .fit(Context(unseen, {}, "click"))
            .run(first, Context(unseen, {}, "click").logged(first))[0]
        )
        assert empty.slate.height == 0 and not empty.tracked["kept"].any()

    def test_k_beyond_the_catalogue_is_the_catalogue(self):
        requests = context().log.requests_in("W3")[:6]
        counts = (
            slate(fitted(VectorRecall("random", k=9999)), requests)
            .group_by(REQUEST)
            .len()["len"]
            .to_list()
        )
        assert sorted(counts) == sorted(context().log.asof.known(requests).tolist())


def test_recall_is_a_retriever():
    assert all(isinstance(fitted(s).stages[0], Retriever) for s in STAGES)
