"""The cells of a table: one row of a recipe with one seed, and the folder of its results."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...bounds import check_seed
from ...errors import KarmafunnelError, line_of
from ...files import intact, read_json, write_json
from ...keys import code_of, content_key
from ...log import Log
from ..replay.options import DEFAULTS, RunOptions
from ..replay.recipe import Recipe
from ..replay.replay import replay_many
from . import examine

MADE_BY = (replay_many.__module__, examine.__name__)  # the modules whose code makes a cell


@dataclass(frozen=True)
class Cell:
    """One row with one seed, its folder, and the key of all that its results depend on."""

    row: str
    seed: int
    folder: Path
    key: str

    @property
    def done(self) -> bool:
        """Whether the cell was replayed and examined by the present code."""
        current = self.read("facts.json").get("key") == self.key
        return current and intact(self.folder / "run") and intact(self.folder / "similarity")

    @property
    def failed(self) -> str | None:
        """The error of an earlier attempt with the same code; None where there was none."""
        found = self.read("failed.json")
        return str(found["error"]) if found.get("key") == self.key else None

    @property
    def replayed(self) -> bool:
        """Whether the Run is complete; its vectors may not be examined yet."""
        return self.read("replayed.json").get("key") == self.key and intact(self.folder / "run")

    def fails(self, error: Exception) -> None:
        """Write the error to `failed.json`."""
        trace = "".join(traceback.format_exception(error))
        found = {"key": self.key, "error": line_of(error), "trace": trace}
        write_json(self.folder / "failed.json", found)

    def read(self, name: str) -> dict[str, Any]:
        """The content of a JSON file of the cell; empty where it is missing or broken."""
        try:
            return dict(read_json(self.folder / name))
        except (KarmafunnelError, TypeError, ValueError):
            return {}


def cells(
    recipe: Recipe,
    log: Log,
    out: Path,
    options: RunOptions = DEFAULTS,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[Cell]:
    """List the cells of a table, seed by seed, so that an interrupted table has every row.

    Args:
        out: the folder of the table.
        only: names of the rows to make beside the baseline; empty for all.
        seeds: empty for those of the recipe.

    Raises:
        KarmafunnelError: a recipe without rows, an unknown row, a negative seed, or two rows whose
            names give the same folder.
    """
    who = f"recipe {recipe.name}"
    if not recipe.rows:
        raise KarmafunnelError(who, needs="to export `rows` for a table", found="none")
    if unknown := [name for name in only if name not in recipe.rows]:
        raise recipe.no_row(unknown[0])
    for seed in seeds:
        check_seed("table", seed)
    wanted = [name for name in recipe.rows if not only or name in only or name == recipe.against]
    found = []
    for seed in dict.fromkeys(seeds or recipe.seeds):
        for name in wanted:
            folder = out / "cells" / f"{_slug(name)}-{seed}"
            found.append(Cell(name, seed, folder, _key(recipe, name, log, seed, options)))
    if len({cell.folder for cell in found}) < len(found):
        needs = "row names that differ in letters and digits"
        raise KarmafunnelError(who, needs=needs, found=wanted)
    return found


def _slug(name: str) -> str:
    """A row's name as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("+", "plus ")).strip("-")


def _key(recipe: Recipe, name: str, log: Log, seed: int, options: RunOptions) -> str:
    """The key of a row's code, funnel, embedders and options; of its error where it has one."""
    if name in recipe.errors:
        code, content = "", list[Any]([recipe.errors[name]])
    else:
        row = recipe.row(name)
        embedders = row.used_embedders
        code = code_of(row.funnel, embedders, by=MADE_BY)
        values = {key: repr(value) for key, value in sorted(embedders.items())}
        content = [repr(row.funnel), values, row.label, row.custom_code]
    return content_key(
        code, *content, log.checksum, seed, options.window, options.limit, options.device
    )
