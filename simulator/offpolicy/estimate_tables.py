"""Off-policy estimates as tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...stages.policies import Policy
from ..report.measure_table import valued
from ..report.table import Cell, Table, number
from ..world.click_protocol import ClickModel
from .estimators import CLICK_ESTIMATORS, ESTIMATORS
from .evaluate import Evaluation
from .logger import CANDIDATES
from .propensities import OFF
from .support import INSTEAD, Support

KINDS = {
    "list": "whole lists (IPS, SNIPS)",
    "prefix": "slots with those above (RIPS, DR)",
    "slot": "a slot alone (IIPS)",
    "click": "clicks (CIPS, CDR)",
}
READS = {name: one.reads for name, one in (ESTIMATORS | CLICK_ESTIMATORS).items()}
PREFERRED = ("DR", "CDR", "SNDR", "RIPS", "IPS")
NOTES = {
    "IPS": "right on average; varies most",
    "clipped IPS": "too low where weights are above 10",
    "SNIPS": "IPS over the mean weight: varies less",
    "IIPS": "right if a slot earns by its item alone",
    "SNIIPS": "IIPS over mean weights",
    "RIPS": "right if a slot does not hang on those below",
    "SNRIPS": "RIPS over mean weights: varies less",
    "replay method": "lists that the funnel may show, as they earned",
    "DM": "a model of the reward alone",
    "DR": "that model, corrected by the log: right on average",
    "SNDR": "DR over mean weights: varies less",
    "switch-DR": "the model alone where weights are above 10",
    "CIPS": "too low by what the logged list does not hold",
    "clipped CIPS": "lower still where weights are above 10",
    "CDR": "the model, corrected by clicks in the logged list",
}
PROPENSITIES = {
    "log": "as the log says",
    "estimated": "estimated",
    "clicks": "none, weights are of clicks",
}
FAR = 0.7, 1.4  # mean weights outside are told
MOST = 0.3  # share of clicks that a logged list may lack
# effective requests; at 90 the 95% intervals of IPS and DR held the truth in 88 and 92% of 1,000
# logs (benchmarks/findings/tables/off_policy_coverage.md)
NARROW = 200.0


def support_table(found: Evaluation) -> Table:
    """How many requests the estimates rest on, by kind of weight."""
    rows = [
        [
            KINDS.get(kind, kind),
            f"{one.effective:,.1f} of {one.n:,}",
            number(one.mean),
            f"{one.largest:.1%}",
            f"{one.unseen:.1%}",
        ]
        for kind, one in [*found.stages.items(), *found.support.items()]
    ]
    clicks = found.propensity == "clicks"
    heads = ["weights of", "effective requests", "mean weight", "largest", "never logged"]
    below = [
        "effective requests: (sum of weights)^2 / sum of squares.",
        "mean weight: near 1 where the log shows, sooner or later, all that the funnel shows.",
        "largest: share of all weights that one request has.",
        "never logged: probability that the first slot shows an item that stands in no list of "
        "the log, at any request.",
    ]
    if clicks:
        heads = ["weights of", "effective slots", "mean weight", "largest", "not in the list"]
        below = [
            "effective slots: (sum of weights)^2 / sum of squares, of slots that earned something.",
            "largest: share of all weights that one slot has.",
            "not in the list: share of the funnel's expected clicks on items that the logged list "
            "does not hold.",
        ]
    brief = (
        f"effective {units_of(found)}: what the weighted lists are worth, however many there are."
    )
    return Table(heads, rows, title="support", below=below, brief=brief)


def units_of(found: Evaluation) -> str:
    """What weights are of."""
    return "requests" if found.model is None else "slots"


def warnings(found: Evaluation) -> list[str]:
    """A sentence for each thing that makes the estimates less than they seem."""
    told = []
    if found.propensity == "estimated":
        told.append(
            "Propensities are ESTIMATED, by slot, item and this funnel's score: right only if the "
            "log chose by these and by chance, among all items that it shows."
        )
    if found.off > OFF:
        told.append(
            f"Weights are {found.off:.1f} standard errors above the mean that right propensities "
            "give them: those of the log are too small."
        )
    if found.unfilled:
        told.append(
            f"The funnel has no candidate for {found.unfilled:.1%} of the slots that the log "
            "filled. They earn nothing"
            + (
                "."
                if found.model
                else "; lists with one have weight 0, as have slots from there on."
            )
        )
    if found.model is not None:
        unseen = found.support["click"].unseen
        told.append(
            "Weights are of CLICKS, by a click model of the log's other windows: right only if "
            "users look at slots as it says, and if what a click earns does not hang on the slot. "
            f"CIPS leaves out the {unseen:.0%} of the funnel's clicks that are not in the logged "
            "list, CDR takes the model's word for them."
        )
        told.append(f"Click model: {rounded(found.model)}.")
    if found.stages:
        share = found.stages[CANDIDATES].unseen
        told.append(
            f"{share:.0%} of what the funnel shows first is no candidate of the logger: IPS and "
            "its kind count it as earning nothing, DR as the model says."
        )
    if any(is_far(one) for kind, one in found.support.items() if kind != "click"):
        first = f", first at {found.outside!r}" if found.outside else ""
        told.append(
            "A mean weight is far from 1: the funnel shows lists that the log does not show at "
            f"these requests{first}. That their items stand in other lists does not help. IPS and "
            "RIPS count such lists as earning nothing, DR as the model says."
        )
    if weighed(found) and min(one.effective for one in found.support.values()) < NARROW:
        told.append(
            f"Fewer than {NARROW:g} effective {units_of(found)}: intervals are too narrow, above "
            "all at their upper ends."
        )
    return told


def rounded(model: ClickModel) -> str:
    """A click model with its parameters to three decimals."""
    return repr(model.with_values(np.round(list(model.named().values()), 3)))


def is_far(one: Support) -> bool:
    """Whether the mean weight says that the log does not show what the funnel shows."""
    return not FAR[0] <= one.mean <= FAR[1]


def weighed(found: Evaluation) -> list[str]:
    """Estimators that weigh the log's lists and are not refused."""
    told = [row["estimator"] for row in found.rows if not row["refused"]]
    return [name for name in told if READS.get(name) is not None]


