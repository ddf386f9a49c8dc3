"""The report and its tables: everything is there, nothing is fetched, every printed figure is a
measure row's.
"""

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.simulator.measure.compare import Cascade, Run, added, compare, measure
from karmafunnel.simulator.report import plots
from karmafunnel.simulator.report import request_page as samples
from karmafunnel.simulator.report.measure_table import (
    define,
    lowered,
    measure_table,
    to_csv,
)
from karmafunnel.simulator.report.run_page import open_entries, report, waterfall_png
from karmafunnel.simulator.report.table import (
    Bar,
    Cell,
    Table,
    latex_escape,
    number,
    print_table,
    to_html,
    to_latex,
    to_markdown,
    to_terminal,
)
from plotly.offline import get_plotlyjs
from rich.console import Console
from small_run import make_log, make_run

SECTIONS = [
    "summary",
    "losses",
    "stages",
    "curves",
    "auc",
    "calibration",
    "slices",
    "time",
    "request",
    "record",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("one") / "base")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("two") / "skilled", seed=1, skill=3.0)


@pytest.fixture(scope="module")
def rows(run) -> list[dict]:
    return measure(
        Run.open(run), ["survival", "HR@3", "HR@10", "GMV-HR@5", "gAUC:request:exposures", "ECE"]
    )


class Tables(HTMLParser):
    """Every table of a page as lists of lines of cells (their first text: the value, without
    interval and marks).
    """

    def __init__(self, text: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.quiet = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "sup" or ("class", "ci") in attributes:
            self.quiet += 1

    def handle_endtag(self, tag):
        if tag in ("sup", "span") and self.quiet:
            self.quiet -= 1

    def handle_data(self, data):
        if self.tables and self.tables[-1] and self.tables[-1][-1] and not self.quiet:
            self.tables[-1][-1][-1] += data.strip()


def shown_values(rows: list[dict]) -> dict[tuple[str, str], str]:
    return {(row["stage"], row["measure"]): number(row["value"]) for row in rows}


def own(page: str) -> str:
    """The page without plotly."""
    return page.replace(get_plotlyjs(), "")


# -- tables ----------------------------------------------------------------------------------------


def test_csv_holds_the_rows_unrounded(rows):
    lines = list(csv.DictReader(io.StringIO(to_csv(rows))))
    found = 0
    for row in rows:
        line = next(line for line in lines if line["stage"] == row["stage"])
        for field, name in zip(
            ("value", "low", "high", "n", "note"), ("", " low", " high", " n", " note"), strict=True
        ):
            told = line[row["measure"] + name]
            assert told == ("" if row[field] is None else str(row[field]))
            found += told != ""
    assert found > 50


def test_markdown_is_one_table_with_the_rows(rows):
    text = to_markdown(measure_table(rows))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(line) for line in cells}) == 1
    assert all(re.fullmatch("-{3}:?", c) for c in cells[1])
    for (stage, name), value in shown_values(rows).items():
        line = next(line for line in cells if line[0] == stage)
        assert re.split("[ ⁰¹²³⁴⁵⁶⁷⁸⁹]", line[cells[0].index(name)])[0] == value
    for said in ("n/a: rank puts out 5", "unit: request", "denominator: requests with a click"):
        assert said in text


def test_latex_holds_the_rows_and_escapes(rows):
    text = to_latex(measure_table(rows))
    for line in (
        line
        for line in text.splitlines()
        if line.endswith(r" \\") and line.split(" & ")[0] in ("recall", "rank", "random")
    ):
        stage, *cells = line.removesuffix(r" \\").split(" & ")
        for name, cell in zip(dict.fromkeys(row["measure"] for row in rows), cells, strict=True):
            value = shown_values(rows).get((stage, name), "")
            assert re.split(r"[ $]", cell)[0] == value
    assert not re.search(
        r"(?<!\\)[%&#_](?![^\n]*\\\\)",
        "\n".join(line for line in text.splitlines()[1:] if " & " not in line),
    )
    assert latex_escape("50% of a_b & {c} ~ ^ \\ #1 $x$ <y>") == (
        r"50\% of a\_b \& \{c\} \textasciitilde{} \textasciicircum{} \textbackslash{} \#1 \$x\$ \textless{}y\textgreater{}"
    )


