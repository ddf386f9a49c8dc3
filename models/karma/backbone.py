"""The language model behind KARMA: one that we pre-train on product text, or any `transformers`
causal LM.

[I: any causal LM read through `inputs_embeds`; O: the small Qwen3-architecture model that a project
without a GPU can pre-train on its catalogue, whose text is then its knowledge.]
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    Qwen3Config,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from ...bounds import Bound, check_folders, needs
from ...errors import KarmafunnelError
from ...files import remove
from ...keys import code_of, content_key
from ...log import Log, read
from ...shapes import ANY, TEXT, by_name, check_keys, number, one_of
from ...typed import Typed
from ..embedders import Progress, known_in_w1
from ..training import Snapshot, put_weights, seeded
from ..weights import finite, opening, plain

BOS = "<|text|>"
DTYPES = ("float32", "bfloat16", "float16")
TOKEN = number(Bound(0, 10_000_000))
# of a model, as JSON
DESCRIPTION = {"config": by_name(ANY), "tokenizer": TEXT, "bos": TOKEN, "pad": TOKEN}
SAVE_EVERY = 100  # steps of language training between two checkpoints


class FusedNorm(Qwen3RMSNorm):
    """The same RMSNorm in one kernel: on a CPU a small model spends more time in element-wise
    passes than in products.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)  # under autocast x may be shorter
        return F.rms_norm(x, weight.shape, weight, self.variance_epsilon)


