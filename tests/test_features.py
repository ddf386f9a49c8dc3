"""Features that live on embeddings, on vectors whose cosines one can see and against slow loops."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models.embedders import (
    Cooccurrence,
    Embedder,
    Embedding,
    RandomVectors,
    TfidfSVD,
)
from karmafunnel.models.karma import KARMA, FrozenLM, Qwen, SentenceEncoder, TunedEncoder
from karmafunnel.models.simtier import BINS
from karmafunnel.simulator.replay.tables import RunWriter
from karmafunnel.simulator.replay.tree import run_tree, tree_of
from karmafunnel.stages.context import Context
from karmafunnel.stages.features import (
    BM25,
    Clicks,
    Own,
    Placement,
    Popularity,
    Price,
    RequestContext,
    Similarity,
    SimTier,
    Upstream,
    Vectors,
    check,
    compute,
)  # fmt: skip
from karmafunnel.stages.frame import ITEM, REQUEST, SCORE, TRACKED
from karmafunnel.stages.kept import Passes
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import ItemKNN, Join, Popular, Shown, VectorRecall
from karmafunnel.stages.rows import Feature, Rows
from karmafunnel.stages.stage import FittedFunnel, FittedStage, Funnel, Stage, fit_embedders
from shop import make_shop, scramble
from tiny_models import sentence_encoder

TO = ("interest", "query", "last", "session")
TINY = Qwen(
    dim=32, layers=2, heads=2, kv_heads=1, mlp=64, vocab=400, context=32, tokens=4000, batch=4
)


class Given(Embedding):
    """Vectors as given, and how often they were asked for."""

    asks = ("query",)

    def __init__(
        self, log: Log, items: np.ndarray, interests: np.ndarray, queries: np.ndarray | None = None
    ):
        super().__init__(RandomVectors(), log)
        self._items, self._interests = items.astype(np.float32), interests.astype(np.float32)
        self._queries = self._interests if queries is None else queries.astype(np.float32)
        self.asked: list[str] = []

    def items(self) -> np.ndarray:
        return self._items

    def interests(self, requests: np.ndarray) -> np.ndarray:
        self.asked.append("interests")
        return self._interests[requests]

    def queries(self, requests: np.ndarray) -> np.ndarray:
        self.asked.append("queries")
        return self._queries[requests]

    def tensors(self) -> dict[str, np.ndarray]:
        return {}


@cache
def visits() -> Log:
    """The shop, where four requests of a user in a row are one session."""
    shop = make_shop()
    nth = pl.int_range(pl.len()).over("user_id") // 4
    session = pl.format("{}-{}", "user_id", nth).alias("session_id")
    return Log.make(shop.items, shop.requests.with_columns(session), shop.exposures, shop.meta)


def given(log: Log, d: int = 8, seed: int = 0) -> Given:
    """Random vectors; every seventh item has none."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(log.n_items, d))
    items[::7] = 0
    return Given(
        log,
        items,
        rng.normal(size=(log.requests.height, d)),
        rng.normal(size=(log.requests.height, d)),
    )


