"""Public logs of lists shown: on made-up files by hand, and on the samples where they lie."""

import json
from pathlib import Path

import polars as pl
import pytest
import raw_files
from karmafunnel import replay
from karmafunnel.checks import validate
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models.embedders import TfidfSVD
from karmafunnel.simulator.datasets import convert, load
from karmafunnel.stages.recall import BM25Recall
from karmafunnel.stages.recall.lexical import tokenize
from raw_files import lay

pytestmark = pytest.mark.slow


def made(tmp_path: Path, source: str, **changed: raw_files.Content) -> Log:
    found = load(source, lay(tmp_path / source, raw_files.FILES[source] | changed))
    assert isinstance(found, Log)
    return found


def listed(log: Log, request: str, *columns: str) -> list[tuple[object, ...]]:
    """Rows of a request, as they lie: item and these columns."""
    return log.exposures.filter(request_id=request).select("item_id", *columns).rows()


def failures(log: Log, folder: Path) -> list[str]:
    log.write(folder, force=True)
    return [check.name for check in validate(folder) if check.status == "FAIL"]


# -- KuaiSearch ------------------------------------------------------------------------------------


def test_kuaisearch_by_hand(tmp_path):
    log = made(tmp_path, "kuaisearch")
    assert log.requests["request_id"].to_list() == [
        "earlier clicks of 1", "1", "earlier purchases of 3", "3", "4", "2", "5",
    ]  # fmt: skip
    assert log.requests["window"].to_list() == ["W1", "W1", "W1", "W1", "W1", "W2b", "W3"]
    assert log.requests["query"].to_list() == [None, "舞鞋", None, "红裙", "茶杯", "红裙", "茶杯"]
    columns = ("position", "clicked", "purchased", "price_shown", "relevance")
    assert listed(log, "1", *columns) == [
        ("13", 1, True, False, 11.9, 0), ("12", 2, True, False, 34.9, None),
    ]  # fmt: skip
    assert listed(log, "2", *columns) == [
        ("12", 1, False, False, None, None),
        ("11", 2, True, True, 59.9, 3),
        ("13", 3, False, False, None, None),
    ]
    assert listed(log, "earlier clicks of 1", "position", "clicked", "purchased") == [
        ("12", None, True, False), ("16", None, True, False),
    ]  # fmt: skip
    assert listed(log, "earlier purchases of 3", "clicked", "purchased") == [("12", False, True)]
    assert log.meta["set_aside"] == {
        "products a second time in one list": 1,
        "products clicked that their list does not hold": 1,
        "products purchased that their list does not hold": 1,
    }
    assert log.meta["notes"] == {
        "searches of the publisher's test part": 1,
        "relevance labels": 3,
        "products shown with a label": 3,
    }
    assert log.items.select("item_id", "title", "brand", "category").rows() == [
        ("11", "红裙", None, ["女装", "裙子"]),
        ("12", "舞鞋 女式", "GUARCI", ["女装", "裙子"]),
        ("13", "皮草", None, ["女装", "裙子", "貂皮"]),
        ("14", None, None, None),
        ("16", None, None, None),
    ]
    assert log.requests.filter(request_id="1")["context"].to_list() == [
        ["search_entrance=mall", "gender=F", "age_bucket=31-40", "fre_country=中国",
         "fre_province=辽宁", "fre_city=鞍山"]
    ]  # fmt: skip
    assert failures(log, tmp_path / "log") == []


