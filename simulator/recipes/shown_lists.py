"""Rank the list that was really shown, as of its time: nothing of the list itself but which items
it held.
"""

from karmafunnel.log import Log
from karmafunnel.stages.features import (
    Feature,
    Neighbourhood,
    Own,
    Placement,
    Popularity,
    Price,
    RequestContext,
    Upstream,
)
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import Shown
from karmafunnel.stages.stage import Funnel

label = "click"
# no vector is read, so W1 may be learnt from as well
SAMPLE = Sample(passed=0, requests=20_000, windows=("W1", "W2a"))


def lists(log: Log, logged_order: bool) -> Funnel:
    """Shown lists through LightGBM, set up on W2b; with `logged_order` the logged rank comes in as
    well, an arm of its own.
    """
    features: list[Feature] = [Popularity(days=0.25), Own(), Placement(), RequestContext()]
    if log.has("price"):
        features.append(Price())
    if logged_order:
        features += [Upstream(), Neighbourhood()]
        rank = LightGBMRank(
            k=100, features=features, sample=SAMPLE, learning_rate=0.03, trees=600, min_rows=300
        )
    else:
        rank = LightGBMRank(
            k=100,
            objective="binary",
            features=features,
            sample=SAMPLE,
            leaves=15,
            learning_rate=0.03,
            trees=600,
        )
    return Shown(k=100, logged_order=logged_order) >> rank


def funnel(log: Log) -> Funnel:
    return lists(log, logged_order=False)
