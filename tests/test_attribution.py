"""Attribution: games worked out by hand, slow references, planted stages, a real grid of funnels,
the waterfall.
"""

import json
from dataclasses import dataclass
from itertools import permutations
from math import factorial
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import hash_ids
from karmafunnel.simulator.measure.attribution import attribute, grid, shapley, subsets
from karmafunnel.simulator.measure.compare import Run, compare, measure
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import Recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.report.attribution_plot import attribution_figure, attribution_table
from karmafunnel.simulator.report.table import to_markdown
from karmafunnel.stages.context import Context
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.rows import Rows
from karmafunnel.stages.stage import FittedStage, Funnel, Stage

pytestmark = pytest.mark.slow

END = "end to end"
NAMES = ["HR@5", "MRR", "GMV-HR@2", "survival", "AUC", "gAUC:request:exposures"]


def by_orders(values: dict) -> dict:
    """The Shapley value as it is defined: the mean gain of a member over all orders of joining."""
    everybody = max(values, key=len)
    parts = dict.fromkeys(everybody, 0.0)
    for order in permutations(sorted(everybody)):
        for i, one in enumerate(order):
            parts[one] += (values[frozenset(order[: i + 1])] - values[frozenset(order[:i])]) / factorial(len(order))
    return parts


@given(st.integers(1, 4), st.lists(st.floats(-5, 5), min_size=16, max_size=16))
def test_parts_are_means_over_all_orders_and_sum_to_the_change(n, worth):
    values = dict(zip(subsets("abcd"[:n]), worth, strict=False))
    parts = shapley(values)
    assert parts == pytest.approx(by_orders(values), abs=1e-12)
    assert sum(parts.values()) == pytest.approx(values[frozenset("abcd"[:n])] - values[frozenset()], abs=1e-12)


def test_gloves_by_hand():
    """One left glove and two right ones, a pair is worth 1: the left one gets 2/3, each right one
    1/6.
    """
    parts = shapley({some: float("l" in some and len(some) > 1) for some in subsets(["l", "r", "s"])})
    assert parts == pytest.approx({"l": 2 / 3, "r": 1 / 6, "s": 1 / 6})


# -- Runs that are made ----------------------------------------------------------------------------
# One relevant item a request, shown with another. Ranked first, second (where `second`) or lost, as
# a draw falls below a chance.

USERS, EACH = 60, 4
N = USERS * EACH


