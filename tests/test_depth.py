"""Runs of different depth: a longer list is no better for being longer, whatever is measured."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.simulator.commands.figures import default_measures
from karmafunnel.simulator.measure.attribution import attribute
from karmafunnel.simulator.measure.compare import (
    Run,
    added,
    against_logged,
    compare,
    measure,
    telling,
)
from karmafunnel.simulator.measure.measures.measure import END, Measure, kinds
from karmafunnel.simulator.report.measure_table import define, measure_table
from karmafunnel.simulator.report.run_page import report
from karmafunnel.simulator.report.table import print_table
from rich.console import Console
from small_run import KEEPS, make_run

MEASURES = [
    "HR@3",
    "Recall@3",
    "kept@3",
    "nDCG@3",
    "MRR",
    "MRR@3",
    "P@3",
    "GMV-HR@3",
    "GMV-HR@3:w99",
    "GMV-nDCG@3",
    "HR@3:exposures",
    "MRR:exposures",
    "kept@3:exposures",
    "Recall@3@2",
    "HR@3:all",
    "Recall@3:all:2d",
    "overlap@3",
    "RBO@3",
    "margin",
    "survival",
    "swap",
    "ceiling",
    "AUC",
    "logloss",
    "ECE",
    "gAUC:request:exposures",
    "gAUC:user:exposures:none",
    "gAUC:request:candidates",
    "eGMV@3",
    "MAP@3",
    "MAP@3:exposures",
    "MAP",
    "coverage@3",
    "Gini@3",
    "novelty@3",
    "consistency:rank",
]


def cut(run: Path, out: Path, k: int, stage: str = "rank") -> Path:
    """The same Run, had one stage put out k: the same scores, orders and luck."""
    out.mkdir(parents=True)
    for table in ("requests", "scored", "timing"):
        pl.read_parquet(run / f"{table}.parquet").write_parquet(out / f"{table}.parquet")
    kept = (pl.col("stage") != stage) | (pl.col("rank") <= k)
    pl.read_parquet(run / "slates.parquet").filter(kept).write_parquet(out / "slates.parquet")
    beyond = pl.col(f"{stage}.rank") > k
    ledger = pl.read_parquet(run / "ledger.parquet").with_columns(
        pl.when(beyond).then(pl.lit(stage)).otherwise("lost").alias("lost"),
        pl.when(beyond).then(pl.col(f"{stage}.rank") - k).otherwise("margin").alias("margin"),
        pl.when(beyond).then(None).otherwise(f"{stage}.rank").alias(f"{stage}.rank"),
    )
    later = list(KEEPS)[list(KEEPS).index(stage) + 1 :]
    lost = pl.col("lost") == stage
    ledger = ledger.with_columns(
        pl.when(lost).then(None).otherwise(f"{s}.{c}").alias(f"{s}.{c}")
        for s in later
        for c in ("rank", "wins")
    )
    ledger.write_parquet(out / "ledger.parquet")
    meta = json.loads((run / "run.json").read_text())
    next(s for s in meta["stages"] if s["name"] == stage)["k"] = k
    (out / "run.json").write_text(json.dumps(meta))
    return out


def with_stages(run: Path, kept: pl.Expr) -> Path:
    """The Run, were its log one that tells what production's own rank kept of every row."""
    place = pl.when(kept).then(pl.lit("rank")).otherwise(pl.lit("recall"))
    scored = pl.read_parquet(run / "scored.parquet").with_columns(place.alias("logged_stage"))
    scored.write_parquet(run / "scored.parquet")
    meta = json.loads((run / "run.json").read_text())
    meta["log"]["stages"] = ["recall", "rank"]
    (run / "run.json").write_text(json.dumps(meta))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("depths")
    kept = pl.col("recall.rank") <= 5
    deep = with_stages(make_run(folder / "deep", skill=1.0), kept)
    found = {
        "deep": deep,
        "short": cut(deep, folder / "short", 3),
        "narrow": cut(deep, folder / "narrow", 8, "recall"),
    }
    return {name: Run.open(path) for name, path in found.items()}


