"""Embedder: turns a log into item and user embeddings whose inner product is the score.

An Embedder is a frozen value; `fit(log)` reads W1 alone and returns an Embedding. The user
embedding of a request uses only what was known strictly before it (`log.asof`) and the request's
own query and user. This file has the protocol and the embedders without a network.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse, special

from ..bigrams import spaced
from ..bounds import needs
from ..errors import KarmafunnelError
from ..files import (
    EMBEDDING,
    atomic_folder,
    check,
    claim,
    read_json,
    settle,
    write_json,
    write_text,
)
from ..log import Log
from ..shapes import ANY, TEXT, by_name, check_keys, each
from ..typed import Typed

if TYPE_CHECKING:  # scikit-learn takes a second to import: where it is used
    from sklearn.feature_extraction.text import CountVectorizer

Progress = Callable[[str], None]
BLOCK = 4096  # requests at a time where vectors of histories are gathered


class Lasting(str):
    """A line of progress that stays where others are overwritten: a warning, or what was found."""

    __slots__ = ()


def silent(_: str) -> None:
    """A progress callback that says nothing."""


# -- the protocol ----------------------------------------------------------------------------------


class Embedder(Typed, ABC):
    """A frozen dataclass whose fields are its config."""

    @abstractmethod
    def fit(
        self,
        log: Log,
        seed: int = 0,
        progress: Progress = silent,
        device: str = "cpu",
        cache: Path | None = None,
    ) -> Embedding:
        """Fit on W1 of the log.

        Args:
            log: the log.
            seed: of every random draw.
            progress: called with lines of progress.
            device: where a network is trained.
            cache: a folder where long fits keep their steps, so that a killed fit resumes and other
                fits share them.

        Raises:
            KarmafunnelError: the log lacks what this embedder needs.
        """

    @abstractmethod
    def load(self, folder: Path | str, log: Log) -> Embedding:
        """The inverse of `Embedding.save`; raises KarmafunnelError when the folder holds something
        else.
        """


class Embedding(ABC):
    """A fitted Embedder. `value` is what was fitted; `facts` what is worth knowing of the fit (goes
    into the JSON).

    `fitted_on`: windows whose answers it may know, so that nothing that reads it learns from their
    rows or scores them. `asks`: what `queries` reads of a request, as `log.json` calls it.
    `online`: whether `interests` runs a neural network, which a deployment serves on machines of
    its own: such an embedder is timed as a stage (`simulator.load.profile`).
    """

    fitted_on: tuple[str, ...] = ("W1",)
    asks: tuple[str, ...] = ()
    online: bool = False

    def __init__(self, value: Embedder, log: Log, facts: dict[str, Any] | None = None):
        self.value, self.log, self.facts = value, log, dict(facts or {})

    @abstractmethod
    def items(self) -> np.ndarray:
        """Item embeddings, float32 (n_items, d), as rows of `log.items`; zeros if unknown."""

    @abstractmethod
    def interests(self, requests: np.ndarray) -> np.ndarray:
        """User embeddings of requests given as row numbers, float32 (len(requests), d); zeros where
        nothing is known of the user.
        """

    def queries(self, requests: np.ndarray) -> np.ndarray | None:
        """Embeddings of the requests' queries alone, without history or user, in the space of
        `items`: float32 (len(requests), d), zeros without a query; None if the embedder reads no
        query.
        """
        return None

    @abstractmethod
    def tensors(self) -> dict[str, np.ndarray]:
        """Everything that was learnt, by name."""

    def extras(self) -> dict[str, Any]:
        """Learnt content that is not a tensor, as JSON."""
        return {}

    def read(self, requests: np.ndarray, quick: bool = False) -> list[str] | None:
        """Each user embedding decoded into words; None if the embedder has no decoder, or none that
        is fast where `quick`.
        """
        return None

    def attention_map(self, requests: np.ndarray) -> np.ndarray | None:
        """Attention weights, (layers, L, L) with queries as rows; None for an embedder without
        attention.
        """
        return None

    def diagnose(self, requests: np.ndarray, users: np.ndarray | None = None) -> dict[str, Any]:
        """Diagnostics of the vectors, by name (defined in `models/diagnostics.py`); more where
        there is a network. `users`: the user embeddings of the requests, where they are known.
        """
        from .diagnostics import isotropy

        return isotropy(self.items(), self.interests(requests) if users is None else users)

    def save(self, folder: Path | str, force: bool = False) -> None:
        """Write `tensors.safetensors` and `embedding.json` with digests, atomically; of a watched
        fit also `watched.csv`.

        Raises:
            KarmafunnelError: the folder holds something other than an embedding or (without
                `force`) another embedding.
        """
        wants = {"embedder": repr(self.value), "items": items_checksum(self.log)}
        with (
            claim(folder, "save", EMBEDDING, wants=wants, force=force),
            atomic_folder(folder, sealed=True) as temporary,
        ):
            self.write_into(temporary)

    def write_into(self, folder: Path) -> None:
        """Write what `save` writes into an existing folder."""
        save_file(
            {k: np.ascontiguousarray(v) for k, v in self.tensors().items()},
            folder / "tensors.safetensors",
        )
        description = {
            "embedder": repr(self.value),
            "class": type(self.value).__name__,
            "fields": asdict(self.value),  # type: ignore[call-overload]
            "log": self.log.name,
            "items": items_checksum(self.log),
            "facts": self.facts,
            "extras": self.extras(),
        }
        write_json(folder / "embedding.json", description)
        if watched := self.facts.get("watched"):
            write_text(folder / "watched.csv", watched_csv(watched))
        self.save_more(folder)

    def save_more(self, folder: Path) -> None:  # noqa: B027  (nothing is the right default)
        """Write files that serving does not need beside the rest."""


FIRST = ("row", "seed", "step", "act", "gen", "rec", "see")  # columns of watched.csv


def watched_csv(steps: Sequence[Mapping[str, Any]]) -> str:
    """Diagnostics of steps as CSV: a line a step, a column a figure, empty where it has none; the
    step and the losses first, then all others by name.
    """
    table = pl.DataFrame(steps, infer_schema_length=None)
    first = [name for name in FIRST if name in table.columns]
    return table.select(*first, *sorted({*table.columns} - {*first})).write_csv()


OF_ITEMS = {"vectors", "items", "target", "source"}  # tensors that have a row an item


def items_checksum(log: Log) -> str:
    """Hash of the item ids in their order: vectors belong to rows, so these must not have moved."""
    return hashlib.sha256("\x00".join(map(str, log.item_ids)).encode()).hexdigest()[:16]


DESCRIPTION = dict.fromkeys(("class", "embedder", "items", "log"), TEXT) | dict.fromkeys(
    ("fields", "facts", "extras"), by_name(ANY)
)


def read_words(folder: Path | str, description: Mapping[str, Any], n: int) -> list[str]:
    """The n terms of a saved TF-IDF, each once; raises KarmafunnelError naming the file for
    anything else.
    """
    who = f"{folder}/embedding.json: extras"
    found = check_keys(who, description["extras"], {"vocabulary": each(TEXT)})["vocabulary"]
    if len(found) != n or len(set(found)) < n:
        raise KarmafunnelError(
            who, what="vocabulary", needs=f"{n:,} different terms", found=f"{len(found):,}"
        )
    return list(found)


def differences(value: Any, kept: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """The options of a value that differ from those it was saved with: each as it is, and as it was
    saved.

    An option that did not exist then is at its default: code without it did the same. Not so one of
    a value among the options, which may have been of another class.
    """
    out = []
    for f in fields(value):
        own, name = getattr(value, f.name), f"{before}{f.name}"
        plain = json.loads(json.dumps(asdict(own) if is_dataclass(own) else own, default=asdict))  # type: ignore[arg-type]
        found = kept.get(f.name)
        if f.name not in kept:
            if before or own != f.default:
                out.append((f"{name}={own!r}", f"no {name}"))
        elif is_dataclass(own) and isinstance(found, dict):
            out += differences(own, found, f"{name}.")
        elif plain != found:
            out.append((f"{name}={own!r}", f"{name}={found!r}"))
    gone = sorted(set(kept).difference(f.name for f in fields(value)))
    return out + [(f"no {before}{name}", f"{before}{name}={kept[name]!r}") for name in gone]


def read_saved(
    value: Embedder, folder: Path | str, log: Log, *wanted: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors, those `wanted` among them, and description of a saved embedding, checked against the
    value and the log's items.
    """
    folder, who = Path(folder), f"{value!r}: needs a saved embedding in {folder}, found"
    settle(folder)
    try:
        description = read_json(folder / "embedding.json")
        # what lies beside is checked when it is read
        check(folder, "embedding.json", "tensors.safetensors")
        tensors = load_file(folder / "tensors.safetensors")
    except (OSError, KarmafunnelError, SafetensorError) as error:
        raise KarmafunnelError(f"{who}: {error}") from error
    check_keys(f"{folder}/embedding.json", description, DESCRIPTION)
    if description["class"] != type(value).__name__:
        raise KarmafunnelError(folder, needs=repr(value), found=f"{description['embedder']}")
    if differ := differences(value, description["fields"]):
        own, saved = (", ".join(texts) for texts in zip(*differ, strict=True))
        raise KarmafunnelError(folder, needs=f"{value!r}, with {own}", found=saved)
    if description["items"] != items_checksum(log):
        raise KarmafunnelError(
            folder, needs=f"the items of log {log.name}", found=f"those of log {description['log']}"
        )
    if missing := [name for name in wanted if name not in tensors]:
        raise KarmafunnelError(f"{who} tensors without {', '.join(missing)}")
    for name in OF_ITEMS.intersection(wanted):
        if len(tensors[name]) != log.n_items:
            raise KarmafunnelError(
                f"{who} {len(tensors[name])} rows of {name} "
                f"for the {log.n_items} items of log {log.name}"
            )
    return tensors, description


