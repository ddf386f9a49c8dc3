"""Replay: hand-worked ledgers, interruption and resumption to the same bytes, recipes that are
wrong.
"""

import gc
import io
import json
import re
import time
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models.embedders import RandomVectors, RandomVectorsEmbedding
from karmafunnel.simulator.measure.compare import compare, measure
from karmafunnel.simulator.measure.run import Run, common
from karmafunnel.simulator.replay import replay as replaying
from karmafunnel.simulator.replay import tree
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.prepare import Variant, nested, prepare
from karmafunnel.simulator.replay.recipe import Recipe, load_recipe
from karmafunnel.simulator.replay.replay import replay, replay_many
from karmafunnel.simulator.replay.tables import TABLES, popularity_band
from karmafunnel.stages import stage as stage_module
from karmafunnel.stages.features import Similarity, Upstream
from karmafunnel.stages.kept import Kept
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import Popular, VectorRecall
from karmafunnel.stages.rows import Rows
from karmafunnel.stages.stage import FittedFunnel
from rich.console import Console

RECIPE = """
from karmafunnel.models.embedders import TfidfSVD
from karmafunnel.stages.stage import *
from karmafunnel.stages.features import *
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import *

embedders = {"tfidf": TfidfSVD(dim=16)}
label = "click"
funnel = (
    Join([VectorRecall("tfidf", k=60, index=IVF(4, 1)), Popular(k=40), BM25Recall(k=40)], k=80)
    >> LightGBMPreRank(k=40, features=[Upstream(), Popularity(), Similarity("tfidf")], trees=20)
    >> LightGBMRank(k=20, features=[Upstream(), Own(), BM25(), Price(), Column("recall.score")], trees=20)
)
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory, shop) -> Log:
    folder = tmp_path_factory.mktemp("log")
    shop.write(folder / "log")
    return Log.open(folder / "log")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "three_stages.py"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(log, recipe_file, cache, tmp_path_factory) -> Path:
    return replay(
        load_recipe(recipe_file, log),
        log,
        tmp_path_factory.mktemp("runs") / "run",
        RunOptions(cache=cache, chunk=16),
    )


def table(run: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(run / f"{name}.parquet")


def same_bytes(a: Path, b: Path) -> bool:
    return all(
        (a / f"{n}.parquet").read_bytes() == (b / f"{n}.parquet").read_bytes()
        for n in TABLES
        if n != "timing"
    )


def test_tables_agree_with_each_other(run, log):
    slates, ledger, requests, scored = (
        table(run, n) for n in ("slates", "ledger", "requests", "scored")
    )
    assert requests["request_id"].to_list() == log.request_ids[log.requests_in("W3")].tolist()
    sizes = slates.group_by("request_id", "stage").len()
    assert sizes["len"].sum() == sum(
        requests[f"{s}.out"].sum() for s in ("recall", "prerank", "rank")
    )
    assert requests["prerank.n"].equals(requests["recall.out"].alias("prerank.n"))
    for stage in ("recall", "prerank", "rank"):
        there = ledger.join(
            slates.filter(pl.col("stage") == stage),
            on=["request_id", "item_id"],
            how="left",
            maintain_order="left",
            suffix="_slate",
        )
        assert there[f"{stage}.rank"].equals(
            there["rank"].alias(f"{stage}.rank")
        )  # a rank in the ledger is the rank in the slate, and null is absence
    alive = pl.col("rank.rank").is_not_null()
    assert ledger.filter(alive != pl.col("lost").is_null()).height == 0
    assert set(ledger["lost"].drop_nulls()) <= {
        "not eligible",
        "index",
        "recall",
        "prerank",
        "rank",
    }
    assert (
        ledger.filter(pl.col("lost").is_in(["prerank", "rank"]) & (pl.col("margin") < 1)).height
        == 0
    )
    assert scored.height == log.exposures.join(requests, on="request_id", how="semi").height
    assert ledger.height == requests["n_truth"].sum() == scored["clicked"].sum()
    assert requests["recall.index_recall"].is_between(0, 1).all()


def test_slices_are_as_of_the_request(run, log):
    ledger = table(run, "ledger")
    rows = log.exposures.filter("clicked").join(
        log.requests.select("request_id", "user_id", "ts"), on="request_id"
    )
    first = ledger.filter("repeat").row(0, named=True)
    request = log.requests.filter(pl.col("request_id") == first["request_id"]).row(0, named=True)
    before = rows.filter(
        (pl.col("ts") < request["ts"])
        & (pl.col("user_id") == request["user_id"])
        & (pl.col("item_id") == first["item_id"])
    )
    assert before.height >= 1
    assert popularity_band(np.array([0, 5, 1, 1, 1, 2])).tolist() == [
        "cold",
        "head",
        "tail",
        "tail",
        "tail",
        "tail",
    ]


def test_interrupted_and_started_again_it_ends_in_the_same_bytes(
    run, log, recipe_file, cache, tmp_path, monkeypatch
):
    recipe = load_recipe(recipe_file, log)
    whole = replaying.RunWriter.of_chunk
    calls = []

    def dies(self, number, *chunk):
        calls.append(number)
        if number == 3:
            raise KeyboardInterrupt
        return whole(self, number, *chunk)

    monkeypatch.setattr(replaying.RunWriter, "of_chunk", dies)
    with pytest.raises(KeyboardInterrupt):
        replay(recipe, log, tmp_path / "run", RunOptions(cache=cache, chunk=16, command="x"))
    assert not (tmp_path / "run").exists()  # nothing half-written where a Run is expected
    monkeypatch.setattr(
        replaying.RunWriter,
        "of_chunk",
        lambda self, n, *chunk: calls.append(n) or whole(self, n, *chunk),
    )
    replay(recipe, log, tmp_path / "run", RunOptions(cache=cache, chunk=16, command="x"))
    assert calls[:5] == [0, 1, 2, 3, 3]  # the first three shards are not made again
    assert same_bytes(tmp_path / "run", run)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_leaves_the_old_run(run, log, recipe_file, cache, tmp_path, monkeypatch):
    recipe = load_recipe(recipe_file, log)
    replay(recipe, log, tmp_path / "run", RunOptions(cache=cache, limit=20))
    before = (tmp_path / "run" / "slates.parquet").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(replaying, "merge", full)
    with pytest.raises(KarmafunnelError, match="could not be written: No space"):
        replay(recipe, log, tmp_path / "run", RunOptions(cache=cache, limit=10, force=True))
    assert (tmp_path / "run" / "slates.parquet").read_bytes() == before


def test_fitted_anew_it_is_the_same_run(run, log, recipe_file, tmp_path):
    replay(load_recipe(recipe_file, log), log, tmp_path / "run", RunOptions(cache=None, chunk=16))
    assert same_bytes(tmp_path / "run", run)


def test_limit_takes_requests_evenly(log, recipe_file, cache, tmp_path):
    replay(load_recipe(recipe_file, log), log, tmp_path / "run", RunOptions(cache=cache, limit=10))
    ids = table(tmp_path / "run", "requests")["request_id"].to_list()
    everything = log.request_ids[log.requests_in("W3")].tolist()
    assert len(ids) == 10
    assert ids[0] == everything[0]
    assert everything.index(ids[-1]) > 0.9 * len(everything)


def test_cached_by_content(log, recipe_file, cache, run):
    console = Console(record=True, quiet=False, file=io.StringIO(), width=200)
    prepare(load_recipe(recipe_file, log), log, RunOptions(cache=cache, console=console))
    assert console.export_text().count("fitted before") == 4
    prepare(load_recipe(recipe_file, log), log, RunOptions(seed=1, cache=cache, console=console))
    assert "fitted before" not in console.export_text()


def test_run_json_is_the_record(run):
    record = json.loads((run / "run.json").read_text())
    assert record["recipe"] == RECIPE
    assert record["label"] == "click"
    assert [s["k"] for s in record["stages"]] == [80, 40, 20]
    assert record["stages"][0]["channels"] == ["tfidf", "popular", "bm25"]


def test_fewer_requests_are_among_more_and_spread_over_time():
    requests = np.arange(1000, 4653)
    taken = {n: nested(requests, n) for n in (1, 7, 100, 400, 500, 3652, 9999)}
    for few, many in pairwise(sorted(taken)):
        assert set(taken[few]) <= set(taken[many])
    for n in (100, 400, 500):
        assert len(taken[n]) == n
        gaps = np.diff(taken[n])
        assert gaps.min() > 0
        assert gaps.max() <= 4 * len(requests) / n
    assert np.array_equal(taken[9999], requests)


def test_runs_of_different_requests_are_compared_over_those_of_both(
    log, recipe_file, cache, tmp_path
):
    recipe = load_recipe(recipe_file, log)
    folders = [
        replay(recipe, log, tmp_path / f"{n}", RunOptions(cache=cache, limit=n)) for n in (20, 50)
    ]
    few, many = (Run.open(folder) for folder in folders)
    with pytest.raises(KarmafunnelError) as raised:
        compare(few, many, ["HR@10"])
    assert "20 of them in both" in raised.value.found
    assert "--common" in raised.value.hint
    rows = compare(*common(few, many), ["HR@10"])
    assert rows == [
        row | {"label_b": rows[0]["label_b"]}
        for row in compare(few, common(few, many)[1], ["HR@10"])
    ]
    assert {row["difference"] for row in rows} == {0}
    told = CliRunner().invoke(main, ["compare", *map(str, folders), "HR@10", "--common", "--json"])
    assert [row["n"] for row in json.loads(told.stdout)] == [row["n"] for row in rows]
    nobody = few.only(pl.Series(["nobody"]))
    with pytest.raises(KarmafunnelError, match="needs requests that all Runs have"):
        common(nobody, many)


MISTAKES = {
    "a misspelt class": (
        "from karmafunnel.stages.recall import *\n\nfunnel = ItemKnn()\n",
        3,
        "did you mean ItemKNN?",
    ),
    "no import": (
        "\nrows = {'a': Row()}\n",
        2,
        "from karmafunnel.simulator.replay.recipe import Row",
    ),
    "a misspelt import": (
        "from karmafunnel.stages.recall import Populer\n",
        1,
        "did you mean Popular? from karmafunnel.stages.recall.popular",
    ),
    "an import from elsewhere": (
        "from karmafunnel.stages.rank import Blend\n",
        1,
        "from karmafunnel.stages.blend import Blend",
    ),
    "arguments in place of a list": (
        "from karmafunnel.stages.blend import Blend\n\nfunnel = Blend(1, 2, k=50)\n",
        3,
        "Blend takes parts, k, weights",
    ),
    "jointly of the last stage": (
        "from karmafunnel.stages.rank import DINRank\nfunnel = DINRank().jointly(1)\n",
        2,
        "a funnel has it: (... >> DINRank(...)).jointly(...)",
    ),
    "a division": ("x = 1\ny = 2\nz = 1 / 0\n", 3, ""),
    "no Python": ("x = 1\nfunnel = (\n", 2, ""),
    "in a function": (
        "def f():\n    return nothing_of_this_kind_is_there\n\nfunnel = f()\n",
        "4 (through line 2)",
        "",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_recipe_that_fails_is_told_by_its_line_and_what_was_meant(what, log, tmp_path):
    text, line, hint = MISTAKES[what]
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(KarmafunnelError) as raised:
        load_recipe(str(path), log)
    assert f"recipe {path}, line {line}: fails with" in str(raised.value)
    assert raised.value.hint.startswith(hint) and bool(raised.value.hint) == bool(hint)


def test_explain_says_why_stage_by_stage(log, recipe_file, cache, run):
    funnel = prepare(load_recipe(recipe_file, log), log, RunOptions(cache=cache))
    kept = table(run, "ledger").filter(pl.col("lost").is_null()).row(0, named=True)
    why = funnel.explain(kept["request_id"], kept["item_id"])
    assert why["stage"].to_list() == ["recall", "prerank", "rank"] and why["kept"].all()
    assert why["rank"].to_list() == [kept["recall.rank"], kept["prerank.rank"], kept["rank.rank"]]
    for told in why["why"][1:]:
        sizes = [abs(float(size)) for size in re.findall(r"=\S+ \(([+-][\d.]+)\)", told)]
        assert len(sizes) == len(told.split(", ")) > 1 and sizes == sorted(sizes, reverse=True)
    reasons = ""
    for row in table(run, "ledger").filter(pl.col("lost").is_null()).rows(named=True)[:20]:
        reasons += "".join(funnel.explain(row["request_id"], row["item_id"])["why"][1:])
    assert "upstream_score=" in reasons  # of which item depends on the rounding of BLAS
    with pytest.raises(KarmafunnelError) as raised:
        funnel.explain("nobody")
    assert raised.value.needs.startswith("request ids of the log")
    assert raised.value.found == "'nobody'"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("embedders = {}", "needs to export `funnel`"),
        ("funnel = 1", "funnel needs stages chained"),
        ("1 / 0", "ZeroDivisionError"),
        (
            "from karmafunnel.stages.recall import *\nfunnel = VectorRecall('karma')\nembedders = {}\nlabel = None",
            r"needs embedders \['karma'\]",
        ),
        (
            "from karmafunnel.stages.recall import *\nfunnel = Popular(top=3)\nembedders = {}\nlabel = None",
            "unexpected keyword argument 'top'",
        ),
    ],
)
def test_wrong_recipes_are_refused_by_name(log, tmp_path, text, complaint):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(KarmafunnelError, match=rf"(?s)mine\.py.*{complaint}"):
        load_recipe(str(tmp_path / "mine.py"), log)
    with pytest.raises(KarmafunnelError) as raised:
        load_recipe("nowhere", log)
    assert raised.value.found == "'nowhere'"


def test_out_must_not_be_something_else(log, recipe_file, cache, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").touch()
    with pytest.raises(KarmafunnelError, match="nothing was written"):
        replay(load_recipe(recipe_file, log), log, tmp_path / "letters", RunOptions(cache=cache))
    with pytest.raises(KarmafunnelError, match="limit"):
        replay(
            load_recipe(recipe_file, log), log, tmp_path / "run", RunOptions(cache=cache, limit=0)
        )


def test_swap_by_counting(run):
    """An oracle in a stage's place passes on all truth of its input; the rest is unchanged."""
    ledger = (
        table(run, "ledger")
        .join(table(run, "scored"), on=["request_id", "item_id"], suffix="_would")
        .rows(named=True)
    )
    k = {"recall": 80, "prerank": 40, "rank": 20}
    expected = dict.fromkeys(k, 0)
    for row in ledger:
        reached = row["eligible"]
        for stage, later in (("recall", ("prerank", "rank")), ("prerank", ("rank",)), ("rank", ())):
            saved = reached and all(row[f"{s}.rank_would"] <= k[s] for s in later)
            expected[stage] += saved - (row["lost"] is None)
            reached = row[f"{stage}.rank"] is not None
    rows = {r["stage"]: r["value"] for r in measure(Run.open(run), ["swap"])}
    assert (
        rows == {s: pytest.approx(n / len(ledger)) for s, n in expected.items()}
        and max(expected.values()) > 0
    )


