"""The Log: items, requests and exposures, cut into windows.

Layout on disk: see `docs/reference/log.md`. Ids are strings on disk; inside, everything is a row
number: item 7 is row 7 of `items`, request 3 is row 3 of `requests`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from .asof import NEVER, AsOf
from .bounds import check_bound, check_fits, check_seed
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
from .layout import (
    TABLES,
    WINDOWS,
    complete_meta,
    conform,
    expected,
    held,
    same_type,
)
from .mapped import LONG, mapped

# labels of relevant items, and the capability that a log needs for each
LABELS = {"click": "clicks", "purchase": "purchases"}


def sha256(path: Path) -> str:
    """Checksum of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_ids(ids: np.ndarray, seed: int) -> np.ndarray:
    """A 64-bit hash of each id, (n,) uint64, the same on every machine."""
    key = seed.to_bytes(8, "little", signed=True)
    digests = (hashlib.blake2b(str(i).encode(), digest_size=8, key=key).digest() for i in ids)
    return np.frombuffer(b"".join(digests), dtype=np.uint64).copy()


def assign_windows(ts: pl.Series, scenario: pl.Series) -> pl.Series:
    """Window of every request by global time: W1, W2 and W3 hold 60, 20 and 20% of the scenario's
    requests.

    The last quarter of W2 is W2b (tuning, early stopping, calibration), the rest W2a. All requests
    of one timestamp share a window.

    Args:
        ts: time of every request.
        scenario: whether each request belongs to the scenario.

    Raises:
        KarmafunnelError: no request belongs to the scenario.
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
        """A catalogue from a frame with some of the layout's columns; absent ones become null."""
        meta = complete_meta(meta)
        return cls(conform(items, "items", f"catalogue {meta['name']}"), meta)

    def write(self, folder: Path | str, force: bool = False) -> None:
        """Write `items.parquet` and `log.json` atomically; raises as `write_tables` does."""
        write_tables(folder, {"items": self.items}, self.meta, force=force)


def write_tables(
    folder: Path | str,
    tables: dict[str, pl.DataFrame],
    meta: dict[str, Any],
    *,
    force: bool = False,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write a log folder atomically: tables, `log.json`, and what `also` adds to the folder.

    Raises:
        KarmafunnelError: the folder holds something other than a log, or (without `force`) a log of
            another name or source.
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
    """`counts` and `checksums` of the tables of a log folder, as in its `log.json`."""
    counts, checksums = {}, {}
    for name in tables:
        path = folder / f"{name}.parquet"
        counts[name] = int(open_table(path).select(pl.len()).collect().item())
        checksums[path.name] = sha256(path)
    return {"counts": counts, "checksums": checksums}


def seal_log(folder: Path | str) -> list[str]:
    """Update counts, checksums and digest in the `log.json` of a log that was changed on purpose.

    Returns:
        What differed, one line each.

    Raises:
        KarmafunnelError: naming the file that is missing or cannot be read.
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
    """Scan one table of a log lazily.

    Raises:
        KarmafunnelError: naming the file, if it is missing, truncated, or lacks a column or has one
            of another type.
    """
    frame = open_table(path)
    found = frame.collect_schema()
    missing = [name for name in TABLES[table] if name not in found]
    if missing:
        needs = f"columns {list(TABLES[table])}"
        raise KarmafunnelError(path, needs=needs, found=f"none named {missing}")
    wrong, casts = [], []
    for name, dtype in expected(table).items():
        if name in found and not same_type(found[name], dtype):
            wrong.append((name, dtype, found[name]))
        elif name in found and found[name] != dtype:  # all null
            casts.append(pl.col(name).cast(dtype))
    if wrong:
        raise KarmafunnelError(
            path,
            what="columns",
            needs=", ".join(f"{name} {dtype}" for name, dtype, _ in wrong),
            found=", ".join(f"{name} {dtype}" for name, _, dtype in wrong),
        )
    return frame.with_columns(casts)


def checksum_of(path: Path, meta: dict[str, Any], anyway: bool = False) -> str:
    """SHA-256 of a table of a log.

    Raises:
        KarmafunnelError: naming the file, if `log.json` has another checksum. With `anyway` it is
            only printed on standard error.
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
                hint=meant(path.parent),
            )
    return found


def meant(folder: Path) -> str:
    return f"where that was meant, run karmafunnel validate --seal {folder}"


