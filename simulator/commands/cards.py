"""The command of the report card."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...errors import KarmafunnelError
from ...files import PAGE
from ...terminal import visible
from .parameters import (
    claimed,
    err,
    folder,
    json_flag,
    limit_option,
    open_log,
    out,
    seed_option,
    takes_run_options,
    verbose_flag,
)

if TYPE_CHECKING:
    from ..replay.options import RunOptions


@click.command()
@click.argument("real", type=folder)
@click.argument("simulated", type=folder)
@click.option("--out", "html", type=folder, help="Also write a page with a plot of each line.")
@click.option(
    "--funnels",
    is_flag=True,
    help="Also replay cheap funnels on both logs and compare their order; takes minutes.",
)
@limit_option
@seed_option
@click.option("--no-cache", is_flag=True, help="Fit the funnels anew.")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["table", "markdown"]),
    default="table",
    help="How the card is printed.",
)
@json_flag
@verbose_flag
@takes_run_options
def likeness(
    options: RunOptions,
    real: Path,
    simulated: Path,
    html: Path | None,
    funnels: bool,
    fmt: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """How true a SIMULATED log is to a REAL one: a report card, line by line.

    The last window of each log is read: click rates by position, popularity, prices, sessions,
    repeats, ... Each line is judged by how far the real log is from itself, by chance and in time.
    A line that a log cannot answer is n/a, with the reason.
    """
    from ..likeness.card import likeness as report_card
    from ..likeness.policy_order import on_both
    from ..report.likeness_page import card_table, next_step, told, write_html
    from ..report.table import print_table, to_markdown

    if options.limit is not None and not funnels:
        needs = "--funnels, whose replays it limits"
        raise KarmafunnelError("likeness", what="--limit", needs=needs, found="none")
    if html:
        claimed(html, PAGE, real, simulated)
    logs = open_log(real), open_log(simulated)
    with tempfile.TemporaryDirectory() as temporary, err.status("reading") as status:
        runs = None
        if funnels:
            runs = on_both(*logs, Path(temporary), options, status.update)
        card = report_card(*logs, runs, options.seed, status.update)
    if html:
        write_html(card, html, options.command or "")
        err.print(f"page: {html}", soft_wrap=True)
    if as_json:
        print(json.dumps(card.as_dict(), indent=1))
        return
    if fmt == "markdown":
        print(visible(to_markdown(card_table(card, whole=True))), end="")
        return
    print_table(card_table(card), out, verbose)
    for line in told(card):
        out.print(line)
    out.print(f"{card.verdict}: {card.answered} of {len(card.answers)} lines are answered")
    out.print(next_step(card))
