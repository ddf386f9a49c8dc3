"""The comparison with theory: its sets, its lengths, its intervals; that it would notice a wrong
simulation, and that it goes on.
"""

import numpy as np
import pytest
from karmafunnel.benchmarks.validation import queue_theory
from karmafunnel.benchmarks.validation.queue_theory import (
    batches_of,
    cases,
    chain_variance,
    compare,
    kept,
    measures_of,
)
from karmafunnel.simulator.load.arrivals import Poisson
from karmafunnel.simulator.load.queueing import simulate

BY = {(case.model, case.said): case for case in cases()}
BUSY = BY["M/M/1", "ρ = 0.7"]


@pytest.fixture(scope="module")
def sums():
    simulation = simulate(BUSY.services, Poisson(BUSY.rate), 20_000 + BUSY.warmup, 3)
    return simulation, {
        key: np.array(value) for key, value in batches_of(BUSY, simulation.requests, 50).items()
    }


def test_the_sets():
    found = cases()
    assert len(found) == len(BY) >= 20
    assert {case.model for case in found} == {
        "M/M/1",
        "M/M/c",
        "M/D/1",
        "M/G/1",
        "tandem",
        "M/M/c/K",
        "M/M/c+D",
    }
    assert max(case.busiest for case in found if not case.theory[0].lost) == pytest.approx(0.95)
    for case in found:  # what theory is told is what is simulated
        for stage, steady in zip(case.services.stages, case.theory, strict=True):
            assert stage.utilisation(case.rate) * (1 - steady.lost) == pytest.approx(
                steady.utilisation
            )


@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_the_asymptotic_variance_of_a_queue(rho):
    # M/M/1, number in the system: 2 rho (1 + rho) / (1 - rho)^4 in service times (Whitt 1989, eq.
    # 20), mean rho / (1 - rho)
    n = np.arange(round(-27 / np.log(rho)))  # until nothing is left but rounding
    assert chain_variance((1 - rho) * rho**n, n, rho) == pytest.approx(
        2 * (1 + rho) / (1 - rho) ** 2
    )


def test_lengths_grow_with_what_is_asked():
    runs, n, batches = BUSY.runs(60)
    assert runs * n > 500_000
    assert runs * batches >= queue_theory.BATCHES
    assert n % batches == 0
    assert BY["M/M/1", "ρ = 0.95"].tolerance == 0.05 and BUSY.tolerance == 0.03
    few, many = BUSY.runs(1), BUSY.runs(1000)
    assert few[0] * few[1] < runs * n < many[0] * many[1]
    # ten times rho / (1 - sqrt(rho))^2 of the busiest
    assert BY["M/M/1", "ρ = 0.95"].warmup == pytest.approx(10 * 0.95 / (1 - 0.95**0.5) ** 2, abs=1)


def test_batches_add_up(sums):
    simulation, found = sums
    steady = simulation.requests[BUSY.warmup :]
    assert found["requests"].tolist() == [400] * 50
    assert found["s.wait"].sum() == pytest.approx(steady["s.wait_ms"].sum())
    assert found["s.services"].sum() == 20_000 and found["s.lost"].sum() == 0
    assert found["ms"].sum() == pytest.approx(
        steady["t_ms"][-1] - simulation.requests["t_ms"][BUSY.warmup - 1]
    )


def test_a_wrong_wait_is_noticed(sums):
    _, found = sums
    wait, busy = compare(BUSY, found, 60)
    assert (wait["measure"], wait["theory"]) == ("wait_ms", pytest.approx(70 / 3)) and busy[
        "theory"
    ] == pytest.approx(0.7)
    assert wait["inside"] and busy["inside"]
    assert not wait["narrow"]  # 20,000 requests do not do
    # the controls explain a part of the wait
    assert wait["left"] < 0.8 and busy["left"] == pytest.approx(1, abs=0.05)
    assert not compare(BUSY, found | {"s.wait": 1.5 * found["s.wait"]}, 60)[0]["inside"]
    assert not compare(BUSY, found | {"s.service": 1.1 * found["s.service"]}, 60)[1]["inside"]
    tighter = compare(BUSY, found, 1)[0]
    assert tighter["half_width"] < wait["half_width"] and tighter["simulated"] == wait["simulated"]


def test_control_variates_do_not_move_the_mean():
    """Over many small samples the estimate is that of theory, and its interval holds about as often
    as it says.
    """
    rng, inside, values = np.random.default_rng(0), 0, []
    for _ in range(300):
        gaps, service, noise = rng.exponential(14.2857, (3, 60, 50))
        fake = {
            "requests": np.full(60, 50.0),
            "ms": gaps.sum(1) * (1000 / BUSY.rate / 14.2857),
            "s.services": np.full(60, 50.0),
            "s.service": service.sum(1) * 10 / 14.2857,
            "s.waits": np.full(60, 50.0),
            "s.lost": np.zeros(60),
        }
        # a wait whose mean is that of theory, and that hangs on gaps and services
        fake["s.wait"] = (
            50 * BUSY.theory[0].wait_ms
            + 2 * (fake["s.service"] - 500)
            - (fake["ms"] - 50_000 / BUSY.rate)
        )
        fake["s.wait"] += noise.sum(1) / 14.2857 - 50
        line = compare(BUSY, fake, 1)[0]
        inside += line["inside"]
        values.append(line["simulated"])
    assert np.mean(values) == pytest.approx(
        BUSY.theory[0].wait_ms, abs=4 * np.std(values) / 300**0.5
    )
    assert inside >= 290  # of 300 at 99%


def test_it_goes_on_where_it_was(tmp_path, monkeypatch):
    small = BY["M/M/c+D", "c = 1, D = 20 ms, offered ρ = 0.8"]
    first = kept(small, tmp_path, 1, 1000, 10)
    assert measures_of(small)[2][:2] == ("s", "lost") and sum(first["s.lost"]) > 0
    monkeypatch.setattr(queue_theory, "simulate", lambda *a: pytest.fail("simulated again"))
    assert kept(small, tmp_path, 1, 1000, 10) == first
    monkeypatch.setattr(queue_theory, "behaviour", lambda case: "another simulation")
    with pytest.raises(pytest.fail.Exception):
        kept(small, tmp_path, 1, 1000, 10)


def test_what_is_written(sums, tmp_path):
    lines = compare(BUSY, sums[1], 60)
    paths = queue_theory.write(lines, tmp_path, ["said"])
    assert [path.name for path in paths][:3] == [
        "queue_theory.md",
        "queue_theory.csv",
        "queue_theory.html",
    ]
    text = paths[0].read_text()
    assert "| M/M/1 | ρ = 0.7 | mean wait, ms | 23.3333 |" in text
    assert "NO" in text
    assert text.endswith("said\n")
    assert len(paths[1].read_text().splitlines()) == 3
