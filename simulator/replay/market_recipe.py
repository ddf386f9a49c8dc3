"""A recipe of a marketplace: a Python file that exports `marketplace`."""

from __future__ import annotations

from pathlib import Path

from ...errors import KarmafunnelError, quoted
from ...files import read_text
from ..world.marketplace import Marketplace
from .recipe import ROOMS, running


def load_marketplace(recipe: Path | str) -> tuple[Marketplace, str]:
    """The marketplace of a recipe file, and the file's text.

    Raises:
        KarmafunnelError: naming the file, for code that fails and an export that is missing or of
            the wrong type.
    """
    path = Path(recipe)
    text = read_text(path, "a Python file")
    with running(path, text, (*ROOMS, "simulator/world")) as module:
        found = getattr(module, "marketplace", None)
    if not isinstance(found, Marketplace):
        needs = "a Marketplace such as Marketplace()"
        raise KarmafunnelError(
            f"recipe {path}", what="marketplace", needs=needs, found=quoted(found)
        )
    return found, text
