"""The gate: what is not worse, what is worse, what nobody can tell, and what has to hold first."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from karmafunnel import KarmafunnelError, import_run, replay
from karmafunnel.cli import main
from karmafunnel.simulator.measure import gate as gating
from karmafunnel.simulator.measure.compare import compare
from karmafunnel.simulator.measure.gate import decide, needed, served
from karmafunnel.simulator.measure.measures.hits import HR
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.stages.recall import BM25Recall, Popular, Uniform
from karmafunnel.stages.rerank import Unseen


@pytest.fixture(scope="module")
def runs(shop):
    made = {"bm25": BM25Recall(k=60), "popular": Popular(k=60), "uniform": Uniform(k=60)}
    return {name: replay(stage, shop) for name, stage in made.items()}


def test_the_same_run_is_not_worse(runs):
    found = decide(runs["bm25"], runs["bm25"], "HR@10", 0.001)
    assert (found.verdict, found.difference, found.low, found.high) == ("not worse", 0, 0, 0)
    assert found.code == 0
    assert found.sound


def test_the_verdict_is_where_the_interval_lies(runs):
    (row,) = compare(runs["bm25"], runs["uniform"], ["HR@10"], by_stage=False)
    assert row["high"] < 0  # words of the query find what is wanted
    margins = {
        "worse": -row["high"] / 2,
        "undecided": -(row["low"] + row["high"]) / 2,
        "not worse": 1.01 * -row["low"],
    }
    for verdict, margin in margins.items():
        found = decide(runs["uniform"], runs["bm25"], "HR@10", margin)
        assert found.verdict == verdict
        assert (found.difference, found.low, found.high) == (
            row["difference"],
            row["low"],
            row["high"],
        )
        assert (found.requests_needed is not None) == (verdict == "undecided")


def test_less_is_better_where_it_is(runs, monkeypatch):
    (row,) = compare(runs["bm25"], runs["popular"], ["HR@10"], by_stage=False)
    monkeypatch.setattr(HR, "better", "lower")
    found = decide(runs["popular"], runs["bm25"], "HR@10", 1.0)
    assert (found.difference, found.low, found.high) == (
        -row["difference"],
        -row["high"],
        -row["low"],
    )


@pytest.mark.parametrize(
    ("distance", "width", "n", "many"),
    [
        (0.01, 0.04, 100, 401),
        (-0.01, 0.04, 100, 401),
        (0.02, 0.04, 100, 101),
        (0.0, 0.04, 100, None),
    ],
)
def test_how_many_requests_would_decide(distance, width, n, many):
    assert needed(distance, width, n) == many


def test_with_so_many_requests_it_is_decided():
    """Means of so many draws as `needed` says have intervals that end before the margin, about half
    of the time: the estimate is where the mean lies now.
    """
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(200):
        few = rng.normal(0.02, 1.0, 400)
        half = 1.96 * few.std() / np.sqrt(len(few))
        many = needed(0.02 + 0.03, 2 * half, len(few))
        more = rng.normal(0.02, 1.0, many)
        decided += more.mean() - 1.96 * more.std() / np.sqrt(many) > -0.03
    assert 0.35 < decided / 200 < 0.65


def test_random_has_to_lose(runs):
    found = decide(runs["uniform"], runs["uniform"], "HR@10", 0.5)
    failed = {check.name for check in found.checks if not check.passed}
    value = compare(runs["uniform"], runs["uniform"], ["HR@10"], by_stage=False)[0]["value_a"]
    assert ("random loses to new" in failed) == (value <= float(found.checks[1].found.split()[-1]))
    assert found.code == (1 if failed else 0)


def test_a_run_that_shows_fewer_requests_anything_fails(runs):
    assert served(runs["popular"]) == 1
    assert served(runs["bm25"]) < 0.9  # a third of the requests have no query
    found = decide(runs["bm25"], runs["popular"], "HR@10", 1.0)
    (check,) = [check for check in found.checks if check.name == "no fewer requests are served"]
    assert not check.passed
    assert found.verdict == "not worse"
    assert found.code == 1
    assert "not to be trusted" in found.sentence


def test_what_the_gate_refuses(runs):
    for asked, words in (
        ({"primary": "overlap@10"}, "a better direction"),
        ({"primary": "HR@10", "margin": -1.0}, "margin needs"),
    ):
        with pytest.raises(KarmafunnelError, match=words):
            decide(runs["bm25"], runs["popular"], **({"margin": 0.1} | asked))
    with pytest.raises(KarmafunnelError) as raised:
        decide(runs["bm25"], runs["popular"], "logloss", 0.1)
    assert raised.value.args


def test_other_measures_stand_beside_it(runs):
    found = decide(runs["popular"], runs["uniform"], "HR@10", 0.0, also=["nDCG@10", "HR@50"])
    assert {row["measure"] for row in found.beside} == {"nDCG@10", "HR@50"}
    assert all("holm" in row for row in found.beside)
    assert (found.deciding["measure"], found.deciding["difference"]) == (found.measure, found.difference)


def test_the_command_says_it_in_every_form(runs, tmp_path):
    words = [
        "gate",
        str(runs["uniform"].path),
        str(runs["popular"].path),
        "--measure",
        "HR@10",
        "--margin",
    ]
    answer = CliRunner().invoke(main, [*words, "1", "--junit", str(tmp_path / "j.xml")])
    assert "HR@10: not worse by a margin of 1" in answer.output
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert int(suite.get("tests")) == len(suite) >= 4
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
    told = json.loads(CliRunner().invoke(main, [*words, "0", "--json"]).stdout)
    assert told["margin"] == 0
    assert told["code"] == (gating.EXIT[told["verdict"]] if told["sound"] else 1)


def test_both_are_declared_or_both_are_asked_for(runs):
    places = [str(runs[name].path) for name in ("uniform", "popular")]
    for given, found in (
        ([], "found neither"),
        (["--margin", ".005"], "found --margin 0.005"),
        (["--measure", "HR@10"], "found --measure HR@10"),
    ):
        answer = CliRunner().invoke(main, ["gate", *places, *given])
        assert answer.exit_code == 2
        for words in ("needs --measure and --margin", found, "--measure HR@10 --margin .005"):
            assert words in answer.output
    answer = CliRunner().invoke(
        main, ["gate", places[0], "nowhere", "--measure", "HR@10", "--margin", "1"]
    )
    assert answer.exit_code == 2  # 1 would say that it is worse
    assert "error: nowhere: needs a Run folder" in answer.output


def judged(folder, name, lines, topics):
    """A Run of one stage in which item a is relevant for every topic."""
    (folder / "qrels.txt").write_text("".join(f"q{topic} 0 a 1\n" for topic in range(topics)))
    (folder / f"{name}.trec").write_text(lines)
    return import_run([folder / f"{name}.trec"], folder / name, qrels=folder / "qrels.txt")


def test_runs_of_other_logs_or_requests_and_of_one_user_have_no_verdict(runs, shop, tmp_path):
    fewer = replay(Popular(k=60), shop, options=RunOptions(limit=20))
    with pytest.raises(KarmafunnelError, match="Runs of the same requests"):
        decide(fewer, runs["popular"], "HR@10", 0.1)
    (tmp_path / "one").mkdir()
    one = judged(tmp_path / "one", "x", "q0 Q0 a 1 2 x\nq0 Q0 b 2 1 x\n", 1)
    with pytest.raises(KarmafunnelError, match="Runs of one log"):
        decide(one, runs["popular"], "HR@10", 0.1)
    with pytest.raises(KarmafunnelError, match="at least 2 users"):
        decide(one, one, "HR@1", 0.1)
    with pytest.raises(KarmafunnelError, match="without a price"):
        decide(one, one, "GMV-HR@1", 0.1)


@pytest.mark.parametrize(("topics", "code"), [(29, 1), (30, 0)])
def test_few_requests_decide_nothing(topics, code, tmp_path):
    """The interval of equal differences has no width, however few they are."""
    lines = "".join(f"q{topic} Q0 a 1 2 x\nq{topic} Q0 b 2 1 x\n" for topic in range(topics))
    run = judged(tmp_path, "x", lines, topics)
    found = decide(run, run, "HR@1", 0.1)
    assert (found.verdict, found.code) == ("not worse", code)
    failed = [check.name for check in found.checks if not check.passed]
    assert failed == ([] if code == 0 else ["the interval rests on enough requests"])


def test_a_margin_that_nothing_could_miss_is_no_gate(runs):
    old = compare(runs["bm25"], runs["bm25"], ["HR@10"], by_stage=False)[0]["value_a"]
    for margin, passed in ((old * 0.99, True), (old, False), (1e12, False)):
        found = decide(runs["bm25"], runs["bm25"], "HR@10", margin)
        (check,) = [one for one in found.checks if one.name == "a Run without any hit would fail"]
        assert check.passed == passed
        assert found.code == (0 if passed else 1)


def test_survival_is_decided_end_to_end(shop):
    """Its last stage keeps all that it gets; the stage before cuts."""
    old = replay(Popular(k=60) >> Unseen(k=60), shop)
    new = replay(Popular(k=20) >> Unseen(k=20), shop)
    found = decide(new, old, "survival", 0.01, also=["HR@10", "HR@10", "survival"])
    assert found.deciding["stage"] == "end to end"
    assert sum(row["measure"] == "HR@10" for row in found.beside) == 2  # once a stage


def test_margin_zero_asks_whether_it_is_better(runs):
    """With the same Run twice nothing ever decides."""
    same = decide(runs["bm25"], runs["bm25"], "HR@10", 0.0)
    assert (same.verdict, same.requests_needed, same.code) == ("undecided", None, 3)
    assert "no number of requests would decide" in same.sentence
    assert decide(runs["bm25"], runs["uniform"], "HR@10", 0.0).verdict == "not worse"
    assert decide(runs["uniform"], runs["bm25"], "HR@10", 0.0).verdict == "worse"


def test_codes(runs):
    found = decide(runs["popular"], runs["popular"], "HR@10", 0.1)
    assert [
        replace(found, verdict=verdict, checks=[]).code
        for verdict in ("not worse", "worse", "undecided")
    ] == [0, 1, 3]


def test_an_error_is_never_a_verdict(runs, tmp_path, monkeypatch):
    """Exit code 2 for what cannot be written, and for a fault of the program; what stands there is
    kept unless it is an older outcome.
    """
    places = [str(runs[name].path) for name in ("uniform", "popular")]
    words = ["gate", *places, "--measure", "HR@10", "--margin", "1"]
    mine, there = tmp_path / "notes.xml", tmp_path / "j.xml"
    mine.write_text("<notes>\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    inside = runs["popular"].path / "run.json"
    before = inside.read_bytes()
    for place in (mine, mine / "j.xml", tmp_path / "folder", inside, tmp_path / "pipe"):
        answer = CliRunner().invoke(main, [*words, "--junit", str(place)])
        assert answer.exit_code == 2 and answer.output.startswith(f"error: gate: {place} needs")
        assert len(answer.output.splitlines()) == 1
    assert mine.read_text() == "<notes>\n" and inside.read_bytes() == before
    for margin in ("1", "0.9"):  # an older outcome is replaced
        answer = CliRunner().invoke(main, [*words[:-1], margin, "--junit", str(there)])
        assert answer.exit_code in (0, 1) and f"margin of {margin}" in there.read_text()
    code = "import sys; from karmafunnel.cli import main; main(sys.argv[1:])"
    for more in ([], ["--json"]):
        with open("/dev/full", "w") as full:
            ended = subprocess.run(
                [sys.executable, "-c", code, *words, *more], stdout=full, stderr=subprocess.PIPE
            )
        assert ended.returncode == 2
        assert ended.stderr.decode().strip().splitlines()[-1].startswith("error: [Errno 28]")
    monkeypatch.setattr(gating, "decide", lambda *_: 1 / 0)
    answer = CliRunner().invoke(main, words)
    assert answer.exit_code == 2 and "ZeroDivisionError" in answer.output


def test_a_verdict_is_told_in_the_units_of_the_measure(shop):
    old = replay(Popular(k=60) >> Unseen(k=60), shop)
    new = replay(Popular(k=20) >> Unseen(k=20), shop)
    found = decide(new, old, "survival", 0.01)
    ledger = new.ledger
    assert (found.n, found.unit) == (found.deciding["n"], "relevant item")
    assert found.requests == ledger["request_id"].n_unique() < found.n
    assert f" on {found.n:,} relevant items of {found.requests:,} requests" in found.sentence
    assert f" on {decide(new, old, 'HR@10', 1.0).requests:,} requests" in decide(
        new, old, "HR@10", 1.0
    ).sentence
