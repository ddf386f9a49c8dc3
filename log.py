"""The Log: items, requests and exposures, cut into windows.

Layout on disk and definitions: see `docs/METRICS.md`. Ids are strings on disk; inside, everything
is a row number: item 7 is row 7 of `items`, request 3 is row 3 of `requests`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from .asof import NEVER, AsOf
from .bounds import check_bound, check_seed
from .errors import KarmafunnelError
from .files import (
    LOG,
    atomic_folder,
    check,
    claim,
    fault,
    open_table,
    read_json,
    say,
    seal,
    settle,
    write_json,
    write_parquet,
)
from .layout import TABLES, WINDOWS, complete_meta, conform, expected, same_type

# what truth may be, and what a log needs to have for it
LABELS = {"click": "clicks", "purchase": "purchases"}


def sha256(path: Path) -> str:
    """Checksum of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_ids(ids: np.ndarray, seed: int) -> np.ndarray:
    """A stable 64-bit hash of each id: uint64, the same on every machine."""
    key = seed.to_bytes(8, "little", signed=True)
    digests = (hashlib.blake2b(str(i).encode(), digest_size=8, key=key).digest() for i in ids)
    return np.frombuffer(b"".join(digests), dtype=np.uint64).copy()


def assign_windows(ts: pl.Series, scenario: pl.Series) -> pl.Series:
    """Window of every request by global time: 60 / 20 / 20 of the scenario's requests, cut at whole
    timestamps.

    W2 is cut again: W2b is its last quarter (tuning, stopping, calibration). All requests of one
    timestamp share a window.
    """
    served = ts.filter(scenario).sort()
    if served.len() == 0:
        raise KarmafunnelError(
            "windows", needs="at least one request of the scenario", found="none"
        )
    cuts = [served[min(int(share * served.len()), served.len() - 1)] for share in (0.6, 0.75, 0.8)]
    frame = pl.DataFrame({"ts": ts})
    return frame.select(
        pl.when(pl.col("ts") < cuts[0]).then(pl.lit("W1"))
        .when(pl.col("ts") < cuts[1]).then(pl.lit("W2a"))
        .when(pl.col("ts") < cuts[2]).then(pl.lit("W2b"))
        .otherwise(pl.lit("W3")).alias("window")
    ).to_series()  # fmt: skip


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items alone, with `meta` as in `log.json`."""

    items: pl.DataFrame
    meta: dict[str, Any]

    @classmethod
    def make(cls, items: pl.DataFrame, meta: dict[str, Any]) -> Catalogue:
        """From a frame with some of the layout's columns; absent ones become null."""
        meta = complete_meta(meta)
        return cls(conform(items, "items", f"catalogue {meta['name']}"), meta)

    def write(self, folder: Path | str, force: bool = False) -> None:
        """Write `items.parquet` and `log.json`, whole or not at all. Raises KarmafunnelError as
        `write_tables` does.
        """
        write_tables(folder, {"items": self.items}, self.meta, force=force)


