"""Where do the language objectives pay? Five action losses, each alone and with every objective:

    karmafunnel table karma_atlas LOG --diagnose --out out/atlas          # the cells, one log
    python -m karmafunnel.benchmarks.studies.karma_atlas LOG... --out out # cells, table, pictures

The paper's own setting: no ids, nothing added to the user embedding, item texts read by the model
in training, `gen` and `rec` through the same language model and head with one weight. A softmax
over the catalogue needs frozen item texts and takes three times as many passes, which cost as much.
Rates and weights are the best of four trials each on W2b (karma_atlas_trials.py). Every row is held
against the action-only row of its own loss. The command says how long it will take, keeps every
cell and goes on where it was. It writes atlas.md and atlas.html: what the objectives add over how
good a loss is alone, what was watched over the steps, and attention maps.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from karmafunnel.benchmarks.studies.karma_controls import sentence_encoder
from karmafunnel.cli import OneLineErrors
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import say, write_text
from karmafunnel.keys import cache_root
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder, RandomVectors, TfidfSVD
from karmafunnel.models.karma import (
    KARMA,
    FrozenLM,
    InBatch,
    MaskedNCE,
    Pairwise,
    Softmax,
)
from karmafunnel.models.karma.action import ActionLoss
from karmafunnel.models.karma.train import PERPLEXITY, RANK
from karmafunnel.models.sasrec import SASRec
from karmafunnel.simulator.ablation.ablate import ablate
from karmafunnel.simulator.ablation.cells import Cell
from karmafunnel.simulator.ablation.cells import cells as cells_of
from karmafunnel.simulator.ablation.formats import tables_of
from karmafunnel.simulator.ablation.lines import Line, lines_of
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import Recipe, load_recipe
from karmafunnel.simulator.report import plots
from karmafunnel.simulator.report.attention_plot import attention_figure
from karmafunnel.simulator.report.page import Figure, Page, Plot, Section, rich, write_page
from karmafunnel.simulator.report.table import to_markdown
from karmafunnel.stages.recall import VectorRecall
from karmafunnel.terminal import Console
from safetensors.numpy import load_file

LOSSES: dict[str, ActionLoss] = {
    "pairwise": Pairwise(),
    "pairwise on cosine": Pairwise(cosine=True),
    "in-batch softmax": InBatch(),
    "masked NCE": MaskedNCE(),
    "catalogue softmax": Softmax(),
}
# of gen and rec, which share one weight
OBJECTIVES = {"+gen": (1.0, 0.0), "+rec": (0.0, 1.0), "+gen+rec": (1.0, 1.0)}
WATCHED = (
    "act",
    "negatives masked",
    RANK,
    "sink rate, others",
    PERPLEXITY,
)
QUALITY = "HR@200"
CONTROLS = "other embeddings"  # in the place of a loss
TOLD = ("+gen+rec", "+gen+rec, shuffled texts")
LONGER = ", equal compute"
# the same colour in every figure; a high rate is dotted
COLOURS = plots.colour_of(["action-only", *OBJECTIVES, TOLD[1], "action-only, equal compute"])
SYMBOLS = {
    "+gen+rec": "circle",
    "+gen+rec, shuffled texts": "circle-open",
    "+gen+rec, high rate": "diamond",
    "+gen+rec, shuffled texts, high rate": "diamond-open",
}
MINUTES = 2.5  # of a cell of the World on one core of a small machine; one of Office takes half

funnel = VectorRecall("interest", k=200)
against = "pairwise, action-only"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target", "gAUC:request:exposures")
seeds = (0, 1, 2)

# (rate, weight) with the best mean of HR@10, HR@50 and HR@200 on W2b, of four each; a loss or an
# objective without trials on a log has no row, and a log without any takes those of Office
Setting = tuple[float, float]
CHOSEN: dict[str, dict[str, dict[str, Setting]]] = {
    "amazon_office": {
        "pairwise": {
            "action-only": (3e-4, 0.0),
            "+gen": (3e-4, 0.1),
            "+rec": (3e-4, 0.3),
            "+gen+rec": (3e-4, 0.1),
        },
        "pairwise on cosine": {
            "action-only": (3e-4, 0.0),
            "+gen": (3e-4, 0.1),
            "+rec": (3e-4, 0.1),
            "+gen+rec": (3e-4, 0.1),
        },
        "in-batch softmax": {
            "action-only": (3e-4, 0.0),
            "+gen": (1e-3, 0.1),
            "+rec": (3e-4, 0.1),
            "+gen+rec": (1e-3, 0.1),
        },
        "masked NCE": {
            "action-only": (3e-4, 0.0),
            "+gen": (3e-4, 0.3),
            "+rec": (3e-4, 0.1),
            "+gen+rec": (3e-4, 0.3),
        },
        "catalogue softmax": {
            "action-only": (2e-3, 0.0),
            "+gen": (2e-3, 0.3),
            "+rec": (2e-3, 0.1),
            "+gen+rec": (2e-3, 0.1),
        },
    },
    "world-amazon_catalog": {
        "pairwise": {"action-only": (3e-3, 0.0), "+gen+rec": (3e-3, 0.3)},
        "pairwise on cosine": {"action-only": (3e-3, 0.0), "+gen+rec": (3e-3, 0.1)},
        "in-batch softmax": {"action-only": (3e-3, 0.0), "+gen+rec": (3e-3, 0.1)},
        "masked NCE": {"action-only": (3e-3, 0.0), "+gen+rec": (3e-3, 0.1)},
        "catalogue softmax": {"action-only": (3e-3, 0.0), "+gen+rec": (3e-3, 0.1)},
    },
}
HIGH = 1e-3  # a rate at which a pairwise loss alone loses much
AT_HIGH = ", high rate"


def chosen_for(log: Log) -> dict[str, dict[str, Setting]]:
    """The settings of a log by loss and row."""
    return CHOSEN.get(log.whole, CHOSEN["amazon_office"])


def base(log: Log, name: str) -> KARMA:
    """KARMA under the loss of that name, without a language objective."""
    loss = LOSSES[name]
    frozen = isinstance(loss, Softmax)
    return KARMA(
        length=10 if log.meta["time"] == "order" else 20,
        text_words=16,
        items="frozen" if frozen else "trained",
        ids=False,
        residual=False,
        loss=loss,
        # a sum over about a hundred negatives, to the size of the other losses
        action=0.01 if isinstance(loss, Pairwise) else 1.0,
        decoder="lm",
        epochs=6 if frozen else 2,
    )


def values(log: Log) -> dict[str, Embedder]:
    """Every row: KARMA under each loss, and what stands beside it."""
    found: dict[str, Embedder] = {}
    for loss, chosen in chosen_for(log).items():
        plain = replace(base(log, loss), watch=10)
        alone = replace(plain, rate=chosen["action-only"][0])
        found[f"{loss}, action-only"] = alone
        for objective, (gen, rec) in OBJECTIVES.items():
            if objective not in chosen:
                continue
            rate, weight = chosen[objective]
            both = replace(plain, rate=rate, gen=gen * weight, rec=rec * weight)
            found[f"{loss}, {objective}"] = both
        found[f"{loss}, +gen+rec, shuffled texts"] = replace(both, shuffled=True)
        # both objectives together take less than twice the time
        found[f"{loss}, action-only, equal compute"] = replace(alone, epochs=2 * alone.epochs)
        # which of them bear a rate that is too high? A row of that rate answers already
        high = {
            "action-only": alone,
            "+gen+rec": both,
            "+gen+rec, shuffled texts": replace(both, shuffled=True),
            "action-only, equal compute": replace(alone, epochs=2 * alone.epochs),
        }
        for name, value in high.items():
            if value.rate < HIGH:
                found[f"{loss}, {name}{AT_HIGH}"] = replace(value, rate=HIGH)
    found |= {
        "TF-IDF": TfidfSVD(dim=128),
        "frozen LM, whitening": FrozenLM(after="whitening"),
        "SASRec": SASRec(),
        "random": RandomVectors(),
    }
    return found | sentence_encoder(log)


def tell_hours(study: str, minutes: float) -> None:
    """Say how long all cells of a study take."""
    say(f"{study}: all cells take about {minutes / 60:.1f} hours of one core")


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    found = values(log)
    cells = len(seeds) * sum(isinstance(x, KARMA) for x in found.values())
    tell_hours("the atlas", cells * MINUTES)
    return {name: {"interest": value} for name, value in found.items()}


# -- tables and pictures of the finished cells -----------------------------------------------------


def by_loss(recipe: Recipe, log: Log, out: Path) -> Iterator[tuple[str, str, list[Line]]]:
    """Each loss with the row that its rows are held against and their lines; then the embeddings
    that KARMA is compared with.
    """
    parts: dict[str, dict[str, Any]] = {part: {} for part in (*chosen_for(log), CONTROLS)}
    for name, row in recipe.rows.items():
        loss = name.split(", ")[0]
        parts[loss if loss in parts else CONTROLS][name] = row
    for part, own in parts.items():
        against = "TF-IDF" if part == CONTROLS else f"{part}, action-only"
        if own:
            asked = replace(recipe, rows=own, against=against)
            yield part, against, lines_of(asked, cells_of(asked, log, out))


def gains(
    name: str, loss: str, lines: list[Line], chosen: dict[str, Setting]
) -> list[dict[str, Any]]:
    """The gain of both objectives, and of the texts of other items, over how good the loss is
    alone, at the rates that were chosen and at the high one.

    A row whose chosen rate is the high one stands for itself there.
    """
    found = []
    lines_by_row = {line["row"].removeprefix(f"{loss}, "): line for line in lines}

    def at_high(row: str) -> str:
        rate, _ = chosen.get("+gen+rec" if row in TOLD else row, (0.0, 0.0))
        return row if rate == HIGH else f"{row}{AT_HIGH}"

    for tail in ("", AT_HIGH):
        for row in TOLD:
            pair = [at_high(x) if tail else x for x in ("action-only", row)]
            if tail and pair == ["action-only", row]:  # drawn already
                continue
            alone, both = (lines_by_row.get(x, {}).get("values", {}).get(QUALITY) for x in pair)
            if alone and both:
                gain = both["value"] - alone["value"]
                point = {"log": name, "loss": loss, "row": f"{row}{tail}"}
                found.append(point | {"alone": alone["value"], "gain": gain})
    return found


def steps(cells: list[Cell], figure: str) -> list[dict[str, Any]]:
    """A figure of the batches of every tenth step, a line for each cell."""
    found = []
    for cell in cells:
        fit = cell.read("facts.json").get("fit") or {}
        for step in fit.get("watched", ()):
            if figure in step:
                found.append({"row": cell.row, "step": step["step"], "value": step[figure]})
    return found


def gain_figure(points: list[dict[str, Any]]) -> Plot:
    """A pane a log, a colour a loss, a symbol for each of the rows."""
    logs = list(dict.fromkeys(point["log"] for point in points))
    colours = plots.colour_of(list(LOSSES))
    domains, inner = plots.panes(len(logs), 2, 320, 0.1, 80)
    layout = plots.blank(inner, left=60, top=110, bottom=50)
    layout |= {"showlegend": True, "legend": above(inner)}
    data: list[Plot] = []
    for i, (name, domain) in enumerate(zip(logs, domains, strict=True)):
        x = {"title": {"text": f"{QUALITY} of the loss alone"}}
        plots.add_pane(
            layout, i, domain, name, x, {"title": {"text": "gain"}, "rangemode": "tozero"}
        )
        for point in points:
            if point["log"] == name:
                told = f"{point['loss']}, {point['row']}"
                data.append(
                    {
                        "type": "scatter",
                        "mode": "markers",
                        "x": [point["alone"]],
                        "y": [point["gain"]],
                        "marker": {
                            "size": 10,
                            "color": colours[point["loss"]],
                            "symbol": SYMBOLS[point["row"]],
                        },
                        "showlegend": False,
                        "hovertemplate": rich(
                            "{}<br>alone %{x:.3f}, gain %{y:+.3f}<extra></extra>", told
                        ),
                        **plots.on(i),
                    }
                )
    # what colours and symbols say, told by traces without a point
    losses = dict.fromkeys(point["loss"] for point in points)
    legend = {name: {"color": colours[name], "symbol": "square"} for name in losses}
    legend |= {name: {"color": plots.QUIET, "symbol": SYMBOLS[name]} for name in SYMBOLS}
    for name, marker in legend.items():
        empty = {"type": "scatter", "mode": "markers", "x": [None], "y": [None]}
        data.append(empty | {"name": name, "marker": marker | {"size": 10}, **plots.on(0)})
    return {"data": data, "layout": layout}


def beyond(points: list[dict[str, Any]], first: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points of a line from the last one that it has in common with another, from the start of
    both; all where they begin apart.
    """
    same = 0
    for a, b in zip(points, first, strict=False):
        if (a["step"], a["value"]) != (b["step"], b["value"]):
            break
        same += 1
    return points[max(same - 1, 0) :]


