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
    RandomVectors,
    TfidfSVD,
    w1_sequences,
)
from karmafunnel.stages.blocks import as_of_block
from karmafunnel.stages.context import Context
from karmafunnel.stages.features import Own, Popularity, Price, Similarity, Upstream
from karmafunnel.stages.frame import ITEM, REQUEST
from karmafunnel.stages.learn import Sample, training_rows
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import ItemKNN, Join, Popular
from karmafunnel.stages.rerank import Rules
from karmafunnel.stages.stage import FittedFunnel, Funnel, fit_embedders
from shop import make_shop

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
