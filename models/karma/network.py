"""The serving half of KARMA: items and histories in, vectors out. It holds no decoder but the
`generator` of interests, where there is one.

An item is x = text(frozen or trained LM vector) + visual(frozen features) + id; its vector is x at
length 1, its history token the same x, scaled to the size of a word embedding, with action type and
time gap added [I; one tied x for both sides: O]. The interest z is a linear map of the last hidden
state at [INT], at length 1 [I], with the decayed mean of the history's item vectors added to it
where `residual` says so, and a map of the query's own words where it is given them [O]. Under an
action loss on plain inner products, item vectors and interests keep their own lengths.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import LM
from .sequences import ACTIONS, GAPS, INT, TRUNK, Batch
from .visual_losses import VectorDecoder, VectorLoss


def word_size(lm: LM) -> Tensor:
    """Standard deviation of the word embeddings, to which inserted vectors are scaled."""
    return (
        lm.embed_tokens(torch.arange(min(lm.vocab, 4096), device=lm.device)).detach().float().std()
    )


class Network(nn.Module):
    """Frozen features of items -> item vectors (m, dim); trees of histories -> interests (R, dim).

    Args:
        lm: the language model; its weights become part of the network's.
        dim: length of x, of item vectors and of interests.
        d_text, d_visual: lengths of frozen text and visual features; `d_visual` 0: without those.
        n_ids: items with an id embedding, 0 for none.
        dropout: chance that an element of a history's item token is 0 in training.
        scale: 1 / temperature of the action loss, where training starts.
        residual: the decayed mean of the history's item vectors is added to the interest.
        d_asked: length of the frozen vectors of queries that `z` is given; 0: it is given none.
        unit: interests and item vectors have length 1, in training and in serving.
        generator: makes the interest from what would be it, as a control; text and visual maps and
            ids are then not trained. None: the projection itself.
    """

    size: Tensor

    def __init__(
        self,
        lm: LM,
        dim: int,
        d_text: int,
        d_visual: int,
        n_ids: int,
        dropout: float,
        scale: float,
        residual: bool = False,
        d_asked: int = 0,
        unit: bool = True,
        generator: VectorLoss | None = None,
    ):
        super().__init__()
        self.dim, self.dropout, self.unit = dim, dropout, unit
        self.use(lm)
        self.text = nn.Linear(d_text, dim, bias=False)
        self.visual = nn.Linear(d_visual, dim, bias=False) if d_visual else None
        # at zero an id says nothing: an unseen item is its text
        self.ids = nn.Parameter(torch.zeros(n_ids, dim))
        self.token = nn.Linear(dim, lm.dim, bias=False)
        self.action = nn.Embedding(ACTIONS, lm.dim)
        self.gap = nn.Embedding(GAPS, lm.dim)
        self.ask = nn.Parameter(torch.zeros(lm.dim))  # the [INT] token
        self.interest = nn.Linear(lm.dim, dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        # weight and decay (after softplus) of what was last looked at; a step back in the history
        # counts .8 times as much at first
        self.residual = nn.Parameter(torch.tensor([0.5, -1.39])) if residual else None
        self.asked = nn.Linear(d_asked, dim, bias=False) if d_asked else None
        self.asked_weight = nn.Parameter(torch.tensor(0.5)) if d_asked else None
        with torch.no_grad():
            self.register_buffer("size", word_size(lm))
            for linear in filter(None, (self.text, self.visual, self.token, self.interest)):
                nn.init.orthogonal_(linear.weight)
            nn.init.normal_(self.ask, std=self.size.item())
            for table in (self.action, self.gap):
                nn.init.normal_(table.weight, std=0.1 * self.size.item())
            # a query starts where an item of the same words would: the last columns of text
            if self.asked is not None and d_text >= d_asked:
                self.asked.weight.copy_(self.text.weight[:, -d_asked:])
        self.generator: VectorDecoder | None = None
        if generator is not None:
            self.generator = generator.decoder(dim, dim, lm.dim)
            # a generator is trained towards item vectors, which must not come to meet it
            for part in filter(None, (self.text, self.visual)):
                part.requires_grad_(False)
            self.ids.requires_grad_(False)
        self.to(lm.device)

    def use(self, lm: LM) -> None:
        """Use this language model from now on; its weights become part of the network's."""
        self.lm, self.model = lm, lm.model

    def mix(self, text: Tensor, visual: Tensor | None, ids: Tensor | None) -> Tensor:
        """x of items from their features, (m, d_t), (m, d_v), (m, dim): (m, dim)."""
        x = self.text(text)
        if self.visual is not None and visual is not None:
            x = x + self.visual(visual)
        return x if ids is None else x + ids

    def cells(self, batch: Batch, x: Tensor) -> Tensor:
        """Inputs of the language model, (B, L, lm.dim); `batch.item` are rows of x."""
        cells = self.lm.embed_tokens(batch.word).to(x.dtype)
        is_item = (batch.kind == TRUNK) & (batch.item >= 0)
        tokens = self.token(F.normalize(x, dim=-1)) * (self.size * math.sqrt(self.dim))
        tokens = F.dropout(tokens[batch.item.clamp(min=0)], self.dropout, self.training)
        cells = torch.where(is_item[..., None], tokens + self.action(batch.action), cells)
        cells = torch.where((batch.kind == INT)[..., None], self.ask, cells)
        return cells + self.gap(batch.gap) * (batch.gap > 0)[..., None]

    def forward(self, batch: Batch, x: Tensor) -> Tensor:
        """Last hidden states of all cells, (B, L, lm.dim)."""
        return self.lm.hidden(self.cells(batch, x), batch.mask, batch.position)

    def asking(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Last hidden states at the [INT] cells: (R, lm.dim)."""
        return hidden.flatten(0, 1)[batch.interest].to(self.interest.weight.dtype)

    def z(self, hidden: Tensor, batch: Batch, x: Tensor, asked: Tensor | None = None) -> Tensor:
        """User embeddings at the [INT] cells: (R, dim), length 1 where `unit`.

        `batch.item` are rows of x. asked (R, d_asked): words of the queries.
        """
        z = self.to_length(self.interest(self.asking(hidden, batch)))
        if self.residual is not None:
            weight, decay = F.softplus(self.residual)
            z = z + weight * self.recent(batch, x, decay)
        if self.asked is not None and self.asked_weight is not None and asked is not None:
            z = z + F.softplus(self.asked_weight) * F.normalize(self.asked(asked), dim=-1)
        return z if self.residual is None and self.asked is None else self.to_length(z)

    def to_length(self, x: Tensor) -> Tensor:
        """Rows at length 1 where `unit`, else as they are."""
        return F.normalize(x, dim=-1) if self.unit else x

    def direction(self, z: Tensor) -> Tensor:
        """User embeddings as decoders read them: at length 1, whatever the action loss."""
        return z if self.unit else F.normalize(z, dim=-1)

    def recent(self, batch: Batch, x: Tensor, decay: Tensor) -> Tensor:
        """Weighted mean vector of the items visible to each [INT] cell, each step back weighing
        exp(-decay) times as much: (R, dim), length 1; zeros without a visible item.
        """
        row, column = batch.interest // batch.kind.shape[1], batch.interest % batch.kind.shape[1]
        item = (batch.kind == TRUNK) & (batch.item >= 0)
        # items stand before all branches
        trunk = int(item.any(dim=0).nonzero().max()) + 1 if item.any() else 1
        seen = batch.mask[row, 0, column, :trunk] & item[row, :trunk]  # (R, trunk)
        place = batch.position[row, :trunk] * seen
        weight = (-decay * (place.amax(dim=1, keepdim=True) - place)).exp() * seen
        vectors = F.normalize(x, dim=-1)[batch.item[row, :trunk].clamp(min=0)]
        return F.normalize(torch.bmm(weight[:, None].to(vectors.dtype), vectors)[:, 0], dim=-1)

    def scale(self) -> Tensor:
        """1 / temperature, at most 100 [I]."""
        return self.log_scale.clamp(max=math.log(100)).exp()
