"""tune: the search by a clock of its own; resumption, pruning, the front, best.py, bad input.

The recipe has nothing to train, and a funnel costs what its `ms` says, so that no test depends on
the machine.
"""

import ast
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.simulator.measure.run import Run
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.tuning import search as searching
from karmafunnel.simulator.tuning.found import (
    front_table,
    left_out,
    milliseconds_table,
    next_millisecond,
    trials_csv,
    write_found,
)
from karmafunnel.simulator.tuning.recipe_text import laid_out, recipe_text
from karmafunnel.simulator.tuning.search import Search, Trial, tune, what
from karmafunnel.simulator.world.world import generate

RECIPE = """
from karmafunnel.stages.recall import BM25Recall, Join, Popular, Repeat, Uniform

def choices(log):
    return {"k": (10, 20, 40), "words": (False, True), "repeat": (False, True), "days": (7, 30)}

def funnel(log, k=20, words=False, repeat=True, days=7, absent=0):
    channels = [Popular(k=k, days=days)]
    if words:
        channels.append(BM25Recall(k=k))
    if repeat:
        channels.append(Repeat(k=k))
    return Join(channels, k=k)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Log:
    log = generate(items=200, users=150, requests=600, seed=3)
    folder = tmp_path_factory.mktemp("tune") / "world"
    log.write(folder)
    return Log.open(folder)


@pytest.fixture
def recipe(tmp_path: Path):
    path = tmp_path / "own.py"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def clock(run: Run) -> dict[str, float]:
    """Milliseconds by what the funnel is made of: .1 a row of recall, 1 for words."""
    text = run.meta["funnel"]
    ms = run.k("recall") / 10 + ("BM25Recall" in text) + 0.5 * ("Repeat" in text)
    return {"recall": ms, "total": ms}


def searched(world: Log, recipe: Path, out: Path, budget: float = 4.0, **more) -> Search:
    options = replace(more.pop("options", RunOptions()), seed=more.pop("seed", 0), limit=more.pop("limit", None))
    more = {"trials": 12, "cost": clock} | more
    return tune(load_recipe(str(recipe), world), world, out, budget, options, **more)


def files(folder: Path) -> dict[str, bytes]:
    """All files of a search but what a replay timed."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("timing.parquet", "digests.json")
    }


def test_a_search_begins_with_the_cheapest_and_the_defaults_and_finds_the_front(world, recipe, tmp_path):
    search = searched(world, recipe, tmp_path / "out", trials=100)
    first, second = search.trials[:2]
    assert first.chosen == {"k": 10, "words": False, "repeat": False, "days": 7} and first.ms == 1.0
    assert second.chosen == {"k": 20, "words": False, "repeat": True, "days": 7}
    assert len(search.trials) == 24 and search.left == "No other funnel was found."  # each once
    assert len({trial.funnel for trial in search.trials}) == 24
    # by brute force: every funnel, replayed by itself, within the limit of 5 ms
    able = []
    for trial in search.trials:
        run = Run.open(
            replay(
                load_recipe(str(recipe), world).chosen(trial.chosen),
                world,
                tmp_path / "alone",
                RunOptions(window="W2b", force=True),
            )
        )
        (row,) = [r for r in searching.measure(run, ["HR@10"], by_stage=False) if r["stage"] == "recall"]
        assert row["value"] == trial.value and clock(run)["total"] == trial.ms
        if trial.ms <= 5.0:
            able.append((trial.ms, row["value"]))
    expected = sorted({p for p in able if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in able)})
    assert [(t.ms, t.value) for t in search.front] == expected and len(expected) > 1
    best = search.best(4.0)
    assert best is not None and best.value == max(v for ms, v in able if ms <= 4.0)
    # the Runs of the front are there, no others
    kept = {int(path.parent.name) for path in (tmp_path / "out" / "trials").glob("*/run")}
    assert kept == {trial.number for trial in search.front}
    assert not (tmp_path / "out" / "probes").exists()


