"""`simulate` a marketplace: the log that its own engine writes, and the truth beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ...bounds import check_bound, check_fits
from ...errors import KarmafunnelError
from ...log import Catalogue, Log, write_tables
from .answering import Answers
from .clicks import PBM
from .frames import lists, moments, user_ids
from .marketplace import Marketplace
from .open_shop import Shop, open_shop
from .shelving import Slates
from .shoppers import DAY
from .visits import Visits
from .world import describe, write_truth

MOST_DAYS = 36_500


@dataclass(eq=False)
class Simulation:
    """A log, its truth, and the shop after its last day.

    `truth` is a dict of frames, written beside the log and read by no stage: "exposures": a row
    each of the log's, in the same order: utility, examination = P(looked at), p_click = P(click |
    looked at), p_buy = P(purchase | click), propensity, and of purchases returned and hours (their
    delay); "requests": what each is for; "shoppers" at the start; "items".
    """

    log: Log
    truth: dict[str, pl.DataFrame]
    shop: Shop

    def write(self, folder: Path | str, force: bool = False) -> None:
        """Write the log and `truth/*.parquet`: all of it or nothing.

        Raises KarmafunnelError where the folder is something else than a log, or (without `force`)
        another World or log.
        """
        tables, meta = self.log.tables, self.log.meta
        write_tables(folder, tables, meta, force=force, also=lambda at: write_truth(at, self.truth))


@dataclass(frozen=True, eq=False)
class Round:
    """A round as it went: frames of requests, of exposures and of their truth, and what each
    request was for.
    """

    requests: pl.DataFrame
    exposures: pl.DataFrame
    truth: pl.DataFrame
    leaf: np.ndarray
    wishes: np.ndarray
    row: np.ndarray  # (n_exposures,) row of the request

    @classmethod
    def of(cls, shop: Shop, visits: Visits, slates: Slates, answers: Answers) -> Round:
        """What is kept of a round."""
        row, slot = np.nonzero(slates.items >= 0)
        exposures = shop.exposures(visits, slates.items, answers, slates.propensity)
        truth = answers.truth
        values = ("utility", "examination", "p_click", "p_buy")
        told = {name: getattr(truth, name)[row, slot] for name in values}
        told["propensity"] = slates.propensity[row, slot]
        told |= {"returned": answers.returned[row, slot], "hours": answers.hours[row, slot]}
        both = exposures.select("request_id", "item_id").with_columns(
            pl.Series(name, value) for name, value in told.items()
        )
        return cls(visits.requests, exposures, both, visits.leaf, visits.wishes, row)


def simulate(
    marketplace: Marketplace,
    *,
    items: int = 2000,
    users: int = 600,
    days: int | None = None,
    requests: int | None = None,
    seed: int = 0,
    catalogue: Catalogue | None = None,
    recipe: str | None = None,
) -> Simulation:
    """Days of a marketplace under its own engine. Same arguments, same bytes.

    Args:
        items: how many; on a catalogue, at most so many of it.
        users: how many shoppers may come.
        days: how many; or
        requests: how many, the first ones by time (default: 30 days).
        seed: of everything that is drawn.
        catalogue: goods of a real shop, not invented ones.
        recipe: the text that the marketplace was read from, kept in `log.json`.

    Raises:
        KarmafunnelError: as `open_shop`; for days and requests both, too few of them for a log, and
            visits too rare for so many requests.
    """
    who = "simulate"
    if days is not None and requests is not None:
        found = f"{days} days and {requests} requests"
        raise KarmafunnelError(who, needs="days or requests, not both", found=found)
    days = 30 if days is None and requests is None else days
    if days is not None:
        check_bound(who, "world_days", days=days)
    if requests is not None:
        check_bound(who, "world_requests", requests=requests)
        check_fits(who, {f"{requests:,} requests": 1e4 * requests})
    shop = open_shop(marketplace, items=items, users=users, seed=seed, catalogue=catalogue)
    if days is not None:
        visits = -np.expm1(-shop.people.rate).sum()
        check_fits(who, {f"{days:,} days of {visits:,.0f} visits": 2.5e4 * days * visits})
    before = shopper_truth(shop)
    rounds: list[Round] = []
    many = 0
    for day in range(MOST_DAYS):
        if day == days or (requests is not None and many >= requests):
            break
        for visits in shop.day(day):
            slates = shop.logging(visits)
            rounds.append(Round.of(shop, visits, slates, shop.answer(visits, slates.items)))
            many += len(visits)
    if many < (requests or 1):
        needed = f"{requests or 1:,} requests within {days or MOST_DAYS:,} days"
        hint = "more users or visits"
        raise KarmafunnelError(who, needs=needed, found=f"{many:,}", hint=hint)
    arguments = {"items": items, "users": users, "days": days, "requests": requests, "seed": seed}
    meta = facts(shop, {k: v for k, v in arguments.items() if v is not None}, catalogue, recipe)
    order, rows = in_time(rounds, requests)
    asked = pl.concat([one.requests for one in rounds])[order]
    shown, truth = (
        pl.concat([getattr(one, name) for one in rounds])[rows] for name in ("exposures", "truth")
    )
    log = Log.make(shop.items, asked, shown, meta)
    told = {"exposures": truth, "requests": request_truth(shop, rounds, order, asked)}
    told |= {"shoppers": before, "items": item_truth(shop)}
    return Simulation(log, told, shop)


def in_time(rounds: list[Round], most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all requests and of all exposures in the order of time: of the first requests, at
    most so many.
    """
    ts = pl.concat([one.requests["ts"] for one in rounds])
    order = ts.arg_sort()[:most].to_numpy()
    place = np.full(len(ts), -1)
    place[order] = np.arange(len(order))
    first = np.cumsum([0, *(one.requests.height for one in rounds[:-1])])
    row = np.concatenate([one.row + at for one, at in zip(rounds, first, strict=True)])
    rows = np.argsort(place[row], kind="stable")
    return order, rows[place[row[rows]] >= 0]


