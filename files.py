"""Files: written atomically to a place that was claimed, read as UTF-8, sealed with digests that
are checked when they are opened.

A writer fills a temporary sibling and moves it into place by one rename, so that at every moment,
and after a crash, either the old or the new version is there. It holds a lock (flock) on what is
unfinished; the next writer in that folder removes temporary files that nobody holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from .errors import KarmafunnelError, NotWrittenError, line_of
from .terminal import visible

try:
    import fcntl
except ImportError:  # Windows: nothing can be locked
    fcntl = None  # type: ignore[assignment]

TEMPORARY = re.compile(r"\.karmafunnel-[0-9a-f]{16}\.(tmp|lock)")
DAY = 86_400.0  # seconds after which what cannot be locked counts as left behind
DIGESTS = "digests.json"
PAGE_MARK = '<meta name="generator" content="karmafunnel">'
TEXT_MARK = "# karmafunnel wrote this; digest of what follows: "
NOTHING_LEFT = "; nothing of it was left"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


# -- saying ----------------------------------------------------------------------------------------


@cache
def say(line: str) -> None:
    """Print a line on standard error, once per process."""
    with contextlib.suppress(OSError):
        print(visible(line), file=sys.stderr, flush=True)


# -- locks -----------------------------------------------------------------------------------------


def hold(path: Path) -> int | None:
    """Lock a file or folder.

    Returns:
        An open file descriptor that holds the lock; None if another process holds it; -1 if this
        file system cannot lock.

    Raises:
        OSError: the path does not exist.
    """
    if fcntl is None:
        return -1
    # network disks lock what is open for writing
    here = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        fcntl.flock(here, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(here)
        return None if isinstance(error, BlockingIOError) else -1  # such as a folder on NFS
    if _is_at(here, path):
        return here
    os.close(here)  # somebody has removed it meanwhile
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        found, there = os.fstat(descriptor), os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (there.st_dev, there.st_ino)


def let_go(descriptor: int | None) -> None:
    if descriptor is not None and descriptor >= 0:
        os.close(descriptor)


_swept: set[tuple[int, Path]] = set()


def sweep(folder: Path, again: bool = True) -> None:
    """Remove the temporary files of dead writers from a folder; with `again` False at most once per
    process.
    """
    if (os.getpid(), folder) in _swept and not again:
        return
    _swept.add((os.getpid(), folder))
    try:
        left = [entry.name for entry in os.scandir(folder) if TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return
    for name in left:
        with contextlib.suppress(OSError):  # gone, or another's
            held = hold(folder / name)
            if held is not None and (held >= 0 or time.time() - _touched(folder / name) > DAY):
                remove(folder / name)
            let_go(held)


def _touched(path: Path) -> float:
    """When anything at or in a path was last written, in seconds since 1970."""
    last = os.stat(path, follow_symlinks=False).st_mtime
    for root, folders, names in os.walk(path):
        for name in (*folders, *names):
            last = max(last, os.stat(os.path.join(root, name), follow_symlinks=False).st_mtime)
    return last


def remove(path: Path) -> None:
    """Remove a file or a folder; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _begin(parent: Path, make: Callable[[Path], Any]) -> tuple[Path, int]:
    """A new temporary sibling that this process holds."""
    while True:
        temporary = parent / f".karmafunnel-{secrets.token_hex(8)}.tmp"
        make(temporary)
        with contextlib.suppress(FileNotFoundError):  # swept before it could be held: once more
            if (held := hold(temporary)) is not None:
                return temporary, held


# -- whole or not at all ---------------------------------------------------------------------------


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step; False where this system cannot."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            # RENAME_SWAP
            answer = libc.renamex_np(os.fsencode(a), os.fsencode(b), ctypes.c_uint(2))
        else:
            here = ctypes.c_int(-100)  # AT_FDCWD
            # RENAME_EXCHANGE
            answer = libc.renameat2(here, os.fsencode(a), here, os.fsencode(b), ctypes.c_uint(2))
    except (AttributeError, OSError, TypeError):
        return False
    code = ctypes.get_errno()
    if answer and code not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        raise OSError(code, os.strerror(code), str(b))
    return not answer


def _old(folder: Path) -> Path:
    """Where an older folder waits while it is replaced on a system that cannot swap two."""
    folder = Path(os.path.realpath(folder))
    return folder.parent / f".karmafunnel-{_name_hash(folder)}.old"