def test_only_w2b_is_read(world, recipe, tmp_path):
    searched(world, recipe, tmp_path / "out", trials=3)
    windows = [json.loads(p.read_text())["window"] for p in tmp_path.rglob("run/run.json")]
    assert windows and set(windows) == {"W2b"}


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_an_interrupted_search_goes_on_to_the_same_bytes(world, recipe, tmp_path, monkeypatch, stop):
    write_found(searched(world, recipe, tmp_path / "whole", trials=6), "it")
    real, made = searching.examine, []

    def dies(search: Search, trial: Trial, folder: Path) -> None:
        made.append(trial.number)
        if len(made) == stop:
            raise KeyboardInterrupt
        real(search, trial, folder)

    monkeypatch.setattr(searching, "examine", dies)
    with pytest.raises(KeyboardInterrupt):
        searched(world, recipe, tmp_path / "halves", trials=6)
    searched(world, recipe, tmp_path / "halves", trials=5)  # a smaller number first
    write_found(searched(world, recipe, tmp_path / "halves", trials=6), "it")
    assert sorted(made) == sorted([*range(6), stop - 1])  # no finished trial was made again
    a, b = files(tmp_path / "whole"), files(tmp_path / "halves")
    assert list(a) == list(b)
    assert {name for name in a if a[name] != b[name]} == set()


def test_another_seed_tries_other_funnels(world, recipe, tmp_path):
    def tried(seed: int) -> list[str]:
        return [t.funnel for t in searched(world, recipe, tmp_path / str(seed), trials=7, seed=seed).trials]

    assert tried(0) == tried(0) and tried(0)[:2] == tried(1)[:2] and tried(0) != tried(1)


def test_no_time_leaves_all_but_the_first(world, recipe, tmp_path):
    search = searched(world, recipe, tmp_path / "out", minutes=0.0)
    assert len(search.trials) == 1 and search.left == "11 of 12 trials are left."
    write_found(search)
    assert search.left in (tmp_path / "out" / "tune.html").read_text()


def changed(name: str):
    """A change of one key of a trial that keeps the rest."""

    def change(folder: Path) -> None:
        path = folder / "trials" / "0002" / "trial.json"
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | {name: "edited"}))

    return change


