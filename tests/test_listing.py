"""What there is to choose from is what there is."""

import importlib
import inspect
import json
import pydoc
import re
from dataclasses import fields

import karmafunnel
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.simulator import listing
from karmafunnel.simulator.commands.lists import WHAT
from karmafunnel.simulator.datasets import SOURCES
from karmafunnel.simulator.listing import first_line, listed
from karmafunnel.simulator.measure.measures.measure import kinds
from karmafunnel.simulator.replay import recipe
from karmafunnel.simulator.replay.recipe import STUDIES, load_recipe


@pytest.mark.parametrize("what", WHAT)
def test_each_entry_has_a_line_and_the_command_prints_it(what):
    entries = listed(what)
    assert len(entries) > 3
    assert [entry.name for entry in entries if not entry.line] == []
    answer = CliRunner().invoke(main, [what])
    assert answer.exit_code == 0
    for entry in entries:
        assert entry.typed in " ".join(answer.output.split())
    told = json.loads(CliRunner().invoke(main, [what, "--json"]).stdout)
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


@pytest.mark.parametrize("what", WHAT)
def test_with_a_name_it_prints_all_about_one(what):
    for entry in listed(what):
        answer = CliRunner().invoke(main, [what, entry.name])
        assert answer.exit_code == 0, (entry.name, answer.output)
        told = " ".join(answer.stdout.split())
        assert entry.module.rpartition(".")[2] in answer.stderr
        if what == "recipes":
            assert " ".join(entry.line.split()[:3]) in told
            continue
        kind = kinds().get(entry.name) or getattr(importlib.import_module(entry.module), entry.name)
        doc = inspect.cleandoc(kind.__doc__ or "")
        assert doc.startswith(f"{kind.__name__}(") or " ".join(doc.split()) in told
        assert entry.typed in told
        assert len(answer.stdout.splitlines()) >= 5
        if what != "measures":
            assert f"from {entry.module} import {entry.name}" in told
            assert {f"- {field.name}: " for field in fields(kind) if field.init} <= set(
                re.findall(r"^- \w+: ", answer.stdout, re.MULTILINE)
            )
    refused = CliRunner().invoke(main, [what, listed(what)[0].name + "x"])
    assert refused.exit_code == 1
    assert f"did you mean {listed(what)[0].name}" in " ".join(refused.stderr.split())


@pytest.mark.parametrize(
    "what, names",
    [
        ("stages", "Sample Teacher PositionBias LCRON HNSW"),
        ("embedders", "Softmax InBatch Pairwise MaskedNCE Qwen Checkpoint LanguageFirst Diffusion"),
    ],
)
def test_settings_are_told_by_name(what, names):
    whole = CliRunner().invoke(main, [what]).stdout
    for name in names.split():
        asked_for_one(what, name)
        assert re.search(rf"\b{name}\b", whole.partition("What they take")[2])
    unknown = CliRunner().invoke(main, [what, "nosuch"])
    assert unknown.exit_code == 1 and f"that `karmafunnel {what}` lists" in unknown.stderr


def test_tables_are_listed_below_the_recipes():
    _, tables = CliRunner().invoke(main, ["recipes"]).stdout.split("karmafunnel table NAME")
    assert {path.stem for path in STUDIES.glob("[!_]*.py")} <= set(tables.split())
    text = CliRunner().invoke(main, ["recipes", "karma_atlas"]).stdout
    assert text == (STUDIES / "karma_atlas.py").read_text("utf-8")
    for find in (lambda name: listing.find("recipes", name), recipe.find):
        with pytest.raises(KarmafunnelError, match=r"`karmafunnel recipes` lists, .*mean karma_atlas") as raised:
            find("karma_atlsa")
        assert "stage_models" not in str(raised.value)


def asked_for_one(what, name):
    told = CliRunner().invoke(main, [what, name])
    assert told.exit_code == 0 and f"import {name}\n" in told.stdout and "Arguments:" in told.stdout


def test_what_recipes_prints_is_a_working_copy(shop, tmp_path):
    for entry in listed("recipes"):
        answer = CliRunner().invoke(main, ["recipes", entry.name])
        (tmp_path / f"{entry.name}.py").write_text(answer.stdout)
        copied = load_recipe(str(tmp_path / f"{entry.name}.py"), shop)
        assert copied.text == load_recipe(entry.name, shop).text
        assert repr(copied.funnel) == repr(load_recipe(entry.name, shop).funnel)


def test_help_of_the_package_shows_its_front_with_a_line_each():
    shown = pydoc.plain(pydoc.render_doc(karmafunnel))
    for name in karmafunnel.FRONT:
        line = first_line(getattr(karmafunnel, name).__doc__)
        told = re.search(rf"^ *{name}: (.*)$", shown, re.MULTILINE)
        assert told, name
        assert first_line(told[1]) == line
