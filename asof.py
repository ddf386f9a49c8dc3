"""The past: what was known of items, users and sessions strictly before each request.

Reached as `log.asof`, the only access that stages have to the past, so that nothing leaks from the
future.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import polars as pl

from .bounds import Bound, check_bound
from .mapped import LONG, mapped_array, pieces

CLICK, PURCHASE = 1, 2
NEVER = np.iinfo(np.int64).min // 4  # "known from the start", safely below every timestamp


OWNERS = "own", "session", "query"


class Tables(Protocol):
    """The parts of a `Log` that are read here: rows of items and requests, and events."""

    @property
    def meta(self) -> dict[str, Any]: ...
    @property
    def items(self) -> pl.DataFrame: ...
    @property
    def requests(self) -> pl.DataFrame: ...
    @property
    def rows(self) -> pl.DataFrame: ...
    @property
    def events(self) -> pl.DataFrame: ...
    @property
    def n_items(self) -> int: ...
    @property
    def t(self) -> np.ndarray: ...
    @property
    def user(self) -> np.ndarray: ...
    @property
    def session(self) -> np.ndarray: ...


@dataclass(frozen=True)
class History:
    """What users did before their requests: arrays (B, n), the most recent last, padded on the
    left.

    items int32 (-1 pad), ages int64 (ms or steps before the request), actions int8 (0 pad, 1 click,
    2 purchase).
    """

    items: np.ndarray
    ages: np.ndarray
    actions: np.ndarray


class Timeline:
    """Things that happened to keys (items, say), in order of time: how many before a time, the last
    value, the mean value.

    Made for questions that come a chunk of neighbouring times at a time: counts at the chunk's
    beginning are kept and moved along, and only keys to which something happened inside the chunk
    are searched. of int64 (n,), rank int64 (n,), values float64 (n,); keys are 0..n_keys-1, or any
    int64 where `n_keys` is None.
    """

    def __init__(
        self, of: np.ndarray, rank: np.ndarray, n_keys: int | None, values: np.ndarray | None = None
    ):
        self.keys = None
        if n_keys is None:  # with the inverse it sorts; without it hashes, ten times slower
            self.keys, of = np.unique(of, return_inverse=True)
        if (rank[1:] < rank[:-1]).any():
            by_time = np.argsort(rank, kind="stable")
            of, rank = of[by_time], rank[by_time]
            values = None if values is None else values[by_time]
        # a long log has many rows and few keys and times
        self.of = mapped_array(of.astype(small(of)))
        self.rank = mapped_array(rank.astype(small(rank)))
        self.n_keys = len(self.keys) if self.keys is not None else int(n_keys or 0)
        ends = np.cumsum(np.bincount(self.of, minlength=self.n_keys))
        self.starts = mapped_array(np.concatenate([[0], ends]))
        self._values = None if values is None else mapped_array(values)
        self._reached, self._counts = 0, np.zeros(self.n_keys, dtype=np.int64)
        # a sieve: most keys that are asked for are none, and need no search
        if self.keys is not None:
            wide = 16 if self.n_keys < LONG else 4
            self._shift = np.uint64(64 - max(wide * self.n_keys, 2).bit_length())
            self._sieve = np.zeros(1 << int(64 - self._shift), dtype=bool)
            self._sieve[self._slot(self.keys)] = True
            self.keys = mapped_array(self.keys)

    @cached_property
    def values(self) -> np.ndarray:
        """The values, those of a key together, in order of time: float64 (n,)."""
        if self._values is None:
            raise AttributeError("a timeline of things without values")
        # 16 bits are sorted by digits, twice as fast
        of = self.of.astype(np.int16) if self.n_keys < 2**15 else self.of
        return mapped_array(self._values[np.argsort(of, kind="stable")])

    @cached_property
    def totals(self) -> np.ndarray:
        """Running sum of the values, from 0: float64 (n + 1,)."""
        return mapped_array(np.concatenate([[0.0], np.cumsum(self.values)]))

    def _slot(self, key: np.ndarray) -> np.ndarray:
        """Where the sieve keeps a key (Fibonacci hashing)."""
        return (key.astype(np.int64).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> self._shift

    def _found(self, of: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys as 0..n_keys-1, and how many things happened to each before each time rank."""
        of = of.astype(np.int64, copy=False)  # key times time rank outgrows an int32
        if self.keys is None:
            return of, self._before(of, rank)
        dense, counts = np.zeros(len(of), dtype=np.int64), np.zeros(len(of), dtype=np.int64)
        maybe = np.flatnonzero(self._sieve[self._slot(of)])
        if self.n_keys:
            at = np.minimum(np.searchsorted(self.keys, of[maybe]), self.n_keys - 1)
            there = self.keys[at] == of[maybe]
            maybe, at = maybe[there], at[there]
            dense[maybe], counts[maybe] = at, self._before(at, rank[maybe])
        return dense, counts

    def before(self, of: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """How many things happened to each key before each time rank; aligned whole arrays."""
        return self._found(of, rank)[1]

    def _before(self, of: np.ndarray, rank: np.ndarray) -> np.ndarray:
        if len(of) == 0:
            return np.zeros(0, dtype=np.int64)
        first, last = np.searchsorted(self.rank, (rank.min(), rank.max()))
        if first < self._reached:
            self._reached, self._counts = 0, np.zeros(self.n_keys, dtype=np.int64)
        if first > self._reached:
            self._counts += np.bincount(self.of[self._reached : first], minlength=self.n_keys)
            self._reached = int(first)
        counts = self._counts[of]
        if last > first:
            inside, when = (x[first:last].astype(np.int64) for x in (self.of, self.rank))
            happened = np.bincount(inside, minlength=self.n_keys)
            starts = np.cumsum(happened) - happened
            rows = np.flatnonzero((happened > 0)[of])
            low, times = int(rank.min()), int(rank.max() - rank.min()) + 1
            touched = np.flatnonzero(happened)
            # many rows: count for every time and key at once
            if times * len(touched) <= 16 * len(rows):
                column = np.zeros(self.n_keys, dtype=np.int64)
                column[touched] = np.arange(len(touched))
                cell = (when - low + 1) * len(touched) + column[inside]
                table = np.bincount(cell, minlength=times * len(touched))
                table = table.reshape(times, len(touched))
                np.cumsum(table, axis=0, out=table)
                counts[rows] += table[rank[rows] - low, column[of[rows]]]
                return counts
            span = int(self.rank[last - 1]) + 2
            keys = np.sort(inside * span + when)
            of, rank = of[rows], np.minimum(rank[rows], span - 1)
            counts[rows] += np.searchsorted(keys, of * span + rank) - starts[of]
        return counts

    def last(self, of: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """The last value of each key before each time rank, NaN where there is none; aligned
        float64 arrays.
        """
        return self._valued(*self._found(of, rank), lambda start, end: self.values[end - 1])

    def mean(self, of: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """The mean value of each key before each time rank, NaN where there is none; aligned
        float64 arrays.
        """
        return self._valued(
            *self._found(of, rank),
            lambda start, end: (self.totals[end] - self.totals[start]) / (end - start),
        )

    def total(self, of: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many things happened to each key before each time rank, and the sum of their values,
        0 where there is none; aligned arrays, int64 and float64.
        """
        dense, counts = self._found(of, rank)
        found = self._valued(
            dense, counts, lambda start, end: self.totals[end] - self.totals[start]
        )
        return counts, np.nan_to_num(found)

    def _valued(
        self,
        dense: np.ndarray,
        counts: np.ndarray,
        value: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> np.ndarray:
        some = np.flatnonzero(counts)
        out = np.full(len(dense), np.nan)
        start = self.starts[dense[some]]
        out[some] = value(start, start + counts[some])
        return out


def small(whole: np.ndarray) -> type[np.signedinteger[Any]]:
    """The type of the fewest bytes, at least four, that holds whole numbers from 0."""
    return np.int32 if int(whole.max(initial=0)) < 2**31 - 1 else np.int64


class Past:
    """What happened in a log, in order of time: clicks and purchases of users and of sessions, and
    timelines of items; each is made on first use.

    times: the distinct times of the log's requests, ascending; the time rank of a request is how
    many of them lie before it.
    """

    def __init__(self, log: Tables):
        self.log = log
        # times, and their ranks (n_requests,); with the inverse it sorts, else hashes: slower
        self.times, self._rank = np.unique(log.t, return_inverse=True)
        self._chosen: dict[str, tuple[np.ndarray, ...]] = {}
        self._timelines: dict[str, Timeline] = {}
        self._query: np.ndarray | None = None

    def key(self, owner: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """One number for an owner (a user, say) and a time rank, ascending in both."""
        return owner.astype(np.int64) * (len(self.times) + 1) + rank

    def chosen(self, by: Literal["user", "session"]) -> tuple[np.ndarray, ...]:
        """Clicks and purchases by owner and time: their keys, ascending, items, times, actions."""
        if by not in self._chosen:
            events = self.log.events
            request = events["request"].to_numpy()
            owner = self.log.user if by == "user" else self.log.session
            key = self.key(owner[request], self._rank[request])
            order = np.argsort(key, kind="stable")
            purchased = events["purchased"].fill_null(False).to_numpy()
            action = np.where(purchased, PURCHASE, CLICK).astype(np.int8)
            items, t = events["item"].to_numpy(), events["t"].to_numpy()
            self._chosen[by] = key[order], items[order], t[order], action[order]
        return self._chosen[by]

    def timeline(self, what: str) -> Timeline:
        """Rows of one kind along time, of an item, or ("own ...", "session ...", "query ...") of an
        item and a user, a session or the text of a query: shown, looked at, chosen, click,
        purchase, event, price.
        """
        if what not in self._timelines:
            clicked = pl.col("clicked").fill_null(False)
            purchased = pl.col("purchased").fill_null(False)
            price = pl.coalesce("price_shown", "price_paid")
            in_list = pl.col("position").is_not_null()
            looked_at = 1 / (1 + pl.col("position")).log(2)  # the discount of DCG, as a probability
            kinds: dict[str, tuple[pl.Expr, pl.Expr | None]] = {
                "shown": (in_list, pl.col("position")),
                "looked at": (in_list, looked_at),
                "chosen": (in_list & (clicked | purchased), None),
                "click": (clicked, None),
                "purchase": (purchased, None),
                "event": (clicked | purchased, None),
                "price": (price.is_not_null(), price),
            }
            by = next((owner for owner in OWNERS if what.startswith(f"{owner} ")), "")
            condition, value = kinds[what.removeprefix(by).lstrip()]
            columns = [pl.col("request"), pl.col("item")]
            if value is not None:
                columns.append(value.cast(pl.Float64).alias("value"))
            parts = (piece.lazy().filter(condition) for piece in pieces(self.log.rows))
            rows = pl.concat([part.select(columns).collect() for part in parts])
            if by:
                owner = self.owner(by)[rows["request"].to_numpy()]
                rows, owner = rows.filter(owner >= 0), owner[owner >= 0]
            values = rows["value"].to_numpy() if value is not None else None
            of, n = rows["item"].to_numpy(), self.log.n_items
            if by:
                of = owner * n + of
            rank = self._rank[rows["request"].to_numpy()]
            self._timelines[what] = Timeline(of, rank, None if by else n, values)
        return self._timelines[what]

    def owner(self, by: str) -> np.ndarray:
        """The number of each request's user ("own"), session or text of a query, -1 for no query:
        int64 (n_requests,).
        """
        if by != "query":
            return (self.log.user if by == "own" else self.log.session).astype(np.int64)
        if self._query is None:
            query = self.log.requests["query"]
            number = query.rank("dense").cast(pl.Int64).fill_null(0).to_numpy() - 1
            self._query = number
        return self._query


class AsOf:
    """What was known strictly before each request of a log; everything here compares time ranks.

    past: where to take the events from (default: the log itself), so that the same past can be
    asked at other times.
    """

    def __init__(self, log: Tables, past: Past | None = None):
        self.log = log
        self.past = past if past is not None else Past(log)
        self.times = self.past.times
        self.rank = self.time_rank(log.t)  # (n_requests,)
        self._ranks_before: dict[int, np.ndarray] = {}
        self._filtered: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def time_rank(self, t: np.ndarray) -> np.ndarray:
        """Rank of times among the log's times: everything of a smaller rank is strictly earlier."""
        return np.searchsorted(self.times, t)

    # -- histories ---------------------------------------------------------------------------------

    def history(self, requests: np.ndarray, n: int, own_session: bool = False) -> History:
        """The last `n` clicks and purchases before each request, by its user (or within its
        session).
        """
        _, items, times, actions = self.past.chosen("session" if own_session else "user")
        start, end = self._before(requests, "session" if own_session else "user")
        at = end[:, None] + np.arange(-n, 0)[None, :]
        valid = at >= start[:, None]
        at = np.where(valid, at, 0)
        if len(items) == 0:
            empty = np.zeros((len(requests), n))
            return History(
                empty.astype(np.int32) - 1, empty.astype(np.int64), empty.astype(np.int8)
            )
        ages = self.log.t[requests][:, None] - times[at]
        return History(
            np.where(valid, items[at], -1).astype(np.int32),
            np.where(valid, ages, 0),
            np.where(valid, actions[at], 0).astype(np.int8),
        )

    def n_events(self, requests: np.ndarray) -> np.ndarray:
        """How many clicks and purchases each request's user made before it."""
        start, end = self._before(requests, "user")
        return end - start

    def _before(
        self, requests: np.ndarray, by: Literal["user", "session"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """First and end among the clicks and purchases `by` owner, of those before each request."""
        keys = self.past.chosen(by)[0]
        owner = (self.log.user if by == "user" else self.log.session)[requests]
        start = np.searchsorted(keys, self.past.key(owner, np.zeros(len(requests), dtype=np.int64)))
        return start, np.searchsorted(keys, self.past.key(owner, self.rank[requests]))

    # -- items, and what one user did with one item ------------------------------------------------

    def _pair(self, requests: np.ndarray, items: np.ndarray) -> np.ndarray:
        return self.log.user[requests].astype(np.int64) * self.log.n_items + items

    def count(
        self,
        requests: np.ndarray,
        items: np.ndarray,
        action: str = "event",
        within: int | None = None,
    ) -> np.ndarray:
        """How often each item was clicked / purchased / shown (or "event": clicked or purchased)
        before the request; aligned arrays.

        within: only events at most so long before it (ms, or steps where time is an order).
        """
        timeline = self.past.timeline(action)
        before = timeline.before(items, self.rank[requests])
        if within is None:
            return before
        return before - timeline.before(items, self.rank_before(within)[requests])

    def rank_before(self, within: int) -> np.ndarray:
        """The time rank `within` before each request of the log: int64 (n_requests,).

        Raises:
            KarmafunnelError: `within` is not above 0 and finite.
        """
        check_bound("a window of time", Bound(1, 2**53), within=within)
        if within not in self._ranks_before:
            self._ranks_before[within] = self.time_rank(self.log.t - within)
        return self._ranks_before[within]

    def own_count(
        self, requests: np.ndarray, items: np.ndarray, action: str = "event"
    ) -> np.ndarray:
        """How often the request's user clicked or bought the item (or was "shown" it) before the
        request; aligned arrays.
        """
        return self.past.timeline(f"own {action}").before(
            self._pair(requests, items), self.rank[requests]
        )

    def price(self, requests: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The last price seen before the request (shown or paid), else the list price, else NaN;
        aligned float64 arrays.
        """
        seen = self.past.timeline("price").last(items, self.rank[requests])
        return np.where(np.isnan(seen), self._list_price[items], seen)

    @cached_property
    def _list_price(self) -> np.ndarray:
        return self.log.items["price"].fill_null(np.nan).to_numpy()

    def mean_position(self, requests: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The mean position at which each item was shown before the request, NaN where it never
        was; aligned arrays.
        """
        return self.past.timeline("shown").mean(items, self.rank[requests])

    def own_position(self, requests: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The position at which the request's user was last shown each item before it, NaN where
        never; aligned arrays.
        """
        return self.past.timeline("own shown").last(
            self._pair(requests, items), self.rank[requests]
        )

    def in_lists(
        self, requests: np.ndarray, items: np.ndarray, of: str = ""
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How often each item stood in a list, was looked at, as its positions let one expect (1 /
        log2(1 + position)), and was clicked or bought there, before the request; aligned arrays.

        Args:
            of: in whose lists: "own", "session" or "query" for those of the request's user, session
                or query; all by default.
        """
        key = items.astype(np.int64)
        if of:
            key = self.past.owner(of)[requests] * self.log.n_items + key
        name, rank = f"{of} ".lstrip(), self.rank[requests]
        shown, looked_at = self.past.timeline(f"{name}looked at").total(key, rank)
        return shown, looked_at, self.past.timeline(f"{name}chosen").before(key, rank)

    def session_position(self, requests: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The position at which each item was last shown in the request's session before it, NaN
        where never; aligned arrays.
        """
        key = self.past.owner("session")[requests] * self.log.n_items + items
        return self.past.timeline("session shown").last(key, self.rank[requests])

    # -- eligibility -------------------------------------------------------------------------------

    @cached_property
    def known_t(self) -> np.ndarray:
        """Time after which an item is known to requests: (n_items,) int64 as `log.t`; NEVER: from
        the start; the largest integer: never known.
        """
        log = self.log
        known = np.full(log.n_items, NEVER, dtype=np.int64)
        if log.meta["catalogue"] == "seen":
            first = log.rows.group_by("item").agg(pl.col("t").min())
            known[:] = np.iinfo(np.int64).max  # never appears: never known
            known[first["item"].to_numpy()] = first["t"].to_numpy()
        told = "available_after" if log.meta["time"] == "order" else "available_from"
        if told in log.items.columns:
            when = (
                log.items[told] - 1 if told == "available_after" else log.items[told].dt.epoch("ms")
            )
            known = np.where(when.is_null().to_numpy(), known, when.fill_null(0).to_numpy())
        return known

    @cached_property
    def known_rank(self) -> np.ndarray:
        """Time rank after which an item is known: (n_items,) int64; -1: from the start."""
        return np.searchsorted(self.times, self.known_t, side="right") - 1

    @cached_property
    def filter_key(self) -> np.ndarray:
        """Number of each request's set of filters, int32; 0 means no filter."""
        return self._filters[0]

    @cached_property
    def _filters(self) -> tuple[np.ndarray, list[tuple[str, ...]]]:
        # few requests differ in their filters: each way to write a set is sorted once
        texts = self.log.requests["filters"].list.join("\x00").fill_null("")
        written = texts.unique(maintain_order=True)
        sets: dict[str, int] = {"": 0}
        key = {
            text: sets.setdefault("\x00".join(sorted(text.split("\x00"))), len(sets))
            for text in written.to_list()
        }
        filters = [tuple(text.split("\x00")) if text else () for text in sets]
        return texts.replace_strict(key).cast(pl.Int32).to_numpy(), filters

    @cached_property
    def _holders(self) -> dict[str, np.ndarray]:
        """Items that hold each attribute some request filters by."""
        wanted = sorted({f for filters in self._filters[1] for f in filters})
        items = self.log.items.select(pl.col("attributes").alias("attribute"))
        pairs = items.with_row_index("item").explode("attribute")
        held = pairs.filter(pl.col("attribute").is_in(wanted)).group_by("attribute").agg("item")
        return {name: np.unique(np.array(of, dtype=np.int64)) for name, of in held.iter_rows()}

    def pool(self, key: int) -> tuple[np.ndarray, np.ndarray]:
        """Items that pass a set of filters, as they became known, and their known ranks."""
        if key not in self._filtered:
            # Items known at the same time stand in a scrambled order: a search that stops at the
            # first of many equals is then fair.
            items = np.random.default_rng(0).permutation(self.log.n_items)
            for wanted in self._filters[1][key]:
                held = self._holders.get(wanted, np.empty(0, dtype=np.int64))
                items = items[np.isin(items, held)]
            items = items[np.argsort(self.known_rank[items], kind="stable")]
            self._filtered[key] = items, self.known_rank[items]
        return self._filtered[key]

    def known(self, requests: np.ndarray) -> np.ndarray:
        """Number of eligible items of each request: known before it and passing its filters."""
        counts = np.empty(len(requests), dtype=np.int64)
        keys = self.filter_key[requests]
        for key in np.unique(keys):
            mine = keys == key
            counts[mine] = np.searchsorted(self.pool(int(key))[1], self.rank[requests[mine]])
        return counts

    def eligible(self, requests: np.ndarray) -> list[np.ndarray]:
        """Row numbers of the eligible items of each request."""
        keys, counts = self.filter_key[requests], self.known(requests)
        return [self.pool(int(key))[0][:n] for key, n in zip(keys, counts, strict=True)]

    def is_eligible(self, requests: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether the item is eligible for the request; aligned arrays."""
        answer = self.known_rank[items] < self.rank[requests]
        keys = self.filter_key[requests]
        for key in np.unique(keys[keys > 0]):
            mine = np.flatnonzero(keys == key)
            answer[mine] &= np.isin(items[mine], self.pool(int(key))[0])
        return answer
