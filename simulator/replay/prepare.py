"""From a recipe and a log to a fitted funnel."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...bounds import check_bound
from ...checks import require
from ...errors import KarmafunnelError
from ...log import Log
from ...stages.context import Context, silent
from ...stages.kept import Kept
from ...stages.stage import FittedFunnel, fit_embedders
from .options import DEFAULTS, RunOptions
from .recipe import Recipe


def prepare(recipe: Recipe, log: Log, options: RunOptions = DEFAULTS) -> FittedFunnel:
    """Fit the recipe's embedders (on W1) and stages (on W2), each kept by content in the cache.

    Recipes that are prepared for the same log with the same `Kept` share what they have in common.
    """
    require(log)
    log.check_label(recipe.label)
    if options.device != "cpu":
        check_device(options.device)
    kept, console = Kept.of(options.cache), options.console
    with console.status("fitting") if console else nullcontext() as status:
        context = Context(
            log,
            label=recipe.label,
            seed=options.seed,
            device=options.device,
            custom_code=recipe.custom_code,
            indexes=kept.indexes,
        )
        if console and status:
            say = partial(console.print, style="dim", soft_wrap=True)
            context = replace(context, progress=say, detail=status.update)
        context = replace(context, embeddings=fit_embedders(recipe.used_embedders, context, kept))
        fitted = recipe.funnel.fit(context, kept)
    if kept is not options.cache:
        kept.forget()
    return replace(fitted, context=replace(context, progress=silent, detail=silent))


def check_device(device: str) -> None:
    """Raise KarmafunnelError for a device that torch does not know or have."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        found = f"{device!r}: {str(error).splitlines()[0]}"
        raise KarmafunnelError("device", needs="one that torch has here", found=found) from error


@dataclass(frozen=True, eq=False)
class Variant:
    """A recipe, its fitted funnel, the folder of its Run, and further entries of its run.json."""

    recipe: Recipe
    fitted: FittedFunnel
    out: Path
    says: Mapping[str, Any] = field(default_factory=dict)


def requests_of(log: Log, window: str = "W3", limit: int | None = None) -> np.ndarray:
    """The requests of a window, at most `limit` of them spread over time: row numbers. The requests
    of a smaller limit are among those of a larger one.

    Raises:
        KarmafunnelError: where there are none, and for a log that fails a check whose failure
            would change results.
    """
    require(log)
    requests = log.requests_in(window)
    if len(requests) == 0:
        needs = f"requests of {log.meta['scenario']} in {window}"
        raise KarmafunnelError("replay", what=f"log {log.name}", needs=needs, found="none")
    if limit is not None:
        check_bound("replay", "limit", limit=limit)
    return nested(requests, limit or len(requests))


def nested(requests: np.ndarray, most: int) -> np.ndarray:
    """At most this number of requests, spread evenly; fewer are always among more.

    They are taken in the order of van der Corput's sequence in base 2 (1935): the bits of a
    position, read backwards.
    """
    if len(requests) <= most:
        return requests
    position = np.arange(len(requests))
    key = np.zeros(len(requests), dtype=np.int64)
    for _ in range(int(len(requests) - 1).bit_length()):
        key = (key << 1) | (position & 1)
        position = position >> 1
    return requests[np.sort(np.argsort(key)[:most])]