# -- what W1 holds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sequences:
    """The clicks and purchases of W1 by user, then time: item, user, t, request, all (n,)."""

    item: np.ndarray
    user: np.ndarray
    t: np.ndarray
    request: np.ndarray

    def __len__(self) -> int:
        return len(self.item)


def w1_sequences(log: Log, who: str) -> Sequences:
    """Clicks and purchases of W1 by user, then time; raises KarmafunnelError if there is none."""
    events = log.events
    inside = (log.requests["window"] == "W1").to_numpy()[events["request"].to_numpy()]
    events = events.filter(pl.Series(inside, dtype=pl.Boolean))
    if events.height == 0:
        raise KarmafunnelError(
            who, needs=f"clicks or purchases in W1 of log {log.name}", found="none"
        )
    user, t = events["user"].to_numpy(), events["t"].to_numpy()
    order = np.lexsort((t, user))  # stable: lines of one request stay in their order
    return Sequences(
        events["item"].to_numpy()[order].astype(np.int64),
        user[order],
        t[order],
        events["request"].to_numpy()[order],
    )


def known_in_w1(log: Log) -> np.ndarray:
    """Whether each item was known by the end of W1, (n_items,) bool: the candidates of training."""
    return log.asof.known_rank < log.asof.time_rank(np.array([log.end_of("W1")]))[0]