def step_figure(loss: str, cells: list[Cell]) -> Plot | None:
    """What was watched over the steps of each cell: a pane a figure, a line a row. Those of twice
    the passes begin where those of half of them end. None where no cell was watched.
    """
    found = {figure: points for figure in WATCHED if (points := steps(cells, figure))}
    if not found:
        return None
    domains, inner = plots.panes(len(found), 3, 220, 0.08, 80)
    layout = plots.blank(inner, left=60, top=130, bottom=100)
    layout |= {"showlegend": True, "legend": above(inner)}
    data: list[Plot] = []
    for i, ((figure, points), domain) in enumerate(zip(found.items(), domains, strict=True)):
        scale = {"type": "log"} if figure.startswith("perplexity") else {}
        plots.add_pane(layout, i, domain, figure, {"title": {"text": "step"}}, scale)
        by_row: dict[str, list[dict[str, Any]]] = {}
        for point in points:
            by_row.setdefault(point["row"], []).append(point)
        for row, mine in by_row.items():
            short = row.removeprefix(f"{loss}, ")
            plain = short.removesuffix(AT_HIGH)
            if LONGER in row:  # until then the same line, which it would hide
                mine = beyond(mine, by_row.get(row.replace(LONGER, ""), []))
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [point["step"] for point in mine],
                    "y": [point["value"] for point in mine],
                    "name": short,
                    "legendgroup": short,
                    "showlegend": i == 0,
                    "line": {
                        "color": COLOURS.get(plain, plots.QUIET),
                        "dash": "solid" if plain == short else "dot",
                        "width": 2,
                    },
                    "hovertemplate": rich("{}, step %{x}: %{y:.4g}<extra></extra>", short),
                    **plots.on(i),
                }
            )
    if RANK in found:
        place = {"x": 0, "y": 0, "xref": "paper", "yref": "paper", "yshift": -55}
        look = {"showarrow": False, "align": "left", "xanchor": "left", "yanchor": "top"}
        text = rich(
            "Batches are of histories of similar length, and one of short histories has a low "
            "effective rank by itself:<br>of requests without history or query all user embeddings "
            "are the same, rank 1, whatever the row."
        )
        layout["annotations"].append({"text": text, "font": {"size": 12}, **place, **look})
    return {"data": data, "layout": layout}


