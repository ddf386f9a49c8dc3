"""Goods and people of a new marketplace, drawn from its seed; what a log has settled stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .catalogue import Shelves, taste_weights
from .draws import Draws
from .market import standard
from .marketplace import Marketplace
from .place import Goods, People, State, blocks
from .shoppers import CROWDS, DAY, INTERESTS
from .wants import Fatigue, Thrift

DIM = 16  # of the vectors that attributes speak to taste by
TRIES = 8


def place_goods(marketplace: Marketplace, shelves: Shelves, start: int, seed: int) -> Goods:
    """The goods of some shelves; those that arrive later do so at a time of their own."""
    n, n_leaves = shelves.n_items, len(shelves.section)
    rng = np.random.default_rng([seed, 11])
    weights = taste_weights(shelves.values)
    direction = rng.normal(size=(len(weights) + 1, DIM))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    weight = np.append(weights, 0.0)
    spread = np.sqrt(np.maximum((weight[shelves.codes] ** 2).sum(axis=1), 1.0))
    vector = np.zeros((n, DIM))
    for column in shelves.codes.T:
        vector += weight[column][:, None] * direction[column]
    size = np.bincount(shelves.leaf, minlength=n_leaves).astype(float)
    log_price = np.log(shelves.price)
    usual = np.zeros(n_leaves)
    order = np.argsort(shelves.leaf, kind="stable")
    for leaf, own in zip(
        np.flatnonzero(size),
        np.split(order, np.cumsum(size[size > 0].astype(int))[:-1]),
        strict=True,
    ):
        usual[leaf] = np.median(log_price[own])
    goods = Goods(
        shelves=shelves,
        vector=(vector / spread[:, None]).astype(np.float32),
        quality=standard(rng.gumbel(size=n)),
        crowd=rng.integers(CROWDS, size=n),
        misjudged=rng.normal(0.0, 1.0, n) * marketplace.engine.misjudged,
        available=arrivals(marketplace, n, start, rng),
        usual_price=usual,
        complement=complements(shelves, rng),
        fame=size * rng.lognormal(0.0, 1.2, n_leaves),
        peak=rng.random(int(shelves.department.max()) + 1)[shelves.department],
    )
    settled = shelves.settled
    if not settled:
        return goods
    fame = np.bincount(shelves.leaf, weights=settled["demand"], minlength=n_leaves)
    quality, misjudged = settled["quality"], settled["misjudged"]
    return replace(goods, quality=quality, misjudged=misjudged, fame=fame)


def arrivals(marketplace: Marketplace, n: int, start: int, rng: np.random.Generator) -> np.ndarray:
    """When each item arrives, ms since 1970, 0 for from the start: (n,) int64."""
    coming = marketplace.arrivals
    die, when = rng.random(n), rng.random(n)
    if coming is None:
        return np.zeros(n, dtype=np.int64)
    ts = start + (when * coming.days * DAY).astype(np.int64)
    return np.where(die < coming.items, ts, np.int64(0))


def complements(shelves: Shelves, rng: np.random.Generator) -> np.ndarray:
    """For each leaf one of its department, of another section where some tries find one."""
    department, section = shelves.department, shelves.section
    order = np.argsort(department, kind="stable")
    sizes = np.bincount(department)
    first = np.concatenate([[0], np.cumsum(sizes)])
    found = np.arange(len(department))
    for _ in range(TRIES):
        at = first[department] + (rng.random(len(department)) * sizes[department]).astype(int)
        other = order[at]
        free = (found == np.arange(len(department))) & (section[other] != section)
        found = np.where(free, other, found)
    return found


def meet_people(marketplace: Marketplace, goods: Goods, n: int, seed: int) -> People:
    """Shoppers, each drawn by their own number: the first hundred are the same among a thousand."""
    draws = Draws(seed, -1, 0, np.arange(n))
    thrift, coming = marketplace.want(Thrift), marketplace.arrivals
    segment, sensitivity = np.zeros(n, dtype=np.int64), np.zeros(n)
    if thrift is not None:
        segment = thrift.segment(draws.random("segment"))
        sensitivity = np.array([how for _, how in thrift.segments])[segment]
    arrival = np.zeros(n, dtype=np.int64)
    if coming is not None:
        late = draws.random("late") < coming.users
        arrival = np.where(late, draws.whole("arrival", coming.days), 0)
    return People(
        sensitivity=sensitivity,
        habit=0.2 + draws.random("habit"),
        rate=marketplace.activity.rate(draws.random("rate")),
        arrival=arrival,
        segment=segment,
        interests=interests(goods, draws),
        mobile=draws.random("mobile") < 0.65,
    )


def interests(goods: Goods, draws: Draws) -> np.ndarray:
    """The leaves that shoppers come for, the dearest first, in a few departments: (n, 5) int32."""
    n_leaves = len(goods.section)
    fame = np.log(goods.fame + 1e-9)
    most = min(INTERESTS, n_leaves)
    found = np.empty((len(draws.user), most), dtype=np.int32)
    for part in blocks(len(found), max(1, 4_000_000 // n_leaves)):
        own = draws.rows(part)
        dear = 1.5 * own.gumbel("department", int(goods.department.max()) + 1)
        wanted = fame + dear[:, goods.department] + own.gumbel("leaf", n_leaves)
        best = np.argpartition(-wanted, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(wanted, best, axis=1), axis=1, kind="stable")
        found[part] = np.take_along_axis(best, order, axis=1)
    return found


def first_state(marketplace: Marketplace, goods: Goods, n: int, seed: int) -> State:
    """The state before the first day, with tastes as they are."""
    draws = Draws(seed, -1, 0, np.arange(n))
    fatigue = marketplace.want(Fatigue)
    return State.of(
        draws.normal("taste", DIM).astype(np.float32),
        draws.normal("love", CROWDS).astype(np.float32),
        goods.n,
        fatigue.room if fatigue is not None else 0,
    )
