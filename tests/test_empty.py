"""What has nothing in it: chunks of requests without candidates or exposures, and catalogues
without a word.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder, TfidfSVD
from karmafunnel.models.karma import KARMA, Column, FrozenLM, SentenceEncoder, TunedEncoder
from karmafunnel.models.karma.backbone import Qwen
from karmafunnel.simulator.measure.compare import Run, measure
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.stages.context import Context
from karmafunnel.stages.features import Rows, Similarity
from karmafunnel.stages.frame import CHANNEL, ITEM, REQUEST, SCORE, rows_frame
from karmafunnel.stages.recall import BM25Recall, VectorRecall
from karmafunnel.stages.stage import Funnel
from shop import make_shop
from test_stages import FEATURES, STAGES, context, fitted
from tiny_models import sentence_encoder

pytestmark = pytest.mark.slow

# -- no rows ---------------------------------------------------------------------------------------


def chunks() -> dict[str, np.ndarray]:
    """Chunks of requests: the first has no past, so history finds it nothing; no request at all."""
    return {
        "none": np.empty(0, np.int64),
        "the first": np.array([0]),
        "the first two": np.array([0, 1]),
    }


@cache
def columns_of(stage):
    """Columns and types of what a stage makes of an ordinary chunk."""
    requests = context().log.requests_in("W3")[:5]
    return [
        (s.slate.schema, s.tracked.schema)
        for s in fitted(stage).run(requests, context().logged(requests), exact=True)
    ]


@pytest.mark.parametrize("stage", STAGES, ids=repr)
@pytest.mark.parametrize("name", chunks())
@pytest.mark.parametrize("handed", ["no tracked rows", "those logged", "an empty frame of them"])
def test_a_chunk_of_nothing_keeps_its_columns(stage, name, handed):
    requests = chunks()[name]
    rows = context().logged(requests)
    tracked = {
        "no tracked rows": None,
        "those logged": rows,
        "an empty frame of them": rows.clear(),
    }[handed]
    steps = fitted(stage).run(requests, tracked, exact=True)
    for step, (slate, told) in zip(steps, columns_of(stage), strict=True):
        assert step.slate.schema == slate and set(step.tracked.schema.items()) == set(told.items())
        assert len(step.rows_in) == len(step.rows_out) == len(requests)


@pytest.mark.parametrize("feature", FEATURES, ids=repr)
def test_features_of_no_rows(feature):
    columns = {name: [] for name in (REQUEST, ITEM, SCORE, "rank", CHANNEL)}
    found = feature.compute(Rows(context(), rows_frame(**columns)))
    assert found.shape == (0, len(feature.columns)) and found.dtype == np.float32


def without_exposures(log: Log, of: list[str]) -> Log:
    return Log.make(
        log.items, log.requests, log.exposures.filter(~pl.col("request_id").is_in(of)), log.meta
    )


MEASURES = [
    "HR@5",
    "Recall@5",
    "nDCG@5",
    "MRR",
    "GMV-HR@5",
    "GMV-nDCG@5",
    "Recall@9@5",
    "HR@5:all",
    "overlap@5",
    "RBO@5",
    "margin",
    "survival",
    "swap",
    "ceiling",
    "AUC",
    "logloss",
    "ECE",
    "gAUC:request:exposures",
    "gAUC:user:exposures",
    "gAUC:request:candidates",
    "eGMV@5",
    "HR@5:exposures",
]
RECIPE = """
from karmafunnel.models.embedders import TfidfSVD
from karmafunnel.stages.features import BM25, Own, Popularity, Similarity, Upstream
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import BM25Recall, Join, Popular, Repeat

