"""Answers of Elasticsearch, OpenSearch and Vespa to search requests, with the scores of their
phases.

One response holds the hits that were returned. Where it also has the scores that an earlier phase
gave to these hits, each phase is a stage: its order of the same hits. What a phase cut off before
is in no response.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as made_of
from pathlib import Path
from typing import Any

import polars as pl

from ...errors import KarmafunnelError
from .guessing import by_name
from .stage_lists import LISTS, ROLES, Collected, Reading, field, objects, text
from .trec import stage_of

INSIDE = ("response", "body", "result")  # where a line may hold the response
DOCUMENT = re.compile(r"^id:[^:]*:[^:]*:[^:]*:(.+)$", re.DOTALL)  # a document id of Vespa
VESPA_PHASES = ("firstPhase", "secondPhase")
FEATURES = ("matchfeatures", "summaryfeatures")
GROUPS = ("group:", "grouplist:", "hitlist:")
QUERY, FINAL = "query", "final"


@dataclass
class Responses:
    """What one file holds: how many hits each request and stage has, and counts of responses by
    what is wrong with them.
    """

    pages: dict[tuple[str, str], int] = made_of(default_factory=dict)
    responses: int = 0
    partial: int = 0
    failed: int = 0
    empty: int = 0


def is_elasticsearch(row: dict[str, Any]) -> bool:
    """Whether a JSON object is, or holds, a search response of Elasticsearch or OpenSearch."""
    found = response_in(row, "hits")
    several = isinstance(row.get("responses"), list)  # of a multi search
    return several or (found is not None and "hits" in found["hits"])


def is_vespa(row: dict[str, Any]) -> bool:
    """Whether a JSON object is, or holds, a query result of Vespa."""
    return response_in(row, "root") is not None


def response_in(row: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The row itself or the object in it that has an object under `key`."""
    for one in (row, *(row.get(name) for name in INSIDE)):
        if isinstance(one, dict) and isinstance(one.get(key), dict):
            return one
    return None


def response_lists(
    path: Path, kind: str, told: Reading, alone: bool = True
) -> tuple[pl.DataFrame, list[str]]:
    """Read search responses, one JSON object a line.

    Each line names its request (`request_id`, `query_id`, ... beside or around the response, or
    UBI's `ext.ubi.query_id`), and its stage where the file holds several; default: the file's name.

    Args:
        kind: "elasticsearch" or "vespa".
        alone: no other file holds responses, so that the phases need no name of the file.

    Returns:
        Rows of `LISTS`, and sentences about what was found.

    Raises:
        KarmafunnelError: naming the file and line of a response without a request, and of a hit
            without an id.
    """
    names = list(told.scores or (VESPA_PHASES if kind == "vespa" else (QUERY,)))
    found, rows = Responses(), Collected(LISTS | dict.fromkeys(names, pl.Float64))
    for number, row in objects(path):
        here = f"{path}: line {number}"
        response = response_in(row, "hits" if kind == "elasticsearch" else "root")
        request, stage = name_of(row, response, here), stage_in(row) or stage_of(path)
        found.responses += 1
        if response is None:
            found.failed += 1
            continue
        read = elasticsearch_hits if kind == "elasticsearch" else vespa_hits
        hits = list(read(response, found, told, here))
        found.empty += not hits
        before = found.pages.get((request, stage), 0)  # hits of earlier pages
        found.pages[request, stage] = before + len(hits)
        for rank, hit in enumerate(hits, before + 1):
            rows.add({"request_id": request, "stage": stage, "rank": rank} | hit)
    hits_found = rows.frame()
    if hits_found.is_empty():
        raise KarmafunnelError(
            path, needs="responses with hits", found=f"{found.responses} responses without any"
        )
    for name, path_in_hit in (told.scores or {}).items():
        if hits_found[name].null_count() == hits_found.height:
            raise KarmafunnelError(
                path,
                what=f"stage {name}",
                needs=f"hits with a number at {path_in_hit}",
                found="none",
            )
    frame, notes = by_phase(hits_found, names, alone)
    for many, words in (
        (found.failed, "are errors"),
        (found.partial, "come from a part of the index (time-outs or failed shards)"),
        (found.empty, "have no hit"),
    ):
        if many:
            notes.append(f"{many:,} of {found.responses:,} responses {words}")
    return frame, [f"{path.name}: {note}" for note in notes]


def name_of(row: dict[str, Any], response: dict[str, Any] | None, here: str) -> str:
    """The id of the request that a response answers."""
    roles = by_name(list(row), {"request": ROLES["request"]})
    request = text(row[roles["request"]]) if "request" in roles else None
    if request is None and (request := text(field(response, "ext.ubi.query_id"))) is None:
        raise KarmafunnelError(
            here,
            needs="the id of the request that the response answers",
            found=f"keys {', '.join(list(row)[:6])}",
            hint='write each line as {"request_id": "...", "response": {...}}',
        )
    return request


def stage_in(row: dict[str, Any]) -> str | None:
    """The stage that a line names."""
    roles = by_name(list(row), {"stage": ROLES["stage"]})
    return text(row[roles["stage"]]) if "stage" in roles else None


def elasticsearch_hits(
    response: dict[str, Any], found: Responses, told: Reading, here: str
) -> Iterator[dict[str, Any]]:
    """The hits of a response in their order: item_id, score, and the score before a rescore where
    the response explains it.
    """
    shards = response.get("_shards")
    failed = shards.get("failed", 0) if isinstance(shards, dict) else 0
    found.partial += bool(response.get("timed_out") or failed)
    for hit in hits_in(response["hits"].get("hits"), here):
        if told.scores:
            phases = scores_at(hit, told.scores)
        else:
            phases = {QUERY: before_rescore(field(hit, "_explanation"))}
        yield (
            {"item_id": item_of(hit, told, here, text(field(hit, "_id")))}
            | phases
            | {"score": number(field(hit, "_score"))}
        )


