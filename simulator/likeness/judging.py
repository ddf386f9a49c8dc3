"""How far is too far: what chance and time alone do to the real log decides.

A distance is small if it is no larger than one of three: what two draws of the real log's own users
are apart (`chance`: the 99th percentile over resamples of users, as many as each log has), what the
real log is from its own window before (`drift`), and what matters to nobody (`TOLERANCE`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Verdict = Literal["PASS", "look here", "FAIL", "n/a"]
Kind = Literal["KS", "log ratio", "difference", "AUC - .5", "pairs swapped"]

# Largest distance of a kind that is small in any log: a twentieth of a distribution that lies
# elsewhere, a tenth more or less, one pair of ten in the other order. Ten independent properties,
# each a twentieth apart (d' .125), add up to d' .4, an AUC of .61.
TOLERANCE: dict[Kind, float] = {
    "KS": 0.05,
    "log ratio": float(np.log(1.1)),
    "difference": 0.05,
    "AUC - .5": 0.1,
    "pairs swapped": 0.1,
}
FAR = 2.0  # times the allowed distance: beyond is a FAIL
BLUNT = 4.0  # times the tolerance: where chance alone goes further, no PASS says anything
RESAMPLES = 400
LEVEL = 0.99
Curve = tuple[np.ndarray, np.ndarray]  # x, y


@dataclass(frozen=True, eq=False)
class Drawing:
    """Curves by name, with the titles of their axes; look: "line", "step" or "bar"."""

    curves: Mapping[str, Curve]
    x: str
    y: str
    look: Literal["line", "step", "bar"] = "line"
    log_scale: tuple[str, ...] = ()  # axes, "x" or "y"


@dataclass(frozen=True, eq=False)
class Answer:
    """What a line of the card says.

    real, simulated: a figure of each log; unit: what it is. distance: between the two logs, of this
    kind; chance, drift: what the real log is from itself; allowed: the largest of these and the
    tolerance. moved: of a distribution, how far values are from each other on average once both are
    sorted, in the figure's unit (Wasserstein distance). why: the reason of an n/a, or a remark.
    """

    name: str
    unit: str
    kind: Kind
    verdict: Verdict
    real: float | None = None
    simulated: float | None = None
    distance: float | None = None
    chance: float | None = None
    drift: float | None = None
    allowed: float | None = None
    why: str = ""
    drawing: Drawing | None = None
    parts: tuple[tuple[str, float], ...] = field(default=())
    moved: float | None = None


def judge(kind: Kind, distance: float, chance: float, drift: float | None) -> tuple[Verdict, float]:
    """The verdict on a distance, and the distance that is allowed."""
    allowed = max(TOLERANCE[kind], chance, drift or 0.0)
    if distance > allowed:
        return ("look here" if distance <= FAR * allowed else "FAIL"), allowed
    return ("n/a" if chance > BLUNT * TOLERANCE[kind] else "PASS"), allowed


def too_blunt(kind: Kind, chance: float) -> str:
    """Why a small distance says nothing where chance is wide."""
    most = BLUNT * TOLERANCE[kind]
    return f"too few users: chance alone is a distance of {chance:.2g}, more than {most:.2g}"


def by_chance(
    apart: Callable[[np.ndarray, np.ndarray], np.ndarray],
    users: tuple[int, int],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    at_a_time: int = 25,
) -> float:
    """The 99th percentile of the distance between two draws of the real log's users.

    Args:
        apart: distances (b,) between draws, each given as the weights of the users: (b, n_users).
        users: of the real log, and of the simulated one.
    """
    n, other = users
    found = []
    for start in range(0, resamples, at_a_time):
        b = min(at_a_time, resamples - start)
        even = np.full(n, 1.0 / n)
        found.append(apart(rng.multinomial(n, even, b), rng.multinomial(other, even, b)))
    return float(np.quantile(np.concatenate(found), LEVEL))
