"""The one builder of HTML pages: blocks of plain values go in, one file that fetches nothing and
runs no text comes out.

Every text is escaped where it is put: by the templates in HTML, by `drawn` in figures, whose texts
plotly reads as an HTML of its own. Markup around a text is made by `rich` alone. A
Content-Security-Policy in every page lets only its own scripts run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, LiteralString

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ...files import PAGE, claim, write_text

Plot = dict[str, Any]
Words = str | Markup  # text, which is escaped, or what `rich` made of it
TEMPLATES = Path(__file__).with_name("templates")
# significant ones of a number in a figure: the last bits of a sum depend on the order in which
# threads added
DIGITS = 10


# -- text and data ---------------------------------------------------------------------------------


def plain(value: Any) -> Markup:
    """A text as HTML and plotly both print it: no tag, no entity, no `%{...}` of a hover template.
    What `rich` made stays.
    """
    if isinstance(value, Markup):
        return value
    return Markup(escape(str(value)).replace("%{", "%&#123;"))


def rich(template: LiteralString, *values: Any) -> Markup:
    """Markup of our own around values: each `{}` of the template is the next value, escaped. For
    HTML and for figures.

    Raises ValueError where the template has more or fewer places than there are values.
    """
    parts = template.split("{}")
    if len(parts) != len(values) + 1:
        raise ValueError(
            f"rich: needed {len(parts) - 1} values for {template!r}, found {len(values)}"
        )
    told = [str.__str__(plain(value)) + part for value, part in zip(values, parts[1:], strict=True)]
    return Markup(parts[0] + "".join(told))


def as_json(value: Any, text: Callable[[str], str] = str) -> Any:
    """A value of lists, mappings, arrays, dates and numbers as JSON can say it: `text` of every
    string, what is not finite is None.
    """
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(one, text) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(one, text) for one in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return as_json(value.tolist(), text)
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value.isoformat() if isinstance(value, date) else value


def embed(value: Any) -> Markup:
    """JSON for the inside of a <script>: no character of it can end the element or a string."""
    text = json.dumps(as_json(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def drawn(plot: Plot) -> Plot:
    """A figure whose texts plotly prints as they stand; what `rich` made stays markup. Raises
    TypeError for a template that it did not make: `%{...}` would be printed.
    """
    for trace in plot["data"]:
        if not isinstance(template := trace.get("hovertemplate", Markup()), Markup):
            raise TypeError(f"figure: needed a hover template that `rich` made, found {template!r}")
    return dict(as_json(plot, plain))


# -- blocks ----------------------------------------------------------------------------------------


class Block:
    """A piece of a page: plain values that one macro of `blocks.html.j2`, of the same name, turns
    into HTML.
    """

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Text(Block):
    """A paragraph: "lead" before what it explains, "note" below it, "sub" under a title."""

    words: Words
    look: str = "lead"


@dataclass(frozen=True)
class Points(Block):
    """A list of sentences."""

    items: Sequence[Words]
    look: str = "lead"


@dataclass(frozen=True)
class Absent(Block):
    """Said in place of what the log cannot tell."""

    words: Words
    what: str = "n/a"


@dataclass(frozen=True)
class Warned(Block):
    """What one must know before one believes the figures below."""

    words: Words


@dataclass(frozen=True)
class Heading(Block):
    words: Words


@dataclass(frozen=True)
class Cards(Block):
    """Key figures: (what, figure, what it says) each."""

    cards: Sequence[tuple[Words, Words, Words]]


@dataclass(frozen=True)
class Figure(Block):
    """A plotly figure, drawn once it scrolls near; `legend` is colour or dash by name."""

    plot: Plot
    legend: Mapping[str, str] = field(default_factory=dict)

    @property
    def height(self) -> int:
        return int(self.plot["layout"]["height"])

    @property
    def data(self) -> Markup:
        return embed(drawn(self.plot))

    @property
    def keys(self) -> list[tuple[str, str]]:
        """Name and CSS of each key: a filled square for a colour, a line for a dash."""

        def dash(look: str) -> str:
            return f"height:0;border-top:2px {'dotted' if look == 'dot' else 'dashed'} #8b9199"

        return [
            (name, f"background:{look}" if look.startswith("#") else dash(look))
            for name, look in self.legend.items()
        ]


@dataclass(frozen=True)
class Beside(Block):
    """Blocks in columns of at least `least` pixels, as many as there is room for."""

    blocks: Sequence[Block]
    least: int = 440
    framed: bool = False


@dataclass(frozen=True)
class Facts(Block):
    """Names and what they are."""

    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Details(Block):
    """Blocks that can be folded away."""

    summary: Words
    blocks: Sequence[Block]
    unfolded: bool = False


@dataclass(frozen=True)
class Pre(Block):
    """Code or a file as it stands, under a small title where there is one."""

    words: Words
    title: Words = ""


@dataclass(frozen=True)
class Requests(Block):
    """A picker over single requests (`samples.look_up`), drawn by the page's script."""

    told: Mapping[str, Any]

    @property
    def data(self) -> Markup:
        return embed(self.told)


@dataclass(frozen=True)
class Section:
    """A part of the page; `name` is its anchor, `title` its heading, `short` its word in the
    navigation.
    """

    name: str
    short: str
    title: Words
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole file. `eyebrow` says what made it, `top` stands under the title."""

    title: str
    eyebrow: str
    top: Sequence[Block]
    sections: Sequence[Section]
    heading: str = ""  # where it is not the title


# -- the file --------------------------------------------------------------------------------------


@cache
def environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def part(name: str) -> Markup:
    """A file of ours that is put into pages as it stands."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


@cache
def scripts() -> tuple[Markup, ...]:
    """All that may run in a page."""
    return Markup(get_plotlyjs()), part("page.js")


@cache
def policy() -> str:
    """The Content-Security-Policy of every page: its scripts by their hashes, its own style,
    nothing from anywhere.
    """
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts()
    ]
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{digest}'" for digest in digests),
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "font-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def render(page: Page) -> str:
    """The whole HTML file."""
    made = environment().get_template("base.html.j2")
    return made.render(page=page, policy=policy(), style=part("page.css"), scripts=scripts()) + "\n"


def fragment(block: Block) -> str:
    """The HTML of one block, for a page of someone else's."""
    blocks: Any = environment().get_template("blocks.html.j2").module
    return str(blocks.block(block))


def notebook(block: Block) -> str:
    """The HTML of one block with its style, for the output of a notebook's cell."""
    return environment().get_template("notebook.html.j2").render(block=block)


def write_page(path: Path | str, page: Page) -> Path:
    """Write a page to a file that appears whole or not at all; returns its path.

    Raises KarmafunnelError for a file that is no page of ours.
    """
    with claim(path, "page", PAGE):
        return write_text(path, render(page), durable=False)
