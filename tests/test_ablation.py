"""Rows of a recipe as a table: resumed to the same bytes, failures that sink nobody, intervals that
are compare's; curves.
"""

import errno
import io
import json
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError, NotWrittenError
from karmafunnel.log import Log
from karmafunnel.models import diagnostics as diagnose
from karmafunnel.models.embedders import Cooccurrence, Embedder, RandomVectors, TfidfSVD
from karmafunnel.simulator.ablation import ablate as ablation
from karmafunnel.simulator.ablation import examine
from karmafunnel.simulator.ablation import lines as lines_module
from karmafunnel.simulator.ablation.cells import Cell, cells
from karmafunnel.simulator.ablation.formats import _write_watched, print_tables
from karmafunnel.simulator.ablation.lines import JS, cost, figures_of, parts_of
from karmafunnel.simulator.measure.compare import Run, compare
from karmafunnel.simulator.replay import replay as replaying
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import Recipe, load_recipe
from karmafunnel.simulator.report.curves import curve_figure, write_curve
from karmafunnel.simulator.report.measure_table import valued
from karmafunnel.simulator.report.table import short_number
from rich.console import Console
from shop import make_shop

pytestmark = pytest.mark.slow

RECIPE = """
from karmafunnel.models.embedders import Cooccurrence, RandomVectors, TfidfSVD
from karmafunnel.stages.recall import VectorRecall

funnel, embedders, label = VectorRecall("interest", k=50), {"interest": RandomVectors()}, None
rows = {
    "random": {},
    "text": {"interest": TfidfSVD(dim=16)},
    "together": lambda log: {"interest": Cooccurrence(dim=16)},
}
against, measures, seeds = "random", ["HR@10", "HR@50 by target"], (0, 1)
"""
TABLES = ("slates", "requests", "ledger", "scored")


def made(log: Log, folder: Path, text: str = RECIPE) -> Recipe:
    (folder / "rows.py").write_text(text)
    return load_recipe(str(folder / "rows.py"), log)


def contents(out: Path) -> dict[str, bytes]:
    """Bytes of everything in the cells that does not depend on the clock."""
    kept = {
        p: p.relative_to(out).as_posix()
        for p in out.rglob("*.parquet")
        if p.stem in (*TABLES, "similarity")
    }
    return {
        name: path.read_bytes() for path, name in sorted(kept.items(), key=lambda pair: pair[1])
    }


@pytest.fixture(scope="module")
def log() -> Log:
    return make_shop(n_requests=700)


@pytest.fixture(scope="module")
def whole(log, tmp_path_factory) -> tuple[Recipe, Path]:
    """A recipe and the folder of its whole table, with a fit cache beside it."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = made(log, folder)
    assert (
        ablation.ablate(
            recipe,
            log,
            folder / "out",
            RunOptions(cache=folder / "cache", command="karmafunnel table x"),
            diagnose=True,
        )
        == []
    )
    return recipe, folder / "out"


def lines(out: Path) -> dict[str, dict]:
    return {line["row"]: line for line in json.loads((out / "table.json").read_text())["lines"]}


GRID = """
from karmafunnel.models.embedders import Cooccurrence
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.stages.features import Popularity, Similarity
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.recall import Join, Popular, VectorRecall


def made(recall, prerank):
    channels = [Popular(k=5), VectorRecall("near", k=20)] if recall else [Popular(k=5)]
    features = [Popularity(), Similarity("near")] if prerank else [Popularity()]
    return Join(channels, k=20) >> LightGBMPreRank(k=5, trees=5, features=features)


funnel, embedders, label = made(False, False), {"near": Cooccurrence(dim=8)}, None
rows = {f"{r}{p}": Row(made(r, p)) for r in (0, 1) for p in (0, 1)}
against, measures, seeds = "00", ["HR@5"], (0,)
grid = {"00": (), "10": ("recall",), "01": ("prerank",), "11": ("recall", "prerank")}
"""


def test_a_grid_of_rows_is_split_over_its_stages(log, tmp_path):
    recipe = made(log, tmp_path, GRID)
    ablation.ablate(recipe, log, tmp_path / "out", RunOptions(cache=tmp_path / "cache"))
    values = {
        name: line["values"]["HR@5"]["value"] for name, line in lines(tmp_path / "out").items()
    }
    parts = {row["stage"]: row for row in parts_of(recipe, cells(recipe, log, tmp_path / "out"))}
    recall = (values["10"] - values["00"] + values["11"] - values["01"]) / 2
    assert parts["recall"]["value"] == pytest.approx(recall) and recall > 0
    assert parts["prerank"]["value"] + recall == pytest.approx(values["11"] - values["00"])
    text = (tmp_path / "out" / "attribution.md").read_text()
    assert "recall" in text and (tmp_path / "out" / "attribution.html").stat().st_size > 1000
    holed = made(
        log,
        tmp_path,
        GRID.replace(
            "against, measures", 'rows["01"] = {"nobody": Cooccurrence()}\nagainst, measures'
        ),
    )
    ablation.ablate(holed, log, tmp_path / "holed", RunOptions(cache=tmp_path / "cache"))
    assert (
        "no attribution: it needs every row of the grid, but 01 failed"
        in (tmp_path / "holed" / "table.md").read_text()
    )
    # half a grid is no game
    ablation.ablate(
        recipe, log, tmp_path / "out", RunOptions(cache=tmp_path / "cache"), only=["10"]
    )
    assert not (tmp_path / "out" / "attribution.md").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"00": ()', '"0": ()', "each subset once, found '0'"),
        ('"11": ("recall", "prerank")', '"11": ("recall",)', r"found '11': \('recall',\)"),
        (
            ', "11": ("recall", "prerank")',
            "",
            r"each of the 4 subsets of \['prerank', 'recall'\], found 3",
        ),
        ("grid = {", "grid = list({", "needs a dict of row"),
        ('("recall",)', '("recal",)', r"among \['recall', 'prerank'\], found \['recal'\]"),
    ],
)
def test_a_grid_with_holes_is_refused(log, tmp_path, old, new, says):
    text = GRID.replace(old, new)
    with pytest.raises(KarmafunnelError, match=says):
        made(log, tmp_path, text.replace('"prerank")}', '"prerank")})') if "list(" in new else text)


PLANTED = """
from dataclasses import dataclass

import numpy as np
from karmafunnel.models.embedders import Embedding, RandomVectors
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.stages.features import Popularity, Similarity
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import Join, Popular, VectorRecall


