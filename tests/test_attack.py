"""A small part of every attack on each run of the tests, and proof that the attacks can see what
they look for.
"""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from karmafunnel.benchmarks.validation import attack, damage, kills, pages, values
from karmafunnel.benchmarks.validation.commands import Answer, Commands
from karmafunnel.benchmarks.validation.material import Shop, files, make, said
from karmafunnel.checks import validate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and fork"),
]

# Tries of each family, by group; the first so many of seed 0.
SMALL = {
    "kills": {"sample": 2, "replay": 2, "report": 1},
    "damage": {"cache": 2, "shards": 2, "run": 2, "small": 2, "simulation": 1},
    "values": {"options": 8, "logs": 4, "services": 3, "json": 3, "recipes": 2},
    "disk": {"sample": 1, "report": 1},
}


def part(shop: Shop, family: str) -> list[tuple[int, object]]:
    left = dict(SMALL[family])
    found = []
    for number, case in enumerate(attack.FAMILIES[family].cases(shop, 0, 300)):
        slow = case.what.startswith(("demo", "plan", "profile")) or "plan" in case.what
        if left.get(case.group, 0) and not slow:
            left[case.group] -= 1
            found.append((number, case))
    return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attack")
    with Commands() as commands:
        made = Shop(folder / "made", folder / "work" / "in" / "here", commands)
        make(made)
        yield made


def test_a_small_part_of_every_attack(shop):
    bad = []
    for family in SMALL:
        for number, case in part(shop, family):
            outcome, detail = case.do(shop)
            if outcome in attack.FAMILIES[family].bad:
                bad.append(f"{family} --only {number}: {outcome}: {case.what}: {detail}")
    assert not bad, "\n".join(bad)


def test_the_small_shop_is_a_log_without_fault(shop):
    for name in ("log", "small"):
        assert not [check for check in validate(shop.made / name) if check.status == "FAIL"]


def test_what_a_command_may_not_do_is_seen(shop):
    here = "karmafunnel.benchmarks.validation"
    shop.fresh()

    def ran(entry: str, *argv: str, **limits: float) -> Answer:
        return shop.run(*argv, entry=entry, **limits)

    assert (
        ran("karmafunnel.cli:main", "--help").fault == ""
        and ran("karmafunnel.cli:main", "--help").code == 0
    )
    assert ran("karmafunnel.cli:main", "no-such-command").fault == ""
    assert ran("json:loads").fault == "traceback"  # a TypeError
    assert ran("os:abort").code == -signal.SIGABRT and ran("os:abort").fault == "ended by SIGABRT"
    assert ran("signal:pause", seconds=0.3).stopped == "longer than 0.3 s"
    assert ran(f"{here}.commands:serve", seconds=20).code == 0
    assert Answer(1, "", "fitting\n", 0.0).fault == "no error line"
    assert (
        Answer(1, "", "error: no\n", 0.0).fault == ""
        and Answer(3, "", "error: no\n", 0.0).fault == "exit code 3"
    )


@pytest.mark.parametrize("kind", damage.KINDS)
def test_damage_changes_the_bytes(kind, tmp_path):
    for number in range(20):
        path = tmp_path / "file"
        path.write_bytes(bytes(600) + b"x" + bytes(900))
        before = path.read_bytes()
        damage.spoil(path, kind, np.random.default_rng(number))
        assert not path.exists() or path.read_bytes() != before


def test_other_figures_are_told_apart(shop, tmp_path):
    shop.fresh(("run",))
    before = said(shop.work / "run")
    timing = shop.work / "run" / "timing.parquet"
    pl.read_parquet(timing).with_columns(pl.col("seconds") + 1).write_parquet(timing)
    assert said(shop.work / "run") == before  # timing apart
    ledger = shop.work / "run" / "ledger.parquet"
    pl.read_parquet(ledger).with_columns(pl.col("money") + 1).write_parquet(ledger)
    changed = said(shop.work / "run")
    assert [name for name in before if changed[name] != before[name]] == ["ledger.parquet"]


