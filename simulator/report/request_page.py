"""A sample of single requests of a Run: query, history, where relevant items were lost, and the top
candidates of each stage.

Requests are drawn at random, with a seed, within each outcome (kept, lost at recall, ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...log import Log
from ..measure.run import Run

TOP = 12  # candidates shown per stage
HISTORY = 12  # events shown per user


def open_log(run: Run) -> tuple[Log | None, str]:
    """The log that a Run replayed, or None and the reason: not found, not readable, or changed
    since.
    """
    path = run.meta["log"].get("path")
    if not path:
        return None, "the Run names no log folder"
    try:
        log = Log.open(path)
        if log.checksum != run.meta["log"].get("checksum"):
            return None, f"the log {log.name} has changed since the replay"
    except (KarmafunnelError, OSError, KeyError):
        return None, "the log folder that the Run names cannot be read here"
    return log, ""


def draw(run: Run, n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Draw n requests, spread evenly over outcomes.

    Returns:
        (request_id, outcome) of each; the outcome is how far its relevant items came.
    """
    order = ["not eligible", "index", *run.stages, "kept"]
    far = (
        pl.col("lost")
        .fill_null("kept")
        .replace_strict(order, list(range(len(order))), return_dtype=pl.Int32)
    )
    frame = (
        run.read("ledger", "request_id", far.alias("far"))
        .group_by("request_id")
        .agg(pl.col("far").max())
        .sort("request_id")
    )
    rng = np.random.default_rng(seed)
    groups = [frame.filter(pl.col("far") == i)["request_id"].to_list() for i in range(len(order))]
    shuffled = [[ids[i] for i in rng.permutation(len(ids))] for ids in groups]
    quota = [0] * len(order)
    while sum(quota) < min(n, frame.height):
        for i in reversed(range(len(order))):
            if quota[i] < len(shuffled[i]) and sum(quota) < n:
                quota[i] += 1
    return [
        (request, order[i])
        for i in reversed(range(len(order)))
        for request in shuffled[i][: quota[i]]
    ]


def look_up(runs: Sequence[Run], names: Sequence[str], n: int = 24) -> dict[str, Any]:
    """The data of the request viewer as JSON-ready values, for `n` requests of the first Run."""
    drawn = draw(runs[0], n)
    ids = [request for request, _ in drawn]
    log, missing = open_log(runs[0])
    base = {
        row["request_id"]: row
        for row in runs[0]
        .lazy["requests"]
        .filter(pl.col("request_id").is_in(ids))
        .collect()
        .iter_rows(named=True)
    }
    by_run = [_of_run(run, ids) for run in runs]
    logged, past = _of_log(log, ids) if log else ({}, {})
    requests = []
    for request_id, outcome in drawn:
        row = base[request_id]
        said = logged.get(request_id, {})
        requests.append(
            {
                "id": request_id,
                "outcome": outcome,
                "user": row["user_id"],
                "new_user": row["new_user"],
                "ts": None if row.get("ts") is None else f"{row['ts']:%Y-%m-%d %H:%M}",
                "eligible": row["n_eligible"],
                "shown": row.get("n_shown"),
                "query": said.get("query"),
                "has_query": row["has_query"],
                "filters": said.get("filters") or [],
                "context": said.get("context") or [],
                "source": said.get("source"),
                "history": past.get(request_id),
                "runs": [found.get(request_id) for found in by_run],
            }
        )
    items = {event["item"] for r in requests for event in r["history"] or []}
    for one in (one for r in requests for one in r["runs"] if one):
        items |= {entry["item"] for entry in (*one["truth"], *one["rows"])}
    return {
        "names": list(names),
        "stages": [[{"name": s["name"], "k": s["k"]} for s in run.meta["stages"]] for run in runs],
        "label": runs[0].label,
        "currency": runs[0].meta["log"].get("currency"),
        "missing": missing,
        "items": _titles(log, sorted(items)) if log else {},
        "requests": requests,
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.4g}")


