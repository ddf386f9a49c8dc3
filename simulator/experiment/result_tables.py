"""An A/B test and an interleaving as tables."""

from __future__ import annotations

import math
from typing import Any

from ..measure.differences import holm
from ..report.measure_table import valued
from ..report.table import Cell, Table, number
from .arms import Design
from .duel import Duel
from .figures_by_arm import BACK, FILLED, Line, Result
from .interleaving import SIDES

FEWEST = 30  # users of an arm, below which Student's intervals of skewed money mean nothing
FULL = 0.9  # share of slots below which lists are said to be short


def lines_table(result: Result, design: Design, currency: str = "EUR") -> Table:
    """One row a figure: both arms, the difference at the end, as an interval that may be looked at
    every day, as a share of the control's, and what it is in truth.
    """
    true = any(line.truth is not None for line in result.lines)
    heads = ["figure", "control", "treated", "difference", "always valid", "lift"]
    heads += ["smallest found", "as a lift"]
    rows: list[list[str | Cell]] = []
    for line, sure in zip(result.lines, after_holm(result), strict=True):
        effect = line.effect
        low, high = effect.lift_interval
        lift = {"difference": as_known(effect.lift), "low": low, "high": high}
        row: list[str | Cell] = [
            line.name,
            *map(number, effect.seen),
            valued(difference(line) | {"holm": sure}, signed=True),
            always(line),
            valued(lift, signed=True),
            "n/a" if line.smallest is None else number(line.smallest),
            smallest_lift(line),
        ]
        rows.append([*row, "n/a" if line.truth is None else number(line.truth)] if true else row)
    below = [
        "control, treated: what users of each arm did. difference: treated less control, with the "
        "95% interval of one look, at the end; CUPED takes out what they did before, so that it is "
        "not one column less the other. *: it excludes 0; **: also after Holm's correction for "
        f"{len(result.lines)} figures.",
        "always valid: the interval at the end of those who look every day and may stop at any "
        "time.",
        "smallest found: the true difference that so many users show with a power of 80%, if it is "
        "the same amount for every treated user; as a lift: if it multiplies what each of them "
        "does, so that they also vary more.",
        f"GMV: in {currency}.",
        "expected: what the lists shown were worth, without the chance of clicks; no shop sees it.",
    ]
    if not any(line.looks for line in result.lines):
        below.append("No interval by day: on the first day an arm had fewer than two users.")
    if any(line.name == BACK for line in result.lines):
        below.append(f"{BACK}: in the second half, of those of the first; known at the end alone.")
    if true:
        below.append("truth: the difference of two shops, each served by one recipe alone.")
    counts = result.ratio.counts
    users = f"{counts[0]:,} and {counts[1]:,} users" if len(counts) == 2 else ""
    return Table(
        [*heads, "truth"] if true else heads,
        rows,
        title=f"{design.days} days, {users}",
        below=below,
    )


def after_holm(result: Result) -> list[bool]:
    """Which figures differ by one look at the end, corrected for how many there are."""
    level = 1 - result.lines[0].effect.confidence
    return holm([line.effect.p for line in result.lines], level)


def verdict(result: Result) -> list[str]:
    """What the test decides, in sentences."""
    if result.ratio.mismatch:
        return ["Nothing is decided: the arms are not as large as planned."]
    if few_users(result):
        return ["Nothing is decided: too few users."]
    named: dict[bool, list[str]] = {True: [], False: []}
    for line, sure in zip(result.lines, after_holm(result), strict=True):
        lift = line.effect.lift
        told = f" {lift:+.1%}" if math.isfinite(lift) else ""
        named[sure].append(line.name + told * sure)
    found = []
    if named[True]:
        found.append(
            "Significant, looked at once and after Holm's correction (**): "
            f"{'; '.join(named[True])}."
        )
    if named[False]:
        which = "; ".join(named[False]) if named[True] else "every figure"
        found.append(
            f"Not significant: {which}. That does not say that there is no difference: a true one "
            "below `smallest found` is often missed."
        )
    return found


def difference(line: Line) -> dict[str, Any]:
    """The difference at the end, as a row of measures."""
    low, high = line.effect.interval
    better = line.effect.p < 1 - line.effect.confidence
    return {"difference": line.effect.value, "low": low, "high": high, "better": better}


def smallest_lift(line: Line) -> str:
    """The smallest lift that is found, as a share of the control's figure."""
    if line.smallest_lift is None:
        return "n/a"
    return f"{line.smallest_lift:+.1%}" if math.isfinite(line.smallest_lift) else "none"


def always(line: Line) -> str:
    """The last always-valid interval."""
    if not len(line.always):
        return "n/a"
    low, high = line.always[-1]
    return f"[{number(float(low))}, {number(float(high))}]"