def test_kuaisearch_history_is_not_known_before_the_search(tmp_path):
    """What a user had clicked lately is known at the first search, and to nobody before it."""
    log = made(tmp_path, "kuaisearch")
    rows = {request: row for row, request in enumerate(log.requests["request_id"])}
    assert log.asof.n_events([rows["1"]])[0] == 2
    assert log.asof.n_events([rows["3"]])[0] == 1


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("recall.jsonl", "time_index", "soon"),
        ("recall.jsonl", "impressed_item_ids", [1, "x"]),
        ("recall.jsonl", "query", None),
        ("rank.jsonl", "target_item_price", -1.0),
        ("relevance.jsonl", "score", 9),
        ("items.jsonl", "item_id", 1.5),
    ],
)
def test_kuaisearch_bad_values_are_named(name, column, value, tmp_path):
    first, second, *rest = raw_files.KUAISEARCH[name]
    odd = json.dumps(json.loads(second) | {column: value})
    with pytest.raises(KarmafunnelError, match=rf"{name}: (line|row) 2: column '{column}'"):
        made(tmp_path, "kuaisearch", **{name: [first, odd, *rest]})


def test_kuaisearch_a_search_twice_is_refused(tmp_path):
    rows = raw_files.KUAISEARCH["recall.jsonl"]
    with pytest.raises(KarmafunnelError, match=r"recall\.jsonl: row 6: column 'session_id' .*once"):
        made(tmp_path, "kuaisearch", **{"recall.jsonl": [*rows, rows[0]]})


def test_kuaisearch_needs_no_labels(tmp_path):
    raw = lay(tmp_path / "raw", raw_files.KUAISEARCH)
    (raw / "relevance.jsonl").unlink()
    log = convert("kuaisearch", raw, tmp_path / "log")
    assert log.exposures["relevance"].null_count() == log.exposures.height


def test_real_kuaisearch(data_root, tmp_path):
    root = data_root("kuaisearch_demo")
    log = load("kuaisearch", root)
    published = [*map(json.loads, (root / "recall.jsonl").read_text("utf-8").splitlines())]
    shown = log.exposures.filter(pl.col("position").is_not_null())
    assert shown.height == sum(len(row["impressed_item_ids"]) for row in published) == 25_430
    for name in ("clicked", "purchased"):
        assert shown[name].sum() == sum(len(row[f"{name}_item_ids"]) for row in published)
    assert shown["price_shown"].drop_nulls().is_between(10, 150).all()
    assert shown["price_shown"].drop_nulls().len() == 200
    assert log.requests["source"].value_counts(sort=True)["count"].to_list()[0] == 200
    assert failures(log, tmp_path / "log") == []


# -- JDsearch --------------------------------------------------------------------------------------


def test_jdsearch_by_hand(tmp_path):
    log = made(tmp_path, "jdsearch")
    rows = log.requests.select("request_id", "user_id", "query", "source", "window").rows()
    assert [row for row in rows if row[0].startswith("row")] == [
        ("row-4-1", "user-4", None, "browse", "W1"),  # 103 s before the last search
        ("row-4-2", "user-4", "9", "search", "W1"),  # 100 s
        ("row-1-1", "user-1", "323 328", "search", "W1"),  # 22 s
        ("row-1-2", "user-1", None, "browse", "W1"),  # 9 s
        ("row-3-1", "user-3", None, "browse", "W1"),  # 7 s
        ("row-1-3", "user-1", "12", "search", "W1"),  # 5 s
    ]
    assert {row[0] for row in rows[6:]} == {"last-1", "last-2", "last-3", "last-4"}
    assert rows == sorted(rows, key=lambda row: row[4])
    assert listed(log, "row-1-1", "position", "clicked", "purchased") == [
        ("889", None, True, False), ("457", None, True, True),
    ]  # fmt: skip
    assert sorted(listed(log, "last-1", "clicked", "purchased")) == [
        ("456", True, True), ("457", False, False), ("789", True, False),
    ]  # fmt: skip
    assert sorted(listed(log, "last-2", "clicked")) == [("456", True), ("457", True)]
    assert log.meta["set_aside"] == {"candidates a second time in one list": 1}
    assert log.meta["notes"]["last searches without a click"] == 1
    assert log.items.select("item_id", "title", "brand", "category", "description").rows()[:2] == [
        ("456", "12 40", "41 42", ["1", "2", "3", "4"], "50 51 52 53 53"),
        ("457", "32 40", None, ["1", "2", "3"], "50 51 52 53"),
    ]
    assert set(log.items["item_id"].to_list()[3:]) == {"889", "256", "345"}
    assert failures(log, tmp_path / "log") == []


