"""A stage that learns behind others that learned: never from what a model says of users that it was
fitted on.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import polars as pl
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.stages.context import Context, deal
from karmafunnel.stages.features import ItemColumn, Own, Popularity, Price, Upstream
from karmafunnel.stages.frame import ITEM, RANK, REQUEST
from karmafunnel.stages.learn import Sample, Teacher, Teachers, sampled, training_rows
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import DINRank, LightGBMRank
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.rerank import Rules
from karmafunnel.stages.stage import FittedFunnel, FittedStage, Funnel, Stage
from shop import make_shop

pytestmark = pytest.mark.slow

FEATURES = [Popularity(), Price(), Own(), ItemColumn("rating")]
EVERY = Sample(passed=60)


# -- who was seen by whom, by stages that only remember --------------------------------------------


@dataclass(frozen=True, repr=False)
class Remember(Stage):
    """Learns which requests it was fitted on, to stop by as well, and says so of a row: 1 for seen,
    else 0.
    """

    k: int = 60
    sample: Sample = EVERY
    name: str = "first"

    @property
    def blocks(self):
        return self.sample.blocks

    def fit(self, context, upstream):
        seen, saw = [], []
        for windows in (["W2a"], ["W2b"]):
            table = training_rows(self, [Upstream()], context, upstream, windows, self.sample)
            seen.append(np.unique(table.request))
            saw.append(table.x[:, 0])  # what the stage before says of the rows to learn from
        return Remembers(self, context, np.concatenate(seen), np.concatenate(saw))


@dataclass(eq=False)
class Remembers(FittedStage):
    seen: np.ndarray
    saw: np.ndarray

    def score(self, rows):
        return np.isin(rows.request, self.seen).astype(np.float32)


@cache
def shop() -> Log:
    return make_shop(n_items=120, n_users=30, n_requests=400)


@pytest.mark.parametrize("folds", [2, 3])
@pytest.mark.parametrize("between", [(), (Rules(k=60, min_price=0.0, name="rules"),)])
@pytest.mark.parametrize("blocks", [1, 3])
def test_what_a_stage_learns_from_was_not_seen_by_any_stage_before(folds, between, blocks):
    sample = replace(EVERY, blocks=blocks)
    first, second, third = (Remember(sample=sample, name=name) for name in ("a", "b", "c"))
    funnel = Funnel((Popular(k=60), first, *between, second, third))
    fitted = funnel.fit(Context(shop(), folds=folds))
    learnt = [ready for ready in fitted.stages if isinstance(ready, Remembers)]
    # the kept models are fitted on everybody, in every block
    assert (np.intersect1d(learnt[0].seen, shop().requests_in("W1")).size > 0) == (blocks > 1)
    assert [len(ready.seen) for ready in learnt] == [len(learnt[0].seen)] * 3
    assert not learnt[1].saw.any() and not learnt[2].saw.any()
    requests = shop().requests_in("W3")
    assert [step.slate["score"].max() for step in fitted.run(requests)[1:]] == [0.0] * (
        len(fitted.stages) - 1
    )
    assert fitted.run(np.sort(learnt[0].seen)[:5])[1].slate["score"].min() == 1.0


def test_the_folds_hold_users_together_and_are_the_same_in_both_windows():
    context = Context(shop(), folds=3)
    learnt = shop().requests_in("W2")
    assert (
        pl.DataFrame({"user": shop().user, "fold": context.fold})
        .unique()
        .select("user")
        .is_unique()
        .all()
    )
    sizes = np.bincount(context.fold[learnt], minlength=3)
    assert sizes.min() > 0.8 * sizes.max()
    assert np.array_equal(context.fold, Context(shop(), folds=3).fold)
    assert not np.array_equal(context.fold, Context(shop(), folds=3, seed=1).fold)


def test_sessions_are_held_together_where_users_are_not_known():
    shop_ = shop()
    sessions = shop_.requests.with_columns(
        pl.Series("session_id", [f"s{i // 4}" for i in range(shop_.requests.height)])
    )
    has = shop_.meta["has"] | {"users": False}
    log = Log.make(
        shop_.items,
        sessions.with_columns(pl.lit("anybody").alias("user_id")),
        shop_.exposures,
        shop_.meta | {"has": has},
    )
    context = Context(log)
    assert (
        pl.DataFrame({"session": log.session, "fold": context.fold})
        .unique()["session"]
        .is_unique()
        .all()
    )
    assert set(context.fold[log.requests_in("W2a")]) == {0, 1}


def test_dealing_by_hand():
    owner = np.array([0, 0, 0, 1, 2, 3, 3])
    fold = deal(owner, np.arange(7), 2, seed=0)
    sizes = np.bincount(fold, minlength=2)
    assert sorted(sizes) == [3, 4] and all(len(set(fold[owner == one])) == 1 for one in range(4))


@pytest.mark.parametrize("kind", [LightGBMPreRank, DINRank])
def test_a_teacher_scores_only_users_that_it_did_not_see(kind, monkeypatch):
    """Each row's word is that of the teacher's fit without the row's fold, whatever kind of model
    it is.
    """
    context = Context(shop())
    upstream = (Popular(k=60)).fit(context, None)
    before = FittedFunnel(context, (upstream,))
    options = {"features": FEATURES, "sample": EVERY} | (
        {"epochs": 1} if kind is DINRank else {"trees": 5}
    )
    teachers = Teachers.of(Teacher(kind(**options)), context, before)
    table = training_rows(LightGBMRank(), FEATURES, context, before, ["W2a"], EVERY, teachers)
    rows, _ = next(sampled(context, before, np.unique(table.request), EVERY, seed=0))
    fold = int(context.fold[rows.request[0]])
    assert np.array_equal(teachers.score(rows), teachers.without[fold].score(rows))
    assert not np.array_equal(teachers.score(rows), teachers.without[1 - fold].score(rows))
    for k, teacher in enumerate(teachers.without):
        again = kind(**options, name="teacher").fit(context, before.without(k))
        assert np.array_equal(again.score(rows), teacher.score(rows))


def test_a_fit_without_a_fold_takes_the_rows_of_the_others():
    context = Context(shop())
    before = (Popular(k=60) >> LightGBMPreRank(k=40, trees=5, features=FEATURES, sample=EVERY)).fit(
        context
    )
    stage = LightGBMRank(features=[Upstream(), *FEATURES], sample=EVERY)
    for windows in (["W2a"], ["W2b"]):
        whole = training_rows(stage, stage.features, context, before, windows, EVERY)
        parts = [
            training_rows(stage, stage.features, context, before.without(k), windows, EVERY)
            for k in (0, 1)
        ]
        assert sum(len(part.y) for part in parts) == len(whole.y) and all(
            len(part.y) for part in parts
        )
        for k, part in enumerate(parts):
            rows = context.fold[whole.request] != k
            assert np.array_equal(part.x, whole.x[rows], equal_nan=True)
            assert np.array_equal(part.y, whole.y[rows])


def test_one_put_together_by_hand_cannot_be_learnt_from():
    context = Context(shop())
    fitted = (Popular(k=60) >> LightGBMPreRank(k=40, trees=5, features=FEATURES, sample=EVERY)).fit(
        context
    )
    with pytest.raises(
        KarmafunnelError,
        match=r"learn behind prerank .* Funnel\.fit, found one put together by hand",
    ):
        LightGBMRank(features=FEATURES, sample=EVERY).fit(
            context, FittedFunnel(context, fitted.stages)
        )


# -- fits are kept, and made only where somebody learns from them ----------------------------------


def test_fits_without_a_fold_are_made_where_a_later_stage_learns_and_kept(tmp_path):
    first = LightGBMPreRank(k=40, trees=5, features=FEATURES, sample=EVERY)
    second = LightGBMRank(k=30, trees=5, features=[Upstream(), *FEATURES], sample=EVERY)
    told: list[str] = []
    counts = []
    two = Popular(k=60) >> first >> second
    for funnel in (Popular(k=60) >> first, two, two >> Rules(k=20, min_price=0.0)):
        told.clear()
        funnel.fit(Context(shop(), progress=told.append), tmp_path)
        every = [
            sum(words in text for text in told) for words in ("fitting LightGBM", "without fold")
        ]
        counts.append((*every, told[-1].startswith("out of fold: 2 more fits")))
    assert counts == [(1, 0, False), (3, 2, True), (0, 0, False)]
    folders = sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("prerank"))
    assert len(folders) == 3 and [name[-2:] for name in folders[1:]] == [".0", ".1"]
    for name in ("again", "elsewhere"):  # the same bytes, whether the first stage was there or not
        two.fit(Context(shop()), tmp_path / name)
    for file in (tmp_path / "again").rglob("trees.txt"):
        assert file.read_bytes() == (tmp_path / file.relative_to(tmp_path / "again")).read_bytes()


# -- a pre-ranker that memorises -------------------------------------------------------------------


def hits_at_10(funnel: Funnel, log: Log) -> dict[str, float]:
    """Share of the requests of W3 with a click whose first 10 hold one, by stage."""
    fitted = funnel.fit(Context(log))
    requests = np.intersect1d(log.requests_in("W3"), fitted.context.truth[REQUEST].to_numpy())
    truth = fitted.context.truth.select(REQUEST, ITEM)
    found = {}
    for step in fitted.run(requests):
        best = step.slate.filter(pl.col(RANK) <= 10).join(truth, on=[REQUEST, ITEM], how="semi")
        found[step.stage.name] = best[REQUEST].n_unique() / len(requests)
    return found


def test_a_ranker_behind_a_pre_ranker_that_memorises_is_better_than_it_two_and_three_stages_deep():
    """Over three shops; where the ranker learns from the pre-ranker's scores of its own rows: -.010
    two deep, -.068 three deep.
    """
    deep = {
        "trees": 200,
        "leaves": 63,
        "min_rows": 0,
        "l2": 0.0,
        "learning_rate": 0.3,
        "sample": EVERY,
    }
    first = LightGBMPreRank(k=60, features=FEATURES, **deep)
    middle = LightGBMRank(
        k=40, features=[Upstream(), *FEATURES], calibrated="", name="middle", **deep
    )
    last = LightGBMRank(k=30, features=[Upstream(), *FEATURES], sample=EVERY, calibrated="")
    gains = {"two": [], "three": []}
    for seed in range(3):
        log = make_shop(n_items=120, n_users=150, n_requests=1200, seed=seed)
        for name, funnel in (
            ("two", Popular(k=100) >> first >> last),
            ("three", Popular(k=100) >> first >> middle >> last),
        ):
            found = hits_at_10(funnel, log)
            gains[name].append(found["rank"] - found["prerank"])
    assert np.mean(gains["two"]) > 0.03 and np.mean(gains["three"]) > 0.02, gains