# -- shared arithmetic -----------------------------------------------------------------------------


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32; rows of zeros stay."""
    length = np.sqrt((x.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return np.divide(
        x, length, out=np.zeros(x.shape, dtype=np.float64), where=length > 1e-12
    ).astype(np.float32)


def decayed_mean(
    log: Log, requests: np.ndarray, vectors: np.ndarray, length: int, decay: float
) -> np.ndarray:
    """Mean vector of the last `length` history items, the k-th last weighing decay**(k-1): float32
    (n, d), zeros without any.
    """
    out = np.zeros((len(requests), vectors.shape[1]), dtype=np.float32)
    by_age = (decay ** np.arange(length - 1, -1, -1)).astype(np.float32)
    for start in range(0, len(requests), BLOCK):
        history = log.asof.history(requests[start : start + BLOCK], length).items
        weight = by_age * (history >= 0)
        total = np.zeros((len(history), vectors.shape[1]), dtype=np.float32)
        for column in range(length):  # one place of the history at a time: no (n, length, d) array
            present = np.flatnonzero(weight[:, column])
            total[present] += weight[present, column, None] * vectors[history[present, column]]
        out[start : start + BLOCK] = total / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
    return out


def truncated_svd(
    matrix: sparse.csr_matrix, dim: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (n, r), S (r,), Vt (r, m) with r = dim or less; seeded, signs fixed by scikit-learn."""
    from sklearn.utils.extmath import randomized_svd

    rank = max(1, min(dim, *matrix.shape))
    # six power iterations: with fewer the small singular vectors depend visibly on the draw
    u, s, vt = randomized_svd(matrix, n_components=rank, n_iter=6, random_state=seed)
    return u, s, vt


