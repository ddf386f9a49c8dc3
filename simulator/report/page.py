"""The builder of all HTML pages: it renders blocks of plain values as one file that needs no
network.

Every text is escaped: by the templates in HTML, and by `drawn` in figures, because plotly has its
own markup. Only `rich` makes markup. The Content-Security-Policy of each page allows only its own
scripts.
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
# significant digits of numbers in figures: the last bits of a sum depend on the order of threads
DIGITS = 10


# -- text and data ---------------------------------------------------------------------------------


def plain(value: Any) -> Markup:
    """A text escaped for HTML and plotly: tags, entities and `%{...}` of hover templates. Markup
    stays unchanged.
    """
    if isinstance(value, Markup):
        return value
    return Markup(escape(str(value)).replace("%{", "%&#123;"))


def rich(template: LiteralString, *values: Any) -> Markup:
    """Markup for HTML and figures: each `{}` of the template becomes the next value, escaped.

    Raises:
        ValueError: the template has more or fewer places than there are values.
    """
    parts = template.split("{}")
    if len(parts) != len(values) + 1:
        raise ValueError(
            f"rich: needed {len(parts) - 1} values for {template!r}, found {len(values)}"
        )
    filled = [
        str.__str__(plain(value)) + part for value, part in zip(values, parts[1:], strict=True)
    ]
    return Markup(parts[0] + "".join(filled))


def as_json(value: Any, text: Callable[[str], str] = str) -> Any:
    """A JSON-ready copy of a value; numbers that are not finite become None.

    Args:
        value: lists, mappings, arrays, dates, numbers and strings.
        text: applied to every string.
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
    """JSON for a <script> element, with characters escaped that could end the element."""
    text = json.dumps(as_json(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def drawn(plot: Plot) -> Plot:
    """A figure with all texts escaped for plotly; markup stays unchanged.

    Raises:
        TypeError: a hover template that is not markup, so that its `%{...}` would be escaped.
    """
    for trace in plot["data"]:
        if not isinstance(template := trace.get("hovertemplate", Markup()), Markup):
            raise TypeError(f"figure: needed a hover template that `rich` made, found {template!r}")
    return dict(as_json(plot, plain))


# -- blocks ----------------------------------------------------------------------------------------


class Block:
    """A part of a page: values for the macro of the same name in `blocks.html.j2`."""

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Text(Block):
    """A paragraph. look: "lead" before what it explains, "note" after it, "sub" under a title."""

    words: Words
    look: str = "lead"


@dataclass(frozen=True)
class Points(Block):
    """A list of sentences."""

    items: Sequence[Words]
    look: str = "lead"


@dataclass(frozen=True)
class Absent(Block):
    """A message in place of a result that the log has no data for."""

    words: Words
    what: str = "n/a"


@dataclass(frozen=True)
class Warned(Block):
    """A warning about the results below."""

    words: Words


@dataclass(frozen=True)
class Heading(Block):
    words: Words


@dataclass(frozen=True)
class Cards(Block):
    """Key figures: (name, value, explanation) of each."""

    cards: Sequence[tuple[Words, Words, Words]]


@dataclass(frozen=True)
class Figure(Block):
    """A plotly figure, drawn when it is scrolled near. legend: colour or dash by name."""

    plot: Plot
    legend: Mapping[str, str] = field(default_factory=dict)

    @property
    def height(self) -> int:
        return int(self.plot["layout"]["height"])

    @property
    def data(self) -> Markup:
        return embed(drawn(self.plot))

    @property
    def told(self) -> str:
        """What it shows, for screen readers: the titles of its panes, or else of its axes."""
        layout = self.plot["layout"]
        axes = [axis for name, axis in layout.items() if name[1:5] == "axis"]
        titled = [*layout.get("annotations", ()), *(layout[n] for n in ("title",) if n in layout)]
        titled = titled or [axis["title"] for axis in axes if "title" in axis]
        return plain(", ").join(plain(one["text"]) for one in titled).striptags() or "figure"

    @property
    def keys(self) -> list[tuple[str, str]]:
        """Name and CSS of each entry of the legend: a square for a colour, a line for a dash."""

        def dash(look: str) -> str:
            return f"height:0;border-top:2px {'dotted' if look == 'dot' else 'dashed'} #8b9199"

        return [
            (name, f"background:{look}" if look.startswith("#") else dash(look))
            for name, look in self.legend.items()
        ]


@dataclass(frozen=True)
class Beside(Block):
    """Blocks in as many columns of at least `least` pixels as fit."""

    blocks: Sequence[Block]
    least: int = 440
    framed: bool = False


@dataclass(frozen=True)
class Facts(Block):
    """A list of names and values."""

    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Details(Block):
    """Blocks that can be folded."""

    summary: Words
    blocks: Sequence[Block]
    unfolded: bool = False


@dataclass(frozen=True)
class Pre(Block):
    """Preformatted text such as code, with an optional small title."""

    words: Words
    title: Words = ""


@dataclass(frozen=True)
class Requests(Block):
    """A viewer of single requests (`request_page.look_up`), drawn by the page's script."""

    told: Mapping[str, Any]

    @property
    def data(self) -> Markup:
        return embed(self.told)


@dataclass(frozen=True)
class Section:
    """A section of a page. name: its anchor; short: its link in the navigation; title: its
    heading.
    """

    name: str
    short: str
    title: Words
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A page. eyebrow: the command that made it; top: blocks under the title."""

    title: str
    eyebrow: str
    top: Sequence[Block]
    sections: Sequence[Section]
    heading: str = ""  # default: the title


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
    """The text of a file of `templates`, as markup."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


@cache
def scripts() -> tuple[Markup, ...]:
    """All scripts of a page."""
    return Markup(get_plotlyjs()), part("page.js")


@cache
def policy() -> str:
    """The Content-Security-Policy of every page: its own scripts, by hash, and its own style."""
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
    """The text of the HTML file."""
    made = environment().get_template("base.html.j2")
    return made.render(page=page, policy=policy(), style=part("page.css"), scripts=scripts()) + "\n"


def fragment(block: Block) -> str:
    """The HTML of one block, for a page made elsewhere."""
    blocks: Any = environment().get_template("blocks.html.j2").module
    return str(blocks.block(block))


def notebook(block: Block) -> str:
    """The HTML of one block with its style, for the output of a notebook's cell."""
    return environment().get_template("notebook.html.j2").render(block=block)


def write_page(path: Path | str, page: Page) -> Path:
    """Write a page to a file that appears complete or not at all; returns its path.

    Raises:
        KarmafunnelError: the file exists and is not a page of karmafunnel.
    """
    with claim(path, "page", PAGE):
        return write_text(path, render(page), durable=False)
