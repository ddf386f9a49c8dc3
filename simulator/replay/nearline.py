"""Near-line interests: a fitted embedding whose interest vectors are refreshed every so many
minutes, and stale in between.

Nothing is fitted anew: the embedding is asked what it would have said at the last refresh before
each request, of the history as of then and of no query. KARMA served so costs nothing at request
time.
"""

from __future__ import annotations

import copy

import numpy as np
import polars as pl

from ...asof import AsOf
from ...bounds import check_bound
from ...errors import KarmafunnelError
from ...log import Log
from ...models.embedders import Embedding

MINUTE = 60_000  # ms


def at_times(log: Log, t: np.ndarray) -> Log:
    """The log as its requests would find it at other times, `t` (n_requests,) ascending, asking for
    nothing: no query, filters or context.
    """
    _ = log.user, log.session, log.rows, log.events, log.checksum  # those of the log itself
    view = copy.copy(log)
    asks = [
        pl.lit(None, dtype=log.requests.schema[c]).alias(c)
        for c in ("query", "filters", "context")
        if c in log.requests.columns
    ]
    vars(view).update(requests=log.requests.with_columns(asks), t=t)
    vars(view)["asof"] = AsOf(view, log.asof.past)
    return view


def refreshed(log: Log, minutes: float, who: str) -> np.ndarray:
    """The last refresh at or before each request: int64 (n_requests,), ms; refreshes lie `minutes`
    apart, counted from 1970 (UTC).

    Raises KarmafunnelError for minutes that are negative or not finite, and for a log whose time is
    an order.
    """
    check_bound(who, "stale_minutes", stale_minutes=minutes)
    if log.meta["time"] != "clock":
        raise KarmafunnelError(
            f"{who}: needs a log with clock times to count minutes, the time of log {log.name} is an order"
        )
    return log.t - log.t % max(round(minutes * MINUTE), 1)


class NearLine(Embedding):
    """A view of a fitted embedding: the interest of a request is that of its user at the last
    refresh, `minutes` apart; items stay.

    Queries are not read, so they have no vectors either. With minutes=0 the history is fresh and
    only the query is missing.
    """

    def __init__(self, fitted: Embedding, minutes: float, who: str = "near-line"):
        super().__init__(fitted.value, fitted.log, fitted.facts)
        self.fitted_on, self.fitted, self.minutes = fitted.fitted_on, fitted, minutes
        self.then = copy.copy(fitted)
        self.then.log = at_times(fitted.log, refreshed(fitted.log, minutes, who))

    def items(self) -> np.ndarray:
        return self.fitted.items()

    def interests(self, requests: np.ndarray) -> np.ndarray:
        return self.then.interests(requests)

    def queries(self, requests: np.ndarray) -> np.ndarray | None:
        return self.then.queries(requests)

    def tensors(self) -> dict[str, np.ndarray]:
        return self.fitted.tensors()


class UnavailableEmbedding(Embedding):
    """A view of a fitted embedding whose server is down: no request has a vector, items keep
    theirs.
    """

    def __init__(self, fitted: Embedding):
        super().__init__(fitted.value, fitted.log, fitted.facts)
        self.fitted_on, self.fitted = fitted.fitted_on, fitted

    def items(self) -> np.ndarray:
        return self.fitted.items()

    def interests(self, requests: np.ndarray) -> np.ndarray:
        return np.zeros((len(requests), self.items().shape[1]), dtype=np.float32)

    def queries(self, requests: np.ndarray) -> np.ndarray | None:
        return self.interests(requests) if self.fitted.asks else None

    def tensors(self) -> dict[str, np.ndarray]:
        return self.fitted.tensors()