@dataclass(frozen=True, repr=False)
class Taste(RandomVectors):
    "What the shop was made by: a user likes one kind of item in seven."

    def fit(self, log, seed=0, progress=None, device="cpu", cache=None):
        return Tastes(self, log)


class Tastes(Embedding):
    def items(self):
        return np.eye(7, dtype=np.float32)[[int(i[1:]) % 7 for i in self.log.item_ids]]

    def interests(self, requests):
        return np.eye(7, dtype=np.float32)[[int(u[1:]) % 7 for u in self.log.requests["user_id"].gather(requests)]]

    def tensors(self):
        return {"items": self.items()}


def made(*at):
    near = lambda stage: [Popularity(), *([Similarity("planted")] if stage in at else [])]
    channels = [Popular(k=15), VectorRecall("planted", k=15)] if "recall" in at else [Popular(k=30)]
    few = {"trees": 30, "min_rows": 10, "sample": Sample(passed=30)}
    return Join(channels, k=30) >> LightGBMPreRank(k=15, features=near("prerank"), **few) >> LightGBMRank(k=10, features=near("rank"), **few)


funnel, embedders, label, by_stage = made(), {}, None, True
rows = {"nothing": Row(made())} | {
    f"{name} at {stage}": Row(made(stage), {"planted": value})
    for name, value in (("taste", Taste()), ("noise", RandomVectors(dim=7))) for stage in ("recall", "prerank", "rank")
}
against, measures, seeds = "nothing", ["HR@5", "HR@15", "HR@30"], (0,)
"""


def test_a_planted_embedding_is_found_at_its_stage_and_a_useless_one_is_not(tmp_path):
    """At its stage the useful one is better for sure; before it nothing changes at all; noise is
    better nowhere.
    """
    log = make_shop(n_users=120, n_requests=2400)
    ablation.ablate(
        made(log, tmp_path, PLANTED), log, tmp_path / "out", RunOptions(cache=tmp_path / "cache")
    )
    found = {name: line["differences"] for name, line in lines(tmp_path / "out").items()}
    where = {"recall": "HR@30 at recall", "prerank": "HR@5 at prerank", "rank": "HR@5"}
    for stage, column in where.items():
        useful = found[f"taste at {stage}"][column]
        assert useful["better"] == "B" and useful["holm"] and useful["difference"] > 0.05, (
            stage,
            useful,
        )
        noise = [
            row
            for name, row in found[f"noise at {stage}"].items()
            if row["better"] == "B" and row["holm"] and "HR" in name
        ]
        assert not noise, (stage, noise)
    for stage, before in (
        ("prerank", ["HR@5 at recall"]),
        ("rank", ["HR@5 at recall", "HR@5 at prerank"]),
    ):
        assert all(found[f"taste at {stage}"][column]["difference"] == 0 for column in before)


# -- recipes ---------------------------------------------------------------------------------------


def test_rows_are_the_recipe_with_other_embedders(log, tmp_path):
    recipe = made(log, tmp_path)
    assert list(recipe.rows) == ["random", "text", "together"]
    assert recipe.seeds == (0, 1)
    assert recipe.against == "random"
    assert recipe.row("random").embedders == {"interest": RandomVectors()}
    assert (
        recipe.row("text").embedders == {"interest": TfidfSVD(dim=16)}
        and recipe.row("text").rows == {}
    )
    assert recipe.row("together").embedders == {"interest": Cooccurrence(dim=16)}
    assert recipe.embedders == {"interest": RandomVectors()}  # a row does not change its recipe
    lent = made(
        log,
        tmp_path,
        RECIPE.replace('{"interest": RandomVectors()}, None', "{}, None").replace(
            'against, measures, seeds = "random"', 'against, measures, seeds = "together"'
        ),
    )
    assert lent.embedders == lent.row("together").embedders == lent.row("random").embedders
    without = made(log, tmp_path, RECIPE.split("rows = {")[0])
    assert without.rows == {} and without.seeds == (0, 1, 2)


def test_a_table_without_a_funnel_has_that_of_the_row_against(log, tmp_path):
    text = RECIPE.replace(
        'funnel, embedders, label = VectorRecall("interest", k=50), {"interest": RandomVectors()}, None',
        "",
    )
    with pytest.raises(KarmafunnelError, match="needs to export `funnel`"):
        made(log, tmp_path, text)
    given = 'Row(VectorRecall("interest", k=50), {"interest": RandomVectors()})'
    recipe = made(
        log,
        tmp_path,
        "from karmafunnel.simulator.replay.recipe import Row\n"
        + text.replace('"random": {}', f'"random": {given}'),
    )
    for name in ("random", "text", "together"):
        assert repr(recipe.row(name).funnel) == repr(made(log, tmp_path).row(name).funnel)
    assert recipe.label == log.meta["label"] and set(recipe.row("text").used_embedders) == {
        "interest"
    }


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            'against, measures, seeds = "random"',
            'against, measures, seeds = "nobody"',
            "against needs the name of a row",
        ),
        (
            '"random": {},',
            '"random": {"other": TfidfSVD()},',
            r"embedders that its funnel reads, of \['interest'\], found \['other'\]",
        ),
        ('"random": {},', '"random": TfidfSVD(),', "row 'random': needs a dict"),
        (
            '"random": {},',
            '"random": {"interest": 3},',
            "row 'random': embedder 'interest' needs an Embedder",
        ),
        ('"random": {},', '"": {},', "the name of a row needs a text"),
        ("(0, 1)", "(0, 0)", "seeds needs different ones, each a whole number from 0"),
        ('["HR@10", "HR@50 by target"]', "[10]", "measures needs a list of names"),
    ],
)
def test_bad_rows_are_refused(log, tmp_path, old, new, says):
    assert old in RECIPE
    with pytest.raises(KarmafunnelError, match=says):
        made(log, tmp_path, RECIPE.replace(old, new))


def test_empty_rows_and_unknown_rows_are_refused(log, tmp_path):
    with pytest.raises(KarmafunnelError, match="rows needs a dict"):
        made(log, tmp_path, RECIPE.split("rows = {")[0] + "\nrows, against = {}, 'a'\n")
    recipe = made(log, tmp_path)
    with pytest.raises(KarmafunnelError) as raised:
        recipe.row("other")
    assert raised.value.found == "'other'"
    with pytest.raises(KarmafunnelError) as raised:
        ablation.ablate(recipe, log, tmp_path / "out", only=["other"])
    assert raised.value.found == "'other'"
    many = replace(recipe, rows={f"row {i}": {} for i in range(49)})
    with pytest.raises(KarmafunnelError, match=r"needs one of its 49 rows, .*mean row 4 or ") as raised:
        cells(many, log, tmp_path, only=["rwo 4"])
    assert raised.value.names == tuple(many.rows) and "row 30" not in str(raised.value)
    with pytest.raises(KarmafunnelError, match="needs to export `rows`"):
        ablation.ablate(made(log, tmp_path, RECIPE.split("rows = {")[0]), log, tmp_path / "out")


WRONG = (
    RECIPE.replace(
        "against, measures",
        """
