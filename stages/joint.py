"""Stages that are trained together: `funnel.jointly(LCRON())`.

The networks of a funnel score the same lists, the candidates of recall, in the same steps. So a
stage cannot read what the one before it says: that would be a score of rows that both learn from.
`Upstream()` and every other feature of a jointly trained stage see the rows as the first of these
stages was given them, while it learns and while it serves. Nothing has to be fitted without a fold
of users, therefore.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl
from torch import Tensor

from ..bounds import SHARE, Bound, needs
from ..errors import KarmafunnelError
from ..log import rows_of
from ..models import ctr
from ..models.ctr import joint_losses
from ..models.ctr.joint_fitting import Cascade, JointOptions, fit_cascade
from .context import Context
from .features import compute
from .frame import ITEM, REQUEST, group_rows, pair_key
from .learn import TrainingRows, training_rows
from .learner import FittedNeural, Neural
from .rank import ESMMRank
from .rows import Feature, Rows
from .stage import FittedFunnel, FittedStage, Stage, Together

NETWORKS = "networks with one logit (TwoTowerPreRank, COLDPreRank, DINRank, DCNRank)"


@dataclass(frozen=True, repr=False)
class CascadeLoss(Together):
    """The base of losses over all learned stages of a funnel.

    Every stage has its own `rate`; the number of epochs is the largest of the stages. Each list has
    the rows of `Sample`, a part of recall's candidates: a stage that passes on k of them passes on
    that part of k in the list, with fractions. The last stage's cut is `top` of its list. The epoch
    that is kept, a warm one or a later one, is that with the best nDCG end to end on W2b. A
    calibration is fitted on recall's candidates.

    Args:
        warm: epochs at the start in which every stage learns alone.
        top: how many items at the end of the funnel the loss is about.
    """

    warm: int = 0
    top: int = 10

    apart: ClassVar[bool] = False
    needs_grades: ClassVar[bool] = False

    def __post_init__(self) -> None:
        needs(self, warm=(0, 10_000), top=Bound(1, 10_000_000))

    def loss(self, lists: joint_losses.Lists, balance: Tensor) -> Tensor:
        """The loss of some lists; `balance` has one learnt number a stage."""
        raise NotImplementedError

    def members(self, stages: Sequence[Stage]) -> range:
        """Places of the stages that are trained together: all that learn.

        Raises:
            KarmafunnelError: where they cannot be trained together, naming the stage.
        """
        places = [i for i, stage in enumerate(stages) if i > 0 and stage.learns]
        who = f"jointly({self!r})"
        for i in places:
            stage = stages[i]
            if not isinstance(stage, Neural) or isinstance(stage, ESMMRank):
                raise KarmafunnelError(who, needs=NETWORKS, found=stage.title)
            if stage.teacher is not None:
                needed = "stages without a teacher: the loss says what they tell each other"
                raise KarmafunnelError(who, needs=needed, found=f"a teacher of {stage.title}")
            if stage.position_bias is not None:
                needed = "stages without a position_bias, which no loss over all stages allows for"
                found = f"position_bias={stage.position_bias!r} of {stage.title}"
                raise KarmafunnelError(who, needs=needed, found=found)
        titles = [stages[i].title for i in places]
        if len(places) < 2:
            found = ", ".join(titles) or "none"
            raise KarmafunnelError(who, needs="at least two learned stages", found=found)
        found_places = range(places[0], places[-1] + 1)
        if len(found_places) > len(places):
            between = [stages[i].title for i in found_places if i not in places]
            needed = "learned stages one after the other"
            raise KarmafunnelError(who, needs=needed, found=f"{between[0]} between them")
        epochs = max(getattr(stages[i], "epochs", 1) for i in places)
        if self.warm >= epochs:
            needed = "more epochs of a stage than warm ones, in which each stage learns alone"
            raise KarmafunnelError(who, needs=needed, found=f"warm={self.warm}, epochs={epochs}")
        samples = {repr(getattr(stages[i], "sample", None)) for i in places}
        if len(samples) > 1:
            raise KarmafunnelError(
                who,
                needs="stages that share their training rows, with one sample=",
                found=" and ".join(sorted(samples)),
            )
        return found_places

    def fit(
        self, context: Context, stages: Sequence[Stage], upstream: FittedFunnel
    ) -> list[FittedStage]:
        """Fit the stages behind `upstream`."""
        networks = [stage for stage in stages if isinstance(stage, Neural)]
        train = self._cascade(networks, context, upstream, networks[0].sample.windows)
        val = self._cascade(networks, context, upstream, ["W2b"])
        widths = [batch.dense.shape[2] for batch in train.batches]
        models = [
            stage.network(context, width) for stage, width in zip(networks, widths, strict=True)
        ]
        fit_cascade(
            models,
            train,
            val,
            self.loss,
            JointOptions(
                rates=tuple(stage.rate for stage in networks),
                own=tuple(stage.loss for stage in networks),
                epochs=max(stage.epochs for stage in networks),
                warm=self.warm,
                apart=self.apart,
            ),
            grades=self.grades if self.needs_grades else None,
            seed=context.seed,
            device=context.device,
            progress=context.detail,
        )
        fitted: list[FittedStage] = []
        for stage, model in zip(networks, models, strict=True):
            ready = FittedJoint(stage, context, model, networks[0].name)
            ready.calibrate(stage.calibrated, upstream, stage.sample.requests)
            fitted.append(ready)
        return fitted

    def load(self, stage: Stage, first: Stage, folder: Path, context: Context) -> FittedStage:
        """A stage from the folder where it was saved; `first` is the first of those that were
        trained together.
        """
        assert isinstance(stage, Neural)
        model = ctr.load_ctr(folder / "model", vectors=stage.vectors(context))
        ready = FittedJoint(stage, context, model.to(context.device), first.name)
        ready.read_calibration(stage.calibrated, folder)
        return ready

    def grades(self, lists: Cascade, scores: Sequence[np.ndarray]) -> np.ndarray:
        """How far each row came, (N, C), for losses that read it."""
        raise NotImplementedError

    def check_labels(self, context: Context, windows: Sequence[str]) -> None:
        """Raise KarmafunnelError where the log lacks a label that the loss reads."""

    def _cascade(
        self,
        stages: Sequence[Neural],
        context: Context,
        upstream: FittedFunnel,
        windows: Sequence[str],
    ) -> Cascade:
        """The lists of some windows, as each stage reads them."""
        self.check_labels(context, windows)
        tables = []
        for stage in stages:
            features = [*stage.features, _Candidates()]
            sample = stage.sample
            tables.append(training_rows(stage, features, context, upstream, windows, sample))
        first = tables[0]
        requests, group = group_rows(first.request)
        batches, where = [], (group, group)
        for stage, table in zip(stages, tables, strict=True):
            assert np.array_equal(table.request, first.request)
            assert np.array_equal(table.item, first.item)
            batch, where = stage.batch(
                context, requests, group, table.item, table.x[:, :-1], table.y
            )
            batches.append(batch)
        n_rows = np.bincount(group, minlength=len(requests))
        n_candidates = np.ones(len(requests))
        n_candidates[group] = first.x[:, -1]
        part = np.minimum(n_rows / np.maximum(n_candidates, 1), 1.0)
        ks = [*(stage.k for stage in stages[:-1]), min(self.top, stages[-1].k)]
        shape = batches[0].items.shape
        shown, logged = np.zeros(shape, bool), np.zeros(shape, np.float32)
        shown[where], logged[where] = in_the_log(context, first)
        cut = (part[:, None] * np.asarray(ks)).astype(np.float32)
        return Cascade(tuple(batches), cut, shown, logged)


@dataclass(frozen=True, repr=False)
class _Candidates(Feature):
    """The number of candidates of the request."""

    columns: ClassVar[tuple[str, ...]] = ("n_candidates",)

    def compute(self, rows: Rows) -> np.ndarray:
        return rows.sizes[rows.group].astype(np.float32)[:, None]


@dataclass(eq=False, repr=False)
class FittedJoint(FittedNeural):
    """A network that was trained with others, of which `first` is the first: its features are of
    the rows that the first was given.
    """

    first: str = ""

    def dense(self, rows: Rows) -> np.ndarray:
        before, at = rows.given_to(self.first)
        mine = before.seen_in(rows.context)
        x = compute(self.stage.features, mine)
        if before is not rows:
            rows.read |= mine.read
            rows.spent += mine.spent
        return x[at]


def in_the_log(context: Context, table: TrainingRows) -> tuple[np.ndarray, np.ndarray]:
    """Whether rows were shown, bool (n,), and how far they came by the log's stage labels, 1 for
    the first stage, 0 for those without a label: float32 (n,).
    """
    rows = rows_of(context.log.rows, np.unique(table.request))
    shown = pl.col("position").is_not_null()
    stages = context.log.meta.get("stages") or []
    far = pl.lit(0)
    if stages:
        number = {name: i + 1 for i, name in enumerate(stages)}
        far = pl.col("stage").replace_strict(number, default=0, return_dtype=pl.Int64)
    found = rows.group_by(REQUEST, ITEM, maintain_order=True).agg(
        shown.any().alias("shown"), far.max().alias("far") if stages else pl.lit(0).alias("far")
    )
    n_items = context.log.n_items
    pair = pair_key(found[REQUEST].to_numpy(), found[ITEM].to_numpy(), n_items)
    order = np.argsort(pair)
    wanted = pair_key(table.request, table.item, n_items)
    at = np.minimum(np.searchsorted(pair, wanted, sorter=order), max(len(pair) - 1, 0))
    if not len(pair):
        return np.zeros(len(wanted), bool), np.zeros(len(wanted), np.float32)
    at = order[at]
    same = pair[at] == wanted
    return (
        found["shown"].to_numpy()[at] & same,
        np.where(same, found["far"].to_numpy()[at], 0).astype(np.float32),
    )


# -- losses ----------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Separate(CascadeLoss):
    """The control: every stage learns alone, by its own loss, from the same rows in the same number
    of steps as the others; each keeps its own best epoch. See `models.ctr.joint_losses.separate`.
    """

    apart: ClassVar[bool] = True

    def loss(self, lists: joint_losses.Lists, balance: Tensor) -> Tensor:
        return joint_losses.separate(lists)


@dataclass(frozen=True, repr=False)
class FSLTR(CascadeLoss):
    """Full-stage learning to rank (Zheng et al. 2024, arXiv 2405.04844): relevant > shown >
    ranked > pre-ranked > rest, pairwise, for all stages. See `models.ctr.joint_losses.graded`.

    Args:
        labels: how far rows came. "ledger": by the cascade itself as the epoch before left it, and
            what the log shows. "shown": by what the log shows alone, so that no stage learns from
            another. "log": the `stage` of the log's exposures, in the order of `stages`
            in log.json; a fit raises KarmafunnelError where no row has one of them.
    """

    warm: int = 2
    labels: Literal["ledger", "shown", "log"] = "ledger"

    needs_grades: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels not in ("ledger", "shown", "log"):
            wanted, found = "'ledger', 'shown' or 'log'", repr(self.labels)
            raise KarmafunnelError("FSLTR", what="labels", needs=wanted, found=found)

    def check_labels(self, context: Context, windows: Sequence[str]) -> None:
        if self.labels != "log":
            return
        log, hint = context.log, "labels='ledger' takes how far the funnel itself passes them on"
        stages = log.meta.get("stages")
        if not stages:
            raise KarmafunnelError(
                "FSLTR",
                what="labels='log'",
                needs="a log whose exposures tell the last stage that an item reached",
                found=f"no stages in log.json of log {log.name}",
                hint=hint,
            )
        rows = rows_of(log.rows, log.requests_in(*windows))
        counts = dict(rows.group_by("stage").len().iter_rows())
        if missing := [name for name in stages if not counts.get(name)]:
            told = ", ".join(f"{counts.get(name, 0):,} of {name}" for name in stages)
            raise KarmafunnelError(
                "FSLTR",
                what="labels='log'",
                needs=f"rows of {', '.join(windows)} with the stage {missing[0]!r}",
                found=told,
                hint=hint,
            )

    def grades(self, lists: Cascade, scores: Sequence[np.ndarray]) -> np.ndarray:
        if self.labels == "log":
            grade = lists.logged
        elif self.labels == "shown":
            grade = lists.shown.astype(np.float32)
        else:
            reached, _ = joint_losses.passed(scores, lists.there, lists.cut)
            grade = np.where(lists.shown, len(scores) + 1, reached).astype(np.float32)
        relevant = (lists.label > 0) & lists.there
        return np.where(relevant, grade.max(initial=0) + 1, grade).astype(np.float32)

    def loss(self, lists: joint_losses.Lists, balance: Tensor) -> Tensor:
        return joint_losses.graded(lists)


@dataclass(frozen=True, repr=False)
class ARF(CascadeLoss):
    """Adaptive Neural Ranking Framework (Wang et al. 2024, arXiv 2310.10462): a relaxed sort for
    Recall@m@k at each stage's cut, and one for the whole order, with a learnt weight. See
    `models.ctr.joint_losses.relaxed`.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        needs(self, "temperature")

    def loss(self, lists: joint_losses.Lists, balance: Tensor) -> Tensor:
        return joint_losses.relaxed(lists, self.temperature, balance)


@dataclass(frozen=True, repr=False)
class LCRON(CascadeLoss):
    """Learning Cascade Ranking as One Network (Wang et al. 2025, arXiv 2503.09492): the probability
    that a relevant item survives all stages, and one loss a stage with a learnt weight. See
    `models.ctr.joint_losses.end_to_end`.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        needs(self, "temperature")

    def loss(self, lists: joint_losses.Lists, balance: Tensor) -> Tensor:
        return joint_losses.end_to_end(lists, self.temperature, balance)


@dataclass(frozen=True, repr=False)
class RankFlow(CascadeLoss):
    """RankFlow (Qin et al. 2022, SIGIR): each stage learns from what the one before passes on, and
    in every second step from the one after. See `models.ctr.joint_losses.flows`.

    Args:
        share: of the tutor's distribution; the rest is of its pairs.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        needs(self, share=SHARE)

    def loss(self, lists: joint_losses.Lists, balance: Tensor) -> Tensor:
        return joint_losses.flows(lists, self.share)
