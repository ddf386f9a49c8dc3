"""A funnel that runs elsewhere: its lists become a Run whose figures are those of ir_measures."""

import tempfile
import warnings
from pathlib import Path

import ir_measures
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG
from karmafunnel import KarmafunnelError, compare, import_run, measure, replay
from karmafunnel.cli import main
from karmafunnel.simulator.importing.logged_runs import read_lists
from karmafunnel.simulator.measure.measures.measure import Measure
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.rerank import Unseen

TOPICS, DOCS, K = 30, 400, {"recall": 100, "rank": 20}


@pytest.fixture(scope="module")
def trec(tmp_path_factory) -> Path:
    """Two runs and qrels: topics without a relevant document, without a list, and not judged."""
    folder = tmp_path_factory.mktemp("trec")
    rng = np.random.default_rng(0)
    qrels, runs = [], {name: [] for name in K}
    for topic in range(TOPICS):
        for doc in rng.choice(DOCS, 12, replace=False):
            qrels.append(f"q{topic} 0 d{doc} {int(topic != 3) * rng.integers(0, 3)}")
        if topic == 5:
            continue
        found = rng.choice(DOCS, K["recall"], replace=False)
        for name, k in K.items():
            order = rng.permutation(found)[:k] if name == "rank" else found
            for place, doc in enumerate(order, 1):
                runs[name].append(
                    f"q{topic} Q0 d{doc} {place} {1000 - place + rng.random() / 2:.6f} x"
                )
    runs["rank"].append("q99 Q0 d1 1 5.0 x")
    (folder / "qrels.txt").write_text("\n".join(qrels) + "\n")
    for name, lines in runs.items():
        (folder / f"{name}.trec").write_text("\n".join(lines) + "\n")
    return folder


def run_of(trec: Path, out: Path):
    return import_run([trec / "recall.trec", trec / "rank.trec"], out, qrels=trec / "qrels.txt")


NAMES = {
    "HR@1": Success @ 1,
    "Success@10": Success @ 10,
    "P@10": P @ 10,
    "R@10": R @ 10,
    "RR": RR,
    "AP@20": AP @ 20,
    "Recall@20": R @ 20,
}


