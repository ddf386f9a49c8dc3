"""Who comes on a day, and what each request is for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import polars as pl

from .draws import Draws
from .marketplace import Marketplace
from .place import Asked, Place, rows_of
from .queries import Words
from .shoppers import DAY
from .wants import Taste
from .words import UNSAID

BROWSING = 0.3  # of sessions begin without a search
NEAR = 0.35  # chance that a shopper comes for the dearest interest, then for the next
ANYWHERE = 0.2  # of searches are for any leaf, by its number of items
RESTOCK = 0.3  # of searches by who has bought what is used up
DREAMT = 8  # items among which a shopper has one in mind
FILTERED, EXPRESSED = 0.18, 0.15  # of searches within a section; of requests for express delivery
WISHES, OF_BRAND, OF_OTHER = 3, 0.12, 0.28  # most, and chances of saying an attribute
LEAST, MEAN = 8_000.0, 75_000.0  # ms between requests


@dataclass(frozen=True, eq=False)
class Visits(Asked):
    """The requests of a round: the first ones of all sessions of a day, then the second ones, and
    so on. Rows are in the order of users.

    searched, narrow, express (n,) bool: with a query, or browsing; filtered by the section of the
    leaf; by express delivery. `requests` has the columns of a Log's requests.
    """

    searched: np.ndarray
    narrow: np.ndarray
    express: np.ndarray
    day: int
    round: int
    seed: int
    words: Words

    @property
    def draws(self) -> Draws:
        """The chances of these requests."""
        return Draws(self.seed, self.day, self.round, self.user)

    @cached_property
    def requests(self) -> pl.DataFrame:
        """The requests as a Log holds them, aligned with the arrays."""
        return self.words.requests(self, self.draws)

    def rows(self, part: Any) -> Self:
        """Those of an index, a slice or a mask, such as the users of one arm."""
        kept = rows_of(self, part)
        kept.pop("requests", None)
        return type(self)(**kept)


class Crowd:
    """Makes the visits of a place, round by round."""

    def __init__(
        self,
        place: Place,
        marketplace: Marketplace,
        words: Words,
        seed: int,
        start: int,
        named: float,
    ):
        self.place, self.marketplace, self.words = place, marketplace, words
        self.seed, self.start, self.named = seed, start, named
        shelves = place.goods.shelves
        unsaid = [value.endswith(UNSAID) for value in shelves.values] + [True]
        brand = [value.startswith("brand=") for value in shelves.values] + [False]
        self.said = np.where(unsaid, 0.0, np.where(brand, OF_BRAND, OF_OTHER))
        self.mass = np.cumsum(np.diff(place.goods.first)).astype(float)
        hours = np.concatenate([[0.0], np.cumsum(marketplace.rhythm.hours)])
        self.hours = hours / hours[-1]
        self.nouns = words.nouns.count > 0

    # -- who comes ---------------------------------------------------------------------------------

    def midnight(self, day: int) -> int:
        """The start of a day, ms since 1970."""
        return self.start + day * DAY

    def comers(self, day: int) -> np.ndarray:
        """Users who visit on a day: (n,) int64, ascending."""
        people, state = self.place.people, self.place.state
        users = np.arange(people.n)
        weekday = (self.midnight(day) // DAY + 3) % 7  # 1970-01-01 was a Thursday
        rate = people.rate * self.marketplace.rhythm.week[weekday] * np.exp(state.mood)
        come = Draws(self.seed, day, 0, users).random("visit") < -np.expm1(-rate)
        return np.flatnonzero(come & (people.arrival <= day))

    def first(self, day: int, user: np.ndarray, sizes: np.ndarray) -> Visits:
        """The first requests of users on a day.

        Args:
            sizes: (4, n_leaves): how many items the shop has for each leaf, without filters, by
                express, within the section, both.
        """
        draws = Draws(self.seed, day, 0, user)
        hour = np.interp(draws.random("hour"), self.hours, np.arange(25.0))
        ts = self.midnight(day) + (hour * 3_600_000.0).astype(np.int64)
        ts = np.minimum(ts, self.latest(day, 0))
        searched = draws.random("browse") >= BROWSING
        leaf = self.interest(draws)
        some = np.searchsorted(self.mass, draws.random("any leaf") * self.mass[-1], side="right")
        leaf = np.where(searched & (draws.random("anywhere") < ANYWHERE), some, leaf)
        stock = self.to_restock(draws, ts)
        again = searched & (stock >= 0) & (draws.random("restock") < RESTOCK)
        leaf = np.where(again, stock, leaf)
        return self.made(draws, ts, leaf, np.full(len(user), -1), searched, sizes)

    def latest(self, day: int, round: int) -> int:
        """The last ms of a day at which a round may be; later rounds still find theirs."""
        return self.midnight(day + 1) - self.marketplace.sessions.most + round

    def next(
        self, before: Visits, clicked: np.ndarray, bought: np.ndarray, sizes: np.ndarray
    ) -> Visits:
        """The requests that follow those of a round; clicked, bought (n,) bool: whether anything
        was.
        """
        sessions = self.marketplace.sessions
        chances = np.where(bought[:, None], sessions.after_purchase, sessions.after_nothing)
        chances = np.where((clicked & ~bought)[:, None], sessions.after_click, chances)
        die = before.draws.random("follow")
        follow = die < chances.sum(axis=1)
        if before.round + 1 >= sessions.most:
            follow[:] = False
        was, again = before.rows(follow), (die < chances[:, 0])[follow]
        draws = Draws(self.seed, before.day, before.round + 1, was.user)
        wait = (LEAST + MEAN * draws.wait("wait")).astype(np.int64)
        ts = np.minimum(was.ts + wait, self.latest(before.day, draws.round))
        beside = draws.random("beside") < 0.5
        other = np.where(beside, self.place.goods.complement[was.leaf], self.interest(draws))
        leaf = np.where(again, was.leaf, other)
        dream = np.where(again, was.dream, -1)
        return self.made(draws, ts, leaf, dream, again | beside, sizes)

    # -- what for ----------------------------------------------------------------------------------

    def interest(self, draws: Draws) -> np.ndarray:
        """One of the leaves that each shopper comes for, the dearest most often: (n,)."""
        mine = self.place.people.interests[draws.user]
        weight = np.broadcast_to((1.0 - NEAR) ** np.arange(mine.shape[1]), mine.shape)
        season = self.marketplace.season
        if season is not None:
            time = (self.midnight(draws.day) / DAY % 365.25) / 365.25
            wave = np.cos(2.0 * np.pi * (time - self.place.goods.peak))
            weight = weight * np.exp(season.strength * wave)[mine]
        ends = np.cumsum(weight, axis=1)
        place = (draws.random("interest")[:, None] * ends[:, -1:] > ends).sum(axis=1)
        return np.asarray(mine[np.arange(len(mine)), place], dtype=np.int64)

    def to_restock(self, draws: Draws, ts: np.ndarray) -> np.ndarray:
        """The leaf of something bought before that is used up, -1 where there is none: (n,)."""
        goods, state = self.place.goods, self.place.state
        own = state.bought[draws.user]
        fit = (own >= 0) & (state.bought_at[draws.user] < ts[:, None]) & goods.used_up[own]
        at = np.argmax(np.where(fit, draws.random("which", own.shape[1]), -1.0), axis=1)
        row = np.arange(len(own))
        return np.where(fit[row, at], goods.leaf[own[row, at]], -1)

    def made(
        self,
        draws: Draws,
        ts: np.ndarray,
        leaf: np.ndarray,
        dream: np.ndarray,
        searched: np.ndarray,
        sizes: np.ndarray,
    ) -> Visits:
        """Visits for leaves (n,), with wishes and filters."""
        leaf = leaf.astype(np.int64)
        dream = np.where(searched & (dream < 0), self.dreamt(draws, leaf, ts), dream)
        dream = np.where(searched, dream, -1)
        named = searched & (dream >= 0)
        if self.named > 0:
            named &= ~self.nouns[leaf] | (draws.random("named") < self.named)
        else:
            named[:] = False
        slots = self.marketplace.engine.slots
        narrow = searched & (draws.random("narrow") < FILTERED) & (sizes[2][leaf] >= slots)
        express = draws.random("express") < EXPRESSED
        express &= np.where(narrow, sizes[3][leaf], sizes[1][leaf]) >= slots
        return Visits(
            user=draws.user,
            ts=ts,
            leaf=leaf,
            wishes=self.wishes(draws, dream),
            dream=dream,
            named=named,
            searched=searched,
            narrow=narrow,
            express=express,
            day=draws.day,
            round=draws.round,
            seed=self.seed,
            words=self.words,
        )

    def dreamt(self, draws: Draws, leaf: np.ndarray, ts: np.ndarray) -> np.ndarray:
        """The item that each shopper has in mind, the best liked of some of its leaf; -1 where none
        is there: (n,).
        """
        goods, taste = self.place.goods, self.marketplace.want(Taste)
        n_leaf = np.diff(goods.first)[leaf][:, None]
        at = goods.first[leaf][:, None] + draws.whole("dreamt", n_leaf, DREAMT)
        some = goods.by_leaf[np.minimum(at, goods.n - 1)]
        there = (n_leaf > 0) & (goods.available[some] < ts[:, None])
        score = draws.gumbel("dream", DREAMT)
        if taste is not None:
            score = score + 2.0 * taste.liking(self.place, draws.user, some)
        best = np.argmax(np.where(there, score, -np.inf), axis=1)
        row = np.arange(len(some))
        return np.where(there[row, best], some[row, best], -1)

    def wishes(self, draws: Draws, dream: np.ndarray) -> np.ndarray:
        """Attributes of the item in mind that are asked for: (n, 3), -1 for none."""
        codes = self.place.goods.codes[dream]
        chance = draws.random("wish", codes.shape[1])
        said = (chance < self.said[codes]) & (dream >= 0)[:, None]
        count = np.cumsum(said, axis=1)
        found = np.full((len(dream), WISHES), -1, dtype=np.int64)
        row, column = np.nonzero(said & (count <= WISHES))
        found[row, count[row, column] - 1] = codes[row, column]
        return found
