"""Commands that fit and replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import polars as pl

from ...errors import KarmafunnelError, meant
from ...files import EMBEDDING, RUN, RUN_AND_PATHS, TABLE
from .figures import print_lowered, print_stage_table
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
    window_option,
    worker_flags,
)

if TYPE_CHECKING:
    from ..replay.options import RunOptions


@click.command()
@click.argument("recipe")
@log_argument
@click.option("--out", "run", type=folder, required=True, help="The Run folder to write.")
@seed_option
@device_option
@limit_option
@window_option
@no_cache_flag
@click.option(
    "--path",
    "paths",
    multiple=True,
    help="Replay this degradation path as well, such as recall=popular,rank=skip.",
)
@click.option(
    "--paths",
    "services",
    type=folder,
    metavar="SERVICES",
    help="Replay every path that a request can take there as well.",
)
@click.option(
    "--stale-minutes",
    type=Number("stale_minutes"),
    help="How often near-line user embeddings are refreshed, for paths such as karma=stale.",
)
@force_flag
@worker_flags
@verbose_flag
@takes_run_options
def replay(
    recipe: str,
    log: Path,
    run: Path,
    options: RunOptions,
    paths: tuple[str, ...],
    services: Path | None,
    stale_minutes: float | None,
    verbose: bool,
) -> None:
    """Fit the funnel of RECIPE on LOG and replay the last window through it.

    RECIPE is a Python file, or the name of one that ships (baseline, ...). Interrupted and started
    again, it goes on. Degradation paths (--path, --paths) become Runs in RUN/paths: stages skipped,
    cut or replaced by a fallback, or stale user embeddings.
    """
    from ..load.services import Services
    from ..replay.recipe import load_recipe
    from ..replay.replay import replay as run_replay

    paths = tuple(dict.fromkeys([*paths, *(Services.read(services).paths() if services else [])]))
    if stale_minutes is not None and not paths:
        raise KarmafunnelError(
            "replay",
            what=f"--stale-minutes {stale_minutes:g}",
            needs="a --path such as karma=stale",
            found="none",
        )
    claimed(run, RUN_AND_PATHS if paths else RUN, log, recipe, services, force=options.force)
    opened = open_log(log)
    loaded = load_recipe(recipe, opened)
    if not paths:
        run_replay(loaded, opened, run, options)
    else:
        from ..replay.degrade import replay_paths

        if options.workers is not None:
            raise KarmafunnelError(
                "replay",
                what="paths are replayed in this process;",
                needs="no --workers and no --ray",
                found="one",
            )
        replay_paths(loaded, opened, run, list(paths), options, stale_minutes=stale_minutes)
    if paths:
        print_paths(run)
    else:
        print_stage_table(run, verbose)


def print_paths(run: Path) -> None:
    """What the last stage of each path is worth."""
    from ..measure.compare import added, measure, telling
    from ..replay.degrade import runs_of
    from ..report.measure_table import valued
    from ..report.table import Cell, Table, print_table

    runs = runs_of(run)
    k, headline = min(r.most(r.stages[-1]) for r in runs.values()), telling([*runs.values()])
    names = list(dict.fromkeys([str(headline), f"HR@{k}"]))
    if runs["full"].meta["log"]["has"]["price"]:
        names.append(f"GMV-HR@{k}")
    lines: list[list[str | Cell]] = []
    for path, one in runs.items():
        rows = {
            r["measure"]: r
            for r in measure(one, names, by_stage=False)
            if r["stage"] == one.stages[-1]
        }
        lines.append([path, *(valued(rows[name]) for name in names)])
    title = "what the last stage shows, by path"
    print_table(Table(["path", *names], lines, title=title, look="measures"), out)
    print_lowered(added(runs["full"], [headline]))


@click.command()
@click.argument("recipe")
@log_argument
@click.option("--request", "request_id", required=True, help="A request_id of the log.")
@click.option(
    "--item",
    "item_id",
    help="An item_id; without it, the relevant items and the best of the last stage.",
)
@seed_option
@no_cache_flag
@takes_run_options
def explain(
    recipe: str, log: Path, request_id: str, item_id: str | None, options: RunOptions
) -> None:
    """Stage by stage, why items are where they are in one request."""
    from ..replay.prepare import prepare
    from ..replay.recipe import load_recipe
    from ..report.table import Table, print_table

    opened = open_log(log)
    fitted = prepare(load_recipe(recipe, opened), opened, options)
    frame = fitted.explain(request_id, item_id)
    row = opened.request_ids.tolist().index(request_id)
    if query := opened.requests["query"][row]:
        out.print(f"query: {query}")
    past = opened.asof.history(np.array([row]), 8).items[0]
    next_items = fitted.context.truth.filter(pl.col("request") == row)["item"]
    relevant = {opened.item_ids[i] for i in next_items}
    for what, items in (("history", past[past >= 0]), ("came next", next_items)):
        titles = "; ".join(
            str(opened.items["title"][int(i)] or opened.item_ids[int(i)])[:60] for i in items
        )
        out.print(f"{what}: {titles or 'nothing'}")
    for name, embedding in fitted.context.embeddings.items():
        if told := embedding.read(np.array([row])):
            out.print(f"the interest of {name} reads: {told[0]}")
    lines: dict[str, list[list[str]]] = {}
    last: dict[str, tuple[int, int]] = {}  # how far an item came, and its place there
    for step in frame.iter_rows(named=True):
        came = " (came next)" if step["item_id"] in relevant else ""
        item = f"{step['item_id']} {step['title'] or ''}{came}"
        found = lines.setdefault(item, [])
        last[item] = (last.get(item, (0, 0))[0] - step["kept"], step["rank"])
        place = f"{step['rank']:,} of {step['of']:,}" + ("" if step["kept"] else ", lost")
        numbers = [f"{x:.4g}" if x is not None else "" for x in (step["score"], step["needed"])]
        # one line a feature; of recall, which has none, the channels that found the item
        why = step["why"].replace(", ", "\n") or step["channel"].replace("+", " + ")
        found.append([step["stage"], place, *numbers, why])
    for item in sorted(lines, key=last.__getitem__):
        out.print()
        heads = ["stage", "rank", "score", "needed", "why"]
        print_table(Table(heads, lines[item], title=item, look="prose"), out)
    out.print(
        "\nneeded: the score of the last item that the stage kept. why: the channels that found the"
        " item, then the features that moved its score most, with what each added.",
        style="dim",
    )


@click.command(name="table")
@click.argument("recipe")
@log_argument
@click.option(
    "--only",
    multiple=True,
    metavar="ROW",
    help="Only these rows and their baseline.",
)
@click.option(
    "--against",
    metavar="ROW",
    help="Hold the rows against this one; without it, against the recipe's own.",
)
@click.option(
    "--seed",
    "seeds",
    type=Number("seed"),
    multiple=True,
    help="Only these seeds; without it, those of the recipe.",
)
@window_option
@limit_option
@device_option
@click.option(
    "--minutes",
    type=Number("minutes"),
    help="Begin no new cell after so long; the same command goes on later.",
)
@click.option(
    "--diagnose",
    is_flag=True,
    help="Also JS@50, readability, effective rank and attention of the embeddings.",
)
@no_cache_flag
@click.option(
    "--out",
    "folder_out",
    type=folder,
    required=True,
    help="Where cells and table.html, .md, .csv, .tex, .json go.",
)
@force_flag
@worker_flags
@verbose_flag
@takes_run_options
def table_command(
    recipe: str,
    log: Path,
    only: tuple[str, ...],
    against: str | None,
    seeds: tuple[int, ...],
    options: RunOptions,
    minutes: float | None,
    diagnose: bool,
    folder_out: Path,
    verbose: bool,
) -> None:
    """Fit and replay every row of RECIPE with several seeds and hold them against each other, with
    paired intervals.

    Resumable: what is done is not made again, nor is it to ask the same cells another question
    (--only, --against). A row that fails is a line of the table, and is tried again by the next
    call, after all others.
    """
    from ..ablation.ablate import ablate
    from ..ablation.formats import print_tables
    from ..replay.recipe import load_recipe

    claimed(folder_out, TABLE, log, recipe, force=options.force)
    opened = open_log(log)
    loaded = load_recipe(recipe, opened)
    if against is not None:
        loaded = loaded.with_baseline(against)
    left = ablate(
        loaded,
        opened,
        folder_out,
        options,
        only=only,
        seeds=seeds,
        minutes=minutes,
        diagnose=diagnose,
    )
    if not print_tables(folder_out, out, verbose) and not left:
        raise KarmafunnelError("table: every row failed")


@click.command(name="fit-embedder")
@click.argument("recipe")
@log_argument
@click.option("--name", help="Which embedder of the recipe; without it, the only one.")
@click.option("--row", help="Take the embedders of this row of the recipe.")
@seed_option
@device_option
@no_cache_flag
@click.option("--out", "folder_out", type=folder, required=True, help="The folder to write.")
@force_flag
@takes_run_options
def fit_embedder(
    recipe: str, log: Path, name: str | None, row: str | None, options: RunOptions, folder_out: Path
) -> None:
    """Fit one embedder of RECIPE on the first window of LOG and save it: weights, item vectors and
    facts of the fit.

    Pre-training and fine-tuning go on where an interrupted one was.
    """
    from ...stages.context import Context
    from ...stages.stage import fit_embedders
    from ..replay.prepare import check_device
    from ..replay.recipe import load_recipe
    from ..report.table import Table, print_table

    claimed(folder_out, EMBEDDING, log, recipe, force=options.force)
    opened = open_log(log)
    found = load_recipe(recipe, opened)
    embedders = (found.row(row) if row else found).embedders
    if name is None and len(embedders) != 1:
        raise KarmafunnelError(
            f"recipe {found.name}",
            needs=f"--name, one of {sorted(embedders)}",
            found="none",
            hint="or give a --row" if found.rows else "",
        )
    name = name or next(iter(embedders))
    if name not in embedders:
        raise KarmafunnelError(
            f"recipe {found.name}",
            needs=f"an embedder among {sorted(embedders)}",
            found=repr(name),
            hint=meant(name, embedders),
        )
    check_device(options.device)
    with err.status("fitting") as status:

        def say(message: str) -> None:
            err.print(message, style="dim", soft_wrap=True)

        context = Context(
            opened,
            {},
            found.label,
            options.seed,
            options.device,
            say,
            lambda message: status.update(message),
            found.custom_code,
        )
        embedding = fit_embedders({name: embedders[name]}, context, options.cache)[name]
        embedding.save(folder_out)
    items = embedding.items()
    vectors = (
        f"{items.shape[0]:,} x {items.shape[1]}, {int((items != 0).any(axis=1).sum()):,} not zero"
    )
    lines = [["item vectors", vectors]]
    facts = dict(embedding.facts)
    if "watched" in facts:
        facts["watched"] = f"{len(facts['watched'])} steps, in {folder_out / 'watched.csv'}"
    lines += [[name, _fact(facts[name])] for name in sorted(facts)]
    print_table(Table(["what", "found"], lines, title=repr(embedders[name]), look="prose"), out)
    kind = type(embedders[name]).__name__
    out.print(f"{folder_out}: open it with the same value: {kind}(...).load(folder, log)")


def _fact(value: Any) -> str:
    """A fact of a fit as a text: numbers of four digits, of a long list its first and its last."""

    def rounded(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: rounded(x[name]) for name in sorted(x)}
        return float(f"{x:.4g}") if isinstance(x, float) else x

    if isinstance(value, list) and len(value) > 2 and isinstance(value[0], dict):
        first, last = (json.dumps(rounded(value[i])) for i in (0, -1))
        return f"{first}, ... {len(value) - 2} more, {last}"
    if isinstance(value, list):
        return json.dumps([rounded(x) for x in value])
    return json.dumps(rounded(value)) if isinstance(value, dict) else str(rounded(value))
