"""A Run on disk, read lazily: slates, requests, ledger, scored, timing and `run.json` (layout:
`docs/reference/run.md`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from ...bounds import BOUNDS, SEED, Bound
from ...errors import KarmafunnelError, quoted
from ...files import check, open_table, read_json, settle
from ...layout import CAPABILITIES, WINDOWS
from ...shapes import ANY, FLAG, NAME, PATH, TEXT, by_name, check_keys, each, maybe, number, one_of

# Columns that every table has; those of the stages come on top.
COLUMNS = {
    "slates": ("request_id", "stage", "item_id", "rank", "score", "channel"),
    "requests": (
        "request_id",
        "user_id",
        "n_truth",
        "n_eligible",
        "n_truth_eligible",
        "has_query",
        "new_user",
    ),
    "ledger": (
        "request_id",
        "item_id",
        "money",
        "quantity",
        "eligible",
        "target",
        "repeat",
        "price_band",
        "lost",
        "margin",
    ),
    "scored": ("request_id", "item_id", "position", "clicked", "purchased", "eligible"),
    "timing": ("chunk", "stage", "requests", "rows_in", "rows_out", "seconds"),
}
OF_A_STAGE = {"requests": ("n", "out"), "ledger": ("rank", "wins"), "scored": ("score",)}
# `run.json`, key by key, and of its parts.
META = {
    "label": one_of("click", "purchase"),
    "seed": number(SEED),
    "log": by_name(ANY),
    "window": one_of(*WINDOWS, "W2"),
    "stages": each(by_name(ANY)),
}
MORE = {
    **dict.fromkeys(
        ("recipe", "recipe_name", "row", "funnel", "commit", "device", "command", "path"),
        maybe(TEXT),
    ),
    **dict.fromkeys(("embedders", "versions"), maybe(by_name(TEXT))),
    "limit": maybe(number(BOUNDS["limit"])),
    "stale_minutes": maybe(by_name(number(BOUNDS["stale_minutes"]))),
}
OF_THE_LOG = {"name": TEXT, "has": by_name(FLAG)}
MORE_OF_THE_LOG = {
    **dict.fromkeys(("checksum", "currency", "catalogue"), maybe(TEXT)),
    "path": maybe(PATH),
    "items": maybe(number(Bound(0, 2**31 - 1))),
    "world": maybe(by_name(ANY)),
    "stages": each(TEXT),
}
STAGE, MORE_OF_A_STAGE = (
    {"name": NAME, "k": number(BOUNDS["k"])},
    {"kind": TEXT, "text": TEXT, "channels": each(TEXT), "policy": TEXT},
)


def _table(name: str) -> property:
    """A table of a Run, read when it is asked for."""

    def read(self: Run) -> pl.DataFrame:
        return self.read(name)

    return property(read, doc=f"{name}.parquet, read now.")


@dataclass(frozen=True, eq=False)
class Run:
    """One replay of one funnel on one log. `lazy` holds the five tables unread, `meta` is
    `run.json`. `slates`, `requests`, `ledger`, `scored` and `timing` are read when asked for.
    """

    path: Path
    meta: dict[str, Any]
    lazy: dict[str, pl.LazyFrame]

    slates, requests, ledger, scored, timing = (_table(name) for name in COLUMNS)

    def __repr__(self) -> str:
        log, window = self.meta["log"], self.meta["window"]
        requests = self.lazy["requests"].select(pl.len()).collect().item()
        stages = " >> ".join(f"{stage} {self.k(stage):,}" for stage in self.stages)
        return (
            f"Run {self.name}: {stages}\n"
            f"log {log['name']}, {requests:,} requests of {window}, label {self.label}, seed "
            f"{self.meta['seed']}; tables {', '.join(COLUMNS)}"
        )

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Open a Run folder without reading its rows.

        Raises KarmafunnelError naming the file: for a folder that is no Run, a file that is not as
        it was written, a table that is missing, cut short or lacks columns.
        """
        folder = Path(folder)
        settle(folder)
        path = folder / "run.json"
        if not path.is_file():
            found = sorted(os.listdir(folder))[:10] if folder.is_dir() else "no such folder"
            raise KarmafunnelError(folder, needs="a Run folder with run.json", found=found)
        check(folder)
        meta = described(path, read_json(path))
        stages = [stage["name"] for stage in meta["stages"]]
        return cls(
            folder,
            meta,
            {name: _scan(folder / f"{name}.parquet", name, stages) for name in COLUMNS},
        )

    def read(self, table: str, *columns: str | pl.Expr) -> pl.DataFrame:
        """Some columns (or expressions) of a table, read now; raises KarmafunnelError naming the
        file that cannot be read.
        """
        try:
            return (self.lazy[table].select(*columns) if columns else self.lazy[table]).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise KarmafunnelError(
                f"{self.path / table}.parquet", needs="a readable table", found=error
            ) from error

    def only(self, request_ids: pl.Series) -> Run:
        """The same Run as if these requests alone had been replayed."""
        lazy = {}
        for table, frame in self.lazy.items():
            if "request_id" in frame.collect_schema().names():
                frame = frame.filter(pl.col("request_id").is_in(request_ids.implode()))
            lazy[table] = frame
        return replace(self, lazy=lazy)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def label(self) -> str:
        """Which items are relevant: those of a "click" or a "purchase"."""
        return str(self.meta["label"])

    @cached_property
    def drawn(self) -> str:
        """What a bootstrap draws: "users"; "topics" where relevance was judged by topic, as in
        TREC; "requests" where no user is known.
        """
        user, request = pl.col("user_id"), pl.col("request_id")
        columns = ((user == request).fill_null(False).all(), user.is_null().all().alias("none"))
        own, none = self.read("requests", *columns).row(0)
        if own and self.meta["log"].get("judged"):
            return "topics"
        return "requests" if none else "users"

    @property
    def relevance(self) -> str:
        """What makes an item relevant, in words: a "click", a "purchase" or a "relevant judgement"
        (`judged` in the log, topic by topic).
        """
        return "relevant judgement" if self.drawn == "topics" else self.label

    @property
    def stages(self) -> list[str]:
        return [stage["name"] for stage in self.meta["stages"]]

    def k(self, stage: str) -> int:
        """How many rows a request a stage puts out at most."""
        return next(int(s["k"]) for s in self.meta["stages"] if s["name"] == stage)

    @cached_property
    def _rows_out(self) -> pl.DataFrame:
        columns = ("request_id", *(f"{stage}.out" for stage in self.stages))
        return self.read("requests", *columns).sort("request_id")

    def rows_out(self, stage: str) -> pl.Series:
        """How many rows a stage put out for each request, in the order of request ids."""
        return self._rows_out[f"{stage}.out"].fill_null(0).clip(upper_bound=self.k(stage))

    def most(self, stage: str) -> int:
        """The most rows that a stage put out for a request: its k, or fewer where there were no
        more.
        """
        return int(self.rows_out(stage).to_numpy().max(initial=0)) or self.k(stage)

    def columns(self, table: str) -> list[str]:
        return self.lazy[table].collect_schema().names()


