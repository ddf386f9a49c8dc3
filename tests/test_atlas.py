"""The atlas of losses and objectives: its rows, and what its pictures show."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from karmafunnel.benchmarks.studies import karma_atlas as atlas
from karmafunnel.benchmarks.studies import karma_atlas_gain as gain
from karmafunnel.benchmarks.studies import karma_atlas_trials as trials
from karmafunnel.benchmarks.studies import karma_pictures as pictures
from karmafunnel.benchmarks.studies import karma_pictures_trials as pictures_trials
from karmafunnel.benchmarks.studies import karma_smollm as smollm
from karmafunnel.benchmarks.studies import karma_smollm_trials as smollm_trials
from karmafunnel.files import say, write_json
from karmafunnel.log import Log
from karmafunnel.models.karma import KARMA, Qwen
from karmafunnel.models.karma.embedder import KarmaEmbedding
from karmafunnel.simulator.ablation.cells import Cell
from karmafunnel.simulator.replay.recipe import load_recipe
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow


def test_every_objective_has_as_many_trials(shop: Log) -> None:
    rows = trials.rows(shop)
    assert len(rows) == len(atlas.LOSSES) * 4 * (1 + len(atlas.OBJECTIVES))
    for loss in atlas.LOSSES:
        mine = [name for name in rows if name.startswith(f"{loss}, ")]
        for objective in ("action-only", *(f"{x} " for x in atlas.OBJECTIVES)):
            assert sum(name.startswith(f"{loss}, {objective}") for name in mine) == 4
    values = [row["interest"] for row in rows.values()]
    assert len(set(map(repr, values))) == len(values)


def test_rows_of_a_loss_differ_in_what_their_names_say(shop: Log) -> None:
    rows = {name: row["interest"] for name, row in atlas.rows(shop).items()}
    for loss, chosen in atlas.chosen_for(shop).items():
        own = {name: value for name, value in rows.items() if name.startswith(f"{loss}, ")}
        low = [name for name in ("action-only", "+gen+rec") if chosen[name][0] < atlas.HIGH]
        high = {x.removeprefix(f"{loss}, ") for x in own if x.endswith(", high rate")}
        more = {"action-only": "action-only, equal compute", "+gen+rec": "+gen+rec, shuffled texts"}
        assert high == {f"{x}, high rate" for name in low for x in (name, more[name])}
        assert len(own) == 6 + len(high)
        for name, value in own.items():
            assert isinstance(value, KARMA) and value.loss == atlas.LOSSES[loss]
            assert value.decoder == "lm" and not value.ids and not value.residual
            assert bool(value.gen) == ("gen" in name) and bool(value.rec) == ("rec" in name)
            if value.gen and value.rec:
                assert value.gen == value.rec
            assert value.shuffled == ("shuffled" in name)
            row = name.removeprefix(f"{loss}, ").partition(",")[0]
            tuned = atlas.chosen_for(shop)[loss][row][0]
            assert value.rate == (atlas.HIGH if "high rate" in name else tuned)
    assert atlas.against in rows


def test_the_atlas_tells_its_hours(shop: Log, capsys: pytest.CaptureFixture[str]) -> None:
    say.cache_clear()  # which tells a line once a process
    recipe = load_recipe("karma_atlas", shop)
    karmas = [row for row in recipe.rows if row.startswith(tuple(f"{x}, " for x in atlas.LOSSES))]
    hours = len(recipe.seeds) * len(karmas) * atlas.MINUTES / 60
    assert f"about {hours:.1f} hours of one core" in capsys.readouterr().err


def test_a_ranker_reads_the_vectors_of_each_loss(shop: Log) -> None:
    recipe = load_recipe("rank_losses", shop)
    values = atlas.values(shop)
    for loss in atlas.chosen_for(shop):
        own = {row for row in recipe.rows if row.startswith(f"{loss}, ")}
        assert own == {f"{loss}, {row}" for row in ("action-only", *atlas.TOLD)}
        for row in own:
            assert recipe.rows[row].embedders["interest"] == values[row]
    plain = recipe.rows[recipe.against].funnel
    assert plain is not None
    for row in {"TF-IDF", "SASRec", "random"}:
        funnel = recipe.rows[row].funnel
        assert funnel is not None and funnel.stages[:-1] == plain.stages[:-1] != funnel.stages


def test_rows_of_smollm_are_tried_as_often_and_tell_their_hours(
    shop: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = [row["interest"] for row in smollm_trials.rows(shop).values()]
    assert "about" in capsys.readouterr().err
    kinds = {(loss, both): 0 for loss in smollm.LOSSES for both in (False, True)}
    names = {value: name for name, value in atlas.LOSSES.items()}
    for value in tried:
        assert isinstance(value, KARMA) and value.backbone == smollm.MODEL
        assert value.gen == value.rec and value.decoder == "lm"
        kinds[names[value.loss], value.gen > 0] += 1
    assert set(kinds.values()) == {4} and len(set(map(repr, tried))) == 16
    found = {name: row["interest"] for name, row in smollm.rows(shop).items()}
    assert smollm.against in found and smollm_trials.against in smollm_trials.rows(shop)
    for loss in smollm.LOSSES:
        right, other = found[f"{loss}, +gen+rec"], found[f"{loss}, +gen+rec, shuffled texts"]
        assert isinstance(right, KARMA) and other == replace(right, shuffled=True)
        alone = found[f"{loss}, action-only"]
        assert isinstance(alone, KARMA) and not alone.gen and not alone.rec and alone.watch


def test_pictures_have_as_many_trials_as_their_controls_and_a_shuffled_row(shop: Log) -> None:
    tried = {name: row["interest"] for name, row in pictures_trials.rows(shop).items()}
    kinds = [re.split(", (?:weight|rate) ", name)[0] for name in tried]
    assert {kinds.count(kind) for kind in kinds} == {4} and pictures_trials.against in tried
    assert len(set(map(repr, tried.values()))) == len(tried)
    found = {name: row["interest"] for name, row in pictures.rows(shop).items()}
    assert set(kinds) <= set(found) and pictures.against in kinds
    for how, loss in pictures.SEE.items():
        value = found[f"see by {how}"]
        assert isinstance(value, KARMA) and value.see_by == loss and value.see == 0.3
        assert found[f"see by {how}, shuffled pictures"] == replace(value, shuffled=True)


def test_gains_are_taken_at_the_same_rate() -> None:
    def line(row: str, value: float) -> dict[str, object]:
        return {"row": f"pairwise, {row}", "values": {atlas.QUALITY: {"value": value}}}

    lines = [
        line("action-only", 0.25),
        line("+gen+rec", 0.28),
        line("+gen+rec, shuffled texts", 0.26),
        line("action-only, high rate", 0.18),
        line("+gen+rec, high rate", 0.27),
    ]
    chosen = {"action-only": (3e-4, 0.0), "+gen+rec": (3e-4, 0.1)}
    points = atlas.gains("office", "pairwise", lines, chosen)
    assert {(x["row"], x["alone"]): x["gain"] for x in points} == {
        ("+gen+rec", 0.25): pytest.approx(0.03),
        ("+gen+rec, shuffled texts", 0.25): pytest.approx(0.01),
        ("+gen+rec, high rate", 0.18): pytest.approx(0.09),
    }
    points += atlas.gains("world", "masked NCE", [], {})
    assert {x["log"] for x in points} == {"office"}
    drawn = [trace for trace in atlas.gain_figure(points)["data"] if trace["y"] != [None]]
    assert [trace["marker"]["symbol"] for trace in drawn] == ["circle", "circle-open", "diamond"]


def test_a_row_whose_chosen_rate_is_high_is_held_against_the_loss_at_that_rate() -> None:
    def lines(**values: float) -> list[dict[str, object]]:
        named = {"alone": "action-only", "both": "+gen+rec", "other": "+gen+rec, shuffled texts"}
        named["high"] = "action-only, high rate"
        return [
            {"row": f"in-batch softmax, {named[x]}", "values": {atlas.QUALITY: {"value": value}}}
            for x, value in values.items()
        ]

    def points(chosen: dict[str, atlas.Setting], **values: float) -> dict[str, tuple[float, float]]:
        found = atlas.gains("office", "in-batch softmax", lines(**values), chosen)
        return {x["row"]: (x["alone"], pytest.approx(x["gain"])) for x in found}

    rates = {"action-only": (3e-4, 0.0), "+gen+rec": (atlas.HIGH, 0.1)}
    assert points(rates, alone=0.25, both=0.28, other=0.27, high=0.2) == {
        "+gen+rec": (0.25, 0.03),
        "+gen+rec, shuffled texts": (0.25, 0.02),
        "+gen+rec, high rate": (0.2, 0.08),
        "+gen+rec, shuffled texts, high rate": (0.2, 0.07),
    }
    # one comparison where both were chosen there, or at a rate that is higher
    for rate in (atlas.HIGH, 2e-3):
        both = {"action-only": (rate, 0.0), "+gen+rec": (rate, 0.1)}
        assert points(both, alone=0.25, both=0.28) == {"+gen+rec": (0.25, 0.03)}
    # digits that a table does not show are not lost
    exact = points(rates, alone=0.25, both=0.2213, high=0.1615)
    assert exact["+gen+rec, high rate"][1] == pytest.approx(0.0598, abs=1e-9)


def test_twice_the_passes_do_not_hide_half_of_them(tmp_path: Path) -> None:
    act = {"action-only": [3.0, 2.0], "action-only, equal compute": [3.0, 2.0, 1.0, 0.5]}
    act["action-only, equal compute, high rate"] = [5.0, 4.0]
    cells = [Cell(f"pairwise, {name}", 0, tmp_path / name, "key") for name in act]
    for cell, values in zip(cells, act.values(), strict=True):
        watched = [{"step": 10 * i, "act": x, atlas.RANK: 9} for i, x in enumerate(values, 1)]
        write_json(cell.folder / "facts.json", {"fit": {"watched": watched}})
    figure = atlas.step_figure("pairwise", cells)
    assert figure is not None
    drawn = {line["name"]: list(line["x"]) for line in figure["data"] if line["yaxis"] == "y"}
    assert drawn == {
        "action-only": [10, 20],
        "action-only, equal compute": [20, 30, 40],
        "action-only, equal compute, high rate": [10, 20],
    }
    assert sum("rank 1" in note["text"] for note in figure["layout"]["annotations"]) == 1


def test_steps_come_from_the_fit_of_each_cell(tmp_path: Path) -> None:
    cells = [Cell(name, 0, tmp_path / name, "key") for name in ("a", "b")]
    watched = [{"step": n, "act": 1 / n, **({"rank": n} if n > 10 else {})} for n in (10, 20, 30)]
    write_json(cells[0].folder / "facts.json", {"fit": {"watched": watched}})
    write_json(cells[1].folder / "facts.json", {"fit": {}})
    assert atlas.steps(cells, "rank") == [
        {"row": "a", "step": 20, "value": 20},
        {"row": "a", "step": 30, "value": 30},
    ]
    assert np.allclose([x["value"] for x in atlas.steps(cells, "act")], [1 / 10, 1 / 20, 1 / 30])


def test_the_published_gains_are_those_of_the_tables() -> None:
    points = {(x["log"], x["loss"], x["row"]): x for x in gain.published()}
    for log in gain.PUBLISHED:
        for row in atlas.TOLD:
            assert {loss for name, loss, one in points if (name, one) == (log, row)} == set(atlas.LOSSES)
    table = (gain.TABLES / "karma_atlas_office_pairwise_high_rate.md").read_text("utf-8")
    high = points["amazon_office", "pairwise", "+gen+rec, high rate"]
    paired = re.search(r"high rate \| 3 (?:\| [^|]+){2}\| \+([\d.]+) ", table.partition("**differences")[2])
    assert paired and abs(high["gain"] - float(paired[1])) < 0.0015  # of rounded values
    assert f"| {high['alone']:.3f} \\[" in table


TINY = Qwen(dim=32, layers=2, heads=2, kv_heads=1, mlp=64, vocab=400, context=48, tokens=4000)
RECIPE = """
from dataclasses import replace
from karmafunnel.benchmarks.studies import karma_atlas as atlas
from karmafunnel.models.karma import KARMA, Qwen

