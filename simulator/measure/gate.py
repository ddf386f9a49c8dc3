"""A check of a funnel change: one primary measure decides whether the new Run is worse than the old
one by more than a margin.

A test of non-inferiority by the 95% interval of the paired difference (Wellek 2010, "Testing
statistical hypotheses of equivalence and noninferiority", chapter 1): "not worse" if the whole
interval is above minus the margin, "worse" if all of it is below, else "undecided".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import polars as pl

from ...bounds import check_bound
from ...errors import KarmafunnelError
from ...files import Kind
from .compare import COUNTED, compare, measure
from .measures.measure import END, Measure
from .run import Run

OUTCOME = Kind("outcome of gate", mark='<testsuite name="karmafunnel gate ')  # as JUnit XML
Verdict = Literal["not worse", "worse", "undecided"]
EXIT = {"not worse": 0, "worse": 1, "undecided": 3}
ALIKE = 1e-9  # tolerance for equal ceilings
FEWEST = 30  # requests; intervals of a bootstrap of fewer are too narrow


@dataclass(frozen=True)
class Check:
    """A check before the verdict: whether it passed, and the values found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Gate:
    """The outcome of `decide`.

    difference, low, high: new - old, with the sign changed if lower is better. requests: that the
    verdict rests on; n: how many of the measure's own unit (`unit`) they hold, such as relevant
    items. requests_needed: about how many requests would decide; None if no number would.
    deciding: the row of `compare` that the verdict rests on. beside: rows of the
    other measures and stages, with Holm's correction; they do not decide.
    """

    measure: str
    margin: float
    verdict: Verdict
    difference: float
    low: float
    high: float
    requests: int
    n: int
    unit: str
    requests_needed: int | None
    checks: list[Check] = field(default_factory=list)
    deciding: dict[str, Any] = field(default_factory=dict)
    beside: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every check before the verdict passed."""
        return all(check.passed for check in self.checks)

    @property
    def code(self) -> int:
        """Exit code: 0 not worse, 1 worse or a check failed, 3 undecided."""
        return EXIT[self.verdict] if self.sound else 1

    @property
    def basis(self) -> str:
        """What the verdict rests on: "1,000 requests", "166 relevant items of 42 requests"."""
        requests = f"{self.requests:,} requests"
        return requests if self.unit == "request" else f"{self.n:,} {self.unit}s of {requests}"

    @property
    def sentence(self) -> str:
        """The verdict in a line."""
        number = f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        verdict = (
            f"{self.measure}: {self.verdict} by a margin of {self.margin:g}: {number} on"
            f" {self.basis}"
        )
        if not self.sound:
            failed = ", ".join(check.name for check in self.checks if not check.passed)
            return f"{verdict}; not to be trusted, failed: {failed}"
        if self.verdict == "undecided":
            if self.requests_needed is None:
                return f"{verdict}; no number of requests would decide"
            return f"{verdict}; about {self.requests_needed:,} requests would decide"
        return verdict

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound, "code": self.code, "sentence": self.sentence}

    def junit(self) -> str:
        """The outcome as JUnit XML: one test case for the verdict, one for each check."""
        cases = [("verdict", self.verdict == "not worse", self.sentence)]
        cases += [(check.name, check.passed, check.found) for check in self.checks]
        failed = sum(not passed for _, passed, _ in cases)
        suite = ElementTree.Element(
            "testsuite",
            name=f"karmafunnel gate {self.measure}",
            tests=str(len(cases)),
            failures=str(failed),
        )
        for name, passed, found in cases:
            case = ElementTree.SubElement(
                suite, "testcase", classname="karmafunnel.gate", name=name
            )
            if not passed:
                ElementTree.SubElement(case, "failure", message=found)
            else:
                ElementTree.SubElement(case, "system-out").text = found
        ElementTree.indent(suite)
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def decide(
    new: Run, old: Run, primary: str, margin: float, also: Sequence[str] = (), seed: int = 0
) -> Gate:
    """Decide whether `new` is not worse than `old` by more than `margin` in the primary measure.

    Args:
        new, old: Runs of the same requests.
        primary: the measure that decides.
        margin: in units of the measure, 0 or more.
        also: other measures to report; they do not decide.

    Raises:
        KarmafunnelError: a primary measure without a better direction or without a value, or Runs
            of different logs, labels, windows or requests.
    """
    check_bound("gate", "margin", margin=margin)
    deciding = Measure.parse(primary)
    if deciding.better == "neither":
        raise KarmafunnelError("gate", needs="a measure with a better direction", found=primary)
    others = [name for name in dict.fromkeys(also) if Measure.parse(name) != deciding]
    rows = compare(old, new, [primary, *others], seed=seed)
    ours = {row["stage"]: row for row in rows if row["measure"] == str(deciding)}
    row = ours.get(END) or ours.get(last_stages(new, old))
    if row is None or row["difference"] is None:
        note = row["note"] if row else "it is not compared"
        raise KarmafunnelError("gate", needs=f"{primary} of both Runs", found=note)
    if row["low"] is None:
        raise KarmafunnelError(
            "gate",
            needs=f"{primary} for requests of at least 2 users, to have an interval",
            found="1 user",
        )
    sign = -1.0 if deciding.better == "lower" else 1.0
    low, high = sorted((sign * row["low"], sign * row["high"]))
    difference = sign * row["difference"]
    requests = requests_of(new, row)
    verdict: Verdict = "not worse" if low > -margin else "worse" if high < -margin else "undecided"
    return Gate(
        measure=str(deciding),
        margin=margin,
        verdict=verdict,
        difference=difference,
        low=low,
        high=high,
        requests=requests,
        n=row["n"],
        unit=row["unit"] if row["unit"] in COUNTED else "request",
        requests_needed=(
            needed(difference + margin, high - low, requests) if verdict == "undecided" else None
        ),
        checks=preflight(new, old, deciding, margin, requests),
        deciding=row,
        beside=[other for other in rows if other is not row],
    )


def requests_of(run: Run, row: Mapping[str, Any]) -> int:
    """How many requests a row of `compare` rests on; a row of relevant items rests on the requests
    that have any.
    """
    if row["unit"] == "relevant item":
        return int(run.read("ledger", pl.col("request_id").n_unique()).item())
    if row["unit"] in COUNTED and row["unit"] != "request":
        return run.read("requests", "request_id").height
    return int(row["n"])  # requests, or money, which is a sum over requests


def last_stages(new: Run, old: Run) -> str:
    """The name that `compare` gives the last stages of two funnels."""
    return (
        new.stages[-1]
        if new.stages[-1] == old.stages[-1]
        else f"{old.stages[-1]} | {new.stages[-1]}"
    )


def needed(distance: float, width: float, n: int) -> int | None:
    """About how many requests would keep the interval off the margin; None if no number would.

    The width of an interval falls with the square root of the number of requests.

    Args:
        distance: from the difference to minus the margin.
        width: of the interval.
        n: requests that it was computed from.
    """
    if distance == 0 or not math.isfinite(width / distance):
        return None
    return math.ceil(n * (width / 2 / abs(distance)) ** 2) + 1


def preflight(new: Run, old: Run, primary: Measure, margin: float, n: int) -> list[Check]:
    """Checks that must pass before a difference of `n` requests can be trusted."""
    checks = []
    (tie,) = [row for row in compare(old, old, [primary], by_stage=False)][:1]
    zero = tie["difference"] == 0 and not tie["better"]
    checks.append(Check("a Run ties with itself", zero, f"difference {tie['difference']}"))
    values = {
        name: {row["stage"]: row["value"] for row in measure(run, [primary], ci=False)}
        for name, run in (("new", new), ("old", old))
    }
    sign = -1.0 if primary.better == "lower" else 1.0
    for name, run in (("new", new), ("old", old)):
        mine, random = values[name].get(run.stages[-1]), values[name].get("random")
        if mine is not None and random is not None:
            found = f"{name} {mine:.4f}, random order {random:.4f}"
            checks.append(Check(f"random loses to {name}", sign * (mine - random) > 0, found))
    least = values["old"].get(END, values["old"].get(old.stages[-1]))
    if least is not None and least >= 0 and primary.better == "higher":
        found = f"margin {margin:g}, old {least:.4f}"
        checks.append(Check("a Run without any hit would fail", margin < least, found))
    found = f"{n:,} requests, at least {FEWEST} needed"
    checks.append(Check("the interval rests on enough requests", n >= FEWEST, found))
    ceilings = [values[name].get("ceiling") for name in ("new", "old")]
    if None not in ceilings:
        same = abs(float(ceilings[0] or 0) - float(ceilings[1] or 0)) <= ALIKE
        checks.append(
            Check("the ceiling is the same", same, f"new {ceilings[0]:.6f}, old {ceilings[1]:.6f}")
        )
    covered = [served(run) for run in (new, old)]
    found = f"new {covered[0]:.4f}, old {covered[1]:.4f} of the requests are shown something"
    checks.append(Check("no fewer requests are served", covered[0] >= covered[1] - 0.001, found))
    return checks


def served(run: Run) -> float:
    """Share of requests for which the last stage returns any item."""
    out = run.read("requests")[f"{run.stages[-1]}.out"]
    return float(np.mean(out.to_numpy() > 0))
