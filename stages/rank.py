"""Ranking: models that order the list that is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import expit

from ..bounds import needs
from ..errors import KarmafunnelError
from ..log import rows_of
from ..models import ctr
from .calibration import (
    Calibrated,
    Calibration,
    fit_calibration,
    load_calibration,
    probabilities,
    save_calibration,
)
from .context import Context
from .frame import ITEM, REQUEST, SCORE, group_rows, pair_key
from .learn import Teachers, TrainingRows, shown_in_w2b
from .learner import Boosted, FittedNeural, Neural
from .rows import Rows
from .stage import FittedFunnel


@dataclass(frozen=True, repr=False)
class LightGBMRank(Boosted):
    """Boosted trees; LambdaMART by default; see `Boosted`.

    Small, well regularised trees with much patience: a ranker has few requests to learn from and to
    validate on, and larger trees lost the gain (LOG.md, 2026-11-28).
    """

    k: int = 50
    leaves: int = 15
    l2: float = 20.0
    patience: int = 100
    calibrated: Calibrated = "isotonic"
    name: str = "rank"


@dataclass(frozen=True, repr=False)
class DINRank(Neural):
    """Deep Interest Network: each candidate attends to the history; see `Neural`.

    `similar` names an embedder whose item vectors are an input, in the form that `use` names:
    SimTier, SA-TA, both (MUSE, arXiv 2512.07216), or raw, projected beside the id vectors.
    """

    attention: int = 32
    similar: str | None = None
    use: Literal["simtier", "sata", "both", "raw"] = "both"
    calibrated: Calibrated = "isotonic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use not in ("simtier", "sata", "both", "raw"):
            wanted = "'simtier', 'sata', 'both' or 'raw'"
            raise KarmafunnelError(self.name, what="use", needs=wanted, found=repr(self.use))
        needs(self, "attention")

    def embedders(self) -> tuple[str, ...]:
        own = (self.similar,) if self.similar else ()
        return super().embedders() + own

    def one_fit(self) -> str:
        if self.similar:
            return f"similar={self.similar!r}: the vectors of one fit inside its network"
        return super().one_fit()

    def vectors(self, context: Context) -> np.ndarray | None:
        return context.items(self.similar, repr(self)) if self.similar else None

    def network(self, context: Context, n_dense: int) -> ctr.ClickModel:
        return self.din(context, n_dense)

    def din(self, context: Context, n_dense: int) -> ctr.DIN:
        """The untrained network."""
        vectors = self.vectors(context)
        n_vector = 0 if vectors is None else vectors.shape[1]
        shape = ctr.Shape(context.log.n_items, n_dense, n_vector=n_vector)
        use = self.use if self.similar else ""
        config = ctr.DINConfig(
            dim=self.dim, attention=self.attention, unknown=self.unknown, similar=use
        )
        return ctr.DIN(shape, config, vectors=vectors, seed=context.seed)


@dataclass(frozen=True, repr=False)
class DCNRank(Neural):
    """Deep & Cross Network V2 over id vectors, the history's mean and features; see `Neural` and
    `models.ctr.DCN`.

    `crosses` layers of rank `low`; 0 for full matrices.
    """

    crosses: int = 2
    low: int = 16
    calibrated: Calibrated = "isotonic"

    def __post_init__(self) -> None:
        super().__post_init__()
        needs(self, "crosses", "low")

    def network(self, context: Context, n_dense: int) -> ctr.ClickModel:
        config = ctr.DCNConfig(
            dim=self.dim, crosses=self.crosses, low=self.low, unknown=self.unknown
        )
        return ctr.DCN(ctr.Shape(context.log.n_items, n_dense), config, seed=context.seed)


@dataclass(frozen=True, repr=False)
class ESMMRank(DINRank):
    """Click and purchase together, over the trunk of DIN or of DCN; see `models.ctr.ESMM`.

    Its columns are `p_click` and `p_buy` = P(purchase | click). Its score is p_click where the
    label is a click, and p_click * p_buy where it is a purchase. It learns from the clicks of the
    requests of both labels; candidates that were not shown count as not clicked, and
    `Sample(passed=0)` leaves only the paper's space of impressions. p_click is calibrated on what
    was shown in W2b, p_buy on what was clicked of it; isotonic calibration makes ties, so a
    temperature is the default. A fit raises KarmafunnelError for a log without shown lists, clicks
    or purchases.
    """

    trunk: Literal["DIN", "DCN"] = "DIN"
    calibrated: Calibrated = "temperature"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trunk not in ("DIN", "DCN") or (self.trunk == "DCN" and self.similar):
            wanted = "'DIN', or 'DCN' without similar"
            found = f"{self.trunk!r}, similar={self.similar!r}"
            raise KarmafunnelError(self.name, what="trunk", needs=wanted, found=found)
        if self.loss != "bce" or self.teacher is not None or self.position_bias is not None:
            wanted = "the loss 'bce', no teacher and no position_bias"
            raise KarmafunnelError(self.name, what="ESMM", needs=wanted, found=repr(self))

    def network(self, context: Context, n_dense: int) -> ctr.ClickModel:
        if self.trunk == "DIN":
            return ctr.ESMM(self.din(context, n_dense), seed=context.seed)
        shape = ctr.Shape(context.log.n_items, n_dense)
        config = ctr.DCNConfig(dim=self.dim, unknown=self.unknown)
        trunk = ctr.DCN(shape, config, seed=context.seed)
        return ctr.ESMM(trunk, seed=context.seed)

    def fit(self, context: Context, upstream: FittedFunnel | None) -> FittedNeural:
        log = context.log
        missing = [what for what in ("exposures", "clicks", "purchases") if not log.has(what)]
        if missing:
            wanted = "shown lists with clicks and purchases"
            found = f"no {', '.join(missing)} in log {log.name}"
            raise KarmafunnelError(f"{self.name} (ESMMRank)", needs=wanted, found=found)
        fitted = super().fit(replace(context, label="click"), upstream)
        fitted.context = context
        return fitted

    def ready(self, context: Context, model: ctr.ClickModel) -> FittedESMM:
        return FittedESMM(self, context, model)

    def _of_table(
        self,
        context: Context,
        table: TrainingRows,
        teacher: Teachers | None,
        curve: np.ndarray | None = None,
    ) -> ctr.Batch:
        requests, group = group_rows(table.request)
        clicked, bought = happened(context, table.request, table.item)
        if not 0 < bought.sum() < clicked.sum():
            wanted = "clicks with and without a purchase to learn from"
            clicks = f"{int(clicked.sum())} clicks with {int(bought.sum())} purchases"
            found = f"{clicks} in {len(requests)} requests"
            raise KarmafunnelError(self.title, needs=wanted, found=found)
        batch, where = self.batch(context, requests, group, table.item, table.x, clicked)
        second = np.zeros_like(batch.label)
        second[where] = bought
        return replace(batch, bought=second)


def happened(
    context: Context, request: np.ndarray, item: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether rows were clicked, and whether they were purchased: bool (n,) each.

    A purchase counts as a click, even where the log has none.
    """
    rows = rows_of(context.log.rows, np.unique(request))
    n_items = context.log.n_items
    pair = pair_key(rows[REQUEST].to_numpy(), rows[ITEM].to_numpy(), n_items)
    bought = rows["purchased"].fill_null(False).to_numpy()
    clicked = rows["clicked"].fill_null(False).to_numpy() | bought
    wanted = pair_key(request, item, n_items)
    return np.isin(wanted, pair[clicked]), np.isin(wanted, pair[bought])