def test_jdsearch_the_order_of_the_file_does_not_tell_the_clicked(tmp_path):
    """The published lists have the clicked first; a list of the log has not."""
    header, *_ = raw_files.JDSEARCH["release_data.txt"]
    items = "_".join(str(100 + i) for i in range(20))
    row = f"1\t{items}\t1.0" + "_0.0" * 19 + "\t\t\t\t0"
    log = made(tmp_path, "jdsearch", **{"release_data.txt": [header, *[row] * 100]})
    first = log.exposures.filter("clicked")["position"]
    assert first.n_unique() > 10 and abs(first.mean() - 10.5) < 3


def test_jdsearch_reads_files_without_names_of_columns(tmp_path):
    with_names = made(tmp_path, "jdsearch")
    bare = {name: lines[1:] for name, lines in raw_files.JDSEARCH.items()}
    without = made(tmp_path / "bare", "jdsearch", **bare)
    assert with_names.exposures.equals(without.exposures)
    assert with_names.items.equals(without.items)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("candidate_label_list", "3.0_0.0"),
        ("candidate_label_list", "3.0_x_0.0"),
        ("history_type_list", "CLICK_ORD_FLW_BUY"),
        ("history_time_list", "0_12_1_4"),
        ("history_time_list", "0_12_1_-4_5"),
        ("history_qry_list", "323"),
    ],
)
def test_jdsearch_bad_values_are_named(column, value, tmp_path):
    header, row, *rest = raw_files.JDSEARCH["release_data.txt"]
    cells = row.split("\t")
    cells[header.split("\t").index(column)] = value
    with pytest.raises(KarmafunnelError, match=rf"release_data\.txt: row 1: column '{column}'"):
        made(tmp_path, "jdsearch", **{"release_data.txt": [header, "\t".join(cells), *rest]})


def test_real_jdsearch(data_root, tmp_path):
    root = data_root("jdsearch_sample")
    log = load("jdsearch", root)
    lines = (root / "user_behavior_data_sample.txt").read_text().splitlines()[1:]
    cells = [line.split("\t") for line in lines]
    shown = log.exposures.filter(pl.col("position").is_not_null())
    assert shown.height == sum(len(row[1].split("_")) for row in cells) == 262
    assert shown["clicked"].sum() == sum(float(x) > 0 for row in cells for x in row[2].split("_"))
    assert log.requests.filter(pl.col("window") != "W1").height == 3
    assert log.items["title"].drop_nulls().len() == 409
    assert failures(log, tmp_path / "log") == []


# -- Open Bandit -----------------------------------------------------------------------------------


def test_open_bandit_by_hand(tmp_path):
    log = made(tmp_path, "open_bandit")
    rows = log.requests.select("request_id", "user_id", "source").rows()
    assert rows == [
        ("before 2", "2", "earlier clicks"), ("1", "1", "slot"), ("2", "2", "slot"),
        ("before 3", "3", "earlier clicks"), ("3", "3", "slot"), ("4", "4", "slot"),
        ("5", "5", "slot"),
    ]  # fmt: skip
    shown = log.exposures.filter(pl.col("position").is_not_null())
    assert shown.select("item_id", "position", "clicked", "propensity").rows() == [
        ("2", 1, False, 0.25), ("0", 1, True, 0.5), ("1", 1, False, 1e-6), ("0", 1, True, 0.125),
        ("1", 1, True, 0.125),
    ]  # fmt: skip
    assert listed(log, "before 2", "clicked", "propensity") == [
        ("0", True, None), ("2", True, None),
    ]  # fmt: skip
    assert log.requests.filter(request_id="1")["context"].to_list() == [
        ["slot=3", "user_feature_0=aa", "user_feature_1=bb"]
    ]
    assert log.items["attributes"].to_list()[0] == ["item_feature_0=-0.67", "item_feature_1=ceca"]
    assert failures(log, tmp_path / "log") == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("timestamp", "2019-11-24"),
        ("position", "4"),
        ("click", "2"),
        ("propensity_score", "0"),
        ("propensity_score", "1.5"),
        ("item_id", "9"),
        ("user-item_affinity_1", "nan"),
    ],
)
def test_open_bandit_bad_values_are_named(column, value, tmp_path):
    header, row, *rest = raw_files.OPEN_BANDIT["men.csv"]
    cells = row.split(",")
    cells[header.split(",").index(column)] = value
    with pytest.raises(KarmafunnelError, match=rf"men\.csv: row 1: column '{column}'"):
        made(tmp_path, "open_bandit", **{"men.csv": [header, ",".join(cells), *rest]})


