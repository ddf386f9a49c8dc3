"""karmafunnel: replay a personalized-search funnel offline and see, stage by stage, what it keeps
and what it loses.

Log: A log, with constructors from data frames (pandas, Polars or Arrow).
replay: Fit a funnel on a log, replay the last window through it, and open the Run.
import_run: Make a Run of a funnel outside karmafunnel from its stages' lists, without training.
measure: Measures of a Run (or of several seeds of one funnel) by stage, with 95% intervals.
compare: Compare the candidate Run B with the baseline Run A, paired by request.
report: Write one HTML file about one or more Runs; returns its path.
explain: Explain the ranking of one request: one row per stage and item; arguments as of `replay`.
Run: One replay of one funnel on one log.
RunOptions: How recipes are fitted and replayed.
KarmafunnelError: An error that a user can cause, in one line: "who: what needs X, found Y; hint".
"""

import os
from typing import Any

# torch, faiss and LightGBM bring a thread pool each; pools that spin while they wait starve each
# other (30 times slower on 2 cores).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"

# What a notebook needs, imported when it is asked for.
FRONT = {
    **dict.fromkeys(
        ("Log", "replay", "import_run", "measure", "compare", "report", "explain"),
        "simulator.front",
    ),
    "Run": "simulator.measure.run",
    "RunOptions": "simulator.replay.options",
    "KarmafunnelError": "errors",
}
__all__ = sorted(FRONT)


def __getattr__(name: str) -> Any:
    if name not in FRONT:
        raise AttributeError(
            f"module 'karmafunnel' has no attribute {name!r}; it has {', '.join(FRONT)}"
        )
    import importlib

    return getattr(importlib.import_module(f".{FRONT[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*FRONT, "__version__"]
