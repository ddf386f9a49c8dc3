"""Pieces of work for tests of worker processes: a worker imports them by name, so they stand in a
module of their own.
"""

import os
import signal
import time
from pathlib import Path


def square(job: str, number: int) -> tuple[int, str | None]:
    """The square, and what the worker's environment says of threads."""
    return number**2, os.environ.get("OMP_NUM_THREADS")


def dies_once(folder: str, number: int) -> int:
    """Number 2 is killed the first time that it runs."""
    with (Path(folder) / f"{number}.txt").open("a") as file:
        file.write("tried\n")
    if number == 2 and (Path(folder) / "2.txt").read_text().count("tried") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def dies(job: str, number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def fails(job: str, number: int) -> int:
    raise ZeroDivisionError(f"piece {number}")


def times(job: str, number: int) -> tuple[float, float]:
    """When it began and ended."""
    began = time.time()
    time.sleep(0.2)
    return began, time.time()


def sleeps(folder: str, number: int) -> int:
    """Says that it has begun, by its process id, and takes a minute."""
    (Path(folder) / f"{os.getpid()}.began").touch()
    time.sleep(60)
    return number
