"""The simulation on cases whose whole history is worked out by hand, and what must hold in every
one.
"""

import hashlib
import json

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.simulator.load import queueing
from karmafunnel.simulator.load.arrivals import Arrivals, Daily, Flash, Poisson, Trace
from karmafunnel.simulator.load.queueing import Output, Simulation, simulate
from karmafunnel.simulator.load.services import (
    Adapt,
    Cache,
    Cold,
    Crash,
    Service,
    Services,
    ServiceTime,
    Slow,
)
from karmafunnel.simulator.load.steady import batch_quantiles, warmup
from karmafunnel.simulator.load.timeline import chrome_trace, timeline

pytestmark = pytest.mark.slow

TEN = ServiceTime(base_ms=10)


def service(name="s", time=TEN, **changes):
    return Service(name, time, **changes)


def run(stages, times, seed=0, **changes) -> Simulation:
    if isinstance(stages, Service):
        stages = (stages,)
    return simulate(
        Services(tuple(stages), **changes),
        Trace(np.array(times, dtype=float)),
        len(times),
        seed,
        events=True,
    )


def history(simulation, stage="s"):
    """Events of a stage as (ms, request, event, server, waiting)."""
    return (
        simulation.events.filter(pl.col("stage") == stage)
        .select("t_ms", "request", "event", "server", "waiting")
        .rows()
    )


def ends(simulation):
    return simulation.requests.select("latency_ms", "outcome", "path").rows()


# -- whole histories -------------------------------------------------------------------------------


def test_two_servers_three_requests():
    found = run(service(servers=2), [0, 1, 2])
    assert history(found) == [
        (0, 0, "come", -1, 0), (0, 0, "start", 0, 0),
        (1, 1, "come", -1, 0), (1, 1, "start", 1, 0),
        (2, 2, "come", -1, 0),
        (10, 0, "end", 0, 1), (10, 2, "start", 0, 0),
        (11, 1, "end", 1, 0),
        (20, 2, "end", 0, 0),
    ]  # fmt: skip
    assert ends(found) == [(10, "served", "full"), (10, "served", "full"), (18, "served", "full")]
    assert found.requests["s.wait_ms"].to_list() == [0, 0, 8]
    line = found.stages.row(0, named=True)
    assert (line["utilisation"], line["mean_waiting"], line["batches"]) == (30 / 40, 8 / 20, 3)


def test_a_batch_waits_for_others_but_no_longer_than_said():
    stage = service(time=ServiceTime(base_ms=4, request_ms=3), batch=3, wait_ms=5)
    found = run(stage, [0, 1, 2, 3, 4])
    # three make a batch at 2 and take 4 + 9; the other two have waited long enough when the server
    # is free, and take 4 + 6
    assert history(found) == [
        (0, 0, "come", -1, 0), (1, 1, "come", -1, 1), (2, 2, "come", -1, 2),
        (2, 0, "start", 0, 0), (2, 1, "start", 0, 0), (2, 2, "start", 0, 0),
        (3, 3, "come", -1, 0), (4, 4, "come", -1, 1),
        (15, 0, "end", 0, 2), (15, 1, "end", 0, 2), (15, 2, "end", 0, 2), (15, 3, "start", 0, 0), (15, 4, "start", 0, 0),
        (25, 3, "end", 0, 0), (25, 4, "end", 0, 0),
    ]  # fmt: skip
    alone = run(stage, [0, 20])
    assert [row[0] for row in history(alone) if row[2] == "start"] == [5, 25]


def test_a_full_waiting_room_sheds_and_fails_open_or_closed():
    stage = service(queue=1)
    found = run([stage, service("rank")], [0, 1, 2])
    # the third skips to ranking at 2 and is there until 12, before the others come at 10 and at 20
    assert ends(found) == [(22, "served", "full"), (31, "served", "full"), (10, "served", "s=skip")]
    closed = run([service(queue=1, fail="closed"), service("rank")], [0, 1, 2])
    assert ends(closed)[2] == (0, "shed", "nothing")
    assert closed.requests["s.wait_ms"].to_list() == [0, 9, None]
    assert closed.stages["shed"].to_list() == [1, 0]


def test_nobody_is_shed_while_a_server_is_free():
    assert [row[1] for row in ends(run(service(queue=0, fail="closed"), [0, 11, 15]))] == [
        "served",
        "served",
        "shed",
    ]


