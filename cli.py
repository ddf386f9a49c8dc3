"""The command line. Results go to standard output, progress and messages to standard error."""

from __future__ import annotations

import importlib
import io
import json
import os
import platform
import shlex
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from rich.table import Table

from . import __version__
from .bounds import BOUNDS
from .checks import require
from .errors import KarmafunnelError, line_of, quoted
from .files import (
    EMBEDDING,
    LOG,
    PAGE,
    PLAN,
    RUN,
    RUN_AND_PATHS,
    SERVICES,
    SIMULATION,
    TABLE,
    Kind,
    atomic_folder,
    claim,
    read_json,
    write_json,
)
from .log import Catalogue, Log, read, seal_log
from .terminal import Console, progress_bar, visible

err = Console(stderr=True)
out = Console()


class Main(click.Group):
    """Turns what users can cause into one clear line: no traceback, exit code 1, or 130 where it was interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):  # what the terminal's encoding lacks is spelt out
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            told, code = "interrupted", 130
        except SystemExit as error:  # commands end by themselves: this is code that a recipe brought along
            told, code = f"error: code of the recipe ends the program with sys.exit({error.code!r})", 1
        except BrokenPipeError:
            raise  # whoever read what was printed has enough; click says nothing
        except (KarmafunnelError, OSError, pl.exceptions.PolarsError) as error:
            told, code = f"error: {error}", 1
        except (MemoryError, RecursionError, UnicodeError, pl.exceptions.PanicException) as error:
            told, code = f"error: {line_of(error)}", 1
        err.print(told, soft_wrap=True)
        ctx.exit(code)


class Number(click.ParamType):
    """A number within the bound of that name; NaN, infinity and what lies outside are refused."""

    def __init__(self, bound: str):
        self.bound = BOUNDS[bound]
        self.kind = int if isinstance(self.bound.low, int) else float
        self.name = "integer" if self.kind is int else "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = self.kind(value)
        except (ValueError, OverflowError):
            found = None
        if not self.bound.holds(found):
            self.fail(f"needs {self.bound}, found {quoted(value, 40)}", param, ctx)
        return found


class Numbers(Number):
    """Such numbers, with commas between."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return [super(Numbers, self).convert(word, param, ctx) for word in value.split(",")] if isinstance(value, str) else value


class Cutoffs(Numbers):
    """A stage and cutoffs of it: STAGE=K,K."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, _, ks = value.partition("=")
        return name, super().convert(ks, param, ctx)


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, package_name="karmafunnel")
def main() -> None:
    """Replay a personalized-search funnel offline and see, stage by stage, what it keeps and what it loses.

    The way through: `convert` a data set (or make a `world`), `validate` and `describe` it, `replay` a recipe on it, then
    `measure`, `compare` and `report` the Run.
    """


class Place(click.Path):
    """A path; an empty one, such as of a variable that is not set, is refused: it would be the folder where one stands."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("needs a path, found an empty text", param, ctx)
        return super().convert(value, param, ctx)


folder = Place(path_type=Path)
log_argument = click.argument("log", type=folder)
seed_option = click.option("--seed", type=Number("seed"), default=0, show_default=True)
json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


force_flag = click.option(
    "--force", is_flag=True, help="Replace an older result of something else, or an edited one; what karmafunnel did not write stays."
)


def claimed(place: Path, kind: Kind, *inputs: Path | str | None, force: bool = False) -> None:
    """Claim a place to write until the command ends; see `files.claim`."""
    context = click.get_current_context()
    context.with_resource(claim(place, str(context.info_name), kind, inputs=inputs, force=force))


def worker_flags(command: Any) -> Any:
    """--workers and --ray."""
    n = click.option(
        "--workers", type=Number("workers"), metavar="N", help="Replay by N processes of one thread each; with --ray, at most N at a time."
    )
    ray = click.option(
        "--ray", metavar="ADDRESS", help="Replay on the Ray cluster at this address (host:6379, auto; local: start one here)."
    )
    return n(ray(command))


def workers_of(n: int | None, ray: str | None) -> Any:
    from .simulator.replay.workers import Workers

    return Workers(n, ray) if n is not None or ray is not None else None


def open_log(path: Path, but: Sequence[str] = ()) -> Log:
    """A log to compute with: one that fails no check (`but` for these) whose failure would change a figure."""
    log = read(path)
    if isinstance(log, Catalogue):
        raise KarmafunnelError(f"{path}: needs a log with requests, found a catalogue of {log.items.height} items")
    require(log, but)
    return log