def flipped(folder: Path) -> None:
    path = next(folder.glob("trials/*/run/slates.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")


DAMAGE = {
    "nothing": lambda folder: None,
    "no Runs": lambda folder: [shutil.rmtree(path) for path in folder.glob("trials/*/run")],
    "a damaged Run": flipped,
    "a trial is gone": lambda folder: shutil.rmtree(folder / "trials" / "0001"),
    "not JSON": lambda folder: (folder / "trials" / "0001" / "trial.json").write_text("{"),
    "no tune.json": lambda folder: (folder / "tune.json").unlink(),
    **{name: changed(name) for name in ("ms", "value", "state", "by_stage", "number", "note", "key")},
}


@pytest.fixture(scope="module")
def wholes(world, tmp_path_factory):
    """The recipe, and the folders and trials of finished searches of 3 and of 8 trials."""
    folder = tmp_path_factory.mktemp("wholes")
    recipe = folder / "mine.py"
    recipe.write_text(RECIPE, encoding="utf-8")
    found = {}
    for trials in (3, 8):
        search = searched(world, recipe, folder / str(trials), trials=trials)
        write_found(search, "it")
        found[trials] = folder / str(trials), search.trials
    return recipe, found


@pytest.mark.parametrize("trials", [3, 8])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_made_good_and_fewer_trials_are_those_of_a_search_of_fewer(damage, trials, world, wholes, tmp_path):
    recipe, found = wholes
    whole, wanted = found[trials]
    shutil.copytree(found[8][0], tmp_path / "out")
    damage(tmp_path / "out")
    search = searched(world, recipe, tmp_path / "out", trials=trials)
    assert search.trials == wanted
    for path in write_found(search, "it"):
        assert path.read_bytes() == (whole / path.name).read_bytes(), path


STAGES = """
from karmafunnel.stages.recall import Join, Popular
from karmafunnel.stages.features import Popularity
from karmafunnel.stages.rank import LightGBMRank
choices = {"k": (20, 100), "trees": (1, 2)}
def funnel(log, k=20, trees=1):
    return Join([Popular(k=k)], k=k) >> LightGBMRank(k=10, trees=trees, calibrated="", features=[Popularity()])
"""


def test_a_funnel_whose_first_stage_is_over_the_limit_is_not_fitted_further(world, tmp_path):
    path = tmp_path / "stages.py"
    path.write_text(STAGES, encoding="utf-8")
    asked: list[str] = []

    def slow(run: Run) -> dict[str, float]:
        asked.append(run.meta["funnel"])
        return {stage: run.k("recall") / 10 for stage in run.stages} | {"total": run.k("recall") / 10 * len(run.stages)}

    search = searched(world, path, tmp_path / "out", budget=4.0, cost=slow)
    by_k = {k: [t for t in search.trials if t.chosen["k"] == k] for k in (20, 100)}
    assert [t.state for t in by_k[20]] == ["measured"] * 2
    assert [t.state for t in by_k[100]] == ["over"] * 2 and {t.value for t in by_k[100]} == {None}
    assert "recall alone cost 10.00 ms; the rest was not fitted" in by_k[100][0].note
    assert not any("k=100" in text and "LightGBM" in text for text in asked)
    assert sum("k=100" in text for text in asked) == 1  # the second is known to be over


def test_a_funnel_that_is_clearly_behind_is_replayed_on_a_sample_alone(world, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "SAMPLE", 14)
    prefer = RECIPE.replace('"days": (7, 30)', '"days": (30, 7)').replace(
        "Join(channels, k=k)", "Join(channels, k=k) if k < 40 else Uniform(k=k, name='recall')"
    )
    recipe.write_text(prefer, encoding="utf-8")
    search = searched(world, recipe, tmp_path / "out", budget=8.0, trials=100)
    behind = [t for t in search.trials if t.state == "behind"]
    assert behind and all(t.requests == 14 and "on 14 requests" in t.note for t in behind)
    assert not set(map(id, behind)) & set(map(id, search.front))


@pytest.mark.parametrize("fails", ["raise ValueError('no 20 here')", "exit('no 20 here')", "return 'no 20 here'"])
def test_a_funnel_that_fails_is_a_line_of_its_own(fails, world, recipe, tmp_path):
    text = RECIPE.replace("    channels = [", "    if k == 20:\n        " + fails + "\n    channels = [").replace("k=20, words", "k=10, words")
    recipe.write_text(text, encoding="utf-8")
    search = searched(world, recipe, tmp_path / "out", trials=100)
    failed = [t for t in search.trials if t.state == "failed"]
    assert failed and all("no 20 here" in t.note for t in failed)
    assert all(t.chosen["k"] != 20 for t in search.front)
    write_found(search)
    assert "no 20 here" in (tmp_path / "out" / "trials.csv").read_text()


def test_what_was_found_is_written_and_best_py_is_the_same_funnel(world, recipe, tmp_path):
    search = searched(world, recipe, tmp_path / "out", trials=24)
    paths = write_found(search, "karmafunnel tune it")
    assert [p.name for p in paths] == ["front.md", "trials.csv", "best.py", "tune.html"]
    best = search.best(4.0)
    assert best is not None
    again = load_recipe(str(tmp_path / "out" / "best.py"), world)
    assert repr(again.funnel) == best.funnel and again.label == search.recipe.label
    assert "karmafunnel tune it" in again.text and "replay it once on W3" in again.text
    replay(again, world, tmp_path / "run", RunOptions(window="W2b"))
    slates = [Run.open(path).slates for path in (tmp_path / "run", search.run_of(best).path)]
    assert slates[0].equals(slates[1])
    front = (tmp_path / "out" / "front.md").read_text()
    assert all(f"| {t.name}" in front for t in search.front) and "W2b" in front
    page = (tmp_path / "out" / "tune.html").read_text(encoding="utf-8")
    assert "stop training on W2b" in page and next_millisecond(search) in page.replace("&#43;", "+")
    lines = trials_csv(search).splitlines()
    assert len(lines) == 25 and lines[0].endswith("funnel,k,words,repeat,days")
    assert left_out(search) == ["absent"]
    assert what(search.recipe, search.trials[0]) == "k 10, days 7"


def test_the_next_millisecond_is_the_paired_difference_of_the_best_on_both_sides(world, recipe, tmp_path):
    search = searched(world, recipe, tmp_path / "out", trials=24)
    a, b = search.best(4.0), search.best(5.0)
    assert a is not None and b is not None
    said = next_millisecond(search)
    if a is b:
        assert said == "The next millisecond, 4 to 5 ms, buys nothing that this search found."
    else:
        assert b.value is not None and a.value is not None
        assert f"HR@10 {b.value - a.value:+.3f}" in said and f"({b.name})" in said
    table = front_table(search)
    assert len(table.rows) == len(search.front) and table.rows[0][-1] == ""
    for before, trial, row in zip(search.front, search.front[1:], table.rows[1:], strict=False):
        assert row[-1].text == f"{trial.value - before.value:+.3f}"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"budget": 0.5}, r"needs 1\.00 ms a request or more, which the cheapest funnel costs here, found 0\.5; Join"),
        ({"budget": 0.0}, "budget_ms"),
        ({"budget": float("nan")}, "budget_ms"),
        ({"measure": "HRR@10"}, "no such measure"),
        ({"measure": "overlap@10"}, "of which more or less is better"),
        ({"measure": "survival"}, "with a value a request"),
        ({"measure": "HR@50"}, "the cheapest funnel fails"),
        ({"trials": 1}, "trials"),
        ({"minutes": -1.0}, "minutes"),
        ({"limit": 0}, "limit"),
        ({"seed": -1}, "seed"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_is_refused_by_name(more, complaint, world, recipe, tmp_path):
    with pytest.raises(KarmafunnelError, match=complaint):
        searched(world, recipe, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()
    searched(world, recipe, tmp_path / "out", trials=2)  # the next one finds a free place


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("def choices(log)", "def other(log)"), r"needs to export `choices` .* tunable"),
        (('"k": (10, 20, 40)', '"k": 10'), "choices of k needs a tuple"),
        (('"k": (10, 20, 40)', '"k": (10, None)'), "choices of k needs a tuple of texts and numbers"),
        (('"k": (10, 20, 40)', '"k": (10, float("nan"))'), "choices of k needs a tuple of texts and numbers"),
        (('"k": (10, 20, 40)', '"k": (10, float("inf"))'), "choices of k needs a tuple of texts and numbers"),
        (('"k": (10, 20, 40)', '"k": (10, 10**5000)'), "choices of k needs a tuple of texts and numbers.* too large to be shown"),
        (('"k": (10, 20, 40)', '"k": (10, "\\x1b[31m")'), "choices of k needs a tuple of texts and numbers, printable"),
        (('"k": (10, 20, 40)', '"k": (10, 10, 20)'), "two or more different values"),
        (('"k": (10, 20, 40)', '"k": (10, 20, 20.0)'), "two or more different values"),
        (('"k": (10, 20, 40)', '"k": (10,)'), "two or more different values"),
        (('"k": (10, 20, 40)', '"k": (10, 40)'), r"choices of k needs a parameter of funnel with a default among \[10, 40\]"),
        (('"k": (10, 20, 40)', '"z": (10, 40)'), "choices of z needs a parameter of funnel"),
        (("def funnel(log, ", "funnel = Popular(k=5)\ndef other(log, "), "needs funnel to be a function of the log"),
    ],
    ids=lambda v: v[1] if isinstance(v, tuple) else "",
)  # fmt: skip
def test_choices_that_are_wrong_are_refused_by_name(change, complaint, world, recipe, tmp_path):
    assert change[0] in RECIPE
    recipe.write_text(RECIPE.replace(*change), encoding="utf-8")
    with pytest.raises(KarmafunnelError, match=complaint):
        searched(world, recipe, tmp_path / "out")


