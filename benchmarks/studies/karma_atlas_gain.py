"""The atlas's picture of gains from its published tables, which are of several calls:

    python -m karmafunnel.benchmarks.studies.karma_atlas_gain docs/pictures/atlas_gain.png

It needs the extra `images` and a Chromium.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from karmafunnel.benchmarks.studies.karma_atlas import CHOSEN, LOSSES, QUALITY, gain_figure, gains
from karmafunnel.cli import OneLineErrors
from karmafunnel.files import read_text
from karmafunnel.simulator.ablation.lines import Line
from karmafunnel.simulator.report import plots

TABLES = Path(__file__).parents[1] / "findings" / "tables"
# of two tables with the same row the later one is drawn
PUBLISHED = {
    "amazon_office": ("office", "office_in_batch_high_rate", "office_pairwise_high_rate"),
    "world-amazon_catalog": (
        "world_pairwise_own_rate",
        "world_cosine",
        "world_nce",
        "world_in_batch",
        "world_softmax",
    ),
}


def values(text: str) -> Iterator[Line]:
    """Rows of the tables of values in a Markdown text with their `QUALITY`."""
    for part in re.findall(r"^\*\*values.*?(?=^\*\*|\Z)", text, re.M | re.S):
        rows = [re.split(r" \| ", line[2:]) for line in part.splitlines() if line[:1] == "|"]
        place = rows[0].index(QUALITY)
        for row in rows[2:]:
            if found := re.match(r"\d\.\d+", row[place]):
                yield {"row": row[0], "values": {QUALITY: {"value": float(found[0])}}}


def published() -> list[dict[str, Any]]:
    """The points of `gain_figure`, of values with three digits."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for log, names in PUBLISHED.items():
        for name in names:
            lines = list(values(read_text(TABLES / f"karma_atlas_{name}.md")))
            for loss in LOSSES:
                for point in gains(log, loss, lines, CHOSEN[log].get(loss, {})):
                    found[log, loss, point["row"]] = point
    return list(found.values())


@click.command(cls=OneLineErrors)
@click.argument("picture", type=click.Path(path_type=Path))
def main(picture: Path) -> None:
    """Draw what both objectives add to each loss into PICTURE, a PNG file."""
    plots.write_picture(gain_figure(published()), picture)


if __name__ == "__main__":
    main()
