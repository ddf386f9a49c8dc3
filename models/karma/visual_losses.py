"""Vectors told from a user embedding: the target's frozen visual features, as a regulariser
(`see`), or the retrieval embedding itself, as a control (`generator`).

A public reading of the paper [R]: diffusion or flow matching of frozen visual features, conditioned
on the embedding or on the history, helps as a regulariser. [K]: diffusion as the generator of the
embedding does worse than autoregression with MSE. [I]: the networks, their sizes and schedules.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...bounds import check_switch, needs
from ...typed import Typed


@dataclass(frozen=True, repr=False)
class VectorLoss(Typed, ABC):
    """How a vector is told from a user embedding.

    Args:
        history: the last hidden state at [INT], before it is projected, is told as well [R: the
            paper conditions on the one or the other].
    """

    history: bool = False

    def __post_init__(self) -> None:
        check_switch(type(self).__name__, history=self.history)

    @abstractmethod
    def decoder(self, d_z: int, d_v: int, d_h: int) -> VectorDecoder:
        """The network that tells vectors (B, d_v) from user embeddings (B, d_z) and, with
        `history`, hidden states (B, d_h).
        """


@dataclass(frozen=True, repr=False)
class Direct(VectorLoss):
    """A linear map, by mean squared error [I]."""

    def decoder(self, d_z: int, d_v: int, d_h: int) -> VectorDecoder:
        return Linear(self, d_z, d_v, d_h)


@dataclass(frozen=True, repr=False)
class Cosine(VectorLoss):
    """A linear map, by 1 - cosine [I]."""

    def decoder(self, d_z: int, d_v: int, d_h: int) -> VectorDecoder:
        return Linear(self, d_z, d_v, d_h)


@dataclass(frozen=True, repr=False)
class Diffusion(VectorLoss):
    """A denoiser that predicts the noise (Ho et al. 2020, arXiv 2006.11239; cosine schedule of
    Nichol & Dhariwal 2021), sampled by DDIM (Song et al. 2021).

    Args:
        steps: of sampling.
        width: hidden units of the denoiser, a network of one hidden layer.
    """

    steps: int = 50
    width: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        needs(self, steps=(1, 10_000), width=(1, 65_536))

    def decoder(self, d_z: int, d_v: int, d_h: int) -> VectorDecoder:
        return Denoiser(self, d_z, d_v, d_h)


@dataclass(frozen=True, repr=False)
class FlowMatching(VectorLoss):
    """A velocity field that carries noise to the vector on straight paths (conditional flow
    matching, Lipman et al. 2023, arXiv 2210.02747, with sigma_min = 0), sampled by the midpoint
    rule.

    Args:
        steps: of sampling; each asks the network twice.
        width: hidden units of the field, a network of one hidden layer.
    """

    steps: int = 16
    width: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        needs(self, steps=(1, 10_000), width=(1, 65_536))

    def decoder(self, d_z: int, d_v: int, d_h: int) -> VectorDecoder:
        return Flow(self, d_z, d_v, d_h)


# -- networks --------------------------------------------------------------------------------------


class VectorDecoder(nn.Module, ABC):
    """Tells vectors (B, d_v) of about length 1 from user embeddings z (B, d_z) of length 1 and,
    where its value has `history`, from hidden states h (B, d_h).
    """

    def __init__(self, value: VectorLoss, d_z: int, d_v: int, d_h: int):
        super().__init__()
        self.d_v, self.history = d_v, value.history
        self.d_told = d_z + (d_h if value.history else 0)

    def told(self, z: Tensor, h: Tensor | None) -> Tensor:
        """The network's view: deviation 1 a dimension, as its targets have; at length 1 it would
        learn too slowly.
        """
        view = z * math.sqrt(z.shape[1])
        if not self.history:
            return view
        assert h is not None
        return torch.cat([view, F.rms_norm(h.to(z.dtype), (h.shape[1],))], dim=1)

    @abstractmethod
    def each(self, told: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Loss of each row, (B,); x (B, d_v) of deviation 1 a dimension."""

    @abstractmethod
    def draw(self, told: Tensor, noise: Tensor) -> Tensor:
        """Vectors (B, d_v) of deviation 1 a dimension; noise (B, d_v) is standard normal."""

    def forward(
        self,
        z: Tensor,
        goal: Tensor,
        generator: torch.Generator | None = None,
        h: Tensor | None = None,
    ) -> Tensor:
        """Loss of each row, (B,); goal (B, d_v)."""
        return self.each(self.told(z, h), goal * math.sqrt(self.d_v), generator)

    @torch.inference_mode()
    def sample(self, z: Tensor, noise: Tensor, h: Tensor | None = None) -> Tensor:
        """Vectors (B, d_v) that embeddings stand for, to the scale of goals; noise (B, d_v),
        standard normal, makes one of them.
        """
        return self.draw(self.told(z, h), noise) / math.sqrt(self.d_v)


