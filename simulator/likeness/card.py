"""The report card of a simulated log: its lines, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...bounds import check_seed
from ...checks import require
from ...log import Log
from ...stages.context import Progress, silent
from ..measure.run import Run
from . import policy_order, two_samples
from .card_lines import LINES
from .held_out import Part, parts
from .judging import Answer

ENOUGH = 8  # answered lines, without which no card passes
NOT_ASKED = "not asked for: it replays funnels on both logs"


@dataclass(frozen=True, eq=False)
class Card:
    """How true a simulated log is to a real one, line by line.

    sizes: requests and users that were compared, of the real log, the simulated one, and the
    real one's window before (None without one).
    """

    real: str
    simulated: str
    sizes: tuple[tuple[int, int] | None, ...]
    answers: tuple[Answer, ...]

    @property
    def answered(self) -> int:
        return sum(answer.verdict != "n/a" for answer in self.answers)

    @property
    def verdict(self) -> Literal["PASS", "look here", "FAIL", "too few answered"]:
        """FAIL for any line that fails; PASS where at least 8 are answered and all pass."""
        said = {answer.verdict for answer in self.answers}
        if "FAIL" in said:
            return "FAIL"
        if self.answered < ENOUGH:
            return "too few answered"
        return "look here" if "look here" in said else "PASS"

    def of(self, name: str) -> Answer:
        """The line of this name."""
        return next(answer for answer in self.answers if answer.name == name)

    def worst(self) -> list[Answer]:
        """The lines that do not pass, those furthest beyond what is allowed first."""
        told = [a for a in self.answers if a.verdict in ("FAIL", "look here")]
        return sorted(told, key=lambda a: -(a.distance or 0.0) / (a.allowed or 1.0))

    def as_dict(self) -> dict[str, Any]:
        """The card as plain values, without its drawings."""
        keys = ("name", "unit", "kind", "verdict", "real", "simulated", "distance", "chance")
        lines = []
        for answer in self.answers:
            told = {
                key: getattr(answer, key) for key in (*keys, "drift", "allowed", "moved", "why")
            }
            lines.append(told | ({"parts": dict(answer.parts)} if answer.parts else {}))
        sizes = {}
        for name, size in zip(("real", "simulated", "before"), self.sizes, strict=True):
            sizes[name] = None if size is None else {"requests": size[0], "users": size[1]}
        named = {"real": self.real, "simulated": self.simulated, "verdict": self.verdict}
        return named | {"answered": self.answered, "sizes": sizes, "lines": lines}


def likeness(
    real: Log,
    simulated: Log,
    runs: tuple[Mapping[str, Run], Mapping[str, Run]] | None = None,
    seed: int = 0,
    say: Progress = silent,
) -> Card:
    """The report card of a simulated log: its last window against that of the real log.

    Args:
        runs: Runs of the same funnels on the real and on the simulated log, by name, for the line
            of their order; without them it is n/a.

    Raises:
        KarmafunnelError: a log that fails a check whose failure would change a figure, or a last
            window with fewer than 30 requests.
    """
    check_seed("likeness", seed)
    for log in (real, simulated):
        require(log)
    mine, theirs, before = parts(real, simulated)
    answers = []
    for i, line in enumerate(LINES):
        say(f"line {i + 1} of {len(LINES)}: {line.name}")
        rng = np.random.default_rng([seed, i])
        answers.append(line.answer(mine, theirs, before, rng))
    rng = np.random.default_rng([seed, len(LINES)])
    answers.append(two_samples.answer(mine, theirs, before, rng, say))
    order = Answer(policy_order.NAME, policy_order.UNIT, policy_order.KIND, "n/a", why=NOT_ASKED)
    if runs is not None:
        order = policy_order.answer(*runs, np.random.default_rng([seed, len(LINES) + 1]))
    return Card(
        real.name,
        simulated.name,
        (size(mine), size(theirs), None if before is None else size(before)),
        (*answers, order),
    )


def size(part: Part) -> tuple[int, int]:
    """Requests and users."""
    return part.n, part.n_users
