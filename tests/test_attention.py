"""Attention pictures: first and last layer of every variant, on one scale."""

import numpy as np
import pytest
from karmafunnel.benchmarks.attention import attention_figure
from karmafunnel.log import KarmafunnelError


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
