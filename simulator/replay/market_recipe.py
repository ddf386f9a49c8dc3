"""A recipe of a marketplace: a Python file that exports `marketplace`, or a World made by one."""

from __future__ import annotations

from pathlib import Path

from ...errors import KarmafunnelError, quoted
from ...files import read_text
from ...log import read_meta
from ..world.marketplace import Marketplace
from .recipe import ROOMS, running


def load_marketplace(recipe: Path | str) -> tuple[Marketplace, str]:
    """The marketplace of a recipe file, and the file's text.

    Args:
        recipe: the file, or the folder of a World, whose log.json keeps the text.

    Raises:
        KarmafunnelError: naming the file, for code that fails, an export that is missing or of the
            wrong type, and a log that no recipe made.
    """
    path = Path(recipe)
    text = kept_recipe(path) if path.is_dir() else read_text(path, "a Python file")
    with running(path, text, (*ROOMS, "simulator/world")) as module:
        found = getattr(module, "marketplace", None)
    if not isinstance(found, Marketplace):
        needs = "a Marketplace such as Marketplace()"
        raise KarmafunnelError(
            f"recipe {path}", what="marketplace", needs=needs, found=quoted(found)
        )
    return found, text


def kept_recipe(world: Path) -> str:
    """The text of the recipe that made a World; raises KarmafunnelError for another log."""
    told = read_meta(world).get("world") or {}
    text = told.get("recipe")
    if not isinstance(text, str):
        needs = "a World that was made by a recipe (karmafunnel world --recipe or --like)"
        raise KarmafunnelError(world, needs=needs, found="a log without one")
    return text
