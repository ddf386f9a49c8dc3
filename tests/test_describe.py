"""Figures of a shop of five requests and of a catalogue, worked out by hand; and an HTML file that
fetches nothing.
"""

import json
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from io import StringIO

import numpy as np
import polars as pl
import pytest
from karmafunnel.log import Catalogue, Log
from karmafunnel.simulator.commands.data import print_description
from karmafunnel.simulator.measure import describe as describing
from karmafunnel.simulator.measure.describe import describe, popularity, spread
from karmafunnel.simulator.report.log_page import histogram, write_html
from rich.console import Console

START = datetime(2026, 1, 1, tzinfo=UTC)
HAS = dict.fromkeys(["text", "query", "price", "exposures", "clicks", "purchases", "users", "filters"], True)


def shop(**meta) -> Log:
    """A day apart, ann, bob, ann and bob see two items and click one, then cat sees three and
    clicks two. ann0 is history only.

    a is clicked by ann0 and ann2, b by bob1 and cat4, c by bob3 and cat4; d never. Only c and d are
    green; bob3 wants green.
    """
    items = pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "d"],
            "title": ["red lamp", "blue lamp", "green floor lamp", None],
            "brand": ["Oak", None, "Oak", "Elm"],
            "category": [["home", "lamps"], ["home", "lamps"], ["home"], None],
            "attributes": [["colour=red"], [], ["colour=green", "size=L"], ["colour=green"]],
            "price": [10.0, 20.0, None, 40.0],
        }
    )
    requests = pl.DataFrame(
        {
            "request_id": ["ann0", "bob1", "ann2", "bob3", "cat4"],
            "user_id": ["ann", "bob", "ann", "bob", "cat"],
            "ts": [START + timedelta(days=d) for d in range(5)],
            "source": ["mail", "search", "search", "search", "search"],
            "query": [None, "lamp", "red lamp", None, "lamp"],
            "filters": [[], [], [], ["colour=green"], []],
            "window": ["W1", "W1", "W2a", "W2b", "W3"],
        }
    )
    shown = [
        ("ann0", "ab", "a"), ("bob1", "ba", "b"), ("ann2", "ba", "a"), ("bob3", "dc", "c"), ("cat4", "abc", "bc"),
    ]  # fmt: skip
    rows = [
        (r, item, p + 1, item in clicked, item == "b" and item in clicked, 5.0)
        for r, seen, clicked in shown
        for p, item in enumerate(seen)
    ]
    columns = ["request_id", "item_id", "position", "clicked", "purchased", "price_shown"]
    exposures = pl.DataFrame(rows, schema=columns, orient="row").with_columns(price_paid=pl.when("purchased").then(4.0))
    return Log.make(
        items, requests, exposures, {"name": "shop <&>", "currency": "EUR", "has": HAS, "set_aside": {"torn lines": 3}} | meta
    )


@pytest.fixture(scope="module")
def stats() -> dict:
    return describe(shop())


def test_examples_of_items_and_of_requests(stats):
    """bob1 and ann0 have no history; the latest item of a history comes first."""
    assert [row["item_id"] for row in stats["some_items"]] == list("abcd")
    assert stats["some_items"][0] == {
        "item_id": "a", "title": "red lamp", "brand": "Oak", "category": ["home", "lamps"], "price": 10.0,
    }  # fmt: skip
    assert [row["request_id"] for row in stats["some_requests"]] == ["ann2", "bob3"]
    assert stats["some_requests"][1] == {
        "request_id": "bob3", "user_id": "bob", "ts": "2026-01-04T00:00:00+00:00", "window": "W2b", "query": None,
        "events_before": 1, "history": ["blue lamp"], "relevant": ["green floor lamp"], "relevant_items": 1,
    }  # fmt: skip
    tables = {title: (heads, rows) for title, heads, rows in describing.tables(stats)}
    assert tables["requests (2 of 4)"][1][0] == ["ann2", "ann", "2026-01-03 00:00", "red lamp", "red lamp", "red lamp"]
    assert tables["items (4 of 4)"][1][3] == ["d", "n/a", "Elm", "n/a", "40"]


@pytest.mark.parametrize(("n", "rows"), [(0, []), (3, [0, 1, 2]), (5, [0, 1, 2, 3, 4]), (12, [0, 2, 4, 7, 9])])
def test_examples_are_spread_evenly(n, rows):
    assert describing.evenly(n).tolist() == rows


