"""What KARMA is trained by: the action loss, and the decoders that an interest (or a history) must
be readable by.

Tensors in, tensors out. [K]: an action loss with exposed-not-clicked negatives; `gen`, the target's
text from the history; `rec`, the target's text or frozen visual features from the interest alone;
diffusion as the worse generator of the embedding. [I]: everything else here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import LM, causal
from .network import word_size

CHUNK = 64  # rows of logits held at a time: small enough to stay in the cache


# -- action ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pairs:
    """What rows must tell from the rest: row (P,) ascending, target (P,) distinct within a row,
    weight (P,).
    """

    row: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class ShownInVain:
    """Hard negatives of rows: vectors (R, h, d), there (R, h) bool, known (R, h, f) as of targets;
    each weighs `weight` times as much as another negative.
    """

    vectors: Tensor
    there: Tensor
    known: Tensor
    weight: float = 1.0


class CatalogueSoftmax(torch.autograd.Function):
    """Sum over pairs of weight * -log softmax(scale * z e^T)[row, target], its gradient made in the
    same pass.

    The other targets of a row are no negatives of this one, so a pair's denominator is the row's
    sum less its other targets.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        e: Tensor,
        pairs: Pairs,
        scale: Tensor,
        hard_row: Tensor,
        hard_item: Tensor,
        hard_weight: float,
    ) -> Tensor:
        row, target, weight = pairs.row, pairs.target, pairs.weight
        s = float(scale.detach())
        grad_z, grad_e, grad_s = torch.empty_like(z), torch.zeros_like(e), 0.0
        total = torch.zeros((), dtype=torch.float64, device=z.device)
        edges = torch.arange(0, len(z) + CHUNK, CHUNK, device=row.device)
        bounds = torch.searchsorted(row, edges).tolist()
        hard_bounds = torch.searchsorted(hard_row, edges).tolist()
        for i, start in enumerate(range(0, len(z), CHUNK)):
            part = slice(start, start + CHUNK)
            here_pairs = slice(bounds[i], bounds[i + 1])
            hards = slice(hard_bounds[i], hard_bounds[i + 1])
            cosine = torch.mm(z[part], e.T)
            here, goal, w = row[here_pairs] - start, target[here_pairs], weight[here_pairs]
            p = cosine * s
            # so many times as heavy: a weight on exp is a constant on the logit
            if hard_weight != 1.0:
                p.index_put_(
                    (hard_row[hards] - start, hard_item[hards]),
                    p.new_tensor(math.log(hard_weight)),
                    accumulate=True,
                )
            logit = p[here, goal]
            top = p.amax(dim=1, keepdim=True)
            p.sub_(top).exp_()
            own = p[here, goal]  # (P',)
            truths = torch.zeros(len(p), dtype=p.dtype, device=p.device).index_add_(0, here, own)
            # the row's sum over all that is no truth of it
            others = (p.sum(dim=1) - truths).clamp_min_(0)[here]
            mine = others + own
            total += (w * (top[here, 0] + mine.clamp_min(1e-30).log() - logit)).sum()
            # d loss / d logit: non-truths share sum over pairs of w * p / mine; a truth has w *
            # (own / mine - 1) of its own pair
            share = torch.zeros(len(p), dtype=p.dtype, device=p.device).index_add_(
                0, here, w / mine.clamp_min(1e-30)
            )
            p.mul_(share[:, None])
            p[here, goal] = 0
            p.index_put_((here, goal), w * (own / mine.clamp_min(1e-30) - 1), accumulate=True)
            grad_s += float((p * cosine).sum())
            grad_z[part] = torch.mm(p, e) * s
            grad_e.addmm_(p.T, z[part], alpha=s)
        ctx.save_for_backward(grad_z, grad_e, scale.new_tensor(grad_s))
        return total.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_z, grad_e, grad_s = ctx.saved_tensors
        return grad * grad_z, grad * grad_e, None, grad * grad_s, None, None, None


