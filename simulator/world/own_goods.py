"""A log's items as a catalogue to simulate on, with what the log says of each: its appeal, how
often the engine shows it, the demand for its kind.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...files import open_table
from ...layout import ITEMS
from ...log import Catalogue, Log
from .catalogue import SETTLED, kinds
from .item_fits import Relative, Taken
from .log_fits import known_prices
from .marketplace import Engine

LEAST = 50  # items of a catalogue
Both = tuple[Taken, Relative]
FEW = 10.0  # times shown, or events of a kind, that both sides of a comparison start with


def goods(log: Log) -> Catalogue | None:
    """The log's items as a catalogue to simulate on; None where it has no prices, or few items.

    Prices are list prices, else those seen last. Items without a title are called by their
    attributes, or their id. Where they have no category, their first attribute is it, else the last
    word of their title. What users filter by is left out: a simulated shop adds its own.
    """
    price = known_prices(log) if log.has("price") else np.zeros(0)
    if not (price > 0).any() or log.n_items < LEAST:
        return None
    has = {name: name in ("text", "price") for name in log.meta["has"]}
    columns = [name for name in (*ITEMS, "description") if name in log.items.columns]
    asked = log.requests["filters"].explode().drop_nulls().unique()
    own = pl.element().filter(~pl.element().is_in(asked.implode()))
    attributes = pl.col("attributes").list.eval(own)
    said = pl.col("attributes").list.eval(pl.element().str.replace(r"^[^=]+=", "")).list.join(" ")
    said = pl.when(said != "").then(said)
    noun = pl.col("title").str.extract(r"(\w+)\W*$").str.to_lowercase()
    kind = pl.coalesce(pl.col("attributes").list.first(), noun)
    kind = pl.when(kind.is_not_null()).then(pl.concat_list(kind))
    items = log.items.select(columns).with_columns(
        pl.coalesce("title", said, "item_id").alias("title"),
        pl.coalesce("category", kind).alias("category"),
        pl.Series("price", np.where(price > 0, price, np.nan)).fill_nan(None),
        attributes,
    )
    return Catalogue(items, log.meta | {"has": has, "counts": {}})


def settled(shop: Catalogue, seen: Taken, engine: Engine, rng: np.random.Generator) -> Catalogue:
    """A log's goods with columns that a marketplace draws for others: `quality`, of unit variance,
    and `misjudged` as they may be, and the `demand` for an item's kind as the log says it.
    """
    _, leaf = kinds(shop.items)
    even = seen.there * seen.events.sum() / max(seen.there.sum(), 1.0)
    events, expected = (np.bincount(leaf, x) for x in (seen.events, even))
    columns = {
        "quality": rng.normal(size=len(leaf)),
        "misjudged": rng.normal(size=len(leaf)) * engine.misjudged,
        "demand": ((events + FEW) / (expected + FEW))[leaf],
    }
    return with_settled(shop, columns)


def with_settled(shop: Catalogue, columns: dict[str, np.ndarray]) -> Catalogue:
    items = shop.items.with_columns(pl.Series(name, value) for name, value in columns.items())
    return Catalogue(items, shop.meta)


def moved_goods(
    shop: Catalogue, appeal: float, seen: Both, pilot: Log, again: Both, gain: float
) -> tuple[Catalogue, float]:
    """Goods, and how much their quality counts, by what a simulated log says of each item beside
    what the log says.

    What is known of an item are its log rate and how often it was shown beside others of its kind.
    A regression of quality and the engine's liking on these, over items of the simulated log, says
    by how much a gap moves both (regression adjustment, Beaumont, Zhang & Balding 2002): the less,
    the less the events of a log tell. Demand moves by the log ratio of what was taken of a kind.

    Args:
        appeal: what a unit of quality adds to utility.
        seen, again: of the log, and of the simulated one.
        gain: how much of the way goods are moved.
    """
    number = dict(zip(shop.items["item_id"].to_list(), range(shop.items.height), strict=True))
    at = np.array([number[item] for item in pilot.items["item_id"].to_list()])
    _, leaf = kinds(shop.items)
    own, n_leaves = leaf[at], int(leaf.max()) + 1
    (mine, found), (theirs, found_again) = seen, again

    def beside(x: np.ndarray) -> np.ndarray:
        """Less the mean of its kind."""
        mean = np.bincount(own, x, n_leaves) / np.maximum(np.bincount(own, minlength=n_leaves), 1)
        return np.asarray(x - mean[own])

    def summary(taken: Taken, rates: np.ndarray, rows: np.ndarray) -> np.ndarray:
        often = [] if taken.shown is None else [taken.shown[rows], taken.there[rows]]
        told = [beside(rates[rows])]
        if often:
            expected = often[1] * often[0].sum() / max(often[1].sum(), 1e-12)
            told.append(beside(np.log((often[0] + FEW) / (expected + FEW))))
        return np.stack(told, axis=1)

    every = np.arange(len(at))
    wanted, found_there = summary(mine, found.mean, at), summary(theirs, found_again.mean, every)
    held = {name: shop.items[name].to_numpy().copy() for name in SETTLED}
    values = np.stack([appeal * held["quality"][at], held["misjudged"][at]], axis=1)
    centred = np.stack([beside(x) for x in values.T], axis=1)
    slopes = np.linalg.lstsq(found_there, centred, rcond=None)[0]
    both = (mine.there[at] > 0) & (theirs.there > 0)
    values += np.where(both[:, None], gain * (wanted - found_there) @ slopes, 0.0)
    held["quality"] *= appeal
    held["quality"][at], held["misjudged"][at] = values.T
    spread = float(held["quality"].std())
    held["quality"] = (held["quality"] - held["quality"].mean()) / spread

    events, again_events = (np.bincount(own, x, n_leaves) for x in (mine.events[at], theirs.events))
    again_events *= events.sum() / max(again_events.sum(), 1.0)
    held["demand"] *= (((events + FEW) / (again_events + FEW)) ** gain)[leaf]
    return with_settled(shop, held), spread


def goods_of_world(made: Log) -> Catalogue | None:
    """The goods of a World, with what was settled of them when it was fitted to a log.

    Raises KarmafunnelError for a World of a marketplace whose truth is gone.
    """
    shop = goods(made)
    if shop is None or made.path is None:
        return shop
    place = made.path / "truth" / "items.parquet"
    if not place.exists():
        if "marketplace" in made.meta.get("world", {}):
            needed = "what was settled of the World's goods"
            hint = "make the World anew, or copy all of its folder"
            raise KarmafunnelError(place, needs=needed, found="no such file", hint=hint)
        return shop
    table = open_table(place)
    names = table.collect_schema().names()
    if "demand" not in names:
        return shop
    told = table.select("item_id", *SETTLED).collect()
    return Catalogue(shop.items.join(told, on="item_id", how="left"), shop.meta)


def lived_on(made: Log) -> Catalogue | None:
    """The catalogue that a World lived on, as `goods_of_world`; None where its goods were
    invented.
    """
    return None if made.name == "world" else goods_of_world(made)