def frame(rows: list[tuple[int, int, bool]]) -> pl.DataFrame:
    schema = {REQUEST: pl.Int64, ITEM: pl.Int32, TRACKED: pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row")


def crowd(requests: np.ndarray, n_items: int, each: int, seed: int = 0) -> pl.DataFrame:
    """So many items for each request, a fifth of the rows tracked, in no order."""
    rng = np.random.default_rng(seed)
    rows = [
        (int(r), int(i), bool(rng.random() < 0.2))
        for r in requests
        for i in rng.choice(n_items, each, replace=False)
    ]
    mixed = frame([rows[k] for k in rng.permutation(len(rows))])
    return mixed.sort(TRACKED, maintain_order=True)  # candidates come first


def rows_of(context: Context, mixed: pl.DataFrame) -> Rows:
    """What a stage is given: candidates, then the rows that are only scored, as the column
    `tracked` says.
    """
    slate, tracked = (
        mixed.filter(pl.col(TRACKED) == is_tracked).drop(TRACKED) for is_tracked in (False, True)
    )
    return Rows(context, slate, tracked)


def chosen_before(log: Log, request: int, session: bool = False) -> list[int]:
    """Items that the request's user (or session) clicked or bought strictly before it, oldest
    first: one row at a time.
    """
    owner = log.session if session else log.user
    rows = log.events.select("request", "item", "t").rows()
    return [item for r, item, t in rows if owner[r] == owner[request] and t < log.t[request]]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    length = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / length if length else math.nan


# -- similarity ------------------------------------------------------------------------------------


def test_value_rank_and_z_score_by_hand() -> None:
    """Interest (1, 0); candidates of values 1 2 2 5, mean 2.5, deviation 1.5. Tracked rows are told
    their place and count nowhere.
    """
    log = make_shop()
    items = np.zeros((log.n_items, 2))
    items[:6, 0] = 1, 2, 2, 5, 3, 9
    interests = np.zeros((log.requests.height, 2))
    interests[:2] = [1, 0]
    context = Context(log, {"e": Given(log, items, interests)})
    candidates = [(0, 0, False), (0, 1, False), (0, 2, False), (0, 3, False)]
    others, tracked = [(1, 1, False), (2, 1, False)], [(0, 4, True), (0, 5, True), (0, 6, True)]
    told = Similarity("e").compute(rows_of(context, frame(candidates + others + tracked)))
    value, rank, z = np.concatenate([told[:4], told[6:], told[4:6]]).T
    assert value[:6].tolist() == [1, 2, 2, 5, 3, 9]
    assert rank[:6].tolist() == [0, 1 / 4, 1 / 4, 3 / 4, 3 / 4, 4 / 4]
    assert z[:6] == pytest.approx([-1, -1 / 3, -1 / 3, 5 / 3, 1 / 3, 13 / 3])
    assert np.isnan([value[6], rank[6], z[6]]).all()  # an item without a vector
    assert (value[7], rank[7], z[7]) == (2, 0, 0)  # alone in its request
    assert np.isnan([value[8], rank[8], z[8]]).all()  # a request without an interest
    alone = Similarity("e").compute(rows_of(context, frame(candidates)))
    assert np.array_equal(alone, told[:4])
    assert Similarity("e").columns == ("similarity_e", "similarity_e_rank", "similarity_e_z")
    assert Similarity("e", to="last").columns == (
        "similarity_e_last",
        "similarity_e_last_rank",
        "similarity_e_last_z",
    )


@pytest.mark.parametrize("to", TO)
def test_what_it_is_compared_with_against_a_slow_loop(to: str) -> None:
    log = visits()
    embedding = given(log)
    requests = np.r_[0:6, 300:330]
    rows = crowd(requests, log.n_items, 9)
    value = Similarity("e", to=to).compute(rows_of(Context(log, {"e": embedding}), rows))[:, 0]
    items = embedding.items()
    expected = []
    for request, item, _ in rows.rows():
        past = chosen_before(log, request, session=to == "session")
        unit = [items[i] / np.linalg.norm(items[i]) for i in past if items[i].any()]
        goal = {
            "interest": embedding._interests[request], "query": embedding._queries[request],
            "last": items[past[-1]] if past else np.zeros(8), "session": np.sum([*unit, np.zeros(8)], axis=0),
        }[to]  # fmt: skip
        there = items[item].any() and goal.any()
        score = float(goal @ items[item]) if to == "interest" else cosine(goal, items[item])
        expected.append(score if there else math.nan)
    assert value == pytest.approx(np.array(expected), abs=1e-5, nan_ok=True)
    assert 0 < np.isnan(value).sum() < len(value)


def test_a_session_is_not_the_history() -> None:
    """Both hold something and differ, else the test above would say nothing of the session."""
    log = visits()
    past = {
        r: (chosen_before(log, r), chosen_before(log, r, session=True)) for r in range(300, 330)
    }
    assert sum(bool(s) and len(s) < len(h) for h, s in past.values()) > 10 and any(
        h and not s for h, s in past.values()
    )


# -- clicks in lists ------------------------------------------------------------------------------


def test_clicks_against_a_slow_loop() -> None:
    log = visits()
    shown = log.rows.filter(pl.col("position").is_not_null())
    of_request = shown["request"].to_numpy()
    shown = shown.select("request", "item", "position", "clicked").with_columns(
        user=log.user[of_request],
        session=log.session[of_request],
        query=log.requests["query"].gather(of_request),
        at=log.t[of_request],
    )
    past = shown.rows(named=True)
    wanted = np.r_[0:3, 396:411]
    rows = crowd(wanted, log.n_items, 40)
    found = Clicks(prior=2).compute(rows_of(Context(log), rows))
    expected = []
    for request, item, _ in rows.rows():
        query = log.requests["query"][int(request)]
        before = [p for p in past if p["item"] == item and p["at"] < log.t[request]]
        of = {
            "all": before,
            "own": [p for p in before if p["user"] == log.user[request]],
            "query": [p for p in before if query is not None and p["query"] == query],
        }
        session = [p for p in before if p["session"] == log.session[request]]
        coec = []
        for group in of.values():
            looks = sum(1 / math.log2(1 + p["position"]) for p in group)
            coec.append((sum(p["clicked"] for p in group) + 0.4) / (looks + 2))
        position = session[-1]["position"] if session else math.nan
        clicks = sum(p["clicked"] for p in of["query"])
        expected.append([*coec, clicks, len(of["query"]), len(session), position])
    told = np.delete(found, 1, axis=1)
    assert told == pytest.approx(np.array(expected), abs=1e-5, nan_ok=True)
    assert (told[:, 4] > 0).sum() > 50 and (told[:, 5] > 0).any() and (told[:, 3] > 0).any()
    coec, group = found[:, 0], rows[REQUEST].to_numpy()
    candidate = ~rows[TRACKED].to_numpy()
    among = [coec[candidate & (group == request)] for request in group]
    ranks = [np.mean(others < own) for own, others in zip(coec, among, strict=True)]
    assert found[:, 1] == pytest.approx(np.array(ranks))


# -- SimTier and raw vectors -----------------------------------------------------------------------


def test_sim_tier_by_hand() -> None:
    """One item chosen twice, its opposite once: the item itself stands in the last bin, whatever
    rounding says of 1.
    """
    log = visits()
    request = next(r for r in range(400, 500) if len(set(chosen_before(log, r))) >= 2)
    past = chosen_before(log, request)
    a, b = past[-1], next(i for i in reversed(past) if i != past[-1])
    rng = np.random.default_rng(3)
    items = np.zeros((log.n_items, 5))
    items[a] = rng.normal(size=5)
    items[b] = -3 * items[a]
    context = Context(log, {"e": Given(log, items, np.zeros((log.requests.height, 5)))})
    unknown = next(i for i in range(log.n_items) if not items[i].any())
    out = SimTier("e", depth=len(past)).compute(
        rows_of(
            context, frame([(request, a, False), (request, b, False), (request, unknown, True)])
        )
    )
    expected = np.zeros((3, BINS))
    expected[0, 21], expected[0, 1] = math.log1p(past.count(a)), math.log1p(past.count(b))
    expected[1, 21], expected[1, 1] = math.log1p(past.count(b)), math.log1p(past.count(a))
    assert out == pytest.approx(expected)
    names = SimTier("e").columns
    assert len(names) == BINS and (names[0], names[11], names[21]) == (
        "simtier_e_-1.1",
        "simtier_e_+0.0",
        "simtier_e_+1.0",
    )


@pytest.mark.parametrize("depth", [3, 50])
def test_sim_tier_against_a_slow_loop(depth: int) -> None:
    log = visits()
    embedding = given(log)
    rows = crowd(np.r_[0:4, 380:420], log.n_items, 12)
    out = SimTier("e", depth=depth).compute(rows_of(Context(log, {"e": embedding}), rows))
    items, expected = embedding.items(), np.zeros((rows.height, BINS))
    for k, (request, item, _) in enumerate(rows.rows()):
        for past in chosen_before(log, request)[-depth:]:
            r = cosine(items[item], items[past])
            if not math.isnan(r):
                expected[k, math.floor(r * 10 + 11 + 1e-3)] += 1
    assert expected.sum() > 100 and (expected.sum(axis=1) == 0).any()
    assert out.dtype == np.float32 and np.allclose(out, np.log1p(expected))


def test_raw_vectors_stand_side_by_side() -> None:
    log = visits()
    embedding = given(log)
    context = Context(log, {"e": embedding})
    rows = crowd(np.arange(400, 404), log.n_items, 5)
    out = Vectors("e", dim=8).compute(rows_of(context, rows))
    for row, (request, item, _) in zip(out, rows.rows(), strict=True):
        assert np.array_equal(row, np.r_[embedding._interests[request], embedding._items[item]])
    assert len(set(Vectors("e", dim=8).columns)) == out.shape[1] == 16
    assert (
        repr(Vectors("e", dim=8)) == "Vectors('e', dim=8)"
        and repr(Similarity("e", to="query")) == "Similarity('e', to='query')"
    )


# -- as of the request -----------------------------------------------------------------------------


ALL: tuple[Feature, ...] = (
    *(Similarity("tfidf", to=to) for to in TO), *(Similarity("together", to=to) for to in ("interest", "last", "session")),
    SimTier("together", depth=10), SimTier("tfidf"), Vectors("tfidf", dim=16), Clicks(),
)  # fmt: skip


def context_of(log: Log) -> Context:
    made = Context(log, {}, "click")
    made.embeddings = fit_embedders(
        {"tfidf": TfidfSVD(dim=16), "together": Cooccurrence(dim=16)}, made, None
    )
    return made


def test_neither_the_future_nor_the_chunk_changes_a_feature() -> None:
    log = visits()
    requests = log.requests_in("W3")[:40]
    rows = crowd(requests, log.n_items, 15)
    here, later = context_of(log), context_of(scramble(log, int(log.t[requests[-1]])))
    whole = compute(ALL, rows_of(here, rows))
    assert np.isfinite(whole).mean() > 0.5
    assert np.array_equal(whole, compute(ALL, rows_of(later, rows)), equal_nan=True)
    early = rows[REQUEST].to_numpy() <= requests[13]
    parts = np.empty_like(whole)
    for mine in (early, ~early):
        parts[mine] = compute(ALL, rows_of(context_of(log), rows.filter(pl.Series(mine))))
    assert np.allclose(whole, parts, atol=1e-6, equal_nan=True)


def test_forced_rows_do_not_count() -> None:
    log = visits()
    context = context_of(log)
    candidates = crowd(log.requests_in("W3")[:30], log.n_items, 15).with_columns(
        pl.lit(False).alias(TRACKED)
    )
    tracked = crowd(log.requests_in("W3")[:30], log.n_items, 20, seed=1).with_columns(
        pl.lit(True).alias(TRACKED)
    )
    alone, beside = (
        compute(ALL, rows_of(context, part))
        for part in (candidates, pl.concat([candidates, tracked]))
    )
    assert np.allclose(alone, beside[: candidates.height], atol=1e-6, equal_nan=True)


def test_vectors_are_made_once_a_chunk_however_many_stages_ask() -> None:
    log = visits()
    embedding = given(log)
    context = Context(log, {"e": embedding}, "click")
    features = [Upstream(), *(Similarity("e", to=to) for to in TO), SimTier("e")]
    sample = Sample(passed=10, requests=40)
    funnel = Join([VectorRecall("e", k=30), Popular(k=20)], k=40)
    ready = (
        funnel
        >> LightGBMPreRank(k=20, features=features, trees=5, sample=sample)
        >> LightGBMRank(k=10, features=features, trees=5, sample=sample)
    ).fit(context)  # fmt: skip
    embedding.asked.clear()
    requests = log.requests_in("W3")
    for chunk in (requests[:40], requests[40:80]):
        ready.run(chunk, context.logged(chunk))
    assert sorted(embedding.asked) == ["interests", "interests", "queries", "queries"]


# -- once for all stages and funnels ---------------------------------------------------------------

PAIRED = (
    Popularity(),
    Own(depth=20),
    BM25(),
    Price(),
    Similarity("tfidf"),
    Similarity("tfidf", to="last"),
    Placement(),
    Clicks(),
)


@dataclass(frozen=True, repr=False)
class Through(Stage):
    """A stage that orders by the first feature, lets every other row through where it `thins`, and
    remembers what it computed.
    """

    k: int = 20
    features: tuple[Feature, ...] = ()
    thins: bool = False
    name: str = "prerank"

    def embedders(self) -> tuple[str, ...]:
        return tuple(name for f in self.features for name in f.embedders())

    def fit(self, context: Context, upstream: FittedFunnel | None) -> "FittedThrough":
        return FittedThrough(self, context)


class FittedThrough(FittedStage):
    def __init__(self, stage: Through, context: Context):
        self.stage, self.context = stage, context
        self.seen: list[tuple[Rows, np.ndarray]] = []

    def outputs(self, rows: Rows) -> dict[str, np.ndarray]:
        x = compute(self.stage.features, rows)
        self.seen.append((rows, x))
        keep = {"keep": rows.item % 2 == 0} if self.stage.thins else {}
        return {SCORE: np.nan_to_num(x[:, 0])} | keep


def anew(context: Context, rows: Rows) -> Rows:
    """The same rows, of which nobody has asked anything yet."""
    return Rows(context, rows.slate, rows.tracked, rows.requests)


def run_all(fitted: Sequence[FittedFunnel], requests: np.ndarray) -> dict[int, Any]:
    """Outputs of funnels that run over the same rows, or their error, by number."""
    context = fitted[0].context
    return dict(
        run_tree(
            tree_of(dict(enumerate(fitted))),
            Rows.start(context, requests, context.logged(requests)),
        )
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Features whose pairs were worked out, and of how many rows."""
    found: list[tuple[str, int]] = []
    for kind in {type(f) for f in PAIRED}:

        def counted(self: Feature, rows: Rows, real: Any = kind.pairs) -> np.ndarray:
            found.append((repr(self), len(rows.item)))
            return real(self, rows)

        monkeypatch.setattr(kind, "pairs", counted)
    return found


def through(context: Context, *stages: Through) -> FittedFunnel:
    funnel = Funnel((Join([VectorRecall("tfidf", k=30), Popular(k=20)], k=40),))
    for stage in stages:
        funnel >>= stage
    return funnel.fit(context)


def test_a_stage_takes_along_what_an_earlier_one_worked_out(asked: list[tuple[str, int]]) -> None:
    log = visits()
    context, requests = context_of(log), log.requests_in("W3")[:40]
    first = Through(k=25, features=(Upstream(), *PAIRED), thins=True, name="first")
    between, last = (
        Through(k=15, features=(Upstream(),), name="between"),
        Through(features=(*PAIRED[::-1], RequestContext()), name="last"),
    )
    ready = through(context, first, between, last)
    asked.clear()
    ready.run(requests, context.logged(requests))
    # once each, two stages on
    assert sorted(name for name, _ in asked) == sorted(map(repr, PAIRED))
    ((rows, _),), ((few, x),) = ready.stages[1].seen, ready.stages[3].seen
    assert {n for _, n in asked} == {len(rows.item)}
    assert len(few.item) < len(rows.item) and 0 < few.tracked.height < len(few.item)
    fresh = compute(last.features, anew(context_of(log), few))
    assert x.tobytes() == fresh.tobytes() and np.isfinite(x).mean() > 0.5
    asked.clear()
    ready.run(requests, context.logged(requests))  # another run of the chunk is another chunk
    assert len(asked) == len(PAIRED)


def test_funnels_that_begin_alike_share_features_and_are_charged_as_if_alone(
    asked: list[tuple[str, int]],
) -> None:
    log = visits()
    context, requests = context_of(log), log.requests_in("W3")[:40]
    own, price = Own(depth=20), Price()
    whole = through(
        context, Through(features=(own, price)), Through(features=(own, price), name="rank")
    )
    other = through(
        context, Through(features=(own, Upstream())), Through(features=(price, own), name="rank")
    )
    asked.clear()
    runs = run_all([whole, other], requests)
    at_recall, at_rank = (
        len(ready.stages[i].seen[0][0].item) for ready, i in ((other, 1), (other, 2))
    )
    # Once for both pre-rankers; the other's ranker does not live on the price that only its
    # neighbour's pre-ranker asked for.
    assert asked == [(repr(own), at_recall), (repr(price), at_recall), (repr(price), at_rank)]
    places = []
    for step in runs[1]:
        places.append(
            {
                (place[0], place[-1]): took
                for place, took in step.read.items()
                if place[1] == "pairs"
            }
        )
    assert [set(found) for found in places] == [
        set(),
        {(1, repr(own))},
        {(1, repr(own)), (2, repr(price))},
    ]
    assert places[1] == {place: took for place, took in places[2].items() if place in places[1]}
    assert min(places[2].values()) > 0
    # What the other's pre-ranker found made is in its seconds, once.
    assert runs[1][1].seconds > places[1][1, repr(own)]
    for ready in (whole, other):
        for stage in ready.stages[1:]:
            rows, x = stage.seen[0]
            assert (
                x.tobytes() == compute(stage.stage.features, anew(context_of(log), rows)).tobytes()
            )


@dataclass(frozen=True, repr=False)
class Secret(Feature):
    """A recipe's own feature that reads an embedder which it does not declare."""

    columns = ("secret",)

    def compute(self, rows: Rows) -> np.ndarray:
        return rows.interests("e", "secret")[rows.group, :1]


@dataclass(frozen=True, repr=False)
class Declared(Secret):
    def embedders(self) -> tuple[str, ...]:
        return ("e",)


@dataclass(frozen=True, repr=False)
class Filling(Feature):
    columns = ("filled",)

    def compute(self, rows: Rows) -> np.ndarray:
        found = rows.pairs(Own(depth=20))
        found[np.isnan(found)] = 99
        return found[:, :1]


def two_rows(first: Feature, second: Feature) -> tuple[list[FittedFunnel], np.ndarray]:
    """Two funnels that begin alike and mean different vectors by "e"."""
    log = visits()
    context = context_of(log)
    begin = through(context)
    fitted = []
    for i, feature in enumerate((first, second)):
        mine = replace(context, embeddings=context.embeddings | {"e": given(log, seed=i)})
        stage = Through(features=(feature,)).fit(mine, None)
        fitted.append(FittedFunnel(mine, (*begin.stages, stage), (*begin.keys, f"{i}")))
    return fitted, log.requests_in("W3")[:40]


def test_a_feature_of_ones_own_is_not_taken_from_a_row_with_other_vectors() -> None:
    funnels, requests = two_rows(Declared(), Declared())
    run_all(funnels, requests)
    seen = [ready.stages[1].seen[0] for ready in funnels]  # type: ignore[attr-defined]
    assert seen[0][0].frame is seen[1][0].frame
    for ready, (rows, x) in zip(funnels, seen, strict=True):
        assert x.tobytes() == compute((Declared(),), anew(ready.context, rows)).tobytes()
    assert not np.array_equal(seen[0][1], seen[1][1])


def test_a_feature_reads_no_vectors_but_those_it_names() -> None:
    funnels, requests = two_rows(Declared(), Secret())
    told = run_all(funnels, requests)
    assert len(told[0]) == 2
    assert isinstance(told[1], KarmafunnelError)
    assert told[1].who == "Secret()"
    assert told[1].needs == "to name embedder 'e', which it reads, in embedders()"
    assert told[1].found == "[]"


def test_what_is_shared_cannot_be_written_into() -> None:
    funnels, requests = two_rows(Filling(), Own(depth=20))
    told = run_all(funnels, requests)
    assert isinstance(told[0], ValueError) and "read-only" in str(told[0])
    rows, x = funnels[1].stages[1].seen[0]  # type: ignore[attr-defined]
    assert np.isnan(x).any()
    assert x.tobytes() == compute((Own(depth=20),), anew(context_of(visits()), rows)).tobytes()


def test_a_feature_is_worked_out_once_for_funnels_that_are_given_the_same_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def counted(self: SimTier, rows: Rows, real: Any = SimTier.compute) -> np.ndarray:
        asked.append(len(rows.item))
        return real(self, rows)

    monkeypatch.setattr(SimTier, "compute", counted)
    funnels, requests = two_rows(SimTier("tfidf"), SimTier("tfidf"))
    run_all(funnels, requests)
    (first, x), (second, y) = (ready.stages[1].seen[0] for ready in funnels)  # type: ignore[attr-defined]
    assert asked == [len(first.item)] and x.tobytes() == y.tobytes()
    assert first.read == second.read and min(first.read.values()) > 0  # both are charged


def test_passes_keep_what_was_asked_for_last_and_no_more_bytes_than_they_may() -> None:
    frame_ = pl.DataFrame({"x": np.zeros(1000)})  # 8,000 bytes
    passes = Passes(most=40_000)
    for key in ("a", "b"):
        passes.put(key, "chunk 1", (frame_, frame_))
    assert passes.get("a", "chunk 1")
    assert passes.get("b", "chunk 1")
    assert not passes.get("b", "chunk 2")
    passes.get("a", "chunk 1")
    passes.put("c", "chunk 1", (frame_, frame_))  # b was asked for longest ago
    assert passes.get("a", "chunk 1")
    assert passes.get("c", "chunk 1")
    assert not passes.get("b", "chunk 1")
    for chunk in range(2, 6):  # one beginning alone fills it and keeps what it has
        passes.put("c", f"chunk {chunk}", (frame_, frame_))
    assert [bool(passes.get("c", f"chunk {chunk}")) for chunk in range(1, 6)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    passes.clear()
    assert not passes.get("c", "chunk 1")


def test_an_explanation_is_of_what_the_stage_saw() -> None:
    """Ranks and z-scores are those among the candidates, not among the few items that are
    explained.
    """
    log = visits()
    context = context_of(log)
    told: list[np.ndarray] = []
    stage = Through(k=40, features=(Similarity("tfidf"),))
    ready = through(context, stage)

    def why(rows: Rows) -> list[str]:
        told.append(compute(stage.features, rows))
        return [str(i) for i in range(len(rows.item))]

    ready.stages[1].why = why  # type: ignore[method-assign]
    found = ready.explain(log.request_ids[log.requests_in("W3")[5]], top=3)
    ((_, seen),) = ready.stages[1].seen[1:]  # type: ignore[attr-defined]
    assert told[0].tobytes() == seen.tobytes()
    mine = found.filter(pl.col("stage") == "prerank")["why"].to_list()
    assert mine == [str(i) for i in range(len(seen) - len(mine), len(seen))] and 0 < len(
        mine
    ) < len(seen)


# -- queries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        KARMA(backbone=TINY, dim=32, epochs=1, length=8),
        FrozenLM(backbone=TINY),
        TunedEncoder(SentenceEncoder(sentence_encoder(), dim=8), trained=1),
    ],
    ids=repr,
)
def test_a_query_alone_is_the_interest_of_who_did_nothing_before(value: Embedder) -> None:
    log = make_shop()
    embedding = value.fit(log, seed=3)
    requests = np.arange(log.requests.height)
    asked = (
        log.requests["query"].is_not_null() | (log.requests["filters"].list.len() > 0)
    ).to_numpy()
    new = (log.asof.n_events(requests) == 0) & asked
    found = embedding.queries(requests)
    assert found is not None and new.sum() > 10
    assert found[new] == pytest.approx(embedding.interests(requests[new]), abs=1e-6)
    assert not found[~asked].any() and (~asked).sum() > 10
    same = (log.requests["query"] == "amber").fill_null(False).to_numpy() & (
        log.requests["filters"].list.len() == 0
    ).to_numpy()
    assert (
        len(np.unique(found[same], axis=0)) == 1
        and len(np.unique(embedding.interests(requests[same]), axis=0)) > 1
    )


# -- refusals --------------------------------------------------------------------------------------


class TestRefusals:
    def test_queries(self) -> None:
        log = make_shop()
        context = context_of(log)
        with pytest.raises(
            KarmafunnelError,
            match=r"rank: Similarity\('together', to='query'\).*reads queries, found Cooccurrence",
        ):
            check([Similarity("together", to="query")], context, "rank")
        silent = Log.make(
            log.items,
            log.requests,
            log.exposures,
            log.meta | {"has": log.meta["has"] | {"query": False}},
        )
        with pytest.raises(
            KarmafunnelError, match=r"needs query of requests, found none in log shop"
        ):
            check([Similarity("tfidf", to="query")], context_of(silent), "rank")
        with pytest.raises(KarmafunnelError, match=r"needs sessions, found none in log shop"):
            check([Similarity("tfidf", to="session")], context, "rank")
        with pytest.raises(KarmafunnelError, match=r"to needs one of .*found 'next'"):
            Similarity("tfidf", to="next")  # type: ignore[arg-type]

    def test_names_and_sizes(self) -> None:
        context = context_of(make_shop())
        with pytest.raises(
            KarmafunnelError,
            match=r"rank: Similarity\('karma'\): needs embedders \['karma'\]",
        ):
            check([Similarity("karma")], context, "rank")
        with pytest.raises(
            KarmafunnelError,
            match=r"needs vectors of 64 numbers, as its `dim` says, found 16 in 'tfidf'",
        ):
            check([Vectors("tfidf", dim=64)], context, "rank")
        with pytest.raises(KarmafunnelError, match=r"\['bm25'\] more than once"):
            check([BM25(), Similarity("tfidf"), BM25()], context, "rank")

    def test_another_catalogue_or_another_log(self) -> None:
        log, larger, fewer = make_shop(), make_shop(n_items=250), make_shop(n_requests=400)
        for other, needed in (
            (larger, r"on the items of log shop \(240\), found one of log shop \(250\)"),
            (fewer, "the requests of log shop"),
        ):
            context = Context(log, {"e": RandomVectors().fit(other)})
            with pytest.raises(
                KarmafunnelError, match=rf"rank: Similarity\('e'\): needs embedder 'e'.*{needed}"
            ):
                check([Similarity("e")], context, "rank")
        # the same, read twice
        check([Similarity("e")], Context(log, {"e": RandomVectors().fit(make_shop())}), "rank")

    def test_the_window_that_a_vector_was_fitted_on(self) -> None:
        context = Context(make_shop(), {}, "click")
        context.embeddings = fit_embedders(
            {"tfidf": TfidfSVD(dim=16), "random": RandomVectors()}, context
        )

        def rank(name: str, *windows: str) -> LightGBMRank:
            return LightGBMRank(
                k=10,
                features=[Similarity(name)],
                trees=3,
                sample=Sample(requests=60, windows=windows),
            )

        with pytest.raises(
            KarmafunnelError,
            match=r"rank \(LightGBMRank\): cannot learn from W1, on which embedder 'tfidf' was fitted",
        ):
            (Shown() >> rank("tfidf", "W1", "W2a")).fit(context)
        with pytest.raises(
            KarmafunnelError,
            match=r"recall \(Join\): cannot learn from W1, on which ItemKNN was fitted",
        ):
            (Join([ItemKNN(), Popular()]) >> rank("random", "W1")).fit(context)
        knowing = (Shown() >> rank("tfidf", "W2a")).fit(context)
        with pytest.raises(
            KarmafunnelError,
            match=r"rank \(LightGBMRank\): cannot score W1, on which embedder 'tfidf' was fitted",
        ):
            RunWriter(knowing, "W1")
        RunWriter(knowing, "W3")
        RunWriter((Shown() >> rank("random", "W1", "W2a")).fit(context), "W1")  # knows ids alone
        later = replace(context, embeddings=dict(context.embeddings))
        later.embeddings["tfidf"] = TfidfSVD(dim=16).fit(later.log)
        later.embeddings["tfidf"].fitted_on = ("W1", "W2a")
        with pytest.raises(KarmafunnelError, match="cannot learn from W2a"):
            (Shown() >> rank("tfidf", "W2a")).fit(later)
        assert isinstance(knowing, FittedFunnel)
