"""Any causal language model of `transformers` as KARMA's backbone."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...bounds import needs
from ...errors import KarmafunnelError
from ...files import atomic_folder, intact
from ...log import Log
from ...typed import Typed
from ..embedders import Lasting, Progress, known_in_w1
from ..weights import (
    LANGUAGE,
    check_source,
    check_whole,
    dequantise,
    digest_of,
    lacking,
    must_be_here,
    opening,
    source_of,
)
from .backbone import DTYPES, LM, perplexity

ASKED = 64  # texts whose perplexity is told
TOKENS = 32  # of each of them


def backend_of(tokenizer: Any, model: Any, who: str, needs: str) -> Tokenizer:
    """The fast tokenizer behind one of `transformers`; raises KarmafunnelError where there is none,
    or one of other words than the model's.
    """
    if not getattr(tokenizer, "is_fast", False):
        found = type(tokenizer).__name__
        raise KarmafunnelError(who, needs="a fast tokenizer (tokenizer.json)", found=found)
    backend: Tokenizer = tokenizer.backend_tokenizer
    words, rows = backend.get_vocab_size(), model.get_input_embeddings().weight.size(0)
    if not 16 <= words <= rows:  # without its file, an empty one is made
        odd = f"a tokenizer of {words} tokens beside {rows} embeddings"
        found = lacking(tokenizer.name_or_path, "tokenizer.json") or odd
        raise KarmafunnelError(who, needs=needs, found=found)
    return backend


@dataclass(frozen=True, repr=False)
class Checkpoint(Typed):
    """Any `transformers` causal LM from a local folder or a hub id, or a GGUF file.

    Args:
        source: a folder, a hub id, a file that ends in `.gguf` (with the extra `gguf`; its weights
            are de-quantised to float32), or `"smollm2-135m"` after `karmafunnel fetch-model`.
        lora: rank of low-rank updates, 0 fine-tunes every weight.
        dtype: of the weights: "float32", "bfloat16" or "float16".
        layers: keep only the first so many, 0 all. A cut model is an encoder: its last layer
            predicts words worse than chance, so it takes neither `gen` nor `decoder="lm"`, unless
            language training (`LanguageFirst`) has healed it.
    """

    source: str
    lora: int = 0
    dtype: str = "float32"
    layers: int = 0

    def __post_init__(self) -> None:
        check_source("Checkpoint", self.source)
        needs(self, "lora", layers=(0, None))
        if self.dtype not in DTYPES:
            raise KarmafunnelError(
                f"{self!r}",
                what="dtype",
                needs="'float32', 'bfloat16' or 'float16'",
                found=repr(self.dtype),
            )

    def ready(self, log: Log, cache: Path | None, progress: Progress, device: str) -> LM:
        """The opened model; its perplexity on texts of the log is in `facts`.

        Raises KarmafunnelError for a source that is no causal LM, has no fast tokenizer, fewer
        layers than asked, or cannot be had.
        """
        progress(f"opening {self.source}")
        source = source_of(self.source, f"{self!r}", LANGUAGE)
        if source.endswith(".gguf"):
            lm = self.from_gguf(Path(source), cache)
        else:
            lm = self.opened(source)
        if self.layers:
            self.cut(lm)
        lm.model.to(device)
        known = known_in_w1(log)
        texts = [text for i, text in enumerate(log.item_text()) if known[i] and text.strip()]
        some = texts[:: max(1, len(texts) // ASKED)][:ASKED]
        lm.facts["text perplexity"] = float(f"{perplexity(lm, some, TOKENS):.4g}")
        found = (
            f"{self.source}: {lm.facts['layers']} layers, {lm.facts['parameters'] / 1e6:.1f}M "
            f"parameters, perplexity {lm.facts['text perplexity']:,g} on {len(some)} item texts "
            f"before training (chance: {lm.vocab:,})"
        )
        progress(Lasting(found))
        return lm

    def from_gguf(self, file: Path, cache: Path | None) -> LM:
        """The model of a GGUF file, de-quantised once and kept in the cache."""
        if not file.is_file():
            raise KarmafunnelError(f"{self!r}", needs="a GGUF file", found=f"no file {file}")
        with tempfile.TemporaryDirectory() as temporary:
            folder = (cache or Path(temporary)) / f"gguf-{digest_of(file)[:16]}"
            if not intact(folder):
                with atomic_folder(folder, sealed=True) as made:
                    dequantise(file, made, f"{self!r}")
            return self.opened(str(folder))

    def cut(self, lm: LM) -> None:
        """Leave the first `layers` of a model; its head no longer speaks."""
        module, name, layers = lm.layers()
        if self.layers > len(layers):
            found = f"{len(layers)} in {self.source}"
            raise KarmafunnelError(f"{self!r}", needs=f"{self.layers} layers", found=found)
        setattr(module, name, layers[: self.layers])
        for name in ("num_hidden_layers", "n_layer", "num_layers"):
            if hasattr(lm.config, name):
                setattr(lm.config, name, self.layers)
        if getattr(lm.config, "layer_types", None):
            lm.config.layer_types = lm.config.layer_types[: self.layers]
        lm.speaks = self.layers == lm.facts["layers"]
        lm.facts["layers"] = self.layers
        lm.facts["parameters"] = sum(p.numel() for p in lm.model.parameters())

    def opened(self, source: str) -> LM:
        """The model of a folder or a hub id, whole."""
        who, needs = f"{self!r}", "a causal LM with its tokenizer"
        with opening(who, needs, source):
            here = must_be_here(source)
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=here)
            dtype = getattr(torch, self.dtype)
            opened: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                attn_implementation="sdpa",
                local_files_only=here,
                output_loading_info=True,
            )
            model, report = opened
            made_for = (model.config.architectures or [type(model).__name__])[0]
        if made_for != type(model).__name__:
            raise KarmafunnelError(
                who,
                needs=f"a causal LM ({type(model).__name__})",
                found=f"weights of {made_for}",
                hint="a sentence encoder is for SentenceEncoder(...)",
            )
        check_whole(model, report, who, "a causal LM")
        words = backend_of(tokenizer, model, f"{self!r}", "a causal LM with its tokenizer")
        special = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        first = [x for x in special if x is not None]
        if not first:
            raise KarmafunnelError(f"{self!r}", needs="a bos, eos or pad token", found="none")
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else first[0]
        facts = {
            "source": self.source,
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": int(model.config.num_hidden_layers),
        }
        return LM(model, words, first[0], pad, facts, self.lora)
