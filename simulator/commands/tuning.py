"""The command that searches funnels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...files import SEARCH
from .parameters import (
    Number,
    claimed,
    device_option,
    err,
    folder,
    force_flag,
    limit_option,
    log_argument,
    no_cache_flag,
    open_log,
    out,
    seed_option,
    takes_run_options,
    verbose_flag,
)

if TYPE_CHECKING:
    from ..replay.options import RunOptions


@click.command()
@log_argument
@click.argument("recipe", default="tunable")
@click.option(
    "--budget-ms",
    type=Number("budget_ms"),
    required=True,
    help="Milliseconds a request that the funnel may cost, as a replay on this machine takes them.",
)
@click.option("--out", "place", type=folder, required=True, help="The folder to write.")
@click.option("--measure", default="HR@10", help="What is earned, at the last stage.")
@click.option(
    "--trials",
    type=Number("trials"),
    default=40,
    help="Try this many funnels in all; a larger number goes on where a smaller one ended.",
)
@click.option(
    "--minutes",
    type=Number("minutes"),
    help="Begin no new funnel after so long, but the first; the same command goes on.",
)
@seed_option
@limit_option
@device_option
@no_cache_flag
@force_flag
@verbose_flag
@takes_run_options
def tune(
    log: Path,
    recipe: str,
    budget_ms: float,
    place: Path,
    measure: str,
    trials: int,
    minutes: float | None,
    options: RunOptions,
    verbose: bool,
) -> None:
    """Search the funnel that earns most within a budget of milliseconds, on W2b of LOG.

    RECIPE is a Python file that exports `choices`, or the name of one that ships. Writes the front
    of quality against cost, what the next millisecond buys, and best.py, a recipe to replay.
    Interrupted and started again, it goes on.
    """
    from ..replay.recipe import load_recipe
    from ..report.table import print_table
    from ..tuning.found import (
        WARNING,
        front_table,
        left_out,
        milliseconds_table,
        next_millisecond,
        summary,
        write_found,
    )
    from ..tuning.search import tune as run_tune

    claimed(place, SEARCH, log, recipe, force=options.force)
    opened = open_log(log)
    loaded = load_recipe(recipe, opened)
    command = options.command
    search = run_tune(
        loaded,
        opened,
        place,
        budget_ms,
        options,
        measure=measure,
        trials=trials,
        minutes=minutes,
    )
    if absent := left_out(search):
        err.print(f"left out, for this log gives no choice: {', '.join(absent)}", soft_wrap=True)
    files = write_found(search, command)
    print_table(front_table(search), out, verbose)
    if (table := milliseconds_table(search)).rows:
        out.print()
        print_table(table, out)
    for line in (summary(search), next_millisecond(search)):
        out.print(f"\n{line}")
    out.print(WARNING, style="bold yellow")
    out.print("; ".join(map(str, files)), soft_wrap=True)
