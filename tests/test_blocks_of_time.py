"""Stage models that learn from blocks of W1, each with fits that end before it."""

from dataclasses import dataclass, replace
from functools import cache

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
    w1_sequences,
)
from karmafunnel.stages.blend import Blend
from karmafunnel.stages.blocks import as_of_block
from karmafunnel.stages.context import Context
from karmafunnel.stages.features import Own, Popularity, Price, Similarity, Upstream, Vectors
from karmafunnel.stages.frame import ITEM, REQUEST
from karmafunnel.stages.kept import Kept
from karmafunnel.stages.learn import Sample, Teacher, training_rows
from karmafunnel.stages.outside import ExternalRank
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import DINRank, LightGBMRank
from karmafunnel.stages.recall import External, ItemKNN, Join, Popular
from karmafunnel.stages.rerank import Rules
from karmafunnel.stages.stage import FittedFunnel, Funnel, fit_embedders
from shop import make_shop, scramble

pytestmark = pytest.mark.slow

EMBEDDERS = {"tfidf": TfidfSVD(dim=8), "together": Cooccurrence(dim=8)}
CHEAP = [Popularity(), Price(), Similarity("tfidf"), Similarity("together")]


@cache
def shop() -> Log:
    return make_shop(n_items=120, n_users=40, n_requests=800)


def context_of(log: Log, embedders: dict[str, Embedder] = EMBEDDERS, **options) -> Context:
    context = Context(log, **options)
    return replace(context, embeddings=fit_embedders(embedders, context))


def funnel_of(blocks: int, **sample) -> Funnel:
    learns = Sample(passed=30, blocks=blocks, **sample)
    return (
        Join([ItemKNN(k=40), Popular(k=60)], k=80)
        >> LightGBMPreRank(k=60, trees=10, features=[Upstream(), *CHEAP], sample=learns)
        >> Rules(k=60, min_price=0.0, name="rules")
        >> LightGBMRank(k=30, trees=10, features=[Upstream(), *CHEAP, Own()], sample=learns)
    )


def table_of(fitted: FittedFunnel, sample: Sample) -> pl.DataFrame:
    """What the last stage of a funnel learns from, sorted."""
    n = len(fitted.stages) - 1
    stage = fitted.stages[-1].stage
    upstream = fitted.fits.upto(n)
    found = training_rows(stage, stage.features, fitted.context, upstream, ["W2a"], sample)
    frame = pl.DataFrame(found.x).with_columns(
        pl.Series("y", found.y), pl.Series(REQUEST, found.request), pl.Series(ITEM, found.item)
    )
    return frame.sort(REQUEST, ITEM)


# -- the view of a block ---------------------------------------------------------------------------


def test_blocks_are_as_long_as_w2a_and_lie_one_after_the_other_before_it():
    log = shop()
    first, second = as_of_block(log, 2), as_of_block(log, 1)
    n = len(log.requests_in("W2a"))
    assert n == 120
    assert list(first.requests_in("W2a")) == list(range(480 - 2 * n, 480 - n))
    assert list(second.requests_in("W2a")) == list(range(480 - n, 480))
    for view in (first, second):
        start = int(view.requests_in("W2a")[0])
        assert list(view.requests_in("W1")) == list(range(start))
        assert view.end_of("W1") == log.t[start] and not len(view.requests_in("W2b"))
        assert view.asof is log.asof and view.rows is log.rows
        before = log.truth("click").filter(pl.col("request") < start)
        assert view.targets_of_w1("click").sum() == before.height
    assert len({log.checksum, first.checksum, second.checksum}) == 3
    assert first.checksum == as_of_block(make_shop(120, 40, 800), 2).checksum
    assert log.requests["window"].value_counts().height == 4, "the log itself is as it was"


