"""What `import karmafunnel` offers, from a frame to a stage table."""

import subprocess
import sys

import karmafunnel
import pandas as pd
import polars as pl
import pytest
from karmafunnel import (
    KarmafunnelError,
    Log,
    Run,
    compare,
    explain,
    import_run,
    measure,
    replay,
    report,
)
from karmafunnel.models.embedders import TfidfSVD
from karmafunnel.simulator.measure import compare as comparing
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.stages.recall import Join, Popular, Uniform, VectorRecall
from karmafunnel.stages.rerank import Unseen

START = 1_600_000_000


def interactions(n: int = 400) -> pl.DataFrame:
    rows = [(f"u{i % 9}", f"i{(i * i) % 23}", START + 900 * i) for i in range(n)]
    return pl.DataFrame(rows, schema=["buyer", "sku", "at"], orient="row")


@pytest.fixture(scope="module")
def log():
    return Log.from_interactions(interactions(), user="buyer", item="sku", time="at")


@pytest.fixture(scope="module")
def runs(log):
    return replay(Popular(k=20), log), replay(Uniform(k=20), log)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The cache of this module, which is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("KARMAFUNNEL_CACHE", str(folder))
        yield folder


KINDS = {"polars": lambda f: f, "pandas": lambda f: f.to_pandas(), "arrow": lambda f: f.to_arrow()}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_any_library_give_the_same_log(kind, log):
    made = Log.from_interactions(KINDS[kind](interactions()), user="buyer", item="sku", time="at")
    assert made.requests.equals(log.requests)
    assert made.exposures.equals(log.exposures)
    assert made.has("clicks")


def test_pandas_ids_with_a_gap_are_whole_numbers_still():
    frame = pd.DataFrame(
        {"user": [1.0, None, 3.0] * 30, "item": range(90), "time": range(START, START + 90)}
    )
    made = Log.from_interactions(frame)
    assert made.requests["user_id"].to_list()[:3] == ["1", "visitor of r1", "3"]


def test_three_frames_are_a_log_and_say_what_they_hold(shop):
    made = Log.from_frames(shop.items, shop.requests.drop("window"), shop.exposures, name="mine")
    assert made.meta["has"] == shop.meta["has"]
    assert made.requests["window"].to_list() == shop.requests["window"].to_list()


def test_a_log_of_frames_says_what_was_set_aside_and_names_no_file():
    frame = interactions().with_columns(pl.int_range(pl.len()).mod(5).add(1).alias("rating"))
    made = Log.from_interactions(frame, user="buyer", item="sku", time="at")
    assert repr(made).splitlines()[-1] == "set aside: 240 rows rated below 4"
    assert made.meta["source"] == "a data frame"
    both = Log.from_interactions(
        frame, items=pl.DataFrame({"sku": ["i0"]}), user="buyer", item="sku", time="at"
    )
    assert both.meta["source"] == "data frames: interactions, items"
    with pytest.raises(KarmafunnelError, match=r"^frame of interactions: needs a column of items"):
        Log.from_interactions(frame.drop("sku"), user="buyer", time="at")


def test_what_is_no_frame_is_refused():
    with pytest.raises(KarmafunnelError) as raised:
        Log.from_interactions([1, 2, 3])
    assert raised.value.found == "a list"


def test_a_lone_stage_is_a_funnel_and_answers_are_frames(runs):
    popular, uniform = runs
    assert isinstance(popular, Run)
    answer = measure(popular, "HR@10", "nDCG@10")
    assert answer.height == len(comparing.measure(popular, ["HR@10", "nDCG@10"]))
    assert answer.filter(stage="recall", measure="HR@10")["value"][0] > 0.3
    (row,) = compare(uniform, popular, "HR@10").to_dicts()
    values = [measure(run, "HR@10")["value"][0] for run in runs]
    assert row["difference"] == pytest.approx(values[0] - values[1])
    assert (row["label_a"], row["label_b"]) == ("Uniform", "Popular")


def test_a_notebook_shows_the_table_of_the_report(runs):
    answer = measure(runs[0], "HR@10")
    shown = answer._repr_html_()
    assert '<th scope="col">stage</th>' in shown
    assert f"{answer['value'][0]:.3f}" in shown
    assert "shape:" in answer.select("value")._repr_html_()  # a part of it is a plain frame