def test_every_measure_is_walked():
    ours = {name for name, kind in kinds().items() if kind.__module__.startswith("karmafunnel.")}
    assert {Measure.parse(m).name for m in MEASURES} == ours


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("other", ["short", "narrow"])
def test_a_run_cut_shorter_is_no_better_and_no_worse_than_itself(runs, name, other):
    """The same orders, one of them longer: no difference where there is one, or a note that says
    why none is taken.
    """
    if other == "narrow" and name not in (
        "survival",
        "swap",
        "margin",
        "MRR",
        "gAUC:request:candidates",
    ):
        pytest.skip("a recall cut shorter hands the ranker other candidates: a difference is one")
    for a, b in ((runs["deep"], runs[other]), (runs[other], runs["deep"])):
        rows = compare(a, b, [name])
        if other == "narrow":  # whose ranker had other candidates, which is a difference
            rows = [
                r for r in rows if r["stage"] != END and (name != "MRR" or r["stage"] == "recall")
            ]
        for row in rows:
            assert row["better"] == "" and not row["holm"], row
            if row["value_a"] is not None and "not compared" not in row["note"]:
                assert row["difference"] == pytest.approx(0, abs=1e-12), row
            else:
                assert row["difference"] is None and row["note"], row


def test_what_is_compared_at_one_depth_says_so(runs):
    rows = {
        (r["measure"], r["stage"]): r
        for r in compare(runs["deep"], runs["short"], ["survival", "MRR", "margin"])
    }
    end = rows["survival", END]
    at_3 = next(r["value"] for r in measure(runs["deep"], ["kept@3"]) if r["stage"] == "rank")
    assert end["value_a"] == end["value_b"] == pytest.approx(at_3)
    assert "kept@3" in end["note"]
    assert end["difference"] == 0
    assert "cut at 3" in rows["MRR", "rank"]["note"]
    stage = rows["survival", "rank"]
    assert stage["difference"] is None
    assert stage["value_a"] > stage["value_b"]
    assert "20, 5 against 20, 3" in stage["note"]
    assert rows["survival", "recall"]["difference"] == 0
    assert rows["survival", "recall"]["note"] == ""


def test_equal_depths_are_compared_as_before(runs):
    rows = compare(runs["deep"], runs["deep"], MEASURES)
    assert not [r for r in rows if "not compared" in r["note"] or "shorter" in r["note"]]
    assert all(r["difference"] == 0 for r in rows if r["value_a"] is not None)


def test_a_popular_of_many_no_longer_beats_a_funnel_of_few(tmp_path):
    """A weak order of all that recall brings up against a good order of 5: by survival alone it
    would win.
    """
    good = Run.open(make_run(tmp_path / "good", skill=3.0))
    weak = make_run(tmp_path / "weak", skill=0.0)
    meta = json.loads((weak / "run.json").read_text())
    meta["stages"] = [meta["stages"][0]]
    meta["stages"][0]["k"] = 20
    (weak / "run.json").write_text(json.dumps(meta))
    ledger = pl.read_parquet(weak / "ledger.parquet").with_columns(
        pl.when(pl.col("recall.rank").is_null()).then(pl.lit("recall")).alias("lost"),
        margin=pl.lit(1),
    )
    ledger.with_columns(
        pl.when(~pl.col("eligible")).then(pl.lit("not eligible")).otherwise("lost").alias("lost")
    ).write_parquet(weak / "ledger.parquet")
    slates = pl.read_parquet(weak / "slates.parquet").filter(pl.col("stage") == "recall")
    slates.write_parquet(weak / "slates.parquet")
    row = next(r for r in compare(good, Run.open(weak), ["survival"]) if r["stage"] == END)
    assert row["difference"] < 0
    assert row["better"] != "B"
    assert "kept@5" in row["note"]


