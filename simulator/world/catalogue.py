"""What is on the shelves: an invented catalogue, or a real one made ready to be shopped in."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...log import Catalogue
from .words import AXES, CODAS, DEPARTMENTS, ONSETS, PROMISES, TASTE, UNSAID

LISTED = 0.88  # share of an item's attributes that its seller remembered to list
SMALL = {"the", "a", "an", "of", "for", "and", "with", "in", "by", "to", "on", "or", "at", "from"}
EXPRESS = 0.6  # share of items with the attribute that shoppers may filter by


@dataclass(frozen=True, eq=False)
class Shelves:
    """A catalogue as the World sees it: everything by row number.

    `values` are all "key=value" an item can be liked for, brands among them; `codes` (n_items, A)
    int32 are rows of `values`, padded with len(values). A leaf is a kind of product; leaves belong
    to sections, sections to departments.
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
    """One draw a row from softmax(logits): (n, m) -> (n,) int64."""
    return np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)


# -- an invented catalogue -------------------------------------------------------------------------


def invent(n_items: int, rng: np.random.Generator) -> Shelves:
    """An invented catalogue: category tree, brands, attributes, titles, prices. Small shops have
    fewer departments.
    """
    names = list(DEPARTMENTS)[: int(np.clip(1 + n_items // 400, 2, len(DEPARTMENTS)))]
    aisles = [(d, s, section) for d in names for s, section in DEPARTMENTS[d].sections.items()]
    tree = [(d, s, leaf) for d, s, section in aisles for leaf in section.leaves]
    sections = list(dict.fromkeys((d, s) for d, s, _ in tree))
    section = np.array([sections.index((d, s)) for d, s, _ in tree])
    department = np.array([names.index(d) for d, _, _ in tree])
    leaf = rng.choice(len(tree), size=n_items, p=rng.dirichlet(np.full(len(tree), 4.0)))

    brands = invent_brands(int(np.clip(n_items // 25, 12, 400)), rng)
    brand_level = rng.normal(0.0, 0.35, len(brands))  # log price level
    brand_style = rng.integers(len(AXES["style"]), size=len(brands))
    reach = -1.2 * np.log(
        1.0 + rng.permuted(np.tile(np.arange(len(brands)), (len(names), 1)), axis=1)
    )
    # a brand sells in some departments only
    at_home = rng.random((len(names), len(brands))) < max(0.3, 12 / len(brands))
    at_home[:, 0] |= ~at_home.any(axis=1)
    brand = pick(rng, np.where(at_home, reach, -np.inf)[department[leaf]])

    # axis -> (n_items,) row in its words, -1 where it has none
    drawn = draw_axes(tree, leaf, brand_style[brand], rng)
    values = [f"brand={b}" for b in brands] + [
        f"{axis}={v}" for axis, words in AXES.items() for v in words
    ]
    value_words = [(b.lower(),) for b in brands] + [
        w for words in AXES.values() for w in words.values()
    ]
    first = {axis: values.index(f"{axis}={next(iter(words))}") for axis, words in AXES.items()}
    codes = np.stack(
        [brand, *[np.where(d >= 0, first[a] + d, len(values)) for a, d in drawn.items()]], axis=1
    )
    codes = np.sort(codes, axis=1)[:, : int((codes < len(values)).sum(axis=1).max())].astype(
        np.int32
    )

    leaf_price = np.array(
        [np.log(DEPARTMENTS[d].sections[s].price) for d, s, _ in tree]
    ) + rng.normal(0, 0.25, len(tree))
    luxury = list(AXES["style"]).index("luxury")
    log_price = (
        leaf_price[leaf]
        + brand_level[brand]
        + 0.45 * (drawn["style"] == luxury)
        + rng.normal(0, 0.3, n_items)
    )
    price = np.maximum(np.round(np.exp(log_price)) - 0.01, 0.99)

    express = rng.random(n_items) < EXPRESS
    texts = [write_item(i, tree[leaf[i]], brands[brand[i]], drawn, rng) for i in range(n_items)]
    filterable = to_filter_by([s for _, s in sections], section[leaf], express)
    attributes = [[*listed, *more] for (_, _, listed), more in zip(texts, filterable, strict=True)]
    named = rng.random(n_items) < 0.92  # the seller filled in the brand field
    items = pl.DataFrame({
        "item_id": [f"i{n:06d}" for n in range(n_items)],
        "title": [title for title, _, _ in texts],
        "brand": [brands[b] if n else None for b, n in zip(brand, named, strict=True)],
        "category": [list(tree[n]) for n in leaf],
        "price": price,
        "attributes": attributes,
        "description": [description for _, description, _ in texts],
    })  # fmt: skip
    return Shelves(
        items=items,
        leaf=leaf,
        section=section,
        department=department,
        section_names=[s for _, s in sections],
        used_up=np.array([DEPARTMENTS[d].used_up for d, _, _ in tree]),
        codes=codes,
        values=values,
        price=price,
        express=express,
        leaf_words=[DEPARTMENTS[d].sections[s].leaves[n] for d, s, n in tree],
        value_words=value_words,
        notes={},
    )


def to_filter_by(names: list[str], section: np.ndarray, express: np.ndarray) -> list[list[str]]:
    """The attributes of every item that requests filter by."""
    category = [f"category={names[s]}" for s in section]
    return [[c, "delivery=express"] if e else [c] for c, e in zip(category, express, strict=True)]


def invent_brands(n: int, rng: np.random.Generator) -> list[str]:
    """Brand names that sound like some, each once."""
    pairs = rng.permutation(len(ONSETS) * len(CODAS))[:n]
    return [ONSETS[p // len(CODAS)] + CODAS[p % len(CODAS)] for p in pairs]


def draw_axes(
    tree: list[tuple[str, str, str]], leaf: np.ndarray, style: np.ndarray, rng: np.random.Generator
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
        for row, (d, s, _) in enumerate(tree):
            shelf = DEPARTMENTS[d].sections[s]
            if axis == shelf.axis:
                logits[row, [list(words).index(v) for v in shelf.values]] = 0.0
            elif axis in DEPARTMENTS[d].axes:
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
    path: tuple[str, str, str],
    brand: str,
    drawn: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> tuple[str, str | None, list[str]]:
    """Title, description (or None) and listed attributes of one item, as a seller in a hurry writes
    them.
    """
    value = {
        axis: list(words)[drawn[axis][item]]
        for axis, words in AXES.items()
        if drawn[axis][item] >= 0
    }
    dice = iter(rng.random(4 * len(AXES) + 6).tolist())

    def say(words: tuple[str, ...]) -> str:
        return words[int(next(dice) * len(words))]

    said, told, listed = {}, {}, []
    for axis, v in value.items():
        in_title = next(dice) >= SILENT.get(axis, 0.25) and v not in UNSAID
        word, told[axis] = say(AXES[axis][v]), say(AXES[axis][v])
        said[axis] = word if in_title else ""
        if next(dice) < LISTED:
            listed.append(f"{axis}={v}")
    nouns = DEPARTMENTS[path[0]].sections[path[1]].leaves[path[2]]
    noun, other = say(nouns), say(nouns)
    maker = brand if next(dice) < 0.8 else ""
    colour, style, pattern, diet, size = (
        said.get(axis, "") for axis in ("colour", "style", "pattern", "diet", "size")
    )
    made = next(said[axis] for axis in ("material", "flavour", "scent") if axis in said)
    orders = (
        [maker, style, colour, pattern, diet, made, noun, size],
        [noun, made, diet, pattern, colour, style, "-" if maker else "", maker],
        [maker, size, made, noun, "in" if colour else "", colour, pattern, style],
        [colour, made, diet, noun, "by" if maker else "", maker, size],
    )
    title = " ".join(part for part in orders[int(next(dice) * len(orders))] if part)
    description = None
    if next(dice) < 0.75:
        kind = next(told[axis] for axis in ("material", "flavour", "scent") if axis in told)
        opening = told.get("style") or told["diet"]
        description = f"{opening.capitalize()} {other}, {kind}, {told['colour']}. {say(PROMISES)}"
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
    drawn = min(n_items, frame.height)
    notes = {
        "catalogue": f"{drawn} items drawn from the {frame.height} with a title "
        f"of the catalogue {name}"
    }
    if n_items < frame.height:
        frame = frame[np.sort(rng.choice(frame.height, n_items, replace=False))]
    n = frame.height

    paths = [tuple(p for p in (path or []) if p) for path in frame["category"].to_list()]
    count: dict[tuple[str, ...], int] = {}
    for path in paths:
        for depth in range(len(path) + 1):
            count[path[:depth]] = count.get(path[:depth], 0) + 1
    kept = [next((p[:d] for d in range(len(p), 0, -1) if count[p[:d]] >= 8), ()) for p in paths]
    leaves = sorted(set(kept))
    number = {path: i for i, path in enumerate(leaves)}
    leaf = np.array([number[p] for p in kept])
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
    attributes = [
        [*(own or []), *more]
        for own, more in zip(frame["attributes"].to_list(), filterable, strict=True)
    ]
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
        leaf_words=[
            tuple(filter(None, [" ".join(plain_words(p[-1]))] if p else [])) for p in leaves
        ],
        value_words=[(" ".join(plain_words(v.split("=", 1)[1])),) for v in values],
        notes=notes,
    )


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
    held = [
        list(
            dict.fromkeys(
                [*([f"brand={brand}"] if brand else []), *(a for a in attributes or [] if "=" in a)]
            )
        )
        for brand, attributes in zip(
            frame["brand"].to_list(), frame["attributes"].to_list(), strict=True
        )
    ]
    count: dict[str, int] = {}
    for row in held:
        for value in row:
            count[value] = count.get(value, 0) + 1
    values = sorted(v for v, c in count.items() if 3 <= c <= max(3, len(held) // 3))
    number = {v: i for i, v in enumerate(values)}
    codes = np.full((len(held), most), len(values), dtype=np.int32)
    for i, row in enumerate(held):
        mine = sorted(
            (v for v in row if v in number),
            key=lambda v: (not v.startswith("brand="), -count[v], v),
        )[:most]
        codes[i, : len(mine)] = [number[v] for v in mine]
    return values, codes


def taste_weights(values: list[str]) -> np.ndarray:
    """How much each value moves a shopper who cares: (n_values,) float64."""
    return np.array([TASTE.get(v.split("=", 1)[0].lower(), 0.6) for v in values])