def before_rescore(explanation: Any) -> float | None:
    """The score of the query before a rescore, from an explanation; None where it tells none."""
    details = field(explanation, "details") or []
    inner = [field(one, "description") for one in details]
    if "primaryWeight" in inner and inner[0] != "primaryWeight":
        return number(field(details[0], "value"))
    for one in details:
        # the product of the query's score and its weight is the first of two; never go deeper
        if field(one, "description") == "product of:":
            return before_rescore(one)
    return None


def vespa_hits(
    response: dict[str, Any], found: Responses, told: Reading, here: str
) -> Iterator[dict[str, Any]]:
    """The hits of a result in their order, without groups: item_id, relevance as the score, and the
    scores of its phases where the rank profile returns them as features.
    """
    root = response["root"]
    coverage = root.get("coverage")
    found.partial += isinstance(coverage, dict) and coverage.get("full") is False
    children = hits_in(root.get("children"), here)
    found.failed += bool(root.get("errors")) and not children
    for hit in children:
        if "children" in hit or str(hit.get("id")).startswith(GROUPS):
            continue
        if told.scores:
            phases = scores_at(hit, told.scores)
        else:
            features = [field(hit, f"fields.{name}") or {} for name in FEATURES]
            phases = {
                name: next((number(one[name]) for one in features if name in one), None)
                for name in VESPA_PHASES
            }
        full = text(field(hit, "fields.documentid")) or text(hit.get("id"))
        item = None
        if full is not None and not full.startswith("index:"):
            whole = DOCUMENT.match(full)
            item = whole[1] if whole else full
        yield (
            {"item_id": item_of(hit, told, here, item)}
            | phases
            | {"score": number(hit.get("relevance"))}
        )


def hits_in(value: Any, here: str) -> list[dict[str, Any]]:
    """The hits of a response; raises KarmafunnelError for what is no list of objects."""
    hits = value or []
    if not isinstance(hits, list) or not all(isinstance(hit, dict) for hit in hits):
        raise KarmafunnelError(here, needs="a list of hits", found=repr(value)[:80])
    return hits


def item_of(hit: dict[str, Any], told: Reading, here: str, usual: str | None) -> str:
    """The item id of a hit."""
    item = text(at(hit, told.item)) if told.item else usual
    if item is None:
        raise KarmafunnelError(
            here,
            needs=f"a hit with {told.item or 'the id of its document'}",
            found=f"a hit with id {hit.get('id', hit.get('_id'))!r}",
            hint="" if told.item else "name the field that holds it: --item FIELD",
        )
    return item


def at(hit: dict[str, Any], path: str) -> Any:
    """A value of a hit, of its fields or of its source; of a list of one, its element."""
    places = (hit, hit.get("fields"), hit.get("_source"))
    value = next((v for place in places if (v := field(place, path)) is not None), None)
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def scores_at(hit: dict[str, Any], scores: Mapping[str, str]) -> dict[str, float | None]:
    """The scores of a hit at the fields that were told, by stage."""
    return {name: number(at(hit, path)) for name, path in scores.items()}


def number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def by_phase(
    hits: pl.DataFrame, names: list[str], alone: bool = True
) -> tuple[pl.DataFrame, list[str]]:
    """The lists of every phase that the hits tell scores of, and of the final order.

    Args:
        hits: request_id, stage, item_id, rank, score, and a column of scores per phase.
        names: the phases in order.
        alone: there are no other stages.

    Returns:
        Rows of `LISTS`, and a sentence for each stage with phases.
    """
    frames: list[pl.DataFrame] = []
    notes: list[str] = []
    several = not alone or hits["stage"].n_unique() > 1
    for (stage,), mine in hits.group_by("stage", maintain_order=True):
        present = [name for name in names if mine[name].null_count() < mine.height]
        orders = {name: in_order_of(mine, name) for name in present}
        last = orders[present[-1]] if present else None
        if last is None or not last.equals(mine["rank"]):
            orders[FINAL if present else str(stage)] = mine["rank"]
        for name, rank in orders.items():
            whole = f"{stage}-{name}" if several and present else name
            frames.append(
                mine.with_columns(pl.lit(whole).alias("stage"), rank.alias("rank")).select(
                    "request_id",
                    "stage",
                    "item_id",
                    "rank",
                    pl.lit(None, pl.Float64).alias("score"),
                )
            )
        if present:
            notes.append(
                f"stages {', '.join(orders)} by the scores of the hits; what an earlier phase cut"
                " off is in no response, so these stages lose no item"
            )
        for name in present:
            if missing := mine[name].null_count():
                notes.append(f"{missing:,} hits have no score of {name}: they come last in it")
    return pl.concat(frames).select(list(LISTS)), notes


def in_order_of(hits: pl.DataFrame, name: str) -> pl.Series:
    """The rank of each hit by a phase's score; ties, and hits without one, by the final rank."""
    numbered = hits.with_row_index("line")
    best = pl.col(name).neg().fill_null(float("inf"))
    ordered = numbered.sort("request_id", best, "rank", maintain_order=True)
    place = pl.int_range(1, pl.len() + 1).over("request_id").cast(pl.Float64)
    return ordered.with_columns(place.alias("place")).sort("line")["place"]
