"""A funnel served over a loopback socket: the slates of the replay, planned times kept, batches as
a Service takes them, an end always.
"""

import os
import socket
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread

import numpy as np
import polars as pl
import pytest
from karmafunnel.benchmarks.validation import real_service
from karmafunnel.benchmarks.validation.real_service import (
    EMPTY,
    Lines,
    Pause,
    Worker,
    figure,
    footnotes,
    last_slate,
    listed,
    markdown,
    name_of,
    open_loop,
    overhead_of,
    passes_of,
    rows_of,
    server_of,
    service,
)
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.simulator.load.profile import MS, STAGE
from karmafunnel.simulator.replay.prepare import prepare
from karmafunnel.simulator.replay.recipe import load_recipe

pytestmark = pytest.mark.slow

RECIPE = """
from karmafunnel.stages.features import Popularity, Upstream
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.recall import Popular
embedders, label = {}, "click"
funnel = Popular(k=40) >> LightGBMPreRank(k=10, features=[Upstream(), Popularity()], trees=5)
"""
PAUSE = 30.0  # ms


@pytest.fixture(scope="module")
def told(tmp_path_factory, shop):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("a worker and a generator need two cores")
    root = tmp_path_factory.mktemp("service")
    shop.write(root / "log")
    (root / "small.py").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KARMAFUNNEL_CACHE", str(root / "cache"))
        yield Worker(
            str(root / "small.py"),
            str(root / "log"),
            max(os.sched_getaffinity(0)),
            pause_ms=PAUSE,
            seconds=60,
        )


def fitted_of(told: Worker):
    log = Log.open(told.log)
    recipe = load_recipe(told.recipe, log)
    return prepare(replace(recipe, funnel=recipe.funnel >> Pause(10, told.pause_ms)), log)


def test_a_service_serves(told):
    """Eight requests 10 ms apart, each of which takes 30 ms and more: sent at their times, served
    one by one, none forgotten.
    """
    cores = os.sched_getaffinity(0)
    with service(told) as (lines, ks):
        port = lines.connection.getpeername()
        assert port[0] == "127.0.0.1"
        assert os.sched_getaffinity(0) == cores - {told.core}
        assert ks == {"recall": 40, "prerank": 10, "pause": 10}
        requests = Log.open(told.log).requests_in("W3")
        times = 10.0 * np.arange(8)
        found = open_loop(lines, times, requests[[5, 3, 8, 1, 0, 9, 2, 7]])
        passes = passes_of(lines, len(ks), 1, 1.0, 3.0, 0)
        overhead = overhead_of(lines, 20)

    # the slates are those of the replay
    fitted = fitted_of(told)
    asked = requests[[5, 3, 8, 1, 0, 9, 2, 7]].tolist()
    for request, items in zip(asked, found["items"].to_list(), strict=True):
        assert items == listed(last_slate(fitted, [request]), [request])[request]
        assert len(items) == 10
    # planned times are kept though the answers take longer, and latency counts from them
    assert (found["sent_ms"] >= found["planned_ms"]).all()
    # a generator that waited for answers would send each request after the answer before it
    assert found["sent_ms"][-1] < found["done_ms"][-2]
    assert (found["latency_ms"] == found["done_ms"] - found["planned_ms"]).all()
    # one by one, in the order in which they came
    assert (found["service_ms"] >= PAUSE).all() and (found["n"] == 1).all()
    # (an answer may be read late, never early)
    done, first = found["done_ms"].to_list(), found["sent_ms"][0]
    assert done == sorted(done)
    assert all(at - first >= (i + 1) * PAUSE for i, at in enumerate(done))
    assert found["latency_ms"][-1] >= 8 * PAUSE - times[-1]
    # its profile as one server: the pause is in it
    one = server_of(told, [passes, passes], [overhead, overhead], ks)["funnel"]
    slowest = passes.group_by(STAGE).agg(pl.col(MS).max())[MS].sum()
    assert one.mean_ms() - overhead >= PAUSE
    assert one.mean_ms() - overhead <= slowest
    assert one.k == 10
    # all is closed
    assert os.sched_getaffinity(0) == cores
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(port, timeout=5)