@main.command()
@click.option(
    "--out", "folder_out", type=folder, default=Path("out/demo"), show_default=True, help="Where log, Run and report go."
)
@seed_option
@force_flag
def demo(folder_out: Path, seed: int, force: bool) -> None:
    """Make a World, fit KARMA, replay a funnel that it drives, then put it under load. Tables and two HTML pages. No network."""
    from .simulator.load.arrivals import Poisson
    from .simulator.load.credit import quality_under_load
    from .simulator.load.profile import profile as run_profile
    from .simulator.load.queueing import simulate
    from .simulator.load.services import with_policies
    from .simulator.replay.degrade import replay_paths
    from .simulator.replay.prepare import prepare
    from .simulator.replay.recipe import load_recipe
    from .simulator.report.load_page import load_page
    from .simulator.report.run_page import report as write_report
    from .simulator.world import generate

    start = time.perf_counter()
    kinds = {"log": LOG, "run": RUN_AND_PATHS, "load": SIMULATION, "services.toml": SERVICES, "report.html": PAGE, "load.html": PAGE}
    for name, kind in kinds.items():
        claimed(folder_out / name, kind, force=force)
    err.print("making a World: 2,000 items, 600 users, 4,000 requests")
    generate(items=2000, users=600, requests=4000, seed=seed, images=False).write(folder_out / "log")
    log = Log.open(folder_out / "log")
    recipe, cache = load_recipe("karma", log), folder_out / "cache"
    fitted = prepare(recipe, log, seed, cache=cache, console=err)
    err.print("timing its stages")
    deployed = with_policies(run_profile(recipe, log, seed=seed, seconds=3.0, fitted=fitted, console=err).services)
    deployed.write(folder_out / "services.toml")
    run = folder_out / "run"
    told: dict[str, Any] = {"seed": seed, "console": err, "cache": cache, "command": "karmafunnel demo"}
    replay_paths(recipe, log, run, deployed.paths(), fitted=fitted, **told)
    print_stage_table(run)
    write_report([run], folder_out / "report.html")
    rate = 0.75 / max(stage.utilisation(1.0) for stage in deployed.stages)
    with progress_bar(err) as bar:
        task = bar.add_task("simulating", total=None)
        step = lambda what, i, total: bar.update(task, description=what, completed=i, total=total)
        worth = quality_under_load({"services": deployed}, run, Poisson(rate), 5000, seed, progress=step)
    simulation = simulate(
        deployed, Poisson(rate), 5000, seed, out=folder_out / "load", events=True, says={"command": "karmafunnel demo"},
        also=lambda _, folder: worth.write(folder),
    )  # fmt: skip
    load_page(simulation, folder_out / "load.html", worth=worth, command="karmafunnel demo")
    print_simulation(simulation)
    print_worth(worth)
    again = f"karmafunnel queue {folder_out / 'services.toml'} --rate {2 * rate:.0f} --run {run} --out {folder_out / 'double'}"
    err.print(
        f"{time.perf_counter() - start:.0f} s. Open {folder_out / 'report.html'} and {folder_out / 'load.html'} in a browser; go on with:\n"
        f"  karmafunnel measure {run} HR@20 --slice target\n  {again}", soft_wrap=True,
    )  # fmt: skip


def default_measures(run: Path) -> list[str]:
    """What a first look wants, as far as the Run can say it."""
    meta = read_json(run / "run.json")
    ks = sorted({10, 50, min(stage["k"] for stage in meta["stages"])})
    names = ["survival", *[f"HR@{k}" for k in ks], "nDCG@10"]
    if meta["log"]["has"]["price"]:
        names.append("GMV-HR@50")
    if meta["log"]["has"]["exposures"]:
        names += ["gAUC:request:exposures", "AUC"]
    return names


def print_stage_table(run: Path, names: list[str] | None = None) -> None:
    from .simulator.measure.compare import Run, measure
    from .simulator.report.table import print_table

    print_table(measure(Run.open(run), names or default_measures(run)), out)


@main.command()
@click.argument("source")
@click.argument("raw", type=folder)
@log_argument
@force_flag
def convert(source: str, raw: Path, log: Path, force: bool) -> None:
    """Convert a public data set: SOURCE is its name, RAW its folder as published, LOG the folder to write.

    Sources: trivago, online_retail, amazon_office, amazon_games, amazon_catalog, eshop_clothing.
    """
    from .simulator.datasets import convert as run_convert

    start = time.perf_counter()
    claimed(log, LOG, raw, force=force)
    print_counts(log, run_convert(source, raw, log).meta)
    err.print(f"{time.perf_counter() - start:.1f} s")


@main.command()
@log_argument
@click.argument("smaller", type=folder)
@click.option(
    "--users", type=Number("users_share"), default=0.1, show_default=True,
    help="Share of the users, each kept with all of their requests.",
)
@click.option("--seed", type=Number("seed"), default=0, show_default=True, help="Draws the users; a smaller share lies inside a larger one.")
@force_flag
def sample(log: Path, smaller: Path, users: float, seed: int, force: bool) -> None:
    """Write the log of a share of LOG's users into the folder SMALLER: windows, catalogue, what is eligible and what is cold stay.

    A World's truth stays with the whole log.
    """
    claimed(smaller, LOG, log, force=force)
    made = open_log(log, but=["users"]).sample(users, seed)
    made.write(smaller)
    print_counts(smaller, made.meta)


def print_counts(log: Path, meta: dict[str, Any]) -> None:
    table = Table("what", "count", title=f"{meta['name']}: {log}")
    for name, count in read_json(log / "log.json")["counts"].items():
        table.add_row(name, f"{count:,}")
    for name, count in meta["set_aside"].items():
        table.add_row(f"set aside: {name}", f"{count:,}" if isinstance(count, (int, float)) else str(count))
    out.print(table)
    for sentence in meta["lacks"]:
        err.print(f"lacks: {sentence}")


@main.command()
@log_argument
@click.option("--items", type=Number("world_items"), default=2000, show_default=True)
@click.option("--users", type=Number("world_users"), default=600, show_default=True)
@click.option("--requests", type=Number("world_requests"), default=4000, show_default=True)
@seed_option
@click.option("--catalogue", type=folder, help="Shoppers live on this catalogue (such as a converted amazon_catalog).")
@click.option(
    "--semantic", type=Number("semantic"), default=0.5, show_default=True,
    help="How much of taste is semantic (0..1) rather than habit and item identity.",
)
@click.option("--exploration", type=Number("exploration"), default=0.1, show_default=True, help="Share of shown slots filled at random.")
@click.option("--images", is_flag=True, help="Render product images as well.")
@force_flag
def world(
    log: Path,
    items: int,
    users: int,
    requests: int,
    seed: int,
    catalogue: Path | None,
    semantic: float,
    exploration: float,
    images: bool,
    force: bool,
) -> None:
    """Generate a marketplace with known truth and write its log, with the truth beside it."""
    from .simulator.world import generate

    start = time.perf_counter()
    claimed(log, LOG, catalogue, force=force)
    given = None
    if catalogue is not None:
        found = read(catalogue)
        given = Catalogue(found.items, found.meta)
    made = generate(
        items=items,
        users=users,
        requests=requests,
        seed=seed,
        semantic=semantic,
        catalogue=given,
        images=images,
        exploration=exploration,
    )
    made.write(log)
    counts = read_json(log / "log.json")["counts"]
    out.print(f"{log}: " + ", ".join(f"{n:,} {name}" for name, n in counts.items()))
    err.print(f"{time.perf_counter() - start:.1f} s")


