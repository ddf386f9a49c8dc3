"""Descriptions of the sources: what each holds and lacks, its licence, its files and where they
are.
"""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import KarmafunnelError, no_such
from ...files import read_text
from ...layout import CAPABILITIES

HERE = Path(__file__).parent
SOURCES = tuple(sorted(path.stem for path in HERE.glob("*.toml") if "." not in path.stem))


@dataclass(frozen=True)
class File:
    """A file of a source as its publisher names it.

    url: where it is; empty for a file that can only be fetched by hand, as `how` says.
    checksum: "md5:..." or "sha256:..." in hex; empty where unknown. members: the files to take out
    of an archive, by their path in it. variant: the only variant that has it. optional: the source
    can be converted without it. bytes: its size, 0 where unknown.
    """

    name: str
    url: str = ""
    how: str = ""
    checksum: str = ""
    bytes: int = 0
    members: tuple[str, ...] = ()
    variant: str = ""
    optional: bool = False

    def of(self, variant: str) -> File:
        """The file with `{variant}` filled in."""
        filled = {
            key: getattr(self, key).replace("{variant}", variant) for key in ("name", "url", "how")
        }
        members = tuple(member.replace("{variant}", variant) for member in self.members)
        return File(**vars(self) | filled | {"members": members})

    @property
    def result(self) -> tuple[str, ...]:
        """The names of the files that are there in the end."""
        return tuple(Path(member).name for member in self.members) or (self.name,)


@dataclass(frozen=True)
class Source:
    """A public data set that `convert` reads.

    title: what it is, at most 44 characters. about: the same in full. requests: what becomes a
    request. holds: capabilities as in the `has` of a log. accept: the licence must be accepted
    before a download. tried: the real rows that the converter was tried on; empty for none.
    variants: editions of which one is downloaded, the first by default.
    """

    name: str
    title: str
    about: str
    requests: str
    holds: tuple[str, ...]
    lacks: tuple[str, ...]
    licence: str
    home: str
    files: tuple[File, ...]
    accept: bool = False
    tried: str = ""
    variants: tuple[str, ...] = ()

    @property
    def map_file(self) -> Path | None:
        """The import map of the source, where a map is enough."""
        path = HERE / f"{self.name}.map.toml"
        return path if path.is_file() else None

    def found_in(self, raw: Path) -> list[str]:
        """The names of its files, of any variant, that are in a folder."""
        names: dict[str, None] = {}
        for variant in self.variants or (None,):
            for file in self.files_of(variant):
                names |= dict.fromkeys(name for name in file.result if (raw / name).is_file())
        return list(names)

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands that make a log of the source."""
        raw, log = f"raw/{self.name}", f"logs/{self.name}"
        accept = " --accept-licence" if self.accept else ""
        return (
            f"download {self.name} {raw}{accept}",
            f"convert {self.name} {raw} {log}",
            f"describe {log}",
        )

    def files_of(self, variant: str | None = None) -> list[File]:
        """The files of a variant (default: the first).

        Raises:
            KarmafunnelError: for an unknown variant.
        """
        chosen = variant or (self.variants[0] if self.variants else "")
        if chosen and chosen not in self.variants:
            needs = f"one of {', '.join(self.variants)}" if self.variants else "no variant"
            raise KarmafunnelError(self.name, what="variant", needs=needs, found=repr(chosen))
        return [file.of(chosen) for file in self.files if file.variant in ("", chosen)]


@cache
def describe(name: str) -> Source:
    """The description of a source.

    Raises:
        KarmafunnelError: for an unknown source, and for a description with an invalid key.
    """
    if name not in SOURCES:
        raise no_such("source", name, SOURCES, "karmafunnel sources")
    path = HERE / f"{name}.toml"
    found = tomllib.loads(read_text(path))
    files = tuple(made(File, file, path) for file in found.pop("files"))
    source = made(Source, found | {"name": name, "files": files}, path)
    if stray := [one for one in source.holds if one not in CAPABILITIES]:
        raise KarmafunnelError(
            path, what="holds", needs=f"words among {', '.join(CAPABILITIES)}", found=stray
        )
    return source


def made(kind: Any, found: Mapping[str, Any], path: Path) -> Any:
    """A dataclass of a table of TOML, with tuples for lists."""
    if stray := sorted(set(found) - {field.name for field in fields(kind)}):
        raise KarmafunnelError(path, needs="only known keys", found=", ".join(stray))
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})


# -- printing --------------------------------------------------------------------------------------

LETTERS = {
    "query": ("Q", "queries"),
    "exposures": ("L", "lists shown"),
    "clicks": ("C", "clicks"),
    "purchases": ("B", "purchases"),
    "price": ("P", "prices"),
    "text": ("T", "texts of items"),
    "users": ("U", "users who come back"),
    "propensity": ("O", "odds of being shown (propensities)"),
}


def holdings(sources: Iterable[Source]) -> str:
    """One line for each source: its name, what it is, a letter for everything it holds."""
    lines = []
    for one in sources:
        marks = [letter if name in one.holds else "." for name, (letter, _) in LETTERS.items()]
        real = " " if one.tried else "*"
        lines.append(f"{one.name:18}{real} {one.title:44} {' '.join(marks)}")
    legend = ", ".join(f"{letter} {words}" for letter, words in LETTERS.values())
    notes = [
        f"{legend}.",
        "* was never tried on real rows, only on made-up files of the published format.",
        "All about one: karmafunnel sources NAME",
    ]
    return "\n".join([*lines, "", *(textwrap.fill(note, 80) for note in notes)])


def story(one: Source) -> str:
    """All about a source, in lines of at most 80 characters but for addresses."""
    parts = [f"{one.name}: {one.title}", "", paragraph(one.about), "", paragraph(one.requests)]
    parts += ["", paragraph(f"Holds: {', '.join(one.holds)}."), "Lacks:"]
    parts += [paragraph(lack, "- ") for lack in one.lacks]
    parts += ["", paragraph(f"Licence: {one.licence}"), f"Home: {one.home}"]
    parts += [paragraph(f"Tried on: {one.tried or 'no real rows, only made-up files'}")]
    if one.variants:
        parts += [paragraph(f"Variants: {', '.join(one.variants)}; default: {one.variants[0]}")]
    parts += ["", "Files:"]
    for file in one.files:
        size = f", {file.bytes / 1e6:,.1f} MB" if file.bytes else ""
        of = f", {file.variant}" if file.variant else ""
        parts += [f"- {file.name}{size}{of}{', optional' if file.optional else ''}"]
        parts += [f"  {file.url}"] if file.url else []
        parts += [f"  {file.checksum}"] if file.checksum else []
        parts += [paragraph(f"takes out {', '.join(file.members)}", "  ")] if file.members else []
        parts += [paragraph(file.how, "  ")] if file.how else []
    return "\n".join([*parts, "", *(f"karmafunnel {line}" for line in one.commands)])


def paragraph(text: str, mark: str = "") -> str:
    """A text in lines of 80 characters, indented under a mark such as "- "."""
    words = " ".join(text.split())
    return textwrap.fill(
        words, 80, initial_indent=mark, subsequent_indent=" " * len(mark), break_long_words=False
    )
