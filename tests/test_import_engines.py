"""Runs of OpenSearch UBI, Elasticsearch and Vespa: made-up files of the real schemas, with values
that are worked out by hand.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel import KarmafunnelError, Log, compare, import_run, measure, report
from karmafunnel.checks import validate
from karmafunnel.cli import main
from karmafunnel.simulator.importing import stage_lists
from karmafunnel.simulator.importing.logged_runs import answered, log_for, read_lists, recognised
from karmafunnel.simulator.importing.responses import before_rescore
from karmafunnel.simulator.importing.stage_lists import field


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def values(run, *names):
    """Values of the stages by measure and stage, without the rows beside them."""
    rows = measure(run, *names, ci=False).filter(pl.col("stage").is_in(run.stages))
    return {(m, s): v for m, s, v in rows.select("measure", "stage", "value").iter_rows()}


def lists_of(run):
    slates = run.read("slates").sort("stage", "request_id", "rank")
    return {
        key: group["item_id"].to_list()
        for key, group in slates.group_by("stage", "request_id", maintain_order=True)
    }


# -- UBI -------------------------------------------------------------------------------------------


def query(query_id, hits, minute, **more):
    return {
        "application": "shop",
        "query_id": query_id,
        "client_id": f"client of {query_id[0]}",
        "user_query": f"words of {query_id}",
        "object_id_field": "sku",
        "timestamp": f"2025-02-18T10:{minute:02}:00Z",
        "query_response_id": f"response to {query_id}",
        "query_response_hit_ids": hits,
    } | more


def event(action, query_id, item, ordinal=None, **more):
    where = {} if ordinal is None else {"ordinal": ordinal}
    return {
        "action_name": action,
        "query_id": query_id,
        "client_id": "a browser",
        "session_id": f"session of {query_id}",
        "timestamp": "2025-02-18T11:00:00+00:00",
        "message_type": "CONVERSION",
        "event_attributes": {"object": {"object_id": item, "object_id_field": "sku"}, "position": where},
    } | more


QUERIES = [
    query("b1", ["i2", "i1", "i3", "i4"], 5),
    query("a1", ["i1", "i2", "i3", "i4"], 1),
    query("a2", ["i4", "i3"], 9),
    query("c1", [], 7),
]
EVENTS = [
    event("click", "a1", "i2", 2),  # rank 2
    event("click_through", "b1", "i2", 1),  # rank 1
    event("purchase", "b1", "i3", 3),
    event("click", "a2", "i9", 5),  # in no list
    event("add_to_cart", "a1", "i3", 3),
    event("hover", "a1", "i4", 4),
    event("click", "unknown", "i4", 4),
    event("click", None, "i4", 4),
]


@pytest.fixture
def ubi(tmp_path):
    return [jsonl(tmp_path / "ubi_queries.jsonl", QUERIES), jsonl(tmp_path / "ubi_events.jsonl", EVENTS)]


def test_ubi_events_make_a_run_and_a_log(ubi, tmp_path):
    """Three requests have a click: at rank 2 of 4, at rank 1 of 4, in no list."""
    notes = []
    run = import_run(ubi, tmp_path / "run", tell=lambda lists, said, rows: notes.extend(said))
    assert run.stages == ["results"]
    assert values(run, "HR@1", "HR@2", "MRR", "survival") == {
        ("HR@1", "results"): pytest.approx(1 / 3),
        ("HR@2", "results"): pytest.approx(2 / 3),
        ("MRR", "results"): pytest.approx((1 / 2 + 1 + 0) / 3),
        ("survival", "results"): pytest.approx(2 / 3),
    }
    lost = run.read("ledger").filter(pl.col("lost") == "results")
    assert lost.select("request_id", "item_id").rows() == [("a2", "i9")]
    log = Log.open(tmp_path / "run.log")
    assert log.requests["request_id"].to_list() == ["a1", "b1", "c1", "a2"]  # by time
    assert log.requests["query"][0] == "words of a1"
    assert log.requests["user_id"].to_list() == ["client of a", "client of b", "client of c", "client of a"]
    assert log.requests["session_id"].to_list() == [
        "session of a1",
        "session of b1",
        None,
        "session of a2",
    ]
    assert not [check for check in validate(tmp_path / "run.log") if check.status == "FAIL"]
    assert "clicks: click (2), click_through (1)" in notes
    assert "not used: add_to_cart (1), hover (1)" in notes
    assert "1 events name no query or no object: not used" in notes
    assert "1 events name a query that is not among the queries: not used" in notes
    assert "1 items were acted on that their list lacks: put at its end" in notes
    bought = log.exposures.filter("purchased").select("request_id", "item_id", "position")
    assert bought.rows() == [("b1", "i3", 3)]


def test_what_ubi_does_not_tell_is_not_available_with_a_reason(ubi, tmp_path):
    run = import_run(ubi, tmp_path / "run")
    (row,) = measure(run, "GMV-HR@2", ci=False).filter(stage="results").to_dicts()
    assert row["value"] is None
    assert "without a price" in row["note"]
    (row,) = measure(run, "HR@10", ci=False).filter(stage="results").to_dicts()
    assert (row["value"], row["note"]) == (None, "n/a: results puts out 4")


def test_impressions_are_the_lists_shown(ubi, tmp_path):
    """Ordinals from 0; what is clicked without an impression comes at the end."""
    seen = [event("impression", "a1", item, place) for place, item in enumerate(["i1", "i3"])]
    jsonl(ubi[1], EVENTS + seen)
    import_run(ubi, tmp_path / "run")
    shown = Log.open(tmp_path / "run.log").exposures.select("request_id", "item_id", "position", "clicked")
    assert shown.filter(request_id="a1").rows() == [
        ("a1", "i1", 1, False),
        ("a1", "i3", 2, False),
        ("a1", "i2", 3, True),
    ]
    assert shown.filter(request_id="b1")["position"].to_list() == [None, None]


def test_actions_are_told(ubi, tmp_path):
    import_run(ubi, tmp_path / "run", clicks=("hover",), purchases=("add_to_cart",))
    rows = Log.open(tmp_path / "run.log").exposures
    assert rows.filter("clicked")["item_id"].to_list() == ["i4"]
    assert rows.filter("purchased")["item_id"].to_list() == ["i3"]
    jsonl(ubi[1], [event("hover", "a1", "i4")])
    with pytest.raises(KarmafunnelError, match="clicks or purchases") as raised:
        import_run(ubi, tmp_path / "none")
    assert raised.value.found == "actions hover"
    assert raised.value.hint == "name them: --click NAME, --purchase NAME"


def test_ubi_as_parquet_as_an_array_packed_and_as_the_index_holds_it(ubi, tmp_path):
    first = import_run(ubi, tmp_path / "first")
    others = {
        "parquet": [tmp_path / "q.parquet", tmp_path / "e.parquet"],
        "array": [tmp_path / "q.json", tmp_path / "e.json"],
        "packed": [tmp_path / "q.jsonl.gz", tmp_path / "e.jsonl.gz"],
        "index": [tmp_path / "dump.jsonl"],
    }
    for path, rows in zip(others["parquet"], (QUERIES, EVENTS), strict=True):
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    for path, rows in zip(others["array"], (QUERIES, EVENTS), strict=True):
        path.write_text(json.dumps(rows, indent=1))
    for path, given in zip(others["packed"], ubi, strict=True):
        path.write_bytes(gzip.compress(given.read_bytes()))
    jsonl(
        others["index"][0],
        [{"_index": "ubi", "_id": str(i), "_source": row} for i, row in enumerate(QUERIES + EVENTS)],
    )
    for name, files in others.items():
        assert {recognised(path) for path in files} == {"ubi"}
        run = import_run(files, tmp_path / name)
        assert run.read("ledger").equals(first.read("ledger")), name
        assert run.read("slates").equals(first.read("slates")), name


def test_pages_of_a_query_are_joined_and_times_may_be_numbers(ubi, tmp_path):
    more = [query("a1", ["i9", "i1"], 0, timestamp=1739872920000)]
    rows = [row | {"timestamp": 1739872860000 + i * 1000} for i, row in enumerate(QUERIES)]
    jsonl(ubi[0], rows + more)
    run = import_run(ubi, tmp_path / "run")
    assert lists_of(run)["results", "a1"] == ["i1", "i2", "i3", "i4", "i9"]
    jsonl(ubi[0], [{k: v for k, v in row.items() if k != "timestamp"} for row in QUERIES])
    import_run(ubi, tmp_path / "order")
    assert Log.open(tmp_path / "order.log").meta["time"] == "order"
    jsonl(ubi[0], [QUERIES[0] | {"timestamp": "yesterday"}, *QUERIES[1:]])
    with pytest.raises(KarmafunnelError, match="'yesterday' of query b1"):
        import_run(ubi, tmp_path / "bad")


def test_ids_of_events_are_those_of_the_lists(ubi, tmp_path):
    inside = [
        row | {"event_attributes": {"object": {"object_id": f"sku {i}", "internal_id": row["event_attributes"]["object"]["object_id"]}}}
        for i, row in enumerate(EVENTS)
    ]
    jsonl(ubi[1], inside)
    assert values(import_run(ubi, tmp_path / "run"), "HR@2")["HR@2", "results"] == pytest.approx(2 / 3)
    jsonl(ubi[1], [event("click", "a1", "another id")])
    with pytest.raises(KarmafunnelError, match="the same ids of objects"):
        import_run(ubi, tmp_path / "bad")


@pytest.mark.parametrize(
    ("queries", "events", "words"),
    [
        ([], EVENTS, "the file of ubi_queries"),
        ([query("a1", "i1", 1)], EVENTS, "query_response_hit_ids needs a list of ids"),
        ([*QUERIES, {"message": "x"}], EVENTS, r"line 5: needs a UBI query"),
        ([{"user_query": "x", "query_id": None, "query_response_hit_ids": ["i1"]}], EVENTS, "a query_id in every"),
    ],
)
def test_bad_ubi_is_refused(queries, events, words, ubi, tmp_path):
    files = [jsonl(ubi[0], queries), jsonl(ubi[1], events)] if queries else [jsonl(ubi[1], events)]
    with pytest.raises(KarmafunnelError, match=words):
        import_run(files, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run.log").exists()


def test_import_makes_a_log_to_train_on(tmp_path):
    """With windows by time; its own lists come back with `--log`."""
    rows = [query(f"q{i}", [f"i{(i + j) % 9}" for j in range(4)], i) for i in range(50)]
    done = [event("click", f"q{i}", f"i{(i + i % 4) % 9}", i % 4 + 1) for i in range(50)]
    files = [jsonl(tmp_path / "queries.jsonl", rows), jsonl(tmp_path / "events.jsonl", done)]
    said = CliRunner().invoke(main, ["import", *map(str, files), str(tmp_path / "log")])
    assert said.exit_code == 0, said.output
    assert "clicks: click (50)" in said.output
    log = Log.open(tmp_path / "log")
    counts = dict(log.requests["window"].value_counts().iter_rows())
    assert (counts["W1"], counts["W3"]) == (30, 10)
    assert not [check for check in validate(tmp_path / "log") if check.status == "FAIL"]
    run = import_run(files, tmp_path / "run", log=log)
    assert run.read("requests")["request_id"].to_list() == [f"q{i}" for i in range(40, 50)]
    ranks = [i % 4 + 1 for i in range(40, 50)]
    assert values(run, "MRR")["MRR", "results"] == pytest.approx(sum(1 / r for r in ranks) / 10)


# -- Elasticsearch and OpenSearch ------------------------------------------------------------------


def hit(name, score, explanation=None, **more):
    made = {"_index": "shop", "_id": name, "_score": score, "_source": {"sku": f"sku {name}"}} | more
    return made if explanation is None else made | {"_explanation": explanation}


def response(hits, failed=0, timed_out=False):
    return {
        "took": 3,
        "timed_out": timed_out,
        "_shards": {"total": 2, "successful": 2 - failed, "skipped": 0, "failed": failed},
        "hits": {"total": {"value": 99, "relation": "eq"}, "max_score": 1.0, "hits": hits},
    }


def rescored(first, second):
    """The explanation of a hit after a rescore query; `second` None: outside of the window."""
    leaf = {"value": first, "description": "weight(title:x in 0)", "details": []}
    weight = {"value": 0.7, "description": "primaryWeight", "details": []}
    one = {"value": first * 0.7, "description": "product of:", "details": [leaf, weight]}
    if second is None:
        return one
    other = {
        "value": second,
        "description": "product of:",
        "details": [
            {"value": second, "description": "weight(body:x in 0)", "details": []},
            {"value": 1.0, "description": "secondaryWeight", "details": []},
        ],
    }
    return {"value": first * 0.7 + second, "description": "sum of:", "details": [one, other]}


QRELS = "q1 0 d 1\nq1 0 b 2\nq2 0 z 1\nq3 0 a 1\n"


@pytest.fixture
def qrels(tmp_path):
    (tmp_path / "qrels.txt").write_text(QRELS)
    return tmp_path / "qrels.txt"


def test_responses_of_two_stages(qrels, tmp_path):
    """q1: d and b are relevant; recall returns both, ranking keeps b at rank 1. q2: nothing
    relevant is found. q3: no response.
    """
    recall = [
        {"request_id": "q1", **response([hit(name, 9 - i) for i, name in enumerate("abcd")])},
        {"request_id": "q2", "response": response([hit(name, None) for name in "ab"], failed=1)},
    ]
    rank = [
        {"request_id": "q1", "response": response([hit("b", 2.0), hit("c", 1.0)])},
        {"request_id": "q2", "response": response([])},
        {"request_id": "q3", "response": {"error": {"type": "timeout"}, "status": 500}},
    ]
    files = [jsonl(tmp_path / "recall.jsonl", recall), jsonl(tmp_path / "rank.jsonl", rank)]
    assert {recognised(path) for path in files} == {"elasticsearch"}
    said, counts = [], []
    run = import_run(
        files,
        tmp_path / "run",
        qrels=qrels,
        tell=lambda lists, notes, rows: (said.extend(notes), counts.extend(rows)),
    )
    assert run.stages == ["recall", "rank"]
    assert values(run, "HR@1", "HR@2", "survival", "R@4") == {
        ("HR@1", "recall"): 0,
        ("HR@2", "recall"): pytest.approx(1 / 3),  # b at rank 2
        ("HR@1", "rank"): pytest.approx(1 / 3),
        ("HR@2", "rank"): pytest.approx(1 / 3),
        ("survival", "recall"): 2 / 4,
        ("survival", "rank"): 1 / 2,
        ("Recall@4", "recall"): pytest.approx((1 + 0 + 0) / 3),
        ("Recall@4", "rank"): None,
    }
    lost = run.read("ledger").select("request_id", "item_id", "lost").sort("request_id", "item_id")
    assert lost.rows() == [
        ("q1", "b", None),
        ("q1", "d", "rank"),
        ("q2", "z", "recall"),
        ("q3", "a", "recall"),
    ]
    assert [(r["stage"], r["answered"], r["nothing"], r["shorter"]) for r in counts] == [
        ("recall", 2, 1, 1),
        ("rank", 1, 2, 0),
    ]
    assert any("1 of 2 responses come from a part of the index" in note for note in said)
    assert any("1 of 3 responses are errors" in note for note in said)
    assert any("1 of 3 responses have no hit" in note for note in said)
    assert report(run, out=tmp_path / "run.html").exists()


def test_a_rescore_is_two_stages_where_the_response_explains_it(qrels, tmp_path):
    """The query ranks a, b, c, d by 4, 3, 2, 1; the rescore moves d to the first place."""
    hits = [
        hit("d", 5.7, rescored(1.0, 5.0)),
        hit("a", 2.8, rescored(4.0, None)),
        hit("b", 2.1, rescored(3.0, None)),
        hit("c", 1.4, rescored(2.0, None)),
    ]
    path = jsonl(tmp_path / "search.jsonl", [{"qid": "q1", "response": response(hits)}])
    run = import_run([path], tmp_path / "run", qrels=qrels)
    assert run.stages == ["query", "final"]
    assert lists_of(run) == {("query", "q1"): list("abcd"), ("final", "q1"): list("dabc")}
    assert values(run, "MRR") == {
        ("MRR", "query"): pytest.approx(1 / 2 / 3),
        ("MRR", "final"): pytest.approx(1 / 3),
    }
    assert before_rescore({"value": 1, "description": "sum of:", "details": []}) is None


def test_the_id_of_the_request_by_ubi_and_the_item_by_a_field(qrels, tmp_path):
    rows = [response([hit("a", 2.0), hit("b", 1.0)]) | {"ext": {"ubi": {"query_id": "q1"}}}]
    path = jsonl(tmp_path / "results.ndjson", rows)
    run = import_run([path], tmp_path / "run", qrels=qrels, item="_source.sku")
    assert lists_of(run) == {("results", "q1"): ["sku a", "sku b"]}
    with pytest.raises(KarmafunnelError, match=r"line 1: needs a hit with fields\.none"):
        import_run([path], tmp_path / "bad", qrels=qrels, item="fields.none")


def test_scores_of_phases_at_fields_that_are_told(qrels, tmp_path):
    hits = [hit("a", 2.0, fields={"cheap": [0.1]}), hit("b", 1.0, fields={"cheap": [0.9]})]
    path = jsonl(tmp_path / "search.jsonl", [{"request_id": "q1", **response(hits)}])
    run = import_run(
        [path],
        tmp_path / "run",
        qrels=qrels,
        format="opensearch",
        scores={"cheap": "fields.cheap"},
    )
    assert lists_of(run) == {("cheap", "q1"): ["b", "a"], ("final", "q1"): ["a", "b"]}
    with pytest.raises(KarmafunnelError, match="stage cheap needs hits with a number at none"):
        import_run([path], tmp_path / "bad", qrels=qrels, scores={"cheap": "none"})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (response([hit("a", 1.0)]), r"line 1: needs the id of the request"),
        ({"request_id": "q1", **response([])}, "responses with hits, found 1 responses without"),
        ({"request_id": "q1", **response([hit("a", 1), hit("a", 1)])}, "item 'a' twice for request 'q1'"),
        ({"request_id": "q1", **response([{"_index": "shop"}])}, "the id of its document"),
        ({"request_id": "q1", **response(["a"])}, r"line 1: needs a list of hits, found \['a'\]"),
        ({"took": 3, "responses": [response([])]}, 'as {"request_id": "...", "response": {...}}'),
        ({"request_id": "q1", "stage": "a/b", **response([hit("a", 1)])}, "the name of stage a/b"),
        ({"request_id": "q1", "stage": "random", **response([hit("a", 1)])}, "and not 'eligible'"),
        ({"request_id": "q1", "root": {"id": "toplevel", "children": ["a"]}}, "a list of hits"),
        (1, "line 1: needs a JSON object, found int"),
    ],
)
def test_bad_responses_are_refused(row, words, qrels, tmp_path):
    path = jsonl(tmp_path / "search.jsonl", [row])
    with pytest.raises(KarmafunnelError, match=words):
        import_run([path], tmp_path / "run", qrels=qrels)


def test_pages_of_a_request_follow_each_other(qrels, tmp_path):
    rows = [
        {"request_id": "q1", **response([hit("a", 3.0), hit("d", 2.0)])},
        {"request_id": "q1", **response([hit("b", 1.5), hit("c", 1.0)])},
    ]
    run = import_run([jsonl(tmp_path / "search.jsonl", rows)], tmp_path / "run", qrels=qrels)
    assert lists_of(run) == {("search", "q1"): ["a", "d", "b", "c"]}


def test_half_a_line_is_told_by_its_number(qrels, tmp_path):
    path = jsonl(tmp_path / "search.jsonl", [{"request_id": "q1", **response([hit("a", 1)])}])
    path.write_text(path.read_text() + '{"request_id": "q2", "hi')
    with pytest.raises(KarmafunnelError, match=r"search\.jsonl: line 2: needs a JSON object"):
        import_run([path], tmp_path / "run", qrels=qrels)


# -- Vespa -----------------------------------------------------------------------------------------


def vespa_hit(name, relevance, **features):
    return {
        "id": f"id:shop:product::{name}",
        "relevance": relevance,
        "source": "shop",
        "fields": {"sddocname": "product", "documentid": f"id:shop:product::{name}"}
        | ({"matchfeatures": features} if features else {}),
    }


def vespa(children, full=True, **more):
    root = {
        "id": "toplevel",
        "relevance": 1.0,
        "fields": {"totalCount": 1000},
        "coverage": {"coverage": 100, "documents": 99, "full": full, "nodes": 1, "results": 1, "resultsFull": 1},
        "children": children,
    }
    return {"root": root | more}


def test_one_result_of_vespa_is_several_stages(qrels, tmp_path):
    """q1: first phase a, b, c, d; second phase b, d, a, c; returned (after the global phase): d, b,
    a, c. Relevant are b and d: reciprocal ranks 1/2, 1, 1.
    """
    hits = [
        vespa_hit("d", 0.9, firstPhase=1.0, secondPhase=8.0),
        vespa_hit("b", 0.8, firstPhase=3.0, secondPhase=9.0),
        vespa_hit("a", 0.7, firstPhase=4.0, secondPhase=2.0),
        vespa_hit("c", 0.6, firstPhase=2.0, secondPhase=1.0),
    ]
    group = {"id": "group:root:0", "relevance": 1.0, "children": [{"id": "grouplist:brand"}]}
    rows = [
        {"request_id": "q1", "result": vespa([*hits, group])},
        {"request_id": "q2", **vespa([vespa_hit("a", 1.0, firstPhase=1.0, secondPhase=1.0)], full=False)},
        {"request_id": "q3", **vespa([], errors=[{"code": 12, "summary": "Timed out"}])},
    ]
    path = jsonl(tmp_path / "vespa.jsonl", rows)
    assert recognised(path) == "vespa"
    said = []
    run = import_run([path], tmp_path / "run", qrels=qrels, tell=lambda lists, notes, rows: said.extend(notes))
    assert run.stages == ["firstPhase", "secondPhase", "final"]
    lists = lists_of(run)
    assert [lists[stage, "q1"] for stage in run.stages] == [list("abcd"), list("bdac"), list("dbac")]
    assert values(run, "MRR", "R@2") == {
        ("MRR", "firstPhase"): pytest.approx(1 / 2 / 3),
        ("MRR", "secondPhase"): pytest.approx(1 / 3),
        ("MRR", "final"): pytest.approx(1 / 3),
        ("Recall@2", "firstPhase"): pytest.approx(1 / 2 / 3),
        ("Recall@2", "secondPhase"): pytest.approx(1 / 3),
        ("Recall@2", "final"): pytest.approx(1 / 3),
    }
    assert any("these stages lose no item" in note for note in said)
    assert any("1 of 3 responses come from a part of the index" in note for note in said)
    assert any("1 of 3 responses are errors" in note for note in said)


def test_the_last_phase_is_the_final_order_where_they_agree(qrels, tmp_path):
    hits = [vespa_hit("b", 3.0, firstPhase=1.0, secondPhase=3.0), vespa_hit("a", 2.0, firstPhase=2.0, secondPhase=2.0)]
    path = jsonl(tmp_path / "vespa.jsonl", [{"query_id": "q1", **vespa(hits)}])
    run = import_run([path], tmp_path / "run", qrels=qrels)
    assert run.stages == ["firstPhase", "secondPhase"]
    assert lists_of(run)["secondPhase", "q1"] == ["b", "a"]


def test_hits_filled_from_memory_need_a_field(qrels, tmp_path):
    hits = [{"id": "index:shop/0/c4ca42388ce70a10b392b401", "relevance": 1.0, "fields": {"sku": "b"}}]
    path = jsonl(tmp_path / "vespa.jsonl", [{"query_id": "q1", **vespa(hits)}])
    with pytest.raises(KarmafunnelError, match="--item FIELD"):
        import_run([path], tmp_path / "bad", qrels=qrels)
    run = import_run([path], tmp_path / "run", qrels=qrels, item="sku")
    assert lists_of(run) == {("vespa", "q1"): ["b"]}


def test_rows_are_packed_some_at_a_time(ubi, tmp_path, monkeypatch):
    first = import_run(ubi, tmp_path / "first")
    monkeypatch.setattr(stage_lists, "MANY", 2)
    again = import_run(ubi, tmp_path / "again")
    assert again.read("slates").equals(first.read("slates"))
    assert again.read("ledger").equals(first.read("ledger"))


def test_names_of_features_may_have_dots():
    hit = {"fields": {"matchfeatures": {"bm25(title)": 1.5, "rankingExpression(a.b)": 2}}}
    assert field(hit, "fields.matchfeatures.bm25(title)") == 1.5
    assert field(hit, "fields.matchfeatures.rankingExpression(a.b)") == 2
    assert field(hit, "fields.none") is None


# -- together --------------------------------------------------------------------------------------


def test_candidates_of_one_engine_before_what_ubi_says_was_returned(ubi, tmp_path):
    """The clicked i9 of a2 was among the candidates, and was cut by what came after."""
    found = {"a1": ["i4", "i3", "i2", "i1", "i7"], "b1": ["i1", "i2", "i3", "i4"], "a2": ["i9", "i4", "i3"]}
    rows = [
        response([hit(name, 1.0) for name in names]) | {"ext": {"ubi": {"query_id": query_id}}}
        for query_id, names in found.items()
    ]
    recall = jsonl(tmp_path / "recall.jsonl", rows)
    run = import_run([recall, *ubi], tmp_path / "run")
    assert run.stages == ["recall", "results"]
    assert run.read("ledger").filter(pl.col("lost") == "results")["item_id"].to_list() == ["i9"]
    assert values(run, "survival") == {("survival", "recall"): 1, ("survival", "results"): pytest.approx(2 / 3)}


def test_another_engine_on_the_log_that_ubi_made(ubi, tmp_path):
    """An item that the log does not know is added, and the Runs are compared."""
    old = import_run(ubi, tmp_path / "old")
    rows = [
        {"request_id": "a1", **response([hit(name, 1.0) for name in ["i2", "new", "i3", "i4"]])},
        {"request_id": "b1", **response([hit(name, 1.0) for name in ["i2", "i1"]])},
        {"request_id": "elsewhere", **response([hit("i1", 1.0)])},
    ]
    path = jsonl(tmp_path / "new.jsonl", rows)
    said, counts = [], []
    new = import_run(
        [path],
        tmp_path / "new",
        log=Log.open(tmp_path / "old.log"),
        tell=lambda lists, notes, rows: (said.extend(notes), counts.extend(rows)),
    )
    assert "1 listed items, such as 'new', are not in log ubi: added to its catalogue" in said[0]
    assert (counts[0]["answered"], counts[0]["nothing"], counts[0]["others"]) == (2, 2, 1)
    (row,) = compare(old, new, "HR@1", by_stage=False).to_dicts()
    assert row["difference"] == pytest.approx(1 / 3)  # a1: rank 2, now 1


def test_items_that_a_later_stage_invents_are_counted(tmp_path, qrels):
    (tmp_path / "a.trec").write_text("q1 Q0 a 1 2 x\nq1 Q0 b 2 1 x\n")
    (tmp_path / "b.trec").write_text("q1 Q0 c 1 2 x\nq1 Q0 b 2 1 x\n")
    lists = read_lists([tmp_path / "a.trec", tmp_path / "b.trec"])
    log, notes = log_for(lists, None, qrels)
    assert [row["left_out"] for row in answered(lists, log, "W3")] == [0, 1]
    assert "4 relevant documents of 3 topics" in notes
    assert any("the levels of relevance 1, 2 all count alike" in s for s in log.meta["lacks"])


def test_the_command_says_what_it_recognised(ubi, qrels, tmp_path):
    said = CliRunner().invoke(main, ["import-run", *map(str, ubi), str(tmp_path / "run")])
    assert said.exit_code == 0, said.output
    assert "ubi_queries.jsonl: UBI queries and events" in said.output
    assert "requests without a list count 0: results" in said.output
    for kind, words in {
        "vespa": "responses with hits, found 4 responses without any",
        "trec": "needs 6 fields of a TREC run",
        "table": "a column of items",
    }.items():
        options = ["--format", kind, "--qrels", str(qrels)]
        said = CliRunner().invoke(main, ["import-run", str(ubi[0]), str(tmp_path / kind), *options])
        assert said.exit_code == 1
        assert words in said.output
    said = CliRunner().invoke(main, ["import-run", str(ubi[0]), str(tmp_path / "x"), "--score", "a"])
    assert "needs STAGE=FIELD, found 'a'" in said.output