rows |= {
    "unknown embedder": Row(VectorRecall("nobody", k=50)),
    "stray embedder": {"other": TfidfSVD()},
    "no embedder": {"interest": 3},
    "no funnel": Row("recall"),
    "words for features": Row(Popular(k=50) >> LightGBMPreRank(k=20, features="popularity")),
    "a word for a number": Row(Popular(k="50")),
    "cannot be asked": lambda log: {"interest": TfidfSVD(dim=log.no_such_thing)},
    "unknown stage": Row(VectorRecall("interest", k=50) >> GMVRank(source="ranker", k=20)),
    "wrong window": {"interest": Knows()},
}
against, measures""",
    )
    .replace(
        "\nfunnel, embedders",
        """
from dataclasses import dataclass
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.rerank import GMVRank


@dataclass(frozen=True, repr=False)
class Knows(RandomVectors):
    def fit(self, log, seed=0, progress=None, device="cpu", cache=None):
        found = super().fit(log, seed)
        found.fitted_on = ("W1", "W3")
        return found


funnel, embedders""",
    )
    .replace("(0, 1)", "(0,)")
)
WHY = {
    "unknown embedder": r"row 'unknown embedder': stage recall: needs embedders \['nobody'\], found \['interest'\]",
    "stray embedder": r"needs embedders that its funnel reads, of \['interest'\], found \['other'\]",
    "no embedder": "embedder 'interest' needs an Embedder such as",
    "no funnel": "funnel needs stages chained with >>, found 'recall'",
    "words for features": "row 'words for features': prerank: features needs values such as Popularity\\(\\), found 'p'",
    "a word for a number": "row 'a word for a number': Popular: k needs a whole number from 1 to 10,000,000, found '50'",
    "cannot be asked": "AttributeError.*no_such_thing",
    "unknown stage": "ranker",
    "wrong window": "cannot score W3, on which embedder 'interest' was fitted",
}


def test_rows_that_cannot_be_are_failed_lines_of_the_table(log, tmp_path):
    """Whatever is wrong with a row, found when the recipe is read, when it is fitted or when it is
    replayed.
    """
    recipe = made(log, tmp_path, WRONG)
    assert (
        ablation.ablate(recipe, log, tmp_path / "out", RunOptions(cache=tmp_path / "cache")) == []
    )
    found = lines(tmp_path / "out")
    assert list(found) == ["random", "text", "together", *WHY]
    for name, line in found.items():
        if name in WHY:
            assert re.search(WHY[name], line["failed"]), line["failed"]
            assert not line["values"]
        else:
            assert "failed" not in line and line["values"]["HR@10"]["n"] > 0
    text = (tmp_path / "out" / "table.md").read_text()
    assert "**failed**" in text and all(f"| {name} |" in text for name in WHY)
    assert not list((tmp_path / "out").rglob("*.partial"))
    with pytest.raises(
        KarmafunnelError, match="embedders that its funnel reads"
    ):  # the baseline itself
        made(log, tmp_path, WRONG.replace('seeds = "random"', 'seeds = "stray embedder"'))


def test_a_table_is_about_what_its_rows_lay_over(log, tmp_path):
    """A funnel that reads co-occurrence, too: figures are those of the row's own embedder, and none
    where it has no own one.
    """
    text = GRID.replace('Similarity("near")]', 'Similarity("near"), Similarity("mine")]')
    text = text.replace("import Cooccurrence", "import Cooccurrence, RandomVectors")
    text = text.replace(
        "Row(made(r, p))", 'Row(made(r, p), {"mine": RandomVectors(dim=16)} if p else {})'
    )
    recipe = made(log, tmp_path, text)
    options = RunOptions(cache=tmp_path / "cache")
    ablation.ablate(recipe, log, tmp_path / "out", options)
    for line in lines(tmp_path / "out").values():  # nothing that nobody asked for
        assert list(line["values"]) == ["HR@5"] and not line["diagnostics"]
    ablation.ablate(recipe, log, tmp_path / "out", options, diagnose=True)
    ranks = {
        name: line["diagnostics"].get("effective rank, items")
        for name, line in lines(tmp_path / "out").items()
    }
    wide, narrow = (diagnose.isotropy(v.fit(log).items(), v.fit(log).items())["effective rank, items"]
                    for v in (RandomVectors(dim=16), Cooccurrence(dim=8)))  # fmt: skip
    assert narrow < 8.01 < wide
    assert ranks["00"] is None and ranks["10"] == pytest.approx(narrow)  # the only one that is read
    assert ranks["01"] == ranks["11"] == pytest.approx(wide)


def test_the_command_beneath_can_be_typed_again(log, tmp_path, monkeypatch):
    log.write(tmp_path / "a log")
    made(log, tmp_path)
    words = [
        "table",
        str(tmp_path / "rows.py"),
        str(tmp_path / "a log"),
        "--only",
        "text",
        "--seed",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr("sys.argv", ["karmafunnel", *words])
    assert (
        CliRunner()
        .invoke(main, words, env={"KARMAFUNNEL_CACHE": str(tmp_path / "cache")})
        .exit_code
        == 0
    )
    (command,) = re.findall(r"^`(.*)`$", (tmp_path / "out" / "table.md").read_text(), re.MULTILINE)
    assert shlex.split(command) == ["karmafunnel", *words]


# -- cells -----------------------------------------------------------------------------------------


def test_killed_at_any_place_it_goes_on_to_the_same_bytes(log, whole, tmp_path, monkeypatch):
    """Killed in a replay, then after a replay before its facts, then in the middle of the table."""
    recipe, reference = whole

    def run(**more):
        return ablation.ablate(
            recipe, log, tmp_path / "out", RunOptions(cache=tmp_path / "cache"), diagnose=True, **more
        )

    def killed(*_, **__):
        raise KeyboardInterrupt

    for target, name in ((replaying.RunWriter, "_ledger"), (ablation, "examine")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, killed)
            with pytest.raises(KeyboardInterrupt):
                run()
        assert not list((tmp_path / "out").rglob("facts.json"))
    run(only=["text"], seeds=[1])
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("run.json")}
    # text and random of seed 1; all of seed 0 have their Run, not their facts
    assert len(stamps) == 5
    assert run() == []
    kept = {p for p, stamp in stamps.items() if p.stat().st_mtime_ns == stamp}
    assert len(kept) == 5  # what was done is not done again
    assert contents(tmp_path / "out") == contents(reference) and len(contents(reference)) == 6 * 5
    first, second = lines(tmp_path / "out"), lines(reference)
    for row in first:
        assert (
            first[row]["values"] == second[row]["values"]
            and first[row]["differences"] == second[row]["differences"]
        )


def test_a_finished_cell_is_taken_only_while_its_content_is_the_same(log, whole, tmp_path):
    recipe, out = whole
    before = {p: p.stat().st_mtime_ns for p in out.rglob("facts.json")}
    # nothing is left to begin
    assert (
        ablation.ablate(recipe, log, out, RunOptions(command="karmafunnel table x"), minutes=0, diagnose=True)
        == []
    )
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("facts.json")}
    left = {(c.row, c.seed) for c in ablation.ablate(recipe, log, tmp_path / "none", minutes=0)}
    assert left == {(row, seed) for row in recipe.rows for seed in (0, 1)}
    other = made(log, tmp_path, RECIPE.replace("TfidfSVD(dim=16)", "TfidfSVD(dim=8)"))
    stale = [c for c in cells(other, log, out) if not c.done]
    assert {c.row for c in stale} == {"text"}
    assert not any(c.done for c in cells(recipe, log, out, RunOptions(window="W2b")))
    assert not any(c.done for c in cells(recipe, log, out, RunOptions(limit=7)))


def test_a_cell_knows_the_classes_of_its_recipe(log, tmp_path):
    """An embedder that a recipe defines prints the same however its code is changed."""
    own = RECIPE.replace("funnel,", "class Own(RandomVectors):\n    shift = 1\n\nfunnel,")
    first = cells(made(log, tmp_path, own), log, tmp_path)
    second = cells(made(log, tmp_path, own.replace("= 1", "= 2")), log, tmp_path)
    assert all(a.key != b.key for a, b in zip(first, second, strict=True))


class Broken(RandomVectors):
    """Fails while fitting, in a way that nobody foresaw."""

    def fit(self, *_, **__):
        raise ZeroDivisionError("a hole")


class Flaky(RandomVectors):
    """Can be fitted with one seed alone."""

    def fit(self, log, seed=0, *rest, **more):
        if seed:
            raise ZeroDivisionError("a hole")
        return super().fit(log, seed, *rest, **more)


def with_rows(
    recipe: Recipe, rows: dict[str, dict[str, Embedder]], seeds: tuple[int, ...] = (0,)
) -> Recipe:
    return Recipe(
        recipe.name,
        recipe.text,
        recipe.funnel,
        recipe.embedders,
        recipe.label,
        rows,
        "random",
        ("HR@10",),
        seeds,
    )


def test_differences_count_the_seeds_in_which_both_rows_are_there(log, whole, tmp_path):
    recipe, _ = whole
    rows = {"random": {"interest": Flaky()}, "text": {"interest": TfidfSVD(dim=16)}}
    assert (
        ablation.ablate(
            with_rows(recipe, rows, (0, 1)), log, tmp_path, RunOptions(cache=tmp_path / "cache")
        )
        == []
    )
    found = lines(tmp_path)["text"]
    assert found["seeds"] == [0, 1]
    assert found["paired"] == [0]
    assert found["differences"]["HR@10"]["seeds"] == 1
    values, differences = (tmp_path / "table.md").read_text().split("**differences")
    assert "| text | 2 |" in values
    assert "| text | 1 |" in differences
    assert "| text | 2 |" not in differences
    told = pl.read_csv(tmp_path / "table.csv").filter(row="text", column="HR@10")
    assert (told["seeds"][0], told["d_seeds"][0]) == (2, 1)


def test_a_failing_row_is_a_line_and_sinks_nobody(log, whole, tmp_path):
    recipe, _ = whole
    rows = {"broken": {"interest": Broken()}, "random": {}, "text": {"interest": TfidfSVD(dim=16)}}
    assert (
        ablation.ablate(
            with_rows(recipe, rows), log, tmp_path, RunOptions(cache=tmp_path / "cache")
        )
        == []
    )
    found = lines(tmp_path)
    assert "a hole" in found["broken"]["failed"] and not found["broken"]["values"]
    assert found["text"]["differences"]["HR@10"]["difference"] is not None
    for name in ("table.md", "table.html"):
        assert (
            "a hole" in (tmp_path / name).read_text() and "broken" in (tmp_path / name).read_text()
        )


def test_what_failed_is_tried_again_after_all_others(log, whole, tmp_path, monkeypatch):
    recipe, _ = whole
    rows = {"mine": {"interest": Breaks()}, "random": {}, "text": {"interest": TfidfSVD(dim=16)}}
    console = Console(file=io.StringIO(), width=200)
    options = RunOptions(cache=tmp_path / "cache", console=console)

    def asked(rows, **more):
        told = len(console.file.getvalue())
        left = ablation.ablate(with_rows(recipe, rows), log, tmp_path / "out", options, **more)
        said = console.file.getvalue()[told:]
        return said, re.findall(r"\] (\w+), seed 0: fitting", said), [cell.row for cell in left]

    monkeypatch.setattr(Breaks, "error", KarmafunnelError("needs the fetched model minilm"))
    _, tried, left = asked({"mine": rows["mine"], "random": {}})
    assert tried == ["mine", "random"] and left == []
    said, tried, left = asked(rows, minutes=0)
    assert tried == [] and left == ["text"]
    assert "3 rows x 1 seed: 2 of 3 cells to make" in said
    assert "1 of 3 cells failed; the same command tries them again" in said
    assert asked(rows)[1:] == (["text", "mine"], [])
    assert "fetched model minilm" in lines(tmp_path / "out")["mine"]["failed"]
    monkeypatch.undo()
    said, tried, left = asked(rows)
    assert tried == ["mine"] and left == [] and "failed" not in said
    assert all(line["values"] and "failed" not in line for line in lines(tmp_path / "out").values())


@dataclass(frozen=True, repr=False)
class Warned(RandomVectors):
    """Its fit warns of something."""

    text: str = ""

    def fit(self, *args, **more):
        embedding = super().fit(*args, **more)
        embedding.facts["warnings"] = [self.text]
        return embedding


def test_what_a_fit_warns_of_stands_below_the_table(log, whole, tmp_path):
    recipe, _ = whole
    rows = {"a": "20 steps in all", "b": "20 steps in all", "c": "collapsed in step 60"}
    rows = {"random": {}} | {name: {"interest": Warned(text=text)} for name, text in rows.items()}
    ablation.ablate(with_rows(recipe, rows), log, tmp_path, RunOptions(cache=tmp_path / "cache"))
    told = ["warning, a; b: 20 steps in all", "warning, c: collapsed in step 60"]
    for verbose in (False, True):
        print_tables(tmp_path, console := Console(width=100, file=io.StringIO()), verbose)
        assert [line for line in console.file.getvalue().splitlines() if "warning" in line] == told
    for name in ("table.md", "table.html"):
        assert all(text in (tmp_path / name).read_text() for text in told)


@dataclass(frozen=True, repr=False)
class Breaks(RandomVectors):
    """Fails as told while it is fitted."""

    error: ClassVar[Exception | None] = None

    def fit(self, *args, **more):
        if self.error is not None:
            raise self.error
        return super().fit(*args, **more)


def wrapped(error: Exception) -> Exception:
    made = RuntimeError("could not be fitted")
    made.__cause__ = error
    return made


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("when", ["fit", "replay"])
@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        wrapped(FULL),
        NotWrittenError("x: Permission denied"),
    ],
    ids=str,
)
def test_a_full_disk_is_no_rows_fault(error, when, log, whole, tmp_path, monkeypatch):
    """It ends the table; nothing is written down, and the same call goes on."""
    recipe, _ = whole
    mine = with_rows(recipe, {"random": {}, "mine": {"interest": Breaks()}})
    with monkeypatch.context() as patch:
        if when == "fit":
            patch.setattr(Breaks, "error", error)
        else:
            patch.setattr(replaying.RunWriter, "of_chunk", raises(error))
        with pytest.raises(NotWrittenError, match=r"table: (mine|random), seed 0: ") as raised:
            ablation.ablate(
                mine, log, tmp_path / "out", RunOptions(cache=tmp_path / "cache"), seeds=[0]
            )
    assert "\n" not in str(raised.value) and not list(tmp_path.rglob("failed.json"))
    assert (
        ablation.ablate(
            mine, log, tmp_path / "out", RunOptions(cache=tmp_path / "cache"), seeds=[0]
        )
        == []
    )
    assert all("failed" not in line and line["values"] for line in lines(tmp_path / "out").values())


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=str
)
def test_a_row_that_finds_no_memory_is_left_for_another_time(
    error, log, whole, tmp_path, monkeypatch
):
    recipe, _ = whole
    mine = with_rows(recipe, {"mine": {"interest": Breaks()}, "random": {}})
    monkeypatch.setattr(Breaks, "error", error)
    (left,) = ablation.ablate(
        mine, log, tmp_path / "out", RunOptions(cache=tmp_path / "cache"), seeds=[0]
    )
    assert left.row == "mine"
    assert not list(tmp_path.rglob("failed.json"))
    assert lines(tmp_path / "out")["random"]["values"]
    monkeypatch.undo()
    assert (
        ablation.ablate(
            mine, log, tmp_path / "out", RunOptions(cache=tmp_path / "cache"), seeds=[0]
        )
        == []
    )


def raises(error: Exception) -> Any:
    def stops(*_: Any) -> None:
        raise error

    return stops


def test_without_the_row_that_all_are_held_against_the_table_says_so(log, whole, tmp_path):
    recipe, _ = whole
    rows = {"random": {"interest": Broken()}, "text": {"interest": TfidfSVD(dim=16)}}
    assert (
        ablation.ablate(
            with_rows(recipe, rows), log, tmp_path, RunOptions(cache=tmp_path / "cache")
        )
        == []
    )
    assert not lines(tmp_path)["text"]["differences"] and lines(tmp_path)["text"]["values"]
    says = "no differences: the baseline random failed"
    assert says in (tmp_path / "table.md").read_text()
    console = Console(file=io.StringIO(), width=200)
    assert print_tables(tmp_path, console, verbose=False)
    assert console.file.getvalue().count(says) == 1


FAMILY = """
from karmafunnel.models.embedders import Cooccurrence
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.stages.features import Popularity, Similarity
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.rerank import Rules

