"""What shoppers type, and the frame of their requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from .catalogue import Shelves, plain_words
from .draws import Draws
from .frames import lists, moments, user_ids

SAID = 0.75  # of a wish
BEHIND = 0.3  # of a wish that is said, behind the noun
SECTION_NAMED = 0.1  # of searches, by the name of the section


class Phrases:
    """Texts of several words each: one is drawn at random."""

    def __init__(self, said: list[tuple[str, ...]]):
        said = [tuple(text.lower() for text in one if text) for one in said]
        self.count = np.array([len(one) for one in said], dtype=np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.count)[:-1]]).astype(np.int64)
        flat = [text for one in said for text in one]
        self.texts = pl.Series([*flat, None], dtype=pl.String)

    def draw(self, row: np.ndarray, chance: np.ndarray) -> pl.Series:
        """A text of each row, null for rows below 0 and for rows without texts."""
        none = len(self.texts) - 1
        if none == 0:
            return self.texts.new_from_index(0, len(row))
        safe = np.maximum(row, 0)
        count = np.where(row >= 0, self.count[safe], 0)
        at = self.first[safe] + (chance * count).astype(np.int64)
        return self.texts.gather(np.where(count > 0, at, none))


class Words:
    """All that requests are written with."""

    def __init__(self, shelves: Shelves, mobile: np.ndarray, titled: bool):
        self.nouns = Phrases(shelves.leaf_words)
        self.values = Phrases(shelves.value_words)
        last = [name.split(" / ")[-1] for name in shelves.section_names]
        self.sections = Phrases([(name,) for name in last])
        self.section = shelves.section
        self.titles = Phrases([title_words(t) for t in shelves.items["title"]] if titled else [])
        self.users = user_ids(len(mobile))
        self.mobile = mobile
        self.devices = lists([["device=desktop"], ["device=mobile"]])
        express = "delivery=express"
        filters: list[list[str]] = [[], [express]]
        for name in shelves.section_names:
            filters += [[f"category={name}"], [f"category={name}", express]]
        self.filters = lists(filters)

    def queries(self, asked: Any, draws: Draws) -> pl.Series:
        """The words of each request: a noun, or words of the named item's title, with wishes before
        and behind it; null where nothing is searched for.
        """
        noun = self.nouns.draw(asked.leaf, draws.random("noun"))
        section = self.sections.draw(self.section[asked.leaf], draws.random("noun"))
        by_section = pl.Series(draws.random("by section") < SECTION_NAMED) | noun.is_null()
        titled = np.where(asked.named, asked.dream, -1)
        title = self.titles.draw(titled, draws.random("title"))
        columns = {"noun": noun, "section": section, "by_section": by_section, "title": title}
        said, behind = draws.random("said", 3), draws.random("behind", 3)
        which = draws.random("which", 3)
        before: list[str] = []
        after: list[str] = []
        for j in range(3):
            wish = np.where(said[:, j] < SAID, asked.wishes[:, j], -1)
            late = behind[:, j] < BEHIND
            columns[f"after {j}"] = self.values.draw(np.where(late, wish, -1), which[:, j])
            columns[f"before {j}"] = self.values.draw(np.where(late, -1, wish), which[:, j])
            before.insert(0, f"before {j}")
            after.append(f"after {j}")
        core = pl.coalesce("title", pl.when("by_section").then("section").otherwise("noun"))
        parts = [*map(pl.col, before), core, *map(pl.col, after)]
        text = pl.concat_str(parts, separator=" ", ignore_nulls=True)
        searched = pl.when(pl.Series(asked.searched)).then(text)
        return pl.DataFrame(columns).select(searched).to_series()

    def requests(self, asked: Any, draws: Draws) -> pl.DataFrame:
        """Requests with the columns of a Log, all but the window."""
        user = self.users.gather(asked.user)
        session = pl.select(pl.lit(f"d{draws.day:03d}-") + user).to_series()
        narrow = np.where(asked.narrow, 2 + 2 * self.section[asked.leaf].astype(np.int64), 0)
        return pl.DataFrame(
            {
                "request_id": pl.select(session + f"-{draws.round + 1}").to_series(),
                "user_id": user,
                "ts": moments(asked.ts),
                "query": self.queries(asked, draws),
                "filters": self.filters.gather(narrow + asked.express),
                "context": self.devices.gather(self.mobile[asked.user].astype(np.int64)),
                "session_id": session,
                "source": pl.Series(["browse", "search"]).gather(asked.searched.astype(np.int64)),
            }
        )


def title_words(title: str) -> tuple[str, ...]:
    """The two ways to say up to three words of a title."""
    words = plain_words(title)
    starts = range(max(1, len(words) - 2)) if words else range(0)
    return tuple(" ".join(words[at : at + 3]) for at in starts)
