"""The tables of a World: what the shop's log holds, and the truth beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl

from ...layout import TS
from .catalogue import Shelves
from .market import Market, Visit, examination
from .shoppers import Diary, Shoppers


def moments(ms: Iterable[int] | np.ndarray) -> pl.Series:
    """Milliseconds since 1970 as timestamps; 0 is null."""
    raw = pl.Series(np.asarray(ms, dtype=np.int64))
    return pl.select(
        pl.when(raw != 0).then(raw).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC").cast(TS)
    ).to_series()


def request_ids(n: int) -> pl.Series:
    return pl.Series([f"r{row:07d}" for row in range(n)])


def user_ids(n: int) -> pl.Series:
    return pl.Series([f"u{row:05d}" for row in range(n)])


def lists(rows: Iterable[Any], inner: Any = pl.String) -> pl.Series:
    return pl.Series(list(rows), dtype=pl.List(inner))


def each(visits: list[Visit], field: str) -> np.ndarray:
    """A field of every visit, concatenated."""
    return np.concatenate([getattr(visit, field) for visit in visits])


def pairs(visits: list[Visit], field: str, shelves: Shelves) -> dict[str, pl.Series]:
    """request_id and item_id for a field that holds items."""
    n = [len(getattr(visit, field)) for visit in visits]
    request = np.repeat(np.arange(len(visits)), n)
    return {
        "request_id": request_ids(len(visits)).gather(request),
        "item_id": shelves.items["item_id"].gather(each(visits, field)),
    }


def ranks(visits: list[Visit], field: str) -> pl.Series:
    """1, 2, ... within every visit."""
    ranks = [np.arange(1, len(getattr(visit, field)) + 1) for visit in visits]
    return pl.Series(np.concatenate(ranks)).cast(pl.Int32)


def log_frames(
    visits: list[Visit],
    diary: Diary,
    shoppers: Shoppers,
    shelves: Shelves,
    market: Market,
    images: bool,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Items, requests and exposures, as a Log holds them."""
    paths = [f"images/{item:06d}.png" if images else None for item in range(shelves.n_items)]
    items = shelves.items.with_columns(
        pl.Series("image", paths, dtype=pl.String),
        moments(market.available).alias("available_from"),
    )
    requests = pl.DataFrame(
        {
            "request_id": request_ids(len(visits)),
            "user_id": user_ids(shoppers.n).gather(diary.user),
            "ts": moments(diary.ts),
            "query": pl.Series([v.query for v in visits], dtype=pl.String),
            "filters": lists(v.filters for v in visits),
            "context": lists([f"device={shoppers.device[user]}"] for user in diary.user),
            "session_id": [f"s{session:06d}" for session in diary.session],
            "source": [v.source for v in visits],
        }
    )
    exposures = pl.DataFrame(
        {
            **pairs(visits, "slate", shelves),
            "position": ranks(visits, "slate"),
            "clicked": each(visits, "clicked"),
            "purchased": each(visits, "bought"),
            "price_shown": each(visits, "price"),
            "price_paid": each(visits, "paid"),
            "quantity": each(visits, "quantity"),
            "propensity": each(visits, "propensity"),
        }
    ).with_columns(
        pl.when("purchased").then(pl.col(column)).alias(column)
        for column in ("price_paid", "quantity")
    )
    return items, requests, exposures


def truth_frames(
    visits: list[Visit], diary: Diary, shoppers: Shoppers, shelves: Shelves, market: Market
) -> dict[str, pl.DataFrame]:
    """The tables of truth, which no stage may read; see `World`."""
    pool = [np.concatenate(column) for column in zip(*(v.pool_truth for v in visits), strict=True)]
    return {
        "exposures": pl.DataFrame({
            **pairs(visits, "slate", shelves),
            "utility": each(visits, "utility"),
            "examination": np.concatenate([examination(len(v.slate)) for v in visits]),
            "p_click": each(visits, "p_click"),
            "p_buy": each(visits, "p_buy"),
            "propensity": each(visits, "propensity"),
        }),
        "pool": pl.DataFrame({
            **pairs(visits, "pool", shelves),
            "pool_rank": ranks(visits, "pool"),
            **dict(zip(("estimate", "utility", "p_click", "p_buy", "price"), pool, strict=True)),
        }),
        "ideal": pl.DataFrame({
            **pairs(visits, "ideal", shelves),
            "rank": ranks(visits, "ideal"),
            "utility": each(visits, "ideal_utility"),
        }),
        "requests": pl.DataFrame({
            "request_id": request_ids(len(visits)),
            "leaves": lists((v.intent.leaves for v in visits), pl.Int64),
            "wishes": lists([shelves.values[wish] for wish in v.intent.wishes] for v in visits),
            "restock": [v.intent.restock for v in visits],
            "n_candidates": [v.n_candidates for v in visits],
        }),
        "elsewhere": elsewhere(visits, diary, shoppers, shelves),
        "shoppers": pl.DataFrame({
            "user_id": user_ids(shoppers.n),
            "price_sensitivity": shoppers.price_sensitivity,
            "habit": shoppers.habit,
            "activity": shoppers.activity,
            "interests": lists(shoppers.interests.tolist(), pl.Int64),
            "arrival": moments(market.start + shoppers.arrival),
            "taste": lists(shoppers.taste[:, :-1].tolist(), pl.Float32),
            "crowd_love": lists(shoppers.crowd_love.tolist(), pl.Float32),
        }),
        "items": pl.DataFrame({
            "item_id": shelves.items["item_id"],
            "quality": market.quality,
            "crowd": market.crowd,
            "leaf": shelves.leaf,
            "used_up": shelves.used_up[shelves.leaf],
            "misjudged": market.misjudged,
            "attributes": lists(shelves.true_attributes()),
        }),
        "values": pl.DataFrame({"value": pl.Series(shelves.values, dtype=pl.String)}),
    }  # fmt: skip


def elsewhere(
    visits: list[Visit], diary: Diary, shoppers: Shoppers, shelves: Shelves
) -> pl.DataFrame:
    """Purchases outside the funnel, in time order, each with the request whose intent it served:
    the addition to all-scenario truth.
    """
    requests, items, times, prices = [], [], [], []
    for row, visit in enumerate(visits):
        if visit.elsewhere is not None:
            item, ts, price = visit.elsewhere
            requests.append(row)
            items.append(item)
            times.append(ts)
            prices.append(price)
    request = np.array(requests, dtype=np.int64)
    return pl.DataFrame(
        {
            "request_id": request_ids(len(visits)).gather(request),
            "user_id": user_ids(shoppers.n).gather(diary.user[request]),
            "ts": moments(times),
            "item_id": shelves.items["item_id"].gather(np.array(items, dtype=np.int64)),
            "price": pl.Series(prices, dtype=pl.Float64),
        }
    ).sort("ts", maintain_order=True)