def _name_hash(path: Path) -> str:
    return hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()


def settle(folder: Path) -> None:
    """Finish or undo a replacement that a crash interrupted (systems without an atomic swap)."""
    old = _old(folder)
    if not old.is_dir():
        return
    held = hold(old)
    if held is None:  # another process is replacing it
        return
    try:
        if folder.exists():
            remove(old)
        else:
            old.rename(folder)
    finally:
        let_go(held)


def _put(temporary: Path, folder: Path) -> None:
    """Move a folder into its place and remove the older one."""
    if folder.exists() and any(folder.iterdir()):
        if _exchange(temporary, folder):
            remove(temporary)
            return
        settle(folder)
        held = hold(folder)
        try:
            folder.rename(_old(folder))
            temporary.rename(folder)
        finally:
            let_go(held)
        remove(_old(folder))
        return
    if folder.exists() and os.name == "nt":
        folder.rmdir()
    temporary.rename(folder)


def _sync(path: Path) -> None:
    """Flush a file, or a folder with everything in it, to the disk."""
    for root, _, names in os.walk(path) if path.is_dir() else ():
        for name in names:
            _sync_one(os.path.join(root, name))
        _sync_one(root)
    if not path.is_dir():
        _sync_one(path)


def _sync_one(path: Path | str) -> None:
    if os.name == "nt" and os.path.isdir(path):
        return
    here = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(here)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not know it
            raise
    finally:
        os.close(here)


def why_not_written(error: BaseException) -> str | None:
    """Why the disk refused to write, whichever library reports it, also as the cause of another
    error; None for other errors.
    """
    beneath: BaseException | None = error
    for _ in range(20):
        if beneath is None:
            break
        text, number = str(beneath), getattr(beneath, "errno", None)
        for code in DISK:
            reason = os.strerror(code)
            if number == code or reason in text or f"os error {code})" in text:
                return reason
        context = None if beneath.__suppress_context__ else beneath.__context__
        beneath = beneath.__cause__ or context
    return None


def not_written(error: BaseException) -> bool:
    """Whether an error is the disk's."""
    return isinstance(error, NotWrittenError) or why_not_written(error) is not None


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn an error of the disk inside into a NotWrittenError that names the path; other errors
    pass unchanged.
    """
    try:
        yield
    except KarmafunnelError:
        raise
    except Exception as error:
        reason = why_not_written(error)
        if reason is None and isinstance(error, OSError) and TEMPORARY.search(f"{error.filename}"):
            reason = error.strerror
        if reason is None:
            raise
        raise NotWrittenError(f"{path}: could not be written: {reason}{NOTHING_LEFT}") from error


@contextmanager
def atomic_folder(
    folder: Path | str, *, durable: bool = True, sealed: bool = False, first: bool = False
) -> Iterator[Path]:
    """Write a folder atomically: fill the yielded temporary folder; it is moved into place at the
    end, replacing an older folder in one step.

    Args:
        folder: the final place.
        durable: flush everything to the disk first.
        sealed: add the digests of all files in it.
        first: keep an existing intact folder, where several processes write the same content.

    Raises:
        KarmafunnelError: naming the folder, if it is a file or the disk is full.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise KarmafunnelError(folder, needs="to be a folder", found="a file")
    durable &= not in_temporary(folder)
    temporary, held = _begun(folder, Path.mkdir, durable)
    try:
        with _told(folder):
            yield temporary
            if sealed:
                seal(temporary)
            if durable:
                _sync(temporary)
            if not (first and folder.is_dir() and fault(folder) is None):
                _put(temporary, folder)
                if durable:
                    _sync_one(folder.parent)
    finally:
        remove(temporary)
        let_go(held)


@contextmanager
def atomic_file(path: Path | str, *, durable: bool = True) -> Iterator[Path]:
    """Write a file atomically: write to the yielded temporary path; it is moved into place at the
    end. `durable`: flush it to the disk first.

    Raises:
        KarmafunnelError: naming the file, if the disk is full or a device, a pipe or a folder is
            in its place.
    """
    path = Path(os.path.realpath(path))
    if in_temporary(path):  # the folder around it is written atomically
        yield path
        return
    if os.path.exists(path) and not os.path.isfile(path):  # a move would replace a device
        found = "a folder" if os.path.isdir(path) else "a device or pipe"
        raise NotWrittenError(path, needs="the name of a file", found=found)
    temporary, held = _begun(path, Path.touch, durable)
    try:
        with _told(path):
            yield temporary
            if durable:
                _sync(temporary)
            temporary.replace(path)
            if durable:
                _sync_one(path.parent)
    finally:
        remove(temporary)
        let_go(held)


