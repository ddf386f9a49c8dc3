"""What every training loop here shares: draws and sums that repeat, and checkpoints on disk."""

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
    """Torch draws from `seed` inside, and on a CPU adds up in one order: the same bytes each time
    on a machine with so many threads.

    Without it the gradient of `x[rows]` is added by several threads at once, in whatever order they
    come, and the sums of two equal fits differ in their last bits. What was drawn before goes on
    afterwards, and the setting is as it was.
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


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    found = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in sorted(tensors):
        x = tensors[name]
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
        """A fit as it is after a step: what `restore` puts back."""
        tensors = {f"weight.{name}": p.detach() for name, p in parameters.items()}
        for place, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{place}.{key}": x for key, x in state.items()}
        return cls(tensors, facts)

    def write(self, file: Path) -> None:
        """It is there whole or not at all."""
        kept = {name: x.detach().cpu().contiguous().clone() for name, x in self.tensors.items()}
        told = json.dumps(self.facts)
        with atomic_file(file) as temporary:
            save_file(kept, temporary, metadata={"facts": told, "digest": _digest(kept, told)})

    @classmethod
    def read(cls, file: Path, what: str = "a checkpoint") -> Snapshot:
        """Raises KarmafunnelError naming the file when it cannot be read, or is not as it was
        written.
        """
        try:
            with safe_open(file, framework="pt") as opened:
                told = opened.metadata()
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            facts = json.loads(told["facts"])
            if "digest" in told and told["digest"] != _digest(tensors, told["facts"]):
                raise KarmafunnelError(file, needs=f"{what} as it was written", found="other bytes")
            if not isinstance(facts, dict):
                raise KarmafunnelError(file, needs=f"{what} with its facts", found=quoted(facts))
            return cls(tensors, facts, file)
        except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise KarmafunnelError(file, needs=what, found=error) from error

    @classmethod
    def resume(cls, file: Path | None, what: str = "a checkpoint") -> Snapshot | None:
        """What an earlier process left in a file that can be made again; None where there is
        nothing. What is damaged goes, and a line says so.
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
        """Put back what `of` took; raises KarmafunnelError naming a weight that is missing."""
        copy_weights(parameters, self.part("weight"), str(self.file))
        state: dict[int, dict[str, Tensor]] = {}
        for name, x in self.part("optimiser").items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = x
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": state, "param_groups": groups})


def part(tensors: Mapping[str, T], name: str) -> dict[str, T]:
    """Those whose names begin with `name` and a dot, by the rest of their names."""
    before = f"{name}."
    return {k.removeprefix(before): x for k, x in tensors.items() if k.startswith(before)}


def check_weights(wanted: Iterable[str], weights: Mapping[str, Tensor], who: str) -> None:
    """Raises KarmafunnelError naming the first weights that are not there."""
    missing = [name for name in wanted if name not in weights]
    if missing:
        first = f"{', '.join(missing[:3])} ({len(missing)} missing)"
        raise KarmafunnelError(who, needs="all weights", found=f"none of {first}")


def copy_weights(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor], who: str) -> None:
    """Copy weights into parameters of the same names; raises KarmafunnelError naming one that is
    not there.
    """
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
