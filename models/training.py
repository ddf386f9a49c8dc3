"""What all training loops share: reproducible random draws and sums, and checkpoints on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import KarmafunnelError, quoted
from ..files import atomic_file, remove, say

T = TypeVar("T")


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Make torch reproducible inside: draws from `seed`, and on a CPU sums in a fixed order, so
    that equal fits give the same bytes on a machine with the same number of threads.

    Otherwise several threads add up the gradient of `x[rows]` in any order, and two equal fits
    differ in their last bits. Afterwards the random state and the setting are restored.
    """
    before, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(
            before or torch.device(device).type == "cpu", warn_only=True
        )
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned)


def digest_of_tensors(tensors: Mapping[str, Tensor], facts: str = "") -> str:
    """A hash of tensors by name, and of a text."""
    found = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        found.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A checkpoint in one safetensors file: tensors by name, facts as JSON, and a digest of both.

    Of a fit that goes on: `weight.` and `optimiser.` tensors beside what else changes while it
    trains. `file`: where it was read.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    file: Path | None = None

    @classmethod
    def of(
        cls,
        parameters: Mapping[str, nn.Parameter],
        optimiser: torch.optim.Optimizer,
        facts: Mapping[str, Any],
    ) -> Snapshot:
        """A snapshot of a fit after a step, for `restore`."""
        tensors = {f"weight.{name}": p.detach() for name, p in parameters.items()}
        for place, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{place}.{key}": x for key, x in state.items()}
        return cls(tensors, facts)

    def write(self, file: Path) -> None:
        """Write the file atomically."""
        kept = {name: x.detach().cpu().contiguous().clone() for name, x in self.tensors.items()}
        told = json.dumps(self.facts)
        # safetensors writes two keys in any order, one is the same bytes each time
        sealed = json.dumps([told, digest_of_tensors(kept, told)])
        with atomic_file(file) as temporary:
            save_file(kept, temporary, metadata={"sealed": sealed})

    @classmethod
    def read(cls, file: Path, what: str = "a checkpoint") -> Snapshot:
        """Read a file; raises KarmafunnelError naming it, if it is unreadable or was changed."""
        try:
            with safe_open(file, framework="pt") as opened:
                told = opened.metadata()
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            sealed = json.loads(told["sealed"]) if "sealed" in told else None
            text, digest = sealed or (told["facts"], told.get("digest"))  # as older code wrote it
            facts = json.loads(text)
            if digest is not None and digest != digest_of_tensors(tensors, text):
                raise KarmafunnelError(file, needs=f"{what} as it was written", found="other bytes")
            if not isinstance(facts, dict):
                raise KarmafunnelError(file, needs=f"{what} with its facts", found=quoted(facts))
            return cls(tensors, facts, file)
        except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise KarmafunnelError(file, needs=what, found=error) from error

    @classmethod
    def resume(cls, file: Path | None, what: str = "a checkpoint") -> Snapshot | None:
        """The snapshot that an earlier process left; None if there is none. A damaged file is
        removed, with a line on standard error.
        """
        if file is None or not file.exists():
            return None
        try:
            return cls.read(file, what)
        except KarmafunnelError as error:
            say(f"{error}; it is made again")
            remove(file)
            return None

    def part(self, name: str) -> dict[str, Tensor]:
        return part(self.tensors, name)

    def restore(
        self, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
    ) -> None:
        """Restore what `of` saved; raises KarmafunnelError naming a missing weight."""
        copy_weights(parameters, self.part("weight"), str(self.file))
        state: dict[int, dict[str, Tensor]] = {}
        for name, x in self.part("optimiser").items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = x
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": state, "param_groups": groups})


def part(tensors: Mapping[str, T], name: str) -> dict[str, T]:
    """The tensors whose names begin with `name` and a dot, by the rest of their names."""
    before = f"{name}."
    return {k.removeprefix(before): x for k, x in tensors.items() if k.startswith(before)}


def check_weights(wanted: Iterable[str], weights: Mapping[str, Tensor], who: str) -> None:
    """Raises KarmafunnelError naming the first missing weights."""
    missing = [name for name in wanted if name not in weights]
    if missing:
        first = f"{', '.join(missing[:3])} ({len(missing)} missing)"
        raise KarmafunnelError(who, needs="all weights", found=f"none of {first}")


def copy_weights(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor], who: str) -> None:
    """Copy weights into parameters of the same names; raises KarmafunnelError if one is missing."""
    check_weights(parameters, weights, who)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(weights[name])


def put_weights(
    module: nn.Module, weights: Mapping[str, Tensor], who: str, apart: tuple[str, ...] = ()
) -> None:
    """Load weights into a module; raises KarmafunnelError naming a parameter that is not among
    them. What begins as one of `apart` may be missing.
    """
    named = [name for name, _ in module.named_parameters()]  # what is tied has one name
    check_weights([name for name in named if not name.startswith(apart)], weights, who)
    try:
        kept = {name: x for name, x in weights.items() if not name.startswith(apart)}
        module.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        found = str(error).splitlines()[-1].strip()
        raise KarmafunnelError(who, needs="weights of its shapes", found=found) from error
