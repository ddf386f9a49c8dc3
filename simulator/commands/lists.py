"""Commands that list the available recipes, stages, features, embedders and measures."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from .parameters import json_flag, out

WHAT = {
    "recipes": "Built-in recipes, to replay or to copy.",
    "stages": "Stages of a funnel with their arguments.",
    "features": "Features of learned stages with their arguments.",
    "embedders": "Embedders of users and items, with their arguments.",
    "measures": "Measures of a Run.",
}


def list_command(what: str) -> click.Command:
    """The command that prints one list."""

    @click.command(name=what, help=WHAT[what])
    @json_flag
    def command(as_json: bool) -> None:
        from ..listing import listed

        entries = listed(what)
        if as_json:
            print(json.dumps([asdict(entry) for entry in entries], indent=1))
            return
        for entry in entries:
            out.print(entry.typed, style="bold", soft_wrap=True)
            out.print(f"    {entry.line}", soft_wrap=True)

    return command


recipes, stages, features = (list_command(what) for what in ("recipes", "stages", "features"))
embedders, measures = (list_command(what) for what in ("embedders", "measures"))
