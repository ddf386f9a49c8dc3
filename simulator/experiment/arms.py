"""An A/B test in a simulated shop: two recipes serve its users day by day, are fitted again on what
both have shown, and everything that users did is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ...bounds import BOUNDS, check_seed, needs
from ...errors import KarmafunnelError
from ...files import read_table, write_parquet
from ...files import say as warn
from ...log import Log
from ...typed import Typed
from ..world.click_lists import Shown
from ..world.open_shop import Answers, Shop
from ..world.visits import Visits
from .past import Past
from .serving import Server, best, opened
from .split import Split

SUMS = ("requests", "clicks", "purchases", "gmv")
META = {
    "name": "shop",
    "currency": "EUR",
    "scenario": ["search", "browse"],
    "label": "click",
    "catalogue": "published",
}
EXPECTED = ("expected_clicks", "expected_purchases", "expected_gmv")
Progress = Callable[[str], None]


def silent(_: str) -> None:
    """A progress callback that says nothing."""


@dataclass(frozen=True, repr=False)
class Design(Typed):
    """How an experiment runs.

    Args:
        days: of the experiment.
        before: days that the shop's own engine serves first: what the funnels are first fitted on,
            and the past of users for CUPED.
        retrain: days from one fit to the next, 0 for a single fit.
        keep: days of the log that a fit sees.
        share: of the users who are treated.
        slots: items shown.
        seed: of the split and of the fits.
    """

    days: int = 14
    before: int = 21
    retrain: int = 7
    keep: int = 28
    share: float = 0.5
    slots: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("days", "before", "keep"):
            needs(self, **{name: BOUNDS["days_served"]})
        needs(self, retrain=BOUNDS["experiment_days"], share=BOUNDS["arm_share"])
        needs(self, slots=BOUNDS["slots"])
        check_seed("Design", self.seed)
        if self.retrain >= self.days:
            found = f"{self.days} days"
            needed = f"more days than the {self.retrain} from one fit to the next"
            hint = "--retrain 0 (retrain=0) fits once"
            raise KarmafunnelError("Design", what="days", needs=needed, found=found, hint=hint)

    @property
    def split(self) -> Split:
        return Split(f"karmafunnel {self.seed}", (1 - self.share, self.share))

    def fits(self, day: int) -> bool:
        """Whether funnels are fitted before a day of the experiment."""
        return day == 0 or bool(self.retrain and day % self.retrain == 0)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What happened in an experiment.

    users: a row a user and day with a request: day (below 0 before the experiment), user, arm,
    SUMS, and what the lists were worth without the chance of clicks (EXPECTED). items: a row an arm
    and item: shown, clicks, purchases, gmv, during the experiment.
    """

    users: pl.DataFrame
    items: pl.DataFrame


@dataclass(frozen=True)
class Folders:
    """Folders: what funnels offered, round by round, and their fits, by content. An experiment that
    was killed goes on from there and ends with the same bytes.
    """

    lists: Path
    fits: Path


class Books:
    """Keeps what users did."""

    def __init__(self, arms: np.ndarray, n_items: int):
        self.arms, self.n_items = arms, n_items
        self.days: list[pl.DataFrame] = []
        self.items = np.zeros((int(arms.max()) + 1, 4, n_items))

    def add(self, day: int, visits: Visits, lists: np.ndarray, answers: Answers) -> None:
        paid = answers.paid * answers.quantity
        sums = {
            "requests": np.ones(len(lists)),
            "clicks": answers.clicked.sum(axis=1),
            "purchases": answers.bought.sum(axis=1),
            "gmv": paid.sum(axis=1),
        } | {name: getattr(answers, name) for name in EXPECTED}
        each = {name: values.astype(np.float64) for name, values in sums.items()}
        self.days.append(pl.DataFrame({"day": day, "user": visits.user, **each}))
        if day < 0:
            return
        there = lists >= 0
        arm = np.broadcast_to(self.arms[visits.user][:, None], lists.shape)[there]
        item = lists[there]
        for kind, values in enumerate((there, answers.clicked, answers.bought, paid)):
            np.add.at(self.items[:, kind], (arm, item), np.asarray(values, np.float64)[there])

    def close(self) -> Outcome:
        """What happened, users and days in their order; raises KarmafunnelError for nothing."""
        if not self.days:
            hint = "more users, or more days"
            raise KarmafunnelError("experiment", needs="requests", found="none", hint=hint)
        users = pl.concat(self.days).group_by("day", "user").sum().sort("day", "user")
        users = users.with_columns(pl.Series("arm", self.arms[users["user"].to_numpy()]))
        names = ("shown", "clicks", "purchases", "gmv")
        arms = []
        for arm, sums in enumerate(self.items):
            columns = dict(zip(names, sums, strict=True))
            arms.append(pl.DataFrame({"arm": arm, "item": np.arange(self.n_items), **columns}))
        return Outcome(users, pl.concat(arms))


def run(
    recipes: Sequence[str],
    shop: Shop,
    design: Design,
    kept: Folders,
    arms: np.ndarray | None = None,
    say: Progress = silent,
) -> Outcome:
    """Serve every user of a shop that was just opened by the recipe of their arm.

    Args:
        recipes: of each arm, the control first.
        arms: of each user, (n_users,); by default drawn by the design's split.
        say: receives a line a day and a fit.
    """
    of_user = design.split.arms(np.arange(shop.people.n)) if arms is None else arms
    books = Books(of_user, shop.items.height)
    servers = Servers(recipes, kept.fits, design.seed, say)

    def offer(log: Log, visits: Visits) -> np.ndarray:
        return servers.lists(log, visits, of_user[visits.user], design.slots)

    rounds = served(shop, design, kept.lists, servers, offer, say=say)
    for day, visits, lists, answers in rounds:
        books.add(day, visits, lists, answers)
    return books.close()