def test_sizes(stats):
    assert stats["kind"] == "log" and stats["sources"] == {"search": 4, "mail": 1}
    assert stats["sizes"] == {
        "items": 4, "requests": 5, "scenario_requests": 4, "users": 3, "sessions": 0, "rows": 11, "shown": 11, "clicks": 6,
        "purchases": 2, "truth": 6,
    }  # fmt: skip
    assert stats["time_range"] == {"from": "2026-01-01T00:00:00+00:00", "to": "2026-01-05T00:00:00+00:00", "days": 4}
    assert stats["has"] == ["text", "query", "price", "exposures", "clicks", "purchases", "users", "filters"]
    assert stats["has_not"] == ["images", "visual", "propensity"] and stats["set_aside"] == {"torn lines": 3}


def test_windows_are_of_the_scenario(stats):
    w1, *_, every = stats["windows"]
    assert [w["window"] for w in stats["windows"]] == ["W1", "W2a", "W2b", "W3", "all"]
    assert [w["requests"] for w in stats["windows"]] == [1, 1, 1, 1, 4]
    assert [w["truth"] for w in stats["windows"]] == [1, 1, 1, 2, 5]
    assert [w["users"] for w in stats["windows"]] == [1, 1, 1, 1, 3]
    # ann's only request in W1 is none of the scenario
    assert [w["new_users"] for w in stats["windows"]] == [None, 1, 0, 1, None]
    assert w1["from"] == w1["to"] == "2026-01-02T00:00:00+00:00"
    assert [w["money"] for w in stats["windows"]] == [5, 5, 5, 10, 25] and every["with_truth"] == 1


def test_eligible_and_ceiling_are_as_of_the_request(stats):
    # Seen before: {a, b} for bob1 and ann2; for bob3 the green ones of them, none; {a, b, c, d} for
    # cat4.
    assert [w["eligible"] for w in stats["windows"]] == [2, 2, 0, 4, 2]
    assert [w["ceiling"] for w in stats["windows"]] == [1, 1, 0, 1, 4 / 5]
    assert stats["eligible"] == {
        "n": 4,
        "mean": 2,
        "min": 0,
        "p10": pytest.approx(0.6),
        "p50": 2,
        "p90": pytest.approx(3.4),
        "p99": pytest.approx(3.94),
        "max": 4,
    }


def test_a_published_catalogue_has_a_higher_ceiling():
    windows = describe(shop(catalogue="published"))["windows"]
    assert [w["eligible"] for w in windows] == [4, 4, 2, 4, 7 / 2] and [w["ceiling"] for w in windows] == [1] * 5


def test_repeat_cold_and_history(stats):
    # ann2 clicks what ann0 clicked; targets of W1 are a (of ann0) and b, so that c is cold.
    assert [w["repeat"] for w in stats["windows"]] == [0, 1, 0, 0, 1 / 5]
    assert [w["cold"] for w in stats["windows"]] == [None, 0, 1, 1 / 2, None]
    assert [w["history"] for w in stats["windows"]] == [0, 1, 1, 0, 1 / 2]
    assert [w["no_history"] for w in stats["windows"]] == [1, 0, 0, 1, 1 / 2]


def test_clicks_by_position(stats):
    assert [(p["position"], p["shown"], p["clicked"], p["purchased"]) for p in stats["ctr_by_position"]] == [
        (1, 5, 2, 1),
        (2, 5, 3, 1),
        (3, 1, 1, 0),
    ]
    assert [p["ctr"] for p in stats["ctr_by_position"]] == [2 / 5, 3 / 5, 1]


def test_spreads(stats):
    # of the scenario: 2, 2, 2, 3
    assert stats["list_length"]["mean"] == 9 / 4 and stats["list_length"]["max"] == 3
    assert stats["requests_per_user"] | {"p10": 0, "p90": 0, "p99": 0} == {
        "n": 3, "mean": pytest.approx(5 / 3), "min": 1, "p10": 0, "p50": 2, "p90": 0, "p99": 0, "max": 2,
    }  # fmt: skip
    assert spread(pl.Series([], dtype=pl.Int64)) is None


