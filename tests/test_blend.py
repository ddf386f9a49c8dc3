"""A blend: its arithmetic written out, its weights against a search, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.stages.blend import Blend, choice_weights
from karmafunnel.stages.features import Vectors
from karmafunnel.stages.frame import ITEM, REQUEST, SCORE
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.rank import DCNRank, DINRank, ESMMRank, LightGBMRank
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.rows import Rows
from karmafunnel.stages.stage import FittedFunnel
from test_rankers import FEATURES, context, shown_auc, upstream

SAME = {"features": FEATURES, "sample": Sample(passed=20)}
TREES, NET = LightGBMRank(objective="binary", trees=40, **SAME), DCNRank(epochs=4, **SAME)


def fitted(blend: Blend) -> FittedFunnel:
    return (upstream().funnel >> blend).fit(context())


def test_the_score_is_the_weighted_sum_of_z_scores_among_the_candidates():
    funnel = fitted(Blend([TREES, NET], k=20, weights=(2, 0.5)))
    blend, here = funnel.stages[-1], funnel.context
    requests = here.log.requests_in("W3")[:30]
    before = FittedFunnel(here, funnel.stages[:-1]).run(requests, here.logged(requests))[-1]
    rows = Rows(here, before.slate, before.tracked, requests)
    trees, net = (part.score(rows).astype(float) for part in blend.parts)
    trees = np.log(trees / (1 - trees))  # a probability enters as log-odds
    got = blend.score(rows)
    assert rows.candidate.sum() < len(got)  # logged rows are scored, but count in no mean
    for i in range(len(got)):
        same = [j for j in range(before.slate.height) if rows.request[j] == rows.request[i]]
        wanted = 0.0
        for weight, score in ((2, trees), (0.5, net)):
            mean = sum(score[j] for j in same) / len(same)
            variance = sum((score[j] - mean) ** 2 for j in same) / len(same)
            wanted += weight * (score[i] - mean) / max(variance, 1e-12) ** 0.5
        assert got[i] == pytest.approx(wanted, abs=1e-4)


def test_parts_are_those_that_are_fitted_alone():
    """On the same rows, whatever stands beside them."""
    funnel = fitted(Blend([TREES, NET], k=20))
    requests = funnel.context.log.requests_in("W3")
    for place, part in enumerate((TREES, NET)):
        weights = tuple(float(i == place) for i in range(2))
        one = replace(Blend([TREES, NET], k=20, calibrated=""), weights=weights)
        alone = upstream().funnel >> replace(part, k=20, calibrated="")
        ranked = [
            f.run(requests)[-1].slate.select(REQUEST, ITEM)
            for f in (fitted(one), alone.fit(context()))
        ]
        assert ranked[0].equals(ranked[1])


def test_fitted_weights_are_the_most_likely():
    rng = np.random.default_rng(0)
    request = np.repeat(np.arange(300), 8)
    x = rng.normal(size=(len(request), 2))
    noise = rng.gumbel(size=len(request))  # the choice of a softmax with weights 1.5 and .5
    utility = (x @ (1.5, 0.5) + noise).reshape(300, 8)
    y = (utility == utility.max(axis=1, keepdims=True)).ravel()
    y[:8] = False  # a request without a relevant item says nothing
    y[8:10] = True  # and one with several counts once

    def likelihood(w: tuple[float, float]) -> float:
        total = 0.0
        for r in range(1, 300):
            z = [x[i, 0] * w[0] + x[i, 1] * w[1] for i in range(8 * r, 8 * r + 8)]
            chosen = [i for i in range(8) if y[8 * r + i]]
            normaliser = np.log(sum(np.exp(z)))
            total += sum(z[i] - normaliser for i in chosen) / len(chosen)
        return total

    shuffled = rng.permutation(len(request))
    found = choice_weights(x[shuffled], y[shuffled], request[shuffled])
    assert found == pytest.approx([1.5, 0.5], abs=0.3)
    best = likelihood(tuple(found))
    for step in ((0.02, 0), (-0.02, 0), (0, 0.02), (0, -0.02)):
        assert likelihood((found[0] + step[0], found[1] + step[1])) < best
    against = choice_weights(np.c_[x[:, 0], -x[:, 1]], y, request)
    assert against[1] == 0  # what speaks against is not turned round
    assert choice_weights(-x, y, request).tolist() == [0.5, 0.5]


def test_a_blend_learns_and_leaves_out_a_part_that_knows_nothing():
    blind = DCNRank(features=(), epochs=1, rate=1e-9, sample=Sample(passed=20))
    funnel = fitted(Blend([TREES, blind], k=20, weights="fitted"))
    weights = funnel.stages[-1].weights
    assert weights[0] > 0.3 and weights[1] < weights[0] / 4
    assert shown_auc(funnel) > max(0.75, shown_auc(upstream()))


def test_calibrated_and_explained():
    funnel = fitted(Blend([TREES, NET], k=20, weights=(1, 2)))
    here, blend = funnel.context, funnel.stages[-1]
    requests = here.log.requests_in("W2b")
    rows = funnel.run(requests, here.logged(requests))[-1].tracked
    p = blend.probability(rows[SCORE].to_numpy())
    assert p.mean() == pytest.approx(rows["truth"].mean(), abs=0.01)  # fitted on these very rows
    request = here.log.request_ids[here.log.requests_in("W3")[0]]
    told = funnel.explain(request, top=3).filter(stage="rank").row(0, named=True)
    first, second = told["why"].split("; ")
    assert first.startswith("LightGBMRank ") and "(" in first and second.startswith("DCNRank ")
    parts = [float(text.split()[1]) for text in (first, second)]
    assert sum(parts) == pytest.approx(told["score"], abs=0.02)


def test_a_part_may_learn_from_blocks():
    longer = LightGBMRank(features=FEATURES, sample=Sample(passed=20, blocks=2), trees=10)
    blend = Blend([TREES, longer], k=20)
    assert blend.blocks == 2 and Blend([TREES, NET]).blocks == 1
    parts = fitted(blend).stages[-1].parts
    alone = (upstream().funnel >> longer).fit(context()).stages[-1]
    assert parts[1].booster.model_to_string() == alone.booster.model_to_string()
    raw = replace(longer, features=(Vectors("tfidf", 16),))
    assert raw.one_fit() in {part.one_fit() for part in Blend([TREES, raw]).every_part()} != {""}


def test_what_it_refuses(tmp_path):
    for parts in ([], [TREES], [TREES, Popular(k=3)], [TREES, "trees"], TREES, None, "ab"):
        with pytest.raises(KarmafunnelError, match="parts needs two or more learned stages"):
            Blend(parts)
    assert Blend([TREES, NET], weights=np.array([1.0, 2.0])).weights == (1.0, 2.0)
    for weights in ((1,), (0, 0), (1, 2, 3), "equal", 3, np.zeros(2), None):
        with pytest.raises(KarmafunnelError, match="weights needs 'fitted' or one number for each"):
            Blend([TREES, NET], weights=weights)
    for weights in ((1, -1), (1, float("nan")), (1, "2")):
        with pytest.raises(KarmafunnelError, match="weights needs a number from 0"):
            Blend([TREES, NET], weights=weights)
    with pytest.raises(KarmafunnelError, match="calibrated needs"):
        Blend([TREES, NET], calibrated="platt")
    ready = fitted(Blend([TREES, NET], k=20)).stages[-1]
    ready.save(tmp_path)
    with pytest.raises(KarmafunnelError, match="needs 3 weights, found 2"):
        Blend([TREES, NET, DINRank(**SAME)], k=20).load(tmp_path, context())


def test_a_part_may_have_two_labels_of_its_own():
    blend = Blend([LightGBMRank(trees=20, **SAME), ESMMRank(epochs=1, **SAME)], k=20)
    funnel = fitted(blend)
    requests = funnel.context.log.requests_in("W3")[:10]
    assert np.isfinite(funnel.run(requests)[-1].slate[SCORE].to_numpy()).all()
