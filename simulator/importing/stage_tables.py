"""Tables with the lists that stages returned."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ...errors import KarmafunnelError
from .guessing import by_name, numbers
from .opening import ROW, Rejects, batches, layout_of
from .stage_lists import LISTS, ROLES
from .trec import stage_of


def table_lists(path: Path) -> pl.DataFrame:
    """Read a table with request, item, rank or score, and stage; without a stage column the file is
    a stage.
    """
    layout = layout_of(path)
    roles = by_name(list(layout.names), ROLES)
    if missing := [role for role in ("request", "item") if role not in roles]:
        raise KarmafunnelError(path, needs=f"a column of {missing[0]}s", found=list(layout.names))
    if "rank" not in roles and "score" not in roles:
        raise KarmafunnelError(
            path, needs="a column of ranks or of scores", found=list(layout.names)
        )
    frames: list[pl.DataFrame] = []
    rejects = Rejects()
    for frame in batches(path, layout, rejects):
        picked = {
            "request_id": frame[roles["request"]].cast(pl.String),
            "item_id": frame[roles["item"]].cast(pl.String),
        }
        for role in ("rank", "score"):
            if role in roles:
                picked[role] = numbers(
                    frame[roles[role]].cast(pl.String, strict=False).str.strip_chars()
                )
        made = pl.DataFrame(picked)
        if "stage" in roles:
            made = made.with_columns(frame[roles["stage"]].cast(pl.String).alias("stage"))
        else:
            made = made.with_columns(pl.lit(stage_of(path)).alias("stage"))
        for name, dtype in LISTS.items():
            if name not in made.columns:
                made = made.with_columns(pl.lit(None, dtype).alias(name))
        check_rows(made, frame, path)
        frames.append(made.select(list(LISTS)))
    if rejects.count:
        first = rejects.rows[0]
        raise KarmafunnelError(
            f"{path}: row {first['row']}", needs="a row like the others", found=first["reason"]
        )
    if not frames:
        raise KarmafunnelError(path, needs="rows", found="a header alone")
    return pl.concat(frames)


def check_rows(made: pl.DataFrame, frame: pl.DataFrame, path: Path) -> None:
    """Raises KarmafunnelError naming the first row without a request, an item, a stage, or both
    rank and score.
    """
    nowhere = pl.col("rank").is_null() & pl.col("score").is_null()
    bad = made.select(
        pl.any_horizontal(pl.col("request_id", "item_id", "stage").is_null()) | nowhere
    ).to_series()
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise KarmafunnelError(
            f"{path}: row {frame[ROW][row]}",
            needs="a request, an item, a stage and a rank or score",
            found=made.row(row, named=True),
        )
