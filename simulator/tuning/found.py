"""What a search found: the front as a table and a plot, what the next millisecond buys, the best
funnel as a recipe.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...files import marked, write_text
from ..report.measure_table import between, significance
from ..report.page import Block, Details, Figure, Page, Pre, Section, Text, Warned, write_page
from ..report.pareto_plot import pareto_figure
from ..report.table import Cell, Table, number, to_markdown
from .recipe_text import recipe_text
from .search import Search, Trial, what

STEPS = 20  # milliseconds below the budget that are told one by one
WARNING = (
    "The funnel was chosen on W2b, and its stages stop training on W2b: values here are too good."
    " Replay the chosen recipe once on W3 for a result; intervals are those of one funnel and do"
    " not know that the best of many was taken."
)


def write_found(search: Search, command: str | None = None) -> list[Path]:
    """Write front.md, tune.html, trials.csv and best.py; returns their paths."""
    out, best = search.out, search.best(search.budget_ms)
    assert best is not None  # the cheapest funnel is within the budget
    front, buys = front_table(search), milliseconds_table(search)
    sentence, recipe = next_millisecond(search), best_recipe(search, best, command)
    parts = [*map(to_markdown, [front, *([buys] if buys.rows else [])]), sentence, WARNING]
    made = [
        write_text(out / "front.md", "\n\n".join(part.strip() for part in parts) + "\n"),
        write_text(out / "trials.csv", trials_csv(search)),
        write_text(out / "best.py", marked(recipe)),
    ]
    points = [point(search, trial) for trial in search.able]
    figure = pareto_figure(
        points,
        "ms",
        str(search.measure),
        x_title="milliseconds a request",
        y_title=f"{search.measure} on W2b",
        lower=["ms", *([str(search.measure)] if search.sign < 0 else [])],
    )
    blocks: list[Block] = [Figure(figure), front, *([buys] if buys.rows else [])]
    page = Page(
        f"Tuning on {search.log.name}",
        "karmafunnel tune",
        [Text(summary(search)), Text(sentence), Warned(WARNING)],
        [
            Section("front", "Front", "Quality against cost", blocks),
            Section("best", "Best", f"The best within {search.budget_ms:g} ms", [
                Pre(recipe, "best.py")
            ]),
            Section("trials", "Trials", "All funnels that were tried", [
                Details("all trials", [trials_table(search)])
            ]),
        ],
    )  # fmt: skip
    return [*made, write_page(out / "tune.html", page)]


def summary(search: Search) -> str:
    """How much was tried, and why it was not more."""
    states = [trial.state for trial in search.trials]
    requests = next(trial.requests for trial in search.trials if trial.state == "measured")
    told = [f"{states.count('measured')} measured on {requests:,} requests of W2b"]
    for state, words in (
        ("over", "over the limit"),
        ("behind", "behind a cheaper one on a sample"),
    ):
        if states.count(state):
            told.append(f"{states.count(state)} {words}")
    if states.count("failed"):
        told.append(f"{states.count('failed')} failed")
    funnels = "1 funnel" if len(states) == 1 else f"{len(states)} funnels"
    return f"{funnels} tried: {', '.join(told)}. {search.left}".rstrip()


def left_out(search: Search) -> list[str]:
    """Parameters of the recipe's funnel that this log gives no choice of."""
    return [name for name in search.recipe.defaults if name not in search.recipe.choices]


def point(search: Search, trial: Trial) -> dict[str, Any]:
    value = {"value": trial.value, "low": trial.low, "high": trial.high}
    return {"row": trial.name, "ms": {"value": trial.ms}, str(search.measure): value}


