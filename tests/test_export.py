"""Runs and logs for other tools, and the way back."""

import ir_measures
import polars as pl
import pytest
from click.testing import CliRunner
from ir_measures import RR, Success
from karmafunnel import KarmafunnelError, Log, import_run, measure, replay
from karmafunnel.cli import main
from karmafunnel.simulator.importing.assembling import import_tables
from karmafunnel.simulator.measure.exporting import export_log, export_run, no_blanks
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.rerank import Unseen


@pytest.fixture(scope="module")
def run(shop):
    return replay(Popular(k=60) >> Unseen(k=30), shop)


def test_a_run_as_trec_says_the_same_to_ir_measures_and_comes_back(run, tmp_path):
    names = export_run(run, tmp_path / "trec", "trec")
    assert names == ["qrels.txt", "recall.trec", "unseen.trec"]
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "trec" / "qrels.txt")))
    relevant = {q.query_id for q in qrels}
    for stage in run.stages:
        lists = list(ir_measures.read_trec_run(str(tmp_path / "trec" / f"{stage}.trec")))
        values = ir_measures.calc_aggregate([Success @ 10, RR], qrels, lists)
        for name, theirs in (("HR@10", Success @ 10), ("MRR", RR)):
            (ours,) = measure(run, name, ci=False).filter(stage=stage)["value"]
            assert ours == pytest.approx(values[theirs], abs=1e-9)
    again = import_run(
        [tmp_path / "trec" / f"{stage}.trec" for stage in run.stages],
        tmp_path / "again",
        qrels=tmp_path / "trec" / "qrels.txt",
    )
    assert set(again.read("requests")["request_id"]) == relevant
    mine, theirs = (measure(r, "HR@10", ci=False).filter(stage="recall") for r in (run, again))
    assert theirs["value"][0] == pytest.approx(mine["value"][0], abs=1e-12)


def test_a_run_as_csv(run, tmp_path):
    assert export_run(run, tmp_path / "csv", "csv") == ["ledger.csv", "slates.csv"]
    back = pl.read_csv(tmp_path / "csv" / "slates.csv")
    assert back.height == run.read("slates").height


@pytest.mark.parametrize("kind", ["recbole", "csv"])
def test_a_log_comes_back_by_import(kind, shop, tmp_path):
    names = export_log(shop, tmp_path / "out", kind)
    wanted = {
        "recbole": ["shop.inter", "shop.item"],
        "csv": ["exposures.csv", "items.csv", "requests.csv"],
    }
    assert names == wanted[kind]
    if kind == "csv":
        assert pl.read_csv(tmp_path / "out" / "requests.csv")["ts"][0].endswith("Z")
        return
    import_tables([tmp_path / "out"], tmp_path / "log")
    log = Log.open(tmp_path / "log")
    assert log.exposures.height == shop.events.height
    assert sorted(log.items["title"].drop_nulls()) == sorted(shop.items["title"])


def test_what_cannot_be_exported_is_refused(run, shop, tmp_path):
    with pytest.raises(KarmafunnelError, match="format of a Run needs trec or csv"):
        export_run(run, tmp_path / "x", "recbole")
    with pytest.raises(KarmafunnelError, match="format of a log needs recbole or csv"):
        export_log(shop, tmp_path / "x", "trec")
    with pytest.raises(KarmafunnelError) as raised:
        no_blanks(pl.DataFrame({"item_id": ["a", "b c"]}), "item_id")
    assert raised.value.found == "'b c'"
    (tmp_path / "there").mkdir()
    with pytest.raises(KarmafunnelError, match="needs a new folder"):
        export_run(run, tmp_path / "there", "csv")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_the_command(run, tmp_path):
    answer = CliRunner().invoke(
        main, ["export", str(run.path), str(tmp_path / "o"), "--format", "trec"]
    )
    assert answer.exit_code == 0, answer.output
    assert "qrels.txt" in answer.output