@pytest.mark.parametrize("policy", ["random", "bts"])
@pytest.mark.parametrize("campaign", ["men", "women"])
def test_real_open_bandit(policy, campaign, data_root, tmp_path):
    root = data_root("obd") / policy / campaign
    log = load("open_bandit", root)
    published = pl.read_csv(root / f"{campaign}.csv")
    shown = log.exposures.filter(pl.col("position").is_not_null())
    assert shown.height == published.height == 10_000
    assert shown["clicked"].sum() == published["click"].sum()
    assert shown["propensity"].to_list() == published["propensity_score"].to_list()
    assert (shown["propensity"].n_unique() == 1) == (policy == "random")
    near = [name for name in published.columns if name.startswith("user-item_affinity")]
    earlier = log.exposures.filter(pl.col("position").is_null())
    assert earlier.height == sum((published[name] > 0).sum() for name in near)
    assert failures(log, tmp_path / "log") == []


# -- Diginetica ------------------------------------------------------------------------------------


def test_diginetica_by_hand(tmp_path):
    log = made(tmp_path, "diginetica")
    rows = log.requests.select("request_id", "user_id", "query", "context", "source").rows()
    assert rows == [
        ("view-1", "session 9", None, None, "view"),
        ("order-2-71", "77", None, None, "order"),
        ("list-3", "77", None, ["category=32"], "category"),
        ("list-1", "session 1", "12 40", None, "search"),
        ("view-0", "session 1", None, None, "view"),
        ("list-2", "session 1", None, ["category=32"], "category"),
        ("order-1-70", "session 1", None, None, "order"),
        ("list-5", "78", "40", None, "search"),
        ("list-6", "78", None, ["category=33"], "category"),
    ]
    columns = ("position", "clicked", "purchased", "price_shown")
    assert listed(log, "list-1", *columns) == [
        ("11", 1, False, False, 7.0), ("12", 2, True, False, 1023.0), ("13", 3, False, False, 0.0),
    ]  # fmt: skip
    # the purchase is marked on the last list before it, the twice published line once
    assert listed(log, "list-2", *columns) == [
        ("13", 1, False, False, 0.0), ("11", 2, False, True, 7.0),
    ]  # fmt: skip
    # bought before the first list of its session, and in no list of its session
    assert listed(log, "order-2-71", "purchased") == [("12", True)]
    assert listed(log, "order-1-70", "purchased") == [("15", True)]
    assert log.meta["set_aside"] == {
        "test lists, whose clicks are withheld": 1,
        "products a second time in one list": 1,
        "products clicked that their list does not hold": 1,
        "clicks of lists that are not there": 1,
    }
    assert log.items.select("item_id", "title", "category", "price").rows()[:2] == [
        ("11", "12 40 8", ["32"], 7.0), ("12", "7", ["32"], 1023.0),
    ]  # fmt: skip
    assert failures(log, tmp_path / "log") == []


