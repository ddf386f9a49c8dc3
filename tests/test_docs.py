"""The documentation says what is true: every command exists, every command is documented, every
path and recipe named is there.
"""

import re
from pathlib import Path

import click
import karmafunnel
import pytest
from click.testing import CliRunner
from every_command import COMMANDS
from karmafunnel.benchmarks.site import reference
from karmafunnel.cli import main

ROOT = Path(karmafunnel.__file__).parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "findings" / "LOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def blocks(text: str) -> list[str]:
    """Lines of fenced shell blocks, continuation lines joined."""
    fenced = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, flags=re.S)
    return [
        line.strip()
        for block in fenced
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]


def commands() -> list[str]:
    return sorted(
        {
            line
            for text in TEXTS.values()
            for line in blocks(text)
            if line.split()[0].endswith("karmafunnel")
        }
    )


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_documented_and_helps(name):
    assert any(f"karmafunnel {name}" in text for text in TEXTS.values())
    answer = CliRunner().invoke(main, [name, "--help"])
    assert answer.exit_code == 0
    assert COMMANDS[name].help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name):
    assert [
        o.opts for o in COMMANDS[name].params if isinstance(o, click.Option) and not o.help
    ] == []


@pytest.mark.parametrize("line", commands())
def test_every_documented_command_parses(line):
    """Parsed, not run: unknown commands and options would fail here."""
    words = line.split("#")[0].split()[1:]
    command = COMMANDS[words[0]]
    parser = command.make_parser(click.Context(command))
    parser.parse_args([w.strip("'\"") for w in words[1:]])


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page):
    broken = [
        link
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", TEXTS[page])
        if not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert broken == []


def test_the_file_tree_is_the_file_tree():
    tree = re.search(r"```text\n(.*?)```", TEXTS["docs/development/layout.md"], flags=re.S)
    folder = ""
    for line in tree.group(1).splitlines():
        name = line.strip().split()[0]
        folder = (
            (name if not line.startswith(" ") else folder)
            if name.endswith("/") and not line.startswith(" ")
            else folder
        )
        path = ROOT / name if not line.startswith(" ") else ROOT / folder / name
        assert path.exists(), path


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_generated_page_is_what_the_code_generates(name):
    assert TEXTS[f"docs/reference/{name}"] == reference.PAGES[name](), "run `make reference`"