def test_patience_ends_while_waiting_and_not_in_service():
    found = run(service(patience_ms=7, fail="closed"), [0, 1, 4])
    # the second waits from 1 to 8 and leaves; the third waits from 4, is taken at 10, before its 11
    assert history(found) == [
        (0, 0, "come", -1, 0), (0, 0, "start", 0, 0), (1, 1, "come", -1, 0), (4, 2, "come", -1, 1),
        (8, 1, "abandoned", -1, 1), (10, 0, "end", 0, 1), (10, 2, "start", 0, 0), (20, 2, "end", 0, 0),
    ]  # fmt: skip
    assert ends(found) == [
        (10, "served", "full"),
        (7, "abandoned", "nothing"),
        (16, "served", "full"),
    ]


def test_a_stage_deadline_leaves_the_server_working_in_vain():
    found = run(service(deadline_ms=15, retries=0, fail="closed"), [0, 1, 2])
    # the second comes at 1, starts at 10, is late at 16; its server goes on until 20; the third
    # waits until 17 and is dropped
    assert history(found) == [
        (0, 0, "come", -1, 0), (0, 0, "start", 0, 0), (1, 1, "come", -1, 0), (2, 2, "come", -1, 1),
        (10, 0, "end", 0, 2), (10, 1, "start", 0, 1), (16, 1, "late", -1, 1), (17, 2, "late", -1, 0),
    ]  # fmt: skip
    assert [row[1] for row in ends(found)] == ["served", "late", "late"]


def test_past_the_end_to_end_deadline_what_stands_is_shown():
    stages = [service("recall", fallback="popular"), service("prerank"), service("rank")]
    found = run(stages, [0, 5], deadline_ms=32)
    # the first takes 30; the second is in ranking at 37: 5 + 5 + 10 + 10 + 10 is 45
    assert ends(found) == [(30, "served", "full"), (32, "served", "rank=skip")]
    assert ends(run(stages, [0, 5], deadline_ms=32, late="closed"))[1] == (32, "late", "nothing")
    slow = [service("recall", ServiceTime(request_ms=30), fallback="popular"), *stages[1:]]
    jammed = run(slow, [0, 1], deadline_ms=51)
    assert ends(jammed)[1] == (51, "served", "recall=popular,prerank=skip,rank=skip")
    strict = [slow[0], service("prerank", fail="closed"), stages[2]]
    assert ends(run(strict, [0, 1], deadline_ms=51))[1] == (51, "late", "nothing")


def test_a_retry_comes_to_the_end_of_the_queue():
    found = run(service(deadline_ms=12, retries=1), [0, 1, 2])
    # both are late once, at 13 and 14, and come again; the server works on the second in vain, at
    # 10 and at 20
    rows = history(found)
    assert [row[:2] for row in rows if row[2] == "late"] == [(13, 1), (14, 2), (25, 1), (26, 2)]
    assert [row[:2] for row in rows if row[2] == "start"] == [(0, 0), (10, 1), (20, 1)]
    assert ends(found) == [
        (10, "served", "full"),
        (24, "served", "s=skip"),
        (24, "served", "s=skip"),
    ]


def test_waits_of_all_tries_count():
    found = run(service(deadline_ms=12, retries=1), [0, 1, 2])
    # the second waits from 1 to 10 and from 13 to 20, the third from 2 to 14 and from 14 to 26
    assert found.requests["s.wait_ms"].to_list() == [0, 16, 24]
    # until the last one leaves
    assert found.stages["mean_waiting"][0] == pytest.approx((16 + 24) / 26)


@pytest.mark.parametrize("start", [0.0, 1e8, 1e9, 1e10])
@pytest.mark.parametrize("wait", [0.3, 1.0, 1.1])
def test_a_batch_goes_however_late_it_is(start, wait):
    found = run(service(batch=8, wait_ms=wait), [start, start + 0.1, start + 60])
    assert found.stages["batches"][0] == 2
    np.testing.assert_allclose(found.requests["s.wait_ms"], [wait, wait - 0.1, wait], atol=1e-5)