funnel, against, measures, seeds = atlas.funnel, atlas.against, ("HR@10", "HR@200"), (1,)
KEPT = ("action-only", "+gen+rec", "+gen+rec, shuffled texts", "action-only, high rate")
SMALL = {"backbone": TINY, "dim": 16, "batch": 16, "epochs": 1, "watch": 4}

def rows(log):
    found = {name: row["interest"] for name, row in atlas.rows(log).items()}
    kept = {f"pairwise, {row}": found[f"pairwise, {row}"] for row in KEPT}
    karmas = {name: {"interest": replace(value, **SMALL)} for name, value in kept.items()}
    return karmas | {name: {"interest": found[name]} for name in ("TF-IDF", "random")}
"""


def test_the_whole_command_on_finished_cells(
    shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, log, out = tmp_path / "small.py", tmp_path / "shop", tmp_path / "out"
    recipe.write_text(RECIPE.replace("TINY", repr(TINY)), encoding="utf-8")
    shop.write(log)
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    chosen = {"pairwise": atlas.CHOSEN["amazon_office"]["pairwise"]}
    monkeypatch.setattr(atlas, "CHOSEN", {"amazon_office": chosen})
    monkeypatch.setattr(atlas, "load_recipe", lambda _, log: load_recipe(str(recipe), log))
    whole = KarmaEmbedding.attention_map
    # as where queries differ in length: a slice of a larger array
    monkeypatch.setattr(KarmaEmbedding, "attention_map", lambda *x: whole(*x)[:, :-1, :-1])

    def call(minutes: str) -> str:
        ran = CliRunner().invoke(atlas.main, [str(log), "--out", str(out), "--minutes", minutes])
        assert ran.exit_code == 0, ran.output
        return ran.output

    assert "6 cells to make" in call("0")  # nothing is made, and nothing fails for it
    assert "+gen+rec" not in (out / "atlas.md").read_text("utf-8")
    call("9")
    made = (out / "atlas.md").read_text("utf-8")
    for row in ("action-only", "+gen+rec", "+gen+rec, shuffled texts", "action-only, high rate"):
        assert f"| pairwise, {row} |" in made
    assert "other embeddings" in made and "| TF-IDF |" in made and "| random |" in made
    assert "0 cells to make" in call("0") and (out / "atlas.md").read_text("utf-8") == made
    page = (out / "atlas.html").read_text("utf-8")
    assert "What both objectives add to a loss" in page and "shop: pairwise" in page
    for figure in ("effective rank, interests", "perplexity given history", "+gen+rec, layer 2"):
        assert figure in page
    # each row of a map is a share of 1
    for file in (out / "shop" / "cells").rglob("attention.safetensors"):
        maps = load_file(file)["maps"]
        assert np.allclose(maps.sum(axis=-1), 1, atol=1e-4) and np.allclose(np.triu(maps, 1), 0)


def test_figures_over_steps_have_a_look_for_each_row(tmp_path: Path) -> None:
    names = ["action-only", "+gen+rec", "action-only, high rate", "+gen+rec, high rate"]
    cells = [Cell(f"pairwise, {name}", 0, tmp_path / name, "key") for name in names]
    for cell in cells:
        write_json(cell.folder / "facts.json", {"fit": {"watched": [{"step": 10, "act": 1.0}]}})
    figure = atlas.step_figure("pairwise", cells)
    assert figure is not None
    looks = {line["name"]: (line["line"]["color"], line["line"]["dash"]) for line in figure["data"]}
    assert list(looks) == names and len(set(looks.values())) == 4
    assert looks["action-only"][0] == looks["action-only, high rate"][0]
    assert atlas.step_figure("pairwise", []) is None and atlas.attention("pairwise", cells) is None
