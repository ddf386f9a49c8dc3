"""Weights in two stages: lists that one funnel drew, judged for another with other candidates."""

import json
from datetime import timedelta
from itertools import permutations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result
from karmafunnel.cli import main
from karmafunnel.log import Log
from karmafunnel.simulator.measure.run import Run
from karmafunnel.simulator.offpolicy.logger import CANDIDATES, RANKING, by_stage, never_shown
from karmafunnel.simulator.offpolicy.reading import Choice, LoggedLists
from karmafunnel.stages.policies import BestOrRandom, Candidates, PlackettLuce
from shop import START

N, SLOTS = 2500, 2
WORTH = np.array([0.6, 0.5, 0.35, 0.3, 0.2, 0.1])  # P(click) of each item, wherever it stands
SETS = {"old": [0, 1, 2, 3], "new": [0, 1, 2, 4]}  # candidates
RECIPE = """\
from karmafunnel.stages.explore import Explore
from karmafunnel.stages.policies import PlackettLuce
from karmafunnel.stages.recall import External
funnel = External({path!r}, k=4) >> Explore(PlackettLuce({temperature}), k={k})
"""


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def log_of(lists: np.ndarray, propensity: np.ndarray | None = None) -> Log:
    """A log of lists (n, slots) of item numbers, with clicks drawn by WORTH."""
    rng = np.random.default_rng(4)
    ids = [f"r{i}" for i in range(N)]
    requests = pl.DataFrame(
        {
            "request_id": ids,
            "user_id": [f"u{i % 250}" for i in range(N)],
            "ts": [START + timedelta(minutes=i) for i in range(N)],
            "source": ["search"] * N,
        }
    )
    exposures = pl.DataFrame(
        {
            "request_id": np.repeat(ids, SLOTS),
            "item_id": [f"i{item}" for item in lists.ravel()],
            "position": np.tile(np.arange(SLOTS) + 1, N),
            "clicked": rng.random(lists.size) < WORTH[lists.ravel()],
        }
    )
    has = dict.fromkeys(("clicks", "exposures", "users"), True)
    if propensity is not None:
        exposures = exposures.with_columns(propensity=pl.Series(propensity.ravel()))
        has["propensity"] = True
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(6)]})
    meta = {"name": "drawn", "label": "click", "catalogue": "published", "has": has}
    return Log.make(items, requests, exposures, meta)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log whose lists in W3 the funnel `old` drew, and Runs of `old`, `other` and `new` on it."""
    folder = tmp_path_factory.mktemp("two_stages")
    rng = np.random.default_rng(1)
    score = {item: rng.normal(size=N) + 3 * WORTH[item] for item in range(6)}
    for name, candidates in SETS.items():
        rows = [
            pl.DataFrame({"request_id": [f"r{i}" for i in range(N)], "item_id": f"i{item}", "score": score[item]})
            for item in candidates
        ]
        pl.concat(rows).write_parquet(folder / f"{name}.parquet")
    funnels = {"old": ("old", 1.0, SLOTS), "other": ("old", 0.5, SLOTS), "new": ("new", 0.7, SLOTS)}
    for name, (candidates, temperature, k) in funnels.items():
        text = RECIPE.format(path=str(folder / f"{candidates}.parquet"), temperature=temperature, k=k)
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    lists = np.tile([0, 1], (N, 1))
    log_of(lists).write(folder / "before")
    made = call("replay", folder / "old.py", folder / "before", "--out", folder / "drawn", "--no-cache")
    assert made.exit_code == 0, made.output
    drawn = Run.open(folder / "drawn").slates.filter(pl.col("stage").cast(str) == "explore")
    drawn = drawn.sort("request_id", "rank")
    at = drawn["request_id"].str.slice(1).cast(int).to_numpy()
    lists[at, drawn["rank"].to_numpy() - 1] = drawn["item_id"].str.slice(1).cast(int).to_numpy()
    chance = np.ones(lists.shape)
    chance[at, drawn["rank"].to_numpy() - 1] = drawn["propensity"].to_numpy()
    log_of(lists).write(folder / "log")
    log_of(lists, chance).write(folder / "told")
    log_of(lists, np.where(np.arange(N)[:, None] == N - 3, chance / 2, chance)).write(folder / "wrong")
    for log in ("log", "told", "wrong"):
        for name in funnels:
            out = folder / f"{name}-{log}"
            made = call("replay", folder / f"{name}.py", folder / log, "--out", out, "--no-cache")
            assert made.exit_code == 0, made.output
    np.save(folder / "score.npy", np.stack([score[item] for item in range(6)], axis=1))
    return folder


def test_estimates_for_other_candidates(shop: Path) -> None:
    words = "ope", shop / "new-log", "--log", shop / "log", "--logger", shop / "old-log", "--json"
    answer = call(*words)
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    rows = {row["estimator"]: row for row in told["rows"]}
    # over all lists of the new funnel: what it earns, in all and by lists that the old one can draw
    score = np.load(shop / "score.npy")[Run.open(shop / "new-log").read("requests", "request_id")["request_id"].str.slice(1).cast(int).to_numpy()]
    whole, common, first_new, passing = 0.0, 0.0, 0.0, 0.0
    for pair in permutations(SETS["new"], 2):
        e = np.exp(score[:, SETS["new"]] / 0.7)
        first, second = (np.exp(score[:, item] / 0.7) for item in pair)
        p = (first / e.sum(axis=1) * second / (e.sum(axis=1) - first)).mean()
        whole += p * WORTH[list(pair)].sum()
        common += p * WORTH[list(pair)].sum() * (4 not in pair)
        first_new += p * (pair[0] == 4)
    for pair in permutations(SETS["old"], 2):
        e = np.exp(score[:, SETS["old"]])
        first, second = (np.exp(score[:, item]) for item in pair)
        passing += (first / e.sum(axis=1) * second / (e.sum(axis=1) - first)).mean() * (3 not in pair)
    assert rows["IPS"]["low"] < common < rows["IPS"]["high"]
    assert rows["DR"]["low"] < whole < rows["DR"]["high"]
    assert common < whole - 0.05 < told["logged"]["value"] - 0.05
    stage, ranking = told["stages"][CANDIDATES], told["stages"][RANKING]
    assert stage["unseen"] == pytest.approx(first_new, abs=1e-5)
    assert stage["mean"] == pytest.approx(passing, abs=0.06)
    assert stage["effective"] == pytest.approx(stage["mean"] * stage["n"])  # weights of 0 and 1
    assert ranking["n"] == round(stage["effective"])
    assert ranking["mean"] * stage["mean"] == pytest.approx(told["support"]["list"]["mean"])
    assert any("no candidate of the logger" in mark for mark in told["marks"])
    # the log's own propensities say the same
    own = "ope", shop / "new-told", "--log", shop / "told", "--logger", shop / "old-told", "--json"
    same = {row["estimator"]: row for row in json.loads(call(*own).stdout)["rows"]}
    assert same["IPS"]["value"] == pytest.approx(rows["IPS"]["value"], rel=1e-6)
    plain = call(*own[:4], "--json")
    one = {row["estimator"]: row for row in json.loads(plain.stdout)["rows"]}
    assert one["IPS"]["value"] == pytest.approx(rows["IPS"]["value"], rel=1e-5)


def test_what_is_no_logger_is_refused(shop: Path) -> None:
    def refused(*words: object) -> str:
        answer = call("ope", shop / "new-log", "--log", shop / "log", *words)
        assert answer.exit_code == 1
        return answer.output + answer.stderr

    assert "lists that it cannot draw, such as that of request 'r2" in refused("--logger", shop / "new-log")
    assert "needs the log that the Run replayed" in refused("--logger", shop / "old-told")
    assert "needs --logger or --propensity" in refused("--logger", shop / "old-log", "--propensity", "clicks")
    other = call("ope", shop / "new-told", "--log", shop / "told", "--logger", shop / "other-told")
    assert "needs the propensities that the log holds" in other.stderr
    halved = call("ope", shop / "new-wrong", "--log", shop / "wrong", "--logger", shop / "old-wrong")
    assert f"at request 'r{N - 3}' (1 such requests)" in halved.stderr


def test_support_by_stage_by_hand() -> None:
    """Two requests, candidates 0 1 and 0 2 against logged lists of 0 and 1."""
    score = np.log(np.array([[3.0, 1.0], [3.0, 1.0]]))
    item = np.array([[0, 1], [0, 2]])
    there = np.ones((2, 1), dtype=bool)
    place = np.array([[0], [-1]])
    lists = LoggedLists(
        pl.Series(["a", "b"]), np.arange(2), np.array([[0], [1]]), np.array([[0.5], [0.5]]), np.ones((2, 1))
    )
    choice = Choice(Candidates(score, place, there), item, np.zeros((2, 1)))
    held = np.array([[True, True], [True, False]])
    found = by_stage(lists, choice, PlackettLuce(1.0), held)
    assert never_shown(choice, PlackettLuce(1.0), held) == pytest.approx([0.0, 1 / 4])
    assert (found[CANDIDATES].n, found[CANDIDATES].mean, found[CANDIDATES].unseen) == (2, 0.5, pytest.approx(1 / 8))
    assert (found[RANKING].n, found[RANKING].mean) == (1, pytest.approx(3 / 4 / (1 / 2)))
    assert by_stage(lists, choice, BestOrRandom(0.0), held)[RANKING].mean == pytest.approx(2.0)
