"""Click models fitted to lists with clicks, by EM: parameters, and the attraction of each item.

Every unknown is the chance of a step that is hidden at times: a slot is looked at, a looker clicks,
a clicker goes on. EM counts expected trials and successes of each step and divides (Dempster, Laird
& Rubin 1977); where no step is hidden, as under Cascade, the first division is the answer. Between
steps SQUAREM (Varadhan & Roland 2008) looks ahead, and is believed only where the likelihood rises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import xlogy

from ...bounds import WEIGHT, Bound, check_bound
from ...errors import KarmafunnelError
from .click_lists import Lists, Shown
from .click_protocol import ClickModel
from .clicks import SDBN, Mixture

FEWEST = 10  # expected trials of a parameter
EDGE = 1e-6  # what is so near to 0 or 1 has no interval
ITERATIONS = Bound(1, 1_000_000)
TOLERANCE = Bound(0.0, 0.1, above=True)
Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Prior:
    """Clicks and looks without a click that each item starts with: its chance is the mode under
    Beta(clicks + 1, misses + 1).
    """

    clicks: float = 0.0
    misses: float = 0.0

    @property
    def mean(self) -> float:
        """The chance of an item that was never shown; NaN without a prior."""
        both = self.clicks + self.misses
        return self.clicks / both if both else np.nan


@dataclass(frozen=True, eq=False)
class Fit:
    """A click model with the parameters that lists make most likely, and what it says of items.

    attraction, satisfaction (n_items,): by item number (satisfaction: SDBN alone, else None), with
    the priors that were used. iterations: EM steps; change: what the last one changed at most;
    history: the log-likelihood, with that of the priors, as it rose.
    """

    model: ClickModel
    attraction: np.ndarray
    satisfaction: np.ndarray | None
    prior: Prior
    satisfaction_prior: Prior
    iterations: int
    change: float
    history: tuple[float, ...]

    def shown(self, items: np.ndarray, mask: np.ndarray | None = None) -> Shown:
        """Lists of item numbers (n, k) as the model sees them; -1, and numbers that the fit did not
        have, are unknown items with the prior's mean.

        Raises KarmafunnelError for unknown items without a prior.
        """
        items = np.asarray(items)
        known = (items >= 0) & (items < len(self.attraction))
        unknown = int((~known if mask is None else ~known & mask).sum())
        if unknown and np.isnan(self.prior.mean):
            raise KarmafunnelError(
                type(self.model).__name__, needs="a prior for unknown items", found=f"{unknown:,}"
            )
        at = np.where(known, items, 0)
        attraction = np.where(known, self.attraction[at], self.prior.mean)
        satisfaction = None
        if self.satisfaction is not None:
            mean = self.satisfaction_prior.mean
            satisfaction = np.where(known, self.satisfaction[at], mean)
        return Shown(attraction, satisfaction, mask)

    def intervals(self, lists: Lists, items: Sequence[int] = ()) -> dict[str, tuple[float, float]]:
        """95% intervals of the parameters, and of the attraction (and satisfaction) of some items,
        symmetric in log odds. What is fitted as 0 or 1, or fixed there, has none.

        Standard errors are from the observed information (attraction of all items unknown, too);
        where the lists have users, from the sandwich of it with the scores of users, which also
        holds where the lists of a user depend on each other.

        Args:
            lists: the lists that were fitted.

        Raises:
            KarmafunnelError: an item that the fit does not have, fewer than 10 users, or a
                parameter that the lists do not determine (the name is said).
        """
        for item in items:
            check_bound("intervals", Bound(0, len(self.attraction) - 1), items=item)
        if lists.users is not None:
            users = np.unique(lists.users, return_inverse=True)[1]
            if users.max() + 1 < FEWEST:
                found = int(users.max()) + 1
                raise KarmafunnelError("intervals", needs=f"at least {FEWEST} users", found=found)
        em = EM(self.model, lists, len(self.attraction), self.prior, self.satisfaction_prior)
        phi = em.packed(self.model, self.attraction, self.satisfaction)
        wanted = dict(zip(self.model.named(), range(em.p), strict=True))
        wanted |= {f"attraction of item {i}": em.p + i for i in items}
        if self.satisfaction is not None:
            wanted |= {f"satisfaction of item {i}": em.p + em.n_items + i for i in items}
        inside = (phi > EDGE) & (phi < 1 - EDGE)
        log_odds = np.log(np.where(inside, phi, 0.5) / np.where(inside, 1 - phi, 0.5))

        def moved(step: np.ndarray) -> np.ndarray:
            return np.where(inside, 1 / (1 + np.exp(-log_odds - step)), phi)

        def curvature(v: np.ndarray) -> np.ndarray:
            step = v * (1e-4 / np.abs(v).max())
            rise = em.score(moved(step)) - em.score(moved(-step))
            return np.where(inside, rise * (np.abs(v).max() / -2e-4), 0.0)

        _, _, trials, _ = em.expect(phi)
        complete = np.where(inside, (trials + em.pseudo.sum(axis=0)) * phi * (1 - phi), 1.0)
        ends_of = {}
        for name, j in wanted.items():
            if not inside[j]:
                continue
            unit = np.zeros(len(phi))
            unit[j] = 1.0
            x = solved(curvature, unit, complete, name)
            variance = x[j]
            if lists.users is not None:
                step = x * (1e-4 / np.abs(x).max())
                rise = em.expect(moved(step))[1] - em.expect(moved(-step))[1]
                of_user = np.bincount(users, weights=rise * (np.abs(x).max() / 2e-4))
                variance = (of_user**2).sum() * len(of_user) / (len(of_user) - 1)
            ends = log_odds[j] + np.array([-Z, Z]) * np.sqrt(variance)
            low, high = (1 / (1 + np.exp(-ends))).tolist()
            ends_of[name] = (low, high)
        return ends_of


def solved(
    product: Callable[[np.ndarray], np.ndarray], b: np.ndarray, diagonal: np.ndarray, name: str
) -> np.ndarray:
    """x with product(x) = b, by conjugate gradients with a diagonal preconditioner; raises
    KarmafunnelError where the product has no curvature.
    """
    x, left = np.zeros(len(b)), b.copy()
    z = left / diagonal
    way, size = z, left @ z
    first = size
    for _ in range(200):
        bent = product(way)
        along = way @ bent
        if along <= 1e-9 * (way @ (diagonal * way)):
            needed = "lists that determine it"
            raise KarmafunnelError("intervals", what=name, needs=needed, found="a flat likelihood")
        x = x + size / along * way
        left = left - size / along * bent
        z = left / diagonal
        new = left @ z
        if new <= 1e-8 * first:
            break
        way, size = z + new / size * way, new
    return x


class EM:
    """Steps of EM for some lists: all unknowns in one array phi, parameters, attraction of items,
    satisfaction of items.
    """

    def __init__(
        self, model: ClickModel, lists: Lists, n_items: int, prior: Prior, satisfaction: Prior
    ):
        self.model, self.n_items, self.p = model, n_items, len(model.named())
        self.models = model.models if isinstance(model, Mixture) else (model,)
        self.satisfies = any(isinstance(one, SDBN) for one in self.models)
        self.clicks = np.asfortranarray(lists.clicks)
        self.mask = None if lists.mask is None else np.asfortranarray(lists.mask)
        items = lists.items if lists.mask is None else np.where(lists.mask, lists.items, 0)
        self.items = items.ravel("F")
        self.shape = lists.items.shape
        clicked = np.bincount(self.items, weights=self.clicks.ravel("F"), minlength=n_items)
        self.clicked = clicked
        blocks = [np.zeros((2, self.p)), np.repeat([[prior.clicks], [prior.misses]], n_items, 1)]
        if self.satisfies:
            both = [[satisfaction.clicks], [satisfaction.misses]]
            blocks.append(np.repeat(both, n_items, 1))
        self.pseudo = np.concatenate(blocks, axis=1)  # successes and failures of the priors

    def packed(
        self, model: ClickModel, attraction: np.ndarray, satisfaction: np.ndarray | None
    ) -> np.ndarray:
        """phi of a model and of items."""
        values = np.array(list(model.named().values()))
        parts = [values, attraction]
        return np.concatenate([*parts, *([] if satisfaction is None else [satisfaction])])

    def parts(self, phi: np.ndarray) -> tuple[ClickModel, np.ndarray, np.ndarray | None]:
        """The model, attraction and satisfaction of phi."""
        p, n = self.p, self.n_items
        satisfaction = phi[p + n :] if self.satisfies else None
        return self.model.with_values(phi[:p]), phi[p : p + n], satisfaction

    def expect(self, phi: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Log-likelihood with that of the priors, log-likelihood of each list (n,), and expected
        trials and successes of every unknown.
        """
        model, *of_items = self.parts(phi)
        each = [
            None if x is None else x.take(self.items).reshape(self.shape, order="F")
            for x in of_items
        ]
        attraction, satisfaction = each
        assert attraction is not None
        shown = Shown(attraction, satisfaction, self.mask)
        hidden = model.hidden(shown, self.clicks)
        trials, successes = np.zeros(len(phi)), np.zeros(len(phi))
        looked = np.zeros(self.shape, order="F")
        at = 0
        for i, (one, part) in enumerate(zip(self.models, hidden, strict=True)):
            n = len(one.named())
            trials[at : at + n], successes[at : at + n] = part.totals(n)
            at += n
            share = part.share
            looked += part.looked if share is None else share[:, None] * part.looked
            if share is not None and i + 1 < len(hidden):
                later = np.sum([h.share for h in hidden[i:]])
                trials[at], successes[at] = later, share.sum()
                at += 1
            if isinstance(one, SDBN):
                rows = self.p + self.n_items
                trial, on = part.of_items(self.items, self.n_items)
                trials[rows:] += trial
                successes[rows:] += trial - on
        if self.mask is not None:
            looked *= self.mask
        items = slice(self.p, self.p + self.n_items)
        trials[items] = np.bincount(self.items, weights=looked.ravel("F"), minlength=self.n_items)
        successes[items] = self.clicked
        likelihood = hidden[0].log_likelihood
        of_priors = xlogy(self.pseudo[0], phi) + xlogy(self.pseudo[1], 1 - phi)
        return float(likelihood.sum() + of_priors.sum()), likelihood, trials, successes

    def score(self, phi: np.ndarray) -> np.ndarray:
        """Slope of the log-likelihood, with the priors', by the log odds of phi (Fisher's
        identity).
        """
        _, _, trials, successes = self.expect(phi)
        return successes + self.pseudo[0] - (trials + self.pseudo.sum(axis=0)) * phi

    def step(self, phi: np.ndarray) -> tuple[float, np.ndarray]:
        """Log-likelihood with the priors' at phi, and the phi after it."""
        value, _, trials, successes = self.expect(phi)
        trials, successes = trials + self.pseudo.sum(axis=0), successes + self.pseudo[0]
        chance = successes / np.where(trials > 0, trials, 1.0)
        return value, np.where(trials > 0, np.minimum(chance, 1.0), phi)

    def run(
        self, phi: np.ndarray, iterations: int, tolerance: float
    ) -> tuple[np.ndarray, int, float, list[float]]:
        """phi after EM, the steps made, the change of the last one, and the log-likelihood as it
        rose.
        """
        history: list[float] = []
        steps, (now, first) = 1, self.step(phi)
        while True:
            history.append(now)
            r = first - phi
            change = float(np.abs(r).max())
            if change <= tolerance or steps + 3 > iterations:
                return first, steps, change, history
            value, second = self.step(first)
            steps += 1
            v = second - first - r
            length = np.sqrt((r @ r) / max(v @ v, 1e-300))
            leap = phi + 2 * length * r + length**2 * v
            # 0 and 1 stay, and nothing else gets there
            leap = np.clip(leap, EDGE / 1e3, 1 - EDGE / 1e3)
            leap = np.where((second <= 0) | (second >= 1), second, leap)
            now, first = self.step(leap)
            steps += 1
            phi = leap
            if not now >= value:
                phi = second
                now, first = self.step(second)
                steps += 1


