"""Several rankers as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from scipy.optimize import minimize

from ..bounds import Bound, check_bound, several
from ..errors import KarmafunnelError, quoted
from ..files import read_json, write_json
from ..shapes import check_keys, each, number
from .calibration import Calibrated, check_calibrated
from .context import Context
from .frame import REQUEST, group_rows
from .learn import Learned, Sample, sampled, spaced
from .learner import Learner
from .rows import Rows
from .stage import FittedFunnel, Stage

WEIGHT = Bound(0.0, 1e6)
ALL = 10**6  # of a request's other candidates


@dataclass(frozen=True, repr=False)
class Blend(Stage):
    """Several learned stages as one ranker: the weighted sum of their scores, each as a z-score
    among the candidates of its request.

    Every part is fitted on the upstream of the blend; parts with equal features and `sample` share
    the rows that they learn from and, when they serve, their features. A blend costs what its parts
    cost together. The score of a part that is a probability enters as log-odds. `k`, `name` and
    `calibrated` of parts are not used.

    Args:
        parts: two or more of them.
        weights: one number a part, not negative; () for equal weights; "fitted" for those under
            which the relevant items of W2b are most likely, each request's being the choice of a
            softmax over its candidates (conditional logit, McFadden 1974).
    """

    parts: Sequence[Learner] = field(default=(), metadata={"positional": True, "always": True})
    k: int = 50
    weights: Sequence[float] | Literal["fitted"] = ()
    calibrated: Calibrated = "isotonic"
    name: str = "rank"

    teaches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        wanted = "two or more learned stages such as LightGBMRank()"
        object.__setattr__(self, "parts", several(self.name, "parts", self.parts, wanted))
        wrong = [part for part in self.parts if not isinstance(part, Learner)]
        if wrong or len(self.parts) < 2:
            found = quoted(wrong[0]) if wrong else f"{len(self.parts)}"
            raise KarmafunnelError(self.name, what="parts", needs=wanted, found=found)
        if not isinstance(self.weights, str) or self.weights != "fitted":
            self._check_weights()
        check_calibrated(self.name, self.calibrated)

    def _check_weights(self) -> None:
        wanted = f"'fitted' or one number for each of {len(self.parts)} parts, not all 0"
        given = several(self.name, "weights", self.weights, wanted)
        is_word = isinstance(self.weights, str)
        for weight in () if is_word else given:
            check_bound(self.name, WEIGHT, weights=weight)
        if is_word or (given and (len(given) != len(self.parts) or not any(given))):
            found = quoted(self.weights)
            raise KarmafunnelError(self.name, what="weights", needs=wanted, found=found)
        object.__setattr__(self, "weights", given)

    def inside(self) -> tuple[Stage, ...]:
        return tuple(self.parts)

    def embedders(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.embedders())

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedBlend:
        parts: list[Any] = []
        for i, part in enumerate(self._own(), start=1):
            context.progress(f"{self.name}: part {i} of {len(self.parts)}, {type(part).__name__}")
            parts.append(part.fit(context, upstream))
        equal = np.full(len(parts), 1 / len(parts))
        fitted = FittedBlend(self, context, tuple(parts), equal)
        most = max(part.sample.requests for part in self.parts)
        if self.weights == "fitted" and upstream is not None:
            fitted.weights = fitted.fit_weights(upstream, most)
        elif self.weights:
            fitted.weights = np.asarray(self.weights, dtype=np.float64)
        fitted.calibrate(self.calibrated, upstream, most)
        return fitted

    def _own(self) -> list[Learner]:
        """The parts as they are fitted: under the name of the blend, without a calibration."""
        own = {"name": self.name, "calibrated": ""}
        return [replace(cast(Any, part), **own) for part in self.parts]

    def load(self, folder: Path, context: Context) -> FittedBlend:
        path = folder / "weights.json"
        kept = check_keys(str(path), read_json(path), {"weights": each(number(WEIGHT))})
        if len(kept["weights"]) != len(self.parts):
            wanted, found = f"{len(self.parts)} weights", f"{len(kept['weights'])}"
            raise KarmafunnelError(path, needs=wanted, found=found)
        parts: list[Any] = []
        for i, part in enumerate(self._own()):
            parts.append(part.load(folder / f"part{i}", context))
        fitted = FittedBlend(self, context, tuple(parts), np.array(kept["weights"], np.float64))
        fitted.read_calibration(self.calibrated, folder)
        return fitted


@dataclass(eq=False, repr=False)
class FittedBlend(Learned):
    stage: Blend
    parts: tuple[Learned, ...]
    weights: np.ndarray  # (n_parts,)

    def scores(self, rows: Rows) -> np.ndarray:
        """The z-scores of every row: float64 (n_rows, n_parts)."""
        found = []
        for part in self.parts:
            score = np.asarray(part.log_odds(part.score(rows)), dtype=np.float64)
            found.append(rows.z_score(score))
        return np.stack(found, axis=1)

    def score(self, rows: Rows) -> np.ndarray:
        total = np.zeros(len(rows.item))
        # column by column: a product of matrices rounds by how many rows there are
        for weight, column in zip(self.weights, self.scores(rows).T, strict=True):
            total += weight * column
        return total.astype(np.float32)

    def fit_weights(self, upstream: FittedFunnel, most: int) -> np.ndarray:
        """Weights for the relevant items of at most `most` requests of W2b: (n_parts,)."""
        log = self.context.log
        requests = np.intersect1d(log.requests_in("W2b"), self.context.truth[REQUEST].to_numpy())
        x, y, request = [], [], []
        sample = Sample(passed=ALL)
        for rows, chosen in sampled(self.context, upstream, spaced(requests, most), sample, 3):
            x.append(self.scores(rows)[chosen])
            y.append(rows.frame["truth"].to_numpy()[chosen])
            request.append(rows.request[chosen])
        if not x or not np.concatenate(y).any():
            wanted = "relevant items of W2b among what its upstream passes"
            found = f"none in {len(requests)} requests"
            hint = "weights=() does without"
            raise KarmafunnelError(self.stage.title, needs=wanted, found=found, hint=hint)
        return choice_weights(np.concatenate(x), np.concatenate(y), np.concatenate(request))

    def why(self, rows: Rows) -> list[str]:
        """The weighted z-score of every part, with the part's own reasons."""
        shares = self.scores(rows) * self.weights
        reasons = [part.why(rows) for part in self.parts]
        texts = []
        for row, share in enumerate(shares):
            told = []
            for part, value, why in zip(self.parts, share, reasons, strict=True):
                reason = f" ({why[row]})" if why[row] else ""
                told.append(f"{type(part.stage).__name__} {value:+.2f}{reason}")
            texts.append("; ".join(told))
        return texts

    def save(self, folder: Path) -> None:
        super().save(folder)
        write_json(folder / "weights.json", {"weights": self.weights.tolist()})
        for i, part in enumerate(self.parts):
            place = folder / f"part{i}"
            place.mkdir()
            part.save(place)


