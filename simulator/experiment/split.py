"""Users into arms by a salted hash, and the check that arms are as large as planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from scipy import stats

from ...bounds import check_bound, check_title, several
from ...errors import KarmafunnelError, quoted
from ...typed import Typed

SRM_LEVEL = 0.0005  # Fabijan et al. 2019, Diagnosing sample ratio mismatch
FEW = 1_000  # users expected in the smallest arm below which the check is exact


@dataclass(frozen=True, repr=False)
class Split(Typed):
    """Users into arms: the same user is always in the same arm, and splits of different salts are
    independent.

    Args:
        salt: the name of the experiment.
        shares: of users in each arm; the first arm is the control.
    """

    salt: str
    shares: Sequence[float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        check_title("Split", "salt", self.salt)
        object.__setattr__(self, "shares", checked_shares("Split", self.shares))

    def arms(self, users: np.ndarray) -> np.ndarray:
        """The arm of each user, (n,) -> (n,) int64: by BLAKE2b of salt and id.

        Ids are whole numbers or text; 7 and "7" are the same user. Raises KarmafunnelError for
        others.
        """
        ids, which = np.unique(as_ids(users), return_inverse=True)
        salted = blake2b(f"{self.salt}\0".encode(), digest_size=8)
        hashes = np.empty(len(ids), np.uint64)
        for i, user in enumerate(ids.tolist()):
            one = salted.copy()
            one.update(str(user).encode("utf-8", "surrogatepass"))
            hashes[i] = int.from_bytes(one.digest(), "little")
        ends = np.cumsum(self.shares)[:-1]
        return np.searchsorted(ends, hashes / 2.0**64, side="right")[which]

    def check(self, arms: np.ndarray) -> SampleRatio:
        """The sample ratio of users' arms, (n_users,), one entry a user."""
        return SampleRatio.of(np.bincount(arms, minlength=len(self.shares)), self.shares)


@dataclass(frozen=True)
class SampleRatio:
    """Users counted in each arm against the shares that were planned; p of "as planned".

    `mismatch`: p is below `level`. An experiment with one has lost users of some arm, and none of
    its figures can be trusted.
    """

    counts: tuple[int, ...]
    shares: tuple[float, ...]
    p: float
    level: float = SRM_LEVEL

    @classmethod
    def of(
        cls, counts: Sequence[int] | np.ndarray, shares: Sequence[float], level: float = SRM_LEVEL
    ) -> SampleRatio:
        """Chi-square; exact binomial where an arm expects fewer than 1,000 users, the smallest p of
        the arms times their number (Bonferroni) if there are more than two.

        Raises KarmafunnelError for counts or shares that are none.
        """
        who = "sample ratio"
        planned = checked_shares(who, shares)
        found = several(who, "counts", counts, f"{len(planned)} whole numbers")
        check_bound(who, "alpha", level=level)
        for one in found:
            check_bound(who, "arm_users", counts=one)
        if len(found) != len(planned) or sum(found) == 0:
            needed = f"users in {len(planned)} arms"
            raise KarmafunnelError(who, what="counts", needs=needed, found=quoted(found))
        total = sum(found)
        if total * min(planned) >= FEW:
            expected = total * np.array(planned)
            squares = float(((np.array(found) - expected) ** 2 / expected).sum())
            p = float(stats.chi2.sf(squares, len(planned) - 1))
        else:
            tested = zip(found[1:], planned[1:], strict=True) if len(planned) == 2 else None
            pairs = list(tested or zip(found, planned, strict=True))
            each = [stats.binomtest(n, total, share).pvalue for n, share in pairs]
            p = float(min(1.0, len(pairs) * min(each)))
        return cls(found, planned, p, level)

    @property
    def mismatch(self) -> bool:
        return self.p < self.level

    def require(self, who: str) -> None:
        """Raises KarmafunnelError if there is a mismatch."""
        if self.mismatch:
            total = sum(self.counts)
            needed = ", ".join(f"{total * share:,.0f}" for share in self.shares)
            raise KarmafunnelError(
                who,
                what="split",
                needs=f"about {needed} users in its arms",
                found=f"{', '.join(f'{n:,}' for n in self.counts)} (p {self.p:.1e})",
                hint="a sample ratio mismatch: find out which users are missing",
            )


def checked_shares(who: str, shares: Any) -> tuple[float, ...]:
    """Shares of at least two arms that add to 1; raises KarmafunnelError for others."""
    needed = "shares of two arms or more that add to 1"
    found = several(who, "shares", shares, needed)
    for one in found:
        check_bound(who, "arm_share", shares=one)
    if len(found) < 2 or abs(sum(found) - 1) > 1e-9:
        raise KarmafunnelError(who, what="shares", needs=needed, found=quoted(found))
    return found


def as_ids(users: Any) -> np.ndarray:
    """User ids as an array of whole numbers or text, (n,)."""
    ids = np.asarray(users)
    if ids.dtype == object and all(isinstance(user, str) for user in ids.flat):
        ids = ids.astype(str)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iuU"):
        found = f"{ids.dtype} in {ids.ndim} dimensions"
        raise KarmafunnelError("Split", what="users", needs="whole numbers or text", found=found)
    return ids
