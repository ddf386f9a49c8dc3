"""Features, stages, embedders and measures of a user's own: what they return is checked where it is
taken, and what fails inside them is told with its place in the recipe.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from karmafunnel import replay
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError, closest, meant
from karmafunnel.models.embedders import RandomVectors, RandomVectorsEmbedding
from karmafunnel.simulator.measure.compare import measure
from karmafunnel.simulator.measure.measures.hits import HitMeasure
from karmafunnel.simulator.measure.measures.measure import Measure
from karmafunnel.simulator.measure.run import Run
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.stages.context import Context
from karmafunnel.stages.features import Upstream
from karmafunnel.stages.frame import check_array
from karmafunnel.stages.outside import ExternalRank
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import External, Join, Popular, VectorRecall
from karmafunnel.stages.stage import fit_embedders

IMPORTS = """
from dataclasses import dataclass

import numpy as np
import polars as pl
from karmafunnel.models.embedders import RandomVectors, RandomVectorsEmbedding
from karmafunnel.stages.features import Upstream
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import Join, Popular, VectorRecall
from karmafunnel.stages.rows import Feature
from karmafunnel.stages.stage import FittedStage, Retriever, Stage
"""
FEATURE = """
@dataclass(frozen=True, repr=False)
class PriceGap(Feature):
    columns = {columns}

    def {method}(self, rows):
        {body}

funnel = Popular(k=30) >> LightGBMRank(k=10, trees=3, features=[Upstream(), PriceGap()])
"""
STAGE = """
@dataclass(frozen=True, repr=False)
class Mine(Stage):
    k: int = 10
    name: str = "mine"
    learns = False

    def fit(self, context, upstream):
        return {fit}

class FittedMine({base}):
    channels = ("mine",)

    def {method}(self, rows):
        {body}

funnel = {funnel}
"""
EMBEDDER = """
@dataclass(frozen=True, repr=False)
class Odd(RandomVectors):
    def fit(self, log, **_):
        return {fit}

class OddEmbedding(RandomVectorsEmbedding):
    def {method}(self, *_):
        {body}

