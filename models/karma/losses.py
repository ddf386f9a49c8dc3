"""The decoders that an interest (or a history) must be readable by; the action loss is in
`action.py`.

Tensors in, tensors out. [K]: `gen`, the target's text from the history; `rec`, the target's text or
frozen visual features, whose decoders are in `visual_losses.py`. [I]: everything else here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import LM, causal
from .network import word_size


def each_text(logits: Tensor, ids: Tensor, there: Tensor) -> Tensor:
    """Nats a token of each text: logits (B, T, V), ids and there (B, T) -> (B,), 0 for a text
    without a token.
    """
    nats = (
        F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none").view(
            ids.shape
        )
        * there
    )
    return nats.sum(dim=1) / there.sum(dim=1).clamp(min=1)


def lm_loss(each: Tensor, there: Tensor) -> Tensor:
    """Mean of `each_text`, (B,), over the texts that have a token."""
    return each.sum() / there.any(dim=1).sum().clamp(min=1)


def text_logits(
    lm: LM, hidden: Tensor, cells: Tensor, word: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the LM head says of each token of texts, from those before: logits (S, T, V), tokens and
    which are there (S, T).

    hidden (B, L, d), word (B, L); cells (S, 1 + T): where the texts stand in those, flattened, BOS
    first, -1 for none.
    """
    at = cells.clamp(min=0)
    logits = lm.head(hidden.flatten(0, 1)[at][:, :-1])
    return logits, word.flatten()[at][:, 1:], (cells >= 0)[:, 1:]


