"""What the last stage adds, of Runs put together."""

from pathlib import Path

import numpy as np
import pytest
from karmafunnel.benchmarks.studies.stacking import Gain, gains, together
from karmafunnel.log import Log
from karmafunnel.simulator.measure.compare import Run, measure
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.replay import replay

RECIPE = """
from karmafunnel.stages.features import Own, Popularity
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import Popular

funnel = Popular(k=100) >> LightGBMRank(k=50, features=[Popularity(), Own()], trees=20)
"""


def test_it_is_the_difference_of_the_two_last_stages(shop: Log, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RECIPE)
    run = Run.open(replay(load_recipe(str(tmp_path / "mine.py"), shop), shop, tmp_path / "run"))
    found = gains(run, draws=200)
    rows = {(row["stage"], row["measure"]): row["value"] for row in measure(run, list(found))}
    assert {"HR@10", "GMV-HR@10", "gAUC:request:exposures"} <= set(found)
    for name, gain in found.items():
        assert gain.before == pytest.approx(rows["recall", name])
        assert gain.after == pytest.approx(rows["rank", name])
        assert gain.samples.mean() == pytest.approx(gain.after - gain.before, abs=0.03)
    assert found["HR@10"].after > found["HR@10"].before


def test_the_end_is_held_against_the_end_of_another_run(shop: Log, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RECIPE)
    (tmp_path / "lesser.py").write_text(
        "from karmafunnel.stages.recall import Popular\nfunnel = Popular(k=100)"
    )
    runs = []
    for name in ("mine", "lesser"):
        recipe = load_recipe(str(tmp_path / f"{name}.py"), shop)
        runs.append(Run.open(replay(recipe, shop, tmp_path / f"run-{name}")))
    adds, over = gains(runs[0], draws=200), gains(*runs, draws=200)
    assert over["HR@10"].before == pytest.approx(adds["HR@10"].before)  # the same Popular
    assert over["HR@10"].after == pytest.approx(adds["HR@10"].after)
    turned = gains(runs[1], runs[0], draws=200)["HR@10"]
    assert np.allclose(turned.samples, -over["HR@10"].samples)


def test_runs_together_are_the_mean_and_vary_between_them() -> None:
    one, other = (Gain(0.5, 0.5 + gain, 10, np.full(1000, gain)) for gain in (0.1, 0.3))
    cell = together([{"HR@10": one}, {"HR@10": other}])["HR@10"]
    assert (cell.text, cell.small) == ("+0.200", "[+0.100, +0.300]")