class Linear(VectorDecoder):
    """`Direct` and `Cosine`: their sample is the same whatever the noise."""

    def __init__(self, value: Direct | Cosine, d_z: int, d_v: int, d_h: int):
        super().__init__(value, d_z, d_v, d_h)
        self.cosine = isinstance(value, Cosine)
        self.net = nn.Sequential(nn.Linear(self.d_told, d_v))

    def each(self, told: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.cosine:
            return 1 - F.cosine_similarity(self.net(told), x, dim=1)
        return ((self.net(told) - x) ** 2).mean(dim=1)

    def draw(self, told: Tensor, noise: Tensor) -> Tensor:
        found: Tensor = self.net(told)
        return found


class Noised(VectorDecoder):
    """A decoder whose network also reads a vector with noise and a time in [0, 1]."""

    def __init__(self, value: Diffusion | FlowMatching, d_z: int, d_v: int, d_h: int):
        super().__init__(value, d_z, d_v, d_h)
        self.steps = value.steps
        self.net = nn.Sequential(
            nn.Linear(self.d_told + d_v + 2, value.width), nn.SiLU(), nn.Linear(value.width, d_v)
        )

    def field(self, told: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network at x (B, d_v) and times t (B,): (B, d_v)."""
        clock = torch.stack([torch.sin(math.pi * t), torch.cos(math.pi * t)], dim=1)
        found: Tensor = self.net(torch.cat([told, x, clock.to(x.dtype)], dim=1))
        return found

    def at(self, told: Tensor, x: Tensor, t: float) -> Tensor:
        """`field` at one time for all rows: told (B, d_told), x (B, d_v) -> (B, d_v)."""
        return self.field(told, x, torch.full((len(x),), t, device=x.device))

    def drawn(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """A time (B,) and noise (B, d_v) for each row."""
        t = torch.rand(len(x), generator=generator).to(x.device)
        return t, torch.randn(x.shape, generator=generator).to(x.device)


def kept(t: Tensor) -> Tensor:
    """Share of the signal's variance left after a fraction t in [0, 1] of diffusion, any shape: the
    same shape, in (0, 1] (Nichol & Dhariwal 2021, equation 17, with s = 0).
    """
    return torch.cos(t.clamp(0, 0.999) * math.pi / 2) ** 2


class Denoiser(Noised):
    """`Diffusion`: predicts the noise."""

    def each(self, told: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
        t, eps = self.drawn(x, generator)
        share = kept(t)[:, None]
        found = self.field(told, share.sqrt() * x + (1 - share).sqrt() * eps, t)
        return ((found - eps) ** 2).mean(dim=1)

    def draw(self, told: Tensor, noise: Tensor) -> Tensor:
        x = noise
        for i in reversed(range(self.steps)):
            a, b = kept(torch.tensor([(i + 1) / self.steps, i / self.steps]).to(x.device))
            eps = self.at(told, x, (i + 1) / self.steps)
            clean = (x - (1 - a).sqrt() * eps) / a.sqrt()
            x = b.sqrt() * clean.clamp(-4, 4) + (1 - b).sqrt() * eps
        return x


class Flow(Noised):
    """`FlowMatching`: predicts the velocity x - noise at (1 - t) * noise + t * x."""

    def each(self, told: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
        t, noise = self.drawn(x, generator)
        found = self.field(told, torch.lerp(noise, x, t[:, None]), t)
        return ((found - (x - noise)) ** 2).mean(dim=1)

    def draw(self, told: Tensor, noise: Tensor) -> Tensor:
        x, step = noise, 1 / self.steps
        for i in range(self.steps):
            half = x + step / 2 * self.at(told, x, i * step)
            x = x + step * self.at(told, half, (i + 0.5) * step)
        return x
