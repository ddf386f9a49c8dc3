"""A measure: one question to a Run, typed as text. One class a measure; a new one is one class in
one file of this folder.

To add one, subclass `Measure` (or `HitMeasure`, for a figure of ranked lists that is a mean over
requests), say its `name`, `form` and `definition`, and what it is for the stages of a Run in
`figures`. It is found by its name. Definitions: `docs/METRICS.md`; the arithmetic is in
`metrics.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl

from ....bounds import BOUNDS
from ....errors import KarmafunnelError, quoted
from ..arrays import ALL, RunArrays, SliceMask
from ..intervals import Estimate, Ratio
from ..run import Run

# rows that are no stage; LOGGED is another
RANDOM, CEILING, BASE, END = "random", "ceiling", "base rate", "end to end"
BY_REQUEST = "n/a: slices by truth item do not apply to it; slice by user or query"
# of every request: its numerator (NaN: undefined) and its denominator
Values = tuple[np.ndarray, np.ndarray]


# Names of ir_measures that mean one of ours.
ALIASES = {"Success": "HR", "R": "Recall", "RR": "MRR", "AP": "MAP"}


@dataclass(frozen=True, repr=False)
class Measure(ABC):
    """One question to a Run, such as `HR@50`. Equal by content; prints as typed.

    `better`: which direction is; "neither" of what describes a Run and does not judge it. `depth`:
    what numbers of rows the figure depends on: "" (it names its k, or asks of lists that no stage
    cuts), "output" (how many a stage puts out), "input" (how many it scores) or "cascade" (both,
    and what later stages keep).
    """

    name: ClassVar[str]
    form: ClassVar[str]  # how it is typed, options included
    better: ClassVar[Literal["higher", "lower", "neither"]] = "higher"
    # a figure of the order of a list: what a stage adds to the one before can be told
    ranks: ClassVar[bool] = False
    k: int | None = None

    @classmethod
    def parse(cls, text: str) -> Measure:
        """From text; raises KarmafunnelError that lists what exists."""
        head, *options = text.strip().split(":")
        name, *numbers = head.split("@")
        name = ALIASES.get(name, name)
        if not all(re.fullmatch(r"[1-9][0-9]*", number) for number in numbers):
            raise _refuse(text, "k must be a whole number from 1")
        if any(len(number) > 8 or not BOUNDS["cutoff"].holds(int(number)) for number in numbers):
            raise _refuse(text, f"k must be {BOUNDS['cutoff']}")
        if name not in kinds():
            raise _refuse(text, "no such measure" + meant(name))
        try:
            return kinds()[name].of([int(number) for number in numbers], options)
        except ValueError as error:
            raise _refuse(text, str(error)) from None

    @classmethod
    def of(cls, ks: list[int], options: list[str]) -> Measure:
        """The measure with these numbers and options; raises ValueError that says what it takes.
        Without more: no k, no option.
        """
        if ks or options:
            raise ValueError(f"{cls.name} takes no k and no option")
        return cls()

    def options(self) -> tuple[str, ...]:
        """What is typed after its name and k, colons between."""
        return ()

    @property
    def depth(self) -> str:
        return ""

    @property
    @abstractmethod
    def definition(self) -> str:
        """What it is, in one clause."""

    @abstractmethod
    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        """One figure a stage, then those that they are to be compared with: random, ceiling, logged
        order.
        """

    @property
    def by_request(self) -> bool:
        """Whether a request has a value of its own."""
        return False

    def per_request(self, reading: RunArrays, stage: str) -> Values:
        """What every request adds to the numerator (NaN: undefined) and denominator of a stage's
        figure: float64 (n_requests,) each.

        A slate shorter than k counts as it is. Raises KarmafunnelError for measures without a value
        a request, and where the Run cannot tell.
        """
        who = f"{reading.run.path}: {self} of {stage}"
        if not self.by_request:
            named = sorted(
                kind.name for kind in kinds().values() if kind.by_request is not Measure.by_request
            )
            raise KarmafunnelError(
                f"{who}: needs a measure with a value a request: {', '.join(named)}"
            )
        found = next(
            figure
            for figure in self.figures(reading, reading.parts(None)[0], [stage])
            if figure.stage == stage
        )
        if not isinstance(found.estimate, Ratio):
            raise KarmafunnelError(who, needs="values of requests", found=f"{found.note or 'none'}")
        if found.estimate.units == reading.n:
            return found.estimate.num, found.estimate.den
        # of shown rows: a request without one is no unit
        some = np.bincount(reading.shown.group, minlength=reading.n) > 0
        num, den = np.full(reading.n, np.nan), np.zeros(reading.n)
        num[some], den[some] = found.estimate.num, found.estimate.den
        return num, den

    def figure(
        self,
        stage: str,
        part: SliceMask,
        estimate: Estimate | None,
        unit: str,
        denominator: str,
        note: str = "",
    ) -> MetricValue:
        """A figure of this measure."""
        return MetricValue(stage, self, part.name, estimate, unit, denominator, note)

    def __str__(self) -> str:
        return ":".join([self.name + (f"@{self.k}" if self.k is not None else ""), *self.options()])

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class AtK(Measure):
    """A measure that names one k and takes no option."""

    @classmethod
    def of(cls, ks: list[int], options: list[str]) -> Measure:
        if len(ks) != 1 or options:
            raise ValueError(f"{cls.name} needs one k, as in {cls.name}@10, and takes no option")
        return cls(k=ks[0])


@cache
def kinds() -> dict[str, type[Measure]]:
    """Every measure by its name: the classes of this folder, and those that were defined elsewhere
    before the first question.
    """
    for module in pkgutil.iter_modules(importlib.import_module(__package__).__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    found: dict[str, type[Measure]] = {}
    waiting: list[Any] = [Measure]
    while waiting:
        kind = waiting.pop(0)
        waiting += kind.__subclasses__()
        if "name" in vars(kind):
            found[kind.name] = kind
    return found


def forms() -> str:
    """How every measure is typed."""
    return ", ".join(sorted((kind.form for kind in kinds().values()), key=str.lower))


def meant(name: str) -> str:
    """The measure whose name is closest to one that is not there, as a question; "" for none."""
    by_case = {known.lower(): known for known in [*kinds(), *ALIASES]}
    close = get_close_matches(name.lower(), by_case, n=1, cutoff=0.6)
    return f", did you mean {by_case[close[0]]}?" if close else ""


def _refuse(text: str, why: str) -> KarmafunnelError:
    return KarmafunnelError(f"measure {quoted(text)}: {why}; there are {forms()}")


def parse_all(measures: Sequence[Measure | str]) -> list[Measure]:
    return [m if isinstance(m, Measure) else Measure.parse(m) for m in measures]


@dataclass(frozen=True, eq=False)
class MetricValue:
    """One value of one stage, or why there is none."""

    stage: str
    measure: Measure
    part: str
    estimate: Estimate | None
    unit: str
    denominator: str
    note: str = ""
    constant: bool = False  # known without data, as 0.5 is: no interval

    @property
    def key(self) -> tuple[str, str, str]:
        return self.stage, str(self.measure), self.part


# -- what several measures need --------------------------------------------------------------------


def of_requests(
    reading: RunArrays,
    part: SliceMask,
    num: np.ndarray,
    den: np.ndarray,
    counts: np.ndarray | None = None,
) -> Ratio:
    """The requests of a part as an estimate."""
    keep = part.requests
    return Ratio(
        num[keep], den[keep], reading.cluster[keep], None if counts is None else counts[keep]
    )


def mean(reading: RunArrays, part: SliceMask, values: np.ndarray) -> Ratio:
    """The mean of the values of a part's requests, NaN left out."""
    return of_requests(reading, part, values, np.ones(reading.n))


def of_part(part: SliceMask) -> str:
    """How a denominator names its part."""
    return "" if part.name == ALL else f" [{part.name}]"


def too_short(run: Run, stage: str, k: int | None) -> str:
    """Why a stage cannot be asked for its k best, or ""."""
    return f"n/a: {stage} puts out {run.k(stage)}" if k is not None and k > run.k(stage) else ""


def top(run: Run, stage: str, k: int, *columns: str) -> pl.DataFrame:
    """The k best of a stage: request_id, item_id, rank and more columns of the slates."""
    slates = run.lazy["slates"].filter(
        (pl.col("stage").cast(pl.String) == stage) & (pl.col("rank") <= k)
    )
    return slates.select("request_id", "item_id", "rank", *columns).collect()