def common(*runs: Run) -> list[Run]:
    """The Runs over the requests that all of them have; raises KarmafunnelError where there are
    none.
    """
    shared = runs[0].read("requests", "request_id")["request_id"]
    for run in runs[1:]:
        shared = shared.filter(
            shared.is_in(run.read("requests", "request_id")["request_id"].implode())
        )
    if shared.is_empty():
        found = "none in " + ", ".join(run.name for run in runs)
        raise KarmafunnelError("compare", needs="requests that all Runs have", found=found)
    return [run.only(shared) for run in runs]


def described(path: Path, meta: Any) -> dict[str, Any]:
    """`run.json` as it is, with what the log has not said to be absent; raises KarmafunnelError
    naming file and key.
    """
    check_keys(str(path), meta, META, MORE)
    log = check_keys(f"{path}: log", meta["log"], OF_THE_LOG, MORE_OF_THE_LOG)
    names = [
        check_keys(f"{path}: stage {i + 1}", stage, STAGE, MORE_OF_A_STAGE)["name"]
        for i, stage in enumerate(meta["stages"])
    ]
    if not names or len(set(names)) < len(names):
        raise KarmafunnelError(
            path, what="stages", needs="one or more of different names", found=quoted(names)
        )
    return meta | {"log": log | {"has": dict.fromkeys(CAPABILITIES, False) | log["has"]}}


def _scan(path: Path, table: str, stages: list[str]) -> pl.LazyFrame:
    frame = open_table(path)
    found = frame.collect_schema().names()
    needed = [
        *COLUMNS[table],
        *(f"{stage}.{column}" for stage in stages for column in OF_A_STAGE.get(table, ())),
    ]
    if missing := [name for name in needed if name not in found]:
        raise KarmafunnelError(f"{path}: needs columns {needed}, missing {missing}")
    return frame
