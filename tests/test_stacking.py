"""What the last stage adds, of Runs put together."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from karmafunnel.benchmarks.studies import pareto, prerank_consistency, stacking
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


def asked(shop: Log, folder: Path, *words: str, recipe: str = RECIPE):
    (folder / "mine.py").write_text(recipe)
    if not (folder / "shop").exists():
        shop.write(folder / "shop")
    given = ["--recipe", str(folder / "mine.py"), "--out", str(folder / "out")]
    return CliRunner().invoke(stacking.main, ["--log", str(folder / "shop"), *given, *words])


def test_a_run_of_other_requests_or_of_another_funnel_is_not_taken_for_this_one(shop, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    done = asked(shop, tmp_path)
    assert done.exit_code == 0 and "| all |" in done.output
    assert "| all |" in asked(shop, tmp_path).output  # its own Run is taken
    for words, recipe in ((("--limit", "3"), RECIPE), ((), RECIPE.replace("k=100", "k=90"))):
        other = asked(shop, tmp_path, *words, recipe=recipe)
        assert other.exit_code == 1 and "holds a Run with" in other.output and "| all |" not in other.output


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--worlds", "9-5"), "the lower one first"),
        (("--worlds", "x"), "two seeds such as 100-109"),
        (("--log", "nowhere"), "nowhere: needs a log folder"),
        (("--log", "nowhere", "--limit", "0"), "needs a whole number"),
        (("--log", ""), "found an empty text"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_is_told_in_a_line(words, complaint, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(stacking.main, list(words))
    assert done.exit_code in (1, 2) and complaint in done.output and "Traceback" not in done.output


@pytest.mark.parametrize("command", [pareto.main, prerank_consistency.main])
def test_tables_with_figures_tell_bad_input_in_a_line(command, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["nowhere"], ["nowhere", "--limit", "0"], ["nowhere", "--window", "W9"]):
        done = CliRunner().invoke(command, words)
        assert done.exit_code in (1, 2) and "rror: " in done.output and not list(tmp_path.iterdir())


def test_one_stage_or_one_user_has_no_gain(shop, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    one_stage = RECIPE.split("funnel =")[0] + "funnel = Popular(k=100)\n"
    assert "needs two stages or more" in asked(shop, tmp_path, recipe=one_stage).output
    assert "requests of two users or more" in asked(shop, tmp_path, "--limit", "1", "--seed", "1").output
