"""A recipe at work in a shop: its funnel is fitted on what the shop has logged, and lists items for
requests that come later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ...log import Log
from ...stages.frame import ITEM, RANK, REQUEST
from ...stages.kept import Kept
from ...stages.stage import FittedFunnel, embedder_folder, stage_folder
from ..replay.options import CHUNK, RunOptions
from ..replay.prepare import prepare
from ..replay.recipe import Recipe, load_recipe


@dataclass(frozen=True, eq=False)
class Server:
    """A recipe that was fitted on a log.

    cache: the folder where its embedders and stages are kept, from which they are loaded again for
    a log that has grown.
    """

    recipe: Recipe
    fitted: FittedFunnel
    cache: Path

    @classmethod
    def of(cls, recipe: str, log: Log, cache: Path, seed: int = 0) -> Server:
        """A recipe, fitted on W1 and W2 of the log.

        Args:
            recipe: a file, or the name of one that ships; FILE::ROW for a row of a table's recipe.
            cache: see above.

        Raises:
            KarmafunnelError: as `opened` and `prepare` do.
        """
        loaded = opened(recipe, log)
        fitted = prepare(loaded, log, RunOptions(seed=seed, cache=Kept(cache)))
        return cls(loaded, fitted, cache)

    def on(self, log: Log, indexes: dict[Any, Any] | None = None) -> FittedFunnel:
        """The same funnel on a log that has grown since: nothing is learnt again, histories and
        counts go on.

        Args:
            log: with the requests of the fit, in the same windows, and later ones in W3.
            indexes: values that were computed from this log, which several servers share.
        """
        before = self.fitted.context
        shared = {} if indexes is None else indexes
        context = replace(before, log=log, embeddings={}, indexes=shared)
        for name, value in self.recipe.used_embedders.items():
            folder = self.cache / embedder_folder(value, before)
            context.embeddings[name] = value.load(folder, log)
        funnel = self.fitted.funnel
        stages = tuple(
            funnel.load(i, self.cache / stage_folder(stage, key), context)
            for i, (stage, key) in enumerate(zip(funnel.stages, self.fitted.keys, strict=True))
        )
        return FittedFunnel(context, stages, train=funnel.train)


def opened(recipe: str, log: Log) -> Recipe:
    """A recipe for this log; FILE::ROW for a row of a table's recipe.

    Raises:
        KarmafunnelError: as `load_recipe` and `Recipe.row` do.
    """
    file, _, row = recipe.partition("::")
    loaded = load_recipe(file, log)
    return loaded.row(row) if row else loaded


def best(funnel: FittedFunnel, requests: np.ndarray, slots: int) -> np.ndarray:
    """The first items of a funnel's lists: (n, slots) int64, -1 where a list is shorter.

    Args:
        requests: row numbers of the funnel's log, ascending.
    """
    lists = np.full((len(requests), slots), -1, dtype=np.int64)
    for start in range(0, len(requests), CHUNK):
        chunk = requests[start : start + CHUNK]
        slate = funnel.run(chunk)[-1].slate.filter(pl.col(RANK) <= slots)
        row = start + np.searchsorted(chunk, slate[REQUEST].to_numpy())
        lists[row, slate[RANK].to_numpy() - 1] = slate[ITEM].to_numpy()
    return lists
