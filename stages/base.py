"""Stage, Funnel, and how a chunk of requests runs through them."""

from __future__ import annotations

import copy
import hashlib
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl

from ..bounds import check_fits, check_name, check_seed, needs
from ..errors import KarmafunnelError, quoted
from ..files import atomic_folder, intact, write_text
from ..keys import code_of, content_key
from ..log import Log, hash_ids
from ..models.embedders import Embedder, Embedding, items_checksum, unit_rows
from .frame import (
    CHANNEL,
    ITEM,
    PLACE,
    RANK,
    REQUEST,
    SCORE,
    descending,
    group_rows,
    mix,
    no_rows,
    order,
    rows_frame,
    with_forced,
)

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


class Memory:
    """What the scenes of one log and seed have in common: fitted things by content, and what stages
    made of a chunk of requests.

    So funnels that begin alike run their beginning once. It keeps nothing unless `on`; then steps
    of the beginnings in `wanted` (None: of all) until `forget`, as long as `most` bytes hold them.
    """

    def __init__(self, most: int = 256 << 20):
        self.most, self.on = most, False
        self.wanted: Collection[str] | None = None
        self.embeddings: dict[str, Embedding] = {}
        self.stages: dict[str, Fitted] = {}
        self._path: dict[int, Scored] = {}
        self.at_work: Scored | None = None  # what the stage that is running scores
        self.begun_alike = False  # whether other funnels come to these very rows
        # embeddings in another mode: stale, absent
        self.views: dict[tuple[Embedding, str], Embedding] = {}
        self.forget()
        # The clock of what stages share, vectors and features: each is made once, whoever asks
        # first, and charged to every funnel that reads it. Seconds by place: `used` by the stage
        # that is running, `read` by the stages of its funnel before it.
        self.spent = 0.0
        self.used: dict[tuple[Any, ...], float] = {}
        self.read: dict[tuple[Any, ...], float] = {}

    def forget(self, but: Collection[str] = ()) -> None:
        """Drop the steps, but those of some beginnings."""
        kept = {place: found for place, found in getattr(self, "_steps", {}).items() if place[0] in but}
        self._steps: dict[tuple[Any, ...], tuple[Step, State]] = kept
        self.at_work = None
        if not kept:
            self._path.clear()
        self._bytes = sum(size_of(state) for _, state in kept.values()) + sum(scored.bytes for scored in self._path.values())

    def get(self, key: str, start: tuple[Any, ...]) -> tuple[Step, State] | None:
        return self._steps.get((key, start))

    def put(self, key: str, start: tuple[Any, ...], made: tuple[Step, State]) -> None:
        if self.on and (self.wanted is None or key in self.wanted) and self.room(size_of(made[1])):
            self._steps[key, start] = made

    def room(self, size: int) -> bool:
        """Whether so many bytes more may be kept; counts them where they may."""
        fits = self._bytes + size <= self.most
        self._bytes += size if fits else 0
        return fits

    def scored(self, state: State) -> Scored:
        """What the stage after a state scores. Kept until the next state at its depth: of one
        chunk, of the funnel that is running.
        """
        found = self._path.get(state.depth)
        if found is None or found.state is not state:
            self._bytes -= found.bytes if found else 0
            found = self._path[state.depth] = Scored(state)
        return found

    def clocked(self, place: tuple[Any, ...], make: Callable[[], np.ndarray]) -> tuple[np.ndarray, dict[tuple[Any, ...], float]]:
        """What `make` gives, and the seconds by place that a stage reading it is charged with (its
        own, and of what it read in turn).
        """
        outer, self.used = self.used, {}
        before, start = self.spent, time.perf_counter()
        made = np.asarray(make()).view()
        made.flags.writeable = False  # others read it, too
        seconds = time.perf_counter() - start - (self.spent - before)
        self.spent += seconds
        used, self.used = self.used | {place: seconds}, outer
        self.used |= used
        return made, used


def size_of(state: State) -> int:
    return int(state.slate.estimated_size() + state.forced.estimated_size()) + (0 if state.at is None else state.at.nbytes)


