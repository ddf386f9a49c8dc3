"""The command line end to end on a small World, and errors without a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result
from karmafunnel.cli import main
from karmafunnel.log import Log

pytestmark = pytest.mark.slow

RECIPE = """
from karmafunnel.stages.features import Own, Popularity, Upstream
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import BM25Recall, Join, Popular

label, embedders = None, {}
features = [Upstream(), Own(), Popularity()]
recall = Join([Popular(k=60), BM25Recall(k=60)], k=100)
funnel = recall >> LightGBMRank(k=K, features=features, trees=20)
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words])


def refused(*words: object) -> str:
    """What standard error says of a command that must fail with exit code 1 (2: an option cannot
    be) and no traceback.
    """
    answer = run(*words)
    assert answer.exit_code in (1, 2) and "Traceback" not in answer.output
    assert answer.exception is None or isinstance(answer.exception, SystemExit)
    return " ".join(answer.stderr.split())


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """A folder with a World, a recipe and two Runs."""
    folder = tmp_path_factory.mktemp("cli")
    assert (
        run("world", folder / "log", "--items", 300, "--users", 60, "--requests", 400).exit_code
        == 0
    )
    for k in (20, 30):
        (folder / f"top{k}.py").write_text(RECIPE.replace("K,", f"{k},"))
        answer = run(
            "replay",
            folder / f"top{k}.py",
            folder / "log",
            "--out",
            folder / f"run{k}",
            "--no-cache",
        )
        assert answer.exit_code == 0, answer.output
        assert "survival" in answer.stdout
        assert "replaying" in answer.stderr
        assert "replaying" not in answer.stdout
    return folder


def test_measure_json_has_the_promised_keys(there):
    rows = json.loads(
        run("measure", there / "run20", "HR@10", "gAUC:request:exposures", "--json").stdout
    )
    assert {
        "label",
        "stage",
        "measure",
        "slice",
        "value",
        "low",
        "high",
        "n",
        "undefined",
        "unit",
    } <= set(rows[0])
    assert {"recall", "rank", "random", "ceiling", "logged order"} <= {r["stage"] for r in rows}
    for fmt in ("csv", "markdown", "latex"):
        assert "HR@10" in run("measure", there / "run20", "HR@10", "--format", fmt).stdout
    sliced = json.loads(
        run("measure", there / "run20", "HR@10", "--slice", "target", "--json").stdout
    )
    assert {"target=head", "target=tail"} <= {r["slice"] for r in sliced}


def test_compare_report_and_explain(there):
    rows = json.loads(run("compare", there / "run20", there / "run30", "HR@10", "--json").stdout)
    assert all(
        r["difference"] == pytest.approx(r["value_b"] - r["value_a"])
        for r in rows
        if r["difference"] is not None
    )
    assert run("report", there / "run20", there / "run30", "--out", there / "r.html").exit_code == 0
    assert (there / "r.html").read_text().startswith("<!doctype html>") or "<html" in (
        there / "r.html"
    ).read_text()[:300]
    request = pl.read_parquet(there / "run20" / "ledger.parquet")["request_id"][0]
    answer = run("explain", there / "top20.py", there / "log", "--request", request, "--no-cache")
    assert answer.exit_code == 0
    assert "recall" in answer.stdout
    assert "rank" in answer.stdout


def test_describe_validate_doctor(there):
    assert json.loads(run("describe", there / "log", "--json").stdout)
    assert (
        run("describe", there / "log", "--html", there / "d.html").exit_code == 0
        and (there / "d.html").exists()
    )
    assert run("validate", there / "log").exit_code == 0
    assert json.loads(run("doctor", "--json").stdout)["cores"] >= 1


def test_validate_fails_on_a_broken_log(there, tmp_path):
    (tmp_path / "log").mkdir()
    for path in (there / "log").glob("*.*"):
        (tmp_path / "log" / path.name).write_bytes(path.read_bytes())
    exposures = pl.read_parquet(tmp_path / "log" / "exposures.parquet")
    exposures.with_columns(price_shown=-pl.col("price_shown")).write_parquet(
        tmp_path / "log" / "exposures.parquet"
    )
    answer = run("validate", tmp_path / "log", "--json")
    failed = {c["name"] for c in json.loads(answer.stdout) if c["status"] == "FAIL"}
    assert answer.exit_code == 1 and "prices" in failed


