"""SASRec (Kang & McAuley 2018): a causal transformer over a user's items, trained on every position
by a softmax over items.

It knows ids alone: no text, no query, no price. One file, top to bottom: network, loss, training
windows, fit, Embedding. A sequence reads [START, item, item, ...], aligned left, so that nothing
real ever stands after padding: the causal mask alone keeps padding out. The output at START answers
a request without a history, the output at the last item any other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bounds import needs
from ..errors import KarmafunnelError
from ..log import Log
from .embedders import (
    Cooccurrence,
    Embedder,
    Embedding,
    Progress,
    Sequences,
    read_saved,
    silent,
    unit_rows,
    w1_sequences,
)
from .training import seeded

BLOCK = 128  # requests embedded at a time
MEAN = 3.0  # weight of the mean of the history beside the last item, before anything is learnt
DEEP = 1000  # deeper than this a recall channel seldom looks
CHUNK = 64  # rows of logits held at a time: small enough to stay in the cache


@dataclass(frozen=True, repr=False)
class SASRec(Embedder):
    """Self-attention over the user's history (Kang & McAuley 2018), trained with a softmax over
    cosine / temperature.

    Args:
        loss: "full": softmax over all items that are a target in W1; "sampled": over the target and
            `negatives` items a step, drawn by popularity and logQ corrected (Bengio & Senecal
            2008), for catalogues beyond some 20,000 items.
        unknown: share of the inputs that training replaces by the UNKNOWN item, which later stands
            for items first seen after W1.
        warm: start from co-occurrence vectors of W1 (ours, not the paper's).
        batch: pieces of history a step, fewer if an epoch would have less than 16 steps.
        epochs, patience: the most that are tried. Their number is chosen on the last W1 requests of
            `tail` users: training stops after `patience` epochs without improvement. patience 0
            trains `epochs` without validation.
    """

    dim: int = 64
    layers: int = 2
    heads: int = 2
    length: int = 50
    dropout: float = 0.4
    unknown: float = 0.1
    loss: Literal["full", "sampled"] = "full"
    negatives: int = 2048
    temperature: float = 0.15
    warm: bool = True
    rate: float = 2e-3
    weight_decay: float = 0.01
    batch: int = 128
    epochs: int = 40
    patience: int = 4
    tail: int = 2000

    def __post_init__(self) -> None:
        if self.loss not in ("full", "sampled"):
            raise KarmafunnelError(
                "SASRec", what="loss", needs="'full' or 'sampled'", found=repr(self.loss)
            )
        needs(
            self,
            "dim",
            "layers",
            "heads",
            "length",
            "negatives",
            "batch",
            "epochs",
            "patience",
            "tail",
        )
        needs(self, "dropout", "unknown", "temperature", "rate", "weight_decay")
        if self.dim % self.heads:
            raise KarmafunnelError(
                "SASRec",
                what="dim",
                needs="to be a multiple of heads",
                found=f"{self.dim} and {self.heads}",
            )

    def fit(
        self,
        log: Log,
        seed: int = 0,
        progress: Progress = silent,
        device: str = "cpu",
        cache: Path | None = None,
    ) -> SASRecEmbedding:
        """Needs clicks or purchases in W1; raises KarmafunnelError naming the step when the loss is
        no longer a number.
        """
        windows = Windows.of(log, self.length, self.tail, seed, repr(self))
        network, facts = fit_network(self, windows, seed, progress, device)
        return SASRecEmbedding(self, log, network, windows.catalogue, facts)

    def load(self, folder: Path | str, log: Log) -> SASRecEmbedding:
        tensors, description = read_saved(self, folder, log, "catalogue")
        catalogue = tensors.pop("catalogue")
        network = Network(self, len(catalogue))
        try:
            network.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()})
        except RuntimeError as error:
            raise KarmafunnelError(
                folder, needs=f"the weights of {self!r}", found=str(error).splitlines()[-1].strip()
            ) from error
        return SASRecEmbedding(self, log, network, catalogue, description["facts"])


# -- network ---------------------------------------------------------------------------------------


class Block(nn.Module):
    """Pre-norm: x + attention(norm x), then x + MLP(norm x)."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, d) -> (B, T, d)
        b, t, d = x.shape
        q, k, v = (
            self.qkv(self.norm_attention(x))
            .view(b, t, 3, self.heads, d // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        dropout = self.dropout if self.training else 0.0
        # (B, heads, T, d / heads)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        x = x + F.dropout(self.out(a.transpose(1, 2).reshape(b, t, d)), self.dropout, self.training)
        return x + F.dropout(
            self.down(F.gelu(self.up(self.norm_mlp(x)))), self.dropout, self.training
        )


class Network(nn.Module):
    """Item numbers to interest vectors. Numbers: 0..n-1 the items of W1, n UNKNOWN, n+1 START (also
    the padding).
    """

    def __init__(self, config: SASRec, n: int):
        super().__init__()
        self.config, self.n = config, n
        self.item = nn.Embedding(n + 2, config.dim)
        self.position = nn.Embedding(config.length + 1, config.dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        nn.init.normal_(self.item.weight, std=config.dim**-0.5)
        nn.init.normal_(self.position.weight, std=0.1 * config.dim**-0.5)
        for linear in self.blocks.modules():
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    # (B, T) int64 -> (B, T, d - 1), each output seeing the items up to its own
    def forward(self, items: Tensor) -> Tensor:
        size, place = math.sqrt(self.config.dim), self.position.weight[: items.shape[1]]
        x = self.item(items) * size + place * size
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return F.normalize(self.norm(x)[..., :-1], dim=-1)

    def start_from(self, vectors: np.ndarray) -> None:
        """Start as a sensible recommender: item vectors at (n, d - 1), rows of zeros left as drawn,
        and a first block whose attention, even at the start, hands on MEAN times the mean of what
        came so far beside the last item.
        """
        there = torch.from_numpy(np.any(vectors != 0, axis=1))
        first, d = self.blocks[0], self.config.dim
        assert isinstance(first, Block)
        with torch.no_grad():
            self.item.weight[: self.n, :-1][there] = torch.from_numpy(vectors)[there]
            self.item.weight[self.n :] *= 0.1  # START and UNKNOWN say little in that mean
            first.qkv.weight[2 * d :] += MEAN * torch.eye(d)
            first.out.weight += torch.eye(d)

    def targets(self) -> Tensor:
        """Unit output vectors of the items of W1, tied to the input ones: (n, d - 1)."""
        return F.normalize(self.item.weight[: self.n, :-1], dim=-1)


# -- loss ------------------------------------------------------------------------------------------


class FullSoftmax(torch.autograd.Function):
    """Sum over pairs of weight * -log softmax(scale * z e^T)[row, target], its gradient made in the
    same pass.

    z (R, d), e (m, d); pairs: row (P,) ascending, target (P,), weight (P,). A chunk of rows at a
    time: memory is CHUNK * m.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, e: Tensor, row: Tensor, target: Tensor, weight: Tensor, scale: float
    ) -> Tensor:
        grad_z, grad_e = torch.empty_like(z), torch.zeros_like(e)
        mass = torch.zeros(len(z), dtype=z.dtype, device=z.device).index_add_(0, row, weight)
        total = torch.zeros((), dtype=torch.float64, device=z.device)
        bounds = torch.searchsorted(
            row, torch.arange(0, len(z) + CHUNK, CHUNK, device=row.device)
        ).tolist()
        for i, start in enumerate(range(0, len(z), CHUNK)):
            part, pairs = slice(start, start + CHUNK), slice(bounds[i], bounds[i + 1])
            # (chunk, m) logits, turned into probabilities, then into the gradient, in place
            p = torch.mm(z[part] * scale, e.T)
            top = p.amax(dim=1, keepdim=True)
            here = row[pairs] - start
            total -= (weight[pairs] * (p[here, target[pairs]] - top[here, 0])).sum()
            p.sub_(top).exp_()
            normaliser = p.sum(dim=1, keepdim=True)
            total += (mass[part] * normaliser[:, 0].log()).sum()
            p.mul_(mass[part, None] / normaliser)
            p.index_put_((here, target[pairs]), -weight[pairs], accumulate=True)
            grad_z[part] = torch.mm(p, e) * scale
            grad_e.addmm_(p.T, z[part], alpha=scale)
        ctx.save_for_backward(grad_z, grad_e)
        return total.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_z, grad_e = ctx.saved_tensors
        return grad * grad_z, grad * grad_e, None, None, None, None


def sampled_softmax(
    z: Tensor,
    e: Tensor,
    row: Tensor,
    target: Tensor,
    weight: Tensor,
    scale: float,
    drawn: Tensor,
    log_q: Tensor,
) -> Tensor:
    """The same sum, the other items estimated from `drawn` (K,), item i drawn with probability
    exp(log_q[i]).

    The target enters once and uncorrected; a drawn item enters with logit - log(K q), and not at
    all where it is the target.
    """
    positive = scale * (z[row] * e[target]).sum(dim=1)  # (P,)
    negative = scale * z @ e[drawn].T - (log_q[drawn] + math.log(len(drawn)))  # (R, K)
    negative = negative[row].masked_fill(drawn[None, :] == target[:, None], -torch.inf)
    return (
        weight
        * (torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1) - positive)
    ).sum()


# -- training windows ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """W1 cut into pieces of at most `length` inputs, and what each output must predict.

    Output j of a piece has seen START and its first j items. It is paired with every item of the
    next *later* time: what else was chosen at the same time is not in the past of a request, so it
    is no input here. Long sequences overlap by half; an output is paired in one piece only. A
    request of several items weighs 1 in all.
    """

    # (n,) rows of the log's items that W1 holds, ascending; all below is numbered within it
    catalogue: np.ndarray
    events: Sequences  # (N,) all sequences, one after the other
    held: np.ndarray  # (N,) bool: the tail of W1, held out while the number of epochs is chosen
    start: np.ndarray  # (W,) first input of each piece
    size: np.ndarray  # (W,) its number of inputs, 0 for START alone
    first_pair: np.ndarray  # (W + 1,)
    position: np.ndarray  # (P,) output that predicts, 0 is START; ascending within a piece
    target: np.ndarray  # (P,)
    weight: np.ndarray  # (P,) float32
    tail: np.ndarray  # (P,) bool: the target is held

    @property
    def n_pairs(self) -> int:
        return len(self.target)

    @classmethod
    def of(cls, log: Log, length: int, tail_users: int, seed: int, who: str) -> Windows:
        events = w1_sequences(log, who)
        catalogue, item = np.unique(events.item, return_inverse=True)
        events = replace(events, item=item)
        at = np.arange(len(events))
        new_user = np.r_[True, np.diff(events.user) != 0]
        new_time = new_user | np.r_[True, np.diff(events.t) != 0]
        user_start = np.maximum.accumulate(np.where(new_user, at, 0))
        # inputs strictly before each target
        seen = np.maximum.accumulate(np.where(new_time, at, 0)) - user_start
        half = max(length // 2, 1)
        # piece 0 pairs outputs 0..length, each later one `half` more
        piece = np.maximum(0, -(-(seen - length) // half))
        user, group = np.cumsum(new_user) - 1, np.cumsum(new_time) - 1
        keys, of = np.unique(user * (len(at) + 1) + piece, return_inverse=True)
        position = seen - piece * half
        size = np.zeros(len(keys), dtype=np.int64)
        np.maximum.at(size, of, position)
        order = np.lexsort((position, of))
        weight = 1 / np.bincount(group)[group]
        held = last_requests(user, group, tail_users, seed)
        return cls(
            catalogue,
            events,
            held,
            at[new_user][keys // (len(at) + 1)] + keys % (len(at) + 1) * half,
            size,
            np.searchsorted(of[order], np.arange(len(keys) + 1)),
            position[order],
            item[order],
            weight[order].astype(np.float32),
            held[order],
        )

    def vectors(self, dim: int, use: np.ndarray, seed: int) -> np.ndarray:
        """Unit co-occurrence vectors of the items (n, dim), without the tail where `use` leaves it
        out.
        """
        events = self.events
        if not use.all():
            events = Sequences(*(getattr(events, f.name)[~self.held] for f in fields(Sequences)))
        counts = Cooccurrence(dim=dim, weighting="ppmi")
        return unit_rows(counts.vectors(counts.affinity(events, len(self.catalogue)), seed)[0])

    def batches(
        self, size: int, rng: np.random.Generator, use: np.ndarray
    ) -> Iterator[tuple[Tensor, ...]]:
        """Shuffled batches, see `batch`; the pieces of one are of similar length. `use` (P,): which
        pairs count.
        """
        counts = np.add.reduceat(np.r_[use, False].astype(np.int64), self.first_pair[:-1])
        pieces = rng.permutation(np.flatnonzero(counts > 0))
        size = max(1, min(size, len(pieces) // 16))
        parts = []
        # sorted within stretches of 32 batches: little padding, still random
        for start in range(0, len(pieces), 32 * size):
            stretch = pieces[start : start + 32 * size]
            stretch = stretch[np.argsort(self.size[stretch], kind="stable")]
            parts += [stretch[i : i + size] for i in range(0, len(stretch), size)]
        for i in rng.permutation(len(parts)):
            yield self.batch(parts[i], use)

    def batch(self, pieces: np.ndarray, use: np.ndarray) -> tuple[Tensor, ...]:
        """Items (B, T) as the network reads them; of every pair in use: cell of (B, T), target,
        weight.
        """
        width = int(self.size[pieces].max()) + 1
        # START, also the padding
        items = np.full((len(pieces), width), len(self.catalogue) + 1, dtype=np.int64)
        column = np.arange(width - 1)
        inside = column[None, :] < self.size[pieces, None]
        items[:, 1:][inside] = self.events.item[(self.start[pieces, None] + column)[inside]]
        count = self.first_pair[pieces + 1] - self.first_pair[pieces]
        row = np.repeat(np.arange(len(pieces)), count)
        pair = (
            np.arange(count.sum())
            - np.repeat(np.cumsum(count) - count, count)
            + np.repeat(self.first_pair[pieces], count)
        )
        row, pair = row[use[pair]], pair[use[pair]]
        return tuple(
            map(
                torch.from_numpy,
                (items, row * width + self.position[pair], self.target[pair], self.weight[pair]),
            )
        )


def last_requests(user: np.ndarray, group: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Which events are the last request of a drawn user, at most so many users, who made more than
    one: (N,) bool.
    """
    last = np.zeros(user[-1] + 1, dtype=np.int64)
    first = np.full(user[-1] + 1, group[-1])
    np.maximum.at(last, user, group)
    np.minimum.at(first, user, group)
    several = np.flatnonzero(last > first)
    drawn = np.random.default_rng([seed, 2]).permutation(several)[:most]
    return np.isin(user, drawn) & (group == last[user])


# -- fit -------------------------------------------------------------------------------------------


def train(
    config: SASRec,
    windows: Windows,
    use: np.ndarray,
    epochs: int,
    seed: int,
    device: str,
    after_epoch: Callable[[Network, float], bool],
) -> Network:
    """Fit a fresh network on the pairs in `use`, for so many epochs or until `after_epoch(network,
    loss)` says stop.
    """
    n = len(windows.catalogue)
    rng = np.random.default_rng([seed, 1])
    popularity = np.bincount(windows.target[use], minlength=n) / max(use.sum(), 1)
    log_q = torch.from_numpy(np.log(np.maximum(popularity, 1e-12)).astype(np.float32)).to(device)
    # items that are no target among these pairs are no negatives either: they would only ever be
    # pushed away
    targets = torch.from_numpy(np.flatnonzero(popularity)).to(device)
    column = torch.from_numpy(np.maximum(np.cumsum(popularity > 0) - 1, 0)).to(device)
    with seeded(seed, device):
        network = Network(config, n)
        if config.warm:
            network.start_from(windows.vectors(config.dim - 1, use, seed))
        network.to(device)
        optimiser = torch.optim.AdamW(
            network.parameters(),
            lr=config.rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )
        step = 0
        for epoch in range(1, epochs + 1):
            network.train()
            total = mass = 0.0
            for batch in windows.batches(config.batch, rng, use):
                read = batch[0]
                blank = torch.from_numpy(rng.random(read.shape) < config.unknown) & (read < n)
                given = read.masked_fill(blank, n), *batch[1:]
                items, cell, target, weight = (x.to(device) for x in given)
                used, row = torch.unique(cell, return_inverse=True)
                z, e = network(items).flatten(0, 1)[used], network.targets()
                if config.loss == "full":
                    loss = FullSoftmax.apply(
                        z, e[targets], row, column[target], weight, 1 / config.temperature
                    )
                else:
                    drawn = torch.from_numpy(rng.choice(n, config.negatives, p=popularity)).to(
                        device
                    )
                    loss = sampled_softmax(
                        z, e, row, target, weight, 1 / config.temperature, drawn, log_q
                    )
                step += 1
                if not torch.isfinite(loss):
                    raise KarmafunnelError(
                        f"{config!r}",
                        needs="a finite loss",
                        found=f"{loss.item()} in epoch {epoch}, step {step}",
                    )
                for group in optimiser.param_groups:
                    group["lr"] = config.rate * min(1.0, step / 50)
                optimiser.zero_grad(set_to_none=True)
                (loss / weight.sum()).backward()
                optimiser.step()
                total, mass = total + loss.item(), mass + weight.sum().item()
            if after_epoch(network.eval(), total / max(mass, 1e-9)):
                break
    return network.eval()


def fit_network(
    config: SASRec, windows: Windows, seed: int, progress: Progress, device: str
) -> tuple[Network, dict[str, Any]]:
    """Choose the number of epochs on the tail of W1, then fit all of W1 for that long; facts of the
    fit beside the network.

    Where the tail is less than a twentieth of the pairs, the best network is kept as it is.
    """
    everything = np.ones(windows.n_pairs, dtype=bool)
    curve: list[float] = []
    best: dict[str, Tensor] = {}

    def report(total: int) -> Callable[[Network, float], bool]:
        losses: list[float] = []

        def told(network: Network, loss: float) -> bool:
            losses.append(loss)
            progress(f"SASRec: epoch {len(losses)} of {total}, loss {loss:.3f}")
            return False

        return told

    def judge(network: Network, loss: float) -> bool:
        curve.append(tail_rank(network, windows, device))
        progress(
            f"SASRec: epoch {len(curve)} of at most {config.epochs}, loss {loss:.3f}, "
            f"mean rank {curve[-1]:.1f} on the tail of W1"
        )
        if curve[-1] == min(curve):
            best.update(copy.deepcopy(network.state_dict()))
        return len(curve) - 1 - int(np.argmin(curve)) >= config.patience

    if windows.tail.sum() < 20 or not config.patience:
        told = report(config.epochs)
        return train(config, windows, everything, config.epochs, seed, device, told), {
            "epochs": config.epochs,
            "seed": seed,
        }
    network = train(config, windows, ~windows.tail, config.epochs, seed, device, judge)
    epochs = int(np.argmin(curve)) + 1
    facts = {
        "epochs": epochs,
        "tail_rank": [round(v, 2) for v in curve],
        "tail_pairs": int(windows.tail.sum()),
        "seed": seed,
    }
    if windows.tail.mean() < 0.05:
        network.load_state_dict(best)
        return network, facts
    progress(f"SASRec: fitting all of W1 for {epochs} epochs")
    return train(config, windows, everything, epochs, seed, device, report(epochs)), facts


@torch.inference_mode()
def tail_rank(network: Network, windows: Windows, device: str) -> float:
    """Geometric mean rank of held-out targets among all items of W1, ties one half, ranks beyond
    DEEP counting as DEEP.
    """
    e = network.targets()
    pairs = np.flatnonzero(windows.tail)
    piece = np.searchsorted(windows.first_pair, pairs, side="right") - 1
    ranks = []
    for start in range(0, len(pairs), BLOCK):
        mine = pairs[start : start + BLOCK]
        none = np.zeros(windows.n_pairs, dtype=bool)
        items = windows.batch(piece[start : start + BLOCK], none)[0].to(device)
        row = torch.arange(len(mine), device=device)
        scores = network(items)[row, torch.from_numpy(windows.position[mine]).to(device)] @ e.T
        own = scores[row, torch.from_numpy(windows.target[mine]).to(device)][:, None]
        ranks.append(1 + (scores > own).sum(dim=1) + 0.5 * ((scores == own).sum(dim=1) - 1))
    return torch.cat(ranks).clamp(max=DEEP).log().mean().exp().item()


# -- embedding -------------------------------------------------------------------------------------


def with_constant(x: np.ndarray) -> np.ndarray:
    """Unit vectors (n, d - 1) with one more equal coordinate, at length 1 again: inner products
    become (1 + cosine) / 2.
    """
    return np.concatenate([x, np.ones((len(x), 1), dtype=np.float32)], axis=1) * np.float32(
        0.5**0.5
    )


class SASRecEmbedding(Embedding):
    """Item and interest vectors of length 1 whose product is (1 + cosine) / 2, between 0 and 1.

    An item that W1 does not hold is at zeros and so scores 0, below all that W1 holds: nothing is
    known of it but that nobody chose it so far. With bare cosines it would stand above the many
    items (three quarters of Amazon Office) whose cosine with an interest is negative. In a history
    it stands for UNKNOWN.
    """

    online = True

    def __init__(
        self,
        value: SASRec,
        log: Log,
        network: Network,
        catalogue: np.ndarray,
        facts: dict[str, Any] | None = None,
    ):
        super().__init__(value, log, facts)
        self.config, self.network, self.catalogue = value, network.eval(), catalogue
        self.device = network.item.weight.device
        n = len(catalogue)
        # of every item in the network; the last entry: padding
        self.number = np.full(log.n_items + 1, n, dtype=np.int64)
        self.number[catalogue], self.number[-1] = np.arange(n), n + 1

    @torch.inference_mode()
    def items(self) -> np.ndarray:
        out = np.zeros((self.log.n_items, self.config.dim), dtype=np.float32)
        out[self.catalogue] = with_constant(self.network.targets().cpu().numpy())
        return out

    @torch.inference_mode()
    def interests(self, requests: np.ndarray) -> np.ndarray:
        length = self.config.length
        out = np.zeros((len(requests), self.config.dim), dtype=np.float32)
        for start in range(0, len(requests), BLOCK):
            past = self.log.asof.history(requests[start : start + BLOCK], length).items
            count = (past >= 0).sum(axis=1)
            row, column = np.nonzero(past >= 0)
            # padded to a fixed width, so that a vector does not depend on its batch
            items = np.full((len(past), length + 1), self.number[-1])
            # flush left, after START
            items[row, column + 1 - (length - count)[row]] = self.number[past[row, column]]
            outputs = self.network(torch.from_numpy(items).to(self.device))
            z = outputs[torch.arange(len(past)), torch.from_numpy(count)]
            out[start : start + BLOCK] = with_constant(z.cpu().numpy())
        return out

    def tensors(self) -> dict[str, np.ndarray]:
        found = {name: x.cpu().numpy() for name, x in self.network.state_dict().items()}
        return {"catalogue": self.catalogue} | found