@dataclass(eq=False)
class Scene:
    """What a stage may look at while fitting and running: the log as of each request, fitted
    embeddings, one seed.
    """

    log: Log
    embeddings: dict[str, Embedding] = field(default_factory=dict)
    label: str = "click"
    seed: int = 0
    device: str = "cpu"
    progress: Progress = silent  # one message a step
    detail: Progress = silent  # epochs, trees: what is overwritten on a terminal
    # code that stages were defined with outside the package: a recipe's own classes
    outside: str = ""
    # into which users are dealt, so that a stage learns from what models say of users they did not
    # see
    folds: int = FOLDS

    def __post_init__(self) -> None:
        check_seed(f"log {self.log.name}", self.seed)
        self.memory = Memory()
        # Kept by embedding, not by name: scenes beside each other share them, and mean different
        # things by a name.
        self._chunk: dict[tuple[Any, ...], tuple[np.ndarray, np.ndarray, dict[tuple[Any, ...], float]]] = {}
        self._items: dict[Embedding, np.ndarray] = {}
        self._titles: dict[Any, Any] = {}
        self._units: dict[Embedding, tuple[np.ndarray, np.ndarray]] = {}
        self._ours: set[Embedding] = set()  # found to be of this log
        # who looks, and the embedders that it says it reads
        self._reader: tuple[str, tuple[str, ...]] | None = None

    def beside(self, embeddings: dict[str, Embedding]) -> Scene:
        """A scene of the same log, label and seed with other embeddings; what both need is worked
        out once.
        """
        _ = self.truth, self._hashes
        other = copy.copy(self)
        other.embeddings = embeddings
        return other

    def reading(self, who: str, names: Sequence[str]) -> Scene:
        """The scene for somebody who says which embedders it reads; asking for another one raises
        KarmafunnelError.
        """
        _ = self.truth, self._hashes
        other = copy.copy(self)
        other._reader = who, tuple(names)
        return other

    def _check_reader(self, name: str) -> None:
        if self._reader is not None and name not in self._reader[1]:
            who, names = self._reader
            raise KarmafunnelError(f"{who}: reads embedder {name!r}: needs to name it in embedders(), found {list(names)}")

    @property
    def circumstances(self) -> tuple[Any, ...]:
        """What a fit depends on beside its config and its data."""
        return self.seed, self.device, self.outside, self.folds

    def embedding(self, name: str, who: str) -> Embedding:
        """A fitted embedding by name; raises KarmafunnelError naming the stage that asked for one
        that the recipe lacks, or for one whose rows are those of another catalogue or log.
        """
        self._check_reader(name)
        if name not in self.embeddings:
            raise KarmafunnelError(f"{who}: needs embedder {name!r}, the recipe has {sorted(self.embeddings)}")
        found = self.embeddings[name]
        if found not in self._ours:
            log: Log = getattr(found, "log", self.log)
            if log is not self.log and items_checksum(log) != items_checksum(self.log):
                raise KarmafunnelError(
                    f"{who}: needs embedder {name!r} fitted on the items of log {self.log.name} ({self.log.n_items}), "
                    f"found one of log {log.name} ({log.n_items})"
                )
            if log is not self.log and log.checksum != self.log.checksum:
                raise KarmafunnelError(
                    f"{who}: needs embedder {name!r} to read the requests of log {self.log.name} ({self.log.checksum}), "
                    f"found one that reads log {log.name} ({log.checksum})"
                )
            self._ours.add(found)
        return found

    def items(self, name: str, who: str) -> np.ndarray:
        """Item vectors of an embedding: float32 (n_items, d)."""
        found = self.embedding(name, who)
        if found not in self._items:
            self._items[found] = np.ascontiguousarray(found.items(), dtype=np.float32)
        return self._items[found]

    def units(self, name: str, who: str) -> tuple[np.ndarray, np.ndarray]:
        """Item vectors at length 1, float32 (n_items, d), and whether an item has one at all,
        (n_items,) bool.
        """
        found = self.embedding(name, who)
        if found not in self._units:
            vectors = unit_rows(self.items(name, who))
            self._units[found] = vectors, np.any(vectors != 0, axis=1)
        return self._units[found]

    def interests(self, name: str, requests: np.ndarray, who: str) -> np.ndarray:
        """Interest vectors: float32 (n_requests, d)."""
        return self.once(("interest", name), requests, lambda chunk: self.embedding(name, who).interests(chunk))

    def once(self, key: tuple[str, ...], requests: np.ndarray, make: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Vectors of requests, float32 (n_requests, d), made once for a chunk of them however many
        stages ask for all or some.

        `key`: what they are, and last the name of the embedder that makes them.
        """
        self._check_reader(key[-1])
        place, memory = (*key[:-1], self.embeddings.get(key[-1])), self.memory
        kept = self._chunk.get(place)
        if kept is not None and len(kept[0]):
            at = np.minimum(np.searchsorted(kept[0], requests), len(kept[0]) - 1)
            if np.array_equal(kept[0][at], requests):
                memory.used |= kept[2]
                return kept[1] if len(requests) == len(kept[0]) else kept[1][at]
        vectors, used = memory.clocked(place, lambda: np.ascontiguousarray(make(requests), dtype=np.float32))
        self._chunk[place] = requests.copy(), vectors, used
        return vectors

    @cached_property
    def _hashes(self) -> tuple[np.ndarray, np.ndarray]:
        return hash_ids(self.log.request_ids, self.seed), hash_ids(self.log.item_ids, self.seed + 1)

    def tie(self, requests: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The seeded hash that orders equal scores: uint64, aligned with its arguments."""
        of_request, of_item = self._hashes
        return mix(of_request[requests] + of_item[items])

    @cached_property
    def fold(self) -> np.ndarray:
        """The fold of every request, the same for every stage: int64 (n_requests,), 0 to folds - 1.

        A user's requests are in one fold (a session's, where the log does not know its users or has
        fewer users than folds). Users are dealt in a seeded order, each to the fold with the fewest
        requests of W2.
        """
        log = self.log
        learnt = log.requests_in("W2")
        owners = [*([log.user] if log.has("users") else []), log.session, np.arange(len(log.t))]
        enough = [owner for owner in owners if len(np.unique(owner[learnt])) >= self.folds]
        return deal(enough[0] if enough else owners[-1], learnt, self.folds, self.seed)

    @cached_property
    def truth(self) -> pl.DataFrame:
        """Truth of every request of the log under the recipe's label: request, item, quantity,
        money.
        """
        return self.log.truth(self.label)


def as_typed(value: Any) -> str:
    """A dataclass value as one would type it: fields at their default are left out."""
    parts = []
    for f in fields(value):
        current = getattr(value, f.name)
        if not f.init or (current == f.default and not f.metadata.get("always")):
            continue
        parts.append(f"{f.name}={current!r}" if not f.metadata.get("positional") else repr(current))
    return f"{type(value).__name__}({', '.join(parts)})"


class Typed:
    """Prints as typed."""

    def __repr__(self) -> str:
        return as_typed(self)


def positional(default: Any = None) -> Any:
    """A field that prints without its name."""
    return (
        field(metadata={"positional": True, "always": True})
        if default is None
        else field(default=default, metadata={"positional": True})
    )


class Stage(Typed):
    """An immutable value: its fields are its config. Frame in, frame out, at most `k` rows a
    request.

    A subclass is a frozen dataclass with fields `k` and `name`, and `fit(scene, upstream)` that
    returns a `Fitted`.
    """

    k: int
    name: str
    needs: ClassVar[tuple[str, ...]] = (REQUEST, ITEM, SCORE, RANK, CHANNEL)
    # windows whose outcomes the stage itself holds counts of
    counts_in: ClassVar[tuple[str, ...]] = ()
    # from the requests of W2, behind its upstream; False where a fit looks at none of them
    learns: ClassVar[bool] = True

    def fit(self, scene: Scene, upstream: FittedFunnel | None) -> Fitted:
        """Learn what there is to learn; `upstream` is the fitted funnel before this stage (None for
        recall).
        """
        raise NotImplementedError

    def load(self, folder: Path, scene: Scene) -> Fitted:
        """The inverse of `Fitted.save`. A stage that learns nothing is simply fitted again."""
        return self.fit(scene, None)

    def embedders(self) -> tuple[str, ...]:
        """Names of the embedders that the stage reads."""
        return ()

    def __rshift__(self, other: Stage | Funnel) -> Funnel:
        return Funnel((self,)) >> other


class Fitted:
    """A stage that is ready to run."""

    stage: Stage
    scene: Scene

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        """Scores of arbitrary (request, item) rows: float32 (n_rows,), higher is better."""
        raise NotImplementedError

    def outputs(self, frame: pl.DataFrame) -> dict[str, np.ndarray]:
        """`score` of every row, and what else a later stage may read as a column `<stage>.<name>`,
        each (n_rows,).

        `keep` (bool) is no column: rows without it are thrown out before ranks are given.
        """
        return {SCORE: self.score(frame)}

    def probability(self, score: np.ndarray) -> np.ndarray | None:
        """Calibrated probabilities of the label for scores, where the stage has them."""
        return None

    def why(self, frame: pl.DataFrame) -> list[str]:
        """One sentence a row: what made the score."""
        return [""] * frame.height

    def save(self, folder: Path) -> None:
        """Write what was learnt into an existing folder; a stage that learnt nothing writes
        nothing.
        """


class Retriever(Fitted):
    """The first stage: it proposes candidates for requests."""

    channels: tuple[str, ...]

    def propose(self, requests: np.ndarray) -> pl.DataFrame:
        """Candidates: request, item, score, at most `k` a request."""
        raise NotImplementedError

    def retrieve(self, requests: np.ndarray, forced: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Candidates with their `channel` bits, and the forced rows with `score`; what both hold is
        aligned by `rank_rows`.
        """
        slate = self.propose(requests).with_columns(pl.lit(1, dtype=pl.UInt32).alias(CHANNEL))
        return slate, forced.with_columns(pl.Series(SCORE, self.score(forced), dtype=pl.Float32))

    def exact(self, requests: np.ndarray) -> pl.DataFrame | None:
        """What an exact search would have proposed, where the index is approximate: request, item.
        """
        return None


@dataclass(frozen=True)
class Funnel:
    """Stages chained with `>>`; several channels of recall are one stage, `Join`. Prints as you
    would type it.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for stage in (part for whole in self.stages for part in (whole, *getattr(whole, "channels", ()))):
            if not isinstance(stage, Stage):
                raise KarmafunnelError(f"funnel: needs stages such as Popular(k=800), found {quoted(stage)}")
            needs(stage, "k")
            check_name(type(stage).__name__, "name", stage.name)
        names = [s.name for s in self.stages]
        if len(set(names)) < len(names):
            raise KarmafunnelError(f"funnel: needs stages of different names, found {names}; give one a name=")

    def __rshift__(self, other: Stage | Funnel) -> Funnel:
        return Funnel(self.stages + (other.stages if isinstance(other, Funnel) else (other,)))

    def __repr__(self) -> str:
        return " >> ".join(map(repr, self.stages))

    def without(self, *names: str) -> Funnel:
        """The funnel with stages left out by name."""
        return self.replace(**{name: None for name in names})

    def replace(self, **stages: Stage | None) -> Funnel:
        """The funnel with stages replaced (or, by None, left out) by name; raises KarmafunnelError
        for an unknown one.
        """
        if unknown := set(stages) - {s.name for s in self.stages}:
            raise KarmafunnelError(f"funnel: no stage {sorted(unknown)}; it has {[s.name for s in self.stages]}")
        kept = [stages.get(s.name, s) if s.name in stages else s for s in self.stages]
        return Funnel(tuple(s for s in kept if s is not None))

    def fit(self, scene: Scene, cache_folder: Path | None = None) -> FittedFunnel:
        """Fit every stage on what its upstream really passes to it; fitted stages are kept in
        `cache_folder` by content.
        """
        if not self.stages:
            raise KarmafunnelError("funnel: needs a recall stage, found no stage")
        fits = Fits(self, scene, cache_folder)
        start = time.perf_counter()
        fitted = fits.upto(len(self.stages))
        if fits.out_of_fold:
            scene.progress(
                f"out of fold: {len(fits.out_of_fold)} fits more, {sum(fits.out_of_fold):.1f} s of the "
                f"{time.perf_counter() - start:.1f} s that the stages took"
            )
        return fitted


class Fits:
    """The fits of one funnel: every stage on all users and, where a later stage learns from what it
    says, without each fold of users.

    What a model says of rows that it was fitted on is better than what it says of others. A stage
    that learned from it would trust it too much (Wolpert 1992, "Stacked generalization", Neural
    Networks 5). So the rows of a fold pass through models that were fitted, and stopped, without
    that fold. The folds are the same for all stages: folds + 1 fits a stage. Fits are kept by
    content.
    """

    def __init__(self, funnel: Funnel, scene: Scene, cache_folder: Path | None):
        self.funnel, self.scene, self.cache_folder = funnel, scene, cache_folder
        values = {name: getattr(found, "value", None) for name, found in scene.embeddings.items()}
        self.keys = prefix_keys(funnel, values, scene)
        self.ready: dict[str, Fitted] = {}
        self.out_of_fold: list[float] = []  # seconds of the fits without a fold

    def learnt(self, n: int) -> bool:
        """Whether one of the first `n` stages learns from requests that a later stage learns from;
        recall never does.
        """
        return any(stage.learns for stage in self.funnel.stages[1:n])

    def key(self, i: int, fold: int | None) -> str:
        """The key of what the first stages up to `i` pass on, fitted without a fold: the whole's
        where none of them learns.
        """
        return self.keys[i] if fold is None or not self.learnt(i + 1) else without_fold(self.keys[i], fold)

    def upto(self, n: int, fold: int | None = None) -> FittedFunnel:
        """The first `n` stages, fitted without a fold of users (None: on all)."""
        stages = tuple(self.stage(i, fold) for i in range(n))
        return FittedFunnel(self.scene, stages, tuple(self.key(i, fold) for i in range(n)), self if fold is None else None)

    def stage(self, i: int, fold: int | None = None, upstream: FittedFunnel | None = None) -> Fitted:
        """Stage `i`, fitted without a fold of users (None: on all), behind `upstream` where that is
        at hand.

        One that does not learn is the same whichever fold is left out.
        """
        stage, scene = self.funnel.stages[i], self.scene
        fold = fold if i and stage.learns else None
        key = self.key(i, fold)
        if key not in self.ready:
            self.ready[key] = self._kept(stage, key) or self._fit(i, fold, upstream)
            if isinstance(self.ready[key], Retriever) != (i == 0):
                raise KarmafunnelError(
                    f"funnel: needs one recall stage, the first (`Join` puts channels together); found {stage!r} at place {i + 1}"
                )
            if scene.memory.on:
                scene.memory.stages[key] = self.ready[key]
        return self.ready[key]

    def _folder(self, stage: Stage, key: str) -> Path | None:
        return self.cache_folder / f"{stage.name}-{key}" if self.cache_folder else None

    def _kept(self, stage: Stage, key: str) -> Fitted | None:
        """A stage that was fitted before: for another funnel of this process, or in the cache."""
        if key in self.scene.memory.stages:
            return self.scene.memory.stages[key]
        folder = self._folder(stage, key)
        if folder is None or not intact(folder):
            return None
        self.scene.progress(f"{stage.name}: fitted before, from {folder.name}")
        return stage.load(folder, self.scene)

    def _fit(self, i: int, fold: int | None, upstream: FittedFunnel | None) -> Fitted:
        """Fit a stage; with the fit on all users those without a fold that a later stage will need:
        they learn from the same rows.
        """
        upstream = upstream or (self.upto(i) if i else None)
        made = self._fit_one(i, fold, upstream)
        if fold is None and i and self.funnel.stages[i].learns and any(later.learns for later in self.funnel.stages[i + 1 :]):
            for one in range(self.scene.folds):
                self.stage(i, one, upstream)
        return made

    def _fit_one(self, i: int, fold: int | None, upstream: FittedFunnel | None) -> Fitted:
        stage, scene = self.funnel.stages[i], self.scene
        start = time.perf_counter()
        less = "" if fold is None else f" without fold {fold + 1} of {scene.folds}"
        scene.progress(f"{stage.name}: fitting {type(stage).__name__}{less}")
        made = stage.fit(scene, upstream if upstream is None or fold is None else upstream.without(fold))
        if folder := self._folder(stage, self.key(i, fold)):
            with atomic_folder(folder, sealed=True, first=True) as temporary:
                made.save(temporary)
                write_text(temporary / "stage.txt", f"{Funnel(self.funnel.stages[: i + 1])!r}{less}\n")
        if fold is not None:
            self.out_of_fold.append(time.perf_counter() - start)
        return made


def check_windows(stages: Sequence[Stage], scene: Scene, windows: Sequence[str], doing: str) -> None:
    """Raises KarmafunnelError where a stage would learn from rows (or score rows) of a window that
    what it reads was fitted on.
    """
    wanted = {w for name in windows for w in (("W2a", "W2b") if name == "W2" else (name,))}
    for stage in stages:
        read = {f"embedder {n!r}": getattr(scene.embeddings.get(n), "fitted_on", ()) for n in stage.embedders()}
        read |= {type(part).__name__: part.counts_in for part in (stage, *getattr(stage, "channels", ()))}
        for what, fitted_on in read.items():
            if seen := sorted(wanted & set(fitted_on)):
                raise KarmafunnelError(
                    f"{stage.name} ({type(stage).__name__}): cannot {doing} {', '.join(seen)}, on which {what} was fitted: "
                    f"needs windows outside {list(fitted_on)}, found {list(windows)}"
                )


def prefix_keys(funnel: Funnel, values: Mapping[str, Any], scene: Scene) -> list[str]:
    """A key for every beginning of a funnel, by the content of its stages and of the embedders (by
    name) that they read.
    """
    keys = []
    for i in range(len(funnel.stages)):
        prefix = Funnel(funnel.stages[: i + 1])
        names = sorted({name for stage in prefix.stages for name in stage.embedders()})
        read = [f"{name}={values.get(name)!r}" for name in names]
        code = code_of(*prefix.stages, *(values.get(name) for name in names), by=(__name__,))
        keys.append(content_key(code, repr(prefix), read, scene.log.checksum, scene.label, *scene.circumstances))
    return keys


def training_keys(funnel: Funnel, values: Mapping[str, Any], scene: Scene) -> set[str]:
    """The keys of a funnel's beginnings that requests to learn from pass through: those on all
    users and those without a fold.
    """
    keys = prefix_keys(funnel, values, scene)
    return {*keys, *(without_fold(key, fold) for key in keys for fold in range(scene.folds))}


def without_fold(key: str, fold: int) -> str:
    """The key of a beginning of a funnel that was fitted without a fold of users."""
    return f"{key}.{fold}"


def embedder_folder(value: Embedder, scene: Scene) -> str:
    """The name of the cache folder of a fitted embedder."""
    return f"embedder-{content_key(code_of(value), repr(value), scene.log.checksum, *scene.circumstances)}"


def fit_embedders(embedders: Mapping[str, Embedder], scene: Scene, cache_folder: Path | None) -> dict[str, Embedding]:
    """Fit the embedders on W1, each kept by content."""
    fitted = {}
    for name, value in embedders.items():
        key = embedder_folder(value, scene)
        folder = cache_folder / key if cache_folder else None
        if key in scene.memory.embeddings:
            fitted[name] = scene.memory.embeddings[key]
        elif folder and intact(folder):
            scene.progress(f"embedder {name}: fitted before, from {folder.name}")
            fitted[name] = value.load(folder, scene.log)
        else:
            scene.progress(f"embedder {name}: fitting {value!r}")
            check_fits(f"embedder {name}", {f"vectors of {scene.log.n_items:,} items": 12.0 * scene.log.n_items * getattr(value, "dim", 1)})
            start = time.perf_counter()
            fitted[name] = value.fit(scene.log, seed=scene.seed, progress=scene.detail, device=scene.device, cache=cache_folder)
            fitted[name].facts.setdefault("seconds", round(time.perf_counter() - start, 1))
            if folder:
                with atomic_folder(folder, sealed=True, first=True) as temporary:
                    fitted[name].write_into(temporary)
        if scene.memory.on:
            scene.memory.embeddings[key] = fitted[name]
    return fitted


@dataclass
class Step:
    """What one stage did to a chunk: its slate, the forced rows with score / rank / wins, sizes and
    seconds.
    """

    stage: Stage
    slate: pl.DataFrame  # request item score rank channel, rank <= k
    forced: pl.DataFrame  # request item truth + score rank wins kept
    rows_in: np.ndarray  # (n_requests,) rows scored
    rows_out: np.ndarray  # (n_requests,)
    seconds: float
    exact: pl.DataFrame | None = None
    # seconds of the vectors and features it read, not in `seconds`
    vectors: dict[tuple[Any, ...], float] = field(default_factory=dict)
    shared: bool = False  # another funnel that begins alike had run it
    # seconds that passed here: less than `seconds` where others had made what it read
    spent: float = 0.0


@dataclass(frozen=True)
class State:
    """What a stage hands to the next: a chunk's requests (ascending), their candidates, and the
    forced rows beside them.
    """

    requests: np.ndarray
    slate: pl.DataFrame
    forced: pl.DataFrame
    depth: int = 0  # stages that made it
    # what the last of them scored, as long as that is kept
    before: weakref.ref[Scored] | None = None
    at: np.ndarray | None = None  # where the rows of slate and forced stood there

    @classmethod
    def start(cls, requests: np.ndarray, forced: pl.DataFrame | None = None) -> State:
        """Before recall: requests alone."""
        requests = np.asarray(requests, dtype=np.int64)
        forced = no_rows() if forced is None else forced.sort(REQUEST, maintain_order=True)
        return cls(requests, rows_frame(request=requests), forced)

    @property
    def digest(self) -> str:
        """Hash of the requests and the forced rows."""
        found = hashlib.blake2b(self.requests.tobytes(), digest_size=16)
        for column in self.forced:
            found.update(column.name.encode() + column.to_numpy().tobytes())
        return found.hexdigest()


class Scored:
    """The rows that a stage scores, and what was worked out about them: for the stages after it,
    and for funnels that begin alike.
    """

    def __init__(self, state: State):
        self.state, self.frame = state, with_forced(state.slate, state.forced)
        self.kept: dict[tuple[Any, ...], tuple[np.ndarray, dict[tuple[Any, ...], float]]] = {}
        self.bytes = 0

    def once(self, memory: Memory, what: tuple[Any, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make` gives of these rows, made once for all funnels as long as there is room for
        it.
        """
        place = (self.state.depth, *what)
        if place in self.kept:
            made, used = self.kept[place]
            memory.used |= used
            return made
        made, used = memory.clocked(place, make)
        if memory.room(made.nbytes):
            self.kept[place] = made, used
            self.bytes += made.nbytes
        return made

    def earlier(self, memory: Memory, what: tuple[Any, ...]) -> np.ndarray | None:
        """The same of these rows from an earlier stage of this funnel, (n_rows, ...), where one has
        worked it out.

        Not from what another funnel asked for: each is charged, and gives the same bytes, as if it
        ran alone.
        """
        before = self.state.before() if self.state.before else None
        if before is None or self.state.at is None:
            return None
        place, found = (before.state.depth, *what), None
        if place in before.kept and place in memory.read:
            found, used = before.kept[place]
            memory.used |= used
        else:
            found = before.earlier(memory, what)
        # features lie column by column
        return None if found is None else found.T.take(self.state.at, axis=-1).T


def advance(fitted: Fitted, state: State, exact: bool = False) -> tuple[Step, State]:
    """One stage: a pure function of what it is handed. With `exact`, an approximate recall also
    says what an exact search finds.
    """
    stage, start, scene, requests = fitted.stage, time.perf_counter(), fitted.scene, state.requests
    memory = scene.memory
    memory.used, memory.at_work, before = {}, None, memory.spent
    handed = None  # rows handed to the stage, where it threw some out
    if isinstance(fitted, Retriever):
        rows, forced = fitted.retrieve(requests, state.forced)
        keep = None
    else:
        check_columns(stage, state.slate)
        memory.at_work = memory.scored(state)
        made = fitted.outputs(memory.at_work.frame)
        keep = made.pop("keep", None)
        columns = [
            pl.Series(name if name == SCORE else f"{stage.name}.{name}", np.asarray(x, dtype=np.float32))
            for name, x in made.items()
        ]
        n = state.slate.height
        rows = state.slate.with_columns([*(x[:n] for x in columns), pl.Series(PLACE, np.arange(n))])
        forced = state.forced.with_columns(x[n:] for x in columns)
        if keep is not None:
            handed = np.bincount(np.searchsorted(requests, rows[REQUEST].to_numpy()), minlength=len(requests))
            rows = rows.filter(pl.Series(keep[:n], dtype=pl.Boolean))
    check_scores(stage, rows, scene)
    check_scores(stage, forced, scene)
    ranked, forced, rows_in = rank_rows(rows, forced, requests, scene)
    slate = ranked.filter(pl.col(RANK) <= stage.k)
    if keep is not None:  # what would be thrown out has no place among what is put out
        beyond = pl.when(pl.Series(keep[n:], dtype=pl.Boolean)).then(RANK).otherwise(pl.max_horizontal(RANK, stage.k + 1))
        forced = forced.with_columns(beyond.cast(pl.Int32).alias(RANK))
    forced = forced.with_columns((pl.col(RANK) <= stage.k).alias("kept") & pl.col("wins").is_not_null())
    rows_out = np.bincount(np.searchsorted(requests, slate[REQUEST].to_numpy()), minlength=len(requests))
    spent, used = time.perf_counter() - start, memory.used
    seconds = spent - (memory.spent - before)
    at = None
    if memory.at_work is not None:
        at = np.concatenate([slate.drop_in_place(PLACE).to_numpy(), np.arange(state.slate.height, memory.at_work.frame.height)])
    oracle = fitted.exact(requests) if exact and isinstance(fitted, Retriever) else None
    step = Step(stage, slate, forced, rows_in if handed is None else handed, rows_out, seconds, oracle, used, spent=spent)
    named = [pl.col(SCORE).alias(f"{stage.name}.score"), pl.col(RANK).alias(f"{stage.name}.rank")]
    place = None if memory.at_work is None else weakref.ref(memory.at_work)
    return step, State(requests, slate.with_columns(named), forced.with_columns(named), state.depth + 1, place, at)


@dataclass(frozen=True)
class FittedFunnel:
    """A funnel that is ready to run."""

    scene: Scene
    stages: tuple[Fitted, ...]
    keys: tuple[str, ...] = ()  # of its beginnings, by content; without them nothing is shared
    # those that it is of; without them nothing can learn from it
    fits: Fits | None = field(default=None, repr=False, compare=False)
    left_out: int | None = None  # fold of users from which nothing is to be learnt
    # rows to learn from, for all fits of a stage
    tables: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def funnel(self) -> Funnel:
        return Funnel(tuple(s.stage for s in self.stages))

    def without(self, fold: int | None) -> FittedFunnel:
        """The same, to learn from without a fold of users (None: from all)."""
        return replace(self, left_out=fold)

    def out_of_fold(self, requests: np.ndarray) -> list[tuple[FittedFunnel, np.ndarray]]:
        """Requests to learn from, fold by fold, each fold with a funnel whose models did not see
        its users.

        Raises KarmafunnelError where a stage learned and its fits without a fold are not known.
        """
        n, fold = len(self.stages), self.scene.fold[requests]
        learnt = any(ready.stage.learns for ready in self.stages[1:])
        if learnt and self.fits is None:
            raise KarmafunnelError(
                f"funnel: to learn behind {self.stages[-1].stage.name} it needs to be fitted by Funnel.fit, found one put together by hand"
            )
        parts = [(k, requests[fold == k]) for k in range(self.scene.folds) if k != self.left_out]
        return [(self.fits.upto(n, k) if learnt and self.fits else self, part) for k, part in parts if len(part)]

    def taught_by(self, stage: Stage, fold: int) -> Fitted:
        """A teacher of the stage that learns behind this funnel: fitted behind it, too, without a
        fold of users.
        """
        if self.fits is None:
            return stage.fit(self.scene, self.without(fold))
        fits = Fits(self.funnel >> stage, self.scene, self.fits.cache_folder)
        fits.ready, fits.out_of_fold = self.fits.ready, self.fits.out_of_fold
        return fits.stage(len(self.stages), fold, upstream=replace(self, left_out=None))

    def run(self, requests: np.ndarray, forced: pl.DataFrame | None = None, exact: bool = False) -> list[Step]:
        """Pass a chunk of requests (row numbers, ascending) through every stage.

        `forced` rows (request, item, truth) are scored by every stage and given the rank they have
        or would have, but are never passed on. With `exact`, an approximate recall also says what
        an exact search would have found.
        """
        steps: list[Step] = []
        state, memory = State.start(requests, forced), self.scene.memory
        read = memory.read = dict[tuple[Any, ...], float]()
        start = state.digest, exact
        for i, fitted in enumerate(self.stages):
            key = self.keys[i] if self.keys else ""
            kept = memory.get(key, start)
            memory.begun_alike = memory.on and i > 0 and bool(self.keys) and self.keys[i - 1] in (memory.wanted or ())
            made = advance(fitted, state, exact) if kept is None else kept
            if key and kept is None:
                memory.put(key, start, made)
            step, state = made
            # Vectors and features are charged to the first stage of this funnel that reads them, as
            # if it ran alone.
            seconds = step.seconds + sum(s for place, s in step.vectors.items() if place not in read)
            read |= step.vectors
            steps.append(replace(step, seconds=seconds, shared=kept is not None, spent=0.0 if kept else step.spent))
        return steps

    def explain(self, request_id: str, item_id: str | None = None, top: int = 10) -> pl.DataFrame:
        """Stage by stage, why items are where they are: one row a (stage, item).

        Columns: stage, item_id, title, rank, of (rows scored), kept, score, needed (the score of
        the last kept), channel, why. Items: `item_id`, else the truth and the `top` of the last
        stage. Raises KarmafunnelError on unknown ids.
        """
        log = self.scene.log
        request = _row_of(log.request_ids, request_id, "request")
        wanted = np.array([_row_of(log.item_ids, item_id, "item")]) if item_id else None
        requests = np.array([request])
        if wanted is None:
            best = self.run(requests)[-1].slate.sort(RANK).head(top)[ITEM].to_numpy()
            truth = self.scene.truth.filter(pl.col(REQUEST) == request)[ITEM].to_numpy()
            wanted = np.unique(np.concatenate([truth, best]))
        forced = pl.DataFrame({REQUEST: np.full(len(wanted), request), ITEM: wanted.astype(np.int32), "truth": False})
        table = []
        previous: pl.DataFrame | None = None
        for fitted, step in zip(self.stages, self.run(requests, forced), strict=True):
            # with the candidates, which ranks and z-scores are of
            before = step.forced if previous is None else previous
            needed = step.slate[SCORE].min() if step.slate.height >= step.stage.k else None
            names = self.stages[0].channels  # type: ignore[attr-defined]
            for row, why in zip(step.forced.iter_rows(named=True), fitted.why(before)[before.height - step.forced.height :], strict=True):
                found = [name for bit, name in enumerate(names) if row[CHANNEL] >> bit & 1]
                table.append(
                    {
                        "stage": step.stage.name, "item_id": log.item_ids[row[ITEM]], "title": log.items["title"][row[ITEM]],
                        "rank": row[RANK], "of": int(step.rows_in[0]), "kept": row["kept"], "score": row[SCORE],
                        "needed": needed, "channel": "+".join(found), "why": why,
                    }
                )  # fmt: skip
            keep = [pl.col(SCORE).alias(f"{step.stage.name}.score"), pl.col(RANK).alias(f"{step.stage.name}.rank")]
            previous = with_forced(step.slate.with_columns(keep), step.forced.with_columns(keep))
        return pl.DataFrame(table, infer_schema_length=None)


def _row_of(ids: np.ndarray, wanted: str | None, what: str) -> int:
    at = np.flatnonzero(ids == wanted)
    if len(at) == 0:
        raise KarmafunnelError(f"explain: no {what} {wanted!r} in the log; there are {len(ids)}, e.g. {ids[0]!r}")
    return int(at[0])


def check_columns(stage: Stage, frame: pl.DataFrame) -> None:
    if missing := [c for c in stage.needs if c not in frame.columns]:
        raise KarmafunnelError(
            f"{stage.name} ({type(stage).__name__}): needs columns {missing}, its upstream passes {frame.columns}"
        )


def check_scores(stage: Stage, frame: pl.DataFrame, scene: Scene) -> None:
    bad = np.flatnonzero(~np.isfinite(frame[SCORE].to_numpy()))
    if len(bad):
        row = frame.row(int(bad[0]), named=True)
        raise KarmafunnelError(
            f"{stage.name} ({type(stage).__name__}): needs finite scores, found {row[SCORE]} for request "
            f"{scene.log.request_ids[row[REQUEST]]!r}, item {scene.log.item_ids[row[ITEM]]!r} ({len(bad)} such rows)"
        )


def rank_rows(
    rows: pl.DataFrame, forced: pl.DataFrame, requests: np.ndarray, scene: Scene
) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray]:
    """Rank scored rows within each request, and place the forced rows among them.

    Returns the rows in rank order, the forced rows (in the order given) with `rank` and `wins`
    (non-truth rows below, ties one half; null where the item was not among the rows), and how many
    rows each request has.
    """
    request = np.concatenate([rows[REQUEST].to_numpy(), forced[REQUEST].to_numpy()])
    item = np.concatenate([rows[ITEM].to_numpy(), forced[ITEM].to_numpy()])
    score = np.concatenate([rows[SCORE].to_numpy(), forced[SCORE].to_numpy()]).astype(np.float32)
    there, group = group_rows(request)
    group = np.searchsorted(requests, there)[group]
    n = rows.height
    # A forced row that is a candidate, too, has the candidate's very score: kernels round
    # differently in other batches.
    pair = request.astype(np.int64) * scene.log.n_items + item
    by_pair = np.argsort(pair[:n]) if forced.height else np.empty(0, np.int64)
    twin = (
        by_pair[np.minimum(np.searchsorted(pair[:n][by_pair], pair[n:]), n - 1)]
        if n and forced.height
        else np.zeros(forced.height, int)
    )
    present = pair[twin] == pair[n:] if n else np.zeros(forced.height, bool)
    score[n:] = np.where(present, score[twin], score[n:])
    forced = forced.with_columns(pl.Series(SCORE, score[n:]))
    if CHANNEL in rows.columns:  # what found it; nothing, where nothing did
        found = rows[CHANNEL].to_numpy()[twin] if n else np.zeros(forced.height, np.uint32)
        forced = forced.with_columns(pl.Series(CHANNEL, np.where(present, found, 0).astype(np.uint32)))
    # A forced row goes just before its twin among the rows: "how many rows stand before me" is then
    # its rank less one.
    tie = scene.tie(request, item) & ~np.uint64(1)
    tie[:n] |= np.uint64(1)
    sequence = order(group, score, tie)
    is_row = sequence < n
    before: np.ndarray = np.cumsum(is_row) - is_row
    sizes = np.bincount(group[:n], minlength=len(requests))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rank = np.empty(len(sequence), dtype=np.int32)
    rank[sequence] = before - starts[group[sequence]] + 1
    kept = sequence[is_row]
    ranked = rows[kept].with_columns(pl.Series(RANK, rank[kept]))
    if forced.height == 0:
        return ranked, forced.with_columns(pl.Series(RANK, [], pl.Int32), pl.Series("wins", [], pl.Float64)), sizes

    key = (group.astype(np.uint64) << np.uint64(32)) | descending(score)
    mine, wins = key[n:], np.zeros(forced.height)
    truth = forced["truth"].to_numpy() & present
    for among, sign in ((np.sort(key[:n]), 1.0), (np.sort(mine[truth]), -1.0)):
        end = np.searchsorted(among, (group[n:].astype(np.uint64) + np.uint64(1)) << np.uint64(32))
        left, right = np.searchsorted(among, mine), np.searchsorted(among, mine, side="right")
        wins += sign * ((end - right) + 0.5 * (right - left))
    # A truth item ties with itself in both counts, and is gone; a non-truth row that is present
    # ties with itself in the first.
    wins -= np.where(present & ~truth, 0.5, 0.0)
    forced = forced.with_columns(
        pl.Series(RANK, rank[n:]), pl.when(pl.Series(present)).then(pl.Series(wins)).otherwise(None).alias("wins")
    )
    return ranked, forced, sizes
