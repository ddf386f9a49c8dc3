"""Off-policy estimates as tables."""

from __future__ import annotations

import numpy as np

from ...stages.policies import Policy
from ..report.measure_table import valued
from ..report.table import Cell, Table, number
from ..world.click_protocol import ClickModel
from .evaluate import Evaluation
from .logger import CANDIDATES
from .propensities import OFF

KINDS = {
    "list": "whole lists (IPS, SNIPS, replay method)",
    "prefix": "a slot with all above it (RIPS, DR)",
    "slot": "a slot alone (IIPS)",
    "click": "clicks (CIPS, CDR)",
}
FAR = 0.7, 1.4  # mean weights outside are told
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
    heads = ["weights of", "effective requests", "mean weight", "largest", "never shown"]
    below = [
        "effective requests: (sum of weights)^2 / sum of squares.",
        "mean weight: near 1 where the log shows, sooner or later, all that the funnel shows.",
        "largest: share of all weights that one request has.",
        "never shown: probability that the first slot shows an item that stands in no list of the "
        "log.",
    ]
    if clicks:
        heads = ["weights of", "effective slots", "mean weight", "largest", "not in the list"]
        below = [
            "effective slots: (sum of weights)^2 / sum of squares, of slots that earned something.",
            "largest: share of all weights that one slot has.",
            "not in the list: share of the funnel's expected clicks on items that the logged list "
            "does not hold.",
        ]
    return Table(heads, rows, title="support", below=[*below, *warnings(found)])


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
    told += [
        f"Weights of {KINDS[kind]} have mean {number(one.mean)}, not 1: the funnel shows lists "
        "that the log does not. IPS and RIPS count them as earning nothing, DR as the model says."
        + (f" The first request where it does: {found.outside!r}." if found.outside else "")
        for kind, one in found.support.items()
        if kind != "click" and not FAR[0] <= one.mean <= FAR[1]
    ]
    fewest = min(one.effective for one in found.support.values())
    if fewest < NARROW:
        units = "slots" if found.model else "requests"
        told.append(
            f"Fewer than {NARROW:g} effective {units}: intervals are too narrow, above all at "
            "their upper ends."
        )
    return told


def rounded(model: ClickModel) -> str:
    """A click model with its parameters to three decimals."""
    return repr(model.with_values(np.round(list(model.named().values()), 3)))


def estimates_table(found: Evaluation, policy: Policy, reward: str) -> Table:
    """One row an estimator, with its interval and its difference to what the log earned."""

    rows: list[list[str | Cell]] = [["the log itself", valued(found.logged), ""]]
    for row in found.rows:
        if row["refused"]:
            rows.append([row["estimator"], valued(None), Cell(row["refused"])])
        else:
            gap = row | {"low": row["d_low"], "high": row["d_high"]}
            rows.append([row["estimator"], valued(row), valued(gap, signed=True)])
    heads = ["estimator", f"{reward} a request", "less the log's"]
    drawn = "Intervals: 95%, bootstrap over users. That of DM takes the model as right."
    if found.model is not None:
        drawn = "Intervals: 95%, bootstrap over users, the click model fitted anew to some draws."
    below = [f"policy: {policy!r}; propensities: {found.propensity}.", drawn]
    return Table(heads, rows, title=f"{reward} a request, n {found.n:,}", below=below)
