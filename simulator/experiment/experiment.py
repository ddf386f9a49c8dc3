"""An experiment as it was asked for: two recipes, a shop and a design; run, and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...files import (
    atomic_folder,
    intact,
    read_json,
    read_table,
    read_text,
    remove,
    write_json,
    write_parquet,
)
from ...files import say as warn
from ...keys import code_of, content_key
from ...log import Catalogue
from ..replay.recipe import find
from ..report.page import write_page
from ..world.marketplace import Marketplace
from ..world.open_shop import Shop, open_shop
from . import arms
from .arms import Design, Folders, Outcome, Progress, run, silent
from .duel import Duel, duel
from .figures_by_arm import Result, check_arms, read
from .interleaving import Interleaving
from .result_page import result_page
from .result_tables import as_told

RESULT, USERS, ITEMS = "experiment.json", "users.parquet", "items.parquet"
# what recipes are made of: lists that are kept are made anew when its code changes
MADE_OF = (
    "karmafunnel.models.karma",
    "karmafunnel.models.sasrec",
    "karmafunnel.stages.policies",
    "karmafunnel.stages.prerank",
    "karmafunnel.stages.rank",
    "karmafunnel.stages.recall",
    "karmafunnel.stages.rerank",
)


@dataclass(frozen=True, eq=False)
class Experiment:
    """Two recipes on the users of a shop.

    recipes: files or names of some that ship, FILE::ROW for a row of a table's; the control first.
    cache: where fits, and until it ends the lists of each round are kept.
    """

    recipes: tuple[str, str]
    marketplace: Marketplace
    design: Design
    users: int
    items: int
    cache: Path
    catalogue: Catalogue | None = None

    def opened(self) -> Shop:
        """The shop before its first day."""
        return open_shop(
            self.marketplace,
            items=self.items,
            users=self.users,
            seed=self.design.seed,
            catalogue=self.catalogue,
        )

    @property
    def currency(self) -> str:
        """That of the prices."""
        told = None if self.catalogue is None else self.catalogue.meta.get("currency")
        return str(told or "EUR")

    @property
    def names(self) -> tuple[str, str]:
        """Of the recipes: the row, else the file without its suffix."""
        a, b = (row or Path(file).stem for file, _, row in self._parts)
        return (a, b) if a != b else (f"{a} (A)", f"{b} (B)")

    @property
    def _parts(self) -> list[tuple[str, str, str]]:
        return [recipe.partition("::") for recipe in self.recipes]

    @cached_property
    def texts(self) -> dict[str, str]:
        """The text of each recipe, by name."""
        texts = (read_text(find(file), "a Python file") for file, _, _ in self._parts)
        return dict(zip(self.names, texts, strict=True))

    @cached_property
    def key(self) -> str:
        """Of all that decides the result: recipes, shop, design and code."""
        code = code_of(self.marketplace, self.design, by=(arms.__name__, *MADE_OF))
        told = (self.texts, self.recipes, repr(self.marketplace), repr(self.design))
        return content_key(code, *told, self.users, self.items, self.goods)

    @cached_property
    def goods(self) -> str | None:
        """The digest of the catalogue; None for one that is invented."""
        if self.catalogue is None:
            return None
        return content_key(str(self.catalogue.items.hash_rows(seed=0).sum()))

    @property
    def folder(self) -> Path:
        """Where lists are kept until it ends."""
        return self.cache / f"experiment-{self.key}"

    def kept(self, what: str) -> Folders:
        """Folders for one run; that of its lists is there."""
        lists = self.folder / what
        lists.mkdir(parents=True, exist_ok=True)
        return Folders(lists, self.cache)

    def forget(self) -> None:
        """Remove the lists."""
        remove(self.folder)

    def test(self, truth: bool = False, say: Progress = silent) -> tuple[Outcome, Result]:
        """Run the A/B test.

        Args:
            truth: also let each recipe alone serve all users.
            say: receives lines of progress.

        Raises:
            KarmafunnelError: as `run` and `read`; for a split that leaves an arm without two users.
        """
        shop, alone = self.opened(), None
        check_arms(self.design.split.arms(np.arange(self.users)))
        sellers = sellers_of(shop)
        outcome = run(self.recipes, shop, self.design, self.kept("split"), say=say)
        if truth:
            every = np.zeros(self.users, dtype=np.int64)
            control, treated = (
                run(self.recipes, self.opened(), self.design, self.kept(name), every + arm, say)
                for arm, name in enumerate(("control alone", "treated alone"))
            )
            alone = control, treated
        return outcome, read(outcome, self.design, sellers, alone)

    def interleave(self, way: Interleaving, say: Progress = silent) -> Duel:
        """Run an interleaving of the same two recipes."""
        kept = self.kept(type(way).__name__)
        return duel(self.recipes, self.opened(), self.design, kept, way, say)

    @property
    def record(self) -> Mapping[str, str]:
        """What was run: texts by title."""
        return {**self.texts, "marketplace": repr(self.marketplace)}

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked for, as experiment.json keeps it."""
        sizes = {"users": self.users, "items": self.items, "goods": self.goods}
        return {"design": repr(self.design)} | sizes | {"record": dict(self.record)}

    def told(self, result: Result) -> dict[str, Any]:
        """The result and what was run, as JSON."""
        return as_told(result, self.design) | self.asked | {"key": self.key}

    def finished(self, place: Path, truth: bool = False) -> Result | None:
        """The result that a folder holds of this very experiment, by the same code; None for none,
        and where it lacks the truth that is asked for.
        """
        if not (place / RESULT).is_file() or not intact(place):
            return None
        told = read_json(place / RESULT)
        true = {one["figure"]: one["truth"] for one in told["figures"]}
        if told.get("key") != self.key or (truth and set(true.values()) == {None}):
            return None
        users, items = (read_table(place / name) for name in (USERS, ITEMS))
        result = read(Outcome(users, items), self.design, sellers_of(self.opened()))
        lines = [replace(line, truth=true.get(line.name)) for line in result.lines]
        return replace(result, lines=lines)

    def made(
        self,
        place: Path,
        command: str,
        truth: bool = False,
        anew: bool = False,
        say: Progress = silent,
    ) -> Result:
        """The result in a folder: as it stands there, if it is of this very experiment and not
        asked for `anew`, else of `test`, written there.
        """
        result = None if anew else self.finished(place, truth)
        if result is not None:
            warn(f"{place} has this experiment already; to make it anew, remove the folder")
            return result
        outcome, result = self.test(truth, say)
        self.write(place, outcome, result, command)
        self.forget()
        return result

    def write(self, place: Path, outcome: Outcome, result: Result, command: str) -> None:
        """Write experiment.json, users.parquet, items.parquet and experiment.html; all or none."""
        page = result_page(result, self.design, self.names, command, self.record, self.currency)
        with atomic_folder(place, sealed=True) as temporary:
            write_parquet(temporary / USERS, outcome.users)
            write_parquet(temporary / ITEMS, outcome.items)
            write_json(temporary / RESULT, self.told(result))
            write_page(temporary / "experiment.html", page)


def sellers_of(shop: Shop) -> np.ndarray:
    """The number of each item's seller, its brand, (n_items,); -1 for an item without one."""
    return shop.items["brand"].rank("dense").fill_null(0).to_numpy().astype(np.int64) - 1
