"""The study of coverage: its truth against sums by hand, its logs against that truth."""

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from karmafunnel.benchmarks.validation import off_policy_coverage as study
from karmafunnel.benchmarks.validation.off_policy_coverage import (
    Setting,
    Shop,
    drawn,
    lines_of,
    shares,
    truth_of,
)
from karmafunnel.stages.policies import BestOrRandom, PlackettLuce


def test_shares_of_slots_are_sums_over_lists() -> None:
    e = np.array([4.0, 2.0, 1.0])
    first, second = shares(PlackettLuce(1.0), np.log(e)[None], 2)[0]
    assert first == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    # the second slot shows the best after another one was first
    assert second[0] == pytest.approx(2 / 7 * 4 / 5 + 1 / 7 * 4 / 6)
    assert second.sum() == pytest.approx(1.0)
    best = shares(BestOrRandom(0.5), np.log(e)[None], 2)[0]
    # best first: 1/2 + 1/6; then best of the rest: 1/2 + 1/4
    assert best[0] == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    assert best[1] == pytest.approx([1 / 3 * 3 / 4, 2 / 3 * 3 / 4 + 1 / 6 / 4, 2 / 3 / 4 + 1 / 6 / 4])


def small_shop(n: int = 600) -> Shop:
    rng = np.random.default_rng(0)
    engine = -np.sort(-rng.normal(size=(n, 4)), axis=1)
    score = rng.normal(size=(n, 4))
    order = np.argsort(-score, axis=1)
    user = np.sort(rng.integers(60, size=n))
    user = np.unique(user, return_inverse=True)[1]
    return Shop(user, engine, order, np.take_along_axis(score, order, axis=1), rng.random((n, 4)))


def test_true_value_and_unbiased_logs() -> None:
    shop, setting = small_shop(), Setting(2, 4, 0.8, 2.0)
    truth = truth_of(shop, setting)
    # by drawing lists: examination is 1 and 1 / log2(3)
    rng, rows = np.random.default_rng(1), np.arange(600)[:, None]
    earned = []
    for _ in range(200):
        item = shop.order[rows, PlackettLuce(2.0).draw(shop.score, rng.random((600, 2)))[0]]
        earned.append((shop.p_click[rows, item] * [1.0, 1 / np.log2(3)]).sum(axis=1).mean())
    assert truth.value.mean() == pytest.approx(np.mean(earned), abs=0.003)
    logs = [drawn(shop, truth, setting, np.random.default_rng([2, i])) for i in range(40)]
    lines = {x["estimator"]: x for x in lines_of(setting, float(truth.value.mean()), logs)}
    for name in ("SIPS", "IIPS", "RIPS", "cascade-DR"):
        line = lines[name]
        assert abs(line["bias"]) < 4 * line["rmse"] / np.sqrt(40), name
        assert line["coverage"] >= 0.8 and line["logs"] == 40
    assert all(log["said"].keys() >= {"IPS", "IIPS", "DR"} for log in logs)
    # another truth: all intervals miss it, and from which side
    far = {x["estimator"]: x for x in lines_of(setting, 9.0, logs)}["SIPS"]
    assert far["coverage"] == 0.0 and far["below"] == 1.0 and far["above"] == 0.0
    assert far["bias"] == pytest.approx(lines["SIPS"]["bias"] + truth.value.mean() - 9.0)


def test_the_same_users_stay() -> None:
    shop, setting = small_shop(), Setting(1, 4, 0.8, 2.0, same_users=True)
    truth = truth_of(shop, setting)
    logs = [drawn(shop, truth, setting, np.random.default_rng(i)) for i in range(3)]
    assert {log["n"] for log in logs} == {600}


def test_the_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "BLOCK", 2)
    monkeypatch.setattr(study, "SETTINGS", (Setting(1, 5, 0.8, 2.0),))
    monkeypatch.setattr(study, "shop_of", lambda candidates, seed: small_shop())
    args = ["--out", str(tmp_path), "--logs", "4"]
    first = CliRunner().invoke(study.main, args)
    assert first.exit_code == 0, first.output
    text = (tmp_path / "off_policy_coverage.csv").read_text()
    lines = list(csv.DictReader(text.splitlines()))
    assert {line["logs"] for line in lines} == {"4"} and lines[0]["estimator"] == "IPS"
    monkeypatch.setattr(study, "drawn", lambda *_: pytest.fail("drawn again"))
    assert CliRunner().invoke(study.main, args).exit_code == 0
    assert (tmp_path / "off_policy_coverage.csv").read_text() == text
    told = (tmp_path / "off_policy_coverage.md").read_text()
    assert "`Setting(slots=1, candidates=5, exploration=0.8, temperature=2.0)`: true value 0." in told
