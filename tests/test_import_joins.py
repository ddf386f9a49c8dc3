"""Several tables in one import: events, purchases, lists shown, queries and items are told apart,
joined by request, and corrected by a map.
"""

from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.simulator.front import Log as FrontLog
from karmafunnel.simulator.importing.assembling import import_tables
from karmafunnel.simulator.importing.column_map import ColumnMap
from karmafunnel.simulator.importing.looking import look

START, N = 1_600_000_000, 40  # N requests of 5 items, one a minute


def item(request: int, place: int) -> str:
    return f"{(request * 5 + place) % 23:03d}"


def table(path: Path, header: str, rows) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def events(folder: Path, name: str = "events.csv") -> Path:
    """The second item of each list is clicked, and that of every fourth bought."""
    rows = []
    for r in range(N):
        rows.append((f"r{r}", f"u{r % 4}", item(r, 2), "click", START + 60 * r + 5))
        if r % 4 == 0:
            rows.append((f"r{r}", f"u{r % 4}", item(r, 2), "purchase", START + 60 * r + 9))
    return table(folder / name, "request_id,user_id,item_id,event,timestamp", rows)


def lists(folder: Path, first: int = 1, clicked: bool = False) -> Path:
    head = "request_id,item_id,position" + (",clicked" if clicked else "")
    rows = []
    for r in range(N):
        for p in range(1, 6):
            flag = (int(p == 2),) if clicked else ()
            rows.append((f"r{r}", item(r, p), p - 1 + first, *flag))
    return table(folder / "shown.csv", head, rows)


def requests(folder: Path) -> Path:
    rows = [(f"r{r}", f"u{r % 4}", START + 60 * r, f"tea {r % 3}") for r in range(N)]
    return table(folder / "requests.csv", "request_id,user_id,timestamp,query", rows)


def goods(folder: Path) -> Path:
    rows = [(f"{i:03d}", f"Tea no. {i}", f"Tea|Kind {i % 3}", f"{i}.50") for i in range(25)]
    return table(folder / "goods.csv", "item_id,title,category,price", rows)


def imported(tmp_path: Path, *files: Path, **options) -> Log:
    import_tables(files, tmp_path / "log", **options)
    return Log.open(tmp_path / "log")


def shown_rows(log: Log) -> list[tuple]:
    frame = log.exposures.sort("request_id", "item_id")
    return list(frame.select("request_id", "item_id", "position", "clicked", "purchased").rows())


def expected_rows(buys: bool) -> list[tuple]:
    rows = []
    for r in range(N):
        for p in range(1, 6):
            rows.append((f"r{r}", item(r, p), p, p == 2, buys and p == 2 and r % 4 == 0))
    return sorted(rows)


