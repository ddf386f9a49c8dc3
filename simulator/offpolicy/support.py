"""What importance weights are worth, before any estimate: effective sample size and support."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import KarmafunnelError

# what a user can do where no estimate is to be had
INSTEAD = (
    "let the engine show something else now and then and record `propensity`, or run an A/B test"
)


@dataclass(frozen=True)
class Support:
    """How far the logged lists carry an evaluated policy.

    Args:
        n: requests.
        effective: effective sample size, (sum of weights)^2 / sum of squares (Kish 1965).
        mean: of the weights: 1 where the log shows, sooner or later, all that the policy shows.
        largest: the share that the heaviest request has of all weights.
        unseen: the share of the policy's probability that lies on what the log never shows.
    """

    n: int
    effective: float
    mean: float
    largest: float
    unseen: float

    @classmethod
    def of(cls, weight: np.ndarray, unseen: np.ndarray) -> Support:
        """Of weights (n,) and, of each request, the unseen share of the policy, (n,)."""
        total, squares = float(weight.sum()), float((weight**2).sum())
        return cls(
            len(weight),
            total**2 / squares if squares else 0.0,
            total / max(len(weight), 1),
            float(weight.max(initial=0.0)) / total if total else 0.0,
            float(unseen.mean()) if len(unseen) else 0.0,
        )

    def check(self, who: str, fewest: float = 10.0, outside: str | None = None) -> None:
        """Raises KarmafunnelError where an estimate would rest on fewer than so many requests.

        outside: the first request whose list the policy never shows.
        """
        if self.effective < fewest:
            first = f"; the first list that it never shows: request {outside!r}" if outside else ""
            raise KarmafunnelError(
                who,
                needs=f"an effective sample size of {fewest:g}: lists of the log that the "
                "evaluated policy shows as well",
                found=f"{self.effective:.2g} of {self.n:,} requests; {self.unseen:.0%} of what it "
                f"shows never stands in the log{first}",
                hint=INSTEAD,
            )