def test_attribution_takes_survival_at_one_depth(runs):
    grid = {frozenset(): runs["short"], frozenset({"rank"}): runs["deep"]}
    rows = attribute(grid, ["survival", "MRR", "swap", "HR@3"])
    for row in rows:
        if row["measure"] == "swap":
            assert row["value"] is None and "not compared" in row["note"]
        else:
            assert row["value"] == pytest.approx(0) and (
                "3" in row["note"] or row["measure"] == "HR@3"
            )


def test_kept_is_survival_at_the_full_depth(runs):
    """kept@k of the last stage, k being what it puts out, is survival from end to end; by hand:
    truth in the first k / truth.
    """
    rows = {
        (r["measure"], r["stage"]): r
        for r in measure(runs["deep"], ["kept@5", "kept@3", "survival"])
    }
    assert rows["kept@5", "rank"]["value"] == rows["survival", END]["value"]
    assert (rows["kept@5", "rank"]["low"], rows["kept@5", "rank"]["n"]) == (
        rows["survival", END]["low"],
        rows["survival", END]["n"],
    )
    ledger = pl.read_parquet(runs["deep"].path / "ledger.parquet")
    assert rows["kept@3", "rank"]["value"] == pytest.approx(
        ledger["rank.rank"].le(3).sum() / ledger.height
    )
    assert rows["kept@3", "ceiling"]["value"] <= ledger["eligible"].mean() + 1e-12
    eligible = pl.read_parquet(runs["deep"].path / "requests.parquet")["n_eligible"][0]
    assert rows["kept@3", "random"]["value"] == pytest.approx(
        ledger["eligible"].sum() * 3 / eligible / ledger.height
    )
    assert (
        "over all requests together" in define("kept@3")
        and rows["kept@3", "rank"]["unit"] == "relevant item"
    )


def test_what_each_stage_adds(tmp_path):
    """A difference at one depth, on the same requests, equal to the difference of the two values;
    none for what has no depth.
    """
    run = Run.open(make_run(tmp_path / "run", skill=2.0))
    told = {(r["measure"], r["stage"]): r["value"] for r in measure(run, ["HR@3", "MRR@5", "AUC"])}
    rows = added(
        run,
        [
            "HR@3",
            "MRR",
            "HR@10",
            "survival",
            "margin",
            "overlap@3",
            "gAUC:request:candidates",
            "AUC",
            "Recall@3@2",
        ],
    )
    assert [(r["measure"], r["stage"]) for r in rows] == [
        (m, "rank") for m in ("HR@3", "MRR", "HR@10", "AUC")
    ]
    by = {r["measure"]: r for r in rows}
    assert by["HR@3"]["difference"] == pytest.approx(told["HR@3", "rank"] - told["HR@3", "recall"])
    assert by["MRR"]["difference"] == pytest.approx(told["MRR@5", "rank"] - told["MRR@5", "recall"])
    assert by["AUC"]["difference"] == pytest.approx(told["AUC", "rank"] - told["AUC", "recall"])
    assert by["HR@10"]["difference"] is None and "puts out 5" in by["HR@10"]["note"]
    assert by["HR@3"]["low"] <= by["HR@3"]["difference"] <= by["HR@3"]["high"]
    both = added([run, Run.open(make_run(tmp_path / "again", seed=3, skill=2.0))], ["HR@3"])
    assert both[0]["seeds"] == 2
    assert all(Measure.parse(r["measure"]).better != "neither" for r in rows)


