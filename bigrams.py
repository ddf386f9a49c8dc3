"""Words of scripts that are written without blanks: pairs of neighbouring characters, as search
engines index Chinese and Japanese.
"""

from __future__ import annotations

import re

# Han (with its extension A and compatibility forms), Hiragana and Katakana
RUN = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]{2,}")


def spaced(text: str) -> str:
    """The text with each run of such characters as its pairs, with blanks around them; any other
    text as it is.
    """
    return RUN.sub(pairs, text)


def pairs(run: re.Match[str]) -> str:
    letters = run.group()
    return " " + " ".join(letters[i : i + 2] for i in range(len(letters) - 1)) + " "