def action_catalogue(
    z: Tensor,
    e: Tensor,
    pairs: Pairs,
    scale: Tensor,
    hard: Tensor | None = None,
    hard_weight: float = 1.0,
) -> Tensor:
    """Sum over pairs of weight * -log softmax over the whole catalogue [I].

    z (R, d), e (m, d) unit rows; scale (): 1 / temperature. hard (R, h): items shown to the row in
    vain, -1 for none; they weigh `hard_weight` times as much as another negative.
    """
    hard_row = hard_item = torch.zeros(0, dtype=torch.int64, device=z.device)
    if hard is not None and hard_weight != 1.0:
        there = hard >= 0
        row = torch.arange(len(hard), device=z.device)[:, None].expand_as(hard)
        keys = torch.unique(row[there] * len(e) + hard[there])
        hard_row, hard_item = keys // len(e), keys % len(e)
    loss: Tensor = CatalogueSoftmax.apply(z, e, pairs, scale, hard_row, hard_item, hard_weight)
    return loss


def action_in_batch(
    z: Tensor,
    e: Tensor,
    pairs: Pairs,
    scale: Tensor,
    log_p: Tensor,
    known: Tensor,
    hard: ShownInVain | None = None,
    threshold: float = 0.99,
) -> Tensor:
    """The same sum, its negatives the other pairs' targets in the batch and what the row was shown
    in vain [K: hard ones; I].

    z (R, d); e (P, d): vector of each pair's target; log_p (P,): log chance that the batch holds
    this target at all (`log_chance`). A target of the batch enters once, as a negative with logit -
    log_p (after Yi et al. 2019): the sum over the batch is then on average the sum over the
    catalogue, and the pair's own target needs no correction; `hard` is not corrected either. False
    negatives are masked: truths of the same row, and what has a cosine over `threshold` with the
    target in `known` (P, f), frozen unit features: by the vectors that are being trained, a space
    that draws together would mask all that could part it.
    """
    row, target = pairs.row, pairs.target
    positive = scale * (z[row] * e).sum(dim=1)
    # an item stands in the denominator once
    first = torch.ones(len(target), dtype=torch.bool, device=z.device)
    order = torch.argsort(target, stable=True)
    first[order[1:]] = target[order[1:]] != target[order[:-1]]
    columns = torch.nonzero(first)[:, 0]
    items = target[columns]
    negative = (scale * z @ e[columns].T - log_p[columns])[row]  # (P, U)
    truth = torch.zeros(len(z), len(columns), dtype=torch.bool, device=z.device)
    truth[row, torch.searchsorted(items[torch.argsort(items)], target)] = True
    by_item = torch.argsort(torch.argsort(items))  # place of each column among the sorted items
    false = truth[:, by_item][row] | (known @ known[columns].T > threshold)
    parts = [positive[:, None], negative.masked_fill(false, -torch.inf)]
    if hard is not None:
        vain = scale * torch.einsum("rd,rhd->rh", z, hard.vectors) + math.log(hard.weight)
        alike = torch.einsum("pf,phf->ph", known, hard.known[row]) > threshold
        parts.append(vain.masked_fill(~hard.there, -torch.inf)[row].masked_fill(alike, -torch.inf))
    return (pairs.weight * (torch.logsumexp(torch.cat(parts, dim=1), dim=1) - positive)).sum()


def log_chance(share: Tensor, draws: int) -> Tensor:
    """Log chance that so many draws hold an item at least once, from its share of one draw (0, 1]:
    (n,) -> (n,).
    """
    return torch.log(-torch.expm1(draws * torch.log1p(-share)))


# -- words -----------------------------------------------------------------------------------------


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


