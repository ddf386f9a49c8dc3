"""Download the files of a source: interrupted downloads go on where they were, sizes and checksums
are checked, archives are unpacked.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tarfile import TarError, TarFile, is_tarfile
from typing import IO, Any

from ...errors import KarmafunnelError, NotWrittenError
from ...files import atomic_file, hold, let_go, remove, why_not_written, write_text
from ._source import File, describe

TRIES = 5  # in a row that came no further
WAIT = 0.5  # seconds before the second try, twice as many before each further one
PATIENCE = 60.0  # seconds without a byte after which a connection counts as broken
BLOCK = 1 << 20
AGENT = "karmafunnel (https://pypi.org/project/karmafunnel)"

Progress = Callable[[str, int, int | None], None]


def download(
    source: str,
    folder: Path | str,
    *,
    variant: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda name, done, total: None,
) -> None:
    """Bring the files of a source into a folder, which may hold some of them already.

    Args:
        source: its name.
        variant: which edition; default: the first of its description.
        tell: called with a line for each file.
        progress: called with a file's name, the bytes so far, and all of them or None.

    Raises:
        KarmafunnelError: for an unknown source or variant, a server that does not answer, a file
            with other bytes than described, a full disk, and, once everything else is there, for
            files that can only be fetched by hand.
    """
    about, folder = describe(source), Path(folder)
    files = about.files_of(variant)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KarmafunnelError(folder, needs="to be a folder to write to", found=error) from error
    by_hand: list[File] = []
    for file in files:
        archive = folder / file.name
        if all(present(folder / name) for name in file.result):
            if not file.members and archive.is_file():
                check(archive, file)
            tell(f"{', '.join(file.result)}: is there")
        elif archive.is_file():  # put there by hand
            check(archive, file)
            unpack(archive, file.members, folder)
            tell(f"{', '.join(file.result)}: taken out of {file.name}")
        elif file.url:
            fetch(file, archive, about.home, progress)
            size = f"{archive.stat().st_size / 1e6:,.1f} MB"
            if file.members:
                unpack(archive, file.members, folder)
                remove(archive)
            tell(f"{', '.join(file.result)}: downloaded, {size}")
        elif file.optional:
            tell(f"{file.name}: not there, which is no error; to have it: {file.how}")
        else:
            by_hand.append(file)
    if by_hand:
        inside = [name for file in by_hand if file.members for name in file.result]
        taken = f" (or what is in it: {', '.join(inside)})" if inside else ""
        raise KarmafunnelError(
            folder,
            needs=", ".join(file.name for file in by_hand) + ", to be fetched by hand",
            found=", ".join(sorted(path.name for path in folder.iterdir())) or "nothing",
            hint="; ".join(dict.fromkeys(file.how for file in by_hand))
            + f"; put it into {folder}{taken} and run this again",
        )


def present(path: Path) -> bool:
    """Whether a file is there, plain or gzipped."""
    return path.is_file() or path.with_name(f"{path.name}.gz").is_file()


# -- one file --------------------------------------------------------------------------------------


def fetch(file: File, path: Path, home: str, progress: Progress) -> None:
    """Download a file to `path`. What an interrupted download left in `NAME.part` is used, where
    the server can go on and has not changed the file.
    """
    part = path.with_name(f"{path.name}.part")
    with held(part):
        idle, most = 0, part.stat().st_size
        while True:
            try:
                receive(file, part, progress)
                break
            except (OSError, http.client.HTTPException) as error:
                give_up(error, file, part, home)
                idle = 0 if part.stat().st_size > most else idle + 1
                most = max(most, part.stat().st_size)
                if idle >= TRIES:
                    raise KarmafunnelError(
                        file.url,
                        needs="a connection that holds",
                        found=f"{type(error).__name__}: {error}",
                        hint=f"run it again: it goes on at {part.stat().st_size:,} bytes",
                    ) from error
                time.sleep(WAIT * 2**idle if idle else 0)
        try:
            check(part, file)
        except KarmafunnelError:
            remove(part)
            raise
        with open(part, "rb+") as whole:
            os.fsync(whole.fileno())
        part.replace(path)
        remove(tag_of(part))


def tag_of(part: Path) -> Path:
    """The file with the server's name for this state of the file: its ETag or date."""
    return part.with_name(f"{part.name}.tag")


@contextmanager
def held(part: Path) -> Iterator[None]:
    """Lock a partial file; raises KarmafunnelError where another process is downloading it."""
    try:
        part.touch()
        lock = hold(part)
    except OSError as error:
        reason = error.strerror or str(error)
        raise NotWrittenError(part, needs="to be writable", found=reason) from error
    if lock is None:
        raise KarmafunnelError(part, needs="no other download", found="a process that writes it")
    try:
        yield
    finally:
        if part.is_file() and part.stat().st_size == 0:
            remove(part)
        let_go(lock)