class TextModel(ABC):
    """A pre-trained model of text with its tokenizer: `LM` or `Sentences`. `facts`: how it was
    made; `marks`: tokens that it puts around a text.
    """

    marks: ClassVar[int]
    model: Any
    facts: dict[str, Any]

    @abstractmethod
    def encode(self, texts: list[str], most: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of texts of at most `most` tokens, int64, a row each, right-padded; and how
        many are theirs, (n,), 0 for an empty text.
        """

    def words(self, texts: list[str], most: int) -> list[np.ndarray]:
        """Token ids of texts as `encode` gives them, without padding."""
        ids, lengths = self.encode(texts, most)
        return [row[:n] for row, n in zip(ids, lengths, strict=True)]

    @abstractmethod
    def vectors(self, texts: list[str], most: int) -> np.ndarray:
        """Vectors of texts of at most `most` tokens, float32 (n, d); zeros for an empty text."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Everything but the weights, as JSON."""

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    def title(self) -> str:
        """Its class and where it came from, as errors name it."""
        return f"{type(self.model).__name__} {self.facts.get('source', '')}".strip()

    @property
    def context(self) -> int | None:
        """Longest input in tokens; None where the model's config does not say."""
        for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if found := getattr(self.config, name, None):
                return int(found)
        return None

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def layers(self) -> tuple[nn.Module, str, nn.ModuleList]:
        """The model's layers, in order, with the module that holds them and their name there."""
        count = int(self.config.num_hidden_layers)
        for module in self.model.modules():
            for name, part in module.named_children():
                if isinstance(part, nn.ModuleList) and len(part) == count:
                    return module, name, part
        raise KarmafunnelError(
            type(self.model).__name__, needs=f"a list of {count} layers", found="none"
        )

    def must_hold(self, cells: int, who: str) -> None:
        """Raises KarmafunnelError if there are more cells than the model's context."""
        if self.context is not None and cells > self.context:
            raise KarmafunnelError(
                who,
                needs=f"a model that reads {cells} tokens",
                found=f"a context of {self.context}",
            )


class LM(TextModel):
    """A causal language model with its tokenizer, read through continuous inputs. `bos`: id of the
    token before every text; `pad`: of the one that fills up shorter rows. `facts`: how it was made.
    `lora`: rank of the updates that fine-tuning learns, 0 for every weight. `speaks`: whether its
    head predicts words; of a model cut to its first layers it does not, until language training has
    healed it.
    """

    marks: ClassVar[int] = 1  # BOS

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        bos: int,
        pad: int,
        facts: dict[str, Any],
        lora: int = 0,
        speaks: bool = True,
    ):
        self.model, self.tokenizer, self.bos, self.pad, self.facts, self.lora = (
            model.eval(),
            tokenizer,
            bos,
            pad,
            facts,
            lora,
        )
        self.speaks = speaks
        for module in model.modules():
            if type(module) is Qwen3RMSNorm:
                module.__class__ = FusedNorm

    # -- text --

    def encode(self, texts: list[str], most: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n, most) int64, right-padded and truncated, and lengths of the texts, (n,)."""
        ids = np.full((len(texts), most), self.pad, dtype=np.int64)
        lengths = np.zeros(len(texts), dtype=np.int64)
        plain = [text or "" for text in texts]
        for i, encoded in enumerate(self.tokenizer.encode_batch(plain, add_special_tokens=False)):
            found = encoded.ids[:most]
            ids[i, : len(found)], lengths[i] = found, len(found)
        return ids, lengths

    def vectors(self, texts: list[str], most: int) -> np.ndarray:
        """Vectors of texts, see `pooled`."""
        return pooled(self, texts, most)

    def decode(self, ids: Any) -> str:
        """The text of token ids, (n,), without special tokens."""
        return str(self.tokenizer.decode([int(i) for i in ids]))

    # -- the network --

    @property
    def dim(self) -> int:
        """Width of word embeddings and hidden states."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def vocab(self) -> int:
        """Rows of the embedding table, which may be more than the tokenizer's tokens."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Word embeddings of token ids: (...) -> (..., dim)."""
        return self.model.get_input_embeddings()(ids)

    def hidden(self, inputs: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        """Last hidden states (B, L, d) of continuous inputs (B, L, d); mask (B, 1, L, L) bool: may
        attend; position (B, L).
        """
        return self._stack(inputs, mask, position).last_hidden_state

    def _stack(self, inputs: Tensor, mask: Tensor, position: Tensor, **more: Any) -> Any:
        inputs = inputs.to(self.dtype)
        # in the precision that attention works in: not to be cast anew in each layer
        kind = inputs.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        additive = torch.zeros(mask.shape, dtype=dtype, device=inputs.device).masked_fill_(
            ~mask, torch.finfo(dtype).min
        )
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        stack = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        return stack(
            inputs_embeds=inputs,
            attention_mask=additive,
            position_ids=position,
            use_cache=False,
            **more,
        )

    @property
    def own_head(self) -> nn.Module | None:
        """The output layer where it is separate; None where it is tied to the embedding table."""
        head: nn.Module = self.model.get_output_embeddings()
        return None if head.weight is self.model.get_input_embeddings().weight else head

    def head(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary, (..., vocab)."""
        return self.model.get_output_embeddings()(hidden.to(self.dtype))

    def attentions(self, inputs: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        """Attention weights (layers, B, heads, L, L), by the slower eager implementation."""
        before = self.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            with torch.inference_mode():
                return torch.stack(
                    self._stack(inputs, mask, position, output_attentions=True).attentions
                )
        finally:
            self.model.set_attn_implementation(before)

    # -- copies --

    def fresh(self) -> LM:
        """A copy to fine-tune; with `lora` the weights stay and low-rank updates are learnt (Hu et
        al. 2021).
        """
        model = copy.deepcopy(self.model)
        if self.lora:
            try:
                from peft import LoraConfig, get_peft_model
            except ImportError as error:
                raise KarmafunnelError(
                    "Checkpoint: lora needs the extra: pip install 'karmafunnel[lora]'"
                ) from error
            wanted = LoraConfig(r=self.lora, lora_alpha=2 * self.lora, target_modules="all-linear")
            model = get_peft_model(model, wanted)
        return LM(model, self.tokenizer, self.bos, self.pad, self.facts, self.lora, self.speaks)

    def merged(self) -> LM:
        """The same function with low-rank updates folded into the weights."""
        if not hasattr(self.model, "merge_and_unload"):
            return self
        model = self.model.merge_and_unload()
        return LM(model, self.tokenizer, self.bos, self.pad, self.facts, speaks=self.speaks)

    def describe(self) -> dict[str, Any]:
        """Everything but the weights, as JSON."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {
            "config": plain(self.config),
            "dtype": dtype,
            "tokenizer": self.tokenizer.to_str(),
            "bos": self.bos,
            "pad": self.pad,
        }

    @staticmethod
    def rebuild(description: Any, who: str) -> LM:
        """A model of that description, its weights still to be loaded; raises KarmafunnelError for
        one that is none.
        """
        check_keys(who, description, DESCRIPTION, {"dtype": one_of(*DTYPES)})
        with opening(who, "a causal LM and its tokenizer"):
            config = AutoConfig.for_model(**description["config"])
            with torch.random.fork_rng():
                # not by a cast, which would take the rotary table, too
                dtype = getattr(torch, description.get("dtype", "float32"))
                model = AutoModelForCausalLM.from_config(
                    config, attn_implementation="sdpa", dtype=dtype
                )
            tokenizer = Tokenizer.from_str(description["tokenizer"])
        return LM(model, tokenizer, description["bos"], description["pad"], {})


def causal(there: Tensor) -> tuple[Tensor, Tensor]:
    """Causal mask (B, 1, L, L) and positions (B, L) of right-padded texts."""
    length = there.shape[1]
    mask = (
        torch.ones(length, length, dtype=torch.bool, device=there.device).tril() & there[:, None, :]
    )
    mask |= torch.eye(length, dtype=torch.bool, device=there.device)
    return mask[:, None], torch.arange(length, device=there.device).expand(len(there), -1)


def pool(lm: LM, ids: Tensor, there: Tensor) -> Tensor:
    """Mean of the last hidden states over each text's tokens, BOS before them: ids, there (B, T) ->
    (B, d), zeros for no token.
    """
    first = torch.full((len(ids), 1), lm.bos, dtype=ids.dtype, device=ids.device)
    there_too = torch.cat([torch.ones_like(first, dtype=torch.bool), there], dim=1)
    mask, position = causal(there_too)
    hidden = lm.hidden(lm.embed_tokens(torch.cat([first, ids], dim=1)), mask, position)
    hidden = hidden[:, 1:].float()
    weight = there[..., None].float()
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


@torch.inference_mode()
def pooled(lm: LM, texts: list[str], most: int, batch: int = 256) -> np.ndarray:
    """`pool` of texts: float32 (n, d), zeros for an empty text; a vector does not depend on the
    other texts of its batch.
    """
    ids, lengths = lm.encode(texts, most)
    out = np.zeros((len(texts), lm.dim), dtype=np.float32)
    for start in range(0, len(texts), batch):
        rows = slice(start, start + batch)
        there = np.arange(most) < lengths[rows, None]
        x = pool(
            lm, torch.from_numpy(ids[rows]).to(lm.device), torch.from_numpy(there).to(lm.device)
        )
        out[rows] = x.float().cpu().numpy()
    return finite(out, lm.title, "texts")


def perplexity(lm: LM, texts: list[str], most: int) -> float:
    """Perplexity of texts, each after BOS: exp of the mean loss per token; NaN without a token."""
    return perplexity_of(lm, *lm.encode(texts, most))


@torch.inference_mode()
def perplexity_of(lm: LM, ids: np.ndarray, lengths: np.ndarray) -> float:
    """`perplexity` of token ids (n, most), padded, and their lengths, (n,)."""
    total = count = 0.0
    for start in range(0, len(ids), 64):
        rows = slice(start, start + 64)
        there = torch.from_numpy(np.arange(ids.shape[1]) < lengths[rows, None]).to(lm.device)
        words = torch.from_numpy(ids[rows]).to(lm.device)
        inputs = torch.cat([torch.full_like(words[:, :1], lm.bos), words[:, :-1]], dim=1)
        mask, position = causal(torch.cat([torch.ones_like(there[:, :1]), there[:, :-1]], dim=1))
        logits = lm.head(lm.hidden(lm.embed_tokens(inputs), mask, position)).float()
        total += F.cross_entropy(logits[there], words[there], reduction="sum").item()
        count += int(there.sum())
    return math.exp(total / count) if count else math.nan


# -- the embedded default --------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Qwen(Typed):
    """A small model of the Qwen3 architecture with a byte-pair tokenizer, pre-trained here on
    product text [O].

    Args:
        dim: width of word embeddings and hidden states.
        layers: of the transformer.
        heads, kv_heads: of attention, for queries, and for keys and values; `heads` is a multiple
            of `kv_heads`, and `dim` of twice `heads`.
        mlp: width of the feed-forward part of a layer.
        vocab: tokens of the vocabulary, 300 or more; fewer where the texts give no more.
        context: tokens of a block in pre-training, and the most that is read of a text there. The
            model itself reads up to 4,096.
        catalogues: folders of logs or catalogues whose item text is read beside the log's own.
        tokens: how many are trained on, with repetition.
        rate: of AdamW; it rises over 50 steps and falls as a cosine.
        batch: blocks of `context` tokens a step.
        seed: its own, so that all rows and seeds of a table share one base.
        lora: rank of low-rank updates in later training, 0 fine-tunes every weight.
    """

    log_fields: ClassVar[tuple[str, ...]] = ("catalogues",)

    dim: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 384
    vocab: int = 4096
    context: int = 128
    catalogues: tuple[str, ...] = ()
    tokens: int = 2_000_000
    rate: float = 3e-3
    batch: int = 16
    seed: int = 0
    lora: int = 0

    def __post_init__(self) -> None:
        needs(
            self,
            "lora",
            "dim",
            "layers",
            "heads",
            "kv_heads",
            "mlp",
            "context",
            "batch",
            "vocab",
            "tokens",
            "rate",
            "seed",
        )
        check_folders("Qwen", catalogues=self.catalogues)
        # rotary positions turn pairs of dimensions
        if self.dim % (2 * self.heads) or self.heads % self.kv_heads:
            shape = f"dim={self.dim}, heads={self.heads}, kv_heads={self.kv_heads}"
            raise KarmafunnelError(
                "Qwen",
                needs="a dim of an even number a head and heads a multiple of kv_heads",
                found=shape,
            )

    def ready(self, log: Log, cache: Path | None, progress: Progress, device: str) -> LM:
        """The model pre-trained on the texts of the items known in W1; taken from `cache`, or
        resumed there, if possible.

        Raises KarmafunnelError where no item has text, one of `catalogues` cannot be read, or a
        loss is no number (naming the step).
        """
        texts = self.texts(log)
        if not texts:
            raise KarmafunnelError(
                f"{self!r}",
                needs="item text (title, brand, category, attributes)",
                found=f"none in log {log.name}",
            )
        digest = hashlib.sha256("\x00".join(texts).encode()).hexdigest()
        key = content_key(code_of(self), asdict(replace(self, lora=0)), digest, device)
        file = cache / f"base-{key}.safetensors" if cache else None
        lm = kept_or_made(
            file,
            "a pre-trained base",
            device,
            self,
            lambda partial: self.pretrain(texts, partial, progress, device),
        )
        lm.lora = self.lora
        return lm

    def texts(self, log: Log) -> list[str]:
        """Distinct texts in an order that does not depend on row order."""
        own = log.item_text()
        found = {own[i] for i in np.flatnonzero(known_in_w1(log))} or set(own)
        for path in self.catalogues:
            other = read(path)
            found |= set(Log(other_lazy(other.items), {}, None).item_text())
        return sorted(text.strip() for text in found if text and text.strip())

    def pretrain(
        self, texts: list[str], partial: Path | None, progress: Progress, device: str
    ) -> LM:
        """Pre-train, or go on from `partial`."""
        held = [t for t in texts if int(hashlib.sha256(t.encode()).hexdigest()[:8], 16) % 100 < 3]
        if not held or len(texts) < 20:
            held = texts[:: max(1, len(texts) // 20)] if len(texts) >= 20 else []
        apart = set(held)
        read_from = [t for t in texts if t not in apart]
        progress(f"tokenizer: {self.vocab} byte pairs from {len(read_from)} texts")
        tokenizer = byte_pairs(read_from, self.vocab)
        bos = int(tokenizer.token_to_id(BOS) or 0)
        # no text is more of what is read than a block
        each = [np.r_[bos, e.ids[: self.context]] for e in tokenizer.encode_batch(read_from)]
        stream = np.concatenate(each).astype(np.int64)
        config = Qwen3Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=self.dim,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.dim // self.heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=bos,
            eos_token_id=bos,
            pad_token_id=bos,
        )
        with seeded(self.seed, device):
            model = (
                AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
                .float()
                .to(device)
            )
        lm = LM(model, tokenizer, bos, bos, {})
        before = perplexity(lm, held, self.context)
        with seeded(self.seed, device):
            seconds = train_language(lm, stream, self, partial, progress, "pre-training")
        lm.facts = {
            "texts": len(texts),
            "held_out": len(held),
            "tokens": self.tokens,
            "distinct_tokens": len(stream),
            "parameters": sum(p.numel() for p in lm.model.parameters()),
            "seconds": round(seconds, 1),
            "perplexity_before": round(before, 2),
            "perplexity_after": round(perplexity(lm, held, self.context), 2),
        }
        progress(
            f"pre-trained: perplexity on {len(held)} unseen texts "
            f"{before:.0f} -> {lm.facts['perplexity_after']:.1f}"
        )
        return lm


class Plan(Protocol):
    """How a language model is trained: `tokens` are read in all, a step reads `batch` blocks of
    `context` tokens.
    """

    @property
    def tokens(self) -> int: ...

    @property
    def context(self) -> int: ...

    @property
    def batch(self) -> int: ...

    @property
    def rate(self) -> float: ...

    @property
    def seed(self) -> int: ...


def train_language(
    lm: LM, stream: np.ndarray, plan: Plan, partial: Path | None, progress: Progress, what: str
) -> float:
    """Next-token prediction on blocks of one long stream of token ids; trains the weights that
    require a gradient and goes on from `partial`, bit for bit on a CPU.

    Args:
        stream: token ids (n,), at least one.
        partial: where the checkpoint of a training that was cut short lies; None keeps none.
        what: the name of this training in progress and errors.

    Returns:
        Seconds.

    Raises:
        KarmafunnelError: a loss or a gradient is not finite; names the step.
    """
    per_step = plan.batch * plan.context
    steps = plan.tokens // per_step
    if len(stream) < plan.context + 1:
        stream = np.tile(stream, -(-(plan.context + 1) // len(stream)))
    named = {name: p for name, p in lm.model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        named.values(), lr=plan.rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    step, seconds = 0, 0.0
    if (kept := Snapshot.resume(partial)) is not None:
        kept.restore(named, optimiser)
        step, seconds = kept.facts["step"], kept.facts["seconds"]
        progress(f"{what} goes on after step {step} of {steps}")
    there = torch.ones(plan.batch, plan.context, dtype=torch.bool, device=lm.device)
    mask, position = causal(there)
    lm.model.train()
    began = said = time.perf_counter()
    while step < steps:
        rng = np.random.default_rng([plan.seed, 11, step])
        starts = rng.integers(0, len(stream) - plan.context, plan.batch)
        block = torch.from_numpy(stream[starts[:, None] + np.arange(plan.context + 1)]).to(
            lm.device
        )
        hidden = lm.hidden(lm.embed_tokens(block[:, :-1]), mask, position)
        loss = F.cross_entropy(lm.head(hidden).flatten(0, 1).float(), block[:, 1:].flatten())
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * min(
                1.0, (step + 1) / 50, 0.05 + 0.475 * (1 + math.cos(math.pi * step / steps))
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(named.values(), 1.0)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            kept_in = f"; the last good checkpoint is {partial}" if step >= SAVE_EVERY else ""
            raise KarmafunnelError(
                f"{plan!r}",
                needs="a finite loss",
                found=f"{loss.item()}, a gradient of length {norm.item()} in step {step + 1} of "
                f"{what}{kept_in if partial else ''}",
            )
        optimiser.step()
        step += 1
        now = time.perf_counter()
        if now - said > 2:
            said = now
            progress(f"{what}: step {step} of {steps}, loss {loss.item():.2f}")
        if partial is not None and step % SAVE_EVERY == 0 and step < steps:
            facts = {"step": step, "seconds": seconds + now - began}
            Snapshot.of(named, optimiser, facts).write(partial)
    lm.model.eval()
    return seconds + time.perf_counter() - began


def kept_or_made(
    file: Path | None, what: str, device: str, value: object, make: Callable[[Path | None], LM]
) -> LM:
    """The LM that is kept in `file`; else `make` makes it, and it is kept there.

    Args:
        file: None keeps nothing.
        what: what the file holds, for a message if it is damaged.
        value: how it is made; kept with it.
        make: takes the file of its unfinished checkpoint, or None.
    """
    if (kept := Snapshot.resume(file, what)) is None:
        partial = file.with_name(f"{file.stem}.partial.safetensors") if file else None
        lm = make(partial)
        if file is None or partial is None:
            return lm
        about = lm.describe() | {"facts": lm.facts, "value": repr(value), "speaks": lm.speaks}
        Snapshot(dict(lm.model.named_parameters()), about).write(file)
        remove(partial)
        kept = Snapshot.read(file, what)
    return open_base(kept, device)


def other_lazy(items: Any) -> dict[str, Any]:
    """A catalogue's items as the one table that `Log.item_text` reads."""
    return {"items": items.lazy()}


def byte_pairs(texts: list[str], vocab: int) -> Tokenizer:
    """A byte-level BPE tokenizer of lower-cased text (Sennrich et al. 2016)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab, 300),
        special_tokens=[BOS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def open_base(kept: Snapshot, device: str) -> LM:
    """A language model that is kept in a file; raises KarmafunnelError naming it otherwise."""
    lm = LM.rebuild(kept.facts, str(kept.file))
    put_weights(lm.model, kept.tensors, str(kept.file))
    lm.model.to(device)
    lm.facts, lm.speaks = dict(kept.facts.get("facts") or {}), kept.facts.get("speaks", True)
    return lm