def fit(
    start: ClickModel,
    lists: Lists,
    prior: float = 1.0,
    iterations: int = 1_000,
    tolerance: float = 1e-5,
    n_items: int | None = None,
) -> Fit:
    """A click model fitted to lists by EM.

    Args:
        start: the model with the parameters that EM starts from, such as `PBM.of(10)`; those that
            are 0 or 1 stay.
        prior: looks that each item starts with, at the attraction that one attraction shared by all
            items would have; 0 for maximum likelihood.
        iterations: EM steps at most.
        tolerance: EM ends when a step changes no unknown by more.
        n_items: items to say something of; by default up to the largest number in the lists.

    Raises:
        KarmafunnelError: the lists hold no click, or nothing but clicks; a parameter, or an item
            without a prior, has too little data (the name is said); the model excludes some lists;
            EM does not converge.
    """
    who = type(start).__name__
    check_bound(who, WEIGHT, prior=prior)
    check_bound(who, ITERATIONS, iterations=iterations)
    check_bound(who, TOLERANCE, tolerance=tolerance)
    n_items = lists.n_items if n_items is None else n_items
    check_bound(who, Bound(lists.n_items, 2**40), n_items=n_items)
    filled = lists.clicks if lists.mask is None else lists.clicks[lists.mask]
    if not filled.any() or filled.all():
        found = "nothing but clicks" if filled.any() else f"no click in {len(lists.clicks):,} lists"
        raise KarmafunnelError(who, needs="slots with a click and slots without", found=found)
    start.check_scale()

    alike = Lists(np.zeros_like(lists.items), lists.clicks, lists.mask)
    one = EM(start, alike, 1, Prior(), Prior())
    phi = one.packed(start, np.array([0.5]), np.array([0.5]) if one.satisfies else None)
    check_data(who, one, phi, lists)
    phi, *_ = one.run(phi, 200, 1e-3)
    means = np.clip(phi[one.p :], EDGE, 1 - EDGE)
    priors = [Prior(prior * mean, prior * (1 - mean)) for mean in means.tolist()]
    of_clicks, of_stops = [*priors, Prior()][:2]

    em = EM(start, lists, n_items, of_clicks, of_stops)
    values = np.array(list(start.named().values()))
    free = (values > 0) & (values < 1)
    values = np.where(free, np.clip(phi[: one.p], 0.01, 0.99), values)
    phi = np.concatenate([values, np.repeat(means, n_items)])
    phi, steps, change, history = em.run(phi, iterations, tolerance)
    if change > tolerance:
        needed = f"an EM that changes by at most {tolerance:g} within {iterations:,} iterations"
        raise KarmafunnelError(who, needs=needed, found=f"{change:.2g}")
    _, _, trials, _ = em.expect(phi)
    check_trials(who, em, trials)
    model, attraction, satisfaction = em.parts(phi)
    return Fit(model, attraction, satisfaction, of_clicks, of_stops, steps, change, tuple(history))


