"""Where a Run comes from: its `run.json`."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
import sys
from functools import cache as once_a_process
from pathlib import Path
from typing import Any

from ... import __version__
from ...keys import version_of
from ...log import Log
from ...stages.explore import Explore
from ...stages.stage import FittedFunnel, Retriever
from .options import RunOptions
from .recipe import Recipe


@once_a_process
def commit() -> str | None:
    """The commit of the code; None where it is no checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    answer = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"],
        capture_output=True,
        encoding="utf-8",
    )
    return answer.stdout.strip() or None


def processor() -> str:
    """The name of the machine's processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


@once_a_process
def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the libraries that results depend on."""
    found = {"karmafunnel": __version__, "python": platform.python_version()}
    for package in ("numpy", "polars", "torch", "lightgbm", "faiss-cpu", "scikit-learn", "bm25s"):
        found[package] = version_of(package)
    return found


def describe_run(
    recipe: Recipe, fitted: FittedFunnel, log: Log, options: RunOptions
) -> dict[str, Any]:
    """The content of `run.json`: everything that is needed to make the same Run again."""
    stages = []
    for ready in fitted.stages:
        stage = ready.stage
        found = {
            "name": stage.name,
            "kind": type(stage).__name__,
            "k": stage.k,
            "text": repr(stage),
        }
        if isinstance(ready, Retriever):
            found["channels"] = list(ready.channels)
        if isinstance(stage, Explore):
            found["policy"] = repr(stage.policy)
        stages.append(found)
    return {
        "recipe": recipe.text,
        "recipe_name": recipe.name,
        "row": recipe.row_name,
        "funnel": repr(recipe.funnel),
        "embedders": {name: repr(value) for name, value in recipe.used_embedders.items()},
        "label": recipe.label,
        "seed": options.seed,
        "commit": commit(),
        "versions": versions(),
        "log": {
            "name": log.name,
            "path": str(log.path.resolve()) if log.path else None,
            "checksum": log.checksum,
            "currency": log.meta["currency"],
            "has": log.meta["has"],
            "catalogue": log.meta["catalogue"],
            "items": log.n_items,
            "world": log.meta.get("world"),
            "judged": log.meta.get("judged"),
            **({"stages": log.meta["stages"]} if log.meta.get("stages") else {}),
        },
        "window": options.window,
        "stages": stages,
        "device": options.device,
        "limit": options.limit,
        "command": options.command or shlex.join(sys.argv),
    }
