"""Several processes that train one fit together, started by `torchrun` or `accelerate launch`.

The first process runs the command, as if it were alone. The others wait; when a fit of KARMA starts
its training, they are sent a copy of it and take a share of every step. So nothing but the first
process reads logs, writes files or prints results. The engine is torch's DistributedDataParallel.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import KarmafunnelError, LostProcessError, line_of

STARTED_BY = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(minutes=10)  # with a process that does not answer within a step
PIECE = 1 << 28  # bytes that are sent at a time


@dataclass
class Processes:
    """Those that train together: this one's number, how many there are, this one's number on its
    machine, and how many are there.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1
    group: Any = None  # of what is gathered, apart from that of the gradients of weights
    store: Any = None
    sent: int = 0  # fits so far
    lost: bool = False  # a fit ended in an error, and the other processes with it

    def share(self, n: int) -> slice:
        """This process's part of n rows: one stretch, of which none differs by more than a row."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def whole(self, own: Tensor, start: int, n: int) -> Tensor:
        """The n rows of all processes, of which these begin at `start`, with their gradient."""
        if self.count == 1:
            return own
        found: Tensor = Gathered.apply(own, start, n)
        return found


here = Processes()


class Gathered(torch.autograd.Function):
    """Rows of all processes. Their gradients are summed over the processes, which all go on to the
    same loss; gradients of weights are averaged over them afterwards.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, start: int, n: int) -> Tensor:
        ctx.rows = slice(start, start + len(own))
        out = own.new_zeros(n, *own.shape[1:])
        out[ctx.rows] = own
        dist.all_reduce(out, group=here.group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad.clone()
        dist.all_reduce(grad, group=here.group)
        return grad[ctx.rows], None, None


# -- the first process -----------------------------------------------------------------------------


@contextmanager
def together(train: Callable[[Any, torch.device], None]) -> Iterator[None]:
    """Inside, the first of the processes that a launcher started goes on alone, and its fits of
    KARMA train in all of them; the others never get inside: they serve it, and leave the program
    when it ends.

    Args:
        train: what another process does with what `send` sent, and the device of the fit.

    Raises:
        KarmafunnelError: the processes do not find each other.
    """
    try:
        number = {name: int(os.environ[name]) for name in STARTED_BY[:2]}
        here.local = int(os.environ.get("LOCAL_RANK", number["RANK"]))
        here.local_count = int(os.environ.get("LOCAL_WORLD_SIZE", number["WORLD_SIZE"]))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store, here.rank, here.count = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("steps", store),
            rank=here.rank,
            world_size=here.count,
            timeout=PATIENCE,
        )
    except (KeyError, ValueError, RuntimeError) as error:
        raise KarmafunnelError(
            "processes",
            needs=f"{', '.join(STARTED_BY[:2])} and an address, as torchrun sets them",
            found=line_of(error),
        ) from error
    here.store, here.group = store, dist.new_group()
    for name in STARTED_BY:  # programs that this one starts are alone
        os.environ.pop(name, None)
    if here.rank:
        serve(train)
    try:
        yield
    finally:
        # so that a program that goes on is alone again
        if not here.lost:
            store.set(f"fit {here.sent}", "end")
            with suppress(RuntimeError):  # one that was killed
                dist.barrier()
        if dist.is_initialized():
            dist.destroy_process_group()
        here.__dict__.update(Processes().__dict__)


def send(job: Any, device: torch.device) -> None:
    """Have the other processes train this, too.

    Raises:
        LostProcessError: the others ended with an earlier fit.
        KarmafunnelError: `device` is a GPU, and this machine has fewer of them than processes.
    """
    if here.lost:
        raise LostProcessError(
            "processes",
            needs=f"all {here.count}",
            found="one: the others ended with the fit before",
            hint="the same command goes on",
        )
    if device.type == "cuda" and here.local_count > torch.cuda.device_count():
        raise KarmafunnelError(
            "processes",
            needs="a GPU each",
            found=f"{here.local_count} processes, {torch.cuda.device_count()} GPUs",
        )
    here.store.set(f"fit {here.sent}", device.type)
    here.sent += 1
    written = io.BytesIO()
    torch.save(job, written)
    text = torch.frombuffer(written.getbuffer(), dtype=torch.uint8)
    dist.broadcast(torch.tensor([len(text)]), src=0)
    for piece in text.split(PIECE):
        dist.broadcast(piece, src=0)


@contextmanager
def all_present() -> Iterator[None]:
    """Turns the failure of another process into a LostProcessError. After any error inside, the
    processes have lost step with each other: they train no more.
    """
    try:
        yield
    except BaseException as error:
        here.lost = here.count > 1
        if here.lost and isinstance(error, RuntimeError) and is_loss(error):
            raise LostProcessError(
                "processes",
                needs=f"all {here.count} to the end of the training",
                found=f"one that ended or does not answer ({line_of(error)[:120]})",
                hint="the same command goes on from the last checkpoint",
            ) from error
        raise


def is_loss(error: RuntimeError) -> bool:
    """Whether torch says that another process was lost."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "peer" in str(error)


# -- the others ------------------------------------------------------------------------------------


def serve(train: Callable[[Any, torch.device], None]) -> None:
    """Train what the first process sends until it ends; leaves the program."""
    try:
        while (kind := asked(f"fit {here.sent}")) != "end":
            here.sent += 1
            train(received(torch.device(kind)), torch.device(kind))
        dist.barrier()
        dist.destroy_process_group()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        print(f"process {here.rank + 1} of {here.count} ends: {line_of(error)}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # whatever torch's threads still wait for
    sys.exit(0)


def asked(key: str) -> str:
    """What the first process writes under this key, whenever that is."""
    while True:
        try:
            here.store.wait([key], timedelta(minutes=1))
            return str(here.store.get(key).decode())
        except dist.DistNetworkError:
            raise
        except dist.DistStoreError:  # not yet
            continue


def received(device: torch.device) -> Any:
    """What `send` sent, its tensors on this process's device."""
    size = torch.zeros(1, dtype=torch.int64)
    dist.broadcast(size, src=0)
    text = torch.zeros(int(size), dtype=torch.uint8)
    for piece in text.split(PIECE):
        dist.broadcast(piece, src=0)
    if device.type == "cuda":
        device = torch.device("cuda", here.local)
        torch.cuda.set_device(device)
    # of our own first process, over the connection of the group
    return torch.load(io.BytesIO(text.numpy().data), map_location=device, weights_only=False)