def test_events_lists_queries_and_items_are_joined(tmp_path):
    folder = tmp_path / "shop"
    files = [events(folder), lists(folder), requests(folder), goods(folder)]
    found = import_tables([folder], tmp_path / "log")
    kinds = {group.path.name: group.kind for group in found.groups}
    assert kinds == {"events.csv": "interactions", "shown.csv": "lists", "requests.csv": "queries", "goods.csv": "items"}
    log = Log.open(tmp_path / "log")
    assert shown_rows(log) == expected_rows(buys=True)
    assert log.requests.height == N and log.has("exposures") and log.has("query")
    first = log.requests.row(0, named=True)
    assert (first["request_id"], first["user_id"], first["query"]) == ("r0", "u0", "tea 0")
    assert log.requests["ts"].dt.epoch("s").to_list() == [START + 60 * r for r in range(N)]
    assert log.n_items == 25 and log.items["title"][3] == "Tea no. 3"
    assert log.items["category"][3].to_list() == ["Tea", "Kind 0"] and log.items["price"][3] == 3.5
    again = import_tables(files, tmp_path / "again", given=ColumnMap.read(tmp_path / "log" / "import.toml"))
    assert again.map.files == {group.path.name: group.kind for group in found.groups}
    for name in ("items", "requests", "exposures"):
        one, two = (tmp_path / log / f"{name}.parquet" for log in ("log", "again"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("first", [0, 1])
def test_lists_need_no_events_and_their_positions_may_count_from_0(first, tmp_path):
    log = imported(tmp_path, lists(tmp_path, first, clicked=True), requests(tmp_path))
    assert shown_rows(log) == expected_rows(buys=False)


def test_texts_of_queries_that_several_requests_share(tmp_path):
    rows = [(f"u{r % 4}", f"q{r % 3}", item(r, 2), START + 60 * r) for r in range(N)]
    clicks = table(tmp_path / "clicks.csv", "user_id,query_id,item_id,timestamp", rows)
    texts = table(tmp_path / "q.csv", "query_id,text", [("q0", "tea"), ("q1", "cups"), ("q1", "two")])
    log = imported(tmp_path, clicks, texts)
    assert log.requests["query"].to_list()[:4] == ["tea", "cups", None, "tea"]
    assert log.meta["set_aside"] == {
        "queries that stand twice": 1,
        "rows whose query has no text": sum(r % 3 == 2 for r in range(N)),
    }


def test_purchases_in_a_file_of_their_own(tmp_path):
    """Also where both files have the same columns."""
    for header, cells in (("session_id,item_id,timestamp", ()), ("session_id,item_id,timestamp,price", (2.5,))):
        folder = tmp_path / str(len(cells))
        clicks = [(f"s{r // 4}", item(r, 1), START + 60 * r) for r in range(N)]
        buys = [(f"s{r // 4}", item(r, 1), START + 60 * r + 30, *cells) for r in range(0, N, 4)]
        table(folder / "yoo-clicks.csv", "session_id,item_id,timestamp", clicks)
        table(folder / "yoo-buys.csv", header, buys)
        import_tables([folder], folder / "log")
        log = Log.open(folder / "log")
        assert (int(log.exposures["clicked"].sum()), int(log.exposures["purchased"].sum())) == (N, N // 4)
        assert not log.has("users") and log.requests["user_id"].n_unique() == N // 4
        assert "users: each session is a user of its own" in log.meta["lacks"]


def test_a_table_without_items_is_left_out_and_said(tmp_path):
    people = table(tmp_path / "people.csv", "user_id,age", [("u1", 33)])
    found = look([events(tmp_path), people])
    assert ("left out", "people.csv", "no column of items") in [
        (reason.what, reason.taken, reason.why) for reason in found.reasons
    ]
    with pytest.raises(KarmafunnelError, match="needs a column of items"):
        look([people, people])


def test_what_is_no_table_in_a_folder_is_left_out_and_said(tmp_path):
    folder = tmp_path / "shop"
    events(folder)
    for name in ("README.txt", "LICENSE", ".DS_Store", ".hidden.csv", "picture.png"):
        (folder / name).write_text("of no use\n\nat all")
    (folder / "dataset_info.json").write_text('{\n  "splits": {}\n}\n')
    (folder / "part-2.csv").write_text("")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "events.csv").write_text("x")
    found = import_tables([folder], tmp_path / "log")
    said = {reason.why: reason.taken for reason in found.reasons if reason.what == "left out"}
    assert said == {
        "hidden": ".DS_Store, .hidden.csv, events.csv",
        "no table": "LICENSE, README.txt, picture.png",
        "no JSON lines": "dataset_info.json",
        "empty": "part-2.csv",
    }
    assert found.rows == N + N // 4
    (folder / "part-2.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(KarmafunnelError, match=r"part-2\.csv\.gz"):
        import_tables([folder], tmp_path / "other")


def test_rows_that_cannot_be_joined_are_rejected_by_file_and_row(tmp_path):
    files = [events(tmp_path), lists(tmp_path), requests(tmp_path)]
    with files[1].open("a") as file:
        file.write("nobody,001,1\n")  # in no other table
    with files[0].open("a") as file:
        file.write(f"r3,u3,022,click,{START + 185}\n")  # not in the list of r3
    log = imported(tmp_path, *files)
    assert shown_rows(log) == expected_rows(buys=True)
    rows = pl.read_parquet(tmp_path / "log" / "rejected.parquet").sort("file").to_dicts()
    assert [(Path(row["file"]).name, row["row"], row["reason"]) for row in rows] == [
        ("events.csv", N + N // 4 + 1, "the list of its request lacks the item"),
        ("shown.csv", 5 * N + 1, "its request has no time"),
    ]


def test_gaps_in_positions_are_closed_and_counted(tmp_path):
    rows = []
    for r in range(N):
        for p in range(1, 6):
            rows.append((f"r{r}", f"u{r % 4}", "" if (r, p) == (7, 2) else item(r, p), p, int(p == 1), START + 60 * r))
    path = table(tmp_path / "lists.csv", "request_id,user_id,item_id,position,clicked,ts", rows)
    log = imported(tmp_path, path)
    mine = log.exposures.filter(pl.col("request_id") == "r7").sort("position")
    assert mine["item_id"].to_list() == [item(7, p) for p in (1, 3, 4, 5)]
    assert mine["position"].to_list() == [1, 2, 3, 4]
    assert log.meta["set_aside"] == {"lists with gaps in their positions, which were closed": 1, "rejected: no item": 1}


def test_the_map_says_what_a_file_is(tmp_path):
    files = [events(tmp_path), lists(tmp_path, clicked=True), requests(tmp_path)]
    made = look(files).map
    alone = ColumnMap(**(vars(made) | {"files": {**made.files, "events.csv": "none"}, "columns": {}}))
    found = import_tables(files, tmp_path / "log", given=alone)
    assert ("left out", "events.csv", "the map") in [(r.what, r.taken, r.why) for r in found.reasons]
    assert shown_rows(Log.open(tmp_path / "log")) == expected_rows(buys=False)
    with pytest.raises(KarmafunnelError, match="files needs kinds among interactions"):
        ColumnMap(files={"a.csv": "tables"})


@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        ("request_id,user_id,timestamp", ("r1", "u1", "2020-09-13"), "written as in the other tables"),
        ("query_id,user_id,query", ("r1", "u1", "tea"), "needs a column of requests"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_joined_are_refused_by_file(header, row, words, tmp_path):
    rows = [(f"u{r % 4}", item(r, 2), START + 60 * r) for r in range(N)]
    if "request_id" in header:
        rows = [(f"r{r}", *one) for r, one in enumerate(rows)]
    head = "request_id,user_id,item_id,timestamp" if "request_id" in header else "user_id,item_id,timestamp"
    clicks = table(tmp_path / "clicks.csv", head, rows)
    asked = table(tmp_path / "asked.csv", header, [row])
    with pytest.raises(KarmafunnelError, match=words) as raised:
        look([clicks, asked])
    assert ".csv" in raised.value.who


def test_impressions_are_the_lists_of_their_requests(tmp_path):
    rows = []
    for r in range(N):
        for p in range(1, 6):
            rows.append((f"r{r}", f"u{r % 4}", item(r, p), p, "impression", START + 60 * r))
        rows.append((f"r{r}", f"u{r % 4}", item(r, 2), 2, "click", START + 60 * r + 5))
    path = table(tmp_path / "ubi.csv", "request_id,user_id,item_id,position,event,timestamp", rows)
    log = imported(tmp_path, path)
    assert shown_rows(log) == expected_rows(buys=False) and log.has("exposures")


def test_positions_of_clicks_alone_are_no_lists(tmp_path):
    rows = [(f"r{r}", f"u{r % 4}", item(r, 3), 3, START + 60 * r) for r in range(N)]
    path = table(tmp_path / "clicks.csv", "request_id,user_id,item_id,position,timestamp", rows)
    found = import_tables([path], tmp_path / "log")
    assert "all of its rows are clicked: no lists" in [r.why for r in found.reasons]
    assert not Log.open(tmp_path / "log").has("exposures")


def test_a_query_of_several_users_is_no_request(tmp_path):
    rows = [(f"u{r % 4}", f"q{r % 3}", item(r, 2), START + 60 * r) for r in range(N)]
    path = table(tmp_path / "clicks.csv", "user_id,query_id,item_id,timestamp", rows)
    found = look([path])
    assert found.map.per == "event" and "request" not in found.map.columns
    assert ("request", "not query_id") in [(reason.what, reason.taken) for reason in found.reasons]


def test_frames_are_joined_as_files_are(tmp_path):
    files = [events(tmp_path), lists(tmp_path), requests(tmp_path), goods(tmp_path)]
    clicks, shown, asked, things = (pl.read_csv(path, schema_overrides={"item_id": pl.String}) for path in files)
    log = FrontLog.from_interactions(clicks.to_pandas(), lists=shown, queries=asked, items=things)
    assert shown_rows(log) == expected_rows(buys=True) and log.n_items == 25
    assert log.requests["query"].null_count() == 0


@pytest.mark.parametrize(
    ("name", "header", "row", "levels"),
    [
        ("goods.csv", "item_id,category", "001,Home > Tea > Green tea", ["Home", "Tea", "Green tea"]),
        ("goods.csv", "item_id,category", "001,Home & Garden|Tea", ["Home & Garden", "Tea"]),
        ("goods.item", "item_id:token\tgenres:token_seq", "001\tComedy Drama", ["Comedy", "Drama"]),
        ("goods.csv", "item_id,category", "001,7", ["7"]),
    ],
)  # fmt: skip
def test_levels_of_categories(name, header, row, levels, tmp_path):
    (tmp_path / name).write_text(f"{header}\n{row}\n")
    log = imported(tmp_path, events(tmp_path), tmp_path / name)
    assert log.items.row(by_predicate=pl.col("item_id") == "001", named=True)["category"] == levels



def joined_shop(folder: Path, prices: tuple[str, ...] = ()) -> Log:
    """Each of 20 requests shows a, b (at 12 and 3, where there are prices); b is clicked, a clicked
    and bought: 2 at 10.00, then 1 at 4.00.
    """
    queries = [(f"q{r}", f"u{r}", START + 60 * r, "tea") for r in range(20)]
    shown = [(f"q{r}", i, p, *prices[p - 1 : p]) for r in range(20) for i, p in (("a", 1), ("b", 2))]
    clicks = [(f"q{r}", i, START + 60 * r + 5) for r in range(20) for i in "ab"]
    buys = [(f"q{r}", "a", START + 60 * r + t, price, n) for r in range(20) for t, price, n in ((9, "10.00", 2), (12, "4.00", 1))]
    table(folder / "queries.csv", "query_id,user_id,timestamp,query", queries)
    table(folder / "impressions.csv", "query_id,item_id,position" + (",price" if prices else ""), shown)
    table(folder / "clicks.csv", "query_id,item_id,timestamp", clicks)
    table(folder / "purchases.csv", "query_id,item_id,timestamp,price,quantity", buys)
    import_tables([folder], folder.parent / "log")
    return Log.open(folder.parent / "log")


@pytest.mark.parametrize("prices", [(), ("12", "3")])
def test_units_and_prices_paid_are_those_of_the_purchases_alone(prices, tmp_path):
    """(2 x 10 + 1 x 4) / 3 = 8 a unit, 3 units; what was shown and clicked has no part in it."""
    log = joined_shop(tmp_path / "shop", prices)
    rows = log.exposures.filter(pl.col("request_id") == "q7").sort("item_id")
    told = rows.select("item_id", "clicked", "purchased", "price_shown", "price_paid", "quantity").rows()
    shown = [float(price) for price in prices] or [None, None]
    assert told == [("a", True, True, shown[0], 8.0, 3), ("b", True, False, shown[1], None, None)]
    assert log.has("price") and not any("price" in lack for lack in log.meta["lacks"])


def test_a_view_at_one_price_and_a_purchase_at_another(tmp_path):
    """In a session, and where each event is a request of its own."""
    rows = []
    for u in range(20):
        rows += [(f"u{u}", "i", START + 99 * u, "view", "12.00", ""), (f"u{u}", "i", START + 99 * u + 9, "purchase", "10.00", 2)]
    path = table(tmp_path / "events.csv", "user_id,item_id,timestamp,event,price,quantity", rows)
    log = imported(tmp_path / "session", path, changes={"per": "session"})
    columns = ["price_shown", "price_paid", "quantity"]
    assert set(log.exposures.select(columns).rows()) == {(12.0, 10.0, 2)} and log.exposures.height == 20
    each = imported(tmp_path / "event", path)
    assert set(each.exposures.select(columns).rows()) == {(12.0, None, None), (None, 10.0, 2)}
    assert log.items["price"].to_list() == each.items["price"].to_list() == [12.0]


@pytest.mark.parametrize("position", [1, 9])
def test_an_item_twice_in_one_list_is_counted(position, tmp_path):
    """Item 1 of every fourth list again, at its own place or at another: one row each is added."""
    rows = [(f"r{r}", item(r, p), p, int(p == 2)) for r in range(N) for p in range(1, 6)]
    rows += [(f"r{r}", item(r, 1), position, 0) for r in range(0, N, 4)]
    path = table(tmp_path / "shown.csv", "request_id,item_id,position,clicked", rows)
    log = imported(tmp_path, path, requests(tmp_path))
    assert log.exposures.height == len(rows) - 10 == 5 * N
    assert log.meta["set_aside"] == {"rows added to another of the same item and request": 10}


def shown(propensities: list[str]) -> str:
    """Lists of two items and these propensities, over and over."""
    rows = [
        f"q{i // 2},u{i // 2 % 9},{START + 600 * (i // 2)},{'ab'[i % 2]},{i % 2 + 1},{p},{int(i % 5 == 0)}"
        for i, p in enumerate(propensities)
    ]
    return "\n".join(["request,user,time,item,position,propensity,clicked", *rows])


def test_lists_bring_their_propensities(tmp_path):
    (tmp_path / "lists.csv").write_text(shown(["0.25", "1"] * 40))
    log = imported(tmp_path, tmp_path / "lists.csv")
    assert log.has("propensity")
    assert set(log.exposures.select("position", "propensity").iter_rows()) == {(1, 0.25), (2, 1.0)}


def test_propensities_of_some_items_alone_are_told(tmp_path):
    (tmp_path / "lists.csv").write_text(shown(["0.25", ""] * 40))
    done = CliRunner().invoke(main, ["import", str(tmp_path / "lists.csv"), str(tmp_path / "log")])
    assert done.exit_code == 0, done.output
    assert not Log.open(tmp_path / "log").has("propensity")
    assert "lacks a propensity of each item shown" in done.output


def test_no_propensity_is_outside_0_and_1(tmp_path):
    (tmp_path / "lists.csv").write_text(shown(["0.25", "1.5"] * 40))
    with pytest.raises(KarmafunnelError, match=r"propensity is outside \(0, 1\]: 40"):
        imported(tmp_path, tmp_path / "lists.csv")
