"""Runs and logs for other tools, and the way back."""

import ir_measures
import polars as pl
import pytest
from click.testing import CliRunner
from ir_measures import RR, P, R, Success, nDCG
from karmafunnel import KarmafunnelError, Log, import_run, measure, replay
from karmafunnel.cli import main
from karmafunnel.simulator.importing.assembling import import_tables
from karmafunnel.simulator.measure.exporting import export_log, export_run, no_blanks
from karmafunnel.simulator.measure.measures.measure import Measure
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.rerank import Unseen


@pytest.fixture(scope="module")
def run(shop):
    return replay(Popular(k=60) >> Unseen(k=30), shop)


MEASURES = {"HR@10": Success @ 10, "MRR": RR, "P@10": P @ 10, "R@10": R @ 10, "nDCG@10": nDCG @ 10}


def values_of(run):
    rows = measure(run, *MEASURES, "survival", ci=False).filter(pl.col("stage").is_in(run.stages))
    return {(m, s): v for m, s, v in rows.select("measure", "stage", "value").iter_rows()}


def test_a_run_as_trec_says_the_same_to_ir_measures_and_comes_back(run, tmp_path):
    """The files are numbered, so that a folder of them has the stages in order."""
    names = export_run(run, tmp_path / "trec", "trec")
    assert names == ["01-recall.trec", "02-unseen.trec", "qrels.txt"]
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "trec" / "qrels.txt")))
    relevant = {q.query_id for q in qrels}
    ours = values_of(run)
    for number, stage in enumerate(run.stages, 1):
        path = tmp_path / "trec" / f"{number:02}-{stage}.trec"
        lists = list(ir_measures.read_trec_run(str(path)))
        theirs = ir_measures.calc_aggregate(list(MEASURES.values()), qrels, lists)
        for name, its in MEASURES.items():
            mine = ours[str(Measure.parse(name)), stage]
            assert mine == pytest.approx(theirs[its], abs=1e-9), name
    qrels_file = tmp_path / "trec" / "qrels.txt"
    again = import_run([tmp_path / "trec"], tmp_path / "again", qrels=qrels_file)
    assert again.stages == run.stages
    assert set(again.read("requests")["request_id"]) == relevant
    assert values_of(again) == pytest.approx(ours, abs=1e-12)
    glob = import_run([tmp_path / "trec" / "*.trec"], tmp_path / "glob", qrels=qrels_file)
    assert glob.stages == run.stages


def test_a_run_as_csv_comes_back(run, shop, tmp_path):
    assert export_run(run, tmp_path / "csv", "csv") == ["ledger.csv", "slates.csv"]
    again = import_run([tmp_path / "csv" / "slates.csv"], tmp_path / "again", log=shop)
    assert again.stages == run.stages
    assert values_of(again) == pytest.approx(values_of(run), abs=1e-12)
    ledger = pl.read_csv(tmp_path / "csv" / "ledger.csv", infer_schema_length=None)
    key = ["request_id", "item_id", "lost"]
    assert ledger.select(key).equals(again.read("ledger").select(key))


def test_a_log_comes_back_from_recbole_files(shop, tmp_path):
    """Who clicked or bought what and when, and titles; each event is a request of its own."""
    assert export_log(shop, tmp_path / "out", "recbole") == ["shop.inter", "shop.item"]
    import_tables([tmp_path / "out"], tmp_path / "log")
    told = []
    for log in (shop, Log.open(tmp_path / "log")):
        events = log.exposures.filter(
            pl.col("clicked").fill_null(False) | pl.col("purchased").fill_null(False)
        ).join(log.requests, on="request_id")
        told.append(
            (
                events.select("user_id", "item_id", "ts").sort("ts", "user_id", "item_id"),
                log.items.select("item_id", "title").sort("item_id"),
            )
        )
    assert told[0][0].height == shop.events.height
    for mine, again in zip(*told, strict=True):
        assert again.equals(mine)


def test_a_log_comes_back_from_flat_csv(shop, tmp_path):
    assert export_log(shop, tmp_path / "out", "csv") == ["interactions.csv", "items.csv"]
    import_tables([tmp_path / "out"], tmp_path / "log")
    again = Log.open(tmp_path / "log")
    columns = {
        "requests": ["request_id", "user_id", "ts", "query", "window"],
        "exposures": ["request_id", "item_id", "position", "clicked", "purchased", "price_shown"],
        "items": ["item_id", "title", "price"],
    }
    for table, names in columns.items():
        key = [name for name in names if name.endswith("_id")]
        mine, theirs = (getattr(log, table).select(names).sort(key) for log in (shop, again))
        assert theirs.equals(mine), table


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
