"""The command line. Results go to standard output, progress and messages to standard error."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any

import click

from . import __version__
from .errors import KarmafunnelError, user_message
from .simulator.commands import MODULES, SECTIONS
from .terminal import Console


class OneLineErrors(click.Command):
    """A command that tells an error of its user in one line, after the names that it has too many
    of, and ends with exit code 1; 130 where it was interrupted.
    """

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # characters that the encoding lacks
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, click.exceptions.Exit, click.ClickException, click.Abort):
            raise  # click handles these itself
        except BaseException as error:
            if (message := user_message(error)) is None:
                raise
            lines = [*getattr(error, "names", ()), message]
        for line in lines:
            Console(stderr=True).print(line, soft_wrap=True)
        ctx.exit(130 if message == "interrupted" else 1)


class Main(OneLineErrors, click.Group):
    """Imports a command only when it is asked for. Of several processes that a launcher started,
    the first one runs it.
    """

    def invoke(self, ctx: click.Context) -> Any:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return super().invoke(ctx)
        from .models.karma.processes import together
        from .models.karma.train import train_along

        try:
            with together(train_along):
                return super().invoke(ctx)
        except KarmafunnelError as error:  # that the processes do not find each other
            Console(stderr=True).print(user_message(error), soft_wrap=True)
            ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(MODULES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in MODULES:
            return None
        module = importlib.import_module(f".simulator.commands.{MODULES[name]}", __package__)
        found = [
            x for x in vars(module).values() if isinstance(x, click.Command) and x.name == name
        ]
        return found[0]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, line) for name, (_, line) in commands.items()])


HELP_OPTIONS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@click.group(cls=Main, context_settings=HELP_OPTIONS | {"show_default": True})
@click.version_option(__version__, package_name="karmafunnel")
def main() -> None:
    """Replay a personalized-search funnel offline and see, stage by stage, what it keeps and what
    it loses.

    The usual order: `import` your tables (or make a `world`), `validate` and `describe` the log,
    `replay` a recipe on it, then `measure`, `compare` and `report` the Run.
    """
