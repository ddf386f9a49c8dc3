"""A marketplace like a log: what the log tells is fitted (`log_fits.py`, `visit_fits.py`), the rest
is as by default, and each is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from ...checks import require
from ...errors import KarmafunnelError
from ...layout import ITEMS
from ...log import Catalogue, Log
from ...stages.context import Progress, silent
from . import clicks, marketplace, wants
from .click_lists import Shown
from .click_protocol import ClickModel
from .log_fits import browsing, events_a_request, exploration, fitted_requests
from .marketplace import Arrivals, Engine, Marketplace
from .shoppers import DAY
from .simulate import simulate
from .visit_fits import going_on, rhythm, visiting

TAKEN = "as by default: "
PILOT, PILOT_ITEMS, ROUNDS = 5_000, 2_000, 2  # requests and items of simulated logs, and how many
MODELS = ("PBM", "DCM", "UBM")  # items of a marketplace satisfy nobody, as SDBN would have it
Step = Callable[[Marketplace, Log], tuple[Marketplace, str]]


@dataclass(frozen=True)
class Likened:
    """A marketplace fitted to a log.

    users: of the log, with those whom it has not seen yet; days: of the log. told: by field of the
    marketplace what was fitted, or why it is as by default; pilot: what simulated logs moved.
    """

    marketplace: Marketplace
    users: int
    days: int
    told: dict[str, str]

    @property
    def fitted(self) -> list[str]:
        """The fields that the log decides."""
        told = {name: said for name, said in self.told.items() if name != "pilot"}
        return [name for name, said in told.items() if not said.startswith(TAKEN)]

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
        told["activity"] = f"{type(seen.activity).__name__}: {seen.mean} days with a visit a day"
        told["arrivals"] = f"{seen.arrived} of {seen.users:,.0f} users in {seen.days} days"
        users = round(seen.users)
    days = round((log.t[-1] - log.t[0]) / DAY) if log.meta["time"] == "clock" else 30
    found = Likened(corrected(market, log, users, told, say), users, max(int(days), 1), told)
    if not found.fitted:
        said = "; ".join(f"{name}: {why.removeprefix(TAKEN)}" for name, why in told.items())
        needed = "a log that decides a field of a Marketplace"
        raise KarmafunnelError("like", needs=needed, found=said)
    return found


def corrected(
    market: Marketplace, log: Log, users: int, told: dict[str, str], say: Progress
) -> Marketplace:
    """With what was fitted moved so that a fit of the simulated log says what that of the log says
    (indirect inference, Gourieroux, Monfort & Renault 1993).

    An engine puts relevant items first, which a click model takes for looking; clicks a request
    change as it learns. Both happen in the simulated log as well, and are divided out there.
    """
    fitted = [
        name for name in ("browsing", "clicks", "purchases") if not told[name].startswith(TAKEN)
    ]
    if not fitted:
        return market
    there = {name: rate(log, name) for name in ("clicks", "purchases") if name in fitted}
    aim, shop = market.browsing, goods(log)
    items = PILOT_ITEMS if shop is None else min(log.n_items, PILOT_ITEMS)
    for i in range(ROUNDS):
        say(f"simulating pilot {i + 1} of {ROUNDS}")
        try:
            pilot = simulate(market, items=items, users=users, requests=PILOT, catalogue=shop).log
            if "browsing" in fitted:
                again = browsing(pilot, (type(aim).__name__,)).model
                model = moved(market.browsing, aim, again)
                market = with_browsing(market, model, market.engine)
            for name, wanted in there.items():
                market = with_rate(market, name, wanted / rate(pilot, name))
        except KarmafunnelError as error:
            told["pilot"] = f"not all is moved: {error}"
            return market
    told["pilot"] = f"{', '.join(fitted)} moved by what {ROUNDS} simulated logs say too much"
    return market


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
    found = events_a_request(log, "purchase")
    return replace(market, purchases=found.value), f"{found} a request"


def of_sessions(market: Marketplace, log: Log) -> tuple[Marketplace, str]:
    """With the chances after each outcome that the log has enough of."""
    found = going_on(log)
    if not found.after:
        needed, few = "requests of 20 users that led to one outcome", "too few of each"
        raise KarmafunnelError("fit", what="sessions", needs=needed, found=few)
    chances: dict[str, Any] = {}
    for name, (searched, browsed) in found.after.items():
        # half of those who browse on search for something else
        again = max(searched.value - browsed.value, 0.0)
        chances[f"after_{name}"] = (again, searched.value + browsed.value - again)
    told = f"{found.goes_on} of requests are followed by another; after {', '.join(found.after)}"
    return replace(market, sessions=replace(market.sessions, **chances)), told


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


def goods(log: Log) -> Catalogue | None:
    """The log's items as a catalogue to simulate on; None where they have no texts or prices.

    Attributes of a kind that users filter by are left out: a simulated shop adds its own.
    """
    if not log.has("text") or log.items["price"].null_count() == log.n_items:
        return None
    has = {name: name in ("text", "price") for name in log.meta["has"]}
    columns = [name for name in (*ITEMS, "description") if name in log.items.columns]
    filtered = log.requests["filters"].explode().drop_nulls().unique()
    kinds = filtered.str.extract(r"^([^=]+)=").drop_nulls().unique()
    own = pl.element().str.extract(r"^([^=]+)=").is_in(kinds.implode()).fill_null(False)
    attributes = pl.col("attributes").list.eval(pl.element().filter(~own))
    items = log.items.select(columns).with_columns(attributes)
    return Catalogue(items, log.meta | {"has": has, "counts": {}})