def test_cutoffs_fall_while_the_next_stage_is_pressed():
    recall = service("recall", ServiceTime(base_ms=1), k=100, adapt=Adapt((100, 40), (2,)))
    rank = service("rank", ServiceTime(item_us=1000), items=100)
    found = run([recall, rank], [0, 2, 4, 6, 8])
    # ranking takes 100 ms for 100 items: requests 1 and 2 wait, so that 3 and 4 bring 40
    assert found.requests["path"].to_list() == ["full", "full", "full", "recall=40", "recall=40"]
    assert found.requests["rank.service_ms"].to_list() == [100, 100, 100, 40, 40]


def test_cached_requests_take_no_server_and_near_line_ones_no_time():
    cached = run([service(cache=Cache(1.0)), service("rank")], [0, 1])
    assert cached.requests["s.service_ms"].to_list() == [None, None] and ends(cached)[0] == (
        10,
        "served",
        "full",
    )
    stages = [service("karma", online=False, stale_minutes=60), service("rank")]
    assert ends(run(stages, [0]))[0] == (10, "served", "karma=stale@60")


def test_cold_servers_are_slow_at_first_and_slow_ones_now_and_then():
    assert run(service(cold=Cold(2, 3.0)), [0, 100, 200]).requests["s.service_ms"].to_list() == [
        30,
        30,
        10,
    ]
    found = run(service(slow=Slow(0.25, 4.0)), np.arange(4000) * 100).requests["s.service_ms"]
    assert set(found.to_list()) == {10, 40} and abs((found == 40).mean() - 0.25) < 4 * np.sqrt(
        0.25 * 0.75 / 4000
    )


def test_a_crash_fails_what_is_in_service_and_a_repair_makes_it_cold():
    stage = service(
        time=ServiceTime(base_ms=400), crash=Crash(1.0, 0.5), cold=Cold(1, 2.0), retries=3
    )
    found = run(stage, np.arange(60) * 100.0)
    rows = history(found)
    crashed = [row for row in rows if row[2] == "crash"]
    assert crashed and found.stages["crashes"][0] == len(crashed)
    for t, _, _, server, _ in crashed:
        after = [row for row in rows if row[0] > t]
        repair = next((row[0] for row in after if row[2] == "repair"), None)
        if repair is None:
            continue
        assert not [
            row
            for row in rows
            if t < row[0] < repair and row[2] in ("start", "end") and row[3] == server
        ]
        begun = [row for row in after if row[2] == "start"]
        if (
            begun
            and (done := [row for row in after if row[2] == "end" and row[1] == begun[0][1]])
            and done[0][0] < begun[1][0]
        ):
            assert done[0][0] - begun[0][0] == pytest.approx(800)  # cold again
    assert (
        found.events.filter(pl.col("event") == "broken").height
        == found.events.filter(pl.col("event") == "failed").height
        > 0
    )


# -- what must always hold -------------------------------------------------------------------------


def busy(**changes) -> Services:
    """Four stages with everything that can go wrong."""
    time = ServiceTime("lognormal", base_ms=2, request_ms=1, cv=0.5)
    return Services(
        (
            Service("karma", time, servers=2, batch=4, wait_ms=1, deadline_ms=15, fallback="stale", stale_minutes=60, retries=1),
            Service("recall", time, servers=2, batch=2, queue=5, k=100, fallback="popular", crash=Crash(2.0, 0.2), cold=Cold(20, 2)),
            Service("prerank", ServiceTime("exponential", item_us=30), servers=2, items=100, k=20, patience_ms=10, adapt=Adapt((20, 10), (3,))),
            Service("rank", ServiceTime("empirical", base_ms=3, item_us=50, ratios=(0.5, 1, 2)), servers=2, items=20, queue=8, fail="closed"),
        ),
        **({"deadline_ms": 40} | changes),
    )  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    rate=st.integers(50, 900), seed=st.integers(0, 100), late=st.sampled_from(["open", "closed"])
)
def test_arrived_is_served_and_lost_and_in_the_system_at_every_instant(rate, seed, late):
    found = simulate(busy(late=late), Poisson(rate), 300, seed, events=True)
    whole = found.events.filter(pl.col("stage") == "")
    inside = 0
    for event, waiting in whole.select("event", "waiting").rows():
        inside += 1 if event == "arrive" else -1
        assert inside == waiting >= 0
    assert inside == 0 and whole.height == 2 * 300
    counts = dict(found.requests["outcome"].value_counts().iter_rows())
    assert sum(counts.values()) == 300
    for outcome, n in counts.items():
        name = outcome if outcome == "served" else f"lost: {outcome}"
        assert whole.filter(pl.col("event") == name).height == n
    assert (found.requests["path"] == "nothing").to_list() == (
        found.requests["outcome"] != "served"
    ).to_list()
    assert found.requests["latency_ms"].max() <= 40 + 1e-9
    for line in found.stages.iter_rows(named=True):
        assert 0 <= line["utilisation"] <= 1 and line["requests"] <= 300


