"""Services files: what is written is read, what is wrong is named, and every path is there."""

import re
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from karmafunnel.errors import KarmafunnelError
from karmafunnel.simulator.load import services as module
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

TEXT = """
name = "by hand"
deadline_ms = 100
[[stage]]
name = "recall"
servers = 2
k = 500
queue = 10
fallback = "popular"
time = {kind = "lognormal", base_ms = 1.2, request_ms = 0.3, cv = 0.2}
adapt = {levels = [500, 250], waiting = [10]}
[[stage]]
name = "rank"
items = 500
batch = 4
time = {kind = "empirical", item_us = 2.0, ratios = [0.5, 1, 3]}
"""


def of(**changes) -> Services:
    return Services.of({"stage": [{"name": "s", "time": {"base_ms": 5}} | changes]}, "f.toml")


def test_a_file_by_hand_and_back(tmp_path):
    (tmp_path / "a.toml").write_text(TEXT)
    found = Services.read(tmp_path / "a.toml")
    recall, rank = found.stages
    assert (recall.servers, recall.k, recall.fallback, recall.adapt) == (2, 500, "popular", Adapt((500, 250), (10,)))
    assert rank.time.ratios == (0.5, 1, 3) and rank.servers == 1 and found.deadline_ms == 100
    assert Services.read(found.write(tmp_path / "deep" / "b.toml")) == found
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["b.toml"]


@given(
    st.builds(
        Service, name=st.sampled_from(["recall", "rank"]), time=st.builds(ServiceTime, base_ms=st.floats(0.1, 100), item_us=st.floats(0, 9)),
        servers=st.integers(1, 9), batch=st.integers(1, 64), queue=st.none() | st.integers(0, 9), retries=st.integers(0, 3),
        fail=st.sampled_from(["open", "closed"]), cold=st.none() | st.just(Cold(3, 2.0)), slow=st.none() | st.just(Slow(0.1, 3.0)),
        crash=st.none() | st.just(Crash(60.0, 5.0)), cache=st.none() | st.just(Cache(0.5)),
    )
)  # fmt: skip
def test_any_service_is_written_and_read(service):
    services = Services((service,), name="any", deadline_ms=1e6)
    assert Services.of(tomllib.loads(services.toml())) == services


def test_times_by_hand():
    time = ServiceTime("empirical", base_ms=4, request_ms=2, item_us=500, ratios=(0.5, 1, 3))
    assert time.mean_ratio == (0.75 + 2) / 2
    # of straight lines from .5 to 1 and from 1 to 3
    second = ((0.25 + 0.5 + 1) / 3 + (1 + 3 + 9) / 3) / 2
    assert time.squared_cv == pytest.approx(second / 1.375**2 - 1)
    assert time.mean_ms(3, 20) == (4 + 6 + 10) * 1.375
    service = Service("s", ServiceTime(base_ms=8, request_ms=1), batch=4, servers=2, cache=Cache(0.5), slow=Slow(0.1, 11))
    assert service.mean_ms() == 12 / 4 and service.mean_ms(1) == 9
    assert service.utilisation(1000) == pytest.approx(1000 / 1000 * 3 * 0.5 * 2 / 2)
    assert Service("s", ServiceTime(base_ms=1), crash=Crash(9, 1)).utilisation(900) == pytest.approx(1.0)


def test_paths_by_hand():
    (a, b) = Services.of(tomllib.loads(TEXT)).stages
    services = Services((a, b), deadline_ms=100)
    assert services.paths() == [
        "full", "rank=skip", "recall=250", "recall=popular", "recall=250,rank=skip", "recall=popular,rank=skip",
    ]  # fmt: skip
    assert Services((a, b)).paths() == ["full", "recall=250", "recall=popular"]
    assert Services((a, b), deadline_ms=100, late="closed").paths() == ["full", "recall=250", "recall=popular"]
    near = Service("karma", ServiceTime(base_ms=5), online=False, stale_minutes=60)
    assert Services((near, b)).paths() == ["full", "karma=stale@60"]
    online = Service("karma", ServiceTime(base_ms=5), deadline_ms=9, fallback="stale", stale_minutes=5.5)
    assert Services((online, b)).paths() == ["full", "karma=stale@5.5"]


