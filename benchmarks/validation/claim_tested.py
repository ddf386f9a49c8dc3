"""The paper's claim as A/B tests in a simulated shop: a funnel with KARMA at every stage against
the same funnel with other vectors, or none:

    python -m karmafunnel.benchmarks.validation.claim_tested default --users 5000 --out out/claim

Funnels are rows of proxy_funnels.py. A test takes 14 days, all funnels are fitted again after
seven, and is looked at once, at the end. Frozen text is the small model without any training.

Each test is kept in OUT and taken as it stands, so that the same command goes on. Writes
claim_tested.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from karmafunnel.benchmarks.studies import proxy_funnels
from karmafunnel.benchmarks.validation.made_by import made_by
from karmafunnel.benchmarks.validation.which_proxy import Market
from karmafunnel.cli import OneLineErrors
from karmafunnel.files import write_text
from karmafunnel.keys import cache_root
from karmafunnel.simulator.experiment.arms import Design
from karmafunnel.simulator.experiment.experiment import Experiment
from karmafunnel.simulator.experiment.figures_by_arm import Line, Result
from karmafunnel.simulator.experiment.result_tables import as_known, difference, smallest_lift
from karmafunnel.simulator.report.measure_table import valued
from karmafunnel.simulator.report.table import Cell, Table, number, print_table, to_markdown
from karmafunnel.terminal import Console

FUNNELS = Path(proxy_funnels.__file__)
TREATED = "all, KARMA"
CONTROLS = ("all, no vectors", "all, frozen text", "all, TF-IDF", "all, action-only")
READ = ("GMV a request", "GMV a request, expected", "clicks a request")


def tested(control: str, market: Market, design: Design, users: int, out: Path) -> Result:
    """The test of KARMA against a control, made or taken as it stands."""
    experiment = Experiment(
        (f"{FUNNELS}::{control}", f"{FUNNELS}::{TREATED}"),
        market.marketplace,
        design,
        users=users,
        items=market.n_items,
        cache=cache_root(),
        catalogue=market.catalogue,
    )
    place = out / control.replace(", ", "-").replace(" ", "-")
    with Console(stderr=True).status(control) as status:
        return experiment.made(place, f"claim_tested: {control}", say=status.update)


def lift_of(line: Line) -> Cell:
    """The lift of a figure with its interval, and whether the difference is one."""
    low, high = line.effect.lift_interval
    lift = {"difference": as_known(line.effect.lift), "low": low, "high": high}
    return valued(lift | {"better": difference(line)["better"]}, signed=True)


def table_of(results: Sequence[tuple[str, Result]], shop: str, design: Design) -> Table:
    """One row a control."""
    rows: list[list[str | Cell]] = []
    for control, result in results:
        lines = {line.name: line for line in result.lines}
        users = " and ".join(f"{count:,}" for count in result.ratio.counts)
        money = lines[READ[0]]
        row: list[str | Cell] = [control, users, number(money.effect.seen[0])]
        rows.append([*row, *(lift_of(lines[name]) for name in READ), smallest_lift(money)])
    heads = ["control", "users who came", "its GMV a request"]
    heads += [f"{name}: lift" for name in READ] + ["smallest lift of GMV found"]
    below = [
        f"Treated: {TREATED}. Shop: {shop}; {design.days} days after {design.before} of the shop's "
        f"own engine, fitted again after {design.retrain}.",
        "lift: share of the control's figure, with the 95% interval of one look, at the end; * "
        "where the difference excludes 0, not corrected for the number of controls and figures.",
        "expected: what the lists shown were worth, without the chance of clicks.",
        "smallest lift of GMV found: by so many users with a power of 80%.",
    ]
    return Table(heads, rows, title="KARMA against other vectors, A/B tests", below=below)


@click.command(cls=OneLineErrors)
@click.argument("shop")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--users", type=click.IntRange(100, 1_000_000), default=5000, help="Of the shop.")
@click.option("--days", type=click.IntRange(8, 365), default=14, help="Of each test.")
@click.option("--seed", type=click.IntRange(0, 1000), default=0, help="Of shop, split and fits.")
def main(shop: str, out: Path, users: int, days: int, seed: int) -> None:
    """Test KARMA against other vectors in SHOP: a recipe, a World, or `default`."""
    market = Market.of(shop)
    design = Design(days=days, slots=market.marketplace.engine.slots, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    results = [(name, tested(name, market, design, users, out)) for name in CONTROLS]
    table = table_of(results, Path(shop).stem, design)
    print_table(table, Console())
    made = made_by("validation.claim_tested", f"seed {seed}, {users:,} users")
    write_text(out / "claim_tested.md", f"{to_markdown(table).rstrip()}\n\n{made}\n")


if __name__ == "__main__":
    main()
