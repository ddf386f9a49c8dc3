"""Transfer: an embedder trained on one log, asked on another whose items and users it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...errors import KarmafunnelError
from ...log import Log, read
from ...typed import positional
from ..embedders import Embedder, Progress, silent
from .embedder import KARMA, KarmaEmbedding
from .tuned import TunedEmbedding, TunedEncoder


@dataclass(frozen=True, repr=False)
class Transfer(Embedder):
    """KARMA or a sentence encoder trained on the log in a folder, for the items and users of the
    log it is fitted to [O].

    The texts of that log's items are read by the model as it was trained, with the scale, the map
    and the projections that were learnt there. No click, purchase or choice of the log is trained
    on. What the two logs do not share was never trained: queries, filters, clicks beside purchases,
    gaps of time.

    A `Qwen(...)` backbone is pre-trained on the texts of the folder's log alone; with `catalogues`
    it has also read those of others.

    Args:
        embedder: a TunedEncoder, or a KARMA without ids, which would be those of other items, and
            without `visual`.
        log: the folder of the log that it is trained on.
    """

    log_fields: ClassVar[tuple[str, ...]] = ("log",)

    embedder: KARMA | TunedEncoder = positional()  # noqa: RUF009
    log: str = positional()

    def __post_init__(self) -> None:
        if isinstance(self.embedder, TunedEncoder):
            return
        if not isinstance(self.embedder, KARMA):
            raise KarmafunnelError(
                "Transfer",
                what="embedder",
                needs="a KARMA or a TunedEncoder",
                found=repr(self.embedder),
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
    ) -> KarmaEmbedding | TunedEmbedding:
        """Fit on the folder's log, or take the fit from `cache`, then embed the items of `log`.

        Raises KarmafunnelError as the embedder does for the folder's log, and where no item of
        `log` has text.
        """
        other = read(self.log)
        if not isinstance(other, Log):
            raise KarmafunnelError(
                f"{self!r}", needs=f"a log in {self.log}", found="a catalogue, items alone"
            )
        if not any(text.strip() for text in log.item_text()):  # before hours of training
            raise KarmafunnelError(f"{self!r}", needs="item text", found=f"none in log {log.name}")
        progress(f"Transfer: training on log {other.name}, then embedding the items of {log.name}")
        found = self.embedder.moved(self, other, log, seed, progress, device, cache)
        of = {"log": other.name, "checksum": other.checksum, "items": other.n_items}
        found.facts = found.facts | {"trained on": of}
        return found

    def load(self, folder: Path | str, log: Log) -> KarmaEmbedding | TunedEmbedding:
        return self.embedder.opened(self, folder, log)
