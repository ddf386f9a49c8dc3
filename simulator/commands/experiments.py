"""Commands that compare two funnels on simulated users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ...bounds import check_bound
from ...files import EXPERIMENT, PAGE
from .parameters import (
    Number,
    cache_folder,
    claimed,
    err,
    folder,
    force_flag,
    json_flag,
    no_cache_flag,
    open_log,
    out,
    read_catalogue,
    seed_option,
    typed,
    verbose_flag,
)

if TYPE_CHECKING:
    from ..experiment.experiment import Experiment
    from ..experiment.figures_by_arm import Result


def experiment_options(command: Any) -> Any:
    """The options that both commands have."""
    for option in reversed(
        [
            click.argument("recipe_a"),
            click.argument("recipe_b"),
            click.argument("world", type=folder),
            click.option(
                "--days", type=Number("days_served"), default=14, help="Days of the experiment."
            ),
            click.option(
                "--before",
                type=Number("days_served"),
                default=21,
                help="Days before it, served by the shop's own engine; funnels learn from them.",
            ),
            click.option(
                "--retrain",
                type=Number("experiment_days"),
                default=7,
                help="Days from one fit to the next; 0 fits once.",
            ),
            click.option(
                "--users", type=Number("world_users"), default=2000, help="How many users."
            ),
            click.option(
                "--items",
                type=Number("world_items"),
                default=2000,
                help="How many items; of a --catalogue, at most so many.",
            ),
            click.option("--catalogue", type=folder, help="Users shop on this catalogue."),
            seed_option,
            no_cache_flag,
            json_flag,
            verbose_flag,
        ]
    ):
        command = option(command)
    return command


def asked(
    recipes: tuple[str, str],
    world: Path,
    no_cache: bool,
    users: int,
    items: int,
    catalogue: Path | None,
    **design: Any,
) -> Experiment:
    """The experiment that a command was asked for."""
    from ..experiment.arms import Design
    from ..experiment.experiment import Experiment
    from ..replay.market_recipe import load_marketplace
    from ..world.own_goods import lived_on

    market, _ = load_marketplace(world)
    stock, sizes = read_catalogue(catalogue), {"users": users, "items": items}
    if world.is_dir():  # a World: as many of its users, its own goods
        made = open_log(world)
        source = click.get_current_context().get_parameter_source
        for name in sizes:
            if source(name) is ParameterSource.DEFAULT:
                sizes[name] = made.meta["world"].get(name)
                check_bound(f"{world}/log.json", f"world_{name}", **{f"world.{name}": sizes[name]})
        stock = lived_on(made) if stock is None else stock
    cache = click.get_current_context().with_resource(cache_folder(no_cache))
    planned = Design(slots=market.engine.slots, **design)
    return Experiment(recipes, market, planned, cache=cache, catalogue=stock, **sizes)


@click.command()
@experiment_options
@click.option("--share", type=Number("arm_share"), default=0.5, help="Share of users treated.")
@click.option(
    "--truth",
    is_flag=True,
    help="Also serve all users by each recipe alone, and print what these two shops differ by.",
)
@click.option("--out", "place", type=folder, required=True, help="The folder to write.")
@force_flag
def abtest(
    recipe_a: str,
    recipe_b: str,
    world: Path,
    place: Path,
    share: float,
    truth: bool,
    as_json: bool,
    verbose: bool,
    force: bool,
    **given: Any,
) -> None:
    """Test the funnel of RECIPE_B against that of RECIPE_A on the users of a simulated shop.

    Both are recipes as for `replay`, or FILE::ROW for a row of a table's recipe. WORLD is a recipe
    of a marketplace, a Python file, or a log that `world --recipe` or `world --like` wrote. Users
    are split, days follow each other, and both funnels are
    fitted again on what both have shown. Interrupted and started again, it goes on.
    """
    files = [one.partition("::")[0] for one in (recipe_a, recipe_b)]
    experiment = asked((recipe_a, recipe_b), world, share=share, **given)
    read = (world, *files, given["catalogue"])
    claimed(place, EXPERIMENT, *read, wants=experiment.asked, force=force)
    with err.status("experiment") as status:
        result = experiment.made(place, typed(), truth, force, status.update)
    if as_json:
        print(json.dumps(experiment.told(result)))
    else:
        print_result(result, experiment, verbose)
        out.print(f"{place / 'experiment.html'}", soft_wrap=True)


def print_result(result: Result, experiment: Experiment, verbose: bool | None = None) -> None:
    """Print an A/B test, what is wrong with it first."""
    from ..experiment.result_tables import lines_table, shops_table, verdict, warnings
    from ..report.table import print_table

    for warning in warnings(result, experiment.names):
        out.print(warning)
    for line in verdict(result):
        out.print(line, style="bold")
    print_table(lines_table(result, experiment.design, experiment.currency), out, verbose)
    print_table(shops_table(result), out, verbose)


@click.command()
@experiment_options
@click.option("--balanced", is_flag=True, help="Balanced interleaving in place of team draft.")
@click.option("--out", "html", type=folder, help="Also write a page with a plot of its course.")
def interleave(
    recipe_a: str,
    recipe_b: str,
    world: Path,
    balanced: bool,
    html: Path | None,
    as_json: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Find the better of two funnels with few requests: each request of a simulated shop is shown
    one list out of both funnels' lists, and clicks say which is preferred.

    The arguments are those of `abtest`. Prints after how many requests the winner was certain.
    """
    from ..experiment.interleaving import Balanced, TeamDraft
    from ..experiment.result_page import duel_page
    from ..experiment.result_tables import duel_table, duel_verdict
    from ..report.page import write_page
    from ..report.table import print_table

    if html:
        files = [one.partition("::")[0] for one in (recipe_a, recipe_b)]
        claimed(html, PAGE, world, *files, given["catalogue"])
    experiment = asked((recipe_a, recipe_b), world, **given)
    way = Balanced() if balanced else TeamDraft()
    with err.status("interleaving") as status:
        found = experiment.interleave(way, status.update)
    if html:
        page = duel_page(found, experiment.names, repr(way), typed(), experiment.record)
        write_page(html, page)
        err.print(f"page: {html}", soft_wrap=True)
    experiment.forget()
    if as_json:
        wins, running = found.preference(), found.running()
        told = {"recipes": experiment.names, "preference": wins.value, "interval": wins.interval}
        told |= {"requests": wins.requests, "certain_after": running.certain_after}
        told |= {"slots_filled": found.filled}
        print(json.dumps(told | {"winner": running.winner}))
    else:
        out.print(duel_verdict(found, experiment.names), style="bold")
        print_table(duel_table(found, experiment.names, repr(way)), out, verbose)
