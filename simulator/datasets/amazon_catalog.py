"""Amazon product metadata 2023, one JSON object a line; see `amazon_catalog.toml`."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path
from typing import Any

import polars as pl

from ...errors import KarmafunnelError
from ...layout import shorten
from ...log import Catalogue
from ._raw import find, plain, reading
from ._source import describe

NAMES = ("catalog.jsonl.gz", "catalog.jsonl")
WHERE = describe("amazon_catalog").home
FIELDS = (
    "parent_asin",
    "title",
    "features",
    "description",
    "price",
    "categories",
    "store",
    "details",
    "images",
)
SCHEMA: dict[str, Any] = {
    "item_id": pl.String,
    "title": pl.String,
    "brand": pl.String,
    "category": pl.List(pl.String),
    "price": pl.Float64,
    "attributes": pl.List(pl.String),
    "description": pl.String,
    "features": pl.String,
    "subtitle": pl.String,
    "author": pl.String,
    "main_category": pl.String,
    "price_text": pl.String,
    "average_rating": pl.Float64,
    "rating_number": pl.Int64,
    "image_url": pl.String,
    "image_urls": pl.List(pl.String),
    "video_urls": pl.List(pl.String),
}


def load(root: Path | str) -> Catalogue:
    """The catalogue of the file in `root`; raises KarmafunnelError for a missing, truncated or
    wrong file.
    """
    there = sorted(Path(root).glob("meta_*.jsonl*")) if Path(root).is_dir() else []
    path = find(root, [*NAMES, *(path.name for path in there)], WHERE)
    rows, seen = [], set()
    with reading(path), gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                rows.append(product(json.loads(line.decode(), parse_constant=no_number)))
                if rows[-1][0] in seen:
                    raise ValueError(f"{rows[-1][0]!r} twice")
                seen.add(rows[-1][0])
            except (
                KeyError,
                TypeError,
                AttributeError,
                ValueError,
                RecursionError,
                OverflowError,
            ) as error:
                found = f"{type(error).__name__}: {error}"
                raise KarmafunnelError(
                    f"{path}: line {number}",
                    needs=f"a JSON object with {list(FIELDS)}",
                    found=found,
                ) from error
    if not rows:
        raise KarmafunnelError(path, needs="at least one product", found="an empty file")
    items = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    meta: dict[str, Any] = {
        "currency": "USD",
        "source": f"Amazon Reviews 2023 metadata, a sample, {path.name}; {WHERE}",
        "catalogue": "published",
        "scenario": [],
        "label": None,
        "has": dict.fromkeys(["text", "price"], True),
        "notes": {
            "products without a price": items["price"].null_count(),
            "products without a title": items["title"].null_count(),
        },
    }
    return Catalogue.make(items, meta)


def product(raw: dict[str, Any]) -> tuple[Any, ...]:
    """One row of SCHEMA; raises KeyError, TypeError or ValueError for what is no product."""
    missing = [name for name in FIELDS if name not in raw]
    if missing:
        raise KeyError(f"missing {missing}")
    if not isinstance(raw["parent_asin"], str) or not raw["parent_asin"].strip():
        raise ValueError(f"parent_asin needs a text, found {raw['parent_asin']!r}")
    categories = [name for name in map(plain, raw["categories"] or []) if name]
    if not categories and (main := plain(raw.get("main_category"))):
        categories = [main]
    images = by_key(raw["images"], ("hi_res", "large"))
    videos = by_key(raw.get("videos"), ("url",))
    details = raw["details"] or {}
    urls = []
    for big, large in zip(images.get("hi_res", []), images.get("large", []), strict=True):
        if big or large:
            urls.append(big or large)
    return (
        raw["parent_asin"],
        plain(raw["title"]),
        plain(raw["store"]),
        categories or None,
        price(raw["price"]),
        attributes(json.loads(details) if isinstance(details, str) else details),
        paragraphs(raw["description"]),
        paragraphs(raw["features"]),
        plain(raw.get("subtitle")),
        text_of(raw.get("author")),
        text_or_none("main_category", raw.get("main_category")),
        None if raw["price"] is None else str(raw["price"]),
        rating("average_rating", raw.get("average_rating")),
        whole("rating_number", raw.get("rating_number")),
        next((large for large in images.get("large", []) if large), None),
        urls,
        [text_or_none("video", url) for url in videos.get("url", [])],
    )


def by_key(found: Any, keys: tuple[str, ...]) -> dict[str, list[Any]]:
    """Lists by key; the publisher's files have a list of objects, others one object of lists."""
    if isinstance(found, list):
        return {key: [one.get(key) for one in found] for key in keys}
    return dict(found or {})


def no_number(text: str) -> float:
    raise ValueError(f"needed finite numbers, found {text}")


def text_or_none(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} needs a text, found {value!r}")
    return value


def rating(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{name} needs a finite number, found {value!r}")
    return value


def whole(name: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or abs(value) >= 2**63):
        raise TypeError(f"{name} needs a whole number, found {value!r}")
    return value


def price(text: str | float | None) -> float | None:
    """A price in USD: the number, or the number after "from"; null where there is none. Raises
    ValueError below zero.
    """
    found = re.fullmatch(r"\s*(?:from\s+)?\$?(-?[\d,]*\.?\d+)\s*", str(text))
    if not found:
        return None
    value = float(found[1].replace(",", ""))
    if value < 0:
        raise ValueError(f"price below zero: {text!r}")
    if not math.isfinite(value):
        raise ValueError(f"price needs a finite number, found {shorten(text)!r}")
    return value


def attributes(details: dict[str, Any]) -> list[str]:
    """ "key=value" for every detail, in the publisher's order."""
    found = []
    for key, value in details.items():
        if isinstance(value, dict):
            found += [f"{key}/{part}={plain(str(inner))}" for part, inner in value.items()]
        else:
            several = value if isinstance(value, list) else [value]
            found += [f"{key}={plain(str(one))}" for one in several]
    return found


def paragraphs(parts: list[str] | None) -> str | None:
    """Cleaned paragraphs, one a line; null if there are none."""
    return "\n".join(part for part in map(plain, parts or []) if part) or None


def text_of(author: Any) -> str | None:
    """The author's name; the file has text, an object with a name, or nothing."""
    if isinstance(author, str):
        try:
            author = json.loads(author)
        except json.JSONDecodeError:
            return plain(author)
    if isinstance(author, dict):
        return plain(str(author.get("name") or ""))
    return plain(str(author) if author else None)
