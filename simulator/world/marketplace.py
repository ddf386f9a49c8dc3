"""A marketplace as a value: who comes, what they want, how they look at a list, buy and return, and
what changes from day to day. `open_shop` runs it, `simulate` writes its log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaincinv, ndtri

from ...bounds import FIELDS, SHARE, Bound, check_bound, needs, several
from ...errors import KarmafunnelError, quoted
from ...typed import Typed, positional
from .click_lists import Shown
from .click_protocol import ClickModel
from .clicks import PBM
from .market import CLICKS, POOL, PURCHASES, SLATE, examination
from .wants import WEIGHT, Loyalty, QueryMatch, Taste, Thrift, Want

VISITS = Bound(0.0, 24.0, above=True)  # a day
COUNT = Bound(0.0, 1000.0, above=True)  # a request
HOURS = (2, 1, 1, 1, 1, 2, 4, 6, 7, 7, 7, 8, 9, 8, 7, 7, 8, 9, 11, 13, 14, 12, 8, 4)
WEEK = (1.0, 0.95, 0.95, 1.0, 1.05, 1.25, 1.3)


def hold_numbers(value: Any, name: str, count: int, bound: Bound, whole: str = "") -> None:
    """A field as a tuple of `count` numbers within a bound (0: at least one); `whole`: they need a
    sum above 0 ("positive") or of at most 1 ("share"). Raises KarmafunnelError for others.
    """
    who = type(value).__name__
    needed = f"{count} numbers" if count else "numbers"
    numbers = several(who, name, getattr(value, name), needed)
    if not numbers or (count and len(numbers) != count):
        raise KarmafunnelError(who, what=name, needs=needed, found=quoted(numbers))
    for x in numbers:
        check_bound(who, bound, **{name: x})
    total = sum(numbers)
    if whole == "share" and total > 1 + 1e-9:
        needed = "chances that sum to 1 at most"
        raise KarmafunnelError(who, what=name, needs=needed, found=quoted(numbers))
    if whole == "positive" and total <= 0:
        raise KarmafunnelError(who, what=name, needs="a sum above 0", found=quoted(numbers))
    object.__setattr__(value, name, tuple(map(float, numbers)))


@dataclass(frozen=True, repr=False)
class Purchase(Typed):
    """The step after a click: P(purchase | click) = sigmoid(utility * U - price * dearness + bias),
    independent between clicked items; it happens an exponential delay later.

    Args:
        utility: how much utility counts once more.
        price: how much dearness (see `Thrift`) counts once more.
        hours: mean delay.
        several: chance of taking two to four units, of goods that last and of goods that are used
            up.
        returned: share of purchases that are sent back.
    """

    utility: float = 0.8
    price: float = 0.5
    hours: float = 2.0
    several: tuple[float, float] = (0.04, 0.2)
    returned: float = 0.05

    def __post_init__(self) -> None:
        hours = Bound(0.0, 24.0 * 365)
        needs(self, utility=WEIGHT, price=WEIGHT, hours=hours, returned=SHARE)
        hold_numbers(self, "several", 2, SHARE)


@dataclass(frozen=True, repr=False)
class Sessions(Typed):
    """What follows a request: the same need in other words, browsing on from it, or nothing.

    Args:
        after_purchase: chances (reformulate, browse on) after something was bought; the rest leave.
        after_click: where something was clicked, nothing bought.
        after_nothing: where nothing was clicked.
        most: requests in a session.
    """

    after_purchase: tuple[float, float] = (0.05, 0.3)
    after_click: tuple[float, float] = (0.45, 0.15)
    after_nothing: tuple[float, float] = (0.5, 0.1)
    most: int = 12

    def __post_init__(self) -> None:
        for name in ("after_purchase", "after_click", "after_nothing"):
            hold_numbers(self, name, 2, SHARE, "share")
        needs(self, most=(1, 1000))


@dataclass(frozen=True, repr=False)
class Activity(Typed, ABC):
    """How visiting rates spread over shoppers. A shopper visits on a day with the chance 1 -
    exp(-rate * day of the week * exp(mood)), once at most.
    """

    @abstractmethod
    def rate(self, chance: np.ndarray) -> np.ndarray:
        """Visits a day of shoppers, by a number between 0 and 1 of their own: (n,)."""


@dataclass(frozen=True, repr=False)
class GammaRates(Activity):
    """Rates are gamma distributed, so that counts of visits are negative binomial (Ehrenberg 1959,
    The Pattern of Consumer Purchases).

    Args:
        mean: visits a day.
        shape: 1 is exponential; less spreads more.
    """

    mean: float = positional(0.1)
    shape: float = 1.0

    def __post_init__(self) -> None:
        needs(self, mean=VISITS, shape=Bound(0.01, 1000.0))

    def rate(self, chance: np.ndarray) -> np.ndarray:
        return np.asarray(self.mean / self.shape * gammaincinv(self.shape, chance))


@dataclass(frozen=True, repr=False)
class LogNormalRates(Activity):
    """Rates are log-normal: mean * exp(spread * z - spread**2 / 2).

    Args:
        mean: visits a day.
        spread: standard deviation of log rates.
    """

    mean: float = positional(0.1)
    spread: float = 0.9

    def __post_init__(self) -> None:
        needs(self, mean=VISITS, spread=Bound(0.0, 5.0))

    def rate(self, chance: np.ndarray) -> np.ndarray:
        return np.asarray(self.mean * np.exp(self.spread * ndtri(chance) - self.spread**2 / 2))


@dataclass(frozen=True, repr=False)
class Returning(Typed):
    """Satisfaction moves the visiting rate: mood = keep * mood a day, plus an effect for each
    request; the rate is multiplied by exp(mood). It closes the loop from a funnel to retention.

    Args:
        purchase: effect of a request that ended in a purchase that is not sent back.
        click: effect of one with clicks alone.
        nothing: effect of one without a click.
        keep: what is left of the mood a day later.
    """

    purchase: float = 0.15
    click: float = 0.02
    nothing: float = -0.1
    keep: float = 0.9

    def __post_init__(self) -> None:
        effect = Bound(-5.0, 5.0)
        needs(self, purchase=effect, click=effect, nothing=effect, keep=Bound(0.0, 0.999))


@dataclass(frozen=True, repr=False)
class Rhythm(Typed):
    """When people come: weights of the hours of a day, and of the days of a week from Monday.

    Args:
        hours: 24 weights.
        week: 7 factors of the visiting rate.
    """

    hours: tuple[float, ...] = tuple(map(float, HOURS))
    week: tuple[float, ...] = WEEK

    def __post_init__(self) -> None:
        hold_numbers(self, "hours", 24, FIELDS["rate"], "positive")
        hold_numbers(self, "week", 7, Bound(0.0, 100.0), "positive")


@dataclass(frozen=True, repr=False)
class Season(Typed):
    """Demand of a department is multiplied by exp(strength * cos(2 pi (day of the year / 365.25 -
    peak))); each department has a peak of its own.

    Args:
        strength: 0 for none; 0.7 doubles demand at the peak.
    """

    strength: float = positional(0.5)

    def __post_init__(self) -> None:
        needs(self, strength=Bound(0.0, 5.0))


@dataclass(frozen=True, repr=False)
class Promotions(Typed):
    """In each block of days each item is reduced with a chance, by one of some shares of its price.

    Args:
        share: chance that an item is reduced.
        days: length of a block.
        reductions: shares of the price, equally likely.
    """

    share: float = positional(0.08)
    days: int = 3
    reductions: tuple[float, ...] = (0.1, 0.15, 0.2, 0.3)

    def __post_init__(self) -> None:
        needs(self, share=SHARE, days=(1, 3650))
        hold_numbers(self, "reductions", 0, Bound(0.0, 0.99))


@dataclass(frozen=True, repr=False)
class Drift(Typed):
    """Tastes are an AR(1) of variance 1: tomorrow's = keep * today's + sqrt(1 - keep**2) * normal.
    It does not hang on what was shown.

    Args:
        keep: autocorrelation of tastes between two days.
    """

    keep: float = positional(0.98)

    def __post_init__(self) -> None:
        needs(self, keep=SHARE)


@dataclass(frozen=True, repr=False)
class Arrivals(Typed):
    """Shares of users and items that are not there from the start, but come within the first days,
    as likely on each.

    Args:
        users: share of users.
        items: share of items.
        days: how many days.
    """

    users: float = 0.3
    items: float = 0.12
    days: int = 30

    def __post_init__(self) -> None:
        needs(self, users=SHARE, items=Bound(0.0, 0.9), days=(1, 36_500))


@dataclass(frozen=True, repr=False)
class Engine(Typed):
    """The shop's own search engine. It ranks a short list by relevance and price, `knows` of taste,
    popularity * log(1 + 3 * clicks / mean clicks), and errors; each slot shows, with the chance
    `exploration`, a random item of its pool not shown yet, else the best of them.

    Args:
        slots: items shown.
        pool: its best items, explored at random.
        shortlist: items that it ranks.
        knows: share of taste.
        popularity: weight of clicks, which are counted every night.
        misjudged: standard deviation of its lasting error about each item.
        noise: of its error about each item in each request.
        exploration: chance of a random item.
    """

    slots: int = SLATE
    pool: int = POOL
    shortlist: int = 2 * POOL
    knows: float = 0.45
    popularity: float = 0.45
    misjudged: float = 0.5
    noise: float = 0.8
    exploration: float = 0.1

    def __post_init__(self) -> None:
        many = Bound(1, 100_000)
        needs(self, slots=many, pool=many, shortlist=many, knows=SHARE, exploration=SHARE)
        needs(self, popularity=WEIGHT, misjudged=Bound(0.0, 100.0), noise=Bound(0.0, 100.0))
        if not self.slots <= self.pool <= self.shortlist:
            needed = "slots <= pool <= shortlist"
            found = f"{self.slots}, {self.pool}, {self.shortlist}"
            raise KarmafunnelError("Engine", needs=needed, found=found)


BROWSING = PBM(tuple(examination(SLATE).tolist()))


@dataclass(frozen=True, repr=False)
class Marketplace(Typed):
    """A marketplace, all of it: what shoppers want and do, what changes, and the shop's engine.

    Args:
        wants: components of utility, whose sum decides clicks; each kind once.
        browsing: the click model.
        purchase: the step after a click.
        sessions: what follows a request.
        clicks, purchases: a request, under the engine, at the start: the biases of both logits are
            set so that a pilot expects them.
        activity: how visiting rates spread over shoppers.
        returning: how satisfaction changes the visiting rate; None for not at all.
        rhythm: hours and weekdays.
        season, promotions, drift, arrivals: what changes by itself; None for nothing.
        engine: the shop's own search engine, which writes its log.
    """

    wants: tuple[Want, ...] = (QueryMatch(), Taste(), Loyalty(), Thrift())
    browsing: ClickModel = BROWSING
    purchase: Purchase = Purchase()
    sessions: Sessions = Sessions()
    clicks: float = CLICKS
    purchases: float = PURCHASES
    activity: Activity = LogNormalRates()
    returning: Returning | None = Returning()
    rhythm: Rhythm = Rhythm()
    season: Season | None = None
    promotions: Promotions | None = Promotions()
    drift: Drift | None = None
    arrivals: Arrivals | None = Arrivals()
    engine: Engine = Engine()

    def __post_init__(self) -> None:
        who = "Marketplace"
        needed = "wants such as (QueryMatch(), Taste()), each kind once"
        wants = several(who, "wants", self.wants, needed)
        kinds = {type(want) for want in wants}
        if not wants or len(kinds) < len(wants) or not all(isinstance(w, Want) for w in wants):
            raise KarmafunnelError(who, what="wants", needs=needed, found=quoted(wants))
        object.__setattr__(self, "wants", wants)
        kinds_of: dict[str, tuple[type, bool]] = {
            "browsing": (ClickModel, False),
            "purchase": (Purchase, False),
            "sessions": (Sessions, False),
            "activity": (Activity, False),
            "returning": (Returning, True),
            "rhythm": (Rhythm, False),
            "season": (Season, True),
            "promotions": (Promotions, True),
            "drift": (Drift, True),
            "arrivals": (Arrivals, True),
            "engine": (Engine, False),
        }
        for name, (kind, optional) in kinds_of.items():
            found = getattr(self, name)
            if not isinstance(found, kind) and not (optional and found is None):
                needed = f"a {kind.__name__} or None" if optional else f"a {kind.__name__}"
                raise KarmafunnelError(who, what=name, needs=needed, found=quoted(found))
        needs(self, clicks=COUNT, purchases=COUNT)
        self.check_reach()

    def check_reach(self) -> None:
        """Raises KarmafunnelError for more clicks, or purchases, than the lists can hold."""
        ones = np.ones((1, self.engine.slots))
        most = float(self.browsing.marginal(Shown(ones, 1 - ones)).sum())
        for name, found, limit in (
            ("clicks", self.clicks, most),
            ("purchases", self.purchases, self.clicks),
        ):
            if found >= limit:
                needed = f"less than {limit:.4g}, what its lists of {self.engine.slots} allow"
                if name == "purchases":
                    needed = f"less than clicks, {limit:.4g}"
                raise KarmafunnelError("Marketplace", what=name, needs=needed, found=f"{found:.4g}")

    def want(self, kind: type[Want]) -> Any:
        """The want of a kind; None where it has none."""
        return next((want for want in self.wants if isinstance(want, kind)), None)
