"""Near-line user embeddings, which are computed at fixed intervals instead of at each request.

Nothing is fitted again: each request gets the user embedding of the last refresh before it, from
the history as of then and without a query. KARMA served this way costs nothing at request time.
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
    """A view of the log with each request at time `t`, (n_requests,) ascending, and without its
    query, filters and context.
    """
    _ = log.user, log.session, log.rows, log.events, log.checksum  # computed once, before the copy
    view = copy.copy(log)
    empty = []
    for name in ("query", "filters", "context"):
        if name in log.requests.columns:
            empty.append(pl.lit(None, dtype=log.requests.schema[name]).alias(name))
    vars(view).update(requests=log.requests.with_columns(empty), t=t)
    vars(view)["asof"] = AsOf(view, log.asof.past)
    return view


def refreshed(log: Log, minutes: float, who: str) -> np.ndarray:
    """The time of the last refresh at or before each request: int64 (n_requests,), ms.

    Refreshes are `minutes` apart, counted from 1970 (UTC).

    Raises:
        KarmafunnelError: for minutes that are negative or not finite, and for a log without clock
            times.
    """
    check_bound(who, "stale_minutes", stale_minutes=minutes)
    if log.meta["time"] != "clock":
        found = f"log {log.name}, whose time is an order"
        raise KarmafunnelError(who, needs="a log with clock times to count minutes", found=found)
    return log.t - log.t % max(round(minutes * MINUTE), 1)


class NearLine(Embedding):
    """A view of a fitted embedding with user embeddings of the last refresh; items are unchanged.

    Queries are not read, so they have no vectors either. With minutes=0 the history is up to date
    and only the query is missing.
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
    """A view of a fitted embedding whose service is down: user embeddings are zero; items are
    unchanged.
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
