"""Fine-tuning: training examples, multi-task loss, and a resumable training loop.

`L = action * L_act + gen * L_gen + rec * L_rec + see * L_see` [K: action loss plus weighted
decoding losses]. The decoders live here and are dropped when training ends, except those that are
kept to decode user embeddings into words.
"""

from __future__ import annotations

import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ...errors import KarmafunnelError
from ...files import write_json
from ...keys import code_of, content_key
from ...log import Log
from ..diagnostics import attention_figures, effective_rank, isotropy, participation_ratio, unit
from ..embedders import Embedder, Lasting, Progress, TfidfSVDEmbedding, silent
from ..training import Snapshot, copy_weights, seeded
from .action import ActionBatch, ActionLoss, ActionResult, InBatch, Pairs
from .backbone import LM, TextModel, pool
from .config import KarmaConfig
from .frozen import TextEmbedding
from .losses import (
    Autoregressive,
    BagOfWords,
    Masked,
    each_text,
    lm_loss,
    text_logits,
)
from .network import Network
from .processes import all_present, here, send
from .sequences import (
    Batch,
    Trees,
    distinct,
    lay_out,
    request_texts,
    serving_trees,
    training_trees,
)
from .visual_losses import VectorDecoder

WATCHED = 1024  # vectors of a step whose shape is told
PROBED = 32  # requests that a watched fit is asked about
# interests of fewer directions (effective rank), and of less than a quarter of their dimensions,
# have collapsed: those of the pairwise loss on Office have 6 to 10 at the rate that suits it, 4 at
# one that is three times as high (LOG.md)
COLLAPSED = 5.0
RECENT = 4  # times their dimensions: how many of the last ones are looked at
WARM_UP = 50  # steps until the learning rate is reached
SAVE_EVERY = 60.0  # seconds between two checkpoints within an epoch
WHOLE = 100_000  # items that a softmax over the catalogue reads at most
TEXTS = 8  # texts that are held in memory in place of a piece
TOTAL, GRADIENT, ALONE = "total", "length, gradient", "pairs without negatives"  # of a step
RANK, PERPLEXITY = "effective rank, interests", "perplexity given history"
UNREAD = 16  # steps of a GPU whose losses are read together: each reading waits for the GPU
COUNTERS = (
    "step",
    "epoch",
    "place",
    "seconds",
    "curve",
    "running",
    "pairs",
    "alone",
    "watched",
    "collapse",
)  # of a `Trainer`


Beside = tuple[TfidfSVDEmbedding | TextEmbedding, ...]

# -- what is read ----------------------------------------------------------------------------------


def asked_words(beside: Beside, log: Log, requests: np.ndarray) -> np.ndarray:
    """What the embedders `beside` say of query and filters, side by side: (n, d), zeros where one
    knows none of the words.
    """
    asked, inverse = distinct(request_texts(log, requests))
    return np.concatenate([x.embed(asked) for x in beside], axis=1)[inverse]


def word_ids(model: TextModel, texts: list[str], most: int) -> list[np.ndarray]:
    """`model.words` of texts that often repeat, each read once."""
    asked, inverse = distinct(texts)
    words = model.words(asked, most)
    return [words[i] for i in inverse]


@dataclass(frozen=True)
class Features:
    """Frozen item features of a log: text (n, d_t) of about length 1, visual (n, d_v) or None;
    zeros where an item has none.
    """

    text: np.ndarray
    visual: np.ndarray | None
    seen: np.ndarray | None  # (n,) bool: has an image
    words: np.ndarray  # (n, T) int64 token ids of the items' texts
    n_words: np.ndarray  # (n,)
    # mean (d_t,) and map (d_t, d_t) that put the LM's text vectors to scale
    norm: tuple[np.ndarray, np.ndarray]
    beside: Beside = ()  # whose vectors are the last columns of text

    def digest(self) -> str:
        """Hash of the features, so that other LM weights or images give another fit."""
        parts = [self.text.tobytes(), b"" if self.visual is None else self.visual.tobytes()]
        return hashlib.sha256(b"".join(parts)).hexdigest()