def as_told(result: Result, design: Design) -> dict[str, Any]:
    """The figures as JSON."""
    lines = []
    for line in result.lines:
        low, high = line.effect.interval
        told = {
            "figure": line.name,
            "control": line.effect.seen[0],
            "treated": line.effect.seen[1],
            "without_past": [line.effect.control, line.effect.treated],
            "difference": line.effect.value,
            "low": low,
            "high": high,
            "p": line.effect.p,
            "lift": as_known(line.effect.lift),
            "always_valid": [as_known(x) for x in line.always[-1]] if len(line.always) else None,
            "unexplained": line.effect.unexplained,
            "smallest": line.smallest,
            "smallest_lift": None if line.smallest_lift is None else as_known(line.smallest_lift),
            "truth": line.truth,
        }
        lines.append(told)
    ratio = {"users": result.ratio.counts, "planned": result.ratio.shares, "p": result.ratio.p}
    split = ratio | {"mismatch": result.ratio.mismatch}
    return {"days": design.days, "split": split, "figures": lines, "shop": result.shops}


def as_known(x: float) -> float | None:
    """A number, None if it is not finite."""
    return float(x) if math.isfinite(x) else None


def shops_table(result: Result) -> Table:
    """What the arms did to the shop."""
    rows = [[name, *(number(one[name]) for one in result.shops)] for name in result.shops[0]]
    below = [
        "items shown: share of the catalogue that an arm showed at least once. Gini of sellers: "
        "how unequal the GMV of brands is, 0 where all have the same, near 1 where one has all. "
        "slots filled: share of the slots of its lists.",
        "No interval: to a resample of users fewer different items are shown and sold than to all "
        "of them. To an arm of more users, more are.",
    ]
    return Table(["of the shop", "control", "treated"], rows, below=below)


def mismatch(result: Result) -> str:
    """A warning where arms are not as large as planned, else nothing."""
    ratio = result.ratio
    if not ratio.mismatch:
        return ""
    planned = " and ".join(f"{share:.1%}" for share in ratio.shares)
    found = " and ".join(f"{count:,}" for count in ratio.counts)
    return (
        f"Sample ratio mismatch: planned {planned} of the users, found {found} (p {ratio.p:.1e}). "
        "No figure of this experiment can be trusted."
    )


def few_users(result: Result) -> str:
    """A warning where an arm has too few users for its intervals, else nothing."""
    found = result.ratio.counts
    if min(found) >= FEWEST:
        return ""
    each = " and ".join(f"{count:,}" for count in found)
    return (
        f"Only {each} users came. Intervals are of arms with {FEWEST} users at least: no figure is "
        "to be trusted. Say more --users or --days."
    )


def warnings(result: Result, names: tuple[str, str]) -> list[str]:
    """A sentence for each thing that makes the figures less than they seem."""
    filled = [one[FILLED] or 0.0 for one in result.shops]
    told = [mismatch(result), few_users(result), short_lists((filled[0], filled[1]), names)]
    return [line for line in told if line]


def short_lists(filled: tuple[float, float], names: tuple[str, str]) -> str:
    """A warning where the lists of a recipe fill too few of the slots, else nothing."""
    short = [
        f"{name} {share:.1%}" for name, share in zip(names, filled, strict=True) if share < FULL
    ]
    if not short:
        return ""
    return f"Lists are short. Of the slots, a recipe filled: {', '.join(short)}."


def duel_verdict(duel: Duel, names: tuple[str, str]) -> str:
    """Who won, in a sentence."""
    winner = duel.running().winner
    if winner:
        return f"{dict(zip(SIDES, names, strict=True))[winner]} is preferred: that is certain."
    found = duel.preference()
    low, high = found.interval
    ahead = names[1] if found.value > 0 else names[0]
    once = f" By one look at an end that was fixed before, {ahead} would be ahead."
    more = " More --days or --users make it so, if there is one."
    return f"No winner is certain yet.{once * (low > 0 or high < 0)}{more}"


def duel_table(duel: Duel, names: tuple[str, str], way: str) -> Table:
    """Which recipe won, by how much, and after how many requests that was certain."""
    found, running = duel.preference(), duel.running()
    low, high = found.interval
    after, end, half = running.certain_after, float(running.value[-1]), float(running.half[-1])
    won = dict(zip(SIDES, names, strict=True)).get(running.winner, "not certain")
    rows: list[list[str | Cell]] = [
        ["preference for B", valued({"difference": found.value, "low": low, "high": high}, True)],
        ["requests with a winner", f"{found.decided:.1%} of {found.requests:,}"],
        ["certain after", "never" if after is None else f"{after:,} requests"],
        [
            "always valid",
            f"[{number(end - half, True)}, {number(end + half, True)}]"
            if math.isfinite(half)
            else "not yet: it needs a hundred users who preferred one",
        ],
        ["winner", won],
        ["slots filled by A and B", f"{duel.filled[0]:.1%} and {duel.filled[1]:.1%}"],
    ]
    below = [
        f"A: {names[0]}. B: {names[1]}. Lists were mixed by {way}.",
        "preference: share of requests that B won less those that A won, with the 95% interval of "
        "one look, at the end.",
        "always valid: the interval at the end of those who look after each request and may stop. "
        "It names the winner; certain: the first time that it excluded 0.",
    ]
    if warning := short_lists(duel.filled, names):
        below.append(f"{warning} A mixed list ends where one of both does.")
    return Table(["interleaving", "clicks"], rows, below=below)