def test_too_many_paths_are_refused():
    levels = Adapt(tuple(range(40, 30, -1)), tuple(range(1, 10)))
    stages = [Service(name, ServiceTime(base_ms=1), k=40, adapt=levels) for name in ("a", "b")]
    with pytest.raises(KarmafunnelError, match=f"at most {module.MOST_PATHS} paths, found 100"):
        Services((*stages, Service("c", ServiceTime(base_ms=1)))).paths()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"servers": 0}, "stage 's': servers needs a whole number from 1 to 20,000, found 0"),
        ({"servers": 1.5}, "servers needs a whole number from 1 to 20,000, found 1.5"),
        ({"time": {"base_ms": -1}}, "stage 's': time: base_ms needs a number from 0 to 1e+09, found -1"),
        ({"time": {"base_ms": float("nan")}}, "found nan"),
        ({"time": {"base_ms": float("inf")}}, "found inf"),
        ({"time": {}}, "needs base_ms, request_ms or item_us above 0"),
        (
            {"time": {"base_ms": 1, "kind": "gamma"}},
            "kind needs one of constant, exponential, lognormal, empirical, found 'gamma'",
        ),
        ({"time": {"base_ms": 1, "cv": 0.3}}, "cv needs kind = 'lognormal', found kind 'constant'"),
        ({"time": {"base_ms": 1, "kind": "empirical", "ratios": [2, 1]}}, "ascending"),
        ({"time": 5}, "time: needs a table"),
        ({"deadline_ms": 4}, "deadline_ms needs more than the fastest service, 5 ms, found 4"),
        ({"deadline_ms": 5}, "deadline_ms needs more than the fastest service, 5 ms, found 5"),
        ({"fallback": ""}, "fallback needs 1 to 64 letters"),
        ({"fallback": "full"}, "fallback needs"),
        ({"fallback": "x,y=z"}, "fallback needs"),
        ({"online": "false"}, "online needs true or false, found 'false'"),
        ({"adapt": {"levels": 5, "waiting": [1]}}, "adapt: levels needs at most 100,000 numbers in brackets, found 5"),
        ({"time": {"base_ms": 1, "ratios": 2}}, "ratios needs at most 100,000 numbers in brackets, found 2"),
        ({"time": {"base_ms": 1, "kind": "empirical", "ratios": [0, 0]}}, "ratios needs a number above 0, found none"),
        ({"time": {"base_ms": 1, "kind": "lognormal", "cv": 1e200}}, "cv needs a number"),
        ({"deadline_ms": -4}, "deadline_ms needs a number above 0 and at most 1e+09, found -4"),
        ({"patience_ms": 0}, "patience_ms needs a number above 0 and at most 1e+09, found 0"),
        ({"fail": "ajar"}, "fail needs 'open' or 'closed', found 'ajar'"),
        ({"serves": 3}, "stage 's': needs keys among name, time, servers"),
        ({"name": "a=b"}, "name needs 1 to 64 letters"),
        ({"online": False}, "needs stale_minutes"),
        ({"fallback": "stale"}, "needs stale_minutes"),
        ({"slow": {"probability": 2, "factor": 3}}, "slow.probability needs a number from 0 to 1, found 2"),
        ({"crash": {"every_s": 0, "repair_s": 3}}, "crash.every_s needs a number from 0.001 to 1e+09, found 0"),
        ({"cold": {"requests": 3}}, "cold: needs requests, factor, found ['requests']"),
        ({"cache": {"hit": 1.2}}, "cache.hit needs"),
        ({"adapt": {"levels": [5, 3], "waiting": []}}, "one level more"),
        ({"adapt": {"levels": [3, 5], "waiting": [2]}}, "levels needs descending numbers, found (3, 5)"),
        ({"adapt": {"levels": [5, 3], "waiting": [2]}}, "adapt needs a next stage, whose queue it observes"),
        ({"k": 4, "adapt": {"levels": [5, 3], "waiting": [2]}}, "adapt.levels needs at most k = 4, found 5"),
    ],
)
def test_what_is_wrong_is_named(change, said):
    with pytest.raises(KarmafunnelError, match=re.escape(said)) as error:
        of(**change)
    assert str(error.value).startswith("f.toml: ")


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "x.toml").write_text("name = ")
    with pytest.raises(KarmafunnelError, match=r"x.toml: needs TOML, found"):
        Services.read(tmp_path / "x.toml")
    for text, said in {
        "": r"needs one \[\[stage\]\] table per stage, found 'none'", "deadline = 3": "needs keys among deadline_ms",
        TEXT.replace("deadline_ms = 100", "deadline_ms = 0.2"): "deadline_ms needs more than the fastest service, 0.5 ms, found 0.2",
        TEXT.replace('"rank"', '"recall"'): "different names",
    }.items():  # fmt: skip
        (tmp_path / "x.toml").write_text(text)
        with pytest.raises(KarmafunnelError, match=said):
            Services.read(tmp_path / "x.toml")
    with pytest.raises(KarmafunnelError, match="needs a stage among"):
        of()["t"]