def test_diginetica_times_keep_the_dates_and_the_gaps(tmp_path):
    """Session 1: a search and, 25 hours less a second later, a page on the next day."""
    log = made(tmp_path, "diginetica")
    ts = dict(log.requests.select("request_id", pl.col("ts").dt.strftime("%F %T%.3f")).rows())
    assert ts["list-1"] == "2016-05-09 00:00:00.000"
    assert ts["view-0"] == "2016-05-09 00:00:01.100"
    assert ts["list-2"] == "2016-05-10 00:59:59.000"
    # only 200 ms lie between two events of different dates
    assert (ts["list-5"], ts["list-6"]) == ("2016-06-01 23:59:59.800", "2016-06-02 00:00:00.000")


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("train-queries.csv", "timeframe", "-1"),
        ("train-queries.csv", "eventdate", "2016-02-30"),
        ("train-queries.csv", "is.test", "maybe"),
        ("train-queries.csv", "items", ""),
        ("train-clicks.csv", "itemId", ""),
        ("train-purchases.csv", "timeframe", "1.5"),
        ("products.csv", "pricelog2", "nan"),
        ("product-categories.csv", "categoryId", ""),
    ],
)
def test_diginetica_bad_values_are_named(name, column, value, tmp_path):
    header, row, *rest = raw_files.DIGINETICA[name]
    cells = row.split(";")
    cells[header.split(";").index(column)] = value
    with pytest.raises(KarmafunnelError, match=rf"{name}: row 1: column '{column}'"):
        made(tmp_path, "diginetica", **{name: [header, ";".join(cells), *rest]})


def test_real_diginetica_purchases_and_categories(data_root, tmp_path):
    """Two of the six files as published, the others made up around them."""
    root = data_root("diginetica_partial")
    published = pl.read_csv(root / "train-purchases.csv", separator=";", infer_schema=False)
    lines = (root / "train-purchases.csv").read_text().splitlines()
    (tmp_path / "diginetica").mkdir()
    (tmp_path / "diginetica" / "product-categories.csv.gz").write_bytes(
        (root / "product-categories.csv.gz").read_bytes()
    )
    raw = lay(tmp_path / "diginetica", raw_files.DIGINETICA | {"train-purchases.csv": lines})
    (raw / "product-categories.csv").unlink()
    log = load("diginetica", raw)
    assert log.meta["notes"]["sessions whose dates and gaps do not fit"] == 0
    orders = log.requests.filter(source="order")
    assert orders.height == published.select("sessionId", "ordernumber").n_unique()
    kept = log.exposures.filter("purchased")
    assert kept.height == published.select("sessionId", "ordernumber", "itemId").n_unique()
    dates = dict(published.select(
        pl.format("order-{}-{}", "sessionId", "ordernumber"), "eventdate"
    ).sort("eventdate", descending=True).rows())  # fmt: skip
    days = orders.select("request_id", pl.col("ts").dt.strftime("%F")).rows()
    assert sum(dates[request] != day for request, day in days) == 0
    assert failures(log, tmp_path / "log") == []


# -- Coveo -----------------------------------------------------------------------------------------