def write_tables(
    folder: Path | str,
    tables: dict[str, pl.DataFrame],
    meta: dict[str, Any],
    *,
    force: bool = False,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write tables, `log.json` and what `also` adds to the folder: all of it or nothing.

    Raises KarmafunnelError where the folder is something else than a log, or (without `force`) a
    log of another name or source.
    """
    wants = {key: meta.get(key) for key in ("name", "source", "sample")}
    with claim(folder, "write", LOG, wants=wants, force=force), atomic_folder(folder) as temporary:
        for name, frame in tables.items():
            write_parquet(temporary / f"{name}.parquet", frame, compression="zstd", statistics=True)
        write_json(temporary / "log.json", meta | contents(temporary, tables))
        seal(temporary, "log.json")
        if also is not None:
            also(temporary)


def contents(folder: Path, tables: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`counts` and `checksums` of the tables of a log folder, as its `log.json` has them."""
    paths = {name: folder / f"{name}.parquet" for name in tables}
    counts = {
        name: int(open_table(path).select(pl.len()).collect().item())
        for name, path in paths.items()
    }
    return {"counts": counts, "checksums": {path.name: sha256(path) for path in paths.values()}}


def seal_log(folder: Path | str) -> list[str]:
    """Write counts and checksums into the `log.json` of a log that was changed on purpose, and its
    digest; returns what was not as it said, in lines.

    Raises KarmafunnelError naming the file that is missing or cannot be read.
    """
    folder = Path(folder)
    meta = read_json(folder / "log.json") if (folder / "log.json").is_file() else read_meta(folder)
    if isinstance(meta, dict):
        complete_meta({k: v for k, v in meta.items() if k not in ("counts", "checksums")})
    else:
        complete_meta(meta)
    found = contents(folder, TABLES if (folder / "requests.parquet").exists() else ("items",))
    changed = []
    for key, now in found.items():
        before: dict[str, Any] = told if isinstance(told := meta.get(key), dict) else {}
        for name in dict.fromkeys([*before, *now]):
            if before.get(name) != now.get(name):
                changed.append(f"{key}: {name}: {before.get(name)} -> {now.get(name)}")
    if changed:
        write_json(folder / "log.json", meta | found)
    elif (wrong := fault(folder, "log.json")) is not None:
        changed = [wrong]
    if changed:
        seal(folder, "log.json")
    return changed


def scan(path: Path, table: str) -> pl.LazyFrame:
    """Lazy reading of one table; raises KarmafunnelError naming the file for what is missing,
    truncated or mistyped.
    """
    frame = open_table(path)
    found = frame.collect_schema()
    missing = [name for name in TABLES[table] if name not in found]
    if missing:
        raise KarmafunnelError(f"{path}: needs columns {list(TABLES[table])}, missing {missing}")
    wrong, casts = [], []
    for name, dtype in expected(table).items():
        if name in found and not same_type(found[name], dtype):
            wrong.append(f"{name} {found[name]} (needs {dtype})")
        elif name in found and found[name] != dtype:  # all null
            casts.append(pl.col(name).cast(dtype))
    if wrong:
        raise KarmafunnelError(f"{path}: wrong column types: {', '.join(wrong)}")
    return frame.with_columns(casts)


def checksum_of(path: Path, meta: dict[str, Any], anyway: bool = False) -> str:
    """SHA-256 of a table of a log; raises KarmafunnelError naming the file where `log.json` says
    another (or, with `anyway`, says so).
    """
    found, told = sha256(path), meta.get("checksums")
    told = told.get(path.name) if isinstance(told, dict) else None
    if told is None:
        say(
            f"{path.parent / 'log.json'}: has no checksum of {path.name}, "
            "so damage to it would not be noticed"
        )
    elif told != found:
        with _told(anyway):
            raise KarmafunnelError(
                path,
                needs="the bytes whose checksum stands in log.json",
                found="others: it is damaged, or was changed since",
                hint=f"{meant(path.parent)}",
            )
    return found


def meant(folder: Path) -> str:
    return f"where that was meant, run karmafunnel validate --seal {folder}"


@contextmanager
def _told(anyway: bool) -> Iterator[None]:
    """With `anyway`, what is refused inside is only told."""
    try:
        yield
    except KarmafunnelError as error:
        if not anyway:
            raise
        say(f"{error}; read all the same")


def read(folder: Path | str, *, anyway: bool = False) -> Log | Catalogue:
    """A Log, or a Catalogue where the folder holds `items.parquet` alone. Raises KarmafunnelError
    as `Log.open` does.
    """
    folder = Path(folder)
    if (folder / "requests.parquet").exists() or (folder / "exposures.parquet").exists():
        return Log.open(folder, anyway=anyway)
    meta = read_meta(folder, anyway)
    items = scan(folder / "items.parquet", "items")
    checksum_of(folder / "items.parquet", meta, anyway)
    return Catalogue(items.collect(), meta)


def read_meta(folder: Path, anyway: bool = False) -> dict[str, Any]:
    """`log.json`, with defaults for what it does not say; raises KarmafunnelError naming the key at
    fault, or a file of other bytes.
    """
    settle(folder)
    path = folder / "log.json"
    if not path.is_file():
        found = sorted(os.listdir(folder)) if folder.is_dir() else "no folder"
        raise KarmafunnelError(folder, needs="a log folder with log.json", found=found)
    meta = complete_meta(read_json(path), str(path))
    with _told(anyway):
        check(folder, "log.json", help=meant(folder))
    return meta


@dataclass(frozen=True, eq=False)
class Log:
    """Three immutable tables and `log.json`; read lazily, collected on first use.

    Everything derived is a NumPy array of row numbers: `t` (n_requests,) int64, ms since 1970 or
    the order itself.
    """

    lazy: dict[str, pl.LazyFrame]
    meta: dict[str, Any]
    path: Path | None = None
    anyway: bool = False

    @classmethod
    def open(cls, folder: Path | str, *, anyway: bool = False) -> Log:
        """Open a log folder without reading its rows; raises KarmafunnelError naming the file at
        fault.

        `anyway`: to look at it, files whose checksum is another are read all the same, and a line
        says so.
        """
        folder = Path(folder)
        meta = read_meta(folder, anyway)
        lazy = {name: scan(folder / f"{name}.parquet", name) for name in TABLES}
        return cls(lazy, meta, folder, anyway)

    @classmethod
    def make(
        cls,
        items: pl.DataFrame,
        requests: pl.DataFrame,
        exposures: pl.DataFrame,
        meta: dict[str, Any],
    ) -> Log:
        """From frames with some of the layout's columns: absent ones become null, requests are put
        in time order, windows cut.
        """
        meta = complete_meta(meta)
        who = f"log {meta['name']}"
        items, requests = conform(items, "items", who), conform(requests, "requests", who)
        exposures = conform(exposures, "exposures", who)
        if requests.height == 0:
            raise KarmafunnelError(who, needs="at least one request", found="none")
        if meta["time"] == "clock":
            if requests["ts"].null_count():
                raise KarmafunnelError(
                    f"{who}: time is 'clock' but {requests['ts'].null_count()} requests have no ts"
                )
            requests = requests.sort("ts", maintain_order=True)
        if requests["window"].null_count() == requests.height:
            if meta["time"] == "order":
                raise KarmafunnelError(
                    who,
                    what="a log that knows only an order",
                    needs="the publisher's windows",
                    found="none",
                )
            window = assign_windows(requests["ts"], requests["source"].is_in(meta["scenario"]))
            requests = requests.with_columns(window.alias("window"))
        tables = {"items": items, "requests": requests, "exposures": exposures}
        return cls({name: frame.lazy() for name, frame in tables.items()}, meta)

    @property
    def tables(self) -> dict[str, pl.DataFrame]:
        return {"items": self.items, "requests": self.requests, "exposures": self.exposures}

    def write(self, folder: Path | str, force: bool = False) -> None:
        """Write the four files, whole or not at all. Raises KarmafunnelError as `write_tables`
        does.
        """
        write_tables(folder, self.tables, self.meta, force=force)

    def sample(self, share: float, seed: int = 0) -> Log:
        """The log of a share of its users, each with all of their requests, in the windows they
        have; every item stays.

        What is eligible for a request, and which items are cold, stays, too: each item carries when
        the whole log knew it (`available_from`; where time is an order, `available_after`: after
        how many of the sampled requests) and how often it was a target in W1 (`w1_click`,
        `w1_purchase`). A user is drawn by a seeded hash of the id alone, so a smaller share of one
        seed lies inside a larger one. Requests without a user are left out and counted in
        `set_aside`. Raises KarmafunnelError for a log without users, a share outside (0, 1], or a
        share that draws nobody.
        """
        if not self.has("users"):
            raise KarmafunnelError(
                "sample",
                needs="a log that knows its users",
                found=f"{self.name}, whose log.json says it does not",
            )
        check_bound("sample", "users_share", users=share)
        check_seed("sample", seed)
        users = self.requests["user_id"].drop_nulls().unique(maintain_order=True)
        drawn = users.filter((hash_ids(users.to_numpy(), seed) >> np.uint64(11)) * 2.0**-53 < share)
        if drawn.len() == 0:
            raise KarmafunnelError(
                "sample",
                needs="a share that draws a user",
                found=f"{share:g} of the {users.len()} of {self.name}",
            )
        requests = self.requests.filter(pl.col("user_id").is_in(drawn.implode()))
        exposures = self.exposures.join(
            requests.select("request_id"), on="request_id", how="semi", maintain_order="left"
        )
        without = self.requests["user_id"].null_count()
        aside = self.meta["set_aside"] | ({"requests without a user": without} if without else {})
        drawn_from = {
            "log": self.name,
            "whole": self.whole,
            "checksum": self.checksum,
            "share": share,
            "seed": seed,
        }
        meta = self.meta | {
            "name": f"{self.name}-{share:g}",
            "set_aside": aside,
            "sample": drawn_from,
        }
        kept = self.requests["user_id"].is_in(drawn.implode()).fill_null(False).to_numpy()
        whole = self
        if without:
            own = pl.coalesce("user_id", pl.lit("\x00") + pl.col("request_id")).alias("user_id")
            whole = Log.make(self.items, self.requests.with_columns(own), self.exposures, self.meta)
        items = self.items.with_columns(whole._of_the_whole(self.t[kept]))
        return Log.make(items, requests, exposures, meta)

    def _of_the_whole(self, t: np.ndarray) -> list[pl.Series]:
        """What the items keep of the whole log in the log of the requests of these times; null
        where it says nothing of an item.
        """
        known = self.asof.known_t
        sure = pl.Series((known > NEVER) & (known < np.iinfo(np.int64).max))
        if self.meta["time"] == "order":
            when, name = pl.Series(np.searchsorted(t, known, side="right")), "available_after"
        else:
            clock = pl.Series(np.where(sure, known, 0)).cast(pl.Datetime("ms"))
            when, name = clock.dt.replace_time_zone("UTC"), "available_from"
        columns = []
        if sure.any():
            columns.append(pl.select(pl.when(sure).then(when)).to_series().alias(name))
        labels = [label for label, what in LABELS.items() if self.has(what)]
        return columns + [pl.Series(f"w1_{label}", self.targets_of_w1(label)) for label in labels]

    # -- the tables --------------------------------------------------------------------------------

    @cached_property
    def _checksums(self) -> dict[str, str]:
        """Of the files, as they are read."""
        return {}

    def _checksum(self, name: str) -> str:
        """SHA-256 of a table's file; raises KarmafunnelError naming the one that is not as
        `log.json` says.
        """
        assert self.path is not None
        if name not in self._checksums:
            self._checksums[name] = checksum_of(
                self.path / f"{name}.parquet", self.meta, self.anyway
            )
        return self._checksums[name]

    def _collect(self, name: str) -> pl.DataFrame:
        if self.path is not None:
            self._checksum(name)
        try:
            return self.lazy[name].collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            where = self.path / f"{name}.parquet" if self.path else name
            raise KarmafunnelError(where, needs="a readable Parquet table", found=error) from error

    @cached_property
    def items(self) -> pl.DataFrame:
        return self._collect("items")

    @cached_property
    def requests(self) -> pl.DataFrame:
        frame = self._collect("requests")
        if frame.height == 0:
            raise KarmafunnelError(self.name, needs="at least one request", found="an empty table")
        return frame

    @cached_property
    def exposures(self) -> pl.DataFrame:
        return self._collect("exposures")

    @property
    def name(self) -> str:
        return str(self.meta["name"])

    @property
    def whole(self) -> str:
        """The name of the log that this one was sampled from in the first place; its own, where it
        was not.
        """
        sample = self.meta.get("sample") or {}
        return str(sample.get("whole", sample.get("log", self.name)))

    def has(self, what: str) -> bool:
        """Whether the source holds this (`text`, `query`, `price`, `exposures`, ...), as `log.json`
        says.
        """
        return bool(self.meta["has"][what])

    @cached_property
    def checksum(self) -> str:
        """One hash of the three tables (of the files where the log lies on disk, else of the rows)
        and of how they are read.
        """
        if self.path is not None:
            parts = [self._checksum(name) for name in TABLES]
        else:
            parts = [str(getattr(self, name).hash_rows(seed=0).sum()) for name in TABLES]
        how = {key: self.meta[key] for key in ("time", "scenario", "catalogue", "has")}
        parts.append(json.dumps(how, sort_keys=True))
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

    # -- row numbers -------------------------------------------------------------------------------

    @cached_property
    def n_items(self) -> int:
        return self.items.height

    @cached_property
    def item_ids(self) -> np.ndarray:
        return self.items["item_id"].to_numpy()

    @cached_property
    def request_ids(self) -> np.ndarray:
        return self.requests["request_id"].to_numpy()

    @cached_property
    def t(self) -> np.ndarray:
        """Time of every request, int64: ms since 1970 (UTC), or the row number in a log that knows
        only an order.
        """
        if self.meta["time"] == "order":
            return np.arange(self.requests.height, dtype=np.int64)
        ts = self.requests["ts"]
        if nulls := ts.null_count():
            raise KarmafunnelError(
                f"{self.name}: requests.parquet: ts needs a time, {nulls} rows have none"
            )
        t = ts.dt.epoch("ms").to_numpy().astype(np.int64)
        if (np.diff(t) < 0).any():
            row = int(np.flatnonzero(np.diff(t) < 0)[0]) + 1
            raise KarmafunnelError(
                f"{self.name}: requests must stand in time order; row {row} runs backwards"
            )
        return t

    @cached_property
    def user(self) -> np.ndarray:
        """User number of every request, int32."""
        return self.requests["user_id"].rank("dense").to_numpy().astype(np.int32) - 1

    @cached_property
    def session(self) -> np.ndarray:
        """Session number of every request, int32; a request without a session is one of its own."""
        own = pl.lit("\x00") + pl.col("request_id")
        sessions = self.requests.select(pl.coalesce("session_id", own))
        return sessions.to_series().rank("dense").to_numpy().astype(np.int32) - 1

    @cached_property
    def in_scenario(self) -> np.ndarray:
        return self.requests["source"].is_in(self.meta["scenario"]).to_numpy()

    def requests_in(self, *windows: str) -> np.ndarray:
        """Row numbers of the scenario's requests in these windows, in time order; "W2" stands for
        W2a and W2b.
        """
        wanted = set(windows)
        if "W2" in wanted:
            wanted = wanted - {"W2"} | {"W2a", "W2b"}
        inside = self.requests["window"].is_in(sorted(wanted)).fill_null(False).to_numpy()
        return np.flatnonzero(inside & self.in_scenario)

    def end_of(self, window: str) -> int:
        """The first time that no longer belongs to the window or any before it."""
        position = np.array([WINDOWS.index(w) for w in self.requests["window"].to_list()])
        later = np.flatnonzero(position > WINDOWS.index(window))
        return int(self.t[later[0]]) if len(later) else int(self.t[-1]) + 1

    @cached_property
    def rows(self) -> pl.DataFrame:
        """Every row of exposures by row numbers: request, item, user, t, position, clicked,
        purchased, prices, quantity; in time order.
        """
        self._check_rows()
        items = self.items.select("item_id").with_row_index("item")
        requests = self.requests.select("request_id").with_row_index("request")
        requests = requests.with_columns(pl.Series("user", self.user), pl.Series("t", self.t))
        columns = ["position", "clicked", "purchased", "price_shown", "price_paid", "quantity"]
        frame = (
            self.exposures.select("request_id", "item_id", *columns)
            .join(requests, on="request_id", how="left", maintain_order="left")
            .join(items, on="item_id", how="left", maintain_order="left")
        )
        for key in ("request", "item"):
            if bad := frame[key].null_count():
                example = frame.filter(pl.col(key).is_null())[f"{key}_id"][0]
                raise KarmafunnelError(
                    f"{self.name}: exposures: {bad} rows name an unknown {key}_id, e.g. {example!r}"
                )
        request, item = pl.col("request").cast(pl.Int64), pl.col("item").cast(pl.Int32)
        frame = frame.select(request, item, "user", "t", *columns)
        return frame.sort("t", "request", maintain_order=True)

    def _check_rows(self) -> None:
        """Raise KarmafunnelError where rows have no number of their own; all else that would change
        a figure: `checks.require`.
        """
        for name, key in (("items", "item_id"), ("requests", "request_id")):
            ids = getattr(self, name)[key]
            if ids.is_duplicated().any() or ids.null_count():
                bad = ids.filter(ids.is_duplicated() | ids.is_null())[0]
                raise KarmafunnelError(
                    f"{self.name}: {name}.parquet",
                    what=key,
                    needs="to be unique",
                    found=f"{bad!r} more than once or null",
                )
        for column in ("user_id", "window"):
            if nulls := self.requests[column].null_count():
                raise KarmafunnelError(
                    f"{self.name}: requests.parquet: {column} needs a value, {nulls} rows have none"
                )

    @cached_property
    def events(self) -> pl.DataFrame:
        """The rows that were clicked or purchased, in time order."""
        clicked, purchased = pl.col("clicked"), pl.col("purchased")
        return self.rows.filter(clicked.fill_null(False) | purchased.fill_null(False))

    def truth(self, label: str) -> pl.DataFrame:
        """Truth of every request: request, item, quantity, money (price x quantity; the shown price
        for a click); one row an item.

        Raises KarmafunnelError for a label that the log does not hold.
        """
        if label not in LABELS:
            raise KarmafunnelError("label", needs="'click' or 'purchase'", found=repr(label))
        if not self.has(LABELS[label]):
            raise KarmafunnelError(f"label {label!r}: log {self.name} has no {LABELS[label]}")
        if label == "purchase":
            rows = self.events.filter(pl.col("purchased").fill_null(False))
            quantity = pl.col("quantity").fill_null(1)
            price = pl.coalesce("price_paid", "price_shown")
        else:
            rows = self.events.filter(pl.col("clicked").fill_null(False))
            quantity, price = pl.lit(1), pl.coalesce("price_shown", "price_paid")
        money = (price * quantity).alias("money")
        rows = rows.select("request", "item", quantity.alias("quantity"), money)
        whole = pl.when(pl.col("money").null_count() == 0).then(pl.col("money").sum())
        return rows.group_by("request", "item", maintain_order=True).agg(
            pl.col("quantity").sum(), whole.alias("money")
        )

    def targets_of_w1(self, label: str) -> np.ndarray:
        """How often each item was a target in W1, by which it is cold, tail or head: (n_items,)
        int64; in a sample, of the whole log.

        Raises KarmafunnelError as `truth` does.
        """
        if f"w1_{label}" in self.items.columns:
            return self.items[f"w1_{label}"].fill_null(0).to_numpy()
        truth = self.truth(label)
        mine = truth.filter(self.requests["window"].gather(truth["request"]) == "W1")
        return np.bincount(mine["item"].to_numpy(), minlength=self.n_items)

    def item_text(self) -> list[str]:
        """One text an item: title, brand, category, attributes, description; empty where there is
        none.
        """
        parts = [pl.col("title"), pl.col("brand")]
        parts += [pl.col(name).list.join(" ") for name in ("category", "attributes")]
        if "description" in self.items.columns:
            parts.append(pl.col("description").cast(pl.String))
        text = pl.concat_str(parts, separator=" ", ignore_nulls=True)
        return self.items.select(text).to_series().to_list()

    @cached_property
    def asof(self) -> AsOf:
        """What was known before each request."""
        return AsOf(self)


def rows_of(frame: pl.DataFrame, requests: np.ndarray) -> pl.DataFrame:
    """The rows of some requests out of a frame that is sorted by `request`: without a look at the
    others.
    """
    column = frame["request"].to_numpy()
    start = np.searchsorted(column, requests)
    sizes = np.searchsorted(column, requests, side="right") - start
    return frame[np.repeat(start - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())]
