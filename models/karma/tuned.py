"""A sentence encoder that is fine-tuned by KARMA's action losses: what a user would train instead
of KARMA.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...bounds import FIELDS, needs
from ...errors import KarmafunnelError
from ...log import Log
from ..embedders import Embedder, Progress, read_saved, silent
from .action import ActionBatch, ActionLoss, InBatch, Pairs
from .frozen import TextEmbedding, turned
from .sentence import SentenceEncoder, Sentences
from .train import Examples, Learner, Step, Trainer, checkpoint_folder, freeze, places_of

LEAST = 1e-4  # of a weight, and of a decay's distance from 0 and 1, where training starts


@dataclass(frozen=True, repr=False)
class TunedEncoder(Embedder):
    """A control [O]: a pre-trained sentence encoder, fine-tuned on the clicks and purchases of W1.

    Text vectors go through a linear map. The user embedding is query_weight * (vector of query and
    filters) + history_weight * (decayed mean of the history's items), at length 1 unless the loss
    is on plain inner products. Map, weights, decay and temperature are trained, too. Before the
    first step they are those of `encoder`, which is not trained.

    Examples, optimiser and average of the weights are those of `KARMA`; the encoder's own dropout
    is off.

    Args:
        encoder: where training starts, and how texts and histories are read.
        loss: an action loss among the batch, `InBatch()`, `Pairwise()` or `MaskedNCE()`; with
            `trained=0` also `Softmax()` over the catalogue.
        trained: the last layers of the encoder that are fine-tuned, so many, and nothing else of
            it; None for all of it, 0 for nothing.
        rate, map_rate: of the encoder, and of everything else.
        weight_decay, average, epochs: as of `KARMA`.
        batch: pieces of user histories in a step, or an eighth of all of them where that is less.
        share: share of W1's users that are trained on.
        watch: every so many steps the fit writes diagnostics of its batch into `facts["watched"]`;
            0 for never.
    """

    encoder: SentenceEncoder = SentenceEncoder()  # noqa: RUF009  (a frozen value)
    loss: ActionLoss = InBatch()  # noqa: RUF009
    trained: int | None = 2
    rate: float = 1e-4
    map_rate: float = 3e-3
    weight_decay: float = 0.01
    average: float = 0.99
    batch: int = 32
    epochs: int = 1
    share: float = 1.0
    watch: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, SentenceEncoder):
            raise KarmafunnelError(
                "TunedEncoder",
                what="encoder",
                needs=f"{SentenceEncoder()!r} or another SentenceEncoder",
                found=repr(self.encoder),
            )
        if not isinstance(self.loss, ActionLoss) or (self.loss.whole and self.trained != 0):
            raise KarmafunnelError(
                "TunedEncoder",
                what="loss",
                needs=f"a loss among the batch, such as {InBatch()!r}: "
                "the whole catalogue cannot be read at every step",
                found=repr(self.loss),
                hint="trained=0 reads it once, and trains the map and the weights",
            )
        needs(self, "rate", "weight_decay", "batch", "epochs", average=(0.0, 0.999999))
        needs(self, map_rate=FIELDS["rate"], share=(1e-9, 1.0), watch=(0, None))
        if self.trained is not None:
            needs(self, trained=(0, None))

    @property
    def length(self) -> int:
        return self.encoder.length

    @property
    def query_words(self) -> int:
        return self.encoder.query_words

    def fit(
        self,
        log: Log,
        seed: int = 0,
        progress: Progress = silent,
        device: str = "cpu",
        cache: Path | None = None,
    ) -> TunedEmbedding:
        """Fine-tune on W1, embed every item; training is kept in `cache` and goes on there.

        Raises KarmafunnelError where W1 has no event, no item has text, the encoder has fewer
        layers than are to be trained, or a loss is no number (naming the step).
        """
        frozen = self.encoder.fit(log, seed, progress, device, cache)
        learner = self.learner(log, frozen, seed)
        how = repr(replace(self, epochs=TunedEncoder.epochs))  # more epochs go on from fewer
        digest = hashlib.sha256(frozen.items().tobytes()).hexdigest()
        folder = checkpoint_folder(cache, self, how, log, seed, frozen.model, digest, __name__)
        facts = {**frozen.facts, **Trainer(learner, seed, folder, progress).run(), "seed": seed}
        progress("TunedEncoder: embedding the items")
        weights = learner.weights()
        facts["learnt"] = {name: round(x, 4) for name, x in zip(NAMES, weights, strict=True)}
        unit, shift = self.loss.unit, learner.shift.cpu().numpy()
        turn = learner.turn.detach().cpu().numpy()
        items = turned(
            frozen.model.vectors(log.item_text(), self.encoder.text_words), shift, turn, unit
        )
        learnt = self.learnt(weights)
        return TunedEmbedding(self, learnt, log, frozen.model, items, shift, turn, facts, unit)

    def learner(self, log: Log, frozen: TextEmbedding, seed: int) -> Tuning:
        """What is trained, before its first step; it trains the model of `frozen`."""
        if self.trained is not None:
            freeze(frozen.model, self.trained, repr(self))
        return Tuning(self, frozen, Examples.of(log, frozen.model, self, seed))

    def learnt(self, weights: list[float]) -> SentenceEncoder:
        """The encoder with these weights of query and history, and this decay."""
        query, history, decay = weights
        return replace(self.encoder, query_weight=query, history_weight=history, decay=decay)

    def moved(
        self,
        value: Embedder,
        there: Log,
        log: Log,
        seed: int,
        progress: Progress,
        device: str,
        cache: Path | None,
    ) -> TunedEmbedding:
        """What is trained on the log `there`, for the items and users of `log`, as of `value`."""
        found = self.fit(there, seed, progress, device, cache).of(log)
        found.value = value
        return found

    def load(self, folder: Path | str, log: Log) -> TunedEmbedding:
        return self.opened(self, folder, log)

    def opened(self, value: Embedder, folder: Path | str, log: Log) -> TunedEmbedding:
        """A saved embedding of `value`, whose settings are these."""
        tensors, description = read_saved(value, folder, log, "items", "shift", "turn", "weights")
        model = self.encoder.model_of(tensors, description, folder)
        items, shift, turn = (tensors[name] for name in ("items", "shift", "turn"))
        learnt, facts = self.learnt(tensors["weights"].tolist()), description["facts"]
        return TunedEmbedding(value, learnt, log, model, items, shift, turn, facts, self.loss.unit)


NAMES = ("query_weight", "history_weight", "decay")


class TunedEmbedding(TextEmbedding):
    """A fitted `TunedEncoder`."""

    def tensors(self) -> dict[str, np.ndarray]:
        weights = np.array([getattr(self.config, name) for name in NAMES])
        return super().tensors() | {"weights": weights}


@dataclass(frozen=True, eq=False)
class Texts:
    """Token ids of texts, right-padded (n, T), how many each has, (n,), and their vectors where
    these stay as they are.
    """

    ids: np.ndarray
    lengths: np.ndarray
    vectors: np.ndarray | None


class Tuning(Learner):
    """A sentence encoder, a map and three weights: one step's action loss."""

    config: TunedEncoder
    shift: Tensor
    known: Tensor
    share: Tensor

    def __init__(self, config: TunedEncoder, frozen: TextEmbedding, examples: Examples):
        super().__init__()
        assert isinstance(frozen.model, Sentences)
        self.config, self.examples, self.sentences = config, examples, frozen.model
        self.model = frozen.model.model
        # in the order that a checkpoint keeps
        turn = np.ascontiguousarray(frozen.turn, dtype=np.float32)
        self.turn = nn.Parameter(torch.from_numpy(turn))
        encoder = config.encoder
        given = (encoder.query_weight, encoder.history_weight)
        logs = [math.log(max(x, LEAST)) for x in given]
        decay = min(max(encoder.decay, LEAST), 1 - LEAST)
        self.mixing = nn.Parameter(torch.tensor([*logs, math.log(decay / (1 - decay))]))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.loss.temperature)))
        self.to(frozen.model.device)
        self.shift = self.on(frozen.shift.astype(np.float32))
        items = examples.candidates
        texts = frozen.log.item_text()
        chosen = [texts[i] for i in items]
        self.texts = self.told(*frozen.model.encode(chosen, encoder.text_words))
        ids, lengths, self.asks = distinct_ids(examples.queries, frozen.model.pad)
        self.queries = self.told(ids, lengths)
        # what makes two items the same one
        self.known = self.on(frozen.items()[items])
        self.share = self.on(examples.shares().astype(np.float32))

    @property
    def device(self) -> torch.device:
        return self.turn.device

    def train(self, mode: bool = True) -> Tuning:
        """As of any module, but the encoder stays without dropout."""
        super().train(mode)
        self.model.eval()
        return self

    def rate_of(self, name: str) -> float:
        return self.config.rate if name.startswith("model.") else self.config.map_rate

    def weights(self) -> list[float]:
        """query_weight, history_weight and decay as they are now."""
        return [*self.mixing[:2].exp().tolist(), self.mixing[2].sigmoid().item()]

    def forward(self, pieces: np.ndarray, rng: np.random.Generator) -> Step:
        examples, trees = self.examples, self.examples.trees
        branches, row = trees.branches(pieces)
        pairs, of = examples.pairs(branches)
        target, hard = examples.target[pairs], examples.hard[branches]
        # the last items before each request, the latest first
        back = np.arange(max(int(trees.seen[branches].max(initial=0)), 1))
        there = back < trees.seen[branches, None]
        at = (trees.start[pieces][row] + trees.seen[branches] - 1)[:, None] - back
        item = trees.item[np.where(there, at, 0)] if len(trees.item) else np.zeros_like(at)
        used = np.arange(len(examples.candidates))
        if not self.config.loss.whole:
            used = np.unique(np.concatenate([item[there], target, hard[hard >= 0]]))
        number = places_of(used, len(examples.candidates) + 1)  # the last entry answers -1

        x = self.read(self.texts, used)
        e = self.to_length(x)
        past = self.on(there) * self.mixing[2].sigmoid() ** self.on(back)  # (R, L)
        column = self.on(np.where(there, number[item], 0))
        seen = torch.zeros(len(branches), len(used), device=self.device)
        mean = seen.scatter_add(1, column, past) @ e / past.sum(dim=1, keepdim=True).clamp(min=1)
        query, history = self.mixing[:2].exp()
        z = history * self.to_length(mean)
        asks, which = np.unique(self.asks[branches], return_inverse=True)
        if self.queries.lengths[asks].any():
            z = z + query * self.to_length(self.read(self.queries, asks))[self.on(which)]
        z = self.to_length(z)
        goal = Pairs(self.on(of), self.on(number[target]), self.on(examples.weight[pairs]))
        scale = self.log_scale.clamp(max=math.log(100)).exp()
        batch = ActionBatch(
            z, e, goal, self.on(number[hard]), scale, self.on(used), self.known, self.share
        )
        action = self.config.loss.of(batch)
        return Step({"act": action.total / goal.weight.sum()}, action, z.detach(), x.detach())

    def told(self, ids: np.ndarray, lengths: np.ndarray) -> Texts:
        """Texts to train with; those of an encoder that is not trained are read once."""
        fixed = self.config.trained == 0
        return Texts(ids, lengths, self.sentences.pooled(ids, lengths) if fixed else None)

    def read(self, texts: Texts, at: np.ndarray) -> Tensor:
        """Vectors of some of the texts, through the map: (n,) -> (n, dim)."""
        lengths = texts.lengths[at]
        ids = texts.ids[at, : max(int(lengths.max(initial=0)), 1)]
        there = np.arange(ids.shape[1]) < lengths[:, None]

        def part(rows: slice) -> tuple[Tensor, ...]:
            return (self.sentences.pool(self.on(ids[rows]), self.on(there[rows])),)

        if texts.vectors is None:
            raw = self.in_parts(part, (np.arange(len(at) + 1),), 0)[0]
        else:
            raw = self.on(texts.vectors[at])
        return (raw - self.shift) @ self.turn * self.on(there[:, :1])

    def to_length(self, x: Tensor) -> Tensor:
        """Rows at length 1, or as they are for a loss on plain inner products."""
        return F.normalize(x, dim=-1) if self.config.loss.unit else x


def distinct_ids(rows: list[np.ndarray], pad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids of the distinct rows, right-padded (m, T), how many each has, (m,), and the number
    of each row among them, (n,).
    """
    width = max(1, max((len(row) for row in rows), default=0))
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    ids[np.arange(width) < lengths[:, None]] = np.concatenate(rows)
    _, first, which = np.unique(np.c_[lengths, ids], axis=0, return_index=True, return_inverse=True)
    return ids[first], lengths[first], which.reshape(-1)
