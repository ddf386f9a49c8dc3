"""Blocks: the end of W1, cut into pieces as long as W2a, from which stage models learn as well.

What is fitted on W1 would know the answers of a block. So for each block embedders and channels are
fitted again, on what lies before the block alone (a rolling origin; Tashman 2000, "Out-of-sample
tests of forecasting accuracy", International Journal of Forecasting 16). W2a is the last block; its
fits are those that serve.
"""

from __future__ import annotations

import copy
import hashlib

import polars as pl

from ..errors import KarmafunnelError
from ..log import Log

MOST = 3  # blocks, with W2a


def as_of_block(log: Log, back: int) -> Log:
    """A view of a log for a block: W1 is what lies before the block, W2a is the block, and W3 is
    all that comes later.

    The view has the same items, requests and past as the log, and a checksum of its own.

    Args:
        back: which block: 1 for the last part of W1, 2 for the one before it.

    Raises:
        KarmafunnelError: for a log that knows only an order, and where W1 is too short: before the
            first block there must be as many requests as W2a has.
    """
    who = f"{back + 1} blocks of log {log.name}"
    if log.meta["time"] == "order":
        found = "an order: the publisher's windows are no parts of one time"
        raise KarmafunnelError(who, needs="a log with clock times to cut W1 by", found=found)
    served, size = log.requests_in("W1"), len(log.requests_in("W2a"))
    if size == 0 or len(served) < (back + 1) * size:
        needs = f"W1 to have {back + 1} times the requests of W2a, {(back + 1) * size:,}"
        found = f"{len(served):,} and {size:,} in W2a"
        raise KarmafunnelError(who, needs=needs, found=found, hint="use fewer blocks")
    start = int(log.t[served[len(served) - back * size]])
    if (n := int((log.t[served] < start).sum())) < size:
        needs = f"as many requests as W2a has, {size:,}, at times before the first block"
        found = f"{n:,}: many have the same time"
        raise KarmafunnelError(who, needs=needs, found=found, hint="use fewer blocks")
    end = log.end_of("W1")
    if back > 1:
        end = int(log.t[served[len(served) - (back - 1) * size]])
    in_w1 = pl.col("window") == "W1"
    t = pl.lit(pl.Series(log.t))
    before, inside = pl.when(in_w1 & (t < start)).then(pl.lit("W1")), in_w1 & (t < end)
    window = before.when(inside).then(pl.lit("W2a")).otherwise(pl.lit("W3"))
    _ = log.user, log.session, log.in_scenario, log.rows, log.events, log.asof  # shared by the view
    view = copy.copy(log)
    requests = log.requests.with_columns(window.alias("window"))
    # how often an item was a target in W1 of a whole log is no news of a block's past
    items = log.items.drop("w1_click", "w1_purchase", strict=False)
    name = f"{log.name}, {back} block{'s' if back > 1 else ''} before W2a"
    vars(view).update(
        lazy={
            "items": items.lazy(),
            "requests": requests.lazy(),
            "exposures": log.lazy["exposures"],
        },
        items=items,
        requests=requests,
        meta=log.meta | {"name": name},
        checksum=hashlib.sha256(f"{log.checksum} {start} {end}".encode()).hexdigest()[:16],
    )
    return view