@main.command()
@log_argument
@json_flag
@click.option("--seal", is_flag=True, help="First take the tables as they are now, changed on purpose: counts and checksums are written anew.")
def validate(log: Path, as_json: bool, seal: bool) -> None:
    """Check a log folder: PASS, FAIL or N/A a check, with example ids. Exit code 1 on a failure."""
    from .checks import print_checks
    from .checks import validate as run_checks

    if seal:
        claimed(log, LOG, force=True)
        for line in seal_log(log) or ["nothing has changed"]:
            err.print(line, soft_wrap=True)
    checks = run_checks(log)
    if as_json:
        print(json.dumps([vars(c) for c in checks], indent=1, default=str))
    else:
        print_checks(checks, out)
    if any(c.status == "FAIL" for c in checks):
        click.get_current_context().exit(1)


@main.command()
@log_argument
@json_flag
@click.option("--html", type=folder, help="Also write plots into this file.")
def describe(log: Path, as_json: bool, html: Path | None) -> None:
    """Sizes, ranges, CTR by position, prices, popularity, eligibility and the ceiling of a log."""
    from .simulator.measure import describe as describing

    if html:
        claimed(html, PAGE, log)
    made = read(log)
    stats = describing.describe(made)
    if as_json:
        print(json.dumps(stats, indent=1, default=str))
    else:
        describing.print_description(stats, out)
    if html:
        from .simulator.report.log_page import write_html

        write_html(made, stats, html)
        err.print(f"plots: {html}")


@contextmanager
def cache_folder(no_cache: bool) -> Iterator[Path]:
    from .simulator.replay.prepare import cache_root

    if no_cache:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
    else:
        yield cache_root()


@main.command()
@click.argument("recipe")
@log_argument
@click.option("--out", "run", type=folder, required=True, help="The Run folder to write.")
@seed_option
@click.option("--device", default="cpu", show_default=True, help="Where neural models are fitted and run: cpu, cuda.")
@click.option("--limit", type=Number("limit"), help="Replay so many requests, evenly spaced in time.")
@click.option(
    "--window",
    type=click.Choice(["W3", "W2b"]),
    default="W3",
    show_default=True,
    help="W2b is for tuning; W3 is looked at once, at the end.",
)
@click.option("--no-cache", is_flag=True, help="Fit everything anew.")
@click.option("--path", "paths", multiple=True, help="Replay this degradation path as well, such as recall=popular,rank=skip.")
@click.option(
    "--paths", "services", type=folder, metavar="SERVICES", help="Replay every path that a request can take there as well."
)
@click.option(
    "--stale-minutes", type=Number("stale_minutes"),
    help="How often near-line interests are refreshed, for paths such as karma=stale.",
)
@force_flag
@worker_flags
def replay(
    recipe: str, log: Path, run: Path, seed: int, device: str, limit: int | None, window: str, no_cache: bool, paths: tuple[str, ...],
    services: Path | None, stale_minutes: float | None, force: bool, workers: int | None, ray: str | None,
) -> None:  # fmt: skip
    """Fit the funnel of RECIPE on LOG and replay the last window through it.

    RECIPE is a Python file, or the name of one that ships (baseline, ...). Interrupted and started again, it goes on. Degradation
    paths (--path, --paths) become Runs in RUN/paths: stages skipped, cut or replaced by a fallback, interests that are stale.
    """
    from .simulator.load.services import Services
    from .simulator.replay.recipe import load_recipe
    from .simulator.replay.replay import replay as run_replay

    paths = tuple(dict.fromkeys([*paths, *(Services.read(services).paths() if services else [])]))
    if stale_minutes is not None and not paths:
        raise KarmafunnelError(f"replay: --stale-minutes {stale_minutes:g} needs a --path such as karma=stale, found none")
    claimed(run, RUN_AND_PATHS if paths else RUN, log, recipe, services, force=force)
    opened = open_log(log)
    common: dict[str, Any] = {"seed": seed, "device": device, "limit": limit, "window": window, "console": err}
    common["command"] = shlex.join(["karmafunnel", *sys.argv[1:]])
    with cache_folder(no_cache) as cache:
        if not paths:
            run_replay(load_recipe(recipe, opened), opened, run, cache=cache, workers=workers_of(workers, ray), **common)
        else:
            from .simulator.replay.degrade import replay_paths

            if workers is not None or ray is not None:
                raise KarmafunnelError("replay: paths are replayed in this process; needs no --workers and no --ray, found one")
            replay_paths(
                load_recipe(recipe, opened), opened, run, list(paths), stale_minutes=stale_minutes, cache=cache, **common
            )
    if paths:
        print_paths(run)
    else:
        print_stage_table(run)


def print_paths(run: Path) -> None:
    """What the last stage of each path is worth."""
    from .simulator.measure.compare import measure
    from .simulator.replay.degrade import runs_of
    from .simulator.report.table import between, number

    runs = runs_of(run)
    k = min(r.k(r.stages[-1]) for r in runs.values())
    names = list(dict.fromkeys([f"HR@{min(k, 10)}", f"HR@{k}"]))
    if runs["full"].meta["log"]["has"]["price"]:
        names.append(f"GMV-HR@{k}")
    table = Table(title="what the last stage shows, by path", title_justify="left")
    for head in ("path", *names):
        table.add_column(head, justify="left" if head == "path" else "right", overflow="fold")
    for path, one in runs.items():
        rows = {r["measure"]: r for r in measure(one, names, by_stage=False) if r["stage"] == one.stages[-1]}
        table.add_row(path, *(f"{number(rows[n]['value'])}\n{between(rows[n])}" for n in names))
    out.print(table)