def test_every_path_taken_is_one_that_the_services_name():
    taken = set()
    for rate in (50, 300, 600, 1200):
        taken |= set(simulate(busy(), Poisson(rate), 1500, 1).requests["path"].unique().to_list())
    assert len(taken) > 8 and taken - {"nothing"} <= set(busy().paths())


def test_a_waiting_request_is_where_the_events_say():
    """Waiting counts in the events are those of a recount."""
    events = simulate(busy(), Poisson(600), 2000, 2, events=True).events.filter(
        pl.col("stage") == "recall"
    )
    waiting: set[int] = set()
    for request, event, told in events.select("request", "event", "waiting").rows():
        if event == "start":
            waiting.discard(request)
        if event in ("come", "start", "overdue", "late"):
            assert told <= 5 + 1
        if event == "come":
            waiting.add(request)
        if event in ("shed", "overdue", "failed"):
            waiting.discard(request)
    assert not waiting


# -- the same draws --------------------------------------------------------------------------------


def test_same_seed_same_bytes_and_files_are_what_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(queueing, "ROWS", 100)  # several row groups
    kept = simulate(busy(), Poisson(400), 700, 3, events=True)
    one = simulate(busy(), Poisson(400), 700, 3, events=True, out=tmp_path / "one")
    simulate(busy(), Poisson(400), 700, 3, events=True, out=tmp_path / "two")
    for name in ("requests", "events", "over_time"):
        assert getattr(kept, name).equals(getattr(one, name))
    sums = [
        {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in (tmp_path / name).iterdir()
        }
        for name in ("one", "two")
    ]
    assert sums[0] == sums[1] and set(sums[0]) == {
        "requests.parquet", "events.parquet", "over_time.parquet", "services.toml", "simulation.json", "digests.json",
    }  # fmt: skip
    again = Simulation.open(tmp_path / "one")
    assert again.summary() == kept.summary() and again.stages.equals(kept.stages)
    assert not simulate(busy(), Poisson(400), 700, 4).requests.equals(kept.requests)


def test_draws_are_common_between_policies_and_rates():
    plain = Services(
        (
            service("recall", ServiceTime("lognormal", base_ms=5, cv=1), servers=3),
            service("rank", ServiceTime("exponential", base_ms=5), servers=3),
        )
    )
    shed = plain.change("recall", queue=0, fail="closed")
    a, b = (simulate(s, Poisson(500), 2000, 5).requests for s in (plain, shed))
    assert a["t_ms"].equals(b["t_ms"])
    both = (a["outcome"] == "served") & (b["outcome"] == "served")
    assert 0 < both.sum() < 2000
    for stage in ("recall", "rank"):  # up to the rounding of clocks
        np.testing.assert_allclose(
            a.filter(both)[f"{stage}.service_ms"], b.filter(both)[f"{stage}.service_ms"], atol=1e-6
        )
    fast = simulate(plain, Poisson(1000), 2000, 5).requests
    np.testing.assert_allclose(fast["t_ms"], a["t_ms"] / 2)


def test_draws_have_the_mean_and_spread_that_is_said():
    for time in (
        ServiceTime("exponential", base_ms=4), ServiceTime("lognormal", base_ms=4, cv=0.7),
        ServiceTime("empirical", base_ms=4, ratios=(0.2, 0.5, 0.9, 3.0)), ServiceTime("constant", base_ms=4),
    ):  # fmt: skip
        n = 40_000
        got = (
            simulate(Services((service(time=time, servers=1),)), Trace(np.arange(n) * 100.0), n, 0)
            .requests["s.service_ms"]
            .to_numpy()
        )
        mean, cv = time.mean_ms(), np.sqrt(time.squared_cv)
        assert abs(got.mean() - mean) <= 4 * mean * cv / np.sqrt(n) + 1e-6
        assert abs(got.std() / mean - cv) <= 0.03 * cv + 1e-6


