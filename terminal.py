"""The terminal: text from a log, a recipe, a Run or a services file is printed literally, never
interpreted as markup or control sequences.

Everything that the project prints with rich goes through `Console`; nothing else imports rich's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any

import rich.console
import rich.status
from rich.console import ConsoleDimensions, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment
from rich.text import Text

# Control characters (C0, DEL and C1, which a terminal obeys) and those that turn the direction of
# writing; not tab and line feed.
OBEYED = [
    *range(9),
    *range(11, 32),
    *range(127, 160),
    0x200E,
    0x200F,
    0x2028,
    0x2029,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
]
WIDTH = 80  # characters of a line where no terminal says otherwise
SPELT = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in OBEYED}


def visible(text: str) -> str:
    """A text with control characters and lone surrogates escaped, such as `\\x1b`."""
    return text.translate(SPELT).encode("utf-8", "backslashreplace").decode()


class Console(rich.console.Console):
    """A console that prints every text literally: no markup, no emoji codes, no highlighting,
    control characters escaped. Where it is no terminal it is as wide as COLUMNS says, else `WIDTH`.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)
        self._fixed = options.get("width") is not None

    @property
    def size(self) -> ConsoleDimensions:
        if self.is_terminal or self._fixed:
            return super().size
        columns = os.environ.get("COLUMNS", "")
        return ConsoleDimensions(int(columns) if columns.isdigit() else WIDTH, super().size.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._fixed = True
        self._width, self._height = new_size

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Report a broken pipe to click, which then exits silently (rich would call sys.exit)."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def status(self, status: RenderableType, **options: Any) -> Status:
        return Status(status, console=self, **options)


class Status(rich.status.Status):
    """A status line that is printed literally: rich would read its text as markup."""

    def __init__(self, status: RenderableType, **options: Any):
        super().__init__(_literal(status), **options)

    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        super().update(None if status is None else _literal(status), **options)


def _literal(status: RenderableType) -> RenderableType:
    return Text(visible(status)) if isinstance(status, str) else status


def progress_bar(console: rich.console.Console, *, of_bytes: bool = False) -> Progress:
    """A progress bar in the style of all commands. `of_bytes`: of a download, with its speed."""
    amounts = (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(),)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *amounts,
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)