def choice_weights(x: np.ndarray, y: np.ndarray, request: np.ndarray) -> np.ndarray:
    """The weights w >= 0 that maximise the mean over requests of the mean over its relevant rows of
    log softmax(x w), the softmax being over the rows of the request: float64 (d,).

    Requests without a relevant row count nothing. Where no weight is above 0, all are equal.

    Args:
        x: (n, d).
        y: whether a row is relevant, (n,) bool.
        request: of each row, in any order, (n,).
    """
    _, group = group_rows(request)
    sequence = np.argsort(group, kind="stable")
    positives = np.bincount(group, y)
    sequence = sequence[positives[group[sequence]] > 0]
    x, y, group = x[sequence], y[sequence], group[sequence]
    sizes = np.unique(group, return_counts=True)[1]
    starts = np.cumsum(sizes) - sizes
    share = y / positives[group]  # sums to 1 in each request

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w
        e = np.exp(z - np.repeat(np.maximum.reduceat(z, starts), sizes))
        p = e / np.repeat(np.add.reduceat(e, starts), sizes)
        value = -(share @ np.log(np.maximum(p, 1e-300)))
        return float(value / len(sizes)), ((p - share) @ x) / len(sizes)

    start = np.full(x.shape[1], 1 / x.shape[1])
    bounds = [(0.0, WEIGHT.high)] * x.shape[1]
    found: np.ndarray = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found if found.any() else start