first = Popular(k=20) >> LightGBMPreRank(k=10, trees=5, features=[Popularity()])
label, embedders = None, {"near": Cooccurrence(dim=8)}
rows = {
    "plain": Row(first),
    "near": Row(Popular(k=20) >> LightGBMPreRank(k=10, trees=5, features=[Popularity(), Similarity("near")])),
    "ruled": Row(first >> Rules(max_per_category=1, sold_out="no such flag")),
}
against, measures, seeds, by_stage = "plain", ["HR@5", "HR@10"], (0,), True
"""


def test_holm_asks_each_question_once_and_none_that_has_no_answer(log, tmp_path, monkeypatch):
    """A row that fails does not give the others a second column of their last stage; recall is the
    same in both, which is no question.
    """
    families: list[list[float]] = []
    real = lines_module.holm
    monkeypatch.setattr(
        lines_module, "holm", lambda p: families.append([x for x in p if x is not None]) or real(p)
    )
    ablation.ablate(
        made(log, tmp_path, FAMILY), log, tmp_path / "out", RunOptions(cache=tmp_path / "cache"), diagnose=True
    )
    found = lines(tmp_path / "out")
    assert "no such flag" in found["ruled"]["failed"]
    assert list(found["near"]["values"]) == [
        "HR@5 at recall",
        "HR@5",
        "HR@10 at recall",
        "HR@10",
        JS,
    ]
    same = found["near"]["differences"]["HR@5 at recall"]
    assert same["difference"] == same["low"] == same["high"] == 0 and not same["holm"]
    # HR@5 and HR@10 of the last stage; JS of one recall is the same, too
    assert len(families[-1]) == 2
    text = (tmp_path / "out" / "table.md").read_text().split("**differences")[1]
    row = next(line for line in text.splitlines() if line.startswith("| near |"))
    assert [cell.strip() for cell in row.split("|")][3] == "=" and "±0.000" not in text
    assert 'class="prose"' in (tmp_path / "out" / "table.html").read_text()


def test_a_request_with_nothing_eligible_has_no_similarity(tmp_path):
    shop = make_shop(n_requests=300)
    strange = (
        pl.when(pl.int_range(pl.len()) % 7 == 0)
        .then(pl.lit(["colour=9"]))
        .otherwise("filters")
        .alias("filters")
    )
    log = Log.make(shop.items, shop.requests.with_columns(strange), shop.exposures, shop.meta)
    empty = sum(len(pool) == 0 for pool in log.asof.eligible(log.requests_in("W3")))
    ablation.ablate(
        made(log, tmp_path),
        log,
        tmp_path / "out",
        RunOptions(cache=tmp_path / "cache"),
        only=["text"],
        seeds=[0],
        diagnose=True,
    )
    line = lines(tmp_path / "out")["text"]
    js, hits = line["values"][JS], line["values"]["HR@10"]
    assert "failed" not in line
    assert js["low"] < js["value"] < js["high"]
    assert empty > 0
    assert js["n"] == hits["n"] - empty


@pytest.mark.parametrize(
    ("old", "new", "more", "says"),
    [
        ('"HR@10"', '"HR@ten"', {}, "HR@ten"),
        ('"HR@10"', '"HR@10 by price"', {}, "measure 'HR@10 by price'"),
        ("", "", {"options": RunOptions(limit=0)}, "limit needs at least 1"),
        ("", "", {"seeds": [0, -1]}, r"seed needs a whole number from 0 to .*, found -1"),
        ("", "", {"options": RunOptions(device="cuda:99")}, "device"),
    ],
)
def test_what_would_fail_in_every_cell_is_refused_before_anything_is_fitted(
    log, tmp_path, old, new, more, says
):
    with pytest.raises(KarmafunnelError, match=says):
        ablation.ablate(
            made(log, tmp_path, RECIPE.replace(old, new) if old else RECIPE),
            log,
            tmp_path / "out",
            **more,
        )
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("something else")
    with pytest.raises(KarmafunnelError, match="older table, found a file"):
        ablation.ablate(made(log, tmp_path), log, tmp_path / "file")


def test_a_seed_given_twice_is_one_cell(log, tmp_path):
    found = cells(made(log, tmp_path), log, tmp_path, only=["text"], seeds=[1, 1, 0])
    assert [(c.row, c.seed) for c in found] == [
        ("random", 1),
        ("text", 1),
        ("random", 0),
        ("text", 0),
    ]


def test_a_target_ties_with_itself_alone_in_its_rank(log):
    """Against sums in float64: the target's own score must come from the same product as the
    others'.
    """
    rng = np.random.default_rng(0)
    truth = log.truth(log.meta["label"]).filter(
        pl.col("request").is_in(log.requests_in("W3").tolist())
    )
    e = rng.standard_normal((log.n_items, 129)).astype(np.float32)
    seen = 0
    for request, item in truth.select("request", "item").head(80).iter_rows():
        z, pool = (
            rng.standard_normal((1, 129)).astype(np.float32),
            log.asof.eligible(np.array([request]))[0],
        )
        found = examine.median_rank(z, e, log, np.array([request]), np.array([item]))
        exact = e.astype(np.float64) @ z[0].astype(np.float64)
        assert found == (1 + int((exact[pool] > exact[item]).sum()) if item in pool else None)
        same = examine.median_rank(z, np.ones_like(e), log, np.array([request]), np.array([item]))
        # nothing told apart: the middle
        assert same == ((len(pool) + 1) / 2 if item in pool else None)
        seen += item in pool
    assert seen > 20


def test_diagnostics_are_finite_figures_alone(whole, tmp_path):
    _, out = whole
    assert all("seed" not in line["diagnostics"] for line in lines(out).values())
    (tmp_path / "facts.json").write_text(
        '{"key": "k", "seed": 3, "readable, nats": NaN, "alignment": 0.5, "fit": {}}'
    )
    assert figures_of(Cell("a", 3, tmp_path, "k")) == {"alignment": 0.5}


# -- what the table says ---------------------------------------------------------------------------


def test_values_and_paired_intervals_are_those_of_compare(whole):
    _, out = whole
    runs = {
        row: [Run.open(out / "cells" / f"{row}-{seed}" / "run") for seed in (0, 1)]
        for row in ("random", "text")
    }
    (theirs,) = [
        r
        for r in compare(runs["random"], runs["text"], ["HR@10"], by_stage=False)
        if r["stage"] == "recall"
    ]
    ours = lines(out)["text"]["differences"]["HR@10"]
    for name in ("difference", "low", "high", "better", "n", "p", "value_a", "value_b", "seeds"):
        assert ours[name] == theirs[name], name
    # text knows the shop's queries, random vectors know nothing
    assert ours["better"] == "B" and ours["seeds"] == 2
    sliced = {k for k in lines(out)["text"]["values"] if k.startswith("HR@50")}
    assert sliced == {"HR@50, head", "HR@50, tail", "HR@50, cold"}


def test_js_is_paired_over_users_and_seeds(log, whole):
    """JS@50 of one row from the slates by hand, and the difference of two rows as the mean of the
    requests' differences.
    """
    _, out = whole

    def js(row, seed):
        return pl.read_parquet(
            out / "cells" / f"{row}-{seed}" / "similarity" / "similarity.parquet"
        )["js"]

    by_hand = np.mean([(js("text", seed) - js("random", seed)).mean() for seed in (0, 1)])
    ours = lines(out)["text"]["differences"][JS]
    assert ours["difference"] == pytest.approx(by_hand) and ours["low"] < by_hand < ours["high"]
    assert ours["better"] == "B"
    texts = [
        f"{title} {' '.join(attributes)}"
        for title, attributes in log.items.select("title", "attributes").iter_rows()
    ]
    words = [set(text.replace("=", " ").lower().split()) for text in texts]
    at = {item: i for i, item in enumerate(log.item_ids)}
    run = Run.open(out / "cells" / "text-0" / "run")
    ledger = run.read("ledger", "request_id", "item_id").unique(
        "request_id", keep="first", maintain_order=True
    )
    slates = run.read("slates").group_by("request_id").agg("item_id")
    listed = dict(zip(slates["request_id"], slates["item_id"].to_list(), strict=True))
    found = []
    for request, item in ledger.iter_rows():
        target, pool = (
            words[at[item]],
            log.asof.eligible(np.flatnonzero(log.request_ids == request))[0],
        )
        near = np.mean(
            [len(target & words[at[i]]) / len(target | words[at[i]]) for i in listed[request]]
        )
        found.append(
            near - np.mean([len(target & words[i]) / len(target | words[i]) for i in pool])
        )
    # 50 random items against all of them
    assert np.mean(found) > 0.05 and js("text", 0).mean() == pytest.approx(np.mean(found), abs=0.01)


def test_the_table_says_where_it_comes_from_in_every_format(log, whole):
    _, out = whole
    for name in ("table.md", "table.html", "table.json"):
        text = (out / name).read_text()
        for word in (
            "karmafunnel table x",
            log.checksum,
            "seeds [0, 1]",
            "cores",
            "together",
            "HR@50: share of requests",
            "JS@50: mean",
        ):
            assert word in text, (name, word)
    page = re.sub(r"<script>.*?</script>", "", (out / "table.html").read_text(), flags=re.S)
    assert "http" not in page.replace("http-equiv", "")
    rows = pl.read_csv(out / "table.csv")
    value = rows.filter((pl.col("row") == "text") & (pl.col("column") == "HR@10"))
    assert value["value"].item() == lines(out)["text"]["values"]["HR@10"]["value"]
    found = lines(out)["together"]["diagnostics"]
    assert {"embedding µs a request", "popularity of top 50", "effective rank, items"} <= set(found)


def test_holm_goes_over_the_whole_table(whole):
    _, out = whole
    every = [
        row
        for line in lines(out).values()
        for row in line["differences"].values()
        if row["p"] is not None
    ]
    m = len(every)
    smallest = min(every, key=lambda row: row["p"])
    assert smallest["holm"] == (smallest["p"] <= 0.05 / m)
    assert all(row["p"] <= 0.05 for row in every if row["holm"])


def test_the_terminal_cuts_no_figure_short(whole):
    _, out = whole
    for width in (60, 70, 80, 90, 100, 250):
        console = Console(width=width, record=True, file=io.StringIO())
        print_tables(out, console)
        text = console.export_text()
        assert (
            "…" not in text
            and max(map(len, text.split("karmafunnel table")[0].splitlines())) <= width
        )
        for line in lines(out).values():
            for row in (*line["values"].values(), *line["differences"].values()):
                signed = "difference" in row
                cell = valued(row, signed)
                assert short_number(cell.text) in text
                assert short_number(f"{cell.small}{cell.mark}") in text


# -- commands --------------------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words])


@pytest.fixture(scope="module")
def there(log, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    log.write(folder / "log")
    (folder / "rows.py").write_text(RECIPE)
    return folder


def test_table_command_in_units(there, tmp_path):
    words = (
        "table",
        there / "rows.py",
        there / "log",
        "--no-cache",
        "--out",
        tmp_path / "out",
        "--limit",
        60,
    )
    answer = run(*words, "--minutes", 0)
    assert answer.exit_code == 0 and "6 of 6 cells are left" in answer.stderr
    answer = run(*words, "--only", "text", "--seed", 0)
    assert answer.exit_code == 0, answer.output
    assert "text" in answer.stdout
    assert "random" in answer.stdout
    assert "together" not in answer.stdout
    assert sorted(p.name for p in (tmp_path / "out" / "cells").iterdir()) == ["random-0", "text-0"]
    answer = run(*words, "--minutes", 0)
    assert answer.exit_code == 0 and "4 of 6 cells are left" in answer.stderr
    refused = run("table", there / "rows.py", there / "log", "--out", tmp_path / "out")
    assert (
        refused.exit_code == 1
        and "holds a table with limit 60; to replace it by one with limit None, use --force"
        in refused.stderr
    )
    refused = run(*words, "--only", "nobody")
    assert refused.exit_code == 1
    assert "nobody" in refused.stderr
    assert "Traceback" not in refused.output
    rows = "rows |= {f'row {i}': {} for i in range(20)}\n"
    (tmp_path / "many.py").write_text(RECIPE + rows)
    refused = run(words[0], tmp_path / "many.py", *words[2:], "--only", "nonsense", "--force")
    assert refused.exit_code == 1
    *names, last = refused.stderr.splitlines()
    assert names[-20:] == [f"row {i}" for i in range(20)]
    assert last.startswith("error: ") and "one of its 23 rows, found 'nonsense'" in last
    refused = run(
        "table",
        there / "rows.py",
        there / "log",
        "--out",
        tmp_path / "other",
        "--device",
        "cuda:99",
        "--no-cache",
    )
    assert refused.exit_code == 1 and "device" in refused.stderr


BROKEN = """
from karmafunnel.models.embedders import RandomVectors
from karmafunnel.stages.recall import VectorRecall