def test_prices_and_what_is_missing(stats):
    listed, shown, paid = (stats["prices"][name] for name in ("list", "shown", "paid"))
    assert listed["missing"] == 1 / 4 and listed["spread"]["p50"] == 20 and listed["spread"]["mean"] == pytest.approx(70 / 3)
    assert shown["missing"] == 0 and (shown["spread"]["min"], shown["spread"]["max"], shown["spread"]["n"]) == (5, 5, 11)
    assert paid == {"missing": 0, "spread": spread(pl.Series([4.0, 4.0]))}


def test_queries_and_texts(stats):
    assert stats["query"]["share"] == 3 / 4 and stats["query"]["distinct"] == 2
    assert stats["query"]["words"]["mean"] == pytest.approx(4 / 3)  # lamp, red lamp, lamp
    assert stats["items"]["words"]["title"]["mean"] == pytest.approx(7 / 3) and "description" not in stats["items"]["words"]
    assert stats["items"]["without"] == {
        "title": 1 / 4,
        "brand": 1 / 4,
        "category": 1 / 4,
        "attributes": 0,
        "image": 1,
        "visual": 1,
    }
    assert (stats["items"]["brands"], stats["items"]["categories"]) == (2, 2)
    assert stats["items"]["category_depth"]["mean"] == pytest.approx(5 / 3) and stats["items"]["attributes"]["mean"] == 1


def test_popularity_of_the_shop(stats):
    # targets 2, 2, 2, 0. Gini: 2 (2*2 + 3*2 + 4*2) / (4 * 6) - 5/4 = 1/4
    assert stats["popularity"] | {"zipf_slope": 0} == {
        "targets": 6,
        "items": 3,
        "never": 1 / 4,
        "gini": 1 / 4,
        "top_1_percent": pytest.approx(1 / 3),
        "zipf_slope": 0,
    }
    assert stats["popularity"]["zipf_slope"] == pytest.approx(0)