def _of_run(run: Run, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The outcomes of each request's relevant items, and the top candidates of each stage with
    their ranks in all stages.
    """
    mine = pl.col("request_id").is_in(list(ids))
    found: dict[str, dict[str, Any]] = {}
    for row in run.lazy["requests"].filter(mine).collect().iter_rows(named=True):
        found[row["request_id"]] = {
            "n": [row[f"{s}.n"] for s in run.stages],
            "out": [row[f"{s}.out"] for s in run.stages],
            "reads": {
                c.removesuffix(".reads"): row[c] for c in row if c.endswith(".reads") and row[c]
            },
            "truth": [],
            "rows": [],
        }
    scored = (
        run.lazy["scored"]
        .filter(mine)
        .unique(["request_id", "item_id"], keep="first", maintain_order=True)
        .collect()
    )
    logged = {(row["request_id"], row["item_id"]): row for row in scored.iter_rows(named=True)}
    for row in run.lazy["ledger"].filter(mine).collect().iter_rows(named=True):
        would = logged.get((row["request_id"], row["item_id"]), {})
        found[row["request_id"]]["truth"].append(
            {
                "item": row["item_id"],
                "money": None if row["money"] is None else round(row["money"], 2),
                "quantity": row["quantity"],
                "target": row["target"],
                "repeat": row["repeat"],
                "lost": row["lost"],
                "margin": row["margin"],
                "margin_score": _number(row.get("margin_score")),
                "position": would.get("position"),
                "ranks": [row[f"{s}.rank"] for s in run.stages],
                "would": [would.get(f"{s}.rank") for s in run.stages],
                "scores": [
                    _number(row[f"{s}.score"]) if f"{s}.score" in row else None for s in run.stages
                ],
            }
        )
    slates = run.lazy["slates"].filter(mine).with_columns(pl.col("stage").cast(pl.String))
    best = slates.filter(pl.col("rank") <= TOP).select("request_id", "item_id").unique()
    places = {stage: i for i, stage in enumerate(run.stages)}
    depth = pl.col("stage").replace_strict(places, return_dtype=pl.Int64)
    # Items with the same rank in several stages are in the order of the funnel.
    frame = (
        slates.join(best, on=["request_id", "item_id"], how="semi")
        .sort("request_id", "rank", depth, "item_id")
        .collect()
    )
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in frame.iter_rows(named=True):
        key = (row["request_id"], row["item_id"])
        if key not in rows:
            seen = logged.get(key, {})
            empty: list[Any] = [None] * len(places)
            rows[key] = {
                "item": row["item_id"],
                "channel": row["channel"],
                "ranks": empty,
                "scores": [*empty],
                "position": seen.get("position"),
            }
            found[row["request_id"]]["rows"].append(rows[key])
        at = places[row["stage"]]
        rows[key]["ranks"][at], rows[key]["scores"][at] = row["rank"], _number(row["score"])
    return found


def _of_log(
    log: Log, ids: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """The requests' rows of the log and their users' histories, read from the part of the log with
    these users.
    """
    users = (
        log.lazy["requests"]
        .filter(pl.col("request_id").is_in(list(ids)))
        .select("user_id")
        .collect()["user_id"]
    )
    requests = (
        log.lazy["requests"].filter(pl.col("user_id").is_in(users.unique().to_list())).collect()
    )
    events = pl.col("clicked").fill_null(False) | pl.col("purchased").fill_null(False)
    exposures = (
        log.lazy["exposures"]
        .filter(events)
        .join(requests.lazy().select("request_id"), on="request_id", how="semi")
        .collect()
    )
    part = Log(
        {
            "items": log.lazy["items"].select("item_id"),
            "requests": requests.lazy(),
            "exposures": exposures.lazy(),
        },
        log.meta,
    )
    rows = np.flatnonzero(np.isin(part.request_ids.astype(str), np.array(ids, dtype=str)))
    history = part.asof.history(rows, HISTORY)
    clock = log.meta["time"] == "clock"
    logged, past = {}, {}
    for i, row in enumerate(rows):
        said = requests.row(int(row), named=True)
        logged[said["request_id"]] = {
            name: said[name] for name in ("query", "filters", "context", "source")
        }
        known = np.flatnonzero(history.items[i] >= 0)[::-1]
        past[said["request_id"]] = [
            {
                "item": part.item_ids[history.items[i, j]],
                "action": "purchase" if history.actions[i, j] == 2 else "click",
                "days": round(float(history.ages[i, j]) / 86_400_000, 2) if clock else None,
            }
            for j in known
        ]
    return logged, past


def _titles(log: Log, ids: Sequence[str]) -> dict[str, list[Any]]:
    """Title, brand or category, and list price of each item."""
    kind = pl.coalesce("brand", pl.col("category").list.last())
    frame = (
        log.lazy["items"]
        .filter(pl.col("item_id").is_in(list(ids)))
        .select("item_id", pl.col("title").str.slice(0, 120), kind.alias("kind"), "price")
        .collect()
    )
    return {item: [title, about, _number(price)] for item, title, about, price in frame.iter_rows()}
