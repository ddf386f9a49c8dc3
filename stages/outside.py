"""A stage whose scores another program wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from ..log import rows_of
from ..typed import positional
from .context import Context
from .frame import ITEM, REQUEST, SCORE
from .recall.external import read_scores
from .recall.proposals import NOT_FOUND
from .rows import Rows
from .stage import FittedFunnel, FittedStage, Stage


@dataclass(frozen=True, repr=False)
class ExternalRank(Stage):
    """The order that a system outside gave to the candidates: a Parquet file of request_id,
    item_id, score.

    A candidate that the file does not score is thrown out, as the system did. `checksum` as for
    `External`. Raises KarmafunnelError as `External` does.
    """

    path: str = positional()
    k: int = 50
    checksum: str = ""
    name: str = "rank"

    learns: ClassVar[bool] = False
    doing: ClassVar[str] = "reading"

    def one_fit(self) -> str:
        return "scores in a file, of a system that may know what came after a block"

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedExternalRank:
        rows = read_scores(self, Path(self.path), self.checksum, context.log)
        return FittedExternalRank(self, context, rows)


@dataclass(eq=False, repr=False)
class FittedExternalRank(FittedStage):
    stage: ExternalRank
    rows: pl.DataFrame

    def score(self, rows: Rows) -> np.ndarray:
        return self.outputs(rows)[SCORE]

    def outputs(self, rows: Rows) -> dict[str, np.ndarray]:
        """The score of each row, and whether the file has one."""
        mine = rows_of(self.rows, np.unique(rows.request))
        asked = rows.frame.select(REQUEST, ITEM)
        found = asked.join(mine, on=[REQUEST, ITEM], how="left", maintain_order="left")[SCORE]
        return {
            SCORE: found.fill_null(NOT_FOUND).to_numpy(),
            "keep": found.is_not_null().to_numpy(),
        }
