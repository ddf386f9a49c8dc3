"""Context: what a stage can read while it is fitted and while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from ..bounds import check_seed
from ..errors import KarmafunnelError, meant
from ..log import Log, hash_ids, rows_of
from ..models.embedders import Embedding, items_checksum, unit_rows
from .frame import ITEM, REQUEST, check_array, mix

Progress = Callable[[str], None]
# of users; five gave no better results and took 3.5 times as long (benchmarks/findings/LOG.md,
# 2026-11-28)
FOLDS = 2


def silent(_: str) -> None:
    """A progress callback that does nothing."""


def no_embedders(who: str, missing: Sequence[str], known: Iterable[str]) -> KarmafunnelError:
    """The error for embedders that are named and not there, with what may have been meant."""
    first, found = missing[0], sorted(known)
    hint = meant(first, found) or (
        f'a recipe has embedders = {{"{first}": ...}}, in Python it is'
        f' replay(funnel, log, embedders={{"{first}": ...}})'
    )
    return KarmafunnelError(who, needs=f"embedders {list(missing)}", found=found, hint=hint)


def deal(owner: np.ndarray, counted: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold for every row: int64 (n_rows,).

    All rows of an owner are in one fold, and the folds have about equally many counted rows. Owners
    without one do not change the folds of the others.

    Args:
        owner: number of each row's owner from 0, (n_rows,).
        counted: row numbers.
    """
    n, rng = int(owner.max(initial=-1)) + 1, np.random.default_rng([seed, folds])
    sizes, every = np.bincount(owner[counted], minlength=n), np.bincount(owner, minlength=n)
    fold_of = np.zeros(n, dtype=np.int64)
    # those without a counted row come after all others, by all of their rows
    for size in (sizes, np.where(sizes > 0, 0, every)):
        size_of = [0] * folds
        for one in rng.permutation(np.flatnonzero(size)):
            fold_of[one] = size_of.index(min(size_of))
            size_of[fold_of[one]] += int(size[one])
    return fold_of[owner]