def widen(x: np.ndarray, dim: int) -> np.ndarray:
    """Columns of zeros up to `dim` (a catalogue smaller than dim has fewer directions): float32 (n,
    dim).
    """
    return np.pad(x, ((0, 0), (0, dim - x.shape[1]))).astype(np.float32)


# -- text ------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class TfidfSVD(Embedder):
    """Latent semantic analysis: TF-IDF of the item text, truncated SVD (Deerwester et al. 1990).

    The user embedding is query_weight * (unit vector of the query) + history_weight * (unit decayed
    mean of the history's items), scaled to length 1; zeros if both are missing. `chars` adds
    character n-grams of that length within words (0: words alone).
    """

    dim: int = 64
    query_weight: float = 1.0
    history_weight: float = 0.5
    length: int = 20
    decay: float = 0.8
    words: int = 50_000
    chars: int = 0

    def __post_init__(self) -> None:
        needs(self, "dim", "length", "decay", "words", "chars", "query_weight", "history_weight")

    def fit(
        self,
        log: Log,
        seed: int = 0,
        progress: Progress = silent,
        device: str = "cpu",
        cache: Path | None = None,
    ) -> TfidfSVDEmbedding:
        """Words, weights and directions come from the items known by the end of W1; needs item
        text.
        """
        texts = self._texts(log)
        known = np.flatnonzero(known_in_w1(log))
        corpus = [texts[i] for i in known] or texts
        counter = self._counter(None)
        try:
            counts = counter.fit_transform(corpus)
        except ValueError as error:  # scikit-learn's "empty vocabulary"
            raise KarmafunnelError(
                f"{self!r}", needs=f"words in the item text of log {log.name}", found="none"
            ) from error
        vocabulary = sorted(counter.vocabulary_, key=counter.vocabulary_.__getitem__)
        documents = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log((1 + counts.shape[0]) / (1 + documents)) + 1
        progress(f"TF-IDF of {counts.shape[0]} items, {len(vocabulary)} terms")
        _, _, vt = truncated_svd(weighted(counts, idf), self.dim, seed)
        return TfidfSVDEmbedding(
            self, log, vocabulary, idf.astype(np.float32), vt.T.astype(np.float32)
        )

    def load(self, folder: Path | str, log: Log) -> TfidfSVDEmbedding:
        self._texts(log)
        tensors, description = read_saved(self, folder, log, "idf", "directions")
        words = read_words(folder, description, len(tensors["idf"]))
        return TfidfSVDEmbedding(
            self, log, words, tensors["idf"], tensors["directions"], description["facts"]
        )

    def _texts(self, log: Log) -> list[str]:
        texts = log.item_text()
        if not any(text and text.strip() for text in texts):
            raise KarmafunnelError(
                f"{self!r}",
                needs="item text (title, brand, category, attributes)",
                found=f"none in log {log.name}",
            )
        return [text or "" for text in texts]

    def _counter(self, vocabulary: list[str] | None) -> CountVectorizer:
        from sklearn.feature_extraction.text import CountVectorizer

        split = CountVectorizer(token_pattern=r"(?u)\b\w+\b").build_analyzer()

        def words(text: str) -> list[str]:
            found: list[str] = split(spaced(text))
            return found

        if self.chars:
            lengths = (self.chars, self.chars)
            grams = CountVectorizer(analyzer="char_wb", ngram_range=lengths).build_analyzer()
            return CountVectorizer(
                analyzer=lambda text: [*words(text), *("\x01" + g for g in grams(text))],
                max_features=self.words,
                vocabulary=vocabulary,
            )
        return CountVectorizer(analyzer=words, max_features=self.words, vocabulary=vocabulary)


def weighted(counts: sparse.csr_matrix, idf: np.ndarray) -> sparse.csr_matrix:
    """(1 + log count) * idf, rows at length 1."""
    rows = sparse.csr_matrix(counts, dtype=np.float64)
    rows.data = (1 + np.log(rows.data)) * idf[rows.indices]
    length = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(length, 1e-12)) @ rows)


