"""Frozen visual features of a log's items [K: multimodal KARMA reads and reconstructs frozen visual
features; I: from where].

Three sources: the log's own `visual` column, a `transformers` vision model from a local folder, or
a small encoder that learns from the log's images alone, without a label.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from torch.nn import functional as F

from ...bounds import needs
from ...errors import KarmafunnelError
from ...keys import code_of, content_key
from ...log import Log
from ...typed import Typed
from ..embedders import Progress, known_in_w1
from ..training import Snapshot, seeded
from ..weights import (
    PICTURES,
    check_source,
    check_whole,
    finite,
    must_be_here,
    opening,
    source_of,
)


@dataclass(frozen=True, repr=False)
class Column(Typed):
    """The `visual` column of the log's items: lists of numbers, all as long, null where an item has
    none.
    """


@dataclass(frozen=True, repr=False)
class Pretrained(Typed):
    """Pooled output (or mean patch) of a `transformers` vision model from a local folder or a hub
    id, with its own image processor.

    Args:
        source: the folder or the id.
    """

    source: str

    def __post_init__(self) -> None:
        check_source("Pretrained", self.source)


@dataclass(frozen=True, repr=False)
class SelfSupervised(Typed):
    """A convolutional encoder trained by SimCLR (Chen et al. 2020) on the images of the items that
    W1 knows [O].

    Two crops of a picture, mirrored and lit differently, must find each other among those of the
    other pictures of a batch.

    Args:
        dim: length of the features.
        side: pixels that height and width of pictures are scaled to.
        epochs: passes over the pictures.
        batch: pictures of a step; all of them where there are fewer.
        rate: of AdamW at the first step; it falls as a cosine.
        temperature: that cosines of views are divided by.
    """

    dim: int = 64
    side: int = 32
    epochs: int = 12
    batch: int = 256
    rate: float = 2e-3
    temperature: float = 0.2

    def __post_init__(self) -> None:
        needs(self, "dim", "side", "epochs", "batch", "rate", "temperature")


def visual_features(
    log: Log,
    how: Column | Pretrained | SelfSupervised,
    cache: Path | None,
    seed: int,
    progress: Progress,
    device: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Features of all items, float32 (n_items, d_v), zeros where there is no image, and which have
    one, (n_items,) bool.

    Kept in `cache` by content. Raises KarmafunnelError where no item has an image, or naming the
    item whose image is broken.
    """
    if isinstance(how, Column):
        return from_column(log)
    pictures = open_images(log)
    there = np.zeros(log.n_items, dtype=bool)
    digest, found = hashlib.sha256(), []
    for i, picture in enumerate(pictures):
        if picture is not None:
            there[i] = True
            digest.update(f"{i} {picture.size}".encode() + picture.tobytes())
            found.append(picture)
    known = known_in_w1(log).tobytes().hex()
    key = content_key(code_of(how), repr(how), asdict(how), digest.hexdigest(), known, seed, device)
    file = cache / f"visual-{key}.safetensors" if cache else None
    if (kept := Snapshot.resume(file, "kept visual features")) is not None:
        return kept.tensors["features"].numpy(), there
    found = [picture.convert("RGB") for picture in found]
    if isinstance(how, Pretrained):
        vectors = from_model(how, found, progress, device)
    else:
        vectors = self_supervised(how, found, known_in_w1(log)[there], seed, progress, device)
    features = np.zeros((log.n_items, vectors.shape[1]), dtype=np.float32)
    features[there] = vectors
    if file is not None:
        about = {"how": repr(how), "log": log.name, "images": len(found), "seed": seed}
        Snapshot({"features": torch.from_numpy(features)}, about).write(file)
    return features, there


def from_column(log: Log) -> tuple[np.ndarray, np.ndarray]:
    """Raises KarmafunnelError where the column is absent or empty, or its lists differ in length or
    hold no numbers.
    """
    column = log.items["visual"] if "visual" in log.items.columns else None
    if column is None or column.null_count() == len(column):
        raise KarmafunnelError(
            "Column()", needs=f"visual features in the items of log {log.name}", found="none"
        )
    there = (column.list.len().fill_null(0) > 0).to_numpy()
    lengths = np.unique(column.list.len().to_numpy()[there])
    if len(lengths) != 1:
        raise KarmafunnelError(
            "Column()",
            needs=f"visual features of one length in log {log.name}",
            found=f"{lengths.tolist()}",
        )
    out = np.zeros((log.n_items, int(lengths[0])), dtype=np.float32)
    out[there] = np.array(column.filter(there).to_list(), dtype=np.float32)
    if not np.isfinite(out).all():
        item = log.item_ids[np.flatnonzero(~np.isfinite(out).all(axis=1))[0]]
        raise KarmafunnelError(
            "Column()",
            needs=f"finite visual features in log {log.name}",
            found=f"others for item {item!r}",
        )
    return out, there


def open_images(log: Log) -> list[Image.Image | None]:
    """The picture of each item or None; paths are relative to the log's folder."""
    column = log.items["image"] if "image" in log.items.columns else None
    if column is None or column.null_count() == len(column):
        raise KarmafunnelError(
            "visual features", needs=f"images in the items of log {log.name}", found="none"
        )
    out: list[Image.Image | None] = []
    for item, value in zip(log.item_ids, column.to_list(), strict=True):
        if value is None:
            out.append(None)
            continue
        source = io.BytesIO(value) if isinstance(value, bytes) else (log.path or Path()) / value
        try:
            picture = Image.open(source)
            picture.load()
        except (
            OSError,
            UnidentifiedImageError,
            Image.DecompressionBombError,
            SyntaxError,
            ValueError,
        ) as error:
            raise KarmafunnelError(
                "visual features",
                needs=f"a readable image of item {item!r} of log {log.name}",
                found=error,
            ) from error
        out.append(picture)
    return out


