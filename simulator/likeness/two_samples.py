"""Can requests of two logs be told apart? A classifier learns to, and is asked about users whom it
has not seen (Lopez-Paz & Oquab 2017, Revisiting Classifier Two-Sample Tests).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold

from ...stages.context import Progress
from ..measure.describe import words
from ..measure.intervals import PooledAUC, resample
from .held_out import DAY, Part
from .judging import LEVEL, Answer, Drawing, Kind, judge, too_blunt

FEWEST = 200  # requests of each log
USERS = 20  # of each log
MOST = 10_000  # requests of each log that are read, at equal distances
FOLDS = 5
RESAMPLES = 200
LEVELS = 5  # of prices
UNKNOWN = -1e6  # below every value
NAME = "told apart"
UNIT = "AUC of a classifier; .5: not at all"
KIND: Kind = "AUC - .5"


def features(part: Part) -> dict[str, np.ndarray]:
    """By name, of each request: (n,) float64, NaN for unknown. What the log lacks is left out.

    What a log's own items would give away is left out: prices are relative to its own, and coarse;
    which items are popular is for other lines.
    """
    found = {}
    prices = None
    if part.has("exposures"):
        shown = part.shown
        found["items a list"] = counted(part, shown)
        if part.has("price"):
            prices = shown.filter(pl.col("price_shown") > 0).rename({"price_shown": "price"})
        if part.has("clicks"):
            first = shown.filter(pl.col("clicked")).group_by("at").agg(pl.col("position").min())
            found["position of the first click"] = placed(part, first, "position")
    elif part.has("price") and part.has("label"):
        prices = part.truth.filter(pl.col("price") > 0)
    for what, column in (("clicks", "clicked"), ("purchases", "purchased")):
        if part.has(what):
            found[what] = counted(part, part.taken.filter(pl.col(column)))
    if prices is not None and prices.height:
        found |= of_prices(part, prices)
    if part.has("query"):
        asked = part.log.requests["query"].gather(part.requests)
        length = words(asked.fill_null("")).to_numpy().astype(float)
        found["words a query"] = length
    if part.has("sessions"):
        order = np.lexsort((part.t, part.session))
        session = part.session[order]
        begins = np.r_[0, np.flatnonzero(np.diff(session)) + 1]
        place = np.arange(part.n) - np.repeat(begins, np.diff(np.r_[begins, part.n]))
        of_session = np.empty(part.n)
        of_session[order] = place
        found["place in the session"] = of_session
    if part.has("clock") and (part.terms.span or 0) >= DAY:
        found["hour of day"] = (part.t % DAY // 3_600_000).astype(float)
    if part.has("clock") and part.has("users"):
        found["time since the last request"] = since(part)
    return found


def of_prices(part: Part, prices: pl.DataFrame) -> dict[str, np.ndarray]:
    """Which fifth of the log's prices the median of a request lies in, and the spread of its log
    prices, in steps of .25.

    Args:
        prices: at, price.
    """
    known = part.log.rows.select(pl.coalesce("price_shown", "price_paid")).to_series()
    edges = np.quantile(known.filter(known > 0).to_numpy(), np.arange(1, LEVELS) / LEVELS)
    price = pl.col("price")
    of_list = prices.group_by("at").agg(price.median(), price.log().std().alias("spread"))
    level = pl.Series("level", np.searchsorted(edges, of_list["price"].to_numpy()))
    spread = placed(part, of_list, "spread")
    return {
        "price level": placed(part, of_list.with_columns(level), "level"),
        "spread of prices": np.round(4 * spread) / 4,
    }


def counted(part: Part, rows: pl.DataFrame) -> np.ndarray:
    """How many rows each request has: (n,)."""
    return np.bincount(rows["at"].to_numpy(), minlength=part.n).astype(float)


def placed(part: Part, frame: pl.DataFrame, column: str) -> np.ndarray:
    """A column of a frame with one row a request, by request: (n,), NaN where there is none."""
    found = np.full(part.n, np.nan)
    found[frame["at"].to_numpy()] = frame[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
    return found


def since(part: Part) -> np.ndarray:
    """Log seconds since the user's request before, within the part: (n,)."""
    order = np.lexsort((part.t, part.user))
    gap = np.r_[np.nan, np.diff(part.t[order]) / 1000.0]
    gap[np.r_[True, np.diff(part.user[order]) > 0]] = np.nan
    found = np.empty(part.n)
    found[order] = np.log1p(gap)
    return found


