"""A sentence encoder: text vectors that were trained to be compared, as `sentence-transformers`
publishes them. It is what a user would take instead of KARMA.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import cached_file

from ...errors import KarmafunnelError
from ...files import read_json
from ...log import Log
from ...shapes import ANY, TEXT, by_name, check_keys
from ..embedders import Progress
from ..weights import (
    SENTENCES,
    check_source,
    check_whole,
    finite,
    must_be_here,
    opening,
    plain,
    source_of,
)
from .backbone import TOKEN, TextModel
from .checkpoint import backend_of
from .frozen import After, FrozenText

BATCH = 256  # texts read at a time
READ = "Transformer", "Pooling"  # of a published model; "Normalize" may follow
DESCRIPTION = {"config": by_name(ANY), "tokenizer": TEXT, "pad": TOKEN}


class Sentences(TextModel):
    """A bidirectional encoder and its tokenizer: mean of the last hidden states, at length 1
    (Reimers & Gurevych 2019, arXiv 1908.10084).
    """

    marks: ClassVar[int] = 2  # such as [CLS] and [SEP]

    def __init__(self, model: Any, tokenizer: Tokenizer, pad: int, facts: dict[str, Any]):
        self.model, self.tokenizer, self.pad, self.facts = model.eval(), tokenizer, pad, facts
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @property
    def dim(self) -> int:
        return int(self.config.hidden_size)

    def encode(self, texts: list[str], most: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n, most + 2) int64 between the tokenizer's own marks, right-padded, the text
        cut to `most`; and their lengths, (n,), 0 for an empty text.
        """
        self.tokenizer.enable_truncation(most + self.tokenizer.num_special_tokens_to_add(False))
        found = self.tokenizer.encode_batch([text.strip() for text in texts])
        self.tokenizer.no_truncation()
        ids = np.full((len(texts), most + self.marks), self.pad, dtype=np.int64)
        lengths = np.zeros(len(texts), dtype=np.int64)
        for i, encoded in enumerate(found):
            if texts[i].strip():
                ids[i, : len(encoded.ids)] = encoded.ids
                lengths[i] = len(encoded.ids)
        return ids, lengths

    def pool(self, ids: Tensor, there: Tensor) -> Tensor:
        """Vectors of texts of tokens ids (B, T), of which `there` (B, T) are no padding: (B, d),
        length 1, zeros for no token.
        """
        seen = there.clone()
        seen[:, 0] = True  # attention over nothing is no number
        hidden = self.model(input_ids=ids, attention_mask=seen.long()).last_hidden_state.float()
        weight = there[..., None].float()
        return F.normalize((hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1), dim=-1)

    def vectors(self, texts: list[str], most: int) -> np.ndarray:
        return self.pooled(*self.encode(texts, most))

    @torch.inference_mode()
    def pooled(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """`pool` of texts as `encode` gives them, float32 (n, d)."""
        out = np.zeros((len(ids), self.dim), dtype=np.float32)
        for start in range(0, len(ids), BATCH):
            rows = slice(start, start + BATCH)
            there = np.arange(ids.shape[1]) < lengths[rows, None]
            given = (torch.from_numpy(x).to(self.device) for x in (ids[rows], there))
            out[rows] = self.pool(*given).cpu().numpy()
        return finite(out, self.title, "texts")

    def describe(self) -> dict[str, Any]:
        tokenizer = self.tokenizer.to_str()
        return {"config": plain(self.config), "tokenizer": tokenizer, "pad": self.pad}

    @staticmethod
    def rebuild(description: Any, who: str) -> Sentences:
        """A model of that description, its weights still to be loaded; raises KarmafunnelError for
        one that is none.
        """
        check_keys(who, description, DESCRIPTION)
        with opening(who, "a sentence encoder and its tokenizer"):
            config = AutoConfig.for_model(**description["config"])
            with torch.random.fork_rng():
                model = AutoModel.from_config(config)
            tokenizer = Tokenizer.from_str(description["tokenizer"])
        return Sentences(model, tokenizer, description["pad"], {})


@dataclass(frozen=True, repr=False)
class SentenceEncoder(FrozenText):
    """A control [O]: a pre-trained sentence encoder, mean hidden states at length 1 as text
    vectors.

    The user embedding is query_weight * (unit vector of query and filters) + history_weight * (unit
    decayed mean of the history's items).

    Args:
        source: a local folder, or a hub id, of a `sentence-transformers` model with mean pooling,
            or "minilm" after `karmafunnel fetch-model minilm`.
        after: what is done to the vectors, see `FrozenLM`. On Amazon Office "half-whitening" was
            best of four (LOG.md).
        dim: directions that whitening and "autoencoder" keep, at most the model's width.
    """

    source: str = "minilm"
    after: After = "half-whitening"
    dim: int = 256
    text_words: int = 32
    query_words: int = 16
    query_weight: float = 1.0
    history_weight: float = 1.0
    length: int = 20
    decay: float = 0.8

    def __post_init__(self) -> None:
        check_source("SentenceEncoder", self.source)
        super().__post_init__()

    def ready(self, log: Log, cache: Path | None, progress: Progress, device: str) -> Sentences:
        """Raises KarmafunnelError for a source that is no sentence encoder, has no fast tokenizer,
        or cannot be had.
        """
        progress(f"opening {self.source}")
        return open_sentences(self.source, repr(self), device)

    def rebuild(self, description: Any, who: str) -> Sentences:
        return Sentences.rebuild(description, who)


def open_sentences(source: str, who: str, device: str) -> Sentences:
    """A sentence encoder from a local folder or the hub; raises KarmafunnelError for a source that
    is none.
    """
    name, what = source, f"{SENTENCES} with its tokenizer"
    source = source_of(source, who, SENTENCES)
    with opening(who, what, source):
        here = must_be_here(source)
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=here)
        opened: Any = AutoModel.from_pretrained(
            source, dtype=torch.float32, local_files_only=here, output_loading_info=True
        )
        model, report = opened
        made_for = (model.config.architectures or [""])[0]
    if made_for.endswith(("ForCausalLM", "LMHeadModel")) or getattr(
        model.config, "is_decoder", False
    ):
        hint = "a causal language model is for FrozenLM(backbone=Checkpoint(...)) or KARMA"
        found = f"weights of {made_for}"
        raise KarmafunnelError(who, needs="a sentence encoder", found=found, hint=hint)
    check_whole(model, report, who, "a sentence encoder")
    words = backend_of(tokenizer, model, who, what)
    check_modules(source, here, who)
    facts = {"source": name, "parameters": sum(p.numel() for p in model.parameters())}
    pad = tokenizer.pad_token_id or 0
    return Sentences(model.to(device), words, pad, facts)


