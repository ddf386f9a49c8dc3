"""What there is to choose from is what there is."""

import json

import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.simulator.commands.lists import WHAT
from karmafunnel.simulator.datasets import SOURCES
from karmafunnel.simulator.listing import listed
from karmafunnel.simulator.measure.measures.measure import kinds


@pytest.mark.parametrize("what", WHAT)
def test_each_entry_has_a_line_and_the_command_prints_it(what):
    entries = listed(what)
    assert len(entries) > 3
    assert [entry.name for entry in entries if not entry.line] == []
    answer = CliRunner().invoke(main, [what])
    assert answer.exit_code == 0
    for entry in entries:
        assert entry.typed in " ".join(answer.output.split())
    told = json.loads(CliRunner().invoke(main, [what, "--json"]).output)
    assert [one["name"] for one in told] == [entry.name for entry in entries]


def test_nothing_is_missing():
    assert {entry.name for entry in listed("measures")} == set(kinds())
    assert [entry.name for entry in listed("sources")] == list(SOURCES)
    stages = {entry.name for entry in listed("stages")}
    assert {
        "Popular",
        "Join",
        "External",
        "ExternalRank",
        "LightGBMRank",
        "DINRank",
        "MMR",
    } <= stages
    assert {"Popularity", "Similarity", "Upstream"} <= {e.name for e in listed("features")}
    assert {"TfidfSVD", "SASRec", "KARMA"} <= {e.name for e in listed("embedders")}
    typed = {entry.name: entry.typed for entry in listed("stages")}
    assert typed["Popular"] == "Popular(k=100, days=None, name='recall')"