def test_popularity():
    assert popularity(np.array([5, 5, 5, 5]))["gini"] == pytest.approx(0)
    alone = popularity(np.array([0, 0, 0, 8]))
    assert alone["gini"] == pytest.approx(3 / 4) and alone["zipf_slope"] is None and alone["never"] == 3 / 4
    zipf = popularity(np.array([3600 // r for r in (1, 2, 3, 4, 5, 6, 8, 9, 10)][:6]))
    assert zipf["zipf_slope"] == pytest.approx(-1)
    # 1% of 150 items, rounded up, is 2
    top = popularity(np.concatenate([np.full(2, 50), np.ones(148, dtype=int)]))
    assert top["top_1_percent"] == pytest.approx(100 / 248)
    assert popularity(np.zeros(3, dtype=int)) is None


def test_label_purchase():
    windows = describe(shop(label="purchase"))["windows"]
    assert [w["truth"] for w in windows] == [1, 0, 0, 1, 2] and [w["with_truth"] for w in windows] == [1, 0, 0, 1, 1 / 2]
    assert windows[1]["ceiling"] is None and windows[4]["money"] == 8  # paid, not shown


def bare(time: str = "order") -> Log:
    """Purchases without lists, prices, texts, queries; an order instead of a clock."""
    log = shop()
    rows = log.exposures.filter(purchased=True).select("request_id", "item_id", "purchased")
    requests = log.requests.select("request_id", "user_id", "source", "window")
    return Log.make(
        log.items.select("item_id"),
        requests,
        rows,
        {"name": "bare", "time": time, "label": "purchase", "has": {"purchases": True}},
    )


def test_what_the_log_lacks_is_none():
    stats = describe(bare())
    assert (
        stats["time_range"] is None
        and stats["query"] is None
        and stats["ctr_by_position"] is None
        and stats["list_length"] is None
    )
    assert stats["prices"]["shown"] is None and stats["prices"]["list"] == {"missing": 1, "spread": None}
    assert all(w["money"] is None for w in stats["windows"])


def test_a_catalogue():
    stats = describe(Catalogue.make(shop().items, {"name": "things", "currency": "EUR", "has": {"text": True, "price": True}}))
    assert stats["kind"] == "catalogue" and stats["sizes"] == {"items": 4} and "windows" not in stats
    assert stats["prices"]["list"]["spread"]["max"] == 40 and stats["items"]["words"]["title"]["max"] == 3


def test_figures_are_plain_json(stats):
    again = json.loads(json.dumps(stats, allow_nan=False))
    assert again["windows"] == stats["windows"]


def test_printed_tables_fit_a_small_terminal(stats):
    screen = Console(file=StringIO(), width=80)
    print_description(stats, screen)
    text = screen.file.getvalue()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert max(map(len, text.splitlines())) <= 80
    assert "ceiling 100.0% 100.0% 0.0% 100.0% 80.0%" in lines
    assert "price, list 3 23.3 10 20 36 39.6 40 25.0%" in lines
    assert "2 5 3 60.0%" in lines and "shop <&>" in lines and "set aside torn lines: 3" in lines


class Resources(HTMLParser):
    """Addresses that a browser would load, and the text outside scripts."""

    def __init__(self):
        super().__init__()
        self.loaded, self.scripts, self.ids = [], 0, []

    def handle_starttag(self, tag, attrs):
        links = [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")]
        self.loaded += [value for value in links if not value.startswith("#")]
        self.ids += [value for name, value in attrs if name == "id"]
        self.scripts += tag == "script"


@pytest.mark.parametrize(
    "made", [shop, bare, lambda: Catalogue.make(shop().items, {"name": "things"})], ids=["log", "bare", "catalogue"]
)
def test_html_is_one_file_that_fetches_nothing(made, tmp_path):
    log = made()
    path = write_html(log, describe(log), tmp_path / "new" / "log.html")
    text = path.read_text()
    page = Resources()
    page.feed(text)
    assert page.loaded == ["data:,"]  # the empty icon
    assert "@import" not in text.split("</style>")[0] and "url(" not in text.split("</style>")[0]
    # plotly, and the page's own
    assert text.count('<div class="plot"') == page.scripts - 2 and text.count("plotly.js v") == 1
    assert len(page.ids) == len(set(page.ids))
    assert text == write_html(log, describe(log), tmp_path / "again.html").read_text()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["log.html"]


def test_html_escapes_names(tmp_path):
    log = shop(lacks=["<script>alert(1)</script>"])
    text = write_html(log, describe(log), tmp_path / "log.html").read_text()
    assert "<h1>shop &lt;&amp;&gt;</h1>" in text and "<script>alert" not in text


@pytest.mark.parametrize(
    "values", [[1, 2, 2, 9], [1] * 90 + [5000], [0.5, 0.25, 800.0, 0.0], list(range(500)), [0.1, 0.2, 0.7], [0, 1, 1, 1, 4000]]
)
def test_histograms_lose_no_value(values):
    figure = histogram("t", "x", "y", pl.Series(values, strict=False))
    left_out = values.count(0) if figure["layout"]["xaxis"].get("type") == "log" else 0
    assert sum(figure["data"][0]["y"]) == len(values) - left_out
    assert (f"{left_out} at 0 left out" in figure["layout"]["xaxis"]["title"]["text"]) == (left_out > 0)


def test_nothing_to_plot():
    assert (
        histogram("t", "x", "y", pl.Series([3, 3])) is None
        and histogram("t", "x", "y", pl.Series([None], dtype=pl.Float64)) is None
    )


def test_a_log_that_never_repeats_says_so():
    """Two users, each clicks another item every day; then one of them clicks one again."""

    def of(items: str) -> str:
        ids = [f"r{i}" for i in range(len(items))]
        requests = {"request_id": ids, "user_id": ["ann", "bob"] * (len(items) // 2), "source": ["search"] * len(items)}
        days = [START + timedelta(days=i) for i in range(len(items))]
        clicks = {"request_id": ids, "item_id": list(items), "clicked": [True] * len(items)}
        meta = {"name": "new", "has": {"clicks": True, "users": True}}
        log = Log.make(pl.DataFrame({"item_id": list("abcdefgh")}), pl.DataFrame(requests | {"ts": days}), pl.DataFrame(clicks), meta)
        screen = Console(file=StringIO(), width=100)
        print_description(describe(log), screen)
        return " ".join(screen.file.getvalue().split())

    assert "no relevant item is a repeat: consider Unseen()" in of("abcdefgh")
    assert "consider Unseen()" not in of("abcdefgb") and "consider Unseen()" not in of("ab")
