"""Calibration: from the scores of a stage to probabilities of the label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from ..bounds import Bound
from ..errors import KarmafunnelError
from ..files import read_json, write_json
from ..shapes import check_keys, each, number, one_of


def probabilities(p: np.ndarray, who: str) -> np.ndarray:
    """`p` itself; raises KarmafunnelError naming `who` where a value is not in 0..1."""
    p = np.asarray(p)
    bad = ~((p >= 0) & (p <= 1))
    if bad.any():
        found = f"{p[bad][0]} ({np.count_nonzero(bad)} such rows)"
        raise KarmafunnelError(who, needs="probabilities in 0..1", found=found)
    return p


@dataclass(frozen=True)
class Isotonic:
    """Score -> probability by isotonic regression: assumes no form, needs many rows, and gives many
    equal probabilities.
    """

    x: list[float]
    y: list[float]

    @classmethod
    def fit(cls, score: np.ndarray, label: np.ndarray) -> Isotonic:
        from sklearn.isotonic import IsotonicRegression

        iso = IsotonicRegression(y_min=1e-5, y_max=1 - 1e-5, out_of_bounds="clip").fit(score, label)
        return cls(iso.X_thresholds_.tolist(), iso.y_thresholds_.tolist())

    def __call__(self, score: np.ndarray) -> np.ndarray:
        return np.interp(score, self.x, self.y)


@dataclass(frozen=True)
class Temperature:
    """Score -> probability as sigmoid(score / temperature + shift): two numbers, needs few rows and
    keeps the order.

    Platt 1999, with his smoothed labels; the name is of Guo et al. 2017 (arXiv 1706.04599). Where
    all scores are equal, the probability is the rate of the label.
    """

    temperature: float
    shift: float

    @classmethod
    def fit(cls, score: np.ndarray, label: np.ndarray) -> Temperature:
        x, y = np.asarray(score, dtype=np.float64), np.asarray(label, dtype=np.float64)
        mean, scale = x.mean(), x.std() if x.std() > 1e-9 * (1 + abs(x.mean())) else 1.0
        n = y.sum()
        target = np.where(y > 0, (n + 1) / (n + 2), 1 / (len(y) - n + 2))

        def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
            z = (x - mean) / scale
            a = at[0] * z + at[1]
            error = expit(a) - target
            return float((np.logaddexp(0, a) - target * a).mean()), np.array(
                [(error * z).mean(), error.mean()]
            )

        slope, shift = minimize(
            loss,
            np.array([1.0, 0.0]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(1e-3, None), (None, None)],
        ).x
        return cls(float(scale / slope), float(shift - slope * mean / scale))

    def __call__(self, score: np.ndarray) -> np.ndarray:
        return expit(np.asarray(score, dtype=np.float64) / self.temperature + self.shift)


Calibration = Isotonic | Temperature
CALIBRATIONS: dict[str, type[Isotonic] | type[Temperature]] = {
    "isotonic": Isotonic,
    "temperature": Temperature,
}
NUMBER = number(Bound(-1e300, 1e300))
POSITIVE = number(Bound(0.0, 1e300, above=True))
Calibrated = Literal["isotonic", "temperature", ""]


def fit_calibration(
    kind: Calibrated, score: np.ndarray, label: np.ndarray, who: str
) -> Calibration:
    """Fit score -> probability of the label.

    Raises:
        KarmafunnelError: for scores that are not finite and for labels of one class.
    """
    infinite = ~np.isfinite(score)
    if infinite.any():
        found = f"{score[infinite][0]}"
        raise KarmafunnelError(who, needs="finite scores to calibrate", found=found)
    n, positives = len(label), int(np.sum(label))
    if not 0 < positives < n:
        raise KarmafunnelError(
            who,
            what=f"calibrated={kind!r}",
            needs="rows of W2b with and without the label",
            found=f"{positives} with it among {n}",
            hint='calibrated="" does without',
        )
    return CALIBRATIONS[kind].fit(score, label)


def save_calibration(calibration: Calibration, path: Path) -> None:
    write_json(path, {"kind": type(calibration).__name__.lower(), **vars(calibration)})


def load_calibration(path: Path) -> Calibration:
    """The inverse of `save_calibration`; raises KarmafunnelError naming the file and the key that
    is wrong.
    """
    kept = check_keys(str(path), read_json(path), {"kind": one_of(*CALIBRATIONS)})
    if kept.pop("kind") == "temperature":
        check_keys(str(path), kept, {"temperature": POSITIVE, "shift": NUMBER})
        return Temperature(float(kept["temperature"]), float(kept["shift"]))
    check_keys(str(path), kept, dict.fromkeys(("x", "y"), each(NUMBER)))
    if len(kept["x"]) != len(kept["y"]) or not kept["x"]:
        found = f"{len(kept['x'])} and {len(kept['y'])}"
        raise KarmafunnelError(path, needs="as many x as y, at least one", found=found)
    return Isotonic(list(map(float, kept["x"])), list(map(float, kept["y"])))


def check_calibrated(name: str, calibrated: str) -> None:
    """Raise KarmafunnelError naming the stage for an unknown calibration."""
    if calibrated not in ("", *CALIBRATIONS):
        wanted, found = "'isotonic', 'temperature' or ''", repr(calibrated)
        raise KarmafunnelError(name, what="calibrated", needs=wanted, found=found)
