"""Recall of the list that was really shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ..context import Context
from ..frame import ITEM, REQUEST, SCORE, rows_frame
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage
from .proposals import NOT_FOUND


@dataclass(frozen=True, repr=False)
class Shown(Stage):
    """The list that was really shown, as candidates: to re-rank what production's own recall
    brought.

    With `logged_order` its score is the logged position ("the rank of the production stage
    before"), an arm of its own; without it every score is equal.
    """

    k: int = 100
    logged_order: bool = False
    name: str = "recall"

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedShown:
        if not context.log.has("exposures"):
            raise KarmafunnelError(
                f"{self!r}: needs shown lists, log {context.log.name} has no exposures"
            )
        return FittedShown(self, context)


class FittedShown(Retriever):
    stage: Shown
    channels = ("shown",)

    def __post_init__(self) -> None:
        rows = self.context.log.rows.filter(pl.col("position").is_not_null()).sort(
            REQUEST, maintain_order=True
        )
        score = (
            -rows["position"].cast(pl.Float32)
            if self.stage.logged_order
            else pl.zeros(rows.height, pl.Float32, eager=True)
        )
        self._lists = (
            rows.select(REQUEST, ITEM)
            .with_columns(score.alias(SCORE))
            .unique([REQUEST, ITEM], keep="first", maintain_order=True)
        )

    def propose(self, rows: Rows) -> pl.DataFrame:
        return rows_frame(request=rows.requests).join(
            self._lists, on=REQUEST, how="inner", maintain_order="left"
        )

    def score(self, rows: Rows) -> np.ndarray:
        found = rows.frame.select(REQUEST, ITEM).join(
            self._lists, on=[REQUEST, ITEM], how="left", maintain_order="left"
        )
        return found[SCORE].fill_null(NOT_FOUND if self.stage.logged_order else 0.0).to_numpy()
