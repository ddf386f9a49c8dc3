"""Plans whose answer is known: by brute force, by closed form, or by hand."""

import json
import re
from dataclasses import replace
from itertools import product

import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.simulator.load import capacity
from karmafunnel.simulator.load.capacity import Search, plan
from karmafunnel.simulator.load.services import Service, Services, ServiceTime

pytestmark = pytest.mark.slow

EXPONENTIAL = ServiceTime("exponential", base_ms=10)
N = 1000


def pair(dear=3.0, **changes):
    """Two exponential stages, the second `dear` times as expensive."""
    return Services((Service("recall", EXPONENTIAL), Service("rank", EXPONENTIAL, cost_per_hour=dear)), **changes)


def brute(services, rate, target, most=4):
    """The least cost of 1 .. `most` servers of each stage at which every seed meets the target, and
    who reach it.
    """
    search = Search(services, rate, target, 0.001, N, 0, None)
    good = [servers for servers in product(range(1, most + 1), repeat=len(services.stages)) if search.sure(servers)]
    least = min(search.cost(servers) for servers in good)
    return least, [servers for servers in good if search.cost(servers) == least]


@pytest.mark.parametrize("dear, target", [(3.0, 95.0), (0.4, 80.0)])
def test_the_plan_is_what_brute_force_finds(dear, target):
    services = pair(dear)
    least, who = brute(services, 150.0, target)
    found = plan(services, 150.0, target, n=N)
    assert found.services.cost_per_hour == pytest.approx(least) and tuple(found.stages["servers"]) in who
    assert found.proven and found.p99_ms <= target and found.degraded == 0
    assert all(a <= b for a, b in zip(found.stages["fewest"], found.stages["servers"], strict=True))


def test_two_servers_are_enough_by_hand():
    # constant 10 ms and 100 a second: one server is offered all that it can do, two leave few
    # waiting for more than one service
    found = plan(Services((Service("s", ServiceTime(base_ms=10), cost_per_hour=0.9),)), 100.0, 35.0, n=N)
    line = found.stages.row(0, named=True)
    assert (line["servers"], line["fewest"], line["cost_per_hour"]) == (2, 2, 1.8)
    assert line["utilisation"] == pytest.approx(0.5, abs=0.05)
    assert found.cost_per_million == pytest.approx(1.8 / 360_000 * 1e6)  # 360,000 requests an hour
    what = {row["change"]: row for row in found.what_if.to_dicts()}
    assert list(what) == ["as planned", "rate -20%", "rate +20%", "rate +50%", "one s less", "one s more"]
    assert what["one s less"]["p99_ms"] is None and not what["one s less"]["meets"]
    assert what["as planned"]["meets"] and what["one s more"]["p99_ms"] < what["as planned"]["p99_ms"]
    assert what["one s more"]["cost_per_million"] == pytest.approx(7.5) and what["rate +50%"]["rate"] == 150
    # headroom: met there, and not a little above
    search = Search(found.services, 100.0, 35.0, 0.001, N, 0, None)
    assert 100 < found.headroom < 200
    assert search.sure((2,), found.headroom) and not search.sure((2,), found.headroom * 1.012)


def test_a_target_that_nothing_reaches():
    with pytest.raises(KarmafunnelError, match=r"p99_ms of at least 20, .*found 19"):
        plan(Services((Service("a", ServiceTime(base_ms=12)), Service("b", ServiceTime(base_ms=8)))), 100.0, 19.0, n=N)


def test_deadlines_that_degrade_whatever_the_servers():
    # a seventh of services takes longer
    hasty = Service("hasty", replace(EXPONENTIAL), deadline_ms=20)
    with pytest.raises(KarmafunnelError, match=r"found 1\d\.\d\d% with ample servers, most at hasty"):
        plan(Services((hasty,)), 100.0, 50.0, n=N)
    assert plan(Services((hasty,)), 100.0, 50.0, lost=0.5, n=N).degraded > 0.1
    # the option and the deadline that would help are named, and the option does
    with pytest.raises(KarmafunnelError) as raised:
        plan(Services((hasty,)), 100.0, 50.0, n=N)
    lost = float(re.search(r"`--lost ([.\d]+)`", raised.value.hint)[1])
    assert f"longer deadlines (hasty {hasty.deadline_ms:g} ms)" in raised.value.hint
    assert plan(Services((hasty,)), 100.0, 50.0, lost=lost, n=N).degraded <= lost