def check_modules(source: str, here: bool, who: str) -> None:
    """Raises KarmafunnelError where a source says that texts are read in another way than by the
    mean of their last hidden states: `modules.json` names another module, or the pooling another
    mode. One that says nothing is read by its mean, as `sentence-transformers` does.
    """
    pooling = "1_Pooling"
    if file := file_of(source, "modules.json", here):
        modules = read_json(file)
        given = [
            x if isinstance(x, dict) else {}
            for x in (modules if isinstance(modules, list) else [modules])
        ]
        kinds = [str(x.get("type")).split(".")[-1] for x in given]
        if kinds not in ([*READ, "Normalize"], [*READ]):
            found = f"{', '.join(kinds)[:100] or 'none'} in {file}"
            raise KarmafunnelError(who, needs=f"the modules {', '.join(READ)}", found=found)
        pooling = str(given[1].get("path") or pooling)
    if file := file_of(source, f"{pooling}/config.json", here):
        told = read_json(file)
        settings = told.items() if isinstance(told, dict) else ()
        modes = sorted(name for name, on in settings if "mode" in name and on is True)
        if modes != ["pooling_mode_mean_tokens"]:
            found = f"{', '.join(modes) or 'none'} in {file}"
            raise KarmafunnelError(who, needs="mean pooling", found=found)


def file_of(source: str, name: str, here: bool) -> str | None:
    """A file of a folder or of the hub; None where there is none."""
    found: str | None = cached_file(
        source,
        name,
        local_files_only=here,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found
