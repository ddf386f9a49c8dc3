"""Transfer: KARMA trained on one log, asked on another whose items and users it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...errors import KarmafunnelError
from ...log import Log, read
from ...typed import positional
from ..embedders import Embedder, Progress, silent
from .embedder import KARMA, KarmaEmbedding, item_vectors


@dataclass(frozen=True, repr=False)
class Transfer(Embedder):
    """KARMA trained on the log in a folder, for the items and users of the log it is fitted to [O].

    The texts of that log's items are read by the model as it was trained, with the scale and the
    projections that were learnt there. No click, purchase or choice of the log is trained on. What
    the two logs do not share was never trained: queries, filters, clicks beside purchases, gaps of
    time.

    A `Qwen(...)` backbone is pre-trained on the texts of the folder's log alone; with `catalogues`
    it has also read those of others.

    Args:
        embedder: a KARMA without ids, which would be those of other items, and without `visual`.
        log: the folder of the log that it is trained on.
    """

    log_fields: ClassVar[tuple[str, ...]] = ("log",)

    embedder: KARMA = positional()  # noqa: RUF009
    log: str = positional()

    def __post_init__(self) -> None:
        if not isinstance(self.embedder, KARMA):
            raise KarmafunnelError(
                "Transfer", what="embedder", needs="a KARMA", found=repr(self.embedder)
            )
        if self.embedder.ids:
            raise KarmafunnelError(
                f"{self!r}",
                needs="an embedder that knows items by their texts",
                found="ids=True: they are of the other log's items",
                hint="KARMA(ids=False, ...)",
            )
        if self.embedder.visual is not None:
            raise KarmafunnelError(
                f"{self!r}",
                needs="visual=None: features of pictures are not carried over",
                found=f"visual={self.embedder.visual!r}",
            )

    def fit(
        self,
        log: Log,
        seed: int = 0,
        progress: Progress = silent,
        device: str = "cpu",
        cache: Path | None = None,
    ) -> KarmaEmbedding:
        """Fit on the folder's log, or take the fit from `cache`, then embed the items of `log`.

        Raises KarmafunnelError as KARMA does for the folder's log, and where no item of `log` has
        text.
        """
        other = read(self.log)
        if not isinstance(other, Log):
            raise KarmafunnelError(
                f"{self!r}", needs=f"a log in {self.log}", found="a catalogue, items alone"
            )
        value = self.embedder
        if not any(text.strip() for text in log.item_text()):  # before hours of training
            raise KarmafunnelError(f"{self!r}", needs="item text", found=f"none in log {log.name}")
        progress(f"Transfer: training on log {other.name}")
        there = value.fitted(other, seed, progress, device, cache)
        progress(f"Transfer: embedding the items of log {log.name}")
        here = value.features(log, there.base, cache, seed, progress, device, there.features)
        unknown = np.full(log.n_items, -1, dtype=np.int64)
        vectors = item_vectors(value, there.trainee, here, unknown)
        trained = there.embedding
        facts = trained.facts | {
            "trained on": {"log": other.name, "checksum": other.checksum, "items": other.n_items}
        }
        return KarmaEmbedding(
            self,
            value,
            log,
            trained.network,
            vectors,
            facts,
            trained.decoders(),
            here.beside,
        )

    def load(self, folder: Path | str, log: Log) -> KarmaEmbedding:
        return self.embedder.opened(self, folder, log)
