"""Downloads from a server that breaks off, lies, or knows no ranges, and onto a full disk."""

import hashlib
import io
import json
import re
import resource
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError, NotWrittenError
from karmafunnel.files import hold, let_go
from karmafunnel.simulator import datasets
from karmafunnel.simulator.datasets import _download, _source, download
from karmafunnel.simulator.datasets._source import File, Source

CONTENT = np.random.default_rng(0).bytes(3 << 20)
SHA = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Shelf(ThreadingHTTPServer):
    """A server of one content, with its misbehaviour as attributes; `asked` are the requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.ranges, self.tag, self.cut = CONTENT, True, '"one"', [10**9]
        self.kind, self.status, self.lengths, self.shift = "application/octet-stream", 200, True, 0
        self.asked: list[tuple[str | None, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


class Answer(BaseHTTPRequestHandler):
    server: Shelf

    def do_GET(self):
        shelf = self.server
        wanted = self.headers.get("Range")
        shelf.asked.append((wanted, self.headers.get("If-Range")))
        if shelf.status >= 400:
            return self.send_error(shelf.status)
        start = 0
        same = self.headers.get("If-Range") in (None, shelf.tag)
        if wanted and shelf.ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) + shelf.shift
            if start >= len(shelf.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(shelf.content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            last = len(shelf.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", shelf.kind)
        if shelf.lengths:
            self.send_header("Content-Length", str(len(shelf.content) - start))
        if shelf.tag:
            self.send_header("ETag", shelf.tag)
        self.end_headers()
        most = shelf.cut.pop(0) if len(shelf.cut) > 1 else shelf.cut[0]
        self.wfile.write(shelf.content[start : start + most])

    def log_message(self, *_):
        pass


@pytest.fixture
def shelf(monkeypatch):
    monkeypatch.setattr(_download, "WAIT", 0.0)
    with Shelf() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def source(shelf, monkeypatch):
    """A description of the one file on the shelf; call it to change the file."""

    def describe(*files: File, **changed) -> Source:
        one = File("data.bin", url=shelf.url, checksum=SHA, bytes=len(CONTENT))
        about = Source(
            "made", "a made source", "About.", "Requests.", ("text",), ("users",), "CC BY 4.0",
            "https://example.org/made", files or (replace(one, **changed),),
        )  # fmt: skip
        monkeypatch.setattr(_download, "describe", lambda name: about)
        monkeypatch.setattr(datasets, "describe", lambda name: about)
        return about

    describe()
    return describe


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_file_with_its_progress(source, shelf, tmp_path):
    seen, told = [], []
    download("made", tmp_path / "raw", tell=told.append, progress=lambda *now: seen.append(now))
    assert (tmp_path / "raw" / "data.bin").read_bytes() == CONTENT
    assert names(tmp_path / "raw") == ["data.bin"]
    assert told == ["data.bin: downloaded, 3.1 MB"]
    assert seen[0] == ("data.bin", 0, len(CONTENT)) and seen[-1] == ("data.bin", *[len(CONTENT)] * 2)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    download("made", tmp_path / "raw", tell=told.append)
    assert told[1:] == ["data.bin: is there"] and len(shelf.asked) == 1


def test_interruptions_go_on_where_they_were(source, shelf, tmp_path):
    shelf.cut = [1_000_000, 1, 1_500_000, 10**9]
    download("made", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and names(tmp_path) == ["data.bin"]
    starts = [None, "bytes=1000000-", "bytes=1000001-", "bytes=2500001-"]
    assert shelf.asked == [(None, None), *((start, '"one"') for start in starts[1:])]


def test_a_second_run_goes_on_and_a_broken_line_is_told(source, shelf, tmp_path):
    shelf.cut = [1_000_000, 0]
    with pytest.raises(KarmafunnelError, match=r"connection that holds.*goes on at 1,000,000 bytes"):
        download("made", tmp_path)
    assert len(shelf.asked) == 1 + _download.TRIES
    assert names(tmp_path) == ["data.bin.part", "data.bin.part.tag"]
    shelf.cut, shelf.asked = [10**9], []
    download("made", tmp_path)
    assert shelf.asked == [("bytes=1000000-", '"one"')]
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and names(tmp_path) == ["data.bin"]


def test_a_file_that_changed_meanwhile_starts_anew(source, shelf, tmp_path):
    source(checksum="", bytes=0)
    shelf.cut = [1_000_000, 0]
    with pytest.raises(KarmafunnelError, match="connection that holds"):
        download("made", tmp_path)
    shelf.cut, shelf.tag, shelf.content = [10**9], '"two"', CONTENT[::-1]
    download("made", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("checksum", ["", SHA])
def test_a_server_without_ranges_starts_anew_and_ends(checksum, source, shelf, tmp_path):
    source(checksum=checksum)
    shelf.ranges, shelf.tag, shelf.cut = False, "", [1_000_000, 2_000_000, 10**9]
    download("made", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    shelf.cut, shelf.asked = [1_000_000], []  # always as far: no endless tries
    (tmp_path / "data.bin").unlink()
    with pytest.raises(KarmafunnelError, match="connection that holds"):
        download("made", tmp_path)
    assert len(shelf.asked) <= 1 + _download.TRIES


def test_without_a_tag_or_checksum_parts_are_never_mixed(source, shelf, tmp_path):
    source(checksum="", bytes=0)
    (tmp_path / "data.bin.part").write_bytes(b"of another file")
    shelf.tag = ""
    download("made", tmp_path)
    assert shelf.asked == [(None, None)] and (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_part_that_is_whole_or_too_long(source, shelf, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    download("made", tmp_path)  # 416, with the whole size
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and len(shelf.asked) == 1
    (tmp_path / "data.bin").unlink()
    (tmp_path / "data.bin.part").write_bytes(CONTENT + b"more")
    download("made", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and names(tmp_path) == ["data.bin"]


def test_a_server_that_goes_on_elsewhere(source, shelf, tmp_path):
    shelf.shift = 5
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    download("made", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_wrong_checksum_leaves_nothing(source, shelf, tmp_path):
    source(checksum="md5:" + "0" * 32)
    with pytest.raises(KarmafunnelError, match=rf"md5 0{{32}}, found {hashlib.md5(CONTENT).hexdigest()}"):
        download("made", tmp_path)
    assert "data.bin" not in names(tmp_path) and "data.bin.part" not in names(tmp_path)
    (tmp_path / "data.bin").write_bytes(CONTENT)
    with pytest.raises(KarmafunnelError, match="delete it"):
        download("made", tmp_path)


def test_another_size_is_refused_before_it_is_read(source, shelf, tmp_path):
    source(bytes=7)
    seen = []
    with pytest.raises(KarmafunnelError, match=r"needs 7 bytes, found 3,145,728.*replaced"):
        download("made", tmp_path, progress=lambda *now: seen.append(now))
    assert not seen and names(tmp_path) == []


def test_no_length_and_a_cut_is_found_by_the_checksum(source, shelf, tmp_path):
    source(bytes=0)
    shelf.lengths, shelf.cut = False, [1_000_000]
    with pytest.raises(KarmafunnelError, match="needs sha256"):
        download("made", tmp_path)
    assert "data.bin" not in names(tmp_path)


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_file_that_is_gone_is_not_tried_again(code, source, shelf, tmp_path):
    shelf.status = code
    with pytest.raises(KarmafunnelError, match=rf"HTTP {code}.*https://example\.org/made"):
        download("made", tmp_path)
    assert len(shelf.asked) == 1 and names(tmp_path) == []


def test_a_busy_server_is_tried_again(source, shelf, tmp_path):
    shelf.status = 503
    with pytest.raises(KarmafunnelError, match="503"):
        download("made", tmp_path)
    assert len(shelf.asked) == _download.TRIES


def test_a_web_page_in_place_of_a_file(source, shelf, tmp_path):
    shelf.kind = "text/html; charset=utf-8"
    with pytest.raises(KarmafunnelError, match="a web page, such as a login"):
        download("made", tmp_path)
    assert names(tmp_path) == []


def test_a_disk_without_room_is_told_before_and_while_writing(source, shelf, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
        with pytest.raises(NotWrittenError, match=r"3,145,728 bytes for data\.bin, found 1 free"):
            download("made", tmp_path)
    assert names(tmp_path) == []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        with pytest.raises(NotWrittenError, match="kept, run it again when there is room"):
            download("made", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < (tmp_path / "data.bin.part").stat().st_size <= 2_000_000
    shelf.asked = []
    download("made", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert shelf.asked[0][0] is not None  # it went on


def test_two_downloads_of_one_file(source, shelf, tmp_path):
    part = tmp_path / "data.bin.part"
    part.touch()
    lock = hold(part)
    try:
        with pytest.raises(KarmafunnelError, match="a process that writes it"):
            download("made", tmp_path)
    finally:
        let_go(lock)
    assert shelf.asked == []


# -- archives and files fetched by hand ------------------------------------------------------------


def zipped(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, content in files.items():
            pack.writestr(name, content)
    return made.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as pack:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            pack.addfile(about, io.BytesIO(content))
    return made.getvalue()


INSIDE = {"set/a.csv": b"a,b\n1,2\n", "set/b.csv": b"c\n3\n", "../evil.csv": b"x"}


@pytest.mark.parametrize(
    "content", [zipped(INSIDE), tarred(INSIDE), zipped({"x/inner.zip": zipped(INSIDE), "y": b""})]
)
def test_archives_are_unpacked_and_removed(content, source, shelf, tmp_path):
    shelf.content = content
    source(name="set.zip", members=("set/a.csv", "b.csv"), checksum="", bytes=0)
    download("made", tmp_path / "raw")
    assert names(tmp_path / "raw") == ["a.csv", "b.csv"] and names(tmp_path) == ["raw"]
    assert (tmp_path / "raw" / "a.csv").read_bytes() == INSIDE["set/a.csv"]
    download("made", tmp_path / "raw")
    assert len(shelf.asked) == 1


def test_a_damaged_archive_and_one_without_the_file(source, shelf, tmp_path):
    shelf.content = zipped({"set/a.csv": CONTENT})[:-100]
    source(name="set.zip", members=("a.csv",), checksum="", bytes=0)
    with pytest.raises(KarmafunnelError, match=r"set\.zip: needs a whole archive"):
        download("made", tmp_path)
    (tmp_path / "set.zip").write_bytes(zipped(INSIDE))
    source(name="set.zip", members=("a.csv", "z.csv"), checksum="", bytes=0)
    with pytest.raises(KarmafunnelError, match=r"needs z\.csv, found an archive without it"):
        download("made", tmp_path)


def test_files_fetched_by_hand_are_named_checked_and_unpacked(source, shelf, tmp_path):
    content = zipped(INSIDE)
    sha = f"sha256:{hashlib.sha256(content).hexdigest()}"
    source(
        File("set.zip", how="sign in at https://example.org", checksum=sha, members=("a.csv", "b.csv")),
        File("more.csv", how="beside it", optional=True),
        File("data.bin", url=shelf.url),
    )
    told = []
    with pytest.raises(KarmafunnelError, match=r"set\.zip, to be fetched by hand.*sign in at https.*\(or what is in it: a\.csv, b\.csv\)") as error:
        download("made", tmp_path, tell=told.append)
    assert "found data.bin;" in str(error.value) and "run this again" in str(error.value)
    assert any("more.csv: not there, which is no error" in line for line in told)
    (tmp_path / "set.zip").write_bytes(content[:-1])
    with pytest.raises(KarmafunnelError, match=r"set\.zip: needs sha256"):
        download("made", tmp_path)
    (tmp_path / "set.zip").write_bytes(content)
    download("made", tmp_path)
    assert names(tmp_path) == ["a.csv", "b.csv", "data.bin", "set.zip"]  # the user's own stays
    (tmp_path / "a.csv").rename(tmp_path / "a.csv.gz")
    download("made", tmp_path)


# -- commands and descriptions ---------------------------------------------------------------------


def told(*words: str) -> str:
    answer = CliRunner().invoke(main, list(words))
    assert answer.exit_code == 0, answer.output
    return answer.output


def test_the_command_shows_the_licence_and_asks_where_it_must(source, shelf, tmp_path):
    assert "licence of made: CC BY 4.0" in told("download", "made", str(tmp_path / "a"))
    about = source()
    object.__setattr__(about, "accept", True)
    answer = CliRunner().invoke(main, ["download", "made", str(tmp_path / "b")])
    assert answer.exit_code == 1 and "--accept-licence" in answer.output
    assert not (tmp_path / "b").exists() and len(shelf.asked) == 1
    told("download", "made", str(tmp_path / "b"), "--accept-licence")
    assert (tmp_path / "b" / "data.bin").read_bytes() == CONTENT


def test_unknown_variants_are_refused(source, tmp_path):
    about = source(name="{variant}.bin")
    with pytest.raises(KarmafunnelError, match="needs no variant, found 'ten'"):
        download("made", tmp_path, variant="ten")
    object.__setattr__(about, "variants", ("one", "two"))
    with pytest.raises(KarmafunnelError, match="needs one of one, two, found 'ten'"):
        download("made", tmp_path, variant="ten")
    download("made", tmp_path, variant="two")
    assert names(tmp_path) == ["two.bin"]


def test_the_list_fits_80_columns_and_each_story_is_whole():
    lines = told("sources").splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0].rstrip("*") for line in lines[: len(datasets.SOURCES)]] == list(datasets.SOURCES)
    for name, line in zip(datasets.SOURCES, lines, strict=False):
        about = datasets.describe(name)
        held = [letter for what, (letter, _) in _source.LETTERS.items() if what in about.holds]
        assert line[65:].replace(".", "").split() == held and about.title in line
        assert ("*" in line[:20]) == (not about.tried)
        story = told("sources", name)
        assert all(len(line) <= 80 or "https://" in line for line in story.splitlines()), name
        assert about.licence in " ".join(story.split())
        for text in (about.home, *(file.url or file.name for file in about.files)):
            assert text in story
        for lack in about.lacks:
            assert lack in " ".join(story.split())
        assert f"karmafunnel convert {name} raw/{name} logs/{name}" in story
    found = json.loads(told("sources", "--json"))
    assert [one["name"] for one in found] == list(datasets.SOURCES)


def test_an_unknown_source_hints_at_a_known_one():
    with pytest.raises(KarmafunnelError, match=r"found 'movielense'; did you mean movielens\?"):
        datasets.describe("movielense")


def test_a_description_with_a_wrong_key_is_refused(tmp_path, monkeypatch):
    text = (_source.HERE / "trivago.toml").read_text()
    monkeypatch.setattr(_source, "HERE", tmp_path)
    for wrong, words in (
        (text.replace("licence =", "license ="), "only known keys, found license"),
        (text.replace('"query"', '"queries"'), r"needs words among .*found \['queries'\]"),
    ):
        (tmp_path / "trivago.toml").write_text(wrong)
        with pytest.raises(KarmafunnelError, match=words):
            _source.describe.__wrapped__("trivago")