def test_a_lost_result_is_told_from_an_old_and_a_new_one(shop):
    command, made = kills.COMMANDS["sample"], kills.calm(shop, "sample")
    shop.fresh(("small",))
    assert kills.whole(shop, command, made, old=False) == "none"
    assert kills.whole(shop, command, made, old=True).startswith("neither")
    for which in ("older", "new"):
        shop.fresh({"new": f"kills/sample/{which}"})
        assert kills.whole(shop, command, made, old=True) == {"older": "old", "new": "new"}[which]
    next(iter(files(shop.work / "new").values())).unlink()
    assert kills.whole(shop, command, made, old=True).startswith("neither")


def test_what_is_a_persons_own_is_watched(shop):
    shop.fresh(values.INPUTS)
    values.strangers(shop.work)
    kept = values.kept_now(shop)
    (shop.work / "afile").write_text("other words\n")
    assert values.judged(shop, ["doctor"], "", kept)[0] == values.DESTROYED
    kept = values.kept_now(shop)
    assert values.judged(shop, ["validate", "small"], "nothing-there", kept)[0] == values.SILENT


def test_every_command_is_attacked():
    from every_command import COMMANDS

    unasked = {"doctor", "recipes", "stages", "features", "embedders", "measures", "sources"}
    assert set(values.COMMANDS) | unasked == set(COMMANDS)


def test_finished_tries_are_not_made_again(tmp_path):
    journal = attack.Journal(tmp_path / "tries.jsonl", 0, "a")
    journal.add(
        family="kills", number=0, group="sample", outcome=kills.FINE, detail="\u2028 [/red] \u00e9"
    )
    with journal.path.open("a") as file:
        file.write('{"seed": 0, "cut off by a kill')
    assert [line["number"] for line in journal.lines()] == [0]
    assert (
        not attack.Journal(journal.path, 1, "a").lines()
        and not attack.Journal(journal.path, 0, "b").lines()
    )
    table = attack.counts(
        "kills", [*journal.lines(), {"family": "kills", "group": "replay", "outcome": "LITTER"}]
    )
    assert (
        table.heads[:3] == ["Kills at random moments", "tries", "as if undisturbed"]
        and table.heads[4] == "LITTER"
    )
    assert table.rows == [
        ["replay", "1", "0", "0", "1", *"000"],
        ["sample", "1", "1", "0", "0", *"000"],
        ["all", "2", "1", "0", "1", *"000"],
    ]
    assert "| sample | 1 | 1 |" in attack.markdown(journal.lines(), "- note")


def test_same_seed_same_tries(shop):
    for name, family in attack.FAMILIES.items():
        one, other, second = (
            [case.what for case in family.cases(shop, seed, 40)] for seed in (0, 0, 1)
        )
        assert one == other and one != second, name


def test_a_page_that_runs_a_text_is_seen(tmp_path):
    if pages.chromium() is None:
        pytest.skip("needs a Chromium on the PATH")
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    for text, outcome in (
        (f"<!doctype html><p>{pages.PAYLOADS[0]}", pages.RAN),
        (f"<!doctype html>{policy}<p>{pages.PAYLOADS[0]}", pages.ELEMENT),
        ("<!doctype html><p>plain", pages.POLICY),
        (f"<!doctype html>{policy}<p>plain", pages.SAFE),
    ):
        path = tmp_path / "page.html"
        path.write_text(text)
        assert pages.opened(Path(path), "x")[0] == outcome, text


def test_json_is_attacked_in_every_place():
    document = json.loads('{"a": {"b": [1, {"c": null}]}, "d": 2}')
    assert list(values.places_of(document)) == [
        (),
        ("a",),
        ("a", "b"),
        ("a", "b", 0),
        ("a", "b", 1),
        ("a", "b", 1, "c"),
        ("d",),
    ]
    assert values.put(document, ("a", "b", 1, "c"), 7)["a"]["b"][1] == {"c": 7} and document["a"][
        "b"
    ][1] == {"c": None}
    assert values.put(document, ("d",), ...) == {"a": document["a"]}
