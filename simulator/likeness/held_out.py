"""A window of a log as the lines of a report card read it, and what two logs have in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...log import LABELS, Log
from ..world.visit_fits import by_gaps

FEWEST = 30  # requests of a window
DAY = 86_400_000


@dataclass(frozen=True)
class Terms:
    """By what both logs are read, so that their figures can be compared.

    label: which items are relevant; None where the logs have none in common. span: ms that a window
    may cover where a figure depends on it, past: ms before a request that may be looked at; None
    without a clock. named_sessions: sessions are those that both logs name; else requests of a user
    without half an hour between them.
    """

    label: str | None
    span: int | None
    past: int | None
    named_sessions: bool


@dataclass(frozen=True, eq=False)
class Part:
    """The scenario's requests of a window; arrays are by request of it, (n,), unless said
    otherwise.

    who: "real" or "simulated", for messages.
    """

    log: Log
    requests: np.ndarray  # rows of the log's requests, in time order
    terms: Terms
    who: str

    @property
    def n(self) -> int:
        return len(self.requests)

    def has(self, what: str) -> bool:
        """A capability of the log, or "clock", "sessions", "categories", "label"."""
        if what == "clock":
            return bool(self.log.meta["time"] == "clock")
        if what == "sessions":
            return self.terms.named_sessions or (self.has("clock") and self.has("users"))
        if what == "categories":
            return bool(self.log.items["category"].null_count() < self.log.n_items)
        if what == "label":
            return self.terms.label is not None
        return self.log.has(what)

    @cached_property
    def user(self) -> np.ndarray:
        """Numbers from 0, of the users of this part alone."""
        return np.unique(self.log.user[self.requests], return_inverse=True)[1]

    @property
    def n_users(self) -> int:
        return int(self.user.max()) + 1

    @cached_property
    def t(self) -> np.ndarray:
        return self.log.t[self.requests]

    @cached_property
    def late(self) -> np.ndarray:
        """Whether a request lies in the last `span` of the part."""
        assert self.terms.span is not None
        return self.t > self.t[-1] - self.terms.span

    @cached_property
    def session(self) -> np.ndarray:
        """Numbers from 0."""
        if self.terms.named_sessions:
            return np.unique(self.log.session[self.requests], return_inverse=True)[1]
        return by_gaps(self.user, self.t)

    def _mine(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows of a frame with a column `request`, with `at`, the place of it among `requests`."""
        place = np.full(self.log.requests.height, -1)
        place[self.requests] = np.arange(self.n)
        at = pl.Series("at", place[frame["request"].to_numpy()])
        return frame.with_columns(at).filter(pl.col("at") >= 0)

    @cached_property
    def shown(self) -> pl.DataFrame:
        """Rows of lists that were shown: at, item, position, clicked, purchased, price_shown."""
        flags = pl.col("clicked", "purchased").fill_null(False)
        rows = self._mine(self.log.rows).filter(pl.col("position").is_not_null())
        columns = ("at", "item", "position", "price_shown")
        return rows.select(*columns, flags).sort("at", "position")

    @cached_property
    def taken(self) -> pl.DataFrame:
        """What was clicked or purchased: at, item, clicked, purchased."""
        flags = pl.col("clicked", "purchased").fill_null(False)
        return self._mine(self.log.events).select("at", "item", flags)

    @cached_property
    def truth(self) -> pl.DataFrame:
        """Relevant items: at, item, price (of one piece), since (ms since the user clicked or
        bought the item last, within `past`; null for never), new (never relevant in W1).
        """
        assert self.terms.label is not None
        found = self._mine(self.log.truth(self.terms.label))
        in_w1 = pl.Series(self.log.targets_of_w1(self.terms.label))
        return found.select(
            "at",
            "item",
            (pl.col("money") / pl.col("quantity")).alias("price"),
            self._since(found).alias("since"),
            (in_w1.gather(found["item"]) == 0).alias("new"),
        )

    def _since(self, found: pl.DataFrame) -> pl.Series:
        """ms since the user's last event with the item before the request; null for none."""
        events = self.log.events.select("user", "item", "t").with_columns(pl.col("t").alias("last"))
        asked = found.select(
            "item",
            pl.Series("user", self.log.user[found["request"].to_numpy()]),
            pl.Series("t", self.log.t[found["request"].to_numpy()]),
        ).with_row_index("row")
        joined = asked.sort("t").join_asof(
            events.sort("t"),
            on="t",
            by=["user", "item"],
            allow_exact_matches=False,
            check_sortedness=False,
        )
        since = joined.sort("row").select(pl.col("t") - pl.col("last")).to_series()
        past = self.terms.past
        return since if past is None else since.set(since > past, None)


def parts(real: Log, simulated: Log) -> tuple[Part, Part, Part | None]:
    """The last window of the real log, that of the simulated one, and the real one's window before
    (None where that holds too little), on terms that all of them can answer.

    Raises KarmafunnelError for a last window with fewer than 30 requests.
    """
    last: list[np.ndarray] = []
    for who, log in (("real", real), ("simulated", simulated)):
        requests = log.requests_in("W3")
        if len(requests) < FEWEST:
            name = f"the {who} log ({log.name})"
            needed = f"at least {FEWEST} requests of the scenario in W3, its last window"
            hint = "a simulated log is longer with more --days or --users" if last else ""
            many = len(requests) or "none"
            raise KarmafunnelError(name, needs=needed, found=many, hint=hint)
        last.append(requests)
    before = real.requests_in("W2")
    enough = len(before) >= FEWEST
    windows = [(real, last[0]), (simulated, last[1]), *([(real, before)] if enough else [])]
    terms = agreed(real, simulated, windows)
    names = ("real", "simulated", "real")
    found = [Part(*window, terms, who) for window, who in zip(windows, names, strict=False)]
    return found[0], found[1], found[2] if enough else None


def agreed(real: Log, simulated: Log, windows: list[tuple[Log, np.ndarray]]) -> Terms:
    """The terms: the label of both, the shortest window and past."""
    clocked = all(a.meta["time"] == "clock" for a in (real, simulated))
    span = past = None
    if clocked:
        span = min(int(log.t[rows[-1]] - log.t[rows[0]]) + 1 for log, rows in windows)
        past = min(int(log.t[rows[0]] - log.t[0]) for log, rows in windows)
    named = all(a.requests["session_id"].null_count() == 0 for a in (real, simulated))
    return Terms(shared_label(real, simulated), span, past, named)


def shared_label(real: Log, simulated: Log) -> str | None:
    """The real log's label where both have it, else one that both have; None without one."""
    labels = [real.meta["label"], *LABELS]
    return next((x for x in labels if x and real.has(LABELS[x]) and simulated.has(LABELS[x])), None)
