"""What several tests share: where real data lies, and a small shop."""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings
from karmafunnel.log import Log
from shop import make_shop

# how long a busy machine takes is no property of the code
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def data_root() -> Callable[[str], Path]:
    """The folder of a real data set; the test is skipped, saying so, where it is missing."""
    root = Path(
        os.environ.get("KARMAFUNNEL_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data"
    )

    def find(source: str) -> Path:
        if not (root / source).is_dir():
            pytest.skip(f"no real data: needs {root / source} (set KARMAFUNNEL_DATA)")
        return root / source

    return find


@pytest.fixture(scope="session")
def shop() -> Log:
    return make_shop()


@pytest.fixture(scope="session", autouse=True)
def every_training_step_repeats() -> Iterator[None]:
    """Whatever trains with torch in any test does so inside `models.training.seeded`: outside,
    equal fits differ.
    """
    if find_spec("torch") is None:
        yield
        return
    import torch

    step = torch.optim.AdamW.step

    def checked(*args: object, **kwargs: object) -> object:
        assert torch.are_deterministic_algorithms_enabled(), (
            "a step of an optimiser outside models.training.seeded"
        )
        return step(*args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", checked)
        yield