def test_shedding_counts_as_lost():
    """A short queue keeps p99 low by turning requests away: the plan has servers enough for all."""
    found = plan(Services((Service("s", EXPONENTIAL, queue=1, fail="closed"),)), 150.0, 70.0, n=N)
    assert found.degraded <= 0.001 and found.stages["servers"][0] >= 4
    loose = plan(Services((Service("s", EXPONENTIAL, queue=1, fail="closed"),)), 150.0, 70.0, lost=0.3, n=N)
    assert loose.stages["servers"][0] < found.stages["servers"][0]


def test_what_is_near_line_keeps_its_servers():
    stages = (Service("karma", EXPONENTIAL, servers=7, online=False, stale_minutes=60), Service("s", EXPONENTIAL))
    found = plan(Services(stages), 150.0, 70.0, n=N)
    assert found.stages["stage"].to_list() == ["s"] and found.services["karma"].servers == 7 and found.degraded == 0


def test_batches_are_a_customer_each_in_the_closed_form():
    # M/M/c of batches: 8 in 40 ms at 1,000 a second are 5 servers' worth
    stage = Service("s", ServiceTime("exponential", base_ms=40), batch=8)
    search = Search(Services((stage,)), 1000.0, 100.0, 0.001, N, 0, None)
    assert search.fewest_stable(stage) == 6  # not 5, which would be busy all the time
    waits = [search.predicted_wait(stage, c) for c in (6, 7, 8)]
    assert waits[0] > waits[1] > waits[2] > 0
    assert search.start(waits[1], (20,)) == (7,) and search.start(waits[1], (6,)) == (6,)


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"rate": 0.0}, "rate needs a number from 0.001 to 1e\\+06, found 0"),
        ({"rate": float("nan")}, "rate needs a number from 0.001 to 1e\\+06, found nan"),
        ({"p99_ms": 0.0}, "p99_ms needs"),
        ({"p99_ms": float("nan")}, "p99_ms needs"),
        ({"lost": 1.0}, "lost needs a number from 0"),
        ({"n": 10}, "requests needs a whole number from 1,000 to"),
    ],
)
def test_bad_input_is_refused(asked, said):
    with pytest.raises(KarmafunnelError, match=said):
        plan(pair(), **{"rate": 100.0, "p99_ms": 100.0, "n": N} | asked)


def test_when_the_tries_run_out_it_is_said(monkeypatch):
    monkeypatch.setattr(capacity, "MOST", 0)
    search = Search(pair(), 150.0, 90.0, 0.001, N, 0, None)
    assert search.cheapest((4, 4), (2, 2)) == ((4, 4), False)
    assert search.cheapest((2, 2), (2, 2)) == ((2, 2), True)  # nothing is cheaper


def test_the_command(tmp_path):
    path = pair(name="pair").write(tmp_path / "pair.toml")
    asked = ["plan", str(path), "--rate", "150", "--p99-ms", "95", "--requests", str(N), "--json", "--out", str(tmp_path / "out")]
    said = json.loads(CliRunner().invoke(main, asked).stdout)
    kept = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert kept == said | {"deployment": pair(name="pair").toml()} and kept["proven"]
    assert Services.read(tmp_path / "out" / "services.toml").cost_per_hour == said["cost_per_hour"]
    assert pl.read_csv(tmp_path / "out" / "what_if.csv").height == len(said["what_if"])
    page = (tmp_path / "out" / "load.html").read_text()
    assert 'id="plan"' in page and "one recall more" in page


def test_what_the_command_prints(tmp_path):
    path = Services((Service("s", ServiceTime(base_ms=10)),)).write(tmp_path / "one.toml")
    asked = ["plan", str(path), "--p99-ms", "35", "--requests", str(N), "--rate"]
    table = CliRunner().invoke(main, [*asked, "100"])
    assert table.exit_code == 0 and "headroom" in table.output and "one s less" in table.output
    refused = CliRunner().invoke(main, [*asked, "0"])
    assert refused.exit_code == 2 and "needs a number from 0.001" in refused.output and "Traceback" not in refused.output
