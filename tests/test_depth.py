"""Runs of different depth: a longer list is no better for being longer, whatever is measured."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from karmafunnel.simulator.measure.attribution import attribute
from karmafunnel.simulator.measure.compare import Run, added, compare, measure
from karmafunnel.simulator.measure.measures.measure import END, Measure, kinds
from karmafunnel.simulator.report.measure_table import define
from karmafunnel.simulator.report.run_page import report
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
