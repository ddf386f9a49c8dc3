"""Every code block of README and of the documentation runs, page by page, in an empty folder.

Blocks marked `sh` and `python` run in the order of the page; those of Python share their names, as
the cells of a notebook do. `console`, `text`, `toml` and so on are to be read. Lines that set a
machine up (make, pip, git, activate) are for CI itself.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import karmafunnel
import pytest

ROOT = Path(karmafunnel.__file__).parent
SETS_UP = ("make ", "pip ", "pipx ", "git ", ". .venv", "source .venv", "docker ", "cd karmafunnel")
FENCED = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.S | re.M)


def blocks(page):
    """Language, line and code of the blocks of a page that run."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in FENCED.finditer(text):
        language, code = block.groups()
        if language == "sh":
            lines = code.splitlines(keepends=True)
            code = "".join(x for x in lines if not x.startswith(SETS_UP))
        if language in ("sh", "python") and code.strip():
            found.append((language, text.count("\n", 0, block.start()) + 1, code))
    return found


PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if blocks(page) and "development" not in page.parts
]


def ratings():
    """The table that README says its reader has."""
    lines = ["user,item,rating,timestamp"]
    for i in range(6000):
        user, item = i * 7919 % 200, (i * 104729 % 997) ** 2 % 400
        lines.append(f"{user},{item},{1 + i * 31 % 5},{1600000000 + i * 600}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, worked in, with `karmafunnel` on the path."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, words in (("karmafunnel", "-m karmafunnel"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        program.chmod(0o755)
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT.parent))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_block_runs(page, place):
    if page.name == "README.md":
        (place / "ratings.csv").write_text(ratings())
    names = {"__name__": "__main__"}
    for language, line, code in blocks(page):
        where = f"{page.relative_to(ROOT)}, line {line}"
        if language == "python":
            exec(compile(code, where, "exec"), names)
            continue
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", code], capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0, f"{where}:\n{code}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"


def test_every_guide_has_blocks_that_run():
    guides = [*(ROOT / "docs" / "guides").glob("*.md")]
    assert {page for page in guides if page not in PAGES} == set()
