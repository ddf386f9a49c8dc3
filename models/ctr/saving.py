"""Click models on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ...bounds import Bound
from ...errors import KarmafunnelError, line_of, quoted
from ...files import atomic_folder, check, read_json, write_json
from ...shapes import ANY, TEXT, by_name, check_keys, maybe, number
from .cold import COLD, COLDConfig
from .dcn import DCN, DCNConfig
from .din import DIN, DINConfig
from .esmm import ESMM
from .inputs import ClickModel, Shape, Trunk
from .two_tower import TwoTower, TwoTowerConfig


def save_ctr(model: ClickModel, folder: Path | str) -> None:
    """Write `model.safetensors` and `model.json`; the folder appears whole or not at all. Fixed
    vectors are not stored.
    """
    with atomic_folder(folder, sealed=True) as temporary:
        save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, temporary / "model.safetensors")
        write_json(
            temporary / "model.json",
            {
                "class": type(model).__name__,
                "trunk": type(model.trunk).__name__ if isinstance(model, ESMM) else None,
                "config": asdict(model.config),
                "shape": asdict(model.shape),
            },
        )


SIZE = number(Bound(0, 100_000_000))


def load_ctr(folder: Path | str, vectors: np.ndarray | None = None) -> ClickModel:
    """The inverse of `save_ctr`; the fixed vectors that a DIN was fitted with are handed over
    again.
    """
    folder = Path(folder)
    try:
        kept = read_json(folder / "model.json")
        check(folder)
        state = load_file(folder / "model.safetensors")
    except (OSError, KarmafunnelError, SafetensorError) as error:
        raise KarmafunnelError(f"{folder}: needed a saved click model, found: {error}") from error
    check_keys(f"{folder}/model.json", kept, {"class": TEXT, "trunk": maybe(TEXT), "config": by_name(ANY), "shape": by_name(SIZE)})
    try:
        shape = Shape(**kept["shape"])
    except TypeError as error:
        raise KarmafunnelError(f"{folder}/model.json: needed the shape of a click model, found {quoted(kept['shape'])}") from error
    config: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in kept["config"].items()}
    builders: dict[str, Callable[[], ClickModel]] = {
        "DIN": lambda: DIN(shape, DINConfig(**config), vectors=vectors),
        "DCN": lambda: DCN(shape, DCNConfig(**config)),
        "COLD": lambda: COLD(shape, COLDConfig(**config)),
        "TwoTower": lambda: TwoTower(shape, TwoTowerConfig(**config)),
    }
    kind = kept["trunk"] or kept["class"]
    if kind not in builders:
        raise KarmafunnelError(f"{folder}: needed one of {sorted(builders)}, found {kind!r}")
    try:
        model = builders[kind]()
        if kept["class"] == "ESMM" and isinstance(model, Trunk):
            model = ESMM(model)
        model.load_state_dict(state)
    # torch's and Python's, of another config
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise KarmafunnelError(f"{folder}: needed a click model of its model.json, found: {line_of(error)}") from error
    return model.eval()
