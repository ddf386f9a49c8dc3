"""The logging run: shoppers arrive, a search engine of limited quality serves them, and everything
is recorded.

A shopper's utility of an item for an intent is

    relevance to the intent + TASTE * (sqrt(semantic) * S + sqrt(1 - semantic) * I)
    - price sensitivity * dearness

S, liking of the item's attributes, can be read from its text. I, the item's own appeal, the
shopper's liking of the latent crowd it belongs to and the habit of buying it again, can not. No
vector that any stage uses enters here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .catalogue import Shelves, taste_weights
from .shoppers import CROWDS, DAY, Diary, Intent, Shoppers, write_query
from .words import UNSAID

SLATE = 24  # items shown
POOL = 72  # items the engine would consider showing: its best, explored at random
IDEAL = 50
CLICKS, PURCHASES = 1.8, 0.28  # aimed at, a request
TASTE = 1.4
# nearness of an item's leaf to the intent's
SAME, SECTION, DEPARTMENT, ELSEWHERE = 0.0, -1.3, -2.6, -8.0
PROMOTION_DAYS = 3
COLD = 0.12  # share of items that arrive late


class Appeal(NamedTuple):
    """Of each candidate: utility, the part of it that is taste, and price sensitivity * (log price
    above the leaf's median).
    """

    utility: np.ndarray
    taste: np.ndarray
    dearness: np.ndarray


@dataclass
class Visit:
    """What happened in one request; arrays over the slate, the pool or the ideal slate, items by
    row number.
    """

    intent: Intent
    source: str
    query: str | None
    filters: list[str]
    n_candidates: int
    slate: np.ndarray
    propensity: np.ndarray
    price: np.ndarray
    utility: np.ndarray
    p_click: np.ndarray
    p_buy: np.ndarray
    clicked: np.ndarray
    bought: np.ndarray
    paid: np.ndarray
    quantity: np.ndarray
    pool: np.ndarray
    pool_truth: tuple[np.ndarray, ...]  # estimate, utility, p_click, p_buy, price of the pool
    ideal: np.ndarray
    ideal_utility: np.ndarray
    elsewhere: tuple[int, int, float] | None  # (item, ts, price): bought out of the funnel


def examination(n: int) -> np.ndarray:
    """Probability that the shopper looks at positions 1..n: 1 / log2(1 + position)."""
    return 1.0 / np.log2(np.arange(2, n + 2))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic function."""
    return 1.0 / (1.0 + np.exp(-x))


def standard(x: np.ndarray) -> np.ndarray:
    """Mean 0, variance 1 (or 0 where constant)."""
    return (x - x.mean()) / (x.std() or 1.0)


@dataclass(eq=False)
class Market:
    """Shelves, shoppers and what happened so far. `run` is the story; the rest are its steps."""

    shelves: Shelves
    shoppers: Shoppers
    semantic: float
    exploration: float
    start: int  # ms since 1970
    length: int  # ms
    rng: np.random.Generator
    named: float = 0.0  # share of intents that ask for one item by words of its title
    click_bias: float = 0.0
    buy_bias: float = 0.0
    clicks: np.ndarray = field(init=False)
    # user -> item -> ts of the first purchase
    owned: dict[int, dict[int, int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        shelves, rng, n = self.shelves, self.rng, self.shelves.n_items
        self.clicks = np.zeros(n)
        self.quality = standard(rng.gumbel(size=n))
        self.crowd = rng.integers(CROWDS, size=n)
        self.misjudged = rng.normal(0.0, 0.5, n)  # the engine's lasting error about each item
        late = rng.random(n) < COLD
        arrival = self.start + (self.length * rng.uniform(0.3, 0.9, n)).astype(np.int64)
        self.available = np.where(late, arrival, np.int64(0))
        blocks = self.length // (PROMOTION_DAYS * DAY) + 1
        promoted = rng.random((n, blocks)) < 0.08
        reduction = rng.choice([0.1, 0.15, 0.2, 0.3], size=(n, blocks))
        self.discount = np.where(promoted, reduction, 0.0)

        self.log_price = np.log(shelves.price)
        n_leaves = len(shelves.section)
        self.by_leaf = [np.flatnonzero(shelves.leaf == row) for row in range(n_leaves)]
        self.usual_price = np.zeros(n_leaves)
        for row, items in enumerate(self.by_leaf):
            if len(items):
                self.usual_price[row] = np.median(self.log_price[items])
        self.leaf_mass = np.cumsum([len(items) for items in self.by_leaf])
        of_item = shelves.department[shelves.leaf]
        n_departments = int(shelves.department.max()) + 1
        self.by_department = [np.flatnonzero(of_item == row) for row in range(n_departments)]
        same_section = shelves.section[:, None] == shelves.section[None, :]
        same_department = shelves.department[:, None] == shelves.department[None, :]
        apart = np.where(same_department, DEPARTMENT, ELSEWHERE)
        self.nearness = np.where(same_section, SECTION, apart)
        np.fill_diagonal(self.nearness, SAME)
        self.complement = np.arange(n_leaves)
        for row, beside in enumerate(same_department & ~same_section):
            if beside.any():
                self.complement[row] = rng.choice(np.flatnonzero(beside))
        weight = np.append(taste_weights(shelves.values), 0.0)
        # makes S of unit variance
        self.spread = np.sqrt(np.maximum((weight[shelves.codes] ** 2).sum(axis=1), 1.0))

    # -- the story ---------------------------------------------------------------------------------

    def run(self, diary: Diary, titles: list[list[str]] | None) -> Iterator[Visit]:
        """Serve every request of the diary in time order, yielding what happened."""
        self.calibrate(diary)
        sessions: dict[int, tuple[Intent, bool]] = {}
        requests = diary.user.tolist(), diary.session.tolist(), diary.ts.tolist()
        for user, session, now in zip(*requests, strict=True):
            intent, source = self.think(user, sessions.get(session), now)
            query = None
            if source == "search":
                query = write_query(intent, self.shelves, titles, self.rng)
            filters, candidates = self.ask(intent, source, now)
            price = self.price(candidates, now)
            appeal = self.appeal(user, intent, candidates, price, now)
            pool, estimate = self.consider(candidates, appeal)
            slate, propensity = self.show(len(pool))
            p_click, p_buy = self.chances(appeal)

            shown = pool[slate]
            looked = self.rng.random(len(shown)) < examination(len(shown))
            clicked = looked & (self.rng.random(len(shown)) < p_click[shown])
            bought = clicked & (self.rng.random(len(shown)) < p_buy[shown])
            paid, quantity = self.pay(candidates[shown], price[shown])

            best = np.argsort(-appeal.utility, kind="stable")[:IDEAL]
            elsewhere = None if bought.any() else self.shop_elsewhere(candidates, appeal, now)
            self.remember(user, candidates[shown], clicked, bought, elsewhere, now)
            sessions[session] = (intent, bool(bought.any()))
            yield Visit(
                intent=intent,
                source=source,
                query=query,
                filters=filters,
                n_candidates=len(candidates),
                slate=candidates[shown],
                propensity=propensity,
                price=price[shown],
                utility=appeal.utility[shown],
                p_click=p_click[shown],
                p_buy=p_buy[shown],
                clicked=clicked,
                bought=bought,
                paid=paid,
                quantity=quantity,
                pool=candidates[pool],
                pool_truth=(
                    estimate,
                    appeal.utility[pool],
                    p_click[pool],
                    p_buy[pool],
                    price[pool],
                ),
                ideal=candidates[best],
                ideal_utility=appeal.utility[best],
                elsewhere=elsewhere,
            )

    def calibrate(self, diary: Diary, n: int = 150) -> None:
        """Set the two biases so that CLICKS and PURCHASES a request are expected on a pilot of `n`
        requests of the diary.
        """
        seen, utility, drive = [], [], []
        rows = np.unique(np.linspace(0, len(diary.user) - 1, n).astype(np.int64))
        for row in rows:
            user, now = int(diary.user[row]), int(diary.ts[row])
            intent, source = self.think(user, None, now)
            _, candidates = self.ask(intent, source, now)
            appeal = self.appeal(user, intent, candidates, self.price(candidates, now), now)
            pool, _ = self.consider(candidates, appeal)
            shown = pool[self.show(len(pool))[0]]
            seen.append(examination(len(shown)))
            utility.append(appeal.utility[shown])
            drive.append(buy_drive(appeal)[shown])
        e, u, d = np.concatenate(seen), np.concatenate(utility), np.concatenate(drive)
        self.click_bias = solve(e / len(rows), u, CLICKS)
        self.buy_bias = solve(e * sigmoid(u + self.click_bias) / len(rows), d, PURCHASES)

    # -- the shopper -------------------------------------------------------------------------------

    def think(self, user: int, before: tuple[Intent, bool] | None, now: int) -> tuple[Intent, str]:
        """The next intent: go on with the last one, look for what goes with it, restock, or
        something new; or just browse.
        """
        rng, leaf_of = self.rng, self.shelves.leaf
        die, other = rng.random(2)
        interests = self.shoppers.interests[user]
        if die < (0.3 if before is None else 0.12):
            some = interests[rng.integers(min(4, len(interests)), size=3)]
            leaves = tuple(dict.fromkeys(some.tolist()))
            return Intent(leaves=leaves, wishes=(), dream=-1), "browse"
        if before is not None and len(before[0].leaves) == 1:
            intent, bought = before
            if not bought and other < 0.6:
                return self.wish(user, intent.leaves[0], now, intent.dream), "search"
            if other < 0.85:
                return self.wish(user, int(self.complement[intent.leaves[0]]), now), "search"
        own = []
        for item, ts in self.owned.get(user, {}).items():
            if ts < now and self.shelves.used_up[leaf_of[item]]:
                own.append(item)
        if own and other < 0.3:
            leaf = int(leaf_of[own[int(rng.integers(len(own)))]])
            return self.wish(user, leaf, now, restock=True), "search"
        if other < 0.8:
            place = min(int(rng.geometric(0.35)), len(interests)) - 1
            return self.wish(user, int(interests[place]), now), "search"
        leaf = int(np.searchsorted(self.leaf_mass, rng.integers(self.leaf_mass[-1]), side="right"))
        return self.wish(user, leaf, now), "search"

    def wish(
        self, user: int, leaf: int, now: int, dream: int = -1, restock: bool = False
    ) -> Intent:
        """An intent for one kind of product; wishes are attributes of a dreamt item, best liked of
        some or the one before.
        """
        rng = self.rng
        items = self.by_leaf[leaf]
        if len(items) == 0:
            return Intent(leaves=(leaf,), wishes=(), dream=-1, restock=restock)
        if dream < 0:
            some = items[rng.integers(len(items), size=min(24, len(items)))]
            some = some[self.available[some] < now] if (self.available[some] < now).any() else some
            liking = self.taste(user, some, now)
            dream = int(some[np.argmax(2.0 * liking + rng.gumbel(size=len(some)))])
        wishes: list[int] = []
        for code in self.shelves.codes[dream]:
            if code < len(self.shelves.values) and not self.shelves.values[code].endswith(UNSAID):
                likely = 0.12 if self.shelves.values[code].startswith("brand=") else 0.28
                if rng.random() < likely and len(wishes) < 3:
                    wishes.append(int(code))
        named = self.named > 0.0 and (
            not self.shelves.leaf_words[leaf] or rng.random() < self.named
        )
        return Intent(
            leaves=(leaf,), wishes=tuple(wishes), dream=dream, restock=restock, named=named
        )

    def taste(self, user: int, items: np.ndarray, now: int) -> np.ndarray:
        """Liking that does not depend on the intent, of about unit variance: (n,) float64."""
        liked = self.shoppers.taste[user][self.shelves.codes[items]].sum(axis=1)
        semantic = liked / self.spread[items]
        love = self.shoppers.crowd_love[user][self.crowd[items]]
        identity = 0.7 * self.quality[items] + 0.71 * love
        for item, ts in self.owned.get(user, {}).items():
            if ts < now:
                used_up = self.shelves.used_up[self.shelves.leaf[item]]
                again = 1.8 * self.shoppers.habit[user] if used_up else -1.0
                identity = identity + again * (items == item)
        return np.sqrt(self.semantic) * semantic + np.sqrt(1.0 - self.semantic) * identity

    def appeal(
        self, user: int, intent: Intent, items: np.ndarray, price: np.ndarray, now: int
    ) -> Appeal:
        """Utility of items for a shopper's intent; `price` is the price shown; all arrays (n,)."""
        leaf = self.shelves.leaf[items]
        mood = -0.25 * np.arange(len(intent.leaves))[:, None]
        relevance = (self.nearness[list(intent.leaves)] + mood).max(axis=0)[leaf]
        for wish in intent.wishes:
            relevance = relevance + 0.9 * (self.shelves.codes[items] == wish).any(axis=1)
        if intent.named:
            relevance = relevance + 2.0 * (items == intent.dream)
        taste = TASTE * self.taste(user, items, now)
        dearness = self.shoppers.price_sensitivity[user] * (np.log(price) - self.usual_price[leaf])
        return Appeal(relevance + taste - 0.8 * dearness, taste, dearness)

    def chances(self, appeal: Appeal) -> tuple[np.ndarray, np.ndarray]:
        """P(click | looked at) and P(purchase | click), whatever the position."""
        return sigmoid(appeal.utility + self.click_bias), sigmoid(buy_drive(appeal) + self.buy_bias)

    def pay(self, items: np.ndarray, price: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What would be paid a unit (one in ten has a coupon) and how many are taken."""
        coupon = np.where(self.rng.random(len(items)) < 0.1, 0.95, 1.0)
        chance = np.where(self.shelves.used_up[self.shelves.leaf[items]], 0.2, 0.04)
        several = self.rng.random(len(items)) < chance
        quantity = np.where(several, self.rng.integers(2, 5, len(items)), 1)
        return np.round(price * coupon, 2), quantity

    def shop_elsewhere(
        self, items: np.ndarray, appeal: Appeal, now: int
    ) -> tuple[int, int, float] | None:
        """One in seven unserved intents ends in another shop within a day or so, among everything
        eligible.
        """
        if self.rng.random() > 0.15:
            return None
        at = int(np.argmax(1.5 * appeal.utility + self.rng.gumbel(size=len(items))))
        ts = now + 60_000 + int(self.rng.exponential(0.25 * DAY))
        return int(items[at]), ts, float(self.shelves.price[items[at]])

    # -- the shop ----------------------------------------------------------------------------------

    def ask(self, intent: Intent, source: str, now: int) -> tuple[list[str], np.ndarray]:
        """The request's hard filters, and the items it can be served with: of the intent's
        departments, eligible at `now`.
        """
        shelves = self.shelves
        departments = sorted({int(shelves.department[leaf]) for leaf in intent.leaves})
        items = np.concatenate([self.by_department[d] for d in departments])
        if len(items) < 2 * POOL:
            # a department too small to fill a page is searched with the whole shop
            items = np.arange(shelves.n_items)
        items = items[self.available[items] < now]
        die = self.rng.random(2)
        filters = []
        if source == "search" and die[0] < 0.18:
            section = shelves.section[intent.leaves[0]]
            narrowed = items[shelves.section[shelves.leaf[items]] == section]
            if len(narrowed) >= SLATE:
                filters, items = [f"category={shelves.section_names[section]}"], narrowed
        if die[1] < 0.15:
            narrowed = items[shelves.express[items]]
            if len(narrowed) >= SLATE:
                filters, items = [*filters, "delivery=express"], narrowed
        return filters, items

    def price(self, items: np.ndarray, now: int) -> np.ndarray:
        """List price less the promotion of these days, in cents: (n,) float64."""
        block = min((now - self.start) // (PROMOTION_DAYS * DAY), self.discount.shape[1] - 1)
        return np.maximum(
            np.round(self.shelves.price[items] * (1.0 - self.discount[items, block]), 2), 0.01
        )

    def consider(self, items: np.ndarray, appeal: Appeal) -> tuple[np.ndarray, np.ndarray]:
        """The engine's own ranking: it knows relevance, half of taste and popularity, and errs.

        Returns the pool, at most POOL row numbers in `items`, and their estimates; best first.
        """
        estimate = (
            appeal.utility
            - 0.55 * appeal.taste
            + 0.45 * np.log1p(self.clicks[items])
            + self.misjudged[items]
        )
        estimate = estimate + self.rng.normal(0.0, 0.8, len(items))
        n = min(POOL, len(items))
        pool = np.argpartition(-estimate, n - 1)[:n]
        pool = pool[np.argsort(-estimate[pool], kind="stable")]
        return pool, estimate[pool]

    def show(self, n_pool: int) -> tuple[np.ndarray, np.ndarray]:
        """Slate as rows of the pool, and propensities: P(this item here | the items above it, the
        engine's ranking).

        Each slot shows, with probability `exploration`, a random one of the pool's items not shown
        yet, else the best of them.
        """
        size = min(SLATE, n_pool)
        explore = self.rng.random(size) < self.exploration
        left = list(range(n_pool))
        slate, propensity = np.empty(size, dtype=np.int64), np.empty(size)
        for slot in range(size):
            at = int(self.rng.integers(len(left))) if explore[slot] else 0
            propensity[slot] = self.exploration / len(left) + (1.0 - self.exploration) * (at == 0)
            slate[slot] = left.pop(at)
        return slate, propensity

    def remember(
        self,
        user: int,
        shown: np.ndarray,
        clicked: np.ndarray,
        bought: np.ndarray,
        elsewhere: tuple[int, int, float] | None,
        now: int,
    ) -> None:
        """Clicks make items popular; purchases, here or elsewhere, make them owned."""
        self.clicks[shown[clicked]] += 1
        mine = [(int(item), now) for item in shown[bought]] + ([elsewhere[:2]] if elsewhere else [])
        for item, ts in mine:
            owned = self.owned.setdefault(user, {})
            owned[item] = min(ts, owned.get(item, ts))


def buy_drive(appeal: Appeal) -> np.ndarray:
    """What decides a purchase after the click: utility, and price once more."""
    return 0.8 * appeal.utility - 0.5 * appeal.dearness


def solve(weight: np.ndarray, x: np.ndarray, aim: float) -> float:
    """The bias b with sum(weight * sigmoid(x + b)) = aim, or as near as [-30, 30] allows."""
    return bisected(lambda bias: float((weight * sigmoid(x + bias)).sum()), aim)


def bisected(rises: Callable[[float], float], aim: float) -> float:
    """The bias at which a rising function of it meets an aim, within [-30, 30]."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rises(middle) < aim else (low, middle)
    return 0.5 * (low + high)
