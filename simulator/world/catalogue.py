"""The catalogue of the World: an invented one, or a real one prepared for shoppers."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...log import Catalogue
from .words import AXES, CODAS, DEPARTMENTS, ONSETS, PROMISES, TASTE, UNSAID, Section

LISTED = 0.88  # share of an item's attributes that its seller remembered to list
SMALL = {"the", "a", "an", "of", "for", "and", "with", "in", "by", "to", "on", "or", "at", "from"}
EXPRESS = 0.6  # share of items with the attribute that shoppers may filter by
SETTLED = ("quality", "misjudged", "demand")  # columns of a catalogue that no log's items have


@dataclass(frozen=True, eq=False)
class Shelves:
    """A catalogue as the World sees it: everything by row number.

    `values` are all "key=value" an item can be liked for, brands among them; `codes` (n_items, A)
    int32 are rows of `values`, padded with len(values). A leaf is a kind of product; leaves belong
    to sections, sections to departments. `settled`: columns (n_items,) of a catalogue that was
    fitted to a log, which a marketplace draws for any other: see `likened`.
    """

    items: pl.DataFrame  # columns of a Log's items
    leaf: np.ndarray  # (n_items,) int64
    section: np.ndarray  # (n_leaves,) int64
    department: np.ndarray  # (n_leaves,) int64
    section_names: list[str]
    used_up: np.ndarray  # (n_leaves,) bool: bought again when used up
    codes: np.ndarray
    values: list[str]
    price: np.ndarray  # (n_items,) float64, list price
    express: np.ndarray  # (n_items,) bool
    leaf_words: list[tuple[str, ...]]
    value_words: list[tuple[str, ...]]
    notes: dict[str, str]
    settled: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def n_items(self) -> int:
        return len(self.leaf)

    def names(self, item: int) -> dict[str, str]:
        """The item's true attributes, listed or not: {"colour": "navy", ...}."""
        return dict(self.values[c].split("=", 1) for c in self.codes[item] if c < len(self.values))

    def true_attributes(self) -> list[list[str]]:
        """True attributes of every item as "key=value", brand among them."""
        padded = [*self.values, ""]
        return [[padded[c] for c in row if c < len(self.values)] for row in self.codes.tolist()]


def pick(rng: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    """One random draw per row from softmax(logits): (n, m) -> (n,) int64."""
    return np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)


# -- an invented catalogue -------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of product: a leaf of the invented category tree."""

    department: str
    section: str
    leaf: str

    @property
    def shelf(self) -> Section:
        return DEPARTMENTS[self.department].sections[self.section]


def kinds_of(departments: list[str]) -> list[Kind]:
    """All kinds of product of some departments."""
    kinds = []
    for department in departments:
        for section, shelf in DEPARTMENTS[department].sections.items():
            kinds += [Kind(department, section, leaf) for leaf in shelf.leaves]
    return kinds