def in_temporary(path: Path) -> bool:
    """Whether a path lies in an unfinished folder, where single files need not be atomic."""
    return any(TEMPORARY.fullmatch(part) for part in path.parts)


def _begun(path: Path, make: Callable[[Path], Any], durable: bool) -> tuple[Path, int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            sweep(path.parent, again=False)
            settle(path)
        return _begin(path.parent, make)
    except OSError as error:
        raise NotWrittenError(
            path, needs="a folder that can be written", found=f"{error.strerror or error}"
        ) from error


def write_bytes(path: Path | str, content: bytes, *, durable: bool = True) -> Path:
    """Write a file atomically; return its path."""
    with atomic_file(path, durable=durable) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_text(path: Path | str, text: str, *, durable: bool = True) -> Path:
    """Write a text as UTF-8 atomically, line ends unchanged; return its path."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"), durable=durable)


def write_parquet(path: Path | str, frame: pl.DataFrame, **options: Any) -> Path:
    """Write a Parquet file atomically; return its path. `options`: those of
    `polars.DataFrame.write_parquet`.

    The bytes are made in memory, because polars does not report a full disk clearly.
    """
    made = io.BytesIO()
    frame.write_parquet(made, **options)
    return write_bytes(path, made.getvalue())


def write_json(path: Path | str, value: Any, *, durable: bool = True) -> Path:
    """Write JSON atomically, keys sorted: equal content gives equal bytes; return its path."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str)
    return write_text(path, text + "\n", durable=durable)


# -- reading ---------------------------------------------------------------------------------------


def read_text(path: Path | str, needed: str = "a text file") -> str:
    """Read a UTF-8 text, with or without a byte order mark.

    Raises:
        KarmafunnelError: naming the file, if it is missing or is not `needed`.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise KarmafunnelError(
            path,
            needs=f"{needed} in UTF-8",
            found=f"byte {error.start} to be {error.object[error.start]:#04x}",
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise KarmafunnelError(
            path, needs=needed, found=f"{getattr(error, 'strerror', None) or error}"
        ) from error


def read_json(path: Path | str) -> Any:
    """Read a JSON file; raises KarmafunnelError naming the file."""
    text = read_text(path, "JSON")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KarmafunnelError(path, needs="JSON", found=error) from error


def open_table(path: Path | str, **options: Any) -> pl.LazyFrame:
    """Scan one Parquet file lazily. `options`: those of `polars.scan_parquet`.

    The path is taken literally: polars itself would read "run[12]" as a pattern and "a=b" as a
    column, so everything opens Parquet through this function.

    Raises:
        KarmafunnelError: naming the file that cannot be read.
    """
    try:
        if not Path(path).is_file():
            raise KarmafunnelError(path, needs="a Parquet table", found="no such file")
        frame = pl.scan_parquet(
            os.path.abspath(path), glob=False, hive_partitioning=False, **options
        )
        frame.collect_schema()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        if isinstance(error, KarmafunnelError):
            raise
        raise KarmafunnelError(
            path, needs="a readable Parquet table (cut short?)", found=f"{first_line(error)}"
        ) from error
    return frame


def read_table(path: Path | str, *columns: str | pl.Expr) -> pl.DataFrame:
    """Read one Parquet file, or some columns of it; raises KarmafunnelError naming the file that
    cannot be read.
    """
    frame = open_table(path)
    try:
        return (frame.select(*columns) if columns else frame).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise KarmafunnelError(
            path, needs="a readable Parquet table", found=f"{first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# -- digests ---------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """BLAKE2b of a file's bytes (128 bits, hex), cached per process until the file changes."""
    found = os.stat(path)
    return _digest(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest(path: Path, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _inside(folder: Path) -> dict[str, Path]:
    """Every file in a folder, by its relative path."""
    found = sorted(Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return {path.relative_to(folder).as_posix(): path for path in found}


def seal(folder: Path, *names: str) -> None:
    """Write the digests of all files in a folder (or of those named) into it."""
    files = [name for name in names or _inside(folder) if name != DIGESTS]
    write_json(folder / DIGESTS, {name: digest(folder / name) for name in files})


def sealed(folder: Path) -> dict[str, str] | None:
    """Digests by file name; None for a folder without digests. Raises KarmafunnelError if they
    cannot be read.
    """
    if not (folder / DIGESTS).is_file():
        return None
    found = read_json(folder / DIGESTS)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise KarmafunnelError(
            folder / DIGESTS, needs="one digest per file", found="something else"
        )
    return found


def fault(folder: Path, *names: str) -> str | None:
    """What is wrong with a sealed folder (or with the files named), in a line that names the file;
    None if it is intact.
    """
    try:
        told = sealed(folder)
        if told is None:
            return f"{folder / DIGESTS}: missing"
        for name in names or told:
            path = folder / name
            if not path.is_file():
                return f"{path}: missing"
            if name in told and digest(path) != told[name]:
                return f"{path}: other bytes than were written"
    except (KarmafunnelError, OSError) as error:
        return line_of(error)
    return None


def check(
    folder: Path,
    *names: str,
    help: str = "needs the file as it was written: make it again, or take it from a copy",
) -> None:
    """Refuse a sealed folder if one of its files (or of those named) is missing or was changed.

    A folder without digests passes, with a line on standard error. `help`: what can be done.

    Raises:
        KarmafunnelError: naming the file.
    """
    if in_temporary(folder):
        return
    if not (folder / DIGESTS).is_file():
        say(f"{folder}: made before files had digests, so damage to it would not be noticed")
    elif (wrong := fault(folder, *names)) is not None:
        raise KarmafunnelError(wrong, hint=help)


def intact(folder: Path | None) -> bool:
    """Whether a reproducible result exists undamaged; damage is reported on standard error."""
    if folder is None or not folder.is_dir():
        return False
    if (wrong := fault(folder)) is not None:
        say(f"{wrong}; it is made again")
    return wrong is None


# -- claims ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What a command writes. A folder is recognised as ours by the file `marker` in it, a file by
    the text `mark` near its beginning.

    `parts`: names that such a folder may hold beside its sealed files. `shared`: files are written
    into the folder one by one and other files stay; such a folder is also ours if it holds nothing
    but `parts`.
    """

    name: str
    marker: str = ""
    parts: tuple[str, ...] = ()
    mark: str = ""
    shared: bool = False

    def __str__(self) -> str:
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


RUN = Kind("Run", "run.json")
RUN_AND_PATHS = Kind("Run", "run.json", ("paths",))
LOG = Kind(
    "log",
    "log.json",
    (
        "items.parquet",
        "requests.parquet",
        "exposures.parquet",
        "truth",
        "images",
        "import.toml",
        "rejected.parquet",
    ),
)
SIMULATION = Kind("simulation", "simulation.json")
EMBEDDING = Kind("embedding", "embedding.json")
PLAN = Kind("plan", "plan.json", ("services.toml", "what_if.csv", "load.html"))
TABLE = Kind(
    "table",
    "table.json",
    (
        "cells",
        "attribution.md",
        "attribution.html",
        "attribution.png",
        "attention.html",
        "attention.png",
        *(f"table.{kind}" for kind in ("json", "md", "csv", "html", "tex")),
    ),
    shared=True,
)
SEARCH = Kind(
    "search",
    "tune.json",
    ("trials", "probes", "best.py", "front.md", "tune.html", "trials.csv"),
    shared=True,
)
EXPERIMENT = Kind(
    "experiment", "experiment.json", ("users.parquet", "items.parquet", "experiment.html")
)
PAGE = Kind("page", mark=PAGE_MARK)
SERVICES = Kind("services file", mark=TEXT_MARK)
FOLDERS = (RUN_AND_PATHS, LOG, SIMULATION, EMBEDDING, PLAN)


@dataclass(frozen=True)
class _Claimed:
    who: str
    kind: Kind
    force: bool


# the default is never changed in place
_claims: ContextVar[Mapping[Path, _Claimed]] = ContextVar("claims", default={})  # noqa: B039


@contextmanager
def claim(
    place: Path | str,
    who: str,
    kind: Kind,
    *,
    wants: Mapping[str, Any] | None = None,
    inputs: Iterable[Path | str | None] = (),
    force: bool = False,
) -> Iterator[Path]:
    """Check before any work that `who` may write to `place`, and lock it against other processes.

    Nested claims of the same place only check `wants`.

    Args:
        place: the file or folder to write.
        who: the command, for messages.
        kind: what will be written.
        wants: values that an existing marker file must agree with, by dotted key.
        inputs: what the command reads; `place` must not be or contain one of them.
        force: also replace our own results that differ in kind, in `wants`, or were edited.

    Yields:
        The resolved path.

    Raises:
        KarmafunnelError: `place` cannot be written, is an input, is being written by another
            process, or holds something that must not be replaced. Files that karmafunnel did not
            write are never replaced, whatever `force` says.
    """
    place = Path(place)
    at = Path(os.path.realpath(place))
    if in_temporary(at):  # the folder around it was claimed
        yield at
        return
    held = _claims.get()
    if any(parent in held and held[parent].kind.shared for parent in at.parents) and kind.mark:
        yield at  # a file of a folder that was claimed
        return
    if (mine := held.get(at)) is not None:
        _same(place, mine.who, mine.kind, wants or {}, force or mine.force)
        yield at
        return
    for given in inputs:
        if given is not None and Path(os.path.realpath(given)).is_relative_to(at):
            needs = f"to be another place than its own input {given}"
            raise KarmafunnelError(who, what=place, needs=needs, hint="nothing was written")
    if place.is_symlink() and not place.exists():
        raise KarmafunnelError(
            who,
            what=place,
            needs="to be a place to write",
            found=f"a link to {os.readlink(place)}, which is not there",
        )
    home = at if kind.shared and at.is_dir() and not os.access(at.parent, os.W_OK) else at.parent
    made = _make(home, place, who)
    try:
        with _locked(home, at, place, who):
            settle(at)
            _free(place, at, who, kind, force)
            _same(place, who, kind, wants or {}, force)
            token = _claims.set({**held, at: _Claimed(who, kind, force)})
            try:
                yield at
            finally:
                _claims.reset(token)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it is in use
                folder.rmdir()


def _make(home: Path, place: Path, who: str) -> list[Path]:
    """Create a folder and its parents; return those that were missing, innermost first."""
    try:
        missing = [folder for folder in (home, *home.parents) if not os.path.lexists(folder)]
        home.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise KarmafunnelError(who, what=place, needs="a folder to lie in", found=error) from error
    return missing


@contextmanager
def _locked(home: Path, at: Path, place: Path, who: str) -> Iterator[None]:
    """Hold a lock on a place against every process that shares its disk.

    The lock file lies in the folder `home`.
    """
    sweep(home)
    path, held = home / f".karmafunnel-{_name_hash(at)}.lock", None
    try:
        for attempt in range(20):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
            with contextlib.suppress(FileNotFoundError):  # its writer has just removed it
                if (held := hold(path)) is not None:
                    break
            if attempt > 4 and (says := path.read_bytes() if path.exists() else b""):
                raise _busy(who, place, says.decode("utf-8", "replace"))
            time.sleep(0.02)
        if held is None:
            raise _busy(who, place, "another process")
        if held >= 0:
            with contextlib.suppress(OSError):  # a full disk is told by what is written
                path.write_text(
                    f"{who} (process {os.getpid()} on {socket.gethostname()})", encoding="utf-8"
                )
    except OSError as error:
        raise KarmafunnelError(
            who,
            what=place,
            needs="a folder that can be written",
            found=f"{error.strerror or error}",
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        let_go(held)


def _busy(who: str, place: Path, writer: str) -> KarmafunnelError:
    line = f"{who}: {place} is being written by {writer}"
    return KarmafunnelError(line, hint="wait for it, or name another place")


def _free(place: Path, at: Path, who: str, kind: Kind, force: bool) -> None:
    """Raises KarmafunnelError where a place holds what must not be replaced."""
    if not at.exists():
        return

    def refusal(found: str, *, hint: str = "nothing was written", alone: str = "") -> Exception:
        form = "file" if kind.mark else "folder"
        needs = f"to be a new {form} or an older {kind.name}{alone}"
        return KarmafunnelError(who, what=place, needs=needs, found=found, hint=hint)

    if kind.mark:
        if at.is_dir():
            raise refusal("a folder")
        if not stat.S_ISREG(at.stat().st_mode):  # reading a pipe would wait for a writer
            raise refusal("another kind of file")
        found = _beginning(at)
        if found and kind.mark not in found:
            raise refusal("another kind of file")
        if kind.mark == TEXT_MARK and not force and found and edited(at):
            raise _edited(who, place)
        return
    if not at.is_dir():
        raise refusal("a file")
    if not os.access(at, os.W_OK | os.X_OK):
        raise refusal("one that cannot be written")
    names = sorted(
        name for name in os.listdir(at) if not TEMPORARY.fullmatch(name) and name != DIGESTS
    )
    if not names:
        return
    ours = kind.marker in names or (kind.shared and set(names) <= set(kind.parts))
    there = kind if ours else next((one for one in FOLDERS if one.marker in names), None)
    if there is None or (kind.shared and not ours):
        raise refusal(f"something else ({_first_names(names)})")
    if kind.shared:
        _check_texts(
            place, at, who, [] if force else [name for name in names if name in kind.parts]
        )
        return
    more = _not_ours(at, names, there)
    if more:
        hint = "move that away, nothing was written"
        extra = f"{_first_names(more)} in it as well, which karmafunnel did not write"
        raise refusal(extra, alone=" alone", hint=hint)
    if force:
        return
    if not ours:
        raise refusal(f"{there}", hint="--force replaces it")
    if "paths" in names and "paths" not in kind.parts:
        hint = "--force replaces all of it"
        raise refusal("paths in it as well", alone=" alone", hint=hint)
    _check_texts(place, at, who, names)


def _check_texts(place: Path, at: Path, who: str, names: Sequence[str]) -> None:
    """Raises KarmafunnelError where a text that karmafunnel wrote for people was edited."""
    for name in names:
        if name.endswith((".toml", ".py")) and edited(at / name):
            raise _edited(who, place / name)


def _not_ours(at: Path, names: Sequence[str], kind: Kind) -> list[str]:
    """Names in a folder of this kind that were not written with it."""
    try:
        written = {name.split("/")[0] for name in sealed(at) or ()}
    except KarmafunnelError:
        written = set()
    parts: set[str] = set()
    for one in FOLDERS:
        if one.marker == kind.marker:
            parts.update(one.parts)
    if not written and not parts - {"paths"}:
        return []
    return [name for name in names if name not in written | parts | {kind.marker}]


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _edited(who: str, place: Path) -> KarmafunnelError:
    line = f"{who}: {place} was edited by hand since it was written"
    return KarmafunnelError(line, hint="--force replaces it")


def _same(place: Path, who: str, kind: Kind, wants: Mapping[str, Any], force: bool) -> None:
    """Raises KarmafunnelError if the marker of an existing result differs from `wants`."""
    if force or not wants or not (place / kind.marker).is_file():
        return
    try:
        found = read_json(place / kind.marker)
    except KarmafunnelError:  # damaged: nothing is lost
        return
    for key, wanted in wants.items():
        there: Any = found
        for part in key.split("."):
            there = there.get(part, wanted) if isinstance(there, dict) else wanted
        if there != json.loads(json.dumps(wanted, default=str)):
            what = key.replace(".", " ")
            old, new = _apart(str(there), str(wanted))
            raise KarmafunnelError(
                f"{who}: {place} holds {kind} with {what} {old}",
                hint=f"to replace it by one with {what} {new}, use --force",
            )


def _apart(a: str, b: str) -> list[str]:
    """Two texts for one line: of long texts only the words in which they differ and the two words
    before them.
    """
    a, b = " ".join(a.split()), " ".join(b.split())
    if max(len(a), len(b)) <= 80:
        return [a, b]
    words = [re.findall(r"[^\s,(\[]*[\s,(\[]*", text) for text in (a, b)]
    start = _common(*words)
    end = _common(*(text[start:][::-1] for text in words))
    start = max(start - 2, 0)
    shown = []
    for text in words:
        cut = "".join(text[start : len(text) - end]).strip(" ,")
        if len(cut) > 80:
            cut = f"{cut[:77]}..."
        elif end:
            cut += "..."
        shown.append(f"...{cut}" if start else cut)
    return shown


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the common prefix of two lists."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _beginning(path: Path) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(65536).decode("utf-8", "replace")
    return ""


# -- texts that people edit ------------------------------------------------------------------------


def marked(text: str) -> str:
    """A text with a first line that holds its digest, by which `edited` recognises changes."""
    return f"{TEXT_MARK}{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}\n{text}"


def edited(path: Path) -> bool:
    """Whether a file made by `marked` was changed since; True for a file made by something else."""
    try:
        first, _, rest = read_text(path).partition("\n")
    except KarmafunnelError:
        return True
    return first.rstrip() != marked(rest.replace("\r\n", "\n")).partition("\n")[0]
