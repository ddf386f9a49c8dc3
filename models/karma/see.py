"""`see`: what a user embedding tells of the target's frozen visual features."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