@dataclass(eq=False)
class Context:
    """The log as of each request, fitted embeddings by name, a label and a seed.

    Another context of the same log is made by `dataclasses.replace` and shares `indexes`.

    Attributes:
        label: what counts as relevant: "click" or "purchase".
        progress: receives one message a step.
        detail: receives epochs and trees, which a terminal overwrites.
        custom_code: code outside the package that stages are defined by, such as a recipe's own
            classes.
        folds: into which users are dealt, so that a stage learns from scores of models that were
            fitted without its users.
        reader: who reads, and the embedders that it declares; None: anybody, all embedders.
        indexes: values that were computed from the log, by key.
        whole: of a block, the context of its log.
    """

    log: Log
    embeddings: dict[str, Embedding] = field(default_factory=dict)
    label: str = "click"
    seed: int = 0
    device: str = "cpu"
    progress: Progress = silent
    detail: Progress = silent
    custom_code: str = ""
    folds: int = FOLDS
    reader: tuple[str, tuple[str, ...]] | None = None
    indexes: dict[Any, Any] = field(default_factory=dict, repr=False)
    whole: Context | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_seed(f"log {self.log.name}", self.seed)
        if self.indexes.setdefault("log", self.log) is not self.log:
            self.indexes = {"log": self.log}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of `make()`, computed once for all contexts of the log; `key` has to contain
        all that the value depends on beside the log.
        """
        if key not in self.indexes:
            self.indexes[key] = make()
        return self.indexes[key]

    def reading(self, who: str, names: Sequence[str]) -> Context:
        """The context for a reader that declares the embedders it reads; asking for another one
        raises KarmafunnelError.
        """
        return replace(self, reader=(who, tuple(names)))

    def in_block(self, log: Log, indexes: dict[Any, Any], name: str) -> Context:
        """A context of a view of the log for a block (`blocks.as_of_block`), without embeddings.

        Folds, relevant items and what else hangs on no window are those of the log.

        Args:
            indexes: values that were computed from the view.
            name: of the block, which every line of progress begins with.
        """

        def progress(text: str) -> None:
            self.progress(f"{name}: {text}")

        return replace(
            self, log=log, embeddings={}, indexes=indexes, progress=progress, whole=self.of_log
        )

    @property
    def of_log(self) -> Context:
        """The context of the whole log, for values that hang on no window."""
        return self.whole or self

    @property
    def circumstances(self) -> tuple[Any, ...]:
        """What a fit depends on beside its settings and its data."""
        return self.seed, self.device, self.custom_code, self.folds

    def embedding(self, name: str, who: str) -> Embedding:
        """A fitted embedding by name.

        Raises:
            KarmafunnelError: naming `who` asks, for an embedder that the recipe lacks, that the
                reader does not declare, or that was fitted on another catalogue or log.
        """
        if self.reader is not None and name not in self.reader[1]:
            reader, names = self.reader
            needs = f"to name embedder {name!r}, which it reads, in embedders()"
            raise KarmafunnelError(reader, needs=needs, found=list(names))
        if name not in self.embeddings:
            raise no_embedders(who, [name], self.embeddings)
        found = self.embeddings[name]
        log: Log = getattr(found, "log", self.log)
        if log is not self.log:
            self._check_log(log, name, who)
        return found

    def title_of(self, name: str, who: str) -> str:
        """The name and class of an embedder, for errors: "embedder text (TfidfSVD)"."""
        embedding = self.embedding(name, who)
        return f"embedder {name} ({type(getattr(embedding, 'value', embedding)).__name__})"

    def _check_log(self, log: Log, name: str, who: str) -> None:
        """Raise KarmafunnelError for an embedder of a log with other items or other requests."""
        mine = self.log
        if self._items_of(mine) != self._items_of(log):
            needs = f"embedder {name!r} fitted on the items of log {mine.name} ({mine.n_items})"
            raise KarmafunnelError(who, needs=needs, found=f"one of log {log.name} ({log.n_items})")
        if log.checksum != mine.checksum:
            needs = f"embedder {name!r} to read the requests of log {mine.name} ({mine.checksum})"
            found = f"one that reads log {log.name} ({log.checksum})"
            raise KarmafunnelError(who, needs=needs, found=found)

    def _items_of(self, log: Log) -> str:
        # with the log, so that its id is not used again
        key = "checksum of items", id(log)
        _, found = self.once(key, lambda: (log, items_checksum(log)))
        return str(found)

    def items(self, name: str, who: str) -> np.ndarray:
        """Item vectors of an embedding: float32 (n_items, d)."""
        embedding = self.embedding(name, who)

        def make() -> np.ndarray:
            sizes = {"n_items": self.log.n_items, "d": None}
            made = check_array(self.title_of(name, who), embedding.items(), sizes, "of items")
            return np.ascontiguousarray(made, dtype=np.float32)

        found: np.ndarray = self.once(("items", embedding), make)
        return found

    def units(self, name: str, who: str) -> tuple[np.ndarray, np.ndarray]:
        """Item vectors at length 1, float32 (n_items, d), and which items have one, (n_items,)
        bool.
        """
        embedding = self.embedding(name, who)
        vectors = self.once(("units", embedding), lambda: unit_rows(self.items(name, who)))
        return vectors, self.once(("known", embedding), lambda: np.any(vectors != 0, axis=1))

    def tie(self, requests: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The seeded hash that orders equal scores: uint64 (n_rows,)."""
        of_request, of_item = self.of_log.once(("hashes", self.seed), self._hashes)
        return mix(of_request[requests] + of_item[items])

    def _hashes(self) -> tuple[np.ndarray, np.ndarray]:
        return hash_ids(self.log.request_ids, self.seed), hash_ids(self.log.item_ids, self.seed + 1)

    @property
    def fold(self) -> np.ndarray:
        """The fold of every request, the same for every stage: int64 (n_requests,).

        A user's requests are in one fold; a session's, where the log has fewer users than folds.
        Users are dealt in a seeded order, each to the fold with the fewest requests of W2.
        """
        of_log = self.of_log
        found: np.ndarray = of_log.once(("fold", self.folds, self.seed), of_log._fold)
        return found

    def _fold(self) -> np.ndarray:
        log = self.log
        learnt = log.requests_in("W2")
        owners = [log.user] if log.has("users") else []
        owners += [log.session, np.arange(len(log.t))]
        for owner in owners:
            if len(np.unique(owner[learnt])) >= self.folds:
                return deal(owner, learnt, self.folds, self.seed)
        return deal(owners[-1], learnt, self.folds, self.seed)

    @property
    def truth(self) -> pl.DataFrame:
        """Relevant items of every request under the label: request, item, quantity, money."""
        key, of_log = ("truth", self.label), self.of_log
        found: pl.DataFrame = of_log.once(key, lambda: self.log.truth(self.label))
        return found

    def logged(self, requests: np.ndarray, exposed: bool = True) -> pl.DataFrame:
        """The rows of requests that are scored by every stage: relevant items and, with `exposed`,
        all logged ones; request, item, truth.
        """
        truth = rows_of(self.truth, requests).select(REQUEST, ITEM, pl.lit(True).alias("truth"))
        if not exposed:
            return truth
        rows = rows_of(self.log.rows, requests).select(REQUEST, ITEM).unique(maintain_order=True)
        rows = rows.join(truth, on=[REQUEST, ITEM], how="left", maintain_order="left")
        return rows.with_columns(pl.col("truth").fill_null(False))