def served(
    shop: Shop,
    design: Design,
    folder: Path,
    servers: Servers,
    offer: Callable[[Log, Visits], np.ndarray],
    show: Callable[[np.ndarray, int, int], np.ndarray] = lambda offered, day, number: offered,
    say: Progress = silent,
) -> Iterator[tuple[int, Visits, np.ndarray, Answers]]:
    """The story of an experiment: the shop's own engine serves the days before it, then funnels
    that are fitted again and again.

    Args:
        folder: where the offers of each round are kept, and taken from if they are there.
        servers: told when to learn, and from what.
        offer: item numbers for visits, (n, width), from the log with these requests in it.
        show: the lists (n, slots) of what was offered, a day and the number of the round.

    Yields:
        Of each round: the day, below 0 before the experiment; visits; lists; what users did.
    """
    ones = np.ones((1, design.slots))
    shop.marketplace.browsing.marginal(Shown(ones, 1 - ones))  # refuses lists that are too long
    past, fits, first = Past(shop.items, META, design.keep), False, True
    for day in range(-design.before, design.days):
        if day >= 0:
            say(f"day {day + 1} of {design.days}")
            fits |= design.fits(day)  # a day without visits leaves it to the next one
        for number, visits in enumerate(shop.day(day + design.before)):
            if day < 0:
                lists = shop.logging(visits).items
            else:
                if fits:
                    past.begin_fit()
                log = past.log(visits.requests)
                if fits:
                    servers.learn(log)
                fits = False
                place = folder / f"lists-{day:03d}-{number:02d}.parquet"
                offered = read_lists(place, len(visits))
                if offered is None:
                    offered = offer(log, visits)
                    write_lists(place, offered)
                lists = show(offered, day, number)
                log.forget()
                del log
            answers = shop.answer(visits, lists)
            past.add(visits.requests, shop.exposures(visits, lists, answers))
            if first:
                servers.check(past.first())
            first = False
            yield day, visits, lists, answers


class Servers:
    """The recipes at work, fitted when they are first asked for lists."""

    def __init__(self, recipes: Sequence[str], cache: Path, seed: int, say: Progress):
        self.recipes, self.cache, self.seed, self.say = recipes, cache, seed, say
        self.fitted: list[Server] = []
        self.learn_from: Log | None = None

    def check(self, log: Log) -> None:
        """Raises KarmafunnelError for what is no recipe on this log, a row that a recipe lacks, and
        recipes with different labels; nothing is fitted.
        """
        labels = {recipe: opened(recipe, log).label for recipe in self.recipes}
        if len({*labels.values()}) > 1:
            found = " and ".join(f"{label} in {recipe}" for recipe, label in labels.items())
            hint = 'write label = "click" or label = "purchase" into both files'
            raise KarmafunnelError(
                "experiment", needs="recipes with one label", found=found, hint=hint
            )

    def learn(self, log: Log) -> None:
        """Fit again, on this log, before the next lists."""
        self.fitted, self.learn_from = [], log

    def ready(self) -> list[Server]:
        if not self.fitted and self.learn_from is not None:
            for recipe in self.recipes:
                self.say(f"fitting {recipe}")
                try:
                    server = Server.of(recipe, self.learn_from, self.cache, self.seed)
                except KarmafunnelError as error:
                    if error.hint or not error.needs.startswith("requests"):
                        raise
                    many = f"{self.learn_from.requests.height:,} requests"
                    hint = f"{recipe} is fitted on {many}; more --users or --before days give more"
                    raise KarmafunnelError(str(error), hint=hint) from error
                self.fitted.append(server)
        return self.fitted

    def lists(self, log: Log, visits: Visits, arms: np.ndarray, slots: int) -> np.ndarray:
        """The list of each request by the recipe of its arm, (n,): (n, slots)."""
        numbers = pl.DataFrame({"request_id": log.request_ids}).with_row_index("at")
        at = visits.requests.join(numbers, on="request_id", how="left", maintain_order="left")["at"]
        row = at.to_numpy().astype(np.int64)
        lists = np.full((len(row), slots), -1, dtype=np.int64)
        indexes: dict[Any, Any] = {}
        for number, server in enumerate(self.ready()):
            mine = np.flatnonzero(arms == number)
            mine = mine[np.argsort(row[mine])]
            if len(mine):
                lists[mine] = best(server.on(log, indexes), row[mine], slots)
        return lists


def read_lists(path: Path, n: int) -> np.ndarray | None:
    """Lists that were kept of n requests; None where there are none, or the file is damaged."""
    if not path.exists():
        return None
    try:
        lists = read_table(path, "items")["items"].to_numpy()
        if lists.ndim != 2 or len(lists) != n:
            raise KarmafunnelError(path, needs=f"lists of {n:,} requests", found=lists.shape)
    except KarmafunnelError as error:
        warn(f"{error}; it is made again")
        return None
    return lists.astype(np.int64)


def write_lists(path: Path, lists: np.ndarray) -> None:
    column = pl.Series("items", lists.astype(np.int32), dtype=pl.Array(pl.Int32, lists.shape[1]))
    write_parquet(path, column.to_frame())