def front_table(search: Search) -> Table:
    """The front, cheapest first: cost, value, and the paired difference to the one before."""
    rows: list[list[str | Cell]] = []
    before: Trial | None = None
    for trial in search.front:
        value = {"value": trial.value, "low": trial.low, "high": trial.high}
        more: str | Cell = ""
        if before is not None:
            more = gain(search.difference(before, trial))
        beyond = " (beyond)" if (trial.ms or 0) > search.budget_ms else ""
        rows.append(
            [
                trial.name + beyond,
                what(search.recipe, trial),
                number(trial.ms, decimals=2),
                Cell(number(trial.value), between(value)),
                more,
            ]
        )
        before = trial
    heads = ["funnel", "choices", "ms a request", str(search.measure), "over the one before"]
    title = f"{search.log.name}, W2b: the most {search.measure} for the milliseconds"
    below = [
        "ms a request: of a replay on this machine, the median over chunks. beyond: over the"
        f" budget of {search.budget_ms:g} ms, to say what the next one buys. Intervals: 95%, over"
        " users; differences are paired on the same requests; * the interval excludes 0."
    ]
    return Table(heads, rows, text_columns=2, title=title, below=below)


def gain(row: dict[str, Any]) -> Cell:
    """A row of `compare` as a cell: the difference, its interval and its mark."""
    shown = {"value": row["difference"], "low": row["low"], "high": row["high"]}
    return Cell(number(row["difference"], True), between(shown, True), significance(row))


def milliseconds_table(search: Search) -> Table:
    """What each millisecond up to one beyond the budget buys, where it buys something."""
    rows: list[list[str | Cell]] = []
    steps = range(min(STEPS, math.ceil(search.budget_ms)), -2, -1)
    for low, high in pairwise(max(search.budget_ms - step, 0.0) for step in steps):
        a, b = search.best(low), search.best(high)
        if b is None or (a is not None and a.number == b.number):
            continue
        got: str | Cell = "the first funnel" if a is None else gain(search.difference(a, b))
        rows.append([f"{low:g} to {high:g} ms", b.name, got])
    heads = ["milliseconds", "funnel", f"gain in {search.measure}"]
    return Table(heads, rows, text_columns=2, title="what each further millisecond buys")


def next_millisecond(search: Search) -> str:
    """What the millisecond beyond the budget buys, in one sentence."""
    low, high = search.budget_ms, search.limit
    a, b = search.best(low), search.best(high)
    assert a is not None and b is not None
    which = f"The next millisecond, {low:g} to {high:g} ms,"
    if a.number == b.number:
        return f"{which} buys nothing that this search found."
    row = search.difference(a, b)
    sure = "" if row["better"] else ", which cannot be told from 0"
    return f"{which} buys {search.measure} {gain(row).flat.rstrip('*')}{sure} ({b.name})."


def trials_table(search: Search) -> Table:
    rows: list[Sequence[str | Cell]] = []
    for trial in search.trials:
        ms, value = number(trial.ms, decimals=2), number(trial.value)
        rows.append([trial.name, what(search.recipe, trial), trial.note or trial.state, ms, value])
    heads = ["funnel", "choices", "state", "ms a request", str(search.measure)]
    return Table(heads, rows, text_columns=3)


def trials_csv(search: Search) -> str:
    """All trials with their choices, one a line."""
    text = io.StringIO()
    names = ["number", "state", "ms", "value", "low", "high", "requests", "note", "funnel"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *search.recipe.choices])
    for trial in search.trials:
        own = [getattr(trial, name) for name in names]
        writer.writerow([*own, *(trial.chosen[name] for name in search.recipe.choices)])
    return text.getvalue()


def best_recipe(search: Search, best: Trial, command: str | None) -> str:
    """The text of best.py."""
    value = {"value": best.value, "low": best.low, "high": best.high}
    paragraphs = [
        f"The best funnel within {search.budget_ms:g} ms a request that a search found on"
        f" {search.log.name}, W2b: {search.measure} {number(best.value)} {between(value)},"
        f" {number(best.ms, decimals=2)} ms ({best.name} of {len(search.trials)}).",
        f"Choices: {what(search.recipe, best)}.",
        "It was chosen on W2b, and its stages stop training on W2b: replay it once on W3 for a"
        " result.",
        *([f"Made by: {command}"] if command else []),
    ]
    words = "\n\n".join(textwrap.fill(one, 96, break_long_words=False) for one in paragraphs)
    return recipe_text(search.recipe.chosen(best.chosen), words)