embedders = {{"odd": Odd(dim=4)}}
funnel = VectorRecall("odd", k=10)
"""


def feature(body: str, columns: str = '("price_gap",)', method: str = "pairs") -> str:
    return IMPORTS + FEATURE.format(body=body, columns=columns, method=method)


def ranker(body: str, method: str = "score", fit: str = "FittedMine(self, context)") -> str:
    funnel = "Popular(k=30) >> Mine()"
    return IMPORTS + STAGE.format(
        body=body, method=method, fit=fit, base="FittedStage", funnel=funnel
    )


def recall(body: str, funnel: str, method: str = "propose") -> str:
    fit = "FittedMine(self, context)"
    return IMPORTS + STAGE.format(body=body, method=method, fit=fit, base="Retriever", funnel=funnel)


def embedder(body: str, method: str, fit: str = "OddEmbedding(self, log, seed=0)") -> str:
    return IMPORTS + EMBEDDER.format(body=body, method=method, fit=fit)


ONE = "return np.zeros(len(rows.item), dtype=np.float32)"
COLUMN = "return np.zeros((len(rows.item), 1), dtype=np.float32)"
FRAME = "return pl.DataFrame({{'request': {}, 'item': {}, 'score': [1.0]}})"
WRONG = {
    "a feature without [:, None]": (
        feature(ONE),
        "feature PriceGap: needs an array (n_rows, 1) of its columns ['price_gap'], found (n_rows,)",
    ),
    "fewer columns than named": (
        feature(COLUMN, '("price", "gap")'),
        "feature PriceGap: needs an array (n_rows, 2) of its columns ['price', 'gap'],"
        " found (n_rows, 1)",
    ),
    "a feature that computes too few rows": (
        feature("return np.zeros((3, 1))", method="compute"),
        "feature PriceGap: needs an array (n_rows, 1) of its columns ['price_gap'],"
        " found (3, 1) where n_rows is ",
    ),
    "a feature of words": (
        feature("return np.array([['a']] * len(rows.item))"),
        "feature PriceGap: needs an array (n_rows, 1) of its columns ['price_gap'],"
        " found (n_rows, 1) of <U1",
    ),
    "a feature that returns nothing": (
        feature("pass"),
        "feature PriceGap: needs an array (n_rows, 1) of its columns ['price_gap'],"
        " found a NoneType",
    ),
    "one name for columns": (
        feature(COLUMN, '"price_gap"'),
        "feature PriceGap: columns needs a tuple of names, found 'price_gap'",
    ),
    "a stage with too few scores": (
        ranker("return np.zeros(3)"),
        "mine (Mine): needs an array (n_rows,) of scores, found (3,) where n_rows is ",
    ),
    "a stage without scores": (
        ranker("return {'keep': rows.candidate}", "outputs"),
        "mine (Mine): needs outputs with 'score', found ['keep']",
    ),
    "a stage with a short output": (
        ranker("return {'score': np.zeros(len(rows.item)), 'half': np.zeros(2)}", "outputs"),
        "mine (Mine): needs an array (n_rows,) of its output 'half', found (2,)",
    ),
    "a stage whose fit returns nothing": (
        ranker(ONE, fit="None"),
        "mine (Mine): needs fit to return a FittedStage, found a NoneType",
    ),
    "recall without a column": (
        recall("return pl.DataFrame({'request': [], 'item': []})", "Mine()"),
        "mine (Mine): needs to propose a Polars frame of ['request', 'item', 'score'],"
        " found ['request', 'item']",
    ),
    "a channel that returns an array": (
        recall("return np.zeros(3)", "Join([Popular(k=9), Mine()], k=10)"),
        "mine (Mine): needs to propose a Polars frame of ['request', 'item', 'score'],"
        " found a ndarray",
    ),
    "a channel with an unknown item": (
        recall(FRAME.format("rows.requests[:1]", "[10**6]"), "Join([Popular(k=9), Mine()], k=10)"),
        "mine (Mine): needs to propose row numbers of items, 0 to ",
    ),
    "a channel with a request that is not asked for": (
        recall(FRAME.format("[-1]", "[0]"), "Mine()"),
        "mine (Mine): needs to propose for the requests that it is given",
    ),
    "recall with too few scores": (
        IMPORTS
        + STAGE.format(
            body="return Popular().fit(self.context, None).propose(rows)\n\n"
            "    def score(self, rows):\n        return np.zeros((len(rows.item), 1))",
            method="propose",
            fit="FittedMine(self, context)",
            base="Retriever",
            funnel="Mine()",
        ),
        "mine (Mine): needs an array (n_rows,) of scores, found (n_rows, 1)",
    ),
    "item vectors of too few items": (
        embedder("return np.zeros((3, 4))", "items"),
        "embedder odd (Odd): needs an array (n_items, d) of items, found (3, 4) where n_items is ",
    ),
    "user embeddings of another size": (
        embedder("return np.zeros((len(_[0]), 5))", "interests"),
        "embedder odd (Odd): needs an array (n_requests, 4) of each request's interest,"
        " found (n_requests, 5)",
    ),
    "an embedder whose fit returns nothing": (
        embedder("pass", "nothing", fit="None"),
        "embedder odd (Odd): needs fit to return an Embedding, found a NoneType",
    ),
}
FAILS = {
    "a feature": (feature("return rows.nothing"), "PriceGap.pairs: AttributeError"),
    "a stage": (ranker("return 1 / 0"), "FittedMine.score: ZeroDivisionError"),
    "a fit": (ranker(ONE, fit="1 / 0"), "Mine.fit: ZeroDivisionError"),
    "a channel": (recall("raise OSError('none')", "Mine()"), "FittedMine.propose: OSError: none"),
    "an embedder": (embedder("return [][1]", "interests"), "OddEmbedding.interests: IndexError"),
    "polars": (
        recall("return pl.DataFrame({'a': [1]}).select('b')", "Mine()"),
        "FittedMine.propose: ColumnNotFoundError",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shop):
    where = tmp_path_factory.mktemp("own_code")
    shop.write(where / "log")
    return where


def refused(folder, text: str) -> str:
    (folder / "mine.py").write_text(text)
    recipe, log, out = (str(folder / name) for name in ("mine.py", "log", "run"))
    answer = CliRunner().invoke(main, ["replay", recipe, log, "--out", out, "--no-cache"])
    assert answer.exit_code == 1
    assert not (folder / "run").exists()
    return " ".join(answer.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("what", WRONG)
def test_what_own_code_returns_is_checked_and_told_by_its_class(what, folder):
    text, line = WRONG[what]
    assert line in refused(folder, text)


@pytest.mark.parametrize("what", FAILS)
def test_an_error_inside_own_code_is_told_with_its_line_of_the_recipe(what, folder):
    text, line = FAILS[what]
    told = refused(folder, text)
    assert line in told
    at = int(told.partition("mine.py, line ")[2].partition(",")[0])
    where = text.splitlines()[at - 1]
    assert any(words in where for words in ("nothing", "1 / 0", "raise", "[][1]", "select"))


def test_numbers_of_the_right_shape_are_taken_as_they_are():
    given = np.arange(6).reshape(3, 2)
    assert check_array("x", given, {"n": 3, "2": 2}) is given
    assert check_array("x", pl.Series([True, False]), {"n": None}).tolist() == [True, False]
    with pytest.raises(KarmafunnelError, match=r"x: needs an array \(n,\), found a list"):
        check_array("x", [[1], [1, 2]], {"n": None})
    with pytest.raises(KarmafunnelError, match=r"x: needs an array \(n,\), found \(2, 1\)"):
        check_array("x", [[1], [1]], {"n": None})


def test_a_measure_of_the_wrong_shape_is_refused_by_its_class(shop, tmp_path):
    @dataclass(frozen=True, repr=False)
    class Short(HitMeasure):
        clause = "nothing"

        def values(self, lists, n, k):
            return np.zeros(n - 1)

        def expected(self, lists, k):
            return np.zeros(len(lists.many))

    @dataclass(frozen=True, repr=False)
    class Bare(Measure):
        definition = "nothing"

        def figures(self, reading, part, stages):
            yield 0.5

    Short.name, Bare.name = "Short", "Bare"
    run = replay(Popular(k=9), shop, out=tmp_path / "run", options=RunOptions(limit=20))
    assert isinstance(run, Run)
    with pytest.raises(KarmafunnelError, match=r"Short@3 \(Short\): needs an array \(n_lists,\)"):
        measure(run, [Short(k=3)])
    with pytest.raises(KarmafunnelError, match=r"Bare \(Bare\): needs figures to be MetricValue"):
        measure(run, [Bare()])


# -- names that are not there ----------------------------------------------------------------------

MEANT = {
    "an argument of a stage": (
        "from karmafunnel.stages.rank import *\nfunnel = LightGBMRank(leafs=7)\n",
        "leaves",
    ),
    "an argument of a class of the recipe": (
        "class Mine:\n    def __init__(self, depth): ...\nfunnel = Mine(deepth=1)\n",
        "depth",
    ),
    "an argument of a function": ("def f(weight): ...\nfunnel = f(wieght=1)\n", "weight"),
    "a name of a module": (
        "from karmafunnel.stages import recall\nfunnel = recall.Populer()\n",
        "Popular",
    ),
    "an embedder": (
        "from karmafunnel.models.embedders import *\nfrom karmafunnel.stages.recall import *\n"
        "embedders = {'text': TfidfSVD()}\nfunnel = VectorRecall('txt')\n",
        "text",
    ),
    "a stage of the funnel": (
        "from karmafunnel.stages.recall import *\nfunnel = (Popular() >> Popular(name='rank'))"
        ".replace(rnak=None)\n",
        "rank",
    ),
}


@pytest.mark.parametrize("what", MEANT)
def test_a_misspelt_name_in_a_recipe_is_answered_with_what_was_meant(what, shop, tmp_path):
    text, name = MEANT[what]
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(KarmafunnelError, match=rf"did you mean {name}\?"):
        load_recipe(str(tmp_path / "mine.py"), shop)


def test_an_argument_that_is_like_no_other_is_answered_with_all_there_are(shop, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from karmafunnel.stages.recall import *\nfunnel = Popular(zzz=1)\n"
    )
    with pytest.raises(KarmafunnelError) as raised:
        load_recipe(str(tmp_path / "mine.py"), shop)
    for field in fields(Popular):
        assert field.name in str(raised.value)


def test_a_misspelt_recipe_is_answered_with_what_was_meant(shop):
    for given in ("baselin", "Baseline.py"):
        with pytest.raises(KarmafunnelError, match=r"did you mean baseline\?"):
            load_recipe(given, shop)


def test_closest_is_found_in_any_case_and_nothing_is_better_than_anything():
    assert closest("itemKnn", ["ItemKNN", "Popular"]) == ["ItemKNN"]
    assert meant("price", ["zebra"]) == ""


# -- what a funnel lacks ---------------------------------------------------------------------------


def test_from_python_a_missing_embedder_says_how_it_is_given(shop):
    funnel = Join([VectorRecall("co"), Popular()]) >> LightGBMRank(features=[Upstream()])
    with pytest.raises(KarmafunnelError) as raised:
        replay(funnel, shop)
    assert 'replay(funnel, log, embedders={"co": ...})' in raised.value.hint
    assert 'embedders = {"co": ...}' in raised.value.hint
    with pytest.raises(KarmafunnelError, match=r"did you mean code\?"):
        replay(funnel, shop, embedders={"code": RandomVectors()})


class NotFitted(RandomVectors):
    """Fails when it is fitted."""

    def fit(self, *_, **__) -> RandomVectorsEmbedding:
        raise AssertionError("fitted before the label was looked at")


def test_a_label_that_the_log_lacks_is_refused_before_anything_is_fitted(shop, monkeypatch):
    monkeypatch.setitem(shop.meta, "has", shop.meta["has"] | {"clicks": False})
    monkeypatch.setitem(shop.meta, "label", "purchase")
    with pytest.raises(KarmafunnelError) as raised:
        replay(VectorRecall("x"), shop, embedders={"x": NotFitted()}, label="click")
    assert str(raised.value).startswith("label 'click': needs clicks, found none in log shop")
    assert raised.value.hint == 'this log has label = "purchase"'


# -- what a replay says ----------------------------------------------------------------------------


def test_a_replay_says_what_it_does_in_words(shop, tmp_path):
    told: list[str] = []
    features = [Upstream()]
    ranked = Join([VectorRecall("co", k=150), Popular(k=150)], k=200) >> LightGBMRank(
        k=100, trees=5, features=features, name="first"
    )
    funnel = ranked >> LightGBMRank(k=5, trees=5, features=features)
    context = Context(shop, progress=told.append)
    for _ in range(2):
        fits = fit_embedders({"co": RandomVectors(dim=4)}, context, tmp_path)
        fitted = funnel.fit(replace(context, embeddings=fits), tmp_path)
    assert "so that later stages learn from scores of users whom a model did not see" in " ".join(told)
    assert told[-4:] == [
        f"{name}: fitted before, from the cache"
        for name in ("embedder co", "recall", "first", "rank")
    ]
    why = " ".join(fitted.explain(shop.request_ids[shop.requests_in("W3")[0]])["why"])
    assert "found by co=" in why or "found by popular=" in why
    assert "channel0" not in why and "channel1" not in why


def test_what_is_only_read_is_not_called_fitting(shop, tmp_path):
    told: list[str] = []
    row = shop.requests_in("W3")[:1]
    frame = pl.DataFrame(
        {"request_id": shop.request_ids[row], "item_id": shop.item_ids[:1], "score": [1.0]}
    )
    frame.write_parquet(tmp_path / "theirs.parquet")
    path = str(tmp_path / "theirs.parquet")
    (External(path) >> ExternalRank(path)).fit(Context(shop, progress=told.append))
    assert told == ["recall: reading External", "rank: reading ExternalRank"]
