"""Language first, then action: a backbone that reads more text before KARMA trains it on actions.

Relatives in which a language objective pays have it before the contrastive one: LLM2Rec (arXiv
2506.21579) generates the title of the next item from the titles before it, over several catalogues
together; Llama2Vec (arXiv 2312.15503) reads plain text. [I: the order; O: all details here.]
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from ...bounds import check_folders, needs
from ...errors import KarmafunnelError
from ...keys import code_of, content_key
from ...log import Log, read
from ...typed import Typed, positional
from ..embedders import Progress, known_in_w1, w1_sequences
from ..training import digest_of_tensors, seeded
from .backbone import (
    LM,
    Qwen,
    kept_or_made,
    other_lazy,
    perplexity_of,
    train_language,
)
from .checkpoint import Checkpoint

BETWEEN = "\n"  # two texts of one history
HEALED = 0.5  # times the perplexity of chance: a head that says more is not healed


@dataclass(frozen=True, repr=False)
class LanguageFirst(Typed):
    """A backbone trained further on language, before KARMA trains it on actions (LLM2Rec, arXiv
    2506.21579) [I].

    A document is the texts of a user's history in W1, in order of time, so that every text but the
    first is generated from those before it; or the text of one item. Documents stand one after the
    other, and every token is predicted from those before it. Three in a hundred documents, at least
    one where there are two and at most 256, are held out; their perplexity before and after is
    kept. What is read is W1 of each log, or the items known in it, and nothing later.

    It also heals the head of a model that was cut to its first layers: the model may be asked for
    words again where the perplexity of the documents held out is below half of chance. That of
    chance is the number of tokens in the vocabulary.

    Args:
        backbone: `Qwen(...)`, `Checkpoint(...)`; with their `lora` this training is one of low-rank
            updates, too, which are then folded in.
        logs: folders of logs and catalogues that are read beside the log's own. They are texts of
            another time: those of one market may tell of what came later in this log.
        reads: "histories", "items" (texts alone, which catalogues without users have, too), or
            "both".
        shuffled: [O] the items of all histories change places: the same texts without order or
            user, a control. Documents that are held out keep theirs.
        text_words: tokens read of an item.
        tokens: how many are trained on, with repetition.
        rate: of AdamW; it falls as a cosine.
        context: tokens of a block; batch: blocks a step.
        seed: its own, so that all rows and seeds of a table share one language model.
    """

    log_fields: ClassVar[tuple[str, ...]] = ("logs",)

    backbone: Qwen | Checkpoint | LanguageFirst = positional(Qwen())  # noqa: RUF009
    logs: tuple[str, ...] = ()
    reads: Literal["histories", "items", "both"] = "histories"
    shuffled: bool = False
    text_words: int = 24
    tokens: int = 1_000_000
    rate: float = 1e-3
    context: int = 128
    batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        needs(self, "text_words", "tokens", "rate", "context", "batch", "seed")
        check_folders("LanguageFirst", logs=self.logs)
        if not isinstance(self.backbone, (Qwen, Checkpoint, LanguageFirst)):
            raise KarmafunnelError(
                "LanguageFirst",
                what="backbone",
                needs=f"{Qwen()!r} or Checkpoint(...)",
                found=repr(self.backbone),
            )
        if self.reads not in ("histories", "items", "both"):
            raise KarmafunnelError(
                f"{self!r}",
                what="reads",
                needs="'histories', 'items' or 'both'",
                found=repr(self.reads),
            )
        if self.shuffled and self.reads == "items":
            raise KarmafunnelError(
                f"{self!r}", what="shuffled", needs="histories", found="reads='items'"
            )

    def ready(self, log: Log, cache: Path | None, progress: Progress, device: str) -> LM:
        """The backbone after its language training; taken from `cache`, or resumed there, if
        possible.

        Raises KarmafunnelError where a log lacks what is read of it, or a loss is no number.
        """
        base = self.backbone.ready(log, cache, progress, device)
        base.must_hold(self.context, repr(self))
        told, held = self.documents(log, base)
        weights = dict(base.model.named_parameters())
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "backbone"}
        text = hashlib.sha256(b"".join(x.tobytes() + b"|" for x in (*told, *held))).hexdigest()
        key = content_key(
            code_of(self, by=(__name__,)),
            own | {"logs": len(self.logs)},  # what they hold, wherever they lie
            base.describe() | {"lora": base.lora},
            digest_of_tensors(weights),
            text,
            device,
        )
        file = cache / f"language-{key}.safetensors" if cache else None
        lm = kept_or_made(
            file,
            "a language model",
            device,
            self,
            lambda partial: self.train(base, told, held, partial, progress),
        )
        lm.lora = base.lora
        return lm

    def train(
        self,
        base: LM,
        told: list[np.ndarray],
        held: list[np.ndarray],
        partial: Path | None,
        progress: Progress,
    ) -> LM:
        """Train a copy of `base` on the documents `told`, or go on from `partial`."""
        apart = padded(held, self.context, base.pad)
        before = perplexity_of(base, *apart)
        progress(f"language training: {len(told):,} documents, perplexity {before:.1f} before")
        with seeded(self.seed, base.device):
            lm = base.fresh()
            stream = np.concatenate(told)
            seconds = train_language(lm, stream, self, partial, progress, "language training")
        lm = lm.merged()
        after = perplexity_of(lm, *apart)
        lm.facts = {
            **base.facts,
            "language": {
                "documents": len(told),
                "held_out": len(held),
                "tokens": self.tokens,
                "distinct_tokens": len(stream),
                "seconds": round(seconds, 1),
                "perplexity_before": round(before, 2),
                "perplexity_after": round(after, 2),
            },
        }
        # little better than a guess among all tokens is no language, nor is what no document showed
        # (NaN)
        lm.speaks = base.speaks or after < HEALED * lm.vocab
        progress(
            f"language training: perplexity of {len(held)} unseen documents "
            f"{before:.1f} -> {after:.1f}"
        )
        return lm

    # -- what is read --

    def documents(self, log: Log, lm: LM) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Token ids of the documents that are read and of those held out, each with BOS first, in
        an order that does not depend on row order.

        Where histories are read, the documents held out are histories.
        """
        told: list[np.ndarray] = []
        held: list[np.ndarray] = []
        for source in (log, *map(read, self.logs)):
            own = source if isinstance(source, Log) else Log(other_lazy(source.items), {}, None)
            words = lm.words(own.item_text(), self.text_words)
            has = np.array([len(x) > 0 for x in words], dtype=bool)
            if self.reads != "items":
                if not isinstance(source, Log):
                    raise KarmafunnelError(
                        f"{self!r}",
                        needs="histories",
                        found=f"items alone in the catalogue {source.meta['name']}",
                        hint="reads='items' takes its texts",
                    )
                events = w1_sequences(source, repr(self))
                mine = has[events.item]
                here, apart = self.histories(events.user[mine], events.item[mine], words, lm)
                told, held = told + here, held + apart
            if self.reads != "histories":
                known = known_in_w1(source) if isinstance(source, Log) else True
                told += [np.r_[lm.bos, words[i]] for i in np.flatnonzero(has & known)]
        told = [told[i] for i in order_of(told)]
        if self.reads == "items":
            told, held = told[(n := held_out(len(told))) :], told[:n]
        if not told:
            raise KarmafunnelError(
                f"{self!r}",
                needs="item text (title, brand, category, attributes)",
                found=f"none in log {log.name}",
            )
        return told, held

    def histories(
        self, user: np.ndarray, item: np.ndarray, words: list[np.ndarray], lm: LM
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Documents of users from their events, (n,) each, by user: those that are read and those
        held out.
        """
        if not len(item):
            return [], []
        chosen = np.split(item, np.flatnonzero(np.diff(user)) + 1)
        between = lm.words([BETWEEN], 8)[0]
        documents = [document(lm.bos, words, x, between) for x in chosen]
        order = order_of(documents)
        apart = held_out(len(order))
        held, chosen = [documents[i] for i in order[:apart]], [chosen[i] for i in order[apart:]]
        if self.shuffled:
            rng = np.random.default_rng([self.seed, 13])
            ends = np.cumsum([len(x) for x in chosen])[:-1]
            chosen = np.split(rng.permutation(np.concatenate(chosen)), ends)
        return [document(lm.bos, words, x, between) for x in chosen], held


def document(
    bos: int, words: list[np.ndarray], items: np.ndarray, between: np.ndarray
) -> np.ndarray:
    """BOS and the texts of some items, with `between` between two."""
    parts = [np.array([bos], dtype=np.int64)]
    for i in items:
        parts += [words[i], between]
    return np.concatenate(parts[:-1])


def order_of(documents: list[np.ndarray]) -> list[int]:
    """Numbers of documents in the order of a hash of what they say, as good as random."""
    marks = [hashlib.sha256(x.tobytes()).digest() for x in documents]
    return sorted(range(len(marks)), key=marks.__getitem__)


def held_out(documents: int) -> int:
    """How many of so many documents are held out."""
    return min(max(1, documents * 3 // 100), 256) if documents > 1 else 0


def padded(documents: list[np.ndarray], most: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids without BOS, (n, most), right-padded and cut, and their lengths, (n,)."""
    ids = np.full((len(documents), most), pad, dtype=np.int64)
    lengths = np.array([min(len(x) - 1, most) for x in documents], dtype=np.int64)
    for row, x, n in zip(ids, documents, lengths, strict=True):
        row[:n] = x[1 : n + 1]
    return ids, lengths