@dataclass(frozen=True, eq=False)
class ToldApart:
    """auc: of requests of users unknown to the classifier; scores (n,) and labels (n,) bool (of the
    second part); importances: by how much the AUC falls when a feature is shuffled.
    """

    auc: PooledAUC
    importances: dict[str, float]
    scores: np.ndarray
    labels: np.ndarray

    def chance(self, rng: np.random.Generator) -> float:
        """How far chance alone takes the AUC, one-sided, 99%."""
        users = int(self.auc.cluster.max()) + 1
        drawn = resample([self.auc], users, RESAMPLES, int(rng.integers(2**31)))[0]
        return float(NormalDist().inv_cdf(LEVEL) * np.std(drawn))


def tell_apart(first: Part, second: Part, rng: np.random.Generator) -> ToldApart:
    """A classifier of as many requests of each part, cross-validated by user."""
    both, columns = [features(first), features(second)], []
    names = [name for name in both[0] if name in both[1]]
    n = min(MOST, first.n, second.n)
    for part, found in zip((first, second), both, strict=True):
        rows = np.linspace(0, part.n - 1, n).astype(np.int64)
        columns.append((np.stack([found[name][rows] for name in names], axis=1), part, rows))
    x = np.concatenate([values for values, _, _ in columns])
    x = np.where(np.isnan(x), UNKNOWN, x)
    same = first.log is second.log
    users = [
        part.log.user[part.requests][rows].astype(np.int64) + (0 if same else i * 2**32)
        for i, (_, part, rows) in enumerate(columns)
    ]
    user = np.unique(np.concatenate(users), return_inverse=True)[1]
    label = np.repeat([False, True], n)
    scores, falls = np.zeros(2 * n), np.zeros(len(names))
    seed = int(rng.integers(2**31))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(x, label, user):
        model = HistGradientBoostingClassifier(
            max_iter=100,
             max_leaf_nodes=15, learning_rate=0.1, early_stopping=False,
            min_samples_leaf=20, random_state=seed,
        )  # fmt: skip
        model.fit(x[train], label[train])
        scores[test] = model.predict_proba(x[test])[:, 1]
        whole = PooledAUC(scores[test], label[test], user[test]).value
        for j in range(len(names)):
            shuffled = x[test].copy()
            shuffled[:, j] = rng.permutation(shuffled[:, j])
            less = PooledAUC(model.predict_proba(shuffled)[:, 1], label[test], user[test]).value
            falls[j] += (whole - less) / FOLDS
    importances = dict(sorted(zip(names, falls.tolist(), strict=True), key=lambda one: -one[1]))
    return ToldApart(PooledAUC(scores, label, user), importances, scores, label)


def answer(
    real: Part, simulated: Part, before: Part | None, rng: np.random.Generator, say: Progress
) -> Answer:
    """The line of the classifier; n/a for fewer than 200 requests or 20 users of a log."""
    for part in (real, simulated):
        if part.n < FEWEST or part.n_users < USERS:
            found = f"{part.n} requests of {part.n_users} users, needs {FEWEST} of {USERS}"
            return Answer(NAME, UNIT, KIND, "n/a", why=f"the {part.who} log has {found}")
    say("a classifier learns to tell the logs apart")
    told = tell_apart(real, simulated, rng)
    drift = None
    if before is not None and before.n >= FEWEST and before.n_users >= USERS:
        say("and the real log from its own window before")
        drift = max(tell_apart(real, before, rng).auc.value - 0.5, 0.0)
    distance, chance = max(told.auc.value - 0.5, 0.0), told.chance(rng)
    verdict, allowed = judge(KIND, distance, chance, drift)
    grid = np.linspace(0, 1, 51)
    curves = {}
    for name, mine in (("real", ~told.labels), ("simulated", told.labels)):
        scores = np.sort(told.scores[mine])
        curves[name] = (grid, np.searchsorted(scores, grid, side="right") / len(scores))
    return Answer(
        NAME,
        UNIT,
        KIND,
        verdict,
        None,
        told.auc.value,
        distance,
        chance,
        drift,
        allowed,
        too_blunt(KIND, chance) if verdict == "n/a" else "",
        Drawing(curves, "the classifier's chance that a request is simulated", "share up to x"),
        tuple(told.importances.items()),
    )
