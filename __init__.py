"""karmafunnel: replay a personalized-search funnel offline and see, stage by stage, what it keeps
and what it loses.
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
