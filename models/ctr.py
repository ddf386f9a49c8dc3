"""Click models over (request, candidate): DIN, DCN-V2, ESMM over either, COLD and two towers; one training loop, no pickles.

Grouped by request: a history is embedded once however many candidates there are. They give logits (B, C), ESMM (B, C, 2);
they know arrays, no funnel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..bounds import Bound
from ..errors import KarmafunnelError, line_of, quoted
from ..files import atomic_folder, check, read_json, write_json
from ..shapes import ANY, TEXT, by_name, check_keys, maybe, number
from .training import seeded

PADDING, UNKNOWN, FIRST = 0, 1, 2  # rows of an id table before those of the items
AGES, ACTIONS = 48, 3  # buckets of log2(1 + age); 0 pad, 1 click, 2 purchase
BINS = 22  # SimTier: cosines in steps of 0.1, from -1.1 to 1.1
STEPS = 16  # steps that an epoch has at least: a small log would end before its numbers have outgrown the draw they start from
CELLS = 1 << 21  # floats that a chunk may take while predicting: 8 MiB, about what the caches hold


@dataclass(frozen=True)
class Batch:
    """N requests of up to C candidates: arrays (NumPy outside, torch inside a model).

    items (N, C) int64, -1 padding; dense (N, C, F) float32, NaN = missing; history (N, L) int64, -1 padding;
    label (N, C) float32 in 0..1; weight (N, C) float32, 0 where a cell has no label or is padding; request (N, R) float32, R may
    be 0; age (N, L) int64 and action (N, L) int8 of the history, both optional (all models then know the items alone); bought
    (N, C) float32, the second label of ESMM.
    """

    items: Any
    dense: Any
    history: Any
    label: Any
    weight: Any
    request: Any = None
    age: Any = None
    action: Any = None
    bought: Any = None

    def __len__(self) -> int:
        return len(self.items)

    def rows(self, index: Any) -> Batch:
        """Some of the requests."""
        return replace(self, **{name: x[index] for name, x in vars(self).items() if x is not None})

    def to_torch(self, device: str | torch.device = "cpu") -> Batch:
        """The same as tensors; int64 for numbers, float32 for the rest."""
        out: dict[str, Any] = {}
        for name, x in vars(self).items():
            whole = name in ("items", "history", "age", "action")
            if x is None:
                x = np.zeros((len(self), 0), np.float32) if name == "request" else None
            if x is not None:
                out[name] = torch.from_numpy(np.ascontiguousarray(x, dtype=np.int64 if whole else np.float32)).to(device)
        return Batch(**out)

    def check(self, who: str) -> None:
        """Raises KarmafunnelError where shapes disagree or a label is not finite."""
        n, c = np.shape(self.items)
        shapes = {name: np.shape(x) for name, x in vars(self).items() if x is not None}
        cells = [shapes["dense"][:2], *(shapes[name] for name in ("label", "weight", "bought") if name in shapes)]
        if any(shape != (n, c) for shape in cells) or shapes["history"][0] != n:
            raise KarmafunnelError(f"{who}: needed items, dense, label, weight (N, C, ...) and history (N, L), found {shapes}")
        bad = ~np.isfinite(self.label) & (np.asarray(self.weight) > 0)
        if self.bought is not None:
            bad |= ~np.isfinite(self.bought) & (np.asarray(self.weight) > 0)
        if bad.any() or not np.isfinite(self.weight).all():
            raise KarmafunnelError(
                f"{who}: needed finite labels and weights, found others, first in request {int(np.argmax(bad.any(axis=1)))}"
            )


# -- what the models share ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Sizes that a model is built for; part of what is saved."""

    n_items: int
    n_dense: int
    n_request: int = 0
    n_categories: int = 0
    n_vector: int = 0


