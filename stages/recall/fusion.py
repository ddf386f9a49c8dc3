"""Several channels as one: reciprocal rank fusion, with quotas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ...bounds import MANY, Bound, check_bound, needs, several
from ...errors import KarmafunnelError
from ..context import Context
from ..frame import ITEM, REQUEST, SCORE, order, pair_key, ranks, rows_frame
from ..rows import Rows
from ..stage import FittedFunnel, Retriever, Stage, proposed


@dataclass(frozen=True, repr=False)
class Join(Stage):
    """Several recall channels as one; each candidate has the channels that found it.

    Reciprocal-rank fusion (Cormack et al. 2009): the score is the sum over the channels of
    1 / (rrf + rank), and 0 for a row that no channel found. With `quotas`, that number of the first
    candidates of each channel comes before all others, whatever their score.
    """

    channels: Sequence[Stage] = field(default=(), metadata={"positional": True, "always": True})
    k: int = 1000
    quotas: Sequence[int] = ()
    rrf: float = 60.0
    name: str = "recall"

    def __post_init__(self) -> None:
        wanted = "a list of recall stages such as Popular()"
        object.__setattr__(self, "channels", several("Join", "channels", self.channels, wanted))
        needs(self, "rrf")
        for quota in self.quotas:
            check_bound("Join", Bound(0, MANY), quotas=quota)
        if self.quotas and (len(self.quotas) != len(self.channels) or sum(self.quotas) > self.k):
            raise KarmafunnelError(
                "Join",
                needs=f"one quota a channel, at most k={self.k} in all",
                found=f"{self.quotas} for {len(self.channels)} channels",
            )

    def inside(self) -> tuple[Stage, ...]:
        return tuple(self.channels)

    def embedders(self) -> tuple[str, ...]:
        return tuple(name for channel in self.channels for name in channel.embedders())

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedJoin:
        parts = [self._retriever(channel.fit(context, None)) for channel in self.channels]
        return FittedJoin(self, context, parts)

    def load(self, folder: Path, context: Context) -> FittedJoin:
        parts = []
        for i, channel in enumerate(self.channels):
            parts.append(self._retriever(channel.load(folder / str(i), context)))
        return FittedJoin(self, context, parts)

    def _retriever(self, fitted: Any) -> Retriever:
        if not isinstance(fitted, Retriever):
            raise KarmafunnelError(
                self, needs="recall channels", found=repr(getattr(fitted, "stage", fitted))
            )
        return fitted


@dataclass(eq=False, repr=False)
class FittedJoin(Retriever):
    stage: Join
    parts: list[Retriever]

    def __post_init__(self) -> None:
        names = [name for part in self.parts for name in part.channels]
        found = []
        for i, name in enumerate(names):
            found.append(name if names.count(name) == 1 else f"{name}{i}")
        self.channels = tuple(found)

    def save(self, folder: Path) -> None:
        for i, part in enumerate(self.parts):
            (folder / str(i)).mkdir()
            part.save(folder / str(i))

    def retrieve(self, rows: Rows) -> tuple[pl.DataFrame, pl.DataFrame]:
        stage, n_items = self.stage, self.context.log.n_items
        pairs, gains, bits = [], [], []
        for channel, part in enumerate(self.parts):
            found = proposed(part, rows)
            request, item = found[REQUEST].to_numpy(), found[ITEM].to_numpy()
            group = np.searchsorted(rows.requests, request)
            tie = self.context.tie(request, item)
            rank = ranks(group, order(group, found[SCORE].to_numpy(), tie))
            pairs.append(pair_key(request, item, n_items))
            gain = 1.0 / (stage.rrf + rank)
            if stage.quotas:
                gain = gain + (rank <= stage.quotas[channel])
            gains.append(gain)
            bits.append(np.full(len(rank), 1 << channel))
        pair, inverse = np.unique(np.concatenate(pairs), return_inverse=True)
        score = np.bincount(inverse, np.concatenate(gains), minlength=len(pair)).astype(np.float32)
        found_by = np.bincount(inverse, np.concatenate(bits), minlength=len(pair))
        item = (pair % n_items).astype(np.int32)
        slate = rows_frame(
            request=pair // n_items, item=item, score=score, channel=found_by.astype(np.uint32)
        )
        return slate, rows.tracked.with_columns(pl.lit(0, pl.Float32).alias(SCORE))

    def exact(self, rows: Rows) -> pl.DataFrame | None:
        found = [part.exact(rows) for part in self.parts]
        exact = [frame for frame in found if frame is not None]
        return pl.concat(exact).unique(maintain_order=True) if exact else None

    def propose(self, rows: Rows) -> pl.DataFrame:
        return self.retrieve(rows)[0]