@contextmanager
def here(told: Worker):
    """The same service in a thread: no process has to start."""
    ours, theirs = socket.socketpair()
    fitted = fitted_of(told)
    thread = Thread(target=real_service.serve, args=(fitted, theirs, told))
    thread.start()
    with ours, theirs:
        yield Lines(ours), thread, theirs
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert not thread.is_alive()


def test_a_batch_is_full_or_has_waited(told):
    """The first of a batch waits 200 ms for others: five at once are a full batch and one left
    over.
    """
    requests = Log.open(told.log).requests_in("W3")
    with here(replace(told, batch=4, wait_ms=200.0)) as (lines, _, _):
        found = open_loop(lines, np.zeros(5), requests[:5][::-1])
    assert found["n"].to_list() == [4, 4, 4, 4, 1] and found["latency_ms"][4] >= 200
    assert found["latency_ms"][0] < found["latency_ms"][4]


def test_a_worker_ends_after_so_many_requests_and_seconds(told):
    with here(replace(told, most=2)) as (lines, thread, _):
        open_loop(lines, np.zeros(2), np.full(2, EMPTY))
        thread.join(10)
        assert not thread.is_alive()
        with pytest.raises(KarmafunnelError, match=r"needs an answer of the worker within 0.2 s"):
            lines.ask({"id": 2, "t": 0.0, "request": EMPTY}, 0.2)
    with here(replace(told, seconds=0.3)) as (_, thread, _):
        thread.join(10)
        assert not thread.is_alive()
    with here(told) as (lines, thread, theirs):
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(
            KarmafunnelError, match="needs 1 answers, found a closed connection after 0"
        ):
            open_loop(lines, np.zeros(1), np.full(1, EMPTY))


def test_a_generator_needs_a_core_of_its_own(told):
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {told.core})
        with (
            pytest.raises(KarmafunnelError, match="needs a core beside the worker's"),
            service(told),
        ):
            pass
    finally:
        os.sched_setaffinity(0, cores)


def test_the_table_says_what_was_measured(told):
    """Two repetitions of 3 requests: means and spreads worked by hand."""
    one = {
        "measured": [1.0, 2.0, 3.0],
        "predicted": [[2.0, 2.0, 2.0]],
        "service_ms": 1.0,
        "late": 0.1,
    }
    two = one | {"measured": [3.0, 4.0, 5.0]}
    cell = {
        "load": 0.5,
        "pause_ms": 0.0,
        "rate": 10.0,
        "n": 3,
        "utilisation": 0.5,
        "profile_ms": 1.1,
        "overhead_ms": 0.1,
        "passes": 9,
        "load_average": [1.0, 2.0],
        "repetitions": [one, two],
    }
    asleep = cell | {
        "pause_ms": 5.0,
        "repetitions": [one | {"measured": [9.0, 9.0, 9.0], "predicted": [[8.0, 8.0, 8.0]]}],
    }
    row = rows_of(cell)[0]
    assert [row[k] for k in ("measured_ms", "least_ms", "most_ms", "predicted_ms")] == [
        3.0,
        2.0,
        4.0,
        2.0,
    ]
    assert row["error"] == pytest.approx(-1 / 3)
    assert row["inside"] is True
    assert rows_of(asleep)[0]["inside"] is False
    log = Log.open(told.log)
    below = footnotes(
        [cell, asleep], log, load_recipe(told.recipe, log), "command", 0, "Nothing else ran."
    )
    text = markdown([cell, asleep], below)
    assert (
        r"| 0.5 | 10.0 | 1.10 | 1.00 | p50 | 3.0 \[2.0, 4.0\] | 2.0 \[2.0, 2.0\] | −33% | yes |"
        in text
    )
    assert "moves p50 by 6.0 ms measured, 6.0 predicted" in text and "Nothing else ran." in text
    assert len(figure([cell, asleep])["data"]) == 3 + 2 and name_of(asleep) == "0.5, 5 ms asleep"
    assert real_service.LOADS == (0.3, 0.5, 0.75)