def above(inner: int) -> Plot:
    """A legend over the headings of panes of that height."""
    return {"orientation": "h", "x": 0, "y": 1 + 30 / inner, "yanchor": "bottom"}


def attention(loss: str, cells: list[Cell]) -> Plot | None:
    """Mean attention of the loss alone and with both objectives, side by side, at both rates; None
    where no cell has it.
    """
    maps, by_row = {}, {cell.row: cell for cell in cells}
    for tail in ("", AT_HIGH):
        for row in ("action-only", "+gen+rec"):
            cell = by_row.get(f"{loss}, {row}{tail}")
            file = cell and cell.folder / "similarity" / "attention.safetensors"
            if file and file.is_file():
                maps[f"{row}{tail}"] = load_file(file)["maps"]
    return attention_figure(maps) if maps else None


def write_pages(out: Path, command: str, tables: list[str], figures: dict[str, list[Plot]]) -> None:
    """atlas.md, atlas.html and, with kaleido, each figure as a PNG file."""
    write_text(out / "atlas.md", "\n".join(tables))
    sections = []
    for title, those in figures.items():
        name = re.sub(r"[^a-z0-9]+", "-", title.lower())
        sections.append(Section(name, title, title, [Figure(plot) for plot in those]))
        for i, plot in enumerate(those):
            with suppress(KarmafunnelError):  # no kaleido: the page is enough
                plots.write_picture(plot, out / f"{name}-{i + 1}.png")
    write_page(out / "atlas.html", Page("The atlas of losses", command, [], sections))