def test_a_prompt_shows_the_table_of_the_command(runs):
    answer = measure(runs[0], "HR@10", "nDCG@10")
    lines = str(answer).splitlines()
    assert repr(answer) == str(answer) and max(map(len, lines)) <= 80
    assert lines[0].split() == ["stage", "HR@10", "nDCG@10"]
    assert f"{answer['value'][0]:.3f}".removeprefix("0") in lines[1]
    assert "Relevant: clicked items." in str(answer)
    compared = str(compare(runs[1], runs[0], "HR@10"))
    assert "better" in compared.splitlines()[0] and "A is Uniform, B is Popular" in compared
    assert isinstance(answer, pl.DataFrame) and answer.shape[0] == answer.height
    for part in (answer.select("value"), answer.head(2), answer.filter(measure="HR@10")):
        assert str(part).startswith("shape:")  # a part of it is a plain frame


def test_embedders_are_read_by_name_and_requests_explained(shop):
    funnel = Join([VectorRecall("text", k=30), Popular(k=30)], k=40)
    run = replay(funnel, shop, {"text": TfidfSVD(dim=16)})
    assert run.stages == ["recall"]
    request = run.read("requests")["request_id"][0]
    found = explain(funnel, shop, request, {"text": TfidfSVD(dim=16)})
    assert set(found["stage"]) == {"recall"}


def test_a_recipe_its_name_and_its_file_are_replayed_like_a_funnel(log, tmp_path):
    """The same Run each way; embedders and label replace the recipe's own."""
    by_name = replay("popular", log)
    (tmp_path / "mine.py").write_text(
        f"from karmafunnel.stages.recall import *\nfunnel = {by_name.meta['funnel']}\n"
    )
    by_file = replay(tmp_path / "mine.py", log)
    loaded = load_recipe("popular", log)
    made = [by_name, by_file, replay(loaded, log), replay(loaded.funnel, log)]
    assert [run.name for run in made] == ["popular", "mine", "popular", "Popular"]
    assert all(run.slates.equals(made[0].slates) for run in made[1:])
    with pytest.raises(KarmafunnelError, match="label 'purchase': needs purchases"):
        replay("popular", log, label="purchase")
    request = by_name.requests["request_id"][0]
    assert explain("popular", log, request).equals(explain(loaded.funnel, log, request))
    with pytest.raises(KarmafunnelError, match=r"needs a funnel, a stage, a recipe.*found a list"):
        replay([Popular(k=5)], log)


def test_what_was_fitted_is_kept_as_by_the_command(shop, cache):
    funnel, named = VectorRecall("text", k=30), {"text": TfidfSVD(dim=8)}
    explain(funnel, shop, shop.request_ids[-1], named)
    assert len(list(cache.glob("embedder-*"))) >= 1
    before = {path: path.stat().st_mtime_ns for path in cache.glob("embedder-*/*")}
    replay(funnel, shop, named)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("embedder-*/*")} == before


def test_logs_and_runs_are_shown_in_two_lines(log, runs):
    shown = repr(log).splitlines()
    assert len(shown) == 2 and "400 requests" in shown[0] and "W3 80" in shown[0]
    assert "has clicks, users" in shown[1] and "text" in shown[1].split("lacks")[1]
    assert repr(runs[0]).splitlines() == [
        "Run Popular: recall 20",
        "log log, 80 requests of W3, label click, seed 0; tables slates, requests, ledger, scored, "
        "timing",
    ]
    assert runs[0].ledger.equals(runs[0].read("ledger"))


def test_the_front_lists_itself():
    assert {"Log", "Run", "replay", "explain"} <= set(dir(karmafunnel))
    assert all(hasattr(karmafunnel, name) for name in dir(karmafunnel)) and "os" not in dir(karmafunnel)


def test_eight_lines_from_a_frame_to_a_stage_table():
    frame = interactions().to_pandas()
    log = Log.from_interactions(frame, user="buyer", item="sku", time="at")
    run = replay(Join([Popular(k=20), Uniform(k=20)], k=30) >> Unseen(k=10), log)
    table = measure(run, "HR@10", "survival")
    assert set(table["stage"]) >= {"recall", "unseen", "end to end"}
    assert "<table" in table._repr_html_()


def test_a_report_of_runs(runs, tmp_path):
    path = report(*runs, out=tmp_path / "r.html")
    assert "HR@10" in path.read_text(encoding="utf-8")


