"""A marketplace like a log: what the log tells is fitted (`log_fits.py`, `visit_fits.py`), the rest
is as by default, and each is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...checks import require
from ...errors import KarmafunnelError
from ...log import Catalogue, Log
from ...stages.context import Progress, silent
from . import clicks, marketplace, wants
from .catalogue import kinds
from .click_lists import Shown
from .click_protocol import ClickModel
from .item_fits import Relative, Taken, relative, taken
from .log_fits import browsing, events_a_request, exploration, fitted_requests
from .marketplace import Arrivals, Engine, Marketplace
from .own_goods import LEAST, goods, moved_goods, settled
from .shoppers import DAY
from .simulate import simulate
from .visit_fits import going_on, rhythm, visiting
from .wants import Taste, Thrift, Want

TAKEN = "as by default: "
PILOT, PILOT_ITEMS, ROUNDS = 15_000, 5_000, 5  # requests and items of simulated logs, and how many
MOST = 10.0  # of appeal and of price sensitivity
FEWEST = 500  # requests of a simulated log
BESIDE = ("pilot", "goods")  # what is told of no field
MODELS = ("PBM", "DCM", "UBM")  # items of a marketplace satisfy nobody, as SDBN would have it
Step = Callable[[Marketplace, Log], tuple[Marketplace, str]]


@dataclass(frozen=True)
class Likened:
    """A marketplace fitted to a log.

    users: of the log, with those whom it has not seen yet; days: of the log; items: of the log, of
    invented ones within limits. goods: its own, with what it says of each; None where they cannot
    be used. told: by field of the marketplace what was fitted, or why it is as by default; "goods"
    and "pilot": what they are, and what simulated logs moved.
    """

    marketplace: Marketplace
    users: int
    days: int
    items: int
    goods: Catalogue | None
    told: dict[str, str]

    @property
    def fitted(self) -> list[str]:
        """The fields that the log decides."""
        told = {name: said for name, said in self.told.items() if name not in BESIDE}
        return [name for name, said in told.items() if not said.startswith(TAKEN)]

    @property
    def summary(self) -> str:
        """How much of the marketplace is the log's."""
        parts = [name for name in self.told if name not in BESIDE]
        said = f"{len(self.fitted)} of {len(parts)} parts are fitted"
        if 2 * len(self.fitted) >= len(parts):
            return f"{said}: {', '.join(self.fitted)}"
        return (
            f"{said}, fewer than half: THIS IS HARDLY A SHOP LIKE THE LOG'S, most is as by default"
        )

    @property
    def recipe(self) -> str:
        """The marketplace as the text of a recipe."""
        told = repr(self.marketplace)
        named = set(re.findall(r"[A-Z]\w+(?=\()", told))
        lines = []
        for module in (clicks, marketplace, wants):
            there = sorted(name for name in named if hasattr(module, name))
            named -= set(there)
            if there:
                lines.append(f"from {module.__name__} import {', '.join(there)}")
        return "\n".join([*lines, "", f"marketplace = {told}", ""])


def like_log(log: Log, say: Progress = silent) -> Likened:
    """A marketplace whose click model, rates, sessions, visits and rhythm are those of a log's W1
    and W2; W3 is left to judge it by.

    Raises KarmafunnelError for a log that fails a check whose failure would change a figure, and
    for one that decides nothing.
    """
    require(log)
    market, told = Marketplace(), dict[str, str]()
    for name, step in STEPS.items():
        say(f"fitting {name}")
        try:
            market, told[name] = step(market, log)
        except KarmafunnelError as error:
            told[name] = f"{TAKEN}{error}"
    users = len(np.unique(log.user[fitted_requests(log)]))
    say("fitting visiting rates")
    try:
        seen = visiting(log)
    except KarmafunnelError as error:
        told["activity"] = told["arrivals"] = f"{TAKEN}{error}"
    else:
        arrivals = Arrivals(seen.arrived.value, later_items(log), max(seen.days, 1))
        market = replace(market, activity=seen.activity, arrivals=arrivals)
        kind = type(seen.activity).__name__
        told["activity"] = f"{kind}: {seen.mean} days with a visit a day, spread {seen.spread}"
        told["arrivals"] = f"share of {seen.users:,.0f} users who came during {seen.days} days: "
        told["arrivals"] += str(seen.arrived)
        users = round(seen.users)
    days = round((log.t[-1] - log.t[0]) / DAY) if log.meta["time"] == "clock" else 30
    fit = Fitting(log, market, users, told)
    say("fitting items")
    fit.items()
    fit.correct(say)
    items = log.n_items if fit.shop is not None else fit.invented
    found = Likened(fit.market, users, max(int(days), 1), items, fit.shop, told)
    if not found.fitted:
        said = "; ".join(f"{name}: {why.removeprefix(TAKEN)}" for name, why in told.items())
        needed = "a log that decides a field of a Marketplace"
        raise KarmafunnelError("like", needs=needed, found=said)
    return found