def whitening(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and map (d, d) that give the rows of x no mean, no correlation and length 1 on
    average (PCA whitening).
    """
    mean = x.mean(axis=0, dtype=np.float64) if len(x) else np.zeros(x.shape[1])
    _, s, vt = np.linalg.svd(x - mean, full_matrices=False)
    # rows that are all the same have no directions
    if len(x) < 2 or s[0] <= 1e-6 * np.linalg.norm(x):
        even = np.eye(x.shape[1]) / math.sqrt(x.shape[1])
        return mean.astype(np.float32), even.astype(np.float32)
    # what is next to nothing is not blown up
    deviation = np.maximum(s / math.sqrt(len(x)), 1e-2 * s[0] / math.sqrt(len(x)))
    turn = (vt.T / deviation) @ vt / math.sqrt(len(s))  # turned back (ZCA): the same axes as before
    return mean.astype(np.float32), turn.astype(np.float32)


class Settings(Protocol):
    """What `Examples` and a `Trainer` read of a value's fields, which `KarmaConfig` explains."""

    @property
    def length(self) -> int: ...
    @property
    def query_words(self) -> int: ...
    @property
    def loss(self) -> ActionLoss: ...
    @property
    def share(self) -> float: ...
    @property
    def rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def average(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def watch(self) -> int: ...


@dataclass(frozen=True)
class Examples:
    """Training requests of W1 as branches of trees, with their targets and their exposed,
    non-clicked items.
    """

    trees: Trees  # its items are numbers among the candidates
    # (m,) items that are a target in W1, ascending: all that is trained against [protocol.md,
    # Splits]
    candidates: np.ndarray
    first_pair: np.ndarray  # (B + 1,)
    target: np.ndarray  # (P,) numbers among the candidates
    weight: np.ndarray  # (P,) float32, 1 a branch in all
    hard: np.ndarray  # (B, h) numbers among the candidates, -1 for none
    queries: list[np.ndarray]  # (B,) word ids

    @classmethod
    def of(cls, log: Log, model: TextModel, config: Settings, seed: int) -> Examples:
        """Raises KarmafunnelError where W1 holds neither a click nor a purchase."""
        trees = training_trees(log, config.length)
        if len(trees.request) == 0:
            raise KarmafunnelError(
                f"{config!r}", needs=f"clicks or purchases in W1 of log {log.name}", found="none"
            )
        if config.share < 1:
            trees = some_users(trees, log, config.share, seed)
        number = places_of(trees.request, log.requests.height)
        request, item = (log.events[c].to_numpy().astype(np.int64) for c in ("request", "item"))
        of = number[request]
        keys = np.unique(of[of >= 0] * log.n_items + item[of >= 0])
        branch, item = keys // log.n_items, keys % log.n_items
        candidates, target = np.unique(item, return_inverse=True)
        if len(candidates) > WHOLE and config.loss.whole:
            raise KarmafunnelError(
                f"{config!r}",
                needs=f"loss={InBatch()!r} or another among the batch "
                f"for more than {WHOLE:,} items",
                found=f"{len(candidates):,} items",
            )
        column = places_of(candidates, log.n_items)
        return cls(
            replace(trees, item=column[trees.item]),
            candidates,
            np.searchsorted(branch, np.arange(len(trees.request) + 1)),
            target,
            (1 / np.bincount(branch)[branch]).astype(np.float32),
            in_vain(log, number, column, config.loss.hard, seed),
            word_ids(model, request_texts(log, trees.request), config.query_words),
        )

    def shares(self) -> np.ndarray:
        """The share of all pairs whose target each candidate is: (m,)."""
        return np.bincount(self.target, minlength=len(self.candidates)) / len(self.target)

    def pairs(self, branches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of some branches, and the place of each pair's branch among them: (P,), (P,)."""
        count = self.first_pair[branches + 1] - self.first_pair[branches]
        row = np.repeat(np.arange(len(branches)), count)
        before = np.cumsum(count) - count
        first = np.repeat(self.first_pair[branches] - before, count)
        return first + np.arange(count.sum()), row


def places_of(chosen: np.ndarray, n: int) -> np.ndarray:
    """The place of each of n numbers among the `chosen`, -1 for the others: int64 (n,)."""
    out = np.full(n, -1, dtype=np.int64)
    out[chosen] = np.arange(len(chosen))
    return out


def some_users(trees: Trees, log: Log, share: float, seed: int) -> Trees:
    """The trees of a random share of the users: a smaller training set of the same kind."""
    owner = log.user[trees.request]
    users = np.random.default_rng([seed, 3]).permutation(np.unique(owner))
    keep = np.isin(owner, users[: max(1, round(share * len(users)))])
    pieces, piece = np.unique(trees.piece[keep], return_inverse=True)
    return Trees(
        trees.item, trees.action, trees.gap, trees.start[pieces], trees.size[pieces],
        piece, trees.seen[keep], trees.branch_gap[keep], trees.request[keep],
    )  # fmt: skip


def in_vain(log: Log, number: np.ndarray, column: np.ndarray, most: int, seed: int) -> np.ndarray:
    """For each branch at most `most` exposed items that were not chosen [K], drawn by the seed: (B,
    most), -1 for none.
    """
    out = np.full((int(number.max()) + 1, most), -1, dtype=np.int64)
    if most == 0 or not log.has("exposures"):
        return out
    rows = log.rows
    chosen = (rows["clicked"].fill_null(False) | rows["purchased"].fill_null(False)).to_numpy()
    request, item = rows["request"].to_numpy(), rows["item"].to_numpy()
    shown = (
        rows["position"].is_not_null().to_numpy()
        & ~chosen
        & (number[request] >= 0)
        & (column[item] >= 0)
    )
    taken = np.unique(request[chosen] * np.int64(log.n_items) + item[chosen])
    shown &= ~np.isin(request * np.int64(log.n_items) + item, taken)
    at = np.random.default_rng([seed, 4]).permutation(np.flatnonzero(shown))
    at = at[np.argsort(number[request[at]], kind="stable")]
    branch = number[request[at]]
    place = np.arange(len(at)) - np.searchsorted(branch, branch)
    kept = place < most
    out[branch[kept], place[kept]] = column[item[at[kept]]]
    return out


@dataclass(frozen=True, eq=False)
class Probe:
    """What a watched fit is asked about, always the same: at most PROBED of the training requests
    that follow the most items, as they are served, with the texts of their targets.

    `used` (m,): numbers among the candidates, of which the items of `batch` are rows.
    """

    batch: Batch
    used: np.ndarray

    @classmethod
    def of(
        cls, log: Log, lm: LM, config: KarmaConfig, examples: Examples, features: Features
    ) -> Probe:
        branches = np.argsort(-examples.trees.seen, kind="stable")[:PROBED]
        trees = serving_trees(log, examples.trees.request[branches], config.length)
        used, row = np.unique(np.searchsorted(examples.candidates, trees.item), return_inverse=True)
        if not len(used):  # no request follows an item: a row that nothing reads
            used = np.zeros(1, dtype=np.int64)
        told = examples.candidates[examples.target[examples.first_pair[branches]]]
        texts: list[np.ndarray | None] = [
            features.words[item, : features.n_words[item]] for item in told
        ]
        queries = [examples.queries[b] for b in branches]
        trees = replace(trees, item=row)
        batch = lay_out(trees, np.arange(len(branches)), queries, lm.bos, texts)
        return cls(batch.to(lm.device), used)


# -- one step --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Step:
    """What a batch gives: mean losses, `act`, and `gen`, `rec`, `see` where their weight is not 0;
    what the action loss says of its negatives; user embeddings z (R, d) as it reads them, item
    vectors x (m, d) before they are put to length 1.
    """

    losses: dict[str, Tensor]
    action: ActionResult
    z: Tensor
    x: Tensor

    def figures(self) -> dict[str, float]:
        """Diagnostics of the batch by name, those of `models/diagnostics.py` over at most WATCHED
        of its items and of its user embeddings. A rank is at most that number.
        """
        left, masked = int(self.action.left.sum()), int(self.action.masked.sum())
        found = {
            "negatives masked": masked / max(left + masked, 1),
            "pairs without negatives": float((self.action.left == 0).float().mean()),
        }
        both = {}
        for name, x in (("items", self.x), ("interests", self.z)):
            at = torch.linspace(0, len(x) - 1, min(len(x), WATCHED), device=x.device).long()
            both[name] = x[at].float().cpu().numpy()
            found[f"length, {name}"] = float(np.linalg.norm(both[name], axis=1).mean())
        found |= isotropy(both["items"], both["interests"])
        for name, rows in both.items():
            found[f"participation ratio, {name}"] = participation_ratio(unit(rows))
        return found


class Learner(nn.Module, ABC):
    """What a `Trainer` trains: a network with its examples and settings."""

    config: Settings
    examples: Examples

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it is trained."""

    @abstractmethod
    def forward(self, pieces: np.ndarray, rng: np.random.Generator) -> Step:
        """Mean losses over the branches of some pieces; with several processes, each reads its part
        of them, and all have the losses of the whole.
        """

    def total(self, losses: dict[str, Tensor], done: float) -> Tensor:
        """The loss of a step after a share `done` of all steps."""
        return torch.stack(list(losses.values())).sum()

    def rate_of(self, name: str) -> float:
        """The rate that a parameter is trained at."""
        return self.config.rate

    def figures(self) -> dict[str, float]:
        """Diagnostics of the network as it is now, by name."""
        return {}

    def on(self, x: np.ndarray) -> Tensor:
        """An array as a tensor on the network's device."""
        return torch.from_numpy(x).to(self.device)

    def in_parts(
        self, read: Callable[[slice], tuple[Tensor, ...]], bounds: Sequence[np.ndarray], size: int
    ) -> list[Tensor]:
        """What `read` gives for all rows, from this process's share of them, read `size` at a time
        (0: at once), and that of the others.

        Args:
            read: outputs of some rows, a tensor each.
            bounds: for each output, where what belongs to each row begins, and the end: (n + 1,).
        """
        n = len(bounds[0]) - 1
        mine = here.share(n)
        if mine.start == mine.stop:  # fewer rows than processes: it reads one for nothing
            found = [tuple(x[:0] for x in read(slice(0, 1)))]
        else:
            step = size or n
            starts = range(mine.start, mine.stop, step)
            if len(starts) > 1:
                read = partial(checkpoint, read, use_reentrant=False)
            found = [read(slice(i, min(i + step, mine.stop))) for i in starts]
        out = []
        for parts, bound in zip(zip(*found, strict=True), bounds, strict=False):
            own = parts[0] if len(parts) == 1 else torch.cat(parts)
            out.append(here.whole(own, int(bound[mine.start]), int(bound[-1])))
        return out


class Trainee(Learner):
    """The network of KARMA with its decoders: one step's losses by name."""

    config: KarmaConfig

    def __init__(
        self,
        config: KarmaConfig,
        network: Network,
        examples: Examples,
        features: Features,
        seed: int,
        asked: np.ndarray | None = None,
        probe: Probe | None = None,
    ):
        super().__init__()
        self.config, self.network, self.examples = config, network, examples
        self.probe = probe
        self.asked = None if asked is None else self.on(asked)  # of every branch
        if config.trained is not None:
            freeze(network.lm, config.trained, repr(config))
        lm, device = network.lm, network.lm.device
        self.reconstruct: nn.Module | None = None
        if config.rec:
            kinds: dict[str, Callable[[], nn.Module]] = {
                "bow": lambda: BagOfWords(lm, network.dim),
                "masked": lambda: Masked(lm, network.dim),
                "lm": lambda: Autoregressive(lm, network.dim),
            }
            self.reconstruct = kinds[config.decoder]().to(device)
        self.see: VectorDecoder | None = None
        if config.see:
            assert features.visual is not None
            see = config.see_by.decoder(network.dim, features.visual.shape[1], lm.dim)
            self.see = see.to(device)
        items = examples.candidates
        self.words, self.n_words = features.words[items], features.n_words[items]
        # the control "shuffled": every item is told by another item's text, always the same one, so
        # that it is a second task without meaning
        self.tells = np.arange(len(items))
        if config.shuffled:
            self.tells = np.random.default_rng([seed, 5]).permutation(len(items))
        self.text = self.on(features.text[items])
        self.mean, self.turn = map(self.on, features.norm)
        self.visual = None if features.visual is None else self.on(features.visual[items])
        self.seen = None if features.seen is None else self.on(features.seen[items])
        self.check_told()
        parts = [self.text] if self.visual is None else [self.text, self.visual]
        # what makes two items the same one
        self.known = nn.functional.normalize(torch.cat(parts, dim=1), dim=1)
        self.share = self.on(examples.shares())

    def check_told(self) -> None:
        """Raises KarmafunnelError where no target of W1 has what an objective tells: its loss would
        be 0 throughout.
        """
        config = self.config
        words, images = (
            bool((self.n_words > 0).any()),
            self.seen is not None and bool(self.seen.any()),
        )
        for name, told, what in (
            ("gen", words, "text"),
            ("rec", words, "text"),
            ("see", images, "an image"),
        ):
            if getattr(config, name) and not told:
                raise KarmafunnelError(
                    f"{config!r}",
                    what=name,
                    needs=f"items with {what} among the targets of W1",
                    found=f"none of {len(self.n_words):,}",
                )

    @property
    def device(self) -> torch.device:
        return self.network.lm.device

    def forward(self, pieces: np.ndarray, rng: np.random.Generator) -> Step:
        config, network, examples = self.config, self.network, self.examples
        branches, row = examples.trees.branches(pieces)
        pairs, of = examples.pairs(branches)
        target = examples.target[pairs]
        # one target a branch, told in words
        told = self.tells[target[row_sample(of, rng)]]
        drawn = row_sample(row, rng)  # one branch a piece: words cost more than vectors
        texts: list[np.ndarray | None] | None = None
        if config.gen:
            texts = [None] * len(branches)
            for b in drawn:
                texts[b] = self.words[told[b], : self.n_words[told[b]]]
        queries = [examples.queries[b] for b in branches]
        batch = lay_out(examples.trees, pieces, queries, network.lm.bos, texts)

        hard = examples.hard[branches]
        item = batch.item.numpy()
        used = np.arange(len(examples.candidates))
        if not config.loss.whole:
            used = np.unique(np.concatenate([item[item >= 0], target, hard[hard >= 0]]))
        number = places_of(used, len(examples.candidates) + 1)  # the last entry answers -1
        batch = replace(batch, item=torch.from_numpy(number[item])).to(network.lm.device)
        x = self.vectors(used, rng)
        asked = None if self.asked is None else self.asked[self.on(branches)]
        cells = network.cells(batch, x)
        first = np.searchsorted(row, np.arange(len(pieces) + 1))  # branch of each piece

        def read(rows: slice) -> tuple[Tensor, ...]:
            of_rows = slice(int(first[rows.start]), int(first[rows.stop]))
            part = batch.part(rows, of_rows)
            with self.precise():
                hidden = network.lm.hidden(cells[rows], part.mask, part.position)
            z = network.z(hidden, part, x, None if asked is None else asked[of_rows])
            found = [z]
            if asks:
                found.append(network.asking(hidden, part))
            if config.gen:
                found.append(self.nats(hidden, part, drawn[rows] - of_rows.start))
            return tuple(found)

        asks = network.generator is not None or self.see is not None
        each = np.arange(len(pieces) + 1)
        bounds = [first, first, each] if asks else [first, each]
        z, *more = self.in_parts(read, bounds, config.chunk)
        goal = Pairs(self.on(of), self.on(number[target]), self.on(examples.weight[pairs]))
        if network.generator is not None:
            action = self.generator_loss(z, more[0], goal, target, rng)
        else:
            action = config.loss.of(
                ActionBatch(
                    z,
                    network.to_length(x),
                    goal,
                    self.on(number[hard]),
                    network.scale(),
                    self.on(used),
                    self.known,
                    self.share,
                )
            )
        out = {"act": action.total / goal.weight.sum()}
        step = Step(out, action, z.detach(), x.detach())
        z = network.direction(z)
        if config.gen:
            assert batch.text is not None
            out["gen"] = lm_loss(more[-1], batch.text[self.on(drawn)][:, 1:] >= 0)
        if self.reconstruct is not None:
            # a bag of words is one product and takes every branch; the other decoders read a text,
            # one a piece
            rows = np.arange(len(branches)) if config.decoder == "bow" else drawn
            rows = rows[self.n_words[told[rows]] > 0]
            if len(rows):
                out["rec"] = self.reconstruction_loss(z[self.on(rows)], told[rows], rng)
        if self.see is not None:
            out["see"] = self.visual_loss(z, more[0], told, rng)
        return step

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Attention sinks and column entropy of all layers and of each, and the perplexity of the
        targets' texts given the history, over the probe; without dropout and without a draw.
        """
        if self.probe is None:
            return {}
        network, batch = self.network, self.probe.batch
        self.eval()
        x = self.vectors(self.probe.used)
        inputs = network.cells(batch, x), batch.mask, batch.position
        attention, hidden = network.lm.attentions(*inputs), network.lm.hidden(*inputs)
        assert batch.text is not None
        there = batch.kind > 0
        # texts are no cells of a request as it is served
        there.view(-1)[batch.text[batch.text >= 0]] = False
        found = attention_figures(attention, there)
        for i in range(len(attention)):
            each = attention_figures(attention[i : i + 1], there)
            found |= {f"{name}, layer {i + 1}": value for name, value in each.items()}
        logits, words, told = text_logits(network.lm, hidden, batch.text, batch.word)
        count = told.sum(dim=1)
        nats = (each_text(logits, words, told) * count).sum() / count.sum()
        found[PERPLEXITY] = math.exp(min(float(nats), 50.0))
        self.train()
        # a history too short for sinks has no figure of them
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def vectors(self, used: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        """Item vectors of some candidates, a share of their ids left out where there is an `rng`:
        (m, dim).
        """
        at, ids = self.on(used), None
        if len(self.network.ids):
            ids = self.network.ids[at]
            if rng is not None:
                # an item must be known by its text, too
                ids = ids * self.on(rng.random(len(used)) >= self.config.id_dropout)[:, None]
        frozen = self.config.items == "frozen"
        text = self.text[at] if frozen else self.texts_read(used)
        return self.network.mix(text, None if self.visual is None else self.visual[at], ids)

    def precise(self) -> torch.autocast:
        """The precision that the language model multiplies in while it is trained, inside."""
        short = self.training and self.config.precision == "bfloat16"
        return torch.autocast(self.network.lm.device.type, torch.bfloat16, enabled=short)

    def texts_read(self, items: np.ndarray) -> Tensor:
        """`read_text` of some candidates, in parts."""

        def read(rows: slice) -> tuple[Tensor, ...]:
            return (self.read_text(self.words[items[rows]], self.n_words[items[rows]]),)

        return self.in_parts(read, (np.arange(len(items) + 1),), TEXTS * self.config.chunk)[0]

    def nats(self, hidden: Tensor, batch: Batch, drawn: np.ndarray) -> Tensor:
        """Mean loss per token, in nats, of the targets' texts given the history, for each of the
        branches `drawn`.
        """
        assert batch.text is not None
        with self.precise():
            told = text_logits(self.network.lm, hidden, batch.text[self.on(drawn)], batch.word)
        return each_text(*told)

    def reconstruction_loss(self, z: Tensor, told: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Mean loss of the texts `told` (R,) decoded from the user embeddings alone."""
        assert self.reconstruct is not None
        words = self.on(self.words[told])
        place = torch.arange(words.shape[1], device=words.device)
        there = place < self.on(self.n_words[told])[:, None]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        decode, lm = self.reconstruct, self.network.lm

        def read(rows: slice) -> tuple[Tensor, ...]:
            with self.precise():
                return (decode(lm, z[rows], words[rows], there[rows], generator),)

        if isinstance(decode, Masked):  # which words it masks is drawn for all of them
            return read(slice(None))[0].mean()
        return self.in_parts(read, (np.arange(len(told) + 1),), TEXTS * self.config.chunk)[0].mean()

    def generator_loss(
        self, z: Tensor, hidden: Tensor, goal: Pairs, target: np.ndarray, rng: np.random.Generator
    ) -> ActionResult:
        """Error of the vectors told by the generator to the item vectors of targets, which are
        candidates (P,), as they are served.
        """
        network, items = self.network, self.on(target)
        assert network.generator is not None
        ids = network.ids[items] if len(network.ids) else None
        visual = None if self.visual is None else self.visual[items]
        vectors = network.to_length(network.mix(self.text[items], visual, ids)).detach()
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        each = network.generator(z[goal.row], vectors, generator, hidden[goal.row])
        # it has no negatives to lose
        one = torch.ones_like(goal.row)
        return ActionResult((goal.weight * each).sum(), one, torch.zeros_like(one))

    def visual_loss(
        self, z: Tensor, hidden: Tensor, told: np.ndarray, rng: np.random.Generator
    ) -> Tensor:
        """Mean loss of the visual features of the items `told` (R,), of those that have some."""
        assert self.see is not None and self.visual is not None and self.seen is not None
        goal = self.on(told)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        each = self.see(z, self.visual[goal], generator, hidden) * self.seen[goal]
        return each.sum() / self.seen[goal].sum().clamp(min=1)

    def total(self, losses: dict[str, Tensor], done: float) -> Tensor:
        """The weighted sum of the losses after a share `done` of all steps."""
        config = self.config
        now = {"constant": 1.0, "falling": 1.0 - done, "rising": done}[config.schedule]
        weights = {"gen": now * config.gen, "rec": now * config.rec, "see": now * config.see}
        weights["act"] = config.action
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    def decoders(self) -> dict[str, Tensor]:
        """Weights that serving does not need, by name."""
        out: dict[str, Tensor] = {}
        for name, part in (("see", self.see), ("rec", self.reconstruct)):
            if part is not None:
                out |= {f"{name}.{k}": x.detach().clone() for k, x in part.state_dict().items()}
        return out

    def read_text(self, words: np.ndarray, n_words: np.ndarray) -> Tensor:
        """Text vectors from the LM's current weights, scaled as the frozen ones: words (m, T) ->
        (m, d_t).
        """
        lm = self.network.lm
        most = max(int(n_words.max(initial=0)), 1)
        ids = torch.from_numpy(words[:, :most]).to(lm.device)
        there = (
            torch.arange(most, device=lm.device) < torch.from_numpy(n_words).to(lm.device)[:, None]
        )
        with self.precise():
            mean = pool(lm, ids, there)
        return (mean - self.mean) @ self.turn * there[:, :1]


def freeze(model: TextModel, trained: int, who: str) -> None:
    """Leave only the last so many layers of a model to be trained; raises KarmafunnelError where it
    has fewer.
    """
    _, _, layers = model.layers()
    if trained > len(layers):
        raise KarmafunnelError(who, needs=f"{trained} layers to train", found=f"{len(layers)}")
    kept = {id(p) for layer in layers[len(layers) - trained :] for p in layer.parameters()}
    for p in model.model.parameters():
        if id(p) not in kept:
            p.requires_grad_(False)


def row_sample(row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One randomly drawn index of each row number, `row` ascending: (R,) -> (n_rows,)."""
    rows, start, count = np.unique(row, return_index=True, return_counts=True)
    return start + (rng.random(len(rows)) * count).astype(np.int64)


def batch_size(trees: Trees, most: int) -> int:
    """Pieces of a step: at least eight steps an epoch, if there are so many pieces."""
    return max(1, min(most, len(trees.start) // 8))


def pieces_of_epoch(trees: Trees, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of `size` pieces of similar length, in random order: little padding."""
    pieces, size = rng.permutation(len(trees.start)), batch_size(trees, size)
    cells = trees.size + np.bincount(trees.piece, minlength=len(trees.start))
    parts = []
    for start in range(0, len(pieces), 32 * size):
        stretch = pieces[start : start + 32 * size]
        stretch = stretch[np.argsort(cells[stretch], kind="stable")]
        parts += [stretch[i : i + size] for i in range(0, len(stretch), size)]
    return [parts[i] for i in rng.permutation(len(parts))]


# -- the loop --------------------------------------------------------------------------------------


class Trainer:
    """Everything that changes while training, in one file: weights, their moving average, the
    optimiser, the loss curve.

    Randomness of a step is a function of (seed, epoch, step), so going on from a checkpoint repeats
    what an uninterrupted run does, bit for bit on a CPU. The learning rate is constant after a
    warm-up and what is kept is an exponential moving average: so every epoch's average is a
    stopping point of its own, and a fit of more epochs goes on from one of fewer.
    """

    def __init__(self, trainee: Learner, seed: int, folder: Path | None, progress: Progress):
        self.trainee, self.seed, self.folder, self.progress = trainee, seed, folder, progress
        self.config, self.name = trainee.config, type(trainee.config).__name__
        self.named = {name: p for name, p in trainee.named_parameters() if p.requires_grad}
        kinds: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, p in self.named.items():
            kinds.setdefault((trainee.rate_of(name), p.ndim <= 1), []).append(p)
        groups = [
            {
                "params": kinds[rate, flat],
                "weight_decay": 0.0 if flat else self.config.weight_decay,
                "rate": rate,
            }
            for rate, flat in sorted(kinds)
        ]
        self.optimiser = torch.optim.AdamW(
            groups, lr=self.config.rate, betas=(0.9, 0.98), fused=True
        )
        # float32: what bfloat16 can hold of a hundredth of a step is nothing
        self.average = {name: p.detach().float().clone() for name, p in self.named.items()}
        # steps in all, finished epochs, finished steps of this epoch
        self.step = self.epoch = self.place = 0
        self.steps = 1  # of an epoch
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []  # mean losses of each finished epoch
        self.running: dict[str, float] = {}  # their sums in this one
        # pairs of a row and its target in all, and those that masks left without a negative
        self.pairs = self.alone = 0
        self.watched: list[dict[str, float]] = []  # diagnostics of every `watch`-th step
        self.collapse: dict[str, float] = {}  # where it was first found
        self.recent = torch.zeros(0)  # interests of the last steps: (n, d)
        self.model: nn.Module = trainee  # what a step calls
        # losses, gradients and counts of the steps that are not in the counters yet
        self.unread: list[dict[str, Tensor]] = []
        self.at_once = 1 if trainee.device.type == "cpu" else UNREAD

    # -- checkpoints --

    @property
    def done(self) -> float:
        """The share of all steps that is finished."""
        return (self.epoch + self.place / self.steps) / self.config.epochs

    def save(self) -> None:
        """Write weights, averages, optimiser and counters, so that another process can go on."""
        if self.folder is not None:
            self.state().write(self.folder / "state.safetensors")

    def state(self) -> Snapshot:
        """Weights, averages, optimiser and counters as they are now."""
        facts = {name: getattr(self, name) for name in COUNTERS}
        state = Snapshot.of(self.named, self.optimiser, facts)
        average = {f"average.{name}": x for name, x in self.average.items()}
        return replace(state, tensors={**state.tensors, **average, "last.interests": self.recent})

    def restore(self, state: Snapshot) -> None:
        """Go on from there."""
        state.restore(self.named, self.optimiser)
        copy_weights(self.average, state.part("average"), str(state.file))
        self.recent = state.part("last")["interests"].to(self.trainee.device)
        for name in COUNTERS:
            setattr(self, name, state.facts[name])

    def load(self) -> None:
        """Resume from an earlier process; an unreadable state is ignored."""
        found = Snapshot.resume(self.folder and self.folder / "state.safetensors")
        # further than we want to go
        if found is None or (found.facts["epoch"], found.facts["place"]) > (self.config.epochs, 0):
            return
        self.restore(found)
        where = f"epoch {self.epoch}, step {self.step}"
        self.progress(Lasting(f"{self.name}: goes on after {where}"))
        if self.collapse:
            self.warn(self.of_collapse(self.collapse))

    def epoch_file(self, epoch: int) -> Path | None:
        return None if self.folder is None else self.folder / f"epoch-{epoch:03d}.safetensors"

    # -- training --

    def run(self) -> dict[str, Any]:
        """Train to `config.epochs` and leave the averaged weights in the trainee; returns facts of
        the fit.
        """
        if (kept := Snapshot.resume(self.epoch_file(self.config.epochs))) is not None:
            self.put(kept.tensors)
            return self.with_warnings(kept.facts, told=())
        self.load()
        if here.count == 1:
            self.all_epochs()
        elif self.epoch < self.config.epochs:
            if (size := batch_size(self.trainee.examples.trees, self.config.batch)) < here.count:
                raise KarmafunnelError(
                    f"{self.config!r}",
                    needs=f"a batch of {here.count} pieces or more for so many processes",
                    found=f"{size} (the log has {len(self.trainee.examples.trees.start):,} pieces)",
                )
            with all_present():
                send((self.trainee, self.seed, self.state()), self.trainee.device)
                self.all_epochs()
        self.put(self.average)
        return self.with_warnings(self.facts(), told=("collapse",))

    def all_epochs(self) -> None:
        """Train to `config.epochs`, with the other processes where there are some."""
        if here.count > 1:
            self.progress(f"{self.name}: {here.count} processes train")
            self.model = DistributedDataParallel(self.trainee, find_unused_parameters=True)
        with seeded(self.seed, self.trainee.device):
            while self.epoch < self.config.epochs:
                self.one_epoch()
        self.model = self.trainee

    def facts(self) -> dict[str, Any]:
        rounded = [
            {name: round(value, 4) for name, value in losses.items()} for losses in self.curve
        ]
        found: dict[str, Any] = {
            "epochs": self.epoch,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "curve": rounded,
        }
        if self.alone:
            found |= {"pairs": self.pairs, ALONE: self.alone}
        if here.count > 1:
            found["processes"] = here.count
        if self.collapse:
            found["collapse"] = self.collapse | {"at the end": self.recent_rank()}
        return found | ({"watched": self.watched} if self.config.watch else {})

    def put(self, average: Mapping[str, Tensor]) -> None:
        """Put these weights into the trainee."""
        copy_weights(self.named, average, str(self.folder))
        self.trainee.eval()

    def one_epoch(self) -> None:
        rng = np.random.default_rng([self.seed, 7, self.epoch])
        parts = pieces_of_epoch(self.trainee.examples.trees, self.config.batch, rng)
        self.steps = len(parts)
        self.trainee.train()
        began = saved = said = time.perf_counter()
        while self.place < len(parts):
            self.one_step(parts[self.place])
            self.place += 1
            now = time.perf_counter()
            if now - said > 2:
                said = now
                self.read()
                where = f"epoch {self.epoch + 1} of {self.config.epochs}"
                means = told({name: value / self.place for name, value in self.running.items()})
                self.progress(f"{self.name}: {where}, step {self.place} of {len(parts)}, {means}")
            if now - saved > SAVE_EVERY:
                self.read()
                self.seconds, began, saved = self.seconds + now - began, now, now
                self.save()
        self.read()
        self.tell_collapse()
        self.seconds += time.perf_counter() - began
        self.curve.append({name: value / len(parts) for name, value in self.running.items()})
        self.epoch, self.place, self.running = self.epoch + 1, 0, {}
        means = told(self.curve[-1])
        self.progress(f"{self.name}: epoch {self.epoch} of {self.config.epochs}, {means}")
        if self.alone and self.epoch < self.config.epochs:
            self.progress(f"{self.name}: {self.without_negatives(self.alone, self.pairs)}")
        if (file := self.epoch_file(self.epoch)) is not None:
            Snapshot(self.average, self.facts()).write(file)
        self.save()

    def tell_collapse(self) -> None:
        """Warn, once a fit, where the user embeddings of the last steps have drawn together."""
        dim = self.recent.shape[-1]
        if self.collapse or self.step <= WARM_UP or not 0 < RECENT * dim <= len(self.recent):
            return
        if (rank := self.recent_rank()) >= min(COLLAPSED, dim / 4):
            return
        self.collapse = {"step": self.step, RANK: rank, "dim": dim}
        if self.watched and PERPLEXITY in self.watched[-1]:
            self.collapse[PERPLEXITY] = self.watched[-1][PERPLEXITY]
        self.warn(self.of_collapse(self.collapse))

    def recent_rank(self) -> float:
        """Effective rank of the user embeddings of the last steps."""
        return float(f"{effective_rank(unit(self.recent.cpu().numpy())):.6g}")

    @property
    def rate(self) -> float:
        """The highest learning rate of a part."""
        return max(group["rate"] for group in self.optimiser.param_groups)

    def of_collapse(self, collapse: Mapping[str, float]) -> str:
        """What is said of a fit whose user embeddings drew together."""
        known = f", {PERPLEXITY} {x:,.4g}" if (x := collapse.get(PERPLEXITY)) else ""
        end = f", {x:.1f} at the end" if (x := collapse.get("at the end")) else ""
        alone = not any(getattr(self.config, name, 1.0) for name in ("gen", "rec"))
        return (
            f"user embeddings collapsed: effective rank {collapse[RANK]:.1f} of {collapse['dim']} "
            f"in step {collapse['step']}{known}{end}; try a lower rate than {self.rate:g}"
            f"{', or gen and rec' if alone else ''}"
        )

    def of_steps(self, steps: int) -> str:
        """What is said of a fit of few steps."""
        return (
            f"{steps} steps in all, and the rate rises to {self.rate:g} in the first {WARM_UP}; "
            "take more epochs, or a smaller batch"
        )

    def with_warnings(self, facts: Mapping[str, Any], told: Collection[str]) -> dict[str, Any]:
        """The facts of a fit with what a user is warned of; what was not `told` yet is said now."""
        found = {}
        if facts["steps"] < 2 * WARM_UP:
            found["steps"] = self.of_steps(facts["steps"])
        if facts.get("collapse"):
            found["collapse"] = self.of_collapse(facts["collapse"])
        if facts.get(ALONE):
            found["pairs"] = self.without_negatives(facts[ALONE], facts["pairs"])
        for name, text in found.items():
            if name not in told:
                self.warn(text)
        return dict(facts) | ({"warnings": list(found.values())} if found else {})

    def warn(self, text: str) -> None:
        self.progress(Lasting(f"{self.name}: warning: {text}"))

    def without_negatives(self, alone: int, pairs: int) -> str:
        """What is said of so many of all pairs, which masks left without a negative."""
        return (
            f"{alone:,} of {pairs:,} pairs had no negative left after masking: their "
            "action loss is 0 and teaches nothing"
        )

    def one_step(self, pieces: np.ndarray) -> None:
        """Train on one batch; raises KarmafunnelError naming the step, weights unchanged, if a loss
        or a gradient is not finite. On a GPU that is found some steps later, before anything is
        saved.
        """
        torch.manual_seed(hash_of(self.seed, self.epoch, self.place))
        rng = np.random.default_rng([self.seed, 8, self.epoch, self.place])
        step: Step = self.model(pieces, rng)
        total = self.trainee.total(step.losses, self.done)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.named.values(), 1.0)
        recent = torch.cat([self.recent.to(step.z.device), step.z.float()])
        self.recent = recent[max(len(recent) - RECENT * step.z.shape[1], 0) :]
        left = step.action.left
        self.pairs += len(left)
        self.step += 1
        alone = (left == 0).sum()
        self.unread.append(
            {name: x.detach() for name, x in step.losses.items()}
            | {TOTAL: total.detach(), GRADIENT: norm, ALONE: alone}
        )
        watched = self.config.watch and self.step % self.config.watch == 0
        if watched or len(self.unread) >= self.at_once:
            values = self.read()
        if watched:
            figures = {**values, **step.figures(), **self.trainee.figures()}
            self.watched.append(
                {"step": self.step} | {name: float(f"{x:.6g}") for name, x in figures.items()}
            )
            self.tell_collapse()
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * min(1.0, self.step / WARM_UP)
        self.optimiser.step()
        keep = min(self.config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            now = [p.detach().float() for p in self.named.values()]
            torch._foreach_lerp_(list(self.average.values()), now, 1 - keep)

    def read(self) -> dict[str, float]:
        """Put the losses of the last steps into the counters; returns those of the last one, with
        the length of its gradient.
        """
        values: dict[str, float] = {}
        first, self.unread, unread = self.step - len(self.unread) + 1, [], self.unread
        for number, tensors in enumerate(unread, start=first):
            read = torch.stack([x.double() for x in tensors.values()]).tolist()
            values = dict(zip(tensors, read, strict=True))
            total, alone = values.pop(TOTAL), values.pop(ALONE)
            if not (math.isfinite(total) and math.isfinite(values[GRADIENT])):
                length = values.pop(GRADIENT)
                where = ""
                if self.folder is not None:
                    kept = (self.folder / "state.safetensors").exists()
                    at = f"the last good checkpoint is in {self.folder}"
                    where = f"; {at if kept else 'no checkpoint had been written'}"
                found = ", ".join(f"{name} {value}" for name, value in values.items())
                found += f", a gradient of length {length}"
                raise KarmafunnelError(
                    f"{self.config!r}",
                    needs="finite losses",
                    found=f"{found} in epoch {self.epoch + 1}, step {number}{where}",
                )
            self.alone += int(alone)
            for name, value in values.items():
                if name != GRADIENT:
                    self.running[name] = self.running.get(name, 0.0) + value
        return values


def checkpoint_folder(
    cache: Path | None,
    value: Embedder,
    how: str,
    log: Log,
    seed: int,
    base: TextModel,
    digest: str,
    module: str,
) -> Path | None:
    """Where the checkpoints of a fit lie, made and described; None without a cache.

    Args:
        how: the settings that make another fit, as text.
        base: the model that is fine-tuned, and digest: of what it says of the items before.
        module: that of the value's fit, whose code counts.
    """
    if cache is None:
        return None
    code, device = code_of(value, by=(module,)), str(base.device)
    key = content_key(code, how, base.describe(), digest, log.checksum, seed, device)
    folder = cache / f"{type(value).__name__.lower()}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "embedder": repr(value),
        "log": log.name,
        "log checksum": log.checksum,
        "seed": seed,
        "device": device,
        "features": digest,
        "code": code,
        "base": base.facts,
    }
    write_json(folder / "config.json", about)
    return folder


def train_along(job: tuple[Learner, int, Snapshot], device: torch.device) -> None:
    """Train what the first process trains, and leave the rest to it."""
    trainee, seed, state = job
    trainer = Trainer(trainee, seed, None, silent)
    trainer.restore(state)
    trainer.all_epochs()


def told(losses: dict[str, float]) -> str:
    """Losses as text for a progress line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in losses.items())


def hash_of(*numbers: int) -> int:
    """A seed derived from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