def check_data(who: str, em: EM, phi: np.ndarray, lists: Lists) -> None:
    """Raises KarmafunnelError for lists that the model excludes, or too few for a parameter."""
    _, likelihood, trials, _ = em.expect(phi)
    out = np.flatnonzero(~np.isfinite(likelihood))
    if len(out):
        slots = ", ".join(str(i + 1) for i in np.flatnonzero(lists.clicks[out[0]]))
        found = f"{len(out):,} of {len(likelihood):,} that it excludes, such as clicks in {slots}"
        raise KarmafunnelError(who, needs="lists that it allows", found=found)
    check_trials(who, em, trials)


def check_trials(who: str, em: EM, trials: np.ndarray) -> None:
    """Raises KarmafunnelError naming the first unknown with too few trials."""
    for name, there in zip(em.model.named(), trials, strict=False):
        if there < FEWEST:
            needed, found = f"at least {FEWEST} lists that tell it", f"{there:.3g}"
            raise KarmafunnelError(who, what=name, needs=needed, found=found)
    short = np.flatnonzero(trials[em.p :] + em.pseudo.sum(axis=0)[em.p :] <= 0)
    if len(short):
        kind, item = divmod(int(short[0]), em.n_items)
        name = f"{('attraction', 'satisfaction')[kind]} of item {item}"
        raise KarmafunnelError(who, what=name, needs="a look or a prior", found="none")