class Fitting:
    """A marketplace and its goods while they are moved so that a fit of the simulated log says what
    that of the log says (indirect inference, Gourieroux, Monfort & Renault 1993).

    An engine puts relevant items first, which a click model takes for looking; clicks a request
    change as it learns; what it likes is clicked more. All of it happens in the simulated log as
    well, and is divided out there.
    """

    def __init__(self, log: Log, market: Marketplace, users: int, told: dict[str, str]):
        self.log, self.market, self.users, self.told = log, market, users, told
        self.shop, self.model = goods(log), market.browsing
        self.invented = min(max(log.n_items, LEAST), PILOT_ITEMS)
        self.fitted = [
            name for name in ("browsing", "clicks", "purchases") if not told[name].startswith(TAKEN)
        ]
        self.rates = {n: rate(log, n) for n in ("clicks", "purchases") if n in self.fitted}
        self.seen: Taken | None = None
        self.found: Relative | None = None

    def items(self) -> None:
        """What the log says of its items."""
        own = "the log's own" if self.shop is not None else "invented: the log's have no prices"
        try:
            self.seen = self.taken(self.log, self.model)
            self.found = found = relative("appeal", *self.seen.of_items)
        except KarmafunnelError as error:
            self.told |= {"goods": own, "appeal": f"{TAKEN}{error}", "prices": f"{TAKEN}{error}"}
            return
        how = "in their places" if self.seen.shown is not None else "of their kind: no lists"
        self.told["appeal"] = f"log rates of items, {how}, spread by {found.spread}"
        if found.slope is None:
            lacks = "lists" if self.log.has("price") else "prices"
            self.told["prices"] = f"{TAKEN}the log has no {lacks}"
        else:
            self.told["prices"] = f"log rates change by {found.slope} for a unit of log price"
        self.told["goods"] = own
        if self.shop is not None:
            rng = np.random.default_rng(0)
            self.shop = settled(self.shop, self.seen, self.market.engine, rng)
            more = "and how often each is shown" if self.seen.shown is not None else "by its kind"
            self.told["goods"] = f"{own}, with the appeal of each, demand {more}"

    def taken(self, log: Log, model: ClickModel) -> Taken:
        """What was taken in the log or in a simulated one, read as the log can be."""
        lists = self.log.has("exposures") and self.log.has("clicks")
        label = str(self.log.meta["label"])
        held = log if self.shop is None or log is not self.log else self.shop
        _, leaf = kinds(held.items)
        return taken(log, leaf, model if lists else None, self.market.engine.slots, label)

    def correct(self, say: Progress) -> None:
        """Move what was fitted, some times."""
        if not self.fitted and self.found is None:
            return
        for i in range(ROUNDS):
            say(f"simulating pilot {i + 1} of {ROUNDS}")
            try:
                self.move(self.pilot(i + 1), 1.0 / (1.0 + i))
            except KarmafunnelError as error:
                self.told["pilot"] = f"not all is moved: {error}"
                return
        moves = [*self.fitted, *(["items"] if self.found is not None else [])]
        more = f"moved by what {ROUNDS} simulated logs say too much"
        self.told["pilot"] = f"{', '.join(moves)} {more}"
        so = "as an engine chose what is seen, in utility"
        if self.found is not None:
            self.told["appeal"] += f"; {so}: {appeal_of(self.market):.3g}{self.at_bound(Taste)}"
            if self.found.slope is not None:
                self.told["prices"] += f"; {so}: {-thrift_of(self.market):.3g}"
                self.told["prices"] += self.at_bound(Thrift)

    def at_bound(self, kind: type[Want]) -> str:
        """A remark where a want was moved as far as it may go."""
        want = self.market.want(kind)
        value = want.appeal if isinstance(want, Taste) else getattr(want, "weight", 0.0)
        return ", at its bound" if abs(value) >= MOST else ""

    def pilot(self, seed: int) -> Log:
        """A simulated log that lasts as long as the log, with fewer users where that is large."""
        n = len(fitted_requests(self.log))
        requests = max(min(n, PILOT), FEWEST)
        users = max(round(self.users * min(requests / max(n, 1), 1.0)), 20)
        items = self.invented if self.shop is None else min(self.log.n_items, PILOT_ITEMS)
        shop = self.shop
        return simulate(
            self.market, items=items, users=users, requests=requests, seed=seed, catalogue=shop
        ).log

    def move(self, pilot: Log, gain: float) -> None:
        """Each value by what the fit of a pilot says too much or too little; of items, for which a
        pilot has as few events as the log, `gain` of it (Robbins & Monro 1951).
        """
        market, model = self.market, self.model
        if "browsing" in self.fitted:
            try:
                model = browsing(pilot, (type(model).__name__,)).model
            except KarmafunnelError as error:
                self.told["browsing"] += f"; not moved, {error}"
                self.fitted.remove("browsing")
            else:
                to = moved(market.browsing, self.model, model)
                self.market = with_browsing(market, to, market.engine)
        for name, wanted in self.rates.items():
            self.market = with_rate(self.market, name, wanted / rate(pilot, name))
        if self.seen is None or self.found is None:
            return
        again = self.taken(pilot, model)
        found = relative("appeal", *again.of_items)
        if self.found.slope is not None and found.slope is not None:
            more = found.slope.value - self.found.slope.value
            self.market = with_thrift(self.market, more + thrift_of(market))
        appeal = appeal_of(market)
        if self.shop is None:
            appeal *= float(np.clip(self.found.spread.value / found.spread.value, 0.5, 2.0))
        else:
            both = self.seen, self.found
            self.shop, appeal = moved_goods(self.shop, appeal, both, pilot, (again, found), gain)
        self.market = with_appeal(self.market, appeal)


