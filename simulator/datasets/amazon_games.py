"""Amazon reviews, Video Games, in LLMRank's (RecBole) layout.

What it is: for each user a validation and a test row: the reviewed items before (at most 50) and
the next one. Holds: titles, long sequences, scale. Lacks: price, brand, description, exposures,
timestamps (only the order is known), queries. Licence: Amazon review data, research use. Download:
https://github.com/RUCAIBox/LLMRank (llmrank/dataset/Games-6k). Files expected, plain or `.gz`:
`Games-6k.item`, `Games-6k.valid.inter`, `Games-6k.test.inter`.

W1 / W2 / W3 are the publisher's train / valid / test; how sequences are rebuilt: `_histories.py`.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ...log import Log
from ._histories import SOURCE, check_items, rebuild
from ._raw import find, once, parse, plain, read_csv

WHERE = "https://github.com/RUCAIBox/LLMRank"
STEM = "Games-6k"


def load(root: Path | str) -> Log:
    """The log of LLMRank's Games-6k in `root`; raises KarmafunnelError for a missing, truncated or
    wrong file.
    """
    paths = {}
    for part in ("item", "valid.inter", "test.inter"):
        paths[part] = find(root, [f"{STEM}.{part}.gz", f"{STEM}.{part}"], WHERE)
    frames = {part: read(paths[part]) for part in ("valid.inter", "test.inter")}
    columns = ("item_id:token", "title:token_seq")
    frame = read_csv(paths["item"], columns, "\t", None)
    about = parse(frame, dict.fromkeys(columns, pl.String), paths["item"])
    once(about, columns[0], paths["item"])
    titles = [plain(title) for title in about["title:token_seq"]]
    items = pl.DataFrame(
        {"item_id": about["item_id:token"], "title": pl.Series(titles, dtype=pl.String)}
    )
    for part, frame in frames.items():
        check_items(frame, paths[part], items, paths["item"])
    requests, exposures, notes = rebuild(*frames.values())
    meta = {
        "name": "amazon_games",
        "currency": None,
        "licence": "Amazon review data, research use",
        "source": f"Amazon reviews, Video Games, as published with LLMRank; {WHERE}",
        "time": "order",
        "scenario": [SOURCE],
        "label": "purchase",
        "catalogue": "published",
        "has": dict.fromkeys(["text", "purchases", "users"], True),
        "lacks": [
            "timestamps: only each user's order and the publisher's train / valid / test are known",
            "a training file: training events are the history of each user's validation row",
            "prices, brands, descriptions, categories, images, queries, exposures, clicks",
            "purchases proper: a review stands in for one",
        ],
        "notes": notes,
    }
    return Log.make(items, requests, exposures, meta)


def read(path: Path) -> pl.DataFrame:
    """Rows of a RecBole sequence file: user_id, history List[String], item_id."""
    columns = ("user_id:token", "item_id_list:token_seq", "item_id:token")
    frame = parse(read_csv(path, columns, "\t", None), dict.fromkeys(columns, pl.String), path)
    return frame.select(
        pl.col(columns[0]).alias("user_id"),
        pl.col(columns[1]).str.strip_chars().str.split(" ").alias("history"),
        pl.col(columns[2]).alias("item_id"),
    )