def test_coveo_by_hand(tmp_path):
    log = made(tmp_path, "coveo")
    assert log.requests.select("request_id", "user_id", "source", "query_vector").rows() == [
        ("event-5", "s2", "purchase", None),
        ("search-1", "s1", "search", [0.5, -1.0]),
        ("search-2", "s1", "search", pytest.approx([0.25, 1e-5])),
        ("event-2", "s1", "detail", None),
        ("event-3", "s1", "add", None),
        ("search-4", "s3", "search", [0.5, 2.0]),
        ("search-5", "s4", "search", [0.5, 2.0]),
    ]
    assert listed(log, "search-1", "position", "clicked") == [
        ("p1", 1, False), ("p2", 2, False), ("p3", 3, False),
    ]  # fmt: skip
    assert listed(log, "search-2", "position", "clicked") == [("p3", 1, False), ("p2", 2, True)]
    assert listed(log, "event-5", "clicked", "purchased") == [("p5", False, True)]
    assert log.meta["set_aside"] == {
        "searches without a result": 1,
        "products a second time in one list": 1,
        "products clicked that their list does not hold": 1,
        "page views and actions without a product": 2,
        "removals from the cart": 1,
    }
    columns = ("item_id", "category", "attributes", "visual", "text_vector")
    assert log.items.select(columns).rows() == [
        ("p2", None, None, None, None),
        ("p1", ["a", "b", "c"], ["price bucket=7"], [340.5, -2.0], [0.5, 0.25]),
        ("p3", ["a", "accessories-of-clothing"], ["price bucket=2"], None, [0.125, 0.25]),
        ("p4", None, None, None, None),
        ("p5", None, None, None, None),
    ]
    assert failures(log, tmp_path / "log") == []


@pytest.mark.parametrize(
    ("name", "old", "new", "row", "column"),
    [
        ("search_train.csv", "[0.5, -1.0]", "[0.5, x]", 1, "query_vector"),
        ("search_train.csv", "[0.25, 1e-05]", "[0.25]", 2, "query_vector"),
        ("search_train.csv", "['p2', 'p9']", "p2;p9", 2, "clicked_skus_hash"),
        ("search_train.csv", "1548575194779", "1548575194", 1, "server_timestamp_epoch_ms"),
        ("browsing_train.csv", "detail", "look", 2, "product_action"),
        ("browsing_train.csv", "1548575202000", "soon", 3, "server_timestamp_epoch_ms"),
        ("sku_to_content.csv", "7.0", "much", 2, "price_bucket"),
        ("sku_to_content.csv", "[340.5, -2.0]", "[nan, 1]", 2, "image_vector"),
    ],
)
def test_coveo_bad_values_are_named(name, old, new, row, column, tmp_path):
    lines = [line.replace(old, new) for line in raw_files.COVEO[name]]
    with pytest.raises(KarmafunnelError, match=rf"{name}: row {row}: column '{column}'"):
        made(tmp_path, "coveo", **{name: lines})


# -- RecFlow ---------------------------------------------------------------------------------------


def test_recflow_by_hand(tmp_path):
    log = made(tmp_path, "recflow")
    assert listed(log, "1", "position", "clicked", "stage") == [
        ("11", 1, True, "shown"),
        ("10", 2, False, "shown"),
        ("12", None, None, "rerank"),
        ("13", None, None, "rank"),
        ("14", None, None, "coarse"),
        ("15", None, None, "prerank"),
        ("16", None, None, "retrieval"),
    ]
    assert log.meta["stages"] == ["retrieval", "prerank", "coarse", "rank", "rerank", "shown"]
    assert log.meta["set_aside"] == {"a candidate's rows of earlier stages": 1}
    known = dict(log.items.select("item_id", pl.col("available_from").dt.epoch("s")).rows())
    assert known["10"] == raw_files.DAY - 10
    assert known["14"] == raw_files.DAY + 1  # uploaded after its first row, so they say
    assert log.requests["context"].to_list()[0] == [
        "age=2", "gender=0", "province=5", "device_id=1",
    ]  # fmt: skip
    assert failures(log, tmp_path / "log") == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("realshow", 2),
        ("request_timestamp", 1705104000),
        ("video_id", None),
        ("effective_view", 3),
    ],
)
def test_recflow_bad_values_are_named(column, value, tmp_path):
    frame = raw_files.RECFLOW["2024-01-13.feather"]
    at = pl.int_range(pl.len()) == 1
    odd = frame.with_columns(pl.when(at).then(pl.lit(value)).otherwise(column).alias(column))
    with pytest.raises(
        KarmafunnelError, match=rf"2024-01-13\.feather: row 2: column '{column}'"
    ):
        made(tmp_path, "recflow", **{"2024-01-13.feather": odd})