class Broken(RandomVectors):
    def fit(self, *args, **more):
        raise ValueError("a hole")


funnel, embedders, label = VectorRecall("interest", k=50), {"interest": Broken()}, None
rows, against, seeds = {"one": {}, "two": {"interest": Broken(dim=8)}}, "one", (0,)
"""


def test_a_table_without_a_result_is_an_error_and_no_table(there, tmp_path):
    (tmp_path / "mine.py").write_text(BROKEN)
    words = ("table", tmp_path / "mine.py", there / "log", "--no-cache", "--out", tmp_path / "out")
    answer = run(*words)
    assert answer.exit_code == 1 and answer.stderr.count("every row failed") == 1
    assert answer.stdout.count("a hole") == 2 and "interval" not in answer.stdout
    assert "interval" not in "".join(
        (tmp_path / "out" / f"table.{kind}").read_text() for kind in ("md", "tex")
    )
    answer = run(*words[:-1], tmp_path / "other", "--minutes", 0)
    assert answer.exit_code == 0 and answer.stdout == "" and "2 of 2 cells are left" in answer.stderr


def test_the_same_cells_answer_another_question(there, tmp_path):
    words = (
        "table",
        there / "rows.py",
        there / "log",
        "--no-cache",
        "--out",
        tmp_path / "out",
        "--limit",
        60,
        "--seed",
        0,
    )
    assert run(*words, "--only", "text", "--only", "together").exit_code == 0
    first = contents(tmp_path / "out")
    answer = run(*words, "--only", "together", "--against", "text")
    assert answer.exit_code == 0, answer.output
    assert "differences to text" in answer.stdout
    assert "fitting" not in answer.stderr
    assert contents(tmp_path / "out") == first
    found = lines(tmp_path / "out")
    assert list(found) == ["text", "together"] and not found["text"]["differences"]
    pair = [
        [Run.open(tmp_path / "out" / "cells" / f"{row}-0" / "run")] for row in ("text", "together")
    ]
    asked = compare(*pair, ["HR@10"])[0]
    assert found["together"]["differences"]["HR@10"]["difference"] == pytest.approx(
        asked["difference"]
    )
    refused = run(*words, "--against", "nobody")
    assert refused.exit_code == 1
    assert "nobody" in refused.stderr
    assert "Traceback" not in refused.output


def test_fit_embedder_saves_what_can_be_opened(there, log, tmp_path):
    answer = run(
        "fit-embedder",
        there / "rows.py",
        there / "log",
        "--row",
        "text",
        "--no-cache",
        "--out",
        tmp_path / "saved",
    )
    assert answer.exit_code == 0, answer.output
    value = TfidfSVD(dim=16)
    found = value.load(tmp_path / "saved", log)
    np.testing.assert_array_equal(found.items(), value.fit(log).items())
    assert "load" in answer.stdout
    words = (
        "fit-embedder",
        there / "rows.py",
        there / "log",
        "--no-cache",
        "--out",
        tmp_path / "saved",
    )
    refused = run(*words)
    assert refused.exit_code == 1 and refused.stderr.endswith(
        "holds an embedding with embedder TfidfSVD(dim=16); to replace it by one with embedder RandomVectors(), use --force\n"
    )
    again = run(*words, "--force")
    assert again.exit_code == 0 and RandomVectors().load(tmp_path / "saved", log)
    for words, says in ((("--row", "nobody"), "nobody"), (("--name", "nobody"), "nobody")):
        refused = run(
            "fit-embedder",
            there / "rows.py",
            there / "log",
            *words,
            "--no-cache",
            "--out",
            tmp_path / "other",
        )
        assert refused.exit_code == 1
        assert says in refused.stderr
        assert not (tmp_path / "other").exists()


def test_fit_embedder_never_replaces_another_folder(there, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    refused = run(
        "fit-embedder",
        there / "rows.py",
        there / "log",
        "--no-cache",
        "--out",
        tmp_path / "precious",
    )
    assert refused.exit_code == 1 and (tmp_path / "precious" / "thesis.txt").exists()


# -- curves ----------------------------------------------------------------------------------------


def test_curves_are_lines_with_bands(tmp_path):
    points = [
        {
            "row": row,
            "semantic": s,
            "value": s * gain,
            "low": s * gain - 0.1,
            "high": s * gain + 0.1,
        }
        for row, gain in (("+rec", 0.2), ("+gen", 0.1))
        for s in (1.0, 0.0, 0.5)
    ]
    points[-1]["low"] = None  # one interval missing: no band for that line
    plot = curve_figure(
        points, "semantic", x_title="share of taste that is semantic", reference=0.0
    )
    named = {trace["name"]: trace for trace in plot["data"] if "name" in trace}
    assert list(named) == ["+rec", "+gen"]
    assert named["+rec"]["x"] == [0.0, 0.5, 1.0]
    assert named["+rec"]["y"] == [0.0, 0.1, 0.2]
    bands = [trace for trace in plot["data"] if trace.get("fill")]
    assert len(bands) == 1 and bands[0]["y"] == pytest.approx([0.1, 0.2, 0.3, 0.1, 0.0, -0.1])
    written = write_curve(plot, tmp_path / "gain.html", "Gain")
    assert written[0] == tmp_path / "gain.html" and "plotly" in written[0].read_text()[:200_000]
    for bad in (
        [],
        [{"row": "a", "x": 1, "value": None}],
        [{"row": "a", "value": 1}],
        [{"row": "a", "semantic": 1, "value": 1}] * 2,
    ):
        with pytest.raises(KarmafunnelError, match="curve_figure"):
            curve_figure(bad, "semantic")


class Timed:
    """A Run of one-request chunks that took so many ms by stage."""

    def __init__(self, **ms: list[float]):
        self.ms = ms

    def read(self, table: str, *columns: Any) -> pl.DataFrame:
        rows = [(stage, x / 1000, 1) for stage, times in self.ms.items() for x in times]
        return pl.DataFrame(rows, schema=["stage", "seconds", "requests"], orient="row").select(
            columns
        )


def test_cost_is_not_that_of_a_stall() -> None:
    """A chunk's median, then the seeds' mean."""
    runs = [
        Timed(recall=[9.0, 2.0, 2.0], rank=[1.0, 1.0, 400.0]),
        Timed(recall=[3.0, 4.0, 5.0], rank=[2.0, 2.0, 2.0]),
    ]
    assert cost(runs) == pytest.approx({"recall": 3.0, "rank": 1.5, "total": 4.5})  # type: ignore[arg-type]


def test_the_steps_of_watched_fits_are_told_in_one_table(tmp_path: Path) -> None:
    steps = {("a", 0): [{"step": 2, "act": 0.5}, {"step": 4, "act": 0.25, "gen": 3.0}], ("b", 1): []}
    cells = []
    for (row, seed), rows in steps.items():
        facts = {"fit": {"watched": rows}} if rows else {}
        read = {"facts.json": facts}.__getitem__
        cells.append(SimpleNamespace(row=row, seed=seed, done=True, read=read))
    _write_watched(tmp_path, cells)
    told = (tmp_path / "watched.csv").read_text().splitlines()
    assert told == ["row,seed,step,act,gen", "a,0,2,0.5,", "a,0,4,0.25,3.0"]
    _write_watched(tmp_path, cells[1:])
    assert not (tmp_path / "watched.csv").exists()


def test_a_cell_asks_for_each_user_embedding_once(log, monkeypatch):
    """Beside the requests that are timed; a slow embedder is timed once."""
    embedding = TfidfSVD(dim=8).fit(log)
    asked, compute = [], embedding.interests
    monkeypatch.setattr(embedding, "interests", lambda x: asked.append(len(x)) or compute(x))
    truth = log.truth(log.meta["label"]).unique("request", keep="first", maintain_order=True)
    truth = truth.filter(pl.col("request").is_in(log.requests_in("W3").tolist()))
    requests, target = truth["request"].to_numpy(), truth["item"].to_numpy()
    probed = log.truth(log.meta["label"]).filter(
        pl.col("request").is_in(log.requests_in("W2a").tolist())
    )["request"].n_unique()
    cold, words = np.zeros(len(target), dtype=bool), diagnose.word_sets(log)
    given = embedding, log, log.meta["label"], requests, target, cold, words
    found = examine.vectors(*given)
    assert asked == [len(requests)] * 4 + [probed]
    assert found.items() >= embedding.diagnose(requests).items()
    asked.clear()
    monkeypatch.setattr(examine, "SLOW", 1e-9)
    examine.vectors(*given)
    assert asked == [len(requests)] * 2 + [probed]