embedders, label = {"tfidf": TfidfSVD(dim=4)}, None
features = [Upstream(), Popularity(), Own(), BM25(), Similarity("tfidf")]
recall = Join([Repeat(k=30), Popular(k=30), BM25Recall(k=30)], k=60)
funnel = recall >> LightGBMRank(k=20, trees=5, features=features)
"""


@pytest.mark.parametrize("emptied", ["the last chunk", "all of W3"])
def test_a_run_in_which_nothing_was_shown(emptied, shop, tmp_path):
    """Seven requests a shard and one in the last, in which nothing was shown; or nothing shown at
    all: every measure answers.
    """
    (tmp_path / "small.py").write_text(RECIPE)
    ids = shop.request_ids[shop.requests_in("W3")].tolist()
    log = without_exposures(shop, ids[-2:] if emptied == "the last chunk" else ids)
    chunk = (len(ids) - 1) // 7 * 7
    run = Run.open(
        replay(
            load_recipe(str(tmp_path / "small.py"), log),
            log,
            tmp_path / "run",
            RunOptions(chunk=chunk or 1),
        )
    )
    rows = measure(run, MEASURES, resamples=20)
    assert {r["measure"] for r in rows} == set(MEASURES)
    hit = next(r for r in rows if r["measure"] == "HR@5" and r["stage"] == "rank")
    assert (hit["value"] is None) == (emptied == "all of W3")


# -- no words --------------------------------------------------------------------------------------

TEXTS = {
    "null": [None],
    "empty": [""],
    "blanks": ["  \t "],
    "no word": ["!!! ---"],
    "one word, all": ["lamp"],
    "one word, once": [None] * 239 + ["lamp"],
    "one letter": ["a"],
    "control characters": ["\x00\x1b[31m"],
    "emoji": ["\U0001f9e6"],
}
TINY = Qwen(
    dim=16, layers=1, heads=2, kv_heads=1, mlp=16, vocab=300, context=16, tokens=200, batch=2
)
READERS: list[Embedder | BM25Recall] = [
    BM25Recall(k=5),
    TfidfSVD(dim=4),
    TfidfSVD(dim=4, chars=3),
    FrozenLM(TINY),
    FrozenLM(TINY, after="whitening", dim=4),
    SentenceEncoder(sentence_encoder(), dim=4),
    TunedEncoder(SentenceEncoder(sentence_encoder(), dim=4), trained=1),
    KARMA(TINY, dim=8, epochs=1, text_words=4, query_words=4, length=4, warm=False),
    KARMA(
        TINY,
        dim=8,
        epochs=1,
        text_words=4,
        query_words=4,
        length=4,
        beside=(TfidfSVD(dim=4),),
        gen=0.5,
        rec=0.5,
    ),
]


def titled(titles: list[str | None], brand: str | None, query: str | None) -> Log:
    shop = make_shop()
    titles = [titles[i % len(titles)] for i in range(shop.n_items)]
    bare = {"attributes": pl.lit(None, pl.List(pl.String)), "brand": pl.lit(brand, pl.String)}
    items = shop.items.with_columns(pl.Series("title", titles, pl.String), **bare)
    return Log.make(
        items, shop.requests.with_columns(query=pl.lit(query, pl.String)), shop.exposures, shop.meta
    )


@pytest.mark.parametrize("reader", READERS, ids=repr)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("brand", [None, "acme"])
def test_a_catalogue_without_words_is_refused_or_says_nothing(reader, text, brand):
    log = titled(TEXTS[text], brand, "lamp acme !!!" if brand else "\x00 ")
    requests = log.requests_in("W3")[:4]
    try:
        if isinstance(reader, BM25Recall):
            slate = Funnel((reader,)).fit(Context(log)).run(requests)[0].slate
            assert (slate.height > 0) == (text.startswith("one word") and brand is not None)
            return
        made = reader.fit(log)
    except KarmafunnelError as error:
        assert "item text" in str(error) and (brand is None or "texts that differ" in str(error))
        return
    assert np.isfinite(made.items()).all() and np.isfinite(made.interests(requests)).all()
    asked = made.queries(requests)
    assert asked is None or np.isfinite(asked).all()
    here = Context(log, {"reader": made})
    slate = Funnel((VectorRecall("reader", k=5),)).fit(here).run(requests)[0].slate
    read = Similarity("reader").compute(Rows(here, slate))
    assert np.isfinite(slate[SCORE].to_numpy()).all() and not np.isinf(read).any()


# -- nothing to tell -------------------------------------------------------------------------------

TOLD = Qwen(dim=16, layers=1, heads=2, kv_heads=1, mlp=16, vocab=300, context=64, tokens=500, batch=2)
TELLS = KARMA(backbone=TOLD, dim=8, epochs=1, length=4, batch=8, text_words=4, query_words=2)


@pytest.mark.parametrize("name", ["gen", "rec", "see"])
def test_an_objective_that_can_tell_nothing_is_refused(name):
    """Its loss would be 0 throughout: no target of W1 has text, blank lists and titles are none,
    or none has a picture."""
    shop = make_shop(60, 10, 120)
    targets = shop.item_ids[sorted(set(shop.events["item"].to_list()))].tolist()
    told = pl.col("item_id").is_in(targets)
    items = shop.items.with_columns(
        title=pl.when(told).then(pl.lit("")).otherwise("title"),
        attributes=pl.when(told).then(pl.lit([], dtype=pl.List(pl.String))).otherwise("attributes"),
        visual=pl.when(told).then(None).otherwise(pl.lit([0.5, 1.0], dtype=pl.List(pl.Float32))),
    )
    log = Log.make(items, shop.requests, shop.exposures, shop.meta)
    assert log.item_text().count("") == len(targets)
    value = replace(TELLS, visual=Column(), **{name: 0.1})
    what = "an image" if name == "see" else "text"
    with pytest.raises(KarmafunnelError, match=f"{name} needs items with {what} among the targets"):
        value.fit(log)


def test_a_watched_fit_whose_requests_follow_nothing():
    shop = make_shop(60, 120, 120)
    once = shop.requests.with_columns(user_id=pl.col("request_id"))
    log = Log.make(shop.items, once, shop.exposures, shop.meta)
    steps = replace(TELLS, watch=1).fit(log).facts["watched"]
    assert len(steps) > 1 and all(np.isfinite(list(step.values())).all() for step in steps)


def test_texts_that_do_not_differ_have_no_directions():
    shop = make_shop(60, 10, 120)
    items = shop.items.with_columns(title=pl.lit("amber"), attributes=pl.lit(["x"]))
    log = Log.make(items, shop.requests, shop.exposures, shop.meta)
    encoder = SentenceEncoder(sentence_encoder(), dim=8)
    for value in (encoder, TunedEncoder(encoder), FrozenLM(TOLD, after="whitening")):
        with pytest.raises(KarmafunnelError, match=r"needs item texts that differ in W1"):
            value.fit(log)