def test_html_table_holds_the_rows(rows):
    lines = Tables(to_html(measure_table(rows))).tables[0]
    for (stage, name), value in shown_values(rows).items():
        line = next(line for line in lines if line[0] == stage)
        assert line[lines[0].index(name)] == value


def test_terminal_fits_and_says_why_not(rows):
    console = Console(width=80, record=True, file=io.StringIO())
    print_table(measure_table(rows), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert all(
        word in text
        for word in (
            "ceiling",
            "random",
            "logged order",
            "n/a: rank puts out 5",
            "undefined",
            "95%",
        )
    )


def test_one_cell_in_every_format():
    """A value, its interval, mark, what else belongs to it, and a footnote; a bar is a share."""
    cell = Cell("0.50", "[0.4, 0.6]", "**", "n 9", notes=(1,), strong=True)
    table = Table(
        ["row", "a_b", "share"], [["<one>", cell, Bar(0.25, "#123456")]], title="50%", notes=["n_1"]
    )
    assert to_markdown(table).splitlines() == [
        "**50%**", "", r"| row | a\_b | share |", "| --- | ---: | ---: |",
        r"| \<one\> | 0.50¹ \[0.4, 0.6\]\*\* n 9 | 25% |", "", r"- ¹ n\_1",
    ]  # fmt: skip
    lines = to_latex(table).splitlines()
    assert r"\caption{50\%}" in lines and r"\begin{tabular}{lrr}" in lines
    assert (
        r"\textless{}one\textgreater{} & 0.50$^{1}$ {\scriptsize [0.4, 0.6] n 9}** & 25\% \\"
        in lines
    )
    page = to_html(table)
    assert '<th scope="row">&lt;one&gt;</th><td title="n_1"><span class="v">0.50**</span><sup>1</sup>' in page
    assert (
        '<span class="ci">[0.4, 0.6]</span> <span class="ci">n 9</span></td>' in page
        and "width:25.0%" in page
    )
    console = Console(width=80, record=True, file=io.StringIO())
    print_table(table, console)
    shown = [line.split() for line in console.export_text().splitlines()]
    assert shown == [
        ["50%"], ["row", "a_b", "share"], ["<one>", "0.50¹", "[0.4,", "0.6]**", "n", "9", "25%"],
        ["1.", "n_1"],
    ]  # fmt: skip


def test_a_wide_table_is_printed_in_parts_that_break_no_number():
    heads = ["row", *(f"a long head {i}" for i in range(6))]
    table = Table(heads, [["x", *["123,456,789"] * 6], ["y", *[""] * 5, "1"]], title="wide")
    first, between, second = to_terminal(table, 60)
    assert [[str(column.header) for column in part.columns] for part in (first, second)] == [
        heads[:5],
        ["row", *heads[5:]],
    ]
    assert not str(between)
    # a row that says nothing in a part is left out there
    assert [first.row_count, second.row_count] == [1, 2]
    assert len(to_terminal(replace(table, look="prose"), 60)) == 1


def test_stages_stand_in_the_order_of_the_funnel(rows):
    stages = [row[0] for row in measure_table(rows).rows]
    assert stages == [
        "eligible",
        "recall",
        "rank",
        "end to end",
        "ceiling",
        "logged order",
        "random",
    ]


def test_runs_side_by_side(run, other):
    both = [row for name in (run, other) for row in measure(Run.open(name), ["HR@5"])]
    table = measure_table(both, across="label")
    assert table.heads == ["measure", "stage", "base", "skilled", "n"] and table.text_columns == 2
    assert [row[:2] for row in table.rows] == [
        ["HR@5", s] for s in ("recall", "rank", "ceiling", "random")
    ]


def test_two_rows_in_one_cell_are_refused(rows):
    with pytest.raises(KarmafunnelError, match="two rows"):
        measure_table([*rows, rows[0]])
    with pytest.raises(KarmafunnelError, match="at least one"):
        measure_table([])


def test_small_values_keep_two_digits():
    assert [number(v) for v in (0.5, 0.0123, 0.00123, 0.0, -0.25, None)] == [
        "0.500",
        "0.012",
        "0.0012",
        "0.000",
        "−0.250",
        "n/a",
    ]


def test_every_measure_has_a_definition():
    names = [
        "HR@5",
        "Recall@5",
        "nDCG@5",
        "MRR",
        "MRR@5",
        "GMV-HR@5:w99",
        "GMV-nDCG@5",
        "survival",
        "ceiling",
        "AUC",
        "logloss",
        "ECE",
    ]
    names += ["overlap@5", "RBO@5", "margin", "HR@5:all:1d"]
    for name in [
        *names,
        "gAUC:user:exposures:none",
        "gAUC:request:candidates",
        "Recall@20@5",
        "HR@1:exposures",
    ]:
        assert len(define(name)) > 20


def test_comparison_in_every_format(run, other):
    told = compare(Run.open(run), Run.open(other), ["HR@5", "survival", "HR@10"])
    console = Console(width=140, record=True, file=io.StringIO())
    table = measure_table(told)
    print_table(table, console)
    text = console.export_text()
    for format_ in (text, to_markdown(table), to_latex(table), to_html(table)):
        assert "skilled" in format_ and "base" in format_
    lines = list(csv.DictReader(io.StringIO(to_csv(told))))
    assert [line["difference"] for line in lines] == [
        "" if row["difference"] is None else str(row["difference"]) for row in told
    ]


def test_leading_texts_become_headings_where_a_table_is_too_wide():
    """Numbers keep their columns below each other; n is the last line, with no heading."""
    rows = [["HR@10", stage, Cell("0.5", "[0.25, 0.75]", mark)] for stage, mark in
            (("recall", ""), ("rank", "**"))]  # fmt: skip
    rows.append(["a measure of a long name", "rank", Cell("1.0", "[1.0, 1.0]")])
    counts = ["n 677 (123 undefined, 15.4%)"]
    table = Table(["measure", "stage", "value"], rows, 2, counts=counts, look="measures")
    console = Console(width=40, record=True, file=io.StringIO())
    print_table(table, console)
    assert [line.rstrip() for line in console.export_text().splitlines()] == [
        "stage                 value",
        "HR@10",
        "recall      .5 [.25, .75]",
        "rank        .5 [.25, .75]**",
        "a measure of a long name",
        "rank       1.0",
        "n                       677",
        "undefined               123",
    ]


def test_long_leading_texts_break_after_commas():
    path = "sasrec=stale@60,recall=popular,prerank=skip,rank=skip"
    console = Console(width=50, record=True, file=io.StringIO())
    print_table(Table(["path", "HR@10"], [[path, "0.5"]]), console)
    assert [line.split() for line in console.export_text().splitlines()] == [
        ["path", "HR@10"], ["sasrec=stale@60,recall=popular,", "0.5"], ["prerank=skip,rank=skip"],
    ]  # fmt: skip


def test_a_stage_that_lowers_a_measure_is_said_where_the_interval_excludes_zero():
    row = {"stage": "rank", "before": "prerank", "measure": "HR@10", "slice": "all", "better": "A"}
    row |= {"difference": -0.0226, "low": -0.0304, "high": -0.0149}
    assert lowered([row, row | {"better": ""}, row | {"better": "B"}]) == [
        "rank lowers HR@10 of prerank by 0.023 [0.015, 0.030]"
    ]


def test_what_a_stage_lowers_in_a_run(run):
    """`added` names the stage before; its difference is that of the measured values."""
    opened = Run.open(run)
    (row,) = added(opened, ["HR@5"])
    values = {r["stage"]: r["value"] for r in measure(opened, ["HR@5"])}
    assert (row["before"], row["stage"]) == ("recall", "rank")
    assert row["difference"] == pytest.approx(values["rank"] - values["recall"])
    reversed_signs = {"difference": -abs(row["difference"]), "better": "A", "low": -1.0, "high": -0.5}
    assert lowered([row | reversed_signs])[0].startswith("rank lowers HR@5 of recall by ")


# -- the page --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> str:
    out = report([run], tmp_path_factory.mktemp("page") / "deep" / "report.html")
    assert out.stat().st_size < 8_000_000
    return out.read_text(encoding="utf-8")


def test_page_has_every_section_and_a_way_to_it(page):
    found = re.findall(r'<section id="(\w+)"><h2>[^<]+</h2>', page)
    assert found == SECTIONS
    assert re.findall(r'<a href="#(\w+)">', page.split("</nav>")[0].split("<nav ")[1]) == SECTIONS
    for said in (
        "Popular(k=20)\n&gt;&gt; Ranker(k=5)",
        "abc1234",
        "&lt;b&gt; &amp; &#34;quotes&#34;",
    ):
        assert said in page


def test_page_fetches_nothing(page):
    rest = own(page)
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", rest)
    assert not re.search(
        r"<script[^>]+src|<img|<iframe|@import|url\(|fetch\(|XMLHttpRequest|import\(", rest
    )
    assert page.count(get_plotlyjs()) == 1
    for script in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', rest, re.S):
        json.loads(script)


def test_page_says_what_the_measures_say(page, run):
    opened = Run.open(run)
    names = ["survival", "HR@5", "nDCG@5", "MRR@5", "GMV-HR@5", "GMV-HR@5:w99", "Recall@5"]
    tables = Tables(page).tables
    stage_table = next(t for t in tables if "survival" in t[0])
    for (stage, name), value in shown_values(measure(opened, names)).items():
        line = next(line for line in stage_table if line[0] == stage)
        assert line[stage_table[0].index(name)] == value
    losses = {
        line[0]: line[1:3] for line in next(t for t in tables if t[0][-1] == "missed by, ranks")
    }
    cascade = {row["reason"]: row for row in Cascade.of(opened).losses}
    assert losses["kept"] == [
        f"{cascade['kept']['items']:,}",
        plots.percent(cascade["kept"]["share"]),
    ]
    assert losses["cut by rank"] == [
        f"{cascade['rank']['items']:,}",
        plots.percent(cascade["rank"]["share"]),
    ]


def test_waterfall_falls_from_all_to_kept(run):
    entry = open_entries([run])[0]
    bars = plots.waterfall(entry.cascade, entry.stages, "click", "EUR")["data"]
    assert len(bars) == 2
    for bar in bars:
        assert bar["x"][0] == 1.0 and sum(bar["x"][1:]) == pytest.approx(1)
        assert bar["base"][-2] == pytest.approx(bar["x"][-1]) and bar["base"][-1] == 0


def test_calibration_bins_are_those_of_ece(run, page):
    opened = Run.open(run)
    places = [
        json.loads(s)
        for s in re.findall(
            r'<div class="plot"[^>]*><script type="application/json">(.*?)</script>', page
        )
    ]
    points = next(
        t
        for p in places
        for t in p["data"]
        if "probability" in str(p["layout"]) and "customdata" in t
    )
    gap = sum(
        n * abs(x - y)
        for x, y, n in zip(points["x"], points["y"], points["customdata"], strict=True)
    ) / sum(points["customdata"])
    assert gap == pytest.approx(
        next(row["value"] for row in measure(opened, ["ECE"], ci=False) if row["stage"] == "rank")
    )


def test_without_money_and_lists(tmp_path):
    page = own(
        report(
            [make_run(tmp_path / "bare", priced=False, shown=False)], tmp_path / "r.html"
        ).read_text()
    )
    shown = [name for name in SECTIONS if name != "calibration"]
    assert re.findall(r'<section id="(\w+)">', page) == shown
    for reason in (
        "no prices of relevant items",
        "no exposed lists",
        "it takes a calibrated ranker",
    ):
        assert reason in page
    assert not re.search(r"\bnan\b|NaN|Infinity|None<", page)
    text = to_markdown(measure_table(measure(Run.open(tmp_path / "bare"), ["GMV-HR@5", "AUC"])))
    assert "n/a: the log holds no shown lists" in text and "without a price" in text


def test_without_any_truth(tmp_path):
    folder = make_run(tmp_path / "empty")
    pl.read_parquet(folder / "ledger.parquet").clear().write_parquet(folder / "ledger.parquet")
    requests = pl.read_parquet(folder / "requests.parquet").with_columns(
        n_truth=0, n_truth_eligible=0
    )
    requests.write_parquet(folder / "requests.parquet")
    page = own(report([folder], tmp_path / "r.html").read_text())
    assert "no replayed request has a relevant item" in page
    assert "n/a" in page


def test_two_runs_and_seeds(run, other, tmp_path):
    page = own(report([run, other], tmp_path / "two.html").read_text())
    assert re.findall(r'<section id="(\w+)">', page) == [*SECTIONS[:8], "compare", *SECTIONS[8:]]
    told = {
        (r["measure"], r["stage"]): r for r in compare(Run.open(run), Run.open(other), ["HR@5"])
    }
    lines = next(t for t in Tables(page).tables if "B − A" in t[0] and "A: base" in t[0])
    at = next(i for i, line in enumerate(lines) if line[0] == "HR@5")
    assert lines[at][2:5] == [
        number(told["HR@5", "recall"]["value_a"]), number(told["HR@5", "recall"]["value_b"]),
        number(told["HR@5", "recall"]["difference"], True, 4) + "**",
    ]  # fmt: skip
    seeds = make_run(tmp_path / "base2", seed=5)
    page = report([[run, seeds], other], tmp_path / "seeds.html").read_text()
    for said in ("base (2 seeds)", "means over 2 seeds", "not compared"):
        assert said in page


def test_a_run_over_other_requests_stands_beside_with_a_warning(run, other, tmp_path):
    said = "</b> did not replay the same requests as <b>"
    assert said not in report([run, other], tmp_path / "same.html").read_text()
    few = make_run(tmp_path / "few", seed=1)
    for path in few.glob("*.parquet"):
        frame = pl.read_parquet(path)
        if "request_id" in frame.columns:
            frame.filter(pl.col("request_id") < "r30").write_parquet(path)
    page = report([run, few], tmp_path / "few.html").read_text()
    assert page.count(said) == 1
    assert "30 requests instead of" in page
    assert "30 of them in both" in page


def test_same_names_are_told_apart(tmp_path):
    a, b = make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run", seed=2)
    assert [e.name for e in open_entries([a, b])] == ["x/run", "y/run"]
    with pytest.raises(KarmafunnelError, match="different Runs"):
        open_entries([a, a])


def test_one_request(tmp_path):
    log = make_log(tmp_path / "log")
    run = Run.open(make_run(tmp_path / "run", log=log))
    data = samples.look_up([run], ["run"], 12)
    assert data["missing"] == "" and len(data["requests"]) == 12
    assert {r["outcome"] for r in data["requests"]} >= {"kept", "recall", "rank"}
    ledger = pl.read_parquet(tmp_path / "run" / "ledger.parquet")
    for request in data["requests"]:
        assert request["query"] == f"query {request['id']} <&>"
        assert [e["item"] for e in request["history"]] == ["i7"]  # not i9: that was later
        mine = ledger.filter(pl.col("request_id") == request["id"])
        fate = {t["item"]: t["lost"] for t in request["runs"][0]["truth"]}
        assert fate == dict(zip(mine["item_id"], mine["lost"], strict=True))
        ranks = [c["ranks"][1] for c in request["runs"][0]["rows"] if c["ranks"][1]]
        assert sorted(ranks) == [1, 2, 3, 4, 5]
    assert data["items"]["i7"][0] == "</script> thing 7"
    page = own(report([tmp_path / "run"], tmp_path / "r.html").read_text())
    assert "</script> thing" not in page and "licence of the log: CC0" in page
    (log / "items.parquet").unlink()
    assert "cannot be read" in samples.look_up([run], ["run"], 3)["missing"]


def test_requests_are_drawn_the_same_way_twice(run):
    opened = Run.open(run)
    assert samples.draw(opened, 9) == samples.draw(opened, 9)
    assert len({request for request, _ in samples.draw(opened, 9)}) == 9


def test_no_run_writes_nothing(tmp_path):
    for folders in ([], [tmp_path / "nothing"]):
        with pytest.raises(KarmafunnelError):
            report(folders, tmp_path / "out" / "r.html")
    assert not (tmp_path / "out").exists()


def test_picture_says_what_is_missing(run, tmp_path, monkeypatch):
    import plotly.graph_objects as go

    def no_kaleido(*_, **__):
        raise ValueError("Image export using the 'kaleido' engine requires the Kaleido package")

    monkeypatch.setattr(go.Figure, "write_image", no_kaleido)
    with pytest.raises(KarmafunnelError, match=r"karmafunnel\[images\]"):
        waterfall_png(run, tmp_path / "w.svg")
