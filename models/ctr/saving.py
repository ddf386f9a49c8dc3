"""Click models on disk."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...bounds import Bound
from ...errors import KarmafunnelError, line_of, quoted
from ...shapes import ANY, TEXT, by_name, check_keys, maybe, number
from ..training import Snapshot
from .cold import COLD, COLDConfig
from .dcn import DCN, DCNConfig
from .din import DIN, DINConfig
from .esmm import ESMM
from .inputs import ClickModel, Shape, Trunk
from .two_tower import TwoTower, TwoTowerConfig

FILE = "model.safetensors"
SIZE = number(Bound(0, 100_000_000))
FACTS = {"class": TEXT, "trunk": maybe(TEXT), "config": by_name(ANY), "shape": by_name(SIZE)}
CONFIGS = {"DIN": DINConfig, "DCN": DCNConfig, "COLD": COLDConfig, "TwoTower": TwoTowerConfig}
MODELS: dict[str, Any] = {"DIN": DIN, "DCN": DCN, "COLD": COLD, "TwoTower": TwoTower}


def save_ctr(model: ClickModel, folder: Path | str) -> None:
    """Write `model.safetensors` into a folder. Fixed vectors are not stored."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "class": type(model).__name__,
        "trunk": type(model.trunk).__name__ if isinstance(model, ESMM) else None,
        "config": asdict(model.config),
        "shape": asdict(model.shape),
    }
    Snapshot(model.state_dict(), facts).write(folder / FILE)


def load_ctr(folder: Path | str, vectors: np.ndarray | None = None) -> ClickModel:
    """The inverse of `save_ctr`; the fixed vectors that a DIN was fitted with are handed over
    again.
    """
    file = Path(folder) / FILE
    kept = Snapshot.read(file, "a saved click model")
    facts = check_keys(str(file), kept.facts, FACTS)
    try:
        shape = Shape(**facts["shape"])
    except TypeError as error:
        raise KarmafunnelError(
            file, needs="the shape of a click model", found=quoted(facts["shape"])
        ) from error
    kind = facts["trunk"] or facts["class"]
    if kind not in MODELS:
        raise KarmafunnelError(file, needs=f"one of {sorted(MODELS)}", found=repr(kind))
    config = {name: tuple(x) if isinstance(x, list) else x for name, x in facts["config"].items()}
    fixed = {"vectors": vectors} if kind == "DIN" else {}
    try:
        model: ClickModel = MODELS[kind](shape, CONFIGS[kind](**config), **fixed)
        if facts["class"] == "ESMM" and isinstance(model, Trunk):
            model = ESMM(model)
        model.load_state_dict(kept.tensors)
    # torch's and Python's, of another config
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise KarmafunnelError(
            file, needs="the click model that its facts describe", found=f"{line_of(error)}"
        ) from error
    return model.eval()