def made(folder: Path, chance: np.ndarray, seed: int = 0, checksum: str = "c0ffee", n: int = N, name: str = "rank") -> Run:
    """A Run in which a request's truth is found with its `chance` (N,); luck is the log's own, and
    a bit of it the seed's.
    """
    luck = np.random.default_rng(7).random(N) + 0.01 * np.random.default_rng([seed, int(chance.sum() * 1e6)]).standard_normal(N)
    place = [1 if x < c / 2 else 2 if x < c else None for x, c in zip(luck, chance, strict=True)]
    ids = [f"r{i:03d}" for i in range(N)]
    score = [1.0 if p == 1 else 0.5 if p else 0.0 for p in place]
    tables = {
        "requests": {
            "request_id": ids, "user_id": [f"u{i // EACH}" for i in range(N)], "n_truth": [1] * N, "n_eligible": [50] * N,
            "n_truth_eligible": [1] * N, "has_query": [i % 2 == 0 for i in range(N)], "new_user": [False] * N,
            f"{name}.n": [50] * N, f"{name}.out": [5] * N,
        },
        "ledger": {
            "request_id": ids, "item_id": ["t"] * N, "money": [1.0 + i % 9 for i in range(N)], "quantity": [1] * N,
            "eligible": [True] * N, "target": ["head"] * N, "repeat": [False] * N, "price_band": ["low"] * N,
            f"{name}.rank": place, f"{name}.wins": [49.0 if p else None for p in place],
            "lost": [None if p else name for p in place], "margin": [None if p else 3 for p in place],
        },
        "scored": {
            "request_id": ids * 2, "item_id": ["t"] * N + ["o"] * N, "position": [1] * N + [2] * N,
            "clicked": [True] * N + [False] * N, "purchased": [True] * N + [False] * N, "eligible": [True] * 2 * N,
            f"{name}.score": score + [0.6] * N,
        },
        "slates": {"request_id": ids, "stage": [name] * N, "item_id": ["t"] * N, "rank": [1] * N, "score": [0.0] * N, "channel": [""] * N},
        "timing": {"chunk": [0], "stage": [name], "requests": [N], "rows_in": [N], "rows_out": [N], "seconds": [0.1]},
    }  # fmt: skip
    folder.mkdir(parents=True)
    for table, columns in tables.items():
        frame = pl.DataFrame(columns)
        frame = frame.filter(pl.col("request_id").is_in(ids[:n])) if "request_id" in columns else frame
        frame.write_parquet(folder / f"{table}.parquet")
    meta = {
        "label": "purchase", "seed": seed, "window": "W3", "stages": [{"name": name, "kind": "X", "k": 5}],
        "log": {"name": "corner shop", "checksum": checksum, "currency": "EUR", "has": {}, "catalogue": "seen"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(meta))
    return Run.open(folder)


def runs_of(folder: Path, adds: dict[str, float], seeds: int = 3, together: float = 0.0) -> dict:
    """Runs of every subset: each stage that is on adds to the chance of all requests; all of them
    together add more.
    """
    base = np.repeat(np.random.default_rng(3).uniform(0.1, 0.5, USERS), EACH)
    found = {}
    for some in subsets(list(adds)):
        chance = base + sum(adds[s] for s in some) + together * (len(some) == len(adds))
        found[some] = [made(folder / ("-".join(sorted(some)) or "none") / str(s), chance, s) for s in range(seeds)]
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict:
    return runs_of(tmp_path_factory.mktemp("grid"), {"recall": 0.2, "prerank": 0.0, "rank": 0.1}, together=0.1)


@pytest.fixture(scope="module")
def rows(runs) -> dict:
    return {(r["measure"], r["stage"]): r for r in attribute(runs, NAMES, seed=5)}


@pytest.mark.parametrize("name", NAMES)
def test_every_part_equals_the_slow_reference(runs, rows, name):
    def value(some: frozenset) -> float:
        found = measure(runs[some], [name], ci=False)
        return next(r["value"] for r in reversed(found) if r["stage"] == (END if name == "survival" else "rank"))

    values = {some: value(some) for some in runs}
    for stage, part in by_orders(values).items():
        row = rows[name, stage]
        assert row["value"] == pytest.approx(part, abs=1e-12)
        assert row["alone"] == pytest.approx(values[frozenset({stage})] - values[frozenset()])
        assert row["last"] == pytest.approx(values[max(runs, key=len)] - values[max(runs, key=len) - {stage}])
        assert row["low"] < row["value"] < row["high"] and row["seeds"] == 3


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_sum_to_what_compare_says_of_the_ends(runs, rows, name):
    everybody = max(runs, key=len)
    end, parts = rows[name, END], [rows[name, stage] for stage in everybody]
    told = compare(runs[frozenset()], runs[everybody], [name], seed=5)
    told = next(r for r in told if r["stage"] == (END if name == "survival" else "rank"))
    assert sum(row["value"] for row in parts) == pytest.approx(end["value"], abs=1e-12)
    assert end["value"] == pytest.approx(end["on"] - end["off"], abs=1e-12) and end["value"] == pytest.approx(told["difference"])
    assert (end["off"], end["on"]) == pytest.approx((told["value_a"], told["value_b"]))
    assert [end[c] for c in ("low", "high", "p")] == pytest.approx([told[c] for c in ("low", "high", "p")])
    assert sum(row["share"] for row in parts) == pytest.approx(1) and end["share"] == 1
    assert (end["n"], end["unit"], end["denominator"]) == (told["n"], told["unit"], told["denominator"])


def test_a_useful_stage_is_found_and_a_useless_one_is_not(rows):
    for name in NAMES:
        assert (rows[name, "recall"]["better"], rows[name, "recall"]["holm"]) == ("on", True), name
        assert rows[name, "recall"]["value"] > rows[name, "rank"]["value"] > 0
    for name in ("HR@5", "survival"):
        # What all three do together is a third each: the useless stage, too, is needed for it, and
        # alone adds nothing.
        assert rows[name, "prerank"]["value"] == pytest.approx(0.1 / 3, abs=0.02)
        assert abs(rows[name, "prerank"]["alone"]) < 0.02 and rows[name, "prerank"]["last"] == pytest.approx(0.1, abs=0.03)


def test_no_effect_no_harm_no_share(tmp_path):
    found = {r["stage"]: r for r in attribute(runs_of(tmp_path / "a", {"recall": 0.25, "prerank": 0.0, "rank": -0.15}), ["HR@5"])}
    assert list(found) == ["rank", "prerank", "recall", END]  # what the funnel has, then the others
    assert [found[s]["better"] for s in ("recall", "prerank", "rank", END)] == ["on", "", "off", "on"]
    assert not found["prerank"]["holm"] and abs(found["prerank"]["value"]) < 0.01 and found["rank"]["share"] < 0
    nothing = attribute(runs_of(tmp_path / "b", {"recall": 0.0, "rank": 0.0}), ["HR@5"])
    assert all((row["better"], row["share"]) == ("", None) for row in nothing)


def test_the_sign_must_hold_in_every_seed(tmp_path):
    base, more = np.full(N, 0.3), np.full(N, 0.5)
    off = [made(tmp_path / f"off{s}", base, s) for s in range(4)]
    good = [made(tmp_path / f"on{s}", more, s) for s in range(4)]
    assert attribute({frozenset(): off, frozenset({"rank"}): good}, ["HR@5"])[0]["better"] == "on"
    mixed = [*good[:3], made(tmp_path / "worse", base - 0.02, 3)]
    row = attribute({frozenset(): off, frozenset({"rank"}): mixed}, ["HR@5"])[0]
    assert row["low"] > 0 and row["better"] == ""


def test_lower_is_better_turns_the_side(tmp_path):
    def calibrated(folder: Path, p: float) -> Run:
        run = made(folder, np.full(N, 0.5))
        frame = run.read("scored").with_columns(pl.when("purchased").then(p).otherwise(1 - p).alias("rank.p"))
        frame.write_parquet(run.path / "scored.parquet")
        return Run.open(run.path)

    pair = {frozenset(): calibrated(tmp_path / "off", 0.6), frozenset({"rank"}): calibrated(tmp_path / "on", 0.9)}
    row = attribute(pair, ["logloss"])[0]
    assert row["value"] == pytest.approx(np.log(0.6) - np.log(0.9)) and row["better"] == "on"
    assert attribute(pair, ["margin"])[0]["better"] == ""


def test_what_has_no_value_says_why(runs):
    found = {(r["measure"], r["stage"]): r for r in attribute(runs, ["HR@6", "ceiling", "overlap@1", "HR@5"])}
    assert found["HR@6", "recall"]["note"] == "n/a: rank puts out 5"
    assert found["ceiling", END]["note"] == "n/a: no value at the end of a funnel"
    assert "a stage and the next one" in found["overlap@1", "rank"]["note"]
    assert all(row["value"] is None for (name, _), row in found.items() if name != "HR@5")
    assert found["HR@5", "recall"]["value"] > 0
    json.dumps(list(found.values()), allow_nan=False)


def test_slices_and_single_runs(runs):
    firsts = {some: many[0] for some, many in runs.items()}
    found = {(r["slice"], r["stage"]): r for r in attribute(firsts, ["HR@5"], slice="query")}
    whole = {r["stage"]: r["value"] for r in attribute(firsts, ["HR@5"])}
    for stage, value in whole.items():
        halves = [found[f"query={part}", stage] for part in ("with", "without")]
        assert np.mean([row["value"] for row in halves]) == pytest.approx(value) and halves[0]["n"] == N // 2


def test_same_seed_same_rows(runs):
    assert attribute(runs, ["MRR"], seed=1) == attribute(dict(reversed(runs.items())), ["MRR"], seed=1)


def test_holes_and_strangers_are_refused(tmp_path, runs):
    both, one, none = frozenset({"recall", "rank"}), frozenset({"rank"}), frozenset()
    some = {s: many for s, many in runs.items() if s <= both}
    with pytest.raises(KarmafunnelError, match=r"every subset of \['rank', 'recall'\], found none for nothing on, rank$"):
        attribute({s: many for s, many in some.items() if s not in (one, none)}, ["HR@5"])
    with pytest.raises(KarmafunnelError, match="as many seeds for every subset, found 3 for nothing on and 1 for rank"):
        attribute(some | {one: runs[one][:1]}, ["HR@5"])
    with pytest.raises(KarmafunnelError, match="needs 1 to 4 stages to switch on, found 5"):
        attribute({frozenset("abcde"): runs[none]}, ["HR@5"])
    with pytest.raises(KarmafunnelError, match="needs 1 to 4 stages to switch on, found 0"):
        attribute({none: runs[none]}, ["HR@5"])
    with pytest.raises(KarmafunnelError, match=r"Runs of one log, found corner shop \(c0ffee\) in .* and corner shop \(beef\)"):
        attribute({none: runs[none][0], one: made(tmp_path / "other", np.full(N, 0.5), checksum="beef")}, ["HR@5"])
    with pytest.raises(KarmafunnelError, match=r"same requests, found 240 in .* and 100 in .*few"):
        attribute({none: runs[none][0], one: made(tmp_path / "few", np.full(N, 0.5), n=100)}, ["HR@5"])
    with pytest.raises(KarmafunnelError, match="no such measure"):
        attribute(some, ["hits"])


# -- the grid --------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Fan(Stage):
    """Knows what the shop's users like, as much as `skill` says; the rest is a throw of the dice.
    """

    skill: float = 0.0
    k: int = 10
    name: str = "rank"

    def fit(self, context: Context, upstream: object) -> FittedStage:
        return FittedFan(self, context)


class FittedFan(FittedStage):
    def __init__(self, stage: Fan, context: Context):
        self.stage, self.context = stage, context
        self.user = np.array([int(u[1:]) for u in context.log.requests["user_id"]])

    def score(self, rows: Rows) -> np.ndarray:
        request, item = rows.request, rows.item
        pairs = np.array([f"{r} {i}" for r, i in zip(request, item, strict=True)], dtype=object)
        dice = (hash_ids(pairs, self.context.seed + self.stage.k) >> np.uint64(11)) * 2.0**-53
        return (dice + self.stage.skill * (item % 7 == self.user[request] % 7)).astype(np.float32)


OFF = Funnel((Popular(k=120),)) >> Fan(k=60, name="prerank") >> Fan(k=20)
ON = {"rank": Fan(k=20, skill=2.0), "prerank": Fan(k=61, name="prerank")}


def test_the_grid_is_every_subset_as_typed():
    found = grid(OFF, ON)
    recall, coarse, fine = OFF.stages
    assert found == {
        frozenset(): OFF, frozenset({"prerank"}): recall >> ON["prerank"] >> fine, frozenset({"rank"}): recall >> coarse >> ON["rank"],
        frozenset({"prerank", "rank"}): recall >> ON["prerank"] >> ON["rank"],
    }  # fmt: skip
    assert list(found)[1:3] == [frozenset({"prerank"}), frozenset({"rank"})]
    assert grid(OFF, {"prerank": None})[frozenset({"prerank"})] == recall >> fine
    with pytest.raises(KarmafunnelError, match=r"found \['rerank'\]"):
        grid(OFF, {"rerank": fine})
    with pytest.raises(KarmafunnelError, match=r"\['rank'\] needs to differ when switched on, found Fan\(k=20\) both times"):
        grid(OFF, ON | {"rank": fine})
    with pytest.raises(KarmafunnelError, match="needs 1 to 4 stages to switch on, found 0"):
        grid(OFF, {})


def test_a_stage_that_knows_and_one_that_does_not_in_a_real_funnel(shop, tmp_path):
    runs = {}
    for some, funnel in grid(OFF, ON).items():
        recipe = Recipe("fan", "fan", funnel, {}, "click")
        runs[some] = [
            Run.open(replay(recipe, shop, tmp_path / f"{'-'.join(sorted(some))}{seed}", RunOptions(seed=seed))) for seed in range(3)
        ]
    found = {(r["measure"], r["stage"]): r for r in attribute(runs, ["HR@10", "GMV-HR@10"])}
    assert list(found)[:3] == [("HR@10", "prerank"), ("HR@10", "rank"), ("HR@10", END)]
    for name in ("HR@10", "GMV-HR@10"):
        assert (found[name, "rank"]["better"], found[name, "rank"]["holm"]) == ("on", True)
        assert found[name, "prerank"]["better"] == "" and found[name, "rank"]["share"] > 0.8
        parts = found[name, "prerank"]["value"] + found[name, "rank"]["value"]
        assert parts == pytest.approx(found[name, END]["on"] - found[name, END]["off"], abs=1e-12)


# -- the waterfall ---------------------------------------------------------------------------------


def test_the_waterfall_goes_from_off_to_on(rows):
    plot = attribution_figure([row for row in rows.values() if row["measure"] in ("HR@5", "AUC")])
    go.Figure(plot)  # plotly accepts it
    for measure_name, axis in (("HR@5", "x"), ("AUC", "x2")):
        mine = [trace for trace in plot["data"] if trace["xaxis"] == axis]
        bars, ends = mine[:-1], mine[-1]
        assert [bar["y"] for bar in bars] == [["rank"], ["prerank"], ["recall"]]
        at = rows[measure_name, END]["off"]
        for bar in bars:
            row = rows[measure_name, bar["y"][0]]
            assert bar["base"] == [pytest.approx(at)] and bar["x"] == [row["value"]]
            assert bar["error_x"]["array"][0] == pytest.approx(row["high"] - row["value"])
            assert bar["error_x"]["arrayminus"][0] == pytest.approx(row["value"] - row["low"])
            at += row["value"]
        assert ends["x"] == [rows[measure_name, END][side] for side in ("off", "on")] and at == pytest.approx(ends["x"][1])
    words = [note["text"] for note in plot["layout"]["annotations"]]
    assert "<b>HR@5</b>" in words and any(w.startswith("+") and w.endswith("**") for w in words)


def test_the_table_says_what_the_rows_say(rows):
    lines = to_markdown(attribution_table([row for row in rows.values() if row["measure"] in ("HR@5", "AUC")])).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0] == ["", "HR@5", "AUC"]
    assert [line[0] for line in cells[2:]] == ["none on", "rank", "prerank", "recall", "all of them", "all on"]
    row = rows["HR@5", "recall"]
    expected = f"+{row['value']:.3f} [+{row['low']:.3f}, +{row['high']:.3f}]** ({row['share']:.0%})"
    assert cells[5][1].replace("\\", "") == expected
    assert [cells[2][2], cells[-1][2]] == [f"{rows['AUC', END][side]:.3f}" for side in ("off", "on")]
    assert "8 funnels, 3 seeds" in lines[-1] and f"n {N}." in lines[-3]


@pytest.mark.parametrize("of", [attribution_figure, attribution_table])
def test_a_waterfall_needs_values_of_one_slice(runs, of):
    with pytest.raises(KarmafunnelError, match="rows with a value, found none among 4"):
        of(attribute(runs, ["HR@6"]))
    with pytest.raises(KarmafunnelError, match="rows of one slice"):
        of(attribute(runs, ["HR@5"], slice="query"))
