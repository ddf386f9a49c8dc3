"""Context: what a stage may look at while it is fitted and while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from ..bounds import check_seed
from ..errors import KarmafunnelError
from ..log import Log, hash_ids
from ..models.embedders import Embedding, items_checksum, unit_rows
from .frame import mix

Progress = Callable[[str], None]
# of users; five were no better and took 3.5 times as long (benchmarks/findings/LOG.md, 2026-11-28)
FOLDS = 2


def silent(_: str) -> None:
    """A progress callback that says nothing."""


def deal(owner: np.ndarray, counted: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold for every row, int64 (n_rows,): all rows of an owner in one, each fold with about as
    many of the `counted` rows.

    owner (n_rows,) holds numbers from 0, counted the row numbers that should be shared out evenly.
    """
    sizes = np.bincount(owner[counted], minlength=int(owner.max(initial=-1)) + 1)
    fold_of, held = np.zeros(len(sizes), dtype=np.int64), [0] * folds
    for one in np.random.default_rng([seed, folds]).permutation(np.flatnonzero(sizes)):
        fold_of[one] = held.index(min(held))
        held[fold_of[one]] += int(sizes[one])
    return fold_of[owner]


@dataclass(eq=False)
class Context:
    """The log as of each request, fitted embeddings by name, a label, a seed.

    Another context of the same log is made by `dataclasses.replace`. It shares `indexes`, which
    hold what was worked out of the log, by what it is.
    """

    log: Log
    embeddings: dict[str, Embedding] = field(default_factory=dict)
    label: str = "click"
    seed: int = 0
    device: str = "cpu"
    progress: Progress = silent  # one message a step
    detail: Progress = silent  # epochs, trees: what is overwritten on a terminal
    # code that stages were defined with outside the package: a recipe's own classes
    custom_code: str = ""
    # into which users are dealt, so that a stage learns from what models say of users they did not
    # see
    folds: int = FOLDS
    # who looks, and the embedders that it says it reads; None: anybody, at all of them
    reader: tuple[str, tuple[str, ...]] | None = None
    indexes: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_seed(f"log {self.log.name}", self.seed)
        if self.indexes.setdefault("log", self.log) is not self.log:
            self.indexes = {"log": self.log}

    def once(self, what: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, worked out once for all scenes of the log; `what` has to say all that
        it depends on beside the log.
        """
        if what not in self.indexes:
            self.indexes[what] = make()
        return self.indexes[what]

    def reading(self, who: str, names: Sequence[str]) -> Context:
        """The context for somebody who says which embedders it reads; asking for another one raises
        KarmafunnelError.
        """
        return replace(self, reader=(who, tuple(names)))

    @property
    def circumstances(self) -> tuple[Any, ...]:
        """What a fit depends on beside its config and its data."""
        return self.seed, self.device, self.custom_code, self.folds

    def embedding(self, name: str, who: str) -> Embedding:
        """A fitted embedding by name; raises KarmafunnelError naming the stage that asked for one
        that the recipe lacks, or for one whose rows are those of another catalogue or log.
        """
        if self.reader is not None and name not in self.reader[1]:
            reader, names = self.reader
            raise KarmafunnelError(
                f"{reader}: reads embedder {name!r}",
                needs="to name it in embedders()",
                found=f"{list(names)}",
            )
        if name not in self.embeddings:
            needs = f"the recipe to have embedder {name!r}"
            raise KarmafunnelError(who, needs=needs, found=sorted(self.embeddings))
        found = self.embeddings[name]
        log: Log = getattr(found, "log", self.log)
        if log is not self.log:
            self._check_log(log, name, who)
        return found

    def _check_log(self, log: Log, name: str, who: str) -> None:
        """Refuse an embedder whose log is neither this one nor the same, read twice."""
        if self._items_of(self.log) != self._items_of(log):
            raise KarmafunnelError(
                who,
                needs=f"embedder {name!r} fitted on the items of log {self.log.name} ({self.log.n_items})",
                found=f"one of log {log.name} ({log.n_items})",
            )
        if log.checksum != self.log.checksum:
            raise KarmafunnelError(
                who,
                needs=f"embedder {name!r} to read the requests of log {self.log.name} ({self.log.checksum})",
                found=f"one that reads log {log.name} ({log.checksum})",
            )

    def _items_of(self, log: Log) -> str:
        _, found = self.once(
            ("checksum of items", id(log)), lambda: (log, items_checksum(log))
        )  # the log lives as long
        return str(found)

    def items(self, name: str, who: str) -> np.ndarray:
        """Item vectors of an embedding: float32 (n_items, d)."""
        embedding = self.embedding(name, who)
        found: np.ndarray = self.once(
            ("items", embedding), lambda: np.ascontiguousarray(embedding.items(), dtype=np.float32)
        )
        return found

    def units(self, name: str, who: str) -> tuple[np.ndarray, np.ndarray]:
        """Item vectors at length 1, float32 (n_items, d), and whether an item has one at all,
        (n_items,) bool.
        """
        embedding = self.embedding(name, who)
        vectors = self.once(("units", embedding), lambda: unit_rows(self.items(name, who)))
        return vectors, self.once(("known", embedding), lambda: np.any(vectors != 0, axis=1))

    def tie(self, requests: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The seeded hash that orders equal scores: uint64, aligned with its arguments."""
        of_request, of_item = self.once(("hashes", self.seed), self._hashes)
        return mix(of_request[requests] + of_item[items])

    def _hashes(self) -> tuple[np.ndarray, np.ndarray]:
        return hash_ids(self.log.request_ids, self.seed), hash_ids(self.log.item_ids, self.seed + 1)

    @property
    def fold(self) -> np.ndarray:
        """The fold of every request, the same for every stage: int64 (n_requests,), 0 to folds - 1.

        A user's requests are in one fold (a session's, where the log does not know its users or has
        fewer users than folds). Users are dealt in a seeded order, each to the fold with the fewest
        requests of W2.
        """
        found: np.ndarray = self.once(("fold", self.folds, self.seed), self._fold)
        return found

    def _fold(self) -> np.ndarray:
        log = self.log
        learnt = log.requests_in("W2")
        owners = [*([log.user] if log.has("users") else []), log.session, np.arange(len(log.t))]
        enough = [owner for owner in owners if len(np.unique(owner[learnt])) >= self.folds]
        return deal(enough[0] if enough else owners[-1], learnt, self.folds, self.seed)

    @property
    def truth(self) -> pl.DataFrame:
        """Truth of every request of the log under the recipe's label: request, item, quantity,
        money.
        """
        found: pl.DataFrame = self.once(("truth", self.label), lambda: self.log.truth(self.label))
        return found