def request_truth(
    shop: Shop, rounds: list[Round], order: np.ndarray, requests: pl.DataFrame
) -> pl.DataFrame:
    """What each request was for: the leaf, and the attributes that were wished."""
    names = pl.Series([*shop.goods.shelves.values, None], dtype=pl.String)
    wishes = np.concatenate([one.wishes for one in rounds])[order]
    columns = {
        f"wish {j}": names.gather(np.where(w < 0, len(names) - 1, w))
        for j, w in enumerate(wishes.T)
    }
    columns["leaf"] = pl.Series(np.concatenate([one.leaf for one in rounds])[order])
    return pl.DataFrame({"request_id": requests["request_id"], **columns}).select(
        "request_id",
        pl.concat_list("leaf").alias("leaves"),
        pl.concat_list("^wish .*$").list.drop_nulls().alias("wishes"),
    )


def shopper_truth(shop: Shop) -> pl.DataFrame:
    """Shoppers as they are before the first day."""
    people, state = shop.people, shop.state
    return pl.DataFrame(
        {
            "user_id": user_ids(people.n),
            "price_sensitivity": people.sensitivity,
            "segment": people.segment,
            "habit": people.habit,
            "visits_a_day": people.rate,
            "interests": lists(people.interests.tolist(), pl.Int64),
            "arrival": moments(shop.start + people.arrival * DAY),
            "taste": lists(state.taste.tolist(), pl.Float32),
            "crowd_love": lists(state.love.tolist(), pl.Float32),
        }
    )


def item_truth(shop: Shop) -> pl.DataFrame:
    """What no shop knows of its items; demand: of fitted ones, what its kind of product has for
    each.
    """
    goods = shop.goods
    settled = goods.shelves.settled.get("demand")
    told = pl.DataFrame(
        {
            "item_id": shop.items["item_id"],
            "quality": goods.quality,
            "crowd": goods.crowd,
            "leaf": goods.leaf.astype(np.int64),
            "used_up": goods.used_up,
            "misjudged": goods.misjudged,
            "vector": lists(goods.vector.tolist(), pl.Float32),
            "attributes": lists(goods.shelves.true_attributes()),
        }
    )
    return told if settled is None else told.with_columns(pl.Series("demand", settled))


def facts(
    shop: Shop, arguments: dict[str, Any], catalogue: Catalogue | None, recipe: str | None
) -> dict[str, Any]:
    """`log.json` of a simulated marketplace: as that of a World, with the marketplace as typed and
    the recipe's text.
    """
    meta = describe({"images": False}, catalogue, shop.goods.shelves)
    del meta["has"]  # what the tables hold
    call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    if catalogue is not None:
        call += f", catalogue={catalogue.meta.get('name')}"
    value = shop.marketplace
    world = arguments | {"marketplace": repr(value), "recipe": recipe}
    if isinstance(value.browsing, PBM):
        world["examination"] = list(value.browsing.examination[: value.engine.slots])
    source = f"karmafunnel.simulator.world.simulate({value!r}, {call})"
    return meta | {"source": source, "world": world}
