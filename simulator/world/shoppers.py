"""Shoppers: their constant tastes, habits and interests, and the intents and queries that follow
from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .catalogue import Shelves, taste_weights

PERSONAS = 10
CROWDS = 24  # latent groups of items, drawn at random: liking one cannot be read from any text
INTERESTS = 5
DAY = 86_400_000


@dataclass(frozen=True, eq=False)
class Shoppers:
    """Everything about the shoppers that stays, by row number.

    taste (n_users, n_values + 1) float32: liking of each attribute value, last column 0 for
    padding; crowd_love (n_users, CROWDS) float32; price_sensitivity, habit (n_users,); interests
    (n_users, INTERESTS) leaves, the dearest first; arrival (n_users,) ms after the start; activity
    (n_users,) sums to 1.
    """

    taste: np.ndarray
    crowd_love: np.ndarray
    price_sensitivity: np.ndarray
    habit: np.ndarray
    interests: np.ndarray
    arrival: np.ndarray
    activity: np.ndarray
    device: list[str]

    @property
    def n(self) -> int:
        return len(self.habit)


@dataclass(frozen=True)
class Intent:
    """What a shopper is after in one request: kinds of product (one when searching, several when
    browsing), wished values.
    """

    leaves: tuple[int, ...]
    wishes: tuple[int, ...]  # rows of Shelves.values
    dream: int  # the item the shopper has in mind
    restock: bool = False
    # the query will say words of the dreamt item's title, and that item is what it asks for
    named: bool = False


def likings(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    """Likings (n, m) float64 of mean 0 and variance about 1: a few strong ones, most near zero."""
    return np.where(rng.random((n, m)) < 0.15, 2.04, -0.36) + rng.normal(0.0, 0.5, (n, m))


def meet(n: int, shelves: Shelves, length: int, rng: np.random.Generator) -> Shoppers:
    """`n` shoppers; 30% of them arrive within the `length` ms of the log, the others before."""
    n_values = len(shelves.values)
    # people come in types, up to a point
    types = likings(rng, PERSONAS, n_values)[rng.integers(PERSONAS, size=n)]
    mixed = np.where(rng.random((n, n_values)) < 0.35, types, likings(rng, n, n_values))
    taste = np.zeros((n, n_values + 1), dtype=np.float32)
    taste[:, :-1] = mixed * taste_weights(shelves.values)
    love = likings(rng, n, CROWDS)

    department = shelves.department
    n_departments = int(department.max()) + 1
    size = np.bincount(shelves.leaf, minlength=len(department)).astype(float)
    # some kinds of product are in demand, whatever their number of items
    fame = size * rng.lognormal(0.0, 1.2, len(size))
    # a shopper lives in a few departments
    dear = rng.gumbel(size=(n, n_departments))[:, department] * 1.5
    wanted = np.log(fame + 1e-9) + dear + rng.gumbel(size=(n, len(department)))
    interests = np.argsort(-wanted, axis=1, kind="stable")[:, : min(INTERESTS, len(department))]

    late = rng.random(n) < 0.3
    arrival = np.where(late, rng.random(n) * 0.9 * length, 0.0)
    activity = rng.lognormal(0.0, 0.9, n) * (1.0 - arrival / length)
    return Shoppers(
        taste=taste,
        crowd_love=love.astype(np.float32),
        price_sensitivity=rng.lognormal(-0.5, 0.5, n),
        habit=rng.uniform(0.2, 1.2, n),
        interests=interests,
        arrival=arrival,
        activity=activity / activity.sum(),
        device=["mobile" if x else "desktop" for x in rng.random(n) < 0.65],
    )


@dataclass(frozen=True, eq=False)
class Diary:
    """When everybody asks: user, session (n_requests,) int64, and strictly increasing ts int64 (ms
    since 1970).
    """

    user: np.ndarray
    session: np.ndarray
    ts: np.ndarray


def keep_diary(
    n_requests: int, shoppers: Shoppers, start: int, days: int, rng: np.random.Generator
) -> Diary:
    """Sessions of one to several requests, by the hour of the day and the day of the week, for
    exactly `n_requests`.
    """
    hours = np.array(
        [2, 1, 1, 1, 1, 2, 4, 6, 7, 7, 7, 8, 9, 8, 7, 7, 8, 9, 11, 13, 14, 12, 8, 4], dtype=float
    )
    week = np.array([1.0, 0.95, 0.95, 1.0, 1.05, 1.25, 1.3])  # the log starts on a Monday
    rhythm = np.outer(np.resize(week, days), hours).ravel()
    length = rng.geometric(0.42, size=n_requests)  # requests a session, more sessions than needed
    length = length[: int(np.searchsorted(np.cumsum(length), n_requests)) + 1]
    length[-1] -= length.sum() - n_requests
    user = np.searchsorted(
        np.cumsum(shoppers.activity),
        rng.random(len(length)) * shoppers.activity.sum() * (1 - 1e-12),
    )
    user = np.minimum(user, shoppers.n - 1)
    mass = np.concatenate([[0.0], np.cumsum(rhythm)])
    edges = np.arange(len(mass)) * 3_600_000.0
    # in units of traffic, so that the rhythm stays
    earliest = np.interp(shoppers.arrival[user], edges, mass)
    opened = np.interp(earliest + rng.random(len(length)) * (mass[-1] - earliest), mass, edges)
    session = np.repeat(np.arange(len(length)), length)
    gap = rng.exponential(75_000.0, n_requests) + 8_000.0
    first = np.concatenate([[0], np.cumsum(length)[:-1]])
    waited = np.cumsum(gap) - np.repeat(np.cumsum(gap)[first], length)
    ts = start + (opened[session] + waited).astype(np.int64)
    order = np.argsort(ts, kind="stable")
    ts = ts[order]
    # no two requests share a millisecond
    ts = np.maximum.accumulate(ts - np.arange(n_requests)) + np.arange(n_requests)
    return Diary(user=user[session][order], session=session[order], ts=ts)


def write_query(
    intent: Intent, shelves: Shelves, titles: list[list[str]] | None, rng: np.random.Generator
) -> str:
    """The words for an intent: a noun, or words of the dreamt item's title if it is named; wishes;
    in any order.
    """
    leaf = intent.leaves[0]
    nouns = shelves.leaf_words[leaf]
    section = shelves.section_names[shelves.section[leaf]].split(" / ")[-1]
    if intent.named and titles is not None and titles[intent.dream]:
        title = titles[intent.dream]
        at = int(rng.integers(max(1, len(title) - 2)))
        words = title[at : at + 3]
    elif not nouns or rng.random() < 0.1:
        words = [section]
    else:
        words = [nouns[int(rng.integers(len(nouns)))]]
    for wish in intent.wishes:
        if rng.random() < 0.75:
            said = shelves.value_words[wish]
            phrase = said[int(rng.integers(len(said)))]
            words = [*words, phrase] if rng.random() < 0.3 else [phrase, *words]
    return " ".join(words).lower()