def test_another_search_is_not_mixed_in(world, recipe, tmp_path):
    searched(world, recipe, tmp_path / "out", trials=2)
    for more in ({"budget": 5.0}, {"seed": 1}, {"measure": "nDCG@10"}, {"limit": 30}):
        with pytest.raises(KarmafunnelError, match="out"):
            searched(world, recipe, tmp_path / "out", trials=2, **more)


@pytest.mark.parametrize("more", [{"measure": "nDCG@10"}, {"budget": 5.0}, {"seed": 1}], ids=str)
def test_force_begins_another_search_anew(more, world, recipe, tmp_path):
    write_found(searched(world, recipe, tmp_path / "out", trials=6), "it")
    wanted = searched(world, recipe, tmp_path / "alone", trials=2, **more)
    search = searched(world, recipe, tmp_path / "out", trials=2, options=RunOptions(force=True), **more)
    assert search.trials == wanted.trials
    a, b = files(tmp_path / "alone"), files(tmp_path / "out")
    assert list(a) == list(b) and {name for name in a if a[name] != b[name]} == set()


def test_values_of_another_measure_are_not_taken_for_this_one(world, recipe, tmp_path):
    searched(world, recipe, tmp_path / "out", trials=2)
    (tmp_path / "out" / "tune.json").unlink()
    search = searched(world, recipe, tmp_path / "out", trials=2, measure="nDCG@10")
    assert search.trials == searched(world, recipe, tmp_path / "alone", trials=2, measure="nDCG@10").trials


