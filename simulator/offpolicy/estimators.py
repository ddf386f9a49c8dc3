"""Off-policy estimators as values: what an evaluated policy would have earned a request, from the
lists that a logging policy showed.

A list has k slots; one slot is the plain contextual bandit. An importance weight is the probability
under the evaluated policy over that under the logging policy. It is that of the whole list, of what
stands in a slot, of a slot with all before it, or of a click on the item in a slot. Each estimate
is a sum of ratios over requests, so that the bootstrap by user draws numerators and denominators
together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...bounds import Bound, check_bound, check_switch
from ...errors import KarmafunnelError
from ...typed import Typed
from ..measure.intervals import Ratio, Total

Of = Literal["list", "slot", "prefix", "click"]
OF = ("list", "slot", "prefix")
WEIGHT = Bound(0.0, 1e12, above=True)


@dataclass(frozen=True, eq=False)
class Logged:
    """What estimators read of n requests with k slots each.

    reward (n, k): what each slot earned, 0 where a list is shorter. weights: by kind (n, k); a
    shorter list repeats its last prefix, and has 1 as the weight of an empty slot. cluster (n,):
    the user. The rest is what a model says, None without one. predicted, expected (n, k): what a
    slot earns, for the item that was shown and on average over what the evaluated policy would show
    after the same prefix. direct (n,): what a list of the evaluated policy earns.
    """

    reward: np.ndarray
    weights: Mapping[Of, np.ndarray]
    cluster: np.ndarray
    predicted: np.ndarray | None = None
    expected: np.ndarray | None = None
    direct: np.ndarray | None = None

    def of(self, kind: Of, who: Typed) -> np.ndarray:
        """Weights of a kind, (n, k); raises KarmafunnelError where they are not known."""
        if kind not in self.weights:
            found = ", ".join(self.weights) or "none"
            raise KarmafunnelError(repr(who), needs=f"weights of each {kind}", found=found)
        return self.weights[kind]

    def told(self, name: str, who: Typed) -> np.ndarray:
        """What the model says by that name; raises KarmafunnelError without a model."""
        found: np.ndarray | None = getattr(self, name)
        if found is None:
            raise KarmafunnelError(repr(who), needs="a model of the reward", found="none")
        return found


@dataclass(frozen=True, repr=False)
class Estimator(Typed, ABC):
    """An off-policy estimator; `reads`: the kind of weights, None for none."""

    @property
    def reads(self) -> Of | None:
        return "list"

    @abstractmethod
    def of(self, logged: Logged) -> Total:
        """The mean reward of a request under the evaluated policy.

        Raises KarmafunnelError where the log lacks what it reads.
        """


@dataclass(frozen=True, repr=False)
class IPS(Estimator):
    """Inverse propensity score: the mean of weight * reward (Horvitz & Thompson 1952).

    Args:
        weight: of the whole list (SIPS); of each slot, if a slot's reward hangs on its item alone
            (IIPS, Li et al. 2018, arXiv 1804.10488); or of each prefix, if it hangs on what stands
            above it (RIPS, McInerney et al. 2020, arXiv 2007.12986). With one slot all are IPS.
        clip: weights above it become it; None for none.
        normalised: divided by the mean weight (SNIPS, Swaminathan & Joachims 2015), slot by slot
            unless `weight` is of the list.
    """

    weight: Of = "list"
    clip: float | None = None
    normalised: bool = False

    def __post_init__(self) -> None:
        check_weight(self, self.weight, self.clip, self.normalised)

    @property
    def reads(self) -> Of:
        return self.weight

    def of(self, logged: Logged) -> Total:
        weight = clipped(logged.of(self.weight, self), self.clip)
        if not self.normalised:
            return mean((weight * logged.reward).sum(axis=1), logged)
        if self.weight == "list":
            weight, reward = weight[:, :1], logged.reward.sum(axis=1, keepdims=True)
        else:
            reward = logged.reward
        return normalised(weight, reward, logged)


@dataclass(frozen=True, repr=False)
class ReplayMethod(Estimator):
    """The mean reward of requests whose list is what the evaluated policy may show (Li et al. 2011,
    arXiv 1003.5956): for a policy without chance, and a log that shows all lists equally often.
    """

    def of(self, logged: Logged) -> Total:
        same = (logged.of("list", self)[:, :1] > 0).astype(np.float64)
        return normalised(same, logged.reward.sum(axis=1, keepdims=True), logged)


@dataclass(frozen=True, repr=False)
class DM(Estimator):
    """Direct method: the mean of what a model of the reward expects (Beygelzimer & Langford
    2009).
    """

    @property
    def reads(self) -> None:
        return None

    def of(self, logged: Logged) -> Total:
        return mean(logged.told("direct", self), logged)


@dataclass(frozen=True, repr=False)
class DR(Estimator):
    """Doubly robust: the model, corrected by weight * (reward - prediction) (Dudik et al. 2011,
    arXiv 1103.4601). With several slots it is cascade-DR (Kiyohara et al. 2022, arXiv 2202.01562).

    Args:
        clip: weights above it become it; None for none.
        switch: where a weight is above it the correction is left out (switch-DR, Wang et al. 2017,
            arXiv 1612.01205); None for nowhere.
        normalised: corrections are divided by the mean weight (SNDR).
    """

    clip: float | None = None
    switch: float | None = None
    normalised: bool = False

    def __post_init__(self) -> None:
        check_weight(self, "prefix", self.clip, self.normalised)
        if self.switch is not None:
            check_bound("DR", WEIGHT, switch=self.switch)

    @property
    def reads(self) -> Of:
        return "prefix"

    def of(self, logged: Logged) -> Total:
        predicted, expected = (logged.told(x, self) for x in ("predicted", "expected"))
        whole = logged.of("prefix", self)
        weight = clipped(whole, self.clip)
        before = np.concatenate([np.ones((len(weight), 1)), weight[:, :-1]], axis=1)
        wrong = logged.reward - predicted
        if self.switch is not None:
            wrong = np.where(whole <= self.switch, wrong, 0.0)
        if not self.normalised:
            return mean((weight * wrong + before * expected).sum(axis=1), logged)
        parts = [*normalised(weight, wrong, logged).parts]
        return Total((*parts, *normalised(before, expected, logged).parts))


@dataclass(frozen=True, repr=False)
class CIPS(Estimator):
    """Click-based IPS: what clicked items earned, by the weights of clicks (Tanaka et al. 2026,
    arXiv 2603.21485). A log needs no chance for it, but a model of who clicks.

    Args:
        clip: weights above it become it; None for none.
    """

    clip: float | None = None

    def __post_init__(self) -> None:
        check_weight(self, "list", self.clip, False)

    @property
    def reads(self) -> Of:
        return "click"

    def of(self, logged: Logged) -> Total:
        weight = clipped(logged.of("click", self), self.clip)
        return mean((weight * logged.reward).sum(axis=1), logged)


@dataclass(frozen=True, repr=False)
class CDR(Estimator):
    """Click-based doubly robust: what the model says of the evaluated list, corrected by weights of
    clicks * (reward - prediction) (Tanaka et al. 2026, arXiv 2603.21485).
    """

    @property
    def reads(self) -> Of:
        return "click"

    def of(self, logged: Logged) -> Total:
        direct, predicted = (logged.told(x, self) for x in ("direct", "predicted"))
        wrong = logged.of("click", self) * (logged.reward - predicted)
        return mean(direct + wrong.sum(axis=1), logged)


def check_weight(value: Typed, weight: str, clip: float | None, normalised: bool) -> None:
    """Raises KarmafunnelError for options that are none."""
    who = type(value).__name__
    if weight not in OF:
        raise KarmafunnelError(who, what="weight", needs=f"one of {OF}", found=repr(weight))
    if clip is not None:
        check_bound(who, WEIGHT, clip=clip)
    check_switch(who, normalised=normalised)


def clipped(weight: np.ndarray, clip: float | None) -> np.ndarray:
    """Weights of at most `clip`."""
    return weight if clip is None else np.minimum(weight, clip)


def mean(x: np.ndarray, logged: Logged) -> Total:
    """The mean of one figure a request, (n,)."""
    return Total((Ratio(x, np.ones(len(x)), logged.cluster),))


def normalised(weight: np.ndarray, x: np.ndarray, logged: Logged) -> Total:
    """Sum over slots of the weighted mean of x, both (n, slots)."""
    columns = zip(weight.T, x.T, strict=True)
    return Total(tuple(Ratio(w * one, w, logged.cluster) for w, one in columns))


# by the name that tables print
ESTIMATORS: dict[str, Estimator] = {
    "IPS": IPS(),
    "clipped IPS": IPS(clip=10.0),
    "SNIPS": IPS(normalised=True),
    "IIPS": IPS("slot"),
    "SNIIPS": IPS("slot", normalised=True),
    "RIPS": IPS("prefix"),
    "SNRIPS": IPS("prefix", normalised=True),
    "replay method": ReplayMethod(),
    "DM": DM(),
    "DR": DR(),
    "SNDR": DR(normalised=True),
    "switch-DR": DR(switch=10.0),
}
# for logs without chance
CLICK_ESTIMATORS: dict[str, Estimator] = {
    "CIPS": CIPS(),
    "clipped CIPS": CIPS(clip=10.0),
    "DM": DM(),
    "CDR": CDR(),
}
