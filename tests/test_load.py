"""The page of a simulation: its figures show the frames' numbers, and nothing is fetched."""

import json
import re

import numpy as np
import polars as pl
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.simulator.load.arrivals import Trace
from karmafunnel.simulator.load.quality import LoadQuality
from karmafunnel.simulator.load.queueing import simulate
from karmafunnel.simulator.load.services import Service, Services, ServiceTime
from karmafunnel.simulator.report import load_page as load

FIRST, SECOND = (
    Service("recall", ServiceTime(base_ms=10), servers=2),
    Service("rank", ServiceTime(base_ms=5)),
)


def run(times=(0, 0, 0, 100), events=True, **changes):
    return simulate(
        Services((FIRST, SECOND), **changes),
        Trace(np.array(times, dtype=float)),
        len(times),
        events=events,
    )


def traces(plot, kind):
    return [trace for trace in plot["data"] if trace["type"] == kind]


def test_latencies_of_stages_and_of_the_whole():
    # three come at once: two are served 0-10, one 10-20; ranking at 10-15, 15-20 and 20-25. The
    # fourth finds all free
    recall, rank, whole = load.latency_cdf(run())["data"]

    def share(line, ms):
        return max(y for x, y in zip(line["x"], line["y"], strict=True) if x <= ms + 1e-9)

    assert (
        recall["x"][0] == 10
        and recall["x"][-1] == 20
        and share(recall, 10) == pytest.approx(2 / 3, abs=0.01)
    )
    assert (rank["x"][0], rank["x"][-1]) == (5, 10)
    assert (whole["x"][0], whole["x"][-1]) == (15, 25)
    assert "shapes" not in load.latency_cdf(run())["layout"]
    assert load.latency_cdf(run(deadline_ms=40))["layout"]["shapes"][0]["x0"] == 40


def test_queues_and_servers():
    simulation = run()
    most, mean, *_ = load.waiting_over_time(simulation)["data"]
    assert max(most["y"]) == 1 and most["y"][-1] == 0
    assert all(a <= b for a, b in zip(mean["y"], most["y"], strict=True)) and most["x"][-1] < 0.115
    plot = load.busy_servers(simulation)
    (bars,), (ticks,) = traces(plot, "bar"), traces(plot, "scatter")
    # 40 ms of work by two servers and 20 ms by one, in 115 ms; four requests in 100 ms are 40 a
    # second
    assert bars["y"] == ["recall (2)", "rank (1)"] and bars["x"] == [
        pytest.approx(20 / 115),
        pytest.approx(20 / 115),
    ]
    assert ticks["x"] == [pytest.approx(0.2), pytest.approx(0.2)]


def test_a_request_as_a_timeline():
    plot = load.timelines(run(), [("third", 2), ("first", 0)])
    shown = [(bar["y"][0], bar["base"][0], bar["x"][0], bar["yaxis"]) for bar in plot["data"]]
    assert shown == [
        ("recall", 0, 10, "y"),
        ("recall", 10, 10, "y"),
        ("rank", 20, 5, "y"),
        ("recall", 0, 10, "y2"),
        ("rank", 10, 5, "y2"),
    ]
    with pytest.raises(KarmafunnelError, match="from 0 to 3, found 4"):
        load.timelines(run(), [("", 4)])
    with pytest.raises(KarmafunnelError, match="events"):
        load.timelines(run(events=False), [("", 0)])


def test_a_retry_waits_again():
    stage = Service("s", ServiceTime(base_ms=10), deadline_ms=12, retries=1)
    events = simulate(Services((stage,)), Trace(np.array([0.0, 1.0, 2.0])), 3, events=True).events
    # late at 14 and queued again; taken in vain by nobody before the end of the second try at 26
    assert load.segments(events.filter(pl.col("request") == 2)) == [
        ("s", "waits", 2, 14, "late"),
        ("s", "waits", 14, 26, "late"),
    ]


def test_what_a_server_goes_on_with_in_vain_is_no_wait():
    first, second = (
        Service("s", ServiceTime(base_ms=10), deadline_ms=15),
        Service("t", ServiceTime(base_ms=10)),
    )
    events = simulate(Services((first, second)), Trace(np.array([0.0, 1.0])), 2, events=True).events
    assert load.segments(events.filter(pl.col("request") == 1)) == [
        ("s", "waits", 1, 10, "start"), ("s", "service", 10, 16, "late"), ("t", "waits", 16, 20, "start"), ("t", "service", 20, 30, "end"),
    ]  # fmt: skip


