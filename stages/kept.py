"""What funnels that are fitted one after the other have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

Passed = tuple[pl.DataFrame, pl.DataFrame]  # what a stage passes on of a chunk: slate, tracked rows


class Kept:
    """Fitted embedders and stages by key: in a folder, and in this object.

    It also holds what stages pass on of requests to learn from (`Passes`) and what was computed
    from the log (`Context.indexes`). Funnels that are fitted with the same object compute once what
    they have in common.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self.fitted: dict[str, Any] = {}
        self.indexes: dict[Any, Any] = {}
        self.passes = Passes()
        self.blocks: dict[Any, Kept] = {}

    def of_block(self, *key: Any) -> Kept:
        """What is kept of a block, by the log's checksum and the number of the block: other fits in
        the same folder.
        """
        if key not in self.blocks:
            self.blocks[key] = Kept(self.folder)
            self.blocks[key].passes = self.passes
        return self.blocks[key]

    def forget(self) -> None:
        """Drop what is needed only while funnels are fitted."""
        self.passes.clear()
        self.blocks.clear()

    @classmethod
    def of(cls, cache: Kept | Path | None) -> Kept:
        """The cache itself, or a new one in a folder (None: without a folder)."""
        return cache if isinstance(cache, Kept) else cls(cache)


class Passes:
    """What the stages of funnels pass on, by the key of the funnel up to a stage and the digest of
    the chunk.

    At most `most` bytes are kept; the key that was used longest ago is dropped first.
    """

    def __init__(self, most: int = 256 << 20):
        self.most = most
        self._kept: dict[str, dict[str, Passed]] = {}
        self._bytes: dict[str, int] = {}

    def get(self, key: str, digest: str) -> Passed | None:
        if key in self._kept:
            self._kept[key] = self._kept.pop(key)  # to the end: used last
        return self._kept.get(key, {}).get(digest)

    def put(self, key: str, digest: str, passed: Passed) -> None:
        size = sum(int(frame.estimated_size()) for frame in passed)
        while sum(self._bytes.values()) + size > self.most:
            oldest = next((other for other in self._kept if other != key), None)
            if oldest is None:
                return
            del self._kept[oldest], self._bytes[oldest]
        self._kept.setdefault(key, {})[digest] = passed
        self._bytes[key] = self._bytes.get(key, 0) + size

    def clear(self) -> None:
        self._kept.clear()
        self._bytes.clear()
