"""Amazon reviews 2018, Office Products, in MiniOneRec's layout; see `amazon_office.toml`.

How sequences are rebuilt, and what happens to repeat purchases: `_histories.py`.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import polars as pl

from ...errors import KarmafunnelError
from ...log import Log
from ._histories import SOURCE, check_items, rebuild
from ._raw import each_once, find, parse, plain, read_csv, reading, refuse
from ._source import describe

WHERE = describe("amazon_office").home
STEM = "Office_Products"
COLUMNS = ("user_id", "history_item_id", "item_id")


def load(root: Path | str) -> Log:
    """The log of MiniOneRec's Office Products in `root`; raises KarmafunnelError for a missing,
    truncated or wrong file.
    """
    parts = ("item.json", "valid.csv", "test.csv")
    paths = {part: find(root, [f"{STEM}.{part}"], WHERE) for part in parts}
    frames = {part: read(paths[part]) for part in ("valid.csv", "test.csv")}
    items = read_items(paths["item.json"]).join(
        semantic_ids(list(frames.values())), on="item_id", how="left", maintain_order="left"
    )
    for part, frame in frames.items():
        check_items(frame, paths[part], items, paths["item.json"])
    requests, exposures, notes = rebuild(*frames.values())
    meta = {
        "currency": None,
        "source": "Amazon reviews 2018, Office Products 5-core, as published with MiniOneRec; "
        + WHERE,
        "time": "order",
        "scenario": [SOURCE],
        "label": "purchase",
        "catalogue": "published",
        "has": dict.fromkeys(["text", "purchases", "users"], True),
        "notes": notes,
    }
    return Log.make(items, requests, exposures, meta)


def read(path: Path) -> pl.DataFrame:
    """Rows of a validation or test file: user_id, history List[String], item_id, and semantic ids
    where the file has them.
    """
    frame = parse(
        read_csv(path, COLUMNS),
        {"user_id": pl.String, "history_item_id": pl.String, "item_id": pl.Int64},
        path,
    )
    histories = [numbers(text) for text in frame["history_item_id"]]
    wrong = pl.Series([history is None for history in histories])
    refuse(wrong, frame, "history_item_id", "a list of whole numbers", path)
    history = pl.Series("history", histories, dtype=pl.List(pl.String))
    columns = [pl.col("user_id"), history, pl.col("item_id").cast(pl.String)]
    if "item_sid" in frame.columns and "history_item_sid" in frame.columns:
        tokens = pl.col("history_item_sid").str.extract_all(r"<[^']+>")
        columns += [pl.col("item_sid"), tokens.alias("history_sid")]
    return frame.select(columns)


def numbers(text: str) -> list[str] | None:
    """The ids of a list such as "[3, 14]"; null for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list):
        return None
    fine = all(type(number) is int and abs(number) < 2**63 for number in found)
    return list(map(str, found)) if fine else None


def semantic_ids(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """item_id and semantic_id (the publisher's token string, e.g. "<a_55><b_205><c_143>") of every
    item that stands in a row.
    """
    parts = [pl.DataFrame(schema={"item_id": pl.String, "semantic_id": pl.String})]
    for frame in frames:
        if "item_sid" in frame.columns:
            aligned = frame.filter(
                pl.col("history").list.len() == pl.col("history_sid").list.len(),
                pl.col("history").list.len() > 0,
            )
            parts.append(frame.select("item_id", pl.col("item_sid").alias("semantic_id")))
            past = aligned.select(
                pl.col("history").alias("item_id"), pl.col("history_sid").alias("semantic_id")
            )
            parts.append(past.explode("item_id", "semantic_id"))
    return pl.concat(parts).unique("item_id", keep="first", maintain_order=True)


def read_items(path: Path) -> pl.DataFrame:
    """item_id, title, description, brand, category; markup removed; in the publisher's order."""
    with reading(path):
        raw = json.loads(path.read_bytes().decode(), object_pairs_hook=each_once)
    if not isinstance(raw, dict) or not raw:
        raise KarmafunnelError(
            path, needs="a JSON object of items", found=f"{type(raw).__name__} of length {len(raw)}"
        )
    rows = []
    for item, about in raw.items():
        if not isinstance(about, dict):
            raise KarmafunnelError(
                f"{path}: item {item}", needs="an object", found=f"{type(about).__name__}"
            )
        texts = ("title", "description", "brand", "categories")
        missing = [name for name in texts if not isinstance(about.get(name), str)]
        if missing:
            raise KarmafunnelError(
                f"{path}: item {item}: missing {missing} (texts), found {list(about)}"
            )
        category = plain(about["categories"])
        rows.append(
            (
                item,
                plain(about["title"]),
                brand(about["brand"]),
                [category] if category else None,
                description(about["description"]),
            )
        )
    schema: dict[str, Any] = {
        "item_id": pl.String,
        "title": pl.String,
        "brand": pl.String,
        "category": pl.List(pl.String),
        "description": pl.String,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def brand(text: str) -> str | None:
    """The brand without Amazon's "Visit Amazon's ... Page"."""
    name = plain(text)
    if name and name.startswith("Visit Amazon's "):
        name = name.removeprefix("Visit Amazon's ").removesuffix(" Page")
    return name


def description(text: str) -> str | None:
    """The paragraphs of a description that is published as the text of a Python list, some of them
    badly quoted.
    """
    try:
        parts = ast.literal_eval(text) if text else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        parts = None
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        parts = [text.strip("[]'\" ").replace("\\n", "\n")]
    return plain("\n".join(part for part in map(plain, parts) if part))
