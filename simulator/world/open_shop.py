"""`open_shop` runs a marketplace day by day, with any engine: whoever serves its visits meets the
same shoppers with the same luck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl

from ...bounds import Bound, check_bound, check_fits, check_seed
from ...checks import require
from ...errors import KarmafunnelError, quoted
from ...log import Catalogue
from .answering import Answers, Truth, checked, remember
from .catalogue import invent, stock
from .click_lists import Shown
from .draws import Draws, Stream
from .frames import moments
from .market import bisected, sigmoid
from .marketplace import Marketplace
from .place import Place
from .queries import Words
from .settlers import first_state, meet_people, place_goods
from .shelving import LoggingEngine, Slates
from .shoppers import DAY
from .visits import Crowd, Visits
from .wants import dearness
from .world import START

COUPON, REDUCED = 0.1, 0.95  # one in ten pays less
FADES = 0.95  # what is left of the count of clicks a day later
PILOT = 512  # visits
OPEN_TIME = Bound(0, 4_102_444_800_000)


class Shop(Place):
    """A running marketplace. Days are asked for one after another from 0, and every round of a day
    is answered once before the next:

        for visits in shop.day(0):
            slates = shop.logging(visits)  # or any lists (n, k)
            answers = shop.answer(visits, slates.items)
    """

    def __init__(self, marketplace: Marketplace, place: Place, seed: int, start: int, named: float):
        super().__init__(place.goods, place.people, place.state)
        self.marketplace, self.seed, self.start = marketplace, seed, start
        self.words = Words(place.goods.shelves, place.people.mobile, named > 0)
        self.crowd = Crowd(self, marketplace, self.words, seed, start, named)
        self.engine = LoggingEngine(self, marketplace, start)
        self.click_bias = self.buy_bias = 0.0
        self.items = place.goods.shelves.items.with_columns(
            pl.lit(None, dtype=pl.String).alias("image"),
            moments(place.goods.available).alias("available_from"),
        )
        self._waiting: Visits | None = None
        self._answers: Answers | None = None
        self._discount(0)
        self._calibrate()

    # -- the story ---------------------------------------------------------------------------------

    def day(self, day: int) -> Iterator[Visits]:
        """The rounds of a day: first requests of all sessions, then second ones, and so on.

        Raises:
            KarmafunnelError: a day out of order, or a round that was not answered.
        """
        self._check_turn(f"day {day}", day == self.state.day + 1, f"day {self.state.day + 1}")
        self._night(day)
        sizes = self.engine.lists.sizes
        visits = self.crowd.first(day, self.crowd.comers(day), sizes)
        while len(visits):
            self._waiting, self._answers = visits, None
            yield visits
            answers: Answers | None = self._answers
            if answers is None:
                needed = f"answers to round {visits.round} of day {day} before the next"
                raise KarmafunnelError("Shop", needs=needed, found="none")
            clicked, bought = (np.any(x, axis=1) for x in (answers.clicked, answers.bought))
            visits = self.crowd.next(visits, clicked, bought, sizes)
        self._waiting = None

    def _check_turn(self, found: str, fits: bool, needed: str) -> None:
        if not fits:
            raise KarmafunnelError("Shop", needs=needed, found=found)
        if self._waiting is not None and self._answers is None:
            needed = f"answers to round {self._waiting.round} of day {self._waiting.day} first"
            raise KarmafunnelError("Shop", needs=needed, found="none")

    def _night(self, day: int) -> None:
        """What changes from one day to the next."""
        state, values = self.state, self.marketplace
        state.day = day
        if day and values.returning is not None:
            state.mood *= values.returning.keep
        if day and values.drift is not None:
            keep = values.drift.keep
            draws = Draws(self.seed, day, 0, np.arange(self.people.n))
            for name in ("taste", "love"):
                held = getattr(state, name)
                held *= keep
                held += np.sqrt(1.0 - keep**2) * draws.normal(f"drift of {name}", held.shape[1])
        state.clicks *= FADES
        self._discount(day)
        self.engine.counted(self.crowd.midnight(day))

    def _discount(self, day: int) -> None:
        """Today's prices, in cents."""
        price, promotions = self.goods.shelves.price, self.marketplace.promotions
        discount = np.zeros(self.goods.n)
        if promotions is not None:
            draws = Draws(self.seed, day // promotions.days, 0, np.arange(self.goods.n))
            which = draws.whole("reduction", len(promotions.reductions))
            reduced = draws.random("promotion") < promotions.share
            discount = np.where(reduced, np.array(promotions.reductions)[which], 0.0)
        self.state.price = np.maximum(np.round(price * (1.0 - discount), 2), 0.01)

    def _calibrate(self) -> None:
        """Set both biases so that a pilot of first visits expects the clicks and purchases a
        request that the marketplace has.
        """
        here = self.people.arrival == 0
        mass = np.cumsum(np.where(here | ~here.any(), self.people.rate, 0.0))
        draws = Draws(self.seed, -1, 0, np.arange(PILOT))
        at = np.searchsorted(mass, draws.random("pilot") * mass[-1], side="right")
        users = np.unique(np.minimum(at, len(mass) - 1))
        visits = self.crowd.first(0, users, self.engine.lists.sizes)
        items = self.engine.show(visits).items
        mask, items = items >= 0, np.maximum(items, 0)
        price = self.state.price[items]
        utility = self._utility(visits, items, price)
        drive = self._drive(visits, items, price, utility)
        browsing, n = self.marketplace.browsing, len(users)

        def clicks(bias: float) -> np.ndarray:
            p = sigmoid(utility + bias)
            return browsing.marginal(Shown(p, np.zeros(p.shape), mask))

        def purchases(bias: float) -> float:
            return float((looked * sigmoid(drive + bias)).sum()) / n

        self.click_bias = self._bias("clicks", lambda b: float(clicks(b).sum()) / n)
        looked = clicks(self.click_bias)
        self.buy_bias = self._bias("purchases", purchases)

    def _bias(self, name: str, rises: Callable[[float], float]) -> float:
        """The bias at which so many clicks or purchases are expected; raises KarmafunnelError where
        none is.
        """
        aim = getattr(self.marketplace, name)
        bias = bisected(rises, aim)
        if abs(found := rises(bias) - aim) > 1e-6 + 0.01 * aim:
            most = "at most" if found < 0 else "at least"
            raise KarmafunnelError(
                "Marketplace",
                what=name,
                needs=f"{most} {found + aim:.4g} a request, what its wants and its lists allow",
                found=f"{aim:.4g}",
            )
        return bias

    # -- the engine's side -------------------------------------------------------------------------

    def logging(self, visits: Visits) -> Slates:
        """What the shop's own engine shows, with the chance of each slot."""
        return self.engine.show(visits)

    def candidates(self, visits: Visits) -> np.ndarray:
        """Items that may be shown, by arrival and filters: (n, n_items) bool."""
        goods = self.goods
        section = goods.shelves.section[goods.leaf]
        mask = goods.available < visits.ts[:, None]
        wanted = goods.shelves.section[visits.leaf]
        mask &= ~visits.narrow[:, None] | (section == wanted[:, None])
        mask &= ~visits.express[:, None] | goods.shelves.express
        return np.asarray(mask)

    # -- the shoppers' side ------------------------------------------------------------------------

    def _utility(self, visits: Visits, items: np.ndarray, price: np.ndarray) -> np.ndarray:
        worths = [want.worth(self, visits, items, price) for want in self.marketplace.wants]
        return np.asarray(np.sum(worths, axis=0), dtype=np.float64)

    def _drive(
        self, visits: Visits, items: np.ndarray, price: np.ndarray, utility: np.ndarray
    ) -> np.ndarray:
        purchase = self.marketplace.purchase
        dear = dearness(self, visits, items, price)
        return np.asarray(purchase.utility * utility - purchase.price * dear)

    def _shown(self, visits: Visits, slates: np.ndarray) -> tuple[Shown, Truth]:
        """Lists as the click model sees them, and their truth but for examination."""
        mask, items = slates >= 0, np.maximum(slates, 0)
        price = self.state.price[items]
        utility = self._utility(visits, items, price)
        p_buy = sigmoid(self._drive(visits, items, price, utility) + self.buy_bias)
        shown = Shown(sigmoid(utility + self.click_bias), p_buy, mask)
        several = np.array(self.marketplace.purchase.several)[
            self.goods.used_up[items].astype(np.int64)
        ]
        cost = (1.0 - COUPON) * price + COUPON * np.round(price * REDUCED, 2)
        parts = (utility, np.zeros(price.shape), shown.attraction, p_buy, price)
        filled = [np.where(mask, part, 0.0) for part in (*parts, 1.0 + 2.0 * several, cost)]
        return shown, Truth(*filled)

    def truth(self, visits: Visits, slates: np.ndarray) -> Truth:
        """What showing lists (n, k), -1 for an empty slot, would mean for visits of today; nothing
        moves.

        Raises:
            KarmafunnelError: for lists of another shape, and items twice or that are not there.
        """
        return self._looked(visits, checked(self, visits, slates))[1]

    def _looked(self, visits: Visits, slates: np.ndarray) -> tuple[Shown, Truth]:
        shown, truth = self._shown(visits, slates)
        clicks = self.marketplace.browsing.marginal(shown)
        p = np.where(shown.filled & (truth.p_click > 0), truth.p_click, 1.0)
        truth.examination[:] = np.where(shown.filled, clicks / p, 0.0)
        return shown, truth

    def answer(self, visits: Visits, slates: np.ndarray) -> Answers:
        """What shoppers do with lists (n, k), -1 for an empty slot; they remember it.

        Raises:
            KarmafunnelError: as `truth`, and for visits that are not those of the open round, or
                were answered.
        """
        if self._waiting is None or visits is not self._waiting or self._answers is not None:
            open_round = "none is open" if self._waiting is None else "other visits"
            found = "a second answer" if self._answers is not None else open_round
            needed = "the visits that day() gave last, once"
            raise KarmafunnelError("Shop.answer", needs=needed, found=found)
        slates = checked(self, visits, slates)
        shown, truth = self._looked(visits, slates)
        draws, k, purchase = visits.draws, slates.shape[1], self.marketplace.purchase
        clicked = self.marketplace.browsing.draw(shown, Stream(draws, "click"))
        bought = clicked & (draws.random("buy", k) < truth.p_buy)
        coupon = np.where(draws.random("coupon", k) < COUPON, REDUCED, 1.0)
        more = draws.random("several", k) < (truth.units - 1.0) / 2.0
        quantity = np.where(more, 2 + draws.whole("quantity", 3, k), 1)
        answers = Answers(
            clicked=clicked,
            bought=bought,
            returned=bought & (draws.random("returned", k) < purchase.returned),
            price=truth.price,
            paid=np.where(bought, np.round(truth.price * coupon, 2), 0.0),
            quantity=np.where(bought, quantity, 0),
            hours=np.where(bought, purchase.hours * draws.wait("delay", k), 0.0),
            expected_clicks=truth.clicks,
            expected_purchases=truth.purchases,
            expected_gmv=truth.gmv,
            truth=truth,
        )
        remember(self, self.marketplace, visits, slates, answers)
        self._answers = answers
        return answers

    # -- tables ------------------------------------------------------------------------------------

    def exposures(
        self,
        visits: Visits,
        items: np.ndarray,
        answers: Answers,
        propensity: np.ndarray | None = None,
    ) -> pl.DataFrame:
        """The rows of a Log's exposures for a round that was answered."""
        row, slot = np.nonzero(items >= 0)
        bought = pl.Series(answers.bought[row, slot])
        frame = pl.DataFrame(
            {
                "request_id": visits.requests["request_id"].gather(row),
                "item_id": self.items["item_id"].gather(items[row, slot]),
                "position": pl.Series(slot + 1, dtype=pl.Int32),
                "clicked": answers.clicked[row, slot],
                "purchased": bought,
                "price_shown": answers.price[row, slot],
                "price_paid": answers.paid[row, slot],
                "quantity": pl.Series(answers.quantity[row, slot], dtype=pl.Int32),
                "propensity": pl.Series(
                    [None] * len(row) if propensity is None else propensity[row, slot],
                    dtype=pl.Float64,
                ),
            }
        )
        return frame.with_columns(
            pl.when("purchased").then(pl.col(column)).alias(column)
            for column in ("price_paid", "quantity")
        )


def open_shop(
    marketplace: Marketplace,
    *,
    items: int = 2000,
    users: int = 300,
    seed: int = 0,
    catalogue: Catalogue | None = None,
    start: int = START,
) -> Shop:
    """A shop before its first day. Same arguments, same bytes.

    Args:
        items: how many; on a catalogue, at most so many of it.
        users: how many shoppers may come.
        seed: of everything that is drawn.
        catalogue: goods of a real shop, not invented ones.
        start: midnight of the first day, ms since 1970.

    Raises:
        KarmafunnelError: impossible arguments, a catalogue smaller than a list, or one that fails a
            check whose failure would change a figure; clicks or purchases that no bias gives.
    """
    who = "open_shop"
    if not isinstance(marketplace, Marketplace):
        found = quoted(marketplace)
        raise KarmafunnelError(who, what="marketplace", needs="a Marketplace", found=found)
    check_bound(who, "world_items", items=items)
    check_bound(who, "world_users", users=users)
    check_bound(who, OPEN_TIME, start=start)
    if start % DAY:
        found = f"{start}, {start % DAY:,} ms after one"
        raise KarmafunnelError(who, what="start", needs="a midnight, UTC", found=found)
    check_seed(who, seed)
    check_fits(who, {f"{items:,} items": 6e3 * items, f"{users:,} users": 2e3 * users})
    if catalogue is not None:
        if not isinstance(catalogue, Catalogue):
            found = quoted(catalogue)
            raise KarmafunnelError(who, what="catalogue", needs="a Catalogue", found=found)
        require(catalogue)
    rng = np.random.default_rng([seed, 0])
    shelves = invent(items, rng) if catalogue is None else stock(catalogue, items, rng)
    slots = marketplace.engine.slots
    if shelves.n_items < slots:
        needed, found = f"a catalogue of at least {slots} items, a list", f"{shelves.n_items}"
        raise KarmafunnelError(who, needs=needed, found=found)
    goods = place_goods(marketplace, shelves, start, seed)
    people = meet_people(marketplace, goods, users, seed)
    state = first_state(marketplace, goods, users, seed)
    # the nouns of a real catalogue are few: half of the searches say words of a title
    named = 0.0 if catalogue is None else 0.5
    return Shop(marketplace, Place(goods, people, state), seed, start, named)