@pytest.mark.parametrize(
    ("skill", "words"),
    [
        (4.0, ("improves the order of recall", "users clustered")),
        (1.5, ("no significant difference to the order of recall", "users clustered")),
        (-4.0, ("rank lowers HR@5 of recall by ",)),
    ],
    ids=["better", "neither", "worse"],
)
def test_the_report_says_what_the_ranker_adds(tmp_path, skill, words):
    """One sentence at a glance; where the interval holds 0 it says that nothing is significant."""
    run = make_run(tmp_path / "run", skill=1.5)
    rng, ledger = np.random.default_rng(0), pl.read_parquet(run / "ledger.parquet")
    rank = ledger["recall.rank"].to_numpy().astype(float)
    if skill == 4.0:
        rank = np.where(rank > 0, 1, np.nan)
    elif skill < 0:
        rank = np.full(len(rank), np.nan)
    else:  # recall's own ranks, some of them shuffled
        rank = np.where((rank <= 5) ^ (rng.random(len(rank)) < 0.05), np.minimum(rank, 5), np.nan)
        rank = np.where(ledger["recall.rank"].is_null().to_numpy(), np.nan, rank)
    new = pl.Series("rank.rank", rank, nan_to_null=True).cast(pl.Int64)
    lost = (
        pl.when(pl.col("lost").is_in(["not eligible", "recall"]))
        .then("lost")
        .when(pl.col("rank.rank").is_null())
        .then(pl.lit("rank"))
    )
    ledger.with_columns(new).with_columns(lost.alias("lost")).write_parquet(run / "ledger.parquet")
    text = report([run], tmp_path / "r.html").read_text()
    glance = text.split('id="summary"')[1].split("</section>")[0]
    assert all(text in glance for text in words)
    assert "HR@5" in glance
    assert "What each stage adds" in text


# -- the cutoff of a headline, and rows that really came out ---------------------------------------


