"""What every training loop here shares: draws and sums that repeat, and checkpoints, one file each
with a digest of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import KarmafunnelError
from ..files import atomic_file, remove, say


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Torch draws from `seed` inside, and on a CPU adds up in one order: the same bytes each time
    on a machine with so many threads.

    Without it the gradient of `x[rows]` is added by several threads at once, in whatever order they
    come, and the sums of two equal fits differ in their last bits. What was drawn before goes on
    afterwards, and the setting is as it was.
    """
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(before or torch.device(device).type == "cpu", warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned)


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    found = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in sorted(tensors):
        x = tensors[name]
        found.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        found.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_tensors(file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """A safetensors file with facts (JSON) and a digest of both; it is there whole or not at all.
    """
    kept = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    told = json.dumps(facts)
    with atomic_file(file) as temporary:
        save_file(kept, temporary, metadata={"facts": told, "digest": _digest(kept, told)})


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of such a file; raises KarmafunnelError naming it when it cannot be read,
    or is not as it was written.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            told = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if "digest" in told and told["digest"] != _digest(tensors, told["facts"]):
            raise KarmafunnelError(f"{file}: needed a checkpoint as it was written, found other bytes")
        return tensors, json.loads(told["facts"])
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise KarmafunnelError(f"{file}: needed a checkpoint, found: {error}") from error


def resumed(file: Path | None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What an interrupted fit left in a file; None where there is nothing. What is damaged goes,
    and a line says so.
    """
    if file is None or not file.exists():
        return None
    try:
        return read_tensors(file)
    except KarmafunnelError as error:
        say(f"{error}; it is made again")
        remove(file)
        return None