def invent(n_items: int, rng: np.random.Generator) -> Shelves:
    """An invented catalogue: category tree, brands, attributes, titles, prices. Small shops have
    fewer departments.
    """
    names = list(DEPARTMENTS)[: int(np.clip(1 + n_items // 400, 2, len(DEPARTMENTS)))]
    tree = kinds_of(names)
    sections = list(dict.fromkeys((kind.department, kind.section) for kind in tree))
    section_names = [name for _, name in sections]
    section = np.array([sections.index((kind.department, kind.section)) for kind in tree])
    department = np.array([names.index(kind.department) for kind in tree])
    leaf = rng.choice(len(tree), size=n_items, p=rng.dirichlet(np.full(len(tree), 4.0)))

    brands = invent_brands(int(np.clip(n_items // 25, 12, 400)), rng)
    brand_level = rng.normal(0.0, 0.35, len(brands))  # log price level
    brand_style = rng.integers(len(AXES["style"]), size=len(brands))
    place = rng.permuted(np.tile(np.arange(len(brands)), (len(names), 1)), axis=1)
    reach = -1.2 * np.log(1.0 + place)
    # a brand sells in some departments only
    at_home = rng.random((len(names), len(brands))) < max(0.3, 12 / len(brands))
    at_home[:, 0] |= ~at_home.any(axis=1)
    brand = pick(rng, np.where(at_home, reach, -np.inf)[department[leaf]])

    # axis -> (n_items,) row in its words, -1 where it has none
    drawn = draw_axes(tree, leaf, brand_style[brand], rng)
    values, value_words, codes = value_codes(brands, brand, drawn)

    base = np.array([np.log(kind.shelf.price) for kind in tree])
    leaf_price = base + rng.normal(0, 0.25, len(tree))
    luxury = 0.45 * (drawn["style"] == list(AXES["style"]).index("luxury"))
    noise = rng.normal(0, 0.3, n_items)
    log_price = leaf_price[leaf] + brand_level[brand] + luxury + noise
    price = np.maximum(np.round(np.exp(log_price)) - 0.01, 0.99)

    express = rng.random(n_items) < EXPRESS
    attributes = to_filter_by(section_names, section[leaf], express)
    titles, descriptions = [], []
    for i in range(n_items):
        title, description, listed = write_item(i, tree[leaf[i]], brands[brand[i]], drawn, rng)
        titles.append(title)
        descriptions.append(description)
        attributes[i] = [*listed, *attributes[i]]
    named = rng.random(n_items) < 0.92  # the seller filled in the brand field
    items = pl.DataFrame(
        {
            "item_id": [f"i{n:06d}" for n in range(n_items)],
            "title": titles,
            "brand": [brands[b] if n else None for b, n in zip(brand, named, strict=True)],
            "category": [list(tree[n]) for n in leaf],
            "price": price,
            "attributes": attributes,
            "description": descriptions,
        }
    )
    return Shelves(
        items=items,
        leaf=leaf,
        section=section,
        department=department,
        section_names=section_names,
        used_up=np.array([DEPARTMENTS[kind.department].used_up for kind in tree]),
        codes=codes,
        values=values,
        price=price,
        express=express,
        leaf_words=[kind.shelf.leaves[kind.leaf] for kind in tree],
        value_words=value_words,
        notes={},
    )


def value_codes(
    brands: list[str], brand: np.ndarray, drawn: dict[str, np.ndarray]
) -> tuple[list[str], list[tuple[str, ...]], np.ndarray]:
    """The values that items can be liked for, the words of each, and the values of each item,
    ascending.
    """
    values = [f"brand={name}" for name in brands]
    words: list[tuple[str, ...]] = [(name.lower(),) for name in brands]
    first = {}
    for axis, synonyms in AXES.items():
        first[axis] = len(values)
        values += [f"{axis}={value}" for value in synonyms]
        words += synonyms.values()
    columns = [brand]
    for axis, row in drawn.items():
        columns.append(np.where(row >= 0, first[axis] + row, len(values)))
    codes = np.sort(np.stack(columns, axis=1), axis=1)
    most = int((codes < len(values)).sum(axis=1).max())
    return values, words, codes[:, :most].astype(np.int32)


def to_filter_by(names: list[str], section: np.ndarray, express: np.ndarray) -> list[list[str]]:
    """The attributes of every item that requests can filter by."""
    category = [f"category={names[s]}" for s in section]
    return [[c, "delivery=express"] if e else [c] for c, e in zip(category, express, strict=True)]


def invent_brands(n: int, rng: np.random.Generator) -> list[str]:
    """Distinct invented brand names."""
    pairs = rng.permutation(len(ONSETS) * len(CODAS))[:n]
    return [ONSETS[p // len(CODAS)] + CODAS[p % len(CODAS)] for p in pairs]


def draw_axes(
    tree: list[Kind], leaf: np.ndarray, style: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Attributes of every item: mostly its brand's style, colours that go with it, what makes sense
    in its section.

    `style` (n_items,) is the brand's. Returns axis -> (n_items,) row in that axis' words, -1 where
    the item has none.
    """
    n = len(leaf)
    drawn: dict[str, np.ndarray] = {}
    for axis, words in AXES.items():
        logits = np.full((len(tree), len(words)), -np.inf)
        for row, kind in enumerate(tree):
            if axis == kind.shelf.axis:
                logits[row, [list(words).index(v) for v in kind.shelf.values]] = 0.0
            elif axis in DEPARTMENTS[kind.department].axes:
                logits[row] = 0.0
        has = np.isfinite(logits[leaf]).any(axis=1)
        logits = np.where(has[:, None], logits[leaf], 0.0)
        if axis == "style":
            logits[np.arange(n), style] += 2.4
        elif axis == "colour":
            palette = rng.normal(0.0, 0.9, (len(AXES["style"]), len(words)))
            logits = logits + palette[style]
        elif axis == "pattern":
            logits[:, 0] += 1.4  # most things are plain
        elif axis == "diet":
            logits[:, -1] += 1.0
        drawn[axis] = np.where(has, pick(rng, logits), -1)
    return drawn


# share of titles that leave it out
SILENT = {"colour": 0.35, "style": 0.5, "pattern": 0.4, "size": 0.6}


def write_item(
    item: int,
    kind: Kind,
    brand: str,
    drawn: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> tuple[str, str | None, list[str]]:
    """Title, description (or None) and listed attributes of one item, written carelessly."""
    dice = iter(rng.random(4 * len(AXES) + 6).tolist())

    def say(words: tuple[str, ...]) -> str:
        return words[int(next(dice) * len(words))]

    said, told, listed = {}, {}, []
    for axis, words in AXES.items():
        if drawn[axis][item] < 0:
            continue
        value = list(words)[drawn[axis][item]]
        in_title = next(dice) >= SILENT.get(axis, 0.25) and value not in UNSAID
        word, told[axis] = say(words[value]), say(words[value])
        said[axis] = word if in_title else ""
        if next(dice) < LISTED:
            listed.append(f"{axis}={value}")
    nouns = kind.shelf.leaves[kind.leaf]
    noun, other = say(nouns), say(nouns)
    maker = brand if next(dice) < 0.8 else ""
    shown = [said.get(axis, "") for axis in ("colour", "style", "pattern", "diet", "size")]
    colour, style, pattern, diet, size = shown
    main = next(axis for axis in ("material", "flavour", "scent") if axis in said)
    made = said[main]
    orders = (
        [maker, style, colour, pattern, diet, made, noun, size],
        [noun, made, diet, pattern, colour, style, "-" if maker else "", maker],
        [maker, size, made, noun, "in" if colour else "", colour, pattern, style],
        [colour, made, diet, noun, "by" if maker else "", maker, size],
    )
    title = " ".join(part for part in orders[int(next(dice) * len(orders))] if part)
    description = None
    if next(dice) < 0.75:
        opening = (told.get("style") or told["diet"]).capitalize()
        description = f"{opening} {other}, {told[main]}, {told['colour']}. {say(PROMISES)}"
    return title[0].upper() + title[1:], description, listed


# -- a real catalogue ------------------------------------------------------------------------------


def stock(catalogue: Catalogue, n_items: int, rng: np.random.Generator) -> Shelves:
    """Shelves filled from a real catalogue: `n_items` of it at random, missing prices imputed (and
    said so in `notes`).

    A leaf is the longest prefix of the category path that at least 8 of the items share; what a
    shopper can like are the brands and attributes that at least 3 items, and at most a third of
    them, have. Raises KarmafunnelError when fewer than 50 items have a title.
    """
    name = catalogue.meta.get("name")
    frame = catalogue.items.filter(pl.col("title").is_not_null())
    if frame.height < 50:
        raise KarmafunnelError(
            f"World: a catalogue needs at least 50 items with a title, {name} has {frame.height}"
        )
    drawn, titled = min(n_items, frame.height), frame.height
    notes = {
        "catalogue": f"{drawn} items drawn from the {titled} with a title of the catalogue {name}"
    }
    if n_items < frame.height:
        frame = frame[np.sort(rng.choice(frame.height, n_items, replace=False))]
    n = frame.height

    settled = {name: frame[name].to_numpy() for name in SETTLED if name in frame.columns}
    frame = frame.drop(settled)

    leaves, leaf = kinds(frame)
    sections, departments = sorted({p[:2] for p in leaves}), sorted({p[:1] for p in leaves})
    section_names = [" / ".join(s) or "other" for s in sections]
    section = np.array([sections.index(p[:2]) for p in leaves])

    price, note = impute_prices(frame["price"].fill_null(np.nan).to_numpy().copy(), leaf, rng)
    notes |= note
    values, codes = liked_values(frame)
    express = rng.random(n) < EXPRESS
    filterable = to_filter_by(section_names, section[leaf], express)
    notes["attributes"] = (
        "category=... (second level) and delivery=express (drawn at random) were added to filter by"
    )
    attributes = []
    for own, more in zip(frame["attributes"].to_list(), filterable, strict=True):
        attributes.append([*(own or []), *more])
    items = frame.with_columns(
        pl.Series("attributes", attributes, dtype=pl.List(pl.String)), pl.Series("price", price)
    )
    return Shelves(
        items=items,
        leaf=leaf,
        section=section,
        department=np.array([departments.index(p[:1]) for p in leaves]),
        section_names=section_names,
        used_up=rng.random(len(leaves)) < 0.3,
        codes=codes,
        values=values,
        price=price,
        express=express,
        leaf_words=[one_phrase(path[-1]) if path else () for path in leaves],
        value_words=[(" ".join(plain_words(v.split("=", 1)[1])),) for v in values],
        notes=notes,
        settled=settled,
    )


def kinds(items: pl.DataFrame) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """The leaves of items, each a path of categories, and the leaf of each item: (n_items,)."""
    kept = shared_paths([tuple(filter(None, path or ())) for path in items["category"].to_list()])
    leaves = sorted(set(kept))
    number = {path: i for i, path in enumerate(leaves)}
    return leaves, np.array([number[path] for path in kept])


def shared_paths(paths: list[tuple[str, ...]], least: int = 8) -> list[tuple[str, ...]]:
    """The longest beginning of each path that at least so many paths share; () for none."""
    count: Counter[tuple[str, ...]] = Counter()
    for path in paths:
        count.update(path[:depth] for depth in range(1, len(path) + 1))
    kept = []
    for path in paths:
        while path and count[path] < least:
            path = path[:-1]
        kept.append(path)
    return kept


def one_phrase(text: str) -> tuple[str, ...]:
    """A label as one phrase; () where nothing of it is left."""
    words = plain_words(text)
    return (" ".join(words),) if words else ()


def plain_words(text: str, most: int = 4) -> list[str]:
    """The first words of a label or title as one would type them: "Cups, Mugs, & Saucers" ->
    ["cups", "mugs", "saucers"].
    """
    return [w for w in re.findall(r"[^\W_]+", text.lower()) if len(w) > 1 and w not in SMALL][:most]


def impute_prices(
    price: np.ndarray, leaf: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, str]]:
    """Prices with the unknown ones filled by the median of the item's category, else of the
    catalogue, else drawn.
    """
    unknown = ~np.isfinite(price) | (price <= 0)
    if not unknown.any():
        return price, {}
    if unknown.all():
        drawn = np.exp(
            3.2 + rng.normal(0, 0.7, leaf.max() + 1)[leaf] + rng.normal(0, 0.4, len(price))
        )
        note = {"prices": "the catalogue has no prices: all were drawn, log-normal by category"}
        return np.maximum(np.round(drawn) - 0.01, 0.99), note
    overall = float(np.median(price[~unknown]))
    for row in np.unique(leaf[unknown]):
        known = (leaf == row) & ~unknown
        price[(leaf == row) & unknown] = np.median(price[known]) if known.any() else overall
    return price, {
        "prices": f"{int(unknown.sum())} unknown prices were imputed by the median of the category"
    }


def liked_values(frame: pl.DataFrame, most: int = 8) -> tuple[list[str], np.ndarray]:
    """Values that some but not most items share: names, and those of each item, at most `most`,
    (n_items, most) int32.

    Of too many, an item keeps its brand and its commonest ones.
    """
    held = []
    for brand, attributes in frame.select("brand", "attributes").iter_rows():
        own = [f"brand={brand}"] if brand else []
        own += [value for value in attributes or [] if "=" in value]
        held.append(list(dict.fromkeys(own)))
    count = Counter(value for own in held for value in own)
    values = sorted(v for v, c in count.items() if 3 <= c <= max(3, len(held) // 3))
    number = {v: i for i, v in enumerate(values)}
    codes = np.full((len(held), most), len(values), dtype=np.int32)
    for i, own in enumerate(held):
        mine = [(not v.startswith("brand="), -count[v], v) for v in own if v in number]
        rows = [number[v] for _, _, v in sorted(mine)[:most]]
        codes[i, : len(rows)] = rows
    return values, codes


def taste_weights(values: list[str]) -> np.ndarray:
    """How much each value moves a shopper who cares: (n_values,) float64."""
    return np.array([TASTE.get(v.split("=", 1)[0].lower(), 0.6) for v in values])