def receive(file: File, part: Path, progress: Progress) -> None:
    """Read the rest of a file from its server.

    Raises:
        OSError, http.client.HTTPException: the connection broke, or the disk is full.
        KarmafunnelError: the answer is another file.
    """
    have = part.stat().st_size
    tag = tag_of(part).read_text(encoding="utf-8") if tag_of(part).is_file() else ""
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if have and (tag or file.checksum):
        headers["Range"] = f"bytes={have}-"
        if tag:
            headers["If-Range"] = tag
    request = urllib.request.Request(file.url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if length_in(error.headers.get("Content-Range")) == have:
            return
        os.truncate(part, 0)  # it has more bytes than the file at the server
        raise ConnectionError(f"the server has no byte {have:,}") from error
    with answer:
        goes_on = answer.status == 206
        if goes_on and start_in(answer.headers.get("Content-Range")) != have:
            os.truncate(part, 0)
            raise ConnectionError("the server went on at another byte")
        have = have if goes_on else 0
        told = answer.headers.get("Content-Length")
        total = have + int(told) if told else None
        expect(file, answer.headers.get_content_type(), total)
        room(part, file, have, total)
        strong = answer.headers.get("ETag", "W/")
        tag = answer.headers.get("Last-Modified", "") if strong.startswith("W/") else strong
        write_text(tag_of(part), tag)
        if not goes_on:
            os.truncate(part, 0)
        with open(part, "ab") as out:
            progress(file.name, have, total)
            while block := answer.read(BLOCK):
                out.write(block)
                have += len(block)
                progress(file.name, have, total)
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended at {have:,} of {total:,} bytes")


def start_in(content_range: str | None) -> int | None:
    """The first byte that a `Content-Range` names."""
    found = re.match(r"bytes (\d+)-", content_range or "")
    return int(found[1]) if found else None


def length_in(content_range: str | None) -> int | None:
    """The size of the whole file that a `Content-Range` names."""
    found = re.search(r"/(\d+)$", content_range or "")
    return int(found[1]) if found else None


def expect(file: File, content_type: str, total: int | None) -> None:
    """Raises KarmafunnelError where a server offers a web page or a file of another size."""
    if content_type == "text/html" and not file.name.endswith(".html"):
        raise KarmafunnelError(
            file.url, needs="a file", found="a web page, such as a login or a notice"
        )
    if file.bytes and total is not None and total != file.bytes:
        raise KarmafunnelError(
            file.url,
            needs=f"{file.bytes:,} bytes",
            found=f"{total:,}: the publisher may have replaced the file",
        )


def room(part: Path, file: File, have: int, total: int | None) -> None:
    """Raises NotWrittenError where the disk has no room for the rest of a file."""
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - have > free:
        raise NotWrittenError(
            part.parent, needs=f"{total - have:,} bytes for {file.name}", found=f"{free:,} free"
        )


def give_up(error: Exception, file: File, part: Path, home: str) -> None:
    """Raises KarmafunnelError for an error that another try would not mend."""
    if (reason := why_not_written(error)) is not None:
        raise NotWrittenError(
            f"{part}: could not be written: {reason}; what is there is kept, run it again when "
            "there is room"
        ) from error
    if (
        isinstance(error, urllib.error.HTTPError)
        and error.code < 500
        and error.code not in (408, 429)
    ):
        raise KarmafunnelError(
            file.url,
            needs="to be there",
            found=f"HTTP {error.code} {error.reason}",
            hint=f"look for {file.name} at {home}",
        ) from error


def check(path: Path, file: File) -> None:
    """Raises KarmafunnelError where a file has another size or checksum than described."""
    size = path.stat().st_size
    hint = "delete it and download again; the publisher may also have replaced it"
    if file.bytes and size != file.bytes:
        raise KarmafunnelError(path, needs=f"{file.bytes:,} bytes", found=f"{size:,}", hint=hint)
    if file.checksum:
        kind, _, wanted = file.checksum.partition(":")
        with open(path, "rb") as opened:
            found = hashlib.file_digest(opened, kind).hexdigest()
        if found != wanted:
            raise KarmafunnelError(path, needs=f"{kind} {wanted}", found=found, hint=hint)


# -- archives --------------------------------------------------------------------------------------


def unpack(archive: Path, members: tuple[str, ...], folder: Path) -> None:
    """Take files out of a zip or tar archive into a folder, without the archive's folders; an
    archive inside it is looked through, too.

    Raises:
        KarmafunnelError: the archive is damaged or lacks a file, or the disk is full.
    """
    try:
        taken = take(archive, members, folder)
    except (zipfile.BadZipFile, TarError, zlib.error, EOFError) as error:
        raise KarmafunnelError(archive, needs="a whole archive", found=error) from error
    if missing := [name for name in members if name not in taken]:
        raise KarmafunnelError(archive, needs=", ".join(missing), found="an archive without it")


def take(archive: Path | IO[bytes], members: tuple[str, ...], folder: Path) -> set[str]:
    """The members that were found and written."""
    taken = set()
    with opened(archive) as (names, read):
        for member in members:
            last = member.rsplit("/", 1)[-1]
            same = [n for n in names if n == member] or [
                n for n in names if n.rsplit("/", 1)[-1] == last
            ]
            if same:
                with (
                    read(same[0]) as source,
                    atomic_file(folder / last) as to,
                    open(to, "wb") as out,
                ):
                    shutil.copyfileobj(source, out, BLOCK)
                taken.add(member)
        for name in names:
            left = tuple(member for member in members if member not in taken)
            if left and name.lower().endswith(".zip"):
                with read(name) as inner:
                    taken |= take(inner, left, folder)
    return taken


@contextmanager
def opened(archive: Path | IO[bytes]) -> Iterator[tuple[list[str], Callable[[str], IO[bytes]]]]:
    """The names in a zip or tar archive, and what opens one of them."""
    if isinstance(archive, Path) and is_tarfile(archive):
        with TarFile.open(archive) as tar:

            def read(name: str) -> IO[bytes]:
                found: Any = tar.extractfile(name)
                return found

            yield [member.name for member in tar if member.isfile()], read
        return
    with zipfile.ZipFile(archive) as pack:
        yield pack.namelist(), pack.open