def short_lists(folder: Path, promises: int = 100) -> Path:
    """A Run whose stages promise more rows than they return: lists of 8 shown items, re-ranked.
    The logged order is better than that of `rank`.
    """
    rng = np.random.default_rng(3)
    slates, requests, ledger, scored = [], [], [], []
    for r in range(120):
        request, n = f"r{r:03d}", 6 if r % 4 == 0 else 8
        truth = int(min(rng.geometric(0.4), n)) - 1
        orders = {"recall": np.arange(n), "rank": rng.permutation(n) if r % 3 else np.arange(n)}
        rank = {stage: {int(i): at + 1 for at, i in enumerate(order)} for stage, order in orders.items()}
        for stage, order in orders.items():
            slates += [(request, stage, f"i{i}", at + 1, -float(at), "lists") for at, i in enumerate(order)]
        row = {"request_id": request, "item_id": f"i{truth}", "money": None, "quantity": 1, "eligible": True}
        row |= {"target": "head", "repeat": None, "price_band": None, "lost": None, "margin": None}
        for stage in orders:
            row |= {f"{stage}.rank": rank[stage][truth], f"{stage}.score": 0.0, f"{stage}.wins": 0.0}
        ledger.append(row)
        for i in range(n):
            row = {"request_id": request, "item_id": f"i{i}", "position": i + 1, "clicked": i == truth}
            row |= {"purchased": False, "money": None, "eligible": True}
            scored.append(row | {f"{s}.score": -float(rank[s][i]) for s in orders} | {f"{s}.rank": rank[s][i] for s in orders})
        sizes = {f"{s}.{c}": n for s in orders for c in ("n", "out")}
        row = {"request_id": request, "user_id": f"u{r % 40}", "ts": None, "window": "W3", "n_truth": 1}
        row |= {"n_eligible": 8, "n_truth_eligible": 1, "n_shown": n, "has_query": False, "new_user": False}
        requests.append(row | sizes)
    make_run(folder)
    tables = {"requests": requests, "ledger": ledger, "scored": scored}
    for name, rows in tables.items():
        schema = {"money": pl.Float64, "price_band": pl.String, "lost": pl.String, "margin": pl.Float64, "repeat": pl.Boolean}
        frame = pl.DataFrame(rows, infer_schema_length=None)
        frame = frame.with_columns(pl.col(c).cast(t) for c, t in schema.items() if c in frame.columns)
        frame.write_parquet(folder / f"{name}.parquet")
    columns = ["request_id", "stage", "item_id", "rank", "score", "channel"]
    pl.DataFrame(slates, schema=columns, orient="row").write_parquet(folder / "slates.parquet")
    meta = json.loads((folder / "run.json").read_text())
    meta["stages"] = [{"name": s, "kind": "Lists", "k": promises} for s in KEEPS]
    meta["log"] |= {"items": 8, "has": {"exposures": True, "price": False, "clicks": True}}
    (folder / "run.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> Path:
    return short_lists(tmp_path_factory.mktemp("lists") / "lists")


def test_the_headline_takes_the_largest_cutoff_that_can_tell(lists, runs):
    run = Run.open(lists)
    by_k = {k: next(r["value"] for r in measure(run, [f"HR@{k}"]) if r["stage"] == "recall") for k in (8, 5, 3)}
    assert by_k[8] == 1 and by_k[5] < 0.995
    assert str(telling([run])) == "HR@5"
    assert str(telling([runs["deep"]])) == "HR@5"  # all that its last stage puts out
    # orders that all have their hit on top
    ledger = pl.col("recall.rank").map_batches(lambda rank: pl.Series([1] * len(rank)), return_dtype=pl.Int64)
    perfect = replace(run, lazy=run.lazy | {"ledger": run.lazy["ledger"].with_columns(ledger)})
    assert str(telling([perfect])) == "MRR@8"
    assert str(telling([run, perfect])) == "MRR@8"  # in every Run


def test_the_report_of_short_lists_draws_no_conclusion_from_a_full_hit_rate(lists, tmp_path):
    page = re.sub(r"<[^>]*>", "", report([lists], tmp_path / "r.html").read_text(encoding="utf-8"))
    verdict = page[page.index("Of 120 clicked items"):][:700]
    assert "are among the 7.5 that rank returns for a request on average" in verdict
    assert "HR@5" in verdict and "HR@10" not in page
    (row,) = against_logged(Run.open(lists), ["gAUC:request:exposures"])
    assert row["better"] == "A" and row["value_a"] > row["value_b"]
    assert "The logged order is better than that of rank in gAUC" in verdict
    assert f"{row['value_a']:.3f} against {row['value_b']:.3f}" in verdict


def test_stages_that_put_out_the_same_rows_are_compared_whatever_they_promise(lists, tmp_path):
    other = Run.open(short_lists(tmp_path / "more", promises=300))
    run = Run.open(lists)
    rows = compare(run, other, ["survival", "MRR", "margin"])
    assert not [r for r in rows if "not compared" in r["note"] or "cut at" in r["note"]]
    assert all(r["difference"] == 0 for r in rows if r["measure"] == "survival")
    note = next(r["note"] for r in measure(run, ["Recall@200"]) if r["stage"] == "rank")
    assert note == "n/a: rank puts out 8"


def test_rows_that_came_out_are_told_where_depths_differ(lists, tmp_path):
    shorter = cut(lists, tmp_path / "cut", 4)
    rows = {(r["measure"], r["stage"]): r for r in compare(Run.open(lists), Run.open(shorter), ["survival", "MRR"])}
    assert "here 7.5, 7.5 against 7.5, 4" in rows["survival", "rank"]["note"]
    assert "cut at 4" in rows["MRR", "rank"]["note"]


def test_values_of_few_requests_are_marked_and_promise_no_effect(runs):
    """48 requests, of which 42 have a relevant item; slices of fewer than 30 are marked."""
    rows = measure(runs["deep"], ["HR@5", "GMV-HR@3", "survival"], slice="target")
    rows += measure(runs["deep"], ["HR@5"])
    stages = [r for r in rows if r["value"] is not None and r["stage"] not in ("random", "ceiling")]
    assert {r["n"] < 30 for r in stages} == {True, False}
    for row in stages:
        few = f"fewer than 30 {'relevant items' if row['measure'] == 'survival' else 'requests'}"
        assert (few in row["note"]) == (row["n"] < 30), row
    assert not [r for r in rows if r["stage"] in ("random", "ceiling") and "fewer" in r["note"]]
    compared = compare(runs["deep"], runs["short"], ["HR@3"], slice="target") + compare(runs["deep"], runs["short"], ["HR@3"])
    assert {r["n"] < 30 for r in compared} == {True, False}
    for row in compared:
        assert (row["smallest_effect"] is None) == ("fewer than 30 requests" in row["note"]) == (row["n"] < 30)
    console = Console(width=100, record=True, file=io.StringIO())
    print_table(measure_table([r for r in compared if r["n"] < 30]), console)
    assert "1. fewer than 30 requests" in console.export_text()


# -- words -----------------------------------------------------------------------------------------


def judged(run: Run, **log: str) -> Run:
    """The Run as if every request had been a topic of its own, which was judged."""
    requests = run.lazy["requests"].with_columns(user_id=pl.col("request_id"))
    return replace(run, meta=run.meta | {"log": run.meta["log"] | log}, lazy=run.lazy | {"requests": requests})


def printed(rows: list[dict]) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    print_table(measure_table(rows), console, verbose=True)
    return " ".join(console.export_text().split())


def test_runs_of_judgements_speak_of_topics_and_of_what_was_judged(runs):
    topics = judged(runs["deep"], judged="abc")
    text = printed(measure(topics, ["HR@3", "survival", "gAUC:request:exposures"]))
    assert "Relevant: judged relevant items. Intervals: 95%, bootstrap over topics." in text
    assert "requests with a relevant judgement" in text and "click" not in text
    assert "bootstrap over topics" in printed(compare(topics, judged(runs["short"], judged="abc"), ["HR@3"]))
    users = replace(runs["deep"], meta=runs["deep"].meta | {"log": runs["deep"].meta["log"] | {"judged": "abc"}})
    for run in (runs["deep"], judged(runs["deep"]), users):  # a log of clicks whose catalogue grew
        assert "Relevant: clicked items. Intervals: 95%, bootstrap over users." in printed(measure(run, ["HR@3"]))
    nobody = runs["deep"].lazy["requests"].with_columns(user_id=pl.lit(None, pl.String))
    nobody = replace(runs["deep"], lazy=runs["deep"].lazy | {"requests": nobody})
    assert "bootstrap over requests" in printed(measure(nobody, ["HR@3"]))


def test_average_precision_without_a_cutoff_takes_the_whole_list(runs):
    whole, cut_at_5 = ({r["stage"]: r["value"] for r in measure(runs["deep"], [m])} for m in ("AP", "MAP@5"))
    assert whole["rank"] == cut_at_5["rank"] and whole["recall"] > cut_at_5["recall"]
    row = next(r for r in compare(runs["deep"], runs["short"], ["MAP"]) if r["stage"] == "rank")
    assert "both cut at 3" in row["note"]


@pytest.mark.parametrize("name", ["price", "repeat"])
def test_a_slice_that_the_log_cannot_tell_is_one_line(lists, name):
    found = CliRunner().invoke(main, ["measure", str(lists), "HR@3", "--slice", name])
    assert found.exit_code != 0
    assert f"--slice {name}: the log has no {'prices' if name == 'price' else 'users'}" in found.output
    assert CliRunner().invoke(main, ["measure", str(lists), "HR@3", "--slice", "target"]).exit_code == 0


def test_the_table_of_a_first_look_asks_what_the_run_can_answer(lists, runs):
    assert default_measures(Run.open(lists)) == ["survival", "HR@5", "nDCG@8", "gAUC:request:exposures"]
    assert default_measures(runs["deep"])[:4] == ["survival", "HR@5", "HR@10", "nDCG@10"]