def moved(now: ClickModel, wanted: ClickModel, again: ClickModel) -> ClickModel:
    """Each parameter by the ratio of what the log's fit says to what the pilot's fit says."""
    values, aim, found = (np.array(list(m.named().values())) for m in (now, wanted, again))
    ratio = np.clip(aim / np.maximum(found, 0.01), 0.5, 2.0)
    return now.with_values(np.clip(values * ratio, 0.01, 1.0))


def rate(log: Log, name: str) -> float:
    """Clicks or purchases a request."""
    return events_a_request(log, {"clicks": "click", "purchases": "purchase"}[name]).value


def with_browsing(market: Marketplace, model: ClickModel, engine: Engine) -> Marketplace:
    """With a click model and the engine of its lists, and no more clicks than these can hold."""
    few = min(market.clicks, 0.9 * float(model.marginal(Shown(np.ones((1, engine.slots)))).sum()))
    bought = min(market.purchases, 0.9 * few)
    return replace(market, browsing=model, engine=engine, clicks=few, purchases=bought)


def with_rate(market: Marketplace, name: str, ratio: float) -> Marketplace:
    """With more or fewer clicks or purchases a request, as far as its lists can hold them."""
    most = float(market.browsing.marginal(Shown(np.ones((1, market.engine.slots)))).sum())
    limit = 0.9 * (most if name == "clicks" else market.clicks)
    value = min(getattr(market, name) * float(np.clip(ratio, 0.5, 2.0)), limit)
    few = {"purchases": min(market.purchases, 0.9 * value)} if name == "clicks" else {}
    return replace(market, **({name: value} | few))


def appeal_of(market: Marketplace) -> float:
    """Standard deviation of utility over items by their own appeal."""
    taste: Taste = market.want(Taste)
    return float(taste.weight * np.sqrt(1.0 - taste.semantic) * taste.appeal)


def with_appeal(market: Marketplace, spread: float) -> Marketplace:
    """With items whose own appeal spreads utility by so much."""
    taste: Taste = market.want(Taste)
    now = appeal_of(replace(market, wants=(replace(taste, appeal=1.0),)))
    return with_want(market, replace(taste, appeal=min(spread / now, MOST)))


def thrift_of(market: Marketplace) -> float:
    """What a unit of log price takes off utility, the mean over shoppers."""
    thrift: Thrift = market.want(Thrift)
    return thrift.weight * sum(share * how for share, how in thrift.segments)


