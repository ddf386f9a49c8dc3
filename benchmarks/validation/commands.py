"""Commands of the package, each in a process of its own that starts at once: the imports are done
once, by a server that forks.

The server only imports. Libraries whose threads do not outlive a fork (polars, torch, OpenMP) are
first used by the child, so that a child is what a freshly started command is. It has a session of
its own: whom it leaves behind is known by it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

CLI = "karmafunnel.cli:main"
SKIPPED = (
    "karmafunnel.benchmarks.recipes",
    "karmafunnel.benchmarks.peers",
    "karmafunnel.benchmarks.validation",
)
MORE = (
    "bm25s",
    "plotly.io",
    "transformers.models.qwen3",
    "tokenizers",
    "sklearn.isotonic",
    "scipy.sparse.linalg",
    "PIL.Image",
)
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)
QUIET = dict.fromkeys(THREADS, "1") | {
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "400",
}


@dataclass(frozen=True)
class Answer:
    """How a command ended: exit code (minus a signal's number; None: it was stopped, and `stopped`
    says why), what it printed."""

    code: int | None
    stdout: str
    stderr: str
    seconds: float
    stopped: str = ""

    @property
    def line(self) -> str:
        """The last line of standard error that says something."""
        return next((line for line in reversed(self.stderr.splitlines()) if line.strip()), "")[:400]

    @property
    def fault(self) -> str:
        """What no command may do, whatever it is given: empty where it did none of it."""
        if self.stopped:
            return self.stopped
        if self.code in (1, 3) and "by a margin of" in self.stdout:
            return ""  # the verdict of `gate`
        if self.code is None or self.code < 0 or self.code > 2:
            return (
                f"ended by {signal.Signals(-self.code).name}"
                if self.code and self.code < 0
                else f"exit code {self.code}"
            )
        if "Traceback (most recent call last)" in self.stderr or "panicked at" in self.stderr:
            return "traceback"
        lines = self.stderr.lower().splitlines()
        said = any(line.startswith(("error:", "usage:")) for line in lines)
        return "no error line" if self.code and not said else ""


class Commands:
    """The server, and what is asked of it. A context manager: its end is the end of every process
    that it started."""

    def __init__(self, env: Mapping[str, str] | None = None):
        environment = os.environ | QUIET | dict(env or {})
        self.server = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.heard = b""
        self.running: int | None = None
        assert self._hear(120) == {"ready": True}

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running is not None:
            end_session(self.running)
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait(10)

    def _hear(self, seconds: float) -> dict[str, Any] | None:
        """The server's next line; None where there is none for so long."""
        assert self.server.stdout
        while b"\n" not in self.heard:
            if not select.select([self.server.stdout], [], [], seconds)[0]:
                return None
            if not (more := os.read(self.server.stdout.fileno(), 65536)):
                raise RuntimeError("the server of commands has ended")
            self.heard += more
        line, _, self.heard = self.heard.partition(b"\n")
        return dict(json.loads(line))

    def start(
        self,
        argv: Sequence[str],
        folder: Path,
        told: Path,
        env: Mapping[str, str],
        entry: str = CLI,
        file_size: int | None = None,
    ) -> int:
        """Start one command in `folder`; what it prints goes to `told`.out and .err. Returns its
        process id, which is its session's."""
        said = {
            "argv": list(argv),
            "folder": str(folder),
            "told": str(told),
            "env": dict(env),
            "entry": entry,
            "size": file_size,
        }
        assert self.server.stdin
        self.server.stdin.write(json.dumps(said).encode() + b"\n")
        self.server.stdin.flush()
        heard = self._hear(60)
        assert heard is not None
        self.running = int(heard["pid"])
        return self.running

    def wait(self, seconds: float) -> int | None:
        """The exit code (minus a signal's number) of the command that runs; None where it still
        does after so long."""
        heard = self._hear(seconds)
        if heard is None:
            return None
        self.running = None
        return int(heard["code"])

    def run(
        self,
        argv: Sequence[str],
        folder: Path,
        told: Path,
        env: Mapping[str, str],
        *,
        entry: str = CLI,
        file_size: int | None = None,
        seconds: float = 60.0,
        gigabytes: float = 4.0,
    ) -> Answer:
        """One command from start to end; it is stopped once it takes longer, or more memory, than
        it may."""
        began, stopped = time.perf_counter(), ""
        pid = self.start(argv, folder, told, env, entry, file_size)
        while (code := self.wait(0.1)) is None:
            if time.perf_counter() - began > seconds:
                stopped = f"longer than {seconds:g} s"
            elif sum(memory(other) for other in members(pid)) > gigabytes * 2**30:
                stopped = f"more than {gigabytes:g} GB"
            if stopped:
                end_session(pid)
                self.wait(10)
                code = None
                break
        spent = time.perf_counter() - began
        stdout = told.with_suffix(".out").read_text(encoding="utf-8", errors="replace")
        stderr = told.with_suffix(".err").read_text(encoding="utf-8", errors="replace")
        return Answer(code, stdout, stderr, spent, stopped)