def test_the_package_itself_imports_nothing_heavy():
    code = (
        "import sys, karmafunnel; assert 'replay' in dir(karmafunnel);"
        " assert not {'torch', 'polars', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'repaly'; it has Log"):
        _ = karmafunnel.repaly


def test_measures_are_texts(runs):
    with pytest.raises(KarmafunnelError, match=r"needs a text such as 'HR@10', found \['HR@5'\]"):
        measure(runs[0], ["HR@5"])


@pytest.mark.parametrize(
    ("frame", "needs"),
    [
        (pd.DataFrame({"user": ["a", 1], "item": ["x", "y"], "time": [1, 2]}), "columns of values"),
        (pd.DataFrame([["a", "b", 1]], columns=["user", "user", "time"]), "each column once"),
    ],
)
def test_frames_that_are_no_tables_are_refused(frame, needs):
    with pytest.raises(KarmafunnelError) as raised:
        Log.from_interactions(frame, user="user", item="item", time="time")
    assert raised.value.needs.startswith(needs) and raised.value.found


WRONG = {
    "measure: runs needs a Run": lambda run, log: measure(log),
    "nowhere: needs a Run folder": lambda run, log: measure("nowhere"),
    "compare: b needs a Run": lambda run, log: compare(run, None),
    "measure: seed needs a whole number": lambda run, log: measure(run, seed=-1),
    "measure: resamples needs a whole": lambda run, log: measure(run, resamples=1.5),
    "measure: ci needs True or False": lambda run, log: measure(run, ci=2),
    "did you mean resamples": lambda run, log: measure(run, resample=10),
    "replay: log needs a log or the path": lambda run, log: replay(Popular(k=5), 3),
    "explain: log needs a log or the path": lambda run, log: explain(Popular(k=5), None, "q"),
    "report: runs needs Runs": lambda run, log: report(3, out="r.html"),
    r"found a list; report\(\*runs": lambda run, log: report([run, run], out="r.html"),
    "report: out needs a path": lambda run, log: report(run, out=None),
    "Log.open: folder needs a path": lambda run, log: Log.open(None),
    "import_run: files needs at least one": lambda run, log: import_run([], "x", log=log),
    "found none at f.trec": lambda run, log: import_run("f.trec", "x", log=log),
    "import_run: stages needs a list": lambda run, log: import_run("f", "x", log=log, stages=3),
    "import_run: format needs one of": lambda run, log: import_run("f", "x", format="nope"),
    "frame needs a data frame": lambda run, log: Log.from_interactions(None),
    "found usr; did you mean user": lambda run, log: Log.from_interactions(interactions(), usr="a"),
    "user needs the name of a column": lambda run, log: Log.from_interactions(interactions(), user=0),
    "zone needs a time zone": lambda run, log: Log.from_interactions(interactions(), zone=3),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_argument_is_told_by_function_and_name(said, runs, log):
    with pytest.raises(KarmafunnelError, match=said):
        WRONG[said](runs[0], log)


def test_paths_stand_for_runs_and_logs(runs, log, tmp_path):
    log.write(tmp_path / "log")
    by_path = replay(Popular(k=20), str(tmp_path / "log"))
    assert by_path.slates.equals(runs[0].slates)
    assert measure(by_path.path, "HR@10").rows() == measure(by_path, "HR@10").rows()
    assert compare(str(runs[1].path), runs[0].path).equals(compare(runs[1], runs[0]))
    request = by_path.requests["request_id"][0]
    assert explain(Popular(k=5), tmp_path / "log", request).height


def test_only_seeds_of_one_funnel_are_averaged(runs, log):
    with pytest.raises(KarmafunnelError, match="runs needs Runs of one funnel") as raised:
        measure(list(runs), "HR@10")
    assert all(str(run.path) in str(raised.value) for run in runs)
    seeds = [replay(Uniform(k=20), log, options=RunOptions(seed=seed)) for seed in (0, 1)]
    assert measure(seeds, "HR@10")["seeds"][0] == 2


def test_errors_of_frames_name_no_file_and_no_option():
    for frame in (
        pl.DataFrame({"a": ["x"] * 9, "b": ["y"] * 9}),
        interactions().with_columns(at=pl.lit("never")),
        interactions().drop("at"),
    ):
        with pytest.raises(KarmafunnelError) as raised:
            Log.from_interactions(frame, user=frame.columns[0], time=frame.columns[-1])
        said = str(raised.value)
        assert not [word for word in ("/tmp", ".parquet", "--", "_,") if word in said], said
