"""User Behavior Insights (UBI, https://o19s.github.io/ubi): the queries that a search engine
answered and the events that followed, as a log and as the lists of one stage.

Names are those of version 1.3 of the schema, and those that earlier versions had for the same.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as made_of
from pathlib import Path
from typing import Any

import polars as pl

from ...errors import KarmafunnelError
from ...layout import TS
from ...log import Log, sha256
from .assembling import to_ms
from .column_map import ColumnMap
from .guessing import BUY_WORDS, CLICK_WORDS, guess_time, plain
from .stage_lists import LISTS, Collected, Reading, field, objects, text

HITS = ("query_response_hit_ids", "query_response_object_ids", "query_response_objects_ids")
OBJECT = "event_attributes.object"
CLICKS = (*CLICK_WORDS, "clickthrough", "productclick", "itemclick", "resultclick")
IMPRESSION = "impression"
STAGE = "results"  # what the engine returned
QUERIES: dict[str, Any] = {
    "request_id": pl.String,
    "user_id": pl.String,
    "session_id": pl.String,
    "query": pl.String,
    "time": pl.String,
    "hits": pl.List(pl.String),
}
EVENTS: dict[str, Any] = {
    "request_id": pl.String,
    "item_id": pl.String,
    "internal_id": pl.String,
    "title": pl.String,
    "action": pl.String,
    "position": pl.Int64,
    "session_id": pl.String,
    "user_id": pl.String,
}


@dataclass
class Ubi:
    """Queries and events of UBI files, and sentences about what was made of them."""

    queries: pl.DataFrame
    events: pl.DataFrame
    files: list[Path]
    notes: list[str] = made_of(default_factory=list)

    def lists(self) -> pl.DataFrame:
        """What the engine returned to each query: rows of `LISTS`, each item at its first place."""
        hits = (
            self.queries.select("request_id", item_id="hits")
            .explode("item_id", empty_as_null=True)
            .drop_nulls()
        )
        hits = hits.unique(["request_id", "item_id"], keep="first", maintain_order=True)
        rank = pl.int_range(1, pl.len() + 1).over("request_id").cast(pl.Float64)
        return hits.select(
            "request_id",
            pl.lit(STAGE).alias("stage"),
            "item_id",
            rank.alias("rank"),
            pl.lit(None, pl.Float64).alias("score"),
        ).select(list(LISTS))


def is_ubi(row: dict[str, Any]) -> bool:
    """Whether an object is a query or an event of UBI."""
    query = "query_id" in row and ("user_query" in row or any(name in row for name in HITS))
    return query or "action_name" in row


def read_ubi(paths: Sequence[Path]) -> Ubi:
    """Read queries and events, in any number of files.

    Raises:
        KarmafunnelError: naming file and line of what is neither; where there is no query.
    """
    queries, events, loose = Collected(QUERIES), Collected(EVENTS), 0
    for path in paths:
        for number, row in objects(path):
            if "action_name" in row:
                event = event_of(row)
                if event["request_id"] is None or not (event["item_id"] or event["internal_id"]):
                    loose += 1
                else:
                    events.add(event)
            elif "query_id" in row:
                queries.add(query_of(row, f"{path}: line {number}"))
            else:
                raise KarmafunnelError(
                    f"{path}: line {number}",
                    needs="a UBI query (query_id) or event (action_name)",
                    found=f"keys {', '.join(list(row)[:6])}",
                )
    asked, done = queries.frame(), events.frame()
    if asked.is_empty():
        raise KarmafunnelError(
            "import-run",
            needs="UBI queries with query_id and query_response_hit_ids",
            found=f"{done.height + loose:,} events alone",
            hint="give the file of ubi_queries, too",
        )
    made = Ubi(one_row_a_query(asked), done, list(paths))
    if many := asked.height - made.queries.height:
        made.notes.append(f"{many:,} more pages of the same queries: their lists were joined")
    if loose:
        made.notes.append(f"{loose:,} events name no query or no object: not used")
    known = made.events["request_id"].is_in(made.queries["request_id"].implode())
    if stray := int((~known).sum()):
        made.notes.append(f"{stray:,} events name a query that is not among the queries: not used")
        made.events = made.events.filter(known)
    made.events = with_item_ids(made)
    return made


def query_of(row: dict[str, Any], here: str) -> dict[str, Any]:
    """A query with the names of the log."""
    name = next((one for one in HITS if row.get(one) is not None), None)
    hits = row[name] if name else []
    if not isinstance(hits, list) or not all(isinstance(hit, str | int) for hit in hits):
        raise KarmafunnelError(here, what=name, needs="a list of ids", found=repr(hits)[:80])
    asked = row.get("user_query")
    return {
        "request_id": text(row["query_id"]),
        "user_id": text(row.get("user_id")) or text(row.get("client_id")),
        "session_id": text(row.get("session_id")),
        "query": json.dumps(asked, sort_keys=True) if isinstance(asked, dict) else text(asked),
        "time": text(row.get("timestamp")),
        "hits": list(map(str, hits)),
    }


def event_of(row: dict[str, Any]) -> dict[str, Any]:
    """An event with the names of the log."""
    place = field(row, "event_attributes.position.ordinal")
    return {
        "request_id": text(row.get("query_id")),
        "item_id": text(field(row, f"{OBJECT}.object_id")),
        "internal_id": text(field(row, f"{OBJECT}.internal_id")),
        "title": text(field(row, f"{OBJECT}.name")),
        "action": str(row["action_name"]),
        "position": int(place) if isinstance(place, int | float) and abs(place) < 2**31 else None,
        "session_id": text(row.get("session_id"))
        or text(field(row, "event_attributes.session_id")),
        "user_id": text(row.get("user_id")) or text(row.get("client_id")),
    }


def one_row_a_query(frame: pl.DataFrame) -> pl.DataFrame:
    """The queries, one row each with its time `ts` (ms, UTC) in the order of time; the lists of
    further pages follow the first.
    """
    if frame["request_id"].null_count():
        raise KarmafunnelError("import-run", needs="a query_id in every UBI query", found="none")
    when = frame["time"]
    ms = pl.repeat(None, frame.height, dtype=pl.Int64, eager=True)
    if when.null_count() < frame.height:
        guessed = guess_time(when)
        if guessed is not None:
            ms = to_ms(when, ColumnMap(time=guessed[0]))
        if ms.null_count():
            bad = frame.filter(ms.is_null()).row(0, named=True)
            raise KarmafunnelError(
                "import-run",
                what="timestamp",
                needs="times as in 2018-11-13T20:20:39Z, or ms since 1970, in every query or none",
                found=f"{bad['time']!r} of query {bad['request_id']}",
            )
    frame = frame.with_columns(ms.alias("ts")).sort("ts", maintain_order=True)
    first = pl.col("user_id", "session_id", "query").drop_nulls().first()
    return frame.group_by("request_id", maintain_order=True).agg(
        first, pl.col("ts").first(), pl.col("hits").explode(empty_as_null=True).drop_nulls()
    )


def with_item_ids(ubi: Ubi) -> pl.DataFrame:
    """The events with ids of the kind that the lists hold: `object_id`, or `internal_id` where only
    those are in the lists.
    """
    events, listed = ubi.events, ubi.lists()
    if events.is_empty() or listed.is_empty():
        return events.with_columns(pl.coalesce("item_id", "internal_id").alias("item_id"))
    ids = listed["item_id"].unique().implode()
    there = {name: int(events[name].is_in(ids).sum()) for name in ("item_id", "internal_id")}
    if not any(there.values()):
        raise KarmafunnelError(
            "import-run",
            needs="events and queries with the same ids of objects",
            found=f"object_id {events['item_id'].drop_nulls().head(1).to_list()} in an event,"
            f" {listed['item_id'][0]!r} in a list",
        )
    if there["internal_id"] > there["item_id"]:
        ubi.notes.append("items are internal_id of the events, which are the ids in the lists")
        return events.with_columns(pl.coalesce("internal_id", "item_id").alias("item_id"))
    return events.with_columns(pl.coalesce("item_id", "internal_id").alias("item_id"))


def log_of_ubi(ubi: Ubi, listed: pl.Series, told: Reading, name: str = "") -> tuple[Log, list[str]]:
    """A log of UBI: queries are requests, lists are those that impressions tell, else those that
    the engine returned.

    Args:
        listed: ids of the items in all lists, which the catalogue holds, too.
        name: of a log to train on, cut into windows by time, whose items are eligible once seen;
            default: one to measure lists by, with all requests in W3 and all items eligible.

    Returns:
        The log, and sentences about what was made of the events.

    Raises:
        KarmafunnelError: without a click or a purchase.
    """
    events, notes = ubi.events, list(ubi.notes)
    names = Counter(events["action"].to_list())
    clicks = told.clicks or tuple(name for name in names if plain(name) in CLICKS)
    buys = told.purchases or tuple(name for name in names if plain(name) in BUY_WORDS)
    seen = tuple(name for name in names if plain(name).startswith(IMPRESSION))
    for what, words in (("clicks", clicks), ("purchases", buys), ("lists shown", seen)):
        if words:
            notes.append(f"{what}: {', '.join(f'{name} ({names[name]:,})' for name in words)}")
    if other := [name for name in names if name not in (*clicks, *buys, *seen)]:
        notes.append(f"not used: {', '.join(f'{name} ({names[name]:,})' for name in other)}")
    if not any(names[name] for name in (*clicks, *buys)):
        raise KarmafunnelError(
            "import-run",
            needs="UBI events that are clicks or purchases of an object of a query",
            found=f"actions {', '.join(names) or 'none'}",
            hint="name them: --click NAME, --purchase NAME",
        )
    exposures, late = exposures_of(ubi, clicks, buys, seen)
    if late:
        notes.append(f"{late:,} items were acted on that their list lacks: put at its end")
    bought, clicked = (bool(exposures[name].any()) for name in ("purchased", "clicked"))
    shown = f"impressions ({', '.join(seen)})" if seen else "the lists returned, taken as shown"
    notes.append(f"lists shown are {shown}")
    notes.append("relevant is what was clicked or bought in these lists: what they lack is unknown")
    requests = requests_of(ubi)
    if name:
        requests = requests.drop("window")
    users = bool(ubi.queries["user_id"].null_count() < ubi.queries.height)
    lacks = ["prices"] if seen else ["prices", "impressions: the lists returned stand in for them"]
    if not users:
        lacks.append("users: every query is one of its own")
    titles = events.drop_nulls("title").unique("item_id", keep="last").select("item_id", "title")
    ids = pl.concat([listed, exposures["item_id"]]).unique().sort().alias("item_id")
    items = pl.DataFrame([ids]).join(titles, on="item_id", how="left", maintain_order="left")
    clock = ubi.queries["ts"].null_count() == 0
    meta = {
        "name": name or "ubi",
        "source": ", ".join(path.name for path in ubi.files),
        "judged": hashlib.sha256("".join(map(sha256, ubi.files)).encode()).hexdigest(),
        "time": "clock" if clock else "order",
        "scenario": ["search"],
        "label": "click" if clicked else "purchase",
        "catalogue": "seen" if name else "published",
        "has": {
            "clicks": clicked,
            "purchases": bought,
            "users": users,
            "exposures": True,
            "query": requests["query"].null_count() < requests.height,
            "text": items["title"].null_count() == 0,
        },
        "lacks": lacks,
    }
    return Log.make(items, requests, exposures, meta), notes


def requests_of(ubi: Ubi) -> pl.DataFrame:
    """The requests of the log; session and user of a query that names none are those of its first
    event.
    """
    told = pl.col("session_id", "user_id").drop_nulls().first().name.prefix("event_")
    events = ubi.events.group_by("request_id", maintain_order=True).agg(told)
    frame = ubi.queries.join(events, on="request_id", how="left", maintain_order="left")
    return frame.select(
        "request_id",
        pl.coalesce("user_id", "event_user_id", "request_id").alias("user_id"),
        pl.col("ts").cast(TS),
        "query",
        pl.coalesce("session_id", "event_session_id").alias("session_id"),
        pl.lit("search").alias("source"),
        pl.lit("W3").alias("window"),
    )


def exposures_of(
    ubi: Ubi, clicks: Sequence[str], buys: Sequence[str], seen: Sequence[str]
) -> tuple[pl.DataFrame, int]:
    """One row per query and item that was shown, clicked or purchased.

    Returns:
        The rows, with positions from 1 in a list shown; and how many items were acted on that their
        list lacks: they come at its end.
    """
    key = ["request_id", "item_id"]
    if seen:
        shown = ubi.events.filter(pl.col("action").is_in(list(seen)))
        shown = shown.select(*key, "position").sort(
            "position", nulls_last=True, maintain_order=True
        )
    else:
        shown = ubi.lists()
    shown = shown.unique(key, keep="first", maintain_order=True).select(*key)
    done = ubi.events.filter(pl.col("action").is_in([*clicks, *buys]))
    done = done.group_by(key, maintain_order=True).agg(
        pl.col("action").is_in(list(clicks)).any().alias("clicked"),
        pl.col("action").is_in(list(buys)).any().alias("purchased"),
    )
    listed = pl.col("request_id").is_in(shown["request_id"].unique().implode())
    late = done.join(shown, on=key, how="anti", maintain_order="left")
    added = late.filter(listed)
    rows = pl.concat([shown, added.select(key)])
    place = pl.int_range(1, pl.len() + 1).over("request_id")
    rows = pl.concat(
        [rows.with_columns(place.alias("position")), late.filter(~listed).select(key)],
        how="diagonal",
    )
    rows = rows.join(done, on=key, how="left", maintain_order="left")
    return rows.with_columns(pl.col("clicked", "purchased").fill_null(False)), added.height