@torch.inference_mode()
def from_model(
    how: Pretrained, pictures: list[Image.Image], progress: Progress, device: str
) -> np.ndarray:
    """Raises KarmafunnelError for a source that is no vision model or lacks its image processor."""
    from transformers import AutoImageProcessor, AutoModel

    who, source = f"{how!r}", source_of(how.source, f"{how!r}", PICTURES)
    with opening(who, "a vision model with its image processor", source):
        alone = must_be_here(source)
        processor = AutoImageProcessor.from_pretrained(source, local_files_only=alone)
        opened: Any = AutoModel.from_pretrained(
            source, local_files_only=alone, output_loading_info=True
        )
        model, report = opened
    check_whole(model, report, who, "a vision model")
    model = model.eval().to(device)
    # a classifier has no pooler, whose place the mean over patches takes
    unpooled = any("pooler" in name for name in report["missing_keys"])
    model = getattr(model, "vision_model", model)
    parts = []
    for start in range(0, len(pictures), 32):
        progress(f"visual features: image {start + 1} of {len(pictures)}")
        pixels = processor(images=pictures[start : start + 32], return_tensors="pt")[
            "pixel_values"
        ].to(device)
        out = model(pixel_values=pixels)
        pooled = None if unpooled else getattr(out, "pooler_output", None)
        parts.append(
            (pooled if pooled is not None else out.last_hidden_state.mean(dim=1))
            .flatten(1)
            .float()
            .cpu()
            .numpy()
        )
    return finite(np.concatenate(parts), who, "images")


class Encoder(nn.Module):
    """Pixels (B, 3, s, s) in -1..1 -> features (B, dim); the projection head is used in training
    alone.
    """

    def __init__(self, dim: int):
        super().__init__()
        widths = (3, 24, 48, 96)
        blocks = [
            layer
            for a, b in pairwise(widths)
            for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU())
        ]
        self.stem = nn.Sequential(*blocks)
        self.out = nn.Linear(2 * widths[-1], dim)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(dim, 64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))


def views(x: Tensor, generator: torch.Generator) -> Tensor:
    """One random crop (60 to 100% of the side), mirrored one time in two, lit a little differently,
    of each picture.
    """
    n = len(x)
    scale = 0.6 + 0.4 * torch.rand(n, generator=generator)
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * (1 - scale)[:, None]
    light = 0.8 + 0.4 * torch.rand(n, 1, 1, 1, generator=generator)
    tint = 0.1 * torch.randn(n, 3, 1, 1, generator=generator)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * flip, scale, shift
    grid = F.affine_grid(theta, list(x.shape), align_corners=False).to(x.device)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False) * light.to(
        x.device
    ) + tint.to(x.device)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Normalised cross entropy of pairs among all views of a batch (Chen et al. 2020, equation 1):
    a, b (B, d).
    """
    both = F.normalize(torch.cat([a, b]), dim=1)
    logits = both @ both.T / temperature
    logits = logits.masked_fill(
        torch.eye(len(both), dtype=torch.bool, device=both.device), -torch.inf
    )
    return F.cross_entropy(logits, torch.arange(len(both), device=both.device).roll(len(a)))


def self_supervised(
    how: SelfSupervised,
    pictures: list[Image.Image],
    known: np.ndarray,
    seed: int,
    progress: Progress,
    device: str,
) -> np.ndarray:
    """Features of the pictures by an encoder that learnt from those `known`: float32 (n, dim)."""
    pixels = np.stack(
        [np.asarray(p.resize((how.side, how.side)), dtype=np.float32) for p in pictures]
    )
    x = torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2).contiguous().to(device)
    train = x[torch.from_numpy(known).to(device)] if known.any() else x
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed, device):
        encoder = Encoder(how.dim).to(device)
        optimiser = torch.optim.AdamW(encoder.parameters(), lr=how.rate, weight_decay=1e-4)
        size = max(2, min(how.batch, len(train)))
        steps = how.epochs * max(1, len(train) // size)
        step = 0
        for epoch in range(how.epochs):
            order = torch.randperm(len(train), generator=generator)
            for start in range(0, max(len(train) - size, 0) + 1, size):
                batch = train[order[start : start + size].to(device)]
                a, b = (encoder.head(encoder(views(batch, generator))) for _ in range(2))
                loss = nt_xent(a, b, how.temperature)
                if not math.isfinite(loss.item()):
                    raise KarmafunnelError(
                        f"{how!r}",
                        needs="a finite loss",
                        found=f"{loss.item()} in epoch {epoch + 1}",
                    )
                for group in optimiser.param_groups:
                    group["lr"] = how.rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                step += 1
            progress(f"visual encoder: epoch {epoch + 1} of {how.epochs}, loss {loss.item():.2f}")
    with torch.inference_mode():
        return np.concatenate(
            [encoder(x[i : i + 256]).cpu().numpy() for i in range(0, len(x), 256)]
        ).astype(np.float32)