@click.command(cls=OneLineErrors)
@click.argument("logs", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out/atlas"), show_default=True
)
@click.option("--minutes", type=float, default=10.0, help="Begin no new cell after so long.")
def main(logs: tuple[Path, ...], out: Path, minutes: float) -> None:
    """Make the cells of LOGS, as many as fit into the minutes, then the tables and pictures."""
    console = Console(stderr=True)
    command = shlex.join(
        ["python", "-m", "karmafunnel.benchmarks.studies.karma_atlas", *sys.argv[1:]]
    )
    options = RunOptions(cache=cache_root(), console=console, command=command)
    parts: list[str] = []
    points: list[dict[str, Any]] = []
    figures: dict[str, list[Plot]] = {}
    for path in logs:
        log = Log.open(path)
        recipe, folder = load_recipe(__file__, log), out / log.name
        todo = [cell for cell in cells_of(recipe, log, folder) if not cell.done]
        console.print(
            f"{log.name}: {len(todo)} cells to make, about {len(todo) * MINUTES / 60:.1f} hours on "
            f"one core; this call begins none after {minutes:g} minutes"
        )
        ablate(recipe, log, folder, options, minutes=minutes, diagnose=True)
        first = [x for x in cells_of(recipe, log, folder) if x.seed == recipe.seeds[0] and x.done]
        for loss, against, lines in by_loss(recipe, log, folder):
            tables = "\n\n".join(to_markdown(table) for table in tables_of(against, lines))
            parts.append(f"## {log.name}: {loss}\n\n{tables}\n")
            points += gains(log.name, loss, lines, chosen_for(log).get(loss, {}))
            own = [cell for cell in first if cell.row.startswith(f"{loss}, ")]
            if drawn := [x for x in (step_figure(loss, own), attention(loss, own)) if x]:
                figures[f"{log.name}: {loss}"] = drawn
    if points:
        figures = {"What both objectives add to a loss": [gain_figure(points)], **figures}
    write_pages(out, command, parts, figures)
    console.print(f"{out / 'atlas.md'}, {out / 'atlas.html'}")


if __name__ == "__main__":
    main()
