"""Click models: tensors in, logits out; one model a file.

They are imported when the first is asked for: stages without a network do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .every import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # what Python asks of a package
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".every", __name__), name)
