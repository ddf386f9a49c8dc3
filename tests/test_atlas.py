"""The atlas of losses and objectives: its rows, and what its pictures show."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from karmafunnel.benchmarks.studies import karma_atlas as atlas
from karmafunnel.benchmarks.studies import karma_atlas_trials as trials
from karmafunnel.benchmarks.studies import karma_smollm as smollm
from karmafunnel.benchmarks.studies import karma_smollm_trials as smollm_trials
from karmafunnel.files import write_json
from karmafunnel.log import Log
from karmafunnel.models.karma import KARMA
from karmafunnel.simulator.ablation.cells import Cell

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
    for loss in atlas.chosen_for(shop):
        own = {name: value for name, value in rows.items() if name.startswith(f"{loss}, ")}
        assert len(own) == 9
        for name, value in own.items():
            assert isinstance(value, KARMA) and value.loss == atlas.LOSSES[loss]
            assert value.decoder == "lm" and not value.ids and not value.residual
            assert bool(value.gen) == ("gen" in name) and bool(value.rec) == ("rec" in name)
            if value.gen and value.rec:
                assert value.gen == value.rec
            assert value.shuffled == ("shuffled" in name)
            assert (value.rate == atlas.HIGH) == ("high rate" in name)
    assert atlas.against in rows


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
    found = {(x["row"], x["alone"]): x["value"] for x in atlas.gains("office", "pairwise", lines)}
    assert found == {
        ("+gen+rec, office", 0.25): pytest.approx(0.03),
        ("+gen+rec, shuffled texts, office", 0.25): pytest.approx(0.01),
        ("+gen+rec, office", 0.18): pytest.approx(0.09),
    }


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
