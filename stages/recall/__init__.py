"""Recall: channels that propose candidates among the eligible items, and their fusion."""

from .external import External as External
from .external import FittedExternal as FittedExternal
from .fusion import FittedJoin as FittedJoin
from .fusion import Join as Join
from .item_knn import FittedItemKNN as FittedItemKNN
from .item_knn import ItemKNN as ItemKNN
from .lexical import BM25Recall as BM25Recall
from .lexical import FittedBM25 as FittedBM25
from .lexical import Titles as Titles
from .popular import FittedPopular as FittedPopular
from .popular import Popular as Popular
from .repeat import FittedRepeat as FittedRepeat
from .repeat import Repeat as Repeat
from .shown import FittedShown as FittedShown
from .shown import Shown as Shown
from .uniform import FittedUniform as FittedUniform
from .uniform import Uniform as Uniform
from .vector import HNSW as HNSW
from .vector import IVF as IVF
from .vector import IVFPQ as IVFPQ
from .vector import FittedVectorRecall as FittedVectorRecall
from .vector import Flat as Flat
from .vector import Index as Index
from .vector import VectorRecall as VectorRecall