# -- arrivals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arrivals",
    [Poisson(200), Daily(200, peak=2.0, bursts=0), Daily(200, peak=1.5, bursts=3), Flash(200)],
)
def test_arrivals_ascend_at_about_their_rate(arrivals: Arrivals):
    times = arrivals.times(20_000, np.random.default_rng(0))
    assert len(times) == 20_000 and (np.diff(times) >= 0).all() and times[0] > 0
    mean = 1000 * 20_000 / times[-1]
    if isinstance(arrivals, Flash):
        assert mean > 200
        count = np.histogram(times / 1000, bins=np.arange(0, times[-1] / 1000, 2))[0] / 2
        # five times as many, fading
        assert count.argmax() == int(0.4 * 100 / 2) and 600 < count.max() < 1000
        assert abs(np.median(count[:19]) - 200) < 25
    else:
        assert abs(mean / 200 - 1) < 0.15  # the last of a day come in the night, when they are rare
    if isinstance(arrivals, Daily) and not arrivals.bursts:
        night, noon = (
            (times < times[-1] * 0.1).sum(),
            ((times > times[-1] * 0.45) & (times < times[-1] * 0.55)).sum(),
        )
        assert night < 0.05 * noon


def test_a_trace_is_what_was_logged_and_scaled(shop):
    trace = Trace.of(shop, shop.requests_in("W3"))
    assert trace.times(len(trace.ids), np.random.default_rng(0))[0] == 0
    rows = shop.requests_in("W3")
    assert list(trace.ids) == shop.requests["request_id"][rows].to_list()
    np.testing.assert_array_equal(trace.times_ms, shop.t[rows] - shop.t[rows[0]])
    fast = Trace.of(shop, rows, rate=50.0)
    assert fast.rate == pytest.approx(50.0)
    with pytest.raises(KarmafunnelError, match="needs a trace of at least"):
        fast.times(len(rows) + 1, np.random.default_rng(0))


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Trace(np.array([])), "found none"),
        (lambda: Trace(np.array([0.0, 5.0, 3.0])), r"found 3 ms after 5 ms \(request 2\)"),
        (lambda: Trace(np.array([0.0, np.nan])), "needs finite times of at least 0 ms, found nan"),
        (lambda: Trace(np.array([0.0, 1.0]), ids=("a",)), "found 1"),
        (lambda: Poisson(0), "rate needs a number from 1e-06 to .*, found 0"),
        (lambda: Poisson(float("nan")), "found nan"),
        (lambda: Daily(10, peak=3), "peak needs a number from 1 to 2"),
        (lambda: Flash(10, at=1.0), "at needs a number from 0"),
        (
            lambda: Trace(np.array([0.0, 1.0])).times(-1, np.random.default_rng(0)),
            "requests needs a whole number from 1 to .*, found -1",
        ),
        (lambda: Poisson(1).times(0, np.random.default_rng(0)), "found 0"),
    ],
)
def test_bad_arrivals(make, said):
    with pytest.raises(KarmafunnelError, match=said):
        make()


# -- more than it can serve ------------------------------------------------------------------------


def test_above_one_the_growth_is_told():
    found = simulate(Services((service(),)), Poisson(150), 3000, 0)  # 100 a second can be served
    (name, growth), *_ = found.growing().items()
    assert name == "s" and growth == pytest.approx(50, rel=0.15)
    assert found.summary()["growing"] == {"s": growth} and found.summary()["warmup"] == 0
    assert simulate(Services((service(queue=10),)), Poisson(150), 3000, 0).growing() == {}
    assert simulate(Services((service(),)), Poisson(90), 3000, 0).growing() == {}


def test_a_stage_behind_one_that_sheds_does_not_grow():
    found = simulate(
        Services((service("a", queue=2, fail="closed"), service("b", ServiceTime(base_ms=8)))),
        Poisson(200),
        2000,
        0,
    )
    assert found.growing() == {}


def test_goodput_is_no_more_than_what_was_served_in_the_time_it_took():
    found = simulate(Services((service(),)), Poisson(1000), 500, 0)
    assert found.summary()["goodput"] == pytest.approx(100, rel=0.01)  # one server, 10 ms each