# -- several funnels together ----------------------------------------------------------------------

ROWS = (
    RECIPE
    + """
from karmafunnel.simulator.replay.recipe import Row

rank = LightGBMRank(k=20, features=[Upstream(), Similarity("tfidf")], trees=10)
rows = {
    "whole": Row(),
    "other ranker": Row(funnel.replace(rank=rank)),
    "no ranker": Row(funnel.without("rank")),
    "other vectors": Row(embedders={"tfidf": TfidfSVD(dim=8)}),
    "holed": Row(funnel.replace(rank=LightGBMRank(k=20, features=[Upstream(), Column("nowhere.score")], trees=10))),
}
against = "whole"
"""
)


@pytest.fixture(scope="module")
def rows(log, tmp_path_factory) -> Recipe:
    path = tmp_path_factory.mktemp("rows") / "rows.py"
    path.write_text(ROWS)
    return load_recipe(str(path), log)


def prepared(recipe: Recipe, log: Log, cache: Path, out: Path, *names: str) -> list[Variant]:
    kept = Kept(cache)
    return [
        Variant(
            recipe.row(name), prepare(recipe.row(name), log, RunOptions(cache=kept)), out / name
        )
        for name in names
    ]


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """Names of the stages that really ran on a chunk, in order."""
    names: list[str] = []
    real = stage_module.advance

    def counted(fitted, rows, exact=False):
        names.append(fitted.stage.name)
        return real(fitted, rows, exact)

    for module in (stage_module, tree):
        monkeypatch.setattr(module, "advance", counted)
    return names


