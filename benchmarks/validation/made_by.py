"""The line below a committed table that says how it was made."""

import shlex
import sys
from datetime import UTC, datetime

from karmafunnel.simulator.replay.provenance import commit, processor


def made_by(recipe: str, told: str) -> str:
    """The command as it was typed, what it ran, date, commit and processor: one line of Markdown.

    Args:
        recipe: the module that is running, such as "validation.false_alarms".
        told: what the command does not say, such as its seed and sizes.
    """
    words = [f"karmafunnel.benchmarks.{recipe}", *sys.argv[1:]]
    by = f"commit {commit() or 'n/a'}, one core of {processor()}"
    return f"`python -m {shlex.join(words)}`, {told}; {datetime.now(UTC):%Y-%m-%d}, {by}."
