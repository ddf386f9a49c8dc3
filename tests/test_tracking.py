"""A table logged to MLflow: every figure of table.json, once, whatever happens between."""

import json

import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.log import Log
from karmafunnel.simulator.ablation.ablate import ablate
from karmafunnel.simulator.ablation.tracking import log_table, metric
from karmafunnel.simulator.replay.recipe import load_recipe

mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")

RECIPE = """
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.stages.recall import Popular, Repeat

rows = {"popular": Row(Popular(k=20)), "repeat": Row(Repeat(k=20)), "broken": Row(Popular(k=0))}
against = "popular"
seeds = (0, 1)
measures = ("HR@10", "HR@20")
"""


@pytest.fixture(scope="module")
def table(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracking")
    shop.write(folder / "log")
    (folder / "both.py").write_text(RECIPE)
    log = Log.open(folder / "log")
    ablate(load_recipe(str(folder / "both.py"), log), log, folder / "table")
    return folder / "table"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The URI of an empty store in a folder."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return (tmp_path / "store").as_uri()


def runs(store):
    client = mlflow.MlflowClient(tracking_uri=store)
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    return client, experiment, client.search_runs([experiment.experiment_id])


def test_every_figure_of_a_row_arrives_once(table, store):
    lines = {line["row"]: line for line in json.loads((table / "table.json").read_text())["lines"]}
    assert log_table(table, store) == ["popular", "repeat", "broken"]
    assert log_table(table, store) == []
    client, experiment, found = runs(store)
    assert experiment.name.startswith("both on ") and len(found) == 3
    by_row = {run.data.tags["karmafunnel.row"]: run for run in found}
    for name in ("popular", "repeat"):
        metrics = by_row[name].data.metrics
        for column, row in lines[name]["values"].items():
            if row["value"] is not None:
                assert metrics[metric(column)] == row["value"]
                assert metrics[f"{metric(column)}.low"] == row["low"]
        for column, row in lines[name]["differences"].items():
            if row["difference"] is not None:
                assert metrics[f"difference/{metric(column)}"] == row["difference"]
        assert metrics["ms/total"] == lines[name]["cost"]["total"]
        assert by_row[name].data.params["seeds"] == "0 1"
    assert "difference/HR_at_10" in by_row["repeat"].data.metrics
    assert "k" in by_row["broken"].data.tags["failed"]
    artifacts = client.list_artifacts(by_row["popular"].info.run_id)
    assert {a.path for a in artifacts} >= {"table.json", "table.html"}


def test_an_export_that_was_interrupted_goes_on(table, store, monkeypatch):
    whole = mlflow.MlflowClient.log_batch

    def fails_at_the_second(self, run, **given):
        if any(p.value.startswith("Repeat") for p in given["params"]):
            raise OSError("the network is gone")
        return whole(self, run, **given)

    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "log_batch", fails_at_the_second)
        with pytest.raises(Exception, match="the network is gone"):
            log_table(table, store)
    assert log_table(table, store) == ["repeat", "broken"]


def test_names_that_mlflow_refuses_are_made_plain():
    assert metric("HR@10 at recall, cold") == "HR_at_10 at recall cold"
    assert metric("ms/prerank") == "ms/prerank"


def test_the_command_logs_and_says_what_is_wrong(table, store, tmp_path):
    def ask(*words):
        return CliRunner().invoke(main, ["export", *map(str, words), "--format", "mlflow"])

    done = ask(table, store)
    assert done.exit_code == 0 and done.output.split() == ["popular", "repeat", "broken"]
    assert "logged before" in ask(table, store).output
    wrong = ask(tmp_path, store)
    assert wrong.exit_code == 1 and "table.json" in wrong.output
    assert "MLflow server or store" in ask(table, "http://127.0.0.1:9").output


def test_without_mlflow_the_extra_is_named(table, store, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(Exception, match=r"pip install 'karmafunnel\[mlflow\]'"):
        log_table(table, store)
