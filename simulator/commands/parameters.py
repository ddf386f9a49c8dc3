"""Options that several commands have, and what a command does before its work."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ...bounds import BOUNDS
from ...checks import require
from ...errors import KarmafunnelError, quoted
from ...files import Kind, claim
from ...log import Catalogue, Log, read
from ...terminal import Console

err = Console(stderr=True)
out = Console()


class Number(click.ParamType):
    """A number within the bound of that name; NaN, infinity and what lies outside are refused."""

    def __init__(self, bound: str):
        self.bound = BOUNDS[bound]
        self.kind = int if isinstance(self.bound.low, int) else float
        self.name = "integer" if self.kind is int else "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = self.kind(value)
        except (ValueError, OverflowError):
            found = None
        if not self.bound.holds(found):
            self.fail(f"needs {self.bound}, found {quoted(value, 40)}", param, ctx)
        return found


class Numbers(Number):
    """Numbers within a bound, separated by commas."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        return [super(Numbers, self).convert(word, param, ctx) for word in value.split(",")]


class Cutoffs(Numbers):
    """A stage and its cutoffs: STAGE=K,K."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, _, ks = value.partition("=")
        return name, super().convert(ks, param, ctx)


class Place(click.Path):
    """A path. An empty text (a shell variable that is not set) is refused: it would be the current
    folder.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("needs a path, found an empty text", param, ctx)
        return super().convert(value, param, ctx)


folder = Place(path_type=Path)
log_argument = click.argument("log", type=folder)
seed_option = click.option(
    "--seed",
    type=Number("seed"),
    default=0,
    help="Seed of all random numbers; the same seed gives the same bytes, but for measured times.",
)
json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
device_option = click.option(
    "--device", default="cpu", help="Where neural models are fitted and run: cpu, cuda."
)
limit_option = click.option(
    "--limit",
    type=Number("limit"),
    help="Replay this many requests, spread over time; fewer are among more.",
)
window_option = click.option(
    "--window",
    type=click.Choice(["W3", "W2b"]),
    default="W3",
    help="The window to replay: W2b (validation) for tuning, W3 (test) for final results.",
)
no_cache_flag = click.option("--no-cache", is_flag=True, help="Fit everything anew.")
verbose_flag = click.option(
    "-v", "--verbose", is_flag=True, help="Also print what each measure and column means."
)
force_flag = click.option(
    "--force",
    is_flag=True,
    help="Also replace other or edited results of karmafunnel; nothing else is ever replaced.",
)


def claimed(
    place: Path,
    kind: Kind,
    *inputs: Path | str | None,
    wants: dict[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Claim a place to write until the command ends; see `files.claim`."""
    context = click.get_current_context()
    context.with_resource(
        claim(place, str(context.info_name), kind, wants=wants, inputs=inputs, force=force)
    )


def worker_flags(command: Any) -> Any:
    """--workers and --ray."""
    n = click.option(
        "--workers",
        type=Number("workers"),
        metavar="N",
        help="Replay by N processes of one thread each; with --ray, at most N at a time.",
    )
    ray = click.option(
        "--ray",
        metavar="ADDRESS",
        help="Replay on the Ray cluster at this address (host:6379, auto; local: start one here).",
    )
    return n(ray(command))


def takes_run_options(command: Any) -> Any:
    """Pass a command its options of fitting and replaying as one `RunOptions`."""

    @wraps(command)
    def with_options(**given: Any) -> None:
        from ..replay.options import RunOptions
        from ..replay.workers import Workers

        workers, ray = given.pop("workers", None), given.pop("ray", None)
        cache = click.get_current_context().with_resource(cache_folder(given.pop("no_cache")))
        names = {"seed", "device", "limit", "window", "force"} & given.keys()
        options = RunOptions(
            **{name: given.pop(name) for name in names},
            cache=cache,
            console=err,
            command=typed(),
            workers=None if workers is None and ray is None else Workers(workers, ray),
        )
        command(options=options, **given)

    return with_options


def typed() -> str:
    """The command line as it was typed."""
    return shlex.join(["karmafunnel", *sys.argv[1:]])


def open_log(path: Path, but: Sequence[str] = ()) -> Log:
    """Open a log; raises KarmafunnelError for a catalogue, and for a failed check (but those in
    `but`) that would change results.
    """
    log = read(path)
    if isinstance(log, Catalogue):
        raise KarmafunnelError(
            path, needs="a log with requests", found=f"a catalogue of {log.items.height} items"
        )
    require(log, but)
    return log


def read_catalogue(path: Path | None) -> Catalogue | None:
    """The catalogue, or the items of a log, in a folder; None without one.

    Raises KarmafunnelError for a log whose items no shop can sell.
    """
    if path is None:
        return None
    found = read(path)
    if isinstance(found, Catalogue):
        return found
    from ..world.own_goods import goods

    if (made := goods(found)) is None:
        needed = "a catalogue, or a log of at least 50 items with prices"
        raise KarmafunnelError(path, needs=needed, found=f"{found.name} without them")
    return made


@contextmanager
def cache_folder(no_cache: bool) -> Iterator[Path]:
    from ...keys import cache_root

    if no_cache:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
    else:
        yield cache_root()
