"""The command line. Results go to standard output, progress and messages to standard error."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

import click

from . import __version__
from .errors import KarmafunnelError, line_of
from .terminal import Console

# In the order in which one works; a command's module in `simulator/commands` is imported when it is
# asked for.
SECTIONS = {
    "Start": {
        "demo": (
            "start",
            "The whole way on generated data: a World, KARMA, a funnel, a report, a load test.",
        ),
        "doctor": ("start", "Versions, threads, and what is slow here."),
    },
    "Data": {
        "import": ("imports", "Import your own tables: CSV, JSON lines, Parquet, RecBole files, ... in, a log out."),
        "convert": ("data", "Convert a public data set into a log."),
        "world": ("data", "Generate a marketplace with known truth and write its log."),
        "validate": ("data", "Check a log: PASS, FAIL or N/A a check, with example ids."),
        "describe": (
            "data",
            "Sizes, ranges, prices, popularity, eligibility and the ceiling of a log.",
        ),
        "sample": ("data", "Write the log of a share of the users; the task stays."),
    },
    "Replay": {
        "replay": (
            "runs",
            "Fit the funnel of a recipe on a log and replay the last window through it.",
        ),
        "explain": ("runs", "Stage by stage, why items are where they are in one request."),
        "table": (
            "runs",
            "Fit and replay every row of a recipe with several seeds, and compare them.",
        ),
        "fit-embedder": ("runs", "Fit one embedder of a recipe and save it."),
    },
    "Measure": {
        "measure": ("figures", "Ask a Run for measures, stage by stage, with 95% intervals."),
        "compare": ("figures", "Compare two Runs of one log, paired on the same requests."),
        "gate": ("gates", "Whether a new Run is not worse than an old one: a funnel change as a CI check."),
        "report": ("figures", "Write one self-contained HTML file about one or more Runs."),
    },
    "Load": {
        "profile": (
            "deployment",
            "Time each stage over batch sizes and cutoffs, and fit its service time.",
        ),
        "queue": (
            "deployment",
            "Send requests through a deployment: latency, utilisation, what was shown.",
        ),
        "timeline": ("deployment", "What happened to one request of a simulation."),
        "plan": (
            "deployment",
            "Find the cheapest servers of each stage that meet a target of p99 latency.",
        ),
    },
}
PLACES = {name: place for commands in SECTIONS.values() for name, (place, _) in commands.items()}
err = Console(stderr=True)


class Main(click.Group):
    """Imports a command when it is asked for, and turns what users can cause into one clear line,
    exit code 1 (130: interrupted).
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(PLACES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in PLACES:
            return None
        module = importlib.import_module(f".simulator.commands.{PLACES[name]}", __package__)
        return next(
            x for x in vars(module).values() if isinstance(x, click.Command) and x.name == name
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, told) for name, (_, told) in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):  # what the terminal's encoding lacks is spelt out
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, click.exceptions.Exit, click.ClickException, click.Abort):
            # click's own; of a broken pipe it says nothing: whoever read what was printed has
            # enough
            raise
        except BaseException as error:
            if (told := line_for(error)) is None:
                raise
        err.print(told, soft_wrap=True)
        ctx.exit(130 if told == "interrupted" else 1)


def line_for(error: BaseException) -> str | None:
    """What is said of an error that a user can cause; None for a fault of the program's own."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    # commands end by themselves: this is code that a recipe brought along
    if isinstance(error, SystemExit):
        return f"error: code of the recipe ends the program with sys.exit({error.code!r})"
    # Polars panics
    if (
        isinstance(error, (MemoryError, RecursionError, UnicodeError))
        or type(error).__name__ == "PanicException"
    ):
        return f"error: {line_of(error)}"
    if isinstance(error, (KarmafunnelError, OSError)) or type(error).__module__.startswith(
        "polars."
    ):
        return f"error: {error}"
    return None


@click.group(
    cls=Main,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 120,
        "show_default": True,
    },
)
@click.version_option(__version__, package_name="karmafunnel")
def main() -> None:
    """Replay a personalized-search funnel offline and see, stage by stage, what it keeps and what
    it loses.

    The way through: `convert` a data set (or make a `world`), `validate` and `describe` it,
    `replay` a recipe on it, then `measure`, `compare` and `report` the Run.
    """


if __name__ == "__main__":
    main()