def test_requests_to_look_at():
    found = load.typical(run(times=(0, 0, 0, 100)))
    assert found == {"median": 1, "p99": 2, "slowest": 2}  # latencies 15, 20, 25, 15


CURVE = pl.DataFrame(
    {
        "policy": ["a", "a", "b", "b"], "rate": [20.0, 10.0, 10.0, 20.0], "goodput": [18.0, 10.0, 10.0, 15.0],
        "p99_ms": [None, 5.0, 4.0, 9.0], "full": [0.5, 1.0, 1.0, 0.4], "nothing": [0.1, 0.0, 0.0, 0.25],
        "HR@10": [0.3, 0.4, 0.4, 0.2], "HR@10 low": [0.2, 0.3, 0.3, 0.1], "HR@10 high": [0.4, 0.5, 0.5, 0.3],
    }
)  # fmt: skip
OUTAGES = pl.DataFrame(
    {
        "stage": ["recall", "rank"], "path": ["recall=popular", "rank=skip"], "note": ["", "no Run of <rank=skip>"],
        "money": [100.0, 100.0], "lost": [30.0, None], "low": [20.0, None], "high": [45.0, None],
    }
)  # fmt: skip


def test_quality_over_load():
    plot = load.load_curves(CURVE, ["HR@10"], "EUR", 12.0)
    lines = [trace for trace in plot["data"] if trace.get("mode") == "lines+markers"]
    assert [(t["x"], t["y"]) for t in lines[:2]] == [([10, 20], [0.4, 0.3]), ([10, 20], [0.4, 0.2])]
    bands = [trace for trace in plot["data"] if trace.get("fill") == "toself"]
    assert len(bands) == 2 and bands[0]["y"] == [0.5, 0.4, 0.2, 0.3]  # of HR@10 alone
    p99 = [t for t in lines if t["yaxis"] == "y3"]
    assert [t["y"] for t in p99] == [[5.0], [4.0, 9.0]]
    assert plot["layout"]["annotations"][0]["text"] == "<b>HR@10</b>"
    assert plot["layout"]["yaxis3"].get("type") != "log"  # within a factor of ten
    slow = CURVE.with_columns(pl.col("p99_ms") * pl.col("rate") ** 3)
    drawn = load.load_curves(slow, ["HR@10"], "EUR", deadline_ms=4000.0)["layout"]
    assert drawn["yaxis3"]["type"] == "log" and drawn["annotations"][2]["text"].endswith("(log)</b>")
    assert [line["y0"] for line in drawn["shapes"]] == [4000.0]
    with pytest.raises(KarmafunnelError, match="nDCG@10"):
        load.load_curves(CURVE, ["nDCG@10"], "EUR")


def test_money_lost():
    (bars,) = load.money_lost(OUTAGES, "EUR")["data"]
    assert bars["y"] == ["recall: recall=popular"] and bars["x"] == [30.0]
    assert bars["error_x"]["array"] == [15.0] and bars["error_x"]["arrayminus"] == [10.0]


def test_the_page(tmp_path):
    quality = LoadQuality(
        [{"policy": "a", "measure": "HR@10"}], pl.DataFrame(), CURVE, OUTAGES, "EUR"
    )
    path = load.load_page(
        run(), tmp_path / "load.html", quality=quality, command="karmafunnel queue <s>.toml --rate 5"
    )
    text = path.read_text()
    assert re.findall(r'<section id="(\w+)">', text) == [
        "summary",
        "latency",
        "queues",
        "quality",
        "requests",
        "stages",
        "record",
    ]
    assert (
        "karmafunnel queue &lt;s&gt;.toml --rate 5" in text
        and "no Run of &lt;rank=skip&gt;" in text
    )
    figures = [
        json.loads(found)
        for found in re.findall(r'<script type="application/json">(.*?)</script>', text)
    ]
    assert len(figures) == 6 and all(figure["data"] for figure in figures)
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="http', text)
    assert not list(tmp_path.glob(".*"))
    bare = load.load_page(run(events=False), tmp_path / "bare.html").read_text()
    assert "events were not kept" in bare and 'id="quality"' not in bare


def test_a_queue_that_grows_is_said():
    slow = Services((Service("s", ServiceTime(base_ms=10)),))
    simulation = simulate(slow, Trace(np.arange(1, 400.0)), 399)
    said = str(load.summarised(simulation.summary()).blocks)
    assert "The queue of s is unbounded" in said