class TfidfSVDEmbedding(Embedding):
    asks = ("query",)

    def __init__(
        self,
        value: TfidfSVD,
        log: Log,
        vocabulary: list[str],
        idf: np.ndarray,
        directions: np.ndarray,
        facts: dict[str, Any] | None = None,
    ):
        super().__init__(value, log, facts)
        self.config, self.vocabulary, self.idf, self.directions = value, vocabulary, idf, directions
        self._counter = value._counter(vocabulary)
        self._items = self.embed(value._texts(log))

    def embed(self, texts: list[str]) -> np.ndarray:
        """Unit vectors of texts, float32 (n, dim); zeros for a text without a known term."""
        if not texts:
            return np.zeros((0, self.config.dim), dtype=np.float32)
        rows = weighted(self._counter.transform(texts), self.idf.astype(np.float64))
        return widen(
            unit_rows(np.asarray(rows @ self.directions.astype(np.float64))), self.config.dim
        )

    def of(self, log: Log) -> TfidfSVDEmbedding:
        """The items and requests of another log in the same words, weights and directions."""
        return TfidfSVDEmbedding(self.config, log, self.vocabulary, self.idf, self.directions)

    def items(self) -> np.ndarray:
        return self._items

    def interests(self, requests: np.ndarray) -> np.ndarray:
        config = self.config
        past = unit_rows(decayed_mean(self.log, requests, self._items, config.length, config.decay))
        return unit_rows(
            config.query_weight * self.queries(requests) + config.history_weight * past
        )

    def queries(self, requests: np.ndarray) -> np.ndarray:
        queries = self.log.requests["query"].gather(requests).fill_null("")
        asked, inverse = np.unique(queries.to_numpy().astype(str), return_inverse=True)
        return self.embed([str(q) for q in asked])[inverse]

    def tensors(self) -> dict[str, np.ndarray]:
        return {"idf": self.idf, "directions": self.directions}

    def extras(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary}