def with_thrift(market: Marketplace, much: float) -> Marketplace:
    """With shoppers from whom a unit of log price takes so much utility, in the mean."""
    thrift: Thrift = market.want(Thrift)
    now = thrift_of(replace(market, wants=(replace(thrift, weight=1.0),)))
    return with_want(market, replace(thrift, weight=float(np.clip(much / now, -MOST, MOST))))


def with_want(market: Marketplace, want: Want) -> Marketplace:
    """With this want in place of the one of its kind."""
    wants = tuple(want if type(one) is type(want) else one for one in market.wants)
    return replace(market, wants=wants)


def of_browsing(market: Marketplace, log: Log) -> tuple[Marketplace, str]:
    """With the click model and the length of the log's lists. Where lists are ordered by relevance,
    a part of the fall from slot to slot is relevance, not looking.
    """
    found = browsing(log, MODELS)
    engine, k = market.engine, found.slots
    pool = max(engine.pool, k)
    sized = replace(engine, slots=k, pool=pool, shortlist=max(engine.shortlist, pool))
    made = with_browsing(market, found.model, sized)
    held_out = ", ".join(f"{name} {value:.4f}" for name, value in found.held_out.items())
    told = f"{type(found.model).__name__}, {k} slots; log-likelihood of held-out lists: {held_out}"
    return made, told


def of_clicks(market: Marketplace, log: Log) -> tuple[Marketplace, str]:
    found = events_a_request(log, "click")
    bought = min(market.purchases, 0.9 * found.value)
    return replace(market, clicks=found.value, purchases=bought), f"{found} a request"


def of_purchases(market: Marketplace, log: Log) -> tuple[Marketplace, str]:
    """With as many purchases as its lists can hold; more clicks are needed where none were logged
    to say how many.
    """
    found = events_a_request(log, "purchase")
    if log.has("clicks"):
        return replace(market, purchases=found.value), f"{found} a request"
    most = float(market.browsing.marginal(Shown(np.ones((1, market.engine.slots)))).sum())
    clicks = min(max(market.clicks, 2 * found.value), 0.9 * most)
    bought = min(found.value, 0.9 * clicks)
    more = "" if bought == found.value else f", of which its lists hold {bought:.3g}"
    return replace(market, clicks=clicks, purchases=bought), f"{found} a request{more}"


def of_sessions(market: Marketplace, log: Log) -> tuple[Marketplace, str]:
    """With the chances after each outcome that the log has enough of, and those after any request
    for the others.
    """
    found = going_on(log)
    if not found.after:
        needed, few = "requests of 20 users that led to one outcome", "too few of each"
        raise KarmafunnelError("fit", what="sessions", needs=needed, found=few)
    chances: dict[str, Any] = {}
    for name in ("purchase", "click", "nothing"):
        searched, browsed = found.after.get(name, found.every)
        # half of those who browse on search for something else
        again = max(searched.value - browsed.value, 0.0)
        chances[f"after_{name}"] = (again, searched.value + browsed.value - again)
    told = f"{found.goes_on} of requests are followed by another; after {', '.join(found.after)}"
    sessions = replace(market.sessions, most=min(found.longest, 1000), **chances)
    return replace(market, sessions=sessions), f"{told}; at most {sessions.most}"


def of_rhythm(market: Marketplace, log: Log) -> tuple[Marketplace, str]:
    return replace(market, rhythm=rhythm(log)), "hours of the day and days of the week"


def of_exploration(market: Marketplace, log: Log) -> tuple[Marketplace, str]:
    """With the share of slots whose item had less than an even chance of being shown there."""
    found = exploration(log)
    return replace(market, engine=replace(market.engine, exploration=found.value)), f"{found}"


STEPS: dict[str, Step] = {
    "browsing": of_browsing,
    "clicks": of_clicks,
    "purchases": of_purchases,
    "sessions": of_sessions,
    "rhythm": of_rhythm,
    "exploration": of_exploration,
}


def later_items(log: Log) -> float:
    """The share of items that were added after the log's first request; 0 where no column says."""
    if "available_from" not in log.items.columns or log.meta["time"] == "order":
        return 0.0
    since = log.items["available_from"].dt.epoch("ms").fill_null(0).to_numpy()
    return min(float((since > log.t[0]).mean()), 0.9)