class Inputs(nn.Module):
    """Ids and numbers to vectors.

    An item that was never a positive in training stands for UNKNOWN as a candidate (its id would be a negative by
    construction), one never in a history for UNKNOWN there; UNKNOWN is learnt by dropping a share of ids at random.
    Numbers are standardised, NaN becomes the mean.
    """

    is_candidate: Tensor
    is_history: Tensor
    category_of: Tensor

    def __init__(self, shape: Shape, dim: int, unknown: float, category: np.ndarray | None):
        super().__init__()
        self.unknown = unknown
        self.id = nn.Embedding(shape.n_items + FIRST, dim, padding_idx=PADDING)
        self.category = nn.Embedding(shape.n_categories + 1, dim, padding_idx=0) if shape.n_categories else None
        nn.init.normal_(self.id.weight, std=0.2)  # with less, few clicks do not get the product of two ids off the ground
        if self.category is not None:
            nn.init.normal_(self.category.weight, std=0.2)
        with torch.no_grad():
            for table in (self.id, self.category):
                if table is not None:
                    table.weight[0] = 0
        of_item = np.zeros(shape.n_items + 1, dtype=np.int64)  # 0: none; the last entry answers for padding
        if category is not None:
            of_item[:-1] = np.asarray(category) + 1
        self.register_buffer("category_of", torch.from_numpy(of_item))
        self.register_buffer("is_candidate", torch.zeros(shape.n_items + 1, dtype=torch.bool))
        self.register_buffer("is_history", torch.zeros(shape.n_items + 1, dtype=torch.bool))
        for name, width in (("dense", shape.n_dense), ("request", shape.n_request)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_scale", torch.ones(width))

    @property
    def width(self) -> int:
        return self.id.embedding_dim * (1 if self.category is None else 2)

    def observe(self, batches: Sequence[Batch]) -> None:
        """Take means, deviations and the known ids from the training data."""
        candidate, history = self.is_candidate.zero_(), self.is_history.zero_()
        sums: dict[str, Any] = {"dense": 0.0, "request": 0.0}
        for batch in batches:
            used = np.asarray(batch.weight) > 0
            candidate[torch.from_numpy(np.asarray(batch.items)[used & (np.asarray(batch.label) > 0)]).long()] = True
            seen = np.asarray(batch.history)
            history[torch.from_numpy(seen[seen >= 0]).long()] = True
            for name, x in (("dense", np.asarray(batch.dense)[used]), ("request", batch.request)):
                if x is not None and len(x):
                    x = np.asarray(x, dtype=np.float64)
                    there = np.isfinite(x)
                    x = np.where(there, x, 0)
                    sums[name] = sums[name] + np.stack([there.sum(axis=0), x.sum(axis=0), (x**2).sum(axis=0)])
        for name, total in sums.items():
            if isinstance(total, np.ndarray):
                n = np.maximum(total[0], 1)
                mean = total[1] / n
                deviation = np.sqrt(np.maximum(total[2] / n - mean**2, 0))
                scale = np.where(deviation > 1e-6 * (1 + np.abs(mean)), deviation, 1.0)
                getattr(self, f"{name}_mean").copy_(torch.from_numpy(mean))
                getattr(self, f"{name}_scale").copy_(torch.from_numpy(scale))

    def items(self, items: Tensor, known: Tensor) -> Tensor:  # (...) numbers -> (..., width)
        row = torch.where(known[items], items + FIRST, UNKNOWN)
        if self.training and self.unknown:
            row = torch.where(torch.rand(row.shape, device=row.device) < self.unknown, UNKNOWN, row)
        x = self.id(torch.where(items < 0, PADDING, row))
        if self.category is None:
            return x
        return torch.cat([x, self.category(self.category_of[items] * (items >= 0))], dim=-1)

    def numbers(
        self, x: Tensor, name: str
    ) -> Tensor:  # (..., F) -> (..., F), missing values at the mean, outliers at 5 deviations
        x = (x - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_scale")
        return torch.nan_to_num(x, nan=0.0, posinf=5.0, neginf=-5.0).clamp(-5, 5)


def mean_of(h: Tensor, history: Tensor) -> Tensor:
    """Mean over the history that is there: (B, L, d), (B, L) numbers -> (B, d), zeros where there is none (padding is zeros)."""
    return h.sum(dim=1) / (history >= 0).sum(dim=1, keepdim=True).clamp(min=1)


class Layers(nn.Sequential):
    """Linear layers with ReLU and dropout between them."""

    def __init__(self, sizes: Sequence[int], dropout: float):
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(sizes)):
            layers.append(nn.Linear(a, b))
            if i < len(sizes) - 2:
                layers += [nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers)


def final(layers: nn.Module) -> nn.Linear:
    """The last linear layer of some."""
    return [x for x in layers.modules() if isinstance(x, nn.Linear)][-1]


def mass(batch: Batch, label: Any) -> float:
    """Sum of the weights of what is labelled so."""
    return float(np.sum(np.asarray(batch.weight, dtype=np.float64) * label))


def start_at(layer: nn.Linear, positives: float, n: float) -> None:
    """Set a bias to the log odds of a rate."""
    with torch.no_grad():
        layer.bias.fill_(float(np.log((positives + 0.5) / (n - positives + 0.5))))


class ClickModel(nn.Module):
    """Base of all: `config` and `shape` rebuild it, `inputs` holds what was observed of the training data."""

    config: Any
    shape: Shape
    inputs: Inputs

    def forward(self, batch: Batch) -> Tensor:  # tensors in, logits (B, C) out
        raise NotImplementedError

    def last(self) -> nn.Linear:
        """The layer whose bias is the logit of a candidate that nothing is known of."""
        raise NotImplementedError

    def observe(self, batches: Sequence[Batch]) -> None:
        """Take from the training data what the inputs need, and start at its rate of positives.

        Else the first epochs of cross entropy go into learning that positives are rare, and few requests leave few epochs.
        """
        self.inputs.observe(batches)
        start_at(self.last(), sum(mass(b, b.label) for b in batches), sum(mass(b, 1.0) for b in batches))

    def loss(self, batch: Batch, kind: str) -> tuple[Tensor, Tensor]:
        """Sum of the losses of a batch and of the weights they count with; see `click_loss`."""
        return click_loss(self(batch), batch, kind)

    def cells(self, candidates: int, history: int) -> int:
        """Floats that one request takes while predicting, roughly."""
        return candidates * 256


class Trunk(ClickModel):
    """A model that is a representation (B, C, d) and a head over it, so that ESMM can put two heads on it."""

    head: nn.Module

    def represent(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def new_head(self) -> nn.Module:
        """An untrained head, drawn from torch's generator."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.represent(batch)).squeeze(-1)

    def last(self) -> nn.Linear:
        return final(self.head)


# -- DIN ----------------------------------------------------------------------------------------------------------------


class TargetAttention(nn.Module):
    """Score of every (candidate, history item) by an MLP over [c, h, c - h, c * h]: (B, C, d), (B, L, d) -> (B, C, L).

    Its first layer is factored: [c, h, c - h, c * h] W = c (Wc + Wd + h Wp) + h (Wh - Wd), one batched product of c with a
    (d, L x hidden) matrix a request. The (B, C, L, 4 d) tensor is never there. `naive` is the same, written out.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.first, self.second = nn.Linear(4 * dim, hidden), nn.Linear(hidden, 1)

    def forward(self, c: Tensor, h: Tensor) -> Tensor:
        (b, n, d), length = c.shape, h.shape[1]
        wc, wh, wd, wp = self.first.weight.split(d, dim=1)  # each (hidden, d)
        by_history = (h[..., None] * wp.T).transpose(1, 2) + (wc + wd).T[:, None]  # (B, d, L, hidden)
        start = F.linear(h, wh - wd, self.first.bias).reshape(b, 1, -1)  # (B, 1, L x hidden)
        x = torch.baddbmm(start, c, by_history.reshape(b, d, -1))  # (B, C, L x hidden)
        x = F.relu(x, inplace=True).view(b, n, length, -1)
        return x @ self.second.weight[0] + self.second.bias

    def naive(self, c: Tensor, h: Tensor) -> Tensor:
        shape = (c.shape[0], c.shape[1], h.shape[1], c.shape[2])
        c, h = c[:, :, None].expand(shape), h[:, None].expand(shape)
        return self.second(F.relu(self.first(torch.cat([c, h, c - h, c * h], dim=-1)))).squeeze(-1)


@dataclass(frozen=True)
class DINConfig:
    """dim of an id vector; hidden width of the attention; MLP widths; share of ids dropped in training.

    similar: how fixed vectors enter, if at all: as SimTier, as SA-TA (Sheng et al. 2024; MUSE, arXiv 2512.07216), as both, or
    "raw", `raw` numbers beside each id vector.
    """

    dim: int = 16
    attention: int = 32
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.1
    unknown: float = 0.3
    similar: Literal["", "simtier", "sata", "both", "raw"] = ""
    raw: int = 16


class DIN(Trunk):
    """Deep Interest Network: history items weighed by their fit to the candidate, weights not normalised (as in the paper).

    category (n_items,) one number an item. vectors (n_items, d) fixed, needed by `similar`: the cosine r of candidate and
    history item enters as SimTier (its histogram, 22 bins, log(1 + count) times a learnt 4-d vector) and as SA-TA (weight =
    g1 a + g2 r + g3 a r); an item whose vector is zeros is counted in no bin. Raw: candidate and history items stand for their
    id vector and, beside it, their fixed vector through one projection and LayerNorm.
    """

    vectors: Tensor
    tier: nn.Parameter | None
    gate: nn.Parameter | None
    project: nn.Module | None

    def __init__(
        self,
        shape: Shape,
        config: DINConfig = DINConfig(),
        category: np.ndarray | None = None,
        vectors: np.ndarray | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.config, self.shape = config, shape
        if config.similar not in ("", "simtier", "sata", "both", "raw"):
            raise KarmafunnelError(f"DIN: similar needs '', 'simtier', 'sata', 'both' or 'raw', found {config.similar!r}")
        if config.similar and (vectors is None or np.shape(vectors) != (shape.n_items, shape.n_vector)):
            raise KarmafunnelError(
                f"DIN: similar={config.similar!r} needs vectors ({shape.n_items}, {shape.n_vector}), "
                f"found {None if vectors is None else np.shape(vectors)}"
            )
        with seeded(seed):
            self.inputs = Inputs(shape, config.dim, config.unknown, category)
            raw = config.similar == "raw"
            d = self.inputs.width + config.raw * raw
            self.age, self.action = nn.Embedding(AGES, d), nn.Embedding(ACTIONS, d)
            nn.init.zeros_(self.age.weight)
            nn.init.zeros_(self.action.weight)
            self.attention = TargetAttention(d, config.attention)
            tier, gate = config.similar in ("simtier", "both"), config.similar in ("sata", "both")
            self.tier = nn.Parameter(0.1 * torch.randn(BINS, 4)) if tier else None
            self.gate = nn.Parameter(torch.tensor([1.0, 0.0, 0.0])) if gate else None
            size = shape.n_vector, config.raw
            self.project = nn.Sequential(nn.Linear(*size, bias=False), nn.LayerNorm(size[1])) if raw else None
            self.width = 3 * d + shape.n_dense + shape.n_request + 4 * BINS * tier
            self.head = self.new_head()
        if config.similar:
            fixed = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
            self.register_buffer("vectors", F.pad(F.normalize(fixed, dim=1), (0, 0, 0, 1)), persistent=False)  # last row: padding

    def new_head(self) -> nn.Module:
        return Layers((self.width, *self.config.hidden, 1), self.config.dropout)

    def represent(self, batch: Batch) -> Tensor:
        present = (batch.history >= 0).float()[:, None]  # (B, 1, L)
        c = self.inputs.items(batch.items, self.inputs.is_candidate)  # (B, C, d)
        h = self.inputs.items(batch.history, self.inputs.is_history)  # (B, L, d)
        if self.project is not None:
            c, h = (torch.cat([x, self.project(self.vectors[of])], -1) for x, of in ((c, batch.items), (h, batch.history)))
        if batch.age is not None:
            h = h + self.age(torch.log2(1.0 + batch.age.clamp(min=0)).long().clamp(max=AGES - 1))
        if batch.action is not None:
            h = h + self.action(batch.action)
        weight = self.attention(c, h)  # (B, C, L)
        parts = []
        if self.tier is not None or self.gate is not None:
            r = torch.bmm(self.vectors[batch.items], self.vectors[batch.history].transpose(1, 2))
            if self.tier is not None:
                parts.append(self.sim_tier(r, batch, self.tier))
            if self.gate is not None:
                weight = self.gate[0] * weight + self.gate[1] * r + self.gate[2] * weight * r
        pooled = torch.bmm(weight * present, h)  # (B, C, d)
        parts += [c, pooled, c * pooled, self.inputs.numbers(batch.dense, "dense")]
        request = self.inputs.numbers(batch.request, "request")
        parts.append(request[:, None].expand(-1, c.shape[1], -1))
        return torch.cat(parts, dim=-1)

    def sim_tier(self, r: Tensor, batch: Batch, tier: Tensor) -> Tensor:  # (B, C, L) cosines -> (B, C, 4 * BINS)
        has = self.vectors.abs().sum(dim=1) > 0
        counted = (has[batch.items][:, :, None] & has[batch.history][:, None]).float()
        which = ((r + 1.1) * 10 + 1e-3).long().clamp(0, BINS - 1)  # rounding must not part an item from itself
        histogram = torch.zeros(*r.shape[:2], BINS, device=r.device).scatter_add_(2, which, counted)
        return (torch.log1p(histogram)[..., None] * tier).flatten(2)

    def cells(self, candidates: int, history: int) -> int:
        return candidates * (history * self.config.attention + 8 * self.inputs.width + 512)


# -- DCN-V2 -------------------------------------------------------------------------------------------------------------


class Cross(nn.Module):
    """x' = x0 * (U V x + b) + x: one cross layer (DCN-V2, Wang et al. 2021, arXiv 2008.13535, eq. 1 and 2).

    (..., d), (..., d) -> (..., d). `low` is the rank of U V; 0 for one full (d, d) matrix.
    """

    def __init__(self, dim: int, low: int):
        super().__init__()
        self.down = nn.Linear(dim, low, bias=False) if low else nn.Identity()
        self.up = nn.Linear(low or dim, dim)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        return x0 * self.up(self.down(x)) + x


@dataclass(frozen=True)
class DCNConfig:
    """dim of an id vector; how many cross layers, of what rank (0: full); widths of the deep part; share of ids dropped in training."""

    dim: int = 16
    crosses: int = 2
    low: int = 16
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.1
    unknown: float = 0.3


class DCN(Trunk):
    """Deep & Cross Network V2, cross and deep part in parallel: over the candidate's id vector, the history's mean and numbers.

    category (n_items,) one number an item. Source: arXiv 2008.13535, figure 1b.
    """

    def __init__(self, shape: Shape, config: DCNConfig = DCNConfig(), category: np.ndarray | None = None, seed: int = 0):
        super().__init__()
        self.config, self.shape = config, shape
        if config.crosses < 1 or config.low < 0 or not config.hidden:
            raise KarmafunnelError(
                f"DCN: needs at least 1 cross layer, a rank of 0 (full) or more and a deep part, found {config}"
            )
        with seeded(seed):
            self.inputs = Inputs(shape, config.dim, config.unknown, category)
            width = 2 * self.inputs.width + shape.n_dense + shape.n_request
            self.crosses = nn.ModuleList(Cross(width, config.low) for _ in range(config.crosses))
            self.deep = Layers((width, *config.hidden), config.dropout)
            self.width = width + config.hidden[-1]
            self.head = self.new_head()

    def new_head(self) -> nn.Module:
        return nn.Linear(self.width, 1)

    def represent(self, batch: Batch) -> Tensor:
        c = self.inputs.items(batch.items, self.inputs.is_candidate)  # (B, C, d)
        h = mean_of(self.inputs.items(batch.history, self.inputs.is_history), batch.history)  # (B, d)
        request = self.inputs.numbers(batch.request, "request")
        shared = torch.cat([h, request], dim=1)[:, None].expand(-1, c.shape[1], -1)
        x = x0 = torch.cat([c, shared, self.inputs.numbers(batch.dense, "dense")], dim=-1)
        for cross in self.crosses:
            x = cross(x0, x)
        return torch.cat([x, F.relu(self.deep(x0))], dim=-1)

    def cells(self, candidates: int, history: int) -> int:
        return candidates * (6 * self.width + 256) + history * self.inputs.width


# -- ESMM ---------------------------------------------------------------------------------------------------------------


class ESMM(ClickModel):
    """Entire Space Multi-task Model: P(click) and P(purchase | click) over one trunk, a head each.

    Logits (B, C, 2): of a click, and of a purchase if clicked. Loss: cross entropy of P(click) with the clicks + of P(click) *
    P(purchase | click) with the purchases, over every labelled cell; P(purchase | click) is never fitted on clicked cells alone,
    which are no sample of what it is asked about. Source: Ma et al. 2018, arXiv 1804.07931, eq. 1 and 3.
    """

    def __init__(self, trunk: Trunk, seed: int = 0):
        super().__init__()
        self.trunk, self.config, self.shape = trunk, trunk.config, trunk.shape
        with seeded(seed + 1):
            self.buy = trunk.new_head()

    def forward(self, batch: Batch) -> Tensor:
        x = self.trunk.represent(batch)
        return torch.cat([self.trunk.head(x), self.buy(x)], dim=-1)

    def observe(self, batches: Sequence[Batch]) -> None:
        self.trunk.observe(batches)
        if any(b.bought is None for b in batches):
            raise KarmafunnelError("ESMM: needs both labels, found clicks alone")
        start_at(final(self.buy), sum(mass(b, b.bought) for b in batches), sum(mass(b, b.label) for b in batches))

    def loss(self, batch: Batch, kind: str) -> tuple[Tensor, Tensor]:
        if kind != "bce":
            raise KarmafunnelError(f"ESMM: loss needs 'bce', found {kind!r}")
        return entire_space_loss(self(batch), batch)

    def cells(self, candidates: int, history: int) -> int:
        return self.trunk.cells(candidates, history)


# -- COLD ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class COLDConfig:
    """dim of an id vector; MLP widths; share of ids dropped in training; how many dense columns each group of them has.

    Groups cover the dense columns from left to right; () makes all of them one group.
    """

    dim: int = 16
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.1
    unknown: float = 0.3
    groups: tuple[int, ...] = ()


class COLD(ClickModel):
    """A small dense net over crossed features whose groups are weighed by squeeze and excitation.

    Groups e_1..e_M: the candidate's id vector, the history's mean, their product, the request's numbers, groups of dense columns.
    s = sigmoid(W [e_1..e_M] + b), one weight a group, and the net reads [s_1 e_1 .. s_M e_M]. Source: COLD, Wang et al. 2020,
    arXiv 2007.16122, section 3.2; the paper picks groups by the mean of s, see `weights`.
    """

    def __init__(self, shape: Shape, config: COLDConfig = COLDConfig(), category: np.ndarray | None = None, seed: int = 0):
        super().__init__()
        self.config, self.shape = config, shape
        groups = config.groups or (shape.n_dense,)
        if sum(groups) != shape.n_dense or min(groups) < 0:
            raise KarmafunnelError(f"COLD: groups need to add up to {shape.n_dense} dense columns, found {config.groups}")
        with seeded(seed):
            self.inputs = Inputs(shape, config.dim, config.unknown, category)
            self.sizes = [*[self.inputs.width] * 3, shape.n_request, *groups]
            width = sum(self.sizes)
            self.squeeze = nn.Linear(width, len(self.sizes))
            self.mlp = Layers((width, *config.hidden, 1), config.dropout)
        self.register_buffer("group_of", torch.repeat_interleave(torch.tensor(self.sizes)), persistent=False)

    group_of: Tensor

    def last(self) -> nn.Linear:
        return final(self.mlp)

    def crossed(self, batch: Batch) -> Tensor:  # (B, C, width): the groups side by side
        c = self.inputs.items(batch.items, self.inputs.is_candidate)
        h = mean_of(self.inputs.items(batch.history, self.inputs.is_history), batch.history)[:, None].expand_as(c)
        request = self.inputs.numbers(batch.request, "request")[:, None].expand(-1, c.shape[1], -1)
        return torch.cat([c, h, c * h, request, self.inputs.numbers(batch.dense, "dense")], dim=-1)

    def weights(self, batch: Batch) -> Tensor:
        """(B, C, M): the weight of each group: id, history, their product, request, the groups of dense columns."""
        return torch.sigmoid(self.squeeze(self.crossed(batch)))

    def forward(self, batch: Batch) -> Tensor:
        x = self.crossed(batch)
        weight = torch.sigmoid(self.squeeze(x))
        return self.mlp(x * weight[..., self.group_of]).squeeze(-1)

    def cells(self, candidates: int, history: int) -> int:
        return candidates * (4 * sum(self.sizes) + 256) + history * self.inputs.width


# -- two towers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoTowerConfig:
    """dim of an id vector; width of the towers' outputs; hidden widths; which dense columns describe the item alone.

    The other dense columns enter as a linear term beside the inner product, never a tower.
    """

    dim: int = 16
    out: int = 32
    hidden: tuple[int, ...] = (64,)
    dropout: float = 0.1
    unknown: float = 0.3
    item_columns: tuple[int, ...] = ()


class TwoTower(ClickModel):
    """Request tower: mean of the history and the request's numbers. Item tower: id and the item's numbers. Logit: their product + linear."""

    def __init__(
        self, shape: Shape, config: TwoTowerConfig = TwoTowerConfig(), category: np.ndarray | None = None, seed: int = 0
    ):
        super().__init__()
        self.config, self.shape = config, shape
        wrong = [i for i in config.item_columns if not 0 <= i < shape.n_dense]
        if wrong:
            raise KarmafunnelError(f"TwoTower: item_columns need to be among {shape.n_dense} dense columns, found {wrong}")
        self.cross_columns = [i for i in range(shape.n_dense) if i not in config.item_columns]
        with seeded(seed):
            self.inputs = Inputs(shape, config.dim, config.unknown, category)
            d = self.inputs.width
            self.request_tower = Layers((d + shape.n_request, *config.hidden, config.out), config.dropout)
            self.item_tower = Layers((d + len(config.item_columns), *config.hidden, config.out), config.dropout)
            self.item_bias = nn.Linear(config.out, 1)
            self.cross = nn.Linear(len(self.cross_columns), 1, bias=False) if self.cross_columns else None

    def last(self) -> nn.Linear:
        return self.item_bias

    def forward(self, batch: Batch) -> Tensor:
        dense = self.inputs.numbers(batch.dense, "dense")
        request = self.requests(batch.history, batch.request)  # (B, o)
        items = self.items(batch.items, dense[..., list(self.config.item_columns)])  # (B, C, o)
        logit = torch.einsum("bo,bco->bc", request, items) + self.item_bias(items).squeeze(-1)
        return logit if self.cross is None else logit + self.cross(dense[..., self.cross_columns]).squeeze(-1)

    def requests(self, history: Tensor, request: Tensor) -> Tensor:
        """(B, L), (B, R) -> (B, out): near-line, once a request."""
        mean = mean_of(self.inputs.items(history, self.inputs.is_history), history)
        return self.request_tower(torch.cat([mean, self.inputs.numbers(request, "request")], dim=1))

    def items(self, items: Tensor, dense: Tensor) -> Tensor:
        """(B, C), standardised (B, C, n) -> (B, C, out): precomputable where the numbers do not change."""
        return self.item_tower(torch.cat([self.inputs.items(items, self.inputs.is_candidate), dense], dim=-1))


# -- training and prediction --------------------------------------------------------------------------------------------


def click_loss(logits: Tensor, batch: Batch, loss: str) -> tuple[Tensor, Tensor]:
    """Sum of the losses and of the weights they count with.

    bce: every labelled cell by its weight. listwise: softmax over the labelled cells of a request, its positives sharing
    weight 1; a request without a positive counts nothing. Labels between 0 and 1, as a teacher gives them, are no other case.
    """
    if loss == "bce":
        return (
            F.binary_cross_entropy_with_logits(logits, batch.label, reduction="none") * batch.weight
        ).sum(), batch.weight.sum()
    labelled = batch.weight > 0
    log_p = torch.log_softmax(logits.masked_fill(~labelled, -1e9), dim=1)
    positive = batch.label * batch.weight * labelled
    total = positive.sum(dim=1)
    return -((positive * log_p).sum(dim=1) / total.clamp(min=1e-9)).sum(), (total > 0).float().sum()


def entire_space_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """ESMM's loss of logits (B, C, 2), in logarithms throughout: sum over the labelled cells and of their weights."""
    click, buy = logits.unbind(dim=-1)
    both = F.logsigmoid(click) + F.logsigmoid(buy)
    # 1 - 1 / ((1 + x)(1 + y)) = (x + y + xy) / ((1 + x)(1 + y)) with x = exp(-click), y = exp(-buy)
    neither = both + torch.logsumexp(torch.stack([-click, -buy, -click - buy]), dim=0)
    bought = -(batch.bought * both + (1 - batch.bought) * neither)
    value = F.binary_cross_entropy_with_logits(click, batch.label, reduction="none") + bought
    return (value * batch.weight).sum(), batch.weight.sum()


def fit_ctr(
    model: ClickModel, train: Batch | Sequence[Batch], val: Batch | Sequence[Batch], *, epochs: int = 20, batch_size: int = 64,
    rate: float = 1e-3, weight_decay: float = 1e-4, patience: int = 2, loss: Literal["bce", "listwise"] = "bce", seed: int = 0,
    progress: Callable[[str], None] | None = None, device: str = "cpu",
) -> list[dict[str, float]]:  # fmt: skip
    """Fit in place with Adam, stop on the validation loss, keep the best epoch; returns the losses after each epoch.

    Requests are shuffled by `seed` every epoch, in batches of `batch_size` or, of few requests, so many that an epoch has STEPS
    steps. Raises KarmafunnelError for shapes that disagree, for labels without a
    positive or without a negative, and, naming epoch and step, for a loss that is no longer a number.
    """
    who = type(model).__name__
    train, val = [train] if isinstance(train, Batch) else list(train), [val] if isinstance(val, Batch) else list(val)
    if loss not in ("bce", "listwise"):
        raise KarmafunnelError(f"{who}: loss needs 'bce' or 'listwise', found {loss!r}")
    for part in (*train, *val):
        part.check(who)
    for name, parts in (("training", train), ("validation", val)):
        labels = np.concatenate([np.asarray(p.label)[np.asarray(p.weight) > 0] for p in parts]) if parts else np.zeros(0)
        if len(labels) == 0 or labels.max() <= 0 or labels.min() >= 1:
            raise KarmafunnelError(
                f"{who}: needed positives and negatives among the {name} labels, found {len(labels)} labels of sum {labels.sum():g}"
            )
    model.to("cpu").observe(train)
    model.to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
    rng = np.random.default_rng([seed, 3])
    size = max(1, min(batch_size, sum(map(len, train)) // STEPS))
    history: list[dict[str, float]] = []
    best, best_loss, best_epoch = copy.deepcopy(model.state_dict()), np.inf, 0
    with seeded(seed, device):
        for epoch in range(1, epochs + 1):
            model.train()
            total = mass = 0.0
            for step, part in enumerate(shuffled(train, size, rng), start=1):
                batch = part.to_torch(device)
                value, n = model.loss(batch, loss)
                if not torch.isfinite(value):
                    raise KarmafunnelError(f"{who}: needed a finite loss, found {value.item()} in epoch {epoch}, step {step}")
                if n.item() == 0:
                    continue
                optimiser.zero_grad(set_to_none=True)
                (value / n).backward()
                optimiser.step()
                total, mass = total + value.item(), mass + n.item()
            history.append({"train": total / max(mass, 1e-9), "validation": mean_loss(model, val, loss, device)})
            if progress is not None:
                losses = f"loss {history[-1]['train']:.4f}, validation {history[-1]['validation']:.4f}"
                progress(f"{who}: epoch {epoch} of at most {epochs}, {losses}")
            if not np.isfinite(history[-1]["validation"]):
                raise KarmafunnelError(
                    f"{who}: needed a finite validation loss, found {history[-1]['validation']} after epoch {epoch}"
                )
            if history[-1]["validation"] < best_loss:
                best, best_loss, best_epoch = copy.deepcopy(model.state_dict()), history[-1]["validation"], epoch
            elif epoch - best_epoch >= patience:
                break
    model.load_state_dict(best)
    model.eval()
    return history


def shuffled(parts: Sequence[Batch], size: int, rng: np.random.Generator) -> Iterator[Batch]:
    for i in rng.permutation(len(parts)):
        order = rng.permutation(len(parts[i]))
        for start in range(0, len(order), size):
            yield parts[i].rows(np.sort(order[start : start + size]))


@torch.inference_mode()
def mean_loss(model: ClickModel, parts: Sequence[Batch], loss: str, device: str) -> float:
    model.eval()
    total = mass = 0.0
    for part in parts:
        for chunk in chunks(model, part):
            batch = chunk.to_torch(device)
            value, n = model.loss(batch, loss)
            total, mass = total + value.item(), mass + n.item()
    return total / max(mass, 1e-9)


def chunks(model: ClickModel, batch: Batch) -> Iterator[Batch]:
    """As many requests at a time as fit into CELLS."""
    size = max(1, CELLS // max(1, model.cells(batch.items.shape[1], batch.history.shape[1])))
    for start in range(0, len(batch), size):
        yield batch.rows(slice(start, start + size))


@torch.inference_mode()
def predict_ctr(model: ClickModel, batch: Batch) -> np.ndarray:
    """Logits of every cell, float32 (N, C), padding included; memory does not grow with N."""
    model.eval()
    device = next(model.parameters()).device
    out = [model(part.to_torch(device)).float().cpu().numpy() for part in chunks(model, batch)]
    return np.concatenate(out) if out else np.zeros(np.shape(batch.items), dtype=np.float32)


# -- on disk ------------------------------------------------------------------------------------------------------------


def save_ctr(model: ClickModel, folder: Path | str) -> None:
    """Write `model.safetensors` and `model.json`; the folder appears whole or not at all. Fixed vectors are not stored."""
    with atomic_folder(folder, sealed=True) as temporary:
        save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, temporary / "model.safetensors")
        write_json(
            temporary / "model.json",
            {
                "class": type(model).__name__,
                "trunk": type(model.trunk).__name__ if isinstance(model, ESMM) else None,
                "config": asdict(model.config),
                "shape": asdict(model.shape),
            },
        )


SIZE = number(Bound(0, 100_000_000))


def load_ctr(folder: Path | str, vectors: np.ndarray | None = None) -> ClickModel:
    """The inverse of `save_ctr`; the fixed vectors that a DIN was fitted with are handed over again."""
    folder = Path(folder)
    try:
        kept = read_json(folder / "model.json")
        check(folder)
        state = load_file(folder / "model.safetensors")
    except (OSError, KarmafunnelError, SafetensorError) as error:
        raise KarmafunnelError(f"{folder}: needed a saved click model, found: {error}") from error
    check_keys(f"{folder}/model.json", kept, {"class": TEXT, "trunk": maybe(TEXT), "config": by_name(ANY), "shape": by_name(SIZE)})
    try:
        shape = Shape(**kept["shape"])
    except TypeError as error:
        raise KarmafunnelError(f"{folder}/model.json: needed the shape of a click model, found {quoted(kept['shape'])}") from error
    config: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in kept["config"].items()}
    builders: dict[str, Callable[[], ClickModel]] = {
        "DIN": lambda: DIN(shape, DINConfig(**config), vectors=vectors),
        "DCN": lambda: DCN(shape, DCNConfig(**config)),
        "COLD": lambda: COLD(shape, COLDConfig(**config)),
        "TwoTower": lambda: TwoTower(shape, TwoTowerConfig(**config)),
    }
    kind = kept["trunk"] or kept["class"]
    if kind not in builders:
        raise KarmafunnelError(f"{folder}: needed one of {sorted(builders)}, found {kind!r}")
    try:
        model = builders[kind]()
        if kept["class"] == "ESMM" and isinstance(model, Trunk):
            model = ESMM(model)
        model.load_state_dict(state)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:  # torch's and Python's, of another config
        raise KarmafunnelError(f"{folder}: needed a click model of its model.json, found: {line_of(error)}") from error
    return model.eval()
