"""The funnel of `bench_size`: approximate recall over a million items, trees at both stages."""

from karmafunnel.models.embedders import Cooccurrence, TfidfSVD
from karmafunnel.stages.features import (
    Own,
    Popularity,
    Price,
    RequestContext,
    Similarity,
    Upstream,
)
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import HNSW, IVFPQ, ItemKNN, Join, Popular, VectorRecall

embedders = {"tfidf": TfidfSVD(dim=64), "cooccurrence": Cooccurrence(dim=64)}
features = [
    Upstream(),
    Popularity(),
    Own(),
    Price(),
    Similarity("tfidf"),
    Similarity("cooccurrence"),
]
channels = [
    VectorRecall("tfidf", k=300, index=IVFPQ(nlist=1024, nprobe=64, m=16, refine=4)),
    VectorRecall("cooccurrence", k=300, index=HNSW(m=32, ef=600)),
    ItemKNN(k=200),
    Popular(k=100),
]
funnel = (
    Join(channels, k=600)
    >> LightGBMPreRank(k=200, features=features, sample=Sample(passed=100), trees=100)
    >> LightGBMRank(k=50, features=[*features, RequestContext()], sample=Sample(passed=200))
)
