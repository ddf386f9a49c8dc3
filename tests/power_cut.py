"""A fit of KARMA's trainer that dies within an epoch."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from karmafunnel.models.karma import train


@contextmanager
def power_cut(step: int) -> Iterator[None]:
    """Every step is saved, and the one of that number is not made: the fit inside must die."""
    real, steps = train.Trainer.one_step, []

    def dies(self, pieces):
        steps.append(1)
        if len(steps) == step:
            raise RuntimeError("power cut")
        return real(self, pieces)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(train, "SAVE_EVERY", 0.0)
        patch.setattr(train.Trainer, "one_step", dies)
        yield
