"""The tables of a Run as arrays, for the measures: relevant items, shown rows, slices."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...files import check, read_table
from ...layout import TS
from ...log import Log, hash_ids
from ...stages.frame import mix, order
from . import metrics
from .metrics import LOST
from .run import Run

# Slices by relevant item select some relevant items of each request; slices by request select whole
# requests.
SLICES: dict[str, tuple[str, ...]] = {
    "target": ("head", "tail", "cold"),
    "repeat": ("new", "repeat"),
    "price": ("low", "mid", "high", "unknown"),
    "user": ("new", "returning"),
    "query": ("with", "without"),
}
SLICES_OF_TRUTH = ("target", "repeat", "price")
ALL, LOGGED = "all", "logged order"


@dataclass(frozen=True, eq=False)
class Truths:
    """The relevant items of a Run, sorted by request; arrays are (n_relevant,).

    group: number of the request. rank: by stage, int64, LOST once the item is lost. wins: by stage,
    the scored candidates that it beats, ties one half.
    """

    frame: pl.DataFrame
    group: np.ndarray
    eligible: np.ndarray
    money: np.ndarray
    rank: dict[str, np.ndarray]
    wins: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Shown:
    """The logged exposures with a position, sorted by request; arrays are (n_exposures,).

    group: number of the request. truth: row in `Truths`, -1 for an item that is not relevant.
    tie: hash that orders rows of equal score.
    """

    group: np.ndarray
    label: np.ndarray
    truth: np.ndarray
    in_list: np.ndarray  # the first row of its item in a list of 2 or more
    tie: np.ndarray
    score: dict[str, np.ndarray]  # NaN where the Run has none
    probability: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class SliceMask:
    """One value of a slice, as masks: its requests (n_requests,) and relevant items (n_relevant,).

    by_truth: whether the slice is by relevant item; then `requests` is all of them.
    """

    name: str
    requests: np.ndarray
    truth: np.ndarray
    by_truth: bool = False


class RunArrays:
    """The tables of a Run as arrays, in the order of request ids, so that Runs of the same requests
    align.
    """

    def __init__(self, run: Run):
        self.run = run
        self._shown_ranks: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        frame = run.read("requests").sort("request_id")
        if frame["request_id"].is_duplicated().any():
            twice = frame["request_id"].filter(frame["request_id"].is_duplicated())[0]
            raise KarmafunnelError(
                f"{run.path}/requests.parquet", needs="one row a request", found=f"{twice!r} twice"
            )
        if frame.height == 0:
            raise KarmafunnelError(
                f"{run.path}/requests.parquet", needs="at least one request", found="none"
            )
        self.requests = frame
        self.n = frame.height
        self.index = frame.select(
            "request_id", pl.int_range(pl.len(), dtype=pl.Int64).alias("group")
        )
        users = frame.select(
            pl.coalesce("user_id", pl.lit("\x00") + pl.col("request_id"))
        ).to_series()
        self.users, cluster = np.unique(users.to_numpy().astype(str), return_inverse=True)
        self.cluster = cluster.astype(np.int64)
        self.eligible = frame["n_eligible"].to_numpy().astype(np.int64)

    def _grouped(self, table: str, *columns: str | pl.Expr) -> pl.DataFrame:
        frame = self.run.read(table, "request_id", *columns)
        found = frame.join(self.index, on="request_id", how="left", maintain_order="left")
        if found["group"].null_count():
            stray = found.filter(pl.col("group").is_null())["request_id"][0]
            raise KarmafunnelError(
                f"{self.run.path}/{table}.parquet: request {stray!r} is not in requests.parquet"
            )
        return found.sort("group", maintain_order=True)

    @cached_property
    def truths(self) -> Truths:
        stages = self.run.stages
        columns = [
            "item_id",
            "money",
            "eligible",
            "target",
            "repeat",
            "price_band",
            "lost",
            "margin",
        ]
        frame = self._grouped(
            "ledger", *columns, *[f"{s}.{c}" for s in stages for c in ("rank", "wins")]
        )
        money = frame["money"].fill_null(np.nan).to_numpy()
        if (money < 0).any():
            row = frame.row(int(np.flatnonzero(money < 0)[0]), named=True)
            found = f"{row['money']} for request {row['request_id']!r}, item {row['item_id']!r}"
            raise KarmafunnelError(
                f"{self.run.path}/ledger.parquet", needs="money of 0 or more", found=found
            )
        return Truths(
            frame,
            frame["group"].to_numpy(),
            frame["eligible"].to_numpy(),
            money,
            {s: frame[f"{s}.rank"].cast(pl.Int64).fill_null(LOST).to_numpy() for s in stages},
            {s: frame[f"{s}.wins"].fill_null(np.nan).to_numpy() for s in stages},
        )

    @cached_property
    def would_rank(self) -> dict[str, np.ndarray]:
        """The rank of each relevant item in each stage's output, by stage: (n_relevant,).

        For an item that was lost, the rank that it would have there; LOST where unknown.
        """
        columns = [f"{s}.rank" for s in self.run.stages]
        tracked = self.run.read("scored", "request_id", "item_id", *columns).unique(
            ["request_id", "item_id"], keep="first"
        )
        keys = self.truths.frame.select("request_id", "item_id")
        found = keys.join(tracked, on=["request_id", "item_id"], how="left", maintain_order="left")
        return {
            s: found[f"{s}.rank"].cast(pl.Int64).fill_null(LOST).to_numpy() for s in self.run.stages
        }

    @cached_property
    def log(self) -> tuple[Log | None, str]:
        """The replayed log, if it is still at its path and unchanged; else None and why."""
        said = self.run.meta["log"]
        path = Path(str(said.get("path")))
        if not (path / "log.json").is_file():
            return None, f"n/a: the log that was replayed is not at {path}"
        try:
            log = Log.open(path)
            same = log.checksum == said["checksum"]
        except KarmafunnelError:  # damaged, or changed since
            same = False
        return (log, "") if same else (None, f"n/a: {path} is no longer the log that was replayed")

    @cached_property
    def elsewhere(self) -> tuple[pl.DataFrame | None, str]:
        """Purchases outside the funnel (user_id, item_id, bought) if the log has them, as that of a
        World does; else None and why.
        """
        path = Path(str(self.run.meta["log"].get("path"))) / "truth" / "elsewhere.parquet"
        if not path.is_file():
            return None, "n/a: the log holds no purchases made elsewhere"
        if self.log[0] is None:
            return None, self.log[1]
        try:
            check(path.parent, path.name)
            return read_table(path).select(
                "user_id", "item_id", pl.col("ts").cast(TS).alias("bought")
            ), ""
        except (pl.exceptions.PolarsError, OSError) as error:
            raise KarmafunnelError(
                path, needs="user_id, item_id and ts of purchases", found=error
            ) from error

    def soon_elsewhere(self, days: int) -> tuple[pl.DataFrame | None, str]:
        """Items that a request's user bought elsewhere within `days` after it, without those that
        are relevant already.

        Returns:
            A frame (group, request_id, item_id), or None, and a note: why there is none, or how
            many requests have a window that ends after the last known purchase.
        """
        bought, note = self.elsewhere
        if bought is None:
            return None, note
        window = timedelta(days=days)
        requests = self.requests.select("request_id", "user_id", pl.col("ts").cast(TS))
        requests = requests.with_columns(self.index["group"])
        found = requests.join(bought, on="user_id").filter(
            (pl.col("bought") > pl.col("ts")) & (pl.col("bought") <= pl.col("ts") + window)
        )
        found = found.select("group", "request_id", "item_id").unique(maintain_order=True)
        last = bought["bought"].max()
        cut = 0 if last is None else int((requests["ts"] + window > last).sum())
        note = (
            f"the window of {cut} requests runs past the last purchase known elsewhere"
            if cut
            else ""
        )
        return found.join(self.truths.frame, on=["request_id", "item_id"], how="anti").sort(
            "group"
        ), note

    @cached_property
    def winsorised(self) -> np.ndarray:
        """Money of the relevant items, winsorised at its 99th percentile: (n_relevant,)."""
        return metrics.winsorised(self.truths.money)

    @cached_property
    def shown(self) -> Shown:
        label = "purchased" if self.run.label == "purchase" else "clicked"
        has = set(self.run.columns("scored"))
        calibrated = [s for s in self.run.stages if f"{s}.p" in has]
        columns = [
            "item_id",
            "position",
            label,
            *[f"{s}.score" for s in self.run.stages],
            *[f"{s}.p" for s in calibrated],
        ]
        frame = self._grouped("scored", *columns).filter(pl.col("position").is_not_null())
        frame = frame.sort("group", "position", maintain_order=True)
        rows = self.truths.frame.select(
            "request_id", "item_id", pl.int_range(pl.len(), dtype=pl.Int64).alias("truth")
        )
        frame = frame.join(rows, on=["request_id", "item_id"], how="left", maintain_order="left")
        group = frame["group"].to_numpy()
        first = (
            frame.select(pl.struct("group", "item_id").is_first_distinct()).to_series().to_numpy()
        )
        sizes = np.bincount(group[first], minlength=self.n)
        seed = int(self.run.meta["seed"] or 0)
        keys = {}
        for column, shift in (("request_id", 0), ("item_id", 1)):
            ids = frame[column].unique(maintain_order=True)
            hashes = pl.DataFrame(
                {
                    column: ids,
                    "hash": pl.Series(hash_ids(ids.to_numpy(), seed + shift), dtype=pl.UInt64),
                }
            )
            keys[column] = (
                frame.select(column)
                .join(hashes, on=column, how="left", maintain_order="left")["hash"]
                .to_numpy()
            )
        scores = {s: frame[f"{s}.score"].fill_null(np.nan).to_numpy() for s in self.run.stages}
        return Shown(
            group,
            frame[label].fill_null(False).to_numpy(),
            frame["truth"].fill_null(-1).to_numpy(),
            first & (sizes[group] > 1),
            mix(keys["request_id"] + keys["item_id"]),
            scores | {LOGGED: -frame["position"].to_numpy().astype(np.float32)},
            {
                s: frame[f"{s}.p"].fill_null(np.nan).to_numpy().astype(np.float64)
                for s in calibrated
            },
        )

    def shown_ranks(self, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """Ranks in the shown lists, ordered by a stage's score.

        Returns:
            The rank of each exposure, 0 if it is in no list: (n_exposures,); and the length of each
            request's list: (n_requests,).
        """
        if stage in self._shown_ranks:
            return self._shown_ranks[stage]
        shown = self.shown
        rows = np.flatnonzero(shown.in_list)
        group = shown.group[rows]
        sizes = np.bincount(group, minlength=self.n)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        ranks = np.zeros(len(shown.group), dtype=np.int64)
        placed = order(group, shown.score[stage][rows], shown.tie[rows])
        ranks[rows[placed]] = np.arange(len(rows)) - starts[group[placed]] + 1
        self._shown_ranks[stage] = ranks, sizes
        return ranks, sizes

    def unsliced(self, slice_name: str) -> str:
        """Why no relevant item has a value of a slice, such as "the log has no prices"; else ""."""
        named = [part for part in self.parts(slice_name) if not part.name.endswith("=unknown")]
        if self.truths.frame.is_empty() or any(part.truth.any() for part in named):
            return ""
        return f"the log has no {'prices' if slice_name == 'price' else 'users'}"

    def parts(self, slice_name: str | None) -> list[SliceMask]:
        """One mask for each value of a slice; without a slice, one mask of everything."""
        every = np.ones(self.n, dtype=bool)
        if slice_name is None:
            return [SliceMask(ALL, every, np.ones(self.truths.frame.height, dtype=bool))]
        if slice_name not in SLICES:
            raise KarmafunnelError(f"slice {slice_name!r}: there are {', '.join(SLICES)}")
        frame = self.truths.frame
        columns = {
            "target": pl.col("target"),
            "price": pl.col("price_band").fill_null("unknown"),
            "repeat": pl.when("repeat")
            .then(pl.lit("repeat"))
            .when(~pl.col("repeat"))
            .then(pl.lit("new")),
            "user": pl.when("new_user").then(pl.lit("new")).otherwise(pl.lit("returning")),
            "query": pl.when("has_query").then(pl.lit("with")).otherwise(pl.lit("without")),
        }
        by_truth = slice_name in SLICES_OF_TRUTH
        values = (
            (frame if by_truth else self.requests)
            .select(columns[slice_name].alias("value"))
            .to_series()
        )
        parts = []
        for value in SLICES[slice_name]:
            mask = (values == value).fill_null(False).to_numpy()
            requests = every if by_truth else mask
            parts.append(
                SliceMask(
                    f"{slice_name}={value}",
                    requests,
                    mask if by_truth else mask[self.truths.group],
                    by_truth,
                )
            )
        return parts