def test_too_many_in_the_system_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(queueing, "MOST", 200)
    with pytest.raises(
        KarmafunnelError,
        match=r"found more at request \d+; \d+ wait at s, whose offered utilisation is 4\.84",
    ):
        simulate(Services((service(),)), Poisson(500), 3000, 0, out=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_out_must_be_new_or_a_simulation(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KarmafunnelError, match="found something else"):
        simulate(Services((service(),)), Poisson(10), 20, 0, out=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    for _ in range(2):
        simulate(Services((service(),)), Poisson(10), 20, 0, out=tmp_path / "new")
    with pytest.raises(KarmafunnelError, match="from 1 to 20,000,000, found 1000000000000"):
        simulate(Services((service(),)), Poisson(10), 10**12)
    with pytest.raises(ZeroDivisionError):  # what else is written fails: nothing is left
        failing = Output(tmp_path / "other", add=lambda simulation, folder: 1 / 0)
        simulate(Services((service(),)), Poisson(10), 20, 0, out=failing)
    assert not (tmp_path / "other").exists()


def test_one_request_or_all_at_one_time():
    for times in ([0], [0, 0, 0]):
        found = run(service(), times)
        assert (
            found.summary()["outcomes"] == {"served": 1.0} and found.stages["utilisation"][0] == 1.0
        )


def test_rare_crashes_are_told():
    rare = Services((service(crash=Crash(3600.0, 60.0)),))
    assert simulate(rare, Poisson(50), 500, 0).summary()["rarely_crashing"] == ["s"]
    assert (
        simulate(rare.change("s", crash=Crash(0.1, 0.1)), Poisson(50), 500, 0).summary()[
            "rarely_crashing"
        ]
        == []
    )


def test_no_simulation_to_open(tmp_path):
    with pytest.raises(KarmafunnelError, match="needs a simulation"):
        Simulation.open(tmp_path)


# -- the long run ----------------------------------------------------------------------------------


def test_warm_up_is_cut_where_it_ends():
    rng = np.random.default_rng(0)
    values = rng.normal(size=5000) + np.where(np.arange(5000) < 400, 10.0, 0.0)
    assert 390 <= warmup(values) <= 450
    assert warmup(rng.normal(size=5000)) < 2500 and warmup(np.arange(3.0)) == 0


def test_warm_up_of_constant_latencies_is_none():
    for value in (1.2, 5.0, 7.7):
        assert warmup(np.full(20_000, value)) == 0


def test_intervals_hold_the_truth_as_often_as_they_say():
    hits = 0
    for seed in range(200):
        _, low, high = batch_quantiles(np.random.default_rng(seed).exponential(size=4000), 0.95)
        hits += low <= -np.log(0.05) <= high
    assert 178 <= hits <= 199
    assert batch_quantiles(np.arange(50.0), 0.99)[1] is None


# -- single requests -------------------------------------------------------------------------------


def test_a_timeline_and_a_trace_of_requests(tmp_path):
    found = run(
        [
            service(time=ServiceTime(base_ms=4, request_ms=3), batch=2, wait_ms=5),
            service("rank", queue=0),
        ],
        [0, 1, 3],
    )
    assert timeline(found, 1).rows() == [
        (0, "", "arrive", None, 2), (0, "s", "come", None, 1), (0, "s", "start", 0, 0), (10, "s", "end", 0, 1),
        (10, "rank", "come", None, 0), (10, "rank", "shed", None, 0), (10, "", "served", None, 2),
    ]  # fmt: skip
    events = json.loads(chrome_trace(found, tmp_path / "trace.json").read_text())["traceEvents"]
    work = [(e["name"], e["ts"], e["dur"], e["args"]["first"]) for e in events if e["ph"] == "X"]
    assert work == [("s", 1000, 10_000, 0), ("s", 11_000, 7000, 2), ("rank", 11_000, 10_000, 0)]
    opened = [(e["id"], e["pid"]) for e in events if e["ph"] == "b"]
    assert sorted(opened) == sorted((e["id"], e["pid"]) for e in events if e["ph"] == "e")
    assert [e["args"]["request"] for e in events if e["ph"] == "i"] == [1, 2]
    for bad, said in {99: "from 0 to 2, found 99", -1: "found -1"}.items():
        with pytest.raises(KarmafunnelError, match=said):
            timeline(found, bad)
    silent = simulate(Services((service(),)), Poisson(10), 5)
    for ask in (lambda: timeline(silent, 0), lambda: chrome_trace(silent, tmp_path / "no.json")):
        with pytest.raises(KarmafunnelError, match="were not kept"):
            ask()


def test_a_trace_has_what_was_worked_on_in_vain_beside_the_second_try(tmp_path):
    found = run(service(servers=2, deadline_ms=12, retries=1), [0, 0, 3, 30])
    # the third is taken at 10, late at 15, and taken by the other server, while the first goes on
    # until 20
    assert [row[:3] for row in history(found) if row[1] == 2 and row[2] != "come"] == [
        (10, 2, "start"), (15, 2, "late"), (15, 2, "again"), (15, 2, "start"), (20, 2, "vain"), (25, 2, "end"),
    ]  # fmt: skip
    events = json.loads(chrome_trace(found, tmp_path / "trace.json").read_text())["traceEvents"]
    work = [
        (e["tid"], e["ts"], e["dur"], e["cat"])
        for e in events
        if e["ph"] == "X" and e["args"]["first"] == 2
    ]
    assert work == [(0, 10_000, 10_000, "vain"), (1, 15_000, 10_000, "end")]


# -- the commands ----------------------------------------------------------------------------------


def command(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_queue_and_timeline_as_a_person_calls_them(tmp_path):
    (tmp_path / "s.toml").write_text(busy().toml())
    asked = [
        "queue",
        tmp_path / "s.toml",
        "--rate",
        400,
        "--requests",
        800,
        "--out",
        tmp_path / "out",
    ]
    done = command(*asked)
    assert done.exit_code == 0, done.output
    assert (
        "800 requests" in done.output and "latency p99" in done.output and "recall" in done.output
    )
    names = {
        "requests.parquet",
        "events.parquet",
        "over_time.parquet",
        "services.toml",
        "digests.json",
        "simulation.json",
        "load.html",
        "trace.json",
    }
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    said = json.loads(CliRunner().invoke(main, [*map(str, asked), "--json"]).stdout)
    assert (
        said["requests"] == 800
        and sum(said["outcomes"].values()) == pytest.approx(1)
        and said == Simulation.open(tmp_path / "out").summary()
    )
    line = command("timeline", tmp_path / "out", 17)
    assert line.exit_code == 0 and "request 17" in line.output and "arrive" in line.output
    rows = json.loads(command("timeline", tmp_path / "out", 17, "--json").stdout)
    assert rows[0]["event"] == "arrive" and rows[0]["since_ms"] == 0
    quiet = command(
        "queue",
        tmp_path / "s.toml",
        "--rate",
        5,
        "--requests",
        20,
        "--no-events",
        "--out",
        tmp_path / "quiet",
        "--arrivals",
        "flash",
    )
    assert quiet.exit_code == 0 and not (tmp_path / "quiet" / "events.parquet").exists()


def test_queue_plays_a_log(shop, tmp_path):
    shop.write(tmp_path / "log")
    (tmp_path / "s.toml").write_text(busy().toml())
    done = command(
        "queue",
        tmp_path / "s.toml",
        "--log",
        tmp_path / "log",
        "--rate",
        30,
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (
        said["requests"] == len(shop.requests_in("W3"))
        and said["rate"] == pytest.approx(30, rel=0.01)
        and said["warmup"] == 0
    )


def test_queue_says_that_a_stage_cannot_keep_up(tmp_path):
    (tmp_path / "s.toml").write_text(Services((service(),)).toml())
    done = command(
        "queue", tmp_path / "s.toml", "--rate", 150, "--requests", 2000, "--out", tmp_path / "out"
    )
    assert done.exit_code == 0
    assert "s: offered load is 1.47 of capacity" in done.output
    assert "requests a second" in done.output


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "needs --rate (requests a second) or --log"),
        (["--rate", "-3"], "needs a number from 0.001 to 1e+06, found '-3'"),
        (["--rate", "nan"], "needs a number from 0.001 to 1e+06, found 'nan'"),
        (
            ["--rate", "5", "--requests", "0"],
            "needs a whole number from 1 to 20,000,000, found '0'",
        ),
    ],
)
def test_queue_refuses_by_name(words, said, tmp_path):
    (tmp_path / "s.toml").write_text(Services((service(),)).toml())
    done = command("queue", tmp_path / "s.toml", *words, "--out", tmp_path / "out")
    assert (
        done.exit_code in (1, 2)
        and said in " ".join(done.output.split())
        and not (tmp_path / "out").exists()
    )