def test_one_time_is_in_one_block():
    log = shop()
    ts = log.requests["ts"].gather(np.arange(800) // 50 * 50)  # 50 requests at a time
    together = Log.make(
        log.items, log.requests.with_columns(ts=ts, window=None), log.exposures, log.meta
    )
    first, second = as_of_block(together, 2), as_of_block(together, 1)
    for view in (first, second):
        t = set(together.t[view.requests_in("W2a")])
        assert t and not t & set(together.t[view.requests_in("W1")])
    assert not set(first.requests_in("W2a")) & set(second.requests_in("W2a"))


def test_a_sample_of_a_log_does_not_tell_a_block_what_the_whole_w1_held():
    part = make_shop(n_items=120, n_users=40, n_requests=800).sample(0.5)
    assert "w1_click" in part.items.columns
    view = as_of_block(part, 1)
    assert "w1_click" not in view.items.columns
    assert view.targets_of_w1("click").sum() < part.truth("click").height


@pytest.mark.parametrize("blocks", [0, 4, 2.0, True])
def test_the_number_of_blocks(blocks):
    with pytest.raises(KarmafunnelError, match=r"blocks.*a whole number from 1 to 3"):
        Sample(blocks=blocks)


def test_blocks_and_windows_are_not_given_both():
    with pytest.raises(KarmafunnelError, match=r"blocks.*needs windows=\('W2a',\)"):
        Sample(windows=("W1", "W2a"), blocks=2)


# -- what learns sees nothing of a block -----------------------------------------------------------

SEEN: dict[str, list[int]] = {}


@dataclass(frozen=True, repr=False)
class Recording(RandomVectors):
    """Random vectors that write down the last request of the events that they may learn from."""

    def fit(self, log, seed=0, **options):
        SEEN.setdefault(log.name, []).append(int(w1_sequences(log, "recording").request.max()))
        return super().fit(log, seed, **options)


def test_an_embedder_never_sees_an_event_of_its_block_or_later():
    SEEN.clear()
    funnel = Popular(k=60) >> LightGBMPreRank(
        trees=3, features=[Similarity("r")], sample=Sample(blocks=3)
    )
    funnel.fit(context_of(shop(), {"r": Recording()}))
    last = {name: max(seen) for name, seen in SEEN.items()}
    assert list(last) == ["shop", "shop, 2 blocks before W2a", "shop, 1 block before W2a"]
    starts = [480, 240, 360]
    assert all(seen < start for seen, start in zip(last.values(), starts, strict=True))
    assert all(len(seen) == 1 for seen in SEEN.values())


class Memory(Embedding):
    """Says 1 of an item that it saw chosen in a request, and 0 of all others."""

    def items(self):
        return np.eye(self.log.n_items, dtype=np.float32)

    def interests(self, requests):
        learnt = w1_sequences(self.log, "memory")
        out = np.zeros((len(requests), self.log.n_items), np.float32)
        at = np.searchsorted(np.unique(requests), learnt.request)
        there = np.isin(learnt.request, requests)
        out[at[there], learnt.item[there]] = 1
        # and a little of itself for all others, so that everybody has a vector
        out[:, 0] += 1e-3
        return out

    def tensors(self):
        return {}


@dataclass(frozen=True, repr=False)
class Memorises(RandomVectors):
    """Learns its training targets by heart: of those it knows everything, of the future nothing."""

    def fit(self, log, seed=0, **options):
        return Memory(self, log)


def test_an_embedder_that_memorises_does_not_make_the_rows_of_a_block_look_good():
    log = shop()
    sample = Sample(passed=40, blocks=3)
    context = context_of(log, {"memory": Memorises()})
    stage = LightGBMRank(k=30, trees=3, features=[Similarity("memory")], sample=sample)
    fitted = (Popular(k=100) >> stage).fit(context)
    upstream = fitted.fits.upto(1)
    table = training_rows(stage, stage.features, context, upstream, ["W2a"], sample)
    starts = {name: int(as_of_block(log, b).requests_in("W2a")[0]) for name, b in (("1", 2), ("2", 1))}
    assert table.request.min() >= starts["1"] and (table.request < 480).sum() > (table.y.sum() / 2)
    # the truth of no row is known to the embedder of its block
    assert table.x[table.y, 0].max() < 0.01
    # it is known to the embedder that serves: it would look perfect to who learns from that
    serving = context.embeddings["memory"]
    old = np.unique(table.request[table.request < 480])
    known = serving.interests(old)[np.searchsorted(old, table.request[table.request < 480])]
    rows = np.arange(len(known)), table.item[table.request < 480]
    assert (known[rows] > 0.9).tolist() == table.y[table.request < 480].tolist()


# -- out of fold -----------------------------------------------------------------------------------


def test_users_that_only_w1_knows_are_dealt_evenly_and_the_others_as_ever():
    log = shop()
    late = set(log.user[log.requests_in("W2")])
    few = Log.make(
        log.items,
        log.requests.with_columns(
            user_id=pl.when(pl.int_range(pl.len()) < 480)
            .then(pl.format("early{}", pl.int_range(pl.len()) % 20))
            .otherwise("user_id")
        ),
        log.exposures,
        log.meta,
    )
    fold = Context(few).fold
    in_w1 = few.requests_in("W1")
    assert abs(np.bincount(fold[in_w1]) - len(in_w1) / 2).max() <= 24
    assert np.array_equal(fold[few.requests_in("W2")], Context(log).fold[log.requests_in("W2")])
    assert len(late) == 40
    there = Context(log).in_block(as_of_block(log, 1), {}, "block")
    assert np.array_equal(there.fold, Context(log).fold)


# -- what comes later ------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [2, 1, 0])
def test_what_is_learnt_from_a_block_hangs_on_nothing_that_comes_after_it(back):
    """Scrambled from the end of a block on, the rows of all blocks up to it are the same bytes; the
    rows after it are not.
    """
    log = shop()
    end = as_of_block(log, back).requests_in("W2a")[-1] if back else log.requests_in("W2a")[-1]
    sample = Sample(passed=30, blocks=3)
    stage = LightGBMPreRank(k=60, trees=5, features=[Upstream(), *CHEAP, Own()], sample=sample)
    tables = []
    for one in (log, scramble(log, int(log.t[end + 1]))):
        fitted = (Join([ItemKNN(k=40), Popular(k=60)], k=80) >> stage).fit(context_of(one))
        tables.append(table_of(fitted, sample))
    here, later = (table.filter(pl.col(REQUEST) <= end) for table in tables)
    assert here.height and here.equals(later)
    assert set(np.unique(here[REQUEST]) // 120) == set(range(2, 5 - back))
    assert back == 0 or not tables[0].equals(tables[1]), "the scramble is felt"


def test_a_funnel_of_three_blocks_puts_out_the_same_whatever_comes():
    log = shop()
    requests = log.requests_in("W3")[:60]
    slates, trees = [], []
    for one in (log, scramble(log, int(log.t[requests[-1]]))):
        fitted = funnel_of(3).fit(context_of(one))
        slates.append([step.slate for step in fitted.run(requests)])
        trees.append([fitted.stages[i].booster.model_to_string() for i in (1, 3)])
    assert trees[0] == trees[1]
    assert all(a.equals(b) for a, b in zip(*slates, strict=True))


def test_the_rows_of_a_block_are_those_of_a_log_that_ends_with_it():
    """A log whose W2a is the block gives the same rows: the past of a block is all that its fits
    know.
    """
    log = shop()
    sample = Sample(passed=10**6, blocks=3)
    stage = LightGBMPreRank(k=60, trees=5, features=[Upstream(), *CHEAP], sample=sample)
    before = Join([ItemKNN(k=40), Popular(k=60)], k=80)
    found = table_of((before >> stage).fit(context_of(log)), sample)
    windows = as_of_block(log, 2).requests["window"].to_list()
    windows[-1:], windows[400:440] = ["W3"], ["W2b"] * 40
    short = Log.make(
        log.items,
        log.requests.with_columns(
            window=pl.Series([w if i < 440 else "W3" for i, w in enumerate(windows)])
        ),
        log.exposures,
        log.meta,
    )
    once = replace(sample, blocks=1)
    alone = table_of((before >> replace(stage, sample=once)).fit(context_of(short)), once)
    block = found.filter(pl.col(REQUEST) < 360)
    assert block.height and block.equals(alone)


# -- refused ---------------------------------------------------------------------------------------


def refused(funnel: Funnel, log: Log, match: str, **options) -> None:
    with pytest.raises(KarmafunnelError, match=match):
        funnel.fit(context_of(log, **options))


TWO = Sample(passed=20, blocks=2)


@pytest.mark.parametrize(
    ("stages", "match"),
    [
        (
            [LightGBMPreRank(features=[Vectors("tfidf", dim=8)], sample=TWO)],
            r"prerank \(LightGBMPreRank\): blocks=2 needs similarities.*Vectors\('tfidf', dim=8\)",
        ),
        (  # what reads vectors stands before the stage that learns from blocks
            [
                LightGBMPreRank(features=[Vectors("tfidf", dim=8)]),
                LightGBMRank(features=[Upstream()], sample=TWO),
            ],
            r"prerank \(LightGBMPreRank\): blocks=2 .*the numbers of its vectors",
        ),
        *(
            ([DINRank(similar="tfidf", use=use, sample=TWO)], r"rank \(DINRank\): .*of one fit")
            for use in ("raw", "simtier")
        ),
        (
            [
                LightGBMPreRank(
                    features=[Popularity()],
                    sample=TWO,
                    teacher=Teacher(LightGBMRank(features=[Vectors("tfidf", dim=8)])),
                )
            ],
            r"prerank \(LightGBMPreRank\): blocks=2 .*Vectors",
        ),
        (
            [
                Blend([LightGBMRank(features=CHEAP), DINRank(similar="tfidf")], name="both"),
                LightGBMRank(features=[Upstream()], sample=TWO),
            ],
            r"both \(Blend\): blocks=2 .*of one fit",
        ),
    ],
)
def test_what_makes_sense_with_one_fit_only_is_refused(stages, match):
    refused(Funnel((Popular(k=60), *stages)), shop(), match)


def test_scores_of_a_system_outside_are_refused_as_a_stage_or_a_channel(tmp_path):
    """Nobody can fit it again on what lies before a block."""
    log, path = shop(), str(tmp_path / "scores.parquet")
    ids = pl.DataFrame({"request_id": log.request_ids})
    every = ids.join(pl.DataFrame({"item_id": log.item_ids[:20]}), how="cross")
    every.with_columns(score=pl.lit(1.0)).write_parquet(path)
    rank = LightGBMRank(features=[Popularity()], sample=TWO)
    for before, who in (
        ((External(path),), r"recall \(External\)"),
        ((Join([Popular(k=40), External(path)], k=60),), r"recall \(Join\)"),
        ((Popular(k=60), ExternalRank(path, name="theirs")), r"theirs \(ExternalRank\)"),
    ):
        refused(Funnel((*before, rank)), log, rf"{who}: blocks=2 needs .*scores in a file")


def test_a_log_that_knows_only_an_order_is_refused():
    log = shop()
    order = Log.make(
        log.items, log.requests.with_columns(ts=None), log.exposures, log.meta | {"time": "order"}
    )
    refused(funnel_of(2), order, "2 blocks of log shop: needs a log with clock times.*an order")
    funnel_of(1).fit(context_of(order))


def test_a_w1_that_is_too_short_is_refused_with_its_size():
    log = shop()
    windows = ["W1"] * 250 + ["W2a"] * 100 + ["W2b"] * 100 + ["W3"] * 350
    short = Log.make(
        log.items, log.requests.with_columns(window=pl.Series(windows)), log.exposures, log.meta
    )
    refused(funnel_of(3), short, "3 blocks of log shop: needs W1 to have 3 times .*, 300, found 250")
    funnel_of(2).fit(context_of(short))


def test_a_w1_at_one_time_has_nothing_before_its_block_and_is_refused():
    log = shop()
    served = log.requests_in("W1")
    ts = pl.Series(log.requests["ts"].to_list()[:1] * len(served), dtype=log.requests.schema["ts"])
    at_once = log.requests.with_columns(ts=pl.concat([ts, log.requests["ts"][len(served) :]]))
    same = Log.make(log.items, at_once, log.exposures, log.meta)
    refused(funnel_of(2), same, "2 blocks of log shop: needs as many requests as W2a has.*found 0:")


def test_a_block_without_truth_is_refused_by_its_name_and_size():
    log = shop()
    request = pl.col("request_id").str.slice(1).cast(pl.Int64)
    quiet = log.exposures.with_columns(
        (pl.col(name) & ~request.is_between(240, 359)).alias(name) for name in ("clicked", "purchased")
    )
    empty = Log.make(log.items, log.requests, quiet, log.meta)
    refused(
        funnel_of(3),
        empty,
        r"prerank \(LightGBMPreRank\): block 1 of 3: needs requests with truth of users of all 2 "
        r"folds, found 0, of 0, in 120 requests; use fewer blocks",
    )
    funnel_of(2).fit(context_of(empty))


def test_a_funnel_that_was_put_together_by_hand_has_no_blocks():
    context = context_of(shop())
    before = FittedFunnel(context, (Popular(k=60).fit(context, None),))
    with pytest.raises(KarmafunnelError, match=r"Funnel\.fit to learn from blocks"):
        LightGBMRank(features=CHEAP, sample=TWO).fit(context, before)


# -- kept, and told --------------------------------------------------------------------------------


def test_it_is_told_which_block_is_fitted_and_a_second_run_fits_nothing(tmp_path):
    told: list[str] = []

    def fit(blocks: int, **options) -> Funnel:
        told.clear()
        context = Context(shop(), progress=told.append)
        kept = Kept(tmp_path)
        embeddings = fit_embedders(EMBEDDERS, context, kept)
        return funnel_of(blocks, **options).fit(replace(context, embeddings=embeddings), kept)

    first = fit(3)
    for block in (1, 2):
        for what in ("embedder tfidf: fitting", "embedder together: fitting", "recall: fitting"):
            assert sum(line.startswith(f"block {block} of 3: {what}") for line in told) == 1
    (line,) = [line for line in told if line.startswith("blocks: ")]
    assert line.startswith("blocks: 8 more fits, ") and "s in all, so that stages learn" in line
    assert not any("LightGBM" in line for line in told if line.startswith("block "))
    again = fit(3)
    assert not any("fitting" in line or "more fits" in line for line in told), told
    for i in (1, 3):
        texts = [fitted.stages[i].booster.model_to_string() for fitted in (first, again)]
        assert texts[0] == texts[1]
    fit(2)  # the last block of W1 is the same
    assert not any(line.startswith("block 1 of 2: embedder") and "fitting" in line for line in told)
    assert sum("fitting LightGBM" in line for line in told) == 4


def test_one_block_is_what_a_stage_learnt_from_before():
    context = context_of(shop())
    one = funnel_of(1).fit(context)
    assert repr(one.funnel) == repr(funnel_of(1)) and "blocks" not in repr(one.funnel)
    table = table_of(one, Sample(passed=30))
    assert set(table[REQUEST]) <= set(shop().requests_in("W2a"))


def test_requests_are_at_most_so_many_of_all_blocks_evenly():
    fitted = funnel_of(3, requests=90).fit(context_of(shop()))
    found = table_of(fitted, Sample(passed=30, blocks=3, requests=90))
    counts = np.bincount(np.unique(found[REQUEST]) // 120, minlength=5)
    assert counts[:2].sum() == 0 and (counts[2:] >= 20).all() and counts.sum() <= 90


def test_a_stage_may_learn_from_more_blocks_than_the_stage_before_it_and_teachers_from_as_many():
    funnel = (
        Popular(k=80)
        >> LightGBMPreRank(
            k=60,
            trees=5,
            features=[Popularity()],
            sample=Sample(blocks=2),
            teacher=Teacher(LightGBMRank(trees=5, features=CHEAP, sample=Sample(blocks=2))),
        )
        >> DINRank(k=20, epochs=1, features=[Upstream(), *CHEAP], sample=Sample(blocks=3))
    )
    assert [stage.blocks for stage in funnel.stages] == [1, 2, 3]
    fitted = funnel.fit(context_of(shop()))
    table = table_of(fitted, Sample(blocks=3))
    assert table[REQUEST].min() < 360
    slate = fitted.run(shop().requests_in("W3"))[-1].slate
    assert slate.height and np.isfinite(slate["score"].to_numpy()).all()