def advice(found: Evaluation) -> str:
    """Which estimate to read, or why none."""
    some, otherwise = weighed(found), f"{INSTEAD[0].upper()}{INSTEAD[1:]}."
    if not some:
        return f"This log cannot tell: every estimator with weights is refused. {otherwise}"
    best = next((name for name in PREFERRED if name in some), some[0])
    support = found.support[READS[best] or "list"]
    if is_far(support) if found.model is None else support.unseen > MOST:
        what = (
            f"{support.unseen:.0%} of the funnel's clicks are not in the logged list"
            if found.model
            else f"the mean weight is {number(support.mean)}"
        )
        return (
            f"Trust no row: {what}, so that for much of what the funnel shows {best} takes a "
            f"model's word. {otherwise}"
        )
    if support.effective < NARROW:
        few = f"{support.effective:,.0f} effective {units_of(found)}, fewer than {NARROW:g}"
        return f"Read {best}, as a hint: it rests on {few}, so that its interval is too narrow."
    if found.propensity == "log":
        return (
            f"Read {best}: the log corrects its model. From {NARROW:g} effective requests on, the "
            "intervals of DR held the truth in 93 to 95% of 1,000 simulated logs."
        )
    return f"Read {best}, if what is said below the support holds: no figure can test it."


def shown_rows(found: Evaluation) -> list[dict[str, Any]]:
    """Rows as they are printed: without the intervals of what rests on a model alone, which held
    the truth in 1 to 33% of 1,000 logs (benchmarks/findings/tables/off_policy_coverage.md).
    """
    unsaid: dict[str, Any] = dict.fromkeys(("low", "high", "d_low", "d_high"))
    alone = {name for name, of in READS.items() if of is None}
    return [
        row | unsaid if row["estimator"] in alone and not row["refused"] else row
        for row in found.rows
    ]


def estimates_table(found: Evaluation, policy: Policy, reward: str) -> Table:
    """One row an estimator, with its interval and its difference to what the log earned."""
    rows: list[list[str | Cell]] = [["the log itself", valued(found.logged), ""]]
    why: dict[str, list[str]] = {}
    for row in shown_rows(found):
        name = row["estimator"]
        if row["refused"]:
            why.setdefault(row["refused"], []).append(name)
        else:
            gap = row | {"low": row["d_low"], "high": row["d_high"]}
            rows.append([name, valued(row), valued(gap, signed=True)])
    refused = [f"Refused, {reason}: {', '.join(names)}." for reason, names in why.items()]
    notes = [f"{row[0]}: {NOTES[row[0]]}." for row in rows if row[0] in NOTES]
    said = f"The funnel shows {policy.words}; propensities: {PROPENSITIES[found.propensity]}."
    drawn = (
        "Intervals: 95%, bootstrap over users. DM has none: it is a model that no list corrects."
    )
    if found.model is not None:
        drawn += " The click model is fitted anew to some draws."
    cut = "Clipped and switched ones are biased where they cut weights."
    return Table(
        ["estimator", f"{reward} a request", "less the log's"],
        rows,
        title=f"{reward} a request, n {found.n:,}",
        below=[*refused, said, drawn, *notes],
        brief=" ".join([*refused, said, drawn, cut]),
    )
