"""What several tests share: where real data lies, and a small shop."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from karmafunnel.log import Log
from shop import make_shop

settings.register_profile("untimed", deadline=None)  # how long a busy machine takes is no property of the code
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def data_root() -> Callable[[str], Path]:
    """The folder of a real data set; the test is skipped, saying so, where it is missing."""
    root = Path(os.environ.get("KARMAFUNNEL_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data")

    def find(source: str) -> Path:
        if not (root / source).is_dir():
            pytest.skip(f"no real data: needs {root / source} (set KARMAFUNNEL_DATA)")
        return root / source

    return find


@pytest.fixture(scope="session")
def shop() -> Log:
    return make_shop()