def test_recflow_row_of_no_stage_is_named(tmp_path):
    frame = raw_files.RECFLOW["2024-01-13.feather"]
    odd = pl.concat([frame, pl.DataFrame([raw_files.candidate(9, 10)])])
    with pytest.raises(KarmafunnelError, match=r"row 24: column .*one of prerank_neg"):
        made(tmp_path, "recflow", **{"2024-01-13.feather": odd})


# -- TAOBAO-MM -------------------------------------------------------------------------------------


def test_taobao_mm_by_hand(tmp_path):
    log = made(tmp_path, "taobao_mm")
    assert listed(log, "train-4", "position", "clicked") == [("11", 1, False), ("12", 2, True)]
    assert listed(log, "before train-4", "position", "clicked") == [
        ("32", None, True), ("31", None, True),
    ]  # fmt: skip
    assert log.meta["set_aside"] == {"products a second time in one list": 20}
    served = log.requests.filter(source="advertisements")
    by_part = served.with_columns(pl.col("request_id").str.split("-").list.first().alias("part"))
    windows = by_part.group_by("part").agg(pl.col("window").unique().sort())
    assert dict(windows.rows())["test"] == ["W3"]
    assert "W3" not in dict(windows.rows())["train"]
    assert log.requests["request_id"].to_list()[-3:] == ["before test-90", "test-90", "test-91"]
    columns = ("item_id", "category", "attributes", "visual")
    assert log.items.select(columns).rows() == [
        ("11", ["1"], ["city=7", "province=2"], [1.0, 0.0]),
        ("12", ["1"], ["city=7", "province=2"], None),
        ("21", ["2"], ["city=7", "province=2"], None),
        ("32", None, None, None),
        ("31", None, None, [0.0, -1.0]),
        ("33", None, None, None),
    ]
    assert failures(log, tmp_path / "log") == []


def test_taobao_mm_wrong_label_is_named(tmp_path):
    name = "train/train-shard-000000.parquet"
    frame = raw_files.TAOBAO_MM[name]
    at = pl.int_range(pl.len()) == 2
    odd = frame.with_columns(pl.when(at).then([1, 1]).otherwise("label_0").alias("label_0"))
    with pytest.raises(KarmafunnelError, match=rf"{name}: row 3: column 'label_0' needs \[1, 0\]"):
        made(tmp_path, "taobao_mm", **{name: odd})


def test_taobao_mm_reads_without_vectors(tmp_path):
    raw = lay(tmp_path / "raw", raw_files.TAOBAO_MM)
    (raw / "scl_embedding_int8_p90.parquet").unlink()
    log = convert("taobao_mm", raw, tmp_path / "log")
    assert not log.has("visual") and log.items["visual"].null_count() == log.n_items


# -- words of Chinese ------------------------------------------------------------------------------


def test_a_chinese_query_finds_titles_that_share_a_pair_of_characters(tmp_path):
    """广场舞鞋 shares 舞鞋 with one title; a text with blanks is split as before."""
    assert tokenize(["Red lamp 2x", "广场舞鞋 女"]) == [["red", "lamp", "2x"], ["广场", "场舞", "舞鞋"]]
    rows = raw_files.KUAISEARCH["recall.jsonl"]
    last = raw_files.search(6, 9, 99, "广场舞鞋", [12, 14], clicked_item_ids=[12])
    log = made(tmp_path, "kuaisearch", **{"recall.jsonl": [*rows, *raw_files.jsonl(last)]})
    run = replay(BM25Recall(k=10), log, out=tmp_path / "run")
    found = run.read("slates").filter(request_id="6")
    assert found["item_id"].to_list() == ["12"]
    vectors = TfidfSVD(dim=4).fit(log)
    query, shoes, dress = vectors.embed(["广场舞鞋", "舞鞋 女式", "红裙"])
    assert query @ shoes > query @ dress + 0.1
