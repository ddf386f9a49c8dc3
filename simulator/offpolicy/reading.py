"""What an off-policy estimate reads: the lists that a log showed, and what a Run's funnel would
choose from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...log import Log
from ...stages.policies import Candidates, Policy, policy_of
from ..measure.run import Run
from . import REWARDS


@dataclass(frozen=True, eq=False)
class LoggedLists:
    """Logged lists of n requests with k slots.

    request_id, cluster (n,): the cluster is the user's number. item (n, k): row numbers, -1 in an
    empty slot. propensity (n, k): of each item given those above it, 1 in an empty slot. reward
    (n, k): what each slot earned.
    """

    request_id: pl.Series
    cluster: np.ndarray
    item: np.ndarray
    propensity: np.ndarray
    reward: np.ndarray

    @property
    def there(self) -> np.ndarray:
        return self.item >= 0


def lists_of(run: Run, log: Log, reward: str, recorded: bool = True) -> LoggedLists:
    """The lists that the log showed at the requests of the Run.

    Args:
        recorded: whether propensities are read; else they are NaN.
        reward: "clicks", "purchases" or "money" (of purchases; of clicks where the log has no
            purchase).

    Raises:
        KarmafunnelError: the log shows no list, does not tell the probability of what it showed, or
            lacks the reward.
    """
    who = f"off-policy estimates on log {log.name}"
    if not log.has("exposures"):
        raise KarmafunnelError(who, needs="lists that were shown", found="none in this log")
    if recorded and not log.has("propensity"):
        raise KarmafunnelError(
            who,
            needs="the probability with which each item was shown",
            found="none in this log",
            hint="import lists with a column `propensity`, or take --propensity estimated",
        )
    own = run.read("requests", "request_id")
    number = pl.DataFrame({"request_id": log.request_ids}).with_row_index("request")
    requests = own.join(number, on="request_id", how="inner", maintain_order="left")
    exposures = log.exposures.filter(pl.col("position").is_not_null())
    rows = exposures.join(
        requests.with_row_index("row"), on="request_id", how="inner", maintain_order="left"
    ).sort("row", "position", maintain_order=True)
    item_number = pl.DataFrame({"item_id": log.item_ids}).with_row_index("item")
    rows = rows.join(item_number, on="item_id", how="left", maintain_order="left")
    rows = rows.with_columns(slot=pl.int_range(pl.len()).over("row"))
    if not recorded:
        rows = rows.with_columns(propensity=pl.lit(float("nan")))
    inside = (pl.col("propensity") > 0) & (pl.col("propensity") <= 1)
    wrong = rows.filter(~inside.fill_null(False))
    if recorded and wrong.height:
        raise KarmafunnelError(
            who,
            what="propensity",
            needs="a number above 0, at most 1, in every row with a position",
            found=f"{wrong['propensity'][0]} in {wrong.height:,} of {rows.height:,} rows, such as "
            f"request {wrong['request_id'][0]!r}",
        )
    shown = rows["row"].unique().sort().to_numpy()
    row, slot = np.searchsorted(shown, rows["row"].to_numpy()), rows["slot"].to_numpy()
    shape = (len(shown), int(slot.max(initial=-1)) + 1)
    item, propensity = np.full(shape, -1, dtype=np.int64), np.ones(shape)
    item[row, slot], propensity[row, slot] = rows["item"].to_numpy(), rows["propensity"].to_numpy()
    at = requests["request"].to_numpy()[shown]
    _, cluster = np.unique(log.user[at], return_inverse=True)
    worth = np.zeros(shape)
    worth[row, slot] = rewards(log, rows, reward, who)
    return LoggedLists(own["request_id"].gather(shown), cluster, item, propensity, worth)


def rewards(log: Log, rows: pl.DataFrame, reward: str, who: str) -> np.ndarray:
    """What each of the rows (request, item) earned: (n,)."""
    if reward not in REWARDS:
        raise KarmafunnelError(who, what="reward", needs=f"one of {tuple(REWARDS)}", found=reward)
    label = REWARDS[reward]
    if reward == "money" and not log.has("purchases"):
        label = "click"
    truth = log.truth(label).with_columns(pl.col("request").cast(pl.UInt32))
    truth = truth.with_columns(pl.col("item").cast(pl.UInt32), earned=pl.lit(1.0))
    keys = ["request", "item"]
    told = rows.select(keys).join(truth, on=keys, how="left", maintain_order="left")
    earned = told["earned"].fill_null(0.0).to_numpy()
    if reward != "money":
        return earned
    if told.filter(pl.col("earned").is_not_null())["money"].null_count():
        raise KarmafunnelError(who, needs="a price of every item that was bought", found="none")
    return told["money"].fill_null(0.0).to_numpy()


@dataclass(frozen=True, eq=False)
class Choice:
    """What an evaluated funnel chooses from at the same requests. candidates: see there. item
    (n, m): row numbers, -1 where there are fewer. own (n, k): the funnel's score of each logged
    item, NaN where it has none.
    """

    candidates: Candidates
    item: np.ndarray
    own: np.ndarray


def own_policy(run: Run) -> Policy | None:
    """The policy by which the Run's funnel draws its lists, None where it does not.

    Raises KarmafunnelError where a stage that draws is not the last one.
    """
    drawing = [stage for stage in run.meta["stages"] if "policy" in stage]
    if not drawing:
        return None
    if drawing != run.meta["stages"][-1:]:
        name = run.stages[-1]
        needed = "a funnel whose last stage alone draws (Explore)"
        raise KarmafunnelError(f"off-policy estimates of {run.name}", needs=needed, found=name)
    return policy_of(drawing[0]["policy"])


def choice_of(run: Run, log: Log, lists: LoggedLists) -> Choice:
    """What the Run's list would be drawn from at the requests of the lists, and its scores of what
    was shown: the output of the last stage, or of the one before it where the last one draws.

    Raises KarmafunnelError where the funnel offers nothing at any of them.
    """
    last = run.stages[-1 if own_policy(run) is None else -2]
    rows = pl.DataFrame({"request_id": lists.request_id}).with_row_index("row")
    number = pl.DataFrame({"item_id": log.item_ids}).with_row_index("item")
    slates = run.read("slates").filter(pl.col("stage") == last)
    slates = slates.join(rows, on="request_id", how="inner").join(number, on="item_id", how="inner")
    if slates.is_empty():
        needed, found = "candidates to draw from", f"none in {len(lists.item):,} requests"
        raise KarmafunnelError(f"off-policy estimates of {run.name}", needs=needed, found=found)
    row, rank = slates["row"].to_numpy(), slates["rank"].to_numpy() - 1
    shape = (len(lists.item), max(int(rank.max(initial=-1)) + 1, 1))
    item, score = np.full(shape, -1, dtype=np.int64), np.full(shape, -np.inf)
    item[row, rank], score[row, rank] = slates["item"].to_numpy(), slates["score"].to_numpy()
    same = (lists.item[:, :, None] == item[:, None, :]) & lists.there[:, :, None]
    place = np.where(same.any(axis=2), same.argmax(axis=2), -1)
    scored = run.read("scored", "request_id", "item_id", f"{last}.score")
    scored = scored.join(rows, on="request_id", how="inner").join(number, on="item_id", how="inner")
    own = np.full(lists.item.shape, np.nan)
    key = scored["row"].to_numpy() * np.int64(log.n_items) + scored["item"].to_numpy()
    by_key = np.argsort(key, kind="stable")
    wanted = np.arange(len(own))[:, None] * np.int64(log.n_items) + lists.item
    at = np.searchsorted(key[by_key], wanted).clip(max=max(len(key) - 1, 0))
    if len(key):
        found = (key[by_key][at] == wanted) & lists.there
        own[found] = scored[f"{last}.score"].to_numpy()[by_key][at][found]
    return Choice(Candidates(score, place, lists.there), item, own)
