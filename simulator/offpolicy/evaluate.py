"""Off-policy estimates of a Run's funnel on a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from ...bounds import check_bound, check_seed
from ...errors import KarmafunnelError, quoted
from ...log import Log
from ...stages.policies import Policy
from ..measure.intervals import interval, resample
from ..measure.run import Run
from ..world.click_fit import Fit
from ..world.click_protocol import ClickModel
from .click_weights import click_weights, fitted_to, unexplained, worth_of_clicks
from .estimators import CLICK_ESTIMATORS, ESTIMATORS, IPS, Estimator, Logged, Of, ReplayMethod, mean
from .logger import among, by_stage, logged_choice, never_shown, with_propensities
from .propensities import OFF, balance, with_estimates
from .reading import Choice, LoggedLists, choice_of, lists_of
from .reward_model import guess
from .support import INSTEAD, Support

Propensity = Literal["log", "estimated", "clicks"]
FEWEST = 10.0  # effective requests below which an estimate is refused
USERS = 10  # below which a bootstrap over users says nothing


@dataclass(frozen=True, eq=False)
class Evaluation:
    """rows: one an estimator (name, value, low, high, difference to what the log earned with its
    interval, effective, refused). logged: what the log earned a request. support: by kind of
    weight. off: by how many standard errors the weights are above the mean that right propensities
    give them. propensity: "log", "estimated" or "clicks". outside: the first request whose list the
    policy never shows. model: the click model, where weights are of clicks. stages: of the ratios
    that weights are products of, where the logger's candidates are known. unfilled: the share of
    the logged slots for which the funnel has no candidate left.
    """

    rows: list[dict[str, Any]]
    logged: dict[str, Any]
    support: dict[Of, Support]
    n: int
    off: float = 0.0
    propensity: Propensity = "log"
    outside: str | None = None
    model: ClickModel | None = None
    stages: Mapping[str, Support] = field(default_factory=dict)
    unfilled: float = 0.0


def evaluate(
    run: Run,
    log: Log,
    policy: Policy,
    reward: str = "clicks",
    slots: int | None = None,
    estimators: Mapping[str, Estimator] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    propensity: Propensity = "log",
    logger: Run | None = None,
) -> Evaluation:
    """What the Run's funnel would have earned a request, drawing its lists by `policy`.

    Args:
        slots: only the first so many of each list; None for all.
        estimators: by name; None for all that the weights allow.
        propensity: of what the log shows: as it says, "estimated" (`propensities.py`), or "clicks"
            for a log without chance, whose weights are those of clicks (`click_weights.py`).
        logger: a Run of the funnel that drew the log's lists: it tells their propensities and what
            else they could have been drawn from, `logger.py`.

    Raises:
        KarmafunnelError: as `lists_of` and `guess`; for bad arguments; for another log than that of
            the Runs, lists of fewer than 10 users and lists that earned nothing; where no list of
            the log is one that the policy may show, so that every estimator is refused; where
            propensities cannot be estimated, or no click model fitted.
    """
    who = "off-policy estimates"
    check_seed(who, seed)
    check_bound(who, "resamples", resamples=resamples)
    if slots is not None:
        check_bound(who, "slots", slots=slots)
    if not isinstance(policy, Policy):
        needed = "a policy such as BestOrRandom(0.0)"
        raise KarmafunnelError(who, what="policy", needs=needed, found=quoted(policy))
    if propensity not in get_args(Propensity):
        needed = " or ".join(get_args(Propensity))
        raise KarmafunnelError(who, what="propensity", needs=needed, found=quoted(propensity))
    for one in (run, *([] if logger is None else [logger])):
        own_log = one.meta["log"]
        if own_log.get("checksum") != log.checksum:
            needed = f"the log that the Run replayed ({own_log['name']}, {own_log.get('checksum')})"
            found = f"{log.name}, {log.checksum}"
            raise KarmafunnelError(f"off-policy estimates of {one.name}", needs=needed, found=found)
    recorded = propensity == "log" and (logger is None or log.has("propensity"))
    lists = first(lists_of(run, log, reward, recorded), slots)
    n, users = len(lists.item), len(np.unique(lists.cluster))
    for short, needed, had in (
        (not n, "lists in the Run's window", "0"),
        (users < USERS, f"at least {USERS} users, over whom intervals are drawn", f"{users}"),
        (not lists.reward.any(), f"lists that earned {reward}", f"none among {n:,}"),
    ):
        if short:
            raise KarmafunnelError(
                f"off-policy estimates on log {log.name}", needs=needed, found=had
            )
    choice = choice_of(run, log, lists)
    who = f"off-policy estimates of {run.name}, which shows {policy.words}"
    if propensity == "clicks":
        clicked = first(lists_of(run, log, "clicks", False), slots).reward
        worth = worth_of_clicks(lists, choice, clicked, log.n_items, seed)
        models = fitted_to(log, run.meta["window"], lists.item.shape[1], who, seed)
        asked = CLICK_ESTIMATORS if estimators is None else estimators
        return judge_clicks(lists, choice, policy, models, worth, who, asked, resamples, seed)
    asked = ESTIMATORS if estimators is None else estimators
    if logger is not None:
        drawn_from, by = logged_choice(logger, log, lists)
        lists = with_propensities(lists, drawn_from, by, logger.name)
        held = among(choice, drawn_from)
        told = judge(lists, choice, policy, held, who, asked, None, resamples, seed)
        return replace(told, stages=by_stage(lists, choice, policy, held))
    shown = log.rows["item"].to_numpy()
    if propensity == "estimated":
        lists = with_estimates(lists, choice, seed, who)
        shown = lists.item
    held = np.isin(choice.item, shown)
    return judge(lists, choice, policy, held, who, asked, None, resamples, seed, propensity)


def judge(
    lists: LoggedLists,
    choice: Choice,
    policy: Policy,
    held: np.ndarray,
    who: str,
    estimators: Mapping[str, Estimator] = ESTIMATORS,
    slot: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
    propensity: Propensity = "log",
) -> Evaluation:
    """What lists that a log showed say of a policy that would choose from `choice`.

    Args:
        held: whether the log can show each candidate, (n, m).
        who: what errors name.
        slot: weights of each slot alone, (n, k), where they are known.

    Raises:
        KarmafunnelError: where every estimator is refused, and where estimated propensities give
            weights that cannot be right.
    """
    evaluated = policy.steps(choice.candidates)
    prefix = np.cumprod(evaluated / lists.propensity, axis=1)
    off = balance(prefix, policy.expected(choice.candidates, held.astype(np.float64)), lists)
    unseen = never_shown(choice, policy, held)
    worst = int(np.abs(off).argmax())
    if propensity == "estimated" and abs(off[worst]) > OFF:
        raise KarmafunnelError(
            who,
            what="estimated propensities",
            needs=f"weights within {OFF:g} standard errors of their mean",
            found=f"{off[worst]:+.1f} in slot {worst + 1}: the log chose by more than slot, item "
            "and this funnel's score",
            hint=INSTEAD,
        )
    weights: dict[Of, np.ndarray] = {
        "list": np.repeat(prefix[:, -1:], prefix.shape[1], axis=1),
        "prefix": prefix,
    }
    if slot is not None:
        weights["slot"] = slot
    support = {kind: Support.of(x[:, -1], unseen) for kind, x in weights.items()}
    model = guess(lists, choice, policy, seed, who)
    logged = Logged(
        lists.reward, weights, lists.cluster, model.predicted, model.expected, model.direct
    )
    columns = zip(lists.propensity.T, lists.there.T, strict=True)
    uniform = all(np.allclose(column[there], column[there][:1]) for column, there in columns)
    refused = {
        name: why_not(value, support, uniform)
        for name, value in estimators.items()
        if prefix.shape[1] > 1 or not says_the_same(value)
    }
    never = np.flatnonzero(prefix[:, -1] == 0)
    outside = str(lists.request_id[int(never[0])]) if len(never) else None
    if all(refused.values()):
        support["list"].check(who, FEWEST, outside)
    found = estimates_of([logged], estimators, support, refused, resamples, seed)
    return replace(
        found,
        off=float(off.max()),
        propensity=propensity,
        outside=outside,
        unfilled=unfilled(lists, choice),
    )


def judge_clicks(
    lists: LoggedLists,
    choice: Choice,
    policy: Policy,
    models: Sequence[Fit],
    worth: np.ndarray,
    who: str,
    estimators: Mapping[str, Estimator] = CLICK_ESTIMATORS,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """What the clicks of lists say of a policy that would choose from `choice`, by click models.

    Args:
        models: one, and the same fitted to draws of users, among which the resamples are divided.
        worth: see `click_weights`.

    Raises:
        KarmafunnelError: where the funnel knows of clicks what the model does not.
    """
    told = [click_weights(lists, choice, policy, model, worth, seed) for model in models]
    off = unexplained(lists, choice, told[0].predicted)
    if abs(off) > OFF:
        raise KarmafunnelError(
            who,
            what="click model",
            needs="one attraction for each item to explain the clicks",
            found=f"what this funnel scores high in a list earned {off:+.1f} standard errors more "
            "than it says: place and worth to the request cannot be told apart",
            hint=INSTEAD,
        )
    each = [
        Logged(lists.reward, {"click": x.weight}, lists.cluster, x.predicted, direct=x.direct)
        for x in told
    ]
    unseen = 1.0 - told[0].held
    support: dict[Of, Support] = {"click": Support.of(told[0].weight[lists.reward > 0], unseen)}
    refused = {name: why_not(value, support, False) for name, value in estimators.items()}
    found = estimates_of(each, estimators, support, refused, resamples, seed)
    none = np.flatnonzero(told[0].held == 0)
    outside = str(lists.request_id[int(none[0])]) if len(none) else None
    short = unfilled(lists, choice)
    return replace(
        found, propensity="clicks", outside=outside, model=models[0].model, unfilled=short
    )


def estimates_of(
    each: Sequence[Logged],
    estimators: Mapping[str, Estimator],
    support: Mapping[Of, Support],
    refused: Mapping[str, str],
    resamples: int,
    seed: int,
) -> Evaluation:
    """Estimates with their intervals.

    Args:
        each: what the estimates are of; further ones are the same by other models, among which the
            resamples are divided.
        refused: by name why, "" for those that are asked.
    """
    names = [name for name, why in refused.items() if not why]
    logged, *others = each
    own = mean(logged.reward.sum(axis=1), logged)
    asked = [estimators[name].of(logged) for name in names]
    clusters = int(logged.cluster.max(initial=-1)) + 1
    parts = []
    for i, one in enumerate(others or [logged]):
        estimates = [own, *(estimators[name].of(one) for name in names)]
        share = resamples // max(len(others), 1)
        parts.append(resample(estimates, clusters, share, seed + i))
    earned, *samples = (np.concatenate(x) for x in zip(*parts, strict=True))
    rows: dict[str, dict[str, Any]] = {
        name: {"estimator": name, "refused": why} for name, why in refused.items()
    }
    for name, estimate, drawn in zip(names, asked, samples, strict=True):
        value, gap = estimate.value, interval(drawn - earned)
        low, high = interval(drawn)
        rows[name] |= {"value": value, "low": low, "high": high}
        rows[name] |= {"difference": value - own.value, "d_low": gap[0], "d_high": gap[1]}
    low, high = interval(earned)
    return Evaluation(
        list(rows.values()),
        {"value": own.value, "low": low, "high": high},
        dict(support),
        own.n,
    )


def first(lists: LoggedLists, slots: int | None) -> LoggedLists:
    """Those of the first so many slots."""
    cut = {name: getattr(lists, name)[:, :slots] for name in ("item", "propensity", "reward")}
    return replace(lists, **cut)


def unfilled(lists: LoggedLists, choice: Choice) -> float:
    """The share of the logged slots for which the funnel has no candidate left."""
    number = np.isfinite(choice.candidates.score).sum(axis=1, keepdims=True)
    return float((lists.there.cumsum(axis=1) > number)[lists.there].mean())


def says_the_same(estimator: Estimator) -> bool:
    """Whether an estimator says of single slots what one with weights of lists says, too."""
    return isinstance(estimator, IPS) and estimator.weight != "list"


def why_not(estimator: Estimator, support: Mapping[Of, Support], uniform: bool) -> str:
    """Why an estimator is refused, "" where it is not."""
    if estimator.reads is None:
        return ""
    if isinstance(estimator, ReplayMethod) and not uniform:
        return "the log does not show all items equally often"
    found = support.get(estimator.reads)
    if found is None:
        return f"the log does not tell the probability of each {estimator.reads} alone"
    if found.effective < FEWEST:
        what = "slots that earned" if estimator.reads == "click" else "requests"
        return f"rests on {found.effective:.1f} of {found.n:,} {what}"
    return ""