@pytest.mark.parametrize("stage", K)
def test_figures_are_those_of_ir_measures(stage, trec, tmp_path):
    """Over topics with relevant documents, one without a list counting 0."""
    run = run_of(trec, tmp_path / "run")
    judged = list(ir_measures.read_trec_qrels(str(trec / "qrels.txt")))
    relevant = {q.query_id for q in judged if q.relevance > 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lists = list(ir_measures.read_trec_run(str(trec / f"{stage}.trec")))
        values = {
            (str(v.measure), v.query_id): v.value
            for v in ir_measures.iter_calc(list(NAMES.values()), judged, lists)
        }
    assert len(relevant) == TOPICS - 1
    for name, theirs in NAMES.items():
        (ours,) = measure(run, name, ci=False).filter(stage=stage)["value"]
        mean = sum(values.get((str(theirs), topic), 0.0) for topic in relevant) / len(relevant)
        assert ours == pytest.approx(mean, abs=1e-9), name


THEIRS = {
    f"{name}@{k}": measure @ k
    for name, measure in {"HR": Success, "P": P, "R": R, "nDCG": nDCG}.items()
    for k in (1, 3, 7)
} | {"AP@9": AP @ 9, "RR": RR, "RR@3": RR @ 3}


@st.composite
def collections(draw):
    """Qrels and a run without ties of a few topics: some are not answered, some not judged, some
    without a relevant document.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    topics, docs = draw(st.integers(1, 6)), draw(st.integers(9, 30))
    qrels = {
        f"q{topic}": {f"d{doc}": int(rng.integers(0, 2)) for doc in rng.choice(docs, 8, replace=False)}
        for topic in range(topics)
    }
    qrels["q0"]["d0"] = 1
    run = {}
    for topic in range(topics + 1):  # the last is not judged
        if rng.random() < 0.8:
            found = rng.choice(docs, int(rng.integers(1, docs + 1)), replace=False)
            scores = rng.permutation(len(found)) + rng.random()
            run[f"q{topic}"] = {f"d{doc}": float(s) for doc, s in zip(found, scores, strict=True)}
    return qrels, run


@settings(max_examples=25, deadline=None)
@given(collections())
def test_every_figure_is_that_of_ir_measures(made):
    """The mean, and the value of each topic: a Run of that topic alone."""
    qrels, run = made
    relevant = sorted(topic for topic, docs in qrels.items() if any(docs.values()))
    theirs = {
        (str(v.measure), v.query_id): v.value
        for v in ir_measures.iter_calc(list(THEIRS.values()), qrels, run)
    }
    values = {
        (name, topic): theirs.get((str(measure_of), topic), 0.0)
        for name, measure_of in THEIRS.items()
        for topic in relevant
    }
    for topics in dict.fromkeys([tuple(relevant), *((topic,) for topic in relevant)]):
        chosen = qrels if len(topics) == len(relevant) else {topics[0]: qrels[topics[0]]}
        if not run.keys() & chosen.keys():
            continue  # a run of none of the topics is refused
        for name, ours in figures(chosen, run).items():
            if ours is None:  # no list is that long
                longest = max(len(docs) for topic, docs in run.items() if topic in chosen)
                assert longest < int(name.partition("@")[2])
                continue
            mean = sum(values[name, topic] for topic in topics) / len(topics)
            assert ours == pytest.approx(mean, abs=1e-9), (name, topics)


def figures(qrels, run):
    """Our value of each measure of `THEIRS`."""
    with tempfile.TemporaryDirectory() as folder:
        lines = {
            "qrels.txt": [f"{q} 0 {doc} {n}" for q, docs in qrels.items() for doc, n in docs.items()],
            "a.trec": [f"{q} Q0 {doc} 0 {x!r} x" for q, docs in run.items() for doc, x in docs.items()],
        }
        for name, text in lines.items():
            (Path(folder) / name).write_text("\n".join(text) + "\n")
        made = import_run(
            [Path(folder) / "a.trec"], Path(folder) / "run", qrels=Path(folder) / "qrels.txt"
        )
        found = measure(made, *THEIRS, ci=False).filter(stage="a")
    by_name = dict(found.select("measure", "value").iter_rows())
    return {name: by_name[str(Measure.parse(name))] for name in THEIRS}


def test_the_ledger_says_where_relevant_documents_were_lost(trec, tmp_path):
    run = run_of(trec, tmp_path / "run")
    assert run.stages == ["recall", "rank"]
    ledger = run.read("ledger")
    in_recall = pl.concat([read_lists([trec / "recall.trec"]).frame]).select(
        "request_id", "item_id"
    )
    lost = ledger.filter(pl.col("lost") == "recall").join(
        in_recall, on=["request_id", "item_id"], how="semi"
    )
    assert lost.is_empty()
    kept = ledger.filter(pl.col("lost").is_null())
    assert kept["rank.rank"].max() <= K["rank"]
    assert (ledger["lost"] == "rank").sum() > 10


def test_twice_is_the_same_bytes(trec, tmp_path):
    for name in ("a", "b"):
        run_of(trec, tmp_path / name / "run")
    for table in ("slates", "requests", "ledger", "scored"):
        assert (tmp_path / "a/run" / f"{table}.parquet").read_bytes() == (
            tmp_path / "b/run" / f"{table}.parquet"
        ).read_bytes()


@pytest.fixture(scope="module")
def ours(shop, tmp_path_factory):
    """A Run of our own, and its lists as a table."""
    run = replay(Popular(k=60) >> Unseen(k=30), shop)
    path = tmp_path_factory.mktemp("lists") / "lists.csv"
    run.read("slates").select("request_id", "stage", "item_id", "rank", "score").write_csv(path)
    return run, path


def test_lists_of_our_own_funnel_come_back_as_they_were(ours, shop, tmp_path):
    run, path = ours
    again = import_run([path], tmp_path / "again", log=shop)
    assert again.stages == run.stages
    columns = ["request_id", "stage", "item_id", "rank"]
    assert again.read("slates").select(columns).equals(run.read("slates").select(columns))
    for name in ("HR@10", "nDCG@10", "survival", "MRR"):
        mine, theirs = (
            measure(r, name, ci=False).filter(pl.col("stage").is_in(run.stages))
            for r in (run, again)
        )
        assert theirs["value"].to_list() == pytest.approx(mine["value"].to_list(), abs=1e-12), name


def test_one_file_a_stage_in_the_order_told(ours, shop, tmp_path):
    run, _ = ours
    for stage in run.stages:
        run.read("slates").filter(stage=stage).select(
            "request_id", "item_id", "rank"
        ).write_parquet(tmp_path / f"{stage}.parquet")
    files = [tmp_path / f"{stage}.parquet" for stage in run.stages]
    assert import_run(files, tmp_path / "run", log=shop).stages == run.stages
    turned = import_run(files, tmp_path / "turned", log=shop, stages=run.stages[::-1])
    assert turned.stages == run.stages[::-1]


def test_a_fault_is_told_of_the_file_that_has_it(trec, tmp_path):
    short = tmp_path / "short.trec"
    short.write_text("q1 Q0 d1 1 5.0\n")
    with pytest.raises(KarmafunnelError) as raised:
        import_run([trec / "recall.trec", short], tmp_path / "run", qrels=trec / "qrels.txt")
    assert raised.value.who == f"{short}: line 1"
    short.write_text("q1 Q0 d1 1 5.0 x\nq1 Q0 d1 2 nan x\n")
    with pytest.raises(KarmafunnelError) as raised:
        import_run([trec / "recall.trec", short], tmp_path / "run", qrels=trec / "qrels.txt")
    assert raised.value.who == f"{short}: line 2"
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("request,item,rank\nq1,d1,1\nq1,d2\n")
    with pytest.raises(KarmafunnelError, match="row 2: needs a row like the others"):
        import_run([ragged], tmp_path / "run", qrels=trec / "qrels.txt")
    ragged.write_text("request,item,rank\n")
    with pytest.raises(KarmafunnelError, match=r"ragged\.csv: needs rows"):
        import_run([ragged], tmp_path / "run", qrels=trec / "qrels.txt")


def test_equal_scores_are_in_the_order_of_ranks_and_said(trec, tmp_path):
    """Other tools order them by id, so that figures may differ."""
    (tmp_path / "a.trec").write_text("q1 Q0 d9 1 5.0 x\nq1 Q0 d1 2 5.0 x\nq1 Q0 d2 3 1.0 x\n")
    said = []
    run = import_run(
        [tmp_path / "a.trec"],
        tmp_path / "run",
        qrels=trec / "qrels.txt",
        tell=lambda lists, notes, rows: said.extend(notes),
    )
    assert "a.trec: 2 equal scores: in the order of their ranks" in said
    assert run.read("slates").sort("rank")["item_id"].to_list() == ["d9", "d1", "d2"]


@pytest.mark.parametrize("changed", ["qrels.txt", "rank.trec"])
def test_a_run_stays_whole_unless_it_is_replaced_by_force(changed, trec, tmp_path):
    """With its lists and its log: nothing is written before that is known."""
    for name in ("qrels.txt", "recall.trec", "rank.trec"):
        (tmp_path / name).write_bytes((trec / name).read_bytes())
    run_of(tmp_path, tmp_path / "run")

    def kept():
        places = sorted(p for p in tmp_path.glob("run*/*") if p.name != "timing.parquet")
        return {path: path.read_bytes() for path in places}

    before = kept()
    assert {path.parent.name for path in before} == {"run", "run.log", "run.stages"}
    run_of(tmp_path, tmp_path / "run")  # the same again
    assert {k for k, v in kept().items() if v != before[k]} <= {
        tmp_path / "run" / name for name in ("run.json", "digests.json")
    }
    before = kept()
    lines = (tmp_path / changed).read_text().splitlines()
    (tmp_path / changed).write_text("\n".join(lines[:-5]) + "\n")
    with pytest.raises(KarmafunnelError, match="use --force"):
        run_of(tmp_path, tmp_path / "run")
    assert kept() == before
    files = [tmp_path / "recall.trec", tmp_path / "rank.trec"]
    options = RunOptions(force=True)
    import_run(files, tmp_path / "run", qrels=tmp_path / "qrels.txt", options=options)
    assert kept() != before


@pytest.mark.parametrize("beside", ["run.stages", "run.log"])
def test_what_lies_beside_is_never_replaced(beside, trec, tmp_path):
    (tmp_path / beside).mkdir()
    (tmp_path / beside / "mine.txt").write_text("precious")
    with pytest.raises(KarmafunnelError):
        run_of(trec, tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == [beside]
    assert (tmp_path / beside / "mine.txt").read_text() == "precious"


def test_judgements_without_a_relevant_document_are_refused(trec, tmp_path):
    (tmp_path / "qrels.txt").write_text("q1 0 d1 0\n")
    with pytest.raises(KarmafunnelError, match="needs a level of relevance above 0"):
        import_run([trec / "recall.trec"], tmp_path / "run", qrels=tmp_path / "qrels.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["qrels.txt"]


BAD = {
    "five fields": ("q1 Q0 d1 1 5.0 x\nq1 Q0 d2 2 4.0\n", "needs 6 fields of a TREC run, found 5"),
    "no number": ("q1 Q0 d1 1 high x\n", "needs scores that are numbers"),
    "twice": ("q1 Q0 d1 1 5 x\nq1 Q0 d1 2 4 x\n", "needs each item at most once in a list"),
    "other topics": ("z9 Q0 d1 1 5 x\n", "needs requests of log"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_runs_are_refused_and_nothing_is_left(what, trec, tmp_path):
    text, words = BAD[what]
    (tmp_path / "bad.trec").write_text(text)
    with pytest.raises(KarmafunnelError, match=words):
        import_run([tmp_path / "bad.trec"], tmp_path / "run", qrels=trec / "qrels.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.trec"]


def test_runs_of_the_same_judgements_are_compared(trec, tmp_path):
    """Though they retrieved different documents, and so have different catalogues."""
    shorter = trec / "recall.trec"
    other = tmp_path / "other.trec"
    other.write_text(shorter.read_text() + "q1 Q0 elsewhere 101 0.5 x\n")
    a = import_run([shorter], tmp_path / "a", qrels=trec / "qrels.txt")
    b = import_run([other], tmp_path / "b", qrels=trec / "qrels.txt")
    assert a.meta["log"]["checksum"] != b.meta["log"]["checksum"]
    difference, stage = compare(a, b, "HR@5", by_stage=False).select("difference", "stage").row(0)
    assert difference == 0 and "recall" in stage
    judged = tmp_path / "more.txt"
    judged.write_text((trec / "qrels.txt").read_text() + "q1 0 elsewhere 1\n")
    with pytest.raises(KarmafunnelError, match="Runs of one log"):
        compare(a, import_run([shorter], tmp_path / "c", qrels=judged), "HR@5")


def test_stages_in_no_order_and_stages_of_other_requests_are_refused(trec, tmp_path):
    files = [trec / "rank.trec", trec / "recall.trec"]
    with pytest.raises(KarmafunnelError, match="stages in their order") as raised:
        import_run(files, tmp_path / "run", qrels=trec / "qrels.txt")
    assert raised.value.hint == "say the order: --stage recall --stage rank"
    run = import_run(files, tmp_path / "run", qrels=trec / "qrels.txt", stages=["recall", "rank"])
    assert run.stages == ["recall", "rank"]
    foreign = tmp_path / "foreign.trec"
    foreign.write_text("z1 Q0 d1 1 5.0 x\n")
    with pytest.raises(KarmafunnelError, match="stage foreign needs requests of log qrels"):
        import_run([trec / "recall.trec", foreign], tmp_path / "other", qrels=trec / "qrels.txt")


def test_it_needs_a_log_or_qrels(trec, shop, tmp_path):
    with pytest.raises(KarmafunnelError, match="neither a log nor judgements") as raised:
        import_run([trec / "recall.trec"], tmp_path / "run")
    assert "--log LOG" in raised.value.hint
    assert "--qrels FILE" in raised.value.hint
    with pytest.raises(KarmafunnelError, match="needs --log or --qrels, not both"):
        import_run([trec / "recall.trec"], tmp_path / "run", log=shop, qrels=trec / "qrels.txt")


def test_the_command(trec, tmp_path):
    words = [
        "import-run",
        str(trec / "recall.trec"),
        str(trec / "rank.trec"),
        str(tmp_path / "run"),
        "--qrels",
        str(trec / "qrels.txt"),
    ]
    answer = CliRunner().invoke(main, words)
    assert answer.exit_code == 0, answer.output
    assert "survival" in answer.output
    assert sorted(p.name for p in (tmp_path / "run.stages").glob("*.parquet")) == [
        "rank.parquet",
        "recall.parquet",
    ]
    assert CliRunner().invoke(
        main,
        [
            "gate",
            str(tmp_path / "run"),
            str(tmp_path / "run"),
            "--measure",
            "HR@10",
            "--margin",
            "1",
        ],
    ).exit_code in (0, 1)


def test_options_reach_the_replay(ours, shop, tmp_path):
    _, path = ours
    run = import_run([path], tmp_path / "few", log=shop, options=RunOptions(limit=7))
    assert run.read("requests").height == 7


def test_levels_of_relevance_that_count_alike_are_said(tmp_path):
    files = {"run.trec": "q1 Q0 a 1 2 x\nq1 Q0 b 2 1 x\n", "qrels.txt": "q1 0 a 1\nq1 0 b 2\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    words = ["import-run", *[str(tmp_path / name) for name in ("run.trec", "run")]]
    done = CliRunner().invoke(main, [*words, "--qrels", str(tmp_path / "qrels.txt")])
    assert "the levels of relevance 1, 2 all count alike, so nDCG has no graded" in done.output


@pytest.mark.parametrize("up", [True, False])
def test_ranks_that_scores_contradict_are_the_order_and_said(up, tmp_path):
    """Such as distances, which grow with the rank."""
    rows = [(f"q{q}", f"d{place}", place, place if up else -place) for q in range(3) for place in (2, 1, 3)]
    table = pl.DataFrame(rows, schema=["request", "item", "rank", "score"], orient="row")
    table.write_csv(tmp_path / "recall.csv")
    (tmp_path / "qrels.txt").write_text("".join(f"q{q} 0 d1 1\n" for q in range(3)))
    lists = read_lists([tmp_path / "recall.csv"])
    assert len(lists.notes) == up and all("recall.csv: recall: scores" in note for note in lists.notes)
    run = import_run([tmp_path / "recall.csv"], tmp_path / "run", qrels=tmp_path / "qrels.txt")
    assert measure(run, "HR@1").filter(stage="recall")["value"][0] == 1


def test_a_stage_named_twice_is_refused_and_nothing_is_left(trec, tmp_path):
    given = [trec / "recall.trec", trec / "rank.trec"]
    with pytest.raises(KarmafunnelError, match="stages needs each stage once, found rank twice"):
        import_run(given, tmp_path / "x", qrels=trec / "qrels.txt", stages=["rank", "rank"])
    assert not list(tmp_path.iterdir())


def test_a_document_with_two_levels_is_refused_by_line(trec, tmp_path):
    for second, refused in (("1", False), ("0", True)):
        (tmp_path / "q.txt").write_text(f"q0 0 d1 1\nq1 0 d2 1\nq0 0 d1 {second}\n")
        if not refused:
            import_run([trec / "recall.trec"], tmp_path / "run", qrels=tmp_path / "q.txt")
            continue
        with pytest.raises(KarmafunnelError, match=r"line 3: needs one level.* after 1 in line 1"):
            import_run([trec / "recall.trec"], tmp_path / "y", qrels=tmp_path / "q.txt")
