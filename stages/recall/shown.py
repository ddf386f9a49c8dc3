"""Recall of the list that was shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ..context import Context
from ..frame import ITEM, REQUEST, SCORE, rows_frame
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage
from .proposals import NOT_FOUND, scores_in


@dataclass(frozen=True, repr=False)
class Shown(Stage):
    """The list that was shown, as candidates: to rank again what production recalled.

    With `logged_order` the score is minus the logged position, which is the rank by production;
    without it all scores are equal.
    """

    k: int = 100
    logged_order: bool = False
    name: str = "recall"

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedShown:
        if not context.log.has("exposures"):
            found = f"no exposures in log {context.log.name}"
            raise KarmafunnelError(self, needs="shown lists", found=found)
        return FittedShown(self, context)


class FittedShown(Retriever):
    stage: Shown
    channels = ("shown",)

    def __post_init__(self) -> None:
        rows = self.context.log.rows.filter(pl.col("position").is_not_null())
        rows = rows.sort(REQUEST, maintain_order=True)
        score = pl.lit(0, pl.Float32)
        if self.stage.logged_order:
            score = -pl.col("position").cast(pl.Float32)
        lists = rows.select(REQUEST, ITEM, score.alias(SCORE))
        self._lists = lists.unique([REQUEST, ITEM], keep="first", maintain_order=True)

    def propose(self, rows: Rows) -> pl.DataFrame:
        requests = rows_frame(request=rows.requests)
        return requests.join(self._lists, on=REQUEST, how="inner", maintain_order="left")

    def score(self, rows: Rows) -> np.ndarray:
        missing = NOT_FOUND if self.stage.logged_order else np.float32(0)
        return scores_in(self._lists, rows, missing)
