"""Options of a replay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...stages.kept import Kept
from ...terminal import Console
from .workers import Workers

CHUNK = 256  # requests


@dataclass(frozen=True)
class RunOptions:
    """How recipes are fitted and replayed.

    Attributes:
        seed: of every random draw; the same seed gives the same bytes.
        device: where neural models are fitted and run.
        window: of the log, the one to replay.
        limit: at most this number of requests, spread over time; fewer are among more.
        chunk: requests that are replayed at a time.
        cache: where fitted embedders and stages are kept by content: a folder, or a `Kept` that
            several calls share.
        workers: other processes that replay; they need a cache folder.
        console: where progress is printed.
        command: the command that run.json names as the origin of the Run.
        force: replace an older result of something else.
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
        """The cache folder; None without one."""
        return Kept.of(self.cache).folder


DEFAULTS = RunOptions()
