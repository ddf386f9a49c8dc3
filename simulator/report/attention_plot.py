"""Attention maps of the first and last layer of each variant, on one colour scale.

Each ablation table draws the maps of its own rows. To draw cells of several tables together:

    python -m karmafunnel.simulator.report.attention_plot \
        "action-only=out/controls/cells/action-only-0" "other=out/other/cells/..." --out both.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
from safetensors.numpy import load_file

from ...errors import KarmafunnelError
from . import plots
from .curves import write_curve
from .page import Plot, rich


def attention_figure(maps: Mapping[str, np.ndarray], per_row: int = 4) -> Plot:
    """Heat maps of the first and the last layer of each variant.

    Rows are queries, columns keys. The colour is the square root of the attention weight, so that
    small weights are visible.

    Args:
        maps: attention weights by name of the variant: (layers, L, L).
        per_row: number of heat maps in a row.

    Raises:
        KarmafunnelError: no map, or one of another shape.
    """
    if not maps:
        raise KarmafunnelError("attention_figure", needs="at least one map", found="none")
    for name, x in maps.items():
        if x.ndim != 3 or x.shape[1] != x.shape[2] or not x.shape[0]:
            raise KarmafunnelError(
                "attention_figure", needs="maps (layers, L, L)", found=f"{x.shape} for {name!r}"
            )
    short = {name: name if len(name) <= 26 else name[:25] + "…" for name in maps}
    panels = [
        (f"{short[name]}, layer {at + 1}", x[at])
        for name, x in maps.items()
        for at in sorted({0, x.shape[0] - 1})
    ]
    domains, inner = plots.panes(len(panels), per_row, 200, 0.05, 60)
    layout = plots.blank(inner, left=40, top=60, bottom=30)
    bar = {
        "title": {"text": "√share"},
        "thickness": 10,
        "len": 180,
        "lenmode": "pixels",
        "y": 1,
        "yanchor": "top",
    }
    data: list[Plot] = []
    for i, ((title, x), domain) in enumerate(zip(panels, domains, strict=True)):
        seen = np.where(np.tril(np.ones(x.shape, dtype=bool)), np.sqrt(np.maximum(x, 0)), np.nan)
        data.append(
            {
                "type": "heatmap",
                "z": seen.tolist(),
                "customdata": x.tolist(),
                "zmin": 0,
                "zmax": 1,
                "colorscale": "Viridis",
                "showscale": i == 0,
                "colorbar": bar,
                "hovertemplate": rich(
                    "query %{y} attends to %{x}: %{customdata:.2f}<extra></extra>"
                ),
                **plots.on(i),
            }
        )
        x_domain, y_domain = domain
        layout[plots.axis(i, "x")] = {
            "domain": x_domain,
            "anchor": plots.on(i)["yaxis"],
            "showgrid": False,
            "dtick": 5,
        }
        layout[plots.axis(i, "y")] = {
            "domain": y_domain,
            "anchor": plots.on(i)["xaxis"],
            "showgrid": False,
            "zeroline": False,
            "autorange": "reversed",
            "dtick": 5,
        }
        layout["annotations"].append(plots.heading(title, domain) | {"font": {"size": 11}})
    return {"data": data, "layout": layout}


@click.command()
@click.argument("cells", nargs=-1, required=True, metavar="LABEL=CELL...")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The page to write.")
@click.option("--title", default="Attention", show_default=True)
def main(cells: tuple[str, ...], out: Path, title: str) -> None:
    """Draw the attention maps of finished cells. A CELL is a folder `cells/ROW-SEED` in the output
    of a table.
    """
    maps = {}
    for given in cells:
        label, _, folder = given.partition("=")
        file = Path(folder) / "similarity" / "attention.safetensors"
        if not file.is_file():
            raise click.ClickException(
                f"attention: needs LABEL=CELL with {file}, found none for {given!r}"
            )
        maps[label] = load_file(file)["maps"]
    print(*write_curve(attention_figure(maps), out, title))


if __name__ == "__main__":
    main()