@contextmanager
def _told(anyway: bool) -> Iterator[None]:
    """With `anyway`, print an error raised inside instead of raising it."""
    try:
        yield
    except KarmafunnelError as error:
        if not anyway:
            raise
        say(f"{error}; read all the same")


def read(folder: Path | str, *, anyway: bool = False) -> Log | Catalogue:
    """Open a Log, or a Catalogue where the folder holds `items.parquet` alone; raises as `Log.open`
    does.
    """
    folder = Path(folder)
    if (folder / "requests.parquet").exists() or (folder / "exposures.parquet").exists():
        return Log.open(folder, anyway=anyway)
    meta = read_meta(folder, anyway)
    items = scan(folder / "items.parquet", "items")
    checksum_of(folder / "items.parquet", meta, anyway)
    return Catalogue(items.collect(), meta)


def read_meta(folder: Path, anyway: bool = False) -> dict[str, Any]:
    """`log.json` with defaults for missing keys; raises KarmafunnelError naming the wrong key, or
    the file if it was changed.
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
    """Three immutable tables and `log.json`, scanned lazily and collected on first use.

    Derived values are NumPy arrays by row number; `t` is (n_requests,) int64, ms since 1970 or
    the order itself.
    """

    lazy: dict[str, pl.LazyFrame]
    meta: dict[str, Any]
    path: Path | None = None
    anyway: bool = False

    def __repr__(self) -> str:
        sizes, windows = [], self.lazy["requests"].group_by("window").len().sort("window")
        for name in TABLES:
            sizes.append(f"{self.lazy[name].select(pl.len()).collect().item():,} {name}")
        parts = [f"{name or 'no window'} {n:,}" for name, n in windows.collect().iter_rows()]
        has, aside = self.meta["has"], []
        for what, many in self.meta["set_aside"].items():
            aside.append(f"{many:,} {what}" if isinstance(many, int | float) else f"{many} {what}")
        return (
            f"Log {self.name}: {', '.join(sizes)}; requests by window: {', '.join(parts)}\n"
            f"label {self.meta['label']}; has {', '.join(name for name in has if has[name])}; "
            f"lacks {', '.join(name for name in has if not has[name]) or 'nothing'}"
            + (f"\nset aside: {', '.join(aside)}" if aside else "")
        )

    @classmethod
    def open(cls, folder: Path | str, *, anyway: bool = False) -> Log:
        """Open a log folder without reading its rows.

        `anyway`: also read files whose checksum differs, with a line on standard error.

        Raises:
            KarmafunnelError: naming the file that is missing, damaged or changed.
        """
        if not isinstance(folder, Path | str):
            raise KarmafunnelError(
                "Log.open", what="folder", needs="a path", found=f"a {type(folder).__name__}"
            )
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
        """A log from frames with some of the layout's columns: absent ones become null, requests
        are sorted by time, and windows are assigned where there are none.

        Without a column of sources all requests are of the scenario; without one of users each
        session is a user of its own.

        Args:
            meta: keys of log.json; `has` and `label` are inferred from the tables by default.

        Raises:
            KarmafunnelError: naming table, row and column of a value that the layout refuses, or a
                misspelt column.
        """
        given, meta = meta, complete_meta(meta)
        who = f"log {meta['name']}"
        columns = list(requests.columns)
        items, requests = conform(items, "items", who), conform(requests, "requests", who)
        exposures = conform(exposures, "exposures", who)
        if requests.height == 0:
            raise KarmafunnelError(who, needs="at least one request", found="none")
        if "has" not in given:
            meta["has"] = held(items, requests, exposures)
        if "label" not in given and meta["has"]["purchases"] and not meta["has"]["clicks"]:
            meta["label"] = "purchase"
        if "user_id" not in columns:
            visitor = pl.format("visitor of {}", pl.coalesce("session_id", "request_id"))
            requests = requests.with_columns(visitor.alias("user_id"))
        if "source" not in columns and meta["scenario"]:
            requests = requests.with_columns(pl.lit(meta["scenario"][0]).alias("source"))
        if meta["time"] == "clock":
            if nulls := requests["ts"].null_count():
                needs = "a ts in every request where time is 'clock'"
                raise KarmafunnelError(who, needs=needs, found=f"{nulls} requests without one")
            requests = requests.sort("ts", maintain_order=True)
        if requests["window"].null_count() == requests.height:
            if meta["time"] == "order":
                raise KarmafunnelError(
                    who,
                    what="a log that knows only an order",
                    needs="the publisher's windows",
                    found="none",
                )
            served = requests["source"].is_in(meta["scenario"]).fill_null(False)
            if not served.any():
                sources = requests["source"].drop_nulls().unique().sort().to_list()
                raise KarmafunnelError(
                    who,
                    what="scenario",
                    needs=f"sources that requests have, such as {sources[:3]}",
                    found=meta["scenario"],
                )
            window = assign_windows(requests["ts"], served)
            requests = requests.with_columns(window.alias("window"))
        tables = {"items": items, "requests": requests, "exposures": exposures}
        return cls({name: frame.lazy() for name, frame in tables.items()}, meta)

    @property
    def tables(self) -> dict[str, pl.DataFrame]:
        return {"items": self.items, "requests": self.requests, "exposures": self.exposures}

    def write(self, folder: Path | str, force: bool = False) -> None:
        """Write the four files atomically; raises as `write_tables` does."""
        write_tables(folder, self.tables, self.meta, force=force)

    def sample(self, share: float, seed: int = 0) -> Log:
        """A log with a share of the users, all of their requests in unchanged windows, and every
        item.

        Eligible items and cold items do not change either: each item carries when the whole log
        knew it (`available_from`; where time is an order, `available_after`: after how many of the
        sampled requests) and how often it was a target in W1 (`w1_click`, `w1_purchase`). Users are
        drawn by a seeded hash of their id, so a smaller share is a subset of a larger one with the
        same seed. Requests without a user are left out and counted in `set_aside`.

        Raises:
            KarmafunnelError: the log has no users, the share lies outside (0, 1], or it draws no
                user.
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
        mine = requests.lazy().select("request_id")
        if self.path is not None:
            self._checksum("exposures")
        exposures = (
            self.lazy["exposures"]
            .join(mine, on="request_id", how="semi", maintain_order="left")
            .collect(engine="streaming")
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
        """Columns by which the items of a sample remember the whole log: when each was known, and
        how often it was a target in W1. `t`: times of the sample's requests.
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
        """Checksums of the files read so far, by table."""
        return {}

    def _checksum(self, name: str) -> str:
        """SHA-256 of a table's file; raises KarmafunnelError naming a file that was changed."""
        assert self.path is not None
        if name not in self._checksums:
            self._checksums[name] = checksum_of(
                self.path / f"{name}.parquet", self.meta, self.anyway
            )
        return self._checksums[name]

    def _collect(self, name: str) -> pl.DataFrame:
        if self.path is not None:
            self._checksum(name)
            path = self.path / f"{name}.parquet"
            hint = f"a share of the users may fit: karmafunnel sample {self.path} SMALLER"
            check_fits(f"log {self.name}", {f"the table {name}": held_bytes(path)}, hint)
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
        """The name of the log that this one was first sampled from; its own if it is no sample."""
        sample = self.meta.get("sample") or {}
        return str(sample.get("whole", sample.get("log", self.name)))

    def has(self, what: str) -> bool:
        """Whether `log.json` claims a capability (`text`, `query`, `price`, `exposures`, ...)."""
        return bool(self.meta["has"][what])

    @cached_property
    def checksum(self) -> str:
        """One hash of the three tables (of their files, or of the rows of a log in memory) and of
        the keys of `log.json` that change how they are read.
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
        """Time of every request, (n_requests,) int64: ms since 1970 (UTC), or the row number if
        time is an order.
        """
        if self.meta["time"] == "order":
            return np.arange(self.requests.height, dtype=np.int64)
        ts = self.requests["ts"]
        who = f"{self.name}: requests.parquet"
        if nulls := ts.null_count():
            found = f"{nulls} rows without one"
            raise KarmafunnelError(who, what="ts", needs="a time in every row", found=found)
        t = ts.dt.epoch("ms").to_numpy().astype(np.int64)
        backwards = np.flatnonzero(np.diff(t) < 0)
        if len(backwards):
            found = f"an earlier time in row {backwards[0] + 1}"
            raise KarmafunnelError(who, needs="requests in time order", found=found)
        return t

    @cached_property
    def user(self) -> np.ndarray:
        """User number of every request, (n_requests,) int32."""
        return self.requests["user_id"].rank("dense").to_numpy().astype(np.int32) - 1

    @cached_property
    def session(self) -> np.ndarray:
        """Session number of every request, (n_requests,) int32; a request without a session is a
        session of its own.
        """
        own = pl.lit("\x00") + pl.col("request_id")
        sessions = self.requests.select(pl.coalesce("session_id", own))
        return sessions.to_series().rank("dense").to_numpy().astype(np.int32) - 1

    @cached_property
    def in_scenario(self) -> np.ndarray:
        return self.requests["source"].is_in(self.meta["scenario"]).to_numpy()

    def requests_in(self, *windows: str) -> np.ndarray:
        """Row numbers of the scenario's requests in these windows, in time order; "W2" is W2a and
        W2b.
        """
        wanted = set(windows)
        if "W2" in wanted:
            wanted = wanted - {"W2"} | {"W2a", "W2b"}
        inside = self.requests["window"].is_in(sorted(wanted)).fill_null(False).to_numpy()
        return np.flatnonzero(inside & self.in_scenario)

    def end_of(self, window: str) -> int:
        """The first time after a window."""
        position = np.array([WINDOWS.index(w) for w in self.requests["window"].to_list()])
        later = np.flatnonzero(position > WINDOWS.index(window))
        return int(self.t[later[0]]) if len(later) else int(self.t[-1]) + 1

    @cached_property
    def rows(self) -> pl.DataFrame:
        """Every row of exposures in time order, ids as row numbers: request, item, user, t,
        position, clicked, purchased, prices, quantity; `stage` where log.json tells the stages.
        """
        self._check_rows()
        columns = ["position", "clicked", "purchased", "price_shown", "price_paid", "quantity"]
        columns += ["stage"] if self.meta.get("stages") else []
        keys = ["request_id", "item_id"]
        if self.path is None or self._n_exposures <= LONG:
            frame = self._numbered(self.exposures.select(*keys, *columns))
            return frame.sort("t", "request", maintain_order=True)
        return self._mapped_rows(self.lazy["exposures"].select(*keys, *columns))

    @cached_property
    def _n_exposures(self) -> int:
        return int(self.lazy["exposures"].select(pl.len()).collect().item())

    def _mapped_rows(self, exposures: pl.LazyFrame) -> pl.DataFrame:
        """`rows` of a log on disk, some exposures at a time, in a file mapped into memory."""
        self._checksum("exposures")
        starts = range(0, self._n_exposures, LONG)
        frame = mapped(self._numbered(exposures.slice(n, LONG).collect()) for n in starts)
        request = frame["request"].to_numpy()
        rising, sizes, last = True, np.zeros(len(self.t), dtype=np.int64), 0
        for n in starts:
            part = request[n : n + LONG]
            rising = rising and int(part[0]) >= last and bool((part[1:] >= part[:-1]).all())
            sizes += np.bincount(part, minlength=len(sizes))
            last = int(part[-1])
        if rising:
            return frame
        # exposures of neighbouring requests, about as many at a time
        ends = np.cumsum(sizes)
        cuts = [0, *np.unique(np.searchsorted(ends, starts[1:]) + 1).tolist(), len(sizes)]
        parts = (pl.col("request").is_between(a, b - 1) for a, b in pairwise(cuts))
        in_order = ("t", "request")
        return mapped(frame.filter(p).sort(in_order, maintain_order=True) for p in parts)

    def _numbered(self, exposures: pl.DataFrame) -> pl.DataFrame:
        """Exposures with ids as row numbers; raises KarmafunnelError for an unknown id."""
        columns = exposures.columns[2:]
        frame = exposures.join(
            self._request_numbers, on="request_id", how="left", maintain_order="left"
        ).join(self._item_numbers, on="item_id", how="left", maintain_order="left")
        for key in ("request", "item"):
            if bad := frame[key].null_count():
                example = frame.filter(pl.col(key).is_null())[f"{key}_id"][0]
                raise KarmafunnelError(
                    f"{self.name}: exposures",
                    what=f"{key}_id",
                    needs=f"to be one of {key}s.parquet",
                    found=f"{bad} rows with an unknown one, such as {example!r}",
                )
        request, item = pl.col("request").cast(pl.Int64), pl.col("item").cast(pl.Int32)
        return frame.select(request, item, "user", "t", *columns)

    @property
    def _request_numbers(self) -> pl.DataFrame:
        requests = self.requests.select("request_id").with_row_index("request")
        return requests.with_columns(pl.Series("user", self.user), pl.Series("t", self.t))

    @property
    def _item_numbers(self) -> pl.DataFrame:
        return self.items.select("item_id").with_row_index("item")

    def _check_rows(self) -> None:
        """Raises KarmafunnelError if ids are not unique or users or windows are missing; all other
        checks are in `checks.require`.
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
                    f"{self.name}: requests.parquet",
                    what=column,
                    needs="a value in every row",
                    found=f"{nulls} rows without one",
                )

    @cached_property
    def events(self) -> pl.DataFrame:
        """The rows that were clicked or purchased, in time order."""
        clicked, purchased = pl.col("clicked"), pl.col("purchased")
        return self.rows.filter(clicked.fill_null(False) | purchased.fill_null(False))

    def check_label(self, label: str) -> None:
        """Raise KarmafunnelError for a label that this log does not have."""
        if label not in LABELS:
            raise KarmafunnelError("label", needs="'click' or 'purchase'", found=repr(label))
        if not self.has(LABELS[label]):
            found = f"none in log {self.name}"
            others = [one for one, what in LABELS.items() if self.has(what)]
            hint = f'this log has label = "{others[0]}"' if others else ""
            raise KarmafunnelError(f"label {label!r}", needs=LABELS[label], found=found, hint=hint)

    def one_at_a_time(self) -> bool:
        """Whether every request has at most one relevant item and no list was shown, as in a log of
        ratings or reviews, where each event is a request.
        """
        label = self.meta["label"]
        if self.has("exposures") or label is None:
            return False
        return bool(self.truth(label)["request"].is_unique().all())

    def truth(self, label: str) -> pl.DataFrame:
        """Relevant items of every request, one row each: request, item, quantity, money (price x
        quantity; for a click the price shown).

        Raises:
            KarmafunnelError: the log does not have this label.
        """
        self.check_label(label)
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
        """How often each item was a target in W1, of the whole log if this is a sample: (n_items,)
        int64. Cold, tail and head items are defined by it. Raises as `truth` does.
        """
        if f"w1_{label}" in self.items.columns:
            return self.items[f"w1_{label}"].fill_null(0).to_numpy()
        truth = self.truth(label)
        mine = truth.filter(self.requests["window"].gather(truth["request"]) == "W1")
        return np.bincount(mine["item"].to_numpy(), minlength=self.n_items)

    def item_text(self) -> list[str]:
        """One text per item: title, brand, category, attributes, description; empty without any."""
        parts = [pl.col("title"), pl.col("brand")]
        parts += [pl.col(name).list.join(" ") for name in ("category", "attributes")]
        if "description" in self.items.columns:
            parts.append(pl.col("description").cast(pl.String))
        text = pl.concat_str(parts, separator=" ", ignore_nulls=True)
        blank = text.str.strip_chars() == ""
        return (
            self.items.select(pl.when(blank).then(pl.lit("")).otherwise(text)).to_series().to_list()
        )

    @cached_property
    def asof(self) -> AsOf:
        """The log as it was known before each request."""
        return AsOf(self)

    def forget(self) -> None:
        """Let go of what was counted of the log, which refers to it: a log that nobody holds is
        then freed at once, where it would wait for Python's collector.
        """
        self.__dict__.pop("asof", None)


def held_bytes(path: Path) -> int:
    """About how many bytes a Parquet table takes in memory."""
    table = open_table(path)
    texts = sum(16 for dtype in table.collect_schema().dtypes() if not dtype.is_numeric())
    rows = int(table.select(pl.len()).collect().item())
    numbers = sum(8 for dtype in table.collect_schema().dtypes() if dtype.is_numeric())
    return rows * (texts + numbers) + path.stat().st_size


def rows_of(frame: pl.DataFrame, requests: np.ndarray) -> pl.DataFrame:
    """The rows of some requests out of a frame sorted by `request`, found by binary search."""
    column = frame["request"].to_numpy()
    start = np.searchsorted(column, requests)
    sizes = np.searchsorted(column, requests, side="right") - start
    return frame[np.repeat(start - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())]
