"""Recall channels against the slow way: every request alone, every eligible item in order."""


from dataclasses import replace

import numpy as np
import pytest
from karmafunnel.stages.context import Context
from karmafunnel.stages.frame import ITEM, REQUEST, SCORE, best, select_top
from karmafunnel.stages.recall import BM25Recall, ItemKNN, Popular, Repeat, Titles, lexical
from karmafunnel.stages.rows import Rows
from shop import make_shop

LOG = make_shop(n_items=60, n_users=12, n_requests=300)
CONTEXT = Context(LOG)
DAY = 86_400_000


def scores_of(stage: Popular | Repeat | ItemKNN, request: int) -> dict[int, float]:
    """The score of every item that a channel can propose to one request."""
    events = LOG.events
    t = int(LOG.t[request])
    happened = events["t"].to_numpy() < t
    items = events[ITEM].to_numpy()
    if isinstance(stage, Popular):
        if stage.days is not None:
            happened &= events["t"].to_numpy() >= t - int(stage.days * DAY)
        counts = np.bincount(items[happened], minlength=LOG.n_items)
        return dict(enumerate(counts.tolist()))
    own = items[happened & (events["user"].to_numpy() == LOG.user[request])][::-1].tolist()
    own = own[: stage.depth]
    if isinstance(stage, Repeat):
        found = {item: own.count(item) + 1 / (2 + own.index(item)) for item in own}
        return {item: float(np.float32(score)) for item, score in found.items()}
    near = stage.fit(CONTEXT, None).near.toarray()
    weights = {}
    for age, item in enumerate(own):
        weights[item] = weights.get(item, 0.0) + stage.decay**age
    total = sum(weight * near[item] for item, weight in weights.items())
    return {int(item): float(total[item]) for item in np.flatnonzero(total)}


@pytest.mark.parametrize(
    "stage",
    [
        Popular(k=5),
        Popular(k=45),  # more than were chosen: items with a count of 0 as well
        Popular(k=7, days=3),
        Popular(k=7, days=0.01),  # shorter than a chunk
        Repeat(k=3),
        Repeat(k=200, depth=6),
        ItemKNN(k=4),
        ItemKNN(k=200),
    ],
    ids=repr,
)
@pytest.mark.parametrize("chunk", [slice(0, 300), slice(120, 260), slice(299, 300), slice(0, 0)])
def test_a_channel_proposes_what_the_slow_way_does(
    stage: Popular | Repeat | ItemKNN, chunk: slice
) -> None:
    requests = np.arange(300)[chunk]
    frame = stage.fit(CONTEXT, None).propose(Rows.start(CONTEXT, requests))
    eligible = LOG.asof.eligible(requests)
    for request, allowed in zip(requests[::7].tolist(), eligible[::7], strict=True):
        scores = scores_of(stage, request)
        item = np.array([i for i in allowed.tolist() if i in scores], dtype=np.int64)
        score = np.array([scores[i] for i in item.tolist()], dtype=np.float32)
        tie = CONTEXT.tie(np.full(len(item), request), item)
        mine = frame.filter(frame[REQUEST] == request)
        found = dict(zip(mine[ITEM].to_list(), mine[SCORE].to_list(), strict=True))
        if isinstance(stage, ItemKNN):  # sums in another order: the same scores but for rounding
            assert len(found) == min(stage.k, len(item))
            assert all(np.isclose(found[i], scores[i], rtol=1e-5) for i in found)
            border = np.sort(score)[::-1][: stage.k].min(initial=0)
            assert all(score >= border * (1 - 1e-5) for score in found.values())
            continue
        wanted = np.lexsort((tie, -score))[: stage.k]
        assert found == dict(zip(item[wanted].tolist(), score[wanted].tolist(), strict=True))


def test_the_few_items_that_can_be_popular_are_used() -> None:
    stage, requests = Popular(k=5), np.arange(200, 300)
    fitted = stage.fit(CONTEXT, None)
    end = np.searchsorted(fitted._ranks, LOG.asof.rank[requests])
    counts = np.bincount(fitted._items[: end[0]], minlength=LOG.n_items).astype(np.float32)
    few = fitted._possible(requests, counts, np.zeros_like(end), end)
    assert few is not None and 5 <= len(few) < LOG.n_items


def test_the_best_are_the_first_of_all_in_order() -> None:
    rng = np.random.default_rng(0)
    for n, k in [(0, 3), (3, 3), (50, 7), (50, 49), (200, 1)]:
        score = rng.integers(0, 6, n).astype(np.float32)
        tie = rng.permutation(n).astype(np.uint64)
        kept = best(score, lambda at, tie=tie: tie[at], k)
        first = select_top(score, lambda at, tie=tie: tie[at], k)
        assert sorted(kept.tolist()) == sorted(first.tolist())
        assert np.array_equal(first, np.lexsort((tie, -score))[:k])


def test_queries_of_a_chunk_are_read_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one, together = (Titles(CONTEXT, "test", 1.2, 0.75) for _ in range(2))
    requests = np.arange(300)
    together.read(requests)
    assert set(together._words) == {query or "" for query in LOG.requests["query"]}
    for request in requests:
        want, got = one_by_one.scores(int(request)), together.scores(int(request))
        assert got.tobytes() == want.tobytes()
    calls = []
    real = lexical.tokenize
    monkeypatch.setattr(lexical, "tokenize", lambda texts: calls.append(texts) or real(texts))
    fitted = BM25Recall(k=9).fit(replace(CONTEXT, indexes={}), None)
    calls.clear()
    fitted.propose(Rows.start(CONTEXT, requests))
    assert len(calls) == 1 and len(calls[0]) == len(set(calls[0]))
