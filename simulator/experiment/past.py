"""What a shop has logged, as funnels are fitted on it and see it while they serve."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from ...errors import KarmafunnelError
from ...log import Log

W1, W2A = 0.75, 0.9375  # shares of the requests before a fit; the rest is W2b


@dataclass(eq=False)
class Past:
    """Requests and exposures in their order.

    `begin_fit` cuts what is there into W1 and W2, to learn from; what comes later is W3, until the
    next fit. So a funnel that was fitted sees the same windows as long as it serves.

    Args:
        items: the catalogue, as a Log holds it.
        meta: of log.json.
        days: how many days before a fit are kept.
    """

    items: pl.DataFrame
    meta: dict[str, Any]
    days: int
    requests: list[pl.DataFrame] = field(default_factory=list)
    exposures: list[pl.DataFrame] = field(default_factory=list)

    def add(self, requests: pl.DataFrame, exposures: pl.DataFrame) -> None:
        """Requests, and what they were shown."""
        self.requests.append(requests.with_columns(pl.lit("W3").alias("window")))
        self.exposures.append(exposures)

    def first(self) -> Log:
        """The log of what is there, all of it in W1."""
        requests = pl.concat(self.requests).with_columns(window=pl.lit("W1"))
        return Log.make(self.items, requests, pl.concat(self.exposures), self.meta)

    def begin_fit(self) -> None:
        """Drop what is older than `days`, and cut the rest into windows by time.

        Raises KarmafunnelError where no request, or no click, is there to learn from.
        """
        who, hint = "experiment", "more users, or more days before"
        if not self.requests:
            raise KarmafunnelError(who, needs="requests to fit funnels on", found="none", hint=hint)
        requests = pl.concat(self.requests).sort("ts", maintain_order=True)
        last = requests["ts"].max()
        requests = requests.filter(pl.col("ts") > last - pl.duration(days=self.days))
        kept = requests.select("request_id")
        exposures = pl.concat(self.exposures).join(kept, on="request_id", how="semi")
        if not exposures["clicked"].any():
            needed, found = "clicks to fit funnels on", f"none in {requests.height:,} requests"
            raise KarmafunnelError(who, needs=needed, found=found, hint=hint)
        row = pl.int_range(pl.len())
        window = (
            pl.when(row < W1 * pl.len())
            .then(pl.lit("W1"))
            .when(row < W2A * pl.len())
            .then(pl.lit("W2a"))
            .otherwise(pl.lit("W2b"))
        )
        self.requests = [requests.with_columns(window.alias("window"))]
        self.exposures = [exposures]

    def log(self, now: pl.DataFrame) -> Log:
        """The log with requests that are served now, in W3, of which nothing was shown yet."""
        now = now.with_columns(pl.lit("W3").alias("window"))
        requests = pl.concat([*self.requests, now])
        return Log.make(self.items, requests, pl.concat(self.exposures), self.meta)
