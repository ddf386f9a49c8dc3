"""Closed forms against values worked by hand, textbook examples, and numeric integration of what
they integrate.
"""

import math
from math import exp, factorial

import numpy as np
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.simulator.load import theory
from karmafunnel.simulator.load.theory import Steady
from scipy import integrate


def near(value):
    return pytest.approx(value, rel=1e-9)


def test_one_exponential_server():
    # 80 a second, 10 ms: rho = 4/5, W = (4/5) / (1/5) * 10
    found = theory.mm1(80, 10)
    assert (found.utilisation, found.wait_ms, found.lost) == (near(4 / 5), near(40), 0)


def test_erlang_by_hand():
    # two servers, one Erlang: B = (1/2) / (1 + 1 + 1/2) = 1/5; C = 2 B / (2 - 1 (1 - B)) = (2/5) /
    # (6/5) = 1/3
    assert theory.erlang_b(1, 2) == near(1 / 5)
    assert theory.erlang_c(1, 2) == near(1 / 3)
    # a telephone exchange's table: 10 trunks block 1% at 4.4612 Erlang
    assert theory.erlang_b(4.4612, 10) == pytest.approx(0.01, abs=1e-6)
    found = theory.mmc(100, 10, 2)
    assert (found.utilisation, found.wait_ms) == (near(1 / 2), near(10 / 3))  # (1/3) 10 / (2 - 1)
    # three servers, two Erlang: P0 = 1 / (1 + 2 + 2 + 8/6 * 3) = 1/9, C = 4 / 9, W = (4/9) S
    assert theory.mmc(200, 10, 3).wait_ms == near(40 / 9)
    assert theory.mmc(80, 10, 1) == theory.mm1(80, 10)


def test_many_servers_do_not_overflow():
    assert 0 < theory.mmc(95_000, 10, 1000).wait_ms < 10
    assert (
        theory.mmc(1, 10, 1000) == Steady(near(1e-5), 0.0) == theory.mmc_patience(1, 10, 1000, 5) == theory.mmck(1, 10, 1000, 5)
    )
    assert theory.mmck(90, 10, 1, 20_000).wait_ms == near(90)
    assert theory.mmck(1e6, 10, 10, 5000).lost == near(1 - 1 / 1000)
    assert theory.mmc_patience(1e6, 10, 10, 5000).lost == near(1 - 1 / 1000)


def test_pollaczek_khinchine():
    # 50 a second, 10 ms: rho / (1 - rho) = 1
    assert theory.mg1(50, 10, 3).wait_ms == near(20)
    assert theory.md1(50, 10).wait_ms == near(5)
    assert theory.mg1(50, 10, 1) == theory.mm1(50, 10)


def test_a_tandem_is_its_stages():
    first, second = theory.tandem(100, [(10, 2), (5, 1)])
    assert (first.wait_ms, second.wait_ms) == (near(10 / 3), near(5))


def chain(load, servers, queue):
    """P(0) .. P(c + queue) from factorials."""
    p = [
        load**n / factorial(n) if n <= servers else load**n / factorial(servers) / servers ** (n - servers)
        for n in range(servers + queue + 1)
    ]
    return np.array(p) / sum(p)


def test_a_full_room_by_hand():
    # one server, one waiting place, rho = 1: a third of the time in each state; lost 1/3, one waits
    # a third of the time, 2/3 get in
    found = theory.mmck(100, 10, 1, 1)
    assert (found.utilisation, found.lost) == (near(2 / 3), near(1 / 3))
    assert found.wait_ms == near(5)  # Lq / accepted = (1/3) / (100 * 2/3 a second)
    # no room at all is Erlang B, and nobody waits
    assert theory.mmck(100, 10, 2, 0) == Steady(near(0.4), 0.0, near(0.2))


@pytest.mark.parametrize("rate, servers, queue", [(50, 1, 3), (150, 1, 4), (280, 3, 6), (300, 3, 6), (400, 3, 6)])
def test_a_full_room_is_its_chain(rate, servers, queue):
    p, found = chain(rate / 100, servers, queue), theory.mmck(rate, 10, servers, queue)
    waiting = sum(n * p[servers + n] for n in range(queue + 1))
    assert found.lost == near(p[-1])
    assert found.wait_ms == near(1000 * waiting / (rate * (1 - p[-1])))
    assert found.utilisation == near(rate / 100 * (1 - p[-1]) / servers)