class BagOfWords(nn.Module):
    """`rec` through the LM head: -log softmax of the text's distinct tokens, mean (Llama2Vec, Li et
    al. 2023) [I].

    It is given the interest alone, so nothing of the history can reach it another way.
    """

    def __init__(self, lm: LM, d_z: int):
        super().__init__()
        self.map = nn.Linear(d_z, lm.dim)
        self.gain = nn.Parameter(torch.tensor(math.log(4.0)))
        nn.init.orthogonal_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def logits(self, lm: LM, z: Tensor) -> Tensor:
        """Logits over the vocabulary, float32: z (B, d_z) -> (B, V)."""
        return lm.head(F.rms_norm(self.map(z), (lm.dim,)) * self.gain.exp()).float()

    def forward(
        self,
        lm: LM,
        z: Tensor,
        ids: Tensor,
        there: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Nats a distinct token of each text, softmax over the whole vocabulary: (B,), 0 for a text
        without a token.

        z (B, d_z); ids and there (B, T): the texts' tokens, and which are no padding. Nothing is
        drawn from `generator`.
        """
        log_p = torch.log_softmax(self.logits(lm, z), dim=-1)
        ordered = torch.sort(torch.where(there, ids, -1), dim=1).values
        distinct = ordered >= 0
        distinct[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
        nats = -log_p.gather(1, ordered.clamp(min=0)) * distinct
        return nats.sum(dim=1) / distinct.sum(dim=1).clamp(min=1)


class Masked(nn.Module):
    """`rec` by one bidirectional layer over [z, text with `share` of its tokens masked] (RetroMAE,
    Xiao et al. 2022) [I].

    So weak a decoder, with so little of the text, has to ask the interest.

    Args:
        share: chance that a token is masked; at least one of a text is.
        heads: of attention; their greatest common divisor with the model's width is taken.
    """

    most = 256  # tokens of a text

    def __init__(self, lm: LM, d_z: int, share: float = 0.6, heads: int = 4):
        super().__init__()
        heads = math.gcd(heads, lm.dim)
        self.share = share
        self.map = nn.Linear(d_z, lm.dim)
        self.blank = nn.Parameter(torch.zeros(lm.dim))
        self.place = nn.Embedding(self.most, lm.dim)
        self.layer = nn.TransformerEncoderLayer(
            lm.dim, heads, 4 * lm.dim, dropout=0.0, batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(lm.dim)
        size = word_size(lm).item()
        nn.init.normal_(self.place.weight, std=size)
        nn.init.normal_(self.blank, std=size)

    def hide(self, there: Tensor, generator: torch.Generator | None) -> Tensor:
        """Which tokens are masked: (B, T) bool, at least one of a text that has any."""
        draw = (
            torch.rand(there.shape, generator=generator).to(there.device).masked_fill(~there, 2.0)
        )
        hidden = draw < self.share
        return hidden | ((draw == draw.amin(dim=1, keepdim=True)) & there)

    def forward(
        self,
        lm: LM,
        z: Tensor,
        ids: Tensor,
        there: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Nats a masked token of each text, softmax over the whole vocabulary: (B,), 0 for a text
        without a token.

        z (B, d_z); ids and there (B, T): the texts' tokens, and which are no padding; T is at most
        `most`. generator: which tokens are masked is drawn from it.
        """
        hidden = self.hide(there, generator)
        words = (
            torch.where(hidden[..., None], self.blank, lm.embed_tokens(ids).float())
            + self.place.weight[: ids.shape[1]]
        )
        cells = torch.cat([self.map(z)[:, None], words], dim=1)
        padding = torch.cat([torch.zeros_like(there[:, :1]), ~there], dim=1)
        out = self.norm(self.layer(cells, src_key_padding_mask=padding))[:, 1:]
        logits = torch.zeros(*ids.shape, lm.vocab, device=z.device)
        logits[hidden] = lm.head(out[hidden]).float()
        return each_text(logits, ids, hidden)


class Autoregressive(nn.Module):
    """`rec` by the LM itself: [soft tokens of z, BOS, text], causal, the history nowhere [I].
    Strong, so it may ignore z.

    Args:
        soft: tokens that z is told in.
    """

    size: Tensor

    def __init__(self, lm: LM, d_z: int, soft: int = 4):
        super().__init__()
        self.soft = soft
        self.map = nn.Linear(d_z, soft * lm.dim)
        self.register_buffer("size", word_size(lm))

    def prompt(self, lm: LM, z: Tensor) -> Tensor:
        """(B, d_z) -> (B, soft, d): soft tokens the size of words."""
        return F.rms_norm(self.map(z).view(len(z), self.soft, lm.dim), (lm.dim,)) * self.size

    def logits(self, lm: LM, z: Tensor, ids: Tensor, there: Tensor) -> Tensor:
        """Logits of each token, from those before it: z (B, d_z), ids and there (B, T) -> (B, T,
        V), float32.
        """
        prompt = self.prompt(lm, z)
        # one look-up: each makes a gradient as large as the vocabulary's table
        words = lm.embed_tokens(
            torch.cat([torch.full_like(ids[:, :1], lm.bos), ids[:, :-1]], dim=1)
        )
        cells = torch.cat([prompt, words.float()], dim=1)
        first = torch.ones(len(z), self.soft + 1, dtype=torch.bool, device=z.device)
        seen = torch.cat([first, there[:, :-1]], dim=1)
        return lm.head(lm.hidden(cells, *causal(seen))[:, self.soft :]).float()

    def forward(
        self,
        lm: LM,
        z: Tensor,
        ids: Tensor,
        there: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Nats a token of each text, softmax over the whole vocabulary: (B,), 0 for a text without
        a token.

        z (B, d_z); ids and there (B, T): the texts' tokens, and which are no padding. Nothing is
        drawn from `generator`.
        """
        return each_text(self.logits(lm, z, ids, there), ids, there)

    @torch.inference_mode()
    def read(self, lm: LM, z: Tensor, most: int) -> list[str]:
        """Texts of z (B, d_z), one a row: the likeliest next token again and again, until BOS or
        `most` tokens.
        """
        ids = torch.zeros(len(z), 1, dtype=torch.int64, device=z.device)
        going = torch.ones(len(z), dtype=torch.bool, device=z.device)
        told: list[list[int]] = [[] for _ in range(len(z))]
        for _ in range(most):
            best = self.logits(lm, z, ids, torch.ones_like(ids, dtype=torch.bool))[:, -1].argmax(
                dim=1
            )
            going &= best != lm.bos
            for i in torch.nonzero(going)[:, 0].tolist():
                told[i].append(int(best[i]))
            if not going.any():
                break
            ids = torch.cat([ids[:, :-1], best[:, None], torch.zeros_like(ids[:, :1])], dim=1)
        return [lm.decode(words).strip() for words in told]
