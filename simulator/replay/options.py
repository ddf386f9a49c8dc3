"""What a replay is run with, beside its recipe and its log."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ...stages.kept import Kept
from ...terminal import Console
from .workers import Workers

CHUNK = 256  # requests a shard


@dataclass(frozen=True)
class RunOptions:
    """How recipes are fitted and replayed.

    seed: of every random draw; the same seed gives the same bytes. device: where neural models are
    fitted and run. window: of the log, which is replayed. limit: at most so many requests, evenly
    spaced in time. chunk: requests a shard. cache: where fitted things are kept by content, a
    folder or a `Kept` that several calls share. workers: other processes that replay; they need a
    cache folder. console: where progress is told. command: what run.json says of how the Run was
    made. force: replace an older result of something else.
    """

    seed: int = 0
    device: str = "cpu"
    window: str = "W3"
    limit: int | None = None
    chunk: int = CHUNK
    cache: Kept | Path | None = None
    workers: Workers | None = None
    console: Console | None = None
    command: str | None = None
    force: bool = False

    @property
    def folder(self) -> Path | None:
        """The cache folder, if there is one."""
        return Kept.of(self.cache).folder


DEFAULTS = RunOptions()


def cache_root() -> Path:
    """Where fitted things are kept: $KARMAFUNNEL_CACHE, else ~/.cache/karmafunnel."""
    return Path(os.environ.get("KARMAFUNNEL_CACHE") or Path.home() / ".cache" / "karmafunnel")