@main.command()
@click.argument("recipe")
@log_argument
@click.option("--request", "request_id", required=True, help="A request_id of the log.")
@click.option("--item", "item_id", help="An item_id; without it, the truth and the best of the last stage.")
@seed_option
@click.option("--no-cache", is_flag=True, help="Fit everything anew.")
def explain(recipe: str, log: Path, request_id: str, item_id: str | None, seed: int, no_cache: bool) -> None:
    """Stage by stage, why items are where they are in one request."""
    from .simulator.replay.prepare import prepare
    from .simulator.replay.recipe import load_recipe

    opened = open_log(log)
    with cache_folder(no_cache) as cache:
        fitted = prepare(load_recipe(recipe, opened), opened, seed, cache=cache, console=err)
        frame = fitted.explain(request_id, item_id)
    row = opened.request_ids.tolist().index(request_id)
    if query := opened.requests["query"][row]:
        out.print(f"query: {query}")
    past = opened.asof.history(np.array([row]), 8).items[0]
    for what, items in (("history", past[past >= 0]), ("came next", fitted.scene.truth.filter(pl.col("request") == row)["item"])):
        titles = "; ".join(str(opened.items["title"][int(i)] or opened.item_ids[int(i)])[:60] for i in items)
        out.print(f"{what}: {titles or 'nothing'}")
    for name, embedding in fitted.scene.embeddings.items():
        if told := embedding.read(np.array([row])):
            out.print(f"the interest of {name} reads: {told[0]}")
    table = Table(*["item", "stage", "rank", "of", "kept", "score", "needed", "channel", "why"], title=f"request {request_id}")
    for row in frame.sort("item_id", maintain_order=True).iter_rows(named=True):
        needed = "" if row["needed"] is None else f"{row['needed']:.4g}"
        item = f"{row['item_id']} {(row['title'] or '')[:40]}"
        table.add_row(
            item,
            row["stage"],
            str(row["rank"]),
            str(row["of"]),
            "yes" if row["kept"] else "no",
            f"{row['score']:.4g}",
            needed,
            row["channel"],
            row["why"],
        )
    out.print(table)


@main.command()
@click.argument("run", type=folder)
@click.argument("measures", nargs=-1, required=True, metavar="MEASURE...")
@click.option("--slice", "slice_name", help="target, repeat, user, price or query.")
@click.option("--format", "fmt", type=click.Choice(["table", "csv", "markdown", "latex"]), default="table", show_default=True)
@json_flag
def measure(run: Path, measures: tuple[str, ...], slice_name: str | None, fmt: str, as_json: bool) -> None:
    """Ask a Run for measures, stage by stage, with 95% intervals: HR@50, GMV-HR@50, gAUC:request:exposures, ..."""
    from .simulator.measure.compare import Run, added
    from .simulator.measure.compare import measure as run_measure
    from .simulator.measure.evaluate import LISTS, parse_all
    from .simulator.report import table

    opened = Run.open(run)
    print_rows(run_measure(opened, list(measures), slice=slice_name), table, fmt, as_json)
    if fmt == "table" and not as_json:
        ranked = [m for m in parse_all(measures) if m.name in LISTS]
        gains = [row for row in added(opened, ranked, slice=slice_name) if row["difference"] is not None]
        if gains:
            out.print("\nWhat each stage adds to the order of the stage before it, at one depth:")
            table.print_comparison(gains, out)


def print_rows(rows: list[dict[str, Any]], table: Any, fmt: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
    elif fmt == "table":
        table.print_table(rows, out)
    else:
        print(visible({"csv": table.to_csv, "markdown": table.to_markdown, "latex": table.to_latex}[fmt](rows)), end="")


@main.command()
@click.argument("run_a", type=folder)
@click.argument("run_b", type=folder)
@click.argument("measures", nargs=-1, required=True, metavar="MEASURE...")
@json_flag
def compare(run_a: Path, run_b: Path, measures: tuple[str, ...], as_json: bool) -> None:
    """Compare two Runs of one log, paired on the same requests: B - A with its interval, Holm-corrected."""
    from .simulator.measure.compare import Run
    from .simulator.measure.compare import compare as run_compare
    from .simulator.report.table import print_comparison

    rows = run_compare(Run.open(run_a), Run.open(run_b), list(measures))
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        print_comparison(rows, out)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=folder, metavar="RUN...")
@click.option("--out", "html", type=folder, default=Path("report.html"), show_default=True)
def report(runs: tuple[Path, ...], html: Path) -> None:
    """Write one self-contained HTML file about one or more Runs."""
    from .simulator.report.run_page import report as write_report

    claimed(html, PAGE, *runs)
    write_report(list(runs), html)
    out.print(str(html), soft_wrap=True)


ARRIVALS = ("poisson", "daily", "flash")


def arrivals_of(kind: str | None, rate: float | None, log: Path | None, n: int | None) -> tuple[Any, int]:
    """Arrivals as the flags say, and how many."""
    from .simulator.load.arrivals import Daily, Flash, Poisson, Trace

    if log is not None:
        if kind is not None:
            raise KarmafunnelError(f"queue: --log plays the log's own times; needs no --arrivals, found {kind}")
        opened = open_log(log)
        from .simulator.replay.prepare import requests_of

        trace = Trace.of(opened, requests_of(opened, "W3", None), rate)
        return trace, len(trace.ids) if n is None or n > len(trace.ids) else n
    if rate is None:
        raise KarmafunnelError("queue: needs --rate (requests a second) or --log (the log's own times), found neither")
    made = {"poisson": Poisson, "daily": Daily, "flash": Flash}[kind or "poisson"]
    return made(rate), 20_000 if n is None else n