def members(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text(encoding="utf-8")
            except OSError:
                continue
            state, _, _, of = stat.rpartition(")")[2].split()[:4]
            if int(of) == session and state not in "ZX":
                found.append(int(entry.name))
    return found


def end_session(session: int) -> None:
    """Kill a command and all that it started, by their ids."""
    for pid in members(session):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def memory(pid: int) -> int:
    """Bytes of memory that a process holds; 0 for one that is gone."""
    try:
        return (
            int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
            * resource.getpagesize()
        )
    except (OSError, IndexError):
        return 0


def options_of(command: str) -> list[Any]:
    """The options and arguments of a command, as click holds them."""
    cli = importlib.import_module("karmafunnel.cli").main  # after this in the order of imports
    found = cli.get_command(click.Context(cli), command)
    assert found is not None, command
    return list(found.params)


# -- the server ------------------------------------------------------------


def modules() -> Iterator[str]:
    """Every module of the package that a command may import."""
    package = importlib.import_module("karmafunnel")
    for found in pkgutil.walk_packages(package.__path__, "karmafunnel."):
        if not found.name.startswith(
            (*SKIPPED, "karmafunnel.tests", "karmafunnel.build")
        ) and not found.name.endswith(".__main__"):
            yield found.name


def become(said: dict[str, Any]) -> None:
    """In the child: the process that a shell would have started."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(said["told"] + end, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.chdir(said["folder"])
    os.environ.update(said["env"])
    if said["size"] is not None:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (said["size"], said["size"])
        )  # Python ignores SIGXFSZ: writing fails instead
    sys.argv = ["karmafunnel", *said["argv"]]
    sys.modules["__main__"].__package__ = None  # so that its name is that of the script


def serve() -> dict[str, Any] | None:
    """Fork a child for each line that comes; in the child, returns what it is to do. None at the
    end of the lines."""
    for name in (*MORE, *modules()):
        importlib.import_module(name)
    gc.freeze()

    def tell(**said: Any) -> None:
        print(json.dumps(said), flush=True)

    tell(ready=True)
    while line := sys.stdin.readline():
        said = dict(json.loads(line))
        pid = os.fork()
        if pid == 0:
            become(said)
            return said
        tell(pid=pid)
        _, status = os.waitpid(pid, 0)
        tell(code=os.waitstatus_to_exitcode(status))
    return None


def last_words(entry: str) -> int:
    """Run what was asked for; its exit code. All that ends with a process is done, but for the
    taking apart of a thousand modules."""
    module, _, function = entry.partition(":")
    code = 0
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as the interpreter does
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


if __name__ == "__main__":
    asked = serve()
    if asked is not None:
        os._exit(last_words(asked["entry"]) & 255)