def test_impatience_by_hand():
    # one server, rho = 1, patience of one service: density of V is constant up to D = 10 and falls
    # as e^(-x/10) beyond it. In units of P0: 1 + 1 + 1; lost 1/3, all served keep the server 2/3
    # busy; E min(V, D) = (1/3) 5 + (1/3) 10
    found = theory.mmc_patience(100, 10, 1, 10)
    assert (found.lost, found.utilisation, found.wait_ms) == (near(1 / 3), near(2 / 3), near(5))
    # rho = 1/2: (1, then (1 - e^-1/2), then e^-1/2 / 2) over 1 + 1 - e^-1/2 / 2
    rest = exp(-1 / 2)
    assert theory.mmc_patience(50, 10, 1, 10).lost == near(rest / 2 / (2 - rest / 2))


@pytest.mark.parametrize("rate, servers, patience", [(50, 1, 8), (99.999999, 1, 8), (270, 3, 20), (300, 3, 5), (450, 3, 12)])
def test_impatience_against_numeric_integration(rate, servers, patience):
    """Balance of the virtual wait, integrated numerically: states below c from factorials, density
    of waiting above.
    """
    a, arrive, leave = rate / 100, rate / 1000, servers / 10
    below = [a**n / factorial(n) for n in range(servers)]

    def density(x):
        return arrive * below[-1] * exp(arrive * min(x, patience) - leave * x)

    mass, _ = integrate.quad(density, 0, patience)
    beyond, _ = integrate.quad(density, patience, math.inf)
    first, _ = integrate.quad(lambda x: x * density(x), 0, patience)
    total = sum(below) + mass + beyond
    found = theory.mmc_patience(rate, 10, servers, patience)
    assert found.lost == pytest.approx(beyond / total, rel=1e-6)
    assert found.wait_ms == pytest.approx((first + patience * beyond) / total, rel=1e-6)
    assert found.utilisation == pytest.approx(a * (1 - beyond / total) / servers, rel=1e-6)


def test_endless_patience_and_room_are_erlang():
    exact = theory.mmc(270, 10, 3)
    for found in (theory.mmc_patience(270, 10, 3, 2000), theory.mmck(270, 10, 3, 2000)):
        assert found.wait_ms == pytest.approx(exact.wait_ms, rel=1e-6) and found.lost < 1e-12


def test_allen_cunneen_is_exact_where_it_must_be():
    assert theory.allen_cunneen(200, 10, 3, 1).wait_ms == near(40 / 9)
    assert theory.allen_cunneen(50, 10, 1, 3) == theory.mg1(50, 10, 3)
    assert theory.allen_cunneen(200, 10, 3, 0, 0).wait_ms == 0


def test_the_quantile_of_a_wait():
    # M/M/1, rho = 4/5: P(W > t) = 4/5 e^(-t / 50)
    assert theory.wait_quantile_ms(80, 10, 1, 1, 0.99) == near(50 * math.log(80))
    assert theory.wait_quantile_ms(80, 10, 1, 1, 0.1) == 0


@pytest.mark.parametrize(
    "ask, said",
    [
        (lambda: theory.mm1(100, 10), "below 1"),
        (lambda: theory.mm1(0, 10), "rate needs"),
        (lambda: theory.mm1(math.nan, 10), "rate needs"),
        (lambda: theory.mm1(10, -1), "service_ms needs"),
        (lambda: theory.mmc(10, 10, 0), "servers needs"),
        (lambda: theory.mmc(10, 10, 1.5), "servers needs"),
        (lambda: theory.mg1(10, 10, -0.1), "squared_cv needs"),
        (lambda: theory.mmck(10, 10, 1, -1), "queue needs"),
        (lambda: theory.mmc_patience(10, 10, 1, 0), "patience_ms needs"),
        (lambda: theory.tandem(10, []), "stages"),
        (lambda: theory.wait_quantile_ms(10, 10, 1, 1, 1.0), "q needs"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(ask, said):
    with pytest.raises(KarmafunnelError, match=said):
        ask()
