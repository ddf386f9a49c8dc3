"""Other processes: the same function over numbered pieces of work, by local processes or on a Ray
cluster.

The function is pure and writes its results as whole folders. A piece whose worker was killed is
simply run again, and the number of workers changes no byte. Local processes are plain ones: Ray
takes longer to start than many replays take.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

from ...bounds import check_bound
from ...errors import KarmafunnelError

Job = TypeVar("Job")
Answer = TypeVar("Answer")
Work = Callable[[Job, int], Answer]
DEATHS = 3  # times that workers may die without a piece done in between
WAIT = 10.0  # seconds for a Ray address to answer
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)
ONE_THREAD = dict.fromkeys(THREADS, "1") | {
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
}


class WorkerDied(KarmafunnelError):
    """Worker processes die again and again, most likely because of one piece of work."""


@dataclass(frozen=True)
class Workers:
    """`n` local processes or, with `ray`, tasks on the cluster at that address ("local": a cluster
    that is started for this).
    """

    n: int | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.n is not None:
            check_bound("workers", "workers", n=self.n)

    def check(self) -> None:
        """Raise KarmafunnelError where Ray is not installed, or no cluster answers at the address
        within `WAIT` seconds.
        """
        if self.ray is None:
            return
        if find_spec("ray") is None:
            hint = "pip install 'karmafunnel[ray]'"
            raise KarmafunnelError("ray", needs="the package", found="none", hint=hint)
        if self.ray not in ("local", "auto"):
            check_answers(self.ray)


def spread(
    work: Work[Job, Answer], job: Job, numbers: Sequence[int], workers: Workers, gpus: int = 0
) -> Generator[tuple[int, Answer], None, None]:
    """Run `work(job, number)` for every number.

    Closed or interrupted, the generator ends its workers; they also end with this process, however
    that ends.

    Args:
        work: a function of a module.
        job: small and picklable.
        gpus: of each task on a Ray cluster.

    Yields:
        Each number with the answer, as it is done.

    Raises:
        WorkerDied: where workers die again and again.
        KarmafunnelError: where no cluster answers within `WAIT` seconds.
        Exception: whatever `work` raises.
    """
    if workers.ray is None:
        return in_processes(work, job, numbers, workers.n or 1)
    return on_ray(work, job, numbers, workers.ray, workers.n, gpus)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables for processes that are started inside; libraries read them when they
    are imported.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def undisturbed() -> Iterator[None]:
    """Processes that are started inside ignore Ctrl-C, which a terminal sends to them, too; their
    parent ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def live_with_parent() -> None:
    """In a worker: end at once when the parent process ends, however that happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def in_processes(
    work: Work[Job, Answer], job: Job, numbers: Sequence[int], n: int
) -> Generator[tuple[int, Answer], None, None]:
    left, deaths = list(numbers), 0
    while left:
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            min(n, len(left)), multiprocessing.get_context("spawn"), live_with_parent
        )
        try:
            # all processes start with the first piece
            with environment(**ONE_THREAD), undisturbed():
                futures = {pool.submit(work, job, number): number for number in left}
            for future in as_completed(futures):
                answer = future.result()
                left.remove(futures[future])
                deaths = 0
                yield futures[future], answer
        except BrokenProcessPool as error:
            deaths += 1
            if deaths >= DEATHS:
                found = (
                    f"{deaths} deaths without a piece done (out of memory?); left are {left[:10]}"
                )
                needs = "processes that live"
                raise WorkerDied("workers", needs=needs, found=found) from error
        except BaseException as error:
            # Ctrl-C, or the generator was closed: do not wait for what workers have begun
            if not isinstance(error, Exception):
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def on_ray(
    work: Work[Job, Answer],
    job: Job,
    numbers: Sequence[int],
    address: str,
    n: int | None,
    gpus: int,
) -> Generator[tuple[int, Answer], None, None]:
    import ray

    where: dict[str, Any] = {"address": address}
    if address == "local":
        where = {"num_cpus": n, "include_dashboard": False}
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(**where, **quiet, runtime_env={"env_vars": ONE_THREAD})
    # Ray leaves the process where a cluster does not answer
    except (Exception, SystemExit) as error:
        found = str(error).splitlines()[0]
        raise KarmafunnelError("ray", needs=f"a cluster at {address!r}", found=found) from error
    try:
        task = ray.remote(work).options(num_cpus=1, num_gpus=gpus, max_retries=DEATHS)
        here = ray.put(job)
        cpus = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        # the cluster runs no more tasks than it has processors; twice as many are submitted, so
        # that no worker waits for this process
        most = 2 * cpus if n is None or n >= cpus else n
        left, running = list(numbers)[::-1], dict[Any, int]()
        while left or running:
            while left and len(running) < most:
                number = left.pop()
                running[task.remote(here, number)] = number
            for done in ray.wait(list(running))[0]:
                try:
                    answer = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise getattr(error, "cause", error) from None
                except ray.exceptions.RayError as error:
                    found = f"after {DEATHS} retries: {str(error).splitlines()[0]}"
                    needs = "processes that live"
                    raise WorkerDied("workers", needs=needs, found=found) from error
                yield running.pop(done), answer
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raise KarmafunnelError unless a Ray cluster answers at the address within `WAIT` seconds; Ray
    itself would wait for minutes.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), WAIT).close()
    except (ValueError, OverflowError) as error:
        needs = "an address such as 'host:6379', 'auto' or 'local'"
        raise KarmafunnelError("ray", needs=needs, found=repr(address)) from error
    except OSError as error:
        raise _no_cluster(address, error) from error
    if address.startswith("ray://"):
        return
    # something listens there; whether it is Ray, only its own health check can tell
    code = "from ray.scripts.scripts import main; main()"
    command = [sys.executable, "-c", code, "health-check", "--address", address]
    try:
        # importing Ray takes a while, too
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=3 * WAIT)
    except subprocess.TimeoutExpired as error:
        raise _no_cluster(address, "something that is no Ray") from error
    if answer.returncode:
        said = answer.stderr.strip().splitlines()[-1:] or answer.returncode
        raise _no_cluster(address, f"something that is no Ray: {said}")


def _no_cluster(address: str, found: object) -> KarmafunnelError:
    needs = f"a cluster that answers at {address!r} within {WAIT:.0f} s"
    return KarmafunnelError("ray", needs=needs, found=found)
