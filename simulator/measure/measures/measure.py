"""The base class of measures. Each measure is one class, found by its name, such as `HR` in
`HR@50`.

To add one, write a file in this folder with a subclass of `Measure` (or of `HitMeasure`, for a mean
over requests of a value of ranked lists). Set its `name`, `form` and `definition`, and compute its
values for the stages of a Run in `figures`. Definitions: `docs/reference/measures.md`. The
arithmetic is in `metrics.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl

from ....bounds import BOUNDS
from ....errors import KarmafunnelError, meant, quoted
from ..arrays import ALL, RunArrays, SliceMask
from ..intervals import Estimate, Ratio
from ..run import Run

# names of reference rows, which are not stages; LOGGED is another
RANDOM, CEILING, BASE, END = "random", "ceiling", "base rate", "end to end"
BY_REQUEST = "n/a: it cannot be sliced by relevant item; slice by user or query"
# numerator (NaN: undefined) and denominator of each request: float64 (n_requests,) each
Values = tuple[np.ndarray, np.ndarray]


# Names of ir_measures for measures defined here.
ALIASES = {"Success": "HR", "R": "Recall", "RR": "MRR", "AP": "MAP"}


@dataclass(frozen=True, repr=False)
class Measure(ABC):
    """A measure of a Run, such as `HR@50`. Two are equal if all fields are; `str` gives its text.

    better: whether higher or lower values are better; "neither" if it only describes a Run.
    depth: which numbers of rows the value depends on: "" (none: it has its own k, or uses lists
    that no stage cuts), "output" (rows that a stage returns), "input" (rows that it scores) or
    "cascade" (both, and rows that later stages keep).
    """

    name: ClassVar[str]
    form: ClassVar[str]  # syntax of its text, with options
    better: ClassVar[Literal["higher", "lower", "neither"]] = "higher"
    # whether it measures the order of a list, so that a stage can be compared with the one before
    ranks: ClassVar[bool] = False
    k: int | None = None

    @classmethod
    def parse(cls, text: str) -> Measure:
        """The measure that a text names.

        Raises:
            KarmafunnelError: no such measure, k or option; the message lists all measures.
        """
        if not isinstance(text, str):
            raise KarmafunnelError("measure", needs="a text such as 'HR@10'", found=quoted(text))
        head, *options = text.strip().split(":")
        name, *numbers = head.split("@")
        if name not in kinds():  # in any case: hr@10, NDCG@10
            name = by_case().get(name.lower(), name)
        name = ALIASES.get(name, name)
        if not all(re.fullmatch(r"[1-9][0-9]*", number) for number in numbers):
            raise _refuse(text, "k must be a whole number from 1")
        if any(len(number) > 8 or not BOUNDS["cutoff"].holds(int(number)) for number in numbers):
            raise _refuse(text, f"k must be {BOUNDS['cutoff']}")
        if name not in kinds():
            close = meant(name, [*kinds(), *ALIASES])
            raise _refuse(text, "no such measure" + (f", {close}" if close else ""))
        try:
            return kinds()[name].of([int(number) for number in numbers], options)
        except ValueError as error:
            raise _refuse(text, str(error)) from None

    @classmethod
    def of(cls, ks: list[int], options: list[str]) -> Measure:
        """The measure with these numbers and options. The default takes neither.

        Raises:
            ValueError: for other numbers or options; the message says which are accepted.
        """
        if ks or options:
            raise ValueError(f"{cls.name} takes no k and no option")
        return cls()

    def options(self) -> tuple[str, ...]:
        """The parts of its text after name and k, which are joined by colons."""
        return ()

    @property
    def depth(self) -> str:
        return ""

    @property
    @abstractmethod
    def definition(self) -> str:
        """The definition, in one clause."""

    @abstractmethod
    def figures(
        self, reading: RunArrays, part: SliceMask, stages: Sequence[str]
    ) -> Iterator[MetricValue]:
        """One value per stage, then the reference values: random, ceiling, logged order."""

    @property
    def by_request(self) -> bool:
        """Whether a request has a value of its own."""
        return False

    def per_request(self, reading: RunArrays, stage: str) -> Values:
        """Each request's part of the numerator (NaN: undefined) and denominator of a stage's value.

        A slate shorter than k counts as it is.

        Returns:
            Two float64 arrays (n_requests,).

        Raises:
            KarmafunnelError: the measure has no value per request, or the Run lacks the data.
        """
        who = f"{reading.run.path}: {self} of {stage}"
        if not self.by_request:
            named = sorted(
                kind.name for kind in kinds().values() if kind.by_request is not Measure.by_request
            )
            raise KarmafunnelError(
                who, needs=f"a measure with a value a request: {', '.join(named)}"
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
        # over exposures: a request without any is not a unit
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
        """A value of this measure."""
        return MetricValue(stage, self, part.name, estimate, unit, denominator, note)

    def __str__(self) -> str:
        return ":".join([self.name + (f"@{self.k}" if self.k is not None else ""), *self.options()])

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class AtK(Measure):
    """A measure with one k and no option."""

    @classmethod
    def of(cls, ks: list[int], options: list[str]) -> Measure:
        if len(ks) != 1 or options:
            raise ValueError(f"{cls.name} needs one k, as in {cls.name}@10, and takes no option")
        return cls(k=ks[0])


@cache
def kinds() -> dict[str, type[Measure]]:
    """All measures by name, with those that other modules define before the first call."""
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
    """The syntax of all measures, as one text."""
    return ", ".join(sorted((kind.form for kind in kinds().values()), key=str.lower))


def by_case() -> dict[str, str]:
    """Names of measures and their aliases, by the same in lower case."""
    return {known.lower(): known for known in [*kinds(), *ALIASES]}


def _refuse(text: str, why: str) -> KarmafunnelError:
    return KarmafunnelError(f"measure {quoted(text)}: {why}; there are {forms()}")


def parse_all(measures: Sequence[Measure | str]) -> list[Measure]:
    return [m if isinstance(m, Measure) else Measure.parse(m) for m in measures]


@dataclass(frozen=True, eq=False)
class MetricValue:
    """One value of one stage; where `estimate` is None, `note` says why."""

    stage: str
    measure: Measure
    part: str
    estimate: Estimate | None
    unit: str
    denominator: str
    note: str = ""
    constant: bool = False  # known without data, such as 0.5: no interval

    @property
    def key(self) -> tuple[str, str, str]:
        return self.stage, str(self.measure), self.part


# -- shared by several measures --------------------------------------------------------------------


def of_requests(
    reading: RunArrays,
    part: SliceMask,
    num: np.ndarray,
    den: np.ndarray,
    counts: np.ndarray | None = None,
) -> Ratio:
    """A ratio of sums over the requests of a slice; `num`, `den`, `counts`: (n_requests,)."""
    keep = part.requests
    return Ratio(
        num[keep], den[keep], reading.cluster[keep], None if counts is None else counts[keep]
    )


def mean(reading: RunArrays, part: SliceMask, values: np.ndarray) -> Ratio:
    """The mean of `values` (n_requests,) over the requests of a slice, without NaN."""
    return of_requests(reading, part, values, np.ones(reading.n))


def of_part(part: SliceMask) -> str:
    """The name of the slice for a denominator's text."""
    return "" if part.name == ALL else f" [{part.name}]"


def too_short(run: Run, stage: str, k: int | None) -> str:
    """Why a stage has no top k, or ""."""
    if k is None or k <= run.k(stage):
        return ""
    return f"n/a: {stage} puts out {run.most(stage)}"


def top(run: Run, stage: str, k: int, *columns: str) -> pl.DataFrame:
    """The top k of a stage: request_id, item_id, rank and `columns` of the slates."""
    slates = run.lazy["slates"].filter(
        (pl.col("stage").cast(pl.String) == stage) & (pl.col("rank") <= k)
    )
    return slates.select("request_id", "item_id", "rank", *columns).collect()