@main.command()
@click.argument("services", type=folder)
@click.option("--rate", type=Number("rate"), help="Requests a second; with --log, its time is scaled to this rate.")
@click.option("--log", type=folder, help="Requests arrive as those of this log's last window did.")
@click.option(
    "--arrivals", type=click.Choice(ARRIVALS), help="At random (poisson, the default), a day's curve with bursts, a flash crowd."
)
@click.option("--run", type=folder, help="A Run whose paths were replayed: tells what was shown is worth, also at other loads.")
@click.option("--measure", "measures", multiple=True, help="Measures of what was shown, with --run; HR@10 and GMV-HR@10 without.")
@click.option("--beside", multiple=True, type=folder, help="Another SERVICES: the same requests through it, differences paired.")
@click.option("--requests", "n", type=Number("requests"), help="How many; 20,000 without it, or all of the log's.")
@seed_option
@click.option("--events/--no-events", default=True, show_default=True, help="Keep what happened to each request.")
@click.option("--out", "folder_out", type=folder, required=True, help="Where tables, load.html and trace.json go.")
@force_flag
@json_flag
def queue(
    services: Path, rate: float | None, log: Path | None, arrivals: str | None, run: Path | None, measures: tuple[str, ...],
    beside: tuple[Path, ...], n: int | None, seed: int, events: bool, folder_out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Send requests through a deployment: latency, utilisation, who was shown what, and (with --run) what that is worth.

    SERVICES is a TOML file: `karmafunnel profile` writes one, and a person can (README, "Under load"). With --run, quality and money
    over offered load and what an hour's outage of each stage costs. load.html has the plots, trace.json opens in Perfetto.
    """
    from .simulator.load.queueing import Simulation, simulate
    from .simulator.load.services import Services
    from .simulator.load.timeline import chrome_trace
    from .simulator.report.load_page import load_page

    claimed(folder_out, SIMULATION, services, *beside, log, run, force=force)
    if measures and run is None:
        raise KarmafunnelError(f"queue: --measure {measures[0]} asks what was shown, and needs --run, found none")
    if beside and run is None:
        raise KarmafunnelError(f"queue: --beside {beside[0]} compares what was shown, and needs --run, found none")
    stems = [path.stem for path in (services, *beside)]
    name = lambda path: path.stem if stems.count(path.stem) == 1 else str(path)
    policies = {name(path): Services.read(path) for path in (services, *beside)}
    deployed = policies[name(services)]
    coming, count = arrivals_of(arrivals, rate, log, n)
    command = shlex.join(["karmafunnel", *sys.argv[1:]])
    worth = None
    with progress_bar(err) as bar:
        task = bar.add_task("simulating", total=count)
        if run is not None:  # before anything is written: a path may not have been replayed
            from .simulator.load.credit import quality_under_load

            step = lambda what, i, total: bar.update(task, description=what, completed=i, total=total)
            worth = quality_under_load(policies, run, coming, count, seed, measures=measures, progress=step)
            bar.update(task, description="simulating", completed=0, total=count)

        def write_more(made: Simulation, folder: Path) -> None:
            if worth:
                worth.write(folder)
            if events:
                chrome_trace(made, folder / "trace.json")
            load_page(made, folder / "load.html", worth=worth, command=command)

        simulation = simulate(
            deployed, coming, count, seed, out=folder_out, events=events, progress=lambda i: bar.update(task, completed=i),
            says={"command": command}, also=write_more,
        )  # fmt: skip
    if as_json:
        print(json.dumps(simulation.summary() | ({"quality": worth.rows} if worth else {}), indent=1))
        return
    print_simulation(simulation)
    if worth:
        print_worth(worth)
    err.print(f"open {folder_out / 'load.html'} in a browser" + f", {folder_out / 'trace.json'} at ui.perfetto.dev" * events)


def print_simulation(simulation: Any) -> None:
    """Stages, then the whole."""
    found = simulation.summary()
    table = Table(
        title=f"{found['services']}: {found['requests']:,} requests, {found['rate']:,.1f} a second", title_justify="left"
    )
    heads = {
        "servers": "servers", "utilisation": "busy", "mean_batch": "batch", "mean_wait_ms": "wait ms", "p50_ms": "p50", "p95_ms": "p95",
        "p99_ms": "p99",
    }  # fmt: skip
    for head in ("stage", *heads.values(), "lost"):
        table.add_column(head, justify="left" if head in ("stage", "lost") else "right", overflow="fold")
    told = lambda x: "" if x is None else f"{x:,}" if isinstance(x, int) else f"{x:,.2f}" if x < 10 else f"{x:,.1f}"
    for line in simulation.stages.iter_rows(named=True):
        causes = {"shed": "shed", "abandoned": "out of patience", "late": "late", "overdue": "overdue", "failed": "crashed"}
        lost = ", ".join(f"{line[key]:,} {word}" for key, word in causes.items() if line[key])
        table.add_row(line["stage"], *(told(line[key]) for key in heads), lost)
    out.print(table)
    for name, one in found["latency"].items():
        sure = "" if one["low"] is None else f" [{one['low']:,.1f}, {one['high']:,.1f}]"
        out.print(f"latency {name.removesuffix('_ms')} {one['value']:,.1f}{sure} ms")
    shares = lambda said: ", ".join(f"{name} {share:.2%}" for name, share in said.items())
    out.print(f"goodput {found['goodput']:,.1f} a second; outcomes: {shares(found['outcomes'])}", soft_wrap=True)
    out.print(f"paths: {shares(found['paths'])}", soft_wrap=True)
    for name in found["rarely_crashing"]:
        out.print(f"{name}: fewer than ten crashes are to be expected in so short a run; ask for more --requests", style="bold")
    for name, growth in found["growing"].items():
        load = simulation.services[name].utilisation(found["rate"])
        more = (
            f"{name} is offered {load:.2f} times what its servers can do, and nothing bounds its queue: it grows by {growth:,.1f}"
        )
        more += " requests a second, and the latencies above with --requests"
        out.print(more, style="bold red", soft_wrap=True)


def print_worth(worth: Any) -> None:
    """Quality of what was shown, over offered load, and the price of outages."""
    from .simulator.report.table import number

    span = lambda row, name="": f"[{number(row[f'{name} low'.strip()])}, {number(row[f'{name} high'.strip()])}]"
    table = Table("policy", "measure", "value", "difference", title="what was shown is worth", title_justify="left")
    for row in worth.rows:
        beside = "" if row["difference"] is None else f"{number(row['difference'], signed=True)} {span(row, 'difference')}"
        table.add_row(
            row["policy"], row["measure"], f"{number(row['value'])} {span(row) if row['low'] is not None else ''}", beside
        )
    out.print(table)
    names = list(dict.fromkeys(row["measure"] for row in worth.rows))
    table = Table(title="over offered load", title_justify="left")
    for head in ("policy", "a second", "goodput", "p99 ms", "full", "nothing", *names):
        table.add_column(head, justify="left" if head == "policy" else "right")
    for line in worth.curve.iter_rows(named=True):
        plain = [
            f"{line['rate']:,.1f}",
            f"{line['goodput']:,.1f}",
            f"{line['p99_ms']:,.1f}" if line["p99_ms"] is not None else "n/a",
        ]
        table.add_row(
            line["policy"], *plain, f"{line['full']:.1%}", f"{line['nothing']:.1%}", *(number(line[name]) for name in names)
        )
    out.print(table)
    if worth.outages is None:
        return
    table = Table(
        "stage", "its requests take", f"lost in an hour, {worth.currency}", title="an hour's outage", title_justify="left"
    )
    for line in worth.outages.iter_rows(named=True):
        lost = f"{line['lost']:,.0f}" if not line["note"] else ""
        lost += f" [{line['low']:,.0f}, {line['high']:,.0f}]" if line["low"] is not None else ""
        table.add_row(line["stage"], line["path"], line["note"] or f"{lost} of {line['money']:,.0f}")
    out.print(table)


@main.command()
@click.argument("simulation", type=folder)
@click.argument("request", type=Number("request"))
@json_flag
def timeline(simulation: Path, request: int, as_json: bool) -> None:
    """What happened to one REQUEST (its number, in order of arrival) of a SIMULATION that `queue` wrote."""
    from .simulator.load.queueing import Simulation
    from .simulator.load.timeline import timeline as events_of

    opened = Simulation.open(simulation)
    rows = events_of(opened, request)
    if as_json:
        print(json.dumps(rows.to_dicts(), indent=1))
        return
    line = opened.requests.row(request, named=True)
    title = f"request {request}: {line['outcome']} after {line['latency_ms']:,.2f} ms, path {line['path']}"
    table = Table("ms", "stage", "event", "server", "waiting", title=title, title_justify="left")
    for row in rows.iter_rows(named=True):
        table.add_row(
            f"{row['since_ms']:,.2f}",
            row["stage"],
            row["event"],
            "" if row["server"] is None else str(row["server"]),
            str(row["waiting"]),
        )
    out.print(table)


@main.command(name="plan")
@click.argument("services", type=folder)
@click.option("--rate", type=Number("rate"), required=True, help="Requests a second, at random.")
@click.option("--p99-ms", type=Number("p99_ms"), required=True, help="The target: most that p99 of the latency end to end may be.")
@click.option("--lost", type=Number("lost"), default=0.001, show_default=True, help="Share of requests that may be degraded or shown nothing.")
@click.option("--requests", "n", type=Number("planned_requests"), default=20_000, show_default=True, help="Requests of each simulation.")
@seed_option
@click.option("--out", "folder_out", type=folder, help="Where services.toml, plan.json, what_if.csv and load.html go.")
@force_flag
@json_flag
def plan_command(
    services: Path, rate: float, p99_ms: float, lost: float, n: int, seed: int, folder_out: Path | None, force: bool, as_json: bool
) -> None:
    """Find the cheapest servers of each stage that meet a target of p99 latency.

    Everything but the servers is taken from SERVICES: batches, deadlines, fallbacks, what a server costs. Prints the servers, the cost of a
    million requests, what if (other rates, one server less or more), and the highest rate that still meets the target.
    """
    from .simulator.load.capacity import plan as make_plan
    from .simulator.load.services import Services

    if folder_out is not None:
        claimed(folder_out, PLAN, services, force=force)
    with progress_bar(err) as bar:
        task = bar.add_task("simulating", total=None)
        found = make_plan(
            Services.read(services), rate, p99_ms, lost=lost, n=n, seed=seed,
            progress=lambda what, i: bar.update(task, description=what, completed=i),
        )  # fmt: skip
        if folder_out is not None:
            bar.update(task, description="the page of the plan")
            write_plan(found, folder_out)
    if as_json:
        print(json.dumps(found.summary(), indent=1))
        return
    print_plan(found)
    if folder_out is not None:
        err.print(f"open {folder_out / 'load.html'} in a browser; deploy {folder_out / 'services.toml'}")


def write_plan(found: Any, folder_out: Path) -> None:
    """The plan, its deployment, and the page of one simulation of it: all of it or nothing."""
    from .simulator.load.arrivals import Poisson
    from .simulator.load.queueing import simulate
    from .simulator.report.load_page import load_page

    simulation = simulate(found.services, Poisson(found.rate), found.n, found.seed, events=True)
    with atomic_folder(folder_out, sealed=True) as temporary:
        found.services.write(temporary / "services.toml")
        found.what_if.write_csv(temporary / "what_if.csv")
        write_json(temporary / "plan.json", found.summary())
        load_page(simulation, temporary / "load.html", plan=found, command=shlex.join(["karmafunnel", *sys.argv[1:]]))


def print_plan(found: Any) -> None:
    """Servers, what they cost, what if, headroom."""
    from .simulator.report.load_page import p99_of
    from .simulator.report.table import number

    title = f"{found.services.name}: p99 within {found.target_ms:g} ms at {found.rate:,.1f} a second"
    table = Table(title=title, title_justify="left")
    for head in ("stage", "servers", "fewest", "busy", "p99 ms", "cost an hour"):
        table.add_column(head, justify="left" if head == "stage" else "right")
    for line in found.stages.iter_rows(named=True):
        cells = [f"{line['servers']:,}", f"{line['fewest']:,}", f"{line['utilisation']:.2f}", f"{line['p99_ms']:,.1f}"]
        table.add_row(line["stage"], *cells, number(line["cost_per_hour"]))
    out.print(table)
    table = Table(title="what if", title_justify="left")
    for head in ("change", "a second", "p99 ms", "degraded", "cost of a million", "meets"):
        table.add_column(head, justify="left" if head == "change" else "right")
    for line in found.what_if.iter_rows(named=True):
        degraded = "" if line["degraded"] is None else f"{line['degraded']:.2%}"
        figures = [f"{line['rate']:,.1f}", p99_of(line), degraded, number(line["cost_per_million"])]
        table.add_row(line["change"], *figures, "yes" if line["meets"] else "no", style=None if line["meets"] else "dim")
    out.print(table)
    sure = "nothing cheaper does, as far as more servers never hurt" if found.proven else "not everything cheaper was tried"
    tell = lambda text: out.print(text, soft_wrap=True)
    tell(f"worst p99 of {found.seeds} seeds {found.p99_ms:,.1f} ms, degraded or shown nothing {found.degraded:.2%}; {sure}")
    tell(f"cost of a million requests {number(found.cost_per_million)}, an hour {number(found.services.cost_per_hour)}")
    tell(f"headroom: meets the target up to {found.headroom:,.1f} a second ({found.headroom / found.rate - 1:+.0%})")


@main.command(name="table")
@click.argument("recipe")
@log_argument
@click.option("--only", multiple=True, metavar="ROW", help="Only these rows, beside the one that they are held against.")
@click.option("--against", metavar="ROW", help="Hold the rows against this one; without it, against the recipe's own.")
@click.option("--seed", "seeds", type=Number("seed"), multiple=True, help="Only these seeds; without it, those of the recipe.")
@click.option("--window", type=click.Choice(["W3", "W2b"]), default="W3", show_default=True, help="W2b is for tuning.")
@click.option("--limit", type=Number("limit"), help="Replay so many requests, evenly spaced in time.")
@click.option("--device", default="cpu", show_default=True, help="Where neural models are fitted and run: cpu, cuda.")
@click.option("--minutes", type=Number("minutes"), help="Begin no new cell after so long; the same command goes on later.")
@click.option("--no-cache", is_flag=True, help="Fit everything anew.")
@click.option("--out", "folder_out", type=folder, required=True, help="Where cells and table.html, .md, .csv, .tex, .json go.")
@force_flag
@worker_flags
def table_command(
    recipe: str, log: Path, only: tuple[str, ...], against: str | None, seeds: tuple[int, ...], window: str, limit: int | None,
    device: str, minutes: float | None, no_cache: bool, folder_out: Path, force: bool, workers: int | None, ray: str | None,
) -> None:  # fmt: skip
    """Fit and replay every row of RECIPE with several seeds and hold them against each other, with paired intervals.

    Resumable: what is done is not made again, nor is it to ask the same cells another question (--only, --against). A row that fails
    is a line of the table.
    """
    from .simulator.ablation.ablate import ablate, print_tables
    from .simulator.replay.recipe import load_recipe

    claimed(folder_out, TABLE, log, recipe, force=force)
    opened = open_log(log)
    loaded = load_recipe(recipe, opened)
    if against is not None:
        loaded = loaded.held_against(against)
    with cache_folder(no_cache) as cache:
        ablate(
            loaded, opened, folder_out, only=only, seeds=seeds, window=window, limit=limit, device=device,
            cache=cache, minutes=minutes, console=err, workers=workers_of(workers, ray), command=shlex.join(["karmafunnel", *sys.argv[1:]]),
        )  # fmt: skip
    print_tables(folder_out, out)


@main.command(name="fit-embedder")
@click.argument("recipe")
@log_argument
@click.option("--name", help="Which embedder of the recipe; without it, the only one.")
@click.option("--row", help="Take the embedders of this row of the recipe.")
@seed_option
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda.")
@click.option("--no-cache", is_flag=True, help="Fit everything anew.")
@click.option("--out", "folder_out", type=folder, required=True, help="The folder to write.")
@force_flag
def fit_embedder(
    recipe: str, log: Path, name: str | None, row: str | None, seed: int, device: str, no_cache: bool, folder_out: Path, force: bool
) -> None:
    """Fit one embedder of RECIPE on the first window of LOG and save it: weights, item vectors and facts of the fit.

    Pre-training and fine-tuning go on where an interrupted one was.
    """
    from .simulator.replay.prepare import check_device
    from .simulator.replay.recipe import load_recipe
    from .stages.base import Scene, fit_embedders

    claimed(folder_out, EMBEDDING, log, recipe, force=force)
    opened = open_log(log)
    found = load_recipe(recipe, opened)
    embedders = (found.row(row) if row else found).embedders
    if name is None and len(embedders) != 1:
        raise KarmafunnelError(
            f"recipe {found.name}: needs --name, one of {sorted(embedders)}{', or a --row' if found.rows else ''}"
        )
    name = name or next(iter(embedders))
    if name not in embedders:
        raise KarmafunnelError(f"recipe {found.name}: needs an embedder among {sorted(embedders)}, found {name!r}")
    check_device(device)
    with cache_folder(no_cache) as cache, err.status("fitting") as status:
        say = lambda message: err.print(message, style="dim", soft_wrap=True)
        scene = Scene(opened, {}, found.label, seed, device, say, lambda message: status.update(message), found.outside)
        embedding = fit_embedders({name: embedders[name]}, scene, cache)[name]
        embedding.save(folder_out)
    table = Table("what", "found", title=f"{embedders[name]!r}")
    items = embedding.items()
    table.add_row("item vectors", f"{items.shape[0]:,} x {items.shape[1]}, {int((items != 0).any(axis=1).sum()):,} not zero")
    for key, value in embedding.facts.items():
        table.add_row(key, json.dumps(value) if isinstance(value, (dict, list)) else str(value))
    out.print(table)
    out.print(
        f"{folder_out}: open it with the same value: {type(embedders[name]).__name__}(...).load(folder, log)"
    )


@main.command()
@click.argument("recipe")
@log_argument
@click.option(
    "--out", "services", type=folder, required=True, help="The TOML file to write; the fit is drawn into an HTML file beside it."
)
@seed_option
@click.option("--batches", type=Numbers("batch_size"), default="1,2,4,8,16", show_default=True, help="Requests at once.")
@click.option(
    "--cutoffs",
    type=Cutoffs("k"),
    multiple=True,
    metavar="STAGE=K,K",
    help="What a stage passes on, such as recall=100,400; without it 1/4, 1/2 and all of its k.",
)
@click.option("--seconds", type=Number("seconds"), default=15.0, show_default=True, help="Most time a stage.")
@click.option(
    "--load", type=Number("load"), default=1.0, show_default=True,
    help="Time the stages as they are at this utilisation: 1 is one pass after another.",
)
@click.option("--threads", type=Number("threads"), default=1, show_default=True)
@click.option("--window", type=click.Choice(["W3", "W2b"]), default="W3", show_default=True, help="Whose requests.")
@click.option("--policies", is_flag=True, help="Add a deadline, batches, waiting rooms and fallbacks to start from.")
@click.option("--no-cache", is_flag=True, help="Fit everything anew.")
@force_flag
@json_flag
def profile(
    recipe: str, log: Path, services: Path, seed: int, batches: list[int], cutoffs: tuple[tuple[str, list[int]], ...], seconds: float,
    load: float, threads: int, window: str, policies: bool, no_cache: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Time each stage of RECIPE's funnel on LOG over batch sizes and cutoffs, and fit its service time for `queue` and `plan`.

    The services file has one server a stage and, without --policies, no policies; edit it by hand.
    """
    from .simulator.ablation.ablate import processor
    from .simulator.load.profile import profile as run_profile
    from .simulator.load.services import with_policies
    from .simulator.replay.recipe import load_recipe
    from .simulator.report.profile_page import print_fits, profile_page

    html = services.parent / f"{services.stem}.html"
    if html == services:
        raise KarmafunnelError(f"profile: --out {services} needs to be a TOML file; the page goes into an .html file beside it")
    claimed(services, SERVICES, log, recipe, force=force)
    claimed(html, PAGE, log, recipe, force=force)
    opened = open_log(log)
    command = shlex.join(["karmafunnel", *sys.argv[1:]])
    note = f"{command}; {date.today()}, {processor()}, {os.cpu_count()} cores"
    with cache_folder(no_cache) as cache:
        found = run_profile(
            load_recipe(recipe, opened), opened, seed=seed, cache=cache, batches=batches, cutoffs=dict(cutoffs) or None, seconds=seconds,
            load=load, threads=threads, window=window, note=note, console=err,
        )  # fmt: skip
    if policies:
        found = replace(found, services=with_policies(found.services))
    found.write(services)
    profile_page(found, html)
    if as_json:
        print(
            json.dumps(
                {"services": tomllib.loads(found.services.toml()), "fits": found.fits, "cells": found.cells.to_dicts()}, indent=1
            )
        )
    else:
        print_fits(found, out)
    err.print(f"{services}; the fit is drawn in {html}", soft_wrap=True)


@main.command()
@json_flag
def doctor(as_json: bool) -> None:
    """Versions, threads, and what is slow here."""
    import torch

    facts: dict[str, Any] = {"karmafunnel": __version__, "python": platform.python_version(), "machine": platform.platform()}
    packages = ("numpy", "polars", "pyarrow", "torch", "lightgbm", "faiss-cpu", "scikit-learn", "bm25s", "plotly")
    facts |= {name: version(name) for name in packages}
    facts |= {"cores": os.cpu_count(), "torch threads": torch.get_num_threads(), "cuda": torch.cuda.is_available()}
    facts |= {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KARMAFUNNEL_CACHE")}
    a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    t = torch.from_numpy(a)
    for name, product in (("numpy", lambda: a @ a), ("torch", lambda: t @ t)):
        product()
        start = time.perf_counter()
        for _ in range(10):
            product()
        facts[f"{name} fp32 matmul, GFLOP/s"] = round(10 * 2 * 1024**3 / (time.perf_counter() - start) / 1e9)
    slow = []
    if facts["torch fp32 matmul, GFLOP/s"] < 20:
        slow.append("matrix products are slow: SASRec and DIN will be, too")
    if (os.cpu_count() or 1) > 1 and facts["OMP_WAIT_POLICY"].lower() != "passive":
        slow.append(
            "OMP_WAIT_POLICY is not 'passive': torch, faiss and LightGBM bring a thread pool each and spin against each other"
        )
    facts["slow here"] = slow or ["nothing found"]
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    table = Table("what", "found")
    for key, value in facts.items():
        table.add_row(key, "; ".join(value) if isinstance(value, list) else str(value))
    out.print(table)


if __name__ == "__main__":
    importlib.import_module("karmafunnel.cli").main()
