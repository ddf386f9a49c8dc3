"""Amazon reviews, Video Games, in LLMRank's (RecBole) layout; see `amazon_games.toml`.

How sequences are rebuilt: `_histories.py`.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ...log import Log
from ._histories import SOURCE, check_items, rebuild
from ._raw import find, once, parse, plain, read_csv
from ._source import describe

WHERE = describe("amazon_games").home
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
        "currency": None,
        "source": f"Amazon reviews, Video Games, as published with LLMRank; {WHERE}",
        "time": "order",
        "scenario": [SOURCE],
        "label": "purchase",
        "catalogue": "published",
        "has": dict.fromkeys(["text", "purchases", "users"], True),
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
