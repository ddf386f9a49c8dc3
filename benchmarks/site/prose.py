"""Check the prose of README and docs/: no private words, short sentences, a short README.

    python -m karmafunnel.benchmarks.site.prose

Prints one line for each fault and ends with 1 if there is one. Code, tables and comments are not
read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
README_WORDS = 700  # fewer than these
SENTENCE_WORDS = 30  # at most, in README and guides
# Old names of the code and words of the project's own, with what to write instead.
WORDS = {
    "Scene": "context",
    "forced rows?": "tracked rows",
    "truths?": "relevant items",
    "interests?": "user embedding, query embedding",
    "Ledgers": "ledger",
    "faults?": "error",
    "[Tt]aught": "teacher, trained",
    "told (?:it|them|him|what|the)|is told|are told|be told": "says, is given",
    "tells": "says, prints",
    "[Hh]eld against": "compared with the baseline",
    "in vain": "shown and not clicked",
    "lay out": "build",
    "asks for what": "needs",
    "stands? beside": "is next to",
    "earns? its place": "improves the funnel",
    "told apart": "distinguished, significant",
    "says? its mind": "scores",
    "glows?": "is bright",
    "worth of a": "value of",
    "rooms?": "package",
    "house": "code base",
    "seams?": "interface",
    "neighbourhood feature": "`RankBelowLastClick`",
    "nobody knows": "unknown",
}
# Names of the literature that hold one of the words.
NAMES = ("Deep Interest Network", "next-interest embedding", "of interest")


def pages() -> list[Path]:
    """README and all pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def prose(text: str) -> list[str]:
    """The paragraphs, headings and list items of a Markdown text as plain text, one each."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"^( *)(```+).*?^\1\2 *$", "\n\n", text, flags=re.S | re.M)
    text = re.sub(r"^(?: {4}|\t)\S.*$", lambda line: indented(line[0]), text, flags=re.M)
    text = re.sub(r"^ *\|.*$", "", text, flags=re.M)
    text = re.sub(r"^!!! \w+(?: \"([^\"]*)\")?$", r"\1\n", text, flags=re.M)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]+`", "`code`", text)
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=#)|(?<=\n)(?=#)", text)
    return [words for block in blocks if (words := re.sub(r"^[#>\s*-]+|\s+", " ", block).strip())]


def indented(line: str) -> str:
    """A line of an admonition or a list item without its indent; one of a formula is dropped."""
    return line.strip() if re.search(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}", line) else ""


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph."""
    return re.split(
        r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<! al\.)[)\"']?\s+(?=[A-Z`\"(*_\d])", paragraph
    )


def count(text: str) -> int:
    """Number of words."""
    return len(re.findall(r"[^\W_][\w'’.,%@-]*|`code`", text))


def faults(page: Path) -> Iterator[str]:
    """What is wrong with a page, one line each."""
    name = page.relative_to(ROOT).as_posix()
    paragraphs = prose(page.read_text(encoding="utf-8"))
    for paragraph in paragraphs:
        plain = paragraph
        for allowed in NAMES:
            plain = plain.replace(allowed, "")
        for word, instead in WORDS.items():
            if found := re.search(rf"\b(?:{word})\b", plain):
                context = plain[max(0, found.start() - 30) : found.end() + 30]
                yield f"{name}: {found[0]!r} in {context!r}; write: {instead}"
        if name == "README.md" or name.startswith("docs/guides/"):
            for sentence in sentences(paragraph):
                if count(sentence) > SENTENCE_WORDS:
                    yield f"{name}: a sentence of {count(sentence)} words: {sentence[:80]!r}"
    if name == "README.md" and (words := sum(count(one) for one in paragraphs)) >= README_WORDS:
        yield f"{name}: {words} words, needs fewer than {README_WORDS}"


def main() -> None:
    """Print the faults of all pages."""
    found = [fault for page in pages() for fault in faults(page)]
    for fault in found:
        print(fault)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
