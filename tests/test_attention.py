"""Attention pictures: first and last layer of every variant, on one scale."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from karmafunnel.errors import KarmafunnelError
from karmafunnel.simulator.report.attention_plot import attention_figure, main
from safetensors.numpy import save_file


def test_first_and_last_layer_of_every_variant() -> None:
    maps = {"a": np.stack([np.tril(np.full((3, 3), 0.25))] * 4), "b": np.ones((1, 2, 2))}
    plot = attention_figure(maps)
    assert [note["text"] for note in plot["layout"]["annotations"]] == [
        "<b>a, layer 1</b>",
        "<b>a, layer 4</b>",
        "<b>b, layer 1</b>",
    ]
    first = np.array(plot["data"][0]["z"], dtype=float)
    assert first[2].tolist() == [0.5, 0.5, 0.5] and np.isnan(first[0, 1:]).all()
    assert {(trace["zmin"], trace["zmax"]) for trace in plot["data"]} == {(0, 1)}


def test_refusals() -> None:
    with pytest.raises(KarmafunnelError, match="at least one map"):
        attention_figure({})
    with pytest.raises(KarmafunnelError, match=r"found \(2, 3\) for 'a'"):
        attention_figure({"a": np.ones((2, 3))})


def test_cells_of_several_tables_side_by_side(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "similarity").mkdir(parents=True)
        save_file(
            {"maps": np.tril(np.ones((2, 4, 4), np.float32))},
            tmp_path / name / "similarity" / "attention.safetensors",
        )
    words = [
        f"one={tmp_path / 'a'}",
        f"another={tmp_path / 'b'}",
        "--out",
        str(tmp_path / "both.html"),
    ]
    answer = CliRunner().invoke(main, words)
    assert answer.exit_code == 0, answer.output
    text = (tmp_path / "both.html").read_text()
    assert "one, layer 2" in text and "another, layer 1" in text
    refused = CliRunner().invoke(
        main, [f"none={tmp_path / 'c'}", "--out", str(tmp_path / "x.html")]
    )
    assert refused.exit_code == 1
    assert "needs LABEL=CELL" in refused.output
    assert not (tmp_path / "x.html").exists()