class FittedESMM(FittedNeural):
    """With two calibrations: of a click, and of a purchase after a click."""

    both: tuple[Calibration, Calibration] | None = None

    def _calibrate(self, kind: Calibrated, upstream: FittedFunnel, most: int) -> None:
        logits, clicks, purchases = [], [], []
        for rows, chosen in shown_in_w2b(self.context, upstream, most):
            logits.append(self.logits(rows)[chosen])
            clicked, bought = happened(self.context, rows.request[chosen], rows.item[chosen])
            clicks.append(clicked)
            purchases.append(bought)
        x, clicked, bought = (
            np.concatenate(logits),
            np.concatenate(clicks),
            np.concatenate(purchases),
        )
        who = self.stage.title
        click = fit_calibration(kind, x[:, 0], clicked, f"{who}, clicks")
        of_clicks = x[clicked, 1], bought[clicked]
        buy = fit_calibration(kind, *of_clicks, f"{who}, purchases of what was clicked")
        self.both = click, buy

    def outputs(self, rows: Rows) -> dict[str, np.ndarray]:
        if len(rows.item) == 0:
            return dict.fromkeys((SCORE, "p_click", "p_buy"), np.zeros(0, np.float32))
        x = self.logits(rows)
        click, buy = self.both or (expit, expit)
        p_click = probabilities(click(x[:, 0]), f"{self.stage.title}, p_click")
        p_buy = probabilities(buy(x[:, 1]), f"{self.stage.title}, p_buy")
        score = p_click if self.context.label == "click" else p_click * p_buy
        outputs = {SCORE: score, "p_click": p_click, "p_buy": p_buy}
        return {name: np.asarray(values, np.float32) for name, values in outputs.items()}

    def score(self, rows: Rows) -> np.ndarray:
        return self.outputs(rows)[SCORE]

    def log_odds(self, score: np.ndarray) -> np.ndarray:
        p = probabilities(score, self.stage.title).astype(np.float64)
        p = np.clip(p, 1e-7, 1 - 1e-7)
        return np.log(p / (1 - p))

    def probability(self, score: np.ndarray) -> np.ndarray | None:
        if self.both is None:
            return None
        return probabilities(score, self.stage.title).astype(np.float64)

    def save(self, folder: Path) -> None:
        super().save(folder)
        for what, calibration in zip(("click", "buy"), self.both or (), strict=False):
            save_calibration(calibration, folder / f"{what}.json")

    def _read_calibration(self, folder: Path) -> None:
        self.both = load_calibration(folder / "click.json"), load_calibration(folder / "buy.json")
