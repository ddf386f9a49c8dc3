"""Commands that list the available recipes, stages, features, embedders and measures."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .parameters import err, json_flag, out

if TYPE_CHECKING:
    from ..listing import Entry

WHAT = {
    "recipes": "Built-in recipes, to replay by name, and tables; with NAME, the text of one, to"
    " copy: `karmafunnel recipes baseline > mine.py`.",
    "stages": "Stages of a funnel with their arguments; with NAME, all about one, or about what"
    " stages take, such as Sample.",
    "features": "Features of learned stages with their arguments; with NAME, all about one.",
    "embedders": "Embedders of users and items, with their arguments; with NAME, all about one, or"
    " about what embedders take, such as Pairwise or Checkpoint.",
    "measures": "Measures of a Run; with NAME, all about one.",
}


def hanging(text: str, width: int, indent: int) -> str:
    """A text in lines of `width`, the first indented so much, the others by 4."""
    return textwrap.fill(
        text,
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * 4,
        break_long_words=False,
        break_on_hyphens=False,
    )


def show(entries: Sequence[Entry]) -> None:
    """Print each entry as it is written, and its line."""
    for entry in entries:
        out.print(hanging(entry.typed, out.width, 0), style="bold")
        out.print(hanging(entry.line, out.width, 4))


def list_command(what: str) -> click.Command:
    """The command that prints one list, or all about one of its entries."""

    @click.command(name=what, help=WHAT[what])
    @click.argument("name", required=False)
    @json_flag
    def command(name: str | None, as_json: bool) -> None:
        from ..listing import find, listed, taken, whole

        entries = [find(what, name)] if name else listed(what)
        if as_json:
            print(json.dumps([asdict(entry) for entry in entries], indent=1))
            return
        if name:
            text, where = whole(what, entries[0])
            err.print(where, soft_wrap=True)
            print(text)
            return
        show(entries)
        if what == "recipes":
            out.print("\nTables: karmafunnel table NAME LOG --out DIR\n")
            show(taken(what))
        elif names := ", ".join(entry.name for entry in taken(what)):
            more = (
                f"What they take, each with a text of its own (karmafunnel {what} NAME): {names}."
            )
            out.print(hanging(more, out.width, 0))

    return command


recipes, stages, features = (list_command(what) for what in ("recipes", "stages", "features"))
embedders, measures = (list_command(what) for what in ("embedders", "measures"))