def test_a_sample_of_users_is_a_log_like_any_other(there, tmp_path):
    answer = run("sample", there / "log", tmp_path / "small", "--users", 0.3, "--seed", 1)
    assert answer.exit_code == 0, answer.output
    small, whole = Log.open(tmp_path / "small"), Log.open(there / "log")
    assert 0 < small.requests.height < 0.6 * whole.requests.height and small.items.select(
        whole.items.columns
    ).equals(whole.items)
    assert f"{small.requests.height:,}" in answer.stdout and "-0.3" in answer.stdout
    assert run("validate", tmp_path / "small").exit_code == 0
    assert (
        run(
            "replay",
            there / "top20.py",
            tmp_path / "small",
            "--out",
            tmp_path / "run",
            "--no-cache",
        ).exit_code
        == 0
    )


def test_errors_name_what_was_found(there, tmp_path):
    assert "found no folder" in refused(
        "replay", there / "top20.py", tmp_path / "nowhere", "--out", tmp_path / "run"
    )
    assert "or a shipped recipe" in refused(
        "replay", "nowhere", there / "log", "--out", tmp_path / "run"
    )
    assert "found 'nope'" in refused("convert", "nope", tmp_path, tmp_path / "log")
    assert "another place than its own input" in refused("sample", there / "log", there / "log")
    assert "HR50" in refused("measure", there / "run20", "HR50")
    assert "found 'r?'" in refused(
        "explain", there / "top20.py", there / "log", "--request", "r?", "--no-cache"
    )
    assert "limit" in refused(
        "replay", there / "top20.py", there / "log", "--out", tmp_path / "run", "--limit", 0
    )
    run("world", tmp_path / "other", "--items", 300, "--users", 60, "--requests", 400, "--seed", 1)
    run("replay", there / "top20.py", tmp_path / "other", "--out", tmp_path / "run", "--no-cache")
    assert "Runs of one log" in refused("compare", there / "run20", tmp_path / "run", "HR@10")
    (tmp_path / "file").touch()
    assert refused(
        "replay",
        there / "top20.py",
        there / "log",
        "--out",
        tmp_path / "file" / "run",
        "--no-cache",
    )


def modules_after(words: list[str]) -> set[str]:
    """Names of the modules that a new process has imported after a command."""
    code = (
        "from click.testing import CliRunner\nfrom karmafunnel.cli import main\n"
        f"assert CliRunner().invoke(main, {words!r}).exit_code == 0"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return set(done.stdout.split("\n")[-2].split())


def test_no_command_that_tells_errors_ends_by_an_exit_of_its_own():
    """`OneLineErrors` would tell it as an exit of a recipe's code; a command says `ctx.exit`."""
    root, told = Path(__file__).parents[1], 0
    for path in (root / "benchmarks").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "cls=OneLineErrors" in text:
            told += 1
            assert "sys.exit(" not in text and "SystemExit" not in text, path
    assert told > 10


def test_help_imports_nothing_heavy():
    assert not {"torch", "polars", "numpy", "sklearn", "plotly"} & modules_after(["--help"])


def test_it_runs_as_a_module():
    ran = subprocess.run([sys.executable, "-m", "karmafunnel", "--help"], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith("Usage: karmafunnel [OPTIONS]")


def test_measuring_a_run_imports_no_torch(there):
    words = ["measure", str(there / "run20"), "HR@10", "gAUC:request:exposures"]
    assert not {"torch", "lightgbm", "faiss", "transformers"} & modules_after(words)


@pytest.mark.parametrize(
    ("recipe", "unused"),
    [
        ("popular", {"torch", "transformers", "lightgbm", "sklearn", "bm25s"}),
        ("own_history", {"torch", "transformers", "lightgbm", "sklearn", "bm25s"}),
        ("next_item_knn", {"torch", "transformers", "lightgbm", "sklearn", "bm25s"}),
        ("top20.py", {"torch", "transformers"}),
    ],
)
def test_a_replay_imports_only_the_libraries_of_its_stages(recipe, unused, there, tmp_path):
    if recipe.endswith(".py"):
        recipe = str(there / recipe)
    words = ["replay", recipe, str(there / "log"), "--out", str(tmp_path / "run"), "--no-cache"]
    assert not unused & modules_after(words)
