"""Keys cover the code that a value reaches, and nothing that does not matter when it runs."""

from collections.abc import Iterator

import polars as pl
import pytest
from karmafunnel import keys
from karmafunnel.log import Catalogue
from karmafunnel.models.embedders import TfidfSVD
from karmafunnel.models.karma import KARMA, FrozenLM, LanguageFirst, Qwen, Transfer
from karmafunnel.models.sasrec import SASRec
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import DINRank
from karmafunnel.stages.recall import HNSW, Join, Popular, VectorRecall

PLAIN = """class C:
    def f(self, x, y=2):
        try:
            return [x + y, x in {'a', 'b'}]
        except ValueError:
            x = 1
        return x
"""


def digest(text: str) -> object:
    return keys.without_lines(compile(text, "a", "exec", dont_inherit=True, optimize=2))


@pytest.mark.parametrize(
    "text",
    [
        '"""What it is for."""\n' + PLAIN,
        "# a comment\n\n\n" + PLAIN,
        PLAIN.replace("class C:\n", 'class C:\n    """A class."""\n\n'),
        PLAIN.replace("        try", '        """Doubles."""  # or not\n\n        try'),
        PLAIN.replace("x + y, x", "x + y,\n                x"),
    ],
    ids=["docstring", "comment", "docstring of a class", "docstring of a method", "line break"],
)
def test_a_digest_is_blind_to(text):
    assert text != PLAIN
    assert digest(text) == digest(PLAIN)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace("y=2", "y=3"),
        PLAIN.replace("+", "-"),
        PLAIN.replace("'b'", "'c'"),
        PLAIN.replace("y=2", "y=2.0"),
        PLAIN.replace("y=2", "w=2").replace("x + y", "x + w"),
        PLAIN.replace("ValueError", "KeyError"),
        PLAIN.replace(
            "            x = 1\n        return x", "            x = 1\n            return x"
        ),
    ],
    ids=["constant", "operator", "word in a set", "type of a constant", "name", "error", "place"],
)
def test_a_digest_sees(text):
    assert digest(text) != digest(PLAIN)


def reached(*values: object) -> set[str]:
    """Names of the modules that a key of values covers, without the package's."""
    seen: set[str] = set()
    waiting = list(keys.modules_of(values))
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += [where for _, where in keys.imports(module)]
    return {module.removeprefix("karmafunnel.") for module in seen}


def test_what_values_reach():
    recall = reached(Join([VectorRecall("a", index=HNSW()), Popular()]))
    assert {
        "stages.recall.vector",
        "stages.recall.fusion",
        "stages.stage",
        "models.embedders",
        "log",
    } <= recall
    assert (
        not {
            "models.sasrec",
            "models.ctr.din",
            "models.karma.train",
            "stages.rank",
            "stages.learn",
            "stages.recall.lexical",
        }
        & recall
    )
    assert {"models.gbdt", "stages.learn", "stages.features"} <= reached(LightGBMPreRank())
    assert {"models.ctr.din", "models.ctr.fitting", "models.training"} <= reached(DINRank())
    karma = reached(KARMA(beside=(TfidfSVD(),)))
    assert {
        f"models.karma.{name}"
        for name in ("backbone", "embedder", "losses", "network", "sequences", "train", "visual")
    } <= karma
    assert not {"models.sasrec", "stages.stage"} & karma


def test_a_name_that_a_package_passes_on_leads_to_its_module():
    assert (
        keys.defined_in("karmafunnel.models.karma", "KARMA") == "karmafunnel.models.karma.embedder"
    )
    assert keys.defined_in("karmafunnel.models", "sasrec") == "karmafunnel.models.sasrec"


@pytest.fixture
def changed(monkeypatch) -> Iterator[list[str]]:
    """Modules whose code is another one."""
    modules: list[str] = []
    real = keys.digest_of
    monkeypatch.setattr(
        keys, "digest_of", lambda module: "other" if module in modules else real(module)
    )
    keys.code_digest.cache_clear()
    yield modules
    keys.code_digest.cache_clear()


def test_a_key_changes_with_what_is_reached_alone(changed):
    before = keys.code_of(SASRec()), keys.code_of(TfidfSVD())
    changed.append("karmafunnel.models.sasrec")
    keys.code_digest.cache_clear()
    after = keys.code_of(SASRec()), keys.code_of(TfidfSVD())
    assert after[0] != before[0] and after[1] == before[1]
    changed.append("karmafunnel.log")
    keys.code_digest.cache_clear()
    assert keys.code_of(TfidfSVD()) != before[1]


@pytest.mark.parametrize(
    "reads",
    [
        lambda folder: Transfer(KARMA(ids=False), folder),
        lambda folder: KARMA(backbone=LanguageFirst(Qwen(), logs=(folder,))),
        lambda folder: FrozenLM(backbone=Qwen(catalogues=(folder,))),
    ],
    ids=["Transfer", "LanguageFirst", "Qwen"],
)
def test_a_key_changes_with_a_log_that_a_value_names(reads, tmp_path):
    titles = ["a lamp", "a chair", "a table"]
    meta = {"name": "others", "label": "purchase", "catalogue": "published"}
    codes = []
    for title in titles:
        items = pl.DataFrame({"item_id": ["i"], "title": [title]})
        Catalogue.make(items, meta).write(tmp_path / "log")
        codes.append(keys.code_of([{"row": reads(str(tmp_path / "log"))}]))
    assert len(set(codes)) == len(titles)
    assert codes[-1] == keys.code_of(reads(str(tmp_path / "log")))
    (tmp_path / "log").rename(tmp_path / "moved")  # what it holds, wherever it lies
    assert codes[-1] == keys.code_of(reads(str(tmp_path / "moved")))
