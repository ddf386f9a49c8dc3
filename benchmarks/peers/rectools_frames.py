"""RecTools datasets of the exported log: users for what is learnt, one pseudo-user a request for
what is asked.

RecTools knows users, not requests. A request becomes a user whose interactions are the history
before it, so that a list is as of its request even where a user asks several times in W3.
"""

import numpy as np
import pandas as pd
import polars as pl
from exchange import Data
from rectools import Columns
from rectools.dataset import Dataset, IdMap, Interactions


def frame(users: np.ndarray, items: np.ndarray, t: np.ndarray) -> pd.DataFrame:
    times = pd.to_datetime(t, unit="ms")
    return pd.DataFrame(
        {Columns.User: users, Columns.Item: items, Columns.Weight: 1.0, Columns.Datetime: times}
    )


def learnt(data: Data, windows: list) -> Dataset:
    """What users did in some windows; items are the log's row numbers."""
    rows = data.interactions.filter(pl.col("window").is_in(windows))
    return Dataset.construct(
        frame(rows["user"].to_numpy(), rows["item"].to_numpy(), rows["t"].to_numpy())
    )


def asked(data: Data, rows: np.ndarray, items: IdMap) -> Dataset:
    """The histories of some requests, as users named by request number, over the items of `learnt`.

    One more user (-1) has every item: RecTools cuts matrices after the last item that somebody has.
    """
    at, history = data.history(rows)
    known = np.isin(history["item"].to_numpy(), items.external_ids)
    at, history = at[known], history.filter(pl.Series(known, dtype=pl.Boolean))
    everything = frame(np.full(items.size, -1), items.external_ids, np.zeros(items.size))
    mine = frame(rows[at], history["item"].to_numpy(), history["t"].to_numpy())
    together = pd.concat([mine, everything], ignore_index=True)
    users = IdMap.from_values(together[Columns.User].to_numpy())
    return Dataset(users, items, Interactions.from_raw(together, users, items))