def test_an_edited_best_py_is_not_replaced(world, recipe, tmp_path):
    write_found(searched(world, recipe, tmp_path / "out", trials=2))
    best = tmp_path / "out" / "best.py"
    best.write_text(best.read_text() + "label = 'purchase'\n")
    with pytest.raises(KarmafunnelError, match=r"best\.py was edited by hand .* --force replaces it"):
        searched(world, recipe, tmp_path / "out", trials=3)
    searched(world, recipe, tmp_path / "out", trials=3, options=RunOptions(force=True))


@pytest.mark.parametrize(("budget", "first"), [(4.0, "0 to 1 ms"), (2.5, "0 to 0.5 ms"), (1.2, "0 to 0.2 ms"), (30.0, "10 to 11 ms")])
def test_steps_of_a_millisecond_end_with_the_one_beyond_the_budget_and_do_not_overlap(budget, first, world, recipe, tmp_path, monkeypatch):
    search = searched(world, recipe, tmp_path / "out", trials=2, budget=budget)
    monkeypatch.setattr(Search, "best", lambda self, ms: replace(self.trials[0], number=int(ms * 1000)))
    monkeypatch.setattr(Search, "difference", lambda self, a, b: {"difference": 0.1, "low": 0.0, "high": 0.2, "better": ""})
    steps = [row[0] for row in milliseconds_table(search).rows]
    assert steps[0] == first and steps[-1] == f"{budget:g} to {budget + 1:g} ms"
    ends = [step.removesuffix(" ms").split(" to ") for step in steps]
    assert [end for _, end in ends[:-1]] == [start for start, _ in ends[1:]]


def test_without_optuna_it_says_what_to_install(world, recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(KarmafunnelError, match=r"needs optuna, found none; pip install .*\[tune\]"):
        searched(world, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_long_expression_is_laid_out_and_means_the_same():
    text = "Join([Popular(k=100), Repeat(k=100, name='again')], k=400) >> Rank(k=50, of={'a': [1, 2], 'b': (3, 4)}) >> Last(k=10)"
    shown = laid_out(text, 9)
    assert ast.dump(ast.parse(shown, mode="eval")) == ast.dump(ast.parse(text, mode="eval"))
    assert shown.splitlines()[0] == "(" and max(map(len, shown.splitlines())) <= 100
    assert [line[:7] for line in shown.splitlines() if ">>" in line] == ["    >> "] * 2


def test_a_recipe_with_classes_of_its_own_keeps_them(world, recipe, tmp_path):
    own = RECIPE + "\nclass Mine(Popular):\n    '''Mine.'''\n"
    recipe.write_text(own.replace("[Popular(k=k, days=days)]", "[Mine(k=k, days=days)]"), encoding="utf-8")
    loaded = load_recipe(str(recipe), world)
    text = recipe_text(loaded.chosen({"k": 40, "words": True, "repeat": False, "days": 30}), 'it says """x""" \\')
    path = tmp_path / "best.py"
    path.write_text(text, encoding="utf-8")
    again = load_recipe(str(path), world)
    assert repr(again.funnel).startswith("Join([Mine(k=40, days=30), BM25Recall(k=40)], k=40")


def test_the_command_ends_with_the_front(world, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    words = ["tune", str(world.path), str(recipe), "--budget-ms", "50", "--trials", "3", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "the most HR@10 for the milliseconds" in done.stdout and "too good" in done.stdout
    assert "3 funnels tried: 3 measured" in done.stdout and "left out, for this log" in done.stderr
    shutil.rmtree(tmp_path / "cache")
    again = CliRunner().invoke(main, words)  # from its files alone: nothing is fitted
    assert again.stdout == done.stdout and not list((tmp_path / "cache").glob("*"))
