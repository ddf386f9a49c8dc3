"""The terminal: text from a log, a recipe, a Run or a services file is printed literally, never
interpreted as markup or control sequences.

Everything that the project prints with rich goes through `Console`; nothing else imports rich's.
"""

from __future__ import annotations

import errno
import os
import re
import time
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
    ProgressColumn,
    TaskID,
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
MINUS = "\u2212"
EVERY = 10.0  # seconds between two lines of progress where there is no terminal
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
            if not segment.control:
                segment = Segment(self._told(visible(segment.text)), segment.style)
            yield segment

    def _told(self, text: str) -> str:
        """The text with "-" for the minus sign where the encoding of the stream lacks it."""
        try:
            MINUS.encode(self.encoding)
        except (UnicodeError, LookupError):
            return text.replace(MINUS, "-")
        return text

    def on_broken_pipe(self) -> None:
        """Report a broken pipe to click, which then exits silently (rich would call sys.exit)."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def status(self, status: RenderableType, **options: Any) -> Status:
        return Status(status, console=self, **options)


# -- progress --------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Seconds as text: "34 s", "5 min 20 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Pace:
    """How long something takes, and, once its share is known, how long it still will."""

    def __init__(self) -> None:
        self.what = ""
        self.begun = self.said = time.monotonic()
        self.first = self.share = 0.0

    def at(self, what: str, share: float | None) -> str:
        """Time and share as text: "45%, 34 s, 41 s left".

        Args:
            what: something else than before, or less of it, begins anew.
            share: from 0 to 1; None where it is not known.
        """
        now = time.monotonic()
        if what != self.what or (share or 0.0) < self.share:
            self.what, self.begun, self.first = what, now, share or 0.0
        self.share = share or 0.0
        took = now - self.begun
        parts = [duration(took)]
        if share is not None:
            parts.insert(0, f"{share:.0%}")
            if took > 1 and share > self.first:
                left = took * (1 - share) / (share - self.first)
                parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def due(self) -> bool:
        """Whether a line is due where there is no terminal: `EVERY` seconds after the last one."""
        if time.monotonic() - self.said < EVERY:
            return False
        self.said = time.monotonic()
        return True


COUNT = re.compile(r"(\d[\d,]*) of (?:at most )?(\d[\d,]*)")


def share_of(text: str) -> float | None:
    """The share that a text tells: 0.3 for "epoch 2 of 5, step 10 of 20"; None where it does not.

    A count is of what is done; one with another behind it is of what is being done.
    """
    counts = [[int(number.replace(",", "")) for number in found] for found in COUNT.findall(text)]
    if not counts or any(not 0 < done <= total for done, total in counts):
        return None
    *outer, (done, total) = counts
    share = done / total
    for now, all_of_them in reversed(outer):
        share = (now - 1 + share) / all_of_them
    return share


class Status(rich.status.Status):
    """A status line that is printed literally (rich would read its text as markup), with the time
    that is left; where there is no terminal, a line from time to time.
    """

    def __init__(self, status: RenderableType, **options: Any):
        super().__init__(_literal(status), **options)
        self._lines = options["console"]
        self._pace = Pace()

    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        if isinstance(status, str):
            what = re.split(r"\d", status)[0]
            pace = self._pace.at(what, share_of(status))
            if "at most" in status:  # it may end before
                pace = re.sub(r", ([^,]* left)$", r", at most \1", pace)
            status = f"{status} ({pace})"
            if not self._lines.is_terminal and self._pace.due():
                self._lines.print(status, style="dim", soft_wrap=True)
        super().update(None if status is None else _literal(status), **options)

    def start(self) -> None:
        if self._lines.is_terminal:
            super().start()


def _literal(status: RenderableType) -> RenderableType:
    return Text(visible(status)) if isinstance(status, str) else status


class ProgressBar(Progress):
    """A progress bar; where there is no terminal, a line from time to time."""

    def __init__(self, *columns: ProgressColumn, console: rich.console.Console):
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._pace = Pace()

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        if not self.disable:
            return
        task = self._tasks[task_id]
        share = min(task.completed / task.total, 1.0) if task.total else None
        what = task.description if task.total else ""  # without a total, all of it is one thing
        text = self._pace.at(what, share)
        if self._pace.due():
            done = f"{task.completed:,.0f}"
            done += f" of {task.total:,.0f}" if task.total else " so far"
            self.console.print(f"{task.description}: {done} ({text})", style="dim", soft_wrap=True)


def progress_bar(console: rich.console.Console, *, of_bytes: bool = False) -> ProgressBar:
    """A progress bar in the style of all commands. `of_bytes`: of a download, with its speed."""
    amounts = (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(),)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *amounts,
        TimeRemainingColumn(),
    )
    return ProgressBar(*columns, console=console)