def test_replayed_together_they_are_the_same_runs_and_share_beginnings(
    rows, log, cache, tmp_path, ran
):
    names = ["whole", "other ranker", "no ranker", "other vectors"]
    together = prepared(rows, log, cache, tmp_path / "together", *names)
    ran.clear()
    assert replay_many(together, log, RunOptions(chunk=16)) == {}
    chunks = -(-len(log.requests_in("W3")) // 16)
    # recall and pre-ranker of the first three rows run once; nothing of the last row, which means
    # something else by the name
    assert {name: ran.count(name) for name in set(ran)} == {
        "recall": 2 * chunks,
        "prerank": 2 * chunks,
        "rank": 3 * chunks,
    }
    timing = pl.concat([table(v.out, "timing") for v in together])
    assert timing.height == 11 * chunks and (timing["seconds"] > 0).all()
    for variant in together:
        (alone,) = prepared(rows, log, cache, tmp_path / "alone", variant.out.name)
        replay_many([alone], log, RunOptions(chunk=16))
        assert same_bytes(variant.out, alone.out)
        assert (variant.out / "run.json").read_bytes() == (alone.out / "run.json").read_bytes()
    assert not same_bytes(together[0].out, together[3].out)


def test_what_a_stage_passes_on_is_gone_once_the_stages_after_it_are_through(
    rows, log, cache, tmp_path, monkeypatch
):
    """As many chunks are alive as the tree is deep, whichever funnel runs."""
    names = ["whole", "other vectors", "other ranker", "no ranker"]
    variants = prepared(rows, log, cache, tmp_path, *names)
    alive: list[weakref.ref[Rows]] = []
    depths: list[list[int]] = []

    def watched(fitted, given, exact=False, real=tree.advance):
        gc.collect()
        depths.append(sorted(kept.depth for ref in alive if (kept := ref())))
        step, after = real(fitted, given, exact)
        alive.append(weakref.ref(after))
        return step, after

    monkeypatch.setattr(tree, "advance", watched)
    assert replay_many(variants, log, RunOptions(chunk=10_000)) == {}
    assert max(map(len, depths)) == 2 and all(len(set(found)) == len(found) for found in depths)
    gc.collect()
    assert not any(ref() for ref in alive)


def test_funnels_that_begin_alike_are_neighbours_in_the_tree():
    """Their order does not matter: c, a, b share the stages x and y as far as they go."""

    class Ready:
        context = None

    keys = {"c": "xyz", "other": "w", "a": "xy", "b": "xyv"}
    funnels = {
        name: FittedFunnel(
            None, tuple(Ready() for _ in key), tuple(key[: i + 1] for i in range(len(key)))
        )
        for name, key in keys.items()
    }
    root = tree.tree_of(funnels)
    assert list(root.funnels()) == ["a", "c", "b", "other"]
    assert list(root.children) == ["x", "w"] and list(
        root.children["x"].children["xy"].children
    ) == ["xyz", "xyv"]


def test_a_variant_that_dies_leaves_the_others_whole_and_its_shards(
    rows, log, cache, tmp_path, monkeypatch
):
    dying, whole = prepared(rows, log, cache, tmp_path / "together", "other ranker", "whole")
    ranker, calls = dying.fitted.stages[-1], []

    def dies(rows, real=ranker.score):
        calls.append(len(rows.item))
        if len(calls) == 3:
            raise ZeroDivisionError("a hole")
        return real(rows)

    monkeypatch.setattr(ranker, "score", dies)
    errors = replay_many([dying, whole], log, RunOptions(chunk=16))
    assert list(errors) == [dying.out]
    assert isinstance(errors[dying.out], ZeroDivisionError)
    assert len(calls) == 3
    replay_many(prepared(rows, log, cache, tmp_path / "alone", "whole"), log, RunOptions(chunk=16))
    assert same_bytes(whole.out, tmp_path / "alone" / "whole") and not dying.out.exists()
    (waiting,) = dying.out.parent.glob(".other ranker.*.partial")
    assert sorted(p.name for p in waiting.iterdir()) == ["000000", "000001"]
    monkeypatch.undo()
    assert replay_many([dying], log, RunOptions(chunk=16)) == {}
    assert dying.out.exists()
    assert not waiting.exists()


def test_fitting_runs_a_common_beginning_once(rows, log, tmp_path, ran):
    names = ["whole", "other ranker"]
    prepared(rows, log, tmp_path / "together", tmp_path, *names)
    together = {name: ran.count(name) for name in set(ran)}
    ran.clear()
    for name in names:
        prepared(rows, log, tmp_path / name, tmp_path, name)
    apart = {name: ran.count(name) for name in set(ran)}
    assert together["prerank"] * 2 == apart["prerank"] and together["recall"] * 2 == apart["recall"]
    for name in names:  # and what is fitted is the same
        for file in (f for f in (tmp_path / name).rglob("*") if f.is_file()):
            if file.name in ("embedding.json", "digests.json"):  # it says how long it took
                continue
            assert (
                file.read_bytes()
                == (tmp_path / "together" / file.relative_to(tmp_path / name)).read_bytes()
            ), file


def test_vectors_are_made_once_and_charged_to_every_funnel_that_reads_them(
    log, tmp_path, monkeypatch
):
    real, asked = RandomVectorsEmbedding.interests, []

    def slow(self, requests):
        asked.append(len(requests))
        time.sleep(0.2)
        return real(self, requests)

    trees = dict(k=5, trees=3, features=[Upstream(), Similarity("r")])
    funnels = {
        "first": VectorRecall("r", k=20) >> LightGBMRank(**trees),
        "second": Popular(k=20) >> LightGBMRank(**trees),
    }
    made, kept = list[Variant](), Kept()
    for name, funnel in funnels.items():
        recipe = Recipe("mine", "", funnel, {"r": RandomVectors()}, "click")
        made.append(Variant(recipe, prepare(recipe, log, RunOptions(cache=kept)), tmp_path / name))
    monkeypatch.setattr(RandomVectorsEmbedding, "interests", slow)
    assert replay_many(made, log, RunOptions(limit=10)) == {}
    assert asked == [10]
    seconds = {
        (v.out.name, s): t
        for v in made
        for s, t in table(v.out, "timing").select("stage", "seconds").iter_rows()
    }
    assert seconds["first", "recall"] > 0.2 and seconds["second", "rank"] > 0.2
    assert seconds["first", "rank"] < 0.2 and seconds["second", "recall"] < 0.2
