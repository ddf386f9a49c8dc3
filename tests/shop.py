"""A small shop whose shoppers like what they like, and a scramble of everything that happens from
some time on.
"""

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
from karmafunnel.log import Log
from karmafunnel.stages.frame import SCORE
from karmafunnel.stages.stage import FittedStage, Stage

START = datetime(2026, 1, 1, tzinfo=UTC)


def make_shop(n_items: int = 240, n_users: int = 40, n_requests: int = 500, seed: int = 0) -> Log:
    """Users like items whose number agrees with theirs modulo 7, the query says so two times in
    three, a quarter filters by colour.
    """
    rng = np.random.default_rng(seed)
    names = ["amber", "birch", "coral", "denim", "ebony", "flint", "grape"]
    users = rng.integers(0, n_users, n_requests)
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(n_items)],
            "title": [f"{names[i % 7]} thing{i % 11} model{i}" for i in range(n_items)],
            "price": rng.lognormal(3, 1, n_items),
            "attributes": [[f"colour={i % 3}"] for i in range(n_items)],
            "rating": rng.uniform(1, 5, n_items),
        }
    )
    requests = pl.DataFrame(
        {
            "request_id": [f"r{r}" for r in range(n_requests)],
            "user_id": [f"u{u}" for u in users],
            "ts": [START + timedelta(minutes=37 * r) for r in range(n_requests)],
            "source": ["search"] * n_requests,
            "query": [names[u % 7] if r % 3 else None for r, u in enumerate(users)],
            "filters": [[f"colour={u % 3}"] if r % 4 == 0 else [] for r, u in enumerate(users)],
        }
    )
    rows = []
    for r, user in enumerate(users):
        allowed = np.arange(user % 3, n_items, 3) if r % 4 == 0 else np.arange(n_items)
        shown = rng.choice(allowed, 15, replace=False)
        liking = 2.0 * (shown % 7 == user % 7) - 0.02 * np.arange(15) + rng.gumbel(size=15) * 0.4
        for place, item in enumerate(shown):
            clicked = bool(liking[place] == liking.max() or liking[place] > 2.4)
            bought = clicked and bool(rng.random() < 0.4)
            price = float(rng.lognormal(3, 1))
            paid, quantity = (price, 1) if bought else (None, None)
            shown_as = (f"r{r}", f"i{item}", place + 1)
            rows.append((*shown_as, clicked, bought, price, paid, quantity))
    types = {
        "request_id": pl.String,
        "item_id": pl.String,
        "position": pl.Int64,
        "clicked": pl.Boolean,
        "purchased": pl.Boolean,
        "price_shown": pl.Float64,
        "price_paid": pl.Float64,
        "quantity": pl.Int64,
    }
    has = dict.fromkeys(
        ("clicks", "purchases", "exposures", "text", "query", "price", "filters", "users"), True
    )
    meta = {
        "name": "shop",
        "currency": "EUR",
        "label": "click",
        "catalogue": "published",
        "has": has,
    }
    return Log.make(items, requests, pl.DataFrame(rows, schema=types, orient="row"), meta)


@cache
def other_shop() -> str:
    """The folder of another small shop, one for all processes of a test run."""
    folder = Path(tempfile.gettempdir()) / f"karmafunnel-tests-{os.getuid()}" / "shop-1"
    if not (folder / "log.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent)) / "shop"
        make_shop(n_items=120, n_users=20, n_requests=200, seed=2).write(made)
        with suppress(OSError):  # another process was first
            made.rename(folder)
    return str(folder)


def scramble(log: Log, t: int, seed: int = 1) -> Log:
    """The log with every click, purchase, price and position from time t on drawn anew."""
    rng = np.random.default_rng(seed)
    later = log.exposures.select("request_id").join(
        log.requests.select("request_id", pl.Series("later", log.t >= t)),
        on="request_id",
        how="left",
        maintain_order="left",
    )["later"]
    n = log.exposures.height
    drawn = log.exposures.with_columns(
        position=pl.Series(rng.permutation(n) + 1, dtype=pl.Int32),
        clicked=pl.Series(rng.random(n) < 0.5),
        purchased=pl.Series(rng.random(n) < 0.5),
        price_shown=pl.Series(rng.lognormal(5, 1, n)),
        price_paid=pl.Series(rng.lognormal(5, 1, n)),
        quantity=pl.Series(rng.integers(1, 9, n), dtype=pl.Int32),
    )
    columns = [
        pl.when(later).then(drawn[c]).otherwise(log.exposures[c]).alias(c)
        for c in log.exposures.columns
    ]
    return Log.make(log.items, log.requests, log.exposures.select(columns), log.meta)


@dataclass(frozen=True, repr=False)
class Chances(Stage):
    """The upstream's order, and chances that anybody can work out: p_click is (1 + item % 5) / 10,
    p_buy (1 + item % 3) / 10.
    """

    k: int = 50
    name: str = "rank"

    def fit(self, context, upstream):
        return FittedChances(self, context)


class FittedChances(FittedStage):
    def outputs(self, rows):
        item = rows.item
        return {
            SCORE: rows.frame[SCORE].to_numpy(),
            "p_click": (1 + item % 5) / 10,
            "p_buy": (1 + item % 3) / 10,
        }
