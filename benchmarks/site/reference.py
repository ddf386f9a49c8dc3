"""docs/reference/cli.md and parts.md, written from the code.

    make reference

tests/test_docs.py fails where the committed pages are not what the code gives.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
from karmafunnel.cli import main as command_line
from karmafunnel.files import write_text
from karmafunnel.simulator import datasets
from karmafunnel.simulator.commands import SECTIONS
from karmafunnel.simulator.listing import Entry, listed, taken

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
GROUPS = {
    "karmafunnel.stages.recall": "Recall",
    "karmafunnel.stages.prerank": "Pre-ranking",
    "karmafunnel.stages.rank": "Ranking",
    "karmafunnel.stages.blend": "Ranking",
    "karmafunnel.stages.rerank": "Re-ranking",
    "karmafunnel.stages.explore": "Re-ranking",
}
COMMANDS = """\
# Commands

Every command answers `--help`. Results go to standard output, progress and messages to standard
error. The exit code is 0, 1 after an error (one line) and 2 for a wrong option. `gate` has more.

"""
PARTS = """\
# Parts

What a recipe is made of, with arguments and defaults. `karmafunnel recipes`, `karmafunnel stages`,
`karmafunnel features`, `karmafunnel embedders`, `karmafunnel measures` and `karmafunnel sources`
print the same in short.

## Recipes

`karmafunnel replay NAME LOG --out RUN` replays one. They are in `simulator/recipes/`, to copy.

"""
SOURCES = """\
## Sources

`karmafunnel download NAME FOLDER` fetches the files of one, `karmafunnel convert NAME FOLDER LOG`
makes a log of them. `karmafunnel sources NAME` prints files and addresses. No data set ships with
karmafunnel; each keeps its own licence.
"""


def paragraphs(text: str | None) -> str:
    """A docstring as Markdown: lines are joined, named arguments become a list."""
    made = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text or "").replace("\b\n", "")):
        if block.startswith("    "):
            made.append(block)
        elif block.startswith("- "):
            made.append(listing(block, r"\n(?=- )"))
        elif block.startswith("Args:\n"):
            items = listing(textwrap.dedent(block.removeprefix("Args:\n")), r"\n(?=\S)")
            made.append("Arguments:\n\n" + re.sub(r"(?m)^- ([\w, ]+):", r"- `\1`:", items))
        else:
            made.append(one_line(block))
    return "\n\n".join(made)


def listing(block: str, between: str) -> str:
    """A list of the items of a block."""
    return "\n".join(f"- {one_line(item.removeprefix('- '))}" for item in re.split(between, block))


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


# -- commands --------------------------------------------------------------------------------------


def command_page() -> str:
    """The page of all commands, by section of the help."""
    lines = COMMANDS.splitlines()
    for commands in SECTIONS.values():
        for name, (_, line) in commands.items():
            lines.append(f"- [`{name}`](#karmafunnel-{name}): {line}")
    context = Wide(command_line, "karmafunnel")
    for section, commands in SECTIONS.items():
        lines += ["", f"## {section}"]
        for name in commands:
            command = command_line.get_command(context, name)
            assert command is not None, name
            lines += ["", *of_command(command, context)]
    return "\n".join(lines) + "\n"


class Wide(click.Context):
    """A context whose texts are not broken into lines."""

    def __init__(self, command: click.Command, info_name: str, parent: click.Context | None = None):
        super().__init__(
            command,
            parent,
            info_name,
            show_default=True,
            terminal_width=10_000,
            max_content_width=10_000,
        )


def of_command(command: click.Command, parent: click.Context) -> Iterator[str]:
    """Heading, usage, help text and options of one command."""
    context = Wide(command, str(command.name), parent)
    yield f"### karmafunnel {command.name}"
    yield ""
    yield "```text"
    yield one_line(command.get_usage(context)).removeprefix("Usage: ")
    yield "```"
    yield ""
    yield paragraphs(command.help)
    records = [
        record
        for option in command.params
        if isinstance(option, click.Option) and (record := option.get_help_record(context))
    ]
    if records:
        yield ""
    for names, text in records:
        yield f"- `{names}`: {one_line(text)}"


# -- parts -----------------------------------------------------------------------------------------


def part_page() -> str:
    """The page of recipes, stages, features, embedders, measures and sources."""
    lines = PARTS.splitlines()
    lines += [f"- `{entry.name}`: {entry.line}" for entry in listed("recipes")]
    lines += ["", "## Stages"]
    stages = listed("stages")
    of_a_group = [entry for entry in stages if group(entry)]
    for title in dict.fromkeys(GROUPS.values()):
        lines += ["", f"### {title}"]
        for entry in of_a_group:
            if group(entry) == title:
                lines += of_class(entry)
    lines += ["", "### From outside"]
    for entry in stages:
        if not group(entry):
            lines += of_class(entry)
    for title in ("Features", "Embedders"):
        lines += ["", f"## {title}"]
        for entry in listed(title.lower()):
            lines += of_class(entry)
    for what in ("embedders", "stages"):
        lines += ["", f"## What {what} take", "", "Arguments that are values themselves."]
        for entry in taken(what):
            lines += of_class(entry)
    lines += ["", "## Measures", "", "Formulas and worked examples: [Measures](measures.md).", ""]
    lines += [f"- `{entry.typed}`: {entry.line}" for entry in listed("measures")]
    return "\n".join([*lines, "", *of_sources()]) + "\n"


def group(entry: Entry) -> str:
    found = [title for module, title in GROUPS.items() if within(entry.module, module)]
    return found[0] if found else ""


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def of_class(entry: Entry) -> list[str]:
    """Heading, import, how it is written, and the docstring of a stage, feature or embedder."""
    kind = getattr(importlib.import_module(entry.module), entry.name)
    above = entry.module.rpartition(".")[0]
    offered = hasattr(importlib.import_module(above), entry.name)
    return [
        "",
        f"#### {entry.name}",
        "",
        "```text",
        f"from {above if offered else entry.module} import {entry.name}",
        textwrap.fill(entry.typed, 88, subsequent_indent="    ", break_on_hyphens=False),
        "```",
        "",
        paragraphs(inspect.getdoc(kind)),
    ]


def of_sources() -> Iterator[str]:
    """The public data sets: what each holds, what becomes a request, what it lacks."""
    yield from SOURCES.splitlines()
    for name in datasets.SOURCES:
        one = datasets.describe(name)
        yield ""
        yield f"#### {name}"
        yield ""
        yield f"{one_line(one.about)} {one_line(one.requests)}"
        yield ""
        yield f"- Holds: {', '.join(one.holds)}."
        yield f"- Lacks: {'; '.join(one_line(lack) for lack in one.lacks)}."
        yield f"- Licence: {one.licence}. Home: {one.home}"
        tried = one.tried or "no real rows, only made-up files of the published format"
        yield f"- Tried on: {tried}."


PAGES = {"cli.md": command_page, "parts.md": part_page}


def main() -> None:
    """Write the pages that have changed."""
    for name, page in PAGES.items():
        path, text = FOLDER / name, page()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            print(f"wrote docs/reference/{name}")


if __name__ == "__main__":
    main()