def lm_loss(logits: Tensor, ids: Tensor, there: Tensor) -> Tensor:
    """Mean of `each_text` over the texts that have a token."""
    return each_text(logits, ids, there).sum() / there.any(dim=1).sum().clamp(min=1)


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

    def logits(self, lm: LM, z: Tensor) -> Tensor:  # (B, d_z) -> (B, V)
        return lm.head(F.rms_norm(self.map(z), (lm.dim,)) * self.gain.exp()).float()

    def forward(
        self,
        lm: LM,
        z: Tensor,
        ids: Tensor,
        there: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
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
    """

    size: Tensor

    def __init__(self, lm: LM, d_z: int, soft: int = 4):
        super().__init__()
        self.soft = soft
        self.map = nn.Linear(d_z, soft * lm.dim)
        self.register_buffer("size", word_size(lm))

    def prompt(self, lm: LM, z: Tensor) -> Tensor:
        """(B, d_z) -> (B, soft + 1, d): soft tokens the size of words, then BOS."""
        soft = F.rms_norm(self.map(z).view(len(z), self.soft, lm.dim), (lm.dim,)) * self.size
        bos = lm.embed_tokens(torch.full((len(z), 1), lm.bos, device=z.device)).float()
        return torch.cat([soft, bos], dim=1)

    def logits(
        self, lm: LM, z: Tensor, ids: Tensor, there: Tensor
    ) -> Tensor:  # (B, T) -> (B, T, V): of each token, from those before
        prompt = self.prompt(lm, z)
        cells = torch.cat([prompt, lm.embed_tokens(ids[:, :-1]).float()], dim=1)
        seen = torch.cat(
            [torch.ones(prompt.shape[:2], dtype=torch.bool, device=z.device), there[:, :-1]], dim=1
        )
        return lm.head(lm.hidden(cells, *causal(seen))[:, self.soft :]).float()

    def forward(
        self,
        lm: LM,
        z: Tensor,
        ids: Tensor,
        there: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return each_text(self.logits(lm, z, ids, there), ids, there)

    @torch.inference_mode()
    def read(self, lm: LM, z: Tensor, most: int) -> list[str]:
        """The likeliest next token again and again, until BOS or `most` tokens."""
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


# -- frozen features -------------------------------------------------------------------------------


class VectorDecoder(nn.Module):
    """`see`: the target's frozen features from the interest alone [K]; "mse" or "cosine" by a
    linear map [I], or "diffusion": a small denoiser conditioned on z that predicts the noise (Ho et
    al. 2020, cosine schedule), the paper's negative result [K].
    """

    steps = 50

    def __init__(self, d_z: int, d_v: int, kind: Literal["mse", "cosine", "diffusion"]):
        super().__init__()
        self.kind, self.d_v = kind, d_v
        if kind == "diffusion":
            self.net = nn.Sequential(nn.Linear(d_z + d_v + 2, 256), nn.SiLU(), nn.Linear(256, d_v))
        else:
            self.net = nn.Sequential(nn.Linear(d_z, d_v))

    def kept(self, t: Tensor) -> Tensor:
        """Share of the signal's variance left after a fraction t of the steps (Nichol & Dhariwal
        2021).
        """
        return torch.cos(t.clamp(0, 0.999) * math.pi / 2) ** 2

    def told(self, z: Tensor) -> Tensor:
        """The network's view of interests: deviation 1 a dimension, as its targets have; at length
        1 it would learn too slowly.
        """
        return z * math.sqrt(z.shape[1])

    def noise(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.net(
            torch.cat(
                [self.told(z), x, torch.sin(math.pi * t)[:, None], torch.cos(math.pi * t)[:, None]],
                dim=1,
            )
        )

    def forward(
        self, z: Tensor, features: Tensor, there: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Loss of each row, (B,), 0 where it has no features; features (B, d_v) of about unit
        length, there (B,).
        """
        x = features * math.sqrt(self.d_v)  # about deviation 1 a dimension
        if self.kind == "cosine":
            each = 1 - F.cosine_similarity(self.net(self.told(z)), x, dim=1)
        elif self.kind == "mse":
            each = ((self.net(self.told(z)) - x) ** 2).mean(dim=1)
        else:
            t = torch.rand(len(z), generator=generator).to(z.device)
            eps = torch.randn(x.shape, generator=generator).to(z.device)
            kept = self.kept(t)[:, None]
            each = ((self.noise(z, kept.sqrt() * x + (1 - kept).sqrt() * eps, t) - eps) ** 2).mean(
                dim=1
            )
        return each * there

    @torch.inference_mode()
    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Features (B, d_v) that an interest stands for, to the scale of `features`; by DDIM (Song
        et al. 2021) for diffusion.
        """
        if self.kind != "diffusion":
            return self.net(self.told(z)) / math.sqrt(self.d_v)
        x = torch.randn(len(z), self.d_v, generator=generator).to(z.device)
        for i in reversed(range(self.steps)):
            now, then = (
                torch.full((len(z),), (i + k) / self.steps, device=z.device) for k in (1, 0)
            )
            a, b = self.kept(now)[:, None], self.kept(then)[:, None]
            eps = self.noise(z, x, now)
            clean = (x - (1 - a).sqrt() * eps) / a.sqrt()
            x = b.sqrt() * clean.clamp(-4, 4) + (1 - b).sqrt() * eps
        return x / math.sqrt(self.d_v)