# -- co-occurrence ---------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Cooccurrence(Embedder):
    """Items that the same users chose near each other in W1: cosine (or positive PMI) of their
    counts, truncated SVD.

    A step is what a user chose at one time. Pairs within a step count 1, pairs k steps apart
    `falloff` to the power k, up to `window` steps. Each item of a step of n weighs 1/sqrt(n), which
    limits the weight of wholesale orders. Counts are damped by `shrink`. The user embedding is the
    decayed mean of the history's vectors, zeros without a history. An item that is not in W1 has a
    zero vector: the same affinity as items that never occur together.
    """

    dim: int = 64
    window: int = 5
    falloff: float = 0.8
    weighting: str = "cosine"
    shrink: float = 5.0
    length: int = 20
    decay: float = 0.8

    def __post_init__(self) -> None:
        if self.weighting not in ("cosine", "ppmi"):
            raise KarmafunnelError(
                "Cooccurrence",
                what="weighting",
                needs="'cosine' or 'ppmi'",
                found=repr(self.weighting),
            )
        needs(self, "dim", "window", "falloff", "shrink", "length", "decay")

    def fit(
        self,
        log: Log,
        seed: int = 0,
        progress: Progress = silent,
        device: str = "cpu",
        cache: Path | None = None,
    ) -> CooccurrenceEmbedding:
        """Needs clicks or purchases in W1."""
        matrix = self.affinity(w1_sequences(log, repr(self)), log.n_items)
        progress(f"co-occurrence of {log.n_items} items, {matrix.nnz} pairs")
        target, source = self.vectors(matrix, seed)
        return CooccurrenceEmbedding(self, log, target, source)

    def load(self, folder: Path | str, log: Log) -> CooccurrenceEmbedding:
        tensors, description = read_saved(self, folder, log, "target", "source")
        return CooccurrenceEmbedding(
            self, log, tensors["target"], tensors["source"], description["facts"]
        )

    def vectors(self, matrix: sparse.csr_matrix, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Target and source vectors with source target^T close to the matrix: float32 (n, dim)
        each; zeros for an empty row.
        """
        u, s, vt = truncated_svd(matrix, self.dim, seed)
        there = (np.asarray(matrix.sum(axis=0)).ravel() > 0)[:, None]
        return widen(vt.T * np.sqrt(s), self.dim) * there, widen(u * np.sqrt(s), self.dim) * there

    def affinity(self, events: Sequences, n_items: int) -> sparse.csr_matrix:
        """Symmetric item x item weights with an empty diagonal, (n_items, n_items)."""
        starts = np.ones(len(events), dtype=bool)
        starts[1:] = (np.diff(events.user) != 0) | (np.diff(events.t) != 0)
        step = np.cumsum(starts) - 1
        user = events.user[starts]
        size = np.bincount(step)
        ones = sparse.csr_matrix(
            (1 / np.sqrt(size[step]), (step, events.item)), shape=(len(user), n_items)
        )
        counts = sparse.csr_matrix((n_items, n_items))
        for apart in range(min(self.window, len(user) - 1) + 1):
            same = np.flatnonzero(user[apart:] == user[: len(user) - apart])
            pairs = ones[same].T @ ones[same + apart]
            counts = counts + (pairs if apart == 0 else self.falloff**apart * (pairs + pairs.T))
        counts = sparse.csr_matrix(counts - sparse.diags(counts.diagonal()))
        counts.eliminate_zeros()
        return self.scale(
            counts.tocoo(), np.bincount(events.item, minlength=n_items).astype(np.float64)
        )

    def scale(self, counts: sparse.coo_matrix, chosen: np.ndarray) -> sparse.csr_matrix:
        """Cosine count / sqrt(n_i n_j), or positive pointwise mutual information of the pair
        counts.
        """
        row, column = counts.row, counts.col
        if self.weighting == "cosine":
            value = counts.data / np.sqrt(
                (chosen[row] + self.shrink) * (chosen[column] + self.shrink)
            )
        else:
            mass = np.asarray(counts.sum(axis=1)).ravel()
            chance = mass[row] * mass[column] / max(mass.sum(), 1e-12)
            value = (
                np.maximum(np.log(counts.data / chance), 0)
                * counts.data
                / (counts.data + self.shrink)
            )
        return sparse.csr_matrix((value, (row, column)), shape=counts.shape)


class CooccurrenceEmbedding(Embedding):
    def __init__(
        self,
        value: Cooccurrence,
        log: Log,
        target: np.ndarray,
        source: np.ndarray,
        facts: dict[str, Any] | None = None,
    ):
        super().__init__(value, log, facts)
        self.config, self.target, self.source = value, target, source

    def items(self) -> np.ndarray:
        return self.target

    def interests(self, requests: np.ndarray) -> np.ndarray:
        return decayed_mean(self.log, requests, self.source, self.config.length, self.config.decay)

    def tensors(self) -> dict[str, np.ndarray]:
        return {"target": self.target, "source": self.source}


# -- the floor -------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class RandomVectors(Embedder):
    """Random unit vectors from a seeded hash of item and user id, whatever the row order."""

    dim: int = 16

    def __post_init__(self) -> None:
        needs(self, "dim")

    def fit(
        self,
        log: Log,
        seed: int = 0,
        progress: Progress = silent,
        device: str = "cpu",
        cache: Path | None = None,
    ) -> RandomVectorsEmbedding:
        """Looks at ids alone."""
        return RandomVectorsEmbedding(self, log, seed)

    def load(self, folder: Path | str, log: Log) -> RandomVectorsEmbedding:
        tensors, description = read_saved(self, folder, log, "seed")
        return RandomVectorsEmbedding(self, log, int(tensors["seed"][0]), description["facts"])


class RandomVectorsEmbedding(Embedding):
    fitted_on = ()

    def __init__(
        self, value: RandomVectors, log: Log, seed: int, facts: dict[str, Any] | None = None
    ):
        super().__init__(value, log, facts)
        self.config, self.seed = value, seed
        self._items = hashed_vectors(log.item_ids, f"item {seed}", value.dim)

    def items(self) -> np.ndarray:
        return self._items

    def interests(self, requests: np.ndarray) -> np.ndarray:
        users = self.log.requests["user_id"].gather(requests).fill_null("").to_numpy()
        return hashed_vectors(users, f"user {self.seed}", self.config.dim)

    def tensors(self) -> dict[str, np.ndarray]:
        return {"seed": np.array([self.seed], dtype=np.int64)}


def hashed_vectors(ids: np.ndarray, salt: str, dim: int) -> np.ndarray:
    """One unit vector per id, float32 (n, dim): BLAKE2b of salt and id seeds a splitmix64 stream,
    mapped to normal numbers.
    """
    texts = [f"{salt}\x00{i}".encode() for i in ids]
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    step = np.arange(1, dim + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = np.frombuffer(digests, dtype="<u8")[:, None] + step
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return unit_rows(special.ndtri(((x >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53))
